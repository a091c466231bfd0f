"""Budgets in PostgreSQL: what is reserved, spent, forgiven and added, by owner and period.

A reservation is one conditional statement, exact however many hosts reserve at a time. To avoid
deadlocks, every transaction locks in this order, and rows of a table by their keys: the locks of
callers, rolled, holds, calls, attempts, plans, sums, budgets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from itertools import count
from typing import Any
from zlib import crc32

from psycopg import errors

from .. import Adjustment, Budget, BudgetState, Hold
from ..holds import (
    LOST_COST,
    MAX_SPENT,
    MICRO,
    Refused,
    Rules,
    Taken,
    adjusted,
    decide,
    lost_place,
    slots,
)
from ..periods import MAX_INTEGER, ms, names
from .connection import Database
from .statements import Link, Rows, Sql, Statement, recordset, run, transposed

# Settlements hold their callers' locks shared, so none commits while a period begins with the cost
# of their calls. Some callers have the same lock.
LOCKS = 64
_LOCK = "SELECT pg_advisory_xact_lock{}(4992032, n) FROM unnest(%s::int[]) AS w(n)"
SHARED, _ALONE = _LOCK.format("_shared"), _LOCK.format("")
_BUDGET = "owner = ? AND period = ?"
_WANTED = "JOIN unnest(%s::text[], %s::text[]) AS w(owner, period) USING (owner, period)"
_USED = "spent::numeric + held - waived - raised"
_INTO_HOLDS = "INSERT INTO holds (call_id, owner, period, pico, at_ms, expires_ms, about)"
_TAKE = f"""WITH taken AS (UPDATE budgets SET held = held + $4::bigint
        WHERE owner = $2 AND period = $3 AND {_USED} + $4::bigint <= $5::numeric
        RETURNING owner, {_USED} - $4 AS used, warned_ms, raised),
    added AS ({_INTO_HOLDS}
        SELECT $1::text, $2, $3, $4, $6::bigint, $7::bigint, $8::text FROM taken)
    SELECT * FROM taken"""
_TAKE_ALL = f"""WITH wanted AS (
        SELECT * FROM unnest(%s::text[], %s::text[], %s::numeric[]) AS w(owner, period, most)),
    fits AS (SELECT count(*) AS n FROM budgets JOIN wanted USING (owner, period)
        WHERE {_USED} + %s::numeric <= most),
    taken AS (UPDATE budgets AS b SET held = b.held + %s::bigint FROM wanted AS w, fits
        WHERE fits.n = %s AND b.owner = w.owner AND b.period = w.period
        RETURNING b.owner, b.period),
    added AS ({_INTO_HOLDS}
        SELECT %s::text, owner, period, %s::bigint, %s::bigint, %s::bigint, %s::text FROM taken)
    SELECT 1 FROM taken"""
_ROWS = f"""SELECT b.owner, {_USED}, b.warned_ms, b.raised
    FROM budgets AS b {_WANTED} ORDER BY b.owner, b.period"""
_LOCKED_ROWS = f"{_ROWS} FOR UPDATE OF b"
_OPEN: Statement = ("BEGIN", ())
_CLOSE: Statement = ("COMMIT", ())
_CHANGE = f"""WITH changed AS MATERIALIZED (
        SELECT b.owner, b.period, w.c2 AS spent, w.c3 AS held FROM budgets AS b
        JOIN json_to_recordset({{rows}}) AS w(c0 text, c1 text, c2 numeric, c3 numeric)
            ON b.owner = w.c0 AND b.period = w.c1
        ORDER BY b.owner, b.period FOR UPDATE OF b)
    UPDATE budgets AS b SET spent = least(b.spent + c.spent, {MAX_INTEGER})::bigint,
        held = (b.held + c.held)::bigint
    FROM changed AS c WHERE b.owner = c.owner AND b.period = c.period"""
CHANGE = _CHANGE.format(rows="%s::json")
CHANGE_GIVEN = _CHANGE.format(rows="%s::json -> 'deltas'")
_WARNED = "UPDATE budgets SET warned_ms = %s WHERE owner = %s AND period = %s"
_ADD_HOLD = f"{_INTO_HOLDS} VALUES (%s, %s, %s, %s, %s, %s, %s)"
_HOLDS = "SELECT owner, pico FROM holds WHERE call_id = %s ORDER BY owner FOR UPDATE"
_RENEW = "UPDATE holds SET pico = %s, expires_ms = %s WHERE call_id = %s AND owner = %s"
_COST = f"""SELECT {{}}greatest(0, least({MAX_SPENT},
        coalesce(sum(micro), 0) * {MICRO} + coalesce(sum(pico), 0)))::bigint
    FROM sums WHERE caller = ANY(%s::text[]) AND slot >= %s AND slot < %s"""
_COST_SO_FAR = _COST.format("")
_BEGIN = f"""INSERT INTO budgets (owner, period, spent)
    {_COST.format("%s::text, %s::text, ")} ON CONFLICT DO NOTHING"""
_STATES = f"""SELECT b.owner, b.period, b.spent - b.waived, b.raised, b.held,
        (SELECT coalesce(sum(h.pico), 0) FROM holds AS h
            WHERE h.owner = b.owner AND h.period = b.period AND h.expires_ms <= %s)
    FROM budgets AS b {_WANTED}"""
Deltas = dict[tuple[str, str], list[int]]  # how much more is spent and held, by owner and period


class Reservations:
    """Reserves amounts of budgets."""

    def __init__(self, database: Database, zone: tzinfo) -> None:
        self._database, self._zone = database, zone

    def reserve(self, hold: Hold, rules: Rules) -> Hold | Refused:
        """Reserve a hold in all of its budgets, or in none; ValueError if the call has one."""
        seen = list[Link]()

        def work(link: Link) -> Hold | Refused:
            seen.append(link)
            return self._took(link, hold, rules) or self._decided(link, hold, rules)

        try:
            return self._database.run(work)
        except errors.UniqueViolation:
            if len(seen) > 1:  # it was reserved before the connection was lost
                return hold
            raise ValueError(f"call {hold.call_id!r} has a hold already") from None

    def _took(self, link: Link, hold: Hold, rules: Rules) -> Hold | Refused | None:
        """Reserve by one conditional statement; with several budgets, lock the rows first.

        Return None if a period has not begun, or has too little left.
        """
        budget, pico, zone = hold.budget, hold.pico, self._zone
        times = (ms(hold.at), ms(rules.expires), hold.about)
        if not budget.also:  # the usual case
            key, limit = budget.key(hold.at, zone), min(budget.limit_pico, MAX_SPENT)
            row = (hold.call_id, budget.owner, key, pico, limit, *times)
            [rows] = run(link, [(_TAKE, row)])
            took = rows
        else:
            keys = self._columns(budget.all, hold.at)
            limits = [min(each.limit_pico, MAX_SPENT) for each in budget.all]
            take = (*keys, limits, pico, pico, len(limits), hold.call_id, pico, *times)
            rows, took = run(link, [(_LOCKED_ROWS, keys), (_TAKE_ALL, take)])
        return self._decision(hold, rows, rules) if took else None

    def _decision(self, hold: Hold, rows: Rows, rules: Rules) -> Hold | Refused:
        amounts = [(each, hold.pico) for each in hold.budget.all]
        return decide(hold, amounts, _taken(rows, hold.budget.all), rules)

    def _decided(self, link: Link, hold: Hold, rules: Rules) -> Hold | Refused:
        """Begin periods and reserve again; else check each limit, with the rows locked."""
        budgets = hold.budget.all
        asked = self._columns(budgets, hold.at)
        [rows] = run(link, [(_ROWS, asked)])
        if len(rows) < len(budgets):
            self._begin(link, budgets, hold.at, rows)
            if (took := self._took(link, hold, rules)) is not None:
                return took
            [rows] = run(link, [(_ROWS, asked)])
        if isinstance(refused := self._decision(hold, rows, rules), Refused):
            return refused  # without a lock
        _, rows = run(link, [_OPEN, (_LOCKED_ROWS, asked)])
        return self._granted(link, hold, {}, 0, _taken(rows, budgets), rules)

    def _granted(
        self,
        link: Link,
        hold: Hold,
        alive: Mapping[str, int],
        back: int,
        taken: Mapping[str, Taken],
        rules: Rules,
    ) -> Hold | Refused:
        """Decide with the rows locked, write the hold, and end the transaction.

        The call has holds in the budgets of the owners *alive*; *back* was spent in the others when
        it was taken for lost, and is held instead.
        """
        # absolute values, so it can run twice
        amounts = [(each, hold.pico - alive.get(each.owner, back)) for each in hold.budget.all]
        found, expires, deltas = decide(hold, amounts, taken, rules), ms(rules.expires), Deltas()
        refused = isinstance(found, Refused)
        changed: list[Statement] = [
            (_RENEW, (held if refused else hold.pico, expires, hold.call_id, owner))
            for owner, held in alive.items()
        ]
        if isinstance(found, Hold):
            for budget, pico in amounts:
                owner, key = budget.owner, budget.key(hold.at, self._zone)
                if owner not in alive:
                    if back:
                        spend(deltas, owner, -back, hold.at, self._zone)
                        pico += back
                    row = (owner, key, hold.pico, ms(hold.at), expires, hold.about)
                    changed.append((_ADD_HOLD, (hold.call_id, *row)))
                add(deltas, owner, key, 0, pico)
            warned = self._keys(found.warn, hold.at)
            changed += [change(deltas), *[(_WARNED, (ms(rules.at), *key)) for key in warned]]
        run(link, [*changed, _CLOSE])
        return found

    def _keys(self, budgets: Sequence[Budget], at: float) -> list[tuple[str, str]]:
        return [(each.owner, each.key(at, self._zone)) for each in budgets]

    def _columns(self, budgets: Sequence[Budget], at: float) -> tuple[list[str], ...]:
        return transposed(self._keys(budgets, at), 2)

    def _begin(self, link: Link, budgets: Sequence[Budget], at: float, begun: Rows) -> None:
        """Begin periods that have no rows, with what their callers' calls have cost in them."""
        known = {_text(owner) for owner, *_ in begun}
        new = sorted([each for each in budgets if each.owner not in known], key=lambda b: b.owner)
        callers = {caller for budget in new for caller in budget.counts_for}
        begin = [
            (_BEGIN, (each.owner, each.key(at, self._zone), *_slots(each, at, self._zone)))
            for each in new
        ]
        run(link, [(_ALONE, (locks(callers),)), *begin])

    # -- more for a call that has a hold

    def top_up(self, more: int, hold: Hold, rules: Rules) -> Hold | Refused:
        """Add to a hold in all of its budgets, or in none; renew its lease."""
        new = hold._replace(pico=hold.pico + more)
        return self._database.run(lambda link: self._topped_up(link, new, rules))

    def _topped_up(self, link: Link, hold: Hold, rules: Rules) -> Hold | Refused:
        alive, taken = self._locked(link, hold)
        back = 0
        if not alive.keys() >= taken.keys():
            [back] = Sql(link).execute(LOST_COST, lost_place(hold)).fetchone() or (0,)
        return self._granted(link, hold, alive, back, taken, rules)

    def _locked(self, link: Link, hold: Hold) -> tuple[dict[str, int], dict[str, Taken]]:
        """Begin a transaction; return what a call holds and what is used, by owner."""
        budgets = hold.budget.all
        asked = self._columns(budgets, hold.at)
        ask: list[Statement] = [_OPEN, (_HOLDS, (hold.call_id,)), (_LOCKED_ROWS, asked)]
        _, holds, rows = run(link, ask)
        if len(rows) < len(budgets):
            run(link, [_CLOSE])
            self._begin(link, budgets, hold.at, rows)
            _, holds, rows = run(link, ask)
        return {_text(owner): _int(pico) for owner, pico in holds}, _taken(rows, budgets)

    # -- states and operators' changes

    def states(self, link: Link, budgets: Sequence[Budget], at: float) -> list[BudgetState]:
        """Return the state of each budget, without expired holds."""
        keys = self._keys(budgets, at)
        rows = link.execute(_STATES, (ms(at), *transposed(keys, 2))).fetchall()
        known = {(owner, key): rest for owner, key, *rest in rows}
        found = []
        for budget, key in zip(budgets, keys, strict=True):
            row = known.get(key)
            if row is None:
                slots = _slots(budget, at, self._zone)
                row = [*(link.execute(_COST_SO_FAR, slots).fetchone() or (0,)), 0, 0, 0]
            spent, raised, held, lost = map(int, row)
            resets = budget.resets(at, self._zone)
            limit = budget.limit_pico + raised
            found.append(BudgetState(budget, key[1], limit, spent + lost, held - lost, resets))
        return found

    def adjust(self, budget: Budget, more: int | None, at: float) -> Adjustment:
        """Add *more* to the limit in the current period, or forgive what is spent (None)."""
        tries, key = count(), budget.key(at, self._zone)

        def work(link: Link) -> Adjustment:
            again = next(tries) > 0  # a connection was lost, so it may have been done
            self._begin(link, [budget], at, [])
            with link.transaction():
                return adjusted(Sql(link), _BUDGET, budget, more, at, key, again=again)

        return self._database.run(work)


