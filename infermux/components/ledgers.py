"""Opens the configured ledger: a file of SQLite, or a PostgreSQL that many hosts share."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from ..admission.rate_limiter import RateLimiter
from ..config import Config
from ..config.settings import LedgerConfig
from ..errors import ConfigError
from ..ledger.sql import Ledger
from ..types import Rates

FILE = LedgerConfig().path
USERS = 16_384  # end users whose rates are counted at a time
EXTRA = "[ledger].url needs psycopg: pip install 'infermux[postgres]'"


def ledger(config: Config, serving: bool) -> Ledger | None:
    """Return the ledger, if any: services have one by default, others for a budget or [ledger]."""
    settings = config.ledger or LedgerConfig()
    mirrors = [each for each in config.models if each.mirror and each.mirror.budget]
    budgets = [f"[keys.{key.name}]" for key in config.keys or () if key.budget or key.user_budget]
    budgets += [f"[budgets.{team.name}]" for team in config.budgets]
    budgets += [f"[models.{each.name}].mirror" for each in mirrors]
    if settings.url is not None and settings.path not in (FILE, ""):
        raise ConfigError("[ledger] has both path and url: a ledger is one or the other")
    if settings.url is None and not settings.path:
        needs = [f"the budget of {each} needs a ledger" for each in budgets]
        if config.alerts.webhook is not None:
            needs.append("[alerts] needs a ledger: it remembers them")
        if needs:
            raise ConfigError(f"[ledger].path is empty, but {needs[0]}")
        return None
    answers = any(model.cache_answers for model in config.models)
    if not (config.ledger or budgets or serving or answers):
        return None
    if not serving:  # a service checks it when it starts; its next workers serve without
        check_path(settings)
    return opened(settings)


def check_path(settings: LedgerConfig) -> None:
    """Raise ConfigError if no file can be at the path of the ledger."""
    path = Path(settings.path)
    if settings.url is None and settings.path and (path.is_dir() or not path.parent.is_dir()):
        raise ConfigError(f"[ledger].path: no file can be made at {path}")


def opened(settings: LedgerConfig, *, patient: bool = False) -> Ledger:
    """Return the ledger of *settings*, which have a path or a url; raise ConfigError.

    A *patient* one, for commands, waits longer for a connection than a call can, and leaves a
    damaged file to the service.
    """
    if settings.url is None:
        from ..ledger.sqlite import SQLiteLedger  # loads sqlite3

        return SQLiteLedger(
            settings.path,
            timezone=settings.timezone,
            keep=settings.keep_seconds,
            replaces=not patient,
        )
    try:
        from ..ledger.postgres import PostgresLedger  # loads psycopg, which is an extra
    except ImportError as error:
        if (error.name or "").startswith("infermux"):
            raise
        raise ConfigError(EXTRA) from None
    return PostgresLedger(
        settings.url.reveal(),
        spool=settings.spool,
        connections=settings.connections,
        timezone=settings.timezone,
        keep=settings.keep_seconds,
        migrate=settings.migrate,
        patient=patient,
    )


def rates(config: Config, found: Ledger | None) -> tuple[Rates, Rates]:
    """Return the limiters of keys and of their end users: of this host, or of all.

    They have a file each, because only the table of end users evicts callers when it is full.
    """
    keys: Rates = RateLimiter(beside(config, ".rates"))
    users: Rates = RateLimiter(beside(config, ".users.rates"), records=USERS)
    return (keys, users) if found is None else (found.rates(keys), found.rates(users))


def beside(config: Config, suffix: str) -> Path:
    """Return a file of this host beside the ledger, or its spool."""
    settings = config.ledger or LedgerConfig()
    path = (settings.path if settings.url is None else settings.spool) or FILE
    return Path(path).with_suffix(suffix)


def described(settings: LedgerConfig) -> str:
    """Describe the ledger, without user and password."""
    if settings.url is None:
        return str(Path(settings.path).absolute()) if settings.path else "none"
    parts = urlsplit(settings.url.reveal())
    place = parts.netloc.rpartition("@")[2]
    return f"PostgreSQL, {place or 'local'}{parts.path}"


def remedy(settings: LedgerConfig) -> str:
    """Return a hint for the message about a ledger that cannot be used, or ""."""
    return "" if settings.url else "; name a file that this user may write as [ledger].path"
