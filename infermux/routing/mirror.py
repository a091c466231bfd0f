"""Mirrors: copies of a share of a name's calls, sent to another target after their answers.

A copy waits in a bounded queue for one of a few threads of its own, and has circuits, limits and a
budget of its own, so that it never delays a caller. Its row in the ledger has the API
"mirror" and an id that follows from the call's, by which `infermux costs --compare` pairs them.
"""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from hashlib import sha256
from typing import NamedTuple

from ..dialects import listed
from ..dialects.responses import NAME as RESPONSES
from ..errors import BudgetExceeded, ProviderError, ProviderRejected
from ..ledger import Budget
from ..ledger.compare import API, mirror_id
from ..ledger.reports import MIRROR_OF
from ..planning.call import Call
from ..protocol import CHAT, InferRequest, Native, strict_json
from ..telemetry.shared_memory import SharedMemory
from ..types import Caller, LogThrottle, Route, TraceContext, reset_after_fork
from .router import Router
from .targets import TargetPool

THREADS = 4  # in each process, that send copies
QUEUE = 256  # copies that wait
MAX_BYTES = 64 * 1024 * 1024  # of the requests that wait
SECONDS = 600.0  # the time that a copy may take
LAST_SECONDS = 3.0  # for the waiting copies, when a process that is no service ends
_ACTS = (
    *("previous_response_id", "conversation", "background", "prompt", "container"),
    "mcp_servers",  # tools that the vendor calls, which would act twice
)
_throttle = LogThrottle()
log = logging.getLogger("infermux")


class Rule(NamedTuple):
    """The target of the copies of a name's calls, and the share of calls that are copied."""

    target: str
    share: float
    budget: Budget | None = None


class _Copy(NamedTuple):
    name: str  # the name or pattern that is mirrored
    route: Route  # of the mirrored call
    request: InferRequest
    streamed: bool
    ident: str
    trace: TraceContext
    size: int  # bytes


class _CopyRouter(Router):
    """Sends copies with the settings of the mirrored name, like the calls themselves."""

    def _checked(self, call: Call) -> Route:
        settings = call.settings
        route = super()._checked(call)
        call.settings = settings
        return route

    def finish(self, call: Call, error: BaseException | None) -> None:
        """Record a copy, unless its budget is spent, so that nothing was sent."""
        if isinstance(error, BudgetExceeded) and not call.attempts:
            call.ended = time.monotonic()
            return
        super().finish(call, error)


