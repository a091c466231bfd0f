"""The tables by schema version, and the statements that write to them.

The key of calls and attempts is the start and id of the call. Rows are thus ordered by time: a
settled call changes one page of each table, and a report reads one range. Start and id never
change, so a call cannot be written twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from sqlite3 import Cursor

from . import AttemptRow, Budget, CallRow, Hold, Record, period_names

APPLICATION_ID = 0x494D5558  # "IMUX": marks a file of InferMux
MAX_INTEGER = 2**63 - 1  # of SQLite
DIGEST_LENGTH = 32  # of the hexadecimal digest of a plan's first line
MAX_PLANS = 4096  # digests that a connection remembers

_FIRST = (
    """CREATE TABLE calls (
        at_ns INTEGER NOT NULL, id TEXT NOT NULL, trace_id TEXT NOT NULL, caller TEXT NOT NULL,
        tags TEXT NOT NULL, door TEXT NOT NULL, requested TEXT NOT NULL, model TEXT NOT NULL,
        served TEXT NOT NULL, provider TEXT NOT NULL, strategy TEXT NOT NULL, status TEXT NOT NULL,
        error_code TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER,
        cached_input_tokens INTEGER, cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER,
        reasoning_tokens INTEGER, cost INTEGER, cost_source TEXT NOT NULL,
        estimated INTEGER NOT NULL, latency_ms INTEGER NOT NULL, first_token_ms INTEGER,
        attempts INTEGER NOT NULL, PRIMARY KEY (at_ns, id)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE attempts (
        at_ns INTEGER NOT NULL, call_id TEXT NOT NULL, n INTEGER NOT NULL, provider TEXT NOT NULL,
        model TEXT NOT NULL, served TEXT NOT NULL, started_ms INTEGER NOT NULL, first_ms INTEGER,
        ended_ms INTEGER, input_tokens INTEGER, output_tokens INTEGER, cached_input_tokens INTEGER,
        cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, reasoning_tokens INTEGER,
        cost INTEGER, error_code TEXT NOT NULL, final INTEGER NOT NULL,
        PRIMARY KEY (at_ns, call_id, n)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL, held INTEGER NOT NULL,
        PRIMARY KEY (caller, period)) STRICT, WITHOUT ROWID""",
    """CREATE TABLE holds (
        call_id TEXT PRIMARY KEY, caller TEXT NOT NULL, period TEXT NOT NULL, pico INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID""",
)
_UNPRICED = (
    "ALTER TABLE calls ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE attempts ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0",
    """UPDATE attempts SET unpriced = 1
        WHERE cost IS NULL AND coalesce(input_tokens, output_tokens) IS NOT NULL""",
    """UPDATE calls SET unpriced = (SELECT count(*) FROM attempts AS a
        WHERE a.at_ns = calls.at_ns AND a.call_id = calls.id AND a.unpriced = 1)""",
)
_PLANS = (  # many plans share their first line: it is stored once, and calls have its digest
    "CREATE TABLE plans (digest TEXT PRIMARY KEY, line TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "ALTER TABLE calls ADD COLUMN plan TEXT NOT NULL DEFAULT ''",
)
# Holds become rows next to their budget's row, whose call_id is empty: a reservation then changes
# one page, not two.
_HOLDS = (
    "ALTER TABLE budgets RENAME TO apart",
    """CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL DEFAULT 0,
        held INTEGER NOT NULL, call_id TEXT NOT NULL DEFAULT '', at_ms INTEGER NOT NULL DEFAULT 0,
        expires_ms INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (caller, period, call_id)) STRICT, WITHOUT ROWID""",
    """INSERT INTO budgets (caller, period, spent, held)
        SELECT caller, period, spent, held FROM apart""",
    """INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms)
        SELECT caller, period, call_id, pico, at_ms, expires_ms FROM holds""",
    "DROP TABLE apart",
    "DROP TABLE holds",
)
_API = ("ALTER TABLE calls RENAME COLUMN door TO api",)
_STATUS = ("ALTER TABLE attempts ADD COLUMN upstream_status INTEGER",)
_UPSTREAM_ID = ("ALTER TABLE attempts ADD COLUMN upstream_request_id TEXT NOT NULL DEFAULT ''",)
_CACHE_SAVED = (
    "ALTER TABLE attempts ADD COLUMN cache_saved INTEGER",
    "ALTER TABLE calls ADD COLUMN cache_saved INTEGER",
)
# item n migrates version n to n + 1
MIGRATIONS = (_FIRST, _UNPRICED, _PLANS, _HOLDS, _API, _STATUS, _UPSTREAM_ID, _CACHE_SAVED)

RESCUE = "SELECT caller, period, sum(spent) FROM budgets GROUP BY caller, period"  # any version
RESTORE = """INSERT INTO budgets (caller, period, spent, held) VALUES (?, ?, ?, 0)
    ON CONFLICT DO NOTHING"""

# -- budgets --

_BUDGET = "caller = ? AND period = ? AND call_id = ''"
_HOLD = "caller = ? AND period = ? AND call_id = ? AND call_id > ''"
# micro-dollars and the rest are summed apart: pico-dollars would overflow at nine million USD
COST_SO_FAR = """SELECT min(coalesce(sum(cost / 1000000), 0), 9000000000000) * 1000000
        + coalesce(sum(cost % 1000000), 0)
    FROM calls WHERE caller = ? AND at_ns >= ? AND at_ns < ?"""
_BEGIN_PERIOD = (
    f"INSERT INTO budgets (caller, period, spent, held) VALUES (?, ?, ({COST_SO_FAR}), 0)"
)
_TAKE = f"UPDATE budgets SET held = held + ? WHERE {_BUDGET} AND spent + held + ? <= ?"
_LEFT = f"SELECT ? - spent - held FROM budgets WHERE {_BUDGET}"
_ADD_HOLD = """INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms)
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_RENEW_HOLD = f"UPDATE budgets SET expires_ms = ? WHERE {_HOLD}"
_RAISE_HOLD = f"UPDATE budgets SET held = held + ? WHERE {_HOLD}"
_EXPIRE = """DELETE FROM budgets WHERE caller = ? AND period = ? AND call_id > ''
    AND expires_ms <= ? RETURNING held, caller, period"""
