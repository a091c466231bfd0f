"""Reads requests of our OpenAI-compatible API; writes its responses, streams and errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

from ...errors import InferMuxError, UnsupportedParameter, shown
from ...protocol import CHAT, InferRequest, InferResponse, Native, strict_json
from ...protocol.sse import comment
from ...protocol.strict_json import Document
from ...types import JSON, Chunk, Usage
from .. import packed, require, used, without
from ..tools import CustomCalls, as_custom, custom_names
from . import NAME


def decode_request(body: Document, *, op: str = CHAT) -> tuple[InferRequest, bool]:
    """Return the request, and whether it asks for a stream; raise RequestError if invalid."""
    value = body.value
    for name, kind in (("stream", bool), ("stream_options", dict)):
        if value.get(name) is not None:
            require(value[name], name, kind)
    request = InferRequest(
        model=require(value.get("model"), "model", str),
        messages=require(value.get("messages"), "messages", list) if op == CHAT else (),
        params=without(value, "model", "messages", "stream", "stream_options"),
        op=op,
        native=Native(NAME, body),
    )
    return request, bool(value.get("stream"))


def encode_answer(
    response: InferResponse, request: InferRequest, *, model: str, ident: str, created: int
) -> bytes:
    """Return the body, the vendor's own if in this dialect; raise UnsupportedParameter."""
    if response.native is not None and response.native[0] == NAME:
        return response.native[1]
    if request.op == CHAT:
        if response.tool_calls and (names := custom_names(request)):
            calls = [as_custom(call, names) for call in response.tool_calls]
            response = replace(response, tool_calls=calls)
        return strict_json.encode(encode_response(response, created=created, ident=ident))
    if request.op == "embeddings" and response.extra.get("data"):
        base64 = request.params.get("encoding_format") == "base64"
        return strict_json.encode(_embeddings(response, base64=base64))
    raise UnsupportedParameter(f"the model {shown(model)} has no {request.op}", param="model")


def encode_response(response: InferResponse, *, created: int, ident: str = "") -> JSON:
    """Return a chat completion object; *ident* is its id if the vendor gave none."""
    content = response.content if response.content or not response.tool_calls else None
    message: JSON = {"role": "assistant", "content": content, "refusal": response.refusal or None}
    if response.tool_calls:
        message["tool_calls"] = list(response.tool_calls)
    message |= _beside(response)
    reason = response.finish_reason
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    return {
        "id": response.id or ident,
        "object": "chat.completion",
        "created": created,
        "model": response.model,
        "choices": [choice],
        "usage": encode_usage(used(response)),
    }


def _beside(said: InferResponse | Chunk) -> JSON:
    """Return the members of a message, or of a delta, that only some answers have."""
    found = {
        "reasoning_content": said.reasoning,
        "reasoning_details": list(said.details),
        "annotations": list(said.annotations),
        "images": list(said.images),
    }
    return {name: value for name, value in found.items() if value}


def encode_usage(usage: Usage) -> JSON:
    """Return a usage object; unknown counts are 0."""
    tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
    data: JSON = {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens or 0},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens or 0},
    }
    if usage.cache_write_tokens:
        data["prompt_tokens_details"]["cache_write_tokens"] = usage.cache_write_tokens
    return data


class Encoder:
    """Encodes one stream; keeps the last event back until `end` adds the summary."""

    def __init__(
        self,
        *,
        model: str,
        ident: str,
        created: int,
        include_usage: bool,
        custom: Collection[str] = (),  # names of custom tools
    ) -> None:
        self._custom = CustomCalls(custom) if custom else None
        self._head: JSON = {
            "id": ident,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._include_usage = include_usage
        self._first = True
        self._numbers: Counter[str] = Counter()  # of the members that SDKs join by index
        self._held = b""
        self._ending = False  # a finish reason has come: each event may be the last
        self._usage_sent = False

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events for a chunk: the vendor's own if they are in this dialect."""
        if chunk.usage_only and not self._include_usage:
            return b""
        native = chunk.native if chunk.native is not None and chunk.dialect == NAME else None
        if native is None and (chunk.shown or not (chunk.has_content or chunk.annotations)):
            return b""
        self._usage_sent = self._usage_sent or (native is not None and chunk.usage is not None)
        event = self._event(chunk) if native is None else native
        self._ending = self._ending or bool(chunk.finish_reason) or chunk.usage_only
        ready, self._held = (self._held, event) if self._ending else (event, b"")
        return ready

    def _event(self, chunk: Chunk) -> bytes:
        delta: JSON = {"role": "assistant", "content": ""} if self._first else {}
        self._first = False
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.refusal:
            delta["refusal"] = chunk.refusal
        calls = list(chunk.tool_calls)
        if self._custom is not None:
            calls = self._custom.deltas(calls, last=bool(chunk.finish_reason))
        if calls:
            delta["tool_calls"] = calls
        delta |= _beside(chunk)
        for name in {"annotations", "images"} & delta.keys():
            first = self._numbers[name]
            delta[name] = [{"index": n, **each} for n, each in enumerate(delta[name], first)]
            self._numbers[name] += len(delta[name])
        reason = chunk.finish_reason
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return _event(self._head | {"choices": [choice]})

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last events, with *summary*, *usage* if requested, and the terminator."""
        before, last = b"", self._held
        if self._include_usage and not self._usage_sent:
            bare = {"choices": [], "usage": encode_usage(usage or Usage())}
            before, last = last, _event(self._head | bare)
        return before + _completed(last, summary) + b"data: [DONE]\n\n"

    def error(self, error: InferMuxError) -> bytes:
        """Return the events that end a failed stream, without a terminator."""
        held, self._held = self._held, b""
        return held + _event(encode_error(error))

    def heartbeat(self) -> bytes:
        return comment("waiting for the provider")


def _completed(event: bytes, summary: JSON) -> bytes:
    """Return an event with the call's summary added, and the cost in its usage if it has one."""
    if not event:
        return b""
    head, data, text = event.partition(b"data: ")
    try:
        body = strict_json.document(text)
    except ValueError:  # a vendor's JSON that is not strict, such as with a name twice
        return event
    new: JSON = {"infermux": summary}
    if isinstance(body.value.get("usage"), dict) and summary.get("cost_usd") is not None:
        new["usage"] = {"cost": summary["cost_usd"]} | body.value["usage"]
    return head + data + body.replaced(new) + b"\n\n"


def _event(body: JSON) -> bytes:
    return b"data: " + strict_json.encode(body) + b"\n\n"


def _embeddings(response: InferResponse, *, base64: bool) -> JSON:
    """Return an embeddings object, with vectors as lists of numbers or as *base64*."""
    data = response.extra["data"]
    if base64:
        data = [
            each
            if isinstance(each["embedding"], str)
            else each | {"embedding": packed(each["embedding"])}
            for each in data
        ]
    usage = {"prompt_tokens": response.tokens_in, "total_tokens": response.tokens_in}
    return {"object": "list", "data": data, "model": response.model, "usage": usage}


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object, as OpenAI's SDKs expect it."""
    body: JSON = {name: getattr(error, name) for name in ("message", "type", "param", "code")}
    native = error.native_in(NAME)
    members = native.members if native is not None else {}
    return {"error": body | members | {"message": error.message}}
