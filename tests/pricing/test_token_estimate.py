"""Tests of the token estimate: close enough on real text, fast on hostile text."""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from infermux.pricing import token_estimate as tokens
from infermux.pricing.token_estimate import PER_IMAGE, PER_MESSAGE, estimate, estimate_messages

SHARED = Path(__file__).parents[3] / "shared" / "prices" / "token_samples.jsonl"
OWN = Path(__file__).parents[1] / "data" / "prices" / "token_samples.jsonl"


def samples(file: Path) -> list[Any]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def errors(file: Path) -> list[float]:
    return sorted(
        abs(estimate(sample["text"]) / sample["o200k_tokens"] - 1) for sample in samples(file)
    )


@pytest.mark.skipif(not SHARED.exists(), reason="no shared samples")
def test_the_shared_samples_are_met() -> None:
    found = errors(SHARED)
    assert statistics.median(found) <= 0.05
    assert found[int(len(found) * 0.95)] <= 0.20


@pytest.mark.skipif(not SHARED.exists(), reason="no shared samples")
def test_no_corpus_is_wrong_as_a_whole() -> None:
    told: dict[str, int] = {}
    true: dict[str, int] = {}
    for sample in samples(SHARED):
        told[sample["corpus"]] = told.get(sample["corpus"], 0) + estimate(sample["text"])
        true[sample["corpus"]] = true.get(sample["corpus"], 0) + sample["o200k_tokens"]
    assert {
        corpus: told[corpus] / true[corpus]
        for corpus in true
        if not 0.8 < told[corpus] / true[corpus] < 1.25
    } == {}


def test_samples_that_no_weight_was_fitted_to_are_met() -> None:
    found = errors(OWN)
    assert statistics.median(found) <= 0.10
    assert found[-1] <= 0.35  # one or two sentences each, so that they scatter more


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("", 0),
        (" ", 1),
        ("a", 1),
        ("\n", 1),
        ("\u0301", 2),
        ("1234567", 3),
        ("\ud800", 1),
        ("\0", 1),
    ],
)
def test_the_smallest_texts(text: str, tokens: int) -> None:
    assert estimate(text) == tokens


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "unit",
    [
        " ",
        "a",
        "A",
        "é",
        "ж",
        "漢",
        "1",
        "!",
        "\n",
        "\u0301",
        "\0",
        "\ud800",
        "\U0001f600",
        "aA",
        "Aa",
        "a1",
        " 1",
        "a ",
        "1!",
        "aé",
        "漢a",
        "a" * 16 + "1",
        "A" * 8 + "a",
        " " * 64 + "a",
        "\r\n",
        "\u3000 ",
        "a!1 é漢",
    ],
)
def test_five_megabytes_of_anything_take_little_time_and_are_no_bargain(unit: str) -> None:
    text = unit * (5_000_000 // len(unit))
    start = time.process_time()
    tokens = estimate(text)
    assert time.process_time() - start < 3
    assert tokens > len(text) / 80


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "unit", [" ", "a", "aA", "a1", "A" * 8 + "a", "aé", "a" * 16 + "é1", " 1", "!a"]
)
def test_the_full_pass_is_linear(unit: str) -> None:
    def seconds(size: int) -> float:
        text = (unit * size)[:size]
        return min(timed(text) for _ in range(3))

    def timed(text: str) -> float:
        start = time.process_time()
        estimate(text)
        return time.process_time() - start

    assert seconds(2**18) < 16 * seconds(2**15) + 0.05  # 8 times the text; quadratic would be 64


def test_a_long_text_is_read_in_pieces_from_end_to_end() -> None:
    half = "The quick brown fox jumps over the lazy dog. " * 10_000
    other = "敏捷的棕色狐狸" * (len(half) // 7)
    assert estimate(half + other) == pytest.approx(
        estimate(half[:200_000]) / 200_000 * len(half) + 0.835 * len(other), rel=0.03
    )
    edge = (half * 2)[: 2**18]
    assert estimate(edge + "x") == pytest.approx(estimate(edge), rel=0.01)


def test_of_a_long_conversation_a_sample_is_read() -> None:
    rng = random.Random(5)
    words = ["the", "value", "router,", "def", "self", "found:", "import", "12", "{key}", "->"]
    messages = [
        {"role": "user", "content": " ".join(rng.choices(words, k=rng.randrange(400)))}
        for _ in range(400)
    ]
    read = 0

    def seen(frame: FrameType, event: str, _: Any) -> None:
        nonlocal read
        if event == "call" and frame.f_code is tokens._weigh.__code__:
            read += len(frame.f_locals["text"])

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        found = estimate_messages(messages)
    finally:
        sys.setprofile(before)
    assert 2**13 < read <= 2**15
    each = [PER_MESSAGE + estimate(message["content"]) for message in messages]
    assert found == pytest.approx(sum(each), rel=0.05)


def test_a_message_counts_its_text_and_a_little_more() -> None:
    text = "What is the capital of France?"
    flat = estimate_messages([{"role": "user", "content": text}])
    assert flat == estimate(text) + PER_MESSAGE
    assert (
        estimate_messages([{"role": "user", "content": [{"type": "text", "text": text}]}]) == flat
    )
    assert estimate_messages([]) == 0
    assert estimate_messages([{"role": "user", "content": text}] * 3) == 3 * flat


def test_an_image_is_flat_whatever_its_url() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}
    assert (
        estimate_messages([{"role": "user", "content": [image, image]}])
        == 2 * PER_IMAGE + PER_MESSAGE
    )


def test_tool_calls_count_by_name_and_arguments() -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
    }
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert (
        estimate_messages([message])
        == estimate("get_weather") + estimate('{"city": "Paris"}') + PER_MESSAGE
    )


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"content": None},
        {"content": 5},
        {"content": [None, 5, {}, {"type": "text"}, {"type": "text", "text": 5}]},
        {"tool_calls": 5},
        {"tool_calls": [None, {}, {"function": 5}, {"function": {"name": None}}]},
        {"content": {"text": "x"}},
    ],
)
def test_a_misshapen_message_is_no_error(message: Any) -> None:
    assert PER_MESSAGE <= estimate_messages([message]) <= PER_MESSAGE + 1


def test_ascii_is_weighed_as_by_the_scanner_of_every_script():
    rng = random.Random(11)
    for _ in range(500):
        text = "".join(rng.choice("aeZQ09 \n\t.,{}[]\"'") for _ in range(rng.randrange(60)))
        beside = tokens._weigh(text + "\u4e2d") - tokens._weigh(
            "\u4e2d"
        )  # one Han character has the text read by the other one
        assert tokens._weigh(text) == pytest.approx(beside)
