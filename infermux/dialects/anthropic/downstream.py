"""Reads requests of our Anthropic-compatible API; writes its responses and errors.

Clients are the official SDK and Claude Code. `stream` writes the event streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

from ...errors import InferMuxError, ProviderContextTooLong, RequestError, UnsupportedParameter
from ...protocol import CHAT, InferRequest, InferResponse, Native, new_id, strict_json, text_of
from ...protocol.strict_json import Document
from ...types import JSON, Usage
from .. import given, items, obj, strings, text, tier_of, used, without
from ..citations import cited, inline
from ..fitting import joined, strict
from ..gemini.requests import FORMAT as GOOGLES
from ..responses.reasoning import pack, unpack
from ..tools import arguments_of
from . import NAME
from .requests import (
    BUDGETS,
    CHOICES,
    INDEX,
    TIERS,
    reading,
    result_flags,
    string,
    thinking_block,
    typed,
)
from .upstream import FINISH, STATUS, detail_of

_CHOICES = {theirs: ours for ours, theirs in CHOICES.items()}
_TIERS = {"auto": "auto", TIERS["default"]: "default"}
_STOP = {ours: theirs for theirs, ours in reversed(FINISH.items())} | {"function_call": "tool_use"}
_ERRORS = {status: kind for kind, status in STATUS.items()} | {503: "overloaded_error"}
_TOO_LONG = "prompt is too long"  # then Claude Code compacts the conversation
_NO_THREAD = {"error_code": "thread_unsupported_request", "unsupported": ["model"]}


# -- requests --


def decode_request(document: Document, *, op: str = CHAT) -> tuple[InferRequest, bool]:
    """Return the request, and whether it asks for a stream; raise RequestError if invalid."""
    body = dict(document.value)
    model = _take(body, "model", str, needed=True)
    stream = _take(body, "stream", bool)
    messages = _system(body.pop("system", None))
    turns = _take(body, "messages", list, needed=True)
    read: list[list[JSON]] = []
    with reading(lambda: f"messages.{len(read)}"):
        for turn in turns:
            read.append(_messages(turn))
    messages += chain.from_iterable(read)
    params = _params(body, op)
    native = Native(NAME, document)
    request = InferRequest(model, messages, params=params | body, op=op, native=native)
    return request, bool(stream)


def _take(body: JSON, name: str, *kinds: type, needed: bool = False) -> Any:
    """Remove a member from *body* and return it; the rest is passed on unchanged."""
    value = typed(body, name, *kinds)
    if value is None and needed:
        raise RequestError(f"{name}: Field required", param=name)
    body.pop(name, None)
    return value


def _params(body: JSON, op: str) -> JSON:
    """Remove the params from *body* that need translation; return them in OpenAI's form."""
    limit = _take(body, "max_tokens", int, needed=op == CHAT)
    if limit is not None and limit < 0:
        raise RequestError("max_tokens must not be negative", param="max_tokens")
    stops = _take(body, "stop_sequences", list)
    params = {
        "max_tokens": limit,
        "stop": None if stops is None else strings(stops, "stop_sequences"),
        "tools": _tools(body),
    }
    params |= {name: _take(body, name, float) for name in ("temperature", "top_p", "top_k")}
    metadata = dict(_take(body, "metadata", dict) or {})
    params |= {"user": _take(metadata, "user_id", str), "metadata": metadata or None}
    tier = _take(body, "service_tier", str)
    params |= {"service_tier": _TIERS.get(tier, tier)} | _choice(body) | _thinking(body)
    return given(params)


def _tools(body: JSON) -> list[JSON] | None:
    tools = _take(body, "tools", list)
    with reading("tools"):
        return None if tools is None else [_tool(tool) for tool in items(tools)]


