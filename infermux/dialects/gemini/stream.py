"""Writes streams to clients: passes Google's own chunks on, or makes them from other vendors'.

A stream is a sequence of server-sent events or one JSON array. Neither has a terminator but the
finish reason (and the array's bracket), so the chunk that has it is kept until the stream ends.
"""

from __future__ import annotations

from ...errors import InferMuxError
from ...protocol import strict_json
from ...types import JSON, Chunk, Usage
from ..blocks import StreamAccumulator
from . import NAME
from .downstream import calls, content_of, drawn, encode_error, grounding_of, thoughts

JSON_TYPE = "application/json; charset=UTF-8"  # of an array


class Encoder:
    """Encodes the chunks of one stream, as an *array* or as events."""

    def __init__(self, *, model: str, ident: str, array: bool) -> None:
        self._model, self._ident, self._array = model, ident, array
        self._begun = self._ended = False
        self._held = b""  # the vendor's chunk that may be the last
        self._whole = StreamAccumulator()

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.native is not None and chunk.dialect == NAME:
            ready = chunk.native
            self._ended |= bool(chunk.finish_reason)
            if self._ended:
                ready, self._held = self._held, ready
            return self._framed(ready) if ready else b""
        self._whole.add(chunk)
        parts = [{"text": chunk.reasoning, "thought": True}] if chunk.reasoning else []
        parts += [{"text": words} for words in (chunk.text, chunk.refusal) if words]
        parts += drawn(chunk.images)
        return self._framed(strict_json.encode(content_of(parts, self._head))) if parts else b""

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last event: the vendor's own, or one with calls, usage and *summary*."""
        last = self._held
        if not last:
            found = self._whole.response("", "")
            finish = found.finish_reason or "stop"
            parts = thoughts("", [*found.details]) + calls(found.tool_calls, finish)
            cited = grounding_of(found.annotations, found.content)
            usage = usage or Usage()
            body = content_of(parts, self._head, finish=finish, usage=usage, cited=cited)
            last = strict_json.encode(body | ({"infermux": summary} if summary else {}))
        return self._framed(last) + (b"\n]" if self._array else b"")

    def error(self, error: InferMuxError) -> bytes:
        """Return the event that ends a failed stream: no finish reason, and no end of the array."""
        return self._framed(strict_json.encode(encode_error(error)))

    def heartbeat(self) -> bytes:
        """Return an empty line, which clients of both forms ignore."""
        return b"\r\n"

    @property
    def _head(self) -> JSON:
        return {"modelVersion": self._model, "responseId": self._ident}

    def _framed(self, data: bytes) -> bytes:
        if not self._array:
            return b"data: " + data.replace(b"\n", b"\r\ndata: ") + b"\r\n\r\n"
        mark, self._begun = b"\n,\r\n" if self._begun else b"[", True
        return mark + data
