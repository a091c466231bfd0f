"""What a router knows of its targets: their health, how many calls each provider may have, what
retries are left.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping

from .. import pricing as prices
from ..admission import ConcurrencyLimiter
from ..errors import (
    NoHealthyProvider,
    Overloaded,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    StreamIncomplete,
)
from ..planning import Snapshot, takes_turns
from ..planning.registry import Registry, flat
from ..planning.strategies import State
from ..pricing import token_estimate as tokens
from ..protocol import CHAT, InferRequest
from ..providers.base import RegisteredProvider
from ..types import Route, Target, Usage
from .circuit_breaker import CircuitBreaker, Permit

MOST = 4096  # targets that are watched: a caller may name models without end
RETRIES = 10.0  # retries that a provider's failures may cost before its successes earn more
EARNED = 0.2  # of a retry, by a success (Google SRE: retries are to be a tenth of all requests)
COOL_SECONDS = 1.0  # for a rate limit that names no time
QUOTA_SECONDS = 60.0  # for an account out of credit
LONG = 8000  # characters from which on a request may be too long for some model
_CLEAR = Snapshot()  # the usual case
GUESSED_OUTPUT = 500  # tokens of an answer whose length is not bounded, for comparing prices


class TargetPermit:
    """Leave to send one request to a target; it ends once, and tells the target's health how it
    went.
    """

    __slots__ = ("_ended", "_health", "_permit", "_retries", "_slots")

    def __init__(
        self,
        health: CircuitBreaker,
        permit: Permit,
        slots: ConcurrencyLimiter | None,
        retries: Retries,
    ) -> None:
        self._health = health
        self._permit = permit
        self._slots = slots
        self._retries = retries
        self._ended = False

    def started(self, seconds: float) -> None:
        """Note that the first content has come."""
        self._permit.started(seconds)

    def end(self, error: BaseException | None, seconds: float | None = None) -> None:
        """End well, or with what went wrong: only the provider's own failures count against it."""
        if self._ended:
            return
        self._ended = True
        if self._slots is not None:
            self._slots.release()
        if error is None:
            self._retries.earn()
            self._permit.succeeded(seconds)
        elif isinstance(error, ProviderRateLimited):
            self._permit.neutral()
            self._health.cool_down(
                error.retry_after
                or (QUOTA_SECONDS if isinstance(error, QuotaExhausted) else COOL_SECONDS)
            )
        elif isinstance(error, ProviderTimeout | ProviderUnavailable | StreamIncomplete):
            self._permit.failed()
        else:
            self._permit.neutral()


class Retries:
    """The retries that are left at one provider: failures spend them, successes earn them."""

    def __init__(self) -> None:
        self._left = RETRIES
        self._lock = threading.Lock()

    def spend(self) -> bool:
        """Take one if there is one."""
        with self._lock:
            if self._left < 1:
                return False
            self._left -= 1
            return True

    def earn(self) -> None:
        """Note a success."""
        if self._left < RETRIES:
            with self._lock:
                self._left = min(RETRIES, self._left + EARNED)


