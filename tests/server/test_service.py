"""Tests of the service as a new user starts it: real gunicorn in the clone, HTTP and TokenTrace."""

import contextlib
import json
import random
import re
import resource
import signal
import socket
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import (
    HELLO,
    PATIENCE,
    Answer,
    Scripted,
    Service,
    TokenTrace,
    Vendor,
    ask,
    eventually,
    nobody,
    run,
    script,
)

ECHO = {
    "model": "echo-v1",
    "provider": "echo",
    "content": "echo: hello",
    "tokens_in": 1,
    "tokens_out": 2,
    "cost_usd": 0.00003,
    "latency_ms": 1,
    "finish_reason": "stop",
}
MAX_BODY = 32 * 1024 * 1024
MAX_MESSAGE = 10 * 1024 * 1024


@pytest.fixture(scope="module")
def service():
    with Service() as running:
        yield running


def said(content: object) -> dict[str, object]:
    return {"model": "echo-v1", "messages": [{"role": "user", "content": content}]}


def message(payload: bytes | object, **fields: object) -> bytes:
    """Return a MIST message around *payload*, its bytes as they are; a field of None is left out."""
    head = {
        "version": "1",
        "id": "00112233445566778899aabbccddeeff",
        "source": "test",
        "type": "infer.request",
        "timestamp_ns": 1,
    }
    text = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    head = {name: value for name, value in (head | fields).items() if value is not None}
    return json.dumps(head).encode()[:-1] + b', "payload": ' + text + b"}"


def is_error(answer: Answer, status: int, code: str) -> str:
    """Check that *answer* is an error in JSON; return its message."""
    assert (answer.status, answer.headers["Content-Type"]) == (status, "application/json"), answer
    assert set(answer.json) == {"error"} and set(answer.json["error"]) == {
        "message",
        "type",
        "code",
    }
    assert answer.json["error"]["code"] == code
    assert answer.json["error"]["message"]
    return answer.json["error"]["message"]


# -- three endpoints -------------------------------------------------------------------------------


def test_infer_answers_in_the_protocols_order(service):
    answer = service.ask("/infer", HELLO)
    assert answer.status == 200
    assert list(answer.json.items()) == list(ECHO.items())


@pytest.mark.parametrize("model", ["", "auto", "echo", "echo-v1", "echo/echo-v1", None])
def test_each_way_to_name_the_echo_model(service, model):
    asked = {name: value for name, value in (HELLO | {"model": model}).items() if value is not None}
    assert service.ask("/infer", asked).json["model"] == "echo-v1"


def test_mist_answers_a_message_with_a_message(service):
    answer = service.ask("/mist", message(HELLO))
    reply = answer.json
    assert answer.status == 200
    assert list(reply) == ["version", "id", "source", "type", "timestamp_ns", "payload"]
    assert (reply["version"], reply["source"], reply["type"]) == ("1", "infermux", "infer.response")
    assert re.fullmatch(r"[0-9a-f]{32}", reply["id"])
    assert abs(reply["timestamp_ns"] - time.time_ns()) < 60 * 10**9
    assert list(reply["payload"].items()) == list(ECHO.items())


@pytest.mark.parametrize(
    "payload",
    [
        json.dumps(HELLO).encode(),
        json.dumps(HELLO, indent=3).encode(),
        json.dumps(said("grüß Gott 😀"), ensure_ascii=False).encode(),
    ],
    ids=["one line", "indented", "UTF-8"],
)
def test_the_checksum_is_that_of_the_bytes_as_received(service, payload):
    answer = service.ask("/mist", message(payload, checksum=zlib.crc32(payload)))
    assert answer.status == 200
    sent = re.fullmatch(rb'.*"payload":(\{.*\}),"checksum":(\d+)\}\n', answer.data, re.S)
    assert sent and int(sent[2]) == zlib.crc32(sent[1])


def test_providers_lists_echo(service):
    answer = service.ask("/providers")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.data == b'{"providers":[{"name":"echo","models":["echo-v1"]}]}\n'


