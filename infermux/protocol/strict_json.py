"""Strict JSON: refuses what `json.loads` lets through.

Refused are NaN and Infinity, numbers that overflow, duplicate keys, lone surrogates, bytes that are
not UTF-8, and nesting beyond MAX_DEPTH. `document` also records where each top-level member stands
in the text, so that one value can be replaced without changing a byte of the others.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
MAX_DEPTH = 200  # levels of nesting
_START = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*(\}[ \t\n\r]*)?")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")
# Possessive: backtracking in a long string would cost memory. A string without an end is taken to
# the end of the text, and not searched again from each quote inside it.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\[\s\S])*+"?+|[][{}]')


class Document(NamedTuple):
    """A JSON object, its text, and the start and end of each top-level value in that text."""

    value: dict[str, Any]
    text: str
    spans: Mapping[str, tuple[int, int]]

    def raw(self, key: str) -> str:
        """Return the text of a member's value, unchanged."""
        start, end = self.spans[key]
        return self.text[start:end]

    def replaced(self, values: Mapping[str, Any]) -> str:
        """Return the text with *values* replaced or appended at the top level."""
        text = self.text
        if not values:
            return text
        new = [
            (*self.spans[key], dumps(value)) for key, value in values.items() if key in self.spans
        ]
        for start, end, value in sorted(new, reverse=True):
            text = text[:start] + value + text[end:]
        added = [
            f"{dumps(key)}:{dumps(value)}" for key, value in values.items() if key not in self.spans
        ]
        if added:
            body = text.rstrip()[:-1].rstrip()
            text = body + ("" if body.endswith("{") else ",") + ",".join(added) + "}"
        return text


def dumps(value: object) -> str:
    """Return compact JSON; raise ValueError for a value that JSON cannot represent."""
    return _ENCODER.encode(value)


def encode(value: object) -> bytes:
    """Return compact JSON as UTF-8; a lone surrogate becomes a question mark."""
    return _ENCODER.encode(value).encode("utf-8", "replace")


def loads(data: bytes | str, *, what: str = "body") -> Any:
    """Return the value of a JSON text; raise ValueError saying what is wrong with *what*."""
    return _read(data, what, _DECODER.decode)


def lenient(data: bytes) -> Any:
    """Return the value of a vendor's JSON, which may repeat keys; raise ValueError if invalid."""
    text = data.decode()
    try:
        _refuse_depth(text)
        if text.startswith("{"):  # `decode` would search for white space at both ends first
            value, end = _LENIENT.raw_decode(text)
            if end == len(text):
                return value
        return _LENIENT.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def document(data: bytes | str, *, what: str = "body") -> Document:
    """Return the object in a JSON text; raise ValueError saying what is wrong with *what*."""
    return _read(data, what, lambda text: _members(text, what))


def _read(data: bytes | str, what: str, parse: Callable[[str], T]) -> T:
    try:
        text = data if isinstance(data, str) else data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    if not text.strip(" \t\r\n"):
        raise ValueError(f"{what} is empty; a JSON object is expected")
    try:
        _refuse_depth(text)
        value = parse(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    if "\\ud" in text or "\\uD" in text:  # `json` joins proper pairs; others cannot be encoded
        try:
            json.dumps(json.loads(text), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError(f"{what} holds a lone surrogate, which is not a character") from None
    return value


def _members(text: str, what: str) -> Document:
    """Read the top level by hand, for the spans; the values are read by `json`."""
    begin = _START.match(text)
    if begin is None:
        _DECODER.decode(text)  # raises if the text is not JSON at all
        raise ValueError(f"{what} must be a JSON object")
    read = _DECODER.raw_decode
    value: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    at, more = begin.end(), begin[1] is None
    while more:
        if not text.startswith('"', at):
            raise json.JSONDecodeError("expected a name in double quotes", text, at)
        key, at = read(text, at)
        colon = _COLON.match(text, at)
        if colon is None:
            raise json.JSONDecodeError("expected ':'", text, at)
        if key in value:
            raise ValueError(f"duplicate key {key[:100]!r}")
        start = colon.end()
        value[key], at = read(text, start)
        spans[key] = (start, at)
        mark = _NEXT.match(text, at)
        if mark is None:
            raise json.JSONDecodeError("expected ',' or '}'", text, at)
        at, more = mark.end(), mark[1] == ","
    if at != len(text):
        raise json.JSONDecodeError("more follows the end of the object", text, at)
    return Document(value, text, spans)


def _refuse_depth(text: str) -> None:
    """Raise RecursionError before `json` would, which is at the end of Python's stack."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth = 0
    for found in _BRACKETS.finditer(text):
        if (mark := found[0]) in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise RecursionError
        elif mark in "]}":
            depth -= 1


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 400:  # Python's own limit of 4,300 digits has a message about its settings
        raise ValueError(f"the number {text[:40]}… is too large")
    return int(text)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = Counter(key for key, _ in pairs)
        twice = next(key for key in keys if keys[key] > 1)
        raise ValueError(f"duplicate key {twice[:100]!r}")
    return value


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant
)
_LENIENT = json.JSONDecoder(parse_float=_float, parse_constant=_constant)
