"""The most that a call may cost, which a budget holds before it.

Each part of the body that is sent counts at the highest price that the vendor could bill. If the
price of a part is unknown, there is no worst case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ...dialects.sizes import MAX_IMAGE, MIN_OUTPUT, Size, size_of, text_tokens
from ...pricing import Price, cost
from ...protocol import InferRequest
from ...types import JSON, Usage
from .passed import most_passed

MAX_CONTEXT = 2_000_000  # tokens of a model whose context is not known
MARGIN = 1.25  # of an estimated number of tokens: the 95th percentile of its error
LATER = timedelta(minutes=15)  # within which a price may change


class Worst(NamedTuple):
    """The most that a call may cost at a target."""

    pico: int | None  # None: a price is unknown
    size: Size
    price: Price
    bounded: bool  # whether something limits the answer

    def with_output(self, tokens: int) -> Size:
        """Return the size of the request with a limit of its output."""
        return replace(self.size, output=tokens)

    def affordable(self, pico: int) -> int:
        """Return the most output tokens of each answer so that the call costs at most *pico*."""
        low, high = 0, self.price.max_output or context_of(self.price)
        while low < high:
            middle = (low + high + 1) // 2
            most = most_cost(self.with_output(middle), self.price)
            if most is not None and most <= pico:
                low = middle
            else:
                high = middle - 1
        return low if low >= MIN_OUTPUT else 0


def body_of(provider: object, request: InferRequest) -> JSON:
    """Return the body that *provider* is sent, or the most similar part of the request."""
    sent = getattr(provider, "body_of", None)
    if sent is not None:
        found: JSON = sent(request)
        return found
    messages = {"messages": list(request.messages)} if request.messages else {}
    return messages | dict(request.params)


def worst_case(
    provider: object, request: InferRequest, price: Price, tokens: int | None = None
) -> Worst:
    """Return the most that *request* may cost; *tokens* is its input, if only that is known."""
    own = getattr(provider, "worst_case", None)
    if own is not None and getattr(provider, "price", None) is price:  # it has a formula
        found: Size = own(request)
        return Worst(most_cost(found, price), found, price, True)
    if request.passed is not None:
        return Worst(most_passed(request, price), Size(), price, True)
    size = size_of(body_of(provider, request))
    if tokens is not None:
        size.text, size.tokens = 0, round(tokens * MARGIN) + 3
    if request.op == "embeddings":
        size.output = 0
    bounded = size.output is not None or price.max_output is not None
    if size.output is None:
        size.output = price.max_output or context_of(price)
    return Worst(most_cost(size, price), size, price, bounded)


def context_of(price: Price) -> int:
    """Return the context length of a model, or the most that there is."""
    return price.max_input or MAX_CONTEXT


def most_cost(size: Size, price: Price) -> int | None:
    """Return the most that a request of this size may cost, or None if it is not known."""
    now = datetime.now(UTC)
    moments = (now,) if price.units is not None else (now, now + LATER)
    worst = 0
    for usage in _usages(size, price):
        for tier in {size.tier, ""}:
            for at in moments:
                found = cost(usage, price, at=at, service_tier=tier)
                if found is None:
                    return None
                worst = max(worst, found)
    return worst


def _usages(size: Size, price: Price) -> Iterator[Usage]:
    """Yield the possible usages, one of which is the most expensive."""
    rates, images = price.rates, size.images * MAX_IMAGE
    tokens = (
        text_tokens(size.text)
        + size.tokens
        + size.audio
        + images
        + (context_of(price) if size.unknown else 0)
    )
    output = (size.output or 0) * size.answers
    usage = Usage(
        tokens,
        output,
        input_audio_tokens=size.audio or None,
        input_image_tokens=images if rates.input_image is not None else None,
        reasoning_tokens=output if (rates.reasoning or 0) > (rates.output or 0) else None,
        geo=size.geo or None,
        fees=tuple(size.fees.items()),
    )
    kinds = [usage]
    if size.speaks:
        kinds.append(replace(usage, output_audio_tokens=output))
    if size.draws:
        kinds.append(replace(usage, output_image_tokens=output))
    # where a cache for an hour has a price, only what is marked is written to a cache
    writes = rates.cache_write is not None and (size.caches or rates.cache_write_1h is None)
    text = tokens - size.audio - images
    for kind in kinds:
        yield kind
        if writes or size.caches:
            hour = text if size.long_cache else None
            yield replace(kind, cache_write_tokens=text, cache_write_1h_tokens=hour)
