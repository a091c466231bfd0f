"""How the targets of a router are, over all workers of the host."""

from __future__ import annotations

from typing import NamedTuple

from .router import Router


class TargetStatus(NamedTuple):
    """What the workers of the host together know of one target; seconds throughout."""

    provider: str
    model: str
    state: str  # closed, open or half_open: of several workers the worst
    reason: str | None  # why a call would be refused now
    retry_in: float | None  # until a call would be let through everywhere; 0: now; None: not known (a probe is out, or by hand)
    error_rate: float | None
    p50: float | None
    p95: float | None
    per_minute: float
    in_flight: int
    workers: int  # how many have reported it


def targets(router: Router) -> list[TargetStatus]:
    """Return the targets that the configuration names, and those that were called."""
    found = []
    for target, health in sorted(router.fleet.watched().items()):
        state = health.snapshot()
        found.append(TargetStatus(*target, state.state, state.reason, state.retry_in, state.error_rate, state.p50, state.p95,
                                  state.per_minute, state.in_flight, 1))
    return found
