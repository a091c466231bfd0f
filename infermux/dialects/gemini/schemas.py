"""Translates Google's schemas, a subset of OpenAPI's, to JSON Schema."""

from __future__ import annotations

import re
from typing import Any

from ...protocol import must_be
from ...types import JSON
from .. import require

_SNAKE = re.compile(r"(?<=[a-z0-9])_([a-z0-9])")
_TYPES = ("", "string", "number", "integer", "boolean", "array", "object", "null")  # by number
_COUNTS = {"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"}
_ONE = ("items", "additionalProperties", "not")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_READ = {"properties", "$defs", *_ONE, *_LISTS, *_COUNTS}  # the others are kept as they are
_NAMES = {"defs": "$defs", "ref": "$ref"}
_LEFT_OUT = {"propertyOrdering", "example", "nullable"}


def camel(members: JSON) -> JSON:
    """Return an object of Google's with the names of its members in camel case.

    Google takes both cases. Members of members are not renamed.
    """
    if "_" not in "".join(members):  # one call: this is asked of every object
        return members
    return {_SNAKE.sub(lambda found: found[1].upper(), name): members[name] for name in members}


def integer(value: object, name: str) -> int:
    """Return an integer, which Google also takes as text or as a number; raise RequestError."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    found: int = require(value, name, int)
    return found


def json_schema(value: object, place: str) -> JSON:
    """Return one of Google's schemas as JSON Schema; raise RequestError naming *place*."""
    schema = camel(require(value, place, dict))
    found: JSON = {}
    for given_name, each in schema.items():
        name = _NAMES.get(given_name, given_name)
        if each is None or name in _LEFT_OUT or (name == "format" and each == "enum"):
            continue
        if name == "type":
            if each := _type(each, place):
                found[name] = each
            continue
        where = f"{place}.{given_name}" if name in _READ else place
        if name in ("properties", "$defs"):
            members = require(each, where, dict)
            each = {key: json_schema(one, f"{where}.{key}") for key, one in members.items()}
        elif name in _LISTS:
            each = [json_schema(one, f"{where}[]") for one in require(each, where, list)]
        elif name in _ONE and isinstance(each, dict):
            each = json_schema(each, where)
        elif name in _COUNTS:
            each = integer(each, where)
        found[name] = each
    return _nullable(found) if schema.get("nullable") is True else found


def _type(value: object, place: str) -> Any:
    """Return a type in lower case, or "" if it says nothing; lists are JSON Schema's own."""
    if isinstance(value, list):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(_TYPES):
        return _TYPES[value]
    if not isinstance(value, str):
        raise must_be(f"{place}.type", "a type such as STRING or OBJECT")
    return "" if value == "TYPE_UNSPECIFIED" else value.lower()


def _nullable(schema: JSON) -> JSON:
    kind = schema.get("type")
    if isinstance(kind, str):
        schema["type"] = [kind, "null"]
    elif "anyOf" in schema:
        schema["anyOf"] = [*schema["anyOf"], {"type": "null"}]
    if isinstance(schema.get("enum"), list) and None not in schema["enum"]:
        schema["enum"] = [*schema["enum"], None]
    return schema
