"""Reads the parameters and headers that are set for all calls of a name or provider."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, close_to, shown, wrong_value
from .readers import VARIABLE, secret
from .schema import TYPES, Problems, Secret, any_table, of_type

_NUMBER = (int, float)
# Parameters by OpenAI's names: the type, and the smallest and largest number.
_KNOWN: dict[str, tuple[tuple[type, ...], float, float]] = {
    "temperature": (_NUMBER, 0, 2),
    "top_p": (_NUMBER, 0, 1),
    "top_k": ((int,), 0, 10**9),
    "min_p": (_NUMBER, 0, 1),
    "frequency_penalty": (_NUMBER, -2, 2),
    "presence_penalty": (_NUMBER, -2, 2),
    "repetition_penalty": (_NUMBER, 0, 10),
    "max_tokens": ((int,), 1, 10**9),
    "max_completion_tokens": ((int,), 1, 10**9),
    "n": ((int,), 1, 128),
    "seed": ((int,), -(2**63), 2**63 - 1),
    "top_logprobs": ((int,), 0, 20),
    "dimensions": ((int,), 1, 10**6),
    **dict.fromkeys(("logprobs", "parallel_tool_calls", "store"), ((bool,), 0, 0)),
    **dict.fromkeys(
        (
            "reasoning_effort",
            "verbosity",
            "service_tier",
            "user",
            "safety_identifier",
            "prompt_cache_key",
            "prompt_cache_retention",
            "encoding_format",
        ),
        ((str,), 0, 0),
    ),
    **dict.fromkeys(("metadata", "response_format", "logit_bias", "audio"), ((dict,), 0, 0)),
    **dict.fromkeys(("tools", "modalities"), ((list,), 0, 0)),
    "stop": ((str, list), 0, 0),
    "tool_choice": ((str, dict), 0, 0),
}
_REFUSED = {
    **dict.fromkeys(("model", "messages", "input", "prompt"), "it is the request's own"),
    **dict.fromkeys(("stream", "stream_options"), "the client decides whether it gets a stream"),
    **dict.fromkeys(("api_key", "api_base", "base_url", "api_version"), "set it in [providers]"),
    **dict.fromkeys(("headers", "extra_headers"), "set [providers.NAME].headers"),
    **dict.fromkeys(("extra_body", "extra_query"), "put its members here directly"),
    "timeout": "set `timeout` of the name",
}
_CLOSE = 0.85  # a name that is so similar to a known one is a misspelling
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}")
_CREDENTIALS = ("authorization", "x-api-key", "api-key", "x-goog-api-key")
_PRIVATE = re.compile("auth|key|token|secret|cookie", re.I)
_OURS = {
    **dict.fromkeys(
        ("host", "content-length", "transfer-encoding", "connection", "te", "trailer", "upgrade"),
        "the connection's own",
    ),
    **dict.fromkeys(("content-type", "accept-encoding", "expect"), "set by the format"),
    **dict.fromkeys(("proxy-authorization", "proxy-connection"), "the proxy's"),
}


def params(value: Any, place: str) -> dict[str, Any]:
    """Read a table of parameters by OpenAI's names; others must be JSON."""
    problems = Problems()
    for name, item in any_table(value, place).items():
        with problems:
            _check_param(name, item, f"{place}.{name}")
    problems.check()
    return dict(value)


def _check_param(name: str, value: Any, place: str) -> None:
    if name in _REFUSED:
        raise ConfigError(f"{place} must not be set: {_REFUSED[name]}")
    _check_json(value, place)
    if name not in _KNOWN:
        if hint := close_to(name, _KNOWN, _CLOSE):
            raise ConfigError(f"{place} is no parameter{hint}")
        return
    kinds, least, most = _KNOWN[name]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(TYPES[kind] for kind in kinds if kind is not int or len(kinds) == 1)
        raise wrong_value(place, wanted, value)
    if isinstance(value, _NUMBER) and least < most and not least <= value <= most:
        raise wrong_value(place, f"from {least} to {most}", value)
    if name == "stop" and isinstance(value, list):
        _check_texts(value, place)
    if name == "tools":
        for number, each in enumerate(value):
            if not isinstance(each, dict) or not isinstance(each.get("type"), str):
                raise ConfigError(f"{place}[{number}] must be a table with a `type`")
    if name == "metadata":
        _check_texts([*value.values()], place)


def _check_texts(values: list[Any], place: str) -> None:
    if not all(isinstance(each, str) for each in values):
        raise ConfigError(f"{place} must hold text only")


def _check_json(value: Any, place: str) -> None:
    """Raise ConfigError for what JSON does not have: dates, nan, inf."""
    if isinstance(value, dict):
        for name, each in value.items():
            _check_json(each, f"{place}.{name}")
    elif isinstance(value, list):
        for number, each in enumerate(value):
            _check_json(each, f"{place}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{place} must be a finite number, not {value}")
    elif not isinstance(value, str | int | float):
        raise ConfigError(f"{place} must be text, a number, true or false, not a date or a time")


def headers(value: Any, place: str) -> dict[str, str | Secret]:
    """Read a table of HTTP headers; the loader has already replaced references to secrets."""
    problems, found = Problems(), dict[str, str | Secret]()
    for name, item in any_table(value, place).items():
        with problems:
            found[_header_name(name, found, place)] = _header(name, item, f"{place}.{name}")
    problems.check()
    return found


def _header_name(name: str, known: Mapping[str, Any], place: str) -> str:
    """Return a header's name in lower case; raise ConfigError if it must not be set."""
    lower = name.lower()
    if not _TOKEN.fullmatch(name):
        raise ConfigError(f"{place}: {shown(name)} is no name of a header")
    if lower in _OURS:
        raise ConfigError(f"{place}: {shown(name)} must not be set: it is {_OURS[lower]}")
    if lower in known:
        raise ConfigError(f"{place} has {shown(name)} twice: case does not matter")
    return lower


def _header(name: str, value: Any, place: str) -> str | Secret:
    if isinstance(value, Secret):
        return value
    text: str = of_type(str, value, place)
    if _PRIVATE.search(name) or VARIABLE.fullmatch(text):
        return secret(text, place)
    if not text.strip() or not text.isascii() or not text.isprintable() or len(text) > 2000:
        raise ConfigError(f"{place} must be printable ASCII on one line, and not empty")
    return text


def credential_of(names: Mapping[str, Any]) -> str:
    """Return the first header in *names* that carries an API key, or ""."""
    return next((name for name in names if name in _CREDENTIALS), "")
