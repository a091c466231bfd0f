"""Real peers for the tests: the service under gunicorn, a strict TokenTrace, an OpenAI vendor."""

from __future__ import annotations

import atexit
import contextlib
import copy
import fcntl
import http.client
import json
import math
import os
import pty
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0  # seconds until a condition that should hold soon counts as failed
NO_FOLDER = "/nonexistent"  # has no infermux.toml of a developer's own
HELLO = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
at_end = contextlib.ExitStack()  # what a process that runs tests does at its end
atexit.register(at_end.close)


# -- environment and waiting -----------------------------------------------------------------------


def is_ours(name: str) -> bool:
    """Return whether a variable could configure InferMux, Flask, gunicorn or a proxy."""
    upper = name.upper()
    return (
        upper.startswith(("INFERMUX_", "FLASK_", "GUNICORN_", "AZURE_OPENAI_", "PG"))
        or upper.endswith(("_API_KEY", "_BASE_URL", "_PROXY", "_API_TOKEN"))
        or upper in ("OLLAMA_HOST", "HF_TOKEN", "WEB_CONCURRENCY", "PORT", "DATABASE_URL")
    )


def environment(**more: str) -> dict[str, str]:
    """Return the outer environment without what could configure InferMux, plus *more*."""
    clean = {name: value for name, value in os.environ.items() if not is_ours(name)}
    return clean | {"XDG_CONFIG_HOME": NO_FOLDER} | more


def how_many(usual: int, ci: int, long: int) -> int:
    """Return how often a test repeats: by default, with CI=true, or with INFERMUX_LONG=1.

    INFERMUX_LONG=20000 sets another number.
    """
    if (asked := int(os.environ.get("INFERMUX_LONG") or 0)) > 0:
        return long if asked == 1 else asked
    return ci if os.environ.get("CI") == "true" else usual


def eventually(
    condition: Callable[[], Any], what: str = "the condition", seconds: float = PATIENCE
) -> Any:
    """Return the first true value of *condition*; fail if there is none in *seconds*."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)
    return value


def script(name: str) -> list[str]:
    """Return the command of a console script in this environment, else on the path."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    assert found, f"{name} is not installed"
    return [found]


def run(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    given: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in a clean environment, with *given* as standard input."""
    return subprocess.run(
        list(command),
        cwd=cwd,
        env=environment(**(env or {})),
        text=True,
        capture_output=True,
        timeout=5 * PATIENCE,
        check=False,
        input=given or "",
    )


class Terminal:
    """A command at a terminal of 24 lines: `type` is the keyboard, `text` what was shown so far."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self._mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 200, 0, 0))
        self.process = subprocess.Popen(
            list(command),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=cwd,
            env=environment(**{"TERM": "dumb"} | dict(env or {})),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
        )
        os.close(theirs)
        self.text = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        os.close(self._mine)

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other side is closed
            while data := os.read(self._mine, 65_536):
                self.text += data.decode(errors="replace").replace("\r\n", "\n")

    def type(self, keys: str) -> None:
        """Press keys; \\x03 is Ctrl-C, \\x04 Ctrl-D."""
        os.write(self._mine, keys.encode())

    def wait(self, text: str, times: int = 1) -> None:
        """Wait until *text* has been shown so many times."""
        eventually(
            lambda: self.text.count(text) >= times or self.process.poll() is not None,
            f"{text!r}, {times} times",
        )
        assert self.text.count(text) >= times, self.text

    def end(self) -> int:
        """Return the exit code of the command, once it has ended by itself."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code


def files() -> list[str]:
    """Return what a clone holds, and what is new in it; or what a source distribution holds."""
    if not (ROOT / ".git").exists():
        ignored = {"__pycache__", "build", "dist", ".venv", ".pytest_cache"}
        found = [each.relative_to(ROOT) for each in ROOT.rglob("*") if each.is_file()]
        own = [each for each in found if not ignored.intersection(each.parts)]
        return [str(each) for each in own if ".egg-info" not in str(each)]
    command = ["git", "ls-files", "-co", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file()]


# -- JSON ------------------------------------------------------------------------------------------


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of a JSON value, which is (), and of everything in it."""
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, key))


def with_odd(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """Return a copy of a JSON value with *odd* at a place."""
    if not at:
        return odd
    value = copy.deepcopy(value)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = odd
    return value


# -- a client --------------------------------------------------------------------------------------


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    data: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.data)


