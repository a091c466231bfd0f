"""The Responses API: POST /v1/responses, for models of every vendor."""

from __future__ import annotations

import time

from flask import Response

from ..dialects.responses import downstream as wire
from ..dialects.responses.stream import Encoder
from ..protocol import strict_json
from ..routing.stream import Stream
from .auth import admitted
from .http import Api, call_response, json_body, start_call
from .sse import sse_response


def respond(api: Api) -> Response:
    """Respond to /v1/responses, streamed or not."""
    caller = admitted(api)
    wanted, wants_stream = wire.decode_request(json_body(strict_json.document))
    call = start_call(api, wanted, caller)
    ident, created = f"resp_{call.id}", int(time.time())

    def answer() -> wire.Answer:
        return wire.Answer(call.request, ident=ident, created=created, model=call.model)

    if wants_stream:

        def encoder(_: Stream | None) -> Encoder:
            return Encoder(answer())

        return sse_response(api, call, encoder)
    response = api.router.answer(call)
    data = wire.encode_answer(response, answer())
    native = response.native is not None and data is response.native[1]
    return call_response(call, data if native else data + b"\n")
