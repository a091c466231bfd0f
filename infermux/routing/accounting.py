"""Turns a finished call into the rows that the ledger keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache

from ..ledger import MAX_PICO, MAX_TOKENS, AttemptRow, CallRow, Record
from ..planning.call import Attempt, Call
from ..planning.replay import kept
from ..types import Usage

_TEXT = 200  # characters of a name that are kept
_TAGS = 16  # tags of a call that are kept
_NOTHING = Usage()
_Tokens = tuple[int | None, int | None, int | None, int | None, int | None, int | None]
_Sums = tuple[
    _Tokens, int | None, int | None, int
]  # tokens by class, cost, milliseconds to the first token, attempts without a price


def record(call: Call) -> Record:
    """Return what a ledger keeps of *call*: its cost is the sum of its attempts', and only billed
    ones have a cost.
    """
    rows = tuple([_attempt(call, n, each) for n, each in enumerate(call.attempts)])
    last, error = rows[-1] if rows else None, call.error
    names = (
        (last.model, last.served, last.provider) if last else ("", "", _text(call.request.provider))
    )
    tokens, cost, first, unpriced = _sums(rows) if last is None or len(rows) > 1 else _same(last)
    whole = CallRow(
        call.start_ns,
        call.id,
        _text(call.trace_id),
        _text(call.caller.name),
        _tags(tuple(call.tags.items())) if call.tags else "{}",
        _text(call.api),
        _text(call.request.model),
        *names,
        call.plan.strategy if call.plan else "",
        "ok" if error is None else str(error.status),
        "" if error is None else error.code,
        *tokens,
        cost,
        call.cost_source,
        int(True in [each.usage is not None and each.usage.estimated for each in call.attempts]),
        call.latency_ms,
        first,
        len(rows),
        unpriced,
        kept(call.plan),
    )
    return Record(whole, rows)


def _attempt(call: Call, n: int, attempt: Attempt) -> AttemptRow:
    target, usage, cost, start = (
        attempt.target,
        attempt.usage or _NOTHING,
        attempt.cost,
        call.started,
    )
    model = _text(target.model)
    return AttemptRow(
        call.start_ns,
        call.id,
        n,
        _text(target.provider),
        model,
        _text(attempt.served) or model,
        _ms(attempt.started - start),
        None if attempt.first_chunk is None else _ms(attempt.first_chunk - start),
        None if attempt.ended is None else _ms(attempt.ended - start),
        _count(usage.input_tokens),
        _count(usage.output_tokens),
        _count(usage.cached_input_tokens),
        _count(usage.cache_write_tokens),
        _count(usage.cache_write_1h_tokens),
        _count(usage.reasoning_tokens),
        None if cost is None else max(0, min(cost, MAX_PICO)),
        int(cost is None and attempt.usage is not None),
        "" if attempt.error is None else attempt.error.code,
        int(n == len(call.attempts) - 1),
    )


def _same(row: AttemptRow) -> _Sums:
    """Return the sums over one attempt."""
    return (
        row[9:15],
        0 if row.cost is None and not row.unpriced else row.cost,
        row.first_ms,
        row.unpriced,
    )


def _sums(rows: Sequence[AttemptRow]) -> _Sums:
    """Return the tokens and cost of all attempts, None where none of them knows, the last first
    token, and what has no price.
    """
    known = [
        [count for count in counts if count is not None]
        for counts in zip(*[row[9:15] for row in rows], strict=True)
    ]
    sums = [sum(counts) if counts else None for counts in known] or [None] * 6
    costs = [row.cost for row in rows if row.cost is not None]
    firsts = [row.first_ms for row in rows if row.first_ms is not None]
    unpriced = sum(row.unpriced for row in rows)
    cost = None if unpriced and not costs else sum(costs)
    return (
        (sums[0], sums[1], sums[2], sums[3], sums[4], sums[5]),
        cost,
        firsts[-1] if firsts else None,
        unpriced,
    )


def _count(value: int | None) -> int | None:
    """Return a number of tokens that can be stored: a user's own provider may report anything."""
    if not isinstance(value, int):
        return None
    return value if 0 <= value <= MAX_TOKENS else max(0, min(value, MAX_TOKENS))


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _text(value: object) -> str:
    """Return what can be stored of a name: a lone surrogate cannot."""
    if not isinstance(value, str):
        return ""
    if len(value) <= _TEXT and value.isascii():
        return value
    return value[:_TEXT].encode(errors="replace").decode()


@lru_cache(maxsize=256)
def _tags(tags: tuple[tuple[str, str], ...]) -> str:
    return json.dumps({_text(name): _text(value) for name, value in sorted(tags)[:_TAGS]})
