"""Holds: how amounts of budgets are reserved for calls, and what a lost call is charged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from ..errors import BudgetExceeded
from ..pricing import usd
from . import LOST, TEAM, USER, Adjustment, AttemptRow, Budget, CallRow, Hold, Record
from .periods import DAY, MAX_INTEGER, SLOT, ms, names
from .stores import Sql

MAX_USERS = 100_000  # end users whose budgets are counted at a time
WARN_MS = 3_600_000  # between two warnings about a budget
MICRO = 10**6  # pico-USD
MAX_SPENT = 9 * 10**18  # pico-USD: the most that a period starts with, or that a hold makes it have
_LOST = f"FROM calls WHERE at_ns = ? AND id = ? AND status = '{LOST}'"
LOST_COST = f"SELECT cost {_LOST}"
_TAKE_BACK = f"DELETE {_LOST} RETURNING caller, cost"
_TAKE_BACK_ATTEMPTS = "DELETE FROM attempts WHERE at_ns = ? AND call_id = ?"
_OLD_USERS = """DELETE FROM budgets WHERE {}
    AND (length(period) = 10 AND period < ? OR length(period) = 7 AND period < ?)"""
_LEAST_USERS = f"""DELETE FROM budgets WHERE {{0}} AND ({{1}}, period) IN (SELECT {{1}}, period
    FROM budgets WHERE {{0}} ORDER BY spent DESC, {{1}} DESC LIMIT {MAX_INTEGER} OFFSET ?)"""
_ADD_ADJUSTMENT = "INSERT INTO adjustments VALUES (?, ?, ?, ?, ?, ?)"
_ADJUSTED = "SELECT * FROM adjustments WHERE at_ns = ? AND name = ? AND team = ?"
_LOCK_SPENT = "UPDATE budgets SET waived = waived WHERE {} RETURNING spent - waived"
_RESET = "UPDATE budgets SET waived = spent WHERE {}"
_RAISE = f"""UPDATE budgets SET raised = raised + CASE WHEN raised > {MAX_SPENT} - ?
    THEN {MAX_SPENT} - raised ELSE ? END WHERE {{}}"""


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
    limit: int  # in this period
    left: int


class Taken(NamedTuple):
    """How much of a budget is used, and when a warning about it was last due."""

    pico: int  # spent and held, less what an operator has forgiven and added
    warned_ms: int
    raised: int  # by which the limit is higher in this period


def exceeded(found: Refused, pico: int, at: float, zone: tzinfo) -> BudgetExceeded:
    """Return the error for a call that may cost *pico* pico-USD."""
    budget, left = found.budget, max(0, found.left)
    reset, name = budget.resets(at, zone), f" {budget.caller!r} of" if budget.members else " of"
    name, comma = (" of this end user,", ",") if budget.user else (name, "")
    limit, rest, most = map(usd, (found.limit, left, pico))
    per = "in total" if reset is None else f"per {budget.period}"
    message = f"the budget{name} {limit} USD {per}{comma} has {rest} USD left"
    message += f", and this call may cost {most} USD"
    if reset is not None:
        message += f"; it resets at {datetime.fromtimestamp(reset, UTC):%Y-%m-%dT%H:%M:%SZ}"
    error = BudgetExceeded(message, retry_after=None if reset is None else reset - at)
    error.then = budget.then
    error.left = left
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
    over, warn = hold.over, list[Budget]()
    known: tuple[Budget, int, int] | None = None
    for budget, pico in amounts:
        found, warns, limit = taken[budget.owner], budget.then == "warn", budget.limit_pico
        left = limit - found.pico - pico
        if known is None or left < known[2]:
            known = budget, limit + found.raised, left
        if found.pico + pico <= min(limit, MAX_SPENT):
            continue
        # a cheaper model that one budget has chosen does not lift the limit of another
        exceeds = rules.over and (budget is hold.budget or budget.then != "reject")
        if not (warns or exceeds) or found.pico + pico > MAX_SPENT:
            return Refused(budget, limit + found.raised, limit - found.pico)
        over = True
        if warns and found.warned_ms <= ms(rules.at) - WARN_MS:
            warn.append(budget)
    return hold._replace(over=over, warn=tuple(warn), known=known)


def slots(budget: Budget, at: float, zone: tzinfo) -> tuple[int, int]:
    """Return the first slot of the period that contains *at*, and that of the next one."""
    end = budget.resets(at, zone)
    return int(budget.start(at, zone) // SLOT), int((9e9 if end is None else end) // SLOT)


def expired(id: str, owner: str, pico: int, at_ms: int, about: str) -> Hold:
    """Return a hold, as the ledger stores it, of a call that nobody settled."""
    caller = owner.removeprefix(TEAM).removeprefix(USER).partition(USER)[0]
    return Hold(id, Budget(caller, 0), pico, at_ms / 1000, about=about)


def forget_users(sql: Sql, rows: str, owner: str, now: float, zone: tzinfo, most: int) -> None:
    """Remove end users' budgets of past periods and, of more than *most*, those of the least spent.

    Names of end users come from requests, so their number has no other bound. *rows* is the
    condition for their rows, *owner* the column of the names.
    """
    day, month, _ = names(now - 2 * DAY, zone)  # a clock may step back a little
    sql.execute(_OLD_USERS.format(rows), (USER, day, month))
    sql.execute(_LEAST_USERS.format(rows, owner), (USER, USER, most))


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
    sql: Sql,
    row: str,
    budget: Budget,
    more: int | None,
    at: float,
    key: str,
    *,
    again: bool = False,
) -> Adjustment:
    """Add *more* to the limit in the period *key*, or forgive what is spent (None).

    *row* is the condition for the period's row. *again*: it may have been done already.
    """
    place = budget.owner, key
    [spent] = sql.execute(_LOCK_SPENT.format(row), place).fetchone()
    action, pico = ("reset", spent) if more is None else ("raise", more)
    made = Adjustment(round(at * 1e9), budget.caller, int(bool(budget.members)), key, action, pico)
    if again and (found := sql.execute(_ADJUSTED, made[:3]).fetchone()):
        return Adjustment._make(found)
    if more is None:
        sql.execute(_RESET.format(row), place)
    else:
        sql.execute(_RAISE.format(row), (more, more, *place))
    sql.execute(_ADD_ADJUSTMENT, made)
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
