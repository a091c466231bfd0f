"""Reads requests of our Responses API; writes its answers and errors.

`items` reads the input, `stream` writes event streams.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence

from ...errors import InferMuxError, UnsupportedParameter
from ...protocol import InferRequest, Native, must_be
from ...protocol.strict_json import Document
from ...types import JSON, Usage
from .. import fitting, given, obj, objects, require, tier_of, without
from ..citations import URL
from ..gemini.requests import FORMAT as GOOGLES
from ..openai import downstream as openai
from . import DRAWN, NAME
from .events import CALLS
from .items import ADDED, Items, all_added_tools, string
from .reasoning import FORMAT, pack

_STATE = ("prompt", "previous_response_id", "conversation")  # with which there need be no input
_TYPES: Mapping[str, type] = {  # of params that keep their names
    "background": bool,
    "client_metadata": dict,
    "include": list,
    "max_tool_calls": int,
    "metadata": dict,
    "parallel_tool_calls": bool,
    "previous_response_id": str,
    "prompt_cache_key": str,
    "safety_identifier": str,
    "service_tier": str,
    "store": bool,
    "temperature": float,
    "top_logprobs": int,
    "top_p": float,
    "truncation": str,
    "user": str,
}


# -- requests --


def decode_request(document: Document) -> tuple[InferRequest, bool]:
    """Return the request, and whether it asks for a stream; raise RequestError if invalid."""
    body = given(document.value)
    model = require(body.pop("model", None), "model", str)
    stream = require(body.pop("stream", False), "stream", bool)
    require(body.pop("stream_options", {}), "stream_options", dict)
    items = Items()
    if "instructions" in body:
        words = require(body.pop("instructions"), "instructions", str)
        items.message({"role": "system", "content": words}, "instructions")
    said = require(body.pop("input", []), "input", str, list)
    if isinstance(said, str):
        items.message({"role": "user", "content": said}, "input")
    else:
        for number, item in enumerate(objects(said, "input")):
            items.add(item, f"input[{number}]")
    items.end()
    if items.tools:
        own = objects(body.get("tools", []), "tools")
        names = {str(tool.get("name")) for tool in own}
        body["tools"] = own + [tool for tool in items.tools if str(tool.get("name")) not in names]
    if not said and not any(name in body for name in _STATE):
        raise must_be("input", "a string or a list of at least one item")
    messages = items.messages or [{"role": "user", "content": ""}]  # the vendor has the others
    params = _params(body) | items.params
    return InferRequest(model, messages, params=params, native=Native(NAME, document)), stream


# -- parameters --


def _params(body: JSON) -> JSON:
    """Return the body's params in the form of chat completions; *body* has no nulls."""
    for name, kind in _TYPES.items():
        if name in body:
            require(body[name], name, kind)
    params = without(body, "max_output_tokens", "text", "reasoning", "tools", "tool_choice")
    if "max_output_tokens" in body:
        params["max_tokens"] = require(body["max_output_tokens"], "max_output_tokens", int)
    for name, value in given(require(body.get("reasoning", {}), "reasoning", dict)).items():
        params[_REASONING.get(name, f"reasoning.{name}")] = require(value, f"reasoning.{name}", str)
    for name, value in given(require(body.get("text", {}), "text", dict)).items():
        if name == "format":
            params |= _format(require(value, "text.format", dict))
        else:
            params["verbosity" if name == "verbosity" else f"text.{name}"] = value
    if "tools" in body:
        tools = enumerate(objects(body["tools"], "tools"))
        params["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in tools]
    if "tool_choice" in body:
        choice = require(body["tool_choice"], "tool_choice", str, dict)
        if isinstance(choice, str) and choice not in ("auto", "none", "required"):
            raise must_be("tool_choice", "auto, none, required or an object")
        params["tool_choice"] = choice if isinstance(choice, str) else _choice(choice)
    return params


_REASONING = {
    "effort": "reasoning_effort",
    "summary": "reasoning_summary",
    "generate_summary": "reasoning_summary",
}


def _format(form: JSON) -> JSON:
    kind = string(form, "type", "text.format")
    if kind == "text":
        return {}
    if kind == "json_object":
        return {"response_format": {"type": kind}}
    if kind != "json_schema":
        raise must_be("text.format.type", "text, json_schema or json_object")
    string(form, "name", "text.format")
    require(form.get("schema"), "text.format.schema", dict)
    return {"response_format": {"type": kind, kind: given(without(form, "type"))}}


def _tool(tool: JSON, place: str) -> JSON:
    kind = string(tool, "type", place)
    if kind not in ("function", "custom"):
        return tool
    string(tool, "name", place)
    names = ("name", "description", *_OF_TOOL[kind])
    inner = given({name: tool.get(name) for name in names})
    form = require(inner.get("format", {}), f"{place}.format", dict)
    if form.get("type") == "grammar":
        inner["format"] = {"type": "grammar", "grammar": without(form, "type")}
    require(inner.get("parameters", {}), f"{place}.parameters", dict)
    return {"type": kind, kind: inner}


_OF_TOOL = {"function": ("parameters", "strict"), "custom": ("format",)}


def _choice(choice: JSON) -> JSON:
    kind = string(choice, "type", "tool_choice")
    if kind in ("function", "custom"):
        return {"type": kind, kind: {"name": string(choice, "name", "tool_choice")}}
    if kind != "allowed_tools":
        return choice
    mode = choice.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise must_be("tool_choice.mode", "auto or required")
    tools = objects(choice.get("tools"), "tool_choice.tools")
    return {"type": kind, kind: {"mode": mode, "tools": [_choice(tool) for tool in tools]}}


# -- answers --


class Answer:
    """The answer to one request: its settings, its items' ids, and the names of custom tools."""

    def __init__(self, request: InferRequest, *, ident: str, created: int, model: str) -> None:
        asked = request.body_in(NAME)
        self._asked: JSON = {} if asked is None else asked.value
        self._ident, self._created, self.model = ident, created, model
        tools = list(self._asked.get("tools") or ())
        if asked is not None and f'"{ADDED}"' in asked.text:
            tools += all_added_tools(self._asked.get("input"))
        self.custom = {tool.get("name") for tool in tools if tool.get("type") == "custom"}
        self._spaces = {str(one.get("name")): one.get("namespace") for one in reversed(tools)}

    def ident(self, kind: str, number: int) -> str:
        return f"{_PREFIXES[kind]}_{self._ident.rpartition('_')[2]}{number:04x}"

    def envelope(
        self,
        status: str,
        output: Sequence[JSON] = (),
        usage: Usage | None = None,
        *,
        reason: str | None = None,
        error: JSON | None = None,
    ) -> JSON:
        """Return the response object; *reason*: why it is incomplete."""
        asked = self._asked
        return {
            "id": self._ident,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "background": False,
            "completed_at": int(time.time()) if status == "completed" else None,
            "error": error,
            "incomplete_details": {"reason": reason} if reason else None,
            **{name: asked.get(name) for name in _ECHOED},
            "model": self.model,
            "output": list(output),
            **(_DEFAULTS | given({name: asked.get(name) for name in _DEFAULTS})),
            "reasoning": {"effort": None, "summary": None} | obj(asked.get("reasoning")),
            "service_tier": tier_of(usage, "default", _TIERS) or "default",
            "store": False,  # here no answer is stored
            "text": {"format": {"type": "text"}, "verbosity": "medium"}
            | given(obj(asked.get("text"))),
            "usage": None if usage is None else encode_usage(usage),
        }

    # the items

    def reasoning(self, number: int, parts: Iterable[str] = (), encrypted: str = "") -> JSON:
        item = {
            "id": self.ident("reasoning", number),
            "type": "reasoning",
            "summary": [SUMMARY | {"text": part} for part in parts],
        }
        return item | ({"encrypted_content": encrypted} if encrypted else {})

    def message(self, number: int, parts: Sequence[JSON], status: str) -> JSON:
        return {
            "id": self.ident("message", number),
            "type": "message",
            "status": status,
            "content": list(parts),
            "role": "assistant",
        }

    def call(self, number: int, call: JSON, words: str, status: str) -> JSON:
        """Return the item of a tool call with these arguments, or this input."""
        name = called(call).get("name") or ""
        kind = "custom_tool_call" if self.is_custom(call) else "function_call"
        return {
            "id": self.ident(kind, number),
            "type": kind,
            "status": status,
            CALLS[kind][1]: words,
            "call_id": call.get("id") or f"call_{self.ident(kind, number)}",
            "name": name,
            **({"namespace": space} if (space := self._spaces.get(name)) else {}),
        }

    def shortened(self, call: JSON) -> tuple[JSON, list[JSON]]:
        """Return a call, and the detail with its signature if its id, of a custom tool, is long.

        Codex takes up to 256 bytes.
        """
        google, taken = obj(obj(call.get("extra_content")).get("google")), fitting.RESPONSES_CALL_ID
        data, ident = google.get("thought_signature"), call.get("id") or ""
        if not data or taken.fullmatch(ident) or not self.is_custom(call):
            return call, []
        ident = fitting.call_id(ident, taken)
        kind = {"type": "reasoning.encrypted", "format": GOOGLES}
        return call | {"id": ident}, [kind | {"id": ident, "index": ident, "data": data}]

    def image(self, number: int, media: str = "", data: str = "") -> JSON:
        """Return the item of an image that the model drew; without *data*, as it begins."""
        item = {"id": self.ident(DRAWN, number), "type": DRAWN, "status": "in_progress"}
        if not data:
            return item | {"result": None}
        form = media.removeprefix("image/")
        return item | {"status": "completed", "output_format": form, "result": data}

    def is_custom(self, call: JSON) -> bool:
        """Whether the client knows the called tool as a custom one."""
        return call.get("type") == "custom" or called(call).get("name") in self.custom


SUMMARY: JSON = {"type": "summary_text", "text": ""}
NO_ARGUMENTS = "{}"
_PREFIXES = {
    "reasoning": "rs",
    "message": "msg",
    "function_call": "fc",
    "custom_tool_call": "ctc",
    DRAWN: "ig",
}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "user",
)
_TIERS = ("flex", "scale", "priority", "fast", "ultrafast")
_DEFAULTS: JSON = {
    "frequency_penalty": 0.0,
    "metadata": {},
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "temperature": 1.0,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "top_p": 1.0,
    "truncation": "disabled",
}


