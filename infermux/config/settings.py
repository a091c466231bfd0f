"""The configuration as frozen records, one for each table of infermux.toml.

`infermux help configuration` says what each key means. Times are in seconds, sizes in bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import ConfigError, shown
from ..types import FALLBACK_ON, AnswerPolicy
from .params import headers as read_headers
from .params import params as read_params
from .readers import (
    alert_events,
    by_model,
    database_url,
    days,
    endpoint_names,
    file_path,
    key_hash,
    missing_features,
    model_ids,
    money,
    or_empty,
    secret,
    size,
    size_bytes,
    some_models,
    some_texts,
    span,
    span_seconds,
    tags,
    target_names,
    then,
    time_zone,
    web_address,
    weights,
)
from .schema import (
    TABLES,
    Secret,
    any_table,
    flag,
    one_of,
    or_zero,
    reads,
    seconds,
    share,
    size_in_bytes,
    some_of,
    suggestion,
    table,
    text,
    url,
    whole,
    whole_below,
)

MAX_UPLOAD = "INFERMUX_MAX_UPLOAD"  # the key of [server] max_upload in an app's config
EARLY_HEADERS = "INFERMUX_EARLY_HEADERS"  # the key of [server] early_headers in an app's config
_PERIOD = one_of("day", "month", "total")
_SECONDS, _TEXT = or_zero(seconds), or_empty(text)
STRATEGIES = ("priority", "weighted", "round_robin", "least_latency", "cheapest", "sticky")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of waiting for a provider, in seconds; the call's deadline also applies to each."""

    connect: float = reads(seconds, 5.0)
    first_byte: float = reads(seconds, 600.0)
    idle: float = reads(seconds, 30.0)
    total: float = reads(seconds, 600.0)


@dataclass(frozen=True, slots=True)
class OwnBreaker:
    """What of [reliability.circuit_breaker] a provider has otherwise; 0: the same."""

    failures: int = reads(whole, 0)
    window: float = reads(_SECONDS, 0.0)
    open: float = reads(_SECONDS, 0.0)


@dataclass(frozen=True, slots=True)
class NameTimeouts:
    """Limits of waiting for the calls of a name, in seconds; 0: the provider's."""

    attempt: float = reads(_SECONDS, 0.0)
    connect: float = reads(_SECONDS, 0.0)
    first_byte: float = reads(_SECONDS, 0.0)
    idle: float = reads(_SECONDS, 0.0)
    total: float = reads(_SECONDS, 0.0)


def name_timeouts(value: Any, place: str) -> NameTimeouts:
    if isinstance(value, dict):
        return table(NameTimeouts)(value, place)
    return NameTimeouts(attempt=seconds(value, place))


@dataclass(frozen=True, slots=True)
class ProviderConfig:
    """A provider; defaults come from the preset of its type."""

    name: str
    type: str = reads(text, "")
    base_url: str = reads(url, "")
    api_key: Secret | None = reads(secret, None)
    models: tuple[str, ...] = reads(model_ids, ())
    timeout: Timeouts = reads(table(Timeouts), Timeouts())
    prices: Mapping[str, Any] = reads(by_model, {})
    proxy: str = reads(url, "")
    ca: str = reads(text, "")
    unsupported: Mapping[str, Any] = reads(missing_features, {})
    concurrency: int = reads(whole, 0)
    headers: Mapping[str, Any] = reads(read_headers, {})
    params: Mapping[str, Any] = reads(read_params, {})
    rpm: int = reads(whole, 0)
    tpm: int = reads(whole, 0)
    wait: float = reads(_SECONDS, 10.0)
    circuit_breaker: OwnBreaker = reads(table(OwnBreaker), OwnBreaker())
    api: str = reads(one_of("auto", "chat", "responses"), "auto")
    endpoints: tuple[str, ...] = reads(endpoint_names, ())
    options: Mapping[str, Any] = reads(any_table, {})
    source: str = ""  # the variable that configures it; empty: the file


@dataclass(frozen=True, slots=True)
class AnswersConfig:
    """How long answers are cached, and how many bytes of them."""

    ttl: str = reads(span, "1h")
    max: str = reads(size, "256MB")

    def policy(self, settings: str) -> AnswerPolicy:
        """Return the same in numbers; *settings* are those of the name."""
        return AnswerPolicy(span_seconds(self.ttl), size_bytes(self.max), settings)


@dataclass(frozen=True, slots=True)
class BudgetConfig:
    """What a key may spend per day or month, in the ledger's time zone, or in total."""

    usd: str = reads(money)
    per: str = reads(_PERIOD, "month")
    then: str = reads(then, "reject")


@dataclass(frozen=True, slots=True)
class MirrorBudget:
    """What the copies of a name's calls may cost; once it is spent, no copies are sent."""

    usd: str = reads(money)
    per: str = reads(_PERIOD, "month")


