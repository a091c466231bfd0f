"""A strict vendor on loopback: it refuses what the real ones refuse, and plays a model that acts.

It speaks the four formats, streamed and not: OpenAI's chat completions and Responses, Anthropic's
Messages, Google's generateContent. What it refuses stands in ../shared/vendor_rules.md. Everything
follows from the request alone, so that any client can run against it:

* A line `call NAME {"argument": …}` in the last user's text is a call of that tool; several lines
  are parallel calls; a line `then` begins the next step. With no such line, the model calls the
  tool that the text names, else the first one of a request with few tools.
* When all is called, it answers with what the results said. A request without tools gets the words
  of the user back, or JSON that fits the schema that was asked for.
* A request for reasoning gets thoughts, which are signed: a changed or invented signature is refused.

`python tests/strict_vendor.py PORT` serves until Ctrl-C; `StrictVendor()` serves in a test.
"""

# ruff: noqa: SIM905
from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from support import Peer

JSON = dict[str, Any]
KEY = "sk-strict-vendor-key"
SECRET = b"what the strict vendor signs with"
SKIP = "skip_thought_signature_validator"
FEW_TOOLS = 8  # a request with more is an agent's: its tools are only called by name
IMAGE_SEEN = "(an image)"


class Refused(Exception):
    """A request that the vendor does not take."""

    def __init__(
        self,
        message: str,
        code: str = "",
        param: str = "",
        status: int = 400,
        details: JSON | None = None,
    ) -> None:
        super().__init__(message)
        self.message, self.code, self.param, self.status = message, code, param, status
        self.details = details


class Tool(NamedTuple):
    name: str
    schema: JSON
    custom: bool = False
    space: str = ""  # the namespace that a Responses client gave it


class Item(NamedTuple):
    """What one side said: a text, in which images are words, and calls with their arguments."""

    role: str
    text: str
    calls: tuple[tuple[str, Any], ...] = ()


class Asked(NamedTuple):
    """What the model sees of a request, whatever its format."""

    model: str
    text: str  # of the last user
    results: list[str]  # of the last step, if it is the end of the conversation
    steps: int  # of calls since the last user's text
    tools: list[Tool]
    choice: str  # auto, none, required, or a tool's name
    parallel: bool
    schema: JSON | None  # of the wanted answer; {}: any JSON object
    thinks: bool
    size: int
    items: Sequence[Item] = ()  # all of the conversation


class Turn(NamedTuple):
    """What the model says."""

    text: str = ""
    calls: tuple[tuple[Tool, Any], ...] = ()  # with arguments, or the text of a custom tool's input
    thought: str = ""


# -- the model -------------------------------------------------------------------------------------

_CALL = re.compile(r"^\s*call ([\w.-]+)(?: (.*))?$", re.M)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_QUOTED = re.compile(r"'([^'\n]{1,200})'|\"([^\"\n]{1,200})\"")


def turn_of(asked: Asked) -> Turn:
    """Return what the model says: calls, else the results, else the user's words."""
    thought = f"Let me think about {asked.model}." if asked.thinks else ""
    if asked.choice != "none" and (calls := _calls(asked)):
        return Turn(calls=tuple(calls if asked.parallel else calls[:1]), thought=thought)
    if asked.schema is not None:
        return Turn(json.dumps(example(asked.schema, asked.text)), thought=thought)
    if asked.results:
        return Turn("The results are: " + " | ".join(asked.results), thought=thought)
    return Turn(f"You said: {asked.text[:2000]}" if asked.text else "Hello.", thought=thought)


def _calls(asked: Asked) -> list[tuple[Tool, Any]]:
    tools = {tool.name: tool for tool in asked.tools}
    if asked.choice in tools:
        return [] if asked.results else [_filled(tools[asked.choice], asked.text)]
    steps = re.split(r"^\s*then\s*$", asked.text, flags=re.M)
    written = [
        [
            (tools[name], _given(tools[name], given))
            for name, given in _CALL.findall(step)
            if name in tools
        ]
        for step in steps
    ]
    if any(written):
        return written[asked.steps] if asked.steps < len(written) else []
    if asked.results or not tools:
        return []
    named = [
        tool for name, tool in tools.items() if re.search(rf"\b{re.escape(name)}\b", asked.text)
    ]
    if named:
        return [_filled(tool, asked.text) for tool in named[:2]]
    if asked.choice == "required" or len(tools) <= FEW_TOOLS:
        return [_filled(asked.tools[0], asked.text)]
    return []


def _given(tool: Tool, text: str) -> Any:
    if tool.custom:
        return json.loads(text) if text.startswith('"') else text.replace("\\n", "\n")
    return json.loads(text) if text else {}


def _filled(tool: Tool, text: str) -> tuple[Tool, Any]:
    return tool, (text if tool.custom else example(tool.schema or {"type": "object"}, text))


def example(schema: JSON, text: str, root: JSON | None = None) -> Any:
    """Return a value that fits a schema; numbers and quoted words come from *text*."""
    return _Example(schema, text).of(schema)


class _Example:
    def __init__(self, root: JSON, text: str) -> None:
        self.root = root
        self.numbers = iter(_NUMBER.findall(text))
        self.words = iter([a or b for a, b in _QUOTED.findall(text)])
        self.depth = 0

    def of(self, schema: Any) -> Any:
        if not isinstance(schema, dict):
            return "text"
        if "$ref" in schema:
            return self._deeper(_resolved(schema["$ref"], self.root))
        for name in ("const", "default"):
            if name in schema:
                return schema[name]
        if schema.get("enum"):
            return schema["enum"][0]
        for name in ("anyOf", "oneOf", "allOf"):
            if schema.get(name):
                return self._deeper(schema[name][0])
        kind = schema.get("type", "object" if "properties" in schema else "string")
        kind = (
            next((one for one in kind if one != "null"), "null") if isinstance(kind, list) else kind
        )
        return self._plain(str(kind).lower(), schema)

    def _deeper(self, schema: Any) -> Any:
        self.depth += 1
        try:
            return None if self.depth > 12 else self.of(schema)
        finally:
            self.depth -= 1

    def _plain(self, kind: str, schema: JSON) -> Any:
        if kind == "object":
            wanted = schema.get("required") or list(schema.get("properties", {}))
            known = schema.get("properties", {})
            return {name: self._deeper(known.get(name, {})) for name in wanted}
        if kind == "array":
            return [
                self._deeper(schema.get("items", {}))
                for _ in range(max(1, schema.get("minItems", 1)))
            ]
        if kind in ("integer", "number"):
            found = next(self.numbers, "1")
            return int(float(found)) if kind == "integer" else float(found)
        return {"boolean": True, "null": None}.get(kind, next(self.words, "text"))


def _resolved(ref: str, root: JSON) -> Any:
    found: Any = root
    for name in ref.removeprefix("#").strip("/").split("/"):
        found = (
            found.get(unquote(name.replace("~1", "/").replace("~0", "~")), {}) if name else found
        )
    return found


