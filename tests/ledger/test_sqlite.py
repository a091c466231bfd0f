"""Tests of the ledger's file: records, queries, migrations, damage and failures."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import resource
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from infermux.errors import BudgetExceeded, ProviderTimeout, ProviderUnavailable, RequestError
from infermux.ledger import MAX_TOKENS, Budget, Hold, LedgerUnavailable, Record
from infermux.ledger.sql import Ledger
from infermux.ledger.sqlite import SQLiteLedger
from infermux.ledger.sqlite.schema import MIGRATIONS
from infermux.planning import Plan, Snapshot, plan
from infermux.planning.call import Attempt, Call
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import ANONYMOUS, Caller, Route, Target, Usage

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
DAY = 86_400.0
fresh = multiprocessing.get_context("spawn")
HOME = Path(__file__).parents[
    __name__.count(".")
]  # where a fresh process finds this module, whatever pytest calls it
A, B = Target("a", "small"), Target("b", "large")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "l.db"


@pytest.fixture
def own(path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(path)) as made:
        yield made


def call(
    id: str = "c",
    *attempts: Attempt,
    at: float = NOON,
    caller: Caller = ANONYMOUS,
    model: str = "fast",
) -> Call:
    made = Call(
        InferRequest(model),
        caller,
        "openai",
        id=id,
        trace_id="t",
        start_ns=int(at) * 10**9,
        started=10.0,
        ended=12.5,
        tags=caller.tags,
    )
    made.plan = Plan(model, "priority", (A, B))
    made.attempts = list(attempts) or [Attempt(A, 10.0, usage=Usage(10, 5), cost=7)]
    made.cost_source = "served"
    return made


def put(ledger: Ledger, *calls: Call) -> None:
    for each in calls:
        assert ledger.settle(record(each))


def planned(id: str, targets: tuple[Target, ...], **known: Any) -> Call:
    """Return a call whose plan was really made."""
    made = call(id)
    made.plan = plan(Route("fast", targets), Snapshot(**known), 1)
    return made


# -- what is kept of a call ------------------------------------------------------------------------


def test_a_failover_is_one_call_and_two_attempts() -> None:
    usage = Usage(
        100,
        20,
        cached_input_tokens=40,
        cache_write_tokens=30,
        cache_write_1h_tokens=10,
        reasoning_tokens=5,
    )
    made = call(
        "c",
        Attempt(A, 10.0, ended=10.25, error=ProviderTimeout("slow")),
        Attempt(B, 10.5, 11.0, 12.5, usage, 123, served="large-2026-01-01"),
        caller=Caller("web", tags={"project": "é", "env": "prod"}),
    )
    whole, (first, second) = record(made)
    assert whole._asdict() == {
        "at_ns": int(NOON) * 10**9, "id": "c", "trace_id": "t", "caller": "web", "tags": '{"env": "prod", "project": "\\u00e9"}',
        "api": "openai", "requested": "fast", "model": "large", "served": "large-2026-01-01", "provider": "b",
        "strategy": "priority", "status": "ok", "error_code": "", "input_tokens": 100, "output_tokens": 20,
        "cached_input_tokens": 40, "cache_write_tokens": 30, "cache_write_1h_tokens": 10, "reasoning_tokens": 5, "cost": 123,
        "cost_source": "served", "estimated": 0, "latency_ms": 2500, "first_token_ms": 1000, "attempts": 2, "unpriced": 0, "cache_saved": None, "assumed": 0, "end_user": "", "plan": "",
    }  # fmt: skip
    assert (first.provider, first.started_ms, first.first_ms, first.ended_ms, first.cost, first.error_code, first.final) == (
        "a", 0, None, 250, None, "upstream_timeout", 0)  # fmt: skip
    assert (
        second.n,
        second.started_ms,
        second.first_ms,
        second.ended_ms,
        second.cost,
        second.final,
    ) == (1, 500, 1000, 2500, 123, 1)


@pytest.mark.parametrize(
    ("costs", "cost", "unpriced"),
    [
        ([3, 4], 7, 0),
        ([3, None], 3, 1),
        ([None, None], None, 2),
        ([None], None, 1),
        ([0], 0, 0),
        ([-5], 0, 0),
    ],
)
def test_a_call_costs_what_its_attempts_cost(
    costs: list[int | None], cost: int | None, unpriced: int
) -> None:
    whole = record(
        call("c", *[Attempt(A, 10.0, usage=Usage(1, 1), cost=each) for each in costs])
    ).call
    assert (whole.cost, whole.unpriced, whole.input_tokens) == (cost, unpriced, len(costs))


def test_a_call_that_reached_nobody_costs_nothing() -> None:
    made = call(caller=Caller("web"))
    made.attempts, made.error, made.plan = [], BudgetExceeded("spent"), None
    whole, attempts = record(made)
    assert (whole.cost, whole.unpriced, whole.input_tokens, attempts) == (0, 0, None, ())
    assert (whole.status, whole.error_code, whole.requested, whole.model) == (
        "402",
        "budget_exceeded",
        "fast",
        "",
    )


def test_an_attempt_that_was_not_billed_has_neither_cost_nor_tokens() -> None:
    _, (row,) = record(call("c", Attempt(A, 10.0, error=ProviderUnavailable("down"))))
    assert (row.cost, row.unpriced, row.input_tokens) == (None, 0, None)


def test_what_vendors_and_callers_may_say_can_be_stored(ledger: Ledger) -> None:
    wild: Any = Usage(10**40, -3, cached_input_tokens=float("nan"), reasoning_tokens="7")  # type: ignore[arg-type]
    caller = Caller("\ud800", tags={f"n{n}": "\udfff" * 900 for n in range(40)})
    made = call(
        "c",
        Attempt(Target("p", "m" * 10**6), 10.0, usage=wild, cost=10**60, served="\0é\ud800"),
        caller=caller,
        model="x" * 10**6,
    )
    put(ledger, made)
    (whole, (row,)) = ledger.rows(caller="?")[0]
    assert (
        whole.input_tokens,
        whole.output_tokens,
        whole.cached_input_tokens,
        whole.reasoning_tokens,
    ) == (MAX_TOKENS, 0, None, None)
    assert (len(whole.requested), len(row.model)) == (200, 200)
    assert row.served in ("\0é?", "\ufffdé?")  # PostgreSQL has no NUL
    assert len(json.loads(whole.tags)) == 16


def test_content_is_never_kept(own: SQLiteLedger, path: Path) -> None:
    made = call()
    made.request = InferRequest(
        "fast",
        [{"role": "user", "content": "SECRET"}],
        params={"user": "SECRET"},
        meta={"x": "SECRET"},
    )
    made.error = ProviderUnavailable("SECRET")
    put(own, made)
    own.close()
    assert b"SECRET" not in b"".join(each.read_bytes() for each in path.parent.iterdir())


# -- rows and reports ------------------------------------------------------------------------------


def test_what_was_settled_is_read_back(ledger: Ledger) -> None:
    one = record(
        call(
            "c",
            Attempt(A, 10.0, error=ProviderTimeout("slow")),
            Attempt(B, 10.0, usage=Usage(1, 2), cost=3),
        )
    )
    assert ledger.settle(one)
    assert ledger.rows() == [one]


def test_rows_are_the_newest_first_and_filtered(ledger: Ledger) -> None:
    failed = call("failed", at=NOON + 3, caller=Caller("web"))
    failed.error = ProviderTimeout("slow")
    served = Attempt(B, 10.0, usage=Usage(1, 1), cost=1, served="large-1")
    put(
        ledger,
        call("a", at=NOON),
        call("b", served, at=NOON + 1),
        call("x", at=NOON + 2, model="odd%_"),
        failed,
    )

    def ids(**filters: Any) -> list[str]:
        return [each.call.id for each in ledger.rows(**filters)]

    assert ids() == ["failed", "x", "b", "a"]
    assert ids(limit=2) == ["failed", "x"]
    assert ids(since=NOON + 1, until=NOON + 3) == ["x", "b"]
    assert ids(status="ok") == ["x", "b", "a"]
    assert ids(status="error") == ids(status="504") == ids(caller="web") == ["failed"]
    assert ids(model="large") == ids(model="large-1") == ["b"]
    assert ids(model="fast") == ["failed", "b", "a"]
    assert ids(model="odd%_", caller="", status="ok", since=NOON) == ["x"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "hostile",
    ["%", "%%%", "_", "' OR 1=1 --", '"; DROP TABLE calls; --', "\0", "\ud800", "a" * 10**6],
)
def test_a_filter_is_a_value_and_nothing_else(ledger: Ledger, hostile: str) -> None:
    put(ledger, call())
    assert (
        ledger.rows(model=hostile)
        == ledger.rows(status=hostile)
        == ledger.rows(caller=hostile)
        == []
    )
    assert ledger.totals(f"tag:{hostile}")[0].key == ("",)
    with pytest.raises(RequestError, match="cannot be grouped by"):
        ledger.totals(hostile)
    assert [ledger.totals("model", caller=hostile), len(ledger.rows())] == [[], 1]


def test_a_call_is_found_by_its_id_or_the_beginning_of_it(ledger: Ledger) -> None:
    calls = [planned(id, (A, B)) for id in ("abcdef01", "abcdef02", "abcdee99")]
    put(ledger, *calls)
    assert ledger.call("abcdef01") == record(calls[0])
    assert ledger.call("abcdee") == record(calls[2])
    assert ledger.call("abcdef03") is None and ledger.call("zzzzzz") is None
    with pytest.raises(RequestError, match="several call ids"):
        ledger.call("abcdef")


@pytest.mark.parametrize("little", ["", "abcde", "%"])
def test_too_little_of_an_id_is_refused(ledger: Ledger, little: str) -> None:
    put(ledger, call("abcdef01"))
    with pytest.raises(RequestError, match="at least 6 characters"):
        ledger.call(little)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "hostile",
    [
        "%%%%%%",
        "______",
        "abcde?",
        "abcdef' OR '1'='1",
        "\ud800" * 6,
        "abcdef\0",
        "ABCDEF",
        "x" * 10**6,
    ],
)
def test_an_id_is_a_value_and_no_pattern(ledger: Ledger, hostile: str) -> None:
    put(ledger, call("abcdef01"))
    assert ledger.call(hostile) is None


def test_equal_plans_are_kept_once(ledger: Ledger, backend: Any) -> None:
    same = [planned(f"same{n}", (A, B)) for n in range(50)]
    others = [
        planned("other1", (B, A)),
        planned("other2", (A, B), unfit={A: "cannot do tools"}),
        call("without"),
    ]
    put(ledger, *same, *others)
    kept = {each.call.id: each.call.plan for each in ledger.rows(limit=99)}
    assert kept == {each.id: record(each).call.plan for each in (*same, *others)}
    assert (
        record(others[1]).call.plan.count("cannot do tools") == 2
    )  # as it was known, and as it was decided
    assert backend.sql("SELECT count(*) FROM plans") == [("2",)]
    [(longest,)] = backend.sql("SELECT max(length(plan)) FROM calls WHERE id LIKE 'same%'")
    assert int(longest) < 40


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("limit", "found"), [(10**30, 3), (-1, 0), (0, 0), (2, 2)])
def test_a_limit_is_kept_within_reason(ledger: Ledger, limit: int, found: int) -> None:
    put(ledger, *[call(str(n)) for n in range(3)])
    assert len(ledger.rows(limit=limit)) == found
    assert len(ledger.rows(since=-1e300, until=1e300)) == 3


def test_totals_agree_whatever_they_are_by(ledger: Ledger) -> None:
    web, night = (
        Caller("web", tags={"env": "prod", "team": "x"}),
        Caller("night", tags={"env": "test"}),
    )
    failover = [
        Attempt(A, 10.0, usage=Usage(1, 1), cost=5, error=ProviderTimeout("slow")),
        Attempt(B, 10.0, usage=Usage(10, 2), cost=100),
    ]
    put(
        ledger,
        call("1", *failover, caller=web),
        call("2", caller=web, at=NOON + 3600),
        call("3", Attempt(B, 10.0, usage=Usage(3, 3)), caller=night, at=NOON + DAY),
        call("4", at=NOON + DAY),
    )

    def by(*names: str, **filters: Any) -> dict[tuple[str, ...], tuple[int, ...]]:
        found = ledger.totals(*names, **filters)
        return {
            each.key: (each.calls, each.attempts, each.input_tokens, each.cost, each.unpriced)
            for each in found
        }

    assert by() == {(): (4, 5, 34, 119, 1)}
    assert by("model") == {("large",): (2, 2, 13, 100, 1), ("small",): (2, 3, 21, 19, 0)}
    assert by("provider") == {("b",): (2, 2, 13, 100, 1), ("a",): (2, 3, 21, 19, 0)}
    assert by("caller") == {
        ("web",): (2, 3, 21, 112, 0),
        ("",): (1, 1, 10, 7, 0),
        ("night",): (1, 1, 3, 0, 1),
    }
    assert list(by("day").items()) == [
        (("2026-11-23",), (2, 3, 21, 112, 0)),
        (("2026-11-24",), (2, 2, 13, 7, 1)),
    ]
    assert list(by("hour")) == [
        ("2026-11-23T12:00Z",),
        ("2026-11-23T13:00Z",),
        ("2026-11-24T12:00Z",),
    ]
    web_only, untagged = (2, 3, 21, 112, 0), (1, 1, 10, 7, 0)
    assert by("tag") == {
        ("env=prod",): web_only,
        ("team=x",): web_only,
        ("env=test",): (1, 1, 3, 0, 1),
        ("",): untagged,
    }
    assert by("tag:team") == {("x",): (2, 3, 21, 112, 0), ("",): (2, 2, 13, 7, 1)}
    assert by("day", "model", caller="web") == {
        ("2026-11-23", "large"): (1, 1, 10, 100, 0),
        ("2026-11-23", "small"): (1, 2, 11, 12, 0),
    }
    assert by("caller", since=NOON + 3600, until=NOON + DAY) == {("web",): (1, 1, 10, 7, 0)}
    assert [each.errors for each in ledger.totals("model")] == [0, 0]  # the call was rescued
    assert [each.errors for each in ledger.totals("caller")] == [0, 0, 0]


def test_what_went_wrong_is_told_of_calls_and_of_attempts(ledger: Ledger) -> None:
    slow, down = ProviderTimeout("slow"), ProviderUnavailable("down")
    failed = call("2", Attempt(A, 10.0, error=down), Attempt(B, 10.0, error=slow))
    failed.error = slow
    put(
        ledger,
        call("1", Attempt(A, 10.0, error=slow), Attempt(B, 10.0, usage=Usage(1, 1), cost=1)),
        failed,
    )
    assert {each.key[0]: each.calls for each in ledger.totals("error")} == {"": 1, slow.code: 1}
    assert {
        each.key: (each.attempts, each.errors)  # a call and its error count for its last attempt
        for each in ledger.totals("model", "attempt_error")
    } == {
        ("small", slow.code): (1, 0),
        ("small", down.code): (1, 0),
        ("large", slow.code): (1, 1),
        ("large", ""): (1, 0),
    }
    for by in ((), ("model",), ("provider",), ("served",), ("day", "model"), ("error",)):
        assert sum(each.errors for each in ledger.totals(*by)) == 1, by


def test_an_empty_ledger_has_no_totals(ledger: Ledger) -> None:
    assert ledger.totals("day") == ledger.totals("model", "tag") == []
    assert [(each.calls, each.cost) for each in ledger.totals()] == [(0, 0)]


# -- the file --------------------------------------------------------------------------------------


def test_only_its_owner_may_read_it(own: SQLiteLedger, path: Path) -> None:
    old = os.umask(0)
    try:
        put(own, call())
    finally:
        os.umask(old)
    assert {
        each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()
    } == dict.fromkeys(["l.db", "l.db-wal", "l.db-shm", "l.db.lock"], 0o600)


@pytest.mark.slow
def test_a_connection_ends_with_its_thread_and_with_the_ledger(
    own: SQLiteLedger, path: Path
) -> None:
    def descriptors() -> int:
        gc.collect()
        return sum(
            os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(path))
            for fd in os.listdir("/proc/self/fd")
        )

    put(own, call("main"))
    alone = descriptors()
    for n in range(20):
        thread = threading.Thread(target=put, args=(own, call(str(n))))
        thread.start()
        thread.join()
    assert descriptors() <= alone + 1  # SQLite keeps one back for its next connection
    own.close()
    assert descriptors() == 0
    put(own, call("late"))  # a call that outlives the ledger's owner is settled all the same
    assert len(own.rows()) == 22


def test_a_fork_opens_its_own_connection(own: SQLiteLedger) -> None:
    put(own, call("parent"))
    inherited = own._here().writer.connection
    child = os.fork()
    if child == 0:
        code = 1
        try:
            put(own, call("child"))
            code = 2 if own._here().writer.connection is inherited else 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    put(own, call("later"))
    assert {each.call.id for each in own.rows()} == {"parent", "child", "later"}


# The statements of earlier schemas, as those versions ran them.
VERSION_1 = """
    CREATE TABLE calls (
        at_ns INTEGER NOT NULL, id TEXT NOT NULL, trace_id TEXT NOT NULL, caller TEXT NOT NULL,
        tags TEXT NOT NULL, door TEXT NOT NULL, requested TEXT NOT NULL, model TEXT NOT NULL,
        served TEXT NOT NULL, provider TEXT NOT NULL, strategy TEXT NOT NULL, status TEXT NOT NULL,
        error_code TEXT NOT NULL, input_tokens INTEGER, output_tokens INTEGER,
        cached_input_tokens INTEGER, cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER,
        reasoning_tokens INTEGER, cost INTEGER, cost_source TEXT NOT NULL,
        estimated INTEGER NOT NULL, latency_ms INTEGER NOT NULL, first_token_ms INTEGER,
        attempts INTEGER NOT NULL, PRIMARY KEY (at_ns, id)) STRICT, WITHOUT ROWID;
    CREATE TABLE attempts (
        at_ns INTEGER NOT NULL, call_id TEXT NOT NULL, n INTEGER NOT NULL, provider TEXT NOT NULL,
        model TEXT NOT NULL, served TEXT NOT NULL, started_ms INTEGER NOT NULL, first_ms INTEGER,
        ended_ms INTEGER, input_tokens INTEGER, output_tokens INTEGER, cached_input_tokens INTEGER,
        cache_write_tokens INTEGER, cache_write_1h_tokens INTEGER, reasoning_tokens INTEGER,
        cost INTEGER, error_code TEXT NOT NULL, final INTEGER NOT NULL,
        PRIMARY KEY (at_ns, call_id, n)) STRICT, WITHOUT ROWID;
    CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL, held INTEGER NOT NULL,
        PRIMARY KEY (caller, period)) STRICT, WITHOUT ROWID;
    CREATE TABLE holds (
        call_id TEXT PRIMARY KEY, caller TEXT NOT NULL, period TEXT NOT NULL, pico INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, expires_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO budgets VALUES ('web', 'total', 900, 0);
    PRAGMA application_id = 1229804888;
    PRAGMA user_version = 1;
"""
VERSION_2 = f"""{VERSION_1}
    ALTER TABLE calls ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE attempts ADD COLUMN unpriced INTEGER NOT NULL DEFAULT 0;
    PRAGMA user_version = 2;
"""
VERSION_3 = f"""{VERSION_2}
    CREATE TABLE plans (digest TEXT PRIMARY KEY, line TEXT NOT NULL) STRICT, WITHOUT ROWID;
    ALTER TABLE calls ADD COLUMN plan TEXT NOT NULL DEFAULT '';
    INSERT INTO budgets VALUES ('app', '2026-11', 30, 17);
    INSERT INTO holds VALUES ('a', 'app', '2026-11', 7, 0, 9000000000000);
    INSERT INTO holds VALUES ('b', 'app', '2026-11', 10, 0, 9000000000000);
    PRAGMA user_version = 3;
"""
VERSION_4 = f"""{VERSION_3}
    ALTER TABLE budgets RENAME TO apart;
    CREATE TABLE budgets (
        caller TEXT NOT NULL, period TEXT NOT NULL, spent INTEGER NOT NULL DEFAULT 0,
        held INTEGER NOT NULL, call_id TEXT NOT NULL DEFAULT '', at_ms INTEGER NOT NULL DEFAULT 0,
        expires_ms INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (caller, period, call_id)) STRICT, WITHOUT ROWID;
    INSERT INTO budgets (caller, period, spent, held)
        SELECT caller, period, spent, held FROM apart;
    INSERT INTO budgets (caller, period, call_id, held, at_ms, expires_ms)
        SELECT caller, period, call_id, pico, at_ms, expires_ms FROM holds;
    DROP TABLE apart;
    DROP TABLE holds;
    PRAGMA user_version = 4;
"""  # that of InferMux 0.1
VERSION_6 = f"""{VERSION_4}
    ALTER TABLE calls RENAME COLUMN door TO api;
    ALTER TABLE attempts ADD COLUMN upstream_status INTEGER;
    PRAGMA user_version = 6;
"""  # that of InferMux 1.0
VERSION_8 = f"""{VERSION_6}
    ALTER TABLE attempts ADD COLUMN upstream_request_id TEXT NOT NULL DEFAULT '';
    ALTER TABLE attempts ADD COLUMN cache_saved INTEGER;
    ALTER TABLE calls ADD COLUMN cache_saved INTEGER;
    PRAGMA user_version = 8;
"""
OLD = {
    "1": VERSION_1,
    "2": VERSION_2,
    "3": VERSION_3,
    "4": VERSION_4,
    "6": VERSION_6,
    "8": VERSION_8,
}
MISSING = {VERSION_1: {"unpriced", "plan"}, VERSION_2: {"plan"}}  # columns that it has not
EIGHT = {"upstream_status", "upstream_request_id", "cache_saved"}
# columns that none of them has
NEW = EIGHT | {"assumed", "service_tier", "billed", "end_user", "reason", "finish_reason"}
HAS = {VERSION_6: {"upstream_status"}, VERSION_8: EIGHT}  # except these


def old_file(path: Path, version: str, *records: Record) -> None:
    with closing(sqlite3.connect(path)) as sql, sql:
        sql.executescript(version)
        for whole, attempts in records:
            for table, columns in [
                ("calls", whole._asdict()),
                *[("attempts", each._asdict()) for each in attempts],
            ]:
                row = {
                    {"api": "door"}.get(name, name) if version not in HAS else name: value
                    for name, value in columns.items()
                    if name not in MISSING.get(version, set()) | (NEW - HAS.get(version, set()))
                }
                sql.execute(
                    f"INSERT INTO {table} ({','.join(row)}) VALUES ({','.join('?' * len(row))})",
                    tuple(row.values()),
                )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("version", OLD.values(), ids=OLD)
def test_a_file_of_an_older_version_is_migrated_with_its_rows(
    own: SQLiteLedger, path: Path, version: str
) -> None:
    kept = [
        record(
            call(
                "mixed",
                Attempt(A, 10.0, usage=Usage(1, 1)),
                Attempt(B, 10.0, usage=Usage(2, 2), cost=5),
            )
        ),
        record(call("failed", Attempt(A, 10.0, error=ProviderTimeout("slow")))),
        record(call("priced")),
    ]
    old_file(path, version, *kept)
    kept[1] = Record(kept[1].call, tuple(each._replace(reason="") for each in kept[1].attempts))
    assert own.rows() == kept[2:] + kept[:1] + kept[1:2]
    assert {each.call.api for each in own.rows()} == {"openai"}
    new = planned("new-call", (A, B))
    assert own.settle(record(new)) and own.call("new-call") == record(new)
    assert own.spent(Budget("web", 1000, "total"), NOON) == (900, 0)
    assert own.spent(Budget("", 1000, "total"), NOON) == (5 + 7 + 7, 0)
    own.reserve(Budget("", 20, "day"), 1, call_id="first", at=NOON)
    assert own.spent(Budget("", 20, "day"), NOON) == (19, 1)
    with closing(sqlite3.connect(path)) as sql:
        assert sql.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)


def open_and_settle(path: Path, worker: int, ready: Any, results: Any) -> None:
    with closing(SQLiteLedger(path, busy=60)) as ledger:
        ready.wait(60)
        written = sum(ledger.settle(record(call(f"{worker}.{n}"))) for n in range(10))
        results.put((worker, written, len(ledger.rows(limit=1000)), ledger.problem()))


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD.values(), ids=OLD)
def test_workers_that_start_at_once_migrate_an_old_file_once(
    path: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HOME)
    old_file(path, version, *[record(call(f"old{n}")) for n in range(500)])
    results, ready = fresh.Queue(), fresh.Barrier(4)
    crew = [fresh.Process(target=open_and_settle, args=(path, n, ready, results)) for n in range(4)]
    for each in crew:
        each.start()
    found = sorted(results.get(timeout=60) for _ in crew)
    for each in crew:
        each.join()
    assert [(worker, written, problem) for worker, written, _, problem in found] == [
        (n, 10, None) for n in range(4)
    ]
    assert all(510 <= seen <= 540 for _, _, seen, _ in found)
    with closing(SQLiteLedger(path)) as ledger:
        ids = {each.call.id for each in ledger.rows(limit=1000)}
        assert ids == {f"old{n}" for n in range(500)} | {
            f"{worker}.{n}" for worker in range(4) for n in range(10)
        }
        assert ledger.spent(Budget("web", 1000, "total"), NOON) == (900, 0)
    assert moved(path) == []


@pytest.mark.parametrize("version", [VERSION_3, VERSION_4], ids=["3", "4"])
def test_what_calls_hold_is_held_after_a_migration_too(
    own: SQLiteLedger, path: Path, version: str
) -> None:
    """Two calls are in flight during an upgrade: one is settled later, the other's hold expires."""
    old_file(path, version)
    budget = Budget("app", 100, "month")
    assert own.spent(budget, NOON) == (30, 17)
    with pytest.raises(BudgetExceeded):
        own.reserve(budget, 54, call_id="c", at=NOON)
    assert own.settle(
        record(call("a", Attempt(A, 10.0, usage=Usage(1, 1), cost=5), caller=Caller("app"))),
        Hold("a", budget, 7, NOON),
    )
    assert own.spent(budget, NOON) == (35, 10)
    with closing(sqlite3.connect(path)) as sql:
        held = sql.execute(
            "SELECT call_id, held FROM budgets WHERE caller = 'app' ORDER BY call_id"
        ).fetchall()
    assert held == [("", 10), ("b", 10)]


def test_a_file_of_a_newer_version_or_another_program_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("CREATE TABLE notes (text)")
    whole = path.read_bytes()
    ledger = SQLiteLedger(path)
    with pytest.raises(LedgerUnavailable) as error:
        put(ledger, call())
    assert "belongs to another program" in error.value.reason
    assert str(path) not in str(error.value)
    assert path.read_bytes() == whole
    with closing(sqlite3.connect(path)) as sql:
        sql.execute("PRAGMA application_id = 1229804888")
        sql.execute("PRAGMA user_version = 99")
    assert "newer InferMux" in (ledger.problem() or "")
    assert [each.name for each in path.parent.iterdir() if "corrupt" in each.name] == []


# -- damage ----------------------------------------------------------------------------------------


def moved(path: Path) -> list[Path]:
    return sorted(
        each
        for each in path.parent.iterdir()
        if ".corrupt-" in each.name and not each.name.endswith(("-wal", "-shm"))
    )


def test_a_file_that_is_no_database_is_kept_and_reported(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for n, junk in enumerate([b"junk" * 5000, b"more" * 5000]):
        path.write_bytes(junk)
        with closing(SQLiteLedger(path, clock=lambda: NOON)) as ledger:
            assert ledger.problem() is None
            put(ledger, call())
            assert len(ledger.rows()) == 1
        assert moved(path)[n].read_bytes() == junk
        path.unlink()
    assert [each.name for each in moved(path)] == [
        "l.db.corrupt-20261123T120000Z",
        "l.db.corrupt-20261123T120000Z-1",
    ]
    assert [each.levelname for each in caplog.records] == ["ERROR", "ERROR"]
    assert "l.db.corrupt-20261123T120000Z" in caplog.text


@pytest.mark.parametrize("name", ["infermux.toml", "passwd", "main.py"])
def test_a_file_that_is_not_named_like_a_database_is_left_alone(tmp_path: Path, name: str) -> None:
    """[ledger].path may be wrong: a file of somebody else must not move."""
    path = tmp_path / name
    path.write_bytes(b"root:x:0:0\n" * 100)
    with closing(SQLiteLedger(path)) as ledger:
        assert "not a database" in (ledger.problem() or "")
    assert path.read_bytes() == b"root:x:0:0\n" * 100 and moved(path) == []


def test_a_truncated_file_is_kept(path: Path) -> None:
    with closing(SQLiteLedger(path)) as ledger:
        put(ledger, *[call(str(n)) for n in range(200)])
    os.truncate(path, 3 * 4096 + 100)
    with closing(SQLiteLedger(path)) as ledger:
        put(ledger, call())
        assert len(ledger.rows()) == 1
    assert [each.stat().st_size for each in moved(path)] == [3 * 4096 + 100]


def test_a_file_that_lost_everything_does_not_take_its_log_along(path: Path) -> None:
    keeper = SQLiteLedger(path)
    put(keeper, call())
    wal = Path(f"{path}-wal").read_bytes()
    os.truncate(path, 0)
    with closing(SQLiteLedger(path)) as ledger:
        put(ledger, call())
    assert Path(f"{moved(path)[0]}-wal").read_bytes() == wal
    keeper.close()


@pytest.mark.slow
def test_damage_that_shows_later_keeps_budgets_and_every_other_worker(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    budget = Budget("web", 1000, "total")
    with closing(SQLiteLedger(path)) as ledger:
        ledger.settle(
            record(call("0", Attempt(A, 10.0, usage=Usage(1, 1), cost=900))),
            ledger.reserve(budget, 900, call_id="0", at=NOON),
        )
        put(ledger, *[call(str(n), at=NOON - n) for n in range(1, 2000)])
        ledger.objects().add("openai", "web", ["file-1"], NOON)
        secret = ledger.objects().secret()
    with closing(sqlite3.connect(path)) as sql:
        page = sql.execute("SELECT rootpage FROM sqlite_master WHERE name = 'calls'").fetchone()[0]
    other = SQLiteLedger(path)
    assert other.spent(budget, NOON) == (900, 0)  # open, and to the old file
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(b"\xff" * 4096)
    with closing(SQLiteLedger(path)) as ledger:
        put(ledger, call("after"))
        assert ledger.spent(budget, NOON) == (900, 0)
        assert ledger.objects().has("openai", "web", "file-1")
        assert ledger.objects().secret() == secret  # or ids that were given would be unknown
        put(other, call("other"))
        other.close()  # must not take away the new file's log
        put(ledger, call("last"))
        assert {each.call.id for each in ledger.rows()} == {"after", "other", "last"}
    assert len(moved(path)) == 1
    assert len(caplog.records) == 1
    with closing(SQLiteLedger(path)) as ledger:
        assert len(ledger.rows()) == 3


def find(path: Path, worker: int, results: Any) -> None:
    with closing(SQLiteLedger(path, busy=60)) as ledger:
        results.put((worker, sum(ledger.settle(record(call(f"{worker}.{n}"))) for n in range(50))))


@pytest.mark.slow
def test_workers_that_find_the_damage_at_once_lose_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(HOME)
    path.write_bytes(b"junk" * 5000)
    results: Any = fresh.Queue()
    crew = [fresh.Process(target=find, args=(path, n, results)) for n in range(4)]
    for each in crew:
        each.start()
    assert sorted(results.get(timeout=60) for _ in crew) == [(n, 50) for n in range(4)]
    for each in crew:
        each.join()
    with closing(SQLiteLedger(path)) as ledger:
        assert len(ledger.rows(limit=1000)) == 200
    assert [each.read_bytes() for each in moved(path)] == [b"junk" * 5000]


def test_a_file_that_is_removed_is_made_again(own: SQLiteLedger, path: Path) -> None:
    put(own, call("a"))
    for each in path.parent.iterdir():
        each.unlink()
    put(own, call("b"))
    assert [each.call.id for each in own.rows()] == ["b"]


# -- no room, no right, no time --------------------------------------------------------------------


def test_a_directory_that_is_gone_is_told_and_survived(tmp_path: Path) -> None:
    place, away = tmp_path / "here", tmp_path / "away"
    place.mkdir()
    budget = Budget("web", 1000)
    with closing(SQLiteLedger(place / "l.db")) as ledger:
        put(ledger, call("a"))
        place.rename(away)
        for use in (
            lambda: ledger.settle(record(call("b"))),
            lambda: ledger.reserve(budget, 1, call_id="b", at=NOON),
            ledger.rows,
        ):
            with pytest.raises(LedgerUnavailable) as error:
                use()
        assert str(place) in error.value.reason
        assert str(place) not in error.value.message
        assert str(place) in (ledger.problem() or "")
        away.rename(place)
        assert ledger.problem() is None  # without any call in between
        put(ledger, call("b"))
        assert ledger.spent(budget, NOON) == (0, 0)


def fill(path: Path, results: Any) -> None:
    """Settle until the file may not grow, then let it grow again."""
    with closing(SQLiteLedger(path)) as ledger:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        budget = Budget("web", 10**9, "total")
        put(ledger, call("first"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        written, reason = 0, ""
        try:
            for n in range(10_000):
                hold = ledger.reserve(budget, 10, call_id=str(n), at=NOON)
                ledger.settle(record(call(str(n), caller=Caller("web"))), hold)
                written += 1
        except LedgerUnavailable as error:
            reason = error.reason
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        ill = ledger.problem()
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        well = ledger.problem()
        put(ledger, call("last"))
        results.put(
            (
                written,
                reason,
                ill,
                well,
                len(ledger.rows(limit=10_000)),
                ledger.spent(budget, NOON).spent,
            )
        )


@pytest.mark.slow
def test_a_full_disk_is_told_and_survived(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(HOME)
    results: Any = fresh.Queue()
    writer = fresh.Process(target=fill, args=(path, results))
    writer.start()
    written, reason, ill, well, rows, spent = results.get(timeout=60)
    writer.join()
    assert 0 < written < 10_000
    assert reason
    assert ill
    assert well is None
    assert (rows, spent) == (written + 2, 7 * written)  # whole calls or nothing
    assert moved(path) == []


def test_a_writer_that_does_not_end_is_not_waited_for_without_end(path: Path) -> None:
    with (
        closing(SQLiteLedger(path, busy=0.1)) as ledger,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        put(ledger, call("a"))
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerUnavailable) as error:
            put(ledger, call("b"))
        assert "locked" in error.value.reason
        assert "locked" in (ledger.problem() or "")
        assert len(ledger.rows()) == 1  # readers do not wait for writers
        other.execute("ROLLBACK")
        put(ledger, call("b"))
        assert ledger.problem() is None
