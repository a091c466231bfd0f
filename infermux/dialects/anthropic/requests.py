"""Translates requests of other dialects to Anthropic's Messages API.

Anthropic refuses many combinations, such as thinking with a temperature; these cannot be expressed.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ...errors import RequestError
from ...pricing import find
from ...protocol import CHAT, InferRequest, must_be
from ...types import JSON
from .. import (
    BEGIN,
    fitting,
    given,
    items,
    obj,
    only,
    parted,
    require,
    strings,
    text,
    without,
)
from ..citations import data_uri
from ..fitting import is_closable
from ..openai import is_neutral
from ..parameters import Drop, hint, unsupported
from ..searches import OPTIONS, moved, of_anthropic
from ..sizes import MIN_THINKING_BUDGET
from ..tools import arguments_of, leave_out, with_functions
from . import NAME, PARAMETERS
from .models import MARK, OFF, SAMPLING, SHOWN, bound, fitted_thinking, refused, version_of

THINKING_FORMAT = "anthropic-claude-v1"  # of reasoning details that Anthropic signed
# Thinking budgets in tokens by effort; models from 4.6 on have an effort parameter.
BUDGETS = {
    "minimal": MIN_THINKING_BUDGET,
    "low": 2048,
    "medium": 8192,
    "high": 16384,
    "xhigh": 32768,
    "max": 32768,
}
INDEX = "encrypted_index"  # of a web citation
# Params that are translated even if their value is neutral.
KEPT = frozenset({"parallel_tool_calls", "service_tier"})
CHOICES = {"auto": "auto", "none": "none", "required": "any"}
TIERS = {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}
_OF_BLOCKS = ("cache_control", "citations", "context")  # that Anthropic has
# Anthropic's own params, which keep their names.
OWN = frozenset(name for names in PARAMETERS.values() for name in names) - {"thread"}
COUNTED = frozenset(  # params of count_tokens
    {
        *("tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort"),
        *("thinking", "output_config", "cache_control"),
    }
)
KNOWN = frozenset(
    {
        *(COUNTED | OWN | SAMPLING),
        *("max_tokens", "max_completion_tokens", "stop", "user", "safety_identifier", "metadata"),
        *("service_tier", "stream_options"),  # every stream has usage anyway
        "reasoning_summary",
    }
)
EXPRESSED = KNOWN | {OPTIONS, "citations", "file.filename", "is_error", "tools.strict"}


def translated(request: InferRequest, drop: Drop) -> JSON:
    """Return the body; add to *drop* what is left out, or raise RequestError if it must not be."""
    search = moved(request, lambda found: of_anthropic(found, drop))
    request = with_functions(search.request, NAME, drop)
    request = fitting.instructed(request, drop, lambda schema: bool(schema) and is_closable(schema))
    system, turns = _turns(request.messages, drop)
    if (last := turns[-1])["role"] == "assistant":
        if version_of(request.model) >= (4, 6):  # refuse to go on with their own words
            turns.append({"role": "user", "content": "Continue."})
        elif isinstance(last["content"], str):  # which must not end with white space
            last["content"] = last["content"].rstrip()
    body: JSON = {"model": request.model} | ({"system": system} if system else {})
    unthought = calls_without_thought(turns)
    body |= {"messages": turns} | _params(request, drop, unthought=unthought)
    search.add(body, drop, {"type": "tool", "name": "web_search"})
    return bound(body, request.model, drop)


def calls_without_thought(turns: Sequence[JSON]) -> bool:
    """Whether the last assistant's turn has calls and does not begin with its thinking.

    Another vendor gave it then, and Anthropic refuses a thinking budget.
    """
    last = next((turn for turn in reversed(turns) if turn.get("role") == "assistant"), None)
    content = last["content"] if last is not None else None
    if not isinstance(content, list):
        return False
    if not any(block.get("type") == "tool_use" for block in content):
        return False
    return content[0].get("type") not in ("thinking", "redacted_thinking")


# -- reading callers' values --


@contextmanager
def reading(place: str | Callable[[], str]) -> Iterator[None]:
    """Turn errors about a malformed request into a RequestError that names *place*."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError):
        where = place if isinstance(place, str) else place()
        raise RequestError(
            f"{where} is invalid: a member is missing or has the wrong type", param=where
        ) from None


def string(block: JSON, name: str) -> str:
    """Return a required string member; raise KeyError or ValueError."""
    value = block[name]
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def typed(params: JSON, name: str, *kinds: type) -> Any:
    """Return a member, None if missing; raise RequestError if it is of none of *kinds*."""
    value = params.get(name)
    return None if value is None else require(value, name, *kinds)


