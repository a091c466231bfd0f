"""Tests that the memory of a worker is bounded and freed after large requests."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import http.client
import json
import random
import re
import socket
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, Answer, Peer, Service, eventually, how_many

from infermux import EchoProvider, HTTPProvider, InferRequest, Registry, Router
from infermux.chaos.faults import FAULTS
from infermux.chaos.vendor import FaultyVendor
from infermux.errors import InferMuxError, ProviderTimeout
from infermux.types import Deadline

MB = 1_000_000
HEAVY = {"gzip_bomb", "huge_body"}  # a hundred megabytes each
KEYS = {name: f"imx-memory-{name}" for name in ("free", "spent")}
STATUSES = {"refuses": 400, "fails": 500, "is-full": 503, "hangs": 200, "raves": 200}


class Failing(Peer):
    """A vendor that fails as the model says."""

    hanging = 0

    def answer(self, handler: Any, body: bytes) -> None:
        asked = json.loads(body)
        if asked["model"] == "hangs":
            with self.lock:
                self.hanging += 1
            self.released.wait(PATIENCE)
        error = json.dumps({"error": {"message": "no", "type": "x", "code": None}}).encode()
        data = b"{" * 100 if asked["model"] == "raves" else error
        handler.reply(STATUSES[asked["model"]], data, {"Content-Type": "application/json"})


class Keyed(Service):
    """A service that is ready when it asks for a key."""

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("/providers").status == 401
        return False


def written(folder: Path, vendor: Failing, more: str = "") -> str:
    lines = [
        f"[server]\nworkers = 1\nthreads = 64\ngraceful_timeout = 1\n{more}",
        "[reliability]\nattempts = 4\ncircuit_breaker = { failures = 1000, window = 60, open = 1 }",
        f'[ledger]\npath = "{folder}/infermux.db"',
        '[providers.echo]\ntype = "echo"\nmodels = ["echo-v1"]',
        f'[providers.vendor]\ntype = "openai"\nbase_url = "{vendor.url}/v1"',
        f'api_key = "env:MEMORY_VENDOR"\nmodels = {json.dumps(list(STATUSES))}',
        'prices = { "fails" = { input = "1000", output = "1000" } }',
        '[providers.down]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"',
        'api_key = "env:MEMORY_VENDOR"\nmodels = ["gone"]',
        '[models.over]\ntargets = ["vendor/fails", "down/gone", "vendor/raves", "echo/echo-v1"]',
    ]
    for name, key in KEYS.items():
        lines.append(f'[keys.{name}]\nhash = "{hashlib.sha256(key.encode()).hexdigest()}"')
    lines.append('budget = { usd = "0.0001", per = "day" }')
    file = folder / "infermux.toml"
    file.write_text("\n".join(lines))
    return str(file)


@contextlib.contextmanager
def serving(folder: Path, more: str = "", vendor: Failing | None = None) -> Iterator[Service]:
    with vendor or Failing() as vendor:
        env = {"INFERMUX_CONFIG": written(folder, vendor, more), "MEMORY_VENDOR": "sk-memory"}
        with Keyed(env=env) as service:
            yield service


def resident(service: Service) -> float:
    """Return the megabytes that the worker has in memory."""
    [pid] = service.workers
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1000


def large(size: int, model: str, **more: Any) -> bytes:
    asked = {"model": model, "messages": [{"role": "user", "content": "x" * size}], **more}
    return json.dumps(asked).encode()


def post(service: Service, body: bytes, *, key: str = "free", path: str = "") -> Answer:
    headers = {"Authorization": f"Bearer {KEYS.get(key, key)}"}
    return service.ask(path or "/v1/chat/completions", body, headers=headers)


KINDS: list[tuple[int, str, dict[str, Any]]] = [
    (404, "nobody", {}),
    (404, "nobody", {"path": "/infer"}),
    (400, "refuses", {}),
    (402, "fails", {"key": "spent"}),
    (502, "fails", {}),
    (502, "fails", {"stream": True}),
    (502, "is-full", {"path": "/v1/messages", "max_tokens": 5}),
    (502, "gone", {}),
    (502, "raves", {}),
    (502, "raves", {"stream": True}),
    (200, "over", {}),
    (200, "echo-v1", {"stream": True}),
]


@pytest.mark.slow
def test_a_call_that_has_failed_keeps_nothing_of_its_request(tmp_path: Path) -> None:
    """An exception in a record would keep its frames, and they the body."""
    with serving(tmp_path) as service:
        post(service, large(MB, "over"))
        before = resident(service)
        keeps_nothing(service, before, 10, rounds=2)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(KINDS)))
def test_many_large_calls_of_a_kind_keep_nothing(tmp_path: Path, number: int) -> None:
    with serving(tmp_path) as service:
        post(service, large(MB, "over"))
        many = how_many(5, 5, 12)
        keeps_nothing(service, resident(service), 30, rounds=many, kinds=[KINDS[number]])


def keeps_nothing(
    service: Service, before: float, size: int, *, rounds: int, kinds: Any = KINDS
) -> None:
    for _ in range(rounds):
        for status, model, more in kinds:
            named = {name: more[name] for name in ("path", "key") if name in more}
            rest = {name: value for name, value in more.items() if name not in named}
            found = post(service, large(size * MB, model, **rest), **named)
            assert found.status == status, (model, found.data[:300])
    eventually(lambda: resident(service) < before + 60, "the memory of before")


class Traced(dict[str, Any]):
    """A message that a weak reference can have."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("fault", [name for name in FAULTS if name not in HEAVY])
