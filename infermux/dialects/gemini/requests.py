"""Google's generateContent format: requests, as they go to the vendor."""

from __future__ import annotations

import base64
import mimetypes
import re
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from ...errors import RequestError, UnsupportedParameter, shown
from ...protocol import CHAT, InferRequest, check_message, strict_json
from ...types import JSON
from .. import unsupported

NAME = "gemini"
FORMAT = "google-gemini-v1"  # of a reasoning detail; those of other vendors mean nothing here
EMBEDDINGS, COUNT_TOKENS = "embeddings", "count_tokens"

# Google's own OpenAI-compatible door turns efforts into these budgets; xhigh is the most that every
# thinking model takes.
BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}

OWN_ID = re.compile(r"call_\d+_[0-9a-f]{16}")  # ids that we made up, because the wire had none
_MIME = mimetypes.MimeTypes()  # Python's own table, whatever files the host has

_TOP = frozenset({"safetySettings", "cachedContent", "toolConfig", "labels", "serviceTier"})
_SCALARS: dict[str, tuple[str, type]] = {
    "temperature": ("temperature", float),
    "top_p": ("topP", float),
    "presence_penalty": ("presencePenalty", float),
    "frequency_penalty": ("frequencyPenalty", float),
    "max_tokens": ("maxOutputTokens", int),
    "seed": ("seed", int),
    "max_completion_tokens": ("maxOutputTokens", int),
    "top_k": ("topK", int),
    "top_logprobs": ("logprobs", int),
}
_NEUTRAL: dict[
    str, tuple[type, list[Any]]
] = {  # values that ask for no more than what the wire does anyway
    "n": (int, [1]),
    "parallel_tool_calls": (bool, [True]),
    "modalities": (list, [["text"]]),
    "store": (bool, [False]),
    "service_tier": (str, ["auto", "default"]),
    "logprobs": (bool, [False]),
}
_KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}
_MODES = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
_EMBEDDING = {
    "dimensions": "outputDimensionality",
    "outputDimensionality": "outputDimensionality",
    "taskType": "taskType",
    "title": "title",
}
_MEMBERS = frozenset(
    {
        "role",
        "content",
        "tool_calls",
        "tool_call_id",
        "is_error",
        "refusal",
        "annotations",
        "reasoning",
        "reasoning_content",
        "reasoning_details",
        "cache_control",
    }
)


