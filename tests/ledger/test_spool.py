"""While the ledger is unavailable, calls are answered; each is recorded later, once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import multiprocessing
import os
import resource
import signal
import sqlite3
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import Service, Vendor, eventually, run, script

from infermux.errors import BudgetExceeded
from infermux.ledger import Budget, Record
from infermux.ledger.spool import MAX_WAITING, Deferred, decoded, encoded
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Attempt, Call
from infermux.protocol import InferRequest
from infermux.routing.accounting import record
from infermux.types import Caller, Target, Usage

NOON = 1_795_435_200.0  # 2026-11-23T12:00:00Z
KEYS = {name: f"imx-spool-{name}" for name in ("free", "hard", "warn")}
ADMIN = "imx-spool-admin"
LIMIT = 1.0  # seconds that a ledger may delay an answer
SLACK = 1.0  # that a busy machine may need besides
fresh = multiprocessing.get_context("spawn")
HOME = Path(__file__).parents[
    __name__.count(".")
]  # where a fresh process finds this module, whatever pytest calls it


def settled(id: str, cost: int = 7, caller: str = "web") -> Record:
    made = Call(
        InferRequest("m"), Caller(caller), "openai", id=id, start_ns=int(NOON) * 10**9, started=1.0
    )
    made.ended = 2.0
    made.attempts = [Attempt(Target("p", "m"), 1.0, usage=Usage(3, 2), cost=cost)]
    return record(made)


# -- the service -----------------------------------------------------------------------------------


class Told(NamedTuple):
    """What a client has seen."""

    status: int
    id: str
    seconds: float


class Stand:
    """A service with its own folder for the ledger, under a load that notes every answer."""

    def __init__(self, folder: Path, vendor: Vendor) -> None:
        self.path = folder / "ledger" / "infermux.db"
        self.path.parent.mkdir()
        lines = [
            f'[server]\nthreads = 16\nadmin_key = "env:SPOOL_ADMIN"\n[ledger]\npath = "{self.path}"',
            f'[providers.vendor]\ntype = "openai"\nbase_url = "{vendor.url}/v1"',
            'api_key = "env:SPOOL_VENDOR"\nmodels = ["dear"]',
            'prices = { "dear" = { input = "1000", output = "1000" } }',
        ]
        budgets = {"hard": "reject", "warn": "warn"}
        for name, key in KEYS.items():
            lines.append(f'[keys.{name}]\nhash = "{hashlib.sha256(key.encode()).hexdigest()}"')
            if then := budgets.get(name):
                lines.append(f'budget = {{ usd = "900", per = "total", then = "{then}" }}')
        (folder / "infermux.toml").write_text("\n".join(lines))
        self.env = {
            "INFERMUX_CONFIG": str(folder / "infermux.toml"),
            "SPOOL_VENDOR": "sk-spool",
            "SPOOL_ADMIN": ADMIN,
        }
        self.told: list[Told] = []
        self.service = self.made()

    def made(self) -> Service:
        return Keyed("--workers", "2", env=self.env)

    def ask(self, key: str = "free") -> Told:
        body = {"model": "vendor/dear", "messages": [{"role": "user", "content": "hello"}]}
        start = time.monotonic()
        answer = self.service.ask(
            "/v1/chat/completions", {**body, "max_tokens": 5}, headers={"x-api-key": KEYS[key]}
        )
        took = time.monotonic() - start
        told = Told(answer.status, answer.headers["X-Request-Id"], took)
        if answer.status == 503:
            assert answer.json["error"]["code"] == "ledger_unavailable"
        self.told.append(told)
        return told

    @contextlib.contextmanager
    def load(self, *keys: str) -> Iterator[None]:
        """Ask with each key, one call after the other, until the block ends."""
        over, problems = threading.Event(), []

        def client(key: str) -> None:
            while not over.is_set():
                try:
                    self.ask(key)
                except (OSError, http.client.HTTPException) as error:  # its worker was killed
                    problems.append(error)
                time.sleep(0.02)

        with ThreadPoolExecutor(len(keys)) as pool:
            futures = [pool.submit(client, key) for key in keys]
            try:
                yield
            finally:
                over.set()
            for each in futures:
                each.result()
        self.broken = len(problems)

    def rows(self) -> list[str]:
        with closing(sqlite3.connect(self.path)) as db:
            return [id for (id,) in db.execute("SELECT id FROM calls")]

    def records(self) -> dict[str, int]:
        return self.service.ask("/readyz").json["records"]

    def recorded_once(self) -> None:
        """Every call that was answered is in the ledger, once, and nothing is left beside it."""
        answered = {told.id for told in self.told if told.status == 200}
        eventually(lambda: answered <= set(self.rows()), "every answered call in the ledger")
        assert max(Counter(self.rows()).values()) == 1
        eventually(lambda: self.records() == {"pending": 0, "lost": 0}, "nothing pending")
        assert not list(self.path.parent.glob("*.spool*"))
        for line in ("infermux_ledger_pending 0", "infermux_ledger_lost_total 0"):
            eventually(lambda: line in self.service.ask("/metrics").data.decode().splitlines())  # noqa: B023

    def in_time(self, *statuses: int) -> None:
        assert {told.status for told in self.told} <= {200, *statuses}
        slow = sorted(told.seconds for told in self.told)
        assert slow[-1] < LIMIT + SLACK, slow[-10:]
        assert slow[len(slow) // 2] < LIMIT / 2, slow


class Keyed(Service):
    """A service whose first answer is a refusal."""

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log}"
        try:
            return self.ask("/providers").status == 401
        except OSError:
            return False


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with Vendor() as vendor:
        yield Stand(tmp_path, vendor)


@contextlib.contextmanager
def locked(path: Path, how: str = "IMMEDIATE") -> Iterator[None]:
    """Lock the ledger as another process does."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as other:
        if how == "whole":
            other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute(f"BEGIN {'IMMEDIATE' if how == 'whole' else how}")
        yield
        other.execute("ROLLBACK")


