"""The SQL queries for calls and reports, and the conversion of report rows to totals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, tzinfo
from functools import cache, lru_cache
from hashlib import blake2b
from itertools import product
from typing import Any

from ..errors import RequestError, shown
from . import MAX_ROWS, AttemptRow, CallRow, Total, periods, summed
from .periods import ns

DIGEST_LENGTH = 32  # of the hexadecimal digest of a plan's first line
MIN_ID_LENGTH = 6  # characters of the shortest accepted start of an id
CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")  # of statuses

# -- calls --

ATTEMPTS = f"""SELECT {", ".join(AttemptRow._fields)} FROM attempts
    WHERE at_ns = ? AND call_id = ? ORDER BY n"""
_LINE = f"SELECT line FROM plans WHERE digest = substr(c.plan, 1, {DIGEST_LENGTH})"
_PLAN = f"coalesce(({_LINE}), '') || substr(c.plan, {DIGEST_LENGTH + 1})"
_COLUMNS = ", ".join(f"c.{name}" for name in CallRow._fields[:-1])
CALL = f"SELECT {_COLUMNS}, {_PLAN} FROM calls AS c"
_AFTER = "WHERE (c.at_ns, c.id) > (?, ?) AND c.at_ns < ? ORDER BY c.at_ns, c.id LIMIT ?"
PAGE = 1000  # calls
NEWEST = " ORDER BY c.at_ns DESC, c.id DESC LIMIT ?"


def _insert(table: str, names: Sequence[str]) -> str:
    values = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values}) ON CONFLICT DO NOTHING"


WRITE_CALL = _insert("calls", CallRow._fields)
WRITE_ATTEMPT = _insert("attempts", AttemptRow._fields)
WRITE_PLAN = _insert("plans", ("digest", "line"))


class Where:
    """A WHERE clause and its bound values; a value never becomes part of the SQL text."""

    def __init__(self, since: int | None, until: int | None, caller: str | None) -> None:
        self._conditions: list[str] = []
        self.values: list[str | int] = []
        bounds = {"c.at_ns >= ?": since, "c.at_ns < ?": until, "c.caller = ?": caller}
        for condition, value in bounds.items():
            if value is not None:
                self.add(condition, value)

    def add(self, condition: str, *values: str | int) -> None:
        self._conditions.append(condition)
        self.values += [bindable(each) if isinstance(each, str) else each for each in values]

    def __str__(self) -> str:
        return f" WHERE ({') AND ('.join(self._conditions)})" if self._conditions else ""


def of_status(status: str) -> tuple[str, ...]:
    """Return the condition for "error", a class such as 4xx, or a status, and its values."""
    if status == "error":
        return ("c.status <> 'ok'",)
    if status in CLASSES:
        return "c.status >= ? AND c.status < ?", f"{status[0]}00", f"{int(status[0]) + 1}00"
    return "c.status = ?", status


def rows(
    *,
    model: str | None = None,
    status: str | None = None,
    caller: str | None = None,
    users: Sequence[str] | None = None,
    since: float | None = None,
    until: float | None = None,
    ended: float | None = None,
    limit: int = 50,
) -> tuple[str, list[str | int]]:
    """Return the query for at most *limit* calls, newest first, and its values.

    *model* is the requested, tried or served one. The end user is one of *users*. *status* is
    "ok", "error", an HTTP status or a class such as "4xx". Calls start from *since* to before
    *until*, and end from *ended* on.
    """
    where = Where(*bounds(since, until), caller)
    if ended is not None:
        where.add("c.at_ns + c.latency_ms * 1000000 >= ?", ns(ended))
    if model is not None:
        where.add("? IN (c.requested, c.model, c.served)", model)
    if users is not None:
        where.add(f"c.end_user IN ({', '.join('?' * len(users))})", *users)
    if status is not None:
        where.add(*of_status(status))
    return f"{CALL}{where}{NEWEST}", [*where.values, max(0, min(limit, MAX_ROWS))]


def call(id: str) -> tuple[str, list[str | int]]:
    """Return the query for two calls whose id begins with *id*; raise RequestError if too short."""
    if len(id) < MIN_ID_LENGTH:
        raise RequestError(
            f"a call id needs at least {MIN_ID_LENGTH} characters, not {shown(id)}", param="id"
        )
    first = bindable(id)
    return f"{CALL} WHERE c.id >= ? AND c.id < ? LIMIT 2", [first, first + chr(sys.maxunicode)]


def page(last: tuple[int, str], until: int) -> tuple[str, list[str | int]]:
    """Return the query for the next calls after *last* that start before *until*, oldest first."""
    return f"{CALL} {_AFTER}", [*last, until, PAGE]


def bounds(since: float | None, until: float | None) -> tuple[int | None, int | None]:
    """Return two times in nanoseconds since 1970."""
    return None if since is None else ns(since), None if until is None else ns(until)


# -- reports --

_OF_CALL = {
    "caller": "c.caller",
    "user": "c.end_user",
    "tag": "c.tags",
    "error": "c.error_code",
    "day": f"c.at_ns / {86_400 * 10**9}",
    "hour": f"c.at_ns / {3_600 * 10**9}",
}
_OF_ATTEMPT = {  # a call without any attempt counts under the name ""
    "model": "coalesce(a.model, '')",
    "served": "coalesce(a.served, '')",
    "provider": "coalesce(a.provider, '')",
    "attempt_error": "a.error_code",
}
_SUMS = ", ".join(f"coalesce(sum({{0}}.{name}), 0)" for name in Total._fields[4:9])
# micro-dollars and the rest are summed apart: pico-dollars would overflow at nine million USD
_MONEY = "coalesce(sum({0} / 1000000), 0), coalesce(sum({0} % 1000000), 0)"
_COST = f"{_MONEY.format('{0}.cost')}, coalesce(sum({{0}}.unpriced), 0)"
_SAVED = _MONEY.format("{0}.cache_saved")
_CALLS = f"""count(*), sum(c.attempts), sum(CASE WHEN c.status <> 'ok' THEN 1 ELSE 0 END), {_SUMS},
    {_COST}, sum(c.estimated), {_SAVED}, {_MONEY.format("c.assumed")}""".format("c")
_ATTEMPTS = f"""sum(coalesce(a.final, 1)), count(a.n),
    sum(CASE WHEN c.status <> 'ok' THEN coalesce(a.final, 1) ELSE 0 END), {_SUMS}, {_COST},
    sum(c.estimated * coalesce(a.final, 1)), {_SAVED},
    {_MONEY.format("a.assumed * a.cost")}""".format("a")


def totals(
    by: Sequence[str],
    since: int,
    until: int,
    caller: str | None,
    zone: tzinfo,
    *,
    every: bool = False,
) -> tuple[str, list[str | int]]:
    """Return the query for sums of calls and its values; times are in nanoseconds.

    By attempt_error, calls without an attempt count only if *every* is true.
    """
    names = [dimension(name) for name in by]
    where = Where(since, until, caller)
    columns = [_column(name, zone) for name in names]
    source, sums = "calls AS c", _CALLS
    if any(name in _OF_ATTEMPT for name in names):
        join = "JOIN" if "attempt_error" in names and not every else "LEFT JOIN"
        source += f" {join} attempts AS a ON a.at_ns = c.at_ns AND a.call_id = c.id"
        sums = _ATTEMPTS
    group = group_by(columns)
    return f"SELECT {', '.join([*columns, sums])} FROM {source}{where}{group}", where.values


def group_by(columns: Sequence[str]) -> str:
    """Return the clause that groups by the first columns of a query."""
    places = ", ".join(str(n) for n in range(1, len(columns) + 1))
    return f" GROUP BY {places}" if places else ""


def _column(name: str, zone: tzinfo) -> str:
    if name in ("day", "hour") and zone is not UTC:
        return f"c.at_ns / {periods.SLOT * 10**9}"
    return _OF_CALL.get(name) or _OF_ATTEMPT[name]


def dimension(name: str) -> str:
    """Return *name*, or "tag" for "tag:NAME"; raise RequestError if it is unknown."""
    kind = "tag" if name.startswith("tag:") else name
    if kind not in _OF_CALL and kind not in _OF_ATTEMPT:
        known = ", ".join([*_OF_ATTEMPT, *_OF_CALL, "tag:NAME"])
        raise RequestError(f"costs cannot be grouped by {shown(name)}: use {known}", param="by")
    return kind


def merged(
    by: Sequence[str], found: Iterable[Sequence[int | str]], zone: tzinfo = UTC
) -> list[Total]:
    """Return the totals of the query's rows, ordered as `Ledger.totals` says."""
    names = [cache(_namer(each, zone)) for each in by]  # many rows have the same hour or tags
    groups: dict[tuple[str, ...], list[Total]] = {}
    for row in found:
        counts = [int(value or 0) for value in row[len(by) :]]
        for place in (14, 12, 8):  # what is assumed, what caches saved, and the cost
            counts[place : place + 2] = [counts[place] * 10**6 + counts[place + 1]]
        total = Total((), *counts)
        for key in product(*[namer(value) for namer, value in zip(names, row, strict=False)]):
            groups.setdefault(key, []).append(total)
    totals = [summed(group, key) for key, group in groups.items()]
    if by and by[0] in ("day", "hour"):
        return sorted(totals, key=lambda total: total.key)
    return sorted(totals, key=lambda total: (-total.cost, total.key))


