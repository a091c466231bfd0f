"""Anthropic's Messages format, the vendor's side: requests. Answers are read in anthropic.py."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote_to_bytes

from ...errors import RequestError, UnsupportedParameter
from ...pricing import find
from ...protocol import CHAT, InferRequest, strict_json
from ...protocol.strict_json import Document
from ...types import JSON
from .. import items, obj, text, unsupported

NAME = "anthropic"
PATHS = {CHAT: "/messages", "count_tokens": "/messages/count_tokens"}
VERSION = "2023-06-01"
FORWARDED = ("anthropic-version", "anthropic-beta")
THINKING_FORMAT = "anthropic-claude-v1"
LEAST_BUDGET = 1024  # the vendor takes no less
# Tokens of thinking that an effort buys before generation 4.6; from there on effort is a level of
# its own on the wire.
BUDGETS = {
    "minimal": LEAST_BUDGET,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
    "max": 32768,
}
OFF = {"type": "disabled"}
CHOICES = {"auto": "auto", "none": "none", "required": "any"}
TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
OWN = frozenset(
    {
        "thinking",
        "output_config",
        "cache_control",
        "container",
        "context_management",
        "mcp_servers",
        "speed",
        "inference_geo",
        "diagnostics",
    }
)  # this vendor's own names, for a caller that means it
TRANSLATED = frozenset(
    {
        "max_tokens",
        "max_completion_tokens",
        "temperature",
        "top_p",
        "top_k",
        "stop",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "user",
        "safety_identifier",
        "metadata",
        "service_tier",
        "stream_options",
    }
)  # usage comes in every stream, so stream_options is met
COUNTED = frozenset(
    {
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "response_format",
        "reasoning_effort",
        "thinking",
        "output_config",
        "cache_control",
    }
)
NEUTRAL: JSON = {
    "n": 1,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "store": False,
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "top_logprobs": 0,
}  # what the wire does anyway


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the path of the operation below the base URL, which ends in /v1."""
    if request.op not in PATHS:
        raise UnsupportedParameter(f"the {NAME} format has no {request.op}", param="model")
    return PATHS[request.op]