# -- requests --------------------------------------------------------------------------------------


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the path of the operation below the base URL; whatever the model's name is, it stays
    one segment of it.
    """
    if request.op == CHAT:
        verb = "streamGenerateContent?alt=sse" if stream else "generateContent"
    elif request.op == EMBEDDINGS:
        verb = "batchEmbedContents" if _batch(request) else "embedContent"
    elif request.op == COUNT_TOKENS:
        verb = "countTokens"
    else:
        raise UnsupportedParameter(
            f"{request.op!r} is not an operation of the {NAME} format", param="model"
        )
    return f"/models/{quote(_model(request), safe='', errors='replace')}:{verb}"


def auth(key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    return {"x-goog-api-key": key}


def headers(request: InferRequest) -> dict[str, str]:
    """Return the protocol headers of a request: there are none."""
    return {}


def encode_request(request: InferRequest, *, stream: bool, drop: list[str] | None = None) -> bytes:
    """Return the body, as it came if it came in this dialect: the model and the wish for a stream
    are in the path.
    """
    native = request.native
    if native is not None and native.dialect == NAME:
        return native.body.text.encode()
    body = _embed(request, drop) if request.op == EMBEDDINGS else _generate(request, drop)
    if request.op == COUNT_TOKENS and body.keys() - {
        "contents"
    }:  # only there is more than contents counted
        body = {"generateContentRequest": {"model": f"models/{_model(request)}"} | body}
    try:
        return strict_json.encode(body)
    except (ValueError, TypeError):
        raise RequestError("the request holds a value that JSON cannot say") from None


def _model(request: InferRequest) -> str:
    return request.model.removeprefix("models/")


def _batch(request: InferRequest) -> bool:
    native = request.native
    if native is not None and native.dialect == NAME:
        return "requests" in native.body.value
    return isinstance(request.params.get("input"), list)


def _embed(request: InferRequest, drop: list[str] | None) -> JSON:
    given = {name: value for name, value in request.params.items() if value is not None}
    wanted, form = given.pop("input", None), given.pop("encoding_format", "float")
    if form not in ("float", "base64"):
        raise RequestError("encoding_format must be 'float' or 'base64'", param="encoding_format")
    options: JSON = {}
    for name, value in given.items():
        if name in _EMBEDDING:
            options[_EMBEDDING[name]] = _want(value, int, name) if name == "dimensions" else value
        else:
            unsupported(name, NAME, drop)
    if isinstance(wanted, str):
        return {"content": {"parts": [{"text": wanted}]}} | options
    if (
        not isinstance(wanted, list)
        or not wanted
        or not all(isinstance(one, str) for one in wanted)
    ):
        raise RequestError("input must be a string or a list of strings", param="input")
    model = {"model": f"models/{_model(request)}"}
    return {
        "requests": [model | {"content": {"parts": [{"text": one}]}} | options for one in wanted]
    }


def _generate(request: InferRequest, drop: list[str] | None) -> JSON:
    talk = _Conversation(drop)
    for number, message in enumerate(request.messages):
        talk.add(message, f"messages[{number}]")
    body: JSON = {"contents": talk.contents} | (
        {"systemInstruction": {"parts": talk.system}} if talk.system else {}
    )
    config: JSON = {}
    for name, value in sorted(
        request.params.items(), reverse=True
    ):  # max_completion_tokens wins over max_tokens
        if value is not None:
            _parameter(name, value, body, config, drop)
    if (
        own := request.params.get("generationConfig")
    ) is not None:  # the vendor's own words win over a translation
        config |= _want(own, dict, "generationConfig")
    if (own := request.params.get("thinkingConfig")) is not None:
        translated = _want(
            config.get("thinkingConfig", {}), dict, "generationConfig.thinkingConfig"
        )
        config["thinkingConfig"] = translated | _want(own, dict, "thinkingConfig")
    if config.get("candidateCount", 1) != 1:
        del config["candidateCount"]
        unsupported("candidateCount", NAME, drop)
    return body | ({"generationConfig": config} if config else {})


def _parameter(name: str, value: Any, body: JSON, config: JSON, drop: list[str] | None) -> None:
    """Put a parameter to its place in the body or in its generationConfig."""
    if name in ("stream_options", "generationConfig", "thinkingConfig"):
        return  # usage comes unasked, and the others come last
    if name in _NEUTRAL and _want(value, _NEUTRAL[name][0], name) in _NEUTRAL[name][1]:
        return
    if name in _SCALARS:
        config[_SCALARS[name][0]] = _want(value, _SCALARS[name][1], name)
    elif name == "stop":
        config["stopSequences"] = _stops(value)
    elif name == "logprobs":
        config["responseLogprobs"] = True
    elif name == "reasoning_effort":
        config["thinkingConfig"] = _thinking(value)
    elif name == "response_format":
        config |= _format(_want(value, dict, name), drop)
    elif name == "tools":
        body |= _tools(value, drop)
    elif name == "tool_choice":
        body["toolConfig"] = body.get("toolConfig", {}) | {"functionCallingConfig": _choice(value)}
    elif name == "toolConfig":
        body[name] = body.get(name, {}) | _want(value, dict, name)
    elif name in _TOP:
        body[name] = value
    elif name != name.lower():  # the vendor's own words are in camel case, nobody else's are
        config[name] = value
    else:
        unsupported(name, NAME, drop)


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
        raise RequestError("stop must be a string or a list of strings", param="stop")
    return stops


def _thinking(effort: object) -> JSON:
    if not isinstance(effort, str) or effort not in BUDGETS:
        raise RequestError(
            f"reasoning_effort must be one of {', '.join(BUDGETS)}", param="reasoning_effort"
        )
    budget = BUDGETS[effort]  # to ask for thoughts without thinking is refused
    return {"thinkingBudget": budget} | ({"includeThoughts": True} if budget else {})


def _format(wanted: JSON, drop: list[str] | None) -> JSON:
    kind = wanted.get("type")
    if kind == "json_object":
        return {"responseMimeType": "application/json"}
    if kind == "json_schema":
        given = _want(wanted.get("json_schema"), dict, "response_format.json_schema")
        schema = _want(given.get("schema", {}), dict, "response_format.json_schema.schema")
        words = {"description": given["description"]} if given.get("description") else {}
        return {"responseMimeType": "application/json", "responseJsonSchema": words | schema}
    if kind != "text":
        unsupported("response_format", NAME, drop)
    return {}


def _tools(value: object, drop: list[str] | None) -> JSON:
    functions, own = [], []
    for tool in _objects(value, "tools"):
        if tool.get("type") == "function":
            function = _want(tool.get("function"), dict, "tools[].function")
            functions.append(_function(function))
            if function.get(
                "strict"
            ):  # the vendor has no such promise, and the schema goes along all the same
                _note("strict", drop)
        elif (
            "type" not in tool and "name" not in tool
        ):  # the vendor's own, such as {"googleSearch": {}}
            own.append(tool)
        else:
            unsupported("tools", NAME, drop)
    tools = ([{"functionDeclarations": functions}] if functions else []) + own
    return {"tools": tools} if tools else {}


def _function(function: JSON) -> JSON:
    declared = {"name": _want(function.get("name"), str, "tools[].function.name")}
    if function.get("description") is not None:
        declared["description"] = _want(
            function["description"], str, "tools[].function.description"
        )
    schema = function.get("parameters")
    return declared | (
        {}
        if schema is None
        else {"parametersJsonSchema": _want(schema, dict, "tools[].function.parameters")}
    )


def _choice(value: object) -> JSON:
    if isinstance(value, str) and value in _MODES:
        return {"mode": _MODES[value]}
    if not isinstance(value, dict) or value.get("type") != "function":
        raise RequestError(
            "tool_choice must be auto, none, required or a function", param="tool_choice"
        )
    function = _want(value.get("function"), dict, "tool_choice.function")
    return {
        "mode": "ANY",
        "allowedFunctionNames": [_want(function.get("name"), str, "tool_choice.function.name")],
    }


def _note(name: str, drop: list[str] | None) -> None:
    """Note a mere hint that is not passed on: to refuse the call for it would help nobody."""
    if drop is not None:
        unsupported(name, NAME, drop)


def _want(value: object, kind: type, name: str) -> Any:
    """Return a value of the caller's, or raise RequestError if it is not of the right type."""
    if isinstance(value, bool) != (kind is bool) or not isinstance(
        value, (int, float) if kind is float else kind
    ):
        raise RequestError(f"{name} must be {_KINDS[kind]}", param=name)
    return value


