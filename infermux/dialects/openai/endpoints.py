"""The endpoints that are passed through: images, audio, moderations, rerank, files, batches.

What a client sends goes to the vendor as it is, with our model, and the answer comes back as it
is. Of the answer only what says how it is billed is read, while it passes.

Sources: https://platform.openai.com/docs/api-reference, https://docs.cohere.com/reference/rerank,
https://api.jina.ai/redoc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from ...config.readers import ENDPOINTS as NAMES
from ...errors import ProviderError, StreamIncomplete
from ...protocol import InferRequest, InferResponse, strict_json
from ...protocol.scanning import EventScanner, Members
from ...types import HEARTBEAT, JSON, Chunk, Usage
from .. import NO_TERMINATOR, Headers, error_status, members, word
from ..sizes import number
from . import NAME
from .metering import READ, batch_usage, usage_of

HOLD = 262_144  # bytes of JSON, or of an event, that are held until they are whole
DONE = b"[DONE]"
Raise = Callable[[int, Headers, bytes], ProviderError]
Pieces = Iterator[bytes | None]  # None: nothing for a while


class Endpoint(NamedTuple):
    """An operation that is passed through."""

    whole: bool = False  # its answers are short JSON
    model: str = ""  # the vendor's own default
    text: str = ""  # the field of the text that a client sends


_DRAWN = Endpoint(model="gpt-image-1", text="prompt")
_OWN = {
    "images/generations": _DRAWN,
    "images/edits": _DRAWN,
    "images/variations": Endpoint(model="dall-e-2"),
    "audio/speech": Endpoint(text="input"),
    "moderations": Endpoint(True, "omni-moderation-latest", "input"),
    "rerank": Endpoint(True, text="query"),
    **dict.fromkeys(("files", "batches"), Endpoint(True)),
}
ENDPOINTS = {name: _OWN.get(name, Endpoint()) for name in NAMES}
STORED = ("files", "batches", "batch", "content")  # operations on what a vendor stores
FREE = ("files", "batch", "content")  # that cost nothing themselves
PATHS = {op: f"/{op}" for op in NAMES}
_SUMMED = (
    *("input_tokens", "output_tokens", "input_image_tokens", "output_image_tokens"),
    *("input_audio_tokens", "output_audio_tokens", "total_tokens"),
)
_ENDED = ("completed", "expired", "cancelled", "failed")


def endpoint_of(op: str) -> str:
    """Return the endpoint that a provider needs for an operation."""
    return {"batch": "batches", "content": "files"}.get(op, op)


def encode(request: InferRequest) -> bytes:
    """Return the body: the client's own with our model; empty if it has none."""
    own = request.body_in(NAME)
    if own is None or not own.text:
        return b""
    same = request.op in STORED or own.value.get("model") == request.model
    return own.replaced({} if same else {"model": request.model})


# -- short answers --


def decode(data: bytes, request: InferRequest, raising: Raise) -> InferResponse:
    body = strict_json.lenient(data) if data.strip() else {}
    found = members(body)
    if _is_error(found):
        raise raising(error_status(found["error"]), {}, data)
    usage: Usage | None = None
    extra: JSON = {}
    if request.op == "batches":
        extra = {"pending": True}
    elif request.op == "batch":
        usage, extra = _ended_batch(found)
    elif request.op not in STORED:
        usage = usage_of(found, request)
    return InferResponse(
        word(found.get("model")) if request.op != "files" else "",
        request.provider,
        "",
        (usage and usage.input_tokens) or 0,
        (usage and usage.output_tokens) or 0,
        finish_reason="",
        usage=usage,
        id=word(found.get("id")),
        native=(NAME, data),
        extra=extra,
    )


def _ended_batch(body: JSON) -> tuple[Usage | None, JSON]:
    made = body.get("created_at")
    if body.get("object") != "batch" or body.get("status") not in _ENDED or type(made) is not int:
        return None, {}
    counts = members(body.get("request_counts"))
    return batch_usage(body), {"began": made, "requests": number(counts.get("completed")) or 1}


