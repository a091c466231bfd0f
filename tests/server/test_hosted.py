"""Tests of a host's own app under our gunicorn worker: complete responses, true client schemes."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support import HELLO, PATIENCE, Service

HOST = """
import time
from flask import Flask, Response, request, send_file
import infermux

app = Flask("host")
app.register_blueprint(infermux.blueprint(infermux.Router(infermux.Registry([infermux.EchoProvider()]))))
app.add_url_rule("/file", "file", lambda: send_file(__file__))
app.add_url_rule("/nothing", "nothing", lambda: Response(b"", 200))
app.add_url_rule("/short", "short", lambda: b"short")
app.add_url_rule("/large", "large", lambda: b"x" * 3_000_000)
app.add_url_rule("/none", "none", lambda: ("", 204))
app.add_url_rule("/scheme", "scheme", lambda: request.scheme)


@app.get("/parts")
def parts():
    return Response((piece for piece in (b"", b"one", b"", b"two")), headers={"Content-Length": "6"})


@app.get("/chunks")
def chunks():
    return Response(piece for piece in (b"one", b"two"))
"""
HELLO_BYTES = json.dumps(HELLO).encode()
TRUSTED = "127.0.0.2"  # every address of 127.0.0.0/8 is this machine's own


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    place = tmp_path_factory.mktemp("host")
    (place / "host.py").write_text(HOST)
    with Service(
        "-w", "1", "--pythonpath", str(place), "--forwarded-allow-ips", TRUSTED, app="host:app"
    ) as running:
        yield running


def kept(service: Service, source: str = "127.0.0.1") -> closing[http.client.HTTPConnection]:
    return closing(
        http.client.HTTPConnection(
            "127.0.0.1", service.port, timeout=PATIENCE, source_address=(source, 0)
        )
    )


def test_every_kind_of_answer_comes_whole_on_one_connection(service: Service) -> None:
    """Some have no body, one comes from a file past Python, one is long, one in parts: the next
    answer begins where each ends.
    """
    bodies = {
        "/file": HOST.encode(),
        "/nothing": b"",
        "/short": b"short",
        "/large": b"x" * 3_000_000,
        "/none": b"",
        "/parts": b"onetwo",
        "/chunks": b"onetwo",
    }
    with kept(service) as connection:
        for method in ("GET", "HEAD", "GET"):
            for path, body in bodies.items():
                connection.request(method, path)
                answer = connection.getresponse()
                assert (path, answer.status, answer.read()) == (
                    path,
                    204 if path == "/none" else 200,
                    b"" if method == "HEAD" else body,
                )
                length = answer.getheader("Content-Length")
                assert length == (None if path in ("/none", "/chunks") else str(len(body)))


def test_short_answers_come_whole_one_after_the_other(service: Service) -> None:
    with kept(service) as connection:
        for _ in range(3):
            for method, path, body, whole in (
                ("GET", "/short", None, b"short"),
                ("POST", "/infer", HELLO_BYTES, None),
            ):
                connection.request(method, path, body)
                answer = connection.getresponse()
                data = answer.read()
                assert answer.status == 200 and len(data) == int(answer.headers["Content-Length"])
                assert data == whole if whole else json.loads(data)["content"] == "echo: hello"


@pytest.mark.parametrize(
    ("source", "schemes"),
    [(TRUSTED, ["http", "https", "http", "https"]), ("127.0.0.1", ["http"] * 4)],
)
def test_only_a_proxy_that_is_trusted_says_how_its_client_came(
    service: Service, source: str, schemes: list[str]
) -> None:
    """Each time, on the same connection: whoever is trusted is looked up once."""
    with kept(service, source) as connection:
        for scheme, headers in zip(schemes, [{}, {"X-Forwarded-Proto": "https"}] * 2, strict=True):
            connection.request("GET", "/scheme", headers=headers)
            assert connection.getresponse().read() == scheme.encode()


@pytest.mark.slow
def test_a_socket_of_the_file_system_does_as_well(tmp_path: Path) -> None:
    (tmp_path / "host.py").write_text(HOST)
    path = str(tmp_path / "s")
    args = ("-w", "1", "--pythonpath", str(tmp_path), "-b", f"unix:{path}")
    with Service(*args, app="host:app") as service:
        [worker] = service.workers
        for name in (b"", b"\0abc", b"\0\xff\xfe", b""):  # a client may choose its own
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(PATIENCE)
                sock.bind(name)
                sock.connect(path)
                sock.sendall(b"GET /short HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                answer = b"".join(iter(lambda s=sock: s.recv(65536), b""))  # type: ignore[misc]
            assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\nshort")
        assert service.workers == [worker] and "Traceback" not in service.log
