"""A provider behind HTTP: an address that speaks a dialect."""

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
from functools import partial
from typing import Any, cast

import requests
import urllib3.exceptions
from requests import PreparedRequest

from ..config.schema import Secret
from ..config.settings import Timeouts
from ..dialects import Dialect
from ..dialects.parameters import Unsaid
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
from .chunked import decoded, pieces
from .transport import READ_SIZE, Adapter, Answer, Exchange

MAX_RESPONSE = 32 * 1024 * 1024  # decoded bytes of one response
MAX_STREAM = 4  # times as much in one stream
HEARTBEAT_SECONDS = 10.0  # the longest silence of a stream before a heartbeat goes to the client
DRAIN_SECONDS = 0.02  # the longest wait for the end of a body, to keep its connection


class HTTPProvider(Provider):
    """An address that speaks a dialect."""

    any_model = True  # a vendor has more models than anybody lists

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
        self.lacks = lacks or {}  # by model: tools, images, structured output, embeddings
        self.models = tuple(models)
        self.dialect = load_dialect(dialect) if isinstance(dialect, str) else dialect
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
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._adapter = partial(Adapter, verify=ca or True, proxies=proxies)
        self._max_response = max_response
        self._adapters: dict[int, Adapter] = {}  # by process: a fork shares no connection

    def serves(self, model: str) -> bool:
        """Whether *model* looks like one of this vendor's own."""
        pattern = self._pattern
        return pattern is not None and len(model) < 200 and pattern.match(model) is not None

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        """Return the answer; raise ProviderError."""
        request = self._own(request)
        prepared = self._prepared(request, stream=False)
        with self._guarded():
            data = self._read(self._send(prepared, Exchange(deadline, self.timeouts)))
            return self.dialect.decode_response(data, request)

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        """Yield the chunks as they come; raise ProviderError, also after some of them.

        The call's deadline ends with the first content; from there on the stream has a total of
        its own. The idle limit counts from the first byte of the body.
        """
        request = self._own(request)
        prepared = self._prepared(request, stream=True)
        exchange = Exchange(deadline, self.timeouts)
        with self._guarded():
            answer = self._send(prepared, exchange)
            try:
                body = self._body(answer, exchange)
                chunks = self._chunks(answer, body, request)
                for chunk in chunks:
                    if chunk.has_content:
                        exchange.deadline = Deadline(self.timeouts.total)
                        yield chunk
                        break
                    yield chunk
                yield from chunks
                if exchange.unread:  # read the end of the body: its connection can serve again
                    exchange.deadline = Deadline(DRAIN_SECONDS)
                    with contextlib.suppress(*FOREIGN):
                        for _ in body:
                            pass
            finally:
                answer.raw.close()  # a stream that was left early must stop costing money at once

    def unsaid(self, request: InferRequest, model: str) -> Unsaid:
        """Return what of the request the model cannot be told, for planning."""
        return self.dialect.unsaid(request, model)

    def close(self) -> None:
        """Close this process's idle connections."""
        adapter = self._adapters.pop(os.getpid(), None)
        if adapter is not None:
            adapter.close()

    def _own(self, request: InferRequest) -> InferRequest:
        model = self.models[0] if request.model in ("", "auto") and self.models else request.model
        if (request.provider, request.model) == (self.name, model):
            return request
        return replace(request, provider=self.name, model=model)

    def _prepared(self, request: InferRequest, *, stream: bool) -> PreparedRequest:
        path = self.dialect.path(request, stream=stream)
        try:
            body = self.dialect.encode_request(request, stream=stream)
        except RequestError as error:
            error.elsewhere = True  # another target may have another format
            raise
        except (ValueError, TypeError) as error:
            raise RequestError(f"the request cannot be written as JSON: {error}") from None
        headers = {
            **self._headers,
            **self.dialect.headers(request),
            "Content-Length": str(len(body)),
            "Accept-Encoding": "identity" if stream else "gzip, deflate",
        }
        prepared = PreparedRequest()
        prepared.method, prepared.body, prepared.hooks = "POST", body, {}
        prepared.url = self._base_url + path
        if self._query:
            prepared.url += ("&" if "?" in path else "?") + self._query
        prepared.headers = cast(Any, headers)  # a case-insensitive copy costs more than the JSON
        return prepared

    def _send(self, prepared: PreparedRequest, exchange: Exchange) -> Answer:
        """Return a good answer, its head read; raise the error that another one stands for."""
        process = os.getpid()
        adapter = self._adapters.get(process) or self._adapters.setdefault(process, self._adapter())
        try:
            answer = adapter.post(prepared, exchange)
        except ValueError as error:
            if isinstance(error, FOREIGN):
                raise
            raise ProviderUnavailable("no connection to the provider") from error
        if not 200 <= answer.status_code < 300:
            data = b"" if 300 <= answer.status_code < 400 else self._read(answer)
            answer.raw.close()
            raise self.dialect.decode_error(answer.status_code, answer.headers, data)
        return answer

    def _read(self, answer: Answer) -> bytes:
        """Return the whole body, decoded; raise ProviderUnavailable if it is too long."""
        raw = answer.raw
        length = raw.length_remaining
        if length is not None and length <= self._max_response and _is_plain(answer):
            return bytes(raw.read(decode_content=False))  # the usual answer, in one go
        data = bytearray()
        while piece := raw.read1(READ_SIZE, decode_content=True):
            data += piece
            if len(data) > self._max_response:
                raw.close()
                raise ProviderUnavailable("the provider's answer exceeds the size limit")
        return bytes(data)

    def _body(self, answer: Answer, exchange: Exchange) -> Iterator[bytes | None]:
        """Return the body as it comes, with a None for each long silence."""
        if exchange.reader is None:  # a test double for requests has no socket
            return iter(answer.raw.stream(READ_SIZE, decode_content=True))
        body = pieces(exchange, answer.raw, HEARTBEAT_SECONDS)
        return body if _is_plain(answer) else decoded(body, answer.headers["content-encoding"])

    def _chunks(
        self, answer: Answer, body: Iterator[bytes | None], request: InferRequest
    ) -> Iterator[Chunk]:
        if "event-stream" in answer.headers.get("content-type", "").lower():
            return self.dialect.decode_events(self._events(body), request)
        return self.dialect.decode_whole(self._read(answer), request)

    def _events(self, body: Iterator[bytes | None]) -> Iterator[Event | None]:
        """Yield the events of a body, and None when none has come for a while."""
        parser, size, last = Parser(), 0, time.monotonic()
        for data in body:
            if data is None:
                yield None
                continue
            size += len(data)
            if size > self._max_response * MAX_STREAM:
                raise ValueError("a stream without end")
            if events := parser.feed(data):
                yield from events
                last = time.monotonic()
            elif time.monotonic() - last > HEARTBEAT_SECONDS:  # only comments, or a dripped event
                yield None
                last = time.monotonic()
        yield from parser.end()

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Turn exceptions of libraries and dialects into ours, and redact ours."""
        try:
            yield
        except ProviderError as error:
            self.redact(error)
            raise
        except FOREIGN as error:
            raise mapped(error) from error
        except _NONSENSE as error:
            raise ProviderUnavailable("the provider's answer could not be understood") from error

    def redact(self, error: ProviderError) -> None:
        """Remove keys and addresses from a message that may hold the vendor's own words."""
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


