"""Hooks: what they see, change and refuse, with every API, vendor and way of answering."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
import threading
import time
from dataclasses import replace
from importlib import resources

import pytest
import redaction
from click.testing import CliRunner
from doors import (
    CLIENTS,
    EVENTS,
    MODELS,
    SIGNATURE,
    WHOLE,
    Front,
    Turn,
    Vendor,
    anthropic_event,
    openai_chunk,
    reply,
    says,
    sse,
    stream,
)
from openai_vendor import OpenAIVendor
from support import PATIENCE, eventually

import infermux
from infermux import Caller, EchoProvider, Hooks, HTTPProvider, Router, errors
from infermux.cli.main import main
from infermux.dialects.responses import Support
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price
from infermux.routing.explain import explain, question
from infermux.telemetry.metrics import Metrics
from infermux.telemetry.metrics import text as render
from infermux.telemetry.shared_memory import SharedMemory

DIALECTS = ("openai", "anthropic", "gemini")
MAIL = "bob.smith@mail.example.org"
ANSWER = Turn(f"Write to {MAIL}, or to a@b.org.", thought="Hm.")
HIDDEN = "Write to [mail], or to [mail]."
CALLING = Turn(f"Ask {MAIL}", (("send", {"to": MAIL}),))
PRICE = Price.of({"input": "1", "output": "2"}, provider="openai", id="m", place="test")
BOTH = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
EACH = pytest.mark.parametrize("client", CLIENTS.values(), ids=CLIENTS)


@pytest.fixture(scope="module")
def vendors():
    with contextlib.ExitStack() as stack:
        yield {dialect: stack.enter_context(Vendor(dialect)) for dialect in DIALECTS}


@pytest.fixture(scope="module")
def redacting(vendors):
    hooks = {name: getattr(redaction, name) for name in ("before", "after", "chunk")}
    providers = [vendor.provider(api="chat") for vendor in vendors.values()]
    with Front(*providers, hooks=hooks) as running:
        yield running


def asked(front, client, model, words, *, streamed):
    """Return what a client understands, and the bytes that it got."""
    said = [{"role": "user", "content": words}]
    body = client.body(model, said, streamed=streamed)
    headers = dict(client.wants)
    if streamed and client.name == "mist":
        headers["Accept"] = "text/event-stream"
    answer = front.ask(client.path, body, **headers)
    assert answer.status == 200, answer.data
    got = client.fold(sse(answer.data)) if streamed else client.read(answer.data)
    return got, answer.data


@BOTH
@pytest.mark.parametrize("dialect", DIALECTS)
@EACH
def test_redaction(redacting, vendors, client, dialect, streamed):
    vendor = vendors[dialect].script(says(dialect, ANSWER, streamed=streamed))
    words = f"I am {MAIL}; who are you?"
    got, data = asked(redacting, client, MODELS[dialect], words, streamed=streamed)
    sent = vendor.seen[-1].data.decode()
    assert MAIL not in sent and "I am [mail]; who are you?" in sent
    assert got.text == HIDDEN
    assert b"bob" not in data and b"a@b" not in data


@pytest.mark.sampled(12)
@BOTH
@pytest.mark.parametrize("dialect", DIALECTS)
@EACH
def test_words_before_a_call_are_not_lost(redacting, vendors, client, dialect, streamed):
    vendors[dialect].script(says(dialect, CALLING, streamed=streamed))
    got, _ = asked(redacting, client, MODELS[dialect], "hi", streamed=streamed)
    assert got.text == "Ask [mail]" and [call[1] for call in got.calls] == ["send"]
    if not streamed:
        assert got.calls[0][2] == {"to": "[mail]"}


@BOTH
@pytest.mark.parametrize("dialect", DIALECTS)
def test_redaction_before_clients_of_gemini(redacting, vendors, dialect, streamed):
    vendors[dialect].script(says(dialect, ANSWER, streamed=streamed))
    method = "streamGenerateContent?alt=sse" if streamed else "generateContent"
    path = f"/v1beta/models/{MODELS[dialect]}:{method}"
    answer = redacting.ask(path, {"contents": [{"role": "user", "parts": [{"text": MAIL}]}]})
    assert answer.status == 200 and MAIL not in vendors[dialect].seen[-1].data.decode()
    bodies = [each.json for each in sse(answer.data)] if streamed else [json.loads(answer.data)]
    parts = [part for body in bodies for part in body["candidates"][0]["content"].get("parts", ())]
    assert "".join(part["text"] for part in parts if not part.get("thought")) == HIDDEN
    assert bodies[-1]["candidates"][0]["finishReason"] == "STOP"


# -- what a hook does not touch ----------------------------------------------------------------------


def test_what_a_hook_does_not_touch_reaches_the_vendor(redacting, vendors):
    body = {
        "model": MODELS["anthropic"],
        "max_tokens": 99,
        "system": [{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": MAIL}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": SIGNATURE},
                    {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {}},
                    {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": []},
                    {"type": "tool_use", "id": "toolu_1", "name": "send", "input": {"to": MAIL}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sent"},
                    {"type": "text", "text": "go on", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
        "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 2}],
        "thinking": {"type": "enabled", "budget_tokens": 3333},
        "container": "c1",
    }  # fmt: skip
    vendor = vendors["anthropic"].script(says("anthropic", ANSWER, streamed=False))
    answer = redacting.ask("/v1/messages", body, anthropic_beta="some-beta")
    assert answer.status == 200
    seen = vendor.seen[-1]
    assert seen.body == json.loads(json.dumps(body).replace(MAIL, "[mail]"))
    assert seen.headers["anthropic-beta"] == "some-beta"


def test_what_a_hook_does_not_touch_reaches_the_client(redacting, vendors):
    body = json.loads(WHOLE["openai"](ANSWER))
    first = body["choices"][0] | {"logprobs": {"content": [{"token": "bob"}]}}
    second = {
        "index": 1,
        "message": {"role": "assistant", "content": f"Or {MAIL}"},
        "finish_reason": "stop",
        "logprobs": None,
    }
    body |= {"choices": [first, second], "system_fingerprint": "fp_1", "x_own": {"a": 1}}
    vendors["openai"].script(reply(body))
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}], "n": 2}
    got = json.loads(redacting.ask("/v1/chat/completions", asked).data)
    assert [choice["message"]["content"] for choice in got["choices"]] == [HIDDEN, "Or [mail]"]
    assert (got["system_fingerprint"], got["x_own"], got["id"]) == ("fp_1", {"a": 1}, "chatcmpl-1")
    assert got["choices"][0]["logprobs"] is None and got["usage"] == body["usage"]


@pytest.mark.parametrize("number", [0, 1])
def test_a_change_that_would_cost_another_choice_is_a_failure(vendors, number):
    def cite(answer, call):
        if call.choice == number:
            answer.annotations = [{"type": "url_citation", "url_citation": {"url": "http://x"}}]

    body = json.loads(WHOLE["openai"](Turn("Hello")))
    body["choices"].append(body["choices"][0] | {"index": 1})
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}], "n": 2}
    for on_error, status in (("closed", 503), ("open", 200)):
        vendors["openai"].script(reply(body))
        hooks = {"after": cite, "on_error": on_error}
        with Front(vendors["openai"].provider(), hooks=hooks) as front:
            answer = front.ask("/v1/chat/completions", asked)
            assert answer.status == status
            assert front.spans[-1].attrs["hooks"] == {"after": "failed"}
            assert status == 503 or json.loads(answer.data)["choices"] == body["choices"]


def test_each_choice_of_a_stream_is_hidden_by_itself(redacting, vendors):
    def event(choice, text, finish=None):
        delta = {"content": text} if text else {}
        one = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": finish}
        return openai_chunk(None, choices=[one])

    events = [event(0, "a b"), event(1, "c d"), event(0, "ob@x.org"), event(1, "an@y.org")]
    events += [event(0, "", "stop"), event(1, "", "stop"), b"data: [DONE]\n\n"]
    vendors["openai"].script(stream(*events))
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}]}
    answer = redacting.ask("/v1/chat/completions", asked | {"n": 2, "stream": True})
    words = {0: "", 1: ""}
    for each in sse(answer.data)[:-1]:
        for choice in each.json["choices"]:
            words[choice["index"]] += choice["delta"].get("content") or ""
    assert words == {0: "a [mail]", 1: "c [mail]"}


CITED = [{"type": "url_citation", "url_citation": {"url": "http://x"}}]
TWO = [("Hello ", 0), ("b", 1), ("you", 0), ("ob@x.org", 1), ("", 0), ("!", 1), ("", 1)]


@pytest.mark.parametrize("on_error", ["closed", "open"])
@pytest.mark.parametrize(
    "more", [{}, {"hold": False}, {"chunk": lambda chunk: None}], ids=["held", "sent", "chunk"]
)
def test_the_whole_of_each_choice_of_a_stream_is_seen(vendors, more, on_error):
    """Or else one could say what the first must not."""
    seen = []

    def hide(answer, call):
        seen.append((call.choice, answer.content, answer.finish_reason))
        answer.content = answer.content.replace("bob@x.org", "[mail]")

    def cite(answer, call):
        answer.annotations = CITED if call.choice else []

    def refuse(answer):
        if "bob@x.org" in answer.content:
            raise errors.HookRefused("not this", status=451)

    def ask(hook):
        events = []
        for text, number in TWO:
            delta = {"content": text} if text else {}
            one = {"index": number, "delta": delta, "finish_reason": None if text else "stop"}
            events.append(openai_chunk(None, choices=[one]))
        vendors["openai"].script(stream(*events, b"data: [DONE]\n\n"))
        asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}]}
        hooks = {"after": hook, "on_error": on_error, **more}
        with Front(vendors["openai"].provider(), hooks=hooks) as front:
            answer = front.ask("/v1/chat/completions", asked | {"n": 2, "stream": True})
            return answer, front.spans[-1].attrs["hooks"]["after"]

    answer, outcome = ask(hide)
    assert seen == [(0, "Hello you", "stop"), (1, "bob@x.org!", "stop")]
    assert outcome == "changed"
    assert (b"[mail]" in answer.data, b"ob@x.org" in answer.data) == (not more, bool(more))
    answer, outcome = ask(refuse)
    assert (answer.status, outcome) == (200 if more else 451, "refused")
    assert b"[DONE]" not in answer.data
    answer, outcome = ask(cite)
    if not more:  # else what was sent stays as it is
        assert (answer.status, outcome) == (503 if on_error == "closed" else 200, "failed")
        assert (b"ob@x.org" in answer.data) is (on_error == "open")


@pytest.mark.parametrize(("hook", "streamed"), [("after", False), ("after", True), ("chunk", True)])
def test_the_calls_of_each_choice_are_seen(vendors, hook, streamed):
    def hide(found):
        calls = json.loads(json.dumps(list(found.tool_calls)).replace("bob@x.org", "[mail]"))
        if hook == "chunk":
            return found._replace(tool_calls=calls)
        found.tool_calls = calls
        return found

    choices = []
    for number, name in enumerate(["f", "g"]):
        function = {"name": name, "arguments": '{"to": "bob@x.org"}'}
        call = {"index": 0, "id": f"call_{name}", "type": "function", "function": function}
        said = {"role": "assistant", "content": None, "tool_calls": [call]}
        said = {"delta" if streamed else "message": said}
        choices.append({"index": number, "finish_reason": "tool_calls", **said})
    events = [openai_chunk(None, choices=[each]) for each in choices]
    whole = json.loads(WHOLE["openai"](ANSWER)) | {"choices": choices}
    vendors["openai"].script(stream(*events, b"data: [DONE]\n\n") if streamed else reply(whole))
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}]}
    with Front(vendors["openai"].provider(), hooks={hook: hide}) as front:
        answer = front.ask("/v1/chat/completions", asked | {"n": 2, "stream": streamed})
    assert answer.status == 200 and b"bob@x.org" not in answer.data
    assert b"call_g" in answer.data and answer.data.count(b"[mail]") >= 2


def test_an_older_call_of_another_choice_is_seen(vendors):
    def refuse(answer):
        if "bob@x.org" in str(answer.tool_calls):
            raise errors.HookRefused("not this", status=451)

    body = json.loads(WHOLE["openai"](Turn("Hello")))
    said = {"role": "assistant", "function_call": {"name": "f", "arguments": '"bob@x.org"'}}
    body["choices"].append({"index": 1, "message": said, "finish_reason": "function_call"})
    vendors["openai"].script(reply(body))
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}], "n": 2}
    with Front(vendors["openai"].provider(), hooks={"after": refuse}) as front:
        assert front.ask("/v1/chat/completions", asked).status == 451


def test_a_stream_that_hooks_do_not_change_passes_as_it_is(vendors):
    events = EVENTS["anthropic"](Turn("Hello you", thought="Hm."))
    cited = anthropic_event(
        "content_block_delta",
        index=1,
        delta={"type": "citations_delta", "citation": {"cited_text": "x"}},
    )
    events.insert(-3, cited)
    with Front(vendors["anthropic"].provider(), hooks={"chunk": lambda chunk: None}) as front:
        vendors["anthropic"].script(stream(*events))
        body = {"model": MODELS["anthropic"], "max_tokens": 9, "stream": True}
        body["messages"] = [{"role": "user", "content": "hi"}]
        answer = front.ask("/v1/messages", body)
    assert answer.data.startswith(b"".join(events[:-1]))


# -- the Responses API --------------------------------------------------------------------------------


@pytest.fixture
def stateful():
    with OpenAIVendor() as vendor:
        provider = HTTPProvider(
            "openai",
            base_url=f"{vendor.url}/v1",
            api_key="k",
            models=["gpt-4.1"],
            responses=Support(stores=True),
        )
        hooks = {
            "before": lambda request: replace(
                request, messages=json.loads(json.dumps(request.messages).replace(MAIL, "[mail]"))
            ),
            "after": shout,
            "chunk": lambda chunk: chunk._replace(text=chunk.text.upper()),
        }
        with Front(provider, hooks=hooks) as front:
            yield front, vendor


def shout(answer):
    answer.content = answer.content.upper()


def test_stored_responses_are_seen_whenever_they_are_read(stateful):
    front, vendor = stateful
    asked = {"model": "gpt-4.1", "input": [{"role": "user", "content": MAIL}], "store": True}
    made = json.loads(front.ask("/v1/responses", asked).data)
    assert made["output"][0]["content"][0]["text"] == "SUNNY."
    assert vendor.seen[-1][2]["input"] == [{"role": "user", "content": "[mail]"}]
    answer = front.ask(f"/v1/responses/{made['id']}")
    assert json.loads(answer.data)["output"][0]["content"][0]["text"] == "SUNNY."
    assert json.loads(answer.data)["created_at"] == 1900000000


def test_every_event_of_a_responses_stream_says_the_same(stateful):
    front, _ = stateful
    asked = {"model": "gpt-4.1", "input": "hi", "stream": True}
    events = sse(front.ask("/v1/responses", asked).data)
    text = "".join(
        each.json["delta"] for each in events if each.name == "response.output_text.delta"
    )
    assert text == "SUNNY."
    done = next(each.json for each in reversed(events) if each.name.endswith("item.done"))
    assert done["item"]["content"][0]["text"] == "SUNNY."
    last = events[-1].json
    assert last["type"] == "response.completed"
    assert last["response"]["output"][-1]["content"][0]["text"] == "SUNNY."
    assert [each.json["sequence_number"] for each in events] == list(range(len(events)))


def test_words_that_were_kept_back_go_before_the_end_of_their_block(stateful):
    front, _ = stateful

    def late(chunk, call):
        text = call.state.get("text", "") + chunk.text
        call.state["text"] = text
        return chunk._replace(text=text.lower() if chunk.finish_reason else "")

    front.router.hooks = Hooks(chunk=late)
    events = sse(
        front.ask("/v1/responses", {"model": "gpt-4.1", "input": "hi", "stream": True}).data
    )
    names = [each.name for each in events]
    deltas = [each.json["delta"] for each in events if each.name == "response.output_text.delta"]
    assert "".join(deltas) == "sunny."
    assert names.index("response.output_item.done") > max(
        number for number, name in enumerate(names) if name == "response.output_text.delta"
    )
    assert events[-1].json["response"]["output"][0]["content"][0]["text"] == "sunny."
    assert [each.json["sequence_number"] for each in events] == list(range(len(events)))


def test_items_of_a_conversation_are_seen(stateful):
    front, vendor = stateful
    made = json.loads(front.ask("/v1/conversations", {"items": []}).data)
    path = f"/v1/conversations/{made['id']}/items"
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": MAIL}]}
    front.ask(path, {"items": [item]})
    assert vendor.seen[-1][2]["items"][0]["content"][0]["text"] == "[mail]"


# -- refusals -----------------------------------------------------------------------------------------


class Confidential(errors.InferMuxError):
    status, code, type = 451, "confidential", "policy_error"


def refuse(*_):
    raise Confidential("this must stay inside")


CODES = {
    "openai": lambda body: body["error"]["code"],
    "anthropic": lambda body: body["error"]["code"],
    "responses": lambda body: body["error"]["code"],
    "mist": lambda body: body["error"]["code"],
}


@pytest.mark.sampled(1)
@pytest.mark.sampled(6)
@EACH
@pytest.mark.parametrize("hook", ["before", "after", "chunk"])
def test_a_refusal_reaches_the_client_as_it_is(vendors, client, hook, tmp_path):
    streamed = hook == "chunk"
    vendors["openai"].script(says("openai", ANSWER, streamed=streamed))
    ledger = SQLiteLedger(str(tmp_path / "l.db"))
    prices = {"openai": {MODELS["openai"]: PRICE}}
    provider = vendors["openai"].provider(api="chat")
    with Front(provider, hooks={hook: refuse}, ledger=ledger, prices=prices) as front:
        body = client.body(MODELS["openai"], [{"role": "user", "content": "hi"}], streamed=streamed)
        headers = {"Accept": "text/event-stream"} if streamed and client.name == "mist" else {}
        answer = front.ask(client.path, body, **client.wants, **headers)
        assert answer.status == 451
        error = json.loads(answer.data)
        assert CODES[client.name](error) == "confidential"
        assert error["error"]["message"] == "this must stay inside"
        row = ledger.rows(limit=1)[0]
        assert row.call.status == "451" and row.call.error_code == "confidential"
        assert (row.call.cost or 0) == 0 if hook == "before" else row.call.cost > 0
        assert bool(vendors["openai"].seen) == (hook != "before")
        span = front.spans[-1]
        assert span.attrs["hooks"] == {hook: "refused"} and span.status == "error"


@pytest.mark.sampled(6)
@EACH
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_that_is_refused_has_no_polite_end(vendors, client, dialect):
    def later(chunk, call):
        call.state["n"] = call.state.get("n", 0) + 1
        if call.state["n"] > 3:
            refuse()

    vendors[dialect].script(says(dialect, ANSWER, streamed=True))
    with Front(vendors[dialect].provider(api="chat"), hooks={"chunk": later}) as front:
        check_cut(front, client, dialect)
        breaker = next(iter(front.router.targets.breakers().values()))
        assert breaker.snapshot().failures == 0  # it is not the vendor's failure


@pytest.mark.sampled(1)
@pytest.mark.sampled(6)
@EACH
@pytest.mark.parametrize("dialect", DIALECTS)
def test_after_may_refuse_the_end_of_a_stream(vendors, client, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=True))
    hooks = {"chunk": lambda chunk: None, "after": refuse}
    with Front(vendors[dialect].provider(api="chat"), hooks=hooks) as front:
        data = check_cut(front, client, dialect)
    assert b"Write" in data  # it was sent before


def check_cut(front, client, dialect):
    body = client.body(MODELS[dialect], [{"role": "user", "content": "hi"}], streamed=True)
    headers = {"Accept": "text/event-stream"} if client.name == "mist" else {}
    answer = front.ask(client.path, body, **client.wants, **headers)
    assert answer.status == 200
    text = answer.data.decode()
    assert "this must stay inside" in text and "confidential" in text
    for mark in ("[DONE]", '"message_stop"', "response.completed", "infer.response"):
        assert mark not in text
    for mark in ('"finish_reason":"stop"', '"stop_reason":"end_turn"', '"finish_reason": "stop"'):
        assert mark not in text
    return answer.data


@pytest.mark.sampled(6)
@EACH
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_is_held_back_for_after(vendors, client, dialect):
    vendors[dialect].script(says(dialect, ANSWER, streamed=True))
    with Front(vendors[dialect].provider(api="chat"), hooks={"after": redaction.after}) as front:
        got, data = asked(front, client, MODELS[dialect], "hi", streamed=True)
    assert got.text == HIDDEN and b"bob" not in data


def test_a_stream_that_is_held_back_is_refused_with_a_status(vendors):
    vendors["openai"].script(says("openai", ANSWER, streamed=True))
    with Front(vendors["openai"].provider(), hooks={"after": refuse}) as front:
        body = {"model": MODELS["openai"], "messages": [{"role": "user", "content": "hi"}]}
        assert front.ask("/v1/chat/completions", body | {"stream": True}).status == 451


def test_calls_of_a_stream_that_is_held_back_are_changed(vendors):
    for dialect in DIALECTS:
        vendors[dialect].script(says(dialect, CALLING, streamed=True))
        provider = vendors[dialect].provider(api="chat")
        with Front(provider, hooks={"after": redaction.after}) as front:
            for client in CLIENTS.values():
                got, _ = asked(front, client, MODELS[dialect], "hi", streamed=True)
                assert got.text == "Ask [mail]" and got.calls[0][2] == {"to": "[mail]"}


# -- failures and time --------------------------------------------------------------------------------


def broken(value):
    raise ZeroDivisionError


def late(value):
    LATE.wait(PATIENCE)


LATE = threading.Event()
FAILING = pytest.mark.parametrize("bad", [broken, late, lambda value: "words"])


@pytest.mark.sampled(1)
@pytest.mark.sampled(1)
@pytest.mark.sampled(5)
@FAILING
@pytest.mark.parametrize("hook", ["before", "after", "chunk"])
def test_a_failed_hook_is_closed_or_open(vendors, hook, bad, caplog):
    streamed = hook == "chunk"
    body = {"model": MODELS["openai"], "stream": streamed}
    body["messages"] = [{"role": "user", "content": "hi"}]
    for on_error, status in (("closed", 503), ("open", 200)):
        vendors["openai"].script(says("openai", Turn("hi"), streamed=streamed))
        hooks = {hook: bad, "on_error": on_error, "timeout": 0.05}
        with Front(vendors["openai"].provider(), hooks=hooks) as front:
            answer = front.ask("/v1/chat/completions", body)
            assert answer.status == status, answer.data
            assert front.spans[-1].attrs["hooks"] == {hook: "failed"}
            if status == 503:
                assert json.loads(answer.data)["error"]["code"] == "hook_failed"
                assert b"ZeroDivision" not in answer.data
    LATE.set()
    LATE.clear()


def test_a_hook_may_yield_its_chunks():
    """What it does between them is bounded in time, and refuses, as if it had returned them."""

    def twice(chunk):
        yield chunk
        yield chunk

    def refusing(chunk):
        yield chunk
        raise errors.HookRefused("not this", status=451)

    def late_to_yield(chunk):
        yield late(chunk)

    def said(hook):
        hooks = {"chunk": hook, "on_error": "open", "timeout": 0.05}
        asked = infermux.InferRequest(model="echo", messages=[{"role": "user", "content": "hi"}])
        return "".join(each.text for each in Router([EchoProvider()], hooks=hooks).stream(asked))

    assert said(twice) == "echo: echo: hihi"
    with pytest.raises(errors.HookRefused, match="not this"):
        said(refusing)
    assert said(late_to_yield) == "echo: hi"
    LATE.set()
    LATE.clear()


NO_ANSWERS = {
    "content": {"content": 5},
    "nothing": {"content": None},
    "end": {"finish_reason": 5},
    "calls": {"tool_calls": "x"},
    "nameless": {"tool_calls": [{}]},
    "arguments": {"tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
    "usage": {"usage": 5},
    "annotations": {"annotations": [{"type": "url_citation"}]},
    "images": {"images": [5]},
    "details": {"details": 5},
    "id": {"id": 5},
    "extra": {"extra": 5},
    "no JSON": {"annotations": [{"url_citation": {"url": "https://x", "title": {5}}}]},
}
NO_CHUNKS = {
    "usage": {"usage": {"total_tokens": 5}},
    "annotations": {"annotations": 5},
    "images": {"images": [{"image_url": "x"}]},
    "details": {"details": [None]},
    "text": {"text": 5},
    "end": {"finish_reason": 5},
    "calls": {"tool_calls": [{}]},
    "part": {"tool_calls": [{"index": 0, "function": "f"}]},
}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("members", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_what_is_no_answer_is_a_failed_hook(streamed, members):
    refused(CHATS | {"stream": streamed}, after=lambda answer: replace(answer, **members))


@pytest.mark.parametrize("members", NO_CHUNKS.values(), ids=NO_CHUNKS)
def test_what_is_no_chunk_is_a_failed_hook(members):
    refused(CHATS | {"stream": True}, chunk=lambda chunk: chunk._replace(**members))


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "wrong", [{"status": 200}, {"code": "a\nb"}, {"code": "x" * 101}, {"status": 999}]
)
def test_a_refusal_that_cannot_be_told_is_a_failed_hook(wrong):
    def before(request):
        raise infermux.HookRefused("no", **wrong)

    refused(CHATS, before=before)


CHATS = {"model": "echo-v1", "messages": [{"role": "user", "content": "hi"}]}


def refused(body, **hook):
    """Check that *hook* has failed: closed is 503, and open the answer without it."""
    for on_error, status in (("closed", 503), ("open", 200)):
        router = Router([EchoProvider()], hooks={**hook, "on_error": on_error})
        client = infermux.create_app(router).test_client()
        for path, more in (("/v1/chat/completions", {}), ("/v1/messages", {"max_tokens": 9})):
            answer = client.post(path, json=body | more)
            assert answer.status_code == status, answer.text
            assert "hook_failed" in answer.text or status == 200
            assert "internal" not in answer.text


def test_hooks_run_on_bounded_threads(vendors):
    release, seen = threading.Event(), []

    def hang(request):
        seen.append(request.messages[0]["content"])
        release.wait(PATIENCE)

    hooks = Hooks(before=hang, timeout=0.05, threads=2)
    with Front(vendors["openai"].provider(), hooks=hooks) as front:
        before = threading.active_count()
        for number in range(6):
            with pytest.raises(errors.HookFailed):
                front.router.infer(f"late {number}", model=MODELS["openai"])
        assert threading.active_count() <= before + 2
        release.set()
        vendors["openai"].script(says("openai", Turn("hi"), streamed=False))
        eventually(lambda: passes(front), "the threads are free again")
        assert len([each for each in seen if "late" in each]) == 2  # nobody waits for the others


def passes(front):
    with contextlib.suppress(errors.HookFailed):
        return front.router.infer("hi", model=MODELS["openai"]).content == "hi"
    return False


def test_the_time_of_hooks_is_overhead(vendors):
    vendors["openai"].script(says("openai", Turn("hi"), streamed=True))
    memory = SharedMemory()
    with Front(
        vendors["openai"].provider(), hooks={"chunk": lambda chunk: time.sleep(0.05)}
    ) as front:
        metrics = Metrics(memory, front.router.registry)
        front.router.observers.append(metrics.count)
        with front.router.stream("hi", model=MODELS["openai"]) as answer:
            for _ in answer:
                pass
    text = render(memory.counts(), {}).decode()
    assert 'infermux_hooks_total{hook="chunk",outcome="passed"} 1' in text
    [own] = re.findall(r"infermux_overhead_seconds_sum (\S+)", text)
    assert float(own) >= 0.05


def test_a_hook_may_send_a_call_elsewhere(vendors):
    vendors["anthropic"].script(says("anthropic", Turn("hi"), streamed=False))
    providers = [vendors[name].provider(api="chat") for name in ("openai", "anthropic")]
    hooks = {"before": lambda request: replace(request, model=MODELS["anthropic"])}
    with Front(*providers, hooks=hooks) as front:
        assert front.router.infer("x", model=MODELS["openai"]).provider == "anthropic"
        caller = Caller("web", models=[MODELS["openai"]])
        with pytest.raises(errors.ModelNotAllowed):
            front.router.infer("x", model=MODELS["openai"], caller=caller)


# -- configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ('before = "guards.pii"', '[hooks].before must be "package.module:function"'),
        ('before = "guards:nothing"', "[hooks].before: guards has no 'nothing'"),
        ('before = "guards:chek"', "did you mean 'check'?"),
        ('after = "nowhere.guards:check"', "there is no module 'nowhere'"),
        ('after = "guards:NUMBER"', "the hook after is not callable: int"),
        ('chunk = "guards:slow"', "the hook chunk is async"),
        ('chunk = "guards:many"', "the hook chunk has a wrong signature, (a, b, c)"),
        ('before = "guards:Guard"', "the hook before is the class Guard"),
        ('before = "bad_guards:check"', "bad_guards cannot be imported: ValueError: no"),
        ('on_error = "ajar"', "[hooks].on_error must be 'closed' or 'open'"),
        ('befor = "guards:check"', "did you mean 'before'?"),
        ("timeout = 0", "[hooks].timeout must be"),
    ],
)
def test_what_cannot_be_a_hook_stops_the_start(tmp_path, written, told):
    (tmp_path / "guards.py").write_text(
        "NUMBER = 1\n\ndef check(request): pass\n\nasync def slow(chunk): pass\n\n"
        "def many(a, b, c): pass\n\nclass Guard:\n    def __init__(self, a): pass\n"
    )
    (tmp_path / "bad_guards.py").write_text("raise ValueError('no')\n")
    file = tmp_path / "infermux.toml"
    file.write_text(f"[hooks]\n{written}\n")
    with forgotten("guards", "bad_guards"), pytest.raises(errors.ConfigError) as caught:
        infermux.load(str(file)).close()
    assert told in str(caught.value)


@contextlib.contextmanager
def forgotten(*names):
    """Undo the import of modules beside a configuration."""
    path = list(sys.path)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in names:
            sys.modules.pop(name, None)


def test_hooks_of_the_configuration_are_explained(tmp_path):
    (tmp_path / "guards.py").write_text("def check(request): request.meta['seen'] = 'yes'\n")
    file = tmp_path / "infermux.toml"
    file.write_text('[hooks]\nbefore = "guards:check"\n')
    with forgotten("guards"):
        router = infermux.load(str(file))
        found = explain(router, question({"model": "echo-v1"})).to_dict()
        assert found["hooks"] == {"before": "guards:check"}
        assert router.infer("hi", model="echo-v1").content == "echo: hi"
        router.close()


@pytest.fixture
def configured(vendors, tmp_path):
    """A configuration whose hooks hide mail addresses, and its vendor."""
    (tmp_path / "hiding.py").write_text(inspect.getsource(redaction))
    file = tmp_path / "infermux.toml"
    file.write_text(f"""
