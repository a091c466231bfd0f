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
from itertools import chain
from statistics import fmean
from typing import Any, NamedTuple

from ..errors import RequestError, counted, printable, shown
from ..pricing import usd_float
from ..types import JSON
from . import MAX_ROWS, Record
from .sql import Ledger

API = "mirror"  # of the calls of mirrors
ROUNDS = 1000  # of the bootstrap
SAMPLE = 1000  # calls of a model that each round draws at most
LEVEL = 0.95
LEAST = 8  # values of each model: of fewer, chance alone often makes all differences of one sign
SEED = 20_260
MAX_REASONS = 8  # that are shown
Value = Callable[[Record], float | None]


class Figure(NamedTuple):
    """One row of a comparison; the difference is that of the second model to the first."""

    name: str
    unit: str
    first: float | None
    second: float | None
    difference: float | None = None
    interval: tuple[float, float] | None = None  # of the difference


class Comparison(NamedTuple):
    names: tuple[str, str]
    calls: tuple[int, int]  # that are compared
    pairs: int  # 0: the calls are not the same ones
    of: int  # calls of the first model, mirrored or not
    figures: list[Figure]
    unpriced: tuple[int, int]
    cut: bool  # whether older calls were not read

    def words(self) -> list[str]:
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
        if self.cut:
            found.append(f"only the last {MAX_ROWS:,} calls of each are read")
        for name, calls in zip(self.names, self.unpriced, strict=True):
            if calls:
                found.append(f"{counted(calls, 'call')} of {name} have no price and no cost here")
        return [printable(each) for each in found]

    def table(self) -> tuple[list[str], list[list[str]]]:
        rows = [
            [
                f"{name} {unit}".strip(),
                _number(first, unit),
                _number(second, unit),
                _number(difference, unit, sign="+"),
                " … ".join(_number(end, unit, sign="+") for end in interval or ()) or "-",
            ]
            for name, unit, first, second, difference, interval in self.figures
        ]
        names = map(printable, self.names)
        return ["", *names, "DIFFERENCE", f"{LEVEL * 100:.0f} % INTERVAL"], rows

    def to_dict(self) -> JSON:
        return {
            "models": self.names,
            "calls": self.calls,
            "pairs": self.pairs,
            "calls_of_first": self.of,
            "unpriced": self.unpriced,
            "level": LEVEL,
            "figures": [each._asdict() for each in self.figures],
        }


def _number(value: float | None, unit: str, sign: str = "") -> str:
    if value is None:
        return "-"
    digits = {"USD": 6, "ms": 0}.get(unit, 1)
    return format(value, f"{sign},.{digits}f")


def mirror_id(ident: str) -> str:
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
    calls = partial(_calls, ledger, since=since)
    ours, cut = calls(first, until=until, caller=caller)
    theirs, more = calls(second, mirrored=True)
    copies = {each.call.id: each for each in theirs}
    of, pairs = len(ours), [(each, copies.get(mirror_id(each.call.id))) for each in ours]
    if both := [(each, copy) for each, copy in pairs if copy is not None]:
        ours, theirs = [a for a, _ in both], [b for _, b in both]
    else:
        theirs, more = calls(second, until=until, caller=caller)
    for name, found in ((first, ours), (second, theirs)):
        if not found:
            raise RequestError(f"the ledger has no calls of {shown(name)} in that time")
    sides = ours, theirs
    figures = [_figure(*row, sides, bool(both)) for row in _FIGURES] + _shares(sides, bool(both))
    a, b = (sum(each.call.cost is None for each in side) for side in sides)
    counts = len(ours), len(theirs)
    return Comparison((first, second), counts, len(both), of, figures, (a, b), cut or more)


def _calls(
    ledger: Ledger, name: str, *, mirrored: bool = False, **chosen: Any
) -> tuple[list[Record], bool]:
    """Return the calls of a name, and whether there may be older ones."""
    models = dict.fromkeys((name, name.partition("/")[2] or name))  # rows have the model alone
    pages = [ledger.rows(model=model, limit=MAX_ROWS, **chosen) for model in models]
    found = {each.call.id: each for page in pages for each in page}.values()
    fit = [
        each
        for each in found
        if each.attempts and (each.call.api == API) == mirrored and _is_of(each, name)
    ]
    return fit, max(map(len, pages)) == MAX_ROWS


def _is_of(record: Record, name: str) -> bool:
    call = record.call
    provider, slash, model = name.partition("/")
    if name in (call.requested, call.model, call.served):
        return True
    return bool(slash) and call.provider == provider and model in (call.model, call.served)


# -- figures --


def _answered(field: str, record: Record) -> float | None:
    found: float | None = getattr(record.call, field)
    return found if record.call.status == "ok" else None


def _percentile(percent: int, values: Sequence[float]) -> float:
    return sorted(values)[math.ceil(percent / 100 * len(values)) - 1]


Statistic = Callable[[Sequence[float]], float]
_median = partial(_percentile, 50)
_FIGURES: tuple[tuple[str, str, Value, Statistic], ...] = (
    ("errors", "%", lambda each: 100.0 * (each.call.status != "ok"), fmean),
    ("cost per call", "USD", lambda each: usd_float(each.call.cost), fmean),
    ("latency, mean", "ms", partial(_answered, "latency_ms"), fmean),
    ("latency, median", "ms", partial(_answered, "latency_ms"), _median),
    ("latency, p95", "ms", partial(_answered, "latency_ms"), partial(_percentile, 95)),
    ("first token, median", "ms", partial(_answered, "first_token_ms"), _median),
    ("output tokens", "", partial(_answered, "output_tokens"), fmean),
)
Sides = tuple[Sequence[Record], Sequence[Record]]


def _figure(
    name: str, unit: str, value: Value, statistic: Statistic, sides: Sides, paired: bool
) -> Figure:
    """Return a row; of pairs, only those in which both sides have the value count."""
    columns = [[value(each) for each in side] for side in sides]
    if paired:
        rows = [row for row in zip(*columns, strict=True) if None not in row]
        columns = [list(column) for column in zip(*rows, strict=True)] or [[], []]
    one, two = ([each for each in column if each is not None] for column in columns)
    first, second = (statistic(side) if side else None for side in (one, two))
    if first is None or second is None:
        return Figure(name, unit, first, second)
    interval = bootstrap(one, two, statistic, paired=paired)
    return Figure(name, unit, first, second, second - first, interval)


def _shares(sides: Sides, paired: bool) -> list[Figure]:
    counts = Counter(filter(None, map(_reason, chain(*sides))))
    return [
        _figure(f"finish: {reason}", "%", partial(_is_reason, reason), fmean, sides, paired)
        for reason, _ in counts.most_common(MAX_REASONS)
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
    sides, before = (first, second), (statistic(first), statistic(second))
    sizes = [min(len(side), SAMPLE) for side in sides]
    # a sample of fewer differs more: each side's is scaled to the side's own size
    scales = [math.sqrt(size / len(side)) for size, side in zip(sizes, sides, strict=True)]
    for _ in range(rounds):
        if paired:
            rows = rng.choices(range(len(first)), k=sizes[0])
            drawn = [[side[n] for n in rows] for side in sides]
        else:
            drawn = [rng.choices(side, k=size) for side, size in zip(sides, sizes, strict=True)]
        one, two = (
            old + (statistic(values) - old) * scale
            for old, values, scale in zip(before, drawn, scales, strict=True)
        )
        found.append(two - one)
    found.sort()
    outside = (1 - LEVEL) / 2
    return found[int(outside * rounds)], found[math.ceil((1 - outside) * rounds) - 1]
