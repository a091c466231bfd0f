"""Translates requests of other dialects to Google's generateContent and embedContent.

Google's own parameters keep their names, which are in camel case.
"""

from __future__ import annotations

import mimetypes
import re
from operator import itemgetter
from typing import Any

from ...errors import RequestError, shown
from ...protocol import InferRequest, check_message, must_be, strict_json
from ...types import JSON
from .. import BEGIN, fitting, given, listed, members, objects, require, strings, without
from ..citations import data_uri
from ..openai import is_neutral
from ..parameters import Drop, hint, unsupported
from ..searches import OPTIONS, moved, of_google
from ..tools import arguments_of, leave_out, with_functions, without_lost
from . import NAME, PARAMETERS
from .call_ids import unsealed

FORMAT = "google-gemini-v1"  # of reasoning details that Google signed
OWN_ID = re.compile(r"call_\d+_[0-9a-f]{16}")  # ids that InferMux made for calls without one
# Google's marker for calls of other vendors: it accepts them without a signature of its own.
SKIP = "skip_thought_signature_validator"
_SIGNED = re.compile(r"gemini-([3-9]|[1-9]\d|\w+(-\w+)?-latest)")  # refuse unsigned calls
_ONE_OF_BOTH = re.compile(r"gemini-[12]\b")  # refuse tools together with an answer in JSON
_NO_PENALTY = re.compile(rf"gemini-2\.5|{_SIGNED.pattern}")
_PENALTIES = ("presence_penalty", "frequency_penalty")
_RESULT_MEDIA = re.compile("image/(png|jpeg|webp)|application/pdf|text/plain")  # within results
# Thinking budgets in tokens by effort, as in Google's OpenAI-compatible API; every thinking model
# accepts the largest.
BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}

_MIME = mimetypes.MimeTypes()  # Python's own table, independent of the host's files
_TOP = frozenset({"safetySettings", "cachedContent", "toolConfig", "labels", "serviceTier"})
SCALARS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("topP", float),
    "presence_penalty": ("presencePenalty", float),
    "frequency_penalty": ("frequencyPenalty", float),
    "max_completion_tokens": ("maxOutputTokens", int),
    "max_tokens": ("maxOutputTokens", int),
    "seed": ("seed", int),
    "top_k": ("topK", int),
}
# Params that this format has only with a neutral value, and their types.
_TYPES: dict[str, type] = {
    "n": int,
    "parallel_tool_calls": bool,
    "modalities": list,
    "store": bool,
    "service_tier": str,
    "logprobs": bool,
    "top_logprobs": int,
}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_EMBEDDING = ("outputDimensionality", "taskType", "title")
EXPRESSED = (
    SCALARS.keys()
    | _TOP
    | {name for names in PARAMETERS.values() for name in names}
    | {
        "is_error",
        "messages.annotations",
        "reasoning_effort",
        "response_format",
        "stop",
        "stream_options",
        "tool_choice",
        "tools",
        OPTIONS,
    }
) - {"candidateCount", "title"}
_MEMBERS = {
    *("role", "content", "tool_calls", "tool_call_id", "is_error", "refusal"),
    *("annotations", "images", "cache_control"),
    *("reasoning", "reasoning_content", "reasoning_details"),
    "extra_content",  # of a call, repeated beside it
}


def model_of(request: InferRequest) -> str:
    return request.model.removeprefix("models/")


def wants_signatures(model: str) -> bool:
    """Whether a model refuses a tool call without a signature: from Gemini 3 on."""
    return _SIGNED.match(model) is not None


# -- parameters --


