"""The session of a request, which keeps a conversation at the target that has cached it.

Workers and hosts agree on it without sharing anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Any

from ..protocol import InferRequest, strict_json
from ..types import Caller

DIGEST = 8  # bytes


def session_of(request: InferRequest, caller: Caller) -> str:
    """Return the digest of the request's session.

    It is named by the header X-Session-Id (in MIST, meta.session_id), prompt_cache_key,
    metadata.user_id or previous_response_id, the first of these that is there. Else it is known by
    its caller, system prompt and first user message.
    """
    digest = blake2b(digest_size=DIGEST)
    if named := _named(request):
        digest.update(named.encode(errors="replace"))
    else:
        for text in (caller.name, *_beginning(request)):
            digest.update(text.encode(errors="replace") + b"\0")
    return digest.hexdigest()


def _named(request: InferRequest) -> str:
    """Return the name that the client gave, the best one of several; "" if it gave none."""
    params = request.params
    native = request.native.body.value if request.native is not None else {}
    own, conversation = native.get("metadata"), params.get("conversation")
    names = (
        request.session,
        request.meta.get("session_id"),
        params.get("prompt_cache_key"),
        *(each.get("user_id") for each in (own, params.get("metadata")) if isinstance(each, dict)),
        conversation.get("id") if isinstance(conversation, dict) else conversation,
        params.get("previous_response_id"),
    )
    return next((name for name in names if isinstance(name, str) and name), "")


def _beginning(request: InferRequest) -> Iterator[str]:
    """Yield the texts of the system prompt and of the first user message."""
    for message in request.messages:
        role = message.get("role")
        if role in ("system", "developer", "user"):
            yield str(role)
            yield from _texts(message.get("content"))
        if role == "user":
            return
    for name in ("input", "prompt"):  # of operations without messages
        value = request.params.get(name)
        if value is not None and not request.messages:
            yield from _texts(value)


def _texts(content: Any) -> Iterable[str]:
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list):
        return []
    return [part if isinstance(part, str) else _part(part) for part in content]


def _part(part: Any) -> str:
    """Return the text of a part, or its JSON without cache_control, which clients move about."""
    if isinstance(part, dict):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return str(part["text"])
        part = {name: value for name, value in part.items() if name != "cache_control"}
    return strict_json.dumps(part)
