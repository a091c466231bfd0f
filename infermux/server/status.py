"""Shares target status, metrics and operator commands among all workers.

A few times per second, each worker writes its status to shared memory and reads commands there.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from ..ledger import Backlog, Budget, BudgetState, LedgerUnavailable
from ..ledger.reports import iso
from ..planning.call import Call
from ..routing.circuit_breaker import BreakerState, CircuitBreaker
from ..routing.router import Router
from ..routing.stream import time_left
from ..telemetry import exporter, metrics, shared_memory
from ..telemetry.alerts import alerts_of
from ..telemetry.shared_memory import SharedMemory
from ..types import JSON, Caller, CircuitCommand, Target

log = logging.getLogger("infermux")
ACTIONS = ("open", "close", "reset")
REPORT_SECONDS = 0.25
RETRY_SECONDS = 10.0  # after a failed report
COMMAND_SECONDS = 3.0  # maximum wait for all workers to apply a command
MAX_UNNAMED_TARGETS = 100  # not configured: callers can name any number
_SEVERITY = {"closed": 0, "half_open": 1, "open": 2}
_lock = threading.RLock()  # guards monitors and the order of commands
_monitors: weakref.WeakKeyDictionary[Router, Monitor] = weakref.WeakKeyDictionary()


class TargetStatus(NamedTuple):
    """The status of one target over all workers; times are in seconds."""

    provider: str
    model: str
    state: str  # closed, half_open or open: the worst of all workers
    reason: str | None  # why calls are refused
    retry_in: float | None  # until all workers admit calls; None: probing or forced open
    error_rate: float | None
    p50: float | None  # like p95, the workers' mean weighted by calls
    p95: float | None
    per_minute: float
    in_flight: int
    workers: int  # that report the target
    since: float | None = None  # seconds since 1970: when one first refused calls
    why: str = ""  # the failure upon which it did

    @property
    def target(self) -> Target:
        return Target(self.provider, self.model)

    @property
    def forced(self) -> bool:
        """Whether an operator has opened its circuit."""
        return (self.reason or "").startswith("circuit forced open")


class Records(NamedTuple):
    """Numbers of calls that all workers have not written to the ledger."""

    pending: int
    lost: int


class Monitor:
    """An observer that counts a router's calls, and applies commands to its circuits."""

    def __init__(self, router: Router) -> None:
        self.memory = shared_memory.shared or SharedMemory()
        self.metrics = metrics.Metrics(self.memory, router.registry)
        self.started = time.time()
        for each in (alerts_of(router.observers), mirror_of(router)):
            if each is not None:
                each.memory = self.memory
        self._applied = 0  # number of the last applied command
        self._heard: dict[tuple[str, str], int] = {}  # numbers of commands of other hosts

    def __call__(self, call: Call) -> None:
        self.metrics.count(call)

    def apply_commands(self, router: Router) -> None:
        """Apply to *router* the commands issued since the last call."""
        with _lock:
            if self.memory.last_command != self._applied:
                for each in self.memory.commands(self._applied):
                    _apply(router, each)
                    self._applied = each.number

    def hear(self, router: Router) -> None:
        """Apply operators' commands at other hosts to *router*."""
        if router.ledger is None or not (published := router.ledger.published()):
            return
        with _lock:
            for heard in published:
                place = heard.provider, heard.model
                if self._heard.get(place, 0) < heard.number:
                    self._heard[place] = heard.number
                    _apply(router, heard)

    def publish(self, router: Router, action: str, provider: str, model: str) -> bool | None:
        """Let other hosts hear of a command; return whether they will, None: there are none."""
        try:
            number = 0 if router.ledger is None else router.ledger.publish(action, provider, model)
        except LedgerUnavailable as error:
            log.error("other hosts do not hear of the circuits: %s", error.reason)
            return False
        self._heard[provider, model] = number
        return bool(number) or None


def mirror_of(router: Router) -> Any:
    """Return the router's mirror, if it has one; its module is not loaded otherwise."""
    return next((each for each in router.observers if hasattr(each, "rules")), None)


def monitor(router: Router) -> Monitor:
    """Return the monitor of *router*; the first time, add it to the router's observers."""
    with _lock:
        found = _monitors.get(router)
        if found is None or found not in router.observers:
            found = _monitors[router] = Monitor(router)
            found.apply_commands(router)
            router.observers.append(found)
        return found


