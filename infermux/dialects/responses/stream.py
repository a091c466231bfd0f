"""Writes answers to clients: passes a vendor's on, or makes its events, or the whole, from chunks.

An item is added, filled and done before the next one; the last event has the whole response.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

from ...errors import InferMuxError
from ...protocol import InferResponse, strict_json
from ...protocol.sse import comment
from ...types import JSON, Chunk, Usage
from .. import used, without
from ..blocks import CITED, TOOL, BlockWriter, Key, add_detail, whole
from ..citations import URL, inline
from ..tools import custom_input
from . import DRAWN, NAME
from .downstream import (
    NO_ARGUMENTS,
    SUMMARY,
    Answer,
    annotation_of,
    encode_error,
    is_late,
    sealed,
)

_MESSAGE: Key = ("message", None)
_REASONING: Key = ("reasoning", False)
_LATE: Key = ("reasoning", True)  # without words, after the text
_CUTS = {"length": "max_output_tokens", "content_filter": "content_filter"}  # why it is incomplete
_PARTS = {  # by type: the event and the index of the part, and the event and member of its words
    "output_text": ("content_part", "content_index", "output_text", "text"),
    "refusal": ("content_part", "content_index", "refusal", "refusal"),
    "summary_text": ("reasoning_summary_part", "summary_index", "reasoning_summary_text", "text"),
}


class Encoder(BlockWriter):
    """Encodes the chunks of one stream."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer
        self._number = 0  # of the next event
        self._passed = self._started = False
        self._items: list[JSON] = []  # that are done
        self._parts: list[JSON] = []  # of the open message or summary
        self._words: list[str] = []  # of the open part
        self._part: Any = None  # what tells the open part from the next
        self._details: list[JSON] = []  # of the open reasoning item
        self._call: JSON = {}  # that is open
        self._texts: list[tuple[int, JSON]] = []  # the parts of text, and what was said before
        self._length = 0  # of all text
        self._uncited: list[JSON] = []  # citations whose text is still to come
        self._reason: str | None = None
        self._usage: Usage | None = None

    def encode(self, chunk: Chunk) -> bytes:
        if chunk.native is not None and chunk.dialect == NAME:
            self._passed = True
            self._number += 1
            return chunk.native
        self._reason, self._usage = chunk.finish_reason or self._reason, chunk.usage or self._usage
        if not (chunk.has_content or chunk.annotations):
            return b""
        if not self._started:
            self._answer.model = chunk.model or self._answer.model
        pieces = _pieces(chunk, self._answer)
        return self._start() + self.drain(pieces, last=bool(chunk.finish_reason))

    def end(self, summary: JSON, usage: Usage | None) -> bytes:
        """Return the last events: the vendor's own came already, ours has *summary*."""
        if self._passed:
            return b""
        head = self._start() + self.drain([], last=True) + self.cite([], last=True)
        if self.opened is None and not self._items:
            head += self.drain([(_MESSAGE, {"output_text": ""})], last=True)
        head += self.close()
        reason, usage = _CUTS.get(self._reason or ""), usage or self._usage or Usage()
        status = "incomplete" if reason else "completed"
        body = self._answer.envelope(status, self._items, usage, reason=reason)
        more = {"infermux": summary} if summary else {}
        return head + self._event(f"response.{status}", response=body, **more)

    def error(self, error: InferMuxError) -> bytes:
        """Return the events that end a failed stream: never response.completed."""
        body = encode_error(error)
        told = body["error"]
        head = b"" if self._passed else self._start()
        # flat like OpenAI's event, and in `error`, which the official SDK raises
        head += self._event("error", **without(told, "type"), **body)
        if self._passed:
            return head
        code = _CODES.get(error.status, "server_error")
        code = error.code if error.code == "context_length_exceeded" else code
        failure = {"code": code, "message": error.message}
        whole = self._answer.envelope("failed", self._items, self._usage, error=failure)
        return head + self._event("response.failed", response=whole)

    def heartbeat(self) -> bytes:
        return comment("waiting for the provider")

    def _event(self, name: str, **members: Any) -> bytes:
        data = {"type": name, **members, "sequence_number": self._number}
        self._number += 1
        return f"event: {name}\ndata: ".encode() + strict_json.encode(data) + b"\n\n"

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        body = self._answer.envelope("in_progress")
        opening = ("response.created", "response.in_progress")
        return b"".join(self._event(name, response=body) for name in opening)

    # -- items --

    @property
    def _place(self) -> JSON:
        return {"item_id": self._ident, "output_index": len(self._items)}

    def begin(self, key: Key, piece: JSON) -> bytes:
        number = len(self._items)
        if key[0] == TOOL:
            self._call = piece
            item = self._answer.call(number, piece, "", "in_progress")
        elif key[0] == DRAWN:
            item, self._call = self._answer.image(number), piece
        elif key == _MESSAGE:
            item = self._answer.message(number, (), "in_progress")
        else:
            item = self._answer.reasoning(number)
        self._parts, self._part, self._details = [], None, []
        self._ident = item["id"]
        return self._event("response.output_item.added", output_index=number, item=item)

    def grow(self, key: Key, piece: JSON) -> bytes:
        if key[0] == TOOL:
            return self._more_arguments(piece)
        if key[0] == DRAWN:
            steps = ("in_progress", "generating", "completed")
            return b"".join(
                self._event(f"response.{DRAWN}.{step}", **self._place) for step in steps
            )
        if key != _MESSAGE:
            for detail in piece["details"]:
                add_detail(self._details, detail)
            spoken = [(part, {**SUMMARY}, words) for part, words in piece["words"] if words]
            return b"".join(self._more_words(*each) for each in spoken)
        ((kind, words),) = piece.items()
        part: JSON = {"type": kind, "refusal": ""}
        if kind == "output_text":
            part = {"type": kind, "annotations": [], "logprobs": [], "text": ""}
        return self._more_words(kind, part, words)

    def finish(self, key: Key) -> bytes:
        """Return the events that end the open item; the last one of a cut answer is incomplete."""
        number, cut = len(self._items), self._reason in _CUTS and not self.waiting
        status = "incomplete" if cut else "completed"
        head = self._end_part()
        if key[0] == TOOL:
            words = said = "".join(self.arguments)
            kind, member = "response.function_call_arguments", "arguments"
            if self._answer.is_custom(self._call):
                kind, member, said = "response.custom_tool_call_input", "input", ""
                words = words if self._call.get("type") == "custom" else custom_input(words)
            else:
                words = words or NO_ARGUMENTS
            if words != said:
                head += self._event(f"{kind}.delta", delta=words, **self._place)
            head += self._event(f"{kind}.done", **{member: words}, **self._place)
            item = self._answer.call(number, self._call, words, status)
        elif key[0] == DRAWN:
            item = self._answer.image(number, *self._call["image"])
        elif key == _MESSAGE:
            item = self._answer.message(number, self._parts, status)
        else:
            thoughts = [part["text"] for part in self._parts]
            encrypted = sealed(self._details, "".join(thoughts))
            item = self._answer.reasoning(number, thoughts, encrypted)
        self._items.append(item)
        return head + self._event("response.output_item.done", output_index=number, item=item)

    def _more_arguments(self, piece: JSON) -> bytes:
        more = piece["function"].get("arguments")
        if not more or self._answer.is_custom(self._call):  # its input is known at the end
            return b""
        return self._event("response.function_call_arguments.delta", delta=more, **self._place)

    def _more_words(self, mark: Any, part: JSON, words: str) -> bytes:
        """Return the events that add words: in the open part, or in *part* if *mark* differs."""
        head = b""
        if not self._parts or mark != self._part:
            head = self._end_part()
            self._parts.append(part)
            self._part, self._words = mark, []
            head += self._part_event(0, "added", part=part)
            if mark == "output_text":
                self._texts.append((self._length, part))
        if not words:
            return head
        self._words.append(words)
        self._length += len(words) * (mark == "output_text")
        return head + self._part_event(2, "delta", delta=words)

    def cite(self, annotations: list[JSON], *, last: bool = False) -> bytes:
        """Return the events of citations whose text has come; the last event has all of them."""
        written, waiting = [], []
        for each in self._uncited + annotations:
            start, end = each[URL]["start_index"], each[URL]["end_index"]
            found = [one for one in self._texts if one[0] <= start]
            if not found or (end > self._length and not last):
                waiting.append(each)
                continue
            before, part = found[-1]
            known = part["annotations"]
            known.append(annotation_of(each, before))
            if self._parts and self._parts[-1] is part and self.opened == _MESSAGE:
                index, name = len(known) - 1, "response.output_text.annotation.added"
                places = {"content_index": len(self._parts) - 1, "annotation_index": index}
                written.append(self._event(name, **self._place, **places, annotation=known[-1]))
        self._uncited = waiting
        return b"".join(written)

    def _end_part(self) -> bytes:
        if not self._parts:
            return b""
        part = self._parts[-1]
        member = _PARTS[part["type"]][3]
        part[member] = "".join(self._words)
        done = self._part_event(2, "done", **{member: part[member]})
        return done + self._part_event(0, "done", part=part)

    def _part_event(self, which: int, step: str, **more: Any) -> bytes:
        """Return an event of the open part (0) or of its words (2)."""
        names, index = _PARTS[self._parts[-1]["type"]], len(self._parts) - 1
        if names[which] == "output_text":
            more["logprobs"] = []
        return self._event(
            f"response.{names[which]}.{step}", **{names[1]: index}, **self._place, **more
        )


