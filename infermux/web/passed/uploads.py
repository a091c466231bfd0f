"""Reads multipart bodies as they arrive."""

from __future__ import annotations

from flask import current_app, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_options_header

from ...config.settings import MAX_UPLOAD
from ...errors import InferMuxError, RequestError, RequestTooLarge, counted
from ...protocol.multipart import HOLD, Read, Upload
from ..http import (
    MAX_BODY,
    body_room,
    body_size,
    check_encoding,
    refuse_body,
    unread,
)


def is_multipart() -> bool:
    """Return whether the request's body is multipart/form-data."""
    return _media()[0] == "multipart/form-data"


def _media() -> tuple[str, dict[str, str]]:
    media, options = parse_options_header(request.environ.get("CONTENT_TYPE", ""))
    return media.lower(), options


def read_upload(*, model: bool, seen: bool = False) -> Upload:
    """Return the multipart body, read as `Upload` says.

    Raise RequestError if it is malformed, truncated or too long, Overloaded if there is no room.
    """
    check_encoding()
    size, limit = body_size(), _limit()
    if size is not None and size > limit:
        refuse_body()
        raise RequestTooLarge(f"the body is longer than {limit} bytes")
    body_room().take(HOLD if size is None else min(size, HOLD))
    boundary = _media()[1].get("boundary", "")
    try:
        read = _reader(size, limit)
        return Upload(read, boundary=boundary, size=size, limit=limit, model=model, seen=seen)
    except InferMuxError:
        refuse_body()
        raise


def _limit() -> int:
    own: int | None = current_app.config.get(MAX_UPLOAD) or request.max_content_length
    return MAX_BODY if own is None else own


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
        except RequestEntityTooLarge:
            refuse_body()
            raise RequestTooLarge(f"the body is longer than {limit} bytes") from None
        except Exception as error:  # of the server
            raise unread(error) from None
        left -= len(data)
        if not data and size is not None and left:
            refuse_body()
            raise RequestError(
                f"the body has {counted(size - left, 'byte')}, but Content-Length is {size}"
            )
        return data

    return read
