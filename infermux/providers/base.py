"""The interface of providers, and the guard around their code."""

from __future__ import annotations

import importlib
import inspect
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, Self, cast

from ..dialects import Dialect
from ..dialects.blocks import whole
from ..dialects.responses import Support
from ..errors import (
    ConfigError,
    InferMuxError,
    Overloaded,
    ProviderUnavailable,
    shown,
)
from ..protocol import InferRequest, InferResponse
from ..types import Chunk, Deadline, Usage, is_shortage

Infer = Callable[[InferRequest, Deadline], InferResponse]
OUT_OF_RESOURCES = "the service is out of resources; retry shortly"
log = logging.getLogger("infermux")


class Provider(ABC):
    """A source of responses, such as a vendor; it needs only `name`, `models` and `infer`."""

    name: str
    models: Sequence[str]

    @abstractmethod
    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        """Return the answer; raise ProviderError (or a subclass) if there is none."""

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        """Yield the response in chunks, by default in a single one; raise as `infer`."""
        return _at_once(self.infer, request, deadline)

    def serves(self, model: str) -> bool:
        """Whether *model* can be requested although `models` does not list it."""
        return False

    def close(self) -> None:
        """Release resources such as connections."""


class RegisteredProvider(NamedTuple):
    """A provider as the registry keeps it, with defaults for what it does not define."""

    provider: Any
    name: str
    models: tuple[str, ...]
    infer: Infer
    stream: Callable[[InferRequest, Deadline], Iterator[Chunk]]
    serves: Callable[[str], bool]
    vendor: str  # whose prices apply
    any_model: bool  # whether PROVIDER/MODEL may name a model that is not listed

    @classmethod
    def of(cls, provider: Any) -> Self:
        """Wrap *provider*; raise ConfigError if a member is missing or has the wrong type."""
        if isinstance(provider, type):
            raise TypeError(f"a provider is an object: {provider.__name__}(), not its class")
        for lack in ("name", "models", "infer"):
            if not hasattr(provider, lack):
                kind = type(provider).__name__
                raise ConfigError(f"{kind} is not a provider: it has no {lack!r}")
        name = provider.name() if callable(provider.name) else provider.name
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise ConfigError(
                f"a provider's name must be printable text without '/', not {shown(name)}"
            )
        models = provider.models() if callable(provider.models) else provider.models
        listed: list[Any] = list(models) if isinstance(models, Iterable) else [None]
        if isinstance(models, str) or not all(isinstance(each, str) and each for each in listed):
            raise ConfigError(f"the models of provider {name!r} must be a list of names")
        if not callable(provider.infer):
            raise ConfigError(f"infer of provider {name!r} is not callable")
        infer = _with_deadline(provider.infer)
        return cls(
            provider,
            name,
            tuple(listed),
            infer,
            getattr(provider, "stream", None) or partial(_at_once, infer),
            partial(_serves, getattr(provider, "serves", None)),
            getattr(provider, "vendor", name),
            getattr(provider, "any_model", False),
        )


def _at_once(infer: Infer, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
    yield from whole(validated(infer(request, deadline)))


def _serves(serves: Callable[[str], bool] | None, model: str) -> bool:
    try:
        return bool(serves is not None and serves(model))
    except Exception:  # a provider's own code
        log.exception("a provider could not say whether it serves a model")
        return False


def _with_deadline(infer: Callable[..., InferResponse]) -> Infer:
    try:
        inspect.signature(infer).bind(None, None)
    except TypeError:  # the provider's own infer(request) ignores the deadline
        return lambda request, deadline: infer(request)
    return infer


def load_dialect(
    name: str | Dialect, api: str = "chat", responses: Support | None = None, key: str = ""
) -> Dialect:
    """Return the dialect *name*, if it is a name; azure is a variant of openai.

    These two may have Responses, too: *api* says when it is used. *key* seals ids of tool calls.
    """
    package, found = "openai" if name == "azure" else name, cast(Any, name)
    if isinstance(name, str):
        found = importlib.import_module(f"infermux.dialects.{package}.upstream")
    if (bound := getattr(found, "bound", None)) is not None:
        found = bound(key)
    if name == "responses":
        found = found.Responses()
    if name == "azure":
        found = found.AZURE
    if package == "openai" and responses is not None and api != "chat":
        choice = importlib.import_module("infermux.dialects.responses.choice")
        found = choice.Choice(found, responses, always=api == "responses")
    return cast(Dialect, found)


# -- the guard around a provider's code --


_FIELDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(
        ("model", "provider", "content", "finish_reason", "reasoning", "refusal"), (str, "a str")
    ),
    **dict.fromkeys(("tokens_in", "tokens_out", "latency_ms"), (int, "an int")),
    "usage": ((Usage, type(None)), "a Usage"),
    "cost_usd": ((int, float, type(None)), "a number"),
}


def validated(response: object) -> InferResponse:
    """Return the result of a provider's infer; raise TypeError if a field has a wrong type."""
    if not isinstance(response, InferResponse):
        raise TypeError(f"infer returned {type(response).__name__}, not InferResponse")
    for name, (kind, what) in _FIELDS.items():
        value = getattr(response, name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise TypeError(f"{name} of the InferResponse is not {what}")
    return response


class ProviderGuard:
    """A context that turns exceptions of other code into ours, with `provider_failed`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, InferMuxError):
            raise provider_failed(self._name, error) from error


def provider_failed(name: str, error: Exception) -> InferMuxError:
    """Return Overloaded if we lack resources; else log *error*, return ProviderUnavailable."""
    if is_shortage(error):
        return Overloaded(OUT_OF_RESOURCES)
    log.error("provider %r raised %s", name, type(error).__name__, exc_info=error)
    ours = ProviderUnavailable(f"provider {name!r} failed")
    ours.retryable = False  # the same code would fail the same way
    return ours


def close_stream(chunks: Any, name: str) -> None:
    """Close a provider's stream; log a failure, which must not hide an earlier one."""
    try:
        if hasattr(chunks, "close"):
            chunks.close()
    except Exception as error:  # a provider's own code
        log.error("the stream of provider %r could not be closed", name, exc_info=error)


class ChangedChunks:
    """The chunks of a provider's stream as *change* returns them.

    No generator: closing one that was not started may not close *chunks*."""

    def __init__(self, chunks: Iterator[Chunk], change: Callable[[Chunk], Chunk]) -> None:
        self._chunks, self._change = chunks, change

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        return self._change(next(self._chunks))

    def close(self) -> None:
        if hasattr(self._chunks, "close"):
            self._chunks.close()
