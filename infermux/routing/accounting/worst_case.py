"""The most that a call may cost, which a budget holds before it.

Each part of the body that is sent counts at the highest price that the vendor could bill. If the
price of a part is unknown, there is no worst case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from ...dialects.sizes import (
    MAX_IMAGE,
    MIN_OUTPUT,
    Size,
    fallbacks,
    size_of,
    substitutes,
    with_uses,
)
from ...errors import BudgetExceeded, InferMuxError, NoHealthyProvider, UnpricedModel, shown
from ...planning import Plan
from ...pricing import Price, cost, usd
from ...protocol import InferRequest
from ...types import JSON, Target, Usage
from ..targets import UNPRICED
from .passed import most_passed

MAX_CONTEXT = 2_000_000  # tokens of a model whose context is not known
MARGIN = 1.25  # of an estimated number of tokens: the 95th percentile of its error
LATER = (timedelta(minutes=15), timedelta(minutes=30))  # when a call ends: prices may change


class Worst(NamedTuple):
    """The most that a call may cost at a target."""

    pico: int | None  # None: a price is unknown
    size: Size
    price: Price
    output: int  # tokens of each answer
    bounded: bool  # whether something limits the answer
    more: int = 0  # pico-USD of the models that are asked after a refusal, which are in `pico`

    def unpacked(self) -> Worst:
        """Return the most that the call may cost if its files hold what their bytes tell."""
        size = replace(self.size, packed=False)
        most = most_cost(size, self.price, self.output)
        return self._replace(size=size, pico=None if most is None else most + self.more)

    def affordable(self, pico: int) -> int:
        """Return the most output tokens of each answer so that the call costs at most *pico*.

        The input has room in the context beside them: vendors refuse a limit beyond it. It may be
        shorter than its bytes, so a quarter of the context is left to the output.
        """
        context = context_of(self.price)
        room = context - min(self.size.tokens, context * 3 // 4)
        low, high = 0, min(room, self.price.max_output or room)
        while low < high:
            middle = (low + high + 1) // 2
            most = most_cost(self.size, self.price, middle)
            if most is not None and most + self.more <= pico:
                low = middle
            else:
                high = middle - 1
        return low if low >= MIN_OUTPUT else 0


class Fit(NamedTuple):
    """What a call is to hold that costs too much, with the limits that it is sent with."""

    pico: int
    most_output: int | None = None  # tokens
    most_uses: int | None = None  # of each of the vendor's own tools


def fitted(worst: Worst, left: int, limited: Callable[[int], Worst | None]) -> Fit | None:
    """Return how *left* pico-USD can pay for a call, or None.

    *limited* returns its worst case with fewer uses of tools. Limits are set only where the client
    sets none. A call with a file that may be larger than it looks holds all that is left.
    """
    most, uses, most_uses = worst, worst.size.contexts + 1, None
    while uses > 1 and (most.pico or 0) > left:
        found = limited(uses := uses // 2)
        if found is not None and found.size.contexts < most.size.contexts:
            most, most_uses = found, uses  # the format has this limit, and the client sets none
    is_packed = most.size.packed and (most.pico or 0) > left
    most = most.unpacked() if is_packed else most
    if (most.pico or 0) <= left:
        return Fit(left if is_packed else most.pico or 0, None, most_uses)
    tokens = 0 if worst.bounded else most.affordable(left)
    if not tokens:
        return None
    pico = most_cost(most.size, most.price, tokens)
    return Fit(left if is_packed else (pico or 0) + most.more, tokens, most_uses)


def body_of(provider: object, request: InferRequest) -> tuple[JSON, str]:
    """Return the body that *provider* is sent, or what is most like it, and its format."""
    sent = getattr(provider, "body_of", None)
    if sent is not None:
        found: tuple[JSON, str] = sent(request)
        return found
    messages = {"messages": list(request.messages)} if request.messages else {}
    return messages | dict(request.params), "openai"


def worst_case(
    provider: object,
    request: InferRequest,
    price: Price,
    tokens: int | None = None,
    others: Callable[[str], Price | None] = lambda _: None,
) -> Worst:
    """Return the most that *request* may cost; *tokens* is its input, if only that is known.

    *others* returns the prices of other models, which the vendor may ask instead or as well.
    """
    own = getattr(provider, "worst_case", None)
    if own is not None and getattr(provider, "price", None) is price:  # it has a formula
        found: Size = own(request)
        output = found.output or 0
        return Worst(most_cost(found, price, output), found, price, output, True)
    if request.passed is not None:
        return Worst(most_passed(request, price), Size(), price, 0, True)
    body, form = body_of(provider, request)
    if request.most_uses is not None:
        body = with_uses(body, request.most_uses, form)
    size = size_of(body, "completions" if request.op == "completions" else form)
    if tokens is not None:
        size.tokens = round(tokens * MARGIN) + 3
    if request.op == "embeddings":
        size.output = 0
    worst = _of(size, price)
    if names := fallbacks(body, form):
        prices = map(others, names)
        unknown = worst._replace(pico=None)
        other = [unknown if each is None else _of(size, each) for each in prices]
        dear = max(worst, *other, key=lambda each: math.inf if each.pico is None else each.pico)
        return dear._replace(bounded=True)  # another may be the dearest if the answer is limited
    for model, asked in substitutes(body, form):
        listed = others(model)
        more = None if listed is None else _of(size_of(asked, form), listed).pico
        if more is None or worst.pico is None:
            return worst._replace(pico=None)
        worst = worst._replace(pico=worst.pico + more, more=worst.more + more)
    return worst


def _of(size: Size, price: Price) -> Worst:
    bounded, output = True, size.output
    if output is None:
        bounded, output = price.max_output is not None, price.max_output or context_of(price)
    return Worst(most_cost(size, price, output), size, price, output, bounded)


def context_of(price: Price) -> int:
    """Return the context length of a model, or the most that there is."""
    return price.max_input or MAX_CONTEXT


def most_cost(size: Size, price: Price, output: int) -> int | None:
    """Return the most that a request may cost, or None if it is not known.

    *output* is the number of tokens of each answer, without what is billed beside it.
    """
    summary = size.compacts * (price.max_output or context_of(price))
    output += size.predicted + summary
    now = datetime.now(UTC)
    changes = price.peak is not None or price.next
    moments = (now, *[now + later for later in LATER]) if changes else (now,)
    worst = 0
    for usage in _usages(size, price, output * size.answers):
        for tier in {size.tier, ""}:
            for at in moments:
                found = cost(usage, price, at=at, service_tier=tier)
                if found is None:
                    return None
                worst = max(worst, found)
    return worst


def _usages(size: Size, price: Price, output: int) -> Iterator[Usage]:
    """Yield the possible usages, one of which is the most expensive."""
    rates, images = price.rates, size.images * (price.max_image or MAX_IMAGE)
    contexts = size.contexts + (size.unknown or size.packed)
    added = (price.max_added or 0) + contexts * context_of(price)
    tokens = size.tokens + size.audio + images + added
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
    if size.draws or rates.output_image is not None:  # some models draw unasked
        kinds.append(replace(usage, output_image_tokens=output))
    # where a cache for an hour has a price, only what is marked is written to a cache
    writes = rates.cache_write is not None and (size.caches or rates.cache_write_1h is None)
    text = tokens - size.audio - (images if usage.input_image_tokens else 0)
    for kind in kinds:
        yield kind
        if writes or size.caches:
            hour = text if size.long_cache else None
            yield replace(kind, cache_write_tokens=text, cache_write_1h_tokens=hour)


# -- refusals --


def unpriced(target: Target) -> UnpricedModel:
    """Return the error for a call with a hard budget whose worst case is unknown."""
    if not target.model:
        return UnpricedModel(
            "what a batch costs is known only when it has ended, and the key has a budget that "
            'must not be exceeded; use a key without one, or one that only warns (then = "warn")'
        )
    return UnpricedModel(
        f"the price of {shown(str(target))} is unknown for what this call asks, and the key has a "
        "budget that must not be exceeded; use a model with a price, or set one in [providers]",
        param="model",
    )


def helped(error: BudgetExceeded, worst: Worst | None, left: int) -> BudgetExceeded:
    """Return the error with a hint about what would fit."""
    if worst is None or worst.pico is None:
        return error
    tokens = worst.affordable(left)
    told = f"{usd(max(0, left))} USD are left, and this call may cost {usd(worst.pico)} USD"
    ways = ["set max_tokens"] if tokens or worst.output else []
    if worst.size.contexts:
        ways.append("set max_uses or max_tool_calls")
    if worst.size.packed:
        ways.append("send text or uncompressed audio instead of files")
    if not tokens:
        ways.append("send less")
    told = f"{', or '.join(ways)}: {told}"
    if tokens:
        told += f"; at most {tokens} tokens can be paid"
    error.message = f"{error.message}; {told}"
    error.args = (error.message,)
    return error


def no_target(plan: Plan) -> InferMuxError:
    """Return why a plan has no target."""
    if plan.dropped and set(plan.dropped.values()) == {UNPRICED}:
        return unpriced(next(iter(plan.dropped)))
    reasons = "; ".join(f"{target}: {reason}" for target, reason in plan.dropped.items())
    return NoHealthyProvider(
        f"no target is available for model {shown(plan.model)} ({reasons[:300]})",
        retry_after=plan.retry_in,
    )
