"""Builds the providers of a configuration, and defines its names of models."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from ..config import Config, ProviderConfig
from ..config.params import credential_of
from ..config.patterns import is_pattern
from ..config.readers import NO_ENDPOINTS
from ..config.schema import Problems, keys_of, meant, ours, suggestion
from ..config.settings import EVERYTHING, ModelConfig
from ..dialects.responses import STANDARD
from ..errors import ConfigError, ModelNotFound, shown
from ..planning.matching import check
from ..planning.registry import Registry
from ..protocol import InferRequest
from ..providers import PRESETS, Preset, owner, plugin, plugins
from ..providers.echo import EchoProvider, configured
from ..types import Target
from .prices import is_vendor, vendor_of

ECHO = "echo"
log = logging.getLogger("infermux")


class _Unread:
    """Replaces an invalid provider or name, so that references to it are not reported too."""

    infer, models, any_model = print, ("?",), True

    def __init__(self, name: str, written: object) -> None:
        self.name = name
        listed = written.get("models", ()) if isinstance(written, dict) else ()
        self._listed = listed if isinstance(listed, list | tuple) else None

    def serves(self, model: str) -> bool:
        known = self._listed is None or model in self._listed
        return "/" not in model and (known or owner(model) == self.name)


def registry(config: Config, problems: Problems) -> Registry:
    """Return the providers and names of *config*; errors are added to *problems*."""
    found = Registry()
    for each in config.providers:
        with problems:
            found.register(provider(each))
    failed = [(each.name, {"models": each.models}) for each in config.providers]
    for name, written in (*config.unread, *failed):
        if "/" not in name and name not in found:
            found.register(_Unread(name, written))
    if config.environment:
        for name in plugins():
            if name not in found:
                try:
                    found.register(provider(ProviderConfig(name, name)))
                except Exception as error:
                    log.warning("the plug-in provider %r is not used: %s", name, error)
        if ECHO not in found:
            found.register(EchoProvider())
    found.hint = partial(_hint, config)
    _define(found, config, problems)
    _check_overrides(found, config, problems)
    return found


def _define(registry: Registry, config: Config, problems: Problems) -> None:
    """Define the names of [models]; every name in the file must lead to a target."""
    for model in config.models:
        told_of = [each.name for each in fields(model) if each.name != "mirror"]
        registry.define(**{name: getattr(model, name) for name in told_of})
    inner = {model.name: (*model.targets, *model.fallback) for model in config.models}
    places = [(f"[models] {name}", name) for name in inner]
    budgets = [(f"[budgets.{team.name}].then", team.then) for team in config.budgets]
    for key in config.keys or ():
        places += [(f"[keys.{key.name}].models", name) for name in key.models]
        for kind, budget in (("budget", key.budget), ("user_budget", key.user_budget)):
            if budget is not None:
                budgets.append((f"[keys.{key.name}].{kind}.then", budget.then))
    places += [(place, then) for place, then in budgets if then not in ("reject", "warn")]
    for model in config.models:
        if (mirror := model.mirror) is not None:
            places.append((f"[models.{model.name}].mirror.target", mirror.target))
            if mirror.target == model.name:
                problems.errors.append(f"[models.{model.name}].mirror.target is the name itself")
    told: set[str] = set()
    if any(name == EVERYTHING for name, _ in config.unread):
        return
    for place, name in places:
        own = inner[name] if place.startswith("[models] ") else (name,)
        with problems:
            try:
                check(registry, name)
            except ModelNotFound as error:
                direct = any(shown(each) in error.message for each in own)
                if direct or error.message not in told:  # else already reported for an inner name
                    told.add(error.message)
                    is_key = place.removeprefix("[models] ") in keys_of(ModelConfig)
                    hint = "; settings of a name go into [models.NAME]" * is_key
                    raise ConfigError(f"{place}: {error}{hint}") from None


def _check_overrides(registry: Registry, config: Config, problems: Problems) -> None:
    """Report a value that overrides and that no target of its name can express."""
    for model in config.models:
        if not model.override or is_pattern(model.name):
            continue
        try:
            targets = registry.resolve(model.name)
        except (ModelNotFound, ConfigError):
            continue  # reported already
        asked = InferRequest(model.name, params=dict(model.override))
        why = [_unsaid(registry, target, asked) for target in targets]
        if all(why):
            place = f"[models.{model.name}].override"
            problems.errors.append(f"{place}: {targets[0]} {why[0]}")


def _unsaid(registry: Registry, target: Target, asked: InferRequest) -> str:
    ask = getattr(registry.get(target.provider), "unsaid", None)
    return "" if ask is None else ask(asked, target.model).meaning


def _hint(config: Config, name: str) -> str:
    """Return how to configure the known vendor that *name* belongs to, or ""."""
    vendor, (first, slash, _) = owner(name), name.partition("/")
    alike = [] if vendor else (meant if slash else ours)(first, PRESETS)[:1]
    vendor = vendor or "".join(alike)
    if not vendor or any(each.name == vendor for each in config.providers):
        return ""
    label, variable = PRESETS[vendor].label, PRESETS[vendor].keys[0]
    is_model = name != vendor
    what = f"{shown(name)[1:-1]} is {label}'s" if is_model else f"{label} is not configured"
    what = f"{label} is called {vendor!r}" if alike else what
    add = "" if config.environment else f"add [providers.{vendor}] to {config.path}, and "
    return f"{what}: {add}set {variable}"


def _address(config: ProviderConfig, preset: Preset) -> str:
    address = config.base_url or preset.base_url
    if not address:
        variable = preset.address or f"{config.name.upper()}_BASE_URL"
        raise ConfigError(f"[providers.{config.name}] has no address: set base_url, or {variable}")
    path = urlsplit(address).path
    if end := re.search(r"/((chat/)?completions|embeddings|messages|responses)$", path):
        raise ConfigError(f"[providers.{config.name}].base_url must end before {end[0]}")
    return address if path.strip("/") else address.rstrip("/") + preset.path


def provider(config: ProviderConfig) -> Any:
    """Return the provider of one entry of the configuration; raise ConfigError."""
    preset = PRESETS.get(config.type)
    if preset is not None:
        return _http(config, preset)
    if config.type == ECHO:
        return configured(config)
    make = plugin(config.type)
    if make is None:
        hint = suggestion(config.type, [*PRESETS, ECHO, *plugins()])
        if config.type == config.name and hint.startswith("; there are"):
            hint = """; for OpenAI's format set type = "openai\""""
            hint += " and base_url" * (not config.base_url)
        raise ConfigError(f"[providers.{config.name}]: there is no type {config.type!r}{hint}")
    try:
        return make(config)
    except ConfigError:
        raise
    except Exception as error:  # third-party code
        log.debug("the plug-in type %r failed", config.type, exc_info=error)
        failed = f"the plug-in type {config.type!r} failed with {type(error).__name__}"
        raise ConfigError(f"[providers.{config.name}]: {failed}") from error