@pytest.mark.slow
def test_providers_of_the_environment_come_in_their_order_with_echo_last():
    with (
        Vendor() as vendor,
        Service(
            env=vendor.env | {"GROQ_API_KEY": "gsk-test", "OLLAMA_HOST": "127.0.0.1:1"}
        ) as service,
    ):
        names = [each["name"] for each in service.ask("/providers").json["providers"]]
        assert names == ["openai", "groq", "ollama", "echo"]
        answer = service.ask(
            "/infer",
            {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "ask the vendor"}]},
        )
        assert (answer.json["provider"], answer.json["content"], answer.json["tokens_in"]) == (
            "openai",
            "ask the vendor",
            3,
        )
        assert vendor.seen[0].path == "/v1/chat/completions"
        assert vendor.seen[0].headers["authorization"] == "Bearer sk-test-vendor"


# -- what is refused -------------------------------------------------------------------------------

DEEP = b"[" * 100_000 + b"]" * 100_000
NOT_JSON = {  # what no JSON reader may let through
    "nothing": (b"", "empty"),
    "blank": (b" \n", "empty"),
    "words": (b"hello", "not JSON"),
    "cut": (b'{"model": "echo-v1', "not JSON"),
    "not UTF-8": (b'{"model": "\xff\xfe"}', "not UTF-8"),
    "latin-1": ('{"model": "ü"}'.encode("latin-1"), "not UTF-8"),
    "NaN": (b'{"messages": [], "params": {"temperature": NaN}}', "NaN"),
    "-Infinity": (b'{"params": -Infinity}', "Infinity"),
    "1e999": (b'{"params": {"temperature": 1e999}}', "too large"),
    "5,000 digits": (b'{"params": {"n": %s}}' % (b"9" * 5000), "too large"),
    "duplicate key": (b'{"model": "a", "model": "b"}', "duplicate key 'model'"),
    "duplicate inside": (
        b'{"messages": [{"role": "user", "role": "user"}]}',
        "duplicate key 'role'",
    ),
    "escaped duplicate": (b'{"model": "a", "m\\u006fdel": "b"}', "duplicate key 'model'"),
    "100,000 arrays": (DEEP, ""),
    "100,000 arrays inside": (b'{"messages": %s}' % DEEP, "nested too deeply"),
    "100,000 open arrays": (b'{"messages": ' + b"[" * 100_000, ""),
    "100,000 objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deeply"),
    "lone surrogate": (b'{"model": "\\ud800"}', "surrogate"),
    "more after the end": (b'{"messages": []} {}', "not JSON"),
    "comma": (b'{"messages": [],}', "not JSON"),
    "control character": (b'{"model": "a\x00"}', "not JSON"),
    "a list": (b"[]", "object"),
    "a string": (b'"hello"', "object"),
    "null": (b"null", "object"),
    "a number": (b"1", "object"),
}
USER = {"role": "user", "content": "hello"}
WRONG_REQUESTS = {  # a field of the request and its wrong value -> what the message names
    "empty messages": ({"messages": []}, "messages"),
    "no messages": ({"messages": None}, "messages"),
    "messages is text": ({"messages": "hello"}, "messages"),
    "messages is 0": ({"messages": 0}, "messages"),
    "messages is an object": ({"messages": {"role": "user"}}, "messages"),
    "message is text": ({"messages": ["hello"]}, "messages[0]"),
    "message is null": ({"messages": [USER, None]}, "messages[1]"),
    "role is a number": ({"messages": [USER | {"role": 1}]}, "role"),
    "role is a list": ({"messages": [USER | {"role": ["user"]}]}, "role"),
    "no role": ({"messages": [{"content": "hello"}]}, "role"),
    "role is null": ({"messages": [USER | {"role": None}]}, "role"),
    "content is a number": ({"messages": [USER | {"content": 5}]}, "content"),
    "content is an object": ({"messages": [USER | {"content": {}}]}, "content"),
    "no content": ({"messages": [{"role": "user"}]}, "content"),
    "part is text": ({"messages": [USER | {"content": ["hello"]}]}, "content[0]"),
    "part type is a list": ({"messages": [USER | {"content": [{"type": []}]}]}, "content[0]"),
    "tool_calls is text": ({"messages": [USER | {"tool_calls": "x"}]}, "tool_calls"),
    "unhashable model": ({"model": ["echo-v1"]}, "model"),
    "model is an object": ({"model": {}}, "model"),
    "model is a number": ({"model": 0}, "model"),
    "model is true": ({"model": True}, "model"),
    "unhashable provider": ({"provider": ["echo"]}, "provider"),
    "provider is false": ({"provider": False}, "provider"),
    "params is a list": ({"params": []}, "params"),
    "params is text": ({"params": "x"}, "params"),
    "meta is a list": ({"meta": []}, "meta"),
    "meta value is a number": ({"meta": {"user": 1}}, "user"),
    "meta value is null": ({"meta": {"traceparent": None}}, "meta"),
    "model of 10,000 letters": ({"model": "m" * 10_000}, "model"),
}
UNKNOWN = {
    "unknown model": ({"model": "echo-v2"}, "echo-v1"),
    "unknown provider": ({"provider": "ecko"}, "echo"),
    "500 letters": ({"model": "m" * 500}, "mmm"),
    "a line break": ({"model": "a\r\nb"}, "\\r\\n"),
}