def _tool(tool: JSON) -> JSON:
    if tool.get("type") not in (None, "custom"):
        string(tool, "type")
        return tool  # Anthropic's own; other dialects refuse its type
    schema, description = tool["input_schema"], tool.get("description")
    if not isinstance(schema, dict) or not isinstance(description, str | None):
        raise ValueError("the schema must be an object, the description a string")
    whole: JSON = {"properties": {}} | schema
    function = {
        "name": string(tool, "name"),
        "description": description,
        "parameters": schema,
        # as OpenAI's models mean it, which want every property
        "strict": (tool.get("strict") and strict(whole) == whole) or None,
    }
    extra = without(tool, *function, "type", "input_schema")
    return {"type": "function", "function": given(function), **given(extra)}


def _choice(body: JSON) -> JSON:
    choice = _take(body, "tool_choice", dict)
    if choice is None:
        return {}
    with reading("tool_choice"):
        if (kind := string(choice, "type")) == "tool":
            function = {"name": string(choice, "name")}
            params: JSON = {"tool_choice": {"type": "function", "function": function}}
        else:
            params = {"tool_choice": _CHOICES[kind]}
        if (alone := _take(dict(choice), "disable_parallel_tool_use", bool)) is not None:
            params["parallel_tool_calls"] = not alone
        return params


def _thinking(body: JSON) -> JSON:
    """Translate thinking to reasoning_effort; a budget gives the highest effort it covers."""
    thinking = _take(body, "thinking", dict) or {}
    config = dict(_take(body, "output_config", dict) or {})
    shape = _take(config, "format", dict) or _take(body, "output_format", dict)
    effort = _take(config, "effort", str)
    with reading("thinking"):
        kind = string(thinking, "type") if thinking else None
        if kind == "enabled":
            budget = _take(dict(thinking), "budget_tokens", int, needed=True)
            paid = [level for level in BUDGETS if level != "max" and BUDGETS[level] <= budget]
            effort = paid[-1] if paid else "minimal"
        elif kind is not None:
            default = {"adaptive": "high", "between_tools": "minimal", "disabled": "none"}[kind]
            effort = "none" if kind == "disabled" else effort or default
    return {
        "output_config": config or None,
        "reasoning_effort": "xhigh" if effort == "max" else effort,
        "response_format": None if shape is None else _format(shape),
    }


def _format(shape: JSON) -> JSON:
    with reading("output_config.format"):
        if string(shape, "type") != "json_schema":
            raise ValueError("only json_schema is known")
        schema = dict(shape["schema"])
        named = {"name": "output", "schema": schema, "strict": strict(schema) == schema}
        return {"type": "json_schema", "json_schema": named}


def _system(system: object) -> list[JSON]:
    if system is None:
        return []
    with reading("system"):
        content = system if isinstance(system, str) else [_part(block) for block in _list(system)]
        return [{"role": "system", "content": content}]


def _list(value: object) -> list[JSON]:
    if not isinstance(value, list):
        raise ValueError("expected a list")
    return items(value)


def _messages(turn: JSON) -> list[JSON]:
    """Return a turn as messages; first a message for each tool result."""
    role, content = turn["role"], turn.get("content")
    if role not in ("user", "assistant", "system"):
        raise ValueError("no such role")
    if role == "system" and content is None and turn["output_config"]:
        return []  # only the effort of the turns that follow
    if isinstance(content, str):
        return [{"role": role, "content": content}]
    blocks = _list(content)
    if role == "assistant":
        return [_assistant(blocks)]
    results: list[JSON] = []
    parts: list[JSON] = []
    for block in blocks:
        if block["type"] == "tool_result":
            results.append(_result(block))
        else:
            parts.append(_part(block))
    return results + ([{"role": role, "content": parts}] if parts or not results else [])


def _result(block: JSON) -> JSON:
    content: object = block.get("content")
    content = (
        [_part(part) for part in items(content)] if isinstance(content, list) else text(content)
    )
    message = {"role": "tool", "tool_call_id": string(block, "tool_use_id"), "content": content}
    return message | result_flags(block) if len(block) > 2 + ("content" in block) else message


