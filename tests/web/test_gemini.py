"""The Gemini API: bytes passed through, every vendor behind it, streams, errors, lists."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import threading
from typing import Any

import pytest
import recorded
from doors import (
    ERRORS,
    EVENTS,
    FIRST,
    MODELS,
    SERVED,
    SIGNATURE,
    WHOLE,
    Front,
    Got,
    Turn,
    Vendor,
    anthropic_blocks,
    gemini_body,
    reply,
    says,
    sse,
    stream,
)
from flask import Flask
from support import PATIENCE, ask
from test_pairs import ANSWER, CALLS, QUESTION, RESULTS, SCHEMA, asked

from infermux import EchoProvider, create_app, gemini_blueprint
from infermux.admission.keys import Keyring, hashed
from infermux.providers import http as provider_http
from infermux.providers.http import Timeouts
from infermux.types import Caller

JSON = dict[str, Any]
DIALECTS = ("openai", "anthropic", "gemini")
FORMS = ("whole", "events", "array")
every_form = pytest.mark.parametrize("form", FORMS)
every_vendor = pytest.mark.parametrize("dialect", DIALECTS)
every_stream = pytest.mark.parametrize("form", FORMS[1:])
HELLO = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}]}
BYTES = bytes(range(250))
THOUGHTS = {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}


@pytest.fixture(scope="module")
def vendors():
    with contextlib.ExitStack() as stack:
        yield {dialect: stack.enter_context(Vendor(dialect)) for dialect in DIALECTS}


@pytest.fixture(scope="module")
def front(vendors):
    providers = [
        vendor.provider(timeouts=Timeouts(first_byte=2, idle=0.5)) for vendor in vendors.values()
    ]
    with Front(*providers, EchoProvider()) as running:
        yield running


# -- a client --------------------------------------------------------------------------------------


def path(model: str, form: str) -> str:
    verbs = {
        "whole": "generateContent",
        "events": "streamGenerateContent?alt=sse",
        "array": "streamGenerateContent",
    }
    return f"/v1beta/models/{model}:{verbs[form]}"


def send(front: Front, model: str, body: JSON | bytes, form: str = "whole") -> Got:
    """Ask as a client of Google's does; return what it understands."""
    answer = front.ask(path(model, form), body)
    assert answer.status == 200, answer.data
    kind = "text/event-stream; charset=utf-8" if form == "events" else "application/json"
    assert answer.headers["Content-Type"].partition(";")[0] == kind.partition(";")[0]
    return fold(chunks(answer.data, form))


def chunks(data: bytes, form: str) -> list[JSON]:
    """Return the GenerateContentResponses of an answer."""
    if form == "events":
        return [event.json for event in sse(data)]
    found = json.loads(data)
    return found if form == "array" else [found]


def fold(found: list[JSON]) -> Got:
    """Put chunks together; the last one, and no other, has the reason of the end."""
    parts: list[JSON] = []
    for body in found:
        (candidate,) = body["candidates"]
        assert candidate["index"] == 0 and candidate["content"]["role"] == "model"
        parts += candidate["content"]["parts"]
        assert body["modelVersion"] and body["responseId"] == found[0]["responseId"]
        assert ("finishReason" in candidate) == (body is found[-1])
    usage, calls = found[-1]["usageMetadata"], []
    for part in parts:
        if "functionCall" in part:
            call = part["functionCall"]
            calls.append((call.get("id", ""), call["name"], call["args"]))
    thought = usage["thoughtsTokenCount"]
    written = usage["candidatesTokenCount"]
    assert usage["totalTokenCount"] == usage["promptTokenCount"] + written + thought
    return Got(
        "".join(part.get("text", "") for part in parts if not part.get("thought")),
        calls,
        found[-1]["candidates"][0]["finishReason"],
        (usage["promptTokenCount"], usage["cachedContentTokenCount"], written + thought, thought),
        found[-1]["modelVersion"],
        {"role": "model", "parts": parts},
    )


def said(text: str) -> JSON:
    return {"role": "user", "parts": [{"text": text}]}


