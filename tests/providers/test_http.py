"""Tests of the transport over real sockets: good, slow, broken and hostile vendors."""

from __future__ import annotations

import gc
import gzip
import http.client
import importlib.util
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import requests
import responses
import urllib3.exceptions
from faulty import Peer, Script, Vendor, answer, answers, drips, events, then_closes, then_waits
from support import places, with_odd

from infermux.errors import (
    ConfigError,
    ProviderAuthError,
    ProviderContextTooLong,
    ProviderError,
    ProviderModelNotFound,
    ProviderRateLimited,
    ProviderRejected,
    ProviderTimeout,
    ProviderUnavailable,
    RequestError,
    StreamIncomplete,
)
from infermux.planning.call import StreamAccumulator
from infermux.protocol import InferRequest, InferResponse
from infermux.providers import failures
from infermux.providers import http as transport
from infermux.providers.http import HTTPProvider, Timeouts
from infermux.routing.router import Router
from infermux.types import HEARTBEAT, Deadline

SHARED = Path(__file__).resolve().parents[3] / "shared" / "wire"
KEY = "sk-proj-0123456789abcdefghij"
HI = InferRequest(model="vendor-model-1", messages=[{"role": "user", "content": "Hi"}])
USAGE = {"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}
GOOD = {
    "id": "cmpl-1",
    "model": "vendor-model-1",
    "usage": USAGE,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Grüße 🌍"},
            "finish_reason": "stop",
        }
    ],
}
BODY = json.dumps(GOOD, ensure_ascii=False).encode()
OK = answer(200, BODY)
SOON = 8.0  # seconds within which everything that hangs must have ended

Make = Callable[..., Any]


