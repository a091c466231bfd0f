"""Clients that send their bytes slowly are cut off, and delay no other client."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import HELLO, PATIENCE, Service, certificate, eventually

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BEGUN = {  # what each client has sent when it begins to drip
    "head": HEAD + b"X-More: ",
    "line": b"POST /v1/ch",
    "body": HEAD + b"Content-Length: 100000\r\n\r\n{",
    "chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n",
    "large": HEAD + b"Content-Length: 30000000\r\n\r\n" + b" " * 20_000,
    "second": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" + HEAD,
    "unread": b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n1",
}
ENCRYPTED = {  # what is sent of TLS itself: it is never complete
    "hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "record": b"\x17\x03\x03\x40\x00",
}
LATE = 2.5  # seconds within which a health check is answered meanwhile


class Secure(Service):
    """A service that gunicorn serves over TLS."""

    def __init__(self, folder: Path, *args: str, **more: Any) -> None:
        cert, key = certificate(folder)
        super().__init__("--certfile", str(cert), "--keyfile", str(key), *args, **more)
        self.tls = ssl.create_default_context(cafile=str(cert))


def connected(service: Service, kind: str = "") -> socket.socket:
    """Return a connection of a client that begins with *kind*, over TLS if the service has it."""
    sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
    if service.tls is not None and kind != "hello":
        sock = service.tls.wrap_socket(sock, server_hostname="localhost")
    if kind in ENCRYPTED:
        socket.socket.sendall(sock, ENCRYPTED[kind])
    elif kind:
        sock.sendall(BEGUN[kind])
    return sock


class Drips:
    """Clients that have begun a request and send one byte of it each second."""

    def __init__(self, service: Service, kinds: list[str], count: int) -> None:
        self.answers: dict[str, list[bytes]] = {kind: [] for kind in kinds}
        self.open = 0
        self._stop = threading.Event()
        self._poller = selectors.DefaultSelector()
        self._kinds: dict[socket.socket, str] = {}
        self._found: dict[socket.socket, bytes] = {}
        for number in range(count):
            kind = kinds[number % len(kinds)]
            sock = connected(service, kind)
            sock.setblocking(False)
            self._kinds[sock], self._found[sock] = kind, b""
            self._poller.register(sock, selectors.EVENT_READ)
            self.open += 1
        self._thread = threading.Thread(target=self._drip)
        self._thread.start()

    def _drip(self) -> None:
        after = 0.0
        while not self._stop.is_set() and self._kinds:
            for key, _ in self._poller.select(0.1):
                self._read(key.fileobj)  # type: ignore[arg-type]
            if time.monotonic() > after:
                after = time.monotonic() + 1
                for sock, kind in list(self._kinds.items()):
                    with contextlib.suppress(OSError):
                        (socket.socket.send if kind in ENCRYPTED else type(sock).send)(sock, b"1")
        for sock in list(self._kinds):
            self._poller.unregister(sock)
            sock.close()

    def _read(self, sock: socket.socket) -> None:
        try:
            data = sock.recv(65536)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except OSError:
            data = b""
        if data:
            self._found[sock] += data
            return
        self._poller.unregister(sock)
        sock.close()
        self.answers[self._kinds.pop(sock)].append(self._found.pop(sock))
        self.open -= 1

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._poller.close()


@contextlib.contextmanager
def dripping(service: Service, kinds: list[str], count: int) -> Iterator[Drips]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 500)), hard))
    drips = Drips(service, kinds, count)
    try:
        yield drips
    finally:
        drips.close()


def is_served_meanwhile(service: Service, drips: Drips, seconds: float) -> None:
    """Expect health checks to be answered at once, and calls, until each dripping client is cut."""
    end, slowest = time.monotonic() + seconds, 0.0
    while drips.open:
        assert time.monotonic() < end, f"{drips.open} clients still drip"
        start = time.monotonic()
        assert service.ask("/healthz").status == 200
        slowest = max(slowest, time.monotonic() - start)
        assert service.ask("/v1/chat/completions", HELLO).status == 200
        time.sleep(0.1)
    assert slowest < LATE


Results = dict[str, Future[Any]]


@pytest.fixture(scope="module", autouse=True)
def results(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """What comes of those that take their time, while the other tests run."""
    chosen = " ".join(item.name for item in request.session.items)
    folder = tmp_path_factory.mktemp("tls")
    tasks = {
        "are_cut": _be_cut,
        "inside_tls": partial(_be_cut, folder),
        "pace": _two_at_a_pace,
    }
    with ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(task) for name, task in tasks.items() if name in chosen}


def _be_cut(folder: Path | None = None) -> dict[str, list[bytes]]:
    """Return what 60 dripping clients were told, with a *folder* over TLS."""
    env = {"INFERMUX_SERVER__THREADS": "16", "INFERMUX_SERVER__WORKERS": "1"}
    kinds = ["head", "line", "body", "chunks", "second", "unread"]
    one = Service(env=env)
    if folder is not None:
        one, kinds = Secure(folder, env=env), [*kinds, *ENCRYPTED]
    with one as service, dripping(service, kinds, 60) as drips:
        is_served_meanwhile(service, drips, PATIENCE)
    return drips.answers


def _two_at_a_pace() -> tuple[bytes, tuple[float, bytes]]:
    """Return what came of a client that keeps the pace, and of one that does not."""
    one = Service(env={"INFERMUX_SERVER__WORKERS": "1"})
    with one as service, ThreadPoolExecutor(1) as pool:
        kept = pool.submit(_keep_the_pace, service)
        paused = _pause(service)
        return kept.result(), paused


def _keep_the_pace(service: Service) -> bytes:
    """Send two kilobytes a second, in a head's time and beyond."""
    body = b'{"model":"echo-v1","messages":[{"role":"user","content":"%b"}]}' % (b"x" * 27_000)
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
        head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        for at in range(0, len(head), 50):
            sock.sendall(head[at : at + 50])
            time.sleep(0.05)
        for at in range(0, len(body), 1000):
            sock.sendall(body[at : at + 1000])
            time.sleep(0.4)
        return sock.recv(65536)


