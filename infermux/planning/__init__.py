"""Planning: pure decisions about a call, and the one record of it.

`plan` orders the targets of a route by its strategy and leaves out those that cannot be called.
Serving executes the plan, `explain` prints it, and `replayed` derives it again from the text that a
ledger keeps (`kept`): one line that is the same for every call through a route, and a second one
with the seed, the state and what was left out, where they mattered.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple

from ..types import FALLBACK_ON, JSON, Route, Target
from .strategies import STRATEGIES, State

MAX_NAME = 200  # characters of a name whose plans are kept: the ledger cuts longer ones
# what a strategy looks at, and which strategies draw at random
_READS = {
    "weighted": ("weights",),
    "round_robin": ("cursor",),
    "least_latency": ("latency", "in_flight"),
    "cheapest": ("cost",),
}
_DRAWS = {"weighted", "least_latency"}
_PRIORITY = frozenset({"priority"})
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: any model name can be stored
_UNUSED = random.Random(0)  # where no strategy draws; seeding one costs more than planning


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the targets at one moment."""

    state: State = State()
    unfit: Mapping[Target, str] = field(default_factory=dict)  # cannot serve the request, and why
    refused: Mapping[Target, tuple[str, float]] = field(default_factory=dict)  # why, for how long
    partial: Collection[Target] = ()  # would leave out a preference: tried after the others


@dataclass(frozen=True, slots=True)
class Plan:
    """The targets a call will try, in order, and those it will not, with the reasons.

    Plans are equal if they decide the same. With *route*, *snapshot* and *seed* a plan can be
    derived again.
    """

    model: str
    strategy: str
    targets: tuple[Target, ...]
    dropped: Mapping[Target, str] = field(default_factory=dict)
    forced: bool = False  # every target was refused: they are tried all the same
    seed: int = field(default=0, compare=False)
    retry_in: float | None = None  # seconds until a refused target may be called again
    route: Route | None = field(default=None, compare=False)
    snapshot: Snapshot | None = field(default=None, compare=False)


def plan(route: Route, snapshot: Snapshot, seed: int) -> Plan:
    """Return which targets to try, in order, and which not.

    Where every target is refused, they are tried all the same, the least bad one first: a circuit
    breaker must not make a vendor less available than it is.
    """
    draws = takes_turns(route)
    if not (draws or snapshot.unfit or snapshot.refused or snapshot.partial):
        return _in_order(route)
    rng = random.Random(seed) if draws else _UNUSED
    ordered = list(dict.fromkeys(_ordered(route, snapshot, snapshot.state, rng)))
    fit = [target for target in ordered if target not in snapshot.unfit]
    waits = {target: snapshot.refused[target][1] for target in fit if target in snapshot.refused}
    targets = [target for target in fit if target not in waits]
    forced = not targets and bool(fit)
    if forced:
        targets = sorted(waits, key=waits.__getitem__)
    targets.sort(key=snapshot.partial.__contains__)
    wait = min(waits.values(), default=math.inf)
    return Plan(
        route.name,
        route.strategy,
        tuple(targets),
        {
            target: snapshot.unfit.get(target) or snapshot.refused[target][0]
            for target in ordered
            if target not in targets
        },
        forced,
        seed,
        None if wait == math.inf else wait,
        route,
        snapshot,
    )


@lru_cache(maxsize=1024)
def _in_order(route: Route) -> Plan:
    """Return the plan where every target can be called and the order is always the same."""
    ordered = dict.fromkeys(_ordered(route, Snapshot(), State(), _UNUSED))
    return Plan(route.name, route.strategy, tuple(ordered), route=route, snapshot=Snapshot())


