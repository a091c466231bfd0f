"""The MIST API mounted in an app: neither changes how the other behaves."""

import json
import re
import sys
import zlib

import pytest
from flask import Blueprint, Flask, abort, g, jsonify, request
from support import Service, run
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.proxy_fix import ProxyFix

import infermux
from infermux import Caller, EchoProvider, InferRequest, InferResponse, Registry, Router

HELLO = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
FIELDS = [
    "model",
    "provider",
    "content",
    "tokens_in",
    "tokens_out",
    "cost_usd",
    "latency_ms",
    "finish_reason",
]
ADMIN = "ak-test-admin-of-thirty-two-letters"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collected:
    """A reporter that keeps what it is given."""

    def __init__(self):
        self.spans = []

    def report(self, span):
        self.spans.append(span.to_dict())


class Spoken:
    """A provider that gives, or raises, what it was made with."""

    name, models = "spoken", ("spoken-v1",)

    def __init__(self, outcome):
        self.outcome = outcome

    def infer(self, request, deadline):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def echo(name: str = "echo", models=("echo-v1",)) -> Router:
    return Router(Registry([EchoProvider(name, models, 0)]))


def mounted(router: Router | None = None, prefix: str = "/llm", **more) -> Flask:
    app = Flask("host")
    app.register_blueprint(infermux.blueprint(router or echo(), **more), url_prefix=prefix)
    return app


def message(payload: bytes, **fields) -> bytes:
    head = {
        "version": "1",
        "id": "0" * 31 + "1",
        "source": "test",
        "type": "infer.request",
        "timestamp_ns": 1,
    } | fields
    return json.dumps(head).encode()[:-1] + b',"payload":' + payload + b"}"


def code(answer) -> tuple[int, str]:
    assert answer.mimetype == "application/json", answer.data
    return answer.status_code, json.loads(answer.data)["error"]["code"]


# -- round trips -----------------------------------------------------------------------------------


def test_infer():
    answer = mounted().test_client().post("/llm/infer", json=HELLO)
    assert (answer.status_code, answer.mimetype, list(answer.json)) == (
        200,
        "application/json",
        FIELDS,
    )
    assert answer.json["content"] == "echo: hello"


@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize(
    "payload",
    [
        b'{"messages":[{"role":"user","content":"hello"}]}',
        b'{ "messages" :\n\t[ {"content":"hello" , "role":"user"} ]\r\n}',
        '{"messages":[{"role":"user","content":"hello"}],"meta":{"ü":"\\u00e9"}}'.encode(),
    ],
)
def test_mist_answers_with_a_checksum_only_when_there_was_one(payload, checksum):
    answer = (
        mounted()
        .test_client()
        .post(
            "/llm/mist",
            data=message(payload, **({"checksum": zlib.crc32(payload)} if checksum else {})),
        )
    )
    reply = json.loads(answer.data)
    assert (answer.status_code, reply["type"], reply["source"]) == (
        200,
        "infer.response",
        "infermux",
    )
    assert list(reply) == [
        "version",
        "id",
        "source",
        "type",
        "timestamp_ns",
        "payload",
        *(["checksum"] if checksum else []),
    ]
    if checksum:
        sent = re.fullmatch(rb'.*"payload":(\{.*\}),"checksum":(\d+)\}\n', answer.data, re.S)
        assert zlib.crc32(sent[1]) == int(sent[2])
    assert list(reply["payload"]) == FIELDS


def test_a_checksum_of_other_white_space_is_wrong():
    body = message(
        json.dumps(HELLO).encode(),
        checksum=zlib.crc32(json.dumps(HELLO, separators=(",", ":")).encode()),
    )
    assert code(mounted().test_client().post("/llm/mist", data=body)) == (400, "invalid_message")


def test_another_type_is_refused_by_name():
    answer = mounted().test_client().post("/llm/mist", data=message(b"{}", type="trace.span"))
    assert code(answer) == (400, "invalid_message")
    assert answer.json["error"]["message"] == "expected type infer.request, got trace.span"


