"""What can be configured: one frozen record for each table of infermux.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from ..errors import ConfigError, shown
from .schema import (
    Secret,
    flag,
    of_type,
    one_of,
    reads,
    seconds,
    share,
    table,
    text,
    texts,
    url,
    whole,
)

STRATEGIES = ("priority", "weighted", "round_robin", "least_latency", "cheapest")
_HASH = re.compile(r"(sha256:)?[0-9a-f]{64}")
_OF_NOTHING = sha256(
    b""
).hexdigest()  # what an unset variable hashes to: it would open the door to whoever has no key
_MONEY = re.compile(r"\d{1,9}(\.\d{1,12})?", re.ASCII)


def _secret(value: Any, place: str) -> Secret:
    """Read a secret, which `_dereferenced` has put where the file has a reference."""
    if not isinstance(value, Secret):
        raise ConfigError(
            f'{place} must be a reference, "env:NAME" or "file:PATH", never the secret itself'
        )
    return value


def _key_hash(value: Any, place: str) -> str:
    """Read a SHA-256 of a key, in hexadecimal, as it is or behind a reference."""
    found = value.reveal() if isinstance(value, Secret) else text(value, place)
    if not _HASH.fullmatch(found.lower()) or found.lower().endswith(_OF_NOTHING):
        raise ConfigError(
            f"{place} must be a SHA-256 in 64 hexadecimal digits: `infermux keys new NAME` makes one"
        )
    return found.lower().removeprefix("sha256:")


def _money(value: Any, place: str) -> str:
    """Read dollars as a decimal text, so that no digit is lost."""
    word = (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else text(value, place)
    )
    if not _MONEY.fullmatch(word):
        raise ConfigError(f'{place} must be dollars as text, such as "200.00", not {shown(word)}')
    return word


def target_names(value: Any, place: str) -> tuple[str, ...]:
    names = (text(value, place),) if isinstance(value, str) else texts(value, place)
    if not names:
        raise ConfigError(f"{place} names no target")
    return names


def weights(value: Any, place: str) -> dict[str, float]:
    """Read a table of weights, each a number above 0."""
    found = {
        target: float(of_type(float, item, f"{place}.{target}"))
        for target, item in of_type(dict, value, place).items()
    }
    for target, weight in found.items():
        if not 0 < weight < 10**9:
            raise ConfigError(f"{place}.{target} must be a number above 0")
    return found


def abilities(value: Any, place: str) -> dict[str, tuple[str, ...]]:
    """Read what models cannot do: a table of lists."""
    read = one_of("tools", "images", "structured output", "embeddings")
    return {
        model: tuple(read(item, f"{place}.{model}") for item in texts(items, f"{place}.{model}"))
        for model, items in of_type(dict, value, place).items()
    }


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a provider is waited for, in seconds; each is also cut to what is left of the call's
    deadline.
    """

    connect: float = reads(seconds, 5.0)
    first_byte: float = reads(seconds, 60.0)
    idle: float = reads(seconds, 30.0)  # between two pieces of a stream
    total: float = reads(seconds, 600.0)  # of a stream, once it has begun


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """One provider: what of it is not said comes from the preset of its type."""

    name: str
    type: str = reads(text, "")  # a preset, a dialect, or the name of an installed plug-in
    base_url: str = reads(url, "")
    api_key: Secret | None = reads(_secret, None)
    models: tuple[str, ...] = reads(texts, ())
    timeout: Wait = reads(table(Wait), Wait())
    prices: Mapping[str, Any] = reads(
        lambda value, place: of_type(dict, value, place), {}
    )  # by model: read by prices.Price
    proxy: str = reads(url, "")
    ca: str = reads(text, "")  # the path of a bundle of certificates
    lacks: Mapping[str, Any] = reads(abilities, {})  # by model: what it cannot do
    concurrency: int = reads(whole, 0)  # calls at a time and worker; 0: half of the threads
    options: Mapping[str, Any] = reads(
        lambda value, place: of_type(dict, value, place), {}
    )  # for a plug-in


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A name that callers use: targets, and how one of them is chosen."""

    name: str
    targets: tuple[str, ...] = reads(target_names)
    strategy: str = reads(one_of(*STRATEGIES), "priority")
    then: tuple[str, ...] = reads(target_names, ())  # after every target has failed
    weights: Mapping[str, float] = reads(weights, {})
    on_unsupported: str = reads(one_of("error", "drop"), "")


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a target is left alone."""

    failures: int = reads(whole, 5)  # in a row
    window: float = reads(seconds, 60.0)  # half of at least ten calls in so many seconds
    open: float = reads(seconds, 30.0)  # seconds until it is tried again


@dataclass(frozen=True, slots=True)
class Reliability:
    """How hard a call is tried."""

    attempts: int = reads(whole, 3)  # upstream requests per call, over all targets
    deadline: float = reads(seconds, 60.0)  # seconds per call, over all attempts and waits
    breaker: Breaker = reads(table(Breaker), Breaker())
    on_unsupported: str = reads(
        one_of("error", "drop"), "error"
    )  # for a parameter that a vendor's format cannot express


@dataclass(frozen=True, slots=True)
class Server:
    """What a service is given."""

    workers: int = reads(whole, 2)
    threads: int = reads(
        whole, 1536
    )  # at most, per worker: a call holds its thread for as long as the model takes
    streams: float = reads(share, 0.75)  # of the threads, that may stream at once
    graceful: int = reads(whole, 30)  # seconds that calls in flight get at SIGTERM
    max_body: int = reads(whole, 32 * 1024 * 1024)  # bytes of a request
    admin: Secret | None = reads(_secret, None)  # opens the pages for operators
    log_level: str = reads(
        one_of("debug", "info", "warning", "error"), "warning"
    )  # warning: calls that failed; info: every call
    log_format: str = reads(one_of("text", "json"), "text")


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """What a key may spend, by UTC."""

    usd: str = reads(_money)
    per: str = reads(one_of("day", "month", "total"), "month")
    then: str = reads(text, "reject")  # "reject", "warn", or a cheaper name


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """A caller, known by the hash of its key."""

    name: str
    hash: str = reads(_key_hash)
    models: tuple[str, ...] = reads(texts, ())  # none named: every model
    rpm: int = reads(whole, 0)  # requests per minute; 0: no limit
    tpm: int = reads(whole, 0)  # tokens per minute; 0: no limit
    budget: BudgetConfig | None = reads(table(BudgetConfig), None)
    tags: bool = reads(flag, False)  # whether headers and meta may name project and env


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where calls are written down; an empty path: nowhere."""

    path: str = reads(lambda value, place: text(value, place) if value != "" else "", "infermux.db")


@dataclass(frozen=True, slots=True)
class Trace:
    """Where spans go."""

    tokentrace: str = reads(
        lambda value, place: url(value, place) if value != "" else "", ""
    )  # empty: nowhere
    content: bool = reads(flag, False)  # whether spans hold prompts and answers
    threads: int = reads(whole, 2)
    queue: int = reads(whole, 1000)  # spans that may wait; more are dropped, and counted
    otlp: str = reads(
        lambda value, place: url(value, place) if value != "" else "", ""
    )  # an OpenTelemetry collector; empty: none


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that was configured."""

    providers: tuple[ProviderConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    reliability: Reliability = Reliability()
    server: Server = Server()
    keys: tuple[KeyConfig, ...] | None = (
        None  # None: the doors are open, or the mounting app decides
    )
    ledger: LedgerConfig | None = None
    trace: Trace = Trace()
    path: str = ""  # the file that it came from
