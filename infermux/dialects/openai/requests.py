"""Translates requests of other dialects to OpenAI's chat completions.

Params that a model refuses are left out, whatever the client's dialect is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ...protocol import InferRequest, text_of
from ...types import JSON
from .. import fitting, given, obj, objects, only, strings, text, without
from ..parameters import Drop, Kind, hint, kinds, unsupported
from ..searches import OPTIONS, moved, of_chat
from ..tools import hoisted, leave_out, with_functions, without_lost
from . import NAME, PARAMETERS, is_neutral

_MARK = "cache_control"
_LEFT_OUT = frozenset({_MARK, "is_error", "citations"})  # of messages and parts
# listed for other formats, or for others' models
_OTHERS = frozenset(
    {"citations", "client_metadata", "is_error", "server_tools", "stream_options"}
    | {"min_p", "repetition_penalty", "top_a", "top_k", "typical_p"}
)
PARAMS = frozenset(
    name for names in PARAMETERS.values() for name in names if "." not in name
).difference(_OTHERS)
EXPRESSED = PARAMS | {
    "file.filename",
    "image_url.detail",
    "messages.name",
    "stream_options",
    "tools.strict",
}
_KNOWN = EXPRESSED | {"client_metadata", "prompt_cache_options"}  # to OpenAI's models
_EMBEDDING = frozenset({"input", "dimensions", "encoding_format", "user"})
_MESSAGE = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", "refusal"})
_PARTS = ("text", "image_url", "input_audio", "file", "refusal")
_TOOL = frozenset({"type", "function", "custom"})
_CALL = _TOOL | {"id"}
_TEXT = {"type", "text"}  # the members of a usual part
COMPLETION_TOKENS = re.compile(r"(ft:)?(gpt-([5-9]|\d\d)|o\d)")  # these models refuse max_tokens
_MISTRAL = re.compile(
    r"([\w.-]+/)?(open-)?(mistral|mixtral|magistral|codestral|ministral|pixtral|devstral)", re.I
)
_DEEPSEEK = re.compile(r"deepseek-[^/]*\Z")  # these refuse parts
# These models refuse a tool turn without its reasoning.
KEEPS_REASONING = re.compile(r"deepseek|kimi|glm|minimax|qwen", re.I)
_THINKS = re.compile(r"deepseek-v\d|kimi-k", re.I)  # unless told not to
# Params that models refuse; _SAMPLING has the values that OpenAI's accept.
_SAMPLING = {"temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}
_TAKES_NONE = (
    (re.compile(r"(ft:)?(gpt-[34]|chatgpt-)"), {"reasoning_effort", "verbosity"}),
    (re.compile(r"(ft:)?(o\d|gpt-5(-(mini|nano|pro|codex)\b|-20|$))"), {*_SAMPLING, "prediction"}),
    (re.compile(r"o\d"), {"parallel_tool_calls", "verbosity"}),
    (re.compile(r"grok-([4-9]|3-mini|code)"), {"presence_penalty", "frequency_penalty"}),
    (re.compile(r"grok-(2|3(?!-mini)|4(?!\.[3-9])|code)(?!.*multi)"), {"reasoning_effort"}),
    (re.compile(r"kimi-k2\.[5-9]"), {*_SAMPLING}),
    (re.compile(r"(open-|mistral-large|mixtral|(code|mini|pix|dev)stral)"), {"reasoning_effort"}),
)
# These models take params of sampling only if they do not reason, as those of the group do unasked.
_REASONS = re.compile(r"(?:ft:)?gpt-(?:5\.[1-4]|(5\.\d|[6-9]|\d\d))(?!.*-chat)")
_REFUSABLE = frozenset[str]().union(*(names for _, names in _TAKES_NONE))
_NO_EFFORT_WITH_TOOLS = re.compile(r"(ft:)?gpt-(5\.([4-9]|\d\d)|[6-9]|\d\d)")  # except "none"
_STOPLESS = re.compile(r"(ft:)?(gpt-([5-9]|\d\d)(?!.*-chat)|o3(?!-mini)|o4)")  # refuse `stop`
# Efforts in rising order, and those of models that do not accept all of them.
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh")
_SOME_EFFORTS = (
    (re.compile(r"o\d"), _EFFORTS[2:5]),
    (re.compile(r"gpt-5\.1"), ("none", *_EFFORTS[2:5])),
    (re.compile(r"gpt-5(?!\.)"), _EFFORTS[1:5]),
    (re.compile(r"gpt-(6-astra|6\.1-sol|[7-9]|\d\d)"), _EFFORTS[2:]),
    (re.compile(r"gpt-"), ("none", *_EFFORTS[2:])),
    (_MISTRAL, ("none", "high")),
    (re.compile(r"grok-4\.[6-9]"), _EFFORTS[2:]),
    (re.compile(r"grok-"), _EFFORTS[2:5]),
)
_OPENAI = re.compile(r"(ft:)?(gpt-(?!oss)|o\d|chatgpt-)")
_PLAIN = ("groq", "cerebras")  # providers that refuse foreign members as OpenAI does
_FOREIGN = ("reasoning", "reasoning_content", "reasoning_details", "extra_content")  # of messages
_STRANGE = {*_FOREIGN, _MARK, "images"}
LIMITS = ("max_tokens", "max_completion_tokens")
NAMES = ("user", "safety_identifier", "prompt_cache_key")  # params with a limited length


def limit_name(name: str, model: str) -> str:
    """Return the name by which a model knows a limit of the output, one of LIMITS."""
    if COMPLETION_TOKENS.match(model):
        return LIMITS[1]
    # DeepSeek ignores the newer name, Mistral refuses it
    return LIMITS[0] if _DEEPSEEK.match(model) or _MISTRAL.match(model) else name


def refused(params: Mapping[str, Any], model: str, *, chat: bool = True) -> list[str]:
    """Return the names of the params that the model refuses: hints and preferences.

    *chat*: at chat completions, where some refuse more.
    """
    if _REFUSABLE.isdisjoint(params):
        return []
    found = {name for pattern, names in _TAKES_NONE if pattern.match(model) for name in names}
    if reasons := _REASONS.match(model):
        effort = params.get("reasoning_effort") or ("medium" if reasons[1] else "none")
        found |= _SAMPLING.keys() if nearest_effort(effort, model) != "none" else set()
    if chat and params.get("tools") and params.get("reasoning_effort") != "none":
        found |= {"reasoning_effort"} if _NO_EFFORT_WITH_TOOLS.match(model) else set()
    # xAI refuses penalties of 0, too, and Moonshot usual values
    usual: Mapping[str, Any] = {} if model.startswith(("grok-", "kimi-")) else _SAMPLING
    return [
        name for name in params if name in found and params[name] not in (None, usual.get(name))
    ]


def unknown(params: Mapping[str, Any], model: str, drop: Drop) -> list[str]:
    """Return the params of others' models that may be left out; add them to *drop*."""
    if params.keys() <= _KNOWN or not _OPENAI.match(model):
        return []
    left = []
    for name in params.keys() - _KNOWN:
        kind = kinds().get(name)
        if kind is Kind.HINT or (kind is Kind.PREFERENCE and drop.lenient):
            left.append(name)
            if not is_neutral(name, params[name]):
                unsupported(name, NAME, drop)
    return left


