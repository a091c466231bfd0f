"""How statements are run on a connection to PostgreSQL."""

from __future__ import annotations

import itertools
import json
import re
import select
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus
from psycopg.pq.abc import PGconn, PGresult

_numbers = itertools.count()  # never reused, in any state of a connection's other statements


class Link(Connection[Any]):
    """A connection, with the names of its prepared statements."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.prepared: dict[str, bytes] = {}
        self.taken = 0.0  # when it was taken from the pool itself


@lru_cache(maxsize=512)
def translated(statement: str) -> str:
    """Return a portable statement in psycopg's form."""
    return statement.replace("%", "%%").replace("?", "%s")


class Sql:
    """A connection as portable statements use it; see `stores.Sql`."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._cursor: Any = None

    @property
    def rowcount(self) -> int:
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
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return list(self._cursor.fetchall())

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return self.execute(query, values).fetchall()


def clean(text: str) -> str:
    """Return *text* without NUL, which PostgreSQL refuses."""
    return text.replace("\0", "\ufffd") if "\0" in text else text


def _clean(values: Sequence[Any]) -> list[Any]:
    return [clean(value) if isinstance(value, str) else value for value in values]


Run = Callable[[Callable[[Link], Any]], Any]
Rows = list[list[bytes | None]]
Statement = tuple[str, Sequence[Any]]


def run(link: Link, statements: Sequence[Statement]) -> list[Rows]:
    """Run statements as one transaction in one round trip; return the rows of each.

    They are prepared by their first use on a connection, unless a pooler is in between. psycopg's
    own pipeline takes three times as many system calls: it waits for each statement.
    """
    try:
        return _run(link, statements)
    except psycopg.errors.InvalidSqlStatementName:
        link.prepared.clear()  # psycopg deallocates all statements after a rollback
        return _run(link, statements)


def _run(link: Link, statements: Sequence[Statement]) -> list[Rows]:
    connection = link.pgconn
    # errors in the values are raised before the pipeline
    sent = [(statement, _encoded(values)) for statement, values in statements]
    if len(sent) == 1:
        [(statement, encoded)] = sent
        if link.prepare_threshold is None:
            return [_rows(connection.exec_params(numbered(statement), encoded))]
        if (name := link.prepared.get(statement)) is not None:
            return [_rows(connection.exec_prepared(name, encoded))]
    connection.enter_pipeline_mode()
    try:
        sent_as = _send(link, sent)
        connection.pipeline_sync()
        results = _received(connection)
    finally:
        if connection.status == ConnStatus.OK:
            with suppress(psycopg.Error):
                connection.exit_pipeline_mode()
        if connection.pipeline_status != PipelineStatus.OFF:
            link.close()  # its results would be taken for those of others
    rows = list(map(_rows, results))  # also an error of the commit, which is one result more
    link.prepared |= {statement: name for statement, name in sent_as if name}
    return [each for each, (_, name) in zip(rows, sent_as, strict=True) if not name]


def _send(link: Link, sent: Sequence[tuple[str, list[bytes]]]) -> list[tuple[str, bytes]]:
    """Send statements; return for each result its statement, and the name if it prepares it."""
    expected, new = list[tuple[str, bytes]](), dict[str, bytes]()
    for statement, encoded in sent:
        if link.prepare_threshold is None:
            link.pgconn.send_query_params(numbered(statement), encoded)
        else:
            name = link.prepared.get(statement) or new.get(statement)
            if name is None:
                name = new[statement] = b"infermux_%d" % next(_numbers)
                link.pgconn.send_prepare(name, numbered(statement))
                expected.append((statement, name))
            link.pgconn.send_query_prepared(name, encoded)
        expected.append((statement, b""))
    return expected


def _received(connection: PGconn) -> list[PGresult]:
    """Return the results up to the end of the transaction, or to the first error."""
    found = list[PGresult]()
    poll = select.poll()
    poll.register(connection.socket, select.POLLIN | select.POLLOUT)
    while connection.flush():
        poll.poll()
        connection.consume_input()
    poll.modify(connection.socket, select.POLLIN)
    is_busy, get_result, ended = connection.is_busy, connection.get_result, False
    while True:
        while is_busy():
            poll.poll()  # without the interpreter's lock, unlike `get_result`
            connection.consume_input()
        result = get_result()
        if result is not None:
            if (status := result.status) == _SYNC:
                return found
            if status != _ABORTED:
                found.append(result)
            ended = False
        elif ended or connection.status != ConnStatus.OK:
            raise psycopg.OperationalError("the connection was lost")
        else:
            ended = True  # of a statement


_COMMAND_OK, _TUPLES_OK = int(ExecStatus.COMMAND_OK), int(ExecStatus.TUPLES_OK)
_SYNC, _ABORTED = int(ExecStatus.PIPELINE_SYNC), int(ExecStatus.PIPELINE_ABORTED)


def _rows(result: PGresult) -> Rows:
    status = result.status
    if status == _COMMAND_OK:
        return []
    if status != _TUPLES_OK:
        raise _error(result)
    columns = range(result.nfields)
    return [[result.get_value(row, column) for column in columns] for row in range(result.ntuples)]


def _error(result: PGresult) -> psycopg.Error:
    state = (result.error_field(DiagnosticField.SQLSTATE) or b"").decode()
    text = result.error_message.decode(errors="replace").strip()
    try:
        return psycopg.errors.lookup(state)(text)
    except KeyError:
        return psycopg.OperationalError(text)


KEYS = [f"c{n}" for n in range(40)]  # of rows as objects
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")  # not an escaped backslash before u0000
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def transposed(rows: Sequence[Sequence[Any]], width: int) -> tuple[list[Any], ...]:
    """Return the columns of rows, as arrays for `unnest`."""
    return tuple(map(list, zip(*rows, strict=True))) if rows else ([],) * width


def recordset(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as JSON, as `json_to_recordset` reads them."""
    return encoded(objects(rows))


def objects(rows: Iterable[Sequence[Any]]) -> list[dict[str, Any]]:
    """Return rows as objects, with the columns c0, c1 and so on."""
    return [dict(zip(KEYS, row)) for row in rows]  # noqa: B905 - there are more keys


def encoded(value: Any) -> str:
    """Return a value as JSON without NUL, which PostgreSQL refuses."""
    found = _encode(value)
    return _NUL.sub(r"\1\\ufffd", found) if "\\u0000" in found else found


@lru_cache(maxsize=64)
def numbered(statement: str) -> bytes:
    """Return a statement with $1, $2 and so on for its values, in libpq's form."""
    first, *rest = statement.split("%s")
    return (first + "".join(f"${n}{part}" for n, part in enumerate(rest, 1))).encode()


def _encoded(values: Sequence[Any]) -> list[bytes]:
    """Return values as libpq sends them: texts, whole numbers, and arrays of either."""
    return [
        each.encode() if type(each) is str else b"%d" % each if type(each) is int else _array(each)
        for each in values
    ]


def _array(values: Sequence[Any]) -> bytes:
    if values and isinstance(values[0], str):
        text = '","'.join([each.replace("\\", "\\\\").replace('"', '\\"') for each in values])
        return f'{{"{text}"}}'.encode()
    return f"{{{','.join(map(str, values))}}}".encode()


def integers(array: bytes | None) -> list[int]:
    """Return the numbers of an array such as {1,2}."""
    inner = (array or b"{}")[1:-1]
    return list(map(int, inner.split(b","))) if inner else []
