"""Loads the configuration from infermux.toml and the environment, which only this package reads."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError, shown
from .schema import Secret, of_type, printable_name, suggestion, table, url
from .settings import (
    Config,
    KeyConfig,
    LedgerConfig,
    ModelConfig,
    ProviderConfig,
    Reliability,
    Server,
    Trace,
    target_names,
)

__all__ = ["Config", "Missing", "NotTOML", "ProviderConfig", "Secret", "load", "override"]

PREFIX = "INFERMUX_"
FILE = "infermux.toml"


class Missing(ConfigError):
    """The file does not exist or cannot be read."""


class NotTOML(ConfigError):
    """The file is not TOML."""


_SECTIONS: dict[str, Any] = {
    "reliability": Reliability,
    "server": Server,
    "ledger": LedgerConfig,
    "trace": Trace,
}
_TABLES = ("providers", "models", "keys", *_SECTIONS)
_SECRETS = {"api_key", "admin", "hash"}
_ADDRESSES = ("_HOST", "_BASE_URL")  # end the variables that hold a local server's address
_PORTS = {
    "OLLAMA_HOST": 11434,
    "VLLM_BASE_URL": 8000,
    "LMSTUDIO_BASE_URL": 1234,
    "LLAMACPP_BASE_URL": 8080,
}


class _Environment(NamedTuple):
    """The environment's variables, and which of them configure the presets."""

    variables: Mapping[str, str]
    keys: Mapping[str, Iterable[str]]  # by preset
    addresses: Mapping[str, str]  # by preset, unless it is <NAME>_BASE_URL

    def get(self, variable: str) -> str:
        return self.variables.get(variable, "").strip()

    def base_url(self, preset: str) -> str:
        variable = self.addresses.get(preset) or f"{preset.upper()}_BASE_URL"
        value = self.get(variable)
        return url(value, variable) if value else ""

    def provider(self, preset: str) -> ProviderConfig | None:
        """Return the provider that the first set variable configures, or None."""
        for variable in self.keys[preset]:
            if value := self.get(variable):
                if variable.endswith(_ADDRESSES):
                    return ProviderConfig(preset, preset, base_url=_local(variable, value))
                key = _secret(variable, value)
                return ProviderConfig(preset, preset, self.base_url(preset), key)
        return None


def load(
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    path: str | None = None,
) -> Config:
    """Return the configuration; raise ConfigError naming the place and the remedy.

    The file is *path*, else INFERMUX_CONFIG, else ./infermux.toml. Without one, the presets with
    a key in the environment are the providers. *keys* and *addresses*: see `_Environment`.
    """
    environment = _Environment(os.environ if environ is None else environ, keys, addresses)
    default = FILE if Path(FILE).is_file() else ""
    file = path or environment.get(f"{PREFIX}CONFIG") or default
    if file:
        config = _from_file(file, environment)
    else:
        config = Config(providers=tuple(filter(None, map(environment.provider, keys))))
    for name, value in sorted(environment.variables.items()):
        if name.startswith(PREFIX) and "__" in name:
            config = _overridden(config, name, value)
    if file:
        _check_keys(config, keys)
    return config


def override(name: str, value: str) -> None:
    """Set INFERMUX_*name* for this process and the processes that it starts."""
    os.environ[PREFIX + name] = value


# -- the file --


def _from_file(file: str, environment: _Environment) -> Config:
    try:
        data = tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise Missing(f"there is no file {file}") from None
    except RecursionError:
        raise NotTOML(f"{file} is not TOML: it is nested too deeply") from None
    except ValueError as error:  # of tomllib, of UTF-8, or of a number with thousands of digits
        raise NotTOML(f"{file} is not TOML: {error}") from None
    except OSError as error:
        raise Missing(f"{file} cannot be read: {error.strerror}") from None
    try:
        return _read(data, environment, file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}") from None


def _read(data: dict[str, Any], environment: _Environment, file: str) -> Config:
    for name in data:
        if name not in _TABLES:
            raise ConfigError(f"there is no section [{name}]{suggestion(name, _TABLES)}")
    data = _dereferenced(data, "", environment)
    providers = [_provider(name, value, environment) for name, value in _tables(data, "providers")]
    models = [_model(name, value) for name, value in _tables(data, "models")]
    keys = [
        table(KeyConfig, name=name)(value, f"[keys.{name}]")
        for name, value in _tables(data, "keys")
    ]
    sections = {
        name: table(kind)(data[name], f"[{name}]")
        for name, kind in _SECTIONS.items()
        if name in data
    }
    _check_cycles(models)
    return Config(
        providers=tuple(providers),
        models=tuple(models),
        keys=tuple(keys) if "keys" in data else None,
        path=file,
        **sections,
    )


def _tables(data: dict[str, Any], section: str) -> Iterator[tuple[str, Any]]:
    """Yield the tables of a section with their names."""
    for name, value in of_type(dict, data.get(section, {}), f"[{section}]").items():
        yield printable_name(name, f"[{section}]"), value


def _dereferenced(value: Any, place: str, environment: _Environment) -> Any:
    """Return the tables with every reference to a secret replaced by the secret."""
    if not isinstance(value, dict):
        return value
    found = {}
    for name, item in value.items():
        inner = f"{place}.{name}" if place else name
        is_secret = name in _SECRETS and isinstance(item, str)
        found[name] = (_resolved if is_secret else _dereferenced)(item, inner, environment)
    return found


