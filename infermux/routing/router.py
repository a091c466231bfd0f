"""The router: makes a plan for a request, attempts its targets, and records the call.

The path of a request through the packages:

    web         POST /v1/chat/completions: `endpoints` → `authenticated` → `start_call`
    dialects    `openai.downstream.decode_request`: bytes → InferRequest
    routing     `Router.answer` or `Router.open`
    admission     `Admission.admit`: the limits of this process and of the caller
    planning      `plan`: the targets in order
    ledger        `Accounting.reserve`: the highest cost of each attempt
    providers     `HTTPProvider.infer` or `.stream`: `dialects.*.upstream` → socket
    routing     `Router.finish`: ledger, span, metrics and log line, each from the one `Call`
    dialects    `openai.downstream.encode_answer` → web → bytes
"""

from __future__ import annotations

import copy
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any, TypeVar, cast

from ..admission import Admission
from ..admission.keys import Keyring
from ..errors import (
    BudgetExceeded,
    ClientGone,
    InferMuxError,
    Paced,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    RequestError,
    Unavailable,
    having,
)
from ..ledger.sql import Ledger
from ..planning import Plan, is_sticky, plan, takes_turns
from ..planning.call import Attempt, Call
from ..planning.end_user import Users
from ..planning.registry import Registry
from ..planning.session import session_of
from ..pricing import Price, usd_float
from ..protocol import InferRequest, InferResponse
from ..providers.base import ProviderGuard, RegisteredProvider, validated
from ..telemetry.spans import SpanReporter, reporting
from ..types import ANONYMOUS, JSON, NOTHING, Caller, Deadline, Route, Target, TraceContext
from .accounting import Accounting, no_target
from .answers import AnswerCache, Replay, watched
from .callers import allowed_route, begun, check_options, has_hard_budget
from .stored import Ids, has_files, service_secrets
from .stream import Stream, open_chunks
from .target_queue import MAX_BACKOFF, TargetQueue, longest_backoff
from .targets import TargetPermit, TargetPool

CALL_SECONDS = 600.0  # deadline if client and configuration set none (as the SDKs)
FAILOVER_SECONDS = 60.0  # deadline of attempts while another target is untried
SHARE = 0.5  # of the remaining time, for an attempt while another target is untried
_PARTS = (
    *("registry", "reporter", "attempts", "deadline", "on_unsupported", "targets", "admission"),
    *("ids", "files", "keyring", "accounting", "users", "answers", "observers", "hooks"),
)
log = logging.getLogger("infermux")
Observer = Callable[[Call], None]
Answer = TypeVar("Answer")
Send = Callable[[RegisteredProvider, Call, Attempt, Deadline, TargetPermit], Answer]


