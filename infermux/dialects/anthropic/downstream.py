"""Anthropic's Messages format, our own door's side: what the official SDK and Claude Code send, and
what they expect back.
"""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

from ...errors import InferMuxError, RequestError
from ...protocol import CHAT, InferRequest, InferResponse, Native, new_id, strict_json
from ...protocol.strict_json import Document
from ...types import JSON, Usage
from .. import items, obj, text
from .requests import (
    BUDGETS,
    CHOICES,
    NAME,
    THINKING_FORMAT,
    TIERS,
    reading,
    string,
    texts,
    thinking_block,
    typed,
)
from .upstream import FINISH, STATUS

_CHOICES = {theirs: ours for ours, theirs in CHOICES.items()}
_TIERS = {"auto": "auto", TIERS["default"]: "default"}
_STOP = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
}
_ERRORS = {status: kind for kind, status in STATUS.items()} | {
    502: "api_error",
    503: "overloaded_error",
}


# -- requests --------------------------------------------------------------------------------------


def decode_request(document: Document, *, op: str = CHAT) -> tuple[InferRequest, bool]:
    """Return the request that a client's body holds, and whether it wants a stream; raise
    RequestError naming what is odd.
    """
    body = dict(document.value)
    model = _take(body, "model", str, needed=True)
    stream = _take(body, "stream", bool)
    messages = _system(body.pop("system", None))
    for number, turn in enumerate(_take(body, "messages", list, needed=True)):
        with reading(f"messages.{number}"):
            messages += _messages(turn)
    params = _params(body, op)
    return InferRequest(
        model=model, messages=messages, params=params | body, op=op, native=Native(NAME, document)
    ), bool(stream)


def _take(body: JSON, name: str, *kinds: type, needed: bool = False) -> Any:
    """Take a member out of *body*, so that what is left at the end is what nothing here knows."""
    value = texts(body, name, *kinds) if name == "stop_sequences" else typed(body, name, *kinds)
    if value is None and needed:
        raise RequestError(f"{name}: Field required", param=name)
    body.pop(name, None)
    return value


def _params(body: JSON, op: str) -> JSON:
    """Take out of *body* what has another name in the canonical form; the rest is this vendor's own
    and keeps its name.
    """
    most = _take(body, "max_tokens", int, needed=op == CHAT)
    if most is not None and most < 0:
        raise RequestError("max_tokens must not be negative", param="max_tokens")
    params = {
        "max_tokens": most,
        "stop": _take(body, "stop_sequences", list),
        "tools": _tools(body),
    }
    params |= {name: _take(body, name, int, float) for name in ("temperature", "top_p", "top_k")}
    metadata = dict(_take(body, "metadata", dict) or {})
    params |= {"user": _take(metadata, "user_id", str), "metadata": metadata or None}
    tier = _take(body, "service_tier", str)
    params |= {"service_tier": _TIERS.get(tier, tier)} | _choice(body) | _thinking(body)
    return {name: value for name, value in params.items() if value is not None}


def _tools(body: JSON) -> list[JSON] | None:
    tools = _take(body, "tools", list)
    with reading("tools"):
        return None if tools is None else [_tool(tool) for tool in items(tools)]


def _tool(tool: JSON) -> JSON:
    if tool.get("type") not in (None, "custom"):
        string(tool, "type")
        return tool  # run by the vendor itself: another dialect must see what it is, and refuse
    function = {
        "name": string(tool, "name"),
        "description": tool.get("description"),
        "parameters": tool["input_schema"],
        "strict": tool.get("strict"),
    }
    if not isinstance(tool["input_schema"], dict) or not isinstance(
        tool.get("description"), str | None
    ):
        raise ValueError("the schema must be an object, the description a string")
    extra = {
        name: value
        for name, value in tool.items()
        if name not in (*function, "type", "input_schema") and value is not None
    }
    return {
        "type": "function",
        "function": {name: value for name, value in function.items() if value is not None},
        **extra,
    }


def _choice(body: JSON) -> JSON:
    choice = _take(body, "tool_choice", dict)
    if choice is None:
        return {}
    with reading("tool_choice"):
        kind = string(choice, "type")
        wanted = (
            {"type": "function", "function": {"name": string(choice, "name")}}
            if kind == "tool"
            else _CHOICES[kind]
        )
        params: JSON = {"tool_choice": wanted}
        if (alone := _take(dict(choice), "disable_parallel_tool_use", bool)) is not None:
            params["parallel_tool_calls"] = not alone
        return params


