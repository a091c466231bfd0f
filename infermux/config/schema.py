"""From a table of a configuration to a frozen dataclass: strict, and with a remedy in every error.

A field of a dataclass names its reader: `reads(seconds, 3.0)`. A reader takes a value and its
place, and returns what the field holds or raises ConfigError; `table(Breaker)` is itself a reader.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, shown

Reader = Callable[[Any, str], Any]
Record = TypeVar("Record")
_WORDS = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a table",
}


class Secret:
    """A value that shows itself only where it is asked to: not in a repr, a log line or a
    traceback.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value.strip() or not value.isascii() or not value.isprintable():
            raise ConfigError("a secret must be printable ASCII on one line, and not empty")
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


def reads(reader: Reader, default: Any = MISSING) -> Any:
    """Return a dataclass field that is read by *reader*; one without a default must be there."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"reader": reader})
    return field(default=default, metadata={"reader": reader})


def table(kind: type[Record], **given: Any) -> Callable[[Any, str], Record]:
    """Return the reader of a table that makes a *kind*; *given* are fields that the table itself
    does not hold.
    """
    items = fields(kind)  # type: ignore[arg-type]
    readers = {item.name: item.metadata["reader"] for item in items if "reader" in item.metadata}
    needed = [
        item.name
        for item in items
        if item.default is MISSING and item.default_factory is MISSING and item.name not in given
    ]

    def read(value: Any, place: str) -> Record:
        data = of_type(dict, value, place)
        for name in data:
            if name not in readers:
                raise ConfigError(f"{place} has no {shown(name)}{meant(name, readers)}")
        for name in needed:
            if name not in data:
                raise ConfigError(f"{place} needs {name!r}")
        return kind(
            **given, **{name: readers[name](item, f"{place}.{name}") for name, item in data.items()}
        )

    return read


def of_type(kind: type, value: Any, place: str) -> Any:
    """Return *value* if it is of the type; raise ConfigError saying what would be right."""
    right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and kind is not bool):
        what = _WORDS.get(
            type(value).__name__, "a date or a time"
        )  # never the value: it may be a secret in the wrong place
        raise ConfigError(f"{place} must be {_WORDS[kind.__name__]}, not {what}")
    return value


def text(value: Any, place: str) -> str:
    """Read a text that is not empty and can be printed."""
    word: str = of_type(str, value, place)
    if not word.strip() or not word.isprintable():
        raise ConfigError(f"{place} must not be empty, nor hold control characters")
    return word


def texts(value: Any, place: str) -> tuple[str, ...]:
    """Read a list of texts without repetition."""
    words = [
        text(item, f"{place}[{number}]") for number, item in enumerate(of_type(list, value, place))
    ]
    for number, word in enumerate(words):
        if word in words[:number]:
            raise ConfigError(f"{place} names {word!r} twice")
    return tuple(words)


def whole(value: Any, place: str) -> int:
    """Read a whole number above 0."""
    number: int = of_type(int, value, place)
    if not 0 < number < 10**12:
        raise ConfigError(f"{place} must be a whole number above 0, not {shown(value)}")
    return number


def seconds(value: Any, place: str) -> float:
    """Read a time in seconds, above 0 and at most a day."""
    number = _float(value, place)
    if not 0 < number <= 86400:
        raise ConfigError(
            f"{place} must be seconds, more than 0 and at most 86400, not {shown(value)}"
        )
    return number


def _float(value: Any, place: str) -> float:
    try:
        return float(of_type(float, value, place))
    except OverflowError:
        raise ConfigError(f"{place} is too large") from None


def share(value: Any, place: str) -> float:
    """Read a share, above 0 and at most 1."""
    number = _float(value, place)
    if not 0 < number <= 1:
        raise ConfigError(f"{place} must be more than 0 and at most 1, not {shown(value)}")
    return number


def flag(value: Any, place: str) -> bool:
    """Read true or false."""
    read: bool = of_type(bool, value, place)
    return read


def name(value: str, place: str) -> str:
    """Return a table's name if it can be printed on one line."""
    if not value.strip() or not value.isprintable() or len(value) > 200:
        raise ConfigError(f"{place}: a name must be printable text, not {shown(value)}")
    return value


def anything(value: Any, place: str) -> Any:
    """Read whatever stands there: its reader is elsewhere."""
    return value


def one_of(*words: str) -> Reader:
    """Return the reader of a choice."""

    def read(value: Any, place: str) -> str:
        word: str = of_type(str, value, place)
        if word not in words:
            raise ConfigError(
                f"{place} must be {' or '.join(map(repr, words))}, not {shown(word)}{close(word, words)}"
            )
        return word

    return read


def url(value: Any, place: str) -> str:
    """Read an http(s) address without credentials."""
    address = text(value, place)
    try:
        parts = urlsplit(address)
        if parts.port == 0:
            raise ValueError("no server listens there")
    except ValueError:
        raise ConfigError(f"{place} is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in address:
        raise ConfigError(f"{place} must be a URL that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{place} must not hold credentials: a key has its own place")
    return address.rstrip("/")


def meant(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt *word*: what is close, or else everything that there is."""
    names = list(known)
    return (
        close(word, names)
        or f"; there {'are' if len(names) != 1 else 'is'} {', '.join(names) or 'none'}"
    )


def close(word: str, known: Iterable[str]) -> str:
    """Return the known names that are close to *word* as a hint, or nothing."""
    found = difflib.get_close_matches(word[:100], list(known), n=3)
    return f"; did you mean {' or '.join(map(repr, found))}?" if found else ""
