"""Connections to one SQLite file, and group commit.

Opening the file creates or migrates it, and replaces a damaged one.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, TypeVar

from ...types import POSIX, Clock
from ..files import POLL_SECONDS, identity, lock, opened, unlock
from . import schema

CHECKPOINT_PAGES = 4000  # of the -wal, 16 MB: a page that many calls change is copied once
_FILES = ("-wal", "-shm", "")
T = TypeVar("T")
Saved = list[tuple[str, list[Any]]]  # statements, and the rows that they write
_inherited: list[sqlite3.Connection] = []  # SQLite: a forked child must not use or close them


class Connection:
    """A connection and the identity of the file that it was opened for."""

    __slots__ = ("__weakref__", "closed", "cursor", "file", "plans", "sql", "using")

    def __init__(self, sql: sqlite3.Connection, file: tuple[int, int] | None) -> None:
        self.sql = sql
        self.cursor = sql.cursor()  # for writing; opening one takes a fifth of a statement's time
        self.plans: set[str] = set()  # digests of plans that are in the file
        self.file = file
        # not __del__: in a cycle, that may run after sqlite3 has warned of a connection left open
        weakref.finalize(self, _release, sql, os.getpid()).atexit = False
        self.using = threading.Lock()  # held while it is read or closed
        self.closed = False

    def ask(self, query: str, values: Sequence[str | int]) -> list[Any]:
        with self.using:
            if self.closed:
                raise sqlite3.OperationalError("the ledger was closed")
            return self.sql.execute(query, values).fetchall()

    def begin(self, busy: float) -> None:
        """Begin a write transaction; raise sqlite3.OperationalError after *busy* seconds.

        IMMEDIATE, since a deferred transaction would fail at once at its first write.
        """
        end: float | None = None
        while True:
            try:
                self.cursor.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                now = time.monotonic()
                end = now + busy - POLL_SECONDS if end is None else end
                if not locked(error) or now >= end:
                    raise

    def snapshot(self, work: Callable[[Callable[..., list[Any]]], T]) -> T:
        """Return the result of *work*, whose queries see one state of the file."""
        with self.using:
            if self.closed:
                raise sqlite3.OperationalError("the ledger was closed")
            self.sql.execute("BEGIN")
            try:
                return work(lambda query, values: self.sql.execute(query, values).fetchall())
            finally:
                self.sql.execute("ROLLBACK")

    def backup(self, path: str) -> None:
        """Write a copy of the file to *path*, as of one moment; others may write meanwhile."""
        with suppress(FileNotFoundError):
            os.unlink(path)
        _create(path)
        with self.using, closing(sqlite3.connect(path)) as copy:
            self.sql.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")

    def close(self) -> None:
        """Close the connection; closing it again does nothing."""
        with self.using:
            self.closed = True
            self.sql.close()


def _release(sql: sqlite3.Connection, pid: int) -> None:
    if pid == os.getpid():
        sql.close()
    else:
        _inherited.append(sql)


class DatabaseFile:
    """Opens the SQLite file at *path*: creates or migrates it, and renames a damaged one."""

    def __init__(self, path: str, *, replaces: bool, clock: Clock) -> None:
        self.path, self._replaces = path, replaces
        self._clock = clock  # only for the names of damaged files
        self.moved: list[str] = []  # messages about damaged files, to be logged

    def at_path(self, connection: Connection) -> bool:
        """Return whether the file of *connection* is still the one at the path."""
        return connection.file == identity(self.path)

    def open(self, *, suspect: bool, busy: float) -> Connection:
        """Return a new connection; if the file is *suspect*, check it first.

        One thread of the host at a time does this; raise TimeoutError after *busy* seconds.
        """
        saved = Saved()
        with _locked(f"{self.path}.lock", busy):
            if not _size(self.path) and _size(f"{self.path}-wal"):
                # SQLite would delete the -wal, which still has data
                self._move_aside("the file has lost its content")
            while True:
                _create(self.path)
                sql = sqlite3.connect(
                    self.path, timeout=busy, isolation_level=None, check_same_thread=False
                )
                try:
                    if suspect:
                        _check(sql)
                    _prepare(sql, saved)
                    return Connection(sql, identity(self.path))
                except BaseException as error:
                    named = self.path.endswith((".db", ".sqlite", ".sqlite3"))
                    foreign = not named and "not a database" in str(error)  # a wrong path
                    if foreign or not (damaged(error) and self._replaces):
                        sql.close()
                        raise
                    saved, suspect = _rescued(sql), False
                    if not POSIX:  # Windows renames no open file
                        sql.close()
                    self._move_aside(str(error))
                    # after the rename, so that SQLite deletes no -wal at the path
                    sql.close()

    def _move_aside(self, reason: str) -> None:
        """Rename the file and its -wal; the file last, so that no new file finds an old -wal."""
        when = datetime.fromtimestamp(self._clock(), UTC)
        aside = stem = f"{self.path}.corrupt-{when:%Y%m%dT%H%M%SZ}"
        n = 1
        while any(os.path.lexists(aside + suffix) for suffix in _FILES):
            aside, n = f"{stem}-{n}", n + 1
        for suffix in _FILES:
            with suppress(FileNotFoundError):
                os.rename(self.path + suffix, aside + suffix)
        self.moved.append(
            f"the ledger {self.path} is damaged ({reason}): it was moved to {aside}, "
            "and a new one was created"
        )


def damaged(error: BaseException) -> bool:
    """Return whether *error* means that the file is damaged or not a database."""
    return _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def locked(error: BaseException) -> bool:
    """Return whether *error* means that another process has locked the file."""
    return _code(error) == sqlite3.SQLITE_BUSY


def passes(error: BaseException) -> bool:
    """Return whether *error* means that the file is locked or its disk is full."""
    code, number = _code(error), getattr(error, "errno", 0)
    full = code == sqlite3.SQLITE_FULL or number == errno.ENOSPC
    return full or locked(error) or number == errno.ETIMEDOUT


def _code(error: BaseException) -> int:
    """Return SQLite's primary code of an error, or 0."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _check(sql: sqlite3.Connection) -> None:
    [(problem,)] = sql.execute("PRAGMA quick_check(1)").fetchall()
    if problem != "ok":
        error = sqlite3.DatabaseError(problem)
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


