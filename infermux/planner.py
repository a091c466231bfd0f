"""Planning: a pure function of a route, a snapshot of what is known, and a seed. Serving executes the plan that it returns."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from .call import Plan
from .strategies import STRATEGIES, State
from .types import Route, Target


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is known of the targets at one moment."""

    state: State = State()
    unfit: Mapping[Target, str] = field(default_factory=dict)       # cannot serve this request, and why
    shut: Mapping[Target, tuple[str, float]] = field(default_factory=dict)      # left alone for now: why, and for how many seconds


def plan(route: Route, snapshot: Snapshot, seed: int) -> Plan:
    """Return the targets to try, in order, and those that are not tried, with the reason.

    When every target of several is shut, the least bad one is tried rather than none; one that is alone stays shut, so that
    its vendor is left in peace.
    """
    ordered = list(dict.fromkeys(_ordered(route, snapshot.state, random.Random(seed))))
    fit = [target for target in ordered if target not in snapshot.unfit]
    targets = [target for target in fit if target not in snapshot.shut]
    forced = not targets and len(fit) > 1
    if forced:
        targets = [min(fit, key=lambda target: snapshot.shut[target][1])]
    dropped = {target: snapshot.unfit.get(target) or snapshot.shut[target][0] for target in ordered if target not in targets}
    wait = min((snapshot.shut[target][1] for target in fit if target in snapshot.shut), default=None)
    return Plan(route.name, route.strategy, tuple(targets), dropped, forced=forced, seed=seed,
                retry_in=None if wait is None or wait == math.inf else wait)


def _ordered(route: Route, state: State, rng: random.Random) -> list[Target]:
    """Return the targets of a route: its strategy orders the entries, each of which stands for the targets inside it."""
    inside = [_ordered(entry, state, rng) if isinstance(entry, Route) else [entry] for entry in route.entries]
    heads = {targets[0]: targets for targets in reversed(inside) if targets}
    if route.weights:
        weights = {targets[0]: weight for targets, weight in zip(inside, route.weights, strict=True) if targets}
        state = replace(state, weights=weights)
    chosen = STRATEGIES[route.strategy]([targets[0] for targets in inside if targets and heads.get(targets[0]) is targets], state, rng)
    after = [target for entry in route.then for target in (_ordered(entry, state, rng) if isinstance(entry, Route) else [entry])]
    return [target for head in chosen for target in heads[head]] + after
