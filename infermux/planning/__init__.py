"""Planning: a pure function of a route, a snapshot of what is known, and a seed. Serving executes
the plan that it returns.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from ..types import Route, Target
from .strategies import STRATEGIES, State

_UNUSED = random.Random(
    0
)  # where no strategy draws; a generator that is seeded costs more than planning


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the targets at one moment."""

    state: State = State()
    unfit: Mapping[Target, str] = field(default_factory=dict)  # cannot serve this request, and why
    shut: Mapping[Target, tuple[str, float]] = field(
        default_factory=dict
    )  # left alone for now: why, and for how many seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """Which targets a call will try, in order, and which it will not, with the reason; two are
    equal if they decide the same.
    """

    model: str
    strategy: str
    targets: tuple[Target, ...]
    dropped: Mapping[Target, str] = field(default_factory=dict)
    forced: bool = False  # every target was shut, and this is the least bad one
    seed: int = field(default=0, compare=False)
    retry_in: float | None = None  # seconds until a target that is shut may be tried again
    route: Route | None = field(
        default=None, compare=False
    )  # with the seed and this, what it was made of
    snapshot: Snapshot | None = field(default=None, compare=False)


def plan(route: Route, snapshot: Snapshot, seed: int) -> Plan:
    """Return the targets to try, in order, and those that are not tried, with the reason.

    When every target of several is shut, the least bad one is tried rather than none; one that is
    alone stays shut, so that its vendor is left in peace.
    """
    turns = takes_turns(route)
    if not turns and not snapshot.unfit and not snapshot.shut:
        return _usual(route)
    ordered = list(
        dict.fromkeys(
            _ordered(route, snapshot, snapshot.state, random.Random(seed) if turns else _UNUSED)
        )
    )
    fit = [target for target in ordered if target not in snapshot.unfit]
    targets = [target for target in fit if target not in snapshot.shut]
    forced = not targets and len(fit) > 1
    if forced:
        targets = [min(fit, key=lambda target: snapshot.shut[target][1])]
    dropped = {
        target: snapshot.unfit.get(target) or snapshot.shut[target][0]
        for target in ordered
        if target not in targets
    }
    wait = min(
        (snapshot.shut[target][1] for target in fit if target in snapshot.shut), default=None
    )
    return Plan(
        route.name,
        route.strategy,
        tuple(targets),
        dropped,
        forced,
        seed,
        None if wait is None or wait == math.inf else wait,
        route,
        snapshot,
    )


@lru_cache(maxsize=1024)
def _usual(route: Route) -> Plan:
    """Return the plan where nothing is shut, nothing unfit, and the order always the same."""
    ordered = dict.fromkeys(_ordered(route, Snapshot(), State(), _UNUSED))
    return Plan(route.name, route.strategy, tuple(ordered), route=route, snapshot=Snapshot())


def _ordered(route: Route, snapshot: Snapshot, state: State, rng: random.Random) -> list[Target]:
    """Return the targets of a route: its strategy orders the entries, each of which stands for the
    targets inside it.

    An entry is judged by the first of its targets that can be tried. Inside a name that takes
    turns, an inner one moves on when the outer one has been round.
    """
    inner = (
        replace(state, cursor=state.cursor // max(1, len(route.entries)))
        if route.strategy == "round_robin"
        else state
    )
    inside = [
        _ordered(entry, snapshot, inner, rng) if isinstance(entry, Route) else [entry]
        for entry in route.entries
    ]
    heads: dict[Target, list[Target]] = {}
    weights: dict[Target, float] = {}
    for number, targets in enumerate(targets for targets in inside if targets):
        head = next(
            (
                target
                for target in targets
                if target not in snapshot.unfit and target not in snapshot.shut
            ),
            targets[0],
        )
        heads.setdefault(head, []).extend(targets)
        weights[head] = weights.get(head, 0.0) + (route.weights[number] if route.weights else 1.0)
    chosen = STRATEGIES[route.strategy](
        list(heads), replace(state, weights=weights) if route.weights else state, rng
    )
    after = [
        target
        for entry in route.then
        for target in (
            _ordered(entry, snapshot, state, rng) if isinstance(entry, Route) else [entry]
        )
    ]
    return [target for head in chosen for target in heads[head]] + after


@lru_cache(maxsize=1024)
def takes_turns(route: Route) -> bool:
    """Whether the order depends on how many calls there were before."""
    return route.strategy != "priority" or any(
        takes_turns(entry) for entry in (*route.entries, *route.then) if isinstance(entry, Route)
    )