@pytest.mark.parametrize("seconds", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_locked_ledger_delays_little_and_loses_nothing(stand: Stand, seconds: int) -> None:
    with stand.service, stand.load(*["free"] * 6, "hard", "warn"):
        eventually(lambda: len(stand.told) > 50, "answers")
        with locked(stand.path):
            time.sleep(seconds)
            assert stand.records()["pending"] > 0
            assert stand.service.ask("/readyz").status == 503
        before = len(stand.told)
        eventually(lambda: len(stand.told) > before + 50, "answers")
        eventually(lambda: stand.ask("hard").status == 200, "a budget again")
    with stand.service:
        stand.recorded_once()
    stand.in_time(503)
    assert any(told.status == 503 for told in stand.told)  # the hard budget alone
    spent = {"hard": 0, "warn": 0}
    with closing(sqlite3.connect(stand.path)) as db:
        for caller in spent:
            [(cost,)] = db.execute("SELECT sum(cost) FROM calls WHERE caller = ?", (caller,))
            assert db.execute(
                "SELECT sum(spent), sum(held) FROM budgets WHERE caller = ?", (caller,)
            ).fetchall() == [(cost, 0)]


@pytest.mark.slow
def test_a_worker_that_is_killed_leaves_its_records_to_others(stand: Stand) -> None:
    with stand.service:
        stand.ask()
        with locked(stand.path), stand.load(*["free"] * 4):
            eventually(lambda: stand.records()["pending"] > 50, "pending records")
            for pid in stand.service.workers:
                os.kill(pid, signal.SIGKILL)
            before = len(stand.told)
            eventually(lambda: len(stand.told) > before + 20, "answers of new workers")
            os.kill(stand.service.workers[0], signal.SIGKILL)
        stand.recorded_once()


@pytest.mark.slow
def test_what_is_pending_survives_a_restart(stand: Stand) -> None:
    with stand.service:
        stand.ask()
        with locked(stand.path):
            for _ in range(5):
                stand.ask()
            stand.service.stop()
            stand.service = again = stand.made()
            with again:  # a ledger that is locked does not stop the start
                assert stand.records() == {"pending": 5, "lost": 0}
                assert stand.ask().status == 200
                stand.service.process.kill()
    spool = Path(f"{stand.path}.spool")
    assert stat.S_IMODE(spool.stat().st_mode) == 0o600
    stand.service = stand.made()
    with stand.service:
        stand.recorded_once()  # without a call
        stand.in_time()


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["file", "folder"])
def test_a_ledger_that_is_gone_loses_nothing_that_comes_after(stand: Stand, gone: str) -> None:
    away = stand.path.parent.with_name("away")
    with stand.service, stand.load(*["free"] * 4):
        eventually(lambda: len(stand.told) > 20, "answers")
        if gone == "file":
            for each in stand.path.parent.iterdir():
                each.unlink()
            time.sleep(0.5)
            stand.told.clear()
        else:
            stand.path.parent.rename(away)
            eventually(lambda: stand.records()["pending"] > 20, "pending records")
            away.rename(stand.path.parent)
        before = len(stand.told)
        eventually(lambda: len(stand.told) > before + 50, "answers")
    with stand.service:
        stand.recorded_once()
    stand.in_time()


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_there_is_memory_for(stand: Stand) -> None:
    with stand.service:
        for _ in range(8):
            stand.ask()
        eventually(lambda: len(stand.service.workers) == 2, "both workers")
        for pid in stand.service.workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        for _ in range(40):
            stand.ask()
        forty = {"pending": 40, "lost": 0}
        eventually(lambda: stand.records() == forty, "the records of both workers")
        refused = stand.ask("hard")
        assert refused.status == 503 and refused.seconds < LIMIT + SLACK
        assert stand.service.ask("/readyz").status == 503
        place = f"http://127.0.0.1:{stand.service.port}"
        status, admin = [*script("infermux"), "status"], {"INFERMUX_ADMIN_KEY": ADMIN}
        told = "ledger: 41 calls pending, 0 lost"  # by whichever worker answers
        eventually(lambda: told in run([*status, "--server", place], env=admin).stdout)
        for pid in stand.service.workers:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        stand.recorded_once()
        stand.in_time(503)


