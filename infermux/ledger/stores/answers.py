"""Cached answers in the ledger's database: the table `answers`.

Each name of [models] has its own bound of bytes, whose sum is in `answer_sizes`: the oldest answers
make room for new ones. An expired answer is not returned, and is removed within a minute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..periods import ms
from . import Sql, Store

OVERHEAD = 200  # bytes of a row beside its text, about
BATCH = 100  # rows that are removed at a time
_FIND = "SELECT at_ms, body FROM answers WHERE digest = ? AND expires_ms > ?"
_REMOVE = "DELETE FROM answers WHERE digest = ?"
_ROWS = "SELECT digest, name, size FROM answers WHERE"
_ONE = f"{_ROWS} digest = ?"
_OLDEST = f"{_ROWS} name = ? ORDER BY at_ms, digest LIMIT 1"
_EXPIRED = f"{_ROWS} expires_ms <= ? LIMIT ?"
_ADD = """INSERT INTO answers (digest, name, at_ms, expires_ms, size, body)
    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
_SIZE = "SELECT bytes FROM answer_sizes WHERE name = ?"
_GROW = """INSERT INTO answer_sizes (name, bytes) VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET bytes = answer_sizes.bytes + excluded.bytes"""


class Kept(NamedTuple):
    """A text that was kept, and when, in seconds since 1970."""

    at: float
    body: str


class AnswerStore(Store):
    """Keeps texts by a digest."""

    def find(self, digest: str, now: float) -> Kept | None:
        """Return what is kept under *digest* and has not expired, or None."""
        found = self._rows(_FIND, digest, ms(now))
        return Kept(found[0][0] / 1000, str(found[0][1])) if found else None

    def keep(self, digest: str, name: str, kept: Kept, *, expires: float, most: int) -> None:
        """Keep a text; remove the oldest ones of *name* if they have more than *most* bytes."""
        size = len(kept.body) + OVERHEAD
        if size > most:
            return

        def work(sql: Sql) -> None:
            sql.execute(_GROW, (name, size))
            _remove(sql, sql.execute(_ONE, (digest,)).fetchall())
            sql.execute(_ADD, (digest, name, ms(kept.at), ms(expires), size, kept.body))
            while (total := sql.execute(_SIZE, (name,)).fetchone()[0]) > most:
                oldest = sql.execute(_OLDEST, (name,)).fetchall()
                _remove(sql, oldest)
                if not oldest:  # the sum is wrong
                    sql.execute(_GROW, (name, -total))

        self._database.write(work)

    def forget(self, now: float) -> int:
        """Remove what has expired; return how many texts."""
        count = 0
        while self._rows(_EXPIRED, ms(now), 1):
            count += self._database.write(
                lambda sql: _remove(sql, sql.execute(_EXPIRED, (ms(now), BATCH)).fetchall())
            )
        return count


def _remove(sql: Sql, rows: Sequence[tuple[str, str, int]]) -> int:
    count = 0
    for name in sorted({row[1] for row in rows}):
        sql.execute(_GROW, (name, 0))  # locks the sums first, as `keep` does
    for digest, name, size in rows:
        if sql.execute(_REMOVE, (digest,)).rowcount:
            sql.execute(_GROW, (name, -size))
            count += 1
    return count