def _prepare(sql: sqlite3.Connection, saved: Saved) -> None:
    """Migrate the file, restore what was *saved* into a new one, and configure the connection."""
    [(version,)] = sql.execute("PRAGMA user_version").fetchall()
    [(mark,)] = sql.execute("PRAGMA application_id").fetchall()
    newest = len(schema.MIGRATIONS)
    if mark != schema.APPLICATION_ID and sql.execute("SELECT 1 FROM sqlite_master").fetchall():
        raise sqlite3.DatabaseError("the file belongs to another program")
    if version > newest:
        raise sqlite3.DatabaseError(
            f"the file was written by a newer InferMux (schema version {version})"
        )
    sql.execute("PRAGMA journal_mode = WAL")
    sql.execute("PRAGMA synchronous = NORMAL")
    if version < newest:
        sql.execute("BEGIN IMMEDIATE")
        for statement in (each for step in schema.MIGRATIONS[version:] for each in step):
            sql.execute(statement)
        for restore, rows in saved:
            sql.executemany(restore, rows)
        sql.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        sql.execute(f"PRAGMA user_version = {newest}")
        sql.execute("COMMIT")
    sql.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    sql.execute("PRAGMA temp_store = MEMORY")
    sql.execute(f"PRAGMA busy_timeout = {round(POLL_SECONDS * 1000)}")


def _rescued(sql: sqlite3.Connection) -> Saved:
    """Lock a damaged file against writers; return its budgets' sums and its keys, if readable."""
    with suppress(sqlite3.Error):
        sql.execute("BEGIN IMMEDIATE")
    found = Saved()
    for query, restore in schema.RESCUE.items():
        with suppress(sqlite3.Error):
            found.append((restore, sql.execute(query).fetchall()))
    return found


def _create(path: str) -> None:
    """Create an empty file that only its owner may read.

    An existing file is not opened, as closing it would drop SQLite's locks.
    """
    if not os.path.exists(path):
        os.close(opened(path, os.O_CREAT | os.O_EXCL))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


@contextmanager
def _locked(path: str, seconds: float) -> Iterator[None]:
    """Hold the lock file at *path*; wait for it at most *seconds*."""
    file = opened(path, os.O_CREAT)
    try:
        lock(file, seconds)
        yield
    finally:
        unlock(file)