def signed(text: str, size: int = 64) -> str:
    """Return a signature of *text* as base64, with the marks that are not in a tool call's id."""
    seal = hmac.new(SECRET, text.encode(), hashlib.sha512).digest()
    return base64.b64encode(b"\xfb\xff\xbe" + (seal * (size // 64 + 1))[:size]).decode()


# -- what all formats share ------------------------------------------------------------------------


def known(
    body: JSON, names: Iterable[str], place: str, say: str = "Unknown parameter: '{}'."
) -> None:
    """Refuse a member that is in none of *names*."""
    for name in body:
        if name not in names:
            where = f"{place}.{name}" if place else name
            raise Refused(say.format(where), "unknown_parameter", where)


def closed(schema: Any, place: str, *, required: bool = False) -> None:
    """Refuse a schema with an object that allows additional properties."""
    for where, inner in objects_of(schema, place):
        if inner.get("additionalProperties") is not False:
            raise Refused(
                f"Invalid schema for {where}: 'additionalProperties' is required to be supplied and to be false.",
                "invalid_json_schema",
                place,
            )
        if required and set(inner.get("properties", {})) - set(inner.get("required", ())):
            raise Refused(
                f"Invalid schema for {where}: 'required' is required to be supplied and to be an array "
                "including every key in properties.",
                "invalid_json_schema",
                place,
            )


def an_object(schema: JSON, place: str) -> None:
    if schema.get("type") != "object":
        raise Refused(f"Invalid schema for {place}: schema must be of 'type: \"object\"'.")


def recurs(schema: Any, root: JSON, path: tuple[str, ...] = ()) -> bool:
    """Return whether a schema refers to itself."""
    if isinstance(schema, list):
        return any(recurs(each, root, path) for each in schema)
    if not isinstance(schema, dict):
        return False
    if isinstance(ref := schema.get("$ref"), str):
        return ref in path or recurs(_resolved(ref, root), root, (*path, ref))
    return any(recurs(each, root, path) for name, each in schema.items() if name != "$defs")


def objects_of(schema: Any, place: str) -> Iterator[tuple[str, JSON]]:
    """Yield each schema of an object, wherever it stands."""
    if isinstance(schema, list):
        for number, inner in enumerate(schema):
            yield from objects_of(inner, f"{place}[{number}]")
    if not isinstance(schema, dict):
        return
    kinds = schema.get("type")
    if (
        kinds == "object"
        or (isinstance(kinds, list) and "object" in kinds)
        or "properties" in schema
    ):
        yield place, schema
    for name in ("items", "additionalProperties", "anyOf", "oneOf", "allOf", "prefixItems", "not"):
        yield from objects_of(schema.get(name), f"{place}.{name}")
    for name in ("properties", "$defs", "definitions", "patternProperties"):
        for key, inner in (schema.get(name) or {}).items():
            yield from objects_of(inner, f"{place}.{name}.{key}")


def check_user(user: Any, most: int, pattern: str = "") -> None:
    if user is None:
        return
    if not isinstance(user, str) or len(user) > most:
        raise Refused(
            f"Invalid 'user': string too long. Expected a string with maximum length {most}, but got "
            f"a string with length {len(str(user))} instead.",
            "string_above_max_length",
            "user",
        )
    if pattern and not re.fullmatch(pattern, user):
        raise Refused(f"Invalid 'user': it does not match {pattern}", "invalid_value", "user")


def version(model: str) -> tuple[int, int]:
    found = re.match(r"(?:ft:)?gpt-(\d+)(?:\.(\d+))?", model)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


def is_openais(model: str) -> bool:
    return re.match(r"(ft:)?(gpt-(?!oss)|o\d|chatgpt-)", model) is not None


def usage_of(asked: Asked, turn: Turn) -> tuple[int, int, int]:
    """Return the tokens of input, output and reasoning."""
    said = turn.text + json.dumps([given for _, given in turn.calls])
    thought = len(turn.thought) // 4
    return asked.size // 4 + 1, len(said) // 4 + 1 + thought, thought


def pieces(text: str, size: int = 7) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


# -- OpenAI's chat completions ---------------------------------------------------------------------

CHAT = frozenset(
    "messages model store reasoning_effort metadata frequency_penalty logit_bias logprobs "
    "top_logprobs max_tokens max_completion_tokens n modalities prediction audio presence_penalty "
    "response_format seed service_tier stop stream stream_options temperature top_p tools tool_choice "
    "parallel_tool_calls user function_call functions web_search_options verbosity prompt_cache_key "
    "prompt_cache_options prompt_cache_retention safety_identifier moderation".split()
)
MESSAGES = {
    "system": {"role", "content", "name"},
    "developer": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {
        "role",
        "content",
        "name",
        "refusal",
        "audio",
        "tool_calls",
        "function_call",
        "annotations",
    },
    "tool": {"role", "content", "tool_call_id"},
    "function": {"role", "content", "name"},
}
PARTS = {
    "system": {"text"},
    "developer": {"text"},
    "user": {"text", "image_url", "input_audio", "file"},
    "assistant": {"text", "refusal"},
    "tool": {"text"},
}
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
CHAT_ONLY_RESPONSES = re.compile(r"gpt-[\w.]*-(pro|codex)|o\d-pro")


def chat(body: JSON) -> Asked:
    """Refuse what chat completions refuse; return what the model sees."""
    known(body, CHAT, "")
    model, tools = body.get("model", ""), body.get("tools") or []
    _check_chat_model(model, body)
    if model.startswith(("mistral", "magistral", "codestral", "devstral", "ministral")):
        ids, say = (
            r"[a-zA-Z0-9]{9}",
            "Tool call id was {} but must be a-z, A-Z, 0-9, with a length of 9.",
        )
    else:
        ids, say = (
            r"(?s).{1,40}",
            "Invalid id: string too long. Expected a string with maximum length 40: {}",
        )
    recalls = model.startswith(("deepseek", "kimi"))
    strings = model.startswith("deepseek")
    _check_chat_messages(
        body.get("messages"), re.compile(ids), say, recalls=recalls, strings=strings
    )
    if "9" in ids:
        _check_order(body["messages"])
    offered = [_chat_tool(tool, number) for number, tool in enumerate(tools)]
    form, schema = body.get("response_format") or {}, None
    if form.get("type") == "json_schema":
        inner = form["json_schema"]
        known(inner, {"name", "schema", "strict", "description"}, "response_format.json_schema")
        if not NAME.fullmatch(inner.get("name", "")):
            raise Refused(
                "Missing 'response_format.json_schema.name'.", "missing_required_parameter"
            )
        schema = inner.get("schema", {})
        an_object(schema, "response_format")
        if inner.get("strict"):
            closed(schema, "response_format", required=True)
    elif form.get("type") == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        if "json" not in json.dumps(body["messages"]).lower():
            raise Refused(
                "'messages' must contain the word 'json' in some form, to use json_object."
            )
    return _seen_in_chat(body, offered, schema)


def _check_chat_model(model: str, body: JSON) -> None:
    effort, tools = body.get("reasoning_effort"), body.get("tools")
    if re.match(r"(llama|gemma|phi)", model) and effort is not None:  # Ollama
        raise Refused(f'"{model}" does not support thinking')
    check_user(
        body.get("user"), 64 if is_openais(model) else 128, r"[\w-]+" if "deepseek" in model else ""
    )
    if not is_openais(model):
        return
    for name in ("tools", "stop"):
        if body.get(name) == []:
            raise Refused(f"Invalid '{name}': empty array.", "empty_array", name)
    for name in ("tool_choice", "parallel_tool_calls"):
        if name in body and not tools:
            raise Refused(f"'{name}' is only allowed when 'tools' are specified.", param=name)
    if len(body.get("stop") or ()) > 4 and isinstance(body["stop"], list):
        raise Refused("Invalid 'stop': array too long.", "array_above_max_length", "stop")
    if "stop" in body and re.match(r"gpt-[5-9](?!.*-chat)|o[34](?!-mini)|o4", model):
        raise Refused("Unsupported parameter: 'stop' is not supported with this model.", "", "stop")
    if model.startswith("gpt-4o") and (most := body.get("max_tokens", 0)) > 16_384:
        raise Refused(
            f"max_tokens is too large: {most}. This model supports at most 16384 completion tokens.",
            "invalid_value",
            "max_tokens",
        )
    if CHAT_ONLY_RESPONSES.match(model):
        raise Refused(
            "This model is only supported in v1/responses and not in v1/chat/completions.",
            "model_not_found",
            "model",
            404,
        )
    if re.match(r"(ft:)?(gpt-[34]|chatgpt-)", model) and effort is not None:
        raise Refused("Unrecognized request argument supplied: reasoning_effort")
    if re.match(r"(ft:)?(o\d|gpt-([5-9]|\d\d))", model) and "max_tokens" in body:
        raise Refused(
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            "unsupported_parameter",
            "max_tokens",
        )
    check_effort(model, body, effort)
    if tools and (
        version(model) >= (5, 6) or (version(model) >= (5, 4) and effort not in (None, "none"))
    ):
        raise Refused(
            f"Function tools with reasoning_effort are not supported for {model} in "
            "/v1/chat/completions. To use function tools, use /v1/responses.",
            "invalid_request_error",
            "reasoning_effort",
        )


EFFORTS = (  # by the model, the first is what it does unasked
    (r"gpt-(6-astra|6\.1-sol)", "medium low high xhigh max"),
    (r"gpt-(5\.[6-9]|[6-9])", "medium none low high xhigh max"),
    (r"gpt-5\.5", "medium none low high xhigh"),
    (r"gpt-5\.[2-4]", "none low medium high xhigh"),
    (r"gpt-5\.1", "none low medium high"),
    (r"gpt-5", "medium minimal low high"),
    (r"o\d", "medium low high"),
)


def check_effort(model: str, body: JSON, effort: str | None) -> None:
    """Refuse an effort that the model lacks, and what is about sampling while it reasons."""
    efforts = next((found for name, found in EFFORTS if re.match(name, model)), "").split()
    if not efforts or "-chat" in model:
        return
    if effort is not None and effort not in efforts:
        raise Refused(f"Unsupported value: '{effort}'.", "unsupported_value", "reasoning_effort")
    for name, usual in (("temperature", 1), ("top_p", 1)):
        if (effort or efforts[0]) != "none" and body.get(name, usual) != usual:
            raise Refused(
                f"Unsupported parameter: '{name}' is not supported with this model.",
                "unsupported_parameter",
                name,
            )


def _check_chat_messages(
    messages: Any, ids: re.Pattern[str], say: str, *, recalls: bool, strings: bool
) -> None:
    if not isinstance(messages, list) or not messages:
        raise Refused("Invalid 'messages': empty array.", "empty_array", "messages")
    waiting: set[str] = set()
    for number, message in enumerate(messages):
        place, role = f"messages[{number}]", message.get("role")
        if role not in MESSAGES:
            raise Refused(f"Invalid value: '{role}'.", "invalid_value", f"{place}.role")
        own = {"reasoning_content"} if recalls else {"prefix"} if "9" in ids.pattern else set()
        known(message, MESSAGES[role] | own, place)
        if strings and isinstance(message.get("content"), list):
            raise Refused(f"{place}: invalid type: sequence, expected a string")
        if recalls and message.get("tool_calls") and not message.get("reasoning_content"):
            raise Refused(f"reasoning_content is missing in assistant tool call message at {place}")
        if waiting and role != "tool":
            raise _unanswered(waiting)
        if role == "tool":
            ident = message.get("tool_call_id")
            if ident not in waiting:
                raise Refused(
                    "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'.",
                    param=place,
                )
            waiting.discard(ident)
        _check_chat_content(message, role, place)
        for call in message.get("tool_calls") or []:
            _check_chat_call(call, place, ids, say)
            waiting.add(call["id"])
    if waiting:
        raise _unanswered(waiting)


HEARD = {"role": "assistant", "content": "OK."}  # before a user who would follow a tool


def _check_order(messages: list[JSON]) -> None:
    """Mistral's rules of which role may follow which, and be last."""
    follow = {
        "system": ("user", "assistant", "system"),
        "user": ("assistant", "system", "user"),
        "assistant": ("assistant", "user", "tool"),
        "tool": ("assistant", "tool"),
    }
    for one, other in itertools.pairwise(message["role"] for message in messages):
        if other not in follow.get(one, ()):
            raise Refused(f"Unexpected role '{other}' after role '{one}'")
    if messages[-1]["role"] in ("system", "assistant") and not messages[-1].get("prefix"):
        raise Refused("Expected last role User or Tool (or Assistant with prefix True) for serving")


def _unanswered(waiting: set[str]) -> Refused:
    return Refused(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each "
        f"'tool_call_id'. The following tool_call_ids did not have response messages: {', '.join(waiting)}"
    )


def _check_chat_content(message: JSON, role: str, place: str) -> None:
    content = message.get("content")
    if isinstance(content, list):
        if not content:
            raise Refused(f"Invalid '{place}.content': empty array.", "empty_array")
        for number, part in enumerate(content):
            where, kind = f"{place}.content[{number}]", part.get("type")
            if kind not in PARTS.get(role, {"text"}):
                raise Refused(
                    f"Invalid value: '{kind}'. It is not supported in a {role} message.",
                    "invalid_value",
                    where,
                )
            known(part, {"type", kind}, where)
    elif content is None:
        if role != "assistant" or not (
            message.keys() & {"tool_calls", "function_call", "refusal", "audio"}
        ):
            raise Refused(f"Invalid value for 'content': expected a string, got null. [{place}]")
    elif not isinstance(content, str):
        raise Refused(f"Invalid type for '{place}.content'.", "invalid_type")


def _check_chat_call(call: JSON, place: str, ids: re.Pattern[str], say: str) -> None:
    kind = call.get("type")
    if kind not in ("function", "custom"):
        raise Refused(f"Invalid value: '{kind}'.", "invalid_value", f"{place}.tool_calls")
    known(call, {"id", "type", kind}, f"{place}.tool_calls[0]")
    if not ids.fullmatch(call.get("id", "")):
        raise Refused(
            say.format(call.get("id")), "string_above_max_length", f"{place}.tool_calls[0].id"
        )
    inner = call[kind]
    known(
        inner,
        {"name", "arguments"} if kind == "function" else {"name", "input"},
        f"{place}.tool_calls",
    )
    if not NAME.fullmatch(inner.get("name", "")):
        raise Refused("Invalid name of a function", "invalid_value")
    if not isinstance(inner.get("arguments" if kind == "function" else "input"), str):
        raise Refused("Invalid type for arguments: expected a string.", "invalid_type")


def _chat_tool(tool: JSON, number: int) -> Tool:
    place, kind = f"tools[{number}]", tool.get("type")
    if kind not in ("function", "custom"):
        raise Refused(
            f"Invalid value: '{kind}'. Supported values are: 'function' and 'custom'.",
            "invalid_value",
            f"{place}.type",
        )
    known(tool, {"type", kind}, place)
    inner = tool[kind]
    if not NAME.fullmatch(inner.get("name", "")):
        raise Refused(f"Invalid '{place}.{kind}.name'.", "invalid_value", f"{place}.name")
    if kind == "custom":
        known(inner, {"name", "description", "format"}, place)
        return Tool(inner["name"], {}, True)
    known(inner, {"name", "description", "parameters", "strict"}, place)
    return Tool(inner["name"], checked_parameters(inner, place))


def checked_parameters(function: JSON, place: str) -> JSON:
    schema = function.get("parameters") or {"type": "object", "properties": {}}
    if schema.get("type") != "object":
        raise Refused(
            f"Invalid schema for function: schema must be a JSON Schema of 'type: \"object\"'. [{place}]",
            "invalid_function_parameters",
            place,
        )
    if function.get("strict"):
        closed(schema, place, required=True)
    return schema


def _seen_in_chat(body: JSON, tools: list[Tool], schema: JSON | None) -> Asked:
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names = [each[each["type"]]["name"] for each in choice["allowed_tools"]["tools"]]
        tools, choice = (
            [tool for tool in tools if tool.name in names],
            choice["allowed_tools"]["mode"],
        )
    elif isinstance(choice, dict):
        choice = choice[choice["type"]]["name"]
    items = [
        Item(
            message["role"],
            content_text(message.get("content")) + (message.get("refusal") or ""),
            tuple(map(_called, message.get("tool_calls") or ())),
        )
        for before, message in itertools.pairwise([{}, *body["messages"]])
        if message != HEARD or before.get("role") != "tool"
    ]
    effort = body.get("reasoning_effort")
    return seen(
        body,
        items,
        tools,
        choice,
        body.get("parallel_tool_calls", True),
        schema,
        effort not in (None, "none"),
    )


def _called(call: JSON) -> tuple[str, Any]:
    inner = call[call["type"]]
    return inner["name"], inner["input"] if "input" in inner else read_arguments(inner)


def read_arguments(call: JSON) -> Any:
    """Return a call's arguments; models also write what is no JSON."""
    with contextlib.suppress(ValueError):
        return json.loads(call["arguments"])
    return call["arguments"]


def seen(
    body: JSON,
    items: Sequence[Item],
    tools: list[Tool],
    choice: str,
    parallel: bool,
    schema: JSON | None,
    thinks: bool,
    model: str = "",
) -> Asked:
    """Return what the model sees of *items*."""
    asked_at = max(
        (at for at, item in enumerate(items) if item.role == "user" and item.text != IMAGE_SEEN),
        default=-1,
    )
    after = items[asked_at + 1 :]
    results: list[str] = []
    for role, text, calls in after:
        if calls:
            results = []
        elif role in ("tool", "user"):
            results.append(text)
    text = items[asked_at].text if asked_at >= 0 else ""
    steps = sum(1 for _, _, calls in after if calls)
    return Asked(
        model or body.get("model", ""),
        text,
        results,
        steps,
        tools,
        choice or "auto",
        parallel,
        schema,
        thinks,
        len(json.dumps(body)),
        items,
    )


def content_text(content: Any) -> str:
    """Return the text of a content; each image counts as a word."""
    if isinstance(content, str) or content is None:
        return content or ""
    words = []
    for part in content:
        kind = part.get("type", "")
        if isinstance(part.get("text"), str):
            words.append(part["text"])
        elif "image" in kind or "inlineData" in part or "fileData" in part:
            words.append(IMAGE_SEEN)
        elif kind in ("file", "document", "input_file"):
            words.append("(a file)")
    return " ".join(words)


def chat_answer(body: JSON, asked: Asked, turn: Turn) -> JSON:
    message: JSON = {
        "role": "assistant",
        "content": turn.text or None,
        "refusal": None,
        "annotations": [],
    }
    if turn.calls:
        message["tool_calls"] = [
            _chat_call(body, number, *call) for number, call in enumerate(turn.calls)
        ]
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": "tool_calls" if turn.calls else "stop",
    }
    return {
        "id": "chatcmpl-" + unique(body),
        "object": "chat.completion",
        "created": 1900000000,
        "model": asked.model,
        "choices": [choice],
        "usage": _chat_usage(asked, turn),
        "service_tier": "default",
    }


def _chat_call(body: JSON, number: int, tool: Tool, given: Any) -> JSON:
    ident = call_id(body, number, asked_model=body["model"])
    if tool.custom:
        return {"id": ident, "type": "custom", "custom": {"name": tool.name, "input": given}}
    return {
        "id": ident,
        "type": "function",
        "function": {"name": tool.name, "arguments": json.dumps(given)},
    }


def _chat_usage(asked: Asked, turn: Turn) -> JSON:
    read, written, thought = usage_of(asked, turn)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": thought, "audio_tokens": 0},
    }


def unique(body: JSON) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()[:24]


def call_id(body: JSON, number: int, *, asked_model: str = "") -> str:
    digest = hashlib.sha256(f"{number} {json.dumps(body)}".encode()).hexdigest()
    if asked_model.startswith(("mistral", "magistral", "codestral", "devstral", "ministral")):
        return digest[:9]
    return (
        f"functions.x:{number}-{digest[:6]}"
        if asked_model.startswith("kimi")
        else f"call_{digest[:24]}"
    )


def chat_events(body: JSON, asked: Asked, turn: Turn) -> Iterator[bytes]:
    whole = chat_answer(body, asked, turn)
    head = {name: whole[name] for name in ("id", "created", "model")} | {
        "object": "chat.completion.chunk"
    }
    usage = {"usage": None} if (body.get("stream_options") or {}).get("include_usage") else {}

    def event(delta: JSON, finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return data_event(head | {"choices": [choice]} | usage)

    yield event({"role": "assistant", "content": "", "refusal": None})
    for piece in pieces(turn.text):
        yield event({"content": piece})
    for number, call in enumerate(whole["choices"][0]["message"].get("tool_calls", [])):
        kind, field = (call["type"], "input" if call["type"] == "custom" else "arguments")
        inner = call[kind]
        yield event({"tool_calls": [{"index": number, **call, kind: inner | {field: ""}}]})
        for piece in pieces(inner[field]):
            yield event({"tool_calls": [{"index": number, kind: {field: piece}}]})
    yield event({}, whole["choices"][0]["finish_reason"])
    if usage:
        yield data_event(head | {"choices": [], "usage": whole["usage"]})
    yield b"data: [DONE]\n\n"


def data_event(body: JSON, name: str = "") -> bytes:
    first = f"event: {name}\n".encode() if name else b""
    return first + b"data: " + json.dumps(body).encode() + b"\n\n"


def openai_error(error: Refused) -> JSON:
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param or None,
            "code": error.code or None,
        }
    }


