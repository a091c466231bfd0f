"""Tests of the echo provider: its answers and its token counts."""

from __future__ import annotations

from typing import Any

import pytest

from infermux import Deadline, EchoProvider, InferRequest, Registry, Router
from infermux.config import ProviderConfig
from infermux.errors import ProviderTimeout
from infermux.providers.echo import configured


def ask(*contents: Any, model: str = "echo-v1", **options: Any) -> Any:
    messages = [{"role": "user", "content": content} for content in contents]
    return EchoProvider(delay=0, **options).infer(InferRequest(model, messages))


def test_the_default_one_is_echo_with_echo_v1_after_a_millisecond() -> None:
    echo = EchoProvider()
    assert (echo.name, tuple(echo.models), echo.delay) == ("echo", ("echo-v1",), 0.001)
    answer = echo.infer(InferRequest("echo-v1", [{"role": "user", "content": "hi"}]))
    assert answer.latency_ms == 1


def test_it_says_the_last_message() -> None:
    answer = ask("first", "Hello world")
    assert (answer.content, answer.finish_reason, answer.provider, answer.model) == (
        "echo: Hello world",
        "stop",
        "echo",
        "echo-v1",
    )


@pytest.mark.parametrize(
    ("contents", "tokens_in", "tokens_out"),
    [
        (("",), 0, 1),  # "echo: " is 6 bytes
        (("ab",), 0, 2),
        (("abc",), 0, 2),
        (("abcd",), 1, 2),
        (("abcdefg", "abcdefg"), 2, 3),  # 7 // 4 each: messages are counted one by one
        (("abcdefgh", "x"), 2, 1),
        (("é" * 4,), 2, 3),  # bytes, not letters
        (("😀",), 1, 2),
        (([{"type": "text", "text": "abcd"}, {"type": "text", "text": "efgh"}],), 2, 3),
        ((None,), 0, 1),
        ((), 0, 1),
    ],
)
def test_tokens_are_bytes_by_four(
    contents: tuple[Any, ...], tokens_in: int, tokens_out: int
) -> None:
    answer = ask(*contents)
    assert (answer.tokens_in, answer.tokens_out) == (tokens_in, tokens_out)
    assert answer.cost_usd == pytest.approx((tokens_in + tokens_out) * 0.00001, rel=1e-12)
    assert answer.usage.input_tokens == tokens_in and answer.usage.output_tokens == tokens_out


@pytest.mark.parametrize(
    ("asked", "answered"),
    [("", "first"), ("auto", "first"), ("second", "second"), ("other", "other")],
)
def test_auto_is_the_first_model(asked: str, answered: str) -> None:
    assert ask("x", model=asked, name="mine", models=["first", "second"]).model == answered


def test_the_delay_is_slept_and_told() -> None:
    slept: list[float] = []
    echo = EchoProvider("e", ["m"], 0.25, sleep=slept.append)
    assert (
        echo.infer(InferRequest("m", [{"role": "user", "content": "x"}]), Deadline(60)).latency_ms
        == 250
    )
    assert slept == [0.25]


def test_a_deadline_ends_the_wait() -> None:
    slept: list[float] = []
    echo = EchoProvider(delay=30, sleep=slept.append)
    for ask_ in (echo.infer, lambda request, deadline: list(echo.stream(request, deadline))):
        with pytest.raises(ProviderTimeout):
            ask_(InferRequest("m", [{"role": "user", "content": "x"}]), Deadline(0.5))
    assert all(0 <= each <= 0.5 for each in slept)


@pytest.mark.parametrize(
    "text", ["", " ", "Hello world", "  two  spaces \n and\tlines ", "é 😀 日本", "one"]
)
def test_a_stream_says_the_same_in_pieces(text: str) -> None:
    router, request = (
        Router(Registry([EchoProvider(delay=0)])),
        InferRequest("echo-v1", [{"role": "user", "content": text}]),
    )
    whole, stream = router.infer(request), router.stream(request)
    pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == whole.content == f"echo: {text}"
    assert len([piece for piece in pieces if piece.text]) == len(f"echo: {text}".split())
    assert pieces[-1].finish_reason == "stop"
    again = stream.response()
    assert (again.content, again.tokens_in, again.tokens_out, again.cost_usd) == (
        whole.content,
        whole.tokens_in,
        whole.tokens_out,
        whole.cost_usd,
    )


def test_what_it_says_survives_the_router() -> None:
    answer = Router(Registry([EchoProvider()])).infer(
        InferRequest("echo", [{"role": "user", "content": "Hello world"}])
    )
    assert answer.to_dict() == {
        "model": "echo-v1",
        "provider": "echo",
        "content": "echo: Hello world",
        "tokens_in": 2,
        "tokens_out": 4,
        "cost_usd": 0.00006,
        "latency_ms": 1,
        "finish_reason": "stop",
    }


def test_it_costs_what_the_configuration_says_of_its_model() -> None:
    stated = {"own": {"input": "3", "output": "0.5"}}
    echo = configured(ProviderConfig("p", "echo", models=("own", "other"), prices=stated))
    own, other = (
        echo.infer(InferRequest(model, [{"role": "user", "content": "four" * 4}]))
        for model in ("own", "other")
    )
    assert (own.tokens_in, own.tokens_out) == (4, 5)
    assert own.cost_usd == own.usage.cost_usd == pytest.approx(0.0000145)
    assert other.cost_usd == pytest.approx(0.00009)
