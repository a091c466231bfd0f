"""Tests of files and batches: at which provider they are, and who may read them."""

from __future__ import annotations

import re
import time
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from doors import Front
from media_vendor import MediaVendor, reply
from pages import LOGIN, mounted
from support import ask
from test_media import form, provider

from infermux import Caller, HTTPProvider, Router, build, openai_blueprint
from infermux.admission import Admission
from infermux.admission.keys import Keyring, hashed
from infermux.admission.rate_limiter import RateLimiter
from infermux.config import readers
from infermux.dialects.openai.endpoints import ENDPOINTS
from infermux.errors import ConfigError, NotFound, RequestError
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price, usd
from infermux.protocol import InferRequest
from infermux.protocol.passed import Passed
from infermux.providers import PRESETS
from infermux.routing.accounting.passed import most_passed
from infermux.routing.explain import explain, question

openai = pytest.importorskip("openai")
KEYS = {"ann": "key-of-ann", "bob": "key-of-bob"}
LINES = b'{"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {}}\n'


@pytest.fixture
def vendors():
    with MediaVendor() as one, MediaVendor("two") as two:
        yield one, two


def ring(**more: Any) -> Keyring:
    return Keyring((hashed(key), Caller(name, **more)) for name, key in KEYS.items())


def clients(front: Front) -> list[Any]:
    base = f"http://127.0.0.1:{front.port}/v1"
    return [openai.OpenAI(base_url=base, api_key=key, max_retries=0) for key in KEYS.values()]


@pytest.fixture
def shared(vendors, tmp_path):
    """Two providers and two callers."""
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    found = [provider(vendors[0]), provider(vendors[1], "other")]
    prices = {
        "openai": {"gpt-4.1": Price.of({"input": "2", "output": "8", "service": {"batch": "0.5"}})}
    }
    with Front(*found, keyring=ring(), ledger=ledger, prices=prices) as front:
        yield front


def at(name: str) -> dict[str, str]:
    return {"X-Infermux-Provider": name}


def test_a_file_and_its_batch_are_at_one_provider(shared, vendors):
    ann, bob = clients(shared)
    with ann, bob:
        file = ann.files.create(file=("a.jsonl", LINES), purpose="batch", extra_headers=at("other"))
        assert (file.filename, file.bytes) == ("a.jsonl", len(LINES))
        assert file.id not in vendors[1].files
        assert ann.files.retrieve(file.id).id == file.id
        assert ann.files.content(file.id).read() == LINES
        batch = ann.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
        assert (batch.status, batch.input_file_id) == ("validating", file.id)
        assert not vendors[0].seen
        [made] = vendors[1].batches.values()
        assert made["input_file_id"] in vendors[1].files
        assert ann.batches.cancel(batch.id).status == "cancelling"
        vendors[1].complete(made["id"])
        done = ann.batches.retrieve(batch.id)
        assert (done.id, done.status) == (batch.id, "completed")
        assert ann.files.content(done.output_file_id).read() == b'{"custom_id":"a"}\n'
        assert ann.files.delete(file.id).deleted is True
        with pytest.raises(openai.NotFoundError):
            ann.files.retrieve(file.id)


