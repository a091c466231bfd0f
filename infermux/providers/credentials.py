"""Which of a provider's API keys a request gets: spread over those that the vendor accepts.

A key that the vendor refuses, whose account is out of credit or whose rate is used up rests alone,
while the others serve, also the request that was refused. If all rest, the one that rests least is
used: the vendor decides.

What a vendor stores belongs to the account of the key that made it. A request that names such a
thing is sent with that key, where this process knows it, and where the vendor does not find it,
with each other one.
"""

from __future__ import annotations

import logging
import math
import random
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

from requests import PreparedRequest

from ..config.credentials import SecretPool
from ..config.schema import PLACE, NoSecret, Secret
from ..dialects.limits import used_up
from ..errors import ProviderAuthError, ProviderError, ProviderRateLimited, QuotaExhausted, having
from ..protocol import InferRequest
from ..types import Deadline, LogThrottle
from .passing import is_repeatable
from .transport import Answer, Exchange

REFUSED_SECONDS = 60.0  # that a refused key rests, or one whose account is out of credit
LIMITED_SECONDS = 1.0  # the same after a rate limit without Retry-After
MAX_REST = 3600.0
MAX_VALUES = 16  # of each key that changes: as many are redacted
MAX_STORED = 10_000  # ids whose key is known
_PLACE = re.compile(
    r"/(files|batches|responses|conversations)\b(?:/(?!input_tokens|compact)([\w.:-]+))?"
)
_NAMED = re.compile(  # what a body names, or carries, of what a vendor has stored or encrypted
    rb'"(?:(?:input_)?file_id|previous_response_id|conversation|container|cached_?[cC]ontent'
    rb'|encrypted_content)"\s*:\s*(?:\{\s*"id"\s*:\s*)?"([\w.:/=+-]{1,200})'
)
_MISSING = re.compile(
    r"not[ _]found|no such|does(n't| not) exist|invalid.{0,20}\bids?\b|encrypted.content", re.I
)
Auth = Callable[[str], dict[str, str]]  # returns the headers that carry a key
log = logging.getLogger("infermux")


class _Key:
    """A key, and the time until which it rests: it is not used."""

    def __init__(self, secret: Secret, number: int) -> None:
        self.secret = secret
        self.name = secret.source or str(number)
        self.until = -math.inf
        self.log = LogThrottle()

    def rank(self, session: str) -> bytes:
        """Return the place of this key for a session (rendezvous hashing, as among targets)."""
        return sha256(f"{session}\0{self.name}".encode(errors="replace")).digest()

    def value(self, deadline: Deadline) -> str:
        """Return the key itself; raise ProviderAuthError if it cannot be had."""
        current = getattr(self.secret, "current", None)
        if current is None:
            return self.secret.reveal()
        try:
            found: str = current(deadline.remaining())
            return found
        except NoSecret as error:
            what = "this service has no API key for the provider now"
            raise having(ProviderAuthError(what), hint=str(error), sent=False) from None

    def renew(self, used: str) -> bool:
        """Look for another value of the key than *used*; return whether there is one."""
        renew = getattr(self.secret, "renew", None)
        return renew is not None and bool(renew(used))