def _assistant(blocks: list[JSON]) -> JSON:
    parts, calls, words = [], [], ""
    details: list[JSON] = []
    for block in blocks:
        kind = block["type"]
        if kind == "tool_use":
            calls.append(_call(block))
        elif kind in ("thinking", "redacted_thinking"):
            packed = unpack(block.get("signature"))
            found = [detail_of(block)] if packed is None else packed
            details += [one | {"index": len(details) + n} for n, one in enumerate(found) if one]
            words += text(block.get("thinking"))
        else:
            parts.append(_part(block))
    message: JSON = {"role": "assistant", "content": joined(parts) if parts or not calls else None}
    if calls:
        message["tool_calls"] = calls
    if details:
        message |= {"reasoning_details": details} | ({"reasoning_content": words} if words else {})
    return message


def _call(block: JSON) -> JSON:
    if not isinstance(block["input"], dict):
        raise ValueError("the input of a tool call is not an object")
    function = {"name": string(block, "name"), "arguments": strict_json.dumps(block["input"])}
    call: JSON = {"id": string(block, "id"), "type": "function", "function": function}
    if len(block) > 4:
        call |= given(without(block, "type", "id", "name", "input"))
        if call.get("caller") == {"type": "direct"}:
            del call["caller"]
    return call


def _part(block: JSON) -> JSON:
    """Return a block as a content part, unchanged if OpenAI has no such part."""
    kind = string(block, "type")
    if kind == "text" and len(block) == 2:
        string(block, "text")
        return block
    extra = given(without(block, "type", "source", "title", "text"))
    if kind == "text":
        return {"type": "text", "text": string(block, "text"), **extra}
    if kind in _WRITTEN:
        parts = [block.get(name) for name in _WRITTEN[kind]]
        words = [text_of(part) if isinstance(part, list) else text(part) for part in parts]
        return {"type": "text", "text": "\n".join(filter(None, words))}
    if kind not in ("image", "document"):
        return block
    source = obj(block["source"])
    form = string(source, "type")
    said = source.get(_WORDS.get(form, ""))
    if (
        kind == "document"
        and said
        and (isinstance(said, str) or all(part.get("type") == "text" for part in items(said)))
    ):
        told = (text(block.get("title")), text(extra.pop("context", None)), text_of(said))
        return {"type": "text", "text": "\n".join(filter(None, told)), **extra}
    title = {"filename": block["title"]} if text(block.get("title")) else {}
    if form == "file":
        return {"type": "file", "file": {"file_id": string(source, "file_id"), **title}, **extra}
    if form not in ("url", "base64"):
        return block
    url = string(source, "url") if form == "url" else ""
    url = url or f"data:{string(source, 'media_type')};base64,{string(source, 'data')}"
    if kind == "image":
        return {"type": "image_url", "image_url": {"url": url}, **extra}
    name = "file_url" if form == "url" else "file_data"
    return {"type": "file", "file": {name: url, **title}, **extra}


# Blocks of text alone, and the members that have it.
_WRITTEN = {"search_result": ("title", "source", "content"), "tool_reference": ("tool_name",)}


_WORDS = {"text": "data", "content": "content"}  # likewise, by the type of a document's source


# -- answers --


def encode_response(response: InferResponse) -> JSON:
    """Return the message, or the token count, as JSON."""
    if "input_tokens" in response.extra:
        return {"input_tokens": response.extra["input_tokens"]}
    content = [block for detail in response.details if (block := thought_of(detail))]
    signature = "" if content else sealed(response.details)
    if signature or (response.reasoning and not content):
        content = [{"type": "thinking", "thinking": response.reasoning, "signature": signature}]
    if response.content:
        content += [_text(*each) for each in cited(response.content, response.annotations)]
    if response.refusal:
        content.append(_text(response.refusal))
    content += map(_text, pictures(response.images))
    content += [{**tool_use_of(call), "input": _input(call)} for call in response.tool_calls]
    return message_of(
        response.id,
        response.model,
        content,
        stop_reason(response.finish_reason, called=bool(response.tool_calls)),
        encode_usage(used(response)),
    )