def ask(
    port: int,
    path: str,
    body: Any = None,
    *,
    method: str = "",
    headers: Mapping[str, str] | None = None,
    tls: ssl.SSLContext | None = None,
) -> Answer:
    """Send one request on a new connection; encode a body as JSON unless bytes or an iterator."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    if tls is not None:
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=PATIENCE, context=tls)
    data = body if body is None or isinstance(body, bytes | Iterator) else json.dumps(body).encode()
    with contextlib.closing(connection):
        # A server may answer, and close, before it has the whole body: then the answer can be read,
        # as urllib3 and httpcore do.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.request(
                method or ("GET" if body is None else "POST"),
                path,
                data,
                dict(headers or {}),
                encode_chunked=isinstance(body, Iterator),
            )
        answer = connection.getresponse()
        return Answer(answer.status, answer.headers, answer.read())


def raw(port: int, data: bytes, *, end: bool = True) -> Answer:
    """Send *data* unchanged, then close for writing if *end*; return the answer."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
        sock.sendall(data)
        if end:
            sock.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(sock)
        with contextlib.closing(answer):
            answer.begin()
            return Answer(answer.status, answer.headers, answer.read())


def certificate(folder: Path, name: str = "own") -> tuple[Path, Path]:
    """Return a certificate for localhost and its key, which any client may trust."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    command = ["openssl", "req", "-x509", "-nodes", "-days", "2"]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    if shutil.which("openssl") is None:
        import pytest  # the bench does without

        pytest.skip("no openssl here")
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return cert, key


# -- the service -----------------------------------------------------------------------------------


def names_ledger(env: Mapping[str, str]) -> bool:
    """Return whether the environment or its configuration file sets the ledger's path."""
    file = Path(env.get("INFERMUX_CONFIG", ""))
    return "INFERMUX_LEDGER__PATH" in env or (
        file.is_file() and "[ledger]" in file.read_text(encoding="utf-8", errors="replace")
    )


class Service:
    """gunicorn on a free port, in the clone and a clean environment; `with` waits until it answers.

    Its ledger is in a temporary folder unless the environment or the configuration sets a path.
    """

    def __init__(
        self,
        *args: str,
        app: str = "wsgi:app",
        env: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        self._command = list(command or [sys.executable, "-m", "gunicorn", app]) + [
            "-b",
            "127.0.0.1:0",
            *args,
        ]
        self._env = environment(**(env or {}))
        self._cwd = cwd
        self.port = 0
        self.tls: ssl.SSLContext | None = None  # of its clients, if it serves HTTPS

    def __enter__(self) -> Self:
        self._output = tempfile.TemporaryFile()
        self.folder = tempfile.TemporaryDirectory()
        if not names_ledger(self._env):
            self._env["INFERMUX_LEDGER__PATH"] = f"{self.folder.name}/infermux.db"
        self.process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        try:
            self.port = int(eventually(self._listening, "listening")[1])
            eventually(self._answers, "answering")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            self._output.close()
            self.folder.cleanup()

    def stop(self) -> int:
        """Send SIGTERM; return the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def log(self) -> str:
        """What the service has written so far."""
        size = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), size, 0).decode(errors="replace")

    @property
    def workers(self) -> list[int]:
        """The process ids of the workers."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def ask(self, path: str, body: Any = None, **more: Any) -> Answer:
        return ask(self.port, path, body, tls=self.tls, **more)

    def raw(self, data: bytes, **more: Any) -> Answer:
        return raw(self.port, data, **more)

    def _listening(self) -> re.Match[str] | None:
        assert self.process.poll() is None, f"the service ended:\n{self.log}"
        return re.search(r"istening (?:at:|on) https?://127\.0\.0\.1:(\d+)", self.log)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log}"
        try:
            return self.ask("/providers").status == 200
        except (OSError, http.client.HTTPException):
            return False


# -- servers in a thread ---------------------------------------------------------------------------


class _Server(ThreadingHTTPServer):
    """A server that waits for its threads when it closes."""

    daemon_threads = False
    request_queue_size = 1024
    owner: Peer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors such as a client that disconnected."""


class Peer:
    """An HTTP server on loopback; `with` starts it, and at the end closes everything."""

    def __enter__(self) -> Self:
        self.lock = threading.Lock()
        self.released = threading.Event()  # set at the end, to stop handlers that wait
        self._connections: set[socket.socket] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.owner = self
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}
        )
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        with self.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connected(self, connection: socket.socket, here: bool) -> None:
        with self.lock:
            (self._connections.add if here else self._connections.discard)(connection)

    def serve(self, handler: _Handler) -> None:
        """Read a request's body and answer; a peer that reads it piece by piece overrides this."""
        self.answer(handler, handler.rfile.read(int(handler.headers.get("Content-Length", 0))))

    def answer(self, handler: _Handler, body: bytes) -> None:
        raise NotImplementedError


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.connected(self.connection, True)

    def finish(self) -> None:
        self.server.owner.connected(self.connection, False)
        with contextlib.suppress(OSError):
            super().finish()

    def do_POST(self) -> None:
        self.server.owner.serve(self)

    do_GET = do_PUT = do_DELETE = do_CONNECT = do_POST

    def reply(
        self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | dict(headers or {})).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def reset(self) -> None:
        """Reset the connection, as if the process had crashed."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """Yield a URL at which connections are refused."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


