"""Fixtures with recorded traffic for the API tests."""

import threading

import pytest
import recorded
from doors import Front

from infermux import HTTPProvider


@pytest.fixture(scope="session")
def replayed():
    """Send a request through a door to the provider that replays one exchange; return the answer,
    and what the vendor got.
    """
    if not recorded.FOLDER.exists():
        pytest.skip("there is no recorded traffic beside this clone")
    server = recorded.replay()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    providers = [
        HTTPProvider(
            exchange["id"],
            base_url=f"{server.url}/__id/{exchange['id']}/v1",
            api_key="k-test",
            dialect="anthropic" if exchange["api"] == "anthropic.messages" else "openai",
        )
        for exchange in recorded.exchanges("openai.chat", "anthropic.messages")
    ]

    def send(exchange, path, body):
        server.received.clear()
        answer = front.ask(path, body)
        assert len(server.received) <= 1
        return answer, server.received[0] if server.received else None

    with Front(*providers) as front:
        yield send
    server.shutdown()
    thread.join()
    server.server_close()
