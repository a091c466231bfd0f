"""The routing story: a request becomes a plan, the plan becomes attempts, the attempts become an
answer and one record.
"""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol

from ..admission import Admission
from ..admission.keys import Keyring
from ..errors import (
    BudgetExceeded,
    InferMuxError,
    ModelNotAllowed,
    NoHealthyProvider,
    StreamIncomplete,
    shown,
)
from ..ledger import Budget, Ledger, LedgerUnavailable
from ..planning import Plan, plan, takes_turns
from ..planning.call import Attempt, Call, for_target, usd
from ..planning.registry import Registry
from ..pricing import Price
from ..protocol import InferRequest, InferResponse, TraceSpan
from ..providers.base import RegisteredProvider, validated
from ..providers.foreign import Foreign, close
from ..telemetry.spans import parse, spans
from ..types import ANONYMOUS, HEARTBEAT, NOTHING, Caller, Chunk, Deadline, Route, TraceContext
from .attempts import Answer, Ask, Attempts, Sleep
from .billing import Billing
from .spending import Spending
from .stream import Stream
from .targets import TargetPermit, TargetPool

TAGS = ("project", "env")  # what a request may say of itself, for reports
LEASE_SECONDS = 660.0  # beyond the deadline: a stream may go on for ten minutes more
log = logging.getLogger("infermux")
Observer = Callable[[Call], None]


class Reports(Protocol):
    """What takes spans."""

    def report(self, span: TraceSpan) -> None:
        """Take one span; never block, never raise."""


