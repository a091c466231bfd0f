"""The providers and model names of a router, and the targets that a name stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from typing import Any

from ..config.patterns import Pattern, is_pattern, pattern
from ..config.settings import STRATEGIES, AnswersConfig, ModelConfig, NameTimeouts
from ..errors import ConfigError, ModelNotFound, close_to, shown
from ..providers.base import RegisteredProvider
from ..types import FALLBACK_ON, JSON, NOTHING, AnswerPolicy, Route, Target
from .settings import NameSettings, has_settings, settings_of

AUTO = ("", "auto")
MAX_DEPTH = 20  # of names inside names
MAX_TARGETS = 256  # of a name
MAX_MATCHED = 1024  # routes by pattern that are remembered, as callers can send any number of names


Entries = tuple[Target | Route, ...]


class Registry:
    """The providers of a router in the order of their registration, and its model names."""

    def __init__(self, providers: Iterable[Any] = ()) -> None:
        self._members: dict[str, RegisteredProvider] = {}
        self._names: dict[str, ModelConfig] = {}
        self._patterns: dict[Pattern, ModelConfig] = {}  # the most specific first
        self._routes: dict[str, Route] = {}  # of the names, once resolved
        self._matched = lru_cache(maxsize=MAX_MATCHED)(self._by_pattern)
        self._settings = lru_cache(maxsize=MAX_MATCHED)(
            lambda name: settings_of(self.route(name), self._defined)
        )
        self.has_settings = False  # whether a name sets anything for its calls
        self.changes = 0  # the number of providers and names added
        self.hint: Callable[[str], str] = lambda name: ""  # for a vendor that is not configured
        for provider in providers:
            self.register(provider)

    @classmethod
    def of(cls, given: Registry | Iterable[Any]) -> Registry:
        """Return *given*, or a registry of these providers; raise TypeError for anything else."""
        if isinstance(given, Registry):
            return given
        if isinstance(given, str | Mapping) or not isinstance(given, Iterable):
            what = type(given).__name__
            raise TypeError(f"give a Registry or a list of providers, [provider], not {what}")
        return cls(given)

    def register(self, provider: Any) -> None:
        """Add an object with name, models and infer; raise ConfigError if invalid or known."""
        new = RegisteredProvider.of(provider)
        if new.name in self._members:
            raise ConfigError(f"a provider named {new.name!r} is registered already")
        self._members[new.name] = new
        self._changed()

    def _changed(self) -> None:
        self._routes.clear()
        self._matched.cache_clear()
        self._settings.cache_clear()
        self.changes += 1

    def get(self, name: str) -> Any:
        """Return the provider of that name; raise ModelNotFound if there is none."""
        return self.member(name).provider

    def member(self, name: str) -> RegisteredProvider:
        """Return the registered provider of that name; raise ModelNotFound if there is none."""
        found = self._members.get(name)
        if found is None:
            hint = close_to(name, self._members)
            raise self._missing(name, f"no provider named {shown(name)}{hint}", "provider")
        return found

    def _missing(self, name: str, message: str, param: str) -> ModelNotFound:
        error = ModelNotFound(message, param=param)
        error.hint = self.hint(name)
        return error

    def __contains__(self, name: object) -> bool:
        return name in self._members

    def __iter__(self) -> Iterator[RegisteredProvider]:
        return iter(self._members.values())

    def __len__(self) -> int:
        return len(self._members)

    def to_dict(self, names: Iterable[str] | None = None) -> JSON:
        """Return the body of GET /providers; with *names*, only those models, by provider."""
        if names is None:
            found = {each.name: list(each.models) for each in self}
        else:
            served = {name: self.providers(name) for name in names}
            found = {each.name: [n for n in served if each.name in served[n]] for each in self}
        listed = list[JSON]()
        for name, models in found.items():
            if models or names is None:
                listed.append({"name": name, "models": models})
                if endpoints := list(getattr(self.get(name), "endpoints", None) or ()):
                    listed[-1]["endpoints"] = endpoints  # whose bytes pass as they are
        return {"providers": listed}

    def providers(self, model: str) -> list[str]:
        """Return the names of the providers of *model*, in order; [] if it is unknown."""
        try:
            return list(dict.fromkeys(target.provider for target in self.resolve(model)))
        except ModelNotFound:
            return []

    def define(
        self,
        name: str,
        targets: Iterable[str],
        *,
        strategy: str = "priority",
        fallback: Iterable[str] = (),
        weights: Mapping[str, float] | None = None,
        on_unsupported: str = "",
        fallback_on: Iterable[str] = FALLBACK_ON,
        sticky: bool = False,
        cache: str = "",
        cache_answers: AnswersConfig | None = None,
        params: Mapping[str, Any] = NOTHING,
        override: Mapping[str, Any] = NOTHING,
        timeout: NameTimeouts | float = NameTimeouts(),
        attempts: int = 0,
        deadline: float = 0.0,
    ) -> None:
        """Define a name; a target is PROVIDER/MODEL, a model, a provider or a defined name.

        A name with `*` is a pattern; each `*` of a target is what that of the name stands for.
        *params* are used where a request does not set them, *override* always; both have OpenAI's
        names. *timeout*: seconds of an attempt. *attempts* and *deadline*: 0 for the router's.
        Raise ConfigError for what no call could follow.
        """
        self._keep(
            ModelConfig(
                name,
                _names(targets),
                strategy,
                _names(fallback),
                dict(weights or {}),
                on_unsupported,
                _names(fallback_on),
                sticky,
                cache,
                cache_answers,
                params,
                override,
                NameTimeouts(timeout) if isinstance(timeout, int | float) else timeout,
                attempts,
                deadline,
            )
        )

    def _keep(self, defined: ModelConfig) -> None:
        name, strategy = defined.name, defined.strategy
        if strategy not in STRATEGIES:
            raise ConfigError(f"there is no strategy {strategy!r}{close_to(strategy, STRATEGIES)}")
        if defined.attempts < 0 or defined.deadline < 0:
            raise ConfigError(f"attempts and deadline of {name!r} are 0 or more")
        self._changed()
        self.has_settings = self.has_settings or has_settings(defined)
        if not is_pattern(name):
            self._names[name] = defined
            return
        known = self._patterns | {pattern(name): defined}
        self._patterns = dict(sorted(known.items(), key=lambda each: -each[0].specificity))

    def settings(self, route: Route) -> NameSettings | None:
        if not self.has_settings or not (route.pattern or route.name in self._names):
            return None
        return self._settings(route.name)

    def settings_around(self, route: Route, model: str) -> NameSettings | None:
        """Return what is set for calls of *model* as if it were the only target of *route*."""
        if not self.has_settings:
            return None
        alone = Route(route.name, (self.route(model),), pattern=route.pattern)
        return settings_of(alone, self._defined)

    def _defined(self, route: Route) -> ModelConfig:
        own = self.pattern(route.pattern) if route.pattern else self._names.get(route.name)
        return own or ModelConfig(route.name, ())

    @property
    def names(self) -> tuple[str, ...]:
        """The defined names, in order, without patterns."""
        return tuple(self._names)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The defined patterns, the most specific first."""
        return tuple(each.text for each in self._patterns)

    def pattern(self, text: str) -> ModelConfig | None:
        return self._patterns.get(pattern(text))

    def targets(self) -> tuple[Target, ...]:
        """Return the targets of all names and listed models, without duplicates."""
        named = [target for name in self._names for target in flat(self.route(name))]
        listed = [Target(each.name, model) for each in self for model in each.models]
        return tuple(dict.fromkeys(named + listed))

    def route(self, model: str, provider: str = "") -> Route:
        """Return the route of *model*, at *provider* if one is named; raise ModelNotFound."""
        if model in self._names:
            route = self._routes.get(model)
            if route is None:
                route = self._routes.setdefault(model, self._named(model, ()))
        elif not self._patterns or (found := self._matched(model)) is None:
            return Route(model, self.plain(model, provider))
        else:
            route = found
        return self.narrowed(route, provider) if provider else route

    def narrowed(self, route: Route, provider: str) -> Route:
        """Return the part of *route* at one provider; raise ModelNotFound if there is none."""
        self.member(provider)
        targets = dict.fromkeys(target for target in flat(route) if target.provider == provider)
        if not targets:
            raise ModelNotFound(
                f"{shown(route.name)} has no target at provider {provider!r}", param="provider"
            )
        own = tuple(targets)
        return route._replace(strategy="priority", entries=own, then=(), weights=(), sticky=False)

    def resolve(self, model: str, provider: str = "") -> tuple[Target, ...]:
        """Return the targets of *model* without duplicates; raise ModelNotFound."""
        return tuple(dict.fromkeys(flat(self.route(model, provider))))

    def _named(self, name: str, path: tuple[str, ...]) -> Route:
        if name in path:
            raise ConfigError(f"model name {name!r} is circular: {' -> '.join((*path, name))}")
        inside = _deeper(path, name)
        return _route(name, self._names[name], lambda target: self._entry(target, inside))

    def _entry(self, target: str, path: tuple[str, ...]) -> Entries:
        if target in self._names:
            return (self._named(target, path),)
        if self._patterns and (found := self._pattern_of(target, path)) is not None:
            return (self._filled(target, *found, path),)
        return self.plain(target, "")

    # -- patterns --

    def _by_pattern(self, model: str) -> Route | None:
        """Return the route that the most specific pattern gives *model*; None: no pattern."""
        found = self._pattern_of(model, ())
        if found is None:
            return None
        try:
            return self._filled(model, *found, ())
        except ConfigError as error:
            raise ModelNotFound(error.message, param="model") from None

    def _pattern_of(
        self, name: str, path: tuple[str, ...]
    ) -> tuple[Pattern, tuple[str, ...]] | None:
        """Return the pattern for *name* and what its `*` stand for.

        A pattern does not count for its own targets: "openai/*" may be one of "openai/*".
        """
        if name in AUTO:
            return None
        if is_pattern(name) and not path and pattern(name) in self._patterns:
            what = f"no provider for model {shown(name)}: that is a pattern; name a model"
            raise ModelNotFound(f"{what} that it matches", param="model")
        for each, own in self._patterns.items():
            texts = each.match(name)
            if texts is not None and (each.specificity or self._is_free(name, own)):
                return (each, texts) if each.text not in path else None
        return None

    def _is_free(self, name: str, own: ModelConfig) -> bool:
        """Whether `*` alone may take *name*: no other provider is named or lists it."""
        left, slash, _ = name.partition("/")
        if name in self._members or (slash and left in self._members):
            return False
        knowing = {each.name for each in self if knows(each, name)}
        targets = {target.partition("/")[0] for target in (*own.targets, *own.fallback)}
        return not knowing or not knowing.isdisjoint(targets)

    def _filled(
        self, name: str, found: Pattern, texts: tuple[str, ...], path: tuple[str, ...]
    ) -> Route:
        """Return the route of *name*; targets that no provider has are left out, unless all are."""
        own, inside = self._patterns[found], _deeper(path, found.text)
        missing: list[ModelNotFound] = []

        def entries(target: str) -> Entries:
            whole = pattern(target).filled(texts) if is_pattern(target) else target
            try:
                return self._entry(whole, inside)
            except ModelNotFound as error:
                missing.append(error)
                return ()

        route = _route(name, own, entries)
        if not route.entries and not route.then:
            raise missing[0]
        return route

    # -- names that are not defined --

    def plain(self, model: str, provider: str = "") -> tuple[Target, ...]:
        """Return the targets of a name that is not defined; raise ModelNotFound."""
        if provider:
            return (self._at(self.member(provider), model),)
        if model in self._members:
            return (_first(self._members[model]),)
        left, slash, right = model.partition("/")
        if slash and left in self._members and knows(self._members[left], right):
            return (Target(left, right),)
        targets = tuple(Target(each.name, model) for each in self if knows(each, model))
        if targets:
            return targets
        if model in AUTO:
            return (self._default(),)
        if slash and right and left in self._members and self._members[left].any_model:
            return (Target(left, right),)
        listed = [name for each in self for name in each.models]
        hint = close_to(model, [*self._names, *self._members, *listed]) or (
            close_to(left, self._members) if slash else ""
        )
        raise self._missing(model, f"no provider for model {shown(model)}{hint}", "model")

    def _at(self, provider: RegisteredProvider, model: str) -> Target:
        if model in AUTO or model == provider.name:
            return _first(provider)
        bare = model.removeprefix(f"{provider.name}/")
        for name in (model, bare):
            if knows(provider, name):
                return Target(provider.name, name)
        if provider.any_model and bare:
            return Target(provider.name, bare)
        raise ModelNotFound(
            f"provider {provider.name!r} has no model {shown(model)}"
            f"{close_to(model, provider.models)}",
            param="model",
        )

    def _default(self) -> Target:
        for each in self:
            if each.models:
                return _first(each)
        raise ModelNotFound("no configured provider lists a model", param="model")


