"""Removes calls from the file, and checks the file itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from sqlite3 import Cursor

from ..periods import DAY
from ..queries import group_by
from ..rollups import (
    CLEAR,
    DAY_NS,
    KINDS,
    NEXT,
    PRUNED,
    SUM,
    Database,
    day_rows,
    needed_from,
    steps_with_calls,
    store_rows,
)
from ..stores import Ask

CHUNK = 5000  # calls that are removed in one transaction
_NTH = f"{NEXT} OFFSET ?"
_MARK_PRUNED = f"INSERT OR REPLACE INTO rolled VALUES (?, {PRUNED})"
_THIN = """DELETE FROM sums WHERE slot < ? AND slot <
    (SELECT max(slot) FROM sums AS s WHERE s.caller = sums.caller AND s.slot < ?)"""
_OLD_PERIODS = "DELETE FROM budgets WHERE call_id = '' AND held = 0 AND period < ?"
_QUICK = "PRAGMA quick_check(10)"
HELD = """SELECT caller, period, sum(CASE call_id WHEN '' THEN held ELSE 0 END) AS kept,
        sum(CASE call_id WHEN '' THEN 0 ELSE held END) AS by_calls
    FROM budgets GROUP BY caller, period HAVING kept <> by_calls"""
SUMMED = """SELECT caller, micro * 1000000 + pico FROM sums AS s
    WHERE slot = (SELECT max(slot) FROM sums AS t WHERE t.caller = s.caller)"""


def damage(ask: Ask) -> Iterator[str]:
    yield from (f"the file is damaged: {text}" for (text,) in ask(_QUICK, ()) if text != "ok")


def prune(file: Database, before: float, told: Callable[[int], None]) -> int:
    """Remove the calls of the days that ended before *before*; return how many calls.

    Their sums stay, by day, and no transaction changes the sums of a report.
    """
    end, count = int(before // DAY), 0
    days = file.snapshot(lambda ask: list(steps_with_calls(ask, 0, end * DAY_NS)))
    for day in days:
        file.write(partial(_mark, day))
        chunks = 0
        while removed := file.write(partial(_remove, day)):
            count, chunks = count + removed, chunks + 1
            told(count)
        if chunks > 1:
            file.write(partial(_compact, day))
    slot, month = needed_from(end)
    file.write(lambda sql: sql.execute(_THIN, (slot, slot)) and None)
    file.write(lambda sql: sql.execute(_OLD_PERIODS, (month,)) and None)
    return count


def _mark(day: int, sql: Cursor) -> None:
    if sql.execute("SELECT state FROM rolled WHERE day = ?", (day,)).fetchone() != (PRUNED,):
        sql.execute(CLEAR, (day,))
        sql.execute(_MARK_PRUNED, (day,))


def _remove(day: int, sql: Cursor) -> int:
    since, until = day * DAY_NS, (day + 1) * DAY_NS
    if nth := sql.execute(_NTH, (since, until, CHUNK)).fetchone():
        # calls with the same start are removed together
        until = nth[0] if nth[0] > since else since + 1
    store_rows(sql, day, day_rows(lambda *asked: sql.execute(*asked).fetchall(), since, until))
    sql.execute("DELETE FROM attempts WHERE at_ns >= ? AND at_ns < ?", (since, until))
    return sql.execute("DELETE FROM calls WHERE at_ns >= ? AND at_ns < ?", (since, until)).rowcount


def _compact(day: int, sql: Cursor) -> None:
    rows = []
    for kind, names in enumerate(KINDS):
        query = f"SELECT {', '.join(names)}, {SUM} FROM rollups WHERE kind = ? AND day = ?"
        rows.append(sql.execute(query + group_by(names), (kind, day)).fetchall())
    sql.execute(CLEAR, (day,))
    store_rows(sql, day, rows)
