"""Every failure of a vendor, through a real gunicorn: the client's answer, its cost, and what stays
alive.

One service is used by the whole module. The path of a request tells its vendor which fault to show,
so each fault is its own provider; another provider is healthy, and calls may fail over to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faulty import Peer, Request, Vendor, answer, events
from support import PATIENCE, Answer, Service, TokenTrace, eventually, nobody

DEADLINE = 1.5
QUICK = 15.0  # seconds: without the deadline a vendor that drips would take forty
ATTEMPTS = 3
IDLE = 0.6
KEY, CALLER, PROMPT, BODY = (
    "sk-canary-vendor-1f0a",
    "imx-canary-caller-77c1",
    "canary-prompt-0d9b",
    "canary-upstream-5e2d",
)
MOST = 4096  # bytes of an error

Act = Callable[[Peer, Request], bool]  # answers, and says whether the connection goes on


class Fault(NamedTuple):
    act: Act
    statuses: tuple[int, ...]
    tries: int = ATTEMPTS  # requests to the vendor if it is alone
    over: bool = True  # whether another provider is asked


def chat(text: str, **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    body = {
        "id": "c-1",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message}],
    }
    body["choices"][0]["finish_reason"] = "stop"
    return json.dumps(
        body | {"usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}} | more
    ).encode()


def says(raw: bytes, *, stays: bool = True) -> Act:
    def act(peer: Peer, request: Request) -> bool:
        peer.send(raw)
        return stays

    return act


def resets(raw: bytes = b"") -> Act:
    def act(peer: Peer, request: Request) -> bool:
        peer.send(raw)
        time.sleep(0.02)  # the bytes arrive before the reset takes them away
        peer.reset()
        return False

    return act


def waits(raw: bytes = b"") -> Act:
    def act(peer: Peer, request: Request) -> bool:
        peer.send(raw)
        peer.gone()
        return False

    return act


def drips(head: bytes, rest: bytes) -> Act:
    def act(peer: Peer, request: Request) -> bool:
        peer.send(head)
        peer.drip(rest, 0.1)
        return False

    return act


def failing(status: int, message: str = BODY, **headers: str) -> Act:
    body = json.dumps({"error": {"message": message, "type": "t", "code": None}}).encode()
    return says(
        answer(status, body, {name.replace("_", "-"): value for name, value in headers.items()})
    )


@cache
def bomb() -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(
        [
            pack.compress(b'{"a": "'),
            *(pack.compress(b" " * 2**20) for _ in range(100)),
            pack.flush(),
        ]
    )


def bombs(peer: Peer, request: Request) -> bool:
    peer.send(answer(200, bomb(), {"Content-Encoding": "gzip"}))
    return True


def later() -> Act:
    def act(peer: Peer, request: Request) -> bool:
        body = json.dumps({"error": {"message": BODY}}).encode()
        peer.send(answer(429, body, {"Retry-After": formatdate(time.time() + 30, usegmt=True)}))
        return True

    return act


GOOD = answer(200, chat("all is well"))
PAGE = b"<html><title>Sign in</title>" + BODY.encode() + b"</html>"
LOST = (502, 503)
FAULTS = {
    "silent": Fault(waits(), (504,), tries=1),  # which takes the whole deadline
    "headers dripped": Fault(
        drips(b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 400), (504,), tries=1
    ),
    "body dripped": Fault(drips(answer(200, length=400), b" " * 400), (504,), tries=1),
    "reset": Fault(resets(), (502,)),
    "closed": Fault(says(b"", stays=False), (502,)),
    "closed in headers": Fault(says(b"HTTP/1.1 200 OK\r\nContent-", stays=False), (502,)),
    "cut body": Fault(says(answer(200, chat("half")[:40], length=400), stays=False), (502,)),
    "endless chunk": Fault(
        says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n", stays=False),
        (502,),
    ),
    "not HTTP": Fault(says(b"\0\xff\0" + BODY.encode() + b"\r\n\r\n", stays=False), (502,)),
    "thousand headers": Fault(
        says(answer(200, chat("hello"), {f"X-{number}": BODY for number in range(1000)})),
        (200, 502),
    ),
    "empty": Fault(says(answer(200)), (502,)),
    "page": Fault(says(answer(200, PAGE, {"Content-Type": "text/html"})), (502,)),
    "no choices": Fault(says(answer(200, chat("", choices=[]))), (502,)),
    "deep": Fault(says(answer(200, b"[" * 100_000 + b"]" * 100_000)), (502, 504)),  # slow to read
    "nothing": Fault(says(b"HTTP/1.1 204 No Content\r\n\r\n"), (502,)),
    "bomb": Fault(bombs, (502, 504)),  # slow to unpack
    "corrupt gzip": Fault(
        says(answer(200, b"\x1f\x8b\x08 not gzip", {"Content-Encoding": "gzip"})), (502,)
    ),
    "redirect": Fault(
        says(answer(307, b"", {"Location": "http://127.0.0.1:9/v1"})), (502,), tries=1
    ),
    "400": Fault(failing(400, f"bad {KEY} value"), (400,), tries=1, over=False),
    "401": Fault(failing(401, f"wrong key {KEY}"), (502,), tries=1),
    "403": Fault(failing(403), (502,), tries=1),
    "404": Fault(failing(404, "no such model"), (404, 502), tries=1),
    "408": Fault(failing(408), (502, 504)),
    "413": Fault(failing(413, "too long"), (413,), tries=1, over=False),
    "429": Fault(failing(429, Retry_After="30"), (429,), tries=1),
    "429 by date": Fault(later(), (429,), tries=1),
    "no credit": Fault(failing(429, "insufficient_quota"), (429,), tries=1),
    "429 without a time": Fault(failing(429), (429,)),
    "500": Fault(failing(500, f"{KEY} at /srv/app.py", Set_Cookie=f"a={BODY}"), (502,)),
    "501": Fault(failing(501), (502,), tries=1),
    "503": Fault(failing(503, Retry_After="30"), (502, 503), tries=1),
    "504": Fault(failing(504), (502, 504)),
    "529": Fault(failing(529), (502, 503)),
    "999": Fault(failing(999), (502,)),
}
NAMES = {name: re.sub(r"\W", "-", name) for name in FAULTS}


def event(**body: Any) -> bytes:
    return (
        b"data: "
        + json.dumps(
            {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m"} | body
        ).encode()
        + b"\n\n"
    )


def delta(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


USED = event(choices=[], usage={"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18})
END = event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
BEGUN = b"".join(events(delta("first"), USED, end=False))
BREAKS = {  # after the first token
    "cut": says(BEGUN, stays=False),
    "reset": resets(BEGUN),
    "stall": waits(BEGUN),
    "polite end": says(b"".join(events(delta("first"), USED)), stays=False),
    "error event": says(
        b"".join(events(delta("first"), USED, event(error={"message": BODY + KEY, "code": 500}))),
        stays=False,
    ),
    "broken event": says(
        b"".join(events(delta("first"), USED, b"data: {broken " + BODY.encode() + b"\n\n")),
        stays=False,
    ),
    "not chunked": says(BEGUN + b"zz\r\n", stays=False),
}


def well(peer: Peer, request: Request) -> bool:
    asked = json.loads(request.body)
    if asked.get("stream"):
        peer.send(b"".join(events(delta("all is "), delta("well"), END, USED, b"data: [DONE]\n\n")))
    else:
        peer.send(GOOD)
    return True


def trickles(peer: Peer, request: Request) -> bool:
    """A stream that goes on for as long as anybody listens."""
    try:
        peer.send(b"".join(events(delta("first"), end=False)))
        while not peer.vendor.stopped.wait(0.02):
            peer.send(b"".join(events(delta("more"), end=False)[1:]))
    except OSError:
        peer.vendor.left.set()
    return False


def floods(peer: Peer, request: Request) -> bool:
    """A stream without pause."""
    try:
        peer.send(b"".join(events(delta("first"), end=False)))
        piece = b"".join(events(delta("x" * 60_000), end=False)[1:])
        while not peer.vendor.stopped.is_set():
            peer.send(piece)
    except OSError:
        peer.vendor.left.set()
    return False


def slow(peer: Peer, request: Request) -> bool:
    time.sleep(0.5)
    return well(peer, request)


def flaky(peer: Peer, request: Request) -> bool:
    """Fails the first request of each model, and answers the second."""
    asked = [
        json.loads(each.body)["model"]
        for each in peer.vendor.requests
        if each.line.startswith("POST /flaky/")
    ]
    return (
        well(peer, request)
        if asked.count(json.loads(request.body)["model"]) > 1
        else failing(500)(peer, request)
    )


ACTS: dict[str, Act] = (
    {NAMES[name]: fault.act for name, fault in FAULTS.items()}
    | {f"then-{name.replace(' ', '-')}": act for name, act in BREAKS.items()}
    | {"well": well, "trickles": trickles, "floods": floods, "slow": slow, "flaky": flaky}
)


def plays(peer: Peer) -> None:
    """Do what the first word of the path says."""
    while request := peer.request():
        if not ACTS[request.line.split("/")[1]](peer, request):
            return


DOORS = {
    "infer": ("/infer", {}),
    "stream": ("/v1/chat/completions", {"stream": True}),
    "messages": ("/v1/messages", {"max_tokens": 5}),
}
STREAMS = {
    "openai": ("/v1/chat/completions", {"stream": True}, {}),
    "anthropic": ("/v1/messages", {"stream": True, "max_tokens": 5}, {}),
    "mist": ("/infer", {}, {"Accept": "text/event-stream"}),
}


def toml(port: int, refused: str, trace: str) -> str:
    lines = [
        f"[reliability]\nattempts = {ATTEMPTS}\ndeadline = {DEADLINE}\ncircuit_breaker = {{ failures = 100, window = 0.006 }}",
        f'[trace]\ntokentrace = "{trace}"',
        "[server]\nworkers = 1\nthreads = 16",
    ]
    addresses = {name: f"http://127.0.0.1:{port}/{name}/v1" for name in ACTS} | {
        "refused": f"{refused}/v1"
    }
    for name, url in addresses.items():
        lines.append(
            f'[providers.{name}]\ntype = "openai"\nbase_url = "{url}"\napi_key = "env:CANARY_KEY"\ntimeout = {{ idle = {IDLE} }}'
        )
    lines.append("[models]")
    lines += [
        f'over-{name}-{api} = ["{name}/over-{api}", "well/m"]'
        for name in addresses
        for api in STREAMS | DOORS
        if name != "well"
    ]
    return "\n".join(lines)


class Stand(NamedTuple):
    service: Service
    vendor: Vendor
    tokentrace: TokenTrace
    asked: list[str]

    def ask(self, path: str, model: str, **more: Any) -> Answer:
        """Send a call that must end in a span."""
        self.asked.append(model)
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}
        return self.service.ask(
            path, body, headers={"Authorization": f"Bearer {CALLER}", "Cookie": f"session={CALLER}"}
        )

    def hits(self, name: str) -> int:
        return sum(request.line.startswith(f"POST /{name}/") for request in self.vendor.requests)


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    vendor = Vendor(plays)
    file = tmp_path_factory.mktemp("faults") / "infermux.toml"
    with contextlib.closing(vendor), nobody() as refused, TokenTrace() as tokentrace:
        file.write_text(toml(vendor.port, refused, tokentrace.url), encoding="utf-8")
        with Service(env={"INFERMUX_CONFIG": str(file), "CANARY_KEY": KEY}) as service:
            yield Stand(service, vendor, tokentrace, [])


def is_clean(stand: Stand, *texts: str) -> None:
    """Nothing that is secret, the vendor's own or a library's stands in any of the texts."""
    secrets = (
        KEY,
        CALLER,
        PROMPT,
        BODY,
        f":{stand.vendor.port}",
        "127.0.0.1",
        "HTTPConnectionPool",
        "Traceback",
        "urllib3",
        "<html",
    )
    for text in texts:
        assert [secret for secret in secrets if secret in text] == []


def is_failure(stand: Stand, found: Answer, statuses: tuple[int, ...]) -> None:
    """An error as faults.md wants it: the status, a small JSON object, nothing that leaks."""
    assert found.status in statuses, found
    assert found.headers["Content-Type"] == "application/json" and len(found.data) < MOST
    assert {"message", "type", "code"} <= set(found.json["error"]) and found.json["error"][
        "message"
    ]
    is_clean(stand, found.data.decode(), str(found.headers))
    if found.status in (429, 503) and "credit" not in found.json["error"]["message"]:
        assert int(found.headers["Retry-After"]) >= 1
    assert "x-should-retry" not in found.headers


def timed(make: Callable[[], Answer]) -> Answer:
    """Return the answer, which came in a reasonable time."""
    started = time.monotonic()
    found = make()
    assert time.monotonic() - started < QUICK
    return found


def is_alive(stand: Stand) -> None:
    assert timed(lambda: stand.service.ask("/providers")).status == 200


# -- before the first token ------------------------------------------------------------------------


@pytest.mark.sampled(1)
@pytest.mark.parametrize("api", ["infer", "stream"])
@pytest.mark.parametrize("name", list(FAULTS))
def test_a_vendor_that_is_alone_and_fails(stand: Stand, name: str, api: str) -> None:
    """The status says whose fault it was; the header tells the attempts that the vendor saw.

    All attempts share one deadline: after a silent one there is no time for another.
    """
    fault, path = FAULTS[name], DOORS[api]
    before = stand.hits(NAMES[name])
    found = timed(lambda: stand.ask(path[0], f"{NAMES[name]}/{api}", **path[1]))
    hits = stand.hits(NAMES[name]) - before
    if found.status != 200:
        is_failure(stand, found, fault.statuses)
        assert 1 <= hits <= fault.tries
    assert found.headers["X-Infermux-Attempts"] == str(hits)
    is_alive(stand)


@pytest.mark.sampled(1)
@pytest.mark.sampled(6)
@pytest.mark.parametrize("api", ["infer", "stream"])
@pytest.mark.parametrize("name", FAULTS)
def test_another_vendor_answers_where_one_fails(stand: Stand, name: str, api: str) -> None:
    path, fault = DOORS[api], FAULTS[name]
    before = stand.hits(NAMES[name])
    found = timed(lambda: stand.ask(path[0], f"over-{NAMES[name]}-{api}", **path[1]))
    assert stand.hits(NAMES[name]) - before == 1
    if not fault.over:
        is_failure(stand, found, fault.statuses)
        return
    assert found.status == 200
    assert found.headers["X-Infermux-Provider"] in (
        "well",
        NAMES[name] if 200 in fault.statuses else "well",
    )
    assert (
        b"[DONE]" in found.data
        if api == "stream"
        else found.json["content"] in ("all is well", "hello")
    )
    is_clean(stand, found.data.decode(), str(found.headers))


def test_nobody_listens(stand: Stand) -> None:
    found = timed(lambda: stand.ask("/infer", "refused/alone"))
    is_failure(stand, found, LOST)
    assert stand.ask("/infer", "over-refused-infer").json["content"] == "all is well"


def test_a_slow_answer_is_an_answer(stand: Stand) -> None:
    found = stand.ask("/infer", "slow/m")
    assert found.status == 200 and found.json["latency_ms"] >= 450


@pytest.mark.parametrize("api", DOORS)
def test_a_failure_that_passes_is_hidden_by_a_retry(stand: Stand, api: str) -> None:
    path = DOORS[api]
    found = stand.ask(path[0], f"flaky/{api}", **path[1])
    assert (found.status, found.headers["X-Infermux-Attempts"]) == (200, "2")


@pytest.mark.slow
def test_the_service_lives_while_vendors_hang(stand: Stand) -> None:
    """With ten calls at silent vendors the list of providers and other vendors' answers come at
    once.
    """
    before = len(stand.vendor.requests)
    with ThreadPoolExecutor(5) as pool:
        coming = [pool.submit(stand.ask, "/infer", "silent/alive") for _ in range(5)]
        eventually(lambda: len(stand.vendor.requests) >= before + 5, "calls at the vendor")
        is_alive(stand)
        assert timed(lambda: stand.ask("/infer", "well/m")).status == 200
        assert {answer.result().status for answer in coming} == {504}


@pytest.mark.slow
def test_failures_leave_no_socket_and_no_thread_behind(stand: Stand) -> None:
    [worker] = children(stand.service.process.pid)
    models = [
        f"{NAMES[name]}/leaks"
        for name in (
            "reset",
            "closed",
            "cut body",
            "page",
            "500",
            "redirect",
            "corrupt gzip",
            "429",
        )
    ]
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(lambda model: stand.ask("/infer", model), models * 4)
        )  # by then every thread has what it keeps
        before = descriptors(worker)
        list(pool.map(lambda model: stand.ask("/infer", model), models * 15))
    eventually(lambda: descriptors(worker) <= before + 10, "no more descriptors than before")


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# -- after the first token -------------------------------------------------------------------------


def listen(stand: Stand, api: str, model: str) -> Answer:
    """Read a stream to its end, whichever it is."""
    path, more, headers = STREAMS[api]
    stand.asked.append(model)
    body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}
    return stand.service.ask(path, body, headers=headers)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("api", STREAMS)
@pytest.mark.parametrize("name", BREAKS)
def test_a_stream_that_breaks_ends_in_an_error_and_never_as_if_it_were_whole(
    stand: Stand, name: str, api: str
) -> None:
    model = f"then-{name.replace(' ', '-')}"
    found = timed(lambda: listen(stand, api, f"{model}/{api}"))
    text = found.data.decode()
    assert (found.status, found.headers["Content-Type"].partition(";")[0]) == (
        200,
        "text/event-stream",
    )
    assert "first" in text and "error" in text
    assert "[DONE]" not in text and "message_stop" not in text and "infer.response" not in text
    assert stand.hits(model) >= 1
    is_clean(stand, text, str(found.headers))


@pytest.mark.parametrize("name", BREAKS)
def test_after_the_first_token_nobody_else_is_asked(stand: Stand, name: str) -> None:
    before = stand.hits("well")
    found = listen(stand, "openai", f"over-then-{name.replace(' ', '-')}-openai")
    assert b"first" in found.data and b"error" in found.data
    assert stand.hits("well") == before


def test_what_a_broken_stream_used_is_in_its_span(stand: Stand) -> None:
    """Tokens that the vendor counted before the cut, once."""
    before = len(stand.tokentrace.spans)
    listen(stand, "openai", "then-cut/usage")
    eventually(
        lambda: any(
            span["attrs"]["provider"] == "then-cut" for span in stand.tokentrace.spans[before:]
        ),
        "the span",
    )
    [span] = [
        span for span in stand.tokentrace.spans[before:] if span["attrs"]["provider"] == "then-cut"
    ]
    assert (span["status"], span["attrs"]["tokens_in"], span["attrs"]["tokens_out"]) == (
        "error",
        7,
        11,
    )


# -- clients that do not behave --------------------------------------------------------------------


@contextlib.contextmanager
def reading(stand: Stand, model: str) -> Iterator[socket.socket]:
    """A client's socket whose stream has begun."""
    stand.asked.append(model)
    stand.vendor.left.clear()
    body = json.dumps(
        {"model": model, "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", stand.service.port), PATIENCE) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(head + body)
        got = b""
        while b"first" not in got:
            data = sock.recv(4096)
            assert data, got
            got += data
        yield sock


