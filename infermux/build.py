"""Builds a router and its parts from a configuration."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from . import components as parts
from . import config as configuration
from .admission import Admission
from .admission.keys import LiveKeyring
from .components import ledgers, providers
from .components.prices import own_prices, price_table
from .components.providers import provider as provider
from .config import Config
from .config.patterns import is_pattern
from .config.schema import Problems
from .config.settings import LedgerConfig
from .errors import ConfigError, listed
from .ledger import LedgerUnavailable
from .planning import matching
from .planning.registry import Registry
from .pricing import Price, PriceTable, shipped
from .providers import PRESETS
from .routing.callers import has_hard_budget
from .routing.router import Router
from .routing.stored import has_files
from .routing.targets import TargetPool

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
    if not isinstance(environ, Mapping | None):
        raise TypeError(f"environ must be a mapping of variables, not {type(environ).__name__}")
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
    registry, known = providers.registry(config, problems), shipped()
    prices, made = dict[str, dict[str, Price]](), None
    with problems:
        known = price_table(config)
    with problems:
        prices = own_prices(config, known)
    with problems:
        made = _router(config, serving, registry, known, prices)
        parts.complete(config, made)
    if made is None or problems.errors or config.errors:
        if made is not None:
            made.close()
        raise ConfigError(*config.errors, *problems.at(config.path))
    if serving:
        routers.add(made)
    return made


def _router(
    config: Config,
    serving: bool,
    registry: Registry,
    known: PriceTable,
    prices: dict[str, dict[str, Price]],
) -> Router:
    rules = config.reliability
    ledger = ledgers.ledger(config, serving)
    keyring = parts.keyring(config, ledger)
    live = isinstance(keyring, LiveKeyring) or (keyring is not None and keyring.limited)
    live = live or any(each.rpm or each.tpm for each in config.providers)
    rates, user_rates = ledgers.rates(config, ledger) if live else (None, None)
    targets = TargetPool(
        registry,
        overrides=prices,
        table=known,
        concurrency=parts.concurrency(config, serving),
        breaker=parts.breaker(rules.circuit_breaker),
        breakers=parts.breakers(config),
        pacers=parts.pacers(config, rates),
    )
    return Router(
        registry,
        parts.reporter(config),
        attempts=rules.attempts,
        deadline=rules.deadline or None,
        on_unsupported=rules.on_unsupported,
        targets=targets,
        admission=Admission(
            **(parts.room(config) if serving else {}), rates=rates, user_rates=user_rates
        ),
        keyring=keyring,
        ledger=ledger,
        observers=parts.observers(config, serving),
        answers=parts.answers(config, ledger),
        capture_content=config.trace.capture_content,
        users=parts.users(config),
    )


def warnings(config: Config, router: Router) -> list[str]:
    """Return warnings about a valid configuration, such as a provider that cannot answer."""
    registry = router.registry
    if not len(registry):
        return [
            f"no provider can answer: name one in [providers] of {config.path}, "
            "or set environment = true there"
        ]
    used = {target.provider for target in registry.targets()}
    found = [
        f"provider {each.name!r} lists no model: only {each.name}/MODEL reaches it; "
        f"set [providers.{each.name}].models"
        for each in registry
        if each.name not in used
    ]
    found += _unseen(config, registry)
    found += [
        f"[providers.{each.name}].options are not read: they are for plug-ins"
        for each in config.providers
        if each.options and each.type in PRESETS
    ]
    if router.keyring is not None and any(map(has_hard_budget, router.keyring.own.values())):
        found += [
            f"[providers.{provider}.prices] {model!r} has no max_output: "
            "the limit that a budget sets may be more than the vendor takes"
            for provider, prices in router.targets.overrides.items()
            for model, price in prices.items()
            if price.rates.output and price.max_output is None
        ]
    if config.alerts.webhook is None and config.alerts != type(config.alerts)():
        found.append("[alerts] has no webhook: no alert is sent")
    return found if used else [*found, "no model can answer where a request names none"]


def _unseen(config: Config, registry: Registry) -> list[str]:
    """Return a warning if hooks must see everything, and some requests or answers pass unseen."""
    hooks, found = config.hooks, []
    if (hooks.on_error, hooks.unseen) == ("closed", "pass"):
        passing = [each.name for each in registry if has_files(each.provider)]
        if hooks.before and passing:
            found.append(f"requests in files and batches, which pass to {listed(passing)}")
        if hooks.after or hooks.chunk:
            found.append("answers that are images, audio or files")
    what = f'[hooks] do not see {" and ".join(found)}; unseen = "refuse" refuses them'
    return [what] if found else []


def sources(config: Config, router: Router) -> list[str]:
    """Return each provider as "name (source of its configuration)"."""
    known = {providers.ECHO: "built in"} | {
        each.name: each.source or "file" for each in config.providers
    }
    return [f"{each.name} ({known.get(each.name, 'plug-in')})" for each in router.registry]


def summary(config: Config, router: Router) -> dict[str, str]:
    """Return a description of the settings by subject, without secrets."""
    server = config.server
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
        "names": listed([*router.registry.names, *router.registry.patterns]),
        **_patterns(config, router),
        **prices,
        "ledger": ledgers.described(config.ledger or LedgerConfig()),
        "keys": keys,
        "admin": f"operators' endpoints are {operators}, /metrics is {metrics}",
        "traces": listed([urlsplit(url).netloc for url in urls]),
    }


def resize(config: Config) -> None:
    """Resize the limits of this process's serving routers to its number of threads."""
    for router in list(routers):
        router.admission.resize(**parts.room(config))
        router.targets.resize(parts.concurrency(config, True))


def _patterns(config: Config, router: Router) -> dict[str, str]:
    """Return what each pattern matches, of the names and models that are known."""
    scopes = {
        f"[keys.{key.name}] {scope}": [scope]
        for key in config.keys or ()
        for scope in key.models
        if is_pattern(scope)
    }
    registry = router.registry
    if not (registry.patterns or scopes):
        return {}
    models = matching.priced(router.targets.prices)
    found = {text: matching.matched(registry, text, models) for text in registry.patterns}
    found |= {place: [*matching.within(registry, own, models)] for place, own in scopes.items()}
    unknown = "no model that is known by name"
    return {text: listed(names) if names else unknown for text, names in found.items()}


def check_file(config: Config) -> None:
    """Raise ConfigError if the file is a pipe: a second reading would find no keys in it."""
    if Path(config.path).is_fifo():
        why = "is a pipe: a service reads its configuration again, so give it a file"
        raise ConfigError(f"{config.path} {why}")


def check(config: Config) -> Router:
    """Raise ConfigError if a service with *config* could not work; return its router, closed.

    Workers do not check again: one that cannot open a file logs it and lacks records or limits.
    """
    check_file(config)
    ledgers.check_path(config.ledger or LedgerConfig())
    made = router(config, serving=True)
    routers.discard(made)
    try:
        if made.ledger is not None:
            made.ledger.check()
        limited = made.targets.pacers or (made.keyring is not None and made.keyring.limited)
        if limited and (rates := made.admission.rates) is not None:
            rates.check()
    except LedgerUnavailable as error:
        if not error.temporary:
            raise ConfigError(
                f"the ledger cannot be used: {error.reason}"
                f"{ledgers.remedy(config.ledger or LedgerConfig())}"
            ) from None
        log.warning("calls are recorded later: the ledger cannot be used now: %s", error.reason)
    finally:
        made.close()
    return made
