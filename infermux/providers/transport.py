"""Connections to vendors: requests' adapter over urllib3's pools, bounded by a call's deadline.

Libraries limit each wait for a byte, so a vendor that sends byte by byte could block a thread for
ever. Here http.client reads through a DeadlineReader, which ends every read by the deadline.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import io
import math
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple, cast

from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from requests.exceptions import ConnectionError as ConnectionFailed
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from ..config.settings import Timeouts
from ..errors import ProviderTimeout, forget, having
from ..types import POSIX, Deadline, is_shortage, limit_waits
from .failures import no_descriptor

_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)  # neither has a descriptor
MAX_IDLE_CONNECTIONS = 2048  # kept ones; more than a worker usually has threads
READ_SIZE = 65536  # bytes of one read of a socket, at most
MIN_WAIT = 0.001  # seconds: 0 would mean for ever, or not at all
ATTEMPT_DELAY = 0.25  # seconds until another address is tried as well (RFC 8305, section 5)
MAX_ADDRESSES = 32  # of one name
FRESH_SECONDS = 5.0  # for which a name's addresses are used without a look-up
STALE_WAIT = 0.5  # seconds for a look-up if older addresses are known
LOOKUP_SECONDS = 1.0  # after which another look-up starts if one hangs
MAX_LOOKUPS = 8  # of one name at a time
# .exchange: that of this thread's connection; .names: the addresses of its provider
_current = threading.local()
Address = tuple[int, int, int, str, Any]  # as socket.getaddrinfo has it


class Exchange:
    """The time limits and the progress of one request and its response."""

    def __init__(self, deadline: Deadline, timeouts: Timeouts) -> None:
        self.deadline = deadline
        self.timeouts = timeouts
        self.max_silence = timeouts.first_byte  # seconds without a byte
        self.needs_new_connection = False
        self.connected = False  # a connection was made for this request, or tried
        self.sent = True  # unless it could not be made
        self.received = False  # at least one byte of a response has come
        self.reader: DeadlineReader | None = None
        self.response: http.client.HTTPResponse | None = None
        self.key: Any = None  # whose account has what the vendor stores by this request

    def close(self) -> None:
        """Stop reading. The response is first, or its finalizer would flush a closed file."""
        for file in (self.response, self.reader and self.reader.buffered):
            if file is not None:
                file.close()


class DeadlineReader(io.RawIOBase):
    """Reads a socket; no read exceeds the time limits of the exchange."""

    def __init__(self, sock: Any, exchange: Exchange) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)  # keeps the socket open until we close it
        self._exchange = exchange
        self._patience: float | None = None
        self._by_kernel = _is_plain(sock)
        self._silence = self._bound = 0.0  # seconds; the latter is the kernel's timeout
        self.buffered = io.BufferedReader(self, READ_SIZE)

    def makefile(self, mode: str) -> Any:
        """Return the file that http.client reads; it uses this object as its socket."""
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
                    limit_waits(self._sock, part, sends=False)
                    self._bound = part
                size: int = self._sock.recv_into(buffer)
            except (TimeoutError, BlockingIOError):
                continue
            exchange.received |= size > 0  # the end of a kept connection is no response
            return size
        raise TimeoutError("no byte in time")

    def receive(self, seconds: float) -> bytes | None:
        """Return the bytes that have arrived, b"" at the end, None after *seconds* without any.

        Raise TimeoutError after the deadline or too long a silence.
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
        exchange.max_silence = exchange.timeouts.idle  # the limit after the first byte
        return self.buffered.read1(len(ready)) if ready else b""

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()


class _Response(http.client.HTTPResponse):
    def begin(self) -> None:
        """Read the head; skip interim responses, of which http.client skips only 100."""
        super().begin()
        while 100 <= self.status < 200 and self.status != http.client.SWITCHING_PROTOCOLS:
            self.headers = None  # type: ignore[assignment]
            super().begin()


