"""Tests of the command `infermux batch`: results, resuming, stopping, budgets, memory."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import random
import re
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from support import PATIENCE, Scripted, Vendor, environment, eventually, run, script

from infermux import build, create_app
from infermux.cli.main import main

HELLO = [{"role": "user", "content": "hello"}]
EMBEDDED = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
    "model": "m",
    "usage": {"prompt_tokens": 2},
}
RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "model": "m",
    "status": "completed",
    "usage": {"input_tokens": 1, "output_tokens": 2},
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}],
}
TEXT = {
    "id": "cmpl-1",
    "object": "text_completion",
    "model": "m",
    "choices": [{"text": "hi", "index": 0, "finish_reason": "stop"}],
}


def line(
    custom_id: str | None = None, *, url: str = "/v1/chat/completions", **body: Any
) -> dict[str, Any]:
    asked = {"method": "POST", "url": url, "body": {"model": "echo-v1", "messages": HELLO} | body}
    return asked if custom_id is None else {"custom_id": custom_id} | asked


def written(folder: Path, *lines: Any) -> Path:
    """Write a batch: values as JSON, bytes as they are."""
    file = folder / "in.jsonl"
    file.write_bytes(
        b"".join(
            (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n"
            for each in lines
        )
    )
    return file


def config(
    folder: Path,
    vendor: Vendor,
    more: str = "",
    *,
    prices: str = '{ m = { input = "1", output = "1000" } }',
) -> str:
    file = folder / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{vendor.url}/v1"
api_key = "env:OPENAI_API_KEY"
models = ["m"]
prices = {prices}
{more}
[providers.echo]
type = "echo"
""")
    return str(file)


def batch(
    source: Path | str, *args: str, given: bytes | None = None, env: dict[str, str] | None = None
) -> Result:
    """Run the command here; results go to out.jsonl beside the input."""
    out = [] if "-o" in args else ["-o", str(Path(source).with_name("out.jsonl"))]
    return CliRunner().invoke(
        main,
        ["batch", str(source), *out, *args],
        input=given,
        env={"OPENAI_API_KEY": "sk-v"} | (env or {}),
    )


