"""Explains what a call would do now: its plan, and the state of the targets in it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..config.schema import suggestion
from ..dialects import require
from ..dialects.openai.downstream import decode_request
from ..dialects.settled import settled
from ..errors import RequestError, shown
from ..ledger import Budget, BudgetState
from ..planning import Plan
from ..planning.settings import NameSettings, TargetSettings
from ..pricing import usd_float
from ..protocol import InferRequest, must_be
from ..protocol.passed import Passed
from ..protocol.strict_json import Document
from ..types import JSON, Caller, Target
from .callers import with_budget_of
from .passed.endpoints import check, known
from .router import Router
from .targets import expected_usage

MAX_TOKENS = 10**9  # input tokens in a question
_MIST_REQUEST = {"model", "provider", "messages", "params", "meta"}
_EMPTY = {"role": "user", "content": ""}
_IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}
_TYPES = {
    "tokens": int,
    **dict.fromkeys(("caller", "user", "session", "endpoint"), str),
    **dict.fromkeys(("image", "structured"), bool),
}


class Question(NamedTuple):
    """The call to explain."""

    request: InferRequest
    caller: str = ""
    size: int | None = None  # input tokens; None: estimated from the request's text
    user: str = ""  # the end user


class Explanation(NamedTuple):
    """The plan of a call, which is not made."""

    plan: Plan
    targets: tuple[JSON, ...]  # of the plan, in order
    dropped: tuple[JSON, ...]
    about: JSON  # the caller, the estimated tokens, the effect of the budget

    def to_dict(self) -> JSON:
        plan = self.plan
        return {
            "model": plan.model,
            "pattern": plan.route.pattern or None,
            "strategy": plan.strategy,
            "seed": plan.seed,
            **self.about,
            "session": plan.snapshot.state.session or None,
            "targets": self.targets,
            "dropped": self.dropped,
            "forced": plan.forced,
            "retry_in": plan.retry_in,
        }


def question(data: Mapping[str, Any]) -> Question:
    """Return the question in a request body; raise RequestError naming what is wrong.

    The body is an infer.request, an OpenAI chat request, or a short form: model, and optionally
    provider, tokens, caller, user, session, endpoint, and the booleans tools, image, structured.
    """
    rest = dict(data)
    short = {name: rest.pop(name) for name in _TYPES if name in rest}
    if type(rest.get("tools")) is bool:
        short["tools"] = rest.pop("tools")
    for name, value in short.items():
        require(value, name, _TYPES.get(name, bool))
    if not 0 <= short.get("tokens", 0) <= MAX_TOKENS:
        raise must_be("tokens", f"from 0 to {MAX_TOKENS}")
    rest["messages"] = rest.get("messages") or [_EMPTY]
    if rest.keys() <= _MIST_REQUEST:
        request = InferRequest.from_dict(rest)
    else:
        request = decode_request(Document(rest, "", {}))[0]
    request.check()
    asked = _completed(request, short)
    return Question(asked, short.get("caller", ""), short.get("tokens"), short.get("user", ""))


def explain(router: Router, asked: Question) -> Explanation:
    """Return the plan of the call as of now, without side effects; raise `Router.plan`'s errors."""
    request, size, caller = asked.request, asked.size, _caller(router, asked.caller)
    check(router, request, caller)
    user = router.users.of(request, asked.user)
    caller = with_budget_of(caller, user.digest) if user is not None else caller
    plan = router.plan(request, caller=caller, size=size)
    tightest, override = _tightest_budget(router, caller), ""
    left = tightest and tightest.left
    over = {
        target: left is not None and router.accounting.exceeds(request, target, left, size)
        for target in plan.targets
    }
    exceeded = bool(over) and all(over.values())
    if exceeded and tightest is not None and tightest.budget.then != "reject":
        override = tightest.budget.then
        request = replace(request, model=override, provider="")
        plan = router.plan(request, caller=replace(caller, models=None), size=size)
        over, exceeded = {}, False
    usage, gone = expected_usage(request, size), plan.dropped.items()
    costs = router.targets.costs(() if request.passed else (*plan.targets, *plan.dropped), usage)
    refused, tokens = "budget_exceeded" if exceeded else None, usage.input_tokens or 0
    refused = refused if plan.targets else "no_healthy_providers"
    settings = router.registry.settings(plan.route)
    about = {
        "caller": caller.name,
        "user": (user and user.shown) or None,
        "tokens": {"input": tokens, "output": usage.output_tokens},
        "budget_left_usd": usd_float(left),
        "override": override or None,
        **_beside(router, plan, request, refused),
    }
    targets = [
        _state(router, target, costs, tokens)
        | {"over_budget": over.get(target, False)}
        | _settings(router, settings, target, request)
        for target in plan.targets
    ]
    dropped = [_state(router, each, costs, tokens) | {"dropped": why} for each, why in gone]
    return Explanation(plan, tuple(targets), tuple(dropped), about)


