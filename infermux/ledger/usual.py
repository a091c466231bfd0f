"""The two usual transactions, a reservation and a settlement, each as one statement.

A transaction of several statements costs twice as much, most of it between them. So each connection has views of its own, whose
triggers do the work as a whole or not at all. Whatever is not usual (a new period, a lease that ran out, a call of several
attempts) is left to `queries`, which knows all cases.
"""

from __future__ import annotations

import sqlite3

from . import AttemptRow, CallRow, Hold, Record, keys
from .queries import SQL, digest_of, ms, place

_CALL = [f"call_{name}" for name in CallRow._fields]
_ATTEMPT = [f"attempt_{name}" for name in AttemptRow._fields]
_HOLD = ["caller", "period", "call_id", "held", "at_ms", "expires_ms"]


def _view(name: str, columns: list[str], work: str) -> str:
    return (f"CREATE TEMP VIEW {name} AS SELECT {', '.join(f'NULL AS {column}' for column in columns)};"
            f"CREATE TEMP TRIGGER do_{name} INSTEAD OF INSERT ON {name} BEGIN {work} END;")


def _insert(table: str, names: tuple[str, ...] | list[str], columns: list[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f'NEW.{column}' for column in columns)});"


_WRITTEN = _insert("calls", CallRow._fields, _CALL) + _insert("attempts", AttemptRow._fields, _ATTEMPT)
_SPENT = "spent = min(spent + coalesce(NEW.call_cost, 0), 9223372036854775807)"
VIEWS = "".join((
    _view("reserving", [*_HOLD, "most"], f"""
        UPDATE budgets SET held = held + NEW.held
            WHERE caller = NEW.caller AND period = NEW.period AND call_id = '' AND spent + held + NEW.held <= NEW.most;
        SELECT RAISE(ABORT, 'no room') WHERE changes() = 0;
        {_insert("budgets", _HOLD, _HOLD)}"""),
    _view("settling", [*_CALL, *_ATTEMPT, "caller", "period", "pico"], f"""{_WRITTEN}
        DELETE FROM budgets
            WHERE caller = NEW.caller AND period = NEW.period AND call_id = NEW.call_id AND call_id > '' AND held = NEW.pico;
        SELECT RAISE(ABORT, 'no such hold') WHERE changes() = 0;
        UPDATE budgets SET {_SPENT}, held = held - NEW.pico WHERE caller = NEW.caller AND period = NEW.period AND call_id = '';"""),
    _view("settling_free", [*_CALL, *_ATTEMPT, "day", "month", "total"], f"""{_WRITTEN}
        SELECT RAISE(ABORT, 'a hold') WHERE EXISTS (SELECT 1 FROM budgets
            WHERE caller = NEW.call_caller AND call_id = NEW.call_id AND call_id > '');
        UPDATE budgets SET {_SPENT} WHERE caller = NEW.call_caller AND period IN (NEW.day, NEW.month, NEW.total) AND call_id = '';"""),
))


def _into(view: str, count: int) -> str:
    return f"INSERT INTO {view} VALUES ({', '.join('?' * count)})"


_RESERVE = _into("reserving", len(_HOLD) + 1)
_SETTLE = _into("settling", len(_CALL) + len(_ATTEMPT) + 3)
_SETTLE_FREE = _into("settling_free", len(_CALL) + len(_ATTEMPT) + 3)


def reserve(sql: SQL, hold: Hold, most: int, expires: float) -> bool:
    """Hold an amount; return False where it is not as simple as that, and nothing was done."""
    return _done(sql, _RESERVE, (*place(hold), hold.pico, ms(hold.at), ms(expires), most))


def settle(sql: SQL, record: Record, hold: Hold | None, known: set[str]) -> bool:
    """Write a call of one attempt, release what it held and spend what it cost; return False as `reserve` does."""
    call = record.call
    line, end, rest = call.plan.partition("\n")
    digest = digest_of(line)
    if len(record.attempts) != 1 or (digest and digest not in known):
        return False
    written = (*call[:-1], digest + end + rest, *record.attempts[0])
    if hold is None:
        return _done(sql, _SETTLE_FREE, (*written, *keys(call.at_ns / 1e9)))
    if hold.call_id != call.id:
        return False
    return _done(sql, _SETTLE, (*written, hold.budget.caller, hold.budget.key(hold.at), hold.pico))


def _done(sql: SQL, statement: str, values: tuple[object, ...]) -> bool:
    try:
        sql.execute(statement, values)
        return True
    except sqlite3.IntegrityError:          # by RAISE, or a row that is there already
        return False