class TargetPool:
    """The state of every target and provider in this process."""

    def __init__(
        self,
        registry: Registry,
        *,
        watch: Callable[[], CircuitBreaker] = CircuitBreaker,
        concurrency: Mapping[str, int] | None = None,
        overrides: Mapping[str, Mapping[str, prices.Price]] | None = None,
    ) -> None:
        self.registry = registry
        self.overrides = overrides or {}
        self.shut: set[Target | str] = (
            set()
        )  # targets, and whole providers, that are forced open
        self._watch = watch
        self._health: dict[Target, CircuitBreaker] = {}
        self._slots = {
            name: ConcurrencyLimiter(limit) for name, limit in (concurrency or {}).items()
        }
        self._retries: dict[str, Retries] = {}
        self._lock = threading.Lock()

    def resize(self, concurrency: Mapping[str, int]) -> None:
        """Change how many calls providers may have."""
        for name, limit in concurrency.items():
            if name in self._slots:
                self._slots[name].limit = limit

    def health(self, target: Target) -> CircuitBreaker:
        """Return the watch over *target*; the oldest idle one gives way where there are too many."""
        found = self._health.get(target)
        if found is None:
            with self._lock:
                if len(self._health) >= MOST:
                    idle = (each for each, health in self._health.items() if not health.in_flight)
                    del self._health[next(idle, next(iter(self._health)))]
                found = self._health.setdefault(target, self._watch())
                if target in self.shut or target.provider in self.shut:
                    found.open()
        return found

    def watched(self) -> dict[Target, CircuitBreaker]:
        """Return every target that has been called."""
        return dict(self._health)

    def retries(self, provider: str) -> Retries:
        """Return the retries of a provider."""
        return self._retries.get(provider) or self._retries.setdefault(provider, Retries())

    def lease(self, target: Target, *, force: bool) -> TargetPermit:
        """Return leave to call *target* now; raise Overloaded or NoHealthyProvider."""
        slots, health = self._slots.get(target.provider), self.health(target)
        if slots is not None and not slots.acquire():
            raise Overloaded(f"provider {target.provider!r} has as many calls as it may")
        permit = health.admit(force=force)
        if permit is None:
            if slots is not None:
                slots.release()
            raise NoHealthyProvider(
                "no provider for this model is able to answer now",
                retry_after=health.snapshot().retry_in,
            )
        return TargetPermit(health, permit, slots, self.retries(target.provider))

    # -- for planning ------------------------------------------------------------------------------

    def snapshot(
        self,
        route: Route,
        request: InferRequest,
        cursor: int,
        *,
        priced: bool = False,
        size: int | None = None,
    ) -> Snapshot:
        """Return what planning needs to know now; what only some strategies ask for is gathered for
        those alone.

        *size* is how many input tokens the request has, where that is known.
        """
        targets, turns = tuple(flat(route)), takes_turns(route)
        shut = {}
        for target in targets:
            health = self._health.get(target)
            reason = health.refusal() if health is not None else None
            if health is not None and reason:
                wait = health.snapshot().retry_in
                shut[target] = (reason, math.inf if wait is None else wait)
        unfit = self._unfit(targets, request, size)
        if priced:  # a hard budget cannot be kept where the price is not known
            unfit |= {
                target: "its price is not known, and the key has a budget"
                for target in targets
                if self.price(target) is None
            }
        if not (turns or unfit or shut):
            return _CLEAR
        return Snapshot(
            self._state(targets, request, cursor, size) if turns else State(), unfit, shut
        )

    def _state(
        self, targets: Iterable[Target], request: InferRequest, cursor: int, size: int | None
    ) -> State:
        known = {
            target: health for target in targets if (health := self._health.get(target)) is not None
        }
        return State(
            cursor=cursor,
            latency={target: health.latency for target, health in known.items()},
            in_flight={target: health.in_flight for target, health in known.items()},
            cost=self.costs(targets, expected(request, size)),
        )

    def costs(self, targets: Iterable[Target], usage: Usage) -> dict[Target, int | None]:
        """Return what *usage* would cost at each target in pico-USD; None where the price is not
        known.
        """
        return {target: prices.cost(usage, self.price(target)) for target in targets}

    def price(self, target: Target) -> prices.Price | None:
        """Return what *target* costs: the configuration's own price, else the table's."""
        own = self.overrides.get(target.provider, {}).get(target.model)
        return own or prices.find(self.registry.member(target.provider).vendor, target.model)

    def _unfit(
        self, targets: Iterable[Target], request: InferRequest, given: int | None
    ) -> dict[Target, str]:
        """Return the targets that cannot serve the request, each with the reason."""
        needs = _needs(request)
        size = (
            given
            if given is not None
            else tokens.estimate_messages(request.messages)
            if _length(request) > LONG
            else 0
        )
        unfit = {}
        for target in targets:
            missing = (
                needs & _lacks(self.registry.member(target.provider), target.model)
                if needs
                else None
            )
            most = (price.max_input if (price := self.price(target)) else None) if size else None
            if missing:
                unfit[target] = f"cannot do {', '.join(sorted(missing))}"
            elif most is not None and size > most:
                unfit[target] = f"takes {most} tokens, and the request has about {size}"
        return unfit


def expected(request: InferRequest, size: int | None = None) -> Usage:
    """Return about how many tokens a call will use, for comparing prices; *size* as in
    `TargetPool.snapshot`.
    """
    most = request.params.get("max_completion_tokens", request.params.get("max_tokens"))
    return Usage(
        tokens.estimate_messages(request.messages) if size is None else size,
        most if type(most) is int and most > 0 else GUESSED_OUTPUT,
    )


def _needs(request: InferRequest) -> set[str]:
    """Return the abilities that a request asks for."""
    needs = set() if request.op == CHAT else {request.op}
    if request.params.get("tools"):
        needs.add("tools")
    if request.params.get("response_format"):
        needs.add("structured output")
    for message in request.messages:
        if isinstance(content := message.get("content"), list):
            needs |= {"images" for part in content if part.get("type") == "image_url"}
    return needs


def _lacks(member: RegisteredProvider, model: str) -> set[str]:
    lacks = getattr(member.provider, "lacks", None)
    return set(lacks.get(model, ())) if isinstance(lacks, Mapping) else set()


def _length(request: InferRequest) -> int:
    return sum(
        len(content) if isinstance(content := message.get("content"), str) else len(str(content))
        for message in request.messages
    )
