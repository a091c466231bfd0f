"""How a service starts, and how it does not: `infermux serve`, and gunicorn without our settings."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from support import (
    HELLO,
    PATIENCE,
    ROOT,
    TokenTrace,
    ask,
    certificate,
    environment,
    eventually,
    run,
    script,
)

LISTENING = re.compile(r"^infermux listening on (\S+)$", re.MULTILINE)


class Started(NamedTuple):
    process: subprocess.Popen[bytes]
    folder: Path

    @property
    def output(self) -> str:
        return (self.folder / "stdout").read_text()

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    @property
    def urls(self) -> list[str]:
        return LISTENING.findall(self.output)

    @property
    def port(self) -> int:
        return int(re.findall(r"Listening at: \S+:(\d+)", self.log)[0])

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def started(
    folder: Path, command: Sequence[str], *, ready: str = "Booting worker", **env: str
) -> Iterator[Started]:
    """Start a command in *folder*; when its log says *ready*, give it, and end it afterwards."""
    (folder / "out").mkdir(exist_ok=True)
    out, err = (folder / "out" / name for name in ("stdout", "stderr"))
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            list(command), cwd=folder, env=environment(**env), stdout=stdout, stderr=stderr
        )
    found = Started(process, folder / "out")
    try:
        eventually(lambda: ready in found.log or process.poll() is not None, ready)
        assert process.poll() is None, found.log
        yield found
    finally:
        if process.poll() is None:
            found.stop()


def serve(*args: str) -> list[str]:
    return [*script("infermux"), "serve", "--workers", "1", "--threads", "8", *args]


def free_port(family: int = socket.AF_INET, host: str = "127.0.0.1") -> int:
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port: int = sock.getsockname()[1]
        return port


def has_ipv6() -> bool:
    try:
        free_port(socket.AF_INET6, "::1")
    except OSError:
        return False
    return True


def health(host: str, port: int) -> int:
    with closing(http.client.HTTPConnection(host, port, timeout=PATIENCE)) as connection:
        connection.request("GET", "/healthz")
        return connection.getresponse().status


def refused(folder: Path, *args: str, words: str) -> None:
    """Check that the start fails in one line, at once, and leaves nothing behind."""
    before = sorted(folder.iterdir())
    answer = run(serve(*args), cwd=folder)
    assert (answer.returncode, answer.stdout) == (1, ""), answer
    assert answer.stderr.count("\n") == 1 and words in answer.stderr, answer.stderr
    assert sorted(folder.iterdir()) == before


# -- addresses that cannot be listened at --

WRONG = [":99999", "foo", ":abc", "127.0.0.1:", "127.0.0.1:-1", "8600", "::1:80", "[::1]:99999"]
WRONG += ["[::1]", ":", "a:b:c", "127.0.0.1:8600/x", "x" * 3000, ":8600 ", "http://a:80"]


@pytest.mark.sampled(1)
@pytest.mark.sampled(1)
@pytest.mark.sampled(2)
@pytest.mark.parametrize("addr", WRONG)
def test_an_address_that_is_none_is_one_line(addr: str, tmp_path: Path) -> None:
    refused(tmp_path, "--addr", addr, words="HOST:PORT")


ELSEWHERE = ["192.0.2.1:8600", "no-such-host.invalid:80", f"{'x' * 70}.com:80", "[2001:db8::1]:80"]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("addr", [*ELSEWHERE, "unix:nowhere/sock", "unix:plain"])
def test_an_address_of_another_place_is_one_line(addr: str, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("a file")
    refused(tmp_path, "--addr", addr, words="cannot listen at")


@pytest.mark.parametrize("form", ["127.0.0.1:{}", pytest.param(":{}", marks=pytest.mark.slow)])
def test_a_port_in_use_is_one_line(form: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        refused(tmp_path, "--addr", form.format(port), words="Address already in use")


@pytest.mark.parametrize("way", ["<(cat keys)", "/dev/stdin"])
def test_a_configuration_that_can_be_read_once_opens_no_service(way: str, tmp_path: Path) -> None:
    """Read again, a pipe is empty: it would have no keys."""
    (tmp_path / "keys").write_text(f'[keys.web]\nhash = "{"5a" * 32}"\n')
    command = shlex.join(serve("--addr", "127.0.0.1:0"))
    answer = run(["bash", "-c", f"cat keys | {command} -c {way}"], cwd=tmp_path)
    assert (answer.returncode, answer.stdout) == (1, "") and "is a pipe" in answer.stderr, answer


@pytest.mark.slow
@pytest.mark.parametrize("args", [("--addr", ":1", "--port", "2"), ("--keyfile", "k.pem")])
def test_options_that_exclude_each_other_are_wrong_usage(
    args: tuple[str, ...], tmp_path: Path
) -> None:
    assert run(serve(*args), cwd=tmp_path).returncode == 2


# -- addresses that can --


@pytest.mark.slow
@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
def test_an_address_without_host_is_of_both_protocols(tmp_path: Path) -> None:
    """An IPv4 client keeps its own address there."""
    port = free_port()
    (tmp_path / "infermux.toml").write_text('[providers.echo]\n[server]\nadmin_key = "env:ADMIN"\n')
    with started(tmp_path, serve("-addr", f":{port}"), ADMIN="an-admin-key") as service:
        assert [health(host, port) for host in ("127.0.0.1", "::1", "localhost")] == [200] * 3
        assert service.urls == [f"http://[::]:{port}"]
        assert f"[::]:{port} are open to anyone" in service.log
        assert ask(port, "/costs", headers={"Authorization": "Bearer wrong"}).status == 401
        eventually(lambda: "failed login from 127.0.0.1:" in service.log)
        assert "::ffff:" not in service.log
        service.process.send_signal(signal.SIGHUP)  # which keeps its socket
        eventually(lambda: service.log.count("Booting worker") == 2)
        assert health("::1", port) == 200
        assert service.stop() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "url"),
    [
        (["--host", "127.0.0.1", "--port", "{}"], "http://127.0.0.1:{}"),
        (["--port", "{}"], "http://127.0.0.1:{}"),
        (["-host", "localhost", "-port={}"], "http://127.0.0.1:{}"),
        (["--addr", "127.0.0.1:{}"], "http://127.0.0.1:{}"),
        (["--addr", "tcp://127.0.0.1:{}"], "http://127.0.0.1:{}"),
        (["-addr=127.0.0.1:{}"], "http://127.0.0.1:{}"),
        (["-b", "127.0.0.1:{}"], "http://127.0.0.1:{}"),
        (["--host", "::1", "--port", "{}"], "http://[::1]:{}"),
        (["--addr", "[::1]:{}"], "http://[::1]:{}"),
    ],
)
def test_where_it_listens_is_told_on_standard_output(
    args: list[str], url: str, tmp_path: Path
) -> None:
    if "::1" in url and not has_ipv6():
        pytest.skip("no IPv6 here")
    port = free_port()
    with started(tmp_path, serve(*[each.format(port) for each in args])) as service:
        assert service.output == f"infermux listening on {url.format(port)}\n"
        assert health("::1" if "::1" in url else "127.0.0.1", port) == 200


@pytest.mark.slow
def test_gos_flags_start_the_service(tokentrace: TokenTrace, tmp_path: Path) -> None:
    args = ["-addr", "127.0.0.1:0", "-tokentrace", tokentrace.url]
    with started(tmp_path, serve(*args)) as service:
        assert ask(service.port, "/infer", HELLO).json["content"] == "echo: hello"
        assert len(tokentrace.wait(1)) == 1


@pytest.mark.slow
def test_an_output_that_nobody_reads_stops_no_service(tmp_path: Path) -> None:
    command = f"exec {' '.join(serve('-b', '127.0.0.1:0'))} > /dev/full"
    with started(tmp_path, ["bash", "-c", command]) as service:
        assert health("127.0.0.1", service.port) == 200


@pytest.mark.slow
@pytest.mark.parametrize("module", [False, True])
def test_a_successor_takes_the_socket_over(tmp_path: Path, module: bool) -> None:
    """gunicorn's USR2: the new master does not find its port in use."""
    command = serve("-b", f"127.0.0.1:{free_port()}")
    if module:
        command[:1] = [sys.executable, "-m", "infermux"]
    with started(tmp_path, command) as service:
        port, old = service.port, service.process
        old.send_signal(signal.SIGUSR2)
        eventually(lambda: service.log.count("Booting worker") == 2, "a successor")
        new = max(map(int, re.findall(r"\[(\d+)\] \[INFO\] Listening at", service.log)))
        assert new != old.pid and service.stop() == 0
        try:
            assert health("127.0.0.1", port) == 200
        finally:
            os.kill(new, signal.SIGTERM)
        eventually(lambda: service.log.count("Shutting down: Master") == 2)


