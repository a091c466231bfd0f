"""Money in the hard cases, through the APIs: what vendors bill by, the worst case that is held, and
attempts of which nobody knows whether they were billed."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import requests
from flask.testing import FlaskClient
from support import Peer, eventually

from infermux import build, create_app
from infermux.admission.keys import hashed
from infermux.dialects.sizes import MAX_IMAGE, size_of
from infermux.pricing import find

KEY = "imx-test-key"
OWN = {"Authorization": f"Bearer {KEY}"}
HELLO = [{"role": "user", "content": "Hello"}]
USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
Reply = Callable[[Any], tuple[int, bytes, str]]


class Vendor(Peer):
    """Answers each request as `reply` says, and keeps the bodies."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.reply: Callable[[Any, Any], None] = lambda handler, body: None

    def answer(self, handler: Any, body: bytes) -> None:
        asked = json.loads(body or b"{}")
        self.seen.append(asked)
        self.reply(handler, asked)

    def says(self, body: Any, *, status: int = 200, delay: float = 0.0) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        kind = "text/event-stream" if data.startswith(b"data:") else "application/json"

        def reply(handler: Any, asked: Any) -> None:
            self.released.wait(delay)
            handler.reply(status, data, {"Content-Type": kind})

        self.reply = reply


@pytest.fixture
def vendor() -> Iterator[Vendor]:
    with Vendor() as running:
        yield running


def service(
    tmp_path: Path, vendor: Vendor, budget: str = "", more: str = "", timeouts: str = ""
) -> FlaskClient:
    budget = f"budget = {{ {budget} }}" if budget else ""
    file = tmp_path / "infermux.toml"
    prices = """
"sized" = { input = "1", output = "10", max_input = 10000, max_output = 1000 }
"open" = { input = "1", output = "10", max_input = 10000 }
"tiered" = { input = "1", output = "10", max_output = 100, service = { priority = "2", flex = "0.5", batch = "0.5" } }
"heard" = { input = "1", output = "10", input_audio = "50", output_audio = "100", max_output = 100 }
"thinks" = { input = "1", output = "10", reasoning = "20", max_output = 100 }
"searches" = { input = "1", output = "10", fees = { web_search = "10", request = "5" }, max_input = 10000, max_output = 100 }
"paints" = { input = "1", output = "10", output_image = "100", max_output = 100 }
"wordy" = { input = "100", output = "1", max_output = 100 }
"lengths" = { input = "1", output = "10", max_output = 100, tiers = [{ over = 1200, input = "5", output = "50" }] }
"runs" = { input = "1", output = "10", fees = { code_interpreter = "30" }, max_input = 10000, max_output = 100 }
"placed" = { input = "1", output = "10", geo = { us = "1.1" }, max_output = 100 }
"""
    text = f"""
[models]
first = ["openai/sized", "second/sized"]
[ledger]
path = "{tmp_path / "ledger.db"}"
[keys.web]
hash = "{hashed(KEY)}"
{budget}
"""
    for name, kind, path in (
        ("openai", "openai", "/v1"),
        ("second", "openai", "/second/v1"),
        ("anthropic", "anthropic", "/anthropic"),
        ("gemini", "gemini", "/gemini"),
    ):
        text += f"""
[providers.{name}]
type = "{kind}"
base_url = "{vendor.url}{path}"
api_key = "env:VENDOR"
models = ["sized", "open", "tiered", "heard", "thinks", "searches", "placed", "runs", "paints", "wordy", "lengths", "unknown"]
{timeouts}
[providers.{name}.prices]
{prices}"""
    file.write_text(text + more)
    router = build.router(build.settings({"VENDOR": "sk-v"}, str(file)))
    return create_app(router).test_client()


def ask(
    client: FlaskClient,
    model: str = "openai/sized",
    path: str = "/v1/chat/completions",
    **more: Any,
):
    body = {"model": model, "messages": HELLO} | more
    body = {name: value for name, value in body.items() if value is not None}
    return client.post(path, json=body, headers={"Authorization": f"Bearer {KEY}"})


def chat(usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": "Hi"}
    choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
    return {"id": "c", "model": "m", "choices": choices, "usage": usage} | more


def rows(client: FlaskClient) -> list[Any]:
    return client.application.extensions["infermux"].ledger.rows()


def cost(client: FlaskClient) -> int | None:
    return rows(client)[0].call.cost


def usage(**details: Any) -> dict[str, Any]:
    return USAGE | details


def responses(**more: Any) -> dict[str, Any]:
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "Hi", "annotations": []}]}  # fmt: skip
    return {"id": "r", "object": "response", "model": "m", "status": "completed", "output": [item],
            "usage": {"input_tokens": 1000, "output_tokens": 100, "total_tokens": 1100}} | more  # fmt: skip


def ran(kind: str, **more: Any) -> dict[str, Any]:
    """A response that has run something twice in a container of 4 GB."""
    calls = [{"type": f"{kind}_call", "id": f"{n}", "status": "completed"} | more for n in "ab"]
    tools = [{"type": kind, "container": {"type": "auto", "memory_limit": "4g"}}]
    return responses(output=[*calls, *responses()["output"]], tools=tools)


def claude(**more: Any) -> dict[str, Any]:
    used = {"input_tokens": 1000, "output_tokens": 100} | more
    return {"id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
            "content": [{"type": "text", "text": "Hi"}], "usage": used}  # fmt: skip


def google(grounding: Any = None, **more: Any) -> dict[str, Any]:
    candidate: dict[str, Any] = {
        "content": {"role": "model", "parts": [{"text": "Hi"}]},
        "finishReason": "STOP",
    }
    if grounding:
        candidate["groundingMetadata"] = grounding
    used = {"promptTokenCount": 1000, "candidatesTokenCount": 100, "totalTokenCount": 1100} | more
    return {"candidates": [candidate], "usageMetadata": used, "modelVersion": "m"}


