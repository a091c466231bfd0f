"""What a call would do now, without doing it: the plan that serving would execute, and what is
known of each target in it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from ..config.schema import meant
from ..dialects.openai.downstream import decode_request
from ..errors import RequestError, shown
from ..ledger import Budget
from ..planning import Plan
from ..planning.call import usd
from ..protocol import InferRequest
from ..protocol.strict_json import Document
from ..types import JSON, Caller, Target
from .router import Router
from .targets import expected

MOST_TOKENS = 10**9
_REQUEST = {"model", "provider", "messages", "params", "meta"}
_EMPTY = {"role": "user", "content": ""}
_PICTURE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}
_OWN = {"tokens": int, "caller": str, "image": bool, "structured": bool}
_KINDS = {int: "a whole number", str: "text", bool: "true or false"}


class Asked(NamedTuple):
    """Which call is to be explained."""

    request: InferRequest
    caller: str = ""
    size: int | None = None  # input tokens; None: as the request's text is estimated


class Explanation(NamedTuple):
    """The plan of a call that is not made."""

    plan: Plan
    targets: tuple[JSON, ...]  # those of the plan, in their order
    dropped: tuple[JSON, ...]
    about: JSON  # the caller, the estimated tokens, what becomes of a spent budget

    def to_dict(self) -> JSON:
        """Return the whole as JSON."""
        plan = self.plan
        return {
            "model": plan.model,
            "strategy": plan.strategy,
            "seed": plan.seed,
            **self.about,
            "targets": self.targets,
            "dropped": self.dropped,
            "forced": plan.forced,
            "retry_in": plan.retry_in,
        }


def asked(data: Mapping[str, Any]) -> Asked:
    """Return what a body asks about: an infer.request, a chat request in OpenAI's form, or only
    what matters of one.

    What matters is model, and perhaps provider, tokens, caller, and whether there are tools, an
    image, structured output. Raise RequestError naming what is odd.
    """
    rest = dict(data)
    own = {name: rest.pop(name) for name in _OWN if name in rest}
    if type(rest.get("tools")) is bool:
        own["tools"] = rest.pop("tools")
    for name, value in own.items():
        if type(value) is not (kind := _OWN.get(name, bool)):
            raise RequestError(f"{name} must be {_KINDS[kind]}", param=name)
    size = own.get("tokens")
    if size is not None and not 0 <= size <= MOST_TOKENS:
        raise RequestError(f"tokens must be from 0 to {MOST_TOKENS}", param="tokens")
    rest["messages"] = rest.get("messages") or [_EMPTY]
    request = (
        InferRequest.from_dict(rest)
        if rest.keys() <= _REQUEST
        else decode_request(Document(rest, "", {}))[0]
    )
    request.check()
    return Asked(_with(request, own), own.get("caller", ""), size)


def explained(router: Router, wanted: Asked) -> Explanation:
    """Return what the call would try now; it moves no turn on and holds nothing. Raise as the call
    itself would.
    """
    request, size, caller = wanted.request, wanted.size, _caller(router, wanted.caller)
    plan = router.plan(request, caller=caller, size=size)
    budget, left = caller.budget, _left(router, caller)
    over = {
        target: left is not None and (_worst(router, request, target, size) or 0) > left
        for target in plan.targets
    }
    spent = bool(over) and all(over.values())
    override = (
        budget.then if spent and isinstance(budget, Budget) and budget.then != "reject" else ""
    )
    if override:
        request = replace(request, model=override, provider="")
        plan, over, spent = (
            router.plan(request, caller=replace(caller, models=None), size=size),
            {},
            False,
        )
    usage = expected(request, size)
    costs = router.targets.costs((*plan.targets, *plan.dropped), usage)
    refused = "no_healthy_providers" if not plan.targets else "budget_exceeded" if spent else None
    about = {
        "caller": caller.name,
        "tokens": {"input": usage.input_tokens, "output": usage.output_tokens},
        "budget_left_usd": usd(left),
        "override": override or None,
        "refused": refused,
    }
    return Explanation(
        plan,
        tuple(
            _target(router, each, costs[each]) | {"over_budget": over.get(each, False)}
            for each in plan.targets
        ),
        tuple(
            _target(router, each, costs[each]) | {"dropped": why}
            for each, why in plan.dropped.items()
        ),
        about,
    )


def _with(request: InferRequest, own: Mapping[str, Any]) -> InferRequest:
    """Return the request as one that has tools, an image, or a form of its answer."""
    params = {
        **request.params,
        **({"tools": [{}]} if own.get("tools") else {}),
        **({"response_format": {"type": "json_schema"}} if own.get("structured") else {}),
    }
    return replace(
        request,
        params=params,
        messages=[*request.messages, *([_PICTURE] if own.get("image") else [])],
        native=None,
    )


def _caller(router: Router, name: str) -> Caller:
    """Return the caller of that name; where the mounting app knows who is calling, only the name is
    known here.
    """
    if not name or router.keyring is None:
        return Caller(name)
    known = router.keyring.callers
    if name not in known:
        raise RequestError(f"there is no key {shown(name)}{meant(name, known)}", param="caller")
    return known[name]


def _left(router: Router, caller: Caller) -> int | None:
    """Return what a hard budget has left, in pico-USD; None: nothing bounds the caller."""
    if (
        router.spending is None
        or not isinstance(caller.budget, Budget)
        or caller.budget.then == "warn"
    ):
        return None
    spent = router.spending.ledger.spent(caller.budget, time.time())
    return max(0, caller.budget.limit_pico - spent.spent - spent.held)


def _worst(router: Router, request: InferRequest, target: Target, size: int | None) -> int | None:
    return router.spending.worst(request, target, size) if router.spending is not None else None


def _target(router: Router, target: Target, cost: int | None) -> JSON:
    """Return what is known of a target: seconds of latency as strategies see it, the estimated
    cost.
    """
    health = router.targets.watched().get(target)
    state = None if health is None else health.snapshot()
    return {
        "provider": target.provider,
        "model": target.model,
        "state": "closed" if state is None else state.state,
        "retry_in": state.retry_in if state is not None and state.reason else None,
        "latency": state and state.latency,
        "priced": router.targets.price(target) is not None,
        "cost_usd": usd(cost),
    }
