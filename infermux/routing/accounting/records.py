"""The rows of a ledger for a finished call."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import cast

from ...ledger import MAX_PICO, MAX_TOKENS, AttemptRow, CallRow, Record
from ...planning import kept
from ...planning.call import Attempt, Call
from ...types import Target, Usage

MAX_TEXT = 200  # characters of a name in a row
MAX_TAGS = 16  # tags in a row
_NO_USAGE = Usage()
_Tokens = tuple[int | None, int | None, int | None, int | None, int | None, int | None]
# tokens by class, cost, milliseconds to the first token, attempts without a price, saved by a cache
_Sums = tuple[_Tokens, int | None, int | None, int, int | None]


def record(call: Call) -> Record:
    """Return the rows of *call*; its cost is the sum over its billed attempts."""
    place = call.settles or (call.start_ns, call.id)
    rows = tuple([_attempt(call, place, n, each) for n, each in enumerate(call.attempts)])
    last, error = rows[-1] if rows else None, call.error
    if last:
        names = (last.model, last.served, last.provider)
    elif cached := call.cached:
        names = (_text(cached.target.model), _text(cached.served), _text(cached.target.provider))
    else:
        names = ("", "", _text(call.request.provider))
    tokens, cost, first, unpriced, saved = _sums(rows)
    whole = CallRow(
        *place,
        _text(call.trace_id),
        _text(call.caller.name),
        _tags(tuple(call.tags.items())),
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
        saved,
        sum([row.cost or 0 for row in rows if row.assumed]),
        call.end_user and _text(call.end_user),
        kept(call.plan),
    )
    return Record(whole, rows)


def _attempt(call: Call, place: tuple[int, str], n: int, attempt: Attempt) -> AttemptRow:
    target, usage = attempt.target, attempt.usage or _NO_USAGE
    cost, start, model = attempt.cost, call.started, _text(target.model)
    final = n == len(call.attempts) - 1
    return AttemptRow(
        *place,
        n,
        _text(target.provider),
        model,
        _text(attempt.served) or model,
        round((attempt.started - start) * 1000),
        None if attempt.first_chunk is None else round((attempt.first_chunk - start) * 1000),
        None if attempt.ended is None else round((attempt.ended - start) * 1000),
        _count(usage.input_tokens),
        _count(usage.output_tokens),
        _count(usage.cached_input_tokens),
        _count(usage.cache_write_tokens),
        _count(usage.cache_write_1h_tokens),
        _count(usage.reasoning_tokens),
        None if cost is None else max(0, min(cost, MAX_PICO)),
        int(cost is None and attempt.usage is not None),
        "" if attempt.error is None else attempt.error.code,
        int(final),
        None if attempt.error is None else attempt.error.upstream_status,
        attempt.upstream_request_id,
        attempt.cache_saved,
        int(attempt.assumed),
        _text(usage.service_tier),
        _billed(usage),
        "" if attempt.error is None else _text(attempt.error.cause),
        _text(call.finish_reason) if final and attempt.error is None else "",
    )


_BY = (
    *("input_audio_tokens", "input_image_tokens", "input_video_tokens", "cached_audio_tokens"),
    *("output_audio_tokens", "output_image_tokens", "tool_use_tokens", "geo"),
)


def _billed(usage: Usage) -> str:
    """Return what an answer was billed by besides tokens, as JSON; "" if nothing."""
    found = {name: value for name in _BY if (value := getattr(usage, name))}
    if usage.fees:
        found["fees"] = dict(usage.fees[:MAX_TAGS])
    if usage.others:
        found["others"] = {
            _text(model): [other.input_tokens, other.output_tokens]
            for model, other in usage.others[:MAX_TAGS]
        }
    return json.dumps(found) if found else ""


def about(call: Call, target: Target, at_ns: int | None = None) -> str:
    """Return what the row of a call contains if its worker dies; *at_ns*: another start."""
    return json.dumps(
        [
            call.start_ns if at_ns is None else at_ns,
            call.trace_id,
            call.caller.name,
            _tags(tuple(call.tags.items())),
            call.api,
            _text(call.request.model),
            _text(target.model),
            target.provider,
            call.end_user and _text(call.end_user),
        ]
    )


def _sums(rows: Sequence[AttemptRow]) -> _Sums:
    if len(rows) == 1:  # the usual case
        [row] = rows
        cost = 0 if row.cost is None and not row.unpriced else row.cost
        return row[9:15], cost, row.first_ms, row.unpriced, row.cache_saved
    columns = zip(*[row[9:15] for row in rows], strict=True)
    sums = [_sum(column) for column in columns] or [None] * 6
    tokens = cast(_Tokens, tuple(sums))
    unpriced, cost = sum([row.unpriced for row in rows]), _sum([row.cost for row in rows])
    first = next((row.first_ms for row in reversed(rows) if row.first_ms is not None), None)
    saved = _sum([row.cache_saved for row in rows])
    return tokens, cost if cost is not None or unpriced else 0, first, unpriced, saved


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _count(value: int | None) -> int | None:
    return max(0, min(value, MAX_TOKENS)) if isinstance(value, int) else None


def _text(value: object) -> str:
    if not isinstance(value, str):
        return ""
    if len(value) <= MAX_TEXT and value.isascii():
        return value
    return value[:MAX_TEXT].encode(errors="replace").decode()


@lru_cache(maxsize=256)
def _tags(tags: tuple[tuple[str, str], ...]) -> str:
    return json.dumps({_text(name): _text(value) for name, value in sorted(tags)[:MAX_TAGS]})
