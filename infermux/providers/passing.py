"""Sends requests whose bytes pass through, and passes the bytes of their answers on."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit

from requests import PreparedRequest

from ..dialects.openai.endpoints import ENDPOINTS, STORED, endpoint_of
from ..errors import RequestError, UnsupportedParameter
from ..protocol import InferRequest
from ..protocol.multipart import Upload
from ..types import Chunk, Deadline
from .transport import Answer, Exchange

HOST = "~"  # begins a path that is not below the base address, but at its host
ALL: Mapping[str, str] = dict.fromkeys(ENDPOINTS, "")  # "": at the usual path


def paths(dialect: Any, own: Collection[str] | None) -> Mapping[str, str]:
    """Return the endpoints of a provider, with their paths where those are not the usual ones."""
    if getattr(dialect, "NAME", "") != "openai":
        return {}
    if own is None:
        return ALL
    return own if isinstance(own, Mapping) else dict.fromkeys(own, "")


def has(provider: object, op: str) -> bool:
    return endpoint_of(op) in getattr(provider, "endpoints", ())


def lacks(provider: object, request: InferRequest) -> str:
    """Return why a provider cannot serve a request; "" if it can."""
    return "" if has(provider, request.op) else f"has no /v1/{endpoint_of(request.op)}"


class Body:
    """The body of an upload, as urllib3 reads it; each reading begins anew."""

    def __init__(self, upload: Upload, model: str) -> None:
        self._upload, self._model = upload, model
        self.deadline: Deadline | None = None

    def __iter__(self) -> Iterator[bytes]:
        waited, began = 0.0, time.monotonic()
        pieces, deadline = self._upload.pieces(self._model), self.deadline
        while True:
            before = time.monotonic()
            piece = next(pieces, b"")
            waited += time.monotonic() - before
            if not piece:
                return
            if deadline is not None and deadline.expired:
                if waited * 2 > time.monotonic() - began:  # for the client, not for the vendor
                    raise RequestError("the body came too slowly")
                raise TimeoutError("no time is left")
            yield piece


def adapt(prepared: PreparedRequest, request: InferRequest, paths: Mapping[str, str]) -> None:
    """Set the method, the address and the body of a request that is passed through."""
    passed, headers = request.passed, prepared.headers
    if endpoint_of(request.op) not in paths:
        raise UnsupportedParameter(
            f"provider {request.provider!r} {lacks(None, request)}", param="model"
        )
    prepared.method = passed.method
    own = paths.get(request.op, "")
    if own and request.op not in STORED:
        address = urlsplit(prepared.url or "")
        prepared.url = f"{address.scheme}://{address.netloc}{own.removeprefix(HOST)}"
        prepared.url = prepared.url.replace("{model}", quote(request.model, safe="/"))
    upload: Upload | None = passed.upload
    if upload is None:
        if not prepared.body:
            del headers["Content-Type"]
        return
    model = "" if request.op in STORED else request.model
    length = upload.length(model)
    del headers["Content-Length"]
    if length is not None:
        headers["Content-Length"] = str(length)
    headers["Content-Type"] = upload.content_type
    body: Any = Body(upload, model)
    prepared.body = body


def unforced(request: InferRequest) -> InferRequest | None:
    """Return the request without the configuration's params; None if they apply to it.

    Of requests that are passed through, they apply only to JSON that is sent to a model.
    """
    native = request.native
    if request.passed is None or (request.op not in STORED and native and native.body.text):
        return None
    return replace(request, forced=None)


def is_repeatable(request: InferRequest) -> bool:
    """Return whether a request can be sent once more: no part of its upload has gone."""
    upload: Upload | None = request.passed.upload if request.passed is not None else None
    return upload is None or upload.repeatable


def begin(prepared: PreparedRequest, exchange: Exchange, request: InferRequest) -> None:
    """Send an upload on a new connection: it could not be sent again if a kept one were dead."""
    body: Any = prepared.body
    if isinstance(body, Body):
        body.deadline = exchange.deadline
        exchange.needs_new_connection = True
    if request.op.startswith("images/"):  # the next image of a stream takes as long as the first
        exchange.timeouts = replace(exchange.timeouts, idle=exchange.timeouts.first_byte)


def chunks(
    answer: Answer, body: Iterator[bytes | None], request: InferRequest, dialect: Any
) -> Iterator[Chunk]:
    """Return the answer in chunks; note what it is."""
    passed, headers = request.passed, answer.headers
    passed.media = headers.get("content-type", "").strip()
    length = headers.get("content-length", "")
    plain = "content-encoding" not in headers and "transfer-encoding" not in headers
    passed.length = int(length) if plain and length.isascii() and length.isdigit() else None
    found: Iterator[Chunk] = dialect.decode_pieces(body, request)
    return found
