"""Tests of the registry: providers by name, and which of them serve a model."""

from __future__ import annotations

from typing import Any

import pytest

from infermux import EchoProvider, Registry, Target
from infermux.errors import ConfigError, ModelNotFound


class Fake:
    """All that a provider needs, and on wish what a vendor adds."""

    def __init__(self, name: str, *models: str, prefix: str = "", any_model: bool = False) -> None:
        self.name, self.models, self.any_model, self._prefix = name, models, any_model, prefix

    def infer(self, request: Any) -> Any:
        raise NotImplementedError

    def serves(self, model: str) -> bool:
        return bool(self._prefix) and model.startswith(self._prefix)


def registry() -> Registry:
    return Registry(
        [
            Fake("bare"),
            Fake("one", "a", "shared", "x/y"),
            Fake("two", "b", "shared", "deep/er/model"),
            Fake("vendor", "v-1", prefix="v-", any_model=True),
        ]
    )


@pytest.mark.parametrize(
    ("model", "provider", "targets"),
    [
        ("one", "", ["one/a"]),  # a provider's name: its first model
        ("two", "", ["two/b"]),
        ("b", "", ["two/b"]),  # a model that one lists
        (
            "shared",
            "",
            ["one/shared", "two/shared"],
        ),  # every provider that lists it, in declared order
        ("", "", ["one/a"]),  # the first provider that lists a model
        ("auto", "", ["one/a"]),
        ("two/shared", "", ["two/shared"]),
        ("two/b", "", ["two/b"]),
        ("x/y", "", ["one/x/y"]),  # a listed model may hold a slash
        ("one/x/y", "", ["one/x/y"]),  # only the first slash splits
        ("two/deep/er/model", "", ["two/deep/er/model"]),
        ("v-99", "", ["vendor/v-99"]),  # known by its pattern, listed by nobody
        ("vendor/unlisted", "", ["vendor/unlisted"]),
        ("vendor/o/r", "", ["vendor/o/r"]),
        ("shared", "two", ["two/shared"]),  # InferRequest.provider is honoured
        ("", "two", ["two/b"]),
        ("auto", "two", ["two/b"]),
        ("two", "two", ["two/b"]),
        ("two/shared", "two", ["two/shared"]),
        ("anything", "vendor", ["vendor/anything"]),
    ],
)
def test_a_model_is_resolved(model: str, provider: str, targets: list[str]) -> None:
    found = registry().resolve(model, provider)
    assert [str(target) for target in found] == targets
    assert all(isinstance(target, Target) and target.provider in registry() for target in found)


@pytest.mark.parametrize(
    ("model", "provider", "said"),
    [
        ("nope", "", ["'nope'"]),
        ("sharde", "", ["'sharde'", "did you mean", "'shared'"]),
        ("tow", "", ["'two'"]),
        (
            "one/b",
            "",
            ["'one/b'"],
        ),  # one does not have it, two does: what was asked for is not there
        ("one/", "", ["'one/'"]),
        ("/a", "", ["'/a'"]),
        ("nobody/a", "", ["'nobody/a'"]),
        ("bare", "", ["'bare'", "no model"]),
        ("A", "", ["'A'"]),
        (" a", "", ["' a'"]),
        ("b", "one", ["'one'", "'b'"]),
        ("a", "nobody", ["no provider named 'nobody'"]),
        ("a", "tow", ["no provider named 'tow'", "did you mean", "'two'"]),
        ("", "bare", ["'bare'"]),
        ("x" * 100_000, "", ["no provider for model"]),
        ("a\nb\x1b", "", [r"a\nb\x1b"]),
    ],
)
def test_what_nobody_serves_is_not_found_and_named(
    model: str, provider: str, said: list[str]
) -> None:
    with pytest.raises(ModelNotFound) as caught:
        registry().resolve(model, provider)
    assert caught.value.status == 404
    assert all(each in caught.value.message for each in said)
    assert len(caught.value.message) < 500
    assert caught.value.param in ("model", "provider")


def test_a_model_named_auto_is_the_provider_that_lists_it() -> None:
    found = Registry([Fake("one", "a"), Fake("two", "auto")]).resolve("auto")
    assert found == (Target("two", "auto"),)


def test_without_a_model_anywhere_there_is_no_default() -> None:
    for each in (Registry(), Registry([Fake("bare")])):
        for model in ("", "auto"):
            with pytest.raises(ModelNotFound):
                each.resolve(model)


def test_an_empty_registry_lists_nothing() -> None:
    assert Registry().to_dict() == {"providers": []}
    assert (len(Registry()), list(Registry()), "echo" in Registry()) == (0, [], False)


def test_providers_are_listed_in_the_order_of_declaration() -> None:
    assert registry().to_dict() == {
        "providers": [
            {"name": "bare", "models": []},
            {"name": "one", "models": ["a", "shared", "x/y"]},
            {"name": "two", "models": ["b", "shared", "deep/er/model"]},
            {"name": "vendor", "models": ["v-1"]},
        ]
    }


def test_a_provider_is_looked_up_by_name() -> None:
    echo, each = EchoProvider(), Registry()
    each.register(echo)
    assert each.get("echo") is echo
    assert "echo" in each and len(each) == 1
    with pytest.raises(ModelNotFound, match="did you mean 'echo'"):
        each.get("ehco")


def test_a_name_is_taken_once() -> None:
    each = Registry([Fake("one", "a")])
    with pytest.raises(ConfigError, match="'one' is registered already"):
        each.register(Fake("one", "b"))
    assert each.resolve("one") == (Target("one", "a"),)


def test_two_registries_share_nothing() -> None:
    first, second = Registry(), Registry()
    first.register(EchoProvider())
    assert "echo" not in second
