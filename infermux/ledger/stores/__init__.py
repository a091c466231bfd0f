"""Stores in a ledger's database beside calls and budgets: keys, cached answers, files, alerts.

Each uses SQL that every database understands, with `?` for values. `Database` is the part of a
ledger that they use. Here are also the tables that are alike in SQLite and PostgreSQL.
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
        self._database.write(lambda sql: sql.executemany(statement, rows))


# -- tables --

# many plans share their first line: it is stored once, and calls have its digest
PLANS = "CREATE TABLE plans (digest TEXT NOT NULL PRIMARY KEY, line TEXT NOT NULL)"
# the changes of budgets by operators
ADJUSTMENTS = """CREATE TABLE adjustments (
    at_ns BIGINT NOT NULL, name TEXT NOT NULL, team BIGINT NOT NULL, period TEXT NOT NULL,
    action TEXT NOT NULL, pico BIGINT NOT NULL)"""
# the days that are summed up; see `rollups`
ROLLED = "CREATE TABLE rolled (day BIGINT NOT NULL PRIMARY KEY, state BIGINT NOT NULL)"
# keys that are created at run time; each change raises the version
KEYS = (
    """CREATE TABLE api_keys (
        name TEXT NOT NULL PRIMARY KEY, settings TEXT NOT NULL, created_ms BIGINT NOT NULL,
        expires_ms BIGINT, revoked_ms BIGINT)""",
    """CREATE TABLE key_hashes (
        hash TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, at_ms BIGINT NOT NULL,
        until_ms BIGINT)""",
    "CREATE TABLE versions (name TEXT NOT NULL PRIMARY KEY, version BIGINT NOT NULL)",
)
FIRST_VERSION = "INSERT INTO versions VALUES ('keys', 0)"
# cached answers
ANSWERS = """CREATE TABLE answers (
    digest TEXT NOT NULL PRIMARY KEY, name TEXT NOT NULL, at_ms BIGINT NOT NULL,
    expires_ms BIGINT NOT NULL, size BIGINT NOT NULL, body TEXT NOT NULL)"""
ANSWER_SIZES = "CREATE TABLE answer_sizes (name TEXT NOT NULL PRIMARY KEY, bytes BIGINT NOT NULL)"
ANSWERS_BY_AGE = "CREATE INDEX answers_by_age ON answers (name, at_ms, digest, size)"
ANSWERS_BY_END = "CREATE INDEX answers_by_end ON answers (expires_ms)"
# the sums of each step of the last days; see `recent.activity`
ACTIVITY = """CREATE TABLE activity (
    step BIGINT NOT NULL, start BIGINT NOT NULL, data TEXT NOT NULL, PRIMARY KEY (step, start))"""
# the owners of files and batches at vendors
OBJECTS = """CREATE TABLE objects (
    provider TEXT NOT NULL, caller TEXT NOT NULL, ident TEXT NOT NULL, at_ms BIGINT NOT NULL,
    PRIMARY KEY (provider, caller, ident))"""
# when alerts were sent
ALERTS = """CREATE TABLE alerts (
    subject TEXT NOT NULL PRIMARY KEY, at_ms BIGINT NOT NULL, host TEXT NOT NULL)"""
