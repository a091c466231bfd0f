"""Tables for a terminal and for a spreadsheet; names come from outside, and neither may take them
for more than names.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Sequence

_BAR = 24  # characters of the longest bar
_FORMULA = ("=", "+", "-", "@")
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


def printable(text: str) -> str:
    """Return *text* with what moves a cursor or turns the direction of writing escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Return aligned columns; those numbered in *right* end flush."""
    lines = [[printable(cell) for cell in row] for row in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def json_text(value: object) -> str:
    """Return JSON in which every letter that a terminal could obey is escaped."""
    return json.dumps(value, allow_nan=False)


def csv_text(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return rows as CSV in which no text can be taken for a formula."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(
        [[_cell(value) for value in row] for row in (head, *rows)]
    )
    return out.getvalue()


def bar(part: int, whole: int) -> str:
    """Return a bar as long as *part* is of *whole*."""
    letter = "\u2588" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    return letter * (0 if whole <= 0 else max(int(part > 0), round(_BAR * part / whole)))


def _cell(value: object) -> object:
    """Return a value in one line that cannot be taken for a formula; a number may begin with its
    sign.
    """
    if not isinstance(value, str):
        return value
    text = printable(value)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text
