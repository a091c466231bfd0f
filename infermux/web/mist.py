"""The MIST door: POST /mist, POST /infer, GET /providers."""

from __future__ import annotations

from functools import partial

from flask import Response

from .. import cli, jsons
from ..call import Call
from ..errors import ProtocolError, RequestError, shown
from ..protocol import INFER_REQUEST, INFER_RESPONSE, MAX_MESSAGE, InferRequest, InferResponse, Message
from ..router import Router
from . import Door, Identify, body, bytes_answer, call_headers, caller, door, json_answer, plain_error, trace

SOURCE = "infermux"


def blueprint(router: Router, *, caller: Identify | None = None) -> Door:
    """Return the MIST endpoints, bound to *router*; *caller* says who a request is from, as a name or a Caller."""
    made = door("infermux", router, [
        ("POST", "/mist", partial(mist, router, caller)),
        ("POST", "/infer", partial(infer, router, caller)),
        ("GET", "/providers", partial(providers, router)),
    ], render=plain_error)
    made.cli.add_command(cli.infer)
    made.cli_group = None                   # `flask infer`, beside the app's own commands
    return made


def mist(router: Router, identify: Identify | None) -> Response:
    """Answer an infer.request message with an infer.response message."""
    message = Message.read(body(MAX_MESSAGE))
    if message.type != INFER_REQUEST:
        raise ProtocolError(f"expected type {INFER_REQUEST}, got {shown(message.type)[1:-1]}")
    call, response = _ask(router, identify, InferRequest.from_dict(message.data))
    reply = Message.wrap(SOURCE, INFER_RESPONSE, response.to_dict(), checksum=bool(message.checksum))
    return bytes_answer(reply.to_bytes(), headers=call_headers(call))


def infer(router: Router, identify: Identify | None) -> Response:
    """Answer a bare infer.request."""
    try:
        data = jsons.loads(body())
    except ValueError as error:
        raise RequestError(str(error)) from None
    call, response = _ask(router, identify, InferRequest.from_dict(data))
    return json_answer(response.to_dict(), headers=call_headers(call))


def providers(router: Router) -> Response:
    """List the providers and their models."""
    return json_answer(router.registry.to_dict())


def _ask(router: Router, identify: Identify | None, request: InferRequest) -> tuple[Call, InferResponse]:
    call = router.begin(request, caller=caller(identify), door="mist", trace=trace())
    return call, router.answer(call)
