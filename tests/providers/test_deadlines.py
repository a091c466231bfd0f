"""No call outlasts its deadline, whatever the name service, the addresses or the answer."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import certifi
import pytest
from faulty import PATIENCE, Peer, Script, Vendor, answer, answers, then_closes

from infermux.errors import InferMuxError, ProviderTimeout, ProviderUnavailable
from infermux.protocol import InferRequest
from infermux.protocol.multipart import Upload
from infermux.protocol.passed import Passed
from infermux.providers.http import HTTPProvider, Timeouts
from infermux.types import Deadline

HI = InferRequest(model="m-1", messages=[{"role": "user", "content": "Hi"}])
MESSAGE = {"role": "assistant", "content": "hello"}
GOOD = {"id": "c-1", "model": "m-1", "choices": [{"message": MESSAGE, "finish_reason": "stop"}]}
BODY = json.dumps(GOOD).encode()
OK = answer(200, BODY)
LATE = 1.0  # seconds beyond a deadline, on a machine that is busy; 0.1 where nothing else runs
NAME = "vendor.test"

Lookup = Callable[..., list[Any]]
Make = Callable[..., Any]


@pytest.fixture
def vendor() -> Iterator[Make]:
    """Makes vendors that are gone after the test."""
    with contextlib.ExitStack() as made:
        yield lambda *scripts: made.enter_context(contextlib.closing(Vendor(*scripts)))


@pytest.fixture
def provider() -> Iterator[Make]:
    """Makes providers whose connections are closed after the test."""
    with contextlib.ExitStack() as made:

        def make(port: int, host: str = "127.0.0.1", **options: Any) -> HTTPProvider:
            url = f"http://{host}:{port}/v1"
            new = HTTPProvider("vendor", base_url=url, api_key="sk-1", **options)
            return made.enter_context(contextlib.closing(new))

        yield make


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Lookup], list[str]]:
    """Lets a function look up NAME; returns the list of lookups so far."""
    real = socket.getaddrinfo

    def use(lookup: Lookup) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
            if host != NAME:
                return real(host, port, *args, **options)
            asked.append(host)
            return lookup(port)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return use


def at(host: str, port: int) -> Any:
    return (socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))


@pytest.fixture
def dead() -> Iterator[Callable[[int], list[Any]]]:
    """Makes addresses that answer nothing: their queues are full."""
    with contextlib.ExitStack() as held:

        def make(count: int) -> list[Any]:
            found = []
            for number in range(1, count + 1):
                listener = held.enter_context(socket.socket())
                listener.bind((f"127.0.9.{number}", 0))
                listener.listen(0)
                for _ in range(3):
                    filler = held.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(listener.getsockname())
                found.append(at(*listener.getsockname()))
            return found

        yield make


def infer(provider: HTTPProvider, deadline: Deadline) -> str:
    return provider.infer(HI, deadline).content


def stream(provider: HTTPProvider, deadline: Deadline) -> str:
    return "".join(chunk.text for chunk in provider.stream(HI, deadline))


WAYS = pytest.mark.parametrize("ask", [infer, stream])


def failure(
    ask: Any, provider: HTTPProvider, seconds: float, limit: float | None = None
) -> InferMuxError:
    """Return the error of a call, which ended within its *limit*: the deadline, or less."""
    begun = time.monotonic()
    with pytest.raises(InferMuxError) as raised:
        ask(provider, Deadline(seconds))
    assert time.monotonic() - begun < (seconds if limit is None else limit) + LATE
    return raised.value


def test_certificates_are_loaded_before_the_time_for_connecting_is_measured(tmp_path: Path) -> None:
    """So many take longer than the whole deadline."""
    many = tmp_path / "ca.pem"
    many.write_bytes(Path(certifi.where()).read_bytes() * 16)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/v1"
        vendor = HTTPProvider("vendor", base_url=url, api_key="sk-1", ca=str(many))
        with contextlib.closing(vendor), pytest.raises(ProviderTimeout):
            infer(vendor, Deadline(0.01))
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@WAYS
@pytest.mark.parametrize(("seconds", "connect"), [(0.6, 5.0), (20.0, 0.6)])
def test_ten_addresses_that_do_not_answer_have_one_limit(
    provider: Make, named: Any, dead: Any, ask: Any, seconds: float, connect: float
) -> None:
    addresses = dead(10)
    named(lambda port: addresses)
    mine = provider(1, NAME, timeouts=Timeouts(connect=connect))
    assert isinstance(failure(ask, mine, seconds, 0.6), ProviderTimeout)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("before", [1, 9])
def test_an_address_that_answers_is_found_behind_those_that_do_not(
    vendor: Make, provider: Make, named: Any, dead: Any, before: int
) -> None:
    well = vendor(answers(OK))
    addresses = [*dead(before), at("127.0.0.1", well.port)]
    named(lambda port: addresses)
    mine = provider(1, NAME, timeouts=Timeouts(connect=2.0))
    begun = time.monotonic()
    assert infer(mine, Deadline(10)) == "hello"
    assert time.monotonic() - begun < 2.0 + LATE
    assert well.connections == 1


def test_an_address_that_refuses_costs_no_time(vendor: Make, provider: Make, named: Any) -> None:
    well = vendor(answers(OK))
    with socket.socket() as nobody:
        nobody.bind(("127.0.9.9", 0))
        refused = at(*nobody.getsockname())
        named(lambda port: [refused] * 8 + [at("127.0.0.1", well.port)])
        begun = time.monotonic()
        assert infer(provider(1, NAME), Deadline(10)) == "hello"
        assert time.monotonic() - begun < LATE
        named(lambda port: [refused] * 8)
        assert isinstance(failure(infer, provider(1, NAME), 10, 0), ProviderUnavailable)


@pytest.mark.slow
def test_families_are_tried_in_turn(vendor: Make, provider: Make, named: Any, dead: Any) -> None:
    """Six dead addresses of one family do not keep the other one waiting."""
    well = vendor(answers(OK))
    six = [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", 1, 0, 0))]
    addresses = [*dead(6), *six, at("127.0.0.1", well.port)]
    named(lambda port: addresses)
    assert infer(provider(1, NAME), Deadline(10)) == "hello"


def test_an_address_of_six(vendor: Make, provider: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.socket(socket.AF_INET6) as listener:
        try:
            listener.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        listener.listen()

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(65536)
                sock.sendall(OK)

        server = threading.Thread(target=serve)
        server.start()
        assert infer(provider(listener.getsockname()[1], "[::1]"), Deadline(10)) == "hello"
        server.join()


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.sampled(1)
@WAYS
def test_a_name_service_that_hangs_holds_no_call(provider: Make, named: Any, ask: Any) -> None:
    over = threading.Event()
    named(lambda port: over.wait(10) and [])
    try:
        assert isinstance(failure(ask, provider(1, NAME), 0.5), ProviderTimeout)
        short = provider(1, NAME, timeouts=Timeouts(connect=0.5))
        assert isinstance(failure(ask, short, 20, 0.5), ProviderTimeout)
    finally:
        over.set()


@pytest.mark.slow
def test_lookups_are_few_and_shared(provider: Make, named: Any) -> None:
    over = threading.Event()
    asked = named(lambda port: over.wait(20) and [])
    mine = provider(1, NAME, timeouts=Timeouts(connect=2.5))
    calls = [threading.Thread(target=failure, args=(infer, mine, 20, 4.0)) for _ in range(40)]
    try:
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        assert 1 <= len(asked) <= 3  # another one each second
    finally:
        over.set()


def test_one_lookup_that_hangs_does_not_hold_the_next(
    vendor: Make, provider: Make, named: Any
) -> None:
    well, over = vendor(answers(OK)), threading.Event()
    asked = named(
        lambda port: (over.wait(20) if len(asked) == 1 else None, [at("127.0.0.1", well.port)])[1]
    )
    try:
        assert infer(provider(1, NAME), Deadline(10)) == "hello"
        assert len(asked) == 2
    finally:
        over.set()


def test_known_addresses_outlive_a_name_service_that_fails(
    vendor: Make, provider: Make, named: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infermux.providers.transport.FRESH_SECONDS", 0.0)
    well, over = vendor(then_closes(OK)), threading.Event()
    named(lambda port: [at("127.0.0.1", well.port)])
    mine = provider(1, NAME)
    assert infer(mine, Deadline(10)) == "hello"

    def unknown(port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "try again")

    for broken in (unknown, lambda port: over.wait(20) and []):
        named(broken)
        begun = time.monotonic()
        assert infer(mine, Deadline(10)) == "hello"
        assert time.monotonic() - begun < 0.5 + LATE
    over.set()


def test_a_name_that_is_unknown_fails_at_once(provider: Make, named: Any) -> None:
    def unknown(port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    asked = named(unknown)
    mine = provider(1, NAME)
    for number in (1, 2):
        assert isinstance(failure(infer, mine, 10, 0), ProviderUnavailable)
        assert len(asked) == number


# -- answers ---------------------------------------------------------------------------------------

SIZE = 27_000_000
MONSTERS = {  # made when they are needed
    "lists": lambda: b"[" + b"[]," * (SIZE // 3) + b"[]]",
    "choices": lambda: b'{"choices":[' + b"{}," * (SIZE // 3) + b"{}]}",
    "numbers": lambda: b'{"choices":[' + b"1," * (SIZE // 2) + b"1]}",
    "nested": lambda: b'{"choices":[' + b"[[[[[[[[[[]]]]]]]]]]," * (SIZE // 21) + b"1]}",
    "names": lambda: b"{" + b"".join(b'"%07d":1,' % n for n in range(SIZE // 12)) + b'"a":1}',
    "text": lambda: b'{"choices":"' + b"[{,]}" * (SIZE // 5) + b'"}',
}
EVENT = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"


@pytest.mark.sampled(4)
@WAYS
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("name", MONSTERS)
def test_a_monstrous_answer_is_not_read_past_the_deadline(
    vendor: Make, provider: Make, ask: Any, name: str, status: int
) -> None:
    monster = vendor(answers(answer(status, MONSTERS[name]())))
    error = failure(ask, provider(monster.port), 0.5)
    assert isinstance(error, ProviderTimeout | ProviderUnavailable)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", MONSTERS)
def test_nor_a_monstrous_event(vendor: Make, provider: Make, name: str) -> None:
    event = b"data: " + MONSTERS[name]()[:15_000_000] + b"\n\n"
    monster = vendor(then_closes(EVENT + event))
    failure(stream, provider(monster.port), 0.3)


EMPTY = gzip.compress(b"")
LAYERS = {  # small bodies that hold very much, or nothing, very often
    "empty members in gzip": ("gzip, gzip", lambda: gzip.compress(EMPTY * 1_000_000)),
    "empty members": ("gzip", lambda: EMPTY * 100_000),
    "spaces": ("gzip", lambda: gzip.compress(b" " * SIZE)),
    "lines": ("deflate", lambda: zlib.compress(b"\n" * SIZE)),
    "and in gzip again": ("gzip, gzip, gzip", lambda: repacked(EMPTY * 1_000_000)),
}


def repacked(data: bytes) -> bytes:
    return gzip.compress(gzip.compress(data))


@pytest.mark.sampled(1)
@WAYS
@pytest.mark.parametrize("kind", ["application/json", "text/event-stream"])
@pytest.mark.parametrize("name", LAYERS)
def test_nor_is_a_compressed_one_unpacked_past_it(
    vendor: Make, provider: Make, ask: Any, name: str, kind: str
) -> None:
    encoding, make = LAYERS[name]
    head = {"Content-Encoding": encoding, "Content-Type": kind}
    bomb, begun = vendor(answers(answer(200, make(), head))), time.thread_time()
    failure(ask, provider(bomb.port), 0.2, limit=PATIENCE)
    assert time.thread_time() - begun < 0.2 + LATE


def chunked(data: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    return head + b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [100_000, 1_000_000])
def test_an_answer_in_chunks_of_one_byte_costs_little(
    vendor: Make, provider: Make, size: int
) -> None:
    body = json.dumps(GOOD | {"more": "x" * size}).encode()
    well = vendor(answers(chunked(body)))
    mine, begun = provider(well.port), time.thread_time()
    assert infer(mine, Deadline(30)) == "hello"
    assert time.thread_time() - begun < 2e-6 * size + 0.05  # urllib3's own way: 10e-6 or more
    assert infer(mine, Deadline(30)) == "hello"
    assert well.connections == 1


@pytest.mark.sampled(2)
@WAYS
@pytest.mark.parametrize("status", [b"200 OK", b"500 No"])
def test_chunks_of_one_byte_end_with_the_deadline(
    vendor: Make, provider: Make, ask: Any, status: bytes
) -> None:
    piece = b"1\r\n \r\n" * 20_000

    def floods(peer: Peer) -> None:
        peer.request()
        peer.send(b"HTTP/1.1 %b\r\nTransfer-Encoding: chunked\r\n\r\n" % status)
        while not peer.vendor.stopped.is_set():
            peer.send(piece)

    assert isinstance(failure(ask, provider(vendor(floods).port), 0.4), InferMuxError)


def reads_slowly(peer: Peer) -> None:
    while peer.sock.recv(1000) and not peer.vendor.stopped.wait(0.01):
        pass


@pytest.mark.sampled(1)
@WAYS
def test_a_vendor_that_reads_byte_by_byte_is_left_at_the_deadline(
    vendor: Make, provider: Make, ask: Any
) -> None:
    slow: Script = reads_slowly
    mine = provider(vendor(slow).port)
    big = InferRequest(model="m", messages=[{"role": "user", "content": "x" * 20_000_000}])
    prepared = mine.infer if ask is infer else lambda *args: list(mine.stream(*args))
    begun = time.monotonic()
    with pytest.raises(InferMuxError):
        prepared(big, Deadline(0.5))
    assert time.monotonic() - begun < 0.5 + LATE


def stops_reading(peer: Peer) -> None:
    end = time.monotonic() + 1.5
    while time.monotonic() < end and peer.sock.recv(65536):
        peer.vendor.stopped.wait(0.02)
    peer.vendor.stopped.wait(PATIENCE)


@pytest.mark.slow
def test_a_vendor_that_stops_reading_an_upload_is_left_at_the_deadline(
    vendor: Make, provider: Make
) -> None:
    """Each piece of an upload is sent by itself; the last one has only what is left of the time."""
    part = b'Content-Disposition: form-data; name="file"; filename="a.mp3"'
    body = b"--x\r\n%b\r\n\r\n%b\r\n--x--\r\n" % (part, b"y" * 30_000_000)
    upload = Upload(io.BytesIO(body).read, boundary="x", size=len(body), limit=10**8, model=False)
    passed = Passed(upload=upload)
    sent = InferRequest(model="m", op="audio/transcriptions", passed=passed)
    mine, begun = provider(vendor(stops_reading).port), time.monotonic()
    with contextlib.closing(upload), pytest.raises(ProviderTimeout):
        list(mine.stream(sent, Deadline(2)))
    assert time.monotonic() - begun < 2 + LATE
