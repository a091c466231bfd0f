"""Planning: decides which targets a call tries, and in what order; `call` records the call.

`plan` orders the targets of a route by its strategy and leaves out those that cannot be called; it
depends on its arguments alone. The router executes the plan, `explain` prints it. The ledger keeps
it as text (`kept`), from which `replayed` derives it again: a line shared by all calls of a route
and, if they mattered, one with the seed, the state and the omitted targets.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from statistics import median
from typing import Any, NamedTuple

from ..types import FALLBACK_ON, JSON, Route, Target

MAX_NAME = 200  # characters; plans of longer names are not kept, as the ledger cuts these
STICKY = "sticky"
# the fields of a State that each strategy reads, and the strategies that draw at random
_READS = {
    "weighted": ("weights",),
    "round_robin": ("cursor",),
    "least_latency": ("latency", "in_flight"),
    "cheapest": ("cost",),
    STICKY: ("weights", "session"),
}
_DRAWS = {"weighted", "least_latency"}
_TABLES = ("weights", "latency", "in_flight", "cost")  # of a State, by target
_PRIORITY = frozenset({"priority"})
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode  # ASCII: any model name can be stored
_UNUSED = random.Random(0)  # if no strategy draws; seeding one costs more than planning


@dataclass(frozen=True, slots=True)
class State:
    """What strategies know of the targets at one moment.

    A missing weight is 1. Latencies are seconds to the first content, costs estimates for this call
    in pico-USD. The cursor is the number of earlier calls of the name.
    """

    weights: Mapping[Target, float] = field(default_factory=dict)
    cursor: int = 0
    latency: Mapping[Target, float | None] = field(default_factory=dict)
    in_flight: Mapping[Target, int] = field(default_factory=dict)
    cost: Mapping[Target, int | None] = field(default_factory=dict)
    session: str = ""  # the digest of the call's session, if a strategy reads it


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a plan knows of the targets at one moment."""

    state: State = State()
    unfit: Mapping[Target, str] = field(default_factory=dict)  # why it cannot serve the request
    refused: Mapping[Target, tuple[str, float]] = field(default_factory=dict)  # reason, seconds
    # would leave out a preference, or the vendor's limit is used up: tried after the others
    partial: Collection[Target] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The targets that a call will try, in order, and those that it will not, with the reasons.

    A plan can be derived again from `route`, `snapshot` and `seed`, which equality ignores.
    """

    model: str
    strategy: str
    targets: tuple[Target, ...]
    dropped: Mapping[Target, str] = field(default_factory=dict)
    forced: bool = False  # every target was refused: all are tried anyway
    seed: int = field(default=0, compare=False)
    retry_in: float | None = None  # seconds until a refused target may be called again
    route: Route = field(default=Route("", ()), compare=False)
    snapshot: Snapshot = field(default=Snapshot(), compare=False)


def plan(route: Route, snapshot: Snapshot, seed: int) -> Plan:
    """Return the plan: which targets to try, in order, and which not.

    If every target is refused, all are tried anyway, the shortest wait first: a circuit breaker
    must not make a vendor less available than it is.
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
    ordered = dict.fromkeys(_ordered(route, Snapshot(), State(), _UNUSED))
    return Plan(route.name, route.strategy, tuple(ordered), route=route)


