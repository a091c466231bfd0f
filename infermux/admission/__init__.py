"""Admission control: decides which calls may start.

`Admission` limits the concurrency of this process (`ConcurrencyLimiter`) and each caller's requests
and tokens per minute (`rate_limiter`); `keys` identifies callers by their API keys.
"""

from __future__ import annotations

import math
import sys
import threading

from ..errors import Overloaded, RateLimited, RequestTooLarge
from ..planning.call import Call, Window
from .rate_limiter import RateLimiter

FULL = "the service is at capacity; retry shortly"


class ConcurrencyLimiter:
    """Limits how many calls, open streams or bytes of bodies there are at a time."""

    __slots__ = ("_lock", "_used", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def acquire(self, slots: int = 1) -> bool:
        """Take slots and return True, or return False if too few are free; never wait."""
        with self._lock:
            if self._used + slots > self.limit:
                return False
            self._used += slots
            return True

    def release(self, slots: int = 1) -> None:
        """Free slots; raise ValueError if fewer are taken, as the limit would be wrong."""
        with self._lock:
            if self._used < slots:
                raise ValueError("a slot was released twice")
            self._used -= slots

    @property
    def used(self) -> int:
        """The number of slots that are taken."""
        return self._used


class Admission:
    """Admits calls within the limits of this process and the rates of their callers."""

    def __init__(
        self,
        *,
        calls: int | None = None,
        streams: int | None = None,
        bodies: int | None = None,
        rates: RateLimiter | None = None,
    ) -> None:
        self.bodies = ConcurrencyLimiter(bodies or sys.maxsize)  # bytes of unanswered requests
        self._calls = ConcurrencyLimiter(calls) if calls else None
        self._streams = ConcurrencyLimiter(streams or sys.maxsize)
        self._rates = rates

    def resize(self, *, calls: int, streams: int, bodies: int) -> None:
        """Change the limits of this process, if it has any."""
        if self._calls is not None:
            self._calls.limit, self._streams.limit, self.bodies.limit = calls, streams, bodies

    @property
    def streams(self) -> int:
        """The number of streams that are open or being opened."""
        return self._streams.used

    @property
    def full(self) -> bool:
        """Whether every call would be refused now."""
        return self._calls is not None and self._calls.used >= self._calls.limit

    def admit(self, call: Call, *, streamed: bool) -> None:
        """Admit *call* until `release`; raise Overloaded, RateLimited or RequestTooLarge."""
        if self._calls is not None:
            _acquire(self._calls, call, FULL)
        if streamed:
            _acquire(self._streams, call, "the service is at its limit of streams; retry shortly")
        caller = call.caller
        if self._rates is None or not (caller.rpm or caller.tpm):
            return
        estimate = call.input_size if caller.tpm else 0
        window = Window(caller.rpm, caller.tpm)
        call.windows = (window,)
        wait = self._rates.take(
            caller.name, rpm=caller.rpm, tpm=caller.tpm, tokens=estimate, window=window
        )
        if wait == math.inf:
            raise RequestTooLarge(
                f"this request has about {estimate} tokens, more than the key may use in a minute"
            )
        if wait is not None:
            raise RateLimited("this key is over its rate limit", retry_after=wait)
        call.estimate = estimate if caller.tpm else None

    def release(self, call: Call) -> None:
        """Free the slots of *call*, and correct its tokens to those that it really used."""
        while call.releases:
            call.releases.pop()()
        if self._rates is not None and call.estimate is not None:
            more = sum(call.tokens) - call.estimate
            self._rates.correct(call.caller.name, more, since=call.started)
            for window in call.windows:
                window.tokens = max(0, window.tokens + more)


def _acquire(limiter: ConcurrencyLimiter, call: Call, full: str) -> None:
    if not limiter.acquire():
        raise Overloaded(full)
    call.releases.append(limiter.release)
