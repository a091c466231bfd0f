"""What agents send is handled in few steps: hundreds of messages, each looked at a few times."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from infermux.dialects import calls
from infermux.dialects.anthropic import downstream
from infermux.dialects.openai import upstream
from infermux.protocol import strict_json

from ..bench import agents


def translated(data: bytes) -> bytes:
    """Return a request of the Anthropic API as it is sent to a vendor with OpenAI's."""
    request, _ = downstream.decode_request(strict_json.document(data))
    request.check()
    assert not upstream.unsaid(request, request.model).meaning
    request, _ = calls.fitted(request, lambda _: upstream)  # type: ignore[arg-type, return-value]
    return upstream.encode_request(request, stream=False)


@pytest.mark.parametrize(("shape", "most"), [("messages", 4.5), ("turns", 26)])
def test_a_long_conversation_is_translated_with_few_calls_of_functions(
    shape: str, most: float
) -> None:
    body = agents.SHAPES[shape]
    data = agents.anthropic(body).request.partition(b"\r\n\r\n")[2]
    translated(data)  # loads the table of prices
    made = 0

    def count(frame: object, event: str, _: Any) -> None:
        nonlocal made
        made += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        sent = json.loads(translated(data))
    finally:
        sys.setprofile(before)
    assert made < most * len(body["messages"])
    said = [each["content"] for each in body["messages"] if each["role"] != "system"]
    assert [each["content"] for each in sent["messages"]] == said
    assert sent.get("tools") == body.get("tools")