def declared(schema: JSON = SCHEMA) -> list[JSON]:
    function = {
        "name": "weather",
        "description": "The weather of a city",
        "parametersJsonSchema": schema,
    }
    return [{"functionDeclarations": [function]}]


def results(calls: list[Any], *, idents: bool) -> JSON:
    """Return the content that answers *calls*, with ids or, as older clients, without."""
    responses = [{"result": RESULTS[0]}, json.loads(RESULTS[1])]
    parts = []
    for (ident, name, _), response in zip(calls, responses, strict=True):
        known = {"id": ident} if idents and ident else {}
        parts.append({"functionResponse": {**known, "name": name, "response": response}})
    return {"role": "user", "parts": parts}


# -- every vendor ----------------------------------------------------------------------------------


@pytest.mark.sampled(3)
@pytest.mark.parametrize("idents", [True, False], ids=["ids", "no ids"])
@every_form
@every_vendor
def test_a_conversation_with_parallel_tools(front, vendors, dialect, form, idents):
    streamed = form != "whole"
    steps = [says(dialect, turn, streamed=streamed) for turn in (CALLS, ANSWER)]
    vendor = vendors[dialect].script(*steps)
    contents = [said(QUESTION)]
    body = {
        "systemInstruction": {"parts": [{"text": "Antworte kurz."}]},
        "contents": contents,
        "tools": declared(),
    }
    first = send(front, MODELS[dialect], body, form)
    assert (first.text, first.finish) == (CALLS.text, "STOP")
    assert (first.model, first.usage) == (SERVED[dialect], (31, 8, 17, 5))
    assert tuple((name, given) for _, name, given in first.calls) == CALLS.calls
    if form != "array":  # Google's own address is asked as the client asks ours
        assert asked(vendor, dialect, streamed) == (
            "Antworte kurz.",
            [("user", QUESTION, [])],
            [("weather", "The weather of a city", SCHEMA)],
        )
    turn = first.message
    if not idents:
        turn = json.loads(json.dumps(turn))
        for part in turn["parts"]:
            part.get("functionCall", {}).pop("id", None)
    contents += [turn, results(first.calls, idents=idents)]
    second = send(front, MODELS[dialect], body, form)
    assert (second.text, second.calls, second.finish) == (ANSWER.text, [], "STOP")
    if dialect == "gemini":
        assert vendor.seen[-1].body == body
        return
    turns = asked(vendor, dialect, streamed)[1]
    told = [(name, given) for kind, _, name, given in turns[2:4] if kind == "call"]
    assert tuple(told) == CALLS.calls and turns[1] == ("assistant", CALLS.text, [])
    answers = [RESULTS[0], json.dumps({"sky": "clear"}, separators=(",", ":"))]
    assert [turn[2] for turn in turns[4:]] == answers
    assert [turn[1] for turn in turns[4:]] == [turn[1] for turn in turns[2:4]], "pairs by ids"


@every_form
@every_vendor
def test_an_image_in_googles_base64(front, vendors, dialect, form):
    """Google's SDKs write base64 for URLs, and no other vendor reads that."""
    vendor = vendors[dialect].script(says(dialect, ANSWER, streamed=form != "whole"))
    data = base64.urlsafe_b64encode(BYTES).decode().rstrip("=")
    picture = {"inline_data": {"mime_type": "image/png", "data": data}}
    body = {"contents": [{"parts": [{"text": "What is this?"}, picture]}]}
    assert send(front, MODELS[dialect], body, form).text == ANSWER.text
    if dialect != "gemini":
        picture = f"data:image/png;base64,{base64.b64encode(BYTES).decode()}"
        turns = [("user", "What is this?", [picture])]
        assert asked(vendor, dialect, form != "whole") == ("", turns, [])
    else:
        assert vendor.seen[-1].body == body