# -- TLS --


@pytest.mark.slow
def test_a_certificate_makes_it_https(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path, "own")
    args = ["--certfile", str(cert), "--keyfile", str(key)]
    context = ssl.create_default_context(cafile=str(cert))
    with started(tmp_path, serve("-b", "127.0.0.1:0", *args)) as service:
        port = service.port
        assert service.urls == [f"https://127.0.0.1:{port}"]
        client = http.client.HTTPSConnection("localhost", port, context=context, timeout=PATIENCE)
        with closing(client):
            for _ in range(3):  # on one connection
                client.request(
                    "POST", "/infer", b'{"messages": [{"role": "user", "content": "x"}]}'
                )
                assert b"echo: x" in client.getresponse().read()
        with pytest.raises((OSError, http.client.HTTPException)):
            health("127.0.0.1", port)
        renewed = certificate(tmp_path, "renewed")
        for old, new in zip((cert, key), renewed, strict=True):
            new.replace(old)
        context = ssl.create_default_context(cafile=str(cert))
        answer = ask(port, "/healthz", tls=context, headers={"Connection": "close"})
        assert answer.status == 200  # without a reload
        assert service.stop() == 0


@pytest.mark.slow
def test_a_certificate_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    cert, _ = certificate(tmp_path, "own")
    _, other = certificate(tmp_path, "other")
    (tmp_path / "empty.pem").write_text("")
    for args in (
        ["--certfile", "missing.pem"],
        ["--certfile", "empty.pem"],
        ["--certfile", str(cert)],  # without its key
        ["--certfile", str(cert), "--keyfile", str(other)],
    ):
        refused(tmp_path, "-b", "127.0.0.1:0", *args, words="cannot be used")


