"""The runtime state of targets: circuit breakers, concurrency limits and retry budgets."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..admission import ConcurrencyLimiter
from ..dialects import listed
from ..dialects.parameters import Unsaid
from ..errors import (
    ContentFiltered,
    NoHealthyProvider,
    Overloaded,
    ProviderContextTooLong,
    ProviderError,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    StreamIncomplete,
    Unavailable,
)
from ..planning import Plan, Snapshot, State, takes_turns
from ..planning.call import Attempt, Call
from ..planning.registry import Registry, flat
from ..pricing import Price, PriceTable, cost, shipped
from ..pricing.token_estimate import estimate_messages
from ..protocol import CHAT, InferRequest
from ..types import JSON, Deadline, Route, Target, Usage
from .circuit_breaker import CircuitBreaker, Permit
from .pacing import Pacer
from .target_queue import RetryBudget

MAX_TARGETS = 4096  # with a state: callers can name any number of models
COOL_SECONDS = 1.0  # after a rate limit without Retry-After
QUOTA_SECONDS = 60.0  # after an account ran out of credit
UNPRICED = "unpriced, and the key has a hard budget"
LONG_REQUEST = 8000  # characters, above which a request may exceed a model's context
MAX_DENSITY = 2  # tokens per character: no text has more
TYPICAL_OUTPUT = 500  # tokens of an unbounded answer, for comparing prices
# rejections by their names in [models.NAME] fallback_on
REJECTIONS: dict[str, type[ProviderError]] = {
    "context": ProviderContextTooLong,
    "content_filter": ContentFiltered,
    "rejected": ProviderRejected,
}


def _user(kind: str, part: JSON) -> list[JSON]:
    return [{"role": "user", "content": [{"type": kind, kind: part}]}]


_FILE = {"filename": "a.pdf", "file_data": "data:application/pdf;base64,"}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
_ABILITIES = {  # each with a request that takes it
    "tools": InferRequest(params={"tools": [{"type": "function", "function": {"name": "f"}}]}),
    "images": InferRequest(messages=_user("image_url", {"url": "data:image/png;base64,"})),
    "PDF": InferRequest(messages=_user("file", _FILE)),
    "structured output": InferRequest(params={"response_format": _FORMAT}),
}
_ALL_SAID = Unsaid()
_FAILURES = ProviderTimeout, ProviderUnavailable, StreamIncomplete


@dataclass(slots=True)
class TargetPermit:
    """The permission for one request to a target; its end is reported to the breaker."""

    _permit: Permit
    _limiter: ConcurrencyLimiter | None
    _retries: RetryBudget
    _ended: bool = False

    def started(self, seconds: float) -> None:
        self._permit.started(seconds)

    def end(
        self,
        error: BaseException | None,
        seconds: float | None = None,
        *,
        neutral: bool = False,
    ) -> None:
        """Record success (None) or *error*; only the provider's failures count against it.

        *seconds*: to the first content. *neutral*: the client's timeout ended it.
        """
        if self._ended:
            return
        self._ended = True
        if self._limiter is not None:
            self._limiter.release()
        if error is None:
            self._retries.earn()
            self._permit.succeeded(seconds)
        elif isinstance(error, ProviderRateLimited):
            self._permit.neutral()
            own = error.retry_after
            default = QUOTA_SECONDS if isinstance(error, QuotaExhausted) else COOL_SECONDS
            self._permit.breaker.cool_down(own or default, _why(error), stated=bool(own))
        elif not neutral and isinstance(error, _FAILURES):
            self._permit.failed(_why(error))
        else:
            self._permit.neutral()


def _why(error: ProviderError) -> str:
    """Return what an operator is told of a failure: "503", "connection refused"."""
    return str(error.upstream_status or error.cause)


class TargetPool:
    """The state of every target and provider in this process."""

    def __init__(
        self,
        registry: Registry,
        *,
        breaker: Callable[[], CircuitBreaker] = CircuitBreaker,
        breakers: Mapping[str, Callable[[], CircuitBreaker]] | None = None,
        pacers: Mapping[str, Pacer] | None = None,
        concurrency: Mapping[str, int] | None = None,
        overrides: Mapping[str, Mapping[str, Price]] | None = None,
        table: PriceTable | None = None,
    ) -> None:
        self.registry = registry
        self.overrides = overrides or {}  # configured prices, used before the table
        self.prices = table or shipped()
        self.forced_open: set[Target | str] = set()  # targets, and whole providers by name
        self.pacers = pacers or {}  # of providers with rates of their own
        self._new_breaker = breaker
        self._own_breakers = breakers or {}  # of providers with settings of their own
        self._breakers: dict[Target, CircuitBreaker] = {}
        self._limiters = {
            name: ConcurrencyLimiter(limit) for name, limit in (concurrency or {}).items()
        }
        self._retries: dict[str, RetryBudget] = {}
        self._lock = threading.Lock()

    def resize(self, concurrency: Mapping[str, int]) -> None:
        for name, limit in concurrency.items():
            if name in self._limiters:
                self._limiters[name].limit = limit

    def breaker(self, target: Target) -> CircuitBreaker:
        """Return the breaker of *target*; if there are too many, the oldest idle one is evicted."""
        found = self._breakers.get(target)
        if found is None:
            with self._lock:
                if len(self._breakers) >= MAX_TARGETS:
                    self._evict()
                made = self._own_breakers.get(target.provider, self._new_breaker)()
                found = self._breakers.setdefault(target, made)
                if target in self.forced_open or target.provider in self.forced_open:
                    found.open()
        return found

    def settle(self, call: Call) -> None:
        """Correct the tokens that were counted in providers' rates to those that were used."""
        for attempt in call.attempts if self.pacers else ():
            pacer, usage = self.pacers.get(attempt.target.provider), attempt.usage
            if pacer is not None and attempt.paced is not None and usage is not None:
                used = (usage.input_tokens or 0) + (usage.output_tokens or 0)
                if used or call.request.passed is None:  # else the estimate stands
                    pacer.correct(attempt.paced, used, since=attempt.started)

    def resting(self, target: Target) -> float:
        """Return the seconds until a limit of the vendor is reset that is used up, or 0."""
        found = self._of_provider(target, "resting")
        return max(0.0, found.get(target.model, 0.0) - time.monotonic()) if found else 0.0

    def _evict(self) -> None:
        """Forget the oldest idle target that is not configured."""
        kept = set(self.registry.targets())
        if others := [each for each in self._breakers if each not in kept]:
            del self._breakers[min(others, key=lambda each: self._breakers[each].in_flight > 0)]

    def followers(
        self, failed: Target, error: ProviderError, route: Route
    ) -> Callable[[Target], bool]:
        """Return a function: may a target follow *failed*, which rejected the request?"""
        kind = next((name for name, kind in REJECTIONS.items() if isinstance(error, kind)), "")
        if kind not in route.fallback_on:
            return lambda target: False
        return lambda target: kind != "context" or self._takes_more(target, failed)

    def _takes_more(self, target: Target, than: Target) -> bool:
        """Whether *target* is another model and may take more input than *than*."""
        if target.model == than.model:
            return False
        limits = [price.max_input if price else None for price in map(self.price, (target, than))]
        return limits[0] is None or limits[1] is None or limits[0] > limits[1]

    def breakers(self) -> dict[Target, CircuitBreaker]:
        return dict(self._breakers)

    def retry_budget(self, provider: str) -> RetryBudget:
        return self._retries.get(provider) or self._retries.setdefault(provider, RetryBudget())

    def admit(
        self, call: Call, target: Target, deadline: Deadline, *, waits: bool
    ) -> tuple[TargetPermit, int | None]:
        """Return the permission to call *target*, and the tokens counted in its provider's rate.

        Raise Paced, Overloaded or NoHealthyProvider. See `Pacer.admit`.
        """
        pacer, since = self.pacers.get(target.provider), time.monotonic()
        tokens = None if pacer is None else pacer.admit(call, deadline, waits=waits)
        try:
            return self.acquire(target, force=call.must_try(target)), tokens
        except Unavailable:
            if pacer is not None and tokens is not None:
                pacer.give_back(tokens, since=since)
            raise

    def give_back(self, attempt: Attempt) -> None:
        """Take back what was counted in a provider's rate for a request that was not sent."""
        if attempt.paced is not None and (pacer := self.pacers.get(attempt.target.provider)):
            pacer.give_back(attempt.paced, since=attempt.started)

    def acquire(self, target: Target, *, force: bool) -> TargetPermit:
        """Return the permission to call *target* now; raise Overloaded or NoHealthyProvider."""
        limiter, breaker = self._limiters.get(target.provider), self.breaker(target)
        if limiter is not None and not limiter.acquire():
            raise Overloaded(f"provider {target.provider!r} is at its concurrency limit")
        permit = breaker.admit(force=force)
        if permit is None:
            if limiter is not None:
                limiter.release()
            raise NoHealthyProvider(
                "no provider for this model can answer now",
                retry_after=breaker.snapshot().retry_in,
            )
        return TargetPermit(permit, limiter, self.retry_budget(target.provider))

    # -- for planning --

    def snapshot(
        self,
        route: Route,
        request: InferRequest,
        cursor: int,
        priced: bool = False,
        size: int | None = None,
        strict: bool = True,
        session: str = "",
    ) -> Snapshot:
        """Return the present state of the route's targets, for planning.

        *cursor* counts the calls of the route so far. *priced*: leave out unpriced targets. *size*
        is the number of input tokens, if known. *strict*: prefer targets that can express all
        preferences. *session* is the digest of the call's session, if a strategy reads it.
        """
        targets, ordered = tuple(flat(route)), takes_turns(route)
        unable, partial = self._unsaid(targets, request) if len(targets) > 1 else ({}, ())
        refused, unfit = {}, unable | self._unfit(targets, request, size)
        for target in targets:
            breaker = self._breakers.get(target)
            if breaker is None or not (reason := breaker.refusal()):
                continue
            if breaker.forced_open:  # by an operator; a plan must not override that
                unfit.setdefault(target, reason)
            else:
                wait = breaker.snapshot().retry_in
                refused[target] = (reason, math.inf if wait is None else wait)
        if priced:  # a hard budget needs a known price
            unfit |= {target: UNPRICED for target in targets if self.price(target) is None}
        if not strict:
            partial = ()
        if len(targets) > 1:  # the only one is asked all the same: the vendor decides
            partial += tuple(target for target in targets if self.resting(target))
        state = self._state(targets, request, cursor, size, session) if ordered else State()
        return Snapshot(state, unfit, refused, partial)

    def reserve(self, plan: Plan) -> list[Target]:
        """Return the targets that a plan leaves out for their circuits, by when these close."""
        known = plan.snapshot
        shut = [each for each in plan.dropped if each not in known.unfit]
        shut.sort(key=lambda each: known.refused[each][1])
        return [each for each in shut if not self.breaker(each).cooling()]

    def _state(
        self,
        targets: Iterable[Target],
        request: InferRequest,
        cursor: int,
        size: int | None,
        session: str,
    ) -> State:
        known = {each: found for each in targets if (found := self._breakers.get(each))}
        return State(
            cursor=cursor,
            latency={target: breaker.latency for target, breaker in known.items()},
            in_flight={target: breaker.in_flight for target, breaker in known.items()},
            cost=self.costs(targets, expected_usage(request, size)),
            session=session,
        )

    def costs(self, targets: Iterable[Target], usage: Usage) -> dict[Target, int | None]:
        """Return the cost of *usage* at each target in pico-USD, None where unpriced."""
        return {target: cost(usage, self.price(target)) for target in targets}

    def price(self, target: Target) -> Price | None:
        """Return the price of *target*: the configured one, else the table's, else None."""
        own = self.overrides.get(target.provider, {}).get(target.model)
        vendor = self.registry.member(target.provider).vendor
        if found := own or self.prices.find(vendor, target.model):
            return found
        stated = self._of_provider(target, "price")
        return stated if isinstance(stated, Price) else None  # it may mean something else

    def _of_provider(self, target: Target, name: str) -> Any:
        return getattr(self.registry.member(target.provider).provider, name, None)

    def abilities(self, target: Target) -> list[str]:
        """Return what a target can do beside text, as far as its format and settings tell.

        A model whose price is for input alone makes embeddings.
        """
        price, ask = self.price(target), self._of_provider(target, "unsaid")
        able = {} if ask is None else _ABILITIES  # None: not a vendor's format
        found = [name for name, each in able.items() if not ask(each, target.model).meaning]
        if price is not None and price.rates.output is None:
            found = ["embeddings"]
        lacks = self._lacks(target)
        return [name for name in found if name not in lacks]

    def _unsaid(
        self, targets: Iterable[Target], request: InferRequest
    ) -> tuple[dict[Target, str], tuple[Target, ...]]:
        """Return the targets that cannot express the request, with the reason.

        Then those that would omit a preference. Each part is empty if no other target is better.
        """
        said = {}
        for target in targets:
            ask = self._of_provider(target, "unsaid")
            said[target] = ask(request, target.model) if ask is not None else _ALL_SAID
        unable = {target: found.meaning for target, found in said.items() if found.meaning}
        if len(unable) == len(said):
            return {}, ()
        partial = [target for target, found in said.items() if found.preference]
        return unable, tuple(partial) if len(partial) + len(unable) < len(said) else ()

    def _unfit(
        self, targets: Iterable[Target], request: InferRequest, size: int | None
    ) -> dict[Target, str]:
        """Return the targets that cannot serve the request, each with the reason."""
        lacking = {target: self._lacks(target) for target in targets}
        needs = _needs(request) if any(lacking.values()) else set()
        native = request.native
        is_long = native is not None and len(native.body.text) > LONG_REQUEST
        is_long = is_long or bool(size) or _length(request) > LONG_REQUEST
        limits = {
            target: price.max_input
            for target in (targets if is_long else ())
            if (price := self.price(target)) and price.max_input is not None
        }
        if size is None and limits and _length(request) * MAX_DENSITY > min(limits.values()):
            size = estimate_messages(request.messages)
        unfit = {}
        for target in targets if needs or limits else ():
            lacks, limit = lacking[target], limits.get(target)
            if needs & lacks:
                unfit[target] = f"cannot do {', '.join(sorted(needs & lacks))}"
            elif limit is not None and size is not None and size > limit:
                unfit[target] = f"takes {limit} tokens, and the request has about {size}"
        return unfit

    def _lacks(self, target: Target) -> set[str]:
        found = self._of_provider(target, "unsupported")
        return set(found.get(target.model, ())) if isinstance(found, Mapping) else set()