def translated(request: InferRequest, drop: Drop) -> JSON:
    """Return the body, which is still to be `fitted`; add to *drop* what is left out.

    Raise RequestError for what must not be.
    """
    search = moved(request, lambda found: of_chat(found, request.model))
    request = with_functions(asking(search.request, drop), NAME, drop)
    body: JSON = {"model": request.model, "messages": _messages(request, drop)}
    for name, value in given(request.params).items():
        if name == "tools":
            tools = (_tool(tool, drop) for tool in objects(value, "tools"))
            body["tools"] = [tool for tool in tools if tool]
        elif name == "reasoning_effort":
            body[name] = nearest_effort(value, request.model)
        elif name == "stop" and _OPENAI.match(request.model):  # `calls` ends the answer at others
            if not _STOPLESS.match(request.model):
                body[name] = value[:4] if isinstance(value, list) else value
        elif name in PARAMS:
            body[name] = value
        elif name != "stream_options" and not is_neutral(name, value):
            unsupported(name, NAME, drop)
    if len(body.get("tools", ())) < len(request.params.get("tools") or ()):  # some were left out
        names = [tool[tool["type"]].get("name") for tool in body["tools"]]
        body["tool_choice"] = without_lost(body.get("tool_choice"), names, drop)
        body = given(without(body, *(() if names else ("tools", "parallel_tool_calls"))))
    if search.tool is not None:
        body[OPTIONS] = search.tool
        if search.forced:
            hint("tool_choice", drop)
    return body


