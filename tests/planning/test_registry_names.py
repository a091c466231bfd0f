"""Tests of the names in [models]: their targets, the order of these, and what the names hide."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from infermux import InferRequest, InferResponse, Registry, Router, build
from infermux.errors import ConfigError, ModelNotAllowed, ModelNotFound, ProviderUnavailable
from infermux.types import Caller, Route, Target

MESSAGES = [{"role": "user", "content": "hello"}]
PROVIDERS = "".join(
    f'[providers.{name}]\ntype = "echo"\nmodels = {models}\n'
    for name, models in {"one": ["a", "both"], "two": ["b", "both", "c"]}.items()
)


class Answering:
    """Answers, or fails, and says what it was asked for."""

    def __init__(
        self, name: str, *models: str, fails: bool = False, any_model: bool = False
    ) -> None:
        self.name, self.models, self.fails, self.any_model = name, models, fails, any_model
        self.asked: list[str] = []

    def infer(self, request: InferRequest) -> InferResponse:
        self.asked.append(request.model)
        if self.fails:
            raise ProviderUnavailable("down")
        return InferResponse(request.model, self.name, "hi", tokens_in=1, tokens_out=1)


def test_a_text_is_one_target_as_in_a_file() -> None:
    found = Registry([Answering("one", "a", fails=True), Answering("two", "b")])
    found.define("x", "one/a", fallback="two/b", fallback_on="context")
    assert Router(found).infer("hi", model="x").provider == "two"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"strategy": "cheap"}, "did you mean 'cheapest'"),
        ({"attempts": -1}, "0 or more"),
        ({"deadline": -1.0}, "0 or more"),
    ],
)
def test_what_no_call_could_follow_is_refused(option: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Registry().define("x", ["one/a"], **option)


def registry(**names: Any) -> Registry:
    """Return two providers under *names*: a list of targets, or what `define` takes."""
    found = Registry([Answering("one", "a", "both"), Answering("two", "b", "both", "c")])
    for name, value in names.items():
        found.define(name, **({"targets": value} if isinstance(value, list) else value))
    return found


def resolved(found: Registry, model: str, provider: str = "") -> list[str]:
    return [str(target) for target in found.resolve(model, provider)]


def from_file(models: str, folder: Path) -> Router:
    path = folder / "infermux.toml"
    path.write_text(PROVIDERS + models, encoding="utf-8")
    return build.router(build.settings({}, str(path)))


# -- what a name stands for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "targets"),
    [
        ('[models]\nx = "one/a"', ["one/a"]),  # a target
        ('[models]\nx = "b"', ["two/b"]),  # a model
        ('[models]\nx = "both"', ["one/both", "two/both"]),  # everybody's
        ('[models]\nx = "two"', ["two/b"]),  # a provider: its first model
        ('[models]\nx = "two/c"', ["two/c"]),
        (
            '[models]\nx = ["two/c", "one/a"]',
            ["two/c", "one/a"],
        ),  # as declared, not as the providers stand
        ('[models]\nx = ["both", "two/c", "b"]', ["one/both", "two/both", "two/c", "two/b"]),
        (
            '[models]\nx = ["one/both", "both"]',
            ["one/both", "two/both"],
        ),  # each once, where it first comes
        ('[models.x]\ntargets = "one/a"', ["one/a"]),  # a table
        ('[models.x]\ntargets = ["two/b"]\nfallback = "one/a"', ["two/b", "one/a"]),
        (
            '[models.x]\ntargets = ["two/b"]\nfallback = ["one/a", "two/c"]',
            ["two/b", "one/a", "two/c"],
        ),
        ('[models.x]\ntargets = ["two/b"]\nfallback = ["b", "one/a"]', ["two/b", "one/a"]),
        (
            '[models]\nx = ["y", "one/a"]\ny = ["two/b", "z"]\nz = "two/c"',
            ["two/b", "two/c", "one/a"],
        ),  # names of names
        (
            '[models]\nz = "two/c"\ny = ["two/b", "z"]\nx = ["y", "one/a"]',
            ["two/b", "two/c", "one/a"],
        ),  # in any order
        (
            '[models]\nx = ["y", "z"]\ny = ["one/a", "two/b"]\nz = ["two/b", "two/c"]',
            ["one/a", "two/b", "two/c"],
        ),
        (
            '[models]\nx = "y"\n[models.y]\ntargets = ["two/b"]\nfallback = "one/a"',
            ["two/b", "one/a"],
        ),
        (
            '[models]\ny = ["two/c", "one/a"]\n[models.x]\ntargets = ["two/b"]\nfallback = "y"',
            ["two/b", "two/c", "one/a"],
        ),
    ],
)
def test_a_name_stands_for_its_targets(models, targets, tmp_path):
    router = from_file(models, tmp_path)
    assert resolved(router.registry, "x") == targets
    assert [str(target) for target in router.plan(InferRequest("x", MESSAGES)).targets] == targets


def test_a_route_keeps_the_shape_of_its_name():
    found = registry(
        inner={"targets": ["one/a", "two/b"], "strategy": "round_robin"},
        outer={
            "targets": ["inner", "two/c"],
            "strategy": "weighted",
            "weights": {"inner": 9},
            "fallback": ["both"],
            "on_unsupported": "drop",
        },
    )
    inner = Route("inner", (Target("one", "a"), Target("two", "b")), "round_robin")
    then = (Target("one", "both"), Target("two", "both"))
    assert found.route("outer") == Route(
        "outer", (inner, Target("two", "c")), "weighted", then, (9.0, 1.0), "drop"
    )
    assert found.names == ("inner", "outer")


def test_a_name_is_answered_by_the_next_target_when_one_fails():
    first, second, last = (
        Answering("first", "m", fails=True),
        Answering("second", "m", fails=True),
        Answering("last", "m"),
    )
    found = Registry([last, second, first])
    found.define("x", ["first/m", "second/m"], fallback=["last/m"])
    answer = Router(found, sleep=lambda seconds: None).infer(InferRequest("x", MESSAGES))
    assert (answer.provider, answer.model) == ("last", "m")
    assert (first.asked, second.asked, last.asked) == (
        ["m"],
        ["m"],
        ["m"],
    )  # the vendor never sees the name


@pytest.mark.parametrize(
    "strategy", ["priority", "weighted", "round_robin", "least_latency", "cheapest"]
)
def test_then_comes_after_every_target_whatever_the_strategy(strategy, tmp_path):
    router = from_file(
        f'[models.x]\nstrategy = "{strategy}"\ntargets = ["two/b", "two/c"]\nfallback = "one/a"',
        tmp_path,
    )
    for seed in range(20):
        targets = [
            str(target) for target in router.plan(InferRequest("x", MESSAGES), seed=seed).targets
        ]
        assert sorted(targets[:2]) == ["two/b", "two/c"] and targets[2:] == ["one/a"]


def first_targets(router: Router, name: str, calls: int) -> Counter[str]:
    return Counter(
        str(router.plan(InferRequest(name, MESSAGES), seed=seed).targets[0])
        for seed in range(calls)
    )


@pytest.mark.slow
def test_weights_are_shares(tmp_path):
    router = from_file(
        '[models.x]\nstrategy = "weighted"\ntargets = ["one/a", "two/b"]\nweights = { "one/a" = 9 }',
        tmp_path,
    )
    share = first_targets(router, "x", 4000)["one/a"] / 4000
    assert 0.87 < share < 0.93


@pytest.mark.slow
def test_weights_may_be_fractions(tmp_path):
    weights = 'weights = { "one/a" = 0.25, "two/b" = 0.75 }'
    router = from_file(
        f'[models.x]\nstrategy = "weighted"\ntargets = ["one/a", "two/b"]\n{weights}', tmp_path
    )
    assert 0.21 < first_targets(router, "x", 4000)["one/a"] / 4000 < 0.29


@pytest.mark.slow
def test_the_weight_of_a_name_is_the_weight_of_its_group(tmp_path):
    names = '[models]\ny = ["one/a", "one/both"]\n[models.x]\nstrategy = "weighted"\ntargets = ["y", "two/b"]\nweights = { y = 3 }'
    found = first_targets(from_file(names, tmp_path), "x", 4000)
    assert set(found) == {"one/a", "two/b"} and 0.71 < found["one/a"] / 4000 < 0.79


@pytest.mark.slow
def test_the_weight_of_a_model_is_shared_by_its_providers(tmp_path):
    """Two providers serve `both`: that does not double its share."""
    router = from_file(
        '[models.x]\nstrategy = "weighted"\ntargets = ["both", "c"]\nweights = { both = 1, c = 1 }',
        tmp_path,
    )
    assert 0.46 < first_targets(router, "x", 4000)["two/c"] / 4000 < 0.54


# -- taking turns ----------------------------------------------------------------------------------


def asked(router, name):
    """Make a call, and return the target that it went to first."""
    call = router.begin(InferRequest(name, MESSAGES))
    router.answer(call)
    return str(call.attempts[0].target)


TURNS = "\n".join(
    f'{name} = {{ strategy = "round_robin", targets = {targets} }}'
    for name, targets in {"spread": ["one/a", "two/b"], "other": ["two/c", "both"]}.items()
)


@pytest.mark.parametrize(
    ("models", "firsts"),
    [
        (
            "x = { strategy = 'round_robin', targets = ['one/a', 'two/b'] }",
            {"one/a": 20, "two/b": 20},
        ),
        pytest.param(f"{TURNS}\nx = 'spread'", {"one/a": 20, "two/b": 20}),
        pytest.param(f"{TURNS}\nx = ['spread', 'two/c']", {"one/a": 20, "two/b": 20}),
        pytest.param(
            f"{TURNS}\nx = {{ strategy = 'round_robin', targets = ['spread', 'two/c'] }}",
            {"one/a": 10, "two/b": 10, "two/c": 20},
        ),
    ],
    ids=["alone", "by another name", "in a list", "at two levels"],
)
def test_round_robin_takes_turns_at_every_level(models, firsts, tmp_path):
    router = from_file(f"[models]\n{models}", tmp_path)
    router.plan(InferRequest("x", MESSAGES))  # only a call that is made moves on
    assert Counter(asked(router, "x") for _ in range(40)) == firsts


def test_each_name_takes_turns_by_itself(tmp_path):
    router = from_file(f"[models]\n{TURNS}", tmp_path)
    first = [asked(router, name) for name in ("spread", "other") * 2]
    assert first == ["one/a", "two/c", "two/b", "one/both"]


# -- names beside models and providers -------------------------------------------------------------


def test_a_name_hides_a_model_and_a_provider_of_the_same_name():
    found = registry(a=["two/b"], one=["two/c"], auto=["two/both"])
    assert resolved(found, "a") == ["two/b"]
    assert resolved(found, "one") == ["two/c"]
    assert resolved(found, "auto") == ["two/both"]
    assert resolved(found, "one/a") == [
        "one/a"
    ]  # what is hidden is still there under its full name
    assert resolved(found, "one/both") == ["one/both"]
    assert resolved(found, "") == ["one/a"]  # nothing at all is not the name `auto`


def test_a_name_may_stand_for_the_model_that_it_hides():
    assert resolved(registry(a=["one/a", "two/b"]), "a") == ["one/a", "two/b"]
    with pytest.raises(ConfigError, match="'a' is circular: a -> a"):
        registry(a=["a"]).resolve("a")


def test_a_name_that_holds_a_slash_is_a_name():
    assert resolved(registry(**{"openai/gpt-4": ["two/b"]}), "openai/gpt-4") == ["two/b"]
    assert resolved(registry(**{"one/a": ["two/b"]}), "one/a") == ["two/b"]


def test_a_later_definition_replaces_an_earlier_one():
    found = registry(x=["one/a"])
    found.define("x", ["two/b"])
    assert resolved(found, "x") == ["two/b"] and found.names == ("x",)


@pytest.mark.parametrize(
    ("model", "hint"), [("fsat", "'fast'"), ("bth", "'both'"), ("tow", "'two'")]
)
def test_what_is_close_is_named_among_names_models_and_providers(model, hint):
    with pytest.raises(ModelNotFound, match=f"did you mean.*{hint}"):
        registry(fast=["a"]).resolve(model)


@pytest.mark.parametrize("way", ["targets", "fallback"])
def test_a_cycle_is_an_error_when_it_is_resolved(way):
    found = registry(x={"targets": ["a"], way: ["y"]}, y=["x"])
    with pytest.raises(ConfigError, match="x -> y -> x"):
        found.resolve("x")


# -- a name at one provider ------------------------------------------------------------------------


def test_a_name_at_a_provider_is_what_the_provider_has_of_it():
    assert resolved(registry(fast=["one/a", "two/b", "two/c"]), "fast", "two") == ["two/b", "two/c"]


def test_a_name_at_a_provider_that_takes_every_model_never_goes_out_as_a_model():
    vendor = Answering("vendor", "v", any_model=True)
    found = Registry([vendor, Answering("one", "a")])
    found.define("fast", ["one/a", "vendor/v"])
    Router(found).infer(InferRequest("fast", MESSAGES, "vendor"))
    assert vendor.asked == ["v"]


def test_a_name_at_a_provider_that_has_nothing_of_it_is_not_found():
    with pytest.raises(ModelNotFound):
        registry(fast=["one/a"]).resolve("fast", "two")
    with pytest.raises(ModelNotFound, match="no provider named 'nobody'"):
        registry(fast=["one/a"]).resolve("fast", "nobody")


@pytest.mark.parametrize("name", ["fast", pytest.param("auto"), pytest.param("two")])
def test_a_provider_in_the_request_opens_nothing_beyond_the_name_that_a_key_may_use(name):
    """A key for one name, which leads to one/a alone: naming a provider beside it must not reach
    that provider's own models.
    """
    router = Router(registry(**{name: ["one/a"]}))
    request = InferRequest(name, MESSAGES, "two")
    with pytest.raises((ModelNotAllowed, ModelNotFound)):
        router.plan(request, caller=Caller("web", (name,)))


@pytest.mark.parametrize("model", ["one/a", "a", "one", "", "auto", "smart"])
def test_a_key_for_one_name_opens_no_other(model):
    router = Router(registry(fast=["one/a"], smart=["two/b"]))
    with pytest.raises(ModelNotAllowed):
        router.plan(InferRequest(model, MESSAGES), caller=Caller("web", ("fast",)))
    assert router.plan(InferRequest("fast", MESSAGES), caller=Caller("web", ("fast",))).targets == (
        Target("one", "a"),
    )
