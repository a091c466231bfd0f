"""Builds a router and its parts from a configuration."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import config as configuration
from .admission import Admission
from .admission.keys import Keyring
from .admission.rate_limiter import RateLimiter
from .config import Config, ProviderConfig
from .config.schema import Problems, suggestion
from .config.settings import KeyConfig, LedgerConfig, TeamConfig
from .dialects.responses import STANDARD
from .errors import ConfigError, ModelNotFound, listed, shown
from .ledger import Ledger, LedgerUnavailable, configured_budget
from .planning.registry import Registry
from .pricing import Price, PriceTable, shipped
from .providers import PRESETS, Preset, owner, plugin, plugins
from .providers.echo import EchoProvider, configured
from .routing.circuit_breaker import CircuitBreaker
from .routing.prices import is_vendor, own_prices, price_table, vendor_of
from .routing.router import Observer, Router
from .routing.targets import TargetPool
from .telemetry.call_log import CallLog
from .telemetry.spans import SpanReporter
from .telemetry.tokentrace import Reporter
from .types import Caller

ECHO = "echo"
log = logging.getLogger("infermux")
routers: weakref.WeakSet[Router] = weakref.WeakSet()  # of services, resized with the threads
apps: weakref.WeakSet[Any] = weakref.WeakSet()  # made by `app.create_app`
pinned: Config | None = None  # read and checked by gunicorn's master, for its workers


def load(
    path: str | os.PathLike[str] | Mapping[str, str] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> Router:
    """Return the router that a file and the environment configure; raise ConfigError.

    *path* defaults to the file that a service would use, *environ* to os.environ. A mapping as
    the only argument is taken as *environ*.
    """
    if isinstance(path, Mapping) and environ is None:
        path, environ = None, path
    if path is not None and not isinstance(path, str | os.PathLike):
        what = type(path).__name__
        raise TypeError(f'load() takes the path of a file, load("infermux.toml"), not {what}')
    config = settings(environ, None if path is None else os.fspath(path))
    announce(config)
    return router(config)


def announce(config: Config) -> None:
    """Log the configuration's warnings, unless gunicorn's master has done so."""
    for notice in () if config is pinned else config.notices:
        log.warning("%s", notice)


def settings(
    environ: Mapping[str, str] | None = None, path: str | None = None, *, strict: bool = True
) -> Config:
    """Return the configuration that `load` uses; if not *strict*, its errors are in it."""
    if pinned is not None and environ is None and path is None:
        return pinned
    return configuration.load(
        {name: preset.keys for name, preset in PRESETS.items()},
        {name: preset.address for name, preset in PRESETS.items() if preset.address},
        environ,
        path,
        strict=strict,
    )


def router(config: Config, *, serving: bool = False) -> Router:
    """Return the router for *config*; if *serving*, its calls are limited by the threads.

    After the configuration's own providers come those of the environment: plug-ins, then echo.
    Raise ConfigError naming the file and everything that is wrong.
    """
    problems = Problems()
    with problems:
        if config.server.metrics == "admin" and config.server.admin_key is None:
            remedy = "set [server].admin_key, or INFERMUX_ADMIN_KEY"
            raise ConfigError(f'[server].metrics = "admin" needs a key: {remedy}')
    registry, known = _registry(config, problems), shipped()
    prices, made = dict[str, dict[str, Price]](), None
    with problems:
        known = price_table(config)
    with problems:
        prices = own_prices(config, known)
    with problems:
        made = _router(config, serving, registry, known, prices)
    own = ConfigError(*problems.errors) if problems.errors else None
    told = own.at(config.path) if own and config.path else own
    if made is None or told or config.errors:
        if made is not None:
            made.close()
        raise ConfigError(*config.errors, *(told.errors if told else ()))
    if serving:
        routers.add(made)
    return made


class _Unread:
    """Replaces an invalid provider or name, so that references to it are not reported too."""

    infer, models, any_model = print, ("?",), True

    def __init__(self, name: str, written: object) -> None:
        self.name = name
        listed = written.get("models", ()) if isinstance(written, dict) else ()
        self._listed = listed if isinstance(listed, list | tuple) else None

    def serves(self, model: str) -> bool:
        """Whether the provider might serve *model*."""
        known = self._listed is None or model in self._listed
        return "/" not in model and (known or owner(model) == self.name)


def _registry(config: Config, problems: Problems) -> Registry:
    registry = Registry()
    for each in config.providers:
        with problems:
            registry.register(provider(each))
    failed = [(each.name, {"models": each.models}) for each in config.providers]
    for name, written in (*config.unread, *failed):
        if "/" not in name and name not in registry:
            registry.register(_Unread(name, written))
    if config.environment:
        for name in plugins():
            if name not in registry:
                _add_plugin(registry, name)
        if ECHO not in registry:
            registry.register(EchoProvider())
    registry.hint = partial(_hint, config)
    _define(registry, config, problems)
    return registry


def _router(
    config: Config,
    serving: bool,
    registry: Registry,
    known: PriceTable,
    prices: dict[str, dict[str, Price]],
) -> Router:
    rules = config.reliability
    opens = rules.circuit_breaker
    failures, window, seconds = opens.failures, opens.window, opens.open
    targets = TargetPool(
        registry,
        overrides=prices,
        table=known,
        concurrency=_concurrency(config, serving),
        breaker=partial(CircuitBreaker, failures=failures, window=window, open_seconds=seconds),
    )
    return Router(
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
        capture_content=config.trace.capture_content,
    )


def _define(registry: Registry, config: Config, problems: Problems) -> None:
    """Define the names of [models]; every name in the file must lead to a target."""
    for model in config.models:
        registry.define(**{each.name: getattr(model, each.name) for each in fields(model)})
    inner = {model.name: (*model.targets, *model.fallback) for model in config.models}
    places = [(f"[models] {name}", name, inner[name]) for name in registry.names]
    for key in config.keys or ():
        names = [(f"[keys.{key.name}].models", name) for name in key.models]
        if key.budget is not None and key.budget.then not in ("reject", "warn"):
            names.append((f"[keys.{key.name}].budget.then", key.budget.then))
        places += [(place, name, (name,)) for place, name in names]
    for team in config.budgets:
        if team.then not in ("reject", "warn"):
            places.append((f"[budgets.{team.name}].then", team.then, (team.then,)))
    told: set[str] = set()
    for place, name, own in places:
        with problems:
            try:
                registry.route(name)
            except ModelNotFound as error:
                direct = any(shown(each) in error.message for each in own)
                if direct or error.message not in told:  # else already reported for an inner name
                    told.add(error.message)
                    raise ConfigError(f"{place}: {error}") from None


def _hint(config: Config, name: str) -> str:
    """Return how to configure the known vendor that *name* belongs to, or ""."""
    vendor = owner(name)
    if not vendor or any(each.name == vendor for each in config.providers):
        return ""
    label, variable = PRESETS[vendor].label, PRESETS[vendor].keys[0]
    is_model = name != vendor
    what = f"{shown(name)[1:-1]} is {label}'s" if is_model else f"{label} is not configured"
    if config.environment:
        return f"{what}: set {variable}"
    return f"{what}: add [providers.{vendor}] to {config.path}, and set {variable}"


def warnings(config: Config, router: Router) -> list[str]:
    """Return warnings about a valid configuration, such as a provider that cannot answer."""
    registry = router.registry
    if not len(registry):
        return [
            f"no provider can answer: name one in [providers] of {config.path}, "
            "or set environment = true there"
        ]
    used = {target.provider for target in registry.targets()}
    unlisted = [each.name for each in registry if each.name not in used]
    found = [
        f"provider {name!r} lists no model: only {name}/MODEL reaches it; "
        f"set [providers.{name}].models"
        for name in unlisted
    ]
    return found if used else [*found, "no model can answer where a request names none"]


def sources(config: Config, router: Router) -> list[str]:
    """Return each provider as "name (source of its configuration)"."""
    known = {ECHO: "built in"} | {each.name: each.source or "file" for each in config.providers}
    return [f"{each.name} ({known.get(each.name, 'plug-in')})" for each in router.registry]


def summary(config: Config, router: Router) -> dict[str, str]:
    """Return a description of the settings by subject, without secrets."""
    server, ledger = config.server, (config.ledger or LedgerConfig()).path
    urls = [url for url in (config.trace.tokentrace, config.trace.otlp) if url]
    metrics = "open" if server.metrics == "open" else "for operators"
    operators = "closed" if server.admin_key is None else "open to the admin key"
    keys = "none: the endpoints are open to callers without a key"
    if config.keys is not None:
        keys = listed([key.name for key in config.keys])
    own = router.targets.prices.own
    prices = {"prices": f"{os.path.abspath(own.name)}, over the shipped ones"} if own else {}
    return {
        "configuration": os.path.abspath(config.path) if config.path else "the environment",
        "providers": listed([each.name for each in router.registry]),
        "names": listed(router.registry.names),
        **prices,
        "ledger": os.path.abspath(ledger) if ledger else "none",
        "keys": keys,
        "admin": f"operators' endpoints are {operators}, /metrics is {metrics}",
        "traces": listed([urlsplit(url).netloc for url in urls]),
    }


def _concurrency(config: Config, serving: bool) -> dict[str, int]:
    """Return each provider's limit of calls: by default half the threads, as one may hang."""
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
    """Return the limits of calls, streams and bodies; some threads stay for health checks."""
    threads = config.server.threads
    calls = max(1, threads - max(1, threads // 8))
    streams = max(1, min(int(threads * config.server.streams), calls - 1))
    return {"calls": calls, "streams": streams, "bodies": config.server.max_inflight_body}


def resize(config: Config) -> None:
    """Resize the limits of this process's serving routers to its number of threads."""
    for router in list(routers):
        router.admission.resize(**_room(config))
        router.targets.resize(_concurrency(config, True))


def check(config: Config) -> Router:
    """Raise ConfigError if a service with *config* could not work; return its router, closed.

    Workers do not check again: one that cannot open a file logs it and lacks records or limits.
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
    return Keyring((key.hash, _caller(key, config.budgets)) for key in config.keys)


def _caller(key: KeyConfig, teams: Iterable[TeamConfig]) -> Caller:
    limits = key.models or None, key.rpm or None, key.tpm or None
    return Caller(key.name, *limits, configured_budget(key, teams), may_tag=key.tags)


def _ledger(config: Config, serving: bool) -> Ledger | None:
    """Return the ledger, if any: services have one by default, others for a budget or [ledger]."""
    budgets = [f"[keys.{key.name}]" for key in config.keys or () if key.budget]
    budgets += [f"[budgets.{team.name}]" for team in config.budgets]
    path = (config.ledger or LedgerConfig()).path
    if budgets and not path:
        raise ConfigError(f"[ledger].path is empty, but the budget of {budgets[0]} needs a ledger")
    if not path or not (config.ledger or budgets or serving):
        return None
    from .ledger.sqlite import SQLiteLedger  # loads sqlite3

    settings = config.ledger or LedgerConfig()
    return SQLiteLedger(path, timezone=settings.timezone, keep=settings.keep_seconds)


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
    vendors = {each.name: each.type for each in config.providers if is_vendor(each)}
    return OTLP(config.trace.otlp, size=config.trace.queue, vendors=vendors)


def _reporter(config: Config) -> SpanReporter | None:
    if not config.trace.tokentrace:
        return None
    return Reporter(
        "infermux", config.trace.tokentrace, threads=config.trace.threads, size=config.trace.queue
    )


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
        return configured(config)
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


def _http(config: ProviderConfig, preset: Preset) -> Any:
    from .providers.http import HTTPProvider  # loads requests

    own = is_vendor(config)
    if config.ca and not Path(config.ca).exists():
        raise ConfigError(f"[providers.{config.name}].ca: there is no file {config.ca}")
    if config.api == "responses" and preset.dialect not in ("openai", "azure"):
        raise ConfigError(
            f'[providers.{config.name}].api: {config.type} has no Responses; use "auto"'
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
        responses=support,
        thoughtless=preset.thoughtless,
    )