def test_nobody_reads_what_others_have_made(shared, vendors):
    ann, bob = clients(shared)
    with ann, bob:
        file = ann.files.create(file=("a.jsonl", LINES), purpose="batch")
        batch = ann.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
        vendors[0].forget()
        raw = next(iter(vendors[0].files))
        for ident in (file.id, raw, file.id[:-1] + "x", "file-x", batch.id, "...", "a%2Fb"):
            for call in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    call(ident)
            with pytest.raises(openai.NotFoundError):
                bob.batches.create(
                    input_file_id=ident, endpoint="/v1/responses", completion_window="24h"
                )
        for call in (bob.batches.retrieve, bob.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                call(batch.id)
        with pytest.raises(openai.NotFoundError):
            ann.files.retrieve(batch.id)
        assert not vendors[0].seen


def test_a_file_in_a_conversation_chooses_the_provider(vendors, tmp_path):
    answer = {
        "id": "1",
        "model": "m",
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}],
    }
    chat = partial(dict, model="both")
    with Front(
        provider(vendors[0]), provider(vendors[1], "other"), keyring=ring(), ledger=None
    ) as front:
        front.router.registry.define("both", ["openai/gpt-4.1", "other/gpt-4.1"])
        ann, bob = clients(front)
        with ann, bob:
            file = ann.files.create(
                file=("a.pdf", b"%PDF"), purpose="user_data", extra_headers=at("other")
            )
            said = [{"role": "user", "content": [{"type": "file", "file": {"file_id": file.id}}]}]
            vendors[1].forget(reply(answer))
            assert ann.chat.completions.create(**chat(messages=said)).choices
            [seen] = vendors[1].seen
            [part] = seen.body["messages"][0]["content"]
            assert part["file"]["file_id"] in vendors[1].files
            assert [each.body["messages"] for each in vendors[0].seen] == [said]  # a 404
            with pytest.raises(openai.NotFoundError):
                bob.chat.completions.create(**chat(messages=said))
            with pytest.raises(openai.BadRequestError) as caught:
                ann.chat.completions.create(**chat(messages=said) | {"model": "openai/gpt-4.1"})
            assert "upload the file to the model's provider" in caught.value.message
            vendors[0].forget(reply(answer))
            said[0]["content"][0]["file"]["file_id"] = "file-of-the-vendor"
            ann.chat.completions.create(**chat(messages=said))
            assert vendors[0].seen[0].body["messages"] == said


def test_anthropics_files_are_others(shared):
    key = {"authorization": "Bearer key-of-ann", "anthropic-version": "2023-06-01"}
    answer = ask(shared.port, "/v1/files", headers=key)
    assert (answer.status, answer.json["type"]) == (404, "error")


def test_lists_have_only_ones_own(shared, vendors):
    ann, bob = clients(shared)
    with ann, bob:
        files = {client: [] for client in (ann, bob)}
        for number in range(5):
            for client, made in files.items():
                name = f"{number}.jsonl"
                made.append(client.files.create(file=(name, LINES), purpose="batch").id)
        for client, made in files.items():
            assert [each.id for each in client.files.list()] == made[::-1]
            assert [each.id for each in client.files.list(limit=2)] == made[::-1]  # pages of two
            assert [each.id for each in client.files.list(after=made[2])] == made[1::-1]
            assert list(client.files.list(extra_headers=at("other"))) == []
        batch = partial(ann.batches.create, endpoint="/v1/responses", completion_window="24h")
        batches = [batch(input_file_id=ident).id for ident in files[ann][:3]]
        assert [each.id for each in ann.batches.list(limit=2)] == batches[::-1]
        assert list(bob.batches.list()) == []
        vendors[0].complete(next(iter(vendors[0].batches)))
        output = ann.batches.retrieve(batches[0]).output_file_id
        assert output in [each.id for each in ann.files.list()]
        assert output not in [each.id for each in bob.files.list()]
        ann.files.delete(output)
        assert output not in [each.id for each in ann.files.list()]


def test_ids_stay_as_they_are_where_there_is_nothing_to_tell(vendors):
    with Front(provider(vendors[0])) as front, clients(front)[0] as client:
        file = client.files.create(file=("a.jsonl", LINES), purpose="batch")
        assert file.id in vendors[0].files
        assert [each.id for each in client.files.list()] == [file.id]
        assert client.files.content(file.id).read() == LINES


@pytest.mark.slow
def test_ids_stay_valid_when_there_are_more_providers_and_keys(vendors, tmp_path):
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    alone = Keyring([(hashed("key-of-ann"), Caller("ann"))])
    with Front(provider(vendors[0]), keyring=alone, ledger=ledger) as front:
        ann, _ = clients(front)
        with ann:
            file = ann.files.create(file=("a.jsonl", LINES), purpose="batch").id
            batch = ann.batches.create(
                input_file_id=file, endpoint="/v1/responses", completion_window="24h"
            ).id
    assert file in vendors[0].files and batch in vendors[0].batches
    made = [provider(vendors[1], "other"), provider(vendors[0])]
    with Front(*made, keyring=ring(), ledger=SQLiteLedger(tmp_path / "ledger.db")) as front:
        ann, bob = clients(front)
        with ann, bob:
            assert ann.files.content(file).read() == LINES
            assert ann.batches.retrieve(batch).status == "validating"
            assert [each.id.startswith(file) for each in ann.files.list(extra_headers=at("openai"))]
            for work in (bob.files.retrieve, bob.files.content, bob.files.delete):
                with pytest.raises(openai.NotFoundError):
                    work(file)
            for unknown in (f"{file}x", "file-one99"):
                with pytest.raises(openai.NotFoundError):
                    ann.files.retrieve(unknown)
            assert ann.files.delete(file).deleted
    ledger.close()