def _http(config: ProviderConfig, preset: Preset) -> Any:
    from ..providers.http import HTTPProvider  # loads requests

    own, place = is_vendor(config), f"[providers.{config.name}]"
    if config.ca and not os.path.isfile(config.ca):
        raise ConfigError(f"{place}.ca: there is no file {config.ca}")
    if config.api == "responses" and preset.dialect not in ("openai", "azure"):
        raise ConfigError(f'{place}.api: {config.type} has no Responses; use "auto"')
    if config.api_key is not None and (credential := credential_of(config.headers)):
        raise ConfigError(
            f"{place}.headers: {credential!r} carries a key, and so does api_key: set one of them"
        )
    support = preset.responses or (STANDARD if config.api == "responses" else None)
    return HTTPProvider(
        config.name,
        base_url=_address(config, preset),
        dialect=preset.dialect,
        pattern=preset.pattern if own else "",
        api_key=config.api_key,
        models=config.models or (preset.models if own else ()),
        vendor=vendor_of(config),
        timeouts=config.timeout,
        proxy=config.proxy or None,
        ca=config.ca or None,
        unsupported=config.unsupported,
        api=config.api,
        responses=support and support._replace(certain=own),
        thoughtless=preset.thoughtless,
        params=config.params,
        headers=config.headers,
        auth=preset.auth,
        endpoints=_endpoints(config, preset, own=own),
    )


def _endpoints(config: ProviderConfig, preset: Preset, *, own: bool) -> Mapping[str, str] | None:
    """Return what a provider has beside conversations; None: all, if its format has them.

    Of a server with a vendor's format at another address it is not known what it lacks.
    """
    if not config.endpoints:
        return preset.endpoints if own else None
    if preset.dialect not in ("openai", "azure"):
        raise ConfigError(
            f"[providers.{config.name}].endpoints: {config.type} has another format than OpenAI's; "
            "leave it out"
        )
    wanted = [name for name in config.endpoints if name != NO_ENDPOINTS]
    return {name: preset.endpoints.get(name, "") if own else "" for name in wanted}
