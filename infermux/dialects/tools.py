"""Turns the tools of a Responses client into what every vendor has: functions.

A custom tool becomes a function with one string; a tool of the vendor's own is left out or refused;
of the allowed tools only those are sent. Requests of other clients stay as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from ..errors import UnsupportedParameter, shown
from ..protocol import InferRequest, must_be, strict_json
from ..types import JSON
from . import given, obj, objects, require, without
from .parameters import Drop, Kind, hint, kinds, unsupported

RESPONSES = "responses"  # the dialect whose requests have such tools
INPUT = "input"  # the one parameter of a function that stands for a custom tool


def with_functions(request: InferRequest, dialect: str, drop: Drop) -> InferRequest:
    """Return the request for a vendor of *dialect*; add to *drop*, or raise RequestError."""
    if request.native is None or request.native.dialect != RESPONSES:
        return request
    params = dict(request.params)
    if "item_reference" in params:
        unsupported("item_reference", dialect, drop)
    if params.get("top_logprobs"):  # they are in no answer but the vendor's own
        unsupported("logprobs", dialect, drop)
    params.pop("top_logprobs", None)
    if dialect == "openai":  # what chat completions store is never read again
        for name in ("store", "metadata"):
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


def _function(tool: JSON, dialect: str, drop: Drop) -> JSON | None:
    """Return a tool as a function; None if it is left out."""
    kind = require(tool.get("type"), "tools[].type", str)
    if kind == "function":
        return tool
    if kind == "custom":
        return {"type": "function", "function": _of_custom(obj(tool.get("custom")))}
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
    own = choice.get("function") if isinstance(choice, dict) else None
    lost = isinstance(own, dict) and own.get("name") not in names
    if choice is not None and (lost or not names):
        hint("tool_choice", drop)
        return None
    return choice


def _of_custom(custom: JSON) -> JSON:
    form = obj(custom.get("format"))
    grammar = obj(form.get("grammar"))
    about = [str(custom["description"])] if custom.get("description") else []
    if grammar:
        syntax, definition = grammar.get("syntax"), grammar.get("definition")
        about.append(f"The input must match this {syntax} grammar:\n{definition}")
    whole = {"type": "string", "description": "The whole input, as it is."}
    return {
        "name": custom.get("name"),
        **({"description": "\n\n".join(about)} if about else {}),
        "parameters": {
            "type": "object",
            "properties": {INPUT: whole},
            "required": [INPUT],
            "additionalProperties": False,
        },
    }


def _chosen(choice: JSON, tools: list[JSON], dialect: str) -> tuple[list[JSON], Any]:
    """Return the tools that may be called, and the choice among them."""
    names = {tool["function"].get("name") for tool in tools}
    kind = choice.get("type")
    if kind == "allowed_tools":
        allowed = obj(choice.get(kind))
        wanted = {_name(tool) for tool in objects(allowed.get("tools"), "tool_choice.tools")}
        found = [tool for tool in tools if tool["function"].get("name") in wanted]
        return found, allowed.get("mode") or "auto"
    if kind not in ("function", "custom"):
        raise UnsupportedParameter(
            f"the {dialect} format has no tool of type {shown(kind)}", param="tool_choice"
        )
    name = _name(choice)
    if name not in names:
        raise must_be("tool_choice", "the name of a tool in tools")
    return tools, {"type": "function", "function": {"name": name}}


def _name(tool: JSON) -> str | None:
    name = obj(tool.get("function") or tool.get("custom")).get("name")
    return name if isinstance(name, str) else None


def _message(message: JSON) -> JSON:
    """Return a message with its calls of custom tools as calls of functions."""
    calls = message.get("tool_calls")
    if not calls or all(call.get("type") != "custom" for call in calls):
        return message
    return message | {"tool_calls": [_call(call) for call in calls]}


def _call(call: JSON) -> JSON:
    if call.get("type") != "custom":
        return call
    custom = obj(call.get("custom"))
    arguments = strict_json.dumps({INPUT: custom.get("input") or ""})
    function = {"name": custom.get("name"), "arguments": arguments}
    return {**without(call, "type", "custom"), "type": "function", "function": function}


def custom_input(arguments: str) -> str:
    """Return the input of a custom tool from the arguments of the function that stands for it."""
    try:
        value = strict_json.loads(arguments)
    except ValueError:
        return arguments  # as models sometimes write it
    found = value.get(INPUT) if isinstance(value, dict) else None
    return found if isinstance(found, str) else arguments