def metrics_text(router: Router) -> bytes:
    own = monitor(router)
    _count_losses(own.memory)
    gauges: dict[shared_memory.Key, int] = {
        ("streams_open",): router.admission.streams
        + sum(each["streams"] for each in _others(own.memory)),
        ("ledger_pending",): records(router).pending,
        ("rate_limits_local",): int(limits_are_local(router)),
    }
    for target in targets(router):
        key = ("circuit_state", *own.metrics.labels(target.provider, target.model))
        gauges[key] = max(gauges.get(key, 0), _SEVERITY[target.state])
    with suppress(LedgerUnavailable):  # readiness says so
        for state in budgets(router, mirrors=False):
            name, shared = state.budget.caller, bool(state.budget.members)
            labels = ("", name) if shared else (name, "")
            for figure in ("limit", "spent", "held", "left"):
                gauges[(f"budget_{figure}_usd", *labels)] = getattr(state, figure)
    return metrics.text(own.memory.counts(), gauges)


def targets(router: Router) -> list[TargetStatus]:
    """Return the status of the configured targets, in order, then of others called."""
    states: dict[Target, list[BreakerState]] = {target: [] for target in router.registry.targets()}
    own_monitor = monitor(router)
    own_monitor.hear(router)
    others = _others(own_monitor.memory)
    own = {target: breaker.snapshot() for target, breaker in _breakers(router).items()}
    for known in (own, *map(_states, others)):
        for target, state in known.items():
            if target.provider in router.registry:  # workers from before a reload may have others
                states.setdefault(target, []).append(state)
    return [_merged(target, found, 1 + len(others)) for target, found in states.items()]


def records(router: Router) -> Records:
    memory = monitor(router).memory
    _count_losses(memory)
    pending = sum(each["waiting"] for each in _others(memory))
    if router.ledger is not None:
        pending += router.ledger.spooled() + router.ledger.backlog().waiting
    return Records(pending, memory.counts().get(("ledger_lost_total",), [0])[0])


def service(router: Router) -> JSON:
    """Return the number of workers, when the service and its youngest worker started, and more.

    The times are ISO 8601 in UTC.
    """
    own = monitor(router)
    started = [own.started, *(each["started"] for each in _others(own.memory))]
    return {
        "workers": len(started),
        "started": iso(int(min(own.memory.created, *started))),
        "youngest_worker_started": iso(int(max(started))),
        "records": records(router)._asdict(),
    }


def limits_are_local(router: Router) -> bool:
    """Whether limits per minute count only this host's calls, without the ledger."""
    own = _limits_are_local(router)
    return own or any(each["local"] for each in _others(monitor(router).memory))


def _limits_are_local(router: Router) -> bool:
    return bool(getattr(router.admission.rates, "alone", False))


def budgets(router: Router, *, mirrors: bool = True, former: bool = False) -> list[BudgetState]:
    """Return the state of each budget: those of keys, of *mirrors*, and then the shared ones.

    *former*: also those of keys that were revoked or have expired.
    """
    callers: Mapping[str, Caller] = {}
    if (keyring := router.keyring) is not None:
        keyring.refresh()  # a command has not read the keys of the ledger
        callers = keyring.known if former else keyring.callers
    found = {
        budget.owner: budget
        for caller in callers.values()
        if isinstance(caller.budget, Budget)
        for budget in caller.budget.all
    }
    if mirrors and (mirror := mirror_of(router)) is not None:
        found |= {each.budget.owner: each.budget for each in mirror.rules.values() if each.budget}
    if router.ledger is None or not found:
        return []
    ordered = sorted(found.values(), key=lambda budget: bool(budget.members))
    return router.ledger.states(ordered, time.time())


class Commanded(NamedTuple):
    workers: int
    done: int  # workers that have applied it within COMMAND_SECONDS
    heard: bool | None  # whether other hosts hear of it; None: no ledger connects them


def command(router: Router, action: str, provider: str, model: str | None) -> Commanded:
    """Make every worker of all hosts open, close or reset a provider's circuits, or one model's."""
    own = monitor(router)
    heard = own.publish(router, action, provider, model := model or "")
    number = own.memory.command(action, provider, model)
    end = time.monotonic() + COMMAND_SECONDS
    own.apply_commands(router)
    _report()  # another worker may serve the next status request
    while True:
        others = own.memory.others()
        done = sum(slot.acknowledged >= number for slot in others)
        if done == len(others) or time.monotonic() > end:
            return Commanded(1 + len(others), 1 + done, heard)
        time.sleep(REPORT_SECONDS / 10)


def _apply(router: Router, command: CircuitCommand) -> None:
    """Apply a command; a provider's also applies to its targets first called later."""
    provider, pool = command.provider, router.targets
    if provider not in router.registry:
        return
    targets = {*router.registry.targets(), *pool.breakers()}
    known = {target for target in targets if target.provider == provider}
    one = Target(provider, command.model) if command.model else None
    chosen = {one} if one else known
    if command.action == "open":
        pool.forced_open.add(one or provider)
    else:
        pool.forced_open -= chosen if one else {provider, *known}
    for target in chosen:
        getattr(pool.breaker(target), command.action)()