# -- TokenTrace ------------------------------------------------------------------------------------

MESSAGE = re.compile(
    rb'\{"version":"1","id":"(?P<id>[0-9a-f]{32})","source":"(?P<source>[^"\\]+)","type":"trace\.span",'
    rb'"timestamp_ns":(?P<stamp>\d{19}),"payload":(?P<payload>\{.*\})(?:,"checksum":(?P<checksum>[1-9]\d*))?\}',
    re.DOTALL,
)
SPAN = ("trace_id", "span_id", "parent_id", "operation", "start_ns", "end_ns", "status", "attrs")
ATTRIBUTES = {
    "provider": str,
    "model": str,
    "tokens_in": int,
    "tokens_out": int,
    "cost_usd": float,
    "latency_ms": int,
    "finish_reason": str,
    "error": str,
    "attempts": list,  # of calls that needed several
}
ATTEMPT = {"model": str, "ms": int, "provider": str, "status": str}  # "ok" or the error's code


def read_span(body: bytes, skew: int = 0) -> dict[str, Any]:
    """Return the span of a MIST message; raise AssertionError if it breaks the protocol.

    *skew* is the error of the sender's clock in seconds.
    """
    found = MESSAGE.fullmatch(body)
    assert found, f"not a trace.span message in the protocol's order: {body[:200]!r}"
    assert len(body) <= 10 * 1024 * 1024
    assert abs(int(found["stamp"]) - time.time_ns() - skew * 10**9) < 600 * 10**9, (
        "timestamp_ns is not now"
    )
    if found["checksum"]:
        assert int(found["checksum"]) == zlib.crc32(found["payload"]), "wrong checksum"
    span = json.loads(found["payload"], object_pairs_hook=_unique, parse_constant=_refuse)
    _check_span(span)
    return {**span, "id": found["id"].decode(), "source": found["source"].decode()}


def _check_span(span: dict[str, Any]) -> None:
    assert list(span) == [name for name in SPAN if name != "parent_id" or "parent_id" in span], (
        f"fields {list(span)}"
    )
    for name, form in (
        ("trace_id", r"[0-9a-f]{32}"),
        ("span_id", r"[0-9a-f]{32}"),
        ("parent_id", r"[0-9a-f]{16}|[0-9a-f]{32}"),
    ):
        assert name not in span or (
            isinstance(span[name], str) and re.fullmatch(form, span[name]) and int(span[name], 16)
        ), name
    assert span["operation"] == "infermux.infer"
    assert (
        type(span["start_ns"]) is int
        and type(span["end_ns"]) is int
        and 10**18 < span["start_ns"] <= span["end_ns"]
    )
    assert span["status"] in ("ok", "error")
    _check_attributes(span["attrs"], span["status"])


def _check_attributes(attrs: dict[str, Any], status: str) -> None:
    assert isinstance(attrs, dict) and set(attrs) <= set(ATTRIBUTES), f"attributes {attrs}"
    assert list(attrs) == sorted(attrs), f"not in Go's order: {list(attrs)}"
    for attempt in attrs.get("attempts", ()):
        kinds_of = {name: type(value) for name, value in attempt.items()}
        assert kinds_of == ATTEMPT and list(attempt) == list(ATTEMPT), f"attempt {attempt}"
    assert "attempts" not in attrs or len(attrs["attempts"]) > 1
    for name, value in attrs.items():
        kinds = (int, float) if ATTRIBUTES[name] is float else (ATTRIBUTES[name],)
        assert type(value) in kinds, f"{name} is {value!r}"
        assert isinstance(value, str | list) or (math.isfinite(value) and value >= 0), (
            f"{name} is {value!r}"
        )
    assert ("error" in attrs) == (status == "error"), f"status {status}, attributes {attrs}"
    needed = {"provider", "model"} | (
        {"tokens_in", "tokens_out", "latency_ms", "finish_reason"} if status == "ok" else set()
    )
    assert needed <= set(attrs), f"missing {needed - set(attrs)}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "duplicate keys"
    return dict(pairs)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


