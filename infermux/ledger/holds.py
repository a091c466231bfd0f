"""Holds: how amounts of budgets are reserved for calls, and what a lost call is charged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

from ..errors import BudgetExceeded
from ..pricing import usd
from . import LOST, AttemptRow, Budget, CallRow, Hold, Record
from .periods import ms

MAX_USERS = 100_000  # end users whose budgets are counted at a time
WARN_MS = 3_600_000  # between two warnings about a budget
MICRO = 10**6  # pico-USD
MAX_SPENT = 9 * 10**18  # pico-USD: the most that a period starts with, or that a hold makes it have


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
    raised: int = 0  # by which the limit is higher in this period


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
    """Return the hold, with what is exceeded; or which budget refuses.

    *amounts* are what each budget is to hold more; *taken* is by the budgets' owners.
    """
    over = hold.over
    warn: list[Budget] = []
    for budget, pico in amounts:
        found, warns = taken[budget.owner], budget.then == "warn"
        if found.pico + pico <= min(budget.limit_pico, MAX_SPENT):
            continue
        # a cheaper model that one budget has chosen does not lift the limit of another
        exceeds = rules.over and (budget is hold.budget or budget.then != "reject")
        if not (warns or exceeds) or found.pico + pico > MAX_SPENT:
            return Refused(budget, budget.limit_pico - found.pico)
        over = True
        if warns and found.warned_ms <= ms(rules.at) - WARN_MS:
            warn.append(budget)
    return hold._replace(over=over, warn=tuple(warn)) if over else hold


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
    attempt = AttemptRow(
        at_ns,
        hold.call_id,
        0,
        provider,
        model,
        model,
        0,
        None,
        None,
        *tokens,
        hold.pico,
        0,
        LOST,
        1,
        assumed=1,
    )
    return Record(call, (attempt,))
