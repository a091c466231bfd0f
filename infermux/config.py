"""The configuration: from the environment to one frozen Config. The only place that reads the environment."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any
from urllib.parse import urlsplit

from .errors import ConfigError, shown

PREFIX = "INFERMUX_"


class Secret:
    """A value that shows itself only where it is asked to: not in a repr, a log line or a traceback."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        if not value.isascii() or not value.isprintable():
            raise ConfigError("a secret must be printable ASCII on one line")
        self._value = value

    def reveal(self) -> str:
        """Return the value itself."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    __str__ = __repr__


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One provider: what of it is not said comes from the preset of its type."""

    name: str
    type: str                               # a preset, a dialect, or the name of an installed plug-in
    base_url: str = ""
    api_key: Secret | None = None
    models: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)    # what a plug-in's own type understands


@dataclass(frozen=True, slots=True)
class Reliability:
    """How hard a call is tried."""

    attempts: int = 3                       # upstream requests per call, over all targets
    deadline: float = 60.0                  # seconds per call, over all attempts and waits
    on_unsupported: str = "error"           # or "drop": what to do with a parameter that a vendor's format cannot express


@dataclass(frozen=True, slots=True)
class Server:
    """What a service is given."""

    workers: int = 2
    threads: int = 256                      # per worker: a call holds its thread for as long as the model takes
    graceful: int = 30                      # seconds that calls in flight get at SIGTERM
    max_body: int = 32 * 1024 * 1024        # bytes of a request


@dataclass(frozen=True, slots=True)
class Trace:
    """Where spans go."""

    tokentrace: str = ""                    # TokenTrace's address; empty: nowhere
    threads: int = 2
    queue: int = 1000                       # spans that may wait; more are dropped, and counted


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured."""

    providers: tuple[ProviderConfig, ...] = ()
    reliability: Reliability = Reliability()
    server: Server = Server()
    trace: Trace = Trace()


_SECTIONS = {"reliability": Reliability, "server": Server, "trace": Trace}
_PROVIDER_SCALARS = ("base_url", "api_key", "models")


def load(keys: Mapping[str, Iterable[str]], addresses: Mapping[str, str], environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that the environment holds; raise ConfigError naming the variable that is wrong.

    *keys* gives, in order, each preset's variables: a provider is configured where one of them is set. *addresses* gives the
    variables of those whose address is not in <NAME>_BASE_URL.
    """
    environ = os.environ if environ is None else environ
    config = Config(providers=tuple(_providers(keys, addresses, environ)))
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX) and "__" in name:
            config = _overridden(config, name, value)
    return config


def _providers(keys: Mapping[str, Iterable[str]], addresses: Mapping[str, str],
               environ: Mapping[str, str]) -> Iterable[ProviderConfig]:
    for name, variables in keys.items():
        found = next(((variable, environ[variable].strip()) for variable in variables if environ.get(variable, "").strip()), None)
        if found is None:
            continue
        variable, value = found
        if variable.endswith(("_HOST", "_BASE_URL")):       # a local server: its address says that it is there
            yield ProviderConfig(name, name, base_url=_local(variable, value))
        else:
            address = addresses.get(name) or f"{name.upper()}_BASE_URL"
            base_url = _url(address, environ.get(address, "").strip())
            yield ProviderConfig(name, name, base_url=base_url, api_key=_secret(variable, value))


def _overridden(config: Config, variable: str, value: str) -> Config:
    section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
    if section == "providers":
        return _provider_overridden(config, variable, key, value)
    if section not in _SECTIONS:
        raise ConfigError(f"{variable}: there is no section {section!r}{meant(section, [*_SECTIONS, 'providers'])}")
    known = {item.name: item.type for item in fields(_SECTIONS[section])}
    if key not in known:
        raise ConfigError(f"{variable}: [{section}] has no {key!r}{meant(key, known)}")
    new = replace(getattr(config, section), **{key: _scalar(variable, str(known[key]), value)})
    return replace(config, **{section: new})


def _provider_overridden(config: Config, variable: str, path: str, value: str) -> Config:
    name, _, key = path.partition("__")
    known = {provider.name: provider for provider in config.providers}
    if name not in known:
        raise ConfigError(f"{variable}: provider {name!r} is not configured; set its key first{meant(name, known)}")
    if key not in _PROVIDER_SCALARS:
        raise ConfigError(f"{variable}: a provider has no {key!r}{meant(key, _PROVIDER_SCALARS)}")
    new: Any = (_url(variable, value) if key == "base_url" else _secret(variable, value) if key == "api_key"
                else tuple(model.strip() for model in value.split(",") if model.strip()))
    return replace(config, providers=tuple(
        replace(provider, **{key: new}) if provider.name == name else provider for provider in config.providers))


def _scalar(variable: str, kind: str, value: str) -> Any:
    if variable.endswith("ON_UNSUPPORTED") and value not in ("error", "drop"):
        raise ConfigError(f'{variable} must be "error" or "drop", not {shown(value)}')
    if kind == "str":
        return _url(variable, value) if variable.endswith("TOKENTRACE") else value
    try:
        number = {"int": int, "float": float}[kind](value)
    except ValueError:
        raise ConfigError(f"{variable} must be {'a whole number' if kind == 'int' else 'a number'}, not {shown(value)}") from None
    if not 0 < number < 10**12:
        raise ConfigError(f"{variable} must be more than 0, not {shown(value)}")
    return number


def _secret(variable: str, value: str) -> Secret:
    try:
        return Secret(value)
    except ConfigError as error:
        raise ConfigError(f"{variable}: {error.message}") from None


def _local(variable: str, value: str) -> str:
    """Return the base URL of a local server from HOST, HOST:PORT or a URL, as OLLAMA_HOST is written."""
    address = value if "://" in value else f"http://{value}"
    parts = urlsplit(_url(variable, address))
    host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::", None) else parts.hostname
    host = f"[{host}]" if ":" in host else host
    port = parts.port or (443 if parts.scheme == "https" else 11434 if "://" not in value else 80)
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}"


def _url(where: str, value: str) -> str:
    """Return *value*, empty or an http(s) address without credentials; raise ConfigError naming the place."""
    if not value:
        return ""
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  # raises for a port that is none
    except ValueError:
        raise ConfigError(f"{where} is not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not value.isprintable() or " " in value:
        raise ConfigError(f"{where} must be a URL that begins with http:// or https://")
    if parts.username or parts.password:
        raise ConfigError(f"{where} must not hold credentials: a key has its own place")
    return value.rstrip("/")


def meant(word: str, known: Iterable[str]) -> str:
    """Return a hint for a misspelt *word*, or what would be right if nothing is close."""
    names = list(known)
    close = difflib.get_close_matches(word[:100], names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there {'are' if len(names) != 1 else 'is'} {', '.join(names) or 'none'}"


def override(name: str, value: str) -> None:
    """Set a scalar for this process and those that it starts, as INFERMUX_NAME in the environment does."""
    os.environ[PREFIX + name] = value