# -- OpenAI's Responses ----------------------------------------------------------------------------

RESPONSES = frozenset(
    "background conversation context_management include input instructions max_output_tokens "
    "max_tool_calls metadata model parallel_tool_calls previous_response_id prompt prompt_cache_key "
    "prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream stream_options "
    "temperature text tool_choice tools top_logprobs top_p truncation user client_metadata".split()
)
ITEMS: dict[str, tuple[str, set[str]]] = {  # the beginning of the id, and the members
    "message": ("msg", {"type", "id", "role", "content", "status", "phase"}),
    "reasoning": ("rs", {"type", "id", "summary", "content", "encrypted_content", "status"}),
    "function_call": ("fc", {"type", "id", "call_id", "name", "arguments", "status", "namespace"}),
    "function_call_output": ("fc", {"type", "id", "call_id", "output", "status"}),
    "custom_tool_call": ("ctc", {"type", "id", "call_id", "name", "input", "status", "namespace"}),
    "custom_tool_call_output": ("ctc", {"type", "id", "call_id", "output", "status"}),
    "item_reference": ("", {"type", "id"}),
    "additional_tools": ("at", {"type", "id", "role", "tools"}),
}
IN_PARTS = {"input_text", "input_image", "input_file", "input_audio"}
OUT_PARTS = {"output_text", "refusal"}
OWN_TOOLS = {
    "web_search",
    "web_search_preview",
    "file_search",
    "code_interpreter",
    "image_generation",
    "tool_search",
    "namespace",
    "mcp",
    "local_shell",
    "shell",
    "apply_patch",
}


