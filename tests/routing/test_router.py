"""Tests of the router as a library: the order of providers, the answers, and the reports."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from infermux import (
    Caller,
    Chunk,
    Deadline,
    EchoProvider,
    InferMuxError,
    InferRequest,
    InferResponse,
    Registry,
    Router,
    TraceSpan,
    Usage,
)
from infermux.errors import (
    ContentFiltered,
    ModelNotFound,
    Overloaded,
    ProviderAuthError,
    ProviderModelNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    QuotaExhausted,
    RequestError,
    StreamIncomplete,
)
from infermux.ledger import Budget, LedgerUnavailable
from infermux.planning.call import Call
from infermux.routing.stream import Stream
from infermux.types import HEARTBEAT, TraceContext

HELLO = InferRequest("m", [{"role": "user", "content": "my prompt"}])
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SECRET = "https://host.example/v1?key=sk-1234"
UNREACHABLE = ProviderUnavailable("no connection to the provider")
FAILS_OVER = [
    ProviderUnavailable,
    ProviderTimeout,
    ProviderRateLimited,
    QuotaExhausted,
    ProviderAuthError,
    ProviderModelNotFound,
    StreamIncomplete,
]
IS_FINAL = [ProviderRejected, ContentFiltered, RequestError]


class Fake:
    """A provider that does as it is told: raise, or answer."""

    models = ("m",)

    def __init__(self, name: str, does: BaseException | Any = None) -> None:
        self.name, self.does, self.calls = name, does, 0

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        self.calls += 1
        found = self.does(request, deadline) if callable(self.does) else self.does
        if isinstance(found, BaseException):
            raise found
        return found or InferResponse(request.model, self.name, f"from {self.name}", 3, 1, 0.5)


class Streams(Fake):
    """A provider whose stream is what a function yields."""

    def __init__(self, name: str, make: Callable[[], Iterator[Any]]) -> None:
        super().__init__(name)
        self.make, self.closed = make, 0

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        self.calls += 1
        try:
            yield from self.make()
        finally:
            self.closed += 1


class Collector:
    """A reporter that keeps the span of each call; those of its attempts are another test's."""

    def __init__(self) -> None:
        self.spans: list[TraceSpan] = []

    def report(self, span: TraceSpan) -> None:
        if span.operation == "infermux.infer":
            self.spans.append(span)

    @property
    def only(self) -> TraceSpan:
        [span] = self.spans
        return span


def whole(router: Router, request: InferRequest = HELLO) -> str:
    return router.infer(request).content


def streamed(router: Router, request: InferRequest = HELLO) -> str:
    return "".join(chunk.text for chunk in router.stream(request))


BOTH = pytest.mark.parametrize("ask", [whole, streamed])


def make(*providers: Any, **options: Any) -> tuple[Router, Collector]:
    spans = Collector()
    return Router(Registry(providers), spans, **options), spans


# -- who is asked ----------------------------------------------------------------------------------


@BOTH
def test_the_first_provider_in_declared_order_answers(ask: Any) -> None:
    first, second = Fake("first"), Fake("second")
    assert ask(make(first, second)[0]) == "from first"
    assert (first.calls, second.calls) == (1, 0)


@BOTH
@pytest.mark.parametrize("error", FAILS_OVER)
def test_a_failure_of_the_provider_goes_to_the_next(ask: Any, error: type[InferMuxError]) -> None:
    first, second, third = Fake("first", error("x")), Fake("second", error("x")), Fake("third")
    router, spans = make(first, second, third)
    assert ask(router) == "from third"
    assert (first.calls, second.calls, third.calls) == (1, 1, 1)
    assert (spans.only.status, spans.only.attrs["provider"]) == ("ok", "third")


@BOTH
@pytest.mark.parametrize("error", IS_FINAL)
def test_a_failure_of_the_caller_is_final(ask: Any, error: type[InferMuxError]) -> None:
    first, second = Fake("first", error("you are at fault")), Fake("second")
    router, spans = make(first, second)
    with pytest.raises(error, match="you are at fault"):
        ask(router)
    assert (first.calls, second.calls) == (1, 0)
    assert (spans.only.status, spans.only.attrs["provider"]) == ("error", "first")


