"""Tests of OpenTelemetry: the exported spans, and that a failing collector fails no call."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support import (
    HELLO,
    Peer,
    Scripted,
    Service,
    TokenTrace,
    Vendor,
    completion,
    eventually,
    nobody,
    run,
)

pytest.importorskip(
    "opentelemetry.exporter.otlp.proto.http", reason="infermux[otel] is not installed"
)

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PROMPT = "a-prompt-that-no-span-holds"


class Collector(Peer):
    """An OTLP receiver over HTTP that keeps what it was sent; it answers its status, or with 0
    never. A body of more than *most* bytes is refused.
    """

    def __init__(self, status: int = 200, target: str = "", most: int = 1_000_000) -> None:
        self.status, self.target, self.most = status, target, most
        self.spans: list[dict[str, Any]] = []
        self.resources: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def answer(self, handler: Any, body: bytes) -> None:
        self.paths.append(handler.path)
        assert handler.headers["Content-Type"] == "application/x-protobuf"
        if len(body) > self.most:
            handler.reply(413)
            return
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(plain(group.resource.attributes))
            self.spans += [read(span) for scope in group.scope_spans for span in scope.spans]
        if not self.status:
            self.released.wait()
        headers = {"Content-Type": "application/x-protobuf"} | (
            {"Location": self.target} if self.target else {}
        )
        handler.reply(self.status or 500, ExportTraceServiceResponse().SerializeToString(), headers)

    def wait(self, count: int) -> list[dict[str, Any]]:
        eventually(lambda: len(self.spans) >= count, f"{count} spans ({len(self.spans)} came)")
        return list(self.spans)


def plain(attributes: Any) -> dict[str, Any]:
    def value(given: Any) -> Any:
        kind = given.WhichOneof("value")
        return (
            [value(each) for each in given.array_value.values]
            if kind == "array_value"
            else getattr(given, kind)
        )

    return {each.key: value(each.value) for each in attributes}


def read(span: Span) -> dict[str, Any]:
    assert (
        len(span.trace_id) == 16
        and len(span.span_id) == 8
        and span.start_time_unix_nano <= span.end_time_unix_nano
    )
    found = {
        "trace": span.trace_id.hex(),
        "id": span.span_id.hex(),
        "parent": span.parent_span_id.hex(),
        "name": span.name,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
    }
    found |= {
        "kind": Span.SpanKind.Name(span.kind),
        "error": span.status.code == 2,
        "said": span.status.message,
    }
    return found | {"attrs": plain(span.attributes)}


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [("--workers", "2"), ("--workers", "1", "--preload")], ids=["two", "preload"]
)
def test_a_call_is_a_span_in_the_conventions_words(args: tuple[str, ...]) -> None:
    with Collector() as collector, Vendor() as vendor:
        env = vendor.env | {
            "INFERMUX_TRACE__OTLP": collector.url,
            "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        }
        with Service(*args, "--threads", "8", env=env) as service:
            answer = service.ask(
                "/v1/chat/completions",
                chat("gpt-5-mini", max_completion_tokens=7, temperature=0.5),
                headers={"traceparent": f"00-{TRACE}-{PARENT}-01"},
            )
            assert answer.status == 200
            [span] = collector.wait(1)
            assert service.ask("/infer", chat("echo-v1")).status == 200
            collector.wait(2)
        assert set(collector.paths) == {"/v1/traces"}
        assert all(resource["service.name"] == "infermux" for resource in collector.resources)
        assert all(
            resource["deployment.environment.name"] == "test" for resource in collector.resources
        )
    own = {name: span["attrs"].pop(name) for name in ("infermux.cost_usd", "infermux.call.id")}
    assert own == {
        "infermux.cost_usd": float(answer.headers["X-Infermux-Cost"]),
        "infermux.call.id": answer.headers["X-Request-Id"],
    }
    assert span.pop("id") != PARENT
    assert span.pop("start") <= span.pop("end")
    assert span == {
        "trace": TRACE,
        "parent": PARENT,
        "name": "chat gpt-5-mini",
        "kind": "SPAN_KIND_CLIENT",
        "error": False,
        "said": "",
        "attrs": {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-5-mini",
            "gen_ai.response.model": "gpt-5-mini",
            "gen_ai.response.finish_reasons": ["stop"],
            "gen_ai.request.max_tokens": 7,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 2,
            "infermux.attempts": 1,
            "infermux.provider": "openai",
            "infermux.strategy": "priority",
            "infermux.api": "openai",
        },
    }


@pytest.mark.slow
def test_each_attempt_of_a_call_that_failed_over_is_a_child_and_both_receivers_know_the_trace(
    tmp_path: Path,
) -> None:
    there = Scripted(body=completion({"model": "m-0613", "messages": []}, "hello"))
    with (
        Collector() as collector,
        TokenTrace() as tokentrace,
        Vendor(there) as vendor,
        nobody() as refused,
    ):
        file = tmp_path / "infermux.toml"
        file.write_text(
            f'[providers.gemini]\nbase_url = "{refused}/v1beta"\napi_key = "env:KEY"\n'
            f'[providers.mistral]\nbase_url = "{vendor.url}/v1"\napi_key = "env:KEY"\n'
            'prices = { "m-0613" = { input = "1", output = "2" } }\n'
            f'[models]\nboth = ["gemini/g", "mistral/m"]\n[server]\nworkers = 1\nthreads = 8\n'
            f'[trace]\notlp = "{collector.url}/v1/traces"\ntokentrace = "{tokentrace.url}"\n'
        )
        with Service(env={"INFERMUX_CONFIG": str(file), "KEY": "sk-not-for-spans"}) as service:
            assert service.ask("/infer", chat("both")).status == 200
            spans = collector.wait(3)
        [known] = tokentrace.checked()
    [call] = [span for span in spans if not span["parent"]]
    first, second = [span for span in spans if span["parent"]]
    assert {span["parent"] for span in (first, second)} == {call["id"]} and len(
        {span["id"] for span in spans}
    ) == 3
    assert {span["trace"] for span in spans} == {known["trace_id"]} and call["id"] == known[
        "span_id"
    ][:16]
    assert [span["name"] for span in (call, first, second)] == ["chat both", "chat g", "chat m"]
    assert (first["error"], first["attrs"]["error.type"], second["error"]) == (
        True,
        "upstream_error",
        False,
    )
    assert [span["attrs"]["gen_ai.provider.name"] for span in (first, second)] == [
        "gcp.gemini",
        "mistral_ai",
    ]
    assert [span["attrs"]["infermux.attempt"] for span in (first, second)] == [1, 2]
    counted = {name for name in call["attrs"] if "usage" in name or "cost" in name}
    assert counted == {
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "infermux.cost_usd",
    }
    for span in (first, second):  # who sums over spans counts the call once
        assert not [name for name in span["attrs"] if "usage" in name or "cost" in name]
        assert span["start"] <= span["end"] and call["start"] <= span["start"]
    assert first["end"] <= second["start"] and second["end"] <= call["end"]
    assert (known["status"], tokentrace.stats()["spans"], tokentrace.stats()["errors"]) == (
        "ok",
        1,
        0,
    )
    assert [
        (each["provider"], each["model"], each["status"]) for each in known["attrs"]["attempts"]
    ] == [("gemini", "g", "upstream_error"), ("mistral", "m-0613", "ok")]
    assert known["attrs"]["tokens_in"] == call["attrs"]["gen_ai.usage.input_tokens"]
    assert (
        call["error"],
        call["attrs"]["gen_ai.response.model"],
        call["attrs"]["infermux.attempts"],
    ) == (False, "m-0613", 2)
    assert not any(
        secret in repr(spans)
        for secret in (PROMPT, "127.0.0.1", "sk-not-for-spans", refused, vendor.url)
    )


LIBRARY = """
import sys
from infermux import EchoProvider, InferMuxError, InferRequest, Registry, Router
from infermux.otel import OTLP
export = OTLP(sys.argv[1], vendors={"echo": "azure"})
router = Router(Registry([EchoProvider()]), observers=[export])
def ask(model, **params):
    try:
        return router.infer(InferRequest(model, [{"role": "user", "content": "hello"}], params=params))
    except InferMuxError:
        pass
