"""Azure OpenAI: OpenAI's format with a deployment in the path and another header for the key.

The base URL carries api-version.
"""

from __future__ import annotations

from urllib.parse import quote

from ..errors import ModelNotFound, shown
from ..protocol import InferRequest
from .openai import NAME  # noqa: F401
from .openai.upstream import (  # noqa: F401
    PATHS,
    decode_error,
    decode_events,
    decode_response,
    decode_whole,
    encode_request,
    headers,
)


def path(request: InferRequest, *, stream: bool) -> str:
    """Return the path of the operation below the base URL: the model names a deployment."""
    if not request.model.strip("."):  # dots are path segments with a meaning, even if quoted
        raise ModelNotFound(f"no deployment is named {shown(request.model)}", param="model")
    return f"/deployments/{quote(request.model, safe='')}{PATHS[request.op]}"


def auth(key: str) -> dict[str, str]:
    """Return the header that carries the key."""
    return {"api-key": key}
