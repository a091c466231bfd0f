"""Keeps the requests to a provider below the rates that the configuration sets for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

from ..errors import Paced, having
from ..planning.call import Call
from ..types import Deadline, Rates

_POLL = 0.25  # seconds between two checks, as other processes use the same rates


@dataclass(slots=True, eq=False)
class _Waiting:
    """A call that waits for its turn."""

    tokens: int


class Pacer:
    """The rates of one provider: counted over all processes of the host, each with its queue.

    Calls wait in order, and only if their turn will come within *wait* seconds.
    """

    def __init__(self, provider: str, rates: Rates, *, rpm: int, tpm: int, wait: float) -> None:
        self.provider, self.wait = provider, wait
        self._name = f"\0provider {provider}"  # no key has such a name
        self._rates, self._rpm, self._tpm = rates, rpm or None, tpm or None
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()

    def admit(self, call: Call, deadline: Deadline, *, waits: bool) -> int:
        """Count a request of *call*, and return the tokens that are counted for it.

        If it *waits*, wait for its turn; else, or if that takes too long, raise Paced.
        """
        own = _Waiting(call.input_size if self._tpm is not None else 0)
        if self._tpm is not None and own.tokens > self._tpm:  # a retry cannot help
            place, code = f"[providers.{self.provider}].tpm", "request_too_large"
            what = f"the request has about {own.tokens} tokens, more than {place}"
            raise having(Paced(what), status=413, code=code, type=code, retry_after=None)
        with self._changed:
            if not self._queue and self._take(own.tokens) is None:
                return own.tokens
            seconds = self._turn(own)
            if not waits or seconds > min(self.wait, deadline.remaining()):
                raise self._refused(seconds)
            self._queue.append(own)
        try:
            self._wait(own, deadline)
        finally:
            with self._changed:
                self._queue.remove(own)
                self._changed.notify_all()
        return own.tokens

    def _wait(self, own: _Waiting, deadline: Deadline) -> None:
        """Wait until *own* is the first one, and may be sent."""
        end = time.monotonic() + self.wait
        while True:
            with self._changed:
                is_first = self._queue[0] is own
                if (seconds := self._take(own.tokens) if is_first else 0.0) is None:
                    return
                left = end - time.monotonic()
                if left <= 0 or deadline.expired:
                    raise self._refused(self._turn(own))
                if not is_first:
                    self._changed.wait(min(_POLL, left, deadline.remaining()))
            for part in deadline.slices(min(seconds, _POLL, left)):
                time.sleep(part)
            if deadline.on_wait is not None:
                deadline.on_wait()

    def _take(self, tokens: int) -> float | None:
        return self._rates.take(self._name, rpm=self._rpm, tpm=self._tpm, tokens=tokens)

    def turn(self, tokens: int) -> float:
        """Return the seconds until a request of so many tokens would be sent."""
        with self._changed:
            return self._turn(_Waiting(tokens if self._tpm is not None else 0))

    def _turn(self, own: _Waiting) -> float:
        """Return the seconds until all that wait before *own*, and *own*, have had their turn."""
        before = [each for each in self._queue if each is not own]
        tokens = own.tokens + sum(each.tokens for each in before)
        return self._rates.wait(
            self._name, rpm=self._rpm, tpm=self._tpm, requests=len(before) + 1, tokens=tokens
        )

    def _refused(self, seconds: float) -> Paced:
        what = f"the rate that [providers.{self.provider}] allows to the provider is used up"
        return Paced(what, retry_after=max(0.1, min(seconds, 60.0)))

    def give_back(self, tokens: int, *, since: float) -> None:
        """Take back a request of *tokens* that was counted since *since*, and was not sent."""
        self._rates.give_back(self._name, tokens, since=since)
        with self._changed:
            self._changed.notify_all()

    def correct(self, tokens: int, used: int, *, since: float) -> None:
        """Replace the *tokens* that were counted at *since* by those that were *used*."""
        if self._tpm is not None and used != tokens:
            self._rates.correct(self._name, used - tokens, since=since)
