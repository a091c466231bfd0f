"""Tests of trouble in the process: full disks, damaged files, clock steps, no descriptors, kill."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import resource
import shutil
import signal
import sqlite3
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import (
    HELLO,
    Answer,
    Scripted,
    Service,
    TokenTrace,
    Vendor,
    eventually,
    nobody,
    run,
    script,
)

from infermux.ledger.sqlite import SQLiteLedger

KEYS = {name: f"imx-process-{name}" for name in ("free", "hard", "rated")}
DAY = 86_400
DEADLINE = 6


def toml(folder: Path, vendor: Vendor, refused: str, trace: str) -> str:
    """One worker; a caller without limits, one with a hard budget and one with a rate."""
    lines = [
        "[server]\nworkers = 1\nthreads = 16",
        f"[reliability]\nattempts = 1\ndeadline = {DEADLINE}\ncircuit_breaker = {{ failures = 2, window = 60, open = 30 }}",
        f'[trace]\ntokentrace = "{trace}"',
        f'[ledger]\npath = "{folder}/ledger/infermux.db"',
        f'[providers.vendor]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\napi_key = "env:PROCESS_VENDOR"',
        'models = ["dear"]\nprices = { "dear" = { input = "1000", output = "1000" } }',
        f'[providers.refused]\ntype = "openai"\nbase_url = "{refused}/v1"\napi_key = "env:PROCESS_VENDOR"\nmodels = ["gone"]',
    ]
    limits = {"hard": 'budget = { usd = "0.66", per = "day" }', "rated": "rpm = 3"}
    for name, key in KEYS.items():
        lines.append(
            f'[keys.{name}]\nhash = "{hashlib.sha256(key.encode()).hexdigest()}"\n{limits.get(name, "")}'
        )
    return "\n".join(lines)


class Stand:
    """A service with its vendor, TokenTrace, files, and a wall clock that can be set."""

    def __init__(self, folder: Path, vendor: Vendor, tokentrace: TokenTrace, refused: str) -> None:
        self.folder, self.vendor, self.tokentrace = folder, vendor, tokentrace
        self.ledger = folder / "ledger" / "infermux.db"
        self.ledger.parent.mkdir()
        (folder / "clock").write_bytes(bytes(8))
        (folder / "sitecustomize.py").write_text(CLOCK)
        (folder / "infermux.toml").write_text(toml(folder, vendor, refused, tokentrace.url))
        self.env = {
            "INFERMUX_CONFIG": str(folder / "infermux.toml"),
            "PROCESS_VENDOR": "sk-process",
            "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(
                os.pathsep
            ),
            "PROCESS_CLOCK": str(folder / "clock"),
        }
        self.service = Keyed(env=self.env)

    def ask(self, key: str = "free", model: str = "vendor/dear", text: str = "hello") -> Answer:
        body = {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 500}
        return self.service.ask("/v1/chat/completions", body, headers={"x-api-key": KEYS[key]})

    def jump(self, seconds: int) -> None:
        """Set the service's wall clock to so many seconds beside ours."""
        self.tokentrace.skew = seconds
        with (self.folder / "clock").open("r+b") as file:  # truncating it would kill its readers
            file.write(struct.pack("<q", seconds))

    @property
    def rows(self) -> int:
        with contextlib.closing(sqlite3.connect(self.ledger)) as db:
            return db.execute("SELECT count(*) FROM calls").fetchone()[0]

    def complaints(self, words: str) -> int:
        return self.service.log.count(words)


CLOCK = """
import mmap, os, struct, time
with open(os.environ["PROCESS_CLOCK"], "rb") as file:
    skew = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
read, read_ns = time.time, time.time_ns
time.time = lambda: read() + struct.unpack("<q", skew[:])[0]
time.time_ns = lambda: read_ns() + struct.unpack("<q", skew[:])[0] * 10**9
"""


class Keyed(Service):
    """A service whose first answer is a refusal."""

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log}"
        try:
            return self.ask("/providers").status == 401
        except (OSError, http.client.HTTPException):
            return False


