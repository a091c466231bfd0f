"""The HTTP endpoints: a Flask blueprint for each API (MIST, OpenAI, Anthropic, Gemini) and one for
operators.

`http` reads requests and writes responses, `auth` authenticates callers, `sse` streams. A
view only decodes the request, calls the router and encodes the result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.exceptions import HTTPException

from ..errors import MethodNotAllowed, forget
from ..routing.router import Router
from ..types import NOTHING
from .http import (
    BODY,
    Api,
    BodyRoom,
    BytesResponse,
    View,
    current_request,
    error_response,
    ours,
    refuse_long_body,
    with_request_id,
)
from .sse import START, with_early_start

log = logging.getLogger("infermux")
EXTENSION = "infermux"  # the key of the router in `app.extensions`
Route = tuple[str, str, View]  # method, path, view
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class EndpointBlueprint(Blueprint):
    """A blueprint that adds a number to its name if the app has one of that name."""

    def register(self, app: Any, options: dict[str, Any]) -> None:
        name, number = options.get("name", self.name), 2
        while name in app.blueprints:
            name, number = f"{self.name}-{number}", number + 1
        super().register(app, {**options, "name": name})
        if START not in app.extensions:  # once per app
            app.extensions[START] = app.wsgi_app = with_early_start(app.wsgi_app)


def endpoints(
    name: str,
    api: Api,
    routes: Iterable[Route],
    refusals: Mapping[tuple[str, str], View] = NOTHING,
) -> EndpointBlueprint:
    """Return a blueprint that calls its views with *api*; other methods get a JSON 405.

    *refusals* are views that say more than that, by method and path; they are not listed. A path
    has one rule for all methods, as Werkzeug takes a millisecond to compile one.
    """
    if not isinstance(api.router, Router) or not callable(api.identify or print):
        raise TypeError("give a Router, such as infermux.load(), and a function as caller")
    blueprint = EndpointBlueprint(name, __name__)
    views: dict[str, dict[str, View]] = {}  # by path, then by method
    for method, path, view in routes:
        known = views.setdefault(path, {})
        known |= dict.fromkeys(("GET", "HEAD") if method == "GET" else (method,), view)
    for path, known in views.items():
        refuse = partial(_refuse, ", ".join(known))
        more = {method: refusals.get((method, path), refuse) for method in METHODS}
        blueprint.add_url_rule(
            path,
            re.sub(r"\W+", "_", path).strip("_") or "index",
            _guarded(more | known, api, tuple(known)),
            methods=METHODS,
            provide_automatic_options=False,
        )
    blueprint.record_once(lambda state: state.app.extensions.setdefault(EXTENSION, api.router))
    return blueprint


def methods_of(view: object) -> tuple[str, ...]:
    """Return the methods that the view of an endpoint does not refuse; () for an app's own."""
    found: tuple[str, ...] = getattr(view, "allowed", ())
    return found


def _guarded(views: Mapping[str, View], api: Api, allowed: tuple[str, ...]) -> View:
    """Return a view that calls the view of the request's method, and renders its errors."""

    def guarded(**arguments: str) -> Response:
        request, room = current_request(), BodyRoom(api.router.admission.bodies)
        request.environ[BODY] = room
        try:
            response = views[request.method](api, **arguments)
        except HTTPException:
            raise
        except Exception as error:
            response = error_response(ours(error, "a request"), api.render)
            forget(error)
        finally:
            if BODY in request.environ:  # a stream releases it at its end
                if not room.is_used and "stream" not in vars(request):
                    refuse_long_body()
                room.release()
        return response if isinstance(response, BytesResponse) else with_request_id(response)

    guarded.allowed = allowed  # type: ignore[attr-defined]
    return guarded


def _refuse(allow: str, api: Api, **arguments: str) -> Response:
    """Respond to OPTIONS with Allow; raise MethodNotAllowed for other methods."""
    method = request.method
    if method == "OPTIONS":
        return Response(status=204, headers={"Allow": allow})
    raise MethodNotAllowed(f"{method} is not allowed here; use {allow}", allow=allow)