def embedding(request: InferRequest, drop: Drop) -> JSON:
    """Return the body for embedContent, or batchEmbedContents for a list; raise RequestError."""
    params = given(request.params)
    wanted, form = params.pop("input", None), params.pop("encoding_format", "float")
    if form not in ("float", "base64"):
        raise must_be("encoding_format", "'float' or 'base64'")
    options: JSON = {}
    if "dimensions" in params:
        options["outputDimensionality"] = require(params.pop("dimensions"), "dimensions", int)
    for name, value in params.items():
        if name in _EMBEDDING:
            options[name] = value
        else:
            unsupported(name, NAME, drop)
    texts = strings(wanted, "input")
    if not texts:
        raise RequestError("input must not be empty", param="input")
    bodies = [{"content": {"parts": [{"text": one}]}} | options for one in texts]
    if isinstance(wanted, str):
        return bodies[0]
    model = {"model": f"models/{model_of(request)}"}
    return {"requests": [model | body for body in bodies]}


def translated(request: InferRequest, drop: Drop, key: bytes | None = None) -> JSON:
    """Return the body; add to *drop* what is left out, or raise RequestError if it must not be.

    *key* seals the ids of tool calls.
    """
    acts = bool(request.params.get("tools") or request.params.get(OPTIONS))
    if acts and _ONE_OF_BOTH.match(model_of(request)):
        request = fitting.instructed(request, drop, lambda schema: False)
    search = moved(request, lambda found: of_google(found, drop))
    request = with_functions(search.request, NAME, drop)
    talk = _Conversation(drop, key, signs=wants_signatures(model_of(request)))
    for number, message in enumerate(request.messages):
        talk.add(message, f"messages[{number}]")
    if not talk.contents or talk.contents[0]["role"] == "model":
        talk.contents.insert(0, {"role": "user", "parts": [{"text": BEGIN}]})
    system = {"systemInstruction": {"parts": talk.system}} if talk.system else {}
    body: JSON = {"contents": talk.contents} | system
    config: JSON = {}
    params = given(request.params)
    for name in _PENALTIES if _NO_PENALTY.match(model_of(request)) else ():
        if params.pop(name, 0):
            hint(name, drop)
    for name in sorted(params, reverse=True):  # so that max_completion_tokens wins over max_tokens
        _parameter(name, params[name], body, config, drop)
    choice, tools = params.get("tool_choice"), body.get("tools", ())
    declared = [one for tool in tools for one in listed(tool.get("functionDeclarations"))]
    names = [one.get("name") for one in declared]  # Google takes no choice without functions
    if choice is not None and params.get("tools") and without_lost(choice, names, drop) is None:
        body["toolConfig"].pop("functionCallingConfig")
        body = body if body["toolConfig"] else without(body, "toolConfig")
    if config.get("thinkingConfig") == {"thinkingBudget": 0}:  # which the Pros and Gemini 3 refuse
        budget = {"thinkingBudget": 128 if "-pro" in request.model else 0}
        config["thinkingConfig"] = {"thinkingLevel": "LOW"} if talk.signs else budget
    search.add(body, drop)
    # Google's own params win over translated ones.
    config |= require(params.get("generationConfig", {}), "generationConfig", dict)
    if "thinkingConfig" in params:
        place, known = "generationConfig.thinkingConfig", config.get("thinkingConfig", {})
        own = require(params["thinkingConfig"], "thinkingConfig", dict)
        config["thinkingConfig"] = require(known, place, dict) | own
    if config.get("candidateCount", 1) != 1:
        del config["candidateCount"]
        unsupported("candidateCount", NAME, drop)
    return body | ({"generationConfig": config} if config else {})