@pytest.mark.slow
def test_a_file_system_without_room_loses_nothing(stand: Stand) -> None:
    folder = stand.path.parent
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a file system")
    try:
        with stand.service:
            with stand.load(*["free"] * 4, "hard"):
                eventually(lambda: len(stand.told) > 50, "answers")
                with contextlib.suppress(OSError), (folder / "filler").open("wb", 0) as filler:
                    while filler.write(bytes(4096)):
                        pass
                eventually(lambda: stand.records()["pending"] > 100, "pending records", 60)
                (folder / "filler").unlink()
                before = len(stand.told)
                eventually(lambda: len(stand.told) > before + 50, "answers")
            stand.recorded_once()
        stand.in_time(503)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def vacuum(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as db:
        db.execute("VACUUM")


def backup(path: Path) -> None:
    with (
        closing(sqlite3.connect(path, timeout=30)) as db,
        closing(sqlite3.connect(path.with_name("copy.db"))) as copy,
    ):
        db.backup(copy, pages=5)


def report(path: Path) -> None:
    told = run([*script("infermux"), "costs", "--ledger", str(path), "--by", "caller"])
    assert told.returncode == 0 and "free" in told.stdout, told


@pytest.mark.slow
def test_maintenance_beside_the_service_loses_nothing(stand: Stand) -> None:
    with stand.service, stand.load(*["free"] * 6, "warn"):
        eventually(lambda: len(stand.told) > 100, "answers")
        for work in (vacuum, backup, report) * 2:
            work(stand.path)
        before = len(stand.told)
        eventually(lambda: len(stand.told) > before + 50, "answers")
    with stand.service:
        stand.recorded_once()
    stand.in_time()


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "l.db"


@pytest.fixture
def ledger(path: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(path)) as made:
        yield made


def ids(ledger: SQLiteLedger) -> list[str]:
    return sorted(found.call.id for found in ledger.rows(limit=10_000))


def spool_of(path: Path) -> Path:
    return Path(f"{path}.spool")


def test_a_line_says_what_the_settlement_says(ledger: SQLiteLedger) -> None:
    budget = Budget("web", 1000, "day", "warn")
    hold = ledger.reserve(budget, 10, call_id="a", at=NOON)._replace(known=None)
    for each in (Deferred(settled("a"), hold), Deferred(settled("b"), None)):
        line = encoded(each)
        assert line.endswith(b"\n") and line.count(b"\n") == 1
        assert decoded(line) == each
        for n in range(len(line) - 1):
            assert decoded(line[:n]) is None
            changed = line[:n] + bytes([line[n] ^ 1]) + line[n + 1 :]
            assert decoded(changed) is None or n == len("checksum")


def test_a_settlement_is_written_once_however_often_it_is_deferred(ledger: SQLiteLedger) -> None:
    budget = Budget("web", 1000, "total")
    hold = ledger.reserve(budget, 100, call_id="a", at=NOON)
    for _ in range(3):
        assert ledger.defer(settled("a"), hold)
    eventually(lambda: ledger.spooled() == 0)
    assert ledger.defer(settled("a"), hold)
    eventually(lambda: ledger.spooled() == 0)
    assert not ledger.settle(settled("a"), hold)
    assert ids(ledger) == ["a"]
    assert ledger.spent(budget, NOON) == (7, 0)


@pytest.mark.parametrize("cut", [2, 40, 300])
def test_a_torn_line_is_counted_and_never_joined_to_the_next(
    ledger: SQLiteLedger, path: Path, cut: int
) -> None:
    """As a worker leaves it that is killed while it writes."""
    whole = encoded(Deferred(settled("torn"), None))
    with locked(path) if ledger.problem() is None else contextlib.nullcontext():
        spool_of(path).write_bytes(encoded(Deferred(settled("a"), None)) + whole[:-cut])
        assert ledger.defer(settled("b"))
    eventually(lambda: ledger.spooled() == 0)
    assert ids(ledger) == ["a", "b"]
    assert ledger.backlog() == (0, 1)


def test_a_settlement_that_cannot_be_written_stops_no_other(
    ledger: SQLiteLedger, path: Path
) -> None:
    bad = settled("bad")
    bad = bad._replace(call=bad.call._replace(cost="much"))  # type: ignore[arg-type]
    lines = [encoded(Deferred(each, None)) for each in (settled("a"), bad, settled("b"))]
    spool_of(path).write_bytes(b"".join(lines))
    ledger.drain()
    eventually(lambda: not spool_of(path).exists() and ids(ledger) == ["a", "b"])
    eventually(lambda: ledger.backlog() == (0, 1))


def test_a_long_spool_is_written_in_batches(ledger: SQLiteLedger, path: Path) -> None:
    names = [f"{n:04d}" for n in range(1000)]
    spool_of(path).write_bytes(b"".join([encoded(Deferred(settled(n), None)) for n in names]))
    assert ledger.spooled() == 1000
    ledger.drain()
    eventually(lambda: ledger.spooled() == 0)
    assert ids(ledger) == names


def test_a_line_follows_a_spool_that_is_renamed_meanwhile(ledger: SQLiteLedger, path: Path) -> None:
    """Another worker takes the file while this one waits for its lock."""
    with spool_of(path).open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer = threading.Thread(target=ledger.defer, args=(settled("a"),))
        writer.start()
        time.sleep(0.04)
        spool_of(path).rename(path.with_name("taken"))
        fcntl.flock(held, fcntl.LOCK_UN)
        writer.join()
        assert path.with_name("taken").read_bytes() == b""
    eventually(lambda: ids(ledger) == ["a"])


def defer(path: Path, worker: int, count: int, started: Any) -> None:
    """Defer settlements and drain at the same time as others do."""
    with closing(SQLiteLedger(path, busy=60)) as ledger:
        started.wait()
        (path.parent / f"{worker}.started").touch()
        for n in range(count):
            assert ledger.defer(settled(f"{worker}-{n:04d}"))
        eventually(lambda: ledger.spooled() == 0)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 2])