def asking(request: InferRequest, drop: Drop) -> InferRequest:
    """Return a request for JSON that OpenAI takes: of a schema it wants an object's.

    It refuses json_object unless a message says the word.
    """

    def takes(schema: JSON | None) -> bool:
        if schema is None:
            return any("json" in text_of(one.get("content")).lower() for one in request.messages)
        return (fitting.is_object(schema) and "type" in schema) or not _OPENAI.match(request.model)

    return fitting.instructed(request, drop, takes, keeps="json_object")


def embedding(request: InferRequest, drop: Drop) -> JSON:
    """Return the body for embeddings; raise RequestError for what must not be left out."""
    params = given(request.params)
    for name in params.keys() - _EMBEDDING:
        unsupported(name, NAME, drop)
    strings(params.get("input"), "input")
    return {"model": request.model} | only(params, _EMBEDDING)


def nearest_effort(effort: object, model: str) -> object:
    """Return the effort nearest to *effort* that the model accepts; of two, the one that thinks."""
    taken = next((efforts for pattern, efforts in _SOME_EFFORTS if pattern.match(model)), _EFFORTS)
    if effort in taken or effort not in _EFFORTS:
        return effort
    place = _EFFORTS.index(effort)
    return min(taken, key=lambda each: (abs(_EFFORTS.index(each) - place), each == "none"))


def fitted_name(name: str, model: str) -> str:
    """Return the name of a user, or of a cache, as the model's vendor takes it."""
    if model.startswith("deepseek"):
        return fitting.user(name, fitting.DEEPSEEK_USER)
    return fitting.user(name, fitting.OPENAI_USER if _OPENAI.match(model) else fitting.ANY_USER)


def fitted_names(body: Mapping[str, Any], model: str, cache_key: str = "") -> JSON:
    """Return the names in a body that the model's vendor would refuse, fitted.

    With *cache_key* OpenAI is asked to cache the prompt, unless the body has a key of its own.
    """
    is_openais = _OPENAI.match(model)
    new: JSON = {}
    for name in NAMES if is_openais else NAMES[:1]:
        value = body.get(name)
        if type(value) is str and (fits := fitted_name(value, model)) != value:
            new[name] = fits
    if is_openais and cache_key and not body.get("prompt_cache_key"):
        new["prompt_cache_key"] = cache_key
    return new


def fitted(body: Mapping[str, Any], request: InferRequest, drop: Drop) -> JSON:
    """Return the members of a body in this dialect that the model's vendor would refuse, fitted.

    Such are ids of tool calls and names that are too long and, at OpenAI, Mistral and others,
    thoughts and cache marks and images in a tool's result.
    """
    model, plain = request.model, request.provider in _PLAIN
    new = fitted_names(body, model, request.cache_key)
    messages, mistrals = body.get("messages"), _MISTRAL.match(model)
    if not isinstance(messages, list):
        return new
    fits = [*map(_recalling, messages)] if _THINKS.search(model) and not plain else messages
    taken = fitting.MISTRAL_CALL_ID if mistrals else fitting.OPENAI_CALL_ID
    strict = bool(plain or mistrals or _OPENAI.match(model))
    tools = body.get("tools") if strict else None
    if isinstance(tools, list) and _are_marked(tools):
        new["tools"] = [_unmarked(tool, drop) for tool in tools]
    if _needs_fitting(fits, taken, strict=strict):
        if strict:
            fits = hoisted((_native(message, drop) for message in fits), results=True)
        fits = [fitting.with_call_ids(message, taken) for message in fits]
    fits = _accepted(fits, model)
    return new if fits == messages else new | {"messages": fits}


def _needs_fitting(messages: list[JSON], taken: re.Pattern[str], *, strict: bool) -> bool:
    """Whether a message has an id that *taken* does not match, or what *strict* refuses.

    One loop without calls, as a request may have hundreds of messages.
    """
    fits = taken.fullmatch
    for message in messages:
        calls, ident = message.get("tool_calls"), message.get("tool_call_id")
        if calls:
            for call in calls:
                own = call.get("id")
                if own and type(own) is str and not fits(own):
                    return True
                if strict and "extra_content" in call:
                    return True
        if ident and type(ident) is str and not fits(ident):
            return True
        if not strict:
            continue
        if not _STRANGE.isdisjoint(message):
            return True
        content = message.get("content")
        if type(content) is list:
            if _are_marked(content):
                return True
            if message["role"] == "tool" and any(part.get("type") != "text" for part in content):
                return True
    return False


def _are_marked(holders: list[JSON]) -> bool:
    return any(_MARK in holder for holder in holders)


