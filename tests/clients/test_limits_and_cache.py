"""The official SDKs with keys that have limits, and with cached answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support import Service

from infermux.admission.keys import hashed

pytestmark = pytest.mark.slow
CONFIG = """
[providers.echo]
[providers.claude]
type = "echo"
models = ["m"]
[models.faq]
targets = "echo/echo-v1"
cache_answers = {{ ttl = "1h", max = "1MB" }}
[keys.app]
hash = "{app}"
rpm = 100
tpm = 100000
user_rpm = 3
[keys.few]
hash = "{few}"
rpm = 1
[ledger]
path = "{path}"
"""
SAID: list[Any] = [{"role": "user", "content": "When are you open?"}]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("limits")
    text = CONFIG.format(app=hashed("app"), few=hashed("few"), path=folder / "l.db")
    file = folder / "infermux.toml"
    file.write_text(text)

    class Keyed(Service):
        def _answers(self) -> bool:  # without a key even the providers are a 401
            return self.ask("/healthz").status == 200

    with Keyed(env={"INFERMUX_CONFIG": str(file)}) as service:
        yield f"http://127.0.0.1:{service.port}"


def test_openai(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="app", max_retries=0)
    asked: dict[str, Any] = {"model": "faq", "messages": SAID}
    first = client.chat.completions.with_raw_response.create(**asked)
    again = client.chat.completions.with_raw_response.create(**asked)
    assert [each.headers["x-infermux-cache"] for each in (first, again)] == ["miss", "hit"]
    assert first.parse().choices == again.parse().choices
    assert int(again.headers["x-ratelimit-remaining-requests"]) <= 98
    with client.chat.completions.create(**asked, stream=True) as stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == first.parse().choices[0].message.content
    response = client.responses.create(model="faq", input="And on Sundays?")
    assert client.responses.create(model="faq", input="And on Sundays?").output_text
    with client.responses.stream(model="faq", input="And on Sundays?") as events:
        assert events.get_final_response().output_text == response.output_text
    few = openai.OpenAI(base_url=f"{url}/v1", api_key="few", max_retries=0)
    few.chat.completions.create(**asked)
    with pytest.raises(openai.RateLimitError) as caught:
        few.chat.completions.create(**asked)
    assert caught.value.response.headers["x-ratelimit-remaining-requests"] == "0"
    for _ in range(3):
        client.chat.completions.create(**asked, user="ann")
    with pytest.raises(openai.RateLimitError, match="this end user is over its rate limit"):
        client.chat.completions.create(**asked, user="ann")


def test_anthropic(url: str) -> None:
    import anthropic

    client = anthropic.Anthropic(base_url=url, api_key="app", max_retries=0)
    asked: dict[str, Any] = {"model": "faq", "messages": SAID, "max_tokens": 50}
    first = client.messages.with_raw_response.create(**asked)
    again = client.messages.with_raw_response.create(**asked)
    assert [each.headers["x-infermux-cache"] for each in (first, again)] == ["miss", "hit"]
    assert first.parse().content == again.parse().content
    assert int(again.headers["anthropic-ratelimit-requests-remaining"]) <= 98
    with client.messages.stream(**asked) as stream:
        assert stream.get_final_text() == first.parse().content[0].text
    who: dict[str, Any] = {"user_id": "user_ab_account_1_session_"}
    for number in range(3):
        client.messages.create(**asked, metadata={"user_id": f"{who['user_id']}{number}"})
    with pytest.raises(anthropic.RateLimitError, match="this end user"):
        client.messages.create(**asked, metadata={"user_id": f"{who['user_id']}9"})


def test_google(url: str) -> None:
    from google import genai

    client = genai.Client(api_key="app", http_options={"base_url": url})
    first = client.models.generate_content(model="faq", contents="When are you open?")
    again = client.models.generate_content(model="faq", contents="When are you open?")
    streamed = client.models.generate_content_stream(model="faq", contents="When are you open?")
    assert first.text == again.text == "".join(chunk.text or "" for chunk in streamed)
    assert again.sdk_http_response.headers["x-infermux-cache"] == "hit"
