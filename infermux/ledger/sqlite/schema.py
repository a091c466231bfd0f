"""The tables by schema version, and the statements that write to them.

The key of calls and attempts is the start and id of the call. Rows are thus ordered by time: a
settled call changes one page of each table, and a report reads one range. Start and id never
change, so a call cannot be written twice.
"""

from __future__ import annotations

from datetime import tzinfo
from sqlite3 import Cursor

from .. import Hold, Record
from .. import stores as tables
from ..queries import WRITE_ATTEMPT, WRITE_CALL, WRITE_PLAN, call_row
from . import budgets

APPLICATION_ID = 0x494D5558  # "IMUX": marks a file of InferMux
MAX_PLANS = 4096  # digests of plans that a connection remembers


def _add(table: str, *columns: str) -> list[str]:
    return [f"ALTER TABLE {table} ADD COLUMN {column}" for column in columns]


def _made(table: str, kind: str = " STRICT, WITHOUT ROWID") -> str:
    return table.replace("BIGINT", "INTEGER") + kind


_INT, _TEXT = "INTEGER NOT NULL", "TEXT NOT NULL"
_COUNT, _NAME = f"{_INT} DEFAULT 0", f"{_TEXT} DEFAULT ''"
_FIRST = (
    _made(f"""CREATE TABLE calls (
        at_ns {_INT}, id {_TEXT}, trace_id {_TEXT}, caller {_TEXT},
        tags {_TEXT}, door {_TEXT}, requested {_TEXT}, model {_TEXT},
        served {_TEXT}, provider {_TEXT}, strategy {_TEXT}, status {_TEXT},
        error_code {_TEXT}, input_tokens INTEGER, output_tokens INTEGER,
        cached_input_tokens INTEGER, cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER,
        reasoning_tokens INTEGER, cost INTEGER, cost_source {_TEXT},
        estimated {_INT}, latency_ms {_INT}, first_token_ms INTEGER,
        attempts {_INT}, PRIMARY KEY (at_ns, id))"""),
    _made(f"""CREATE TABLE attempts (
        at_ns {_INT}, call_id {_TEXT}, n {_INT}, provider {_TEXT},
        model {_TEXT}, served {_TEXT}, started_ms {_INT}, first_ms INTEGER,
        ended_ms INTEGER, input_tokens INTEGER, output_tokens INTEGER, cached_input_tokens INTEGER,
        cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, reasoning_tokens INTEGER,
        cost INTEGER, error_code {_TEXT}, final {_INT},
        PRIMARY KEY (at_ns, call_id, n))"""),
    _made(f"""CREATE TABLE budgets (
        caller {_TEXT}, period {_TEXT}, spent {_INT}, held {_INT},
        PRIMARY KEY (caller, period))"""),
    _made(f"""CREATE TABLE holds (
        call_id TEXT PRIMARY KEY, caller {_TEXT}, period {_TEXT}, pico {_INT},
        at_ms {_INT}, expires_ms {_INT})"""),
)
_UNPRICED = (
    *_add("calls", f"unpriced {_COUNT}"),
    *_add("attempts", f"unpriced {_COUNT}"),
    """UPDATE attempts SET unpriced = 1
        WHERE cost IS NULL AND coalesce(input_tokens, output_tokens) IS NOT NULL""",
    """UPDATE calls SET unpriced = (SELECT count(*) FROM attempts AS a
        WHERE a.at_ns = calls.at_ns AND a.call_id = calls.id AND a.unpriced = 1)""",
)
_PLANS = (
    _made(tables.PLANS),
    *_add("calls", f"plan {_NAME}"),
)
# Holds become rows next to their budget's row, whose call_id is empty: a reservation then changes
# one page, not two.
_HOLDS = (
    "ALTER TABLE budgets RENAME TO apart",
    _made(f"""CREATE TABLE budgets (
        caller {_TEXT}, period {_TEXT}, spent {_COUNT},
        held {_INT}, call_id {_NAME}, at_ms {_COUNT},
        expires_ms {_COUNT},
        PRIMARY KEY (caller, period, call_id))"""),
    """INSERT INTO budgets (caller, period, spent, held)
        SELECT caller, period, spent, held FROM apart""",
    """INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms)
        SELECT caller, period, call_id, pico, at_ms, expires_ms FROM holds""",
    "DROP TABLE apart",
    "DROP TABLE holds",
)
_API = ("ALTER TABLE calls RENAME COLUMN door TO api",)
_STATUS = _add("attempts", "upstream_status INTEGER")
_UPSTREAM_ID = _add("attempts", f"upstream_request_id {_NAME}")
_CACHE_SAVED = _add("attempts", "cache_saved INTEGER") + _add("calls", "cache_saved INTEGER")
# What each caller's calls have cost up to the end of each slot of 15 minutes: the cost of a period
# is the difference of two rows. Triggers write it, so it follows from the rows whoever writes them.
# Micro-dollars and the rest are summed apart: pico-dollars would overflow at nine million USD.
_SLOT = "NEW.at_ns / 900000000000"
_BEFORE = f"FROM sums WHERE caller = NEW.caller AND slot < {_SLOT} ORDER BY slot DESC LIMIT 1"
SUMS = (
    _made(f"""CREATE TABLE sums (
        caller {_TEXT}, slot {_INT}, micro {_INT}, pico {_INT},
        PRIMARY KEY (caller, slot))"""),
    """INSERT INTO sums SELECT caller, slot, sum(micro) OVER earlier, sum(pico) OVER earlier
        FROM (SELECT caller, at_ns / 900000000000 AS slot, sum(cost / 1000000) AS micro,
                sum(cost % 1000000) AS pico
            FROM calls WHERE cost > 0 GROUP BY caller, slot)
        WINDOW earlier AS (PARTITION BY caller ORDER BY slot)""",
    # The sums of each ended day (UTC), by some columns of calls; see `rollups`.
    _made(tables.ROLLED, " STRICT"),
    _made(f"""CREATE TABLE rollups (
        kind {_INT}, day {_INT}, n {_INT}, caller {_TEXT},
        tag {_TEXT}, error {_TEXT}, model {_TEXT}, served {_TEXT},
        provider {_TEXT}, attempt_error TEXT, calls {_INT},
        attempts {_INT}, errors {_INT}, input_tokens {_INT},
        output_tokens {_INT}, cached_input_tokens {_INT},
        cache_write_tokens {_INT}, reasoning_tokens {_INT},
        micro {_INT}, pico {_INT}, unpriced {_INT},
        estimated {_INT}, saved_micro {_INT}, saved_pico {_INT},
        PRIMARY KEY (kind, day, n))"""),
    f"""CREATE TRIGGER call_begins BEFORE INSERT ON calls WHEN NEW.cost > 0 AND NOT EXISTS
            (SELECT 1 FROM sums WHERE caller = NEW.caller AND slot = {_SLOT})
        BEGIN INSERT INTO sums VALUES (NEW.caller, {_SLOT},
            coalesce((SELECT micro {_BEFORE}), 0), coalesce((SELECT pico {_BEFORE}), 0)); END""",
    f"""CREATE TRIGGER call_summed AFTER INSERT ON calls BEGIN
            UPDATE sums SET micro = micro + NEW.cost / 1000000, pico = pico + NEW.cost % 1000000
                WHERE NEW.cost > 0 AND caller = NEW.caller AND slot >= {_SLOT};
            DELETE FROM rolled WHERE day = NEW.at_ns / 86400000000000 AND state < 2; END""",
    *_add("budgets", f"waived {_COUNT}", f"raised {_COUNT}", f"warned_ms {_COUNT}"),
    # 1: the caller has budgets of several lengths; of older files it is not known
    *_add("budgets", f"several {_COUNT}"),
    "UPDATE budgets SET several = 1 WHERE call_id = ''",
    _made(tables.ADJUSTMENTS, " STRICT"),
)
_BILLED = (  # what else an attempt was billed by, and whether its cost is assumed
    *_add("attempts", f"assumed {_COUNT}", f"service_tier {_NAME}", f"billed {_NAME}"),
    *_add("calls", f"assumed {_COUNT}"),
    *_add("rollups", f"assumed_micro {_COUNT}", f"assumed_pico {_COUNT}"),
    *_add("budgets", f"about {_NAME}"),  # of a hold's call
)
_KEYS = (
    *map(_made, tables.KEYS),
    tables.FIRST_VERSION,
    *_add("calls", f"end_user {_NAME}"),
)
_ANSWERS = (
    _made(tables.ANSWERS, " STRICT"),
    tables.ANSWERS_BY_AGE,
    tables.ANSWERS_BY_END,
    _made(tables.ANSWER_SIZES),
)
_SLOT_START = "NEW.at_ns / 300000000000 * 300"
_HOUR_START = "NEW.at_ns / 3600000000000 * 3600"
_ACTIVITY = (
    _made(tables.ACTIVITY),
    f"""CREATE TRIGGER call_late AFTER INSERT ON calls
        WHEN EXISTS (SELECT 1 FROM activity WHERE step = 300 AND start = {_SLOT_START})
            OR EXISTS (SELECT 1 FROM activity WHERE step = 3600 AND start = {_HOUR_START})
        BEGIN DELETE FROM activity WHERE step = 300 AND start = {_SLOT_START};
            DELETE FROM activity WHERE step = 3600 AND start = {_HOUR_START}; END""",
    *_add("attempts", f"reason {_NAME}"),
)
_OBJECTS, _ALERTS = (_made(tables.OBJECTS),), (_made(tables.ALERTS),)
_FINISH = _add("attempts", f"finish_reason {_NAME}")
# item n migrates version n to n + 1
MIGRATIONS = (
    *(_FIRST, _UNPRICED, _PLANS, _HOLDS, _API, _STATUS, _UPSTREAM_ID, _CACHE_SAVED, SUMS),
    *(_BILLED, _KEYS, _ANSWERS, _ACTIVITY, _OBJECTS, _ALERTS, _FINISH),
)

