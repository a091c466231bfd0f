"""The owners of files and batches at vendors.

Their ids are signed, so this does not protect them. It lets a list show only the caller's own, as a
vendor lists those of the whole account, and it knows ids from a time when none were signed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MAX_OBJECTS = 100_000  # of one caller at one provider, that are listed
TABLE = """CREATE TABLE objects (
    provider TEXT NOT NULL, caller TEXT NOT NULL, ident TEXT NOT NULL, at_ms BIGINT NOT NULL,
    PRIMARY KEY (provider, caller, ident))"""
_ADD = "INSERT INTO objects VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
_REMOVE = "DELETE FROM objects WHERE provider = ? AND caller = ? AND ident = ?"
_LIST = """SELECT ident FROM objects WHERE provider = ? AND caller = ?
    ORDER BY at_ms DESC LIMIT ?"""
_WHERE = "SELECT 1 FROM objects WHERE provider = ? AND caller = ? AND ident = ?"

Ask = Callable[[str, Sequence[str | int]], list[Any]]


class Objects(ABC):
    """The ids of what callers have made at providers; methods raise LedgerUnavailable."""

    @abstractmethod
    def add(self, provider: str, caller: str, idents: Iterable[str], at: float) -> None:
        """Note that *caller* has made objects; known ones stay as they are."""

    @abstractmethod
    def remove(self, provider: str, caller: str, ident: str) -> None:
        """Forget an object that was deleted."""

    @abstractmethod
    def of(self, provider: str, caller: str) -> frozenset[str]:
        """Return the vendor's ids of a caller's objects, the newest MAX_OBJECTS."""

    @abstractmethod
    def has(self, provider: str, caller: str, ident: str) -> bool:
        """Return whether *caller* has made an object."""


class SQLObjects(Objects):
    """The ids in a table, by the *write* and *snapshot* of an SQL ledger."""

    def __init__(
        self, write: Callable[[Callable[[Any], None]], None], snapshot: Callable[..., Any]
    ) -> None:
        self._write, self._snapshot = write, snapshot

    def add(self, provider: str, caller: str, idents: Iterable[str], at: float) -> None:
        rows = [(provider, caller, ident, int(at * 1000)) for ident in idents]

        def work(sql: Any) -> None:
            for row in rows:
                sql.execute(_ADD, row)

        self._write(work)

    def remove(self, provider: str, caller: str, ident: str) -> None:
        def work(sql: Any) -> None:
            sql.execute(_REMOVE, (provider, caller, ident))

        self._write(work)

    def of(self, provider: str, caller: str) -> frozenset[str]:
        def work(ask: Ask) -> frozenset[str]:
            return frozenset(row[0] for row in ask(_LIST, (provider, caller, MAX_OBJECTS)))

        return self._snapshot(work)  # type: ignore[no-any-return]

    def has(self, provider: str, caller: str, ident: str) -> bool:
        found = self._snapshot(lambda ask: ask(_WHERE, (provider, caller, ident)))
        return bool(found)
