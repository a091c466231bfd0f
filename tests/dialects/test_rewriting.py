"""What a hook changes is what the client reads: in the vendor's own bytes, whole and streamed."""

from __future__ import annotations

import copy
import json
import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infermux.dialects.anthropic import downstream as messages
from infermux.dialects.anthropic import upstream as anthropic
from infermux.dialects.blocks import StreamAccumulator
from infermux.dialects.gemini import downstream as generate
from infermux.dialects.gemini import upstream as gemini
from infermux.dialects.openai import downstream as chat
from infermux.dialects.openai import upstream as openai
from infermux.dialects.responses import downstream as responses
from infermux.dialects.responses.upstream import Responses
from infermux.dialects.rewriting import CannotRewrite, answered, details_of
from infermux.dialects.rewriting.requests import with_own_body
from infermux.dialects.rewriting.streams import StreamRewriter, spread
from infermux.protocol import InferRequest, InferResponse, strict_json, text_of
from infermux.protocol.sse import Event, Parser
from infermux.types import HEARTBEAT, Chunk

FOLDER = Path(__file__).parents[1] / "data" / "wire"
DIALECTS: dict[str, tuple[str, Any]] = {
    "openai.chat": ("openai", openai),
    "openai.responses": ("responses", Responses()),
    "anthropic.messages": ("anthropic", anthropic),
    "gemini.generateContent": ("gemini", gemini),
}
ASKED = InferRequest("m", [{"role": "user", "content": "Hi"}], provider="p")
FIELDS = ("content", "reasoning", "refusal", "finish_reason")
BROKEN = re.compile("error|cut|throttled|truncated|array|oddities")  # no whole answers, or events
ROUNDS = 20


def recorded(*, stream: bool) -> list[Any]:
    found = []
    for file in sorted(FOLDER.glob("*/*.json")):
        one = json.loads(file.read_text())
        body, status = one["response"]["body"], one["response"]["status"]
        known = one["api"] in DIALECTS and status == 200 and not BROKEN.search(file.stem)
        if known and one["stream"] == stream and isinstance(body, str) == stream:
            found.append(pytest.param(one, id=f"{file.parent.name}-{file.stem}"))
    return found


def other(words: str, draw: random.Random) -> str:
    place = draw.randrange(len(words) + 1)
    ways = ("", words.upper(), words.replace("e", "[x]"), "A:" + words, words + "!")
    return draw.choice((*ways, words[:place] + "ß😀" + words[place:]))


def called(calls: Sequence[Any]) -> list[Any]:
    """Return names and arguments of calls, however their JSON is written."""
    found = []
    for call in calls:
        words = call["function"]["arguments"]
        found.append((call["function"]["name"], json.loads(words) if words else {}))
    return found


def said(answer: InferResponse) -> list[Any]:
    return [getattr(answer, name) for name in FIELDS] + [called(answer.tool_calls)]


def changed(answer: InferResponse, draw: random.Random) -> InferResponse:
    """Return the answer as a hook might return it."""
    new: dict[str, Any] = {}
    for name in ("content", "reasoning", "refusal"):
        if (words := getattr(answer, name)) and draw.random() < 0.7:
            new[name] = other(words, draw)
    if answer.tool_calls and draw.random() < 0.5:
        new["tool_calls"] = copy.deepcopy(list(answer.tool_calls))
        function = draw.choice(new["tool_calls"])["function"]
        function["arguments"] = json.dumps(json.loads(function["arguments"] or "{}") | {"n": "ä"})
    if not answer.tool_calls and draw.random() < 0.3:
        new["finish_reason"] = draw.choice(("length", "content_filter"))
    after = replace(answer, **new)
    return replace(after, details=details_of(answer, after))


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("exchange", recorded(stream=False))
def test_an_answer_that_a_hook_changed_reads_as_it_was_returned(exchange):
    dialect, wire = DIALECTS[exchange["api"]]
    data = json.dumps(exchange["response"]["body"]).encode()
    draw = random.Random(7)
    before = wire.decode_response(data, ASKED)
    for _ in range(ROUNDS):
        after = changed(wire.decode_response(data, ASKED), draw)
        found = answered(before, after, dialect)
        if found.native is None:  # it is written anew
            assert replace(found, native=after.native) == after
        else:
            assert said(wire.decode_response(found.native[1], ASKED)) == said(after)
    assert answered(before, before, dialect).native is not None
    assert answered(before, after, "another").native is None


def chunks_of(wire: Any, events: list[Event]) -> list[Chunk]:
    return [each for each in wire.decode_events(events, ASKED) if each is not HEARTBEAT]


def events_of(data: bytes) -> list[Event]:
    parser = Parser()
    return [*parser.feed(data), *parser.end()]


def folded(chunks: Sequence[Chunk]) -> InferResponse:
    whole = StreamAccumulator()
    for chunk in chunks:
        whole.add(chunk)
    return whole.response("p", "m")


