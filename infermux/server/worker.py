"""gunicorn's thread worker with nine changes.

1. Responses and log lines about a refused request do not quote it.
2. A worker survives a lack of file descriptors.
3. A burst of requests starts a few at a time, so that each soon waits for its provider.
4. GET requests, such as health checks, are served before such a burst.
5. A thread reads the next requests of its client itself, without the main loop.
6. If no thread can be started, a request waits for an existing one.
7. A request gets a thread when its head has arrived; it has ten seconds to do so.
8. A body must arrive at 1 KB/s or faster, and few threads may wait for bodies.
9. The same holds inside TLS, and for its handshake, except with gunicorn's http_protocols = "h2".
"""

from __future__ import annotations

import copy
import http
import os
import select
import socket
import sys
import threading
import time
import traceback
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

from ..admission import ConcurrencyLimiter
from ..errors import InferMuxError, RequestError
from ..protocol import strict_json
from ..types import LogThrottle, is_readable, is_shortage, limit_waits
from .clients import (
    CLIENT_SECONDS,
    CLOSED,
    HEAD_BYTES,
    Certificate,
    Client,
    SecureClient,
)

KEEP_THREAD_SECONDS = 0.01  # how long a thread waits for its client's next request
PIPELINED = 16  # busy threads, above which a client must wait for its answers
STARTS_PER_TURN = 2  # requests of a burst started together; each may need a thread
TURN_SECONDS = 0.001  # minimum time between such starts
ACCEPTS_PER_TURN = 256  # connections accepted per turn in a burst
PAUSE_SECONDS = 0.1  # when out of descriptors
GREET_SECONDS = 0.005  # of TLS handshakes in a turn
CHECK_SECONDS = 0.25  # between checks of arriving requests
CUTS_PER_CHECK = 500
LINGER_SECONDS = 2.0  # to read the last response before the connection closes
LINGER_READS, LINGER_BYTES = 16, 4096  # maximum reads, and bytes of each
STATUSES = {  # by the name of gunicorn's exception; others are 400
    "LimitRequestLine": 414,
    "LimitRequestHeaders": 431,
    "ConfigurationProblem": 400,  # a SCRIPT_NAME from a proxy that does not fit the path
    "ExpectationFailed": 417,
    "UnsupportedTransferCoding": 501,
    "ForbiddenProxyRequest": 403,
}
SETTINGS = (  # read on every request by some version of gunicorn
    "keepalive certfile keyfile pre_request post_request limit_request_line limit_request_fields "
    "limit_request_field_size http_parser protocol http2_cleartext proxy_protocol "
    "permit_unconventional_http_method casefold_http_method forwarded_allow_ips forwarder_headers "
    "secure_scheme_headers strip_header_spaces workers errorlog accesslog syslog logconfig "
    "logconfig_dict logconfig_json"
)


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: Any = copy.copy(self.log)  # leave the master's logger unchanged
        self.log.exception = self._log_exception
        self._complaint = LogThrottle()
        self._hook = self.cfg.pre_request

    def init_process(self) -> None:
        """Make settings plain attributes, which are faster to read."""
        self.cfg.set("pre_request", self._begin)
        known = [name for name in SETTINGS.split() if hasattr(self.cfg, name)]
        self.cfg.__dict__.update({name: getattr(self.cfg, name) for name in known})
        super().init_process()

    def get_thread_pool(self) -> ThreadPoolExecutor:
        self.threads = Threads(self)
        return self.threads

    def _begin(self, worker: Any, req: Any) -> None:
        """Let the application refuse a body: the connection is then closed."""
        self._hook(worker, req)
        if hasattr(req, "unreader"):  # HTTP/1
            req.body.refuse, current = req.force_close, self.threads.current
            current.unreader, current.sock.has_head = req.unreader, True
            if any(name == "EXPECT" for name, _ in req.headers):
                req.force_close()  # the body is asked for when it is read, which may be never

    def accept(self, listener: Any) -> None:
        """Accept a connection, or many in a burst, as one may be a health check."""
        self.threads.listen(listener)
        try:
            threads = self.threads
            for _ in range(ACCEPTS_PER_TURN):
                before = threads.submitted
                super().accept(listener)
                if threads.submitted == before or not (threads.waiting or threads.arriving):
                    break
        except OSError as error:
            if not is_shortage(error):
                raise
            if self._complaint.due():
                self.log.error("cannot accept connections: %s", os.strerror(error.errno or 0))
            time.sleep(PAUSE_SECONDS)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        burst = bool(self.threads.waiting)
        if burst or self.threads.arriving:
            timeout = min(timeout, TURN_SECONDS if burst else CHECK_SECONDS)
        super().wait_for_and_dispatch_events(timeout)
        self.threads.take_turn(time.monotonic(), burst=burst)

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Send an error response to a request that gunicorn refused or that failed."""
        name = type(exc).__name__
        if isinstance(exc, OSError) or (req is not None and "Chunk" in name):
            return  # the client left, or the application answered
        gunicorns = type(exc).__module__.startswith("gunicorn.")
        refused = gunicorns and (req is None or name in STATUSES)
        status = STATUSES.get(name, 400) if refused else 500
        if status == 500:
            self.log.exception("error handling a request")
        else:
            sender = addr[0] if addr else "a Unix socket"
            self.log.warning("refused a request from %s: %s", sender, name)
        with suppress(OSError):
            client.sendall(refusal(status))

    def _log_exception(self, message: str, *args: object, **_: object) -> None:
        """Log where an exception was raised, but not its text, which may quote a request."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):  # the client is slow or gone
            self.log.debug("%s: %s", message, os.strerror(error.errno or 0))
            return
        frames = "".join(traceback.format_tb(error.__traceback__)) if error else ""
        self.log.error(f"{message}: %s\n%s", *args, type(error).__name__, frames)


