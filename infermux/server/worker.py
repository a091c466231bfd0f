"""gunicorn's thread worker, made to repeat nothing of a request, to bear a crowd and a shortage of
descriptors, and to be quick.

By itself gunicorn quotes what it refuses, in a page of HTML and in its log, and writes a traceback
for a client that is too slow.
"""

from __future__ import annotations

import contextlib
import errno
import http
import os
import select
import socket
import sys
import time
import traceback
from collections import deque
from typing import Any

from gunicorn.http.body import LengthReader
from gunicorn.http.errors import ParseException
from gunicorn.http.message import Request
from gunicorn.workers.gthread import ThreadWorker

from ..errors import InferMuxError, RequestError
from ..protocol import strict_json
from ..routing.starts import Starts, begin, begun

STAYS = 10  # milliseconds that a thread waits for the next request of a client that it has answered
STARTS = 8  # requests that begin at a time
LEASE = (
    0.02  # seconds after which they no longer count: whoever is not done then waits for a client
)
TURN = 2  # requests that the main loop lets begin before it looks again: each may need a new thread
CROWD = 256  # connections that it accepts before it looks again, while others wait
# bytes of a body that go out with the head; to copy a longer one costs more than a packet
TOGETHER = 65536
PAUSE = 0.1  # seconds until a worker without a free descriptor looks again
QUIET = 60.0  # seconds between two complaints about that
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STATUSES = {
    "LimitRequestLine": 414,
    "LimitRequestHeaders": 431,
    "ExpectationFailed": 417,
    "UnsupportedTransferCoding": 501,
    "ForbiddenProxyRequest": 403,
}


class Worker(ThreadWorker):  # type: ignore[misc]  # gunicorn has no types
    """A thread worker whose own words are short."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: Any = _Brief(self.log)
        self._complained = -QUIET
        self._waiting: deque[Any] = deque()  # connections whose request has not begun
        self._starts = Starts(STARTS, self._more_room)
        self._began = 0.0  # when the last request did

    def init_process(self) -> None:
        """Begin in the process that was forked; each look at a setting would be two calls, and a
        request takes two dozen looks.
        """
        self.cfg.__dict__.update(
            (name, setting.get()) for name, setting in self.cfg.settings.items()
        )
        super().init_process()

    # -- the main loop -----------------------------------------------------------------------------

    def accept(self, *args: Any) -> None:
        """Accept a connection, or a crowd; without a free descriptor they wait in the listener's
        queue, and the worker lives on.
        """
        try:
            super().accept(*args)
            for _ in range(CROWD if self._waiting else 0):
                before = self.nr_conns
                super().accept(*args)
                if self.nr_conns == before:
                    break
        except OSError as error:
            if error.errno not in _SHORT:
                raise
            if time.monotonic() - self._complained >= QUIET:
                self._complained = time.monotonic()
                self.log.error("no connection can be accepted: %s", os.strerror(error.errno))
            time.sleep(PAUSE)

    def enqueue_req(self, conn: Any) -> None:
        """Have a request answered in its turn; one that only looks, such as at the health of a
        crowded service, is not made to wait.
        """
        if self._waiting and _only_looks(conn.sock):
            conn.starts = None
            super().enqueue_req(conn)
        else:
            self._waiting.append(conn)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """See what has come, and let some of those begin that wait."""
        if self._waiting:
            timeout = 0 if self._starts else min(timeout, LEASE)
        super().wait_for_and_dispatch_events(timeout)
        for _ in range(min(TURN, len(self._waiting))):
            if not self._starts and time.monotonic() - self._began >= LEASE:
                self._starts = Starts(STARTS, self._more_room)
            if not self._starts:
                return
            self._starts.take()
            self._began = time.monotonic()
            conn = self._waiting.popleft()
            conn.starts = self._starts
            super().enqueue_req(conn)

    def _more_room(self) -> None:
        if self._waiting:
            self.method_queue.defer(_look_again)

    # -- a thread ----------------------------------------------------------------------------------

    def handle(self, conn: Any) -> Any:
        """Answer a client's requests for as long as it goes on asking at once.

        To hand a connection to the main loop and back costs a tenth of what a call does.
        """
        if not self.cfg.is_ssl and not isinstance(conn.sock, _Client):
            conn.sock = _Client(fileno=conn.sock.detach())
        begin(conn.starts)
        try:
            kept = super().handle(conn)
        finally:
            begun()
        while kept is True and self._asks_again(conn):
            kept = super().handle(conn)
        if (
            not kept
        ):  # here: the main loop would wait two seconds for a client that does not close its side
            with contextlib.suppress(OSError):
                conn.close(graceful=True)
            conn.close = _closed
        return kept

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer one request; a body that has been read to its end is not looked for again, twice,
        with four settings of the socket.
        """
        if type(req) is Request:
            conn.parser.mesg_class = _Another
        kept = super().handle_request(req, conn)
        if isinstance(conn.sock, _Client):
            conn.sock.flush()  # an answer without a body
        if kept and isinstance(req.body.reader, LengthReader) and not req.body.reader.length:
            conn.parser.mesg = None
        return kept

    def _asks_again(self, conn: Any) -> bool:
        """Wait for the next request, as long as half of the threads are free: nobody else shall
        wait for one. TLS hides what came.
        """
        inside = self.nr_conns - len(self.keepalived_conns) - len(self.pending_conns)
        if conn.parser.unreader.buf.getvalue():
            return True  # it has come together with the last one, and nothing more may follow
        if not self.alive or self.cfg.is_ssl or 2 * inside > self.cfg.threads:
            return False
        poll = getattr(conn, "poll", None)
        if poll is None:
            poll = conn.poll = select.poll()
            poll.register(conn.sock, select.POLLIN)
        return bool(poll.poll(STAYS))

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn refuses; nothing follows the answer to a request whose chunks turn
        out broken only afterwards.
        """
        name = type(exc).__name__
        if isinstance(exc, OSError) or (req is not None and "Chunk" in name):
            return
        refused = isinstance(exc, ParseException) and (req is None or name in _STATUSES)
        status = _STATUSES.get(name, 400) if refused else 500
        if status == 500:
            self.log.exception("a request could not be answered")
        else:
            self.log.warning(
                "a request from %s was refused: %s", addr[0] if addr else "a socket", name
            )
        with contextlib.suppress(OSError):
            client.sendall(refusal(status))


class _Client(socket.socket):
    """A client's connection, on which a short answer is one packet: the head waits for the body,
    which gunicorn sends next.
    """

    _head = b""

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send what is given, or keep it back if it is the head of an answer of known length."""
        if self._head:
            self._head, head = b"", self._head
            if len(data) > TOGETHER:
                super().sendall(head)
            else:
                data = head + data
        elif (
            data.startswith(b"HTTP/1.1 200 ")
            and b"\r\nContent-Length: " in data
            and data.endswith(b"\r\n\r\n")
        ):
            self._head = data
            return
        super().sendall(data, flags)

    def sendfile(self, *args: Any, **kwargs: Any) -> int:
        """Send a file."""
        self.flush()
        return super().sendfile(*args, **kwargs)

    def flush(self) -> None:
        """Send what was kept back."""
        if self._head:
            self.sendall(b"")


