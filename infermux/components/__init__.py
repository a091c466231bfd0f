"""Builds the parts of a router from the configuration: keys, limits, ledger, observers, hooks."""

from __future__ import annotations

import importlib
import json
import logging
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..admission.keys import Issued, Keyring, LiveKeyring
from ..config import Config
from ..config.schema import Problems
from ..config.settings import (
    Breaker,
    HooksConfig,
    KeyConfig,
    LedgerConfig,
    TeamConfig,
    caller_key,
)
from ..errors import ConfigError, close_to, shown, wrong_value
from ..ledger import Budget, configured_budget
from ..ledger.sql import Ledger
from ..ledger.stores.keys import IssuedKey
from ..planning.end_user import Users
from ..routing.answers import AnswerCache
from ..routing.circuit_breaker import CircuitBreaker
from ..routing.hooks import NAMES, Hooks
from ..routing.pacing import Pacer
from ..routing.router import Observer, Router
from ..telemetry.call_log import CallLog
from ..telemetry.spans import SpanReporter
from ..telemetry.tokentrace import Reporter
from ..types import NOTHING, Caller, Rates
from . import ledgers
from .prices import is_vendor

_NO_HASH = "0" * 64  # keys created at run time have theirs in the ledger
log = logging.getLogger("infermux")