@every_form
@every_vendor
def test_thoughts_come_and_go_back_signed(front, vendors, dialect, form):
    turn = Turn("", (("weather", {"city": "Köln"}),), "Let me think.")
    streamed = form != "whole"
    vendor = vendors[dialect].script(
        says(dialect, turn, streamed=streamed), says(dialect, Turn("42"), streamed=streamed)
    )
    contents = [said("?")]
    body = {"contents": contents, "tools": declared()} | THOUGHTS
    got = send(front, MODELS[dialect], body, form)
    thoughts = [part for part in got.message["parts"] if part.get("thought")]
    assert "".join(part["text"] for part in thoughts) == "Let me think."
    (call,) = [part for part in got.message["parts"] if "functionCall" in part]
    mark = SIGNATURE if dialect == "gemini" else "skip_thought_signature_validator"
    assert call["thoughtSignature"] == mark, "Google's models refuse calls without a signature"
    contents += [got.message, results(got.calls * 2, idents=True)]
    contents[-1]["parts"].pop()
    send(front, MODELS[dialect], body, form)
    if dialect == "anthropic":
        thinking, use = vendor.seen[-1].body["messages"][1]["content"]
        assert thinking == anthropic_blocks(turn)[0]
        assert (use["id"], use["input"]) == ("toolu_0", {"city": "Köln"})
    if dialect == "openai":
        assert "Let me think." not in vendor.seen[-1].data.decode()
    if dialect == "gemini":
        assert vendor.seen[-1].body == body


