"""Tests of an overloaded service whose workers die: real gunicorn with few threads."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import select
import signal
import socket
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faulty import Peer, Vendor, answer, events
from support import PATIENCE, Answer, Service, TokenTrace, ask, eventually

KEY = "imx-load-test"
HASH = hashlib.sha256(KEY.encode()).hexdigest()
BOTH_WAYS = pytest.mark.parametrize(
    "args",
    [
        pytest.param((), id="plain"),
        pytest.param(("--preload",), id="preload", marks=pytest.mark.slow),
    ],
)
QUICK = 10.0  # seconds: half of the deadline, at which calls that are held end by themselves


def completion(asked: Any, text: str) -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    head = {"id": "c", "object": "chat.completion", "created": 1, "model": asked["model"]}
    return json.dumps({**head, "choices": [choice], "usage": usage}).encode()


class Gated(Vendor):
    """Answers to `quick` come at once, to `half` after half a second; `hold` and every stream wait
    for the gate.
    """

    def __init__(self) -> None:
        self.admission = threading.Event()
        super().__init__(self._play)

    def _play(self, peer: Peer) -> None:
        while request := peer.request():
            asked = json.loads(request.body)
            if asked.get("stream"):
                peer.send(b"".join(events(chunk({"content": "begun"}), end=False)))
                self._wait()
                peer.send(b"".join(events(chunk({}, "stop"), b"data: [DONE]\n\n")[1:]))
                continue
            if asked["model"] == "half":
                self.stopped.wait(0.5)
            elif asked["model"] == "hold":
                self._wait()
            peer.send(answer(200, completion(asked, asked["messages"][-1]["content"])))

    def _wait(self) -> None:
        while not self.admission.wait(0.02) and not self.stopped.is_set():
            pass


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return (
        b"data: "
        + json.dumps(
            {"id": "c", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}
        ).encode()
        + b"\n\n"
    )


@contextlib.contextmanager
def opening(vendor: Gated) -> Iterator[None]:
    """Whatever happens inside, held calls end with it."""
    try:
        yield
    finally:
        vendor.admission.set()


def said(model: str, text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


@pytest.fixture
def gated() -> Iterator[Gated]:
    vendor = Gated()
    with contextlib.closing(vendor):
        yield vendor
        vendor.admission.set()


Write = Callable[..., dict[str, str]]


@pytest.fixture
def written(tmp_path: Path) -> Write:
    """Write infermux.toml; return the environment that points to it."""

    def write(
        vendor: Vendor, *more: str, threads: int = 8, workers: int = 1, keys: str = ""
    ) -> dict[str, str]:
        lines = [
            f"[server]\nworkers = {workers}\nthreads = {threads}",
            "[reliability]\nattempts = 2\ndeadline = 20",
            f'[ledger]\npath = "{tmp_path}/infermux.db"',
            f'[providers.vendor]\ntype = "openai"\nbase_url = "{vendor.url}"\napi_key = "env:LOAD_VENDOR"',
            'models = ["quick", "half", "hold"]',
            '[providers.echo]\ntype = "echo"',
            *more,
        ]
        if keys:
            lines.append(f'[keys.caller]\nhash = "{HASH}"\n{keys}')
        (tmp_path / "infermux.toml").write_text("\n".join(lines), encoding="utf-8")
        return {"INFERMUX_CONFIG": str(tmp_path / "infermux.toml"), "LOAD_VENDOR": "sk-load"}

    return write


class Keyed(Service):
    """A service with keys."""

    def ask(self, path: str, body: Any = None, **more: Any) -> Answer:
        return super().ask(path, body, **{"headers": {"x-api-key": KEY}} | more)


@contextlib.contextmanager
def streaming(service: Service, count: int) -> Iterator[list[socket.socket]]:
    """Streams that have begun, and go on."""
    with contextlib.ExitStack() as stack:
        socks = []
        for _ in range(count):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            )
            body = json.dumps(said("vendor/quick", stream=True)).encode()
            sock.sendall(
                f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                + body
            )
            got = b""
            while b"begun" not in got:
                data = sock.recv(65536)
                assert data, got
                got += data
            socks.append(sock)
        yield socks


def timed(make: Callable[[], Answer], most: float = QUICK) -> Answer:
    started = time.monotonic()
    found = make()
    assert time.monotonic() - started < most
    return found


def is_refused(found: Answer) -> None:
    assert (found.status, found.json["error"]["code"]) == (503, "overloaded"), found
    assert int(found.headers["Retry-After"]) >= 1


# -- room ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_with_every_stream_slot_taken_the_rest_goes_on(gated: Gated, written: Write) -> None:
    """Half of 8 threads stream: lists and short calls are answered at once, another stream is
    refused at once.
    """
    with Service(
        env=written(gated, "[providers.spare]\ntype = 'echo'\nmodels = ['spare']", threads=8)
    ) as service:
        share = 4  # per provider: half of the threads
        with streaming(service, share) as socks:
            for _ in range(5):
                assert timed(lambda: service.ask("/providers")).status == 200
                assert timed(lambda: service.ask("/infer", said("echo-v1"))).status == 200
                is_refused(
                    timed(
                        lambda: service.ask(
                            "/v1/chat/completions", said("vendor/quick", stream=True)
                        )
                    )
                )
            gated.admission.set()
            assert [b"[DONE]" in rest(sock) for sock in socks] == [True] * share
        gated.admission.clear()
        with streaming(service, 1):
            gated.admission.set()


@pytest.mark.slow
def test_streams_leave_threads_for_short_calls(gated: Gated, written: Write) -> None:
    """With room for every stream at the provider it is the share of the server that refuses: 6 of 8
    threads.
    """
    env = written(gated) | {"INFERMUX_PROVIDERS__VENDOR__CONCURRENCY": "100"}
    with Service(env=env) as service, streaming(service, 6):
        is_refused(
            timed(lambda: service.ask("/v1/chat/completions", said("vendor/quick", stream=True)))
        )
        assert timed(lambda: service.ask("/infer", said("vendor/quick"))).status == 200
        assert timed(lambda: service.ask("/providers")).status == 200
        gated.admission.set()


@pytest.mark.slow
def test_a_stream_whose_client_has_gone_gives_its_slot_back(gated: Gated, written: Write) -> None:
    env = written(gated) | {
        "INFERMUX_PROVIDERS__VENDOR__CONCURRENCY": "100",
        "INFERMUX_PROVIDERS__VENDOR__TIMEOUT__IDLE": "0.3",
    }
    with Service(env=env) as service:
        with streaming(service, 6):
            pass
        gated.admission.set()
        eventually(
            lambda: (
                service.ask("/v1/chat/completions", said("vendor/quick", stream=True)).status == 200
            ),
            "a free slot",
        )


def rest(sock: socket.socket) -> bytes:
    got = b""
    while b"[DONE]" not in got and (data := sock.recv(65536)):
        got += data
    return got


@pytest.mark.slow
def test_a_crowd_is_answered_or_refused_and_never_left_alone(gated: Gated, written: Write) -> None:
    """Of 300 calls at once to a model that takes half a second each is a 200 with its own text or a
    503/429 that says when.
    """
    with Service(env=written(gated, threads=24)) as service, ThreadPoolExecutor(300) as pool:
        coming = [
            pool.submit(
                timed,
                lambda n=n: service.ask("/infer", said("vendor/half", f"text {n}")),
                PATIENCE,
            )
            for n in range(300)
        ]
        answers = [each.result() for each in coming]
        count = Counter(found.status for found in answers)
        assert set(count) <= {200, 429, 503} and count[200] >= 12, count
        for number, found in enumerate(answers):
            if found.status == 200:
                assert found.json["content"] == f"text {number}"
            else:
                assert int(found.headers["Retry-After"]) >= 1
        assert timed(lambda: service.ask("/providers")).status == 200


@pytest.mark.slow
def test_a_provider_that_hangs_does_not_take_every_thread(gated: Gated, written: Write) -> None:
    """Of 8 threads a provider gets 4: what is more is refused at once, and another provider answers
    all the while.
    """
    with Service(env=written(gated)) as service, ThreadPoolExecutor(30) as pool:
        coming = [pool.submit(service.ask, "/infer", said("vendor/hold")) for _ in range(30)]
        done = eventually(lambda: sum(each.done() for each in coming) >= 26, "refusals")
        assert done and len(gated.requests) == 4
        for _ in range(5):
            assert timed(lambda: service.ask("/infer", said("echo-v1"))).status == 200
            assert timed(lambda: service.ask("/providers")).status == 200
        gated.admission.set()
        assert Counter(each.result().status for each in coming) == {200: 4, 503: 26}


@pytest.mark.slow
def test_health_is_answered_before_a_crowd_that_came_first(gated: Gated, written: Write) -> None:
    """In its turn it would be the last of 401: it would be told that nobody answers, for as long as
    there is much to do.
    """
    body = json.dumps(said("echo-v1")).encode()
    call = b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Service(env=written(gated, threads=256)) as service, contextlib.ExitStack() as stack:
        crowd = [
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), PATIENCE))
            for _ in range(400)
        ]
        for sock in crowd:
            sock.sendall(call)
        assert service.ask("/healthz").status == 200
        answered, _, _ = select.select(crowd, [], [], 0)
        assert len(answered) < 300
        assert Counter(sock.recv(15) for sock in crowd) == {b"HTTP/1.1 200 OK": 400}


@pytest.mark.slow
def test_clients_that_send_half_a_request_keep_nobody_else_from_beginning(
    gated: Gated, written: Write
) -> None:
    """They would lose their connections after ten seconds, eight of them at a time."""
    with Service(env=written(gated, threads=512)) as service, contextlib.ExitStack() as stack:
        for _ in range(300):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            )
            sock.sendall(b"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert timed(lambda: service.ask("/infer", said("echo-v1"))).status == 200


@pytest.mark.slow
def test_clients_that_do_not_close_their_side_keep_nobody_waiting(
    gated: Gated, written: Write
) -> None:
    """gunicorn by itself waits two seconds for each of them, in its main loop: twenty in all."""
    with Service(env=written(gated, threads=64)) as service, contextlib.ExitStack() as stack:
        started = time.monotonic()
        for _ in range(10):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            )
            sock.sendall(b"GET /providers HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert sock.recv(12) == b"HTTP/1.1 200"
            assert service.ask("/healthz").status == 200
        assert time.monotonic() - started < QUICK


@pytest.mark.slow
def test_clients_that_wait_for_no_answer_are_served_further_only_by_an_idle_worker(
    gated: Gated, written: Write
) -> None:
    """A few hundred of them, which read nothing either, would take every thread for a minute."""
    get = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    last = get.replace(b"Host", b"Connection: close\r\nHost")

    def answered() -> int:
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
            sock.sendall(get * 3 + last)
            return b"".join(iter(lambda: sock.recv(65536), b"")).count(b"HTTP/1.1 200 OK")

    with Service(env=written(gated, threads=64)) as service, opening(gated):
        assert answered() == 4
        with streaming(service, 17):
            assert answered() == 1
            gated.admission.set()
        eventually(lambda: answered() == 4)


FULL = 7  # calls that 8 threads take: one is left for saying no


@pytest.mark.slow
def test_with_every_slot_taken_health_answers_and_the_rest_is_shed(
    gated: Gated, written: Write, tokentrace: TokenTrace
) -> None:
    """What is refused is not even JSON here; each refused call has its span all the same, and its
    connection goes on, unless the body is too long to be read for nothing.
    """
    env = written(gated, f'[trace]\ntokentrace = "{tokentrace.url}"') | {
        "INFERMUX_PROVIDERS__VENDOR__CONCURRENCY": "100"
    }
    with Service(env=env) as service, ThreadPoolExecutor(FULL) as pool, opening(gated):
        held = [pool.submit(service.ask, "/infer", said("vendor/hold")) for _ in range(FULL)]
        eventually(lambda: len(gated.requests) == FULL, "calls at the vendor")
        paths = (
            "/infer",
            "/mist",
            "/v1/chat/completions",
            "/v1/embeddings",
            "/v1/messages",
            "/v1/messages/count_tokens",
        )
        for path, size in [*((each, 60_000) for each in paths), ("/infer", 2_000_000)]:
            refused = timed(lambda: service.ask(path, b"[" * size))  # noqa: B023
            assert (
                refused.status,
                refused.headers["Retry-After"],
                refused.headers["x-should-retry"],
            ) == (503, "1", None)
            assert "overloaded" in refused.data.decode()
            assert refused.headers["Connection"] == ("keep-alive" if size < 65_536 else "close")
        for path in ("/providers", "/healthz", "/v1/models"):
            assert timed(lambda: service.ask(path)).status == 200  # noqa: B023
        gated.admission.set()
        assert [each.result().status for each in held] == [200] * FULL
        spans = tokentrace.wait(FULL + len(paths) + 1)
        assert [span["status"] for span in spans].count("error") == len(paths) + 1


@pytest.mark.slow
@BOTH_WAYS
def test_the_threads_of_the_command_line_are_the_ones_that_count(
    gated: Gated, written: Write, args: tuple[str, ...]
) -> None:
    """256 threads in the file, 8 by --threads: 4 for a provider."""
    with (
        Service("--threads", "8", *args, env=written(gated, threads=256)) as service,
        ThreadPoolExecutor(6) as pool,
    ):
        coming = [pool.submit(service.ask, "/infer", said("vendor/hold")) for _ in range(6)]
        with contextlib.suppress(AssertionError):
            eventually(lambda: sum(each.done() for each in coming) >= 2, "refusals", 3)
        gated.admission.set()
        assert Counter(each.result().status for each in coming) == {200: 4, 503: 2}


# -- workers that die, and are replaced ------------------------------------------------------------


class Crowd:
    """Clients that ask for as long as it is entered, and what they were told."""

    def __init__(self, service: Service, body: Any, clients: int = 4) -> None:
        self.service, self.body, self.clients = service, body, clients
        self.told: list[int] = []  # statuses; 0: no answer
        self._stop = threading.Event()

    def __enter__(self) -> Crowd:
        self._threads = [threading.Thread(target=self._run) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            try:
                status = self.service.ask("/infer", self.body).status
            except (OSError, http.client.HTTPException):
                status = 0
            self.told.append(status)

    def wait(self, more: int = 40) -> None:
        """Wait for *more* answers."""
        before = len(self.told)
        eventually(lambda: len(self.told) >= before + more, "answers")

    @property
    def statuses(self) -> Counter[int]:
        return Counter(self.told)


def workers(service: Service) -> list[int]:
    pid = service.process.pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(gated: Gated, written: Write) -> None:
    """At most the calls that it had in flight are lost, and none once it is replaced."""
    with (
        Service(env=written(gated, workers=2)) as service,
        Crowd(service, said("echo-v1")) as crowd,
    ):
        crowd.wait()
        victim = workers(service)[0]
        os.kill(victim, signal.SIGKILL)
        eventually(
            lambda: victim not in workers(service) and len(workers(service)) == 2, "a new worker"
        )
        crowd.wait()
        replaced = len(crowd.told)
        crowd.wait(80)
    assert set(crowd.statuses) <= {0, 200} and crowd.statuses[0] <= 8, crowd.statuses
    assert set(crowd.told[replaced:]) == {200}


@pytest.mark.slow
@BOTH_WAYS
def test_a_reload_loses_no_call(gated: Gated, written: Write, args: tuple[str, ...]) -> None:
    """Calls in flight end, new ones meet the new configuration; clients that keep asking notice
    nothing.
    """
    env = written(gated, workers=2)
    with (
        Service(*args, env=env) as service,
        ThreadPoolExecutor(3) as pool,
        opening(gated),
        Crowd(service, said("echo-v1"), 2) as crowd,
    ):
        held: list[Future[Answer]] = [
            pool.submit(service.ask, "/infer", said("vendor/hold")) for _ in range(3)
        ]
        eventually(lambda: len(gated.requests) == 3, "calls at the vendor")
        before = workers(service)
        written(gated, '[models]\nnew = "echo"', workers=2)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: service.ask("/infer", said("new")).status == 200, "the new name")
        gated.admission.set()
        assert [each.result().status for each in held] == [200] * 3
        eventually(lambda: not set(before) & set(workers(service)), "new workers")
        assert {service.ask("/infer", said("new")).status for _ in range(20)} == {200}
        crowd.wait(10)
    assert set(crowd.statuses) == {200}, crowd.statuses


@pytest.mark.slow
@BOTH_WAYS
def test_a_reload_changes_who_operates_and_how_long_a_body_may_be(
    gated: Gated, written: Write, args: tuple[str, ...]
) -> None:
    env = written(gated) | {"LOAD_FIRST": "imx-first", "LOAD_SECOND": "imx-second"}
    file = Path(env["INFERMUX_CONFIG"])
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("[server]", '[server]\nadmin_key = "env:LOAD_FIRST"\nmax_body = 5000'),
        encoding="utf-8",
    )
    with Service(*args, env=env) as service:

        def seen() -> list[int]:
            asked = [
                service.ask("/status/targets", headers={"x-api-key": key})
                for key in ("imx-first", "imx-second")
            ]
            asked += [
                service.ask("/infer", said("echo-v1", "x" * size)) for size in (1000, 3000, 6000)
            ]
            return [found.status for found in asked]

        assert seen() == [200, 401, 200, 200, 413]
        before = workers(service)
        file.write_text(
            text.replace("[server]", '[server]\nadmin_key = "env:LOAD_SECOND"\nmax_body = 2000'),
            encoding="utf-8",
        )
        service.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: not set(before) & set(workers(service)) and workers(service), "new workers"
        )
        assert seen() == [401, 200, 200, 413, 413]


BROKEN = {
    "not TOML": ("[models\n", "is not TOML"),
    "a typo": ("[reliablity]\nattempts = 1\n", "did you mean 'reliability'"),
    "a name that leads nowhere": ('[models]\nold = "nowhere"\n', "nowhere"),
    "a missing secret": (
        '[providers.other]\ntype = "openai"\napi_key = "env:NOT_SET"\nbase_url = "http://127.0.0.1:1/v1"\n',
        "NOT_SET",
    ),
}


@pytest.mark.slow
@BOTH_WAYS
def test_a_broken_file_changes_nothing_and_the_log_says_so(
    gated: Gated, written: Write, args: tuple[str, ...]
) -> None:
    env = written(gated, '[models]\nold = "echo"')
    file = Path(env["INFERMUX_CONFIG"])
    with Service(*args, env=env) as service, Crowd(service, said("old"), 1) as crowd:
        for text, told in BROKEN.values():
            before, size = workers(service), len(service.log)
            file.write_text(text, encoding="utf-8")
            service.process.send_signal(signal.SIGHUP)
            eventually(
                lambda: not set(before) & set(workers(service)) and workers(service),  # noqa: B023
                "new workers",
            )
            said_so = eventually(
                lambda: [
                    line
                    for line in service.log[size:].splitlines()  # noqa: B023
                    if "not reloaded" in line
                ],
                "a line",
            )
            assert len(said_so) == 1 and told in said_so[0] and "Traceback" not in service.log
            assert service.ask("/infer", said("old")).status == 200
        crowd.wait(10)
    assert set(crowd.statuses) == {200}


@pytest.mark.slow
def test_a_file_that_is_gone_changes_nothing_either(gated: Gated, written: Write) -> None:
    env = written(gated, '[models]\nold = "echo"')
    with Service(env=env) as service:
        Path(env["INFERMUX_CONFIG"]).unlink()
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "not reloaded" in service.log, "a line")
        assert service.ask("/infer", said("old")).status == 200


@pytest.mark.slow
def test_a_reload_does_not_open_a_closed_service(gated: Gated, written: Write) -> None:
    env, anonymous = written(gated, keys="rpm = 9"), {"x-api-key": ""}
    with Keyed(env=env) as service:
        assert service.ask("/infer", said("echo-v1"), headers=anonymous).status == 401
        Path(env["INFERMUX_CONFIG"]).write_text("")  # as an editor does before it writes
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "not reloaded" in service.log, "a line")
        assert "no [keys] now" in service.log
        assert service.ask("/infer", said("echo-v1"), headers=anonymous).status == 401


@pytest.mark.slow
@BOTH_WAYS
def test_workers_that_retire_lose_no_call_and_no_span(
    gated: Gated, written: Write, tokentrace: TokenTrace, args: tuple[str, ...]
) -> None:
    env = written(gated, f'[trace]\ntokentrace = "{tokentrace.url}"', workers=2)
    with Service("--max-requests", "25", *args, env=env) as service:
        first = workers(service)
        with Crowd(service, said("echo-v1"), 3) as crowd:
            crowd.wait(150)
        eventually(lambda: not set(first) & set(workers(service)), "new workers")
        assert set(crowd.statuses) == {200}, crowd.statuses
        assert len(tokentrace.wait(len(crowd.told))) == len(crowd.told)


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.slow
@BOTH_WAYS
def test_sigterm_under_load_loses_no_span_of_an_answer(
    gated: Gated, written: Write, tokentrace: TokenTrace, args: tuple[str, ...]
) -> None:
    """Two workers with keys and limits: held calls and streams end whole, every answered call has
    its span, the exit is clean.
    """
    env = written(
        gated,
        f'[trace]\ntokentrace = "{tokentrace.url}"',
        workers=2,
        threads=24,
        keys="rpm = 100000\ntpm = 10000000",
    )
    with (
        Keyed(*args, env=env) as service,
        ThreadPoolExecutor(8) as pool,
        Crowd(service, said("echo-v1"), 2) as crowd,
    ):
        held = [pool.submit(service.ask, "/infer", said("vendor/hold")) for _ in range(3)]
        held += [
            pool.submit(service.ask, "/v1/chat/completions", said("vendor/quick", stream=True))
            for _ in range(3)
        ]
        eventually(lambda: len(gated.requests) == 6, "calls at the vendor")
        crowd.wait(20)
        service.process.send_signal(signal.SIGTERM)
        eventually(lambda: "Handling signal: term" in service.log, "the signal")
        gated.admission.set()
        answers = [each.result() for each in held]
        assert service.process.wait(PATIENCE) == 0
    assert [found.status for found in answers] == [200] * 6
    assert all(b"[DONE]" in found.data for found in answers[3:])
    answered = crowd.statuses[200] + len(answers)
    spans = tokentrace.checked()
    assert answered <= len(spans) <= len(crowd.told) + len(answers)
    assert set(crowd.statuses) <= {0, 200}


# -- limits over workers ---------------------------------------------------------------------------


@pytest.mark.slow
@BOTH_WAYS
def test_a_keys_rate_is_exact_over_two_workers(
    gated: Gated, written: Write, args: tuple[str, ...]
) -> None:
    with (
        Keyed(*args, env=written(gated, workers=2, threads=32, keys="rpm = 25")) as service,
        ThreadPoolExecutor(12) as pool,
    ):
        answers = list(pool.map(lambda _: service.ask("/infer", said("echo-v1")), range(120)))
        count = Counter(found.status for found in answers)
        assert count == {200: 25, 429: 95}
        refused = [found for found in answers if found.status == 429]
        assert {found.json["error"]["code"] for found in refused} == {"rate_limit_exceeded"}
        assert all(1 <= int(found.headers["Retry-After"]) <= 61 for found in refused)
        assert service.ask("/providers").status == 200
        before = set(workers(service))
        service.process.send_signal(signal.SIGHUP)
        eventually(
            lambda: not before & set(workers(service)) and len(workers(service)) == 2, "new workers"
        )
        assert service.ask("/infer", said("echo-v1")).status == 429
        assert ask(service.port, "/infer", said("echo-v1")).status == 401


@pytest.mark.slow
@BOTH_WAYS
def test_a_budget_is_never_overspent_by_two_workers(
    gated: Gated, written: Write, tmp_path: Path, args: tuple[str, ...]
) -> None:
    """Sixty calls at once from one caller: what is let in is paid for, and the next call is
    refused.
    """
    priced = f'[providers.paid]\ntype = "openai"\nbase_url = "{gated.url}"\napi_key = "env:LOAD_VENDOR"\nmodels = ["quick"]\n'
    priced += 'prices = { "quick" = { input = "1000", output = "1000" } }'
    env = written(gated, priced, workers=2, threads=64, keys='budget = { usd = "0.5" }')
    with Keyed(*args, env=env) as service, ThreadPoolExecutor(20) as pool:
        answers = list(
            pool.map(
                lambda _: service.ask("/infer", said("paid/quick", params={"max_tokens": 50})),
                range(60),
            )
        )
        count = Counter(found.status for found in answers)
        assert set(count) <= {200, 402} and count[200] >= 1, count
        while service.ask("/infer", said("paid/quick", params={"max_tokens": 50})).status == 200:
            count[200] += 1
    with contextlib.closing(sqlite3.connect(tmp_path / "infermux.db")) as db:
        [(calls, spent)] = db.execute(
            "SELECT count(*), sum(cost) FROM calls WHERE status = 'ok'"
        ).fetchall()
    assert calls == count[200] and 0 < spent <= 10**12 // 2