@pytest.mark.parametrize(("body", "reason"), NOT_JSON.values(), ids=NOT_JSON)
@pytest.mark.parametrize("path", ["/infer", "/mist"])
def test_what_is_not_a_json_object_is_400(service, path, body, reason):
    code = "invalid_request" if path == "/infer" else "invalid_message"
    assert reason in is_error(service.ask(path, body), 400, code)


@pytest.mark.parametrize(("wrong", "named"), WRONG_REQUESTS.values(), ids=WRONG_REQUESTS)
def test_a_wrong_field_is_400_and_named_at_both_doors(service, wrong, named):
    for answer in (
        service.ask("/infer", HELLO | wrong),
        service.ask("/mist", message(HELLO | wrong)),
    ):
        assert named in is_error(answer, 400, "invalid_request")


@pytest.mark.parametrize(("wrong", "named"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_unknown_name_is_404_with_close_matches(service, wrong, named):
    text = is_error(service.ask("/infer", HELLO | wrong), 404, "model_not_found")
    assert named in text
    assert len(text) < 400


WRONG_MESSAGES = {  # fields of the envelope -> the reason
    "no version": ({"version": None}, "version is missing"),
    "version 2": ({"version": "2"}, "unsupported version"),
    "version is a number": ({"version": 1}, "version must be a string"),
    "no id": ({"id": None}, "id is missing"),
    "empty id": ({"id": ""}, "id is empty"),
    "no source": ({"source": None}, "source is missing"),
    "no type": ({"type": None}, "type is missing"),
    "type is a list": ({"type": []}, "type must be a string"),
    "timestamp is text": ({"timestamp_ns": "1"}, "timestamp_ns"),
    "timestamp is a fraction": ({"timestamp_ns": 1.5}, "timestamp_ns"),
    "checksum is text": ({"checksum": "1"}, "checksum"),
    "negative checksum": ({"checksum": -1}, "checksum"),
    "checksum true": ({"checksum": True}, "checksum"),
    "wrong checksum": ({"checksum": 1}, "checksum 1 does not match"),
    "33 bits": ({"checksum": 2**32}, "checksum"),
    "another type": ({"type": "infer.response"}, "expected type infer.request, got infer.response"),
    "type with a quote": ({"type": 'a"\n'}, "expected type infer.request, got"),
}


@pytest.mark.parametrize(("fields", "reason"), WRONG_MESSAGES.values(), ids=WRONG_MESSAGES)
def test_a_wrong_envelope_is_400_with_the_reason(service, fields, reason):
    assert reason in is_error(
        service.ask("/mist", message(HELLO, **fields)), 400, "invalid_message"
    )


def test_a_message_without_payload_is_400(service):
    body = message(HELLO).replace(b'"payload"', b'"cargo"')
    assert "payload" in is_error(service.ask("/mist", body), 400, "invalid_message")


def test_a_payload_that_was_re_encoded_does_not_match_its_checksum(service):
    tight = json.dumps(HELLO, separators=(",", ":")).encode()
    body = message(json.dumps(HELLO).encode(), checksum=zlib.crc32(tight))
    assert "checksum" in is_error(service.ask("/mist", body), 400, "invalid_message")


def test_optional_fields_of_an_envelope_may_be_left_out_and_unknown_ones_may_come(service):
    assert (
        service.ask("/mist", message(HELLO, timestamp_ns=None, checksum=0, hop=[1])).status == 200
    )


# -- bodies ----------------------------------------------------------------------------------------


def head(path: str, *lines: str) -> bytes:
    return "\r\n".join(
        (f"POST {path} HTTP/1.1", "Host: test", "Content-Type: application/json", *lines, "", "")
    ).encode()


def padded(size: int, path: str) -> bytes:
    """Return a good body of exactly *size* bytes."""
    body = json.dumps(HELLO).encode() if path == "/infer" else message(HELLO)
    return body[:-1] + b" " * (size - len(body)) + b"}"


LIMITS = [("/infer", MAX_BODY), ("/mist", MAX_MESSAGE)]


@pytest.mark.parametrize("more", [1, 2, 10**12])
@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_a_body_that_is_announced_too_long_is_413_before_it_is_read(service, path, limit, more):
    assert str(limit) in is_error(
        service.raw(head(path, f"Content-Length: {limit + more}"), end=False),
        413,
        "request_too_large",
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_a_body_as_long_as_the_limit_is_served(service, path, limit):
    assert service.ask(path, padded(limit, path)).status == 200
    assert (
        service.ask(
            path, iter([padded(limit, path)]), headers={"Transfer-Encoding": "chunked"}
        ).status
        == 200
    )


@pytest.mark.parametrize(("path", "limit"), LIMITS)
def test_a_chunked_body_over_the_limit_is_413(service, path, limit):
    """Cut at the limit it would be whole JSON: one byte of white space too many."""
    body = padded(limit, path) + b" "
    answer = service.raw(
        head(path, "Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body),
        end=False,
    )
    is_error(answer, 413, "request_too_large")


@pytest.mark.slow
def test_the_limit_is_configured():
    with Service(
        env={"INFERMUX_SERVER__MAX_BODY": "1000", "INFERMUX_SERVER__WORKERS": "1"}
    ) as service:
        for path in ("/infer", "/mist"):
            assert service.ask(path, padded(1000, path)).status == 200
            is_error(service.ask(path, padded(1001, path)), 413, "request_too_large")


BROKEN = {
    "Content-Length": (["Content-Length: 500"], b'{"model": "echo-v1"}'),
    "whole JSON": (["Content-Length: 500"], json.dumps(HELLO).encode()),
    "nothing came": (["Content-Length: 500"], b""),
    "chunk cut": (["Transfer-Encoding: chunked"], b"500\r\n" + json.dumps(HELLO).encode()),
    "no last chunk": (
        ["Transfer-Encoding: chunked"],
        b"%x\r\n%s\r\n" % (len(json.dumps(HELLO)), json.dumps(HELLO).encode()),
    ),
    "size is no number": (["Transfer-Encoding: chunked"], b"zz\r\n{}\r\n0\r\n\r\n"),
    "size is negative": (["Transfer-Encoding: chunked"], b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than its size": (["Transfer-Encoding: chunked"], b"2\r\n{}XX\r\n0\r\n\r\n"),
    "bad trailer": (["Transfer-Encoding: chunked"], b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n"),
}


@pytest.mark.parametrize(("lines", "body"), BROKEN.values(), ids=BROKEN)
def test_a_body_shorter_than_announced_or_in_broken_chunks_is_400(service, lines, body):
    is_error(service.raw(head("/infer", *lines) + body), 400, "invalid_request")


ODD_HEADS = {
    "two lengths": (400, "Content-Length: 2", "Content-Length: 3"),
    "a length and chunks": (400, "Content-Length: 2", "Transfer-Encoding: chunked"),
    "an unknown coding": (501, "Transfer-Encoding: xchunked"),
    "a folded line": (400, "X-A: b", " c"),
    "a space in a name": (400, "Content-Length : 2"),
    "a signed length": (400, "Content-Length: +2"),
    "a place that is not the path's": (400, "SCRIPT_NAME: /v1", "Content-Length: 2"),
}


@pytest.mark.parametrize(("status", "lines"), [(each[0], each[1:]) for each in ODD_HEADS.values()])
def test_an_odd_head_is_refused_with_all_that_follows(service, status, lines):
    before = service.log.count("Traceback")
    data = head("/infer", *lines) + b"{}" + head("/infer", "Content-Length: 2") + b"{}"
    answer = service.raw(data)
    assert answer.headers["Connection"] == "close"
    is_error(answer, status, "invalid_request")
    assert service.log.count("Traceback") == before


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, gzip"])
def test_a_compressed_body_is_415(service, encoding):
    assert encoding in is_error(
        service.ask("/infer", b"\x1f\x8b", headers={"Content-Encoding": encoding}),
        415,
        "unsupported_encoding",
    )


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_the_bodys_content_type_does_not_matter(service, kind):
    assert service.ask("/infer", HELLO, headers={"Content-Type": kind}).json == ECHO


# -- methods and addresses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        *(
            (path, method, "POST")
            for path in ("/infer", "/mist")
            for method in ("GET", "HEAD", "PUT", "PATCH", "DELETE")
        ),
        *(("/providers", method, "GET") for method in ("POST", "PUT", "PATCH", "DELETE")),
    ],
)
def test_a_wrong_method_is_405_with_allow(service, path, method, allow):
    answer = service.ask(path, b"{}" if method in ("POST", "PUT", "PATCH") else None, method=method)
    assert answer.status == 405
    assert allow in re.split(r", *", answer.headers["Allow"])
    if method != "HEAD":
        is_error(answer, 405, "method_not_allowed")


def test_head_of_providers_is_get_without_a_body(service):
    answer = service.ask("/providers", method="HEAD")
    assert (answer.status, answer.data) == (200, b"")


@pytest.mark.parametrize(
    "path",
    ["/infer/", "/nowhere", "/infer/x", "/%ff", "/static/x", "/providers/echo", "/../mist"],
)
@pytest.mark.parametrize("body", [None, b"{}"], ids=["GET", "POST"])
def test_an_unknown_address_is_404_in_json(service, path, body):
    is_error(service.ask(path, body), 404, "not_found")


def test_whatever_came_before_the_service_still_answers_and_logged_no_traceback(service):
    """Runs after all of the above: nothing was a 5xx, nothing was a bug."""
    assert service.ask("/infer", HELLO).json == ECHO
    assert "Traceback" not in service.log


def test_random_damage_is_never_a_5xx(service):
    """Bytes of a good message are changed, cut and doubled: some stay good, none breaks the
    service.
    """
    dice = random.Random(2)
    for number in range(300):
        path, good = (("/infer", json.dumps(HELLO).encode()), ("/mist", message(HELLO)))[number % 2]
        body = bytearray(good)
        for _ in range(dice.randint(1, 3)):
            start = dice.randrange(len(body))
            end = dice.randrange(start, min(len(body), start + 12) + 1)
            body[start:end] = dice.choice(
                [
                    b"",
                    bytes(dice.randbytes(2)),
                    b"null",
                    b"[]",
                    b"{}",
                    b'"',
                    b"1e9",
                    bytes(body[start:end]) * 2,
                ]
            )
            body = body or bytearray(b"x")
        answer = service.ask(path, bytes(body))
        assert answer.status in (200, 400, 404), (bytes(body), answer)
        assert answer.json


# -- many at once ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_concurrent_echoes_never_cross(service):
    def converse(number: int) -> None:
        for turn in range(25):
            text = f"{number}-{turn}-" + chr(97 + number % 26) * (number * 37 % 500)
            answer = service.ask("/infer", said(text))
            assert (answer.status, answer.json["content"]) == (200, f"echo: {text}")

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(converse, range(32)))


# -- settings --------------------------------------------------------------------------------------


def settings(**env: str) -> dict[str, str]:
    """Return what gunicorn itself says its settings are in the clone."""
    answer = run([sys.executable, "-m", "gunicorn", "--print-config", "wsgi:app"], env=env)
    assert answer.returncode == 0, answer.stderr
    return dict(re.findall(r"^(\w+) += (.*)$", answer.stdout, re.M))


@pytest.mark.slow
def test_gunicorn_finds_a_production_server():
    found = settings()
    assert (found["worker_class"], found["workers"], found["threads"]) == (
        "infermux.server.worker.Worker",
        "2",
        "1536",
    )
    assert (found["keepalive"], found["accesslog"], found["bind"]) == ("30", "None", "[':8600']")
    descriptors = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1] % 2**63, 65536)
    assert int(found["worker_connections"]) >= min(16384, descriptors - 4 * 1536)
    assert int(found["worker_connections"]) % 256 == 0
    assert int(found["graceful_timeout"]) >= 30


