"""Tests of the endpoints that are passed through to a model, with the official SDK."""

from __future__ import annotations

import io
import threading
from typing import Any

import pytest
from doors import Front
from media_vendor import HEARD, PNG, SPEECH, MediaVendor, events, pieces, reply
from support import ask, eventually

from infermux import HTTPProvider
from infermux.config.settings import Timeouts
from infermux.ledger.sqlite import SQLiteLedger
from infermux.pricing import Price

openai = pytest.importorskip("openai")
WAV = b"RIFF" + bytes(range(256)) * 40


def provider(vendor: Any, name: str = "openai", **options: Any) -> HTTPProvider:
    own = {"pattern": "gpt-|dall-e-|tts-|whisper-|omni-"} if name == "openai" else {}
    return HTTPProvider(
        name,
        base_url=f"{vendor.url}/v1",
        api_key="sk-vendor",
        models=["gpt-4.1"],
        **own | options,
    )


@pytest.fixture(scope="module")
def vendor():
    with MediaVendor() as one:
        yield one


@pytest.fixture(scope="module")
def other():
    with MediaVendor("two") as two:
        yield two


@pytest.fixture(autouse=True)
def calm(vendor, other):
    vendor.forget()
    other.forget()


@pytest.fixture(scope="module")
def service(vendor, other, tmp_path_factory):
    ledger = SQLiteLedger(tmp_path_factory.mktemp("media") / "ledger.db")
    with Front(
        provider(vendor), provider(other, "other"), ledger=ledger, attempts=3, seed=1
    ) as made:
        made.router.registry.define("picture", ["openai/gpt-image-1", "other/gpt-image-1"])
        made.router.registry.define("heard", ["openai/whisper-1", "other/whisper-1"])
        yield made


@pytest.fixture
def front(service):
    service.forget()
    return service


@pytest.fixture
def client(front):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{front.port}/v1", api_key="any", max_retries=0
    ) as made:
        yield made


def row(front: Front) -> Any:
    """The newest call in the ledger."""
    return eventually(lambda: front.router.ledger.rows(limit=1))[0]


# -- each endpoint with the SDK --------------------------------------------------------------------


def test_images_are_generated(client, front, vendor):
    got = client.images.generate(prompt="a cat", model="openai/gpt-image-1", n=2, size="1024x1024")
    assert [each.b64_json for each in got.data] == [PNG, PNG]
    assert got.usage.total_tokens == 1106
    [seen] = vendor.seen
    assert seen.path == "/v1/images/generations"
    assert seen.body == {"prompt": "a cat", "model": "gpt-image-1", "n": 2, "size": "1024x1024"}
    assert seen.headers["authorization"] == "Bearer sk-vendor"
    call, [attempt] = row(front)
    assert (call.api, call.status, call.input_tokens, call.output_tokens) == (
        *("images", "ok"),
        *(50, 1056),
    )
    assert attempt.cost is None
    assert (call.cost, call.unpriced) == (None, 1)
    assert front.spans[-1].attrs["model"] == "gpt-image-1"
    assert "cost_usd" not in front.spans[-1].attrs


def test_images_are_streamed(client, front):
    found = list(client.images.generate(prompt="a cat", model="gpt-image-1", stream=True))
    assert [each.type for each in found] == [
        "image_generation.partial_image",
        "image_generation.completed",
    ]
    assert found[-1].usage.output_tokens == 1056
    assert row(front).call.output_tokens == 1056


@pytest.mark.parametrize("stream", [False, True])
def test_images_are_edited(client, vendor, stream):
    pictures = [("a.png", b"\x89PNG 1", "image/png"), ("b.png", b"\x89PNG 2", "image/png")]
    got = client.images.edit(image=pictures, prompt="add a hat", model="gpt-image-1", stream=stream)
    if stream:
        assert list(got)[-1].b64_json == PNG
    else:
        assert got.data[0].b64_json == PNG
    [seen] = vendor.seen
    assert seen.path == "/v1/images/edits"
    assert seen.body.fields["prompt"] == "add a hat"
    assert list(seen.body.files.values())[-1] == b"\x89PNG 2"