@BOTH
@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_attempts_are_bounded_over_all_targets(ask: Any, attempts: int) -> None:
    providers = [Fake(f"p{number}", ProviderRateLimited(f"limit {number}")) for number in range(5)]
    with pytest.raises(ProviderRateLimited, match=f"limit {attempts - 1}"):
        ask(make(*providers, attempts=attempts)[0])
    assert [each.calls for each in providers] == [1] * attempts + [0] * (5 - attempts)


@BOTH
def test_three_attempts_are_the_default(ask: Any) -> None:
    providers = [Fake(f"p{number}", UNREACHABLE) for number in range(5)]
    with pytest.raises(ProviderUnavailable):
        ask(make(*providers)[0])
    assert sum(each.calls for each in providers) == 3


@BOTH
def test_the_last_failure_is_told(ask: Any) -> None:
    router, spans = make(
        Fake("first", UNREACHABLE), Fake("second", ProviderAuthError("our key is bad")), attempts=2
    )
    with pytest.raises(ProviderAuthError):
        ask(router)
    assert spans.only.attrs["error"].startswith("upstream_auth")


@BOTH
def test_a_named_provider_is_the_only_one_that_is_asked(ask: Any) -> None:
    first, second, third = Fake("first"), Fake("second", UNREACHABLE), Fake("third")
    router, _ = make(first, second, third, attempts=1)
    for request in (
        InferRequest("m", HELLO.messages, provider="second"),
        InferRequest("second/m", HELLO.messages),
    ):
        with pytest.raises(ProviderUnavailable):
            ask(router, request)
    assert (first.calls, second.calls, third.calls) == (0, 2, 0)


@BOTH
def test_one_deadline_is_shared_by_all_attempts(ask: Any) -> None:
    seen: list[Deadline] = []

    def fail(request: InferRequest, deadline: Deadline) -> InferMuxError:
        seen.append(deadline)
        return UNREACHABLE

    with pytest.raises(ProviderUnavailable):
        ask(make(Fake("a", fail), Fake("b", fail), deadline=20)[0])
    assert len(seen) == 3
    assert 0 < seen[0].remaining() <= 10  # half of it, while another target waits behind this one
    assert all(0 < deadline.remaining() <= 20 for deadline in seen[1:])


@BOTH
def test_a_target_that_hangs_leaves_time_for_the_one_behind_it(ask: Any) -> None:
    def late(request: InferRequest, deadline: Deadline) -> InferMuxError:
        threading.Event().wait(deadline.remaining() + 0.01)
        return UNREACHABLE

    first, second = Fake("first", late), Fake("second")
    router, spans = make(first, second, deadline=0.2)
    ask(router)
    assert (first.calls, second.calls, spans.only.status) == (1, 1, "ok")


@BOTH
def test_when_the_deadline_is_over_nobody_is_asked_again(ask: Any) -> None:
    def late(request: InferRequest, deadline: Deadline) -> InferMuxError:
        threading.Event().wait(deadline.remaining() + 0.01)
        return UNREACHABLE

    provider = Fake("only", late)
    router, spans = make(provider, deadline=0.05)
    with pytest.raises(ProviderUnavailable):
        ask(router)
    assert (provider.calls, spans.only.status) == (1, "error")


@BOTH
def test_an_echo_slower_than_the_deadline_is_a_timeout(ask: Any) -> None:
    router, _ = make(EchoProvider(delay=30), deadline=0.05)
    with pytest.raises(ProviderTimeout):
        ask(router, InferRequest("echo-v1", HELLO.messages))


@pytest.mark.parametrize("left", [0.0, 0.5, 10.0])
def test_a_deadline_only_counts_down(left: float) -> None:
    now = [100.0]
    deadline = Deadline(10, clock=lambda: now[0])
    now[0] += 10 - left
    assert deadline.remaining() == left
    assert deadline.expired is (left == 0)
    assert (deadline.cap(None), deadline.cap(5), deadline.cap(0.1)) == (
        left,
        min(5, left),
        min(0.1, left),
    )
    now[0] += 1000
    assert (deadline.remaining(), deadline.expired) == (0.0, True)


# -- wrong requests --------------------------------------------------------------------------------

