"""The worst case of a call whose bytes pass through, and its usage in the units of its price."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ...dialects.openai.metering import asked
from ...dialects.sizes import MAX_IMAGE, number
from ...pricing import Price, cost
from ...protocol import InferRequest
from ...types import Usage

MAX_IMAGES = 16  # images that a client may send to be edited
MAX_PROMPT = 32_000  # characters of OpenAI's prompts for images
MAX_ANSWERS = 10  # images that one request may ask for
MAX_PARTIAL, PARTIAL_TOKENS = 3, 100  # previews of an image in a stream, and tokens of each
DOCUMENTS = 100  # documents that Cohere bills as one search
DOCUMENT_TOKENS = 400  # of a document; a longer one counts as several
_MEDIA = ("output_image", "output_audio")


def by_price(usage: Usage, price: Price | None) -> Usage:
    """Return the usage of images or speech in the units of *price*: all output may be media.

    Units beside tokens are billed, too, if the price lists them.
    """
    if usage.fees and (usage.input_tokens or usage.output_tokens):
        listed = {} if price is None else dict(price.fees)
        usage = replace(usage, fees=tuple([each for each in usage.fees if each[0] in listed]))
    if price is None:
        return usage
    unlisted: Any = {
        f"{each}_tokens": None for each in _MEDIA if getattr(price.rates, each) is None
    }
    return replace(usage, **unlisted)


def by_unit(usage: Usage, price: Price | None) -> Usage:
    """Return what is billed of a usage: the units and plain input, if output has no price."""
    if price is None or dict(price.fees).keys().isdisjoint(dict(usage.fees)):
        return usage
    rates = price.rates
    if any(rate is not None for rate in (rates.output, rates.output_image, rates.output_audio)):
        return usage
    return Usage(usage.input_tokens, 0, fees=usage.fees, cost_usd=usage.cost_usd)


def most_passed(request: InferRequest, price: Price) -> int | None:
    """Return the most that a request may cost in pico-USD; None if it is unknown."""
    usage = by_price(_most(request, price), price)
    return cost(by_unit(usage, price), price)


def _most(request: InferRequest, price: Price) -> Usage:
    """Return the most expensive usage; one without counts if that is unknown."""
    unit, listed, rates, op = _unit(request), dict(price.fees), price.rates, request.op
    is_image, is_recording = op.startswith("images/"), op.startswith("audio/t")
    heard: int | None = 0  # tokens of a recording, whose length is unknown
    if is_recording and "seconds" in listed:
        heard = None
    elif is_recording and (rates.input or rates.input_audio):
        heard = price.max_input
    output: int | None = 0
    if op not in ("moderations", "rerank") and (
        rates.output or rates.output_image or rates.output_audio
    ):
        output = price.max_output
    if heard is None or output is None:
        return Usage()
    sent, upload = 0, request.passed.upload
    if is_image and op != "images/generations":
        sent = upload.files if upload is not None and upload.is_read else MAX_IMAGES
    output = (output + _partial(request) * bool(output)) * _answers(request)
    tokens, images = _bytes(request) + heard, sent * MAX_IMAGE
    return Usage(
        tokens + images,
        output,
        input_image_tokens=images or None,
        input_audio_tokens=tokens if is_recording and rates.input_audio is not None else None,
        output_image_tokens=output if is_image else None,
        output_audio_tokens=output if op == "audio/speech" else None,
        fees=(unit,) if unit is not None and unit[0] in listed else (),
    )


def _bytes(request: InferRequest) -> int:
    """Return the most bytes of text that a request has."""
    body, upload = request.body_in("openai"), request.passed.upload
    if upload is None:
        return len(body.data) if body is not None else 0
    fields = sum([len(str(each).encode(errors="replace")) for each in request.params.values()])
    return fields if upload.is_read else fields + MAX_PROMPT


def _answers(request: InferRequest) -> int:
    return max(1, _number(request, "n", MAX_ANSWERS) or 1)


def _partial(request: InferRequest) -> int:
    if not request.op.startswith("images/"):
        return 0
    return PARTIAL_TOKENS * min(_number(request, "partial_images", MAX_PARTIAL), MAX_PARTIAL)


def _number(request: InferRequest, name: str, most: int) -> int:
    upload, value = request.passed.upload, request.params.get(name)
    if value is None and upload is not None and not upload.is_read:
        return most
    return number(value) or 0


def _unit(request: InferRequest) -> tuple[str, int] | None:
    if request.op.startswith("images/"):
        return "images", _answers(request)
    if request.op == "rerank":
        documents = request.params.get("documents")
        listed = len(documents) if isinstance(documents, list) else 1
        return "searches", math.ceil((listed + _bytes(request) // DOCUMENT_TOKENS) / DOCUMENTS)
    return next(iter(asked(request).fees), None)
