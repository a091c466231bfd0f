"""Tests of the Reporter: calls do not wait for spans, and undelivered spans are counted."""

import contextlib
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from dataclasses import replace

import certifi
import pytest
from support import Service, TokenTrace, eventually, nobody, run

from infermux import (
    EchoProvider,
    InferMuxError,
    InferRequest,
    Registry,
    Reporter,
    Router,
    TraceSpan,
)
from infermux.errors import ProviderUnavailable

HELLO = InferRequest("echo-v1", [{"role": "user", "content": "hello"}])


def span(number: int = 1) -> TraceSpan:
    start = 1_800_000_000_000_000_000
    return TraceSpan(
        f"{number:032x}",
        f"{number:032x}",
        "infermux.infer",
        start,
        start + 1,
        attrs={
            "provider": "echo",
            "model": "echo-v1",
            "tokens_in": 1,
            "tokens_out": 2,
            "cost_usd": 0.00003,
            "latency_ms": 1,
            "finish_reason": "stop",
        },
    )


def report(reporter: Reporter, count: int) -> None:
    for number in range(1, count + 1):
        reporter.report(span(number))


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "span" in thread.name]


# -- delivery --------------------------------------------------------------------------------------


def test_each_span_arrives_once_and_valid(tokentrace):
    reporter = Reporter("infermux", tokentrace.url)
    report(reporter, 200)
    assert reporter.flush(20)
    spans = tokentrace.checked()
    assert {entry["span_id"] for entry in spans} == {f"{number:032x}" for number in range(1, 201)}
    assert {entry["source"] for entry in spans} == {"infermux"}
    assert reporter.dropped == 0


def test_the_source_and_an_address_with_a_slash_are_used(tokentrace):
    reporter = Reporter("matchspec", tokentrace.url + "/")
    report(reporter, 1)
    assert reporter.flush(20)
    assert [entry["source"] for entry in tokentrace.checked()] == ["matchspec"]


def test_an_empty_address_is_a_no_op():
    before = own_threads()
    reporter = Reporter("infermux", "")
    report(reporter, 5000)
    assert reporter.flush(0)
    assert reporter.dropped == 0
    assert own_threads() == before


def test_an_address_in_the_place_of_the_source_is_an_error():
    with pytest.raises(TypeError, match=r"Reporter\(url="):
        Reporter("http://127.0.0.1:8700")


def test_threads_start_with_the_first_span_and_are_two(tokentrace):
    before = len(own_threads())
    reporter = Reporter("infermux", tokentrace.url)
    assert len(own_threads()) == before
    report(reporter, 1)
    assert len(own_threads()) == before + 2
    report(reporter, 50)
    assert len(own_threads()) == before + 2
    assert reporter.flush(20)


