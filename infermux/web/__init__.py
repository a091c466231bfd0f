"""The HTTP endpoints: a Flask blueprint for each API (MIST, OpenAI, Anthropic, Gemini) and one for
operators.

`http` reads requests and writes responses, `auth` authenticates callers, `sse` streams. A
view only decodes the request, calls the router and encodes the result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from functools import partial
from typing import Any

from flask import Blueprint, Response
from werkzeug.exceptions import HTTPException

from ..errors import InferMuxError, MethodNotAllowed, forget
from .http import (
    BODY,
    Api,
    BodyRoom,
    BytesResponse,
    View,
    current_request,
    error_response,
    with_request_id,
)
from .sse import START, with_early_start

log = logging.getLogger("infermux")
EXTENSION = "infermux"  # the key of the router in `app.extensions`
REFUSES = "_other"  # suffix of the endpoints that refuse other methods
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
    name: str, api: Api, routes: Iterable[Route], refusals: Iterable[Route] = ()
) -> EndpointBlueprint:
    """Return a blueprint that calls its views with *api*; other methods get a JSON 405.

    *refusals* are routes whose views say more than that; they are not listed.
    """
    blueprint = EndpointBlueprint(name, __name__)
    allowed: dict[str, list[str]] = {}

    def add(path: str, suffix: str, methods: list[str], view: View) -> None:
        endpoint = re.sub(r"\W+", "_", path).strip("_") or "index"
        blueprint.add_url_rule(
            path,
            endpoint + suffix,
            _guarded(view, api),
            methods=methods,
            provide_automatic_options=False,
        )

    for method, path, view in routes:
        known = allowed.setdefault(path, [])
        add(path, f"_{method.lower()}" * bool(known), [method], partial(view, api))
        known += ["GET", "HEAD"] if method == "GET" else [method]  # Werkzeug adds HEAD to GET
    own = {(method, path): partial(view, api) for method, path, view in refusals}
    for (method, path), refuse in own.items():
        add(path, f"_{method.lower()}{REFUSES}", [method], refuse)
    for path, known in allowed.items():
        others = (method for method in METHODS if method not in known)
        refused = [method for method in others if (method, path) not in own]
        add(path, REFUSES, refused, partial(_refuse, ", ".join(known)))
    blueprint.record_once(lambda state: state.app.extensions.setdefault(EXTENSION, api.router))
    return blueprint


def _guarded(view: View, api: Api) -> View:
    """Wrap *view* to render its errors; log an unexpected one and respond with a 500."""

    def guarded(**arguments: str) -> Response:
        room = BodyRoom(api.router.admission.bodies)
        current_request().environ[BODY] = room
        try:
            response = view(**arguments)
        except InferMuxError as error:
            response = error_response(error, api.render)
            forget(error)
        except HTTPException:
            raise
        except Exception as error:
            log.exception("a request failed unexpectedly")
            response = error_response(InferMuxError("internal error"), api.render)
            forget(error)
        finally:
            if BODY in current_request().environ:  # a stream releases it at its end
                room.release()
        return response if isinstance(response, BytesResponse) else with_request_id(response)

    return guarded


def _refuse(allow: str, **arguments: str) -> Response:
    """Respond to OPTIONS with Allow; raise MethodNotAllowed for other methods."""
    method = current_request().method
    if method == "OPTIONS":
        return Response(status=204, headers={"Allow": allow})
    raise MethodNotAllowed(f"{method} is not allowed here; use {allow}", allow=allow)
