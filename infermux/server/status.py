"""How the targets of a router are, over all workers of the host, and orders that reach them all.

Each worker leaves a note on the board, at once when a circuit changes, and looks there for orders a
few times per second.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
import weakref
from typing import Any, NamedTuple

from ..planning.call import Call
from ..routing.circuit_breaker import BreakerState, CircuitBreaker
from ..routing.router import Router
from ..telemetry import exporter as outbox
from ..telemetry import metrics
from ..telemetry import shared_memory as board
from ..telemetry.shared_memory import Command, Key
from ..types import Target

log = logging.getLogger("infermux")
ACTIONS = ("open", "close", "reset")
TICK = 0.25  # seconds between two looks for orders
NOTE = 1.0  # between two notes, while no circuit changes
PATIENCE = 3.0  # that an order waits until every worker has carried it out
MOST = 100  # targets that only callers have named: they can name them without end
_SEVERITY = {"closed": 0, "half_open": 1, "open": 2}
_lock = threading.Lock()
_watches: weakref.WeakSet[Watch] = weakref.WeakSet()


class TargetStatus(NamedTuple):
    """What the workers of the host together know of one target; seconds throughout."""

    provider: str
    model: str
    state: str  # closed, open or half_open: of several workers the worst
    reason: str | None  # why a call would be refused now
    retry_in: (
        float | None
        # until a call would be let through everywhere; 0: now; None: not known (a probe is out, or by
        # hand)
    )
    error_rate: float | None
    p50: float | None  # of several workers the mean, weighed by their calls; the next, too
    p95: float | None
    per_minute: float
    in_flight: int
    workers: int  # how many have reported it


class Watch:
    """An observer of a router: what is counted, and what is told about it and to it."""

    def __init__(self, router: Router) -> None:
        self.board = board.shared or board.SharedMemory()
        self.metrics = metrics.Metrics(self.board, router.registry)
        self.router = router
        self._lock = threading.Lock()
        self._obeyed = 0
        self.obey()

    def __call__(self, call: Call) -> None:
        self.metrics.count(call)

    def obey(self) -> None:
        """Carry out the orders that have come since the last look."""
        if self.board.last != self._obeyed:
            with self._lock:
                for order in self.board.orders(self._obeyed):
                    _carry_out(self.router, order)
                    self._obeyed = order.number

    def text(self) -> bytes:
        """Return the metrics of all workers."""
        _count_drops(self.board)
        gauges: dict[Key, int] = {
            ("streams_open",): self.router.admission.streams
            + sum(note["streams"] for note in _notes(self.board))
        }
        for status in targets(self.router):
            key = ("circuit_state", *self.metrics.labels(status.provider, status.model))
            gauges[key] = max(gauges.get(key, 0), _SEVERITY[status.state])
        return metrics.text(self.board.counts(), gauges)


def watch(router: Router) -> Watch:
    """Return the watch over *router*; the first time it is put among the router's observers."""
    with _lock:
        found = next((each for each in router.observers if isinstance(each, Watch)), None)
        if found is None:
            found = Watch(router)
            router.observers.append(found)
            _watches.add(found)
        return found


def targets(router: Router) -> list[TargetStatus]:
    """Return the targets that the configuration names, in its order, and those that were called
    beside them.
    """
    states: dict[Target, list[BreakerState]] = {target: [] for target in router.registry.targets()}
    notes = _notes(watch(router).board)
    here = {target: health.snapshot() for target, health in _watched(router).items()}
    for each in (here, *map(_read, notes)):
        for target, state in each.items():
            if (
                target.provider in router.registry
            ):  # a worker that is on its way out may have others
                states.setdefault(target, []).append(state)
    return [_merged(target, found, 1 + len(notes)) for target, found in states.items()]


def order(router: Router, action: str, provider: str, model: str | None = None) -> tuple[int, int]:
    """Open, close or reset the circuits of a provider, or of one model, in every worker; return how
    many there are, and have done so.
    """
    shared = watch(router).board
    number, end = shared.order(action, provider, model), time.monotonic() + PATIENCE
    watch(router).obey()
    if _pulse is not None:
        _pulse.beat()  # the others read at once what this worker has done
    while True:
        others = shared.others()
        done = sum(stripe.seen >= number for stripe in others)
        if done == len(others) or time.monotonic() > end:
            return 1 + len(others), 1 + done
        time.sleep(TICK / 10)


def _carry_out(router: Router, order: Command) -> None:
    """Do to this process's circuits what *order* says; those yet to come are as the provider's
    others.
    """
    pool, mine = router.targets, Target(order.provider, order.model or "")
    if order.provider not in router.registry:
        return
    known = {
        target
        for target in (*router.registry.targets(), *pool.breakers())
        if target.provider == order.provider
    }
    chosen = {mine} if order.model else known
    if order.action == "open":
        pool.forced_open.add(mine if order.model else order.provider)
    else:
        pool.forced_open -= chosen if order.model else {order.provider, *known}
    for target in chosen:
        getattr(pool.breaker(target), order.action)()


