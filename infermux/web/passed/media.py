"""Endpoints that are passed through to a model: images, audio, moderations, rerank.

Their bodies are JSON, or multipart, which is read as it arrives.
"""

from __future__ import annotations

from functools import partial

from flask import Response, current_app, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header

from ...config.settings import MAX_UPLOAD
from ...dialects import require, without
from ...dialects.openai import NAME
from ...dialects.openai.endpoints import ENDPOINTS
from ...dialects.openai.metering import text_tokens
from ...errors import InferMuxError, RequestError, counted
from ...protocol import InferRequest, Native, strict_json
from ...protocol.multipart import HOLD, Read, Upload
from ...protocol.passed import Passed
from ...protocol.strict_json import Document
from ...routing.passed.endpoints import check
from ...types import JSON
from .. import Route
from ..auth import admitted
from ..http import (
    MAX_BODY,
    Api,
    body_room,
    body_size,
    call_response,
    check_encoding,
    json_body,
    refuse_body,
    start_call,
    unread,
)
from .answers import passed_response

EMPTY = Document({}, "", {})  # bodies that are not JSON
_TRUE = (True, "true", "True", "1")


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


# -- multipart bodies --


def is_multipart() -> bool:
    return _media()[0] == "multipart/form-data"


def _media() -> tuple[str, dict[str, str]]:
    media, options = parse_options_header(request.environ.get("CONTENT_TYPE", ""))
    return media.lower(), options


def read_upload(*, model: bool, seen: bool = False) -> Upload:
    """Return the multipart body, read as `Upload` says.

    Raise RequestError if it is malformed, truncated or too long, Overloaded if there is no room.
    """
    check_encoding()
    size, own = body_size(), current_app.config.get(MAX_UPLOAD) or request.max_content_length
    limit = MAX_BODY if own is None else own
    if size is not None and size > limit:
        raise unread(RequestEntityTooLarge(), limit)
    body_room().take(HOLD if size is None else min(size, HOLD))
    boundary = _media()[1].get("boundary", "")
    try:
        read = _reader(size, limit)
        return Upload(read, boundary=boundary, size=size, limit=limit, model=model, seen=seen)
    except InferMuxError:
        refuse_body()
        raise


def _reader(size: int | None, limit: int) -> Read:
    if size is None or "stream" in vars(request):  # chunked, or the app has read from it already
        request.max_content_length = limit + 1
        stream, left = request.stream, limit + 1 if size is None else size
    else:
        stream, left = request.environ["wsgi.input"], size

    def read(most: int) -> bytes:
        nonlocal left
        try:
            data: bytes = stream.read(min(most, left)) if left else b""
        except Exception as error:  # of the server
            raise unread(error, limit) from None
        left -= len(data)
        if not data and size is not None and left:
            refuse_body()
            raise RequestError(
                f"the body has {counted(size - left, 'byte')}, but Content-Length is {size}"
            )
        return data

    return read


MEDIA_ROUTES: list[Route] = [
    *(
        ("POST", f"/v1/{op}", partial(pass_on, op=op))
        for op in ENDPOINTS
        if op not in ("files", "batches")
    ),
    ("POST", "/v2/rerank", partial(pass_on, op="rerank")),  # Cohere's own
]
