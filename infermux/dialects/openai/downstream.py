"""OpenAI's formats as our own front door speaks them: what a client sends, and what it is told."""

from __future__ import annotations

import struct
from base64 import b64encode

from ...errors import InferMuxError, RequestError, UnsupportedParameter, shown
from ...protocol import CHAT, InferRequest, InferResponse, Native, strict_json
from ...protocol.sse import Event, comment
from ...protocol.strict_json import Document
from ...types import JSON, Chunk, Usage
from .upstream import NAME


def decode_request(body: Document, *, op: str = CHAT) -> tuple[InferRequest, bool]:
    """Return the request that a client's body holds, and whether it wants a stream; raise
    RequestError naming what is odd.
    """
    value = body.value
    model, stream = value.get("model"), value.get("stream")
    if not isinstance(model, str):
        raise RequestError("model must be a string", param="model")
    if stream is not None and not isinstance(stream, bool):
        raise RequestError("stream must be true or false", param="stream")
    if op == CHAT and not isinstance(value.get("messages"), list):
        raise RequestError("messages must be a list", param="messages")
    options = value.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise RequestError("stream_options must be an object", param="stream_options")
    params = {
        name: item
        for name, item in value.items()
        if name not in ("model", "messages", "stream", "stream_options")
    }
    return InferRequest(
        model=model,
        messages=value.get("messages") or () if op == CHAT else (),
        params=params,
        op=op,
        native=Native(NAME, body),
    ), bool(stream)


def encode_answer(
    response: InferResponse, request: InferRequest, *, model: str, ident: str, created: int
) -> bytes:
    """Return the answer to *request*: as it came where it came in this dialect; *model* answered."""
    if response.native is not None and response.native[0] == NAME:
        return response.native[1]
    if request.op == CHAT:
        return strict_json.encode(
            encode_response(response, created=created) | {"id": response.id or ident}
        )
    if request.op == "embeddings" and response.extra.get("data"):
        return strict_json.encode(
            encode_embeddings(response, base64=request.params.get("encoding_format") == "base64")
        )
    raise UnsupportedParameter(f"the model {shown(model)} has no {request.op}", param="model")


def encode_response(response: InferResponse, *, created: int) -> JSON:
    """Return a chat completion."""
    message: JSON = {
        "role": "assistant",
        "content": response.content if response.content or not response.tool_calls else None,
        "refusal": response.refusal or None,
    }
    if response.tool_calls:
        message["tool_calls"] = list(response.tool_calls)
    message |= _thoughts(response.reasoning, response.details)
    return {
        "id": response.id or "chatcmpl-infermux",
        "object": "chat.completion",
        "created": created,
        "model": response.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "logprobs": None,
                "finish_reason": response.finish_reason,
            }
        ],
        "usage": encode_usage(response.usage or Usage(response.tokens_in, response.tokens_out)),
    }


def _thoughts(reasoning: str, details: object) -> JSON:
    return ({"reasoning_content": reasoning} if reasoning else {}) | (
        {"reasoning_details": details} if details else {}
    )


def encode_usage(usage: Usage) -> JSON:
    """Return a usage object."""
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
    """Says a stream's chunks as this door's events; the last one is held back until the call's
    figures are known.
    """

    def __init__(
        self, *, model: str, ident: str, created: int, include_usage: bool, op: str = CHAT
    ) -> None:
        self._head: JSON = {
            "id": ident,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
        }
        self._include_usage = include_usage
        self._op = op
        self._first = True
        self._held = b""
        # a finish reason has come: whichever event is last from here on carries the figures
        self._ending = False
        self._usage_sent = False

    def encode(self, chunk: Chunk) -> bytes:
        """Return the events for a chunk: its own where it came in this dialect."""
        if chunk.usage_only and not self._include_usage:
            return b""
        native = chunk.native if chunk.native is not None and chunk.dialect == NAME else None
        if native is None and not chunk.has_content:
            return b""
        self._usage_sent = self._usage_sent or (native is not None and chunk.usage is not None)
        ready, self._held = self._held, self._event(chunk) if native is None else native
        self._ending = self._ending or bool(chunk.finish_reason) or chunk.usage_only
        if self._ending:
            return ready
        ready, self._held = ready + self._held, b""
        return ready

    def _event(self, chunk: Chunk) -> bytes:
        delta: JSON = {"role": "assistant", "content": ""} if self._first else {}
        self._first = False
        if chunk.text:
            delta["content"] = chunk.text
        if chunk.refusal:
            delta["refusal"] = chunk.refusal
        if chunk.tool_calls:
            delta["tool_calls"] = list(chunk.tool_calls)
        delta |= _thoughts(chunk.reasoning, list(chunk.details))
        return _event(
            self._head
            | {
                "choices": [
                    {
                        "index": 0,
                        "delta": delta,
                        "logprobs": None,
                        "finish_reason": chunk.finish_reason,
                    }
                ]
            }
        )

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last event, with what is known of the call now, and the terminator."""
        if self._op == "responses":  # its terminator is its own last event
            return self._held
        held = self._held
        if self._include_usage and not self._usage_sent:
            bare = _event(self._head | {"choices": [], "usage": encode_usage(usage or Usage())})
            return held + _completed(bare, summary) + b"data: [DONE]\n\n"
        return _completed(held, summary) + b"data: [DONE]\n\n"

    def error(self, error: InferMuxError) -> bytes:
        """Return the event that tells of a failure; no terminator follows it."""
        held, self._held = self._held, b""
        if self._op == "responses":
            return (
                held
                + Event(
                    strict_json.encode(encode_error(error)["error"] | {"type": "error"}), b"error"
                ).encode()
            )
        return held + _event(encode_error(error))

    def heartbeat(self) -> bytes:
        """Return what readers skip."""
        return comment("waiting for the provider")


def _completed(event: bytes, summary: JSON) -> bytes:
    """Return an event with the call's summary in it, and its cost where it has usage."""
    if not event:
        return b""
    body = strict_json.document(event.removeprefix(b"data: "))
    new: JSON = {"infermux": summary}
    if isinstance(body.value.get("usage"), dict) and summary.get("cost_usd") is not None:
        new["usage"] = {"cost": summary["cost_usd"]} | body.value["usage"]
    return b"data: " + body.replaced(new).encode() + b"\n\n"


def _event(body: JSON) -> bytes:
    return b"data: " + strict_json.encode(body) + b"\n\n"


def encode_embeddings(response: InferResponse, *, base64: bool) -> JSON:
    """Return an embeddings answer; the official SDK asks for base64 of little-endian floats unless
    told otherwise.
    """
    data = response.extra.get("data") or []
    if base64:
        data = [
            item
            if isinstance(item["embedding"], str)
            else {
                **item,
                "embedding": b64encode(
                    struct.pack(f"<{len(item['embedding'])}f", *item["embedding"])
                ).decode(),
            }
            for item in data
        ]
    return {
        "object": "list",
        "data": data,
        "model": response.model,
        "usage": {"prompt_tokens": response.tokens_in, "total_tokens": response.tokens_in},
    }


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object as the official SDKs read it."""
    return {
        "error": {
            "message": error.message,
            "type": error.type,
            "param": error.param,
            "code": error.code,
        }
    }
