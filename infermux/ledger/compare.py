"""Compares two models by the calls in the ledger: cost, latency, errors, length, finish reasons.

Where calls of the first were mirrored to the second, only those pairs are compared. Intervals are
of a seeded bootstrap: the middle 95 % of the differences of resampled means.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from ..errors import RequestError, counted, printable, shown
from ..pricing import PICO
from ..types import JSON
from . import Ledger, Record

API = "mirror"  # of the calls of mirrors
MOST = 20_000  # calls of each model that are read, the newest
ROUNDS = 1000  # of the bootstrap
SAMPLE = 1000  # calls that each round draws at most; the interval is scaled to all of them
LEVEL = 0.95
LEAST = 8  # values of each model: of fewer, chance alone often makes all differences of one sign
SEED = 20_260
_TENTHS = 4
Value = Callable[[Record], float | None]


class Figure(NamedTuple):
    """One row of a comparison; the difference is that of the second model to the first."""

    name: str
    unit: str
    values: tuple[float | None, float | None]
    difference: float | None = None
    interval: tuple[float, float] | None = None  # of the difference


class Comparison(NamedTuple):
    """Two models side by side."""

    names: tuple[str, str]
    calls: tuple[int, int]  # that are compared
    pairs: int  # 0: the calls are not the same ones
    of: int  # calls of the first model, mirrored or not
    figures: list[Figure]
    unpriced: tuple[int, int]

    def words(self) -> list[str]:
        """Return what was compared, in sentences."""
        (a, b), (first, second) = self.names, self.calls
        if self.pairs:
            which = f"{counted(self.pairs, 'call')} of {a} and their copies to {b}"
            found = [
                f"{which}, of {counted(self.of, 'call')}: the same requests, compared in pairs"
            ]
        else:
            found = [f"{counted(first, 'call')} of {a} and {counted(second, 'call')} of {b}"]
            found[0] += ": different requests, so the difference may be theirs"
        if min(first, second) < LEAST:
            found.append(f"too few for intervals, which need {LEAST} of each")
        if max(first, second) >= MOST:
            found.append(f"only the last {MOST:,} calls of each are compared")
        for name, calls in zip(self.names, self.unpriced, strict=True):
            if calls:
                found.append(f"{counted(calls, 'call')} of {name} have no price and no cost here")
        return [printable(each) for each in found]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the head and the rows of a table."""
        rows = [
            [
                f"{each.name} {each.unit}".strip(),
                *(_number(value, each.unit) for value in each.values),
                _number(each.difference, each.unit, sign="+"),
                " … ".join(_number(end, each.unit, sign="+") for end in each.interval)
                if each.interval is not None
                else "-",
            ]
            for each in self.figures
        ]
        return [
            "",
            *map(printable, self.names),
            "DIFFERENCE",
            f"{LEVEL * 100:.0f} % INTERVAL",
        ], rows

    def to_dict(self) -> JSON:
        """Return the comparison as JSON."""
        a, b = self.names
        return {
            "models": [a, b],
            "calls": [*self.calls],
            "pairs": self.pairs,
            "calls_of_first": self.of,
            "unpriced": [*self.unpriced],
            "level": LEVEL,
            "figures": [
                {
                    "name": each.name,
                    "unit": each.unit,
                    "first": each.values[0],
                    "second": each.values[1],
                    "difference": each.difference,
                    "interval": None if each.interval is None else [*each.interval],
                }
                for each in self.figures
            ],
        }