def _thinking(body: JSON) -> JSON:
    """A budget becomes the highest effort that it pays for; adaptive thinking has its effort named,
    or it is high.
    """
    thinking, config = (
        _take(body, "thinking", dict) or {},
        dict(_take(body, "output_config", dict) or {}),
    )
    shape = _take(config, "format", dict) or _take(body, "output_format", dict)
    effort = _take(config, "effort", str)
    with reading("thinking"):
        kind = string(thinking, "type") if thinking else None
        if kind == "enabled":
            budget = _take(dict(thinking), "budget_tokens", int, needed=True)
            paid = [level for level in BUDGETS if level != "max" and BUDGETS[level] <= budget]
            effort = paid[-1] if paid else "minimal"
        elif kind is not None:
            effort = {
                "adaptive": effort or "high",
                "between_tools": effort or "minimal",
                "disabled": "none",
            }[kind]
    return {
        "output_config": config or None,
        "reasoning_effort": "xhigh" if effort == "max" else effort,
        "response_format": None if shape is None else _format(shape),
    }


def _format(shape: JSON) -> JSON:
    with reading("output_config.format"):
        if string(shape, "type") != "json_schema":
            raise ValueError("only json_schema is known")
        return {
            "type": "json_schema",
            "json_schema": {"name": "output", "schema": dict(shape["schema"]), "strict": True},
        }


def _system(system: object) -> list[JSON]:
    if system is None:
        return []
    with reading("system"):
        return [
            {
                "role": "system",
                "content": system
                if isinstance(system, str)
                else [_part(block) for block in _list(system)],
            }
        ]


def _list(value: object) -> list[JSON]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return items(value)


def _messages(turn: JSON) -> list[JSON]:
    """Return a turn as messages: each result of a tool is one, and they come first, as OpenAI's
    form wants it.
    """
    role, content = string(turn, "role"), turn["content"]
    if role not in ("user", "assistant", "system"):
        raise ValueError("no such role")
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _list(content)
    if role == "assistant":
        return [_assistant(blocks)]
    results = [_result(block) for block in blocks if string(block, "type") == "tool_result"]
    parts = [_part(block) for block in blocks if block["type"] != "tool_result"]
    return results + ([{"role": role, "content": parts}] if parts or not results else [])


def _result(block: JSON) -> JSON:
    content = block.get("content")
    said = (
        text(content) if not isinstance(content, list) else [_part(part) for part in _list(content)]
    )
    message = {"role": "tool", "tool_call_id": string(block, "tool_use_id"), "content": said}
    return message | {
        name: block[name] for name in ("is_error", "cache_control") if block.get(name)
    }


def _assistant(blocks: list[JSON]) -> JSON:
    parts, calls = [], []
    details: list[JSON] = []
    for block in blocks:
        kind = string(block, "type")
        if kind == "thinking":
            signed = {"signature": block["signature"]} if text(block.get("signature")) else {}
            details.append(
                {
                    "type": "reasoning.text",
                    "text": string(block, "thinking"),
                    **signed,
                    "format": THINKING_FORMAT,
                    "index": len(details),
                }
            )
        elif kind == "redacted_thinking":
            details.append(
                {
                    "type": "reasoning.encrypted",
                    "data": string(block, "data"),
                    "format": THINKING_FORMAT,
                    "index": len(details),
                }
            )
        elif kind == "tool_use":
            calls.append(_call(block))
        else:
            parts.append(_part(block))
    message: JSON = {"role": "assistant", "content": _joined(parts) if parts or not calls else None}
    thoughts = "".join(detail.get("text", "") for detail in details)
    return message | {
        name: value
        for name, value in (
            ("tool_calls", calls),
            ("reasoning_content", thoughts),
            ("reasoning_details", details),
        )
        if value
    }


def _joined(parts: list[JSON]) -> str | list[JSON]:
    """Plain texts are one string, which every vendor takes from an assistant."""
    plain = all(part.keys() == {"type", "text"} for part in parts)
    return "".join(part["text"] for part in parts) if plain else parts


def _call(block: JSON) -> JSON:
    if not isinstance(block["input"], dict):
        raise ValueError("the input of a tool call is not an object")
    extra = {
        name: value
        for name, value in block.items()
        if name not in ("type", "id", "name", "input")
        and value is not None
        and (name, value) != ("caller", {"type": "direct"})
    }
    return {
        "id": string(block, "id"),
        "type": "function",
        "function": {"name": string(block, "name"), "arguments": strict_json.dumps(block["input"])},
        **extra,
    }


