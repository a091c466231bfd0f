"""What an answer used and what that costs, noted in its attempt and its call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from ..planning.call import Attempt, Call, StreamAccumulator
from ..planning.registry import Registry
from ..pricing import Price, charge
from ..pricing import token_estimate as tokens
from ..protocol import InferRequest, InferResponse
from ..types import Usage


class Billing:
    """Prices answers by what their vendors report, or by an estimate that says so."""

    def __init__(
        self,
        registry: Registry,
        overrides: Mapping[str, Mapping[str, Price]],
        *,
        content: bool = False,
    ) -> None:
        self._registry = registry
        self._content = content  # whether the text of answers is kept with their calls
        self._overrides = overrides  # a provider's own prices by model: they win over the table

    def answered(self, call: Call, attempt: Attempt, response: InferResponse) -> InferResponse:
        """Bill a whole answer, and return it with the usage that was billed."""
        attempt.served = response.model
        call.finish_reason = response.finish_reason
        if self._content:
            call.answer = response.content
        usage = response.usage or Usage(
            response.tokens_in, response.tokens_out, cost_usd=response.cost_usd
        )
        if not usage.input_tokens and not usage.output_tokens and usage.cost_usd is None:
            usage = estimated(call.request, response.content + response.reasoning)
        self._charge(call, attempt, usage)
        if response.usage is usage:
            return response
        return replace(
            response,
            usage=usage,
            tokens_in=usage.input_tokens or 0,
            tokens_out=usage.output_tokens or 0,
        )

    def streamed(self, call: Call, attempt: Attempt, fold: StreamAccumulator) -> None:
        """Bill a stream that has ended, whole or not."""
        attempt.served = fold.model or attempt.served
        call.finish_reason = fold.finish_reason
        if self._content:
            call.answer = fold.text
        usage = fold.usage or Usage()
        if not usage.input_tokens and not usage.output_tokens and usage.cost_usd is None:
            usage = estimated(call.request, fold.text)
        elif (
            not fold.finish_reason
        ):  # cut or left: the vendor's last count is older than the last words
            written = tokens.estimate(fold.text)
            if written > (usage.output_tokens or 0):
                usage = replace(usage, output_tokens=written, estimated=True)
        self._charge(call, attempt, usage)

    def _charge(self, call: Call, attempt: Attempt, usage: Usage) -> None:
        target = attempt.target
        vendor = self._registry.member(target.provider).vendor
        billed = usage
        if (
            vendor == "google" and usage.total_tokens is not None
        ):  # at its OpenAI door Google counts thoughts in the total alone
            billed = replace(
                usage,
                output_tokens=max(
                    usage.output_tokens or 0, usage.total_tokens - (usage.input_tokens or 0)
                ),
            )
        if usage.tool_use_tokens:
            billed = replace(usage, input_tokens=(usage.input_tokens or 0) + usage.tool_use_tokens)
        bill = charge(
            billed,
            provider=vendor,
            requested=target.model,
            served=attempt.served,
            overrides=self._overrides.get(target.provider, {}),
            at=datetime.now(UTC),
            service_tier=usage.service_tier,
        )
        attempt.usage = call.usage = usage
        attempt.cost = call.cost = bill.pico
        call.cost_source = bill.source


def estimated(request: InferRequest, text: str) -> Usage:
    """Return an estimate, flagged as one, for an answer that came without usage."""
    return Usage(tokens.estimate_messages(request.messages), tokens.estimate(text), estimated=True)
