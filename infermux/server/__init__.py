"""gunicorn's settings for this service: what gunicorn.conf.py and `infermux serve` share.

Names are gunicorn's own. A call to a model holds its thread for up to a minute and waits for nearly
all of it, so there are many threads; they wait outside the interpreter's lock.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import logging
import os
import resource
import signal
import socket
import struct
import sys
import time
from dataclasses import replace
from typing import Any

from .. import build
from ..config.settings import Config, Server
from ..errors import ConfigError
from ..pricing.compare import stale
from ..routing import stream
from ..telemetry import call_log as calllog
from ..telemetry import shared_memory as board
from ..telemetry.tokentrace import flush_all
from . import status

log = logging.getLogger("infermux")

WORKER = "infermux.server.worker.Worker"
FILES = 65536  # descriptors of a process, as far as the system allows: each call has several
SOCKET_SECONDS = 10  # a client that neither sends nor reads for so long loses its connection
GARBAGE = 10_000  # objects made since the last search for garbage, until the next
# each thread that waits for the lock wakes so often: at Python's own 5 ms, and now and then
SWITCH_SECONDS = 0.1
# at 20 ms, the wakings of a thousand leave no time for anything else


def load() -> dict[str, Any]:
    """Read the configuration and return gunicorn's settings; a broken file stops the start, but
    never a service that runs.

    gunicorn runs this in its master, at the start and at each HUP; the workers that it forks
    inherit what was read.
    """
    board.share()
    before, build.pinned = build.pinned, None
    try:
        config = build.settings()
        checked = (
            build.router if before is None else build.check
        )  # the first start is checked once it is one: on_starting
        checked(config)  # whatever is wrong with it is found here, before a worker is told to go
    except ConfigError as error:
        if before is None:
            sys.exit(f"infermux: {error.message}")
        log.error("the configuration is not reloaded, the old one stays: %s", error.message)
        config = before
    build.pinned = config
    calllog.configure(config.server.log_level, config.server.log_format)
    return options(config.server)


def options(server: Server) -> dict[str, Any]:
    """Return gunicorn's settings for *server*."""
    return {
        "bind": ":8600",
        "worker_class": WORKER,
        "workers": server.workers,
        "threads": server.threads,
        "worker_connections": 4
        * server.threads,  # what exceeds the threads is room for idle kept-alive connections
        "keepalive": 30,
        "graceful_timeout": server.graceful,
        "accesslog": None,
        "errorlog": "-",
        "proc_name": "infermux",
        "loglevel": "info"
        if server.log_level == "warning"
        else server.log_level,  # a start is worth its three lines
        "control_socket_disable": True,
        "on_starting": on_starting,
        "when_ready": when_ready,
        "on_reload": on_reload,
        "post_fork": post_fork,
        "post_worker_init": post_worker_init,
        "worker_exit": worker_exit,
    }


def on_starting(server: Any) -> None:
    """Refuse to start where no call could be written down; a service that runs already goes on
    without, and says so.
    """
    try:
        build.check(build.settings())
    except ConfigError as error:
        server.log.critical("infermux: %s", error.message)
        sys.exit(1)
    os.register_at_fork(
        before=lambda: _hold_back(signal.SIG_BLOCK),
        after_in_parent=lambda: _hold_back(signal.SIG_UNBLOCK),
    )
    importlib.import_module("infermux.app")  # what is there before the fork, all workers share
    gc.collect()
    gc.freeze()
    if warning := stale(time.time()):
        server.log.warning("%s", warning)


def when_ready(server: Any) -> None:
    """Bound what a client can hold up: accepted connections inherit these from the listener."""
    timeout = struct.pack("ll", SOCKET_SECONDS, 0)
    for listener in server.LISTENERS:
        with contextlib.suppress(
            OSError, AttributeError
        ):  # a Unix socket has no TCP options, and needs none
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
            listener.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
            listener.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SOCKET_SECONDS)
            # a send that gets rid of one byte in its ten seconds may try again: this ends a reader
            # that stands still for once and all
            listener.sock.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SOCKET_SECONDS * 1000
            )


def on_reload(server: Any) -> None:
    """Renew what --preload has loaded: without it, each new worker makes its own."""
    if server.cfg.preload_app and build.pinned is not None:
        _renew(build.pinned)
        app = server.app.wsgi()
        if getattr(app, "import_name", "") == "infermux":  # a host's own app has its own limits
            app.config["MAX_CONTENT_LENGTH"] = build.pinned.server.max_body


def _renew(config: Config) -> None:
    """Give the routers that serve in this process, a master's that has loaded its application, the
    state of *config*.
    """
    for old in list(build.routers):
        new = build.router(config, serving=True)
        build.routers.discard(new)
        status.watch(new)  # else nobody counts until somebody asks
        old.take_over(new)


def post_fork(server: Any, worker: Any) -> None:
    """Hand the interpreter's lock around less often, and know how many threads there really are, in
    each worker.
    """
    sys.setswitchinterval(SWITCH_SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    stream.drain_with(worker, worker.cfg.graceful_timeout)
    if build.pinned is not None:
        build.pinned = replace(
            build.pinned, server=replace(build.pinned.server, threads=worker.cfg.threads)
        )
        build.resize(build.pinned)  # under --preload the application was made before this was known
    status.start()


def post_worker_init(worker: Any) -> None:
    """Leave what was loaded out of the search for garbage, and search less often: a thousand calls
    in flight are no garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE, 20, 50)
    _hold_back(signal.SIG_UNBLOCK)


def _hold_back(how: int) -> None:
    """Block, or let through, what ends a worker.

    A worker that has just been forked still has its master's handlers: a SIGTERM that came then
    would be lost, and the service would wait for it until graceful_timeout.
    """
    signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))


def worker_exit(server: Any, worker: Any) -> None:
    """Send the spans that are still queued."""
    flush_all()
    status.stop()
    atexit.unregister(flush_all)  # else a TokenTrace that hangs is waited for twice