_SECRETS = re.compile(
    r"https?://[^\s\"'<>]+|\bBearer\s+\S+|\bAIza[\w-]{10,}|[\w-]*\*{3,}[\w-]*"
    r"|\b(sk|rk|pk|gsk|xai|pplx|hf|nvapi|csk|fw|r8|key|tok)[-_][\w.-]{8,}",
    re.I,
)


def load_dialect(name: str) -> Dialect:
    """Return the vendor's side of a dialect: its package's `upstream`, or a part of it."""
    package = "openai" if name == "azure" else name
    module = importlib.import_module(f"infermux.dialects.{package}.upstream")
    return cast(Dialect, module.AZURE if name == "azure" else module)


def _is_plain(answer: Answer) -> bool:
    return "content-encoding" not in answer.headers


# -- one place for every exception of a library --

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
    """Return our error for one of a library, without its words."""
    refused = isinstance(error, urllib3.exceptions.NewConnectionError)  # there a kind of timeout
    if isinstance(error, _TIMEOUTS) and not refused:
        return ProviderTimeout("the provider did not answer in time")
    if isinstance(error, _TLS):
        failed = ProviderUnavailable("no trusted connection to the provider")
        failed.retryable = False  # a certificate does not heal within a call
        return failed
    if refused or isinstance(error, requests.exceptions.ConnectionError):
        return ProviderUnavailable("no connection to the provider")
    return ProviderUnavailable("the connection to the provider broke")