def _completed(request: InferRequest, short: Mapping[str, Any]) -> InferRequest:
    params, messages = dict(request.params), list(request.messages)
    if short.get("tools"):
        params["tools"] = [{"type": "function", "function": {"name": "f"}}]
    if short.get("structured"):
        params["response_format"] = {"type": "json_schema", "json_schema": {"name": "f"}}
    if short.get("image"):
        messages.append(_IMAGE)
    session = short.get("session", request.session)
    made = replace(request, params=params, messages=messages, native=None, session=session)
    if name := short.get("endpoint"):
        made.op, made.passed, made.messages = known(name), Passed(), ()
    return made


def _caller(router: Router, name: str) -> Caller:
    """Return the caller called *name*; if no keys are configured, only its name is known."""
    if not name or router.keyring is None or router.keyring.open:
        return Caller(name)
    known = router.keyring.callers
    if name not in known:
        raise RequestError(
            f"there is no key {shown(name)}{suggestion(name, known)}", param="caller"
        )
    return known[name]


def _tightest_budget(router: Router, caller: Caller) -> BudgetState | None:
    """Return the state of the caller's budget that has the least left, unless all only warn."""
    budget = caller.budget
    if router.ledger is None or not isinstance(budget, Budget):
        return None
    limits = [each for each in budget.all if each.then != "warn"]
    return min(router.ledger.states(limits, time.time()), key=lambda it: it.left, default=None)


def _settings(
    router: Router, settings: NameSettings | None, target: Target, request: InferRequest
) -> JSON:
    """Return what the name, else the provider, sets for a call to *target*."""
    own = (settings and settings.targets.get(target)) or TargetSettings()
    provider = router.registry.get(target.provider)
    sent = settled(own.applied(request), getattr(provider, "default_params", {}), {})
    attempt = {"attempt": own.timeout.attempt} if own.timeout.attempt else {}
    params, timeout = sent.forced and sent.forced.params, attempt | dict(sent.timeouts or {})
    return {k: v for k, v in (("params", params), ("timeout", timeout)) if v}


def _beside(router: Router, plan: Plan, request: InferRequest, refused: str | None) -> JSON:
    """Return what a name sets for a call, who refuses or sees it, and where its copies go."""
    settings = router.registry.settings(plan.route)
    kept = plan.route.answers if router.answers is not None else None
    found: JSON = {"cache_answers": kept and kept._asdict()}
    if settings is not None:
        found |= {each: getattr(settings, each) or None for each in ("attempts", "deadline")}
    name = plan.route.pattern or plan.model
    rules = (getattr(each, "rules", {}).get(name) for each in router.observers)
    rule = next(filter(None, rules), None)
    copied = rule and {"target": rule.target, "share": rule.share}
    unseen = router.hooks and router.hooks.refusal(request)
    found["refused"] = unseen.code if unseen else refused
    hooks = dict(router.hooks.names) if router.hooks else {}
    return found | {"mirror": copied, "hooks": hooks}


def _state(router: Router, target: Target, costs: Mapping[Target, int | None], tokens: int) -> JSON:
    keys: Any = getattr(router.registry.get(target.provider), "credentials", None)
    several = hasattr(keys, "serving") and keys.count > 1  # others may have theirs of another type
    pacer = router.targets.pacers.get(target.provider)
    breaker = router.targets.breakers().get(target)
    state = breaker and breaker.snapshot()
    return {
        "provider": target.provider,
        "model": target.model,
        "state": state.state if state else "closed",
        "retry_in": state.retry_in if state and state.reason else None,
        "rests": router.targets.resting(target) or None,
        "paced": (pacer and pacer.turn(tokens)) or None,
        "keys": {"serving": keys.serving, "all": keys.count} if several else None,
        "latency": state and state.latency,
        "priced": router.targets.price(target) is not None,
        "cost_usd": usd_float(costs.get(target)),  # None: billed by something else
    }
