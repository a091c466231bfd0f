"""What operators and their monitoring ask: alive, ready, metrics, targets, circuits."""

from __future__ import annotations

from flask import Response

from ..router import Router
from ..schema import Secret
from ..status import targets
from . import Door, View, door, json_answer, plain_error
from .admin import guard
from .costs import costs, series
from .page import Page


def blueprint(router: Router, admin: Secret | str | None = None) -> Door:
    """Return the operators' endpoints, bound to *router*; without an *admin* key only health and metrics are open."""
    def admin_only(view: View) -> View:
        return guard(admin, view)

    return door("infermux_ops", router, [
        ("GET", "/healthz", alive),
        ("GET", "/costs", admin_only(lambda: costs(router))),
        ("GET", "/costs/timeseries", admin_only(lambda: series(router))),
        ("GET", "/status", admin_only(Page(router).answer)),
        ("GET", "/status/targets", admin_only(lambda: status(router))),
    ], render=plain_error)


def alive() -> Response:
    """Say that the process answers; nothing else is asked."""
    return json_answer({"status": "ok"})


def status(router: Router) -> Response:
    """Say how each target is."""
    return json_answer({"targets": [target._asdict() for target in targets(router)]})
