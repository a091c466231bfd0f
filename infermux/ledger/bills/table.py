"""Reads the bytes of an export as a table: CSV as spreadsheets write it, JSON, JSON lines, gzip.

A column is known by its key, its name in lower case with underscores: "Cost (USD)" is cost_usd.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

from ...errors import RequestError, shown

Record = dict[str, str]
MAX_BYTES = 1 << 30  # of an unpacked file
_GZIP = b"\x1f\x8b"
_REFUSED = (
    (b"PAR1", "is a Parquet file: export it as CSV"),
    (b"PK\x03\x04", "is a ZIP archive or an Excel workbook: unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook: save it as CSV"),
    (b"%PDF", "is a PDF: export it as CSV"),
)
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, which starts alike
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LISTS = ("data", "results", "value", "records", "rows", "items")
_PAGE = ("object", "has_more", "next_page", "first_id", "last_id", "nextlink")  # of an API's answer


class Line(NamedTuple):
    """A row of a table; a cell that the row ends before is missing."""

    place: str  # such as "line 3"
    cells: Mapping[str, str]
    problem: str = ""  # why the row cannot be read at all


class Table(NamedTuple):
    """The rows of a file, read once."""

    columns: Mapping[str, str]  # the names as written, by key
    lines: Iterator[Line]
    twice: frozenset[str]  # keys of several columns
    notes: tuple[str, ...]
    delimiter: str = ","


def read(data: bytes) -> Table:
    """Return the table in *data*; raise RequestError, also while its rows are read."""
    if data[:2] == _GZIP:
        data = _unpacked(data)
    for magic, problem in _REFUSED:
        if data.startswith(magic):
            refuse(f"the bill {problem}")
    text, notes = _text(data)
    if not text.strip():
        refuse("the bill is empty")
    return _json(text, notes) if text.lstrip()[:1] in ("{", "[") else _csv(text, notes)


def key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.strip().lower()).strip("_")


def refuse(message: str) -> NoReturn:
    raise RequestError(message, param="reconcile")


def _unpacked(data: bytes) -> bytes:
    stream, found = zlib.decompressobj(wbits=31), b""
    try:
        while data and len(found) <= MAX_BYTES:
            found += stream.decompress(data, MAX_BYTES + 1 - len(found))
            data, done = stream.unused_data, stream.eof
            if not done:
                break
            stream = zlib.decompressobj(wbits=31)  # a file may have several parts
    except zlib.error:
        refuse("the bill is a damaged gzip file")
    if len(found) > MAX_BYTES:
        refuse(f"the bill has more than {MAX_BYTES >> 20} MB when it is unpacked")
    if not done:
        refuse("the bill is a gzip file that was cut")
    return found


def _text(data: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the text, in whatever encoding a spreadsheet writes, and a note on the encoding."""
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "")
    halves = data[0:64:2], data[1:64:2]
    for half, name in zip(halves, ("utf-16-be", "utf-16-le"), strict=True):
        if not encoding and half.count(0) > 8 and half.count(0) > len(half) // 2:
            encoding = name  # UTF-16 without a mark: every second byte is 0
    notes: tuple[str, ...] = ()
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        if encoding:
            refuse(f"the bill is not text: it cannot be read as {encoding.upper()}")
        text, notes = data.decode("cp1252", "replace"), ("it is not UTF-8: read as Windows-1252",)
    if "\0" in text:
        refuse("the bill is not text: it has NUL characters")
    return text, notes


# -- CSV -------------------------------------------------------------------------------------------