def responses(body: JSON, stored: Mapping[str, list[JSON]]) -> Asked:
    """Refuse what Responses refuses; return what the model sees."""
    known(body, RESPONSES, "")
    model, reasoning = body.get("model", ""), body.get("reasoning") or {}
    check_user(body.get("user"), 64)
    if re.match(r"(ft:)?(gpt-[34]|chatgpt-)", model) and reasoning.get("effort") is not None:
        raise Refused(
            "Unsupported parameter: 'reasoning.effort' is not supported with this model.",
            "unsupported_parameter",
            "reasoning.effort",
        )
    check_effort(model, body, reasoning.get("effort"))
    known(reasoning, {"effort", "summary", "generate_summary", "context"}, "reasoning")
    before: list[JSON] = []
    if (previous := body.get("previous_response_id")) is not None:
        if previous not in stored:
            raise Refused(
                f"Previous response with id '{previous}' not found.",
                "previous_response_not_found",
                "previous_response_id",
            )
        before = stored[previous]
    items = before + input_items(body.get("input"))
    _check_items(items)
    form, schema = (body.get("text") or {}).get("format") or {}, None
    if form.get("type") == "json_schema":
        known(form, {"type", "name", "schema", "strict", "description"}, "text.format")
        schema = form["schema"]
        an_object(schema, "text.format")
        if form.get("strict"):
            closed(schema, "text.format", required=True)
    elif form.get("type") == "json_object":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
        if "json" not in json.dumps(items).lower():  # the instructions do not count
            raise Refused(
                "Response input messages must contain the word 'json' in some form, to use json_object."
            )
    tools = [
        found
        for number, tool in enumerate([*(body.get("tools") or []), *_added_tools(items)])
        if (found := _responses_tool(tool, number))
    ]
    return _seen_in_responses(body, items, tools, schema)


def _added_tools(items: list[JSON]) -> Iterator[JSON]:
    """Yield the tools that items add; those of a namespace tell its name."""
    for item in items:
        for tool in item.get("tools", []) if item["type"] == "additional_tools" else []:
            inner = tool["tools"] if tool["type"] == "namespace" else [tool]
            space = {"namespace": tool["name"]} if tool["type"] == "namespace" else {}
            yield from (one | space for one in inner)


def input_items(value: Any) -> list[JSON]:
    if isinstance(value, str):
        return [{"type": "message", "role": "user", "content": value}]
    if not isinstance(value, list):
        raise Refused("Missing required parameter: 'input'.", "missing_required_parameter", "input")
    return [item if "type" in item else {"type": "message"} | item for item in value]


def _check_items(items: list[JSON]) -> None:
    calls: dict[str, str] = {}
    answered: set[str] = set()
    for number, item in enumerate(items):
        place, kind = f"input[{number}]", item["type"]
        if kind not in ITEMS:
            raise Refused(f"Invalid value: '{kind}'.", "invalid_value", f"{place}.type")
        prefix, members = ITEMS[kind]
        known(item, members, place)
        if item.get("id") is not None and not str(item["id"]).startswith(prefix):
            raise Refused(
                f"Invalid '{place}.id': '{item['id']}'. Expected an ID that begins with '{prefix}'.",
                "invalid_value",
                f"{place}.id",
            )
        if "call_id" in members:
            _check_call_item(item, place, calls, answered)
        elif kind == "message":
            _check_message_item(item, place)
        elif kind == "reasoning":
            _check_reasoning_item(items, number, place)
    for ident in calls:
        if ident not in answered:
            raise Refused(f"No tool output found for function call {ident}.", param="input")


def _check_call_item(item: JSON, place: str, calls: dict[str, str], answered: set[str]) -> None:
    ident, kind = item.get("call_id"), item["type"]
    if not isinstance(ident, str) or not 1 <= len(ident) <= 64:
        raise Refused(
            f"Invalid '{place}.call_id': string too long. Expected a string with maximum length 64.",
            "string_above_max_length",
            f"{place}.call_id",
        )
    if kind.endswith("_output"):
        if ident not in calls:
            raise Refused(
                f"No tool call found for function call output with call_id {ident}.", param="input"
            )
        answered.add(ident)
        _check_parts(item.get("output"), IN_PARTS, f"{place}.output")
    else:
        if not isinstance(item.get("arguments" if kind == "function_call" else "input"), str):
            raise Refused(
                f"Missing required parameter: '{place}.arguments'.", "missing_required_parameter"
            )
        if not NAME.fullmatch(item.get("name", "")):
            raise Refused(f"Invalid '{place}.name'.", "invalid_value")
        calls[ident] = kind


def _check_message_item(item: JSON, place: str) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise Refused(f"Invalid value: '{role}'.", "invalid_value", f"{place}.role")
    _check_parts(
        item.get("content"), OUT_PARTS if role == "assistant" else IN_PARTS, f"{place}.content"
    )


def _check_parts(content: Any, kinds: set[str], place: str) -> None:
    if isinstance(content, str):
        return
    if not isinstance(content, list):
        raise Refused(
            f"Missing required parameter: '{place}'.", "missing_required_parameter", place
        )
    for number, part in enumerate(content):
        if part.get("type") not in kinds:
            raise Refused(
                f"Invalid value: '{part.get('type')}'. Supported values are: {sorted(kinds)}.",
                "invalid_value",
                f"{place}[{number}]",
            )


def _check_reasoning_item(items: list[JSON], number: int, place: str) -> None:
    item = items[number]
    if not isinstance(item.get("summary"), list):
        raise Refused(
            f"Missing required parameter: '{place}.summary'.", "missing_required_parameter"
        )
    sealed = item.get("encrypted_content")
    known_id = str(item.get("id") or "")  # clients that store nothing may leave it out
    if sealed is not None and sealed != (_encrypted(known_id) if known_id else sealed):
        raise Refused(
            f"The encrypted content {str(sealed)[:12]}… could not be verified.",
            "invalid_encrypted_content",
            place,
        )
    if sealed is None:
        raise Refused(
            f"Item with id '{item.get('id')}' not found. Items are not persisted when `store` is set to false.",
            status=404,
        )
    after = items[number + 1] if number + 1 < len(items) else {"type": ""}
    theirs = (
        after["type"] in ("function_call", "custom_tool_call", "reasoning")
        or after.get("role") == "assistant"
    )
    if not theirs:
        raise Refused(
            f"Item '{item.get('id')}' of type 'reasoning' was provided without its required following item.",
            param="input",
        )


def _encrypted(ident: str) -> str:
    return "gAAAA" + signed(ident, 96)


def _responses_tool(tool: JSON, number: int) -> Tool | None:
    place, kind = f"tools[{number}]", tool.get("type")
    tool, space = dict(tool), str(tool.get("namespace", ""))
    tool.pop("namespace", None)
    if re.sub(r"_\d{4}_\d\d_\d\d$", "", str(kind)) in OWN_TOOLS:
        return None
    if kind not in ("function", "custom"):
        raise Refused(f"Invalid value: '{kind}'.", "invalid_value", f"{place}.type")
    members = {"type", "name", "description", "parameters", "strict", "defer_loading"}
    known(
        tool,
        members
        if kind == "function"
        else {"type", "name", "description", "format", "defer_loading"},
        place,
    )
    if not NAME.fullmatch(tool.get("name", "")):
        raise Refused(
            f"Missing required parameter: '{place}.name'.",
            "missing_required_parameter",
            f"{place}.name",
        )
    return (
        Tool(tool["name"], {}, True, space)
        if kind == "custom"
        else Tool(tool["name"], checked_parameters(tool, place), space=space)
    )


def _seen_in_responses(
    body: JSON, items: list[JSON], tools: list[Tool], schema: JSON | None
) -> Asked:
    choice = body.get("tool_choice", "auto")
    if isinstance(choice, dict) and choice.get("type") == "allowed_tools":
        names = [each.get("name") for each in choice["tools"]]
        tools, choice = [tool for tool in tools if tool.name in names], choice["mode"]
    elif isinstance(choice, dict):
        choice = choice.get("name", "auto")
    told: list[Item] = []
    for item in items:
        kind = item["type"]
        if kind.endswith("_output"):
            told.append(Item("tool", content_text(item["output"])))
        elif kind in ("function_call", "custom_tool_call"):
            given = item["input"] if "input" in item else read_arguments(item)
            before = told.pop().calls if told and told[-1].calls else ()
            told.append(Item("assistant", "", (*before, (item["name"], given))))
        elif kind == "message":
            told.append(Item(item["role"], content_text(item["content"])))
    thinks = (body.get("reasoning") or {}).get("effort") not in (None, "none")
    return seen(body, told, tools, choice, body.get("parallel_tool_calls", True), schema, thinks)


def responses_answer(body: JSON, asked: Asked, turn: Turn) -> JSON:
    ident, output = unique(body), []
    if turn.thought:
        rs = f"rs_{ident}"
        item: JSON = {"id": rs, "type": "reasoning", "summary": []}
        if (body.get("reasoning") or {}).get("summary"):
            item["summary"] = [{"type": "summary_text", "text": turn.thought}]
        if "reasoning.encrypted_content" in (body.get("include") or ()):
            item["encrypted_content"] = _encrypted(rs)
        output.append(item)
    if turn.text:
        part = {"type": "output_text", "text": turn.text, "annotations": [], "logprobs": []}
        output.append(
            {
                "id": f"msg_{ident}",
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [part],
            }
        )
    for number, (tool, given) in enumerate(turn.calls):
        kind, field, said = (
            ("custom_tool_call", "input", given)
            if tool.custom
            else ("function_call", "arguments", json.dumps(given))
        )
        prefix = "ctc" if tool.custom else "fc"
        output.append(
            {
                "id": f"{prefix}_{number}{ident}",
                "type": kind,
                "status": "completed",
                "call_id": call_id(body, number),
                "name": tool.name,
                field: said,
            }
            | ({"namespace": tool.space} if tool.space else {})
        )
    return _response_object(body, asked, f"resp_{ident}", output, turn)


