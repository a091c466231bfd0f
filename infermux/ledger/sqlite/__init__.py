"""The ledger in one SQLite file that all workers of a host share.

With WAL and synchronous=NORMAL, a settled call survives a crash of any process. A power cut can
lose the calls since the last checkpoint, but never damages the file; FULL would cost two fsyncs per
call. A process has one connection for writing, and each thread one for reading; they are opened on
first use, and again after a fork.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from sqlite3 import Cursor
from types import SimpleNamespace
from typing import Any, TypeVar

from ...types import Clock
from .. import (
    USER,
    Adjustment,
    Budget,
    BudgetState,
    Hold,
    LedgerUnavailable,
    Record,
    periods,
    rollups,
)
from ..groups import GroupCommit, Job, fail
from ..holds import MAX_USERS, Refused, Rules, forget_users
from ..periods import ms
from ..spool import Deferred, Spool
from ..sql import Ledger
from ..stores import Ask
from . import budgets, prune, schema
from .budgets import state
from .connection import Connection, DatabaseFile, damaged, passes

BUSY_SECONDS = 0.35  # seconds that a write waits for other threads, and then for other processes
BRIEF_SECONDS = 0.02  # the same after a failure, until a write succeeds
log = logging.getLogger("infermux")
T = TypeVar("T")
Place = Any  # an object whose attribute `connection` is a Connection, None or missing


class _Process:
    """The connections and the spool of one process."""

    def __init__(self, path: str, commit: Callable[[_Process, Sequence[Job]], None]) -> None:
        self.pid = os.getpid()
        self.spool = Spool(f"{path}.spool")
        self.group = GroupCommit(partial(commit, self))
        self.writer: Place = SimpleNamespace(connection=None)  # used by the thread that writes
        self.reader: Place = threading.local()  # one per thread, closed when the thread ends
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.suspect = False  # the file must be checked when it is opened next
        self.opening = threading.Lock()  # one thread at a time opens the file


class SQLiteLedger(Ledger):
    """A ledger in the file at *path*, created with mode 0600; a write waits at most *busy* s.

    A damaged file is moved aside if a new one *replaces* it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        busy: float = BUSY_SECONDS,
        timezone: str = "UTC",
        keep: float | None = None,
        replaces: bool = True,
        clock: Clock = time.time,
    ) -> None:
        self.path = os.path.abspath(path)
        super().__init__(periods.time_zone(timezone), keep, clock)
        self._busy = busy
        self._file = DatabaseFile(self.path, replaces=replaces, clock=clock)
        self._process = _Process(self.path, self._commit)
        self._failure: str | None = None

    # -- budgets --

    def _reserve(self, hold: Hold, rules: Rules) -> Hold | Refused:
        return self._write(lambda file: budgets.reserve(file.cursor, hold, rules), hold.budget)

    def _top_up(self, more: int, hold: Hold, rules: Rules) -> Hold | Refused:
        return self._write(lambda file: budgets.top_up(more, file.cursor, hold, rules), hold.budget)

    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        return self._write(lambda to: schema.settle(to.cursor, record, hold, to.plans, self.zone))

    def _write_deferred(self, batch: Sequence[Deferred]) -> None:
        def work(to: Connection) -> None:
            for record, hold in batch:
                schema.settle(to.cursor, record, hold, to.plans, self.zone)

        self._write(work)

    def states(self, budgets: Sequence[Budget], at: float) -> list[BudgetState]:
        return self.snapshot(lambda ask: [state(ask, each, at, self.zone) for each in budgets])

    def adjust(self, budget: Budget, more: int | None, at: float) -> Adjustment:
        self.lose(at)  # what is shown as spent can be forgiven
        return self.write(lambda sql: budgets.adjust(sql, budget, more, at, self.zone))

    def forget_users(self, now: float, most: int = MAX_USERS) -> None:
        if self._read(budgets.ANY_USER, (USER,)):
            given = "caller", now, self.zone, most
            self.write(lambda sql: forget_users(sql, budgets.USERS, *given))

    # -- reading and writing --

    def backup(self, path: str) -> None:
        """Write a copy of the file to *path*, as of one moment, while others write."""
        self._use_reader(lambda connection: connection.backup(path))

    def snapshot(self, work: Callable[[Ask], T]) -> T:
        return self._use_reader(lambda connection: connection.snapshot(work))

    def write(self, work: Callable[[Cursor], T]) -> T:
        return self._write(lambda connection: work(connection.cursor))

    def lose(self, now: float) -> None:
        if self._read(budgets.EXPIRED, (ms(now),)) and self.may_expire():
            self.write(lambda sql: budgets.lose(sql, now, self.zone))

    def prune(self, before: float, told: Callable[[int], None] = lambda _: None) -> int:
        return prune.prune(self, before, told)

    def prunes_before(self, before: float) -> float:
        return before // periods.DAY * periods.DAY

    def problems(self) -> list[str]:
        asked = prune.HELD, prune.SUMMED
        return self.snapshot(lambda ask: [*prune.damage(ask), *rollups.problems(ask, *asked)])

    def _spool(self) -> Spool:
        return self._here().spool

    # -- the file --

    def check(self) -> None:
        """After a failure, try to write: a service that is not ready gets no calls to write."""
        version = "PRAGMA user_version"
        if self._failure is None:
            self._read(version, ())
        else:
            newest = len(schema.MIGRATIONS)
            self._write(lambda connection: connection.sql.execute(f"{version} = {newest}"))

    def close(self) -> None:
        """Write the spool, and close each connection of this process when it is idle."""
        process = self._here()
        self.drain(last=True)

        def close_all() -> None:
            for connection in list(process.connections):
                connection.close()

        process.group.alone(close_all)

    def _here(self) -> _Process:
        """Return the connections of this process; after a fork, make new ones.

        Two threads may both make some at first, which only costs time.
        """
        if self._process.pid != os.getpid():
            self._process = _Process(self.path, self._commit)
        return self._process

    def _patience(self, budget: Budget | None = None) -> float:
        """Return the seconds that a write waits; fewer after a failure."""
        if self._failure is None:
            return self._busy
        return self._busy / 2 if budget is not None and budget.hard else BRIEF_SECONDS

    def _write(self, work: Callable[[Connection], T], budget: Budget | None = None) -> T:
        """Return the result of *work*, run in a transaction that other threads may share.

        With a *budget*, it is not checked that the file still exists: settling does that.
        """
        job = Job(work, self._patience(budget), anywhere=budget is not None)
        if not self._here().group.run(job):
            raise self._unavailable("other threads have been writing for too long", temporary=True)
        self._report()
        if job.error is not None:
            raise job.error
        found: T = job.result
        return found

    def _commit(self, process: _Process, jobs: Sequence[Job]) -> None:
        """Run *jobs* in one transaction; if one fails, run each in its own."""
        try:
            self._guarded(process, process.writer, partial(self._transact, process, jobs))
            self._failure = None
            for job in jobs:
                job.done = True
        except Exception as error:
            fail(jobs, error, partial(self._commit, process))

    def _read(self, query: str, values: Sequence[str | int]) -> list[Any]:
        return self._use_reader(lambda connection: connection.ask(query, values))

    def _use_reader(self, use: Callable[[Connection], T]) -> T:
        process = self._here()
        place = process.reader
        try:
            return self._guarded(
                process, place, lambda found: use(self._current(process, place, found))
            )
        finally:
            self._report()

    def _guarded(self, process: _Process, place: Place, use: Callable[[Connection], T]) -> T:
        """Call *use* with the connection of *place*.

        If the file is damaged, replace it and try again; raise LedgerUnavailable otherwise.
        """
        for last in (False, True):
            try:
                return use(self._connection(process, place))
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, sqlite3.Error) and type(error) not in (
                    sqlite3.DatabaseError,
                    sqlite3.OperationalError,
                ):
                    raise  # a bug, such as a value of the wrong type
                self._drop(place)
                process.suspect = process.suspect or damaged(error)
                if last or not damaged(error):
                    told = error.strerror if isinstance(error, OSError) else str(error)
                    raise self._unavailable(
                        f"{self.path}: {error}", temporary=passes(error), told=told or "unknown"
                    ) from error
        raise AssertionError("unreachable")

    def _unavailable(self, reason: str, *, temporary: bool, told: str = "") -> LedgerUnavailable:
        self._failure = reason
        return LedgerUnavailable(reason, temporary=temporary, told=told)

    def _report(self) -> None:
        while self._file.moved:  # logged only here, as opening holds a lock
            log.error("%s", self._file.moved.pop())

    def _transact(self, process: _Process, jobs: Sequence[Job], connection: Connection) -> None:
        busy, current = max([job.busy for job in jobs]), connection
        connection.begin(busy)
        # checked within the transaction: a damaged file is renamed only while nobody writes
        if len(jobs) > 1 or not jobs[0].anywhere:
            current = self._current(process, process.writer, connection)
        if current is not connection:
            current.begin(busy)
        try:
            for job in jobs:
                job.result = job.work(current)
            current.cursor.execute("COMMIT")
        except BaseException:
            current.plans.clear()
            if current.sql.in_transaction:
                current.cursor.execute("ROLLBACK")
            raise

    def _connection(self, process: _Process, place: Place) -> Connection:
        connection: Connection | None = getattr(place, "connection", None)
        if connection is None or connection.closed:
            if not process.opening.acquire(timeout=self._busy):  # fair, unlike the file's lock
                raise TimeoutError(errno.ETIMEDOUT, "other threads are opening the file")
            try:
                connection = self._file.open(suspect=process.suspect, busy=self._patience() / 3)
                process.suspect = False
            finally:
                process.opening.release()
            place.connection = connection
            process.connections.add(connection)
            if place is process.writer:  # for the settlements of an earlier process
                self.drain()
        return connection

    def _current(self, process: _Process, place: Place, connection: Connection) -> Connection:
        """Return *connection*, or a new one if its file is no longer at the path."""
        if self._file.at_path(connection):
            return connection
        self._drop(place)
        return self._connection(process, place)

    def _drop(self, place: Place) -> None:
        connection: Connection | None = getattr(place, "connection", None)
        place.connection = None
        if connection is not None:
            connection.close()
