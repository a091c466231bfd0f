"""Daily sums of calls: reports read them instead of the calls, and they outlast the calls.

A day (UTC) has a state. Not in `rolled`, or negative, which means that it is being rolled: only its
calls count. ROLLED: its sums count, and are equal to its calls'. PRUNED: its sums count, and so do
the calls that are left. A trigger forgets the state of a rolled day when a call is added to it, so
a report never depends on when its sums were made.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, tzinfo
from typing import Any, NamedTuple, Protocol

from . import LedgerUnavailable, Total, queries, stores, summed
from .groups import started
from .periods import DAY, MAX_INTEGER, SLOT, ns, start, step_name
from .stores import Ask, Sql

ROLLED, PRUNED = 1, 2
SETTLED = 3600  # seconds after which an ended day is rolled: few calls are added to it
MAINTAIN_SECONDS = 3600.0
LOOK_SECONDS = 10.0
TIDY_SECONDS = 60.0
DAYS = 32  # whose sums one query adds up, to need little memory
# the dimensions of each kind of sums; a report reads the first kind that has all of its own
KINDS = (
    ("caller", "error"),
    ("model", "served", "provider"),
    ("caller", "error", "tag"),
    ("caller", "error", "model", "served", "provider", "attempt_error"),
)
DAY_NS, SLOT_NS = DAY * 10**9, SLOT * 10**9
_NAMES = ("caller", "tag", "error", "model", "served", "provider", "attempt_error")
_PAIRS = {"cost": ("micro", "pico"), "cache_saved": ("saved_micro", "saved_pico")}
_PAIRS |= {"assumed": ("assumed_micro", "assumed_pico")}
_MEASURES = [name for field in Total._fields[1:] for name in _PAIRS.get(field, (field,))]
_COLUMNS = ", ".join(("kind", "day", "n", *_NAMES, *_MEASURES))
ADD = f"INSERT INTO rollups ({_COLUMNS}) VALUES ({', '.join('?' * (10 + len(_MEASURES)))})"
OF_DAY = f"SELECT {_COLUMNS} FROM rollups WHERE day = ? ORDER BY kind, n"
CLEAR = f"DELETE FROM rollups WHERE kind < {len(KINDS)} AND kind >= 0 AND day = ?"
SUM = ", ".join(f"sum({name})" for name in _MEASURES)
NEXT = "SELECT at_ns FROM calls WHERE at_ns >= ? AND at_ns < ? ORDER BY at_ns LIMIT 1"
_LAST = "SELECT coalesce(max(n), -1) + 1 FROM rollups WHERE kind = ? AND day = ?"
_BEGIN = """INSERT INTO rolled VALUES (?, ?)
    ON CONFLICT (day) DO UPDATE SET state = excluded.state WHERE rolled.state <= 0"""
_END = f"UPDATE rolled SET state = {ROLLED} WHERE day = ? AND state = ?"
_DIFFER = """SELECT count(*) FROM calls AS c LEFT JOIN (
        SELECT at_ns, call_id, sum(cost) AS cost FROM attempts WHERE at_ns >= ? AND at_ns < ?
        GROUP BY at_ns, call_id) AS a ON a.at_ns = c.at_ns AND a.call_id = c.id
    WHERE c.at_ns >= ? AND c.at_ns < ? AND coalesce(c.cost, 0) <> coalesce(a.cost, 0)"""
_COST = "SELECT caller, sum(cost) FROM calls WHERE at_ns >= ? AND at_ns < ? AND cost > 0 GROUP BY 1"
_PRUNED_COST = f"""SELECT caller, sum(micro) * 1000000 + sum(pico) FROM rollups
    WHERE kind = 0 AND day IN (SELECT day FROM rolled WHERE state = {PRUNED}) GROUP BY caller"""


class Database(stores.Database, Protocol):
    """The ledger whose days are rolled: a part of `sql.Ledger`."""

    def spooled(self) -> int: ...
    def tidy(self, now: float) -> None: ...
    def lose(self, now: float) -> None: ...
    def prune(self, before: float) -> int: ...


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
        since: float | None = None,
        until: float | None = None,
        caller: str | None = None,
        zone: tzinfo = UTC,
    ) -> Question:
        """Return the question about a period in seconds; None: unbounded."""
        first, last = queries.bounds(since, until)
        return cls(by, first or 0, MAX_INTEGER if last is None else last, caller, zone)

    @property
    def days(self) -> range:
        """The days (UTC, since 1970) that are wholly in the period."""
        return range(-(-max(self.since, 0) // DAY_NS), min(self.until, ns(9e9)) // DAY_NS)

    @property
    def noons(self) -> range:
        """The days whose noon is in the period: a day of which only sums are left counts there."""
        first, last = (max(at, 0) - DAY_NS // 2 for at in (self.since, min(self.until, ns(9e9))))
        return range(-(-first // DAY_NS), -(-last // DAY_NS))

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


def report(file: Database, question: Question, now: float) -> list[Total]:
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
    kind, days, noons = question.kind, question.days, question.noons
    known: dict[int, int] = {}
    if kind is not None and noons:
        query = "SELECT day, state FROM rolled WHERE day >= ? AND day < ? AND state > 0"
        whole = () if question.is_local else days
        found = ask(query, (noons.start, noons.stop))
        known = {day: state for day, state in found if state == PRUNED or day in whole}
    summed = sorted(known)
    for place in range(0, len(summed), DAYS):
        yield from ask(*_summed(question, kind or 0, summed[place : place + DAYS]))
    if not days:  # short: one query
        yield from ask(*queries.totals(question.by, *question[1:]))
        return
    full = {day for day, state in known.items() if state == ROLLED}
    for day in steps_with_calls(ask, question.since, question.until, full):
        since = max(question.since, day * DAY_NS)
        until = min(question.until, (day + 1) * DAY_NS)
        yield from ask(*queries.totals(question.by, since, until, *question[3:]))


def steps_with_calls(
    ask: Ask, since: int, until: int, skipped: Collection[int] = (), size: int = DAY_NS
) -> Iterator[int]:
    """Yield the days that have calls, or the steps of *size* ns, except *skipped* ones.

    Both are numbered since 1970. *since* and *until* are in nanoseconds.
    """
    at = max(since, 0)
    while at < until:
        if at // size not in skipped:
            if not (found := ask(NEXT, (at, until))):
                return
            at = found[0][0]
            if at // size not in skipped:
                yield at // size
        at = (at // size + 1) * size


def needed_from(end: int) -> tuple[int, str]:
    """Return the first slot and month that budgets need when the days before *end* are removed.

    They need the current month, in every time zone.
    """
    slot = int(start("month", end * DAY) - 2 * DAY) // SLOT
    return slot, step_name("day", end * DAY - 2 * DAY)[:7]


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
    group = queries.group_by(columns)
    return f"SELECT {', '.join([*columns, SUM])} FROM rollups WHERE {where}{group}", values


# -- making the sums --


def roll(file: Database, now: float, since: int = 0, until: int = MAX_INTEGER) -> None:
    """Sum up each day that has ended and has calls from *since* to *until*."""
    end = min(until, ns(now - SETTLED)) // DAY_NS * DAY_NS

    def missing(ask: Ask) -> list[int]:
        done = {day for (day,) in ask("SELECT day FROM rolled WHERE state > 0", ())}
        return list(steps_with_calls(ask, -(-since // DAY_NS) * DAY_NS, end, done))

    for day in file.snapshot(missing):
        roll_day(file, day)


def roll_day(file: Database, day: int) -> None:
    """Sum up a day without keeping others from writing; do nothing if a call is added meanwhile."""
    token = -random.randrange(1, 2**62)
    file.write(lambda sql: sql.execute(_BEGIN, (day, token)) and None)
    rows = file.snapshot(lambda ask: day_rows(ask, day * DAY_NS, (day + 1) * DAY_NS))

    def store(sql: Sql) -> None:
        if sql.execute(_END, (day, token)).rowcount:
            sql.execute(CLEAR, (day,))
            store_rows(sql, day, rows)

    file.write(store)


def day_rows(ask: Ask, since: int, until: int) -> list[list[tuple[Any, ...]]]:
    """Return the sums of the calls of a time for each kind: its dimensions, then the measures."""
    found = [
        ask(*queries.totals(names, since, until, None, UTC, every=True)) for names in KINDS[2:]
    ]
    return [_coarser(KINDS[n + 2], KINDS[n], rows) for n, rows in enumerate(found)] + found


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


def store_rows(sql: Sql, day: int, sums: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    for kind, (names, found) in enumerate(zip(KINDS, sums, strict=True)):
        first = sql.execute(_LAST, (kind, day)).fetchone()[0]
        places = [names.index(name) if name in names else None for name in _NAMES]
        rows = []
        for n, row in enumerate(found, first):
            named = ["" if place is None else row[place] for place in places]
            rows.append((kind, day, n, *named, *[each or 0 for each in row[len(names) :]]))
        sql.executemany(ADD, rows)


# -- checking --


def problems(ask: Ask, held: str, summed: str) -> Iterator[str]:
    """Yield sums that differ from their rows.

    *held* asks for the budgets that hold what their calls do not, *summed* for each caller's sum.
    """
    for owner, period, kept, by_calls in ask(held, ()):
        yield f"the budget of {owner!r} in {period} holds {kept} pico-USD, its calls {by_calls}"
    states = dict(ask("SELECT day, state FROM rolled WHERE state > 0", ()))
    spent: dict[str, int] = dict(ask(_PRUNED_COST, ()))
    for day in steps_with_calls(ask, 0, MAX_INTEGER):
        name = step_name("day", day * DAY)
        since, until = day * DAY_NS, (day + 1) * DAY_NS
        [(differ,)] = ask(_DIFFER, (since, until) * 2)
        if differ:
            yield f"{name}: {differ} calls do not cost what their attempts cost"
        for caller, cost in ask(_COST, (since, until)):
            spent[caller] = spent.get(caller, 0) + cost
        if states.get(day) == ROLLED and not _agree(ask, day, day_rows(ask, since, until)):
            yield f"{name}: the sums of the day differ from its calls"
    for caller, total in ask(summed, ()):
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


tasks: list[Callable[[Database, float], None]] = []  # that others add: also done once an hour


class Maintenance:
    """Sums up ended days of *file*, and removes calls that are older than *keep* seconds."""

    def __init__(self, file: Database, keep: float | None) -> None:
        self._file = file
        self._keep = keep
        self._due = 0.0  # 0: not known yet
        self._look = self._tidy = 0.0  # when to look for lost calls, and to tidy

    def start(self, now: float) -> None:
        """Do what is due in a thread: at first soon after the start, then about once an hour.

        Every ten seconds, holds whose lease has ended become spending.
        """
        if now >= self._look:
            self._look = now + LOOK_SECONDS
            with suppress(LedgerUnavailable):
                self._file.lose(now)
        if now >= self._tidy:
            self._tidy = now + TIDY_SECONDS
            with suppress(LedgerUnavailable):
                self._file.tidy(now)
        later = MAINTAIN_SECONDS * (0.5 + random.random())
        if not self._due:
            self._due = now + later / 60
        elif now >= self._due:
            self._due = now + later
            started("ledger", self.run, now)

    def run(self, now: float) -> None:
        with suppress(LedgerUnavailable):  # logged by the calls that cannot be recorded
            roll(self._file, now)
            for task in tasks:
                task(self._file, now)
            if self._keep is not None and not self._file.spooled():
                self._file.prune(now - self._keep)