def _pause(service: Service) -> tuple[float, bytes]:
    """Send a part of a body at once, and then a byte now and then; return when that is cut."""
    with socket.create_connection(("127.0.0.1", service.port), 1) as sock:
        sock.sendall(HEAD + b"Content-Length: 30000000\r\n\r\n" + b" " * 100_000)
        start, answer = time.monotonic(), b""
        while not answer and time.monotonic() < start + 2 * PATIENCE:
            with contextlib.suppress(TimeoutError):
                sock.sendall(b" ")
                answer = sock.recv(65536)
        return time.monotonic() - start, answer


@pytest.mark.slow
def test_a_head_that_is_too_long_is_refused_before_its_end() -> None:
    lines = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 8000) for number in range(9))
    one = Service(env={"INFERMUX_SERVER__WORKERS": "1"})
    with one as service, socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
        sock.sendall(HEAD + lines)
        assert sock.recv(65536).startswith(b"HTTP/1.1 431")


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_what_comes_in_pieces_is_put_together(tmp_path: Path, secure: bool) -> None:
    """Requests cut anywhere, several in one packet, and one that ends in the middle."""
    body = b'{"model":"echo-v1","messages":[{"role":"user","content":"x"}]}'
    one = HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body
    chunked = HEAD + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    env = {"INFERMUX_SERVER__WORKERS": "1"}
    with Secure(tmp_path, env=env) if secure else Service(env=env) as service:
        for many in ([one, get, chunked, get, one, chunked], [get] * 5, [one] * 3):
            whole = b"".join(many)
            for step in (len(whole), 7, 100, 333):
                with connected(service) as sock:
                    for at in range(0, len(whole), step):
                        sock.sendall(whole[at : at + step])
                        time.sleep(0.001)
                    found = b""
                    while found.count(b"HTTP/1.1 200") < len(many):
                        found += sock.recv(65536)
                    assert found.count(b"HTTP/1.1") == len(many)
        for part in (one[:-5], HEAD, b"GET / HT", b""):
            with connected(service) as sock:
                sock.sendall(part)
                socket.socket.shutdown(sock, socket.SHUT_WR)
                assert b"HTTP/1.1 200" not in sock.recv(65536)
        eventually(lambda: service.ask("/healthz").status == 200)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["are_cut", "inside_tls"])
def test_clients_that_drip_are_cut_and_hold_no_thread(results: Results, name: str) -> None:
    answers = results[name].result(3 * PATIENCE)
    assert {found for kind in ENCRYPTED for found in answers.get(kind, [])} <= {b""}
    for kind in ("head", "line"):
        assert all(found.startswith(b"HTTP/1.1 408") for found in answers[kind])
    codes = {found[9:12] for kind in ("body", "chunks", "unread") for found in answers[kind]}
    assert codes <= {b"200", b"400", b"408", b"503"} and codes & {b"400", b"408"}
    assert {found.count(b"HTTP/1.1") for found in answers["second"]} == {1}


@pytest.mark.slow
def test_a_slow_client_that_keeps_the_pace_is_served(results: Results) -> None:
    assert results["pace"].result(3 * PATIENCE)[0].startswith(b"HTTP/1.1 200")


def test_what_came_fast_before_the_pace_earns_no_pause(results: Results) -> None:
    """Else a client could hold a thread and its room for a second per kilobyte."""
    _, (seconds, answer) = results["pace"].result(3 * PATIENCE)
    assert answer.startswith(b"HTTP/1.1 400") and seconds < PATIENCE


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds", [["head", "line"], ["body", "chunks", "unread"], ["large"], list(BEGUN)]
)
def test_a_host_with_thousands_of_dripping_clients_is_not_noticed(kinds: list[str]) -> None:
    with Service() as service, dripping(service, kinds, 3300) as drips:
        is_served_meanwhile(service, drips, 120)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [["hello", "record"], ["large"], [*BEGUN, *ENCRYPTED]])
def test_nor_are_they_inside_tls(tmp_path: Path, kinds: list[str]) -> None:
    with Secure(tmp_path) as service, dripping(service, kinds, 3300) as drips:
        is_served_meanwhile(service, drips, 120)
