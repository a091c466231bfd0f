"""The operators' API: health, readiness, metrics, costs, keys, explain, status and circuits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from flask import Response, request

from ...components import keys
from ...errors import NotFound, RequestError
from ...ledger import LedgerUnavailable, reports
from ...ledger.sql import Ledger
from ...protocol import must_be, strict_json
from ...routing import explain as explaining
from ...routing.router import Router
from ...server import alerts, status
from ...telemetry.metrics import CONTENT_TYPE
from ...types import JSON, LogThrottle
from .. import EndpointBlueprint, Route, auth, endpoints
from ..auth import Admin
from ..http import Api, View, json_body, json_response, plain_error, query_of, read_body
from . import overview
from .status_page import About, StatusPage

log = logging.getLogger("infermux")
_unready = LogThrottle()


def ops_blueprint(
    router: Router,
    admin: Admin = None,
    *,
    metrics: str | Callable[[], str] = "open",
    about: About = dict,
) -> EndpointBlueprint:
    """Return the operators' endpoints for *router*.

    Without an *admin* key only health, readiness and metrics are available. If *metrics* is
    "admin", metrics require the key. *about* returns the facts about the configuration that the
    status page shows, by subject.
    """
    status.monitor(router)
    alerts.arm(router)

    def admin_only(view: View) -> View:
        return auth.admin_only(admin, view)

    def counters(api: Api) -> Response:
        for_all = (metrics() if callable(metrics) else metrics) == "open"
        return (prometheus if for_all else admin_only(prometheus))(api)

    routes = [
        ("GET", "/healthz", health),
        ("GET", "/readyz", readiness),
        ("GET", "/metrics", counters),
        *StatusPage(router, admin, about=about).routes(),
    ]
    routes += [(method, path, admin_only(view)) for method, path, view in _FOR_OPERATORS]
    for action in status.ACTIONS:
        change = admin_only(partial(circuit, action=action))
        routes.append(("POST", f"/providers/<name>/circuit/{action}", change))
    blueprint = endpoints("infermux_ops", Api("ops", router, plain_error), routes)
    blueprint.after_request(_never_stored)
    return blueprint


def _never_stored(response: Response) -> Response:
    response.headers["Cache-Control"] = "no-store"
    return response


def health(_: Api) -> Response:
    return json_response({"status": "ok"})


def readiness(api: Api) -> Response:
    """Report whether calls can be served; if not, the ledger's problem or the open circuits."""
    ledger, problem = api.router.ledger, None
    try:
        if ledger is not None:
            ledger.check()
    except LedgerUnavailable as error:
        problem = f"the ledger cannot be written: {error.told}"
        if _unready.due():  # log only: the reason includes the path
            log.error("the ledger cannot be written: %s", error.reason)
    watched, known = api.router.targets.breakers(), api.router.registry.targets()
    unready = {
        str(target): reason
        for target in known
        if target in watched and (reason := watched[target].refusal())
    }
    usable = len(known) - len(unready)
    ready = problem is None and (usable > 0 or not known)
    local = {"rate_limits": "each host counts its own calls: the ledger is away"}
    data = {
        "ready": ready,
        "configuration": "ok",
        "ledger": "not configured" if ledger is None else problem or "ok",
        **(local if status.limits_are_local(api.router) else {}),
        "records": status.records(api.router)._asdict(),
        "targets": {"usable": usable, "shut": unready},
    }
    return json_response(data, 200 if ready else 503)


def prometheus(api: Api) -> Response:
    headers = {"X-Content-Type-Options": "nosniff"}
    return Response(status.metrics_text(api.router), headers=headers, content_type=CONTENT_TYPE)


def explain(api: Api) -> Response:
    """Explain how this process would route a call now, without sending it."""
    question = explaining.question(json_body(strict_json.document).value)
    return json_response(explaining.explain(api.router, question).to_dict())


# -- costs --


def costs(api: Api) -> Response:
    """Return the costs by model or other dimensions, like `infermux costs`."""
    with _ledger(api) as ledger:
        span, caller, limit = _cost_query(ledger, time.time())
        by = reports.dimensions(request.args.getlist("by"))
        found = reports.costs(ledger, by, span, caller=caller, limit=limit)
    return json_response(found.to_dict())


def cost_series(api: Api) -> Response:
    """Return the costs per day or hour, including those without calls."""
    now, step = time.time(), request.args.get("by") or "day"
    with _ledger(api) as ledger:
        span, caller, limit = _cost_query(ledger, now)
        found = reports.series(ledger, step, span, now, caller=caller, limit=limit)
    return json_response(found)


