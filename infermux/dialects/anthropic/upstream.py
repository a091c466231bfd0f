"""Anthropic's Messages format, the vendor's side: answers, errors and streams. Requests are written
in anthropic_request.py.

Facts: https://platform.claude.com/docs/en/api/messages, the types of the official SDK, and recorded
traffic.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from ...errors import ProviderError, StreamIncomplete
from ...protocol import InferRequest, InferResponse, strict_json
from ...types import HEARTBEAT, JSON, Chunk, Usage
from .. import Events, Headers, count, items, obj, provider_error, retry_after, text, whole
from .requests import NAME, THINKING_FORMAT, auth, encode_request, headers, path, string

__all__ = [
    "COUNTS_TOKENS",
    "FINISH",
    "NAME",
    "STATUS",
    "auth",
    "decode_error",
    "decode_events",
    "decode_response",
    "decode_whole",
    "encode_request",
    "headers",
    "path",
]

FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
COUNTS_TOKENS = True  # there is an operation for it


# -- answers ---------------------------------------------------------------------------------------


def decode_response(data: bytes, request: InferRequest) -> InferResponse:
    """Return the answer of any operation."""
    body = _object(data)
    if request.op == "count_tokens":
        tokens = count(body["input_tokens"])
        if tokens is None:
            raise ValueError("a count without a number")
        return InferResponse(
            model=request.model,
            provider=request.provider,
            content="",
            tokens_in=tokens,
            native=(NAME, data),
            extra={"input_tokens": tokens},
        )
    usage, words, thoughts = usage_of(body.get("usage")), [], []
    calls: list[JSON] = []
    details: list[JSON] = []
    if not isinstance(body["content"], list):
        raise ValueError("an answer without content")
    for block in items(body["content"]):
        kind = string(block, "type")
        if kind == "text":
            words.append(string(block, "text"))
        elif kind == "tool_use":
            calls.append(
                _tool_call(block)
                | {"function": {"name": string(block, "name"), "arguments": _arguments(block)}}
            )
        elif kind in ("thinking", "redacted_thinking") and (detail := _detail(block)):
            thoughts.append(detail.get("text", ""))
            details.append(detail | {"index": len(details)})
    return InferResponse(
        model=text(body.get("model")) or request.model,
        provider=request.provider,
        content="".join(words),
        tokens_in=(usage and usage.input_tokens) or 0,
        tokens_out=(usage and usage.output_tokens) or 0,
        usage=usage,
        finish_reason=finish_reason(body.get("stop_reason")),
        id=text(body.get("id")),
        native=(NAME, data),
        tool_calls=calls,
        reasoning="".join(thoughts),
        details=details,
    )


def _object(data: bytes) -> JSON:
    body = strict_json.lenient(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    if body.get("type") == "error" or ("type" not in body and body.get("error")):
        raise _embedded(body.get("error"))
    return body


def _tool_call(block: JSON) -> JSON:
    ident = string(block, "id")
    if not ident:
        raise ValueError("a tool call without an id")
    return {"id": ident, "type": "function"}


def _arguments(block: JSON) -> str:
    value = block["input"]
    if not isinstance(value, dict):
        raise ValueError("the input of a tool call is not an object")
    return strict_json.dumps(value)


def _detail(block: JSON) -> JSON:
    """Return the reasoning detail of a thinking block, empty if there is nothing in it."""
    if block["type"] == "redacted_thinking":
        return {
            "type": "reasoning.encrypted",
            "data": string(block, "data"),
            "format": THINKING_FORMAT,
        }
    words, signature = string(block, "thinking"), text(block.get("signature"))
    if not words and not signature:
        return {}
    signed = {"signature": signature} if signature else {}
    return {"type": "reasoning.text", "text": words} | signed | {"format": THINKING_FORMAT}


def finish_reason(value: object) -> str:
    """Return a stop reason in OpenAI's words; a missing one reads as stop, an unknown one stays as
    it is.
    """
    reason = text(value)
    return FINISH.get(reason, reason) or "stop"


def usage_of(value: object) -> Usage | None:
    """Return usage in the normalised form; on this wire input_tokens leaves out what was read from
    or written to the cache.
    """
    data = obj(value)
    fresh, tokens_out = count(data.get("input_tokens")), count(data.get("output_tokens"))
    read, written = (
        count(data.get("cache_read_input_tokens")),
        count(data.get("cache_creation_input_tokens")),
    )
    long_lived = count(obj(data.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    reasoning = count(obj(data.get("output_tokens_details")).get("thinking_tokens"))
    tier = "fast" if data.get("speed") == "fast" else text(data.get("service_tier")) or None
    if fresh is None and tokens_out is None:
        return None
    tokens_in = None if fresh is None else fresh + (read or 0) + (written or 0)
    return Usage(tokens_in, tokens_out, read, written, long_lived, reasoning, service_tier=tier)


# -- errors ----------------------------------------------------------------------------------------


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    """Return the error for an answer with *status*."""
    try:
        body = strict_json.lenient(data)
    except ValueError:
        body = None
    wait = retry_after(headers, now=time.time) if status == 429 or status >= 500 else None
    return _error(status, body.get("error") if isinstance(body, dict) else None, wait)


def _embedded(error: object) -> ProviderError:
    """Return the error that came inside a 200: only its type tells the status."""
    kind = error.get("type") if isinstance(error, dict) else None
    return _error(STATUS.get(kind, 502) if isinstance(kind, str) else 502, error, None)


def _error(status: int, error: object, wait: float | None) -> ProviderError:
    said = error if isinstance(error, dict) else {"message": error}
    kind, message = (
        value if isinstance(value, str) else "" for value in (said.get("type"), said.get("message"))
    )
    if (
        status == 400 and "credit balance" in message
    ):  # an empty account is a 400 here, as if the caller were at fault
        status = 402
    return provider_error(status, message, code=kind, retry_after=wait)


# -- streams ---------------------------------------------------------------------------------------


def decode_events(events: Events, request: InferRequest) -> Iterator[Chunk]:
    """Yield the chunks of a stream; its terminator is message_stop."""
    reader = _Reader()
    for event in events:
        if event is None:
            yield HEARTBEAT
            continue
        body = _object(event.data)
        kind = string(body, "type")
        yield reader.chunk(kind, body)._replace(native=event.encode(), dialect=NAME)
        if kind == "message_stop":
            return
    raise StreamIncomplete("the provider's stream ended without its terminator")


def decode_whole(data: bytes, request: InferRequest) -> Iterator[Chunk]:
    """Yield an answer that came in one piece although a stream was asked for."""
    yield from whole(decode_response(data, request))


class _Reader:
    """Reads the events of one stream: which block an index means, and what usage was said before."""

    def __init__(self) -> None:
        self._blocks: dict[int, JSON] = {}
        self._usage: JSON = {}
        self._calls = 0
        self._details = 0
        self._finished = False

    def chunk(self, kind: str, body: JSON) -> Chunk:
        """Return what an event says; one of an unknown kind says nothing."""
        if kind == "message_start":
            message = obj(body["message"])
            return Chunk(
                usage=self._counted(message.get("usage")),
                model=text(message.get("model")) or None,
                id=text(message.get("id")) or None,
            )
        if kind == "content_block_start":
            return self._start(_index(body), obj(body["content_block"]))
        if kind == "content_block_delta":
            return self._delta(self._blocks[_index(body)], obj(body["delta"]))
        if kind == "content_block_stop":
            return self._stop(self._blocks.pop(_index(body)))
        if kind == "message_delta":
            return self._end(
                obj(body["delta"]).get("stop_reason"), self._counted(body.get("usage"))
            )
        if kind == "message_stop" and not self._finished:
            return Chunk(finish_reason="stop")
        return Chunk()

    def _counted(self, value: object) -> Usage | None:
        """Counts are totals, so a later one replaces an earlier; what is left out, or null, still
        holds.
        """
        self._usage |= {name: number for name, number in obj(value).items() if number is not None}
        return usage_of(self._usage)

    def _end(self, reason: object, usage: Usage | None) -> Chunk:
        self._finished = self._finished or bool(reason)
        return Chunk(finish_reason=finish_reason(reason) if reason else None, usage=usage)

    def _start(self, index: int, block: JSON) -> Chunk:
        kind = string(block, "type")
        state: JSON = {"type": kind}
        self._blocks[index] = state
        if kind == "text":
            return Chunk(text=string(block, "text"))
        if kind == "tool_use":
            state |= {"call": self._calls, "input": _arguments(block), "streamed": False}
            self._calls += 1
            return Chunk(
                tool_calls=[
                    _tool_call(block)
                    | {
                        "index": state["call"],
                        "function": {"name": string(block, "name"), "arguments": ""},
                    }
                ]
            )
        if kind in ("thinking", "redacted_thinking"):
            return self._thought(state, detail) if (detail := _detail(block)) else Chunk()
        return Chunk()

    def _delta(self, state: JSON, delta: JSON) -> Chunk:
        kind, block = string(delta, "type"), state["type"]
        if kind == "text_delta" and block == "text":
            return Chunk(text=string(delta, "text"))
        if kind == "input_json_delta":
            piece = string(delta, "partial_json")
            if block == "tool_use" and piece:
                state["streamed"] = True
                return Chunk(
                    tool_calls=[{"index": state["call"], "function": {"arguments": piece}}]
                )
        elif kind == "thinking_delta" and block == "thinking":
            if words := string(delta, "thinking"):
                return self._thought(
                    state, {"type": "reasoning.text", "text": words, "format": THINKING_FORMAT}
                )
        elif kind == "signature_delta" and block == "thinking":
            first = {} if "started" in state else {"text": ""}
            return self._thought(
                state,
                {
                    "type": "reasoning.text",
                    **first,
                    "signature": string(delta, "signature"),
                    "format": THINKING_FORMAT,
                },
            )
        return Chunk()

    def _thought(self, state: JSON, detail: JSON) -> Chunk:
        if "started" not in state:  # a block without anything in it takes no number
            state |= {"started": True, "detail": self._details}
            self._details += 1
        return Chunk(
            reasoning=detail.get("text", ""), details=[detail | {"index": state["detail"]}]
        )

    def _stop(self, state: JSON) -> Chunk:
        """A tool without arguments may never send a piece of them."""
        if state["type"] == "tool_use" and not state["streamed"]:
            return Chunk(
                tool_calls=[{"index": state["call"], "function": {"arguments": state["input"]}}]
            )
        return Chunk()


def _index(body: JSON) -> int:
    value: Any = body["index"]
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("the index of a block is not a number")
    return value