class Names:
    """Looks up the addresses of names and keeps them; if the name service hangs, calls time out.

    Look-ups run in daemon threads, a few for each name, and calls share them.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._known: dict[str, tuple[float, list[Address]]] = {}  # time and addresses
        self._failed: dict[str, tuple[float, Exception]] = {}
        self._lookups: dict[str, list[float]] = {}  # start times of those that run

    def find(self, host: str, port: int, seconds: float) -> list[Address]:
        """Return *host*'s addresses within *seconds*; raise TimeoutError or the look-up's error."""
        if (literal := _literal(host, port)) is not None:
            return [literal]
        began = time.monotonic()
        with self._changed:
            since, addresses = self._known.get(host, (-math.inf, []))
            end = began + (min(STALE_WAIT, seconds) if addresses else seconds)
            while began - since > FRESH_SECONDS:
                now = time.monotonic()
                failed, error = self._failed.get(host, (-math.inf, None))
                if addresses and (now >= end or failed >= began):
                    return addresses
                if error is not None and failed >= began:
                    raise error
                if now >= end:
                    raise TimeoutError("the name service did not answer in time")
                running = self._lookups.setdefault(host, [])
                again = max(running, default=-math.inf) + LOOKUP_SECONDS
                if now >= again and len(running) < MAX_LOOKUPS:
                    work = (host, port, now)
                    threading.Thread(target=self._look_up, args=work, daemon=True).start()
                    running.append(now)
                    continue
                self._changed.wait(min(end, again if again > now else end) - now)
                since, addresses = self._known.get(host, (-math.inf, []))
        return addresses

    def forget(self, host: str) -> None:
        """Forget *host*'s addresses, as none of them could be reached."""
        self._known.pop(host, None)

    def _look_up(self, host: str, port: int, began: float) -> None:
        addresses, failure = [], None
        try:
            family = socket.AF_UNSPEC if socket.has_ipv6 else socket.AF_INET
            addresses = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)
        except Exception as error:
            failure = error if is_shortage(error) else no_descriptor() or error
        with self._changed:
            self._lookups[host].remove(began)
            if failure is None:
                self._known[host] = time.monotonic(), cast(list[Address], addresses)
            else:
                self._failed[host] = time.monotonic(), failure.with_traceback(None)
            self._changed.notify_all()


def _literal(host: str, port: int) -> Address | None:
    """Return the address if *host* is an IP address; None for a name, which needs a thread."""
    for family, place in ((socket.AF_INET, (host, port)), (socket.AF_INET6, (host, port, 0, 0))):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return family, socket.SOCK_STREAM, 0, "", place
    return None


def connect(addresses: Sequence[Address], seconds: float, options: Iterable[Any]) -> socket.socket:
    """Return a socket that is connected to one of *addresses* within *seconds*, or raise OSError.

    After a short delay the next address is tried as well (RFC 8305); *options* are for setsockopt.
    """
    waiting = deque(_alternating(addresses)[:MAX_ADDRESSES])
    delay = min(ATTEMPT_DELAY, seconds / (len(waiting) + 1))
    end = next_at = time.monotonic() + seconds
    tried: set[Any] = set()
    poll, last = _Selector(), OSError("a name without addresses")
    try:
        while waiting or tried:
            if (now := time.monotonic()) >= end:
                raise TimeoutError("no address answered in time")
            if waiting and (now >= next_at or not tried):
                try:
                    sock: Any = _connecting(waiting.popleft(), options)
                except OSError as error:
                    last = error
                    if is_shortage(error):  # attempts under way may still succeed
                        waiting.clear()
                    continue
                tried.add(sock)
                poll.register(sock, selectors.EVENT_WRITE)
                next_at = now + delay
            until = min(end, next_at) if waiting else end
            for (sock, *_), _ in poll.select(until - now):
                tried.remove(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if not code:
                    return cast(socket.socket, sock)
                poll.unregister(sock)
                sock.close()
                last, next_at = OSError(code, os.strerror(code)), now
        raise last
    finally:
        for sock in tried:
            sock.close()


def _connecting(address: Address, options: Iterable[Any]) -> socket.socket:
    family, kind, protocol, _, place = address
    sock = socket.socket(family, kind, protocol)
    try:
        for option in options:
            sock.setsockopt(*option)
        sock.setblocking(False)
        code = sock.connect_ex(place)
        if code == errno.EADDRNOTAVAIL and family == socket.AF_INET:
            code = errno.ENOBUFS  # no local port is free
        if code not in (0, errno.EINPROGRESS, errno.EWOULDBLOCK):
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return sock


def _alternating(addresses: Sequence[Address]) -> list[Address]:
    """Return *addresses* with alternating families, beginning with the first one's."""
    first = [each for each in addresses if each[0] == addresses[0][0]]
    others = [each for each in addresses if each[0] != addresses[0][0]]
    return [each for each in chain(*zip_longest(first, others)) if each is not None]


def _is_plain(sock: Any) -> bool:  # else Python's timeouts are used: twice the system calls
    return POSIX and type(sock) is socket.socket and sock.gettimeout() is None


def _sent_at_once(sock: Any, data: bytes) -> int:
    """Return how many bytes of *data* the kernel takes without a wait."""
    try:
        return sock.send(data, socket.MSG_DONTWAIT) if _is_plain(sock) else 0
    except BlockingIOError:
        return 0


class _Connection(HTTPConnection):
    """A connection that serves the exchange of the thread that uses it."""

    def __init__(self, host: str, *args: Any, **options: Any) -> None:
        super().__init__(host, *args, **options)
        self._name = host.strip("[]")  # `host` lacks a trailing dot
        self._head: bytes | None = None  # of a request; b"" until http.client sends it

    @property
    def is_connected(self) -> bool:
        """Whether a kept connection can be reused; if not, urllib3 connects it again."""
        return not _current.exchange.needs_new_connection and super().is_connected

    def connect(self) -> None:
        _current.exchange.connected, _current.exchange.sent = True, False
        super().connect()

    def _new_conn(self) -> socket.socket:
        """Return a new socket; one time limit covers the name look-up, connecting and TLS."""
        exchange, names = _current.exchange, _current.names
        self._limit = limit = Deadline(exchange.deadline.cap(exchange.timeouts.connect))
        try:
            addresses = names.find(self._name, self.port, limit.remaining())
            sock = connect(addresses, limit.remaining(), self.socket_options or ())
        except socket.gaierror as error:
            raise exceptions.NameResolutionError(self.host, self, error) from error
        except OSError as error:
            names.forget(self._name)
            if isinstance(error, TimeoutError):
                raise exceptions.ConnectTimeoutError(self, "no connection in time") from error
            raise exceptions.NewConnectionError(self, "no connection") from error
        sock.settimeout(max(MIN_WAIT, limit.remaining()))
        return sock

    def request(self, method: str, url: str, body: Any = None, *args: Any, **options: Any) -> None:
        """Send a request within timeouts.first_byte; urllib3 would use the connect timeout."""
        if self.is_closed:
            self.connect()
        exchange = _current.exchange
        exchange.sent, self._head = True, b"" if isinstance(body, bytes) and body else None
        self._limit = Deadline(exchange.deadline.cap(exchange.timeouts.first_byte))
        try:
            super().request(method, url, body, *args, **options)
        except TimeoutError as error:  # urllib3 would report a broken connection
            raise exceptions.ReadTimeoutError(cast(Any, None), url, "not sent in time") from error

    def send(self, data: Any) -> None:
        """Send a request's head with its body, as two packets would cost twice as much."""
        if self._head == b"":
            self._head = data
            return
        head, self._head = self._head or b"", None
        for part in (head + data,) if len(data) < READ_SIZE else (head, data):
            if rest := memoryview(part)[_sent_at_once(self.sock, part) :]:
                cast(Any, self.sock).settimeout(max(MIN_WAIT, self._limit.remaining()))
                super().send(rest)

    def response_class(  # type: ignore[override]
        self, sock: Any, *args: Any, **options: Any
    ) -> http.client.HTTPResponse:
        """Return a response that reads through a DeadlineReader."""
        exchange = _current.exchange
        exchange.reader = reader = DeadlineReader(sock, exchange)
        exchange.response = response = _Response(reader, *args, **options)  # type: ignore[arg-type]
        return response


class _TLSConnection(_Connection, HTTPSConnection):
    def connect(self) -> None:
        """Load the certificates, which is slow, before the time for connecting is measured."""
        if self.proxy is None and (self.ca_certs or self.ca_cert_dir):
            self.ssl_context = create_urllib3_context()
            self.ssl_context.load_verify_locations(self.ca_certs, self.ca_cert_dir)
            self.ca_certs = self.ca_cert_dir = None
        super().connect()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}


