"""The data of the status page: GET /status/overview returns it, GET /calls searches the calls."""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from flask import Response, request

from ... import __version__
from ...errors import ModelNotFound, NotFound, close_to, printable, shown
from ...ledger import LedgerUnavailable, Record, Total, reports, summed
from ...ledger.recent import activity, search
from ...ledger.recent.activity import OTHERS, Activity, Step
from ...ledger.recent.search import Search
from ...ledger.reports import figures, iso, kind, money
from ...ledger.sql import Ledger
from ...planning import Plan, replayed
from ...planning.registry import flat
from ...protocol import must_be
from ...routing.router import Router
from ...server import status
from ...server.status import TargetStatus
from ...types import JSON, Target
from ..http import json_response, query_of
from .sentence import Sentence, meaning, sentence

PARAMETERS = ("q", "status", "model", "provider", "caller", "error", "before", "limit")
CALLS = 50  # of a page of calls, by default
MAX_ROWS = 12  # rows of a table; the others are added up in one more
_filling: weakref.WeakSet[Any] = weakref.WeakSet()  # ledgers for which a thread sums up steps
_lock = threading.Lock()


class Span(NamedTuple):
    """The period of the page and its steps, in seconds."""

    name: str
    seconds: int
    step: int

    def since(self, now: float) -> int:
        """Return the start of the first step; the last one contains *now*."""
        return int(now) // self.step * self.step + self.step - self.seconds


SPANS = {
    span.name: span
    for span in (Span("1h", 3_600, 300), Span("24h", 86_400, 3_600), Span("7d", 604_800, 10_800))
}


def span_of(text: str) -> Span:
    """Return the span called *text*; raise RequestError if there is none."""
    if text and text not in SPANS:
        hint = close_to(text, SPANS)
        raise must_be("span", f'"1h", "24h" or "7d", not {shown(text)}{hint}')
    return SPANS[text or "24h"]


class Overview(NamedTuple):
    """All data but the calls; `activity` and `whole` are None without a ledger."""

    now: float
    span: Span
    sentence: Sentence
    ledger: str  # "ok", "none" or "unavailable"
    targets: list[JSON]  # down ones, then the most used
    budgets: list[JSON]
    service: JSON
    activity: Activity | None
    whole: Step | None

    @property
    def steps(self) -> list[Step]:
        return self.activity.steps if self.activity is not None else []

    @property
    def costs(self) -> dict[str, list[Total]]:
        if self.whole is None:
            return {}
        return {
            "model": activity.grouped(self.whole.targets, 0, 1),
            "key": list(self.whole.callers),
            "tag": [total for total in self.whole.tags if total.key != ("",)],
        }

    @property
    def errors(self) -> list[JSON]:
        whole = self.whole or Step(0)
        by_call = Counter({total.key[0]: total.calls for total in whole.errors})
        by_attempt = Counter({t.key[0]: t.attempts for t in activity.grouped(whole.targets, 2)})
        codes = {*by_call, *by_attempt} - {"", OTHERS}
        return [
            {
                "code": code,
                "calls": by_call[code],
                "attempts": by_attempt[code],
                "meaning": meaning(code).what,
                "remedy": meaning(code).remedy,
            }
            for code in sorted(codes, key=lambda code: (-by_call[code], -by_attempt[code], code))
        ]

    def to_dict(self) -> JSON:
        """Return the body of GET /status/overview."""
        seen, whole = self.activity, self.whole
        return {
            "time": iso(int(self.now)),
            "span": self.span.name,
            "since": iso(self.span.since(self.now)),
            "step_seconds": self.span.step,
            "level": self.sentence.level,
            "sentence": self.sentence.text,
            "ledger": self.ledger,
            "sums": seen and whole and sums(whole) | {"unfinished_steps": seen.unfinished},
            "budgets": self.budgets,
            "targets": self.targets,
            "steps": [{"start": iso(step.start)} | sums(step) for step in self.steps],
            "costs": {name: _table(rows) for name, rows in self.costs.items()},
            "errors": self.errors,
            "service": self.service,
        }


def overview(router: Router, span: Span, now: float, service: Mapping[str, str]) -> Overview:
    """Return the overview of the service over *span*; *service* describes its configuration."""
    found, ledger = status.targets(router), router.ledger
    state, seen, budgets = "ok" if ledger is not None else "none", None, []
    if ledger is not None:
        try:
            budgets = [_budget(each) for each in status.budgets(router)]
            seen = recent(ledger, span, now)
        except LedgerUnavailable:
            state = "unavailable"
    whole = None if seen is None else activity.merged(span.since(now), seen.steps)
    detours = {each.target: detour(router, each.target, found) for each in found if down(each)}
    told = sentence(found, detours, state, budgets, whole, span.name)
    targets = [_target_dict(each, seen, detours.get(each.target)) for each in found]
    targets.sort(key=lambda each: (not each["down"], -sum(each.get("attempts", ()))))
    about = status.service(router) | {"version": __version__, "configuration": dict(service)}
    return Overview(now, span, told, state, targets, budgets, about, seen, whole)