def _cost_query(ledger: Ledger, now: float) -> tuple[reports.Period, str | None, int]:
    """Return the period, the caller and the row limit; raise RequestError naming the parameter."""
    query_of("by", "since", "until", "month", "caller", "limit")
    given = request.args.get
    span = reports.period(
        now,
        since=given("since"),
        until=given("until"),
        month=given("month"),
        zone=ledger.zone,
    )
    return span, given("caller"), reports.limited(given("limit"))


def budgets(api: Api) -> Response:
    with _ledger(api) as ledger:
        found = reports.budgets_dict(status.budgets(api.router, former=True), ledger.adjustments())
    return json_response(found)


def find_calls(api: Api) -> Response:
    with _ledger(api) as ledger:
        return overview.calls(ledger)


def one_call(api: Api, id: str) -> Response:
    with _ledger(api) as ledger:
        return overview.call(ledger, id)


@contextmanager
def _ledger(api: Api) -> Iterator[Ledger]:
    """Yield the ledger; log the reason if it cannot be read."""
    if api.router.ledger is None:
        raise NotFound("no ledger is configured")
    try:
        yield api.router.ledger
    except LedgerUnavailable as error:
        log.error("the ledger cannot be read: %s", error.reason)
        raise


# -- keys that are created at run time --


def list_keys(api: Api) -> Response:
    query_of()
    return json_response({"keys": keys.listed(api.router, api.router.ledger)})


def one_key(api: Api, name: str) -> Response:
    return json_response(keys.one(api.router, api.router.ledger, name))


def create_key(api: Api) -> Response:
    """Create a key; the answer has its secret, which is not shown again."""
    data = json_body(strict_json.document).value
    return json_response(keys.create(api.router, _key_ledger(api), data).to_dict(), 201)


def rotate_key(api: Api, name: str) -> Response:
    """Give a key a new secret; the old one stays valid for a while."""
    data: JSON = json_body(strict_json.document).value if read_body() else {}
    if data.keys() - {"overlap"}:
        raise RequestError('the body must be empty or {"overlap": "24h"}', param="overlap")
    made = keys.rotate(api.router, _key_ledger(api), name, data.get("overlap"))
    return json_response(made.to_dict())


def revoke_key(api: Api, name: str = "") -> Response:
    """Revoke a key, named by the path or by ?name=."""
    read_body()
    query_of("name")
    name = name or request.args.get("name", "")
    if not name:
        raise must_be("name", "the name of a key: DELETE /keys/NAME")
    return json_response(keys.revoke(api.router, _key_ledger(api), name))


def _key_ledger(api: Api) -> Ledger:
    if api.router.ledger is None:
        raise NotFound("no ledger is configured, which would store the keys")
    return api.router.ledger


# -- circuits --


def targets(api: Api) -> Response:
    found = [each._asdict() for each in status.targets(api.router)]
    return json_response({"targets": found, "records": status.records(api.router)._asdict()})


def circuit(api: Api, action: str, name: str) -> Response:
    """Open, close or reset the circuits of a provider or model; return its targets."""
    given: JSON = json_body(strict_json.document).value if read_body() else {}
    model, registry = request.args.get("model", given.get("model", "")), api.router.registry
    if not isinstance(model, str) or len(model) > 200 or given.keys() - {"model"}:
        raise RequestError('the body must be empty or {"model": "NAME"}', param="model")
    registry.member(name)
    chosen = {target.model for target in registry.resolve(model, name)} if model else {None}
    for each in chosen:
        made = status.command(api.router, action, name, each)
    found = [
        target._asdict()
        for target in status.targets(api.router)
        if target.provider == name and (not model or target.model in chosen)
    ]
    data = {"provider": name, "action": action, "workers": made.workers, "done": made.done}
    if made.heard is not None:
        data["other_hosts"] = made.heard
    return json_response(data | {"targets": found})


_FOR_OPERATORS: tuple[Route, ...] = (
    ("GET", "/costs", costs),
    ("GET", "/costs/timeseries", cost_series),
    ("GET", "/budgets", budgets),
    ("GET", "/calls", find_calls),
    ("GET", "/calls/<id>", one_call),
    ("GET", "/keys", list_keys),
    ("POST", "/keys", create_key),
    ("DELETE", "/keys", revoke_key),
    ("GET", "/keys/<name>", one_key),
    ("DELETE", "/keys/<name>", revoke_key),
    ("POST", "/keys/<name>/rotate", rotate_key),
    ("POST", "/explain", explain),
    ("GET", "/status/targets", targets),
)
