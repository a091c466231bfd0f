"""The OpenAI `Dialect`: writes requests to a vendor; reads responses, errors and streams.

Sources: https://platform.openai.com/docs/api-reference, and recorded traffic of some twenty
compatible vendors, whose deviations are named where they are handled.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

from ...errors import ModelNotFound, ProviderError, StreamIncomplete, shown
from ...protocol import CHAT, InferRequest, InferResponse, strict_json, text_of
from ...protocol.sse import Event
from ...types import HEARTBEAT, JSON, Chunk
from .. import (
    NO_TERMINATOR,
    Events,
    Headers,
    count,
    error_object,
    items,
    members,
    obj,
    parameters,
    path_of,
    provider_error,
    read_object,
    retry_after,
    text,
    with_native,
    without,
    word,
)
from ..blocks import StreamAccumulator, answer, complete
from ..citations import citations, images, sourced
from ..parameters import Drop, Unsaid, hint
from . import NAME, endpoints
from .endpoints import Pieces
from .requests import (
    LIMITS,
    embedding,
    fitted,
    limit_name,
    refused,
    translated,
    unknown,
)
from .usage import usage_of

PATHS = {
    CHAT: "/chat/completions",
    "completions": "/completions",
    "embeddings": "/embeddings",
    **endpoints.PATHS,
}
DONE = b"[DONE]"


def path(request: InferRequest, *, stream: bool) -> str:
    if request.op in endpoints.STORED:
        return str(request.passed.path)
    return path_of(PATHS, request, NAME)


def auth(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def headers(request: InferRequest) -> dict[str, str]:
    return {}


def encode_request(request: InferRequest, *, stream: bool) -> bytes:
    """Return the body: the client's own, with our model, if it is in this dialect.

    Streams are set to report usage. Params that the model refuses are always left out.
    """
    if request.passed is not None:
        return endpoints.encode(request)
    own, drop = request.body_in(NAME), Drop.of(request)
    out = refused(request.params, request.model)
    for name in out:
        hint(name, drop)
    if request.op == CHAT:
        out += unknown(request.params, request.model, drop)
    body = own.value if own is not None else _written(request, drop, stream=stream)
    new = _changes(body, request, drop, out, stream=stream)
    if own is not None and not out:
        return own.replaced(new)
    return request.encode((without(body, *out) if out else body) | new)


def unsaid(request: InferRequest, model: str) -> Unsaid:
    """Return what of the request cannot be expressed; of this dialect's form, no meaning."""
    native = request.native
    if native is None or native.dialect == NAME:
        unknown(request.params, model, drop := Drop(lenient=True))
        return Unsaid("", drop.preference)
    return parameters.unsaid(request, model, NAME, path, translated)


def _written(request: InferRequest, drop: Drop, *, stream: bool) -> JSON:
    """Return the body of a request in another format, or without one: that has this form itself."""
    if request.native is None:
        messages = {"messages": list(request.messages)} if request.op == CHAT else {}
        body = {"model": request.model, **messages, **request.params}
    else:
        body = (embedding if request.op == "embeddings" else translated)(request, drop)
    return body | ({"stream": True} if stream else {})


def _changes(
    body: JSON, request: InferRequest, drop: Drop, out: list[str], *, stream: bool
) -> JSON:
    """Return the members of a body in this dialect that differ for us; add to *out* those to go."""
    new: JSON = {} if body.get("model") == request.model else {"model": request.model}
    if stream and request.op in (CHAT, "completions"):
        options = obj(body.get("stream_options"))
        if not options.get("include_usage"):
            new["stream_options"] = options | {"include_usage": True}
    if request.op == CHAT:
        new |= fitted(body, request, drop)
        for name in LIMITS:
            most = body.get(name)
            if most is not None and (limit := limit_name(name, request.model)) != name:
                new[limit] = body.get(limit) or most
                out.append(name)
    return new


# -- answers --


def decode_response(data: bytes, request: InferRequest) -> InferResponse:
    if request.passed is not None:
        return endpoints.decode(data, request, decode_error)
    body, native = read_object(data, decode_error), (NAME, data)
    if request.op in (CHAT, "completions"):
        return _choice(body, request, native)
    return answer(request, native, _read(body, {}, {}), extra={"data": _embeddings(body)})


def decode_pieces(pieces: Pieces, request: InferRequest) -> Iterator[Chunk]:
    """Yield an answer that is passed through as it arrives."""
    return endpoints.decode_pieces(pieces, request, decode_error)


def _embeddings(body: JSON) -> list[JSON]:
    data = items(body.get("data"))
    if not data or not all("embedding" in item for item in data):
        raise ValueError("an answer without embeddings")
    return data


