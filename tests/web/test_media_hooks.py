"""Tests of hooks at the endpoints that are passed through: no request goes another way unseen."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import pytest
import redaction
from doors import Front
from media_vendor import SPEECH, MediaVendor, pieces
from support import eventually
from test_media import WAV, provider

from infermux import HookRefused, errors
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price

openai = pytest.importorskip("openai")
MAIL, LINES = "bob.smith@mail.example.org", b'{"custom_id": "a"}\n'


@pytest.fixture(scope="module")
def vendor():
    with MediaVendor() as one:
        yield one


@pytest.fixture(autouse=True)
def calm(vendor):
    vendor.forget()


@contextlib.contextmanager
def service(vendor: MediaVendor, **hooks: Any) -> Any:
    """Yield a service with hooks, and a client of it."""
    with Front(provider(vendor), hooks=hooks) as front:
        base = f"http://127.0.0.1:{front.port}/v1"
        with openai.OpenAI(base_url=base, api_key="any", max_retries=0) as client:
            yield front, client


@pytest.fixture(scope="module")
def redacting(vendor):
    hooks = {name: getattr(redaction, name) for name in ("before", "after", "chunk")}
    with service(vendor, **hooks) as made:
        yield made


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("images/generations", {"prompt": f"a cat of {MAIL}", "n": 2, "user": "ü"}),
        ("images/edits", {"prompt": f"of {MAIL}", "image": [{"file_id": "file-1"}]}),
        ("audio/speech", {"model": "tts-1", "voice": "alloy", "input": f"Call {MAIL}"}),
        ("moderations", {"input": ["fine", f"I hate {MAIL}"], "model": "omni-moderation-latest"}),
        ("moderations", {"input": [{"type": "text", "text": f"I hate {MAIL}"}]}),
        (
            "rerank",
            {"model": "openai/r", "query": f"who is {MAIL}?", "documents": [MAIL, {"text": MAIL}]},
        ),
    ],
)
def test_json_is_seen_and_changed(redacting, vendor, path, body):
    front, _ = redacting
    answer = front.ask(f"/v1/{path}", body)
    assert answer.status == 200, answer.data
    [seen] = vendor.seen
    assert seen.body == redaction.hidden(body) | {"model": seen.model} and MAIL not in str(seen)


def test_what_a_hook_does_not_change_passes_byte_for_byte(vendor):
    told = []
    with service(vendor, before=lambda request, call: told.append((request.params, call))) as made:
        front, _ = made
        body = b'{ "prompt" : "a \\u00fc", "n":1.0, "model":"gpt-image-1" }'
        assert front.ask("/v1/images/generations", body).status == 200
    [(params, call)] = told
    assert params == {"prompt": "a ü", "n": 1.0}
    assert (call.op, call.api, call.model) == ("images/generations", "images", "gpt-image-1")
    assert int(vendor.seen[0].headers["content-length"]) == len(body)


@pytest.mark.parametrize("size", [100, 3 * 2**20], ids=["short", "long"])
def test_the_fields_of_a_form_are_seen_and_changed(redacting, vendor, size):
    _, client = redacting
    sound = bytes(size)
    client.audio.transcriptions.create(
        file=("a.wav", sound),
        model="openai/whisper-1",
        prompt=f"with {MAIL}",
        timestamp_granularities=["word", "segment"],
    )
    [seen] = vendor.seen
    assert seen.body.fields == {
        "model": "whisper-1",
        "prompt": "with [mail]",
        "timestamp_granularities[]": "segment",  # the last of both, as the vendor's test reads it
    }
    assert seen.body.files == {"file": sound}
    client.images.edit(image=("a.png", sound), prompt=f"{MAIL} with a hat", model="gpt-image-1")
    assert vendor.seen[1].body.fields["prompt"] == "[mail] with a hat"


def form(*fields: tuple[str, str], file: int = 10, last: tuple[str, str] | None = None) -> bytes:
    part = '--b\r\nContent-Disposition: form-data; name="{}"\r\n\r\n{}\r\n'.format
    sound = f'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n{"x" * file}'
    rest = part(*last) if last else ""
    return f"{''.join(part(*each) for each in fields)}{sound}\r\n{rest}--b--\r\n".encode()


FORM = {"content-type": "multipart/form-data; boundary=b"}


def test_no_field_hides_behind_a_file_or_another_field(vendor):
    seen = []

    def before(request: Any) -> None:
        seen.append(request.params)
        if MAIL in str(request.params):
            raise HookRefused("no names", status=403, code="names")

    with service(vendor, before=before) as (front, _):
        model, named = ("model", "whisper-1"), ("prompt", MAIL)
        for data in (
            form(model, ("prompt", "x"), file=3 * 2**20, last=named),
            form(model, named, file=3 * 2**20),
            form(model, ("hints[]", "x"), ("hints[]", MAIL)),
            form(("prompt", MAIL), file=3 * 2**20, last=model),
            form(model, ("prompt", "x"), named),  # which one counts is the vendor's secret
        ):
            answer = front.ask("/v1/audio/transcriptions", data, **FORM)
            assert (answer.status, answer.json["error"]["code"]) == (403, "names")
        assert [each.get("hints[]") for each in seen if "hints[]" in each] == [["x", MAIL]]
        data = form(model, ("prompt", "x" * 200_000 + MAIL))
        assert front.ask("/v1/audio/transcriptions", data, **FORM).status == 413
    assert not vendor.seen


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    "change",
    [
        lambda params: params.pop("prompt"),
        lambda params: params.update({"prompt": 7}),
        lambda params: params.update({"prompt": "--b"}),
        lambda params: params.update({'x"; name="model': "other"}),
        lambda params: params["hints[]"].append("c"),
    ],
)
def test_a_change_that_a_form_cannot_hold_is_a_failure(vendor, change):
    with service(vendor, before=lambda request: change(request.params) and None) as (front, _):
        data = form(("model", "whisper-1"), ("prompt", "x"), ("hints[]", "a"), ("hints[]", "b"))
        answer = front.ask("/v1/audio/transcriptions", data, **FORM)
    assert (answer.status, answer.json["error"]["code"]) == (503, "hook_failed")
    assert not vendor.seen


def test_a_hook_may_choose_another_model_and_add_a_field(vendor):
    def before(request: Any) -> None:
        request.model = "openai/gpt-4o-transcribe"
        request.params["language"] = "de"

    with service(vendor, before=before) as (front, _):
        answer = front.ask("/v1/audio/transcriptions", form(("model", "whisper-1")), **FORM)
        assert answer.status == 200, answer.data
        assert front.ask("/v1/images/generations", {"prompt": "a"}).status == 200
    assert vendor.seen[0].body.fields == {"model": "gpt-4o-transcribe", "language": "de"}
    assert vendor.seen[1].body == {
        "prompt": "a", "model": "gpt-4o-transcribe", "language": "de"
    }  # fmt: skip


def test_a_refusal_costs_nothing_and_a_change_is_counted(vendor, tmp_path):
    def before(request: Any) -> None:
        if "no" in request.params["input"]:
            raise HookRefused("no")
        request.params["input"] = "four"

    price = {"openai": {"tts-1": Price.of({"input": "0", "fees": {"characters": "1"}})}}
    more = {"ledger": SQLiteLedger(tmp_path / "l.db"), "prices": price}
    with Front(provider(vendor), hooks={"before": before}, **more) as front:
        speak = {"model": "tts-1", "voice": "alloy"}
        assert front.ask("/v1/audio/speech", speak | {"input": "no"}).status == 400
        assert front.ask("/v1/audio/speech", speak | {"input": "a long text"}).status == 200
        rows = eventually(lambda: len(found := front.router.ledger.rows(limit=9)) == 2 and found)
        assert sorted(each.call.cost or 0 for each in rows) == [0, 4 * 10**9]


@pytest.mark.slow
def test_files_and_batches_are_refused_unless_they_may_pass_unseen(vendor):
    def upload(client: Any) -> Any:
        return client.files.create(file=("a.jsonl", LINES), purpose="batch")

    def batch(client: Any, file: str) -> Any:
        return client.batches.create(
            input_file_id=file, endpoint="/v1/responses", completion_window="24h"
        )

    with service(vendor, before=print, unseen="pass") as (_, client):
        file = upload(client).id
        made = batch(client, file).id
    with service(vendor, before=print) as (front, client):
        for work in (upload, lambda client: batch(client, file)):
            with pytest.raises(openai.PermissionDeniedError) as caught:
                work(client)
            assert caught.value.code == "refused_by_hook" and "one by one" in caught.value.message
        assert client.files.content(file).read() == LINES
        assert [each.id for each in client.batches.list()] == [made]
        assert client.batches.cancel(made).status == "cancelling"
        assert client.files.delete(file).deleted
        long = front.ask("/v1/files", form(("purpose", "batch"), file=3 * 2**20), **FORM)
        assert long.status == 403
    with service(vendor, after=lambda answer: None) as (_, client):  # which sees no request
        assert upload(client).id
    with pytest.raises(errors.ConfigError, match='unseen must be "refuse" or "pass"'):
        service(vendor, before=print, unseen="no").__enter__()


def test_an_answer_that_no_hook_sees_is_not_held_back(vendor):
    heard, waited, seen = threading.Event(), [], []
    vendor.forget(pieces(SPEECH, lambda: waited.append(heard.wait(30)), b"end"))
    with service(vendor, after=seen.append) as (_, client):
        with client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello"
        ) as answer:
            got = answer.iter_bytes()
            assert next(got)
            heard.set()
            assert b"".join(got).endswith(b"end")
        sound = ("a.wav", WAV)
        found = list(
            client.audio.transcriptions.create(file=sound, model="gpt-4o-transcribe", stream=True)
        )
    assert found[-1].type == "transcript.text.done"
    assert waited == [True] and not seen
