"""Parameters that a target does not support: hints, preferences and meanings, over real HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from doors import Front, Turn, Vendor, reply, says
from support import Answer, ask

from infermux import Registry
from infermux.routing.explain import explain, question

JSON = dict[str, Any]
OPENAI, ANTHROPIC = "/v1/chat/completions", "/v1/messages"
HELLO: JSON = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
TOOL: JSON = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
FUNCTION: JSON = {"name": "f", "input_schema": {"type": "object"}}
IMAGE: JSON = {"type": "image_url", "image_url": {"url": "https://h.example/a.png"}}
# Values that ask for something, at OpenAI's endpoint.
HINTS: JSON = {
    "metadata": {"team": "a"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "x"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"ttl": "1h"},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "beyond",
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "user": "u",
    "verbosity": "low",
    "client_metadata": {"a": "b"},
}
PREFERENCES: JSON = {
    "frequency_penalty": 0.5,
    "logit_bias": {"5": 1},
    "presence_penalty": 0.5,
    "seed": 7,
    "temperature": 1.7,
    "top_a": 0.1,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
}
MEANINGS: JSON = {
    "audio": {"voice": "x", "format": "wav"},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "logprobs": True,
    "modalities": ["text", "audio"],
    "n": 2,
    "never_heard_of": 1,
    "previous_response_id": "resp_1",
    "thread": {"create": {}},
    "response_format": {"type": "grammar"},
    "tool_choice": {"type": "allowed_tools"},
    "tools": [TOOL, {"type": "mystery", "mystery": {"name": "x"}}],
    "top_logprobs": 3,
}
MEANT: list[tuple[str, JSON]] = [
    *((name, {name: value}) for name, value in MEANINGS.items()),
    ("messages.content.input_audio", {"messages": [{"role": "user", "content": [
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}]}),
    ("messages.audio", {"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "audio": {"id": "audio_1"}},
        {"role": "user", "content": "c"}]}),
    ("messages.tool_calls", {"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "c", "type": "mystery", "mystery": {"name": "x", "input": "y"}}]},
        {"role": "tool", "tool_call_id": "c", "content": "z"}]}),
]  # fmt: skip


@pytest.fixture(scope="module")
def vendors() -> Iterator[dict[str, Any]]:
    with Vendor("openai") as openai, Vendor("anthropic") as anthropic, Vendor("gemini") as gemini:
        yield {"openai": openai, "anthropic": anthropic, "gemini": gemini}


def no_wait(seconds: float) -> None:
    """Retry at once."""


MODELS = {"openai": "gpt-asked", "anthropic": "claude-asked", "gemini": "gemini-asked"}


@pytest.fixture
def front(vendors: dict[str, Any]) -> Iterator[Callable[..., Any]]:
    """Return a function that starts the endpoints, with "x" for the targets at these vendors."""
    running: list[Any] = []

    def start(*order: str, on_unsupported: str = "error", models: JSON | None = None) -> Any:
        names = MODELS | (models or {})
        providers = [vendor.provider() for vendor in vendors.values()]
        found = Front(*providers, on_unsupported=on_unsupported, attempts=3, sleep=no_wait)
        registry: Registry = found.router.registry
        registry.define("x", [f"{each}/{names[each]}" for each in order])
        running.append(found)
        return found.__enter__()

    yield start
    for each in running:
        each.__exit__(None, None, None)


def told(answer: Answer) -> set[str]:
    """Return the names in X-Infermux-Dropped."""
    return set(filter(None, answer.headers.get("X-Infermux-Dropped", "").split(", ")))


def well(vendors: dict[str, Any], *names: str, streamed: bool = False) -> None:
    for name in names:
        vendors[name].script(says(name, Turn("well"), streamed=streamed))


def down(vendors: dict[str, Any], *names: str) -> None:
    for name in names:
        vendors[name].script(*[reply(b"{}", 503)] * 5)


# -- hints -----------------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("vendor", ["anthropic", "gemini"])
@pytest.mark.parametrize("outage", [False, True], ids=["alone", "second"])
def test_hints_never_stop_a_call(front, vendors, vendor, outage, streamed):
    well(vendors, vendor, streamed=streamed)
    down(vendors, "openai")
    order = ("openai", vendor) if outage else (vendor,)
    answer = front(*order).ask(OPENAI, HELLO | HINTS | {"model": "x", "stream": streamed})
    assert answer.status == 200, answer.data
    said = vendors[vendor].seen[-1].body.keys()
    assert {"prompt_cache_key", "store", "verbosity"} <= told(answer) <= HINTS.keys()
    assert not told(answer) & (said - {"metadata"})


def test_the_header_names_what_the_target_that_answered_was_not_told(front, vendors):
    """What a target that failed was not told either does not count."""
    down(vendors, "anthropic")
    well(vendors, "openai")
    answer = front("anthropic", "openai").ask(OPENAI, HELLO | HINTS | {"model": "x"})
    assert answer.status == 200 and not told(answer)
    assert vendors["openai"].seen[-1].body["prompt_cache_key"] == "k"


@pytest.mark.parametrize("vendor", ["openai", "gemini"])
def test_a_client_of_anthropic_goes_to_other_vendors(front, vendors, vendor):
    """What Claude Code and the SDK send: identity, caching, thinking, context management."""
    well(vendors, vendor)
    down(vendors, "anthropic")
    body = {
        "model": "x",
        "max_tokens": 50,
        "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
        "messages": HELLO["messages"],
        "metadata": {"user_id": "u" * 150},
        "thinking": {"type": "enabled", "budget_tokens": 9000},
        "context_management": {"edits": []},
        "diagnostics": {},
        "speed": "fast",
        "service_tier": "standard_only",
        "tools": [FUNCTION | {"cache_control": {"type": "ephemeral"}}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": True},
    }
    answer = front("anthropic", vendor, models={"openai": "gpt-4o"}).ask(ANTHROPIC, body)
    assert answer.status == 200, answer.data
    assert told(answer) >= {"cache_control", "context_management", "speed"}
    assert ("user" in told(answer)) == (vendor == "gemini")  # the others get its digest
    sent = vendors[vendor].seen[-1].data
    assert b"cache_control" not in sent and b"uuuu" not in sent and b"reasoning" not in sent
    assert ("reasoning_effort" in told(answer)) == (vendor == "openai")  # gpt-4o takes none


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("model", "effort"),
    [("gpt-4.1", None), ("o3", "medium"), ("gpt-5.5", None), ("gpt-5", "medium"), ("m", "medium")],
)
def test_an_effort_goes_where_the_model_takes_it(front, vendors, model, effort):
    """With tools, OpenAI's newer models refuse one in chat completions."""
    well(vendors, "openai")
    body = {
        "model": "x",
        "max_tokens": 50,
        "messages": HELLO["messages"],
        "thinking": {"type": "enabled", "budget_tokens": 9000},
        "tools": [FUNCTION],
    }
    answer = front("openai", models={"openai": model}).ask(ANTHROPIC, body)
    assert answer.status == 200
    assert vendors["openai"].seen[-1].body.get("reasoning_effort") == effort
    assert ("reasoning_effort" in told(answer)) == (effort is None)


