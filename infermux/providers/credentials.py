"""Which of a provider's API keys a request gets: spread over those that the vendor accepts.

A key that the vendor refuses, whose account is out of credit or whose rate limit is exhausted
rests: it is not used for a while, and another key serves the refused request. If all rest, the one
that rests least is used: the vendor decides.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from ..config.credentials import SecretPool
from ..config.schema import NoSecret, Secret
from ..errors import ProviderAuthError, ProviderError, ProviderRateLimited, QuotaExhausted
from ..types import Deadline, LogThrottle
from .transport import Answer

REFUSED_SECONDS = 60.0  # that a refused key rests, or one whose account is out of credit
LIMITED_SECONDS = 1.0  # the same after a rate limit without Retry-After
MAX_REST = 3600.0
MAX_VALUES = 16  # of each key that changes: as many are redacted
Auth = Callable[[str], dict[str, str]]  # returns the headers that carry a key
log = logging.getLogger("infermux")


class _Key:
    """A key, and the time until which it rests: it is not used."""

    def __init__(self, secret: Secret) -> None:
        self.secret = secret
        self.until = -math.inf
        self.log = LogThrottle()

    def value(self, deadline: Deadline) -> str:
        """Return the key itself; raise ProviderAuthError if it cannot be had."""
        current = getattr(self.secret, "current", None)
        if current is None:
            return self.secret.reveal()
        try:
            found: str = current(deadline.remaining())
            return found
        except NoSecret as error:
            failed = ProviderAuthError("this service has no API key for the provider now")
            failed.hint, failed.sent = str(error), False
            raise failed from None

    def renew(self) -> bool:
        """Look for another value of the key; return whether there is one."""
        renew = getattr(self.secret, "renew", None)
        return renew is not None and bool(renew())


class Credentials:
    """The keys of one provider in this process; *learned* is told each value that is new."""

    def __init__(
        self, name: str, secret: Secret, auth: Auth, learned: Callable[[str], None]
    ) -> None:
        keys = secret.keys if isinstance(secret, SecretPool) else (secret,)
        self._name, self._auth, self._learned = name, auth, learned
        self._keys = [_Key(each) for each in keys]
        self._next = random.randrange(len(keys))
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, str]] = {}  # the headers of each value

    def send(
        self,
        headers: dict[str, str],
        post: Callable[[], Answer],
        deadline: Deadline,
        used_up: Callable[[Mapping[str, str]], float],
    ) -> Answer:
        """Return the vendor's answer to the first key that it does not refuse; raise its error.

        *used_up* returns the seconds until the limits that an answer's headers tell are reset.
        """
        tried: set[_Key] = set()
        while True:
            key = self._chosen(tried)
            tried.add(key)
            try:
                headers |= self._headers(key.value(deadline))
                answer = post()
            except (ProviderAuthError, ProviderRateLimited) as error:
                renewed = isinstance(error, ProviderAuthError) and error.sent is not False
                if renewed and not deadline.expired and key.renew():
                    tried.discard(key)
                    headers |= self._headers(key.value(deadline))
                    return post()
                self._rest(key, error)
                if isinstance(error, ProviderAuthError) and error.sent is not False:
                    error.hint = f"does {key.secret.source or 'its api_key'} hold a valid key?"
                if deadline.expired or all(each in tried for each in self._keys):
                    raise
                continue
            if seconds := used_up(answer.headers):
                self._set(key, seconds)
            return answer

    def rests(self) -> float:
        """Return the seconds until a key is free, or 0."""
        return max(0.0, min(key.until for key in self._keys) - time.monotonic())

    def _chosen(self, tried: set[_Key]) -> _Key:
        """Return the next key in turn that does not rest, else the one that rests least."""
        now, keys = time.monotonic(), self._keys
        with self._lock:
            start = self._next = (self._next + 1) % len(keys)
        order = [key for key in (*keys[start:], *keys[:start]) if key not in tried]
        free = (key for key in order if key.until <= now)
        return next(free, None) or min(order, key=lambda key: key.until)

    def _headers(self, value: str) -> dict[str, str]:
        found = self._known.get(value)
        if found is None:
            with self._lock:
                while len(self._known) >= MAX_VALUES * len(self._keys):
                    del self._known[next(iter(self._known))]
                found = self._known[value] = self._auth(value)
                self._learned(value)
        return found

    def _rest(self, key: _Key, error: ProviderError) -> None:
        """Let a key rest after *error*, and log why if an operator must do something."""
        final = isinstance(error, ProviderAuthError | QuotaExhausted)
        usual = REFUSED_SECONDS if final else LIMITED_SECONDS
        seconds = min(error.retry_after or usual, MAX_REST)
        self._set(key, seconds)
        if not final or not key.log.due():
            return
        now = time.monotonic()
        left = sum(each.until <= now for each in self._keys)
        why = error.hint if error.sent is False else f"the vendor answers {error.upstream_status}"
        log.warning(
            "provider %r: the key of %s rests for %.0f s (%s); %d of %d keys serve",
            *(self._name, key.secret.source or "api_key", seconds, why, left, len(self._keys)),
        )

    def _set(self, key: _Key, seconds: float) -> None:
        key.until = max(key.until, time.monotonic() + seconds)


def with_revealed(headers: Mapping[str, str | Secret]) -> tuple[dict[str, str], list[str]]:
    """Return headers with names in lower case, and those of their values that are secret."""
    found = {
        name.lower(): value.reveal() if isinstance(value, Secret) else value
        for name, value in headers.items()
    }
    return found, [each.reveal() for each in headers.values() if isinstance(each, Secret)]


def bearer_token(key: str) -> dict[str, str]:
    """Return the header that carries a token of OAuth, as Entra gives one for Azure."""
    return {"Authorization": f"Bearer {key}"}


def is_static(key: Any) -> bool:
    """Whether a provider always sends the same key."""
    return key is None or type(key) is Secret
