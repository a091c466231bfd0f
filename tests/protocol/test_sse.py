"""Tests of server-sent events: the same events however the bytes are split."""

from __future__ import annotations

import random

import pytest

from infermux.protocol.sse import MAX_EVENT, Event, Parser, comment

FEEDS = [
    (b"data: a\n\n", [Event(b"a")]),
    (b"data:a\n\n", [Event(b"a")]),
    (b"data:  a\n\n", [Event(b" a")]),
    (b"data: a\r\n\r\n", [Event(b"a")]),
    (b"data: a\r\rdata: b\r\r", [Event(b"a"), Event(b"b")]),
    (b"data: a\n\r\ndata: b\r\n\rdata: c\r\n\n", [Event(b"a"), Event(b"b"), Event(b"c")]),
    (b"event: x\r\ndata: a\rdata: b\n\r", [Event(b"a\nb", b"x")]),
    (b"data: a\ndata: b\n\n", [Event(b"a\nb")]),
    (b"data\n\n", [Event(b"")]),
    (b"data: a: b\n\n", [Event(b"a: b")]),
    (b"event: ping\ndata: {}\n\n", [Event(b"{}", b"ping")]),
    (b"data: {}\nevent: late\n\n", [Event(b"{}", b"late")]),
    (b"event: one\nevent: two\ndata: x\n\n", [Event(b"x", b"two")]),
    (b"event: alone\n\ndata: x\n\n", [Event(b"x")]),
    (b": a comment\ndata: a\n: another\n\n", [Event(b"a")]),
    (b":\n\n: x\n\n\n\n", []),
    (b"id: 7\nretry: 10\nother: y\nDATA: no\ndata: a\n\n", [Event(b"a")]),
    (b"data: a\n\ndata: b\n\n", [Event(b"a"), Event(b"b")]),
    (b"event: a\ndata: 1\n\ndata: 2\n\n", [Event(b"1", b"a"), Event(b"2")]),
    ("data: \u2028é\x85\n\n".encode(), [Event("\u2028é\x85".encode())]),
    (b"data: \xff\xfe\n\n", [Event(b"\xff\xfe")]),
    (b"\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
    (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [Event(b"a")]),
    pytest.param(
        b"\xef\xbb\xbfevent: x\ndata: a\n\n",
        [Event(b"a", b"x")],
    ),
]


@pytest.mark.parametrize(("data", "events"), FEEDS, ids=lambda value: repr(value)[:40])
def test_events_do_not_depend_on_how_the_bytes_are_cut(data: bytes, events: list[Event]) -> None:
    assert Parser().feed(data) == events
    bytewise = Parser()
    assert [
        event for at in range(len(data)) for event in bytewise.feed(data[at : at + 1])
    ] == events
    for cut in range(len(data)):
        halves = Parser()
        assert halves.feed(data[:cut]) + halves.feed(data[cut:]) == events


@pytest.mark.parametrize("seed", range(20))
def test_a_long_stream_cut_at_random_is_the_same_stream(seed: int) -> None:
    rng = random.Random(seed)
    alphabet = ["a", "é", "\u2028", " ", ":", "😀", "\n", "{", "\x85"]
    events = [
        Event(
            "".join(rng.choices(alphabet, k=rng.randrange(1, 40))).encode(),
            rng.choice([b"", b"delta"]),
        )
        for _ in range(200)
    ]
    data = b"".join(
        event.encode() + (comment("alive") if rng.random() < 0.2 else b"") for event in events
    )
    parser, found, at = Parser(), [], 0
    while at < len(data):
        size = rng.choice([1, 2, 7, 50, 1000])
        found += parser.feed(data[at : at + size])
        at += size
    assert found == events
    assert parser.end() == []


@pytest.mark.parametrize(
    ("data", "events"),
    [
        (b"data: a", [Event(b"a")]),
        (b"data: a\n", [Event(b"a")]),
        (b"data: a\r", [Event(b"a")]),
        (b"event: x\ndata: a", [Event(b"a", b"x")]),
        (b"", []),
        (b": c", []),
        (b"event: x", []),
        (b"data: a\n\n", []),
    ],
)
def test_the_last_event_needs_no_empty_line(data: bytes, events: list[Event]) -> None:
    parser = Parser()
    parser.feed(data)
    assert parser.end() == events
    assert parser.end() == []


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (Event(b"x"), b"data: x\n\n"),
        (Event(b"x", b"error"), b"event: error\ndata: x\n\n"),
        (Event(b"a\nb\n"), b"data: a\ndata: b\ndata: \n\n"),
        (Event(b""), b"data: \n\n"),
    ],
)
def test_an_event_is_written_as_it_is_read(event: Event, data: bytes) -> None:
    assert event.encode() == data
    assert Parser().feed(data) == [event]


def test_a_comment_is_skipped_by_a_reader() -> None:
    assert comment("waiting") == b": waiting\n\n"
    assert Parser().feed(comment("waiting")) == []


def feed_all(pieces: list[bytes]) -> int:
    parser = Parser()
    return sum(len(parser.feed(piece)) for piece in pieces)


@pytest.mark.parametrize(
    "piece",
    [
        b"x" * 2**20,
        pytest.param(
            b"data: " + b"x" * 2**20 + b"\n",
        ),
    ],
    ids=["one line", "many lines"],
)
def test_an_event_without_end_is_refused(piece: bytes) -> None:
    with pytest.raises(ValueError, match="longer than"):
        feed_all([piece] * (2 * MAX_EVENT // len(piece)))


@pytest.mark.parametrize("cut", [1, pytest.param(20)])
def test_many_events_are_not_one_long_event(cut: int) -> None:
    event = Event(b"x" * 2**20).encode()
    assert feed_all([event * cut] * (20 // cut)) == 20


def test_a_long_event_in_small_pieces_is_read_in_linear_time() -> None:
    """A parser that copies what it has at each piece would take minutes."""
    data = b"data: " + b"x" * (8 * 2**20) + b"\n\n"
    assert feed_all([data[at : at + 512] for at in range(0, len(data), 512)]) == 1
