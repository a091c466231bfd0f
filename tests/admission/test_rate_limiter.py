"""Tests that a caller never exceeds its rate limits, over threads, processes and clock steps."""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from books import counted

from infermux.admission import ConcurrencyLimiter
from infermux.admission.rate_limiter import RECORDS, RateLimiter
from infermux.errors import ConfigError

BEGIN = 5000.0


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = BEGIN) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def rates(tmp_path: Path, clock: Clock) -> RateLimiter:
    return RateLimiter(tmp_path / "rates", clock=clock)


def in_threads(count: int, work: Callable[[], object]) -> None:
    gate = threading.Barrier(count)

    def run() -> None:
        gate.wait()
        work()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def python(script: str, path: Path, *, seconds: float = 60) -> str:
    """Run *script* in an interpreter of its own, where it may fork, and return what it printed."""
    prelude = """import os, signal, sys, threading, time
sys.path.append("tests")
from books import counted
from infermux.admission.rate_limiter import RateLimiter
path = sys.argv[1]
"""
    done = subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(script), str(path)],
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ConcurrencyLimiter


def test_slots_are_never_more_than_the_limit_and_come_back() -> None:
    slots = ConcurrencyLimiter(7)
    got: list[bool] = []
    in_threads(8, lambda: got.extend([slots.acquire() for _ in range(5)]))
    assert got.count(True) == slots.used == 7
    slots.release()
    assert (slots.acquire(), slots.acquire()) == (True, False)


def test_slots_are_exact_under_threads() -> None:
    slots, most = ConcurrencyLimiter(3), []

    def work() -> None:
        for _ in range(3000):
            if slots.acquire():
                most.append(slots.used)
                slots.release()

    in_threads(6, work)
    assert slots.used == 0
    assert max(most) <= 3


def test_a_slot_cannot_be_given_back_twice() -> None:
    slots = ConcurrencyLimiter(2)
    assert slots.acquire()
    slots.release()
    with pytest.raises(ValueError, match="twice"):
        slots.release()
    assert slots.used == 0


def test_of_no_slots_none_is_free() -> None:
    assert ConcurrencyLimiter(0).acquire() is False


# Requests and tokens per minute


def test_requests_are_admitted_up_to_the_rate_and_again_when_they_have_left_the_minute(
    rates: RateLimiter, clock: Clock
) -> None:
    assert [rates.take("a", rpm=2, tpm=None) for _ in range(3)] == [None, None, 61.0]
    clock.now += 20.5
    assert rates.take("a", rpm=2, tpm=None) == 40.5
    assert rates.take("a", rpm=3, tpm=None) is None
    clock.now = BEGIN + 60.9
    assert rates.take("a", rpm=3, tpm=None) == pytest.approx(0.1)
    clock.now = BEGIN + 61
    assert [rates.take("a", rpm=3, tpm=None) for _ in range(3)] == [None, None, 20.0]


def test_callers_do_not_share(rates: RateLimiter) -> None:
    for name in ("a", "b", "", "é" * 1000, "\udc80", "a\0"):
        assert rates.take(name, rpm=1, tpm=None) is None
        assert rates.take(name, rpm=1, tpm=None) is not None
        assert counted(rates, name) == (1, 0)


def test_tokens_are_admitted_up_to_the_rate(rates: RateLimiter, clock: Clock) -> None:
    assert rates.take("a", rpm=None, tpm=100, tokens=60) is None
    clock.now += 5
    assert rates.take("a", rpm=None, tpm=100, tokens=40) is None
    assert rates.take("a", rpm=None, tpm=100, tokens=1) == 56.0
    assert rates.take("a", rpm=None, tpm=100, tokens=61) == 61.0
    assert rates.take("a", rpm=None, tpm=100) is None


def test_both_rates_hold_and_the_longer_wait_is_told(rates: RateLimiter, clock: Clock) -> None:
    assert rates.take("a", rpm=2, tpm=100, tokens=1) is None
    clock.now += 10
    assert rates.take("a", rpm=2, tpm=100, tokens=99) is None
    assert rates.take("a", rpm=2, tpm=100, tokens=1) == 51.0
    assert rates.take("a", rpm=2, tpm=100, tokens=2) == 61.0
    assert rates.take("a", rpm=3, tpm=1000, tokens=2) is None


def test_what_never_fits_has_no_end_to_its_wait(rates: RateLimiter) -> None:
    assert rates.take("a", rpm=None, tpm=100, tokens=101) == math.inf
    assert rates.take("a", rpm=0, tpm=None) == math.inf
    assert rates.take("a", rpm=None, tpm=100, tokens=2**80) == math.inf
    assert counted(rates, "a") == (0, 0)
    assert rates.take("a", rpm=1, tpm=None, tokens=2**80) is None