def sent(chunks: Sequence[Chunk], dialect: str) -> list[Event]:
    """Return the events that the client of a dialect gets."""
    data = [chunk.native for chunk in chunks if chunk.native is not None]
    events = [Event(each, b"") for each in data] if dialect == "gemini" else []
    events = events or events_of(b"".join(data))
    return events + ([Event(b"[DONE]", b"")] if dialect == "openai" else [])


@pytest.mark.parametrize("held", [False, True], ids=["as-it-comes", "held"])
@pytest.mark.parametrize("exchange", recorded(stream=True))
def test_a_stream_that_a_hook_changed_reads_as_it_was_returned(exchange, held):
    dialect, wire = DIALECTS[exchange["api"]]
    chunks = chunks_of(wire, events_of(exchange["response"]["body"].encode()))
    draw = random.Random(7)
    for _ in range(ROUNDS):
        rewriter, found = StreamRewriter(dialect), []
        before = folded(chunks)
        after = changed(before, draw) if held else before
        after = replace(after, finish_reason=before.finish_reason)
        try:
            seen = spread(chunks, before, after) if held else [
                chunk._replace(text=other(chunk.text, draw)) if chunk.text else chunk
                for chunk in chunks
            ]  # fmt: skip
            for old, new in zip(chunks, seen, strict=True):
                was, now = (InferResponse("", "", "", reasoning=e.reasoning) for e in (old, new))
                was.details = now.details = old.details
                new = old if new == old else new._replace(details=details_of(was, now))
                has_content = old.has_content or new.has_content
                found += rewriter.rewritten(old, [new]) if has_content else rewriter.passed(old)
            found += rewriter.rest()
        except CannotRewrite:
            assert held  # it is written anew
            continue
        if any(each.native is None for each in found):
            continue  # words for which no event has a place are written anew
        assert said(folded(chunks_of(wire, sent(found, dialect)))) == said(folded(seen))


# -- requests --------------------------------------------------------------------------------------

PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
TOOL = {"type": "object", "properties": {"a": {"type": "string"}}}
BODIES: dict[str, dict[str, Any]] = {
    "openai": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Look"}, PICTURE]},
            {"role": "user", "name": "u", "content": "again"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": TOOL}}],
        "own": {"x": 1},
    },
    "anthropic": {
        "model": "m",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Look"}]},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": "s"},
                                              {"type": "text", "text": "Well"}]},
            {"role": "user", "content": "again"},
        ],
        "tools": [{"name": "f", "input_schema": TOOL}],
        "own": {"x": 1},
    },
    "responses": {
        "model": "m",
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Look"}]},
            {"role": "user", "content": "again"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": TOOL}],
        "own": {"x": 1},
    },
    "gemini": {
        "systemInstruction": {"parts": [{"text": "Be brief."}]},
        "contents": [
            {"role": "user", "parts": [{"text": "Look"}]},
            {"role": "model", "parts": [{"text": "Well"}]},
            {"role": "user", "parts": [{"text": "again"}]},
        ],
        "tools": [{"functionDeclarations": [{"name": "f", "parameters": TOOL}]}],
        "generationConfig": {"candidateCount": 1},
    },
}  # fmt: skip


def read(dialect: str, body: Any) -> InferRequest:
    document = strict_json.document(json.dumps(body))
    if dialect == "gemini":
        return generate.decode_request(document, generate.Asked("m", "", False))
    decode = {"openai": chat, "anthropic": messages, "responses": responses}[dialect]
    return decode.decode_request(document)[0]


@pytest.mark.parametrize("change", ["words", "added", "removed", "param", "left-out"])
@pytest.mark.parametrize("dialect", BODIES)
def test_a_clients_own_body_says_what_a_hook_returned_and_keeps_the_rest(dialect, change):
    body = BODIES[dialect]
    before = read(dialect, body)
    said, params = copy.deepcopy(list(before.messages)), dict(before.params)
    if change == "words":
        said[-1]["content"] = "once more"
    elif change == "added":
        said.append({"role": "user", "content": "and again"})
    elif change == "removed":
        del said[-1]
    elif change == "param":
        params |= {"temperature": 0.5, "max_tokens": 70}
    else:
        del params["tools"]
    after = replace(before, messages=said, params=params)
    found = with_own_body(before, after)
    assert found.native is not None
    value = found.native.body.value
    again = read(dialect, value)
    assert again.params == params
    words = [
        "".join(text_of(each.get("content")) for each in one) for one in (again.messages, said)
    ]
    assert words[0] == words[1]
    changes = {"messages", "input", "contents"}
    if change == "param":
        changes = {"max_tokens", "generationConfig"}
    elif change == "left-out":
        changes = {"tools"}
    kept = body.keys() - changes
    assert {name: value.get(name) for name in kept} == {name: body[name] for name in kept}