def _choice(body: JSON, request: InferRequest, native: tuple[str, bytes]) -> InferResponse:
    choices = items(body.get("choices"))
    if not choices and request.op == CHAT:
        raise ValueError("an answer without choices")
    choice = choices[0] if choices else {}
    message = obj(choice.get("message"))
    items(message.get("tool_calls"))  # an empty object is no list either
    said = _read(body, choice, message)
    found = answer(request, native, said)
    found.annotations = said.annotations or sourced(body, said.text)
    if len(choices) > 1:
        found.extra = {**found.extra, "more": "".join(map(_said, choices[1:]))}
    return found


def _read(body: JSON, choice: JSON, said: JSON, **fields: Any) -> Chunk:
    """Return what a choice says, whole or a piece of it, with *fields*."""
    words = choice["text"] if "text" in choice and not said else said.get("content")
    content, thinking = _content(words)
    usage = body.get("usage") or (body.get("x_groq") or {}).get("usage")
    return Chunk(
        content,
        text(said.get("reasoning_content")) or text(said.get("reasoning")) or thinking,
        text(said.get("refusal")),
        _deltas(said.get("tool_calls")),
        finish_reason(choice["finish_reason"]) if choice.get("finish_reason") else None,
        usage_of(usage, body.get("service_tier")) if usage else None,
        details=_details(said.get("reasoning_details")),
        model=text(body.get("model")) or None,
        id=text(body.get("id")) or None,
        function_call=_legacy(said),
        annotations=citations(said.get("annotations")),
        images=images(said.get("images")),
        **fields,
    )


def _details(value: object) -> list[JSON]:
    for detail in (found := items(value)):
        count(detail.get("index"))
        for name in ("text", "signature", "data"):
            text(detail.get(name))
    return found


def _said(choice: JSON) -> str:
    """Return all that a choice, or a piece of one, says, for an estimate of its tokens."""
    whole = StreamAccumulator()
    whole.add(_read({}, choice, obj(choice.get("message")) or obj(choice.get("delta"))))
    return whole.text


_REASONS = {
    **dict.fromkeys(
        ("", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "normal"), "stop"
    ),
    **dict.fromkeys(("max_tokens", "model_length", "model_context_window_exceeded"), "length"),
    "sensitive": "content_filter",
}


def finish_reason(value: object) -> str:
    """Return OpenAI's finish_reason: stop for a missing value, an unknown one in lower case."""
    reason = text(value).lower().partition(":")[0]
    return _REASONS.get(reason, reason)


def _content(value: object) -> tuple[str, str]:
    """Return the text and reasoning of a content, a string or (Mistral) a list of parts."""
    if not isinstance(value, list):
        return text(value), ""
    words, thoughts = [], []
    for part in items(value):
        if part.get("type") == "thinking":
            thoughts.append(text_of(part.get("thinking")))
        else:
            words.append(text(part.get("text")))
    return "".join(words), "".join(thoughts)


def _tool_call(call: JSON) -> JSON:
    if call.get("type") == "custom":
        return call
    function = obj(call.get("function"))
    arguments = function.get("arguments")
    if isinstance(arguments, dict):
        arguments = strict_json.dumps(arguments)
    return {
        "id": text(call.get("id")),
        "type": "function",
        "function": {"name": text(function.get("name")), "arguments": text(arguments)},
        **without(call, "id", "type", "function", "index"),
    }


# -- errors --


def decode_error(status: int, headers: Headers, data: bytes) -> ProviderError:
    """Return the error in a response of OpenAI or a compatible vendor."""
    error = error_object(data)
    wait = retry_after(headers) if status in (429, 503, 529) else None
    failed = provider_error(
        status,
        word(error.get("message")),
        code=f"{word(error.get('code'))} {word(error.get('type'))}",
        param=word(error.get("param")) or None,
        retry_after=_reset(error) if wait is None else wait,
    )
    return with_native(failed, NAME, status, headers, data)


def _reset(error: JSON) -> float | None:
    """Return the seconds until OpenRouter's limit resets; the body has that as ms since 1970."""
    headers = members(members(error.get("metadata")).get("headers"))
    reset = word(headers.get("X-RateLimit-Reset"))
    if not (reset.isascii() and reset.isdigit() and len(reset) < 16):
        return None
    return max(0.0, int(reset) / 1000 - time.time())


# -- streams --