def _parameter(name: str, value: Any, body: JSON, config: JSON, drop: Drop) -> None:
    if name in ("stream_options", "generationConfig", "thinkingConfig"):
        return  # every stream has usage anyway, and the others are added last
    if name in _TYPES:
        require(value, name, _TYPES[name])
    if name in SCALARS:
        own, kind = SCALARS[name]
        config[own] = require(value, name, kind)
        if name == "seed":
            config[own] %= 2**31  # Google's has 32 bits
    elif name == "stop":
        config["stopSequences"] = strings(value, name)[:5]  # at most: see `calls`
    elif name == "reasoning_effort":
        if effort := _thinking(require(value, name, str), drop):
            config["thinkingConfig"] = effort
    elif name == "response_format":
        config |= _format(require(value, name, dict), drop)
    elif name == "tools":
        body |= _tools(value, drop)
    elif name == "tool_choice":
        body["toolConfig"] = body.get("toolConfig", {}) | {"functionCallingConfig": _choice(value)}
    elif name == "toolConfig":
        body[name] = body.get(name, {}) | require(value, name, dict)
    elif name in _TOP:
        body[name] = value
    elif name == "modalities" and set(value) == {"text", "image"}:
        config["responseModalities"] = ["TEXT", "IMAGE"]
    elif name != name.lower():  # camel case: Google's own
        config[name] = value
    elif not is_neutral(name, value):
        unsupported(name, NAME, drop)


def _thinking(effort: str, drop: Drop) -> JSON:
    if effort not in BUDGETS:  # another vendor's
        unsupported("reasoning_effort", NAME, drop)
        return {}
    budget = BUDGETS[effort]  # includeThoughts without a budget would be refused
    return {"thinkingBudget": budget} | ({"includeThoughts": True} if budget else {})


def _format(wanted: JSON, drop: Drop) -> JSON:
    kind = wanted.get("type")
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        schema = fitting.googles(fitting.json_schema(wanted))
        return {"responseMimeType": "application/json", "responseJsonSchema": schema}
    if kind != "text":
        unsupported("response_format", NAME, drop)
    return {}


def _tools(value: object, drop: Drop) -> JSON:
    functions, own = [], []
    for tool in objects(value, "tools"):
        if tool.get("type") == "function":
            function = require(tool.get("function"), "tools[].function", dict)
            functions.append(_function(function))
            if function.get("strict"):  # Google does not guarantee the schema
                hint("tools.strict", drop)
        elif "type" not in tool and "name" not in tool:  # Google's own: {"googleSearch": {}}
            own.append(tool)
        else:
            leave_out(tool, NAME, drop)
    tools = ([{"functionDeclarations": functions}] if functions else []) + own
    return {"tools": tools} if tools else {}


def _function(function: JSON) -> JSON:
    place = "tools[].function"
    declared = {"name": require(function.get("name"), f"{place}.name", str)}
    if (description := function.get("description")) is not None:
        declared["description"] = require(description, f"{place}.description", str)
    if (schema := function.get("parameters")) is not None:
        fits = fitting.googles(require(schema, f"{place}.parameters", dict))
        declared["parametersJsonSchema"] = fits if "type" in fits else {"type": "object"} | fits
    return declared


def _choice(value: object) -> JSON:
    if isinstance(value, str) and value in _MODES:
        return {"mode": _MODES[value]}
    if not isinstance(value, dict) or value.get("type") != "function":
        raise must_be("tool_choice", "auto, none, required or a function")
    function = require(value.get("function"), "tool_choice.function", dict)
    name = require(function.get("name"), "tool_choice.function.name", str)
    return {"mode": "ANY", "allowedFunctionNames": [name]}


# -- messages --


