"""Reads requests of our Gemini-compatible API; writes its responses and errors.

Clients are Google's SDKs. `contents` reads the conversation, `stream` writes the streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ...errors import InferMuxError
from ...protocol import CHAT, InferRequest, InferResponse, Native, must_be
from ...protocol.strict_json import Document
from ...types import JSON, Usage
from .. import given, obj, require, tier_of, used, without
from ..blocks import complete
from ..citations import URL, inline
from ..fitting import strict
from ..tools import arguments_of
from . import NAME
from .contents import messages, plain_text, repeated
from .requests import BUDGETS, SCALARS, SKIP
from .schemas import camel, integer, json_schema
from .signatures import packed
from .upstream import COUNT_TOKENS, EMBEDDINGS, FILTERED

_SCALARS = {theirs: (ours, kind) for ours, (theirs, kind) in SCALARS.items()}
# What asks only for what every vendor, or Google, does anyway.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "candidateCount": (1,),
    "responseMimeType": ("text/plain",),
    "responseModalities": (["TEXT"], ["Text"], ["text"], [1]),
    "responseLogprobs": (False,),
    "top_k": (64,),  # the default of Google's models, which its CLI sends
    "enableEnhancedCivicAnswers": (False,),
    "safetySettings": ([],),
}
_UNBLOCKED = ("BLOCK_NONE", "OFF", "HARM_BLOCK_THRESHOLD_UNSPECIFIED", 0, 4, 5)
_MODES = {"AUTO": "auto", "ANY": "required", "NONE": "none", "VALIDATED": "auto"}
_MODE_NUMBERS = ("", *_MODES)
_LEVELS = ("minimal", "low", "medium", "high")


class Asked(NamedTuple):
    """What the address of a request says."""

    model: str
    query: str = ""  # for a vendor of the same dialect
    batch: bool = False  # embeddings of several contents


# -- requests --


def decode_request(body: Document, asked: Asked, *, op: str = CHAT) -> InferRequest:
    """Return the request; raise RequestError naming the field that is invalid."""
    value = dict(camel(body.value))
    native = Native(NAME, body, asked.query)
    if op == EMBEDDINGS:
        params = _batch(value) if asked.batch else _embedding(value, "")
        return InferRequest(asked.model, params=params, op=op, native=native)
    if op == COUNT_TOKENS and value.get("generateContentRequest") is not None:
        inner = require(value["generateContentRequest"], "generateContentRequest", dict)
        value = dict(camel(inner))
    is_whole = value.get("cachedContent") is None
    talk = messages(
        value.pop("contents", None), value.pop("systemInstruction", None), is_whole=is_whole
    )
    return InferRequest(asked.model, talk, params=_params(value), op=op, native=native)


def _params(value: JSON) -> JSON:
    """Return the parameters in OpenAI's form; what it does not have keeps Google's name."""
    tools, (choice, allowed) = _tools(value.get("tools")), _choice(value.get("toolConfig"))
    if allowed is not None:
        functions = tools.get("tools", ())
        tools["tools"] = [tool for tool in functions if tool["function"]["name"] in allowed]
    params = tools | choice | _config(value.get("generationConfig"))
    for name, each in given(value).items():
        if name in ("tools", "toolConfig", "generationConfig", "model"):
            continue
        if name == "serviceTier":
            tier = require(each, name, str).lower()
            params["service_tier"] = "default" if tier == "standard" else tier
        elif not (name == "safetySettings" and _is_unblocked(each)):
            params[name if _is_own(name) else f"request.{name}"] = each
    return {name: each for name, each in params.items() if each not in _NEUTRAL.get(name, (None,))}


def _is_own(name: str) -> bool:
    """Whether a name is Google's: one that OpenAI has too could mean something else there."""
    return name != name.lower() or name in ("labels", "store")


def _is_unblocked(settings: object) -> bool:
    found = repeated(settings, "safetySettings")
    return all(camel(one).get("threshold", 0) in _UNBLOCKED for one in found)