"""


def python(code: str, *args: str, **env: str) -> Any:
    return run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", LIBRARY + code, *args], env=env
    )


@pytest.mark.slow
def test_odd_names_and_parameters_spoil_no_batch() -> None:
    with Collector() as collector:
        code = """
for model in ("half \\ud83d", "x" * 9999, "two\\nlines", None, {"a": 1}):
    ask(model, max_tokens="many", temperature=[1])
ask("echo-v1", max_tokens=10**30, temperature=10**400)
ask("echo-v1", max_tokens=True, temperature=float("nan"))
assert export.flush(20) and not export.dropped
"""
        found = python(code, collector.url)
        assert (found.returncode, found.stderr) == (0, "")
        spans = collector.spans
    assert len(spans) == 7 and [span["error"] for span in spans] == [True] * 5 + [False] * 2
    assert [span["name"] for span in spans] == ["chat"] * 5 + ["chat echo-v1"] * 2
    assert [span["attrs"].get("gen_ai.request.model") for span in spans[:3]] == [
        "half ?",
        "x" * 200,
        "two\nlines",
    ]
    assert {span["attrs"]["gen_ai.provider.name"] for span in spans[5:]} == {"azure.ai.openai"}
    assert not any(
        name.startswith("gen_ai.request.") and name != "gen_ai.request.model"
        for span in spans
        for name in span["attrs"]
    )


@pytest.mark.slow
def test_a_batch_that_is_too_large_for_the_collector_comes_in_parts() -> None:
    with Collector(most=1100) as collector:
        code = """
