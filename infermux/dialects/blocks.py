"""Writes a stream as blocks, one open at a time, and joins a stream to one answer.

Chunks of another vendor may mix several tool calls; pieces of other blocks are kept until the open
one is complete.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from itertools import chain
from typing import Any

from ..errors import ProviderUnavailable
from ..protocol import InferRequest, InferResponse
from ..types import JSON, Chunk, Usage

Key = tuple[str, Any]  # of a block: its kind, and which of that kind
TOOL = "tool"  # the kind of tool calls: such a block opens only once
CITED: Key = ("cited", None)  # of a piece that is no block: citations of the text before it


class BlockWriter:
    """Orders pieces by block; a format says how its blocks open, grow and close."""

    def __init__(self) -> None:
        self.opened: Key | None = None
        self._closed: set[Key] = set()
        self.waiting: list[tuple[Key, JSON]] = []
        self.arguments: list[str] = []  # of the open call, in pieces

    def begin(self, key: Key, piece: JSON) -> bytes:
        raise NotImplementedError

    def grow(self, key: Key, piece: JSON) -> bytes:
        raise NotImplementedError

    def finish(self, key: Key) -> bytes:
        raise NotImplementedError

    def cite(self, annotations: list[JSON]) -> bytes:
        raise NotImplementedError

    def drain(self, pieces: list[tuple[Key, JSON]], *, last: bool) -> bytes:
        """Write pieces: those of the open block, then one block after another."""
        written = self._ready(pieces)
        while self.waiting and (last or self._may_open()):
            head = b"" if self._may_open() else self.close()
            now, self.waiting = self.waiting, []
            written += head + self._ready(now)
        return written

    def _ready(self, pieces: list[tuple[Key, JSON]]) -> bytes:
        """Write the pieces that may be written now; keep the others."""
        written = []
        for key, piece in pieces:
            follows = not self.waiting and (key == CITED or self._may_open())
            if key == self.opened or follows:
                written.append(self._write(key, piece))
            else:
                self.waiting.append((key, piece))
        return b"".join(written)

    def close(self) -> bytes:
        key, self.opened = self.opened, None
        if key is None:
            return b""
        self._closed.add(key)
        return self.finish(key)

    def _may_open(self) -> bool:
        """Whether a block may open: not amid a tool call's arguments."""
        if self.opened is None or self.opened[0] != TOOL:
            return True
        # a quick look at the last piece that is not blank: most end within the arguments
        end = next(filter(str.strip, reversed(self.arguments)), "")
        return end.rstrip().endswith("}") and complete("".join(self.arguments))

    def _write(self, key: Key, piece: JSON) -> bytes:
        if key == CITED:
            return self.cite(piece["annotations"])
        head = b""
        if key != self.opened:
            head = self.close()
            if key in self._closed and key[0] == TOOL:
                raise ProviderUnavailable("the provider went on with a tool call that was complete")
            self.opened, self.arguments = key, []
            head += self.begin(key, piece)
        if key[0] == TOOL:
            self.arguments.append(piece["function"].get("arguments") or "")
        return head + self.grow(key, piece)


def complete(arguments: str) -> bool:
    """Whether the arguments of a call are a whole object."""
    try:
        return arguments.rstrip().endswith("}") and isinstance(json.loads(arguments), dict)
    except ValueError:
        return False


# -- whole answers --


