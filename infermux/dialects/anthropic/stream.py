"""Anthropic's Messages format, our own door's streams."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...errors import InferMuxError, ProviderUnavailable
from ...protocol import strict_json
from ...types import JSON, Chunk, Usage
from .downstream import encode_error, encode_usage, message_of, stop_reason, thought_of, tool_use_of
from .requests import NAME

_TEXT = (
    "text",
    None,
)  # the key of a text block; ("tool", index) and ("thinking", index) are the others


def event(name: str, members: Mapping[str, Any]) -> bytes:
    """Return an event, whose name stands in its data as well."""
    return (
        f"event: {name}\ndata: ".encode() + strict_json.encode({"type": name, **members}) + b"\n\n"
    )


class Encoder:
    """Writes one stream: passes on the events of a vendor of this dialect, or makes them from
    another one's chunks.

    Blocks follow one another here, so while a tool call is not complete whatever belongs to another
    block has to wait.
    """

    def __init__(self, *, model: str, ident: str, native: bool) -> None:
        self._model, self._ident, self._native = model, ident, native
        self._passed = self._started = False
        self._held = b""  # the vendor's message_stop
        self._index = -1  # of the block that is open, or was last
        self._open: tuple[str, Any] | None = None
        self._arguments = ""  # of the call that is open
        self._closed: set[tuple[str, Any]] = set()
        self._waiting: list[tuple[tuple[str, Any], JSON]] = []
        self._reason: str | None = None
        self._usage = Usage()
        self._called = False

    def encode(self, chunk: Chunk) -> bytes:
        """Return what a client is to be told, which may be nothing."""
        if self._native and chunk.native is not None and chunk.dialect == NAME:
            return self._pass(chunk.native)
        self._reason, self._usage = chunk.finish_reason or self._reason, chunk.usage or self._usage
        if not chunk.has_content:
            return b""
        self._waiting += _pieces(chunk)
        return self._start() + self._drain(last=bool(chunk.finish_reason))

    def end(self, summary: Mapping[str, Any], usage: Usage | None) -> bytes:
        """Return the end of a stream that is whole."""
        more = {"infermux": dict(summary)} if summary else {}
        if self._passed:
            return _spliced(self._held, more) if self._held else event("message_stop", more)
        self._usage = usage or self._usage
        delta = {
            "stop_reason": stop_reason(self._reason, called=self._called),
            "stop_sequence": None,
        }
        return b"".join(
            (
                self._start(),
                self._drain(last=True),
                self._close(),
                event("message_delta", {"delta": delta, "usage": encode_usage(self._usage)}),
                event("message_stop", more),
            )
        )

    def error(self, error: InferMuxError) -> bytes:
        """Return the end of a stream that is not whole."""
        return event("error", encode_error(error))

    def heartbeat(self) -> bytes:
        """Return what keeps a connection alive."""
        return event("ping", {})

    def _pass(self, native: bytes) -> bytes:
        self._passed = True
        if (
            b"message_stop" in native
            and strict_json.lenient(_text(native)).get("type") == "message_stop"
        ):
            self._held = native
            return b""
        return native

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        message = message_of(self._ident, self._model, [], None, encode_usage(self._usage))
        return event("message_start", {"message": message})

    def _drain(self, *, last: bool) -> bytes:
        """Write what waits: to the open block first, then block after block as far as each is
        complete.
        """
        written = []
        while self._waiting:
            self._waiting, now = [], self._waiting
            for key, piece in now:
                if key == self._open or (
                    not self._waiting and self._free()
                ):  # nothing overtakes what waits
                    written.append(self._write(key, piece))
                else:
                    self._waiting.append((key, piece))
            if len(self._waiting) == len(now):
                if not last:
                    break
                written.append(self._close())
        return b"".join(written)

    def _free(self) -> bool:
        """Whether another block may open: none is, or a text, or a call whose arguments are
        complete.
        """
        return self._open is None or self._open[0] != "tool" or _complete(self._arguments)

    def _write(self, key: tuple[str, Any], piece: JSON) -> bytes:
        head = b"" if key == self._open else self._close() + self._begin(key, piece)
        deltas = [
            event("content_block_delta", {"index": self._index, "delta": delta})
            for delta in self._deltas(piece)
        ]
        return head + b"".join(deltas)

    def _begin(self, key: tuple[str, Any], piece: JSON) -> bytes:
        if key in self._closed and key[0] == "tool":
            raise ProviderUnavailable("the provider went on with a tool call that was complete")
        self._open, self._arguments = key, ""
        self._index += 1
        self._called = self._called or key[0] == "tool"
        return event(
            "content_block_start", {"index": self._index, "content_block": _empty(key, piece)}
        )

    def _deltas(self, piece: JSON) -> list[JSON]:
        if "function" in piece:
            more = piece["function"].get("arguments") or ""
            self._arguments += more
            return [{"type": "input_json_delta", "partial_json": more}] if more else []
        return [
            {"type": f"{name}_delta", name: piece[name]}
            for name in ("text", "thinking", "signature")
            if piece.get(name)
        ]

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._closed.add(self._open)
        self._open = None
        return event("content_block_stop", {"index": self._index})


def _pieces(chunk: Chunk) -> list[tuple[tuple[str, Any], JSON]]:
    """Return what a chunk adds, each piece with the block that it belongs to."""
    thoughts = [
        (("thinking", detail.get("index")), block)
        for detail in chunk.details
        if (block := thought_of(detail))
    ]
    pieces: list[tuple[tuple[str, Any], JSON]] = [*thoughts]
    if chunk.reasoning and not thoughts:
        pieces.append((("thinking", None), {"thinking": chunk.reasoning}))
    pieces += [(_TEXT, {"text": words}) for words in (chunk.text, chunk.refusal) if words]
    return pieces + [
        (("tool", call["index"]), {"function": {}, **call}) for call in chunk.tool_calls
    ]


def _empty(key: tuple[str, Any], piece: JSON) -> JSON:
    """Return the block that opens, before its deltas; what was redacted has none."""
    if key[0] == "tool":
        return tool_use_of(piece)
    if key[0] == "text":
        return {"type": "text", "text": ""}
    return piece if "data" in piece else {"type": "thinking", "thinking": "", "signature": ""}


def _complete(arguments: str) -> bool:
    try:
        return arguments.rstrip().endswith("}") and isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


def _text(native: bytes) -> bytes:
    return b"\n".join(line[5:] for line in native.split(b"\n") if line.startswith(b"data:"))


def _spliced(native: bytes, more: JSON) -> bytes:
    """Return the vendor's last event with members of our own in it."""
    if not more:
        return native
    try:
        return (
            b"event: message_stop\ndata: "
            + strict_json.document(_text(native)).replaced(more).encode()
            + b"\n\n"
        )
    except ValueError:  # what the vendor says there is no reason to break a stream that is whole
        return native
