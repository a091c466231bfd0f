"""What a provider is: a name, models, and an answer to a request."""

from __future__ import annotations

import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..dialects import whole
from ..errors import ConfigError, shown
from ..protocol import InferRequest, InferResponse
from ..types import Chunk, Deadline, Usage

log = logging.getLogger("infermux")


class Provider(ABC):
    """A vendor, or anything else that answers; `name`, `models` and `infer` are all that one needs."""

    name: str
    models: Sequence[str]

    @abstractmethod
    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        """Return the answer; raise ProviderError (or one of its kinds) where there is none."""

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        """Yield the answer as it comes; a provider that cannot stream gives all of it at once."""
        yield from whole(validated(self.infer(request, deadline)))

    def serves(self, model: str) -> bool:
        """Whether *model* can be asked for without being listed."""
        return False

    def close(self) -> None:
        """Release what the provider holds."""


class RegisteredProvider(NamedTuple):
    """A registered provider, its two ways to be asked, and how it knows models that it does not
    list.
    """

    provider: Any
    name: str
    models: tuple[str, ...]
    infer: Callable[[InferRequest, Deadline], InferResponse]
    stream: Callable[[InferRequest, Deadline], Iterator[Chunk]]
    serves: Callable[[str], bool]
    vendor: str  # whose prices apply
    any_model: bool  # whether PROVIDER/MODEL may name a model that is not listed


def member(provider: Any) -> RegisteredProvider:
    """Return *provider* as the registry keeps it; raise ConfigError naming what an object lacks to
    be one.
    """
    for name in ("name", "models", "infer"):
        if not hasattr(provider, name):
            raise ConfigError(f"{type(provider).__name__} is not a provider: it has no {name!r}")
    name = provider.name() if callable(provider.name) else provider.name
    models = provider.models() if callable(provider.models) else provider.models
    models = list(models) if isinstance(models, Iterable) and not isinstance(models, str) else None
    if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
        raise ConfigError(
            f"a provider's name must be printable text without '/', not {shown(name)}"
        )
    if models is None or not all(isinstance(model, str) and model for model in models):
        raise ConfigError(f"the models of provider {name!r} must be a list of names")
    if not callable(provider.infer):
        raise ConfigError(f"infer of provider {name!r} cannot be called")
    infer = _taking_deadline(provider.infer)
    stream = getattr(provider, "stream", None) or _streamed(infer)
    return RegisteredProvider(
        provider,
        name,
        tuple(models),
        infer,
        stream,
        _guessing(getattr(provider, "serves", None)),
        getattr(provider, "vendor", name),
        getattr(provider, "any_model", False),
    )


def validated(response: object) -> InferResponse:
    """Return what a provider's infer gave if every field of it is of its type: it may be anybody's
    code.
    """
    if not isinstance(response, InferResponse):
        raise TypeError(f"infer returned {type(response).__name__}, not InferResponse")
    texts = (
        response.model,
        response.provider,
        response.content,
        response.finish_reason,
        response.reasoning,
        response.refusal,
    )
    numbers = (response.tokens_in, response.tokens_out, response.latency_ms)
    for text in texts:
        if not isinstance(text, str):
            raise TypeError("a text of the InferResponse is not a str")
    for number in numbers:
        if type(number) is not int:
            raise TypeError("a number of the InferResponse is not an int")
    if not isinstance(response.usage, Usage | None) or not isinstance(
        response.cost_usd, int | float | None
    ):
        raise TypeError("usage or cost_usd of the InferResponse is not of its type")
    return response


def _guessing(serves: Callable[[str], bool] | None) -> Callable[[str], bool]:
    """Return a way to ask whether a model is served; a provider whose own way fails serves what it
    lists.
    """

    def ask(model: str) -> bool:
        try:
            return bool(serves is not None and serves(model))
        except Exception:  # somebody's own code
            log.exception("a provider could not say whether it serves a model")
            return False

    return ask


def _taking_deadline(
    infer: Callable[..., InferResponse],
) -> Callable[[InferRequest, Deadline], InferResponse]:
    try:
        inspect.signature(infer).bind(None, None)
    except TypeError:  # somebody's own infer(request): it does without the deadline
        return lambda request, deadline: infer(request)
    return infer


def _streamed(
    infer: Callable[[InferRequest, Deadline], InferResponse],
) -> Callable[[InferRequest, Deadline], Iterator[Chunk]]:
    def stream(request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        yield from whole(validated(infer(request, deadline)))

    return stream
