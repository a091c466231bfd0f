"""The SQL of budgets: what is reserved, spent, forgiven and added, by owner and period.

The row of a period has the sums; the holds of calls are rows next to it. A period begins with the
cost of its callers' calls in it, which is in `sums`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import tzinfo
from sqlite3 import Cursor
from typing import Any

from .. import Adjustment, Budget, BudgetState, CallRow, Hold
from ..holds import (
    LOST_COST,
    MAX_SPENT,
    MICRO,
    Refused,
    Rules,
    Taken,
    adjusted,
    decide,
    expired,
    lost_place,
    lost_record,
    slots,
    take_back,
)
from ..periods import DAY, MAX_INTEGER, SLOT, ms, names
from ..queries import WRITE_ATTEMPT, WRITE_CALL
from ..stores import Ask

_BUDGET = "caller = ? AND period = ? AND call_id = ''"
_HOLD = "caller = ? AND period = ? AND call_id = ? AND call_id > ''"
_UP_TO = """SELECT micro, pico FROM sums WHERE caller = ? AND slot < ?
    ORDER BY slot DESC LIMIT 1"""
# several: for older versions that still run
_BEGIN = """INSERT INTO budgets (caller, period, spent, held, several) VALUES (?, ?, ?, 0, 1)
    ON CONFLICT DO NOTHING"""
# RETURNING in the UPDATE after it would take longer than this
_USED = f"SELECT spent + held - waived - raised, warned_ms, raised FROM budgets WHERE {_BUDGET}"
# adds to the row of a period and to a hold, which is new unless ?8
_HOLD_MORE = """INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms, about)
    VALUES (?1, ?2, '', ?4, 0, 0, ''), (?1, ?2, ?3, ?4, ?5, ?6, ?7)
    ON CONFLICT (caller, period, call_id) DO UPDATE SET held = held + excluded.held
    WHERE call_id = '' OR ?8"""
_WARN = f"UPDATE budgets SET warned_ms = ? WHERE {_BUDGET}"
_RENEW_HOLD = f"UPDATE budgets SET expires_ms = ? WHERE {_HOLD}"
_ENDED = "FROM budgets WHERE call_id > '' AND expires_ms <= ?"
EXPIRED = f"SELECT 1 {_ENDED} LIMIT 1"
_ROW = "RETURNING caller, period, call_id, held, at_ms, about"
_EXPIRE, _EXPIRE_ANY = f"DELETE {_ENDED} AND caller = ? {_ROW}", f"DELETE {_ENDED} {_ROW}"
_UNSUM = """UPDATE sums SET micro = micro - ?, pico = pico - ? WHERE caller = ? AND slot >= ?"""
_FORGET_DAY = "DELETE FROM rolled WHERE day = ? AND state < 2"
_HAS_ANY = "SELECT 1 FROM budgets WHERE caller = ? LIMIT 1"
_RELEASE = f"DELETE FROM budgets WHERE {_HOLD} AND held = ?"
_RELEASE_ANY = """DELETE FROM budgets WHERE caller = ? AND call_id = ? AND call_id > ''
    RETURNING period, held, at_ms"""
_NOTHING = ("", 0)
_SPEND = f"""UPDATE budgets SET spent = min(spent + ?, {MAX_INTEGER}), held = held - ?
    WHERE {_BUDGET}"""
_STATE = """SELECT spent - waived + lost, raised, held - lost
    FROM (SELECT spent, waived, raised, held, (SELECT coalesce(sum(held), 0) FROM budgets AS h
            WHERE h.caller = b.caller AND h.period = b.period AND h.call_id > ''
            AND h.expires_ms <= ?) AS lost
        FROM budgets AS b WHERE caller = ? AND period = ? AND call_id = '')"""
USERS = "substr(caller, 1, 1) = ? AND call_id = '' AND held = 0"
ANY_USER = f"SELECT 1 FROM budgets WHERE {USERS} LIMIT 1"


# -- reservations --


def reserve(sql: Cursor, hold: Hold, rules: Rules) -> Hold | Refused:
    """Reserve a hold in all of its budgets, or in none; raise ValueError if the call has one."""
    return _take(sql, hold, [(each, hold.pico) for each in hold.budget.all], rules)


def top_up(more: int, sql: Cursor, hold: Hold, rules: Rules) -> Hold | Refused:
    """Add to a hold in all of its budgets, or in none; renew its lease."""
    new, budgets = hold._replace(pico=hold.pico + more), hold.budget.all
    keys = {each: _key(each, hold, rules.zone) for each in budgets}
    renewed = (ms(rules.expires),)
    alive = [each for each in budgets if sql.execute(_RENEW_HOLD, renewed + keys[each]).rowcount]
    lost = [each for each in budgets if each not in alive]
    # what was spent when the call was taken for lost is held instead
    [back] = (lost and sql.execute(LOST_COST, lost_place(hold)).fetchone()) or (0,)
    amounts = [(each, more if each in alive else new.pico - back) for each in budgets]
    taken = _take(sql, new, amounts, rules, alive)
    for each in lost if back and isinstance(taken, Hold) else ():
        sql.execute(_HOLD_MORE, (*keys[each], back, 0, 0, "", 1))
        _spend(sql, each.owner, -back, hold.at, rules.zone)
    return taken


def _take(
    sql: Cursor,
    hold: Hold,
    amounts: Sequence[tuple[Budget, int]],
    rules: Rules,
    held: Collection[Budget] = (),
) -> Hold | Refused:
    """Reserve an amount in each budget's period, or return which budget refuses.

    The call has a hold in the budgets *held*.
    """
    used = {budget.owner: _used(sql, budget, hold.at, rules) for budget, _ in amounts}
    found = decide(hold, amounts, used, rules)
    if isinstance(found, Refused):
        for owner in used:
            _expire(sql, owner, rules)
        return found
    times = ms(hold.at), ms(rules.expires)
    for budget, pico in amounts:
        row = (*_key(budget, hold, rules.zone), pico, *times, hold.about, int(budget in held))
        if sql.execute(_HOLD_MORE, row).rowcount < 2:
            raise ValueError(f"call {hold.call_id!r} has a hold already")
    for budget in found.warn:
        sql.execute(_WARN, (ms(rules.at), budget.owner, budget.key(hold.at, rules.zone)))
    return found


def _used(sql: Cursor, budget: Budget, at: float, rules: Rules) -> Taken:
    """Return what is used of the budget's period that contains *at*; begin it if it is new."""
    owner, key = budget.owner, budget.key(at, rules.zone)
    if (row := sql.execute(_USED, (owner, key)).fetchone()) is None:
        _expire(sql, owner, rules)
        _begin(sql, budget, at, rules.zone)
        row = sql.execute(_USED, (owner, key)).fetchone()
    return Taken(*row)


