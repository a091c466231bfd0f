"""Rewrites the events of a vendor's stream as hooks change its chunks.

Words that a hook adds where an event has no place for words go into a copy of the last event that
had such words. Events that end a block are kept until the hook has seen the next content: it may
add to the block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from ...protocol import InferResponse, strict_json
from ...protocol.sse import Event, Parser
from ...types import JSON, Chunk
from .. import listed, members, without
from . import KINDS, arguments, recall, with_arguments
from .places import CannotRewrite, Place, Places, choices, divided, rewrite

_FRAMED = ("openai", "anthropic", "responses")  # whose native chunks are events; Gemini's are JSON
_ENDS_BLOCKS = ("anthropic", "responses")
_SEVERAL = re.compile(rb'"index": ?[1-9]')
_BESIDE = slice(Chunk._fields.index("annotations"), None)  # what has no place of its own
_REPEATED = ("text", "refusal", "arguments", "input")  # members that repeat what deltas said


class StreamRewriter:
    """Rewrites one stream for a client of *dialect*; "": a client that gets no vendor's events."""

    def __init__(self, dialect: str) -> None:
        self._dialect = dialect
        self._held: list[Chunk] = []
        self._last: dict[str, Chunk] = {}  # events with words, by kind
        self._said: dict[tuple[Any, ...], list[str]] = {}  # old and new words of each part
        self._changed = self._rethought = False
        self._added = 0  # events

    def passed(self, chunk: Chunk) -> list[Chunk]:
        """Return what is sent for a chunk without content."""
        if not self._is_own(chunk):
            return [chunk]
        if self._dialect not in _ENDS_BLOCKS or not self._last:
            return [self._renewed(chunk)]
        if b'"ping"' in (chunk.native or b""):
            return [chunk]
        self._held.append(chunk)
        return []

    def rest(self) -> list[Chunk]:
        """Return what is still to be sent at the end."""
        held, self._held = self._held, []
        return [self._renewed(chunk) for chunk in held]

    def rewritten(self, before: Chunk, after: Sequence[Chunk]) -> list[Chunk]:
        """Return what is sent for a chunk that a hook has replaced; raise CannotRewrite."""
        if not self._is_own(before):
            return [each if each is before else _bare(each) for each in after]
        found: list[Chunk] = []
        placed = False
        for each in after:
            if each is before or (each.native == before.native and not placed):
                placed = True
                found += self._own(before, each)
            else:
                found += self._words(each)
        if not placed:
            self._note(before, Chunk(), _body(before))
        return found

    def choices(self, chunk: Chunk) -> list[tuple[int, Chunk]]:
        """Return the other choices in an event, as chunks of their own."""
        if not self._is_own(chunk) or not _SEVERAL.search(chunk.native or b""):
            return []
        body = _body(chunk)
        found = []
        for number in choices(chunk.dialect, body):
            known = Places(chunk.dialect, body, number)
            said: dict[str, Any] = {kind: known.text(kind) for kind in KINDS}
            said |= {"finish_reason": known.finish_reason, "tool_calls": known.tool_calls()}
            if any(said.values()):
                found.append((number, Chunk(**said)))
        return found

    def with_choice(self, chunk: Chunk, number: int, was: Chunk, now: Chunk) -> Chunk:
        """Return an event with the words of another choice replaced."""
        body = _body(chunk)
        known = Places(chunk.dialect, body, number)
        for kind in KINDS:
            if not known.of(kind)[0] and getattr(now, kind):
                known.add(kind, getattr(now, kind))
            else:
                known.replace(kind, getattr(was, kind), getattr(now, kind))
        recall(known.calls(), was.tool_calls, now.tool_calls)
        more = now.text if chunk.more == was.text else chunk.more
        return _with(chunk, body)._replace(more=more)

    # -- the client's own format --

    def _is_own(self, chunk: Chunk) -> bool:
        return chunk.native is not None and chunk.dialect == self._dialect

    def _own(self, before: Chunk, after: Chunk) -> list[Chunk]:
        """Return the event of a chunk as changed, with what does not fit into it before it."""
        if before[_BESIDE] != after[_BESIDE]:
            raise CannotRewrite
        body = _body(before)
        known = Places(self._dialect, body)
        apart: list[Chunk] = []
        own = after
        for name in KINDS:
            old, new = getattr(before, name), getattr(after, name)
            try:
                known.replace(name, old, new)
            except CannotRewrite:
                if not old:
                    apart += self._words(_say(Chunk(), name, new))
                    own = _say(own, name, "")
                elif not self._repeats(body):  # else what the deltas said is replaced below
                    raise
        if list(before.tool_calls) != list(after.tool_calls):
            self._recall(body, known.calls(), before.tool_calls, after.tool_calls)
        if before.finish_reason != after.finish_reason and after.finish_reason:
            known.finish(after.finish_reason)
        self._note(before, after, body)
        unsigned = self._unsign(body, before.reasoning != after.reasoning)
        sent = before if before is after and not unsigned else _with(own, body)
        sent = self._renewed(sent)
        kinds = [kind for kind in KINDS if getattr(before, kind)]
        if len(kinds) == 1 and not (before.finish_reason or before.tool_calls):
            self._last[kinds[0]] = sent  # an event with one kind of words and nothing else
        held, self._held = self._held, []
        return [*apart, *map(self._renewed, held), sent]

    def _unsign(self, body: JSON, rethought: bool) -> bool:
        """Blank the signature of a thought whose words have changed; return whether there is one.

        Anthropic would refuse it in the next request, but for a thought without one.
        """
        self._rethought = (self._rethought and "content_block" not in body) or rethought
        delta = members(body.get("delta"))
        if not self._rethought or delta.get("type") != "signature_delta":
            return False
        delta["signature"] = ""
        return True

    def _words(self, chunk: Chunk) -> list[Chunk]:
        """Return events for words that have none; raise CannotRewrite if the format needs one."""
        found: list[Chunk] = []
        for kind in KINDS:
            words = getattr(chunk, kind)
            if not words:
                continue
            model = self._last.get(kind)
            if model is None:
                if self._dialect in _ENDS_BLOCKS:
                    raise CannotRewrite
                found.append(_say(Chunk(), kind, words))
                continue
            body = _body(model)
            Places(self._dialect, body).replace(kind, getattr(model, kind), words)
            self._say(body, kind, "", words)
            self._added += self._dialect == "responses"
            made = _with(_say(Chunk(dialect=model.dialect), kind, words), body)
            found.append(self._renewed(made))
        if chunk.tool_calls or chunk.finish_reason:
            if self._dialect in _ENDS_BLOCKS:
                raise CannotRewrite
            found.append(chunk._replace(text="", reasoning="", refusal="", native=None))
        return found

    def _recall(
        self, body: JSON, spots: Sequence[Place], was: Iterable[JSON], now: Iterable[JSON]
    ) -> None:
        before, after = list(was), list(now)
        alike = [*map(_named, before)] == [*map(_named, after)]
        if not alike or len(spots) not in (0, len(before)):
            if self._dialect != "openai":
                raise CannotRewrite
            for choice in body.get("choices") or ():
                if not choice.get("index"):
                    choice["delta"]["tool_calls"] = after
            return
        for spot, old, new in zip(spots, before, after, strict=False):
            rewrite([spot], arguments(old), arguments(new))
        if not spots and self._dialect != "responses":
            raise CannotRewrite

    # -- what later events repeat --

    def _repeats(self, body: JSON) -> bool:
        kind = str(body.get("type"))
        return self._dialect == "responses" and not kind.endswith(".delta")

    def _note(self, before: Chunk, after: Chunk, body: JSON) -> None:
        """Note the words of a delta that later events repeat as a whole."""
        for kind in KINDS:
            self._say(body, kind, getattr(before, kind), getattr(after, kind))
        new = [*after.tool_calls]
        for number, call in enumerate(before.tool_calls):
            said = arguments(new[number]) if number < len(new) else ""
            self._say(body, "arguments", arguments(call), said)

    def _say(self, body: JSON, kind: str, old: str, new: str) -> None:
        if self._dialect != "responses" or not (old or new):
            return
        part = body.get("content_index", body.get("summary_index"))
        number = body.get("output_index") if "output_index" in body else body.get("item_id")
        said = self._said.setdefault((kind, number, part), ["", ""])
        said[0], said[1] = said[0] + old, said[1] + new
        self._changed = self._changed or old != new

    def _renewed(self, chunk: Chunk) -> Chunk:
        """Return an event that repeats words with the new ones, and with the right number."""
        if not (self._changed or self._added) or chunk.native is None:
            return chunk
        body = _body(chunk)
        if self._repeats(body):
            wholes = {old: new for old, new in self._said.values() if old != new and old}
            _repeat(body, wholes)
        number = body.get("sequence_number")
        if self._added and isinstance(number, int):
            body["sequence_number"] = number + self._added
        return _with(chunk, body)


