"""Strict JSON: refuses invalid input that `json.loads` accepts.

It refuses NaN and Infinity, numbers that overflow, duplicate keys, lone surrogates, bytes that are
not UTF-8, and nesting beyond MAX_DEPTH. `document` also records where each top-level value is in
the text, so that one value can be replaced without changing a byte of the others.
"""

from __future__ import annotations

import codecs
import contextlib
import gc
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, zip_longest
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")
MAX_DEPTH = 200  # levels of nesting
MAX_MEMBERS = 10_000  # of a document's top level: each is recorded
LONG = 8192  # characters of a string that Python writes faster than json
LARGE = 4096  # bytes; only longer texts are sampled
_MAX_DIGITS = 400  # of an integer
_START = re.compile(r"[ \t\n\r]*\{[ \t\n\r]*(\}[ \t\n\r]*)?")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_NEXT = re.compile(r"[ \t\n\r]*([,}])[ \t\n\r]*")
_ALL_BUT_MARKS = bytes(set(range(256)) - set(b'":'))
_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else 0 for byte in range(256))
_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\t", b"\\t"))
_MARK = os.urandom(16).hex()  # stands for a long string; being random, it is in no text
_CUT = f'"{_MARK}"'.encode()
_ESCAPE = re.compile(rb"\\.", re.DOTALL)


class Document(NamedTuple):
    """A JSON object, its text, and the start and end of each top-level value in that text."""

    value: dict[str, Any]
    text: str
    spans: Mapping[str, tuple[int, int]]
    data: bytes = b""  # the text in UTF-8

    def raw(self, key: str) -> str:
        """Return the unchanged text of a member's value; raise KeyError."""
        start, end = self.spans[key]
        return self.text[start:end]

    def replaced(self, values: Mapping[str, Any]) -> bytes:
        """Return the text in UTF-8 with *values* replaced or appended at the top level."""
        data = self.data
        if not values:
            return data
        spans, view, at = self.spans, memoryview(data), 0
        parts: list[bytes | memoryview] = []
        for start, end, key in sorted((*spans[key], key) for key in values if key in spans):
            parts += view[at : self._offset(start)], encode(values[key])
            at = self._offset(end)
        added = [
            encode(key) + b":" + encode(value) for key, value in values.items() if key not in spans
        ]
        end = len(data)
        if added:
            end = data.rindex(b"}")
            while data[end - 1] in b" \t\r\n":
                end -= 1
            added = [(b"," if spans else b"") + b",".join(added) + b"}"]
        return b"".join([*parts, view[at:end], *added])

    def _offset(self, index: int) -> int:
        """Return where the character at *index* starts in the bytes."""
        if len(self.data) == len(self.text):
            return index
        return len(self.text[:index].encode())


def dumps(value: object) -> str:
    """Return compact JSON; raise ValueError for a value that JSON cannot represent."""
    return _ENCODER.encode(value)


def encode(value: object, *, escaped: bool = False) -> bytes:
    """Return `dumps` in UTF-8; a lone surrogate becomes a question mark.

    With *escaped* all but ASCII is escaped: twice as fast, and the same text if there is none.
    """
    if escaped:
        return _ESCAPING.encode(value).encode("ascii")
    return _ENCODER.encode(value).encode("utf-8", "replace")


def encode_long(value: object, *, escaped: bool) -> bytes:
    """Return `encode` of a value with a few long strings, in a third of the time."""
    found: list[bytes] = []
    parts = encode(_without_long(value, found), escaped=escaped).split(_CUT)
    return b"".join(chain(*zip_longest(parts, found, fillvalue=b"")))


def _without_long(value: object, found: list[bytes]) -> object:
    """Return a value with marks for its long strings; add those as JSON to *found*."""
    if type(value) is dict:
        return {name: _without_long(each, found) for name, each in value.items()}
    if type(value) is list:
        return [_without_long(each, found) for each in value]
    if type(value) is not str or len(value) < LONG or not value.isascii():
        return value
    data = value.encode()
    for mark, escape in _ESCAPES:
        data = data.replace(mark, escape)
    if len(data.translate(None, bytes(range(32)))) < len(data):  # other control characters
        return value
    found.append(b'"%b"' % data)
    return _MARK


def loads(data: bytes | str, *, what: str = "body") -> Any:
    """Return the value of a JSON text; raise ValueError, which calls the text *what*."""
    return _read(data, what, lambda text, _, decoder: decoder.decode(text))