_EXPIRE_ALL = """DELETE FROM budgets WHERE call_id > '' AND expires_ms <= ?
    RETURNING held, caller, period"""
_FREE = f"UPDATE budgets SET held = held - ? WHERE {_BUDGET}"
_RELEASE = f"DELETE FROM budgets WHERE {_HOLD} AND held = ?"
_RELEASE_ANY = """DELETE FROM budgets WHERE caller = ? AND call_id = ? AND call_id > ''
    RETURNING period, held, at_ms"""
_SPEND = f"""UPDATE budgets SET spent = min(spent + ?, {MAX_INTEGER}), held = held - ?
    WHERE {_BUDGET}"""
_SPEND_ANY = f"""UPDATE budgets SET spent = min(spent + ?, {MAX_INTEGER}),
        held = held - CASE period WHEN ? THEN ? ELSE 0 END
    WHERE caller = ? AND period IN (?, ?, ?) AND call_id = ''"""
SPENT = """SELECT spent, held - (SELECT coalesce(sum(held), 0) FROM budgets AS h
        WHERE h.caller = b.caller AND h.period = b.period AND h.call_id > '' AND h.expires_ms <= ?)
    FROM budgets AS b WHERE caller = ? AND period = ? AND call_id = ''"""


def take(
    sql: Cursor,
    budget: Budget,
    pico: int,
    *,
    of: float,
    at: float,
    over: bool,
    expire: Callable[[], bool],
) -> tuple[bool, int | None]:
    """Reserve *pico* in the budget's period that contains *of*.

    Holds that have expired at *at* are freed first, unless *expire* returns False.

    Return (False, None); or (True, None) if the limit is exceeded, which *over* allows; or, if
    nothing was reserved, (False, the amount that is left).
    """
    key, limit = budget.key(of), min(budget.limit_pico, MAX_INTEGER)
    if _took(sql, budget.caller, key, pico, limit):
        return False, None
    now = ms(at) if expire() else -MAX_INTEGER
    sql.executemany(_FREE, sql.execute(_EXPIRE, (budget.caller, key, now)).fetchall())
    if not sql.execute(_LEFT, (0, budget.caller, key)).fetchall():
        # a new period: also free the expired holds of past periods
        sql.executemany(_FREE, sql.execute(_EXPIRE_ALL, (now,)).fetchall())
        sql.execute(_BEGIN_PERIOD, (budget.caller, key, budget.caller, *span(budget, of)))
    if _took(sql, budget.caller, key, pico, limit):
        return False, None
    if over and _took(sql, budget.caller, key, pico, MAX_INTEGER):
        return True, None
    return False, sql.execute(_LEFT, (limit, budget.caller, key)).fetchone()[0]