def _breakers(router: Router) -> dict[Target, CircuitBreaker]:
    """Return this process's circuit breakers, no more than fit in shared memory."""
    breakers = router.targets.breakers()
    if len(breakers) > MAX_UNNAMED_TARGETS:
        named = set(router.registry.targets())
        unnamed = [target for target in breakers if target not in named]
        for target in unnamed[:-MAX_UNNAMED_TARGETS]:
            del breakers[target]
    return breakers


def _merged(target: Target, states: list[BreakerState], workers: int) -> TargetStatus:
    refusing = [state for state in states if state.reason is not None]
    worst = max(
        refusing or states,
        key=lambda state: (_SEVERITY[state.state], state.retry_in is None, state.retry_in),
        default=None,
    )
    calls, failures = sum(state.calls for state in states), sum(state.failures for state in states)
    reason = worst.reason if worst else None
    if reason and len(refusing) < workers:
        reason += f" (in {len(refusing)} of {workers} workers)"
    return TargetStatus(
        *target,
        max((state.state for state in states), key=_SEVERITY.__getitem__, default="closed"),
        reason,
        worst.retry_in if worst else 0.0,
        failures / calls if calls else None,
        _mean((state.p50, state.calls) for state in states),
        _mean((state.p95, state.calls) for state in states),
        sum(state.per_minute for state in states),
        sum(state.in_flight for state in states),
        len(states),
        min((state.since for state in states if state.since is not None), default=None),
        next((state.why for state in [*refusing, *states] if state.why), ""),
    )


def _mean(values: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, max(1, calls)) for value, calls in values if value is not None]
    weight = sum(calls for _, calls in known)
    return sum(value * calls for value, calls in known) / weight if known else None


def _count_losses(memory: SharedMemory) -> None:
    with _lock:
        routers = [router for router, each in _monitors.items() if each.memory is memory]
    lost = sum(router.accounting.lost + _backlog(router).lost for router in routers)
    with memory.own.lock:
        memory.own.set(("spans_dropped_total",), exporter.dropped())
        memory.own.set(("ledger_lost_total",), lost)


def _backlog(router: Router) -> Backlog:
    return Backlog(0, 0) if router.ledger is None else router.ledger.backlog()


def _others(memory: SharedMemory) -> list[JSON]:
    return [json.loads(status) for slot in memory.others() if (status := slot.read_status())]


def _states(status: JSON) -> dict[Target, BreakerState]:
    age = time.monotonic() - status["at"]
    states = {}
    for provider, model, *values in status["targets"]:
        state = BreakerState(*values)
        if state.retry_in:
            state = state._replace(retry_in=max(0.0, state.retry_in - age))
        states[Target(provider, model)] = state
    return states


def start() -> None:
    if shared_memory.shared is not None:
        _report()  # before the first call is admitted
        threading.Thread(target=_keep_reporting, name="infermux-status", daemon=True).start()


def send_copies() -> None:
    """Send a worker's last copies of calls in the time that it has, or count them as dropped."""
    for router in list(_monitors):
        if (mirror := mirror_of(router)) is not None:
            mirror.drain(time_left())


def stop() -> None:
    """Write a worker's last records and spans, or count them as lost."""
    if shared_memory.shared is not None:
        for router in list(_monitors):
            if router.ledger is not None:
                router.ledger.drain(last=True)
        _count_losses(shared_memory.shared)


def _keep_reporting() -> None:
    while True:
        try:
            _report()
            for router in list(_monitors):
                if router.keyring is not None:
                    router.keyring.refresh()
        except Exception:  # the next report may succeed
            log.exception("cannot publish the status of this worker")
            time.sleep(RETRY_SECONDS)
        time.sleep(REPORT_SECONDS)


def _report() -> None:
    memory = shared_memory.shared
    if memory is None:
        return
    _count_losses(memory)
    with _lock:
        number = memory.last_command
        breakers: dict[Target, CircuitBreaker] = {}
        for router, each in _monitors.items():
            each.apply_commands(router)
            each.hear(router)
            breakers |= _breakers(router)
            if router.ledger is not None:
                router.ledger.drain()
                router.ledger.maintain(time.time())
        status = {
            "at": time.monotonic(),
            "started": max((each.started for each in _monitors.values()), default=time.time()),
            "streams": sum(router.admission.streams for router in _monitors),
            "waiting": sum(_backlog(router).waiting for router in _monitors),
            "local": any(map(_limits_are_local, _monitors)),
            "targets": [(*target, *each.snapshot()) for target, each in breakers.items()],
        }
        memory.own.write_status(json.dumps(status).encode())
        if _monitors:  # else the worker is still loading
            memory.own.acknowledged = number  # last: an operator may then read the status
