"""Turns the tools of OpenAI's clients into what every vendor has: functions.

A custom tool becomes a function with one string, and its calls become custom ones again. Of a
Responses client, a tool of the vendor's own is left out or refused; of the allowed tools only those
are sent.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import replace
from operator import is_
from typing import Any

from ..errors import UnsupportedParameter, shown
from ..protocol import InferRequest, must_be, strict_json
from ..types import JSON
from . import given, listed, members, objects, require, text, without
from .citations import images
from .parameters import Drop, Kind, hint, kinds, unsupported

CHAT = "openai"  # a dialect with custom tools
INPUT = "input"  # the one parameter of a function that stands for a custom tool


def with_functions(request: InferRequest, dialect: str, drop: Drop) -> InferRequest:
    """Return the request for a vendor of *dialect*; add to *drop*, or raise RequestError."""
    request = without_server_tools(request, drop, hoists=dialect != "gemini")
    if request.body_in("responses") is None:
        return _of_chat(request, dialect) if dialect != CHAT else request
    params = dict(request.params)
    if "item_reference" in params:
        unsupported("item_reference", dialect, drop)
    if params.pop("top_logprobs", None):  # they are in no answer but the vendor's own
        unsupported("logprobs", dialect, drop)
    lost = ["context_management"]  # Anthropic's has another form
    if dialect == CHAT:  # what chat completions store is never read again
        lost += ["store", "metadata"]
    for name in lost:
        if params.pop(name, None):
            hint(name, drop)
    tools = objects(params.pop("tools", None) or [], "tools")
    choice = params.pop("tool_choice", None)
    functions = [new for tool in tools if (new := _function(tool, dialect, drop))]
    if isinstance(choice, dict):
        functions, choice = _chosen(choice, functions, dialect)
    if functions:
        params |= {"tools": functions} | given({"tool_choice": choice})
    elif choice == "required":
        raise UnsupportedParameter(f"no tool is left for the {dialect} format", param="tools")
    else:
        params.pop("parallel_tool_calls", None)
    return replace(request, params=params, messages=[_message(one) for one in request.messages])


def without_server_tools(request: InferRequest, drop: Drop, *, hoists: bool = True) -> InferRequest:
    """Return the request without the parts of vendors' own tools in what the assistant said.

    If it *hoists*, the images that it drew are in a user message after them.
    """
    messages = [
        message
        if type(message) is dict and type(message.get("content")) is str
        else _without_server_tools(message)
        for message in request.messages
    ]
    if not all(map(is_, messages, request.messages)):
        hint("server_tools", drop)
        request = replace(request, messages=messages)
    if hoists and any(map(_draws, messages)):
        request = replace(request, messages=hoisted(messages))
    return request


def _draws(message: JSON) -> bool:
    parts = message.get("content") if message.get("role") == "assistant" else None
    return "images" in message or (isinstance(parts, list) and any(map(_is_media, parts)))


def _is_media(part: object) -> bool:
    return members(part).get("type") in ("image_url", "file", "input_audio")


def hoisted(messages: Iterable[JSON], *, results: bool = False) -> list[JSON]:
    """Return messages with the images that the assistant drew in a user message after them.

    Most vendors take none in what it said, and some none in *results* of tools.
    """
    found: list[JSON] = []
    media: list[JSON] = []
    for message in messages:
        role, parts = message.get("role"), message.get("content")
        if media and role != "tool":
            found.append({"role": "user", "content": media})
            media = []
        if role == "assistant" or (results and role == "tool"):
            inner = listed(parts)
            own = [*filter(_is_media, inner), *images(message.get("images"))]
            if own and inner:
                kept = [part for part in inner if not _is_media(part)]
                message = message | {"content": kept or (_FOLLOWS if role == "tool" else "")}
            if "images" in message:
                message = without(message, "images") | {"content": message.get("content") or ""}
            media += own
        found.append(message)
    return found + ([{"role": "user", "content": media}] if media else [])


_FOLLOWS = [{"type": "text", "text": "The result follows."}]


def _without_server_tools(message: JSON) -> JSON:
    content = members(message).get("content")
    if not isinstance(content, list) or message.get("role") != "assistant":
        return message
    kept = [one for one in content if not _SERVER_TOOL.fullmatch(str(members(one).get("type")))]
    return message if len(kept) == len(content) else message | {"content": kept}


_SERVER_TOOL = re.compile(
    "(server|mcp)_tool_use|[a-z_]+_tool_result|(exec|codeE|tool[CR])[A-Za-z]+"
)


def _of_chat(request: InferRequest, dialect: str) -> InferRequest:
    """Return the request of a chat client with its allowed tools, the custom ones as functions."""
    tools, choice = request.params.get("tools"), members(request.params.get("tool_choice"))
    chooses = choice.get("type") in ("custom", "allowed_tools")
    if not (chooses or custom_names(request)) and all(map(_has_no_custom, request.messages)):
        return request
    new: JSON = {}
    if isinstance(tools, list):
        new["tools"] = [*map(_as_function, objects(tools, "tools"))]
        if chooses:
            new["tools"], new["tool_choice"] = _chosen(choice, new["tools"], dialect)
    messages = [_message(one) for one in request.messages]
    return replace(request, params={**request.params, **new}, messages=messages)


def _is_custom(tool: object) -> bool:
    return members(tool).get("type") == "custom"


def _has_no_custom(message: object) -> bool:
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    return not isinstance(calls, list) or not any(map(_is_custom, calls))


def custom_names(request: InferRequest) -> frozenset[str]:
    tools = filter(_is_custom, listed(request.params.get("tools")))
    return frozenset(name for tool in tools if (name := name_of(tool)))


def as_custom(call: JSON, names: Collection[str]) -> JSON:
    """Return a call of a function as one of the custom tool for which it stands."""
    function = members(call.get("function"))
    if function.get("name") not in names:
        return call
    words = custom_input(str(function.get("arguments") or ""))
    custom = {"name": function["name"], "input": words}
    return {**without(call, "type", "function"), "type": "custom", "custom": custom}


class CustomCalls:
    """Turns the deltas of a stream's function calls into those of custom tools.

    The input of such a call is known when its arguments are whole: it follows in one piece.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._arguments: dict[object, str] = {}  # of custom calls, by their index

    def deltas(self, calls: Iterable[JSON], *, last: bool) -> list[JSON]:
        """Return the deltas to send; *last*: the arguments of all calls are whole."""
        found: list[JSON] = []
        for call in calls:
            function, place = members(call.get("function")), call.get("index")
            words = str(function.get("arguments") or "")
            if place in self._arguments:
                self._arguments[place] += words
            elif function.get("name") in self._names:
                self._arguments[place] = words
                custom = {"name": function["name"], "input": ""}
                found.append({**without(call, "function"), "type": "custom", "custom": custom})
            else:
                found.append(call)
        if last:
            whole, self._arguments = self._arguments, {}
            found += [
                {"index": place, "custom": {"input": custom_input(words)}}
                for place, words in whole.items()
            ]
        return found


