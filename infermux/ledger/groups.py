"""Group commit: what several threads write at a time goes into one transaction."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from . import LedgerUnavailable

MAX_JOBS = 64  # per transaction, so that no job waits long
CROWD = 32  # transactions that wait for more jobs, after one that had several
_yield_cpu: Callable[[], None] = getattr(os, "sched_yield", lambda: None)  # not on every system


@dataclass(slots=True, eq=False)
class Job:
    """A write: its function, the seconds that it waits for other writers, and its outcome."""

    work: Any
    busy: float
    anywhere: bool = False  # even if the file is no longer at the path
    done: bool = False
    error: Exception | None = None
    result: Any = None
    wake: SimpleQueue[None] = field(default_factory=SimpleQueue)  # its thread waits on it


def started(name: str, work: Callable[..., object], *given: object) -> threading.Thread:
    """Return a thread that does *work*, and does not keep the process from its end."""
    thread = threading.Thread(target=work, args=given, name=f"infermux-{name}", daemon=True)
    thread.start()
    return thread


def fail(jobs: Sequence[Job], error: Exception, commit: Callable[[Sequence[Job]], None]) -> None:
    """End the jobs of a commit that failed; each gets an error object of its own to raise.

    Any error but LedgerUnavailable comes from one of the jobs: each is committed again, alone.
    """
    if isinstance(error, LedgerUnavailable):
        for job in jobs:
            own = LedgerUnavailable(error.reason, temporary=error.temporary, told=error.told)
            job.error, job.done = own, True
    elif len(jobs) == 1:
        jobs[0].error, jobs[0].done = error, True
    else:
        for job in jobs:
            commit([job])


class GroupCommit:
    """Lets one thread at a time write the jobs of all waiting threads in one transaction.

    Otherwise the threads would wait in SQLite, which polls and is not fair. Where several came
    together lately, a job waits *company* seconds for others.
    """

    def __init__(self, commit: Callable[[Sequence[Job]], None], company: float = 0.0) -> None:
        self._commit = commit
        self._company = company
        self._waiting: deque[Job] = deque()
        self._writing = threading.Lock()
        self._crowd = 0  # next transactions that wait for more jobs

    def run(self, job: Job) -> bool:
        """Run *job* to its end; return False if it did not start in `job.busy` seconds."""
        if not self._crowd and not self._waiting and self._writing.acquire(blocking=False):
            try:
                self._commit((job,))
                return True
            finally:
                self._writing.release()
                self._wake_next()
        return self._run_in_turn(job)

    def _run_in_turn(self, job: Job) -> bool:
        until = time.monotonic() + self._company
        self._waiting.append(job)
        while not job.done:
            if self._writing.acquire(blocking=False):
                self._use(partial(self._write_waiting, until))
                continue
            try:
                job.wake.get(timeout=job.busy)
            except Empty:
                with suppress(ValueError):  # another thread has started it: wait for it
                    self._waiting.remove(job)
                    self._wake_next()
                    return False
        return True

    def alone(self, work: Callable[[], None]) -> None:
        """Run *work* while no other thread writes."""
        self._writing.acquire()
        self._use(work)

    def _use(self, work: Callable[[], None]) -> None:
        """Run *work* with the lock held, then release it and let a waiting thread write."""
        try:
            work()
        finally:
            self._writing.release()
            self._wake_next()

    def _wake_next(self) -> None:
        if self._waiting:
            with suppress(IndexError):
                self._waiting[0].wake.put(None)

    def _write_waiting(self, until: float) -> None:
        if self._crowd:
            self._crowd -= 1
            if (left := until - time.monotonic()) > 0:
                time.sleep(left)
            else:
                _yield_cpu()  # so that others add their jobs: 17 % less CPU with 16 threads
        jobs: list[Job] = []
        try:
            while self._waiting and len(jobs) < MAX_JOBS:
                jobs.append(self._waiting.popleft())
            if len(jobs) > 1:
                self._crowd = CROWD
            elif self._company:
                self._crowd //= 2  # nobody came
            if jobs:
                self._commit(jobs)
        finally:
            for job in jobs:
                if not job.done:
                    job.error = LedgerUnavailable("the write was interrupted")
                    job.done = True
                job.wake.put(None)
