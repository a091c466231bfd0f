"""Spans to TokenTrace, without the request path ever waiting for it."""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import weakref

import requests

from .protocol import TRACE_SPAN, Message, TraceSpan

log = logging.getLogger("infermux")
TIMEOUT = 1.0                               # seconds to connect, and again for each read
FLUSH_SECONDS = 3.0
_ANSWER = 65536                             # bytes of TokenTrace's answer that are read to keep its connection
_reporters: weakref.WeakSet[Reporter] = weakref.WeakSet()


class Reporter:
    """POSTs finished spans as MIST messages from a thread pool behind a bounded queue; with an empty URL it does nothing.

    Threads start with the first span, in each process anew: a pool that was started before a fork would hang after it.
    """

    def __init__(self, source: str = "infermux", url: str = "", *, threads: int = 2, size: int = 1000) -> None:
        self.source = source
        self.url = url.rstrip("/") + "/mist" if url else ""
        self._threads = threads
        self._size = size
        self._lock = threading.Lock()
        self._pool: _Pool | None = None
        _reporters.add(self)

    @property
    def dropped(self) -> int:
        """Spans that did not reach TokenTrace, in this process: the queue was full, or it did not take them."""
        pool = self._pool
        return pool.dropped if pool is not None and pool.pid == os.getpid() else 0

    def report(self, span: TraceSpan) -> None:
        """Queue one span; drop and count it when the queue is full."""
        if self.url:
            pool = self._pool
            if pool is None or pool.pid != os.getpid():
                pool = self._start()
            pool.put(span)

    def flush(self, seconds: float = FLUSH_SECONDS) -> bool:
        """Wait until every span that was queued is sent or dropped; return whether that was so within *seconds*."""
        pool = self._pool
        return pool is None or pool.pid != os.getpid() or pool.flush(seconds)

    def _start(self) -> _Pool:
        with self._lock:
            if self._pool is None or self._pool.pid != os.getpid():
                self._pool = _Pool(self.source, self.url, self._threads, self._size)
            return self._pool


class _Pool:
    """The threads and the queue of one process."""

    def __init__(self, source: str, url: str, threads: int, size: int) -> None:
        self.pid = os.getpid()
        self._source = source
        self._url = url
        self._queue: queue.Queue[TraceSpan] = queue.Queue(size)
        self._count = threading.Lock()
        self.dropped = 0
        for number in range(threads):
            threading.Thread(target=self._run, name=f"infermux-spans-{number}", daemon=True).start()

    def put(self, span: TraceSpan) -> None:
        try:
            self._queue.put_nowait(span)
        except queue.Full:
            self._drop()

    def flush(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        with self._queue.all_tasks_done:
            while self._queue.unfinished_tasks:
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._queue.all_tasks_done.wait(left)
        return True

    def _run(self) -> None:
        session = _session()
        while True:
            span = self._queue.get()
            try:
                self._send(session, span)
            except Exception as error:      # whatever TokenTrace does, the next span gets its chance
                self._drop()
                log.debug("a span was dropped: %s", type(error).__name__)
            finally:
                self._queue.task_done()

    def _send(self, session: requests.Session, span: TraceSpan) -> None:
        message = Message.wrap(self._source, TRACE_SPAN, span.to_dict(), checksum=True)
        with session.post(self._url, data=message.to_bytes(), headers={"Content-Type": "application/json"}, timeout=TIMEOUT,
                          allow_redirects=False, stream=True) as answer:
            answer.raw.read1(_ANSWER)       # a short answer is read to its end, a long or slow one is not waited for
            if not 200 <= answer.status_code < 300:
                self._drop()

    def _drop(self) -> None:
        with self._count:
            self.dropped += 1
            first = self.dropped == 1
        if first:
            log.warning("TokenTrace does not take spans: they are dropped and counted")


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False               # a proxy or a .netrc of the environment is none of a span's business
    return session


def flush_all(seconds: float = FLUSH_SECONDS) -> None:
    """Flush every reporter of this process, together within *seconds*."""
    end = time.monotonic() + seconds
    for reporter in list(_reporters):
        reporter.flush(max(0.0, end - time.monotonic()))


def dropped() -> int:
    """Return the spans that every reporter of this process has dropped."""
    return sum(reporter.dropped for reporter in list(_reporters))


def _after_fork() -> None:
    """In the child nobody holds a lock any more, and no thread of a pool is left."""
    for reporter in list(_reporters):
        reporter._lock, reporter._pool = threading.Lock(), None


atexit.register(flush_all)
os.register_at_fork(after_in_child=_after_fork)
