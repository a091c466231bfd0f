"""Tests of shared memory: counters outlive workers, statuses do not, and commands reach all."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading

import pytest
from support import PATIENCE, environment

from infermux.telemetry.shared_memory import SharedMemory

PAIR = ("requests", "a", "b")


def forked(script: str) -> None:
    """Run *script* in a process of its own, where `child(work)` forks one that does *work* and then
    waits to be killed.
    """
    head = """
        import os, signal
        from infermux.telemetry.shared_memory import SLOTS, SharedMemory
        memory, children = SharedMemory(), set()

        def child(work):
            told, tell = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    work()
                    os.write(tell, b"1")
                    signal.pause()
                finally:
                    os._exit(1)
            os.close(tell)
            children.add(pid)
            assert os.read(told, 1) == b"1", "the child failed"
            return pid

        def kill(pid):
            children.discard(pid)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

        def count(number=1):
            with memory.own.lock:
                memory.own.add(("n",), number)

    """
    tail = """
        print("done", flush=True)
        for pid in children:
            os.kill(pid, signal.SIGKILL)
    """
    text = "\n".join(map(textwrap.dedent, (head, script, tail)))
    with subprocess.Popen(
        [sys.executable, "-c", text],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=PATIENCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its children, if it failed
    assert out == "done\n", err


@pytest.mark.slow
def test_counts_are_exact_whoever_counts() -> None:
    memory = SharedMemory()

    def work() -> None:
        for _ in range(200):
            with memory.own.lock:
                memory.own.add(PAIR)
                memory.own.cells[memory.own.at(("histogram",), 3) + 2] += 5

    threads = [threading.Thread(target=work) for _ in range(256)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert memory.counts() == {PAIR: [51_200], ("histogram",): [0, 0, 256_000]}


def test_processes_are_added_up() -> None:
    forked("""
        count(1)
        for number in (10, 100):
            child(lambda: count(number))
        assert memory.counts() == {("n",): [111]}, memory.counts()
        assert len(memory.others()) == 2
    """)


def test_counts_outlive_a_process_and_its_successor_goes_on_from_them() -> None:
    forked("""
        for number in range(SLOTS + 1):
            def work():
                with memory.own.lock:       # in another order than the one before
                    for key in (("a",), ("b",), ("histogram",))[::-1 if number % 2 else 1]:
                        memory.own.cells[memory.own.at(key, len(key[0])) + len(key[0]) - 1] += 1
            kill(child(work))
        times = SLOTS + 1
        assert memory.counts() == {("a",): [times], ("b",): [times], ("histogram",): [0] * 8 + [times]}, memory.counts()
        assert memory.others() == []
    """)


@pytest.mark.slow
def test_a_process_more_than_there_is_room_for_works_all_the_same() -> None:
    forked("""
        for _ in range(SLOTS):
            child(count)
        count()
        assert memory.counts() == {("n",): [SLOTS]}, memory.counts()
    """)


def test_a_status_is_there_as_long_as_its_worker() -> None:
    forked("""
        pid = child(lambda: (memory.own.write_status(b"a longer status"), memory.own.write_status(b"status")))
        assert [slot.read_status() for slot in memory.others()] == [b"status"]
        kill(pid)
        assert memory.others() == []
        child(lambda: memory.own)           # takes that slot
        assert [slot.read_status() for slot in memory.others()] == [b""]
    """)


def test_reading_the_others_takes_no_slot() -> None:
    forked("""
        count()
        child(lambda: (count(), memory.others()))
        for _ in range(3):
            assert len(memory.others()) == 1
        child(count)                        # must find neither of the two free
        assert memory.counts() == {("n",): [3]} and len(memory.others()) == 2
    """)


def test_a_command_reaches_every_process_and_later_ones() -> None:
    forked("""
        number = memory.command("open", "a")
        def work():
            assert [command[1:] for command in memory.commands(0)] == [("open", "a", "")]
            memory.own.acknowledged = memory.last_command
        child(work)
        child(work)
        assert [slot.acknowledged for slot in memory.others()] == [number, number]
        kill(child(lambda: memory.command("close", "a", "m")))
        assert [command[1:] for command in memory.commands(number)] == [("close", "a", "m")]
    """)


def test_a_command_makes_void_what_it_covers() -> None:
    memory = SharedMemory()
    for action, provider, model in [
        ("open", "a", "m"),
        ("open", "b", "m"),
        ("open", "a", ""),
        ("close", "a", "n"),
        ("open", "a", "n"),
    ]:
        memory.command(action, provider, model)
    assert [command[1:] for command in memory.commands(0)] == [
        ("open", "b", "m"),
        ("open", "a", ""),
        ("open", "a", "n"),
    ]
    assert [command.number for command in memory.commands(4)] == [5] and memory.last_command == 5


def test_too_many_commands_leave_the_last_ones() -> None:
    memory = SharedMemory()
    for number in range(300):
        memory.command("open", "a", f"{'é' * 190}{number}")
    kept = memory.commands(0)
    assert (
        50 < len(kept) < 300 and kept[-1].model == f"{'é' * 190}299" and memory.last_command == 300
    )


def test_series_without_end_leave_the_first_ones_right() -> None:
    memory = SharedMemory()
    slot = memory.own
    with slot.lock:
        for number in range(20_000):
            slot.add((f"series {number}",))
            slot.cells[slot.at((f"histogram {number}",), 16) + 15] += 1
        slot.add(("series 0",))
    counts = memory.counts()
    assert (
        counts["series 0",] == [2]
        and counts["series 100",] == [1]
        and counts["histogram 100",] == [0] * 15 + [1]
    )
    assert all(cells in ([1], [2], [0] * 15 + [1]) for cells in counts.values())


@pytest.mark.parametrize("size", [0, 1, 100_000, 512 * 1024])
def test_a_status_comes_back_as_it_was_written(size: int) -> None:
    slot, status = SharedMemory().own, os.urandom(size)
    slot.write_status(b"before")
    slot.write_status(status)
    assert slot.read_status() == status


def test_a_status_that_is_too_long_leaves_the_last_one() -> None:
    slot = SharedMemory().own
    slot.write_status(b"before")
    slot.write_status(bytes(512 * 1024 + 1))
    assert slot.read_status() == b"before"


def test_a_status_that_was_cut_short_is_none() -> None:
    slot = SharedMemory().own
    slot.write_status(b"a status")
    slot._head[1] -= 1  # as a process that is killed in between leaves it
    assert slot.read_status() == b""


def test_no_descriptor_is_left_of_a_memory() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        memory = SharedMemory()
        memory.own.write_status(b"x")
    del memory
    assert len(os.listdir("/proc/self/fd")) == before
