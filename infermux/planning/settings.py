"""The settings for the calls of a name: parameters, timeouts, attempts, a deadline.

A name inside another one adds what the outer one does not set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..config.settings import ModelConfig, NameTimeouts
from ..dialects.settled import settled
from ..protocol import InferRequest
from ..types import Deadline, Route, Target


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """The settings for the calls of a name to one of its targets."""

    params: Mapping[str, Any] = field(default_factory=dict)
    override: Mapping[str, Any] = field(default_factory=dict)
    timeout: NameTimeouts = NameTimeouts()

    def applied(self, request: InferRequest) -> InferRequest:
        """Return *request* with the parameters and timeouts."""
        request = settled(request, self.params, self.override)
        given = {
            each.name: value
            for each in fields(self.timeout)
            if each.name != "attempt" and (value := getattr(self.timeout, each.name))
        }
        return replace(request, timeouts=given) if given else request

    def inside(self, own: ModelConfig) -> TargetSettings:
        """Return these settings, and those of a name inside this one where they set nothing."""
        timeout = NameTimeouts(
            *(
                getattr(self.timeout, each.name) or getattr(own.timeout, each.name)
                for each in fields(NameTimeouts)
            )
        )
        override = {**own.override, **self.override}
        return TargetSettings({**own.params, **self.params}, override, timeout)


@dataclass(frozen=True, slots=True)
class NameSettings:
    """The settings for the calls of a name."""

    attempts: int  # 0: the router's
    deadline: float  # seconds; 0: the router's
    own: TargetSettings  # without the settings of names inside this one
    targets: Mapping[Target, TargetSettings]

    @property
    def longest_stream(self) -> float:
        """The most seconds that are set for a whole stream; 0: none are."""
        return max((each.timeout.total for each in self.targets.values()), default=0.0)

    def limited(self, target: Target, deadline: Deadline) -> Deadline | None:
        """Return the deadline of an attempt at *target*, or None if none is set."""
        found = self.targets.get(target)
        seconds = found.timeout.attempt if found is not None else 0.0
        return deadline.share(1.0, Deadline(seconds)) if seconds else None


def has_settings(own: ModelConfig) -> bool:
    """Whether a name sets anything for its calls."""
    set_ = own.params or own.override or own.attempts or own.deadline
    return bool(set_ or own.timeout != NameTimeouts())


def settings_of(route: Route, defined: Callable[[Route], ModelConfig]) -> NameSettings:
    """Return the settings of a name's route; *defined* returns what is configured for a route."""
    own, targets = defined(route), dict[Target, TargetSettings]()
    for target, found in _each(route, TargetSettings(), defined):
        targets.setdefault(target, found)
    return NameSettings(own.attempts, own.deadline, TargetSettings().inside(own), targets)


def _each(
    route: Route, outer: TargetSettings, defined: Callable[[Route], ModelConfig]
) -> Iterator[tuple[Target, TargetSettings]]:
    found = outer.inside(defined(route))
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from _each(entry, found, defined)
        else:
            yield entry, found
