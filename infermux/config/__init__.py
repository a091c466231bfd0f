"""Where the configuration comes from: infermux.toml and the environment. The only place that reads
the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..errors import ConfigError, shown
from .schema import Secret, meant, of_type, table, url
from .schema import name as printable
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
    """There is no such file."""


class NotTOML(ConfigError):
    """The file is not TOML."""


_SECTIONS: dict[str, Any] = {
    "reliability": Reliability,
    "server": Server,
    "ledger": LedgerConfig,
    "trace": Trace,
}
_TABLES = ("providers", "models", "keys", *_SECTIONS)
_USUAL = {
    "OLLAMA_HOST": 11434,
    "VLLM_BASE_URL": 8000,
    "LMSTUDIO_BASE_URL": 1234,
    "LLAMACPP_BASE_URL": 8080,
}  # ports
_SECRETS = {"api_key", "admin", "hash"}


def load(
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    path: str | None = None,
) -> Config:
    """Return the configuration of the file and the environment; raise ConfigError naming file,
    place and remedy.

    The file is *path*, else INFERMUX_CONFIG, else ./infermux.toml. Without one, *keys* gives, in
    order, each preset's variables: a provider is configured where one of them is set. *addresses*
    gives the variables of those whose address is not in <NAME>_BASE_URL.
    """
    environ = os.environ if environ is None else environ
    file = (
        path or environ.get(f"{PREFIX}CONFIG", "").strip() or (FILE if Path(FILE).is_file() else "")
    )
    config = (
        _from_file(file, keys, addresses, environ)
        if file
        else Config(providers=tuple(_providers(keys, addresses, environ)))
    )
    for name, value in sorted(environ.items()):
        if name.startswith(PREFIX) and "__" in name:
            config = _overridden(config, name, value)
    if file:
        _check_keys(config, keys)
    return config


def _from_file(
    file: str,
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str],
) -> Config:
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
        return _read(data, keys, addresses, environ, file)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error.message}") from None


def _read(
    data: dict[str, Any],
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str],
    file: str,
) -> Config:
    for name in data:
        if name not in _TABLES:
            raise ConfigError(f"there is no section [{name}]{meant(name, _TABLES)}")
    data = _dereferenced(data, "", environ)
    providers = tuple(
        _provider(name, value, keys, addresses, environ)
        for name, value in _named(data, "providers")
    )
    models = tuple(_model(name, value) for name, value in _named(data, "models"))
    callers = tuple(
        table(KeyConfig, name=printable(name, "[keys]"))(value, f"[keys.{name}]")
        for name, value in _named(data, "keys")
    )
    sections = {
        name: table(kind)(data[name], f"[{name}]")
        for name, kind in _SECTIONS.items()
        if name in data
    }
    _check_models(models)
    return Config(
        providers=providers,
        models=models,
        keys=callers if "keys" in data else None,
        path=file,
        **sections,
    )


def _named(data: dict[str, Any], section: str) -> list[tuple[str, Any]]:
    return list(of_type(dict, data.get(section, {}), f"[{section}]").items())


def _dereferenced(value: Any, place: str, environ: Mapping[str, str]) -> Any:
    """Return the tables with every reference to a secret replaced by the secret."""
    if not isinstance(value, dict):
        return value
    return {
        name: _revealed(item, f"{place}.{name}".lstrip("."), environ)
        if name in _SECRETS and isinstance(item, str)
        else _dereferenced(item, f"{place}.{name}".lstrip("."), environ)
        for name, item in value.items()
    }


def _revealed(value: str, place: str, environ: Mapping[str, str]) -> Any:
    kind, _, name = value.partition(":")
    if kind == "env" and name:
        found = environ.get(name, "").strip()
        if not found:
            raise ConfigError(f"{place}: the variable {name} is not set")
    elif kind == "file" and name:
        try:
            found = Path(name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"{place}: the file {name} cannot be read") from None
    else:
        return value  # its reader says what is wrong with it
    return _made_secret(place, found)


def _made_secret(place: str, value: str) -> Secret:
    try:
        return Secret(value.strip())
    except ConfigError as error:
        raise ConfigError(f"{place}: {error.message}") from None


def _provider(
    name: str,
    value: Any,
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str],
) -> ProviderConfig:
    """Return one provider of the file: its key is the preset's variable, unless it has another
    type, address or key.
    """
    provider = table(ProviderConfig, name=printable(name, "[providers]"))(
        value, f"[providers.{name}]"
    )
    if "/" in name:
        raise ConfigError(f"[providers.{name}]: a provider's name must hold no '/'")
    provider = provider if provider.type else replace(provider, type=name)
    if provider.type != name or name not in keys:
        return provider
    address = addresses.get(name) or f"{name.upper()}_BASE_URL"
    base_url = environ.get(address, "").strip()
    if base_url and not provider.base_url:
        provider = replace(provider, base_url=url(base_url, address))
    for found in (
        _providers({name: keys[name]}, addresses, environ) if provider.api_key is None else ()
    ):
        return replace(
            provider, api_key=found.api_key, base_url=provider.base_url or found.base_url
        )
    return provider


def _check_keys(config: Config, keys: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError for a vendor without its key; a server of one's own, which has an address,
    may do without.
    """
    for provider in config.providers:
        variables = [
            variable
            for variable in keys.get(provider.type, ())
            if not variable.endswith(("_HOST", "_BASE_URL"))
        ]
        if variables and provider.api_key is None and not provider.base_url:
            own = f"{' or '.join(variables)}, or " if provider.type == provider.name else ""
            raise ConfigError(
                f'{config.path}: [providers.{provider.name}] has no key: set {own}api_key to a reference, "env:NAME"'
            )


