"""One SQLite file on disk: opened and brought to the present schema, recognised where it is
damaged, locked while that happens.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from . import queries as q
from . import usual

WAIT = 0.01  # seconds that SQLite waits by itself: its longer naps let other processes starve us
# pages of the -wal, 16 MB, until they are copied to the file: a page that many calls fill is then
# copied once
CHECKPOINT = 4000
_UNUSED: list[
    sqlite3.Connection
] = []  # inherited through a fork: SQLite forbids a child to use or close them


class Connection:
    """A connection of one thread, and which file it is to."""

    __slots__ = ("__weakref__", "closed", "cursor", "file", "pid", "sql", "using")

    def __init__(self, sql: sqlite3.Connection, file: tuple[int, int] | None) -> None:
        self.sql = sql
        self.cursor = (
            sql.cursor()
        )  # for writing; a new one for each statement would cost a fifth of it
        self.file = file
        self.pid = os.getpid()
        self.using = (
            threading.Lock()
        )  # between a thread that reads and another that closes the ledger
        self.closed = False

    def ask(self, query: str, values: Sequence[str | int]) -> list[Any]:
        """Return the rows that answer a question."""
        with self.using:
            if self.closed:
                raise sqlite3.OperationalError("the ledger was closed")
            return self.sql.execute(query, values).fetchall()

    def close(self) -> None:
        """Close it; a second time does nothing."""
        with self.using:
            self.closed = True
            self.sql.close()

    def __del__(self) -> None:
        if self.pid == os.getpid():
            self.sql.close()
        else:
            _UNUSED.append(self.sql)


def prepare(sql: sqlite3.Connection, saved: Sequence[Any], *, suspect: bool) -> None:
    """Bring a file to the present schema, and the connection to its settings; raise sqlite3.Error."""
    [(version,)], [(mark,)] = (
        sql.execute("PRAGMA user_version").fetchall(),
        sql.execute("PRAGMA application_id").fetchall(),
    )
    if suspect:
        [(problem,)] = sql.execute("PRAGMA quick_check(1)").fetchall()
        if problem != "ok":
            error = sqlite3.DatabaseError(problem)
            error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
            raise error
    if mark != q.APPLICATION and sql.execute("SELECT 1 FROM sqlite_master").fetchall():
        raise sqlite3.DatabaseError("this is another program's file")
    if version > len(q.MIGRATIONS):
        raise sqlite3.DatabaseError(
            f"a newer InferMux made this file (version {version} of its schema)"
        )
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = NORMAL")
    if version < len(q.MIGRATIONS):
        sql.execute("BEGIN IMMEDIATE")
        for statement in (each for step in q.MIGRATIONS[version:] for each in step):
            sql.execute(statement)
        sql.executemany(q.RESTORE, saved)
        sql.execute(f"PRAGMA application_id = {q.APPLICATION}")
        sql.execute(f"PRAGMA user_version = {len(q.MIGRATIONS)}")
        sql.execute("COMMIT")
    sql.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
    sql.execute("PRAGMA temp_store = MEMORY")
    sql.executescript(usual.VIEWS)
    sql.execute(f"PRAGMA busy_timeout = {round(WAIT * 1000)}")


def rescued(sql: sqlite3.Connection) -> list[Any]:
    """Stop others from writing to a damaged file, and return what its budgets have spent if that
    can still be read.
    """
    with suppress(sqlite3.Error):
        sql.execute("BEGIN IMMEDIATE")
    with suppress(sqlite3.Error):
        return sql.execute(q.RESCUE).fetchall()
    return []


def damaged(error: BaseException) -> bool:
    """Whether *error* says that the file is not, or no longer, a database."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    )


def create(path: str) -> None:
    """Make an empty file that only we may read; one that exists is not touched, for closing it
    would drop SQLite's locks.
    """
    if not os.path.exists(path):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def file_of(path: str) -> tuple[int, int] | None:
    """Return which file is at *path*, or None."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def size(path: str) -> int:
    """Return the bytes of the file at *path*, 0 if there is none."""
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Hold the lock file of that name."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(lock, fcntl.LOCK_UN)  # by name: a child forked meanwhile has the descriptor too
        os.close(lock)
