"""gunicorn's settings and hooks, for gunicorn.conf.py and `infermux serve`.

A call holds its thread for up to a minute, and mostly waits: so there are many threads.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import signal
import socket
import ssl
import sys
import time
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import build
from ..config.settings import EARLY_HEADERS, Config, Server, inherits_sockets
from ..errors import ConfigError, listed, printable, shown
from ..pricing.compare import stale
from ..routing import stream
from ..telemetry import call_log, shared_memory
from ..telemetry.exporter import flush_all
from . import status

log = logging.getLogger("infermux")

PORT = 8600
MIN_CONNECTIONS = 4096  # of a worker, about
MAX_DESCRIPTORS = 65536  # of a process, if the system allows; each call has several
LARGE_BLOCK = 1024 * 1024  # bytes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
GC_THRESHOLD = 10_000  # new objects between garbage collections
SWITCH_SECONDS = 0.1  # until a thread asks for the interpreter; at 20 ms, 1,000 do little else


def load() -> dict[str, Any]:
    """Read the configuration, and return gunicorn's settings.

    gunicorn's master calls this at the start and at each HUP; workers inherit the configuration.
    An invalid one prevents a start; at a HUP the old one stays.
    """
    shared_memory.share()
    before, build.pinned = build.pinned, None
    try:
        config = build.settings()
        # a reload is checked before workers stop, a start in on_starting
        (build.router if before is None else build.check)(config)
        if before is not None:
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
    """Return gunicorn's settings for *server*."""
    return {
        "bind": f":{PORT}",
        "worker_class": "infermux.server.worker.Worker",
        "workers": server.workers,
        "threads": server.threads,
        # with room for idle ones, and those that send slowly: neither has a thread
        "worker_connections": server.threads * max(4, -(-MIN_CONNECTIONS // server.threads)),
        "keepalive": 30,
        "graceful_timeout": server.graceful_timeout,
        "accesslog": None,
        "errorlog": "-",
        "proc_name": "infermux",
        "loglevel": server.log_level.replace("warning", "info"),  # with the lines of a start
        "control_socket_disable": True,
        "on_starting": on_starting,
        "when_ready": when_ready,
        "on_reload": on_reload,
        "post_fork": post_fork,
        "post_worker_init": post_worker_init,
        "worker_exit": worker_exit,
    }


def on_starting(server: Any) -> None:
    """Check the ledger and the rate limits, say what serves, and load what workers will share."""
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
    if warning := stale(time.time()):
        server.log.warning("%s", warning)


def when_ready(server: Any) -> None:
    """Print where the service listens, and say in a line where anyone may call."""
    _say_where(server)
    public = [place for bind in server.cfg.bind if (place := _public(bind))]
    if public and build.settings().keys is None:
        server.log.warning(
            "no [keys]: the endpoints at %s are open to anyone, "
            "unless an application of yours asks for a login",
            listed(public),
        )


def _say_where(server: Any) -> None:
    scheme = "https" if server.cfg.is_ssl else "http"
    places = [listener.sock.getsockname() for listener in server.LISTENERS]
    for place in places or server.cfg.bind:
        where = place
        if isinstance(place, tuple):
            where = f"{scheme}://{_bracketed(str(place[0]))}:{place[1]}"
        with contextlib.suppress(OSError):  # nobody may read it
            os.write(1, f"infermux listening on {where}\n".encode())


def _public(bind: str) -> str:
    """Return the address of gunicorn's `bind` if others than this host can reach it."""
    if bind.startswith(("unix:", "fd://")):
        return ""
    parts = urlsplit("//" + bind.removeprefix("tcp://"))
    host = parts.hostname or "0.0.0.0"
    with contextlib.suppress(ValueError):  # a name
        if ip_address(host.partition("%")[0]).is_loopback:
            return ""
    port = parts.port if parts.port is not None else 8000
    return "" if host == "localhost" else f"{_bracketed(host)}:{port}"


def address_of(config: Config, host: str | None = None, port: int | None = None) -> str:
    """Return where `infermux serve` listens; without keys, by default only this host reaches it."""
    if host is None:
        host = "127.0.0.1" if config.keys is None else ""
    return f"{_bracketed(host)}:{PORT if port is None else port}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and "[" not in host else host


def usable(addr: str) -> str:
    """Return gunicorn's form of an address; raise ConfigError unless one can listen there now.

    Without a host that is every address of this one, of IPv6 too where the system has it.
    """
    if addr.startswith(("unix:", "fd://")):
        path = Path(addr.removeprefix("unix:").removeprefix("//"))
        free = path.is_socket() or not path.exists()
        if addr[0] == "u" and not (free and os.access(path.parent, os.W_OK)):
            raise ConfigError(f"cannot listen at {shown(addr)}: no socket can be made there")
        return addr
    host, colon, number = addr.removeprefix("tcp://").rpartition(":")
    port = int(number) if number.isascii() and number.isdigit() and len(number) < 6 else -1
    name = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not colon or not 0 <= port < 65536 or (name == host and ":" in host):
        raise ConfigError(
            f"--addr must be HOST:PORT or :PORT, such as 127.0.0.1:{PORT}, not {shown(addr)}"
        )
    if inherits_sockets():  # from systemd, or from the master that this one replaces
        return addr
    if not name:
        with contextlib.suppress(OSError):
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
        why = printable(error.strerror or "it is not PEM, or the key is another's")
        raise ConfigError(f"--certfile and --keyfile cannot be used: {why}") from None


def on_reload(server: Any) -> None:
    """Renew the application of --preload; without it, each worker makes its own."""
    if server.cfg.preload_app and build.pinned is not None:
        _renew(build.pinned)
        for app in list(build.apps):
            app.config["MAX_CONTENT_LENGTH"] = build.pinned.server.max_body
            app.config[EARLY_HEADERS] = build.pinned.server.early_headers


def _renew(config: Config) -> None:
    """Give the master's routers a new configuration."""
    for old in list(build.routers):
        new = build.router(config, serving=True)
        build.routers.discard(new)
        old.take_over(new)
        status.monitor(old)  # its new observers lack it


def post_fork(server: Any, worker: Any) -> None:
    """Prepare a worker's process for many threads."""
    import resource  # POSIX only, as gunicorn

    sys.setswitchinterval(SWITCH_SECONDS)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    stream.drain_with(worker, worker.cfg.graceful_timeout)
    if build.pinned is not None:
        # --threads overrides the file, perhaps after --preload has made routers
        threads = replace(build.pinned.server, threads=worker.cfg.threads)
        build.pinned = replace(build.pinned, server=threads)
        build.resize(build.pinned)
    status.start()


def post_worker_init(worker: Any) -> None:
    """Collect garbage less often: calls in flight are no garbage."""
    _freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 50)
    _map_large_blocks()
    _mask_stop_signals(signal.SIG_UNBLOCK)


def _map_large_blocks() -> None:
    """Return a large body's memory when it is freed, where the C library is glibc.

    Of its own accord it keeps blocks of up to 32 MB, in each of many threads' arenas.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)
        mallopt(M_TRIM_THRESHOLD, 2 * LARGE_BLOCK)


def _freeze() -> None:
    """Exclude what is loaded from garbage collection, so that it stays shared after a fork."""
    gc.collect()
    gc.freeze()


def _mask_stop_signals(how: int) -> None:
    """Block or unblock the signals that stop a worker.

    A new worker has its master's handlers at first: a SIGTERM would be lost.
    """
    signal.pthread_sigmask(how, (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT))


def worker_exit(server: Any, worker: Any) -> None:
    """Send the queued spans."""
    flush_all()
    status.stop()
    atexit.unregister(flush_all)  # once is enough


def run(addr: str, certfile: str | None = None, keyfile: str | None = None) -> None:
    """Run the service at *addr* until it is stopped, as `gunicorn wsgi:app` would."""
    if certfile is not None:
        _check_certificate(certfile, keyfile)
    own = {"bind": usable(addr), "certfile": certfile, "keyfile": keyfile}
    from gunicorn.app.base import BaseApplication

    class Service(BaseApplication):  # type: ignore[misc]  # gunicorn has no types
        def load_config(self) -> None:
            for name, value in {**load(), **own}.items():
                self.cfg.set(name, value)

        def load(self) -> Any:
            return importlib.import_module("infermux.app").create_app()

    Service().run()
