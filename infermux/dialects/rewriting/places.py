"""The places of text, tool calls and finish reasons in answers and events of each format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from ...protocol import strict_json
from ...types import JSON
from .. import listed, members
from ..anthropic import downstream as anthropic
from ..gemini import downstream as gemini

Found = Iterator[tuple[str, JSON, str]]  # the kind, the object, and its member


class Place(NamedTuple):
    """A member of an object that holds words, or an object that stands for words in JSON."""

    holder: JSON
    key: str

    @property
    def text(self) -> str:
        value = self.holder.get(self.key)
        if isinstance(value, str):
            return value
        return "" if value is None else strict_json.dumps(value)

    def write(self, text: str) -> None:
        """Replace the words; a signature over the old ones goes with them."""
        old = self.holder.get(self.key)
        is_text = old is None or isinstance(old, str)
        self.holder[self.key] = text if is_text else strict_json.loads(text)
        for name in ("signature", "thoughtSignature"):
            if name in self.holder:
                self.holder[name] = ""


class CannotRewrite(Exception):
    """A body has no place for a change."""


def divided(parts: Sequence[str], new: str) -> list[str]:
    """Divide *new* as its old text, the joined *parts*, is divided.

    What is alike at both ends stays in its parts; what differs goes to the first part that it
    touches.
    """
    old = "".join(parts)
    most = min(len(old), len(new))
    head = next((n for n in range(most) if old[n] != new[n]), most)
    tail = next((n for n in range(most - head) if old[-1 - n] != new[-1 - n]), most - head)
    found, start, end, more = [], 0, 0, len(new) - len(old)
    for number, part in enumerate(parts):
        end += len(part)
        if end <= head and number < len(parts) - 1 and end < len(old):
            cut = end
        elif end >= len(old) - tail:
            cut = end + more
        else:
            cut = len(new) - tail
        cut = max(start, cut)
        found.append(new[start:cut])
        start = cut
    return found


def rewrite(found: Sequence[Place], old: str, new: str) -> None:
    """Write *new* where *found* says *old*; raise CannotRewrite if it does not."""
    parts = [place.text for place in found]
    if not found or "".join(parts) != old:
        raise CannotRewrite
    for place, part, said in zip(found, parts, divided(parts, new), strict=True):
        if said != part:
            place.write(said)


class Places:
    """The places of one choice of a body."""

    def __init__(self, dialect: str, body: JSON, choice: int = 0) -> None:
        self._dialect, self._body, self._choice = dialect, body, _choice(body, choice)
        holder = self._choice if dialect in _CHOICES else body
        found = _READERS[dialect](holder)
        self._found = [(kind, Place(holder, key)) for kind, holder, key in found]

    def of(self, kind: str) -> list[list[Place]]:
        """Return where words of a kind are; each list has all of them."""
        found = [place for name, place in self._found if name == kind]
        again = [[place] for name, place in self._found if name == f"{kind} again"]
        return [found, *again]

    def calls(self) -> list[Place]:
        return [place for name, place in self._found if name == "arguments"]

    def text(self, kind: str) -> str:
        return "".join(place.text for place in self.of(kind)[0])

    def tool_calls(self) -> list[JSON]:
        """Return the calls in OpenAI's form; Gemini's, and OpenAI's older one, have no ids."""
        said = members(self._choice.get("delta")) or members(self._choice.get("message"))
        found = [members(said.get("function_call"))]
        found += [
            {"name": place.holder.get("name"), "arguments": place.text} for place in self.calls()
        ]
        return listed(said.get("tool_calls")) or [
            {"index": at, "type": "function", "function": each}
            for at, each in enumerate(filter(None, found))
        ]

    @property
    def finish_reason(self) -> str | None:
        """The finish reason of a choice of OpenAI's, if it has one."""
        reason = self._choice.get("finish_reason")
        return reason if isinstance(reason, str) else None

    def replace(self, kind: str, old: str, new: str) -> None:
        """Write *new* where the words of a kind are *old*, without their log probabilities."""
        if old == new:
            return
        for spots in self.of(kind):
            rewrite(spots, old, new)
        for holder in _objects(self._body) if kind == "text" else ():
            if "logprobs" in holder:
                holder["logprobs"] = [] if isinstance(holder["logprobs"], list) else None
            for name in ("logprobsResult", "avgLogprobs"):
                holder.pop(name, None)

    def add(self, kind: str, text: str) -> None:
        """Write words to a choice of OpenAI's that has none; raise LookupError elsewhere."""
        name = {"text": "content", "reasoning": "reasoning_content"}.get(kind, kind)
        self._choice["delta"][name] = text

    def think(self, details: Sequence[JSON], *, again: bool) -> None:
        """Write other details; raise CannotRewrite if they are *again* other words for a format."""
        holders = [each for each in _objects(self._body) if "reasoning_details" in each]
        if again and not holders:
            raise CannotRewrite
        for holder in holders[:1]:
            holder["reasoning_details"] = list(details)

    def finish(self, reason: str) -> None:
        """Write another finish reason; raise CannotRewrite if there is none to replace."""
        holder, key = self._choice, "finish_reason"
        if self._dialect == "anthropic":
            holder, key = members(self._body.get("delta")) or self._body, "stop_reason"
            reason = anthropic.stop_reason(reason, called=False)
        elif self._dialect == "gemini":
            key, reason = "finishReason", gemini.finish_reason(reason)
        if holder.get(key) is None:
            raise CannotRewrite
        holder[key] = reason