def _expire(sql: Cursor, owner: str, rules: Rules) -> None:
    """Turn the owner's holds whose lease has ended into spending, also those of past periods."""
    if rules.expire():
        _lose(sql, sql.execute(_EXPIRE, (ms(rules.at), owner)).fetchall(), rules.zone)


def _begin(sql: Cursor, budget: Budget, at: float, zone: tzinfo) -> None:
    spent = cost_so_far(lambda *asked: sql.execute(*asked).fetchall(), budget, at, zone)
    sql.execute(_BEGIN, (budget.owner, budget.key(at, zone), spent))


def _key(budget: Budget, hold: Hold, zone: tzinfo) -> tuple[str, str, str]:
    return budget.owner, budget.key(hold.at, zone), hold.call_id


# -- spending --


def spend(sql: Cursor, call: CallRow, hold: Hold | None, zone: tzinfo, taken_back: int = 0) -> None:
    """Release the hold of a call and add its cost to each budget's row of the hold's periods.

    *taken_back* is what was spent for it when it was taken for lost.
    """
    if hold is None:
        _spend_late(sql, call.caller, call, call.at_ns / 1e9, zone, taken_back)
        return
    for budget in hold.budget.all:
        owner, key, id = _key(budget, hold, zone)
        if sql.execute(_RELEASE, (owner, key, id, hold.pico)).rowcount:
            _spend(sql, owner, call.cost, hold.at, zone, (key, hold.pico))
            continue
        # the lease has expired, or the hold was topped up since
        if not taken_back:
            taken_back = found_again(sql, *lost_place(hold)) or 0
        _spend_late(sql, owner, call, hold.at, zone, taken_back)
    if call.caller != hold.budget.owner:  # it may have had a budget of its own in these periods
        _spend(sql, call.caller, call.cost, hold.at, zone)


