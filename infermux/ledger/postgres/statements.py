"""How statements are run on a connection to PostgreSQL."""

from __future__ import annotations

import itertools
import select
import weakref
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult

Link = Connection[Any]
_numbers = itertools.count()  # a name is used once, whatever became of a connection's others
_prepared: weakref.WeakKeyDictionary[Link, dict[str, bytes]] = weakref.WeakKeyDictionary()


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


class Done(NamedTuple):
    """What a statement has done."""

    changed: int  # of rows that it has changed or found
    rows: list[list[bytes | None]]


def run(link: Link, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Done]:
    """Run statements as one transaction in one round trip; raise psycopg.Error.

    They are prepared by their first use on a connection, unless a pooler is in between. This takes
    a third of the system calls of a pipeline of psycopg, which waits for each statement.
    """
    try:
        return _run(link, statements)
    except psycopg.errors.InvalidSqlStatementName:
        _prepared.pop(link, None)  # psycopg deallocates all statements after a rollback
        return _run(link, statements)


def _run(link: Link, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[Done]:
    connection = link.pgconn
    # all that may fail for the values' sake comes before the pipeline
    sent = [
        (_name(link, statement), statement, [_encoded(value) for value in values])
        for statement, values in statements
    ]
    connection.enter_pipeline_mode()
    try:
        for name, statement, encoded in sent:
            if name:
                connection.send_query_prepared(name, encoded)
            else:
                connection.send_query_params(numbered(statement), encoded)
        connection.pipeline_sync()
        found = _received(connection)
    finally:
        if connection.status == ConnStatus.OK:
            with suppress(psycopg.Error):
                connection.exit_pipeline_mode()
        if connection.pipeline_status != PipelineStatus.OFF:
            link.close()  # its results would be taken for those of others
    return found


def _name(link: Link, statement: str) -> bytes:
    """Return the name under which a statement is prepared; b"" if it must not be."""
    if link.prepare_threshold is None:
        return b""
    known = _prepared.setdefault(link, {})
    if statement not in known:
        name = b"infermux_%d" % next(_numbers)
        result = link.pgconn.prepare(name, numbered(statement))
        if result.status != ExecStatus.COMMAND_OK:
            raise _error(result)
        known[statement] = name
    return known[statement]


def _received(connection: PGconn) -> list[Done]:
    """Return the results up to the end of the transaction; raise the first error."""
    found = list[Done]()
    error: psycopg.Error | None = None
    result: PGresult | None = None
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN | select.POLLOUT)
    while connection.flush():
        poll.poll()
        connection.consume_input()
    poll.modify(connection.socket, select.POLLIN)
    while True:
        while connection.is_busy():
            poll.poll()
            connection.consume_input()
        before, result = result, connection.get_result()
        if result is None:  # a statement's end
            if connection.status != ConnStatus.OK or before is None:
                raise psycopg.OperationalError("the connection was lost")
            continue
        if result.status == ExecStatus.PIPELINE_SYNC:
            break
        if result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
            found.append(Done(result.command_tuples or 0, _rows(result)))
        elif error is None and result.status != ExecStatus.PIPELINE_ABORTED:
            error = _error(result)
            if connection.status != ConnStatus.OK:
                raise error
    if error is not None:
        raise error
    return found


def _rows(result: PGresult) -> list[list[bytes | None]]:
    columns = range(result.nfields)
    return [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]


def _error(result: PGresult) -> psycopg.Error:
    state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    text = result.error_message.decode(errors="replace").strip()
    try:
        return psycopg.errors.lookup(state)(text)
    except KeyError:
        return psycopg.OperationalError(text)


@lru_cache(maxsize=64)
def numbered(statement: str) -> bytes:
    """Return a statement with $1, $2 and so on for its values, in libpq's form."""
    first, *rest = statement.split("%s")
    return (first + "".join(f"${n}{part}" for n, part in enumerate(rest, 1))).encode()


def _encoded(value: Any) -> bytes:
    if isinstance(value, list):
        if value and isinstance(value[0], str):
            return b'{"%b"}' % b'","'.join(
                each.replace("\\", "\\\\").replace('"', '\\"').encode() for each in value
            )
        return b"{%b}" % ",".join(map(str, value)).encode()
    return value.encode() if isinstance(value, str) else b"%d" % value


def integers(array: bytes | None) -> list[int]:
    """Return the numbers of an array such as {1,2}."""
    inner = (array or b"{}")[1:-1]
    return list(map(int, inner.split(b","))) if inner else []
