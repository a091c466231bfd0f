"""The vendors' web search: every client's form in every vendor's, or left out or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from infermux.dialects.anthropic import downstream as messages
from infermux.dialects.anthropic import upstream as anthropic
from infermux.dialects.gemini import downstream as google
from infermux.dialects.gemini import upstream as gemini
from infermux.dialects.openai import downstream as chat
from infermux.dialects.openai import upstream as openai
from infermux.dialects.responses import downstream as responses
from infermux.dialects.responses.choice import Choice
from infermux.errors import RequestError, UnsupportedParameter
from infermux.protocol import InferRequest, strict_json
from infermux.providers import PRESETS

JSON = dict[str, Any]
HELLO = [{"role": "user", "content": "Hi"}]
PLACE = {"city": "Köln", "country": "DE"}
NEAR = {"type": "approximate", **PLACE}
OWN = {"type": "web_search_20250305", "name": "web_search"}
MODELS = {"anthropic": "claude-sonnet-5-5", "gemini": "gemini-3.8-flash", "openai": "gpt-4.1"}
MODELS |= {"xai": "grok-4.7", "perplexity": "sonar", "ollama": "qwen3", "openrouter": "z/z"}


def asked(door: str, model: str, tool: JSON, *, beside: bool = False, choice: Any = None) -> Any:
    """Return a client's request for *tool*, with a function *beside* it."""
    more = {} if choice is None else {"tool_choice": choice}
    if door == "chat":
        function = {"type": "function", "function": {"name": "f", "parameters": {}}}
        body = {"messages": HELLO, "web_search_options": tool} | more
        body |= {"tools": [function]} if beside else {}
        return chat.decode_request(document(body | {"model": model}))[0]
    if door == "responses":
        function = {"type": "function", "name": "f", "parameters": {}}
        body = {"input": "Hi", "tools": [tool, function][: 1 + beside]} | more
        return responses.decode_request(document(body | {"model": model}))[0]
    if door == "anthropic":
        function = {"name": "f", "input_schema": {"type": "object"}}
        body = {"messages": HELLO, "max_tokens": 9, "tools": [tool, function][: 1 + beside]} | more
        return messages.decode_request(document(body | {"model": model}))[0]
    body = {"contents": [{"parts": [{"text": "Hi"}]}], "tools": [{"googleSearch": tool}]}
    return google.decode_request(document(body), google.Asked(model))


def document(body: JSON) -> strict_json.Document:
    return strict_json.document(json.dumps(body))


def sent(request: InferRequest, vendor: str) -> tuple[str, JSON]:
    """Return the path and body that a vendor of the presets gets."""
    request.dropped = []
    dialect: Any = {"anthropic": anthropic, "gemini": gemini}.get(vendor, openai)
    if (support := PRESETS[vendor].responses) is not None:
        dialect = Choice(openai, support).choose(request)  # type: ignore[arg-type]
    path = dialect.path(request, stream=False)
    return path, json.loads(dialect.encode_request(request, stream=False))


OPTIONS = {"search_context_size": "low", "user_location": {"type": "approximate"}}
OPTIONS["user_location"] |= {"approximate": PLACE}
WEB = {"type": "web_search", "user_location": NEAR, "search_context_size": "low"}
LIMITED = WEB | {"filters": {"allowed_domains": ["a.example"]}}
CLAUDES = OWN | {"max_uses": 3, "user_location": NEAR, "blocked_domains": ["b.example"]}
CASES = [
    ("chat", OPTIONS, "anthropic", OWN | {"user_location": NEAR}),
    ("chat", OPTIONS, "gemini", {"googleSearch": {}}),
    ("chat", OPTIONS, "openai", WEB),
    ("chat", OPTIONS, "xai", WEB),
    ("chat", OPTIONS, "openrouter", WEB),
    ("responses", LIMITED, "anthropic", OWN | {"user_location": NEAR}
     | LIMITED["filters"]),
    ("responses", WEB | {"type": "web_search_preview"}, "gemini", {"googleSearch": {}}),
    ("anthropic", OWN, "gemini", {"googleSearch": {}}),
    ("anthropic", CLAUDES, "openai", {"type": "web_search", "user_location": NEAR,
     "filters": {"blocked_domains": ["b.example"]}}),
    ("anthropic", CLAUDES, "xai", {"type": "web_search", "user_location": NEAR,
     "filters": {"excluded_domains": ["b.example"]}}),
    ("gemini", {}, "anthropic", OWN),
    ("gemini", {}, "openai", {"type": "web_search"}),
]  # fmt: skip


@pytest.mark.parametrize(("door", "tool", "vendor", "wanted"), CASES)
def test_a_search_is_the_vendors_own(door: str, tool: JSON, vendor: str, wanted: JSON) -> None:
    path, body = sent(asked(door, MODELS[vendor], tool), vendor)
    assert body["tools"] == [wanted] and "web_search_options" not in body
    assert "tool_choice" not in body and "parallel_tool_calls" not in body
    assert path.startswith("/responses") == (PRESETS[vendor].responses is not None)


