"""A provider that repeats the request: for a first try, and for tests without a vendor."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..config.schema import of_type
from ..config.settings import ProviderConfig
from ..dialects.sizes import Size
from ..errors import ConfigError, ProviderTimeout, shown
from ..pricing import Price, cost, usd_float
from ..protocol import InferRequest, InferResponse, text_of
from ..types import Chunk, Deadline, Usage
from .base import Provider

ECHOED = Price.of({"input": "10", "output": "10"}, provider="echo")  # made up


class EchoProvider(Provider):
    """Answers "echo: " and the last message's text, after *delay* seconds."""

    def __init__(
        self,
        name: str = "echo",
        models: Sequence[str] = ("echo-v1",),
        delay: float = 0.001,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self.models = tuple(models)
        self.delay = delay
        self.price = ECHOED if name == "echo" else None
        self.prices: Mapping[str, Any] = {}  # of models, as configured
        self._sleep = sleep

    def worst_case(self, request: InferRequest) -> Size:
        """Return what an echo costs: what the request says, and that again."""
        answer = self._answer(request)
        return Size(tokens=answer.tokens_in, output=answer.tokens_out)

    def infer(self, request: InferRequest, deadline: Deadline | None = None) -> InferResponse:
        """Return the echo; raise ProviderTimeout if the deadline ends before the delay does."""
        self._wait(deadline)
        return self._answer(request)

    def stream(self, request: InferRequest, deadline: Deadline | None = None) -> Iterator[Chunk]:
        self._wait(deadline)
        answer = self._answer(request)
        for word in re.findall(r"\S+\s*|\s+", answer.content):
            yield Chunk(text=word, model=answer.model)
        yield Chunk(finish_reason=answer.finish_reason, usage=answer.usage, model=answer.model)

    def _wait(self, deadline: Deadline | None) -> None:
        if self.delay > 0:
            deadline = deadline or Deadline(math.inf)
            is_late = deadline.remaining() < self.delay
            for pause in deadline.slices(self.delay):
                self._sleep(pause)
            if is_late:
                raise ProviderTimeout(f"provider {self.name!r} did not answer in time")

    def _answer(self, request: InferRequest) -> InferResponse:
        content = "echo: " + (
            text_of(request.messages[-1].get("content")) if request.messages else ""
        )
        reason = "stop"
        if request.most_output is not None and len(content) > request.most_output * 4:
            content, reason = content[: request.most_output * 4], "length"
        model = self.models[0] if request.model in ("", "auto") and self.models else request.model
        tokens_in = sum([_tokens(text_of(message.get("content"))) for message in request.messages])
        tokens_out = max(1, _tokens(content))
        price = Price.of(stated) if (stated := self.prices.get(model)) else ECHOED
        dollars = usd_float(cost(Usage(tokens_in, tokens_out), price))
        return InferResponse(
            model,
            self.name,
            content,
            tokens_in,
            tokens_out,
            dollars,
            round(self.delay * 1000),
            reason,
            usage=Usage(tokens_in, tokens_out, cost_usd=dollars),
        )


def _tokens(text: str) -> int:
    return len(text.encode("utf-8", "replace")) // 4


def configured(config: ProviderConfig) -> EchoProvider:
    """Return the provider of a configuration; raise ConfigError for an unknown option."""
    place = f"[providers.{config.name}].options"
    for name in config.options:
        if name != "delay":
            raise ConfigError(f"{place} has no {shown(name)}: echo has a delay, in seconds")
    seconds = float(of_type(float, config.options.get("delay", 0.001), f"{place}.delay"))
    if not 0 <= seconds <= 3600:
        raise ConfigError(f"{place}.delay must be seconds, from 0 to 3600")
    provider = EchoProvider(config.name, config.models or ("echo-v1",), seconds)
    provider.price, provider.prices = ECHOED, config.prices
    return provider
