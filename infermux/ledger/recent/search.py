"""Finds calls, newest first and page by page; one page reads at most SCANNED calls."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from ...errors import shown
from ...protocol import must_be
from .. import CallRow, Record, queries
from ..periods import MAX_INTEGER
from ..sql import Ledger
from ..stores import Ask

SCANNED = 20_000  # calls that one search reads
MAX_FOUND = 200  # calls on a page
MAX_TEXT = 200  # characters of a search
_STATUS = re.compile(r"[1-5]\d\d", re.ASCII)
_PLACE = re.compile(r"(\d{1,19})-(.{0,200})", re.ASCII)
_LAST = "SELECT at_ns FROM calls WHERE (at_ns, id) < (?, ?) ORDER BY at_ns DESC, id DESC"
_ALL = (
    *("c.id", "c.trace_id", "c.caller", "c.api", "c.requested", "c.model", "c.served"),
    *("c.provider", "c.provider || '/' || c.served", "c.status", "c.error_code", "c.end_user"),
)
_ATTEMPT = """EXISTS (SELECT 1 FROM attempts AS a
    WHERE a.at_ns = c.at_ns AND a.call_id = c.id AND ({}))"""
_TRIED = f"c.attempts > 1 AND {_ATTEMPT}"
_LIKE = "lower({}) LIKE ? ESCAPE '!'"
_LOWER = {code: code + 32 for code in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"}  # as databases
_TRIED_TEXT = ("a.provider || '/' || a.model", "a.error_code", "a.upstream_request_id")

Place = tuple[int, str]  # the start and id of a call


class Search(NamedTuple):
    """Which calls: all that is given must fit; *text* may be anywhere in what a call shows."""

    text: str = ""
    status: str = ""  # ok, error, an HTTP status or a class such as 4xx
    model: str = ""  # the requested, tried or served one
    provider: str = ""
    caller: str | None = None
    error: str = ""  # the code of the call or of an attempt
    before: Place = (MAX_INTEGER, "")
    limit: int = 50


class Page(NamedTuple):
    """The calls of a page, and where the next one begins; None: there are no more calls."""

    records: list[Record]
    next: Place | None
    searched: int | None  # the search went back to this time (ns); None: to the last call

    @property
    def cursor(self) -> str | None:
        """The place of the next page, as `place` reads it."""
        return None if self.next is None else f"{self.next[0]}-{self.next[1]}"


def checked_status(text: str) -> str:
    """Return a status to search for; raise RequestError for one that no call can have."""
    if text in ("", "ok", "error", *queries.CLASSES) or _STATUS.fullmatch(text):
        return text
    raise must_be("status", f'"ok", "error", a class such as "4xx" or a status, not {shown(text)}')


def place(text: str) -> Place:
    """Return the place that a page's cursor names; raise RequestError if it is none."""
    found = _PLACE.fullmatch(text)
    if not found or int(found[1]) > MAX_INTEGER:
        raise must_be("before", f"the `next` of an earlier page, not {shown(text)}")
    return int(found[1]), queries.bindable(found[2])


def find(ledger: Ledger, search: Search) -> Page:
    """Return the newest calls that fit and are older than *search.before*."""
    return ledger.snapshot(lambda ask: _find(ledger, ask, search))


def _find(ledger: Ledger, ask: Ask, search: Search) -> Page:
    end = ask(f"{_LAST} LIMIT 1 OFFSET {SCANNED - 1}", search.before)
    first = end[0][0] if end else 0
    where = queries.Where(first, None, search.caller)
    where.add("(c.at_ns, c.id) < (?, ?)", *search.before)
    _choose(where.add, search)
    limit = max(1, min(search.limit, MAX_FOUND))
    rows = ask(f"{queries.CALL}{where}{queries.NEWEST}", (*where.values, limit + 1))
    found = list(ledger.with_attempts(ask, [CallRow._make(row) for row in rows[:limit]]))
    if len(rows) > limit:
        last = found[-1].call
        return Page(found, (last.at_ns, last.id), last.at_ns)
    return Page(found, (first, "") if end else None, first if end else None)


def _choose(add: Callable[..., None], search: Search) -> None:
    if search.status:
        add(*queries.of_status(search.status))
    if name := search.model:
        tried = _TRIED.format("a.model = ? OR a.served = ?")
        add(f"? IN (c.requested, c.model, c.served) OR {tried}", name, name, name)
    if name := search.provider:
        add(f"c.provider = ? OR {_TRIED.format('a.provider = ?')}", name, name)
    if code := search.error:
        add(f"c.error_code = ? OR {_ATTEMPT.format('a.error_code = ?')}", code, code)
    for word in search.text[:MAX_TEXT].split():
        tag = json.dumps(small := word.translate(_LOWER))[1:-1]  # as tags are stored
        also = " OR ".join(map(_LIKE.format, _TRIED_TEXT))
        fits = " OR ".join([*map(_LIKE.format, _ALL), _TRIED.format(also)])
        likes = [small] * fits.count("?") + [tag, tag.replace("=", '": "', 1)]
        tags = _LIKE.format("c.tags")
        add(f"{fits} OR {tags} OR {tags}", *map(_like, likes))


def _like(word: str) -> str:
    return "%" + re.sub("([!%_])", r"!\1", word) + "%"