def _response_object(
    body: JSON, asked: Asked, ident: str, output: list[JSON], turn: Turn | None
) -> JSON:
    usage = None
    if turn is not None:
        read, written, thought = usage_of(asked, turn)
        usage = {
            "input_tokens": read,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": written,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": read + written,
        }
    return {
        "id": ident,
        "object": "response",
        "created_at": 1900000000,
        "status": "in_progress" if turn is None else "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "model": asked.model,
        "output": output,
        "parallel_tool_calls": body.get("parallel_tool_calls", True),
        "previous_response_id": body.get("previous_response_id"),
        "reasoning": {"effort": None, "summary": None} | (body.get("reasoning") or {}),
        "service_tier": "default",
        "store": body.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": {"format": {"type": "text"}} | (body.get("text") or {}),
        "tool_choice": body.get("tool_choice", "auto"),
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p", 1.0),
        "truncation": body.get("truncation", "disabled"),
        "usage": usage,
        "user": body.get("user"),
        "metadata": body.get("metadata") or {},
    }


def responses_events(body: JSON, asked: Asked, turn: Turn) -> Iterator[bytes]:
    whole, count = responses_answer(body, asked, turn), iter(range(10**6))

    def event(kind: str, **members: Any) -> bytes:
        return data_event({"type": kind, "sequence_number": next(count), **members}, kind)

    begun = _response_object(body, asked, whole["id"], [], None)
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        at = {"output_index": index}
        yield event("response.output_item.added", **at, item=_opened(item))
        at["item_id"] = item["id"]
        if item["type"] == "message":
            yield from _message_events(event, item["content"][0], at)
        elif item["type"] == "reasoning":
            yield from _summary_events(event, item["summary"], at)
        else:
            kind, field = (
                ("custom_tool_call_input", "input")
                if "input" in item
                else ("function_call_arguments", "arguments")
            )
            for piece in pieces(item[field]):
                yield event(f"response.{kind}.delta", **at, delta=piece)
            yield event(f"response.{kind}.done", **at, **{field: item[field]})
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.completed", response=whole)


def _opened(item: JSON) -> JSON:
    empty: JSON = {
        "content": [],
        "summary": [],
        "arguments": "",
        "input": "",
        "status": "in_progress",
    }
    return {name: empty.get(name, value) for name, value in item.items()}


def _message_events(event: Any, part: JSON, at: JSON) -> Iterator[bytes]:
    here = at | {"content_index": 0}
    yield event("response.content_part.added", **here, part=part | {"text": ""})
    for piece in pieces(part["text"]):
        yield event("response.output_text.delta", **here, delta=piece, logprobs=[])
    yield event("response.output_text.done", **here, text=part["text"], logprobs=[])
    yield event("response.content_part.done", **here, part=part)


def _summary_events(event: Any, summary: list[JSON], at: JSON) -> Iterator[bytes]:
    for number, part in enumerate(summary):
        here = at | {"summary_index": number}
        yield event("response.reasoning_summary_part.added", **here, part=part | {"text": ""})
        for piece in pieces(part["text"]):
            yield event("response.reasoning_summary_text.delta", **here, delta=piece)
        yield event("response.reasoning_summary_text.done", **here, text=part["text"])
        yield event("response.reasoning_summary_part.done", **here, part=part)


# -- Anthropic -------------------------------------------------------------------------------------

EXTRA = "{}: Extra inputs are not permitted"
ANTHROPIC = frozenset(
    "model messages max_tokens system metadata stop_sequences stream temperature top_p top_k tools "
    "tool_choice thinking service_tier container mcp_servers context_management output_config "
    "output_format cache_control inference_geo speed diagnostics".split()
)
BLOCKS = {
    "text": {"text", "citations"},
    "image": {"source"},
    "document": {"source", "title", "context", "citations"},
    "tool_use": {"id", "name", "input", "caller"},
    "tool_result": {"tool_use_id", "content", "is_error"},
    "thinking": {"thinking", "signature"},
    "redacted_thinking": {"data"},
    "search_result": {"source", "title", "content", "citations"},
}
TOOL_ID = re.compile(r"[a-zA-Z0-9_-]+")
DATED = re.compile(r"\w+_\d{8}")


def messages(body: JSON) -> Asked:
    """Refuse what the Messages API refuses; return what the model sees."""
    if "thread" in body:
        details = {"error_code": "thread_unsupported_request", "unsupported": ["model"]}
        raise Refused("This model has no threads.", details=details)
    known(body, ANTHROPIC, "", EXTRA)
    for name in ("model", "messages", "max_tokens"):
        if name not in body:
            raise Refused(f"{name}: Field required")
    if not all(stop.strip() for stop in body.get("stop_sequences") or ()):
        raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
    _check_thinking(body)
    user = (body.get("metadata") or {}).get("user_id")
    known(body.get("metadata") or {}, {"user_id"}, "metadata", EXTRA)
    if user is not None and len(user) > 256:
        raise Refused("metadata.user_id: String should have at most 256 characters")
    if "@" in (user or ""):
        raise Refused("metadata.user_id: user_id appears to contain an email address")
    if (count := json.dumps(body).count('"cache_control": {')) > 4:
        raise Refused(f"A maximum of 4 blocks with cache_control may be provided. Found {count}.")
    if isinstance(body.get("system"), list):
        for number, block in enumerate(body["system"]):
            _check_block(block, f"system.{number}", {"text"})
    _check_turns(_spoken(body))
    _check_bound(body)
    if body["messages"][-1]["role"] == "assistant" and _claude(body["model"]) >= (4, 6):
        raise Refused(
            "This model does not support assistant message prefill. "
            "The conversation must end with a user message."
        )
    schema = _check_format(body)
    tools = [
        found
        for number, tool in enumerate(body.get("tools") or [])
        if (found := _anthropic_tool(tool, number))
    ]
    return _seen_in_messages(body, tools, schema)


def _claude(model: str) -> tuple[int, int]:
    found = re.search(r"claude-(?:[a-z]+-)?(\d+)(?:[-.](\d{1,2})(?!\d))?", model)
    return (int(found[1]), int(found[2] or 0)) if found else (0, 0)


ALWAYS_THINKS = re.compile(r"claude-((opus|sonnet)-5-5|(fable|mythos)-5)")
FREE = re.compile(r"claude-((opus|sonnet)-5-5|(fable|mythos)-5-\d\b)")  # to call no tool


def _check_thinking(body: JSON) -> None:
    thinking, newer = body.get("thinking") or {}, _claude(body["model"]) >= (4, 7)
    for name in ("temperature", "top_p", "top_k"):
        if newer and body.get(name) is not None:
            raise Refused(f"`{name}` is deprecated for this model.")
    both = body.keys() >= {"temperature", "top_p"}
    if both and _claude(body["model"]) >= (4, 1):
        raise Refused("`temperature` and `top_p` cannot both be specified for this model.")
    if "tool_choice" in body and not body.get("tools"):
        raise Refused("tool_choice may only be specified while providing tools.")
    if (body.get("tool_choice") or {}).get("type") in ("any", "tool") and FREE.search(
        body["model"]
    ):
        raise Refused('tool_choice: type "tool" and "any" are not supported for this model.')
    kind = thinking.get("type", "disabled")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise Refused("thinking: Input tag is not known")
    lacks = {
        "enabled": newer,
        "adaptive": (0, 0) < _claude(body["model"]) < (4, 6),
        "between_tools": "sonnet-5-5" not in body["model"],
        "disabled": bool(thinking) and ALWAYS_THINKS.search(body["model"]),
    }
    if lacks[kind]:
        raise Refused(f'"thinking.type.{kind}" is not supported for this model.')
    if kind == "enabled":
        if not 1024 <= thinking.get("budget_tokens", 0) < body["max_tokens"]:
            raise Refused(
                "`max_tokens` must be greater than `thinking.budget_tokens`, and that at least 1024."
            )
        last = next(
            (turn for turn in reversed(body["messages"]) if turn.get("role") == "assistant"), None
        )
        content = last["content"] if last is not None else None
        blocks = content if isinstance(content, list) else []
        first = blocks[0]["type"] if blocks else ""
        calls = any(block["type"] == "tool_use" for block in blocks)
        if calls and first not in ("thinking", "redacted_thinking"):
            raise Refused(
                "messages.1.content.0.type: Expected `thinking` or `redacted_thinking`, but found "
                f"`{first}`. When `thinking` is enabled, a final `assistant` message must start "
                "with a thinking block."
            )
    if kind in ("enabled", "adaptive"):
        if (body.get("tool_choice") or {}).get("type") in ("any", "tool"):
            raise Refused("Thinking may not be enabled when tool_choice forces tool use.")
        if body.get("temperature", 1) != 1:
            raise Refused("`temperature` may only be set to 1 when thinking is enabled.")


def bound(body: JSON, turns: list[JSON]) -> str:
    """Return what binds a thought to all that came before it, for models that do so."""
    if not FREE.search(body["model"]):
        return ""
    plain = [
        turn | {"content": [{"type": "text", "text": turn["content"]}]}
        if isinstance(turn.get("content"), str)
        else turn
        for turn in turns
    ]
    text = json.dumps([body.get("system"), body.get("tools"), plain], sort_keys=True)
    text = re.sub(r'(, )?"cache_control": {[^}]*}(?(1)|, )?', "", text)
    return "." + hashlib.sha256(text.encode()).hexdigest()[:12]


def _check_bound(body: JSON) -> None:
    binding = (body.get("thinking") or {}).get("block_binding") or {}
    known(binding, {"prefix_mismatch_behavior"}, "thinking.block_binding", EXTRA)
    lenient = binding.get("prefix_mismatch_behavior") == "drop_block"
    if lenient or not FREE.search(body["model"]):  # others leave out thoughts of another model
        return
    turns = body["messages"]
    for number, turn in enumerate(turns):
        for block in turn["content"] if isinstance(turn["content"], list) else ():
            _, mark, rest = block.get("signature", "").partition(".")
            if mark + rest != bound(body, turns[:number]) and mark:
                raise Refused(
                    f"messages.{number}.content.0: Invalid `signature` in `thinking` block. The "
                    "block is bound to a different conversation."
                )


