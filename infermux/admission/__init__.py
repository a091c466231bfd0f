"""Admission control: decides which calls may start.

`Admission` limits the concurrency of this process (`ConcurrencyLimiter`) and each caller's requests
and tokens per minute (`rate_limiter`); `keys` identifies callers by their API keys.
"""

from __future__ import annotations

import math
import sys
import threading

from ..errors import Overloaded, RateLimited, RequestError, RequestTooLarge
from ..planning.call import Call
from ..types import Rates, Window

USER = "\x1e"  # parts the names of a caller and of its end user
_KEY = ("this key", "the key")
_USER = ("this end user", "an end user of the key")
FULL = "the service is at capacity; retry shortly"


class ConcurrencyLimiter:
    """Limits how many calls, open streams or bytes of bodies there are at a time."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()

    def acquire(self, slots: int = 1, *, spare: int = 0) -> bool:
        """Take slots and return True, or return False if too few are free; never wait.

        *spare* slots stay free for others.
        """
        with self._lock:
            if self._used + slots + spare > self.limit:
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
        return self._used


class Admission:
    """Admits calls within the limits of this process and the rates of their callers."""

    def __init__(
        self,
        *,
        calls: int | None = None,
        streams: int | None = None,
        bodies: int | None = None,
        rates: Rates | None = None,
        user_rates: Rates | None = None,
    ) -> None:
        self.bodies = ConcurrencyLimiter(bodies or sys.maxsize)  # bytes of unanswered requests
        self._calls = ConcurrencyLimiter(calls) if calls else None
        self._streams = ConcurrencyLimiter(streams or sys.maxsize)
        self.rates, self._user_rates = rates, user_rates

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
        if caller.rpm or caller.tpm or (call.user and (caller.user_rpm or caller.user_tpm)):
            self._count(call)

    def _count(self, call: Call) -> None:
        """Count a call in the rates of its caller, and of the end user; in all or in none.

        The end user's come first: who is over its own limit uses nothing of the others'.
        """
        caller, user = call.caller, call.user and call.caller.name + USER + call.user
        limits = [
            (self._user_rates if user else None, user, caller.user_rpm, caller.user_tpm, _USER),
            (self.rates, caller.name, caller.rpm, caller.tpm, _KEY),
        ]
        for rates, name, rpm, tpm, whose in limits:
            if rates is None or not (rpm or tpm):
                continue
            window, tokens = Window(rpm, tpm), call.input_size if tpm else 0
            call.windows += (window,)
            wait = rates.take(name, rpm=rpm, tpm=tpm, tokens=tokens, window=window)
            if wait is not None:
                for other, known, taken in call.counted:
                    other.give_back(known, taken, since=call.started)
                call.counted = ()
                raise _refusal(whose, wait, tokens)
            call.counted += ((rates, name, tokens),)

    def release(self, call: Call) -> None:
        """Free the slots of *call*, and correct its tokens to those that it really used."""
        while call.releases:
            call.releases.pop()()
        if call.counted:
            used = sum(call.tokens)
            is_told = used or call.usage is None or call.request.passed is None
            for (rates, name, tokens), window in zip(call.counted, call.windows, strict=True):
                if window.tpm is not None and is_told:  # else the estimate stands
                    rates.correct(name, used - tokens, since=call.started)
                    window.tokens = max(0, window.tokens + used - tokens)
            call.counted = ()


def _refusal(whose: tuple[str, str], wait: float, tokens: int) -> RequestError:
    who, any_such = whose
    if wait < math.inf:
        return RateLimited(f"{who} is over its rate limit", retry_after=wait)
    return RequestTooLarge(
        f"this request has about {tokens} tokens, more than {any_such} may use in a minute"
    )


def _acquire(limiter: ConcurrencyLimiter, call: Call, full: str) -> None:
    if not limiter.acquire():
        raise Overloaded(full)
    call.releases.append(limiter.release)
