"""Holds: how amounts of budgets are reserved for calls, and what a lost call is charged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from ..errors import BudgetExceeded
from ..pricing import usd
from . import LOST, TEAM, USER, Adjustment, AttemptRow, Budget, CallRow, Hold, Record
from .periods import SLOT, ms
from .stores import Sql

MAX_USERS = 100_000  # end users whose budgets are counted at a time
WARN_MS = 3_600_000  # between two warnings about a budget
MICRO = 10**6  # pico-USD
MAX_SPENT = 9 * 10**18  # pico-USD: the most that a period starts with, or that a hold makes it have
_LOST = f"FROM calls WHERE at_ns = ? AND id = ? AND status = '{LOST}'"
LOST_COST = f"SELECT cost {_LOST}"
_TAKE_BACK = f"DELETE {_LOST} RETURNING caller, cost"
_TAKE_BACK_ATTEMPTS = "DELETE FROM attempts WHERE at_ns = ? AND call_id = ?"
_ADJUSTED = "INSERT INTO adjustments VALUES (?, ?, ?, ?, ?, ?)"


class Rules(NamedTuple):
    """How an amount is reserved at the time *at*."""

    at: float
    expires: float  # when the hold expires
    over: bool  # whether the limit may be exceeded
    expire: Callable[[], bool]  # whether holds whose lease has ended may be freed
    zone: tzinfo


class Refused(NamedTuple):
    """The budget that has too little left, and how much that is."""

    budget: Budget
    left: int


class Taken(NamedTuple):
    """How much of a budget is used, and when a warning about it was last due."""

    pico: int  # spent and held, less what an operator has forgiven and added
    warned_ms: int
    raised: int  # by which the limit is higher in this period


def exceeded(budget: Budget, left: int, pico: int, at: float, zone: tzinfo = UTC) -> BudgetExceeded:
    """Return the error for a call that may cost *pico* of a budget with *left* pico-USD."""
    reset, name = budget.resets(at, zone), f" {budget.caller!r} of" if budget.members else " of"
    name, comma = (" of this end user,", ",") if budget.user else (name, "")
    limit, rest, most = (usd(amount) for amount in (budget.limit_pico, max(0, left), pico))
    per = "in total" if reset is None else f"per {budget.period}"
    message = f"the budget{name} {limit} USD {per}{comma} has {rest} USD left"
    message += f", and this call may cost {most} USD"
    if reset is not None:
        message += f"; it resets at {datetime.fromtimestamp(reset, UTC):%Y-%m-%dT%H:%M:%SZ}"
    error = BudgetExceeded(message, retry_after=None if reset is None else reset - at)
    error.then = budget.then
    error.left = max(0, left)
    error.budget = budget
    return error


def decide(
    hold: Hold,
    amounts: Iterable[tuple[Budget, int]],
    taken: Mapping[str, Taken],
    rules: Rules,
) -> Hold | Refused:
    """Return the hold, with what is exceeded and what is left; or which budget refuses.

    *amounts* are what each budget is to hold more; *taken* is by the budgets' owners.
    """
    over, warn, known = hold.over, list[Budget](), list[tuple[Budget, int, int]]()
    for budget, pico in amounts:
        found, warns = taken[budget.owner], budget.then == "warn"
        known.append(
            (budget, budget.limit_pico + found.raised, budget.limit_pico - found.pico - pico)
        )
        if found.pico + pico <= min(budget.limit_pico, MAX_SPENT):
            continue
        # a cheaper model that one budget has chosen does not lift the limit of another
        exceeds = rules.over and (budget is hold.budget or budget.then != "reject")
        if not (warns or exceeds) or found.pico + pico > MAX_SPENT:
            return Refused(budget, budget.limit_pico - found.pico)
        over = True
        if warns and found.warned_ms <= ms(rules.at) - WARN_MS:
            warn.append(budget)
    return hold._replace(over=over, warn=tuple(warn), known=min(known, key=lambda each: each[2]))


def slots(budget: Budget, at: float, zone: tzinfo) -> tuple[int, int]:
    """Return the first slot of the period that contains *at*, and that of the next one."""
    end = budget.resets(at, zone)
    return int(budget.start(at, zone) // SLOT), int((9e9 if end is None else end) // SLOT)


def expired(id: str, owner: str, pico: int, at_ms: int, about: str) -> Hold:
    """Return a hold, as the ledger stores it, of a call that nobody settled."""
    caller = owner.removeprefix(TEAM).removeprefix(USER).partition(USER)[0]
    return Hold(id, Budget(caller, 0), pico, at_ms / 1000, about=about)


def lost_place(hold: Hold) -> tuple[int, str]:
    """Return the start and id of the row of a call that was never settled."""
    return lost_record(hold).call.at_ns, hold.call_id


def take_back(sql: Sql, at_ns: int, id: str) -> tuple[str, int] | None:
    """Remove the rows of a call that was taken for lost; return its caller and its cost."""
    found: tuple[str, int] | None = sql.execute(_TAKE_BACK, (at_ns, id)).fetchone()
    if found is not None:
        sql.execute(_TAKE_BACK_ATTEMPTS, (at_ns, id))
    return found


def adjusted(
    sql: Sql, budget: Budget, more: int | None, spent: int, at: float, key: str
) -> Adjustment:
    """Write and return an operator's change; *more*: None if what is *spent* is forgiven."""
    action, pico = ("reset", spent) if more is None else ("raise", more)
    team = int(bool(budget.members))
    made = Adjustment(round(at * 1e9), budget.caller, team, key, action, pico)
    sql.execute(_ADJUSTED, made)
    return made


def lost_record(hold: Hold) -> Record:
    """Return the rows of a call that was never settled: at most what it held was spent."""
    try:
        told = json.loads(hold.about)
        at_ns, trace, caller, tags, api, requested, model, provider = told[:8]
        user = "".join(told[8:9])  # older versions stored none
    except ValueError:
        at_ns, trace, caller, tags = int(hold.at * 1000) * 10**6, "", hold.budget.caller, "{}"
        api = requested = model = provider = user = ""
    names = (at_ns, hold.call_id, trace, caller, tags, api, requested, model, model, provider)
    tokens = (None,) * 6
    call = CallRow(*names, "", LOST, LOST, *tokens, hold.pico, "assumed", 1, 0, None, 1, 0)
    call = call._replace(assumed=hold.pico, end_user=user)
    place = (at_ns, hold.call_id, 0, provider, model, model)
    attempt = AttemptRow(*place, 0, None, None, *tokens, hold.pico, 0, LOST, 1, assumed=1)
    return Record(call, (attempt,))
