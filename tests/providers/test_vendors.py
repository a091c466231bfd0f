"""Failing vendors of every dialect behind a real gunicorn: an answer is complete or an error."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import ssl
import subprocess
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import faulty
import pytest
from support import Answer, Service, TokenTrace

from infermux.chaos.vendor import BEFORE, FAULTS, FaultyVendor

DEADLINE = 1.0
KEY = "sk-canary-vendors-41d7"
DIALECTS = ("openai", "anthropic", "gemini")
# KiB that a worker may need for three answers at once: their cap, and what JSON makes of it
MOST = 400_000
PATHS = {
    "openai": "/v1/chat/completions",
    "anthropic": "/v1/messages",
    "gemini": "/infer",
}  # the door that asks a vendor of each dialect
TERMINATORS = {
    "openai": "data: [DONE]",
    "anthropic": "event: message_stop",
    "gemini": "event: infer.response",
}


def toml(addresses: dict[str, tuple[str, str]], trace: str = "", **reliability: str) -> str:
    """A configuration with a provider for each (dialect, address)."""
    rules = {
        "attempts": "2",
        "deadline": str(DEADLINE),
        "circuit_breaker": "{ failures = 1000, window = 0.001 }",
    } | reliability
    lines = [
        "[server]\nworkers = 1\nthreads = 16",
        "[reliability]",
        *(f"{name} = {value}" for name, value in rules.items()),
    ]
    if trace:
        lines.append(f'[trace]\ntokentrace = "{trace}"')
    for name, (dialect, url) in addresses.items():
        lines.append(
            f'[providers.{name}]\ntype = "{dialect}"\nbase_url = "{url}"\napi_key = "env:CANARY"'
        )
        lines.append("timeout = { idle = 0.5, total = 1.5 }")
    return "\n".join(lines)


@contextlib.contextmanager
def serving(folder: Path, text: str, **env: str) -> Iterator[Service]:
    (folder / "infermux.toml").write_text(text, encoding="utf-8")
    with Service(
        env={"INFERMUX_CONFIG": str(folder / "infermux.toml"), "CANARY": KEY, **env}
    ) as service:
        yield service


def ask(service: Service, dialect: str, model: str, *, stream: bool = False) -> Answer:
    body: dict[str, Any] = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    if dialect == "anthropic":
        body["max_tokens"] = 50
    headers = {"Accept": "text/event-stream"} if stream and dialect == "gemini" else {}
    return service.ask(
        PATHS[dialect], body | ({"stream": True} if stream and not headers else {}), headers=headers
    )


def is_clean(text: str) -> None:
    words = (
        KEY,
        "127.0.0.1",
        "localhost",
        "Traceback",
        "HTTPConnectionPool",
        "urllib3",
        "<html",
        "on purpose" * 50,
    )
    assert [word for word in words if word in text] == []


def is_error(found: Answer) -> None:
    assert found.status in (400, 404, 413, 429, 502, 503, 504, 529), found
    assert found.headers["Content-Type"] == "application/json" and len(found.data) < 4096
    assert found.json["error"]["message"]
    assert found.status not in (429, 503) or int(found.headers["Retry-After"]) >= 1
    assert "x-should-retry" not in found.headers  # the client has time of its own
    is_clean(found.data.decode() + str(found.headers))


def content(dialect: str, body: Any) -> str:
    """Return what the model said, as each door says it."""
    if dialect == "openai":
        return str(body["choices"][0]["message"]["content"])
    return str(body["content"][0]["text"] if dialect == "anthropic" else body["content"])


def spoken(dialect: str, text: str) -> str:
    """Return what the model said in a stream."""
    said = ""
    for line in re.findall(r"^data: (\{.*)$", text, re.M):
        event = json.loads(line)
        if dialect == "openai":
            said += "".join(
                choice["delta"].get("content") or "" for choice in event.get("choices", ())
            )
        elif dialect == "anthropic":
            said += event.get("delta", {}).get("text", "")
        elif isinstance(event.get("delta"), dict):
            said += event["delta"].get("content", "")
    return said


# -- every fault there is --------------------------------------------------------------------------


class Stand(NamedTuple):
    service: Service
    vendors: dict[str, FaultyVendor]
    tokentrace: TokenTrace
    asked: list[str]


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with contextlib.ExitStack() as stack:
        vendors = {dialect: stack.enter_context(FaultyVendor()) for dialect in DIALECTS}
        tokentrace = stack.enter_context(TokenTrace())
        addresses = {
            f"x{dialect}": (dialect, vendor.url(dialect)) for dialect, vendor in vendors.items()
        }
        service = stack.enter_context(
            serving(tmp_path_factory.mktemp("vendors"), toml(addresses, tokentrace.url))
        )
        yield Stand(service, vendors, tokentrace, [])


def peak(service: Service) -> int:
    """Return the most KiB that the worker ever had."""
    [worker] = service.workers
    found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{worker}/status").read_text())
    assert found
    return int(found[1])


def at_once(each: Callable[[str], None]) -> None:
    """Do *each* dialect; they wait together for what is slow."""
    with ThreadPoolExecutor(len(DIALECTS)) as pool:
        list(pool.map(each, DIALECTS))


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.plain])
def test_an_answer_is_whole_or_an_error(stand: Stand, name: str) -> None:
    before = peak(stand.service)

    def each(dialect: str) -> None:
        vendor = stand.vendors[dialect]
        vendor.fault = name
        stand.asked.append(name)
        is_error(ask(stand.service, dialect, f"x{dialect}/{name}"))
        vendor.fault = None
        stand.asked.append("")
        assert (
            content(dialect, ask(stand.service, dialect, f"x{dialect}/after-{name}").json)
            == vendor.text
        )

    at_once(each)
    assert peak(stand.service) - before < MOST


CUTS = [(name, when) for name, fault in FAULTS.items() for when in fault.stream]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("name", "when"), CUTS, ids=[f"{name}-{when}" for name, when in CUTS])
def test_a_stream_is_whole_or_ends_in_an_error(stand: Stand, name: str, when: str) -> None:
    """Before the first token it is an ordinary answer with its status; after it the last event says
    what happened.
    """
    before = peak(stand.service)

    def each(dialect: str) -> None:
        vendor = stand.vendors[dialect]
        vendor.when, vendor.fault = when, name
        stand.asked.append(name)
        found = ask(stand.service, dialect, f"x{dialect}/{name}-{when}", stream=True)
        vendor.fault, vendor.when = None, BEFORE
        if found.status == 200:
            ends_well(found, dialect, vendor.text, whole=when == BEFORE and name != "slow_body")
        else:
            assert when == BEFORE
            is_error(found)

    at_once(each)
    assert peak(stand.service) - before < MOST


def ends_well(found: Answer, dialect: str, wanted: str, *, whole: bool) -> None:
    """A stream's text is the vendor's, and its terminator says that it is all of it; else the last
    event is an error.
    """
    assert found.headers["Content-Type"].startswith("text/event-stream")
    text = found.data.decode()
    said, ended = spoken(dialect, text), TERMINATORS[dialect] in text
    assert ended == (said == wanted) and wanted.startswith(said), (dialect, text)
    assert ended != ("error" in text.rstrip().rpartition("\n\n")[2])
    assert ended or not whole
    is_clean(text)


def test_after_all_of_them_every_call_has_its_span_and_nothing_leaked(stand: Stand) -> None:
    """Last."""
    spans = json.dumps(stand.tokentrace.wait(len(stand.asked)))
    assert len(stand.tokentrace.spans) == len(stand.asked)
    assert [word for word in (KEY, "127.0.0.1", "Traceback", "hello") if word in spans] == []
    assert [word for word in (KEY, "Traceback", '"hello"') if word in stand.service.log] == []


# -- odd, and right all the same -------------------------------------------------------------------


def chat(**more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "fine"} | more.pop("message", {})
    choice = {"index": 0, "message": message, "finish_reason": "stop"} | more.pop("choice", {})
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": usage,
    } | more


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
ODD: dict[
    str, tuple[bytes, dict[str, str], str | None]
] = {  # the body, its headers, and the content if it must be a 200
    "as text": (json.dumps(chat()).encode(), {"Content-Type": "text/plain"}, "fine"),
    "without a type": (json.dumps(chat()).encode(), {"Content-Type": ""}, "fine"),
    "with a byte order mark": (b"\xef\xbb\xbf" + json.dumps(chat()).encode(), {}, None),
    "in Latin-1": (
        json.dumps(chat(message={"content": "gr\xfc\xdfe"}), ensure_ascii=False).encode("latin-1"),
        {},
        None,
    ),
    "zipped": (
        zlib.compress(json.dumps(chat()).encode(), wbits=31),
        {"Content-Encoding": "gzip"},
        "fine",
    ),
    "no usage": (json.dumps(chat(usage=None)).encode(), {}, "fine"),
    "usage as text": (
        json.dumps(chat(usage={"prompt_tokens": "3", "completion_tokens": "2"})).encode(),
        {},
        None,
    ),
    "usage not a number": (
        json.dumps(chat()).replace('"prompt_tokens": 3', '"prompt_tokens": NaN').encode(),
        {},
        None,
    ),
    "usage without end": (
        json.dumps(chat()).replace('"completion_tokens": 2', '"completion_tokens": 1e999').encode(),
        {},
        None,
    ),
    "negative usage": (
        json.dumps(chat(usage={"prompt_tokens": -3, "completion_tokens": -2})).encode(),
        {},
        None,
    ),
    "tool calls alone": (
        json.dumps(
            chat(
                message={"content": None, "tool_calls": [CALL]},
                choice={"finish_reason": "tool_calls"},
            )
        ).encode(),
        {},
        "",
    ),
    "no words": (json.dumps(chat(message={"content": ""})).encode(), {}, ""),
    "no reason": (json.dumps(chat(choice={"finish_reason": None})).encode(), {}, "fine"),
    "fields of tomorrow": (
        json.dumps(chat(tomorrow={"a": [1]}, message={"content": "fine", "new": 1})).encode(),
        {},
        "fine",
    ),
    "a list": (b"[]", {}, None),
    "null": (b"null", {}, None),
    "words": (b'"fine"', {}, None),
    "other types": (
        json.dumps({"choices": {"message": "fine"}, "usage": [], "model": 7, "id": {}}).encode(),
        {},
        None,
    ),
    "a choice of words": (json.dumps(chat(choices=["fine"])).encode(), {}, None),
    "twice the same key": (
        json.dumps(chat()).replace('"id": "c"', '"id": "c", "id": "d"').encode(),
        {},
        None,
    ),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    def plays(peer: faulty.Peer) -> None:
        while request := peer.request():
            body, headers, _ = ODD[json.loads(request.body)["model"]]
            peer.send(faulty.answer(200, body, headers))

    folder = tmp_path_factory.mktemp("odd")
    with (
        contextlib.closing(faulty.Vendor(plays)) as vendor,
        serving(folder, toml({"x": ("openai", vendor.url)})) as service,
    ):
        yield service


@pytest.mark.sampled(1)
@pytest.mark.sampled(1)
@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_is_understood_or_refused(odd: Service, name: str) -> None:
    """Whatever comes out is strict JSON with whole numbers."""
    for path in ("/infer", "/v1/messages"):
        found = odd.ask(
            path,
            {
                "model": f"x/{name}",
                "max_tokens": 5,
                "messages": [{"role": "user", "content": "hello"}],
            },
        )
        wanted = ODD[name][2]
        if wanted is None and found.status != 200:
            is_error(found)
            continue
        body = json.loads(found.data, parse_constant=pytest.fail)
        assert found.status == 200, body
        if path == "/infer":
            assert isinstance(body["content"], str) and isinstance(body["finish_reason"], str)
            assert wanted in (None, body["content"])
            assert (
                type(body["tokens_in"]) is type(body["tokens_out"]) is int
                and min(body["tokens_in"], body["tokens_out"]) >= 0
            )


# -- no way to the vendor --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (command := shutil.which("openssl")):
        pytest.skip("no openssl command")
    folder = tmp_path_factory.mktemp("tls")
    made = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [command, *made.split(), "-keyout", folder / "key", "-out", folder / "cert"],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.slow
def test_a_vendor_that_cannot_be_reached_or_trusted_is_a_502(
    tmp_path: Path, certificate: Path
) -> None:
    """No name, no TLS, a certificate of nobody: one JSON error, no host in it; neither a proxy nor
    a netrc of the environment is asked.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    good = faulty.answers(faulty.answer(200, json.dumps(chat()).encode()))
    with contextlib.ExitStack() as stack:
        plain, proxy = (
            stack.enter_context(contextlib.closing(faulty.Vendor(good))) for _ in range(2)
        )
        signed = stack.enter_context(contextlib.closing(faulty.Vendor(good, tls=context)))
        addresses = {
            "nowhere": "http://no-such-host.invalid/v1",
            "plaintext": f"https://127.0.0.1:{plain.port}/v1",
            "unsigned": signed.url,
        }
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login stranger password stranger\n")
        env = dict.fromkeys(
            ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"),
            proxy.url.removesuffix("/v1"),
        )
        text = toml(
            {name: ("openai", url) for name, url in addresses.items()}
            | {"well": ("openai", plain.url)}
        )
        service = stack.enter_context(serving(tmp_path, text, NETRC=str(tmp_path / "netrc"), **env))
        for name in addresses:
            found = ask(service, "openai", f"{name}/m")
            assert found.status in (502, 503, 504)
            is_error(found)
            assert "invalid" not in found.data.decode().replace("invalid_request", "")
        assert ask(service, "openai", "well/m").status == 200
        assert [request.headers["authorization"] for request in plain.requests] == [f"Bearer {KEY}"]
        assert (signed.requests, proxy.connections) == ([], 0)