def test_many_threads_share_one_pool(tokentrace):
    """The first spans of a process come from several threads at once: none starts a pool of its own
    and is forgotten.
    """
    reporter, barrier, before = (
        Reporter("infermux", tokentrace.url, threads=3),
        threading.Barrier(16),
        len(own_threads()),
    )

    def work(number: int) -> None:
        barrier.wait(10)
        reporter.report(span(number))

    workers = [threading.Thread(target=work, args=[number]) for number in range(1, 17)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(own_threads()) == before + 3
    assert reporter.flush(20)
    assert len(tokentrace.checked()) == 16


def test_a_router_reports_each_call_once_ok_or_error(tokentrace):
    router = Router(Registry([EchoProvider()]), Reporter("infermux", tokentrace.url))
    router.infer(HELLO)
    assert "".join(chunk.text for chunk in router.stream(HELLO)) == "echo: hello"
    with pytest.raises(InferMuxError, match="no provider for model"):
        router.infer(InferRequest("nobody", HELLO.messages))
    assert router.reporter.flush(20)
    spans = tokentrace.checked()
    assert sorted(entry["status"] for entry in spans) == ["error", "ok", "ok"]
    failed = next(entry for entry in spans if entry["status"] == "error")
    assert "nobody" in failed["attrs"]["error"] and failed["attrs"]["model"] == "nobody"


class Down(EchoProvider):
    def infer(self, request, deadline):
        raise ProviderUnavailable("no connection to the provider")


def test_a_call_that_failed_over_counts_once(tokentrace):
    router = Router(
        Registry([Down("down", ["echo-v1"]), EchoProvider()]), Reporter("infermux", tokentrace.url)
    )
    alone = Router(Registry([EchoProvider()])).infer(HELLO)
    router.infer(HELLO)
    assert router.reporter.flush(20)
    [span] = tokentrace.checked()
    tried = [(each["provider"], each["status"]) for each in span["attrs"]["attempts"]]
    assert tried == [("down", "upstream_error"), ("echo", "ok")]
    assert tokentrace.stats() == {
        "spans": 1,
        "errors": 0,
        "tokens_in": alone.tokens_in,
        "tokens_out": alone.tokens_out,
        "cost_usd": alone.cost_usd,
    }


@pytest.mark.slow
def test_tokentrace_counts_what_callers_were_told(tokentrace, vendor, tmp_path):
    """Its own figures, which are sums over all spans, are those of the responses' headers."""
    with nobody() as refused:
        (tmp_path / "infermux.toml").write_text(
            f'[providers.down]\ntype = "openai"\nbase_url = "{refused}/v1"\nmodels = ["m"]\n'
            f'[providers.up]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["m"]\n'
            'prices = { "m" = { input = "1", output = "2" } }\n'
            '[models]\nboth = ["down/m", "up/m"]\nlost = ["down/m"]\n'
            f'[server]\nworkers = 1\nthreads = 4\n[trace]\ntokentrace = "{tokentrace.url}"\n'
            "[reliability]\nattempts = 3\ndeadline = 2\n"
        )
        env = {"INFERMUX_CONFIG": str(tmp_path / "infermux.toml")}
        asked = {"messages": [{"role": "user", "content": "hello"}]}
        with Service(env=env) as service:
            rescued = [service.ask("/infer", asked | {"model": "both"}) for _ in range(3)]
            lost = service.ask("/infer", asked | {"model": "lost"})
            nowhere = service.ask("/infer", asked | {"model": "nowhere"})
            spans = tokentrace.wait(5)
    assert {answer.status for answer in rescued} == {200} and lost.status >= 500
    assert nowhere.status == 404
    told = {
        name: sum(float(answer.headers[f"X-Infermux-{header}"]) for answer in rescued)
        for name, header in (
            ("tokens_in", "Prompt-Tokens"),
            ("tokens_out", "Completion-Tokens"),
            ("cost_usd", "Cost"),
        )
    }
    assert tokentrace.stats() == pytest.approx({"spans": 5, "errors": 2, **told})
    tried = [len(span["attrs"].get("attempts", ())) for span in spans if span["status"] == "ok"]
    assert max(tried) == 2  # once the circuit is open the first is not tried


def test_a_span_holds_no_text_of_the_conversation(tokentrace):
    router = Router(Registry([EchoProvider()]), Reporter("infermux", tokentrace.url))
    router.infer(InferRequest("echo-v1", [{"role": "user", "content": "a-secret-thing"}]))
    assert router.reporter.flush(20)
    assert "a-secret-thing" not in repr(tokentrace.checked())


# -- trouble ---------------------------------------------------------------------------------------

TROUBLE = {
    "slow": {"seconds": 1.5},
    "status": {"status": 500},
    "hang": {},
    "reset": {},
    "garbage": {},
    "redirect": {},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.slow] * (mode == "slow")) for mode in TROUBLE]
)
def test_what_is_not_taken_is_counted_once_and_not_sent_again(mode):
    with (
        TokenTrace() as other,
        TokenTrace(mode, target=f"{other.url}/mist", **TROUBLE[mode]) as receiver,
    ):
        reporter = Reporter("infermux", receiver.url, threads=4)
        report(reporter, 4)
        assert reporter.flush(20)
        assert reporter.dropped == 4
        assert len(receiver.checked()) == 4
        assert other.paths == []  # a redirect is not followed
        receiver.mode = "ok"  # the pool has survived
        reporter.report(span(99))
        assert reporter.flush(20)
        assert reporter.dropped == 4
        assert len(receiver.checked()) == 5


@pytest.mark.parametrize("status", [200, 204, 301, 400, 404, 429, 503])
def test_only_a_2xx_takes_a_span(status):
    with TokenTrace("status", status=status) as receiver:
        reporter = Reporter("infermux", receiver.url)
        report(reporter, 1)
        assert reporter.flush(20)
        assert reporter.dropped == (0 if status < 300 else 1)