def expected_usage(request: InferRequest, size: int | None = None) -> Usage:
    """Return the tokens that a call will probably use, for comparing prices."""
    limit = request.params.get("max_completion_tokens", request.params.get("max_tokens"))
    tokens_in = estimate_messages(request.messages) if size is None else size
    return Usage(tokens_in, limit if type(limit) is int and limit > 0 else TYPICAL_OUTPUT)


def _needs(request: InferRequest) -> set[str]:
    needs = set() if request.op == CHAT else {request.op}
    if request.params.get("tools"):
        needs.add("tools")
    if request.params.get("response_format"):
        needs.add("structured output")
    for message in request.messages:
        parts = listed(message.get("content"))
        needs |= {"images" for part in parts if part.get("type") == "image_url"}
    return needs


def _length(request: InferRequest) -> int:
    """Return about how many characters the messages have; an image or a file counts as 1,000."""
    total = 0
    for message in request.messages:
        content = message.get("content")
        if type(content) is str:
            total += len(content)
        elif isinstance(content, list):
            total += sum([_characters(part, "text") for part in content])
        if "tool_calls" in message:
            calls = message["tool_calls"] or ()
            total += sum([_characters(call.get("function"), "arguments") for call in calls])
    return total


def _characters(holder: object, name: str) -> int:
    value = holder.get(name) if isinstance(holder, dict) else None
    return len(value) if isinstance(value, str) else 1000
