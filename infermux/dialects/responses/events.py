"""Reads the items of a vendor's responses, and the events of its streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ...errors import ProviderError, having
from ...protocol import strict_json
from ...protocol.sse import Event
from ...types import JSON, Chunk, Usage
from .. import (
    items,
    listed,
    members,
    obj,
    provider_error,
    read_object,
    text,
    typed,
    with_native,
    without,
    word,
)
from ..blocks import StreamAccumulator, whole
from ..citations import citations, image
from ..openai.upstream import decode_error
from ..openai.usage import usage_of as chat_usage
from ..sizes import CONTAINER, gigabytes
from . import DRAWN, NAME

_STATUS = {  # of the errors inside a response or a stream, which have only a code
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "server_error": 500,
    "vector_store_timeout": 504,
    "model_not_found": 404,
    "previous_response_not_found": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "cyber_policy": 400,
    "bio_policy": 400,
}
_REJECTED = ("invalid_", "unsupported_", "image_", "empty_image", "failed_to_download_image")
_ENDED = ("response.completed", "response.incomplete")
_FAILED = ("response.failed", "error")
# the members of a call's object in chat's form, and of its input
CALLS = {"function_call": ("function", "arguments"), "custom_tool_call": ("custom", "input")}
# Events, and types of added items, that have no content yet or repeat what came before.
_SILENT = frozenset(
    {
        "message",
        "reasoning",
        *("response.created", "response.queued", "response.in_progress", "keepalive"),
        *("response.content_part.added", "response.content_part.done"),
        *("response.output_text.done", "response.refusal.done"),
        *("response.reasoning_summary_part.added", "response.reasoning_summary_part.done"),
        *("response.reasoning_summary_text.done", "response.reasoning_text.done"),
        *CALLS,
        *_ENDED,
    }
)


def drawn(item: JSON) -> list[JSON]:
    return image(f"image/{item.get('output_format') or 'png'}", item.get("result"))


_DETAILS = {"summary": "summary", "text": "text", "data": "encrypted"}


def detail_of(ident: str, form: str, index: int, member: str, value: str) -> JSON:
    """Return a reasoning detail, as OpenRouter writes it, with its own *index*."""
    named = {"id": ident} if ident else {}
    kind = f"reasoning.{_DETAILS[member]}"
    return {"type": kind, member: value, **named, "format": form, "index": index}


def call_of(item: JSON, words: str) -> JSON:
    """Return an item's tool call in chat's form, with *words* as its input."""
    which, member = CALLS[item["type"]]
    ident = text(item.get("call_id")) or text(item.get("id"))
    return {"id": ident, "type": which, which: {"name": text(item.get("name")), member: words}}


def usage_of(body: JSON) -> Usage | None:
    """Return the usage of a response, with the tier that was billed; or None."""
    usage, fees = chat_usage(body.get("usage"), body.get("service_tier")), fees_of(body)
    return replace(usage, fees=fees) if usage is not None and fees else usage


# calls of tools that cost nothing themselves, and those of the client's own tools
_FREE = frozenset(
    ("function", "custom_tool", "computer", "local_shell", "shell", "apply_patch", "mcp")
    + ("tool_search",)
)


def fees_of(body: JSON) -> tuple[tuple[str, int], ...]:
    """Return the vendor's own tools that a response has used, and how often.

    A container, in which code or a shell runs, counts once for each gigabyte.
    """
    found: dict[str, set[object]] = {}
    for place, item in enumerate(listed(body.get("output"))):
        kind, where = word(item.get("type")), members(item.get("environment")).get("container_id")
        name = CONTAINER if kind == "shell_call" and where else kind.removesuffix("_call")
        if name == kind or name in _FREE:
            continue
        action = word(members(item.get("action")).get("type"))
        if name == "web_search" and action not in ("", "search"):
            continue  # pages are opened free of charge
        what: object = where or item.get("container_id") or item.get("id") or place
        found.setdefault(name, set()).add(str(what))
    times = {CONTAINER: max([1, *map(gigabytes, listed(body.get("tools")))])}
    return tuple((name, len(used) * times.get(name, 1)) for name, used in found.items())


def finish_reason(body: JSON, *, called: bool) -> str:
    """Return OpenAI's finish_reason of a response with this status."""
    if body.get("status") in ("incomplete", "cancelled"):
        reason = text(obj(body.get("incomplete_details")).get("reason"))
        return "content_filter" if reason == "content_filter" else "length"
    return "tool_calls" if called else "stop"


