"""The meaning of each error code for an operator, and the remedy, from `infermux help errors`."""

from __future__ import annotations

import re
from functools import cache
from http import HTTPStatus
from importlib import resources
from typing import NamedTuple


class Meaning(NamedTuple):
    what: str
    remedy: str


_ROW = re.compile(r"^\| `(\w+)` \| (.+) \| (.+) \|$", re.MULTILINE)
_UNKNOWN = Meaning("Not a code of this version.", "`infermux help errors` lists the codes.")


@cache
def meanings() -> dict[str, Meaning]:
    page = resources.files("infermux").joinpath("help/errors.md").read_text("utf-8")
    return {code: Meaning(*texts) for code, *texts in _ROW.findall(page)}


def meaning(code: str) -> Meaning:
    """Return the meaning of *code*, also of an unknown one."""
    return meanings().get(code, _UNKNOWN)


def phrase(status: int | None) -> str:
    """Return an HTTP status with its words: 503 Service Unavailable; "" for None."""
    if status is None:
        return ""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Site is overloaded" if status == 529 else str(status)