@pytest.mark.slow
def test_the_environment_overrides_them():
    found = settings(
        INFERMUX_SERVER__WORKERS="3",
        INFERMUX_SERVER__THREADS="10",
        INFERMUX_SERVER__GRACEFUL_TIMEOUT="7",
    )
    assert (found["workers"], found["threads"], found["graceful_timeout"]) == ("3", "10", "7")
    assert int(found["worker_connections"]) > 10 and int(found["worker_connections"]) % 10 == 0


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("variable", "value", "hint"),
    [
        ("INFERMUX_SERVER__THREDS", "4", "threads"),
        ("INFERMUX_SERVER__THREADS", "many", "whole number"),
        ("INFERMUX_SERVER__WORKERS", "0", "0"),
        ("INFERMUX_SERVR__THREADS", "4", "server"),
        ("INFERMUX_TRACE__TOKENTRACE", "localhost:8700", "http://"),
        ("OPENAI_BASE_URL", "ftp://x", "OPENAI_BASE_URL"),
        ("OPENAI_API_KEY", "sk-ä\n1", "OPENAI_API_KEY"),
    ],
)
def test_a_wrong_variable_stops_the_start_in_one_line_that_names_it(variable, value, hint):
    answer = run(
        [sys.executable, "-m", "gunicorn", "wsgi:app", "-b", "127.0.0.1:0"],
        env={"OPENAI_API_KEY": "sk-x", variable: value},
    )
    assert answer.returncode != 0
    said = [
        line
        for line in (answer.stdout + answer.stderr).splitlines()
        if variable in line and hint in line
    ]
    assert said, answer.stderr
    assert "Traceback" not in answer.stderr


