"""A ledger of many calls: how long reports, reservations and maintenance take."""

from __future__ import annotations

import os
import resource
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger, schema

from ..support import ROOT

ROWS = 5_000_000
DAYS = 400
CALLERS, MODELS, PROVIDERS = 20, 30, 6
_BATCH = 100_000  # calls per transaction
# calls, evenly over the time and in its order; what they are follows from their number
_CALLS = f"""WITH RECURSIVE numbers(n) AS (SELECT ?1 UNION ALL SELECT n + 1 FROM numbers
    WHERE n + 1 < ?2), mixed AS (SELECT n, (n * 2654435761 + 12345) % 4294967296 AS x FROM numbers)
    INSERT INTO calls (at_ns, id, trace_id, caller, tags, api, requested, model, served, provider,
        strategy, status, error_code, input_tokens, output_tokens, cost, cost_source, estimated,
        latency_ms, attempts, unpriced, plan)
    SELECT ?3 + n * ?4, printf('%032x', n), printf('%032x', x), 'caller-' || (x % {CALLERS}),
        CASE WHEN x % 3 THEN '{{"project": "p' || (x % 7) || '"}}' ELSE '{{}}' END, 'openai', 'fast',
        'model-' || (x / 32 % {MODELS}), 'model-' || (x / 32 % {MODELS}) || '-2026-01-01',
        'vendor-' || (x / 32 % {PROVIDERS}), 'priority',
        CASE WHEN x % 50 THEN 'ok' ELSE '504' END,
        CASE WHEN x % 50 THEN '' ELSE 'upstream_timeout' END, x % 9000, x % 700,
        CASE WHEN x % 50 THEN x % 10000000007 ELSE 0 END, 'served', x % 20 = 0, x % 60000, 1, 0, ''
    FROM mixed"""
_ATTEMPTS = """INSERT INTO attempts (at_ns, call_id, n, provider, model, served, started_ms, ended_ms,
        input_tokens, output_tokens, cost, unpriced, error_code, final)
    SELECT at_ns, id, 0, provider, model, served, 0, latency_ms, input_tokens, output_tokens,
        cost, 0, error_code, 1 FROM calls WHERE at_ns >= ? AND at_ns < ?"""


def fill(path: Path, count: int, *, now: float, days: int = DAYS) -> None:
    """Write *count* calls of the last *days* days to a file of an older version, without sums."""
    step = round(days * 86_400e9 / count)
    start = round(now * 1e9) - count * step
    older = schema.MIGRATIONS.index(schema.SUMS)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        sql.execute("PRAGMA journal_mode = WAL")
        sql.execute("PRAGMA synchronous = OFF")
        for statement in (each for step in schema.MIGRATIONS[:older] for each in step):
            sql.execute(statement)
        sql.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
        sql.execute(f"PRAGMA user_version = {older}")
        for first in range(0, count, _BATCH):
            last = min(first + _BATCH, count)
            sql.execute("BEGIN")
            sql.execute(_CALLS, (first, last, start, step))
            sql.execute(_ATTEMPTS, (start + first * step, start + last * step))
            sql.execute("COMMIT")


def measure(folder: str, count: int) -> Iterator[tuple[str, float]]:
    """Yield what each work takes, in seconds or MiB."""
    path, now = Path(folder) / "rows.db", time.time()
    yield "fill", _seconds(lambda: fill(path, count, now=now))
    yield "migrate", _seconds(lambda: _migrate(path))
    yield "size", path.stat().st_size / 2**20
    yield "roll", _seconds(lambda: _command(path, "costs", "--all"))
    for name, words in {
        "costs": ("costs", "--all"),
        "costs_caller": ("costs", "--all", "--by", "day,caller"),
        "costs_recent": ("costs",),
    }.items():
        took, peak = [], 0.0
        for _ in range(3):
            took.append(_seconds(lambda words=words: _command(path, *words)))
            peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
        yield name, statistics.median(took)
        yield f"{name}_memory", peak
    with closing(SQLiteLedger(path)) as ledger:
        ledger.reserve(Budget("nobody", 10**15), 1, call_id="warm", at=now)
        for period in ("day", "month", "total"):
            took = []
            for n in range(CALLERS):
                budget, id = Budget(f"caller-{n}", 10**18, period), f"{period}-{n}"
                took.append(
                    _seconds(lambda b=budget, i=id: ledger.reserve(b, 1, call_id=i, at=now))
                )
            yield f"first_{period}", statistics.median(took)
            yield f"first_{period}_max", max(took)
    yield "backup", _seconds(lambda: _command(path, "ledger", "backup", f"{path}.copy"))
    os.unlink(f"{path}.copy")
    yield "check", _seconds(lambda: _command(path, "ledger", "check"))
    yield (
        "prune",
        _seconds(lambda: _command(path, "ledger", "prune", "--keep", f"{DAYS * 3 // 4}d")),
    )


def _seconds(work: object) -> float:
    start = time.perf_counter()
    work()  # type: ignore[operator]
    return time.perf_counter() - start


def _migrate(path: Path) -> None:
    with closing(SQLiteLedger(path)) as ledger:
        ledger.check()


def _command(path: Path, *words: str) -> None:
    command = [sys.executable, "-m", "infermux", *words, "--ledger", str(path)]
    subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
