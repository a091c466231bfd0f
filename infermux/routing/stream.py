"""An answer that is still coming: whoever stops reading it, and why ever, it is closed and recorded
once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace

from ..errors import InferMuxError, StreamIncomplete
from ..planning.call import Call, StreamAccumulator
from ..protocol import InferResponse
from ..providers.foreign import Foreign, close, failed
from ..types import HEARTBEAT, Chunk
from . import draining as shutdown
from .billing import Billing
from .targets import TargetPermit

Finish = Callable[[Call, BaseException | None], None]


class Stream:
    """Chunks to iterate; close it wherever you stop."""

    def __init__(
        self,
        call: Call,
        first: list[Chunk],
        rest: Iterator[Chunk],
        lease: TargetPermit,
        billing: Billing,
        finish: Finish,
    ) -> None:
        self.call = call
        self._first = deque(first)
        self._rest = rest
        self._lease = lease
        self._billing = billing
        self._finish = finish
        self._fold = StreamAccumulator()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self.call.ended is not None:
            raise StopIteration
        try:
            if shutdown.due():
                raise StreamIncomplete("this service is stopping, and the answer would be cut")
            chunk = self._first.popleft() if self._first else next(self._rest)
            if chunk is not HEARTBEAT:
                self._fold.add(chunk)
        except StopIteration:
            self._settle(None)
            raise
        except InferMuxError as error:
            self._settle(error)
            raise
        except (
            Exception
        ) as error:  # as `Foreign` has it, which would be two more calls for each event
            ours = failed(self.call.provider, error)
            self._settle(ours)
            raise ours from error
        return chunk

    def __del__(self) -> None:
        if hasattr(self, "_fold"):
            # whoever drops a stream without a word has used what came of it all the same
            self.close()

    @property
    def dialect(self) -> str:
        """The dialect of the provider's own events, which chunks carry as `native`."""
        return next((chunk.dialect for chunk in self._first if chunk.dialect), "")

    def close(self) -> None:
        """End the stream here: the provider's connection is closed, and what was used so far is
        recorded.
        """
        if self.call.ended is None:
            while self._first:  # what came before anybody read was used, too
                with Foreign(self.call.provider):
                    self._fold.add(self._first.popleft())
            self._settle(None)

    def response(self) -> InferResponse:
        """Return what came so far as one answer."""
        call = self.call
        whole = self._fold.response(call.provider, call.attempts[-1].target.model)
        tokens_in, tokens_out = call.tokens
        return replace(
            whole,
            usage=call.usage,
            tokens_in=tokens_in,
            tokens_out=tokens_out,
            cost_usd=call.cost_usd,
            latency_ms=call.latency_ms,
        )

    def _settle(self, error: InferMuxError | None) -> None:
        """Record the end, once: whichever of last chunk, error and close comes first."""
        call, attempt = self.call, self.call.attempts[-1]
        if attempt.ended is not None:
            return
        attempt.ended, attempt.error = time.monotonic(), error
        try:
            close(self._rest, call.provider)
            self._lease.end(error)
            self._billing.streamed(call, attempt, self._fold)
        finally:
            self._finish(call, error)