def _config(value: object) -> JSON:
    config = _object(value, "generationConfig")
    params: JSON = {}
    for name, each in given(config).items():
        place = f"generationConfig.{name}"
        if name in _SCALARS:
            ours, kind = _SCALARS[name]
            params[ours] = integer(each, place) if kind is int else require(each, place, kind)
        elif name == "stopSequences":
            params["stop"] = [require(one, place, str) for one in require(each, place, list)]
        elif name == "thinkingConfig":
            params |= _effort(camel(require(each, place, dict)), place)
        elif name not in ("responseSchema", "responseJsonSchema", "responseMimeType"):
            params[name if _is_own(name) else place] = each
    return params | _format(config)


def _object(value: object, place: str) -> JSON:
    return camel(require({} if value is None else value, place, dict))


def _effort(config: JSON, place: str) -> JSON:
    """Translate a thinking budget to the highest effort that it covers."""
    budget, level = config.get("thinkingBudget"), config.get("thinkingLevel")
    if level is not None:
        place = f"{place}.thinkingLevel"
        level = require(level, place, str).lower().removeprefix("thinking_level_")
        if level not in (*_LEVELS, "unspecified"):
            raise must_be(place, f"one of {', '.join(_LEVELS)}")
        return {"reasoning_effort": level} if level in _LEVELS else {}
    if budget is None or (tokens := integer(budget, f"{place}.thinkingBudget")) < 0:
        return {}  # the model decides
    covered = [effort for effort in ("low", "medium", "high") if BUDGETS[effort] <= tokens]
    return {"reasoning_effort": covered[-1] if covered else "minimal" if tokens else "none"}


