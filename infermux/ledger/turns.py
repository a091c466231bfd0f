"""Whose turn it is to write: one thread at a time, which writes what others wait for along with its
own.
"""

from __future__ import annotations

import os
import select
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from .connection import Connection
from .queries import SQL
from .usual import Usual

MOST = 64  # jobs of one transaction: none of them waits for long
GATES = 64  # with a descriptor each: as many threads are seldom waiting
give_way: Callable[[], None] = getattr(
    os, "sched_yield", lambda: time.sleep(0)
)  # to any thread that can run


class Gate:
    """Where a thread waits for another, which lets go of the interpreter while it opens the gate:
    so whoever has waited runs at once.

    With a lock, each thread that wakes finds the interpreter taken and sleeps once more, which took
    a fiftieth of a call.
    """

    def __init__(self) -> None:
        self._fd = os.eventfd(0)
        weakref.finalize(self, os.close, self._fd)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def wait(self, seconds: float) -> bool:
        """Wait until the gate is open, and shut it; return False if it takes longer."""
        return bool(self._poll.poll(seconds * 1000)) and bool(os.eventfd_read(self._fd))

    def open(self) -> None:
        """Let one thread through."""
        os.eventfd_write(self._fd, 1)


class Lock:
    """A gate without a descriptor."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def wait(self, seconds: float) -> bool:
        """As `Gate.wait`."""
        return self._lock.acquire(timeout=seconds)

    def open(self) -> None:
        """As `Gate.open`."""
        self._lock.release()


class Job:
    """Something to write, and what came of it."""

    __slots__ = ("check", "done", "error", "gate", "result", "usual", "work")

    def __init__(self, work: Callable[[SQL], Any], check: bool, usual: Usual | None) -> None:
        self.work = work
        self.usual = usual  # the same in one statement; None: it is not as simple as that
        self.check = check
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None
        self.gate: (
            Gate | Lock
        )  # where it waits: opened when it is done, or when its thread is to lead

    def run(self, sql: SQL, known: Container[str]) -> Any:
        """Do it inside a transaction; *known* are the plans that the file has."""
        usual = self.usual
        return usual.result if usual is not None and usual.done(sql, known) else self.work(sql)


class Process:
    """What belongs to one process: who writes, who waits, and the connections of its threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.writing = threading.Lock()  # held over I/O, by the thread that leads or by close()
        self._guard = threading.Lock()  # of the two below, never held for long
        self._led = False
        self._waiting: deque[Job] = deque()
        self._gates: list[Gate | Lock] = []  # that nobody waits at
        self._made = 0
        self.plans: set[str] = set()  # that the file has
        self.mine = (
            threading.local()
        )  # a thread's connection for reading, closed when the thread ends
        # the one for writing, used with the lock: what it has read stays true while nobody else
        # writes
        self.shared = SimpleNamespace()
        self.connections: weakref.WeakSet[Connection] = weakref.WeakSet()
        self.suspect = False  # whoever opens the file next must check it

    def leads(self, job: Job) -> bool:
        """Whether nobody writes now, so that this thread may; else the job waits."""
        with self._guard:
            if self._led:
                job.gate = self._gates.pop() if self._gates else self._gate()
                self._waiting.append(job)
                return False
            self._led = True
            return True

    def _gate(self) -> Gate | Lock:
        if self._made < GATES and hasattr(os, "eventfd"):
            with suppress(OSError):  # no descriptor is free
                gate = Gate()
                self._made += 1
                return gate
        return Lock()

    def waited(self, job: Job, seconds: float) -> bool:
        """Wait until another thread has done *job*, or lets this one lead; return False if that
        takes longer, and nobody is at it.
        """
        gate = job.gate
        if not gate.wait(seconds):
            with self._guard:
                if job in self._waiting:
                    self._waiting.remove(job)
                    self._gates.append(gate)
                    return False
            if not gate.wait(seconds):
                return False  # its gate may still be opened: nobody else may wait there
        self._gates.append(gate)
        return True

    def with_others(self, job: Job) -> list[Job]:
        """Return *job*, and what else waits."""
        jobs = [job]
        with self._guard:
            while self._waiting and len(jobs) < MOST:
                jobs.append(self._waiting.popleft())
        return jobs

    def hand_over(self, jobs: Sequence[Job], broken: Callable[[str], Exception]) -> None:
        """Tell the threads whose *jobs* are done, and let one that waits lead."""
        for job in jobs[1:]:
            if not job.done:  # whoever led was interrupted
                job.error, job.done = broken("writing was broken off"), True
            job.gate.open()
        with self._guard:
            if self._waiting:
                self._waiting.popleft().gate.open()
            else:
                self._led = False

    def drop(self, place: Any, *, suspect: bool = False) -> None:
        """Close the connection of a place."""
        connection = getattr(place, "connection", None)
        place.connection = None
        self.suspect = self.suspect or suspect
        if connection is not None:
            connection.close()