@every_form
@every_vendor
def test_structured_output(front, vendors, dialect, form):
    vendor = vendors[dialect].script(
        says(dialect, Turn('{"city": "Köln"}'), streamed=form != "whole")
    )
    schema = {
        "type": "OBJECT",
        "properties": {"city": {"type": "STRING", "nullable": True}},
        "required": ["city"],
        "propertyOrdering": ["city"],
    }
    config = {"responseMimeType": "application/json", "responseSchema": schema}
    body = HELLO | {"generationConfig": config}
    assert json.loads(send(front, MODELS[dialect], body, form).text) == {"city": "Köln"}
    closed = {
        "type": "object",
        "properties": {"city": {"type": ["string", "null"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    sent = vendor.seen[-1].body
    if dialect == "openai":
        wanted = {"name": "response", "schema": closed, "strict": True}
        assert sent["response_format"] == {"type": "json_schema", "json_schema": wanted}
    elif dialect == "anthropic":
        wanted = {"type": "json_schema", "schema": closed}
        assert sent["output_config"]["format"] == wanted
    else:
        assert sent == body


@pytest.mark.parametrize("first", DIALECTS)
@pytest.mark.parametrize("second", DIALECTS)
@pytest.mark.parametrize("form", ["whole", "events"])
def test_a_conversation_goes_on_at_another_vendor(front, vendors, first, second, form):
    turn = Turn("", (("weather", {"city": "Köln"}),), "Let me think.")
    streamed = form != "whole"
    vendors[first].script(says(first, turn, streamed=streamed))
    contents = [said("?")]
    body = {"contents": contents, "tools": declared()}
    got = send(front, MODELS[first], body, form)
    contents += [got.message, results(got.calls * 2, idents=True)]
    contents[-1]["parts"].pop()
    vendor = vendors[second].script(says(second, ANSWER, streamed=streamed))
    assert send(front, MODELS[second], body, form).text == ANSWER.text
    sent = vendor.seen[-1].data.decode()
    if first != second:
        assert SIGNATURE not in sent and "aW5mZXJtdXg6" not in sent, "another vendor's thoughts"
    if second == "gemini":
        (call,) = [
            part for part in vendor.seen[-1].body["contents"][1]["parts"] if "functionCall" in part
        ]
        assert call["thoughtSignature"], "Gemini 3 refuses a call without one"


# -- same dialect: nothing is translated -----------------------------------------------------------

ODD = (
    b'{ "contents" :\n [ {"parts": [{"text": "h\\u00e9llo \xc3\xa9", "x_new": null}], "role": "user"} ],\t'
    b'"generationConfig": {"temperature": 1.0e0}, "x_new_parameter": [1.50, "\\/"] }'
)


@pytest.mark.parametrize("model", ["gemini-asked", "gemini/gemini-asked", "gemini%2Fgemini-asked"])
@pytest.mark.parametrize("version", ["v1beta", "v1"])
def test_the_body_goes_out_and_the_answer_comes_back_byte_for_byte(front, vendors, model, version):
    answer = json.dumps(gemini_body([{"text": "Größe"}]), indent=2).encode() + b"\n"
    vendor = vendors["gemini"].script(reply(answer))
    got = front.ask(f"/{version}/models/{model}:generateContent", ODD)
    assert got.data == answer and vendor.seen[0].data == ODD
    assert vendor.seen[0].path == "/v1beta/models/gemini-asked:generateContent"
    assert got.headers["X-Infermux-Provider"] == "gemini"


def test_only_names_of_the_model_are_respelled(front, vendors):
    vendor = vendors["gemini"].script(reply({"embeddings": [{"values": [1]}]}))
    one = {"content": said("x"), "outputDimensionality": 8}
    body = {"requests": [one | {"model": "models/gemini/gemini-asked"}]}
    front.ask("/v1beta/gemini/gemini-asked:batchEmbedContents", body)  # as the AI SDK writes it
    assert vendor.seen[-1].path == "/v1beta/models/gemini-asked:batchEmbedContents"
    front.ask("/v1beta/models/gemini%2Fgemini-asked:batchEmbedContents", body)
    assert vendor.seen[-1].path == "/v1beta/models/gemini-asked:batchEmbedContents"
    assert vendor.seen[-1].body == {"requests": [one | {"model": "models/gemini-asked"}]}
    spaced = b'{"requests" : [ {"model":"models/gemini-asked", "content":{"parts":{"text":"x"}}}]}'
    front.ask("/v1beta/models/gemini-asked:batchEmbedContents", spaced)
    assert vendor.seen[-1].data == spaced
    vendor.script(reply(WHOLE["gemini"](ANSWER)))
    front.ask(path("gemini/gemini-asked", "whole"), HELLO | {"model": "models/gemini/gemini-asked"})
    assert vendor.seen[-1].body == HELLO | {"model": "models/gemini-asked"}


EXCHANGES = recorded.exchanges(
    "gemini.generateContent", "gemini.embedContent", "gemini.countTokens"
)


@pytest.fixture(scope="module")
def google():
    """A front before a vendor that answers each exchange as it was recorded."""
    if not EXCHANGES:
        pytest.skip("there is no recorded traffic beside this clone")
    with Vendor("gemini") as vendor, Front(vendor.provider()) as running:
        yield running, vendor


@pytest.mark.parametrize("size", [None, 1, 7], ids=["whole", "bytes", "sevens"])
@pytest.mark.parametrize("exchange", EXCHANGES, ids=lambda exchange: exchange["id"])
def test_recorded_traffic_passes_byte_for_byte(google, exchange, size):
    running, vendor = google
    response, body = exchange["response"], exchange["response"]["body"]
    data = body.encode() if isinstance(body, str) else json.dumps(body, indent=2).encode()
    kind = response["headers"].get("content-type", "application/json")
    if response["status"] != 200:
        vendor.script(reply(data, response["status"], Content_Type=kind))
    elif size is None or not exchange["stream"]:
        vendor.script(reply(data, Content_Type=kind))
    else:
        pieces = [data[:2000][at : at + size] for at in range(0, 2000, size)]
        vendor.script(stream(*pieces, data[2000:] or b"\n", kind=kind))
    _, _, rest = exchange["request"]["path"].rpartition("/models/")
    model, _, verb = rest.partition(":")
    sent = json.dumps(exchange["request"]["body"], indent=1).encode()
    got = running.ask(f"/v1beta/models/gemini/{model}:{verb}", sent)
    assert vendor.seen[0].path == f"/v1beta/models/{model}:{verb}"
    assert vendor.seen[0].data == sent
    if response["status"] == 200:
        assert got.status == 200 and got.data == data
        assert got.headers["Content-Type"].partition(";")[0] == kind.partition(";")[0]
        return
    is_error(got, 502 if "API_KEY" in str(body) or response["status"] == 403 else got.status)
    if got.status == response["status"]:
        error = json.loads(data)["error"]
        found = got.json["error"]
        assert (found["status"], found.get("details")) == (error["status"], error.get("details"))


def test_an_array_comes_element_by_element(front, vendors):
    """From a vendor that sends one, and from every other."""
    for dialect in DIALECTS:
        go = threading.Event()
        if dialect == "gemini":
            one, two = (json.dumps(gemini_body([{"text": t}], f), indent=1).encode()
                        for t, f in (("first", None), ("second", "STOP")))  # fmt: skip
            step = stream(b"[" + one, b"\n", go, b",\r\n" + two + b"\n]", kind="application/json")
        else:
            step = stream(FIRST[dialect], go, *EVENTS[dialect](Turn("x"))[-3:])
        vendors[dialect].script(step)
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=PATIENCE)
        with contextlib.closing(connection):
            connection.request("POST", path(MODELS[dialect], "array"), json.dumps(HELLO))
            answer = connection.getresponse()
            data = b""
            while b"first" not in data:  # hangs, and fails by its timeout, if it is gathered
                piece = answer.read1(65536)
                assert piece
                data += piece
            assert not go.is_set() and json.loads(data.rstrip() + b"]")
            go.set()
            json.loads(data + answer.read())


# -- streams ---------------------------------------------------------------------------------------

LATE = {
    "cut": lambda dialect: stream(FIRST[dialect], end="cut"),
    "reset": lambda dialect: stream(FIRST[dialect], end="reset"),
    "stall": lambda dialect: stream(FIRST[dialect], end="hang"),
    "error": lambda dialect: stream(FIRST[dialect], ERRORS[dialect]),
    "no terminator": lambda dialect: stream(FIRST[dialect]),
    "nonsense": lambda dialect: stream(FIRST[dialect], b"data: {nonsense\n\n"),
    "after its end": lambda dialect: stream(*EVENTS[dialect](Turn("first"))[:-1], end="cut"),
    "half a call": lambda dialect: stream(
        FIRST[dialect], *EVENTS[dialect](CALLS)[-4:-2], end="cut"
    ),
}
LATE["after its end, of Gemini"] = lambda dialect: stream(*EVENTS[dialect](ANSWER), end="cut")


@pytest.mark.sampled(5)
@every_stream
@pytest.mark.parametrize("how", LATE)
@every_vendor
def test_a_stream_that_breaks_never_ends_politely(front, vendors, dialect, how, form):
    if how.endswith("Gemini") and dialect != "gemini":
        return
    vendors[dialect].script(LATE[how](dialect))
    answer = front.ask(path(MODELS[dialect], form), HELLO)
    assert answer.status == 200, answer.data
    assert b"finishReason" not in answer.data and b"secret words" not in answer.data
    assert b"functionCall" not in answer.data
    if form == "array":
        with pytest.raises(ValueError):
            json.loads(answer.data)
        found = json.loads(answer.data + b"]")
    else:
        found = chunks(answer.data, form)
    assert set(found[-1]) == {"error"}
    error = found[-1]["error"]
    assert isinstance(error["code"], int) and error["message"] and error["status"]
    assert not any("error" in one for one in found[:-1])


@every_stream
def test_heartbeats_are_empty_lines(front, vendors, monkeypatch, form):
    monkeypatch.setattr(provider_http, "HEARTBEAT_SECONDS", 0.05)
    go = threading.Event()
    vendors["openai"].script(stream(FIRST["openai"], go, *EVENTS["openai"](ANSWER)[1:]))
    timer = threading.Timer(0.3, go.set)
    timer.start()
    answer = front.ask(path("gpt-asked", form), HELLO)
    timer.join()
    assert fold(chunks(answer.data, form)).text == "first" + ANSWER.text
    _, _, rest = answer.data.partition(b"first")
    assert b"\r\n\r\n\r\n" in rest if form == "events" else b"}\r\n\r\n" in rest


def early(router):
    made = create_app(router)
    made.config["INFERMUX_EARLY_HEADERS"] = 0.1
    return made


@every_stream
def test_the_head_goes_out_early(vendors, form):
    """The stream is a whole one then, too; a failure after it is the last element."""
    go = threading.Event()
    for steps in ([go, *EVENTS["openai"](ANSWER)], [go]):
        go.clear()
        vendors["openai"].script(stream(*steps, end="end" if steps[1:] else "cut"))
        with Front(vendors["openai"].provider(), app=early) as front:
            connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=PATIENCE)
            with contextlib.closing(connection):
                connection.request("POST", path("gpt-asked", form), json.dumps(HELLO))
                answer = connection.getresponse()
                assert answer.status == 200 and not go.is_set()
                assert answer.read(2) == b"\r\n"
                go.set()
                data = answer.read()
        kind = "application/json" if form == "array" else "text/event-stream"
        assert answer.headers["Content-Type"].partition(";")[0] == kind
        if steps[1:]:
            assert fold(chunks(data, form)).text == ANSWER.text
        else:
            (last,) = chunks(data + b"]" if form == "array" else data, form)
            assert set(last) == {"error"} and not data.rstrip().endswith(b"]")


@every_stream
def test_the_figures_are_in_the_last_chunk(front, vendors, form):
    vendors["openai"].script(says("openai", ANSWER, streamed=True))
    answer = front.ask(path("gpt-asked", form), HELLO)
    *others, last = chunks(answer.data, form)
    assert last["infermux"]["provider"] == "openai" and last["infermux"]["attempts"] == 1
    assert not any("infermux" in one for one in others)


# -- errors ----------------------------------------------------------------------------------------


def is_error(answer: Any, status: int) -> JSON:
    """Check that an answer is an error in Google's shape; return it."""
    assert answer.status == status, answer.data
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert error["code"] == status and isinstance(error["message"], str)
    assert error["status"].isupper() and isinstance(error.get("details", []), list)
    return error


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("POST", "gpt-asked:generateContent"),
        ("POST", "gpt-asked:streamGenerateContent?alt=sse"),
        ("POST", "nobody:countTokens"),
        ("GET", "gpt-asked"),
        ("GET", ""),
    ],
)
@pytest.mark.parametrize("version", ["v1beta", "v1"])
def test_a_key_in_the_address_is_refused_first(front, vendors, caplog, method, where, version):
    vendors["openai"].script(reply({}))
    caplog.set_level(logging.DEBUG)
    address = f"/{version}/models/{where}".rstrip("/")
    address += ("&" if "?" in address else "?") + "key=AIzaSecretKey123"
    body = b"not even JSON" if method == "POST" else None
    answer = ask(front.port, address, body, method=method, headers={"x-goog-api-key": "any"})
    error = is_error(answer, 400)
    assert "x-goog-api-key" in error["message"] and not vendors["openai"].seen
    assert "SecretKey" not in answer.data.decode() + str(answer.headers) + caplog.text


