"""Makes a router from a configuration: the only place where the parts are put together."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import config as configuration
from .admission import Admission
from .admission.keys import Keyring
from .admission.rate_limiter import RateLimiter
from .config import Config, ProviderConfig
from .config.schema import of_type, suggestion
from .config.settings import KeyConfig, LedgerConfig
from .errors import ConfigError, ModelNotFound, shown
from .ledger import Budget, Ledger, LedgerUnavailable
from .planning.registry import Registry
from .pricing import PICO, Price
from .providers import PRESETS, Preset, plugin, plugins
from .providers.echo import EchoProvider
from .routing.circuit_breaker import CircuitBreaker
from .routing.router import Observer, Router
from .routing.targets import TargetPool
from .telemetry.call_log import CallLog
from .telemetry.spans import SpanReporter
from .telemetry.tokentrace import Reporter
from .types import Caller

ECHO = "echo"
log = logging.getLogger("infermux")
routers: weakref.WeakSet[Router] = weakref.WeakSet()  # that serve, sized by the threads
apps: weakref.WeakSet[Any] = weakref.WeakSet()  # of `app.create_app`
pinned: Config | None = None  # what the server's master has read and checked for its workers


def load(environ: Mapping[str, str] | None = None) -> Router:
    """Return the router that the environment configures; raise ConfigError naming what is wrong."""
    return router(settings(environ))


def settings(environ: Mapping[str, str] | None = None, path: str | None = None) -> Config:
    """Return the configuration that `load` uses."""
    if pinned is not None and environ is None and path is None:
        return pinned
    return configuration.load(
        {name: preset.keys for name, preset in PRESETS.items()},
        {name: preset.address for name, preset in PRESETS.items() if preset.address},
        environ,
        path,
    )


def router(config: Config, *, serving: bool = False) -> Router:
    """Return the router for *config*; if *serving*, its calls are limited by the threads.

    Without a file the providers are those of the environment, then installed plug-ins, then echo.
    Raise ConfigError naming the file.
    """
    try:
        if config.server.metrics == "admin" and config.server.admin is None:
            raise ConfigError('[server].metrics = "admin" needs a key: set [server].admin')
        return _router(config, serving)
    except ConfigError as error:
        if not config.path or error.message.startswith(config.path):
            raise
        raise ConfigError(f"{config.path}: {error.message}") from None


def _router(config: Config, serving: bool) -> Router:
    registry = Registry(provider(each) for each in config.providers)
    if not config.path:
        for name in plugins():
            if name not in registry:
                _add_plugin(registry, name)
        if ECHO not in registry:
            registry.register(EchoProvider())
    _define(registry, config)
    prices = own_prices(config)
    rules = config.reliability
    failures, window, seconds = rules.breaker.failures, rules.breaker.window, rules.breaker.open
    targets = TargetPool(
        registry,
        overrides=prices,
        concurrency=_concurrency(config, serving),
        breaker=partial(CircuitBreaker, failures=failures, window=window, open_seconds=seconds),
    )
    made = Router(
        registry,
        _reporter(config),
        attempts=rules.attempts,
        deadline=rules.deadline or None,
        on_unsupported=rules.on_unsupported,
        targets=targets,
        admission=Admission(**(_room(config) if serving else {}), rates=_rates(config)),
        prices=prices,
        keyring=_keyring(config),
        ledger=_ledger(config, serving),
        observers=_observers(config, serving),
        content=config.trace.content,
    )
    if serving:
        routers.add(made)
    return made


def _define(registry: Registry, config: Config) -> None:
    """Define the names of [models]; every name in the file must lead to a target."""
    for model in config.models:
        registry.define(**{each.name: getattr(model, each.name) for each in fields(model)})
    places = [(f"[models] {name}", name) for name in registry.names]
    for key in config.keys or ():
        places += [(f"[keys.{key.name}].models", name) for name in key.models]
        if key.budget is not None and key.budget.then not in ("reject", "warn"):
            places.append((f"[keys.{key.name}].budget.then", key.budget.then))
    for place, name in places:
        try:
            registry.route(name)
        except ModelNotFound as error:
            raise ConfigError(f"{config.path}: {place}: {error.message}") from None


def _concurrency(config: Config, serving: bool) -> dict[str, int]:
    """Return the limits of providers; by default half the threads, as one may hang."""
    half = max(1, config.server.threads // 2) if serving and len(config.providers) > 1 else 0
    limits = {each.name: each.concurrency or half for each in config.providers}
    return {name: limit for name, limit in limits.items() if limit}


def _rates(config: Config) -> RateLimiter | None:
    keyring = _keyring(config)
    if keyring is None or not keyring.limited:
        return None
    beside = (config.ledger and config.ledger.path) or LedgerConfig().path
    return RateLimiter(Path(beside).with_suffix(".rates"))


def _room(config: Config) -> dict[str, int]:
    """Return the limits of calls, streams and bodies; they keep threads for health checks."""
    threads = config.server.threads
    calls = max(1, threads - max(1, threads // 8))
    streams = max(1, min(int(threads * config.server.streams), calls - 1))
    return {"calls": calls, "streams": streams, "bodies": config.server.max_inflight_body}


def resize(config: Config) -> None:
    """Fit the serving routers of this process to the threads that it really has."""
    for router in list(routers):
        router.admission.resize(**_room(config))
        router.targets.resize(_concurrency(config, True))


def check(config: Config) -> Router:
    """Raise ConfigError if a service with *config* could not work; return its router, closed.

    Workers do not check again: what one cannot open costs records or limits, and is logged.
    """
    made, rates = router(config, serving=True), _rates(config)
    routers.discard(made)
    if rates is not None:
        rates.check()
    try:
        if made.ledger is not None:
            made.ledger.check()
    except LedgerUnavailable as error:
        if not error.temporary:
            raise ConfigError(
                f"the ledger cannot be used: {error.reason}; "
                "name a file that this user may write as [ledger].path"
            ) from None
        log.warning("calls are recorded later: the ledger cannot be used now: %s", error.reason)
    finally:
        made.close()
    return made


def _keyring(config: Config) -> Keyring | None:
    if config.keys is None:
        return None
    names: dict[str, str] = {}
    for key in config.keys:
        if (other := names.setdefault(key.hash, key.name)) != key.name:
            raise ConfigError(
                f"{config.path}: [keys.{key.name}] has the same hash as [keys.{other}]; "
                "the two callers cannot be told apart"
            )
    return Keyring((key.hash, _caller(key)) for key in config.keys)


def _caller(key: KeyConfig) -> Caller:
    limits = key.models or None, key.rpm or None, key.tpm or None
    own = key.budget
    budget = own and Budget(key.name, int(Decimal(own.usd) * PICO), own.per, own.then)
    return Caller(key.name, *limits, budget, may_tag=key.tags)


def _ledger(config: Config, serving: bool) -> Ledger | None:
    """Return the ledger: a service has one by default, others where a budget or [ledger] asks."""
    budgets = [key.name for key in config.keys or () if key.budget]
    path = (config.ledger or LedgerConfig()).path
    if budgets and not path:
        raise ConfigError(
            f"[ledger].path is empty, but the budget of [keys.{budgets[0]}] needs a ledger"
        )
    if not path or not (config.ledger or budgets or serving):
        return None
    from .ledger.sqlite import SQLiteLedger  # loads sqlite3

    return SQLiteLedger(path)


def own_prices(config: Config) -> dict[str, dict[str, Price]]:
    """Return the prices that the configuration itself states, by provider and model."""
    return {each.name: _prices(each) for each in config.providers if each.prices}


def _prices(config: ProviderConfig) -> dict[str, Price]:
    place = f"[providers.{config.name}].prices"
    return {
        model: Price.of(entry, provider=config.name, id=model, place=f"{place}.{model}")
        for model, entry in of_type(dict, config.prices, place).items()
    }


def _observers(config: Config, serving: bool) -> list[Observer]:
    observers: list[Observer] = []
    if serving and config.server.log_level != "error":
        observers.append(CallLog(config.server.log_level, config.server.log_format))
    if config.trace.otlp:
        observers.append(_otlp(config))
    return observers


def _otlp(config: Config) -> Observer:
    try:
        from .otel import OTLP  # loads OpenTelemetry, which is an extra
    except ImportError:
        raise ConfigError(
            "[trace].otlp needs OpenTelemetry: pip install 'infermux[otel]'"
        ) from None
    vendors = {each.name: each.type for each in config.providers if _is_vendor(each)}
    return OTLP(config.trace.otlp, size=config.trace.queue, vendors=vendors)


def _reporter(config: Config) -> SpanReporter | None:
    if not config.trace.tokentrace:
        return None
    return Reporter(
        "infermux", config.trace.tokentrace, threads=config.trace.threads, size=config.trace.queue
    )


def _is_vendor(config: ProviderConfig) -> bool:
    """Whether it is the preset's vendor, not another server with its format."""
    return config.name == config.type or not config.base_url


