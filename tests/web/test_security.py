"""Authentication, what is sent to a vendor, and what never leaks, through a real gunicorn."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from faulty import Peer, Vendor, answer, events
from support import PATIENCE, Answer, Service, TokenTrace, eventually

KEYS = {name: f"imx-canary-{name}-3b8e5d71" for name in ("web", "narrow")}
VENDOR_KEY, PROMPT, ADMIN, UPSTREAM = (
    "sk-canary-vendor-9c2a",
    "canary-prompt-6ef1",
    "canary-admin-55aa",
    "canary-upstream-b7d0",
)
STRANGER = "stranger/1.0"
PATHS = {
    "openai": ("/o/v1", "/o/v1/chat/completions"),
    "anthropic": ("/a/v1", "/a/v1/messages"),
    "gemini": ("/g/v1beta", "/g/v1beta/models/"),
    "azure": ("/z/openai?api-version=1", "/z/openai/deployments/"),
}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
OPENAI = {
    "id": "c-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}
ANTHROPIC = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [{"type": "text", "text": "fine"}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 3, "output_tokens": 2},
}
GEMINI = {
    "candidates": [
        {"content": {"role": "model", "parts": [{"text": "fine"}]}, "finishReason": "STOP"}
    ],
    "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 2, "totalTokenCount": 5},
}
WHOLE = {"o": OPENAI, "a": ANTHROPIC, "g": GEMINI, "z": OPENAI}
CUT = {
    "id": "c",
    "object": "chat.completion.chunk",
    "choices": [{"index": 0, "delta": {"content": "begun"}, "finish_reason": None}],
}


def plays(peer: Peer) -> None:
    """Answer in the dialect of the path; fail with words that must not come out where the model's
    name says so.
    """
    while request := peer.request():
        if b"failing" in request.body:
            told = {
                "error": {
                    "message": f"{VENDOR_KEY} {PROMPT} {UPSTREAM} http://127.0.0.1:{peer.vendor.port}/x",
                    "type": "t",
                }
            }
            peer.send(
                answer(
                    500,
                    json.dumps(told).encode(),
                    {"Set-Cookie": f"sid={UPSTREAM}", "X-Upstream": UPSTREAM},
                )
            )
        elif b"breaking" in request.body:
            peer.send(b"".join(events(b"data: " + json.dumps(CUT).encode() + b"\n\n")))
            return
        elif b"resetting" in request.body:
            peer.reset()
            return
        else:
            body = json.dumps(WHOLE.get(request.line.split("/")[1], OPENAI)).encode()
            peer.send(
                answer(
                    200,
                    body,
                    {"Set-Cookie": f"sid={UPSTREAM}", "X-Upstream": UPSTREAM, "Server": UPSTREAM},
                )
            )


def toml(vendor: Vendor, tokentrace: TokenTrace, folder: Path) -> str:
    lines = [
        "[reliability]\nattempts = 2\ndeadline = 5\ncircuit_breaker = { failures = 1000, window = 0.006 }",
        '[server]\nworkers = 1\nthreads = 8\nadmin_key = "env:CANARY_ADMIN"',
        f'[trace]\ntokentrace = "{tokentrace.url}"',
        f'[ledger]\npath = "{folder}/infermux.db"',
    ]
    for name, (base, _) in PATHS.items():
        url = f"http://127.0.0.1:{vendor.port}{base}"
        lines.append(
            f'[providers.x{name}]\ntype = "{name}"\nbase_url = "{url}"\napi_key = "env:CANARY_VENDOR"\nmodels = ["m"]'
        )
    lines.append('[models]\nfast = "xopenai/m"\nauto = "xanthropic/m"')
    for name, key in KEYS.items():
        opens = 'models = ["fast", "auto"]' if name == "narrow" else ""
        lines.append(f'[keys.{name}]\nhash = "{hashlib.sha256(key.encode()).hexdigest()}"\n{opens}')
    return "\n".join(lines)


class Stand(NamedTuple):
    service: Service
    vendor: Vendor
    tokentrace: TokenTrace
    said: list[str]  # every answer of the run
    env: dict[str, str]

    def ask(
        self,
        path: str,
        body: Any = None,
        *,
        key: str = KEYS["web"],
        headers: dict[str, str] | None = None,
        **more: Any,
    ) -> Answer:
        found = self.service.ask(
            path, body, headers={"Authorization": f"Bearer {key}", **(headers or {})}, **more
        )
        self.said.append(f"{found.headers}{found.data.decode()}")
        return found

    def infer(self, model: str, **more: Any) -> Answer:
        return self.ask("/infer", said(model), **more)


def said(model: object, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    vendor, folder = Vendor(plays), tmp_path_factory.mktemp("security")
    with contextlib.closing(vendor), TokenTrace() as tokentrace:
        (folder / "infermux.toml").write_text(toml(vendor, tokentrace, folder), encoding="utf-8")
        env = {
            "INFERMUX_CONFIG": str(folder / "infermux.toml"),
            "CANARY_VENDOR": VENDOR_KEY,
            "CANARY_ADMIN": ADMIN,
        }
        with Keyed(env=env) as service:
            yield Stand(service, vendor, tokentrace, [], env)


class Keyed(Service):
    """A service whose first answer is a refusal."""

    def _answers(self) -> bool:
        try:
            return self.ask("/providers").status == 401
        except OSError:
            return False


# -- who may call ----------------------------------------------------------------------------------

MIST = {
    "version": "1",
    "id": "0" * 31 + "1",
    "source": "t",
    "type": "infer.request",
    "timestamp_ns": 1,
    "payload": said("fast"),
}
CHAT = said("fast", max_tokens=5)
DOORS = {
    "/infer": said("fast"),
    "/mist": MIST,
    "/providers": None,
    "/v1/models": None,
    "/v1/models/fast": None,
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "fast", "prompt": PROMPT},
    "/v1/embeddings": {"model": "fast", "input": PROMPT},
    "/v1/responses": {"model": "fast", "input": PROMPT},
    "/v1/messages": CHAT,
    "/v1/messages/count_tokens": CHAT,
    "/v1beta/models": None,
    "/v1beta/models/fast": None,
    **{
        f"/v1beta/models/fast:{method}": {"contents": [{"parts": [{"text": PROMPT}]}]}
        for method in ("generateContent", "streamGenerateContent?alt=sse", "countTokens")
    },
    "/v1beta/models/fast:embedContent": {"content": {"parts": [{"text": PROMPT}]}},
    "/v1/models/fast:generateContent": {"contents": [{"parts": [{"text": PROMPT}]}]},
}
GOOD = KEYS["web"]
BYPASSES: dict[str, dict[str, str]] = {
    "nothing": {},
    "an empty bearer": {"Authorization": "Bearer"},
    "a blank bearer": {"Authorization": "Bearer  "},
    "no scheme": {"Authorization": GOOD},
    "basic": {"Authorization": f"Basic {GOOD}"},
    "half a key": {"Authorization": f"Bearer {GOOD[:-1]}"},
    "a longer key": {"Authorization": f"Bearer {GOOD}x"},
    "another case": {"Authorization": f"Bearer {GOOD.upper()}"},
    "two keys": {"Authorization": f"Bearer {GOOD} {GOOD}"},
    "a list": {"Authorization": f"Bearer wrong, Bearer {GOOD}"},
    "quoted": {"Authorization": f'Bearer "{GOOD}"'},
    "the hash": {"Authorization": f"Bearer {hashlib.sha256(GOOD.encode()).hexdigest()}"},
    "the name": {"Authorization": "Bearer web"},
    "SQL": {"Authorization": "Bearer ' OR '1'='1"},
    "a template": {"Authorization": "Bearer {{7*7}}%00%0d%0a"},
    "Latin-1": {"Authorization": "Bearer \xe9\xff"},
    "the admin's": {"Authorization": f"Bearer {ADMIN}"},
    "the vendor's": {"Authorization": f"Bearer {VENDOR_KEY}"},
    "a bad bearer before a good x-api-key": {"Authorization": "Bearer wrong", "x-api-key": GOOD},
    "half an x-api-key": {"x-api-key": GOOD[:-1]},
    "half an x-goog-api-key": {"x-goog-api-key": GOOD[:-1]},
    "a bad x-api-key before a good x-goog-api-key": {"x-api-key": "no", "x-goog-api-key": GOOD},
    "the hash as x-api-key": {"x-api-key": hashlib.sha256(GOOD.encode()).hexdigest()},
    "another header": {
        "api-key": GOOD,
        "X-Auth-Token": GOOD,
        "Proxy-Authorization": f"Bearer {GOOD}",
    },
    "a cookie": {"Cookie": f"Authorization=Bearer {GOOD}; x-api-key={GOOD}"},
    "who a proxy says": {
        "X-Forwarded-User": "web",
        "X-Remote-User": "web",
        "X-Forwarded-For": "127.0.0.1",
        "X-Real-IP": "127.0.0.1",
    },
    "another address": {
        "X-Original-URL": "/health",
        "X-Rewrite-URL": "/health",
        "X-HTTP-Method-Override": "OPTIONS",
    },
    "another host": {"Host": "127.0.0.1/health?"},
}


@pytest.mark.sampled(1)
@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", DOORS)
def test_nothing_but_a_key_opens_a_door(stand: Stand, path: str) -> None:
    """Each attempt is a 401 in JSON that tells nothing, at this door, and no vendor hears of it."""
    before, body = len(stand.vendor.requests), DOORS[path]
    for name, headers in BYPASSES.items():
        found = stand.service.ask(path, body, headers=headers)
        stand.said.append(f"{found.headers}{found.data.decode()}")
        if name == "another host" and found.status == 400:
            continue
        assert (name, found.status, found.headers["Content-Type"]) == (
            name,
            401,
            "application/json",
        )
        assert (
            "invalid_api_key" in found.data.decode().lower()
            or "authentication_error" in found.data.decode()
        )
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert len(stand.vendor.requests) == before


@pytest.mark.parametrize("path", DOORS)
def test_another_spelling_of_an_address_opens_nothing(stand: Stand, path: str) -> None:
    before = len(stand.vendor.requests)
    for odd in (
        f"/{path}",
        f"{path}/",
        f"/.{path}",
        f"/health/..{path}",
        path.upper(),
        path.replace("/", "/%2e/", 1),
        f"{path};a=b",
    ):
        found = stand.service.ask(odd, DOORS[path])
        stand.said.append(f"{found.headers}{found.data.decode()}")
        assert found.status in (301, 308, 400, 401, 404, 405), odd
    assert len(stand.vendor.requests) == before


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", DOORS)
def test_bearer_and_x_api_key_open_the_same_doors(stand: Stand, path: str) -> None:
    bearer = stand.service.ask(path, DOORS[path], headers={"Authorization": f"Bearer {GOOD}"})
    other = stand.service.ask(path, DOORS[path], headers={"x-api-key": GOOD})
    third = stand.service.ask(path, DOORS[path], headers={"x-goog-api-key": GOOD})
    lower = stand.service.ask(path, DOORS[path], headers={"authorization": f"bearer   {GOOD} "})
    found = (bearer, other, third, lower)
    stand.said.extend(f"{each.headers}{each.data.decode()}" for each in found)
    assert 401 != bearer.status == other.status == third.status == lower.status
    assert bearer.status != 500


@pytest.mark.parametrize(
    "model", ["xopenai/m", "xazure/m", "xgemini", "m", "", "FAST", "fast ", "fast/../m", "narrow"]
)
@pytest.mark.parametrize("path", ["/infer", "/mist", "/v1/chat/completions", "/v1/messages"])
def test_a_key_opens_the_models_that_it_names_and_no_other(
    stand: Stand, path: str, model: str
) -> None:
    before, body = len(stand.vendor.requests), dict(DOORS[path])
    if path == "/mist":
        body["payload"] = said(model)
    else:
        body["model"] = model
    found = stand.ask(path, body, key=KEYS["narrow"])
    assert found.status == 403 or (model == "" and found.status == 400)
    assert len(stand.vendor.requests) == before


@pytest.mark.parametrize("model", ["xopenai/m", "xgemini/m"])
def test_a_key_that_does_not_open_a_model_does_not_count_its_tokens_either(
    stand: Stand, model: str
) -> None:
    assert (
        stand.ask("/v1/messages/count_tokens", CHAT | {"model": model}, key=KEYS["narrow"]).status
        == 403
    )


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/chat/completions", {"models": ["fast", "m"]}),  # as OpenRouter reads it
        ("/v1/chat/completions", {"fallbacks": [{"model": "m"}]}),  # LiteLLM
        ("/v1/messages", {"fallbacks": [{"model": "m"}]}),  # Anthropic
        ("/v1/messages", {"fallbacks": "default"}),  # which Anthropic chooses
        ("/infer", {"params": {"providerOptions": {"gateway": {"models": ["m"]}}}}),  # Vercel
    ],
)
def test_a_vendor_is_told_of_no_other_models_than_a_key_opens(
    stand: Stand, path: str, params: dict[str, Any]
) -> None:
    before, body = len(stand.vendor.requests), DOORS[path] | {"model": "fast"} | params
    found = stand.ask(path, body, key=KEYS["narrow"])
    assert found.status == 403 and (b"'m'" in found.data or b"'default'" in found.data)
    assert len(stand.vendor.requests) == before
    assert stand.ask(path, body, key=KEYS["web"]).status != 403


def test_a_key_opens_the_models_that_it_names(stand: Stand) -> None:
    assert stand.infer("fast", key=KEYS["narrow"]).json["provider"] == "xopenai"
    assert stand.infer("auto", key=KEYS["narrow"]).json["provider"] == "xanthropic"


@pytest.mark.parametrize("model", ["fast", "auto"])
@pytest.mark.parametrize("provider", ["xgemini", "xazure"])
def test_naming_a_provider_does_not_widen_what_a_key_opens(
    stand: Stand, model: str, provider: str
) -> None:
    """A name that a key opens stands for its own targets: PROVIDER beside it must not lead to
    another vendor's.
    """
    before = len(stand.vendor.requests)
    found = stand.ask("/infer", said(model, provider=provider), key=KEYS["narrow"])
    assert found.status in (403, 404), found.data
    assert len(stand.vendor.requests) == before


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/xgemini%2Fm", "/providers"])
def test_the_list_of_models_is_not_needed_to_be_wider_than_the_key(stand: Stand, path: str) -> None:
    """Whatever a list shows, it is the same key that must open it."""
    assert stand.ask(path, key=KEYS["narrow"]).status in (200, 403, 404)


@pytest.mark.parametrize("claim", ["meta", "headers", "user"])
def test_who_is_calling_is_what_the_key_says(stand: Stand, claim: str) -> None:
    """A narrow key that calls itself another stays narrow."""
    names = {
        "caller": "web",
        "user": "web",
        "api_key": GOOD,
        "key": GOOD,
        "project": "web",
        "traceparent": "web",
    }
    body = said(
        "xopenai/m",
        **({"meta": names} if claim == "meta" else {"user": "web"} if claim == "user" else {}),
    )
    headers = {f"X-{name}": value for name, value in names.items()} if claim == "headers" else {}
    assert stand.ask("/infer", body, key=KEYS["narrow"], headers=headers).status == 403


# -- what reaches a vendor -------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["params", "top", "meta", "headers"])
@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/messages"])
def test_a_caller_cannot_send_the_vendors_key_elsewhere(
    stand: Stand, path: str, place: str
) -> None:
    """api_base and its kin are refused or left out: the canary hears nothing, the vendor hears no
    caller's key.
    """
    with contextlib.closing(Vendor(plays)) as canary:
        smuggled = dict.fromkeys(
            ("api_base", "base_url", "api_key", "provider_url", "proxy", "organization"), canary.url
        )
        smuggled_headers = {
            f"X-{name.replace('_', '-')}": value for name, value in smuggled.items()
        } | {"api-base": canary.url}
        more: dict[str, Any] = (
            {} if place == "headers" else smuggled if place == "top" else {place: smuggled}
        )
        before = len(stand.vendor.requests)
        found = stand.ask(
            path,
            said("fast", max_tokens=5, **more),
            headers=smuggled_headers if place == "headers" else None,
        )
        assert found.status in (200, 400)
        assert canary.connections == 0
        for request in stand.vendor.requests[before:]:
            assert f"http://127.0.0.1:{canary.port}" not in request.head.decode("latin-1")
            if path == "/infer":
                assert str(canary.port).encode() not in request.body


ODD = [
    "..",
    "../..",
    "../../../etc/passwd",
    "m/../../x",
    "..%2f..%2fx",
    "%2e%2e",
    "m?key=x",
    "m#x",
    "m;x",
    "//evil.example/x",
    "\\..\\x",
    "@evil",
    "m:streamGenerateContent?x=",
    "file:///etc/passwd",
    "http://evil.example/",
    "m\r\nHost: evil",
    "m\0x",
    "é\u202e",
]


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize("model", ODD)
def test_a_models_name_stays_one_segment_of_the_vendors_path(
    stand: Stand, dialect: str, model: str
) -> None:
    before = len(stand.vendor.requests)
    found = stand.infer(f"x{dialect}/{model}")
    assert found.status in (200, 400, 404), found.data
    assert "root:" not in found.data.decode()
    for request in stand.vendor.requests[before:]:
        assert "evil" not in request.headers["host"]
        is_inside(dialect, request.line.split(" ")[1], len(request.line.split(" ")))


def is_inside(dialect: str, target: str, words: int) -> None:
    """The path is the one that the dialect has, with one segment for the model."""
    path, _, query = target.partition("?")
    assert words == 3
    assert query == ("api-version=1" if dialect == "azure" else "")
    if dialect in ("openai", "anthropic"):
        assert path == PATHS[dialect][1]
        return
    rest = path.removeprefix(PATHS[dialect][1])
    segment = (
        rest.removesuffix(":generateContent")
        if dialect == "gemini"
        else rest.removesuffix("/chat/completions")
    )
    assert path.startswith(PATHS[dialect][1]) and rest != segment and "/" not in segment
    assert dialect == "gemini" or segment.lower() not in (
        "",
        ".",
        "..",
        "%2e",
        "%2e%2e",
        ".%2e",
        "%2e.",
    )


@pytest.mark.parametrize("model", ["xazure/\ud800", "xgemini/\ud800", "xopenai/\udfff"])
def test_a_models_name_that_is_no_text_is_the_callers_fault(stand: Stand, model: str) -> None:
    assert stand.infer(model).status in (200, 400, 404)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("op", ["/v1/responses", "/v1/completions", "/v1/embeddings"])
@pytest.mark.parametrize("dialect", PATHS)
def test_an_operation_that_a_vendor_lacks_is_the_callers_fault(
    stand: Stand, dialect: str, op: str
) -> None:
    found = stand.ask(op, DOORS[op] | {"model": f"x{dialect}/m"})
    assert found.status in (200, 400, 404, 502)
    assert "Traceback" not in stand.service.log


@pytest.mark.parametrize("path", ["/infer", "/v1/chat/completions", "/v1/messages"])
def test_nothing_of_the_caller_but_its_request_reaches_the_vendor(stand: Stand, path: str) -> None:
    given = {
        "Cookie": "session=stranger",
        "X-Forwarded-For": "203.0.113.9",
        "Forwarded": "for=stranger",
        "User-Agent": STRANGER,
        "X-Secret": "stranger",
        "Referer": "http://stranger.example",
        "Origin": "http://stranger.example",
        "X-Request-Id": "stranger",
    }
    before = len(stand.vendor.requests)
    found = stand.ask(path, CHAT, headers=given)
    [request] = stand.vendor.requests[before:]
    assert found.status == 200
    assert request.headers["authorization"] == f"Bearer {VENDOR_KEY}"
    assert set(request.headers) <= {
        "host",
        "authorization",
        "content-type",
        "user-agent",
        "content-length",
        "accept-encoding",
        "accept",
    }
    head = request.head.decode("latin-1")
    assert [word for word in ("stranger", "203.0.113.9", "imx-") if word in head] == []
    assert (
        "Set-Cookie" not in found.headers
        and "X-Upstream" not in found.headers
        and UPSTREAM not in str(found.headers)
    )


def test_no_cookie_of_a_vendor_comes_back_to_it(stand: Stand) -> None:
    for _ in range(3):
        stand.infer("fast")
    assert all("cookie" not in request.headers for request in stand.vendor.requests)


# -- what comes out --------------------------------------------------------------------------------

INJECTED = "xopenai/m\r\nX-Injected: yes\r\n\r\n<script>alert(1)</script>\x1b[31m\u2028CRITICAL forged line"


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", ["/infer", "/mist", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize(
    "model", [INJECTED, INJECTED.removeprefix("xopenai/"), INJECTED.replace("/m", "/failing")]
)
def test_a_models_name_becomes_neither_a_header_nor_a_line_of_the_log(
    stand: Stand, path: str, model: str
) -> None:
    body = dict(DOORS[path])
    if path == "/mist":
        body["payload"] = said(model)
    else:
        body["model"] = model
    for more in ({}, {"stream": True} if path.startswith("/v1") else {}):
        found = stand.ask(path, body | more)
        assert found.status in (200, 400, 404, 502)
        assert "X-Injected" not in found.headers and found.headers["Content-Type"].startswith(
            ("application/json", "text/event-stream")
        )
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    assert not re.search(r"^\W*(X-Injected|CRITICAL)|\x1b", stand.service.log, re.M)


HEADS = {
    "path": f"GET /\x1b[31m{PROMPT} HTTP/1.1\r\nHost: x\r\n\r\n",
    "name": f"GET /providers HTTP/1.1\r\nHost: x\r\nBad Header {GOOD}: x\r\n\r\n",
    "no colon": f"GET /providers HTTP/1.1\r\nHost: x\r\nAuthorization Bearer {GOOD}\r\n\r\n",
    "coding": f"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: {PROMPT}\r\n\r\n",
    "method": f"{GOOD} /providers HTTP/1.1\r\nHost: x\r\n\r\n",
    "version": f"GET /providers HTTP/{PROMPT}\r\nHost: x\r\n\r\n",
    "another protocol": f"\x16\x03\x01\x02\0\x01\0{PROMPT}\r\n\r\n",
    "length": f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {PROMPT}\r\n\r\n",
    "NUL": f"GET /providers HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {GOOD}\0\r\n\r\n",
    "folded": f"GET /providers HTTP/1.1\r\nHost: x\r\nX-Long: a\r\n {GOOD}\r\n\r\n",
    "a long line": f"GET /{PROMPT * 400} HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long header": f"GET /providers HTTP/1.1\r\nHost: x\r\nX-Long: {GOOD * 400}\r\n\r\n",
    "many headers": "GET /providers HTTP/1.1\r\n"
    + "".join(f"X-{n}: {GOOD}\r\n" for n in range(200))
    + "\r\n",
    "two lengths": "POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "length and chunks": "POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    f"GET /{PROMPT} HTTP/1.1\r\n\r\n",
    "a chunk that is none": f"POST /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n\r\n",
    "a chunk that nobody reads": f"PUT /infer HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{PROMPT}\r\n\r\n",
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_a_head_that_is_none_is_refused_without_a_word_of_it(guarded: Service, head: str) -> None:
    """gunicorn's own refusals count too; what follows a refused head is never answered as a second
    request.
    """
    before = len(guarded.log)
    with socket.create_connection(("127.0.0.1", guarded.port), PATIENCE) as sock:
        sock.sendall(head.encode("latin-1"))
        sock.shutdown(socket.SHUT_WR)
        found = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
    assert found.count("HTTP/1.1 ") == 1 and re.match(r"HTTP/1.1 (4|501)", found), found
    assert (
        "Content-Type: application/json\r\n" in found
        and "X-Content-Type-Options: nosniff\r\n" in found
    )
    assert set(json.loads(found.partition("\r\n\r\n")[2])["error"]) == {"message", "type", "code"}
    assert [
        secret
        for secret in (GOOD, PROMPT, "Traceback", "\x1b")
        if secret in found + guarded.log[before:]
    ] == []


def test_no_answer_tells_a_version(guarded: Service) -> None:
    for path in ("/providers", "/nowhere", "/%00"):
        assert re.fullmatch(r"\w*", guarded.ask(path).headers.get("Server", ""))


@pytest.fixture(scope="module")
def guarded(stand: Stand) -> Iterator[Service]:
    """Another service of the same configuration, whose log may hold what the first one's must not."""
    with Keyed(env=stand.env) as service:
        yield service


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "model",
    [
        "xopenai/failing",
        "xopenai/breaking",
        "xopenai/resetting",
        "xgemini/failing",
        "xanthropic/failing",
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_vendor_in_trouble_says_nothing_to_the_caller(
    stand: Stand, path: str, model: str, stream: bool
) -> None:
    body = CHAT | {
        "model": model,
        "stream": stream,
        "messages": [{"role": "user", "content": f"{PROMPT} {model}"}],
    }
    found = stand.ask(path, body)
    assert found.status in (200, 502, 503)
    is_silent(stand, f"{found.headers}{found.data.decode()}")


def is_silent(stand: Stand, text: str, *more: str) -> None:
    secrets = (
        VENDOR_KEY,
        *KEYS.values(),
        ADMIN,
        PROMPT,
        UPSTREAM,
        f":{stand.vendor.port}",
        "Traceback",
        "HTTPConnectionPool",
        *more,
    )
    assert [secret for secret in secrets if secret in text] == []


OPERATORS = (
    "/healthz",
    "/readyz",
    "/metrics",
    "/status",
    "/status/targets",
    "/costs",
    "/costs/timeseries",
)


def test_nothing_secret_came_out_of_the_whole_run(stand: Stand) -> None:
    """Last: no answer, header, span, page, metric, row or line of the log holds a key, its hash, a
    prompt, an address, an exception.
    """
    if len(stand.said) < 50:
        pytest.skip("only as the end of the whole module")
    hashes = [hashlib.sha256(key.encode()).hexdigest() for key in KEYS.values()]
    for text in stand.said:
        is_silent(stand, text.replace(f'"{PROMPT}"', ""), *hashes)
    for path in OPERATORS:
        found = stand.ask(path, key=ADMIN)
        assert found.status == 200 and found.headers["X-Content-Type-Options"] == "nosniff", path
        is_silent(stand, f"{found.headers}{found.data.decode()}", *hashes, "\x1b")
        assert (
            "html" not in found.headers["Content-Type"]
            or "<script>alert" not in found.data.decode()
        )
    eventually(lambda: len(stand.tokentrace.spans) > 10, "spans")
    is_silent(stand, json.dumps(stand.tokentrace.checked()), *hashes)
    is_silent(stand, stand.service.log, *hashes)
    for file in Path(stand.env["INFERMUX_CONFIG"]).parent.glob("infermux.db*"):
        is_silent(stand, file.read_bytes().decode("latin-1"), *hashes)
