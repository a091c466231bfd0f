"""Daily sums of calls: reports read them instead of the calls, and they outlast the calls.

A day (UTC) has a state. Not in `rolled`, or negative, which means that it is being rolled: only its
calls count. ROLLED: its sums count, and are equal to its calls'. PRUNED: its sums count, and so do
the calls that are left. A trigger forgets the state of a rolled day when a call is added to it, so
a report never depends on when its sums were made.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, tzinfo
from functools import partial
from sqlite3 import Cursor
from typing import Any, NamedTuple, Protocol, TypeVar

from . import LedgerUnavailable, Total, budgets, queries, summed
from .periods import DAY, MAX_INTEGER, SLOT, ms, ns, start, step_name
from .queries import Ask

ROLLED, PRUNED = 1, 2
SETTLED = 3600  # seconds after which an ended day is rolled: few calls are added to it
MAINTAIN_SECONDS = 3600.0
LOOK_SECONDS = 10.0
CHUNK = 5000  # calls that are removed in one transaction
DAYS = 32  # whose sums one query adds up, to need little memory
# the dimensions of each kind of sums; a report reads the first kind that has all of its own
KINDS = (
    ("caller", "error"),
    ("model", "served", "provider"),
    ("caller", "error", "tag"),
    ("caller", "error", "model", "served", "provider", "attempt_error"),
)
_DAY_NS, _SLOT_NS = DAY * 10**9, SLOT * 10**9
_NAMES = ("caller", "tag", "error", "model", "served", "provider", "attempt_error")
_PAIRS = {"cost": ("micro", "pico"), "cache_saved": ("saved_micro", "saved_pico")}
_PAIRS |= {"assumed": ("assumed_micro", "assumed_pico")}
_MEASURES = [name for field in Total._fields[1:] for name in _PAIRS.get(field, (field,))]
_COLUMNS = ", ".join(("kind", "day", "n", *_NAMES, *_MEASURES))
_ADD = f"INSERT INTO rollups ({_COLUMNS}) VALUES ({', '.join('?' * (10 + len(_MEASURES)))})"
_CLEAR = f"DELETE FROM rollups WHERE kind < {len(KINDS)} AND kind >= 0 AND day = ?"
_SUM = ", ".join(f"sum({name})" for name in _MEASURES)
_NEXT = "SELECT at_ns FROM calls WHERE at_ns >= ? AND at_ns < ? ORDER BY at_ns LIMIT 1"
_NTH = "SELECT at_ns FROM calls WHERE at_ns >= ? AND at_ns < ? ORDER BY at_ns LIMIT 1 OFFSET ?"
_LAST = "SELECT coalesce(max(n), -1) + 1 FROM rollups WHERE kind = ? AND day = ?"
_BEGIN = """INSERT INTO rolled VALUES (?, ?)
    ON CONFLICT DO UPDATE SET state = excluded.state WHERE state < 0"""
_END = f"UPDATE rolled SET state = {ROLLED} WHERE day = ? AND state = ?"
_MARK_PRUNED = f"INSERT OR REPLACE INTO rolled VALUES (?, {PRUNED})"
_THIN = """DELETE FROM sums WHERE slot < ? AND slot <
    (SELECT max(slot) FROM sums AS s WHERE s.caller = sums.caller AND s.slot < ?)"""
_OLD_PERIODS = "DELETE FROM budgets WHERE call_id = '' AND held = 0 AND period < ?"
_QUICK = "PRAGMA quick_check(10)"
_HELD = """SELECT caller, period, sum(CASE call_id WHEN '' THEN held ELSE 0 END) AS kept,
        sum(CASE call_id WHEN '' THEN 0 ELSE held END) AS by_calls
    FROM budgets GROUP BY caller, period HAVING kept <> by_calls"""
_DIFFER = """SELECT count(*) FROM calls AS c WHERE at_ns >= ? AND at_ns < ?
    AND coalesce(cost, 0) <> (SELECT coalesce(sum(cost), 0) FROM attempts AS a
        WHERE a.at_ns = c.at_ns AND a.call_id = c.id)"""
_COST = "SELECT caller, sum(cost) FROM calls WHERE at_ns >= ? AND at_ns < ? AND cost > 0 GROUP BY 1"
_PRUNED_COST = f"""SELECT caller, sum(micro) * 1000000 + sum(pico) FROM rollups
    WHERE kind = 0 AND day IN (SELECT day FROM rolled WHERE state = {PRUNED}) GROUP BY caller"""
_SUMMED = """SELECT caller, micro * 1000000 + pico FROM sums AS s
    WHERE slot = (SELECT max(slot) FROM sums AS t WHERE t.caller = s.caller)"""

T = TypeVar("T")


class File(Protocol):
    """The ledger whose days are rolled."""

    def snapshot(self, work: Callable[[Ask], T]) -> T:
        """Return the result of *work*, whose queries see one state of the file."""

    def write(self, work: Callable[[Cursor], T]) -> T:
        """Return the result of *work*, in a transaction."""

    zone: tzinfo

    def spooled(self) -> int:
        """Return how many calls wait for being written; one might be written twice."""


class Question(NamedTuple):
    """What a report sums up: the dimensions, and the calls; times are in nanoseconds."""

    by: tuple[str, ...]
    since: int
    until: int
    caller: str | None
    zone: tzinfo

    @classmethod
    def of(
        cls,
        by: tuple[str, ...],
        since: float | None,
        until: float | None,
        caller: str | None,
        zone: tzinfo,
    ) -> Question:
        """Return the question about a period in seconds; None: unbounded."""
        first, last = queries.bounds(since, until)
        return cls(by, first or 0, MAX_INTEGER if last is None else last, caller, zone)

    @property
    def days(self) -> range:
        """The days (UTC, since 1970) that are wholly in the period."""
        return range(-(-max(self.since, 0) // _DAY_NS), min(self.until, ns(9e9)) // _DAY_NS)

    @property
    def is_local(self) -> bool:
        """Whether groups are days of another zone than the sums'."""
        return self.zone is not UTC and "day" in self.by

    @property
    def is_summed(self) -> bool:
        """Whether daily sums answer it."""
        return self.kind is not None and not self.is_local and len(self.days) > 1

    @property
    def kind(self) -> int | None:
        """The kind of sums that has the dimensions, or None: only calls have them."""
        needed = {"tag" if name.startswith("tag:") else name for name in self.by} - {"day"}
        needed |= {"caller"} if self.caller is not None else set()
        fits = [number for number, names in enumerate(KINDS) if needed.issubset(names)]
        return fits[0] if fits else None


