"""Tests of reading JSON and events while they pass, in pieces of any size."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from infermux.protocol.scanning import MAX_MEMBER, EventScanner, Members

WORDS = 'a"\\\n{}[],:é"usage":'


def value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(6 if depth < 3 else 4)
    if kind == 4:
        return [value(rng, depth + 1) for _ in range(rng.randrange(3))]
    if kind == 5:
        return {'k"' * rng.randrange(3) + str(n): value(rng, depth + 1) for n in range(3)}
    return (rng.randrange(100), WORDS * rng.randrange(3), None, True)[kind]


@pytest.mark.parametrize("seed", range(20))
def test_the_members_are_those_of_a_parser(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(50):
        data = [{"b64": 'x"\\' * 3, "usage": value(rng)} for _ in range(rng.randrange(3))]
        body = {"a": value(rng), "data": data, "usage": value(rng), "id": value(rng)}
        indent = rng.choice([None, 1])
        text = json.dumps(body, indent=indent, ensure_ascii=rng.choice([True, False])).encode()
        members, at = Members("usage", "id"), 0
        while at < len(text):
            assert at == 0 or not members.whole
            size = rng.choice([1, 2, 3, 7, 50])
            members.feed(text[at : at + size])
            at += size
        assert members.whole
        assert members.values() == {"usage": body["usage"], "id": body["id"]}
        assert members.items == len(data)


def test_a_member_that_is_too_long_is_left_out() -> None:
    members = Members("usage", "id")
    members.feed(json.dumps({"usage": "x" * MAX_MEMBER, "id": 7}).encode())
    assert members.values() == {"usage": None, "id": 7}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 8, 9, 100, 5000])
def test_events_are_read_in_pieces_of_any_size(size: int) -> None:
    found: list[tuple[dict[str, Any], bytes]] = []
    scanner = EventScanner(lambda members, text: found.append((members, text)), "type", "usage")
    long = b'{"type":"a.done","b64":"' + b"Z" * 1000 + b'","usage":{"n":1}}'
    parts = [
        b": hello\n\n",
        b"event: x\r\ndata: " + long + b"\r\n\r\n",
        b"data: [DONE]\n\n",
        b'data:{"type":\ndata: "m"}\n\n',
    ]
    text = b"".join(parts)
    ends = [at for at in range(1, len(text) + 1) if text[:at] in _prefixes(parts)]
    seen, done = 0, 0
    for at in range(0, len(text), size):
        end = scanner.feed(text[at : at + size])
        done = at + end if end else done
        seen = at + size
        assert done == max((each for each in ends if each <= seen), default=0)
    assert [members for members, _ in found] == [
        {"type": "a.done", "usage": {"n": 1}},
        {},
        {"type": "m"},
    ]
    assert found[1][1] == b"[DONE]"


def _prefixes(parts: list[bytes]) -> set[bytes]:
    """What has come when an event with data ends."""
    return {b"".join(parts[: number + 1]) for number in range(1, len(parts))}