def test_keys_of_callers(vendors):
    keyring = Keyring([(hashed("the-key"), Caller("web", models=["gpt-asked"]))])
    vendors["openai"].script(says("openai", ANSWER, streamed=False))
    with Front(vendors["openai"].provider(), keyring=keyring) as front:
        for headers in ({"x_goog_api_key": "the-key"}, {"authorization": "Bearer the-key"}):
            assert front.ask(path("gpt-asked", "whole"), HELLO, **headers).status == 200
        for headers in ({}, {"x_goog_api_key": "another"}):
            error = is_error(front.ask(path("gpt-asked", "whole"), HELLO, **headers), 401)
            assert error["status"] == "UNAUTHENTICATED"
        known = {"x_goog_api_key": "the-key"}
        is_error(front.ask(path("gpt-other", "whole"), HELLO, **known), 403)
        found = front.ask("/v1beta/models", **known).json["models"]
        assert [model["name"] for model in found] == ["models/gpt-asked"]
        is_error(front.ask("/v1beta/models"), 401)


ANSWERS = [(400, 400), (404, 404), (429, 429), (500, 502), (503, 503), (504, 504)]


@pytest.mark.sampled(4)
@every_form
@pytest.mark.parametrize(("status", "own"), ANSWERS)
def test_googles_own_errors_pass(vendors, status, own, form):
    details = [{"@type": "type.googleapis.com/google.rpc.Help", "links": [{"url": "x"}]}]
    error = {"code": status, "message": "its words", "status": "ODD_STATUS", "details": details}
    vendors["gemini"].script(reply({"error": error}, status))
    with Front(vendors["gemini"].provider()) as front:
        found = is_error(front.ask(path("gemini-asked", form), HELLO), own)
    assert (found["status"], found["details"]) == ("ODD_STATUS", details)
    assert ("its words" in found["message"]) == (status < 429)


