"""The whole service as a WSGI application."""

from __future__ import annotations

import copy
import logging

import click
from flask import Flask, Request, Response, current_app, request
from flask.cli import with_appcontext
from flask.sessions import SessionInterface
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from . import build
from . import errors as our
from .cli import OneLine
from .cli import main as cli
from .routing.router import Router
from .web import (
    OTHER,
    EndpointBlueprint,
    Identify,
    anthropic,
    failed,
    mist,
    named,
    openai,
    ops,
    plain_error,
)

log = logging.getLogger("infermux")


class _NoSession(SessionInterface):
    """No request has a session, and none is looked for."""

    def open_session(self, app: Flask, request: Request) -> None:
        return None


def create_app(router: Router | None = None) -> Flask:
    """Return the service around *router*, or around the one that the environment configures; raise
    ConfigError.
    """
    app = Flask("infermux", static_folder=None)
    app.session_interface = _NoSession()
    at_a_shell = click.get_current_context(silent=True)
    try:
        settings = build.settings()
        router = router or build.router(settings, serving=True)
    except our.ConfigError as error:
        if at_a_shell is None:
            raise
        raise OneLine(error.message) from None
    app.config["MAX_CONTENT_LENGTH"] = settings.server.max_body
    for made in (blueprint(router), openai.blueprint(router), anthropic.blueprint(router)):
        app.register_blueprint(made)
    app.register_blueprint(ops.blueprint(router, lambda: (build.pinned or settings).server.admin))
    app.register_error_handler(HTTPException, lambda error: named(_http_error(error)))
    app.register_error_handler(Exception, lambda error: named(_bug(error)))
    if at_a_shell:  # by `flask --app infermux`: a service has no use for commands
        for name in cli.main.list_commands(at_a_shell):
            if command := cli.main.get_command(at_a_shell, name):
                app.cli.add_command(_in_app(command))
    return app


def blueprint(router: Router, *, caller: Identify | None = None) -> EndpointBlueprint:
    """Return the MIST endpoints bound to *router*, and `flask infer`; *caller* returns who sent a
    request, as a name or a Caller.
    """
    made = mist.blueprint(router, caller=caller)
    made.cli.add_command(_in_app(cli.infer))
    made.cli_group = None  # `flask infer` stands beside the app's own commands
    return made


def _in_app(command: click.Command) -> click.Command:
    """Return *command* so that it runs within the app whose command line it is part of."""
    bound = copy.copy(command)
    bound.callback = with_appcontext(command.callback) if command.callback else None
    return bound


def _http_error(error: HTTPException) -> Response:
    """Answer in JSON what Werkzeug refuses: an unknown address, an unknown method."""
    status = error.code or 500
    if isinstance(error, MethodNotAllowed):
        allow = {
            method
            for rule in current_app.url_map.iter_rules()
            for method in rule.methods or ()
            if rule.rule == request.path and not rule.endpoint.endswith(OTHER)
        }
        return failed(
            our.MethodNotAllowed("method not allowed", allow=", ".join(sorted(allow))), plain_error
        )
    if status == 404:
        return failed(our.NotFound("there is no such address"), plain_error)
    if status < 400:  # a redirect to the address with its slash
        return Response(status=status, headers={"Location": getattr(error, "new_url", "/")})
    known = our.InferMuxError if status >= 500 else our.RequestError
    answer = known(error.name.lower())
    answer.status = status
    return failed(answer, plain_error)


def _bug(error: Exception) -> Response:
    log.error("a request could not be answered", exc_info=error)
    return failed(our.InferMuxError("internal error"), plain_error)