@pytest.fixture
def vendor() -> Iterator[Make]:
    """Makes vendors that are gone after the test."""
    made: list[Vendor] = []

    def make(*scripts: Script, tls: ssl.SSLContext | None = None) -> Vendor:
        made.append(Vendor(*scripts, tls=tls))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def provider() -> Iterator[Make]:
    """Makes providers whose connections are closed after the test."""
    made: list[HTTPProvider] = []

    def make(at: Vendor | str, **options: Any) -> HTTPProvider:
        made.append(
            HTTPProvider(
                "vendor",
                base_url=at if isinstance(at, str) else at.url,
                **{"api_key": KEY, **options},
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


def infer(provider: HTTPProvider, seconds: float = 10.0) -> InferResponse:
    return provider.infer(HI, Deadline(seconds))


def stream(provider: HTTPProvider, seconds: float = 10.0) -> InferResponse:
    fold = StreamAccumulator()
    for chunk in provider.stream(HI, Deadline(seconds)):
        fold.add(chunk)
    return fold.response("vendor", HI.model)


WAYS = pytest.mark.parametrize("ask", [infer, stream])


def failure(
    ask: Callable[[HTTPProvider, float], InferResponse],
    provider: HTTPProvider,
    seconds: float = 10.0,
) -> ProviderError:
    """The error that asking ends with; it must come soon, be ours, and tell nothing of the address
    or the key.
    """
    begun = time.monotonic()
    with pytest.raises(ProviderError) as raised:
        ask(provider, seconds)
    assert time.monotonic() - begun < SOON
    for hidden in (
        KEY,
        "127.0.0.1",
        "localhost",
        "http:",
        "https:",
        ".invalid",
        "Traceback",
        "Error(",
    ):
        assert hidden not in raised.value.message
    return raised.value


def data(value: object) -> bytes:
    return (
        b"data: "
        + (value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False).encode())
        + b"\n\n"
    )


def delta(content: str | None = None, finish: str | None = None) -> bytes:
    return data(
        {
            "id": "cmpl-1",
            "model": "vendor-model-1",
            "choices": [
                {
                    "index": 0,
                    "delta": {"role": "assistant"} if content is None else {"content": content},
                    "finish_reason": finish,
                }
            ],
        }
    )


DONE = data(b"[DONE]")
STREAM = (
    delta(),
    delta("Grüße"),
    delta(" 🌍"),
    delta("", "stop"),
    data({"choices": [], "usage": USAGE}),
    DONE,
)
HEAD = events(end=False)[0]


def check_good(response: InferResponse) -> None:
    assert (response.content, response.finish_reason, response.tokens_in, response.tokens_out) == (
        "Grüße 🌍",
        "stop",
        7,
        9,
    )
    assert (response.model, response.provider, response.id) == (
        "vendor-model-1",
        "vendor",
        "cmpl-1",
    )


# -- a good vendor ---------------------------------------------------------------------------------


def test_what_a_vendor_is_sent(vendor: Make, provider: Make) -> None:
    at = vendor(answers(OK))
    check_good(infer(provider(at, headers={"X-Title": "t"})))
    sent = at.requests[0]
    assert sent.line == "POST /v1/chat/completions HTTP/1.1"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert sent.headers["content-type"] == "application/json"
    assert sent.headers["host"] == f"127.0.0.1:{at.port}"
    assert sent.headers["x-title"] == "t"
    assert sent.body == b'{"model":"vendor-model-1","messages":[{"role":"user","content":"Hi"}]}'


def test_a_provider_without_a_key_sends_none(vendor: Make, provider: Make) -> None:
    at = vendor(answers(OK))
    check_good(infer(provider(at, api_key=None)))
    assert "authorization" not in at.requests[0].headers


@pytest.mark.parametrize("model", ["", "auto"])
def test_no_model_means_the_first(vendor: Make, provider: Make, model: str) -> None:
    at = vendor(answers(OK))
    provider(at, models=["first", "second"]).infer(replace(HI, model=model), Deadline(10))
    assert json.loads(at.requests[0].body)["model"] == "first"


@pytest.mark.parametrize(
    "raw",
    [
        b"".join(events(*STREAM)),
        b"".join(events(b"".join(STREAM))),
        answer(200, b"".join(STREAM), {"Content-Type": "text/event-stream; charset=utf-8"}),
        pytest.param(answer(200, b"".join(STREAM), {"Content-Type": "Text/Event-Stream"})),
        b"".join(events(*(b"".join(STREAM)[at : at + 1] for at in range(len(b"".join(STREAM)))))),
        OK,
        answer(200, b"".join(STREAM), {"Content-Type": "text/plain"}),
        answer(200, b"\n".join([b": hi\n", *STREAM])),
        b"".join(events(*STREAM)).replace(b"Content-Type: text/event-stream\r\n", b""),
        b"".join(events(b"".join(STREAM).replace(b"\n", b"\r"))),
        b"".join(events(*STREAM[:-1], b"data: [DONE] \n\n")),
    ],
    ids=[
        *("chunked", "one chunk", "length", "upper case", "bytes", "no stream"),
        *("as text", "as JSON", "without a type", "CR", "a space after DONE"),
    ],
)
def test_a_stream_in_every_framing(vendor: Make, provider: Make, raw: bytes) -> None:
    at = vendor(answers(raw))
    check_good(stream(provider(at)))
    assert json.loads(at.requests[0].body)["stream_options"] == {"include_usage": True}


def test_a_stream_that_ends_with_the_connection(vendor: Make, provider: Make) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    check_good(stream(provider(vendor(then_closes(head + b"".join(STREAM))))))


def test_a_chunk_is_passed_on_as_soon_as_it_is_there(vendor: Make, provider: Make) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        for piece in events(delta("one"), end=False):
            peer.send(piece)
        assert go.wait(SOON)
        for piece in events(delta("two", "stop"), DONE)[1:]:
            peer.send(piece)
        peer.gone()

    chunks = provider(vendor(script)).stream(HI, Deadline(10))
    assert next(chunks).text == "one"
    go.set()
    assert [chunk.text for chunk in chunks if chunk.text] == ["two"]


def test_events_that_came_together_wait_for_no_other(vendor: Make, provider: Make) -> None:
    go = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(
            b"".join(events(delta("one"), delta("two"), delta("three"), end=False))
            + b"5\r\ndata:\r\n"
        )
        assert go.wait(SOON)
        peer.send(b"".join(events(delta("four", "stop"), DONE)[1:]).replace(b"data:", b"     ", 1))
        peer.gone()

    chunks = provider(vendor(script)).stream(HI, Deadline(10))
    seen = [next(chunks) for _ in range(3)]
    assert [chunk.text for chunk in seen] == ["one", "two", "three"]
    go.set()
    assert [chunk.text for chunk in chunks if chunk.text] == ["four"]


@WAYS
@pytest.mark.parametrize("status", [100, 102, 103])
def test_interim_answers_are_passed_over(
    vendor: Make, provider: Make, ask: Any, status: int
) -> None:
    early = b"HTTP/1.1 %d Interim\r\nLink: </style.css>\r\n\r\n" % status
    at = vendor(answers(early + early + OK))
    mine = provider(at)
    check_good(ask(mine))
    check_good(ask(mine))
    assert at.connections == 1


PACKED = {
    "gzip": ("gzip", gzip.compress(BODY)),
    "deflate": ("Deflate", zlib.compress(BODY)),
    "deflate without zlib's head": ("deflate", zlib.compress(BODY)[2:-4]),
    "gzip by its old name": ("x-gzip", gzip.compress(BODY)),
    "gzip of several members": ("gzip", gzip.compress(BODY[:9]) + gzip.compress(BODY[9:])),
    "padded gzip": ("gzip", gzip.compress(BODY) + bytes(1000)),
    "twice": ("deflate, gzip", gzip.compress(zlib.compress(BODY))),
    "not at all": ("identity", BODY),
    "what is no encoding": ("utf-8", BODY),
}


@WAYS
@pytest.mark.parametrize(("encoding", "packed"), PACKED.values(), ids=PACKED)
def test_a_compressed_answer_is_read(
    vendor: Make, provider: Make, ask: Any, encoding: str, packed: bytes
) -> None:
    at = vendor(answers(answer(200, packed, {"Content-Encoding": encoding})))
    mine = provider(at)
    check_good(ask(mine))
    check_good(ask(mine))
    assert at.connections == 1


def test_streams_are_not_asked_for_compressed(vendor: Make, provider: Make) -> None:
    """Compression would hold events back."""
    at = vendor(answers(b"".join(events(*STREAM))))
    stream(provider(at))
    assert at.requests[0].headers["accept-encoding"] == "identity"


def test_a_byte_order_mark_is_no_harm(vendor: Make, provider: Make) -> None:
    check_good(infer(provider(vendor(answers(answer(200, b"\xef\xbb\xbf" + BODY))))))


# -- no connection ---------------------------------------------------------------------------------


@WAYS
def test_nobody_listens(vendor: Make, provider: Make, ask: Any) -> None:
    at = vendor(answers(OK))
    at.close()
    error = failure(ask, provider(at.url))
    assert isinstance(error, ProviderUnavailable)
    assert error.retryable


@WAYS
@pytest.mark.parametrize(
    "url",
    [
        "http://vendor.invalid/v1",
        "http://a..b/v1",
        "http://%zz/v1",
        "http://" + "x" * 70 + ".invalid/v1",
    ],
)
def test_an_address_that_leads_nowhere(provider: Make, ask: Any, url: str) -> None:
    assert isinstance(failure(ask, provider(url)), ProviderUnavailable)


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://127.0.0.1/v1", "http://127.0.0.1:99999/v1", "http://[::1/v1"]
)
def test_what_is_no_address_is_refused_at_once(provider: Make, url: str) -> None:
    with pytest.raises(ConfigError, match="base_url of provider"):
        provider(url)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key and a certificate for 127.0.0.1 that nobody has signed, in one file."""
    if not (command := shutil.which("openssl")):
        pytest.skip("no openssl command")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            command,
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=vendor",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-keyout",
            folder / "key",
            "-out",
            folder / "cert",
        ],
        check=True,
        capture_output=True,
    )
    both = folder / "both.pem"
    both.write_bytes((folder / "key").read_bytes() + (folder / "cert").read_bytes())
    return both


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


@WAYS
def test_a_certificate_that_nobody_signed_is_not_trusted(
    vendor: Make, provider: Make, tls: ssl.SSLContext, ask: Any
) -> None:
    at = vendor(answers(OK), tls=tls)
    error = failure(ask, provider(at))
    assert isinstance(error, ProviderUnavailable)
    assert not error.retryable
    assert (at.connections, at.requests) == (1, [])


@WAYS
def test_a_certificate_of_the_sites_own_is(
    vendor: Make, provider: Make, tls: ssl.SSLContext, certificate: Path, ask: Any
) -> None:
    at = vendor(answers(OK), tls=tls)
    mine = provider(at, ca=str(certificate))
    check_good(ask(mine))
    check_good(ask(mine))
    assert at.connections == 1


def breaks_tls(head: bytes) -> Script:
    """Answer with *head*, and then with bytes that nobody has encrypted."""

    def script(peer: Peer) -> None:
        peer.request()
        if head:
            peer.send(head)
        os.write(peer.sock.fileno(), b"\x17\x03\x03\x00\x20" + b"x" * 32)
        peer.gone()

    return script


@WAYS
@pytest.mark.parametrize(
    "head",
    [
        b"",
        answer(200, BODY[:9], length=99),
        answer(200, STREAM[0], {"Content-Type": "text/event-stream"}, length=9999),
    ],
    ids=["no head", "body", "stream"],
)
def test_tls_that_breaks_after_a_request_was_sent_may_have_cost_money(
    vendor: Make, provider: Make, tls: ssl.SSLContext, certificate: Path, ask: Any, head: bytes
) -> None:
    at = vendor(breaks_tls(head), tls=tls)
    error = failure(ask, provider(at, ca=str(certificate)))
    assert isinstance(error, ProviderUnavailable)
    assert error.sent is True
    assert error.retryable == bool(head)  # else the vendor refuses our side of TLS


@WAYS
def test_tls_to_a_plain_port(vendor: Make, provider: Make, ask: Any) -> None:
    def script(peer: Peer) -> None:
        peer.sock.recv(4096)
        peer.send(answer(400))

    assert isinstance(
        failure(ask, provider(vendor(script).url.replace("http:", "https:"))), ProviderUnavailable
    )


@WAYS
def test_plain_to_a_tls_port(vendor: Make, provider: Make, tls: ssl.SSLContext, ask: Any) -> None:
    at = vendor(answers(OK), tls=tls)
    assert isinstance(
        failure(ask, provider(at.url.replace("https:", "http:"))), ProviderUnavailable
    )


# -- silence, and bytes one by one -----------------------------------------------------------------

SLOW = {
    "no answer": then_waits(),
    "half a status line": then_waits(b"HTTP/1.1 2"),
    "headers without end": then_waits(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"),
    "no body": then_waits(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"),
    "half a body": then_waits(answer(200, BODY[:50], length=len(BODY))),
    "half a chunk": then_waits(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\nabc"),
    "dripped headers": drips(b"HTTP/1.1 200 OK\r\nX-Long: ", b"x" * 5000),
    "dripped status": drips(b"", b"HTTP/1.1 200 " + b"x" * 5000),
    "dripped body": drips(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", b" " * 5000),
    "dripped chunks": drips(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n" * 900
    ),
    "dripped error": drips(b"HTTP/1.1 500 No\r\nContent-Length: 5000\r\n\r\n", b" " * 5000),
    "many interim answers": drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 200),
}


@pytest.mark.sampled(1)
@WAYS
@pytest.mark.parametrize("script", SLOW.values(), ids=SLOW)
def test_a_slow_vendor_holds_nobody_beyond_the_deadline(
    vendor: Make, provider: Make, ask: Any, script: Script
) -> None:
    error = failure(ask, provider(vendor(script)), 0.3)
    assert isinstance(error, ProviderTimeout)
    assert error.retryable


@pytest.mark.sampled(1)
@WAYS
@pytest.mark.parametrize("name", ["no answer", "half a body"])
def test_the_providers_own_limit_is_kept_too(
    vendor: Make, provider: Make, ask: Any, name: str
) -> None:
    assert isinstance(
        failure(ask, provider(vendor(SLOW[name]), timeouts=Timeouts(first_byte=0.3)), 60),
        ProviderTimeout,
    )


@WAYS
def test_without_time_nothing_is_sent(vendor: Make, provider: Make, ask: Any) -> None:
    at = vendor(answers(OK))
    assert isinstance(failure(ask, provider(at), 0.0), ProviderTimeout)
    assert at.requests == []


@pytest.mark.sampled(1)
@WAYS
def test_a_body_that_is_never_read(vendor: Make, provider: Make, ask: Any) -> None:
    """Sending is bounded as well: a vendor that stops reading blocks the socket."""
    at = vendor(lambda peer: peer.vendor.stopped.wait(SOON))
    big = replace(HI, messages=[{"role": "user", "content": "x" * 20_000_000}])
    mine = provider(at)

    def send(_: HTTPProvider, seconds: float) -> InferResponse:
        return (
            mine.infer(big, Deadline(seconds))
            if ask is infer
            else next(mine.stream(big, Deadline(seconds)))
        )

    assert isinstance(failure(send, mine, 0.5), ProviderTimeout | ProviderUnavailable)


def test_a_body_longer_than_the_kernels_buffers_arrives_whole(vendor: Make, provider: Make) -> None:
    at = vendor(answers(OK))
    said = "x" * 8_000_000
    long = replace(HI, messages=[{"role": "user", "content": said}])
    provider(at).infer(long, Deadline(20))
    [request] = at.requests
    assert len(request.body) == int(request.headers["content-length"])
    assert said.encode() in request.body


# -- connections that break, and answers that are none ---------------------------------------------


def resets(raw: bytes) -> Script:
    def script(peer: Peer) -> None:
        peer.request()
        if raw:
            peer.send(raw)
        peer.reset()

    return script


BROKEN = {
    "reset": resets(b""),
    "reset in the body": resets(answer(200, BODY[:20], length=len(BODY))),
    "closed without an answer": then_closes(),
    "closed at once": lambda peer: None,
    "closed in the status": then_closes(b"HTTP/1.1 20"),
    "closed in the headers": then_closes(b"HTTP/1.1 200 OK\r\nContent-Ty"),
    "short body": then_closes(answer(200, BODY[:-20], length=len(BODY))),
    "short body that is JSON": then_closes(answer(200, BODY, length=len(BODY) + 1)),
    "short error": then_closes(answer(500, b"{", length=50)),
    "chunks without end": then_closes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(BODY), BODY)
    ),
    "a bad chunk size": then_closes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n%b\r\n0\r\n\r\n" % BODY
    ),
    "a negative chunk size": then_closes(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n%b\r\n0\r\n\r\n" % BODY
    ),
    "not HTTP": then_closes(b"SSH-2.0-OpenSSH_9.6\r\n"),
    "a status that is no number": then_closes(b"HTTP/1.1 two OK\r\n\r\n"),
    "a status line without end": then_closes(b"HTTP/1.1 200 " + b"x" * 200_000),
    "a header without end": then_closes(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000),
    "a thousand headers": then_closes(
        b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(1000)) + b"\r\n" + BODY
    ),
    "a length that is no number": then_closes(answer(200, b"", {"Content-Length": "many"})),
    "corrupt gzip": then_closes(
        answer(200, b"\x1f\x8b\x08" + b"\x99" * 50, {"Content-Encoding": "gzip"})
    ),
    "gzip that is none": then_closes(answer(200, BODY, {"Content-Encoding": "gzip"})),
    "cut gzip": then_closes(answer(200, gzip.compress(BODY)[:-40], {"Content-Encoding": "gzip"})),
    "gzip without its end": then_closes(
        answer(200, gzip.compress(BODY)[:-1], {"Content-Encoding": "gzip"})
    ),
    "an unknown encoding": then_closes(
        answer(200, b"\x00\x01" + BODY, {"Content-Encoding": "snappy"})
    ),
    "eight layers": then_closes(answer(200, BODY, {"Content-Encoding": ", ".join(["gzip"] * 8)})),
    "switching protocols": then_closes(b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\n\r\n"),
}


@WAYS
@pytest.mark.parametrize("script", BROKEN.values(), ids=BROKEN)
def test_a_broken_connection_is_an_unavailable_provider(
    vendor: Make, provider: Make, ask: Any, script: Script
) -> None:
    at = vendor(script)
    assert isinstance(failure(ask, provider(at)), ProviderUnavailable)
    assert (
        at.connections == 1
    )  # a fresh connection is not tried again here: that is the router's business


@pytest.mark.sampled(1)
@WAYS
def test_a_refused_head_leaves_no_socket_open(vendor: Make, provider: Make, ask: Any) -> None:
    script = then_closes(b"HTTP/1.1 200 OK\r\nContent-Length: 3, 5\r\n\r\n[1]")
    assert isinstance(failure(ask, provider(vendor(script))), ProviderUnavailable)
    gc.collect()  # pytest reports what is found unclosed


def altered(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def of_message(**changes: Any) -> bytes:
    return altered(
        choices=[
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x"} | changes,
                "finish_reason": "stop",
            }
        ]
    )


NONSENSE = {
    "empty": b"",
    "space": b" \n",
    "HTML": b"<!DOCTYPE html><title>Sign in</title>",
    "null": b"null",
    "a list": b"[]",
    "a string": b'"Hi"',
    "a number": b"7",
    "an empty object": b"{}",
    "half": BODY[:-1],
    "twice": BODY + BODY,
    "no choices": altered(choices=[]),
    "choices null": altered(choices=None),
    "choices of null": altered(choices=[None]),
    "choices an object": altered(choices={"0": {}}),
    "choices a string": altered(choices="x"),
    "a message that is a list": altered(choices=[{"message": []}]),
    "content a number": of_message(content=7),
    "content an object": of_message(content={}),
    "content of strings": of_message(content=["x"]),
    "a text that is none": of_message(content=[{"type": "text", "text": 5}]),
    "calls an object": of_message(tool_calls={}),
    "calls of strings": of_message(tool_calls=["f"]),
    "a function that is none": of_message(tool_calls=[{"id": "1", "function": "f"}]),
    "a number for arguments": of_message(
        tool_calls=[{"id": "1", "function": {"name": "f", "arguments": 5}}]
    ),
    "model a list": altered(model=["x"]),
    "id a number": altered(id=5),
    "usage a list": altered(usage=[1]),
    "a negative count": altered(usage={"prompt_tokens": -1}),
    "a count in words": altered(usage={"prompt_tokens": "seven"}),
    "a count true": altered(usage={"completion_tokens": True}),
    "a count without end": altered(usage={"prompt_tokens": 10**30}),
    "details a list": altered(usage=USAGE | {"prompt_tokens_details": [1]}),
    "a count NaN": altered(usage={"prompt_tokens": float("nan")}),
    "a count infinite": altered(usage={"prompt_tokens": float("inf")}),
    "a number out of range": BODY.replace(b'"total_tokens": 16', b'"total_tokens": 1e999'),
    "a number of 5,000 digits": BODY.replace(
        b'"total_tokens": 16', b'"total_tokens": ' + b"9" * 5000
    ),
    "deep": b"[" * 100_000,
    "deep in an answer": altered(x=1).replace(
        b'"x": 1', b'"x": ' + b"[" * 100_000 + b"]" * 100_000
    ),
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "UTF-16": BODY.decode().encode("utf-16"),
    "Latin-1": '{"a":"é"}'.encode("latin-1"),
    "zeros": b"\0" * 100,
}


@WAYS
@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_an_answer_without_sense_is_an_unavailable_provider(
    vendor: Make, provider: Make, ask: Any, body: bytes
) -> None:
    error = failure(ask, provider(vendor(answers(answer(200, body)))))
    assert isinstance(error, ProviderUnavailable)
    assert error.retryable


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b""),
        b"\n\n",
        b": only a comment\n\n",
        delta(),
        delta("x"),
        delta("x")[:-9],
        BODY,
    ],
    ids=["empty", "lines", "comment", "role", "content", "half", "JSON"],
)
def test_a_stream_without_its_end_is_incomplete(vendor: Make, provider: Make, body: bytes) -> None:
    raw = answer(200, body, {"Content-Type": "text/event-stream"})
    error = failure(stream, provider(vendor(answers(raw))), 3.0)
    assert isinstance(error, StreamIncomplete | ProviderUnavailable)
    assert error.retryable


@pytest.mark.parametrize("body", NONSENSE.values(), ids=NONSENSE)
def test_an_event_without_sense_ends_the_stream_with_an_error(
    vendor: Make, provider: Make, body: bytes
) -> None:
    raw = b"".join(events(delta("x"), b"data: " + body.replace(b"\n", b" ") + b"\n\n", end=False))
    assert isinstance(
        failure(stream, provider(vendor(then_closes(raw)))), ProviderUnavailable | StreamIncomplete
    )


@pytest.mark.parametrize("ending", [then_closes, resets], ids=["closed", "reset"])
def test_a_stream_that_breaks_is_an_error_after_what_came(
    vendor: Make, provider: Make, ending: Any
) -> None:
    got = []
    with pytest.raises(ProviderError):
        for chunk in provider(vendor(ending(b"".join(events(delta("one"), end=False))))).stream(
            HI, Deadline(10)
        ):
            got.append(chunk.text)
    assert got in (["one"], [])  # a reset may overtake the bytes before it
    assert got == ["one"] or ending is resets


def test_a_chunk_that_is_longer_than_it_says_ends_the_stream(vendor: Make, provider: Make) -> None:
    """What follows it is none of the size's line, even where it reads like one."""
    more = data(b'{"choices":[{"index":0,"delta":{"content":"two"}}]}')
    raw = b"".join(events(delta("one"), end=False)) + b"0%x\r\n%b%x\r\n%b\r\n" % (
        len(more),
        more,
        len(more),
        more,
    )
    got = []
    with pytest.raises(ProviderUnavailable):
        for chunk in provider(vendor(then_waits(raw))).stream(HI, Deadline(10)):
            got.append(chunk.text)
    assert got == ["one", "two"]