def test_providers():
    router = Router(Registry([EchoProvider("b", ["b-1", "b-2"]), EchoProvider("a", ["a-1"])]))
    assert mounted(router).test_client().get("/llm/providers").json == {
        "providers": [{"name": "b", "models": ["b-1", "b-2"]}, {"name": "a", "models": ["a-1"]}]
    }
    assert (
        mounted(Router(Registry())).test_client().get("/llm/providers").data
        == b'{"providers":[]}\n'
    )


def test_without_any_provider_a_call_is_404():
    assert code(mounted(Router(Registry())).test_client().post("/llm/infer", json=HELLO)) == (
        404,
        "model_not_found",
    )


def spoken(outcome):
    """Ask a mounted provider whose outcome is given."""
    return (
        mounted(Router(Registry([Spoken(outcome)])))
        .test_client()
        .post("/llm/infer", json=HELLO | {"model": "spoken-v1"})
    )


CALLS = [{"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


def test_extensions_come_only_when_there_is_something_in_them():
    answer = spoken(
        InferResponse("m", "spoken", "", 1, 1, 0.5, tool_calls=CALLS, reasoning="why")
    ).json
    assert list(answer) == [*FIELDS, "tool_calls", "reasoning"]
    assert (answer["tool_calls"], answer["reasoning"]) == (CALLS, "why")


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (infermux.errors.ProviderTimeout("slow"), (504, "upstream_timeout")),
        (infermux.errors.ProviderAuthError("key"), (502, "upstream_auth")),
        (infermux.errors.ProviderRateLimited("slow down"), (429, "upstream_rate_limited")),
        (ValueError("a secret"), (502, "upstream_error")),
        (infermux.errors.ContentFiltered("no"), (400, "content_filter")),
        (infermux.errors.NoHealthyProvider("none"), (503, "no_healthy_providers")),
    ],
)
def test_a_providers_failure_has_its_status_and_may_be_repeated(outcome, expected):
    answer = spoken(outcome)
    assert code(answer) == expected
    assert b"a secret" not in answer.data
    assert "x-should-retry" not in answer.headers


def test_a_wrong_method_has_allow_under_the_prefix_too():
    client = mounted().test_client()
    for path, allow in (("/llm/infer", "POST"), ("/llm/mist", "POST")):
        answer = client.get(path)
        assert (code(answer), answer.headers["Allow"]) == ((405, "method_not_allowed"), allow)
    answer = client.post("/llm/providers")
    assert (code(answer), answer.headers["Allow"]) == ((405, "method_not_allowed"), "GET, HEAD")


def relayed(body: bytes) -> bytes:
    """Return a message as mist-go passes it on: read, and written again by encoding/json."""
    assert body.endswith(b"\n")
    envelope = json.loads(body)
    payload = re.search(rb'"payload":(.*?)(?:,"checksum":\d+)?\}\n', body, re.S)[1].decode()
    assert json.loads(payload) == envelope["payload"]
    inside = r'"(?:[^"\\]|\\.)*"'
    payload = re.sub(rf"({inside})|[ \t\r\n]+", lambda found: found[1] or "", payload)
    for mark in "<>&\u2028\u2029":
        payload = payload.replace(mark, f"\\u{ord(mark):04x}")
    return payload.encode()


ODD = "<b>Tom & 'Jerry'</b>\u2028\u2029 \\u003c é😀 3e-05,1.0"