@pytest.mark.parametrize(("model", "takes"), [("grok-3", True), ("grok-4.7", False)])
def test_xai_gets_penalties_only_for_models_that_take_them(front, vendors, model, takes):
    well(vendors, "openai")
    penalties = {"presence_penalty": 0, "frequency_penalty": 0.5}
    asked = HELLO | penalties | {"model": "x"}
    answer = front("openai", models={"openai": model}).ask("/v1/chat/completions", asked)
    assert answer.status == 200, answer.data
    sent = vendors["openai"].seen[-1].body
    assert (sent.keys() & penalties, told(answer)) == (
        (penalties.keys(), set()) if takes else (set(), {*penalties})
    )


SAMPLED = {"temperature": 0.5, "top_p": 0.9}


@pytest.mark.parametrize(
    ("model", "effort", "sent"),
    [
        ("gpt-4.1", None, SAMPLED),
        ("gpt-5.2", None, SAMPLED),  # which does not reason unasked
        ("gpt-5.2", "none", SAMPLED | {"reasoning_effort": "none"}),
        ("gpt-5.2", "low", {"reasoning_effort": "low"}),
        ("gpt-5.5", None, {}),
        ("gpt-5.5", "none", SAMPLED | {"reasoning_effort": "none"}),
        ("gpt-6-luna", None, {}),
        ("gpt-6.1-sol", "none", {"reasoning_effort": "low"}),  # it cannot but reason
        ("gpt-6-astra", "minimal", {"reasoning_effort": "low"}),
        ("gpt-5.3-chat-latest", None, SAMPLED),
    ],
)
@pytest.mark.parametrize("door", ["openai", "anthropic"])
def test_a_model_samples_as_it_is_told_only_while_it_does_not_reason(
    front, vendors, door, model, effort, sent
):
    well(vendors, "openai")
    body = HELLO | SAMPLED | {"model": "x", "max_tokens": 50}
    if effort and door == "anthropic":
        think = {"type": "adaptive"} if effort == "low" else {"type": "between_tools"}
        think = {"type": "disabled"} if effort == "none" else think
        body |= {"thinking": think, "output_config": {"effort": "low"}}
    elif effort:
        body |= {"reasoning_effort": effort}
    path = ANTHROPIC if door == "anthropic" else "/v1/chat/completions"
    answer = front("openai", models={"openai": model}).ask(path, body)
    assert answer.status == 200, answer.data
    found = vendors["openai"].seen[-1].body
    names = SAMPLED.keys() | {"reasoning_effort"}
    own = {"reasoning_effort": effort} if door == "openai" and effort else {}  # as it came
    assert {name: found[name] for name in found.keys() & names} == sent | own
    assert told(answer) >= SAMPLED.keys() - sent.keys()


