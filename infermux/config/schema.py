"""Reads tables of the configuration into frozen dataclasses, strictly.

Each field has a reader, `reads(seconds, 3.0)`: it takes a value and its place in the file, and
returns the field's value or raises ConfigError with a remedy. `table(Breaker)` is a reader, too.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import MISSING, Field, field, fields, is_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, did_you_mean, shown, similar, wrong_value

Reader = Callable[[Any, str], Any]
Record = TypeVar("Record")
RENAMED = {  # old names of keys, which still work; each with the name that it has now
    "admin": "admin_key",
    "breaker": "circuit_breaker",
    "content": "capture_content",
    "graceful": "graceful_timeout",
    "lacks": "unsupported",
    "then": "fallback",
}
TYPES: dict[type, str] = {
    str: "text in quotes",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a table",
}
PLACE = "\0"
_QUOTES, _LISTS = "needs quotes", "; there "  # in errors
TABLES: dict[str, Any] = {}  # the dataclass of each table of the file, by its place: `settings`


class Secret:
    """A value that stays hidden in reprs, logs and tracebacks; *source* is where it is from."""

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str = "") -> None:
        if not value.strip() or not value.isascii() or not value.isprintable():
            raise ConfigError("a secret must be printable ASCII on one line, and not empty")
        self._value, self.source = value, source

    def reveal(self) -> str:
        return self._value

    @property
    def seals(self) -> tuple[str, ...]:
        """Texts by which ids are signed: by the first, the same in all processes of a service.

        One that begins with PLACE is no secret: it says where the key is from.
        """
        return (self._value,)

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


class NoSecret(Exception):
    """A secret cannot be had now; the text says why, without it."""


class Problems:
    """Collects the errors of `with` blocks, so that all of them can be reported at once."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if isinstance(error, ConfigError):
            self.errors += error.errors
        return isinstance(error, ConfigError)

    def at(self, place: str) -> tuple[str, ...]:
        """Return the errors with *place*, if given, before each."""
        head = place and f"{place}: "
        return tuple(head + error.removeprefix(head) for error in self.errors)

    def check(self) -> None:
        if self.errors:
            raise ConfigError(*self.errors)


def secret(place: str, value: str, source: str = "") -> Secret:
    """Return *value* as a secret; raise ConfigError naming its place."""
    word = value.strip()
    if len(word) > 1 and word[0] == word[-1] and word[0] in "'\"":
        # an env file of docker, and the JSON of a cloud's tool, have them
        raise ConfigError(f"{place}: the value has quotes around it: remove them")
    if word.startswith(("env:", "file:", "command:")):
        raise ConfigError(f"{place}: the value is a reference, and must be the secret itself")
    try:
        return Secret(word, source)
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None


class Setter:
    """Sets fields of records from environment variables."""

    def __init__(self, notices: list[str], resolve: Callable[[str, str], Any]) -> None:
        self.by: dict[str, str] = {}  # the variable of each key that one has set
        self._notices, self._resolve = notices, resolve  # the latter reads references

    def field(self, record: Any, variable: str, place: str, path: str, value: str) -> Any:
        """Return *record* with the field at *path* (KEY or TABLE__KEY) read from *value*."""
        given, _, rest = path.partition("__")
        known = keys_of(record)
        key = current(given, known)
        if key not in known:
            hint = unknown(key, known, type(record).__name__)
            raise ConfigError(f"{variable}: {place} has no {key!r}{hint}")
        old = getattr(record, key)
        if given != key:
            self._notices.append(f"{variable}: {given.upper()} is now called {key.upper()}")
        if rest:
            if not is_dataclass(old):
                raise ConfigError(f"{variable}: {place}.{key} is not a table")
            new = self.field(old, variable, f"{place}.{key}", rest, value)
            return replace(record, **{key: new})
        other = self.by.setdefault(f"{place}.{key}", variable)
        if other != variable:
            raise ConfigError(f"{variable} and {other} are the same; unset one of them")
        typed: Any = self._resolve(value, variable) if "Secret" in str(known[key].type) else value
        if isinstance(typed, str):
            typed = _typed(old, typed, known[key].type, variable)
        return replace(record, **{key: known[key].metadata["reader"](typed, variable)})


def keys_of(kind: Any) -> dict[str, Field[Any]]:
    """Return the fields of a dataclass that a table can set, by name."""
    return {item.name: item for item in fields(kind) if "reader" in item.metadata}