def test_a_call_is_freed_without_the_garbage_collector(fault: str) -> None:
    """A cycle would keep a body of 30 MB until a collection, and those are rare."""
    with contextlib.ExitStack() as stack:
        vendor = stack.enter_context(FaultyVendor(fault))
        made = [
            HTTPProvider(dialect, base_url=vendor.url(dialect), dialect=dialect, api_key="sk-1")
            for dialect in ("openai", "anthropic", "gemini")
        ]
        for each in made:
            stack.callback(each.close)
        registry = Registry([*made, EchoProvider(models=["e"])])
        names = [[f"{each.name}/m"] for each in made]
        names.append([f"{each.name}/m" for each in made] + ["echo/e"])
        for number, targets in enumerate(names):
            registry.define(f"name-{number}", targets)
        router = Router(registry, attempts=4, deadline=0.4)
        gc.disable()
        stack.callback(gc.enable)
        for number in range(len(names)):
            for streamed in (False, True):
                traced = Traced(role="user", content="hello")
                found = weakref.ref(traced)
                ends(router, InferRequest(f"name-{number}", [traced]), streamed=streamed)
                del traced
                assert found() is None, (number, streamed)


def test_a_call_that_has_no_time_left_is_freed_at_once() -> None:
    provider = HTTPProvider("vendor", base_url="http://127.0.0.1:9/v1", api_key="sk-1")
    traced = Traced(role="user", content="hello")
    found = weakref.ref(traced)
    gc.disable()
    try:
        with pytest.raises(ProviderTimeout):
            provider.infer(InferRequest("m", [traced]), Deadline(0))
        del traced
        assert found() is None
    finally:
        gc.enable()
        provider.close()


def ends(router: Router, request: InferRequest, *, streamed: bool) -> None:
    with contextlib.suppress(InferMuxError):
        if streamed:
            for _ in router.stream(request):
                pass
        else:
            router.infer(request)


# -- bodies that nobody has asked for --------------------------------------------------------------