# -- statuses --------------------------------------------------------------------------------------

STATUSES = [
    (204, ProviderUnavailable, True),
    (301, ProviderUnavailable, False),
    (302, ProviderUnavailable, False),
    (304, ProviderUnavailable, False),
    (307, ProviderUnavailable, False),
    (400, ProviderRejected, False),
    (401, ProviderAuthError, False),
    (403, ProviderAuthError, False),
    (404, ProviderModelNotFound, False),
    (408, ProviderTimeout, True),
    (413, ProviderRejected, False),
    (418, ProviderError, False),
    (422, ProviderRejected, False),
    (429, ProviderRateLimited, True),
    (500, ProviderUnavailable, True),
    (501, ProviderUnavailable, False),
    (502, ProviderUnavailable, True),
    (503, ProviderUnavailable, True),
    (504, ProviderTimeout, True),
    (529, ProviderUnavailable, True),
    (999, ProviderUnavailable, True),
]
WORDS = json.dumps(
    {"error": {"message": "vendor's words", "type": "t", "param": "p", "code": "c"}}
).encode()


@pytest.mark.sampled(33)
@WAYS
@pytest.mark.parametrize(
    "body", [b"", WORDS, b"<html>x</html>", b"[" * 100_000], ids=["empty", "error", "HTML", "deep"]
)
@pytest.mark.parametrize(("status", "kind", "retryable"), STATUSES)
def test_each_status_has_its_error(
    vendor: Make,
    provider: Make,
    ask: Any,
    body: bytes,
    status: int,
    kind: type[ProviderError],
    retryable: bool,
) -> None:
    error = failure(
        ask, provider(vendor(answers(answer(status, b"" if status in (204, 304) else body))))
    )
    assert type(error) is kind
    assert error.retryable is retryable
    assert error.failover is (kind is not ProviderRejected)
    assert ("vendor's words" in error.message) is (
        body is WORDS and kind in (ProviderRejected, ProviderModelNotFound)
    )
    assert error.status == {
        ProviderRejected: 413 if status == 413 else 400,
        ProviderModelNotFound: 404,
        ProviderTimeout: 504,
        ProviderRateLimited: 429,
    }.get(kind, 502)