# -- messages --


def _turns(messages: Sequence[JSON], drop: Drop) -> tuple[str | list[JSON], list[JSON]]:
    """Return the system prompt, which joins all system messages, and the turns."""
    system: list[Any] = []
    turns: list[JSON] = []
    before, number = "", 0
    with reading(lambda: f"messages[{number}]"):
        for number, message in enumerate(messages):
            role, content = string(message, "role"), message.get("content")
            if message.get("name") and role != "tool":
                hint("messages.name", drop)
            if role in ("system", "developer"):
                system.append(content)
                continue
            if role == "tool":
                if before != "tool":
                    turns.append({"role": "user", "content": []})
                turns[-1]["content"].append(_tool_result(message, drop))
            elif role == "assistant":
                if said := _assistant(message, drop):
                    turns.append({"role": role, "content": said})
            elif role == "user":
                if words := _content(content, drop):
                    turns.append({"role": role, "content": words})
            else:
                wanted = "system, developer, user, assistant or tool"
                raise must_be(f"messages[{number}].role", wanted)
            before = role
    if not turns or turns[0]["role"] != "user":
        turns = [{"role": "user", "content": BEGIN}, *turns]
    with reading("messages"):
        if len(system) == 1 and isinstance(system[0], str) and not system[0].isspace():
            return system[0], turns
        return [block for content in system for block in _blocks(content, drop)], turns


def _content(value: object, drop: Drop) -> str | list[JSON]:
    words = "" if isinstance(value, str) and value.isspace() else value
    return words if isinstance(words, str) else _blocks(words, drop)


def _blocks(value: object, drop: Drop) -> list[JSON]:
    """Return a content as blocks, without empty texts, which Anthropic refuses."""
    if not value:
        return []
    blocks = (_block(part, drop) for part in items(parted(value)) if not is_empty(part))
    return [block for block in blocks if block]


def is_empty(part: JSON) -> bool:
    """Whether a text has no word, which Anthropic refuses."""
    words = part.get("text") if part.get("type") == "text" else None
    return isinstance(words, str) and (not words or words.isspace())


def _block(part: JSON, drop: Drop) -> JSON | None:
    kind = string(part, "type")
    extra = only(part, _OF_BLOCKS)
    if part.get("prompt_cache_breakpoint"):  # OpenAI's
        extra |= MARK
    if kind == "text":
        return {"type": "text", "text": string(part, "text"), **extra}
    if kind == "image_url":
        if part[kind].get("detail", "auto") != "auto":
            hint("image_url.detail", drop)
        return {"type": "image", "source": _source(string(part[kind], "url")), **extra}
    if kind == "file" and (document := _document(part[kind])):
        return document | extra
    unsupported(f"messages.content.{kind}", NAME, drop)
    return None


def _source(url: str) -> JSON:
    inline = data_uri(url)
    if inline is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": inline[0], "data": inline[1]}


def _document(file: JSON) -> JSON | None:
    title = {"title": string(file, "filename")} if "filename" in file else {}
    if "file_url" in file:
        return {"type": "document", "source": _source(string(file, "file_url"))} | title
    if "file_data" not in file:  # the id of a file at another vendor
        return None
    source = _source(string(file, "file_data"))
    media = source["media_type"]
    if media.startswith("image/"):
        return {"type": "image", "source": source}
    if media.startswith("text/"):
        data = b64decode(source["data"], validate=True).decode()
        source = {"type": "text", "media_type": "text/plain", "data": data}
    elif media != "application/pdf":
        return None
    return {"type": "document", "source": source} | title


def _assistant(message: JSON, drop: Drop) -> str | list[JSON]:
    """Return the content of an assistant's turn: thinking first, then text, then calls."""
    if message.get("audio"):
        unsupported("messages.audio", NAME, drop)
    content, refusal = message.get("content"), text(message.get("refusal"))
    calls = items(message.get("tool_calls"))
    found = [thinking_block(detail) for detail in items(message.get("reasoning_details"))]
    bare = bool(message.get("reasoning_content"))  # then a signature alone lost its words
    thoughts = [  # others are refused
        one
        for one in found
        if one and one.get("signature", 1) and (one.get("thinking", 1) or not bare)
    ]
    if isinstance(content, str) and not (thoughts or refusal or calls):
        return _content(content, drop)
    uses = [block for call in calls if (block := _tool_use(call, drop))]
    return [*thoughts, *_blocks(content, drop), *_blocks(refusal, drop), *uses]


