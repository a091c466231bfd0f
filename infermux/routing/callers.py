"""The caller of a call: its tags, its end user, and the budget of that end user."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from ..ledger import Budget
from ..planning.call import Call
from ..planning.end_user import Users
from ..protocol import InferRequest
from ..telemetry.spans import of_meta
from ..types import NOTHING, Caller, TraceContext

TAGS = ("project", "env")  # which a request may set


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
    call = Call.begin(request, caller=caller, api=api, trace=trace, tags=merged)
    call.user, call.end_user = who or ("", "")
    return call


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
