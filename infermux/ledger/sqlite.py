"""The ledger in one SQLite file that the workers of a host share.

WAL with synchronous=NORMAL: what was settled survives the death of any process, for it is in the
system's cache; only a power cut can take the last calls since a checkpoint, whole calls with their
spending, and never damages the file. FULL would cost two fsyncs a call. A process has one
connection for writing, and each thread its own for reading; they are opened on first use there,
hence after a fork.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TypeVar, cast

from ..errors import RequestError, shown
from ..types import Clock
from . import (
    LEASE,
    MAX_PICO,
    AttemptRow,
    Budget,
    CallRow,
    Hold,
    Ledger,
    LedgerUnavailable,
    Record,
    Spent,
    Total,
    exceeded,
)
from . import queries as q
from .connection import WAIT, Connection, create, damaged, file_of, locked, prepare, rescued, size
from .turns import Job, Process, give_way
from .usual import Usual, reservation, settlement, together

log = logging.getLogger("infermux")
T = TypeVar("T")
_PLANS = 4096  # digests that are remembered
_FILES = ("-wal", "-shm", "")


class SQLiteLedger(Ledger):
    """A ledger at *path*, made there with mode 0600 if there is none; it waits *busy* seconds for
    others that write.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, busy: float = 5.0, clock: Clock = time.time
    ) -> None:
        self.path = os.path.abspath(path)
        self._busy = busy
        self._clock = clock  # names a file that is moved aside, nothing else
        self._process = Process()
        self._failure: str | None = None
        self._notes: list[str] = []

    # -- budgets -----------------------------------------------------------------------------------

    def reserve(
        self,
        budget: Budget,
        pico: int,
        *,
        call_id: str,
        at: float,
        lease: float = LEASE,
        over: bool = False,
    ) -> Hold:
        """Hold *pico*: one conditional UPDATE decides."""
        pico = _amount(pico)
        over = over or budget.then == "warn"

        def work(sql: q.SQL) -> tuple[bool, int | None]:
            beyond, left = q.take(sql, budget, pico, of=at, at=at, over=over)
            if left is None:
                q.hold(sql, Hold(call_id, budget, pico, at), at + lease)
            return beyond, left

        held, most = Hold(call_id, budget, pico, at), min(budget.limit_pico, q.LARGEST)
        beyond, left = self._write(work, check=False, usual=reservation(held, most, at + lease))
        if left is not None:
            raise exceeded(budget, left, pico, at)
        return held._replace(over=beyond) if beyond else held

    def top_up(self, hold: Hold, more: int, *, at: float, lease: float = LEASE) -> Hold:
        """Add to a hold; one whose lease has run out is taken anew, as a whole."""
        more, budget = _amount(more), hold.budget
        new = hold._replace(pico=hold.pico + more)

        def work(sql: q.SQL) -> tuple[bool, int | None]:
            alive = sql.execute(q.RENEW, (q.ms(at + lease), *q.place(hold))).rowcount == 1
            beyond, left = q.take(
                sql,
                budget,
                more if alive else new.pico,
                of=hold.at,
                at=at,
                over=hold.over or budget.then == "warn",
            )
            if left is None and alive:
                sql.execute(q.RAISE, (more, *q.place(hold)))
            elif left is None:
                q.hold(sql, new, at + lease)
            return beyond, left

        beyond, left = self._write(work, check=False)
        if left is not None:
            raise exceeded(budget, left, more, at)
        return new._replace(over=hold.over or beyond)

    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        """Write the call and its attempts, and turn the hold into spending, in one transaction."""
        process, simple = self._here(), settlement(record, hold)
        known = process.plans
        done = self._write(lambda sql: q.settle(sql, record, hold, process.plans), usual=simple)
        digest = simple.digest if simple else q.digest_of(record.call.plan.partition("\n")[0])
        if digest not in known and len(known) < _PLANS:
            known.add(digest)
        return done

    def spent(self, budget: Budget, at: float) -> Spent:
        """Return what the period has spent and holds; a hold whose lease has run out no longer
        counts.
        """
        found = self._read(q.SPENT, (q.ms(at), budget.caller, budget.key(at)))
        return Spent(
            *(
                found[0]
                if found
                else (self._read(q.SPENT_BEFORE, (budget.caller, *q.span(budget, at)))[0][0], 0)
            )
        )

    # -- reports -----------------------------------------------------------------------------------

    def rows(
        self,
        *,
        model: str | None = None,
        status: str | None = None,
        caller: str | None = None,
        since: float | None = None,
        until: float | None = None,
        ended: float | None = None,
        limit: int = 50,
    ) -> list[Record]:
        """Return calls with their attempts, the newest first."""
        return self._records(
            *q.rows(
                model=model,
                status=status,
                caller=caller,
                since=since,
                until=until,
                ended=ended,
                limit=limit,
            )
        )

    def call(self, id: str) -> Record | None:
        """Return one call with its attempts."""
        found = self._records(*q.call(id))
        if len(found) > 1:
            raise RequestError(f"several calls have an id that begins with {shown(id)}", param="id")
        return found[0] if found else None

    def _records(self, query: str, values: Sequence[str | int]) -> list[Record]:
        calls = map(CallRow._make, self._read(query, values))
        return [
            Record(
                call, tuple(map(AttemptRow._make, self._read(q.ATTEMPTS, (call.at_ns, call.id))))
            )
            for call in calls
        ]

    def totals(
        self,
        *by: str,
        since: float | None = None,
        until: float | None = None,
        caller: str | None = None,
    ) -> list[Total]:
        """Return sums over groups of calls."""
        return q.merged(by, self._read(*q.totals(by, since=since, until=until, caller=caller)))

    # -- the file ----------------------------------------------------------------------------------

    def problem(self) -> str | None:
        """Return None, or why not; after a failure it writes, for nobody else will while the
        service counts as unready.
        """
        try:
            if self._failure is None:
                self._read("PRAGMA user_version", ())
            else:
                self._write(lambda sql: sql.execute(f"PRAGMA user_version = {len(q.MIGRATIONS)}"))
        except LedgerUnavailable as error:
            return error.reason
        return None

    def close(self) -> None:
        """Close every connection of this process, as soon as each is idle."""
        process = self._here()
        with process.writing:
            for connection in list(process.connections):
                connection.close()

    def _here(self) -> Process:
        """Return what belongs to this process; two threads that are first after a fork may each
        make one, which only costs time.
        """
        if self._process.pid != os.getpid():
            self._process = Process()
        return self._process

    def _write(
        self, work: Callable[[q.SQL], T], *, check: bool = True, usual: Usual | None = None
    ) -> T:
        """Do *work* in a transaction of its own, or the *usual* thing in one statement, where that
        does.

        *check* that the file is in its place: a reservation leaves that to its settling.
        """
        process, job = self._here(), Job(work, check, usual)
        if not process.leads(job) and not process.waited(job, self._busy):
            raise self._unavailable("other threads have been writing for too long")
        if not job.done:
            self._lead(process, job)
        if job.error is not None:
            raise job.error
        return cast(T, job.result)

    def _lead(self, process: Process, job: Job) -> None:
        """Do the job and whatever else waits, then let another thread lead.

        One thread at a time writes: else they would queue in SQLite, which polls and is not fair.
        Those whose job it has done need no lock to go on: that each had to get it in turn took
        seconds with hundreds of threads. Before it begins, whoever can run does: what they bring
        costs far less here than in a transaction of its own, and where nobody runs, this is a
        microsecond.
        """
        give_way()
        jobs = process.with_others(job)
        try:
            with process.writing:
                if len(jobs) > 1 or not self._simply(process, job):
                    self._together(process, jobs)
        finally:
            process.hand_over(jobs, self._unavailable)
            if self._notes:
                self._tell()

    def _simply(self, process: Process, job: Job) -> bool:
        """Do the usual thing; return False where it is not to be done so, or not now: the long way
        then waits, or tells why.
        """
        connection: Connection | None = getattr(process.shared, "connection", None)
        if (
            job.usual is None
            or connection is None
            or connection.closed
            or (job.check and connection.file != file_of(self.path))
        ):
            return False
        try:
            job.done = job.usual.done(connection.cursor, process.plans)
        except (sqlite3.OperationalError, sqlite3.DatabaseError):
            return False
        if job.done:
            job.result, self._failure = job.usual.result, None
        return job.done

    def _together(self, process: Process, jobs: Sequence[Job]) -> None:
        """Do what waits in one transaction, which costs little more than one job alone; what fails
        there is done one by one.
        """
        try:
            results = self._guarded(
                process,
                process.shared,
                lambda connection: self._transact(process, connection, jobs),
            )
        except Exception as error:
            if len(jobs) > 1:
                for job in jobs:
                    self._together(process, [job])
            else:
                jobs[0].error, jobs[0].done = error, True
            return
        self._failure = None
        for job, result in zip(jobs, results, strict=True):
            job.result, job.done = result, True

    def _read(self, query: str, values: Sequence[str | int]) -> list[Any]:
        """Return the answer to one question."""
        process = self._here()
        try:
            mine = process.mine
            return self._guarded(
                process,
                mine,
                lambda connection: self._at_path(process, mine, connection).ask(query, values),
            )
        finally:
            self._tell()

    def _guarded(self, process: Process, place: Any, use: Callable[[Connection], T]) -> T:
        """Use the connection of a place; a damaged file is moved aside and the use repeated, any
        other failure is LedgerUnavailable.
        """
        for last in (False, True):
            try:
                return use(self._connection(process, place))
            except (sqlite3.Error, OSError) as error:
                if isinstance(error, sqlite3.Error) and type(error) not in (
                    sqlite3.DatabaseError,
                    sqlite3.OperationalError,
                ):
                    raise  # a mistake of ours, such as a value of the wrong type
                process.drop(place, suspect=damaged(error))
                if last or not damaged(error):
                    raise self._unavailable(f"{self.path}: {error}") from error
        raise AssertionError("unreachable")

    def _unavailable(self, reason: str) -> LedgerUnavailable:
        self._failure = reason
        return LedgerUnavailable(reason)

    def _tell(self) -> None:
        while self._notes:  # written outside the lock
            log.error("%s", self._notes.pop())

    def _transact(self, process: Process, connection: Connection, jobs: Sequence[Job]) -> list[Any]:
        self._begin(connection.sql)
        current = (
            self._at_path(process, process.shared, connection)
            if any(job.check for job in jobs)
            else connection
        )
        if current is not connection:
            self._begin(current.sql)
        sql = current.sql
        try:
            if len(jobs) > 1 and together(
                current.cursor, [job.usual for job in jobs], process.plans
            ):
                results: list[Any] = [True] * len(jobs)
            else:
                results = [job.run(current.cursor, process.plans) for job in jobs]
            current.cursor.execute("COMMIT")
            return results
        except BaseException:
            if sql.in_transaction:
                sql.execute("ROLLBACK")
            raise

    def _begin(self, sql: sqlite3.Connection) -> None:
        """Begin to write, or raise after `busy` seconds; a deferred transaction would fail at once
        where it turns to writing.
        """
        for tries in range(int(self._busy / WAIT), -1, -1):
            try:
                sql.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or not tries:
                    raise

    def _connection(self, process: Process, place: Any) -> Connection:
        """Return the connection of a place."""
        connection: Connection | None = getattr(place, "connection", None)
        if connection is None or connection.closed:
            connection = self._open(suspect=process.suspect)
            process.plans = set()
            process.suspect = False
            place.connection = connection
            process.connections.add(connection)
        return connection

    def _at_path(self, process: Process, place: Any, connection: Connection) -> Connection:
        """Return *connection*, or a new one if its file was moved or removed meanwhile: what is
        written there would be lost.
        """
        if connection.file == file_of(self.path):
            return connection
        process.drop(place)
        return self._connection(process, place)

    def _open(self, *, suspect: bool) -> Connection:
        """Open the file, making, migrating or moving it aside first; one thread on the host does so
        at a time.
        """
        saved: list[Any] = []
        with locked(f"{self.path}.lock"):
            if not size(self.path) and size(
                f"{self.path}-wal"
            ):  # SQLite would delete what the -wal still holds
                self._move_aside("the file has lost its content")
            while True:
                create(self.path)
                sql = sqlite3.connect(
                    self.path, timeout=self._busy, isolation_level=None, check_same_thread=False
                )
                try:
                    prepare(sql, saved, suspect=suspect)
                    return Connection(sql, file_of(self.path))
                except BaseException as error:
                    if not damaged(error):
                        sql.close()
                        raise
                    saved, suspect = rescued(sql), False
                    self._move_aside(str(error))
                    # only now: SQLite sees that its file has moved, and leaves the new one's -wal
                    # alone
                    sql.close()

    def _move_aside(self, reason: str) -> None:
        """Rename the file and what belongs to it; the file itself last, so that no new one ever
        meets an old -wal.
        """
        aside = stem = (
            f"{self.path}.corrupt-{datetime.fromtimestamp(self._clock(), UTC):%Y%m%dT%H%M%SZ}"
        )
        n = 1
        while any(os.path.lexists(aside + suffix) for suffix in _FILES):
            aside, n = f"{stem}-{n}", n + 1
        for suffix in _FILES:
            with suppress(FileNotFoundError):
                os.rename(self.path + suffix, aside + suffix)
        self._notes.append(
            f"the ledger {self.path} is damaged ({reason}): it is kept as {aside}, and a new one begins"
        )


def _amount(pico: int) -> int:
    if pico < 0:
        raise ValueError(f"{pico} pico-USD cannot be held")
    return min(pico, MAX_PICO)
