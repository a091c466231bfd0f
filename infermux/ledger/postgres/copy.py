"""Copies a ledger of SQLite into an empty one of PostgreSQL, resumably, and compares both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from .. import LedgerUnavailable, Record, rollups
from ..holds import MICRO
from ..periods import DAY, MAX_INTEGER
from ..rollups import PRUNED
from ..sql import Ledger
from ..stores import Ask
from .schema import add_partitions, months
from .settlements import ADD_SUMS, marks, write_rows
from .statements import Link, Run, Sql, recordset

NEWEST = MAX_INTEGER - 1
_SPAN = "SELECT (SELECT min(at_ns) FROM calls), (SELECT max(at_ns) FROM calls)"
_STATE = "SELECT at_ns, id, calls, ended FROM copies WHERE source = ?"
_BEGIN = "INSERT INTO copies (source, at_ns, id) VALUES (?, -1, '') ON CONFLICT DO NOTHING"
_ADVANCE = "UPDATE copies SET at_ns = ?, id = ?, calls = calls + ? WHERE source = ?"
_END = "UPDATE copies SET ended = 1 WHERE source = ? AND ended = 0"
_USED = "SELECT EXISTS (SELECT 1 FROM calls) OR EXISTS (SELECT 1 FROM budgets)"
# what each slot has cost: SQLite has the sums up to its end
_SUMS = """SELECT caller, slot, micro - lag(micro, 1, 0) OVER earlier,
        pico - lag(pico, 1, 0) OVER earlier
    FROM sums WINDOW earlier AS (PARTITION BY caller ORDER BY slot) ORDER BY caller, slot"""
_PRUNED = f"SELECT day FROM rolled WHERE state = {PRUNED} ORDER BY day"
_ADD_PRUNED = f"""INSERT INTO rolled VALUES (?, {PRUNED})
    ON CONFLICT (day) DO UPDATE SET state = excluded.state"""
_NEW_KEYS = "UPDATE versions SET version = version + 1 WHERE name = 'keys'"
_BUDGET = "owner, period, spent, held, waived, raised, warned_ms"
_HOLD = "call_id, owner, period, pico, at_ms, expires_ms, about"
# the other tables: columns in the copy, and in the source where they differ
_OTHERS = {
    "budgets": (_BUDGET, f"{_BUDGET.replace('owner', 'caller')} FROM budgets WHERE call_id = ''"),
    "holds": (
        _HOLD,
        "call_id, caller, period, held, at_ms, expires_ms, about FROM budgets WHERE call_id > ''",
    ),
    "adjustments": ("at_ns, name, team, period, action, pico", ""),
    "api_keys": ("name, settings, created_ms, expires_ms, revoked_ms", ""),
    "key_hashes": ("hash, name, at_ms, until_ms", ""),
    "alerts": ("subject, at_ms, host", ""),
    "objects": ("provider, caller, ident, at_ms", ""),
}
# sums that must be equal in both: per 30 days, per caller, and per budget
_BY_MONTH = f"""SELECT at_ns / {30 * DAY * 10**9}, count(*), sum(cost / {MICRO}),
        sum(cost % {MICRO}), sum(input_tokens), sum(output_tokens), sum(unpriced){{}}
    GROUP BY 1 ORDER BY 1"""
_PRUNED_SUMS = f"""SELECT kind, day, count(*), sum(calls), sum(attempts), sum(micro), sum(pico)
    FROM rollups WHERE day IN (SELECT day FROM rolled WHERE state = {PRUNED})
    GROUP BY 1, 2 ORDER BY 1, 2"""
_BUDGETS = "SELECT {owner}, period, spent, held, waived, raised FROM budgets {where} ORDER BY 1, 2"


class Copied(NamedTuple):
    """The number of copied calls, and a message for each difference between the ledgers."""

    calls: int
    resumed: int  # those of them that an earlier run has copied
    differences: list[str]


def copy(
    source: Ledger,
    name: str,
    run: Run,
    target: Ledger,
    told: Callable[[int], None] = lambda _: None,
) -> Copied:
    """Copy the rest of *source*, recorded under *name*, and compare both.

    Raise LedgerUnavailable if the target has calls of its own. Nobody may write to the source.
    """
    at, id, resumed, ended = run(lambda link: _begun(link, name))
    if ended:
        return Copied(resumed, resumed, [])
    count = resumed
    run(lambda link: _partitions(link, source))
    while page := source.page((at, id), NEWEST):
        at, id = page[-1].call.at_ns, page[-1].call.id
        run(partial(_add, name, page, target.clock()))
        count += len(page)
        told(count)
    rest = source.snapshot(_rest)
    run(lambda link: _finish(link, name, *rest))
    theirs = target.snapshot(lambda ask: _sums(ask, "owner", ""))
    ours = source.snapshot(lambda ask: _sums(ask, "caller", "WHERE call_id = ''"))
    return Copied(count, resumed, list(_differences(ours, theirs)))


def _begun(link: Link, name: str) -> tuple[int, str, int, int]:
    sql = Sql(link)
    found: tuple[int, str, int, int] | None = sql.execute(_STATE, (name,)).fetchone()
    if found is None:
        [used] = sql.execute(_USED).fetchone()
        if used:
            raise LedgerUnavailable("it has calls or budgets already: copy into an empty one")
        sql.execute(_BEGIN, (name,))
    return found or (-1, "", 0, 0)


def _partitions(link: Link, source: Ledger) -> None:
    [[first, last]] = source.snapshot(lambda ask: ask(_SPAN, ()))
    if first is not None:
        needed = months(first / 1e9, int((last - first) // (28 * DAY * 10**9)) + 1)
        add_partitions(link, needed[1:])


def _add(name: str, page: Sequence[Record], now: float, link: Link) -> None:
    last = page[-1].call
    with link.transaction():
        for mark in marks(page, now):  # a service may sum up a day meanwhile
            link.execute(*mark)
        # a run that lost its connection may have committed: nothing is added twice
        write_rows(link, page)
        Sql(link).execute(_ADVANCE, (last.at_ns, last.id, len(page), name))


Rows = list[Sequence[Any]]
Sums = dict[str, list[tuple[Any, ...]]]  # of a ledger, by what they sum up


def _rest(ask: Ask) -> tuple[Rows, list[tuple[str, Rows]]]:
    """Return the sums of callers, and statements with the other rows for the last transaction."""
    days = ask(_PRUNED, ())
    kept = [row for (day,) in days for row in ask(rollups.OF_DAY, (day,))]
    found = [(_ADD_PRUNED, days), (rollups.CLEAR, days), (rollups.ADD, kept)]
    for table, (columns, source) in _OTHERS.items():
        marks = ", ".join("?" * (columns.count(",") + 1))
        add = f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT DO NOTHING"
        found.append((add, ask(f"SELECT {source or f'{columns} FROM {table}'}", ())))
    return ask(_SUMS, ()), found


def _finish(link: Link, name: str, sums: Rows, others: list[tuple[str, Rows]]) -> None:
    with link.transaction():
        sql = Sql(link)
        if not sql.execute(_END, (name,)).rowcount:
            return  # it was done before the connection was lost
        link.execute(ADD_SUMS, (recordset(sums),))
        for statement, rows in others:
            sql.executemany(statement, rows)
        sql.execute(_NEW_KEYS)


def _sums(ask: Ask, owner: str, where: str) -> Sums:
    asked = {
        "calls": _BY_MONTH.format(", sum(attempts) FROM calls"),
        "attempts": _BY_MONTH.format(" FROM attempts"),
        "removed calls": _PRUNED_SUMS,
        "budgets": _BUDGETS.format(owner=owner, where=where),
    }
    return {
        what: [tuple(value or 0 for value in row) for row in ask(query, ())]
        for what, query in asked.items()
    }


def _differences(ours: Sums, theirs: Sums) -> Iterator[str]:
    for what, rows in ours.items():
        if rows != theirs[what]:
            missing = [row for row in rows if row not in theirs[what]]
            more = [row for row in theirs[what] if row not in rows]
            yield f"the sums of {what} differ: {missing[:1]} in the source, {more[:1]} in the copy"
