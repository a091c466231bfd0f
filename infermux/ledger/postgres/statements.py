"""How statements are run on a connection to PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import Connection

Link = Connection[Any]


@lru_cache(maxsize=512)
def translated(statement: str) -> str:
    """Return a portable statement in psycopg's form."""
    return statement.replace("%", "%%").replace("?", "%s")


class Sql:
    """A connection as portable statements use it."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._cursor: Any = None

    @property
    def rowcount(self) -> int:
        """How many rows the last statement has changed."""
        return int(self._cursor.rowcount)

    def execute(self, statement: str, values: Sequence[Any] = (), /) -> Sql:
        """Run a statement with `?` for values; return this."""
        self._cursor = self._link.execute(translated(statement), _clean(values), prepare=False)
        return self

    def executemany(self, statement: str, rows: Sequence[Sequence[Any]], /) -> None:
        """Run a statement for each of *rows*, in few round trips."""
        with self._link.cursor() as cursor:
            cursor.executemany(translated(statement), map(_clean, rows))

    def fetchone(self) -> Any:
        """Return the next row, or None."""
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        """Return all rows."""
        return list(self._cursor.fetchall())

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of a query."""
        return self.execute(query, values).fetchall()


def clean(text: str) -> str:
    """Return *text* without NUL, which PostgreSQL refuses."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _clean(values: Sequence[Any]) -> list[Any]:
    return [clean(value) if isinstance(value, str) else value for value in values]


def pipelined(link: Link, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Any]:
    """Run statements as one transaction in one round trip; return their cursors.

    After an error the connection is closed: psycopg takes statements for prepared that are not.
    """
    try:
        with link.pipeline():
            return [link.execute(statement, values) for statement, values in statements]
    except psycopg.Error:
        link.close()
        raise