@WAYS
@pytest.mark.parametrize("said", ["true", "false"])
@pytest.mark.parametrize("status", [400, 429, 500])
def test_a_vendor_says_whether_to_ask_it_again(
    vendor: Make, provider: Make, ask: Any, status: int, said: str
) -> None:
    at = vendor(answers(answer(status, WORDS, {"x-should-retry": said})))
    assert failure(ask, provider(at)).retryable is (said == "true")


def test_a_refusal_that_the_vendor_takes_back_is_asked_again(vendor: Make, provider: Make) -> None:
    at = vendor(answers(answer(400, WORDS, {"x-should-retry": "true"}), OK))
    check_good(Router([provider(at, models=[HI.model])]).infer(HI))
    assert len(at.requests) == 2


@WAYS
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 520, 529])
def test_how_long_to_wait_is_kept(vendor: Make, provider: Make, ask: Any, status: int) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    past = [
        format_datetime(datetime.now(UTC) - timedelta(seconds=seconds), usegmt=True)
        for seconds in (86_400, 86_391)
    ]
    fields = [
        {"Retry-After": "7"},
        {"rEtRy-aFtEr": later},
        {"Retry-After": "nonsense"},
        {"Date": past[0], "Retry-After": past[1]},  # our clock is not the vendor's
        {"Retry-After": "300"},
    ]
    waits = [
        failure(ask, provider(vendor(answers(answer(status, WORDS, each))))).retry_after
        for each in fields
    ]
    assert waits[0] == 7
    assert 40 < (waits[1] or 0) <= 61
    assert waits[2] in (None, ProviderRateLimited.retry_after)
    assert waits[3:] == [9, 300 if status in (429, 503, 529) else None]


# -- what must not leak ----------------------------------------------------------------------------

ECHOES = [
    "bad key {key}",
    "Authorization: Bearer {key}",
    "see http://127.0.0.1:{port}/v1/chat for help",
    "{key}{key}",
    pytest.param("no route from 127.0.0.1:{port} to the backend"),
    pytest.param("upstream 127.0.0.1 says no"),
]


def echoed(words: str, at: Vendor, key: str) -> bytes:
    return json.dumps(
        {"error": {"message": words.format(key=key, port=at.port), "code": 400}}
    ).encode()


def told(error: ProviderError) -> str:
    return f"{error.message} {error} {error.param} {error.summary}"


KEYS = pytest.mark.parametrize("key", [KEY, "k9Xq77"], ids=["usual", "short"])


def echo_of(wrap: Callable[[bytes], bytes], words: str, key: str) -> Script:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(wrap(echoed(words, peer.vendor, key)))

    return script


def check_told(error: ProviderError, at: Vendor, key: str) -> None:
    assert isinstance(error, ProviderRejected)
    for hidden in (key, "127.0.0.1", str(at.port)):
        assert hidden not in told(error)


@KEYS
@WAYS
@pytest.mark.parametrize("words", ECHOES)
def test_an_error_tells_neither_key_nor_address(
    vendor: Make, provider: Make, ask: Any, words: str, key: str
) -> None:
    """A vendor's words reach the caller only where the caller is at fault, and never with our
    secrets in them.
    """
    at = vendor(echo_of(lambda body: answer(400, body), words, key))
    with pytest.raises(ProviderError) as raised:
        ask(provider(at, api_key=key))
    check_told(raised.value, at, key)


INSIDE = {
    "whole": lambda body: answer(200, body),
    "stream": lambda body: b"".join(events(data(body))),
    "late": lambda body: b"".join(events(delta("x"), data(body))),
}