def _model(name: str, value: Any) -> ModelConfig:
    place = f"[models] {printable(name, '[models]')}"
    if isinstance(value, dict):
        model = table(ModelConfig, name=name)(value, f"[models.{name}]")
    else:
        model = ModelConfig(name, target_names(value, place))
    for target in model.weights:
        if target not in model.targets:
            raise ConfigError(
                f"[models.{name}].weights: {target!r} is not a target{meant(target, model.targets)}"
            )
    if model.weights and model.strategy != "weighted":
        raise ConfigError(f'[models.{name}].weights need strategy = "weighted"')
    return model


def _check_models(models: tuple[ModelConfig, ...]) -> None:
    """Raise ConfigError if a name leads back to itself."""
    names = {model.name: [*model.targets, *model.then] for model in models}
    order = TopologicalSorter(
        {name: [target for target in targets if target in names] for name, targets in names.items()}
    )
    try:
        order.prepare()
    except CycleError as error:
        raise ConfigError(
            f"[models] {error.args[1][-1]} leads back to itself: {' -> '.join(reversed(error.args[1]))}"
        ) from None


# -- the environment -------------------------------------------------------------------------------


def _providers(
    keys: Mapping[str, Iterable[str]], addresses: Mapping[str, str], environ: Mapping[str, str]
) -> Iterable[ProviderConfig]:
    for name, variables in keys.items():
        found = next(
            (
                (variable, environ[variable].strip())
                for variable in variables
                if environ.get(variable, "").strip()
            ),
            None,
        )
        if found is None:
            continue
        variable, value = found
        if variable.endswith(
            ("_HOST", "_BASE_URL")
        ):  # a local server: its address says that it is there
            yield ProviderConfig(name, name, base_url=_local(variable, value))
        else:
            address = addresses.get(name) or f"{name.upper()}_BASE_URL"
            base_url = environ.get(address, "").strip()
            yield ProviderConfig(
                name,
                name,
                base_url=url(base_url, address) if base_url else "",
                api_key=_made_secret(variable, value),
            )


def _local(variable: str, value: str) -> str:
    """Return the address of a local server from HOST, :PORT, HOST:PORT or a URL, as OLLAMA_HOST is
    written.
    """
    bare = "://" not in value
    address = f"http://{'127.0.0.1' if value.startswith(':') else ''}{value}" if bare else value
    parts = urlsplit(url(address, variable))
    host = "127.0.0.1" if parts.hostname in ("0.0.0.0", "::") else parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    usual = (443 if parts.scheme == "https" else 80) if not bare else _USUAL.get(variable, 80)
    return f"{parts.scheme}://{host}:{parts.port or usual}{parts.path.rstrip('/')}"


def _overridden(config: Config, variable: str, value: str) -> Config:
    section, _, key = variable.removeprefix(PREFIX).lower().partition("__")
    if section == "providers":
        return _provider_overridden(config, variable, key, value)
    if section not in _SECTIONS:
        raise ConfigError(
            f"{variable}: there is no section {section!r}{meant(section, [*_SECTIONS, 'providers'])}"
        )
    kind = _SECTIONS[section]
    return replace(
        config,
        **{
            section: _field_set(
                getattr(config, section) or kind(), variable, f"[{section}]", key, value
            )
        },
    )


def _field_set(record: Any, variable: str, place: str, path: str, value: str) -> Any:
    key, _, rest = path.partition("__")
    known = {item.name: item for item in fields(record) if "reader" in item.metadata}
    if key not in known:
        raise ConfigError(f"{variable}: {place} has no {key!r}{meant(key, known)}")
    old = getattr(record, key)
    if rest:
        if not hasattr(old, "__dataclass_fields__"):
            raise ConfigError(f"{variable}: {place}.{key} is not a table")
        return replace(record, **{key: _field_set(old, variable, f"{place}.{key}", rest, value)})
    return replace(
        record,
        **{
            key: known[key].metadata["reader"](
                _typed(old, value, known[key].type, variable), variable
            )
        },
    )


def _typed(old: Any, value: str, kind: Any, variable: str) -> Any:
    """Return the text of a variable as the value that a file would hold."""
    if "Secret" in str(kind):
        return _made_secret(variable, value)
    if isinstance(old, bool):
        return {"true": True, "false": False}.get(value.strip().lower(), value)
    if isinstance(old, tuple):
        return [item.strip() for item in value.split(",") if item.strip()]
    if isinstance(old, int | float):
        try:
            return type(old)(value)
        except ValueError:
            raise ConfigError(
                f"{variable} must be {'a whole number' if isinstance(old, int) else 'a number'}, "
                f"not {shown(value)}"
            ) from None
    return value


def _provider_overridden(config: Config, variable: str, path: str, value: str) -> Config:
    name, _, key = path.partition("__")
    known = {provider.name.lower(): provider for provider in config.providers}
    if name not in known:
        raise ConfigError(
            f"{variable}: provider {name!r} is not configured; set its key first{meant(name, known)}"
        )
    new = _field_set(known[name], variable, f"[providers.{name}]", key, value)
    return replace(
        config,
        providers=tuple(
            new if provider is known[name] else provider for provider in config.providers
        ),
    )


def override(name: str, value: str) -> None:
    """Set a scalar for this process and those that it starts, as INFERMUX_NAME in the environment
    does.
    """
    os.environ[PREFIX + name] = value