def lenient(data: bytes) -> Any:
    """Return the value of a vendor's JSON, which may repeat keys; raise ValueError if invalid."""
    text = data.decode()
    try:
        if _may_be_deep(data):
            with _no_collection():
                _inspect(value := _LENIENT.decode(text.removeprefix("\ufeff")), False)
                return value
        if text.startswith("{"):  # `decode` would first search for white space
            value, end = _LENIENT.raw_decode(text)
            if end == len(text):
                return value
        return _LENIENT.decode(text.removeprefix("\ufeff"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def document(data: bytes | str, *, what: str = "body") -> Document:
    """Return the object in a JSON text; raise ValueError, which calls the text *what*."""
    return _read(data, what, lambda text, raw, decoder: _members(text, raw, what, decoder))


Parse = Callable[[str, bytes, json.JSONDecoder], T]  # the text, the same in UTF-8, the decoder


def _read(data: bytes | str, what: str, parse: Parse[T]) -> T:
    raw = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data
    raw = raw.removeprefix(codecs.BOM_UTF8)
    try:
        text = data if isinstance(data, str) else raw.decode()
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    if not text.strip(" \t\r\n"):
        raise ValueError(f"{what} is empty; a JSON object is expected")
    try:
        return _parsed(text, raw, parse)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"{what} is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError(f"{what} holds a lone surrogate, which is not a character") from None


def _parsed(text: str, raw: bytes, parse: Parse[T]) -> T:
    """Parse *text* in the fastest suitable way.

    Raise RecursionError if it is nested too deeply, UnicodeEncodeError for a lone surrogate.
    """
    decoder = _UNIQUE
    if _may_have_long_number(raw):
        decoder = _EXACT
    elif len(raw) >= LARGE and not _has_few_parts(raw):
        return _counted(text, raw, parse)
    if len(raw) < LARGE and not _may_be_deep(raw):
        value = parse(text, raw, decoder)
        if b"\\" in raw:
            _inspect(value, True)
        return value
    with _no_collection():
        value = parse(text, raw, decoder)
        _inspect(value, b"\\" in raw)
    return value


def _counted(text: str, raw: bytes, parse: Parse[T]) -> T:
    """Parse many small objects: fewer parsed members than colons mean a duplicate key."""
    colons, kept = _colons(raw), 0

    def count(value: dict[str, Any]) -> dict[str, Any]:
        nonlocal kept
        kept += len(value)
        return value

    decoder = json.JSONDecoder(object_hook=count, parse_float=_float, parse_constant=_constant)
    with _no_collection():
        value = parse(text, raw, decoder)
        _inspect(value, b"\\" in raw)
    if isinstance(value, Document):
        kept += len(value.value)
    if kept != colons:
        return parse(text, raw, _EXACT)  # raises an error with the key
    return value


def _members(text: str, raw: bytes, what: str, decoder: json.JSONDecoder) -> Document:
    """Parse the top level by hand to record the spans; *decoder* parses the values."""
    begin = _START.match(text)
    if begin is None:
        decoder.decode(text)  # raises if the text is not JSON at all
        raise ValueError(f"{what} must be a JSON object")
    read = decoder.raw_decode
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
        if len(value) >= MAX_MEMBERS:
            raise ValueError(f"{what} has more than {MAX_MEMBERS} members")
        start = colon.end()
        value[key], at = read(text, start)
        spans[key] = (start, at)
        mark = _NEXT.match(text, at)
        if mark is None:
            raise json.JSONDecodeError("expected ',' or '}'", text, at)
        at, more = mark.end(), mark[1] == ","
    if at != len(text):
        raise json.JSONDecodeError("more follows the end of the object", text, at)
    return Document(value, text, spans, raw)


# -- the bytes of a text --


def _has_few_parts(raw: bytes) -> bool:
    """Whether a hook for each object is faster than counting colons.

    Estimated from 2 KB of samples, in units of 20 ns: a hook costs 50 for each object and 1 for
    each item; counting costs 75, 7 for each object and 9 for each backslash.
    """
    step = max(64, len(raw) // 32)  # the beginning is often unlike the rest
    sample = b"".join([raw[at : at + 64] for at in range(step // 2 - 32, len(raw), step)])
    objects = sample.count(b'{"') + sample.count(b"{\n") + sample.count(b"[[")
    return 43 * objects + sample.count(b",") < 75 + 9 * sample.count(b"\\")


def _may_have_long_number(raw: bytes) -> bool:
    """Whether _MAX_DIGITS digits follow each other; check every 40th byte first."""
    if len(raw) <= _MAX_DIGITS:
        return False
    few = b"0" * (_MAX_DIGITS // 40 - 1)
    return few in raw[::40].translate(_DIGITS) and b"0" * _MAX_DIGITS in raw.translate(_DIGITS)


def _may_be_deep(raw: bytes) -> bool:
    return raw.count(b"[") + raw.count(b"{") > MAX_DEPTH


def _colons(raw: bytes) -> int:
    """Return how many colons of a JSON text stand outside strings."""
    plain = _ESCAPE.sub(b"", raw) if b"\\" in raw else raw
    # a colon after an odd number of quotes is in a string: pairs of quotes are removed
    marks = plain.translate(None, _ALL_BUT_MARKS).replace(b'""', b"")
    return b"".join(marks.split(b'"')[::2]).count(b":")


def _inspect(value: object, has_escapes: bool) -> None:
    """Raise RecursionError if a parsed value is nested too deeply.

    Raise UnicodeEncodeError for a string with a lone surrogate, which only an escape can be.
    """
    wide: list[str] = []
    keys: set[str] = set()
    for level in _levels(value.value if isinstance(value, Document) else value):
        if has_escapes:
            odd = [each for each in level if type(each) is not str or not each.isascii()]
            wide += [each for each in odd if type(each) is str]
            keys.update(*[each for each in odd if type(each) is dict])
    for each in (*wide, *keys):
        each.encode()


def _levels(value: object) -> Iterator[list[Any]]:
    """Yield the values at each depth of a parsed one; raise RecursionError beyond MAX_DEPTH."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        yield level
        level = gc.get_referents(*level)  # a tenth of the cost of a loop; strings have none
        if not level:
            return
    if any(type(each) in (dict, list) for each in level):
        raise RecursionError
    yield level


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Disable garbage collection: it would search all parsed values and find nothing.

    A finalizer would also fail if the parser is at the end of the stack.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# -- what the parser calls --


def _float(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _int(text: str) -> int:
    # Python's own limit of 4,300 digits has a message about its settings
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"the number {text[:40]}… is too large")
    return int(text)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(value := dict(pairs)) == len(pairs):
        return value
    keys = Counter(key for key, _ in pairs)
    twice = next(key for key in keys if keys[key] > 1)
    raise ValueError(f"duplicate key {twice[:100]!r}")


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_ESCAPING = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_UNIQUE = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_float, parse_constant=_constant)
_EXACT = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_float, parse_int=_int, parse_constant=_constant
)
_LENIENT = json.JSONDecoder(parse_float=_float, parse_constant=_constant)
