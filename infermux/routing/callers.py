"""The caller of a call: its tags, its end user, and the budget of that end user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace

from ..config.patterns import covers
from ..dialects.sizes import fallbacks
from ..errors import ModelNotAllowed, shown
from ..ledger import Budget
from ..planning.call import Call
from ..planning.end_user import Users
from ..planning.registry import Registry, flat
from ..protocol import InferRequest
from ..telemetry.spans import of_meta
from ..types import NOTHING, Caller, Route, TraceContext

TAGS = ("project", "env")  # which a request may set


def check_options(attempts: object, deadline: object, on_unsupported: object) -> None:
    """Raise ValueError for an option of `Router` that no call could follow."""
    if not isinstance(attempts, int) or attempts < 1:
        raise ValueError(f"attempts is a whole number above 0, not {attempts!r}")
    if deadline is not None and not (isinstance(deadline, int | float) and deadline > 0):
        raise ValueError(f"deadline is seconds above 0, or None, not {deadline!r}")
    if on_unsupported not in ("error", "drop"):
        raise ValueError(f"on_unsupported is 'error' or 'drop', not {on_unsupported!r}")


def begun(
    request: InferRequest,
    caller: Caller,
    api: str,
    trace: TraceContext | None,
    tags: Mapping[str, str],
    users: Users,
    user: str,
) -> Call:
    """Return the record of a call that starts now; see `Router.begin`."""
    if not isinstance(caller, Caller):
        raise TypeError('caller must be a Caller, such as Caller("web")')
    meta: Mapping[str, str] = request.meta if isinstance(request.meta, Mapping) else NOTHING
    if trace is None and meta:
        trace = of_meta(meta)
    own = NOTHING
    if caller.may_tag and (tags or meta):
        given = {name: tags.get(name) or meta.get(name) for name in TAGS}
        own = {name: value for name, value in given.items() if isinstance(value, str)}
    merged = {**own, **caller.tags} if own or caller.tags else NOTHING
    who = users.of(request, user)
    if who is not None:
        caller = with_budget_of(caller, who.digest)
    call = Call(request, caller, api, *(trace or ())[:2])
    call.tags, (call.user, call.end_user) = merged, who or ("", "")
    return call


def allowed_route(registry: Registry, request: InferRequest, scope: Collection[str]) -> Route:
    """Return the route of a request by a caller that may use only the models in *scope*.

    Raise ModelNotFound, or ModelNotAllowed: also for a model that the vendor may take instead.
    """
    if not covers(scope, request.model):
        raise _not_allowed(request.model)
    route = registry.route(request.model)
    providers = {target.provider for target in flat(route)}
    models = fallbacks(dict(request.params), "openai")
    if isinstance(chosen := request.params.get("fallbacks"), str):  # by Anthropic itself: "default"
        models.append(chosen)
    for model in models:
        if not any(covers(scope, name) for name in (model, *[f"{p}/{model}" for p in providers])):
            raise _not_allowed(model)
    # only the targets of the allowed name
    return registry.narrowed(route, request.provider) if request.provider else route


def _not_allowed(model: str) -> ModelNotAllowed:
    return ModelNotAllowed(f"this key may not use model {shown(model)}", param="model")


class RunBudget(ABC):
    """The budget of a run in this process, such as a batch: the ledger does not know it."""

    hard = True

    @abstractmethod
    def reserve(self, call: Call, pico: int) -> None:
        """Hold *pico* pico-USD for the call in all; raise BudgetExceeded."""


def has_hard_budget(caller: Caller) -> bool:
    """Whether a budget of the caller does more than warn."""
    budget = caller.budget
    return isinstance(budget, Budget | RunBudget) and budget.hard


def with_budget_of(caller: Caller, user: str) -> Caller:
    """Return the caller whose calls also count in the budget of one of its end users."""
    if not isinstance(caller.user_budget, Budget):
        return caller
    own = replace(caller.user_budget, caller=caller.name, user=user)
    known = caller.budget
    budget = replace(known, also=(*known.also, own)) if isinstance(known, Budget) else own
    return replace(caller, budget=budget)
