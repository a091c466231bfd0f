"""Tests of patterns: names with * in [models], and scopes with * in [keys]."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from infermux import InferRequest, Registry, Router, build
from infermux.admission.keys import hashed
from infermux.app import create_app
from infermux.cli.main import main
from infermux.config.patterns import covers, pattern, ties
from infermux.errors import ConfigError, ModelNotFound
from infermux.planning import kept, replayed
from infermux.types import Target

ENV = {"ANTHROPIC_API_KEY": "unused", "OPENAI_API_KEY": "unused"}
ECHOES = """
[providers.one]
type = "echo"
models = ["a-1", "a-2", "b-1"]
[providers.two]
type = "echo"
models = ["a-1", "c-1"]
"""


def router(text: str, folder: Path, **env: str) -> Router:
    path = folder / "infermux.toml"
    path.write_text(text, encoding="utf-8")
    return build.router(build.settings(env or ENV, str(path)))


def resolved(found: Router, model: str, provider: str = "") -> list[str]:
    return [str(target) for target in found.registry.resolve(model, provider)]


def problems(text: str, folder: Path, **env: str) -> str:
    path = folder / "infermux.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as failed:
        build.router(build.settings(env or ENV, str(path), strict=False))
    return "\n".join(failed.value.errors)


# -- what matches ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "texts"),
    [
        ("cl-*", "cl-x", ("x",)),
        ("cl-*", "cl-", ("",)),
        ("cl-*", "cl", None),
        ("cl-*", "xcl-x", None),
        ("*", "", ("",)),
        ("*", "a/b", ("a/b",)),
        ("a*c", "abbc", ("bb",)),
        ("ab*ba", "aba", None),  # the texts may not overlap
        ("*-*", "a-b-c", ("a", "b-c")),
        ("*a*a*b", "a" * 500, None),
        ("a.*", "axx", None),  # no other letter is special
        ("[a]*", "a1", None),
        ("x*y*z", "x1y2y3z", ("1", "2y3")),
    ],
)
def test_a_star_stands_for_any_text(text, name, texts):
    assert pattern(text).match(name) == texts
    if texts is not None:
        assert pattern(text).filled(texts) == name


def test_matching_takes_no_long_time_for_any_name():
    found, name = pattern("*a" * 40 + "b"), "a" * 512
    start = time.process_time()
    for _ in range(100):
        assert found.match(name) is None
    assert time.process_time() - start < 1


MODELS = """
[providers.anthropic]
[providers.openai]
[models]
"cl-*" = "anthropic/claude-*"
"cl-opus*" = ["openai/o-opus*", "openai/p*"]
cl-fast = "openai/gpt-6-luna"
"anthropic/*" = ["anthropic/*", "openai/anthropic/*"]
"anthropic/claude-haiku-*" = "cl-haiku-*"
"*-mini" = ["openai/*-mini", "anthropic/*"]
"any-*" = "openai/gpt-6-luna"
"""


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        # a target may be a name that a pattern matches
        ("cl-sonnet-9", ["anthropic/claude-sonnet-9", "openai/anthropic/claude-sonnet-9"]),
        ("cl-opus-9", ["openai/o-opus-9", "openai/p-9"]),  # longer: more specific
        ("cl-fast", ["openai/gpt-6-luna"]),  # exact
        # its own pattern does not count while it is resolved
        ("anthropic/claude-x", ["anthropic/claude-x", "openai/anthropic/claude-x"]),
        # nor does one that is less specific
        ("anthropic/claude-haiku-5", ["anthropic/claude-haiku-5"]),
        ("gpt-9-mini", ["openai/gpt-9-mini", "anthropic/gpt-9", "openai/anthropic/gpt-9"]),
        ("any-thing", ["openai/gpt-6-luna"]),
        ("claude-opus-9", ["anthropic/claude-opus-9"]),  # no pattern: the vendor's own
        ("openai/gpt-x", ["openai/gpt-x"]),
    ],
)
def test_the_most_specific_name_counts(name, targets, tmp_path):
    found = router(MODELS, tmp_path)
    assert resolved(found, name) == targets
    plan = found.plan(InferRequest(name, [{"role": "user", "content": "hi"}]))
    assert [str(target) for target in plan.targets] == targets
    again = replayed(kept(plan))
    assert not again.differences
    assert again.plan.route == plan.route


def test_a_provider_narrows_a_pattern(tmp_path):
    found = router(MODELS, tmp_path)
    assert resolved(found, "gpt-9-mini", "anthropic") == ["anthropic/gpt-9"]
    with pytest.raises(ModelNotFound, match="no target at provider 'anthropic'"):
        resolved(found, "cl-opus-9", "anthropic")


def test_the_order_of_the_file_does_not_matter(tmp_path):
    lines = ['"a*" = "one/a-1"', '"a-*" = "one/a-2"', '"*" = "one/b-1"']
    for order in (lines, lines[::-1]):
        found = router(ECHOES + "[models]\n" + "\n".join(order), tmp_path)
        assert resolved(found, "a-x") == ["one/a-2"]
        assert resolved(found, "ax") == ["one/a-1"]
        assert resolved(found, "zz") == ["one/b-1"]


def test_a_star_alone_serves_what_no_other_provider_is_named_for(tmp_path):
    found = router(ECHOES + '[models]\n"*" = ["one/*", "one/b-1"]\n', tmp_path)
    assert resolved(found, "a-2") == ["one/a-2", "one/b-1"]
    assert resolved(found, "unheard-of") == ["one/b-1"]  # without what no provider has
    assert resolved(found, "two/c-1") == ["two/c-1"]
    assert resolved(found, "two") == ["two/a-1"]
    assert resolved(found, "c-1") == ["two/c-1"]  # which only the other one lists
    assert resolved(found, "auto") == resolved(found, "") == ["one/a-1"]


def test_strategy_weights_and_fallback_hold_for_patterns(tmp_path):
    found = router(
        ECHOES + '[models."x-*"]\ntargets = ["one/a-*", "two/a-*"]\nstrategy = "weighted"\n'
        'weights = { "one/a-*" = 9, "two/a-*" = 1 }\nfallback = "c-*"\n',
        tmp_path,
    )
    route = found.registry.route("x-1")
    assert route.entries == (Target("one", "a-1"), Target("two", "a-1"))
    assert (route.weights, route.then) == ((9.0, 1.0), (Target("two", "c-1"),))
    assert (route.name, route.pattern) == ("x-1", "x-*")


@pytest.mark.slow
def test_a_pattern_takes_turns_over_all_its_names_and_keeps_no_state_for_each(tmp_path):
    found = router(
        ECHOES + '[models."x-*"]\ntargets = ["one/a-1", "two/c-1"]\nstrategy = "round_robin"\n',
        tmp_path,
    )
    told = [found.infer("hi", model=f"x-{number}").provider for number in range(3000)]
    assert told == ["one", "two"] * 1500
    assert len(found._cursors) == 1
    assert found.registry._matched.cache_info().currsize <= 1024


def test_a_name_with_a_star_in_a_request_is_404(tmp_path):
    found = router(ECHOES + '[models]\n"x-*" = "one/a-*"\n', tmp_path)
    with pytest.raises(ModelNotFound, match="that is a pattern; name a model that it matches"):
        found.infer("hi", model="x-*")


def test_names_are_resolved_as_before_without_a_pattern():
    registry = Registry()
    registry.define("x", ["y"])
    registry.define("y-*", ["x"])
    assert registry.names == ("x",) and registry.patterns == ("y-*",)


# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[models]\nx = "openai/*"', ["[models] x", "'openai/*' has a *", "give the name a *"]),
        ('[models]\n"a*b*" = "openai/*"', ["as many * as the name, or none"]),
        ('[models]\n"a*" = "openai/*-*"', ["as many * as the name"]),
        ('[models]\n"a**" = "openai/*"', ["write * instead of **"]),
        ('[models]\n"a-*" = "antropic/*"', ["no provider for model 'antropic/*'", "'anthropic'"]),
        (
            '[models]\n"a-*" = "groq/*"',
            ["groq/* is Groq's", "add [providers.groq]", "GROQ_API_KEY"],
        ),
        ('[models]\n"a-*" = "local/x-*"', ["'local' has no model that 'x-*'", "it has llama"]),
        ('[models]\n"a-*" = "nothing-*"', ["no provider for model 'nothing-*'"]),
        ('[models]\n"a-*" = "nothing"', ["no provider for model 'nothing'"]),
        ('[models]\n"a-*" = "b-*"\n"b-*" = "a-*"', ["is circular", "b-*"]),
        ('[models]\n"a-*" = "c-a-*"\n"c-*" = "a-*"', ["no provider for model 'c-a-*'"]),
        ('[models]\n"a-*" = "openai/*"\n"*-b" = "openai/*"', ["'a-*' and '*-b'", "'a-*-b'"]),
        ('[models."a-*"]\ntargets = "openai/*"\nfallback = "antropic/*"', ["'antropic/*'"]),
        (f'[keys.k]\nhash = "{hashed("k")}"\nmodels = ["antropic/*"]', ["[keys.k].models"]),
        (f'[keys.k]\nhash = "{hashed("k")}"\nmodels = ["**"]', ["[keys.k].models: write *"]),
        *(
            (
                f'[keys.k]\nhash = "{hashed("k")}"\n{budget} = {{ usd = "1", then = "a-*" }}',
                [f"[keys.k].{budget}.then must be a name"],
            )
            for budget in ("budget", "user_budget")
        ),
        ('[providers.x]\ntype = "openai"\nmodels = ["gpt-*"]', ["[providers.x].models: 'gpt-*'"]),
    ],
)
def test_what_cannot_match_is_an_error_that_names_why(text, words, tmp_path):
    start = (
        '[providers.openai]\n[providers.anthropic]\n[providers.local]\ntype = "echo"\n'
        'models = ["llama"]\n'
    )
    told = problems(start + text, tmp_path)
    assert all(word in told for word in words), told


def test_all_are_told_at_once(tmp_path):
    told = problems(
        '[providers.openai]\n[models]\nx = "openai/*"\n"a-*" = "nope/*"\n"*-b" = "openai/*"\n'
        '"b-*" = "openai/*"\n"c-*-b" = "openai/*-*"',
        tmp_path,
    )
    assert "[models] x" in told and "'nope/*'" in told and "'b-*-b'" in told


@pytest.mark.parametrize(
    ("names", "tied"),
    [
        (["a*", "*b"], [("a*", "*b")]),
        (["a*", "*b", "a*b"], []),  # which matches ab, too
        (["a*", "b*"], []),
        (["aa*", "*b"], []),  # one is longer
        (["ab*", "*bc", "abc", "ab*bc"], []),  # what both match is named
        (["ab*", "*bc", "ab*bc"], [("ab*", "*bc")]),  # abc is not
        (["x*", "y"], []),
        (["*", "*"], []),
    ],
)
def test_two_patterns_that_match_the_same_name_are_a_tie(names, tied):
    assert [found[:2] for found in ties(dict.fromkeys(names))] == tied


def test_looking_for_ties_takes_no_long_time_for_any_patterns():
    began = time.process_time()
    for number in (12, 16):
        one = "".join(f"*{letter}" for letter in "abcdefghijklmnop"[:number])
        other = "".join(f"{letter}*" for letter in "abcdefghijklmnop"[:number])
        assert not [*ties([f"{one}x", f"{other}y"])]
        assert [*ties([f"{one}*", f"*{other}"])]
    assert time.process_time() - began < 5


def test_a_tie_that_a_more_specific_name_decides_is_none(tmp_path):
    found = router(
        ECHOES + '[models]\n"a*" = "one/a-1"\n"*z" = "one/a-2"\n"a*z" = "one/b-1"\n', tmp_path
    )
    assert resolved(found, "az") == resolved(found, "a-z") == ["one/b-1"]
    assert (resolved(found, "aa"), resolved(found, "zz")) == (["one/a-1"], ["one/a-2"])


# -- keys and lists --------------------------------------------------------------------------------

KEYED = (
    ECHOES
    + '[models]\nfast = "one/a-1"\n"x-*" = "one/a-*"\n[ledger]\npath = ""\n'
    + "".join(
        f'[keys.{name}]\nhash = "{hashed(name)}"\nmodels = {json.dumps(scope)}\n'
        for name, scope in {
            "some": ["one/*", "x-*"],
            "all": ["*"],
            "mixed": ["f*", "c-1"],
            "free": ["a-*"],
        }.items()
    )
)


@pytest.fixture
def client(tmp_path: Path) -> Any:
    path = tmp_path / "infermux.toml"
    path.write_text(KEYED)
    return create_app(build.router(build.settings({}, str(path)))).test_client()


def ask(client: Any, key: str, model: str) -> int:
    answer = client.post(
        "/v1/chat/completions",
        json={"model": model, "messages": [{"role": "user", "content": "hi"}]},
        headers={"Authorization": f"Bearer {key}"},
    )
    return int(answer.status_code)


@pytest.mark.parametrize(
    ("key", "allowed", "refused"),
    [
        ("some", ["one/a-1", "one/b-1", "x-1", "x-2"], ["a-1", "two/c-1", "fast", "auto", "one"]),
        ("all", ["one/a-1", "a-1", "two/c-1", "fast", "auto", "one", "x-2"], []),
        ("mixed", ["fast", "c-1"], ["a-1", "two/c-1", "one/a-1", "x-1"]),
        ("free", ["a-1", "a-2"], ["b-1", "one/a-1"]),
    ],
)
def test_a_scope_with_a_star_admits_what_it_matches(key, allowed, refused, client):
    assert {model: ask(client, key, model) for model in allowed} == dict.fromkeys(allowed, 200)
    assert {model: ask(client, key, model) for model in refused} == dict.fromkeys(refused, 403)


def listed(client: Any, key: str, path: str = "/v1/models") -> Any:
    return client.get(path, headers={"Authorization": f"Bearer {key}"}).get_json()


def test_models_lists_names_that_can_be_asked_for_and_no_patterns(client):
    every = {key: [each["id"] for each in listed(client, key)["data"]] for key in ("some", "all")}
    assert set(every["some"]) == {"one/a-1", "one/a-2", "one/b-1", "x-1", "x-2"}
    assert {"fast", "x-1", "x-2", "a-1", "c-1"} <= set(every["all"])
    assert all("*" not in name for names in every.values() for name in names)
    for key, names in every.items():
        assert {name: ask(client, key, name) for name in names} == dict.fromkeys(names, 200)


def test_a_model_of_a_pattern_is_described(client):
    found = listed(client, "some", "/v1/models/x-1")
    assert (found["id"], found["owned_by"]) == ("x-1", "infermux")
    assert listed(client, "some", "/v1/models/a-1")["error"]["code"] == "model_not_found"


def test_providers_lists_what_a_scope_with_a_star_matches(client):
    found = {
        each["name"]: each["models"] for each in listed(client, "mixed", "/providers")["providers"]
    }
    assert found == {"one": ["fast"], "two": ["c-1"]}


def test_without_keys_the_known_names_of_patterns_are_listed(tmp_path):
    path = tmp_path / "infermux.toml"
    path.write_text(ECHOES + '[models]\n"x-*" = ["one/a-*", "two/c-*"]\n[ledger]\npath = ""\n')
    client = create_app(build.router(build.settings({}, str(path)))).test_client()
    names = [each["id"] for each in client.get("/v1/models").get_json()["data"]]
    assert names == ["x-1", "x-2", "a-1", "a-2", "b-1", "c-1"]


def test_covers_is_exact_first():
    assert covers(("a",), "a") and not covers(("a",), "b")
    assert covers(("a", "b*"), "bc") and not covers(("b*",), "ab") and covers(["*"], "")


# -- validate and explain --------------------------------------------------------------------------


def test_validate_says_what_each_pattern_matches(tmp_path, monkeypatch):
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "x.toml"
    path.write_text(
        '[providers.anthropic]\n[providers.openai]\n[models]\n"cl-*" = "anthropic/claude-*"\n'
        f'"o/*" = "openai/*"\n"any-*" = "openai/gpt-6-luna"\n[keys.web]\nhash = "{hashed("k")}"\n'
        'models = ["cl-haiku*"]\n'
    )
    answer = CliRunner().invoke(main, ["validate", "-c", str(path)])
    assert answer.exit_code == 0, answer.output
    assert "2 providers, 3 names, 1 key: configuration is valid" in answer.output
    lines = {
        line.split("  ")[1].strip(): line for line in answer.output.splitlines() if "  " in line
    }
    assert "cl-haiku-5-5, cl-sonnet-5-5, cl-opus-5-5" in lines["cl-*"]
    assert "more" in lines["o/*"] and "o/gpt-6-luna" in lines["o/*"]
    assert "no model that is known by name" in lines["any-*"]
    assert "cl-haiku-5-5" in lines["[keys.web] cl-haiku*"]
    assert "cl-sonnet" not in lines["[keys.web] cl-haiku*"]


def test_explain_names_the_pattern(tmp_path, monkeypatch):
    path = tmp_path / "x.toml"
    path.write_text(ECHOES + '[models]\n"x-*" = "one/a-*"\n')
    answer = CliRunner().invoke(main, ["explain", "x-2", "-c", str(path)])
    assert answer.exit_code == 0, answer.output
    assert answer.output.startswith("x-2 (x-*): priority, ") and "one/a-2" in answer.output
    asked = CliRunner().invoke(main, ["explain", "x-2", "-c", str(path), "--json"])
    assert json.loads(asked.output)["pattern"] == "x-*"


def test_models_shows_patterns_as_they_are_written(tmp_path):
    path = tmp_path / "x.toml"
    path.write_text(ECHOES + '[models]\n"x-*" = ["one/a-*", "two/c-*"]\n')
    answer = CliRunner().invoke(main, ["models", "-c", str(path), "--json"])
    assert answer.exit_code == 0, answer.output
    [name] = json.loads(answer.output)["names"]
    assert (name["name"], name["targets"]) == ("x-*", ["one/a-*", "two/c-*"])