def _objects(value: object, name: str) -> list[JSON]:
    found: list[JSON] = [
        _want(one, dict, f"{name}[{number}]") for number, one in enumerate(_want(value, list, name))
    ]
    return found


# -- messages --------------------------------------------------------------------------------------


class _Conversation:
    """Turns messages into contents; remembers which function a call's id stands for, as only the
    name may go back.
    """

    def __init__(self, drop: list[str] | None) -> None:
        self.system: list[JSON] = []
        self.contents: list[JSON] = []
        self._names: dict[str, str] = {}
        self._drop = drop

    def add(self, message: JSON, place: str) -> None:
        """Take one more message; raise RequestError naming what is odd in it."""
        check_message(message, place)
        role = message["role"]
        if message.get("cache_control"):
            _note("cache_control", self._drop)
        if role in ("system", "developer"):
            self.system += self._parts(message.get("content"), place)
        elif role == "user":
            self.contents.append(
                {"role": "user", "parts": self._parts(message.get("content"), place)}
            )
        elif role == "assistant":
            if parts := [*self._words(message, place), *self._calls(message, place)]:
                self.contents.append({"role": "model", "parts": parts})
        elif role == "tool":
            self._result(message, place)
        else:
            raise RequestError(
                f"{place}.role must be system, developer, user, assistant or tool",
                param=f"{place}.role",
            )
        for name, value in message.items():
            if (
                value is not None
                and name not in _MEMBERS
                and not (role == "tool" and name == "name")
            ):
                unsupported(f"messages[].{name}", NAME, self._drop)

    def _parts(self, content: object, place: str) -> list[JSON]:
        if isinstance(content, str):
            return [{"text": content}]
        place = f"{place}.content"
        return [
            self._part(part, f"{place}[{number}]")
            for number, part in enumerate(_objects(content, place))
        ]

    def _part(self, part: JSON, place: str) -> JSON:
        kind = part.get("type")
        if "cache_control" in part:
            _note("cache_control", self._drop)
        if kind in ("text", "refusal"):
            return {"text": _want(part.get(kind), str, f"{place}.{kind}")}
        inner = (
            _want(part.get(kind), dict, f"{place}.{kind}")
            if kind in ("image_url", "file", "input_audio")
            else {}
        )
        if kind == "image_url":
            if inner.get("detail") not in (None, "auto"):
                unsupported("detail", NAME, self._drop)
            return _media(_want(inner.get("url"), str, f"{place}.url"), f"{place}.url")
        if kind == "file":
            if inner.get("filename"):
                _note("filename", self._drop)
            name = "file_url" if inner.get("file_url") is not None else "file_data"
            return _media(
                _want(inner.get(name), str, f"{place}.file.{name}"), f"{place}.file.{name}"
            )
        if kind == "input_audio":
            sound, form = (
                _want(inner.get(name), str, f"{place}.input_audio.{name}")
                for name in ("data", "format")
            )
            return {"inlineData": {"mimeType": f"audio/{form}", "data": sound}}
        raise RequestError(
            f"{place}: a part of type {shown(kind)} cannot be sent to this model",
            param=f"{place}.type",
        )

    def _words(self, message: JSON, place: str) -> list[JSON]:
        """Return the text of an answer, with the signatures where they were: on thoughts, and on
        the last text part.

        Thoughts without a signature, and those of other vendors, are not read back.
        """
        parts = self._parts(message.get("content") or [], place)
        if message.get("refusal") is not None:
            parts.append({"text": _want(message["refusal"], str, f"{place}.refusal")})
        thoughts, signatures = [], []
        for detail in _objects(
            message.get("reasoning_details") or [], f"{place}.reasoning_details"
        ):
            name = {"reasoning.text": "signature", "reasoning.encrypted": "data"}.get(
                str(detail.get("type"))
            )
            if name is None or detail.get("format") != FORMAT:
                continue
            signature = {
                "thoughtSignature": _want(detail.get(name), str, f"{place}.reasoning_details")
            }
            if name == "data":
                signatures.append(signature)
            else:
                said = _want(detail.get("text", ""), str, f"{place}.reasoning_details")
                thoughts.append({"text": said, "thought": True} | signature)
        ends = [{"text": ""} | signature for signature in signatures[:-1]]
        last = [(parts.pop() if parts else {"text": ""}) | signatures[-1]] if signatures else []
        return [*thoughts, *ends, *parts, *last]

    def _calls(self, message: JSON, place: str) -> list[JSON]:
        parts = []
        for number, call in enumerate(message.get("tool_calls") or []):
            where = f"{place}.tool_calls[{number}]"
            if call.get("type", "function") != "function":
                raise RequestError(
                    f"{where}: only calls of functions can be sent to this model",
                    param=f"{where}.type",
                )
            function = _want(call.get("function"), dict, f"{where}.function")
            name = _want(function.get("name"), str, f"{where}.function.name")
            ident = _want(call.get("id", ""), str, f"{where}.id")
            self._names[ident] = name
            part = {
                "functionCall": _named(name, ident)
                | {"args": _arguments(function.get("arguments"), where)}
            }
            parts.append(part | _signature(call, where))
        return parts

    def _result(self, message: JSON, place: str) -> None:
        ident = _want(message.get("tool_call_id"), str, f"{place}.tool_call_id")
        name = self._names.get(ident) or message.get("name")
        if not isinstance(name, str) or not name:
            raise RequestError(
                f"{place}.tool_call_id is not the id of an earlier call",
                param=f"{place}.tool_call_id",
            )
        parts = self._parts(message["content"], place)
        words = "".join(part["text"] for part in parts if "text" in part)
        said = (
            {"error": words}
            if _want(message.get("is_error", False), bool, f"{place}.is_error")
            else _json_object(words)
        )
        response = {"result": words} if said is None else said
        media = [part for part in parts if "text" not in part]
        new = [{"functionResponse": _named(name, ident) | {"response": response}}, *media]
        before = self.contents[-1]["parts"] if self.contents else []
        if any("functionResponse" in part for part in before):
            before += new  # all answers to parallel calls have to be in one content
        else:
            self.contents.append({"role": "user", "parts": new})


