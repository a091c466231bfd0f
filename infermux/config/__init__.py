"""Loads the configuration from infermux.toml and the environment, which only this package reads.

`settings` has a dataclass for each table, `schema` reads tables into them, `readers` read values.
`names` and `patterns` read [models], `params` parameters and headers, `credentials` and `command`
providers' API keys.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from ..errors import ConfigError, close_to, did_you_mean, similar
from .credentials import api_key, reference
from .names import check_ties, model_name, without_cycles
from .params import credential_of
from .schema import (
    Problems,
    Secret,
    Setter,
    current,
    flag,
    keys_of,
    of_type,
    printable_name,
    resembles,
    said,
    secret,
    suggestion,
    table,
    unknown,
    url,
    variables,
)
from .settings import (
    EVERYTHING,
    SECTIONS,
    Config,
    ModelConfig,
    ProviderConfig,
    caller_key,
    price_file,
    team,
)

__all__ = ["Config", "Missing", "NotTOML", "ProviderConfig", "Secret", "load", "override"]

PREFIX = "INFERMUX_"
CONFIG, ADMIN_KEY = "INFERMUX_CONFIG", "INFERMUX_ADMIN_KEY"
FILE = "infermux.toml"
TEMPLATE = Path(__file__).with_name("template.toml")  # what `infermux init` writes
_UNREAD = (".yml", ".yaml", ".json")  # formats of files that people expect to be read


class Missing(ConfigError):
    """The file does not exist or cannot be read."""


class NotTOML(ConfigError):
    """The file is not TOML."""


_TABLES = ("providers", "models", "keys", "budgets", *SECTIONS)
_SECRETS = {"api_key", "admin_key", "admin", "hash", "users_secret", "url", "webhook", "secret"}
_ADDRESSES = ("_HOST", "_BASE_URL")  # end the variables that hold a local server's address
_PORTS = {
    "OLLAMA_HOST": 11434,
    "VLLM_BASE_URL": 8000,
    "LMSTUDIO_BASE_URL": 1234,
    "LLAMACPP_BASE_URL": 8080,
}


class _Environment(NamedTuple):
    """The environment, and the variables that configure presets, by name."""

    variables: Mapping[str, str]
    keys: Mapping[str, Iterable[str]]  # by preset
    addresses: Mapping[str, str]  # by preset, unless it is <NAME>_BASE_URL
    used: set[str]  # the variables that something has asked for

    def get(self, variable: str) -> str:
        self.used.add(variable)
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
                    key, address = None, _local(variable, value)
                else:
                    key, address = secret(variable, value, variable), self.base_url(preset)
                return ProviderConfig(preset, preset, address, key, source=variable)
        return None


def load(
    keys: Mapping[str, Iterable[str]],
    addresses: Mapping[str, str],
    environ: Mapping[str, str] | None = None,
    path: str | None = None,
    *,
    strict: bool = True,
) -> Config:
    """Return the configuration; raise ConfigError naming the place and the remedy.

    The file is *path*, else INFERMUX_CONFIG, else ./infermux.toml, else the user's own. If it has
    no [providers], the presets with a key in the environment are the providers. *keys* and
    *addresses*: see `_Environment`. Without *strict*, errors are put into the configuration.
    """
    variables = os.environ if environ is None else environ
    environment = _Environment(variables, keys, addresses, {CONFIG, "INFERMUX_LONG"})
    file, notices = _found(path or environment.get(CONFIG), environment)
    problems = Problems()
    config = Config()
    if file:
        reader = _File(file, environment, notices)
        config = reader.read()
        problems.errors += reader.problems.at(file)
    if config.environment:
        known = {provider.name for provider in config.providers}
        for preset in keys:
            with problems:
                if preset not in known and (found := environment.provider(preset)):
                    config = replace(config, providers=(*config.providers, found))
    config = _Variables(environment, problems, notices).applied(config)
    with problems:
        config = replace(config, price_table=price_file(config.prices.file, Path(file).parent))
    if file:
        _check_keys(config, keys, problems)
    if strict:
        problems.check()
    return replace(config, notices=tuple(dict.fromkeys(notices)), errors=tuple(problems.errors))


def _found(named: str, environment: _Environment) -> tuple[str, list[str]]:
    """Return the file's path or "", and a notice for each file with a similar name."""
    folders = [Path(named).parent if named else Path()]
    if not named and (own := _user_folder(environment.get)):
        folders.append(Path(own))
    default = next((str(each / FILE) for each in folders if os.path.lexists(each / FILE)), "")
    file = named or default
    remedy = "" if file else "; `infermux init` writes one"
    notices = [
        f"{other} is not read: the configuration is {file or FILE}{remedy}"
        for folder in folders
        for other in map((folder / FILE).with_suffix, _UNREAD)
        if other.is_file() and str(other) != named
    ]
    return file, notices