# -- gunicorn without our settings --

HOST = """
import infermux
from flask import Flask

app = Flask(__name__)
app.register_blueprint(infermux.blueprint(infermux.load()), url_prefix="/llm")
"""
SETTINGS, THREADS = "runs without InferMux's settings", "wsgi.multithread is false"


def gunicorn(*args: str) -> list[str]:
    return [sys.executable, "-m", "gunicorn", "-b", "127.0.0.1:0", "--no-control-socket", *args]


@pytest.mark.slow
@pytest.mark.parametrize(
    "args", [["infermux:create_app()"], ["--chdir", str(ROOT), "wsgi:app"]], ids=["wheel", "chdir"]
)
def test_a_service_without_its_settings_says_so(args: list[str], tmp_path: Path) -> None:
    ledger = str(tmp_path / "calls.db")
    with started(tmp_path, gunicorn(*args), INFERMUX_LEDGER__PATH=ledger) as service:
        for _ in range(3):
            assert ask(service.port, "/infer", HELLO).status == 200
        assert (service.log.count(SETTINGS), service.log.count(THREADS)) == (1, 1)
        assert "infermux serve" in service.log and "infermux.server.load()" in service.log
        assert "know each other's ids" in service.log and "[ledger].users_secret" in service.log


@pytest.mark.slow
def test_what_it_says_gives_it_the_settings(tmp_path: Path) -> None:
    (tmp_path / "gunicorn.conf.py").write_text(
        "import infermux.server; globals().update(infermux.server.load())"
    )
    with started(tmp_path, gunicorn("infermux:create_app()")) as service:
        assert ask(service.port, "/infer", HELLO).status == 200
        assert SETTINGS not in service.log and THREADS not in service.log
        assert "Using worker: infermux.server.worker.Worker" in service.log


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "warnings"),
    [
        (["-w", "1"], 1),
        pytest.param(["-w", "2", "--max-requests", "3"], None, marks=pytest.mark.slow),
        pytest.param(["--worker-class", "gthread", "--threads", "9"], 0, marks=pytest.mark.slow),
        pytest.param(["-w", "1", "--preload"], 1, marks=pytest.mark.slow),
    ],
    ids=["sync", "renewed", "threads", "preload"],
)
def test_a_mounted_router_warns_once_per_process_without_threads(
    args: list[str], warnings: int | None, tmp_path: Path
) -> None:
    (tmp_path / "host.py").write_text(HOST)
    with started(tmp_path, gunicorn(*args, "host:app")) as service:
        for path in ("/llm/infer", "/llm/providers", "/llm/infer", "/llm/infer", "/llm/infer"):
            body = HELLO if path.endswith("infer") else None
            assert ask(service.port, path, body).status == 200
        found = service.log.count(THREADS)
        processes = service.log.count("Booting worker")
        assert found == warnings if warnings is not None else 1 <= found <= processes
        assert SETTINGS not in service.log
