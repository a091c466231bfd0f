"""A provider behind HTTP: all transport, and no wire format, stands here.

The only door to requests and urllib3. Every read of a socket, of a header as of a body, is bounded
by what is left of the call's deadline: a vendor that drips bytes cannot hold a thread longer than
one that is silent.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import os
import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import requests
import urllib3.exceptions

from ..config.schema import Secret
from ..dialects import Dialect
from ..errors import (
    ProviderError,
    ProviderModelNotFound,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
)
from ..protocol import InferRequest, InferResponse
from ..protocol.sse import Event, Parser
from ..types import Chunk, Deadline
from .base import Provider
from .chunked import pieces
from .pool import Adapter
from .wire import Exchange, Timeouts, current

__all__ = ["FOREIGN", "HTTPProvider", "Timeouts", "mapped"]

MAX_RESPONSE = (
    32 * 1024 * 1024
)  # decoded bytes of one answer, or of one stream's events read at a time
HEARTBEAT_SECONDS = 10.0  # how long a stream may be silent before a sign of life goes to the client
DRAIN_SECONDS = 0.02  # how long the end of a finished stream is waited for, to keep its connection
_READ = 65536


class HTTPProvider(Provider):
    """An address that speaks a dialect."""

    def __init__(
        self,
        name: str,
        *,
        base_url: str,
        dialect: str | Dialect = "openai",
        api_key: Secret | str | None = None,
        models: Sequence[str] = (),
        pattern: str = "",
        timeouts: Timeouts = Timeouts(),
        headers: Mapping[str, str] | None = None,
        proxy: str | None = None,
        ca: str | None = None,
        max_response: int = MAX_RESPONSE,
        vendor: str = "",
        lacks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.vendor = vendor or name  # in the price table
        self.lacks = (
            lacks or {}
        )  # by model: what it cannot do, of tools, images, structured output, embeddings
        self.models = tuple(models)
        self.dialect = _dialect(dialect) if isinstance(dialect, str) else dialect
        self.timeouts = timeouts
        address, _, self._query = base_url.partition("?")
        self._base_url = address.rstrip("/")
        self._host = address.partition("://")[2].partition("/")[0]
        self._key = Secret(api_key) if isinstance(api_key, str) else api_key
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": "infermux",
            **(headers or {}),
            **(self.dialect.auth(self._key.reveal()) if self._key else {}),
        }
        self._pattern = re.compile(pattern) if pattern else None
        self._proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._verify: bool | str = ca or True
        self._max_response = max_response
        self._adapters: dict[int, Adapter] = {}

    any_model = (
        True  # a vendor has more models than anybody lists: PROVIDER/MODEL asks for each of them
    )

    def serves(self, model: str) -> bool:
        """Whether *model* looks like one of this vendor's own."""
        return (
            self._pattern is not None
            and len(model) < 200
            and self._pattern.match(model) is not None
        )

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        """Return the answer; raise ProviderError."""
        request = self._own(request)
        prepared = self._prepared(request, stream=False)
        with _foreign(self):
            data = self._read(self._send(prepared, Exchange(deadline, self.timeouts)))
        with _sense(self):
            return self.dialect.decode_response(data, request)

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        """Yield the chunks as they come; raise ProviderError, also in the middle.

        Up to the first content the call's deadline holds; from there on the stream has a total and
        an idle limit of its own.
        """
        request = self._own(request)
        prepared = self._prepared(request, stream=True)
        exchange = Exchange(deadline, self.timeouts)
        with _foreign(self), _sense(self):
            response = self._send(prepared, exchange)
            try:
                body = self._pieces(response, exchange)
                chunks = self._chunks(response, body, exchange, request)
                for chunk in chunks:
                    if chunk.has_content:
                        exchange.limit, exchange.deadline = (
                            self.timeouts.idle,
                            Deadline(self.timeouts.total),
                        )
                        yield chunk
                        break
                    yield chunk
                for chunk in chunks:
                    yield chunk._replace(more=True) if exchange.more else chunk
                if exchange.live:
                    exchange.limit = DRAIN_SECONDS
                    with contextlib.suppress(
                        *FOREIGN
                    ):  # the end of the body, so that its connection can serve again
                        for _ in body:
                            pass
            finally:
                # a stream that was left in the middle must stop costing money at once
                response.raw.close()

    def _chunks(
        self,
        response: requests.Response,
        body: Iterator[bytes | None],
        exchange: Exchange,
        request: InferRequest,
    ) -> Iterator[Chunk]:
        if "event-stream" in response.headers.get("content-type", "").lower():
            return self.dialect.decode_events(self._events(body, exchange), request)
        return self.dialect.decode_whole(self._read(response), request)

    def close(self) -> None:
        """Close this process's idle connections."""
        adapter = self._adapters.pop(os.getpid(), None)
        if adapter is not None:
            adapter.close()

    def _own(self, request: InferRequest) -> InferRequest:
        model = self.models[0] if request.model in ("", "auto") and self.models else request.model
        return (
            request
            if (request.provider, request.model) == (self.name, model)
            else replace(request, provider=self.name, model=model)
        )

    def _send(self, prepared: requests.PreparedRequest, exchange: Exchange) -> requests.Response:
        try:
            response = self._post(prepared, exchange)
        except requests.exceptions.ConnectionError:
            if not exchange.stale:
                raise
            exchange.fresh = (
                True  # the vendor had hung up on a kept connection before it saw the request
            )
            response = self._post(prepared, exchange)
        if not 200 <= response.status_code < 300:
            data = b"" if 300 <= response.status_code < 400 else self._read(response)
            response.raw.close()
            error = self.dialect.decode_error(response.status_code, response.headers, data)
            self.redact(error)
            raise error
        return response

    def _prepared(self, request: InferRequest, *, stream: bool) -> requests.PreparedRequest:
        url = self._url(self.dialect.path(request, stream=stream))
        try:
            body = self.dialect.encode_request(request, stream=stream, drop=request.dropped)
        except (ValueError, TypeError) as error:
            raise RequestError(f"the request cannot be written as JSON: {error}") from None
        prepared = requests.PreparedRequest()
        prepared.method, prepared.body, prepared.hooks = "POST", body, {}
        prepared.url = url
        headers = (
            self._headers
            | self.dialect.headers(request)
            | {
                "Content-Length": str(len(body)),
                "Accept-Encoding": "identity" if stream else "gzip, deflate",
            }
        )
        prepared.headers = cast(
            Any, headers
        )  # sent as it is: a case-insensitive copy would cost more than the call's JSON
        return prepared

    def _url(self, path: str) -> str:
        return (
            f"{self._base_url}{path}{'&' if '?' in path else '?'}{self._query}"
            if self._query
            else self._base_url + path
        )

    def _post(self, prepared: requests.PreparedRequest, exchange: Exchange) -> requests.Response:
        adapter = self._adapters.get(os.getpid()) or self._adapters.setdefault(
            os.getpid(), Adapter()
        )
        current.exchange = exchange
        try:
            return adapter.send(
                prepared,
                stream=True,
                timeout=exchange.timeouts(),
                verify=self._verify,
                proxies=self._proxies,
            )
        except BaseException as error:
            exchange.close()  # urllib3 forgets the socket under an answer whose head it refuses
            if isinstance(error, ValueError) and not isinstance(error, FOREIGN):
                raise ProviderUnavailable("no connection to the provider") from error
            raise
        finally:
            current.exchange = None

    def _read(self, response: requests.Response) -> bytes:
        """Return the whole body, decoded and bounded."""
        length = response.raw.length_remaining
        if (
            length is not None
            and length <= self._max_response
            and "content-encoding" not in response.headers
        ):
            whole: bytes = response.raw.read(decode_content=False)  # the usual answer, in one go
            return whole
        data = bytearray()
        while piece := response.raw.read1(_READ, decode_content=True):
            data += piece
            if len(data) > self._max_response:
                response.raw.close()
                raise ProviderUnavailable("the provider's answer is longer than this service takes")
        return bytes(data)

    def _pieces(self, response: requests.Response, exchange: Exchange) -> Iterator[bytes | None]:
        """Return the body as it comes, and None wherever nothing came for a while."""
        if exchange.wire is not None and "content-encoding" not in response.headers:
            return pieces(exchange, response.raw, HEARTBEAT_SECONDS)
        exchange.chunked = "transfer-encoding" in response.headers
        return _decoded(response.raw, exchange)

    def _events(self, body: Iterator[bytes | None], exchange: Exchange) -> Iterator[Event | None]:
        """Yield the events of a body, and None wherever nothing worth passing on came for a while."""
        parser, size, last = Parser(), 0, time.monotonic()
        for data in body:
            if data is None:
                yield None
                continue
            size += len(data)
            if size > self._max_response * 4:
                raise ValueError("a stream without end")
            events = parser.feed(data)
            if events:
                latest = events.pop()
                if events:
                    exchange.more = True
                    yield from events
                    exchange.more = False
                yield latest
                last = time.monotonic()
            elif (
                time.monotonic() - last > HEARTBEAT_SECONDS
            ):  # comments only, or one event in many small pieces
                yield None
                last = time.monotonic()
        yield from parser.end()

    def redact(self, error: ProviderError) -> None:
        """Take keys and addresses out of the vendor's own words, which only the caller's own
        mistakes keep.
        """
        if isinstance(error, ProviderRejected | ProviderModelNotFound):
            error.message = self._redacted(error.message)
            error.args = (error.message,)
            error.param = self._redacted(error.param)[:100] if error.param else None

    def _redacted(self, message: str) -> str:
        if self._key and self._key.reveal():
            message = message.replace(self._key.reveal(), "[redacted]")
        for own in (self._host, self._host.rpartition(":")[0]):
            message = message.replace(own, "[redacted]") if own else message
        return _SECRETS.sub("[redacted]", message)[:600]