HOST = """
import socket, struct, sys, os
from flask import request
from infermux import create_app
from infermux.telemetry import exporter
app = create_app()

@app.get("/about")
def about():
    sock = request.environ["gunicorn.socket"]
    seconds = [struct.unpack("ll", sock.getsockopt(socket.SOL_SOCKET, name, 16))[0] for name in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO)]
    return {"pid": os.getpid(), "switch": sys.getswitchinterval(), "seconds": seconds, "blocking": sock.gettimeout()}

@app.get("/dropped")
def dropped():
    exporter.flush_all(30)
    return {"dropped": exporter.dropped()}
"""


@pytest.fixture
def inside(tmp_path):
    """Start the service in one worker, with two addresses more that tell of its inside."""
    (tmp_path / "inside.py").write_text(HOST)

    def start(*args: str, workers: int = 1, **env: str) -> Service:
        return Service(
            *args,
            app="inside:app",
            env={"PYTHONPATH": str(tmp_path), "INFERMUX_SERVER__WORKERS": str(workers), **env},
        )

    return start


@pytest.mark.slow
def test_each_worker_switches_threads_less_often_and_bounds_its_clients(inside):
    with inside(workers=2) as service:
        seen = {}
        eventually(
            lambda: (
                seen.update({(about := service.ask("/about").json)["pid"]: about}) or len(seen) == 2
            ),
            "both workers answering",
        )
        for about in seen.values():
            assert about["switch"] == pytest.approx(0.1)
            assert all(0 < seconds <= 30 for seconds in about["seconds"])
            assert about["blocking"] is None  # else the operating system's timeouts would not count


