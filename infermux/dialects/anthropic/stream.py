"""Writes event streams to clients: passes Anthropic's events on, or makes them from chunks.

A message is a sequence of blocks, one open at a time.
"""

from __future__ import annotations

from ...errors import InferMuxError
from ...protocol import strict_json
from ...protocol.sse import Event
from ...types import JSON, Chunk, Usage
from ..blocks import CITED, TOOL, BlockWriter, Key, add_detail
from ..citations import URL
from . import NAME
from .downstream import (
    citation_of,
    encode_error,
    encode_usage,
    message_of,
    pictures,
    sealed,
    stop_reason,
    thought_of,
    tool_use_of,
)


def event(name: str, members: JSON) -> bytes:
    data = strict_json.encode({"type": name, **members})
    return f"event: {name}\ndata: ".encode() + data + b"\n\n"


class Encoder(BlockWriter):
    """Encodes the chunks of one stream."""

    def __init__(self, *, model: str, ident: str, native: bool) -> None:
        super().__init__()
        self._model, self._ident, self._native = model, ident, native
        self._passed = self._started = False
        self._held = b""  # the vendor's message_stop
        self._index = -1  # of the last block
        self._uncited: list[JSON] = []
        self._texts = 0  # blocks of text that citations have ended
        self._reason: str | None = None
        self._usage = Usage()
        self._called = False
        self._details: list[JSON] = []  # of the open thinking, if another vendor's

    def encode(self, chunk: Chunk) -> bytes:
        if self._native and chunk.native is not None and chunk.dialect == NAME:
            return self._pass(chunk.native)
        self._reason, self._usage = chunk.finish_reason or self._reason, chunk.usage or self._usage
        if not (chunk.has_content or chunk.annotations):
            return b""
        pieces = _pieces(chunk, self._texts)
        self._texts += bool(chunk.annotations)
        return self._start() + self.drain(pieces, last=bool(chunk.finish_reason))

    def cite(self, annotations: list[JSON]) -> bytes:
        """Return the citations of the open block of text; without one, they wait for the next."""
        annotations, self._uncited = self._uncited + annotations, []
        if self.opened is None or self.opened[0] != "text":
            self._uncited = annotations
            return b""
        deltas = [{"type": "citations_delta", "citation": citation_of(a[URL])} for a in annotations]
        return b"".join(map(self._delta, deltas))

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last events, with *summary* in message_stop."""
        more = {"infermux": summary} if summary else {}
        if self._passed:
            return _spliced(self._held, more) if self._held else event("message_stop", more)
        self._usage = usage or self._usage
        head = self._start() + self.drain([], last=True) + self.close()
        reason = stop_reason(self._reason, called=self._called)
        delta = {"stop_reason": reason, "stop_sequence": None}
        figures = {"delta": delta, "usage": encode_usage(self._usage)}
        return head + event("message_delta", figures) + event("message_stop", more)

    def error(self, error: InferMuxError) -> bytes:
        """Return the error event that ends a failed stream."""
        return event("error", encode_error(error))

    def heartbeat(self) -> bytes:
        return event("ping", {})

    def _pass(self, native: bytes) -> bytes:
        self._passed = True
        may_stop = b"message_stop" in native
        if may_stop and strict_json.lenient(_data(native)).get("type") == "message_stop":
            self._held = native
            return b""
        return native

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        message = message_of(self._ident, self._model, [], None, encode_usage(self._usage))
        return event("message_start", {"message": message})

    def begin(self, key: Key, piece: JSON) -> bytes:
        self._index += 1
        self._called = self._called or key[0] == TOOL
        block = {"index": self._index, "content_block": _empty(key, piece)}
        return event("content_block_start", block)

    def grow(self, key: Key, piece: JSON) -> bytes:
        head = self.cite([]) if self._uncited else b""
        for detail in piece.get("details", ()):
            add_detail(self._details, detail)
        return head + b"".join(map(self._delta, _deltas(piece)))

    def _delta(self, delta: JSON) -> bytes:
        return event("content_block_delta", {"index": self._index, "delta": delta})

    def finish(self, key: Key) -> bytes:
        signature, self._details = sealed(self._details), []
        deltas = map(self._delta, _deltas({"signature": signature}))
        return b"".join(deltas) + event("content_block_stop", {"index": self._index})


def _deltas(piece: JSON) -> list[JSON]:
    if "function" in piece:
        more = piece["function"].get("arguments") or ""
        return [{"type": "input_json_delta", "partial_json": more}] if more else []
    return [
        {"type": f"{name}_delta", name: piece[name]}
        for name in ("text", "thinking", "signature")
        if piece.get(name)
    ]


def _pieces(chunk: Chunk, texts: int) -> list[tuple[Key, JSON]]:
    pieces: list[tuple[Key, JSON]] = [
        (("thinking", detail.get("index")), block)
        for detail in chunk.details
        if (block := thought_of(detail))
    ]
    if not pieces and (chunk.reasoning or sealed(chunk.details)):
        thought = {"thinking": chunk.reasoning, "details": chunk.details}
        pieces.append((("thinking", None), thought))
    spoken = (chunk.text, chunk.refusal)
    pieces += [(("text", texts), {"text": words}) for words in spoken if words]
    if chunk.annotations:  # the text after them is not what they are about
        pieces.append((CITED, {"annotations": list(chunk.annotations)}))
        texts += 1
    pieces += [(("text", texts), {"text": words}) for words in pictures(chunk.images)]
    calls = chunk.tool_calls
    return pieces + [((TOOL, call["index"]), {"function": {}, **call}) for call in calls]


def _empty(key: Key, piece: JSON) -> JSON:
    """Return the block for content_block_start, empty unless it is redacted."""
    if key[0] == TOOL:
        return tool_use_of(piece)
    if key[0] == "text":
        return {"type": "text", "text": ""}
    return piece if "data" in piece else {"type": "thinking", "thinking": "", "signature": ""}


def _data(native: bytes) -> bytes:
    return b"\n".join(line[5:] for line in native.split(b"\n") if line.startswith(b"data:"))


def _spliced(native: bytes, more: JSON) -> bytes:
    """Return the vendor's message_stop with the members of *more* added."""
    if not more:
        return native
    try:
        data = strict_json.document(_data(native)).replaced(more)
    except ValueError:  # an odd last event must not break a complete stream
        return native
    return Event(data, b"message_stop").encode()