def variables(prefix: str, record: Any) -> Iterator[str]:
    """Yield the name of the environment variable of each key of a table."""
    for key in keys_of(record):
        value, name = getattr(record, key), prefix + key.upper()
        if is_dataclass(value):
            yield from variables(f"{name}__", value)
        else:
            yield name


def resembles(word: str, name: str) -> bool:
    """Whether *word* is the section of *name* (SECTION__KEY), or means its key or begins it."""
    section, _, last = name.rpartition("__")
    word = RENAMED.get(word.lower(), word).upper()
    alike = f"{last}_".startswith(f"{word}_") or f"{word}_".startswith(f"{last}_")
    return alike or section == word or bool(ours(word, (last.lower(),)))


def _typed(old: Any, value: str, kind: Any, variable: str) -> Any:
    """Return the text of a variable as the value that a file would hold."""
    if "Secret" in str(kind):
        return secret(variable, value)
    if isinstance(old, bool):
        if (word := value.lower()) not in ("true", "false"):
            raise wrong_value(variable, TYPES[bool], value)
        return word == "true"
    if isinstance(old, tuple):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(old, int | float):
        try:
            return type(old)(value)
        except ValueError:
            raise wrong_value(variable, TYPES[type(old)], value) from None
    return value


def reads(reader: Reader, default: Any = MISSING) -> Any:
    """Return a dataclass field that *reader* reads; it is required if it has no *default*."""
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata={"reader": reader})
    return field(default=default, metadata={"reader": reader})


def table(kind: type[Record], **given: Any) -> Callable[[Any, str], Record]:
    """Return a reader that makes a *kind* from a table; *given* fields are not in the table."""
    keys = keys_of(kind)
    readers = {name: item.metadata["reader"] for name, item in keys.items()}
    required = [
        name
        for name, item in keys.items()
        if item.default is MISSING and item.default_factory is MISSING
    ]

    def read_table(value: Any, place: str) -> Record:
        few = f" of {', '.join(readers)}" * (len(readers) < 7)
        data = of_type(dict, value, place, few)
        read, problems = {}, Problems()
        for name, item in data.items():
            with problems:
                if name not in readers:
                    hint = unknown(name, readers, kind.__name__)
                    inside = isinstance(item, dict) or name[:1].isdigit()  # as TOML takes gpt-4.1
                    if "name" in given and hint.startswith(_LISTS) and inside:
                        whole = f'"{given["name"]}.{name}"'
                        raise ConfigError(f"{place}: a name with a dot {_QUOTES}: {whole}")
                    raise ConfigError(f"{place} has no {shown(name)}{hint}")
                read[name] = readers[name](item, f"{place}.{name}")
        told = "".join(problems.errors)
        if _QUOTES not in told:
            missing = [name for name in required if name not in data and repr(name) not in told]
            problems.errors += [f"{place} needs {name!r}" for name in missing]
        problems.check()
        return kind(**given, **read)

    return read_table


def current(name: str, known: Container[str]) -> str:
    """Return the current name of a key, which may be an old one; *known* are the current names."""
    new = RENAMED.get(name, "")
    return new if new in known and name not in known else name


def of_type(kind: type, value: Any, place: str, more: str = "", *, remedy: str = "") -> Any:
    """Return *value* if it has the type; otherwise raise ConfigError, with *more* of the type."""
    right = isinstance(value, kind) or (kind is float and isinstance(value, int))
    if not right or (isinstance(value, bool) and kind is not bool):
        # never the value: it may be a secret in the wrong place
        what = (TYPES | {float: "a decimal number"}).get(type(value), "a date or a time")
        if isinstance(value, dict) and next(iter(value), "")[:1].isdigit():
            remedy = f"; a name with a dot {_QUOTES}"
        raise ConfigError(f"{place} must be {TYPES[kind]}{more}, not {what}{remedy}")
    return value


def text(value: Any, place: str, form: str = "") -> str:
    """Read printable text that is not empty; the error for another type says its *form*."""
    word: str = of_type(str, value, place, remedy=f"; write {form}" if form else "")
    if not word.strip() or not word.isprintable():
        raise ConfigError(f"{place} must not be empty, nor hold control characters")
    return word


def texts(value: Any, place: str) -> tuple[str, ...]:
    words: list[str] = []
    for number, item in enumerate(of_type(list, value, place)):
        if (word := text(item, f"{place}[{number}]")) in words:
            raise ConfigError(f"{place} names {word!r} twice")
        words.append(word)
    return tuple(words)