class Answer(NamedTuple):  # that of requests would make a cookie jar, which is slow
    status_code: int
    headers: Mapping[str, str]  # case-insensitive
    raw: Any  # urllib3's response
    request: PreparedRequest


class Adapter(HTTPAdapter):
    """The connections of one process to one provider."""

    def __init__(self, *, verify: bool | str, proxies: dict[str, str]) -> None:
        super().__init__(pool_maxsize=MAX_IDLE_CONNECTIONS)
        self.poolmanager.pool_classes_by_scheme = _POOLS
        self._verify, self._proxies = verify, proxies
        self._names = Names()
        self._pool: Any = None

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        """Return the provider's only pool: it has one address and one proxy."""
        if self._pool is None:
            self._pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
        return self._pool

    def request_url(self, request: PreparedRequest, proxies: Any) -> str:
        if proxies:
            return super().request_url(request, proxies)
        url = request.url or ""
        return url[url.find("/", len("https://")) :]  # requests would split it four times

    def build_response(self, req: PreparedRequest, resp: Any) -> Any:
        return Answer(resp.status, resp.headers, resp, req)

    def post(self, request: PreparedRequest, exchange: Exchange) -> Answer:
        """Return the answer, read up to its body; if a kept connection was dead, try a new one."""
        try:
            answer = self._post(request, exchange)
            ends = answer.headers.get("connection", "").lower() == "close"
            if answer.status_code != 408 or not ends or exchange.connected:
                return answer  # else it was said to an idle connection
            answer.raw.close()
        except ConnectionFailed as error:
            if exchange.connected or exchange.received:
                raise
            forget(error)
        exchange.needs_new_connection, exchange.received = True, False
        return self._post(request, exchange)

    def _post(self, request: PreparedRequest, exchange: Exchange) -> Answer:
        if exchange.deadline.expired:
            raise having(ProviderTimeout("no time is left to ask the provider"), sent=False)
        _current.exchange, _current.names = exchange, self._names
        try:
            return cast(
                Answer, self.send(request, True, verify=self._verify, proxies=self._proxies)
            )
        except BaseException:
            exchange.close()  # urllib3 does not close the socket if it refuses a head
            raise
        finally:
            _current.exchange = None
