"""A streamed answer whose chunks, and then the whole, hooks see before the client does."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ...dialects.blocks import whole
from ...dialects.rewriting import CannotRewrite, details_of
from ...dialects.rewriting.streams import StreamRewriter, TranscriptRewriter, spread
from ...errors import ClientGone, InferMuxError
from ...planning.call import Call, StreamAccumulator
from ...protocol import InferResponse
from ...protocol.sse import Parser
from ...types import HEARTBEAT, Chunk
from ..stream import Stream
from . import HookCall, client_format, failed, seen
from .results import chunks_of

Others = dict[int, StreamAccumulator]  # the choices beyond the first, by number


class HookedStream(Stream):
    """Iterates over the chunks that the hooks return; `started` runs them on the first ones.

    With a hook for chunks, each is sent when the hook has seen it, and the last ones when `after`
    has seen the whole. With `after` alone the stream is held back until then.
    """

    def __init__(self, *parts: Any) -> None:
        call, first, rest, permit, accounting, self._done, answers, self._hooks = parts
        super().__init__(call, first, rest, permit, accounting, self._finished, answers)
        self._sent = StreamAccumulator()
        self._form = client_format(call)
        self._rewriter = StreamRewriter(self._form)
        self._begun: deque[Chunk] = deque()  # chunks that came before the caller read any
        self._ready: deque[Chunk] = deque()
        # chunks that wait for `after`
        self._tail: list[Chunk] | None = [] if self._hooks.holds else None
        self._known = super().dialect
        self._calls: dict[int, HookCall] = {}
        self._others: Others = {}  # of what was sent

    def started(self) -> Stream:
        """Run the hooks until there is something to send; a refusal can still set the status."""
        with suppress(StopIteration):
            chunk = HEARTBEAT
            while not chunk.has_content:
                if (chunk := self._next()) is not HEARTBEAT:
                    self._begun.append(chunk)
        return self

    @property
    def dialect(self) -> str:
        return self._known

    def __next__(self) -> Chunk:
        return self._begun.popleft() if self._begun else self._next()

    def _next(self) -> Chunk:
        while not self._ready:
            try:
                chunk = super().__next__()
                if self.call.on_wait is not None:  # the client may have nothing yet
                    self.call.on_wait()
            except StopIteration:
                if self._ready:
                    break
                raise
            except ClientGone as error:
                self.settle(error, ours=True)
                raise
            if chunk is HEARTBEAT:
                return chunk
            try:
                self._take(chunk)
            except InferMuxError as error:
                self._refuse(error)
        chunk = self._ready.popleft()
        self._sent.add(chunk)
        if self._hooks.has("after") and not self._hooks.holds:
            self._note(chunk, self._others)
        return chunk

    def _take(self, chunk: Chunk) -> None:
        """Let the hook see a chunk, and send what it makes of it, or keep that for `after`."""
        found = self._changed(chunk) if self._hooks.has("chunk") else [chunk]
        if self._tail is None and self._hooks.has("after") and chunk.finish_reason:
            self._tail = []
        (self._ready if self._tail is None else self._tail).extend(found)

    def _changed(self, chunk: Chunk) -> list[Chunk]:
        for number, was in self._rewriter.choices(chunk):
            chunk = self._other(chunk, number, was)
        if not chunk.has_content:
            return self._rewriter.passed(chunk)

        def rewritten(found: list[Chunk]) -> list[Chunk]:
            return self._rewriter.rewritten(chunk, [_consistent(chunk, each) for each in found])

        return self._hooked(chunk, 0, rewritten)

    def _other(self, chunk: Chunk, number: int, was: Chunk) -> Chunk:
        """Return an event in which another choice is the one that the hook returns."""

        def rewritten(found: list[Chunk]) -> list[Chunk]:
            if found == [was]:
                return [chunk]
            said: dict[str, Any] = {
                kind: "".join(getattr(each, kind) for each in found)
                for kind in ("text", "reasoning", "refusal")
            }
            calls = [call for each in found for call in each.tool_calls]
            now = Chunk(tool_calls=calls, **said)
            return [self._rewriter.with_choice(chunk, number, was, now)]

        return self._hooked(was, number, rewritten)[0]

    def _hooked(
        self, chunk: Chunk, choice: int, made: Callable[[list[Chunk]], list[Chunk]]
    ) -> list[Chunk]:
        call, told = self.call, self._told(choice)

        def checked(result: object) -> list[Chunk]:
            found = chunks_of(result, chunk)
            if found != [chunk]:
                call.hooks["chunk"].ended("changed")
            return made([chunk] if found == [chunk] else found)

        answer: list[Chunk] = self._hooks.run(
            "chunk", call, chunk, told, checked, lambda: made([chunk])
        )
        return answer

    def _told(self, choice: int) -> HookCall:
        if choice not in self._calls:
            self._calls[choice] = self._hooks.told(self.call, streamed=True, choice=choice)
        return self._calls[choice]

    # -- the end --

    def _end(self) -> None:
        """Let `after` see the whole; then record the end, and send what was held back."""
        tail = [*(self._tail or ()), *self._rewriter.rest()]
        try:
            if self._hooks.has("after"):
                tail = self._whole(tail)
        except InferMuxError as error:
            self._refuse(error)
        self._tail = None
        sent = self._sent
        self._sent = sent.copy()
        for chunk in tail:
            self._sent.add(chunk)
        super()._end()
        self._sent = sent
        self._ready.extend(tail)

    def _whole(self, tail: list[Chunk]) -> list[Chunk]:
        """Return the last chunks that `after` returns; what has been sent stays as it is."""
        others: Others = {} if self._hooks.holds else self._others
        first = StreamAccumulator() if self._hooks.holds else self._sent.copy()
        for chunk in tail:
            first.add(chunk)
            self._note(chunk, others)
        response = self._response(first)
        made = self._hooks.after(self.call, response, dialect="")
        for number, other in others.items():
            tail = self._other_whole(tail, number, self._response(other))
        if made is response or not self._hooks.holds:
            return tail
        return self._respread(tail, response, made, alone=not others)

    def _note(self, chunk: Chunk, others: Others) -> None:
        """Add the words of the other choices in an event to *others*."""
        for number, said in self._rewriter.choices(chunk):
            others.setdefault(number, StreamAccumulator()).add(said)

    def _response(self, said: StreamAccumulator) -> InferResponse:
        return said.response(self.call.provider, self.call.attempts[-1].target.model)

    def _other_whole(self, tail: list[Chunk], number: int, before: InferResponse) -> list[Chunk]:
        """Return the chunks with another choice as `after` returns it."""
        after = seen(self._hooks, self.call, before, self._told(number))
        if after is before or not self._hooks.holds:
            return tail
        spots = [
            (at, was)
            for at, chunk in enumerate(tail)
            for each, was in self._rewriter.choices(chunk)
            if each == number
        ]
        try:
            found = list(tail)
            new = spread([was for _, was in spots], before, after)
            for (at, was), now in zip(spots, new, strict=True):
                if was.finish_reason != now.finish_reason:
                    raise CannotRewrite
                found[at] = self._rewriter.with_choice(found[at], number, was, now)
            return found
        except (CannotRewrite, LookupError) as error:
            return failed(self._hooks, "after", self.call, error, lambda: tail)

    def _respread(
        self, chunks: list[Chunk], before: InferResponse, after: InferResponse, *, alone: bool
    ) -> list[Chunk]:
        """Return the chunks of a stream that was held back and changed, if need be as one."""
        try:
            found: list[Chunk] = []
            new = spread(chunks, before, after)
            for old, now in zip(chunks, new, strict=True):
                changed = old if now == old else _consistent(old, now)
                if old.has_content or changed.has_content:
                    found += self._rewriter.rewritten(old, [changed])
                else:
                    found += self._rewriter.passed(old)
            return found + self._rewriter.rest()
        except CannotRewrite as error:
            if self.call.request.passed is not None or not alone:
                return failed(self._hooks, "after", self.call, error, lambda: chunks)
            self._known = ""
            usage = next((each.usage for each in reversed(chunks) if each.usage), None)
            return list(whole(replace(after, usage=usage)))

    def _refuse(self, error: InferMuxError) -> None:
        """End the stream with a hook's error, not the provider's, and raise it."""
        self._ready.clear()
        self.settle(error, ours=True)
        raise error

    def _finished(self, call: Call, error: BaseException | None) -> None:
        if call.answer is not None:
            call.answer = self._sent.text
        self._done(call, error)


class TranscriptStream(HookedStream):
    """A streamed transcript, whose bytes pass through."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._rewriter = self._words = TranscriptRewriter()
        self._parser = Parser()
        self._has_end = False

    def _take(self, chunk: Chunk) -> None:
        events = self._parser.feed(chunk.native or b"")
        events += self._parser.end() if chunk.finish_reason else []
        found = [each for event in events for each in self._words.chunks(event)]
        self._has_end |= any(each.finish_reason for each in found)
        if chunk.finish_reason and not self._has_end:
            found.append(Chunk(native=b"", finish_reason="stop"))
        for each in found:
            super()._take(each)


class PassedStream(HookedStream):
    """An answer that passes through and is no stream; it is held until `after` has seen it."""

    @property
    def is_whole(self) -> bool:
        return any(chunk.finish_reason for chunk in self._begun)

    def _take(self, chunk: Chunk) -> None:
        self._tail = [*(self._tail or ()), chunk]

    def _whole(self, tail: list[Chunk]) -> list[Chunk]:
        data = b"".join(chunk.native or b"" for chunk in tail)
        answer = InferResponse("", self.call.provider, "", native=("openai", data))
        seen = self._hooks.after(self.call, answer)
        return [tail[-1]._replace(native=seen.native[1])]


def _consistent(before: Chunk, after: Chunk) -> Chunk:
    """Return a chunk whose details match its changed reasoning."""
    if before.reasoning == after.reasoning or list(before.details) != list(after.details):
        return after
    was, now = (InferResponse("", "", "", reasoning=each.reasoning) for each in (before, after))
    was.details = now.details = after.details
    return after._replace(details=details_of(was, now))