@KEYS
@pytest.mark.parametrize("wrap", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("words", ["bad key {key}", "see http://127.0.0.1:{port}/v1/chat for help"])
def test_nor_does_an_error_inside_an_answer(
    vendor: Make, provider: Make, words: str, wrap: Any, key: str
) -> None:
    at = vendor(echo_of(wrap, words, key))
    with pytest.raises(ProviderError) as raised:
        stream(provider(at, api_key=key))
    check_told(raised.value, at, key)


def test_nor_does_the_parameter_at_fault(vendor: Make, provider: Make) -> None:
    body = json.dumps({"error": {"message": "no", "param": f"headers.{KEY}"}}).encode()
    assert KEY not in told(failure(infer, provider(vendor(answers(answer(400, body))))))


@pytest.mark.parametrize(
    "words",
    [
        "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens' instead.",
        "The model gpt-4o-mini-2024-07-18 does not take context_management_options",
    ],
)
def test_a_vendors_words_about_the_request_are_kept(
    vendor: Make, provider: Make, words: str
) -> None:
    body = json.dumps({"error": {"message": words}}).encode()
    assert failure(infer, provider(vendor(answers(answer(400, body))))).message == words


@pytest.mark.parametrize(
    "words",
    ["sk-ant-api03-" + "Ab1" * 20, "AIza" + "Sy0" * 12, "gsk_" + "Zz9" * 16, "Bearer abc.def.ghi"],
)
def test_keys_of_others_are_not_told_either(vendor: Make, provider: Make, words: str) -> None:
    body = json.dumps({"error": {"message": f"key {words} is odd"}}).encode()
    assert words not in told(failure(infer, provider(vendor(answers(answer(422, body))))))


@pytest.mark.parametrize("key", ["line\nbreak-4711", "ключ-4711", "nul\0-4711", "\ud800-4711"])
def test_a_key_that_no_header_can_carry_is_refused_at_the_start(provider: Make, key: str) -> None:
    with pytest.raises(ConfigError) as raised:
        provider("http://vendor.invalid/v1", api_key=key)
    assert "4711" not in str(raised.value)


@WAYS
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(vendor: Make, provider: Make, ask: Any, status: int) -> None:
    canary = vendor(answers(OK))
    at = vendor(answers(answer(status, b"", {"Location": canary.url + "/chat/completions"})))
    assert isinstance(failure(ask, provider(at)), ProviderUnavailable)
    assert canary.connections == 0
    assert len(at.requests) == 1
    within = vendor(answers(answer(status, b"", {"Location": "/v2/chat/completions"})))
    assert isinstance(failure(ask, provider(within)), ProviderUnavailable)
    assert len(within.requests) == 1  # it would be more requests than attempts


@WAYS
def test_cookies_are_not_sent_back(vendor: Make, provider: Make, ask: Any) -> None:
    at = vendor(answers(answer(200, BODY, {"Set-Cookie": "a=b; Path=/"})))
    mine = provider(at)
    for _ in range(3):
        check_good(ask(mine))
    assert all("cookie" not in sent.headers for sent in at.requests)


PROGRAM = """
import os, resource, sys
from infermux.errors import ProviderError
from infermux.protocol import InferRequest
from infermux.providers.http import HTTPProvider
from infermux.types import Deadline
provider = HTTPProvider("vendor", base_url=sys.argv[1], api_key="our-own-key")
ask = InferRequest(model="m", messages=[{"role": "user", "content": "Hi"}])
def infer():
    return provider.infer(ask, Deadline(20)).content
def stream():
    return "".join(chunk.text for chunk in provider.stream(ask, Deadline(20)))
def outcome(call):
    try:
        return call()
    except ProviderError as error:
        return type(error).__name__
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
"""


def run(at: Vendor, program: str, **environ: str) -> list[str]:
    """What a program in a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + program, at.url],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


def test_the_environment_of_a_request_is_ignored(vendor: Make, tmp_path: Path) -> None:
    at, proxy = vendor(answers(OK)), vendor(answers(OK))
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    other = f"http://127.0.0.1:{proxy.port}"
    names = ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")
    said = run(
        at,
        "print(infer()); print(stream())",
        NETRC=str(netrc),
        HOME=str(tmp_path),
        NO_PROXY="",
        no_proxy="",
        REQUESTS_CA_BUNDLE=str(tmp_path / "nothing"),
        CURL_CA_BUNDLE=str(tmp_path / "nothing"),
        **dict.fromkeys(names, other),
    )
    assert said == ["Grüße 🌍"] * 2
    assert [sent.headers["authorization"] for sent in at.requests] == ["Bearer our-own-key"] * 2
    assert proxy.connections == 0


@WAYS
def test_a_proxy_is_used_where_it_is_configured(vendor: Make, provider: Make, ask: Any) -> None:
    proxy = vendor(answers(OK))
    check_good(ask(provider("http://vendor.invalid/v1", proxy=f"http://127.0.0.1:{proxy.port}")))
    assert proxy.requests[0].line == "POST http://vendor.invalid/v1/chat/completions HTTP/1.1"


def tunnel(then: Script, tls: ssl.SSLContext | None = None) -> Script:
    """A proxy that opens a tunnel and is itself what stands at its other end."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if tls is None:
            then(peer)
        else:
            with tls.wrap_socket(peer.sock, server_side=True) as inside:
                then(Peer(peer.vendor, inside, peer.number))

    return script


@WAYS
def test_tls_goes_through_a_tunnel(
    vendor: Make, provider: Make, tls: ssl.SSLContext, certificate: Path, ask: Any
) -> None:
    proxy = vendor(tunnel(answers(OK), tls))
    at = {"proxy": f"http://127.0.0.1:{proxy.port}", "ca": str(certificate)}
    mine = provider("https://127.0.0.1:4711/v1", **at)
    check_good(ask(mine))
    check_good(ask(mine))
    assert proxy.connections == 1
    assert [sent.line.split()[:2] for sent in proxy.requests] == [
        ["CONNECT", "127.0.0.1:4711"],
        ["POST", "/v1/chat/completions"],
        ["POST", "/v1/chat/completions"],
    ]


@pytest.mark.sampled(1)
@WAYS
@pytest.mark.parametrize(
    "script",
    [drips(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 5000), tunnel(Peer.gone)],
    ids=["dripped head", "no handshake"],
)
def test_a_slow_tunnel_holds_nobody_beyond_the_deadline(
    vendor: Make, provider: Make, ask: Any, script: Script
) -> None:
    proxy = f"http://127.0.0.1:{vendor(script).port}"
    error = failure(ask, provider("https://127.0.0.1:4711/v1", proxy=proxy), 0.4)
    assert isinstance(error, ProviderTimeout | ProviderUnavailable)


# -- bounds ----------------------------------------------------------------------------------------


def floods(head: bytes, piece: bytes, times: int) -> Script:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        for _ in range(times):
            peer.send(piece)

    return script


def bomb(layers: int = 1) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = b"".join(packer.compress(b" " * 2**20) for _ in range(300)) + packer.flush()
    for _ in range(layers - 1):
        packed = gzip.compress(packed)
    return answer(200, packed, {"Content-Encoding": ", ".join(["gzip"] * layers)})


MIB = b"x" * 2**20
FLOODS = {
    "gzip bomb": lambda: then_closes(bomb()),
    "gzip bomb in gzip": lambda: then_closes(bomb(2)),
    "long body": lambda: floods(answer(200, b"", length=300 * 2**20), MIB, 300),
    "long error": lambda: floods(answer(500, b"", length=300 * 2**20), MIB, 300),
    "body without end": lambda: floods(b"HTTP/1.1 200 OK\r\n\r\n", MIB, 300),
    "one line without end": lambda: floods(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: ", MIB, 300
    ),
    "one event without end": lambda: floods(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"data: " + MIB + b"\n", 300
    ),
    "one name without end": lambda: floods(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", b"event: " + MIB + b"\n", 300
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
def test_an_answer_without_end_is_refused_in_bounded_memory(vendor: Make, name: str) -> None:
    at = vendor(then_closes(OK), FLOODS[name](), FLOODS[name]())
    before, one, two, after = run(
        at, "infer(); print(peak()); print(outcome(infer)); print(outcome(stream)); print(peak())"
    )
    assert (one, two) == ("ProviderUnavailable", "ProviderUnavailable")
    assert int(after) - int(before) < 150  # MiB; unbounded it would be 300 or more


@pytest.mark.parametrize("size", [1000, 1_000_000])
def test_the_limit_is_the_providers_own(vendor: Make, provider: Make, size: int) -> None:
    body = BODY + b" " * (size - len(BODY))
    at = vendor(answers(answer(200, body)))
    check_good(infer(provider(at, max_response=size)))
    assert isinstance(failure(infer, provider(at, max_response=size - 1)), ProviderUnavailable)


# -- connections that are kept ---------------------------------------------------------------------


@WAYS
def test_one_connection_serves_many_calls(vendor: Make, provider: Make, ask: Any) -> None:
    raw = OK if ask is infer else b"".join(events(*STREAM))
    at = vendor(answers(raw))
    mine = provider(at)
    for _ in range(5):
        check_good(ask(mine))
    assert at.connections == 1
    assert len(at.requests) == 5


def test_a_stream_that_was_not_asked_for_keeps_its_connection_too(
    vendor: Make, provider: Make
) -> None:
    at = vendor(answers(OK))
    mine = provider(at)
    check_good(stream(mine))
    check_good(infer(mine))
    assert at.connections == 1


def test_a_stream_with_trailers_keeps_its_connection(vendor: Make, provider: Make) -> None:
    """Also one whose trailers read like sizes of chunks, and one that ends a chunk's size in LF
    alone.
    """
    for end in (
        b"0\r\nX-Sum: 1\r\n\r\n",
        b"0\r\nadd\r\nX-Sum: 1\r\n\r\n",
        b"0\n\n",
        b"000;last\r\n\r\n",
    ):
        raw = b"".join(events(*STREAM, end=False)) + end
        at = vendor(answers(raw, raw))
        mine = provider(at)
        check_good(stream(mine))
        check_good(stream(mine))
        assert at.connections == 1


def test_threads_have_connections_of_their_own(vendor: Make, provider: Make) -> None:
    barrier = threading.Barrier(8)

    def script(peer: Peer) -> None:
        while peer.request():
            barrier.wait(SOON)
            peer.send(OK)

    at = vendor(script)
    mine, got = provider(at), []
    threads = [threading.Thread(target=lambda: got.append(infer(mine))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert at.connections == 8


def lost(end: Callable[[Peer], object], raw: bytes = OK) -> Script:
    """Answers one request, reads a second one, and then does something else."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(raw)
        peer.request()
        end(peer)

    return script


# as HAProxy and load balancers end an idle connection
IDLE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
HANGS_UP = pytest.mark.parametrize(
    "end",
    [pytest.param(lambda peer: None), Peer.reset, lambda peer: peer.send(IDLE)],
    ids=["close", "reset", "408"],
)


@WAYS
@HANGS_UP
def test_a_kept_connection_that_died_is_replaced(
    vendor: Make, provider: Make, ask: Any, end: Any
) -> None:
    at = vendor(lost(end), answers(OK))
    mine = provider(at)
    check_good(ask(mine))
    check_good(ask(mine))
    assert [sent.connection for sent in at.requests] == [0, 0, 1]
    assert at.requests[1].body == at.requests[2].body


@WAYS
@HANGS_UP
def test_but_only_once(vendor: Make, provider: Make, ask: Any, end: Any) -> None:
    at = vendor(lost(end), then_closes(), answers(OK))
    mine = provider(at)
    check_good(ask(mine))
    assert isinstance(failure(ask, mine), ProviderUnavailable)
    assert [sent.connection for sent in at.requests] == [0, 0, 1]


def test_a_timeout_that_an_application_tells_is_an_answer(vendor: Make, provider: Make) -> None:
    at = vendor(answers(OK, answer(408)))
    mine = provider(at)
    check_good(infer(mine))
    assert isinstance(failure(infer, mine), ProviderTimeout)
    assert len(at.requests) == 2


@WAYS
@HANGS_UP
def test_other_dead_connections_are_not_taken_instead(
    vendor: Make, provider: Make, ask: Any, end: Any
) -> None:
    """Several kept connections may have died together: the second try needs a new one."""
    barrier = threading.Barrier(2)

    def script(peer: Peer) -> None:
        peer.request()
        barrier.wait(SOON)
        peer.send(OK)
        peer.request()
        end(peer)

    at = vendor(script, script, answers(OK))
    mine = provider(at)
    other = threading.Thread(target=lambda: infer(mine))
    other.start()
    check_good(infer(mine))
    other.join()
    check_good(ask(mine))
    assert [sent.connection for sent in at.requests[2:]] in ([0, 2], [1, 2])


@WAYS
@pytest.mark.parametrize(
    "end",
    [
        lambda peer: peer.send(b"HTTP/1.1 200 OK\r\nConte"),
        lambda peer: peer.send(answer(200, b"{", length=9)),
    ],
    ids=["in the headers", "in the body"],
)
def test_a_kept_connection_that_broke_in_an_answer_is_not_tried_again(
    vendor: Make, provider: Make, ask: Any, end: Any
) -> None:
    """The vendor has done the work, and charges for it."""
    at = vendor(lost(end), answers(OK))
    mine = provider(at)
    check_good(ask(mine))
    assert isinstance(failure(ask, mine), ProviderUnavailable)
    assert len(at.requests) == 2


@WAYS
def test_a_kept_connection_that_is_silent_is_not_tried_again(
    vendor: Make, provider: Make, ask: Any
) -> None:
    at = vendor(lost(Peer.gone), answers(OK))
    mine = provider(at)
    check_good(ask(mine))
    assert isinstance(failure(ask, mine, 0.3), ProviderTimeout)
    assert len(at.requests) == 2


def test_a_kept_connection_that_takes_no_more_is_not_tried_again(
    vendor: Make, provider: Make
) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.vendor.stopped.wait(SOON)

    at = vendor(script)
    mine = provider(at, timeouts=Timeouts(first_byte=0.3))
    check_good(infer(mine))
    big = replace(HI, messages=[{"role": "user", "content": "x" * 20_000_000}])
    with pytest.raises(ProviderTimeout):
        mine.infer(big, Deadline(10))
    assert at.connections == 1


def test_a_connection_that_was_closed_long_ago_is_noticed(vendor: Make, provider: Make) -> None:
    closed = threading.Event()

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(OK)
        peer.sock.close()
        closed.set()

    at = vendor(script, answers(OK))
    mine = provider(at)
    check_good(infer(mine))
    assert closed.wait(SOON)
    check_good(infer(mine))
    assert [sent.connection for sent in at.requests] == [0, 1]


def test_a_forked_process_has_its_own_connections(vendor: Make) -> None:
    at = vendor(answers(OK))
    said = run(
        at,
        """
infer()
child = os.fork()
if not child:
    os._exit(0 if infer() == infer() else 1)
print(infer(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), infer())
""",
    )
    assert said == ["Grüße 🌍 0 Grüße 🌍"]
    assert at.connections == 2
    assert sorted(sent.connection for sent in at.requests) == [0, 0, 0, 1, 1]


# -- streams that end early, late, or not at all ---------------------------------------------------


def test_a_closed_stream_closes_its_connection_at_once(vendor: Make, provider: Make) -> None:
    at = vendor(then_waits(b"".join(events(delta("one"), end=False))))
    chunks = provider(at).stream(HI, Deadline(60))
    assert next(chunks).text == "one"
    assert not at.left.is_set()
    chunks.close()
    assert at.left.wait(SOON)


def test_a_stream_that_is_not_begun_sends_nothing(vendor: Make, provider: Make) -> None:
    at = vendor(answers(OK))
    provider(at).stream(HI, Deadline(60)).close()
    assert at.connections == 0


def test_a_stream_left_in_the_middle_does_not_spoil_the_next_call(
    vendor: Make, provider: Make
) -> None:
    at = vendor(answers(b"".join(events(*STREAM))), answers(OK))
    mine = provider(at)
    chunks = mine.stream(HI, Deadline(10))
    next(chunks)
    chunks.close()
    check_good(infer(mine))


@pytest.mark.parametrize("end", [b"", b"0\r\n"], ids=["nothing", "half"])
def test_after_done_nobody_waits_for_the_end_of_the_body(
    vendor: Make, provider: Make, end: bytes
) -> None:
    at = vendor(then_waits(b"".join(events(*STREAM, end=False)) + end))
    begun = time.monotonic()
    check_good(stream(provider(at, timeouts=Timeouts(idle=3.0))))
    assert time.monotonic() - begun < 2.5
    assert at.left.wait(SOON)


def paced(*pieces: bytes, pause: float, head: bytes = HEAD, chunked: bool = True) -> Script:
    """Sends a stream with a pause after each piece."""

    def script(peer: Peer) -> None:
        peer.request()
        peer.send(head)
        for piece in pieces:
            peer.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            peer.vendor.stopped.wait(pause)
        peer.send(b"0\r\n\r\n" if chunked else b"")

    return script


def test_before_the_first_content_the_calls_deadline_holds(vendor: Make, provider: Make) -> None:
    at = vendor(then_waits(b"".join(events(delta(), end=False))))
    assert isinstance(failure(stream, provider(at), 0.4), ProviderTimeout)
    assert at.left.wait(SOON)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "piece",
    [delta(), b": PROCESSING\n\n", b"\n", b"x"],
    ids=["roles", "comments", "lines", "no lines"],
)
def test_what_is_no_content_does_not_buy_time(vendor: Make, provider: Make, piece: bytes) -> None:
    at = vendor(paced(*[piece] * 500, pause=0.02))
    assert isinstance(failure(stream, provider(at), 0.4), ProviderTimeout)


def test_after_the_first_content_the_stream_has_limits_of_its_own(
    vendor: Make, provider: Make
) -> None:
    at = vendor(paced(*STREAM, pause=0.15))
    check_good(stream(provider(at, timeouts=Timeouts(idle=10, total=30)), 0.4))


def test_silence_between_two_pieces_is_limited(vendor: Make, provider: Make) -> None:
    at = vendor(then_waits(b"".join(events(delta("one"), end=False))))
    got = []
    with pytest.raises(ProviderTimeout):
        for chunk in provider(at, timeouts=Timeouts(idle=0.3)).stream(HI, Deadline(60)):
            got.append(chunk.text)
    assert got == ["one"]
    assert at.left.wait(SOON)


def test_a_stream_without_end_is_limited(vendor: Make, provider: Make) -> None:
    at = vendor(paced(*[delta("more")] * 500, pause=0.02))
    assert isinstance(
        failure(stream, provider(at, timeouts=Timeouts(total=0.4)), 60), ProviderTimeout
    )


PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
FRAMES = pytest.mark.parametrize(
    ("head", "chunked"), [(HEAD, True), (PLAIN, False)], ids=["chunked", "plain"]
)
SILENT = pytest.mark.parametrize(
    ("head", "chunked"),
    [pytest.param(HEAD, True), (PLAIN, False)],
    ids=["chunked", "plain"],
)


def beats(monkeypatch: pytest.MonkeyPatch, provider: HTTPProvider) -> list[str]:
    """The texts of a stream, with a mark for each run of heartbeats."""
    monkeypatch.setattr(transport, "HEARTBEAT_SECONDS", 0.05)
    seen: list[str] = []
    for chunk in provider.stream(HI, Deadline(20)):
        if chunk != HEARTBEAT:
            seen.append(chunk.text)
        elif not seen or seen[-1] != "beat":
            seen.append("beat")
    return seen


@pytest.mark.sampled(1)
@SILENT
def test_a_silent_stream_shows_signs_of_life(
    vendor: Make, provider: Make, monkeypatch: pytest.MonkeyPatch, head: bytes, chunked: bool
) -> None:
    at = vendor(paced(delta("one"), delta("two", "stop"), pause=0.5, head=head, chunked=chunked))
    assert beats(monkeypatch, provider(at))[:3] == ["one", "beat", "two"]


@pytest.mark.sampled(1)
@SILENT
def test_also_before_its_first_content(
    vendor: Make, provider: Make, monkeypatch: pytest.MonkeyPatch, head: bytes, chunked: bool
) -> None:
    at = vendor(paced(delta(), delta("two", "stop") + DONE, pause=0.5, head=head, chunked=chunked))
    assert beats(monkeypatch, provider(at)) == ["", "beat", "two"]


@pytest.mark.sampled(1)
@FRAMES
@pytest.mark.parametrize(
    "piece", [b": PROCESSING\n\n", b"data"], ids=["comments", "bits of a line"]
)
def test_also_where_only_comments_or_bits_come(
    vendor: Make,
    provider: Make,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    chunked: bool,
    piece: bytes,
) -> None:
    at = vendor(
        paced(
            delta("one"),
            *[piece] * 25,
            b"\n\n" + delta("two", "stop") + DONE,
            pause=0.02,
            head=head,
            chunked=chunked,
        )
    )
    assert beats(monkeypatch, provider(at)) == ["one", "beat", "two"]


def test_a_compressed_stream_is_passed_on_without_waiting(
    vendor: Make, provider: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some gateways compress whatever they are asked; more may come out of one read than went in."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    many = packer.compress(b"".join(delta("one") for _ in range(5000))) + packer.flush(
        zlib.Z_SYNC_FLUSH
    )
    last = packer.compress(delta("two", "stop") + DONE) + packer.flush()
    head = HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    chunks = provider(vendor(paced(many, last, pause=3.0, head=head))).stream(HI, Deadline(20))
    begun = time.monotonic()
    assert [next(chunks).text for _ in range(5000)] == ["one"] * 5000
    assert time.monotonic() - begun < 2.5
    chunks.close()


@pytest.mark.sampled(1)
@SILENT
def test_a_compressed_stream_shows_signs_of_life_too(
    vendor: Make, provider: Make, monkeypatch: pytest.MonkeyPatch, head: bytes, chunked: bool
) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    pieces = [
        packer.compress(part) + packer.flush(zlib.Z_SYNC_FLUSH)
        for part in (delta("one"), delta("two", "stop") + DONE)
    ]
    head = head[:-2] + b"Content-Encoding: gzip\r\n\r\n"
    at = vendor(paced(*pieces, packer.flush(), pause=0.5, head=head, chunked=chunked))
    assert beats(monkeypatch, provider(at))[:3] == ["one", "beat", "two"]


# -- recorded traffic, over a socket ---------------------------------------------------------------


def recorded() -> list[Any]:
    files = sorted((SHARED / "exchanges").glob("*.openai.chat.*.json"))
    return [json.loads(file.read_text(encoding="utf-8")) for file in files]


@pytest.fixture(
    scope="module",
    params=[{"split": "event"}, {"split": "mid-utf8", "gzip": True}, {"split": "random"}],
    ids=["event", "mid-utf8, gzip", "random"],
)
def replay(request: pytest.FixtureRequest) -> Iterator[Any]:
    if not SHARED.exists():
        pytest.skip("no recordings")
    server = loaded(SHARED / "replay.py").make([str(SHARED / "exchanges")], **request.param)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("replay_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


EXPECTED_KINDS = {
    400: (ProviderRejected, ProviderContextTooLong),
    401: (ProviderAuthError,),
    404: (ProviderModelNotFound,),
    429: (ProviderRateLimited,),
    200: (ProviderRejected, StreamIncomplete, ProviderUnavailable),
}


@pytest.mark.sampled(25)
@pytest.mark.parametrize("exchange", recorded(), ids=lambda each: str(each["id"]))
def test_a_recording_reads_the_same_over_a_socket(
    replay: Any, provider: Make, exchange: dict[str, Any]
) -> None:
    expected = exchange["expected"]
    ask = stream if exchange["stream"] else infer
    mine = provider(f"{replay.url}/__id/{exchange['id']}")
    if expected["error"]:
        assert isinstance(failure(ask, mine), EXPECTED_KINDS[exchange["response"]["status"]])
        return
    response = ask(mine)
    assert response.content == expected["text"]
    assert response.reasoning == (expected["reasoning_text"] or "")
    assert response.refusal == (expected["refusal"] or "")
    assert response.finish_reason == {"": "stop", "eos": "stop"}.get(
        expected["finish_reason_raw"], expected["finish_reason_raw"]
    )
    assert [call["function"]["name"] for call in response.tool_calls] == [
        call["name"] for call in expected["tool_calls"]
    ]
    assert [json.loads(call["function"]["arguments"] or "{}") for call in response.tool_calls] == [
        call["arguments"] for call in expected["tool_calls"]
    ]
    assert response.model == (expected["model"] or HI.model)
    usage = expected["usage"] or {"all_input_tokens": 0, "all_output_tokens": 0}
    assert (response.tokens_in, response.tokens_out) == (
        usage["all_input_tokens"],
        usage["all_output_tokens"],
    )


# -- foreign exceptions ----------------------------------------------------------------------------


def kinds(module: ModuleType) -> list[type[BaseException]]:
    return sorted(
        {
            kind
            for kind in vars(module).values()
            if isinstance(kind, type)
            and issubclass(kind, Exception)
            and not issubclass(kind, Warning)
            and kind.__module__.split(".")[0] in ("requests", "urllib3", "http", "ssl")
        },
        key=lambda kind: kind.__name__,
    )


FOREIGN = [
    kind
    for module in (requests.exceptions, urllib3.exceptions, http.client, ssl)
    for kind in kinds(module)
]


def test_the_walk_finds_the_exceptions() -> None:
    assert {kind.__module__.split(".")[0] for kind in FOREIGN} == {
        "requests",
        "urllib3",
        "http",
        "ssl",
    }
    assert len(FOREIGN) > 60


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, id=f"{kind.__module__}.{kind.__name__}") for kind in FOREIGN]
)
def test_every_foreign_exception_is_mapped(kind: type[Exception]) -> None:
    assert issubclass(kind, failures.FOREIGN)
    error = failures.mapped(kind.__new__(kind))
    assert isinstance(error, ProviderError)
    assert kind.__name__ not in error.message


@pytest.mark.parametrize(
    ("kind", "wanted", "retryable"),
    [
        (requests.exceptions.ConnectTimeout, ProviderTimeout, True),
        (requests.exceptions.ReadTimeout, ProviderTimeout, True),
        (urllib3.exceptions.ReadTimeoutError, ProviderTimeout, True),
        (ssl.SSLCertVerificationError, ProviderUnavailable, False),
        (requests.exceptions.SSLError, ProviderUnavailable, False),
        (requests.exceptions.ConnectionError, ProviderUnavailable, True),
        (requests.exceptions.ChunkedEncodingError, ProviderUnavailable, True),
        pytest.param(urllib3.exceptions.NewConnectionError, ProviderUnavailable, True),
        (http.client.IncompleteRead, ProviderUnavailable, True),
        (urllib3.exceptions.DecodeError, ProviderUnavailable, True),
    ],
)
def test_a_timeout_is_told_from_a_broken_line(
    kind: type[Exception], wanted: type[ProviderError], retryable: bool
) -> None:
    error = failures.mapped(kind.__new__(kind))
    assert type(error) is wanted
    assert error.retryable is retryable


@pytest.mark.parametrize(
    "kind",
    [ConnectionResetError, BrokenPipeError, TimeoutError, InterruptedError, OSError],
    ids=lambda kind: kind.__name__,
)
def test_what_a_socket_raises_is_mapped(kind: type[OSError]) -> None:
    wanted = ProviderTimeout if kind is TimeoutError else ProviderUnavailable
    assert type(failures.mapped(kind("secret"))) is wanted


# -- with the responses package, as its users test -------------------------------------------------

URL = "https://vendor.example/v1/chat/completions"


@responses.activate
@WAYS
def test_responses_can_stand_in_for_the_vendor(provider: Make, ask: Any) -> None:
    sent = responses.post(
        URL,
        json=GOOD,
        match=[responses.matchers.header_matcher({"Authorization": f"Bearer {KEY}"})],
    )
    check_good(ask(provider("https://vendor.example/v1")))
    assert json.loads(sent.calls[0].request.body)["model"] == "vendor-model-1"


@responses.activate
def test_responses_can_stand_in_for_a_stream(provider: Make) -> None:
    responses.post(URL, body=b"".join(STREAM), content_type="text/event-stream")
    check_good(stream(provider("https://vendor.example/v1")))


@responses.activate
@WAYS
def test_responses_can_stand_in_for_an_error(provider: Make, ask: Any) -> None:
    responses.post(
        URL, status=429, json={"error": {"message": "slow down"}}, headers={"Retry-After": "3"}
    )
    error = failure(ask, provider("https://vendor.example/v1"))
    assert isinstance(error, ProviderRateLimited)
    assert error.retry_after == 3


@responses.activate
@WAYS
@pytest.mark.parametrize(
    "kind",
    [
        requests.exceptions.ConnectTimeout,
        requests.exceptions.ReadTimeout,
        requests.exceptions.SSLError,
    ],
)
def test_responses_can_stand_in_for_a_broken_line(
    provider: Make, ask: Any, kind: type[Exception]
) -> None:
    responses.post(URL, body=kind("https://vendor.example said no"))
    error = failure(ask, provider("https://vendor.example/v1"))
    assert isinstance(
        error, ProviderUnavailable if kind is requests.exceptions.SSLError else ProviderTimeout
    )
    assert "vendor.example" not in error.message


# -- what cannot be sent ---------------------------------------------------------------------------


@WAYS
@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), pytest.param({1, 2}), pytest.param(b"x")],
    ids=["NaN", "infinite", "set", "bytes"],
)
def test_a_request_that_is_no_json_is_the_callers_fault(
    vendor: Make, provider: Make, ask: Any, value: object
) -> None:
    at = vendor(answers(OK))
    request = replace(HI, params={"x": value})
    with pytest.raises(RequestError):
        provider(at).infer(request, Deadline(10)) if ask is infer else list(
            provider(at).stream(request, Deadline(10))
        )
    assert at.connections == 0


# -- odd values everywhere -------------------------------------------------------------------------

ODD: list[Any] = [None, True, -1, 1.5, 10**390, "", "x", [], [None], [{}], {}, {"x": None}]
RICH = GOOD | {
    "usage": USAGE
    | {
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 2},
        "cost": 0.5,
        "cost_in_usd_ticks": 7,
    },
    "choices": [
        {
            "index": 0,
            "finish_reason": "tool_calls",
            "message": {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]},
                    {"type": "text", "text": "x"},
                ],
                "refusal": "no",
                "reasoning_content": "so",
                "reasoning_details": [{"type": "reasoning.text", "text": "so", "index": 0}],
                "function_call": {"name": "f", "arguments": "{}"},
                "tool_calls": [
                    {
                        "id": "c1",
                        "type": "function",
                        "index": 0,
                        "function": {"name": "f", "arguments": "{}"},
                    }
                ],
            },
        }
    ],
}


def as_chunk(body: dict[str, Any]) -> dict[str, Any]:
    choice = body["choices"][0]
    return body | {
        "choices": [
            {name: value for name, value in choice.items() if name != "message"}
            | {"delta": choice["message"]}
        ]
    }


@pytest.mark.sampled(1)
@pytest.mark.parametrize("way", ["infer", "stream", "whole"])
def test_no_value_anywhere_gives_anything_but_an_answer_or_our_error(
    vendor: Make, provider: Make, way: str
) -> None:
    """One hostile vendor behind one connection pool, with every field of a good answer replaced by
    every odd value.
    """
    body = as_chunk(RICH) if way == "stream" else RICH
    cases = [(at, odd) for at in places(body) for odd in ODD]
    random.Random(5).shuffle(cases)
    raw = [json.dumps(with_odd(body, at, odd)).encode() for at, odd in cases]
    wire = [
        b"".join(events(data(each), DONE)) if way == "stream" else answer(200, each) for each in raw
    ]
    upcoming = iter(wire)

    def script(peer: Peer) -> None:
        while peer.request():
            peer.send(next(upcoming))

    mine = provider(vendor(script), max_response=2**20)
    for at, odd in cases:
        try:
            (infer if way == "infer" else stream)(mine)
        except ProviderError:
            continue
        except Exception as error:
            pytest.fail(f"{error!r} for {odd!r:.40} at {at}")