def test_a_batch_is_billed_once_when_it_has_ended(shared, vendors):
    ann, _ = clients(shared)
    rows = partial(shared.router.ledger.rows, limit=20)
    with ann:
        file = ann.files.create(file=("a.jsonl", LINES), purpose="batch")
        batch = ann.batches.create(
            input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
        )
        ann.batches.retrieve(batch.id)
        found = {each.call.api: each.call for each in rows()}
        assert (found["files"].cost, found["files"].unpriced) == (0, 0)
        assert [each.call.unpriced for each in rows() if each.call.api == "batches"] == [0, 1]
        vendors[0].complete(next(iter(vendors[0].batches)))
        for _ in range(3):
            ann.batches.retrieve(batch.id)
        billed = [each.call for each in rows() if each.call.cost]
    [call] = billed
    assert call.cost == (1000 * 2 + 100 * 8) * 10**6 // 2
    assert (call.caller, call.model, call.api) == ("ann", "gpt-4.1", "batches")
    assert call.at_ns == batch.created_at * 10**9


@pytest.mark.parametrize(("completed", "times"), [(10, 1), (1, 2), (None, 2)])
def test_a_batch_costs_what_requests_of_its_mean_size_did_when_it_began(
    completed, times, vendors, tmp_path
):
    dearer = {"input": "4", "output": "16"}
    price = {"input": "2", "output": "8", "service": {"batch": "0.5"}}
    price |= {"tiers": [{"over": 500, **dearer}], "next": [{"from": "2026-10-01", "input": "9"}]}
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    prices = {"openai": {"gpt-4.1": Price.of(price)}}
    with Front(provider(vendors[0]), keyring=ring(), ledger=ledger, prices=prices) as front:
        ann, _ = clients(front)
        with ann:
            file = ann.files.create(file=("a.jsonl", LINES), purpose="batch")
            batch = ann.batches.create(
                input_file_id=file.id, endpoint="/v1/responses", completion_window="24h"
            )
            [made] = vendors[0].batches
            vendors[0].complete(made)
            if completed is not None:
                counts = {"total": 12, "completed": completed, "failed": 2}
                vendors[0].batches[made]["request_counts"] = counts
            ann.batches.retrieve(batch.id)
        [cost] = [each.call.cost for each in ledger.rows() if each.call.cost]
    assert cost == (1000 * 2 + 100 * 8) * 10**6 // 2 * times


def test_a_key_of_some_models_makes_no_batch(vendors):
    with Front(provider(vendors[0]), keyring=ring(models=("gpt-4.1",))) as front:
        ann, _ = clients(front)
        with ann, pytest.raises(openai.PermissionDeniedError) as caught:
            ann.batches.create(input_file_id="f", endpoint="/v1/x", completion_window="24h")
        assert caught.value.code == "model_not_allowed"


@pytest.mark.parametrize("then", ["reject", "warn"])
def test_a_hard_budget_refuses_what_cannot_be_computed(vendors, tmp_path, then):
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    keys = ring(budget=Budget(usd="1", then=then))
    with Front(provider(vendors[0]), keyring=keys, ledger=ledger) as front:
        ann, _ = clients(front)
        with ann:
            file = ann.files.create(file=("a.jsonl", LINES), purpose="batch")  # costs nothing

            def batch() -> Any:
                return ann.batches.create(
                    input_file_id=file.id, endpoint="/v1/x", completion_window="24h"
                )

            def picture() -> Any:
                return ann.images.generate(prompt="a", model="gpt-image-1")

            for make, code in ((batch, "what a batch costs"), (picture, "price of")):
                if then == "warn":
                    make()
                    continue
                with pytest.raises(openai.APIStatusError) as caught:
                    make()
                assert (caught.value.status_code, caught.value.code) == (402, "unpriced_model")
                assert code in caught.value.message