_CHOICES = {"openai": "choices", "gemini": "candidates"}


def choices(dialect: str, body: JSON) -> list[int]:
    """Return the numbers of the choices beyond the first, which an InferResponse does not hold."""
    listing = listed(body.get(_CHOICES.get(dialect, "")))
    found = [each.get("index", n) or 0 for n, each in enumerate(listing)]
    return sorted({number for number in found if isinstance(number, int) and number})


def _choice(body: JSON, number: int) -> JSON:
    """Return the choice with a number: by its index, else by its position; {} if there is none."""
    for position, each in enumerate(listed(body.get("choices") or body.get("candidates"))):
        index = each.get("index")
        if index == number or (index is None and position == number):
            return each
    return {}


def spot_of(call: JSON) -> tuple[str, str]:
    """Return the member of a call that has its name, and that one's with its arguments."""
    return ("custom", "input") if call.get("custom") else ("function", "arguments")


def _objects(value: Any) -> Iterator[JSON]:
    if isinstance(value, dict):
        yield value
        for each in value.values():
            yield from _objects(each)
    elif isinstance(value, list):
        for each in value:
            yield from _objects(each)


# -- each format --


def _openai(one: JSON) -> Found:
    said = members(one.get("delta")) or members(one.get("message"))
    content = said.get("content")
    if isinstance(content, str):
        yield "text", said, "content"
    for part in listed(content):
        if part.get("type") == "thinking":
            for thought in listed(part.get("thinking")):
                yield "reasoning", thought, "text"
        elif isinstance(part.get("text"), str):
            yield "text", part, "text"
    if isinstance(one.get("text"), str):
        yield "text", one, "text"
    names = [name for name in ("reasoning_content", "reasoning") if said.get(name)]
    for number, name in enumerate(names):  # some vendors write both
        yield "reasoning again" if number else "reasoning", said, name
    if isinstance(said.get("refusal"), str):
        yield "refusal", said, "refusal"
    for call in listed(said.get("tool_calls")):
        kind, member = spot_of(call)
        yield "arguments", members(call.get(kind)), member


def _anthropic(body: JSON) -> Found:
    blocks = [*listed(body.get("content")), members(body.get("content_block"))]
    for block in [*blocks, members(body.get("delta"))]:
        kind = block.get("type")
        if kind in ("text", "text_delta"):
            yield "text", block, "text"
        elif kind in ("thinking", "thinking_delta"):
            yield "reasoning", block, "thinking"
        elif kind == "input_json_delta":
            yield "arguments", block, "partial_json"
        elif kind == "tool_use" and (block.get("input") or "content" in body):
            yield "arguments", block, "input"


def _gemini(one: JSON) -> Found:
    for part in listed(members(one.get("content")).get("parts")):
        if isinstance(part.get("functionCall"), dict):
            part["functionCall"].setdefault("args", {})
            yield "arguments", part["functionCall"], "args"
        elif isinstance(part.get("text"), str):
            yield "reasoning" if part.get("thought") else "text", part, "text"


_DELTAS = {
    "response.output_text.delta": "text",
    "response.refusal.delta": "refusal",
    "response.reasoning_summary_text.delta": "reasoning",
    "response.reasoning_text.delta": "reasoning",
    "response.function_call_arguments.delta": "arguments",
    "response.custom_tool_call_input.delta": "arguments",
}


def _responses(body: JSON) -> Found:
    if (kind := _DELTAS.get(str(body.get("type")))) is not None:
        yield kind, body, "delta"
    for item in listed((members(body.get("response")) or body).get("output")):
        what = item.get("type")
        if what == "message":
            for part in listed(item.get("content")):
                kind = "refusal" if part.get("type") == "refusal" else "text"
                yield kind, part, kind
        elif what == "reasoning":
            for part in (*listed(item.get("summary")), *listed(item.get("content"))):
                yield "reasoning", part, "text"
        elif what in ("function_call", "custom_tool_call"):
            yield "arguments", item, "arguments" if what == "function_call" else "input"


_READERS: dict[str, Callable[[JSON], Found]] = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "responses": _responses,
}