def _format(config: JSON) -> JSON:
    """Return the response_format, or Google's own type of media if there is no such format."""
    media = config.get("responseMimeType")
    if media is not None:
        require(media, "generationConfig.responseMimeType", str)
    if media not in (None, "application/json"):
        return {"responseMimeType": media}
    schema = config.get("responseJsonSchema")
    if schema is not None:
        require(schema, "generationConfig.responseJsonSchema", dict)
    elif config.get("responseSchema") is not None:
        schema = json_schema(config["responseSchema"], "generationConfig.responseSchema")
    if schema is None:
        return {} if media is None else {"response_format": {"type": "json_object"}}
    named: JSON = {"name": "response", "schema": schema}
    if (enforced := strict(schema)) is not None:
        named |= {"schema": enforced, "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _tools(value: object) -> JSON:
    """Return functions as tools; each of Google's own tools is a parameter of its own name."""
    functions: list[JSON] = []
    own: JSON = {}
    for number, tool in enumerate(repeated(value, "tools")):
        for name, each in given(camel(tool)).items():
            place = f"tools[{number}].{name}"
            if name == "functionDeclarations":
                functions += [_function(one, place) for one in repeated(each, place)]
            else:
                own[f"tools.{name}"] = each  # no dialect but Google's has it: refused by name
    return ({"tools": functions} if functions else {}) | own


def _function(value: JSON, place: str) -> JSON:
    declared = given(camel(value))
    function = {"name": require(declared.get("name"), f"{place}[].name", str)}
    if "description" in declared:
        function["description"] = require(declared["description"], f"{place}[].description", str)
    if "parametersJsonSchema" in declared:
        where = f"{place}[].parametersJsonSchema"
        function["parameters"] = require(declared["parametersJsonSchema"], where, dict)
    elif "parameters" in declared:
        function["parameters"] = json_schema(declared["parameters"], f"{place}[].parameters")
    return {"type": "function", "function": function}


def _choice(value: object) -> tuple[JSON, list[str] | None]:
    """Return tool_choice, with the rest of toolConfig under Google's name; and the only functions
    that may be called, or None.
    """
    config, place = _object(value, "toolConfig"), "toolConfig.functionCallingConfig"
    others = given(without(config, "functionCallingConfig"))
    rest = {"toolConfig": others} if others else {}
    calling = _object(config.get("functionCallingConfig"), place)
    mode, names = calling.get("mode"), calling.get("allowedFunctionNames")
    if isinstance(mode, int) and 0 <= mode < len(_MODE_NUMBERS):
        mode = _MODE_NUMBERS[mode]
    mode = "" if mode is None else require(mode, f"{place}.mode", str).upper()
    if mode in ("", "MODE_UNSPECIFIED"):
        return rest, None
    if mode not in _MODES:
        raise must_be(f"{place}.mode", "AUTO, ANY, NONE or VALIDATED")
    if not names:
        return {"tool_choice": _MODES[mode]} | rest, None
    where = f"{place}.allowedFunctionNames"
    allowed = [require(name, where, str) for name in require(names, where, list)]
    if mode == "ANY" and len(allowed) == 1:
        function = {"type": "function", "function": {"name": allowed[0]}}
        return {"tool_choice": function} | rest, None
    return {"tool_choice": _MODES[mode]} | rest, allowed


# -- embeddings --


def _embedding(value: JSON, place: str) -> JSON:
    """Return the parameters for one content; what OpenAI does not have keeps Google's name."""
    params: JSON = {"input": plain_text(value.get("content"), f"{place}content")}
    for name, each in given(value).items():
        if name == "outputDimensionality":
            params["dimensions"] = integer(each, f"{place}{name}")
        elif name not in ("content", "model"):
            params[name] = each
    return params


def _batch(value: JSON) -> JSON:
    """Return the parameters for several contents, which must agree in the others."""
    found = [
        _embedding(camel(one), f"requests[{number}].")
        for number, one in enumerate(repeated(value.get("requests"), "requests"))
    ]
    if not found:
        raise must_be("requests", "a list of at least one request")
    first = without(found[0], "input")
    params = first | {"input": [one["input"] for one in found]}
    differs = [number for number, one in enumerate(found) if without(one, "input") != first]
    return params | {f"requests[{number}]": "its parameters differ" for number in differs[:1]}


# -- answers --


def encode_response(response: InferResponse, *, ident: str) -> JSON:
    """Return the answer as a GenerateContentResponse; *ident* is its id if the vendor gave none."""
    parts = thoughts(response.reasoning, list(response.details))
    cited = grounding_of(response.annotations, response.content, len(parts))
    parts += [{"text": words} for words in (response.content, response.refusal) if words]
    finish = response.finish_reason or "stop"
    parts += drawn(response.images) + calls(response.tool_calls, finish)
    usage = used(response)
    head = {"modelVersion": response.model, "responseId": response.id or ident}
    return content_of(parts, head, finish=finish, usage=usage, cited=cited)


def content_of(
    parts: list[JSON],
    head: JSON,
    *,
    finish: str = "",
    usage: Usage | None = None,
    cited: JSON | None = None,
) -> JSON:
    """Return a GenerateContentResponse of *parts*; *head* is its model and id."""
    content = {"parts": parts or [{"text": ""}], "role": "model"}
    ended = {"finishReason": finish_reason(finish)} if finish else {}
    candidate: JSON = {"content": content, **ended, "index": 0, **(cited or {})}
    figures = {"usageMetadata": encode_usage(usage)} if usage is not None else {}
    return {"candidates": [candidate]} | figures | head


def grounding_of(annotations: Sequence[JSON], text: str, part: int = 0) -> JSON:
    """Return the groundingMetadata member of a candidate with *text* as its *part*; {}: none."""
    sources: dict[tuple[str, str], int] = {}
    supports: dict[tuple[int, int], list[int]] = {}
    for one in (each[URL] for each in annotations):
        number = sources.setdefault((one["url"], one["title"]), len(sources))
        supports.setdefault((one["start_index"], one["end_index"]), []).append(number)
    if not sources:
        return {}
    place = {"partIndex": part} if part else {}
    return {
        "groundingMetadata": {
            "groundingChunks": [{"web": {"uri": url, "title": name}} for url, name in sources],
            "groundingSupports": [
                {
                    "segment": place
                    | {
                        "startIndex": len(text[:start].encode(errors="replace")),
                        "endIndex": len(text[:end].encode(errors="replace")),
                        "text": text[start:end],
                    },
                    "groundingChunkIndices": numbers,
                }
                for (start, end), numbers in supports.items()
            ],
        }
    }


def thoughts(text: str, details: list[JSON]) -> list[JSON]:
    """Return the part of a thought; signed details ride in its signature."""
    part: JSON = {"text": text, "thought": True}
    if signature := packed(details):
        part["thoughtSignature"] = signature
    return [part] if text or signature else []


def drawn(images: Sequence[JSON]) -> list[JSON]:
    return [{"inlineData": {"mimeType": kind, "data": data}} for kind, data in inline(images)]


def calls(found: Iterable[JSON], finish: str) -> list[JSON]:
    """Return the parts of tool calls; the first has Google's marker if it has no signature.

    Google's clients run each call that they get: one that is cut is left out.
    """
    cut = finish in ("length", "content_filter")
    parts = [
        _call(call)
        for call in found
        if not cut or complete(obj(call.get("function")).get("arguments") or "{}")
    ]
    if parts and not any("thoughtSignature" in part for part in parts):
        parts[0]["thoughtSignature"] = SKIP
    return parts


def _call(call: JSON) -> JSON:
    function = obj(call.get("function"))
    name, args = function.get("name"), arguments_of(function.get("arguments"))
    ident = {"id": call["id"]} if call.get("id") else {}
    google = obj(obj(call.get("extra_content")).get("google"))
    signature = google.get("thought_signature")
    part: JSON = {"functionCall": ident | {"name": name or "", "args": args}}
    return part | ({"thoughtSignature": signature} if signature else {})


def finish_reason(reason: str) -> str:
    """Return Google's finishReason for OpenAI's finish_reason."""
    known = {"length": "MAX_TOKENS", "content_filter": "SAFETY"}
    known |= dict.fromkeys(("stop", "tool_calls", "function_call"), "STOP")
    own = reason.upper()
    return known.get(reason) or (own if FILTERED.fullmatch(own) or "_CALL" in own else "OTHER")


def encode_usage(usage: Usage) -> JSON:
    """Return usageMetadata: unlike ours, its candidates are without the thoughts."""
    tokens_in, tokens_out = usage.input_tokens or 0, usage.output_tokens or 0
    data: JSON = {
        "promptTokenCount": tokens_in,
        "candidatesTokenCount": max(0, tokens_out - (usage.reasoning_tokens or 0)),
        "totalTokenCount": tokens_in + tokens_out + (usage.tool_use_tokens or 0),
    }
    details = {
        "cachedContentTokenCount": usage.cached_input_tokens,
        "thoughtsTokenCount": usage.reasoning_tokens,
        "toolUsePromptTokenCount": usage.tool_use_tokens,
    }
    data |= {name: tokens for name, tokens in details.items() if tokens}
    return data | given({"serviceTier": tier_of(usage, "standard", ("flex", "priority"))})


def encode_embeddings(response: InferResponse, *, batch: bool) -> JSON:
    vectors = [{"values": one["embedding"]} for one in response.extra.get("data") or ()]
    usage = {"usageMetadata": {"promptTokenCount": response.tokens_in}}
    return ({"embeddings": vectors} if batch else {"embedding": vectors[0]}) | usage


# -- errors --

_STATUS = {
    401: "UNAUTHENTICATED",
    402: "RESOURCE_EXHAUSTED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "UNIMPLEMENTED",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    504: "DEADLINE_EXCEEDED",
}
_TYPE = "type.googleapis.com/google.rpc."


def encode_error(error: InferMuxError) -> JSON:
    """Return the error object, as Google's SDKs expect it."""
    native = error.native_in(NAME)
    status = error.status if native is None else native.status
    default = "INVALID_ARGUMENT" if status < 500 else "UNAVAILABLE"
    body: JSON = {
        "code": status,
        "message": error.message,
        "status": _STATUS.get(status, default),
    }
    if native is not None:
        return {"error": body | native.members | {"code": status}}
    details: list[JSON] = [
        {"@type": f"{_TYPE}ErrorInfo", "reason": error.code.upper(), "domain": "infermux"}
    ]
    if error.param:
        violation = {"field": error.param, "description": error.message}
        details.append({"@type": f"{_TYPE}BadRequest", "fieldViolations": [violation]})
    if error.retry_after is not None:
        details.append({"@type": f"{_TYPE}RetryInfo", "retryDelay": f"{error.retry_after:g}s"})
    return {"error": body | {"details": details}}
