"""Tests of hooks at the endpoints that are passed through: nothing goes another way unseen."""

from __future__ import annotations

import contextlib
import json
import threading
from dataclasses import replace
from typing import Any

import pytest
import redaction
from doors import Front
from media_vendor import PNG, SPEECH, TOKENS, MediaVendor, events, pieces, reply
from support import eventually
from test_media import provider

from infermux import HookRefused, errors
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price
from infermux.routing.explain import explain, question

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
    with service(vendor, **hooks, unseen="pass") as made:
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


@pytest.mark.parametrize("messages", [None, 5, "x", [5]], ids=str)
def test_what_cannot_be_the_messages_is_a_failure(vendor, messages):
    with service(vendor, before=lambda each: replace(each, messages=messages)) as (front, _):
        answer = front.ask("/v1/moderations", {"input": "x"})
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
    with (
        service(vendor, after=seen.append, unseen="pass") as (_, client),
        client.audio.speech.with_streaming_response.create(
            model="tts-1", voice="alloy", input="Hello"
        ) as answer,
    ):
        got = answer.iter_bytes()
        assert next(got)
        heard.set()
        assert b"".join(got).endswith(b"end")
    assert waited == [True] and not seen


# -- answers ---------------------------------------------------------------------------------------

HEARD = f"It is {MAIL}, I say."


def transcribe(front: Front, **fields: str) -> Any:
    data = form(("model", "whisper-1"), *fields.items())
    return front.ask("/v1/audio/transcriptions", data, **FORM)


def test_texts_of_whole_answers_are_seen_and_changed(redacting, vendor):
    front, _ = redacting
    words = [{"word": MAIL, "start": 0.5, "end": 1.5}]
    segments = [
        {"id": 0, "text": f" It is {MAIL},", "tokens": [1, 2]},
        {"id": 1, "text": " I say.", "tokens": [3]},
    ]
    whole = {"text": HEARD, "language": "english", "segments": segments, "words": words}
    vendor.forget(
        reply(whole),
        reply(whole | {"segments": segments[:1]}),
        reply({"text": "Hello", "words": []}),
    )
    first, second, third = (transcribe(front) for _ in range(3))
    assert first.json == {
        "text": "It is [mail], I say.",
        "language": "english",
        "segments": [
            {"id": 0, "text": " It is [mail],", "tokens": []},
            {"id": 1, "text": " I say.", "tokens": []},
        ],
    }
    assert second.json == {"text": "It is [mail], I say.", "language": "english"}
    assert third.data == b'{"text": "Hello", "words": []}'
    cues = f"1\n00:00:00,000 --> 00:00:02,000\n{HEARD}\n".encode()
    vendor.forget(reply(cues, Content_Type="text/plain"))
    found = transcribe(front, response_format="srt")
    assert found.data == cues.replace(MAIL.encode(), b"[mail]")
    assert found.headers["content-length"] == str(len(found.data))
    drawn = [{"b64_json": PNG, "revised_prompt": f"a cat of {MAIL}"}] * 2
    vendor.forget(reply({"data": drawn}))
    answer = front.ask("/v1/images/generations", {"prompt": "a", "n": 2})
    assert answer.json["data"] == [{"b64_json": PNG, "revised_prompt": "a cat of [mail]"}] * 2
    ranked = [{"index": 0, "document": MAIL}, {"index": 1, "document": {"text": MAIL, "n": 1}}]
    vendor.forget(reply({"results": ranked}))
    answer = front.ask("/v1/rerank", {"model": "openai/r", "query": "a", "documents": ["b", "c"]})
    assert [each["document"] for each in answer.json["results"]] == [
        "[mail]",
        {"text": "[mail]", "n": 1},
    ]


def spoken(*words: str, **more: Any) -> Any:
    deltas = [{"type": "transcript.text.delta", "delta": word, "logprobs": []} for word in words]
    whole = {"type": "transcript.text.done", "text": "".join(words), "usage": TOKENS} | more
    return events(*deltas, whole)


PARTS = ("It is ", "bob.smith", "@mail.", "example.org", ", I say", ". ok")


def streamed(front: Front) -> tuple[str, list[Any]]:
    """Return the words and the other events of a streamed transcript."""
    answer = transcribe(front, stream="true")
    assert answer.status == 200, answer.data
    found = [
        json.loads(each[6:])
        for each in answer.data.decode().split("\n")
        if each[:6] == "data: " and each[6] == "{"
    ]
    deltas = [each for each in found if each.get("type") == "transcript.text.delta"]
    return "".join(each["delta"] for each in deltas), [e for e in found if e not in deltas]