def default_file(*, user: bool) -> Path:
    """Return the path that `infermux init` writes to: in this folder, or the *user*'s own."""
    if not user:
        return Path(os.environ.get(CONFIG) or FILE)
    if not (folder := _user_folder(os.environ.get)):
        raise ConfigError("there is no home directory: name the file with --config or --output")
    return Path(folder, FILE)


def _user_folder(get: Callable[[str], str | None]) -> str:
    """Return the folder of the user's own file; "" if there is no home."""
    base, home = get("XDG_CONFIG_HOME") or "", get("HOME")
    if not base.startswith("/"):  # the XDG specification: ignore a relative one
        base = f"{home}/.config" if home else ""
    return base and f"{base}/infermux"


def override(name: str, value: str) -> None:
    """Set INFERMUX_*name* for this process and the processes that it starts."""
    os.environ[PREFIX + name] = value


# -- the file --


@dataclass(slots=True)
class _File:
    """Reads infermux.toml; its errors are collected, so that all are reported at once."""

    path: str
    environment: _Environment
    notices: list[str]
    problems: Problems = field(default_factory=Problems)
    unread: dict[str, Any] = field(default_factory=dict)  # what has errors, as it is written

    def read(self) -> Config:
        """Return the configuration; raise Missing or NotTOML."""
        data = _toml(self.path)
        for name in [name for name in data if name not in _TABLES]:
            self.problems.errors.append(f"there is no section [{name}]{unknown(name, _TABLES)}")
            if isinstance(data[name], dict):  # read it, so that references to it are not reported
                for likely in similar(name, _TABLES)[:1]:
                    data.setdefault(likely, data[name])
        everything = "providers" not in data
        data = self._dereferenced(data, "")
        if not isinstance((vendors := data.get("providers", {})), dict):
            vendors = {}
        if not isinstance(vendors.get("environment", {}), dict):  # else a provider of that name
            with self.problems:
                everything = flag(vendors.pop("environment"), "[providers].environment")
        providers = self._all(data, "providers", self._provider)
        models = self._all(data, "models", self._model)
        keys = self._all(data, "keys", caller_key)
        budgets = self._all(data, "budgets", partial(team, data.get("keys", {})))
        sections = {}
        for name, kind in SECTIONS.items():
            with self.problems:
                if name in data:
                    value = self._renamed(kind, data[name], f"[{name}]")
                    sections[name] = table(kind)(value, f"[{name}]")
        models = self._without_cycles(models)
        return Config(
            providers=tuple(providers),
            models=tuple(models),
            keys=tuple(keys) if "keys" in data else None,
            budgets=tuple(budgets),
            path=self.path,
            environment=everything,
            unread=tuple(self.unread.items()),
            **sections,
        )

    def _all(self, data: Any, section: str, read: Any) -> list[Any]:
        """Return what *read* makes of each table of a section with names."""
        found, place, written = [], f"[{section}]", data.get(section, {})
        failed: dict[str, Any] = {} if isinstance(written, dict) else {EVERYTHING: None}
        with self.problems:
            remedy = f"; write [{section}.NAME]"
            for name, value in of_type(dict, written, place, remedy=remedy).items():
                with self.problems:
                    failed[printable_name(name, place)] = value
                    found.append(read(name, value))
                    del failed[name]
        self.unread = failed | self.unread  # a provider and a key may have one name
        return found

    def _renamed(self, kind: Any, value: Any, place: str) -> Any:
        """Return a table with old names of keys replaced by the current ones."""
        if not isinstance(value, dict):
            return value
        known = keys_of(kind)
        found = {}
        for old, item in value.items():
            new = current(old, known)
            if old != new:
                if new in value:
                    raise ConfigError(f"{place} has both {old!r}, the old name, and {new!r}")
                self.notices.append(f"{self.path}: {place}: {old!r} is now called {new!r}")
            found[new] = item
        return found

    def _dereferenced(self, value: Any, place: str) -> Any:
        if not isinstance(value, dict):
            return value
        found = {}
        for name, item in value.items():
            inner = f"{place}.{name}" if place else name
            in_provider, read = place.startswith("providers."), None
            if in_provider and name == "api_key":
                read = api_key
            elif name in _SECRETS or (in_provider and place.endswith(".headers")):
                read = reference if isinstance(item, str) else None
            if read is None:
                found[name] = self._dereferenced(item, inner)
            else:
                found[name] = Secret(sha256(inner.encode()).hexdigest())  # to go on after an error
                with self.problems:
                    found[name] = read(item, f"[{place}].{name}", self.environment.get)
        return found

    def _provider(self, name: str, value: Any) -> ProviderConfig:
        """Return a provider; a preset takes what is missing from the environment."""
        place, environment = f"[providers.{name}]", self.environment
        value = of_type(dict, value, place, remedy=close_to(name, ["environment"]))
        value = self._renamed(ProviderConfig, value, place)
        provider = table(ProviderConfig, name=name)(value, place)
        if "/" in name:
            raise ConfigError(f"{place}: a provider's name must not contain '/'")
        provider = provider if provider.type else replace(provider, type=name)
        if provider.type != name or name not in environment.keys:
            return provider
        if not provider.base_url:
            provider = replace(provider, base_url=environment.base_url(name))
        if credential_of(provider.headers):
            return provider
        if provider.api_key is None and (found := environment.provider(name)):
            address = provider.base_url or found.base_url
            provider = replace(provider, api_key=found.api_key, base_url=address)
        return provider

    def _model(self, name: str, value: Any) -> ModelConfig:
        return model_name(name, self._renamed(ModelConfig, value, f"[models.{name}]"))

    def _without_cycles(self, models: list[ModelConfig]) -> list[ModelConfig]:
        found = without_cycles(models, self.problems)
        self.unread = dict.fromkeys(each.name for each in models if each not in found) | self.unread
        check_ties(found, self.problems)
        return found