def failure(value: Any) -> ProviderError:
    """Return the error for the error object of a failed response or of an event."""
    error = members(value)
    code = word(error.get("code")) or word(error.get("type"))
    status = _STATUS.get(code, 400 if code.startswith(_REJECTED) else 502)
    message, param = word(error.get("message")), word(error.get("param")) or None
    failed = provider_error(status, message, code=code, param=param)
    return with_native(failed, "openai", status, {}, strict_json.encode({"error": error}))


# -- streams --


class Reader:
    """Turns the events of one stream into chunks."""

    def __init__(self, form: str) -> None:
        self.finished = False
        self._form = form
        self._indices: dict[tuple[object, ...], int] = {}  # of reasoning details
        self._calls: dict[object, tuple[int, JSON, list[str]]] = {}  # number, item, its input
        self._told: dict[tuple[object, object], int] = {}  # characters of each part
        self._started = False  # something of the output has come
        self._items: list[JSON] = []  # that are done, without text

    def read(self, event: Event) -> Iterator[Chunk]:
        """Yield the chunks of an event, the last with the event itself; raise its error."""
        body = obj(strict_json.lenient(event.data))
        native = typed(event, body).encode()
        kind = text(body.get("type"))
        if kind in _FAILED or (not kind and body.get("error")):
            yield from self._failed(body)
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            chunk = self._words(kind, body, text(body.get("delta")))
        else:
            chunk = self._chunk(kind, body)
            self._started = self._started or chunk.has_content
        yield chunk._replace(native=native, dialect=NAME)

    def _failed(self, body: JSON) -> Iterator[Chunk]:
        """Yield what a failed response has used; then raise its error."""
        response = obj(body.get("response"))
        if (usage := usage_of(response)) is not None:
            yield Chunk(usage=usage, model=word(response.get("model")) or None)
        error = response.get("error") or body.get("error") or without(body, "type")
        raise having(failure(error), usage=usage)

    def _chunk(self, kind: str, body: JSON) -> Chunk:
        if kind in _ENDED:
            return self._end(obj(body.get("response")))
        if kind in ("response.output_text.done", "response.refusal.done"):
            member = "refusal" if "refusal" in kind else "text"
            return self._words(kind, body, self._rest(body, text(body.get(member))))
        if kind == "response.reasoning_summary_text.delta":
            return self._thought(body, "summary", body.get("summary_index"))
        if kind == "response.reasoning_text.delta":
            return self._thought(body, "text", body.get("content_index"))
        if kind == "response.output_text.annotation.added":
            return self._cited(body)
        if kind.startswith(("response.function_call_arg", "response.custom_tool_call_input")):
            return self._more(kind, body)
        if kind in ("response.output_item.added", "response.output_item.done"):
            return self._item(kind, body)
        if kind.startswith("response.") and isinstance(body.get("response"), dict):
            response = body["response"]
            model, ident = text(response.get("model")) or None, text(response.get("id")) or None
            goes_on = response.get("background") is True  # without the client: it needs the id
            return Chunk(model=model, id=ident, shown=goes_on)
        return Chunk(shown=kind.startswith("response.") and kind not in _SILENT)

    def _words(self, kind: str, body: JSON, words: str) -> Chunk:
        self._started = True
        key = (body.get("output_index"), body.get("content_index"))
        self._told[key] = self._told.get(key, 0) + len(words)
        return Chunk(refusal=words) if "refusal" in kind else Chunk(words)

    def _cited(self, body: JSON) -> Chunk:
        """Return the chunk of a citation; its indices count within its part."""
        before, own = 0, (body.get("output_index"), body.get("content_index"))
        for key, length in self._told.items():
            if key == own:
                break
            before += length
        found = citations([body.get("annotation")], before, flat=True)
        return Chunk(annotations=found, shown=not found)

    def _rest(self, body: JSON, whole: str) -> str:
        return whole[self._told.get((body.get("output_index"), body.get("content_index")), 0) :]

    def _thought(self, body: JSON, member: str, part: object) -> Chunk:
        words, ident = text(body.get("delta")), text(body.get("item_id"))
        index = self._index(ident or body.get("output_index"), member, part)
        detail = detail_of(ident, self._form, index, member, words)
        return Chunk(reasoning=words, details=[detail])

    def _index(self, *key: object) -> int:
        return self._indices.setdefault(key, len(self._indices))

    def _item(self, kind: str, body: JSON) -> Chunk:
        item = obj(body.get("item"))
        what, done = text(item.get("type")), kind.endswith("done")
        if done and what.endswith("_call") and what not in CALLS:
            self._items.append(item)
        if what in CALLS:
            return self._call(item, body, done=done)
        if what == "message" and done:
            return self._message(item, body)
        if what == "reasoning" and done:
            return self._reasoned(item, body)
        if what == DRAWN and done:
            return Chunk(images=drawn(item))
        return Chunk(shown=not done and what not in _SILENT)

    def output(self, body: JSON) -> Iterator[Chunk]:
        """Yield what a finished response has that no event has brought."""
        kind, output = "response.output_item.done", items(body.get("output"))
        for place, item in enumerate(() if self._started or self._calls else output):
            yield self._item(kind, {"item": item, "output_index": place})
        yield Chunk(
            finish_reason=finish_reason(body, called=bool(self._calls)),
            usage=usage_of(body | {"output": output or self._items}),
            model=text(body.get("model")) or None,
            id=text(body.get("id")) or None,
        )

    def _end(self, response: JSON) -> Chunk:
        """Return the last chunk; it has the whole output if no event before told of it."""
        self.finished, said = True, StreamAccumulator()
        for chunk in self.output(response):
            said.add(chunk)
        return next(whole(said.response("", "")))

    def _message(self, item: JSON, body: JSON) -> Chunk:
        """Return the chunk of a message that had no deltas."""
        place, said, found = body.get("output_index"), {"text": "", "refusal": ""}, list[JSON]()
        parts = () if any(known == place for known, _ in self._told) else item.get("content")
        for number, part in enumerate(items(parts or None)):
            kind = "refusal" if part.get("type") == "refusal" else "text"
            words = text(part.get(kind))
            found += citations(part.get("annotations"), sum(self._told.values()), flat=True)
            self._words(kind, {"output_index": place, "content_index": number}, words)
            said[kind] += words
        return Chunk(said["text"], refusal=said["refusal"], annotations=found)

    def _call(self, item: JSON, body: JSON, *, done: bool) -> Chunk:
        key = _key(item.get("id"), body)
        whole = text(item.get(CALLS[item["type"]][1]))
        known = self._calls.get(key)
        if known is None:
            said = whole if done else ""
            self._calls[key] = known = len(self._calls), item, [said]
            return Chunk(tool_calls=[{"index": known[0]} | call_of(item, said)])
        return self._whole(key, whole) if done else Chunk()

    def _more(self, kind: str, body: JSON) -> Chunk:
        key = _key(body.get("item_id"), body)
        if key not in self._calls:
            return Chunk(shown=kind.endswith(".delta"))  # its item comes when it is done
        if kind.endswith(".delta"):
            return self._input(key, text(body.get("delta")))
        member = "arguments" if "arguments" in kind else "input"
        return self._whole(key, text(body.get(member)))

    def _whole(self, key: object, whole: str) -> Chunk:
        """Return the chunk of a call's input beyond what was said of it."""
        said = "".join(self._calls[key][2])
        return self._input(key, whole[len(said) :] if whole.startswith(said) else "")

    def _input(self, key: object, more: str) -> Chunk:
        number, item, said = self._calls[key]
        if not more:
            return Chunk()
        said.append(more)
        which, member = CALLS[item["type"]]
        return Chunk(tool_calls=[{"index": number, which: {member: more}}])

    def _reasoned(self, item: JSON, body: JSON) -> Chunk:
        """Return the chunk of a reasoning item's encrypted content, and of what had no deltas."""
        ident = text(item.get("id"))
        key = ident or body.get("output_index")
        details, thoughts = [], []
        for name, member in (("summary", "summary"), ("content", "text")):
            for number, part in enumerate(items(item.get(name))):
                if (key, member, number) not in self._indices and (words := text(part.get("text"))):
                    index = self._index(key, member, number)
                    details.append(detail_of(ident, self._form, index, member, words))
                    thoughts.append(words)
        if data := text(item.get("encrypted_content")):
            index = self._index(key, "data", 0)
            details.append(detail_of(ident, self._form, index, "data", data))
        return Chunk(reasoning="".join(thoughts), details=details)


def _key(ident: object, body: JSON) -> object:
    """Return the key of a call in one stream; some vendors give items no id."""
    place = body.get("output_index")
    return place if isinstance(place, int) else ident


def read_response(data: bytes) -> JSON:
    """Return a response's object; raise the error that it holds, or ValueError."""
    body = strict_json.lenient(data)
    if isinstance(body, dict) and body.get("status") == "failed":
        raise having(failure(body.get("error")), usage=usage_of(body))
    return read_object(data, decode_error)
