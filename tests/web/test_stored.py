"""Tests of what vendors store: ids that tell who has it, and the calls about it."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from doors import Front, Vendor, reply, sse
from openai_vendor import OpenAIVendor
from support import ask

from infermux import Caller, HTTPProvider
from infermux.admission import Admission
from infermux.admission.keys import Keyring, hashed
from infermux.admission.rate_limiter import RateLimiter
from infermux.dialects.responses import Support
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger

openai = pytest.importorskip("openai")
KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}


def provider(vendor: Any, name: str = "openai", key: str = "sk-1", **support: Any) -> HTTPProvider:
    return HTTPProvider(
        name,
        base_url=f"{vendor.url}/v1",
        api_key=key,
        models=["gpt-4.1"],
        responses=Support(**support),
    )


@pytest.fixture(scope="module")
def vendors():
    with OpenAIVendor() as one, OpenAIVendor() as two:
        two.count = 500  # ids of its own
        yield one, two


@pytest.fixture
def pair(vendors):
    """Two vendors that both have Responses: ids must tell which one gave them."""
    one, two = vendors
    one.seen.clear()
    two.seen.clear()
    with Front(provider(one, stores=True), provider(two, "other", "sk-2")) as front:
        yield front


@pytest.fixture
def single(vendors):
    one, _ = vendors
    one.seen.clear()
    with Front(provider(one, counts=True)) as front:
        yield front


def client(front: Front, key: str = "any") -> Any:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{front.port}/v1", api_key=key, max_retries=0)


def call(front: Front, method: str, path: str, key: str = "") -> Any:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return ask(front.port, path, method=method, headers=headers)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("model", ["openai/gpt-4.1", "other/gpt-4.1"])
@pytest.mark.parametrize("stream", [False, True])
def test_the_sdk_goes_on_at_the_provider_that_gave_the_id(pair, vendors, model, stream):
    with client(pair) as oai:

        def create(**more: Any) -> Any:
            if not stream:
                return oai.responses.create(model=model, input="Hi", **more)
            with oai.responses.create(model=model, input="Hi", stream=True, **more) as events:
                found = list(events)
            assert {e.response.id for e in found if hasattr(e, "response")} == {
                found[-1].response.id
            }
            return found[-1].response

        first = create()
        second = create(previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert first.output_text == second.output_text == "Sunny."
        held = oai.responses.retrieve(second.id)
        assert (held.id, held.previous_response_id) == (second.id, first.id)
        assert oai.responses.input_items.list(second.id, limit=5).data == []
        assert oai.responses.cancel(second.id).status == "cancelled"
        oai.responses.delete(second.id)
        with pytest.raises(openai.NotFoundError):
            oai.responses.retrieve(second.id)
    mine, other = vendors if model.startswith("openai") else vendors[::-1]
    assert not other.seen
    sent = [body for _, path, body in mine.seen if path == "/v1/responses"]
    assert sent[1]["previous_response_id"] in mine.stored


def test_an_id_of_another_vendor_says_to_send_the_items(pair, vendors):
    given = ask(pair.port, "/v1/responses", {"model": "other/gpt-4.1", "input": "Hi"}).json["id"]
    untagged = given.rpartition("_")[0]
    for ident in (given, given[:-1] + "x", "x" * 5000, untagged, "resp_unknown"):
        body = {"model": "openai/gpt-4.1", "input": "Hi", "previous_response_id": ident}
        answer = ask(pair.port, "/v1/responses", body)
        assert answer.status == 400
        error = answer.json["error"]
        assert error["code"] == "previous_response_not_found"
        assert error["param"] == "previous_response_id"
        assert "send the items" in error["message"]
    asked = [body["previous_response_id"] for _, _, body in vendors[0].seen]
    assert asked == [untagged, "resp_unknown"], "these may be of a time when ids had no tag"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("first", [True, False])
def test_ids_of_a_time_with_one_provider_work_when_there_are_more(vendors, first):
    one, two = vendors
    body = {"model": "openai/gpt-4.1", "input": "Hi"}
    with Front(provider(one, stores=True)) as front, client(front) as oai:
        given = oai.responses.create(**body).id
        talk = oai.conversations.create(metadata={}).id
    assert given in one.stored, "it has no tag"
    both = [provider(one, stores=True), provider(two, "other", "sk-2")]
    with Front(*(both if first else both[::-1])) as front, client(front) as oai:
        front.router.registry.define("fast", ["other/gpt-4.1", "openai/gpt-4.1"])
        assert oai.responses.retrieve(given).id == given
        assert oai.responses.input_items.list(given).data == []
        assert oai.conversations.retrieve(talk).id == talk
        with oai.responses.create(**body, conversation=talk, stream=True) as events:
            assert list(events)[-1].response.status == "completed"
        second = oai.responses.create(**body, previous_response_id=given)
        assert second.previous_response_id == given
        assert second.id not in one.stored, "it has a tag"
        assert oai.responses.create(**body, previous_response_id=second.id).output_text
        with pytest.raises(openai.BadRequestError) as error:
            oai.responses.create(model="other/gpt-4.1", input="Hi", previous_response_id=given)
        assert error.value.code == "previous_response_not_found"
        for refused in (oai.responses.retrieve, oai.responses.delete):
            with pytest.raises(openai.NotFoundError):
                refused("resp_nobody")
        oai.responses.delete(given)
    assert given not in one.stored


@pytest.mark.parametrize("status", [400, 404, 405, 500])
def test_an_id_without_a_tag_is_looked_for_at_each_provider(vendors, status):
    with Front(provider(vendors[0])) as front:
        given = ask(front.port, "/v1/responses", {"model": "gpt-4.1", "input": "Hi"}).json["id"]
    refusal = reply({"error": {"message": "no such id", "code": "x"}}, status)
    with (
        Vendor("openai", refusal) as odd,
        Front(provider(odd, "odd"), provider(vendors[0]), attempts=1) as front,
    ):
        answer = call(front, "GET", f"/v1/responses/{given}")
    assert len(odd.seen) == 1
    assert answer.status == (502 if status == 500 else 200)


def test_with_several_keys_an_id_without_a_tag_is_nobodys(vendors):
    one, two = vendors
    with Front(provider(one)) as front:
        given = ask(front.port, "/v1/responses", {"model": "gpt-4.1", "input": "Hi"}).json["id"]
    keys = Keyring((hashed(KEYS[name]), Caller(name)) for name in KEYS)
    one.seen.clear()
    with Front(provider(one), provider(two, "other"), keyring=keys) as front:
        assert call(front, "GET", f"/v1/responses/{given}", KEYS["ann"]).status == 404
    assert not one.seen


def test_an_id_chooses_among_the_targets_of_a_name(pair, vendors):
    given = ask(pair.port, "/v1/responses", {"model": "other/gpt-4.1", "input": "Hi"}).json["id"]
    pair.router.registry.define("fast", ["openai/gpt-4.1", "other/gpt-4.1"])
    body = {"model": "fast", "input": "Hi", "previous_response_id": given, "stream": True}
    for _ in range(3):
        assert b"response.completed" in ask(pair.port, "/v1/responses", body).data
    assert not vendors[0].seen
    assert len(vendors[1].seen) == 4


def test_a_vendor_that_stores_nothing_says_to_send_the_items():
    with Vendor("anthropic") as claude:
        name = HTTPProvider("anthropic", base_url=f"{claude.url}/v1", dialect="anthropic")
        with Front(name) as front:
            body = {"model": "anthropic/x", "input": "Hi", "previous_response_id": "resp_1"}
            answer = front.ask("/v1/responses", body)
            assert answer.json["error"]["code"] == "previous_response_not_found"
            for path in ("/v1/responses/resp_1", "/v1/conversations/conv_1"):
                assert call(front, "GET", path).status == 404


def test_ids_stay_as_they_are_where_there_is_nothing_to_tell(single, vendors):
    body = {"model": "gpt-4.1", "input": "Hi"}
    answer = ask(single.port, "/v1/responses", body)
    held = vendors[0].stored[answer.json["id"]]
    assert answer.data == json.dumps(held, indent=1).encode()
    again = ask(single.port, "/v1/responses", body | {"previous_response_id": held["id"]})
    assert again.json["previous_response_id"] == held["id"]
    got = call(single, "GET", f"/v1/responses/{held['id']}?include[]=a&include[]=b")
    assert got.data == answer.data
    assert vendors[0].seen[-1][1].endswith("?include%5B%5D=a&include%5B%5D=b")


def test_conversations_are_the_providers_that_has_them(pair, vendors):
    with client(pair) as oai:
        made = oai.conversations.create(metadata={"a": "b"})
        assert oai.conversations.retrieve(made.id).id == made.id
        for conversation in (made.id, {"id": made.id}):
            answer = oai.responses.create(
                model="openai/gpt-4.1", input="Hi", conversation=conversation
            )
            assert answer.output_text == "Sunny."
        assert oai.conversations.items.list(made.id).data == []
        oai.conversations.delete(made.id)
        with pytest.raises(openai.BadRequestError) as error:
            oai.responses.create(model="other/gpt-4.1", input="Hi", conversation=made.id)
    assert error.value.code == "previous_response_not_found"
    assert not vendors[1].seen


def test_compact_and_the_count_of_tokens(single, pair):
    body = {"model": "openai/gpt-4.1", "input": "Hi there, how are you?"}
    counted = ask(single.port, "/v1/responses/input_tokens", body).json
    assert counted == {"object": "response.input_tokens", "input_tokens": 77}
    estimated = ask(pair.port, "/v1/responses/input_tokens", body).json
    assert estimated["infermux"] == {"estimated": True}
    assert 0 < estimated["input_tokens"] < 77
    compacted = ask(single.port, "/v1/responses/compact", body)
    assert compacted.json["object"] == "response.compaction"


def test_the_tokens_are_estimated_if_the_vendor_turns_out_not_to_count():
    with (
        Vendor("openai", reply(b'{"error": {"message": "no"}}', 404)) as vendor,
        Front(provider(vendor, counts=True)) as front,
    ):
        body = {"model": "gpt-4.1", "input": "Hi there", "tools": []}
        counted = ask(front.port, "/v1/responses/input_tokens", body)
    assert counted.json["infermux"] == {"estimated": True}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses/..", 404),
        ("GET", "/v1/responses/a%2Fb", 404),
        ("GET", "/v1/responses/%00", 404),
        ("GET", "/v1/responses/resp_nobody", 404),
        ("GET", "/v1/responses/resp_nobody?api-version=1", 400),
        ("GET", "/v1/conversations/conv_1/items/..%2F..", 404),
        ("PATCH", "/v1/responses/resp_1", 405),
        ("PUT", "/v1/conversations/conv_1", 405),
    ],
)
def test_odd_calls_are_refused(single, vendors, method, path, status):
    answer = call(single, method, path)
    assert answer.status == status
    assert "error" in answer.json
    if status == 405:
        assert "GET" in answer.headers["Allow"]
    assert all(each[1].startswith("/v1/responses/resp_nobody") for each in vendors[0].seen)


# -- callers and money -----------------------------------------------------------------------------


@pytest.fixture
def keyed(vendors, tmp_path):
    one, _ = vendors
    one.seen.clear()
    keys = Keyring(
        (hashed(KEYS[name]), Caller(name, budget=Budget(name, usd="5"))) for name in KEYS
    )
    ledger = SQLiteLedger(str(tmp_path / "ledger.db"))
    front = Front(provider(one), keyring=keys, ledger=ledger)
    with front:
        yield front


def test_a_caller_cannot_use_the_ids_of_another(keyed, vendors):
    body = {"model": "gpt-4.1", "input": "Hi"}
    ann, bob = ({"authorization": f"Bearer {key}"} for key in KEYS.values())
    given = ask(keyed.port, "/v1/responses", body, headers=ann).json["id"]
    vendors[0].seen.clear()
    for ident in (given, given.rpartition("_")[0]):
        path = f"/v1/responses/{ident}"
        for method, more in (
            ("GET", ""),
            ("DELETE", ""),
            ("POST", "/cancel"),
            ("GET", "/input_items"),
        ):
            answer = call(keyed, method, path + more, KEYS["bob"])
            assert (answer.status, answer.json["error"]["code"]) == (404, "not_found")
        asked = body | {"previous_response_id": ident}
        answer = ask(keyed.port, "/v1/responses", asked, headers=bob)
        assert answer.json["error"]["code"] == "previous_response_not_found"
    assert call(keyed, "GET", f"/v1/responses/{given}").status == 401
    assert not vendors[0].seen
    assert call(keyed, "GET", f"/v1/responses/{given}", KEYS["ann"]).json["id"] == given


def rows(path: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as ledger:
        return ledger.execute(
            "SELECT caller, input_tokens, cost, unpriced, model FROM calls ORDER BY at_ns, cost"
        ).fetchall()


SERVED = "gpt-4.1-2026-11-01"
COST = 31 * 2_000_000 - 8 * 1_500_000 + 17 * 8_000_000  # pico-USD of gpt-4.1
BILLED = ("ann", 31, COST, 0, SERVED)


def start(front: Front) -> str:
    body = {"model": "gpt-4.1", "input": "Hi", "background": True}
    answer = ask(
        front.port, "/v1/responses", body, headers={"authorization": f"Bearer {KEYS['ann']}"}
    )
    assert answer.json["status"] == "queued"
    assert answer.headers["X-Infermux-Cost"] == "unpriced"
    return str(answer.json["id"])


def test_a_background_response_is_billed_once_when_its_usage_is_read(keyed, vendors, tmp_path):
    ledger = tmp_path / "ledger.db"
    ident = start(keyed)
    assert rows(ledger) == [("ann", None, None, 1, "gpt-4.1")], "unpriced until it has ended"
    get = partial(call, keyed, "GET", f"/v1/responses/{ident}", KEYS["ann"])
    assert get().json["status"] == "queued"
    vendors[0].finish(next(reversed(vendors[0].stored)))
    for _ in range(3):
        answer = get()
        assert (answer.json["id"], answer.json["status"]) == (ident, "completed")
    billed = [row for row in rows(ledger) if row[2]]
    assert billed == [BILLED]
    assert keyed.router.ledger.spent(Budget("ann", usd="5"), at=time.time())[0] == COST


def test_another_worker_does_not_bill_a_background_response_again(keyed, vendors, tmp_path):
    ledger = tmp_path / "ledger.db"
    ident = start(keyed)
    vendors[0].finish(next(reversed(vendors[0].stored)))
    keys = keyed.router.keyring
    other = SQLiteLedger(str(ledger))
    with Front(provider(vendors[0]), keyring=keys, ledger=other) as second:
        for front in (keyed, second, keyed, second):
            answer = call(front, "GET", f"/v1/responses/{ident}", KEYS["ann"])
            assert answer.json["status"] == "completed"
    assert [row for row in rows(ledger) if row[2]] == [BILLED]


def test_a_background_response_that_is_streamed_later_is_billed_too(keyed, vendors, tmp_path):
    ident = start(keyed)
    vendors[0].finish(next(reversed(vendors[0].stored)))
    for _ in range(2):
        answer = call(keyed, "GET", f"/v1/responses/{ident}?stream=true", KEYS["ann"])
        events = [event.json for event in sse(answer.data)]
        assert events[-1]["type"] == "response.completed"
        assert events[-1]["response"]["id"] == ident
    billed = [row for row in rows(tmp_path / "ledger.db") if row[2]]
    assert billed == [BILLED]


@pytest.mark.parametrize("cut", [True, False])
def test_a_background_stream_is_billed_once_also_if_it_was_cut(
    keyed, vendors, tmp_path, monkeypatch, cut
):
    monkeypatch.setattr(vendors[0], "cuts_background", cut)
    body = {"model": "gpt-4.1", "input": "Hi", "background": True}
    with client(keyed, KEYS["ann"]) as oai:
        with oai.responses.create(**body, stream=True) as stream:
            ident = next(iter(stream)).response.id
            with pytest.raises(openai.APIError) if cut else nullcontext():
                assert [*stream][-1].response.id == ident
        first = ("ann", None, None, 1, "gpt-4.1") if cut else (*BILLED[:4], "gpt-4.1")
        assert rows(tmp_path / "ledger.db") == [first]
        for _ in range(2):
            with oai.responses.retrieve(ident, stream=True, starting_after=1) as stream:
                assert [*stream][-1].response.id == ident
            assert oai.responses.retrieve(ident).status == "completed"
    assert [row[:4] for row in rows(tmp_path / "ledger.db") if row[2]] == [BILLED[:4]]


def test_reading_what_was_billed_costs_nothing(keyed, vendors, tmp_path):
    headers = {"authorization": f"Bearer {KEYS['ann']}"}
    ident = ask(
        keyed.port, "/v1/responses", {"model": "gpt-4.1", "input": "Hi"}, headers=headers
    ).json["id"]
    for _ in range(2):
        assert call(keyed, "GET", f"/v1/responses/{ident}", KEYS["ann"]).status == 200
    costs = [row[2] for row in rows(tmp_path / "ledger.db")]
    assert sorted(costs) == [0, 0, COST]


def test_the_limits_of_a_key_hold_for_what_is_stored(vendors, tmp_path):
    one, _ = vendors
    limits = Admission(rates=RateLimiter(tmp_path / "ledger.rates"))
    keys = Keyring([(hashed(KEYS["ann"]), Caller("ann", rpm=3))])
    with Front(provider(one), keyring=keys, admission=limits) as front:
        headers = {"authorization": f"Bearer {KEYS['ann']}"}
        body = {"model": "gpt-4.1", "input": "Hi"}
        given = ask(front.port, "/v1/responses", body, headers=headers).json["id"]
        path = f"/v1/responses/{given}"
        found = [call(front, "GET", path, KEYS["ann"]).status for _ in range(4)]
    assert found == [200, 200, 429, 429]


def test_a_provider_with_another_key_does_not_know_the_id(vendors):
    one, two = vendors
    body = {"model": "openai/gpt-4.1", "input": "Hi"}
    with Front(provider(one), provider(two, "other")) as front:
        given = ask(front.port, "/v1/responses", body).json["id"]
    with Front(provider(one), provider(two, "other")) as again:
        assert call(again, "GET", f"/v1/responses/{given}").json["id"] == given
    with Front(provider(one, key="sk-new"), provider(two, "other")) as changed:
        assert call(changed, "GET", f"/v1/responses/{given}").status == 404
