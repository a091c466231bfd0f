"""What operators and their monitoring ask: alive, ready, metrics, targets, circuits."""

from __future__ import annotations

from functools import partial

from flask import Response, request

from ..errors import RequestError
from ..routing.router import Router
from ..server import status as state
from ..telemetry.metrics import CONTENT_TYPE
from ..types import JSON
from . import EndpointBlueprint, View, body, document, endpoints, json_answer, plain_error
from .admin import Admin, guard
from .costs import costs, series
from .plans import explain
from .status_page import Page


def blueprint(router: Router, admin: Admin = None) -> EndpointBlueprint:
    """Return the operators' endpoints, bound to *router*; without an *admin* key only health and
    metrics are open.
    """
    state.watch(router)

    def admin_only(view: View) -> View:
        return guard(admin, view)

    return endpoints(
        "infermux_ops",
        router,
        [
            ("GET", "/healthz", alive),
            ("GET", "/costs", admin_only(lambda: costs(router))),
            ("GET", "/costs/timeseries", admin_only(lambda: series(router))),
            ("GET", "/readyz", partial(ready, router)),
            ("GET", "/metrics", partial(metrics, router)),
            ("POST", "/explain", admin_only(lambda: explain(router))),
            ("GET", "/status", admin_only(Page(router).answer)),
            ("GET", "/status/targets", admin_only(partial(status, router))),
            *(
                (
                    "POST",
                    f"/providers/<name>/circuit/{action}",
                    admin_only(partial(circuit, router, action)),
                )
                for action in state.ACTIONS
            ),
        ],
        render=plain_error,
    )


def alive() -> Response:
    """Say that the process answers; nothing else is asked."""
    return json_answer({"status": "ok"})


def ready(router: Router) -> Response:
    """Say whether calls can be served, and if not, why: by the ledger, or because every target is
    shut.
    """
    problem = router.ledger.problem() if router.ledger is not None else None
    watched, known = router.targets.breakers(), router.registry.targets()
    shut = {
        str(target): reason
        for target in known
        if target in watched and (reason := watched[target].refusal())
    }
    usable = len(known) - len(shut)
    good = problem is None and (usable > 0 or not known)
    ledger = "not configured" if router.ledger is None else problem or "ok"
    return json_answer(
        {
            "ready": good,
            "configuration": "ok",
            "ledger": ledger,
            "targets": {"usable": usable, "shut": shut},
        },
        200 if good else 503,
        {"Cache-Control": "no-store"},
    )


def metrics(router: Router) -> Response:
    """Give Prometheus the counts of every worker."""
    return Response(
        state.watch(router).text(),
        headers={"X-Content-Type-Options": "nosniff"},
        content_type=CONTENT_TYPE,
    )


def status(router: Router) -> Response:
    """Say how each target is."""
    return json_answer({"targets": [target._asdict() for target in state.targets(router)]})


def circuit(router: Router, action: str, name: str) -> Response:
    """Open, close or reset a provider's circuits, or those of one model, and say how its targets
    are then.
    """
    router.registry.member(name)
    model = _model()
    chosen = {target.model for target in router.registry.resolve(model, name)} if model else {None}
    for each in chosen:
        workers, done = state.order(router, action, name, each)
    found = [
        target._asdict()
        for target in state.targets(router)
        if target.provider == name and (not model or target.model in chosen)
    ]
    return json_answer(
        {"provider": name, "action": action, "workers": workers, "done": done, "targets": found}
    )


def _model() -> str:
    """Return the model that the address or the body names, or nothing."""
    given: JSON = document().value if body() else {}
    model = request.args.get("model", given.get("model", ""))
    if not isinstance(model, str) or len(model) > 200 or given.keys() - {"model"}:
        raise RequestError('the body may be {"model": "NAME"} alone', param="model")
    return model
