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

_INT, _TEXT = "BIGINT NOT NULL", "TEXT NOT NULL"
# many plans share their first line: it is stored once, and calls have its digest
PLANS = f"CREATE TABLE plans (digest {_TEXT} PRIMARY KEY, line {_TEXT})"
# the changes of budgets by operators
ADJUSTMENTS = f"""CREATE TABLE adjustments (
    at_ns {_INT}, name {_TEXT}, team {_INT}, period {_TEXT},
    action {_TEXT}, pico {_INT})"""
# the days that are summed up; see `rollups`
ROLLED = f"CREATE TABLE rolled (day {_INT} PRIMARY KEY, state {_INT})"
# keys that are created at run time; each change raises the version
KEYS = (
    f"""CREATE TABLE api_keys (
        name {_TEXT} PRIMARY KEY, settings {_TEXT}, created_ms {_INT},
        expires_ms BIGINT, revoked_ms BIGINT)""",
    f"""CREATE TABLE key_hashes (
        hash {_TEXT} PRIMARY KEY, name {_TEXT}, at_ms {_INT},
        until_ms BIGINT)""",
    f"CREATE TABLE versions (name {_TEXT} PRIMARY KEY, version {_INT})",
)
FIRST_VERSION = "INSERT INTO versions VALUES ('keys', 0)"
# cached answers
ANSWERS = f"""CREATE TABLE answers (
    digest {_TEXT} PRIMARY KEY, name {_TEXT}, at_ms {_INT},
    expires_ms {_INT}, size {_INT}, body {_TEXT})"""
ANSWER_SIZES = f"CREATE TABLE answer_sizes (name {_TEXT} PRIMARY KEY, bytes {_INT})"
ANSWERS_BY_AGE = "CREATE INDEX answers_by_age ON answers (name, at_ms, digest, size)"
ANSWERS_BY_END = "CREATE INDEX answers_by_end ON answers (expires_ms)"
# the sums of each step of the last days; see `recent.activity`
ACTIVITY = f"""CREATE TABLE activity (
    step {_INT}, start {_INT}, data {_TEXT}, PRIMARY KEY (step, start))"""
# the owners of files and batches at vendors
OBJECTS = f"""CREATE TABLE objects (
    provider {_TEXT}, caller {_TEXT}, ident {_TEXT}, at_ms {_INT},
    PRIMARY KEY (provider, caller, ident))"""
# when alerts were sent
ALERTS = f"""CREATE TABLE alerts (
    subject {_TEXT} PRIMARY KEY, at_ms {_INT}, host {_TEXT})"""
