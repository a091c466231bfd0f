"""gunicorn's settings and hooks, for gunicorn.conf.py and `infermux serve`.

A call holds a thread, mostly waiting, for up to a minute, so a worker has many threads.
`worker` is the worker class, `status` joins the state of all workers, `alerts` watches for alerts.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import logging
import os
import re
import signal
import socket
import ssl
import sys
import time
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from .. import build
from ..config.settings import Config, Server, inherits_sockets
from ..errors import ConfigError, listed, printable, shown, wrong_value
from ..pricing.compare import stale
from ..routing import stream
from ..telemetry import call_log, shared_memory
from ..telemetry.exporter import flush_all
from . import alerts, status

log = logging.getLogger("infermux")

PORT = 8600
ADDRESS = re.compile(r"(\[[^\[\]]*\]|[^:]*):(\d{1,5})", re.ASCII)
CONNECTIONS = 16384  # per worker, approximately; idle ones keep nobody else out
MAX_DESCRIPTORS = 65536  # per process, if allowed
LARGE_BLOCK = 1024 * 1024  # bytes; malloc maps larger ones
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
GC_THRESHOLD = 10_000  # new objects between garbage collections
SWITCH_SECONDS = 0.1  # sys.setswitchinterval(); at 20 ms, 1,000 threads mostly switch


def load() -> dict[str, Any]:
    """Read the configuration, and return gunicorn's settings.

    gunicorn's master calls this at the start and at each HUP; workers inherit the configuration.
    An invalid configuration stops a start; at a HUP the old one stays in use.
    """
    while (free := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a closed standard file, whose place another would take, and get the log
    os.close(free)
    shared_memory.share()
    before, build.pinned = build.pinned, None
    try:
        config = build.settings()
        # check a reload before workers stop; on_starting checks a start
        (build.router if before is None else build.check)(config)
        if before is not None:
            if before.keys is not None and config.keys is None:  # a file that is half written
                raise ConfigError("it has no [keys] now: a restart would open the endpoints")
            build.announce(config)
    except ConfigError as error:
        if before is None:
            sys.exit(f"infermux: {error.message}")
        log.error("the configuration was not reloaded; the old one stays: %s", error.message)
        config = before
    build.pinned = config
    call_log.configure(config.server.log_level, config.server.log_format)
    return options(config.server)


def options(server: Server) -> dict[str, Any]:
    connections = min(CONNECTIONS, _descriptors() - 4 * server.threads)  # a call uses several
    return {
        "bind": f":{PORT}",
        "worker_class": "infermux.server.worker.Worker",
        "workers": server.workers,
        "threads": server.threads,
        # more than threads: idle and slowly sending clients hold no thread
        "worker_connections": server.threads * max(4, -(-connections // server.threads)),
        "keepalive": 30,
        "graceful_timeout": server.graceful_timeout,
        "accesslog": None,
        "errorlog": "-",
        "proc_name": "infermux",
        "loglevel": server.log_level.replace("warning", "info"),  # shows startup lines
        "control_socket_disable": True,
        "on_starting": on_starting,
        "when_ready": when_ready,
        "on_reload": on_reload,
        "post_fork": post_fork,
        "post_worker_init": post_worker_init,
        "worker_exit": worker_exit,
    }


def on_starting(server: Any) -> None:
    """Check the ledger and rate limits, log a summary, and load the modules workers share."""
    config = build.settings()
    try:
        router = build.check(config)
    except ConfigError as error:
        server.log.critical("infermux: %s", error.message)
        sys.exit(1)
    for subject, what in build.summary(config, router).items():
        server.log.info("%s: %s", subject, what)
    for notice in (*config.notices, *build.warnings(config, router)):
        server.log.warning("%s", notice)
    os.register_at_fork(
        before=lambda: _mask_stop_signals(signal.SIG_BLOCK),
        after_in_parent=lambda: _mask_stop_signals(signal.SIG_UNBLOCK),
    )
    importlib.import_module("infermux.app")
    _freeze()
    if warning := stale(time.time(), router.targets.prices):
        server.log.warning("%s", warning)


def when_ready(server: Any) -> None:
    """Print where the service listens; warn if anyone on the network may call it."""
    scheme, public = "https" if server.cfg.is_ssl else "http", []
    places = [listener.sock.getsockname() for listener in server.LISTENERS]
    for place in places or server.cfg.address:
        where = place
        if isinstance(place, tuple):
            where = f"{_bracketed(place[0])}:{place[1]}"
            public += [] if _is_local(place[0]) else [where]
            where = f"{scheme}://{where}"
        with suppress(OSError):  # stderr may be closed
            os.write(1, f"infermux listening on {where}\n".encode())
    if public and build.settings().keys is None:
        server.log.warning(
            "no [keys]: the endpoints at %s are open to anyone, "
            "unless an application of yours asks for a login",
            listed(public),
        )


def _is_local(host: str) -> bool:
    """Whether no other host can reach an address."""
    with suppress(ValueError):  # a host name
        return ip_address(host.partition("%")[0]).is_loopback
    return host == "localhost"


def address_of(config: Config, host: str | None = None, port: int | None = None) -> str:
    """Return the address for `infermux serve`: without keys, by default a local one."""
    if host is None:
        host = "127.0.0.1" if config.keys is None else ""
    return f"{_bracketed(host)}:{PORT if port is None else port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and "[" not in host else host


def usable(addr: str) -> str:
    """Return *addr* in gunicorn's form; raise ConfigError if it is invalid or in use.

    Without a host it is every address of this host, including IPv6 where available.
    """
    if addr.startswith("fd://"):
        return addr
    if addr.startswith("unix:"):
        path = Path(addr.removeprefix("unix:").removeprefix("//"))
        free = path.is_socket() or not path.exists()
        if not (free and os.access(path.parent, os.W_OK)):
            raise ConfigError(f"cannot listen at {shown(addr)}: no socket can be made there")
        return addr
    found = ADDRESS.fullmatch(addr.removeprefix("tcp://"))
    if found is None or int(found[2]) > 65535:
        raise wrong_value("--addr", f"HOST:PORT or :PORT, such as 127.0.0.1:{PORT}", addr)
    name, port = found[1].strip("[]"), int(found[2])
    if inherits_sockets():  # from systemd, or from the master that this one replaces
        return addr
    if not name:
        with suppress(OSError):
            _try_listening("::", port)
            return f"[::]:{port}"
    try:
        _try_listening(name or "0.0.0.0", port)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "there is no such host"
        raise ConfigError(f"cannot listen at {printable(addr)[:100]}: {why}") from None
    return f"{_bracketed(name) or '0.0.0.0'}:{port}"


def _try_listening(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if host == "::" and probe.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
            raise OSError
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))


def _check_certificate(certfile: str, keyfile: str | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile, lambda: "")
    except OSError as error:
        unread = isinstance(error, ssl.SSLError)
        why = "they are not PEM, or the key is another's" if unread else error.strerror
        raise ConfigError(f"--certfile and --keyfile cannot be used: {why}") from None


def on_reload(arbiter: Any) -> None:
    """With --preload, reconfigure the master's app; otherwise each worker makes its own."""
    if arbiter.cfg.preload_app and build.pinned is not None:
        _renew(build.pinned)
        for app in list(build.apps):
            app.config.update(build.pinned.server.for_flask)