def _csv(text: str, notes: tuple[str, ...]) -> Table:
    stream = io.StringIO(text, newline="")  # lines end in LF, CRLF or CR
    first, skipped = stream.readline(), 0
    if named := re.fullmatch(r'"?sep=(.)"?\s*', first, re.IGNORECASE):
        delimiter, skipped = named[1], 1
    else:
        stream.seek(0)
        delimiter = max(",;\t|", key=lambda each: len(_cells(first, each)))
    rows = _numbered(csv.reader(stream, delimiter=delimiter), skipped)
    head = next((cells for _, cells in rows if any(map(str.strip, cells))), [])
    keys = [key(name) for name in head]
    while keys and not keys[-1]:  # cells below an empty header are no column
        keys.pop()
    columns = {each: name.strip() for each, name in zip(keys, head, strict=False) if each}
    twice = frozenset(each for each in columns if keys.count(each) > 1)
    return Table(columns, _lines(rows, head, keys), twice, notes, delimiter)


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _numbered(rows: Any, skipped: int) -> Iterator[tuple[int, list[str]]]:
    while True:
        number = rows.line_num + 1 + skipped
        try:
            row = next(rows, None)
        except csv.Error as error:
            refuse(f"line {number} is not CSV: {error}")
        if row is None:
            return
        yield number, row


def _lines(
    rows: Iterable[tuple[int, list[str]]], head: list[str], keys: list[str]
) -> Iterator[Line]:
    for number, cells in rows:
        if not any(map(str.strip, cells)) or cells == head:  # repeated where files were joined
            continue
        problem = ""
        if any(map(str.strip, cells[len(keys) :])):
            problem = (
                f"it has {len(cells)} cells, but the header has {len(keys)}: numbers with "
                "separators must be in quotes"
            )
        found = {each: cell.strip() for each, cell in zip(keys, cells, strict=False) if each}
        yield Line(f"line {number}", found, problem)


# -- JSON ------------------------------------------------------------------------------------------


def _json(text: str, notes: tuple[str, ...]) -> Table:
    try:
        records = [(place, _flat(each)) for place, each in _documents(text)]
    except (ValueError, RecursionError):
        refuse("the bill looks like JSON, but is none")
    columns = {name: name for _, record in records for name in record}
    if any(record.get("has_more") == "true" for _, record in records):
        notes += ("it says has_more: it is one page of several",)
    keys = {name: key(name) for name in columns}
    empty = dict.fromkeys(keys.values(), "")  # a record may lack members: an empty day has none
    lines = [
        Line(place, empty | {keys[name]: cell.strip() for name, cell in record.items()})
        for place, record in records
    ]
    known = {keys[name]: name for name in columns if keys[name] not in _PAGE}
    if not known:  # such as the page of a time without usage
        refuse("the bill is empty")
    return Table(known, iter(lines), frozenset(), notes)


def _documents(text: str) -> Iterator[tuple[str, Any]]:
    try:
        whole = _loads(text)
    except ValueError:
        lines = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
        if len(lines) < 2:
            raise
        for number, line in lines:
            yield from ((f"line {number}", each) for each in _records(_loads(line)))
    else:
        yield from ((f"record {n}", each) for n, each in enumerate(_records(whole), 1))


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


def _records(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects in a list, page or bucket, each with the fields of what contains it."""
    if isinstance(value, list):
        for each in value:
            yield from _records(each)
        return
    if not isinstance(value, dict):
        raise ValueError(value)
    inner = next((name for name in _LISTS if isinstance(value.get(name), list | dict)), "")
    if not inner:
        yield value
        return
    around = {name: each for name, each in value.items() if name != inner}
    for found in list(_records(value[inner])) or [{}]:
        yield around | found


def _flat(record: Mapping[str, Any], prefix: str = "") -> Record:
    """Return the texts of a record; those of an inner object are called outer_inner."""
    found: Record = {}
    for name, value in record.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{name}_")
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
            found[prefix + name] = "" if value is None else text
    return found


def names(columns: Iterable[str]) -> str:
    """Return the names of columns for a message, at most ten."""
    listed = list(columns)
    more = f" and {len(listed) - 10} more" if len(listed) > 10 else ""
    return ", ".join(shown(name)[1:-1] for name in listed[:10]) + more