@pytest.mark.filterwarnings("ignore:deprecated")
def test_variations_have_openais_own_model_where_none_is_named(client, vendor):
    client.images.create_variation(image=("a.png", b"\x89PNG", "image/png"))
    assert vendor.seen[0].body.fields["model"] == "dall-e-2"


def test_speech_streams(client, front, vendor):
    with client.audio.speech.with_streaming_response.create(
        model="openai/tts-1", voice="alloy", input="Hello there"
    ) as answer:
        assert answer.headers["content-type"] == "audio/mpeg"
        assert b"".join(answer.iter_bytes()) == SPEECH
    assert vendor.seen[0].model == "tts-1"
    call, [attempt] = row(front)
    assert (call.api, call.cost, call.unpriced) == ("audio", None, 1)
    assert attempt.billed == '{"fees": {"characters": 11}}'


def test_speech_arrives_as_the_vendor_sends_it(client, front, vendor):
    heard = threading.Event()
    vendor.forget(pieces(b"first", lambda: heard.wait(30), b"second"))
    with client.audio.speech.with_streaming_response.create(
        model="tts-1", voice="alloy", input="Hello"
    ) as answer:
        got = answer.iter_bytes()
        assert next(got) == b"first"
        heard.set()
        assert b"".join(got) == b"second"


def test_speech_in_events_has_usage(client, front):
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="alloy", input="Hello", stream_format="sse"
    ) as answer:
        assert b"speech.audio.done" in answer.read()
    call, [attempt] = row(front)
    assert (call.input_tokens, call.output_tokens) == (5, 90)
    assert attempt.billed == '{"output_audio_tokens": 90}'


def test_audio_is_transcribed(client, front, vendor):
    got = client.audio.transcriptions.create(
        file=("a.wav", io.BytesIO(WAV)),
        model="openai/gpt-4o-transcribe",
        language="de",
        timestamp_granularities=["word", "segment"],
    )
    assert (got.text, got.usage.input_tokens) == ("Hello", HEARD["input_tokens"])
    [seen] = vendor.seen
    assert seen.model == "gpt-4o-transcribe"
    assert seen.body.fields["language"] == "de"
    assert seen.body.files == {"file": WAV}
    assert seen.body.names == {"file": "a.wav"}
    call, [attempt] = row(front)
    assert (call.input_tokens, call.output_tokens) == (14, 45)
    assert attempt.billed == '{"input_audio_tokens": 14}'


def test_transcriptions_are_streamed(client, front):
    found = list(
        client.audio.transcriptions.create(
            file=("a.wav", WAV), model="gpt-4o-transcribe", stream=True
        )
    )
    assert [each.type for each in found] == ["transcript.text.delta", "transcript.text.done"]
    assert row(front).call.output_tokens == 45


def test_text_and_seconds(client, front):
    text = client.audio.transcriptions.create(
        file=("a.wav", WAV), model="whisper-1", response_format="text"
    )
    assert text == "Hello\n"
    assert row(front).call.cost is None
    client.audio.transcriptions.create(
        file=("a.wav", WAV), model="whisper-1", response_format="verbose_json"
    )
    assert row(front).attempts[0].billed == '{"fees": {"seconds": 9}}'


@pytest.mark.filterwarnings("ignore:deprecated")
def test_audio_is_translated(client, vendor):
    assert client.audio.translations.create(file=("a.wav", WAV), model="whisper-1").text == "Hello"
    assert vendor.seen[0].path == "/v1/audio/translations"