class Answering(Vendor):
    """Says what it is told, unless the text is `hold`: then it waits for the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = threading.Event()

    def answer(self, handler: Any, body: bytes) -> None:
        if b'"hold"' in body or b'"stall"' in body:
            with self.lock:
                self.answers = [
                    Scripted(after=self.admission if b'"hold"' in body else self.released)
                ]
        else:
            with self.lock:
                self.answers = [Scripted()]
        super().answer(handler, body)


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with Answering() as vendor, TokenTrace() as tokentrace, nobody() as refused:
        try:
            yield Stand(tmp_path, vendor, tokentrace, refused)
        finally:
            vendor.admission.set()


# -- the ledger's disk -----------------------------------------------------------------------------


def is_refused(found: Answer) -> None:
    """The caller of a hard budget hears that it cannot be counted, and when to come again."""
    assert (found.status, found.json["error"]["code"]) == (503, "ledger_unavailable"), found
    assert "infermux.db" not in found.data.decode() and "disk" not in found.data.decode()


@pytest.mark.slow
def test_a_full_disk_costs_neither_records_nor_answers(stand: Stand) -> None:
    """Only a hard budget, which could not be kept, refuses; once there is room again everything is
    as before, and recorded.
    """
    with stand.service as service:
        assert [stand.ask().status for _ in range(8)] == [200] * 8
        assert stand.ask("hard").status == 200
        [worker] = service.workers
        before, seen = stand.rows, len(stand.vendor.seen)
        resource.prlimit(worker, resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
        assert [stand.ask().status for _ in range(5)] == [200] * 5
        is_refused(stand.ask("hard"))
        assert len(stand.vendor.seen) == seen + 5
        assert stand.rows == before
        assert stand.complaints("calls are recorded later, 0 are lost") == 1
        assert service.ask("/readyz").status == 503
        resource.prlimit(
            worker, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        )
        assert stand.ask("hard").status == 200
        assert stand.ask().status == 200
        eventually(lambda: stand.rows == before + 6 + 2, "all records")
        assert service.ask("/readyz").status == 200
        assert "Traceback" not in service.log and service.workers == [worker]


def damaged(path: Path) -> bytes:
    return b"this is not a database, whatever its name says\n" * 300


def cut(path: Path) -> bytes:
    """Half of a real ledger."""
    return path.read_bytes()[: path.stat().st_size // 2 + 100]


def scribbled(path: Path) -> bytes:
    """A real ledger whose pages, but for the first, were written over."""
    return path.read_bytes()[:4096] + b"\xa5" * (path.stat().st_size - 4096)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil", [damaged, *(pytest.param(each, marks=pytest.mark.slow) for each in (cut, scribbled))]
)
def test_a_ledger_that_is_damaged_at_the_start_is_kept_aside(
    stand: Stand, spoil: Callable[[Path], bytes]
) -> None:
    """The service starts, begins a new one, and says so; not a byte of the old one is deleted."""
    with stand.service:
        assert stand.ask().status == 200
    spoilt = spoil(stand.ledger)
    stand.ledger.write_bytes(spoilt)
    for name in ("-wal", "-shm"):
        stand.ledger.with_name(f"infermux.db{name}").unlink(missing_ok=True)
    with stand.service as service:
        assert [stand.ask(key).status for key in ("free", "hard")] == [200, 200]
        kept = [
            file
            for file in stand.ledger.parent.glob("infermux.db.corrupt-*")
            if not file.name.endswith(("-wal", "-shm"))
        ]
        assert [file.read_bytes() for file in kept] == [spoilt]
        assert stand.rows == 2
        assert str(kept[0]) in service.log and "Traceback" not in service.log


COMMANDS = {
    "gunicorn": [sys.executable, "-m", "gunicorn", "wsgi:app", "-b", "127.0.0.1:0"],
    "preload": [sys.executable, "-m", "gunicorn", "wsgi:app", "-b", "127.0.0.1:0", "--preload"],
    "serve": [*script("infermux"), "serve", "--addr", "127.0.0.1:0"],
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("place", ["no-such-folder/x.db", "file/x.db", "/sys/kernel/x.db", "."])
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_ledger_that_cannot_be_opened_stops_the_start(
    tmp_path: Path, command: list[str], place: str
) -> None:
    """One line names the path; the exit code says that nothing serves."""
    (tmp_path / "file").write_text("a regular file")
    path = os.path.normpath(tmp_path / place)
    answer = run(command, env={"INFERMUX_LEDGER__PATH": path})
    told = answer.stdout + answer.stderr
    assert answer.returncode != 0 and "Traceback" not in told and "Booting worker" not in told
    assert len([line for line in told.splitlines() if path in line]) == 1, told


@pytest.mark.slow
def test_a_worker_that_finds_no_ledger_serves_all_the_same(stand: Stand) -> None:
    """The folder vanishes under a running service: its next worker, and one after a HUP, answer,
    and budgets refuse.
    """
    with stand.service as service:
        [first] = service.workers
        shutil.rmtree(stand.ledger.parent)
        stand.ledger.parent.write_text("in its place")
        os.kill(first, signal.SIGKILL)
        [second] = eventually(
            lambda: [pid for pid in service.workers if pid != first], "a new worker"
        )
        eventually(service._answers, "answering")
        assert [stand.ask().status for _ in range(3)] == [200] * 3
        is_refused(stand.ask("hard"))
        service.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: "not reloaded" in service.log and second not in service.workers, "a reload"
        )
        assert [stand.ask(key).status for key in ("free", "rated")] == [200, 200]
        assert "Traceback" not in service.log
        assert 1 <= stand.complaints("calls are recorded later") <= 2  # one for each worker


# -- clocks ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "jump",
    [pytest.param(DAY, id="forth"), pytest.param(-DAY, id="back", marks=pytest.mark.slow)],
)
def test_a_clock_that_jumps_disturbs_no_call(stand: Stand, jump: int) -> None:
    """In flight or afterwards: deadlines, circuits, rates, latencies and spans go by a clock that
    cannot be set.
    """
    with stand.service, ThreadPoolExecutor(2) as pool:
        assert [stand.ask("rated").status for _ in range(2)] == [200] * 2
        assert [stand.ask(model="refused/gone").status for _ in range(2)] == [502] * 2
        shut = stand.service.ask("/readyz").json["targets"]["shut"]
        assert "circuit open" in shut["refused/gone"]
        held, stalled = pool.submit(stand.ask, text="hold"), pool.submit(stand.ask, text="stall")
        eventually(lambda: len(stand.vendor.seen) == 4, "calls at the vendor")
        stand.tokentrace.wait(4)  # the rest is sent by the new time
        stand.jump(jump)
        stand.vendor.admission.set()
        answer = held.result()
        assert (
            answer.status == 200
            and 0 <= int(answer.headers["X-Infermux-Latency-Ms"]) < DEADLINE * 1000
        )
        assert stalled.result().status == 504
        assert [stand.ask("rated").status for _ in range(2)] == [200, 429]
        assert 1 <= int(stand.ask("rated").headers["Retry-After"]) <= 61
        shut = stand.service.ask("/readyz").json["targets"]["shut"]
        assert "circuit open" in shut["refused/gone"]
        spans = stand.tokentrace.wait(9)
        assert all(span["end_ns"] - span["start_ns"] < 2 * DEADLINE * 10**9 for span in spans)


@pytest.mark.slow
@pytest.mark.parametrize("jump", [DAY, -DAY], ids=["forth", "back"])
def test_a_clock_that_jumps_gives_no_budget_twice(stand: Stand, jump: int) -> None:
    """Another day has its own budget; the day that is spent stays spent when the clock comes back
    to it.
    """
    with stand.service:
        paid = spend(stand)
        stand.jump(jump)
        assert spend(stand) == paid
        stand.jump(0)
        assert stand.ask("hard").status == 402
        stand.jump(jump)
        assert stand.ask("hard").status == 402


def spend(stand: Stand) -> int:
    """Call until the budget is spent; return how many calls it paid for."""
    for number in range(100):
        if (status := stand.ask("hard").status) != 200:
            assert (status, number > 0) == (402, True)
            return number
    raise AssertionError("the budget has no end")


# -- descriptors -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_worker_without_descriptors_lives_and_recovers(stand: Stand) -> None:
    """accept fails with EMFILE: whoever cannot be served waits or is turned away; then all goes on
    in the same process.
    """
    with stand.service as service, ThreadPoolExecutor(24) as pool:
        assert stand.ask().status == 200
        [worker] = service.workers
        soft, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
        used = max(int(fd) for fd in os.listdir(f"/proc/{worker}/fd")) + 1
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 3, hard))
        coming = [pool.submit(status, stand) for _ in range(24)]
        eventually(
            lambda: stand.complaints("cannot accept connections"), "a worker that cannot accept"
        )
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (soft, hard))
        assert {each.result() for each in coming} <= {0, 200, 502, 503}
        assert [stand.ask().status for _ in range(5)] == [200] * 5
        assert service.workers == [worker]
        assert stand.complaints("cannot accept connections") == 1 and "Traceback" not in service.log


def status(stand: Stand) -> int:
    """Return what a call is answered; 0: not at all."""
    try:
        return stand.ask().status
    except (OSError, http.client.HTTPException):
        return 0


@pytest.mark.slow
def test_a_worker_takes_as_many_descriptors_as_it_may(stand: Stand) -> None:
    """256 threads with a client, a vendor and a ledger each need more than the usual 1024."""
    command = [
        "bash",
        "-c",
        'ulimit -S -n 256 && exec "$@"',
        "bash",
        sys.executable,
        "-m",
        "gunicorn",
        "wsgi:app",
    ]
    with Keyed(command=command, env=stand.env) as service:
        soft, hard = resource.prlimit(service.workers[0], resource.RLIMIT_NOFILE)
        assert soft == (hard if 0 < hard < 65_536 else 65_536)


# -- sudden death ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_a_killed_worker_held_of_a_budget_is_spent_after_its_lease(stand: Stand) -> None:
    """Killed between the vendor's answer and the ledger: its call counts as its worst case, once
    and for good.
    """
    with stand.service as service, ThreadPoolExecutor(1) as pool:
        lost = pool.submit(status_of_held, stand)
        eventually(lambda: stand.vendor.seen, "the call at the vendor")
        [victim] = service.workers
        assert (
            stand.ask("hard").status == 402
        )  # the worst case of the first leaves no room for a second
        os.kill(victim, signal.SIGKILL)
        assert lost.result() == 0
        eventually(lambda: service.workers and victim not in service.workers, "a new worker")
        eventually(service._answers, "answering")
        assert stand.ask("hard").status == 402
        stand.jump(DEADLINE + 3600)
        ledger = SQLiteLedger(stand.ledger)
        eventually(lambda: ledger.rows(status="lost"), "the row of the lost call")
        [record] = ledger.rows(status="lost")
        assert record.call.cost == record.call.assumed > 0
        assert "Traceback" not in service.log


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR2])
def test_a_signal_for_the_master_that_also_reaches_a_worker_ends_no_call(
    stand: Stand, number: signal.Signals
) -> None:
    with stand.service as service, ThreadPoolExecutor(1) as pool:
        held = pool.submit(stand.ask, text="hold")
        eventually(lambda: stand.vendor.seen, "a call at the vendor")
        [worker] = service.workers
        os.kill(worker, number)
        assert service.ask("/healthz").status == 200
        stand.vendor.admission.set()
        assert held.result().status == 200
        assert service.workers == [worker]


@pytest.mark.slow
def test_a_call_that_ends_after_its_worker_was_told_to_quit_has_its_span(stand: Stand) -> None:
    with stand.service as service, ThreadPoolExecutor(1) as pool:
        held = pool.submit(stand.ask, text="hold")
        eventually(lambda: stand.vendor.seen, "a call at the vendor")
        [worker] = service.workers
        os.kill(worker, signal.SIGINT)
        eventually(
            lambda: worker not in service.workers or len(service.workers) > 1, "a new worker"
        )
        stand.vendor.admission.set()
        with contextlib.suppress(OSError, http.client.HTTPException):
            held.result()
        stand.tokentrace.wait(1)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-"])
def test_a_log_that_is_closed_is_written_nowhere_else(closed: str) -> None:
    """The next file that is opened would take the place of standard error."""
    command = [
        "sh",
        "-c",
        f'exec "$@" {closed}',
        "sh",
        sys.executable,
        "-m",
        "gunicorn",
        "wsgi:app",
    ]
    with Service(command=command) as service:
        for _ in range(500):
            assert service.ask("/infer", {"model": "n" * 100, "messages": []}).status == 400
        made = service.ask("/v1/chat/completions", HELLO)
        assert made.status == 200
        counts = service.ask("/metrics").data.decode()
        assert 'model="echo-v1",status="200"} 1\n' in counts and 'status="400"} 500\n' in counts


def status_of_held(stand: Stand) -> int:
    try:
        return stand.ask("hard", text="hold").status
    except (OSError, http.client.HTTPException):
        return 0


LATE = """
import time
from infermux.server import load
found = load()
def post_fork(server, worker):
    time.sleep(1.5 * (worker.age > 1))
    found["post_fork"](server, worker)
globals().update(found, post_fork=post_fork)
"""


@pytest.mark.slow
def test_a_worker_that_is_told_to_end_before_it_can_listen_ends(tmp_path):
    """It has its master's handlers still: a signal that came then was lost, and the service waited
    for thirty seconds.
    """
    (tmp_path / "late.conf.py").write_text(LATE)
    with Service(
        "-c", str(tmp_path / "late.conf.py"), "-w", "2"
    ) as service:  # the first answers while the second one starts
        eventually(lambda: service.log.count("Booting worker") == 2)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(20) == 0
