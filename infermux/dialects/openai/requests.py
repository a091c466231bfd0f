"""OpenAI's chat format, the vendor's side: requests that came in another dialect. Those of its own
go out as they came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import RequestError
from ...protocol import InferRequest
from ...types import JSON
from .. import items, obj, text, unsupported

NAME = "openai"
# What changes no answer, only its price or its housekeeping: left out, and told of, but never
# refused.
HINTS = frozenset({"cache_control", "context_management", "diagnostics", "is_error", "citations"})
PARAMS = frozenset(
    {
        "audio",
        "frequency_penalty",
        "function_call",
        "functions",
        "logit_bias",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "metadata",
        "modalities",
        "moderation",
        "n",
        "parallel_tool_calls",
        "prediction",
        "presence_penalty",
        "prompt_cache_key",
        "prompt_cache_retention",
        "reasoning_effort",
        "response_format",
        "safety_identifier",
        "seed",
        "service_tier",
        "stop",
        "store",
        "temperature",
        "tool_choice",
        "tools",
        "top_logprobs",
        "top_p",
        "user",
        "verbosity",
        "web_search_options",
    }
)
_MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "refusal")
_PARTS = ("text", "image_url", "input_audio", "file", "refusal")
_COMPLETION_TOKENS = re.compile(r"(ft:)?(gpt-([5-9]|\d\d)|o\d)")  # these models refuse max_tokens
_KEEPS_REASONING = re.compile(
    r"deepseek|kimi|glm|minimax|qwen", re.I
)  # these refuse a tool turn whose reasoning is missing


def translated(request: InferRequest, drop: list[str] | None) -> JSON:
    """Return the body for a request in the canonical form; raise UnsupportedParameter for what
    cannot be said.
    """
    body: JSON = {"model": request.model, "messages": _messages(request, drop)}
    for name, value in request.params.items():
        if name == "tools":
            body["tools"] = [
                _tool(tool, drop) for tool in _listed(value, "tools") if _is_function(tool, drop)
            ]
        elif name == "max_tokens" and _COMPLETION_TOKENS.match(request.model):
            body.setdefault("max_completion_tokens", value)
        elif name in PARAMS:
            body[name] = value
        elif name in HINTS:
            _hint(name, drop)
        else:
            unsupported(name, NAME, drop)
    return body


def _messages(request: InferRequest, drop: list[str] | None) -> list[JSON]:
    """Return the messages; pictures in the result of a tool follow it in a user's message, where
    this format takes them.
    """
    keep = (*_MESSAGE, "reasoning_content") if _KEEPS_REASONING.search(request.model) else _MESSAGE
    messages: list[JSON] = []
    pictures: list[JSON] = []
    for number, message in enumerate(request.messages):
        if pictures and message.get("role") != "tool":
            messages.append({"role": "user", "content": pictures})
            pictures = []
        new = {name: value for name, value in message.items() if name in keep}
        _hints(message, drop)
        if isinstance(new.get("content"), list):
            parts = [
                part
                for each in new["content"]
                if (part := _part(each, f"messages[{number}]", drop))
            ]
            if new["role"] == "tool":
                pictures += [part for part in parts if part["type"] != "text"]
                parts = [part for part in parts if part["type"] == "text"] or [
                    {"type": "text", "text": "The result follows."}
                ]
            new["content"] = parts
        if new.get("tool_calls"):
            new["tool_calls"] = [
                {name: call[name] for name in ("id", "type", "function", "custom") if name in call}
                for call in new["tool_calls"]
            ]
        messages.append(new)
    return messages + ([{"role": "user", "content": pictures}] if pictures else [])


def _part(part: JSON, place: str, drop: list[str] | None) -> JSON | None:
    kind = text(part.get("type"))
    _hints(part, drop)
    if kind not in _PARTS or (kind == "file" and "file_url" in obj(part.get("file"))):
        unsupported(f"{place}.content.{kind}", NAME, drop)
        return None
    return {"type": kind, kind: part.get(kind)}


def _is_function(tool: JSON, drop: list[str] | None) -> bool:
    if tool.get("type") in ("function", "custom"):
        return True
    unsupported("tools", NAME, drop)  # one that another vendor runs itself
    return False


def _tool(tool: JSON, drop: list[str] | None) -> JSON:
    for name in tool.keys() - {"type", "function", "custom"}:
        _hint(f"tools.{name}", drop)
    return {name: tool[name] for name in ("type", "function", "custom") if name in tool}


def _listed(value: object, name: str) -> Sequence[JSON]:
    try:
        return items(value)
    except ValueError:
        raise RequestError(f"{name} must be a list of objects", param=name) from None


def _hints(holder: Mapping[str, Any], drop: list[str] | None) -> None:
    for name in HINTS.intersection(holder):
        if holder[name]:
            _hint(name, drop)


def _hint(name: str, drop: list[str] | None) -> None:
    if drop is not None and name not in drop:
        drop.append(name)