def test_a_refused_request_does_not_count(rates: RateLimiter) -> None:
    assert rates.take("a", rpm=1, tpm=10, tokens=10) is None
    for _ in range(50):
        assert rates.take("a", rpm=1, tpm=10, tokens=1) is not None
    assert counted(rates, "a") == (1, 10)


@pytest.mark.parametrize("seed", range(8))
def test_no_sixty_seconds_ever_hold_more_and_the_wait_is_true(
    rates: RateLimiter, clock: Clock, seed: int
) -> None:
    """Against the definition: every window of 60 s that ends with an admission."""
    rng, rpm, tpm = random.Random(seed), 20, 500
    admitted: list[tuple[float, int]] = []
    waits = 0
    for _ in range(1500):
        clock.now += rng.choice(
            [0, 0, 0.05, 0.4, 1, 2.7, rng.uniform(0, 70) if rng.random() < 0.05 else 0]
        )
        tokens = rng.choice([0, 1, 20, 60])
        wait = rates.take("a", rpm=rpm, tpm=tpm, tokens=tokens)
        if wait is not None and rng.random() < 0.2:
            waits += 1
            came = clock.now
            assert 0 < wait <= 61
            clock.now = came + wait - 1e-6
            assert rates.take("a", rpm=rpm, tpm=tpm, tokens=tokens) is not None
            clock.now = came + wait + 1e-6
            wait = rates.take("a", rpm=rpm, tpm=tpm, tokens=tokens)
            assert wait is None
        if wait is None:
            admitted.append((clock.now, tokens))
            window = [tokens for then, tokens in admitted if then >= clock.now - 60]
            assert len(window) <= rpm
            assert sum(window) <= tpm
    assert waits > 10
    assert len(admitted) > 300


# Corrections


def test_tokens_beyond_the_estimate_count_from_now_on(rates: RateLimiter, clock: Clock) -> None:
    rates.take("a", rpm=None, tpm=100, tokens=10)
    clock.now += 30
    rates.correct("a", 500, since=BEGIN)
    assert counted(rates, "a") == (1, 510)
    assert rates.take("a", rpm=None, tpm=100) == 61.0
    clock.now += 31
    assert counted(rates, "a") == (0, 500)


def test_what_is_given_back_goes_with_its_estimate(rates: RateLimiter, clock: Clock) -> None:
    """Given back in a later second it would outlive the estimate, and admit up to twice the rate."""
    rates.take("a", rpm=None, tpm=1000, tokens=1000)
    clock.now += 60
    rates.correct("a", -900, since=BEGIN)
    assert rates.take("a", rpm=None, tpm=1000, tokens=900) is None
    clock.now += 1
    assert counted(rates, "a") == (1, 900)
    assert rates.take("a", rpm=None, tpm=1000, tokens=101) == 60.0


def test_what_is_given_back_after_its_minute_is_nothing(rates: RateLimiter, clock: Clock) -> None:
    rates.take("a", rpm=None, tpm=1000, tokens=400)
    clock.now += 61
    rates.take("a", rpm=None, tpm=1000, tokens=300)
    rates.correct("a", -400, since=BEGIN)
    assert counted(rates, "a") == (1, 300)
    rates.correct("b", -400, since=clock.now)
    assert counted(rates, "b") == (0, 0)


def test_each_request_that_is_given_back_is_its_own(rates: RateLimiter, clock: Clock) -> None:
    for _ in range(2):
        rates.take("a", rpm=9, tpm=None)
        clock.now += 1
    for since in (BEGIN, BEGIN + 1):
        rates.give_back("a", 0, since=since)
    assert counted(rates, "a") == (0, 0)
    clock.now += 61
    rates.take("a", rpm=9, tpm=None)
    rates.give_back("a", 0, since=BEGIN)  # of an earlier minute
    assert counted(rates, "a") == (1, 0)


def test_a_call_may_have_begun_in_the_second_before_its_take(
    rates: RateLimiter, clock: Clock
) -> None:
    rates.take("a", rpm=None, tpm=1000, tokens=400)
    rates.correct("a", -100, since=BEGIN - 0.5)
    assert counted(rates, "a") == (1, 300)


@pytest.mark.parametrize("usage", [2**63, 10**30])
def test_a_vendor_that_counts_nonsense_breaks_nothing(rates: RateLimiter, usage: int) -> None:
    rates.take("a", rpm=None, tpm=10, tokens=5)
    rates.correct("a", usage, since=BEGIN)
    rates.correct("a", -usage, since=BEGIN)
    assert counted(rates, "a") == (1, 0)


# Many callers