def _is_error(body: JSON) -> bool:
    return bool(body.get("error")) and not body.get("object")


# -- answers that pass in pieces --


def decode_pieces(pieces: Pieces, request: InferRequest, raising: Raise) -> Iterator[Chunk]:
    """Yield an answer as it arrives, then its usage.

    Short JSON and each event are held until they are whole, so that another target can be tried
    if the first one is cut.
    """
    media = request.passed.media
    if "event-stream" in media:
        return _Events(request, raising).chunks(pieces)
    return _bytes(pieces, request, raising if "json" in media else None)


def _bytes(pieces: Pieces, request: InferRequest, raising: Raise | None) -> Iterator[Chunk]:
    found, held = Members(*READ), bytearray()
    most = HOLD if raising is not None else 0
    for piece in pieces:
        if piece is None:
            yield HEARTBEAT
            continue
        if raising is not None:
            found.feed(piece)
        held += piece
        if len(held) > most:
            most = 0
            yield Chunk(native=bytes(held), shown=True, dialect=NAME)
            held.clear()
    told = found.values()
    if raising is not None:
        if not found.whole:
            raise ValueError("an answer that is not whole")
        if most and _is_error(told):
            raise raising(error_status(told["error"]), {}, bytes(held))
    yield Chunk(
        native=bytes(held),
        finish_reason="stop",
        usage=usage_of(told, request, found.items),
        model=word(told.get("model")) or None,
        dialect=NAME,
        shown=True,
    )


class _Events:
    """The events of an answer, which pass as they are; each is held until it is whole."""

    def __init__(self, request: InferRequest, raising: Raise) -> None:
        self._request, self._raising = request, raising
        self._ended = self._any = False
        self._images = 0
        self._usage: Usage | None = None
        wanted = number(request.params.get("n")) if request.op.startswith("images/") else None
        self._wanted = max(1, wanted or 1)

    def chunks(self, pieces: Pieces) -> Iterator[Chunk]:
        """Yield whole events; raise StreamIncomplete if the last one is missing."""
        scanner, held = EventScanner(self._event, "type", "error", *READ), bytearray()
        most = HOLD  # 0 while a longer event passes
        for piece in pieces:
            if piece is None:
                yield HEARTBEAT
                continue
            before = len(held)
            held += piece
            done = scanner.feed(piece)
            ready = before + done if done else len(held) if len(held) > most else 0
            if ready and (self._any or ready > most):
                most = HOLD if done else 0
                yield Chunk(native=bytes(memoryview(held)[:ready]), shown=True, dialect=NAME)
                del held[:ready]
            elif ready:
                yield HEARTBEAT
        scanner.feed(b"\n\n")  # the last event may lack its end
        if not self._ended:
            raise StreamIncomplete(NO_TERMINATOR)
        usage = self._usage or usage_of({}, self._request, self._images)
        rest = bytes(held) + b"\n\n" if held else b""
        yield Chunk(native=rest, finish_reason="stop", usage=usage, shown=True, dialect=NAME)

    def _event(self, found: JSON, text: bytes) -> None:
        kind = word(found.get("type"))
        if (error := found.get("error")) or kind == "error":
            error = error or found
            raise self._raising(error_status(error), {}, strict_json.encode({"error": error}))
        self._any = True
        if found.get("usage"):
            more = usage_of(found, self._request)
            self._usage = more if self._usage is None else _sum(self._usage, more)
        self._images += kind.startswith("image") and kind.endswith(".completed")
        last = kind.endswith(".done") or self._images >= self._wanted
        self._ended = self._ended or last or text == DONE


def _sum(one: Usage, other: Usage) -> Usage:
    sums: dict[str, Any] = {
        name: None if a is None and b is None else (a or 0) + (b or 0)
        for name in _SUMMED
        for a, b in [(getattr(one, name), getattr(other, name))]
    }
    return replace(one, **sums, fees=one.fees + other.fees)
