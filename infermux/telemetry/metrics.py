"""Prometheus metrics: counts calls in shared memory, and renders them in text format 0.0.4.

A provider or model that the configuration does not name has the label "other", so that callers
cannot create series.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from .. import errors
from ..planning.call import Attempt, Call, HookRun
from ..planning.registry import Registry
from ..pricing import PICO, decimal
from ..types import Target
from .shared_memory import Key, SharedMemory, WorkerSlot

OTHER = "other"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
OWN_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_NANO = 10**9
_MAX_COUNT = 10**17  # per attempt, so that the sum of many fits a cell
_TARGET = ("provider", "model")
_BUDGET = ("key", "team")  # the configured name; the other is empty
_TOKENS = [  # kinds, and the fields of Usage
    (kind, f"{kind}_tokens")
    for kind in ("input", "output", "cached_input", "cache_write", "reasoning")
]
_OUTCOMES = {"ok"} | {
    kind.code
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.InferMuxError)
}


class Family(NamedTuple):
    """A metric, and how its cells are converted to values.

    With bounds it is a histogram, with a name that ends in _total a counter, else a gauge.
    """

    labels: tuple[str, ...]
    help: str
    unit: int = 1  # a cell's count is divided by it
    bounds: tuple[float, ...] = ()  # of a histogram's buckets


FAMILIES = {
    "requests_total": Family((*_TARGET, "status"), "Calls that ended, by HTTP status."),
    "latency_seconds": Family(
        _TARGET, "Seconds from the start of a call to its end.", _NANO, SECONDS
    ),
    "ttft_seconds": Family(
        _TARGET, "Seconds from the start of a stream to its content.", _NANO, SECONDS
    ),
    "overhead_seconds": Family(
        (), "Seconds of a call outside providers and waits.", _NANO, OWN_SECONDS
    ),
    "hooks_total": Family(
        ("hook", "outcome"),
        "Calls that a hook has seen: passed, changed, refused or failed.",
    ),
    "hook_seconds": Family(("hook",), "Seconds of a call in a hook.", _NANO, OWN_SECONDS),
    "tokens_total": Family(
        (*_TARGET, "kind"),
        "Tokens; input includes cached_input and cache_write, output includes reasoning.",
    ),
    "cost_usd_total": Family(_TARGET, "Dollars, where the price is known.", PICO),
    "attempts_total": Family(
        (*_TARGET, "outcome"), "Requests to providers, by ok or the error code."
    ),
    "circuit_state": Family(_TARGET, "0 closed, 1 half open, 2 open; the worst of all workers."),
    "streams_open": Family((), "Streams that are open or being opened."),
    "unpriced_total": Family(_TARGET, "Answered requests whose price is unknown."),
    "streams_incomplete_total": Family(_TARGET, "Streams that broke after their first content."),
    "spans_dropped_total": Family((), "Spans that were not delivered."),
    "ledger_pending": Family((), "Calls that are not in the ledger yet."),
    "rate_limits_local": Family((), "1 while limits per minute count only the calls of this host."),
    "ledger_lost_total": Family((), "Calls that could not be recorded."),
    "budget_limit_usd": Family(_BUDGET, "Dollars that a key may spend.", PICO),
    "budget_spent_usd": Family(_BUDGET, "Dollars that are spent in the period.", PICO),
    "budget_held_usd": Family(_BUDGET, "Dollars that calls in flight hold.", PICO),
    "budget_left_usd": Family(_BUDGET, "Dollars that are left in the period.", PICO),
    "answer_cache_total": Family(
        ("name", "result"), "Calls of names that keep answers: hit, miss or bypass."
    ),
    "mirrored_total": Family(
        ("model", "outcome"), "Copies of a name's calls: sent, failed, refused, dropped."
    ),
    "alerts_total": Family(("outcome",), "Alerts to the webhook: sent, retried or failed."),
    "failed_logins_total": Family(("api",), "Requests with a key that did not open."),
}


class Metrics:
    """Counts calls in *memory*; labels are limited to the names in *registry*."""

    def __init__(self, memory: SharedMemory, registry: Registry) -> None:
        self._memory = memory
        self._registry = registry
        self._targets: frozenset[Target] = frozenset()
        self._models: frozenset[str] = frozenset()
        self._changes = -1

    def count(self, call: Call) -> None:
        attempts, error, seconds = call.attempts, call.error, call.seconds
        last = attempts[-1] if attempts else None
        known = call.cached.target if call.cached else (call.provider, call.model)
        target = self.labels(*(last.target if last is not None else known))
        slot = self._memory.own
        status = (
            "200" if error is None else str(error.status) if 400 <= error.status < 600 else OTHER
        )
        own = seconds
        for attempt in attempts:
            own -= attempt.seconds + attempt.waited
        hooks: Mapping[str, HookRun] = call.hooks or {}
        for run in hooks.values():
            own += run.inside
        with slot.lock:
            slot.add(("requests_total", *target, status))
            _observe(slot, ("latency_seconds", *target), SECONDS, seconds)
            _observe(slot, ("overhead_seconds",), OWN_SECONDS, max(0.0, own))
            if last is not None and last.first_chunk is not None:
                _observe(slot, ("ttft_seconds", *target), SECONDS, last.first_chunk - call.started)
                if error is not None:
                    slot.add(("streams_incomplete_total", *target))
            if call.cache:
                name = call.request.model if call.request.model in self._models else OTHER
                slot.add(("answer_cache_total", name, call.cache))
            for name, run in hooks.items():
                slot.add(("hooks_total", name, run.outcome))
                _observe(slot, ("hook_seconds", name), OWN_SECONDS, run.seconds)
            for attempt in attempts:
                labels = target if attempt is last else self.labels(*attempt.target)
                _attempted(slot, labels, attempt)

    def labels(self, provider: str, model: str) -> tuple[str, str]:
        """Return the labels for a provider and a model; unknown names become "other"."""
        changes = self._registry.changes
        if changes != self._changes:  # an application may register more at any time
            self._targets = frozenset(self._registry.targets())
            self._models = frozenset(
                (*self._registry.names, *(target.model for target in self._targets))
            )
            self._changes = changes
        if (provider, model) in self._targets:
            return provider, model
        if provider in self._registry:
            return provider, OTHER
        return OTHER, model if model in self._models else OTHER


def _observe(slot: WorkerSlot, key: Key, bounds: tuple[float, ...], seconds: float) -> None:
    at = slot.at(key, len(bounds) + 2)
    slot.cells[at + bisect_left(bounds, seconds)] += 1
    slot.cells[at + len(bounds) + 1] += int(seconds * _NANO)


def _attempted(slot: WorkerSlot, target: tuple[str, str], attempt: Attempt) -> None:
    outcome = "ok" if attempt.error is None else attempt.error.code
    slot.add(("attempts_total", *target, outcome if outcome in _OUTCOMES else OTHER))
    usage = attempt.usage
    if usage is None:
        return
    for kind, name in _TOKENS:
        if count := getattr(usage, name):
            slot.add(("tokens_total", *target, kind), _bounded(count))
    if attempt.cost is None:
        slot.add(("unpriced_total", *target))
    else:
        slot.add(("cost_usd_total", *target), _bounded(attempt.cost))


def _bounded(count: int) -> int:
    return max(0, min(count, _MAX_COUNT))


def text(counts: Mapping[Key, Sequence[int]], gauges: Mapping[Key, int]) -> bytes:
    """Return all metrics as Prometheus text; one without labels always has a sample."""
    samples: dict[str, list[tuple[Key, Sequence[int]]]] = {name: [] for name in FAMILIES}
    known = {**counts, **{key: (value,) for key, value in gauges.items()}}
    for (name, *values), cells in sorted(known.items()):
        samples[name].append((tuple(values), cells))
    lines = []
    for name, family in FAMILIES.items():
        other = "counter" if name.endswith("_total") else "gauge"
        kind = "histogram" if family.bounds else other
        lines += [f"# HELP infermux_{name} {family.help}", f"# TYPE infermux_{name} {kind}"]
        found = samples[name] or ([] if family.labels else [((), [0] * (len(family.bounds) + 2))])
        for labels, cells in found:
            pairs = [
                f'{label}="{_escaped(value)}"'
                for label, value in zip(family.labels, labels, strict=True)
            ]
            for suffix, bucket, value in _values(family, cells):
                inside = ",".join([*pairs, *bucket])
                braced = f"{{{inside}}}" if inside else ""
                lines.append(f"infermux_{name}{suffix}{braced} {value}")
    return ("\n".join(lines) + "\n").encode()


def _values(family: Family, cells: Sequence[int]) -> Iterator[tuple[str, list[str], str]]:
    """Yield name suffix, bucket label and value for each line of a sample."""
    if not family.bounds:
        yield "", [], decimal(cells[0], family.unit)
        return
    below = list(accumulate(cells[:-1]))
    for bound, count in zip((*family.bounds, "+Inf"), below, strict=True):
        yield "_bucket", [f'le="{bound}"'], str(count)
    yield "_sum", [], decimal(cells[-1], family.unit)
    yield "_count", [], str(below[-1])


def _escaped(value: str) -> str:
    whole = value.encode("utf-8", "replace").decode()
    return whole.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
