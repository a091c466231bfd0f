"""The owners of files and batches at vendors.

Their ids are signed, so this does not protect them. It lets a list show only the caller's own, as a
vendor lists those of the whole account, and it knows ids from a time when none were signed. The
rows of no provider hold the secret that signs ids where a provider's key cannot.
"""

from __future__ import annotations

from collections.abc import Iterable
from secrets import randbits
from typing import Any

from ..periods import ms
from . import Store

MAX_OBJECTS = 100_000  # of one caller at one provider, that are listed
_ADD = "INSERT INTO objects VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_ONE = "FROM objects WHERE provider = ? AND caller = ? AND ident = ?"
_REMOVE, _WHERE = f"DELETE {_ONE}", f"SELECT 1 {_ONE}"
_LIST = """SELECT ident FROM objects WHERE provider = ? AND caller = ?
    ORDER BY at_ms DESC LIMIT ?"""
_SECRET = "SELECT at_ms FROM objects WHERE provider = '' ORDER BY ident"


class Objects(Store):
    """The ids of what callers have made at providers."""

    def add(self, provider: str, caller: str, idents: Iterable[str], at: float) -> None:
        """Note that *caller* has made objects; known ones stay as they are."""
        self._write(_ADD, *[(provider, caller, ident, ms(at)) for ident in idents])

    def remove(self, provider: str, caller: str, ident: str) -> None:
        """Forget an object that was deleted."""
        self._write(_REMOVE, (provider, caller, ident))

    def of(self, provider: str, caller: str) -> frozenset[str]:
        """Return the vendor's ids of a caller's objects, the newest MAX_OBJECTS."""
        return frozenset(row[0] for row in self._rows(_LIST, provider, caller, MAX_OBJECTS))

    def has(self, provider: str, caller: str, ident: str) -> bool:
        return bool(self._rows(_WHERE, provider, caller, ident))

    def secret(self) -> bytes:
        """Return 252 random bits, the same for all services of the ledger."""
        if not (found := self._rows(_SECRET)):
            self._write(_ADD, *[("", "", str(n), randbits(63)) for n in range(4)])
            found = self._rows(_SECRET)  # those of another service that was first
        return b"".join(part.to_bytes(8, "big") for (part,) in found)


def objects_of(ledger: Any) -> Objects | None:
    """Return the objects that a ledger knows, if there is one."""
    return None if ledger is None else ledger.objects()
