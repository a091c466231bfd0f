"""What calls cost, and what callers may spend: the values and the interface of every ledger; money
is in whole pico-USD.

A budget is reserved before a call and settled after it. Its period is that of the reservation, by
the UTC clock that is passed in; a period's sum is kept under the period's name, so that a clock
that steps can neither reset it twice nor make it negative.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import NamedTuple

from ..errors import BudgetExceeded, Unavailable
from ..pricing import usd

PERIODS = ("day", "month", "total")
LEASE = 900.0  # seconds after which the hold of a worker that was killed is free again
MAX_ROWS = 10_000  # that one question returns
MAX_PICO = (
    10**17
)  # of one attempt, 100,000 dollars: nothing that a vendor claims can overflow a sum
MAX_TOKENS = 10**12  # of one class in one attempt, for the same reason
_DAY = 86_400  # seconds
_EPOCH = date(1970, 1, 1)


class LedgerUnavailable(Unavailable):
    """The ledger cannot be read or written; `reason` is for logs and health, never for a caller."""

    code = "ledger_unavailable"

    def __init__(self, reason: str) -> None:
        super().__init__("the record of costs is not available")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller may spend in a UTC day, a UTC month or in total, and what happens then: reject,
    warn or a cheaper model.
    """

    caller: str
    limit_pico: int
    period: str = "month"
    then: str = "reject"

    def __post_init__(self) -> None:
        if self.period not in PERIODS or self.limit_pico < 0:
            raise ValueError(f"no such budget: {self.limit_pico} per {self.period!r}")

    def key(self, at: float) -> str:
        """Return the name of the period at *at*: 2026-11-23, 2026-11 or total."""
        return keys(at)[PERIODS.index(self.period)]

    def start(self, at: float) -> float:
        """Return when the period at *at* began, in seconds since 1970; 0 for a total."""
        day = int(at // _DAY)
        if self.period == "month":
            return (day + 1 - (_EPOCH + timedelta(day)).day) * float(_DAY)
        return day * float(_DAY) if self.period == "day" else 0.0

    def resets(self, at: float) -> float | None:
        """Return when the next period begins, in seconds since 1970; None: never."""
        if self.period == "total":
            return None
        return self.start(self.start(at) + (32 if self.period == "month" else 1) * _DAY)


class Hold(NamedTuple):
    """An amount that is reserved for a call."""

    call_id: str
    budget: Budget
    pico: int
    at: float  # when it was reserved, in seconds since 1970: this decides the period
    over: bool = False  # the budget has no room for it, but warns only, or the call is let through


class Spent(NamedTuple):
    """What a period's budget has paid, and what is reserved beside that."""

    spent: int
    held: int


class AttemptRow(NamedTuple):
    """One request to one target; times are milliseconds after the start of the call."""

    at_ns: int  # the start of the call, and its id: both rows of a call have the same
    call_id: str
    n: int
    provider: str
    model: str
    served: str
    started_ms: int
    first_ms: int | None
    ended_ms: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    cache_write_1h_tokens: int | None
    reasoning_tokens: int | None
    cost: int | None  # None: it was not billed, or has no price
    unpriced: int  # 1 if it was billed and has no price
    error_code: str
    final: int  # 1 for the last attempt of its call


class CallRow(NamedTuple):
    """One call; tokens and cost are the sums over its attempts."""

    at_ns: int
    id: str
    trace_id: str
    caller: str
    tags: str  # a JSON object
    api: str
    requested: str
    model: str
    served: str
    provider: str
    strategy: str
    status: str  # "ok" or the HTTP status
    error_code: str
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    cache_write_tokens: int | None
    cache_write_1h_tokens: int | None
    reasoning_tokens: int | None
    cost: int | None  # None: what was billed has no price; 0: nothing was billed, or it is free
    cost_source: str
    estimated: int
    latency_ms: int
    first_token_ms: int | None
    attempts: int
    unpriced: int  # attempts that were billed and have no price
    plan: str = ""  # which targets were to be tried, and why, as `replay.kept` writes it


class Record(NamedTuple):
    """What a ledger keeps of a call: never a word of its content."""

    call: CallRow
    attempts: tuple[AttemptRow, ...]


class Total(NamedTuple):
    """The sums over a group of calls; per model or provider a call counts where it ended, and costs
    where it cost.
    """

    key: tuple[str, ...]
    calls: int
    attempts: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    cache_write_tokens: int
    reasoning_tokens: int
    cost: int
    unpriced: int
    estimated: int  # calls whose tokens, in part or whole, are an estimate


class Ledger(ABC):
    """Keeps what calls cost; every method may be called from any thread, and raises
    LedgerUnavailable.
    """

    @abstractmethod
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
        """Hold *pico* of the budget for *lease* seconds, or raise BudgetExceeded unless it only
        warns or *over* lets it through.
        """

    @abstractmethod
    def top_up(self, hold: Hold, more: int, *, at: float, lease: float = LEASE) -> Hold:
        """Add *more* pico-USD to a hold and renew its lease; if BudgetExceeded is raised, it holds
        what it held.
        """

    @abstractmethod
    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        """Write the call and its attempts, and turn the hold into spending, all or nothing; False
        if that was done before.

        The cost counts in the hold's period; without a hold, in each period of the caller that a
        budget has asked about.
        """

    @abstractmethod
    def spent(self, budget: Budget, at: float) -> Spent:
        """Return what the period at *at* has spent and holds."""

    @abstractmethod
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
        """Return calls, the newest first; *model* as requested, as tried or as served; *status*
        "ok", "error", a number or "4xx".

        *since* and *until* are about the start of a call; *ended*: only those that ended at that
        time or later.
        """

    @abstractmethod
    def call(self, id: str) -> Record | None:
        """Return the call whose id begins with *id*, or None; raise RequestError where that is too
        short, or true of several.
        """

    @abstractmethod
    def totals(
        self,
        *by: str,
        since: float | None = None,
        until: float | None = None,
        caller: str | None = None,
    ) -> list[Total]:
        """Return sums by model, served, provider, attempt_error, caller, tag, tag:NAME, error, day
        or hour, or several of them.

        By time, or else the most expensive first. By tag, a call counts under each of its tags.
        Raises RequestError.
        """

    @abstractmethod
    def problem(self) -> str | None:
        """Return None, or why the ledger cannot be written."""

    @abstractmethod
    def close(self) -> None:
        """Release what is held open; a call that still settles opens it again."""


def keys(at: float) -> tuple[str, str, str]:
    """Return the names of the day, the month and the total at *at*, in seconds since 1970."""
    return _keys(int(at // _DAY))


@lru_cache(maxsize=64)
def _keys(day: int) -> tuple[str, str, str]:
    name = (_EPOCH + timedelta(day)).isoformat()
    return name, name[:7], "total"


def exceeded(budget: Budget, left: int, pico: int, at: float) -> BudgetExceeded:
    """Return the error of a budget that has *left* pico-USD for a call that may cost *pico*."""
    reset = budget.resets(at)
    ends = (
        ""
        if reset is None
        else f"; it starts afresh at {datetime.fromtimestamp(reset, UTC):%Y-%m-%dT%H:%M:%SZ}"
    )
    per = "in total" if reset is None else f"per {budget.period}"
    return BudgetExceeded(
        f"the budget of {usd(budget.limit_pico)} USD {per} has {usd(max(0, left))} USD left, and this call may cost {usd(pico)} USD{ends}",
        retry_after=None if reset is None else reset - at,
    )
