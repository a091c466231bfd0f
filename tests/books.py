"""Creates ledgers with calls, for the tests of reports."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from infermux.errors import InferMuxError
from infermux.ledger import AttemptRow, CallRow, Record
from infermux.ledger.queries import WRITE_ATTEMPT, WRITE_CALL
from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt, Call, Plan
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import Caller, Rates, Target, Usage, Window

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
DAY = 86_400.0
HOSTILE = "=cmd|' /C calc'!A0\x1b[2J\x9b31m\u202egpt\n\"<script>"


def call(
    id: str = "c",
    *,
    at: float = NOON,
    caller: str = "web",
    tags: dict[str, str] | None = None,
    target: str = "openai/gpt-5",
    served: str = "",
    requested: str = "fast",
    cost: int | None = 7,
    usage: Usage | None = None,
    error: InferMuxError | None = None,
    attempts: Sequence[Attempt] | None = None,
    seconds: float = 2.5,
) -> Call:
    """A call of one attempt, or of the *attempts*."""
    made = Call(
        InferRequest(requested),
        Caller(caller),
        "openai",
        id=id,
        trace_id="t",
        tags=tags or {},
        start_ns=round(at * 1e9),
    )
    made.started, made.ended, made.error = 10.0, 10.0 + seconds, error
    provider, _, model = target.partition("/")
    made.plan = Plan(requested, "priority", (Target(provider, model),))
    if attempts is None:
        attempts = [
            Attempt(
                Target(provider, model),
                10.0,
                usage=usage or Usage(10, 5),
                cost=cost,
                served=served,
                error=error,
            )
        ]
    made.attempts = list(attempts)
    return made


def keep(path: Path | Ledger, *calls: Call) -> Path:
    """Write calls into a ledger, as a service does."""
    ledger = SQLiteLedger(path) if isinstance(path, Path) else path
    assert ledger.problem() is None
    for each in calls:
        assert ledger.settle(record(each))
    if not isinstance(path, Path):
        return Path()
    ledger.close()
    return path


def opened(place: tuple[str, str], **options: Any) -> Ledger:
    """Return a ledger in the database of a test, from another process."""
    where, folder = place
    if "://" not in where:
        return SQLiteLedger(where, **options)
    from infermux.ledger.postgres import PostgresLedger

    options.pop("busy", None)
    spool = Path(folder) / f"{os.getpid()}.spool"
    return PostgresLedger(where, spool=spool, **{"clock": time.time} | options)


def large(path: Path, count: int, seed: int = 5) -> list[Record]:
    """Write *count* calls over 40 days in one transaction, and return them."""
    chance, made = random.Random(seed), []
    for n in range(count):
        at, id = int(NOON) * 10**9 - round(chance.random() * 40 * DAY * 1e9), f"{n:032x}"
        rows = tuple(
            _attempt(chance, at, id, n, last)
            for n, last in enumerate([False] * chance.choice([0, 0, 0, 0, 1, 2]) + [True])
        )
        rows = rows if chance.random() > 0.02 else ()  # it was refused
        made.append(Record(_whole(chance, at, id, rows), rows))
    with closing(SQLiteLedger(path)) as ledger:
        assert ledger.rows() == []
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.executemany(WRITE_CALL, [each.call for each in made])
        sql.executemany(WRITE_ATTEMPT, [attempt for each in made for attempt in each.attempts])
    return made


def _attempt(chance: random.Random, at: int, id: str, n: int, last: bool) -> AttemptRow:
    provider, model = f"vendor-{chance.randrange(6)}", f"model-{chance.randrange(30)}"
    failed = not last or chance.random() < 0.02
    cost = (
        None
        if failed or chance.random() < 0.03
        else chance.choice([0, chance.randrange(10**11), 10**17])
    )
    tokens = [chance.randrange(10**5) for _ in range(6)]
    return AttemptRow(at, id, n, provider, model, f"{model}-2026-01-01", n * 100, n * 100 + 50, n * 100 + 90, *tokens, cost,
                      int(cost is None and not failed), "upstream_timeout" if failed else "", int(last))  # fmt: skip


def _whole(chance: random.Random, at: int, id: str, rows: Sequence[AttemptRow]) -> CallRow:
    costs = [row.cost for row in rows if row.cost is not None]
    unpriced, last = sum(row.unpriced for row in rows), rows[-1] if rows else None
    error = (last.error_code if last else "budget_exceeded") or ""
    tags = {
        name: f"{name}-{chance.randrange(9)}"
        for name in ("env", "project")
        if chance.random() < 0.7
    }
    names = (last.model, last.served, last.provider) if last else ("", "", "")
    return CallRow(
        at, id, "t", f"caller-{chance.randrange(20)}", json.dumps(tags), "openai", "fast", *names, "priority",
        {"": "ok", "budget_exceeded": "402"}.get(error, "504"), error,
        *[sum(row[9 + n] or 0 for row in rows) for n in range(6)], None if unpriced and not costs else sum(costs), "served",
        int(chance.random() < 0.05), chance.randrange(60_000), 50, len(rows), unpriced)  # fmt: skip


def counted(rates: Rates, caller: str) -> tuple[int, int]:
    """Return the requests and tokens of a caller's last minute, as a refusal tells them."""
    window = Window(None, 0)
    rates.take(caller, rpm=None, tpm=0, tokens=1, window=window)
    return window.requests, window.tokens
