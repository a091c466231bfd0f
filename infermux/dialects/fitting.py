"""Fits what others gave to what a vendor takes: ids of tool calls, users, schemas, reasoning.

Everything is a function of the value alone, so that a call and its result, or two turns of one
conversation, are fitted alike by every worker and host.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from operator import is_
from typing import Any

from ..protocol import InferRequest, strict_json
from ..types import JSON
from . import members, only, require, without
from .parameters import Drop, hint

OPENAI_CALL_ID = re.compile(r"(?s).{0,40}")
RESPONSES_CALL_ID = re.compile(r"[\w.:-]{0,64}", re.ASCII)
ANTHROPIC_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MISTRAL_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
OPENAI_USER = re.compile(r"(?s).{0,64}")
ANY_USER = re.compile(r"(?s).{0,128}")
NO_PERSON = re.compile(r"(?!\+?[\d ().-]{7,}\Z)[^@]{0,128}")  # no telephone, no address
DEEPSEEK_USER = re.compile(r"[\w-]{1,128}", re.ASCII)
MAX_SCHEMAS = 2000  # in one for Google, once its references are replaced


def call_id(ident: str, taken: re.Pattern[str]) -> str:
    """Return a tool call's id if *taken* matches it, else a digest of it that matches."""
    if taken.fullmatch(ident):
        return ident
    other = digest(ident)
    return other[:9] if taken is MISTRAL_CALL_ID else f"call_{other[:24]}"


def user(name: str, taken: re.Pattern[str]) -> str:
    """Return the name of a user if *taken* matches it, else its digest."""
    return name if taken.fullmatch(name) else digest(name)


def digest(text: str) -> str:
    return sha256(text.encode(errors="replace")).hexdigest()


def with_call_ids(message: JSON, taken: re.Pattern[str]) -> JSON:
    """Return a message in OpenAI's form with ids of tool calls that *taken* matches."""
    new = dict(message)
    if type(ident := new.get("tool_call_id")) is str:
        new["tool_call_id"] = call_id(ident, taken)
    if calls := new.get("tool_calls"):
        new["tool_calls"] = [
            call | {"id": call_id(call["id"], taken)} if type(call.get("id")) is str else call
            for call in calls
        ]
    return new


def joined(parts: list[JSON]) -> str | list[JSON]:
    """Join parts to one string if all are text, which every vendor accepts."""
    plain = all(part.keys() == {"type", "text"} for part in parts)
    return "".join(part["text"] for part in parts) if plain else list(parts)


# -- schemas --


def json_schema(wanted: JSON) -> JSON:
    """Return the schema of a json_schema response_format, with its description, if any."""
    named = require(wanted.get("json_schema"), "response_format.json_schema", dict)
    schema: JSON = require(named.get("schema", {}), "response_format.json_schema.schema", dict)
    return ({"description": named["description"]} if named.get("description") else {}) | schema


_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_TABLES = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
_HOLDERS = frozenset((*_LISTS, *_TABLES, *_SINGLE))


def _inner(schema: JSON, change: Callable[[Any], Any]) -> JSON:
    """Return a schema with *change* applied to each schema in it; itself if that changes none."""
    new = schema
    for name in filter(_HOLDERS.__contains__, schema):
        value = changed = schema[name]
        if isinstance(value, list) and (name == "items" or name in _LISTS):
            changed = [*map(change, value)]
            if all(map(is_, changed, value)):
                continue
        elif isinstance(value, dict) and name in _TABLES:
            changed = {key: change(each) for key, each in value.items()}
            if all(map(is_, changed.values(), value.values())):
                continue
        elif isinstance(value, dict) and name in _SINGLE:
            changed = change(value)
        if changed is not value:
            new = {**new, name: changed}
    return new


def _parts(schema: JSON) -> Iterator[Any]:
    """Yield the schemas in a schema, and what stands in their places."""
    for name in filter(_HOLDERS.__contains__, schema):
        value = schema[name]
        if isinstance(value, list) or (isinstance(value, dict) and name in _TABLES):
            yield from value.values() if isinstance(value, dict) else value
        else:
            yield value


def is_object(schema: Any) -> bool:
    kind = schema.get("type") if isinstance(schema, dict) else ""
    named = kind == "object" or (isinstance(kind, list) and "object" in kind)
    return named or (kind is None and "properties" in schema)


def parameters(schema: Any) -> Any:
    """Return a function's schema as OpenAI takes it: an object's, with items in every array."""
    if not isinstance(schema, dict):
        return schema
    new = _inner(schema, _with_items)
    return new if new.keys() >= _OBJECT.keys() else _OBJECT | new


_OBJECT: JSON = {"type": "object", "properties": {}}