@pytest.fixture(scope="module", autouse=True)
def starved(request):
    """The answer of a service whose every thread waits for headers: it takes its time, so it comes
    while the other tests run.
    """
    wanted = any(item.name.startswith("test_half_sent") for item in request.session.items)
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(_starve) if wanted else None


def _starve() -> tuple[Answer, str]:
    with (
        contextlib.ExitStack() as held,
        Service(env={"INFERMUX_SERVER__WORKERS": "1", "INFERMUX_SERVER__THREADS": "4"}) as service,
    ):
        for _ in range(4):
            sock = held.enter_context(
                socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            )
            sock.sendall(b"POST /infer HTTP/1.1\r\nHost: te")
        return service.ask("/infer", HELLO), service.log


def test_a_connection_is_kept_and_can_be_used_again(service):
    request = (
        head("/infer", f"Content-Length: {len(json.dumps(HELLO))}") + json.dumps(HELLO).encode()
    )
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
        for _ in range(3):
            sock.sendall(request)
            seen = b""
            while not seen.endswith(b'"finish_reason":"stop"}\n'):
                piece = sock.recv(65536)
                assert piece, "the connection was closed"
                seen += piece


def test_requests_that_come_together_are_answered_one_after_the_other(service):
    """None is on the wire any more when the first has been answered, and the body of the second is
    not read by anybody.
    """
    body = json.dumps(said("hello")).encode()
    asked, last = (
        head("/infer", f"Content-Length: {len(body)}", *more) + body
        for more in ((), ("Connection: close",))
    )
    refused = head("/nowhere", "Content-Length: 5") + b"12345"
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
        sock.sendall(asked + refused + last)
        answers = b"".join(iter(lambda: sock.recv(65536), b""))
    assert (
        re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"404", b"200"]
        and answers.count(b"echo: hello") == 2
    )