class Credentials:
    """The keys of one provider in this process; *learned* is told each value that is new."""

    def __init__(
        self, name: str, secret: Secret, auth: Auth, learned: Callable[[str], None]
    ) -> None:
        keys = secret.keys if isinstance(secret, SecretPool) else (secret,)
        self._name, self._auth, self._learned = name, auth, learned
        self._keys = [_Key(each, number) for number, each in enumerate(keys)]
        self._next = random.randrange(len(keys))
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, str]] = {}  # the headers of each value
        self._made: dict[str, _Key] = {}  # by the ids of what vendors store

    def send(
        self,
        prepared: PreparedRequest,
        exchange: Exchange,
        post: Callable[[], Answer],
        request: InferRequest,
    ) -> Answer:
        """Return the vendor's answer to the first key that it does not refuse; raise its error."""
        only = request.passed and request.passed.account  # the number of the key to use
        repeatable = partial(is_repeatable, request)
        names = _stored(prepared) if len(self._keys) > 1 else ()
        known = (key for name in names if (key := self._made.get(name)))
        owner = next(known, None) if only is None else self._keys[only]
        tried = set(self._keys if only is not None else ()) - {owner}
        while True:
            key = self._chosen(tried, owner, request.stays)
            tried.add(key)
            try:
                answer = self._posted(key, prepared, exchange, post, repeatable)
            except ProviderError as error:
                limited = isinstance(error, ProviderRateLimited)
                if limited or isinstance(error, ProviderAuthError):
                    if not names or error.upstream_status != 403:  # else perhaps another account's
                        self._rest(key, error)
                    if not limited and error.sent is not False:
                        error.hint = f"does {key.secret.source or 'its api_key'} hold a valid key?"
                    final = limited and key is owner  # no other account has what is named
                else:
                    final = not names or not _is_missing(error)
                on = len(tried) < len(self._keys) and not exchange.deadline.expired
                if final or not on or not repeatable():
                    raise
                continue
            if seconds := used_up(answer.headers):
                self._set(key, seconds)
            if len(self._keys) > 1 and _PLACE.search(prepared.url or ""):
                exchange.key = key
            for name in names:
                self.note(key, name)
            return answer

    def _posted(
        self,
        key: _Key,
        prepared: PreparedRequest,
        exchange: Exchange,
        post: Callable[[], Answer],
        repeatable: Callable[[], bool],
    ) -> Answer:
        """Return the answer to a request with *key*, or with a newer value of it."""

        def sent(value: str) -> Answer:
            prepared.headers.update(self._headers(value))
            return post()

        used = key.value(exchange.deadline)
        try:
            return sent(used)
        except ProviderAuthError:
            if exchange.deadline.expired or not repeatable() or not key.renew(used):
                raise
        return sent(key.value(exchange.deadline))

    def note(self, key: _Key, ident: str) -> None:
        """Note the key of the account that has what an id means."""
        if self._made.get(ident) is not key:
            with self._lock:
                while len(self._made) >= MAX_STORED:
                    del self._made[next(iter(self._made))]
                self._made[ident] = key

    @property
    def count(self) -> int:
        return len(self._keys)

    @property
    def serving(self) -> int:
        """How many keys can be used now."""
        now = time.monotonic()
        return sum(key.until <= now for key in self._keys)

    def rests(self) -> float:
        """Return the seconds until a key is free, or 0."""
        return max(0.0, min(key.until for key in self._keys) - time.monotonic())

    def _chosen(self, tried: set[_Key], owner: _Key | None, session: str) -> _Key:
        """Return *owner*, then the next key that does not rest, or rests least.

        The next one in turn, or in the order of the session, which is the same everywhere.
        """
        if owner is not None and owner not in tried:
            return owner
        now, keys = time.monotonic(), self._keys
        if session:
            keys = sorted(keys, key=lambda key: key.rank(session))
        else:
            with self._lock:
                start = self._next = (self._next + 1) % len(keys)
            keys = [*keys[start:], *keys[:start]]
        order = [key for key in keys if key not in tried]
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
        if not final or self.count < 2 or not key.log.due():  # one alone does not rest
            return
        why = error.hint if error.sent is False else f"the vendor answers {error.upstream_status}"
        log.warning(
            "provider %r: the key of %s rests for %.0f s (%s); %d of %d keys serve",
            *(self._name, key.secret.source or "api_key", seconds, why, self.serving, self.count),
        )

    def _set(self, key: _Key, seconds: float) -> None:
        key.until = max(key.until, time.monotonic() + seconds)


def _stored(prepared: PreparedRequest) -> Collection[str]:
    """Return the ids that a request names of what a vendor stores."""
    place = _PLACE.search(prepared.url or "")
    found = [place[2]] if place and place[2] else []
    body: object = prepared.body
    if isinstance(body, bytes):
        found += {each.decode() for each in _NAMED.findall(body)}
    return found


def _is_missing(error: ProviderError) -> bool:
    """Whether a vendor has not found what a request names."""
    status = error.upstream_status
    return status == 404 or (
        status in (400, 403, 422) and _MISSING.search(error.message) is not None
    )


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


def signing_secrets(name: str, key: Secret | None, address: str) -> list[tuple[bytes, bool]]:
    """Return what signs the ids of what a provider stores, new ones by the first.

    Each is a digest, and whether it can be guessed: then it needs a secret of the service, too.
    """
    seals = key.seals if key is not None else (PLACE + address,)
    whole = [("\0".join(("infermux", name, seal)), seal[0] == PLACE) for seal in seals]
    return [(sha256(each.encode(errors="replace")).digest(), known) for each, known in whole]