def test_a_hard_budget_holds_what_can_be_computed(vendors, tmp_path):
    speech = Price.of({"input": "0", "fees": {"characters": "0.015"}})
    image = Price.of({"input": "5", "input_image": "10", "output": "40", "max_output": 2000})
    prices = {"openai": {"tts-1": speech, "gpt-image-1": image}}
    keys = ring(budget=Budget(usd="0.2", then="reject"))
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    with Front(provider(vendors[0]), keyring=keys, ledger=ledger, prices=prices) as front:
        ann, _ = clients(front)
        with ann:
            ann.audio.speech.create(model="tts-1", voice="a", input="Hello").read()
            ann.images.generate(prompt="a", model="gpt-image-1")
            with pytest.raises(openai.APIStatusError) as caught:
                ann.images.generate(prompt="a", model="gpt-image-1", n=3)
            assert caught.value.code == "budget_exceeded"
            tight = {"model": "gpt-image-1", "prompt": "a", "stream": True, "partial_images": 3}
            most = [most_passed(InferRequest(op="images/generations", params=tight | more,
                                             passed=Passed()), image) or 0
                    for more in ({}, {"partial_images": 0}, {"n": 2})]  # fmt: skip
            assert [each - most[1] for each in most] == [300 * 40 * 10**6, 0, 2600 * 40 * 10**6]
            with pytest.raises(openai.APIStatusError) as caught:
                ann.audio.speech.create(model="tts-1", voice="a", input="H" * 20_000)
            assert caught.value.code == "budget_exceeded"


def edit(port: int, *fields: tuple[str, bytes], image: bytes = b"PNG") -> Any:
    """Ask for an edited image; fields named "after" stand behind the image."""
    parts = [(f'name="{name}"', value) for name, value in fields]
    before = [each for each in parts if "after" not in each[0]]
    behind = [(name.replace("after ", ""), value) for name, value in parts if "after" in name]
    file = ('name="image"; filename="a.png"', image)
    kind = {"Content-Type": "multipart/form-data; boundary=xYz"}
    key = {"Authorization": "Bearer key-of-ann"}
    body = form(*before, ('name="model"', b"gpt-image-1"), file, *behind)
    return ask(port, "/v1/images/edits", body, headers=kind | key, method="POST")


def test_a_hard_budget_counts_images_wherever_their_number_stands(vendors, tmp_path):
    price = Price.of({"input": "0", "fees": {"images": "40"}})
    keys = ring(budget=Budget(usd="0.30", then="reject"))
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    prices = {"openai": {"gpt-image-1": price}}
    with Front(provider(vendors[0]), keyring=keys, ledger=ledger, prices=prices) as front:
        answer = edit(front.port, ("n", b"1"), ("n", b"10"))
        assert (answer.status, answer.json["error"]["param"]) == (400, "n")
        long = bytes(2 * 1024 * 1024)
        for fields, image in (([("n", b"10")], b"PNG"), ([("after n", b"10")], long)):
            answer = edit(front.port, *fields, image=image)
            assert (answer.status, answer.json["error"]["code"]) == (402, "budget_exceeded")
        assert not vendors[0].seen
        assert edit(front.port, ("n", b"3")).status == 200
        assert edit(front.port, ("n", b"3"), image=long).status == 200
        [state] = ledger.states([keys.own["ann"].budget], time.time())
        assert usd(state.spent) == "0.24"  # though the vendor also told tokens
        assert edit(front.port, ("n", b"3")).status == 402


def test_a_hard_budget_needs_the_most_seconds_of_a_transcription(vendors, tmp_path):
    price = Price.of({"input": "0", "output": "0", "fees": {"seconds": "0.1"}})
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    keys = ring(budget=Budget(usd="1", then="reject"))
    prices = {"openai": {"whisper-1": price}}
    with Front(provider(vendors[0]), keyring=keys, ledger=ledger, prices=prices) as front:
        ann, _ = clients(front)
        with ann, pytest.raises(openai.APIStatusError) as caught:
            ann.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"RIFF"))
        assert caught.value.code == "unpriced_model"