WRONG: list[tuple[InferRequest, type[InferMuxError]]] = [
    (InferRequest("nope", HELLO.messages), ModelNotFound),
    (InferRequest("m", HELLO.messages, provider="nope"), ModelNotFound),
    (InferRequest("m"), RequestError),
    (InferRequest([], HELLO.messages), RequestError),  # type: ignore[arg-type]
    (InferRequest({}, HELLO.messages), RequestError),  # type: ignore[arg-type]
    (InferRequest("m", HELLO.messages, provider=["first"]), RequestError),  # type: ignore[arg-type]
    (InferRequest("m", [{"role": 5, "content": "x"}]), RequestError),
    (InferRequest("m", ["x"]), RequestError),  # type: ignore[list-item]
    (InferRequest("m", HELLO.messages, params={"api_key": "x"}), RequestError),
    (InferRequest("m", HELLO.messages, meta={"traceparent": 5}), RequestError),  # type: ignore[dict-item]
]


@BOTH
@pytest.mark.parametrize(("request_", "error"), WRONG)
def test_a_wrong_request_reaches_nobody_and_is_a_span(
    ask: Any, request_: InferRequest, error: type[InferMuxError]
) -> None:
    first = Fake("first")
    router, spans = make(first)
    with pytest.raises(error):
        ask(router, request_)
    assert first.calls == 0
    assert spans.only.status == "error" and spans.only.attrs["error"]


# -- spans and observers ---------------------------------------------------------------------------


@BOTH
def test_a_call_is_one_span(ask: Any) -> None:
    router, spans = make(Fake("first", UNREACHABLE), EchoProvider(models=["m"]))
    assert ask(router) == "echo: my prompt"
    span = spans.only
    assert (span.operation, span.status, span.parent_id) == ("infermux.infer", "ok", "")
    assert (
        span.attrs["provider"] == "echo"
        and span.attrs["finish_reason"] == "stop"
        and "error" not in span.attrs
    )
    assert (span.attrs["tokens_in"], span.attrs["tokens_out"], span.attrs["cost_usd"]) == (
        2,
        3,
        pytest.approx(0.00005),
    )
    assert span.end_ns >= span.start_ns > 0


@BOTH
def test_each_call_is_a_trace_of_its_own(ask: Any) -> None:
    router, spans = make(Fake("first"))
    for _ in range(3):
        ask(router)
    assert (
        len({span.trace_id for span in spans.spans})
        == len({span.span_id for span in spans.spans})
        == 3
    )


@BOTH
def test_a_traceparent_in_meta_is_continued(ask: Any) -> None:
    router, spans = make(Fake("first"))
    ask(router, InferRequest("m", HELLO.messages, meta={"traceparent": f"00-{TRACE}-{PARENT}-01"}))
    assert (spans.only.trace_id, spans.only.parent_id) == (TRACE, PARENT)


@BOTH
@pytest.mark.parametrize(
    "header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE.upper()}-{PARENT}-01"]
)
def test_an_invalid_traceparent_in_meta_starts_a_new_trace(ask: Any, header: str) -> None:
    router, spans = make(Fake("first"))
    ask(router, InferRequest("m", HELLO.messages, meta={"traceparent": header}))
    assert spans.only.parent_id == "" and spans.only.trace_id not in (TRACE, "0" * 32)