def test_what_openais_models_know_is_theirs_in_every_format_of_openai(front, vendors):
    well(vendors, "openai")
    options = {"prompt_cache_options": {"ttl": "30m"}}
    running = front("openai", models={"openai": "gpt-6-luna"})
    answer = running.ask(OPENAI, HELLO | options | {"model": "x"})
    assert vendors["openai"].seen[-1].body.items() >= options.items() and not told(answer)


def test_what_googles_command_line_sends_with_every_request_excludes_no_vendor(front, vendors):
    config = {
        "temperature": 1,
        "topP": 0.95,
        "topK": 64,
        "thinkingConfig": {"includeThoughts": True},
    }
    body = {"contents": [{"parts": [{"text": "Hi"}]}], "generationConfig": config}
    for vendor in ("openai", "anthropic"):
        well(vendors, vendor)
        running = front(vendor)
        answer = running.ask("/v1beta/models/x:generateContent", body)
        assert answer.status == 200 and "top_k" not in vendors[vendor].seen[-1].body


# -- preferences -----------------------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", PREFERENCES)
def test_a_preference_does_not_stop_a_fallback(front, vendors, name):
    well(vendors, "anthropic")
    down(vendors, "openai")
    answer = front("openai", "anthropic").ask(
        OPENAI, HELLO | {"model": "x", name: PREFERENCES[name]}
    )
    assert (answer.status, told(answer)) == (200, {name}), answer.data


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", PREFERENCES)
@pytest.mark.parametrize("rule", ["error", "drop"])
def test_with_a_single_target_the_configuration_decides(front, vendors, name, rule):
    well(vendors, "anthropic")
    answer = front("anthropic", on_unsupported=rule).ask(
        OPENAI, HELLO | {"model": "x", name: PREFERENCES[name]}
    )
    if rule == "drop":
        assert (answer.status, told(answer)) == (200, {name})
    else:
        assert answer.status == 400 and answer.json["error"]["param"] == name
        assert not vendors["anthropic"].seen