@pytest.mark.parametrize("names", [("chunk",), ("after",), ("chunk", "after")])
def test_words_of_a_streamed_transcript_are_seen_and_changed(vendor, names):
    seen = []

    def after(answer: Any) -> None:
        seen.append(answer.content)
        if "chunk" not in names:
            redaction.after(answer)

    hooks = {"chunk": redaction.chunk, "after": after}
    with service(vendor, **{name: hooks[name] for name in names}) as (front, _):
        vendor.forget(
            spoken(*PARTS),
            spoken(*PARTS, text=f"  {''.join(PARTS)}"),
            events({"type": "transcript.text.done", "text": HEARD, "usage": TOKENS}),
            events(
                {"type": "transcript.text.delta", "delta": HEARD, "segment_id": "s"},
                {"type": "transcript.text.segment", "id": "s", "text": HEARD},
                {"type": "transcript.text.segment", "id": "t", "text": "I say."},
                {"type": "transcript.text.done", "text": HEARD},
            ),
        )
        for _ in range(2):
            text, [end] = streamed(front)
            assert text == end["text"] == "It is [mail], I say. ok"
            assert end["usage"] == TOKENS
        text, [end] = streamed(front)
        assert text == end["text"] == "It is [mail], I say."
        text, [segment, end] = streamed(front)
        assert text == end["text"] == "It is [mail], I say." and segment["id"] == "t"
        assert front.router.admission.bodies.used == 0
    expected = HEARD if names == ("after",) else "It is [mail], I say."
    assert seen[3:] == ([expected] if "after" in names else [])


def test_a_transcript_in_the_chunks_of_chats_is_seen(vendor):
    def chunk(text: str, reason: str | None = None) -> bytes:
        one = {"delta": {"content": text}, "finish_reason": reason}
        return b"data: " + json.dumps({"choices": [one]}).encode() + b"\n\n"

    with service(vendor, chunk=redaction.chunk) as (front, _):
        for parts in (
            [*(chunk(each) for each in PARTS), chunk("", "stop")],
            [*(chunk(each) for each in PARTS[:-1]), chunk(PARTS[-1], "stop")],
            [chunk(each) for each in PARTS],
        ):
            vendor.forget(events(*parts, b"data: [DONE]\n\n"))
            _, found = streamed(front)
            texts = [each["choices"][0]["delta"]["content"] for each in found]
            assert "".join(texts) == "It is [mail], I say. ok"


def test_an_answer_may_be_refused(vendor):
    def no(value: Any) -> None:
        raise HookRefused("not this", status=451, code="no")

    for hooks in ({"after": no}, {"chunk": no}):
        with service(vendor, **hooks) as (front, _):
            answers = [transcribe(front, stream="true")]
            if "after" in hooks:
                answers += [transcribe(front), transcribe(front, response_format="text")]
                answers.append(front.ask("/v1/moderations", {"input": "x"}))
            for answer in answers:
                assert (answer.status, answer.json["error"]["code"]) == (451, "no")


def test_a_hook_of_answers_that_fails_or_changes_more_fails_the_call(vendor):
    def broken(value: Any) -> None:
        raise ValueError("broken")

    def more(answer: Any) -> None:
        answer.reasoning = "so"

    def thinks(chunk: Any) -> Any:
        return chunk._replace(reasoning="so")

    for hooks in ({"after": broken}, {"after": more}, {"chunk": thinks}):
        for streams in ({"stream": "true"}, {} if "after" in hooks else {"stream": "true"}):
            with service(vendor, **hooks) as (front, _):
                answer = transcribe(front, **streams)
                assert (answer.status, answer.json["error"]["code"]) == (503, "hook_failed")
    with service(vendor, after=broken, on_error="open") as (front, _):
        assert transcribe(front).json["text"] == "Hello"


CHAT = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "Hello"}]}


def test_answers_that_hooks_cannot_see_are_refused_before_they_cost(vendor):
    speech = {"model": "tts-1", "voice": "alloy", "input": "Hello"}
    for name in ("after", "chunk"):
        with service(vendor, **{name: print}) as (front, client):
            for path, body in (
                ("audio/speech", speech),
                ("audio/speech", speech | {"stream_format": "sse"}),
                ("images/generations", {"prompt": "a"}),
                ("chat/completions", CHAT | {"modalities": ["text", "audio"]}),
                ("chat/completions", CHAT | {"audio": {"voice": "alloy", "format": "wav"}}),
                ("images/edits", {"prompt": "a", "image": [{"file_id": "file-1"}]}),
            ):
                answer = front.ask(f"/v1/{path}", body)
                assert (answer.status, answer.json["error"]["code"]) == (403, "refused_by_hook")
            speaks = {"contents": [{"parts": [{"text": "a"}]}]}
            speaks |= {"generationConfig": {"responseModalities": ["AUDIO"]}}
            assert front.ask("/v1beta/models/gpt-4.1:generateContent", speaks).status == 403
            assert not vendor.seen
            asked = {"model": "tts-1", "endpoint": "audio/speech"}
            assert explain(front.router, question(asked)).about["refused"] == "refused_by_hook"
            file = client.files.create(file=("a.jsonl", LINES), purpose="batch").id
            with pytest.raises(openai.PermissionDeniedError):
                client.files.content(file)
            assert client.files.retrieve(file).id == file
        vendor.forget()
    vendor.forget(reply(b"\xff\xfe", Content_Type="text/plain"))
    with service(vendor, after=print) as (front, _):
        assert transcribe(front).status == 403
