"""The ledger: stores every call with its cost, and enforces the budgets of callers.

Money is in whole pico-USD. The most that a call may cost is reserved before it, its real cost
settled after it. Sums are stored by the period's name: no clock can reset a budget twice.

`sql` has the ledger itself, the base of `sqlite` and `postgres`; `spool` holds what cannot be
written now. `stores` has keys, cached answers and files, `reports` and `recent` sum up calls,
`bills` reads vendors' bills.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import InitVar, dataclass, replace
from datetime import UTC, tzinfo
from decimal import Decimal
from importlib import import_module
from typing import Any, NamedTuple

from ..config.settings import KeyConfig, TeamConfig
from ..errors import Unavailable
from ..pricing import PICO
from . import periods
from .periods import PERIODS

LEASE_SECONDS = 900.0  # how long a hold lasts unless it is settled or renewed
MAX_ROWS = 10_000  # calls that one query returns
MAX_PICO = 10**17  # per attempt, 100,000 USD: keeps sums from overflowing
LOST = "lost"  # the status of a call that was never settled
MAX_TOKENS = 10**12  # per kind and attempt, likewise
_UNSET = -(10**18)  # no limit_pico: a budget is then in dollars
TEAM = "\x1f"  # begins the owner of a shared budget: no key has such a name
USER = "\x1e"  # begins the owner of an end user's budget, and parts the key's name from the user


class LedgerUnavailable(Unavailable):
    """The ledger cannot be read or written; `reason` is for logs only.

    *temporary*: the file is locked or its disk is full. *told* is the reason in public health
    checks: it names no path.
    """

    code, elsewhere = "ledger_unavailable", False

    def __init__(self, reason: str, *, temporary: bool = False, told: str = "") -> None:
        super().__init__("the ledger is unavailable")
        self.reason = reason
        self.temporary = temporary
        self.told = told or reason


@dataclass(frozen=True, slots=True)
class Budget:
    """What a caller may spend per day, month or in total: Budget(usd="5.00").

    *then* says what happens once it is spent: "reject", "warn", or a cheaper model's name. Without
    *caller*, it is that of the Caller that has it. *usd* and *per* set *limit_pico* and *period*.

    A budget with *members* is shared by them, and *caller* is its own name; one with a *user* is
    an end user's. Calls also count in the budgets *also*. Days are those of the ledger's time zone.
    """

    caller: str = ""
    limit_pico: int = _UNSET
    period: str = "month"
    then: str = "reject"
    usd: InitVar[str | int | Decimal | None] = None
    per: InitVar[str | None] = None
    members: tuple[str, ...] = ()
    also: tuple[Budget, ...] = ()
    user: str = ""

    def __post_init__(self, usd: str | int | Decimal | None, per: str | None) -> None:
        missing = (usd is None) == (self.limit_pico == _UNSET)
        if missing or isinstance(usd, bool | float) or isinstance(self.limit_pico, str):
            raise TypeError('a budget is dollars as text: Budget(usd="5.00", per="month")')
        if usd is not None:
            object.__setattr__(self, "limit_pico", _pico(usd))
        if per is not None:
            object.__setattr__(self, "period", per)
        if self.period not in PERIODS or self.limit_pico < 0:
            raise ValueError("no such budget: it is 0 or more, per day, month or total")
        if self.also and len({each.owner for each in self.all}) <= len(self.also):
            raise ValueError("no such budgets: a call counts in one budget of each caller or team")

    @property
    def all(self) -> tuple[Budget, ...]:
        """This budget and the others in which its calls count."""
        return (self, *self.also)

    @property
    def hard(self) -> bool:
        """Whether any of them does more than warn."""
        return {each.then for each in self.all} != {"warn"}

    @property
    def owner(self) -> str:
        """The name under which the ledger stores its sums."""
        if self.user:
            return USER + self.caller + USER + self.user
        return TEAM + self.caller if self.members else self.caller

    @property
    def counts_for(self) -> tuple[str, ...]:
        """The callers all of whose calls count in it; none for an end user's."""
        return () if self.user else self.members or (self.caller,)

    def key(self, at: float, zone: tzinfo = UTC) -> str:
        """Return the period's name at *at* (seconds since 1970): 2026-11-23, 2026-11 or total."""
        return periods.names(at, zone)[PERIODS.index(self.period)]

    def start(self, at: float, zone: tzinfo = UTC) -> float:
        """Return when the period that contains *at* starts, in seconds since 1970; total: 0."""
        return periods.start(self.period, at, zone)

    def resets(self, at: float, zone: tzinfo = UTC) -> float | None:
        """Return when the next period starts, in seconds since 1970; None for a total."""
        return periods.end(self.period, at, zone)


