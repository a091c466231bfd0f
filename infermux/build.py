"""From a configuration to a router: the one place where the parts are put together."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
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
from .config.schema import meant, of_type
from .config.settings import KeyConfig, LedgerConfig
from .errors import ConfigError, ModelNotFound, shown
from .ledger import Budget, Ledger
from .planning.registry import Registry
from .pricing import PICO, Price
from .providers import PRESETS, Preset, plugin, plugins
from .providers.echo import EchoProvider
from .routing.circuit_breaker import CircuitBreaker
from .routing.router import Observer, Reports, Router
from .routing.targets import TargetPool
from .telemetry.call_log import CallLog
from .telemetry.tokentrace import Reporter
from .types import Caller

ECHO = "echo"
log = logging.getLogger("infermux")
routers: weakref.WeakSet[Router] = (
    weakref.WeakSet()
)  # routers whose room depends on the threads of the process


pinned: Config | None = None  # what the master of a service has read and checked for its workers


def load(environ: Mapping[str, str] | None = None) -> Router:
    """Return the router that the environment configures; raise ConfigError naming what is wrong."""
    return router(settings(environ))


def settings(environ: Mapping[str, str] | None = None, path: str | None = None) -> Config:
    """Return the configuration that `load` builds from."""
    if pinned is not None and environ is None and path is None:
        return pinned
    return configuration.load(
        {name: preset.keys for name, preset in PRESETS.items()},
        {name: preset.address for name, preset in PRESETS.items() if preset.address},
        environ,
        path,
    )


def router(config: Config, *, serving: bool = False) -> Router:
    """Return the router for *config*; when *serving*, calls are bounded by the threads that one
    process has.

    Without a file the providers are those of the environment, then installed plug-ins, then echo.
    Raise ConfigError naming the file.
    """
    try:
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
    breaker, rules = config.reliability.breaker, config.reliability
    targets = TargetPool(
        registry,
        overrides=prices,
        concurrency=_concurrency(config, serving),
        breaker=partial(
            CircuitBreaker,
            failures=breaker.failures,
            window=breaker.window,
            open_seconds=breaker.open,
        ),
    )
    made = Router(
        registry,
        _reporter(config),
        attempts=rules.attempts,
        deadline=rules.deadline,
        on_unsupported=rules.on_unsupported,
        targets=targets,
        admission=_admission(config, serving),
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
    """Give the names of [models] to the registry, and see that each name in the file leads
    somewhere.
    """
    for model in config.models:
        registry.define(
            model.name,
            model.targets,
            strategy=model.strategy,
            then=model.then,
            weights=model.weights,
            on_unsupported=model.on_unsupported,
        )
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
    """Half of the threads for each provider unless said otherwise: one that hangs must not take
    them all.
    """
    most = max(1, config.server.threads // 2) if serving and len(config.providers) > 1 else 0
    return {
        each.name: each.concurrency or most for each in config.providers if each.concurrency or most
    }


def _admission(config: Config, serving: bool) -> Admission:
    return (
        Admission(**_room(config), rates=_rates(config))
        if serving
        else Admission(rates=_rates(config))
    )


def _rates(config: Config) -> RateLimiter | None:
    keyring = _keyring(config)
    beside = Path((config.ledger and config.ledger.path) or LedgerConfig().path)
    return (
        RateLimiter(beside.with_suffix(".rates"))
        if keyring is not None and keyring.limited
        else None
    )


def _room(config: Config) -> dict[str, int]:
    """Return how many calls, and of them streams, fit a process: some threads are left for health
    and for saying no.
    """
    threads = config.server.threads
    calls = max(1, threads - max(1, threads // 8))
    return {"calls": calls, "streams": max(1, min(int(threads * config.server.streams), calls - 1))}


def resize(config: Config) -> None:
    """Fit the routers that serve in this process to the threads that it really has."""
    for router in list(routers):
        router.admission.resize(**_room(config))
        router.targets.resize(_concurrency(config, True))


def check(config: Config) -> None:
    """Raise ConfigError for whatever would keep a service with *config* from its work; leave
    nothing open.

    A worker does not look again: what it cannot open costs records or limits, and the log says so,
    but the service lives.
    """
    made, rates = router(config, serving=True), _rates(config)
    routers.discard(made)
    if rates is not None:
        rates.check()
    problem = made.ledger.problem() if made.ledger is not None else None
    made.close()
    if problem:
        raise ConfigError(
            f"the ledger cannot be used: {problem}; name a file that this user may write as [ledger].path"
        )


def _keyring(config: Config) -> Keyring | None:
    if config.keys is None:
        return None
    for number, key in enumerate(config.keys):
        for other in config.keys[:number]:
            if other.hash == key.hash:
                raise ConfigError(
                    f"{config.path}: [keys.{key.name}] has the hash of [keys.{other.name}]: who is calling would be open"
                )
    return Keyring(
        (
            key.hash,
            Caller(
                key.name,
                key.models or None,
                key.rpm or None,
                key.tpm or None,
                _budget(key),
                may_tag=key.tags,
            ),
        )
        for key in config.keys
    )


def _ledger(config: Config, serving: bool) -> Ledger | None:
    """Return the ledger: a service has one unless its path is empty, others where one is asked for;
    a budget asks for one.
    """
    budgets = [key.name for key in config.keys or () if key.budget]
    if config.ledger is not None and not config.ledger.path:
        if budgets:
            raise ConfigError(
                f"[ledger].path is empty, but the budget of [keys.{budgets[0]}] needs a ledger"
            )
        return None
    if config.ledger is None and not budgets and not serving:
        return None
    from .ledger.sqlite import SQLiteLedger  # loads sqlite3

    return SQLiteLedger((config.ledger or LedgerConfig()).path)


def _budget(key: KeyConfig) -> Budget | None:
    if key.budget is None:
        return None
    return Budget(key.name, int(Decimal(key.budget.usd) * PICO), key.budget.per, key.budget.then)


def own_prices(config: Config) -> dict[str, dict[str, Price]]:
    """Return the prices that the configuration itself states, by provider and model."""
    return {each.name: _prices(each) for each in config.providers if each.prices}


def _prices(config: ProviderConfig) -> dict[str, Price]:
    return {
        model: Price.of(
            entry, provider=config.name, id=model, place=f"[providers.{config.name}].prices.{model}"
        )
        for model, entry in of_type(
            dict, config.prices, f"[providers.{config.name}].prices"
        ).items()
    }


def _observers(config: Config, serving: bool) -> list[Observer]:
    """Return who is told of each call, beside the reporter: only whoever has something to do with
    it.
    """
    logs = serving and config.server.log_level != "error"
    return [
        *([CallLog(config.server.log_level, config.server.log_format)] if logs else []),
        *([_otlp(config)] if config.trace.otlp else []),
    ]


def _otlp(config: Config) -> Observer:
    try:
        from .otel import OTLP  # loads OpenTelemetry, which is an extra
    except ImportError:
        raise ConfigError(
            "[trace].otlp needs OpenTelemetry: pip install 'infermux[otel]'"
        ) from None
    vendors = {
        each.name: each.type
        for each in config.providers
        if each.name == each.type or not each.base_url
    }
    return OTLP(config.trace.otlp, size=config.trace.queue, vendors=vendors)


def _reporter(config: Config) -> Reports | None:
    if not config.trace.tokentrace:
        return None
    return Reporter(
        "infermux", config.trace.tokentrace, threads=config.trace.threads, size=config.trace.queue
    )


def _address(config: ProviderConfig, preset: Preset) -> str:
    address = config.base_url or preset.base_url
    if not address:
        raise ConfigError(
            f"provider {config.name!r} has no address; set {preset.address or config.name.upper() + '_BASE_URL'}"
        )
    return address if urlsplit(address).path.strip("/") else address.rstrip("/") + preset.path


def _add_plugin(registry: Registry, name: str) -> None:
    """An installed plug-in serves under its type's name; one that wants to be configured first must
    not stop the start.
    """
    try:
        registry.register(provider(ProviderConfig(name, name)))
    except Exception as error:
        log.warning("the plug-in provider %r is not used: %s", name, error)


def provider(config: ProviderConfig) -> Any:
    """Return the provider for one entry of the configuration; raise ConfigError for a type that
    nobody knows.
    """
    preset = PRESETS.get(config.type)
    if preset is not None:
        return _http(config, preset)
    if config.type == ECHO:
        return EchoProvider(config.name, config.models or ("echo-v1",), _echo_delay(config))
    make = plugin(config.type)
    if make is None:
        known = [*PRESETS, ECHO, *plugins()]
        raise ConfigError(
            f"provider {config.name!r}: there is no type {config.type!r}{meant(config.type, known)}"
        )
    try:
        return make(config)
    except ConfigError:
        raise
    except Exception as error:  # somebody's own code
        log.debug("the plug-in type %r failed", config.type, exc_info=error)
        raise ConfigError(
            f"[providers.{config.name}]: the plug-in type {config.type!r} failed with {type(error).__name__}"
        ) from error


def _echo_delay(config: ProviderConfig) -> float:
    """Return how many seconds echo takes."""
    place = f"[providers.{config.name}].options"
    for name in config.options:
        if name != "delay":
            raise ConfigError(f"{place} has no {shown(name)}: echo has a delay, in seconds")
    seconds = float(of_type(float, config.options.get("delay", 0.001), f"{place}.delay"))
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"{place}.delay must be seconds, from 0 to 3600")
    return seconds


def _http(config: ProviderConfig, preset: Preset) -> Any:
    """Return a vendor; one that only borrows a preset's format has neither its models nor its
    prices.
    """
    from .providers.http import HTTPProvider, Timeouts  # loads requests

    own = config.name == config.type or not config.base_url
    wait = config.timeout
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
        timeouts=Timeouts(wait.connect, wait.first_byte, wait.idle, wait.total),
        proxy=config.proxy or None,
        ca=config.ca or None,
        lacks=config.lacks,
    )
