"""API keys that are created at run time: their hashes and limits, in the ledger's database.

A key has a name, its settings as JSON, and the hashes of its secrets: after a rotation the old one
is admitted for a while. Each change raises the version of `versions`, which services look at.
"""

from __future__ import annotations

from typing import NamedTuple

from ..periods import ms
from . import Ask, Sql, Store

FORGET = 90 * 86_400.0  # seconds until the hash of a secret that was replaced is removed
_VERSION = "SELECT version FROM versions WHERE name = 'keys'"
_RAISE = "UPDATE versions SET version = version + 1 WHERE name = 'keys'"
_KEYS = "SELECT name, settings, created_ms, expires_ms, revoked_ms FROM api_keys ORDER BY name"
_HASHES = "SELECT name, hash, until_ms FROM key_hashes ORDER BY at_ms DESC, hash"
_IN_FORCE = """SELECT 1 FROM api_keys WHERE name = ? AND revoked_ms IS NULL
    AND (expires_ms IS NULL OR expires_ms > ?)"""
_HAS = "SELECT 1 FROM key_hashes WHERE name = ? AND hash = ?"
_CLEAR = ("DELETE FROM key_hashes WHERE name = ?", "DELETE FROM api_keys WHERE name = ?")
_ADD = """INSERT INTO api_keys (name, settings, created_ms, expires_ms, revoked_ms)
    VALUES (?, ?, ?, ?, NULL)"""
_ADD_HASH = "INSERT INTO key_hashes (hash, name, at_ms, until_ms) VALUES (?, ?, ?, NULL)"
_END_HASHES = """UPDATE key_hashes SET until_ms = ?
    WHERE name = ? AND (until_ms IS NULL OR until_ms > ?)"""
_FORGET = "DELETE FROM key_hashes WHERE name = ? AND until_ms < ?"
_REVOKE = """UPDATE api_keys SET revoked_ms = ?
    WHERE name = ? AND (revoked_ms IS NULL OR revoked_ms = ?)"""


class IssuedKey(NamedTuple):
    """A key as it is stored; times are in seconds since 1970."""

    name: str
    settings: str  # a JSON object, in the form of a table of [keys]
    created: float
    expires: float | None = None
    revoked: float | None = None
    hashes: tuple[tuple[str, float | None], ...] = ()  # SHA-256 and end of each, newest first

    def state(self, now: float) -> str:
        if self.revoked is not None:
            return "revoked"
        return "expired" if self.expires is not None and self.expires <= now else "active"


class KeyStore(Store):
    """Stores keys; a change that a database makes again is made once."""

    def version(self) -> int:
        """Return a number that each change of a key raises."""
        return self._database.snapshot(_version)

    def keys(self) -> tuple[int, list[IssuedKey]]:
        """Return the version, and every key by name, also revoked ones, at one moment."""
        return self._database.snapshot(lambda ask: (_version(ask), _keys(ask)))

    def create(self, key: IssuedKey) -> bool:
        """Store a new key with its hash; return False if a valid key has its name."""

        def work(sql: Sql) -> bool:
            [(hash, _)] = key.hashes
            sql.execute(_RAISE)  # one change at a time
            if sql.execute(_IN_FORCE, (key.name, ms(key.created))).fetchone():
                return _has(sql, key.name, hash)
            for statement in _CLEAR:
                sql.execute(statement, (key.name,))
            expires = None if key.expires is None else ms(key.expires)
            sql.execute(_ADD, (key.name, key.settings, ms(key.created), expires))
            sql.execute(_ADD_HASH, (hash, key.name, ms(key.created)))
            return True

        return self._database.write(work)

    def rotate(self, name: str, hash: str, at: float, until: float) -> bool:
        """Add a hash to a valid key, whose others end at *until*; return False if there is none.

        A hash that ends earlier, by an earlier rotation, still does.
        """

        def work(sql: Sql) -> bool:
            sql.execute(_RAISE)
            if not sql.execute(_IN_FORCE, (name, ms(at))).fetchone():
                return False
            if _has(sql, name, hash):
                return True
            sql.execute(_END_HASHES, (ms(until), name, ms(until)))
            sql.execute(_FORGET, (name, ms(at - FORGET)))
            sql.execute(_ADD_HASH, (hash, name, ms(at)))
            return True

        return self._database.write(work)

    def revoke(self, name: str, at: float) -> bool:
        """Revoke a key; return False if there is no valid one."""

        def work(sql: Sql) -> bool:
            sql.execute(_RAISE)
            return bool(sql.execute(_REVOKE, (ms(at), name, ms(at))).rowcount)

        return self._database.write(work)


def _has(sql: Sql, name: str, hash: str) -> bool:
    return sql.execute(_HAS, (name, hash)).fetchone() is not None


def _version(ask: Ask) -> int:
    return int(ask(_VERSION, ())[0][0])


def _keys(ask: Ask) -> list[IssuedKey]:
    hashes: dict[str, list[tuple[str, float | None]]] = {}
    for name, hash, until in ask(_HASHES, ()):
        hashes.setdefault(name, []).append((hash, _seconds(until)))
    return [
        IssuedKey._make((name, settings, *map(_seconds, times), tuple(hashes.get(name, ()))))
        for name, settings, *times in ask(_KEYS, ())
    ]


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds and milliseconds / 1000