@pytest.mark.sampled(1)
@pytest.mark.parametrize("scope", ["openai/*", "openai/gpt-4.1", "gpt-4.1"])
def test_a_key_of_some_models_has_the_files_of_their_providers(vendors, tmp_path, scope):
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    made = HTTPProvider(
        "openai", base_url=f"{vendors[0].url}/v1", api_key="sk", models=["gpt-4.1", "gpt-5"]
    )
    other = HTTPProvider("other", base_url=f"{vendors[1].url}/v1", api_key="sk", models=["o-1"])
    with Front(other, made, keyring=ring(models=(scope,)), ledger=ledger) as front:
        ann, _ = clients(front)
        with ann:
            file = ann.files.create(file=("a.jsonl", LINES), purpose="batch")
            assert file.id.startswith("file-one") and not vendors[1].seen
            assert ann.files.retrieve(file.id).id == file.id
            for work in (
                lambda: ann.files.list(extra_headers=at("other")),
                lambda: ann.batches.list(extra_headers=at("other")),
                lambda: ann.files.create(
                    file=("a", b"b"), purpose="batch", extra_headers=at("other")
                ),
            ):
                with pytest.raises(openai.PermissionDeniedError, match="no model of provider"):
                    work()
        assert not vendors[1].seen


def test_the_circuit_of_files_is_shown_and_does_not_stop_the_provider(vendors):
    """A button in its row would open the circuits of all of the provider's models."""
    router = Router([provider(vendors[0])], attempts=1)
    app = mounted(router)
    app.register_blueprint(openai_blueprint(router))
    client = app.test_client()
    body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', b"b"))
    vendors[0].forget(*[reply({}, 500)] * 9)
    for _ in range(6):
        sent = client.post("/v1/files", data=body, content_type="multipart/form-data; boundary=xYz")
        assert sent.status_code == 502
    page = client.get("/ops/status", headers=LOGIN).text
    assert "the files of openai" in page and "files and batches" in page
    assert page.count('<details class="target"') == 2
    assert page.count("data-target=") == 1 and "gpt-4.1" in page.partition("data-target=")[2][:60]
    found = client.get("/ops/status/targets", headers=LOGIN).json["targets"]
    assert [(each["model"], each["state"]) for each in found] == [
        ("gpt-4.1", "closed"),
        ("", "open"),
    ]
    body = {"model": "gpt-image-1", "prompt": "a"}
    assert client.post("/v1/images/generations", json=body).status_code in (200, 502)
    router.close()


@pytest.mark.parametrize("what", ["files", "batches"])
def test_limits_per_minute_hold_for_files_and_batches(vendors, tmp_path, what):
    rates = {name: RateLimiter(tmp_path / name) for name in ("rates", "user_rates")}
    keys = ring(rpm=3, user_rpm=1)
    made = [provider(vendors[0]), provider(vendors[1], "other")]
    ledger = SQLiteLedger(tmp_path / "ledger.db")
    with Front(*made, keyring=keys, admission=Admission(**rates), ledger=ledger) as front:

        def asked(key: str, **more: str) -> Any:
            headers = {"Authorization": f"Bearer key-of-{key}"} | more
            return ask(front.port, f"/v1/{what}", headers=headers)

        assert asked("ann", **{"X-Infermux-User": "eve"}).status == 200
        refused = asked("ann", **{"X-Infermux-User": "eve"})
        assert refused.status == 429 and "this end user" in refused.json["error"]["message"]
        body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', b"b" * 2**21))
        head = {"Authorization": "Bearer key-of-ann"}
        head |= {"Content-Type": "multipart/form-data; boundary=xYz"}
        assert ask(front.port, "/v1/files", body, headers=head, method="POST").status == 200
        assert asked("ann").status == 200
        seen = len(vendors[0].seen)
        refused = ask(front.port, "/v1/files", body, headers=head, method="POST")
        assert refused.status == 429 and "Retry-After" in refused.headers
        assert [asked(key).status for key in ("ann", "bob")] == [429, 200]
        assert len(vendors[0].seen) == seen
        rows = [(row.call.api, row.call.status) for row in ledger.rows(limit=99)]
        assert rows.count((what, "429")) + rows.count(("files", "429")) >= 3


