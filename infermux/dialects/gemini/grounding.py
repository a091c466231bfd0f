"""Google's citations: the sources of an answer, and the bytes of its text that they support."""

from __future__ import annotations

from collections.abc import Sequence

from ...types import JSON
from .. import members
from ..citations import URL, citation

_KINDS = ("web", "retrievedContext", "maps")  # of sources, where they have an address


def grounded(value: object, text: str) -> list[JSON]:
    """Return the citations in a groundingMetadata of an answer whose *text* is known."""
    told, found = members(value), []
    chunks, supports = told.get("groundingChunks"), told.get("groundingSupports")
    sources = [_source(each) for each in chunks] if isinstance(chunks, list) else []
    for each in supports if isinstance(supports, list) else ():
        numbers = members(each).get("groundingChunkIndices")
        start, end = _segment(members(members(each).get("segment")), text)
        for number in numbers if isinstance(numbers, list) else ():
            if isinstance(number, int) and 0 <= number < len(sources):
                source = sources[number]
                found.append(citation(source.get("uri"), source.get("title"), start, end))
    if not supports:  # then the sources are those of the whole
        found = [citation(one.get("uri"), one.get("title"), 0, len(text)) for one in sources]
    return [one for one in found if one]


def _source(chunk: object) -> JSON:
    kinds = (members(members(chunk).get(kind)) for kind in _KINDS)
    return next((kind for kind in kinds if kind), {})


def _segment(segment: JSON, text: str) -> tuple[int, int]:
    """Return a segment in characters: its bytes, or where its words are if those do not fit.

    The bytes may be those of one part of several.
    """
    data, words = text.encode(errors="replace"), segment.get("text")
    cuts = (segment.get("startIndex") or 0, segment.get("endIndex") or 0)
    start, end = (
        len(data[:cut].decode(errors="ignore")) if type(cut) is int and cut > 0 else 0
        for cut in cuts
    )
    if isinstance(words, str) and text[start:end] != words and (at := text.find(words)) >= 0:
        return at, at + len(words)
    return start, end


def grounding_of(annotations: Sequence[JSON], text: str, part: int = 0) -> JSON:
    """Return the groundingMetadata member of a candidate with *text* as its *part*; {}: none."""
    sources: dict[tuple[str, str], int] = {}
    supports: dict[tuple[int, int], list[int]] = {}
    for one in (each[URL] for each in annotations):
        number = sources.setdefault((one["url"], one["title"]), len(sources))
        supports.setdefault((one["start_index"], one["end_index"]), []).append(number)
    if not sources:
        return {}
    place = {"partIndex": part} if part else {}
    return {
        "groundingMetadata": {
            "groundingChunks": [{"web": {"uri": url, "title": name}} for url, name in sources],
            "groundingSupports": [
                {
                    "segment": place
                    | {
                        "startIndex": len(text[:start].encode(errors="replace")),
                        "endIndex": len(text[:end].encode(errors="replace")),
                        "text": text[start:end],
                    },
                    "groundingChunkIndices": numbers,
                }
                for (start, end), numbers in supports.items()
            ],
        }
    }
