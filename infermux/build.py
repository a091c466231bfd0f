"""From a configuration to a router: the one place where the parts are put together."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from . import config as configuration
from .config import Config, ProviderConfig
from .errors import ConfigError
from .providers import PRESETS, Preset, plugin, plugins
from .providers.echo import EchoProvider
from .registry import Registry
from .router import Router
from .schema import meant

ECHO = "echo"
log = logging.getLogger("infermux")


def load(environ: Mapping[str, str] | None = None) -> Router:
    """Return the router that the environment configures; raise ConfigError naming what is wrong."""
    return router(settings(environ))


def settings(environ: Mapping[str, str] | None = None) -> Config:
    """Return the configuration that `load` builds from."""
    return configuration.load({name: preset.keys for name, preset in PRESETS.items()},
                              {name: preset.address for name, preset in PRESETS.items() if preset.address}, environ)


def router(config: Config) -> Router:
    """Return the router for *config*: its providers, then those of installed plug-ins, then echo."""
    registry = Registry(provider(each) for each in config.providers)
    for name in plugins():
        if name not in registry:
            _add_plugin(registry, name)
    if ECHO not in registry:
        registry.register(EchoProvider())
    reporter = None
    if config.trace.tokentrace:
        from .tokentrace import Reporter  # loads requests, which a router without TokenTrace may never need
        reporter = Reporter("infermux", config.trace.tokentrace, threads=config.trace.threads, size=config.trace.queue)
    return Router(registry, reporter, attempts=config.reliability.attempts, deadline=config.reliability.deadline,
                  on_unsupported=config.reliability.on_unsupported)


def _address(config: ProviderConfig, preset: Preset) -> str:
    address = config.base_url or preset.base_url
    if not address:
        raise ConfigError(f"provider {config.name!r} has no address; set {preset.address or config.name.upper() + '_BASE_URL'}")
    return address if urlsplit(address).path.strip("/") else address.rstrip("/") + preset.path


def _add_plugin(registry: Registry, name: str) -> None:
    """An installed plug-in serves under its type's name; one that wants to be configured first must not stop the start."""
    try:
        registry.register(provider(ProviderConfig(name, name)))
    except Exception as error:
        log.warning("the plug-in provider %r is not used: %s", name, error)


def provider(config: ProviderConfig) -> Any:
    """Return the provider for one entry of the configuration; raise ConfigError for a type that nobody knows."""
    preset = PRESETS.get(config.type)
    if preset is not None:
        from .providers.http import HTTPProvider  # loads requests
        return HTTPProvider(config.name, base_url=_address(config, preset), dialect=preset.dialect, pattern=preset.pattern,
                            api_key=config.api_key, models=config.models or preset.models, vendor=preset.vendor or config.type)
    if config.type == ECHO:
        return EchoProvider(config.name, config.models or ("echo-v1",))
    make = plugin(config.type)
    if make is None:
        raise ConfigError(f"provider {config.name!r}: there is no type {config.type!r}{meant(config.type, [*PRESETS, ECHO, *plugins()])}")
    return make(config)
