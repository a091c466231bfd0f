"""Tests of what is set for a name or a provider: params, timeouts, headers, rates, breakers."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support import Scripted, Vendor
from urllib3 import HTTPHeaderDict

from infermux import Budget, Caller, InferRequest, Router, build
from infermux.app import create_app
from infermux.cli.main import main
from infermux.dialects.limits import used_up
from infermux.errors import ConfigError, InferMuxError, Paced, ProviderTimeout
from infermux.types import Target

SAID = [{"role": "user", "content": "hi"}]
LIMIT = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m0s"}


def build_router(text: str, folder: Path, **env: str) -> Router:
    path = folder / "infermux.toml"
    path.write_text(text, encoding="utf-8")
    return build.router(build.settings({"K": "sk-abcdefghij", **env}, str(path)))


def provider(vendor: Vendor, name: str = "v", more: str = "") -> str:
    return (
        f'[providers.{name}]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\n'
        f'api_key = "env:K"\nmodels = ["m", "n"]\n{more}\n'
    )


def problems(text: str, folder: Path, **env: str) -> str:
    path = folder / "infermux.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as failed:
        build.router(build.settings({"K": "sk-abcdefghij", **env}, str(path), strict=False))
    return "\n".join(failed.value.errors)


# -- params and override ---------------------------------------------------------------------------


def sent(vendor: Vendor, router: Router, **request: Any) -> dict[str, Any]:
    """Return the body that the vendor got for a request by the OpenAI-compatible API."""
    client = create_app(router).test_client()
    body = {"model": "x", "messages": SAID, **request}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return dict(vendor.seen[-1].body)


def test_a_default_holds_where_the_client_sets_nothing_and_an_override_always(vendor, tmp_path):
    found = build_router(
        provider(vendor) + '[models.x]\ntargets = "v/m"\n'
        "params = { temperature = 0.2, max_tokens = 100, chat_template_kwargs = { a = 1 } }\n"
        'override = { seed = 7, stop = ["END"] }\n',
        tmp_path,
    )
    body = sent(vendor, found)
    assert body["temperature"] == 0.2 and body["max_tokens"] == 100 and body["seed"] == 7
    assert body["stop"] == ["END"] and body["chat_template_kwargs"] == {"a": 1}
    body = sent(vendor, found, temperature=0.9, max_completion_tokens=5, seed=1, stop="X")
    assert (body["temperature"], body["seed"], body["stop"]) == (0.9, 7, ["END"])
    assert body["max_completion_tokens"] == 5 and "max_tokens" not in body
    body = sent(vendor, found, model="v/m")  # another name: nothing is set for it
    assert body == {"model": "m", "messages": SAID}


def test_an_override_of_the_limit_replaces_its_other_name(vendor, tmp_path):
    found = build_router(
        provider(vendor) + '[models.x]\ntargets = "v/m"\noverride = { max_tokens = 9 }\n', tmp_path
    )
    body = sent(vendor, found, max_completion_tokens=500)
    assert body["max_tokens"] == 9 and "max_completion_tokens" not in body
    found.infer("hi", model="x", params={"max_completion_tokens": 500})
    body = vendor.seen[-1].body
    assert body["max_tokens"] == 9 and "max_completion_tokens" not in body


def test_a_providers_params_come_after_those_of_the_client_and_the_name(vendor, tmp_path):
    found = build_router(
        provider(vendor, more="params = { temperature = 0.1, top_p = 0.5, seed = 1 }")
        + '[models.x]\ntargets = "v/m"\nparams = { temperature = 0.2 }\noverride = { seed = 3 }\n',
        tmp_path,
    )
    body = sent(vendor, found, top_p=0.9)
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.2, 0.9, 3)
    body = sent(vendor, found, model="v/n")
    assert (body["temperature"], body["top_p"], body["seed"]) == (0.1, 0.5, 1)


def test_a_name_inside_a_name_adds_what_the_outer_one_does_not_set(vendor, tmp_path):
    found = build_router(
        provider(vendor) + '[models.x]\ntargets = "y"\nparams = { temperature = 0.2 }\n'
        'override = { seed = 1 }\n[models.y]\ntargets = "v/m"\n'
        "params = { temperature = 0.7, top_p = 0.5 }\noverride = { seed = 2, n = 1 }\n",
        tmp_path,
    )
    body = sent(vendor, found)
    assert [body[name] for name in ("temperature", "top_p", "seed", "n")] == [0.2, 0.5, 1, 1]
    body = sent(vendor, found, model="y")
    assert [body[name] for name in ("temperature", "top_p", "seed", "n")] == [0.7, 0.5, 2, 1]


def test_a_pattern_has_settings(vendor, tmp_path):
    found = build_router(
        provider(vendor) + '[models."x-*"]\ntargets = "v/*"\nparams = { temperature = 0.2 }\n',
        tmp_path,
    )
    body = sent(vendor, found, model="x-n")
    assert (body["model"], body["temperature"]) == ("n", 0.2)


def test_an_embedding_gets_only_what_is_meant_for_it(vendor, tmp_path):
    vendor.answers = [Scripted(body={"data": [], "model": "m", "object": "list"})]
    found = build_router(
        provider(vendor)
        + '[models.x]\ntargets = "v/m"\nparams = { temperature = 0.2, dimensions = 512 }\n',
        tmp_path,
    )
    client = create_app(found).test_client()
    client.post("/v1/embeddings", json={"model": "x", "input": "a"})
    assert vendor.seen[-1].body == {"model": "m", "input": "a", "dimensions": 512}


CLIENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("/v1/chat/completions", {"messages": SAID}),
    "anthropic": ("/v1/messages", {"messages": SAID, "max_tokens": 50}),
    "gemini": (
        "/v1beta/models/x:generateContent",
        {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
    ),
    "responses": ("/v1/responses", {"input": "hi"}),
    "mist": ("/infer", {"messages": SAID}),
}


@pytest.mark.sampled(1)
@pytest.mark.sampled(6)
@pytest.mark.parametrize("dialect", ["anthropic", "gemini", "openai"])
@pytest.mark.parametrize("client", CLIENTS)
def test_params_are_said_in_the_format_of_the_target(client, dialect, tmp_path):
    model = {"anthropic": "claude-3-5-haiku", "gemini": "gemini-2.5-flash", "openai": "gpt-4o"}
    with Vendor() as vendor:
        found = build_router(
            f'[providers.v]\ntype = "{dialect}"\nbase_url = "{vendor.url}/v1"\napi_key = "env:K"\n'
            f'[models.x]\ntargets = "v/{model[dialect]}"\n'
            'params = { temperature = 0.25, max_tokens = 77, inference_geo = "eu" }\n'
            'override = { stop = ["END"] }\n',
            tmp_path,
        )
        path, body = CLIENTS[client]
        named = body if client == "gemini" else {"model": "x", **body}
        create_app(found).test_client().post(path, json=named)  # the answer is no use
        got = vendor.seen[-1].body
    limit = 50 if client == "anthropic" else 77
    # none of OpenAI's: it goes to vendors of that format as it is
    assert got.get("inference_geo") == (None if dialect == "gemini" else "eu")
    if dialect == "anthropic":
        assert (got["temperature"], got["max_tokens"]) == (0.25, limit)
        assert got["stop_sequences"] == ["END"] and "stop" not in got
    elif dialect == "gemini":
        config = got["generationConfig"]
        assert (config["temperature"], config["maxOutputTokens"]) == (0.25, limit)
        assert config["stopSequences"] == ["END"] and "temperature" not in got
    elif client == "responses":
        assert vendor.seen[-1].path.endswith("/responses")
        assert (got["temperature"], got["max_output_tokens"]) == (0.25, limit)
    else:
        assert (got["temperature"], got["max_tokens"], got["stop"]) == (0.25, limit, ["END"])


def test_a_clients_own_body_keeps_what_is_not_set(tmp_path):
    with Vendor() as vendor:
        found = build_router(
            f'[providers.v]\ntype = "anthropic"\nbase_url = "{vendor.url}/v1"\napi_key = "env:K"\n'
            '[models.x]\ntargets = "v/claude-3-5-haiku"\nparams = { temperature = 0.25 }\n'
            "override = { max_tokens = 10 }\n",
            tmp_path,
        )
        body = {
            "model": "x",
            "max_tokens": 900,
            "top_k": 5,
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": SAID,
        }
        create_app(found).test_client().post("/v1/messages", json=body)
        got = vendor.seen[-1].body
    assert got == body | {"model": "claude-3-5-haiku", "max_tokens": 10, "temperature": 0.25}


def test_a_default_that_the_target_does_not_take_is_left_out_and_told(tmp_path):
    with Vendor() as vendor:
        found = build_router(
            f'[providers.v]\ntype = "anthropic"\nbase_url = "{vendor.url}/v1"\napi_key = "env:K"\n'
            '[models.x]\ntargets = "v/claude-3-5-haiku"\n'
            "params = { seed = 5, frequency_penalty = 1, logit_bias = { a = 1 } }\n",
            tmp_path,
        )
        client = create_app(found).test_client()
        client.post("/v1/chat/completions", json={"model": "x", "messages": SAID})
        assert vendor.seen[-1].body.keys() <= {"model", "messages", "max_tokens", "system"}


def test_a_budgets_cheaper_name_has_settings_of_its_own(tmp_path):
    with Vendor(Scripted(delay=20)) as vendor:
        found = build_router(
            f'[ledger]\npath = "{tmp_path / "l.db"}"\n'
            + provider(vendor, more='prices.m = { input = "1000000", output = "1000000" }')
            + f'[providers.a]\ntype = "anthropic"\nbase_url = "{vendor.url}"\napi_key = "env:K"\n'
            'models = ["c"]\nprices.c = { input = "0", output = "0" }\n'
            '[models.cheap]\ntargets = "a/c"\non_unsupported = "drop"\ndeadline = 0.3\n',
            tmp_path,
        )
        caller = Caller("web", budget=Budget(usd="0.01", then="cheap"))
        start = time.monotonic()
        with pytest.raises(ProviderTimeout):
            found.infer("hi", model="v/m", params={"seed": 5}, caller=caller)
        assert time.monotonic() - start < 5
        assert vendor.seen[-1].body["model"] == "c"


THINKS = {"type": "enabled", "budget_tokens": 2000}
HIGH = 'params = { reasoning_effort = "high" }'
TOOLS = [{"name": "f", "input_schema": {"type": "object"}}]
CHOICE = 'params = { tool_choice = "auto", parallel_tool_calls = false }'


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("setting", "asked", "wanted", "dropped"),
    [
        (HIGH, {}, {"thinking": THINKS | {"budget_tokens": 2500}}, None),  # below the limit
        (HIGH, {"temperature": 0.5}, {"temperature": 0.5}, "reasoning_effort"),
        (
            'params = { reasoning_effort = "high", temperature = 0.2 }',  # beside each other
            {},
            {"thinking": THINKS | {"budget_tokens": 2500}},
            "temperature",
        ),
        (
            "params = { temperature = 0.2, top_k = 3 }",
            {"thinking": THINKS},
            {},
            "temperature, top_k",
        ),
        (
            "override = { max_tokens = 1500 }",
            {"thinking": THINKS},
            {"max_tokens": 1500, "thinking": THINKS | {"budget_tokens": 1024}},
            None,
        ),
        (
            "override = { max_tokens = 500 }",
            {"thinking": THINKS},
            {"max_tokens": 500, "thinking": {"type": "disabled"}},
            None,
        ),
        (CHOICE, {}, {}, None),  # without tools a vendor refuses these
        (
            CHOICE,
            {"tools": TOOLS},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            None,
        ),
    ],
)
def test_what_is_set_agrees_with_what_the_client_asks(setting, asked, wanted, dropped, tmp_path):
    with Vendor() as vendor:
        found = build_router(
            f'[providers.v]\ntype = "anthropic"\nbase_url = "{vendor.url}/v1"\napi_key = "env:K"\n'
            f'[models.x]\ntargets = "v/claude-sonnet-4-5"\n{setting}\n',
            tmp_path,
        )
        body = {"model": "x", "messages": SAID, "max_tokens": 5000, **asked}
        answer = create_app(found).test_client().post("/v1/messages", json=body)
        assert vendor.seen[-1].body == body | {"model": "claude-sonnet-4-5"} | wanted
        assert answer.headers.get("X-Infermux-Dropped") == dropped


def test_a_default_of_tools_is_not_sent_without_tools(vendor, tmp_path):
    found = build_router(provider(vendor) + f'[models.x]\ntargets = "v/m"\n{CHOICE}\n', tmp_path)
    assert sent(vendor, found).keys() == {"model", "messages"}
    tool = {"type": "function", "function": {"name": "f"}}
    body = sent(vendor, found, tools=[tool])
    assert (body["tool_choice"], body["parallel_tool_calls"]) == ("auto", False)


def test_streams_have_them_too(vendor, tmp_path):
    found = build_router(
        provider(vendor) + '[models.x]\ntargets = "v/m"\nparams = { temperature = 0.25 }\n',
        tmp_path,
    )
    with found.stream("hi", model="x") as chunks:
        assert list(chunks)
    assert vendor.seen[-1].body["temperature"] == 0.25 and vendor.seen[-1].body["stream"] is True


@pytest.mark.sampled(8)
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("params = { temperature = 3 }", ["[models.x].params.temperature", "from 0 to 2"]),
        ('params = { temperature = "hot" }', ["params.temperature must be a number"]),
        ("params = { temperature = true }", ["params.temperature must be a number"]),
        ("params = { max_tokens = 0 }", ["params.max_tokens must be from 1"]),
        ("params = { max_tokens = 1.5 }", ["params.max_tokens must be a whole number"]),
        ("params = { max_tokns = 1 }", ["max_tokns", "did you mean 'max_tokens'"]),
        ("params = { stop = [1] }", ["params.stop must hold text"]),
        ('params = { tools = ["f"] }', ["params.tools[0] must be a table with a `type`"]),
        ('params = { model = "y" }', ["params.model must not be set"]),
        ("params = { stream = true }", ["params.stream must not be set"]),
        ('override = { api_key = "x" }', ["override.api_key must not be set"]),
        ("params = { a = 2020-01-01 }", ["params.a must be text, a number"]),
        ("params = { a = [{ b = nan }] }", ["params.a[0].b must be a finite number"]),
        ("params = 5", ["[models.x].params must be a table"]),
        ("timeout = 0", ["[models.x].timeout"]),
        ('timeout = "5s"', ["[models.x].timeout must be a number"]),
        ("timeout = { attmpt = 5 }", ["attmpt", "did you mean 'attempt'"]),
        ("attempts = 0", ["[models.x].attempts"]),
        ("deadline = -1", ["[models.x].deadline"]),
    ],
)
def test_a_bad_setting_of_a_name_is_an_error(line, words, tmp_path):
    told = problems(f'[providers.echo]\n[models.x]\ntargets = "echo"\n{line}\n', tmp_path)
    assert all(word in told for word in words), told


def test_an_override_that_no_target_can_express_is_an_error(tmp_path):
    told = problems(
        '[providers.v]\ntype = "gemini"\napi_key = "env:K"\n[models.x]\n'
        'targets = "v/gemini-2.5-flash"\noverride = { audio = { voice = "a" } }\n',
        tmp_path,
    )
    assert "[models.x].override: v/gemini-2.5-flash cannot express 'audio'" in told


# -- timeout, attempts, deadline -------------------------------------------------------------------


def names(vendors: list[Vendor], more: str, folder: Path) -> Router:
    text = "".join(provider(each, f"v{number}") for number, each in enumerate(vendors))
    targets = [f"v{number}/m" for number in range(len(vendors))]
    return build_router(f"{text}[models.x]\ntargets = {targets}\n{more}\n", folder)


@pytest.mark.parametrize("timeout", ["0.3", "{ attempt = 0.3 }", "{ first_byte = 0.3 }"])
def test_the_timeout_of_a_name_ends_an_attempt(timeout, tmp_path):
    with Vendor(Scripted(delay=20)) as slow, Vendor() as quick:
        found = names([slow, quick], f"timeout = {timeout}", tmp_path)
        start = time.monotonic()
        answer = found.infer("hi", model="x")
        assert answer.provider == "v1" and 0.2 < time.monotonic() - start < 5


def test_a_longer_timeout_holds_while_another_target_waits(tmp_path, monkeypatch):
    monkeypatch.setattr("infermux.routing.router.FAILOVER_SECONDS", 0.2)
    with Vendor(Scripted(delay=1)) as slow, Vendor() as quick:
        found = names([slow, quick], "timeout = 10", tmp_path)
        assert found.infer("hi", model="x").provider == "v0"


@pytest.mark.slow
def test_attempts_and_deadline_of_a_name(tmp_path):
    with Vendor(Scripted(500)) as broken, Vendor(Scripted(delay=20)) as slow:
        found = names([broken], "attempts = 1", tmp_path)
        with pytest.raises(InferMuxError):
            found.infer("hi", model="x")
        assert len(broken.seen) == 1
        found = names([broken], "attempts = 5", tmp_path)
        with pytest.raises(InferMuxError):
            found.infer("hi", model="x")
        assert len(broken.seen) == 6
        found = names([slow], "deadline = 0.3", tmp_path)
        start = time.monotonic()
        with pytest.raises(InferMuxError):
            found.infer("hi", model="x")
        assert time.monotonic() - start < 5


def test_explain_tells_what_is_set(vendor, tmp_path):
    from infermux.routing.explain import explain, question

    found = build_router(
        provider(vendor) + '[models.x]\ntargets = "v/m"\nparams = { temperature = 0.2 }\n'
        "override = { seed = 7 }\ntimeout = 5\nattempts = 2\ndeadline = 9\n",
        tmp_path,
    )
    told = explain(found, question({"model": "x"})).to_dict()
    assert (told["attempts"], told["deadline"]) == (2, 9.0)
    [target] = told["targets"]
    assert target["params"] == {"temperature": 0.2, "seed": 7}
    assert target["timeout"] == {"attempt": 5.0}
    assert "params" not in explain(found, question({"model": "v/m"})).to_dict()["targets"][0]
    usual = provider(vendor, more="params = { temperature = 0.5, top_p = 0.9 }")
    named = '[models.x]\ntargets = "v/m"\nparams = { temperature = 0.2 }\n'
    found = build_router(usual + named, tmp_path)
    for model, params in (("x", {"temperature": 0.2, "top_p": 0.9}), ("v/m", {"top_p": 0.9})):
        asked = question({"model": model, "params": {"temperature": 1} if model == "v/m" else {}})
        assert explain(found, asked).to_dict()["targets"][0]["params"] == params


# -- headers ---------------------------------------------------------------------------------------


def test_headers_of_a_provider_are_sent_and_secrets_stay_secret(vendor, tmp_path):
    vendor.answers = [Scripted(400, {"error": {"message": "no: sesame-open-99", "type": "x"}})]
    found = build_router(
        provider(
            vendor,
            more='headers = { X-Org = "acme", X-Gate-Pass = "env:GATE", User-Agent = "ours/1" }',
        ),
        tmp_path,
        GATE="sesame-open-99",
    )
    with pytest.raises(InferMuxError) as failed:
        found.infer("hi", model="v/m")
    headers = vendor.seen[-1].headers
    assert (headers["x-org"], headers["x-gate-pass"]) == ("acme", "sesame-open-99")
    assert headers["user-agent"] == "ours/1" and headers["authorization"] == "Bearer sk-abcdefghij"
    assert "sesame" not in str(failed.value)


def test_a_header_may_carry_the_key_where_there_is_no_api_key(vendor, tmp_path):
    found = build_router(
        f'[providers.v]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["m"]\n'
        'headers = { Authorization = "env:GATE" }\n',
        tmp_path,
        GATE="Basic abc",
    )
    found.infer("hi", model="v/m")
    assert vendor.seen[-1].headers["authorization"] == "Basic abc"


@pytest.mark.slow
def test_betas_of_the_configuration_and_of_the_client_are_both_sent(tmp_path):
    with Vendor() as vendor:
        found = build_router(
            f'[providers.v]\ntype = "anthropic"\nbase_url = "{vendor.url}/v1"\napi_key = "env:K"\n'
            'headers = { anthropic-beta = "one" }\n[models]\nx = "v/claude-x"\n',
            tmp_path,
        )
        client = create_app(found).test_client()
        body = {"model": "x", "max_tokens": 5, "messages": SAID}
        client.post("/v1/messages", json=body, headers={"anthropic-beta": "two"})
        client.post("/v1/messages", json=body)
        got = [each.headers["anthropic-beta"] for each in vendor.seen]
    assert (got[0], got[-1]) == ("one,two", "one")


@pytest.mark.sampled(5)
@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ('{ X-A = "a\\nb" }', ["headers.X-A must be printable ASCII"]),
        ('{ X-A = "" }', ["headers.X-A must be printable ASCII"]),
        ("{ X-A = 5 }", ["headers.X-A must be text"]),
        ('{ "X A" = "b" }', ["'X A' is no name of a header"]),
        ('{ Host = "b" }', ["'Host' must not be set"]),
        ('{ Content-Length = "5" }', ["'Content-Length' must not be set"]),
        ('{ X-A = "b", x-a = "c" }', ["twice"]),
        ('{ X-Token = "abc" }', ["headers.X-Token must be a reference"]),
        ('{ X-Token = "env:NOWHERE" }', ["the variable NOWHERE is not set"]),
        ('{ Authorization = "env:K" }', ["'authorization' carries a key", "set one of them"]),
    ],
)
def test_a_bad_header_is_an_error_that_shows_no_value(headers, words, tmp_path):
    told = problems(
        '[providers.v]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\napi_key = "env:K"\n'
        f'headers = {headers}\n[models]\nx = "v/m"\n',
        tmp_path,
    )
    assert all(word in told for word in words), told
    assert "sk-abcdefghij" not in told


# -- rates towards the vendor ----------------------------------------------------------------------


def rated(vendor: Vendor, folder: Path, more: str, rest: str = "") -> Router:
    ledger = f'[ledger]\npath = "{folder}/x.db"\n'
    return build_router(provider(vendor, more=more) + rest + ledger, folder)


def test_a_providers_own_rate_is_kept_over_workers(vendor, tmp_path):
    routers = [rated(vendor, tmp_path, "rpm = 3\nwait = 0") for _ in range(2)]
    for number in range(3):
        routers[number % 2].infer("hi", model="v/m")
    for router in routers:
        with pytest.raises(Paced) as failed:
            router.infer("hi", model="v/m")
        assert failed.value.status == 429 and 0 < (failed.value.retry_after or 0) <= 61
        assert "[providers.v]" in failed.value.message
    assert len(vendor.seen) == 3


def test_a_call_waits_for_its_turn_at_most_wait_seconds(vendor, tmp_path):
    found = rated(vendor, tmp_path, "rpm = 1\nwait = 30")
    found.infer("hi", model="v/m")
    start = time.monotonic()
    with pytest.raises(Paced):
        found.infer("hi", model="v/m")  # the turn comes in 60 s: it does not even begin to wait
    assert time.monotonic() - start < 2


def test_with_a_fallback_the_call_goes_on_at_once(tmp_path):
    with Vendor() as first, Vendor() as second:
        found = build_router(
            provider(first, "v0", "rpm = 1\nwait = 30")
            + provider(second, "v1")
            + f'[models]\nx = ["v0/m", "v1/m"]\n[ledger]\npath = "{tmp_path}/x.db"\n',
            tmp_path,
        )
        start = time.monotonic()
        assert [found.infer("hi", model="x").provider for _ in range(3)] == ["v0", "v1", "v1"]
        assert time.monotonic() - start < 5


def test_a_request_that_no_minute_can_take_is_too_large(vendor, tmp_path):
    found = build_router(provider(vendor, more="tpm = 50\nwait = 0\n"), tmp_path)
    client = create_app(found).test_client()
    body = {"model": "v/m", "messages": [{"role": "user", "content": "many words " * 500}]}
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 413 and "[providers.v].tpm" in answer.text
    assert answer.json["error"]["code"] == "request_too_large" and not vendor.seen
    assert "Retry-After" not in answer.headers


def test_a_request_that_is_not_sent_counts_in_no_rate(vendor, tmp_path):
    found = build_router(
        provider(vendor, more="rpm = 2\nwait = 0\nconcurrency = 1\n")
        + provider(vendor, "w")
        + f'[models]\nx = ["v/m", "w/m"]\n[ledger]\npath = "{tmp_path}/l.db"\n',
        tmp_path,
    )
    held = found.targets.acquire(Target("v", "m"), force=False)
    for _ in range(4):
        assert found.infer("hi", model="x").provider == "w"  # the other one is at its limit
    held.end(None)
    assert [found.infer("hi", model="x").provider for _ in range(3)] == ["v", "v", "w"]


def test_explain_tells_what_bears_on_the_decision(vendor, tmp_path, monkeypatch):
    build_router(
        provider(vendor, more="rpm = 1\nwait = 0\n").replace('"env:K"', '["env:K", "env:L"]')
        + '[models.x]\ntargets = "v/m"\nattempts = 2\ndeadline = 9\ntimeout = 5\n'
        f'[ledger]\npath = "{tmp_path}/l.db"\n',
        tmp_path,
        L="sk-klmnopqrst",
    )
    for name, value in (("K", "sk-abcdefghij"), ("L", "sk-klmnopqrst")):
        monkeypatch.setenv(name, value)
    told = [
        CliRunner().invoke(main, [*words, "-c", str(tmp_path / "infermux.toml")]).output
        for words in (["explain", "x"], ["infer", "hi", "-m", "x"], ["explain", "x"])
    ]
    assert "the name sets: attempts 2, deadline 9" in told[0] and "attempt 5 s" in told[0]
    assert "own rate" not in told[0] and "own rate admits a request in" in told[2]


def test_tokens_are_counted_as_they_were_used(vendor, tmp_path):
    found = rated(vendor, tmp_path, "tpm = 1000\nwait = 0")
    long = "word " * 700
    found.infer(long, model="v/m")  # estimated 700, used 5
    found.infer(long, model="v/m")
    with pytest.raises(Paced, match="more than"):
        found.infer("word " * 3000, model="v/m")


def test_calls_that_wait_are_served_in_order_as_the_rate_allows(vendor, tmp_path, monkeypatch):
    from infermux.routing.pacing import Pacer

    found = rated(vendor, tmp_path, "rpm = 2\nwait = 20")
    pacer = found.targets.pacers["v"]
    assert isinstance(pacer, Pacer)
    clock = Clock()
    monkeypatch.setattr(pacer._rates, "_clock", clock)
    found.infer("hi", model="v/m")
    found.infer("hi", model="v/m")
    clock.now += 55  # their second ends in about 6 s
    order: list[int] = []

    def ask(number: int) -> None:
        found.infer(f"{number}", model="v/m")
        order.append(number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    assert not order
    clock.now += 10
    for thread in threads:
        thread.join(20)
    assert sorted(order) == [0, 1]


class Clock:
    def __init__(self) -> None:
        self.now = time.monotonic()

    def __call__(self) -> float:
        return self.now


# -- breakers, and limits that vendors tell --------------------------------------------------------


def test_a_provider_has_its_own_breaker(tmp_path):
    with Vendor(Scripted(500)) as vendor:
        found = build_router(
            provider(vendor, "one", "circuit_breaker = { failures = 1, open = 77 }")
            + provider(vendor, "two")
            + "[reliability]\nattempts = 1\ncircuit_breaker = { failures = 3, window = 44 }\n",
            tmp_path,
        )
        for name in ("one", "two"):
            with pytest.raises(InferMuxError):
                found.infer("hi", model=f"{name}/m")
        one, two = (found.targets.breaker(Target(name, "m")) for name in ("one", "two"))
    assert (one.snapshot().state, two.snapshot().state) == ("open", "closed")
    assert (one.open_seconds, one.window, two.open_seconds) == (77.0, 44.0, 30.0)


def test_a_target_whose_limit_is_used_up_comes_last_and_is_still_tried(tmp_path):
    with Vendor(Scripted(headers=LIMIT)) as first, Vendor(Scripted(), Scripted(500)) as second:
        found = names([first, second], "", tmp_path)
        told = [found.infer("hi", model="x").provider for _ in range(2)]
        assert told == ["v0", "v1"]
        plan = found.plan(InferRequest("x", SAID))
        assert [str(target) for target in plan.targets] == ["v1/m", "v0/m"] and not plan.dropped
        assert found.infer("hi", model="x").provider == "v0"  # the other one fails
        assert found.infer("hi", model="v0/m").provider == "v0"  # alone: the vendor decides
        from infermux.routing.explain import explain, question

        target = explain(found, question({"model": "x"})).to_dict()["targets"][1]
        assert 0 < target["rests"] <= 60


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (LIMIT, 60.0),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "17ms"},
            0.017,
        ),
        (
            {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2m59.56s"},
            179.56,
        ),
        (LIMIT | {"x-ratelimit-reset-requests": "43"}, 43.0),
        (LIMIT | {"x-ratelimit-reset-requests": "20h1s"}, 3600.0),
        (LIMIT | {"x-ratelimit-reset-requests": "soon"}, 1.0),
        (LIMIT | {"x-ratelimit-reset-requests": "1" * 5000}, 1.0),
        ({"x-ratelimit-remaining-requests": "0"}, 1.0),
        ({"x-ratelimit-remaining-requests": "1"}, 0.0),
        ({}, 0.0),
        (
            {
                "anthropic-ratelimit-input-tokens-remaining": "0",
                "anthropic-ratelimit-input-tokens-reset": "2000-01-01T00:00:00Z",
            },
            0.0,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2999-01-01T00:00:00Z",
            },
            3600.0,
        ),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "43"}, 43.0),
        ({"x-ratelimit-remaining-tokens-minute": "0", "x-ratelimit-reset-tokens-minute": "9"}, 9.0),
        ({"ratelimit-remaining": "0", "ratelimit-reset": "30", "ratelimit-limit": "5"}, 30.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-limit-tokens": "0"}, 0.0),  # no limit
        ({"x-ratelimit-remaining-tokens": "-1", "x-items-remaining": "0"}, 0.0),
    ],
)
def test_a_used_limit_is_read_in_each_spelling(headers, seconds):
    assert used_up(HTTPHeaderDict(headers)) == pytest.approx(
        seconds, abs=0.5 if seconds > 100 else 0.01
    )


def test_bad_rates_and_breakers_are_errors(tmp_path):
    told = problems(
        '[providers.v]\ntype = "echo"\nrpm = -1\ntpm = "x"\nwait = -1\n'
        "circuit_breaker = { failres = 1 }\n",
        tmp_path,
    )
    for word in ("[providers.v].rpm", ".tpm", ".wait", "'failures'"):
        assert word in told, told