def _decoded(raw: Any, exchange: Exchange) -> Iterator[bytes | None]:
    """Yield a body that is compressed although nobody asked for that, or that has no socket under
    it.
    """
    data = b""
    while True:
        full = (
            len(data) >= _READ
        )  # then a decoder may hold more, for which the socket need not be asked
        if not full and raw.length_remaining != 0 and exchange.silent(HEARTBEAT_SECONDS):
            yield None
            continue
        data = raw.read1(_READ, decode_content=True)
        if not data:
            return
        yield data


_SECRETS = re.compile(
    r"https?://[^\s\"'<>]+|\bBearer\s+\S+|\bAIza[\w-]{10,}|[\w-]*\*{3,}[\w-]*"
    r"|\b(sk|rk|pk|gsk|xai|pplx|hf|nvapi|csk|fw|r8|key|tok)[-_][\w.-]{8,}",
    re.I,
)


def _dialect(name: str) -> Dialect:
    return cast(
        Dialect,
        importlib.import_module(
            f"infermux.dialects.{name}" if name == "azure" else f"infermux.dialects.{name}.upstream"
        ),
    )


# -- one place for every foreign exception ---------------------------------------------------------


class _Guard:
    """Guards what is done for one provider."""

    __slots__ = ("_provider",)

    def __init__(self, provider: HTTPProvider) -> None:
        self._provider = provider

    def __enter__(self) -> None:
        pass