@dataclass(frozen=True, slots=True)
class MirrorConfig:
    """Another target that gets copies of a share of a name's calls, after their answers."""

    target: str = reads(text)
    share: float = reads(share, 0.05)
    budget: MirrorBudget | None = reads(table(MirrorBudget), None)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model alias: its targets, and the strategy that orders them."""

    name: str
    targets: tuple[str, ...] = reads(target_names)
    strategy: str = reads(one_of(*STRATEGIES), "priority")
    fallback: tuple[str, ...] = reads(target_names, ())
    weights: Mapping[str, float] = reads(weights, {})
    on_unsupported: str = reads(one_of("error", "drop"), "")
    fallback_on: tuple[str, ...] = reads(
        some_of("context", "content_filter", "rejected"), FALLBACK_ON
    )
    sticky: bool = reads(flag, False)
    cache: str = reads(one_of("", "auto"), "")
    cache_answers: AnswersConfig | None = reads(table(AnswersConfig), None)
    params: Mapping[str, Any] = reads(read_params, {})
    override: Mapping[str, Any] = reads(read_params, {})
    timeout: NameTimeouts = reads(name_timeouts, NameTimeouts())
    attempts: int = reads(whole, 0)
    deadline: float = reads(_SECONDS, 0.0)
    mirror: MirrorConfig | None = reads(table(MirrorConfig), None)


@dataclass(frozen=True, slots=True)
class Breaker:
    """When a target's circuit opens, and for how long."""

    failures: int = reads(whole, 5)
    window: float = reads(seconds, 60.0)
    open: float = reads(seconds, 30.0)


@dataclass(frozen=True, slots=True)
class Reliability:
    """Retries, failover and circuit breaking."""

    attempts: int = reads(whole, 3)
    deadline: float = reads(seconds, 0.0)
    circuit_breaker: Breaker = reads(table(Breaker), Breaker())
    on_unsupported: str = reads(one_of("error", "drop"), "error")


@dataclass(frozen=True, slots=True)
class Server:
    """The server's resources, limits and log."""

    workers: int = reads(whole, 2)
    threads: int = reads(whole, 1536)
    streams: float = reads(share, 0.75)
    graceful_timeout: int = reads(whole, 30)
    max_body: int = reads(size_in_bytes, 32 * 1024 * 1024)
    max_upload: int = reads(or_zero(size_in_bytes), 0)
    early_headers: float = reads(_SECONDS, 5.0)
    max_inflight_body: int = reads(size_in_bytes, 256 * 1024 * 1024)
    admin_key: Secret | None = reads(secret, None)
    metrics: str = reads(one_of("open", "admin"), "open")
    log_level: str = reads(one_of("debug", "info", "warning", "error"), "warning")
    log_format: str = reads(one_of("text", "json"), "text")

    @property
    def for_flask(self) -> dict[str, int | float]:
        """What an app has of it in its own config."""
        upload = self.max_upload or self.max_body
        return {
            "MAX_CONTENT_LENGTH": self.max_body,
            MAX_UPLOAD: upload,
            EARLY_HEADERS: self.early_headers,
        }


@dataclass(frozen=True, slots=True)
class TeamConfig:
    """What several keys may spend together; a call counts in each budget of its key."""

    name: str
    usd: str = reads(money)
    keys: tuple[str, ...] = reads(some_texts)
    per: str = reads(_PERIOD, "month")
    then: str = reads(then, "reject")


def team(keys: Any, name: str, value: object) -> TeamConfig:
    """Read a table of [budgets]; *keys* is the table [keys]."""
    place = f"[budgets.{name}]"
    found = table(TeamConfig, name=name)(value, place)
    for key in found.keys if isinstance(keys, dict) else ():
        if key not in keys:
            raise ConfigError(f"{place}.keys: there is no key {shown(key)}{suggestion(key, keys)}")
    return found


@dataclass(frozen=True, slots=True)
class KeyConfig:
    """A caller and the hash of its API key."""

    name: str
    hash: str = reads(key_hash)
    models: tuple[str, ...] = reads(some_models, ())
    rpm: int = reads(whole, 0)
    tpm: int = reads(whole, 0)
    budget: BudgetConfig | None = reads(table(BudgetConfig), None)
    tags: bool | Mapping[str, str] = reads(tags, False)
    user_rpm: int = reads(whole, 0)
    user_tpm: int = reads(whole, 0)
    user_budget: BudgetConfig | None = reads(table(BudgetConfig), None)