def _with_items(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kind = schema.get("type")
    if kind == "array" or (isinstance(kind, list) and "array" in kind):
        schema = {"items": {}} | schema
    return schema if _HOLDERS.isdisjoint(schema) else _inner(schema, _with_items)


# What Anthropic's structured output refuses; a description says it instead, as in its own SDKs.
_LIMITS = (
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
    "minLength",
    "maxLength",
    "maxItems",
    "uniqueItems",
    "minProperties",
    "maxProperties",
)


def closed(schema: Any) -> Any:
    """Return a schema as Anthropic's structured output takes it: every object is closed."""
    if not isinstance(schema, dict):
        return schema
    new = dict(_inner(schema, closed))
    if is_object(new):
        new["additionalProperties"] = False
    limits = {name: new.pop(name) for name in _LIMITS if name in new}
    if new.get("minItems", 0) not in (0, 1):
        limits["minItems"] = new.pop("minItems")
    if limits:
        told = ", ".join(f"{name}: {value}" for name, value in limits.items())
        about = new.get("description")
        new["description"] = f"{about}\n\n{{{told}}}" if isinstance(about, str) else f"{{{told}}}"
    return new


def is_closable(
    schema: Any, root: JSON | None = None, path: tuple[str, ...] = (), known: Any = None
) -> bool:
    """Whether a schema means the same once it is `closed`, and Anthropic takes it.

    An object of any members would be empty, and a schema in itself is refused.
    """
    if not isinstance(schema, dict):
        return True
    if is_object(schema) and not schema.get("properties"):
        return schema.get("additionalProperties", "properties" not in schema) is False
    root, known, ref = root or schema, set() if known is None else known, schema.get("$ref")
    if isinstance(ref, str) and ref not in known:
        if ref in path or not is_closable(_resolved(ref, root), root, (*path, ref), known):
            return False
        known.add(ref)
    return all(is_closable(each, root, path, known) for each in _parts(schema))


# The keywords that OpenAI's strict mode takes, of which each schema has one of the first, and its
# values of format.
_KINDS = frozenset(("type", "enum", "anyOf", "const", "$ref"))
_STRICT = _KINDS.union(
    ("properties", "required", "items", "additionalProperties", "description", "title", "$defs")
    + ("definitions", "$schema", "format", "pattern", "minItems", "maxItems", *_LIMITS[:5])
)
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid")


def strict(schema: Any) -> JSON | None:
    """Return an object's schema as OpenAI enforces it, with closed objects; None if it cannot.

    It names no property that may be missing.
    """
    new = _shut(schema)
    return new if is_object(new) and _is_strict(new) else None


def _shut(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    new = _inner(schema, _shut)
    shut = is_object(new) and "additionalProperties" not in new
    return new | {"additionalProperties": False} if shut else new


def _is_strict(schema: Any) -> bool:
    if not isinstance(schema, dict):
        return schema is False  # as the additionalProperties are
    if is_object(schema):
        named, needed = schema.get("properties"), schema.get("required") or []
        if schema["additionalProperties"] is not False or not isinstance(named, dict):
            return False
        if not isinstance(needed, list) or any(name not in needed for name in named):
            return False
    known = schema.keys() <= _STRICT and schema.get("format", "date") in _FORMATS
    return known and bool(schema.keys() & _KINDS) and all(map(_is_strict, _parts(schema)))


_GOOGLE = frozenset(
    {
        "anyOf",
        "default",
        "description",
        "enum",
        "example",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "nullable",
        "oneOf",
        "pattern",
        "prefixItems",
        "properties",
        "propertyOrdering",
        "required",
        "title",
        "type",
    }
)
_LEAF = _GOOGLE - _HOLDERS - {"format"}
_READ = _GOOGLE | {"const"}
_GOOGLE_FORMATS = frozenset(
    {"date", "date-time", "double", "enum", "float", "int32", "int64", "time"}
)


def googles(schema: Any) -> Any:
    """Return a schema in the subset that Google takes: references are replaced by their schemas."""
    return _Google(members(schema)).fitted(schema, ())


class _Google:
    """Fits one schema; *root* is what references are relative to."""

    def __init__(self, root: JSON) -> None:
        self._root = root
        self._left = MAX_SCHEMAS

    def fitted(self, schema: Any, path: tuple[str, ...]) -> Any:
        """Return a schema; *path* has the references that lead to it.

        Inside itself, and where there are too many, a schema becomes any object.
        """
        self._left -= 1
        if not isinstance(schema, dict):
            return {}  # true and false allow anything, or nothing
        if schema.keys() <= _LEAF:  # the usual case
            return schema
        if isinstance(ref := schema.get("$ref"), str):
            if ref in path or self._left <= 0:
                return {"type": "object"}
            found = _resolved(ref, self._root)
            schema, path = members(found) | without(schema, "$ref"), (*path, ref)
            if "$ref" in schema:
                return self.fitted(schema, path)
        new = _inner(self._merged(schema, path), lambda each: self.fitted(each, path))
        if "const" in new:
            new.setdefault("enum", [new["const"]])
        if new.get("format") not in _GOOGLE_FORMATS:
            new.pop("format", None)
        if isinstance(new.get("items"), list):
            new["items"] = {"anyOf": new["items"]} if new["items"] else {}
        return only(new, _GOOGLE)

    def _merged(self, schema: JSON, path: tuple[str, ...]) -> JSON:
        """Return a schema with the members of its allOf, which Google lacks, as its own."""
        parts = schema.get("allOf")
        if not isinstance(parts, list):
            return only(schema, _READ)
        new: JSON = {}
        for part in (*(self.fitted(part, path) for part in parts), schema):
            for name in [name for name in part if name in _READ]:
                value, old = part[name], new.get(name)
                if name == "properties" and isinstance(old, dict) and isinstance(value, dict):
                    value = old | value
                elif name == "required" and isinstance(old, list) and isinstance(value, list):
                    value = [*dict.fromkeys([*old, *value])]
                new[name] = value
        return new


def _resolved(ref: str, root: Mapping[str, Any]) -> Any:
    """Return what a reference such as #/$defs/Name refers to; {} if there is no such thing."""
    if not ref.startswith("#"):
        return {}
    found: Any = root
    names: Sequence[str] = [name for name in ref[1:].split("/") if name]
    for name in names:
        name = name.replace("~1", "/").replace("~0", "~")
        found = members(found).get(name)
    return {} if found is None else found


# -- answers in JSON --

ONLY_JSON = """\
Answer in the end with a single valid JSON {} and nothing else: no text before or after it, no \
code fence around it."""


def instructed(
    request: InferRequest, drop: Drop, takes: Callable[[JSON | None], bool], keeps: str = ""
) -> InferRequest:
    """Return a request that asks for JSON in words if its vendor does not take the format alone.

    It *takes* the schema of an answer, or None for any object, and *keeps* a format beside words.
    """
    wanted = members(request.params.get("response_format"))
    kind = wanted.get("type")
    schema = json_schema(wanted) if kind == "json_schema" else None
    if kind not in ("json_object", "json_schema") or takes(schema):
        return request
    words = ONLY_JSON.format("object" if is_object(schema or _OBJECT) else "value")
    if schema is not None:
        hint("response_format.strict", drop)
        words += f"\n\nThe value must match this JSON Schema:\n{strict_json.dumps(schema)}"
    messages = [*request.messages]
    first = messages[0] if messages else {}
    before = first.get("content") if first.get("role") in ("system", "developer") else None
    if isinstance(before, str):  # many models take only one system message
        messages[0] = first | {"content": f"{before}\n\n{words}"}
    else:
        messages.insert(0, {"role": "system", "content": words})
    params = request.params if kind == keeps else without(request.params, "response_format")
    return replace(request, params=params, messages=messages)


# -- reasoning --

_REASONING = ("reasoning_effort", "reasoning_summary", "reasoning", "thinking", "thinkingConfig")
_INSIDE = (("output_config", "effort"), ("generationConfig", "thinkingConfig"))
_NEEDS_THINKING = "context_management"  # it may clear thoughts, which Anthropic then wants


def shows_thoughts(request: InferRequest) -> bool:
    """Return whether a client of Anthropic's or Google's API wants to see the thoughts."""
    own, google = request.body_in("anthropic"), request.body_in("gemini")
    if own is not None:
        thinking = members(own.value.get("thinking"))
        shown = thinking.get("type") in ("enabled", "adaptive")
        return shown and thinking.get("display") != "omitted"
    body = members(google and google.value)
    config = members(body.get("generationConfig") or body.get("generation_config"))
    config = members(config.get("thinkingConfig") or config.get("thinking_config"))
    return True in (config.get("includeThoughts"), config.get("include_thoughts"))


def without_reasoning(request: InferRequest) -> InferRequest:
    """Return a request that asks for no reasoning, for a model that has none."""
    params, native = dict(request.params), request.native
    left = _strip(params)
    if native is not None:
        value = dict(native.body.value)
        found = _strip(value)
        if found:
            native = native._replace(body=strict_json.document(strict_json.dumps(value)))
        left = left or found
    if not left:
        return request
    drop = Drop.of(request)
    for name in left:
        hint(name, drop)
    return replace(request, params=params, native=native)


def _strip(members: JSON) -> list[str]:
    """Remove from *members* what asks for reasoning; return the names."""
    left = [name for name in _REASONING if members.get(name) is not None]
    for holder, name in _INSIDE:
        inner = members.get(holder)
        if isinstance(inner, dict) and name in inner:
            members[holder] = without(inner, name)
            left += [] if left else [name]
            if not members[holder]:
                del members[holder]
    if "thinking" in left:
        members.pop(_NEEDS_THINKING, None)
    for name in left:
        members.pop(name, None)
    return left