def _spoken(body: JSON) -> Any:
    """Return the turns without what the system says in between, which newer models take."""
    turns = body["messages"]
    if _claude(body["model"]) < (4, 8) or not isinstance(turns, list):
        return turns
    for before, turn in pairwise(turns):
        if turn.get("role") == "system":
            known(turn, {"role", "content", "output_config", "clear_at"}, "messages", EXTRA)
            known(turn.get("output_config") or {}, {"effort"}, "messages.output_config", EXTRA)
            if before.get("role") != "user" or not (turn.get("content") or turn["output_config"]):
                raise Refused("messages: a system message must follow a user message")
    return [turn for turn in turns if turn.get("role") != "system"]


def _check_turns(turns: Any) -> None:
    if not isinstance(turns, list) or not turns:
        raise Refused("messages: at least one message is required")
    waiting: list[str] = []
    known_ids: set[str] = set()
    for number, turn in enumerate(turns):
        place, role, content = f"messages.{number}", turn.get("role"), turn.get("content")
        known(turn, {"role", "content"}, place, EXTRA)
        if role not in ("user", "assistant"):
            raise Refused(f"{place}.role: Input should be 'user' or 'assistant'")
        if number == 0 and role != "user":
            raise Refused('messages: first message must use the "user" role')
        if not content and not (role == "assistant" and number == len(turns) - 1):
            raise Refused(
                f"{place}: all messages must have non-empty content except for the optional final assistant message"
            )
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        waiting = _check_blocks(blocks, role, place, waiting)
        if len(known_ids) + len(waiting) > len(known_ids := known_ids | {*waiting}):
            raise Refused(f"{place}: `tool_use` ids must be unique")
    if waiting:
        raise _without_result(len(turns), waiting)


def _without_result(number: int, waiting: list[str]) -> Refused:
    return Refused(
        f"messages.{number}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(waiting)}. "
        "Each `tool_use` block must have a corresponding `tool_result` block in the next message."
    )


def _check_blocks(blocks: list[JSON], role: str, place: str, waiting: list[str]) -> list[str]:
    """Check a turn's blocks; *waiting* are the calls of the turn before. Return those of this one."""
    allowed = BLOCKS.keys() - (
        {"tool_use", "thinking", "redacted_thinking"}
        if role == "user"
        else {"tool_result", "image", "document"}
    )
    answered: list[str] = []
    for number, block in enumerate(blocks):
        _check_block(block, f"{place}.content.{number}", allowed)
        if block["type"] == "tool_result":
            ident = block["tool_use_id"]
            if ident not in waiting:
                raise Refused(
                    f"{place}.content.{number}: unexpected `tool_use_id` found in `tool_result` blocks: {ident}."
                )
            if len(answered) != number:
                raise Refused(f"{place}: tool_result blocks must come first in the content")
            answered.append(ident)
        if (
            block["type"] in ("thinking", "redacted_thinking")
            and number
            and blocks[number - 1]["type"] not in ("thinking", "redacted_thinking", "tool_use")
        ):
            raise Refused(f"{place}: thinking must come first in the turn")
    if missing := [ident for ident in waiting if ident not in answered]:
        raise _without_result(int(place.split(".")[1]), missing)
    return [block["id"] for block in blocks if block["type"] == "tool_use"]


def _check_block(block: JSON, place: str, allowed: Iterable[str]) -> None:
    kind = block.get("type")
    if kind not in allowed:
        raise Refused(
            f"{place}: Input tag '{kind}' found using 'type' does not match any of the expected tags"
        )
    known(block, BLOCKS[kind] | {"type", "cache_control"}, f"{place}.{kind}", EXTRA)
    ident = block.get("id", block.get("tool_use_id"))
    if ident is not None and not TOOL_ID.fullmatch(ident):
        raise Refused(f"{place}.{kind}.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if kind == "text" and not block["text"].strip():
        raise Refused("messages: text content blocks must be non-empty")
    own, _, _ = block.get("signature", "").partition(".")
    if kind == "thinking" and own != signed(block["thinking"]):
        raise Refused(f"{place}: Invalid `signature` in `thinking` block")
    if kind == "redacted_thinking" and not block["data"].startswith("gAAAA"):
        raise Refused(f"{place}: Invalid `data` in `redacted_thinking` block")
    if kind == "tool_use" and not isinstance(block.get("input"), dict):
        raise Refused(f"{place}.tool_use.input: Input should be a valid dictionary")
    if kind == "image":
        known(
            block["source"],
            {"type", "media_type", "data", "url", "file_id"},
            f"{place}.source",
            EXTRA,
        )
    if kind == "tool_result" and isinstance(block.get("content"), list):
        for number, inner in enumerate(block["content"]):
            _check_block(
                inner, f"{place}.content.{number}", {"text", "image", "document", "search_result"}
            )


def _check_format(body: JSON) -> JSON | None:
    config = body.get("output_config") or {}
    known(config, {"effort", "format", "task_budget"}, "output_config", EXTRA)
    form = config.get("format") or body.get("output_format")
    if form is None:
        return None
    if form.get("type") != "json_schema":
        raise Refused(
            f"output_config.format.type: Input should be 'json_schema', not '{form.get('type')}'"
        )
    known(form, {"type", "schema"}, "output_config.format", EXTRA)
    if recurs(form["schema"], form["schema"]):
        raise Refused("output_config.format.schema: Recursive schemas are not supported")
    for where, inner in objects_of(form["schema"], "output_config.format.schema"):
        if inner.get("additionalProperties") is not False:
            raise Refused(
                f"{where}: For 'object' type, 'additionalProperties' must be explicitly set to false"
            )
    return dict(form["schema"])


def _anthropic_tool(tool: JSON, number: int) -> Tool | None:
    place = f"tools.{number}"
    if DATED.fullmatch(tool.get("type") or ""):
        return None
    if tool.get("type") not in (None, "custom"):
        raise Refused(
            f"{place}: Input tag '{tool['type']}' found using 'type' does not match any of the expected tags"
        )
    known(
        tool,
        {
            "type",
            "name",
            "description",
            "input_schema",
            "cache_control",
            "strict",
            "defer_loading",
            "eager_input_streaming",
            "allowed_callers",
            "input_examples",
        },
        f"{place}.custom",
        EXTRA,
    )
    if not re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool.get("name", "")):
        raise Refused(
            f"{place}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'"
        )
    schema = tool.get("input_schema") or {}
    if schema.get("type") != "object":
        raise Refused(f"{place}.custom.input_schema.type: Field required")
    if tool.get("strict"):
        closed(schema, place)
    return Tool(tool["name"], schema)


def _seen_in_messages(body: JSON, tools: list[Tool], schema: JSON | None) -> Asked:
    choice = body.get("tool_choice") or {"type": "auto"}
    wanted = {"any": "required", "tool": choice.get("name", "")}.get(choice["type"], choice["type"])
    items: list[Item] = []
    for turn in _spoken(body):
        content = turn["content"]
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        uses = [block for block in blocks if block["type"] == "tool_use"]
        calls = tuple((block["name"], block["input"]) for block in uses)
        results = [block for block in blocks if block["type"] == "tool_result"]
        items += [Item("tool", content_text(block.get("content"))) for block in results]
        rest = [block for block in blocks if block["type"] in ("text", "image", "document")]
        if rest and not (results and all(is_reminder(block) for block in rest)):
            said = content_text([block for block in rest if not is_reminder(block)])
            items.append(Item(turn["role"], said, calls))
        elif calls:
            items.append(Item(turn["role"], "", calls))
    thinks = (body.get("thinking") or {}).get("type", "disabled") != "disabled"
    return seen(
        body, items, tools, wanted, not choice.get("disable_parallel_tool_use"), schema, thinks
    )


def is_reminder(block: JSON) -> bool:
    """Return whether a text is Claude Code's own, beside the user's."""
    return block.get("type") == "text" and block["text"].lstrip().startswith("<system-reminder>")


def messages_answer(body: JSON, asked: Asked, turn: Turn) -> JSON:
    content: list[JSON] = []
    if turn.thought:
        content.append(
            {
                "type": "thinking",
                "thinking": turn.thought,
                "signature": signed(turn.thought) + bound(body, body["messages"]),
            }
        )
    if turn.text:
        content.append({"type": "text", "text": turn.text})
    for number, (tool, given) in enumerate(turn.calls):
        ident = "toolu_" + call_id(body, number)[5:]
        content.append({"type": "tool_use", "id": ident, "name": tool.name, "input": given})
    read, written, thought = usage_of(asked, turn)
    cached = read // 2 if '"cache_control": {' in json.dumps(body) else 0
    return {
        "id": "msg_" + unique(body),
        "type": "message",
        "role": "assistant",
        "model": asked.model,
        "content": content,
        "stop_reason": "tool_use" if turn.calls else "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": read - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": written,
            "output_tokens_details": {"thinking_tokens": thought},
            "service_tier": "standard",
        },
    }


def messages_events(body: JSON, asked: Asked, turn: Turn) -> Iterator[bytes]:
    whole = messages_answer(body, asked, turn)

    def event(kind: str, **members: Any) -> bytes:
        return data_event({"type": kind, **members}, kind)

    yield event(
        "message_start",
        message=whole
        | {"content": [], "stop_reason": None, "usage": whole["usage"] | {"output_tokens": 1}},
    )
    yield event("ping")
    for index, block in enumerate(whole["content"]):
        empty: JSON = {"text": "", "thinking": "", "signature": "", "input": {}}
        yield event(
            "content_block_start",
            index=index,
            content_block={name: empty.get(name, value) for name, value in block.items()},
        )
        if block["type"] == "tool_use":
            deltas = [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in ["", *pieces(json.dumps(block["input"]))]
            ]
        elif block["type"] == "text":
            deltas = [{"type": "text_delta", "text": piece} for piece in pieces(block["text"])]
        else:
            deltas = [
                {"type": "thinking_delta", "thinking": piece} for piece in pieces(block["thinking"])
            ]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        for delta in deltas:
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    yield event(
        "message_delta",
        delta={"stop_reason": whole["stop_reason"], "stop_sequence": None},
        usage=whole["usage"],
    )
    yield event("message_stop")