def _number(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return "-"
    digits = {"USD": 6, "ms": 0}.get(unit, 1)
    return format(value, f"{sign},.{digits}f")


def mirror_id(ident: str) -> str:
    """Return the id of the copy of a call."""
    return sha256(f"mirror\0{ident}".encode(errors="replace")).hexdigest()[:32]


def compare(
    ledger: Ledger,
    first: str,
    second: str,
    *,
    since: float | None = None,
    until: float | None = None,
    caller: str | None = None,
) -> Comparison:
    """Return the comparison of two names, PROVIDER/MODEL or models; raise RequestError."""
    if first == second:
        raise RequestError("compare two different models", param="compare")
    ours = _calls(ledger, first, since, until, caller, mirrored=False)
    theirs = _calls(ledger, second, since, None, None, mirrored=True)
    copies = {each.call.id: each for each in theirs}
    pairs = [
        (each, copy) for each in ours if (copy := copies.get(mirror_id(each.call.id))) is not None
    ]
    of = len(ours)
    if pairs:
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    else:
        theirs = _calls(ledger, second, since, until, caller, mirrored=False)
    for name, found in ((first, ours), (second, theirs)):
        if not found:
            raise RequestError(f"the ledger has no calls of {shown(name)} in that time")
    sides = ours, theirs
    unpriced = tuple(sum(each.call.cost is None for each in side) for side in sides)
    figures = [_figure(*row, sides, bool(pairs)) for row in _FIGURES]
    figures += _shares(sides, bool(pairs))
    counts = len(ours), len(theirs)
    return Comparison((first, second), counts, len(pairs), of, figures, (unpriced[0], unpriced[1]))


def _calls(
    ledger: Ledger,
    name: str,
    since: float | None,
    until: float | None,
    caller: str | None,
    *,
    mirrored: bool,
) -> list[Record]:
    found = _rows(ledger, name, since, until, caller)
    if not found and "/" in name:  # the row has the model alone
        found = _rows(ledger, name.partition("/")[2], since, until, caller)
    return [
        each
        for each in found
        if each.attempts and (each.call.api == API) == mirrored and _is_of(each, name)
    ]


def _rows(
    ledger: Ledger, name: str, since: float | None, until: float | None, caller: str | None
) -> list[Record]:
    return ledger.rows(model=name, since=since, until=until, caller=caller, limit=MOST)


def _is_of(record: Record, name: str) -> bool:
    call = record.call
    provider, slash, model = name.partition("/")
    if name in (call.requested, call.model, call.served):
        return True
    return bool(slash) and call.provider == provider and model in (call.model, call.served)


# -- figures --


def _cost(record: Record) -> float | None:
    return None if record.call.cost is None else record.call.cost / PICO


def _latency(record: Record) -> float | None:
    return record.call.latency_ms if record.call.status == "ok" else None


def _first(record: Record) -> float | None:
    return record.call.first_token_ms if record.call.status == "ok" else None


def _length(record: Record) -> float | None:
    return record.call.output_tokens if record.call.status == "ok" else None


def _error(record: Record) -> float | None:
    return 100.0 * (record.call.status != "ok")


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _median(values: Sequence[float]) -> float:
    return _percentile(values, 50)


def _p95(values: Sequence[float]) -> float:
    return _percentile(values, 95)


def _percentile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(percent / 100 * len(ordered)) - 1)]


Statistic = Callable[[Sequence[float]], float]
_FIGURES: tuple[tuple[str, str, Value, Statistic], ...] = (
    ("errors", "%", _error, _mean),
    ("cost per call", "USD", _cost, _mean),
    ("latency, mean", "ms", _latency, _mean),
    ("latency, median", "ms", _latency, _median),
    ("latency, p95", "ms", _latency, _p95),
    ("first token, median", "ms", _first, _median),
    ("output tokens", "", _length, _mean),
)
Sides = tuple[Sequence[Record], Sequence[Record]]


def _figure(
    name: str, unit: str, value: Value, statistic: Statistic, sides: Sides, paired: bool
) -> Figure:
    """Return a row; of pairs, only those in which both sides have the value count."""
    columns = [[value(each) for each in side] for side in sides]
    if paired:
        both = [(a, b) for a, b in zip(*columns, strict=True) if a is not None and b is not None]
        known = [[a for a, _ in both], [b for _, b in both]]
    else:
        known = [[each for each in column if each is not None] for column in columns]
    values = tuple(statistic(side) if side else None for side in known)
    first, second = values[0], values[1]
    if first is None or second is None:
        return Figure(name, unit, (first, second))
    interval = bootstrap(known[0], known[1], statistic, paired=paired)
    return Figure(name, unit, (first, second), second - first, interval)


def _shares(sides: Sides, paired: bool) -> list[Figure]:
    counts: Counter[str] = Counter()
    for side in sides:
        counts.update(_reason(each) for each in side)
    del counts[""]
    return [
        _figure(f"finish: {reason}", "%", partial(_is_reason, reason), _mean, sides, paired)
        for reason, _ in counts.most_common(_TENTHS * 2)
    ]


def _is_reason(reason: str, record: Record) -> float | None:
    found = _reason(record)
    return 100.0 * (found == reason) if found else None


def _reason(record: Record) -> str:
    return record.attempts[-1].finish_reason if record.call.status == "ok" else ""


def bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    statistic: Statistic,
    *,
    paired: bool,
    rounds: int = ROUNDS,
    seed: int = SEED,
) -> tuple[float, float] | None:
    """Return the interval of the difference of two samples; None if one has too few values."""
    if min(len(first), len(second)) < LEAST:
        return None
    rng, found = random.Random(seed), []
    center = statistic(second) - statistic(first)
    sizes = [min(len(side), SAMPLE) for side in (first, second)]
    scale = math.sqrt(min(sizes) / min(len(first), len(second)))
    for _ in range(rounds):
        if paired:
            drawn = rng.choices(range(len(first)), k=sizes[0])
            one, two = [first[n] for n in drawn], [second[n] for n in drawn]
        else:
            one, two = rng.choices(first, k=sizes[0]), rng.choices(second, k=sizes[1])
        found.append(statistic(two) - statistic(one))
    found.sort()
    outside = (1 - LEVEL) / 2
    low, high = found[int(outside * rounds)], found[math.ceil((1 - outside) * rounds) - 1]
    return center + (low - center) * scale, center + (high - center) * scale