class _Conversation:
    """Translates messages to contents; a tool result needs the name of the called function."""

    def __init__(self, drop: Drop, key: bytes | None, *, signs: bool) -> None:
        self.system: list[JSON] = []
        self.contents: list[JSON] = []
        self._names: dict[str, str] = {}  # of functions, by call id
        self._turn: list[str] = []  # the ids of the last turn's calls
        self._results: list[tuple[int, list[JSON]]] = []  # of them, in their order
        self._signed: dict[str, JSON] = {}  # signatures that came beside their calls, by call id
        self._drop = drop
        self._key = key  # that seals the ids of calls
        self.signs = signs  # whether the model refuses calls without a signature

    def add(self, message: JSON, place: str) -> None:
        """Add a message; raise RequestError naming *place* if it is invalid."""
        check_message(message, place)
        role, content = message["role"], message.get("content")
        if message.get("cache_control"):
            hint("cache_control", self._drop)
        if role in ("system", "developer"):
            self.system += self._parts(content, place)
        elif role == "user":
            self._results = []
            if parts := self._parts(content, place):
                self.contents.append({"role": "user", "parts": parts})
        elif role == "assistant":
            follows = self.contents and self.contents[-1]["role"] == "model"
            if not follows:  # Google takes no call after another turn of the model
                self._turn, self._results = [], []
            if parts := [*self._words(message, place), *self._calls(message, place)]:
                parts = self.contents.pop()["parts"] + parts if follows else parts
                self.contents.append({"role": "model", "parts": parts})
        elif role == "tool":
            self._result(message, place)
        else:
            raise must_be(f"{place}.role", "system, developer, user, assistant or tool")
        for name in without(given(message), *_MEMBERS):
            if (role, name) != ("tool", "name"):
                unsupported(f"messages.{name}", NAME, self._drop)

    def _parts(self, content: object, place: str) -> list[JSON]:
        """Return a content's parts without empty texts, which Google refuses."""
        if isinstance(content, str):
            return [{"text": content}] if content else []
        place = f"{place}.content"
        parts = enumerate(objects(content, place))
        found = (self._part(part, f"{place}[{number}]") for number, part in parts)
        return [part for part in found if part != {"text": ""}]

    def _part(self, part: JSON, place: str) -> JSON:
        kind = part.get("type")
        if "cache_control" in part:
            hint("cache_control", self._drop)
        if kind in ("text", "refusal"):
            return {"text": require(part.get(kind), f"{place}.{kind}", str)}
        inner = part.get(str(kind))
        known = kind in ("image_url", "file", "input_audio")
        if not known or members(inner).get("file_id") is not None:
            raise RequestError(
                f"{place}: a part of type {shown(kind)} cannot be sent to this model",
                param=f"{place}.type",
            )
        inner = require(inner, f"{place}.{kind}", dict)
        if kind == "image_url":
            if inner.get("detail") not in (None, "auto"):
                hint("image_url.detail", self._drop)
            return _media(inner, "url", place)
        place = f"{place}.{kind}"
        if kind == "file":
            if inner.get("filename"):
                hint("file.filename", self._drop)
            name = "file_url" if inner.get("file_url") is not None else "file_data"
            return _media(inner, name, place)
        sound, form = (
            require(inner.get(name), f"{place}.{name}", str) for name in ("data", "format")
        )
        return {"inlineData": {"mimeType": f"audio/{form}", "data": sound}}

    def _words(self, message: JSON, place: str) -> list[JSON]:
        """Return an assistant's text and thoughts, without thoughts of other vendors."""
        parts = self._parts(message.get("content") or [], place)
        if message.get("refusal") is not None:
            parts.append({"text": require(message["refusal"], f"{place}.refusal", str)})
        parts += self._parts(message.get("images") or [], place)
        thoughts, signatures = [], []
        place = f"{place}.reasoning_details"
        for detail in objects(message.get("reasoning_details") or [], place):
            kind = detail.get("type")
            if detail.get("format") != FORMAT:
                continue
            if kind == "reasoning.encrypted":
                signed = {"thoughtSignature": require(detail.get("data"), place, str)}
                if ident := detail.get("id"):  # of a call
                    self._signed[require(ident, place, str)] = signed
                else:
                    signatures.append(signed)
            elif kind == "reasoning.text":
                signature = require(detail.get("signature"), place, str)
                said = require(detail.get("text", ""), place, str)
                thoughts.append({"text": said, "thought": True, "thoughtSignature": signature})
        ends = [{"text": ""} | signature for signature in signatures[:-1]]
        last = [(parts.pop() if parts else {"text": ""}) | signatures[-1]] if signatures else []
        return [*thoughts, *ends, *parts, *last]

    def _calls(self, message: JSON, place: str) -> list[JSON]:
        parts: list[JSON] = []
        for number, call in enumerate(message.get("tool_calls") or []):
            where = f"{place}.tool_calls[{number}]"
            if call.get("type", "function") != "function":
                raise RequestError(
                    f"{where}: only calls of functions can be sent to this model",
                    param=f"{where}.type",
                )
            function = require(call.get("function"), f"{where}.function", dict)
            name = require(function.get("name"), f"{where}.function.name", str)
            ident = require(call.get("id", ""), f"{where}.id", str)
            self._names[ident] = name
            self._turn.append(ident)
            raw = require(function.get("arguments") or "", f"{where}.function.arguments", str)
            sent = self._named(name, ident) | {"args": arguments_of(raw)}
            part: JSON = {"functionCall": sent} | self._signed.get(ident, {})
            part |= _signature(call, f"{where}.extra_content")
            if "thoughtSignature" not in part and (found := unsealed(ident, self._key)):
                part["thoughtSignature"] = found.signature
            parts.append(part)
        if parts and self.signs:  # Google signs the first of parallel calls
            parts[0].setdefault("thoughtSignature", SKIP)
        return parts

    def _named(self, name: str, ident: str) -> JSON:
        """Return the name of a call, and Google's own id of it, or another vendor's."""
        if (found := unsealed(ident, self._key)) is not None:
            ident = found.ident
        if not ident or OWN_ID.fullmatch(ident):
            return {"name": name}
        return {"id": fitting.call_id(ident, fitting.RESPONSES_CALL_ID), "name": name}

    def _result(self, message: JSON, place: str) -> None:
        ident = require(message.get("tool_call_id"), f"{place}.tool_call_id", str)
        name = self._names.get(ident) or message.get("name")
        if not isinstance(name, str) or not name:
            raise must_be(f"{place}.tool_call_id", "the id of an earlier call")
        parts = self._parts(message["content"], place)
        words = "".join(part["text"] for part in parts if "text" in part)
        failed = require(message.get("is_error", False), f"{place}.is_error", bool)
        answered: JSON = {"response": {"error": words} if failed else _as_object(words)}
        media = [part for part in parts if "text" not in part]
        inside = [part for part in media if self.signs and _fits_inside(part)]
        beside = [part for part in media if part not in inside]
        answered |= {"parts": inside} if inside else {}
        new = [{"functionResponse": self._named(name, ident) | answered}, *beside]
        if not self._results:
            self.contents.append({"role": "user"})
        # the results of parallel calls must be in one content; without ids, in the calls' order
        self._results.append((self._turn.index(ident) if ident in self._turn else -1, new))
        self._results.sort(key=itemgetter(0))
        self.contents[-1]["parts"] = [part for _, found in self._results for part in found]