@pytest.mark.parametrize(("status", "own"), [(400, 400), (429, 429), (500, 502)])
def test_other_vendors_errors_are_in_googles_form(vendors, status, own):
    error = {"message": "its words", "type": "t", "param": "messages", "code": "the_code"}
    vendors["openai"].script(reply({"error": error}, status, retry_after="7"))
    with Front(vendors["openai"].provider()) as front:
        found = is_error(front.ask(path("gpt-asked", "whole"), HELLO), own)
    kinds = [detail["@type"].rpartition(".")[2] for detail in found["details"]]
    assert kinds[0] == "ErrorInfo" and found["details"][0]["domain"] == "infermux"
    assert ("RetryInfo" in kinds) == (status != 400)
    if status != 400:
        assert found["details"][-1]["retryDelay"] == "7s"


@pytest.mark.parametrize("method", ["GET", "PUT"])
def test_other_methods_and_addresses(front, method):
    answer = ask(front.port, path("gpt-asked", "whole"), method=method)
    assert is_error(answer, 405)["status"] == "UNIMPLEMENTED" and answer.headers["Allow"] == "POST"
    error = is_error(front.ask("/v1beta/models/gpt-asked:predict", HELLO), 404)
    assert "generateContent" in error["message"]
    is_error(front.ask("/v1beta/cachedContents", HELLO), 404)