# -- spans -----------------------------------------------------------------------------------------

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BOTH_WAYS = pytest.mark.parametrize(
    "args",
    [
        pytest.param([], id="workers"),
        pytest.param(["--preload"], id="--preload", marks=pytest.mark.slow),
    ],
)


@pytest.mark.slow
@BOTH_WAYS
def test_every_call_has_one_valid_span(tokentrace, args):
    with Service(*args, env={"INFERMUX_TRACE__TOKENTRACE": tokentrace.url}) as service:
        with ThreadPoolExecutor(8) as pool:
            assert {
                answer.status
                for answer in pool.map(lambda _: service.ask("/infer", HELLO), range(40))
            } == {200}
        service.ask("/mist", message(HELLO), headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
        service.ask("/infer", HELLO | {"model": "nobody"})
        spans = tokentrace.wait(42)
        assert service.stop() == 0
    assert len(tokentrace.checked()) == 42
    good = [span for span in spans if span["status"] == "ok"]
    assert len(good) == 41 and all(span["source"] == "infermux" for span in spans)
    assert good[0]["attrs"] | {"latency_ms": 1} == {
        name: value for name, value in ECHO.items() if name != "content"
    }
    assert [(span["trace_id"], span["parent_id"]) for span in good if "parent_id" in span] == [
        (TRACE, PARENT)
    ]
    assert len({span["trace_id"] for span in spans}) == 42


@pytest.mark.slow
@BOTH_WAYS
def test_every_refused_call_has_a_valid_span_or_none(tokentrace, args):
    """What a caller sends in the wrong type must not reach TokenTrace in the wrong type."""
    with Service(*args, env={"INFERMUX_TRACE__TOKENTRACE": tokentrace.url}) as service:
        for wrong, _ in (*WRONG_REQUESTS.values(), *UNKNOWN.values()):
            service.ask("/infer", HELLO | wrong)
        service.ask("/infer", HELLO)
        assert service.stop() == 0
    spans = tokentrace.checked()
    assert [span["status"] for span in spans].count("ok") == 1
    assert {"error"} == {
        span["status"]
        for span in spans
        if span["attrs"]["provider"] != "echo" or "error" in span["attrs"]
    }


MODES = {
    "slow": {"seconds": 2.0},
    "status": {"status": 500},
    "hang": {},
    "reset": {},
    "garbage": {},
    "redirect": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] * (mode != "reset")) for mode in MODES]
)
def test_a_tokentrace_in_trouble_costs_spans_and_never_a_request(inside, mode):
    with (
        TokenTrace() as other,
        TokenTrace(mode, target=f"{other.url}/mist", **MODES[mode]) as receiver,
        inside(INFERMUX_TRACE__TOKENTRACE=receiver.url, INFERMUX_TRACE__THREADS="6") as service,
    ):
        started = time.monotonic()
        assert [service.ask("/infer", said(str(number))).status for number in range(12)] == [
            200
        ] * 12
        assert time.monotonic() - started < 8  # one that waits for each span takes 12 s and more
        assert service.ask("/dropped").json == {"dropped": 12}
        assert len(receiver.checked()) == 12
        assert other.paths == []
        receiver.mode = "ok"  # it recovers, and so do the spans
        service.ask("/infer", HELLO)
        assert len(receiver.wait(13)) == 13
        assert service.ask("/dropped").json == {"dropped": 12}
        assert service.stop() == 0


