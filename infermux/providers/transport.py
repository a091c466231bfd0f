"""Connections to vendors: requests' adapter over urllib3's pools, bounded by a call's deadline.

The timeout of a library bounds each wait for a byte, so a vendor that drips bytes could hold a
thread for ever. Here http.client reads from an object that ends every read by the deadline.
"""

from __future__ import annotations

import http.client
import io
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as ConnectionFailed
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ReadTimeoutError

from ..config.settings import Timeouts
from ..errors import ProviderTimeout
from ..types import Deadline

MAX_IDLE_CONNECTIONS = 2048  # that are kept: more than a worker usually has threads
READ_SIZE = 65536  # bytes that one read of a socket may bring
MIN_WAIT = 0.001  # seconds: 0 would mean for ever, or not at all
_current = threading.local()  # .exchange: the one that this thread's connection serves


class Exchange:
    """One request and its response: how long they may take, and how far they have come."""

    def __init__(self, deadline: Deadline, timeouts: Timeouts) -> None:
        self.deadline = deadline
        self.timeouts = timeouts
        self.max_silence = timeouts.first_byte  # seconds without a byte
        self.needs_new_connection = False
        self.connected = False  # a connection was made for this request, or tried
        self.received = False  # at least one byte of a response has come
        self.reader: DeadlineReader | None = None
        self.response: http.client.HTTPResponse | None = None

    @property
    def stale(self) -> bool:
        """Whether the connection was a kept one that died before the first byte of a response."""
        return not (self.connected or self.received or self.needs_new_connection)

    @property
    def unread(self) -> bool:
        """Whether the end of the body has not been read yet."""
        return self.reader is not None and not self.reader.buffered.closed

    def close(self) -> None:
        """Stop reading, whatever state the response is in."""
        if self.reader is not None:
            self.reader.buffered.close()


class DeadlineReader(io.RawIOBase):
    """Reads a socket; no read waits longer than its exchange has time."""

    def __init__(self, sock: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until we close it
        self._exchange = exchange
        self._patience: float | None = None
        self._silence = 0.0
        # A timeout of Python's own makes each read two system calls, and gives up the interpreter's
        # lock between them: with 1,000 threads that delays events, so the kernel keeps the time.
        self._by_kernel = type(sock) is socket.socket and sock.gettimeout() is None
        self._bound = 0.0  # seconds, as the kernel has it
        self.buffered = io.BufferedReader(self, READ_SIZE)

    def makefile(self, mode: str) -> Any:
        """Return what http.client reads from; it takes this object for a socket."""
        return self.buffered

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        exchange, patience = self._exchange, self._patience
        deadline = exchange.deadline
        wait = deadline.cap(exchange.max_silence)
        if wait <= 0:
            raise TimeoutError("no time is left")
        if patience is not None and patience < wait:
            wait = patience
        for part in (wait,) if deadline.on_wait is None else deadline.slices(wait):
            try:
                if not self._by_kernel:
                    self._sock.settimeout(part)
                elif part != self._bound:
                    whole, rest = divmod(max(MIN_WAIT, part), 1)
                    timeval = struct.pack("ll", int(whole), int(rest * 1e6))
                    self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
                    self._bound = part
                size: int = self._sock.recv_into(buffer)
            except (TimeoutError, BlockingIOError):
                continue
            if size:  # the end of a kept connection is not the first byte of a response
                exchange.received = True
            return size
        raise TimeoutError("no byte in time")

    def receive(self, seconds: float) -> bytes | None:
        """Return what has come, b"" at the end, None if nothing came within *seconds*.

        Raise TimeoutError past the deadline and after too long a silence.
        """
        exchange = self._exchange
        self._patience = patience = min(seconds, exchange.max_silence - self._silence)
        try:
            ready = self.buffered.peek(1)
        except TimeoutError:
            self._silence += patience
            if exchange.deadline.expired or exchange.max_silence - self._silence < MIN_WAIT:
                raise
            return None
        finally:
            self._patience = None
        self._silence = 0.0
        exchange.max_silence = exchange.timeouts.idle  # a vendor that is alive is not silent
        return self.buffered.read1(len(ready)) if ready else b""

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Read the head; http.client passes over 100, but over no other interim response."""
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            self.headers = None  # type: ignore[assignment]
            super().begin()


class _Connection(HTTPConnection):
    """A connection that serves the exchange of the thread that uses it."""

    @property
    def is_connected(self) -> bool:
        """Whether a kept connection can serve; if not, urllib3 connects it again."""
        return not _current.exchange.needs_new_connection and super().is_connected

    def connect(self) -> None:
        _current.exchange.connected = True
        super().connect()

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        headers: Any = None,
        **options: Any,
    ) -> None:
        """Send a request; urllib3 would bound that by the time to connect."""
        if self.is_closed:
            self.connect()
        exchange = _current.exchange
        self.timeout = max(MIN_WAIT, exchange.deadline.cap(exchange.timeouts.first_byte))
        try:
            super().request(method, url, body, headers, **options)
        except TimeoutError as error:  # urllib3 would take it for a broken connection
            pool: Any = None
            raise ReadTimeoutError(pool, url, "not sent in time") from error

    def response_class(  # type: ignore[override]
        self, sock: Any, *args: Any, **options: Any
    ) -> http.client.HTTPResponse:
        """Return the response that http.client reads, over a reader with a deadline."""
        exchange = _current.exchange
        exchange.reader = reader = DeadlineReader(sock, exchange)
        exchange.response = response = _Response(reader, *args, **options)  # type: ignore[arg-type]
        return response


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}


class Answer(NamedTuple):
    """A vendor's response; requests' own opens a cookie jar, which costs more than all the rest."""

    status_code: int
    headers: Mapping[str, str]  # in any case
    raw: Any  # urllib3's response
    request: PreparedRequest


class Adapter(HTTPAdapter):
    """The connections of one process to one provider."""

    def __init__(self, *, verify: bool | str, proxies: dict[str, str]) -> None:
        super().__init__(pool_maxsize=MAX_IDLE_CONNECTIONS)
        self.poolmanager.pool_classes_by_scheme = _POOLS
        self._verify, self._proxies = verify, proxies
        self._pool: Any = None

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Return the one pool that a provider needs: it has one address and one proxy."""
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
        return self._pool

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        if proxies:
            return super().request_url(request, proxies)
        url = request.url or ""
        return url[url.find("/", len("https://")) :]  # requests splits it four times for the same

    def build_response(self, req: PreparedRequest, resp: Any) -> Any:
        return Answer(resp.status, resp.headers, resp, req)

    def post(self, request: PreparedRequest, exchange: Exchange) -> Answer:
        """Return the answer, its head read; a kept connection that has died is replaced once."""
        try:
            return self._post(request, exchange)
        except ConnectionFailed:
            if not exchange.stale:
                raise
            exchange.needs_new_connection = True
            return self._post(request, exchange)

    def _post(self, request: PreparedRequest, exchange: Exchange) -> Answer:
        if exchange.deadline.expired:
            raise ProviderTimeout("no time is left to ask the provider")
        limits = (max(MIN_WAIT, exchange.deadline.cap(exchange.timeouts.connect)), None)
        _current.exchange = exchange
        try:
            answer = self.send(
                request, stream=True, timeout=limits, verify=self._verify, proxies=self._proxies
            )
            return cast(Answer, answer)  # as build_response made it
        except BaseException:
            exchange.close()  # urllib3 forgets the socket of a response whose head it refuses
            raise
        finally:
            _current.exchange = None