# -- lists, counts, vectors ------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["/v1/cachedContents", "/upload/v1/files", "/v1beta/files"])
def test_an_unknown_path_is_told_in_googles_form(front, where):
    answer = ask(front.port, where, {}, headers={"x-goog-api-key": "k"})
    error = answer.json["error"]
    assert (answer.status, error["code"], error["status"]) == (404, 404, "NOT_FOUND")


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
def test_the_tier_has_the_name_that_google_gives_it(front, vendors, dialect):
    own = {"openai": "default", "anthropic": "standard"}[dialect]
    whole = json.loads(WHOLE[dialect](Turn("Hi")))
    holder = whole if dialect == "openai" else whole["usage"]
    for tier, told in ((own, "standard"), ("priority", "priority"), ("another", None)):
        holder["service_tier"] = tier
        vendors[dialect].script(reply(whole))
        answer = front.ask(path(MODELS[dialect], "whole"), HELLO)
        assert answer.json["usageMetadata"].get("serviceTier") == told


@pytest.mark.parametrize("version", ["v1beta", "v1"])
def test_models(front, version):
    own = {"x_goog_api_client": "google-genai-sdk/9.9"}
    found = front.ask(f"/{version}/models", **own).json
    names = [model["name"] for model in found["models"]]
    assert names == [f"models/{model}" for model in (*MODELS.values(), "echo-v1")]
    token, pages = "", []
    while True:
        page = front.ask(f"/{version}/models?pageSize=3{token}", **own).json
        pages.append([model["name"] for model in page["models"]])
        if "nextPageToken" not in page:
            break
        token = f"&pageToken={page['nextPageToken']}"
    assert pages == [names[:3], names[3:]]
    is_error(front.ask(f"/{version}/models?pageSize=many", **own), 400)
    for name in ("openai/gpt-6-luna", "openai%2Fgpt-6-luna"):
        model = front.ask(f"/{version}/models/{name}", **own).json
        assert model["name"] == "models/openai/gpt-6-luna" and model["inputTokenLimit"] > 1000
        assert model["supportedGenerationMethods"] == ["generateContent", "countTokens"]
    vectors = front.ask(f"/{version}/models/openai/text-embedding-3-small", **own).json
    assert vectors["supportedGenerationMethods"] == ["embedContent", "batchEmbedContents"]
    is_error(front.ask(f"/{version}/models/nobody", **own), 404)


