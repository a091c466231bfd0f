"""Tests that the tables of parameters agree with the translations."""

from __future__ import annotations

from typing import Any

import pytest

from infermux.dialects import parameters
from infermux.dialects.parameters import DIALECTS, Kind
from infermux.errors import RequestError
from infermux.protocol import InferRequest, Native, strict_json
from infermux.providers.base import load_dialect

HELLO: dict[str, Any] = {"role": "user", "content": "hello"}
MODEL = {
    "openai": "gpt-asked",
    "responses": "gpt-asked",
    "anthropic": "claude-3-5-sonnet",
    "gemini": "gemini-asked",
}
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}
IMAGE = {"type": "image_url", "image_url": {"url": "https://h.example/a.png", "detail": "high"}}
FILE = {
    "type": "file",
    "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,QUJD"},
}
# A value of each parameter that asks for something; other names take a number.
VALUES: dict[str, Any] = {
    "web_search_options": {},
    "audio": {"voice": "x", "format": "wav"},
    "cachedContent": "c",
    "container": "c",
    "client_metadata": {"a": "b"},
    "context_management": {"edits": []},
    "diagnostics": {"a": 1},
    "function_call": {"name": "f"},
    "functions": [{"name": "f"}],
    "generationConfig": {"topK": 1},
    "inference_geo": "eu",
    "labels": {"a": "b"},
    "logit_bias": {"5": 1},
    "logprobs": True,
    "max_completion_tokens": 50,
    "max_tokens": 50,
    "mcp_servers": [{"name": "m"}],
    "mediaResolution": "low",
    "metadata": {"user_id": "u"},
    "modalities": ["text", "audio"],
    "n": 2,
    "output_config": {"effort": "low"},
    "parallel_tool_calls": False,
    "prompt_cache_key": "k",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}},
    "responseModalities": ["AUDIO"],
    "safety_identifier": "s",
    "safetySettings": [{"category": "c"}],
    "seed": 7,
    "serviceTier": "flex",
    "service_tier": "standard_only",
    "speechConfig": {"a": 1},
    "speed": "fast",
    "stop": ["a"],
    "store": True,
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "thinkingConfig": {"thinkingBudget": 1},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "toolConfig": {"a": 1},
    "tools": [TOOL],
    "top_k": 5,
    "user": "u",
    "verbosity": "low",
}
NOT_BARE = {"tools.strict", "is_error", "citations", "file.filename", "image_url.detail"}
# What a format has, but a model of it may refuse.
REFUSED = {("anthropic", "reasoning_effort"), ("openai", "web_search_options")}
LISTED = [(kind, name) for kind, name, _ in parameters.rows()]
PARTS = ("messages.", "input.", "tools.", "reasoning.", "item_reference")
BARE = [name for _, name in LISTED if not name.startswith(PARTS) and name not in NOT_BARE]


def left_out(dialect: str, params: dict[str, Any], messages: Any = (HELLO,)) -> set[str]:
    """Return what a request from another format loses on its way to *dialect*."""
    elsewhere = Native("elsewhere", strict_json.document("{}"))
    request = InferRequest(
        MODEL[dialect], list(messages), "p", params, native=elsewhere, dropped=[], lenient=True
    )
    try:
        load_dialect(dialect).encode_request(request, stream=False)
    except RequestError as error:
        return {str(error.param)}
    return set(request.dropped or ())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", BARE)
def test_the_formats_of_a_parameter_are_those_that_take_it(dialect: str, name: str) -> None:
    params = {name: VALUES.get(name, 0.5)}
    if name == "tool_choice":
        params["tools"] = VALUES["tools"]
    if name == "tools":
        params["tools"] = [{"type": "function", "function": {"name": "f"}}]
    if (dialect, name) not in REFUSED:
        taken = name not in left_out(dialect, params)
        assert taken == (dialect in parameters.formats(name))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("tools.strict", {"tools": [TOOL]}, HELLO),
        ("image_url.detail", {}, HELLO | {"content": [IMAGE]}),
        ("file.filename", {}, HELLO | {"content": [FILE]}),
        ("messages.name", {}, HELLO | {"name": "bob"}),
        ("cache_control", {}, HELLO | {"content": [{"type": "text", "text": "a",
         "cache_control": {"type": "ephemeral"}}]}),
    ],
)  # fmt: skip
def test_members_of_messages_too(
    dialect: str, name: str, params: dict[str, Any], message: dict[str, Any]
) -> None:
    assert (name not in left_out(dialect, params, [message])) == (
        dialect in parameters.formats(name)
    )


def test_each_name_has_one_kind_and_each_kind_its_rule() -> None:
    names = [name for _, name in LISTED]
    assert len(names) == len(set(names)) and set(parameters.EFFECTS) == set(Kind)
    for dialect in DIALECTS:
        for name in names:
            assert name not in left_out(dialect, {name: None}), "null asks for nothing"


def test_a_name_in_no_table_is_a_meaning() -> None:
    for dialect in DIALECTS:
        assert left_out(dialect, {"never_heard_of": 1}) == {"never_heard_of"}
