"""OpenAI's formats as a vendor speaks them: chat completions; embeddings, legacy completions and
Responses passed through.

Facts: https://platform.openai.com/docs/api-reference, and what recorded traffic of some twenty
compatible vendors shows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from ...errors import ProviderError, ProviderUnavailable, StreamIncomplete, UnsupportedParameter
from ...protocol import CHAT, InferRequest, InferResponse, strict_json, text_of
from ...protocol.strict_json import Document
from ...types import HEARTBEAT, JSON, Chunk, Usage
from .. import Events, Headers, count, items, obj, provider_error, retry_after, text, whole
from .requests import NAME, translated

__all__ = [
    "NAME",
    "auth",
    "decode_error",
    "decode_events",
    "decode_response",
    "decode_whole",
    "encode_request",
    "headers",
    "path",
]

PATHS = {
    CHAT: "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    "responses": "/responses",
}
DONE = b"[DONE]"


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the path of the operation below the base URL."""
    if request.op not in PATHS:
        raise UnsupportedParameter(f"the {NAME} format has no {request.op}", param="model")
    return PATHS[request.op]


def auth(key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    return {"Authorization": f"Bearer {key}"}


def headers(request: InferRequest) -> dict[str, str]:
    """Return the protocol headers of a request: there are none."""
    return {}


def encode_request(request: InferRequest, *, stream: bool, drop: list[str] | None = None) -> bytes:
    """Return the body: as it came if it came in this dialect, but for the model and the wish for
    usage.
    """
    native = request.native
    if native is not None and native.dialect == NAME:
        return _respelled(native.body, request, stream=stream).encode()
    if native is not None:
        body = translated(request, drop)
    else:
        body = {
            "model": request.model,
            **({"messages": list(request.messages)} if request.op == CHAT else {}),
            **request.params,
        }
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return strict_json.encode(body)


def _respelled(body: Document, request: InferRequest, *, stream: bool) -> str:
    new: JSON = {} if body.value.get("model") == request.model else {"model": request.model}
    if stream and request.op in (CHAT, "completions"):
        options = obj(body.value.get("stream_options"))
        if not options.get("include_usage"):
            new["stream_options"] = options | {"include_usage": True}
    return body.replaced(new) if new else body.text


def decode_response(data: bytes, request: InferRequest) -> InferResponse:
    """Return the answer of any operation."""
    body = strict_json.lenient(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    if body.get("error"):  # some vendors say 200 and put the error into the body
        raise _embedded(body["error"])
    native = (NAME, data)
    if request.op == CHAT:
        return _chat(body, request, native)
    usage = usage_of(body.get("usage"))
    return InferResponse(
        model=text(body.get("model")) or request.model,
        provider=request.provider,
        content=_plain_text(body, request.op),
        tokens_in=(usage and usage.input_tokens) or 0,
        tokens_out=(usage and usage.output_tokens) or 0,
        usage=usage,
        finish_reason=_plain_reason(body, request.op),
        id=text(body.get("id")),
        native=native,
        extra={"data": _embeddings(body)} if request.op == "embeddings" else {},
    )


def _plain_text(body: JSON, op: str) -> str:
    if op == "completions":
        return "".join(text(choice.get("text")) for choice in items(body.get("choices"))[:1])
    parts = [
        part
        for item in items(body.get("output"))
        if item.get("type") == "message"
        for part in items(item.get("content"))
    ]
    return "".join(text(part.get("text")) for part in parts)


def _plain_reason(body: JSON, op: str) -> str:
    if op == "completions":
        return finish_reason(
            next((choice.get("finish_reason") for choice in items(body.get("choices"))), None)
        )
    return "length" if op == "responses" and body.get("status") == "incomplete" else "stop"


def _embeddings(body: JSON) -> list[JSON]:
    data = items(body.get("data"))
    if not data or not all("embedding" in item for item in data):
        raise ValueError("an answer without embeddings")
    return data


def _chat(body: JSON, request: InferRequest, native: tuple[str, bytes]) -> InferResponse:
    choices = items(body.get("choices"))
    if not choices:
        raise ValueError("an answer without choices")
    message = obj(choices[0].get("message"))
    usage = usage_of(body.get("usage"))
    content, thinking = _content(message.get("content"))
    legacy = obj(message.get("function_call"))
    return InferResponse(
        model=text(body.get("model")) or request.model,
        provider=request.provider,
        content=content,
        tokens_in=(usage and usage.input_tokens) or 0,
        tokens_out=(usage and usage.output_tokens) or 0,
        finish_reason=finish_reason(choices[0].get("finish_reason")),
        usage=usage,
        id=text(body.get("id")),
        native=native,
        tool_calls=[_tool_call(call) for call in items(message.get("tool_calls"))],
        reasoning=_reasoning(message) or thinking,
        refusal=text(message.get("refusal")),
        details=items(message.get("reasoning_details")),
        extra={"function_call": legacy} if legacy.get("name") else {},
    )


_REASONS = {
    "": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
}


def finish_reason(value: object) -> str:
    """Return a finish reason in OpenAI's words; a missing one reads as stop."""
    reason = text(value)
    return _REASONS.get(reason, reason)


def _content(value: object) -> tuple[str, str]:
    """Return text and reasoning of a content: a string, or (Mistral) a list of text and thinking
    parts.
    """
    if not isinstance(value, list):
        return text(value), ""
    words, thoughts = [], []
    for part in items(value):
        if part.get("type") == "thinking":
            inner = part.get("thinking")
            thoughts.append(inner if isinstance(inner, str) else text_of(inner))
        else:
            words.append(text(part.get("text")))
    return "".join(words), "".join(thoughts)


def _reasoning(message: Mapping[str, Any]) -> str:
    return text(message.get("reasoning_content")) or text(message.get("reasoning"))


def _tool_call(call: JSON) -> JSON:
    if call.get("type") == "custom":
        return call
    function = obj(call.get("function"))
    arguments = function.get("arguments")
    known = {
        "id": text(call.get("id")),
        "type": "function",
        "function": {
            "name": text(function.get("name")),
            "arguments": strict_json.dumps(arguments)
            if isinstance(arguments, dict)
            else text(arguments),
        },
    }
    return known | {
        name: value
        for name, value in call.items()
        if name not in ("id", "type", "function", "index")
    }


def usage_of(value: object) -> Usage | None:
    """Return usage in the normalised form, from chat's names or from Responses' names; None where
    there is none.

    xAI counts reasoning apart from completion tokens: seen by the total, which is then the sum of
    all three.
    """
    data = obj(value)
    if not data:
        return None
    total, tokens_in = (
        count(data.get("total_tokens")),
        count(data.get("prompt_tokens", data.get("input_tokens"))),
    )
    tokens_out = count(data.get("completion_tokens", data.get("output_tokens")))
    of_input = obj(data.get("prompt_tokens_details") or data.get("input_tokens_details"))
    of_output = obj(data.get("completion_tokens_details") or data.get("output_tokens_details"))
    reasoning = count(of_output.get("reasoning_tokens"))
    if reasoning and tokens_out is not None and total == (tokens_in or 0) + tokens_out + reasoning:
        tokens_out += reasoning
    cached = _first_count(
        of_input.get("cached_tokens"),
        data.get("prompt_cache_hit_tokens"),
        data.get("num_cached_tokens"),
        data.get("cached_tokens"),
    )
    written = _first_count(
        of_input.get("cache_write_tokens"), data.get("cache_creation_input_tokens")
    )
    if tokens_in is None and tokens_out is None:
        return None
    return Usage(
        tokens_in,
        tokens_out,
        cached,
        written,
        None,
        reasoning,
        cost_usd=_vendor_cost(data),
        total_tokens=total,
    )


def _first_count(*values: object) -> int | None:
    """Return the first count that a vendor gives, under whichever of its names."""
    for value in values:
        if value is not None:
            return count(value)
    return None


def _vendor_cost(data: JSON) -> float | None:
    """OpenRouter and others: cost; Perplexity: cost.total_cost; xAI: ticks of 10^-10 dollars."""
    cost = data.get("cost")
    if cost is None and "cost_in_usd_ticks" not in data:
        return None
    cost = cost.get("total_cost") if isinstance(cost, dict) else cost
    ticks = data.get("cost_in_usd_ticks")
    if isinstance(ticks, int) and not isinstance(ticks, bool):
        cost = min(ticks, 10**18) / 10**10
    return (
        float(cost)
        if isinstance(cost, int | float) and not isinstance(cost, bool) and 0 <= cost < 10**6
        else None
    )


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    """Return the error for an answer with *status*; the shapes of all the compatible vendors are
    understood.
    """
    try:
        body = strict_json.lenient(data)
    except ValueError:
        body = None
    error = _error_object(body)
    wait = retry_after(headers, now=time.time) if status in (429, 503, 529) else None
    return provider_error(
        status,
        _string(error.get("message")),
        code=_string(error.get("code")) + " " + _string(error.get("type")),
        param=_string(error.get("param")) or None,
        retry_after=wait if wait is not None else _reset(error),
    )


def _error_object(body: object) -> JSON:
    if not isinstance(body, dict):
        return {}
    error = body.get("error", body)
    if isinstance(error, str):  # xAI, Ollama
        return {"message": error, "code": body.get("code")}
    if not isinstance(error, dict):
        return {}
    return (
        error if error.get("message") else error | {"message": error.get("detail")}
    )  # Mistral: detail


def _reset(error: JSON) -> float | None:
    """OpenRouter says in the body when its limit resets, in milliseconds since 1970."""
    metadata = error.get("metadata")
    headers = metadata.get("headers") if isinstance(metadata, dict) else None
    reset = _string(headers.get("X-RateLimit-Reset")) if isinstance(headers, dict) else ""
    return (
        max(0.0, int(reset) / 1000 - time.time())
        if reset.isascii() and reset.isdigit() and len(reset) < 16
        else None
    )


def _string(value: object) -> str:
    return (
        value
        if isinstance(value, str)
        else ""
        if value is None or isinstance(value, dict | list)
        else str(value)
    )


def _embedded(error: object) -> ProviderError:
    """Return the error that came inside a 200."""
    status = error.get("status_code", error.get("code")) if isinstance(error, dict) else None
    status = status if isinstance(status, int) and 400 <= status < 600 else 502
    return decode_error(status, {}, strict_json.encode({"error": error}))


def decode_events(events: Events, request: InferRequest) -> Iterator[Chunk]:
    """Yield the chunks of a stream.

    The terminator is [DONE]; some vendors (Perplexity, Hugging Face) never send it, so a finish
    reason and a clean end do too.
    """
    finished = False
    for event in events:
        if event is None:
            yield HEARTBEAT
        elif event.data == DONE:
            return
        else:
            chunk = _chunk(event.data, event.encode(), request.op)
            finished = finished or bool(chunk.finish_reason)
            yield chunk
    if not finished:
        raise StreamIncomplete("the provider's stream ended without its terminator")


def decode_whole(data: bytes, request: InferRequest) -> Iterator[Chunk]:
    """Yield an answer that came in one piece although a stream was asked for."""
    yield from whole(decode_response(data, request))


def _chunk(data: bytes, native: bytes, op: str) -> Chunk:
    body = strict_json.lenient(data)
    if not isinstance(body, dict):
        raise ValueError("expected an object")
    if body.get("error"):
        raise _embedded(body["error"])
    if op == "responses":
        return _responses_chunk(body, native)
    if (words := _words(body)) is not None:
        return Chunk(
            words, native=native, model=body["model"] or None, id=body["id"] or None, dialect=NAME
        )
    usage = body.get("usage") or (body.get("x_groq") or {}).get("usage")
    choices = body.get("choices")
    model, ident = text(body.get("model")) or None, text(body.get("id")) or None
    if not choices:
        return Chunk(
            usage=usage_of(usage),
            native=native,
            model=model,
            id=ident,
            usage_only=bool(usage),
            dialect=NAME,
        )
    choice: JSON = next(
        (each for each in choices if not each.get("index")), {}
    )  # others than the first: native only
    delta = choice.get("delta") or {}
    content, thinking = _content(delta.get("content") if "delta" in choice else choice.get("text"))
    return Chunk(
        content,
        _reasoning(delta) or thinking,
        text(delta.get("refusal")),
        _deltas(delta.get("tool_calls")),
        finish_reason(choice["finish_reason"]) if choice.get("finish_reason") else None,
        usage_of(usage) if usage else None,
        native,
        items(delta.get("reasoning_details")),
        model,
        ident,
        _legacy(delta),
        NAME,
    )


def _words(body: JSON) -> str | None:
    """Return the text of an event that brings nothing else, as nearly every one does; None for any
    other.
    """
    choices = body.get("choices")
    if (
        type(choices) is not list
        or len(choices) != 1
        or body.get("usage")
        or body.get("x_groq")
        or type(choices[0]) is not dict
    ):
        return None
    choice = choices[0]
    delta = choice.get("delta")
    if (
        type(delta) is not dict
        or choice.get("finish_reason")
        or choice.get("index")
        or not delta.keys() <= _PLAIN
    ):
        return None
    words, names = delta.get("content"), (body.get("model"), body.get("id"))
    return words if type(words) is str and type(names[0]) is type(names[1]) is str else None


_PLAIN = {"content", "role"}


def _legacy(delta: JSON) -> dict[str, str]:
    call = obj(delta.get("function_call"))
    return {name: text(call[name]) for name in ("name", "arguments") if call.get(name)}


def _deltas(calls: object) -> list[JSON]:
    """Mistral sometimes sends a whole call without index: then its place in the list is meant."""
    if not calls:
        return []
    return [
        _tool_call(call) | {"index": place if call.get("index") is None else count(call["index"])}
        for place, call in enumerate(items(calls))
    ]


def _responses_chunk(body: JSON, native: bytes) -> Chunk:
    """Responses events pass through; only their text, their end and their usage are read."""
    kind, response = text(body.get("type")), obj(body.get("response"))
    if kind in ("response.failed", "error"):
        raise ProviderUnavailable("the provider's stream ended with an error")
    ended = kind in ("response.completed", "response.incomplete")
    return Chunk(
        text=text(body.get("delta")) if kind == "response.output_text.delta" else "",
        native=native,
        finish_reason=("stop" if kind == "response.completed" else "length") if ended else None,
        usage=usage_of(response.get("usage")) if ended else None,
        model=response.get("model"),
        id=response.get("id"),
        dialect=NAME,
    )