class TranscriptRewriter(StreamRewriter):
    """Rewrites the events of a transcript; those that repeat words are held until its end."""

    def __init__(self) -> None:
        super().__init__("")
        self._text = ""  # that was sent
        self._model: Chunk | None = None  # an event with words

    def chunks(self, event: Event) -> list[Chunk]:
        """Return an event as a chunk; in two if its words have not come before."""
        found = Chunk(native=event.encode(), dialect="responses" if event.name else "openai")
        body = _read(found)
        if (place := _words(body)) is not None:
            self._model = self._model or found
            reason = _choice(body).get("finish_reason")
            return [found._replace(text=place.text, finish_reason=reason)]
        if not str(body.get("type")).endswith(".done"):
            return [found]
        found = found._replace(finish_reason="stop")
        if self._model or not isinstance(body.get("text"), str):
            return [found]
        words = strict_json.encode({"type": "transcript.text.delta", "delta": body["text"]})
        return [*self.chunks(event._replace(data=words)), found]

    def passed(self, chunk: Chunk) -> list[Chunk]:
        if not isinstance(_read(chunk).get("text"), str):
            return [chunk]
        self._held.append(chunk)
        return []

    def rewritten(self, before: Chunk, after: Sequence[Chunk]) -> list[Chunk]:
        if any(_wordless(each) != _wordless(before) for each in after):
            raise CannotRewrite
        text = "".join(each.text for each in after)
        self._text += text
        found = [before]
        if text != before.text:
            found = [_saying(before if before.text else self._model, text)]
            found += [] if before.text else [before]
        if not before.finish_reason:
            return found if text or not before.text else []
        said, last = _letters(self._text), _read(found[-1])
        if isinstance(last.get("text"), str) and _letters(last["text"]) != said:
            found[-1] = _with(found[-1], without(last, "logprobs") | {"text": self._text})
        held = [each for each in self.rest() if _letters(_read(each)["text"]) in said]
        return [*found[:-1], *held, found[-1]]


