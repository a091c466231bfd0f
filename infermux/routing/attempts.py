"""The attempt loop: one for answers and for streams, which differ only in what counts as a success.

Failing over is "next in the queue", retrying is "append behind the others, with a wait". Attempts
and deadline are totals over everything, waits included.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ..errors import (
    BudgetExceeded,
    InferMuxError,
    NoHealthyProvider,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    Unavailable,
    UnsupportedParameter,
)
from ..planning.call import Attempt, Call
from ..providers.base import RegisteredProvider
from ..types import Deadline, Target
from .starts import begun
from .targets import TargetPermit, TargetPool

BACKOFF = (
    0.05  # seconds: the first wait is drawn from up to so much, each further one from twice that
)
THROTTLED = 1.0  # the same after a rate limit that names no time
LONGEST = 8.0
SHARE = 0.5  # of the time that is left, for an attempt while another target waits behind it

Answer = TypeVar("Answer")
Ask = Callable[[RegisteredProvider, Call, Attempt, Deadline, TargetPermit], Answer]
Sleep = Callable[[float], None]
Before = Callable[[Call, Target], None]


class Attempts:
    """How a call goes through the targets of its plan."""

    def __init__(
        self,
        targets: TargetPool,
        *,
        most: int,
        before: Before | None = None,
        sleep: Sleep = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self.targets = targets
        self.most = most  # upstream requests per call
        # what must be so before a target is asked: it raises what keeps the call from it
        self._before = before
        self._sleep = sleep
        self._rng = rng or random.Random()

    def first_success(self, call: Call, deadline: Deadline, ask: Ask[Answer]) -> Answer:
        """Return what the first target to succeed gave; raise the last error if none does."""
        assert call.plan is not None
        queue: deque[tuple[Target, float]] = deque([(target, 0.0) for target in call.plan.targets])
        last: InferMuxError | None = None
        while queue and len(call.attempts) < self.most:
            target, not_before = queue.popleft()
            waited = max(0.0, not_before - time.monotonic())
            if waited:
                self._sleep(min(waited, deadline.remaining()))
            if deadline.expired:
                raise last or ProviderTimeout("no provider answered in time")
            try:
                return self._try(call, target, waited, _share(deadline, queue), ask)
            except UnsupportedParameter as error:  # nothing was sent: another target may be able to
                last = last or error
            except (Unavailable, BudgetExceeded) as error:
                last = last or error
            except ProviderError as error:
                last = error
                if not error.failover:
                    raise
                again = self._again(call, target, error, deadline)
                if again is not None:
                    queue.append((target, again))
        raise last or NoHealthyProvider(
            "no provider for this model is able to answer now", retry_after=call.plan.retry_in
        )

    def _try(
        self, call: Call, target: Target, waited: float, deadline: Deadline, ask: Ask[Answer]
    ) -> Answer:
        """Send one request; note how it went, and tell the target's health."""
        tried = any(attempt.target == target for attempt in call.attempts)
        if self._before is not None:
            self._before(call, target)
        lease = self.targets.lease(
            target, force=tried or (call.plan is not None and call.plan.forced)
        )
        attempt = Attempt(target, time.monotonic(), waited=waited)
        call.attempts.append(attempt)
        begun()  # from here on it waits
        try:
            return ask(
                self.targets.registry.member(target.provider), call, attempt, deadline, lease
            )
        except BaseException as error:
            attempt.ended = time.monotonic()
            attempt.error = error if isinstance(error, InferMuxError) else None
            lease.end(error)
            if isinstance(error, UnsupportedParameter):
                call.attempts.pop()
            raise

    def _again(
        self, call: Call, target: Target, error: ProviderError, deadline: Deadline
    ) -> float | None:
        """Return when *target* may be tried again (monotonic seconds), or None if it may not, or
        not within the call's time.
        """
        if not error.retryable or len(call.attempts) >= self.most:
            return None
        times = sum(attempt.target == target for attempt in call.attempts)
        base = THROTTLED if isinstance(error, ProviderRateLimited) else BACKOFF
        wait = error.retry_after
        if wait is None:
            wait = self._rng.uniform(0, min(LONGEST, base * 2 ** (times - 1)))
        if wait >= deadline.remaining() or not self.targets.retries(target.provider).spend():
            return None
        return time.monotonic() + wait


def _share(deadline: Deadline, queue: deque[tuple[Target, float]]) -> Deadline:
    """Return the time for one attempt: a target that hangs must leave enough for the one behind it."""
    return Deadline(deadline.remaining() * SHARE) if queue else deadline