MICRO = 10**6
PLAIN = 2000 * MICRO  # 1,000 tokens in at 1 USD per million, 100 out at 10
SEARCH = {
    "type": "web_search_call",
    "id": "w1",
    "status": "completed",
    "action": {"type": "search"},
}
OPENED = SEARCH | {"id": "w2", "action": {"type": "open_page"}}
AUDIO = {
    "prompt_tokens_details": {"audio_tokens": 400},
    "completion_tokens_details": {"audio_tokens": 50},
}
BILLS: list[tuple[str, str, Any, int | None]] = [
    ("plain", "openai/sized", chat(), PLAIN),
    ("priority", "openai/tiered", chat(service_tier="priority"), 2 * PLAIN),
    ("flex", "openai/tiered", chat(service_tier="flex"), PLAIN // 2),
    ("batch", "openai/tiered", chat(service_tier="batch"), PLAIN // 2),
    ("default", "openai/tiered", chat(service_tier="default"), PLAIN),
    ("priority, as it is called since 2026", "openai/tiered", chat(service_tier="fast"), 2 * PLAIN),
    ("unlisted tier", "openai/sized", chat(service_tier="priority"), None),
    ("unlisted tier by its new name", "openai/sized", chat(service_tier="fast"), None),
    ("audio", "openai/heard", chat(usage(**AUDIO)), (600 + 400 * 50 + 50 * 10 + 50 * 100) * MICRO),
    ("unlisted audio", "openai/sized", chat(usage(**AUDIO)), None),
    ("no audio", "openai/sized", chat(usage(prompt_tokens_details={"audio_tokens": 0})), PLAIN),
    ("unlisted image", "openai/sized", chat(usage(prompt_tokens_details={"image_tokens": 5})), None),
    ("reasoning", "openai/thinks", chat(usage(completion_tokens_details={"reasoning_tokens": 60})), 3200 * MICRO - 600 * MICRO),
    ("apart", "openai/sized", chat(usage(total_tokens=1300, completion_tokens_details={"reasoning_tokens": 200})), 4000 * MICRO),
    ("only in the total", "openai/sized", chat(usage(total_tokens=1300)), 4000 * MICRO),
    ("own key", "openai/sized", chat(usage(cost=0.01, is_byok=True, cost_details={"upstream_inference_cost": 0.2})), 210_000 * MICRO),
    ("not an own key", "openai/sized", chat(usage(cost=0.01, is_byok=False, cost_details={"upstream_inference_cost": 0.2})), 10_000 * MICRO),
    ("Responses", "openai/tiered", responses(service_tier="priority"), 2 * PLAIN),
    ("search", "openai/searches", responses(output=[*responses()["output"], SEARCH, OPENED]), PLAIN + 15_000 * MICRO),
    ("unlisted search", "openai/sized", responses(output=[*responses()["output"], SEARCH]), None),
    ("Anthropic's tier", "anthropic/tiered", claude(service_tier="priority"), 2 * PLAIN),
    ("Anthropic's batch", "anthropic/tiered", claude(service_tier="batch"), PLAIN // 2),
    ("Anthropic's search", "anthropic/searches", claude(server_tool_use={"web_search_requests": 2}), PLAIN + 25_000 * MICRO),
    ("region", "anthropic/placed", claude(inference_geo="us"), PLAIN * 11 // 10),
    ("everywhere", "anthropic/placed", claude(inference_geo="global"), PLAIN),
    ("unlisted region", "anthropic/sized", claude(inference_geo="us"), None),
    ("compaction", "anthropic/sized", claude(iterations=[
        {"type": "compaction", "input_tokens": 500, "output_tokens": 50},
        {"type": "message", "input_tokens": 1000, "output_tokens": 100}]), PLAIN + 1000 * MICRO),
    ("iterations by size", "anthropic/lengths", claude(iterations=[
        {"type": "compaction", "input_tokens": 2000, "output_tokens": 50},
        {"type": "message", "input_tokens": 1000, "output_tokens": 100}]), PLAIN + (2000 * 5 + 50 * 50) * MICRO),
    ("small iterations", "anthropic/lengths", claude(iterations=[
        {"type": "compaction", "input_tokens": 700, "output_tokens": 50},
        {"type": "message", "input_tokens": 1000, "output_tokens": 100}]), PLAIN + 1200 * MICRO),
    ("one iteration", "anthropic/sized", claude(iterations=[{"type": "message", "input_tokens": 1000, "output_tokens": 100}]), PLAIN),
    ("an unlisted advisor", "anthropic/sized", claude(iterations=[
        {"type": "message", "input_tokens": 1000, "output_tokens": 100},
        {"type": "advisor_message", "model": "no-such", "input_tokens": 1, "output_tokens": 1}]), None),
    ("models of iterations", "anthropic/sized", claude(iterations=[
        {"type": "message", "model": "m-20260101", "input_tokens": 700, "output_tokens": 60},
        {"type": "message", "model": "m", "input_tokens": 300, "output_tokens": 40},
        {"type": "fallback_message", "model": "heard", "input_tokens": 100, "output_tokens": 10}]), PLAIN + 200 * MICRO),
    ("a shell in a container", "openai/runs", ran("shell", environment={"type": "container_reference", "container_id": "c"}), PLAIN + 4 * 30_000 * MICRO),
    ("code in containers", "openai/runs", ran("code_interpreter", container_id="c"), PLAIN + 4 * 30_000 * MICRO),
    ("a shell of the client", "openai/runs", ran("shell", environment={"type": "local"}), PLAIN),
    ("Google's tier", "gemini/tiered", google(serviceTier="priority"), 2 * PLAIN),
    ("traffic", "gemini/tiered", google(trafficType="ON_DEMAND_FLEX"), PLAIN // 2),
    ("Google's audio", "gemini/heard", google(promptTokensDetails=[{"modality": "AUDIO", "tokenCount": 400}]), (600 + 400 * 50 + 1000) * MICRO),
    ("Google's unlisted video", "gemini/sized", google(promptTokensDetails=[{"modality": "VIDEO", "tokenCount": 4}]), None),
    ("grounding", "gemini/searches", google({"webSearchQueries": ["a", "b"]}), PLAIN + 25_000 * MICRO),
    ("Google's total", "gemini/sized", google(totalTokenCount=1300, toolUsePromptTokenCount=100), 3100 * MICRO),
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("model", "body", "expected"), [each[1:] for each in BILLS], ids=[each[0] for each in BILLS]
)
def test_a_call_costs_what_the_vendor_bills_by(model, body, expected, tmp_path, vendor):
    client = service(tmp_path, vendor)
    vendor.says(body)
    if "output" in body:
        answer = ask(client, model, "/v1/responses", messages=None, input="Hello")
    else:
        answer = ask(client, model, max_tokens=50)
    assert answer.status_code == 200, answer.text
    [record] = rows(client)
    assert (record.call.cost, record.call.unpriced) == (expected, int(expected is None))


def events(*bodies: Any) -> bytes:
    return (
        b"".join(b"data: " + json.dumps(body).encode() + b"\n\n" for body in bodies)
        + b"data: [DONE]\n\n"
    )


def delta(index: int, text: str, **more: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": {"content": text}, "finish_reason": None}
    return {"id": "c", "model": "m", "choices": [choice]} | more


def test_the_tier_of_a_stream_may_stand_in_its_first_event(tmp_path, vendor):
    client = service(tmp_path, vendor)
    end = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    vendor.says(
        events(
            delta(0, "Hi", service_tier="priority"),
            end,
            {"id": "c", "model": "m", "choices": [], "usage": USAGE},
        )
    )
    assert ask(client, "openai/tiered", stream=True).data
    assert cost(client) == 2 * PLAIN


def test_every_choice_of_an_answer_without_usage_is_estimated(tmp_path, vendor):
    """Of streams and whole answers; tool calls count as well."""
    client, found = service(tmp_path, vendor), []
    long = "many words of one choice " * 20
    end = {
        "id": "c",
        "model": "m",
        "choices": [{"index": n, "delta": {}, "finish_reason": "stop"} for n in (0, 1)],
    }
    for body in (
        events(delta(0, long), end),
        events(delta(0, long), delta(1, long), end),
        chat(None, choices=[{"index": 0, "message": {"content": long}, "finish_reason": "stop"}]),
        chat(None, choices=[{"index": n, "message": {"content": long}, "finish_reason": "stop"} for n in (0, 1)]),
        chat(None, choices=[{"index": 0, "finish_reason": "tool_calls", "message": {"content": None, "tool_calls": [
            {"id": "t", "type": "function", "function": {"name": "f", "arguments": json.dumps({"x": long})}}]}}]),
    ):  # fmt: skip
        vendor.says(body)
        assert ask(client, n=2, stream=isinstance(body, bytes)).data
        assert rows(client)[0].call.estimated
        found.append(rows(client)[0].call.output_tokens)
    one, two, whole, both, called = found
    assert two > 1.9 * one > 50 and both > 1.9 * whole > 50 and called > 50


WORDS = "many words of one choice " * 20


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("told", "tokens_in", "least_out"),
    [
        ({"prompt_tokens": 1000}, 1000, 50),
        ({"prompt_tokens": 1000, "completion_tokens": None}, 1000, 50),
        ({"prompt_tokens": 1000, "completion_tokens": 0}, 1000, 0),  # it bills as it counts
        ({"completion_tokens": 70}, 5, 70),
        ({"prompt_tokens": 0, "completion_tokens": 70}, 5, 70),
        ({"total_tokens": 900}, 900, 50),
        ({"prompt_tokens": "1000.0", "completion_tokens": "7e1"}, 1000, 70),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_a_vendor_does_not_count_is_estimated(
    told, tokens_in, least_out, stream, tmp_path, vendor
):
    client = service(tmp_path, vendor)
    choice = {"index": 0, "finish_reason": "stop", "message": {"content": WORDS}}
    end = {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    if stream:
        vendor.says(events(delta(0, WORDS), end, {"id": "c", "choices": [], "usage": told}))
    else:
        vendor.says(chat(told, choices=[choice]))
    assert ask(client, stream=stream).data
    call = rows(client)[0].call
    assert call.input_tokens == tokens_in and call.output_tokens >= least_out
    assert call.cost == (call.input_tokens + 10 * call.output_tokens) * MICRO
    assert call.estimated == (least_out == 50 or tokens_in == 5)


def test_a_failed_response_costs_what_it_says(tmp_path, vendor):
    client = service(tmp_path, vendor, more="[reliability]\nattempts = 1\n")
    vendor.says(responses(status="failed", error={"code": "server_error", "message": "no"}))
    answer = ask(client, "openai/sized", "/v1/responses", messages=None, input="Hello")
    assert answer.status_code == 502
    assert (cost(client), rows(client)[0].attempts[0].assumed) == (PLAIN, 0)


def budget_of(client: FlaskClient) -> tuple[int, int]:
    """Return what is spent and held of the key's budget."""
    with contextlib.closing(
        sqlite3.connect(client.application.extensions["infermux"].ledger.path)
    ) as db:
        found = db.execute("SELECT sum(spent), sum(held) FROM budgets WHERE call_id = ''")
        return found.fetchone()


@pytest.mark.parametrize(("then", "spends"), [("reject", True), ("warn", False)])
def test_an_answer_without_a_price_spends_what_was_held(then, spends, tmp_path, vendor):
    client = service(tmp_path, vendor, f'usd = "1", then = "{then}"')
    vendor.says(chat(service_tier="priority"))
    answer = ask(client, max_tokens=50)
    assert (answer.status_code, answer.headers["X-Infermux-Cost"]) == (200, "unpriced")
    [record] = rows(client)
    spent, kept = budget_of(client)
    assert kept == 0 and spent == (record.call.cost or 0) == record.call.assumed
    assert (spent >= 500 * MICRO, record.call.unpriced) == (spends, int(not spends))


def test_a_background_response_is_held_until_it_is_read(tmp_path, vendor):
    asked = {"path": "/v1/responses", "messages": None, "input": "Hello", "background": True}
    client = service(tmp_path, vendor, 'usd = "0.015"')
    queued = responses(status="queued", output=[], usage=None, background=True)
    vendor.says(queued)
    ident = ask(client, **asked).json["id"]
    spent, kept = budget_of(client)
    assert spent == 0 and kept >= 10_000 * MICRO
    assert ask(client, **asked).status_code == 402
    vendor.says(queued | responses())  # of the model "m", which has no price
    assert client.get(f"/v1/responses/{ident}", headers=OWN).status_code == 200
    assert budget_of(client) == (0, kept)
    vendor.says(queued | responses(model="sized"))
    for _ in range(2):
        answer = client.get(f"/v1/responses/{ident}", headers=OWN)
        assert answer.json["status"] == "completed"
        assert budget_of(client) == (PLAIN, 0)


def test_a_background_stream_that_is_cut_is_held_until_it_is_read(tmp_path, vendor):
    asked = {"path": "/v1/responses", "messages": None, "input": "Hello", "background": True}
    client = service(tmp_path, vendor, 'usd = "0.015"')
    begun = responses(status="queued", output=[], usage=None, background=True)
    event = {"type": "response.created", "sequence_number": 0, "response": begun}
    vendor.says(b"data: " + json.dumps(event).encode() + b"\n\n")
    [ident] = set(re.findall(r'"id": ?"(r_[^"]+)"', ask(client, stream=True, **asked).text))
    spent, kept = budget_of(client)
    assert spent == 0 and kept >= 10_000 * MICRO
    vendor.says(begun | responses(model="sized"))
    for _ in range(2):
        client.get(f"/v1/responses/{ident}", headers=OWN)
        assert budget_of(client) == (PLAIN, 0)


def test_a_background_response_that_nobody_reads_is_spent(tmp_path, vendor):
    asked = {"path": "/v1/responses", "messages": None, "input": "Hello", "background": True}
    client = service(tmp_path, vendor, 'usd = "1"')
    vendor.says(responses(status="queued", output=[], usage=None, background=True))
    ident = ask(client, **asked).json["id"]
    ledger = client.application.extensions["infermux"].ledger
    kept = budget_of(client)[1]
    ledger.lose(time.time() + 2 * 86400)
    assert budget_of(client) == (kept, 0)
    vendor.says(responses(background=True, model="sized"))
    client.get(f"/v1/responses/{ident}", headers=OWN)
    assert budget_of(client) == (PLAIN, 0)
    assert sum(row.call.cost or 0 for row in rows(client)) == PLAIN


def test_an_answer_that_took_iterations_is_cached_like_others(tmp_path, vendor):
    cached = '[models.kept]\ntargets = ["anthropic/sized"]\ncache_answers = { ttl = "1h", max = "1MB" }\n'
    client = service(tmp_path, vendor, more=cached)
    message = {"type": "message", "input_tokens": 1000, "output_tokens": 100}
    vendor.says(claude(iterations=[message | {"type": "compaction"}, message]))
    told = [ask(client, "kept").headers["X-Infermux-Cache"] for _ in range(2)]
    assert told == ["miss", "hit"] and len(vendor.seen) == 1
    assert [record.call.cost for record in rows(client)] == [0, 2 * PLAIN]


def test_counting_tokens_costs_nothing(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.000001"')
    vendor.says({"input_tokens": 1000})
    answer = ask(client, "anthropic/sized", "/v1/messages/count_tokens")
    assert answer.status_code == 200, answer.text
    [record] = rows(client)
    assert (record.call.cost, record.call.unpriced) == (0, 0)


# -- the worst case --------------------------------------------------------------------------------


def held(client: FlaskClient, **asked: Any) -> int | None:
    """Return the pico-USD that a call holds, from the message of an empty budget; None if unpriced."""
    answer = ask(client, **asked)
    error = answer.json["error"]
    message = error["message"] if isinstance(error, dict) else answer.text
    assert answer.status_code == 402, answer.text
    if "unpriced_model" in answer.text or "is unknown for what this call asks" in message:
        return None
    return round(float(message.partition("this call may cost ")[2].split(" ")[0]) * 10**12)


def data(size: int) -> str:
    return base64.b64encode(bytes(size)).decode()


def part(kind: str, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, **more}]}]


OUT = 10 * MICRO  # pico-USD per token of output


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [
        ({"max_tokens": 50}, 50, 52),
        ({"max_completion_tokens": 50}, 50, 52),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70, 72),
        ({"max_tokens": "50"}, 50, 52),
        ({"max_tokens": 50, "n": "20"}, 1000, 1002),
        ({"max_tokens": 50, "n": 20.0}, 1000, 1002),
        ({"max_tokens": 50, "n": 20}, 1000, 1002),
        ({"max_tokens": 50, "best_of": 20}, 1000, 1002),
        ({}, 1000, 1002),  # the model's limit
        ({"max_output_tokens": 50}, 1000, 1012),  # not this format's: not a limit
        ({"max_tokens": 50, "messages": part("image_url", image_url={"url": "https://x.test/a.png"})}, 1000, 1100),
        ({"max_tokens": 50, "messages": part("file", file={"file_data": "data:application/pdf;base64," + data(10**5)})}, 10_000, 13_000),
        ({"max_tokens": 50, "messages": part("file", file={"file_id": "file-1"})}, 1000, 1100),
        ({"max_tokens": 50, "model": "openai/heard", "messages": part("input_audio", input_audio={"data": data(250_000), "format": "wav"})}, 10_000, 11_000),
        ({"max_tokens": 50, "model": "openai/tiered", "service_tier": "priority"}, 100, 104),
        ({"max_tokens": 50, "model": "openai/tiered", "service_tier": "fast"}, 100, 104),
        ({"max_tokens": 50, "model": "openai/tiered", "service_tier": "flex"}, 50, 52),
        ({"max_tokens": 50, "model": "anthropic/sized"}, 50, 52),
        ({"model": "gemini/sized", "max_tokens": 50}, 50, 52),
    ],
)  # fmt: skip
def test_what_is_held_is_the_most_that_the_vendor_could_bill(asked, least, most, tmp_path, vendor):
    """In tokens of output; one of input costs a tenth."""
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    assert least * OUT <= (held(client, **asked) or 0) <= most * OUT
    assert vendor.seen == []


LONG = "x" * 20_000
CLAUDE = {"model": "anthropic/sized", "path": "/v1/messages"}
OF_RESPONSES = {"model": "openai/searches", "path": "/v1/responses", "messages": None, "input": "?"}
GEMINI = {
    "path": "/v1beta/models/gemini/sized:generateContent",
    "messages": None,
    "max_tokens": None,
    "contents": [{"parts": [{"text": "Hello"}]}],
}
SCHEMA = {"type": "object", "properties": {"a": {"type": "image", "description": LONG}}}
USED = {"type": "tool_use", "id": "t", "name": "f", "input": {"type": "image", "source": LONG}}
DOCUMENT = {"type": "text", "media_type": "text/plain", "data": "d"}


def schema(value: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": value}}]}


def limits(**config: Any) -> dict[str, Any]:
    return GEMINI | {"generationConfig": config}


@pytest.mark.parametrize(
    ("asked", "least"),  # tokens of input, of which 10 cost one of output
    [
        ({"messages": [{"role": "user", "content": "\x01\u0300" * 100}]}, 300),
        ({"messages": [{"role": "user", "content": "q"}]}, 1),
        (schema(SCHEMA), 20_000),
        (schema({"enum": [[] for _ in range(5000)]}), 10_000),
        (schema({"enum": [10**15 + n for n in range(1000)]}), 16_000),
        (schema({"properties": {"\U0001f600" * 1000: {}}}), 4000),
        (CLAUDE | {"messages": [{"role": "assistant", "content": [USED]}, *HELLO]}, 20_000),
        (CLAUDE | {"messages": part("document", source=DOCUMENT, context=LONG)}, 20_000),
        (CLAUDE | {"tools": [{"type": "bash_20250124", "name": "bash"}]}, 2000),
        ({"messages": part("file", file={"filename": LONG, "file_data": data(10)})}, 30_000),
        ({"messages": [{"role": "assistant", "audio": {"id": "audio_1"}}, *HELLO]}, 10_000),
        ({"max_tokens": 0}, 10_000),
        ({"max_tokens": -1}, 10_000),
        ({"max_tokens": 5, "max_completion_tokens": 0}, 10_000),
        ({"prediction": {"type": "content", "content": LONG}}, 200_000),
        ({"reasoning": {"max_tokens": 1000}}, 10_000),
        ({"thinking_budget": "1000"}, 10_000),
        ({"models": ["heard"], "messages": [{"role": "user", "content": LONG}]}, 20_000),
        (limits(maxOutputTokens=5) | {"generation_config": {"maxOutputTokens": 900}}, 9000),
        (limits(maxOutputTokens=5, max_output_tokens=900, candidate_count=3), 27_000),
        (GEMINI | {"tools": [{"fileSearch": {"fileSearchStoreNames": ["s"]}}]}, 11_000),
        (
            {
                "path": "/v1/completions",
                "messages": None,
                "prompt": "a",
                "max_tokens": None,
                "max_completion_tokens": 5,
            },
            10_000,
        ),
        (GEMINI | {"path": "/v1beta/models/gemini/paints:generateContent"}, 10_000),
        # limits of other formats, which the vendor ignores
        ({"max_tokens": None, "contents": [], "generationConfig": {"maxOutputTokens": 5}}, 10_000),
        ({"path": "/v1/responses", "messages": [], "input": "?"}, 10_000),
        ({"path": "/v1/responses", "messages": None, "input": "?", "prompt": {"id": "p"}}, 20_000),
        # what only the vendor has
        ({"messages": part("document_url", document_url="https://x.test/a.pdf")}, 10_000),
        (
            OF_RESPONSES
            | {"model": "openai/sized", "max_output_tokens": 5, "input": [{"id": "msg_1"}]},
            10_000,
        ),
        (CLAUDE | {"thread": {"continue": {"id": "msg_1"}}}, 10_000),
        # other models that may be asked, and summing up
        (CLAUDE | {"fallbacks": [{"model": "thinks", "max_tokens": 1000}]}, 20_000),
        (CLAUDE | {"compaction": {"type": "summarize"}}, 10_050),
        (CLAUDE | {"context_management": {"edits": [{"type": "compact_20260112"}]}}, 10_050),
        (
            OF_RESPONSES
            | {
                "model": "openai/sized",
                "max_output_tokens": 5,
                "context_management": [{"type": "compaction"}],
            },
            10_050,
        ),
    ],
)
def test_nothing_that_a_caller_sends_makes_the_hold_too_small(asked, least, tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    assert (held(client, **{"max_tokens": 5} | asked) or 0) >= least * MICRO


@pytest.mark.parametrize(
    "asked",
    [
        {"models": ["unknown"]},
        {"fallbacks": ["sized", {"model": "unknown"}]},
        {"search_parameters": {"mode": "on"}},
        {"plugins": [{"id": "web"}]},
        {"deferred": True},
        CLAUDE | {"fallbacks": "default"},
        CLAUDE | {"fallbacks": [{"model": "sized"}, {"model": "unknown"}]},
        OF_RESPONSES | {"tools": [{"type": "shell", "environment": {"type": "container_auto"}}]},
    ],
)
def test_what_has_no_price_is_refused(asked, tmp_path, vendor):
    """A gateway may take another model, and some search the web."""
    client = service(tmp_path, vendor, 'usd = "5"')
    vendor.says(chat())
    assert held(client, max_tokens=5, **asked) is None


@pytest.mark.sampled(1)
@pytest.mark.parametrize(("place", "times"), [("top", 6), ("part", 6), ("", 1)])
def test_a_cache_that_lasts_an_hour_is_held_at_its_price(place, times, tmp_path, vendor):
    own = """
[providers.cached]
type = "anthropic"
base_url = "http://127.0.0.1:9"
api_key = "env:VENDOR"
prices.c = { input = "1", output = "0", cache_write = "2", cache_write_1h = "6", max_output = 9 }
"""
    client = service(tmp_path, vendor, 'usd = "0.0000001"', own)
    control = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    text = {"type": "text", "text": LONG} | (control if place == "part" else {})
    asked = {"messages": [{"role": "user", "content": [text]}]}
    asked |= control if place == "top" else {}
    found = held(client, model="cached/c", path="/v1/messages", max_tokens=5, **asked)
    assert 20_000 * times <= (found or 0) / MICRO < 20_100 * times


def test_each_api_and_operation_has_its_own_limits(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    lists = {"messages": None, "path": "/v1/completions"}
    assert (
        150 * OUT
        <= (held(client, prompt=["a", "b", "c"], max_tokens=50, **lists) or 0)
        <= 153 * OUT
    )
    own = {"messages": None, "path": "/v1/responses", "input": "Hello"}
    assert 50 * OUT <= (held(client, max_output_tokens=50, **own) or 0) <= 52 * OUT
    free = service(tmp_path, vendor)
    vendor.says(responses())
    ident = ask(free, **own).json["id"]
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    assert (
        held(client, max_output_tokens=50, previous_response_id=ident, **own) or 0
    ) >= 1050 * OUT
    tools = [{"type": "web_search"}]
    assert (
        held(client, model="openai/searches", max_output_tokens=50, tools=tools, **own) or 0
    ) >= 200_000 * MICRO
    assert held(client, max_output_tokens=50, tools=tools, **own) is None
    config = {
        "contents": [{"parts": [{"text": "Hello"}]}],
        "generationConfig": {"maxOutputTokens": 50},
    }
    path = "/v1beta/models/gemini/sized:generateContent"
    assert (
        50 * OUT <= (held(client, model=None, messages=None, path=path, **config) or 0) <= 52 * OUT
    )


def test_texts_of_what_passes_through_are_held_by_their_bytes(tmp_path, vendor):
    own = f"""
[providers.passed]
type = "openai"
base_url = "{vendor.url}/v1"
api_key = "env:VENDOR"
models = ["draws", "ranks"]
endpoints = ["images/edits", "rerank"]
prices.draws = {{ input = "1", input_image = "1", output_image = "10", max_output = 100 }}
prices.ranks = {{ input = "0", fees = {{ searches = "2" }} }}
"""
    client = service(tmp_path, vendor, 'usd = "0.0000001"', own)
    fields = {"model": "passed/draws", "prompt": LONG}
    form = requests.Request("POST", vendor.url, data=fields, files={"image": b"\x89PNG"}).prepare()
    kind = {"Content-Type": form.headers["Content-Type"]}
    drawn = client.post("/v1/images/edits", data=form.body, headers=OWN | kind)
    assert drawn.status_code == 402 and "may cost 0.031" in drawn.text, drawn.text
    documents = {"query": "?", "documents": ["qzjx " * 20_000]}  # which may be a token a letter
    ranked = ask(client, "passed/ranks", "/v1/rerank", messages=None, **documents)
    assert ranked.status_code == 402 and "may cost 0.006 USD" in ranked.text, ranked.text


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["openai/open", "second/open", "gemini/open"])
def test_an_unbounded_answer_gets_a_limit_that_the_budget_can_pay(model, stream, tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.01"')
    vendor.says(google() if "gemini" in model else chat())
    answer = ask(client, model, stream=stream)
    assert answer.status_code == 200, answer.text
    limit = int(answer.headers["X-Infermux-Max-Tokens"])
    sent = vendor.seen[0]
    assert limit in (
        sent.get("max_tokens"),
        sent.get("generationConfig", {}).get("maxOutputTokens"),
    )
    assert 990 <= limit <= 1000


def test_a_model_that_is_taken_instead_may_be_dear_in_another_way(tmp_path, vendor):
    """A limit of the answer would make the first model cheap, and not the second."""
    client = service(tmp_path, vendor, 'usd = "0.02"')
    vendor.says(chat())
    text = [{"role": "user", "content": "x" * 500}]
    refused = ask(client, "openai/open", models=["wordy"], messages=text)
    assert refused.status_code == 402 and vendor.seen == []
    assert ask(client, "openai/open", messages=text).status_code == 200


def test_a_limit_leaves_room_for_what_is_billed_beside_the_answer(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.01"')
    vendor.says(chat())
    answer = ask(client, "openai/open", prediction={"type": "content", "content": "x" * 500})
    assert 400 <= int(answer.headers["X-Infermux-Max-Tokens"]) <= 500


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/infer"])
def test_deepseek_gets_the_limit_that_it_knows(path, tmp_path, vendor):
    """It ignores max_completion_tokens, and would write as much as it can."""
    client = service(tmp_path, vendor)
    vendor.says(chat())
    answer = ask(client, "second/deepseek-chat", path, max_completion_tokens=50)
    assert answer.status_code == 200, answer.text
    assert vendor.seen[0]["max_tokens"] == 50 and "max_completion_tokens" not in vendor.seen[0]


@pytest.mark.parametrize(("length", "room"), [(4000, 6000), (40_000, 2500)])
def test_a_limit_leaves_room_for_the_input(length, room, tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.1"')
    vendor.says(chat())
    long = [{"role": "user", "content": "x" * length}]
    answer = ask(client, "openai/open", messages=long)
    assert 0.99 * room <= int(answer.headers["X-Infermux-Max-Tokens"]) <= room


CONTEXT = 10_000  # tokens, of the models with `max_input`
SEARCHED = [{"type": "web_search"}]
OF_CLAUDE = {"model": "anthropic/searches", "path": "/v1/messages"}


def searching(**more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "web_search_20250305", "name": "web_search"} | more]}


def boxed(kind: str, place: str, where: str) -> dict[str, Any]:
    return {"tools": [{"type": kind, place: {"type": where, "memory_limit": "16g"}}]}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("asked", "contexts", "fees"),
    [
        (OF_RESPONSES | {"tools": SEARCHED, "max_tool_calls": 3}, 3, 3),
        (OF_RESPONSES | {"tools": SEARCHED, "max_tool_calls": 0}, 0, 0),
        (OF_RESPONSES | {"tools": SEARCHED}, 20, 20),
        (OF_CLAUDE | searching(max_uses=2), 2, 2),
        (OF_CLAUDE | searching(), 10, 20),
        (OF_CLAUDE | {"tools": searching(max_uses=4)["tools"] * 2}, 8, 8),
        (OF_CLAUDE | {"mcp_servers": [{"type": "url", "url": "https://x.test"}]}, 10, 0),
        (
            OF_RESPONSES
            | {"model": "openai/runs"}
            | boxed("shell", "environment", "container_auto"),
            20,
            3 * 16,
        ),
        (
            OF_RESPONSES
            | {"model": "openai/runs"}
            | boxed("code_interpreter", "container", "auto"),
            20,
            3 * 16,
        ),
        (OF_RESPONSES | {"model": "openai/runs"} | boxed("shell", "environment", "local"), 0, 0),
        (GEMINI | {"tools": [{"codeExecution": {}}]}, 5, 0),
        (GEMINI | {"tools": [{"urlContext": {}}]}, 1, 0),
    ],
)
def test_tools_of_the_vendor_are_held_with_a_context_for_each_use(
    asked, contexts, fees, tmp_path, vendor
):
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    found = (held(client, **{"max_tokens": 5} | asked) or 0) - fees * 10_000 * MICRO
    assert contexts * CONTEXT <= found / MICRO <= contexts * CONTEXT + 12_000


@pytest.mark.parametrize(
    ("asked", "reply"),
    [
        (OF_RESPONSES | {"tools": SEARCHED}, responses(model="searches")),
        (OF_CLAUDE | {"max_tokens": 5} | searching(), claude()),
        (OF_CLAUDE | {"max_tokens": 5, "tools": searching()["tools"] * 2}, claude()),
    ],
)
def test_tools_without_a_limit_get_one_that_the_budget_can_pay(asked, reply, tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.15"')
    vendor.says(reply)
    answer = ask(client, **asked)
    assert answer.status_code == 200, answer.text
    most, [sent] = int(answer.headers["X-Infermux-Max-Uses"]), vendor.seen
    assert 2 <= most <= 7 and most in (
        sent.get("max_tool_calls"),
        sent["tools"][0].get("max_uses"),
    )
    limited = {"tools": searching(max_uses=50)["tools"]} if "messages" in sent else {}
    dear = ask(client, **asked | {"max_tool_calls": 50} | limited)
    assert dear.status_code == 402 and "set max_uses or max_tool_calls" in dear.text


def wave(rate: int, *, code: int = 1, size: int = 40_000) -> bytes:
    chunk = struct.pack("<HHIIHH", code, 1, rate, rate, 1, 8)
    return b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + chunk + b"data" + bytes(size)


def recorded(sound: bytes, form: str = "wav") -> dict[str, Any]:
    given = {"data": base64.b64encode(sound).decode(), "format": form}
    return {"model": "openai/heard", "messages": part("input_audio", input_audio=given)}


def filed(content: bytes, mime: str = "application/pdf") -> dict[str, Any]:
    url = f"data:{mime};base64,{base64.b64encode(content).decode()}"
    return {"messages": part("file", file={"filename": "a", "file_data": url})}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("asked", "least", "most"),  # in tokens of input, of which the media cost 50 in audio
    [
        (recorded(wave(8000)), 50 * 160, 50 * 250),
        (recorded(wave(1)), 50 * 32 * 40_000, 50 * 33 * 41_000),
        (recorded(wave(8000, code=2)), 2 * 10**6, 2 * 10**6 + 50 * 1000),
        (recorded(b"OggS" + bytes(1000)), 2 * 10**6, 2 * 10**6 + 50 * 100),
        (recorded(b"fLaC" + bytes(1000), "mp3"), 2 * 10**6, 2 * 10**6 + 50 * 100),
        (recorded(b"ID3\4\0\0\0\0\1\0" + bytes(128) + b"fLaC" + bytes(900), "mp3"), 2 * 10**6, 2 * 10**6 + 50 * 100),
        (recorded(b"ID3\4\0\0\0\0\1\0" + bytes(128) + b"\xff\xfb" + bytes(900), "mp3"), 50 * 32, 50 * 100),
        (filed(b"%PDF-1.7" + bytes(1000)), CONTEXT + 11_000, CONTEXT + 12_000),
        (filed(b"PK\x03\x04" + bytes(1000), "application/zip"), CONTEXT + 11_000, CONTEXT + 12_000),
        (filed(b"a,b\n" * 250, "text/csv"), 11_000, 12_000),
        (filed(b"", "application/pdf"), CONTEXT, CONTEXT + 100),
    ],
)  # fmt: skip
def test_a_file_that_may_hold_more_than_its_bytes_is_held_as_a_context(
    asked, least, most, tmp_path, vendor
):
    client = service(tmp_path, vendor, 'usd = "0.0000001"')
    assert least <= (held(client, max_tokens=5, **asked) or 0) / MICRO - 50 <= most


def test_such_a_file_holds_all_that_is_left_of_a_budget(tmp_path, vendor):
    """A usual one is not refused, and a hostile one leaves nothing for others."""
    client = service(tmp_path, vendor, 'usd = "0.015"')
    seen: list[tuple[int, int]] = []

    def reply(handler: Any, asked: Any) -> None:
        seen.append(budget_of(client))
        handler.reply(200, json.dumps(chat()).encode(), {"Content-Type": "application/json"})

    vendor.reply = reply
    assert ask(client, max_tokens=5, **filed(b"%PDF-1.7" + bytes(100))).status_code == 200
    assert seen == [(0, 15_000 * MICRO)] and budget_of(client) == (PLAIN, 0)
    refused = ask(client, max_tokens=5, **filed(b"%PDF-1.7" + bytes(5000)))
    assert refused.status_code == 402 and "send text" in refused.text and len(seen) == 1


@pytest.mark.parametrize(("minutes", "dearer"), [(-5, True), (12, True), (22, True), (120, False)])
def test_a_price_that_rises_before_a_call_may_have_ended_is_held(
    minutes: int, dearer: bool, tmp_path, vendor
):
    """A first byte may take ten minutes, and a stream ten more."""
    now = datetime.now(UTC)
    start = (now.hour * 60 + now.minute + minutes) % 1440
    spans = [(start, min(start + 30, 1440)), (0, start - 1410)]
    hours = [
        f"{a // 60:02}:{a % 60:02}-{b // 60:02}:{b % 60:02}" for a, b in spans[: 1 + (start > 1410)]
    ]
    price = f"""
[providers.second.prices.unknown]
input = "1"
output = "10"
max_output = 100
peak = {{ utc = {json.dumps(hours)}, output = "1000" }}
"""
    found = held(service(tmp_path, vendor, 'usd = "0.0001"', price), model="second/unknown")
    assert found is not None and (found > 10**11) == dearer


def test_a_402_says_what_would_help(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.005"')
    error = ask(client).json["error"]
    assert error["code"] == "budget_exceeded" and "set max_tokens" in error["message"]
    assert "0.005 USD are left, and this call may cost 0.01" in error["message"]
    limit = int(error["message"].partition("at most ")[2].split(" ")[0])
    vendor.says(chat())
    assert ask(client, max_tokens=limit).status_code == 200


def test_a_hard_budget_refuses_what_has_no_price(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "5"')
    answer = ask(client, "openai/unknown")
    assert (answer.status_code, answer.json["error"]["code"]) == (402, "unpriced_model")
    assert "Retry-After" not in answer.headers and vendor.seen == []


def test_budgets_can_be_tried_with_echo(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "0.0001"', '[providers.echo]\ntype = "echo"\n')
    statuses = [ask(client, "echo/echo-v1").status_code for _ in range(5)]
    assert statuses[0] == 200 and statuses[-1] == 402
    assert sum(row.call.cost or 0 for row in rows(client)) <= 10**8


RECORDED = Path(__file__).resolve().parents[3] / "shared" / "wire" / "exchanges"
VENDORS = {"gemini": "google", "gemini-openai": "google", "vertex": "google"}


@pytest.mark.skipif(not RECORDED.exists(), reason="no recordings")
def test_no_real_call_had_more_input_than_is_held() -> None:
    compared = 0
    for file in RECORDED.glob("*.json"):
        found = json.loads(file.read_text())
        used, body = found["expected"].get("usage"), found["request"].get("body")
        vendor = VENDORS.get(found["provider"], found["provider"])
        price = find(vendor, found["model"] or "") if used and isinstance(body, dict) else None
        if price is None or isinstance(body.get("models"), list):
            continue
        size = size_of(body)
        held = size.tokens + size.audio + size.images * MAX_IMAGE + (price.max_added or 0)
        billed = (used.get("all_input_tokens") or 0) + (used.get("tool_use_prompt_tokens") or 0)
        assert size.unknown or held >= billed, file.name
        compared += 1
    assert compared > 80


# -- attempts that may have been billed ------------------------------------------------------------


def cut(handler: Any, asked: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "c",')
    handler.wfile.flush()
    handler.reset()


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("fault", "assumed"),
    [
        ("timeout", True),
        ("reset", True),
        ("cut", True),
        ("unreadable", True),
        ("slow 500", True),
        ("500", False),
        ("400", False),
        ("429", False),
        ("refused", False),
    ],
)
def test_an_attempt_that_may_have_been_billed_is_assumed_to_be(fault, assumed, tmp_path, vendor):
    timeouts = "[providers.openai.timeouts]\nfirst_byte = 0.3\n" if fault == "timeout" else ""
    client = service(tmp_path, vendor, 'usd = "1"', timeouts="")
    router = client.application.extensions["infermux"]
    if timeouts:
        provider = router.registry.member("openai").provider
        provider.timeouts = provider.timeouts.__class__(first_byte=0.3)
    if fault == "refused":
        router.registry.member("openai").provider._base_url = "http://127.0.0.1:9/v1"
    good = json.dumps(chat()).encode()

    def reply(handler: Any, asked: Any) -> None:
        if handler.path.startswith("/second"):
            handler.reply(200, good, {"Content-Type": "application/json"})
        elif fault == "timeout":
            vendor.released.wait(2)
        elif fault == "reset":
            handler.reset()
        elif fault == "cut":
            cut(handler, asked)
        elif fault == "unreadable":
            handler.reply(200, b"<html>", {"Content-Type": "text/html"})
        else:
            time.sleep(1.05 if "slow" in fault else 0)
            handler.reply(int(fault.split()[-1]), b"{}", {"Content-Type": "application/json"})

    vendor.reply = reply
    answer = ask(client, "first", max_tokens=50)
    assert answer.status_code in (200, 400)
    record = rows(client)[0]
    first = record.attempts[0]
    assert (first.assumed, (first.cost or 0) > 0) == (int(assumed), assumed)
    assert record.call.assumed == sum(row.cost or 0 for row in record.attempts if row.assumed)
    spent = router.ledger.totals()[0]
    assert (spent.cost, spent.assumed) == (record.call.cost, record.call.assumed)
    if answer.status_code == 200:
        assert record.call.cost == PLAIN + record.call.assumed


def test_a_client_that_waits_too_short_spends_what_was_held(tmp_path, vendor):
    """The vendor goes on without it: a short wait must not make a call cheap."""
    client = service(tmp_path, vendor, 'usd = "1"')
    vendor.says(chat(), delay=2)
    headers = OWN | {"X-Stainless-Read-Timeout": "1"}
    body = {"model": "openai/sized", "messages": HELLO, "max_tokens": 500}
    assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 504
    assert rows(client)[0].call.assumed > 5000 * MICRO and budget_of(client)[0] > 5000 * MICRO


def test_what_came_of_a_broken_stream_is_assumed_to_be_billed(tmp_path, vendor):
    client = service(tmp_path, vendor, 'usd = "1"')
    vendor.says(events(delta(0, "some words of an answer " * 20)).replace(b"data: [DONE]\n\n", b""))
    assert ask(client, stream=True, max_tokens=500).data
    [record] = rows(client)
    assert record.attempts[0].assumed == 1 and record.call.assumed == record.call.cost > 500 * MICRO


def test_a_failover_holds_what_was_assumed_as_well(tmp_path, vendor):
    """The first attempt may have cost something: the second must fit beside it."""
    client = service(tmp_path, vendor, 'usd = "0.00051"')
    big = [{"role": "user", "content": "word " * 40}]
    vendor.reply = lambda handler, asked: handler.reset()
    answer = ask(client, "first", messages=big, max_tokens=40)
    assert answer.status_code in (402, 502)
    assert len({row.provider for row in rows(client)[0].attempts}) == 1
    assert sum(row.call.cost or 0 for row in rows(client)) <= 510 * MICRO


def test_a_failover_that_cannot_be_held_is_not_the_vendors_error(tmp_path, vendor):
    """The ledger is away when the second target needs more: to try again later helps."""
    client = service(tmp_path, vendor, 'usd = "1"')
    place = tmp_path / "ledger.db"
    with contextlib.closing(
        sqlite3.connect(place, check_same_thread=False, isolation_level=None)
    ) as other:

        def reply(handler: Any, asked: Any) -> None:
            other.execute("BEGIN IMMEDIATE")
            handler.reset()

        vendor.reply = reply
        answer = ask(client, "first", max_tokens=50)
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "ledger_unavailable")
    assert answer.headers["Retry-After"] == "1" and len(vendor.seen) == 1


def test_a_budget_counts_what_waits_in_the_spool(tmp_path, vendor):
    """The ledger is locked when the answer comes: the call's hold stands until it is written."""
    client = service(tmp_path, vendor, 'usd = "0.0015"')
    ledger = sqlite3.connect(tmp_path / "ledger.db", check_same_thread=False, isolation_level=None)
    body = json.dumps(chat({"prompt_tokens": 20, "completion_tokens": 100})).encode()

    def reply(handler: Any, asked: Any) -> None:
        ledger.execute("BEGIN IMMEDIATE")
        handler.reply(200, body, {"Content-Type": "application/json"})

    vendor.reply = reply
    with contextlib.closing(ledger):
        assert ask(client, max_tokens=100).status_code == 200
        assert ask(client, max_tokens=100).status_code == 503, "the ledger is locked"
        ledger.execute("ROLLBACK")
        vendor.says(chat())
        refused = ask(client, max_tokens=100)
        assert (refused.status_code, refused.json["error"]["code"]) == (402, "budget_exceeded")
    assert len(vendor.seen) == 1
    eventually(lambda: sum(row.call.cost or 0 for row in rows(client)) == 1020 * MICRO)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("told", "times"), [("priority", 2), ("standard", 1), ("FLEX", 0.5)])
def test_google_tells_the_tier_in_a_header(stream, told, times, tmp_path, vendor):
    """A priority request may be served, and billed, at the standard tier."""
    client = service(tmp_path, vendor)
    event = json.dumps(google()).encode()

    def reply(handler: Any, asked: Any) -> None:
        data = b"data: " + event + b"\n\n" if stream else event
        kind = "text/event-stream" if stream else "application/json"
        handler.reply(200, data, {"Content-Type": kind, "X-Gemini-Service-Tier": told})

    vendor.reply = reply
    answer = ask(client, "gemini/tiered", stream=stream, service_tier="priority")
    assert answer.status_code == 200 and answer.data
    assert cost(client) == int(times * PLAIN)