def test_nobody_there_is_counted_and_never_raised():
    with nobody() as url:
        reporter = Reporter("infermux", url)
        report(reporter, 20)
        assert reporter.flush(20)
        assert reporter.dropped == 20


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "localhost:8700",
        "http://[::1",
        "http://127.0.0.1:99999",
        "ftp://127.0.0.1/",
        "\0",
    ],
)
def test_an_address_that_is_none_is_counted_and_never_raised(url):
    reporter = Reporter("infermux", url)
    report(reporter, 3)
    assert reporter.flush(20)
    assert reporter.dropped == 3


def test_a_span_that_cannot_be_written_is_counted_and_the_next_one_arrives(tokentrace):
    reporter = Reporter("infermux", tokentrace.url)
    for broken in (float("nan"), object()):
        reporter.report(
            TraceSpan("1" * 32, "2" * 32, "infermux.infer", 1, 2, attrs={"model": broken})
        )
    report(reporter, 1)
    assert reporter.flush(20)
    assert reporter.dropped == 2
    assert len(tokentrace.checked()) == 1


@pytest.mark.parametrize("size", [1, 10])
def test_a_full_queue_drops_at_once_and_counts(size):
    with TokenTrace("hang") as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1, size=size)
        reporter.report(span(1))
        eventually(lambda: receiver.paths, "the first span at TokenTrace")
        started = time.monotonic()
        report(reporter, 500)
        assert time.monotonic() - started < 0.9  # less than one answer of TokenTrace would take
        assert reporter.dropped == 500 - size


def test_the_queue_holds_a_thousand():
    with TokenTrace("hang") as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        reporter.report(span(1))
        eventually(lambda: receiver.paths, "the first span at TokenTrace")
        report(reporter, 1010)
        assert reporter.dropped in (9, 10)  # ten, or nine where the first has timed out already


def test_flush_ends_within_its_time_and_says_that_spans_are_left():
    with TokenTrace("hang") as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        report(reporter, 30)
        started = time.monotonic()
        assert not reporter.flush(0.3)
        assert 0.25 < time.monotonic() - started < 5


# -- the connection --------------------------------------------------------------------------------


class Receiver:
    """Takes spans over raw sockets, and answers with bytes as they are; counts connections and
    messages.
    """

    def __init__(self, *pieces, hangs_up=False, tls=None):
        self.pieces, self.hangs_up, self.tls = pieces, hangs_up, tls
        self.connections = self.messages = self.packets = self.ended = 0

    def __enter__(self):
        self._sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"{'https' if self.tls else 'http'}://127.0.0.1:{self._sock.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_):
        for sock in (self._sock, self._kept):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                self._kept, _ = self._sock.accept()
                self.connections += 1
                with self._kept, contextlib.suppress(OSError):
                    if self.tls:
                        self._kept = self.tls.wrap_socket(self._kept, server_side=True)
                    with self._kept:
                        while self._answered(self._kept):
                            pass
                self.ended += 1

    def _answered(self, sock):
        data = b""
        while not data.endswith(b"}"):
            piece = sock.recv(65536)
            if not piece:
                return False
            self.packets += 1
            data += piece
        self.messages += 1
        for piece in self.pieces:
            sock.sendall(piece)
            time.sleep(0.02)  # so that it arrives as a piece of its own
        return not self.hangs_up


TAKEN = b"HTTP/1.1 202 Accepted\r\n"
KEPT = [
    (TAKEN + b"Content-Length: 0\r\n\r\n",),
    (TAKEN + b"CONTENT-LENGTH:2 \r\nDate: today\r\n\r\n{}",),
    (TAKEN + b"Content-Len", b"gth: 2\r\n\r", b"\n{", b"}"),
    (b"HTTP/1.1 204\r\n\r\n",),
    (TAKEN + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",),
    (TAKEN + b"Content-Length: 2\r\n\r\n{}{}",),  # the rest is discarded
]
CLOSED = [
    (TAKEN + b"Content-Length: 0\r\nConnection: close\r\n\r\n",),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}",),
    (TAKEN + b"Content-Length: 999999\r\n\r\n" + b"x" * 100_000,),
]


