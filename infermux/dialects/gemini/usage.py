"""Reads what Google bills by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from ...protocol import InferResponse
from ...types import JSON, Chunk, Usage
from .. import count, items, word
from .. import obj as strict

_MODALITIES = ("", "TEXT", "IMAGE", "VIDEO", "AUDIO", "DOCUMENT")  # by Google's numbers
# Vertex AI's names of service tiers
_TRAFFIC = {
    "ON_DEMAND": "standard",
    "TRAFFIC_TYPE_UNSPECIFIED": "",
    "ON_DEMAND_PRIORITY": "priority",
    "ON_DEMAND_FLEX": "flex",
    "PROVISIONED_THROUGHPUT": "provisioned",
}
_TIERS = ("", "standard", "flex", "priority")  # by Google's numbers


class Searches:
    """Counts the searches of one answer, which may come in pieces."""

    def __init__(self) -> None:
        self._queries: set[str] = set()
        self._grounded = False

    def add(self, candidates: Iterable[JSON]) -> None:
        for candidate in candidates:
            told = candidate.get("groundingMetadata")
            if not isinstance(told, dict):
                continue
            queries = told.get("webSearchQueries")
            if isinstance(queries, list):
                self._queries.update(map(str, queries))
            self._grounded = self._grounded or bool(told.get("groundingChunks"))

    @property
    def fees(self) -> tuple[tuple[str, int], ...]:
        """What is billed by number."""
        number = len(self._queries) or int(self._grounded)
        return (("web_search", number),) if number else ()


def usage_of(
    value: object, fees: tuple[tuple[str, int], ...] = (), tier: object = None
) -> Usage | None:
    """Return the usage, or None.

    Google counts thoughts apart from candidates, and the prompts of its own tools apart from ours.
    """
    data = strict(value)
    prompt, written = count(data.get("promptTokenCount")), count(data.get("candidatesTokenCount"))
    thoughts, total = count(data.get("thoughtsTokenCount")), count(data.get("totalTokenCount"))
    output = None if written is thoughts is None else (written or 0) + (thoughts or 0)
    if prompt is output is None:
        return None
    tools = count(data.get("toolUsePromptTokenCount"))
    if prompt is not None and total is not None:
        rest = total - prompt - (tools or 0)
        output = rest if rest > (output or 0) else output
    of_input = _by_modality(data, "promptTokensDetails", "toolUsePromptTokensDetails")
    of_output = _by_modality(data, "candidatesTokensDetails")
    return Usage(
        prompt,
        output,
        count(data.get("cachedContentTokenCount")),
        reasoning_tokens=thoughts,
        tool_use_tokens=tools,
        service_tier=_tier(data, tier),
        input_audio_tokens=of_input.get("AUDIO"),
        input_image_tokens=of_input.get("IMAGE"),
        input_video_tokens=of_input.get("VIDEO"),
        cached_audio_tokens=_by_modality(data, "cacheTokensDetails").get("AUDIO"),
        output_audio_tokens=of_output.get("AUDIO"),
        output_image_tokens=of_output.get("IMAGE"),
        fees=fees,
    )


def _tier(data: JSON, beside: object) -> str | None:
    for tier in (data.get("serviceTier"), beside):
        if isinstance(tier, int) and 0 < tier < len(_TIERS):
            return _TIERS[tier]
        if isinstance(tier, str) and tier:
            return tier.lower().removeprefix("service_tier_")
    traffic = word(data.get("trafficType"))
    return _TRAFFIC.get(traffic, traffic.lower()) or None


def _by_modality(data: JSON, *names: str) -> dict[str, int]:
    """Return the tokens of each medium in these members together."""
    found: dict[str, int] = {}
    lists = [data[name] for name in names if isinstance(data.get(name), list)]
    for detail in chain(*map(items, lists)):
        kind, tokens = detail.get("modality"), count(detail.get("tokenCount"))
        if isinstance(kind, int) and 0 <= kind < len(_MODALITIES):
            kind = _MODALITIES[kind]
        if tokens and isinstance(kind, str):
            found[kind] = found.get(kind, 0) + tokens
    return found


Billed = TypeVar("Billed", InferResponse, Chunk)


def billed(answer: Billed, headers: Mapping[str, str]) -> Billed:
    """Return an answer with the tier at which it was served, if only the headers tell it.

    Google may serve a priority request at the standard tier:
    ai.google.dev/gemini-api/docs/priority-inference.
    """
    usage, tier = answer.usage, headers.get("x-gemini-service-tier", "")
    if usage is None or usage.service_tier or not tier:
        return answer
    usage = replace(usage, service_tier=tier.lower().removeprefix("service_tier_")[:40])
    if isinstance(answer, Chunk):
        return answer._replace(usage=usage)
    return replace(answer, usage=usage)
