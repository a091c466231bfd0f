"""Translates requests of other dialects to OpenAI's Responses.

Reasoning goes back to a vendor only in the format that this vendor gave.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from operator import is_
from typing import Any

from ...protocol import InferRequest, text_of
from ...types import JSON
from .. import fitting, given, items, listed, obj, objects, only, require, text, without
from ..openai import is_neutral
from ..openai import requests as chat
from ..openai.requests import NAMES, fitted_name, nearest_effort, unknown
from ..parameters import Drop, Kind, hint, kinds, unsupported
from ..searches import Moved, moved, of_responses
from ..sizes import MIN_OUTPUT
from ..tools import leave_out, without_lost, without_server_tools
from . import DRAWN, NAME, Support
from .events import CALLS, drawn
from .items import BREAKPOINT
from .reasoning import FORMAT, is_own_id, is_packed

_OWN = frozenset(  # params that chat completions lack
    {
        *("background", "client_metadata", "conversation", "include", "max_tool_calls"),
        *("previous_response_id", "prompt", "prompt_cache_options", "truncation"),
    }
)
_CHAT_ONLY = frozenset(  # params of chat completions that this format lacks
    {
        *("audio", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs"),
        *("modalities", "n", "prediction", "presence_penalty", "seed", "web_search_options"),
    }
)
_RENAMED = frozenset(
    {
        *("max_completion_tokens", "max_tokens", "reasoning_effort", "reasoning_summary"),
        *("response_format", "tool_choice", "tools", "verbosity"),
    }
)
PARAMS = _OWN | (chat.PARAMS - _CHAT_ONLY - _RENAMED - {"stop"})  # under the same name
EXPRESSED = (
    PARAMS
    | _RENAMED
    | {
        "stop",
        "file.filename",
        "image_url.detail",
        "stream_options",
        "tools.namespace",
        "tools.strict",
        "tools.tool_search",
        "tools.web_search",
    }
)
_ROLES = ("system", "developer", "user", "assistant")
# These models can summarize their reasoning: platform.openai.com/docs/guides/reasoning
_SUMMARIZES = re.compile(r"(ft:)?(gpt-([5-9]|\d\d)(?!.*-chat)|o\d|codex-)")
# These encrypt their reasoning; others refuse to be asked for it.
_REASONS = re.compile(rf"{_SUMMARIZES.pattern}|grok-([4-9]|3-mini)")
_TAKEN_ALIKE = (None, "openai", NAME)  # formats whose unknown params the vendor may know
_FERNET = "gAAAA"  # begins what is encrypted with Fernet: its version is 0x80


def translated(
    request: InferRequest, drop: Drop, form: str = FORMAT, *, searches: bool = False
) -> JSON:
    """Return the body; add to *drop* what is left out, or raise RequestError if it must not be.

    *form* is the format of reasoning details that the vendor takes back; it *searches* if it has a
    web search.
    """
    body: JSON = {"model": request.model}
    search = Moved(request)
    if searches:
        names = "blocked_domains" if form == FORMAT else "excluded_domains"
        search = moved(request, lambda found: of_responses(found, excludes=names))
        request = search.request
    messages = list(without_server_tools(request, drop).messages)
    first = messages[0] if messages else {}
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        body["instructions"] = first["content"]
        messages = messages[1:]
    request = chat.asking(replace(request, messages=messages), drop)
    body["input"] = [*_items(request.messages, drop, form)]
    body = _params(request, drop) | body  # a member of another format's name replaces nothing
    search.add(body, drop, {"type": "web_search"}, limits=form == FORMAT)
    if request.body_in(NAME) is None:
        body.setdefault("store", False)  # as chat completions do
        if _REASONS.match(request.model):
            body.setdefault("include", ["reasoning.encrypted_content"])
    return body


def with_summary(body: JSON, request: InferRequest) -> JSON:
    """Return the body with a summary of the thoughts where the client's own API would show them.

    OpenAI refuses it to organizations that it has not verified: see `Choice.learn`.
    """
    reasoning = obj(body.get("reasoning"))
    if reasoning.get("effort") == "none" or not asks_thoughts(request):
        return body
    return body | {"reasoning": {"summary": "auto"} | reasoning}


def asks_thoughts(request: InferRequest) -> bool:
    """Whether a client of another API wants to see the thoughts of a model that can."""
    return _SUMMARIZES.match(request.model) is not None and fitting.shows_thoughts(request)


def _params(request: InferRequest, drop: Drop) -> JSON:
    body: JSON = {}
    others = _others(request)
    for name, value in given(request.params).items():
        if name in _RENAMED:
            _renamed(name, value, request.model, body, drop)
        elif name in NAMES and isinstance(value, str):
            body[name] = fitted_name(value, request.model)
        elif name in PARAMS:
            body[name] = value
        elif name in ("stop", "stream_options"):
            continue  # `calls` ends the answer at stops; every stream has its usage
        elif name in _CHAT_ONLY or name in others:
            if not is_neutral(name, value):
                _refuse(name, request.model, drop)
        else:
            body[name] = value
    names, tools = [tool.get("name") for tool in body.get("tools", ())], request.params.get("tools")
    lost = len(names) < len(tools or ()) or not names
    if lost and without_lost(request.params.get("tool_choice"), names, drop) is None:
        body.pop("tool_choice", None)
    return body


def _refuse(name: str, model: str, drop: Drop) -> None:
    """Leave a param out, or raise UnsupportedParameter.

    A model that reasons takes no preference at chat completions either.
    """
    if kinds().get(name) is Kind.PREFERENCE and _REASONS.match(model):
        hint(name, drop)
    else:
        unsupported(name, NAME, drop)


def _others(request: InferRequest) -> Collection[str]:
    form, params = request.native and request.native.dialect, request.params
    if form not in _TAKEN_ALIKE:
        return params.keys()
    return () if form == NAME else unknown(params, request.model, Drop(lenient=True))


def _renamed(name: str, value: Any, model: str, body: JSON, drop: Drop) -> None:
    if name in ("max_tokens", "max_completion_tokens"):
        few = isinstance(value, int) and not isinstance(value, bool) and 0 < value < MIN_OUTPUT
        body["max_output_tokens"] = MIN_OUTPUT if few else value
    elif name == "tools":
        tools = [found for tool in objects(value, name) if (found := _tool(tool, drop))]
        body |= {"tools": tools} if tools else {}
    elif name == "tool_choice":
        body[name] = _choice(value)
    elif name == "response_format":
        _add(body, "text", _format(value))
    elif name == "verbosity":
        _add(body, "text", {"verbosity": value})
    elif name == "reasoning_effort":
        _add(body, "reasoning", {"effort": nearest_effort(value, model)})
    else:
        _add(body, "reasoning", {"summary": value})


def _add(body: JSON, name: str, members: JSON) -> None:
    if members:
        body[name] = body.get(name, {}) | members


def _format(value: Any) -> JSON:
    wanted = require(value, "response_format", dict)
    if wanted.get("type") != "json_schema":
        return {} if is_neutral("response_format", wanted) else {"format": wanted}
    named = require(wanted.get("json_schema"), "response_format.json_schema", dict)
    return {"format": {"type": "json_schema", "name": "answer"} | given(named)}


def _tool(tool: JSON, drop: Drop) -> JSON | None:
    """Return a tool in this format's flat form; None for one that the vendor lacks."""
    kind = text(tool.get("type"))
    if kind not in ("function", "custom"):
        if re.search(r"_20\d{6}$", kind):  # Anthropic's own
            leave_out(tool, NAME, drop)
            return None
        return tool
    own = require(tool.get(kind), f"tools.{kind}", dict)
    for name in without(tool, "type", kind):
        hint(f"tools.{name}", drop)
    if kind == "function":
        # a schema is strict here unless one says otherwise
        schema = fitting.parameters(obj(own.get("parameters")))
        return {"type": kind, "strict": False} | given(own) | {"parameters": schema}
    form = obj(own.get("format"))
    flat = {"type": "grammar"} | obj(form.get("grammar")) if "grammar" in form else form
    return {"type": kind} | given(own) | ({"format": flat} if flat else {})