class Job(Future[Any]):
    """The task of a thread: one request, or several of one client."""

    def __init__(self, function: Any, conn: Any) -> None:
        super().__init__()
        self.function, self.conn = function, conn


class Threads(ThreadPoolExecutor):
    """The thread pool of a worker; a request is queued when enough of it has arrived."""

    def __init__(self, worker: Worker) -> None:
        self.size: int = worker.cfg.threads
        super().__init__(self.size)
        self.submitted = 0
        self.waiting: deque[Job] = deque()  # ready to start
        self.arriving: set[Job] = set()  # incomplete requests
        self.current = threading.local()  # `sock` and `unreader` of a thread's last request
        self._worker = worker
        cfg = worker.cfg
        self._has_tls = bool(cfg.is_ssl)
        by_gunicorn = self._has_tls and "h2" in cfg.http_protocols  # asks for an SSLSocket
        self._certificate = Certificate(cfg) if self._has_tls and not by_gunicorn else None
        self._listeners: set[Any] = set()
        self._readers = ConcurrencyLimiter(max(1, self.size * 3 // 4))  # waiting for clients
        self._eager = max(1, self.size // 8)  # of the readers, for incomplete bodies
        self._busy: set[Job] = set()  # running, or waiting for a thread
        self._started = self._checked = 0.0  # times of the last start and check
        self._greeted = 0.0  # seconds of handshakes in this turn

    def listen(self, listener: Any) -> None:
        """Make the kernel report connections only when data has arrived."""
        if listener not in self._listeners:
            self._listeners.add(listener)
            with suppress(OSError):  # not for Unix sockets
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, CLIENT_SECONDS)

    def submit(self, function: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Queue a request, or wait for more of it in the main loop."""
        job = Job(function, conn := args[0])
        self.submitted += 1
        if not conn.data_ready:  # a new connection
            _bound(conn.sock)
            if not isinstance(conn.client, tuple):
                conn.client = ""  # a Unix socket's client may give itself any name
            elif len(conn.client) == 4:  # IPv6, perhaps an IPv4-mapped address
                conn.client = (conn.client[0].removeprefix("::ffff:"), conn.client[1])
            if self._certificate is not None:
                conn.sock = SecureClient(conn.sock, self._readers, self._certificate.context)
            elif not self._has_tls:
                conn.sock = Client(conn.sock, self._readers)
            conn.data_ready = isinstance(conn.sock, Client) or is_readable(conn.sock, 0)
        elif isinstance(conn.sock, Client):
            conn.sock.begin()
            conn.sock.watch()
        self._look(job)
        return job

    def _look(self, job: Job, _: object = None) -> None:
        """Queue a request if enough of it has arrived, else wait for more."""
        sock, known = job.conn.sock, job in self.arriving
        if not isinstance(sock, Client):
            self.waiting.append(job)
            return
        if lacking := self._lacks(sock):
            sock.wake_at(lacking)
            if not known:
                self.arriving.add(job)
                self._worker.poller.register(sock, select.POLLIN, partial(self._look, job))
            return
        if known:
            self._forget(job)
        if not sock.is_secured or (sock.body is None and sock.seen == HEAD_BYTES):
            job.function = partial(_refuse, status=431)
        if self.waiting and sock.is_get:  # a burst
            self._start(job)
        else:
            self.waiting.append(job)

    def _lacks(self, sock: Client) -> int:
        """Return how many bytes to wait for; handshakes wait when a turn had enough of them."""
        eager = self._readers.used < self._eager
        if sock.is_secured:
            return sock.lacks(eager=eager)
        if self._greeted > GREET_SECONDS:
            return 1
        start = time.monotonic()
        lacking = sock.lacks(eager=eager)
        self._greeted += time.monotonic() - start
        return lacking

    def _forget(self, job: Job) -> None:
        self.arriving.remove(job)
        sock = job.conn.sock
        self._worker.poller.unregister(sock)
        sock.wake_at(1)

    def _start(self, job: Job) -> None:
        self._busy.add(job)
        try:
            super().submit(self._run, job)
        except RuntimeError as error:
            if not is_shortage(error):
                raise

    def take_turn(self, now: float, *, burst: bool) -> None:
        """Start some of the queued requests; refuse those that arrive too slowly."""
        self._greeted = 0.0
        if now - self._checked > CHECK_SECONDS:
            self._checked = now
            self._check(now)
        if burst and now - self._started < TURN_SECONDS:
            return
        for _ in range(min(STARTS_PER_TURN, len(self.waiting))):
            self._started = now
            self._start(self.waiting.popleft())

    def _check(self, now: float) -> None:
        late = [job for job in self.arriving if job.conn.sock.is_too_slow(now)]
        for job in late[:CUTS_PER_CHECK]:
            self._forget(job)
            job.function = partial(_refuse, status=408)
            self._start(job)
        whole = [job for job in self.arriving if job.conn.sock.body is not None]
        for job in whole[: max(0, self._eager - self._readers.used)]:
            self._look(job)

    def _run(self, job: Job) -> None:
        try:
            job.set_result(self._serve(job))
        except BaseException as error:
            job.set_exception(error)

    def _serve(self, job: Job) -> Any:
        """Answer a request, and the client's next ones if each follows at once.

        The main loop would add a tenth to the time of a call.
        """
        self.current.sock = job.conn.sock if isinstance(job.conn.sock, Client) else CLOSED
        try:
            kept = job.function(job.conn)
            while kept is True and (follows := self._next_follows(job.conn.sock)) is not False:
                kept = follows and job.function(job.conn)
            if not kept:
                self._close(job.conn)
            return kept
        finally:
            self._busy.discard(job)

    @property
    def _is_calm(self) -> bool:
        """Whether at least half of the threads are free."""
        return 2 * len(self._busy) <= self.size

    def _next_follows(self, sock: Any) -> bool | None:
        """Whether the next request arrives at once; wait only if half the threads are free.

        None: it came before the answer, and threads are short.
        """
        is_there = bool(self.current.unreader.buf.getvalue())  # already read
        if not isinstance(sock, Client):
            return is_there  # poll() does not see data that TLS has buffered
        sock.begin()
        if is_there or sock.holds_more:
            return (self._is_calm and len(self._busy) <= PIPELINED) or None
        if not self._is_calm or not is_readable(sock, KEEP_THREAD_SECONDS):
            return False
        if self._readers.used < self._eager:
            return True
        sock.watch()
        return not sock.lacks(eager=False) and (sock.body is not None or not sock.seen)

    def _close(self, conn: Any) -> None:
        """Close a connection here; the main loop would wait two seconds for the client's FIN."""
        sock, conn.sock = conn.sock, CLOSED
        with suppress(OSError, ValueError):
            sock.shutdown(socket.SHUT_WR)
            end = time.monotonic() + (LINGER_SECONDS if self._is_calm else 0.0)
            for _ in range(LINGER_READS):
                left = end - time.monotonic()
                if not is_readable(sock, left) or not socket.socket.recv(sock, LINGER_BYTES):
                    break
        with suppress(OSError):
            sock.close()


def _refuse(conn: Any, *, status: int) -> bool:
    """Send an error response for a bad request; nothing if no byte has arrived."""
    if conn.sock.seen:
        with suppress(OSError):
            conn.sock.send(refusal(status), socket.MSG_DONTWAIT)
    return False


def _bound(sock: socket.socket) -> None:
    """Set kernel timeouts for a client that neither sends nor reads."""
    with suppress(OSError):  # a Unix socket lacks some
        limit_waits(sock, CLIENT_SECONDS)
        # each byte sent restarts SO_SNDTIMEO; this ends connections that are not read
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, CLIENT_SECONDS * 1000)


def refusal(status: int) -> bytes:
    phrase = http.HTTPStatus(status).phrase
    kind: type[InferMuxError] = RequestError
    message = f"the request was refused: {phrase.lower()}"
    if status == 500:
        kind, message = InferMuxError, "internal error"
    error = {"message": message, "type": kind.type, "code": kind.code}
    body = strict_json.encode({"error": error}) + b"\n"
    head = (
        f"HTTP/1.1 {status} {phrase}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        f"X-Content-Type-Options: nosniff\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