# -- reports --


def report(file: File, question: Question, now: float) -> list[Total]:
    """Return the totals of a question; first sum up the ended days that it needs."""
    for name in question.by:
        queries.dimension(name)
    if question.is_summed:
        with suppress(LedgerUnavailable):  # else the calls are read
            roll(file, now, question.since, question.until)
    rows = file.snapshot(lambda ask: list(totals(ask, question)))
    found = queries.merged(question.by, rows, question.zone)
    return found if found or question.by else [summed(())]


def totals(ask: Ask, question: Question) -> Iterator[Sequence[Any]]:
    """Yield rows of groups and sums, as `queries.merged` reads them."""
    kind, days = question.kind, question.days
    if kind is None or not days:
        known: dict[int, int] = {}
    else:
        query = "SELECT day, state FROM rolled WHERE day >= ? AND day < ? AND state > 0"
        known = dict(ask(query, (days.start, days.stop)))
        if question.is_local:
            known = {day: state for day, state in known.items() if state == PRUNED}
    summed = sorted(known)
    for place in range(0, len(summed), DAYS):
        yield from ask(*_summed(question, kind or 0, summed[place : place + DAYS]))
    if not days:  # short: one query
        yield from ask(*queries.totals(question.by, *question[1:]))
        return
    full = {day for day, state in known.items() if state == ROLLED}
    for day in days_with_calls(ask, question.since, question.until, full):
        since = max(question.since, day * _DAY_NS)
        until = min(question.until, (day + 1) * _DAY_NS)
        yield from ask(*queries.totals(question.by, since, until, *question[3:]))


def days_with_calls(ask: Ask, since: int, until: int, skipped: set[int]) -> Iterator[int]:
    """Yield the days that have calls, except *skipped* ones."""
    at = max(since, 0)
    while found := ask(_NEXT, (at, until)):
        day = found[0][0] // _DAY_NS
        if day not in skipped:
            yield day
        day += 1
        while day in skipped:
            day += 1
        at = day * _DAY_NS


def _summed(question: Question, kind: int, days: Sequence[int]) -> tuple[str, list[str | int]]:
    noon = f"day * {DAY // SLOT} + {DAY // SLOT // 2}" if question.is_local else "day"
    columns = [
        noon if name == "day" else "tag" if name.startswith("tag:") else name
        for name in question.by
    ]
    where = "kind = ? AND day >= ? AND day <= ?"
    states = (PRUNED, PRUNED) if question.is_local else (ROLLED, PRUNED)
    values: list[str | int] = [kind, days[0], days[-1], *states]
    where += " AND day IN (SELECT day FROM rolled WHERE state IN (?, ?))"
    if question.caller is not None:
        where += " AND caller = ?"
        values.append(queries.bindable(question.caller))
    if "attempt_error" in question.by:
        where += " AND attempt_error IS NOT NULL"
    group = f" GROUP BY {', '.join(str(n + 1) for n in range(len(columns)))}" if columns else ""
    return f"SELECT {', '.join([*columns, _SUM])} FROM rollups WHERE {where}{group}", values