@pytest.fixture(scope="module")
def service():
    env = {"INFERMUX_ADMIN_KEY": ADMIN}
    with Service("--workers", "1", "--threads", "4", env=env) as running:
        yield running


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/mist"])
def test_a_client_that_wants_a_websocket_is_told_to_use_http(path):
    """Codex asks for one first, and goes on by HTTP at once after a 426."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    client = infermux.create_app(Router([EchoProvider()])).test_client()
    answer = client.get(path, headers=headers)
    assert answer.status_code == 426
    assert answer.json["error"]["message"] == "there is no WebSocket here: use HTTP"


@pytest.mark.slow
def test_an_answer_survives_a_relay_in_go(service):
    asked = {"messages": [{"role": "user", "content": ODD}]}
    payload = json.dumps(asked).encode()
    body = service.ask("/mist", message(payload, checksum=zlib.crc32(payload))).data
    reply = json.loads(body)
    assert reply["payload"]["content"] == f"echo: {ODD}"
    assert zlib.crc32(relayed(body)) == reply["checksum"]
    streamed = {"Accept": "text/event-stream"}
    for headers in ({}, streamed):
        body = service.ask("/infer", asked, headers=headers).data.decode()
        assert "\\u003cb\\u003eTom \\u0026" in body and not re.search("[<>&\u2028\u2029]", body)
    small = service.ask("/infer", HELLO).data  # Python would write an exponent
    assert re.search(rb'"cost_usd":0\.0000\d+,', small)
    openai = service.ask("/v1/chat/completions", asked | {"model": "echo-v1"}).data.decode()
    assert ODD[:10] in openai  # other formats are as they were


def test_null_is_zero_in_an_envelope(service):
    body = message(json.dumps(HELLO).encode(), timestamp_ns=None, checksum=None)
    answer = service.ask("/mist", body)
    assert answer.status == 200 and "checksum" not in answer.json


ANSWERS = [
    ("/mist", message(json.dumps(HELLO).encode())),
    ("/mist", b"{}"),
    ("/infer", HELLO),
    ("/infer", b"["),
    ("/infer", HELLO | {"model": "nobody"}),
    ("/providers", None),
    ("/v1/chat/completions", HELLO),
    ("/v1/messages", HELLO | {"max_tokens": 5}),
    ("/v1/messages", b"{}"),
    ("/v1/messages/count_tokens", HELLO),
    ("/v1/models", None),
    ("/v1/models/echo-v1", None),
    ("/healthz", None),
    ("/readyz", None),
    ("/costs", None),
    ("/explain", HELLO),
    ("/status/targets", None),
    ("/nowhere", None),
    ("/mist", None),
]


@pytest.mark.parametrize(("path", "body"), ANSWERS)
def test_every_json_answer_ends_with_a_newline(service, path, body):
    answer = service.ask(path, body, headers={"Authorization": f"Bearer {ADMIN}"})
    assert answer.headers.get_content_type() == "application/json"
    assert answer.data.endswith(b"}\n") and not answer.data.endswith(b"\n\n")
    assert int(answer.headers["Content-Length"]) == len(answer.data)


def test_a_refused_head_is_answered_with_a_newline_too(service):
    answer = service.raw(b"GET / HTTP/9.9\r\n\r\n")
    assert answer.status >= 400 and answer.data.endswith(b"}\n")


@pytest.mark.parametrize("method", ["POST", "DELETE", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize(
    "path", ["/providers", "/v1/models", "/v1/models/echo-v1", "/healthz", "/costs"]
)
def test_head_is_allowed_where_it_is_served(service, path, method):
    headers = {"Authorization": f"Bearer {ADMIN}"}
    served = service.ask(path, method="HEAD", headers=headers)
    assert (served.status, served.data) == (200, b"")
    assert service.ask(path, method=method, headers=headers).headers["Allow"] == "GET, HEAD"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PROPFIND"])
@pytest.mark.parametrize("path", ["/mist", "/infer", "/v1/messages"])
def test_head_is_not_allowed_where_it_is_not_served(service, path, method):
    answer = service.ask(path, method=method)
    assert answer.status == (204 if method == "OPTIONS" else 405)
    assert answer.headers["Allow"] == "POST"


def misplaced(service, members):
    """Ask with members beside those of an infer.request, bare and in a message."""
    asked = {"messages": HELLO["messages"]} | members
    for path, body in (("/infer", asked), ("/mist", message(json.dumps(asked).encode()))):
        yield service.ask(path, body)


@pytest.mark.parametrize("members", [{"modle": "echo-v1"}, {"Modell": "x"}, {"temprature": 1}])
def test_a_misspelt_member_is_400_and_says_what_was_meant(service, members):
    for answer in misplaced(service, members):
        assert answer.status == 400 and "did you mean" in answer.json["error"]["message"]


def test_a_field_in_capitals_is_the_field(service):
    for answer in misplaced(service, {"Model": "nobody"}):
        assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    for value, kind in ((True, "text/event-stream"), (False, "application/json")):
        answer = service.ask("/infer", HELLO | {"Stream": value})
        assert answer.headers["Content-Type"].partition(";")[0] == kind


@pytest.mark.slow
def test_a_parameter_beside_params_reaches_the_vendor(vendor):
    body = {"messages": HELLO["messages"], "model": "gpt-4.1-mini", "TEMPERATURE": 0.25, "n": None}
    with Service("--workers", "1", "--threads", "2", env=vendor.env) as service:
        assert service.ask("/infer", body | {"seed": 7, "params": {"top_p": 0.5}}).status == 200
        assert service.ask("/infer", body | {"params": {"temperature": 1}}).status == 400
    [seen] = vendor.seen
    assert {name: seen.body[name] for name in ("temperature", "seed", "top_p")} == {
        "temperature": 0.25,
        "seed": 7,
        "top_p": 0.5,
    }


# -- traces ----------------------------------------------------------------------------------------


def span(headers=None, **more) -> dict:
    collected = Collected()
    app = mounted(Router(Registry([EchoProvider(delay=0)]), collected))
    app.test_client().post("/llm/infer", json=HELLO | more, headers=headers)
    assert len(collected.spans) == 1
    return collected.spans[0]


VALID = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize("parent", [PARENT, PARENT[::-1] + PARENT])
@pytest.mark.parametrize(
    "form",
    [
        lambda parent: {"headers": {"traceparent": f"00-{TRACE}-{parent}-01"}},
        lambda parent: {"meta": {"traceparent": f"00-{TRACE}-{parent}-01"}},
        lambda parent: {"meta": {"trace_id": TRACE, "parent_id": parent}},
        lambda parent: {
            "headers": {
                "traceparent": f"00-{TRACE}-{parent[-16:]}-01",
                "tracestate": f"mist={parent}",
            }
        },
    ],
)
def test_a_parent_of_16_or_32_digits_is_joined(form, parent):
    found = span(**form(parent))
    assert (found["trace_id"], found["parent_id"]) == (TRACE, parent)


@pytest.mark.parametrize(
    "header", [VALID, f"00-{TRACE}-{PARENT}-00", f"cc-{TRACE}-{PARENT}-01-what-the-future-brings"]
)
def test_a_valid_traceparent_is_continued_from_the_header_or_meta(header):
    for found in (span({"traceparent": header}), span(meta={"traceparent": header})):
        assert (found["trace_id"], found["parent_id"]) == (TRACE, PARENT)
        assert re.fullmatch(r"[0-9a-f]{32}", found["span_id"])


def test_the_header_wins_over_meta():
    assert (
        span({"traceparent": VALID}, meta={"traceparent": VALID.replace("4bf", "abc")})["trace_id"]
        == TRACE
    )


@pytest.mark.parametrize(
    "header",
    [
        "",
        "hello",
        VALID[:-1],
        VALID + "-x",
        VALID.upper(),
        f"ff-{TRACE}-{PARENT}-01",
        VALID.replace("-", "_"),
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        VALID.replace("4bf", "xyz"),
    ],
)
def test_an_invalid_traceparent_starts_a_new_trace(header):
    for found in (span({"traceparent": header}), span(meta={"traceparent": header})):
        assert re.fullmatch(r"[0-9a-f]{32}", found["trace_id"]) and found["trace_id"] not in (
            TRACE,
            "0" * 32,
        )
        assert "parent_id" not in found


def test_an_error_has_a_span_in_the_callers_trace():
    found = span({"traceparent": VALID}, model="nobody")
    assert (found["trace_id"], found["status"]) == (TRACE, "error")
    assert "nobody" in found["attrs"]["error"]


@pytest.mark.parametrize("provider", [["echo"], {"a": 1}, 5, False])
def test_a_wrong_type_of_a_field_does_not_reach_the_span(provider):
    found = span(provider=provider)
    assert found["status"] == "error"
    assert isinstance(found["attrs"]["provider"], str)


# -- in somebody's app -----------------------------------------------------------------------------


def host(**more) -> Flask:
    """An app with error handlers, JSON settings, hooks and a login of its own."""
    app = mounted(**more)
    app.register_error_handler(
        Exception,
        lambda error: ("the host's own page", getattr(error, "code", 500), {"X-Host": "1"}),
    )
    app.register_error_handler(404, lambda error: ("the host's own 404", 404, {"X-Host": "1"}))
    app.register_error_handler(405, lambda error: ("the host's own 405", 405, {"X-Host": "1"}))
    app.add_url_rule("/own", "own", lambda: jsonify({"z": 1, "a": 2}))
    app.add_url_rule("/bug", "bug", lambda: 1 / 0)
    return app


def test_a_test_client_is_no_server_without_threads(caplog):
    assert host().test_client().post("/llm/infer", json=HELLO).status_code == 200
    assert "multithread" not in caplog.text


def test_the_hosts_error_handlers_stay_on_its_side():
    client = host().test_client()
    for path, status in (("/nowhere", 404), ("/bug", 500), ("/llm/nowhere", 404)):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["X-Host"]) == (status, "1")
    assert client.post("/own").data == b"the host's own 405"


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/llm/infer", b"{", (400, "invalid_request")),
        (
            "POST",
            "/llm/infer",
            b'{"model":"x","messages":[{"role":"user","content":""}]}',
            (404, "model_not_found"),
        ),
        ("POST", "/llm/mist", b"{}", (400, "invalid_message")),
        ("GET", "/llm/infer", b"", (405, "method_not_allowed")),
        ("DELETE", "/llm/providers", b"", (405, "method_not_allowed")),
    ],
)
def test_our_errors_are_ours_whatever_handlers_the_host_has(method, path, body, expected):
    answer = host().test_client().open(path, method=method, data=body)
    assert code(answer) == expected
    assert "X-Host" not in answer.headers


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("compact", [True, False])
def test_json_settings_of_the_host_are_for_the_host(sort, compact):
    app = host()
    app.json.sort_keys, app.json.compact = sort, compact
    client = app.test_client()
    own = client.get("/own").data
    assert own.index(b'"a"') < own.index(b'"z"') if sort else own.index(b'"z"') < own.index(b'"a"')
    answer = client.post("/llm/infer", json=HELLO)
    assert list(json.loads(answer.data)) == FIELDS
    assert b", " not in answer.data and b'": ' not in answer.data
    assert (app.json.sort_keys, app.json.compact) == (sort, compact)


def test_what_a_hook_of_the_host_does_to_an_answer_is_done():
    app, closed = host(), []

    @app.after_request
    def change(answer):
        if request.headers.get("X-Change") == "body":
            answer.set_data("the host's own text")
        if request.headers.get("X-Change") == "parts":
            answer.response = iter(["the host's ", "own text"])
            del answer.headers["Content-Length"]
        if request.headers.get("X-Change") == "loud":
            pieces = answer.response
            answer.response = (piece.decode().upper() for piece in pieces)
        path = request.path
        answer.call_on_close(lambda: closed.append(path))
        return answer

    client = app.test_client()
    for change in ("body", "parts"):
        answer = client.post("/llm/infer", json=HELLO, headers={"X-Change": change}, buffered=True)
        assert (answer.status_code, answer.data) == (200, b"the host's own text")
    loud = {"Accept": "text/event-stream", "X-Change": "loud"}
    streamed = client.post("/llm/infer", json=HELLO, headers=loud)
    assert b"ECHO: HELLO" in b"".join(streamed.response)  # bytes, as a server wants them
    streamed.close()
    assert client.head("/llm/providers", buffered=True).data == b""
    assert client.post("/llm/infer", json=HELLO, buffered=True).json["content"] == "echo: hello"
    assert closed == ["/llm/infer"] * 3 + ["/llm/providers", "/llm/infer"]


def filled(table: dict) -> dict:
    return {key: value for key, value in table.items() if value}


def test_mounting_changes_no_setting_of_the_host():
    app = Flask("host")
    config, handlers = dict(app.config), filled(app.error_handler_spec)
    before, teardown = dict(app.before_request_funcs), dict(app.teardown_request_funcs)
    app.register_blueprint(infermux.blueprint(echo()), url_prefix="/llm")
    app.test_client().post("/llm/infer", json=HELLO)
    assert dict(app.config) == config
    assert dict(app.before_request_funcs) == before and dict(app.teardown_request_funcs) == teardown
    assert filled(app.error_handler_spec) == handlers
    assert {rule.rule for rule in app.url_map.iter_rules()} == {
        "/static/<path:filename>",
        "/llm/infer",
        "/llm/mist",
        "/llm/providers",
    }


def logged_in(app: Flask) -> list[str]:
    """Give *app* a login of its own, in front of everything; return the addresses that it saw."""
    seen: list[str] = []

    @app.before_request
    def login():
        seen.append(request.path)
        g.user = request.headers.get("X-User", "")
        if not g.user:
            return "log in first", 401
        return None

    @app.after_request
    def stamped(answer):
        answer.headers["X-Stamp"] = g.user
        return answer

    return seen


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/llm/infer"),
        ("POST", "/llm/mist"),
        ("GET", "/llm/providers"),
        ("GET", "/llm/infer"),
    ],
)
def test_the_hosts_login_stands_before_our_doors(method, path):
    app = mounted()
    seen = logged_in(app)
    answer = app.test_client().open(path, method=method, json=HELLO if method == "POST" else None)
    assert (answer.status_code, answer.data, answer.headers["X-Stamp"]) == (
        401,
        b"log in first",
        "",
    )
    answer = app.test_client().open(
        path, method=method, json=HELLO if method == "POST" else None, headers={"X-User": "ada"}
    )
    assert answer.status_code != 401 and answer.headers["X-Stamp"] == "ada"
    assert seen == [path, path]


def test_a_before_request_that_reads_the_body_does_not_take_it_away():
    app = mounted()
    app.before_request(lambda: request.get_json(silent=True) and None)
    assert app.test_client().post("/llm/infer", json=HELLO).json["content"] == "echo: hello"


def test_the_hosts_own_limit_of_a_body_holds():
    app = mounted()
    app.config["MAX_CONTENT_LENGTH"] = 200
    client = app.test_client()
    assert client.post("/llm/infer", json=HELLO).status_code == 200
    assert code(client.post("/llm/infer", data=json.dumps(HELLO) + " " * 200)) == (
        413,
        "request_too_large",
    )


# -- several ---------------------------------------------------------------------------------------


def test_two_routers_in_one_app_answer_each_for_itself():
    app = mounted(echo("one", ["one-v1"]), "/one")
    app.register_blueprint(infermux.blueprint(echo("two", ["two-v1"])), url_prefix="/two")
    client = app.test_client()
    for name, other in (("one", "two"), ("two", "one")):
        assert client.get(f"/{name}/providers").json["providers"] == [
            {"name": name, "models": [f"{name}-v1"]}
        ]
        assert (
            client.post(f"/{name}/infer", json=HELLO | {"model": "auto"}).json["provider"] == name
        )
        assert code(client.post(f"/{name}/infer", json=HELLO | {"model": f"{other}-v1"})) == (
            404,
            "model_not_found",
        )
        assert code(client.get(f"/{name}/mist")) == (405, "method_not_allowed")


def test_one_blueprint_in_two_apps_and_inside_another_blueprint():
    door = infermux.blueprint(echo())
    for number in range(2):
        app, outer = Flask(f"host{number}"), Blueprint("api", __name__, url_prefix="/api")
        outer.register_blueprint(door, url_prefix="/llm")
        app.register_blueprint(outer)
        assert app.test_client().post("/api/llm/infer", json=HELLO).status_code == 200
        assert code(app.test_client().get("/api/llm/infer")) == (405, "method_not_allowed")


def test_the_whole_app_below_a_path_of_another_app_behind_a_proxy():
    app = Flask("host")
    inner = DispatcherMiddleware(app.wsgi_app, {"/llm": infermux.create_app(echo())})
    app.wsgi_app = ProxyFix(inner, x_for=1, x_prefix=1)
    client, proxy = (
        app.test_client(),
        {"X-Forwarded-Prefix": "/pre", "X-Forwarded-For": "192.0.2.1"},
    )
    assert client.post("/llm/infer", json=HELLO, headers=proxy).json["provider"] == "echo"
    assert client.post("/llm/v1/chat/completions", json=HELLO, headers=proxy).status_code == 200
    assert client.get("/llm/", headers=proxy).json["service"] == "infermux"
    assert client.get("/infer").status_code == 404


def test_all_three_doors_in_one_app_without_a_prefix():
    app, router = Flask("host"), echo()
    for door in (infermux.blueprint, infermux.openai_blueprint, infermux.anthropic_blueprint):
        app.register_blueprint(door(router))
    client = app.test_client()
    assert client.post("/infer", json=HELLO).status_code == 200
    assert client.post("/v1/chat/completions", json=HELLO).status_code == 200
    assert client.post("/v1/messages", json=HELLO | {"max_tokens": 5}).status_code == 200


# -- who is calling --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "name"),
    [("ada", "ada"), (Caller("grace", tags={"team": "navy"}), "grace"), (None, ""), ("", "")],
)
def test_caller_says_who_is_calling(found, name):
    calls = []
    router = Router(Registry([EchoProvider(delay=0)]), observers=[calls.append])
    client = mounted(router, caller=lambda: found).test_client()
    client.post("/llm/infer", json=HELLO)
    client.post("/llm/mist", data=message(json.dumps(HELLO).encode()))
    assert [call.caller.name for call in calls] == [name, name]


def test_caller_is_asked_within_the_request():
    calls = []
    router = Router(Registry([EchoProvider(delay=0)]), observers=[calls.append])
    app = mounted(router, caller=lambda: g.user)
    logged_in(app)
    for user in ("ada", "grace"):
        app.test_client().post("/llm/infer", json=HELLO, headers={"X-User": user})
    assert [call.caller.name for call in calls] == ["ada", "grace"]


def test_caller_may_refuse_in_our_words_or_in_the_hosts():
    def ours():
        raise infermux.errors.AuthenticationError("who are you?")

    assert code(mounted(caller=ours).test_client().post("/llm/infer", json=HELLO)) == (
        401,
        "invalid_api_key",
    )
    answer = host(caller=lambda: abort(403)).test_client().post("/llm/infer", json=HELLO)
    assert (answer.status_code, answer.headers["X-Host"]) == (403, "1")


# -- the host's command line -----------------------------------------------------------------------


def test_flask_infer_asks_the_hosts_own_router():
    app = mounted(echo("house", ["house-v1"]))
    result = app.test_cli_runner().invoke(args=["infer", "hello", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["provider"] == "house"


HOST = """
from flask import Flask
import infermux

