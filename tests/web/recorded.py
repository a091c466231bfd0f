"""Sends recorded traffic through an API to the replay server and compares the results."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

from doors import Event, sse

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "wire"
STATUS = {
    401: 502,
    403: 502,
    422: 400,
    529: 502,
    500: 502,
}  # what of a vendor's errors is not the caller's own


def exchanges(*apis: str) -> list[dict[str, Any]]:
    """Return the exchanges of some wires; none where there is no recorded traffic."""
    found = [
        json.loads(path.read_text("utf-8"))
        for path in sorted((FOLDER / "exchanges").glob("*.json"))
    ]
    return [exchange for exchange in found if exchange["api"] in apis]


def replay(**options: Any) -> Any:
    """Return a replay server, which also keeps the bytes that it was sent."""
    spec = importlib.util.spec_from_file_location("replay", FOLDER / "replay.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.make([str(FOLDER / "exchanges")], **options)
    server.received = []

    class Keeping(server.RequestHandlerClass):
        def read_body(self) -> bytes:
            data: bytes = super().read_body()
            server.received.append(data)
            return data

    server.RequestHandlerClass = Keeping
    return server


def request(exchange: dict[str, Any]) -> bytes:
    """Return the recorded request in a spelling of its own, its model asked for at the provider
    that replays it.
    """
    body = exchange["request"]["body"]
    return json.dumps(body | {"model": f"{exchange['id']}/{body['model']}"}, indent=1).encode()


def renamed(asked: bytes, exchange: dict[str, Any]) -> bytes:
    return asked.replace(
        json.dumps(f"{exchange['id']}/{exchange['request']['body']['model']}").encode(),
        json.dumps(exchange["request"]["body"]["model"], ensure_ascii=False).encode(),
    )


def wants_usage(exchange: dict[str, Any]) -> bool:
    return bool((exchange["request"]["body"].get("stream_options") or {}).get("include_usage"))


def unasked(data: bytes) -> bytes:
    """Return a request without the wish for usage."""
    text = data.decode()
    if '"include_usage"' not in text:
        return data.rstrip().removesuffix(b"}").rstrip()
    ours = ',"stream_options":{"include_usage":true}}'
    return (
        text.removesuffix(ours).encode()
        if text.endswith(ours)
        else text.rstrip().removesuffix("}").rstrip().encode()
    )


def events(exchange: dict[str, Any]) -> list[Event]:
    """Return the recorded events, comments left out."""
    body = exchange["response"]["body"].replace("\r\n", "\n").removeprefix("\ufeff")
    return [event for event in sse(body.encode()) if event.name != ":"]


def compare_openai(
    theirs: list[Event], ours: list[Event], *, usage: bool, error: Any = None
) -> None:
    """Check that a client got the vendor's events, but for the figures in the last and a usage
    chunk that it did not ask for.
    """
    theirs = [
        event for event in theirs if event.data != "[DONE]" and (usage or not _is_usage(event))
    ]
    ours = [event for event in ours if event.name != ":"]
    if error:
        assert "error" in ours[-1].json and "[DONE]" not in [event.data for event in ours]
        passed = [event.data for event in ours[:-1]]
        assert passed == [event.data for event in theirs][: len(passed)]
        return
    assert ours.pop().data == "[DONE]"
    assert [event.data for event in ours[:-1]] == [event.data for event in theirs[:-1]]
    last, figures = theirs[-1].json, ours[-1].json
    assert figures.pop("infermux")["attempts"] == 1
    if "cost" not in (last.get("usage") or {}):
        (figures.get("usage") or {}).pop("cost", None)
    assert figures == last


def _is_usage(event: Event) -> bool:
    body = event.json
    return bool(not body.get("choices") and body.get("usage"))


def compare_anthropic(theirs: list[Event], ours: list[Event]) -> None:
    """Check that a client got the vendor's events, but for the figures in message_stop."""
    assert ours[:-1] == theirs[:-1]
    assert ours[-1].name == theirs[-1].name == "message_stop"
    figures = ours[-1].json
    assert figures.pop("infermux")["attempts"] == 1
    assert figures == theirs[-1].json