def _function(tool: JSON, dialect: str, drop: Drop) -> JSON | None:
    kind = require(tool.get("type"), "tools[].type", str)
    if kind in ("function", "custom"):
        return _as_function(tool)
    leave_out(tool, dialect, drop)
    return None


def leave_out(tool: JSON, dialect: str, drop: Drop) -> None:
    """Leave out a vendor's own tool; raise UnsupportedParameter, which names it, if it must not."""
    kind = str(tool.get("type") or next(iter(tool), ""))
    family = next((each for each in _FAMILIES if kind.startswith(each)), kind)
    if kinds().get(f"tools.{family}") is not Kind.HINT:
        raise UnsupportedParameter(
            f"tools: the {dialect} format has no tool of type {shown(kind)}", param="tools"
        )
    hint(f"tools.{family}", drop)


# whose types have dates: web_search_preview_2025_03_11, tool_search_tool_regex_20251119
_FAMILIES = ("web_search", "tool_search")


def without_lost(choice: Any, names: Collection[Any], drop: Drop) -> Any:
    """Return a tool_choice, or None if there is no tool or it names one that was left out."""
    own = members(choice).get("function")
    lost = isinstance(own, dict) and own.get("name") not in names
    if choice is not None and (lost or not names):
        hint("tool_choice", drop)
        return None
    return choice


def _as_function(tool: JSON) -> JSON:
    if not _is_custom(tool):
        return tool
    custom = members(tool.get("custom"))
    form = members(custom.get("format"))
    grammar = members(form.get("grammar"))
    about = [str(custom["description"])] if custom.get("description") else []
    if grammar:
        syntax, definition = grammar.get("syntax"), grammar.get("definition")
        about.append(f"The input must match this {syntax} grammar:\n{definition}")
    whole = {"type": "string", "description": "The whole input, as it is."}
    schema = {
        "type": "object",
        "properties": {INPUT: whole},
        "required": [INPUT],
        "additionalProperties": False,
    }
    told = {"description": "\n\n".join(about)} if about else {}
    function = {"name": custom.get("name"), **told, "parameters": schema}
    return {"type": "function", "function": function}


def _chosen(choice: JSON, tools: list[JSON], dialect: str) -> tuple[list[JSON], Any]:
    """Return the tools that may be called, and the choice among them."""
    names, kind = set(map(name_of, tools)), choice.get("type")
    if kind == "allowed_tools":
        allowed = members(choice.get(kind))
        wanted = {name_of(tool) for tool in objects(allowed.get("tools"), "tool_choice.tools")}
        found = [tool for tool in tools if name_of(tool) in wanted]
        return found, allowed.get("mode") or "auto"
    if kind not in ("function", "custom"):
        raise UnsupportedParameter(
            f"the {dialect} format has no tool of type {shown(kind)}", param="tool_choice"
        )
    name = name_of(choice)
    if name not in names:
        raise must_be("tool_choice", "the name of a tool in tools")
    return tools, {"type": "function", "function": {"name": name}}


def name_of(tool: object) -> str | None:
    """Return the name in a tool, a call or a choice of one, if it has any."""
    own = members(tool)
    name = members(own.get("function") or own.get("custom")).get("name")
    return name if isinstance(name, str) else None


def _message(message: JSON) -> JSON:
    if _has_no_custom(message):
        return message
    return message | {"tool_calls": [_call(call) for call in message["tool_calls"]]}


def _call(call: JSON) -> JSON:
    if not _is_custom(call):
        return call
    custom = members(call.get("custom"))
    arguments = strict_json.dumps({INPUT: custom.get("input") or ""})
    function = {"name": custom.get("name"), "arguments": arguments}
    return {**without(call, "type", "custom"), "type": "function", "function": function}


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of the function that stands for it."""
    try:
        value = strict_json.loads(arguments)
    except ValueError:
        return arguments  # as models sometimes write it
    found = members(value).get(INPUT)
    return found if isinstance(found, str) else arguments


def arguments_of(raw: object) -> JSON:
    """Return a call's arguments; what is no object, as models sometimes write it, in one."""
    words = text(raw).strip() or "{}"
    try:  # strictly, if there may be a lone surrogate, which is no character: that takes longer
        strictly = "\\u" in words
        value = strict_json.loads(words) if strictly else strict_json.lenient(words.encode())
    except ValueError:
        value = words
    return value if isinstance(value, dict) else {} if value is None else {"arguments": raw}