def _ordered(route: Route, snapshot: Snapshot, state: State, rng: random.Random) -> list[Target]:
    """Return the targets of a route: its strategy orders the entries, each with its own targets.

    An entry is judged by its first target that can be called. A round-robin name inside another
    moves on when the outer one has been round.
    """

    def inside(entry: Target | Route, state: State) -> list[Target]:
        return _ordered(entry, snapshot, state, rng) if isinstance(entry, Route) else [entry]

    inner = state
    if route.strategy == "round_robin":
        inner = replace(state, cursor=state.cursor // max(1, len(route.entries)))
    groups = [group for entry in route.entries if (group := inside(entry, inner))]
    by_head: dict[Target, list[Target]] = {}
    weights: dict[Target, float] = {}
    for number, group in enumerate(groups):
        callable_ = (t for t in group if t not in snapshot.unfit and t not in snapshot.refused)
        head = next(callable_, group[0])
        by_head.setdefault(head, []).extend(group)
        weights[head] = weights.get(head, 0.0) + (route.weights[number] if route.weights else 1.0)
    if route.weights:
        state = replace(state, weights=weights)
    heads = STRATEGIES[route.strategy](list(by_head), state, rng)
    fallback = [target for entry in route.then for target in inside(entry, state)]
    return [target for head in heads for target in by_head[head]] + fallback


@lru_cache(maxsize=1024)
def takes_turns(route: Route) -> bool:
    """Return whether the order of the targets depends on more than the route."""
    return route.strategy != "priority" or any(
        takes_turns(entry) for entry in (*route.entries, *route.then) if isinstance(entry, Route)
    )


# -- plans as text --


class Replay(NamedTuple):
    """A decision as it was kept, and as it comes out now."""

    kept: Plan
    plan: Plan

    @property
    def differences(self) -> dict[str, tuple[object, object]]:
        """What differs, each as it was kept and as it is now; empty where nothing does."""
        then, now = outcome(self.kept), outcome(self.plan)
        return {name: (then[name], now[name]) for name in then if then[name] != now[name]}


def kept(plan: Plan | None) -> str:
    """Return the text of a plan, or "" where its inputs are unknown or its name is too long."""
    if plan is None or plan.route is None or len(plan.model) > MAX_NAME:
        return ""
    first, strategies = _first_line(plan.route)
    partial = plan.snapshot is not None and plan.snapshot.partial
    if strategies == _PRIORITY and not plan.dropped and not plan.forced and not partial:
        return first
    data = outcome(plan) | {"snapshot": _snapshot(plan.snapshot or Snapshot(), strategies)}
    if strategies & _DRAWS:
        data["seed"] = plan.seed
    always = ("targets", "retry_in")
    second = {name: value for name, value in data.items() if value or name in always}
    return f"{first}\n{_ENCODE(second)}"


def replayed(text: str) -> Replay:
    """Return the decision in *text*, and the one that its inputs lead to now; raise ValueError."""
    try:
        first, _, second = text.partition("\n")
        data = json.loads(first) | (json.loads(second) if second else {})
        route, seed, known = _route(data["route"]), data.get("seed", 0), data.get("snapshot", {})
        refused = {
            target: (why, math.inf if wait is None else wait)
            for target, (why, wait) in _by_target(known.get("shut", {})).items()
        }
        state = State.from_dict(known.get("state", {}))
        partial = tuple(map(Target.of, known.get("partial", ())))
        snapshot = Snapshot(state, _by_target(known.get("unfit", {})), refused, partial)
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
    """Return what a plan decided, as JSON."""
    return {
        "targets": [*map(str, plan.targets)],
        "dropped": _by_name(plan.dropped),
        "forced": plan.forced,
        "retry_in": plan.retry_in,
    }


@lru_cache(maxsize=1024)
def _first_line(route: Route) -> tuple[str, frozenset[str]]:
    """Return the line that all calls through a route share, and the strategies in the route."""
    targets = [*map(str, plan(route, Snapshot(), 0).targets)]
    text = _ENCODE({"route": _route_json(route), "targets": targets})
    return text, frozenset(_strategies(route))


def _strategies(route: Route) -> Iterator[str]:
    yield route.strategy
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from _strategies(entry)


def _snapshot(known: Snapshot, strategies: frozenset[str]) -> JSON:
    """Return the part of a snapshot that bears on the plan."""
    state = {
        name: value if name == "cursor" else _by_name(value)
        for each in strategies
        for name in _READS.get(each, ())
        if (value := getattr(known.state, name))
    }
    shut = {
        str(target): (why, None if wait == math.inf else wait)
        for target, (why, wait) in known.refused.items()
    }
    partial = [*map(str, known.partial)]
    data = {"state": state, "unfit": _by_name(known.unfit), "shut": shut, "partial": partial}
    return {name: value for name, value in data.items() if value}


def _route_json(route: Route) -> JSON:
    data = {
        "name": route.name,
        "entries": [*map(_entry_json, route.entries)],
        "strategy": route.strategy,
        "then": [*map(_entry_json, route.then)],
        "weights": route.weights,
        "on_unsupported": route.on_unsupported,
        "fallback_on": () if route.fallback_on == FALLBACK_ON else route.fallback_on,
    }
    return {name: value for name, value in data.items() if value or name in ("name", "entries")}


def _entry_json(entry: Target | Route) -> JSON | str:
    return _route_json(entry) if isinstance(entry, Route) else str(entry)


def _route(data: Mapping[str, Any]) -> Route:
    return Route(
        data["name"],
        tuple(map(_entry, data["entries"])),
        data.get("strategy", "priority"),
        tuple(map(_entry, data.get("then", ()))),
        tuple(data.get("weights", ())),
        data.get("on_unsupported", ""),
        tuple(data.get("fallback_on", FALLBACK_ON)),
    )


def _entry(data: Mapping[str, Any] | str) -> Target | Route:
    return Target.of(data) if isinstance(data, str) else _route(data)


def _by_name(table: Mapping[Target, Any]) -> JSON:
    return {f"{target[0]}/{target[1]}": value for target, value in table.items()}


def _by_target(table: Mapping[str, Any]) -> dict[Target, Any]:
    return {Target.of(name): value for name, value in table.items()}
