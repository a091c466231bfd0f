"""A streamed answer. It is closed and recorded exactly once, however iteration ends.

A worker that is shutting down ends its streams with an error event just before it would be killed;
`drain_with` sets that time.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

from ..errors import InferMuxError, StreamIncomplete, having
from ..planning.call import Attempt, Call, StreamAccumulator
from ..protocol import InferRequest, InferResponse
from ..providers.base import ProviderGuard, RegisteredProvider, close_stream, provider_failed
from ..types import HEARTBEAT, Chunk, Deadline, Usage
from .accounting import Accounting
from .targets import TargetPermit

LAST_EVENT_SECONDS = 2.0  # for a stream's last event, before the worker is killed
Finish = Callable[[Call, BaseException | None], None]


class Stream:
    """Iterates over the chunks of an answer; use `with`, or call `close` where you stop."""

    def __init__(
        self,
        call: Call,
        first: list[Chunk],
        rest: Iterator[Chunk],
        permit: TargetPermit,
        accounting: Accounting,
        finish: Finish,
        answers: Any = None,  # the cache
    ) -> None:
        self.call = call
        self._first = deque(first)
        self._rest = rest
        self._permit = permit
        self._accounting = accounting
        self._finish = finish
        self._answer = self._sent = StreamAccumulator()  # of the provider, and for the caller
        self._answers = answers

    def __iter__(self) -> Stream:
        return self

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __next__(self) -> Chunk:
        if self.call.ended is not None:
            raise StopIteration
        try:
            check_draining()
            chunk = self._first.popleft() if self._first else next(self._rest)
            if chunk is not HEARTBEAT:
                self._answer.add(chunk)
        except StopIteration:
            self._end()
            raise
        except InferMuxError as error:
            self.settle(error)
            raise
        except Exception as error:  # inline: ProviderGuard would cost two calls per event
            ours = provider_failed(self.call.provider, error)
            self.settle(ours)
            raise ours from error
        return chunk

    def __del__(self) -> None:
        if hasattr(self, "_answer"):
            self.close()  # an abandoned stream is still billed

    def started(self) -> Stream:
        """Return the stream when there is something to send."""
        return self

    @property
    def usage(self) -> Usage | None:
        """What the answer has used, once it has ended."""
        return self.call.usage

    @property
    def is_whole(self) -> bool:
        """Whether the whole answer is there, before it is read."""
        return any(chunk.finish_reason for chunk in self._first)

    @property
    def dialect(self) -> str:
        """The dialect of the provider's own events, which chunks have as `native`."""
        return next((chunk.dialect for chunk in self._first if chunk.dialect), "")

    def close(self) -> None:
        """End the stream: close the provider's connection and record what was used."""
        if self.call.ended is None:
            while self._first:  # chunks that came before the first read are billed too
                with ProviderGuard(self.call.provider):
                    self._answer.add(self._first.popleft())
            self.settle(None)

    def response(self) -> InferResponse:
        """Return the answer so far as one response."""
        call, (tokens_in, tokens_out) = self.call, self.call.tokens
        return replace(
            self._sent.response(call.provider, call.attempts[-1].target.model),
            usage=call.usage,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=call.cost_usd,
            latency_ms=call.latency_ms,
        )

    def _end(self) -> None:
        """Record the end of a complete stream, and cache its answer if it may be cached."""
        self.settle(None)
        if self.call.answer_key and self._answers is not None:
            self._answers.keep(self.call, self.response())

    def settle(self, error: InferMuxError | None, *, ours: bool = False) -> None:
        """Record the end once: the last chunk, an error or close, whichever comes first.

        *ours*: the error is not the provider's.
        """
        call, attempt = self.call, self.call.attempts[-1]
        if attempt.ended is not None:
            return
        attempt.ended = time.monotonic()
        attempt.error = None if error is None or ours else error.failure
        try:
            close_stream(self._rest, call.provider)
            self._permit.end(None if ours else error)
            self._accounting.charge_stream(call, attempt, self._answer)
        finally:
            self._finish(call, error)


def open_chunks(
    provider: RegisteredProvider, request: InferRequest, deadline: Deadline, attempt: Attempt
) -> tuple[list[Chunk], Iterator[Chunk]]:
    """Return the chunks up to the first content, and the rest; raise StreamIncomplete if none."""
    chunks: Iterator[Chunk] = iter(())
    first: list[Chunk] = []
    try:
        with ProviderGuard(provider.name):
            chunks = iter(provider.stream(request, deadline))
            for chunk in chunks:
                if chunk is not HEARTBEAT:
                    first.append(chunk)
                    attempt.served = chunk.model or attempt.served
                if chunk.has_content:
                    attempt.first_chunk = time.monotonic()
                    return first, chunks
                if deadline.on_wait is not None:  # not called elsewhere while pings arrive
                    deadline.on_wait()
        raise StreamIncomplete("the provider's stream ended before its first content")
    except BaseException:
        close_stream(chunks, provider.name)
        raise


@dataclass
class _Drain:
    """Decides by the state of its server when the streams of this process must end."""

    server: Any
    grace: float  # seconds from the start of the shutdown to the kill
    _stopped: float = 0.0  # when the server was first seen to shut down

    def due(self) -> bool:
        """Whether open streams must end now."""
        if self.server.alive:
            return False
        now = time.monotonic()
        self._stopped = self._stopped or now
        return now - self._stopped > self.grace - LAST_EVENT_SECONDS


_drain = _Drain(SimpleNamespace(alive=True), math.inf)


def time_left() -> float:
    """Return the seconds that this process has before it is killed, if it is shutting down."""
    if _drain.grace == math.inf:
        return LAST_EVENT_SECONDS
    _drain.due()
    now = time.monotonic()
    return max(0.0, (_drain._stopped or now) + _drain.grace - LAST_EVENT_SECONDS - now)


def check_draining() -> None:
    """Raise StreamIncomplete if the streams of this process must end now."""
    if _drain.due():
        what = "the server is shutting down; the stream is incomplete"
        raise having(StreamIncomplete(what), failover=False, retryable=False)


def drain_with(server: Any, grace: float) -> None:
    """End open streams before the kill, *grace* seconds after `server.alive` becomes false."""
    global _drain
    _drain = _Drain(server, grace)
