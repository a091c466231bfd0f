"""Strategies: the order in which the targets of a name are tried, from state and a seed alone."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Self

from ..types import JSON, Target


@dataclass(frozen=True, slots=True)
class State:
    """What strategies know at one moment; it survives JSON, so a decision can be replayed.

    Weights are 1 where none is given, latencies seconds to the first content, costs the estimate
    for this call in pico-USD; the cursor is the number of earlier calls of the name.
    """

    weights: Mapping[Target, float] = field(default_factory=dict)
    cursor: int = 0
    latency: Mapping[Target, float | None] = field(default_factory=dict)
    in_flight: Mapping[Target, int] = field(default_factory=dict)
    cost: Mapping[Target, int | None] = field(default_factory=dict)

    def to_dict(self) -> JSON:
        """Return the state as JSON, with targets as provider/model."""
        return {
            "weights": _named(self.weights),
            "cursor": self.cursor,
            "latency": _named(self.latency),
            "in_flight": _named(self.in_flight),
            "cost": _named(self.cost),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Return the state that `to_dict` wrote."""
        tables = {
            name: _targets(data.get(name, {}))
            for name in ("weights", "latency", "in_flight", "cost")
        }
        return cls(cursor=data.get("cursor", 0), **tables)


Strategy = Callable[[Sequence[Target], State, random.Random], list[Target]]


def priority(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """As declared."""
    return list(targets)


def weighted(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Drawn without replacement in proportion to their weights; weight 0 comes last.

    Sorting by exponential variates of rate `weight` is that draw: Efraimidis and Spirakis,
    "Weighted random sampling with a reservoir" (2006).
    """
    rates = [state.weights.get(target, 1.0) for target in targets]
    return _by([rng.expovariate(rate) if rate > 0 else math.inf for rate in rates], targets)


def round_robin(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """Each call starts one target further than the one before."""
    start = state.cursor % len(targets) if targets else 0
    return [*targets[start:], *targets[:start]]


def least_latency(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """The better of two random targets, then the others by latency × (calls in flight + 1).

    Two choices keep many processes from sending their calls to the same target at once:
    Mitzenmacher, "The power of two choices in randomized load balancing" (2001). A target without
    samples counts as the median of the others.
    """
    known = [latency for target in targets if (latency := state.latency.get(target)) is not None]
    unknown = median(known) if known else 1.0
    scores = [
        _known(state.latency.get(target), unknown) * (state.in_flight.get(target, 0) + 1)
        for target in targets
    ]
    if len(targets) < 2:
        return list(targets)
    first = min(rng.sample(range(len(targets)), 2), key=scores.__getitem__)
    scores[first] = -1.0
    return _by(scores, targets)


def cheapest(targets: Sequence[Target], state: State, rng: random.Random) -> list[Target]:
    """By estimated cost; unpriced targets come last."""
    return _by([_known(state.cost.get(target), math.inf) for target in targets], targets)


STRATEGIES: dict[str, Strategy] = {
    strategy.__name__: strategy
    for strategy in (priority, weighted, round_robin, least_latency, cheapest)
}


def _known(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _by(scores: Sequence[float], targets: Sequence[Target]) -> list[Target]:
    """Return *targets* by rising score; equal ones keep their order."""
    return [targets[at] for at in sorted(range(len(targets)), key=scores.__getitem__)]


def _named(table: Mapping[Target, Any]) -> JSON:
    return {str(target): value for target, value in table.items()}


def _targets(table: Mapping[str, Any]) -> dict[Target, Any]:
    return {Target.of(name): value for name, value in table.items()}