def _wordless(chunk: Chunk) -> Chunk:
    return _bare(chunk)._replace(text="", finish_reason=None)


def _choice(body: JSON) -> JSON:
    return next(iter(listed(body.get("choices"))), {})


def _words(body: JSON) -> Place | None:
    """Return where an event of a transcript has its words: OpenAI's, or those of other servers."""
    for holder, name in ((body, "delta"), (members(_choice(body).get("delta")), "content")):
        if isinstance(holder.get(name), str):
            return Place(holder, name)
    return None


def _saying(chunk: Chunk | None, text: str) -> Chunk:
    """Return an event of a transcript with other words; raise CannotRewrite if there is none."""
    body = {} if chunk is None else without(_read(chunk), "logprobs")
    place = _words(body)
    if chunk is None or place is None:
        raise CannotRewrite
    place.write(text)
    return _with(chunk._replace(text=text), body)


def _read(chunk: Chunk) -> JSON:
    try:
        return members(_body(chunk))
    except ValueError:  # [DONE]
        return {}


def _letters(text: str) -> str:
    return "".join(text.split())


def _repeat(value: Any, wholes: dict[str, str]) -> None:
    for each in value if isinstance(value, list) else ():
        _repeat(each, wholes)
    for name, each in value.items() if isinstance(value, dict) else ():
        if name in _REPEATED and isinstance(each, str) and each in wholes:
            value[name] = wholes[each]
            if "logprobs" in value:
                value["logprobs"] = []
        elif isinstance(each, dict | list):
            _repeat(each, wholes)


