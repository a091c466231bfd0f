"""Web search by the vendor: one tool, which each format names in its own way.

Where the target has none, it is left out or refused as the tool or parameter that it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..protocol import InferRequest
from ..types import JSON
from . import given, members, require, without
from .parameters import Drop, hint
from .tools import name_of

OPTIONS, GOOGLE = "web_search_options", "tools.googleSearch"  # params of two formats
LIMIT = "max_tool_calls"  # of Responses; Anthropic's is a member of the tool
# models that search at chat completions, and those of them that search only there
SEARCHERS = re.compile(r"gpt-.*search-(preview|api)|(perplexity/)?sonar|google/gemini-")
ONLY_CHAT = re.compile(r"gpt-.*search-(preview|api)")
_TYPE = re.compile(r"web_search(_preview)?(_20\d\d_\d\d_\d\d|_20\d{6})?")
_ANTHROPIC = re.compile(r"web_search_20\d{6}")
_PLACE = ("city", "country", "region", "timezone")


class Search(NamedTuple):
    """What a client asks of the search."""

    domains: JSON  # allowed_domains or blocked_domains
    location: JSON | None
    size: str | None = None
    uses: int | None = None  # at most
    own: JSON | None = None  # the tool, if its form is Anthropic's
    is_live: bool = True  # else only what the vendor has cached is searched
    alone: bool = True  # there are no other tools
    is_agents: bool = False  # Responses, whose agents send it unasked beside their functions


class Moved(NamedTuple):
    """A request without its search, and the search in the target's form, if that has one."""

    request: InferRequest
    tool: JSON | None = None
    forced: bool = False  # whether it must be called
    uses: int | None = None  # at most, if the tool does not say it

    def add(
        self, body: JSON, drop: Drop, choice: JSON | None = None, *, limits: bool = False
    ) -> None:
        """Add the search to the tools in *body*; *choice*: the tool_choice that names it.

        *limits*: the vendor knows LIMIT.
        """
        if self.tool is None:
            return
        body["tools"] = [*body.get("tools", ()), self.tool]
        if self.uses and limits:
            body[LIMIT] = self.uses
        elif self.uses:
            hint(LIMIT, drop)
        if self.forced and choice:
            body["tool_choice"] = choice
        elif self.forced:
            hint("tool_choice", drop)


def searches(params: Mapping[str, Any]) -> bool:
    tools = params.get("tools")
    for tool in tools if type(tools) is list else ():  # without calls: agents have many
        if type(tool) is dict and tool.get("type") != "function" and _is_search(tool):
            return True
    return params.get(OPTIONS) is not None or GOOGLE in params


def moved(request: InferRequest, write: Callable[[Search], JSON | None]) -> Moved:
    """Return a request without its web search, if *write* returns that in the target's form."""
    params = request.params
    if not searches(params):
        return Moved(request)
    listed = params.get("tools")
    listed = listed if isinstance(listed, list) else []
    tools = [tool for tool in listed if not _is_search(tool)]
    own = next(filter(_is_search, listed), None)
    search, choice = _found(params, own), params.get("tool_choice")
    if search is None or (tool := write(search._replace(alone=not tools))) is None:
        return Moved(request)
    kept = without(params, OPTIONS, GOOGLE, LIMIT) | {"tools": tools}
    forced = own is not None and _names(choice, own)
    if forced or not tools:
        forced = forced or choice == "required"
        kept = without(kept, "tool_choice", *(() if tools else ("tools", "parallel_tool_calls")))
    uses = None if "max_uses" in tool else search.uses
    return Moved(replace(request, params=kept), None if choice == "none" else tool, forced, uses)


def _is_search(tool: object) -> bool:
    kind = members(tool).get("type")
    return isinstance(kind, str) and _TYPE.fullmatch(kind) is not None


def _names(choice: object, tool: JSON) -> bool:
    named = name_of(choice)
    return _is_search(choice) or (named is not None and named == tool.get("name"))


def _found(params: Mapping[str, Any], tool: JSON | None) -> Search | None:
    if tool is not None:
        filters = members(tool.get("filters")) or tool
        blocked = filters.get("blocked_domains") or filters.get("excluded_domains")
        allowed = filters.get("allowed_domains")
        return Search(
            {"allowed_domains": allowed} if allowed else {"blocked_domains": blocked or None},
            _location(tool.get("user_location")),
            tool.get("search_context_size"),
            tool.get("max_uses") or params.get(LIMIT),
            tool if _ANTHROPIC.fullmatch(tool["type"]) else None,
            tool.get("external_web_access") is not False,
            is_agents=not _ANTHROPIC.fullmatch(tool["type"]),
        )
    if GOOGLE in params:
        settings = members(params[GOOGLE])
        return None if settings else Search({}, None)
    options = require(params[OPTIONS], OPTIONS, dict)
    place = members(options.get("user_location")).get("approximate")
    return Search({}, _location(place), options.get("search_context_size"))


def _location(value: object) -> JSON | None:
    place = {name: each for name, each in members(value).items() if name in _PLACE and each}
    return {"type": "approximate"} | place if place else None


# -- each format's --


def of_anthropic(search: Search, drop: Drop) -> JSON | None:
    """Return the tool; an agent's is left out: it costs, and not every organization has it."""
    if search.own is not None or not search.is_live or (search.is_agents and not search.alone):
        return search.own
    if search.size not in (None, "medium"):
        hint("search_context_size", drop)
    more = {"max_uses": search.uses, "user_location": search.location} | search.domains
    return {"type": "web_search_20250305", "name": "web_search"} | given(more)


def of_responses(search: Search, *, excludes: str) -> JSON:
    """Return the tool; *excludes* is the vendor's name of the filter of blocked domains."""
    renamed = {
        name.replace("blocked_domains", excludes): each for name, each in search.domains.items()
    }
    tool = {
        "filters": given(renamed) or None,
        "user_location": search.location,
        "search_context_size": search.size,
        "external_web_access": None if search.is_live else False,
    }
    return {"type": "web_search"} | given(tool)


def of_google(search: Search, drop: Drop) -> JSON | None:
    """Return the tool, which chooses no domains; Google takes it only alone."""
    if not search.alone or not search.is_live or given(search.domains):
        return None
    for name, value in (("user_location", search.location), ("search_context_size", search.size)):
        if value:
            hint(name, drop)
    return {"googleSearch": {}}


def of_chat(search: Search, model: str) -> JSON | None:
    """Return the options; only some models search at chat completions."""
    if not SEARCHERS.match(model) or not search.is_live or given(search.domains):
        return None
    place = search.location and {
        "type": "approximate",
        "approximate": without(search.location, "type"),
    }
    return given({"search_context_size": search.size, "user_location": place})