def locks(callers: Iterable[str]) -> list[int]:
    """Return the locks of callers, in the order in which they are taken."""
    return sorted({crc32(caller.encode()) % LOCKS for caller in callers})


def _slots(budget: Budget, at: float, zone: tzinfo) -> tuple[list[str], int, int]:
    """Return the callers whose calls count in a period, and its slots."""
    return list(budget.counts_for), *slots(budget, at, zone)


def spend(deltas: Deltas, owner: str, pico: int, at: float, zone: tzinfo) -> None:
    """Add *pico* to what is spent in each period that contains *at*."""
    for key in names(at, zone):
        add(deltas, owner, key, pico, 0)


def add(deltas: Deltas, owner: str, key: str, spent: int, held: int) -> None:
    found = deltas.setdefault((owner, key), [0, 0])
    found[0] += spent
    found[1] += held


def changes(deltas: Deltas) -> list[tuple[Any, ...]]:
    """Return the values for CHANGE, sorted as rows are locked."""
    return [(*key, *deltas[key]) for key in sorted(deltas)]


def change(deltas: Deltas) -> Statement:
    """Return the statement that changes what is spent and held."""
    return CHANGE, (recordset(changes(deltas)),)


def _taken(rows: Rows, budgets: Sequence[Budget]) -> dict[str, Taken]:
    if len(rows) < len(budgets):  # removed since the period began: `Database.run` tries again
        raise errors.SerializationFailure("a budget's period was removed")
    return {_text(owner): Taken(*map(_int, row)) for owner, *row in rows}


def _text(value: bytes | None) -> str:
    return (value or b"").decode()


def _int(value: bytes | None) -> int:
    return int(value or 0)