@pytest.mark.parametrize(
    ("door", "vendor"),
    [("chat", "anthropic"), ("chat", "openai"), ("responses", "openai"), ("anthropic", "openai")],
)
def test_functions_stay_beside_it(door: str, vendor: str) -> None:
    tool = {"chat": {}, "responses": {"type": "web_search"}, "anthropic": OWN}[door]
    request = asked(door, MODELS[vendor], tool, beside=True)
    _, body = sent(request, vendor)
    names = {one.get("name") or one["type"] for one in body["tools"]}
    assert names == {"f", "web_search"}


@pytest.mark.parametrize(
    ("door", "tool", "choice"),
    [
        ("responses", {"type": "web_search"}, {"type": "web_search"}),
        ("responses", {"type": "web_search"}, "required"),
        ("anthropic", OWN, {"type": "tool", "name": "web_search"}),
        ("anthropic", OWN, {"type": "any"}),
    ],
)
def test_a_search_that_must_be_made_must_be_made(door: str, tool: JSON, choice: Any) -> None:
    _, body = sent(asked(door, "gpt-4.1", tool, choice=choice), "openai")
    own = {"responses": choice, "anthropic": {"type": "web_search"}}[door]
    assert body["tool_choice"] == own
    _, body = sent(asked(door, "claude-sonnet-5", tool, choice=choice), "anthropic")
    own = {"type": "tool", "name": "web_search"}
    assert body["tool_choice"] == (choice if door == "anthropic" else own)
    request = asked(door, MODELS["gemini"], tool, choice=choice)
    assert sent(request, "gemini")[1]["tools"] == [{"googleSearch": {}}]
    assert request.dropped == ["tool_choice"]


@pytest.mark.parametrize("door", ["responses", "anthropic"])
def test_no_search_is_made_where_no_tool_may_be_called(door: str) -> None:
    choice = "none" if door == "responses" else {"type": "none"}
    tool = OWN if door == "anthropic" else {"type": "web_search"}
    _, body = sent(asked(door, MODELS["gemini"], tool, choice=choice), "gemini")
    assert "tools" not in body


def test_models_that_search_at_chat_completions_do_it_there() -> None:
    path, body = sent(asked("chat", "gpt-5-search-api", OPTIONS), "openai")
    assert path == "/chat/completions" and body["web_search_options"] == OPTIONS
    path, body = sent(asked("anthropic", "sonar", OWN | {"user_location": NEAR}), "perplexity")
    location = {"type": "approximate", "approximate": PLACE}
    assert body["web_search_options"] == {"user_location": location} and "tools" not in body


LOST = [
    ("responses", {"type": "web_search"}, "ollama", False),
    ("responses", LIMITED, "gemini", False),  # Google chooses no domains
    ("responses", {"type": "web_search", "external_web_access": False}, "anthropic", False),
    ("responses", {"type": "web_search"}, "anthropic", True),  # as agents send it
    ("responses", {"type": "web_search"}, "gemini", True),  # Google takes no functions beside it
    ("anthropic", CLAUDES, "ollama", True),
]


@pytest.mark.parametrize(("door", "tool", "vendor", "beside"), LOST)
def test_a_hint_is_left_out_and_told(door: str, tool: JSON, vendor: str, beside: bool) -> None:
    request = asked(door, MODELS[vendor], tool, beside=beside)
    if (door, vendor) == ("responses", "ollama"):
        request.native = request.native._replace(dialect="elsewhere")
    _, body = sent(request, vendor)
    assert "search" not in json.dumps(body).lower()
    assert request.dropped == ["tools.web_search"]


@pytest.mark.parametrize(
    ("door", "tool", "vendor", "beside", "name"),
    [
        ("chat", {}, "gemini", True, "web_search_options"),
        ("gemini", {}, "ollama", False, "tools.googleSearch"),
        ("gemini", {"timeRangeFilter": {}}, "anthropic", False, "tools.googleSearch"),
    ],
)
def test_a_meaning_is_refused_by_name(
    door: str, tool: JSON, vendor: str, beside: bool, name: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        sent(asked(door, MODELS[vendor], tool, beside=beside), vendor)
    assert caught.value.param == name


def test_options_that_are_no_object_are_the_callers_to_mend() -> None:
    with pytest.raises(RequestError, match="web_search_options must be an object"):
        sent(asked("chat", MODELS["anthropic"], 5), "anthropic")  # type: ignore[arg-type]


def test_the_number_of_searches_stays_limited() -> None:
    request = asked("anthropic", "gpt-4.1", CLAUDES)
    assert sent(request, "openai")[1]["max_tool_calls"] == 3 and request.dropped == []
    request = asked("anthropic", MODELS["xai"], CLAUDES)
    assert "max_tool_calls" not in sent(request, "xai")[1]
    assert request.dropped == ["max_tool_calls"]
    request = asked("responses", MODELS["anthropic"], WEB | {"search_context_size": "medium"})
    request.params["max_tool_calls"] = 2  # type: ignore[index]
    assert sent(request, "anthropic")[1]["tools"][0]["max_uses"] == 2 and request.dropped == []


def test_what_cannot_be_said_beside_the_search_is_told() -> None:
    request = asked("chat", MODELS["anthropic"], OPTIONS)
    sent(request, "anthropic")
    assert request.dropped == ["search_context_size"]
    request = asked("responses", MODELS["gemini"], WEB)
    sent(request, "gemini")
    assert request.dropped == ["user_location", "search_context_size"]