def _toml(file: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(file).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        link = f": it is a link to {os.readlink(file)}" if os.path.islink(file) else ""
        raise Missing(f"there is no file {file}{link}") from None
    except (RecursionError, ValueError) as error:  # a ValueError also for very long numbers
        known = {RecursionError: "nested too deeply", UnicodeDecodeError: "not UTF-8 text"}
        why = f"it is {known[type(error)]}" if type(error) in known else error
        other = Path(file).suffix in _UNREAD
        remedy = "; `infermux init -c infermux.toml` writes one that explains every key"
        raise NotTOML(f"{file} is not TOML: {why}{remedy * other}") from None
    except OSError as error:
        raise Missing(f"{file} cannot be read: {error.strerror}") from None


def _check_keys(config: Config, keys: Mapping[str, Iterable[str]], problems: Problems) -> None:
    """Report each vendor that has no key, unless its address is configured: it may need none."""
    for provider in config.providers:
        variables = [each for each in keys.get(provider.type, ()) if not each.endswith(_ADDRESSES)]
        needs = provider.api_key is None and not credential_of(provider.headers)
        if variables and needs and not provider.base_url:
            own = f"{' or '.join(variables)}, or " if provider.type == provider.name else ""
            problems.errors.append(
                f"{config.path}: [providers.{provider.name}] has no key: "
                f'set {own}api_key to a reference, "env:NAME"'
            )


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


class _Variables:
    """Applies the variables INFERMUX_SECTION__KEY; reports unknown ones."""

    def __init__(self, environment: _Environment, problems: Problems, notices: list[str]) -> None:
        self._environment, self._problems = environment, problems
        self._set = Setter(notices, partial(reference, get=environment.get))

    def applied(self, config: Config) -> Config:
        for name, value in sorted(self._environment.variables.items()):
            if name.startswith(PREFIX) and "__" in name:
                with self._problems:
                    config = self._overridden(config, name, value.strip())
        with self._problems:
            config = self._with_admin_key(config)
        for name, value in sorted(self._environment.variables.items()):
            known = "__" in name or name in self._environment.used or _of_kubernetes(name, value)
            if name.startswith(PREFIX) and not known:
                hint = self._hint(name, config)
                self._problems.errors.append(f"{name} is no variable of InferMux{hint}")
        return config

    def _with_admin_key(self, config: Config) -> Config:
        value, other = self._environment.get(ADMIN_KEY), self._set.by.get("[server].admin_key")
        if not value:
            return config
        key, known = secret(ADMIN_KEY, value), config.server.admin_key
        if other and known is not None and known.reveal() != key.reveal():
            raise ConfigError(f"{ADMIN_KEY} and {other} differ, and are the same key: unset one")
        return replace(config, server=replace(config.server, admin_key=key))

    def _overridden(self, config: Config, variable: str, value: str) -> Config:
        section, _, key = _word(variable.removeprefix(PREFIX)).partition("__")
        if section in SECTIONS:
            old = getattr(config, section) or SECTIONS[section]()
            new = self._set.field(old, variable, f"[{section}]", key, value)
            return replace(config, **{section: new})
        if section != "providers":
            hint = f" of variables: [{section}] is read in {FILE}"
            if section not in _TABLES:
                hint = suggestion(section, [*SECTIONS, "providers"])
            raise ConfigError(f"{variable}: there is no section {section!r}{hint}")
        name, _, key = key.partition("__")
        known = {_word(provider.name): provider for provider in config.providers}
        if name not in known and name in (_word(each) for each, _ in config.unread):
            return config
        if name not in known:
            remedy = f"add [providers.{name}] to {FILE}{close_to(name, known)}"
            if config.environment and (keys := [*self._environment.keys.get(name, ())]):
                remedy = f"set {keys[0]}"
            raise ConfigError(f"{variable}: provider {name!r} is not configured; {remedy}")
        new = self._set.field(known[name], variable, f"[providers.{name}]", key, value)
        providers = [new if each is known[name] else each for each in config.providers]
        return replace(config, providers=tuple(providers))

    def _hint(self, name: str, config: Config) -> str:
        rest = name.removeprefix(PREFIX).upper()
        if address := said(rest.lower(), "Server"):
            return address
        records = {name: getattr(config, name) or kind() for name, kind in SECTIONS.items()}
        records |= {f"providers__{each.name}": each for each in config.providers}
        names = {"CONFIG": CONFIG, "ADMIN_KEY": ADMIN_KEY}
        for place, record in records.items():
            section = _word(place).upper()
            names |= {each: PREFIX + each for each in variables(f"{section}__", record)}
        names["SERVER__ADMIN_KEY"] = ADMIN_KEY  # the longer name works, too
        found = [each for each in names if resembles(rest, each)]
        vendors = {each for keys in self._environment.keys.values() for each in keys}
        if not found and rest in vendors:
            return did_you_mean([rest])
        found = found or similar(rest, names, 0.7)[:1]
        return did_you_mean(dict.fromkeys(names[each] for each in found[:3])) or ": unset it"


def _word(name: str) -> str:
    """Return a name as a variable may have it, which has no -, in lower case."""
    return name.lower().replace("-", "_")


def _of_kubernetes(name: str, value: str) -> bool:
    """Whether Kubernetes sets the variable, for a Service called infermux or infermux-…"""
    address = r"|PORT(_\d+_(TCP|UDP|SCTP))?" * ("://" in value)
    form = rf"_(SERVICE_(HOST|PORT\w*)|PORT_\d+_\w+_(PROTO|PORT|ADDR){address})$"
    return re.search(form, name) is not None