def _renew(config: Config) -> None:
    for old in list(build.routers):
        new = build.router(config, serving=True)
        build.routers.discard(new)
        old.take_over(new)
        status.monitor(old)  # not among its new observers
        alerts.arm(old)


def post_fork(server: Any, worker: Any) -> None:
    """Prepare a new worker's process for many threads."""
    sys.setswitchinterval(SWITCH_SECONDS)
    stream.drain_with(worker, worker.cfg.graceful_timeout)
    if build.pinned is not None:
        # --threads overrides the file; --preload may have made routers before
        threads = replace(build.pinned.server, threads=worker.cfg.threads)
        build.pinned = replace(build.pinned, server=threads)
        build.resize(build.pinned)
    status.start()


def _descriptors() -> int:
    """Take as many descriptors as allowed, also for workers; return how many."""
    import resource  # POSIX only, like gunicorn

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def post_worker_init(worker: Any) -> None:
    """Collect garbage less often, as the objects of calls in flight stay in use."""
    alerts.start()
    _freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    _map_large_blocks()
    for number in (signal.SIGHUP, signal.SIGUSR2):  # for the master, but some tools tell all
        signal.signal(number, lambda *_: None)
    _mask_stop_signals(signal.SIG_UNBLOCK)


def _map_large_blocks() -> None:
    """With glibc, return a large body's memory to the system when it is freed.

    By default glibc keeps blocks of up to 32 MB, in the arenas of many threads.
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK)


def _freeze() -> None:
    """Exclude loaded objects from garbage collection, so that forks share their memory."""
    gc.collect()
    gc.freeze()


def _mask_stop_signals(how: int) -> None:
    """Block or unblock the signals that stop a worker.

    A new worker starts with its master's handlers, which would lose a SIGTERM.
    """
    signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))


def worker_exit(server: Any, worker: Any) -> None:
    """Send queued spans and records when a worker exits."""
    status.send_copies()
    left = flush_all()
    alerts.leave()
    status.stop()
    atexit.unregister(flush_all)
    atexit.register(flush_all, left)  # for the spans of the last threads


def run(addr: str, certfile: str | None = None, keyfile: str | None = None) -> None:
    """Run the service at *addr* until it is stopped, as `gunicorn wsgi:app` would."""
    if certfile is not None:
        _check_certificate(certfile, keyfile)
    own = {"bind": usable(addr), "certfile": certfile, "keyfile": keyfile}
    sys.argv = sys.orig_argv[1:]  # by which USR2 starts a successor
    from gunicorn.app.base import BaseApplication

    class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
        def load_config(self) -> None:
            for name, value in {**load(), **own}.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return importlib.import_module("infermux.app").create_app()

    Service().run()