def _named(call: JSON) -> tuple[Any, ...]:
    inner = members(call.get("custom") or call.get("function"))
    return call.get("index"), call.get("id"), inner.get("name")


def _body(chunk: Chunk) -> JSON:
    data = chunk.native or b"{}"
    if chunk.dialect in _FRAMED:
        events = [*(parser := Parser()).feed(data), *parser.end()]
        data = events[0].data if events else b"{}"
    body: JSON = strict_json.lenient(data)
    return body


def _with(chunk: Chunk, body: JSON) -> Chunk:
    data = strict_json.encode(body)
    if chunk.dialect in _FRAMED:
        name = str(body.get("type", "")).encode() if chunk.dialect in _ENDS_BLOCKS else b""
        data = Event(data, name).encode()
    return chunk._replace(native=data)


def _say(chunk: Chunk, kind: str, words: str) -> Chunk:
    fields: dict[str, Any] = {kind: words}
    return chunk._replace(**fields)


def _bare(chunk: Chunk) -> Chunk:
    return chunk if chunk.native is None else chunk._replace(native=None, dialect="")


def spread(chunks: Sequence[Chunk], before: InferResponse, after: InferResponse) -> list[Chunk]:
    """Return the chunks of a whole stream as they say *after*; raise CannotRewrite."""
    found = list(chunks)
    for name in ("annotations", "images"):
        if list(getattr(before, name)) != list(getattr(after, name)):
            raise CannotRewrite
    for kind, name in KINDS.items():
        old, new = getattr(before, name), getattr(after, name)
        if old == new:
            continue
        parts = [getattr(chunk, kind) for chunk in found]
        if "".join(parts) != old:
            raise CannotRewrite
        found = [
            _say(chunk, kind, said) for chunk, said in zip(found, divided(parts, new), strict=True)
        ]
    if list(before.tool_calls) != list(after.tool_calls):
        found = _called(found, list(before.tool_calls), list(after.tool_calls))
    if before.finish_reason != after.finish_reason:
        found = [
            chunk._replace(finish_reason=after.finish_reason) if chunk.finish_reason else chunk
            for chunk in found
        ]
    return found


def _called(chunks: list[Chunk], was: list[JSON], now: list[JSON]) -> list[Chunk]:
    if [*map(_named, was)] != [*map(_named, now)]:
        raise CannotRewrite
    places_of: dict[int, list[tuple[int, int]]] = {}
    for at, chunk in enumerate(chunks):
        for number, call in enumerate(chunk.tool_calls):
            places_of.setdefault(call["index"], []).append((at, number))
    for index, old, new in zip(sorted(places_of), was, now, strict=True):
        where = places_of[index]
        parts = [arguments(chunks[at].tool_calls[number]) for at, number in where]
        if "".join(parts) != arguments(old):
            raise CannotRewrite
        for (at, number), said in zip(where, divided(parts, arguments(new)), strict=True):
            calls = list(chunks[at].tool_calls)
            calls[number] = with_arguments(calls[number], said)
            chunks[at] = chunks[at]._replace(tool_calls=calls)
    return chunks
