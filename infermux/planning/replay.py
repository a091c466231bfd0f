"""A plan as text, and the decision derived again from it: what it was made of is kept beside what
came out.

The text is one line that is the same for every call through the same route, and a second one with
what was different this time: the seed and the state, so far as they bear on the order, and what was
not tried.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from ..types import JSON, Route, Target
from . import Plan, Snapshot, plan
from .strategies import State

LONGEST_NAME = 200  # characters of a name that a plan is kept for: the ledger cuts longer ones
_BEARS_ON = {
    "weighted": ("weights",),
    "round_robin": ("cursor",),
    "least_latency": ("latency", "in_flight"),
    "cheapest": ("cost",),
}
_DRAWS = {"weighted", "least_latency"}
_PRIORITY = frozenset({"priority"})
_ENCODE = json.JSONEncoder(
    separators=(",", ":")
).encode  # ASCII: whatever a caller calls a model can be stored


class Replay(NamedTuple):
    """A decision as it was kept, and as it comes out now."""

    kept: Plan
    plan: Plan

    @property
    def differences(self) -> dict[str, tuple[object, object]]:
        """What is not the same, each as it was kept and as it is now; empty: the decisions are
        identical.
        """
        then, now = outcome(self.kept), outcome(self.plan)
        return {name: (then[name], now[name]) for name in then if then[name] != now[name]}


def kept(plan: Plan | None) -> str:
    """Return what a ledger keeps of a plan; nothing of one whose inputs are not known, or whose
    name is too long.
    """
    if plan is None or plan.route is None or len(plan.model) > LONGEST_NAME:
        return ""
    text, strategies = _of_route(plan.route)
    if strategies == _PRIORITY and not plan.dropped:
        return text
    second = outcome(plan) | {"snapshot": _snapshot(plan.snapshot or Snapshot(), strategies)}
    if strategies & _DRAWS:
        second["seed"] = plan.seed
    return (
        text
        + "\n"
        + _ENCODE(
            {
                name: value
                for name, value in second.items()
                if value or name in ("targets", "retry_in")
            }
        )
    )


def replayed(text: str) -> Replay:
    """Return the decision that *text* keeps, and the one that its inputs lead to now; raise
    ValueError for another text.
    """
    try:
        first, _, second = text.partition("\n")
        data = json.loads(first) | (json.loads(second) if second else {})
        route, seed, known = _route(data["route"]), data.get("seed", 0), data.get("snapshot", {})
        snapshot = Snapshot(
            State.from_dict(known.get("state", {})),
            _by_target(known.get("unfit", {})),
            {
                target: (why, math.inf if wait is None else wait)
                for target, (why, wait) in _by_target(known.get("shut", {})).items()
            },
        )
        then = Plan(
            route.name,
            route.strategy,
            tuple(map(Target.of, data["targets"])),
            _by_target(data.get("dropped", {})),
            data.get("forced", False),
            seed,
            data.get("retry_in"),
            route,
            snapshot,
        )
        return Replay(then, plan(route, snapshot, seed))
    except (LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is not a plan: {type(error).__name__}") from None


def outcome(plan: Plan) -> JSON:
    """Return what was decided, as JSON."""
    return {
        "targets": [*map(str, plan.targets)],
        "dropped": _named(plan.dropped),
        "forced": plan.forced,
        "retry_in": plan.retry_in,
    }


@lru_cache(maxsize=1024)
def _of_route(route: Route) -> tuple[str, frozenset[str]]:
    """Return the line that all calls through a route have in common, and the strategies that order
    it.
    """
    usual = plan(route, Snapshot(), 0)
    return _ENCODE({"route": _from_route(route), "targets": [*map(str, usual.targets)]}), frozenset(
        _used(route)
    )


def _used(route: Route) -> Iterator[str]:
    yield route.strategy
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from _used(entry)


def _snapshot(known: Snapshot, strategies: frozenset[str]) -> JSON:
    """Return what was known, so far as it bears on the plan."""
    state = {
        name: value if name == "cursor" else _named(value)
        for each in strategies
        for name in _BEARS_ON.get(each, ())
        if (value := getattr(known.state, name))
    }
    data = {
        "state": state,
        "unfit": _named(known.unfit),
        "shut": {
            str(target): (why, None if wait == math.inf else wait)
            for target, (why, wait) in known.shut.items()
        },
    }
    return {name: value for name, value in data.items() if value}


def _from_route(route: Route) -> JSON:
    data = {
        "name": route.name,
        "entries": [*map(_from_entry, route.entries)],
        "strategy": route.strategy,
        "then": [*map(_from_entry, route.then)],
        "weights": route.weights,
        "on_unsupported": route.on_unsupported,
    }
    return {name: value for name, value in data.items() if value or name in ("name", "entries")}


def _from_entry(entry: Target | Route) -> JSON | str:
    return _from_route(entry) if isinstance(entry, Route) else str(entry)


def _route(data: Mapping[str, Any]) -> Route:
    return Route(
        data["name"],
        tuple(map(_entry, data["entries"])),
        data.get("strategy", "priority"),
        tuple(map(_entry, data.get("then", ()))),
        tuple(data.get("weights", ())),
        data.get("on_unsupported", ""),
    )


def _entry(data: Mapping[str, Any] | str) -> Target | Route:
    return Target.of(data) if isinstance(data, str) else _route(data)


def _named(table: Mapping[Target, Any]) -> JSON:
    return {f"{target[0]}/{target[1]}": value for target, value in table.items()}


def _by_target(table: Mapping[str, Any]) -> dict[Target, Any]:
    return {Target.of(name): value for name, value in table.items()}
