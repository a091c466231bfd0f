"""Whose turn it is to write: one thread at a time, which writes what others wait for along with its own."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from weakref import WeakSet

from .files import Connection
from .queries import SQL

MOST = 64  # jobs of one transaction: none of them waits for long
give_way: Callable[[], None] = getattr(os, "sched_yield", lambda: time.sleep(0))  # to any thread that can run


class Job:
    """Something to write, and what came of it."""

    __slots__ = ("check", "done", "error", "gate", "result", "usual", "work")

    def __init__(self, work: Callable[[SQL], Any], check: bool, usual: Callable[[SQL], Any] | None) -> None:
        self.work = work
        self.usual = usual                  # the same in one statement; None: it is not as simple as that
        self.check = check
        self.done = False
        self.error: Exception | None = None
        self.result: Any = None
        self.gate = threading.Lock()        # opened when the job is done, or when its thread is to lead
        self.gate.acquire()

    def run(self, sql: SQL) -> Any:
        """Do it inside a transaction."""
        result = None if self.usual is None else self.usual(sql)
        return self.work(sql) if result is None else result


class Process:
    """What belongs to one process: who writes, who waits, and the connections of its threads."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.writing = threading.Lock()     # held over I/O, by the thread that leads or by close()
        self._guard = threading.Lock()      # of the two below, never held for long
        self._led = False
        self._waiting: deque[Job] = deque()
        self.plans: set[str] = set()        # that the file has
        self.mine = threading.local()  # a thread's connection for reading, closed when the thread ends
        self.shared = SimpleNamespace()  # the one for writing, used with the lock: what it has read stays true while nobody else writes
        self.connections: WeakSet[Connection] = WeakSet()
        self.suspect = False  # whoever opens the file next must check it

    def leads(self, job: Job) -> bool:
        """Whether nobody writes now, so that this thread may; else the job waits."""
        with self._guard:
            if self._led:
                self._waiting.append(job)
                return False
            self._led = True
            return True

    def with_others(self, job: Job) -> list[Job]:
        """Return *job*, and what else waits."""
        jobs = [job]
        with self._guard:
            while self._waiting and len(jobs) < MOST:
                jobs.append(self._waiting.popleft())
        return jobs

    def withdrawn(self, job: Job) -> bool:
        """Take back a job; return False if somebody is at it."""
        with self._guard:
            if job in self._waiting:
                self._waiting.remove(job)
                return True
            return False

    def hand_over(self, jobs: Sequence[Job], broken: Callable[[str], Exception]) -> None:
        """Tell the threads whose *jobs* are done, and let one that waits lead."""
        for job in jobs[1:]:
            if not job.done:                # whoever led was interrupted
                job.error, job.done = broken("writing was broken off"), True
            job.gate.release()
        with self._guard:
            if self._waiting:
                self._waiting.popleft().gate.release()
            else:
                self._led = False

    def drop(self, place: Any, *, suspect: bool = False) -> None:
        """Close the connection of a place."""
        connection = getattr(place, "connection", None)
        place.connection = None
        self.suspect = self.suspect or suspect
        if connection is not None:
            connection.close()