def test_moderations(client, front, vendor):
    got = client.moderations.create(input=["I like you", "me too"])
    assert got.results[0].flagged is False
    assert vendor.seen[0].body == {
        "input": ["I like you", "me too"],
        "model": "omni-moderation-latest",
    }
    call = row(front).call
    assert (call.api, call.estimated, call.cost) == ("moderations", 1, None)
    assert call.input_tokens > 0


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank"])
def test_rerank(front, vendor, path):
    body = {
        "model": "openai/rerank-v3.5",
        "query": "capital",
        "documents": ["Rome", "a"],
        "top_n": 1,
    }
    answer = front.ask(path, body)
    assert answer.json["results"] == [{"index": 0, "relevance_score": 0.9}]
    assert vendor.seen[0].path == "/v1/rerank"
    assert vendor.seen[0].body == body | {"model": "rerank-v3.5"}
    assert row(front).attempts[0].billed == '{"fees": {"searches": 1}}'


# -- money -----------------------------------------------------------------------------------------


def priced(vendor: Any, tmp_path: Any, **prices: Any) -> Front:
    found = {model: Price.of(price) for model, price in prices.items()}
    return Front(
        provider(vendor, pattern="m$"),
        ledger=SQLiteLedger(tmp_path / "money.db"),
        prices={"openai": found},
    )


@pytest.mark.parametrize(
    ("path", "body", "price", "cost"),
    [
        (
            "/v1/images/generations",
            {"prompt": "a", "model": "m"},
            {"input": "5", "input_image": "10", "output": "40"},
            10 * 5 + 40 * 10 + 1056 * 40,
        ),
        (
            "/v1/images/generations",
            {"prompt": "a", "model": "m"},
            {"input": "5", "input_image": "10", "output": "1", "output_image": "40"},
            10 * 5 + 40 * 10 + 1056 * 40,
        ),
        (
            "/v1/audio/speech",
            {"input": "Hello there", "voice": "a", "model": "m"},
            {"input": "0", "fees": {"characters": "0.015"}},
            11 * 15,
        ),
        (
            "/v1/rerank",
            {"query": "a", "documents": ["b"], "model": "m"},
            {"input": "0", "output": "0", "fees": {"searches": "2"}},
            2000,
        ),
    ],
)
def test_what_a_price_lists_is_billed(vendor, tmp_path, path, body, price, cost):
    with priced(vendor, tmp_path, m=price) as front:
        assert front.ask(path, body).status == 200
        call = row(front).call
        assert (call.cost, call.cost_source) == (cost * 10**6, "override")


# -- errors, failover, cuts ------------------------------------------------------------------------


def test_another_provider_is_tried(client, front, vendor, other):
    vendor.forget(reply({"error": {"message": "down"}}, 500), reply({"error": {}}, 500))
    got = client.images.with_raw_response.generate(prompt="a cat", model="picture")
    assert got.headers["x-infermux-provider"] == "other"
    assert other.seen[0].model == "gpt-image-1"


def test_a_short_upload_is_sent_again(client, vendor, other):
    vendor.forget(reply({"error": {"message": "down"}}, 500))
    assert client.audio.transcriptions.create(file=("a.wav", WAV), model="heard").text == "Hello"
    assert [each.seen[0].body.files for each in (vendor, other)] == [{"file": WAV}] * 2


def test_a_vendors_error_is_passed_on(client, vendor):
    said = {"message": "bad size", "type": "invalid_request_error", "param": "size", "code": "size"}
    vendor.forget(reply({"error": said}, 400))
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a cat", model="gpt-image-1", size="1x1")
    assert (caught.value.code, caught.value.param) == ("size", "size")
    vendor.forget(reply({"error": said}, 400))
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(file=("a.wav", WAV), model="whisper-1")
    assert caught.value.code == "size"


def test_an_endpoint_that_the_model_has_not_is_refused(vendor, other):
    with Front(provider(vendor, endpoints={"moderations": ""}), provider(other, "other")) as front:
        answer = front.ask("/v1/rerank", {"model": "openai/x", "query": "a", "documents": []})
        assert answer.status == 404
        assert answer.json["error"]["message"] == (
            "model 'openai/x' is at openai, which has no /v1/rerank; providers that have it: other"
        )
        front.router.registry.define("both", ["openai/a", "other/b"])
        vendor.forget()
        answer = front.ask("/v1/rerank", {"model": "both", "query": "a", "documents": ["b"]})
        assert answer.status == 200
        assert not vendor.seen


