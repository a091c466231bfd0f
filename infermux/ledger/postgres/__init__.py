"""The ledger in PostgreSQL, which any number of hosts share.

Leases and periods go by the database's clock. A process has a small pool of connections, opened on
first use and again after a fork, and one that listens for other hosts' commands. Each host has a
spool for settlements that cannot be written now; a call that is written twice counts once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from psycopg import Error, errors

from ...types import CircuitCommand, Rates
from .. import (
    Adjustment,
    AttemptRow,
    Budget,
    BudgetState,
    CallRow,
    Hold,
    Record,
    periods,
)
from ..groups import GroupCommit, Job, fail
from ..holds import MAX_USERS, Refused, Rules, forget_users
from ..periods import ms
from ..spool import Deferred, Spool
from ..sql import Ledger
from ..stores import Ask
from . import copy, prune, schema, settlements
from .budgets import Reservations
from .circuits import Circuits
from .connection import STATEMENT_SECONDS, Away, Database, unavailable
from .rates import OLD_RATES, SharedRates
from .statements import Link, Sql, clean, run

CONNECTIONS = 8  # of a process, by default
COMPANY_SECONDS = 0.004  # that a settlement waits for others to share its transaction
SETTLE_SECONDS = 1.0  # that a settlement waits for others, before it goes to the spool
LONG_SECONDS = 3600.0  # of a command that removes or copies calls
DRAIN_SECONDS = 10.0  # that the spool waits for the database
CLOCK_SECONDS = 10.0  # between two readings of the database's clock
SAME_CLOCK = 0.02  # seconds that two clocks may differ
USERS = "substr(owner, 1, 1) = ? AND held = 0"
_EXPIRED = "SELECT 1 FROM holds WHERE expires_ms <= %s LIMIT 1"
_ATTEMPTS = f"""SELECT {", ".join(f"a.{name}" for name in AttemptRow._fields)}
    FROM attempts AS a JOIN unnest(?::bigint[], ?::text[]) AS w(at_ns, call_id)
    USING (at_ns, call_id) WHERE a.at_ns BETWEEN ? AND ? ORDER BY a.at_ns, a.call_id, a.n"""
T = TypeVar("T")
_inherited: list[_Process] = []  # a forked child must not use or close its parent's connections


class _Process:
    """The connections and the spool of one process."""

    def __init__(self, ledger: PostgresLedger) -> None:
        self.pid = os.getpid()
        self.database = Database(ledger.url, ledger.connections, patient=ledger.patient)
        self.spool = Spool(ledger.spool_path)
        self.group = GroupCommit(partial(ledger._commit, self), COMPANY_SECONDS)
        self.circuits = Circuits(self.database)
        self.synchronized = 0.0


class _Brief:
    """The database with the short deadlines of calls."""

    def __init__(self, database: Database) -> None:
        self._run = database.run

    def snapshot(self, work: Callable[[Ask], T]) -> T:
        return self._run(lambda link: read_only(link, work))

    def write(self, work: Callable[[Any], T]) -> T:
        return self._run(lambda link: transact(link, work))


def read_only(link: Link, work: Callable[[Ask], T]) -> T:
    """Return the result of *work*, whose queries see one state."""
    link.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    found = work(Sql(link).ask)
    link.commit()
    return found


def transact(link: Link, work: Callable[[Any], T]) -> T:
    """Return the result of *work*, run in a transaction."""
    with link.transaction():
        return work(Sql(link))


class PostgresLedger(Ledger):
    """A ledger in the database at *url*, with its spool in the file *spool*.

    A process has at most *connections* connections, for which a *patient* one waits longer than a
    call can. Without a *clock*, time is the database's.
    """

    def __init__(
        self,
        url: str,
        *,
        spool: str | os.PathLike[str] = "infermux.spool",
        connections: int = CONNECTIONS,
        timezone: str = "UTC",
        keep: float | None = None,
        migrate: bool = False,
        patient: bool = False,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(periods.time_zone(timezone), keep, clock or time.time)
        self.url, self.connections = url, connections
        self.spool_path = os.path.abspath(spool)
        self._own_clock, self._migrate, self.patient = clock is not None, migrate, patient
        self._process = _Process(self)

    # -- time --

    def _time(self, at: float) -> float:
        if self._own_clock:
            return at
        database = self._database
        if database.now() is None:
            database.synchronize()
        skew = (database.now() or 0.0) - time.time()
        return at + skew if abs(skew) > SAME_CLOCK else at

    # -- budgets --

    def _reservations(self) -> Reservations:
        return Reservations(self._database, self.zone)

    def _reserve(self, hold: Hold, rules: Rules) -> Hold | Refused:
        found = self._reservations().reserve(hold._replace(about=clean(hold.about)), rules)
        if isinstance(found, Refused):
            self._lose(rules.at)  # writes the rows of lost calls; it frees nothing
        return found

    def _top_up(self, more: int, hold: Hold, rules: Rules) -> Hold | Refused:
        return self._reservations().top_up(more, hold, rules)

    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        """Write a call and its spending, in one transaction with those of other threads."""
        patience = STATEMENT_SECONDS if self.patient else SETTLE_SECONDS
        job = Job(Deferred(record, hold), patience)
        if not self._here().group.run(job):
            raise Away("other settlements take too long")
        if isinstance(job.error, Error):  # to be written later
            raise unavailable(job.error) from None
        if job.error is not None:
            raise job.error
        return bool(job.result)

    def _commit(self, process: _Process, jobs: Sequence[Job]) -> None:
        try:
            results = self._settle_all(process.database, [job.work for job in jobs])
            for job, result in zip(jobs, results, strict=True):
                job.result, job.done = result, True
        except Exception as error:
            fail(jobs, error, partial(self._commit, process))

    def _settle_all(
        self, database: Database, batch: Sequence[Deferred], seconds: float = 0.0
    ) -> list[bool]:
        """Settle a batch; if some are unusual, first the usual ones, then the others one by one."""
        now, zone = self._time(self.clock()), self.zone

        def together(batch: Sequence[Deferred]) -> None:
            work = partial(settlements.settle, batch=batch, now=now, zone=zone)
            database.run(lambda link: work(link, plans=database.plans), seconds)

        try:
            together(batch)
            return [True] * len(batch)
        except errors.DivisionByZero:
            usual, odd = database.run(lambda link: settlements.expected(link, batch, zone), seconds)
        try:
            if usual:
                together([batch[n] for n in usual])
        except errors.DivisionByZero:  # another host has just written one
            usual, odd = [], odd + usual
        found = [n in usual for n in range(len(batch))]
        for n in odd:
            work = partial(settlements.settle_one, settlement=batch[n], now=now, zone=zone)
            found[n] = database.run(work, seconds)
        return found

    def _write_deferred(self, batch: Sequence[Deferred]) -> None:
        self._settle_all(self._database, batch, DRAIN_SECONDS)

    def states(self, budgets: Sequence[Budget], at: float) -> list[BudgetState]:
        now, made = self._time(at), self._reservations()
        return self._database.run(lambda link: made.states(link, budgets, now))

    def adjust(self, budget: Budget, more: int | None, at: float) -> Adjustment:
        self.lose(at)  # what is shown as spent can be forgiven
        return self._reservations().adjust(budget, more, self._time(at))

    def lose(self, now: float) -> None:
        process = self._here()
        if process.database.is_idle:
            return
        if not self._own_clock and time.monotonic() > process.synchronized + CLOCK_SECONDS:
            process.synchronized = time.monotonic()
            process.database.synchronize()
        self._lose(self._time(now), DRAIN_SECONDS)

    def _lose(self, at: float, seconds: float = 0.0) -> None:
        asked = [(_EXPIRED, (ms(at),))]
        [found] = self._database.run(lambda link: run(link, asked))
        work, more = partial(settlements.lose, now=at, zone=self.zone), bool(found)
        while more and self.may_expire():
            more = self._database.run(work, seconds)

    def forget_users(self, now: float, most: int = MAX_USERS) -> None:
        given = "owner", self._time(now), self.zone, most
        self._database.run(lambda link: forget_users(Sql(link), USERS, *given), DRAIN_SECONDS)

    def tidy(self, now: float) -> None:
        if not self._database.is_idle:
            super().tidy(now)
            self._database.run(lambda link: link.execute(OLD_RATES), DRAIN_SECONDS)

    # -- what else hosts share --

    @property
    def _brief(self) -> _Brief:
        return _Brief(self._database)

    def rates(self, local: Rates) -> SharedRates:
        """Return limits per minute over all hosts; *local* is used while the database is away."""
        return SharedRates(lambda: self._database, local)

    def publish(self, action: str, provider: str, model: str) -> int:
        return self._here().circuits.publish(action, provider, model)

    def published(self) -> tuple[CircuitCommand, ...]:
        return self._here().circuits.published()

    # -- reading and writing --

    def snapshot(self, work: Callable[[Ask], T]) -> T:
        return self._database.report(lambda link: read_only(link, work))

    def write(self, work: Callable[[Any], T]) -> T:
        return self._database.report(lambda link: transact(link, work))

    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        return self._database.report(lambda link: Sql(link).ask(query, values))

    def with_attempts(self, ask: Ask, calls: Sequence[CallRow]) -> Iterable[Record]:
        """Yield the records of calls, in order, with their attempts by one query."""
        found: dict[tuple[int, str], list[AttemptRow]] = {}
        starts = [call.at_ns for call in calls] or [0]  # between them: of few partitions
        keys = (starts, [call.id for call in calls], min(starts), max(starts))
        for row in map(AttemptRow._make, ask(_ATTEMPTS, keys) if calls else ()):
            found.setdefault((row.at_ns, row.call_id), []).append(row)
        for call in calls:
            yield Record(call, tuple(found.get((call.at_ns, call.id), ())))

    def run_long(self, work: Callable[[Link], T]) -> T:
        """Return the result of *work*, which may take long."""
        return self._database.run(work, LONG_SECONDS)

    def prune(self, before: float, told: Callable[[int], None] = lambda _: None) -> int:
        """Remove the calls of the months that ended before *before*; return how many calls."""
        return prune.prune(self, self.run_long, before, told)

    def prunes_before(self, before: float) -> float:
        return prune.first_kept(before)

    def problems(self) -> list[str]:
        """Return a message for each sum that differs from its rows, and each missing partition."""

        found = self.run_long(lambda link: schema.missing(link, self.clock()))
        return found + self.run_long(
            lambda link: read_only(link, lambda ask: [*prune.problems(ask)])
        )

    def copied_from(
        self, source: Ledger, name: str, told: Callable[[int], None] = lambda _: None
    ) -> copy.Copied:
        """Copy *source*, which is known as *name*, into this empty ledger, and compare both."""
        return copy.copy(source, name, self.run_long, self, told)

    def _spool(self) -> Spool:
        return self._here().spool

    # -- the database --

    def check(self) -> None:
        database = self._database
        if not database.is_idle:
            database.synchronize()
            return
        if self._migrate:
            database.alone(partial(schema.migrate, now=self.clock(), create=True))
        database.alone(partial(schema.check, writes=not self.patient))

    def migrate(self, *, create: bool, role: str = "") -> list[str]:
        now = self.clock()
        return self._database.alone(
            lambda link: schema.migrate(link, now, create=create, role=role)
        )

    def close(self) -> None:
        process = self._here()
        self.drain(last=True)
        process.circuits.close()
        process.group.alone(process.database.close)

    @property
    def _database(self) -> Database:
        return self._here().database

    def _here(self) -> _Process:
        """Return the connections of this process; after a fork, make new ones."""
        if self._process.pid != os.getpid():
            _inherited.append(self._process)
            self._process = _Process(self)
        return self._process
