"""Tests of the faulty vendor over plain sockets: each fault really occurs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import infermux
from infermux.chaos.vendor import AFTER, BEFORE, FAULTS, FaultyVendor, Seen

TEXT = "one two three four five six"
QUIET = 0.5  # seconds of silence after which a peer counts as silent
BODIES = {
    "openai": (
        "/v1/chat/completions",
        {"model": "m", "messages": [{"role": "user", "content": "a prompt"}]},
    ),
    "anthropic": (
        "/v1/messages",
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a prompt"}]},
    ),
    "gemini": (
        "/v1beta/models/m:generateContent",
        {"contents": [{"parts": [{"text": "a prompt"}]}]},
    ),
}


def asking(dialect: str, *, streamed: bool) -> tuple[str, bytes]:
    path, body = BODIES[dialect]
    if dialect == "gemini":
        return path.replace(
            ":g", ":streamG"
        ) + "?alt=sse&key=sk-secret" if streamed else path, json.dumps(body).encode()
    return path, json.dumps(body | ({"stream": True} if streamed else {})).encode()


class Raw(NamedTuple):
    """What came over a connection, and how it ended: "eof", "reset" or "silent"."""

    data: bytes
    end: str

    @property
    def head(self) -> str:
        return self.data.partition(b"\r\n\r\n")[0].decode("latin-1").lower()

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


def raw(
    vendor: FaultyVendor, dialect: str = "openai", *, streamed: bool = False, most: int = 2**30
) -> Raw:
    path, body = asking(dialect, streamed=streamed)
    data = bytearray()
    with socket.create_connection(("127.0.0.1", vendor.port), QUIET) as sock:
        sock.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        try:
            while len(data) < most:
                if not (piece := sock.recv(2**20)):
                    return Raw(bytes(data), "eof")
                data += piece
        except TimeoutError:
            return Raw(bytes(data), "silent")
        except ConnectionResetError:
            return Raw(bytes(data), "reset")
    return Raw(bytes(data), "enough")


def ask(
    vendor: FaultyVendor, dialect: str = "openai", *, streamed: bool = False
) -> tuple[http.client.HTTPResponse, bytes]:
    path, body = asking(dialect, streamed=streamed)
    connection = http.client.HTTPConnection("127.0.0.1", vendor.port, timeout=10)
    try:
        connection.request("POST", path, body)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


def events(body: bytes) -> list[Any]:
    datas = [line[6:] for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [json.loads(data) if data != b"[DONE]" else "[DONE]" for data in datas]


def said(dialect: str, value: Any) -> str:
    """Return the text of an event or of a whole answer."""
    if dialect == "openai":
        choice = value["choices"][0]
        return choice.get("delta", choice.get("message")).get("content") or ""
    if dialect == "anthropic":
        return value.get("delta", {}).get("text", "") + "".join(
            block["text"] for block in value.get("content", ())
        )
    return "".join(part["text"] for part in value["candidates"][0]["content"]["parts"])


# -- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", BODIES)
def test_a_healthy_vendor_says_its_text(dialect: str) -> None:
    with FaultyVendor(text=TEXT) as vendor:
        answer, body = ask(vendor, dialect)
    assert (answer.status, said(dialect, json.loads(body))) == (200, TEXT)
    assert b"7" in body  # input tokens, which a client books


@pytest.mark.parametrize(
    ("dialect", "last"), [("openai", "[DONE]"), ("anthropic", "message_stop"), ("gemini", "STOP")]
)
def test_a_healthy_stream_says_its_text_and_its_end(dialect: str, last: str) -> None:
    with FaultyVendor(text=TEXT) as vendor:
        answer, body = ask(vendor, dialect, streamed=True)
    found = events(body)
    assert answer.headers["content-type"] == "text/event-stream"
    assert "".join(said(dialect, event) for event in found if event != "[DONE]") == TEXT
    assert last in json.dumps(found[-1])
    assert len(found) > len(TEXT.split())


def test_each_vendor_has_words_of_its_own() -> None:
    with FaultyVendor() as one, FaultyVendor() as other:
        assert one.text != other.text


def test_a_text_that_no_stream_can_cut_is_refused() -> None:
    with pytest.raises(ValueError, match="two characters"):
        FaultyVendor(text="x")


def test_a_connection_serves_one_request_after_another() -> None:
    with FaultyVendor() as vendor:
        path, body = asking("openai", streamed=False)
        connection = http.client.HTTPConnection("127.0.0.1", vendor.port, timeout=10)
        for fault in (None, "500", "html", None):
            vendor.fault = fault
            connection.request("POST", path, body)
            assert connection.getresponse().read()
        connection.close()
        assert vendor.connections == 1


def test_another_path_is_a_404() -> None:
    with FaultyVendor("500") as vendor:
        connection = http.client.HTTPConnection("127.0.0.1", vendor.port, timeout=10)
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 404
        connection.close()
        assert vendor.requests == [Seen("/v1/models", "", "", False, "")]


# -- faults of one answer --------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("fault", "end"), [("reset", "reset"), ("closed", "eof"), ("stall", "silent")]
)
@pytest.mark.parametrize("streamed", [False, True])
def test_what_a_socket_sees(fault: str, end: str, streamed: bool) -> None:
    with FaultyVendor(fault) as vendor:
        assert raw(vendor, streamed=streamed) == (b"", end)
        assert [seen.fault for seen in vendor.requests] == [fault]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("fault", "whole_head"), [("slow_headers", False), ("slow_body", True)])
def test_what_drips_comes_byte_by_byte(fault: str, whole_head: bool, streamed: bool) -> None:
    path, body = asking("openai", streamed=streamed)
    with (
        FaultyVendor(fault) as vendor,
        socket.create_connection(("127.0.0.1", vendor.port), 5) as sock,
    ):
        sock.sendall(f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = sock.recv(10_000)
        assert (b"\r\n\r\n" in head) is whole_head
        assert [len(sock.recv(100)) for _ in range(3)] == [1, 1, 1]


def test_a_refused_connection_leaves_the_port_to_its_vendor() -> None:
    with FaultyVendor("refused") as vendor:
        for _ in range(3):
            with pytest.raises(ConnectionRefusedError):
                raw(vendor)
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", vendor.port))
        vendor.fault = None
        assert ask(vendor)[0].status == 200
        vendor.fault = "refused"
        with pytest.raises(ConnectionRefusedError):
            raw(vendor)


def test_kept_connections_end_when_a_vendor_begins_to_refuse() -> None:
    with FaultyVendor() as vendor, socket.create_connection(("127.0.0.1", vendor.port), 5) as sock:
        sock.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        assert sock.recv(10**6)
        vendor.fault = "refused"
        assert sock.recv(10**6) == b""


@pytest.mark.parametrize("streamed", [False, True])
def test_what_is_cut_is_shorter_than_it_says(streamed: bool) -> None:
    with FaultyVendor("truncated", when=AFTER) as vendor:
        found = raw(vendor, streamed=streamed)
    size = int(found.head.partition("content-length: ")[2].partition("\r\n")[0])
    assert found.end == "eof"
    assert 0 < len(found.body) < size
    assert found.body.count(b"data: ") == (
        1 + 12 // 2 if streamed else 0
    )  # the first event, and half of the tokens


def test_a_chunk_is_cut() -> None:
    with FaultyVendor("chunked_cut") as vendor:
        found = raw(vendor)
    size, _, rest = found.body.partition(b"\r\n")
    assert (found.end, 0 < len(rest) < int(size, 16)) == ("eof", True)


def test_garbage_is_not_http() -> None:
    with FaultyVendor("garbage") as vendor:
        found = raw(vendor)
    assert found.data
    assert not found.data.startswith(b"HTTP")


@pytest.mark.parametrize(
    ("fault", "kind", "begins"),
    [
        ("html", "text/html; charset=utf-8", b"<!DOCTYPE"),
        ("empty", "application/json", b""),
        ("not_json", "application/json", b'{"choices'),
        ("wrong_shape", "application/json", b'{"result"'),
        ("deep_json", "application/json", b"[" * 100_000),
    ],
)
def test_a_body_that_is_none(fault: str, kind: str, begins: bytes) -> None:
    with FaultyVendor(fault) as vendor:
        answer, body = ask(vendor)
    assert (answer.status, answer.headers["content-type"]) == (200, kind)
    assert body.startswith(begins)
    if fault in ("not_json", "html", "empty"):
        with pytest.raises(json.JSONDecodeError):
            json.loads(body)


@pytest.mark.parametrize("fault", [name for name in FAULTS if name[:3].isdigit()])
@pytest.mark.parametrize("dialect", BODIES)
def test_a_status(fault: str, dialect: str) -> None:
    with FaultyVendor(fault) as vendor:
        answer, body = ask(vendor, dialect)
    error = json.loads(body)["error"]
    wait = {"429": "1", "429_long": "3600"}.get(fault)
    assert answer.status == int(fault[:3])
    assert "on purpose" in error["message"]
    if dialect == "gemini":
        assert error["code"] == answer.status
        assert [detail["retryDelay"] for detail in error.get("details", ())] == (
            [f"{wait}s"] if wait else []
        )
    else:
        assert answer.headers["retry-after"] == wait


def test_a_redirect_that_is_followed_can_be_seen() -> None:
    with FaultyVendor("redirect") as vendor:
        answer, _ = ask(vendor)
    assert (answer.status, answer.headers["location"]) == (307, "/elsewhere/v1/chat/completions")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("streamed", [False, True])
def test_a_bomb_is_small_and_unpacks_without_end(streamed: bool) -> None:
    with FaultyVendor("gzip_bomb", when=AFTER) as vendor:
        answer, body = ask(vendor, streamed=streamed)
    unpacker, size = zlib.decompressobj(31), 0
    begun = unpacker.decompress(body, 10_000)
    while piece := unpacker.decompress(unpacker.unconsumed_tail, 2**24):
        size += len(piece)
    assert answer.headers["content-encoding"] == "gzip"
    assert (b"The" in begun) is streamed
    assert len(body) < 200_000 < 10**8 < size


def test_a_huge_body_is_as_long_as_it_says() -> None:
    with FaultyVendor("huge_body") as vendor:
        answer, body = ask(vendor)
    assert int(answer.headers["content-length"]) == len(body) > 10**8


# -- faults of a stream ----------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize(
    ("fault", "end"),
    [
        ("stream_cut", "eof"),
        ("stream_reset", "reset"),
        ("stream_stall", "silent"),
        ("truncated", "eof"),
        ("chunked_cut", "eof"),
    ],
)
def test_a_stream_that_breaks(fault: str, end: str, when: str, dialect: str) -> None:
    with FaultyVendor(fault, when=when, text=TEXT) as vendor:
        found = raw(vendor, dialect, streamed=True)
    assert found.end == end
    assert "text/event-stream" in found.head
    assert (b"one" in found.body) is (when == AFTER)
    assert b"six" not in found.body
    assert not found.body.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("dialect", BODIES)
def test_a_stream_that_ends_politely_in_the_middle(dialect: str) -> None:
    with FaultyVendor("stream_no_terminator", when=AFTER, text=TEXT) as vendor:
        _, body = ask(vendor, dialect, streamed=True)  # http.client is content with its end
    assert b"one" in body
    assert not any(
        word in body for word in (b"six", b"[DONE]", b"message_stop", b"STOP", b'"stop"')
    )


@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize("when", [BEFORE, AFTER])
def test_an_error_as_an_event(when: str, dialect: str) -> None:
    with FaultyVendor("stream_error_event", when=when, text=TEXT) as vendor:
        _, body = ask(vendor, dialect, streamed=True)
    assert "on purpose" in events(body)[-1]["error"]["message"]
    assert (b"one" in body) is (when == AFTER)


@pytest.mark.parametrize("dialect", BODIES)
@pytest.mark.parametrize(("when", "lost"), [(BEFORE, "one "), (AFTER, "four ")])
def test_a_broken_event_takes_a_token_with_it(when: str, lost: str, dialect: str) -> None:
    with FaultyVendor("stream_garbage_event", when=when, text=TEXT) as vendor:
        _, body = ask(vendor, dialect, streamed=True)
    rest, broken = "", 0
    for line in body.split(b"\n"):
        try:
            rest += said(dialect, json.loads(line[6:])) if line.startswith(b"data: {") else ""
        except ValueError:
            broken += 1
    assert (rest, broken) == (TEXT.replace(lost, ""), 1)


def test_a_stream_without_events_and_one_that_is_none() -> None:
    with FaultyVendor("stream_empty") as vendor:
        assert ask(vendor, streamed=True)[1] == b""
        vendor.fault = "stream_json"
        answer, body = ask(vendor, streamed=True)
        assert (answer.headers["content-type"], said("openai", json.loads(body))) == (
            "application/json",
            vendor.text,
        )


def test_a_stream_can_be_slow_after_its_first_token() -> None:
    with FaultyVendor("slow_body", when=AFTER, text=TEXT) as vendor:
        found = raw(vendor, streamed=True, most=700)
    assert b"one" in found.body
    assert b"four" not in found.body


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.plain])
def test_what_only_streams_suffer_leaves_others_alone(name: str) -> None:
    with FaultyVendor(text=TEXT) as vendor:
        vendor.fail_times(1, name)
        assert said("openai", json.loads(ask(vendor)[1])) == TEXT
        assert vendor.requests[0].fault == ""


@pytest.mark.parametrize(("name", "fault"), FAULTS.items())
def test_every_fault_is_told_in_a_line_and_can_befall_something(name: str, fault: Any) -> None:
    assert fault.description
    assert "\n" not in fault.description
    assert BEFORE in fault.stream
    assert fault.plain is not name.startswith("stream_")


# -- the vendor in a test --------------------------------------------------------------------------


def test_it_fails_as_often_as_it_is_told() -> None:
    with FaultyVendor() as vendor:
        vendor.fail_times(2, "503")
        assert [ask(vendor)[0].status for _ in range(4)] == [503, 503, 200, 200]
        vendor.fail_times(1)
        assert [ask(vendor)[0].status for _ in range(2)] == [503, 200]
        vendor.fault = "500"
        assert [ask(vendor)[0].status for _ in range(3)] == [500, 500, 500]
        vendor.fault = None
        assert ask(vendor)[0].status == 200


@pytest.mark.parametrize("fault", [None, "refused"])
def test_what_cannot_be_counted_is_said(fault: str | None) -> None:
    with FaultyVendor(fault) as vendor, pytest.raises(ValueError, match="counted"):
        vendor.fail_times(1)


def test_requests_are_known_without_their_prompts_and_keys() -> None:
    with FaultyVendor("stream_cut") as vendor:
        ask(vendor, "anthropic")
        raw(vendor, "gemini", streamed=True)
        assert vendor.requests == [
            Seen("/v1/messages", "anthropic", "m", False, ""),
            Seen("/v1beta/models/m:streamGenerateContent", "gemini", "m", True, "stream_cut"),
        ]
        assert "prompt" not in repr(vendor.requests)
        assert "secret" not in repr(vendor.requests)


def test_what_there_is_not_is_said_with_what_there_is() -> None:
    threads = threading.active_count()
    for wrong in ({"fault": "stal"}, {"when": "during"}):
        with pytest.raises(ValueError, match=r"stal.*stall|during"):
            FaultyVendor(**wrong)
    with FaultyVendor() as vendor:
        with pytest.raises(ValueError, match="openai, anthropic"):
            vendor.url("cohere")
        with pytest.raises(ValueError, match="stall"):
            vendor.fault = "stal"
        assert vendor.fault is None
    assert threading.active_count() == threads


def test_left_it_has_let_go_of_everything() -> None:
    threads, files = threading.active_count(), len(os.listdir("/dev/fd"))
    with FaultyVendor("stall") as vendor:
        socks = [socket.create_connection(("127.0.0.1", vendor.port), 5) for _ in range(5)]
        for sock in socks[:3]:
            sock.sendall(b"POST /v1/messages HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}")
        while len(vendor.requests) < 3 or vendor.connections < 5:
            time.sleep(0.001)
    for sock in socks:
        assert sock.recv(100) == b""
        sock.close()
    vendor.close()  # a second time
    assert threading.active_count() == threads
    assert len(os.listdir("/dev/fd")) <= files
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", vendor.port), 5)


def test_clients_that_make_no_sense_do_not_end_it() -> None:
    with FaultyVendor() as vendor:
        for nonsense in (
            b"\x00\r\n\r\n",
            b"POST /v1/messages HTTP/1.1\r\nContent-Length: 1\r\n\r\n{",
            b"x",
            b"\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", vendor.port), 5) as sock:
                sock.sendall(nonsense)
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(100) == b""
        assert ask(vendor)[0].status == 200


# -- as a plug-in ----------------------------------------------------------------------------------


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(infermux.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=env,
        text=True,
        capture_output=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_pytest_takes_it_as_a_plugin(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "from infermux.chaos.vendor import FAULTS\npytest_plugins = ['infermux.chaos.vendor']\n"
    )
    (tmp_path / "test_mine.py").write_text(
        "from infermux import HTTPProvider, InferRequest, Registry, Router\n\n"
        "def test_mine(faulty_vendor):\n"
        "    router = Router(Registry([HTTPProvider('v', base_url=faulty_vendor.url('openai'), models=['m'])]))\n"
        "    faulty_vendor.fail_times(1, '503')\n"
        "    assert router.infer(InferRequest('m', [{'role': 'user', 'content': 'x'}])).content == faulty_vendor.text\n"
        "    assert [seen.fault for seen in faulty_vendor.requests] == ['503', '']\n"
        "    router.close()\n"
    )
    done = run("-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_whoever_has_no_pytest_can_use_it_too(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['requests'] = None\nfrom infermux.chaos.vendor import FaultyVendor\n"
        "assert 'pytest' not in sys.modules\nwith FaultyVendor('stall') as v: print(v.url('azure'))"
    )
    done = run("-W", "error", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("http://127.0.0.1:")