class Router:
    """Sends requests to the providers of a registry, and reports each call."""

    def __init__(
        self,
        registry: Registry | Iterable[Any],
        reporter: SpanReporter | None = None,
        *,
        attempts: int = 3,
        deadline: float | None = None,
        on_unsupported: str = "error",
        observers: Iterable[Observer] = (),
        targets: TargetPool | None = None,
        admission: Admission | None = None,
        keyring: Keyring | None = None,
        ledger: Ledger | None = None,
        prices: Mapping[str, Mapping[str, Price]] | None = None,
        capture_content: bool = False,
        users: Users | None = None,
        answers: AnswerCache | None = None,
        hooks: Any = None,
        sleep: Callable[[float], None] = time.sleep,
        seed: int | None = None,
    ) -> None:
        check_options(attempts, deadline, on_unsupported)
        self.registry = registry = Registry.of(registry)
        self.reporter, self.answers = reporter, answers  # each may be None
        self.attempts = attempts  # most upstream requests per call
        self.deadline = deadline  # seconds per call, with all waits; None: the client's timeout
        self.on_unsupported = on_unsupported  # "drop": omit preferences a target cannot express
        self.targets = targets or TargetPool(registry, overrides=prices)
        self.admission = admission or Admission()
        self.users = users or Users()  # knows the end users of callers
        ids = partial(Ids, registry, keyring, service_secrets(self.users, ledger))
        self.ids, self.files = ids(), ids(has_files)
        self.keyring = keyring  # None: the app that mounts the blueprints names the caller
        self.accounting = Accounting(
            self.targets, ledger, deadline=deadline, longest=CALL_SECONDS, content=capture_content
        )
        self.hooks: Any = import_module(".hooks", __package__).Hooks.of(hooks) if hooks else None
        self.observers: list[Observer] = [*observers, *reporting(reporter)]
        self._sleep, self._rng = sleep, random.Random(seed)
        self._cursors: dict[str, int] = {}  # calls of each round-robin name or pattern so far

    def take_over(self, other: Router) -> None:
        """Replace registry, state and configuration by those of *other*, from a newer file."""
        for part in _PARTS:
            setattr(self, part, getattr(other, part))

    @property
    def ledger(self) -> Ledger | None:
        return self.accounting.ledger

    # -- calls --

    def infer(
        self,
        request: InferRequest | str | Sequence[JSON],
        *,
        model: str = "",
        provider: str = "",
        params: Mapping[str, Any] = NOTHING,
        caller: Caller = ANONYMOUS,
        trace: TraceContext | None = None,
        user: str = "",
    ) -> InferResponse:
        """Return the answer; raise InferMuxError.

        A prompt or a list of messages stands for an InferRequest with *model* and the others.
        """
        asked = InferRequest.of(request, model, provider, params)
        return self.answer(self.begin(asked, caller=caller, trace=trace, user=user))

    def stream(
        self,
        request: InferRequest | str | Sequence[JSON],
        *,
        model: str = "",
        provider: str = "",
        params: Mapping[str, Any] = NOTHING,
        caller: Caller = ANONYMOUS,
        trace: TraceContext | None = None,
        user: str = "",
    ) -> Stream:
        """Return the answer as a stream, after its first content; `with` closes it. See `infer`."""
        asked = InferRequest.of(request, model, provider, params)
        return self.open(self.begin(asked, caller=caller, trace=trace, user=user))

    def begin(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        api: str = "library",
        trace: TraceContext | None = None,
        tags: Mapping[str, str] = NOTHING,
        user: str = "",
    ) -> Call:
        """Return the record of a call that starts now.

        Without *trace*, the one in the request's meta is used. *tags*, else meta.project and
        meta.env, are used if the caller may set tags; *user*, else who the request says, is the
        caller's end user.
        """
        return begun(request, caller, api, trace, tags, self.users, user)

    def answer(self, call: Call, send: Send[InferResponse] | None = None) -> InferResponse:
        """Return the answer to a call that has begun, by *send* if given; raise InferMuxError."""
        try:
            response = self._run(call, send or self._send, streamed=False)
            if self.hooks is not None and call.cached is None and send is None:
                response = self.hooks.after(call, response)
            call.stated_ms = response.latency_ms or None
        except BaseException as error:
            self.finish(call, error)
            raise
        self.finish(call, None)
        if call.answer_key and self.answers is not None:
            self.answers.keep(call, response)
        return response.known(
            response.provider or call.provider, usd_float(call.cost), call.latency_ms
        )

    def open(self, call: Call) -> Stream:
        """Return the stream of a call that has begun; raise InferMuxError."""
        try:
            stream = self._run(call, self._send_streamed, streamed=True)
            return stream if self.hooks is None else stream.started()
        except BaseException as error:
            self.finish(call, error)
            raise

    # -- the plan --

    def plan(
        self,
        request: InferRequest,
        *,
        caller: Caller = ANONYMOUS,
        seed: int | None = None,
        size: int | None = None,  # the number of input tokens, if the text is not known
    ) -> Plan:
        """Return the plan of a call for *request* now; raise ModelNotFound or ModelNotAllowed."""
        route = self._route(request, caller)
        return self._plan(route, request, seed, caller=caller, counts=False, size=size)

    def _route(self, request: InferRequest, caller: Caller) -> Route:
        if caller.models is not None:
            return allowed_route(self.registry, request, caller.models)
        return self.registry.route(request.model, request.provider)

    def _plan(
        self,
        route: Route,
        request: InferRequest,
        seed: int | None = None,
        *,
        caller: Caller,
        counts: bool = True,
        size: int | None = None,
    ) -> Plan:
        """Return the plan of a call now; if it *counts*, advance the name's round robin."""
        cursor = 0
        if takes_turns(route):
            cursor = self._cursors.get(turns := route.pattern or route.name, -1) + 1
            if counts:
                self._cursors[turns] = cursor
        strict = (route.on_unsupported or self.on_unsupported) != "drop"
        session = session_of(request, caller) if is_sticky(route) else ""
        if (settings := self.registry.settings(route)) is not None:
            request = settings.own.applied(request)
        snapshot = self.targets.snapshot(
            route, request, cursor, has_hard_budget(caller), size, strict, session
        )
        rng = self._rng if counts else copy.copy(self._rng)
        return plan(route, snapshot, rng.getrandbits(32) if seed is None else seed)

    def _make_plan(self, call: Call, route: Route) -> None:
        """Plan the call; raise NoHealthyProvider with the reasons if no target is left."""
        call.plan = self._plan(route, call.request, caller=call.caller)
        if not call.plan.targets:
            raise no_target(call.plan)

    # -- attempts --

    def _run(self, call: Call, send: Send[Answer], *, streamed: bool) -> Answer:
        """Admit the call, plan it, and try its targets."""
        route = self._checked(call)
        self.accounting.check_caller(call.caller)
        self.admission.admit(call, streamed=streamed)
        if self.hooks is not None and self.hooks.before(call, streamed=streamed):
            route = self._checked(call)
        if self.answers and (known := self.answers.find(call, route, self.registry, streamed)):
            return cast(Answer, Replay(call, known, self.finish) if streamed else known)
        deadline = call.limit(self.deadline, CALL_SECONDS)
        if call.plan is None:  # a replayed call has its own
            self._make_plan(call, route)
        try:
            return self._first_success(call, deadline, send)
        except BudgetExceeded as error:
            if call.attempts or error.then in ("reject", "warn") or call.request.passed:
                raise
            call.override = error.then
            other = self.registry.route(error.then)
            call.settings = self.registry.settings(other)
            call.lenient = (other.on_unsupported or self.on_unsupported) == "drop"
            deadline = call.limit(self.deadline, CALL_SECONDS)
        except ProviderError as error:
            if not self.files.pin_files(call, error):
                raise
            other = self._route(call.request, call.caller)
        self._make_plan(call, other)
        return self._first_success(call, deadline, send)

    def _checked(self, call: Call) -> Route:
        """Return the route of a request that is valid and allowed; raise RequestError."""
        call.request.check()
        self.ids.pin(call)
        route = call.plan.route if call.plan else self._route(call.request, call.caller)
        call.settings = self.registry.settings(route)
        call.lenient = (route.on_unsupported or self.on_unsupported) == "drop"
        return route

    def _first_success(self, call: Call, deadline: Deadline, send: Send[Answer]) -> Answer:
        """Return the answer of the first target that gives one; raise the last error.

        The limit of attempts and the deadline hold for all targets together.
        """
        plan, own = cast(Plan, call.plan), call.settings
        most = call.most_attempts(self.attempts)
        failover = Deadline(FAILOVER_SECONDS if call.request.passed is None else CALL_SECONDS)
        queue = TargetQueue(plan.targets, self.targets.reserve(plan) if plan.dropped else ())
        last: InferMuxError | None = None
        try:
            while queue and len(call.attempts) < most:
                target, not_before = queue.next()
                waits = queue.waits(target)
                try:
                    if (waited := self._wait(call, target, not_before, deadline)) is None:
                        last = last or ProviderTimeout("no provider answered in time")
                        continue
                    share = None if own is None else own.limited(target, deadline)
                    if share is None:
                        others = queue.has_untried(call)
                        share = deadline.share(SHARE, failover) if others else deadline
                    return self._try(call, target, waited, share, send, waits)
                except Paced as error:
                    last = last or error
                    queue.postpone(target, error, waited=waits)
                except (RequestError, Unavailable) as error:  # nothing was sent
                    if not error.elsewhere:
                        raise
                    if last is None or (last.status == 400 and isinstance(last, RequestError)):
                        last = error
                except ProviderError as error:
                    last = error
                    if call.is_last(error):
                        break
                    if not error.failover:
                        queue.keep(self.targets.followers(target, error, plan.route))
                    if (again := self._retry_at(call, target, error, deadline)) is not None:
                        queue.retry(target, again)
            raise cast(InferMuxError, last)
        finally:
            last = None  # else a cycle: the error's traceback refers to this frame

    def _wait(
        self, call: Call, target: Target, not_before: float, deadline: Deadline
    ) -> float | None:
        """Wait until a retry or the end of a cool-down; return the seconds, None if that cannot be.

        Raise ProviderRateLimited if a cool-down is too long.
        """
        if deadline.expired:
            return None
        if not_before and not (call.has_head or self.targets.retry_budget(target.provider).spend()):
            return None
        wait = max(0.0, not_before - time.monotonic())
        if call.must_try(target):
            cooling = self.targets.breaker(target).cooling()
            limit = deadline.cap(None if call.has_tried(target) else MAX_BACKOFF)
            if cooling and cooling >= limit:
                told = "the provider limits our rate; retry later"
                own = {"retry_after": cooling, "retryable": False, "sent": False}
                raise having(ProviderRateLimited(told), **own)
            wait = max(wait, cooling)
        for part in deadline.slices(wait):
            self._sleep(part)
        return None if wait and deadline.expired else wait

    def _try(
        self,
        call: Call,
        target: Target,
        waited: float,
        deadline: Deadline,
        send: Send[Answer],
        waits: bool,
    ) -> Answer:
        """Send one request; record its outcome, also in the target's circuit breaker."""
        self.accounting.reserve(call, target)
        permit, tokens = self.targets.admit(call, target, deadline, waits=waits)
        attempt = Attempt(target, time.monotonic(), waited=waited, paced=tokens)
        call.attempts.append(attempt)
        try:
            return send(self.registry.member(target.provider), call, attempt, deadline, permit)
        except BaseException as error:
            attempt.ended = time.monotonic()
            attempt.error = error.failure if isinstance(error, InferMuxError) else None
            permit.end(error, neutral=deadline.by_client and deadline.expired)
            if isinstance(error, RequestError) and error.elsewhere:
                self.targets.give_back(call.attempts.pop())
            else:
                self.accounting.charge_failure(call, attempt, error)
            raise

    def _retry_at(
        self, call: Call, target: Target, error: ProviderError, deadline: Deadline
    ) -> float | None:
        """Return when to retry *target* (monotonic seconds), or None if not within the deadline."""
        if not error.retryable:
            return None
        if (wait := error.retry_after) is None:
            wait = self._rng.uniform(0, longest_backoff(call, target, error))
        return None if wait >= deadline.remaining() else time.monotonic() + wait

    def _send(
        self,
        provider: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        permit: TargetPermit,
    ) -> InferResponse:
        with ProviderGuard(provider.name):
            response = validated(provider.infer(call.sent(attempt), deadline))
        attempt.ended = time.monotonic()
        permit.end(None, attempt.seconds)
        return self.ids.client_ids(call, self.accounting.charge_response(call, attempt, response))

    def _send_streamed(
        self,
        provider: RegisteredProvider,
        call: Call,
        attempt: Attempt,
        deadline: Deadline,
        permit: TargetPermit,
    ) -> Stream:
        chunks = open_chunks(provider, call.sent(attempt), deadline, attempt)
        permit.started(attempt.seconds)
        chunks = self.ids.client_ids_stream(call, *chunks)
        if call.answer_key:
            chunks = watched(call, *chunks)
        parts = call, *chunks, permit, self.accounting, self.finish, self.answers
        return Stream(*parts) if self.hooks is None else cast(Stream, self.hooks.stream(*parts))

    # -- the record --

    def finish(self, call: Call, error: BaseException | None) -> None:
        """End the record of a call and report it; another time, do nothing."""
        if call.ended is not None:
            return
        call.ended = time.monotonic()
        if error is not None:
            if not isinstance(error, InferMuxError):
                kind = InferMuxError if isinstance(error, Exception) else ClientGone  # such as ^C
                error = kind("the call was interrupted")
            call.error = error.failure
            call.describe(error)
        self.admission.release(call)
        self.accounting.settle(call)
        self.targets.settle(call)
        for observer in self.observers:
            try:  # an observer must never break the call
                observer(call)
            except Exception:
                log.exception("an observer failed")

    def __enter__(self) -> Router:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the ledger and the providers; `with` does it at the end."""
        for each in (self.ledger, *[member.provider for member in self.registry]):
            getattr(each, "close", lambda: None)()
