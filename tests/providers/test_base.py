"""Tests of the provider interface: what an object must have, and what it inherits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from infermux import Chunk, Deadline, InferRequest, InferResponse, Provider, Registry, Router, Usage
from infermux.errors import ConfigError

HELLO = InferRequest("m", [{"role": "user", "content": "hi"}])
ANSWER = InferResponse("m", "p", "hello", 3, 1, 0.5)


class Duck:
    """The least: name, models, infer(request)."""

    name = "duck"
    models = ("m", "m2")

    def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(
            request.model,
            self.name,
            f"{request.provider}/{request.model}: {request.messages[-1]['content']}",
            3,
            1,
            0.5,
        )


class Modern(Duck):
    """infer with a deadline."""

    name = "modern"

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:  # type: ignore[override]
        assert 0 < deadline.remaining() <= 600
        return super().infer(request)


class Defaulted(Duck):
    """infer whose deadline may be left out."""

    name = "defaulted"

    def infer(self, request: InferRequest, deadline: Deadline | None = None) -> InferResponse:
        assert deadline is not None
        return super().infer(request)


class Open(Duck):
    """infer that takes whatever comes."""

    name = "open"

    def infer(self, *args: Any, **kwargs: Any) -> InferResponse:  # type: ignore[override]
        assert len(args) == 2 and not kwargs
        return super().infer(args[0])


class Like(Duck):
    """mist-go's shape: name and models are methods."""

    def name(self) -> str:  # type: ignore[override]
        return "like"

    def models(self) -> list[str]:  # type: ignore[override]
        return ["m"]

    def infer(self, request: InferRequest) -> InferResponse:
        return InferResponse(request.model, "like", "like", 3, 1)


class Sub(Provider):
    """A subclass of the base."""

    name = "sub"
    models = ("m",)

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        return ANSWER


class Streaming(Duck):
    """A provider that streams by itself."""

    name = "streaming"

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        yield Chunk(text="a")
        yield Chunk(text="b", finish_reason="stop", usage=Usage(3, 2))


ALL = [Duck, Modern, Defaulted, Open, Like, Sub, Streaming]


@pytest.mark.parametrize("kind", ALL)
def test_an_object_with_name_models_and_infer_is_a_provider(kind: type) -> None:
    router = Router(Registry([kind()]))
    [listed] = router.registry.to_dict()["providers"]
    answer = router.infer(InferRequest(listed["name"], HELLO.messages))
    assert answer.content and answer.model == "m"


@pytest.mark.parametrize("kind", ALL)
def test_every_provider_can_stream(kind: type) -> None:
    stream = Router(Registry([kind()])).stream(HELLO)
    chunks = list(stream)
    assert chunks[-1].finish_reason == "stop"
    assert stream.response().content == "".join(chunk.text for chunk in chunks) != ""


@pytest.mark.parametrize("kind", [Duck, Sub])
def test_a_stream_that_is_made_of_a_whole_answer_has_its_tokens_and_cost(kind: type) -> None:
    """InferResponse needs no Usage: tokens_in, tokens_out and cost_usd are enough to bill, streamed
    or not.
    """
    router = Router(Registry([kind()]))
    whole = router.infer(HELLO)
    assert (whole.tokens_in, whole.tokens_out, whole.cost_usd) == (3, 1, 0.5)
    stream = router.stream(HELLO)
    list(stream)
    assert (stream.call.tokens, stream.call.cost_usd) == ((3, 1), 0.5)


def test_a_provider_gets_the_model_and_its_own_name() -> None:
    router = Router(Registry([Duck()]))
    for asked in ("", "auto", "duck", "m", "duck/m"):
        assert router.infer(InferRequest(asked, HELLO.messages)).content == "duck/m: hi"
    assert router.infer(InferRequest("m2", HELLO.messages)).content == "duck/m2: hi"
    assert HELLO.model == "m"


def make(**attributes: Any) -> Any:
    """Return an object with a good provider's attributes, changed or left out (None)."""
    given = {"name": "p", "models": ["m"], "infer": lambda self, request: ANSWER} | attributes
    return type("Some", (), {name: value for name, value in given.items() if value is not ...})()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"name": ...}, "no 'name'"),
        ({"models": ...}, "no 'models'"),
        ({"infer": ...}, "no 'infer'"),
        ({"name": ""}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": 5}, "name"),
        ({"name": None}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"models": "m"}, "models"),
        ({"models": [""]}, "models"),
        ({"models": [5]}, "models"),
        ({"models": [None]}, "models"),
        pytest.param(
            {"models": None},
            "models",
        ),
        pytest.param(
            {"models": 5},
            "models",
        ),
        pytest.param(
            {"infer": 5},
            "infer",
        ),
    ],
    ids=repr,
)
def test_what_is_no_provider_is_refused_at_registration_and_told_why(
    attributes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        Registry([make(**attributes)])


@pytest.mark.parametrize(
    "models",
    [
        ["m"],
        ("m",),
        {"m": 1},
        {"m"},
        pytest.param(
            iter(["m"]),
        ),
        pytest.param(
            lambda self: (model for model in ["m"]),
        ),
    ],
    ids=["list", "tuple", "dict", "set", "iterator", "generator"],
)
def test_models_may_be_any_collection(models: Any) -> None:
    assert [each.models for each in Registry([make(models=models)])] == [("m",)]


def test_a_base_class_without_infer_cannot_be_made() -> None:
    with pytest.raises(TypeError, match="infer"):
        type("Empty", (Provider,), {"name": "e", "models": ()})()


def test_closing_a_router_closes_what_can_be_closed() -> None:
    closed: list[str] = []
    router = Router(Registry([Duck(), make(close=lambda self: closed.append("p")), Sub()]))
    router.close()
    assert closed == ["p"]
