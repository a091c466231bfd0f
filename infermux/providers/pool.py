"""requests' adapter, and under it urllib3's pools and connections without what a call to one vendor
never needs.

Left out are retries, redirects, cookies and a search for the pool. A request goes out in one piece,
and the head of an answer is read line by line (providers/wire.py): as http.client does these two,
they cost more than everything else in a call.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
from collections.abc import Mapping
from typing import Any

import requests
import requests.adapters
import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ReadTimeoutError, SSLError

from .wire import Response, arm, current

POOL = 2048  # idle connections that are kept: more than a worker usually has threads
_TOGETHER = 65536  # bytes of a body that is copied behind its head, to go out in the same packet


class _Stack:
    """The idle connections, the last used one on top: a list does for all threads what
    queue.LifoQueue does with three locks.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._idle: list[Any] = []

    def put(self, connection: Any, block: bool = False) -> None:
        """Keep a connection, or raise queue.Full."""
        if connection is not None:  # with which urllib3 fills a new pool
            if len(self._idle) >= self._size:
                raise queue.Full
            self._idle.append(connection)

    def get(self, block: bool = False, timeout: float | None = None) -> Any:
        """Return the connection that was used last, or raise queue.Empty."""
        try:
            return self._idle.pop()
        except IndexError:
            raise queue.Empty from None


class _Lean:
    """A connection that sends a request in one piece, and notes in the exchange when it is a new
    one.
    """

    response_class: Any = Response
    _host_line = ""
    sock: Any
    timeout: Any

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]  # a mixin over urllib3's connections
        exchange = getattr(current, "exchange", None)
        if exchange is not None:
            exchange.connected = True

    def ask(
        self,
        pool: Any,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes,
        timeout: Any,
    ) -> urllib3.HTTPResponse:
        """Return the answer, of which the head is read."""
        self.timeout = timeout.connect_timeout
        if self.sock is None:
            self.connect()
        head = self._head(method, url, headers)
        parts = [head + body] if len(body) <= _TOGETHER else [head, body]
        if len(parts) > 1 or isinstance(self.sock, ssl.SSLSocket):
            self.sock.settimeout(timeout.read_timeout)
        else:  # one call of the kernel's, which it can bound itself
            if self.sock.gettimeout() is not None:
                self.sock.settimeout(None)
            arm(self.sock, socket.SO_SNDTIMEO, timeout.read_timeout)
        for part in parts:
            self.sock.sendall(part)
        answer = Response(self.sock, method=method)
        answer.begin()
        if answer.will_close:
            self.close()  # type: ignore[attr-defined]  # the answer keeps the socket until it is read
        return urllib3.HTTPResponse(
            answer,
            answer.headers,
            answer.status,
            answer.version,
            reason=answer.reason,
            preload_content=False,
            decode_content=False,
            original_response=answer,
            pool=pool,
            connection=self,  # type: ignore[arg-type]
            request_method=method,
        )

    def _head(self, method: str, url: str, headers: Mapping[str, str]) -> bytes:
        if not self._host_line:
            host, port = self.host, self.port  # type: ignore[attr-defined]
            host = f"[{host}]" if ":" in host and not host.startswith("[") else host
            self._host_line = host if port == self.default_port else f"{host}:{port}"  # type: ignore[attr-defined]
        lines = [
            f"{method} {url} HTTP/1.1",
            f"Host: {self._host_line}",
            *[f"{name}: {headers[name]}" for name in headers],
            "",
            "",
        ]
        text = "\r\n".join(lines)
        if text.count("\n") != len(lines) - 1 or text.count("\r") != len(lines) - 1 or " " in url:
            raise ValueError(
                "a header holds the end of a line"
            )  # it would begin another header, or another request
        return text.encode("latin-1")


class _Connection(_Lean, HTTPConnection):
    pass


class _TLSConnection(_Lean, HTTPSConnection):
    pass


class _Kept:
    """A pool that hands out a kept connection, unless the exchange wants a fresh one, and makes one
    attempt with it.
    """

    QueueCls: Any = _Stack
    proxy: Any

    def _get_conn(self, timeout: float | None = None) -> Any:
        exchange = getattr(current, "exchange", None)
        if exchange is None or not exchange.fresh:
            try:
                kept = self.pool.get()  # type: ignore[attr-defined]
            except queue.Empty:
                kept = None
            if kept is not None:
                if kept.sock is not None and _readable(kept.sock):
                    kept.close()  # nobody has asked for anything: the vendor has hung up
                return kept
        return self._new_conn()  # type: ignore[attr-defined]

    def urlopen(
        self, method: str, url: str, body: Any = None, headers: Any = None, **options: Any
    ) -> Any:
        if self.proxy is not None or not isinstance(body, bytes) or not url.isascii():
            return super().urlopen(method, url, body, headers, **options)  # type: ignore[misc]
        connection = self._get_conn()
        try:
            return connection.ask(self, method, url, headers, body, options["timeout"])
        except BaseException as error:
            connection.close()
            if isinstance(error, TimeoutError | BlockingIOError):
                raise ReadTimeoutError(self, url, "no answer in time") from error  # type: ignore[arg-type]
            if isinstance(error, ssl.SSLError):
                raise SSLError(error) from error
            raise


def _readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


class _Pool(_Kept, urllib3.HTTPConnectionPool):  # type: ignore[misc]  # what urlopen is not told, it does not do
    ConnectionCls = _Connection


class _TLSPool(_Kept, urllib3.HTTPSConnectionPool):  # type: ignore[misc]
    ConnectionCls = _TLSConnection


_POOLS = {"http": _Pool, "https": _TLSPool}


class _Response(requests.Response):
    """An answer without a jar for cookies, which is never opened, and costs more than all the rest
    of it.
    """

    def __init__(self) -> None:
        self._content: Any = False
        self._content_consumed = False


class Adapter(requests.adapters.HTTPAdapter):
    """The connections of one process to one provider."""

    def __init__(self) -> None:
        super().__init__(pool_connections=4, pool_maxsize=POOL, max_retries=0)
        self.poolmanager.pool_classes_by_scheme = _POOLS
        self._pool: Any = None

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def get_connection_with_tls_context(
        self, request: Any, verify: Any, proxies: Any = None, cert: Any = None
    ) -> Any:
        if (
            self._pool is None
        ):  # one provider, one address: one pool, with its certificates from now on
            pool = super().get_connection_with_tls_context(request, verify, proxies, cert)
            super().cert_verify(pool, request.url, verify, cert)  # type: ignore[no-untyped-call]
            self._pool = pool
        return self._pool

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Do nothing: a pool gets its certificates once."""

    def request_url(self, request: requests.PreparedRequest, proxies: Any) -> str:
        if proxies:
            return super().request_url(request, proxies)
        url = request.url or ""
        return url[
            url.find("/", len("https://")) :
        ]  # requests splits it four times, and finds the same

    def build_response(self, req: requests.PreparedRequest, resp: Any) -> requests.Response:
        response = _Response()
        response.status_code, response.headers, response.raw, response.request = (
            resp.status,
            resp.headers,
            resp,
            req,
        )
        return response