def test_a_header_names_the_provider(front, vendor, other):
    body = {"model": "picture", "prompt": "a"}
    assert front.ask("/v1/images/generations", body, X_Infermux_Provider="other").status == 200
    assert not vendor.seen
    assert other.seen
    answer = front.ask("/v1/images/generations", body, X_Infermux_Provider="othr")
    assert answer.status == 404
    assert "did you mean 'other'?" in answer.json["error"]["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"input": "a"}, "model is missing"),
        ({"input": "a", "model": 7}, "model must be a string"),
        ({"input": "a", "model": "tts-1", "stream": "yes"}, "stream must be true or false"),
        ([], "must be a JSON object"),
    ],
)
def test_bad_requests_name_the_field(front, body, message):
    answer = front.ask("/v1/audio/speech", body)
    assert answer.status == 400
    assert message in answer.json["error"]["message"]


def test_a_cut_stream_of_events_ends_in_an_error(client, front, vendor):
    first = {"type": "image_generation.partial_image", "b64_json": PNG, "partial_image_index": 0}
    for end in ("reset", "end"):
        vendor.forget(events(first, end=end))
        with pytest.raises(openai.APIError):
            list(client.images.generate(prompt="a", model="gpt-image-1", stream=True))
        assert eventually(lambda: row(front).call.error_code) in (
            *("upstream_error", "stream_incomplete"),
        )


def test_an_error_event_before_any_other_lets_the_next_provider_answer(client, vendor, other):
    failed = {"type": "error", "error": {"message": "overloaded", "code": 503}}
    vendor.forget(events(failed))
    found = list(client.images.generate(prompt="a", model="picture", stream=True))
    assert found[-1].type == "image_generation.completed"
    assert other.seen


def test_an_error_whose_event_lacks_its_end_is_one(front, vendor):
    vendor.forget(events(b'data: {"error": {"message": "bad size", "code": 400}}'))
    body = {"prompt": "a", "model": "openai/gpt-image-1", "stream": True}
    answer = front.ask("/v1/images/generations", body)
    assert (answer.status, answer.json["error"]["message"]) == (400, "bad size")


def test_json_that_is_cut_is_asked_of_the_next_provider(client, vendor, other):
    vendor.forget(pieces(b'{"created":1,"data":[{"b6', kind="application/json", end="reset"))
    assert client.images.generate(prompt="a", model="picture").data[0].b64_json == PNG
    vendor.forget(pieces(b'{"created":1,"data":[{"b6', kind="application/json"))
    assert client.images.generate(prompt="a", model="picture").data[0].b64_json == PNG


@pytest.mark.parametrize("n", [0, -1, "many", None, [1], 10**30])
def test_odd_numbers_are_the_vendors_to_refuse(front, vendor, n):
    body = {"prompt": "a", "model": "openai/gpt-image-1", "n": n, "stream": True}
    vendor.forget(events({"type": "image_generation.completed", "b64_json": PNG}))
    assert front.ask("/v1/images/generations", body).status == 200


def test_json_need_not_be_an_object(front, vendor):
    vendor.forget(reply(b'"Hello"'))
    assert send(front, form(MODEL, FILE)).data == b'"Hello"'


def test_images_of_a_stream_may_take_as_long_as_the_first_one(vendor):
    pause = threading.Event()
    first = {"type": "image_generation.partial_image", "b64_json": PNG, "partial_image_index": 0}
    last = {"type": "image_generation.completed", "b64_json": PNG}
    slow = Timeouts(first_byte=20, idle=0.05)
    vendor.forget(events(first, lambda: pause.wait(0.3), last))
    with Front(provider(vendor, timeouts=slow)) as front:
        body = {"prompt": "a", "model": "openai/gpt-image-1", "stream": True}
        assert b"completed" in front.ask("/v1/images/generations", body).data


