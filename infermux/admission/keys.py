"""API keys of callers: only hashes are stored, and they are compared in constant time.

A `Keyring` has the keys of the configuration; a `LiveKeyring` also those that are made at run time,
which it reads again when they have changed.
"""

from __future__ import annotations

import hmac
import logging
import math
import mmap
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from ..errors import Unavailable
from ..types import ANONYMOUS, Caller, Clock, LogThrottle

PREFIX = "imx-"
REFRESH_SECONDS = 2.0  # seconds between two checks for changes
STALE_SECONDS = 3.0  # seconds without a check after which a call checks itself
MISS_SECONDS = 0.5  # seconds between two checks because of unknown keys
log = logging.getLogger("infermux")
# another number after each change of a key by this process or another worker of its service
_changes = memoryview(mmap.mmap(-1, 8)).cast("q")


def new_key() -> str:
    """Return a key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """Return the SHA-256 of *key* in hexadecimal; a random key needs no salt and no slow hash."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keyring:
    """Finds callers by their keys; made from (SHA-256 in hexadecimal, caller) pairs."""

    open = False  # whether callers without a key are admitted

    def __init__(self, keys: Iterable[tuple[str, Caller]]) -> None:
        self._keys = [(bytes.fromhex(hash), caller) for hash, caller in keys]
        self.own = {caller.name: caller for _, caller in self._keys}  # those of the configuration

    def identify(self, key: str) -> Caller | None:
        """Return the caller that has *key*, or None; every hash is compared, in constant time."""
        given, found = bytes.fromhex(hashed(key)), None
        for known, caller in self._keys:
            if hmac.compare_digest(known, given):
                found = caller
        return found

    def refusal(self, key: str) -> str:
        """Return why *key* is refused, if it was admitted earlier; else ""."""
        return ""

    def refresh(self) -> None:
        """Look for changes of keys, if there can be any and it is time to."""

    @property
    def callers(self) -> dict[str, Caller]:
        return self.own

    @property
    def known(self) -> dict[str, Caller]:
        """The callers, also those whose keys are no longer admitted."""
        return self.callers

    @property
    def count(self) -> int:
        return len(self.known)

    @property
    def limited(self) -> bool:
        own = self.own.values()
        return any(it.rpm or it.tpm or it.user_rpm or it.user_tpm for it in own)


class Issued(NamedTuple):
    """A secret of a key that was created at run time."""

    hash: str  # in hexadecimal
    caller: Caller
    until: float = math.inf  # seconds since 1970 up to which it is admitted
    ended: str = ""  # why it is not afterwards: expired, revoked or replaced


class _Loaded(NamedTuple):
    version: int
    by_hash: dict[bytes, Issued]
    callers: dict[str, Caller]  # by name, also of keys that are no longer admitted


# returns the version and the keys, or None if nothing has changed since the given version
Load = Callable[[int], tuple[int, Sequence[Issued]] | None]