def test_bytes_of_uploads_are_bounded(vendors):
    """What does not fit into the room for bodies is refused before it is read."""
    with Front(provider(vendors[0]), admission=Admission(bodies=100_000)) as front:
        head = {"Content-Type": "multipart/form-data; boundary=xYz"}
        for size, status in ((10_000, 200), (200_000, 503), (10_000, 200)):
            body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', b"b" * size))
            sent = ask(front.port, "/v1/files", body, headers=head, method="POST")
            assert sent.status == status, sent.data


@pytest.mark.sampled(1)
@pytest.mark.parametrize("object", [["file"], {"a": 1}, 7, None])
def test_a_vendors_odd_object_passes(shared, vendors, object):
    vendors[0].forget(reply({"id": "file-1", "object": object}))
    body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', b"b"))
    kind = {
        "Content-Type": "multipart/form-data; boundary=xYz",
        "Authorization": "Bearer key-of-ann",
    }
    answer = ask(shared.port, "/v1/files", body, headers=kind | at("openai"), method="POST")
    assert (answer.status, answer.json) == (200, {"id": "file-1", "object": object})


def test_who_has_files_is_told(vendors):
    two = provider(vendors[1], "other", endpoints={"files": ""})
    claude = HTTPProvider("claude", base_url=vendors[0].url, dialect="anthropic")
    with Front(claude, two) as front:
        for name, status, words in (
            ("claude", 404, "has no /v1/files; providers that have it: other"),
            ("othr", 404, "did you mean 'other'?"),
        ):
            answer = ask(front.port, "/v1/files", headers=at(name))
            assert answer.status == status
            assert words in answer.json["error"]["message"]
        assert ask(front.port, "/v1/files").json["data"] == []  # at the first that has them
        assert (
            "no provider has /v1/batches" in ask(front.port, "/v1/batches").json["error"]["message"]
        )
    with Front(claude) as front:
        body = form(('name="purpose"', b"batch"), ('name="file"; filename="a"', b"b"))
        kind = {"Content-Type": "multipart/form-data; boundary=xYz"}
        answer = ask(front.port, "/v1/files", body, headers=kind, method="POST")
        assert answer.json["error"]["message"] == "no provider has /v1/files"


def test_bad_requests_name_what_is_wrong(shared):
    key = {"authorization": "Bearer key-of-ann"}
    for path, words in (
        ("/v1/files?limit=0", "limit must be a number from 1 to 10000"),
        ("/v1/batches?limit=101", "limit must be a number from 1 to 100"),
        (
            "/v1/files?api-version=1",
            "there is no parameter 'api-version' here; use after, limit, order, purpose",
        ),
    ):
        answer = ask(shared.port, path, headers=key)
        assert (answer.status, answer.json["error"]["message"]) == (400, words)
    answer = ask(shared.port, "/v1/files", {"file": "a"}, headers=key)
    assert "must be multipart/form-data" in answer.json["error"]["message"]
    answer = ask(shared.port, "/v1/batches", {"input_file_id": 7}, headers=key)
    assert answer.json["error"]["message"] == "input_file_id must be the id of a file"
    file = clients(shared)[0].files.create(file=("a", b"b"), purpose="batch").id
    answer = ask(shared.port, f"/v1/files/{file}", headers=key | at("other"))
    assert answer.status == 400
    assert "leave the header out" in answer.json["error"]["message"]


def test_a_list_needs_a_ledger_where_there_are_several_keys(vendors):
    with Front(provider(vendors[0]), keyring=ring()) as front:
        with clients(front)[0] as ann, pytest.raises(openai.BadRequestError) as caught:
            ann.files.list()
        assert "a list needs a ledger" in caught.value.message


def test_what_may_be_done_already_is_not_sent_again(vendors, tmp_path):
    failed = reply({"error": {"message": "down"}}, 500)
    with Front(provider(vendors[0]), attempts=3, seed=1) as front, clients(front)[0] as client:
        file = client.files.create(file=("a.jsonl", LINES), purpose="batch")
        vendors[0].forget(failed)
        with pytest.raises(openai.InternalServerError):
            client.batches.create(input_file_id=file.id, endpoint="/v1/x", completion_window="24h")
        assert len(vendors[0].seen) == 1
        vendors[0].forget(failed)
        assert client.files.retrieve(file.id).id == file.id
        assert len(vendors[0].seen) == 2
        vendors[0].forget(reply({"error": {"message": "wait"}}, 429, Retry_After="0.01"))
        client.batches.create(input_file_id=file.id, endpoint="/v1/x", completion_window="24h")
        assert len(vendors[0].seen) == 2