def _unmarked(holder: JSON, drop: Drop) -> JSON:
    if _MARK not in holder:
        return holder
    hint(_MARK, drop)
    return without(holder, _MARK)


def _native(message: JSON, drop: Drop) -> JSON:
    new = _unmarked(without(message, *_FOREIGN), drop)
    if type(parts := new.get("content")) is list:
        new["content"] = [_unmarked(part, drop) for part in parts]
    if new.get("tool_calls"):
        new["tool_calls"] = [without(call, "extra_content") for call in new["tool_calls"]]
    return new


def _messages(request: InferRequest, drop: Drop) -> list[JSON]:
    keep = _MESSAGE
    if KEEPS_REASONING.search(request.model):
        keep = keep | {"reasoning_content"}
    messages: list[JSON] = []
    hoists = False
    for number, message in enumerate(request.messages):
        content = message.get("content")
        if len(message) == 2 and type(content) is str:  # a role and its text: the usual one
            messages.append(message)
            continue
        new = message if keep.issuperset(message) else only(message, keep)
        if new is not message:
            hints(message, drop)
        if isinstance(content, list):
            place, hoists = f"messages[{number}]", hoists or message.get("role") == "tool"
            parts = (_part(each, place, drop) for each in content)
            new = new | {"content": [part for part in parts if part] or ""}
        if (calls := new.get("tool_calls")) and not all(map(_CALL.issuperset, calls)):
            new = new | {"tool_calls": [only(call, _CALL) for call in calls]}
        messages.append(new)
    if keep is not _MESSAGE:
        messages = [*map(_recalling, messages)]
    return hoisted(messages, results=True) if hoists else messages


def _accepted(messages: list[JSON], model: str) -> list[JSON]:
    """Return messages in the form that DeepSeek's and Mistral's models accept.

    DeepSeek's take no parts. At Mistral's, no user follows a tool and no system message the
    assistant; a last message of the assistant is marked as a prefix.
    """
    if _DEEPSEEK.match(model):
        return [*map(_with_one_text, messages)]
    if not _MISTRAL.match(model):
        return messages
    found: list[JSON] = []
    before = ""
    for message in messages:
        if before in ("assistant", "tool") and message["role"] in ("system", "developer"):
            message = message | {"role": "user"}
        if before == "tool" and message["role"] == "user":
            found.append({"role": "assistant", "content": "OK."})
        found.append(message)
        before = message["role"]
    if before == "assistant" and not found[-1].get("tool_calls") and "/" not in model:
        found[-1] = found[-1] | {"prefix": True}
    return found


def _with_one_text(message: JSON) -> JSON:
    """Return a message with its parts as one text, if all are texts."""
    parts = message.get("content")
    if not isinstance(parts, list) or any(part.get("type") != "text" for part in parts):
        return message
    return message | {"content": "\n\n".join([part["text"] for part in parts])}


def _recalling(message: JSON) -> JSON:
    """Return a message whose calls have a thought, which other vendors may not tell."""
    lacks = message.get("tool_calls") and not message.get("reasoning_content")
    return message | {"reasoning_content": " "} if lacks else message


def _part(part: JSON, place: str, drop: Drop) -> JSON | None:
    if part.keys() == _TEXT and part["type"] == "text":
        return part
    kind = text(part.get("type"))
    hints(part, drop)
    if kind not in _PARTS or (kind == "file" and "file_url" in obj(part.get("file"))):
        unsupported(f"{place}.content.{kind}", NAME, drop)
        return None
    return {"type": kind, kind: named(part[kind]) if kind == "file" else part.get(kind)}


def named(file: Any) -> JSON:
    """Return a file with a name, which OpenAI wants beside data."""
    return {"filename": "document.pdf"} | obj(file) if obj(file).get("file_data") else obj(file)


def _tool(tool: JSON, drop: Drop) -> JSON | None:
    if tool.get("type") not in ("function", "custom"):
        leave_out(tool, NAME, drop)
        return None
    new, function = tool, obj(tool.get("function") or {})
    if not _TOOL.issuperset(tool):
        new = only(tool, _TOOL)
        for name in tool:
            if name not in new:
                hint(f"tools.{name}", drop)
    schema = function.get("parameters")
    if schema is not None and (fits := fitting.parameters(schema)) is not schema:
        new = new | {"function": function | {"parameters": fits}}
    return new


def hints(holder: JSON, drop: Drop) -> None:
    for name in _LEFT_OUT.intersection(holder):
        if holder[name]:
            hint(name, drop)