@pytest.mark.slow
def test_a_connection_that_died_in_the_pool_costs_no_answer(tmp_path: Path) -> None:
    """The vendor reads the second request of a connection and hangs up: it is sent again, once, on
    a new one.
    """

    def plays(peer: faulty.Peer) -> None:
        if peer.request():
            peer.send(faulty.answer(200, json.dumps(chat()).encode()))
            peer.request()

    vendor = faulty.Vendor(plays)
    with (
        contextlib.closing(vendor),
        serving(tmp_path, toml({"x": ("openai", vendor.url)}, attempts="1")) as service,
    ):
        assert [ask(service, "openai", "x/m").status for _ in range(6)] == [200] * 6


# -- a vendor that goes on failing -----------------------------------------------------------------


@pytest.mark.slow
def test_forty_calls_to_a_failing_vendor_cost_it_about_fifty_requests(tmp_path: Path) -> None:
    with FaultyVendor("500") as vendor:
        text = toml({"x": ("openai", vendor.url())}, attempts="3", deadline="20")
        with serving(tmp_path, text) as service, ThreadPoolExecutor(8) as pool:
            assert {
                found.status
                for found in pool.map(lambda _: ask(service, "openai", "x/m"), range(40))
            } == {502}
        assert 40 <= len(vendor.requests) <= 52


@pytest.mark.slow
def test_a_lone_target_is_asked_although_its_circuit_is_open(tmp_path: Path) -> None:
    """When the vendor is well again, the very next call is answered, and the circuit closes."""
    with FaultyVendor("503") as vendor:
        text = toml(
            {"x": ("openai", vendor.url())},
            attempts="1",
            circuit_breaker="{ failures = 5, window = 60, open = 1 }",
        )
        with serving(tmp_path, text) as service:
            assert [ask(service, "openai", "x/m").status for _ in range(5)] in (
                [502] * 5,
                [503] * 5,
            )
            found = re.findall(
                rb'circuit_state\{provider="x".*\} (\d)', service.ask("/metrics").data
            )
            assert found == [b"2"]
            vendor.fault = None  # a lone target is asked although its circuit is open
            assert [ask(service, "openai", "x/m").status for _ in range(5)] == [200] * 5
