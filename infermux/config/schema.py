"""Reads tables of the configuration into frozen dataclasses, strictly.

Each field has a reader, `reads(seconds, 3.0)`: it takes a value and its place in the file, and
returns the field's value or raises ConfigError with a remedy. `table(Breaker)` is a reader, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import MISSING, field, fields
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, close_to, shown

Reader = Callable[[Any, str], Any]
Record = TypeVar("Record")
_TYPES = {
    "str": "text in quotes",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a table",
}


class Secret:
    """A value that stays hidden in reprs, logs and tracebacks."""

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
    """Return a dataclass field read by *reader*; without a *default* it is required."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"reader": reader})
    return field(default=default, metadata={"reader": reader})


def table(kind: type[Record], **given: Any) -> Callable[[Any, str], Record]:
    """Return a reader that makes a *kind* from a table; *given* fields are not in the table."""
    items = fields(kind)  # type: ignore[arg-type]
    readers = {item.name: item.metadata["reader"] for item in items if "reader" in item.metadata}
    required = [
        item.name
        for item in items
        if item.default is MISSING and item.default_factory is MISSING and item.name not in given
    ]

    def read_table(value: Any, place: str) -> Record:
        data = of_type(dict, value, place)
        for name in data:
            if name not in readers:
                raise ConfigError(f"{place} has no {shown(name)}{suggestion(name, readers)}")
        for name in required:
            if name not in data:
                raise ConfigError(f"{place} needs {name!r}")
        read = {name: readers[name](item, f"{place}.{name}") for name, item in data.items()}
        return kind(**given, **read)

    return read_table


def of_type(kind: type, value: Any, place: str) -> Any:
    """Return *value* if it has the type; otherwise raise ConfigError."""
    right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and kind is not bool):
        # never the value: it may be a secret in the wrong place
        what = _TYPES.get(type(value).__name__, "a date or a time")
        raise ConfigError(f"{place} must be {_TYPES[kind.__name__]}, not {what}")
    return value


def text(value: Any, place: str) -> str:
    """Read printable text that is not empty."""
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


def at_most(limit: float, unit: str = "") -> Reader:
    """Return a reader of numbers above 0 and at most *limit*."""

    def read(value: Any, place: str) -> float:
        number: float = of_type(float, value, place)
        if not 0 < number <= limit:
            bounds = f"{unit}more than 0 and at most {limit}"
            raise ConfigError(f"{place} must be {bounds}, not {shown(value)}")
        return float(number)

    return read


seconds = at_most(86400, "seconds, ")
share = at_most(1)
flag = partial(of_type, bool)
any_table = partial(of_type, dict)


def printable_name(value: str, place: str) -> str:
    """Return a table's name if it is printable on one line."""
    if not value.strip() or not value.isprintable() or len(value) > 200:
        raise ConfigError(f"{place}: a name must be printable text, not {shown(value)}")
    return value


def one_of(*words: str) -> Reader:
    """Return a reader that accepts these words only."""

    def read(value: Any, place: str) -> str:
        word: str = of_type(str, value, place)
        if word not in words:
            choice = " or ".join(map(repr, words))
            raise ConfigError(f"{place} must be {choice}, not {shown(word)}{close_to(word, words)}")
        return word

    return read


def url(value: Any, place: str) -> str:
    """Read an http(s) address without credentials."""
    address = text(value, place)
    try:
        parts = urlsplit(address)
        if parts.port == 0:
            raise ValueError
    except ValueError:
        raise ConfigError(f"{place} is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in address:
        raise ConfigError(f"{place} must be a URL that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{place} must not hold credentials; set api_key instead")
    return address.rstrip("/")


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt *word*: similar names, or all that are known."""
    names = list(known)
    verb = "is" if len(names) == 1 else "are"
    return close_to(word, names) or f"; there {verb} {', '.join(names) or 'none'}"
