"""The Responses `Dialect`: writes requests to a vendor; reads responses, errors and streams.

Sources: https://platform.openai.com/docs/api-reference/responses, and recorded traffic of OpenAI,
Azure, xAI, OpenRouter and DeepSeek.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from ...errors import StreamIncomplete
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...protocol.strict_json import Document
from ...types import HEARTBEAT, JSON, Chunk
from .. import (
    NO_TERMINATOR,
    Events,
    members,
    obj,
    only,
    parameters,
    path_of,
    token_count,
    without,
    word,
)
from ..blocks import answer
from ..openai.requests import fitted_names, refused
from ..openai.upstream import DONE, auth, decode_error
from ..parameters import Drop, Unsaid, hint
from . import NAME, RESOURCE, STANDARD, Support
from .events import Reader, read_response, usage_of
from .requests import fitted_input, is_foreign, translated, with_summary

PATHS = {
    CHAT: "/responses",
    "compact": "/responses/compact",
    "input_tokens": "/responses/input_tokens",
}
_KEPT = {  # the members of a body that other operations know
    "compact": ("input", "instructions", "model", "previous_response_id", "prompt_cache_key"),
    "input_tokens": (
        *("conversation", "input", "instructions", "model", "parallel_tool_calls"),
        *("previous_response_id", "reasoning", "text", "tool_choice", "tools", "truncation"),
    ),
}
_MEMBERS = {  # of this format, where a param of the canonical form stands
    "reasoning_effort": ("reasoning", "effort"),
    "verbosity": ("text", "verbosity"),
}
_PENDING = ("queued", "in_progress")


class Responses:
    """The dialect for a vendor that supports it as *support* says."""

    NAME = NAME
    auth = staticmethod(auth)
    decode_error = staticmethod(decode_error)

    def __init__(self, support: Support = STANDARD) -> None:
        self.support = support
        self.summarizes = True  # until the vendor refuses it
        self._translated = partial(translated, form=support.form, searches=support.searches)

    def path(self, request: InferRequest, *, stream: bool) -> str:
        support, own = self.support, request.op == RESOURCE
        path = str(request.params["path"]) if own else path_of(PATHS, request, NAME)
        if support.query:
            path += ("&" if "?" in path else "?") + support.query
        return support.prefix + path

    def headers(self, request: InferRequest) -> dict[str, str]:
        return {}

    def encode_request(self, request: InferRequest, *, stream: bool) -> bytes:
        """Return the body: the client's own, with our model, if it is in this format.

        Params that the model refuses, and other vendors' reasoning, are always left out.
        """
        if request.op == RESOURCE:
            return request.native.body.data if request.native else b""
        own, drop = request.body_in(NAME), Drop.of(request)
        out = refused(request.params, request.model, chat=False)
        for name in out:
            hint(name, drop)
        if own is not None:
            return self._adapted(own, request, out)
        if out:
            request = replace(request, params=without(request.params, *out))
        body = self._translated(request, drop)
        body["input"] = [item for item in body["input"] if self._takes(item)]
        if known := _KEPT.get(request.op):
            body = only(body, known)
        else:
            body |= fitted_names(body, request.model, request.cache_key)
            body = with_summary(body, request) if self.summarizes else body
        if stream:
            body["stream"] = True
        return strict_json.encode(body)

    def _takes(self, item: JSON) -> bool:
        """Whether the vendor takes an item; reasoning that it encrypts, only so."""
        bare = item.get("type") == "reasoning" and not item.get("encrypted_content")
        known = self.support.fernet is not None
        return not (bare and known) and not is_foreign(item, self.support)

    def _adapted(self, body: Document, request: InferRequest, out: list[str]) -> bytes:
        value, model = body.value, request.model
        new: JSON = {} if value.get("model") == model else {"model": model}
        given = value.get("input")
        if (kept_input := fitted_input(given, self.support)) is not given:
            new["input"] = kept_input
        if request.op == CHAT:
            new |= fitted_names(value, model, request.cache_key)
        if not out:
            return body.replaced(new)
        kept = without(value, *out)
        for name in out:
            holder, member = _MEMBERS.get(name, ("", ""))
            if isinstance(kept.get(holder), dict):
                kept[holder] = without(kept[holder], member)
        return strict_json.encode(kept | new)

    def unsaid(self, request: InferRequest, model: str) -> Unsaid:
        return parameters.unsaid(request, model, NAME, self.path, self._translated)

    def decode_response(self, data: bytes, request: InferRequest) -> InferResponse:
        native = (NAME, data)
        if request.op == RESOURCE:
            return _resource(data, request, native)
        body = read_response(data)
        if request.op == "input_tokens":
            return token_count(body.get("input_tokens"), request, native)
        if body.get("output") is None:
            raise ValueError("a response without output")
        said = Reader(self.support.form).output(body)
        found = answer(request, native, *said)
        found.extra = {"pending": True} if body.get("status") in _PENDING else {}
        return found

    def decode_events(self, events: Events, request: InferRequest) -> Iterator[Chunk]:
        reader = Reader(self.support.form)
        for event in events:
            if event is None or not event.data:
                yield HEARTBEAT
            elif not event.data.startswith(DONE):  # OpenRouter
                yield from reader.read(event)
        if not reader.finished:
            raise StreamIncomplete(NO_TERMINATOR)


def _resource(data: bytes, request: InferRequest, native: tuple[str, bytes]) -> InferResponse:
    """Return what a vendor stored; usage only if it is a background response that has ended."""
    body = obj(strict_json.lenient(data) if data.strip() else None)
    ended = body.get("background") is True and body.get("status") not in _PENDING
    usage = usage_of(body) if ended and body.get("object") == "response" else None
    ident, kind = word(body.get("id")), body.get("object")
    refers = {
        word(body.get("previous_response_id")): "r",
        word(members(body.get("conversation")).get("id")): "c",
        ident: "c" if kind in ("conversation", "conversation.deleted") else "r",
    }
    return InferResponse(
        word(body.get("model")),
        request.provider,
        "",
        finish_reason="",
        usage=usage,
        id=ident,
        native=native,
        extra={"refers": refers if str(kind).startswith(("response", "conversation")) else {}},
    )