@pytest.mark.slow
def test_records_are_used_again_when_their_minute_is_over(rates: RateLimiter, clock: Clock) -> None:
    """Many more callers in all than the file has room for, each held to its rate exactly."""
    for minute in range(12):
        clock.now = BEGIN + 61 * minute
        names = [
            f"caller {crowd} {number}"
            for crowd in {minute, minute // 3}
            for number in range(RECORDS // 4)
        ]
        assert all(rates.take(name, rpm=1, tpm=None) is None for name in names)
        assert all(rates.take(name, rpm=1, tpm=None) is not None for name in names)


def test_a_crowd_is_not_refused_and_who_keeps_calling_keeps_the_limit(
    rates: RateLimiter, clock: Clock
) -> None:
    assert rates.take("greedy", rpm=1, tpm=None) is None
    for number in range(RECORDS + 1000):
        clock.now = BEGIN + 50 * number / (RECORDS + 1000)
        assert rates.take(f"caller {number}", rpm=1, tpm=None) is None
        if not number % 50:
            assert rates.take("greedy", rpm=1, tpm=None) is not None
    assert rates.path.stat().st_size < 5 * 2**20


# The file


def test_the_file_is_private_and_opened_by_the_first_use(rates: RateLimiter) -> None:
    old = os.umask(0)
    try:
        assert rates.take("a", rpm=None, tpm=None) is None
        assert not rates.path.exists()
        rates.take("a", rpm=1, tpm=None)
    finally:
        os.umask(old)
    assert rates.path.stat().st_mode & 0o777 == 0o600


def test_what_was_counted_outlives_the_process(rates: RateLimiter, clock: Clock) -> None:
    rates.take("a", rpm=1, tpm=None)
    rates.close()
    assert RateLimiter(rates.path, clock=clock).take("a", rpm=1, tpm=None) == 61.0


def test_what_was_counted_before_another_boot_is_forgotten(
    rates: RateLimiter, clock: Clock
) -> None:
    """The clock has begun anew: its seconds mean nothing any more."""
    rates.take("a", rpm=1, tpm=None)
    rates.close()
    with rates.path.open("r+b") as file:
        file.seek(16)
        file.write(bytes(32))
    assert RateLimiter(rates.path, clock=clock).take("a", rpm=1, tpm=None) is None


def test_a_clock_that_jumps_back_does_not_lock_a_caller_out(
    rates: RateLimiter, clock: Clock
) -> None:
    rates.take("a", rpm=1, tpm=None)
    clock.now -= 4000
    assert rates.take("a", rpm=1, tpm=None) is None


def missing(folder: Path) -> Path:
    return folder / "no" / "rates"


def a_folder(folder: Path) -> Path:
    return folder


def a_ledger(folder: Path) -> Path:
    (folder / "x").write_bytes(b"SQLite format 3\0" + bytes(100))
    return folder / "x"


def a_short_text(folder: Path) -> Path:
    (folder / "x").write_text("x")
    return folder / "x"


def a_link(folder: Path) -> Path:
    (folder / "x").symlink_to(folder / "elsewhere")
    return folder / "x"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x")
    return folder / "x"


def a_device(folder: Path) -> Path:
    return Path(os.devnull)


def not_mine(folder: Path) -> Path:
    if os.geteuid() == 0:
        pytest.skip("root may write everything")
    (folder / "x").touch(0o400)
    return folder / "x"


@pytest.mark.parametrize(
    "place", [missing, a_folder, a_ledger, a_short_text, a_link, a_pipe, a_device, not_mine]
)
def test_a_file_that_cannot_be_used_is_named_and_left_alone(
    tmp_path: Path, place: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """The check says so at the start; a worker that meets it later lets calls in, and its log says
    so once.
    """
    path = place(tmp_path)
    before = path.read_bytes() if path.is_file() else None
    open_files = len(os.listdir("/proc/self/fd"))
    rates = RateLimiter(path)
    with pytest.raises(ConfigError, match=str(path)):
        rates.check()
    assert [rates.take("a", rpm=1, tpm=None) for _ in range(3)] == [None] * 3
    rates.correct("a", 5, since=0.0)
    rates.give_back("a", 5, since=0.0)
    assert [str(path) in record.getMessage() for record in caplog.records] == [True]
    assert before == (path.read_bytes() if path.is_file() else None)
    assert len(os.listdir("/proc/self/fd")) == open_files


def test_a_check_leaves_nothing_open(rates: RateLimiter) -> None:
    open_files = os.listdir("/proc/self/fd")
    rates.check()
    assert os.listdir("/proc/self/fd") == open_files
    rates.take("a", rpm=1, tpm=None)
    rates.close()
    assert os.listdir("/proc/self/fd") == open_files


def test_a_full_disk_is_told_at_once_and_not_by_a_crash_later(tmp_path: Path) -> None:
    out = python(
        """
        import resource
        from infermux.errors import ConfigError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            RateLimiter(path).check()
        except ConfigError as error:
            print(error.message)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(RateLimiter(path).take("a", rpm=1, tpm=None))
    """,
        tmp_path / "rates",
    )
    assert "No space left on device" in out
    assert out.endswith("None\n")


# Threads and processes

HAMMER = """
    rates, gate = RateLimiter(path), os.pipe()
    def process():
        os.close(gate[1])
        os.read(gate[0], 1)                             # all begin when the parent closes its end
        got = []
        def thread():
            got.append(sum(rates.take("a", rpm=RPM, tpm=TPM, tokens=7) is None for _ in range(400)))
        threads = [threading.Thread(target=thread) for _ in range(4)]
        for each in threads: each.start()
        for each in threads: each.join()
        os.write(1, b"%d\\n" % sum(got))
    children = []
    for _ in range(4):
        child = os.fork()
        if not child:
            process()
            os._exit(0)
        children.append(child)
    os.close(gate[1])
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
"""


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("rpm", "tpm", "expected"), [(1000, None, 1000), (None, 7 * 900 + 6, 900), (10**6, 10**6, 6400)]
)
def test_processes_and_threads_together_are_admitted_exactly(
    tmp_path: Path, rpm: int | None, tpm: int | None, expected: int
) -> None:
    """4 processes × 4 threads × 400 tries of one caller: without either of the two locks, more get
    in, or counts are lost.
    """
    out = python(HAMMER.replace("RPM", str(rpm)).replace("TPM", str(tpm)), tmp_path / "rates")
    assert sum(map(int, out.split())) == expected
    assert counted(RateLimiter(tmp_path / "rates"), "a") == (expected, 7 * expected)


def test_two_tables_of_one_process_are_exact_too(tmp_path: Path, clock: Clock) -> None:
    """As with two routers: fcntl's own locks would not hold between them."""
    sys.setswitchinterval(1e-5)
    try:
        both, got = [RateLimiter(tmp_path / "rates", clock=clock) for _ in range(2)], []
        turns = itertools.count()
        in_threads(
            6,
            lambda: got.extend(
                both[next(turns) % 2].take("a", rpm=500, tpm=None) for _ in range(300)
            ),
        )
    finally:
        sys.setswitchinterval(0.005)
    assert got.count(None) == 500


def test_a_fork_amid_takes_hangs_no_child(tmp_path: Path) -> None:
    out = python(
        """
        rates, busy = RateLimiter(path), True
        rates.take("a", rpm=10**9, tpm=None)
        def hammer():
            while busy:
                rates.take("a", rpm=10**9, tpm=None)
        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for each in threads: each.start()
        ends = []
        for _ in range(30):
            child = os.fork()
            if not child:
                signal.alarm(20)
                rates.take("b", rpm=30, tpm=None)
                os._exit(0)
            ends.append(os.waitpid(child, 0)[1])
        busy = False
        for each in threads: each.join()
        print(ends.count(0), counted(rates, "b")[0])
    """,
        tmp_path / "rates",
    )
    assert out == "30 30\n"


def test_a_fork_hands_down_nothing_that_is_open(tmp_path: Path) -> None:
    out = python(
        """
        rates = RateLimiter(path)
        rates.take("a", rpm=3, tpm=None)
        before = len(os.listdir("/proc/self/fd"))
        if not os.fork():
            rates.take("a", rpm=3, tpm=None)
            print(len(os.listdir("/proc/self/fd")) == before, counted(rates, "a")[0], flush=True)
            os._exit(0)
        os.wait()
        print(rates.take("a", rpm=3, tpm=None), rates.take("a", rpm=3, tpm=None) is None)
    """,
        tmp_path / "rates",
    )
    assert out == "True 2\nNone False\n"


def test_a_process_that_is_killed_amid_takes_leaves_no_lock(tmp_path: Path) -> None:
    out = python(
        """
        rates = RateLimiter(path)
        for number in range(20):
            reader, writer = os.pipe()
            child = os.fork()
            if not child:
                rates.take("a", rpm=10**9, tpm=None)
                os.write(writer, b"x")
                while True:
                    rates.take("a", rpm=10**9, tpm=None)
            os.read(reader, 1)
            time.sleep(0.001 * number)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            signal.alarm(20)
            assert rates.take("b", rpm=20, tpm=None) is None
        print(counted(rates, "b")[0])
    """,
        tmp_path / "rates",
    )
    assert out == "20\n"