@pytest.mark.parametrize(
    ("pieces", "connections"),
    [*((pieces, 1) for pieces in KEPT), *((pieces, 3) for pieces in CLOSED)],
)
def test_a_connection_is_kept_where_the_answer_has_ended_for_certain(pieces, connections):
    with Receiver(*pieces) as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        report(reporter, 3)
        assert reporter.flush(20)
        assert (receiver.messages, receiver.connections, reporter.dropped) == (3, connections, 0)
        assert receiver.packets == 3  # each head comes with its body


def test_a_kept_connection_that_was_closed_costs_no_span():
    with Receiver(*KEPT[0], hangs_up=True) as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        for number in range(1, 4):
            reporter.report(span(number))
            assert reporter.flush(20)
            eventually(lambda: receiver.ended == number, "the end of the connection")  # noqa: B023
        assert (receiver.messages, receiver.connections, reporter.dropped) == (3, 3, 0)


def test_after_an_answer_that_is_no_http_a_new_connection_is_made():
    with Receiver(b"\0\xff\r\n\r\n") as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        report(reporter, 2)
        assert reporter.flush(20)
        assert (receiver.messages, receiver.connections, reporter.dropped) == (2, 2, 2)
        receiver.pieces = KEPT[0]
        report(reporter, 2)
        assert reporter.flush(20)
        assert (receiver.messages, receiver.connections, reporter.dropped) == (4, 3, 2)


def test_an_answer_that_never_ends_is_left():
    with TokenTrace("status", status=202) as receiver:
        receiver.answer = lambda handler, body: (
            handler.wfile.write(b"HTTP/1.1 202 \r\nX: "),
            receiver.released.wait(),
        )
        reporter = Reporter("infermux", receiver.url)
        report(reporter, 1)
        assert reporter.flush(20)
        assert reporter.dropped == 1


class Dripping(Receiver):
    """Sends its answer byte by byte, each sooner than the sender's patience ends."""

    def _answered(self, sock):
        while not sock.recv(65536).endswith(b"}"):
            pass
        self.messages += 1
        sock.sendall(self.pieces[0])
        while True:
            sock.sendall(b"x")
            time.sleep(0.1)


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("begun", "lost"),
    [(TAKEN + b"X: ", 1), (TAKEN + b"Content-Length: 99999\r\n\r\n", 0)],
)
def test_an_answer_that_drips_is_left_after_a_total_time(begun, lost):
    with Dripping(begun) as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        report(reporter, 1)
        assert reporter.flush(20)
        assert (receiver.messages, reporter.dropped) == (1, lost)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate for 127.0.0.1 that nobody has signed, in one file."""
    if not (command := shutil.which("openssl")):
        pytest.skip("no openssl command")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    made = subprocess.run(
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
        ]
        + ["/CN=trace", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "-", "-out", "-"],
        check=True,
        capture_output=True,
    )
    file.write_bytes(made.stdout)
    return file


@pytest.mark.parametrize("trusted", [True, False])
def test_a_tokentrace_behind_tls_must_be_trusted(certificate, monkeypatch, trusted):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    if trusted:
        monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    with Receiver(*KEPT[1], tls=context) as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        report(reporter, 3)
        assert reporter.flush(20)
        assert (receiver.messages, reporter.dropped) == ((3, 0) if trusted else (0, 3))
        assert not trusted or receiver.connections == 1


class Sipping(Receiver):
    """Reads slowly, but before each wait of the sender ends."""

    taken = 0

    def _answered(self, sock):
        while piece := sock.recv(65536):
            self.taken += len(piece)
            time.sleep(0.05)
        return False


@pytest.mark.sampled(1)
@pytest.mark.parametrize("tls", [False, True])
def test_a_span_that_is_read_slowly_is_left_after_a_total_time(certificate, monkeypatch, tls):
    size, context = 30_000_000, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    monkeypatch.setattr(certifi, "where", lambda: str(certificate))
    with Sipping(tls=context if tls else None) as receiver:
        reporter = Reporter("infermux", receiver.url, threads=1)
        reporter.report(replace(span(), attrs={"x": "x" * size}))
        assert reporter.flush(20)
        assert (reporter.dropped, receiver.taken < size / 2) == (1, True)


# -- the environment -------------------------------------------------------------------------------

SEND = """
import sys
from infermux import EchoProvider, InferRequest, Registry, Reporter, Router
router = Router(Registry([EchoProvider()]), Reporter("infermux", sys.argv[1]))
for _ in range(int(sys.argv[2])):
    router.infer(InferRequest("echo-v1", [{"role": "user", "content": "hello"}]))