# queries of a damaged file of any version, and statements that write their rows to the new one
RESCUE = {
    "SELECT caller, period, sum(spent) FROM budgets GROUP BY caller, period": (
        """INSERT INTO budgets (caller, period, spent, held) VALUES (?, ?, ?, 0)
            ON CONFLICT DO NOTHING"""
    ),
    "SELECT * FROM api_keys": "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
    **{
        f"SELECT * FROM {table}": f"INSERT INTO {table} VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING"
        for table in ("key_hashes", "objects")
    },
    "SELECT version + 1, name FROM versions": "UPDATE versions SET version = ? WHERE name = ?",
}

# -- calls --


def settle(
    sql: Cursor, record: Record, hold: Hold | None, known_plans: set[str], zone: tzinfo
) -> bool:
    """Write a call, release its hold and spend its cost; return False if it was written before.

    *known_plans* has digests of plans in the file; the call's is added.
    """
    call = record.call
    (row, key, line), taken_back = call_row(call), None
    if not sql.execute(WRITE_CALL, row).rowcount:
        taken_back = budgets.found_again(sql, call.at_ns, call.id)
        if taken_back is None:
            return False
        sql.execute(WRITE_CALL, row)
    if key and key not in known_plans:
        sql.execute(WRITE_PLAN, (key, line))
        if len(known_plans) < MAX_PLANS:
            known_plans.add(key)
    for attempt in record.attempts:
        sql.execute(WRITE_ATTEMPT, tuple(attempt))  # sqlite3 binds subclasses more slowly
    budgets.spend(sql, call, hold, zone, taken_back or 0)
    return True