def _watched(router: Router) -> dict[Target, CircuitBreaker]:
    """Return the targets that were called; of those that only callers have named the last."""
    watched = router.targets.breakers()
    if len(watched) > MOST:
        known = set(router.registry.targets())
        others = [target for target in watched if target not in known]
        for target in others[:-MOST]:
            del watched[target]
    return watched


def _merged(target: Target, states: list[BreakerState], workers: int) -> TargetStatus:
    """Return what several workers say of one target as one."""
    shut = [state for state in states if state.reason is not None]
    worst = max(
        shut or states,
        key=lambda state: (_SEVERITY[state.state], state.retry_in is None, state.retry_in),
        default=None,
    )
    calls, failures = sum(state.calls for state in states), sum(state.failures for state in states)
    reason = worst.reason if worst else None
    if reason and len(shut) < workers:
        reason += f" (in {len(shut)} of {workers} workers)"
    return TargetStatus(
        *target,
        max((state.state for state in states), key=_SEVERITY.__getitem__, default="closed"),
        reason,
        worst.retry_in if worst else 0.0,
        failures / calls if calls else None,
        _mean(states, "p50"),
        _mean(states, "p95"),
        sum(state.per_minute for state in states),
        sum(state.in_flight for state in states),
        len(states),
    )


def _mean(states: list[BreakerState], name: str) -> float | None:
    known = [
        (value, max(1, state.calls))
        for state in states
        if (value := getattr(state, name)) is not None
    ]
    return (
        sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
        if known
        else None
    )


# -- between the workers ---------------------------------------------------------------------------


class _Dropped:
    """How many spans of this process are counted already."""

    number = 0
    lock = threading.Lock()


def _count_drops(shared: board.SharedMemory) -> None:
    with _Dropped.lock:
        dropped, before = outbox.dropped(), _Dropped.number
        if dropped != before:
            stripe = shared.mine
            with stripe.lock:
                stripe.add(("spans_dropped_total",), max(0, dropped - before))
            _Dropped.number = dropped


def _notes(shared: board.SharedMemory) -> list[dict[str, Any]]:
    """Return what the other workers that live have written."""
    return [json.loads(note) for stripe in shared.others() if (note := stripe.read())]


def _read(note: dict[str, Any]) -> dict[Target, BreakerState]:
    """Return a note's states as they are by now."""
    age = time.monotonic() - note["at"]
    states = {}
    for provider, model, *values in note["targets"]:
        state = BreakerState(*values)
        states[Target(provider, model)] = (
            state._replace(retry_in=max(0.0, state.retry_in - age)) if state.retry_in else state
        )
    return states


def start() -> None:
    """Begin to do, in a worker, what its part of the board asks of it."""
    global _pulse
    if board.shared is not None:
        _pulse = _Pulse(board.shared)
        _pulse.beat()  # before the first call is let in
        threading.Thread(target=_pulse.run, name="infermux-pulse", daemon=True).start()


def stop() -> None:
    """Count what is not counted yet, at the end of a worker."""
    if board.shared is not None:
        _count_drops(board.shared)


class _Pulse:
    """What a worker does a few times per second: it obeys, and leaves its note."""

    def __init__(self, shared: board.SharedMemory) -> None:
        self._board = shared
        self._lock = threading.Lock()
        self._left = (-1, -math.inf)  # changes of circuits, and when

    def beat(self) -> None:
        """Do it once."""
        _count_drops(self._board)
        with self._lock:
            number, routers = self._board.last, list(_watches)
            for each in routers:
                each.obey()
            self._leave_note(routers)
            if routers:  # a worker that is still loading has carried out nothing
                self._board.mine.seen = (
                    number  # after the note: whoever reads this number may read the note next
                )

    def _leave_note(self, routers: list[Watch]) -> None:
        watched = {
            target: health for each in routers for target, health in _watched(each.router).items()
        }
        changes, now = sum(health.changes for health in watched.values()), time.monotonic()
        if changes != self._left[0] or now - self._left[1] >= NOTE:
            self._left = changes, now
            self._board.mine.write(
                json.dumps(
                    {
                        "at": now,
                        "streams": sum(each.router.admission.streams for each in routers),
                        "targets": [
                            (*target, *health.snapshot()) for target, health in watched.items()
                        ],
                    }
                ).encode()
            )

    def run(self) -> None:
        """Do it until the process ends."""
        while True:
            try:
                self.beat()
            except Exception:  # whatever it is, the next look may find it mended
                log.exception("the other workers could not be told how things are")
                time.sleep(10)
            time.sleep(TICK)


_pulse: _Pulse | None = None  # of this worker