def thinking_block(detail: JSON) -> JSON | None:
    """Return the thinking block of a reasoning detail, or None for another vendor's."""
    if detail.get("format", THINKING_FORMAT) != THINKING_FORMAT:
        return None
    if detail.get("type") == "reasoning.encrypted":
        return {"type": "redacted_thinking", "data": string(detail, "data")}
    words, signature = text(detail.get("text")), text(detail.get("signature"))
    return {"type": "thinking", "thinking": words, "signature": signature}


def _tool_use(call: JSON, drop: Drop) -> JSON | None:
    if call.get("type", "function") != "function":
        unsupported("messages.tool_calls", NAME, drop)
        return None
    function = obj(call["function"])
    return {
        "type": "tool_use",
        "id": call_ident(string(call, "id")),
        "name": string(function, "name"),
        "input": arguments_of(function.get("arguments")),
        **without(call, "id", "type", "function", "index", "extra_content"),
    }


def _tool_result(message: JSON, drop: Drop) -> JSON:
    return {
        "type": "tool_result",
        "tool_use_id": call_ident(string(message, "tool_call_id")),
        "content": _content(message.get("content"), drop),
        **result_flags(message),
    }


def result_flags(result: JSON) -> JSON:
    """Return is_error and cache_control of a tool result, which need no translation."""
    return {name: result[name] for name in ("is_error", "cache_control") if result.get(name)}


def call_ident(ident: str) -> str:
    """Return a tool call's id; replace characters that Anthropic refuses."""
    taken = fitting.ANTHROPIC_CALL_ID
    if taken.fullmatch(ident):
        return ident
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", ident) if ident.isascii() else ""
    return plain if taken.fullmatch(plain) else fitting.call_id(ident, taken)


# -- parameters --


def _params(request: InferRequest, drop: Drop, *, unthought: bool = False) -> JSON:
    """Return the body's members other than model, system and messages."""
    params = {
        name: value
        for name, value in request.params.items()
        if name in KEPT or not is_neutral(name, value)
    }
    known = KNOWN if request.op == CHAT else COUNTED
    unknown = sorted(params.keys() - known)
    for name in unknown:
        unsupported(name, NAME, drop)
    params = without(params, *unknown)
    version = version_of(request.model)
    body = only(params, OWN)
    body |= _tools(params, drop) | _identity(params, drop) | _tier(params, drop)
    if "stop" in params:
        stops = strings(params["stop"], "stop")  # blank ones are refused: see `calls`
        body["stop_sequences"] = [each for each in stops if each.strip()]
    limits = (typed(params, name, int) for name in ("max_completion_tokens", "max_tokens"))
    limit = min((limit for limit in limits if limit is not None), default=None)
    forced = obj(body.get("tool_choice")).get("type") in ("any", "tool")
    forced_off = forced or (unthought and version < (4, 6))
    thinking = _thinking(params, request.model, limit, forced=forced_off, drop=drop)
    shown = params.get("reasoning_summary") or fitting.shows_thoughts(request)
    if shown and "reasoning_effort" not in params and version >= (5, 0):  # which think unasked
        thinking = {"thinking": SHOWN}
    config = dict(typed(params, "output_config", dict) or {})
    config |= thinking.pop("output_config", {}) | _format(params, drop)
    body = thinking | body | ({"output_config": config} if config else {})
    thought = typed(body, "thinking", dict) or OFF
    if request.op == CHAT:
        budget = typed(thought, "budget_tokens", int) or 0
        body["max_tokens"] = _max_tokens(request.model, budget) if limit is None else limit
    return body | _sampling(
        params, request.model, thinks=thought.get("type") != OFF["type"], drop=drop
    )


def _tier(params: JSON, drop: Drop) -> JSON:
    tier = typed(params, "service_tier", str)
    if tier is not None and tier not in TIERS:
        unsupported("service_tier", NAME, drop)
    return {"service_tier": TIERS[tier]} if tier in TIERS else {}


def _max_tokens(model: str, budget: int) -> int:
    """Return a max_tokens, which Anthropic requires, above *budget*."""
    price = find(NAME, model)
    most = (price and price.max_output) or 4096
    return most if most > budget else most + budget