def test_a_client_that_leaves_stops_the_vendor(stand: Stand) -> None:
    with reading(stand, "trickles/left"):
        pass
    assert stand.vendor.left.wait(PATIENCE)


def test_a_client_that_leaves_while_the_vendor_is_silent(stand: Stand) -> None:
    """The idle limit ends it, at the latest."""
    with reading(stand, "then-stall/left"):
        pass
    assert stand.vendor.left.wait(PATIENCE)


@pytest.mark.slow
def test_a_client_that_does_not_read_loses_its_stream(stand: Stand) -> None:
    """The server's send timeout of 10 s frees the thread; others are served all the while."""
    with reading(stand, "floods/unread"):
        is_alive(stand)
        assert stand.vendor.left.wait(PATIENCE)
    is_alive(stand)


# -- the whole run ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_call_has_its_span_and_nothing_leaked(stand: Stand) -> None:
    """Last: a span for each call of this module, and neither spans nor the log know a secret."""
    if len(stand.asked) < 10:
        pytest.skip("only as the end of the whole module")
    spans = stand.tokentrace.wait(len(stand.asked))
    assert len(spans) == len(stand.asked)
    text = json.dumps(spans)
    log = stand.service.log
    assert [
        secret for secret in (KEY, CALLER, PROMPT, BODY, "127.0.0.1", "Traceback") if secret in text
    ] == []
    assert [
        secret
        for secret in (KEY, CALLER, PROMPT, BODY, f":{stand.vendor.port}", "Traceback")
        if secret in log
    ] == []
