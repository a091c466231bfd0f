"""Strict JSON: what json.loads lets through and a wire must not.

Refused are NaN and Infinity, numbers that overflow, duplicate keys, lone surrogates, bytes that are
not UTF-8 and nesting without end. `document` also tells where each member of the top-level object
stands in the text, so that one value can be replaced (or a checksum taken) without touching a byte
of the others.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Spans = dict[str, tuple[int, int]]  # where a value begins and ends in the text
MAX_DEPTH = 200  # deeper than any real request, and than any answer
_SPACE = re.compile(r"[ \t\n\r]*")
# Possessive: a long string would cost memory for going back. A string that does not end is taken to
# the end of the text, and not looked
# at again from each quote inside it.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\[\s\S])*+"?+|[][{}]')


class Document(NamedTuple):
    """A JSON object, its text, and the span of each top-level value in that text."""

    value: dict[str, Any]
    text: str
    spans: Mapping[str, tuple[int, int]]

    def raw(self, key: str) -> str:
        """Return the text of a member as it stands."""
        start, end = self.spans[key]
        return self.text[start:end]

    def replaced(self, values: Mapping[str, Any]) -> str:
        """Return the text with some top-level values replaced, or added at the end; the rest stays
        as it came.
        """
        text = self.text
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
    """Return compact JSON; raise ValueError for what JSON cannot say."""
    return _ENCODER.encode(value)


def encode(value: object) -> bytes:
    """Return compact JSON as UTF-8; half a surrogate pair from a vendor becomes a question mark,
    not a failure.
    """
    return _ENCODER.encode(value).encode("utf-8", "replace")


def loads(data: bytes | str, *, what: str = "body") -> Any:
    """Return the value of a JSON text; raise ValueError with a reason fit for the sender."""
    text = _text(data, what)
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    _check(text, what)
    return value


def lenient(data: bytes) -> Any:
    """Return the value of a vendor's JSON: NaN and nesting without end are refused, duplicate keys
    are not our business.
    """
    text = data.decode()
    if _is_deep(text):
        raise ValueError("nested too deeply")
    try:
        if text.startswith("{"):  # `decode` looks for white space at both ends first
            value, end = _LENIENT.scan_once(text, 0)  # type: ignore[attr-defined]  # what raw_decode itself calls
            if end == len(text):
                return value
        return _LENIENT.decode(text[1:] if text.startswith("\ufeff") else text)
    except StopIteration as error:
        raise json.JSONDecodeError("a value is missing", text, error.value) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def document(data: bytes | str, *, what: str = "body") -> Document:
    """Return the object that a JSON text holds, with spans; raise ValueError with a reason fit for
    the sender.
    """
    text = _text(data, what)
    try:
        value, spans = _members(text, what)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except StopIteration as error:
        raise ValueError(
            f"{what} is not JSON: a value is missing at character {error.value}"
        ) from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    _check(text, what)
    return Document(value, text, spans)


def _text(data: bytes | str, what: str) -> str:
    try:
        text = data if isinstance(data, str) else data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    if not text.strip(" \t\r\n"):
        raise ValueError(f"{what} is empty; a JSON object is expected")
    if _is_deep(text):
        raise ValueError(f"{what} is nested too deeply")
    return text


def _members(text: str, what: str) -> tuple[dict[str, Any], Spans]:
    space, scan = _SPACE.match, _DECODER.scan_once  # type: ignore[attr-defined]  # what raw_decode itself calls
    at = space(text).end()  # type: ignore[union-attr]  # matches the empty string too
    if text[at] != "{":
        _DECODER.decode(text)  # says what is wrong if it is not JSON at all
        raise ValueError(f"{what} must be a JSON object")
    value: dict[str, Any] = {}
    spans: Spans = {}
    at = space(text, at + 1).end()  # type: ignore[union-attr]
    if text[at : at + 1] == "}":
        return _ended(text, at + 1, value, spans)
    while True:
        if text[at : at + 1] != '"':
            raise json.JSONDecodeError("expected a name in double quotes", text, at)
        key, at = scan(text, at)
        at = space(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] != ":":
            raise json.JSONDecodeError("expected ':'", text, at)
        start = space(text, at + 1).end()  # type: ignore[union-attr]
        if key in value:
            raise ValueError(f"duplicate key {key[:100]!r}")
        value[key], at = scan(text, start)
        spans[key] = (start, at)
        at = space(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            return _ended(text, at + 1, value, spans)
        if text[at : at + 1] != ",":
            raise json.JSONDecodeError("expected ',' or '}'", text, at)
        at = space(text, at + 1).end()  # type: ignore[union-attr]


def _ended(text: str, at: int, value: dict[str, Any], spans: Spans) -> tuple[dict[str, Any], Spans]:
    end = _SPACE.match(text, at).end()  # type: ignore[union-attr]
    if end != len(text):
        raise json.JSONDecodeError("more follows the end of the object", text, end)
    return value, spans


def _check(text: str, what: str) -> None:
    if ("\\ud" in text or "\\uD" in text) and _lone_surrogate(text):
        raise ValueError(f"{what} holds a lone surrogate, which is not a character")


def _is_deep(text: str) -> bool:
    """Whether a text goes beyond the depth; known before it is read, for at the end of Python's
    stack whatever is tidied up fails too.
    """
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for found in _BRACKETS.finditer(text):
        if (mark := found[0]) in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif mark in "]}":
            depth -= 1
    return False


def _lone_surrogate(text: str) -> bool:
    """Python joins proper pairs while it reads them, so what is left over cannot be encoded."""
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    if len(text) > 400:  # Python itself refuses 4,300 digits, with a message about its settings
        raise ValueError(f"the number {text[:40]}… is too large")
    return int(text)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"duplicate key {twice[:100]!r}")
    return value


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant
)
_LENIENT = json.JSONDecoder(parse_float=_float, parse_constant=_constant)