def _thinking(params: JSON, model: str, limit: int | None, *, forced: bool, drop: Drop) -> JSON:
    """Translate reasoning_effort: to a level from Claude 4.6 on, else to a token budget."""
    effort, version = typed(params, "reasoning_effort", str), version_of(model)
    if effort is None or effort == "none":
        least = fitted_thinking(OFF, model)
        told = {"thinking": least} if least else {"output_config": {"effort": "low"}}
        return told if effort else {}
    if effort not in BUDGETS:  # another vendor's
        unsupported("reasoning_effort", NAME, drop)
        return {}
    if version >= (4, 6):
        highest = "xhigh" if version > (4, 6) else "max"
        level = {"minimal": "low", "xhigh": highest}.get(effort, effort)
        thinking = SHOWN if version > (4, 6) else {"type": "adaptive"}
        adaptive: JSON = {} if forced else {"thinking": thinking}
        return adaptive | {"output_config": {"effort": level}}
    if forced or (0, 0) < version < (3, 7) or (limit is not None and limit <= MIN_THINKING_BUDGET):
        unsupported("reasoning_effort", NAME, drop)
        return {}
    budget = BUDGETS[effort]
    if limit is not None and limit <= budget:
        budget = max(MIN_THINKING_BUDGET, limit // 2)
    return {"thinking": {"type": "enabled", "budget_tokens": budget}}


def _sampling(params: JSON, model: str, *, thinks: bool, drop: Drop) -> JSON:
    """Return the sampling params: none from Claude 4.7 on, few if *thinks*."""
    values = {name: typed(params, name, float) for name in sorted(SAMPLING)}
    for name in refused(values, model):
        hint(name, drop)
    if version_of(model) >= (4, 7):
        return {}
    body = {}
    for name, value in given(values).items():
        allowed = (name == "temperature" and value == 1) or (name == "top_p" and value >= 0.95)
        if (thinks and not allowed) or (name == "temperature" and value > 1):
            unsupported(name, NAME, drop)
        else:
            body[name] = value
    if version_of(model) >= (4, 1) and body.keys() >= {"temperature", "top_p"}:
        if body["temperature"] == 1:  # these models refuse both together
            return without(body, "temperature")
        hint("top_p", drop)
        del body["top_p"]
    return body


def _format(params: JSON, drop: Drop) -> JSON:
    wanted = typed(params, "response_format", dict) or {}
    if wanted.get("type") != "json_schema":
        if wanted:
            unsupported("response_format", NAME, drop)
        return {}
    schema = fitting.closed(fitting.json_schema(wanted))
    return {"format": {"type": "json_schema", "schema": schema}}


def _identity(params: JSON, drop: Drop) -> JSON:
    metadata = typed(params, "metadata", dict) or {}
    if metadata.keys() - {"user_id"}:
        unsupported("metadata", NAME, drop)
    names = [typed(metadata, "user_id", str)]
    names += [typed(params, name, str) for name in ("user", "safety_identifier")]
    found = (fitting.user(name, fitting.NO_PERSON) for name in names if name is not None)
    return next(({"metadata": {"user_id": name}} for name in found), {})


def _tools(params: JSON, drop: Drop) -> JSON:
    with reading("tools"):
        tools = (_tool(tool, drop) for tool in items(params.get("tools")))
        kept = [tool for tool in tools if tool]
    choice = typed(params, "tool_choice", str, dict)
    parallel = typed(params, "parallel_tool_calls", bool)
    chosen: JSON = {}
    with reading("tool_choice"):
        if isinstance(choice, dict) and choice.get("type") == "function":
            chosen = {"type": "tool", "name": string(choice["function"], "name")}
        elif isinstance(choice, str) and choice in CHOICES:
            chosen = {"type": CHOICES[choice]}
        elif choice is not None:
            unsupported("tool_choice", NAME, drop)
    if parallel is not None and kept and chosen.get("type") != "none":
        chosen = (chosen or {"type": "auto"}) | {"disable_parallel_tool_use": not parallel}
    body: JSON = {} if params.get("tools") is None else {"tools": kept}
    return body | ({"tool_choice": chosen} if chosen and (kept or choice == "required") else {})


def _tool(tool: JSON, drop: Drop) -> JSON | None:
    if "input_schema" in tool or re.search(r"_\d{8}$", text(tool.get("type"))):
        return tool  # in Anthropic's form, or with the dated type of its own tools
    if tool.get("type", "" if "function" not in tool else "function") != "function":
        leave_out(tool, NAME, drop)
        return None
    function = dict(tool["function"])
    schema = {"type": "object"} | (function.pop("parameters", None) or {"properties": {}})
    extra = without(given(function | tool), "name", "type", "function")
    if extra.get("strict") and not is_closable({"properties": {}} | schema):
        hint("tools.strict", drop)
        del extra["strict"]
    if extra.get("strict"):
        schema = fitting.closed(schema)
    return {"name": string(function, "name"), "input_schema": obj(schema), **extra}