class _foreign(_Guard):
    """Turns what requests, urllib3, ssl and sockets raise into our own errors, without a word of
    theirs.
    """

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FOREIGN):
            raise mapped(error) from error


class _sense(_Guard):
    """Turns what a dialect raises over an answer that makes no sense into an error of the provider;
    others lose what is secret.
    """

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ProviderError):
            self._provider.redact(error)
        elif isinstance(error, _NONSENSE) and not isinstance(error, FOREIGN):
            raise ProviderUnavailable("the provider's answer could not be understood") from error


FOREIGN = (
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    urllib3.exceptions.ProxySchemeUnsupported,
)
_NONSENSE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_TIMEOUTS = (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)
_TLS = (requests.exceptions.SSLError, urllib3.exceptions.SSLError, ssl.SSLError)


def mapped(error: BaseException) -> ProviderError:
    """Return our error for a foreign one."""
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # to urllib3 a kind of timeout
        return ProviderUnavailable("no connection to the provider")
    if isinstance(error, _TIMEOUTS):
        return ProviderTimeout("the provider did not answer in time")
    if isinstance(error, _TLS):
        failed = ProviderUnavailable("no trusted connection to the provider")
        failed.retryable = False  # a certificate does not heal within a call
        return failed
    if isinstance(error, requests.exceptions.ConnectionError):
        return ProviderUnavailable("no connection to the provider")
    return ProviderUnavailable("the connection to the provider broke")