for number in range(40):
    ask("echo-v1" if number != 7 else "\\U0001f30d" * 9999)
assert export.flush(20) and export.dropped == 1, export.dropped
"""
        found = python(code, collector.url)
        assert (found.returncode, found.stderr.count("\n")) == (0, 1), found.stderr
        assert len({span["id"] for span in collector.spans}) == len(collector.spans) == 39


@pytest.mark.slow
def test_spans_are_flushed_at_exit_and_after_a_fork_by_each_process() -> None:
    with Collector() as collector:
        code = """
import os
ask("echo-v1")
for _ in range(2):
    child = os.fork()
    if not child:
        ask("echo-v1")
        sys.exit()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
        found = python(code, collector.url)
        assert (found.returncode, found.stderr) == (0, "")
        assert len({span["id"] for span in collector.spans}) == len(collector.spans) == 3


@pytest.mark.parametrize(
    "status",
    [307, 400, *(pytest.param(each, marks=pytest.mark.slow) for each in (0, 503))],
)
def test_a_collector_in_trouble_costs_spans_and_one_line(status: int) -> None:
    with Collector() as other, Collector(status, target=f"{other.url}/v1/traces") as collector:
        code = """
import time
for _ in range(5):
    started = time.monotonic()
    ask("echo-v1")
    assert time.monotonic() - started < 2
assert export.flush(20) and export.dropped == 5, export.dropped
"""
        found = python(code, collector.url)
        assert found.returncode == 0, found.stderr
        assert (
            found.stderr.count("\n") == 1
            and "does not accept spans" in found.stderr
            and "127.0.0.1" not in found.stderr
        )
        assert other.paths == []


@pytest.mark.slow
def test_a_service_whose_collector_hangs_answers_and_ends_in_time() -> None:
    with (
        Collector(0) as collector,
        Service(
            "--workers", "1", "--threads", "8", env={"INFERMUX_TRACE__OTLP": collector.url}
        ) as service,
    ):
        assert [service.ask("/infer", HELLO).status for _ in range(20)] == [200] * 20
        collector.wait(1)
        started = time.monotonic()
        assert service.stop() == 0
        assert time.monotonic() - started < 10
        assert "opentelemetry" not in service.log and "Traceback" not in service.log


@pytest.mark.slow
def test_without_the_extra_a_start_says_what_is_missing() -> None:
    code = "import sys; sys.modules['opentelemetry'] = None; from infermux.cli.main import main; main(['infer', 'hello', '--model', 'echo'])"
    command = [sys.executable, "-c", code]
    found = run(command, env={"INFERMUX_TRACE__OTLP": "http://127.0.0.1:4318"})
    assert (found.returncode, found.stderr) == (
        1,
        "infermux: [trace].otlp needs OpenTelemetry: pip install 'infermux[otel]'\n",
    )
    assert run(command).returncode == 0  # and nobody else needs it
