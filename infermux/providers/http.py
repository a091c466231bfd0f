"""HTTPProvider: calls a vendor over HTTP, in one of the dialects."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

from requests import PreparedRequest

from ..config.schema import Secret, url
from ..config.settings import Timeouts
from ..dialects import Dialect, retry_after
from ..dialects import obj as as_object
from ..dialects.blocks import whole
from ..dialects.calls import fitted
from ..dialects.fitting import without_reasoning
from ..dialects.limits import used_up
from ..dialects.parameters import Unsaid
from ..dialects.responses import RESOURCE, STANDARD, Support
from ..dialects.settled import placed, settled
from ..errors import (
    ProviderAuthError,
    ProviderError,
    ProviderModelNotFound,
    ProviderRejected,
    ProviderUnavailable,
    RequestError,
)
from ..protocol import InferRequest, InferResponse, strict_json
from ..protocol.sse import Event, Parser
from ..types import JSON, Chunk, Deadline
from . import passing
from .base import Provider, load_dialect
from .bodies import LARGE, check_size, completed
from .chunked import decoded, length, pieces
from .credentials import Credentials, bearer_token, is_static, signing_secrets, with_revealed
from .failures import FOREIGN, Guard
from .redaction import Redactor, hosts_of
from .transport import READ_SIZE, Adapter, Answer, Exchange

MAX_RESPONSE = 32 * 1024 * 1024  # decoded bytes of one response
MAX_STREAM = 4  # times the size of one response, for one stream
HEARTBEAT_SECONDS = 10.0  # the longest silence of a stream before a heartbeat goes to the client
MAX_ERROR_BODY = 1024 * 1024  # bytes that are read of an error
MAX_SECRETS = 1000  # values of keys that are redacted
MAX_WAIT = 60.0  # seconds that any error may ask to wait for, as by the official SDKs
MAX_RESTING = 1000  # models whose used limit is remembered
DRAIN_SECONDS = 0.02  # the longest wait for the end of a body, to reuse its connection
# headers with a vendor's id of a request, the best one first
_REQUEST_IDS = (
    *("x-request-id", "request-id", "apim-request-id", "x-ms-request-id", "x-amzn-requestid"),
    *("x-goog-request-id", "x-generation-id", "cf-ray"),
)
BETA = "anthropic-beta"  # a list
_EVENT = re.compile(rb"(\xef\xbb\xbf)?\s*(data|event|id|retry)?:")  # begins a stream
_HEADERS = {"Content-Type": "application/json", "User-Agent": "infermux"}
_REQUEST_ID = re.compile(r"[\w.:/=+~-]{1,128}", re.ASCII)


class HTTPProvider(Provider):
    """A provider that is called over HTTP, in one of the dialects."""

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
        headers: Mapping[str, str | Secret] | None = None,
        proxy: str | None = None,
        ca: str | None = None,
        max_response: int = MAX_RESPONSE,
        vendor: str = "",
        unsupported: Mapping[str, Sequence[str]] | None = None,
        api: str = "auto",
        responses: Support | None = STANDARD,
        thoughtless: str = "",
        params: Mapping[str, Any] | None = None,
        auth: str = "",
        endpoints: Collection[str] | None = None,
    ) -> None:
        self.name, self.timeouts, self.models = name, timeouts, tuple(models)
        self.vendor, self.unsupported = vendor or name, unsupported or {}
        self._key = key = Secret(api_key) if isinstance(api_key, str) else api_key
        self.dialect = load_dialect(dialect, api, responses, key.seals[0] if key else "")
        self.endpoints = passing.paths(self.dialect, endpoints)  # by operation
        self._choose = getattr(self.dialect, "choose", None)
        address, _, self._query = url(base_url, f"base_url of provider {name!r}").partition("?")
        self._base_url = address.rstrip("/")
        self._set_headers(headers or {}, hosts_of(address), bearer=auth == "bearer")
        self._pattern = re.compile(pattern) if pattern else None
        self._thoughtless = re.compile(thoughtless) if thoughtless else None
        proxies = {"http": proxy, "https": proxy} if proxy else {}
        self._adapter = partial(Adapter, verify=ca or True, proxies=proxies)
        self._max_response, self.default_params = max_response, params or {}
        self.settings = base_url, vendor, api, with_revealed(headers or {})[0], params, unsupported
        self.resting: dict[str, float] = {}  # until when, by model: its limit is used up
        self._adapters: dict[int, Adapter] = {}  # by process: a fork shares no connection

    def _set_headers(
        self, headers: Mapping[str, str | Secret], hosts: Sequence[str], *, bearer: bool
    ) -> None:
        """Set what every request has; keys that change, or several, are chosen for each."""
        auth = bearer_token if bearer else self.dialect.auth
        added, self._secrets = with_revealed(headers)
        usual = {name: value for name, value in _HEADERS.items() if name.lower() not in added}
        key, static = self._key, is_static(self._key)
        own = auth(key.reveal()) if key is not None and static else {}
        self._headers = {**usual, **added, **own}
        self._beta = added.get(BETA)  # which a client's own would replace
        self._hosts = hosts
        self._redacted = Redactor(self._headers, hosts, self._secrets)
        self.credentials: Credentials | None = None
        if key is not None and not static:
            self.credentials = Credentials(self.name, key, auth, self._learn_key)

    def serves(self, model: str) -> bool:
        """Whether *model* matches the pattern of this vendor's own models."""
        pattern = self._pattern
        return pattern is not None and len(model) < 200 and pattern.match(model) is not None

    @property
    def responses(self) -> Support | None:
        """How this vendor supports Responses; None if it does not."""
        return getattr(self.dialect, "support", None)

    @property
    def responses_secrets(self) -> list[tuple[bytes, bool]]:
        """What signs the ids of what this vendor stores; see `signing_secrets`."""
        return signing_secrets(self.name, self._key, self._base_url)

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        """Return the response; raise ProviderError or RequestError."""
        request, calls = fitted(self._own(request), self._speaks)
        exchange = Exchange(deadline, self._patience(request))
        answer, dialect = self._sent(request, exchange, stream=False)
        with Guard(self, exchange):
            data = self._read(answer, exchange)
            check_size(data, exchange)
            response = dialect.decode_response(data, request)
            if (billed := getattr(dialect, "billed", None)) is not None:
                response = billed(response, answer.headers)
            self._note_id(request, exchange, response.id)
            return calls.response(response)

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        """Yield chunks as they arrive; raise RequestError, or at any time ProviderError.

        The call's deadline applies up to the first content; then timeouts.total applies to the
        rest. The idle limit applies from the first byte of the body.
        """
        request, calls = fitted(self._own(request), self._speaks)
        exchange = Exchange(deadline, timeouts := self._patience(request))
        answer, dialect = self._sent(request, exchange, stream=True)
        with Guard(self, exchange):
            try:
                body = self._body(answer, exchange)
                chunks = calls.chunks(self._chunks(answer, body, request, exchange, dialect))
                for chunk in chunks:
                    self._note_id(request, exchange, chunk.id)
                    if chunk.has_content:
                        exchange.deadline = Deadline(timeouts.total)
                        yield chunk
                        break
                    yield chunk
                yield from chunks
                reader = exchange.reader
                if reader and not reader.buffered.closed:  # its connection can serve again
                    exchange.deadline = Deadline(DRAIN_SECONDS)
                    with suppress(*FOREIGN):
                        for _ in body:
                            pass
            finally:
                answer.raw.close()  # an abandoned stream must stop costing money at once

    def unsaid(self, request: InferRequest, model: str) -> Unsaid:
        """Return what of the request cannot be expressed for *model*, for planning."""
        why = request.passed is not None and passing.lacks(self, request)
        return Unsaid(why) if why else self.dialect.unsaid(request, model)

    def close(self) -> None:
        if (adapter := self._adapters.pop(os.getpid(), None)) is not None:
            adapter.close()

    def body_of(self, request: InferRequest) -> tuple[JSON, str]:
        """Return the body that is sent for *request*, {} if none can be, and its format."""
        request = self._own(request)
        dialect = self._speaks(request)
        own, body = request.body_in(dialect.NAME), JSON()
        if own is not None and not request.cache_key:  # it is sent with no other limits
            body = as_object(own.value)
        else:
            with suppress(RequestError, ValueError, TypeError):
                sent = dialect.encode_request(request, stream=False)
                more = request.forced.params if request.forced is not None else {}
                body = as_object(strict_json.lenient(sent)) | more
        return body, dialect.NAME

    def _own(self, request: InferRequest) -> InferRequest:
        model = self.models[0] if request.model in ("", "auto") and self.models else request.model
        if (request.provider, request.model) != (self.name, model):
            request = replace(request, provider=self.name, model=model)
        if self.default_params and request.passed is None:
            request = settled(request, self.default_params, {})
        if request.forced is not None:
            request = passing.unforced(request) or placed(request, self._speaks(request))
        none = self._thoughtless  # the pattern of models that have no reasoning
        if "reasoning" in self.unsupported.get(model, ()) or (none and none.match(model[:200])):
            return without_reasoning(request)
        return request

    def _patience(self, request: InferRequest) -> Timeouts:
        own = request.timeouts
        return self.timeouts if own is None else replace(self.timeouts, **own)

    def _sent(
        self, request: InferRequest, exchange: Exchange, *, stream: bool
    ) -> tuple[Answer, Dialect]:
        """Send a request, again if the vendor asks for its other dialect; return the answer."""
        learn = getattr(self.dialect, "learn", None)
        while True:
            dialect = self._speaks(request)
            prepared = self._prepared(request, dialect, stream=stream)
            try:
                with Guard(self, exchange):
                    return self._post(prepared, exchange, request), dialect
            except ProviderError as error:
                if learn is None or not learn(request, error):
                    raise
                learn = None

    def _speaks(self, request: InferRequest) -> Dialect:
        """Return the dialect in which to send a request, for a vendor with two of them."""
        choose = self._choose
        return self.dialect if choose is None else choose(request)

    def _prepared(
        self, request: InferRequest, dialect: Dialect, *, stream: bool
    ) -> PreparedRequest:
        path = dialect.path(request, stream=stream)
        try:
            body = dialect.encode_request(request, stream=stream)
            if (request.forced, request.most_output, request.most_uses) != (None, None, None):
                body = completed(body, request, dialect.NAME)
        except RequestError as error:
            error.elsewhere = True  # another target may have another format
            raise
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # the caller's values
            raise RequestError(f"the provider's format cannot say this: {error}") from None
        headers = {
            **self._headers,
            **dialect.headers(request),
            "Content-Length": str(len(body)),
            "Accept-Encoding": "identity" if stream else "gzip, deflate",
        }
        if self._beta is not None and headers[BETA] != self._beta:
            headers[BETA] = f"{self._beta},{headers[BETA]}"
        prepared = PreparedRequest()
        prepared.method = str(request.params["method"]) if request.op == RESOURCE else "POST"
        prepared.body, prepared.hooks = body, {}
        prepared.url = self._base_url + path
        if self._query and "api-version=" not in path:
            prepared.url += ("&" if "?" in path else "?") + self._query
        prepared.headers = cast(Any, headers)  # a case-insensitive copy costs more than the JSON
        if request.passed is not None:
            passing.adapt(prepared, request, self.endpoints)
        return prepared

    def _post(self, prepared: PreparedRequest, exchange: Exchange, request: InferRequest) -> Answer:
        """Return the response to a request; where keys change or are several, with one of them."""
        post, keys = partial(self._send, prepared, exchange, request), self.credentials
        if keys is None:
            return post()
        answer = keys.send(prepared, exchange, post, request)
        if self.resting and not keys.rests():
            self.resting.pop(request.model, None)  # another key is free
        return answer

    def _learn_key(self, value: str) -> None:
        self._secrets = [*self._secrets[-MAX_SECRETS:], value]
        self._redacted = Redactor(self._headers, self._hosts, self._secrets)

    def _send(self, prepared: PreparedRequest, exchange: Exchange, request: InferRequest) -> Answer:
        """Return the response, read up to its body; raise its error if the status is not 2xx."""
        process = os.getpid()
        if request.passed is not None:
            passing.begin(prepared, exchange, request)
        adapter = self._adapters.get(process) or self._adapters.setdefault(process, self._adapter())
        try:
            answer = adapter.post(prepared, exchange)
        except ValueError as error:
            if not isinstance(error, FOREIGN):
                raise ProviderUnavailable("no connection to the provider") from error
            raise
        if request.upstream_ids is not None and (ident := self._upstream_id(answer.headers)):
            request.upstream_ids.append(ident)
        if seconds := used_up(answer.headers):
            if len(self.resting) >= MAX_RESTING:
                self.resting.clear()  # callers can name any number of models
            self.resting[request.model] = time.monotonic() + seconds
        if not 200 <= answer.status_code < 300:
            data = b""
            if answer.status_code >= 400:
                with suppress(ProviderUnavailable):  # too long: the status is enough
                    data = self._read(answer, exchange, MAX_ERROR_BODY)
            answer.raw.close()
            raise self._failure(answer, data)  # a name for it here would be a cycle with this frame
        return answer

    def _upstream_id(self, headers: Mapping[str, str]) -> str:
        """Return the vendor's own id of a request, or "" if it has none that may be shown."""
        found = next((headers[name] for name in _REQUEST_IDS if name in headers), "")
        return found if _REQUEST_ID.fullmatch(found) and not self._redacted.names_key(found) else ""

    def _note_id(self, request: InferRequest, exchange: Exchange, ident: str | None) -> None:
        """Note the key that made what an answer's id means; the id, if a request has no other."""
        if exchange.key is not None and ident and self.credentials is not None:
            self.credentials.note(exchange.key, ident)
        if request.upstream_ids != [] or not getattr(self.dialect, "HAS_NO_REQUEST_IDS", False):
            return
        if ident and (found := self._upstream_id({"x-request-id": ident})):
            request.upstream_ids.append(found)

    def _failure(self, answer: Answer, data: bytes) -> ProviderError:
        error = self.dialect.decode_error(answer.status_code, answer.headers, data)
        error.upstream_status = answer.status_code
        if (said := answer.headers.get("x-should-retry")) in ("true", "false"):
            error.retryable = said == "true"
        wait = retry_after(answer.headers) if error.failover else None  # not the caller's fault
        if error.retry_after is None and wait and wait <= MAX_WAIT:
            error.retry_after = wait
        return error

    def _read(
        self,
        answer: Answer,
        exchange: Exchange,
        limit: int | None = None,
        body: Iterator[bytes | None] | None = None,
    ) -> bytes:
        """Return the whole body, decoded; raise ProviderUnavailable if it is too long."""
        raw, most = answer.raw, limit or self._max_response
        size = length(raw) if body is None else None
        if size is not None and size <= most and "content-encoding" not in answer.headers:
            return bytes(raw.read(decode_content=False))  # the usual answer, in one go
        data = bytearray()
        try:
            for piece in body or self._body(answer, exchange):
                data += piece or b""
                if len(data) > most:
                    raise ProviderUnavailable("the provider's answer exceeds the size limit")
                if exchange.deadline.expired:  # many small pieces may have come at once
                    raise TimeoutError("no time is left")
        except BaseException:
            raw.close()
            raise
        return bytes(data)

    def _body(self, answer: Answer, exchange: Exchange) -> Iterator[bytes | None]:
        """Yield the body as it arrives, and None after each long silence."""
        if exchange.reader is None:  # a test double for requests has no socket
            return iter(answer.raw.stream(READ_SIZE, decode_content=True))
        body = pieces(exchange, answer.raw, HEARTBEAT_SECONDS)
        return decoded(body, answer.headers.get("content-encoding", ""), exchange)

    def _chunks(
        self,
        answer: Answer,
        body: Iterator[bytes | None],
        request: InferRequest,
        exchange: Exchange,
        dialect: Dialect,
    ) -> Iterator[Chunk]:
        if request.passed is not None:
            return passing.chunks(answer, body, request, dialect)
        parser: Any = Parser
        if "event-stream" not in answer.headers.get("content-type", "").lower():
            parser = getattr(dialect, "WITHOUT_SSE", None)
            if parser is None:  # some servers send events as text/plain, or without a type
                first = next(filter(None, body), b"")
                body = chain([first], body)
                parser = Parser if _EVENT.match(first) else None
        if parser is not None:
            chunks = dialect.decode_events(self._events(body, exchange, parser()), request)
            billed = getattr(dialect, "billed", None)
            return chunks if billed is None else (billed(each, answer.headers) for each in chunks)
        exchange.max_silence = silence = exchange.timeouts.first_byte
        exchange.timeouts = replace(exchange.timeouts, idle=silence)
        data = self._read(answer, exchange, body=body)
        check_size(data, exchange)
        return whole(dialect.decode_response(data, request))

    def _events(
        self, body: Iterator[bytes | None], exchange: Exchange, parser: Parser
    ) -> Iterator[Event | None]:
        """Yield the events of a body, and None after a while without one."""
        size, last, told = 0, time.monotonic(), 0
        for data in body:
            if data is None:
                yield None
                continue
            size += len(data)
            if size > self._max_response * MAX_STREAM:
                raise ValueError("a stream without end")
            if events := parser.feed(data):
                if size - told > LARGE:
                    for event in events:
                        check_size(event.data, exchange)
                told = size
                yield from events
                last = time.monotonic()
            elif time.monotonic() - last > HEARTBEAT_SECONDS:  # comments, or an unfinished event
                yield None
                last = time.monotonic()
        yield from parser.end()

    def redact(self, error: ProviderError) -> None:
        """Remove keys and addresses from the vendor's texts in *error*."""
        if isinstance(error, ProviderRejected | ProviderModelNotFound):
            error.message = self._redacted(error.message)
            error.args = (error.message,)
            error.param = self._redacted(error.param)[:100] if error.param else None
        else:  # our own words
            error.cause = error.cause or error.message
        if error.native is not None:
            error.native = self._redacted.native(error.native)
        if isinstance(error, ProviderAuthError) and not error.hint:
            error.hint = "no api_key is configured"
            if self._key is not None:
                error.hint = f"does {self._key.source or 'its api_key'} hold a valid key?"