def recent(ledger: Ledger, span: Span, now: float) -> Activity:
    until = int(now) + 1
    found = activity.report(ledger, span.since(now), until, span.step, now)
    if found.unfinished:
        _fill(ledger, now)
    return found


def _fill(ledger: Any, now: float) -> None:
    """Sum up the remaining steps in a thread, one for each ledger."""

    def work() -> None:
        try:
            with suppress(LedgerUnavailable):
                activity.keep_up(ledger, now)
        finally:
            _filling.discard(ledger)

    with _lock:
        if ledger not in _filling:
            _filling.add(ledger)
            threading.Thread(target=work, name="infermux-activity", daemon=True).start()


# -- targets --


def down(target: TargetStatus) -> bool:
    return target.state != "closed" or target.reason is not None


def detour(router: Router, target: Target, states: Sequence[TargetStatus]) -> JSON:
    """Return the targets that get a target's calls instead, and the names that have none left."""
    registry = router.registry
    routes = {name: list(flat(registry.route(name))) for name in registry.names}
    routes = {name: route for name, route in routes.items() if target in route}
    if not routes:
        with suppress(ModelNotFound):
            routes = {target.model: list(flat(registry.route(target.model)))}
    refusing = {each.target for each in states if down(each)}
    found = {
        name: next((str(each) for each in route if each not in refusing), "")
        for name, route in routes.items()
    }
    stranded = [name for name, usable in found.items() if not usable]
    return {"to": [*dict.fromkeys(filter(None, found.values()))], "stranded": stranded}


def _target_dict(target: TargetStatus, seen: Activity | None, instead: JSON | None) -> JSON:
    told = target._asdict() | {"since": iso(target.since), "down": instead is not None}
    told["instead"] = instead
    if seen is not None:
        mine = [
            [total for total in step.targets if total.key[:2] == target.target]
            for step in seen.steps
        ]
        told["attempts"] = [sum(total.attempts for total in step) for step in mine]
        told["failed"] = [sum(each.attempts for each in step if each.key[2]) for step in mine]
    return told


# -- sums --


def sums(step: Step) -> JSON:
    """Return the figures of a step, or of all steps, for the tiles and charts."""
    latency = {f"p{n}_ms": activity.percentile(step.latency, n) for n in (50, 95)}
    return figures(step.total) | {"failovers": step.failovers} | latency


def top(totals: Sequence[Total]) -> tuple[Sequence[Total], int, Total]:
    """Return the first rows, how many more there are, and their sum."""
    named = [total for total in totals if OTHERS not in total.key]
    rest = [*named[MAX_ROWS:], *[total for total in totals if OTHERS in total.key]]
    return named[:MAX_ROWS], len(rest), summed(rest)


def _table(totals: Sequence[Total]) -> JSON:
    rows, more, rest = top(totals)
    return {
        "rows": [{"name": "/".join(filter(None, row.key))} | figures(row) for row in rows],
        "more": more,
        "rest": figures(rest),
    }


def _budget(state: Any) -> JSON:
    used, budget = state.spent + state.held, state.budget
    return {
        "name": printable(budget.caller),
        "kind": kind(budget),
        "per": budget.period,
        "then": budget.then,
        **money(state),
        "used": round(used / state.limit, 4) if state.limit else 1.0,
        "resets": iso(state.resets),
    }


# -- calls --


def search_of(given: Mapping[str, str]) -> Search:
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
        limit=min(reports.limited(given.get("limit"), CALLS), search.MAX_FOUND),
    )
    return found._replace(before=search.place(before)) if before else found


def calls(ledger: Ledger) -> Response:
    """Return the newest calls that fit, and where the next page begins."""
    query_of(*PARAMETERS)
    page = search.find(ledger, search_of(request.args))
    return json_response(
        {
            "calls": [reports.call_dict(record) for record in page.records],
            "next": page.cursor,
            "searched_to": None if page.searched is None else iso(page.searched / 1e9),
        }
    )


def call(ledger: Ledger, id: str) -> Response:
    """Return the call whose id begins with *id*: its attempts, its plan, what its error means."""
    record = ledger.call(id)
    if record is None:
        raise NotFound(f"no call has the id {shown(id)}")
    found, code = plan_of(record), record.call.error_code
    plan = found and {
        "strategy": found.strategy,
        "forced": found.forced,
        "targets": [str(target) for target in found.targets],
        "left_out": {str(target): reason for target, reason in found.dropped.items()},
    }
    more = {"plan": plan, "meaning": meaning(code)._asdict() if code else None}
    return json_response(reports.call_dict(record) | more)


def plan_of(record: Record) -> Plan | None:
    """Return the plan recorded with a call, or None if another version wrote it."""
    text = record.call.plan
    try:
        return replayed(text).kept if text else None
    except ValueError:
        return None