def _choice(choice: Any) -> Any:
    if not isinstance(choice, dict):
        return choice
    kind = choice.get("type")
    if kind == "allowed_tools" and isinstance(allowed := choice.get(kind), dict):
        tools = [_choice(tool) for tool in objects(allowed.get("tools"), "tool_choice.tools")]
        return {"type": kind} | allowed | {"tools": tools}
    if kind in ("function", "custom") and isinstance(named := choice.get(kind), dict):
        return {"type": kind, "name": named.get("name")}
    return choice


# -- messages --


def _items(messages: Sequence[JSON], drop: Drop, form: str) -> Iterator[JSON]:
    custom: set[str] = set()  # the ids of calls of custom tools
    for number, message in enumerate(messages):
        place, role = f"messages[{number}]", text(message.get("role"))
        _hints(message, drop)
        if role == "tool":
            yield _output(message, place, drop, custom)
        elif role not in _ROLES:
            unsupported(f"{place}.role {role}", NAME, drop)
        elif role != "assistant":
            yield {"role": role, "content": _content(message.get("content"), place, drop)}
        else:
            calls = [_call(call) for call in message.get("tool_calls") or ()]
            custom |= {call["call_id"] for call in calls if call["type"] == "custom_tool_call"}
            if message.get("function_call") or message.get("audio"):
                unsupported(f"{place}.function_call", NAME, drop)
            said = [*_said(message, place, drop), *calls]
            yield from _reasoning(message, form) if said else ()  # refused if nothing follows
            yield from said


def _content(value: Any, place: str, drop: Drop) -> Any:
    if not isinstance(value, list):
        return value
    return [_part(each, place, drop) for each in value]