def _resolved(value: str, place: str, environment: _Environment) -> Any:
    """Return the secret behind "env:NAME" or "file:PATH"; other text is left for its reader."""
    kind, _, name = value.partition(":")
    if kind == "env" and name:
        if not environment.get(name):
            raise ConfigError(f"{place}: the variable {name} is not set")
        return _secret(place, environment.get(name))
    if kind == "file" and name:
        try:
            return _secret(place, Path(name).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{place}: the file {name} cannot be read") from None
    return value


def _secret(place: str, value: str) -> Secret:
    try:
        return Secret(value.strip())
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None


def _provider(name: str, value: Any, environment: _Environment) -> ProviderConfig:
    """Return a provider from its table; a preset takes what is missing from the environment."""
    provider = table(ProviderConfig, name=name)(value, f"[providers.{name}]")
    if "/" in name:
        raise ConfigError(f"[providers.{name}]: a provider's name must not contain '/'")
    provider = provider if provider.type else replace(provider, type=name)
    if provider.type != name or name not in environment.keys:
        return provider
    if not provider.base_url:
        provider = replace(provider, base_url=environment.base_url(name))
    if provider.api_key is None and (found := environment.provider(name)):
        address = provider.base_url or found.base_url
        provider = replace(provider, api_key=found.api_key, base_url=address)
    return provider


def _check_keys(config: Config, keys: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError for a vendor without a key; one with an own address needs none."""
    for provider in config.providers:
        variables = [each for each in keys.get(provider.type, ()) if not each.endswith(_ADDRESSES)]
        if variables and provider.api_key is None and not provider.base_url:
            own = f"{' or '.join(variables)}, or " if provider.type == provider.name else ""
            raise ConfigError(
                f"{config.path}: [providers.{provider.name}] has no key: "
                f'set {own}api_key to a reference, "env:NAME"'
            )


def _model(name: str, value: Any) -> ModelConfig:
    if not isinstance(value, dict):
        return ModelConfig(name, target_names(value, f"[models] {name}"))
    model = table(ModelConfig, name=name)(value, f"[models.{name}]")
    for target in model.weights:
        if target not in model.targets:
            hint = suggestion(target, model.targets)
            raise ConfigError(f"[models.{name}].weights: {target!r} is not a target{hint}")
    if model.weights and model.strategy != "weighted":
        raise ConfigError(f'[models.{name}].weights need strategy = "weighted"')
    return model


def _check_cycles(models: list[ModelConfig]) -> None:
    graph = {model.name: [*model.targets, *model.then] for model in models}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]
        raise ConfigError(f"[models] {cycle[0]} is circular: {' -> '.join(cycle)}") from None


# -- the environment --


def _local(variable: str, value: str) -> str:
    """Return a local server's URL from HOST, :PORT, HOST:PORT or a URL, as OLLAMA_HOST allows."""
    bare = "://" not in value
    address = f"http://{'127.0.0.1' if value.startswith(':') else ''}{value}" if bare else value
    parts = urlsplit(url(address, variable))
    host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::") else parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    default = _PORTS.get(variable, 80) if bare else 443 if parts.scheme == "https" else 80
    return f"{parts.scheme}://{host}:{parts.port or default}{parts.path.rstrip('/')}"


def _overridden(config: Config, variable: str, value: str) -> Config:
    """Return *config* with what INFERMUX_SECTION__KEY sets."""
    section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
    if section in _SECTIONS:
        old = getattr(config, section) or _SECTIONS[section]()
        return replace(config, **{section: _with_field(old, variable, f"[{section}]", key, value)})
    if section != "providers":
        hint = suggestion(section, [*_SECTIONS, "providers"])
        raise ConfigError(f"{variable}: there is no section {section!r}{hint}")
    name, _, key = key.partition("__")
    known = {provider.name.lower(): provider for provider in config.providers}
    if name not in known:
        hint = f"set its key first{suggestion(name, known)}"
        raise ConfigError(f"{variable}: provider {name!r} is not configured; {hint}")
    new = _with_field(known[name], variable, f"[providers.{name}]", key, value)
    providers = [new if each is known[name] else each for each in config.providers]
    return replace(config, providers=tuple(providers))


def _with_field(record: Any, variable: str, place: str, path: str, value: str) -> Any:
    """Return *record* with the field at *path* (KEY or TABLE__KEY) read from *value*."""
    key, _, rest = path.partition("__")
    known = {item.name: item for item in fields(record) if "reader" in item.metadata}
    if key not in known:
        raise ConfigError(f"{variable}: {place} has no {key!r}{suggestion(key, known)}")
    old = getattr(record, key)
    if not rest:
        typed = _typed(old, value, known[key].type, variable)
        return replace(record, **{key: known[key].metadata["reader"](typed, variable)})
    if not hasattr(old, "__dataclass_fields__"):
        raise ConfigError(f"{variable}: {place}.{key} is not a table")
    return replace(record, **{key: _with_field(old, variable, f"{place}.{key}", rest, value)})


def _typed(old: Any, value: str, kind: Any, variable: str) -> Any:
    """Return the text of a variable as the value that a file would hold."""
    if "Secret" in str(kind):
        return _secret(variable, value)
    if isinstance(old, bool):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    if isinstance(old, tuple):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(old, int | float):
        try:
            return type(old)(value)
        except ValueError:
            right = "a whole number" if isinstance(old, int) else "a number"
            raise ConfigError(f"{variable} must be {right}, not {shown(value)}") from None
    return value
