"""Reads [models]: names and patterns, with the targets that each leads to."""

from __future__ import annotations

from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from typing import Any

from ..errors import ConfigError, shown
from .patterns import STAR, is_pattern, ties
from .readers import target_names
from .schema import Problems, suggestion, table
from .settings import ModelConfig


def model_name(name: str, value: Any) -> ModelConfig:
    """Return a name of [models]: a target, a list of them, or a table; raise ConfigError."""
    if not isinstance(value, dict):
        place = f"[models] {name}"
        return _checked(ModelConfig(name, target_names(value, place)), place)
    place = f"[models.{name}]"
    model = table(ModelConfig, name=name)(value, place)
    for target in model.weights:
        if target not in model.targets:
            hint = suggestion(target, model.targets)
            raise ConfigError(f"{place}.weights: {target!r} is not a target{hint}")
    if model.weights and not (model.sticky or model.strategy in ("weighted", "sticky")):
        raise ConfigError(f'{place}.weights need strategy = "weighted" or "sticky"')
    return _checked(model, place)


def _checked(model: ModelConfig, place: str) -> ModelConfig:
    """Return *model*; raise ConfigError if the name does not define a `*` of a target."""
    name, own = model.name, model.name.count(STAR)
    for target in (name, *model.targets, *model.fallback):
        if STAR * 2 in target:
            raise ConfigError(f"{place}: write * instead of ** in {shown(target)}")
        others = target.count(STAR)
        if others and not own:
            raise ConfigError(
                f"{place}: the target {shown(target)} has a *, and the name has none that says "
                f"what it stands for: name a model, or give the name a *"
            )
        if others not in (0, own):
            raise ConfigError(
                f"{place}: the target {shown(target)} must have as many * as the name, or none"
            )
    return model


def without_cycles(models: list[ModelConfig], problems: Problems) -> list[ModelConfig]:
    """Return *models* without circular ones, which are reported.

    A pattern may be its own target, as it is ignored while it is being resolved.
    """
    while True:
        graph = {
            model.name: [
                target
                for target in (*model.targets, *model.fallback)
                if target != model.name or not is_pattern(target)
            ]
            for model in models
        }
        try:
            TopologicalSorter(graph).prepare()
            return models
        except CycleError as error:
            cycle = error.args[1][::-1]
            problems.errors.append(f"[models] {cycle[0]} is circular: {' -> '.join(cycle)}")
            models = [model for model in models if model.name not in cycle]


def check_ties(models: Iterable[ModelConfig], problems: Problems) -> None:
    """Report pairs of equally specific patterns that match the same names."""
    for one, other, shape in ties([model.name for model in models]):
        problems.errors.append(
            f"[models] {shown(one)} and {shown(other)} match the same names, and neither is more "
            f"specific: say what {shown(shape)} leads to"
        )
