"""The recorded calls: GET /calls searches them, GET /calls/ID shows one with its plan."""

from __future__ import annotations

from collections.abc import Mapping

from flask import Response, request

from ...errors import NotFound, shown
from ...ledger import Record, reports
from ...ledger.recent import search
from ...ledger.recent.search import Search
from ...ledger.reports import iso
from ...ledger.sql import Ledger
from ...planning import Plan, replayed
from ...protocol import must_be
from ...types import JSON
from ..http import json_response, query_of
from .sentence import meaning

LIMIT = 50
PARAMETERS = ("q", "status", "model", "provider", "caller", "error", "before", "limit")


def query(given: Mapping[str, str]) -> Search:
    """Return the search that URL parameters describe; raise RequestError naming the wrong one."""
    text = given.get("q", "")
    if len(text) > search.MAX_TEXT:
        raise must_be("q", f"at most {search.MAX_TEXT} characters long")
    before = given.get("before")
    found = Search(
        text,
        search.checked_status(given.get("status", "")),
        given.get("model", ""),
        given.get("provider", ""),
        given.get("caller") or None,
        given.get("error", ""),
        limit=min(reports.limited(given.get("limit"), LIMIT), search.MAX_FOUND),
    )
    return found._replace(before=search.place(before)) if before else found


def listed(ledger: Ledger) -> Response:
    """Return the newest calls that fit, and where the next page begins."""
    query_of(*PARAMETERS)
    page = search.find(ledger, query(request.args))
    return json_response(
        {
            "calls": [reports.call_dict(record) for record in page.records],
            "next": page.cursor,
            "searched_to": None if page.searched is None else iso(page.searched / 1e9),
        }
    )


def one(ledger: Ledger, id: str) -> Response:
    """Return the call whose id begins with *id*: its attempts, its plan, what its error means."""
    record = ledger.call(id)
    if record is None:
        raise NotFound(f"no call has the id {shown(id)}")
    return json_response(reports.call_dict(record) | about(record))


def about(record: Record) -> JSON:
    """Return the plan of a call with the targets that it left out, and the meaning of its error."""
    found, code = plan(record), record.call.error_code
    told = found and {
        "strategy": found.strategy,
        "forced": found.forced,
        "targets": [str(target) for target in found.targets],
        "left_out": {str(target): reason for target, reason in found.dropped.items()},
    }
    return {"plan": told, "meaning": meaning(code)._asdict() if code else None}


def plan(record: Record) -> Plan | None:
    """Return the plan recorded with a call, or None if another version wrote it."""
    text = record.call.plan
    try:
        return replayed(text).kept if text else None
    except ValueError:
        return None
