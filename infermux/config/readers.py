"""Readers of the settings' values: money, days, secrets, names; each raises ConfigError."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from hashlib import sha256
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..errors import ConfigError, shown, wrong_value
from .patterns import STAR
from .schema import Reader, Secret, any_table, of_type, printable_name, some_of, text, texts

REFERENCES = '"env:NAME" or "file:PATH", "command:PROGRAM" or a list of these'
Ids = TypeVar("Ids", bound=Iterable[str])
_HASH = re.compile(r"(sha256:)?[0-9a-f]{64}")
VARIABLE = re.compile(  # as others write one
    r"(?:(?:env|ENV)[:.] ?\$?\{?|\$\{?|os\.environ/)([A-Z][A-Z0-9_]*)\}?"
)
_EMPTY_HASH = sha256(b"").hexdigest()  # of an unset variable; it would admit callers without a key
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_BYTES = {"KB": 2**10, "MB": 2**20, "GB": 2**30}
LONGEST, LEAST, MOST = 366 * 86_400, 2**16, 2**40  # seconds; bytes
MAX_TAGS, MAX_TAG = 16, 200  # tags of a key, and characters of one
_HOST = re.compile(r"(\[[0-9a-fA-F:.%]+\]|[^:@\[\]/]*)(:\d{1,5})?", re.ASCII)
_ODD = re.compile(r"%(?![0-9a-fA-F]{2})|\s")


def of_form(
    pattern: str, right: str, fits: Callable[[str], bool] = lambda word: True
) -> Callable[[Any, str], str]:
    """Return a reader of text that matches *pattern* and *fits*; *right* is what it must be."""

    def read(value: Any, place: str) -> str:
        word = text(value, place, right)
        if not re.fullmatch(pattern, word, re.ASCII) or not fits(word):
            raise wrong_value(place, right, word)
        return word

    return read


def secret(value: Any, place: str) -> Secret:
    """Read a secret; the loader has already replaced references."""
    if not isinstance(value, Secret):
        forms = REFERENCES if place.endswith(".api_key") else '"env:NAME" or "file:PATH"'
        variable = VARIABLE.fullmatch(value) if isinstance(value, str) else None
        meant = f'; did you mean "env:{variable[1]}"?' if variable else ""
        raise ConfigError(f"{place} must be a reference, {forms}, never the secret itself{meant}")
    return value


def database_url(value: Any, place: str) -> Secret:
    """Read the URL of a PostgreSQL, by reference if it has a password; errors never quote it."""
    is_secret = isinstance(value, Secret)
    found: Secret = value if is_secret else Secret(text(value, place))
    if is_secret and _HASH.fullmatch(found.reveal()):
        return found  # reported already: the loader could not read it
    try:
        parts = urlsplit(found.reveal())
        hosts = parts.netloc.rpartition("@")[2].split(",")
        valid = all(_HOST.fullmatch(host) for host in hosts)
    except ValueError:
        raise ConfigError(f"{place} is not a URL") from None
    if parts.scheme not in ("postgresql", "postgres") or "://" not in found.reveal():
        raise ConfigError(f"{place} must be a URL that begins with postgresql://")
    odd = parts.fragment or parts.netloc.count("@") > 1 or _ODD.search(found.reveal())
    if not valid or "@" in parts.path or odd:
        told = "in the user and password, / # @ : % and spaces are %2F %23 %40 %3A %25 %20"
        raise ConfigError(f"{place} is not a URL: a port is a number, and {told}")
    if not is_secret and (parts.password or "password=" in parts.query):
        remedy = 'put the URL into a variable, and name it: "env:NAME"'
        raise ConfigError(f"{place} must not hold a password: {remedy}")
    return found


def ledger_url(value: str) -> Secret:
    """Return the URL of a PostgreSQL that is given, or named as "env:NAME"; raise ConfigError."""
    place, name = "the ledger's URL", value.removeprefix("env:")
    found = value if name == value else os.environ.get(name, "").strip()
    if not found:
        raise ConfigError(f"{place}: the variable {name} is not set")
    return database_url(Secret(found), place)


def web_address(value: Any, place: str) -> Secret:
    """Read the reference to an http(s) address, which is a secret."""
    found = secret(value, place)
    address = found.reveal()
    if _HASH.fullmatch(address):  # reported already: the reference could not be resolved
        return found
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or " " in address:
        where = found.source or "the variable"
        raise ConfigError(f"{place}: {where} must hold a URL that begins with https:// or http://")
    return found


def not_empty(reader: Reader, problem: str) -> Reader:
    """Return a reader of lists; *problem* is what an empty one has."""

    def read(value: Any, place: str) -> tuple[str, ...]:
        found: tuple[str, ...] = reader(value, place)
        if not found:
            raise ConfigError(f"{place} {problem}")
        return found

    return read


alert_events = not_empty(
    some_of("budget", "target", "prices", "records"),
    "names no event; without [alerts] none is sent",
)
some_texts = not_empty(texts, "must name a key")


def _scopes(value: Any, place: str) -> tuple[str, ...]:
    for scope in (found := texts(value, place)):
        if STAR * 2 in scope:
            raise ConfigError(f"{place}: write * instead of ** in {shown(scope)}")
    return found


some_models = not_empty(_scopes, "names no model: leave it out to admit all of them")


def _ids(found: Ids, place: str, more: str = "") -> Ids:
    """Return ids of models; raise ConfigError for a pattern."""
    for model in found:
        if STAR in model:
            raise ConfigError(f"{place}: {shown(model)} has a *: list ids of models{more}")
    return found


def model_ids(value: Any, place: str) -> tuple[str, ...]:
    more = "; any other is reached as PROVIDER/MODEL, or by a pattern in [models]"
    return _ids(texts(value, place), place, more)


def by_model(value: Any, place: str) -> dict[str, Any]:
    """Read a table whose keys are ids of models."""
    return _ids(any_table(value, place), place)


def then(value: Any, place: str) -> str:
    """Read what is done when a budget is spent, such as the name of a cheaper model."""
    word = text(value, place)
    if STAR in word:
        raise ConfigError(f"{place} must be a name, not the pattern {shown(word)}")
    return word


def _targets(value: Any, place: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (text(value, place),)
    return texts(of_type(list, value, place, " of targets, or one in quotes"), place)


target_names = not_empty(_targets, "names no target")
file_path = of_form(
    r"(?!(env|file):|\w+://).+",
    "the path of a file (a PostgreSQL has a url; a variable is INFERMUX_LEDGER__PATH)",
)


def key_hash(value: Any, place: str) -> str:
    """Read the SHA-256 of a key in hexadecimal, given as text or by reference."""
    found = value.reveal() if isinstance(value, Secret) else text(value, place)
    if not _HASH.fullmatch(found.lower()) or found.lower().endswith(_EMPTY_HASH):
        remedy = "`infermux keys new NAME` makes one"
        raise ConfigError(f"{place} must be a SHA-256 in 64 hexadecimal digits: {remedy}")
    return found.lower().removeprefix("sha256:")


_dollars = of_form(r"\d{1,9}(\.\d{1,12})?", 'dollars as text, such as "200.00"')


def money(value: Any, place: str) -> str:
    """Read dollars as decimal text, so that no digit is lost."""
    return _dollars(str(value) if type(value) is int else value, place)


def span_seconds(word: str) -> int:
    return int(word[:-1]) * _SECONDS[word[-1]]


def size_bytes(word: str) -> int:
    return int(word[:-2]) * _BYTES[word[-2:]]


days = of_form(r"[1-9]\d{0,4}d", 'a number of days, such as "400d"')
span = of_form(
    r"[1-9]\d{0,6}[smhdw]",
    'a time such as "90s", "15m", "1h" or "7d", at most "366d"',
    lambda word: span_seconds(word) <= LONGEST,
)
size = of_form(
    r"[1-9]\d{0,6} ?(KB|MB|GB)",
    'bytes such as "500KB", "256MB" or "2GB", from "64KB" to "1024GB"',
    lambda word: LEAST <= size_bytes(word) <= MOST,
)


def time_zone(value: Any, place: str) -> str:
    from zoneinfo import ZoneInfo  # only where it is needed

    name = text(value, place)
    try:
        if name != "UTC":
            ZoneInfo(name)
    except (LookupError, ValueError, OSError):  # OSError: the name of a folder
        right = 'a time zone such as "Europe/Berlin" or "UTC"'
        raise wrong_value(place, right, name) from None
    return name


def weights(value: Any, place: str) -> dict[str, float]:
    found = any_table(value, place)
    for target, weight in found.items():
        if not 0 < of_type(float, weight, f"{place}.{target}") < 10**9:
            raise ConfigError(f"{place}.{target} must be a number above 0")
    return {target: float(weight) for target, weight in found.items()}


def missing_features(value: Any, place: str) -> dict[str, tuple[str, ...]]:
    read = some_of("tools", "images", "structured output", "embeddings", "reasoning")
    found = by_model(value, place)
    return {model: read(items, f"{place}.{model}") for model, items in found.items()}


ENDPOINTS = (  # endpoints that are passed through
    "images/generations",
    "images/edits",
    "images/variations",
    "audio/speech",
    "audio/transcriptions",
    "audio/translations",
    "moderations",
    "rerank",
    "files",
    "batches",
)
NO_ENDPOINTS = "none"


def endpoint_names(value: Any, place: str) -> tuple[str, ...]:
    """Read a list of endpoints, or "none" alone."""
    read = not_empty(some_of(*ENDPOINTS, NO_ENDPOINTS), 'names no endpoint: write ["none"]')
    found: tuple[str, ...] = read(value, place)
    if NO_ENDPOINTS in found and len(found) > 1:
        raise ConfigError(f'{place} must have no other item beside "none"')
    return found


def or_empty(reader: Reader) -> Reader:
    """Return a reader that also accepts "", which disables the feature."""
    return lambda value, place: reader(value, place) if value != "" else ""


def tags(value: Any, place: str) -> bool | dict[str, str]:
    """Read whether requests may set project and env, or the tags of all requests."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, dict):
        what = 'true or false, or a table of text such as { project = "search" }'
        raise ConfigError(f"{place} must be {what}")
    if not 0 < len(value) <= MAX_TAGS:
        raise ConfigError(f"{place} must have 1 to {MAX_TAGS} tags")
    for name, item in value.items():
        printable_name(name, place)
        if len(text(item, f"{place}.{name}")) > MAX_TAG:
            raise ConfigError(f"{place}.{name} is longer than {MAX_TAG} characters")
    return dict(value)