class _Another(Request):  # type: ignore[misc]
    """A further request of a client whose address was looked up at the first one."""

    def _peer_trusted_for_forwarded(self) -> Any:
        if not hasattr(self.unreader, "trusted"):
            self.unreader.trusted = super()._peer_trusted_for_forwarded()
        return self.unreader.trusted


def _only_looks(sock: socket.socket) -> bool:
    """Whether what has come begins like a request that costs next to nothing."""
    try:
        return sock.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b"GET /"
    except (OSError, ValueError):  # TLS shows nothing in advance
        return False


def _closed(graceful: bool = False) -> None:
    """Do nothing: the connection is closed."""


def _look_again() -> None:
    """Do nothing: the main loop looks around whenever it was called."""


class _Brief:
    """A log that tells where an exception came from, but not what it says; a client that is slow or
    gone is no news.
    """

    def __init__(self, log: Any) -> None:
        self._log = log
        self.access = log.access  # asked for by every request

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def exception(self, message: str, *args: object) -> None:
        """Write the current exception down."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            self._log.debug("%s: %s", message, os.strerror(error.errno or 0))
            return
        frames = "".join(traceback.format_tb(error.__traceback__)) if error else ""
        self._log.error(f"{message}: %s\n%s", *args, type(error).__name__, frames)


def refusal(status: int) -> bytes:
    """Return a whole answer that says no."""
    phrase = http.HTTPStatus(status).phrase
    kind = InferMuxError if status == 500 else RequestError
    message = (
        "internal error"
        if status == 500
        else f"the head of the request is refused: {phrase.lower()}"
    )
    body = strict_json.encode({"error": {"message": message, "type": kind.type, "code": kind.code}})
    lines = [
        f"HTTP/1.1 {status} {phrase}",
        "Connection: close",
        "Content-Type: application/json",
        "X-Content-Type-Options: nosniff",
        f"Content-Length: {len(body)}",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body
