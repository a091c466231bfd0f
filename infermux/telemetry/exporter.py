"""What is sent later, by threads of its own: whoever hands something over never waits, and never
learns what came of it.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

log = logging.getLogger("infermux")
FLUSH_SECONDS = 3.0
# seconds that a thread waits for more: waking it for each thing costs more than sending it
LINGER = 0.02
_boxes: weakref.WeakSet[Exporter] = weakref.WeakSet()  # type: ignore[type-arg]  # of whatever

Item = TypeVar("Item")
Send = Callable[[list[Item]], int]  # returns how many were not taken


class Exporter(Generic[Item]):
    """A bounded queue, and threads that send what is in it; what cannot be sent is dropped, and
    counted.

    Threads start with the first thing that is put in, in each process anew: those of before a fork
    are not there after it.
    """

    def __init__(
        self, what: str, *, threads: int, size: int, batch: int = 1, linger: float = LINGER
    ) -> None:
        self.what = what  # for the log: what does not take what
        self._threads = threads
        self._size = size
        self._batch = batch
        self._linger = linger
        self._lock = threading.Lock()
        self._pool: _Pool[Item] | None = None
        _boxes.add(self)

    def sender(self) -> Send[Item]:
        """Return what sends; each thread asks for its own."""
        raise NotImplementedError

    @property
    def dropped(self) -> int:
        """How many did not arrive, in this process: the queue was full, or they were not taken."""
        return 0 if self._pool is None else self._pool.dropped

    def put(self, item: Item) -> None:
        """Queue one thing; drop and count it when the queue is full."""
        (self._pool or self._start()).put(item)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until everything in the queue is sent or dropped; return whether that was so within
        *seconds*.
        """
        return self._pool is None or self._pool.flush(seconds)

    def _start(self) -> _Pool[Item]:
        with self._lock:
            if self._pool is None:
                self._pool = _Pool(
                    self.what, self.sender, self._threads, self._size, self._batch, self._linger
                )
            return self._pool


class _Pool(Generic[Item]):
    """The queue and the threads of one process: one listens, so that one is woken; the others send,
    or wait for their turn to listen.
    """

    def __init__(
        self,
        what: str,
        sender: Callable[[], Send[Item]],
        threads: int,
        size: int,
        batch: int,
        linger: float,
    ) -> None:
        self._what = what
        self._size = size
        self._batch = batch
        self._linger = linger
        self._waiting: deque[Item] = deque()
        self._turn = threading.Lock()  # of listening
        self._bell = threading.Event()  # something waits
        self._hurry = threading.Event()  # do not linger: somebody waits for the end
        self._busy = [False] * threads
        self._count = threading.Lock()
        self.dropped = 0
        for number in range(threads):
            threading.Thread(
                target=self._run,
                args=[number, sender],
                name=f"infermux-spans-{number}",
                daemon=True,
            ).start()

    def put(self, item: Item) -> None:
        if len(self._waiting) >= self._size:
            self._drop(1)
            return
        self._waiting.append(item)
        if not self._bell.is_set():
            self._bell.set()

    def flush(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        self._hurry.set()
        try:
            while self._waiting or any(
                self._busy
            ):  # in this order: a thread is busy before it takes anything
                if time.monotonic() >= end:
                    return False
                time.sleep(0.002)
        finally:
            self._hurry.clear()
        return True

    def _run(self, number: int, sender: Callable[[], Send[Item]]) -> None:
        send = sender()
        while True:
            with self._turn:
                self._bell.wait()
                self._hurry.wait(self._linger)
                self._busy[number] = True
                # whatever is put in from here on rings again, for the next who listens
                self._bell.clear()
            while items := self._take():
                try:
                    lost = send(items)
                except (
                    Exception
                ) as error:  # whatever happens to these, the next ones get their chance
                    log.debug("%s: dropped: %s", self._what, type(error).__name__)
                    lost = len(items)
                if lost:
                    self._drop(lost)
            self._busy[number] = False

    def _take(self) -> list[Item]:
        items: list[Item] = []
        try:
            while len(items) < self._batch:
                items.append(self._waiting.popleft())
        except IndexError:  # another thread may have been faster
            pass
        return items

    def _drop(self, count: int) -> None:
        with self._count:
            first = not self.dropped
            self.dropped += count
        if first:
            log.warning("%s: they are dropped and counted", self._what)


def flush_all(seconds: float = FLUSH_SECONDS) -> None:
    """Flush every outbox of this process, together within *seconds*."""
    end = time.monotonic() + seconds
    for box in list(_boxes):
        box.flush(max(0.0, end - time.monotonic()))


def dropped() -> int:
    """Return what every outbox of this process has dropped."""
    return sum(box.dropped for box in list(_boxes))


def _after_fork() -> None:
    """In the child nobody holds a lock any more, and no thread of a pool is left."""
    for box in list(_boxes):
        box._lock, box._pool = threading.Lock(), None


atexit.register(flush_all)
os.register_at_fork(after_in_child=_after_fork)
