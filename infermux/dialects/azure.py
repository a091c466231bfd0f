"""Azure OpenAI: OpenAI's format under a deployment's path, with a key header of its own; the base
URL carries api-version.
"""

from __future__ import annotations

from urllib.parse import quote

from ..errors import ModelNotFound, shown
from ..protocol import InferRequest
from .openai.upstream import (
    NAME,
    PATHS,
    decode_error,
    decode_events,
    decode_response,
    decode_whole,
    encode_request,
    headers,
)

__all__ = [
    "NAME",
    "auth",
    "decode_error",
    "decode_events",
    "decode_response",
    "decode_whole",
    "encode_request",
    "headers",
    "path",
]


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the path of the operation below the base URL: a model is a deployment here."""
    if not request.model.strip("."):  # a dot is a place in a path, and no quoting hides it
        raise ModelNotFound(f"no deployment is named {shown(request.model)}", param="model")
    return f"/deployments/{quote(request.model, safe='')}{PATHS[request.op]}"


def auth(key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    return {"api-key": key}
