"""Tests of forms that pass: what is sent is what came, but for the model."""

from __future__ import annotations

import io
import random
import resource
import tempfile

import pytest

from infermux.errors import Overloaded, RequestError, RequestTooLarge
from infermux.protocol.multipart import HOLD, SHORT, Upload

HEAD = "--{}\r\nContent-Disposition: form-data; {}\r\n\r\n"


def form(*parts: tuple[str, bytes], boundary: str = "xYz") -> bytes:
    body = b"".join(HEAD.format(boundary, about).encode() + data + b"\r\n" for about, data in parts)
    return body + f"--{boundary}--\r\n".encode()


class Slow(io.BytesIO):
    """Gives as much as it likes."""

    def __init__(self, data: bytes, rng: random.Random) -> None:
        super().__init__(data)
        self._rng = rng

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 1, self._rng.choice([1, 2, 3, 50, 5000])))


@pytest.mark.parametrize("seed", range(60))
def test_only_the_model_is_changed(seed: int) -> None:
    rng = random.Random(seed)
    junk = rng.randbytes(rng.choice([0, 1, 100, 20_000])) + b"\r\n--xY\r\n-" * rng.randrange(3)
    parts = [
        ('name="model"', b"whisper-1"),
        ('name="file"; filename="a; name=model.wav"', junk),
        ("name=prompt", "Grüße\r\n--xY".encode()),
        ('name="a[]"', b"1"),
        ('name="a[]"', b""),
    ]
    rng.shuffle(parts)
    body = form(*parts)
    size = rng.choice([len(body), None])
    upload = Upload(Slow(body, rng).read, boundary="xYz", size=size, limit=10**6, model=True)
    assert upload.fields["model"] == "whisper-1"
    wanted = body.replace(b"whisper-1", b"gpt-4o-transcribe")
    held = upload.repeatable
    sent = b"".join(upload.pieces("gpt-4o-transcribe"))
    assert sent == wanted
    assert upload.is_read
    if size is not None:
        assert upload.length("gpt-4o-transcribe") == len(wanted)
        assert held
        assert b"".join(upload.pieces("other")) == body.replace(b"whisper-1", b"other")
        assert upload.fields["prompt"].startswith("Grüße")


def test_a_form_without_a_model_gets_one() -> None:
    body = form(('name="file"; filename="a"', b"x"))
    upload = Upload(io.BytesIO(body).read, boundary="xYz", size=len(body), limit=99999, model=True)
    added = form(('name="model"', b"m"), ('name="file"; filename="a"', b"x"))
    assert b"".join(upload.pieces("m")) == added
    assert upload.length("m") == len(added)
    assert b"".join(upload.pieces("")) == body


@pytest.mark.parametrize("size", [100, HOLD, 3 * HOLD])
@pytest.mark.parametrize("model_first", [True, False])
def test_little_is_held(size: int, model_first: bool) -> None:
    parts = [('name="model"', b"m"), ('name="file"; filename="a"', bytes(size))]
    body = form(*(parts if model_first else parts[::-1]))
    upload = Upload(io.BytesIO(body).read, boundary="xYz", size=len(body), limit=10**8, model=True)
    long = len(body) > SHORT
    assert (upload.received < len(body)) == (long and model_first)
    assert len(upload._held) <= HOLD
    assert (upload._file is not None) == (len(body) > HOLD and not (long and model_first))
    assert b"".join(upload.pieces("m")) == body
    assert upload.repeatable != (long and model_first)
    if not upload.repeatable:
        with pytest.raises(RequestError, match="sent in part"):
            list(upload.pieces("m"))
    upload.close()


def test_a_form_may_be_too_long_without_a_length() -> None:
    body = form(('name="model"', b"m"), ('name="file"; filename="a"', bytes(3000)))
    with pytest.raises(RequestTooLarge):
        Upload(io.BytesIO(body).read, boundary="xYz", size=None, limit=3000, model=True)


@pytest.mark.parametrize("folder", ["", "/dev/null"])
def test_a_form_that_no_disk_has_room_for_is_refused(
    monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    body = form(('name="file"; filename="a"', b"x" * HOLD * 2), ('name="model"', b"m"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
    else:  # the last bytes do not fit
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(body) - 10, limits[1]))
    try:
        with pytest.raises(Overloaded):
            Upload(io.BytesIO(body).read, boundary="xYz", size=None, limit=10**7, model=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