def caller_key(name: str, value: object) -> KeyConfig:
    return table(KeyConfig, name=name)(value, f"[keys.{name}]")


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """Where calls are recorded, and for how long; an empty path disables the ledger.

    With a *url*, it is a PostgreSQL that many hosts share, and *path* is not used.
    """

    path: str = reads(or_empty(file_path), "infermux.db")
    url: Secret | None = reads(database_url, None)
    spool: str = reads(file_path, "infermux.spool")
    connections: int = reads(whole_below(101), 8)
    migrate: bool = reads(flag, False)
    keep: str = reads(or_empty(days), "")
    timezone: str = reads(time_zone, "UTC")
    users: str = reads(one_of("digest", "plain", "off"), "digest")
    users_secret: Secret | None = reads(secret, None)

    @property
    def keep_seconds(self) -> float | None:
        """The seconds that calls are kept; None: forever."""
        return float(span_seconds(self.keep)) if self.keep else None


@dataclass(frozen=True, slots=True)
class PricesConfig:
    """The user's own price table, which `infermux prices update` writes; empty: none."""

    file: str = reads(_TEXT, "")


@dataclass(frozen=True, slots=True)
class Trace:
    """Where spans are sent; an empty address disables an exporter."""

    tokentrace: str = reads(or_empty(url), "")
    capture_content: bool = reads(flag, False)
    threads: int = reads(whole, 2)
    queue: int = reads(whole, 1000)
    otlp: str = reads(or_empty(url), "")


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """Functions that see requests and answers, each as "package.module:function"."""

    before: str = reads(_TEXT, "")
    after: str = reads(_TEXT, "")
    chunk: str = reads(_TEXT, "")
    on_error: str = reads(one_of("closed", "open"), "closed")
    timeout: float = reads(seconds, 5.0)
    threads: int = reads(whole, 64)
    hold: bool = reads(flag, True)
    unseen: str = reads(one_of("refuse", "pass"), "refuse")


@dataclass(frozen=True, slots=True)
class AlertsConfig:
    """Where warnings about money, targets, prices and records are posted."""

    webhook: Secret | None = reads(web_address, None)
    secret: Secret | None = reads(secret, None)
    events: tuple[str, ...] = reads(alert_events, ("budget", "target", "prices", "records"))


class PriceFile(NamedTuple):
    """A file of prices, and the JSON that it holds."""

    path: str
    content: Any


def price_file(file: str, folder: Path) -> PriceFile | None:
    """Read [prices].file, relative to *folder*; None if it is empty. Raise ConfigError."""
    if not file:
        return None
    place = f"[prices].file: {file}"
    try:
        path = folder / Path(file).expanduser()
        return PriceFile(str(path), json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise ConfigError(
            f"[prices].file: there is no file {path}; `infermux prices update FILE` writes one"
        ) from None
    except OSError as error:
        raise ConfigError(f"{place} cannot be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ConfigError(f"{place} is not JSON: {where}") from None
    except (ValueError, RuntimeError):
        raise ConfigError(f"{place} is not the path of a JSON file") from None


SECTIONS: Mapping[str, Any] = {  # that have no names in them
    "reliability": Reliability,
    "server": Server,
    "ledger": LedgerConfig,
    "prices": PricesConfig,
    "trace": Trace,
    "hooks": HooksConfig,
    "alerts": AlertsConfig,
}
EVERYTHING = "/"  # in `Config.unread`: a whole section of names
TABLES.update(
    {f"[{name}]": kind for name, kind in SECTIONS.items()}
    | {
        "[providers.NAME]": ProviderConfig,
        "[providers.NAME].timeout": Timeouts,
        "[models.NAME]": ModelConfig,
        "[models.NAME].timeout": NameTimeouts,
        "[models.NAME].cache_answers": AnswersConfig,
        "[models.NAME].mirror": MirrorConfig,
        "[reliability].circuit_breaker": Breaker,
        "[keys.NAME]": KeyConfig,
        "[keys.NAME].budget": BudgetConfig,
        "[budgets.NAME]": TeamConfig,
    }
)


@dataclass(frozen=True, slots=True)
class Config:
    providers: tuple[ProviderConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    reliability: Reliability = Reliability()
    server: Server = Server()
    keys: tuple[KeyConfig, ...] | None = None  # None: anonymous, or the mounting app decides
    budgets: tuple[TeamConfig, ...] = ()  # of several keys
    ledger: LedgerConfig | None = None
    trace: Trace = Trace()
    prices: PricesConfig = PricesConfig()
    hooks: HooksConfig = HooksConfig()
    alerts: AlertsConfig = AlertsConfig()
    path: str = ""  # of the file
    price_table: PriceFile | None = None  # what is in [prices].file; pricing reads it
    environment: bool = True  # whether the providers of the environment are used, and echo
    errors: tuple[str, ...] = ()  # what could not be read
    unread: tuple[tuple[str, Any], ...] = ()  # the providers and models with errors, as written
    notices: tuple[str, ...] = ()  # for the log: old names, files that are not read


def under_gunicorn() -> bool:
    return os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn")


def inherits_sockets() -> bool:
    """Whether systemd or another gunicorn has given this process the sockets to listen at."""
    return not os.environ.keys().isdisjoint(("LISTEN_FDS", "GUNICORN_FD"))
