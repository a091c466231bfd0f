"""The MIST protocol, version 1, compatible with mist-go: envelopes, requests, responses, spans.

All of InferMux uses `InferRequest` and `InferResponse`; dialects translate to and from them.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from decimal import Decimal
from itertools import chain, zip_longest
from operator import attrgetter
from typing import Any, NamedTuple, Self

from ..errors import ProtocolError, RequestError, close_to, shown
from ..types import JSON, Usage, after_fork
from . import strict_json
from .strict_json import Document

VERSION = "1"
MAX_MESSAGE = 10 * 1024 * 1024  # bytes of one message
INFER_REQUEST, INFER_RESPONSE = "infer.request", "infer.response"
TRACE_SPAN = "trace.span"
CHAT = "chat"
MAX_NAME = 512  # characters of a model or provider: names are keys of caches

_MAY_BE_EMPTY = ("assistant", "function")  # roles of messages that need no content
_FIELDS = frozenset({"model", "messages", "stream"})  # of a request: params may not repeat them
_MEMBERS = _FIELDS | {"provider", "params", "meta"}
_MAX_FOREIGN = 16  # unknown names in a request, as each is compared with all known ones
# Options of vendors' SDKs that would redirect a call or replace its credentials.
_FORBIDDEN = frozenset(("api_base", "api_key", "api_version", "base_url", "headers"))
_FORBIDDEN |= {"extra_headers", "extra_body", "extra_query"}
_MARK = os.urandom(16).hex()  # stands for a number; being random, it is in no text
_PLAIN = (str, int)
_ESCAPES = [(mark, f"\\u{ord(mark):04x}") for mark in "<>&\u2028\u2029"]


def encode(value: object) -> bytes:
    """Return JSON as Go's encoding/json writes it, so that a relay in Go keeps its checksum."""
    numbers: list[str] = []
    text = strict_json.dumps(_marked(value, numbers))
    if numbers:
        parts = text.split(f'"{_MARK}"')
        text = "".join(chain(*zip_longest(parts, numbers, fillvalue="")))
    for mark, escape in _ESCAPES:
        if mark in text:
            text = text.replace(mark, escape)
    return text.encode("utf-8", "replace")


def _marked(value: object, numbers: list[str]) -> object:
    """Return *value* with marks for floats that Go writes differently; add those to *numbers*."""
    if isinstance(value, dict):
        return {
            name: each if type(each) in _PLAIN else _marked(each, numbers)
            for name, each in value.items()
        }
    if isinstance(value, list):
        return [_marked(each, numbers) for each in value]
    if not isinstance(value, float):
        return value
    text = repr(value)
    if 1e-6 <= abs(value or 1) < 1e21:
        number = (f"{Decimal(text):f}" if "e" in text else text).removesuffix(".0")
    else:
        number = text.replace("e-0", "e-")
    if number == text:
        return value
    numbers.append(number)
    return _MARK


def new_id() -> str:
    """Return 128 random bits as 32 hex digits; 64 are made at a time, to save system calls."""
    try:
        return _ids.pop()
    except IndexError:
        digits = os.urandom(64 * 16).hex()
        _ids.extend(digits[at : at + 32] for at in range(32, len(digits), 32))
        return digits[:32]


_ids: list[str] = []
after_fork(_ids.clear)  # or two processes would share ids


