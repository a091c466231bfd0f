"""The sockets of clients, which must send their requests at a minimum speed, with and without TLS.

The main loop looks at a request while it arrives (`lacks`), without waiting; a thread then reads it
(`recv`). TLS is decrypted in memory, so that one record that is never completed holds nobody.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
import time
from contextlib import suppress
from typing import Any

from ..admission import ConcurrencyLimiter
from ..types import is_readable

CLIENT_SECONDS = 10  # for a head, for a body before PACE applies, for a client to read
HEAD_BYTES = 65536  # maximum size of a head
BODY_BYTES = 16_384  # of a body awaited without a thread
PACE = 1024.0  # minimum bytes of a body per second
BRIEF_SECONDS = 0.25  # maximum wait of a thread if many threads wait
RECORD_BYTES = 16_645  # of TLS, with its head
BLOCK_BYTES = 262_144  # of a body that are read, or encrypted, at a time
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Client(socket.socket):
    """The socket of a client; it always blocks, so that the kernel's send timeout applies.

    recv() waits with a limit of its own, and in few threads at a time.
    """

    is_secured = True  # unless a TLS handshake is missing

    def __init__(self, sock: socket.socket, readers: ConcurrencyLimiter) -> None:
        super().__init__(fileno=sock.detach())
        super().setblocking(True)
        self._readers, self._patience = readers, float(CLIENT_SECONDS)
        self.begin()
        self.watch()

    def begin(self) -> None:
        """Reset the counters of recv() for the next request."""
        self.has_head = False  # whether the head was read
        self._held = b""  # of the response: CONTINUE, until the body is read
        self._credit = float(CLIENT_SECONDS)  # how long recv() may still wait

    def watch(self) -> None:
        """Reset what lacks() knows, for the next request."""
        self.seen = 0  # bytes received
        self.body: int | None = None  # bytes of the body, once the head is there
        self.since = time.monotonic()  # start of the head, then of the body
        self.is_get = False

    @property
    def holds_more(self) -> bool:
        """Whether the next request has begun in memory, where poll() does not see it."""
        return False

    def setblocking(self, flag: bool) -> None:
        """Do nothing: the socket stays blocking."""

    def settimeout(self, value: float | None) -> None:
        """Set how many seconds recv() waits at most."""
        self._patience = CLIENT_SECONDS if value is None else value

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        """Read; raise TimeoutError if the client is too slow, OSError if too many threads wait."""
        if self._held:
            data, self._held = self._held, b""
            self.sendall(data)
        while True:
            try:
                data = self._read(min(bufsize, BLOCK_BYTES))
            except BlockingIOError:
                self._wait()
            else:
                if self.has_head:  # what came fast earns no longer pause
                    self._credit = min(CLIENT_SECONDS, self._credit + len(data) / PACE)
                return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send all of *data*; gunicorn's `100 Continue` only once the body is read."""
        if data == CONTINUE:
            self._held = CONTINUE
        else:
            self.sendall(data, flags)
        return len(data)

    def _read(self, bufsize: int) -> bytes:
        """Return what has arrived, b"" at the end; raise BlockingIOError if that is nothing."""
        return super().recv(bufsize, socket.MSG_DONTWAIT)

    def _wait(self) -> None:
        readers, start = self._readers, time.monotonic()
        if not readers.acquire():
            raise OSError(errno.ENOBUFS, "too many threads wait for clients")
        allowed = min(self._credit, self._patience)
        many = 1 < readers.used > readers.limit * 2 // 3
        try:
            if not is_readable(self, min(allowed, BRIEF_SECONDS) if many else allowed):
                code = errno.ENOBUFS if many else errno.ETIMEDOUT  # the latter is a TimeoutError
                raise OSError(code, "a client sends too slowly")
        finally:
            readers.release()
            self._credit -= time.monotonic() - start

    def lacks(self, *, eager: bool) -> int:
        """Return how many bytes must arrive in all before the request may start, 0 if it may.

        It needs its head and, if not *eager*, also BODY_BYTES of its body or all of it.
        """
        try:
            data, ended = self._peek()
        except BlockingIOError:
            return 1
        except OSError:
            return 0  # its thread gets the same error
        before, self.seen = self.seen, len(data)
        end = data.find(b"\r\n\r\n", max(0, before - 3) if self.body is None else 0) + 4
        if end < 4:
            return 0 if ended or len(data) == HEAD_BYTES else len(data) + 1
        if self.body is None:
            self.since, self.is_get = time.monotonic(), data.startswith(b"GET /")
        self.body = len(data) - end
        if eager or ended or self.body >= BODY_BYTES:
            return 0
        wanted = _body_size(data[:end].lower())
        if wanted is None:
            return 0 if self.body and data.endswith(b"\r\n\r\n") else len(data) + 1
        return end + wanted if wanted > self.body else 0

    def _peek(self) -> tuple[bytes | bytearray, bool]:
        """Return at most HEAD_BYTES that have arrived, and whether no more can be seen."""
        data = super().recv(HEAD_BYTES, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        # no new bytes: the client has ended, or the kernel's buffer is full
        return data, len(data) == self.seen

    def wake_at(self, size: int) -> None:
        """Let poll() report the socket once *size* bytes, or the end, have arrived."""
        self.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, size)

    def is_too_slow(self, now: float) -> bool:
        """Whether the head is late at *now*, or the body slower than PACE."""
        return now - self.since > CLIENT_SECONDS + (self.body or 0) / PACE


