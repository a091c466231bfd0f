"""The times when alerts were sent, so that only one worker of all hosts sends each alert."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..periods import ms
from . import Sql, Store

KEPT = 400 * 86_400.0  # seconds that a subject is remembered
_SENT = "SELECT subject, at_ms, host FROM alerts"
_FIRST = "INSERT INTO alerts (subject, at_ms, host) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_AGAIN = "UPDATE alerts SET at_ms = ?, host = ? WHERE subject = ? AND at_ms = ?"
_UNDO = "DELETE FROM alerts WHERE subject = ? AND host = ?"
_FORGET = "DELETE FROM alerts WHERE at_ms < ?"


class Sent(NamedTuple):
    """When an alert was sent last, and by which host."""

    at: float  # seconds since 1970
    host: str


class AlertLog(Store):
    """Stores when alerts were sent."""

    def sent(self) -> Mapping[str, Sent]:
        return {subject: Sent(at / 1000, host) for subject, at, host in self._rows(_SENT)}

    def claim(self, subject: str, before: Sent | None, at: float, host: str) -> bool:
        """Note that an alert is sent; return False if another worker has done so since *before*."""

        def work(sql: Sql) -> bool:
            if before is None:
                sql.execute(_FORGET, (ms(at - KEPT),))
                return bool(sql.execute(_FIRST, (subject, ms(at), host)).rowcount)
            was = round(before.at * 1000)
            return bool(sql.execute(_AGAIN, (ms(at), host, subject, was)).rowcount)

        return self._database.write(work)

    def undo(self, subject: str, host: str) -> None:
        """Note that an alert that *host* has claimed was not sent, so that another worker may."""
        self._write(_UNDO, (subject, host))
