"""What workers share: their counts outlive them, their notes do not, and an order reaches each of
them.
"""

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
        from infermux.telemetry.shared_memory import STRIPES, SharedMemory
        board, children = SharedMemory(), set()

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
            with board.mine.lock:
                board.mine.add(("n",), number)

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


def test_counts_are_exact_whoever_counts() -> None:
    board = SharedMemory()

    def work() -> None:
        for _ in range(200):
            with board.mine.lock:
                board.mine.add(PAIR)
                board.mine.cells[board.mine.at(("histogram",), 3) + 2] += 5

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
    assert board.counts() == {PAIR: [51_200], ("histogram",): [0, 0, 256_000]}


def test_processes_are_added_up() -> None:
    forked("""
        count(1)
        for number in (10, 100):
            child(lambda: count(number))
        assert board.counts() == {("n",): [111]}, board.counts()
        assert len(board.others()) == 2
    """)


def test_counts_outlive_a_process_and_its_successor_goes_on_from_them() -> None:
    forked("""
        for number in range(STRIPES + 1):
            def work():
                with board.mine.lock:       # in another order than the one before
                    for key in (("a",), ("b",), ("histogram",))[::-1 if number % 2 else 1]:
                        board.mine.cells[board.mine.at(key, len(key[0])) + len(key[0]) - 1] += 1
            kill(child(work))
        times = STRIPES + 1
        assert board.counts() == {("a",): [times], ("b",): [times], ("histogram",): [0] * 8 + [times]}, board.counts()
        assert board.others() == []
    """)


def test_a_process_more_than_there_is_room_for_works_all_the_same() -> None:
    forked("""
        for _ in range(STRIPES):
            child(count)
        count()
        assert board.counts() == {("n",): [STRIPES]}, board.counts()
    """)


def test_a_note_is_there_as_long_as_who_wrote_it() -> None:
    forked("""
        pid = child(lambda: (board.mine.write(b"a longer note"), board.mine.write(b"note")))
        assert [stripe.read() for stripe in board.others()] == [b"note"]
        kill(pid)
        assert board.others() == []
        child(lambda: board.mine)           # takes that stripe
        assert [stripe.read() for stripe in board.others()] == [b""]
    """)


def test_looking_for_others_takes_no_stripe_from_anybody() -> None:
    forked("""
        count()
        child(lambda: (count(), board.others()))
        for _ in range(3):
            assert len(board.others()) == 1
        child(count)                        # must find neither of the two free
        assert board.counts() == {("n",): [3]} and len(board.others()) == 2
    """)


def test_an_order_reaches_every_process_and_those_yet_to_come() -> None:
    forked("""
        number = board.order("open", "a")
        def obey():
            assert [order[1:] for order in board.orders(0)] == [("open", "a", None)]
            board.mine.seen = board.last
        child(obey)
        child(obey)
        assert [stripe.seen for stripe in board.others()] == [number, number]
        kill(child(lambda: board.order("close", "a", "m")))
        assert [order[1:] for order in board.orders(number)] == [("close", "a", "m")]
    """)


def test_an_order_makes_void_what_it_covers() -> None:
    board = SharedMemory()
    for action, provider, model in [
        ("open", "a", "m"),
        ("open", "b", "m"),
        ("open", "a", None),
        ("close", "a", "n"),
        ("open", "a", "n"),
    ]:
        board.order(action, provider, model)
    assert [order[1:] for order in board.orders(0)] == [
        ("open", "b", "m"),
        ("open", "a", None),
        ("open", "a", "n"),
    ]
    assert [order.number for order in board.orders(4)] == [5] and board.last == 5


def test_orders_without_end_leave_the_last_ones() -> None:
    board = SharedMemory()
    for number in range(1500):
        board.order("open", "a", f"{'é' * 190}{number}")
    kept = board.orders(0)
    assert 50 < len(kept) < 1500 and kept[-1].model == f"{'é' * 190}1499" and board.last == 1500


def test_series_without_end_leave_the_first_ones_right() -> None:
    board = SharedMemory()
    stripe = board.mine
    with stripe.lock:
        for number in range(20_000):
            stripe.add((f"series {number}",))
            stripe.cells[stripe.at((f"histogram {number}",), 16) + 15] += 1
        stripe.add(("series 0",))
    counts = board.counts()
    assert (
        counts["series 0",] == [2]
        and counts["series 100",] == [1]
        and counts["histogram 100",] == [0] * 15 + [1]
    )
    assert all(cells in ([1], [2], [0] * 15 + [1]) for cells in counts.values())


@pytest.mark.parametrize("size", [0, 1, 100_000, 512 * 1024])
def test_a_note_comes_back_as_it_was_written(size: int) -> None:
    stripe, note = SharedMemory().mine, os.urandom(size)
    stripe.write(b"before")
    stripe.write(note)
    assert stripe.read() == note


def test_a_note_that_is_too_long_leaves_the_last_one() -> None:
    stripe = SharedMemory().mine
    stripe.write(b"before")
    stripe.write(bytes(512 * 1024 + 1))
    assert stripe.read() == b"before"


def test_a_note_that_was_cut_short_is_none() -> None:
    stripe = SharedMemory().mine
    stripe.write(b"a note")
    stripe._head[1] -= 1  # as a process that is killed in between leaves it
    assert stripe.read() == b""


def test_nothing_is_left_of_a_board() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        board = SharedMemory()
        board.mine.write(b"x")
    del board
    assert len(os.listdir("/proc/self/fd")) == before