class LiveKeyring(Keyring):
    """Also finds callers by keys created at run time; those of the configuration take precedence.

    If the configuration has no keys at all (None), callers without one are admitted until the first
    key is made, and never again. *load* may raise Unavailable; then the keys known so far stay in
    force. The file *mark* tells a later process of this host that there are keys, also where it
    cannot read them, or the ledger has lost them. The hashes are in a dict: they are of random
    keys, and the time of a look-up tells nothing about a key.
    """

    def __init__(
        self,
        keys: Iterable[tuple[str, Caller]] | None,
        load: Load,
        *,
        mark: Path | None = None,
        monotonic: Clock = time.monotonic,
    ) -> None:
        super().__init__(keys or ())
        self.open = self._opens = keys is None
        self._load, self._mark, self._monotonic = load, mark, monotonic
        self._issued: _Loaded | None = None  # None: not read yet
        self._looked = -math.inf
        self._seen = _changes[0]
        self._lock = threading.Lock()
        self._log = LogThrottle()

    def identify(self, key: str) -> Caller | None:
        """Return the caller that has *key*, or None; raise Unavailable if the keys are not known.

        A look-up of an unknown key looks for changes, but not more often than MISS_SECONDS say. A
        key of the configuration never waits for the database.
        """
        found = super().identify(key) if self._keys else None
        if found is not None:
            return found
        if self._seen != _changes[0]:
            self._follow()
        elif self._monotonic() - self._looked > STALE_SECONDS:
            self._look()
        if self.open:
            return ANONYMOUS
        if (found := self._found(key)) is None and key:
            if self._monotonic() - self._looked > MISS_SECONDS:
                self._look()
                found = self._found(key)
            if found is None and self._issued is None:
                raise Unavailable("the API keys cannot be read now; retry shortly")
        return found

    def refusal(self, key: str) -> str:
        """Return why *key* is refused, such as "has expired, at 2026-12-01T00:00:00Z"."""
        issued = self._at(key)
        if issued is None or time.time() < issued.until:
            return ""
        return f"{issued.ended}, at {datetime.fromtimestamp(issued.until, UTC):%Y-%m-%dT%H:%M:%SZ}"

    def refresh(self) -> None:
        """Look for changes if the last look is REFRESH_SECONDS old; for a background thread."""
        if self._monotonic() - self._looked > REFRESH_SECONDS:
            self._look()

    def changed(self) -> None:
        """Look for changes now, in all workers, as this process has changed a key."""
        _changes[0] = secrets.randbits(63)
        self._follow()

    def _follow(self) -> None:
        with self._lock:
            if self._seen != (change := _changes[0]):
                self._read()
                self._seen = change  # others wait until then

    @property
    def callers(self) -> dict[str, Caller]:
        issued, now = self._issued.by_hash.values() if self._issued else (), time.time()
        return {each.caller.name: each.caller for each in issued if now < each.until} | self.own

    @property
    def known(self) -> dict[str, Caller]:
        return (self._issued.callers if self._issued else {}) | self.own

    def _found(self, key: str) -> Caller | None:
        issued = self._at(key)
        return issued.caller if issued is not None and time.time() < issued.until else None

    def _at(self, key: str) -> Issued | None:
        return self._issued and self._issued.by_hash.get(bytes.fromhex(hashed(key)))

    def _look(self) -> None:
        """Look for changes; if another thread does, wait for it only if nothing is known yet."""
        if not self._lock.acquire(blocking=self._issued is None):
            return
        try:
            if self._monotonic() - self._looked > MISS_SECONDS:
                self._read()
        finally:
            self._looked = self._monotonic()  # a look may have waited for a database that is away
            self._lock.release()

    def _read(self) -> None:
        self._looked = self._monotonic()
        try:
            found = self._load(-1 if self._issued is None else self._issued.version)
        except Unavailable as error:
            if self._log.due():
                why = getattr(error, "reason", error.message)
                log.error("the API keys cannot be read: %s; those known so far stay in force", why)
            if self._issued is None and self._marked:
                self.open = False
            return
        if found is not None:
            version, issued = found
            issued = [each for each in issued if each.caller.name not in self.own]
            by_hash = {bytes.fromhex(each.hash): each for each in issued}
            callers = {each.caller.name: each.caller for each in issued}
            if self._issued is None:
                lost = self._opens and self._marked and not issued
                self.open = self._opens and not lost
                if lost:
                    log.warning(
                        "%s says that API keys were created, but the ledger has none: "
                        "a key is required; remove the file to open the service",
                        self._mark,
                    )
            self._issued = _Loaded(version, by_hash, callers)
            if issued:
                self.open = False
                if self._mark is not None:
                    with suppress(OSError):
                        self._mark.touch(0o600)

    @property
    def _marked(self) -> bool:
        return self._mark is not None and self._mark.exists()