def test_workers_append_to_and_drain_one_spool(path: Path, killed: int, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(HOME)
    crew, count = 4, 300
    started = fresh.Barrier(crew)
    workers = [
        fresh.Process(target=defer, args=(path, n, count, started), daemon=True)
        for n in range(crew)
    ]
    for each in workers:
        each.start()
    if killed:  # none at the barrier, whose lock would be kept
        eventually(lambda: len([*path.parent.glob("*.started")]) == crew)
        eventually(spool_of(path).exists)
    for each in workers[:killed]:
        each.kill()
    for each in workers:
        each.join(60)
    assert [each.exitcode for each in workers[killed:]] == [0] * (crew - killed)
    with closing(SQLiteLedger(path)) as ledger:
        ledger.drain()
        eventually(lambda: ledger.spooled() == 0)
        expected = {f"{n}-{k:04d}" for n in range(killed, crew) for k in range(count)}
        found = ids(ledger)
        assert expected <= set(found) and len(found) == len(set(found))
        assert ledger.backlog() == (0, 0)


def test_no_hold_expires_while_its_call_may_be_in_the_spool(
    ledger: SQLiteLedger, path: Path
) -> None:
    budget = Budget("web", 100, "total")
    hold = ledger.reserve(budget, 90, call_id="a", at=NOON, lease=60)
    late = NOON + 3600
    spool = spool_of(path)
    spool.mkdir()  # not to be drained: as if another worker had begun with it
    with pytest.raises(BudgetExceeded):
        ledger.reserve(budget, 90, call_id="b", at=late)
    spool.rmdir()
    assert ledger.defer(settled("a", cost=80), hold)
    eventually(lambda: ledger.spooled() == 0)
    assert ledger.spent(budget, late) == (80, 0)
    with pytest.raises(BudgetExceeded):
        ledger.reserve(budget, 90, call_id="b", at=late)


@pytest.mark.slow
def test_what_no_file_takes_waits_in_memory_up_to_a_bound(ledger: SQLiteLedger, path: Path) -> None:
    spool = spool_of(path)
    spool.mkdir()  # nothing can be appended to it
    with locked(path) if ledger.problem() is None else contextlib.nullcontext():
        for n in range(MAX_WAITING):
            assert ledger.defer(settled(f"{n:04d}"))
        assert not ledger.defer(settled("one more"))
        assert ledger.backlog() == (MAX_WAITING, 0)
    eventually(lambda: ledger.backlog() == (0, 0))
    spool.rmdir()
    assert len(ids(ledger)) == MAX_WAITING