class StreamAccumulator:
    """Joins the chunks of a stream into one response."""

    def __init__(self) -> None:
        spoken = ("text", "reasoning", "refusal", "more")
        self._said: dict[str, list[str]] = {name: [] for name in spoken}
        self._calls: dict[int, JSON] = {}
        self._details: list[JSON] = []
        self._annotations: list[JSON] = []
        self._images: list[JSON] = []
        self._legacy: dict[str, str] = {}
        self.finish_reason = ""
        self.usage: Usage | None = None
        self.model = ""
        self.id = ""

    def add(self, chunk: Chunk) -> None:
        """Add a chunk; its usage replaces an earlier one. Raise TypeError for no Usage."""
        for name, said in self._said.items():
            if words := getattr(chunk, name):
                said.append(words)
        for call in chunk.tool_calls:
            self._add_call(call)
        for detail in chunk.details:
            add_detail(self._details, detail)
        self._annotations += chunk.annotations
        self._images += chunk.images
        for name, value in chunk.function_call.items():
            self._legacy[name] = self._legacy.get(name, "") + value
        if chunk.usage is not None:
            if not isinstance(chunk.usage, Usage):
                raise TypeError("the usage of a chunk is not a Usage")
            self.usage = chunk.usage
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.model = chunk.model or self.model
        self.id = chunk.id or self.id

    def copy(self) -> StreamAccumulator:
        """Return one that goes on by itself."""
        return copy.deepcopy(self)

    def _add_call(self, delta: JSON) -> None:
        call = self._calls.setdefault(delta["index"], {"id": "", "type": "function"})
        kind, member = "function", "arguments"
        if delta.get("custom") or "custom" in call:
            kind, member = "custom", "input"
            call.pop("function", None)
        own, more = call.setdefault(kind, {"name": "", member: ""}), delta.get(kind) or {}
        own["name"] = more.get("name") or own["name"]
        own[member] += more.get(member) or ""
        for name, value in delta.items():
            if name not in ("index", "function", "custom") and value:
                call[name] = value

    @property
    def text(self) -> str:
        """All output so far, for an estimate of its tokens."""
        calls = [
            call["custom"]["input"] if "custom" in call else call["function"]["arguments"]
            for call in self._calls.values()
        ]
        legacy = self._legacy.get("arguments", "")
        return "".join((*chain(*self._said.values()), *calls, legacy))

    def response(self, provider: str, model: str) -> InferResponse:
        """Return the response; *model* applies if no chunk has one."""
        usage = self.usage or Usage()
        return InferResponse(
            model=self.model or model,
            provider=provider,
            content="".join(self._said["text"]),
            tokens_in=usage.input_tokens or 0,
            tokens_out=usage.output_tokens or 0,
            finish_reason=self.finish_reason,
            usage=self.usage,
            id=self.id,
            tool_calls=[self._calls[index] for index in sorted(self._calls)],
            reasoning="".join(self._said["reasoning"]),
            refusal="".join(self._said["refusal"]),
            details=self._details,
            extra={"function_call": self._legacy} if self._legacy.get("name") else {},
            annotations=self._annotations,
            images=self._images,
        )


def add_detail(details: list[JSON], detail: JSON) -> None:
    """Add a reasoning detail of a stream: join the deltas of one block; each index is another."""
    last = details[-1] if details else None
    kind = detail.get("type", last.get("type") if last else None)
    if last is None or (detail.get("index"), kind) != (last.get("index"), last.get("type")):
        details.append(dict(detail))
        return
    for name, value in detail.items():
        joined = name in ("text", "signature", "data", "summary") and value
        last[name] = last.get(name, "") + value if joined else value


def answer(
    request: InferRequest, native: tuple[str, bytes], *chunks: Chunk, extra: JSON | None = None
) -> InferResponse:
    """Return the response that *chunks* say; *native* is its dialect and body."""
    whole = StreamAccumulator()
    for chunk in chunks:
        whole.add(chunk)
    found = whole.response(request.provider, request.model)
    found.native = native
    found.finish_reason = found.finish_reason or ("tool_calls" if found.tool_calls else "stop")
    found.extra = extra or found.extra
    return found


def whole(response: InferResponse) -> Iterator[Chunk]:
    usage = response.usage
    if usage is None and (
        response.tokens_in or response.tokens_out or response.cost_usd is not None
    ):
        usage = Usage(response.tokens_in, response.tokens_out, cost_usd=response.cost_usd)
    yield Chunk(
        text=response.content,
        reasoning=response.reasoning,
        refusal=response.refusal,
        tool_calls=[{**call, "index": index} for index, call in enumerate(response.tool_calls)],
        finish_reason=response.finish_reason or "stop",
        usage=usage,
        details=response.details,
        model=response.model,
        id=response.id,
        more=response.extra.get("more", ""),
        annotations=response.annotations,
        images=response.images,
    )