def _spend_late(
    sql: Cursor, owner: str, call: CallRow, at: float, zone: tzinfo, taken_back: int
) -> None:
    """Release whatever the call holds, and spend in the periods of that hold, else of *at*.

    If it holds nothing, what was *taken_back* was spent for it.
    """
    if not sql.execute(_HAS_ANY, (owner,)).fetchone():  # nobody has set it a budget
        return
    cost, held = (call.cost or 0) - taken_back, _NOTHING
    for period, pico, at_ms in sql.execute(_RELEASE_ANY, (owner, call.id)).fetchall():
        cost, held, at = call.cost or 0, (period, pico), at_ms / 1000
    _spend(sql, owner, cost, at, zone, held)


def lose(sql: Cursor, now: float, zone: tzinfo) -> None:
    """Turn every hold whose lease has ended into spending."""
    _lose(sql, sql.execute(_EXPIRE_ANY, (ms(now),)).fetchall(), zone)


def _lose(sql: Cursor, rows: Sequence[tuple[Any, ...]], zone: tzinfo) -> None:
    """Turn holds that nobody settled into spending, with a row for each call."""
    for owner, period, id, pico, at_ms, about in rows:
        hold = expired(id, owner, pico, at_ms, about)
        _spend(sql, owner, pico, hold.at, zone, (period, pico))
        call, attempts = lost_record(hold)
        if sql.execute(WRITE_CALL, call).rowcount:
            for attempt in attempts:
                sql.execute(WRITE_ATTEMPT, attempt)


def found_again(sql: Cursor, at_ns: int, id: str) -> int | None:
    """Remove the rows of a call that was taken for lost; return what was spent for it, or None."""
    if (found := take_back(sql, at_ns, id)) is None:
        return None
    caller, cost = found
    sql.execute(_UNSUM, (*divmod(cost, MICRO), caller, at_ns // (SLOT * 10**9)))
    sql.execute(_FORGET_DAY, (at_ns // (DAY * 10**9),))
    return cost


def _spend(
    sql: Cursor,
    owner: str,
    cost: int | None,
    at: float,
    zone: tzinfo,
    held: tuple[str, int] = _NOTHING,
) -> None:
    """Add to what is spent in each period of *at*, and free what one of them has *held*."""
    period, pico = held
    keys = names(at, zone)
    # one statement for all three would take three times as long
    sql.executemany(_SPEND, [(cost or 0, pico if key == period else 0, owner, key) for key in keys])


# -- sums and operators' changes --


def cost_so_far(ask: Ask, budget: Budget, at: float, zone: tzinfo) -> int:
    """Return what the callers' calls have cost in the period that contains *at*."""
    (first, last), found = slots(budget, at, zone), 0
    for caller in budget.counts_for:
        for slot, sign in ((first, -1), (last, 1)):
            for micro, pico in ask(_UP_TO, (caller, slot)):
                found += sign * (micro * MICRO + pico)
    return max(0, min(found, MAX_SPENT))


def state(ask: Ask, budget: Budget, at: float, zone: tzinfo) -> BudgetState:
    """Return the state of a budget, without expired holds."""
    key = budget.key(at, zone)
    found = ask(_STATE, (ms(at), budget.owner, key))
    [(spent, raised, held)] = found or [(cost_so_far(ask, budget, at, zone), 0, 0)]
    limit, resets = budget.limit_pico + raised, budget.resets(at, zone)
    return BudgetState(budget, key, limit, spent, held, resets)


def adjust(sql: Cursor, budget: Budget, more: int | None, at: float, zone: tzinfo) -> Adjustment:
    """Add *more* to the limit in the current period, or forgive what is spent (None)."""
    _begin(sql, budget, at, zone)
    return adjusted(sql, _BUDGET, budget, more, at, budget.key(at, zone))