def _namer(by: str, zone: tzinfo) -> Callable[[int | str], Sequence[str]]:
    """Return a function that maps a stored value to the names of its groups."""
    if by in ("day", "hour"):
        seconds = periods.SLOT if zone is not UTC else 3_600 if by == "hour" else periods.DAY
        return lambda value: (periods.step_name(by, int(value) * seconds, zone),)
    if by == "tag":
        return lambda value: (
            [f"{name}={text}" for name, text in json.loads(str(value)).items()] or [""]
        )
    if by.startswith("tag:"):
        return lambda value: (json.loads(str(value)).get(by[4:], ""),)
    return lambda value: (str(value),)


def bindable(text: str) -> str:
    """Return *text* without lone surrogates, which SQLite refuses."""
    return text.encode(errors="replace").decode()


def call_row(call: CallRow) -> tuple[tuple[Any, ...], str, str]:
    """Return the row of a call, and the key and text of its plan's first line, kept once."""
    line, end, rest = call.plan.partition("\n")
    key = _digest(line)
    return (*call[:-1], key + end + rest), key, line


@lru_cache(maxsize=1024)
def _digest(line: str) -> str:
    """Return the key of a line; "" for an empty one."""
    return blake2b(line.encode(), digest_size=DIGEST_LENGTH // 2).hexdigest() if line else ""