def _part(part: JSON, place: str, drop: Drop) -> JSON:
    kind = text(part.get("type"))
    _hints(part, drop)
    own: Any = part.get(kind)
    if kind not in ("text", "image_url", "file", "input_audio"):
        unsupported(f"{place}.content.{kind}", NAME, drop)
    mark = only(given(part), (BREAKPOINT,))
    if kind == "text":
        return {"type": "input_text", "text": own} | mark
    if kind == "image_url":
        image = {"url": own} if isinstance(own, str) else obj(own)
        detail = image.get("detail") or "auto"
        return {"type": "input_image", "image_url": image.get("url"), "detail": detail} | mark
    if kind == "file":
        return {"type": "input_file"} | given(chat.named(own)) | mark
    return {"type": kind, kind: own}


def _said(message: JSON, place: str, drop: Drop) -> list[JSON]:
    content, refusal = message.get("content"), message.get("refusal")
    parts = listed(content)
    for part in parts:
        _hints(part, drop)
        if part.get("type") not in ("text", "refusal", "thinking"):
            unsupported(f"{place}.content.{part.get('type')}", NAME, drop)
    refusal = refusal or "".join(text(part.get("refusal")) for part in parts)
    words = text_of(content)
    if not refusal:
        return [{"role": "assistant", "content": words}] if words else []
    said: list[JSON] = [{"type": "output_text", "text": words}] if words else []
    said.append({"type": "refusal", "refusal": refusal})
    return [{"type": "message", "role": "assistant", "content": said}]


def _call(call: JSON) -> JSON:
    kind = "custom_tool_call" if call.get("type") == "custom" else "function_call"
    which, member = CALLS[kind]
    own = obj(call.get(which))
    words = text(own.get(member)) or ("{}" if member == "arguments" else "")
    named = {"name": text(own.get("name")), member: words}
    return {"type": kind, "call_id": _call_id(call.get("id"))} | named


def _output(message: JSON, place: str, drop: Drop, custom: set[str]) -> JSON:
    ident, content = _call_id(message.get("tool_call_id")), message.get("content")
    if isinstance(content, list):
        plain = all(part.get("type") == "text" for part in content)
        content = text_of(content) if plain else _content(content, place, drop)
    kind = "custom_tool_call_output" if ident in custom else "function_call_output"
    return {"type": kind, "call_id": ident, "output": "" if content is None else content}


def _call_id(value: Any) -> str:
    return fitting.call_id(text(value), fitting.RESPONSES_CALL_ID)


def _hints(holder: JSON, drop: Drop) -> None:
    chat.hints(holder, drop)
    if holder.get("name"):
        hint("messages.name", drop)


# -- reasoning --


def _reasoning(message: JSON, form: str) -> list[JSON]:
    """Return the reasoning items of an assistant message's details in the format *form*."""
    found: dict[str, JSON] = {}
    for detail in items(message.get("reasoning_details")):
        if detail.get("format") != form:
            continue
        ident = text(detail.get("id"))
        item = found.setdefault(ident, {"type": "reasoning", "summary": []})
        kind = text(detail.get("type"))
        if ident:
            item["id"] = ident
        if kind == "reasoning.summary":
            item["summary"].append({"type": "summary_text", "text": text(detail.get("summary"))})
        elif kind == "reasoning.encrypted":
            item["encrypted_content"] = text(detail.get("data"))
        elif kind == "reasoning.text":
            part = {"type": "reasoning_text", "text": text(detail.get("text"))}
            item["content"] = [*item.get("content", ()), part]
    # without its encrypted content an item only names what the vendor did not store
    return [item for item in found.values() if item.get("encrypted_content") or "content" in item]


def fitted_input(items: Any, support: Support) -> Any:
    """Return the input of a body in this format as the vendor takes it.

    It lacks reasoning of others; ids of calls that are too long, as Google's with their signatures,
    are fitted.
    """
    if not isinstance(items, list):
        return items
    new = [_fitted(item) for item in items if not is_foreign(item, support)]
    return items if len(new) == len(items) and all(map(is_, new, items)) else new


def _fitted(item: Any) -> Any:
    """Return an item: an image that another vendor drew is one of the user's."""
    if not isinstance(item, dict):
        return item
    if item.get("type") == DRAWN and item.get("result") and is_own_id(item.get("id"), "ig"):
        url = drawn(item)[0]["image_url"]["url"]
        return {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
    ident = item.get("call_id")
    if not isinstance(ident, str) or fitting.RESPONSES_CALL_ID.fullmatch(ident):
        return item
    return item | {"call_id": _call_id(ident)}


def is_foreign(item: Any, support: Support) -> bool:
    """Whether an input item is reasoning that the vendor did not encrypt."""
    if not isinstance(item, dict):
        return False
    if item.get("type") == "item_reference":
        return is_own_id(item.get("id"))
    if item.get("type") == DRAWN and not item.get("result"):
        return is_own_id(item.get("id"), "ig")
    data = item.get("encrypted_content")
    if not isinstance(data, str) or not data:
        return False
    if is_packed(data):
        return True
    return support.fernet is not None and data.startswith(_FERNET) != support.fernet