def _part(block: JSON) -> JSON:
    """Return a block as a content part; what has no such form stays as it is, for another dialect
    to refuse.
    """
    kind = string(block, "type")
    extra = {
        name: value
        for name, value in block.items()
        if name not in ("type", "source", "title", "text") and value is not None
    }
    if kind == "text":
        return {"type": "text", "text": string(block, "text"), **extra}
    if kind not in ("image", "document"):
        return block
    source = obj(block["source"])
    form, title = (
        string(source, "type"),
        {"filename": block["title"]} if text(block.get("title")) else {},
    )
    if form == "file":
        return {"type": "file", "file": {"file_id": string(source, "file_id"), **title}, **extra}
    if form not in ("url", "base64", "text"):
        return block
    url = _url(form, source)
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": url}, **extra}
    return {
        "type": "file",
        "file": {"file_url" if form == "url" else "file_data": url, **title},
        **extra,
    }


def _url(form: str, source: JSON) -> str:
    if form == "url":
        return string(source, "url")
    data = string(source, "data")
    return f"data:{string(source, 'media_type')};base64,{b64encode(data.encode()).decode() if form == 'text' else data}"


# -- answers ---------------------------------------------------------------------------------------


def encode_response(response: InferResponse) -> JSON:
    """Return a message, or a count of tokens."""
    if "input_tokens" in response.extra:
        return {"input_tokens": response.extra["input_tokens"]}
    content = [block for detail in response.details if (block := thought_of(detail))]
    if response.reasoning and not content:
        content = [{"type": "thinking", "thinking": response.reasoning, "signature": ""}]
    if words := response.content or response.refusal:
        content.append({"type": "text", "text": words})
    content += [{**tool_use_of(call), "input": _input(call)} for call in response.tool_calls]
    return message_of(
        response.id,
        response.model,
        content,
        stop_reason(response.finish_reason, called=bool(response.tool_calls)),
        encode_usage(response.usage or Usage(response.tokens_in, response.tokens_out)),
    )


def message_of(
    ident: str, model: str, content: list[JSON], reason: str | None, usage: JSON
) -> JSON:
    ident = ident if ident.startswith("msg_") else f"msg_{ident or new_id()}"
    return {
        "id": ident,
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": None,
        "usage": usage,
    }


def thought_of(detail: JSON) -> JSON | None:
    """Return the block of a reasoning detail, unless another vendor made it or (a summary) it is no
    thinking.
    """
    return (
        thinking_block(detail)
        if detail.get("type") in ("reasoning.text", "reasoning.encrypted")
        else None
    )


def tool_use_of(call: JSON) -> JSON:
    """Return the head of a call's block; what another vendor wants back with the call rides along."""
    name = obj(call.get("function") or call.get("custom")).get("name") or ""
    rider = {"extra_content": call["extra_content"]} if call.get("extra_content") else {}
    return {
        "type": "tool_use",
        "id": call.get("id") or f"toolu_{new_id()}",
        "name": name,
        "input": {},
        **rider,
    }


def _input(call: JSON) -> JSON:
    """Return the input of a call, which must be an object here: what a model wrote wrongly stands
    in one as text.
    """
    if call.get("type") == "custom":
        return {"input": obj(call.get("custom")).get("input")}
    raw = obj(call.get("function")).get("arguments") or "{}"
    try:
        value = json.loads(raw)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"arguments": raw}


def stop_reason(reason: str | None, *, called: bool) -> str:
    """Return a finish reason in this vendor's words."""
    if called and reason in (None, "", "stop"):
        return "tool_use"
    return reason if reason and reason in FINISH else _STOP.get(reason or "stop", "end_turn")


def encode_usage(usage: Usage) -> JSON:
    """Return a usage object, in which input_tokens leaves out what was read from or written to the
    cache.
    """
    read, written, long_lived = (
        usage.cached_input_tokens or 0,
        usage.cache_write_tokens or 0,
        usage.cache_write_1h_tokens or 0,
    )
    data: JSON = {
        "input_tokens": max(0, (usage.input_tokens or 0) - read - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": usage.output_tokens or 0,
        "cache_creation": {
            "ephemeral_5m_input_tokens": max(0, written - long_lived),
            "ephemeral_1h_input_tokens": long_lived,
        },
    }
    if usage.reasoning_tokens is not None:
        data["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return data | ({"service_tier": usage.service_tier} if usage.service_tier else {})


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object as the official SDKs read it."""
    kind = _ERRORS.get(error.status) or (
        "invalid_request_error" if error.status < 500 else "api_error"
    )
    return {"type": "error", "error": {"type": kind, "message": error.message}}