class TokenTrace(Peer):
    """A strict receiver: keeps each span, or why a message is invalid; answers 202 in most modes.

    Modes: ok, slow (answers after *seconds*), status (answers *status*), hang, reset, redirect (to
    *target*), garbage.
    """

    def __init__(
        self, mode: str = "ok", *, seconds: float = 2.0, status: int = 500, target: str = ""
    ) -> None:
        self.mode, self.seconds, self.status, self.target = mode, seconds, status, target
        self.skew = 0
        self.spans: list[dict[str, Any]] = []
        self.problems: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []

    def answer(self, handler: _Handler, body: bytes) -> None:
        self._note(handler, body)
        if self.mode == "hang":
            self.released.wait()
            handler.close_connection = True
        elif self.mode == "reset":
            handler.reset()
        elif self.mode == "garbage":
            handler.wfile.write(b"\0\xff this is not HTTP\r\n\r\n")
            handler.close_connection = True
        else:
            self.released.wait(self.seconds if self.mode == "slow" else 0)
            handler.reply(
                {"status": self.status, "redirect": 307}.get(self.mode, 202),
                b"",
                {"Location": self.target} if self.mode == "redirect" else None,
            )

    def _note(self, handler: _Handler, body: bytes) -> None:
        try:
            assert (handler.command, handler.path) == ("POST", "/mist"), (
                f"{handler.command} {handler.path}"
            )
            assert handler.headers["Content-Type"] == "application/json"
            span, problem = read_span(body, self.skew), ""
        except (AssertionError, ValueError) as error:
            span, problem = {}, str(error)
        with self.lock:
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.paths.append(handler.path)
            if problem:
                self.problems.append(problem)
            else:
                self.spans.append(span)

    def wait(self, count: int) -> list[dict[str, Any]]:
        """Wait for *count* messages; return their spans, see `checked`."""
        eventually(
            lambda: len(self.spans) + len(self.problems) >= count,
            f"{count} spans ({len(self.spans)} came)",
        )
        return self.checked()

    def stats(self) -> dict[str, float]:
        """Return the same sums over all spans as /stats of the real TokenTrace."""
        with self.lock:
            attrs = [span["attrs"] for span in self.spans]
            errors = sum(span["status"] == "error" for span in self.spans)
        sums = {
            name: sum(each.get(name, 0) for each in attrs)
            for name in ("tokens_in", "tokens_out", "cost_usd")
        }
        return {"spans": len(attrs), "errors": errors, **sums}

    def checked(self) -> list[dict[str, Any]]:
        """Return the spans so far; fail if a message was invalid or came twice."""
        with self.lock:
            assert self.problems == []
            for name in ("id", "span_id"):
                assert len({span[name] for span in self.spans}) == len(self.spans), (
                    f"a {name} came twice"
                )
            return list(self.spans)


# -- a vendor --------------------------------------------------------------------------------------


class Seen(NamedTuple):
    path: str
    headers: dict[str, str]
    body: Any


class Scripted(NamedTuple):
    status: int = 200
    body: Any = None  # None: a completion that repeats the last message
    headers: Mapping[str, str] = {}
    delay: float = 0.0
    after: threading.Event | None = None  # the answer waits for it


class Vendor(Peer):
    """A vendor in OpenAI's chat format: gives scripted answers (the last one repeats), and keeps
    the requests in `seen`.
    """

    def __init__(self, *answers: Scripted) -> None:
        self.answers = list(answers) or [Scripted()]
        self.seen: list[Seen] = []

    @property
    def env(self) -> dict[str, str]:
        """The environment in which this is the service's provider `openai`."""
        return {"OPENAI_API_KEY": "sk-test-vendor", "OPENAI_BASE_URL": f"{self.url}/v1"}

    def answer(self, handler: _Handler, body: bytes) -> None:
        asked = json.loads(body) if body else None
        with self.lock:
            scripted = self.answers[min(len(self.seen), len(self.answers) - 1)]
            self.seen.append(
                Seen(
                    handler.path,
                    {name.lower(): value for name, value in handler.headers.items()},
                    asked,
                )
            )
        if scripted.after is not None:
            scripted.after.wait(PATIENCE)
        self.released.wait(scripted.delay)
        content = scripted.body if scripted.body is not None else completion(asked)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        handler.reply(
            scripted.status, data, {"Content-Type": "application/json", **scripted.headers}
        )


def completion(asked: Any, content: str | None = None) -> dict[str, Any]:
    """Return a chat completion with *content*, or with the text of the last message."""
    text = asked["messages"][-1]["content"] if content is None else content
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": asked["model"],
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
