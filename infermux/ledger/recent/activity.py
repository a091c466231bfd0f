"""Sums of the last days by steps of five minutes, and of the hours made of them.

A step that has ended is summed up once and stored; of hours that are long over, the hour alone. A
trigger forgets the stored step, and its hour, when a call is added to it, so the sums never depend
on when they were computed. Of each step the largest groups are kept and the others added up under
OTHERS, which keeps the errors of attempts.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from functools import partial
from itertools import chain, groupby
from typing import NamedTuple

from .. import Total, queries, summed
from ..periods import DAY, ns
from ..reports import MIRROR_OF
from ..rollups import Database, steps_with_calls, tasks
from ..stores import Ask

SLOT, HOUR = 300, 3600  # seconds
RECENT = 2 * HOUR  # seconds before the end for which steps are stored, if there are none yet
LAG = 60  # seconds after its end until a step is stored: most of its calls have then ended
KEPT = 8 * DAY  # seconds for which steps are stored
MAX_GROUPS = 200  # of one kind in a step
OTHERS = "\x1e"  # the name under which the smaller groups are added up
BATCH = 12  # steps stored in one transaction
_GROUPS = (("provider", "model", "attempt_error"), ("caller",), ("error",), ("tag",))
_STORED = "SELECT start, data FROM activity WHERE step = ? AND start >= ? AND start < ?"
_BEGIN = """INSERT INTO activity (step, start, data) VALUES (?, ?, ?)
    ON CONFLICT (step, start) DO UPDATE SET data = excluded.data"""
_END = "UPDATE activity SET data = ? WHERE step = ? AND start = ? AND data = ?"
_OLD = "DELETE FROM activity WHERE start < ?"
# milliseconds with two digits: a percentile is exact to a few percent
_LATENCY = """SELECT CASE WHEN latency_ms < 100 THEN latency_ms
        WHEN latency_ms < 1000 THEN latency_ms / 10 * 10
        WHEN latency_ms < 10000 THEN latency_ms / 100 * 100
        ELSE latency_ms / 1000 * 1000 END AS about, count(*)
    FROM calls WHERE at_ns >= ? AND at_ns < ? AND status = 'ok' AND api <> 'mirror'
    GROUP BY about"""
_FAILOVERS = """SELECT count(*) FROM calls AS c
    JOIN attempts AS a ON a.at_ns = c.at_ns AND a.call_id = c.id AND a.n = 0
    WHERE c.at_ns >= ? AND c.at_ns < ? AND c.attempts > 1 AND c.status = 'ok' AND c.api <> 'mirror'
        AND (a.provider <> c.provider OR a.model <> c.model)"""


class Step(NamedTuple):
    """The sums of the calls that began in a step of time; of attempts, those of these calls.

    What mirrors send counts in costs and attempts, and neither in latency nor as calls that failed.
    """

    start: int  # seconds since 1970
    whole: bool = True  # False: not all of its calls are summed up yet
    failovers: int = 0  # calls that were answered by another target than the first
    latency: Mapping[int, int] = {}  # milliseconds, rounded: number of calls
    targets: Sequence[Total] = ()  # by provider, model and the attempt's error
    callers: Sequence[Total] = ()
    errors: Sequence[Total] = ()  # by the call's error
    tags: Sequence[Total] = ()  # by name=value

    @property
    def total(self) -> Total:
        return summed(self.errors)


class Activity(NamedTuple):
    """The steps of a period in order, also empty ones; some may not be summed up yet."""

    steps: list[Step]

    @property
    def unfinished(self) -> int:
        """How many steps are incomplete, as summing them up takes longer than a page may."""
        return sum(not step.whole for step in self.steps)


def report(
    file: Database, since: int, until: int, step: int, now: float, *, patience: float = 1.0
) -> Activity:
    """Return the sums from *since* to *until* by steps of *step* seconds.

    Of ended steps that were never summed up, as many are as *patience* seconds allow, the newest
    first.
    """
    settled = min(until, int(now - LAG) // SLOT * SLOT)
    undone = set(fill(file, since, settled, patience))
    found = file.snapshot(lambda ask: list(_known(ask, since, settled, step)))
    found += file.snapshot(lambda ask: [_sums(ask, at) for at in _with_calls(ask, settled, until)])
    of = {at: list(group) for at, group in groupby(found, lambda each: each.start // step * step)}
    missing = {at // step * step for at in undone}
    starts = range(since // step * step, until, step)
    return Activity([merged(at, of.get(at, ()), whole=at not in missing) for at in starts])


def fill(file: Database, since: int, until: int, patience: float = 1e9) -> list[int]:
    """Sum up and store what is missing; return the starts of what was left out."""
    end = time.monotonic() + patience
    left = sorted(file.snapshot(lambda ask: list(_missing(ask, since, until))), reverse=True)
    whole = file.snapshot(lambda ask: _unknown(ask, left, since, until))
    while left and time.monotonic() < end:
        hour = left[0] // HOUR * HOUR
        if hour in whole:
            batch = [at for at in left[:BATCH] if at >= hour]
            _store(file, HOUR, [hour], partial(_sums, seconds=HOUR))
        else:
            batch = [at for at in left[:BATCH] if at // HOUR * HOUR not in whole]
            _store(file, SLOT, batch, _sums)
        left = [at for at in left if at not in batch]
    undone = {at // HOUR for at in left}
    hours = range(-(-since // HOUR) * HOUR, until - until % HOUR, HOUR)
    ready = file.snapshot(lambda ask: _hours(ask, [at for at in hours if at // HOUR not in undone]))
    for place in range(0, len(ready), 2 * BATCH):
        _store(file, HOUR, ready[place : place + 2 * BATCH], _hour)
    return left


def keep_up(file: Database, now: float) -> None:
    """Sum up all steps that ended, and remove those that are too old for the page."""
    file.write(lambda sql: sql.execute(_OLD, (int(now - KEPT),)) and None)
    fill(file, int(now - KEPT) // HOUR * HOUR + HOUR, int(now - LAG) // SLOT * SLOT)


tasks.append(keep_up)  # only in a process that shows a status page


# -- sums --


def merged(start: int, steps: Iterable[Step], *, whole: bool = True) -> Step:
    found = list(steps)
    if len(found) == 1:
        return found[0]._replace(start=start, whole=whole and found[0].whole)
    latency = Counter[int]()
    for step in found:
        latency.update(step.latency)
    by_kind = map(chain.from_iterable, zip(*map(_kinds, found), strict=True))
    failovers, kinds = sum(step.failovers for step in found), list(map(grouped, by_kind))
    return Step(start, whole, failovers, latency, *map(_largest, kinds))


def grouped(totals: Iterable[Total], *parts: int) -> list[Total]:
    """Return sums by the whole key, or by these parts of it: the dearest first."""
    groups: dict[tuple[str, ...], list[Total]] = {}
    for total in totals:
        key = tuple([total.key[part] for part in parts]) if parts else total.key
        groups.setdefault(key, []).append(total)
    made = (group[0]._replace(key=k) if len(group) == 1 else summed(group, k)
            for k, group in groups.items())  # fmt: skip
    return sorted(made, key=lambda total: (-total.cost, -total.calls, total.key))


def percentile(latency: Mapping[int, int], percent: int) -> int | None:
    """Return a percentile of the calls' milliseconds, or None if there is no call."""
    rank = -(-sum(latency.values()) * percent // 100)
    for about in sorted(latency):
        rank -= latency[about]
        if rank <= 0:
            return about
    return None


def _largest(totals: list[Total]) -> list[Total]:
    rest = [
        each._replace(key=(OTHERS, OTHERS)[: len(each.key)] + each.key[2:])
        for each in totals[MAX_GROUPS:]
    ]
    return [*totals[:MAX_GROUPS], *grouped(rest)]


# -- steps in the file --


def _known(ask: Ask, since: int, until: int, step: int) -> Iterator[Step]:
    """Yield the stored hours, if they are parts of steps, and between them the stored slots."""
    hours = {} if step % HOUR or since % HOUR else _stored(ask, HOUR, since, until)
    at = since
    for start in [*sorted(hours), until]:
        if at < start:
            slots = _stored(ask, SLOT, at, start)
            yield from (_decoded(start, slots[start]) for start in sorted(slots))
        if start < until:
            yield _decoded(start, hours[start])
        at = start + HOUR


def _missing(ask: Ask, since: int, until: int) -> Iterator[int]:
    hours = _stored(ask, HOUR, since // HOUR * HOUR, until)
    slots = set(_stored(ask, SLOT, since, until))
    slots |= {start + at for start in hours for at in range(0, HOUR, SLOT)}
    return _with_calls(ask, since, until, slots)


def _unknown(ask: Ask, missing: Sequence[int], since: int, until: int) -> set[int]:
    """Return the hours of *missing* steps that are long over, and of which nothing is stored."""
    known = {at // HOUR * HOUR for at in _stored(ask, SLOT, since // HOUR * HOUR, until)}
    hours = {at // HOUR * HOUR for at in missing}
    return {at for at in hours - known if since <= at and at + HOUR <= until - RECENT}


def _hours(ask: Ask, starts: Sequence[int]) -> list[int]:
    """Return the hours of *starts* that are not stored and have stored steps."""
    if not starts:
        return []
    hours = _stored(ask, HOUR, starts[0], starts[-1] + HOUR)
    slots = {at // HOUR * HOUR for at in _stored(ask, SLOT, starts[0], starts[-1] + HOUR)}
    return [at for at in starts if at not in hours and at in slots]


def _with_calls(ask: Ask, since: int, until: int, skipped: Iterable[int] = ()) -> Iterator[int]:
    """Yield the starts of the steps that have calls, except *skipped* ones."""
    known = {start // SLOT for start in skipped}
    for number in steps_with_calls(ask, ns(since), ns(until), known, ns(SLOT)):
        yield number * SLOT


def _stored(ask: Ask, step: int, since: int, until: int) -> dict[int, str]:
    rows = ask(_STORED, (step, since, until))
    return {start: data for start, data in rows if data.startswith("[")}


def _store(
    file: Database, step: int, starts: Sequence[int], made: Callable[[Ask, int], Step | None]
) -> None:
    """Store steps, except those to which a call is added meanwhile."""
    token = str(random.randrange(1, 2**62))
    begun = [(step, at, token) for at in starts]
    file.write(lambda sql: sql.executemany(_BEGIN, begun))
    texts = file.snapshot(lambda ask: [_encoded(made(ask, at)) for at in starts])
    ended = [(text, *row) for text, row in zip(texts, begun, strict=True)]
    file.write(lambda sql: sql.executemany(_END, ended))


def _sums(ask: Ask, start: int, seconds: int = SLOT) -> Step:
    """Sum up the calls of five minutes, or of other *seconds*."""
    time = (ns(start), ns(start + seconds))
    by_call = ask(*queries.totals(("caller", "error", "tag"), *time, None, UTC))
    by_attempt = ask(*queries.totals(_GROUPS[0], *time, None, UTC, every=True))
    tried = [(*[name or "" for name in row[:3]], *row[3:]) for row in by_attempt]
    kinds = [queries.merged(_GROUPS[0], tried)]
    by_call = [  # none of a mirror's calls counts as failed: nobody waits for it
        (row[0], "", *row[2:5], 0, *row[6:]) if row[0].startswith(MIRROR_OF) else row
        for row in by_call
    ]
    for place, names in enumerate(_GROUPS[1:]):
        kinds.append(queries.merged(names, [(row[place], *row[3:]) for row in by_call]))
    [(failovers,)] = ask(_FAILOVERS, time)
    return Step(start, True, failovers, dict(ask(_LATENCY, time)), *map(_largest, kinds))


def _hour(ask: Ask, start: int) -> Step | None:
    """Return the sum of an hour's steps, or None if one of them is not stored."""
    slots = _stored(ask, SLOT, start, start + HOUR)
    if next(_with_calls(ask, start, start + HOUR, slots), None) is not None:
        return None
    return merged(start, [_decoded(at, data) for at, data in sorted(slots.items())])


def _encoded(step: Step | None) -> str:
    if step is None:
        return ""
    kinds = [[[*total.key, *total[1:]] for total in totals] for totals in _kinds(step)]
    return json.dumps([step.failovers, list(step.latency.items()), *kinds], separators=(",", ":"))


def _decoded(start: int, text: str) -> Step:
    failovers, latency, *kinds = json.loads(text)
    totals = [
        [Total(tuple(row[: len(names)]), *row[len(names) :]) for row in rows]
        for names, rows in zip(_GROUPS, kinds, strict=True)
    ]
    return Step(start, True, failovers, dict(latency), *totals)


def _kinds(step: Step) -> tuple[Sequence[Total], ...]:
    return step.targets, step.callers, step.errors, step.tags