def _text(words: str, found: Iterable[JSON] = ()) -> JSON:
    block: JSON = {"type": "text", "text": words}
    return block | {"citations": [citation_of(one) for one in found]} if found else block


def citation_of(cited: JSON) -> JSON:
    """Return a citation of a text block. Its index is empty: Anthropic never gave it."""
    return {
        "type": "web_search_result_location",
        "cited_text": cited.get("content", ""),
        "url": cited["url"],
        "title": cited["title"],
        INDEX: "",
    }


def pictures(images: Sequence[JSON]) -> list[str]:
    """Return what is said instead of each image: an answer has none in this format."""
    return [
        f"[Here is an image ({media}), which the Messages API cannot return; the Responses, chat "
        "completions and Gemini APIs can.]"
        for media, _ in inline(images)
    ]


def message_of(
    ident: str, model: str, content: list[JSON], reason: str | None, usage: JSON
) -> JSON:
    """Return a message; *reason*, its stop_reason, is None as a stream begins."""
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


def sealed(details: Iterable[JSON]) -> str:
    """Return a signature that holds details that another vendor signed, or "" without any.

    Google's come after the text, where this format has no thoughts.
    """
    held = [one for one in details if one.get("format") != GOOGLES]
    return pack(held) if any(one.get("data") or one.get("signature") for one in held) else ""


def thought_of(detail: JSON) -> JSON | None:
    """Return the block of a reasoning detail, or None for a summary or another vendor's."""
    is_thinking = detail.get("type") in ("reasoning.text", "reasoning.encrypted")
    return thinking_block(detail) if is_thinking else None


def tool_use_of(call: JSON) -> JSON:
    """Return a tool call as a tool_use block without input."""
    name = obj(call.get("function") or call.get("custom")).get("name") or ""
    extra = {"extra_content": call["extra_content"]} if call.get("extra_content") else {}
    ident = call.get("id") or f"toolu_{new_id()}"
    return {"type": "tool_use", "id": ident, "name": name, "input": {}, **extra}


def _input(call: JSON) -> JSON:
    """Return a tool call's arguments as an object; wrap others in one."""
    if call.get("type") == "custom":
        return {"input": obj(call.get("custom")).get("input")}
    return arguments_of(obj(call.get("function")).get("arguments"))


def stop_reason(reason: str | None, *, called: bool) -> str:
    """Return the stop_reason; *called*: there are tool calls."""
    if called and reason in (None, "", "stop"):
        return "tool_use"
    return reason if reason and reason in FINISH else _STOP.get(reason or "stop", "end_turn")


def encode_usage(usage: Usage) -> JSON:
    """Return a usage object; its input_tokens excludes cached tokens."""
    read, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    long_lived = usage.cache_write_1h_tokens or 0
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
    return data | given({"service_tier": tier_of(usage, "standard", ("priority", "batch"))})


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object, as Anthropic's SDKs expect it."""
    kind = _ERRORS.get(error.status) or (
        "invalid_request_error" if error.status < 500 else "api_error"
    )
    body: JSON = {"type": kind, "message": error.message}
    if error.hook:  # this format has no code, and a hook's own says what was refused
        body["code"] = error.code
    if isinstance(error, UnsupportedParameter) and error.param == "thread":
        body["details"] = _NO_THREAD  # then the SDK sends the whole conversation
    native = error.native_in(NAME)
    if native is None:
        if isinstance(error, ProviderContextTooLong) and _TOO_LONG not in error.message.lower():
            body["message"] = f"{_TOO_LONG}: {error.message}"
        return {"type": "error", "error": body}
    ident = {"request_id": native.request_id} if native.request_id else {}
    return {"type": "error", "error": body | native.members | {"message": error.message}} | ident
