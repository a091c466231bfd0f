"""The ledger: stores every call with its cost, and enforces the budgets of callers.

Money is in whole pico-USD. The most that a call may cost is reserved before it, its real cost
settled after it. Sums are stored by the period's name: no clock can reset a budget twice.

`sql` is the base of `sqlite` and `postgres`, `spool` holds what cannot be written now. `stores` has
keys, cached answers and files, `reports` and `recent` sum up calls, `bills` reads vendors' bills.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, replace
from datetime import UTC, tzinfo
from decimal import Decimal
from typing import NamedTuple

from ..config.settings import KeyConfig, TeamConfig
from ..errors import Unavailable
from ..pricing import PICO
from ..types import CircuitCommand, Rates
from . import periods
from .periods import PERIODS
from .stores.alerts import AlertLog
from .stores.answers import AnswerStore
from .stores.keys import KeyStore

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

    code = "ledger_unavailable"

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
    try:
        dollars = Decimal(usd)
    except (ArithmeticError, ValueError):
        raise ValueError(f'usd is dollars as text, such as "5.00", not {usd!r}') from None
    if not dollars.is_finite() or dollars != round(dollars, 12):
        raise ValueError(f'usd is dollars as text, such as "5.00", not {usd!r}')
    return int(dollars * PICO)


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


class Ledger(ABC):
    """Stores calls, costs and budgets. Methods are thread-safe and raise LedgerUnavailable."""

    zone: tzinfo = UTC  # of the periods of budgets and reports

    @abstractmethod
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

    @abstractmethod
    def top_up(self, hold: Hold, more: int, *, at: float, lease: float = LEASE_SECONDS) -> Hold:
        """Return the hold with *more* pico-USD and a renewed lease; raise BudgetExceeded."""

    @abstractmethod
    def settle(self, record: Record, hold: Hold | None = None) -> bool:
        """Store a call, release its hold and add its cost to the budget, in one transaction.

        Return False if the call was stored before. The cost counts in the hold's period; without a
        hold, in each current period for which the ledger has a sum of the caller.
        """

    @abstractmethod
    def defer(self, record: Record, hold: Hold | None = None) -> bool:
        """Queue a settlement that cannot be written now; return False if it is lost."""

    @abstractmethod
    def drain(self, *, last: bool = False) -> None:
        """Write deferred settlements in the background; if the process ends (*last*), now."""

    @abstractmethod
    def backlog(self) -> Backlog:
        """Return how many deferred settlements of this process are not in a file."""

    @abstractmethod
    def spooled(self) -> int:
        """Return how many deferred settlements of all processes are in a file."""

    @abstractmethod
    def spent(self, budget: Budget, at: float) -> Spent:
        """Return what is spent and reserved in the period that contains *at*."""

    @abstractmethod
    def states(self, budgets: Sequence[Budget], at: float) -> list[BudgetState]:
        """Return the state of each budget at one moment, in the period that contains *at*."""

    @abstractmethod
    def adjust(self, budget: Budget, more: int | None, at: float) -> Adjustment:
        """Add *more* to a budget's limit in the current period, or forgive what is spent (None)."""

    @abstractmethod
    def adjustments(self, limit: int = 50) -> list[Adjustment]:
        """Return the last changes of budgets by operators, newest first."""

    @abstractmethod
    def keys(self) -> KeyStore:
        """Return the store of keys that are created at run time."""

    @abstractmethod
    def answers(self) -> AnswerStore:
        """Return the store of cached answers."""

    @abstractmethod
    def alerts(self) -> AlertLog:
        """Return the store of the times when alerts were sent."""

    @abstractmethod
    def maintain(self, now: float) -> None:
        """Start what is due in the background: daily sums, and the removal of old calls."""

    def rates(self, local: Rates) -> Rates:
        """Return limits per minute over the ledger's hosts; *local* are those of this host."""
        return local

    def publish(self, action: str, provider: str, model: str) -> int:
        """Send an operator's command to all hosts of this ledger; return its number, or 0."""
        return 0

    def published(self) -> Sequence[CircuitCommand]:
        """Return the last command for each provider or model of all hosts, in order."""
        return ()

    @abstractmethod
    def rows(
        self,
        *,
        model: str | None = None,
        status: str | None = None,
        caller: str | None = None,
        users: Sequence[str] | None = None,
        since: float | None = None,
        until: float | None = None,
        ended: float | None = None,
        limit: int = 50,
    ) -> list[Record]:
        """Return at most *limit* calls, newest first.

        *model* is the requested, tried or served one. The end user is one of *users*. *status* is
        "ok", "error", an HTTP status or a class such as "4xx". Calls start from *since* to before
        *until*, and end from *ended* on.
        """

    @abstractmethod
    def call(self, id: str) -> Record | None:
        """Return the call whose id starts with *id*; raise RequestError if short or ambiguous."""

    @abstractmethod
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
        """Close files and connections; a later settlement opens them again."""