def _pico(usd: str | int | Decimal) -> int:
    with suppress(ArithmeticError, ValueError):
        dollars = Decimal(usd)
        if dollars.is_finite() and dollars == round(dollars, 12):
            return int(dollars * PICO)
    raise ValueError(f'usd is dollars as text, such as "5.00", not {usd!r}')


def configured_budget(key: KeyConfig, teams: Iterable[TeamConfig]) -> Budget | None:
    """Return the budget of a key, with those that it shares; None if it has none."""
    own = key.budget
    found = [Budget(key.name, usd=own.usd, per=own.per, then=own.then)] if own else []
    found += [
        Budget(team.name, usd=team.usd, per=team.per, then=team.then, members=team.keys)
        for team in teams
        if key.name in team.keys
    ]
    return replace(found[0], also=tuple(found[1:])) if found else None


class Hold(NamedTuple):
    """An amount of a budget that is reserved for a call."""

    call_id: str
    budget: Budget
    pico: int
    at: float  # when it was reserved, in seconds since 1970; decides the period
    over: bool = False  # it exceeds a budget, but the call was admitted
    warn: tuple[Budget, ...] = ()  # budgets that are exceeded, which is to be logged
    about: str = ""  # the facts for the row of a lost call, read by `lost_record`
    known: tuple[Budget, int, int] | None = None  # the tightest, its limit, and what it has left


class Spent(NamedTuple):
    """What was spent of a budget in a period, and what is still reserved, in pico-USD."""

    spent: int  # since the last reset
    held: int


class BudgetState(NamedTuple):
    """A budget in the period that contains a time; money is in pico-USD."""

    budget: Budget
    key: str  # the period's name
    limit: int  # with what an operator has added in this period
    spent: int  # since an operator's last reset
    held: int
    resets: float | None  # in seconds since 1970

    @property
    def left(self) -> int:
        """What is left; 0 if the budget is exceeded."""
        return max(0, self.limit - self.spent - self.held)


class Adjustment(NamedTuple):
    """An operator's change of a budget in one period."""

    at_ns: int
    name: str
    team: int  # 1: a shared budget
    period: str  # its name
    action: str  # reset or raise
    pico: int  # what was forgiven, or added to the limit


class AttemptRow(NamedTuple):
    """One request to one target; times are milliseconds after the start of the call."""

    at_ns: int  # the start of the call, in nanoseconds since 1970
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
    cost: int | None  # None: not billed, or billed without a known price
    unpriced: int  # 1: billed without a known price
    error_code: str
    final: int  # 1 for the last attempt of its call
    upstream_status: int | None = None  # of the vendor's answer to it
    upstream_request_id: str = ""  # the vendor's own id of it
    cache_saved: int | None = None  # pico-USD that the vendor's cache saved; negative: it cost more
    assumed: int = 0  # 1: sent, and perhaps billed: the cost is estimated
    service_tier: str = ""  # that the vendor billed
    billed: str = ""  # by what else: a JSON object of media, fees, region, other models
    reason: str = ""  # why it failed, in our words
    finish_reason: str = ""  # of the answer, in OpenAI's words


class CallRow(NamedTuple):
    """One call; its tokens and cost (pico-USD) are the sums over its attempts."""

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
    cost: int | None  # None: unpriced; 0: free, or nothing was billed
    cost_source: str
    estimated: int
    latency_ms: int
    first_token_ms: int | None
    attempts: int
    unpriced: int  # attempts that were billed without a known price
    cache_saved: int | None = None  # pico-USD, likewise; None: unknown
    assumed: int = 0  # pico-USD of the cost
    end_user: str = ""  # a digest or a name
    plan: str = ""  # the plan and its reasons, as `planning.kept` writes them


class Record(NamedTuple):
    """The rows that a ledger stores for a call, without its messages."""

    call: CallRow
    attempts: tuple[AttemptRow, ...]


class Backlog(NamedTuple):
    """How many deferred settlements of this process are not in a file."""

    waiting: int  # in memory, because no file can be written
    lost: int  # unreadable in the spool, or still in memory when the process ended


class Total(NamedTuple):
    """The sums over a group of calls; the cost is in pico-USD.

    By model or provider, a call and its error count once, in the group of its last attempt, but
    attempts, their tokens and cost in their own.
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
    estimated: int  # calls with estimated tokens
    cache_saved: int = 0  # pico-USD that the vendors' caches saved, as far as it is known
    assumed: int = 0  # pico-USD of the cost, for what may have been billed


def summed(totals: Iterable[Total], key: tuple[str, ...] = ()) -> Total:
    """Return the sum of *totals*, with the key *key*; all zeros if there are none."""
    zero = Total(key, *[0] * (len(Total._fields) - 1))
    return Total(key, *map(sum, zip(*[total[1:] for total in (zero, *totals)], strict=True)))


def __getattr__(name: str) -> Any:
    if name == "Ledger":  # 0.1 had it here; its module imports this one
        return import_module(".sql", __name__).Ledger
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