def whole_below(limit: int, unit: str = "") -> Reader:
    """Return a reader of whole numbers above 0 and below *limit*."""

    def read(value: Any, place: str) -> int:
        number: int = of_type(int, value, place, unit)
        if not 0 < number < limit:
            bound = "above 0" if number < 1 else f"below {limit:,}"
            raise wrong_value(place, f"a whole number {bound}", value)
        return number

    return read


def at_most(limit: float, unit: str = "") -> Reader:
    """Return a reader of numbers above 0 and at most *limit*."""

    def read(value: Any, place: str) -> float:
        number: float = of_type(float, value, place, unit and f" of {unit}")
        if not 0 < number <= limit:
            raise wrong_value(place, f"{unit}{unit and ', '}more than 0 and at most {limit}", value)
        return float(number)

    return read


def or_zero(reader: Reader) -> Reader:
    """Return a reader that also accepts 0, in either type."""

    def read(value: Any, place: str) -> Any:
        if type(value) in (int, float) and not value:
            return reader(1, place) * 0
        return reader(value, place)

    return read


whole = whole_below(10**12)
size_in_bytes = whole_below(10**12, " of bytes")
seconds = at_most(86400, "seconds")
share = at_most(1)
flag = partial(of_type, bool)
any_table = partial(of_type, dict)


def printable_name(value: str, place: str) -> str:
    """Return a table's name if it is printable on one line."""
    if not value.strip() or not value.isprintable() or len(value) > 200:
        raise ConfigError(f"{place}: a name must be printable text, not {shown(value)}")
    return value


def one_of(*words: str) -> Reader:
    def read(value: Any, place: str) -> str:
        if value not in words:
            error = wrong_value(place, " or ".join(map(repr, words)), value)
            hint = did_you_mean(meant(value, words)) if isinstance(value, str) else ""
            raise ConfigError(f"{error.message}{hint}")
        return str(value)

    return read


def some_of(*words: str) -> Callable[[Any, str], tuple[str, ...]]:
    read = one_of(*words)
    return lambda value, place: tuple(
        read(word, f"{place}[{number}]") for number, word in enumerate(texts(value, place))
    )


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
        instead = "; set api_key instead" * ("base_url" in place.lower())
        raise ConfigError(f"{place} must not hold credentials{instead}")
    return address.rstrip("/")


# -- hints for unknown names --


def unknown(key: str, known: Collection[str], table: str = "") -> str:
    """Return what to do about a key that the dataclass *table* does not have."""
    likely = did_you_mean(ours(key, known) or similar(key, known, 0.8))
    return said(key, table) or likely or _home(key) or suggestion(key, known)


def said(key: str, table: str) -> str:
    """Return the sentence about a key that the dataclass *table* does not have, or ""."""
    found: str = _words()["said"].get(table, {}).get(key, "")
    return found and f": {found}"


def suggestion(word: str, known: Collection[str]) -> str:
    """Return a hint for a misspelt *word*: what it may mean, or all names that are known."""
    verb = "is" if len(known) == 1 else "are"
    return did_you_mean(meant(word, known)) or f"{_LISTS}{verb} {', '.join(known) or 'none'}"


def meant(word: str, known: Collection[str]) -> list[str]:
    """Return which of the *known* names *word* may mean: they share parts, or are similar."""
    parts = {*_plain(word).split("_")}
    whole = [each for each in known if each and {*each.split("_")} <= parts]
    shared = sorted(whole, key=len)[-1:] or [each for each in known if word in each.split("_")]
    return ours(word, known) or shared[:3] or similar(word, known, 0.61)


def _plain(word: str) -> str:
    return re.sub(r"\W+", "_", word.strip().casefold())


@cache
def _words() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))


def ours(word: str, known: Container[str]) -> list[str]:
    """Return the *known* names for what other programs call *word*."""
    names = {name: words.split() for name, words in _words()["words"].items() if name in known}
    return [name for name, words in names.items() if _plain(word) in words]


def _home(word: str) -> str:
    """Return which tables have the key that *word* means, or ""."""
    keys = {name for kind in TABLES.values() for name in keys_of(kind)}
    for key in (word, *ours(word, keys)):
        if places := [place for place, kind in TABLES.items() if key in keys_of(kind)]:
            return f"; {'it' if key == word else repr(key)} is a key of {' and '.join(places)}"
    return ""