print("done")
"""


def python(code: str, *args: object, **env: str):
    return run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code, *map(str, args)], env=env
    )


@pytest.mark.slow
def test_spans_are_flushed_at_exit(tokentrace):
    answer = python(SEND, tokentrace.url, 50)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, "done\n", "")
    assert len(tokentrace.checked()) == 50


@pytest.mark.slow
def test_exit_waits_three_seconds_at_most_for_a_tokentrace_that_hangs():
    with TokenTrace("hang") as receiver:
        started = time.monotonic()
        answer = python(SEND, receiver.url, 40)
        assert (answer.returncode, answer.stdout) == (0, "done\n")
        assert (
            time.monotonic() - started < 10
        )  # forty spans over two threads of a second each would be twenty


@pytest.mark.slow
def test_a_proxy_and_a_netrc_of_the_environment_are_ignored(tokentrace, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password secret\n")
    with TokenTrace() as proxy:
        env = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"), proxy.url)
        answer = python(SEND, tokentrace.url, 3, NETRC=str(netrc), NO_PROXY="", no_proxy="", **env)
        assert answer.returncode == 0, answer.stderr
        assert proxy.paths == []
    assert len(tokentrace.checked()) == 3
    assert not any(
        "authorization" in headers or "cookie" in headers for headers in tokentrace.headers
    )


# -- fork ------------------------------------------------------------------------------------------

FORK = """
import os, sys
from infermux import Reporter, TraceSpan
reporter = Reporter("infermux", sys.argv[1])

def send(number):
    reporter.report(TraceSpan(f"{number:032x}", f"{number:032x}", "infermux.infer", 1_800_000_000_000_000_000,
                              1_800_000_000_000_000_001, attrs={"provider": "p", "model": "m", "tokens_in": 0, "tokens_out": 0,
                                                                "latency_ms": 0, "finish_reason": "stop"}))

send(1)
assert reporter.flush(10)
children = []
for number in range(2, 6):
    child = os.fork()
    if not child:
        send(number)
        sys.exit(0 if reporter.flush(10) and reporter.dropped == 0 else 9)
    children.append(child)
send(6)
assert reporter.flush(10)
assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4
print("done")
"""
QUEUED = FORK.replace("assert reporter.flush(10)\nchildren", "children").replace(
    "send(number)\n        sys.exit(0 if reporter.flush(10) and reporter.dropped == 0 else 9)",
    "sys.exit(0)",
)


@pytest.mark.slow
def test_after_a_fork_every_process_has_threads_of_its_own(tokentrace):
    answer = python(FORK, tokentrace.url)
    assert (answer.returncode, answer.stdout) == (0, "done\n"), answer.stderr
    assert {entry["span_id"] for entry in tokentrace.checked()} == {
        f"{number:032x}" for number in range(1, 7)
    }


@pytest.mark.slow
def test_what_was_queued_before_a_fork_is_sent_by_the_parent_only():
    with TokenTrace("slow", seconds=0.3) as receiver:
        answer = python(QUEUED, receiver.url)
        assert (answer.returncode, answer.stdout) == (0, "done\n"), answer.stderr
        assert {entry["span_id"] for entry in receiver.checked()} == {
            f"{number:032x}" for number in (1, 6)
        }


HELD = """
import os, signal, sys, threading
from infermux import Reporter, TraceSpan
reporters = [Reporter("infermux", sys.argv[1], threads=1) for _ in range(60)]
span = TraceSpan("1" * 32, "2" * 32, "infermux.infer", 1, 2)

def report():
    for reporter in reporters:
        reporter.report(span)

thread = threading.Thread(target=report)
thread.start()
children = []
for _ in range(10):
    child = os.fork()
    if not child:
        signal.alarm(10)                    # one that hangs is ended, and seen
        report()
        os._exit(0)
    children.append(child)
ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
thread.join()
print("done" if not any(ends) else ends)
"""


@pytest.mark.slow
def test_a_fork_while_another_thread_reports_does_not_hang():
    with nobody() as url:
        answer = python(HELD, url)
        assert (answer.returncode, answer.stdout) == (0, "done\n"), answer.stderr