@pytest.mark.slow
def test_a_tokentrace_that_is_down_costs_spans_and_never_a_request(inside):
    with nobody() as url, inside(INFERMUX_TRACE__TOKENTRACE=url) as service:
        assert [service.ask("/infer", HELLO).json for _ in range(12)] == [ECHO] * 12
        assert service.ask("/dropped").json == {"dropped": 12}
        assert service.stop() == 0
        assert "TokenTrace" in service.log and "Traceback" not in service.log


@pytest.mark.slow
def test_a_full_queue_drops_and_counts_and_never_blocks(inside):
    with (
        TokenTrace("hang") as receiver,
        inside(
            INFERMUX_TRACE__TOKENTRACE=receiver.url,
            INFERMUX_TRACE__QUEUE="2",
            INFERMUX_TRACE__THREADS="1",
        ) as service,
    ):
        assert [service.ask("/infer", HELLO).status for _ in range(30)] == [200] * 30
        assert service.ask("/dropped").json == {"dropped": 30}
        assert len(receiver.checked()) < 20


# -- the end ---------------------------------------------------------------------------------------


def in_flight(service: Service, vendor: Vendor, count: int, pool: ThreadPoolExecutor) -> list:
    """Return answers to come of *count* calls that have all reached the vendor."""
    asked = {"model": "gpt-4.1-mini", "messages": [{"role": "user", "content": "hello"}]}
    coming = [pool.submit(ask, service.port, "/infer", asked) for _ in range(count)]
    eventually(lambda: len(vendor.seen) == count, f"{count} calls at the vendor")
    return coming


@pytest.mark.slow
@BOTH_WAYS
def test_sigterm_lets_calls_end_and_loses_no_span(tokentrace, args):
    gate = threading.Event()
    with (
        Vendor(Scripted(after=gate)) as vendor,
        ThreadPoolExecutor(20) as pool,
        Service(*args, env=vendor.env | {"INFERMUX_TRACE__TOKENTRACE": tokentrace.url}) as service,
    ):
        coming = in_flight(service, vendor, 20, pool)
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in service.log, "the signal")
        gate.set()
        assert [answer.result().status for answer in coming] == [200] * 20
        assert service.process.wait(PATIENCE) == 0
        assert len(tokentrace.checked()) == 20


@pytest.mark.slow
def test_sigterm_flushes_what_is_queued(inside):
    """Forty answered calls, whose spans a slow TokenTrace takes one at a time."""
    with (
        TokenTrace("slow", seconds=0.05) as receiver,
        inside(INFERMUX_TRACE__TOKENTRACE=receiver.url, INFERMUX_TRACE__THREADS="1") as service,
    ):
        with ThreadPoolExecutor(8) as pool:
            assert {
                answer.status
                for answer in pool.map(lambda _: service.ask("/infer", HELLO), range(40))
            } == {200}
        assert len(receiver.spans) < 40
        assert service.stop() == 0
        assert len(receiver.checked()) == 40


@pytest.mark.slow
def test_sigterm_waits_for_a_hanging_tokentrace_three_seconds_at_most(inside):
    with TokenTrace("hang") as receiver, inside(INFERMUX_TRACE__TOKENTRACE=receiver.url) as service:
        for _ in range(30):
            service.ask("/infer", HELLO)
        started = time.monotonic()
        assert service.stop() == 0
        assert (
            time.monotonic() - started < 5.5
        )  # three for the spans, once, and the rest for the processes to end


@pytest.mark.slow
def test_serve_runs_the_same_gunicorn_from_anywhere(tokentrace, tmp_path):
    command = [
        *script("infermux"),
        "serve",
        "--tokentrace",
        tokentrace.url,
        "--workers",
        "1",
        "--threads",
        "6",
    ]
    with Service(command=command, cwd=tmp_path) as service:
        assert service.ask("/infer", HELLO).json == ECHO
        assert "infermux.server.worker" in service.log and service.log.count("Booting worker") == 1
        assert "GET /providers" not in service.log
        is_error(service.ask("/infer", b"{"), 400, "invalid_request")
        assert len(tokentrace.wait(1)) == 1
        assert service.stop() == 0


def test_half_sent_headers_do_not_hold_every_thread(starved):
    """Without the listener's timeouts a client that never ends its headers holds a thread for ever,
    and fills the log.
    """
    answer, log = starved.result(2 * PATIENCE)
    assert answer.json == ECHO and "Traceback" not in log
