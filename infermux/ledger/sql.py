"""The ledger, as the base of its two forms: budgets, settlements, the spool and reports.

Statements are portable SQL with `?` for values; a backend may translate them.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from datetime import tzinfo
from typing import Any, TypeVar

from ..errors import RequestError, shown
from ..types import CircuitCommand, Clock, Rates
from . import (
    LEASE_SECONDS,
    MAX_PICO,
    Adjustment,
    AttemptRow,
    Backlog,
    Budget,
    BudgetState,
    CallRow,
    Hold,
    LedgerUnavailable,
    Record,
    Spent,
    Total,
    queries,
    rollups,
)
from .holds import MAX_USERS, Refused, Rules, exceeded
from .spool import Deferred, Spool
from .stores import Ask, Database, Sql
from .stores.alerts import AlertLog
from .stores.answers import AnswerStore
from .stores.keys import KeyStore
from .stores.objects import Objects

T = TypeVar("T")
ADJUSTMENTS = "SELECT * FROM adjustments ORDER BY at_ns DESC LIMIT ?"


class Ledger(ABC):
    """Stores calls, costs and budgets in a database, with a spool in a file of this host.

    Methods are thread-safe and raise LedgerUnavailable. Calls are kept for *keep* seconds. *zone*
    is that of the periods of budgets and reports.
    """

    def __init__(self, zone: tzinfo, keep: float | None, clock: Clock = time.time) -> None:
        self.zone, self.keep, self.clock = zone, keep, clock
        self._maintenance = rollups.Maintenance(self, keep)

    # -- implemented by each database --

    @abstractmethod
    def snapshot(self, work: Callable[[Ask], T]) -> T:
        """Return the result of *work*, whose queries see one state."""

    @abstractmethod
    def write(self, work: Callable[[Sql], T]) -> T:
        """Return the result of *work*, run in a transaction."""

    @abstractmethod
    def _read(self, query: str, values: Sequence[Any]) -> list[Any]:
        """Return the rows of a query."""

    @abstractmethod
    def _reserve(self, hold: Hold, rules: Rules) -> Hold | Refused:
        """Reserve a hold in all of its budgets, or in none."""

    @abstractmethod
    def _top_up(self, more: int, hold: Hold, rules: Rules) -> Hold | Refused:
        """Add *more* to a hold; if its lease has expired, reserve the whole amount again."""

    @abstractmethod
    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        """Store a call, release its hold and add its cost to the budget, in one transaction.

        Return False if the call was stored before. The cost counts in the hold's period; without a
        hold, in each current period for which the ledger has a sum of the caller.
        """

    @abstractmethod
    def states(self, budgets: Sequence[Budget], at: float) -> list[BudgetState]:
        """Return the state of each budget at one moment, in the period that contains *at*."""

    @abstractmethod
    def adjust(self, budget: Budget, more: int | None, at: float) -> Adjustment:
        """Add *more* to a budget's limit in the current period, or forgive what is spent (None)."""

    @abstractmethod
    def _spool(self) -> Spool:
        """Return the spool of this process."""

    @abstractmethod
    def _write_deferred(self, batch: Sequence[Deferred]) -> None:
        """Write settlements of the spool."""

    @abstractmethod
    def lose(self, now: float) -> None:
        """Turn the holds of calls that nobody settled in time into spending."""

    @abstractmethod
    def forget_users(self, now: float, most: int = MAX_USERS) -> None:
        """Remove end users' budgets of past periods; keep at most *most*, the most spent."""

    def tidy(self, now: float) -> None:
        """Remove rows whose number depends on the texts of requests."""
        self.forget_users(now)
        self.answers().forget(now)

    @abstractmethod
    def prune(self, before: float, told: Callable[[int], None] = lambda _: None) -> int:
        """Remove calls that started before *before*; return how many. Their sums stay."""

    @abstractmethod
    def prunes_before(self, before: float) -> float:
        """Return the time before which `prune` removes calls: the start of a day or month."""

    def migrate(self, *, create: bool, role: str = "") -> list[str]:
        """Create the tables (*create*) or migrate them; return a message for each change."""
        self.check()  # a file is created and migrated when it is opened
        return []

    @abstractmethod
    def problems(self) -> list[str]:
        """Return a message for each error in the data, such as a sum that differs from its rows."""

    @abstractmethod
    def check(self) -> None:
        """Raise LedgerUnavailable if the ledger cannot be written."""

    def problem(self) -> str | None:
        """Return why the ledger cannot be written, or None if it can."""
        try:
            self.check()
        except LedgerUnavailable as error:
            return error.reason
        return None

    @abstractmethod
    def close(self) -> None:
        """Write the spool, and close files and connections; a later settlement opens them again."""

    # -- what several hosts share --

    def rates(self, local: Rates) -> Rates:
        """Return limits per minute over the ledger's hosts; *local* are those of this host."""
        return local

    def publish(self, action: str, provider: str, model: str) -> int:
        """Send an operator's command to all hosts of this ledger; return its number, or 0."""
        return 0

    def published(self) -> Sequence[CircuitCommand]:
        """Return the last command for each provider or model of all hosts, in order."""
        return ()

    # -- budgets --

    def reserve(
        self,
        budget: Budget,
        pico: int,
        *,
        call_id: str,
        at: float,
        lease: float = LEASE_SECONDS,
        over: bool = False,
        about: str = "",
    ) -> Hold:
        """Reserve *pico* pico-USD of the budget, and of those in `also`, for *lease* seconds.

        If the call is not settled by then, the amount counts as spent, with *about* in its row.

        Raise BudgetExceeded if one has less left, unless it only warns or *over* is true; *over*
        does not apply to one in `also` that rejects.
        """
        hold = Hold(call_id, budget, amount(pico), self._time(at), about=about)
        found = self._reserve(hold, self._rules(hold.at, lease, over))
        return self._held(found, hold.pico, hold.at)

    def top_up(self, hold: Hold, more: int, *, at: float, lease: float = LEASE_SECONDS) -> Hold:
        """Return the hold with *more* pico-USD and a renewed lease; raise BudgetExceeded."""
        more, now = amount(more), self._time(at)
        found = self._top_up(more, hold, self._rules(now, lease, hold.over))
        return self._held(found, more, now)

    def _time(self, at: float) -> float:
        """Return what the ledger's clock says at *at*, a time of this host's clock."""
        return at

    def _rules(self, at: float, lease: float, over: bool) -> Rules:
        return Rules(at, at + lease, over, self.may_expire, self.zone)

    def _held(self, found: Hold | Refused, pico: int, at: float) -> Hold:
        if isinstance(found, Refused):
            raise exceeded(found, pico, at, self.zone)
        return found

    # -- the spool --

    def defer(self, record: Record, hold: Hold | None = None) -> bool:
        """Queue a settlement that cannot be written now; return False if it is lost."""
        kept = self._spool().add(Deferred(record, hold))
        self.drain()
        return kept

    def drain(self, *, last: bool = False) -> None:
        """Write deferred settlements in the background; if the process ends (*last*), now."""
        if last:
            self._spool().close(self._write_deferred)
        else:
            self._spool().drain_later(self._write_deferred)

    def backlog(self) -> Backlog:
        """Return how many deferred settlements of this process are not in a file."""
        spool = self._spool()
        return Backlog(len(spool.waiting), spool.lost)

    def spooled(self) -> int:
        """Return how many deferred settlements of all processes are in a file."""
        return self._spool().lines()

    def may_expire(self) -> bool:
        """Whether holds may expire: not while their calls may be in the spool."""
        return self._spool().is_empty()

    # -- what calls read and write beside their budgets --

    @property
    def _brief(self) -> Database:
        """The database as calls use it, which cannot wait for long."""
        return self

    def keys(self) -> KeyStore:
        return KeyStore(self._brief)

    def answers(self) -> AnswerStore:
        return AnswerStore(self._brief)

    def objects(self) -> Objects:
        return Objects(self._brief)

    # -- reports --

    def spent(self, budget: Budget, at: float) -> Spent:
        """Return what is spent and reserved in the period that contains *at*."""
        [found] = self.states([budget], at)
        return Spent(found.spent, found.held)

    def adjustments(self, limit: int = 50) -> list[Adjustment]:
        """Return the last changes of budgets by operators, newest first."""
        return list(map(Adjustment._make, self._read(ADJUSTMENTS, (limit,))))

    def alerts(self) -> AlertLog:
        return AlertLog(self)

    def rows(self, **chosen: Any) -> list[Record]:
        """Return the calls that are chosen as `queries.rows` says, newest first."""
        return self._records(self._read, *queries.rows(**chosen))

    def call(self, id: str) -> Record | None:
        """Return the call whose id starts with *id*; raise RequestError if short or ambiguous."""
        found = self._records(self._read, *queries.call(id))
        if len(found) > 1:
            raise RequestError(f"several call ids begin with {shown(id)}", param="id")
        return found[0] if found else None

    def _records(self, ask: Ask, query: str, values: Sequence[str | int]) -> list[Record]:
        return list(self.with_attempts(ask, list(map(CallRow._make, ask(query, values)))))

    def with_attempts(self, ask: Ask, calls: Sequence[CallRow]) -> Iterable[Record]:
        for call in calls:
            attempts = ask(queries.ATTEMPTS, (call.at_ns, call.id))
            yield Record(call, tuple(map(AttemptRow._make, attempts)))

    def page(self, last: tuple[int, str], until: int) -> list[Record]:
        """Return the next calls after *last* (start and id) that start before *until* (ns)."""
        return self.snapshot(lambda ask: self._records(ask, *queries.page(last, until)))

    def totals(
        self,
        *by: str,
        since: float | None = None,
        until: float | None = None,
        caller: str | None = None,
        zone: tzinfo | None = None,
    ) -> list[Total]:
        """Return sums grouped by one or more dimensions; raise RequestError for an unknown one.

        Dimensions: model, served, provider, attempt_error, caller, user, tag, tag:NAME, error, day,
        hour.
        The order is by time if *by* begins with day or hour, else by falling cost. By tag, a call
        counts for each of its tags. Days and hours are those of *zone*, else of the ledger's.
        """
        question = rollups.Question.of(by, since, until, caller, zone or self.zone)
        return rollups.report(self, question, self.clock())

    def maintain(self, now: float) -> None:
        """Start what is due in the background: daily sums, and the removal of old calls."""
        self._maintenance.start(now)


def amount(pico: int) -> int:
    """Return an amount that can be held, at most MAX_PICO; raise ValueError if it is negative."""
    if pico < 0:
        raise ValueError(f"{pico} pico-USD cannot be held")
    return min(pico, MAX_PICO)
