"""Tests of the call log: one complete line per call, harmless whatever names callers choose."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import HELLO, Scripted, Service, Vendor, eventually, nobody, run, script

from infermux import EchoProvider, InferRequest, Registry, Router
from infermux.errors import InferMuxError
from infermux.telemetry.call_log import CallLog

PROMPT = "a-prompt-that-nobody-logs"
FIELDS = [
    "time",
    "level",
    "id",
    "trace",
    "caller",
    "api",
    "requested",
    "provider",
    "model",
    "strategy",
    "status",
    "code",
    "error",
    "tokens_in",
]
FIELDS += ["tokens_out", "cost_usd", "estimated", "latency_ms", "ttft_ms", "attempts", "stream"]
HOSTILE = [
    "two\nlines",
    "X-Injected: 1\r\nCRITICAL all is lost",
    "\x1b[31mred\x1b[0m \x9b2J \x07\x7f\0",
    "\u2028between\u2029",
    '", "level": "critical", "x": "',
    "a=b status=200 level=info",
    "‮txt.exe",
    "x" * 5000,
]


def chat(model: str, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


def lines(service: Service, count: int, path: str = "/infer") -> list[str]:
    """Return the lines of the log that tell of calls, once there are *count*."""

    def found() -> list[str]:
        return [line for line in service.log.split("\n") if "api" in line and "trace" in line]

    eventually(lambda: len(found()) >= count, f"{count} lines")
    return found()


@pytest.fixture(scope="module")
def talkative() -> Iterator[Service]:
    """Every call in JSON, by two processes."""
    with Service(
        "--workers",
        "2",
        "--threads",
        "8",
        env={"INFERMUX_SERVER__LOG_LEVEL": "info", "INFERMUX_SERVER__LOG_FORMAT": "json"},
    ) as service:
        yield service


@pytest.fixture(scope="module")
def plain() -> Iterator[Service]:
    """The service as it is when nobody has said anything: failures, to be read."""
    with Service("--workers", "1", "--threads", "8") as service:
        yield service


def test_each_call_is_one_object_with_everything_but_what_was_said(talkative: Service) -> None:
    answer = talkative.ask(
        "/infer", chat("echo-v1"), headers={"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
    )
    [line] = [line for line in lines(talkative, 1) if answer.headers["X-Request-Id"] in line]
    found = json.loads(line)
    assert list(found) == FIELDS
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", found["time"])
    told = {
        "level": "info",
        "trace": "a" * 32,
        "caller": "",
        "api": "mist",
        "requested": "echo-v1",
        "provider": "echo",
        "model": "echo-v1",
    }
    told |= {"status": 200, "code": None, "attempts": 1, "stream": False, "ttft_ms": None}
    assert {name: found[name] for name in told} == told
    assert (
        found["tokens_in"] > 0
        and found["latency_ms"] >= 0
        and found["cost_usd"] == answer.json["cost_usd"]
    )


def test_a_stream_has_a_time_to_its_first_token(talkative: Service) -> None:
    answer = talkative.ask("/v1/chat/completions", chat("echo-v1", stream=True))
    [line] = [line for line in lines(talkative, 1) if answer.headers["X-Request-Id"] in line]
    found = json.loads(line)
    assert (found["stream"], found["api"], found["status"]) == (True, "openai", 200)
    assert 0 <= found["ttft_ms"] <= found["latency_ms"] + 1


@pytest.mark.parametrize("model", HOSTILE, ids=range(len(HOSTILE)))
@pytest.mark.parametrize("api", ["/infer", "/v1/chat/completions"])
def test_whatever_a_model_is_called_a_line_in_json_is_one_line(
    talkative: Service, api: str, model: str
) -> None:
    answer = talkative.ask(api, chat(model))
    [line] = [line for line in lines(talkative, 1) if answer.headers["X-Request-Id"] in line]
    found = json.loads(line)
    assert list(found) == FIELDS and len(line) < 4096
    assert found["requested"] == (model if len(model) < 200 else "x" * 200 + "…")
    assert (found["status"], found["level"], found["code"]) == (
        answer.status,
        "warning",
        answer.json["error"]["code"],
    )
    assert line.isascii() and line.isprintable()


@pytest.mark.sampled(1)
@pytest.mark.sampled(3)
@pytest.mark.parametrize("model", HOSTILE, ids=range(len(HOSTILE)))
def test_whatever_a_model_is_called_a_line_to_be_read_is_one_line(
    plain: Service, model: str
) -> None:
    answer = plain.ask("/infer", chat(model))
    [line] = [line for line in lines(plain, 1) if answer.headers["X-Request-Id"] in line]
    assert line.isascii() and line.isprintable() and len(line) < 4096
    told = f"status={answer.status} code={answer.json['error']['code']}"
    assert re.fullmatch(
        rf"\S+ WARNING id=[0-9a-f]{{32}} trace=[0-9a-f]{{32}} api=mist requested=.* {told} .*", line
    )
    quoted = re.search(r' requested=("(?:[^"\\]|\\.)*") ', line)
    assert quoted is None or json.loads(quoted[1])[:200] == model[:200]
    assert re.findall(r"(?:^| )status=(\d+)", re.sub(r'"(?:[^"\\]|\\.)*"', '""', line)) == [
        str(answer.status)
    ]


def test_by_default_only_failures_are_written(plain: Service) -> None:
    ids = [
        plain.ask("/infer", chat(model)).headers["X-Request-Id"]
        for model in ("echo-v1", "nobody", "echo-v1")
    ]
    lines(plain, 1)
    assert [ident in plain.log for ident in ids] == [False, True, False]


def test_no_line_is_written_twice_or_holds_a_prompt(talkative: Service, plain: Service) -> None:
    """Last of the two services."""
    for service in (talkative, plain):
        found = [re.search(r'"?id"?[=:]"?([0-9a-f]{32})', line)[1] for line in lines(service, 3)]  # type: ignore[index]
        assert len(set(found)) == len(found)
        assert PROMPT not in service.log and "Traceback" not in service.log


@pytest.mark.slow
def test_debug_tells_of_each_attempt(tmp_path: Path) -> None:
    with nobody() as refused, Vendor(Scripted()) as vendor:
        file = tmp_path / "infermux.toml"
        file.write_text(
            f'[providers.gone]\ntype = "openai"\nbase_url = "{refused}/v1"\n[providers.there]\ntype = "openai"\n'
            f'base_url = "{vendor.url}/v1"\n[models]\nboth = ["gone/m", "there/m"]\n'
            '[server]\nworkers = 1\nthreads = 8\nlog_level = "debug"\nlog_format = "json"\n'
        )
        with Service(env={"INFERMUX_CONFIG": str(file)}) as service:
            answer = service.ask("/infer", chat("both"))
            [line] = [line for line in lines(service, 1) if answer.headers["X-Request-Id"] in line]
            found = json.loads(line)
            assert (found["requested"], found["provider"], found["attempts"]) == (
                "both",
                "there",
                2,
            )
            assert [(tried["provider"], tried["code"]) for tried in found["tried"]] == [
                ("gone", "upstream_error"),
                ("there", None),
            ]
            assert refused.rpartition(":")[2] not in line


@pytest.mark.slow
def test_the_command_says_what_is_written_and_warnings_come_once() -> None:
    command = [
        *script("infermux"),
        "serve",
        "--workers",
        "1",
        "--threads",
        "4",
        "--log-level",
        "info",
        "--log-format",
        "json",
    ]
    with nobody() as url, Service(command=[*command, "--tokentrace", url]) as service:
        service.ask("/infer", HELLO)
        assert json.loads(lines(service, 1)[0])["status"] == 200
        eventually(lambda: "TokenTrace" in service.log, "the warning")
        service.ask("/infer", HELLO)
        lines(service, 2)
        [warning] = [line for line in service.log.splitlines() if "TokenTrace" in line]
        assert json.loads(warning).keys() == {"time", "level", "message"}


# -- without a service -----------------------------------------------------------------------------


def test_an_application_that_mounts_the_doors_has_the_last_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A line goes through logging, where a host application has it its own way."""
    router = Router(Registry([EchoProvider()]), observers=[CallLog("info", "json")])
    with caplog.at_level(logging.INFO, logger="infermux.calls"):
        router.infer(InferRequest("echo-v1", HELLO["messages"]))
        with pytest.raises(InferMuxError):
            router.infer(InferRequest({"no": "name"}, HELLO["messages"]))  # type: ignore[arg-type]
    good, bad = (json.loads(record.getMessage()) for record in caplog.records)
    assert (good["status"], bad["status"], bad["requested"]) == (200, 400, "<dict>")
    caplog.clear()
    with caplog.at_level(logging.ERROR, logger="infermux.calls"):
        router.infer(InferRequest("echo-v1", HELLO["messages"]))
    assert caplog.records == []


@pytest.mark.slow
@pytest.mark.sampled(1)
@pytest.mark.parametrize("format", ["text", "json"])
def test_whatever_else_is_logged_cannot_look_like_a_line_of_ours(format: str) -> None:
    code = (
        "import logging; from infermux.telemetry.call_log import configure; configure('warning', %r); log = logging.getLogger('infermux.x')\n"
        "try: raise ValueError('bad\\nCRITICAL lost \\x1b[2J')\n"
        "except ValueError: log.exception('one\\nCRITICAL two \\x1b[31m')\n"
        "log.info('nobody reads this'); logging.getLogger('infermux').warning('three %%d', 3)"
    )
    found = run([sys.executable, "-c", code % format])
    lines = found.stderr.splitlines()
    assert found.stdout == "" and all(
        line.isprintable() and not line.startswith("CRITICAL") for line in lines
    )
    assert (
        sum(line.startswith(("20", "{")) for line in lines) == 2
        and "three 3" in lines[-1]
        and "ValueError" in found.stderr
    )