class Shout:
    name, models = "shout", ["shout-v1"]

    def infer(self, request: infermux.InferRequest):
        return infermux.InferResponse(request.model, self.name, request.messages[-1]["content"].upper(), 1, 1, 0.0)

app = Flask(__name__)
app.register_blueprint(infermux.blueprint(infermux.Router(infermux.Registry([Shout()]))), url_prefix="/llm")

@app.cli.command()
def own():
    print("the host's own command")
"""


@pytest.mark.slow
def test_flask_infer_appears_beside_the_hosts_own_commands(tmp_path):
    (tmp_path / "host.py").write_text(HOST)
    flask = [sys.executable, "-m", "flask", "--app", "host"]
    assert run([*flask, "infer", "hello"], cwd=tmp_path).stdout == "HELLO\n"
    assert run([*flask, "own"], cwd=tmp_path).stdout == "the host's own command\n"
    listed = run([*flask, "--help"], cwd=tmp_path).stdout
    assert re.search(r"^  infer ", listed, re.M) and re.search(r"^  own", listed, re.M)
    assert not re.search(r"^  serve ", listed, re.M)  # the host's own server is not ours to start


@pytest.mark.slow
def test_a_request_object_is_the_same_at_every_door():
    """What the library answers is what the endpoint says, apart from the time it took."""
    router = echo()
    said = mounted(router).test_client().post("/llm/infer", json=HELLO).json
    found = router.infer(InferRequest(**HELLO)).to_dict()
    assert said | {"latency_ms": 0} == found | {"latency_ms": 0}