# -- making the sums --


def roll(file: File, now: float, since: int = 0, until: int = MAX_INTEGER) -> None:
    """Sum up each day that has ended and has calls from *since* to *until*."""
    end = min(until, ns(now - SETTLED)) // _DAY_NS * _DAY_NS

    def missing(ask: Ask) -> list[int]:
        done = {day for (day,) in ask("SELECT day FROM rolled WHERE state > 0", ())}
        return list(days_with_calls(ask, -(-since // _DAY_NS) * _DAY_NS, end, done))

    for day in file.snapshot(missing):
        roll_day(file, day)


def roll_day(file: File, day: int) -> None:
    """Sum up a day without keeping others from writing; do nothing if a call is added meanwhile."""
    token = -random.randrange(1, 2**62)
    file.write(lambda sql: sql.execute(_BEGIN, (day, token)) and None)
    rows = file.snapshot(lambda ask: _rows(ask, day * _DAY_NS, (day + 1) * _DAY_NS))

    def store(sql: Cursor) -> None:
        if sql.execute(_END, (day, token)).rowcount:
            sql.execute(_CLEAR, (day,))
            _store(sql, day, rows)

    file.write(store)


def _rows(ask: Ask, since: int, until: int) -> list[list[tuple[Any, ...]]]:
    """Return the sums of the calls of a time for each kind: its dimensions, then the measures."""
    found = [
        ask(*queries.totals(names, since, until, None, UTC, every=True)) for names in KINDS[2:]
    ]
    coarse = [_coarser(KINDS[2], KINDS[0], found[0]), _coarser(KINDS[3], KINDS[1], found[1])]
    return [*coarse, *found]


def _coarser(
    fine: Sequence[str], names: Sequence[str], rows: Sequence[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    places = [fine.index(name) for name in names]
    groups: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        sums = groups.setdefault(tuple([row[place] for place in places]), [0] * len(_MEASURES))
        for number, value in enumerate(row[len(fine) :]):
            sums[number] += value or 0
    return [(*key, *sums) for key, sums in groups.items()]


def _store(sql: Cursor, day: int, rows: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    for kind, (names, found) in enumerate(zip(KINDS, rows, strict=True)):
        first = sql.execute(_LAST, (kind, day)).fetchone()[0]
        places = [names.index(name) if name in names else None for name in _NAMES]
        for n, row in enumerate(found, first):
            keys = ["" if place is None else row[place] for place in places]
            measures = [value or 0 for value in row[len(names) :]]
            sql.execute(_ADD, (kind, day, n, *keys, *measures))


# -- checking --


def problems(ask: Ask) -> Iterator[str]:
    """Yield what is wrong with the file: damage, or sums that differ from their rows."""
    yield from (f"the file is damaged: {text}" for (text,) in ask(_QUICK, ()) if text != "ok")
    for owner, period, kept, held in ask(_HELD, ()):
        yield f"the budget of {owner!r} in {period} holds {kept} pico-USD, its calls {held}"
    states = dict(ask("SELECT day, state FROM rolled WHERE state > 0", ()))
    spent: dict[str, int] = dict(ask(_PRUNED_COST, ()))
    for day in days_with_calls(ask, 0, MAX_INTEGER, set()):
        name = step_name("day", day * DAY)
        since, until = day * _DAY_NS, (day + 1) * _DAY_NS
        [(differ,)] = ask(_DIFFER, (since, until))
        if differ:
            yield f"{name}: {differ} calls do not cost what their attempts cost"
        for caller, cost in ask(_COST, (since, until)):
            spent[caller] = spent.get(caller, 0) + cost
        if states.get(day) == ROLLED and not _agree(ask, day, _rows(ask, since, until)):
            yield f"{name}: the sums of the day differ from its calls"
    for caller, total in ask(_SUMMED, ()):
        if spent.pop(caller, 0) != total:
            yield f"the sum of caller {caller!r} differs from its calls"
    yield from (f"caller {caller!r} has no sum" for caller, cost in spent.items() if cost)


def _agree(ask: Ask, day: int, rows: Sequence[Sequence[tuple[Any, ...]]]) -> bool:
    for kind, (names, expected) in enumerate(zip(KINDS, rows, strict=True)):
        columns = ", ".join([*names, *_MEASURES])
        kept = ask(f"SELECT {columns} FROM rollups WHERE kind = ? AND day = ?", (kind, day))
        keyed = {row[: len(names)]: [value or 0 for value in row[len(names) :]] for row in expected}
        if keyed != {row[: len(names)]: list(row[len(names) :]) for row in kept}:
            return False
    return True


# -- removing calls --


def prune(file: File, before: float, told: Callable[[int], None] = lambda _: None) -> int:
    """Remove the calls of the days that ended before *before*; return how many calls.

    What they sum up to stays, by day. Each transaction leaves every report's sums as they were.
    """
    end, count = int(before // DAY), 0
    days = file.snapshot(lambda ask: list(days_with_calls(ask, 0, end * _DAY_NS, set())))
    for day in days:
        file.write(partial(_mark, day))
        chunks = 0
        while removed := file.write(partial(_remove, day)):
            count, chunks = count + removed, chunks + 1
            told(count)
        if chunks > 1:
            file.write(partial(_compact, day))
    # what budgets need of the present month stays, wherever it begins
    slot = int(start("month", end * DAY) - 2 * DAY) // SLOT
    month = step_name("day", end * DAY - 2 * DAY)[:7]
    file.write(lambda sql: sql.execute(_THIN, (slot, slot)) and None)
    file.write(lambda sql: sql.execute(_OLD_PERIODS, (month,)) and None)
    return count


def _mark(day: int, sql: Cursor) -> None:
    if sql.execute("SELECT state FROM rolled WHERE day = ?", (day,)).fetchone() != (PRUNED,):
        sql.execute(_CLEAR, (day,))
        sql.execute(_MARK_PRUNED, (day,))


def _remove(day: int, sql: Cursor) -> int:
    """Replace some calls of a pruned day by their sums; return how many."""
    since, until = day * _DAY_NS, (day + 1) * _DAY_NS
    if nth := sql.execute(_NTH, (since, until, CHUNK)).fetchone():
        # calls with the same start stay together
        until = nth[0] if nth[0] > since else since + 1
    _store(sql, day, _rows(lambda *asked: sql.execute(*asked).fetchall(), since, until))
    sql.execute("DELETE FROM attempts WHERE at_ns >= ? AND at_ns < ?", (since, until))
    return sql.execute("DELETE FROM calls WHERE at_ns >= ? AND at_ns < ?", (since, until)).rowcount


def _compact(day: int, sql: Cursor) -> None:
    rows = []
    for kind, names in enumerate(KINDS):
        query = f"SELECT {', '.join(names)}, {_SUM} FROM rollups WHERE kind = ? AND day = ?"
        group = ", ".join(str(n + 1) for n in range(len(names)))
        rows.append(sql.execute(f"{query} GROUP BY {group}", (kind, day)).fetchall())
    sql.execute(_CLEAR, (day,))
    _store(sql, day, rows)


class Maintenance:
    """Sums up ended days of *file*, and removes calls that are older than *keep* seconds."""

    def __init__(self, file: File, keep: float | None) -> None:
        self._file = file
        self._keep = keep
        self._due = 0.0  # 0: not known yet
        self._look = 0.0  # when to look for lost calls

    def start(self, now: float) -> None:
        """Do what is due in a thread: at first soon after the start, then about once an hour.

        Every ten seconds, holds whose lease has ended become spending.
        """
        if now >= self._look:
            self._look = now + LOOK_SECONDS
            with suppress(LedgerUnavailable):
                self.lose(now)
        later = MAINTAIN_SECONDS * (0.5 + random.random())
        if not self._due:
            self._due = now + later / 60
        elif now >= self._due:
            self._due = now + later
            thread = threading.Thread(target=self.run, args=(now,), name="infermux-ledger")
            thread.daemon = True
            thread.start()

    def lose(self, now: float) -> None:
        """Turn the holds of calls that nobody settled in time into spending."""
        asked = (budgets.EXPIRED, (ms(now),))
        if self._file.snapshot(lambda ask: ask(*asked)) and not self._file.spooled():
            self._file.write(lambda sql: budgets.lose(sql, now, self._file.zone))

    def run(self, now: float) -> None:
        """Do what is due now."""
        with suppress(LedgerUnavailable):  # logged by the calls that cannot be recorded
            roll(self._file, now)
            if self._keep is not None and not self._file.spooled():
                prune(self._file, now - self._keep)
