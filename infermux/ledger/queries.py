"""The schema of the SQLite ledger by version, its statements, what a transaction does with them,
and the questions of reports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b
from operator import add
from typing import Any, Protocol

from ..errors import RequestError, shown
from . import MAX_ROWS, AttemptRow, Budget, CallRow, Hold, Record, Total, keys

APPLICATION = 0x494D5558  # "IMUX": marks the file as ours
LARGEST = 2**63 - 1  # of SQLite's integers
SHORTEST_ID = 6  # characters that may stand for a whole id
_NS = 10**9
_CLASSES = ("1xx", "2xx", "3xx", "4xx", "5xx")  # of statuses
_DIGEST = 32  # characters that stand for the first line of a plan

# Both tables are kept in the order of time, so that a settled call changes one page of each, and a
# report reads one range.
# The key holds the start of the call beside its id: both are fixed for a call, so that it cannot be
# written twice.
_FIRST = (
    """CREATE TABLE calls (
        at_ns INTEGER NOT NULL, id TEXT NOT NULL, trace_id TEXT NOT NULL, caller TEXT NOT NULL, tags TEXT NOT NULL, door TEXT NOT NULL,
        requested TEXT NOT NULL, model TEXT NOT NULL, served TEXT NOT NULL, provider TEXT NOT NULL, strategy TEXT NOT NULL,
        status TEXT NOT NULL, error_code TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER, cached_input_tokens INTEGER,
        cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, reasoning_tokens INTEGER, cost INTEGER, cost_source TEXT NOT NULL,
        estimated INTEGER NOT NULL, latency_ms INTEGER NOT NULL, first_token_ms INTEGER, attempts INTEGER NOT NULL,
        PRIMARY KEY (at_ns, id)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE attempts (
        at_ns INTEGER NOT NULL, call_id TEXT NOT NULL, n INTEGER NOT NULL, provider TEXT NOT NULL, model TEXT NOT NULL,
        served TEXT NOT NULL, started_ms INTEGER NOT NULL, first_ms INTEGER, ended_ms INTEGER, input_tokens INTEGER,
        output_tokens INTEGER, cached_input_tokens INTEGER, cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER,
        reasoning_tokens INTEGER, cost INTEGER, error_code TEXT NOT NULL, final INTEGER NOT NULL,
        PRIMARY KEY (at_ns, call_id, n)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL, held INTEGER NOT NULL,
        PRIMARY KEY (caller, period)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE holds (
        call_id TEXT PRIMARY KEY, caller TEXT NOT NULL, period TEXT NOT NULL, pico INTEGER NOT NULL, at_ms INTEGER NOT NULL,
        expires_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
)
_UNPRICED = (  # how much of what was billed has no price
    "ALTER TABLE calls ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0",
    "UPDATE attempts SET unpriced = 1 WHERE cost IS NULL AND coalesce(input_tokens, output_tokens) IS NOT NULL",
    """UPDATE calls SET unpriced = (SELECT count(*) FROM attempts AS a
                                    WHERE a.at_ns = calls.at_ns AND a.call_id = calls.id AND a.unpriced = 1)""",
)
# a plan's first line is the same for many calls: it is kept once, and the call has its digest
# instead
_PLANS = (
    "CREATE TABLE plans (digest TEXT PRIMARY KEY, line TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "ALTER TABLE calls ADD COLUMN plan TEXT NOT NULL DEFAULT ''",
)
# a hold is kept beside its budget, whose own row has no call: to reserve then changes one page, not
# two
_TOGETHER = (
    "ALTER TABLE budgets RENAME TO apart",
    """CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL,
        call_id TEXT NOT NULL DEFAULT '', at_ms INTEGER NOT NULL DEFAULT 0, expires_ms INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (caller, period, call_id)) STRICT, WITHOUT ROWID""",
    "INSERT INTO budgets (caller, period, spent, held) SELECT caller, period, spent, held FROM apart",
    """INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms)
        SELECT caller, period, call_id, pico, at_ms, expires_ms FROM holds""",
    "DROP TABLE apart",
    "DROP TABLE holds",
)
_API = ("ALTER TABLE calls RENAME COLUMN door TO api",)
MIGRATIONS = (
    _FIRST,
    _UNPRICED,
    _PLANS,
    _TOGETHER,
    _API,
)  # what leads from version n to n + 1; a file that is in use has them run but once

# -- budgets ---------------------------------------------------------------------------------------

_BUDGET = "caller = ? AND period = ? AND call_id = ''"
_HELD = "caller = ? AND period = ? AND call_id = ? AND call_id > ''"
TAKE = f"UPDATE budgets SET held = held + ? WHERE {_BUDGET} AND spent + held + ? <= ?"
_COST_SO_FAR = "min(coalesce(sum(cost / 1000000), 0), 9000000000000) * 1000000 + coalesce(sum(cost % 1000000), 0)"
BEGIN_PERIOD = f"""INSERT INTO budgets (caller, period, spent, held)
    SELECT ?, ?, {_COST_SO_FAR}, 0 FROM calls WHERE caller = ? AND at_ns >= ? AND at_ns < ?"""
HOLD = "INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
RENEW = f"UPDATE budgets SET expires_ms = ? WHERE {_HELD}"
RAISE = f"UPDATE budgets SET held = held + ? WHERE {_HELD}"
EXPIRE = "DELETE FROM budgets WHERE caller = ? AND period = ? AND call_id > '' AND expires_ms <= ? RETURNING held, caller, period"
EXPIRE_ALL = (
    "DELETE FROM budgets WHERE call_id > '' AND expires_ms <= ? RETURNING held, caller, period"
)
FREE = f"UPDATE budgets SET held = held - ? WHERE {_BUDGET}"
LEFT = f"SELECT ? - spent - held FROM budgets WHERE {_BUDGET}"
RELEASE = f"DELETE FROM budgets WHERE {_HELD} AND held = ?"
RELEASE_ANY = "DELETE FROM budgets WHERE caller = ? AND call_id = ? AND call_id > '' RETURNING period, held, at_ms"
SPEND = f"UPDATE budgets SET spent = min(spent + ?, 9223372036854775807), held = held - ? WHERE {_BUDGET}"
SPEND_ANY = """UPDATE budgets SET spent = min(spent + ?, 9223372036854775807), held = held - CASE period WHEN ? THEN ? ELSE 0 END
    WHERE caller = ? AND period IN (?, ?, ?) AND call_id = ''"""
SPENT = """SELECT spent, held - (SELECT coalesce(sum(held), 0) FROM budgets AS h
                                 WHERE h.caller = b.caller AND h.period = b.period AND h.call_id > '' AND h.expires_ms <= ?)
    FROM budgets AS b WHERE caller = ? AND period = ? AND call_id = ''"""
SPENT_BEFORE = f"SELECT {_COST_SO_FAR} FROM calls WHERE caller = ? AND at_ns >= ? AND at_ns < ?"
# of a file of any version
RESCUE = "SELECT caller, period, sum(spent) FROM budgets GROUP BY caller, period"
RESTORE = (
    "INSERT INTO budgets (caller, period, spent, held) VALUES (?, ?, ?, 0) ON CONFLICT DO NOTHING"
)

# -- rows ------------------------------------------------------------------------------------------


def _insert(table: str, names: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) ON CONFLICT DO NOTHING"


WRITE_CALL = _insert("calls", CallRow._fields)
WRITE_ATTEMPT = _insert("attempts", AttemptRow._fields)
WRITE_PLAN = "INSERT INTO plans (digest, line) VALUES (?, ?) ON CONFLICT DO NOTHING"
ATTEMPTS = f"SELECT {', '.join(AttemptRow._fields)} FROM attempts WHERE at_ns = ? AND call_id = ? ORDER BY n"


class SQL(Protocol):
    """A connection inside a transaction."""

    def execute(self, query: str, values: Sequence[Any] = ..., /) -> Any:
        """Run one statement."""

    def executemany(self, query: str, values: Iterable[Sequence[Any]], /) -> Any:
        """Run one statement for each of the values."""


def take(
    sql: SQL, budget: Budget, pico: int, *, of: float, at: float, over: bool
) -> tuple[bool, int | None]:
    """Hold *pico* in the period at *of*; return whether that is beyond the limit, or else, second,
    how much too little is left.
    """
    key, limit = budget.key(of), min(budget.limit_pico, LARGEST)
    if _took(sql, budget.caller, key, pico, limit):
        return False, None
    sql.executemany(FREE, sql.execute(EXPIRE, (budget.caller, key, ms(at))).fetchall())
    if not sql.execute(LEFT, (0, budget.caller, key)).fetchall():
        sql.executemany(
            FREE, sql.execute(EXPIRE_ALL, (ms(at),)).fetchall()
        )  # now and then, also what nobody asks about any more
        sql.execute(BEGIN_PERIOD, (budget.caller, key, budget.caller, *span(budget, of)))
    if _took(sql, budget.caller, key, pico, limit):
        return False, None
    if over and _took(sql, budget.caller, key, pico, LARGEST):
        return True, None
    return False, sql.execute(LEFT, (limit, budget.caller, key)).fetchone()[0]


def _took(sql: SQL, caller: str, key: str, pico: int, limit: int) -> bool:
    return bool(sql.execute(TAKE, (pico, caller, key, pico, limit)).rowcount)


def hold(sql: SQL, amount: Hold, expires: float) -> None:
    """Note whose the amount is that was taken, and until when; raise ValueError if the call has one
    already.
    """
    if not sql.execute(HOLD, (*place(amount), amount.pico, ms(amount.at), ms(expires))).rowcount:
        raise ValueError(f"call {amount.call_id!r} has a hold already")


def place(amount: Hold) -> tuple[str, str, str]:
    """Return the key of a hold: caller, period and call."""
    return amount.budget.caller, amount.budget.key(amount.at), amount.call_id


def settle(sql: SQL, record: Record, hold: Hold | None, known: Collection[str] = ()) -> bool:
    """Write a call, release what it held and spend what it cost; return False if the call was there
    before.

    *known* are digests of plans that are kept already.
    """
    call = record.call
    line, end, rest = call.plan.partition("\n")
    digest = digest_of(line)
    if not sql.execute(WRITE_CALL, (*call[:-1], digest + end + rest)).rowcount:
        return False
    if digest and digest not in known:
        sql.execute(WRITE_PLAN, (digest, line))
    for attempt in record.attempts:
        sql.execute(WRITE_ATTEMPT, attempt)
    if hold is not None and sql.execute(RELEASE, (*place(hold), hold.pico)).rowcount:
        sql.execute(SPEND, (call.cost or 0, hold.pico, *place(hold)[:2]))
        return True
    period, pico, at, caller = "", 0, call.at_ns / 1e9, call.caller
    if hold is not None:  # its lease has run out, or it was topped up since
        at, caller = hold.at, hold.budget.caller
    if released := sql.execute(RELEASE_ANY, (caller, call.id)).fetchall():
        [(period, pico, at_ms)] = released
        at = at_ms / 1000
    sql.execute(SPEND_ANY, (call.cost or 0, period, pico, caller, *keys(at)))
    return True


@lru_cache(maxsize=1024)
def digest_of(line: str) -> str:
    """Return the name under which a plan's first line is kept; none for no plan."""
    return blake2b(line.encode(), digest_size=_DIGEST // 2).hexdigest() if line else ""


# -- questions -------------------------------------------------------------------------------------


_WHOLE_PLAN = f"coalesce((SELECT line FROM plans WHERE digest = substr(c.plan, 1, {_DIGEST})), '') || substr(c.plan, {_DIGEST + 1})"
_CALL = f"SELECT {', '.join([f'c.{name}' for name in CallRow._fields[:-1]])}, {_WHOLE_PLAN} FROM calls AS c"


class _Where:
    """Conditions and the values that are bound to them: no value ever becomes part of a statement."""

    def __init__(self, since: float | None, until: float | None, caller: str | None) -> None:
        self._conditions: list[str] = []
        self.values: list[str | int] = []
        if since is not None:
            self.add("c.at_ns >= ?", ns(since))
        if until is not None:
            self.add("c.at_ns < ?", ns(until))
        if caller is not None:
            self.add("c.caller = ?", _bindable(caller))

    def add(self, condition: str, *values: str | int) -> None:
        """Require *condition* too."""
        self._conditions.append(condition)
        self.values += values

    def __str__(self) -> str:
        return f" WHERE {' AND '.join(self._conditions)}" if self._conditions else ""


def rows(
    *,
    model: str | None,
    status: str | None,
    caller: str | None,
    since: float | None,
    until: float | None,
    ended: float | None,
    limit: int,
) -> tuple[str, list[str | int]]:
    """Return the question for calls, the newest first, and its values."""
    where = _Where(since, until, caller)
    if ended is not None:
        where.add("c.at_ns + c.latency_ms * 1000000 >= ?", ns(ended))
    if model is not None:
        where.add("? IN (c.requested, c.model, c.served)", _bindable(model))
    if status == "error":
        where.add("c.status <> 'ok'")
    elif status in _CLASSES:
        where.add("c.status >= ? AND c.status < ?", f"{status[0]}00", f"{int(status[0]) + 1}00")
    elif status is not None:
        where.add("c.status = ?", _bindable(status))
    order = "ORDER BY c.at_ns DESC, c.id DESC LIMIT ?"
    return f"{_CALL}{where} {order}", [*where.values, max(0, min(limit, MAX_ROWS))]


def call(id: str) -> tuple[str, list[str | int]]:
    """Return the question for the calls whose id begins with *id*, two at most, and its values;
    raise RequestError.
    """
    if len(id) < SHORTEST_ID:
        raise RequestError(
            f"the id of a call needs at least {SHORTEST_ID} characters, not {shown(id)}", param="id"
        )
    return f"{_CALL} WHERE c.id >= ? AND c.id < ? LIMIT 2", [
        _bindable(id),
        _bindable(id) + chr(sys.maxunicode),
    ]


# -- reports ---------------------------------------------------------------------------------------

_OF_CALL = {
    "caller": "c.caller", "tag": "c.tags", "error": "c.error_code",
    "day": f"c.at_ns / {86_400 * _NS}", "hour": f"c.at_ns / {3_600 * _NS}",
}  # fmt: skip
_OF_ATTEMPT = {  # a call that reached nobody has no attempt, but counts: under no name
    "model": "coalesce(a.model, '')", "served": "coalesce(a.served, '')", "provider": "coalesce(a.provider, '')",
    "attempt_error": "a.error_code",
}  # fmt: skip
_SUMS = ", ".join(f"coalesce(sum({{0}}.{name}), 0)" for name in Total._fields[4:9])
# whole micro-dollars and the rest: a sum of pico-dollars would pass the largest integer at nine
# million dollars
_COST = "coalesce(sum({0}.cost / 1000000), 0), coalesce(sum({0}.cost % 1000000), 0), coalesce(sum({0}.unpriced), 0)"
_CALLS = (
    f"count(*), sum(c.attempts), sum(c.status <> 'ok'), {_SUMS}, {_COST}, sum(c.estimated)".format(
        "c"
    )
)
_ATTEMPTS = (
    "sum(coalesce(a.final, 1)), count(a.n), sum(coalesce(a.error_code <> '', c.status <> 'ok')), "
    f"{_SUMS}, {_COST}, sum(c.estimated * coalesce(a.final, 1))"
).format("a")


def totals(
    by: Sequence[str], *, since: float | None, until: float | None, caller: str | None
) -> tuple[str, list[str | int]]:
    """Return the question for sums, and its values: from the attempts where those tell more than
    their call.
    """
    names = [_dimension(name) for name in by]
    where = _Where(since, until, caller)
    columns = [_OF_CALL.get(name) or _OF_ATTEMPT[name] for name in names]
    source, sums = "calls AS c", _CALLS
    if any(name in _OF_ATTEMPT for name in names):
        join = "JOIN" if "attempt_error" in names else "LEFT JOIN"
        source, sums = (
            f"calls AS c {join} attempts AS a ON a.at_ns = c.at_ns AND a.call_id = c.id",
            _ATTEMPTS,
        )
    group = f" GROUP BY {', '.join(str(n + 1) for n in range(len(columns)))}" if columns else ""
    return f"SELECT {', '.join([*columns, sums])} FROM {source}{where}{group}", where.values


def _dimension(name: str) -> str:
    """Return what *name* groups by; raise RequestError."""
    kind = "tag" if name.startswith("tag:") else name
    if kind not in _OF_CALL and kind not in _OF_ATTEMPT:
        known = ", ".join([*_OF_ATTEMPT, *_OF_CALL, "tag:NAME"])
        raise RequestError(f"costs cannot be grouped by {shown(name)}: use {known}", param="by")
    return kind


def merged(by: Sequence[str], found: Iterable[Sequence[int | str]]) -> list[Total]:
    """Return totals under their names: by time if that comes first, else the most expensive first."""
    name = [cache(_namer(each)) for each in by]  # many groups share an hour, or their tags
    sums: dict[tuple[str, ...], list[int]] = {}
    for row in found:
        values = [int(value or 0) for value in row[len(by) :]]
        micro, pico = values[8:10]
        values[8:10] = [micro * 10**6 + pico]
        for key in _product([name[n](row[n]) for n in range(len(by))]):
            sums[key] = list(map(add, sums[key], values)) if key in sums else values
    totals = [Total(key, *values) for key, values in sums.items()]
    timely = bool(by) and by[0] in ("day", "hour")
    return sorted(
        totals,
        key=(lambda total: total.key) if timely else (lambda total: (-total.cost, total.key)),
    )


def _product(lists: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    keys: list[tuple[str, ...]] = [()]
    for names in lists:
        keys = [(*key, name) for key in keys for name in names]
    return keys


def _namer(by: str) -> Callable[[int | str], Sequence[str]]:
    """Return what turns a stored value into the names of the groups that it belongs to."""
    if by == "day":
        return lambda value: (f"{datetime.fromtimestamp(int(value) * 86_400, UTC):%Y-%m-%d}",)
    if by == "hour":
        return lambda value: (f"{datetime.fromtimestamp(int(value) * 3_600, UTC):%Y-%m-%dT%H:00Z}",)
    if by == "tag":
        return lambda value: (
            [f"{name}={text}" for name, text in json.loads(str(value)).items()] or [""]
        )
    if by.startswith("tag:"):
        return lambda value: (json.loads(str(value)).get(by[4:], ""),)
    return lambda value: (str(value),)


def ns(seconds: float) -> int:
    """Return seconds since 1970 as whole nanoseconds, within what can be stored."""
    return round(max(-9e9, min(seconds, 9e9)) * _NS)


def _bindable(text: str) -> str:
    return text.encode(errors="replace").decode()


def span(budget: Budget, at: float) -> tuple[int, int]:
    """Return the period at *at* as nanoseconds: from, and up to."""
    end = budget.resets(at)
    return ns(budget.start(at)), LARGEST if end is None else ns(end)


def ms(seconds: float) -> int:
    """Return seconds since 1970 as whole milliseconds."""
    return int(seconds * 1000)
