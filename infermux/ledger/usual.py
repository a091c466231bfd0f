"""The two usual transactions, a reservation and a settlement, each as one statement.

A transaction of several statements costs twice as much, most of it between them. So each connection
has views of its own, whose triggers do the work as a whole or not at all. Whatever is not usual (a
new period, a lease that ran out, a call of several attempts) is left to `queries`, which knows all
cases. Settlements that come together and touch no budget take two statements in all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Container, Sequence
from functools import lru_cache
from typing import NamedTuple

from . import AttemptRow, CallRow, Hold, Record, keys
from .queries import SQL, digest_of, ms, place

MANY = (
    16  # rows of one statement: enough to share what a statement costs, few enough for every SQLite
)
_CALL = [f"call_{name}" for name in CallRow._fields]
_ATTEMPT = [f"attempt_{name}" for name in AttemptRow._fields]
_HOLD = ["caller", "period", "call_id", "held", "at_ms", "expires_ms"]


def _view(name: str, columns: list[str], work: str) -> str:
    return (
        f"CREATE TEMP VIEW {name} AS SELECT {', '.join(f'NULL AS {column}' for column in columns)};"
        f"CREATE TEMP TRIGGER do_{name} INSTEAD OF INSERT ON {name} BEGIN {work} END;"
    )


def _insert(table: str, names: tuple[str, ...] | list[str], columns: list[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join(f'NEW.{column}' for column in columns)});"


_WRITTEN = _insert("calls", CallRow._fields, _CALL) + _insert(
    "attempts", AttemptRow._fields, _ATTEMPT
)
_SPENT = "spent = min(spent + coalesce(NEW.call_cost, 0), 9223372036854775807)"
VIEWS = "".join(
    (
        _view(
            "reserving",
            [*_HOLD, "most"],
            f"""
        UPDATE budgets SET held = held + NEW.held
            WHERE caller = NEW.caller AND period = NEW.period AND call_id = '' AND spent + held + NEW.held <= NEW.most;
        SELECT RAISE(ABORT, 'no room') WHERE changes() = 0;
        {_insert("budgets", _HOLD, _HOLD)}""",
        ),
        _view(
            "settling",
            [*_CALL, *_ATTEMPT, "caller", "period", "pico"],
            f"""{_WRITTEN}
        DELETE FROM budgets
            WHERE caller = NEW.caller AND period = NEW.period AND call_id = NEW.call_id AND call_id > '' AND held = NEW.pico;
        SELECT RAISE(ABORT, 'no such hold') WHERE changes() = 0;
        UPDATE budgets SET {_SPENT}, held = held - NEW.pico WHERE caller = NEW.caller AND period = NEW.period AND call_id = '';""",
        ),
        _view(
            "settling_free",
            [*_CALL, *_ATTEMPT, "day", "month", "total"],
            f"""{_WRITTEN}
        SELECT RAISE(ABORT, 'a hold') WHERE EXISTS (SELECT 1 FROM budgets
            WHERE caller = NEW.call_caller AND call_id = NEW.call_id AND call_id > '');
        UPDATE budgets SET {_SPENT} WHERE caller = NEW.call_caller AND period IN (NEW.day, NEW.month, NEW.total) AND call_id = '';""",
        ),
    )
)


def _into(view: str, count: int) -> str:
    return f"INSERT INTO {view} VALUES ({', '.join('?' * count)})"


_RESERVE = _into("reserving", len(_HOLD) + 1)
_SETTLE = _into("settling", len(_CALL) + len(_ATTEMPT) + 3)
_SETTLE_FREE = _into("settling_free", len(_CALL) + len(_ATTEMPT) + 3)


_KNOWN = "SELECT 1 FROM budgets WHERE caller = ? LIMIT 1"
_CALLER = CallRow._fields.index("caller")
_TABLES = (("calls", CallRow._fields, 0), ("attempts", AttemptRow._fields, len(CallRow._fields)))
# Otherwise each NULL that is bound costs an AttributeError, unseen, inside sqlite3: as much as two
# other values.
sqlite3.register_adapter(type(None), lambda none: none)


class Usual(NamedTuple):
    """One statement, its values, what comes of it, and the plan that the file must have already."""

    statement: str
    values: tuple[object, ...]
    result: object
    digest: str = ""

    def done(self, sql: SQL, known: Container[str]) -> bool:
        """Do it; return False where it is not as simple as that, and nothing was done."""
        if self.digest and self.digest not in known:
            return False
        try:
            sql.execute(self.statement, self.values)
            return True
        except sqlite3.IntegrityError:  # by RAISE, or a row that is there already
            return False


def together(sql: SQL, some: Sequence[Usual | None], known: Container[str]) -> bool:
    """Write the calls that *some* stand for, many at a time; return False, and write none, where
    there is more to do than that.

    IntegrityError: one is there already, and the transaction is to be rolled back.
    """
    free = [
        each
        for each in some
        if each is not None
        and each.statement is _SETTLE_FREE
        and (not each.digest or each.digest in known)
    ]
    if len(free) < len(some) or any(
        sql.execute(_KNOWN, (caller,)).fetchone()
        for caller in {each.values[_CALLER] for each in free}
    ):
        return False
    for at in range(0, len(free), MANY):
        part = free[at : at + MANY]
        for table, names, start in _TABLES:
            values: list[object] = []
            for each in part:
                values += each.values[start : start + len(names)]
            sql.execute(_rows(table, names, len(part)), values)
    return True


@lru_cache
def _rows(table: str, names: tuple[str, ...], count: int) -> str:
    row = f"({', '.join('?' * len(names))})"
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES {', '.join([row] * count)}"


def reservation(hold: Hold, most: int, expires: float) -> Usual:
    """Return what holds an amount."""
    return Usual(_RESERVE, (*place(hold), hold.pico, ms(hold.at), ms(expires), most), (False, None))


def settlement(record: Record, hold: Hold | None) -> Usual | None:
    """Return what writes a call of one attempt, releases what it held and spends what it cost; None
    for any other call.
    """
    call = record.call
    if len(record.attempts) != 1 or (hold is not None and hold.call_id != call.id):
        return None
    line, end, rest = call.plan.partition("\n")
    digest = digest_of(line)
    written = (*call[:-1], digest + end + rest, *record.attempts[0])
    if hold is None:
        return Usual(_SETTLE_FREE, (*written, *keys(call.at_ns / 1e9)), True, digest)
    return Usual(
        _SETTLE, (*written, hold.budget.caller, hold.budget.key(hold.at), hold.pico), True, digest
    )