def _ordered(route: Route, snapshot: Snapshot, state: State, rng: random.Random) -> list[Target]:
    """Return the targets of a route. Its strategy orders the entries; their targets stay together.

    The strategy looks only at the first target of an entry that can be called. A round-robin name
    inside another advances by one for each full round of the outer one.
    """

    def inside(entry: Target | Route, state: State) -> list[Target]:
        return _ordered(entry, snapshot, state, rng) if isinstance(entry, Route) else [entry]

    inner = state
    if route.strategy == "round_robin":
        inner = replace(state, cursor=state.cursor // max(1, len(route.entries)))
    groups = [(inside(entry, inner), entry) for entry in route.entries]
    by_head: dict[Target, list[Target]] = {}
    weights: dict[Target, float] = {}
    names: dict[Target, str] = {}  # that do not change with the head of an entry
    down = snapshot.unfit.keys() | snapshot.refused.keys()
    for number, (group, entry) in enumerate(groups):
        if not group:
            continue
        head = next((target for target in group if target not in down), group[0])
        by_head.setdefault(head, []).extend(group)
        names.setdefault(head, entry.name if isinstance(entry, Route) else str(entry))
        weights[head] = weights.get(head, 0.0) + (route.weights[number] if route.weights else 1.0)
    known = replace(state, weights=weights) if route.weights else state
    heads = STRATEGIES[route.strategy](list(by_head), known, rng)
    if route.strategy == STICKY or route.sticky:
        ranked = sticky(list(by_head), known, rng, [*names.values()])
        if route.strategy == STICKY:
            heads = ranked
        elif own := next((head for head in ranked if head not in down), None):
            heads = [own, *(head for head in heads if head != own)]
    fallback = [target for entry in route.then for target in inside(entry, state)]
    return [target for head in heads for target in by_head[head]] + fallback


@lru_cache(maxsize=1024)
def takes_turns(route: Route) -> bool:
    """Whether calls of the same route may have their targets in different orders."""
    return any(strategy != "priority" for strategy in _strategies(route))


@lru_cache(maxsize=1024)
def is_sticky(route: Route) -> bool:
    """Whether the order of the targets depends on the call's session."""
    return STICKY in _strategies(route)


# -- strategies --

Strategy = Callable[[Sequence[Target], State, random.Random], list[Target]]


def priority(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Keep the declared order."""
    return list(targets)


def weighted(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Draw without replacement in proportion to the weights; weight 0 comes last.

    Sorting by exponential variates of rate `weight` is such a draw: Efraimidis and Spirakis,
    "Weighted random sampling with a reservoir" (2006).
    """
    rates = [state.weights.get(target, 1.0) for target in targets]
    return _by([rng.expovariate(rate) if rate > 0 else math.inf for rate in rates], targets)


def round_robin(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Rotate the targets by one for each call."""
    start = state.cursor % len(targets) if targets else 0
    return [*targets[start:], *targets[:start]]


def least_latency(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Take the better of two random targets, then the others, by latency × (calls in flight + 1).

    Two choices keep many processes from sending their calls to the same target at once:
    Mitzenmacher, "The power of two choices in randomized load balancing" (2001). A target without
    samples gets the median latency of the others.
    """
    if len(targets) < 2:
        return list(targets)
    latencies = [state.latency.get(target) for target in targets]
    known = [latency for latency in latencies if latency is not None]
    usual = median(known) if known else 1.0
    scores = [
        (usual if latency is None else latency) * (state.in_flight.get(target, 0) + 1)
        for target, latency in zip(targets, latencies, strict=True)
    ]
    first = min(rng.sample(range(len(targets)), 2), key=scores.__getitem__)
    scores[first] = -1.0
    return _by(scores, targets)


def cheapest(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Sort by estimated cost; unpriced targets come last."""
    costs = [state.cost.get(target) for target in targets]
    return _by([math.inf if cost is None else cost for cost in costs], targets)


def sticky(
    targets: Sequence[Target], state: State, rng: random.Random, names: Sequence[str] = ()
) -> list[Target]:
    """Keep a session at its target, known by *names* if given; weights are shares of the sessions.

    Rendezvous hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates"
    (1998). Each session has its own order, which every process derives alike; a target that is
    down has one successor for each of its sessions, and the others stay where they are. The order
    is that of exponential variates of rate `weight`, drawn from the session and the names.
    """
    scores = []
    for target, name in zip(targets, names or map(str, targets), strict=True):
        rate = state.weights.get(target, 1.0)
        digest = blake2b(f"{state.session}\0{name}".encode(errors="replace"), digest_size=8)
        share = (int.from_bytes(digest.digest()) + 0.5) / 2**64
        scores.append(-math.log(share) / rate if rate > 0 else math.inf)
    return _by(scores, targets)


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (priority, weighted, round_robin, least_latency, cheapest, sticky)
}


def _by(scores: Sequence[float], targets: Sequence[Target]) -> list[Target]:
    return [targets[at] for at in sorted(range(len(targets)), key=scores.__getitem__)]


# -- plans as text --


class Replay(NamedTuple):
    """A plan as it was kept, and as it is derived now."""

    kept: Plan
    plan: Plan

    @property
    def differences(self) -> dict[str, tuple[object, object]]:
        """The members that differ, with the kept and the new value."""
        then, now = outcome(self.kept), outcome(self.plan)
        return {name: (then[name], now[name]) for name in then if then[name] != now[name]}


def kept(plan: Plan | None) -> str:
    """Return a plan as text, or "" if its inputs are unknown or its name is too long."""
    if plan is None or not plan.route.entries or len(plan.model) > MAX_NAME:
        return ""
    first, strategies = _first_line(plan.route)
    known = plan.snapshot
    if strategies == _PRIORITY and not plan.dropped and not plan.forced and not known.partial:
        return first
    data = outcome(plan) | {"snapshot": _snapshot(known, strategies)}
    if strategies & _DRAWS:
        data["seed"] = plan.seed
    always = ("targets", "retry_in")
    second = {name: value for name, value in data.items() if value or name in always}
    return f"{first}\n{_ENCODE(second)}"


def replayed(text: str) -> Replay:
    """Return the plan in *text*, and the one derived from its inputs now; raise ValueError."""
    try:
        first, _, second = text.partition("\n")
        data = json.loads(first) | (json.loads(second) if second else {})
        route, seed, known = _route(data["route"]), data.get("seed", 0), data.get("snapshot", {})
        refused = {
            target: (why, math.inf if wait is None else wait)
            for target, (why, wait) in _by_target(known.get("shut", {})).items()
        }
        told = known.get("state", {}).items()
        state: JSON = {
            name: _by_target(value) if name in _TABLES else value for name, value in told
        }
        partial = tuple(map(Target.of, known.get("partial", ())))
        snapshot = Snapshot(State(**state), _by_target(known.get("unfit", {})), refused, partial)
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
    targets = [*map(str, plan(route, Snapshot(), 0).targets)]
    text = _ENCODE({"route": _entry_json(route), "targets": targets})
    return text, frozenset(_strategies(route))


def _strategies(route: Route) -> Iterator[str]:
    yield route.strategy
    if route.sticky:
        yield STICKY
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from _strategies(entry)


def _snapshot(known: Snapshot, strategies: frozenset[str]) -> JSON:
    state = {
        name: _by_name(value) if name in _TABLES else value
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


def _entry_json(entry: Target | Route) -> JSON | str:
    if isinstance(entry, Target):
        return str(entry)
    data = entry._asdict()
    for name in ("entries", "then"):
        data[name] = [*map(_entry_json, data[name])]
    if entry.fallback_on == FALLBACK_ON:
        del data["fallback_on"]
    return {name: value for name, value in data.items() if value or name in ("name", "entries")}


def _route(data: Mapping[str, Any]) -> Route:
    known = {name: data[name] for name in Route._fields if name in data and name != "answers"}
    lists = {name: tuple(data[name]) for name in ("weights", "fallback_on") if name in data}
    known |= {"entries": tuple(map(_entry, data["entries"]))}
    return Route(**known | lists | {"then": tuple(map(_entry, data.get("then", ())))})


def _entry(data: Mapping[str, Any] | str) -> Target | Route:
    return Target.of(data) if isinstance(data, str) else _route(data)


def _by_name(table: Mapping[Target, Any]) -> JSON:
    return {str(target): value for target, value in table.items()}


def _by_target(table: Mapping[str, Any]) -> dict[Target, Any]:
    return {Target.of(name): value for name, value in table.items()}
