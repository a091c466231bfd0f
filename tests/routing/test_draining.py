"""A stream that outlives a stopping service gets an error event before it is cut off."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any

import pytest
from support import Peer, Service, TokenTrace


class Endless(Peer):
    """A vendor whose stream goes on for as long as anybody listens."""

    def __init__(self) -> None:
        super().__init__()
        self.left = threading.Event()

    def answer(self, handler: Any, body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.end_headers()
        handler.close_connection = True
        event = json.dumps(
            {
                "id": "c",
                "model": "m",
                "choices": [{"index": 0, "delta": {"content": "on "}, "finish_reason": None}],
            }
        )
        try:
            while not self.left.wait(0.1):
                handler.wfile.write(f"data: {event}\n\n".encode())
        except OSError:
            self.left.set()


@pytest.mark.slow
def test_an_endless_stream_ends_with_an_error_event_and_its_span() -> None:
    with Endless() as vendor, TokenTrace() as receiver:
        env = {
            "OPENAI_API_KEY": "sk-test",
            "OPENAI_BASE_URL": f"{vendor.url}/v1",
            "INFERMUX_TRACE__TOKENTRACE": receiver.url,
            "INFERMUX_SERVER__GRACEFUL_TIMEOUT": "3",
            "INFERMUX_SERVER__WORKERS": "1",
        }
        with Service(env=env) as service:
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=20)
            connection.request(
                "POST",
                "/v1/chat/completions",
                json.dumps(
                    {
                        "model": "gpt-x",
                        "stream": True,
                        "messages": [{"role": "user", "content": "hi"}],
                    }
                ),
            )
            answer = connection.getresponse()
            assert answer.readline().startswith(b"data: ")
            stopped = threading.Thread(target=service.stop)
            stopped.start()
            events = [line for line in answer.read().splitlines() if line.startswith(b"data: ")]
            stopped.join()
            connection.close()
        assert json.loads(events[-1][6:])["error"]["code"] == "stream_incomplete"
        assert b"[DONE]" not in events[-1]
        assert vendor.left.wait(3), "the vendor's connection was not closed"
        (span,) = receiver.wait(1)
        assert span["status"] == "error"