def _names(given: Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _deeper(path: tuple[str, ...], name: str) -> tuple[str, ...]:
    if len(path) >= MAX_DEPTH:
        raise ConfigError(f"model name {path[0]!r} is nested deeper than {MAX_DEPTH} names")
    return (*path, name)


def flat(route: Route) -> Iterator[Target]:
    """Yield the targets of a route in declaration order."""
    for entry in (*route.entries, *route.then):
        if isinstance(entry, Route):
            yield from flat(entry)
        else:
            yield entry


def _route(name: str, own: ModelConfig, entries: Callable[[str], Entries]) -> Route:
    """Return the route of a name; raise ConfigError if it has too many targets.

    *entries* returns those of a target.
    """
    groups = [*map(entries, own.targets)]
    weights = tuple(
        own.weights.get(target, 1.0) / len(group)
        for target, group in zip(own.targets, groups, strict=True)
        for _ in group
    )
    route = Route(
        name,
        tuple(entry for group in groups for entry in group),
        own.strategy,
        tuple(entry for target in own.fallback for entry in entries(target)),
        weights if own.weights else (),
        own.on_unsupported,
        own.fallback_on,
        own.sticky,
        own.cache,
        _answers(own),
        own.name if is_pattern(own.name) else "",
    )
    if len([*islice(flat(route), MAX_TARGETS + 1)]) > MAX_TARGETS:
        raise ConfigError(f"model name {name!r} has more than {MAX_TARGETS} targets")
    return route


def _answers(own: ModelConfig) -> AnswerPolicy | None:
    if own.cache_answers is None:
        return None
    return own.cache_answers.policy(repr(replace(own, cache_answers=None)))


def knows(provider: RegisteredProvider, model: str) -> bool:
    """Whether a provider lists *model*, or says that it serves it."""
    return model in provider.models or provider.serves(model)


def _first(provider: RegisteredProvider) -> Target:
    if not provider.models:
        raise ModelNotFound(
            f"provider {provider.name!r} lists no model: name one as {provider.name}/MODEL",
            param="model",
        )
    return Target(provider.name, provider.models[0])
