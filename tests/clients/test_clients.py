"""Misbehaving clients of a real gunicorn get JSON or are dropped; others are unaffected."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
from collections.abc import Iterator, Sized
from typing import Any

import pytest
from support import HELLO, PATIENCE, Service, Vendor

JSON = b'"content":"echo: hello"'


@pytest.fixture(scope="module")
def vendor() -> Iterator[Vendor]:
    with Vendor() as running:
        yield running


@pytest.fixture(scope="module")
def service(vendor: Vendor) -> Iterator[Service]:
    env = vendor.env | {"INFERMUX_SERVER__WORKERS": "1", "INFERMUX_SERVER__THREADS": "16"}
    with Service(env=env) as running:
        yield running


def head(path: str, body: Sized, *lines: str) -> bytes:
    return "\r\n".join(
        (f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", "")
    ).encode()


def connected(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), PATIENCE)


# -- what is sent ----------------------------------------------------------------------------------

MODEL = "openai/m"
USER = {"role": "user", "content": "hello"}
CHAT = {"model": MODEL, "messages": [USER], "max_tokens": 5}
DOORS = ("/infer", "/v1/chat/completions", "/v1/messages", "/v1/embeddings", "/v1/responses")
BODIES: dict[str, bytes] = {
    "nothing": b"",
    "words": b"hello",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"hello"',
    "a number": b"1",
    "cut": json.dumps(CHAT).encode()[:-9],
    "Infinity": json.dumps(CHAT).encode()[:-1] + b', "temperature": Infinity}',
    "1e999": json.dumps(CHAT).encode()[:-1] + b', "temperature": 1e999}',
    "the same key twice": json.dumps(CHAT).encode()[:-1] + b', "model": "other"}',
    "not UTF-8": json.dumps(CHAT).encode().replace(b"hello", b"hel\xfflo"),
    "UTF-16": json.dumps(CHAT).encode("utf-16"),
    "a lone surrogate": json.dumps(CHAT).encode().replace(b"hello", b"\\ud800"),
    "deep": b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list as model": json.dumps(CHAT | {"model": [MODEL]}).encode(),
    "a number as model": json.dumps(CHAT | {"model": 7}).encode(),
    "10,000 letters of model": json.dumps(CHAT | {"model": "m" * 10_000}).encode(),
}


@pytest.mark.sampled(10)
@pytest.mark.parametrize("path", DOORS)
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_the_callers_fault_at_every_door(
    service: Service, vendor: Vendor, path: str, name: str
) -> None:
    before = len(vendor.seen)
    found = service.ask(path, BODIES[name])
    assert 400 <= found.status < 500, found
    assert found.headers["Content-Type"] == "application/json" and len(found.data) < 1000
    assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert found.json["error"]["message"]
    assert len(vendor.seen) == before


@pytest.mark.parametrize(
    "field",
    [
        {"model": "other"},
        {"messages": []},
        {"stream": True},
        {"api_base": "http://127.0.0.1:9"},
        {"n": 2},
    ],
)
def test_params_override_nothing_that_has_a_field_of_its_own(
    service: Service, vendor: Vendor, field: dict[str, Any]
) -> None:
    before = len(vendor.seen)
    found = service.ask("/infer", {"model": MODEL, "messages": [USER], "params": field})
    assert found.status in (200, 400)
    for seen in vendor.seen[before:]:
        assert (seen.body["model"], seen.body["messages"]) == ("m", [USER]) and not seen.body.get(
            "stream"
        )
        assert seen.path == "/v1/chat/completions"


TEXTS = {
    "signs": "grüß 東京 🌞 \u202e שלום \u2028\u2029 é",
    "control characters": "a\x00b\x1b[31mc\r\nd\te\x7f\x85",
    "quotes": "\"'`\\/<script>&amp;</script>${x}%s{{7*7}}",
    "5 MB": "word " * 1_000_000,
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("name", TEXTS)
def test_a_text_comes_through_as_it_is(
    service: Service, vendor: Vendor, path: str, name: str
) -> None:
    """To the vendor, and back."""
    answer = service.ask(path, CHAT | {"messages": [{"role": "user", "content": TEXTS[name]}]})
    assert answer.status == 200
    assert vendor.seen[-1].body["messages"][-1]["content"] in (
        TEXTS[name],
        [{"type": "text", "text": TEXTS[name]}],
    )
    body = answer.json
    said = body["content"] if "content" in body else body["choices"][0]["message"]["content"]
    assert (said if isinstance(said, str) else said[0]["text"]) == TEXTS[name]


# -- how it is sent --------------------------------------------------------------------------------


def test_requests_in_one_piece_are_answered_in_their_order(service: Service) -> None:
    """Pipelining: the second does not wait for the first answer to be read, and is not lost."""
    bodies = [
        json.dumps(HELLO | {"messages": [{"role": "user", "content": f"number {n}"}]}).encode()
        for n in range(5)
    ]
    with connected(service) as sock:
        sock.sendall(b"".join(head("/infer", body) + body for body in bodies))
        sock.settimeout(PATIENCE)
        got = b""
        while got.count(b"HTTP/1.1 200") < 5 or b"echo: number 4" not in got:
            piece = sock.recv(65536)
            assert piece, got
            got += piece
    assert re.findall(rb"echo: number (\d)", got) == [b"0", b"1", b"2", b"3", b"4"]


def test_a_client_that_waits_for_100_is_told_to_go_on(service: Service) -> None:
    body = json.dumps(HELLO).encode()
    with connected(service) as sock:
        sock.sendall(head("/infer", body, "Expect: 100-continue"))
        assert sock.recv(65536).startswith(b"HTTP/1.1 100 ")
        sock.sendall(body)
        got = b""
        while JSON not in got:
            piece = sock.recv(65536)
            assert piece, got
            got += piece
        assert got.startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("path", "size", "status"), [("/infer", 10**9, 413), ("/nowhere", 9, 404), ("/costs", 9, 405)]
)
def test_a_client_that_is_refused_by_its_head_is_not_asked_for_its_body(
    service: Service, path: str, size: int, status: int
) -> None:
    with connected(service) as sock:
        sock.sendall(head(path, range(size), "Expect: 100-continue"))
        got = b"".join(iter(lambda: sock.recv(65536), b""))
    assert got.startswith(f"HTTP/1.1 {status} ".encode()) and b"Connection: close" in got


def test_connections_that_say_nothing_hold_nobody_up(service: Service) -> None:
    """300 of them, for 16 threads: an idle connection costs no thread."""
    with contextlib.ExitStack() as held:
        for _ in range(300):
            sock = held.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", service.port))
        assert [service.ask("/infer", HELLO).status for _ in range(5)] == [200] * 5
        assert service.ask("/providers").status == 200


@pytest.mark.sampled(1)
@pytest.mark.sampled(2)
@pytest.mark.parametrize("ends", ["closed", "reset"])
@pytest.mark.parametrize("part", [9, 40, -3], ids=["in the line", "in the head", "in the body"])
def test_a_client_that_leaves_in_the_middle_is_no_news(
    service: Service, vendor: Vendor, part: int, ends: str
) -> None:
    """No vendor is asked for it, no traceback is written, and the thread is free again."""
    before, size = len(vendor.seen), len(service.log)
    body = json.dumps(CHAT).encode()
    for _ in range(20):
        with connected(service) as sock:
            sock.sendall((head("/infer", body) + body)[:part])
            if ends == "reset":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert [service.ask("/infer", HELLO).status for _ in range(16)] == [200] * 16
    assert len(vendor.seen) == before
    assert "Traceback" not in service.log[size:] and len(service.log[size:].splitlines()) <= 20
