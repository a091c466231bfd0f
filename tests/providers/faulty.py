"""A vendor that follows a script byte by byte, and records the requests that it receives."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from typing import NamedTuple

PATIENCE = 20.0  # seconds after which a script that waits in vain gives up

Script = Callable[["Peer"], object]


class Request(NamedTuple):
    """One request as it came: the connection it came on (from 0), its head and its body."""

    connection: int
    line: str
    headers: Mapping[str, str]  # names in lower case
    head: bytes
    body: bytes


class Peer:
    """The vendor's end of one connection."""

    def __init__(self, vendor: Vendor, sock: socket.socket, number: int) -> None:
        self.vendor, self.sock, self.number = vendor, sock, number
        self._rest = b""

    def request(self) -> Request | None:
        """Read one request and note it; None if the other side has hung up instead."""
        while b"\r\n\r\n" not in self._rest:
            if not (data := self.sock.recv(65536)):
                return None
            self._rest += data
        head, _, rest = self._rest.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (field.partition(":") for field in fields)
        }
        size = int(headers.get("content-length", "0"))
        while len(rest) < size and (data := self.sock.recv(65536)):
            rest += data
        self._rest = rest[size:]
        found = Request(self.number, line, headers, head, rest[:size])
        self.vendor.requests.append(found)
        return found

    def send(self, data: bytes) -> None:
        """Send bytes."""
        self.sock.sendall(data)

    def drip(self, data: bytes, pause: float) -> None:
        """Send the bytes one by one for as long as anybody takes them."""
        for at in range(len(data)):
            if self.vendor.stopped.wait(pause):
                return
            self.sock.sendall(data[at : at + 1])

    def gone(self) -> bool:
        """Wait until the other side hangs up; False if it did not."""
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return False
        except OSError:
            pass
        self.vendor.left.set()
        return True

    def reset(self) -> None:
        """End the connection with RST instead of FIN."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


class Vendor:
    """Listens on loopback; the n-th connection runs the n-th script, and every later one the last."""

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.connections = 0
        self.stopped = threading.Event()
        self.left = threading.Event()  # somebody hung up on a script that waited for it
        self.failures: list[BaseException] = []
        self._scripts, self._tls = scripts, tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._socks: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        """The base URL."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    def close(self) -> None:
        """End everything; raise what a script raised."""
        if self.stopped.is_set():
            return
        self.stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._socks:
            _shut(sock)
        for thread in self._threads[1:]:
            thread.join()
        for failure in self.failures:
            raise failure

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(PATIENCE)
            self._socks.append(sock)
            thread = threading.Thread(target=self._serve, args=(sock, self.connections))
            self.connections += 1
            self._threads.append(thread)
            thread.start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        with sock:
            try:
                if self._tls:
                    with self._tls.wrap_socket(sock, server_side=True) as wrapped:
                        self._run(wrapped, number)
                else:
                    self._run(sock, number)
            except OSError:
                pass  # whoever asked has gone: what a script tests is seen at the other end
            except Exception as error:
                self.failures.append(error)

    def _run(self, sock: socket.socket, number: int) -> None:
        self._scripts[min(number, len(self._scripts) - 1)](Peer(self, sock, number))


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def answer(
    status: int,
    body: bytes = b"",
    headers: Mapping[str, str] | None = None,
    *,
    length: int | None = None,
) -> bytes:
    """A whole HTTP answer; *length* lies about the body's."""
    fields = {
        "Content-Type": "application/json",
        "Content-Length": str(len(body) if length is None else length),
    } | dict(headers or {})
    return b"".join(
        [
            b"HTTP/1.1 %d Whatever\r\n" % status,
            *(f"{name}: {value}\r\n".encode() for name, value in fields.items()),
            b"\r\n",
            body,
        ]
    )


def events(*pieces: bytes, end: bool = True) -> list[bytes]:
    """The pieces of a chunked event stream: its head, its chunks and (unless not wanted) its end."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return [
        head,
        *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces),
        *([b"0\r\n\r\n"] if end else []),
    ]


def answers(*raw: bytes) -> Script:
    """Answer each request with the next bytes (the last ones for ever), and keep the connection
    open.
    """

    def script(peer: Peer) -> None:
        number = 0
        while peer.request():
            peer.send(raw[min(number, len(raw) - 1)])
            number += 1

    return script


def then_closes(raw: bytes = b"") -> Script:
    """Answer one request with these bytes, and hang up."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(raw)

    return script


def then_waits(raw: bytes = b"") -> Script:
    """Answer one request with these bytes, and say nothing more until the other side hangs up."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(raw)
        peer.gone()

    return script


def drips(head: bytes, rest: bytes, pause: float = 0.02) -> Script:
    """Answer one request with these bytes, and the rest one by one."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        peer.drip(rest, pause)

    return script
