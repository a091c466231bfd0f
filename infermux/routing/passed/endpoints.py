"""Which providers have the endpoints that are passed through."""

from __future__ import annotations

from ...config.patterns import covers
from ...config.readers import ENDPOINTS
from ...dialects.openai.endpoints import endpoint_of
from ...errors import (
    ModelNotAllowed,
    ModelNotFound,
    NotFound,
    RequestError,
    close_to,
    listed,
    shown,
)
from ...planning.matching import within
from ...protocol import InferRequest
from ...providers.passing import has
from ...types import Caller
from ..router import Router


def may_use(router: Router, caller: Caller, provider: str) -> bool:
    """Whether some model that the caller may use could be at *provider*."""
    scope = caller.models
    if scope is None or covers(scope, f"{provider}/-"):
        return True
    named = any(each.startswith(f"{provider}/") for each in scope)
    return named or any(provider in found for found in within(router.registry, scope).values())


def check_provider(router: Router, caller: Caller, provider: str) -> None:
    """Raise ModelNotAllowed if the caller may use no model of *provider*."""
    if not may_use(router, caller, provider):
        raise ModelNotAllowed(
            f"this key may use no model of provider {shown(provider)}", param="provider"
        )


def provider_of(router: Router, op: str, wanted: str, caller: Caller) -> str:
    """Return the provider for an object without an id: *wanted*, else the first with files.

    Raise ModelNotFound, NotFound or ModelNotAllowed.
    """
    having = [each.name for each in router.registry if has(each.provider, op)]
    if not wanted:
        if not having:
            raise NotFound(f"no provider has /v1/{op}")
        wanted = next((each for each in having if may_use(router, caller, each)), having[0])
    if wanted not in router.registry:
        hint = close_to(wanted, having)
        raise ModelNotFound(f"no provider named {shown(wanted)}{hint}", param="provider")
    if wanted not in having:
        raise NotFound(
            f"provider {wanted!r} has no /v1/{op}; providers that have it: {listed(having)}",
            param="provider",
        )
    check_provider(router, caller, wanted)
    return wanted


def check(router: Router, request: InferRequest, caller: Caller) -> None:
    """Raise NotFound naming the providers that have the endpoint if none of the model's has it."""
    if request.passed is None:
        return
    if caller.models is not None and not covers(caller.models, request.model):
        return  # the router says that
    try:
        targets = router.registry.resolve(request.model, request.provider)
    except ModelNotFound:
        return
    if any(has(router.registry.get(target.provider), request.op) for target in targets):
        return
    names = dict.fromkeys(target.provider for target in targets)
    having = [each.name for each in router.registry if has(each.provider, request.op)]
    raise NotFound(
        f"model {shown(request.model)} is at {listed([*names])}, which has no "
        f"/v1/{endpoint_of(request.op)}; providers that have it: {listed(having)}",
        param="model",
    )


def known(name: str) -> str:
    """Return the name of an endpoint, written as a path or not; raise RequestError."""
    found = name.strip("/").removeprefix("v1/")
    if found not in ENDPOINTS:
        raise RequestError(
            f"there is no endpoint {shown(name)}{close_to(found, ENDPOINTS)}", param="endpoint"
        )
    return found