def auth(key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    return {"x-api-key": key}


def headers(request: InferRequest) -> dict[str, str]:
    """Return the protocol headers: the caller's own where its body goes out as it came, else the
    version spoken here.
    """
    own = request.headers if request.native is not None and request.native.dialect == NAME else {}
    return {"anthropic-version": VERSION} | {
        name.lower(): value for name, value in own.items() if name.lower() in FORWARDED
    }


def encode_request(request: InferRequest, *, stream: bool, drop: list[str] | None = None) -> bytes:
    """Return the body: as it came if it came in this dialect, but for the model; else translated."""
    path(request, stream=stream)
    native = request.native
    if native is not None and native.dialect == NAME:
        return _respelled(native.body, request, stream=stream).encode()
    system, turns = _turns(request.messages, drop)
    body: JSON = (
        {"model": request.model} | ({"system": system} if system else {}) | {"messages": turns}
    )
    body |= _translated(request, drop)
    return strict_json.encode(body | ({"stream": True} if stream and request.op == CHAT else {}))


def _respelled(body: Document, request: InferRequest, *, stream: bool) -> str:
    new: JSON = {} if body.value.get("model") == request.model else {"model": request.model}
    if request.op == CHAT and bool(body.value.get("stream")) != stream:
        new["stream"] = stream
    with reading("messages"):
        turns = body.value["messages"]
        kept = [own for turn in turns if (own := _own_blocks(turn)).get("content") or own == turn]
    if kept != turns:
        new["messages"] = kept
    return body.replaced(new) if new else body.text


def _own_blocks(turn: JSON) -> JSON:
    """Leave out what our door made of another vendor's answer and the client sent back: this vendor
    refuses the turn for it.
    """
    content = turn.get("content") if turn.get("role") == "assistant" else None
    if not isinstance(content, list):
        return turn
    return turn | {
        "content": [
            {name: value for name, value in block.items() if name != "extra_content"}
            for block in content
            if block.get("type") != "thinking" or block.get("signature")
        ]
    }


@contextmanager
def reading(place: str) -> Iterator[None]:
    """Say to the caller which part of its request is not as it must be."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError):
        raise RequestError(
            f"{place} is not as it must be: a member is missing or of the wrong type", param=place
        ) from None


def _turns(messages: Sequence[JSON], drop: list[str] | None) -> tuple[str | list[JSON], list[JSON]]:
    """Return the system prompt and the turns; every system message goes to the top, as in the
    vendor's own OpenAI door.
    """
    system: list[Any] = []
    turns: list[JSON] = []
    before = ""
    for number, message in enumerate(messages):
        with reading(f"messages[{number}]"):
            role, content = string(message, "role"), message.get("content")
            if message.get("name") and role != "tool":
                unsupported("messages.name", NAME, drop)
            if role in ("system", "developer"):
                system.append(content)
            elif role == "tool" and before == "tool":
                turns[-1]["content"].append(_tool_result(message, drop))
            elif role == "tool":
                turns.append({"role": "user", "content": [_tool_result(message, drop)]})
            elif role == "assistant":
                turns += [
                    {"role": role, "content": said} for said in (_said(message, drop),) if said
                ]
            elif role == "user":
                turns.append({"role": role, "content": _content(content, drop)})
            else:
                raise ValueError("no such role")
            before = role
    with reading("messages"):
        plain = system[0] if len(system) == 1 and isinstance(system[0], str) else ""
        return plain or [block for content in system for block in _blocks(content, drop)], turns


def _content(value: object, drop: list[str] | None) -> str | list[JSON]:
    return value if isinstance(value, str) else _blocks(value, drop)


def _blocks(value: object, drop: list[str] | None) -> list[JSON]:
    """Return a content as blocks; an empty text is left out, for the vendor refuses it."""
    parts = [{"type": "text", "text": value}] if isinstance(value, str) else items(value)
    blocks = (_block(part, drop) for part in parts if part != {"type": "text", "text": ""})
    return [block for block in blocks if block]


def _block(part: JSON, drop: list[str] | None) -> JSON | None:
    kind = string(part, "type")
    extra = {name: value for name, value in part.items() if name not in ("type", kind)}
    if kind == "text":
        return {"type": "text", "text": string(part, "text"), **extra}
    if kind == "image_url":
        if part[kind].get("detail", "auto") != "auto":
            unsupported("image_url.detail", NAME, drop)
        return {"type": "image", "source": _source(string(part[kind], "url")), **extra}
    if kind == "file" and (document := _document(part[kind])):
        return document | extra
    unsupported(f"messages.content.{kind}", NAME, drop)
    return None


def _source(url: str) -> JSON:
    if not url.startswith("data:"):
        return {"type": "url", "url": url}
    head, _, data = url[5:].partition(",")
    media, *options = head.split(";")
    return {
        "type": "base64",
        "media_type": media,
        "data": data if "base64" in options else b64encode(unquote_to_bytes(data)).decode(),
    }


def _document(file: JSON) -> JSON | None:
    title = {"title": string(file, "filename")} if "filename" in file else {}
    if "file_url" in file:
        return {"type": "document", "source": _source(string(file, "file_url"))} | title
    if "file_data" not in file:  # a file's id means nothing to another vendor
        return None
    source = _source(string(file, "file_data"))
    media = source["media_type"]
    if media.startswith("image/"):
        return {"type": "image", "source": source}
    if media.startswith("text/"):
        source = {
            "type": "text",
            "media_type": "text/plain",
            "data": b64decode(source["data"], validate=True).decode(),
        }
    return (
        {"type": "document", "source": source} | title
        if media.startswith("text/") or media == "application/pdf"
        else None
    )


def _said(message: JSON, drop: list[str] | None) -> str | list[JSON]:
    """Return an assistant's turn: thinking comes first, text next, calls last."""
    if message.get("audio"):
        unsupported("messages.audio", NAME, drop)
    content, refusal, calls = (
        message.get("content"),
        text(message.get("refusal")),
        items(message.get("tool_calls")),
    )
    thoughts = [
        block
        for detail in items(message.get("reasoning_details"))
        if (block := thinking_block(detail)) and (block["type"] != "thinking" or block["signature"])
    ]  # unsigned thinking, another vendor's, would be refused
    if isinstance(content, str) and not (thoughts or refusal or calls):
        return content
    uses = [block for call in calls if (block := _tool_use(call, drop))]
    return [*thoughts, *_blocks(content, drop), *_blocks(refusal, drop), *uses]


def thinking_block(detail: JSON) -> JSON | None:
    """Return the thinking block of a reasoning detail, unless another vendor made it."""
    if detail.get("format", THINKING_FORMAT) != THINKING_FORMAT:
        return None
    if detail.get("type") == "reasoning.encrypted":
        return {"type": "redacted_thinking", "data": string(detail, "data")}
    return {
        "type": "thinking",
        "thinking": text(detail.get("text")),
        "signature": text(detail.get("signature")),
    }


def _tool_use(call: JSON, drop: list[str] | None) -> JSON | None:
    if call.get("type", "function") != "function":
        unsupported("messages.tool_calls", NAME, drop)
        return None
    function = obj(call["function"])
    arguments = strict_json.loads(text(function.get("arguments")).strip() or "{}")
    if not isinstance(arguments, dict):
        raise ValueError("arguments are not an object")
    extra = {
        name: value
        for name, value in call.items()
        if name not in ("id", "type", "function", "index", "extra_content")
    }
    return {
        "type": "tool_use",
        "id": _ident(string(call, "id")),
        "name": string(function, "name"),
        "input": arguments,
        **extra,
    }


def _tool_result(message: JSON, drop: list[str] | None) -> JSON:
    extra = {name: message[name] for name in ("is_error", "cache_control") if message.get(name)}
    return {
        "type": "tool_result",
        "tool_use_id": _ident(string(message, "tool_call_id")),
        "content": _content(message.get("content"), drop),
        **extra,
    }


def _ident(ident: str) -> str:
    """Other vendors' ids of calls may hold characters that this one refuses."""
    return re.sub(r"[^a-zA-Z0-9_-]", "_", ident)


# -- parameters ------------------------------------------------------------------------------------


def _translated(request: InferRequest, drop: list[str] | None) -> JSON:
    """Return the members of the body that stand for the params."""
    params = {
        name: value
        for name, value in request.params.items()
        if value is not None and (name not in NEUTRAL or value != NEUTRAL[name])
    }
    known = COUNTED if request.op != CHAT else TRANSLATED | OWN
    for name in sorted(params.keys() - known):
        unsupported(name, NAME, drop)
    params = {name: value for name, value in params.items() if name in known}
    version, body = (
        version_of(request.model),
        {name: value for name, value in params.items() if name in OWN},
    )
    body |= _tools(params, drop) | _identity(params, drop) | _stop(params) | _tier(params, drop)
    limits = [
        limit
        for name in ("max_completion_tokens", "max_tokens")
        if (limit := typed(params, name, int)) is not None
    ]
    limit = min(limits, default=None)
    forced = obj(body.get("tool_choice")).get("type") in ("any", "tool")
    thinking = _thinking(params, version, limit, forced=forced, drop=drop)
    config = (
        dict(typed(params, "output_config", dict) or {})
        | thinking.pop("output_config", {})
        | _format(params, drop)
    )
    body = thinking | body | ({"output_config": config} if config else {})
    thought = typed(body, "thinking", dict) or OFF
    if request.op == CHAT:
        body["max_tokens"] = (
            _most(request.model, typed(thought, "budget_tokens", int) or 0)
            if limit is None
            else limit
        )
    return body | _sampling(params, version, thinks=thought.get("type") != OFF["type"], drop=drop)


def string(block: JSON, name: str) -> str:
    """Return a member that must be there and be a string."""
    value = block[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def typed(params: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """Return a member, None where there is none; raise RequestError if it is of another type than
    *kinds*.
    """
    value = params.get(name)
    if value is not None and (
        not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    ):
        raise RequestError(
            f"{name} must be of type {' or '.join(kind.__name__ for kind in kinds)}", param=name
        )
    return value


def texts(params: Mapping[str, Any], name: str, *kinds: type) -> Any:
    """Return a member that is of one of *kinds*, and if a list then of strings."""
    value = typed(params, name, *kinds)
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        raise RequestError(f"{name} must hold strings", param=name)
    return value


def _stop(params: Mapping[str, Any]) -> JSON:
    stop = texts(params, "stop", str, list)
    return {} if stop is None else {"stop_sequences": [stop] if isinstance(stop, str) else stop}


def _tier(params: Mapping[str, Any], drop: list[str] | None) -> JSON:
    tier = typed(params, "service_tier", str)
    if tier is not None and tier not in TIERS:
        unsupported("service_tier", NAME, drop)
    return {"service_tier": TIERS[tier]} if tier in TIERS else {}


def version_of(model: str) -> tuple[int, int]:
    """Return the generation that a model's id names, (0, 0) where it names none."""
    found = re.search(r"claude-(?:[a-z]+-)?(\d{1,2})(?:[-.](\d{1,2})(?!\d))?(?!\d)", model)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def _most(model: str, budget: int) -> int:
    price = find(NAME, model)
    most = (price and price.max_output) or 4096
    return most if most > budget else most + budget


def _thinking(
    params: Mapping[str, Any],
    version: tuple[int, int],
    limit: int | None,
    *,
    forced: bool,
    drop: list[str] | None,
) -> JSON:
    """Effort is a level from generation 4.6 on, before that a budget, which must leave room under
    max_tokens.
    """
    effort = typed(params, "reasoning_effort", str)
    if effort is None or effort == "none":
        return {"thinking": OFF} if effort else {}
    if effort not in BUDGETS:
        raise RequestError(
            f"reasoning_effort must be none or one of {', '.join(BUDGETS)}",
            param="reasoning_effort",
        )
    if version >= (4, 6):
        level = {"minimal": "low", "xhigh": "xhigh" if version > (4, 6) else "max"}.get(
            effort, effort
        )
        return ({} if forced else {"thinking": {"type": "adaptive"}}) | {
            "output_config": {"effort": level}
        }
    if forced or (0, 0) < version < (3, 7) or (limit is not None and limit <= LEAST_BUDGET):
        unsupported("reasoning_effort", NAME, drop)
        return {}
    budget = (
        BUDGETS[effort]
        if limit is None or limit > BUDGETS[effort]
        else max(LEAST_BUDGET, limit // 2)
    )
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _sampling(
    params: Mapping[str, Any], version: tuple[int, int], *, thinks: bool, drop: list[str] | None
) -> JSON:
    """From generation 4.7 on there is no sampling to set; thinking goes with temperature 1 only."""
    body = {}
    for name in ("temperature", "top_p", "top_k"):
        value = typed(params, name, int, float)
        if value is None or (value == 1 and name != "top_k" and version >= (4, 7)):
            continue
        bound = (
            thinks
            and not (name == "temperature" and value == 1)
            and not (name == "top_p" and value >= 0.95)
        )
        if version >= (4, 7) or bound or (name == "temperature" and value > 1):
            unsupported(name, NAME, drop)
        else:
            body[name] = value
    return body


def _format(params: Mapping[str, Any], drop: list[str] | None) -> JSON:
    wanted = typed(params, "response_format", dict) or {}
    if wanted.get("type") != "json_schema":
        if wanted:
            unsupported("response_format", NAME, drop)
        return {}
    with reading("response_format"):
        named = wanted["json_schema"]
        about = {"description": named["description"]} if named.get("description") else {}
        return {"format": {"type": "json_schema", "schema": about | dict(named["schema"])}}


def _identity(params: Mapping[str, Any], drop: list[str] | None) -> JSON:
    metadata = typed(params, "metadata", dict) or {}
    named = [
        typed(metadata, "user_id", str),
        typed(params, "user", str),
        typed(params, "safety_identifier", str),
    ]
    if metadata.keys() - {"user_id"}:
        unsupported("metadata", NAME, drop)
    return next(({"metadata": {"user_id": name}} for name in named if name is not None), {})


def _tools(params: Mapping[str, Any], drop: list[str] | None) -> JSON:
    body: JSON = {}
    with reading("tools"):
        if params.get("tools") is not None:
            body["tools"] = [
                tool for given in items(params["tools"]) if (tool := _tool(given, drop))
            ]
    choice, parallel = (
        typed(params, "tool_choice", str, dict),
        typed(params, "parallel_tool_calls", bool),
    )
    with reading("tool_choice"):
        if isinstance(choice, dict) and choice.get("type") == "function":
            body["tool_choice"] = {"type": "tool", "name": string(choice["function"], "name")}
        elif isinstance(choice, str) and choice in CHOICES:
            body["tool_choice"] = {"type": CHOICES[choice]}
        elif choice is not None:
            unsupported("tool_choice", NAME, drop)
    if (
        parallel is not None
        and body.get("tools")
        and obj(body.get("tool_choice")).get("type") != "none"
    ):
        body["tool_choice"] = body.get("tool_choice", {"type": "auto"}) | {
            "disable_parallel_tool_use": not parallel
        }
    return (
        body
        if body.get("tools") or choice == "required"
        else {name: body[name] for name in body if name == "tools"}
    )


def _tool(tool: JSON, drop: list[str] | None) -> JSON | None:
    if "input_schema" in tool or re.search(
        r"_\d{8}$", text(tool.get("type"))
    ):  # one of this vendor's own
        return tool
    if tool.get("type", "function") != "function":
        unsupported("tools", NAME, drop)
        return None
    function = dict(tool["function"])
    schema = function.pop("parameters", None) or {"type": "object", "properties": {}}
    extra = {
        name: value
        for name, value in (function | tool).items()
        if name not in ("name", "type", "function") and value is not None
    }
    return {"name": string(function, "name"), "input_schema": obj(schema), **extra}
