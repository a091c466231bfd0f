"""The known names and models that patterns match, for lists and checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from ..config.patterns import STAR, covers, is_pattern, pattern, share_a_name
from ..errors import ModelNotFound, shown
from ..errors import listed as named
from ..pricing import PriceTable
from ..providers.base import RegisteredProvider
from .registry import Registry, knows

Models = Callable[[RegisteredProvider], Iterable[str]]  # a provider's models that are known


def listed(provider: RegisteredProvider) -> Iterable[str]:
    return provider.models


def candidates(registry: Registry, models: Models = listed) -> Iterator[str]:
    """Yield the known names and models that callers may ask for, without patterns."""
    yield from registry.names
    for each in registry:
        yield each.name
        for model in models(each):
            yield model
            yield f"{each.name}/{model}"


def matched(registry: Registry, text: str, models: Models = listed) -> list[str]:
    """Return the known names for which the pattern *text* of [models] counts."""
    own, found = registry.pattern(text), pattern(text)
    if own is None:
        return []
    ways = [found, *(pattern(each) for each in (*own.targets, *own.fallback) if is_pattern(each))]
    names: dict[str, None] = {}
    for name in candidates(registry, models):
        for way in ways:
            if (texts := way.match(name)) is not None:
                names[found.filled(texts)] = None
    return [name for name in names if _counts(registry, text, name)]


def _counts(registry: Registry, text: str, name: str) -> bool:
    try:
        return name not in registry.names and registry.route(name).pattern == text
    except ModelNotFound:
        return False


def all_matched(registry: Registry, models: Models = listed) -> list[str]:
    """Return the known names for which any pattern of [models] counts."""
    return [name for text in registry.patterns for name in matched(registry, text, models)]


def within(
    registry: Registry, scope: Iterable[str], models: Models = listed
) -> dict[str, list[str]]:
    """Return the known names in *scope*, names and patterns, each with its providers."""
    found: dict[str, None] = {}
    for each in scope:
        if is_pattern(each):
            known = (*all_matched(registry, models), *candidates(registry, models))
            found |= dict.fromkeys(name for name in known if covers((each,), name))
        else:
            found[each] = None
    return {name: served for name in found if (served := registry.providers(name))}


def priced(table: PriceTable) -> Models:
    """Return a function that returns the models which a provider lists or *table* has."""
    known: dict[str, list[str]] = {}
    for price in table.entries():
        known.setdefault(price.provider, []).append(price.id)
    return lambda each: dict.fromkeys((*each.models, *known.get(each.vendor, ())))


def check(registry: Registry, name: str) -> None:
    """Raise ModelNotFound if *name*, or all that it matches, leads to no target."""
    own = registry.pattern(name) if is_pattern(name) else None
    for target in (*own.targets, *own.fallback) if own is not None else (name,):
        if not is_pattern(target):
            registry.route(target)
        elif not _may_match(registry, target, {name} if own is not None else set()):
            raise _refused(registry, target)


def _may_match(registry: Registry, target: str, seen: set[str]) -> bool:
    """Whether a name that *target* matches leads to a target, not by the patterns *seen*."""
    if target == STAR:
        return len(registry) > 0
    left, slash, _ = target.partition("/")
    if slash and left in registry and registry.member(left).any_model:
        return True
    found = pattern(target)
    sample = found.filled(["1"] * target.count(STAR))
    return (
        any(found.match(name) is not None for name in candidates(registry))
        or any(knows(each, sample) for each in registry)
        or any(
            _leads_on(registry, text, seen)
            for text in registry.patterns
            if not text.startswith(STAR) and share_a_name(target, text)  # "*…" says nothing
        )
    )


def _leads_on(registry: Registry, text: str, seen: set[str]) -> bool:
    """Whether a target of the pattern *text* may be served, if that is not known yet."""
    own = registry.pattern(text)
    if own is None or text in seen:
        return False
    seen.add(text)
    targets = (*own.targets, *own.fallback)
    return any(not is_pattern(each) or _may_match(registry, each, seen) for each in targets)


def _refused(registry: Registry, target: str) -> ModelNotFound:
    """Return why nothing that *target* matches can be served."""
    left, slash, rest = target.partition("/")
    if slash and left in registry:
        has = named(registry.member(left).models)
        what = f"provider {left!r} has no model that {shown(rest)} matches; it has {has}"
        return ModelNotFound(what, param="model")
    try:
        registry.plain(target)
    except ModelNotFound as error:
        return error
    return ModelNotFound(f"nothing matches {shown(target)}", param="model")
