"""Stores in a ledger's database beside calls and budgets: keys, cached answers, files, alerts.

Each uses SQL that every database understands, with `?` for values. `Database` is the part of a
ledger that they use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Ask = Callable[[str, Sequence[Any]], list[Any]]  # returns the rows of a query


class Sql(Protocol):
    """A cursor in a transaction."""

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Any: ...
    def executemany(self, statement: str, rows: Sequence[Any], /) -> Any: ...


class Database(Protocol):
    """The database of the stores: a part of `sql.Ledger`."""

    def snapshot(self, work: Callable[[Ask], T]) -> T: ...
    def write(self, work: Callable[[Sql], T]) -> T: ...


class Store:
    """Rows in the ledger's database; methods raise LedgerUnavailable."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def _rows(self, query: str, *values: Any) -> list[Any]:
        return self._database.snapshot(lambda ask: ask(query, values))

    def _write(self, statement: str, *rows: Sequence[Any]) -> None:
        """Run a statement for each of *rows*, in one transaction."""

        def work(sql: Sql) -> None:
            for row in rows:
                sql.execute(statement, row)

        self._database.write(work)
