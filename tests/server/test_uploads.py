"""Tests of uploads and long answers at a real gunicorn: they pass through in constant memory."""

from __future__ import annotations

import gc
import http.client
import socket
import sqlite3
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from doors import Front
from media_vendor import SPEECH, MediaVendor, pieces
from support import PATIENCE, Peer, Service, ask, eventually
from test_media import provider

openai = pytest.importorskip("openai")
MB = 1024 * 1024
BIG = 48 * MB
HEAD = b'--xYz\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
FILE = b'--xYz\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
END = b"\r\n--xYz--\r\n"
KIND = {"Content-Type": "multipart/form-data; boundary=xYz"}
TOML = """
[providers.openai]
api_key = "env:VENDOR_KEY"
base_url = "{url}/v1"

[server]
workers = 1
threads = 32
max_upload = 67108864
"""


@pytest.fixture(scope="module")
def vendor() -> Iterator[MediaVendor]:
    with MediaVendor() as made:
        yield made


@pytest.fixture(autouse=True)
def calm(vendor: MediaVendor) -> None:
    vendor.forget()


@pytest.fixture(scope="module")
def service(vendor: MediaVendor, tmp_path_factory: Any) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("uploads")
    (folder / "infermux.toml").write_text(TOML.format(url=vendor.url))
    (folder / "tmp").mkdir()
    env = {
        "INFERMUX_CONFIG": str(folder / "infermux.toml"),
        "VENDOR_KEY": "sk-vendor",
        "TMPDIR": str(folder / "tmp"),
    }
    with Service(env=env) as made:
        made.temporary = folder / "tmp"  # type: ignore[attr-defined]
        yield made


def rows(service: Service) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(f"{service.folder.name}/infermux.db")) as database:
        return database.execute(
            "SELECT api, status, error_code FROM calls ORDER BY at_ns DESC"
        ).fetchall()


def peak(service: Service) -> int:
    """The most memory that the worker has used, in bytes."""
    text = Path(f"/proc/{service.workers[0]}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def begin(service: Service, size: int) -> socket.socket:
    """Send the head of an upload, and the field with the model."""
    sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
    head = "\r\n".join(
        [
            "POST /v1/audio/transcriptions HTTP/1.1",
            "Host: a",
            f"Content-Type: {KIND['Content-Type']}",
            f"Content-Length: {size}",
        ]
    )
    sock.sendall(f"{head}\r\n\r\n".encode() + HEAD % (b"model", b"openai/whisper-1") + FILE)
    return sock


def size_of(file: int) -> int:
    return len(HEAD % (b"model", b"openai/whisper-1") + FILE) + file + len(END)


def test_an_upload_reaches_the_vendor_while_it_is_sent(service: Service, vendor: MediaVendor):
    with closing(begin(service, size_of(4 * MB))) as sock:
        sock.sendall(bytes(2 * MB))
        vendor.wait(MB)
        sock.sendall(bytes(2 * MB) + END)
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, b"Hello" in answer.read()) == (200, True)
    assert len(vendor.seen[0].body.files["file"]) == 4 * MB


def test_chunks_pass_too(service: Service, vendor: MediaVendor):
    body = iter([HEAD % (b"model", b"openai/whisper-1"), FILE, bytes(MB), bytes(MB), END])
    answer = ask(service.port, "/v1/audio/transcriptions", body, headers=KIND, method="POST")
    assert answer.json["text"] == "Hello"
    assert len(vendor.seen[0].body.files["file"]) == 2 * MB