def _body_size(head: bytes | bytearray) -> int | None:
    """Return how many bytes of a body to wait for; None: until its end (chunked)."""
    if b"\r\nexpect:" in head:  # the client waits for a 100 Continue
        return 0
    if b"\r\ntransfer-encoding:" in head:
        return None
    length = head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0].strip()
    return min(int(length), BODY_BYTES) if length.isdigit() and len(length) < 20 else 0


class SecureClient(Client):
    """A client whose TLS ends here; its handshake is a part of its first head."""

    def __init__(
        self, sock: socket.socket, readers: ConcurrencyLimiter, context: ssl.SSLContext
    ) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._text = bytearray()  # decrypted, and not yet read
        self._has_ended = False  # without a word: that would be the end of our answers too
        self.is_secured = False
        super().__init__(sock, readers)

    @property
    def holds_more(self) -> bool:
        """Whether the next request has begun in memory, or the client has ended."""
        return self._decrypt() or bool(self._text)

    def do_handshake(self) -> None:
        """Do nothing: `lacks` has done it."""

    def _peek(self) -> tuple[bytes | bytearray, bool]:
        with suppress(BlockingIOError):
            if len(self._text) < HEAD_BYTES:
                self._fetch()
        if not self._continue_handshake():
            return self._text, True
        return self._text, self._decrypt() if self.is_secured else self._has_ended

    def _continue_handshake(self) -> bool:
        """Continue the handshake, if it is not complete; return whether it has not failed."""
        if self.is_secured:
            return True
        try:
            self._tls.do_handshake()
            self.is_secured = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            return False
        finally:
            self._flush(socket.MSG_DONTWAIT)  # also an alert
        return True

    def _decrypt(self) -> bool:
        """Decrypt what has been fetched; return whether no more can be seen, as for `_peek`."""
        try:
            while (room := HEAD_BYTES - len(self._text)) > 0:
                if not (data := self._tls.read(room)):
                    break
                self._text += data
        except ssl.SSLWantReadError:
            return self._has_ended
        except ssl.SSLError:
            pass
        return True

    def _fetch(self) -> None:
        """Fetch a record or so from the kernel; raise BlockingIOError if nothing has arrived."""
        data = socket.socket.recv(self, RECORD_BYTES, socket.MSG_DONTWAIT)
        self._incoming.write(data)
        self._has_ended = not data

    def _read(self, bufsize: int) -> bytes:
        if self._text:
            data = bytes(self._text[:bufsize])
            del self._text[:bufsize]
            return data
        while True:
            try:
                return self._tls.read(bufsize)
            except ssl.SSLWantReadError:
                if self._has_ended:
                    return b""
                self._fetch()

    def wake_at(self, size: int) -> None:
        """Do nothing: the size of the records is unknown."""

    def sendall(self, data: Any, flags: int = 0) -> None:
        view = memoryview(data).cast("B")
        while view:
            view = view[self._tls.write(view[:BLOCK_BYTES]) :]
            self._flush(flags)

    def _flush(self, flags: int = 0) -> None:
        if data := self._outgoing.read():
            socket.socket.sendall(self, data, flags)

    def shutdown(self, how: int) -> None:
        """Tell the client that the text ends here, then shut the socket down."""
        try:
            with suppress(ssl.SSLError):  # the client's own end is not awaited
                self._tls.unwrap()
            self._flush(socket.MSG_DONTWAIT)
        finally:
            super().shutdown(how)


class Certificate:
    """The TLS context of the service, made again when the files of its certificate change."""

    def __init__(self, cfg: Any) -> None:
        """Take TLS from gunicorn's *cfg*; raise OSError if the files cannot be used."""
        self._cfg, self._hook = cfg, cfg.ssl_context
        cfg.set("ssl_context", lambda conf, default: self)  # gunicorn asks at each connection
        self._files = [file for file in (cfg.certfile, cfg.keyfile) if file]
        self._seen = self._stamps()
        self._context = self._make()

    def wrap_socket(self, sock: SecureClient, **_: object) -> SecureClient:
        """Return *sock*, to gunicorn: its TLS ends in it."""
        return sock

    def _make(self) -> ssl.SSLContext:
        found: ssl.SSLContext = self._hook(self._cfg, self._default)
        return found

    def _default(self) -> ssl.SSLContext:
        cfg = self._cfg
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=cfg.ca_certs)
        context.load_cert_chain(cfg.certfile, cfg.keyfile)
        context.verify_mode = cfg.cert_reqs
        if cfg.ciphers:
            context.set_ciphers(cfg.ciphers)
        return context

    @property
    def context(self) -> ssl.SSLContext:
        """The context for a new client; the previous one while new files do not fit."""
        if (stamps := self._stamps()) != self._seen:
            self._seen = stamps
            with suppress(OSError, ValueError):
                self._context = self._make()
        return self._context

    def _stamps(self) -> list[int]:
        with suppress(OSError):
            return [os.stat(file).st_mtime_ns for file in self._files]
        return []


CLOSED = Client(socket.socket(), ConcurrencyLimiter(1))  # gunicorn may close it again
CLOSED.close()
