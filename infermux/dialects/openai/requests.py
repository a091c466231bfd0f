"""Requests of other dialects as OpenAI's chat completions; InferMux's own form is nearly that.

A parameter is passed on, or only a hint (left out and reported), or cannot be expressed.
"""

from __future__ import annotations

import re

from ...protocol import InferRequest
from ...types import JSON
from .. import Drop, hint, obj, objects, text, unsupported, without
from . import NAME

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
_TOOL = ("type", "function", "custom")
_COMPLETION_TOKENS = re.compile(r"(ft:)?(gpt-([5-9]|\d\d)|o\d)")  # these models refuse max_tokens
# These refuse a tool turn without its reasoning.
_KEEPS_REASONING = re.compile(r"deepseek|kimi|glm|minimax|qwen", re.I)


def translated(request: InferRequest, drop: Drop) -> JSON:
    """Return the body; add to *drop* what cannot be expressed, or raise UnsupportedParameter."""
    body: JSON = {"model": request.model, "messages": _messages(request, drop)}
    for name, value in request.params.items():
        if name == "tools":
            tools = [] if value is None else objects(value, "tools")
            body["tools"] = [_tool(tool, drop) for tool in tools if _is_function(tool, drop)]
        elif name == "max_tokens" and _COMPLETION_TOKENS.match(request.model):
            body.setdefault("max_completion_tokens", value)
        elif name in PARAMS:
            body[name] = value
        elif name in HINTS:
            hint(name, drop)
        else:
            unsupported(name, NAME, drop)
    return body


def _messages(request: InferRequest, drop: Drop) -> list[JSON]:
    """Return the messages; images in a tool's result go into a user message after it."""
    keep = (*_MESSAGE, "reasoning_content") if _KEEPS_REASONING.search(request.model) else _MESSAGE
    messages: list[JSON] = []
    images: list[JSON] = []
    for number, message in enumerate(request.messages):
        if images and message.get("role") != "tool":
            messages.append({"role": "user", "content": images})
            images = []
        new = _only(message, keep)
        _hints(message, drop)
        if isinstance(new.get("content"), list):
            place = f"messages[{number}]"
            parts = [part for each in new["content"] if (part := _part(each, place, drop))]
            if new["role"] == "tool":
                images += [part for part in parts if part["type"] != "text"]
                parts = [part for part in parts if part["type"] == "text"]
                parts = parts or [{"type": "text", "text": "The result follows."}]
            new["content"] = parts
        if new.get("tool_calls"):
            new["tool_calls"] = [_only(call, ("id", *_TOOL)) for call in new["tool_calls"]]
        messages.append(new)
    return messages + ([{"role": "user", "content": images}] if images else [])


def _only(members: JSON, names: tuple[str, ...]) -> JSON:
    return {name: value for name, value in members.items() if name in names}


def _part(part: JSON, place: str, drop: Drop) -> JSON | None:
    kind = text(part.get("type"))
    _hints(part, drop)
    if kind not in _PARTS or (kind == "file" and "file_url" in obj(part.get("file"))):
        unsupported(f"{place}.content.{kind}", NAME, drop)
        return None
    return {"type": kind, kind: part.get(kind)}


def _is_function(tool: JSON, drop: Drop) -> bool:
    if tool.get("type") in ("function", "custom"):
        return True
    unsupported("tools", NAME, drop)  # another vendor's own tool
    return False


def _tool(tool: JSON, drop: Drop) -> JSON:
    for name in without(tool, *_TOOL):
        hint(f"tools.{name}", drop)
    return _only(tool, _TOOL)


def _hints(holder: JSON, drop: Drop) -> None:
    for name in HINTS.intersection(holder):
        if holder[name]:
            hint(name, drop)
