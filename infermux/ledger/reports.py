"""Reports for operators: costs by dimension or over time, and calls as JSON.

Money is in USD, as exact decimal text, and in whole pico-USD.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import NamedTuple

from ..errors import RequestError, shown
from ..pricing import usd
from ..protocol import must_be
from ..types import JSON
from . import (
    MAX_ROWS,
    Adjustment,
    AttemptRow,
    Budget,
    BudgetState,
    CallRow,
    Record,
    Total,
    summed,
)
from .periods import end, local, midnight, ns, start, step_name
from .sql import Ledger

DEFAULT_ROWS = 1000
MIRROR_OF = "mirror of "  # begins the caller of copies; a name follows
MAX_DIMENSIONS = 4
STEPS = {"day": 86_400, "hour": 3_600}  # seconds
_LOOK_BACK = {"day": 30, "hour": 48}  # length of a series without *since*, in steps
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGO = re.compile(r"(\d{1,6})([smhdw])", re.ASCII)
_MONTH = re.compile(r"(\d{4})-(0[1-9]|1[0-2])", re.ASCII)
_RENAMED = {"user": "end_user"}  # what rows call otherwise
_USED = (
    "input_tokens output_tokens cached_input_tokens cache_write_tokens cache_write_1h_tokens "
    "reasoning_tokens cost_usd cost_pico cache_saved_usd"
)
# the fields of a call and of an attempt that are shown, in this order
_CALL = (
    "id trace_id caller user tags api requested model served provider strategy status error_code "
    f"{_USED} assumed_usd cost_source estimated unpriced latency_ms first_token_ms"
).split()
_ATTEMPT = (
    "provider model served error_code reason upstream_status upstream_request_id "
    f"{_USED} service_tier billed assumed unpriced finish_reason started_ms first_ms ended_ms"
).split()


class Period(NamedTuple):
    """A half-open period of time, in seconds since 1970; None: unbounded."""

    since: float | None = None
    until: float | None = None

    def covers(self, at: float) -> bool:
        return (self.since or 0.0) <= at and (self.until is None or at < self.until)


class Costs(NamedTuple):
    """The sums of each group of calls and of all; by tag, a call may be in several groups."""

    by: tuple[str, ...]
    period: Period
    caller: str | None
    rows: list[Total]
    total: Total
    more: int  # rows beyond the limit

    def to_dict(self) -> JSON:
        """Return the body of GET /costs."""
        return {
            "by": list(self.by),
            "since": iso(self.period.since),
            "until": iso(self.period.until),
            "caller": self.caller,
            "rows": [dict(zip(self.by, row.key, strict=True)) | figures(row) for row in self.rows],
            "total": figures(self.total),
            "more": self.more,
        }


# -- parameters --


def dimensions(given: Iterable[str]) -> tuple[str, ...]:
    """Return the dimensions in comma-separated lists; raise RequestError if there are too many."""
    stated = (name.strip() for text in given for name in text.split(","))
    names = tuple(dict.fromkeys(filter(None, stated)))
    if len(names) > MAX_DIMENSIONS:
        raise RequestError(
            f"costs can be grouped by at most {MAX_DIMENSIONS} dimensions", param="by"
        )
    return names or ("model",)


def period(
    now: float,
    *,
    since: str | None = None,
    until: str | None = None,
    month: str | None = None,
    zone: tzinfo = UTC,
) -> Period:
    """Return the period that the parameters describe; raise RequestError naming the wrong one.

    Dates and times without a zone of their own are those of *zone*.
    """
    if month:
        if since or until:
            raise RequestError("give a month, or since and until", param="month")
        return _month(month, now, zone)
    found = Period(_moment(since, now, "since", zone), _moment(until, now, "until", zone))
    if found.since is not None and found.until is not None and found.since >= found.until:
        raise must_be("since", "before until")
    return found


def limited(text: str | None, default: int = DEFAULT_ROWS) -> int:
    """Return the limit in *text*, at most MAX_ROWS; raise RequestError if it is not 1 or more."""
    try:
        number = float(text) if text else float(default)
    except ValueError:
        number = math.nan
    if not number >= 1:  # also true of NaN
        raise must_be("limit", f"a number of 1 or more, not {shown(text)}")
    return int(min(number, MAX_ROWS))


def _month(text: str, now: float, zone: tzinfo) -> Period:
    if text == "last":
        at = start("month", now, zone) - 1.0
    elif text == "this":
        at = now
    elif (match := _MONTH.fullmatch(text)) and 1970 <= int(match[1]) < 2200:
        at = midnight(date(int(match[1]), int(match[2]), 1), zone)
    else:
        raise must_be("month", f'such as "2026-11", "this" or "last", not {shown(text)}')
    return Period(start("month", at, zone), end("month", at, zone))


def _moment(text: str | None, now: float, name: str, zone: tzinfo) -> float | None:
    if not text:
        return None
    if match := _AGO.fullmatch(text):
        return now - int(match[1]) * _UNITS[match[2]]
    if text in ("today", "yesterday"):
        today = start("day", now, zone)
        return today if text == "today" else start("day", today - 1.0, zone)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        forms = '"2026-11-01", "2026-11-01T12:00", "7d", "24h" or "30m"'
        raise must_be(name, f"such as {forms}, not {shown(text)}") from None
    return (found if found.tzinfo else found.replace(tzinfo=zone)).timestamp()


# -- reports --


def costs(
    ledger: Ledger,
    by: tuple[str, ...],
    span: Period,
    *,
    caller: str | None = None,
    limit: int = DEFAULT_ROWS,
) -> Costs:
    """Return the costs by dimensions, ordered like `Ledger.totals`; at most *limit* groups."""
    rows = ledger.totals(*by, since=span.since, until=span.until, caller=caller)
    [total] = ledger.totals(since=span.since, until=span.until, caller=caller)
    return Costs(by, span, caller, rows[:limit], total, max(0, len(rows) - limit))


def series(
    ledger: Ledger,
    step: str,
    span: Period,
    now: float,
    *,
    caller: str | None = None,
    limit: int = DEFAULT_ROWS,
) -> JSON:
    """Return the costs of the last *limit* days or hours, also empty ones; raise RequestError."""
    if step not in STEPS:
        raise must_be("by", f'"day" or "hour", not {shown(step)}')
    size, zone = STEPS[step], ledger.zone
    until = min(max(now, 0.0) if span.until is None else span.until, 9e9)  # 9e9 is the year 2255
    first = until - _LOOK_BACK[step] * size if span.since is None else span.since
    since = max(first, until - limit * size, 0.0)
    names = _steps(step, since, until, zone)[-limit:]
    since = max(since, names[0][1]) if names else since
    totals = ledger.totals(step, since=since, until=until, caller=caller)
    found = {row.key[0]: row for row in totals}
    rows = [{step: name} | figures(found.get(name, summed(()))) for name, _ in names]
    return {
        "by": step,
        "since": iso(since),
        "until": iso(until),
        "caller": caller,
        "rows": rows,
        "total": figures(summed(totals)),
    }


def figures(total: Total) -> JSON:
    """Return the sums of a group as JSON; the cost is null if all of it is unpriced."""
    named = total._asdict()
    del named["key"], named["cost"], named["cache_saved"], named["assumed"]
    cost = amount(total)
    money = {"cost_usd": None if cost is None else usd(cost), "cost_pico": cost}
    apart = {"cache_saved_usd": usd(total.cache_saved), "assumed_usd": usd(total.assumed)}
    return money | named | apart


def amount(total: Total) -> int | None:
    """Return the known cost of a group in pico-USD, or None if all of it is unpriced."""
    return None if total.unpriced and not total.cost else total.cost


def call_dict(record: Record) -> JSON:
    """Return a call and its attempts as JSON, with the field names of the call log."""
    call = record.call
    return (
        {"time": iso(call.at_ns / 1e9)}
        | _fields(call, _CALL)
        | {
            "tags": json.loads(call.tags),
            "estimated": bool(call.estimated),
            "attempts": [
                _fields(attempt, _ATTEMPT)
                | {
                    "unpriced": bool(attempt.unpriced),
                    "assumed": bool(attempt.assumed),
                    "billed": json.loads(attempt.billed or "{}"),
                }
                for attempt in record.attempts
            ],
        }
    )


def budgets_dict(states: Iterable[BudgetState], changes: Iterable[Adjustment]) -> JSON:
    return {
        "budgets": [_budget_dict(state) for state in states],
        "adjustments": [
            {
                "time": iso(change.at_ns / 1e9),
                "name": change.name,
                "kind": "team" if change.team else "key",
                "period": change.period,
                "action": change.action,
                "usd": usd(change.pico),
                "pico": change.pico,
            }
            for change in changes
        ],
    }


def kind(budget: Budget) -> str:
    """Return whose a budget is: "key", "team" (one of [budgets]) or "mirror"."""
    if budget.members:
        return "team"
    return "mirror" if budget.caller.startswith(MIRROR_OF) else "key"


def money(state: BudgetState) -> JSON:
    """Return the limit of a budget, and what is spent, held and left."""
    picos = {name: getattr(state, name) for name in ("limit", "spent", "held", "left")}
    dollars = {f"{name}_usd": usd(pico) for name, pico in picos.items()}
    return dollars | {f"{name}_pico": pico for name, pico in picos.items()}


def _budget_dict(state: BudgetState) -> JSON:
    budget = state.budget
    return {
        "name": budget.caller,
        "kind": kind(budget),
        "keys": list(budget.members or (budget.caller,)),
        "per": budget.period,
        "period": state.key,
        "then": budget.then,
        **money(state),
        "reset": iso(state.resets),
    }


def export(file: Ledger, span: Period) -> Iterator[list[Record]]:
    """Yield the calls of a period by the thousand, oldest first."""
    last, until = (ns(span.since or 0.0), ""), ns(9e9 if span.until is None else span.until)
    while page := file.page(last, until):
        yield page
        last = (page[-1].call.at_ns, page[-1].call.id)


def _fields(row: CallRow | AttemptRow, names: Iterable[str]) -> JSON:
    money = {"cost_usd": None if row.cost is None else usd(row.cost), "cost_pico": row.cost}
    money["cache_saved_usd"] = None if row.cache_saved is None else usd(row.cache_saved)
    money["assumed_usd"] = usd(row.assumed)
    return {
        name: money[name] if name in money else getattr(row, _RENAMED.get(name, name))
        for name in names
    }


def iso(seconds: float | None) -> str | None:
    """Return seconds since 1970 as ISO 8601 in UTC, with milliseconds if there are any."""
    if seconds is None:
        return None
    # limited as in queries
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=round(ns(seconds) / 10**6))
    return at.isoformat(timespec="milliseconds" if at.microsecond else "seconds").replace(
        "+00:00", "Z"
    )


def _steps(step: str, since: float, until: float, zone: tzinfo) -> list[tuple[str, float]]:
    found, at = list[tuple[str, float]](), since
    while at < until:
        if step == "day":
            first, at = start("day", at, zone), end("day", at, zone) or until
        else:
            past = local(at, zone)
            first = at - past.minute * 60 - past.second - past.microsecond / 1e6
            at = first + 3_600
        found.append((step_name(step, first, zone), first))
    return found