@dataclass(frozen=True, slots=True)
class Message:
    """A MIST envelope; `payload` is the JSON exactly as on the wire."""

    source: str
    type: str
    payload: bytes
    id: str = field(default_factory=new_id)
    timestamp_ns: int = field(default_factory=time.time_ns)
    checksum: int = 0  # CRC-32 of the payload's bytes; 0: none
    version: str = VERSION
    data: Any = None  # the decoded payload of a message that was read

    @classmethod
    def wrap(cls, source: str, type: str, payload: object, *, checksum: bool = False) -> Self:
        data = encode(payload)
        return cls(source, type, data, checksum=zlib.crc32(data) if checksum else 0)

    @classmethod
    def read(cls, data: bytes) -> Self:
        """Return the message in *data*; raise ProtocolError with the reason if it is invalid."""
        if len(data) > MAX_MESSAGE:
            raise ProtocolError(f"message is longer than {MAX_MESSAGE} bytes")
        try:
            envelope = strict_json.document(data, what="message")
        except ValueError as error:
            raise ProtocolError(str(error)) from None
        fields = {name: _text(envelope.value, name) for name in ("version", "id", "source", "type")}
        if fields["version"] != VERSION:
            raise ProtocolError(
                f"unsupported version {shown(fields['version'])}; this is version {VERSION!r}"
            )
        if "payload" not in envelope.value:
            raise ProtocolError("payload is missing")
        stamp = _integer(envelope.value, "timestamp_ns", least=-(2**63), most=2**63 - 1)
        checksum = _integer(envelope.value, "checksum", least=0, most=2**32 - 1)
        message = cls(
            payload=envelope.raw("payload").encode(),
            timestamp_ns=stamp,
            checksum=checksum,
            data=envelope.value["payload"],
            **fields,
        )
        if checksum and checksum != zlib.crc32(message.payload):
            raise ProtocolError(
                f"checksum {checksum} does not match the payload's, {zlib.crc32(message.payload)}"
            )
        return message

    def to_bytes(self) -> bytes:
        """Return the message as JSON, its fields in mist-go's order."""
        names = {"version": self.version, "id": self.id, "source": self.source, "type": self.type}
        start = encode(names | {"timestamp_ns": self.timestamp_ns})[:-1]
        end = b',"checksum":%d}' % self.checksum if self.checksum else b"}"
        return b'%s,"payload":%s%s' % (start, self.payload, end)


class Native(NamedTuple):
    """The client's own body, which a vendor of the same dialect gets."""

    dialect: str
    body: Document
    query: str | None = None  # of the address, where the dialect has options in it


def request_message(data: bytes) -> Message:
    """Return the infer.request message in *data*; raise ProtocolError."""
    message = Message.read(data)
    if message.type != INFER_REQUEST:
        raise ProtocolError(f"expected type {INFER_REQUEST}, got {shown(message.type)[1:-1]}")
    return message