def anthropic_error(error: Refused) -> JSON:
    kind = {401: "authentication_error", 404: "not_found_error"}.get(
        error.status, "invalid_request_error"
    )
    return {
        "type": "error",
        "error": {"type": kind, "message": error.message}
        | ({"details": error.details} if error.details else {}),
        "request_id": "req_strict",
    }


# -- Google ----------------------------------------------------------------------------------------

UNKNOWN = 'Invalid JSON payload received. Unknown name "{}": Cannot find field.'
GEMINI = frozenset(
    "contents systemInstruction tools toolConfig safetySettings generationConfig cachedContent labels model serviceTier store".split()
)
CONFIG = frozenset(
    "stopSequences responseMimeType responseSchema responseJsonSchema responseModalities candidateCount "
    "maxOutputTokens temperature topP topK seed presencePenalty frequencyPenalty responseLogprobs logprobs "
    "enableEnhancedCivicAnswers speechConfig thinkingConfig mediaResolution imageConfig".split()
)
PART = frozenset(
    "text inlineData fileData functionCall functionResponse executableCode codeExecutionResult thought thoughtSignature videoMetadata toolCall toolResponse mediaResolution".split()
)
SCHEMA = frozenset(
    "type format title description nullable enum items prefixItems minItems maxItems minimum maximum anyOf oneOf properties "
    "required propertyOrdering minProperties maxProperties minLength maxLength pattern example default".split()
)
HAS_TOOLS = frozenset(
    "googleSearch codeExecution urlContext googleMaps computerUse fileSearch googleSearchRetrieval".split()
)


def gemini(body: JSON, model: str) -> Asked:
    """Refuse what generateContent refuses; return what the model sees."""
    body = _cameled(body)
    known(body, GEMINI, "", UNKNOWN)
    contents, config = body.get("contents"), body.get("generationConfig") or {}
    if not contents:
        raise Refused("* GenerateContentRequest.contents: contents is not specified")
    known(config, CONFIG, "generationConfig", UNKNOWN)
    known(
        config.get("thinkingConfig") or {},
        {"includeThoughts", "thinkingBudget", "thinkingLevel"},
        "generationConfig.thinkingConfig",
        UNKNOWN,
    )
    thinking = config.get("thinkingConfig") or {}
    if thinking.keys() >= {"thinkingBudget", "thinkingLevel"}:
        raise Refused("You can only set only one of thinking budget and thinking level.")
    if thinking.get("thinkingBudget") == 0 and re.match(r"gemini-([3-9]|.*-pro)", model):
        raise Refused("Budget 0 is invalid. This model only works in thinking mode.")
    body["contents"] = contents = _merged(contents)
    _check_contents(contents, model)
    schema: JSON | None = None
    for name in ("responseSchema", "responseJsonSchema"):
        if name in config:
            schema = config[name]
            _check_subset(schema, f"generationConfig.{name}")
    if schema is not None and config.get("responseMimeType") != "application/json":
        raise Refused("responseSchema needs responseMimeType application/json")
    if schema is None and config.get("responseMimeType") == "application/json":
        schema = {"type": "object", "properties": {"answer": {"type": "string"}}}
    if schema is not None and body.get("tools") and re.match(r"gemini-[12]\b", model):
        raise Refused(
            "Function calling with a response mime type: 'application/json' is unsupported"
        )
    if re.match(r"gemini-(2\.5|[3-9])", model) and (
        config.get("presencePenalty") or config.get("frequencyPenalty")
    ):
        raise Refused("Penalty is not enabled for this model")
    if len(config.get("stopSequences") or ()) > 5:
        raise Refused("* GenerateContentRequest.generation_config.stop_sequences: too many")
    chosen = "functionCallingConfig" in (body.get("toolConfig") or {})
    if chosen and not any("functionDeclarations" in tool for tool in body.get("tools") or ()):
        raise Refused("Function calling config is set without function_declarations.")
    return _seen_in_gemini(body, _gemini_tools(body), schema, model)


def _merged(contents: list[JSON]) -> list[JSON]:
    """Return contents with a model's turn in one: its SDKs send a stream back in pieces."""
    found: list[JSON] = []
    for content in contents:
        if found and content.get("role") == "model" == found[-1].get("role"):
            found[-1] = found[-1] | {"parts": [*found[-1]["parts"], *content["parts"]]}
        else:
            found.append(content)
    return found


