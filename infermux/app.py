"""The Flask application of the service, and the blueprint to mount in your own app."""

from __future__ import annotations

import contextlib
import copy
import logging
import re

import click
from flask import Flask, Request, Response, current_app, request
from flask.cli import with_appcontext
from flask.sessions import SessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import Rule, WebsocketMismatch

from . import build, errors
from .cli import OneLine
from .cli import main as cli
from .config.settings import under_gunicorn
from .dialects.anthropic.downstream import encode_error as anthropic_error
from .dialects.gemini.downstream import encode_error as gemini_error
from .routing.router import Router
from .web import METHODS, EndpointBlueprint, endpoints, methods_of
from .web.admin import ops_blueprint
from .web.anthropic import anthropic_blueprint
from .web.gemini import gemini_blueprint
from .web.http import (
    Api,
    Identify,
    error_response,
    json_response,
    ours,
    plain_error,
    refuse_long_body,
    with_request_id,
)
from .web.mist import mist_blueprint
from .web.openai import is_anthropic, is_google, openai_blueprint

_APIS = {
    "infermux": "mist",
    "infermux_openai": "openai",
    "infermux_anthropic": "anthropic",
    "infermux_gemini": "gemini",
    "infermux_ops": "operators",
}
_BASE_URLS = {"openai": "/v1", "anthropic": "/", "gemini": "/"}  # paths for clients
_NOT_OURS = (
    "this gunicorn runs without InferMux's settings (threads, timeouts, limits, the log): start "
    "the service with `infermux serve`, or with a gunicorn.conf.py in the directory where gunicorn "
    "is started that says `import infermux.server; globals().update(infermux.server.load())`. "
    "Its workers know each other's ids of files and stored responses only with a ledger, "
    "[ledger].users_secret or [server].admin_key"
)
log = logging.getLogger("infermux")


class _NoSession(SessionInterface):
    def open_session(self, app: Flask, request: Request) -> None:
        return None


def create_app(router: Router | None = None) -> Flask:
    """Return the Flask app for *router*, or for the configured one; raise ConfigError."""
    app = Flask("infermux", static_folder=None)
    app.session_interface = _NoSession()
    shell = click.get_current_context(silent=True)  # of `flask --app infermux`
    try:
        settings = build.settings()
        build.announce(settings)
        router = router or build.router(settings, serving=True)
    except errors.ConfigError as error:
        if shell is None:
            raise
        raise OneLine(error.message) from None
    build.apps.add(app)
    if build.pinned is None and under_gunicorn():
        log.warning(_NOT_OURS)
    app.config.update(settings.server.for_flask)
    for make in (blueprint, openai_blueprint, anthropic_blueprint, gemini_blueprint):
        app.register_blueprint(make(router))
    operators = ops_blueprint(
        router,
        lambda: (build.pinned or settings).server.admin_key,
        metrics=lambda: (build.pinned or settings).server.metrics,
        about=lambda: build.summary(build.pinned or settings, router),
    )
    app.register_blueprint(operators)
    index = Api("index", router, plain_error)
    app.register_blueprint(endpoints("infermux_index", index, [("GET", "/", _index)]))
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _bug)
    if shell is not None:
        for name in cli.main.list_commands(shell):
            if command := cli.main.get_command(shell, name):
                app.cli.add_command(_in_app(command))
    return app


def blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the MIST endpoints for *router* and the command `flask infer`.

    *caller* is a function that returns the current request's caller: a name or a Caller.
    """
    made = mist_blueprint(router, caller=caller)
    made.cli.add_command(_in_app(cli.infer))
    made.cli_group = None  # `flask infer`, not `flask infermux infer`
    return made


def _in_app(command: click.Command) -> click.Command:
    """Return a copy of *command* that runs in the app context of the `flask` command line."""
    bound = copy.copy(command)
    bound.callback = with_appcontext(command.callback) if command.callback else None
    return bound


def _http_error(error: HTTPException) -> Response:
    """Return a JSON response for an error of Flask itself, such as an unknown path or method."""
    refuse_long_body()
    status, answer = error.code or 500, errors.InferMuxError(error.name.lower())
    if status < 400:  # a redirect to the path with its slash
        location = {"Location": getattr(error, "new_url", "/")}
        return with_request_id(Response(status=status, headers=location))
    if status == 404:
        answer = errors.NotFound(f"not found; {_suggested_endpoint()}")
    elif isinstance(error, WebsocketMismatch):  # Codex then uses HTTP
        status, answer = 426, errors.RequestError("there is no WebSocket here: use HTTP")
    elif status == 405:
        answer = errors.MethodNotAllowed("method not allowed", allow=_allowed())
    elif status < 500:
        answer = errors.RequestError(error.name.lower())
    answer.status = status
    theirs = gemini_error if is_google() else plain_error
    render = anthropic_error if is_anthropic() or "/v1/messages" in request.path else theirs
    return error_response(answer, render)


def _index(_: Api) -> Response:
    found: dict[str, list[str]] = {}
    for rule in current_app.url_map.iter_rules():
        blueprint = rule.endpoint.partition(".")[0]
        if blueprint in _APIS:
            place, known = _place(rule), found.setdefault(_APIS[blueprint], [])
            known += [f"{method} {place}" for method in _methods(rule) if method != "HEAD"]
    return json_response({"service": "infermux", "base_url": _BASE_URLS, "endpoints": found})


def _place(rule: Rule) -> str:
    return re.sub("<.*?>", "ID", rule.rule)


def _methods(rule: Rule) -> tuple[str, ...]:
    return methods_of(current_app.view_functions.get(rule.endpoint))


def _suggested_endpoint() -> str:
    """Suggest a path for an unknown one: the client's base URL may need, repeat or precede /v1."""
    match = current_app.url_map.bind_to_environ(request).match
    asked = request.path.rstrip("/")
    _, slash, rest = asked.rpartition("/v1/")
    for path in (asked, f"/v1{asked}", asked.removeprefix("/v1"), slash + rest):
        with contextlib.suppress(HTTPException):
            if path not in (request.path, "/"):
                rule, _ = match(path, return_rule=True)
                method = "GET" if request.method == "HEAD" else request.method
                named = f"{method} " * (method in _methods(rule)) + _place(rule)
                return (
                    f"the endpoint is {named}: the base URL of an OpenAI client ends "
                    "in /v1, that of an Anthropic one does not"
                )
    return "GET / names the endpoints"


def _allowed() -> str:
    """Return the Allow header: the methods of the requested path."""
    match = current_app.url_map.bind_to_environ(request).match
    rule, _ = match(method="GET", return_rule=True)
    known = _methods(rule)
    return ", ".join(method for method in METHODS if method in known)


def _bug(error: Exception) -> Response:
    return error_response(ours(error, "a request"), plain_error)