# Not frozen: a frozen dataclass takes three times as long to create, and every call creates two.
@dataclass(slots=True)
class InferRequest:
    """A request to a model; messages and params have the form of OpenAI's chat completions."""

    model: str = ""
    messages: Sequence[JSON] = ()
    provider: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)
    meta: Mapping[str, str] = field(default_factory=dict)
    native: Native | None = None
    op: str = CHAT  # the operation: chat, completions, embeddings, count_tokens, …
    headers: Mapping[str, str] = field(default_factory=dict)  # the client's, of its protocol
    dropped: list[str] | None = field(default=None, compare=False)  # collects params left out
    lenient: bool = False  # whether preferences that a target cannot express are left out
    session: str = ""  # the client's name for the conversation
    cache_key: str = ""  # of the session, if the vendor is to cache the prompt
    upstream_ids: list[str] | None = field(default=None, compare=False)  # collects the vendor's
    most_output: int | None = None  # tokens that a budget can pay
    forced: Any = None  # those of the params that the configuration sets (dialects.settled)
    timeouts: Mapping[str, float] | None = None  # that the configuration sets for the name
    passed: Any = field(default=None, compare=False)  # a Passed, where the bytes pass as they are
    stays: str = ""  # digest of the session, if it stays with one of the provider's keys
    most_uses: int | None = None  # of each of the vendor's own tools, as `most_output`

    @classmethod
    def from_dict(cls, data: object, parameters: Collection[str] = ()) -> Self:
        """Return the request in an infer.request; raise RequestError naming an invalid field.

        *parameters* are the params that may also be members of the request itself.
        """
        if not isinstance(data, dict):
            raise RequestError("an infer.request must be a JSON object")
        if not data.keys() <= _MEMBERS:
            data = _placed(data, parameters)
        model, provider = data.get("model"), data.get("provider")
        request = cls(
            model="" if model is None else model,
            provider="" if provider is None else provider,
            messages=data.get("messages") or (),
            params=data.get("params") or {},
            meta=data.get("meta") or {},
        )
        for name, kind in (("messages", list), ("params", dict), ("meta", dict)):
            if data.get(name) is not None and not isinstance(data[name], kind):
                raise must_be(name, "a list" if kind is list else "an object")
        if not isinstance(data.get("stream"), bool | None):
            raise must_be("stream", "true or false")
        for name in request.params:
            if name in _FIELDS:
                raise RequestError(
                    f"params must not contain {name!r}: it is a field of the request",
                    param=f"params.{name}",
                )
        return request

    @classmethod
    def of(
        cls,
        asked: Self | str | Sequence[JSON],
        model: str,
        provider: str,
        params: Mapping[str, Any],
    ) -> Self:
        """Return the request in a prompt or in messages; raise TypeError for anything else."""
        if isinstance(asked, cls):
            if model or provider or params:
                raise TypeError("model, provider and params belong into the InferRequest")
            return asked
        messages = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        if not isinstance(messages, list | tuple) or not all(
            isinstance(each, dict) for each in messages
        ):
            raise TypeError(
                'ask with a prompt, infer("Hello", model="auto"), with a list of messages, '
                f"or with an InferRequest, not with {type(asked).__name__}"
            )
        return cls(model, messages, provider, params)

    def body_in(self, dialect: str) -> Document | None:
        """Return the client's own body if it is in *dialect*, else None."""
        native = self.native
        return native.body if native is not None and native.dialect == dialect else None

    def encode(self, body: object) -> bytes:
        """Return *body* as JSON, escaped if the client's own was ASCII: that is twice as fast."""
        if self.native is None:
            return strict_json.encode(body)
        own = self.native.body
        is_long = len(own.data) > strict_json.LONG * (1 + len(self.messages))
        write = strict_json.encode_long if is_long else strict_json.encode
        return write(body, escaped=own.text.isascii())

    def check(self) -> None:
        """Raise RequestError naming the first invalid field."""
        for name in ("model", "provider"):
            if not isinstance(value := getattr(self, name), str):
                raise must_be(name, "a string")
            if len(value) > MAX_NAME:
                raise RequestError(f"{name} is longer than {MAX_NAME} characters", param=name)
        if not isinstance(self.meta, Mapping) or not isinstance(self.params, Mapping):
            raise RequestError("params and meta must be objects", param="params")
        for name, value in self.meta.items():
            if not isinstance(name, str) or not isinstance(value, str):
                raise RequestError(f"meta.{shown(name)[1:-1]} must be a string", param="meta")
        for name in _FORBIDDEN.intersection(self.params):
            raise RequestError(
                f"{name!r} must not be set by callers: providers are configured in the service",
                param=name,
            )
        if self.op == CHAT:
            said = self.messages
            if not said or not isinstance(said, Sequence) or isinstance(said, str):
                raise must_be("messages", "a list of at least one message")
            for number, message in enumerate(said):
                usual = type(message) is dict and "tool_calls" not in message
                role = message.get("role") if usual else None  # few have more than a text
                if not role or not type(role) is type(message.get("content")) is str:
                    check_message(message, f"messages[{number}]")

    def to_dict(self) -> JSON:
        """Return the infer.request, its fields in mist-go's order."""
        return (
            {"model": self.model}
            | ({"provider": self.provider} if self.provider else {})
            | {"messages": list(self.messages)}
            | ({"params": dict(self.params)} if self.params else {})
            | ({"meta": dict(self.meta)} if self.meta else {})
        )


def _placed(data: JSON, parameters: Collection[str]) -> JSON:
    """Return an infer.request with its params in params; names match in any case, as in Go.

    A name unlike any known one is a vendor's own parameter, unless the model is missing.
    """
    places = {each.lower(): each for each in (*parameters, *_MEMBERS)}
    default = "" if "model" in map(str.lower, data) else "; did you mean 'model'?"
    fields, beside = JSON(), JSON()
    foreign = 0
    for name, value in data.items():
        place = places.get(name.lower(), name)
        if name.lower() not in places:
            foreign += 1
            hint = close_to(name.lower(), places.values(), 0.7) or default
            if hint or foreign > _MAX_FOREIGN:
                raise RequestError(f"an infer.request has no {shown(name)}{hint}", param=name[:100])
        where = fields if place in _MEMBERS else beside
        if place in where:
            raise RequestError(f"{shown(place)} is given twice", param=place[:100])
        where[place] = value
    params = fields.get("params")
    for name in beside.keys() & (params if isinstance(params, dict) else ()):
        raise RequestError(f"{shown(name)} is in params, too", param=name[:100])
    if params is None or isinstance(params, dict):
        fields["params"] = (params or {}) | beside
    return fields