def started(source: Path, *args: str, **more: Any) -> subprocess.Popen[bytes]:
    command = [
        *script("infermux"),
        "batch",
        str(source),
        "-o",
        str(source.with_name("out.jsonl")),
        *args,
    ]
    return subprocess.Popen(
        command, env=environment(OPENAI_API_KEY="sk-v"), **{"stderr": subprocess.PIPE} | more
    )


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the results by custom_id, each of which is there once and in the form that OpenAI
    documents.
    """
    found = [json.loads(each) for each in (folder / "out.jsonl").read_bytes().splitlines()]
    for each in found:
        assert list(each) == ["id", "custom_id", "response", "error"] and each["id"].startswith(
            "batch_req_"
        )
        assert (each["response"] is None) != (each["error"] is None)
        assert each["response"] is None or list(each["response"]) == [
            "status_code",
            "request_id",
            "body",
        ]
    assert (
        len({each["id"] for each in found})
        == len({each["custom_id"] for each in found})
        == len(found)
    )
    return {each["custom_id"]: each for each in found}


def asked(vendor: Vendor) -> Counter[str]:
    """Return how often the vendor was asked each question."""
    with vendor.lock:
        # a process that is killed may have sent the head of a request alone
        return Counter(each.body["messages"][-1]["content"] for each in vendor.seen if each.body)


def questions(count: int, **more: Any) -> list[dict[str, Any]]:
    return [
        line(f"q{n}", model="openai/m", messages=[{"role": "user", "content": f"q{n}"}], **more)
        for n in range(count)
    ]


# -- results ---------------------------------------------------------------------------------------

DOORS = {
    "/v1/chat/completions": ({"messages": HELLO}, None),
    "/v1/completions": ({"prompt": "hello"}, TEXT),
    "/v1/embeddings": ({"input": "hello"}, EMBEDDED),
    "/v1/responses": ({"input": "hello"}, RESPONSE),
}


@pytest.mark.parametrize("url", DOORS)
def test_a_result_is_what_the_door_answers(url, tmp_path):
    more, body = DOORS[url]
    body = (
        None
        if body is None
        else b"\xef\xbb\xbf" + json.dumps(body, indent=1).replace("\n", "\r\n").encode()
    )  # one line all the same
    asking = {"model": "openai/m", "x_own": [1.0, 1e5], **more}
    with Vendor(Scripted(body=body)) as vendor:
        path = config(tmp_path, vendor)
        answer = (
            create_app(build.router(build.settings({"OPENAI_API_KEY": "sk-v"}, path)))
            .test_client()
            .post(url, json=asking)
        )
        done = batch(
            written(tmp_path, {"custom_id": "a", "method": "POST", "url": url, "body": asking}),
            "-c",
            path,
        )
        assert (done.exit_code, done.stdout) == (0, "")
        assert (answer.status_code, vendor.seen[0].path, vendor.seen[0].body) == (
            200,
            vendor.seen[1].path,
            vendor.seen[1].body,
        )
    response = results(tmp_path)["a"]["response"]
    assert response["status_code"] == 200 and re.fullmatch("[0-9a-f]{32}", response["request_id"])
    assert response["body"] == json.loads(answer.data.decode("utf-8-sig"))


def test_a_line_of_mist_has_an_infer_response(tmp_path):
    bare = {"model": "echo-v1", "messages": HELLO}
    message = {
        "version": "1",
        "id": "6d4f",
        "source": "test",
        "type": "infer.request",
        "timestamp_ns": 1,
        "payload": bare,
    }
    assert batch(written(tmp_path, bare, message, bare | {"custom_id": "own"})).exit_code == 0
    found = results(tmp_path)
    assert set(found) == {"line-1", "6d4f", "own"}
    for each in found.values():
        assert {"content": "echo: hello", "model": "echo-v1", "tokens_in": 1}.items() <= each[
            "response"
        ]["body"].items()


SENT = {  # what its door would refuse: status and code
    "unknown model": (line("x", model="nope"), 404, "model_not_found"),
    "no model": (line("x", model=None), 400, "invalid_request"),
    "stream": (line("x", stream=True), 400, "invalid_request"),
    "no messages": (line("x", messages=[]), 400, "invalid_request"),
    "smuggled": (line("x", api_key="k"), 400, "invalid_request"),
    "of MIST": ({"custom_id": "x", "messages": 1}, 400, "invalid_request"),
    "cannot do it": (line("x", url="/v1/embeddings", input="a"), 400, "unsupported_parameter"),
}


@pytest.mark.parametrize(("bad", "status", "code"), SENT.values(), ids=SENT)
def test_a_failing_line_is_a_result_and_not_the_end(bad, status, code, tmp_path):
    done = batch(written(tmp_path, bad, line("good")), "--concurrency", "1")
    assert (done.exit_code, list(results(tmp_path))) == (0, ["x", "good"])
    response = results(tmp_path)["x"]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (status, code)
    assert re.match("2 lines: 1 ok, 1 failed; ", done.stderr)


UNSENT = {  # no lines of a batch
    "not JSON": (b"{bad", "line-1"),
    "not UTF-8": (b'{"custom_id":"\xff"}', "line-1"),
    "a list": ([1], "line-1"),
    "nothing known": ({"a": 1}, "line-1"),
    "NaN": (b'{"custom_id":"x","a":NaN}', "line-1"),
    "twice": (b'{"custom_id":"x","custom_id":"y"}', "line-1"),
    "no body": ({"custom_id": "x", "method": "POST", "url": "/v1/completions"}, "x"),
    "custom_id": (line("") | {"custom_id": 7}, "line-1"),
    "empty custom_id": (line(""), "line-1"),
    "long custom_id": (line("x" * 513), "line-1"),
    "method": (line("x") | {"method": "GET"}, "x"),
    "url": (line("x", url="/v1/files"), "x"),
    "no url": (line("x") | {"url": None}, "x"),
    "type": ({"id": "x", "version": "1", "source": "s", "type": "trace.span", "payload": {}}, "x"),
    "too long": (b'{"custom_id":"' + b"x" * (33 * 2**20) + b'"}', "line-1"),
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("bad", "name"), UNSENT.values(), ids=UNSENT)
def test_what_is_no_line_of_a_batch_is_named(bad, name, tmp_path):
    assert batch(written(tmp_path, bad, b"", b"  ", line("good"))).exit_code == 0
    found = results(tmp_path)
    assert set(found) == {name, "good"}
    assert found[name]["response"] is None and found[name]["error"]["message"].startswith(
        "line 1: "
    )
    assert found["good"]["response"]["status_code"] == 200


def test_the_second_of_two_lines_with_one_custom_id_fails(tmp_path):
    source = written(tmp_path, line("a"), line("a"), line("line-4"), line())
    assert batch(source).exit_code == 0
    found = [json.loads(each) for each in (tmp_path / "out.jsonl").read_text().splitlines()]
    good = sorted((each["id"].split("_")[2], each["error"] is None) for each in found)
    assert good == [("1", True), ("2", False), ("3", True), ("4", False)]


def test_hostile_names_stay_in_their_places(tmp_path):
    names = ['a"b', "\u2028\x85\n\r\0", "\\", '","response":null', "grüß 😀"]
    assert batch(written(tmp_path, *map(line, names))).exit_code == 0
    before = results(tmp_path)
    assert set(before) == set(names) and (tmp_path / "out.jsonl").read_bytes().count(b"\n") == len(
        names
    )
    assert "0 lines" in batch(tmp_path / "in.jsonl").stderr and results(tmp_path) == before


def test_model_is_asked_instead_of_each_lines_own(tmp_path, vendor):
    body = {"messages": HELLO, "seed": 1e5}
    source = written(
        tmp_path,
        line("a"),
        {"custom_id": "b", "method": "POST", "url": "/v1/chat/completions", "body": body},
        {"custom_id": "c", "model": "echo-v1", "messages": HELLO},
    )
    assert batch(source, "--model", "openai/m", "-c", config(tmp_path, vendor)).exit_code == 0
    assert [each.body["model"] for each in vendor.seen] == ["m"] * 3
    assert {each["response"]["status_code"] for each in results(tmp_path).values()} == {200}


@pytest.mark.slow
def test_dashes_are_standard_input_and_output():
    done = run(
        [*script("infermux"), "batch", "-", "-o", "-", "-q"],
        given=json.dumps(line("a")) + "\n" + json.dumps(line("b")),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(json.loads(each)["custom_id"] for each in done.stdout.splitlines()) == ["a", "b"]


# -- patience --------------------------------------------------------------------------------------

BUSY = {"throttled": [Scripted(429, {}, {"Retry-After": "1"})], "down": [Scripted(500, {})] * 2}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("trouble", BUSY.values(), ids=BUSY)
def test_a_vendor_that_has_no_room_for_now_is_waited_for(trouble, tmp_path):
    """Else a vendor that throttles for a second would cost every line that is read in that second."""
    with Vendor(*trouble, Scripted()) as vendor:
        path = config(
            tmp_path,
            vendor,
            "[reliability]\nattempts = 1\ncircuit_breaker = { failures = 1, open = 1 }",
        )
        done = batch(written(tmp_path, *questions(12)), "-c", path, "--concurrency", "4")
        assert done.exit_code == 0
    states = Counter(each["response"]["status_code"] for each in results(tmp_path).values())
    assert states[200] >= 12 - sum(each.status == 500 for each in trouble) and not {429, 503} & set(
        states
    )


@pytest.mark.slow
def test_what_no_target_can_do_is_not_waited_for(tmp_path, vendor):
    path = config(tmp_path, vendor, '[providers.openai.unsupported]\nm = ["tools"]')
    source = written(
        tmp_path,
        line("a", model="openai/m", tools=[{"type": "function", "function": {"name": "f"}}]),
    )
    assert (
        run(
            [
                *script("infermux"),
                "batch",
                str(source),
                "-o",
                str(tmp_path / "out.jsonl"),
                "-c",
                path,
            ],
            env={"OPENAI_API_KEY": "sk-v"},
        ).returncode
        == 0
    )
    assert results(tmp_path)["a"]["response"]["status_code"] == 503 and vendor.seen == []


# -- going on --------------------------------------------------------------------------------------


def finished(folder: Path) -> set[str]:
    """Return the custom_ids of the whole lines in the output."""
    out = folder / "out.jsonl"
    lines = (out.read_bytes() if out.exists() else b"").splitlines(keepends=True)
    return {json.loads(each)["custom_id"] for each in lines if each.endswith(b"\n")}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_kill_at_any_moment_loses_nothing_and_repeats_nothing_that_was_finished(seed, tmp_path):
    rng, lines, concurrency = random.Random(seed), 120, 4
    with Vendor(Scripted(delay=0.003)) as vendor:
        args = ["-c", config(tmp_path, vendor), "--concurrency", str(concurrency)]
        source, kills = written(tmp_path, *questions(lines)), 0
        for most in sorted(rng.sample(range(1, lines), 3)):
            before, had = asked(vendor), finished(tmp_path)
            with started(source, *args) as process:
                eventually(
                    lambda most=most: (
                        sum(asked(vendor).values()) >= most or process.poll() is not None
                    )
                )
                process.kill()
            kills += 1
            assert had <= finished(tmp_path)
            assert all(asked(vendor)[name] == before[name] for name in had), (
                "a finished line was asked again"
            )
        assert batch(source, *args).exit_code == 0
        assert lines <= sum(asked(vendor).values()) <= lines + kills * concurrency
    assert {
        name: each["response"]["body"]["choices"][0]["message"]["content"]
        for name, each in results(tmp_path).items()
    } == {f"q{n}": f"q{n}" for n in range(lines)}


@pytest.mark.parametrize("rest", [1, 20, 200], ids=lambda rest: f"{rest} bytes")
def test_a_result_that_was_cut_off_is_asked_again(rest, tmp_path, vendor):
    args = ["-c", config(tmp_path, vendor), "--concurrency", "1"]
    source, out = written(tmp_path, *questions(3)), tmp_path / "out.jsonl"
    batch(source, *args)
    whole = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(whole[:2]) + whole[2][:rest])
    assert batch(source, *args).exit_code == 0
    assert asked(vendor) == {"q0": 1, "q1": 1, "q2": 2} and set(results(tmp_path)) == {
        "q0",
        "q1",
        "q2",
    }


def test_lines_that_were_added_are_asked_and_no_others(tmp_path, vendor):
    args = ["-c", config(tmp_path, vendor)]
    batch(written(tmp_path, *questions(3)), *args)
    done = batch(written(tmp_path, *questions(5)), *args)
    assert asked(vendor) == {f"q{n}": 1 for n in range(5)} == dict.fromkeys(results(tmp_path), 1)
    assert "2 lines: 2 ok" in done.stderr and "with 3 earlier results" in done.stderr


FOREIGN = {
    "another line": lambda folder: written(folder, line("q0", seed=1), *questions(3)[1:]),
    "another order": lambda folder: written(folder, *reversed(questions(3))),
    "fewer lines": lambda folder: written(folder, *questions(2)),
    "no results": lambda folder: (folder / "out.jsonl").write_text('{"my": "notes"}\n'),
    "no results and no end of line": lambda folder: (folder / "out.jsonl").write_text("my notes"),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("other", FOREIGN.values(), ids=FOREIGN)
def test_results_of_another_input_are_refused_and_left_alone(other, tmp_path, vendor):
    args = ["-c", config(tmp_path, vendor)]
    batch(written(tmp_path, *questions(3)), *args)
    other(tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    for more in ([], ["--retry-failed"]):
        done = batch(tmp_path / "in.jsonl", *args, *more)
        assert done.exit_code == 1 and re.fullmatch(
            r"infermux: .*out\.jsonl: [^\n]+\n", done.stderr
        )
    assert (tmp_path / "out.jsonl").read_bytes() == before and len(vendor.seen) == 3


def test_going_on_needs_an_input_that_can_be_read_twice(tmp_path):
    source = written(tmp_path, line("a"))
    batch(source)
    done = batch("-", "-o", str(tmp_path / "out.jsonl"), given=source.read_bytes())
    assert done.exit_code == 1 and "whose input is a file" in done.stderr


def test_failed_lines_are_asked_again_where_that_is_wished(tmp_path):
    with Vendor(Scripted(), Scripted(400, {}), Scripted(400, {}), Scripted()) as vendor:
        args = ["-c", config(tmp_path, vendor), "--concurrency", "1"]
        source = written(tmp_path, *questions(3), b"{bad", line("q0"))
        for more, times in (([], 1), ([], 1), (["--retry-failed"], 2)):
            assert batch(source, *args, *more).exit_code == 0
            assert asked(vendor) == {"q0": 1, "q1": times, "q2": times}
    found = [json.loads(each) for each in (tmp_path / "out.jsonl").read_bytes().splitlines()]
    assert sorted(
        (each["custom_id"], (each["response"] or {}).get("status_code"))
        for each in found
        if each["response"]
    ) == [("q0", 200), ("q1", 200), ("q2", 200)]
    assert len(found) == 5 and not list(tmp_path.glob("*.part"))


def test_a_line_that_was_corrected_may_have_two_results(tmp_path):
    """A run that tries failed lines again, and is killed, leaves both: the last one counts."""
    out = tmp_path / "out.jsonl"
    batch(written(tmp_path, line("a"), line("b", model="nope")))
    failed = out.read_bytes()
    corrected = written(tmp_path, line("a"), line("b"))
    batch(corrected, "--retry-failed")
    [good] = [each for each in out.read_bytes().splitlines(True) if b'"b"' in each]
    for more in ([], ["--retry-failed"]):
        out.write_bytes(failed + good)
        done = batch(corrected, *more)
        assert (done.exit_code, "0 lines: " in done.stderr) == (0, True), done.stderr
        assert {
            name: each["response"]["status_code"] for name, each in results(tmp_path).items()
        } == {
            "a": 200,
            "b": 200,
        }
        assert out.read_bytes().count(b"\n") == 2
    out.write_bytes(failed + good)
    again = batch(written(tmp_path, line("a"), line("b", seed=1)))
    assert again.exit_code == 1 and "another input" in again.stderr


def test_two_runs_do_not_write_to_one_file(tmp_path):
    source = written(tmp_path, line("a"))
    with (tmp_path / "out.jsonl").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = batch(source)
    assert done.exit_code == 1 and "another run" in done.stderr and finished(tmp_path) == set()


# -- stopping --------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_lets_lines_in_flight_end(number, tmp_path):
    gate = threading.Event()
    with Vendor(Scripted(after=gate)) as vendor:
        args = ["-c", config(tmp_path, vendor), "--concurrency", "3"]
        source = written(tmp_path, *questions(20))
        with started(source, *args) as process:
            eventually(lambda: len(vendor.seen) == 3)
            process.send_signal(number)
            assert (
                process.stderr is not None
                and b"finishing lines in flight"
                in process.stderr.readline() + process.stderr.readline()
            )
            gate.set()
            said = process.stderr.read()
            assert process.wait(PATIENCE) == 130
        assert b"3 lines: 3 ok" in said and b"run the same command to continue" in said
        assert len(vendor.seen) == 3 == len(results(tmp_path))
        assert batch(source, *args).exit_code == 0
        assert (
            asked(vendor) == {f"q{n}": 1 for n in range(20)} == dict.fromkeys(results(tmp_path), 1)
        )


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait(tmp_path):
    gate = threading.Event()
    with (
        Vendor(Scripted(after=gate)) as vendor,
        started(written(tmp_path, *questions(3)), "-c", config(tmp_path, vendor)) as process,
    ):
        eventually(lambda: len(vendor.seen) == 3)
        process.send_signal(signal.SIGINT)
        assert (
            process.stderr is not None
            and b"finishing lines in flight"
            in process.stderr.readline() + process.stderr.readline()
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        gate.set()
    assert finished(tmp_path) == set()


@pytest.mark.slow
def test_a_signal_stops_a_run_that_waits_for_its_input(tmp_path):
    command = [*script("infermux"), "batch", "-", "-o", str(tmp_path / "out.jsonl")]
    with subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(line("a")).encode() + b"\n")
        process.stdin.flush()
        eventually(lambda: finished(tmp_path) == {"a"})
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130
        assert process.stderr is not None and b"1 ok" in process.stderr.read()


def test_an_output_that_takes_no_more_is_the_end(tmp_path):
    done = batch(written(tmp_path, *[line(f"{n}") for n in range(50)]), "-o", "/dev/full")
    assert done.exit_code == 1 and re.fullmatch(
        r"infermux: /dev/full: No space left on device\n", done.stderr
    )


# -- money -----------------------------------------------------------------------------------------


def test_the_budget_is_never_passed_and_a_larger_one_goes_on(tmp_path, vendor):
    """A line costs 0.002003 USD and at most 0.0501 before that is known."""
    args = ["-c", config(tmp_path, vendor), "--concurrency", "8"]
    source = written(tmp_path, *questions(60, max_tokens=50))
    first = batch(source, *args, "--budget", "0.1")
    sent = len(vendor.seen)
    assert first.exit_code == 3 and "does not cover the next line" in first.stderr
    assert (
        20 <= sent == len(results(tmp_path)) <= 25
    )  # until 0.05 is left, whatever eight lines at once may cost
    assert f"${sent * 0.002003:.6f}; " in first.stderr
    assert batch(source, *args, "--budget", "0.1").exit_code == 3
    assert len(vendor.seen) == sent  # what the first run spent counts
    assert batch(source, *args, "--budget", "0.2").exit_code == 0
    assert asked(vendor) == {f"q{n}": 1 for n in range(60)} == dict.fromkeys(results(tmp_path), 1)


@pytest.mark.parametrize(
    "more",
    [{}, {"n": 2, "max_tokens": 50}, {"max_output_tokens": 101}, {"tools": ["x" * 10**6]}],
    ids=str,
)
def test_a_line_whose_worst_case_does_not_fit_is_not_sent(more, tmp_path, vendor):
    done = batch(
        written(tmp_path, *questions(1, **more)), "-c", config(tmp_path, vendor), "--budget", "0.1"
    )
    assert (done.exit_code, vendor.seen, finished(tmp_path)) == (3, [], set())


def test_what_failed_attempts_are_assumed_to_cost_is_held_before_the_next(tmp_path):
    """A request is counted as 0.9 USD at least and held as 1.1 at most; a line has two attempts."""
    body = {"messages": [{"role": "user", "content": "!a" * 500}], "max_tokens": 1}
    source = written(tmp_path, *[line(f"q{n}", model="openai/m", **body) for n in range(9)])
    with Vendor(Scripted(body=b'{"id": "c"')) as vendor:  # it has worked, and cannot be read
        path = config(
            tmp_path,
            vendor,
            "[reliability]\nattempts = 2",
            prices='{ m = { input = "1000", output = "1" } }',
        )
        args = ["-c", path, "--concurrency", "3", "--budget", "3.5"]
        for more in ([], ["--retry-failed"], ["--retry-failed"]):  # no cost is forgotten
            assert batch(source, *args, *more).exit_code == 3
            spent = [int(each["id"].split("_")[-1]) for each in results(tmp_path).values()]
            assert 2 <= len(vendor.seen) <= 3
            assert 0.9 * len(vendor.seen) * 10**12 <= sum(spent) <= 3.5 * 10**12


def test_a_line_that_a_cheaper_target_has_answered_is_done(tmp_path):
    """After the first target failed, there is no room for the second."""
    prices = ", ".join(
        f'{model} = {{ input = "{usd}", output = "1" }}'
        for model, usd in (("a", 1000), ("b", 3000), ("c", 1))
    )
    body = {"messages": [{"role": "user", "content": "!a" * 500}], "max_tokens": 1}
    with Vendor(Scripted(body=b'{"id": "c"'), Scripted()) as vendor:
        names = '[models]\nall = ["openai/a", "openai/b", "openai/c"]'
        path = config(tmp_path, vendor, names, prices=f"{{ {prices} }}")
        source = written(tmp_path, line("q", model="all", **body))
        done = batch(source, "-c", path, "--budget", "3.5")
    assert [each.body["model"] for each in vendor.seen] == ["a", "c"]
    assert (done.exit_code, done.stderr.count("1 ok")) == (0, 1), done.stderr


def test_a_kill_while_failures_are_tried_again_forgets_no_cost(tmp_path):
    body = {"messages": [{"role": "user", "content": "!a" * 500}], "max_tokens": 1}
    source = written(tmp_path, *[line(f"q{n}", model="openai/m", **body) for n in range(3)])
    gate, unreadable = threading.Event(), Scripted(body=b'{"id": "c"')

    def spent() -> int:
        return sum(int(each["id"].split("_")[-1]) for each in results(tmp_path).values())

    with Vendor(*[unreadable] * 3, Scripted(), Scripted(after=gate)) as vendor:
        more = "[reliability]\nattempts = 1"
        path = config(tmp_path, vendor, more, prices='{ m = { input = "1000", output = "1" } }')
        args = ["-c", path, "--concurrency", "1"]
        assert batch(source, *args).exit_code == 0
        before = spent()
        with started(source, *args, "--retry-failed") as process:
            eventually(lambda: len(vendor.seen) == 5)
            process.kill()
        gate.set()
        for again, code in (([], 0), (["--retry-failed"], 3)):  # the budget is spent
            assert batch(source, *args, "--budget", "0.1", *again).exit_code == code
            assert spent() > before > 2 * 10**12 and len(vendor.seen) == 5
        assert batch(source, *args, "--retry-failed").exit_code == 0
        assert len(results(tmp_path)) == 3 and spent() > before and len(vendor.seen) == 7
        assert not list(tmp_path.glob("out.jsonl?*"))


def test_a_budget_needs_prices(tmp_path, vendor):
    done = batch(
        written(tmp_path, *questions(3)),
        "-c",
        config(tmp_path, vendor, prices="{}"),
        "--budget",
        "1",
    )
    assert (done.exit_code, vendor.seen, finished(tmp_path)) == (1, [], set())
    assert re.fullmatch(
        r"infermux: line \d: the price of 'openai/m' is unknown[^\n]*\[providers.openai\][^\n]*\n",
        done.stderr,
    )


def test_what_turns_out_to_have_no_price_has_cost_what_was_held(tmp_path):
    heard = {"prompt_tokens_details": {"audio_tokens": 2}}  # which have no price here
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5} | heard
    said = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop", "index": 0}
    answer = {"object": "chat.completion", "model": "m", "choices": [said], "usage": usage}
    lines = [line("gone", model="nowhere/x"), *questions(2, max_tokens=50)]
    with Vendor(Scripted(body=answer)) as vendor:
        args = ["-c", config(tmp_path, vendor), "--concurrency", "1", "--budget", "0.06"]
        done = batch(written(tmp_path, *lines), *args)
    assert (done.exit_code, len(vendor.seen)) == (3, 1)  # 50 tokens are 0.05 USD
    assert "1 ok, 1 failed" in done.stderr and "and 1 unpriced" in done.stderr
    assert results(tmp_path)["gone"]["response"]["status_code"] == 404
    assert int(results(tmp_path)["q0"]["id"].split("_")[-1]) > 5 * 10**10


def test_a_target_without_a_price_is_passed_over_under_a_budget(tmp_path, vendor):
    path = config(tmp_path, vendor, '[models]\nboth = ["openai/unpriced", "openai/m"]')
    assert (
        batch(
            written(tmp_path, line("a", max_tokens=5)),
            "--model",
            "both",
            "--budget",
            "1",
            "-c",
            path,
        ).exit_code
        == 0
    )
    assert len(vendor.seen) == 1


def test_what_has_no_price_is_counted(tmp_path, vendor):
    done = batch(
        written(tmp_path, *questions(3), line("e")), "-c", config(tmp_path, vendor, prices="{}")
    )
    assert "10 tokens in, 8 out; $0.00003 and 3 unpriced; " in done.stderr


@pytest.mark.parametrize("amount", ["0", "-1", "much", "NaN", "1e12", ""])
def test_a_budget_is_an_amount(amount, tmp_path):
    assert batch(written(tmp_path, line("a")), "--budget", amount).exit_code == 2


# -- usage, view, memory ---------------------------------------------------------------------------


def test_input_and_output_are_two_files(tmp_path):
    source = written(tmp_path, line("a"))
    before = source.read_bytes()
    assert batch(source, "-o", str(source)).exit_code == 2 and source.read_bytes() == before


def test_an_input_that_is_not_there_is_one_line(tmp_path):
    done = batch(tmp_path / "none.jsonl")
    assert done.exit_code == 1 and re.fullmatch(
        r"infermux: .*none\.jsonl: No such file or directory\n", done.stderr
    )
    assert not (tmp_path / "out.jsonl").exists()


def test_a_terminal_sees_how_far_it_is(tmp_path):
    ours, theirs = pty.openpty()
    gate = threading.Event()
    with Vendor(Scripted(), Scripted(400, {}), Scripted(after=gate)) as vendor:
        source = written(tmp_path, *questions(4))
        with started(
            source, "-c", config(tmp_path, vendor), "--concurrency", "1", stderr=theirs
        ) as process:
            os.close(theirs)
            seen = b""
            while b"2 lines" not in seen:  # the third is held back
                seen += os.read(ours, 4096)
            gate.set()
            assert process.wait(PATIENCE) == 0
        seen += os.read(ours, 65536)
        os.close(ours)
    assert re.search(
        rb"\[#+\.+\]   (?:49|50)%  (?:\d\d:\d\d:\d\d  )?2 lines  [\d.]+/s  1 failed  \$0\.0020",
        seen,
    )
    assert b"]  100%" in seen
    assert seen.endswith(b"\r\n") and b"4 lines: 3 ok, 1 failed" in seen


def test_quiet_says_nothing(tmp_path):
    done = batch(written(tmp_path, line("a"), b"{bad"), "--quiet")
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.slow
def test_memory_does_not_grow_with_the_lines(tmp_path):
    """25 MB of lines, most of them no requests so that it is quick; then the same once more, all of
    them skipped.
    """
    bad, good = (
        b'{"pad": "%s"}\n' % (b"x" * 1000),
        json.dumps(line(messages=[{"role": "user", "content": "x" * 1000}])).encode() + b"\n",
    )
    source = tmp_path / "in.jsonl"
    peaks = []
    for count in (40, 500, 500):
        with source.open("wb") as file:
            for _ in range(count):
                file.write(good + bad * 49)
        process = started(source, "-q", "--concurrency", "8")
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.stderr is not None and (process.returncode, process.stderr.read()) == (
            0,
            b"",
        )
        process.stderr.close()
        peaks.append(used.ru_maxrss)  # KiB
    assert max(peaks) - peaks[0] < 6 * 1024, peaks
