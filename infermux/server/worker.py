"""gunicorn's thread worker with six changes.

1. Responses and log lines about a refused request do not quote it.
2. A worker survives a lack of file descriptors.
3. A burst of requests starts a few at a time, so that each soon waits for its provider.
4. GET requests, such as health checks, do not wait behind such a burst.
5. A thread itself answers the next requests of its client, without the main loop.
6. If no thread can be started, a request waits for an existing one.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import http
import os
import select
import socket
import sys
import time
import traceback
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker

from ..errors import InferMuxError, RequestError, is_own_want
from ..protocol import strict_json
from ..types import LogThrottle

KEEP_THREAD_MS = 10  # how long a thread waits for its client's next request
STARTS_PER_TURN = 2  # requests of a burst that start together; each may need a new thread
TURN_SECONDS = 0.001  # between such starts, at least
ACCEPTS_PER_TURN = 256  # in a burst
PAUSE_SECONDS = 0.1  # without a free descriptor
OUT_OF_DESCRIPTORS = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
STATUSES = {  # by the name of gunicorn's exception; others are 400
    "LimitRequestLine": 414,
    "LimitRequestHeaders": 431,
    "ExpectationFailed": 417,
    "UnsupportedTransferCoding": 501,
    "ForbiddenProxyRequest": 403,
}


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """The worker class of a service."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: Any = copy.copy(self.log)  # the master keeps its own
        self.log.exception = self._log_exception
        self._complaint = LogThrottle()
        self._waiting: deque[Any] = deque()  # connections whose request has not started
        self._started = 0.0  # when one last did
        self._active = 0  # connections that have a thread or wait for one

    def init_process(self) -> None:
        """Make the settings plain attributes: each request looks up two dozen."""
        self.cfg.__dict__.update({name: each.get() for name, each in self.cfg.settings.items()})
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        """Return the threads that answer requests."""
        return Threads(max_workers=self.cfg.threads)

    def accept(self, listener: Any) -> None:
        """Accept a connection, or many during a burst: one may be a health check."""
        try:
            super().accept(listener)
            for _ in range(ACCEPTS_PER_TURN if self._waiting else 0):
                before = self._active
                super().accept(listener)
                if self._active == before:
                    break
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            if self._complaint.due():
                self.log.error("cannot accept connections: %s", os.strerror(error.errno))
            time.sleep(PAUSE_SECONDS)

    def enqueue_req(self, conn: Any) -> None:
        """Queue a request; during a burst a GET starts at once."""
        self._active += 1
        if self._waiting and _is_get(conn.sock):
            super().enqueue_req(conn)
        else:
            self._waiting.append(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """Handle events, then start some of the queued requests."""
        burst = bool(self._waiting)
        super().wait_for_and_dispatch_events(TURN_SECONDS if burst else timeout)
        now = time.monotonic()
        if burst and now - self._started < TURN_SECONDS:
            return
        for _ in range(min(STARTS_PER_TURN, len(self._waiting))):
            self._started = now
            super().enqueue_req(self._waiting.popleft())

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Take a connection back from its thread."""
        self._active -= 1
        super().finish_request(conn, fs)

    def handle(self, conn: Any) -> Any:
        """Answer a client's requests while the next one follows at once.

        The way through the main loop would cost a tenth of a call.
        """
        conn.wait_for_data = partial(_wait_for_data, conn)
        kept = super().handle(conn)
        while kept is True and self._next_follows(conn):
            kept = super().handle(conn)
        if not kept:
            # not in the main loop, which would wait two seconds for a client's FIN
            with contextlib.suppress(OSError):
                conn.close(graceful=True)
            conn.close = lambda graceful=False: None  # the main loop calls it again
        return kept

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Call the application, which may leave the body unread and have the connection closed."""
        req.body.refuse = req.force_close
        return super().handle_request(req, conn)

    def _next_follows(self, conn: Any) -> bool:
        """Wait for the next request while at least half of the threads are free."""
        if conn.parser.unreader.buf.getvalue():
            return True  # it has been read together with the last one
        if not self.alive or self.cfg.is_ssl or 2 * self._active > self.cfg.threads:
            return False  # poll() does not see what TLS has read
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(KEEP_THREAD_MS))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer a request that gunicorn refuses, or that failed."""
        name = type(exc).__name__
        if isinstance(exc, OSError) or (req is not None and "Chunk" in name):
            return  # the client has left, or the application has answered
        refused = isinstance(exc, ParseException) and (req is None or name in STATUSES)
        status = STATUSES.get(name, 400) if refused else 500
        if status == 500:
            self.log.exception("error handling a request")
        else:
            sender = addr[0] if addr else "a Unix socket"
            self.log.warning("refused a request from %s: %s", sender, name)
        with contextlib.suppress(OSError):
            client.sendall(refusal(status))

    def _log_exception(self, message: str, *args: object, **_: object) -> None:
        """Log where an exception was raised, but not its text, which may quote a request."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # a client that is slow or gone
            self.log.debug("%s: %s", message, os.strerror(error.errno or 0))
            return
        frames = "".join(traceback.format_tb(error.__traceback__)) if error else ""
        self.log.error(f"{message}: %s\n%s", *args, type(error).__name__, frames)


class Threads(ThreadPoolExecutor):
    """Threads of which one may be missing: what was to start it waits for another one."""

    def submit(self, function: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Queue a call; the executor's own future is lost where no thread can be started."""
        future: Future[Any] = Future()
        try:
            super().submit(_run, future, function, *args, **options)
        except RuntimeError as error:
            if not is_own_want(error):
                raise
        return future


def _run(future: Future[Any], function: Any, *args: Any, **options: Any) -> None:
    try:
        future.set_result(function(*args, **options))
    except BaseException as error:
        future.set_exception(error)


def _wait_for_data(conn: Any, timeout: float) -> bool:
    """Wait for the first byte of a connection; gunicorn's own way takes a descriptor each time."""
    if not conn.data_ready:
        poll = select.poll()
        poll.register(conn.sock, select.POLLIN)
        conn.data_ready = bool(poll.poll(timeout * 1000))
    ready: bool = conn.data_ready
    return ready


def _is_get(sock: socket.socket) -> bool:
    """Whether a GET has arrived, which costs next to nothing here."""
    try:
        return sock.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"GET /"
    except (OSError, ValueError):  # nothing has arrived, or TLS, which cannot peek
        return False


def refusal(status: int) -> bytes:
    """Return a complete error response."""
    phrase = http.HTTPStatus(status).phrase
    kind: type[InferMuxError] = RequestError
    message = f"the request head was refused: {phrase.lower()}"
    if status == 500:
        kind, message = InferMuxError, "internal error"
    error = {"message": message, "type": kind.type, "code": kind.code}
    body = strict_json.encode({"error": error}) + b"\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
