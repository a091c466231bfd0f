"""The databases of the ledger, for tests of what holds with each: fixtures that make ledgers."""

from __future__ import annotations

import itertools
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from books import NOON, large
from databases import Database, Postgres

from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger

_count = itertools.count()


class Backend(ABC):
    """A new, empty database, and ledgers in it."""

    name: str

    def __init__(self) -> None:
        self._made: list[Ledger] = []

    def make(self, now: float | None = None, **options: Any) -> Ledger:
        """Return a ledger as another process has it, whose clock is at *now*."""
        clock = (lambda: NOON) if now is None else lambda: now
        self._made.append(found := self._new(clock=clock, **options))
        return found

    @property
    @abstractmethod
    def place(self) -> tuple[str, str]:
        """What `books.opened` opens in another process."""

    @abstractmethod
    def _new(self, clock: Callable[[], float], **options: Any) -> Ledger:
        """Return a new ledger."""

    @abstractmethod
    def sql(self, statement: str) -> list[tuple[str, ...]]:
        """Run a statement on the database itself; return its rows, each value as text."""

    def close(self) -> None:
        for each in self._made:
            each.close()


class SQLite(Backend):
    name = "sqlite"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def place(self) -> tuple[str, str]:
        return str(self.path), ""

    def _new(self, clock: Callable[[], float], **options: Any) -> Ledger:
        # as below: a busy machine is not a locked ledger
        return SQLiteLedger(self.path, clock=clock, **{"busy": 60} | options)

    def sql(self, statement: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.path)) as sql, sql:
            return [tuple(map(str, row)) for row in sql.execute(statement).fetchall()]


class PostgreSQL(Backend):
    name = "postgres"

    def __init__(self, database: Database, folder: Path, url: str = "") -> None:
        super().__init__()
        self.database, self._folder = database, folder
        self.url = url or database.service

    @property
    def place(self) -> tuple[str, str]:
        return self.url, str(self._folder)

    def _new(self, clock: Callable[[], float], **options: Any) -> Ledger:
        from infermux.ledger.postgres import PostgresLedger

        url = options.pop("url", self.url)
        spool = self._folder / f"{next(_count)}.spool"  # as on a host of its own
        # how long a call waits for the database is in test_postgres.py: a busy machine is not away
        return PostgresLedger(url, clock=clock, spool=spool, **{"patient": True} | options)

    def sql(self, statement: str) -> list[tuple[str, ...]]:
        return [tuple(row) for row in self.database.sql(statement)]


class Emptied:
    """A ledger in PostgreSQL that tests use one after the other, as a new database takes long."""

    def __init__(self, database: Database, books: Path, folder: Path) -> None:
        import psycopg

        from infermux.ledger.postgres import PostgresLedger, copy, schema

        self.database = database
        at = {"clock": lambda: NOON, "spool": folder / "spool", "patient": True}
        with closing(PostgresLedger(database.url, **at)) as ledger:
            ledger.migrate(create=True)
            with closing(SQLiteLedger(books)) as source:
                found = copy.copy(source, "books", ledger.run_long, ledger)
            assert (found.calls, found.differences) == (1500, [])
        self._sql = psycopg.connect(database.url, autocommit=True)
        self._tables = [name for name in schema.TABLES if name != "versions"]
        self._sql.execute("CREATE SCHEMA kept")
        for table in self._tables:
            self._sql.execute(f"CREATE TABLE kept.{table} AS SELECT * FROM {table}")

    def close(self) -> None:
        self._sql.close()

    def fill(self, *, full: bool) -> None:
        """Empty the ledger; if it is to be *full*, add the large one's calls."""
        with self._sql.transaction():
            for table in self._tables:
                self._sql.execute(f"DELETE FROM {table}")
                if full:
                    self._sql.execute(f"INSERT INTO {table} SELECT * FROM kept.{table}")


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a large ledger."""
    path = tmp_path_factory.mktemp("books") / "l.db"
    large(path, 1500)
    return path


@pytest.fixture(scope="session")
def emptied(postgres: Postgres, many: Path, tmp_path_factory: Any) -> Iterator[Emptied]:
    pytest.importorskip("psycopg_pool", reason="pip install 'infermux[postgres]'")
    made = Emptied(postgres.database(), many, tmp_path_factory.mktemp("spool"))
    yield made
    made.close()


def _made(request: pytest.FixtureRequest, path: Path, full: bool) -> Iterator[Backend]:
    if request.param == "sqlite":
        if full:
            with (
                closing(sqlite3.connect(request.getfixturevalue("many"))) as old,
                closing(sqlite3.connect(path)) as new,
            ):
                old.backup(new)
        made: Backend = SQLite(path)
    else:
        there: Emptied = request.getfixturevalue("emptied")
        there.fill(full=full)
        made = PostgreSQL(there.database, path.parent)
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each database, with an empty ledger."""
    yield from _made(request, tmp_path / "l.db", full=False)


@pytest.fixture(params=["sqlite", "postgres"])
def full(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    """Each database, with a large ledger."""
    yield from _made(request, tmp_path / "l.db", full=True)


@pytest.fixture
def ledger(backend: Backend) -> Ledger:
    """An empty ledger in each database."""
    return backend.make()
