"""Who is let in: room in this process, and each caller's own rate."""

from __future__ import annotations

import math
import sys

from ..errors import Overloaded, RateLimited, RequestTooLarge
from ..planning.call import Call
from .rate_limiter import ConcurrencyLimiter, RateLimiter

FULL = "this service has as many calls as it can take; try again in a moment"


class Admission:
    """Lets calls in while there is room, and counts what callers use per minute. Without limits it
    is open.
    """

    def __init__(
        self,
        *,
        calls: int | None = None,
        streams: int | None = None,
        rates: RateLimiter | None = None,
    ) -> None:
        self._calls = ConcurrencyLimiter(calls) if calls else None
        self._streams = ConcurrencyLimiter(streams or sys.maxsize)
        self._rates = rates

    def resize(self, *, calls: int, streams: int) -> None:
        """Change how much room there is, if it was bounded at all."""
        if self._calls is not None:
            self._calls.limit, self._streams.limit = calls, streams

    @property
    def streams(self) -> int:
        """Streams that are open, or being opened."""
        return self._streams.used

    @property
    def full(self) -> bool:
        """Whether every call would be refused now."""
        return self._calls is not None and self._calls.used >= self._calls.limit

    def enter(self, call: Call, *, streamed: bool) -> None:
        """Let *call* in, or raise Overloaded or RateLimited; `leave` gives back what was taken."""
        if self._calls is not None:
            if not self._calls.take():
                raise Overloaded(FULL)
            call.releases.append(self._calls.give)
        if streamed:
            if not self._streams.take():
                raise Overloaded(
                    "this service has as many streams as it can take; try again in a moment"
                )
            call.releases.append(self._streams.give)
        caller = call.caller
        if self._rates is not None and (caller.rpm or caller.tpm):
            estimate = call.input_size if caller.tpm else 0
            wait = self._rates.take(caller.name, rpm=caller.rpm, tpm=caller.tpm, tokens=estimate)
            if wait == math.inf:
                raise RequestTooLarge(
                    f"this call alone has about {estimate} tokens, more than the key may use in a minute"
                )
            if wait is not None:
                raise RateLimited(
                    "this key is over its rate per minute; try again later", retry_after=wait
                )
            call.estimate = estimate if caller.tpm else None

    def leave(self, call: Call) -> None:
        """Give back what the call has taken, and count the tokens that it really used."""
        while call.releases:
            call.releases.pop()()
        if self._rates is not None and call.estimate is not None:
            used = sum(call.tokens)
            self._rates.correct(call.caller.name, used - call.estimate, since=call.started)
