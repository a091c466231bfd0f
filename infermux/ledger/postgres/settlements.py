"""Settlements in PostgreSQL: calls, attempts, sums and budgets, many calls per statement.

A batch is one transaction in one round trip. It asserts that its calls are new, and that their
holds are as they were reserved. If not, PostgreSQL rolls it back, and each call is settled on its
own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, get_type_hints

from psycopg import errors

from .. import LOST, AttemptRow, CallRow, Hold, Record
from ..holds import MICRO, expired, lost_place, lost_record, take_back
from ..periods import DAY, SLOT, ms
from ..queries import call_row
from ..recent.activity import HOUR
from ..recent.activity import SLOT as SLOT_SECONDS
from ..rollups import PRUNED
from ..spool import Deferred
from .budgets import CHANGE_GIVEN, LOCKS, SHARED, Deltas, add, change, changes, locks, spend
from .statements import (
    KEYS,
    Link,
    Sql,
    Statement,
    encoded,
    objects,
    recordset,
    run,
    transposed,
)

MAX_PLANS = 4096  # digests that a process remembers
MAX_LOST = 500  # holds that are turned into spending in one transaction


def _insert(table: str, row: type, rows: str = "%s::json") -> str:
    """Return the statement that adds rows given as JSON, whose keys are short."""
    kinds = get_type_hints(row)
    keys = KEYS[: len(kinds)]
    pairs = zip(keys, kinds.values(), strict=True)
    typed = ", ".join(f"{key} {'text' if kind is str else 'bigint'}" for key, kind in pairs)
    return (
        f"INSERT INTO {table} ({', '.join(kinds)}) SELECT {', '.join(keys)} "
        f"FROM json_to_recordset({rows}) AS t({typed}) ON CONFLICT DO NOTHING"
    )


_CALLS = f"{_insert('calls', CallRow)} RETURNING id"
_ATTEMPTS = _insert("attempts", AttemptRow)
_PLANS = """INSERT INTO plans (digest, line)
    SELECT c0, c1 FROM json_to_recordset({rows}) AS t(c0 text, c1 text) ON CONFLICT DO NOTHING"""
_SUMS = """INSERT INTO sums (caller, slot, micro, pico) SELECT c0, c1, c2, c3
    FROM json_to_recordset({rows}) AS t(c0 text, c1 bigint, c2 bigint, c3 bigint)
    ON CONFLICT (caller, slot) DO UPDATE
    SET micro = sums.micro + excluded.micro, pico = sums.pico + excluded.pico"""
ADD_SUMS, _ADD_PLANS = _SUMS.format(rows="%s::json"), _PLANS.format(rows="%s::json")
_BATCH = f"""WITH given AS MATERIALIZED (SELECT * FROM json_to_record(%s::json)
        AS t(ids json, calls json, attempts json, plans json, sums json, holds json)),
    released AS (
        DELETE FROM holds
        WHERE call_id = ANY(ARRAY(SELECT json_array_elements_text(ids) FROM given))
        RETURNING call_id, owner, period, pico),
    called AS ({_insert("calls", CallRow, "(SELECT calls FROM given)")} RETURNING 1),
    attempted AS ({_insert("attempts", AttemptRow, "(SELECT attempts FROM given)")}),
    planned AS ({_PLANS.format(rows="(SELECT plans FROM given)")}),
    summed AS ({_SUMS.format(rows="(SELECT sums FROM given)")}),
    held AS (SELECT c0 AS call_id, c1 AS owner, c2 AS period, c3 AS pico
        FROM json_to_recordset((SELECT holds FROM given))
        AS t(c0 text, c1 text, c2 text, c3 bigint))
    SELECT 1 / (CASE WHEN json_array_length(calls) = (SELECT count(*) FROM called)
        AND json_array_length(holds) = (SELECT count(*) FROM released)
        AND json_array_length(holds) = (SELECT count(*) FROM released
            JOIN held USING (call_id, owner, period, pico)) THEN 1 ELSE 0 END) FROM given"""
_LATE = f"""INSERT INTO rolled (day, state) SELECT day, 0 FROM unnest(%s::bigint[]) AS w(day)
    ON CONFLICT (day) DO UPDATE
    SET state = CASE rolled.state WHEN {PRUNED} THEN {PRUNED} ELSE 0 END"""
_FORGET_STEPS = """DELETE FROM activity WHERE step = 300 AND start = ANY(%s::bigint[])
    OR step = 3600 AND start = ANY(%s::bigint[])"""
_STORED = """SELECT c.id, c.status FROM calls AS c
    JOIN unnest(%s::bigint[], %s::text[]) AS w(at_ns, id) USING (at_ns, id)"""
_HELD = "SELECT call_id, owner, period, pico FROM holds WHERE call_id = ANY(%s)"
_RELEASE = "DELETE FROM holds WHERE call_id = ANY(%s) RETURNING owner, period, pico, at_ms"
_EXPIRED = f"""SELECT call_id, owner, pico, at_ms, about, period FROM holds
    WHERE expires_ms <= %s ORDER BY call_id, owner LIMIT {MAX_LOST} FOR UPDATE SKIP LOCKED"""
_FORGET = """DELETE FROM holds USING unnest(%s::text[], %s::text[]) AS w(call_id, owner)
    WHERE holds.call_id = w.call_id AND holds.owner = w.owner"""


def settle(
    link: Link, batch: Sequence[Deferred], now: float, zone: tzinfo, plans: set[str]
) -> None:
    """Write settlements of new calls; raise DivisionByZero if an assertion fails."""
    if len(batch) > 1 and len({each.record.call.id for each in batch}) < len(batch):
        raise errors.DivisionByZero
    deltas, records = Deltas(), [record for record, _ in batch]
    held = [row for record, hold in batch for row in _expect(deltas, record.call, hold, zone)]
    rows = [call_row(record.call) for record in records]
    new = {key: line for _, key, line in rows if key and key not in plans}
    given = {
        "deltas": objects(changes(deltas)),
        "ids": [hold.call_id if hold else record.call.id for record, hold in batch],
        "calls": objects([row for row, _, _ in rows]),
        "attempts": objects([each for record in records for each in record.attempts]),
        "plans": objects(sorted(new.items())),
        "sums": objects(_sums([record.call for record in records])),
        "holds": objects(held),
    }
    values, shared = (encoded(given),), (locks(record.call.caller for record in records),)
    run(link, [(SHARED, shared), *marks(records, now), (_BATCH, values), (CHANGE_GIVEN, values)])
    if len(plans) < MAX_PLANS:
        plans.update(new)


def _expect(
    deltas: Deltas, call: CallRow, hold: Hold | None, zone: tzinfo
) -> list[tuple[str, str, str, int]]:
    """Add to *deltas* what a call spends and releases; return its holds."""
    _spend(deltas, call, hold, {}, 0, zone)
    if hold is None:
        return []
    keys = [(each.owner, each.key(hold.at, zone)) for each in hold.budget.all]
    for owner, key in keys:
        add(deltas, owner, key, 0, -hold.pico)
    return [(hold.call_id, *key, hold.pico) for key in keys]


def expected(link: Link, batch: Sequence[Deferred], zone: tzinfo) -> tuple[list[int], list[int]]:
    """Return the numbers of the settlements that `settle` can write together, and of odd ones.

    What is in neither was written before, and has nothing left to free.
    """
    places = [(each.record.call.at_ns, each.record.call.id) for each in batch]
    ids = [each.hold.call_id if each.hold else each.record.call.id for each in batch]
    states = dict(link.execute(_STORED, transposed(places, 2)).fetchall())
    holds: dict[str, set[Any]] = {}
    for row in link.execute(_HELD, (ids,)).fetchall():
        holds.setdefault(row[0], set()).add(row)
    usual, odd, seen = list[int](), list[int](), set[str]()
    for n, (record, hold) in enumerate(batch):
        id = record.call.id
        wanted = set(_expect({}, record.call, hold, zone))
        if id in seen or states.get(id) == LOST or (id in states and ids[n] in holds):
            odd.append(n)
        elif id not in states:
            (usual if holds.get(ids[n], set()) == wanted else odd).append(n)
        seen.add(id)
    return usual, odd


def settle_one(link: Link, settlement: Deferred, now: float, zone: tzinfo) -> bool:
    """Write a settlement in any state of its holds; return False if its call is stored already."""
    record, hold = settlement
    call, deltas = record.call, Deltas()
    with link.transaction():
        for statement in ((SHARED, (locks([call.caller]),)), *marks([record], now)):
            link.execute(*statement)
        ids = list({call.id, hold.call_id} if hold else {call.id})
        released: dict[str, float] = {}  # when they were reserved, by owner
        for owner, key, pico, at_ms in link.execute(_RELEASE, (ids,)).fetchall():
            add(deltas, owner, key, 0, -pico)
            released[owner] = at_ms / 1000
        new, taken_back = bool(write_rows(link, [record])), None
        if not new and (taken_back := _found_again(link, call.at_ns, call.id)) is not None:
            new = bool(write_rows(link, [record]))
        if new and hold is not None and not taken_back and not released:
            taken_back = _found_again(link, *lost_place(hold))  # without facts about the call
        if new:
            _spend(deltas, call, hold, released, taken_back or 0, zone)
            link.execute(ADD_SUMS, (recordset(_sums([call])),))
        link.execute(*change(deltas))
    return new


def _spend(
    deltas: Deltas,
    call: CallRow,
    hold: Hold | None,
    released: Mapping[str, float],
    taken_back: int,
    zone: tzinfo,
) -> None:
    """Add what a call has cost to the periods of what it held, else of its start.

    The caller may have had a budget of its own in these periods, too.
    """
    owners, start = {call.caller}, call.at_ns / 1e9
    if hold is not None:
        owners, start = {each.owner for each in hold.budget.all}, hold.at
    for owner in {call.caller, *owners, *released}:
        back = taken_back if owner in owners - released.keys() else 0
        spend(deltas, owner, (call.cost or 0) - back, released.get(owner, start), zone)


def write_rows(link: Link, records: Sequence[Record]) -> set[str]:
    """Add calls with their attempts; return the ids of those that were new."""
    rows = [call_row(record.call) for record in records]
    added = {
        id for (id,) in link.execute(_CALLS, (recordset([row for row, _, _ in rows]),)).fetchall()
    }
    if added:
        attempts = [attempt for record in records for attempt in record.attempts]
        link.execute(_ATTEMPTS, (recordset(attempts),))
        link.execute(_ADD_PLANS, (recordset(sorted({(k, line) for _, k, line in rows if k})),))
    return added


def _found_again(link: Link, at_ns: int, id: str) -> int | None:
    """Remove the rows of a call that was taken for lost; return what was spent for it, or None."""
    if (found := take_back(Sql(link), at_ns, id)) is None:
        return None
    caller, cost = found
    micro, pico = divmod(cost, MICRO)
    link.execute(ADD_SUMS, (recordset([(caller, at_ns // (SLOT * 10**9), -micro, -pico)]),))
    return cost


def lose(link: Link, now: float, zone: tzinfo) -> bool:
    """Turn holds whose lease has ended into spending, with a row for each call.

    Return whether there may be more.
    """
    with link.transaction():
        link.execute(SHARED, (list(range(LOCKS)),))
        found = link.execute(_EXPIRED, (ms(now),)).fetchall()
        if not found:
            return False
        link.execute(_FORGET, transposed([row[:2] for row in found], 2))
        lost = {row[0]: lost_record(expired(*row[:5])) for row in found}
        places = [(each.call.at_ns, id) for id, each in lost.items()]
        stored = link.execute(_STORED, transposed(places, 2)).fetchall()
        settled = {id for id, status in stored if status != LOST}
        new = [record for id, record in lost.items() if id not in settled]
        for mark in marks(new, now):
            link.execute(*mark)
        added = write_rows(link, new)
        link.execute(ADD_SUMS, (recordset(_sums([e.call for e in new if e.call.id in added])),))
        deltas: Deltas = {}
        for id, owner, pico, at_ms, _, period in found:
            add(deltas, owner, period, 0, -pico)
            if id not in settled:
                spend(deltas, owner, pico, at_ms / 1000, zone)
        link.execute(*change(deltas))
    return len(found) == MAX_LOST


def marks(records: Sequence[Record], now: float) -> list[Statement]:
    """Return the statements that mark ended days and steps of activity to be summed up again."""
    found = list[Statement]()
    if starts := _starts(records, SLOT_SECONDS, now):  # hours and days are whole steps
        if days := [start // DAY for start in _starts(records, DAY, now)]:
            found.append((_LATE, (days,)))
        found.append((_FORGET_STEPS, (starts, _starts(records, HOUR, now))))
    return found


def _starts(records: Iterable[Record], step: int, now: float) -> list[int]:
    """Return the starts of the ended steps to which a call is added."""
    starts = {record.call.at_ns // 10**9 // step * step for record in records}
    return sorted(start for start in starts if start + step <= now)


def _sums(calls: Iterable[CallRow]) -> list[tuple[Any, ...]]:
    found: dict[tuple[str, int], list[int]] = {}
    for call in calls:
        if call.cost:
            sums = found.setdefault((call.caller, call.at_ns // (SLOT * 10**9)), [0, 0])
            micro, pico = divmod(call.cost, MICRO)
            sums[0] += micro
            sums[1] += pico
    return [(*key, *found[key]) for key in sorted(found)]