def _cameled(value: Any) -> Any:
    """Return *value* with members in camel case, as Google takes both; not what the user named."""
    if isinstance(value, list):
        return [_cameled(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {}
    for name, each in value.items():
        named = _camel(name)
        if named == "properties":
            found[named] = {key: _cameled(one) for key, one in each.items()}
        elif named in ("args", "response", "parametersJsonSchema", "responseJsonSchema", "labels"):
            found[named] = each
        else:
            found[named] = _cameled(each)
    return found


def _camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _check_contents(contents: list[JSON], model: str) -> None:
    waiting = 0
    for number, content in enumerate(contents):
        place, role, parts = (
            f"contents[{number}]",
            content.get("role", "user"),
            content.get("parts") or [],
        )
        known(content, {"role", "parts"}, place, UNKNOWN)
        if role not in ("user", "model", "function"):
            raise Refused("Please use a valid role: user, model.")
        if not parts:
            raise Refused(
                f"* GenerateContentRequest.{place}.parts: contents.parts must not be empty."
            )
        for part in parts:
            known(part, PART, f"{place}.parts", UNKNOWN)
            if not part.keys() - {"thought", "thoughtSignature"}:
                raise Refused(
                    f"{place}.parts: required oneof field 'data' must have one initialized field"
                )
            if (sealed := part.get("thoughtSignature")) not in (None, SKIP) and not _is_googles(
                str(sealed)
            ):
                raise Refused("Thought signature is not valid.")
        results = sum("functionResponse" in part for part in parts)
        if waiting != results:
            raise Refused(
                "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn."
            )
        calls = [part for part in parts if "functionCall" in part]
        if calls and not number:
            raise Refused(
                "Please ensure that function call turn comes immediately after a user turn or after a function response turn."
            )
        _check_calls(calls, parts, place, model)
        waiting = len(calls)
    if waiting:
        raise Refused(
            "Please ensure that function call turn comes immediately before a function response turn."
        )


def _check_calls(calls: list[JSON], parts: list[JSON], place: str, model: str) -> None:
    if calls and re.match(r"gemini-([3-9]|\d\d)", model) and not calls[0].get("thoughtSignature"):
        raise Refused(
            f"Function call `{calls[0]['functionCall'].get('name')}` in the {place} is missing a `thought_signature`."
        )
    for part in parts:
        for name in ("functionCall", "functionResponse"):
            if name not in part:
                continue
            known(
                part[name],
                {"id", "name", "args", "response", "parts", "willContinue", "scheduling"},
                f"{place}.{name}",
                UNKNOWN,
            )
            if "parts" in part[name] and re.match(r"gemini-[12]\b", model):
                raise Refused(f"{place}.{name}: multimodal function responses are not supported")
            inner = part[name].get("args" if name == "functionCall" else "response", {})
            if not isinstance(inner, dict) or not re.fullmatch(
                r"[a-zA-Z_][\w.:-]{0,127}", part[name].get("name", "")
            ):
                raise Refused(f"{place}.{name}: invalid name or arguments")


def _googles(seed: str) -> str:
    return signed(f"google {seed}", 320)


def _is_googles(sealed: str) -> bool:
    sealed = sealed.translate(str.maketrans("-_", "+/"))  # its SDKs write base64 for URLs
    with contextlib.suppress(ValueError):
        data = base64.b64decode(sealed, validate=True)
        return len(data) == 323 and data[3:67] == data[67:131]
    return False


def _check_subset(schema: Any, place: str) -> None:
    if isinstance(schema, list):
        for inner in schema:
            _check_subset(inner, place)
    if not isinstance(schema, dict):
        return
    known(schema, SCHEMA, place, UNKNOWN)
    for name in ("items", "anyOf", "oneOf", "prefixItems"):
        _check_subset(schema.get(name), f"{place}.{name}")
    for name, inner in (schema.get("properties") or {}).items():
        _check_subset(inner, f"{place}.properties.{name}")


def _gemini_tools(body: JSON) -> list[Tool]:
    found = []
    for number, tool in enumerate(body.get("tools") or []):
        place = f"tools[{number}]"
        known(tool, HAS_TOOLS | {"functionDeclarations"}, place, UNKNOWN)
        for function in tool.get("functionDeclarations") or []:
            known(
                function,
                {
                    "name",
                    "description",
                    "parameters",
                    "parametersJsonSchema",
                    "response",
                    "responseJsonSchema",
                    "behavior",
                },
                f"{place}.functionDeclarations",
                UNKNOWN,
            )
            subset = function.get("parameters") or {}
            schema = function.get("parametersJsonSchema") or subset
            if not re.fullmatch(r"[a-zA-Z_][\w.:-]{0,127}", function.get("name", "")):
                raise Refused(f"Invalid function name in {place}")
            _check_subset(subset, f"{place}.functionDeclarations.parameters")
            found.append(Tool(function["name"], schema))
    return found


def _seen_in_gemini(body: JSON, tools: list[Tool], schema: JSON | None, model: str) -> Asked:
    calling = (body.get("toolConfig") or {}).get("functionCallingConfig") or {}
    names = calling.get("allowedFunctionNames") or []
    choice = {"ANY": "required", "NONE": "none"}.get(calling.get("mode", "AUTO"), "auto")
    if names:
        tools = [tool for tool in tools if tool.name in names]
        choice = names[0] if len(names) == 1 else choice
    items: list[Item] = []
    for content in body["contents"]:
        parts = content["parts"]
        results = [part["functionResponse"] for part in parts if "functionResponse" in part]
        media = content_text([part for part in parts if "text" not in part])
        for number, result in enumerate(results):
            said = result["response"]
            said = said.get("result", said.get("output", said)) if len(said) == 1 else said
            words = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
            words = f"{words} {content_text(result.get('parts', []))}".strip()
            last = number == len(results) - 1
            items.append(Item("tool", f"{words} {media}".strip() if last else words))
        asked = [part["functionCall"] for part in parts if "functionCall" in part]
        calls = tuple((call["name"], call.get("args") or {}) for call in asked)
        shown = [part for part in parts if not part.get("thought")]
        role = "user" if content.get("role", "user") == "user" else "assistant"
        if not results or any("text" in part for part in parts):
            texts = [part for part in shown if not results or "text" in part]
            items.append(Item(role, content_text(texts), calls))
    thinking = (body.get("generationConfig") or {}).get("thinkingConfig") or {}
    thinks = bool(thinking.get("includeThoughts"))
    return seen(body, items, tools, choice, True, schema, thinks, model)


def gemini_answer(body: JSON, asked: Asked, turn: Turn) -> JSON:
    parts: list[JSON] = [{"text": turn.thought, "thought": True}] if turn.thought else []
    if turn.text:
        parts.append({"text": turn.text})
    signs = re.match(r"gemini-([3-9]|\d\d)", asked.model) is not None
    for number, (tool, given) in enumerate(turn.calls):
        sealed = {"thoughtSignature": _googles(unique(body))} if signs and not number else {}
        parts.append({"functionCall": {"name": tool.name, "args": given}} | sealed)
    return _gemini_body(body, asked, turn, parts, "STOP")


def _gemini_body(
    body: JSON, asked: Asked, turn: Turn, parts: list[JSON], finish: str | None
) -> JSON:
    read, written, thought = usage_of(asked, turn)
    candidate: JSON = {"content": {"parts": parts, "role": "model"}, "index": 0}
    return {
        "candidates": [candidate | ({"finishReason": finish} if finish else {})],
        "usageMetadata": {
            "promptTokenCount": read,
            "candidatesTokenCount": written - thought,
            "thoughtsTokenCount": thought,
            "totalTokenCount": read + written,
        },
        "modelVersion": asked.model,
        "responseId": unique(body),
    }


def gemini_chunks(body: JSON, asked: Asked, turn: Turn) -> Iterator[JSON]:
    parts = gemini_answer(body, asked, turn)["candidates"][0]["content"]["parts"]
    for part in parts[:-1] if parts and "text" not in parts[-1] else parts:
        if "text" not in part:
            yield _gemini_body(body, asked, turn, [part], None)
        for piece in pieces(part.get("text", "")):
            yield _gemini_body(body, asked, turn, [part | {"text": piece}], None)
    last = parts[-1:] if parts and "text" not in parts[-1] else [{"text": ""}]
    yield _gemini_body(body, asked, turn, last, "STOP")


def gemini_error(error: Refused) -> JSON:
    status = {400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND"}.get(
        error.status, "INTERNAL"
    )
    return {"error": {"code": error.status, "message": error.message, "status": status}}


# -- the server ------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """A request that came, and with which status it was answered."""

    path: str
    headers: dict[str, str]
    body: Any
    status: int
    error: str


class StrictVendor(Peer):
    """All four formats at one address; `seen` are the requests so far, `refused` those with errors."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.stored: dict[str, list[JSON]] = {}  # the items of stored responses, by id
        self.script: list[Turn] = []  # what is said next, instead of what the request asks for
        self.asked: list[Asked] = []

    @property
    def refused(self) -> list[str]:
        return [each.error for each in self.seen if each.error]

    def base_url(self, dialect: str) -> str:
        """Return the base URL of a provider that speaks *dialect*."""
        return self.url + ("/v1beta" if dialect == "gemini" else "/v1")

    def answer(self, handler: Any, data: bytes) -> None:
        address = urlsplit(handler.path)
        headers = {name.lower(): value for name, value in handler.headers.items()}
        dialect, body, error = _dialect(address.path), None, ""
        status, reply = 200, b""
        stream: Iterable[bytes] | None = None
        try:
            body = json.loads(data) if data else None
            _check_key(dialect, headers, parse_qs(address.query))
            reply, stream = self._answer(address.path, parse_qs(address.query), body, headers)
        except Refused as refused:
            render = {"anthropic": anthropic_error, "gemini": gemini_error}.get(
                dialect, openai_error
            )
            status, error, reply = (
                refused.status,
                refused.message,
                json.dumps(render(refused)).encode(),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as odd:
            status, error = 400, f"malformed: {odd!r}"
            reply = json.dumps(
                {"error": {"message": error, "type": "invalid_request_error"}}
            ).encode()
        with self.lock:
            self.seen.append(Seen(handler.path, headers, body, status, error))
        own = (
            {"request-id": "req_strict"}
            if dialect == "anthropic"
            else {"x-request-id": "req_strict"}
        )
        if stream is None:
            handler.reply(status, reply, {"Content-Type": "application/json"} | own)
        else:
            _send(handler, stream, own)

    def _answer(
        self, path: str, query: Mapping[str, list[str]], body: Any, headers: Mapping[str, str]
    ) -> tuple[bytes, Iterable[bytes] | None]:
        whole: JSON | None = None
        events: Iterable[bytes] | None = None
        streamed = isinstance(body, dict) and bool(body.get("stream"))
        if path == "/v1/chat/completions":
            args = body, *self._turn(chat(body))
            whole, events = (None, chat_events(*args)) if streamed else (chat_answer(*args), None)
        elif path == "/v1/responses":
            args = body, *self._turn(responses(body, self.stored))
            self._store(body, responses_answer(*args))
            whole, events = (
                (None, responses_events(*args)) if streamed else (responses_answer(*args), None)
            )
        elif path == "/v1/responses/input_tokens":
            whole = {
                "object": "response.input_tokens",
                "input_tokens": len(json.dumps(body)) // 4 + 1,
            }
        elif path.startswith("/v1/messages"):
            if "anthropic-version" not in headers:
                raise Refused("anthropic-version: header is required")
            whole, events = self._messages(path, body, streamed)
        elif path.startswith("/v1beta/"):
            whole, events = self._gemini(path, query, body)
        elif path == "/v1/models":
            whole = {"object": "list", "data": []}
        elif path == "/v1/embeddings":
            given = body["input"] if isinstance(body["input"], list) else [body["input"]]
            vectors = [
                {"object": "embedding", "index": at, "embedding": [0.5, 0.25]}
                for at, _ in enumerate(given)
            ]
            whole = {
                "object": "list",
                "data": vectors,
                "model": body["model"],
                "usage": {"prompt_tokens": 4, "total_tokens": 4},
            }
        else:
            raise Refused(f"Invalid URL ({path})", "unknown_url", status=404)
        return json.dumps(whole).encode(), events

    def _turn(self, asked: Asked) -> tuple[Asked, Turn]:
        self.asked.append(asked)
        return asked, self.script.pop(0) if self.script else turn_of(asked)

    def _store(self, body: JSON, answer: JSON) -> None:
        if body.get("store", True):
            before = self.stored.get(body.get("previous_response_id") or "", [])
            output = [
                item
                | (
                    {"encrypted_content": _encrypted(item["id"])}
                    if item["type"] == "reasoning"
                    else {}
                )
                for item in answer["output"]
            ]
            self.stored[answer["id"]] = [*before, *input_items(body["input"]), *output]

    def _messages(
        self, path: str, body: JSON, streamed: bool
    ) -> tuple[JSON | None, Iterable[bytes] | None]:
        if path == "/v1/messages/count_tokens":
            messages({"max_tokens": 10**6} | body)
            return {"input_tokens": len(json.dumps(body)) // 4 + 1}, None
        args = body, *self._turn(messages(body))
        return (None, messages_events(*args)) if streamed else (messages_answer(*args), None)

    def _gemini(
        self, path: str, query: Mapping[str, list[str]], body: JSON
    ) -> tuple[Any, Iterable[bytes] | None]:
        model, _, verb = unquote(path.removeprefix("/v1beta/models/")).partition(":")
        if verb == "countTokens":
            return {"totalTokens": len(json.dumps(body)) // 4 + 1}, None
        if verb == "embedContent":
            return {"embedding": {"values": [0.5, 0.25]}}, None
        if verb == "batchEmbedContents":
            return {"embeddings": [{"values": [0.5, 0.25]} for _ in body["requests"]]}, None
        if verb not in ("generateContent", "streamGenerateContent"):
            raise Refused(f"no method {verb}", status=404)
        args = body, *self._turn(gemini(body, model))
        if verb == "generateContent":
            return gemini_answer(*args), None
        if query.get("alt") == ["sse"]:
            return None, (
                data_event(chunk).replace(b"\n\n", b"\r\n\r\n") for chunk in gemini_chunks(*args)
            )
        return list(gemini_chunks(*args)), None


def _dialect(path: str) -> str:
    if path.startswith("/v1beta/"):
        return "gemini"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def _check_key(dialect: str, headers: Mapping[str, str], query: Mapping[str, list[str]]) -> None:
    given = {
        "openai": headers.get("authorization", "").removeprefix("Bearer "),
        "anthropic": headers.get("x-api-key")
        or headers.get("authorization", "").removeprefix("Bearer "),
        "gemini": headers.get("x-goog-api-key", "".join(query.get("key", []))),
    }[dialect]
    if given != KEY:
        raise Refused("Incorrect API key provided.", "invalid_api_key", status=401)


def _send(handler: Any, events: Iterable[bytes], headers: Mapping[str, str]) -> None:
    with contextlib.suppress(OSError):
        handler.send_response(200)
        for name, value in {
            "Content-Type": "text/event-stream",
            "Transfer-Encoding": "chunked",
            **headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        for event in events:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
            handler.wfile.flush()
        handler.wfile.write(b"0\r\n\r\n")


if __name__ == "__main__":
    with StrictVendor() as vendor:
        print(vendor.url, "key:", KEY, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait(float(sys.argv[1]) if len(sys.argv) > 1 else None)