def _fits_inside(part: JSON) -> bool:
    """Whether a part may stand within a result: Gemini 3 and later take such media there."""
    return _RESULT_MEDIA.fullmatch(part.get("inlineData", {}).get("mimeType", "")) is not None


def _as_object(words: str) -> JSON:
    try:
        value = strict_json.loads(words)
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {"result": words}


def _signature(call: JSON, place: str) -> JSON:
    """Return a call's signature, from where Google's OpenAI-compatible API puts it."""
    value: object = call
    for name in ("extra_content", "google", "thought_signature"):
        value = require(value, place, dict).get(name)
        if value is None:
            return {}
    return {"thoughtSignature": require(value, place, str)}


def _media(holder: JSON, name: str, place: str) -> JSON:
    """Return inlineData for a data: URI, else fileData with the type that the suffix gives."""
    place = f"{place}.{name}"
    url = require(holder.get(name), place, str)
    if inline := data_uri(url):
        return {"inlineData": {"mimeType": inline[0], "data": inline[1]}}
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in ("http", "https", "gs"):
        raise must_be(place, "a data: URI or a URL")
    path = re.split("[?#]", rest, maxsplit=1)[0].partition("/")[2]
    guess = _MIME.guess_type(path, strict=False)[0]
    return {"fileData": ({"mimeType": guess} if guess else {}) | {"fileUri": url}}