def _took(sql: Cursor, caller: str, key: str, pico: int, limit: int) -> bool:
    return bool(sql.execute(_TAKE, (pico, caller, key, pico, limit)).rowcount)


def add_hold(sql: Cursor, hold: Hold, expires: float) -> None:
    """Insert a hold that `take` has reserved; raise ValueError if its call has one already."""
    row = (*_key(hold), hold.pico, ms(hold.at), ms(expires))
    if not sql.execute(_ADD_HOLD, row).rowcount:
        raise ValueError(f"call {hold.call_id!r} has a hold already")


def renew_hold(sql: Cursor, hold: Hold, expires: float) -> bool:
    """Extend the lease of a hold; return False if it no longer exists."""
    return bool(sql.execute(_RENEW_HOLD, (ms(expires), *_key(hold))).rowcount)


def raise_hold(sql: Cursor, hold: Hold, more: int) -> None:
    """Add *more* pico-USD, which `take` has reserved, to a hold."""
    sql.execute(_RAISE_HOLD, (more, *_key(hold)))


def _key(hold: Hold) -> tuple[str, str, str]:
    return hold.budget.caller, hold.budget.key(hold.at), hold.call_id


# -- calls --


def _insert(table: str, names: Sequence[str]) -> str:
    values = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values}) ON CONFLICT DO NOTHING"


WRITE_CALL = _insert("calls", CallRow._fields)
WRITE_ATTEMPT = _insert("attempts", AttemptRow._fields)
_WRITE_PLAN = _insert("plans", ("digest", "line"))


def settle(sql: Cursor, record: Record, hold: Hold | None, known_plans: set[str]) -> bool:
    """Write a call, release its hold and spend its cost; return False if it was written before.

    *known_plans* has digests of plans in the file; the call's is added.
    """
    call = record.call
    line, end, rest = call.plan.partition("\n")
    digest = _digest(line)
    if not sql.execute(WRITE_CALL, (*call[:-1], digest + end + rest)).rowcount:
        return False
    if digest and digest not in known_plans:
        sql.execute(_WRITE_PLAN, (digest, line))
        if len(known_plans) < MAX_PLANS:
            known_plans.add(digest)
    for attempt in record.attempts:
        sql.execute(WRITE_ATTEMPT, tuple(attempt))  # sqlite3 binds subclasses more slowly
    period, pico, at, caller = "", 0, call.at_ns / 1e9, call.caller
    if hold is not None:
        at, (caller, key, id) = hold.at, _key(hold)
        if sql.execute(_RELEASE, (caller, key, id, hold.pico)).rowcount:
            sql.execute(_SPEND, (call.cost or 0, hold.pico, caller, key))
            return True
        # the lease has expired, or the hold was topped up since
    if released := sql.execute(_RELEASE_ANY, (caller, call.id)).fetchall():
        [(period, pico, at_ms)] = released
        at = at_ms / 1000
    sql.execute(_SPEND_ANY, (call.cost or 0, period, pico, caller, *period_names(at)))
    return True


@lru_cache(maxsize=1024)
def _digest(line: str) -> str:
    return blake2b(line.encode(), digest_size=DIGEST_LENGTH // 2).hexdigest() if line else ""


# -- times --


def span(budget: Budget, at: float) -> tuple[int, int]:
    """Return start and end of the period that contains *at*, in nanoseconds since 1970."""
    end = budget.resets(at)
    return ns(budget.start(at)), MAX_INTEGER if end is None else ns(end)


def ns(seconds: float) -> int:
    """Return seconds since 1970 as whole nanoseconds, limited to SQLite's integers."""
    return round(max(-9e9, min(seconds, 9e9)) * 10**9)


def ms(seconds: float) -> int:
    """Return seconds since 1970 as whole milliseconds."""
    return int(seconds * 1000)
