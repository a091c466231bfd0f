"""gunicorn's settings for this service: what gunicorn.conf.py and `infermux serve` share.

Names are gunicorn's own. A call to a model holds its thread for up to a minute and waits for nearly all of it, so there are
many threads; they wait outside the interpreter's lock.
"""

from __future__ import annotations

import atexit
import contextlib
import socket
import struct
import sys
from typing import Any

from . import build
from .errors import ConfigError
from .tokentrace import flush_all

SOCKET_SECONDS = 10                         # a client that neither sends nor reads for so long loses its connection
SWITCH_SECONDS = 0.02                       # at Python's own 5 ms, a thousand streams spend their time on handing the lock around


def _server() -> Any:
    try:
        return build.settings().server
    except ConfigError as error:
        sys.exit(f"infermux: {error.message}")


_settings = _server()
bind = ":8600"
worker_class = "gthread"
workers = _settings.workers
threads = _settings.threads
worker_connections = 4 * threads            # what exceeds the threads is room for idle kept-alive connections
keepalive = 30
graceful_timeout = _settings.graceful
accesslog = None
errorlog = "-"
proc_name = "infermux"
control_socket_disable = True


def when_ready(server: Any) -> None:
    """Bound what a client can hold up: accepted connections inherit these from the listener."""
    timeout = struct.pack("ll", SOCKET_SECONDS, 0)
    for listener in server.LISTENERS:
        with contextlib.suppress(OSError, AttributeError):      # a Unix socket has no TCP options, and needs none
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SOCKET_SECONDS)


def post_fork(server: Any, worker: Any) -> None:
    """Hand the interpreter's lock around less often, in each worker."""
    sys.setswitchinterval(SWITCH_SECONDS)


def worker_exit(server: Any, worker: Any) -> None:
    """Send the spans that are still queued."""
    flush_all()
    atexit.unregister(flush_all)            # else a TokenTrace that hangs is waited for twice


def options() -> dict[str, Any]:
    """Return the settings above by name."""
    return {name: value for name, value in globals().items() if name in _NAMES}


_NAMES = ("bind", "worker_class", "workers", "threads", "worker_connections", "keepalive", "graceful_timeout", "accesslog",
          "errorlog", "proc_name", "control_socket_disable", "when_ready", "post_fork", "worker_exit")
__all__ = list(_NAMES)
