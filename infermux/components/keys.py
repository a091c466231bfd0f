"""Creates, lists, rotates and revokes API keys at run time, for the commands and endpoints.

Each function returns what GET /keys shows, and raises RequestError for invalid input.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from ..admission.keys import LiveKeyring, hashed, new_key
from ..config.readers import span_seconds
from ..config.schema import suggestion
from ..errors import ConfigError, Conflict, ModelNotFound, NotFound, RequestError, close_to, shown
from ..ledger import Budget
from ..ledger.reports import iso
from ..ledger.sql import Ledger
from ..ledger.stores.keys import IssuedKey
from ..planning.matching import check
from ..planning.registry import Registry
from ..pricing import usd
from ..protocol import must_be
from ..routing.router import Router
from ..types import JSON, Caller
from . import key_settings

OVERLAP = "24h"  # for which the old secret is admitted after a rotation
MAX_SECONDS = 100 * 366 * 86_400.0
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SPAN = re.compile(r"\d{1,6}[smhdw]", re.ASCII)
_SETTINGS = ("models", "rpm", "tpm", "budget", "tags", "user_rpm", "user_tpm", "user_budget")
_FIELDS = ("name", *_SETTINGS, "expires")


class Made(NamedTuple):
    """A key with its new secret, which is shown once."""

    secret: str
    key: JSON

    def to_dict(self) -> JSON:
        return {"key": self.secret} | self.key


def create(router: Router, ledger: Ledger, data: Mapping[str, Any]) -> Made:
    """Create a key from *data*: a name, keys of a table of [keys], and when it expires."""
    for field in data:
        if field not in _FIELDS:
            hint = suggestion(field, _FIELDS)
            raise RequestError(f"a key has no {shown(field)}{hint}", param=field[:100])
    name, now = _name(data.get("name")), time.time()
    settings = {each: data[each] for each in _SETTINGS if data.get(each) is not None}
    _check(router, name, settings)
    _refuse_own(router, name, "choose another name")
    end = _end(data.get("expires"), now)
    secret = new_key()
    key = IssuedKey(name, json.dumps(settings), now, end, hashes=((hashed(secret), None),))
    if not ledger.keys().create(key):
        raise Conflict(
            f"there is a key {shown(name)}: rotate it for a new secret, or revoke it first",
            param="name",
        )
    _renew(router)
    return Made(secret, _shown(key, now))


def rotate(router: Router, ledger: Ledger, name: str, overlap: object = None) -> Made:
    """Give a key a new secret; the old one is admitted for *overlap* longer, such as "24h"."""
    _refuse_own(router, name, f"`infermux keys new {name}` makes a hash for it")
    now = time.time()
    until = now + _seconds(OVERLAP if overlap is None else overlap, "overlap")
    secret = new_key()
    if not ledger.keys().rotate(name, hashed(secret), now, until):
        raise _unknown(ledger, name, now)
    _renew(router)
    return Made(secret, _shown(_one(ledger, name), now))


def revoke(router: Router, ledger: Ledger, name: str) -> JSON:
    """Refuse all secrets of a key from now on; what it has spent stays in all reports."""
    _refuse_own(router, name, "remove its table, and reload with SIGHUP")
    now = time.time()
    if not ledger.keys().revoke(name, now):
        raise _unknown(ledger, name, now)
    _renew(router)
    return _shown(_one(ledger, name), now)


def listed(router: Router, ledger: Ledger | None) -> list[JSON]:
    """Return each key: those of the configuration, then those created at run time."""
    now, own = time.time(), router.keyring.own if router.keyring is not None else {}
    issued = [] if ledger is None else ledger.keys().keys()[1]
    return [*map(_own, own.values()), *(_shown(key, now) for key in issued if key.name not in own)]


def one(router: Router, ledger: Ledger | None, name: str) -> JSON:
    """Return one key; raise NotFound."""
    known = {key["name"]: key for key in listed(router, ledger)}
    if name not in known:
        raise _missing(name, known)
    return known[name]


# -- reading a request --


def _name(value: object) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise must_be("name", "letters, digits, - and _, at most 64")
    return value


def _check(router: Router, name: str, settings: JSON) -> None:
    """Raise RequestError unless the settings are valid and every model in them is known."""
    try:
        key = key_settings(name, settings)
    except ConfigError as error:
        what = "; ".join(error.errors).replace(f"[keys.{name}].", "")
        raise RequestError(what, param=re.split(r"[ .\[:]", what, maxsplit=1)[0]) from None
    names = [("models", model) for model in key.models]
    for param, budget in (("budget", key.budget), ("user_budget", key.user_budget)):
        if budget is not None and budget.then not in ("reject", "warn"):
            names.append((param, budget.then))
    for param, model in names:
        try:
            find = check if param == "models" else Registry.route
            find(router.registry, model)
        except ModelNotFound as error:
            raise RequestError(f"{param}: {error.message}", param=param) from None


def _refuse_own(router: Router, name: str, remedy: str) -> None:
    if router.keyring is not None and name in router.keyring.own:
        raise Conflict(f"the key {shown(name)} is one of the configuration: {remedy}", param="name")


def _end(value: object, now: float) -> float | None:
    """Return when a key expires: None: never; else a date, a time, or a time from now."""
    if value is None:
        return None
    if isinstance(value, str) and _SPAN.fullmatch(value):
        return now + _seconds(value, "expires", least=1)
    forms = 'such as "90d", "12h", "2027-01-31" or "2027-01-31T12:00:00Z"'
    try:
        at = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        raise must_be("expires", f"{forms}, not {shown(value)}") from None
    seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
    if not now < seconds < now + MAX_SECONDS:
        raise must_be("expires", f"in the future, not {shown(value)}")
    return seconds


def _seconds(value: object, param: str, least: int = 0) -> float:
    seconds = 0 if value in (0, "0") else -1
    if isinstance(value, str) and _SPAN.fullmatch(value):
        seconds = span_seconds(value)
    if not least <= seconds <= MAX_SECONDS:
        raise must_be(param, f'a time such as "24h", "7d" or "30m", not {shown(value)}')
    return float(seconds)


# -- the answer --


def _one(ledger: Ledger, name: str) -> IssuedKey:
    return next(key for key in ledger.keys().keys()[1] if key.name == name)


def _unknown(ledger: Ledger, name: str, now: float) -> RequestError:
    known = {key.name: key for key in ledger.keys().keys()[1]}
    if name not in known:
        return _missing(name, known)
    state = known[name].state(now)
    return Conflict(f"the key {shown(name)} is {state}: create it again", param="name")


def _missing(name: str, known: Iterable[str]) -> NotFound:
    return NotFound(f"there is no key {shown(name)}{close_to(name, known)}", param="name")


def _shown(key: IssuedKey, now: float) -> JSON:
    settings = json.loads(key.settings)
    old = [until for _, until in key.hashes if until is not None and until > now]
    return {
        "name": key.name,
        "source": "ledger",
        "state": key.state(now),
        **{each: settings.get(each) for each in _SETTINGS},
        "created": iso(key.created),
        "expires": iso(key.expires),
        "revoked": iso(key.revoked),
        "old_secret_until": iso(max(old, default=None)),
    }


def _own(caller: Caller) -> JSON:
    return {
        "name": caller.name,
        "source": "configuration",
        "state": "active",
        "models": list(caller.models) if caller.models is not None else None,
        "rpm": caller.rpm,
        "tpm": caller.tpm,
        "budget": _limits(caller.budget),
        "tags": dict(caller.tags) or caller.may_tag or None,
        "user_rpm": caller.user_rpm,
        "user_tpm": caller.user_tpm,
        "user_budget": _limits(caller.user_budget),
        **dict.fromkeys(("created", "expires", "revoked", "old_secret_until")),
    }


def _limits(budget: object) -> JSON | None:
    if not isinstance(budget, Budget) or budget.members:
        return None
    return {"usd": usd(budget.limit_pico), "per": budget.period, "then": budget.then}


def _renew(router: Router) -> None:
    """Have the workers of this service admit or refuse the key from now on."""
    if isinstance(router.keyring, LiveKeyring):
        router.keyring.changed()