def test_a_trace_that_is_handed_in_wins_over_meta() -> None:
    router, spans = make(Fake("first"))
    request = InferRequest("m", HELLO.messages, meta={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    router.infer(request, trace=TraceContext("a" * 32, "b" * 16))
    list(router.stream(request, trace=TraceContext("a" * 32, "b" * 16)))
    assert {(span.trace_id, span.parent_id) for span in spans.spans} == {("a" * 32, "b" * 16)}


def fail(anything: object) -> None:
    raise RuntimeError("somebody's bug")


@BOTH
def test_an_observer_that_fails_is_logged_and_stops_nothing(
    ask: Any, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Call] = []
    router, spans = make(Fake("first"), observers=[fail, seen.append, fail])
    assert ask(router) == "from first"
    assert len(seen) == 1 and spans.only.status == "ok"
    assert caplog.text.count("an observer failed") == 2


@BOTH
def test_an_observer_that_fails_hides_no_error(ask: Any) -> None:
    router, _ = make(Fake("first", ProviderRejected("at fault")), observers=[fail])
    with pytest.raises(ProviderRejected):
        ask(router)


@BOTH
def test_a_reporter_that_fails_stops_nothing(ask: Any) -> None:
    class Broken:
        def report(self, span: TraceSpan) -> None:
            raise OSError("down")

    assert ask(Router(Registry([Fake("first")]), Broken())) == "from first"


@BOTH
def test_a_router_needs_no_reporter(ask: Any) -> None:
    assert ask(Router(Registry([Fake("first")]))) == "from first"


@BOTH
def test_observers_see_the_whole_record(ask: Any) -> None:
    seen: list[Call] = []
    router, _ = make(
        Fake("first", UNREACHABLE), EchoProvider("second", ["m"]), observers=[seen.append]
    )
    ask(router)
    [call] = seen
    assert [str(target) for target in call.plan.targets] == ["first/m", "second/m"]  # type: ignore[union-attr]
    assert [(attempt.target.provider, attempt.error) for attempt in call.attempts] == [
        ("first", UNREACHABLE.failure),
        ("second", None),
    ]
    assert all(
        attempt.ended is not None and attempt.ended >= attempt.started for attempt in call.attempts
    )
    assert call.ended is not None and call.error is None and call.usage == call.attempts[-1].usage


@BOTH
@pytest.mark.parametrize(
    "error",
    [
        ProviderRejected("x"),
        pytest.param(
            RequestError("x"),
        ),
    ],
    ids=["ProviderError", "RequestError"],
)
def test_an_attempt_that_failed_has_an_end_and_an_error(ask: Any, error: InferMuxError) -> None:
    seen: list[Call] = []
    router, _ = make(Fake("first", error), observers=[seen.append])
    with pytest.raises(InferMuxError):
        ask(router)
    [attempt] = seen[0].attempts
    assert attempt.error == error.failure and attempt.ended is not None


# -- what other people's code raises or returns ----------------------------------------------------


class Odd(Exception):
    """An exception that nobody knows."""


FOREIGN = [
    RuntimeError(SECRET),
    ValueError(SECRET),
    KeyError(SECRET),
    OSError(SECRET),
    TimeoutError(SECRET),
    Odd(SECRET),
    RecursionError(),
    AssertionError(SECRET),
    LookupError(),
]


@BOTH
def test_a_lack_of_memory_is_ours_and_not_the_providers(ask: Any) -> None:
    router, spans = make(Fake("first", MemoryError()))
    with pytest.raises(Overloaded):
        ask(router)
    [breaker] = router.targets.breakers().values()
    assert breaker.snapshot().failures == 0 and spans.only


@BOTH
@pytest.mark.parametrize("error", FOREIGN, ids=lambda error: type(error).__name__)
def test_a_foreign_exception_is_a_provider_that_failed(
    ask: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    router, spans = make(Fake("first", error))
    with pytest.raises(ProviderUnavailable) as caught:
        ask(router)
    assert "host.example" not in caught.value.message and "sk-1234" not in caught.value.message
    assert "host.example" not in str(spans.only)
    [record] = [each for each in caplog.records if each.levelno >= logging.ERROR]
    assert "first" in record.getMessage() and type(error).__name__ in record.getMessage()
    assert "sk-1234" not in record.getMessage()


@BOTH
def test_a_foreign_exception_goes_to_the_next_provider(ask: Any) -> None:
    assert ask(make(Fake("first", RuntimeError(SECRET)), Fake("second"))[0]) == "from second"


def test_a_foreign_stop_iteration_is_a_provider_that_failed() -> None:
    """next() on something empty is a likely bug of a provider."""
    router, spans = make(Fake("first", StopIteration()), Fake("second"))
    assert router.infer(HELLO).content == "from second"
    with pytest.raises(ProviderUnavailable):
        make(Fake("first", StopIteration()))[0].infer(HELLO)
    assert spans.only.status == "ok"


@BOTH
def test_a_provider_that_fails_to_say_what_it_serves_harms_nobody(ask: Any) -> None:
    first = Fake("first")
    first.models, first.serves = (), fail  # type: ignore[assignment, attr-defined]
    assert ask(make(first, EchoProvider(models=["m"]))[0]) == "echo: my prompt"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
@BOTH
def test_the_end_of_the_program_is_not_swallowed(ask: Any, error: BaseException) -> None:
    router, spans = make(Fake("first", error), Fake("second"))
    with pytest.raises(type(error)):
        ask(router)
    assert spans.only.status == "error"


NONSENSE = [5, "text", {"content": "x"}, object(), [], InferResponse]


@pytest.mark.parametrize("answer", NONSENSE, ids=repr)
def test_an_answer_that_is_none_of_ours_is_a_provider_that_failed(answer: Any) -> None:
    router, _ = make(Fake("first", lambda request, deadline: answer or 0.5), Fake("second"))
    assert router.infer(HELLO).content == "from second"


def answers(**changes: Any) -> InferResponse:
    return InferResponse(
        **(
            {"model": "m", "provider": "first", "content": "x", "tokens_in": 1, "tokens_out": 1}
            | changes
        )
    )


# what is wrong: the answer, and the ways to ask that let something foreign through
WRONG_INSIDE: dict[str, tuple[InferResponse, tuple[Any, ...]]] = {
    "content None": (answers(content=None), ()),
    "content None, no tokens": (answers(content=None, tokens_in=0, tokens_out=0), (whole,)),
    "content int, no tokens": (answers(content=5, tokens_in=0, tokens_out=0), (whole, streamed)),
    "content bytes, no tokens": (
        answers(content=b"x", tokens_in=None, tokens_out=None),
        (whole, streamed),
    ),
    "model None": (answers(model=None), ()),
    "tokens_in text": (answers(tokens_in="1"), (whole,)),
    "tokens_out negative": (answers(tokens_out=-1), ()),
    "finish_reason None": (answers(finish_reason=None), (whole,)),
    "cost NaN": (answers(usage=Usage(1, 1, cost_usd=float("nan"))), ()),
    "usage dict": (answers(usage={"input_tokens": 1}), (whole, streamed)),
}


@pytest.mark.parametrize(
    ("ask", "answer"),
    [
        pytest.param(ask, answer, id=f"{ask.__name__} {name}")
        for name, (answer, broken) in WRONG_INSIDE.items()
        for ask in (whole, streamed)
    ],
)
def test_an_answer_with_wrong_types_inside_raises_nothing_foreign(
    ask: Any, answer: InferResponse
) -> None:
    """Either it is put right or the provider has failed; a TypeError in the caller's face is
    neither.
    """
    router, spans = make(Fake("first", answer))
    try:
        router.infer(HELLO) if ask is whole else list(router.stream(HELLO))
    except InferMuxError as error:
        assert error.status == 502
    assert all(isinstance(spans.only.attrs[name], int) for name in ("tokens_in", "tokens_out"))
    assert all(
        isinstance(spans.only.attrs[name], str) for name in ("provider", "model", "finish_reason")
    )


def test_an_answer_without_usage_is_estimated_and_says_so() -> None:
    seen: list[Call] = []
    router, _ = make(
        Fake("first", InferResponse("m", "", "some words in an answer")), observers=[seen.append]
    )
    answer = router.infer(HELLO)
    assert (
        answer.tokens_in > 0
        and answer.tokens_out > 0
        and answer.provider == "first"
        and answer.cost_usd is None
    )
    assert answer.usage is not None and answer.usage.estimated and seen[0].usage == answer.usage


def test_the_providers_own_cost_is_the_cost() -> None:
    seen: list[Call] = []
    router, _ = make(Fake("first"), observers=[seen.append])
    assert router.infer(HELLO).cost_usd == 0.5
    assert (seen[0].cost, seen[0].cost_source) == (5 * 10**11, seen[0].cost_source)


# -- streams ---------------------------------------------------------------------------------------


def words(*texts: str, usage: Usage | None = Usage(7, 2)) -> Callable[[], Iterator[Chunk]]:
    def made() -> Iterator[Chunk]:
        for text in texts:
            yield Chunk(text=text)
        yield Chunk(finish_reason="stop", usage=usage)

    return made


def then(error: BaseException, *before: Any) -> Callable[[], Iterator[Any]]:
    def made() -> Iterator[Any]:
        yield from before
        raise error

    return made


def observed(*providers: Any) -> tuple[Router, Collector, list[Call]]:
    seen: list[Call] = []
    router, spans = make(*providers, observers=[seen.append])
    return router, spans, seen


def test_a_stream_is_told_once_after_its_last_chunk() -> None:
    provider = Streams("p", words("a", "b"))
    router, spans, seen = observed(provider)
    stream = router.stream(HELLO)
    assert (spans.spans, seen) == ([], [])
    assert [chunk.text for chunk in stream] == ["a", "b", ""]
    for _ in range(3):
        stream.close()
        assert list(stream) == []
    assert len(seen) == 1 and provider.closed == 1
    assert (spans.only.status, spans.only.attrs["tokens_in"], spans.only.attrs["tokens_out"]) == (
        "ok",
        7,
        2,
    )
    assert seen[0].attempts[0].first_chunk is not None and seen[0].finish_reason == "stop"


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_a_stream_that_is_abandoned_closes_the_provider_and_records_what_was_used(
    taken: int,
) -> None:
    provider = Streams("p", words("one ", "two ", "three ", "four "))
    router, spans, seen = observed(provider)
    stream = router.stream(HELLO)
    for _ in range(taken):
        next(stream)
    assert provider.closed == 0
    for _ in range(2):
        stream.close()
    assert provider.closed == 1 and len(seen) == 1
    assert seen[0].usage is not None and seen[0].usage.estimated
    assert spans.only.attrs["tokens_in"] > 0
    assert taken == 0 or spans.only.attrs["tokens_out"] > 0
    assert seen[0].attempts[0].ended is not None


def test_usage_that_came_before_a_stream_was_abandoned_counts() -> None:
    provider = Streams(
        "p", lambda: iter([Chunk(usage=Usage(40, 1)), Chunk(text="a"), Chunk(text="b")])
    )
    router, spans, seen = observed(provider)
    stream = router.stream(HELLO)
    next(stream), next(stream)
    stream.close()
    assert seen[0].usage == Usage(40, 1)
    assert spans.only.attrs["tokens_in"] == 40


def test_a_closed_stream_gives_nothing_more() -> None:
    stream = make(Streams("p", words("a", "b")))[0].stream(HELLO)
    stream.close()
    assert list(stream) == []


def test_a_stream_has_begun_when_it_is_returned() -> None:
    provider = Streams("p", then(UNREACHABLE, Chunk(), HEARTBEAT))
    router, spans, _ = observed(provider)
    with pytest.raises(ProviderUnavailable):
        router.stream(HELLO)
    assert spans.only.status == "error" and provider.closed == 3  # one for each attempt


@pytest.mark.parametrize(
    "before",
    [(), (Chunk(),), (HEARTBEAT, HEARTBEAT), (Chunk(model="m", usage=Usage(3, 0)),)],
    ids=len,
)
@pytest.mark.parametrize("error", [UNREACHABLE, RuntimeError("x"), StreamIncomplete("x")])
def test_before_the_first_content_a_stream_fails_over(before: Any, error: Exception) -> None:
    first, second = Streams("first", then(error, *before)), Streams("second", words("ok"))
    router, spans, _ = observed(first, second)
    assert streamed(router) == "ok"
    assert (first.closed, second.closed, len(spans.spans)) == (1, 1, 1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("empty", [lambda: iter(()), lambda: iter([Chunk(), HEARTBEAT])])
def test_a_stream_that_ends_before_it_begins_fails_over(empty: Any) -> None:
    assert streamed(make(Streams("first", empty), Streams("second", words("ok")))[0]) == "ok"
    with pytest.raises(StreamIncomplete):
        make(Streams("first", empty))[0].stream(HELLO)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "content",
    [
        Chunk(text="a"),
        Chunk(reasoning="a"),
        Chunk(refusal="a"),
        Chunk(finish_reason="stop"),
        Chunk(tool_calls=[{"index": 0, "id": "1", "function": {"name": "f", "arguments": ""}}]),
    ],
)
@pytest.mark.parametrize("error", [UNREACHABLE, RuntimeError(SECRET), StreamIncomplete("cut")])
def test_after_the_first_content_nothing_fails_over(content: Chunk, error: Exception) -> None:
    first, second = Streams("first", then(error, content)), Streams("second", words("no"))
    router, spans, seen = observed(first, second)
    stream = router.stream(HELLO)
    assert next(stream) == content
    with pytest.raises(
        ProviderUnavailable if isinstance(error, RuntimeError) else type(error)
    ) as caught:
        next(stream)
    assert SECRET not in caught.value.message
    stream.close()
    assert (first.closed, second.calls, len(seen), spans.only.status) == (1, 0, 1, "error")
    assert seen[0].attempts[-1].error == caught.value.failure == seen[0].error


def test_heartbeats_pass_and_leave_no_trace() -> None:
    router, _, _ = observed(
        Streams(
            "p",
            lambda: iter(
                [HEARTBEAT, Chunk(text="a"), HEARTBEAT, Chunk(text="b", finish_reason="stop")]
            ),
        )
    )
    stream = router.stream(HELLO)
    chunks = list(stream)
    assert [chunk is HEARTBEAT for chunk in chunks] == [False, True, False]
    assert stream.response().content == "ab"


@pytest.mark.parametrize(
    "odd",
    [
        "text",
        None,
        5,
        {"text": "a"},
        Chunk(tool_calls=[{"id": "no index"}]),
        Chunk(tool_calls=["x"]),
    ],
    ids=repr,
)
def test_a_chunk_that_is_none_of_ours_is_a_provider_that_failed(odd: Any) -> None:
    router, spans, _ = observed(Streams("p", lambda: iter([Chunk(text="a"), odd])))
    stream = router.stream(HELLO)
    with pytest.raises(ProviderUnavailable):
        list(stream)
    stream.close()
    assert spans.only.status == "error"


class Stubborn:
    """Chunks whose end makes trouble."""

    def __init__(self, *chunks: Chunk) -> None:
        self._chunks = iter(chunks)

    def __iter__(self) -> Stubborn:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def close(self) -> None:
        raise RuntimeError(SECRET)


class Troubled(Fake):
    """A provider whose streams cannot be closed."""

    chunks: tuple[Chunk, ...] = ()

    def stream(self, request: InferRequest, deadline: Deadline) -> Any:
        return Stubborn(*self.chunks)


def test_a_provider_that_cannot_close_its_stream_does_not_lose_the_record() -> None:
    provider = Troubled("p")
    provider.chunks = (Chunk(text="a"), Chunk(text="b"))
    router, spans, _ = observed(provider)
    stream = router.stream(HELLO)
    next(stream)
    stream.close()
    assert spans.only.attrs["provider"] == "p"


def test_a_provider_that_cannot_close_its_failed_stream_still_fails_over() -> None:
    router, _, _ = observed(Troubled("p"), Streams("second", words("ok")))
    assert streamed(router) == "ok"


def test_a_stream_puts_its_answer_together() -> None:
    router, _, _ = observed(EchoProvider(models=["m"], delay=0))
    stream = router.stream(HELLO)
    assert isinstance(stream, Stream)
    for _ in stream:
        pass
    assert stream.response().to_dict() == router.infer(HELLO).to_dict() | {
        "latency_ms": stream.call.latency_ms
    }


# -- many at once ----------------------------------------------------------------------------------


def test_a_router_serves_many_threads() -> None:
    router, spans = make(Fake("first", UNREACHABLE), EchoProvider(models=["m"]))
    found: dict[int, str] = {}

    def work(number: int) -> None:
        found[number] = whole(router, InferRequest("m", [{"role": "user", "content": str(number)}]))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(50)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert found == {number: f"echo: {number}" for number in range(50)}
    assert len(spans.spans) == len({span.span_id for span in spans.spans}) == 50


@pytest.mark.parametrize(
    ("caller", "kept"),
    [
        (Caller("open"), {"project": "p", "env": "test"}),
        (Caller("closed", may_tag=False), {}),
        (
            Caller("own", tags={"env": "prod"}),
            {"project": "p", "env": "prod"},
        ),  # what the key says wins over the request
    ],
)
def test_a_request_names_its_project_and_env_where_its_key_allows_it(caller, kept):
    request = InferRequest(
        "echo-v1", [{"role": "user", "content": "x"}], meta={"project": "p", "team": "t"}
    )
    router = Router(Registry([EchoProvider()]))
    assert router.begin(request, caller=caller, tags={"env": "test", "caller": "root"}).tags == kept


def test_a_budget_that_nothing_can_keep_is_refused():
    """Without a ledger nobody counts: to let the call through would be to have no budget."""
    first = Fake("first")
    router, spans = make(first)
    hard, soft = (Caller("web", budget=Budget("web", 1, then=then)) for then in ("reject", "warn"))
    with pytest.raises(LedgerUnavailable):
        router.infer(HELLO, caller=hard)
    assert first.calls == 0 and spans.only.status == "error"
    assert router.infer(HELLO, caller=soft).content == "from first"


@pytest.mark.parametrize("ask", [whole, streamed])
@pytest.mark.parametrize("content", [False, True])
def test_a_span_holds_words_only_where_that_is_switched_on(ask, content):
    collector = Collector()
    router = Router(Registry([EchoProvider(delay=0)]), collector, capture_content=content)
    ask(router, InferRequest("echo-v1", [{"role": "user", "content": "hush"}]))
    told = collector.only.attrs
    assert (told.get("completion"), "hush" in told.get("prompt", "")) == (
        ("echo: hush", True) if content else (None, False)
    )