def head(key: str, *framing: str) -> bytes:
    lines = [
        "POST /v1/chat/completions HTTP/1.1",
        "Host: x",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        *framing,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def said(sock: socket.socket) -> bytes:
    """Return what comes until the connection ends."""
    found = b""
    with contextlib.suppress(ConnectionError):
        while data := sock.recv(65536):
            found += data
    return found


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framing", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
def test_without_a_good_key_only_the_head_is_read(tmp_path: Path, framing: str) -> None:
    with serving(tmp_path) as service:
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
            sock.sendall(head("wrong", framing))  # and nothing of the body
            answer = said(sock)
        assert answer.startswith(b"HTTP/1.1 401") and b"\r\nConnection: close" in answer
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
            sock.sendall(head("wrong", framing))
            sent, part = 0, b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
            with contextlib.suppress(ConnectionError):
                while sent < 30 * MB:
                    sock.sendall(part)
                    sent += len(part)
            assert sent < 25 * MB  # what the sockets hold, on both sides, and 64 KB
        assert post(service, large(10, "echo-v1")).status == 200


@pytest.mark.sampled(1)
@pytest.mark.parametrize("framing", ["Content-Length: 30000000", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("line", ["POST /nothing", "POST /healthz", "GET /healthz", "PUT /infer"])
def test_a_body_that_nobody_reads_is_not_awaited(tmp_path: Path, line: str, framing: str) -> None:
    """Else gunicorn's thread waits for it, whoever asks."""
    with serving(tmp_path) as service:
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
            asked = head("wrong", framing).replace(b"POST /v1/chat/completions", line.encode())
            sock.sendall(asked + b"1")  # and nothing more of the body
            assert b"\r\nConnection: close" in said(sock)
        connection = http.client.HTTPConnection("127.0.0.1", service.port, PATIENCE)
        with contextlib.closing(connection):  # which a short body does not end
            method, _, path = line.partition(" ")
            connection.request(method, path, b"{}")
            connection.getresponse().read()
            assert connection.sock is not None


@pytest.mark.slow
def test_a_client_that_sends_a_large_body_with_a_wrong_key_hears_so(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai")
    with serving(tmp_path) as service:
        client = openai.OpenAI(
            api_key="wrong", base_url=f"http://127.0.0.1:{service.port}/v1", max_retries=0
        )
        with client, pytest.raises(openai.AuthenticationError):
            content = "x" * 10 * MB
            client.chat.completions.create(
                model="echo-v1", messages=[{"role": "user", "content": content}]
            )


@pytest.mark.slow
def test_bodies_in_flight_have_a_bound(tmp_path: Path) -> None:
    """Whether a body says its length or not, it is counted until its call has ended."""
    body = large(3 * MB, "hangs")
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    forms = [
        head(KEYS["free"], f"Content-Length: {len(body)}") + body,
        head(KEYS["free"], "Transfer-Encoding: chunked") + chunked,
    ]
    vendor = Failing()
    with (
        serving(tmp_path, "max_inflight_body = 10000000", vendor) as service,
        contextlib.ExitStack() as open_,
    ):
        for number in range(3):  # whose calls wait for the vendor
            sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            open_.enter_context(sock)
            sock.sendall(forms[number % 2])
        eventually(lambda: vendor.hanging == 3, "three calls at the vendor")
        refused = post(service, body)
        assert refused.status == 503
        assert refused.headers["Retry-After"] == "1"
        assert refused.json["error"]["code"] == "overloaded"
        for form in forms:
            with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(form)
                assert said(sock).startswith(b"HTTP/1.1 503")
        assert post(service, large(10, "echo-v1")).status == 200  # for which there is room
    with serving(tmp_path, "max_inflight_body = 10000000") as service:
        for size, model, status in ((3, "echo-v1", 200), (3, "nobody", 404)):
            for stream in (True, False) * 3:  # each gives its room back
                found = post(service, large(size * MB, model, stream=stream))
                assert found.status == status
        with socket.create_connection(("127.0.0.1", service.port), PATIENCE) as sock:
            sock.sendall(head(KEYS["free"], "Content-Length: 11000000"))
            assert said(sock).startswith(b"HTTP/1.1 413")  # for which there never is room
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(post, service, large(3 * MB, "echo-v1")) for _ in range(3)]
            assert [call.result().status for call in calls] == [200] * 3


@pytest.mark.slow
def test_a_body_takes_room_as_it_arrives(tmp_path: Path) -> None:
    """Announced bodies hold up nobody, and large ones leave room for small ones."""
    vendor = Failing()
    with (
        serving(tmp_path, "max_inflight_body = 10000000", vendor) as service,
        contextlib.ExitStack() as open_,
    ):
        for _ in range(5):  # that begin
            sock = socket.create_connection(("127.0.0.1", service.port), PATIENCE)
            open_.enter_context(sock)
            sock.sendall(head(KEYS["free"], f"Content-Length: {9 * MB}") + b" " * 20_000)
        assert post(service, large(3 * MB, "echo-v1")).status == 200
        statuses = [post(service, large(2 * MB, "echo-v1")).status for _ in range(3)]
        assert statuses == [200] * 3


# -- a soak ----------------------------------------------------------------------------------------

SOAK = how_many(2_000, 10_000, 300_000)
CLIENTS = 8
MIX: list[tuple[int, int, str, dict[str, Any]]] = [  # of 100 requests: how many, and what comes
    (38, 200, "echo-v1", {}),
    (20, 200, "echo-v1", {"stream": True}),
    (16, 200, "echo-v1", {"path": "/infer"}),
    (15, 200, "echo-v1", {"path": "/v1/messages", "max_tokens": 5}),
    (4, 404, "junk", {}),
    (3, 200, "over", {}),
    (2, 400, "refuses", {}),
    (1, 404, "junk", {"path": "/v1/messages", "max_tokens": 5}),
    (1, 200, "echo-v1", {"size": 5 * MB}),
]


def soaks(service: Service, numbers: Sequence[int]) -> Counter[str]:
    """Send mixed requests over one connection; return how many did not come out as they should."""
    wrong: Counter[str] = Counter()
    rng = random.Random(numbers[0])
    kinds = [kind for kind in MIX for _ in range(kind[0])]
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", service.port)) as connection:
        for number in numbers:
            _, status, model, more = rng.choice(kinds)
            rest = dict(more)
            path, size = rest.pop("path", "/v1/chat/completions"), rest.pop("size", 20)
            body = large(size, f"{model}-{number}" if model == "junk" else model, **rest)
            connection.request("POST", path, body, {"Authorization": f"Bearer {KEYS['free']}"})
            with connection.getresponse() as response:
                data = response.read()
                if response.status != status or (status == 200 and b"xxx" not in data):
                    wrong[f"{model} {response.status} {data[:200]!r}"] += 1
    return wrong


@pytest.mark.slow
def test_a_worker_does_not_grow_with_the_requests_that_it_serves(tmp_path: Path) -> None:
    """INFERMUX_LONG=1 sends 300,000; a tenth of them fail, a hundredth have 5 MB."""
    with serving(tmp_path) as service, ThreadPoolExecutor(CLIENTS) as pool:

        def send(first: int, last: int) -> Counter[str]:
            shares = [range(first + client, last, CLIENTS) for client in range(CLIENTS)]
            return sum(pool.map(partial(soaks, service), shares), Counter[str]())

        assert send(0, SOAK // 10) == {}
        before = resident(service)
        assert send(SOAK // 10, SOAK) == {}
        eventually(lambda: resident(service) < before + 10, "no growth of more than 10 MB")
