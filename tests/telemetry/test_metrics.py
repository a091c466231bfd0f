"""Tests of GET /metrics with Prometheus' own parser: values, labels, and sums over all workers."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import HELLO, Service, TokenTrace, eventually

from infermux import (
    Chunk,
    Deadline,
    InferRequest,
    InferResponse,
    Provider,
    Registry,
    Reporter,
    Router,
    Usage,
    create_app,
)
from infermux.errors import (
    InferMuxError,
    ProviderError,
    ProviderRejected,
    ProviderUnavailable,
    StreamIncomplete,
)
from infermux.pricing import Price

FAMILIES = {
    "infermux_requests": "counter",
    "infermux_latency_seconds": "histogram",
    "infermux_ttft_seconds": "histogram",
    "infermux_overhead_seconds": "histogram",
    "infermux_hooks": "counter",
    "infermux_hook_seconds": "histogram",
    "infermux_tokens": "counter",
    "infermux_cost_usd": "counter",
    "infermux_attempts": "counter",
    "infermux_circuit_state": "gauge",
    "infermux_streams_open": "gauge",
    "infermux_unpriced": "counter",
    "infermux_streams_incomplete": "counter",
    "infermux_spans_dropped": "counter",
    "infermux_ledger_pending": "gauge",
    "infermux_ledger_lost": "counter",
    "infermux_answer_cache": "counter",
    "infermux_alerts": "counter",
    "infermux_rate_limits_local": "gauge",
    "infermux_mirrored": "counter",
    "infermux_failed_logins": "counter",
    **{f"infermux_budget_{name}_usd": "gauge" for name in ("limit", "spent", "held", "left")},
}  # as the parser names them: a counter without its _total
USAGE = Usage(31, 17, cached_input_tokens=8, reasoning_tokens=5)


class Model(Provider):
    """Answers, or raises what it is given, after *seconds*."""

    def __init__(
        self,
        name: str = "vendor",
        *models: str,
        error: Exception | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.name, self.models, self.error, self.seconds = name, models or ("m",), error, seconds

    def serves(self, model: str) -> bool:
        return model.startswith("any-")

    def infer(self, request: InferRequest, deadline: Deadline) -> InferResponse:
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return InferResponse(request.model, self.name, "hi", finish_reason="stop", usage=USAGE)

    def stream(self, request: InferRequest, deadline: Deadline) -> Iterator[Chunk]:
        yield Chunk("hi")
        if self.error is not None:
            raise self.error
        yield Chunk(finish_reason="stop", usage=USAGE)


class Scrape(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one answer."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.kinds: dict[str, str] = {}
        for family in text_string_to_metric_families(text):
            assert family.name not in self.kinds, "a family came twice"
            self.kinds[family.name] = family.type
            for sample in family.samples:
                key = sample.name.removeprefix("infermux_"), frozenset(sample.labels.items())
                assert key not in self, f"{key} came twice"
                self[key] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        return self.get((name, frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        return sum(
            value
            for (each, has), value in self.items()
            if each == name and labels.items() <= dict(has).items()
        )


def served(*providers: Any, **more: Any) -> tuple[Router, Any]:
    router = Router(Registry(providers), **more)
    return router, create_app(router).test_client()


def scrape(client: Any) -> Scrape:
    answer = client.get("/metrics")
    assert (
        answer.status_code == 200
        and answer.content_type == "text/plain; version=0.0.4; charset=utf-8"
    )
    return Scrape(answer.text)


def ask(model: str = "m") -> InferRequest:
    return InferRequest(model, messages=[{"role": "user", "content": "hello"}])


def attempt(router: Router, request: InferRequest) -> None:
    with contextlib.suppress(InferMuxError):
        router.infer(request)


def test_there_are_exactly_these_families_before_and_after_a_call() -> None:
    router, client = served(Model())
    assert scrape(client).kinds == FAMILIES
    router.infer(ask())
    assert scrape(client).kinds == FAMILIES


def test_a_call_is_counted_in_each_that_it_concerns() -> None:
    prices: Mapping[str, Mapping[str, Price]] = {
        "vendor": {
            "m": Price.of({"input": "1", "output": "10"}, provider="vendor", id="m", place="here")
        }
    }
    router, client = served(Model(seconds=0.02), prices=prices)
    for _ in range(3):
        router.infer(ask())
    found, target = scrape(client), {"provider": "vendor", "model": "m"}
    assert found.value("requests_total", **target, status="200") == 3
    assert found.value("attempts_total", **target, outcome="ok") == 3
    kinds = {"input": 93, "output": 51, "cached_input": 24, "reasoning": 15, "cache_write": None}
    assert {kind: found.value("tokens_total", **target, kind=kind) for kind in kinds} == kinds
    assert (
        'infermux_cost_usd_total{provider="vendor",model="m"} 0.000603\n' in found.text
    )  # 3 * (31 * 1 + 17 * 10) / 10**6
    assert (
        found.value("latency_seconds_count", **target) == found.value("overhead_seconds_count") == 3
    )
    assert found.value("latency_seconds_sum", **target) >= 0.06  # type: ignore[operator]
    assert found.sum("overhead_seconds_sum") <= found.sum("latency_seconds_sum") - 0.06
    assert (
        found.value("circuit_state", **target) == 0
        and found.value("ttft_seconds_count", **target) is None
    )
    assert found.sum("unpriced_total") == 0


def test_buckets_hold_what_is_at_most_their_bound() -> None:
    router, client = served(Model(seconds=0.06), Model("quick", "q"))
    router.infer(ask())
    router.infer(ask("q"))
    found = scrape(client)
    slow = [
        value
        for (name, labels), value in found.items()
        if name == "latency_seconds_bucket" and ("provider", "vendor") in labels
    ]
    assert slow == sorted(slow) and slow[0] == 0 and slow[-1] == 1
    assert found.value("latency_seconds_bucket", provider="vendor", model="m", le="0.05") == 0
    assert found.value("latency_seconds_bucket", provider="vendor", model="m", le="+Inf") == 1
    assert found.value("overhead_seconds_bucket", le="+Inf") == 2


def test_what_has_no_price_is_counted_not_taken_for_free() -> None:
    router, client = served(Model())
    router.infer(ask())
    found = scrape(client)
    assert (
        found.value("unpriced_total", provider="vendor", model="m") == 1
        and found.sum("cost_usd_total") == 0
    )


def test_failures_are_told_by_target_and_outcome() -> None:
    registry = Registry(
        [
            Model("bad", error=ProviderUnavailable("x")),
            Model("good"),
            Model("no", "n", error=ProviderRejected("x")),
        ]
    )
    router = Router(registry, attempts=2)
    client = create_app(router).test_client()
    router.infer(ask())
    for model in ("n", "nobody"):
        attempt(router, ask(model))
    found = scrape(client)
    assert found.value("attempts_total", provider="bad", model="m", outcome="upstream_error") == 1
    assert found.value("attempts_total", provider="good", model="m", outcome="ok") == 1
    assert found.value("requests_total", provider="good", model="m", status="200") == 1
    assert found.value("requests_total", provider="no", model="n", status="400") == 1
    assert found.value("requests_total", provider="other", model="other", status="404") == 1
    assert found.sum("requests_total") == 3 and found.sum("attempts_total") == 3


def test_an_error_of_a_plug_ins_own_adds_no_label_of_its_own() -> None:
    class Odd(ProviderError):
        status, code = 999, 'odd"\n{code}'

    router, client = served(Model(error=Odd("x")))
    attempt(router, ask())
    found = scrape(client)
    assert found.value("requests_total", provider="vendor", model="m", status="other") == 1
    assert found.sum("attempts_total", outcome="other") == found.sum("attempts_total") > 0


def test_names_that_callers_make_up_add_no_series() -> None:
    router, client = served(Model())
    for model in ("any-0", "nobody's"):
        attempt(router, ask(model))
    before = set(scrape(client))
    for number in range(1000):
        router.infer(ask(f"any-{number}"))
    found = scrape(client)
    assert set(found) == before
    assert found.value("requests_total", provider="vendor", model="other", status="200") == 1001


def test_what_was_asked_for_in_vain_has_the_labels_that_are_known_of_it() -> None:
    router, client = served(Model(), Model("other vendor", "n"))
    router.registry.define("fast", ["vendor/m"])
    for provider, model in [
        ("nobody", "m"),
        ("nobody", "fast"),
        ("vendor", "n"),
        ("nobody", "nothing"),
    ]:
        attempt(router, InferRequest(model, ask().messages, provider=provider))
    found = scrape(client)
    labels = [dict(has) for name, has in found if name == "requests_total"]
    pairs = sorted((has["provider"], has["model"]) for has in labels)
    assert pairs == [("other", "fast"), ("other", "m"), ("other", "other"), ("vendor", "other")]


def test_labels_are_escaped() -> None:
    name, model = 'a "quoted" \\ one', 'line\nbreak "\\n" \\'
    router, client = served(Model(name, model))
    router.infer(ask(model))
    assert scrape(client).value("requests_total", provider=name, model=model, status="200") == 1


def test_a_provider_that_joins_later_has_its_label() -> None:
    router, client = served(Model())
    router.infer(ask())
    router.registry.register(Model("late", "l"))
    router.infer(ask("l"))
    assert scrape(client).value("requests_total", provider="late", model="l", status="200") == 1


@pytest.mark.sampled(1)
@pytest.mark.parametrize("end", ["read", "left", "broken", "dropped"])
def test_streams_are_open_until_they_end_however_they_end(end: str) -> None:
    router, client = served(Model(error=StreamIncomplete("x") if end == "broken" else None))
    stream = router.stream(ask())
    other = router.stream(ask())
    assert scrape(client).value("streams_open") == 2
    other.close()
    if end == "left":
        next(stream)
        stream.close()
    elif end == "dropped":
        del stream
    else:
        with contextlib.suppress(StreamIncomplete):
            list(stream)
    found = scrape(client)
    assert found.value("streams_open") == 0
    assert found.value("ttft_seconds_count", provider="vendor", model="m") == 2
    assert found.sum("streams_incomplete_total") == (end == "broken")
    assert found.sum("attempts_total", outcome="stream_incomplete") == (end == "broken")


def test_a_stream_that_never_opens_is_not_open() -> None:
    router, client = served(Model())
    with contextlib.suppress(InferMuxError):
        router.stream(ask("nobody"))
    assert scrape(client).value("streams_open") == 0


def test_spans_that_are_lost_are_counted_once() -> None:
    with TokenTrace("status") as receiver:
        router, client = served(Model(), reporter=Reporter(url=receiver.url))
        before = scrape(client).value("spans_dropped_total")
        router.infer(ask())
        router.infer(ask())
        assert eventually(lambda: scrape(client).value("spans_dropped_total") == (before or 0) + 2)
        assert scrape(client).value("spans_dropped_total") == (before or 0) + 2


def test_an_open_circuit_is_seen() -> None:
    router, client = served(Model(error=ProviderUnavailable("x")))
    for _ in range(2):
        attempt(router, ask())
    found = scrape(client)
    assert found.value("circuit_state", provider="vendor", model="m") == 2


def test_calls_from_many_threads_are_counted_exactly() -> None:
    router, client = served(Model())
    start = threading.Barrier(64)

    def work() -> None:
        start.wait()
        for _ in range(20):
            router.infer(ask())

    with ThreadPoolExecutor(64) as pool:
        for done in [pool.submit(work) for _ in range(64)]:
            done.result()
    found = scrape(client)
    assert (
        found.sum("requests_total")
        == found.sum("latency_seconds_count")
        == found.sum("attempts_total")
        == 1280
    )
    assert found.sum("tokens_total", kind="input") == 1280 * 31


# -- over all workers ------------------------------------------------------------------------------


def calls(service: Service, number: int) -> None:
    with ThreadPoolExecutor(6) as pool:
        assert {
            answer.status
            for answer in pool.map(lambda _: service.ask("/infer", HELLO), range(number))
        } == {200}


def counted(service: Service) -> set[float]:
    """Return what several scrapes, each on a connection of its own, say of the calls so far."""
    return {Scrape(service.ask("/metrics").data.decode()).sum("requests_total") for _ in range(8)}


def workers(service: Service) -> list[int]:
    return [int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", service.log)]


@pytest.mark.slow
def test_every_worker_tells_of_all_calls_whatever_becomes_of_workers(tmp_path: Any) -> None:
    with Service(
        "-w", "2", "--threads", "8", env={"INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db")}
    ) as service:
        calls(service, 40)
        assert counted(service) == {40}
        os.kill(workers(service)[0], signal.SIGKILL)
        eventually(lambda: len(workers(service)) == 3, "a new worker")
        calls(service, 40)
        assert counted(service) == {80}
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(workers(service)) == 5, "new workers")
        eventually(lambda: service.log.count("Worker exiting") >= 2, "the end of the old ones")
        calls(service, 20)
        assert counted(service) == {100}
        assert Scrape(service.ask("/metrics").data.decode()).kinds == FAMILIES


@pytest.mark.slow
def test_the_workers_of_a_preloaded_application_share_their_counts(tmp_path: Any) -> None:
    with Service(
        "-w",
        "2",
        "--threads",
        "8",
        "--preload",
        env={"INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db")},
    ) as service:
        calls(service, 30)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(workers(service)) == 4, "new workers")
        eventually(lambda: service.log.count("Worker exiting") >= 2, "the end of the old ones")
        calls(service, 30)
        assert counted(service) == {60}
