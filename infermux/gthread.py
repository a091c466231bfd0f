"""gunicorn's thread worker, made to repeat nothing of a request and to outlive a shortage of descriptors.

By itself gunicorn quotes what it refuses, in a page of HTML and in its log, and writes a traceback for a client that is too slow.
"""

from __future__ import annotations

import contextlib
import errno
import http
import os
import socket
import sys
import time
import traceback
from typing import Any

from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker

from . import jsons
from .errors import InferMuxError, RequestError

PAUSE = 0.1                                 # seconds until a worker without a free descriptor looks again
QUIET = 60.0                                # seconds between two complaints about that
_SHORT = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STATUSES = {"LimitRequestLine": 414, "LimitRequestHeaders": 431, "ExpectationFailed": 417, "UnsupportedTransferCoding": 501,
             "ForbiddenProxyRequest": 403}


class Worker(ThreadWorker):                 # type: ignore[misc]  # gunicorn has no types
    """A thread worker whose own words are short."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log: Any = _Brief(self.log)
        self._complained = -QUIET

    def handle_error(self, req: Any, client: socket.socket, addr: Any, exc: Exception) -> None:
        """Answer what gunicorn refuses; nothing follows the answer to a request whose chunks turn out broken only afterwards."""
        name = type(exc).__name__
        if isinstance(exc, OSError) or (req is not None and "Chunk" in name):
            return
        refused = isinstance(exc, ParseException) and (req is None or name in _STATUSES)
        status = _STATUSES.get(name, 400) if refused else 500
        if status == 500:
            self.log.exception("a request could not be answered")
        else:
            self.log.warning("a request from %s was refused: %s", addr[0] if addr else "a socket", name)
        with contextlib.suppress(OSError):
            client.sendall(refusal(status))

    def accept(self, *args: Any) -> None:
        """Accept a connection; without a free descriptor it waits in the listener's queue, and the worker lives on."""
        try:
            super().accept(*args)
        except OSError as error:
            if error.errno not in _SHORT:
                raise
            if time.monotonic() - self._complained >= QUIET:
                self._complained = time.monotonic()
                self.log.error("no connection can be accepted: %s", os.strerror(error.errno))
            time.sleep(PAUSE)


class _Brief:
    """A log that tells where an exception came from, but not what it says; a client that is slow or gone is no news."""

    def __init__(self, log: Any) -> None:
        self._log = log

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
    message = "internal error" if status == 500 else f"the head of the request is refused: {phrase.lower()}"
    body = jsons.encode({"error": {"message": message, "type": kind.type, "code": kind.code}})
    lines = [f"HTTP/1.1 {status} {phrase}", "Connection: close", "Content-Type: application/json", "X-Content-Type-Options: nosniff",
             f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body
