"""A bounded queue that background threads send; producers never wait and see no errors."""

from __future__ import annotations

import atexit
import contextlib
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from ..types import reset_after_fork

log = logging.getLogger("infermux")
FLUSH_SECONDS = 3.0
LINGER_SECONDS = 0.02  # to collect items: waking a thread costs more than sending one
_exporters: weakref.WeakSet[Exporter] = weakref.WeakSet()  # type: ignore[type-arg]  # of any items

Item = TypeVar("Item")
Send = Callable[[list[Item]], int]  # returns how many were not accepted


class Exporter(Generic[Item]):
    """Sends items in the background; what cannot be sent is dropped and counted.

    The threads start with the first item. A forked child starts its own, with an empty queue.
    """

    def __init__(
        self,
        complaint: str,
        *,
        threads: int,
        size: int,
        batch: int = 1,
        linger: float = LINGER_SECONDS,
    ) -> None:
        self._complaint = complaint  # logged when items are dropped
        self._threads = threads
        self._size = size
        self._batch = batch
        self._linger = linger
        self._reset()
        _exporters.add(self)
        reset_after_fork(self, Exporter._reset)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._queue: deque[Item] = deque()
        self._listening = threading.Lock()  # held by the one thread that waits for items
        self._arrived = threading.Event()
        self._flushing = threading.Event()  # set: send at once
        self._busy: list[bool] = []  # one per thread, once started
        self.dropped = 0  # items of this process that were not sent

    def sender(self) -> Send[Item]:
        """Return a function that sends items; each thread gets its own."""
        raise NotImplementedError

    def put(self, item: Item) -> None:
        """Queue an item; drop and count it if the queue is full."""
        if not self._busy:
            self._start()
        if len(self._queue) >= self._size:
            self._drop(1)
            return
        self._queue.append(item)
        self._arrived.set()

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until all items are sent; return whether that took at most *seconds*."""
        end = time.monotonic() + seconds
        self._flushing.set()
        try:
            # in this order: a thread is busy before it takes items
            while self._queue or any(self._busy):
                if time.monotonic() >= end:
                    return False
                time.sleep(0.002)
        finally:
            self._flushing.clear()
        return True

    def _start(self) -> None:
        with self._lock:
            if self._busy:
                return
            self._busy = [False] * self._threads
            for number in range(self._threads):
                name = f"infermux-spans-{number}"
                threading.Thread(target=self._run, args=[number], name=name, daemon=True).start()

    def _run(self, number: int) -> None:
        send = self.sender()
        while True:
            with self._listening:
                self._arrived.wait()
                self._flushing.wait(self._linger)
                self._busy[number] = True
                self._arrived.clear()  # later items wake the next thread that listens
            while items := self._take():
                try:
                    lost = send(items)
                except Exception as error:  # no failure may stop the thread
                    log.debug("%s: dropped: %s", self._complaint, type(error).__name__)
                    lost = len(items)
                if lost:
                    self._drop(lost)
            self._busy[number] = False

    def _take(self) -> list[Item]:
        items: list[Item] = []
        with contextlib.suppress(IndexError):  # the queue is empty
            while len(items) < self._batch:
                items.append(self._queue.popleft())
        return items

    def _drop(self, count: int) -> None:
        with self._lock:
            first = not self.dropped
            self.dropped += count
        if first:
            log.warning("%s: they are dropped and counted", self._complaint)


def flush_all(seconds: float = FLUSH_SECONDS) -> float:
    """Flush every exporter of this process, in at most *seconds*; return those that are left."""
    end = time.monotonic() + seconds
    for exporter in list(_exporters):
        exporter.flush(max(0.0, end - time.monotonic()))
    return max(0.0, end - time.monotonic())


def dropped() -> int:
    """Return how many items all exporters of this process have dropped."""
    return sum(each.dropped for each in list(_exporters))  # the threads of one that dropped keep it


atexit.register(flush_all)