def test_a_target_that_takes_a_preference_is_asked_first(front, vendors):
    well(vendors, "openai", "anthropic")
    running = front("anthropic", "openai")
    answer = running.ask(OPENAI, HELLO | {"model": "x", "seed": 7})
    assert answer.headers["X-Infermux-Provider"] == "openai" and not told(answer)
    down(vendors, "openai")
    well(vendors, "anthropic")
    answer = running.ask(OPENAI, HELLO | {"model": "x", "seed": 7})
    assert answer.headers["X-Infermux-Provider"] == "anthropic" and told(answer) == {"seed"}
    well(vendors, "anthropic")
    running = front("anthropic", "openai", on_unsupported="drop")
    answer = running.ask(OPENAI, HELLO | {"model": "x", "seed": 7})
    assert answer.headers["X-Infermux-Provider"] == "anthropic" and told(answer) == {"seed"}


def test_with_the_circuit_of_the_other_open_it_is_left_out(front, vendors):
    """An outage must not turn into 400 once its circuit is open."""
    running = front("openai", "anthropic")
    for _ in range(12):
        down(vendors, "openai")
        well(vendors, "anthropic")
        body = HELLO | HINTS | PREFERENCES | {"model": "x", "temperature": 0.3}
        answer = ask(running.port, OPENAI, body)
        assert answer.status == 200, answer.data
    assert answer.headers["X-Infermux-Attempts"] == "1"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("path", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize("model", ["claude-opus-4-7", "claude-sonnet-5-5"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
def test_a_model_without_sampling_gets_none_whoever_asks(front, vendors, path, model, streamed):
    well(vendors, "anthropic", streamed=streamed)
    given = {"temperature": 0.1, "top_p": 0.5, "top_k": 5}
    running = front("anthropic", models={"anthropic": model})
    answer = running.ask(path, HELLO | given | {"model": "x", "stream": streamed})
    assert (answer.status, told(answer)) == (200, set(given)), answer.data
    sent = vendors["anthropic"].seen[-1].body
    assert not given.keys() & sent.keys()
    assert (sent["model"], bool(sent.get("stream"))) == (model, streamed)


def test_an_older_model_gets_its_sampling(front, vendors):
    well(vendors, "anthropic")
    running = front("anthropic", models={"anthropic": "claude-sonnet-4-5"})
    answer = running.ask(ANTHROPIC, HELLO | {"model": "x", "temperature": 0.1})
    assert vendors["anthropic"].seen[-1].body["temperature"] == 0.1 and not told(answer)


FOREIGN: JSON = {  # what OpenAI's own models refuse, and others of its format take
    "messages": [{"role": "user", "content": [
        {"type": "text", "text": "hello", "cache_control": {"type": "ephemeral"}}]}],
    "tools": [TOOL | {"cache_control": {"type": "ephemeral"}}],
    "thinking": {"type": "disabled"},
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
}  # fmt: skip
REFUSED = {"cache_control", "thinking", "top_k", "min_p", "repetition_penalty"}


def test_what_others_know_does_not_stop_a_fallback_to_openai(front, vendors):
    down(vendors, "anthropic")
    well(vendors, "openai")
    running = front("anthropic", "openai", models={"openai": "gpt-5.2"})
    answer = running.ask(OPENAI, FOREIGN | {"model": "x", "max_tokens": 50})
    assert (answer.status, told(answer)) == (200, REFUSED), answer.data
    sent = vendors["openai"].seen[-1].body
    messages, tools = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}], [TOOL]
    wanted = {"messages": messages, "tools": tools, "max_completion_tokens": 50}
    assert sent == wanted | {"model": "gpt-5.2"}


@pytest.mark.parametrize("rule", ["error", "drop"])
def test_alone_openai_refuses_a_preference_of_others_itself(front, vendors, rule):
    well(vendors, "openai")
    running = front("openai", on_unsupported=rule, models={"openai": "gpt-4.1"})
    answer = running.ask(OPENAI, HELLO | {"model": "x", "top_k": 5, "thinking": {}})
    assert told(answer) == {"thinking"} | ({"top_k"} if rule == "drop" else set())
    assert ("top_k" in vendors["openai"].seen[-1].body) == (rule == "error")


def test_a_model_of_another_vendor_gets_what_it_may_know(front, vendors):
    well(vendors, "openai")
    body = FOREIGN | {"model": "x", "max_tokens": 50}
    answer = front("openai", models={"openai": "qwen3-32b"}).ask(OPENAI, body)
    assert (answer.status, told(answer)) == (200, set())
    assert vendors["openai"].seen[-1].body == body | {"model": "qwen3-32b"}


# -- meanings --------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.sampled(4)
@pytest.mark.parametrize(("name", "body"), MEANT, ids=[name for name, _ in MEANT])
@pytest.mark.parametrize("rule", ["error", "drop"])
def test_a_meaning_is_never_dropped(front, vendors, name, body, rule):
    """Where no target can say it, the answer is 400 and names it; nothing is sent."""
    well(vendors, "anthropic")
    for order in (("anthropic",), ("anthropic", "anthropic")):
        answer = front(*order, on_unsupported=rule).ask(OPENAI, HELLO | body | {"model": "x"})
        assert answer.status == 400, answer.data
        assert answer.json["error"]["param"] == name and name in answer.json["error"]["message"]
    assert not vendors["anthropic"].seen


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "body"), MEANT, ids=[name for name, _ in MEANT])
@pytest.mark.parametrize("order", [("openai", "anthropic"), ("anthropic", "openai")], ids=str)
def test_a_target_that_cannot_say_it_is_not_in_the_plan(front, vendors, name, body, order):
    running, request = front(*order), HELLO | body | {"model": "x"}
    explained = explain(running.router, question(request))
    assert [each["provider"] for each in explained.targets] == ["openai"]
    [dropped] = explained.dropped
    assert (dropped["provider"], dropped["dropped"]) == ("anthropic", f"cannot express {name!r}")
    well(vendors, "openai", "anthropic")
    assert running.ask(OPENAI, request).headers["X-Infermux-Provider"] == "openai"
    for _ in range(10):  # until its circuit is open, and then
        down(vendors, "openai")
        answer = ask(running.port, OPENAI, request)
        assert answer.status in (502, 503, 504), answer.data
    assert not vendors["anthropic"].seen


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "logprobs": False, "top_logprobs": 0, "logit_bias": {}, "store": False},
        {"presence_penalty": 0, "frequency_penalty": 0, "modalities": ["text"], "metadata": {}},
        {"parallel_tool_calls": True, "tools": [TOOL], "tool_choice": "auto"},
        {"response_format": {"type": "text"}, "service_tier": "auto", "functions": []},
        {"n": None, "logprobs": None, "audio": None, "seed": None, "never_heard_of": None},
        {"stop": ["a"], "temperature": 0.5, "top_p": 0.9, "stream_options": None},
    ],
)
@pytest.mark.parametrize("vendor", ["anthropic", "gemini"])
def test_values_that_ask_for_nothing_stop_nothing(front, vendors, more, vendor):
    well(vendors, vendor)
    answer = front(vendor).ask(OPENAI, HELLO | more | {"model": "x"})
    assert (answer.status, told(answer)) == (200, set()), answer.data


def test_an_invalid_value_ends_no_fallback_in_400(front, vendors):
    """What the second target's format cannot take may be fine at the first, whose failure counts."""
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": 5}}]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c", "content": "z"},
    ]
    down(vendors, "openai")
    answer = front("openai", "anthropic").ask(OPENAI, {"model": "x", "messages": messages})
    assert answer.status in (502, 503), answer.data