class _Whole(Encoder):
    """Writes no event, but keeps the response of the last one."""

    response: JSON

    def _event(self, name: str, **members: Any) -> bytes:
        self.response = members.get("response", {})
        return b""


def encode_answer(response: InferResponse, answer: Answer) -> bytes:
    """Return the body: the vendor's own if it is in this dialect."""
    if response.native is not None and response.native[0] == NAME:
        return response.native[1]
    return strict_json.encode(encode_response(response, answer))


def encode_response(response: InferResponse, answer: Answer) -> JSON:
    """Return the response object, as the last event of a stream has it."""
    encoder, answer.model = _Whole(answer), response.model
    (chunk,) = whole(response)
    encoder.encode(chunk._replace(finish_reason=None))
    encoder.encode(Chunk(finish_reason=chunk.finish_reason))
    encoder.end({}, used(response))
    return encoder.response


_CODES = {429: "rate_limit_exceeded", 400: "invalid_prompt"}


def _pieces(chunk: Chunk, answer: Answer) -> list[tuple[Key, JSON]]:
    pieces: list[tuple[Key, JSON]] = []
    found = [answer.shortened(call) for call in chunk.tool_calls]
    early = [one for one in chunk.details if not is_late(one)]
    late = [*filter(is_late, chunk.details), *chain(*(details for _, details in found))]
    if chunk.reasoning or early:
        pieces.append((_REASONING, {"details": early, "words": _spoken(chunk.reasoning, early)}))
    for kind, words in (("output_text", chunk.text), ("refusal", chunk.refusal)):
        if words:
            pieces.append((_MESSAGE, {kind: words}))
    if chunk.annotations:
        pieces.append((CITED, {"annotations": list(chunk.annotations)}))
    for media, data in inline(chunk.images):
        pieces.append(((DRAWN, data), {"image": (media, data)}))
    if late:
        pieces.append((_LATE, {"details": late, "words": ()}))
    return pieces + [((TOOL, call["index"]), _call(call)) for call, _ in found]


def _spoken(reasoning: str, details: list[JSON]) -> list[tuple[Any, str]]:
    """Return the words of thoughts, each with the index of its detail if the details have all."""
    found = [(one.get("index"), one.get("text") or one.get("summary") or "") for one in details]
    return found if "".join(words for _, words in found) == reasoning else [(None, reasoning)]


def _call(call: JSON) -> JSON:
    """Return a tool call's delta with a function, also for a call of a custom tool."""
    custom = call.get("custom")
    if custom is None:
        return {"function": {}, **call}
    return {**call, "function": {"name": custom.get("name"), "arguments": custom.get("input")}}