class Router:
    """Sends requests to the providers of a registry, and tells what came of each."""

    def __init__(
        self,
        registry: Registry,
        reporter: Reports | None = None,
        *,
        attempts: int = 3,
        deadline: float = 60.0,
        on_unsupported: str = "error",
        observers: Iterable[Observer] = (),
        targets: TargetPool | None = None,
        admission: Admission | None = None,
        keyring: Keyring | None = None,
        ledger: Ledger | None = None,
        prices: Mapping[str, Mapping[str, Price]] | None = None,
        content: bool = False,
        sleep: Sleep = time.sleep,
        seed: int | None = None,
    ) -> None:
        self.registry = registry
        self.reporter = reporter
        self.deadline = deadline  # seconds per call, over all attempts
        self.on_unsupported = (
            on_unsupported  # "drop": leave out, and tell of, what a target's format cannot express
        )
        self.targets = targets or TargetPool(registry, overrides=prices)
        self.admission = admission or Admission()
        self.keyring = keyring  # None: whoever mounts the doors says who is calling
        self.billing = Billing(registry, prices or {}, content=content)
        self.spending = (
            None
            if ledger is None
            else Spending(ledger, self.targets, lease=deadline + LEASE_SECONDS)
        )
        self.observers = [*observers, *([self._report] if reporter is not None else [])]
        self._rng = random.Random(seed)
        before = self.spending.reserve if self.spending else None
        self._attempts = Attempts(
            self.targets, most=attempts, before=before, sleep=sleep, rng=self._rng
        )
        self._cursors: dict[str, int] = {}  # calls of each name so far, for taking turns

    # -- the two ways to ask -----------------------------------------------------------------------

    def infer(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        trace: TraceContext | None = None,
    ) -> InferResponse:
        """Return the answer; raise InferMuxError."""
        return self.answer(self.begin(request, caller=caller, trace=trace))

    def stream(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        trace: TraceContext | None = None,
    ) -> Stream:
        """Return the answer as chunks; the first content has come when this returns, so that it
        raises what can be raised.
        """
        return self.open(self.begin(request, caller=caller, trace=trace))

    def begin(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        api: str = "library",
        trace: TraceContext | None = None,
        tags: Mapping[str, str] = NOTHING,
    ) -> Call:
        """Return the record of a call that starts now; without *trace*, meta.traceparent may name
        its trace.

        *tags* that the request names, like meta.project and meta.env, count where the caller may
        set them.
        """
        meta: Mapping[str, str] = request.meta if isinstance(request.meta, Mapping) else NOTHING
        header = meta.get("traceparent") if trace is None else None
        own = NOTHING
        if caller.may_tag and (tags or meta):
            own = {
                name: value
                for name in TAGS
                if isinstance(value := tags.get(name) or meta.get(name), str)
            }
        return Call.begin(
            request,
            caller=caller,
            api=api,
            trace=parse(header) if isinstance(header, str) else trace,
            tags={**own, **caller.tags} if own or caller.tags else NOTHING,
        )

    def answer(self, call: Call) -> InferResponse:
        """Return the answer to a call that has begun; raise InferMuxError."""
        try:
            response = self._first_success(call, self._ask, streamed=False)
        except BaseException as error:
            self.finish(call, error)
            raise
        self.finish(call, None)
        return response.known(
            response.provider or call.provider,
            usd(call.cost),
            response.latency_ms or call.attempts[-1].latency_ms,
        )

    def open(self, call: Call) -> Stream:
        """Return the stream of a call that has begun; raise InferMuxError."""
        try:
            first, rest, lease = self._first_success(call, self._begin_stream, streamed=True)
        except BaseException as error:
            self.finish(call, error)
            raise
        return Stream(call, first, rest, lease, self.billing, self.finish)

    # -- what is tried -----------------------------------------------------------------------------

    def plan(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        seed: int | None = None,
        size: int | None = None,
    ) -> Plan:
        """Return what a call for *request* would try now; raise ModelNotFound or ModelNotAllowed.

        *size* is how many input tokens the request has, where the text itself is not at hand.
        """
        return self._plan(
            self._route(request, caller), request, seed, priced=_held(caller), turn=False, size=size
        )

    def _route(self, request: InferRequest, caller: Caller) -> Route:
        if caller.models is not None and request.model not in caller.models:
            raise ModelNotAllowed(
                f"this key does not open the model {shown(request.model)}", param="model"
            )
        route = self.registry.route(request.model, request.provider)
        if (
            caller.models is not None and request.provider
        ):  # a name that is open opens no other model of a provider
            route = self.registry.narrowed(self.registry.route(request.model), request.provider)
        return route

    def _plan(
        self,
        route: Route,
        request: InferRequest,
        seed: int | None = None,
        *,
        priced: bool = False,
        turn: bool = True,
        size: int | None = None,
    ) -> Plan:
        cursor = 0
        if takes_turns(route):
            cursor = self._cursors.get(route.name, -1) + 1
            if turn:  # only a call that is made moves on
                self._cursors[route.name] = cursor
        snapshot = self.targets.snapshot(route, request, cursor, priced=priced, size=size)
        rng = self._rng if turn else copy.copy(self._rng)
        return plan(route, snapshot, rng.getrandbits(32) if seed is None else seed)

    def _first_success(self, call: Call, ask: Ask[Answer], *, streamed: bool) -> Answer:
        """Plan the call, let it in, and go through its targets."""
        call.request.check()
        route = (call.plan and call.plan.route) or self._route(call.request, call.caller)
        if (route.on_unsupported or self.on_unsupported) == "drop":
            call.request = replace(call.request, dropped=[])
        if self.spending is None and isinstance(call.caller.budget, Budget) and _held(call.caller):
            raise LedgerUnavailable(
                "a caller has a budget, and this router has no ledger to keep it"
            )
        self.admission.admit(call, streamed=streamed)
        deadline = Deadline(
            self.deadline if call.patience is None else min(self.deadline, call.patience)
        )
        call.plan = call.plan or self._targets(call, route)  # a call that is replayed has its own
        try:
            return self._attempts.first_success(call, deadline, ask)
        except BudgetExceeded:
            cheaper = getattr(call.caller.budget, "then", "reject")
            if call.attempts or cheaper in ("reject", "warn"):
                raise
            call.override = cheaper
            call.plan = self._targets(call, self.registry.route(cheaper))
            return self._attempts.first_success(call, deadline, ask)

    def _targets(self, call: Call, route: Route) -> Plan:
        """Return a plan that has something to try; raise NoHealthyProvider with the reasons if
        there is nothing.
        """
        call.plan = plan = self._plan(route, call.request, priced=_held(call.caller))
        if not plan.targets:
            reasons = "; ".join(f"{target}: {reason}" for target, reason in plan.dropped.items())
            raise NoHealthyProvider(
                f"no target for model {shown(route.name)} can be tried ({reasons[:300]})",
                retry_after=plan.retry_in,
            )
        return plan

    def _ask(
        self,
        member: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        lease: TargetPermit,
    ) -> InferResponse:
        with Foreign(member.name):
            response = validated(member.infer(for_target(call.request, attempt.target), deadline))
        attempt.ended = time.monotonic()
        lease.end(None, attempt.seconds)
        return self.billing.answered(call, attempt, response)

    def _begin_stream(
        self,
        member: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        lease: TargetPermit,
    ) -> tuple[list[Chunk], Iterator[Chunk], TargetPermit]:
        """Return what came up to the first content, and the rest: until then every failure is an
        ordinary one.
        """
        chunks: Iterator[Chunk] = iter(())
        first: list[Chunk] = []
        try:
            with Foreign(member.name):
                chunks = iter(member.stream(for_target(call.request, attempt.target), deadline))
                for chunk in chunks:
                    if chunk is not HEARTBEAT:
                        first.append(chunk)
                        attempt.served = chunk.model or attempt.served
                    if chunk.has_content:
                        attempt.first_chunk = time.monotonic()
                        lease.started(attempt.seconds)
                        return first, chunks, lease
            raise StreamIncomplete("the provider's stream ended before it began")
        except BaseException:
            close(chunks, member.name)
            raise

    # -- what came of it ---------------------------------------------------------------------------

    def finish(self, call: Call, error: BaseException | None) -> None:
        """Close the record of a call, once, and tell the observers."""
        if call.ended is not None:
            return
        call.ended = time.monotonic()
        if error is not None:
            call.error = (
                error
                if isinstance(error, InferMuxError)
                else InferMuxError("the call was broken off")
            )
        self.admission.release(call)
        if self.spending is not None:
            self.spending.settle(call)
        for observer in self.observers:
            try:
                observer(call)
            except Exception:  # an observer must never break the call that it watches
                log.exception("an observer failed")

    def _report(self, call: Call) -> None:
        for span in spans(call):
            self.reporter.report(span)  # type: ignore[union-attr]  # an observer only where there is a reporter

    def close(self) -> None:
        """Release what the providers and the ledger hold."""
        if self.spending is not None:
            self.spending.ledger.close()
        for member in self.registry:
            release = getattr(member.provider, "close", None)
            if release is not None:
                release()


def _held(caller: Caller) -> bool:
    """Whether the caller's budget is a hard one."""
    return getattr(caller.budget, "then", "warn") != "warn"


__all__ = ["Observer", "Reports", "Router", "Stream"]