def decode_events(events: Events, request: InferRequest) -> Iterator[Chunk]:
    """Yield a stream's chunks; raise StreamIncomplete without [DONE] and finish reason.

    Perplexity and Hugging Face send no [DONE]. Half a call without a reason is a cut.
    """
    finished, tier = False, None
    said: list[str] = []
    calls, known = StreamAccumulator(), list[tuple[int, str]]()
    for event in events:
        if event is None or not event.data:
            yield HEARTBEAT
        elif event.data.startswith(DONE):
            finished = finished or not any(map(_is_half, calls.response("", "").tool_calls))
            break
        else:
            body = read_object(event.data, decode_error)
            chunk = _chunk(event, body)
            tier = tier or body.get("service_tier")
            if tier and chunk.usage is not None and not chunk.usage.service_tier:
                chunk = chunk._replace(usage=replace(chunk.usage, service_tier=word(tier) or None))
            said.append(chunk.text)
            if chunk.tool_calls:
                _number(chunk.tool_calls, known)
                calls.add(chunk)
            if chunk.finish_reason and not finished:
                finished = True
                if found := sourced(body, "".join(said)):
                    chunk = chunk._replace(annotations=[*chunk.annotations, *found])
            yield chunk
    if not finished:
        raise StreamIncomplete(NO_TERMINATOR)


def _number(calls: Sequence[JSON], known: list[tuple[int, str]]) -> None:
    """Give each call of a stream an index of its own; Ollama gives all of them the first.

    *known*: the index and id of each before.
    """
    for call in calls:
        index, ident = call["index"], text(call.get("id"))
        begins = ident and obj(call.get("function") or call.get("custom")).get("name")
        alike = [at == index and (not begins or own in ("", ident)) for at, own in known]
        if True not in alike:
            known.append((index, ident))
        call["index"] = max((n for n, each in enumerate(alike) if each), default=len(alike))


def _is_half(call: JSON) -> bool:
    """Whether a call's arguments have begun and are no object."""
    words = obj(call.get("function")).get("arguments", "").strip()
    return bool(words) and not complete(words)


# the members of a delta that are content
_CONTENT = ("content", "reasoning", "reasoning_content", "refusal", "tool_calls", "function_call")
_MEDIA = ("audio", "images", "annotations")


def _chunk(event: Event, body: JSON) -> Chunk:
    if event.name == b"error":
        raise decode_error(502, {}, event.data)
    if b"\n" in event.data:
        event = event._replace(data=event.data.replace(b"\n", b" "))
    native = event.encode()
    if (words := _words(body)) is not None:
        return Chunk(
            words, native=native, model=body["model"] or None, id=body["id"] or None, dialect=NAME
        )
    choices = body.get("choices") or ()
    choice: JSON = next((each for each in choices if not each.get("index")), {})
    said = _read(
        body,
        choice,
        choice.get("delta") or {},
        native=native,
        dialect=NAME,
        shown=any(_is_shown(each) for each in choices),
        more="".join([_said(each) for each in choices if each.get("index")]),
    )
    return said if choices or said.usage is None else said._replace(usage_only=True)


def _is_shown(choice: JSON) -> bool:
    """Whether a choice has content that a Chunk cannot hold: media or a further choice."""
    further = bool(choice.get("index"))
    names = (*_CONTENT, *_MEDIA) if further else _MEDIA
    return any(map((choice.get("delta") or {}).get, names)) or bool(further and choice.get("text"))


_PLAIN = {"content", "role"}


def _words(body: JSON) -> str | None:
    """Return the text of an event with only text, as most are, else None."""
    choices = body.get("choices")
    if type(choices) is not list or len(choices) != 1 or body.get("usage") or body.get("x_groq"):
        return None
    choice = choices[0]
    delta = choice.get("delta") if type(choice) is dict else None
    if (
        type(delta) is not dict
        or choice.get("finish_reason")
        or choice.get("index")
        or not delta.keys() <= _PLAIN
    ):
        return None
    words, names = delta.get("content"), (body.get("model"), body.get("id"))
    return words if type(words) is str and type(names[0]) is type(names[1]) is str else None


def _legacy(delta: JSON) -> dict[str, str]:
    call = obj(delta.get("function_call"))
    return {name: text(call[name]) for name in ("name", "arguments") if call.get(name)}


def _deltas(calls: object) -> list[JSON]:
    """Return the tool calls with indices: their positions if missing, as at Mistral."""
    if not calls:
        return []
    return [
        _tool_call(call) | {"index": place if call.get("index") is None else count(call["index"])}
        for place, call in enumerate(items(calls))
    ]


# -- Azure: the model names a deployment, and another header carries the key --


def _deployment(request: InferRequest, *, stream: bool) -> str:
    plain = path(request, stream=stream)
    if request.op in endpoints.STORED:
        return plain
    if not request.model.strip("."):  # dots are path segments with a meaning, even if quoted
        raise ModelNotFound(f"no deployment is named {shown(request.model)}", param="model")
    return f"/deployments/{quote(request.model, safe='')}{plain}"


_AZURE = {"path": _deployment, "auth": lambda key: {"api-key": key}}
AZURE = SimpleNamespace(**globals() | _AZURE)