def concurrency(config: Config, serving: bool) -> dict[str, int]:
    """Return each provider's concurrency limit: by default half the threads, as one may hang."""
    half = max(1, config.server.threads // 2) if serving and len(config.providers) > 1 else 0
    return {each.name: limit for each in config.providers if (limit := each.concurrency or half)}


def users(config: Config) -> Users:
    """Return the end users, who are stored by a digest, with a secret if one is configured."""
    settings = config.ledger or LedgerConfig()
    secret = settings.users_secret or config.server.admin_key
    return Users(settings.users, secret.reveal() if secret is not None else "")


def answers(config: Config, ledger: Ledger | None) -> AnswerCache | None:
    """Return the cache of answers, if a name of [models] has one; raise ConfigError."""
    names = [model.name for model in config.models if model.cache_answers is not None]
    if not names:
        return None
    if ledger is None:
        place = f"[models.{names[0]}].cache_answers"
        raise ConfigError(f"{place} needs a ledger: set [ledger].path")
    return AnswerCache(ledger.answers())


def pacers(config: Config, limiter: Rates | None) -> dict[str, Pacer]:
    """Return the limiters that keep requests to a provider below the provider's own rates."""
    return {
        each.name: Pacer(each.name, limiter, rpm=each.rpm, tpm=each.tpm, wait=each.wait)
        for each in config.providers
        if limiter is not None and (each.rpm or each.tpm)
    }


def breakers(config: Config) -> dict[str, Callable[[], CircuitBreaker]]:
    """Return the factories of circuit breakers, for providers with settings of their own."""
    usual, found = config.reliability.circuit_breaker, dict[str, Callable[[], CircuitBreaker]]()
    for each in config.providers:
        if own := {name: value for name, value in asdict(each.circuit_breaker).items() if value}:
            found[each.name] = breaker(replace(usual, **own))
    return found


def breaker(settings: Breaker) -> Callable[[], CircuitBreaker]:
    return partial(
        CircuitBreaker,
        failures=settings.failures,
        window=settings.window,
        open_seconds=settings.open,
    )


def room(config: Config) -> dict[str, int]:
    """Return the limits of calls, streams and bodies; some threads are left for health checks."""
    threads = config.server.threads
    calls = max(1, threads - max(1, threads // 8))
    streams = max(1, min(int(threads * config.server.streams), calls - 1))
    return {"calls": calls, "streams": streams, "bodies": config.server.max_inflight_body}


def keyring(config: Config, ledger: Ledger | None) -> Keyring | None:
    """Return the keys of [keys], and those created at run time, which the ledger stores.

    Raise ConfigError if two have the same hash.
    """
    names: dict[str, str] = {}
    for key in config.keys or ():
        if (other := names.setdefault(key.hash, key.name)) != key.name:
            raise ConfigError(
                f"{config.path}: [keys.{key.name}] has the same hash as [keys.{other}]; "
                "the two callers cannot be told apart"
            )
    own = config.keys
    pairs = None if own is None else [(key.hash, caller(key, config.budgets)) for key in own]
    if ledger is None:
        return None if pairs is None else Keyring(pairs)
    store = ledger.keys()

    def load(version: int) -> tuple[int, list[Issued]] | None:
        if store.version() == version:
            return None
        now, found = store.keys()
        return now, [each for key in found for each in issued(key)]

    return LiveKeyring(pairs, load, mark=ledgers.beside(config, ".keys") if own is None else None)


def issued(key: IssuedKey) -> Iterator[Issued]:
    """Yield the secrets of a key that was created at run time."""
    try:
        made = caller(key_settings(key.name, json.loads(key.settings)), ())
    except (ConfigError, ValueError) as error:  # written by another version
        log.error("the key %r is not used: %s", key.name, error)
        return
    ends = [(key.expires, "has expired"), (key.revoked, "was revoked")]
    for hash, until in key.hashes:
        known = [(at, why) for at, why in (*ends, (until, "was replaced")) if at is not None]
        yield Issued(hash, made, *min(known, default=(math.inf, "")))


def key_settings(name: str, settings: Mapping[str, Any]) -> KeyConfig:
    """Return the settings of a key that was created at run time; raise ConfigError."""
    return caller_key(name, {**settings, "hash": _NO_HASH})


def caller(key: KeyConfig, teams: Iterable[TeamConfig]) -> Caller:
    limits = key.models or None, key.rpm or None, key.tpm or None
    tags, own = (NOTHING, key.tags) if isinstance(key.tags, bool) else (key.tags, False)
    per_user = key.user_budget and Budget(key.name, **asdict(key.user_budget))
    users = key.user_rpm or None, key.user_tpm or None, per_user
    return Caller(key.name, *limits, configured_budget(key, teams), tags, own, *users)


def observers(config: Config, serving: bool) -> list[Observer]:
    """Return the observers, which receive each finished call: the log, and OpenTelemetry."""
    observers: list[Observer] = []
    if serving and config.server.log_level != "error":
        observers.append(CallLog(config.server.log_level, config.server.log_format))
    if config.trace.otlp:
        observers.append(otlp(config))
    webhook = config.alerts.webhook
    if webhook is not None and (serving or config.ledger):
        from ..telemetry.alerts import Alerts

        key = config.alerts.secret or webhook  # of the signature
        observers.append(Alerts(webhook.reveal(), key.reveal(), events=config.alerts.events))
    return observers


def otlp(config: Config) -> Observer:
    try:
        from ..otel import OTLP  # loads OpenTelemetry, which is an extra
    except ImportError:
        raise ConfigError(
            "[trace].otlp needs OpenTelemetry: pip install 'infermux[otel]'"
        ) from None
    vendors = {each.name: each.type for each in config.providers if is_vendor(each)}
    return OTLP(config.trace.otlp, size=config.trace.queue, vendors=vendors)


def reporter(config: Config) -> SpanReporter | None:
    if not config.trace.tokentrace:
        return None
    return Reporter(
        "infermux", config.trace.tokentrace, threads=config.trace.threads, size=config.trace.queue
    )


def complete(config: Config, router: Router) -> None:
    """Add what needs the finished router: the functions of [hooks], and the mirror of calls.

    Raise ConfigError if a function cannot be used.
    """
    if any((config.hooks.before, config.hooks.after, config.hooks.chunk)):
        router.hooks = _hooks(config.hooks, config.path)
        if router.answers is not None:
            router.answers.hooks = repr(sorted(router.hooks.names.items()))
    names = {each.name: each.mirror for each in config.models if each.mirror is not None}
    if names:
        from ..ledger.reports import MIRROR_OF
        from ..routing.mirror import Mirror, Rule

        rules = {}
        for name, each in names.items():
            budget = each.budget
            own = None if budget is None else Budget(MIRROR_OF + name, **asdict(budget))
            rules[name] = Rule(each.target, each.share, own)
        router.observers.append(Mirror(router, rules))


# -- the functions that [hooks] names --


def _hooks(config: HooksConfig, file: str) -> Hooks:
    """Return the hooks of the configuration *file*; raise ConfigError with every error."""
    given = {name: where for name in NAMES if (where := getattr(config, name))}
    problems, found = Problems(), dict[str, Callable[..., Any]]()
    for name, where in given.items():
        with problems:
            found[name] = hook = _function(where, f"[hooks].{name}", file)
            try:
                Hooks(**{name: hook})
            except ConfigError as error:
                raise ConfigError(f"[hooks].{name}: {error.message}") from None
    problems.check()
    return Hooks(**{**asdict(config), **dict.fromkeys(NAMES), **found, "names": given})


def _function(where: str, place: str, file: str) -> Any:
    """Return what "package.module:function" names; raise ConfigError.

    The folder of the configuration *file* is searched, too, if no other has the module.
    """
    name, colon, path = where.partition(":")
    parts = [*name.split("."), *path.split(".")]
    if not colon or not all(part.isidentifier() for part in parts):
        raise wrong_value(place, '"package.module:function"', where)
    found: Any = _module(name, place, file)
    for number, part in enumerate(path.split(".")):
        if not hasattr(found, part):
            inside = ".".join([name, *path.split(".")[:number]])
            hint = close_to(part, [each for each in dir(found) if not each.startswith("_")])
            raise ConfigError(f"{place}: {inside} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def _module(name: str, place: str, file: str) -> Any:
    folder = str(Path(file).absolute().parent if file else Path.cwd())
    heads = [*accumulate(name.split("."), "{}.{}".format)]  # for a.b.c: a, a.b and a.b.c
    try:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in heads or folder in sys.path:
                raise
        sys.path.append(folder)
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        why = f"{name} needs the module {error.name!r}, which is not installed"
        if error.name in heads:
            why = (
                f"there is no module {shown(error.name)}: it must be installed, or be in "
                f"the folder of the configuration, {folder}"
            )
        raise ConfigError(f"{place}: {why}") from None
    except (Exception, SystemExit) as error:  # the operator's own code
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ConfigError(f"{place}: {name} cannot be imported: {told[:300]}") from error
