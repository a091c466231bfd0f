"""Chooses chat completions or Responses for each request to a vendor that has both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ...errors import ProviderError
from ...protocol import CHAT, InferRequest
from .. import Dialect, Headers
from ..parameters import Kind, Unsaid
from ..searches import ONLY_CHAT, searches
from . import NAME, PARAMETERS, RESOURCE, Support
from .requests import asks_thoughts
from .upstream import PATHS, Responses

MAX_LEARNED = 1000  # models
# How vendors refuse at chat completions what Responses would serve.
_ELSEWHERE = re.compile(r"\bv1/responses\b|responses (api|endpoint)", re.I)
_NO_SUCH_PATH = (404, 405, 501)
_STATE = frozenset(PARAMETERS[Kind.MEANING])


class Choice:
    """A dialect that is *chat* or Responses, depending on the request.

    *always*: Responses for every conversation. Otherwise chat completions, unless the client came
    by Responses or the model refuses the request there.
    """

    def __init__(self, chat: Dialect, support: Support, *, always: bool = False) -> None:
        self.NAME = chat.NAME
        self.support = support
        self._chat = chat
        self._responses = Responses(support)
        self._always = always
        self._learned: set[tuple[str, bool]] = set()  # models that refused, and whether for tools
        self._lacks = False  # the vendor has no Responses after all

    def choose(self, request: InferRequest, model: str = "") -> Dialect:
        """Return the dialect in which to send a request; *model* replaces the request's own."""
        model = model or request.model
        if request.op != CHAT:
            return self._responses if request.op in PATHS or request.op == RESOURCE else self._chat
        came = request.body_in(NAME) is not None and not self._lacks
        if self._always or came or needs_responses(request.params, model, self.support):
            return self._responses
        if self._learned and not self._learned.isdisjoint(_cases(request.params, model)):
            return self._responses
        return self._chat

    def learn(self, request: InferRequest, error: ProviderError) -> bool:
        """Learn from a vendor's refusal; return whether the request now has the other format.

        A model may be unknown to the patterns, or have a name of its own, as at Azure. A server
        that is not a known vendor's may lack Responses.
        """
        before, status = self.choose(request), error.upstream_status
        if before is self._responses and before.summarizes and _refuses_summary(error):
            before.summarizes = not asks_thoughts(request)
            return not before.summarizes
        if request.op != CHAT or self._always:
            return False
        if before is self._chat:
            told = status in (400, 404) and _ELSEWHERE.search(error.message) is not None
            if told and len(self._learned) < MAX_LEARNED:
                self._learned.add(_cases(request.params, request.model)[-1])
        elif not self.support.certain and status in _NO_SUCH_PATH:
            code = error.native.members.get("code") if error.native is not None else ""
            known = _STATE.isdisjoint(request.params)  # else it may be about an id
            self._lacks = known and "model" not in f"{code} {error.message}".lower()
        return self.choose(request) is not before

    def auth(self, key: str) -> dict[str, str]:
        return self._chat.auth(key)

    def unsaid(self, request: InferRequest, model: str) -> Unsaid:
        return self.choose(request, model).unsaid(request, model)

    def decode_error(self, status: int, headers: Headers, data: bytes) -> ProviderError:
        return self._chat.decode_error(status, headers, data)


def _refuses_summary(error: ProviderError) -> bool:
    """Whether a vendor refuses to summarize, as OpenAI for unverified organizations."""
    if error.upstream_status not in (400, 403):
        return False
    param = error.native.members.get("param") if error.native is not None else ""
    return "reasoning.summary" in f"{param} {error.message}" or "summaries" in error.message


def _cases(params: Mapping[str, Any], model: str) -> list[tuple[str, bool]]:
    """Return what may have been learnt of the model, the request's own case last."""
    return [(model, False), (model, True)] if params.get("tools") else [(model, False)]


def needs_responses(params: Mapping[str, Any], model: str, support: Support) -> bool:
    """Whether the model refuses a request with *params* at chat completions."""
    if support.searches and searches(params) and not ONLY_CHAT.match(model):
        return True
    always, tools, effort, stop = _refusals(model, support)
    if always or (stop and params.get("stop")):
        return True
    if not (params.get("tools") or params.get("functions")):
        return False
    return tools or (effort and params.get("reasoning_effort") not in (None, "none"))


@lru_cache(maxsize=1024)
def _refusals(model: str, support: Support) -> tuple[bool, ...]:
    patterns = support.always, support.tools, support.effort, support.stop
    return tuple(bool(each and re.match(each, model[:200])) for each in patterns)
