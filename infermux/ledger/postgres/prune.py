"""Removes calls from PostgreSQL by whole months: a month's partition is dropped.

A role that owns no tables, such as a service's, deletes a month's rows instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from functools import partial
from typing import Any

from psycopg import Rollback, errors

from ..periods import DAY, SLOT, midnight, start, step_name
from ..rollups import (
    DAY_NS,
    PRUNED,
    ROLLED,
    Database,
    day_rows,
    days_with_calls,
    roll_day,
    store_rows,
)
from ..stores import Ask
from .budgets import PERIODS
from .schema import following, partition, partitions
from .statements import Link, Sql

ROUNDS = 5  # to sum up a month to which calls are added meanwhile
LOCK_MS = 2000  # that dropping a partition waits for other transactions
_OWNED = "SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'calls'::regclass"
_MARK = f"UPDATE rolled SET state = {PRUNED} WHERE day = ANY(%s) AND state = {ROLLED}"
_CALLS = "SELECT count(*) FROM calls WHERE at_ns >= %s AND at_ns < %s"
_DAYS = f"""SELECT at_ns / {DAY_NS} AS day, count(*) FROM calls WHERE at_ns >= %s AND at_ns < %s
    GROUP BY 1 ORDER BY 1"""
_STATES = "SELECT day, state FROM rolled WHERE day = ANY(%s) ORDER BY day FOR UPDATE"
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
SUMMED = "SELECT caller, sum(micro) * 1000000 + sum(pico) FROM sums GROUP BY caller"


def first_kept(before: float) -> float:
    """Return the start of the month (UTC) that contains *before*."""
    day = date.fromisoformat(step_name("day", before))
    return midnight(day.replace(day=1))


def prune(
    database: Database, run: Callable[[Callable[[Link], Any]], Any], before: float,
    told: Callable[[int], None],
) -> int:  # fmt: skip
    """See `PostgresLedger.prune`."""
    end, count = int(first_kept(before) // DAY), 0
    days = database.snapshot(lambda ask: list(days_with_calls(ask, 0, end * DAY_NS, set())))
    months = sorted({first_kept(day * DAY) for day in days})
    [[owned]] = run(lambda link: link.execute(_OWNED).fetchall())
    for at in months:
        month = date.fromisoformat(step_name("day", at))
        count += _remove(database, run, month, owned)
        told(count)
    if owned:
        run(partial(_drop_empty, end))
    # budgets need the current month, in every time zone
    slot = int(start("month", end * DAY) - 2 * DAY) // SLOT
    oldest = step_name("day", end * DAY - 2 * DAY)[:7]

    def thin(link: Link) -> None:
        with link.transaction():
            link.execute(f"SELECT pg_advisory_xact_lock({PERIODS})")
            link.execute(_THIN, (slot, slot - 1))
            link.execute(_OLD_PERIODS, (oldest,))

    run(thin)
    return count


def _remove(
    database: Database, run: Callable[[Callable[[Link], Any]], Any], month: date, owned: bool
) -> int:
    for _ in range(ROUNDS):
        days, done = run(partial(_days, month))
        for day in days:
            if day not in done:
                roll_day(database, day)
        removed = run(partial(_replace, month, days, owned))
        if removed is not None:
            return int(removed)
    return 0


def _days(month: date, link: Link) -> tuple[list[int], set[int]]:
    """Return the days that have calls, and those of them that were pruned before."""
    days = [day for day, _ in link.execute(_DAYS, _span(month)).fetchall()]
    return days, {day for (day,) in link.execute(_STATE, (days,)).fetchall()}


def _replace(month: date, days: list[int], owned: bool, link: Link) -> int | None:
    """Mark the days as pruned and remove their calls, if their sums are those of the calls.

    Return how many calls, or None if a call was added meanwhile.
    """
    count = None
    with link.transaction() as whole:
        link.execute("SET LOCAL statement_timeout = 0")
        dropped = owned and month in partitions(link)
        if dropped:
            link.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
            names = ", ".join(partition(table, month) for table in ("calls", "attempts"))
            link.execute(f"LOCK TABLE ONLY calls, ONLY attempts, {names} IN ACCESS EXCLUSIVE MODE")
        states = dict(link.execute(_STATES, (days,)).fetchall())
        found = [day for day, _ in link.execute(_DAYS, _span(month)).fetchall()]
        if any(states.get(day, 0) < ROLLED for day in found) or not set(found) <= set(days):
            raise Rollback(whole)
        for day in found:
            if states[day] == PRUNED:  # calls that came later are added to its sums
                sql = Sql(link)
                store_rows(sql, day, day_rows(sql.ask, day * DAY_NS, (day + 1) * DAY_NS))
        link.execute(_MARK, (found,))
        [count] = link.execute(_CALLS, _span(month)).fetchone() or (0,)
        for table in ("attempts", "calls"):
            if dropped:
                link.execute(f"DROP TABLE {partition(table, month)}")
            else:
                query = f"DELETE FROM {table} WHERE at_ns >= %s AND at_ns < %s"
                link.execute(f"{query} AND at_ns / {DAY_NS} = ANY(%s)", (*_span(month), found))
    return count


def _drop_empty(end: int, link: Link) -> None:
    for month in partitions(link):
        if midnight(following(month)) > end * DAY:
            return
        with suppress(errors.LockNotAvailable), link.transaction():
            link.execute(f"SET LOCAL lock_timeout = {LOCK_MS}")
            names = [partition(table, month) for table in ("calls", "attempts")]
            link.execute(f"LOCK TABLE {', '.join(names)} IN ACCESS EXCLUSIVE MODE")
            used = " UNION ALL ".join(f"SELECT 1 FROM {name}" for name in names)
            if link.execute(f"{used} LIMIT 1").fetchone() is None:
                for name in names:
                    link.execute(f"DROP TABLE {name}")


def _span(month: date) -> tuple[int, int]:
    return round(midnight(month)) * 10**9, round(midnight(following(month))) * 10**9


def held(ask: Ask) -> Iterator[str]:
    """Yield a message for each budget whose holds differ from those of its calls."""
    for owner, period, kept, by_calls in ask(_HELD, ()):
        yield f"the budget of {owner!r} in {period} holds {kept} pico-USD, its calls {by_calls}"
