"""The MIST API mounted in an app: neither changes how the other behaves."""

import json
import re
import sys
import zlib

import pytest
from flask import Blueprint, Flask, abort, g, jsonify, request
from support import run

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
        sent = re.fullmatch(rb'.*"payload":(\{.*\}),"checksum":(\d+)\}', answer.data, re.S)
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
        mounted(Router(Registry())).test_client().get("/llm/providers").data == b'{"providers":[]}'
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
    assert code(answer) == (405, "method_not_allowed") and "GET" in answer.headers["Allow"]


# -- traces ----------------------------------------------------------------------------------------


def span(headers=None, **more) -> dict:
    collected = Collected()
    app = mounted(Router(Registry([EchoProvider(delay=0)]), collected))
    app.test_client().post("/llm/infer", json=HELLO | more, headers=headers)
    assert len(collected.spans) == 1
    return collected.spans[0]


VALID = f"00-{TRACE}-{PARENT}-01"


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


def test_flask_infer_appears_beside_the_hosts_own_commands(tmp_path):
    (tmp_path / "host.py").write_text(HOST)
    flask = [sys.executable, "-m", "flask", "--app", "host"]
    assert run([*flask, "infer", "hello"], cwd=tmp_path).stdout == "HELLO\n"
    assert run([*flask, "own"], cwd=tmp_path).stdout == "the host's own command\n"
    listed = run([*flask, "--help"], cwd=tmp_path).stdout
    assert re.search(r"^  infer ", listed, re.M) and re.search(r"^  own", listed, re.M)
    assert not re.search(r"^  serve ", listed, re.M)  # the host's own server is not ours to start


def test_a_request_object_is_the_same_at_every_door():
    """What the library answers is what the door says."""
    router = echo()
    assert (
        mounted(router).test_client().post("/llm/infer", json=HELLO).json
        == router.infer(InferRequest(**HELLO)).to_dict()
    )
