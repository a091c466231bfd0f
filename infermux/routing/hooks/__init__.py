"""Hooks: an operator's functions that see each request, answer and chunk, and may change or refuse
it.

A hook runs in a thread of its own for at most `timeout` seconds: Python cannot stop a thread, so a
hook that is late keeps its thread, and its result is ignored. An InferMuxError of a hook refuses
the call; any other error, and no result in time, is a failure, and `on_error` says what it means.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, Self, TypeVar

from ...dialects.openai.endpoints import ENDPOINTS, STORED
from ...dialects.openai.metering import text_tokens
from ...dialects.responses import NAME as RESPONSES
from ...dialects.responses import RESOURCE
from ...dialects.rewriting import answered, details_of, stored
from ...dialects.rewriting.places import Places, choices
from ...dialects.rewriting.requests import with_own_body
from ...errors import ConfigError, HookFailed, HookRefused, InferMuxError, close_to, having
from ...planning.call import Call, HookRun
from ...protocol import CHAT, InferRequest, InferResponse, strict_json
from ...types import Deadline, LogThrottle, reset_after_fork
from ..stream import Stream
from .results import Hook, answer_of, hook_of, of_type

NAMES = {"before": "request", "after": "answer", "chunk": "chunk"}  # hooks, and what each receives
TIMEOUT = 5.0  # seconds of one run
THREADS = 64  # threads that run hooks in this process
_ANSWERS = (CHAT, "completions", "embeddings")  # operations that a model answers
_TRANSCRIPTS = ("audio/transcriptions", "audio/translations")  # whose answers are words
_IMAGES = (op for op in ENDPOINTS if op.startswith("images/"))
_BINARY = ("audio/speech", "content", *_IMAGES)  # whose answers hooks cannot see
_MODES = ("modalities", "responseModalities", "response_modalities")  # of a model's answer
_TEXTS = ENDPOINTS.keys() - {"audio/speech", *STORED}  # whose answers have texts
_LATE = "did not answer in time"
_throttle = LogThrottle(seconds=10.0)
log = logging.getLogger("infermux")
Made = TypeVar("Made")


@dataclass(slots=True)
class HookCall:
    """What a hook learns of the call; `state` is for the hooks to use, per call and choice."""

    id: str
    api: str
    op: str
    caller: str
    model: str  # the model that the client asked for
    streamed: bool
    tags: Mapping[str, str] = field(default_factory=dict)
    provider: str = ""  # the provider that answers; "" before the call is sent
    choice: int = 0  # the number of the choice, if an answer has several (n)
    state: dict[str, Any] = field(default_factory=dict)


class Hooks:
    """The hooks of a router, and the threads that run them."""

    def __init__(
        self,
        before: Hook | None = None,
        after: Hook | None = None,
        chunk: Hook | None = None,
        *,
        on_error: str = "closed",
        timeout: float = TIMEOUT,
        threads: int = THREADS,
        hold: bool = True,
        unseen: str = "refuse",
        names: Mapping[str, str] | None = None,
    ) -> None:
        if on_error not in ("closed", "open"):
            raise ConfigError(f'on_error must be "closed" or "open", not {on_error!r}')
        if unseen not in ("refuse", "pass"):
            raise ConfigError(f'unseen must be "refuse" or "pass", not {unseen!r}')
        if not timeout > 0 or threads < 1:
            raise ConfigError("the timeout and the threads of hooks must be more than 0")
        self._hooks: dict[str, Hook] = {}
        self.names: dict[str, Any] = {}
        for name, hook in zip(NAMES, (before, after, chunk), strict=True):
            if hook is not None:
                self._hooks[name] = hook_of(hook, name, NAMES[name])
                self.names[name] = (names or {}).get(name) or getattr(hook, "__qualname__", name)
        self.on_error, self.timeout, self.unseen = on_error, timeout, unseen
        self.holds = hold and "after" in self._hooks and "chunk" not in self._hooks
        self._threads = _Threads(threads)

    @classmethod
    def of(cls, given: Self | Mapping[str, Any]) -> Self | None:
        """Return Hooks from what a router is given: Hooks, or a mapping of their arguments."""
        if isinstance(given, cls):
            return given
        if not isinstance(given, Mapping):
            what = type(given).__name__
            raise ConfigError(f'hooks must be Hooks or a mapping, {{"before": …}}, not {what}')
        known = [*NAMES, "on_error", "timeout", "threads", "hold", "unseen"]
        for name in given:
            if name not in known:
                raise ConfigError(f"there is no hook {name!r}{close_to(str(name), known)}")
        made = cls(**given)
        return made or None

    def stream(self, *parts: Any) -> Stream:
        """Return a stream of these parts whose chunks the hooks see, if one sees answers."""
        request, kind = parts[0].request, "HookedStream"
        if request.passed is not None:
            if "event-stream" in request.passed.media:
                kind = "TranscriptStream" if request.op in _TRANSCRIPTS else ""
            else:
                kind = "PassedStream" if request.op in _TEXTS and self.has("after") else ""
        if self._hooks.keys() <= {"before"} or not kind:
            return Stream(*parts)
        found: Stream = getattr(import_module(".stream", __package__), kind)(*parts, self)
        return found

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def has(self, name: str) -> bool:
        return name in self._hooks

    # -- a request --

    def before(self, call: Call, *, streamed: bool) -> bool:
        """Let the hook see the request; return whether it has changed it. Raise its refusal."""
        old = call.request
        if (refused := self.refusal(old)) is not None:
            raise refused
        if "before" not in self._hooks or old.op in STORED:
            return False
        told = self.told(call, streamed=streamed)
        if old.op == RESOURCE:
            new = stored.with_items(old, lambda seen: self._asked(call, seen, told))
        else:
            new = self._asked(call, old, told)
        if new is old:
            return False
        call.hooks["before"].ended("changed")
        call.form = client_format(call)
        call.asked, call.request = old, new
        call.size = None if new.passed is None else text_tokens(new)
        return old.op != RESOURCE

    def refusal(self, request: InferRequest) -> InferMuxError | None:
        """Return the error for a request that hooks cannot see, or whose answer they cannot."""
        op, answers = request.op, self._hooks.keys() - {"before"}
        if self.unseen == "pass":
            return None
        modes = str([request.params.get(name) for name in _MODES]).lower()
        if answers and (op in _BINARY or "audio" in modes or request.params.get("audio")):
            why, name = "answer, but cannot look into images, audio and files", min(answers)
        elif self.has("before") and (op == "batches" or (op in STORED and request.passed.upload)):
            name = "before"
            why = "request, but cannot look into files: send the requests one by one"
        else:
            return None
        why = f"this service checks each {why} ([hooks].unseen)"
        return having(HookRefused(why, status=403), hook=name)

    def _asked(self, call: Call, old: InferRequest, told: HookCall) -> InferRequest:
        """Return the request that the hook returns; the same one if it has not changed it."""
        given = replace(old, **{name: _copied(getattr(old, name)) for name in _SEEN})

        def checked(found: Any) -> InferRequest:
            new = of_type(found, InferRequest)
            for each in new.messages:
                of_type(each, Mapping)
            seen = {name: getattr(new, name) for name in _SEEN}
            new = replace(old, model=new.model, provider=new.provider, **seen)
            if all(getattr(old, name) == getattr(new, name) for name in _READ):
                return old
            try:
                new.check()
            except InferMuxError as error:
                raise TypeError(f"the request would be invalid: {error.message}") from None
            return with_own_body(old, new)

        return self.run("before", call, given, told, checked, lambda: old)

    def told(self, call: Call, *, streamed: bool, choice: int = 0) -> HookCall:
        """Return the HookCall of a call, the same one for all of its hooks."""
        if call.told is None:
            asked = call.request
            who = call.caller.name, asked.model, streamed, call.tags
            call.told = HookCall(call.id, call.api, asked.op, *who)
        known: HookCall = call.told
        known.provider = call.provider if call.attempts else ""
        return known if not choice else replace(known, choice=choice, state={})

    # -- an answer --

    def after(
        self, call: Call, response: InferResponse, *, dialect: str | None = None
    ) -> InferResponse:
        """Return the answer that the hook returns; raise its refusal.

        *dialect* is the format of the client; None: as the call says.
        """
        if "after" not in self._hooks:
            return response
        if call.request.passed is not None and dialect is None:
            return self._passed(call, response)
        if call.request.op == RESOURCE:
            told = self.told(call, streamed=False)
            return stored.as_seen(
                response, call.request, lambda given: seen(self, call, given, told, RESPONSES)
            )
        if call.request.op not in (*_ANSWERS, *_TRANSCRIPTS) or response.extra.get("pending"):
            return response
        form = client_format(call) if dialect is None else dialect
        told, native = self.told(call, streamed=dialect is not None), response.native
        others = []
        if native is not None and native[0] == form and dialect is None:
            others = choices(form, strict_json.lenient(native[1]))
        response = seen(self, call, response, told, form, several=bool(others))
        for number in others:
            response = self._other(call, response, number, form)
        if call.answer is not None:
            call.answer = response.content
        return response

    def _passed(self, call: Call, response: InferResponse) -> InferResponse:
        if call.request.op not in _TEXTS:
            return response

        def see(given: InferResponse, number: int) -> InferResponse:
            told = self.told(call, streamed=False, choice=number)
            return seen(self, call, given, told)

        try:
            return stored.as_passed(response, see)
        except UnicodeDecodeError:
            if self.unseen == "refuse":
                why = "a check of this service cannot look into this answer ([hooks].unseen)"
                raise having(HookRefused(why, status=403), hook="after") from None
            return response

    def _other(self, call: Call, response: InferResponse, number: int, form: str) -> InferResponse:
        """Return an answer whose choice *number* is the one that the hook returns."""
        assert response.native is not None
        known = Places(form, strict_json.lenient(response.native[1]), number)
        one = replace(
            response,
            content=known.text("text"),
            reasoning=known.text("reasoning"),
            refusal=known.text("refusal"),
            tool_calls=known.tool_calls(),
            details=(),
            extra={},
        )
        told = self.told(call, streamed=False, choice=number)
        made = seen(self, call, one, told, form, number, several=True)
        return replace(response, native=made.native)

    # -- running --

    def run(
        self,
        name: str,
        call: Call,
        value: Any,
        told: HookCall,
        checked: Callable[[Any], Made],
        otherwise: Callable[[], Made],
    ) -> Made:
        """Return what `checked` makes of a hook's result; None stands for *value* itself.

        Raise the hook's refusal. If it fails, raise HookFailed or return *otherwise*.
        """
        hook, started = self._hooks[name], time.monotonic()
        if call.hooks is None:
            call.hooks = {}
        ran = call.hooks.setdefault(name, HookRun())

        def work() -> Any:
            found = hook(value, told)
            return list(found) if isinstance(found, Iterator) else found  # yielded

        try:
            job = self._threads.run(work, self.timeout, call)
            if isinstance(error := job.error, InferMuxError):
                ran.ended("refused")
                if not isinstance(error.status, int) or not 400 <= error.status < 600:
                    error.status = 500  # the hook's is no status of an HTTP error
                raise having(error, hook=name) from None
            if error is None:
                try:
                    return checked(value if job.value is None else job.value)
                except Exception as wrong:  # what the hook returned cannot be used
                    error = wrong
            return failed(self, name, call, error, otherwise)
        finally:
            error = None  # else a cycle: its traceback refers to this frame
            took = time.monotonic() - started
            ran.seconds += took
            if call.attempts and call.attempts[-1].ended is None:
                ran.inside += took


_SEEN = ("messages", "params", "meta")  # the members of a request that a hook may change in place
_GIVEN = ("tool_calls", "details", "extra", "annotations", "images")  # likewise of an answer
_READ = ("model", "provider", *_SEEN)


def seen(
    hooks: Hooks,
    call: Call,
    response: InferResponse,
    told: HookCall,
    form: str = "",
    choice: int = 0,
    *,
    several: bool = False,
) -> InferResponse:
    """Return an answer, or choice, as `after` returns it; *several*: its body has others, too."""
    given = replace(response, **{name: _copied(getattr(response, name)) for name in _GIVEN})

    def checked(found: Any) -> InferResponse:
        new = answer_of(found, response)
        new = replace(new, details=details_of(response, new))
        new = response if new == response else answered(response, new, form, choice)
        if several and new.native is None:
            raise TypeError("the body has other choices, and no place for this change")
        return new

    made = hooks.run("after", call, given, told, checked, lambda: response)
    if made is not response:
        call.hooks["after"].ended("changed")
    return made


def failed(
    hooks: Hooks, name: str, call: Call, error: BaseException, otherwise: Callable[[], Made]
) -> Made:
    """Return *otherwise* or raise HookFailed, as a hook has failed with *error*."""
    call.hooks[name].ended("failed")
    late = isinstance(error, _Late)
    why = f"{_LATE} ({hooks.timeout:g} s)" if late else f"raised {type(error).__name__}"
    is_open = hooks.on_error == "open"
    if _throttle.due():
        what = "is sent as it is" if is_open else "fails"
        log.error(
            "the hook %s (%s) %s; the %s %s", name, hooks.names[name], why, NAMES[name], what,
            exc_info=None if late else error,
        )  # fmt: skip
    if is_open:
        return otherwise()
    told = _LATE if late else "failed"
    what = f"a check of this service {told}; the {NAMES[name]} was not let pass"
    raise having(HookFailed(what), hook=name) from None


def client_format(call: Call) -> str:
    """Return the format of the client's API, or "" if it gets no vendor's bytes."""
    if call.request.op == RESOURCE:
        return RESPONSES
    return call.form or (call.request.native.dialect if call.request.native is not None else "")


def _copied(value: Any) -> Any:
    """Return a copy of JSON that a hook may change in place."""
    if isinstance(value, Mapping):
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, list | tuple) and value != ():  # which is nothing to change
        return [_copied(each) for each in value]
    return value


# -- threads --


class _Late(Exception):
    """A hook has not returned in time."""


@dataclass(slots=True, eq=False)
class _Job:
    work: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    value: Any = None
    error: BaseException | None = None

    def __call__(self) -> None:
        try:
            self.value = self.work()
        except BaseException as error:  # it belongs to the thread that waits
            self.error = error
        self.done.set()


class _Threads:
    """At most *most* threads, which start as they are needed; a forked child starts its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._reset()
        reset_after_fork(self, _Threads._reset)

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._jobs = deque[_Job]()
        self._count = self._idle = 0

    def run(self, work: Callable[[], Any], seconds: float, call: Call) -> _Job:
        """Run *work* in a thread; return its job once it has ended, or after *seconds* as late."""
        job = _Job(work)
        with self._changed:
            self._jobs.append(job)
            if self._idle < len(self._jobs) and self._count < self._most:
                self._count += 1
                threading.Thread(target=self._serve, name="infermux-hook", daemon=True).start()
            self._changed.notify()
        try:
            for part in Deadline(seconds, on_wait=call.on_wait).slices(seconds):
                if job.done.wait(part):
                    return job
        finally:
            if not job.done.is_set():  # nobody waits for it: do not run it when a thread is free
                with self._changed, suppress(ValueError):
                    self._jobs.remove(job)
        job = _Job(work)  # the late one may still end
        job.error = _Late()
        return job

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    self._idle += 1
                    self._changed.wait()
                    self._idle -= 1
                job = self._jobs.popleft()
            job()
            del job  # it holds a request