def test_a_page_of_a_vendor_is_not_a_page_of_ours(front, vendor):
    vendor.forget(pieces(b"<script>", kind="text/html"))
    answer = front.ask("/v1/audio/speech", {"model": "tts-1", "input": "a", "voice": "b"})
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_other_methods_are_refused(front):
    answer = ask(front.port, "/v1/audio/speech", method="GET")
    assert (answer.status, answer.headers["allow"]) == (405, "POST")


# -- forms -----------------------------------------------------------------------------------------


def form(*parts: tuple[str, bytes], boundary: str = "xYz") -> bytes:
    """A multipart body; a part is its head after `form-data; `, and its bytes."""
    head = "--{}\r\nContent-Disposition: form-data; {}\r\n\r\n"
    body = b"".join(head.format(boundary, about).encode() + data + b"\r\n" for about, data in parts)
    return body + f"--{boundary}--\r\n".encode()


def send(front: Front, body: bytes, kind: str = "multipart/form-data; boundary=xYz") -> Any:
    front.forget()
    return ask(
        front.port, "/v1/audio/transcriptions", body, headers={"Content-Type": kind}, method="POST"
    )


MODEL, FILE = ('name="model"', b"whisper-1"), ('name="file"; filename="a.wav"', WAV)


@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("model_first", [True, False])
def test_the_model_may_stand_after_the_file(front, vendor, size, model_first):
    big = (FILE[0], bytes(range(256)) * (size // 256 + 1))
    parts = [("name=model", b"openai/whisper-1"), big, ('name="prompt"', b"a")]
    answer = send(front, form(*(parts if model_first else parts[::-1])))
    assert answer.json["text"] == "Hello"
    [seen] = vendor.seen
    assert seen.body.fields == {"model": "whisper-1", "prompt": "a"}
    assert seen.body.files == {"file": big[1]}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(FILE), "model is missing"),
        (form(MODEL, MODEL, FILE), "model is given twice"),
        (form(MODEL, FILE, MODEL), "model is given twice"),
        (form(FILE, MODEL, MODEL), "model is given twice"),
        (form(MODEL, ('name="Model"', b"b"), FILE), "model must be a plain field"),
        (form(('name="model"; filename="a"', b"b"), FILE), "model must be a plain field"),
        (form(("name*=UTF-8''model", b"b"), FILE, MODEL), "malformed"),
        (form(('name="mod\\el"', b"b"), FILE, MODEL), "malformed"),
        (form(("name=a; name=model", b"b"), FILE, MODEL), "malformed"),
        (form(MODEL, (FILE[0], b"a\n--xYz\nb")), "its boundary stands inside a part"),
        (form(MODEL, FILE)[:-9], "ends without its last boundary"),
        (form(MODEL, FILE) + form(MODEL), "goes on after its last boundary"),
        (b"", "malformed"),
        (b"hello", "malformed"),
        (form(("name=model", b"\xff"), FILE), "model must be text in UTF-8"),
        (form(("name=model", b"x" * 3000), FILE), "model is longer than 512 characters"),
    ],
)
def test_forms_that_could_be_read_in_two_ways_are_refused(front, vendor, body, message):
    answer = send(front, body)
    assert answer.status == 400, answer.data
    assert message in answer.json["error"]["message"]
    assert not vendor.seen


def test_a_second_model_after_a_long_file_never_reaches_the_vendor(front, vendor):
    long = (FILE[0], bytes(2_000_000))
    answer = send(front, form(MODEL, long, ('name="model"', b"forbidden")))
    assert "model is given twice" in answer.json["error"]["message"]
    assert eventually(lambda: vendor.broken) == 1
    assert not vendor.seen


def test_a_boundary_must_be_valid(front):
    for kind in ("multipart/form-data", f"multipart/form-data; boundary={'x' * 71}"):
        assert "no valid boundary" in send(front, form(FILE), kind).json["error"]["message"]
    quoted = form(MODEL, FILE, boundary="a b:c")
    assert send(front, quoted, 'multipart/form-data; boundary="a b:c"').status == 200