[providers.openai]
base_url = "{vendors["openai"].url}/v1"
api_key = "env:VENDOR"
models = ["{MODELS["openai"]}"]
[hooks]
before = "hiding:before"
after = "hiding:after"
[ledger]
path = ""
""")
    with forgotten("hiding"):
        yield file, vendors["openai"].script(says("openai", ANSWER, streamed=False))


def command(*words):
    return CliRunner().invoke(main, [*words], env={"VENDOR": "sk-vendor"})


@BOTH
def test_the_command_infer_runs_the_hooks(configured, streamed):
    file, vendor = configured
    vendor.script(says("openai", ANSWER, streamed=streamed))
    answer = command("infer", f"I am {MAIL}", "-c", str(file), *["--stream"] * streamed)
    assert answer.exit_code == 0, answer.output
    sent = vendor.seen[-1].data.decode()
    assert MAIL not in sent and "I am [mail]" in sent
    assert HIDDEN in answer.stdout and "bob" not in answer.stdout


def test_the_command_batch_runs_the_hooks(configured, tmp_path):
    file, vendor = configured
    asked = {"model": MODELS["openai"], "messages": [{"role": "user", "content": f"I am {MAIL}"}]}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": asked}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    out = tmp_path / "out.jsonl"
    answer = command("batch", str(tmp_path / "in.jsonl"), "-o", str(out), "-c", str(file), "-q")
    assert answer.exit_code == 0, answer.output
    sent = vendor.seen[-1].data.decode()
    assert MAIL not in sent and "I am [mail]" in sent
    [found] = [json.loads(each) for each in out.read_text().splitlines()]
    body = found["response"]["body"]
    assert body["choices"][0]["message"]["content"] == HIDDEN
    refusing = (
        'import infermux\ndef before(request): raise infermux.HookRefused("no", code="own")\n'
    )
    (tmp_path / "refusing.py").write_text(refusing)
    file.write_text(file.read_text().replace("hiding:before", "refusing:before"))
    with forgotten("refusing"):
        answer = command("batch", str(tmp_path / "in.jsonl"), "-o", f"{out}2", "-c", str(file))
    assert "1 failed" in answer.output
    assert '"code":"own"' in (tmp_path / "out.jsonl2").read_text()


def test_validate_warns_of_requests_that_no_hook_sees(configured):
    file, _ = configured
    warning = "[hooks] do not see requests in files and batches"
    text = file.read_text()
    file.write_text(text := text.replace("[hooks]", '[hooks]\nunseen = "pass"'))
    answer = command("validate", "-c", str(file))
    assert answer.exit_code == 0 and f"{warning}, which pass to openai" in answer.stderr
    assert "openai and answers that are images, audio or files; unseen" in answer.stderr
    for old, new in [
        ('unseen = "pass"', ""),
        ("[hooks]", '[hooks]\non_error = "open"'),
        ('before = "hiding:before"', ""),
        ("models =", 'endpoints = ["none"]\nmodels ='),
    ]:
        file.write_text(text.replace(old, new))
        answer = command("validate", "-c", str(file))
        assert answer.exit_code == 0 and warning not in answer.output, answer.output


def test_the_example_of_the_help_is_the_tested_one():
    text = resources.files("infermux").joinpath("help/hooks.md").read_text("utf-8")
    code = inspect.getsource(redaction).partition('"""\n\n')[2]
    assert code.strip() in text


def test_a_mapping_with_an_unknown_hook_is_refused():
    with pytest.raises(errors.ConfigError, match="did you mean 'before'"):
        Router([EchoProvider()], hooks={"befor": print})


@pytest.mark.parametrize("none", [None, {}, Hooks()], ids=["None", "mapping", "Hooks"])
def test_a_router_may_have_no_hooks(none):
    router = Router([EchoProvider()], hooks=none)
    assert router.infer("Hello").content == "echo: Hello"
    assert "".join(chunk.text for chunk in router.stream("Hello")) == "echo: Hello"
