"""Endpoints that are passed through to a model: images, audio, moderations, rerank."""

from __future__ import annotations

from functools import partial

from flask import Response, request

from ...dialects import require, without
from ...dialects.openai import NAME
from ...dialects.openai.endpoints import ENDPOINTS
from ...dialects.openai.metering import text_tokens
from ...errors import InferMuxError, RequestError
from ...protocol import InferRequest, Native, strict_json
from ...protocol.passed import Passed
from ...protocol.strict_json import Document
from ...routing.passed.endpoints import check
from ...types import JSON
from .. import Route
from ..auth import admitted
from ..http import Api, call_response, json_body, refuse_body, start_call
from .answers import passed_response
from .uploads import is_multipart, read_upload

EMPTY = Document({}, "", {})  # bodies that are not JSON
_TRUE = (True, "true", "True", "1")
_ALIASES = {"/v2/rerank": "rerank"}  # Cohere's own


def pass_on(api: Api, op: str) -> Response:
    """Respond to a request that is passed through to the provider of its model."""
    caller = admitted(api)
    hooks = api.router.hooks
    wanted = _request(op, seen=hooks is not None and hooks.has("before"))
    call = start_call(named(api, op), wanted, caller)
    upload = wanted.passed.upload
    if upload is not None:
        call.releases.append(upload.close)
    try:
        check(api.router, wanted, caller)
    except InferMuxError as error:
        api.router.finish(call, error)
        raise
    call.size = text_tokens(wanted)
    try:
        if not ENDPOINTS[op].whole:
            wants = wanted.params.get("stream") in _TRUE
            wants |= wanted.params.get("stream_format") == "sse"
            return passed_response(api, call, wants_stream=wants)
        response = api.router.answer(call)
    finally:
        if upload is not None and not upload.is_read:
            refuse_body()
    return call_response(call, response.native[1] if response.native else b"{}")


def named(api: Api, op: str) -> Api:
    """Return the API under the name of the endpoint's group, such as "images", for records."""
    return api._replace(name=op.partition("/")[0])


def wanted_provider() -> str:
    """Return the provider that the client names, or ""."""
    name: str = request.environ.get("HTTP_X_INFERMUX_PROVIDER", "")
    return name.strip()


def _request(op: str, *, seen: bool) -> InferRequest:
    passed, native = Passed(), EMPTY
    if is_multipart():
        passed.upload = upload = read_upload(model=True, seen=seen)
        members: JSON = dict(upload.fields)
    else:
        native = json_body(strict_json.document)
        members = native.value
        if members.get("stream") is not None:
            require(members["stream"], "stream", bool)
    model = require(members.get("model") or ENDPOINTS[op].model, "model", str)
    if not model:
        raise RequestError("model is missing", param="model")
    return InferRequest(
        model,
        provider=wanted_provider(),
        params=without(members, "model"),
        native=Native(NAME, native),
        op=op,
        passed=passed,
    )


MEDIA_ROUTES: list[Route] = [
    *(
        ("POST", f"/v1/{op}", partial(pass_on, op=op))
        for op in ENDPOINTS
        if op not in ("files", "batches")
    ),
    *(("POST", path, partial(pass_on, op=op)) for path, op in _ALIASES.items()),
]
