"""API keys of callers: only hashes are stored, and they are compared in constant time."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from hashlib import sha256

from ..types import Caller

PREFIX = "imx-"


def new_key() -> str:
    """Return a key with 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hashed(key: str) -> str:
    """Return the SHA-256 of *key* in hexadecimal; a random key needs no salt and no slow hash."""
    return sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


class Keyring:
    """Finds callers by their keys; made from (SHA-256 in hexadecimal, caller) pairs."""

    def __init__(self, keys: Iterable[tuple[str, Caller]]) -> None:
        self._keys = [(bytes.fromhex(hash), caller) for hash, caller in keys]

    def identify(self, key: str) -> Caller | None:
        """Return the caller that has *key*, or None; every hash is compared, in constant time."""
        given, found = bytes.fromhex(hashed(key)), None
        for known, caller in self._keys:
            if hmac.compare_digest(known, given):
                found = caller
        return found

    @property
    def callers(self) -> dict[str, Caller]:
        """The callers by name."""
        return {caller.name: caller for _, caller in self._keys}

    @property
    def limited(self) -> bool:
        """Whether any caller has a rate limit."""
        return any(caller.rpm or caller.tpm for _, caller in self._keys)