class Mirror:
    """An observer that sends copies of calls by the rules of their names."""

    def __init__(self, router: Router, rules: Mapping[str, Rule]) -> None:
        self.rules = rules
        self.memory: SharedMemory | None = None  # counts the outcomes
        pool = router.targets
        self._registry = router.registry
        self._router = _CopyRouter(
            router.registry,
            attempts=1,
            deadline=min(router.deadline or SECONDS, SECONDS),
            on_unsupported="drop",
            observers=[each for each in router.observers if not isinstance(each, Mirror)],
            targets=TargetPool(router.registry, overrides=pool.overrides, table=pool.prices),
            ledger=router.ledger,
        )
        self._callers = {
            name: Caller(MIRROR_OF + name, budget=rule.budget) for name, rule in rules.items()
        }
        self._reset()
        reset_after_fork(self, Mirror._reset)

    def _reset(self) -> None:
        self._state = threading.Condition()
        self._queue: deque[_Copy] = deque()
        self._bytes = self._threads = self._busy = 0
        self._ended = False

    # -- in the thread of a call: this must be quick --

    def __call__(self, call: Call) -> None:
        if call.plan is None:
            return
        route = call.plan.route
        name = route.pattern or route.name
        rule = self.rules.get(name)
        if rule is None or not _is_drawn(call.id, rule.share) or not _may_be_copied(call):
            return
        native = call.request.native
        size = 4 * call.input_size if native is None else len(native.body.data or native.body.text)
        with self._state:
            full = len(self._queue) >= QUEUE or self._bytes + size > MAX_BYTES
            if not full and not self._ended:
                self._bytes += size
                self._queue.append(_copied(call, name, route, rule, size))
                if self._threads < min(THREADS, self._busy + len(self._queue)):
                    if not self._threads:
                        atexit.register(self.drain)
                    self._threads += 1
                    own = f"infermux-mirror-{self._threads}"
                    threading.Thread(target=self._run, name=own, daemon=True).start()
                self._state.notify()
                return
        self._count(name, "dropped")

    # -- in its own threads --

    def _run(self) -> None:
        while True:
            with self._state:
                while not self._queue:
                    if self._ended:
                        self._threads -= 1
                        return
                    self._state.wait()
                copy = self._queue.popleft()
                self._busy += 1
            try:
                self._count(copy.name, self._sent(copy))
            except Exception:  # the thread must survive any failure
                if _throttle.due():
                    log.exception("a copy of a call could not be sent")
                self._count(copy.name, "failed")
            finally:
                with self._state:
                    self._busy -= 1
                    self._bytes -= copy.size
                    self._state.notify_all()
                del copy

    def _sent(self, copy: _Copy) -> str:
        router, caller = self._router, self._callers[copy.name]
        settings = self._registry.settings_around(copy.route, copy.request.model)
        call = router.begin(copy.request, caller=caller, api=API, trace=copy.trace)
        call.settings = settings and replace(settings, attempts=1)
        call.id, call.patience = copy.ident, SECONDS
        try:
            if copy.streamed:
                with router.open(call) as stream:
                    for _ in stream:
                        pass
            else:
                router.answer(call)
        except BudgetExceeded:
            return "refused"
        except Exception as error:  # it is recorded with the call
            log.debug("a copy of a call failed: %s", type(error).__name__)
            return "failed"
        return "sent"

    def drain(self, seconds: float = LAST_SECONDS) -> int:
        """Wait until every copy is sent, at most *seconds*; drop the rest, and return how many."""
        end = time.monotonic() + seconds
        with self._state:
            self._ended = True
            self._state.notify_all()
            while self._queue or self._busy:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._state.wait(left)
            given_up = [*self._queue]
            self._queue.clear()
        for copy in given_up:
            self._count(copy.name, "dropped")
        return len(given_up)

    @property
    def waiting(self) -> int:
        return len(self._queue) + self._busy

    def _count(self, name: str, outcome: str) -> None:
        if self.memory is not None:
            self.memory.count("mirrored_total", name, outcome)


def _is_drawn(ident: str, share: float) -> bool:
    """Whether a call is copied. It follows from the id, so all hosts decide alike."""
    digest = sha256(f"drawn\0{ident}".encode(errors="replace")).digest()
    return int.from_bytes(digest[:8]) / 2**64 < share


def _may_be_copied(call: Call) -> bool:
    """Whether a copy would have no side effect at a vendor."""
    request, error = call.request, call.error
    if call.api == API or request.op != CHAT or not call.attempts or call.override:
        return False
    if error is not None and (
        not issubclass(error.kind, ProviderError) or issubclass(error.kind, ProviderRejected)
    ):
        return False
    params = request.params
    if call.ids or params.get("store") is True or any(map(params.get, _ACTS)):
        return False
    return not any("mcp" in str(tool.get("type")) for tool in listed(params.get("tools")))


def _copied(call: Call, name: str, route: Route, rule: Rule, size: int) -> _Copy:
    request = call.request
    native = request.native
    params = request.params
    if native is not None and native.dialect == RESPONSES:  # nothing is stored at the vendor
        body = strict_json.document(native.body.replaced({"store": False}))
        native = Native(native.dialect, body, native.query)
        params = {**params, "store": False}
    asked = replace(
        request,
        model=rule.target,
        provider="",
        params=params,
        native=native,
        dropped=None,
        upstream_ids=None,
    )
    streamed = call.attempts[-1].first_chunk is not None
    trace = TraceContext(call.trace_id, call.span_id)
    return _Copy(name, route, asked, streamed, mirror_id(call.id), trace, size)
