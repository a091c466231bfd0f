"""Removes calls from PostgreSQL by whole months: a month's partition is dropped.

A role that owns no tables, such as a service's, deletes a month's rows instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial

from psycopg import Rollback, errors

from .. import LedgerUnavailable, rollups
from ..periods import DAY, midnight
from ..rollups import (
    DAY_NS,
    PRUNED,
    ROLLED,
    Database,
    day_rows,
    needed_from,
    roll_day,
    steps_with_calls,
    store_rows,
)
from ..stores import Ask
from .schema import following, month_of, partitions, span, tables_of
from .statements import Link, Run, Sql

ROUNDS = 5  # to sum up a month to which calls are added meanwhile
LOCK_MS = 100  # that dropping a partition waits for reports, and calls for it
LOCK_TRIES, LOCK_PAUSE = 150, 0.4  # to drop it while there are reports
_OWNED = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'calls'::regclass"
_MARK = f"UPDATE rolled SET state = {PRUNED} WHERE day = ANY(%s) AND state = {ROLLED}"
_DAYS = f"""SELECT at_ns / {DAY_NS} AS day, count(*) FROM calls WHERE at_ns >= %s AND at_ns < %s
    GROUP BY 1 ORDER BY 1"""
_OF_MONTH = "FROM rolled WHERE day >= %s AND day < %s"
_STATES = f"SELECT day, state {_OF_MONTH} ORDER BY day FOR UPDATE"  # late calls wait for it
_LATE = f"SELECT 1 {_OF_MONTH} AND day <> ALL(%s)"
_STATE = f"SELECT day FROM rolled WHERE day = ANY(%s) AND state = {PRUNED}"
_THIN = """WITH old AS (DELETE FROM sums WHERE slot < %s RETURNING caller, micro, pico)
    INSERT INTO sums (caller, slot, micro, pico)
    SELECT caller, %s, sum(micro), sum(pico) FROM old GROUP BY caller ORDER BY caller
    ON CONFLICT (caller, slot) DO UPDATE
    SET micro = sums.micro + excluded.micro, pico = sums.pico + excluded.pico"""
_OLD_PERIODS = """DELETE FROM budgets WHERE held = 0 AND period < %s
    AND NOT EXISTS (SELECT 1 FROM holds AS h WHERE h.owner = budgets.owner
        AND h.period = budgets.period)"""
_HELD = """SELECT b.owner, b.period, b.held, coalesce(h.held, 0) FROM budgets AS b
    LEFT JOIN (SELECT owner, period, sum(pico) AS held FROM holds GROUP BY owner, period) AS h
    USING (owner, period) WHERE b.held <> coalesce(h.held, 0)"""
_SUMMED = "SELECT caller, sum(micro) * 1000000 + sum(pico) FROM sums GROUP BY caller"


def first_kept(before: float) -> float:
    """Return the start of the month (UTC) that contains *before*."""
    return midnight(month_of(before))


def prune(database: Database, run: Run, before: float, told: Callable[[int], None]) -> int:
    end, count = int(first_kept(before) // DAY), 0
    days = database.snapshot(lambda ask: list(steps_with_calls(ask, 0, end * DAY_NS)))
    [[owned]] = run(lambda link: link.execute(_OWNED).fetchall())
    for month in sorted({month_of(day * DAY) for day in days}):
        count += _remove(database, run, month, owned)
        told(count)
    if owned:
        run(partial(_drop_empty, end))
    slot, oldest = needed_from(end)

    def thin(link: Link) -> None:
        with link.transaction():
            link.execute("SET LOCAL statement_timeout = 0")
            link.execute(_THIN, (slot, slot - 1))
            link.execute(_OLD_PERIODS, (oldest,))

    run(thin)
    return count


def _remove(database: Database, run: Run, month: date, owned: bool) -> int:
    for _ in range(ROUNDS):
        days, done = run(partial(_days, month))
        for day in days:
            if day not in done:
                roll_day(database, day)
        with suppress(Rollback):  # its connection was lost
            removed = run(partial(_replace, month, days, owned))
            if removed is not None:
                return int(removed)
    return 0


def _days(month: date, link: Link) -> tuple[list[int], set[int]]:
    """Return the days that have calls, and those of them that were pruned before."""
    days = [day for day, _ in link.execute(_DAYS, span(month)).fetchall()]
    return days, {day for (day,) in link.execute(_STATE, (days,)).fetchall()}


def _replace(month: date, days: list[int], owned: bool, link: Link) -> int | None:
    """Mark the days as pruned and remove their calls, if their sums are those of the calls.

    Return how many calls, or None if a call was added meanwhile. Until the partition is dropped,
    no table is locked.
    """
    times = span(month)
    bounds = [ns // DAY_NS for ns in times]
    with link.transaction() as whole:
        link.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")  # to see what comes late
        link.execute("SET LOCAL statement_timeout = 0")
        states = dict(link.execute(_STATES, bounds).fetchall())
        calls = dict(link.execute(_DAYS, times).fetchall())
        found = list(calls)
        if any(states.get(day, 0) < ROLLED for day in found) or not set(found) <= set(days):
            raise Rollback(whole)
        for day in found:
            if states[day] == PRUNED:  # calls that came later are added to its sums
                sql = Sql(link)
                store_rows(sql, day, day_rows(sql.ask, day * DAY_NS, (day + 1) * DAY_NS))
        link.execute(_MARK, (found,))
        names = tables_of(month)
        if owned and month in partitions(link):
            _lock_patiently(link, names)
            if link.execute(_LATE, (*bounds, list(states))).fetchone():
                raise Rollback(whole)
            link.execute(f"DROP TABLE {', '.join(names)}")
        else:
            for table in ("attempts", "calls"):
                query = f"DELETE FROM {table} WHERE at_ns >= %s AND at_ns < %s"
                link.execute(f"{query} AND at_ns / {DAY_NS} = ANY(%s)", (*times, found))
        return sum(calls.values())
    return None


def _lock_patiently(link: Link, names: list[str]) -> None:
    for _ in range(LOCK_TRIES):
        with suppress(errors.LockNotAvailable), link.transaction():
            _lock(link, names)
            return
        time.sleep(LOCK_PAUSE)
    raise LedgerUnavailable("a report or a backup reads the calls to be removed: try again later")


def _lock(link: Link, names: list[str]) -> None:
    """Lock partitions and their tables alone, in a short attempt: calls wait behind it."""
    link.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
    link.execute(f"LOCK TABLE ONLY calls, ONLY attempts, {', '.join(names)}")


def _drop_empty(end: int, link: Link) -> None:
    for month in partitions(link):
        if midnight(following(month)) > end * DAY:
            return
        with suppress(errors.LockNotAvailable), link.transaction():
            names = tables_of(month)
            _lock(link, names)
            used = " UNION ALL ".join(f"SELECT 1 FROM {name}" for name in names)
            if link.execute(f"{used} LIMIT 1").fetchone() is None:
                link.execute(f"DROP TABLE {', '.join(names)}")


def problems(ask: Ask) -> Iterator[str]:
    """Yield a message for each sum that differs from its rows."""
    ask("SELECT set_config('statement_timeout', '0', true)", ())
    yield from rollups.problems(ask, _HELD, _SUMMED)
