"""Ends an answer at the client's stop sequences where the vendor does not.

Responses has no `stop`, other formats do not take all or as many. The vendor writes on, and what it
writes after the stop is billed, but the client does not see it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..protocol import InferRequest, InferResponse
from ..types import Chunk
from . import strings


def stops_of(request: InferRequest) -> tuple[str, ...]:
    """Return the stop sequences; raise RequestError if they are neither a string nor strings."""
    given = request.params.get("stop")
    if given is None:
        return ()
    return tuple(filter(None, strings(given, "stop")))


def stopped(response: InferResponse, stops: Sequence[str]) -> InferResponse:
    """Return the response up to the first stop sequence; no tool is called after it."""
    end = _first(response.content, stops)
    if end < 0:
        return response
    kept = response.content[:end]
    return replace(response, content=kept, tool_calls=(), finish_reason="stop")


def stopped_stream(chunks: Iterator[Chunk], stops: Sequence[str]) -> Iterator[Chunk]:
    """Yield a stream up to the first stop sequence, and then its end with the usage.

    Text that may be the beginning of a stop sequence waits for what follows.
    """
    held, ended = "", False
    for chunk in chunks:
        reason = "stop" if chunk.finish_reason else None
        if ended:
            yield Chunk(finish_reason=reason, usage=chunk.usage, model=chunk.model, id=chunk.id)
            continue
        words = held + chunk.text
        end = _first(words, stops)
        if end >= 0:
            ended, held = True, ""
            yield chunk._replace(text=words[:end], tool_calls=(), native=None, finish_reason=reason)
            continue
        final = chunk.finish_reason or chunk.tool_calls
        keep = 0 if final else _beginning(words, stops)
        held = words[len(words) - keep :]
        yield chunk._replace(text=words[: len(words) - keep], native=None)


def _first(words: str, stops: Sequence[str]) -> int:
    """Return where the stop sequence begins that is whole first, or -1."""
    found = [(at + len(each), at) for each in stops if (at := words.find(each)) >= 0]
    return min(found, default=(-1, -1))[1]


def _beginning(words: str, stops: Sequence[str]) -> int:
    """Return the length of the longest end of *words* that begins a stop sequence."""
    lengths = range(min(len(words), max(map(len, stops)) - 1), 0, -1)
    return next((n for n in lengths if any(each.startswith(words[-n:]) for each in stops)), 0)
