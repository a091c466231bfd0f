"""Providers by name, and which of them can answer for a model."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ..errors import ConfigError, ModelNotFound, shown
from ..providers.base import RegisteredProvider, member
from ..types import JSON, Route, Target

AUTO = ("", "auto")
DEEPEST = 20  # names inside names
MOST = 256  # targets of a name


class _Name(NamedTuple):
    targets: tuple[str, ...]
    strategy: str
    then: tuple[str, ...]
    weights: dict[str, float]
    on_unsupported: str


class Registry:
    """The providers of a router, in the order in which they were registered."""

    def __init__(self, providers: Iterable[Any] = ()) -> None:
        self._members: dict[str, RegisteredProvider] = {}
        self._names: dict[str, _Name] = {}
        self._routes: dict[str, Route] = {}  # what the names stand for, once it has been worked out
        self.changes = 0  # how often a provider or a name was added
        for provider in providers:
            self.register(provider)

    def register(self, provider: Any) -> None:
        """Add any object with name, models and infer; raise ConfigError if it lacks one, or if its
        name is taken.
        """
        new = member(provider)
        if new.name in self._members:
            raise ConfigError(f"a provider named {new.name!r} is registered already")
        self._members[new.name] = new
        self._changed()

    def _changed(self) -> None:
        self._routes.clear()
        self.changes += 1

    def get(self, name: str) -> Any:
        """Return the provider of that name; raise ModelNotFound if there is none."""
        return self.member(name).provider

    def member(self, name: str) -> RegisteredProvider:
        """Return the provider of that name as the router uses it; raise ModelNotFound if there is
        none.
        """
        found = self._members.get(name)
        if found is None:
            raise ModelNotFound(
                f"no provider named {shown(name)}{_close(name, self._members)}", param="provider"
            )
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[RegisteredProvider]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def to_dict(self) -> JSON:
        """Return what GET /providers answers."""
        return {"providers": [{"name": each.name, "models": list(each.models)} for each in self]}

    def define(
        self,
        name: str,
        targets: Iterable[str],
        *,
        strategy: str = "priority",
        then: Iterable[str] = (),
        weights: Mapping[str, float] | None = None,
        on_unsupported: str = "",
    ) -> None:
        """Give *targets* a name of their own: each is PROVIDER/MODEL, a model, a provider, or
        another name.
        """
        self._changed()
        self._names[name] = _Name(
            tuple(targets), strategy, tuple(then), dict(weights or {}), on_unsupported
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names that were defined, in their order."""
        return tuple(self._names)

    def targets(self) -> tuple[Target, ...]:
        """Return every target that the names lead to, and every model that a provider lists, each
        once.
        """
        named = [target for name in self._names for target in flat(self.route(name))]
        return tuple(
            dict.fromkeys(
                [*named, *(Target(each.name, model) for each in self for model in each.models)]
            )
        )

    def route(self, model: str, provider: str = "") -> Route:
        """Return what *model* stands for, at *provider* if one is named; raise ModelNotFound with
        what is close to it.
        """
        if model in self._names:
            whole = self._routes.get(model) or self._routes.setdefault(
                model, self._named(model, ())
            )
            return self.narrowed(whole, provider) if provider else whole
        return Route(model, self._plain(model, provider))

    def narrowed(self, route: Route, provider: str) -> Route:
        """Return what is left of *route* at one provider; raise ModelNotFound if nothing is."""
        self.member(provider)
        targets = tuple(
            dict.fromkeys(target for target in flat(route) if target.provider == provider)
        )
        if not targets:
            raise ModelNotFound(
                f"the name {shown(route.name)} leads to no model of provider {provider!r}",
                param="provider",
            )
        return Route(route.name, targets, on_unsupported=route.on_unsupported)

    def resolve(self, model: str, provider: str = "") -> tuple[Target, ...]:
        """Return every target that *model* may lead to, each once; raise ModelNotFound."""
        return tuple(dict.fromkeys(flat(self.route(model, provider))))

    def _named(self, name: str, way: tuple[str, ...]) -> Route:
        if name in way:
            raise ConfigError(
                f"the name {name!r} leads back to itself: {' -> '.join((*way, name))}"
            )
        if len(way) >= DEEPEST:
            raise ConfigError(f"the name {way[0]!r} goes through more than {DEEPEST} other names")
        own, inside = self._names[name], (*way, name)
        groups = [self._entry(target, inside) for target in own.targets]
        weights = tuple(
            own.weights.get(target, 1.0) / len(group)
            for target, group in zip(own.targets, groups, strict=True)
            for _ in group
        )
        route = Route(
            name,
            tuple(entry for group in groups for entry in group),
            own.strategy,
            tuple(entry for target in own.then for entry in self._entry(target, inside)),
            weights if own.weights else (),
            own.on_unsupported,
        )
        if sum(1 for _ in zip(flat(route), range(MOST + 1), strict=False)) > MOST:
            raise ConfigError(f"the name {name!r} leads to more than {MOST} targets")
        return route

    def _entry(self, target: str, way: tuple[str, ...]) -> tuple[Target | Route, ...]:
        return (self._named(target, way),) if target in self._names else self._plain(target, "")

    def _plain(self, model: str, provider: str) -> tuple[Target, ...]:
        if provider:
            return (self._at(self.member(provider), model),)
        if model in self._members:
            return (_first(self._members[model]),)
        left, slash, right = model.partition("/")
        if slash and left in self._members and _knows(self._members[left], right):
            return (Target(left, right),)
        targets = tuple(Target(each.name, model) for each in self if _knows(each, model))
        if targets:
            return targets
        if model in AUTO:
            return (self._default(),)
        if slash and right and left in self._members and self._members[left].any_model:
            return (Target(left, right),)
        hint = _close(model, self._known()) or (_close(left, self._members) if slash else "")
        raise ModelNotFound(f"no provider for model {shown(model)}{hint}", param="model")

    def _at(self, provider: RegisteredProvider, model: str) -> Target:
        if model in AUTO or model == provider.name:
            return _first(provider)
        bare = model.removeprefix(f"{provider.name}/")
        for name in (model, bare):
            if _knows(provider, name):
                return Target(provider.name, name)
        if provider.any_model and bare:
            return Target(provider.name, bare)
        raise ModelNotFound(
            f"provider {provider.name!r} has no model {shown(model)}{_close(model, provider.models)}",
            param="model",
        )

    def _default(self) -> Target:
        for each in self:
            if each.models:
                return _first(each)
        raise ModelNotFound("no provider is configured that lists a model", param="model")

    def _known(self) -> list[str]:
        return [*self._names, *self._members, *(model for each in self for model in each.models)]


def flat(route: Route) -> Iterator[Target]:
    """Yield the targets of a route in the order of their declaration."""
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from flat(entry)
        else:
            yield entry


def _knows(provider: RegisteredProvider, model: str) -> bool:
    return model in provider.models or provider.serves(model)


def _first(provider: RegisteredProvider) -> Target:
    if not provider.models:
        raise ModelNotFound(
            f"provider {provider.name!r} lists no model: name one as {provider.name}/MODEL",
            param="model",
        )
    return Target(provider.name, provider.models[0])


def _close(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word[:100], list(names), n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