def _address(config: ProviderConfig, preset: Preset) -> str:
    address = config.base_url or preset.base_url
    if not address:
        variable = preset.address or f"{config.name.upper()}_BASE_URL"
        raise ConfigError(f"provider {config.name!r} has no address; set {variable}")
    return address if urlsplit(address).path.strip("/") else address.rstrip("/") + preset.path


def _add_plugin(registry: Registry, name: str) -> None:
    try:
        registry.register(provider(ProviderConfig(name, name)))
    except Exception as error:
        log.warning("the plug-in provider %r is not used: %s", name, error)


def provider(config: ProviderConfig) -> Any:
    """Return the provider of one entry of the configuration; raise ConfigError."""
    preset = PRESETS.get(config.type)
    if preset is not None:
        return _http(config, preset)
    if config.type == ECHO:
        return EchoProvider(config.name, config.models or ("echo-v1",), _echo_delay(config))
    make = plugin(config.type)
    if make is None:
        hint = suggestion(config.type, [*PRESETS, ECHO, *plugins()])
        raise ConfigError(f"provider {config.name!r}: there is no type {config.type!r}{hint}")
    try:
        return make(config)
    except ConfigError:
        raise
    except Exception as error:  # third-party code
        log.debug("the plug-in type %r failed", config.type, exc_info=error)
        raise ConfigError(
            f"[providers.{config.name}]: the plug-in type {config.type!r} failed "
            f"with {type(error).__name__}"
        ) from error


def _echo_delay(config: ProviderConfig) -> float:
    place = f"[providers.{config.name}].options"
    for name in config.options:
        if name != "delay":
            raise ConfigError(f"{place} has no {shown(name)}: echo has a delay, in seconds")
    seconds = float(of_type(float, config.options.get("delay", 0.001), f"{place}.delay"))
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"{place}.delay must be seconds, from 0 to 3600")
    return seconds


def _http(config: ProviderConfig, preset: Preset) -> Any:
    from .providers.http import HTTPProvider  # loads requests

    own = _is_vendor(config)
    if config.ca and not Path(config.ca).exists():
        raise ConfigError(f"[providers.{config.name}].ca: there is no file {config.ca}")
    return HTTPProvider(
        config.name,
        base_url=_address(config, preset),
        dialect=preset.dialect,
        pattern=preset.pattern if own else "",
        api_key=config.api_key,
        models=config.models or (preset.models if own else ()),
        vendor=(preset.vendor or config.type) if own else "",
        timeouts=config.timeout,
        proxy=config.proxy or None,
        ca=config.ca or None,
        lacks=config.lacks,
    )