def check_message(message: object, place: str) -> None:
    """Raise RequestError unless *message* is a chat message in OpenAI's form."""
    if not isinstance(message, dict):
        raise must_be(place, "an object with role and content")
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if not isinstance(role, str) or not role:
        raise must_be(f"{place}.role", "a string")
    if isinstance(content, list):
        for number, part in enumerate(content):
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                what = f"{place}.content[{number}] must be an object with a type"
                raise RequestError(what, param=f"{place}.content")
    elif not isinstance(content, str) and (content is not None or role not in _MAY_BE_EMPTY):
        raise must_be(f"{place}.content", "a string or a list of parts")
    if calls is not None and (
        not isinstance(calls, list) or [call for call in calls if not isinstance(call, dict)]
    ):
        raise must_be(f"{place}.tool_calls", "a list of objects")


def must_be(name: str, what: str) -> RequestError:
    """Return the error "*name* must be *what*" for an invalid part of a request."""
    return RequestError(f"{name} must be {what}", param=name)


def text_of(content: object) -> str:
    """Return the text of a message's content: a string, or its text parts joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    return "".join(
        part["text"]
        for part in content
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


@dataclass(slots=True)  # not frozen, like InferRequest
class InferResponse:
    """A response: the eight fields of infer.response, then what else the vendor sent."""

    model: str
    provider: str
    content: str
    tokens_in: int = 0
    tokens_out: int = 0
    cost_usd: float | None = None  # None: the price is unknown
    latency_ms: int = 0
    finish_reason: str = "stop"
    tool_calls: Sequence[JSON] = ()
    reasoning: str = ""
    refusal: str = ""
    details: Sequence[JSON] = ()  # signed or redacted reasoning, for the next turn
    usage: Usage | None = None
    id: str = ""
    native: tuple[str, bytes] | None = None  # dialect and body, unchanged
    extra: Mapping[str, Any] = field(default_factory=dict)  # of some operations: embeddings, …
    annotations: Sequence[JSON] = ()  # web citations, in the form of chat completions
    images: Sequence[JSON] = ()  # that the model drew, as image_url parts

    def known(self, provider: str, cost_usd: float | None, latency_ms: int) -> InferResponse:
        """Return a copy with these fields replaced."""
        made = InferResponse(*_values(self))
        made.provider, made.cost_usd, made.latency_ms = provider, cost_usd, latency_ms
        return made

    def to_dict(self) -> JSON:
        """Return the infer.response in mist-go's order; extensions only if they are not empty."""
        data: JSON = {
            "model": self.model,
            "provider": self.provider,
            "content": self.content,
            "tokens_in": self.tokens_in,
            "tokens_out": self.tokens_out,
            "cost_usd": self.cost_usd,
            "latency_ms": self.latency_ms,
            "finish_reason": self.finish_reason,
        }
        for name in ("tool_calls", "reasoning", "refusal", "annotations", "images"):
            if value := getattr(self, name):
                data[name] = value if isinstance(value, str) else list(value)
        return data


_values = attrgetter(*(each.name for each in fields(InferResponse)))


@dataclass(frozen=True, slots=True)
class TraceSpan:
    """A span of a trace, in TokenTrace's form."""

    trace_id: str
    span_id: str
    operation: str
    start_ns: int
    end_ns: int
    status: str = "ok"  # or "error"
    parent_id: str = ""
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> JSON:
        """Return the trace.span in mist-go's order, without parent_id if there is no parent."""
        data: JSON = {"trace_id": self.trace_id, "span_id": self.span_id}
        if self.parent_id:
            data["parent_id"] = self.parent_id
        return data | {
            "operation": self.operation,
            "start_ns": self.start_ns,
            "end_ns": self.end_ns,
            "status": self.status,
            "attrs": dict(sorted(self.attrs.items())),
        }


def _text(data: JSON, name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str):
        raise ProtocolError(f"{name} {'is missing' if value is None else 'must be a string'}")
    if not value:
        raise ProtocolError(f"{name} is empty")
    return value


def _integer(data: JSON, name: str, *, least: int, most: int) -> int:
    value = data.get(name)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ProtocolError(f"{name} must be an integer from {least} to {most}")
    return value
