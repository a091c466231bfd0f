"""The cache of answers: the same request of the same caller gets the same answer.

The key is a digest of the caller, its end user, the whole request, the whole route and the settings
of its providers. Cached are complete answers without tool calls; those of streams as one answer, so
each can be sent streamed or not, as the request asks, unless a vendor's own answer has more than
our stream could express. A call that gets a cached answer sends nothing and costs nothing.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import fields
from hashlib import sha256
from typing import Any

from ..dialects import members
from ..dialects.blocks import whole
from ..dialects.sizes import GOOGLE
from ..ledger import LedgerUnavailable
from ..ledger.stores.answers import AnswerStore, Kept
from ..planning.call import CachedAnswer, Call
from ..planning.registry import Registry, flat
from ..protocol import CHAT, InferRequest, InferResponse
from ..providers.base import ChangedChunks
from ..types import JSON, Chunk, LogThrottle, Route, Target, Usage
from .stream import Finish, Stream

HIT, MISS, BYPASS = "hit", "miss", "bypass"
FROM_CACHE = "cache"  # the cost source of a call that got a cached answer
VERSION = 2  # of the format of a cached answer
MAX_BODY = 2**21  # characters of an answer that is cached
_NOTHING_USED = Usage(0, 0)
_MAX_AGE = re.compile(r"max-age=(\d{1,9})", re.ASCII)
_OWN_TOOLS = ("function", "custom")  # types of tools that the client runs itself
_EFFECTS = ("background", "conversation", "mcp_servers", "web_search_options", "container")
_NUMBERS = ("candidateCount", "candidate_count")  # of Google's answers
_STREAM = ("stream", "stream_options")
# what a vendor's answer or event may have beside the members of a response, if it is not empty
_BESIDE = re.compile(
    rb'"(logprobs|annotations|citations|search_results|audio|images|logprobsResult|inlineData'
    rb'|groundingMetadata|citationMetadata)"\s*:\s*[\[{]\s*[^\]}\s]'
)
_USED = [item.name for item in fields(Usage) if item.name not in ("fees", "others", "parts")]
_KEPT = (
    *("model", "provider", "content", "tokens_in", "tokens_out"),
    *("finish_reason", "reasoning", "refusal", "id", "details", "annotations", "images"),
)
log = logging.getLogger("infermux")


class AnswerCache:
    """Caches answers in *store*."""

    def __init__(self, store: AnswerStore) -> None:
        self._store = store
        self.hooks = ""  # the hooks that have changed the answers: part of the key
        self._log = LogThrottle()

    def find(
        self, call: Call, route: Route, registry: Registry, streamed: bool
    ) -> InferResponse | None:
        """Return the cached answer to the call, or None; note the key for its own answer."""
        if route.answers is None:
            return None
        control = call.cache_control.lower()
        if "no-store" in control or not may_be_cached(call.request):
            call.cache = BYPASS
            return None
        providers = {target.provider for target in flat(route)}
        sent = [(name, getattr(registry.get(name), "settings", "")) for name in sorted(providers)]
        call.cache, call.answer_key = MISS, digest_of(call, route, f"{sent}{self.hooks}")
        match = _MAX_AGE.search(control)
        if "no-cache" in control or (match is not None and not int(match[1])):
            return None
        now = time.time()
        try:
            found = self._store.find(call.answer_key, now)
            if found is None or (match is not None and now - found.at > int(match[1])):
                return None
            response, target = _decoded(found.body)
            if streamed and response.native and _BESIDE.search(response.native[1]):
                return None  # a stream made of it would lack that
            call.cached = CachedAnswer(target, response.model, max(0.0, now - found.at))
            call.cache, call.answer_key = HIT, ""
            call.cost, call.cost_source, call.usage = 0, FROM_CACHE, _NOTHING_USED
            call.finish_reason = response.finish_reason
            return response
        except LedgerUnavailable as error:
            self._warn(error)
        except (ValueError, TypeError, KeyError):
            pass  # cached by another version
        return None

    def keep(self, call: Call, response: InferResponse) -> None:
        """Cache the answer to a call that has ended, if it is complete and had no side effects."""
        assert call.plan is not None
        route, policy = call.plan.route, call.plan.route.answers
        if policy is None or call.override or not is_final(response):
            return
        if any(run.outcome == "failed" for run in (call.hooks or {}).values()):
            return  # it is not as the hooks want it
        body = _encoded(response, call.attempts[-1].target)
        if len(body) > MAX_BODY:
            return
        now, name = time.time(), route.pattern or route.name
        end, most = now + policy.seconds, policy.most
        try:
            self._store.keep(call.answer_key, name, Kept(now, body), expires=end, most=most)
        except LedgerUnavailable as error:
            self._warn(error)

    def _warn(self, error: LedgerUnavailable) -> None:
        if self._log.due():
            log.warning("answers are not cached: %s", error.reason)


class Replay(Stream):
    """A cached answer as a stream."""

    def __init__(self, call: Call, response: InferResponse, finish: Finish) -> None:
        self.call, self._kept, self._finish = call, response, finish
        self._first = deque()  # its chunks have no events of a vendor
        [chunk] = whole(response)
        end = Chunk(finish_reason=chunk.finish_reason, usage=chunk.usage)
        self._chunks = iter([chunk._replace(finish_reason=None, usage=None), end])

    def __next__(self) -> Chunk:
        try:
            return next(self._chunks)
        except StopIteration:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    @property
    def usage(self) -> Usage | None:
        return self._kept.usage

    def close(self) -> None:
        self._chunks = iter(())
        self._finish(self.call, None)

    def response(self) -> InferResponse:
        return self._kept.known(self.call.provider, 0.0, self.call.latency_ms)


def watched(
    call: Call, first: list[Chunk], rest: Iterator[Chunk]
) -> tuple[list[Chunk], Iterator[Chunk]]:
    """Return the chunks; do not cache the answer if one holds what `InferResponse` lacks."""

    def watch(chunk: Chunk) -> Chunk:
        more = chunk.shown or chunk.more or chunk.function_call or chunk.tool_calls
        if more or _BESIDE.search(chunk.native or b"") is not None:
            call.answer_key = ""
        return chunk

    return [watch(chunk) for chunk in first], ChangedChunks(rest, watch)


# -- what is cached --


def may_be_cached(request: InferRequest) -> bool:
    """Whether the answer to a request may be cached: the vendor does nothing but answer."""
    params = request.params
    body = request.native.body.value if request.native is not None else {}
    acts = any(params.get(name) or body.get(name) for name in _EFFECTS)
    configs = [members(body.get(name)) for name in GOOGLE]
    numbers = [params.get("n"), *[each.get(name) for each in configs for name in _NUMBERS]]
    if request.op != CHAT or acts or any(each not in (None, 1) for each in numbers):
        return False
    return all(map(_is_own, (*_listed(params.get("tools")), *_listed(body.get("tools")))))


def _listed(tools: object) -> Sequence[Any]:
    return tools if isinstance(tools, list) else ()


def _is_own(tool: object) -> bool:
    """Whether the client, not the vendor, runs a tool of any format."""
    if not isinstance(tool, dict):
        return False
    if "functionDeclarations" in tool or "function_declarations" in tool:  # Google's
        return len(tool) == 1
    return tool.get("type") in _OWN_TOOLS or ("type" not in tool and "input_schema" in tool)


def is_final(response: InferResponse) -> bool:
    """Whether an answer is complete, has text, and calls no tool."""
    usage, ended = response.usage, response.finish_reason == "stop"
    more = response.tool_calls or response.refusal or response.extra
    paid = usage is not None and (usage.fees or usage.tool_use_tokens or usage.others)
    return ended and bool(response.content) and not more and not paid


def digest_of(call: Call, route: Route, more: str) -> str:
    """Return the digest under which the answer to a call is cached; *more* belongs to the key."""
    request = call.request
    who = [call.caller.name, call.user, request.provider, request.op]
    whole = [VERSION, who, dict(request.headers), _asked(request)]
    if call.asked is not None:  # hooks may have put back into the answer what they hid
        whole.append(_asked(call.asked))
    text = json.dumps(whole, sort_keys=True, default=repr)
    known = route._replace(answers=None), route.answers and route.answers.settings
    return sha256(f"{known!r}\n{text}\n{more}".encode(errors="replace")).hexdigest()


def _asked(request: InferRequest) -> list[Any]:
    native = request.native
    if native is None:
        return [list(request.messages), dict(request.params), dict(request.meta)]
    body = {name: value for name, value in native.body.value.items() if name not in _STREAM}
    query = (native.query or "").split("&")
    told = [each for each in query if each and not each.startswith(("alt=", "%24alt="))]
    return [native.dialect, told, body]


def _encoded(response: InferResponse, target: Target) -> str:
    usage, native = response.usage, response.native
    data: JSON = {"version": VERSION, **{name: getattr(response, name) for name in _KEPT}}
    data["target"] = list(target)
    if usage is not None:
        used = {name: getattr(usage, name) for name in _USED}
        data["usage"] = {name: value for name, value in used.items() if value is not None}
    if native is not None:
        data["native"] = [native[0], native[1].decode()]
    return json.dumps(data, separators=(",", ":"))


def _decoded(body: str) -> tuple[InferResponse, Target]:
    data = json.loads(body)
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise ValueError("it was cached by another version")
    native, usage = data.get("native"), data.get("usage")
    response = InferResponse(
        **{name: data[name] for name in _KEPT},
        usage=None if usage is None else Usage(**usage),
        native=None if native is None else (native[0], native[1].encode()),
    )
    return response, Target(*data["target"])