def called(call: JSON) -> JSON:
    return obj(call.get("function") or call.get("custom"))


def annotation_of(annotation: JSON, shift: int) -> JSON:
    """Return a citation in this format, of a text before which *shift* characters were said."""
    said = without(annotation[URL], "content")
    places = {name: said[name] - shift for name in ("start_index", "end_index")}
    return {"type": URL, **said, **places}


def is_late(detail: JSON) -> bool:
    """Whether a detail comes after the text: Google signs that at its end."""
    return detail.get("type") == "reasoning.encrypted" and detail.get("format") == GOOGLES


def sealed(details: Sequence[JSON], words: str) -> str:
    """Return the encrypted content for *details*: a Responses vendor's own, or a pack."""
    own = [one for one in details if one.get("format") == FORMAT]
    data = [one.get("data") for one in own if one.get("type") == "reasoning.encrypted"]
    if len(own) == len(details) and len(data) == 1 and isinstance(data[0], str):
        return data[0]
    return pack(details, words)


def encode_usage(usage: Usage) -> JSON:
    """Return a usage object; unknown counts are 0."""
    chat = openai.encode_usage(usage)
    return {
        "input_tokens": chat["prompt_tokens"],
        "input_tokens_details": {"cache_write_tokens": 0} | chat["prompt_tokens_details"],
        "output_tokens": chat["completion_tokens"],
        "output_tokens_details": chat["completion_tokens_details"],
        "total_tokens": chat["total_tokens"],
    }


# -- errors --


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object, as OpenAI's SDKs expect it."""
    found = openai.encode_error(error)
    if isinstance(error, UnsupportedParameter) and error.param in _STORED:
        found["error"]["code"] = _NOT_FOUND
        found["error"]["message"] += _SEND_ITEMS
    elif found["error"]["code"] == _NOT_FOUND and error.native_in(NAME):
        found["error"]["message"] += _INSTEAD
    return found


_NOT_FOUND = "previous_response_not_found"
_INSTEAD = " Instead, send the items of the conversation."
_SEND_ITEMS = (
    ": nothing is stored here; send the items of the conversation, as clients do that set store to "
    "false"
)
_STORED = ("previous_response_id", "conversation", "item_reference")