def test_openais_clients_get_their_own_list(front):
    assert front.ask("/v1/models").json["object"] == "list"


@pytest.mark.parametrize("wrapped", [False, True])
def test_tokens_are_counted_by_the_vendor_or_estimated(front, vendors, wrapped):
    body = HELLO
    if wrapped:
        body = {"generateContentRequest": {"model": "models/x"} | HELLO}
    own = vendors["gemini"].script(reply({"totalTokens": 9, "x": 1}))
    found = front.ask("/v1beta/models/gemini-asked:countTokens", body)
    assert found.json == {"totalTokens": 9, "x": 1}
    assert own.seen[-1].path == "/v1beta/models/gemini-asked:countTokens"
    vendors["anthropic"].script(reply({"input_tokens": 11}))
    found = front.ask("/v1beta/models/claude-asked:countTokens", body).json
    assert found == {"totalTokens": 11}
    assert vendors["anthropic"].seen[-1].body["messages"] == [{"role": "user", "content": "hello"}]
    found = front.ask("/v1beta/models/gpt-asked:countTokens", body).json
    assert found["totalTokens"] >= 1 and found["infermux"] == {"estimated": True}


def test_embeddings_of_every_vendor_that_has_them(front, vendors):
    data = [{"object": "embedding", "index": n, "embedding": [n, 0.5]} for n in range(2)]
    vendor = vendors["openai"].script(
        reply({"object": "list", "data": data, "model": "x", "usage": {"prompt_tokens": 3}})
    )
    one = {"content": said("a"), "outputDimensionality": 2, "taskType": "RETRIEVAL_QUERY"}
    two = one | {"content": {"parts": [{"text": "b"}, {"text": "c"}]}}
    address = "/v1beta/models/openai/text-embedding-3-small"
    answer = front.ask(f"{address}:batchEmbedContents", {"requests": [one, two]})
    assert [each["values"] for each in answer.json["embeddings"]] == [[0, 0.5], [1, 0.5]]
    asked_for = {"model": "text-embedding-3-small", "input": ["a", "bc"], "dimensions": 2}
    assert vendor.seen[-1].path == "/v1/embeddings" and vendor.seen[-1].body == asked_for
    assert answer.headers["X-Infermux-Dropped"] == "taskType"
    answer = front.ask(f"{address}:embedContent", one)
    assert answer.json["embedding"] == {"values": [0, 0.5]}
    assert vendor.seen[-1].body["input"] == "a"
    error = front.ask(f"{address}:batchEmbedContents", {"requests": [one, {"content": said("b")}]})
    assert "requests[1]" in is_error(error, 400)["message"]
    is_error(front.ask("/v1beta/models/claude-asked:embedContent", one), 400)
    is_error(front.ask("/v1beta/models/echo-v1:embedContent", one), 400)


def test_a_blueprint_of_its_own(vendors):
    def app(router):
        made = Flask("host")
        made.register_blueprint(gemini_blueprint(router), url_prefix="/llm")
        return made

    vendors["openai"].script(says("openai", ANSWER, streamed=False))
    with Front(vendors["openai"].provider(), app=app) as front:
        for version in ("v1", "v1beta"):
            answer = front.ask(f"/llm/{version}/models/gpt-asked:generateContent", HELLO)
            assert answer.json["candidates"][0]["content"]["parts"] == [{"text": ANSWER.text}]
            assert front.ask(f"/llm/{version}/models/gpt-asked").json["name"] == "models/gpt-asked"