def _named(name: str, ident: str) -> JSON:
    return {"name": name} if not ident or OWN_ID.fullmatch(ident) else {"id": ident, "name": name}


def _json_object(words: str) -> JSON | None:
    try:
        value = strict_json.loads(words)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _arguments(raw: object, place: str) -> JSON:
    value = (
        _json_object(raw)
        if isinstance(raw, str) and raw.strip()
        else {}
        if raw in (None, "")
        else None
    )
    if value is None:
        raise RequestError(
            f"{place}.function.arguments must be the JSON text of an object",
            param=f"{place}.function.arguments",
        )
    return value


def _signature(call: JSON, place: str) -> JSON:
    """Return the signature of a call, from where Google's own OpenAI-compatible door puts it."""
    extra = call.get("extra_content")
    google = (
        _want(extra, dict, f"{place}.extra_content").get("google") if extra is not None else None
    )
    signature = (
        _want(google, dict, f"{place}.extra_content").get("thought_signature")
        if google is not None
        else None
    )
    return (
        {}
        if signature is None
        else {"thoughtSignature": _want(signature, str, f"{place}.extra_content")}
    )


def _media(url: str, place: str) -> JSON:
    """Return data from a data: URI inline, another URL by reference with the type that its path
    suggests.
    """
    scheme, _, rest = url.partition(":")
    if scheme.lower() == "data" and "," in rest:
        head, _, data = rest.partition(",")
        kind, *options = head.split(";")
        if "base64" not in [option.strip().lower() for option in options]:
            data = base64.b64encode(unquote_to_bytes(data)).decode()
        return {"inlineData": {"mimeType": kind or "text/plain", "data": data}}
    if scheme.lower() not in ("http", "https", "gs"):
        raise RequestError(f"{place} must be a data: URI or a URL", param=place)
    guess = _MIME.guess_type(
        re.split("[?#]", url, maxsplit=1)[0].partition("://")[2].partition("/")[2], strict=False
    )[0]
    return {"fileData": ({"mimeType": guess} if guess else {}) | {"fileUri": url}}