def test_the_configuration_says_what_a_provider_has(tmp_path):
    def made(lines: str) -> Any:
        file = tmp_path / "infermux.toml"
        file.write_text(
            f'[providers.x]\ntype = "openai"\nbase_url = "http://127.0.0.1:9/v1"\n{lines}'
        )
        with closing(build.load(file, environ={})) as router:
            return [*router.registry.get("x").endpoints]

    assert made("") == [*ENDPOINTS]
    assert made('endpoints = ["rerank", "files"]') == ["rerank", "files"]
    assert made('endpoints = ["none"]') == []
    assert [*readers.ENDPOINTS] == [*ENDPOINTS]
    for lines, words in (
        ('endpoints = ["rerang"]', "'rerank'"),
        ('endpoints = ["none", "files"]', 'must have no other item beside "none"'),
        ('endpoints = "files"', "must be a list"),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            made(lines)
    claude = tmp_path / "claude.toml"
    claude.write_text('[providers.anthropic]\nendpoints = ["files"]\n')
    with pytest.raises(ConfigError, match="another format than OpenAI's"):
        build.load(claude, environ={"ANTHROPIC_API_KEY": "k"})


def test_presets_have_only_known_endpoints():
    for preset in PRESETS.values():
        assert preset.endpoints.keys() <= ENDPOINTS.keys()
        assert preset.dialect in ("openai", "azure") or not preset.endpoints


def test_a_reranker_at_the_host_has_its_own_path(vendors):
    cohere = HTTPProvider(
        "cohere",
        base_url=f"{vendors[0].url}/compatibility/v1",
        api_key="k",
        models=["rerank-v3.5"],
        endpoints=PRESETS["cohere"].endpoints,
    )
    with Front(cohere) as front:
        body = {"model": "rerank-v3.5", "query": "a", "documents": ["b"]}
        assert front.ask("/v1/rerank", body).status == 200
        assert front.ask("/v1/moderations", {"model": "rerank-v3.5", "input": "a"}).status == 404
    assert [each.path for each in vendors[0].seen] == ["/v2/rerank"]


def test_explain_knows_endpoints(vendors):
    one, two = provider(vendors[0], endpoints=["moderations"]), provider(vendors[1], "other")
    with Front(one, two) as front:
        front.router.registry.define("both", ["openai/a", "other/b"])
        found = explain(front.router, question({"model": "both", "endpoint": "/v1/rerank"}))
        assert [each["model"] for each in found.targets] == ["b"]
        assert found.dropped[0]["dropped"] == "has no /v1/rerank"
        with pytest.raises(NotFound, match="providers that have it: other"):
            explain(front.router, question({"model": "openai/a", "endpoint": "rerank"}))
        with pytest.raises(RequestError, match="did you mean 'rerank'"):
            question({"model": "both", "endpoint": "rerang"})


def test_azure_has_its_own_addresses(vendors):
    azure = HTTPProvider(
        "azure",
        base_url=f"{vendors[0].url}/openai?api-version=2024-10-21",
        dialect="azure",
        api_key="k",
        models=["draw"],
    )
    with Front(azure) as front, clients(front)[0] as client:
        client.images.generate(prompt="a", model="draw")
        client.audio.transcriptions.create(file=("a.wav", b"RIFF"), model="azure/my whisper")
        client.files.create(file=("a.jsonl", LINES), purpose="batch")
        assert list(client.files.list(limit=2)) != []
    assert [each.path for each in vendors[0].seen] == [
        "/openai/deployments/draw/images/generations?api-version=2024-10-21",
        "/openai/deployments/my%20whisper/audio/transcriptions?api-version=2024-10-21",
        "/openai/files?api-version=2024-10-21",
        "/openai/files?limit=2&api-version=2024-10-21",
    ]
    assert vendors[0].seen[0].headers["api-key"] == "k"
    assert vendors[0].seen[0].body == {"prompt": "a", "model": "draw"}