@pytest.mark.slow
@pytest.mark.parametrize("model_first", [True, False])
def test_a_long_upload_takes_little_memory(
    service: Service, vendor: MediaVendor, model_first: bool
):
    ask(service.port, "/v1/audio/speech", {"model": "openai/tts-1", "input": "a", "voice": "b"})
    before, field = peak(service), HEAD % (b"model", b"openai/whisper-1")
    parts = [field, FILE, *[bytes(MB)] * (BIG // MB), END]
    if not model_first:
        parts = [FILE, *[bytes(MB)] * (BIG // MB), b"\r\n", field[:-2], END]
    headers = KIND | {"Content-Length": str(sum(map(len, parts)))}
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    with closing(connection):
        connection.request("POST", "/v1/audio/transcriptions", iter(parts), headers)
        assert connection.getresponse().status == 200
    assert len(vendor.seen[-1].body.files["file"]) == BIG
    assert peak(service) - before < 8 * MB
    assert not list(service.temporary.iterdir())  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_long_answer_takes_little_memory(service: Service, vendor: MediaVendor):
    speech = {"model": "openai/tts-1", "input": "a", "voice": "b"}
    ask(service.port, "/v1/audio/speech", speech)
    before = peak(service)
    for kind, first, last in (
        ("audio/mpeg", b"", b""),
        ("application/json", b'{"data":[{"b64_json":"', b'"}],"usage":{"total_tokens":7}}'),
        ("text/event-stream", b'data: {"type":"speech.audio.done","b64":"', b'"}\n\n'),
    ):
        vendor.forget(pieces(*filter(None, [first, *[b"A" * MB] * 48, last]), kind=kind))
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
        with closing(connection):
            connection.request(
                "POST", "/v1/audio/speech", b'{"model":"openai/tts-1"}', {"Content-Type": "a/b"}
            )
            answer, total = connection.getresponse(), 0
            while data := answer.read(MB):
                total += len(data)
        assert total == 48 * MB + len(first + last)
    assert peak(service) - before < 10 * MB


class Sink(Peer):
    """A vendor that forgets an upload while it reads it, and repeats a piece as its answer."""

    kind, first, last = "application/json", b'{"text":"', b'"}'
    times = 1
    idle = 0  # threads
    peak = 0  # the most bytes that Python has allocated, when it has answered

    def serve(self, handler: Any) -> None:
        while handler.headers["Transfer-Encoding"] and (line := handler.rfile.readline()).strip():
            left = int(line, 16) + 2
            while left:
                left -= len(handler.rfile.read1(min(left, PIECE)))
            if line.strip() == b"0":
                break
        left = int(handler.headers["Content-Length"] or 0)
        while left:
            left -= len(handler.rfile.read1(min(left, PIECE)))
        handler.send_response(200)
        handler.send_header("Content-Type", self.kind)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(self.first)
        for _ in range(self.times):
            handler.wfile.write(ZEROS)
        self.peak = tracemalloc.get_traced_memory()[1]  # Flask's server later takes 10 MB
        handler.wfile.write(self.last)
        handler.close_connection = True


PIECE = 16_384
ZEROS = b"0" * PIECE
MODEL = HEAD % (b"model", b"openai/whisper-1")


def traced(front: Front, vendor: Sink, path: str, body: Any, **headers: str) -> int:
    """Return the most bytes that Python has allocated for a call."""
    assert eventually(lambda: threading.active_count() <= vendor.idle)  # no other call
    gc.collect()
    tracemalloc.start()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=PATIENCE)
        with closing(connection):
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            assert answer.status == 200, answer.read(1000)
            while answer.read(PIECE):
                pass
        return vendor.peak
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_python_holds_less_than_a_megabyte_for_an_upload_or_an_answer():
    with Sink() as vendor, Front(provider(vendor)) as front:
        vendor.idle = threading.active_count()
        file = [FILE, *[ZEROS] * (16 * MB // PIECE)]
        short = [MODEL, FILE, *[ZEROS] * (MB // PIECE - 1), b"0" * 1000, END]
        long = [MODEL, *file, END]
        sizes = []
        for parts in (long, long, [*file, b"\r\n", MODEL[:-2], END], short):
            length = {"Content-Length": str(sum(map(len, parts)))}
            for headers in (KIND | length, KIND):
                sizes.append(
                    traced(front, vendor, "/v1/audio/transcriptions", iter(parts), **headers)
                )
        vendor.times = 16 * MB // PIECE
        for vendor.kind, vendor.first, vendor.last in (
            ("audio/mpeg", b"", b""),
            ("application/json", b'{"data":[{"b64_json":"', b'"}],"usage":{"total_tokens":7}}'),
            ("text/event-stream", b'data: {"type":"speech.audio.done","b64":"', b'"}\n\n'),
        ):
            body = b'{"model":"openai/tts-1","input":"a"}'
            sizes.append(traced(front, vendor, "/v1/audio/speech", body))
    assert max(sizes[2:]) < MB  # the first ones load modules


def test_a_cut_answer_is_never_whole(service: Service, vendor: MediaVendor):
    body = {"model": "openai/tts-1", "input": "a", "voice": "b"}
    vendor.forget(pieces(SPEECH, end="reset"))
    with pytest.raises(http.client.IncompleteRead):
        ask(service.port, "/v1/audio/speech", body)
    assert eventually(lambda: rows(service)[0][:2] == ("audio", "502"))

    def part(vendor: MediaVendor, handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "audio/wav")
        handler.send_header("Content-Length", str(2 * MB))
        handler.end_headers()
        handler.wfile.write(SPEECH)
        handler.reset()

    vendor.forget(part)
    with pytest.raises(http.client.IncompleteRead):
        ask(service.port, "/v1/audio/speech", body)
    vendor.forget(pieces(SPEECH, end="reset"))
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:  # as nginx asks
        text = b'{"model":"openai/tts-1","input":"a"}'
        sock.sendall(
            b"POST /v1/audio/speech HTTP/1.0\r\nContent-Length: %d\r\n\r\n%b" % (len(text), text)
        )
        with pytest.raises(ConnectionResetError):
            while sock.recv(65536):
                pass


def test_a_client_that_leaves_ends_the_vendors_work(service: Service, vendor: MediaVendor):
    gone = threading.Event()
    vendor.forget(pieces(SPEECH, lambda: gone.wait(PATIENCE), *[SPEECH] * 200))
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=PATIENCE)
    connection.request("POST", "/v1/audio/speech", b'{"model":"openai/tts-1","input":"a"}')
    connection.getresponse().read(1000)
    connection.sock.close()
    connection.close()
    gone.set()
    assert vendor.left.wait(PATIENCE)


def test_an_upload_that_ends_early_ends_at_the_vendor(service: Service, vendor: MediaVendor):
    with closing(begin(service, size_of(4 * MB))) as sock:
        sock.sendall(bytes(2 * MB))
        vendor.wait(MB)
    assert eventually(lambda: vendor.broken) == 1
    assert not vendor.seen
    assert eventually(lambda: rows(service)[0][:2] == ("audio", "400"))


def test_an_upload_over_the_limit_is_refused(service: Service, vendor: MediaVendor):
    with closing(begin(service, 65 * MB)) as sock:
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        assert (answer.status, b"longer than 67108864 bytes" in answer.read()) == (413, True)
    assert not vendor.seen
    answer = ask(service.port, "/v1/images/generations", {"prompt": "a" * 40 * MB})
    assert b"longer than 33554432 bytes" in answer.data


@pytest.mark.slow
def test_the_sdk_works_unchanged(service: Service, vendor: MediaVendor):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="any") as client:
        assert client.images.generate(prompt="a", model="gpt-image-1").usage.total_tokens == 1106
        stream = client.audio.transcriptions.create(
            file=("a.wav", b"RIFF"), model="gpt-4o-transcribe", stream=True
        )
        assert list(stream)[-1].type == "transcript.text.done"
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello"
        ) as answer:
            assert b"".join(answer.iter_bytes()) == SPEECH
        assert client.moderations.create(input="a").results[0].flagged is False
        file = client.files.create(file=("a.jsonl", b"{}\n"), purpose="batch")
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
        assert client.batches.retrieve(batch.id).status == "validating"
        assert [each.id for each in client.files.list()] == [file.id]
    found = ask(service.port, "/providers").json["providers"]
    assert "audio/speech" in next(each for each in found if each["name"] == "openai")["endpoints"]
