"""Clients of a failing vendor are served through the service if they are without it, about as fast.

Uses real gunicorn, and the official SDKs with their default retries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pytest
from support import Peer, Service, completion

openai = pytest.importorskip("openai")
anthropic = pytest.importorskip("anthropic")

USERS = 12
BUSY = 8.0  # seconds that a busy machine may add
ASK: dict[str, Any] = {"max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}
KINDS = {429: "rate_limit_error", 529: "overloaded_error"}
RESET = 0
STUMBLES = {
    "429": (429,) * 6,
    "500": (500,) * 6,
    "529": (529,) * 6,
    "reset": (RESET,) * 6,
    "503": (503,) * 6,
    "each": (429, 500, 529, RESET, 503, 429),
}


class Stumbling(Peer):
    """A vendor of both formats: the first requests of a format fail, each with the next status, and
    no other.
    """

    def __init__(self) -> None:
        self.failures: dict[str, list[int]] = {}

    def answer(self, handler: Any, body: bytes) -> None:
        with self.lock:
            sdk = "anthropic" if handler.path.endswith("/messages") else "openai"
            failures = self.failures.get(sdk)
            status = failures.pop(0) if failures else 200
        if status == RESET:
            handler.reset()
            return
        asked = json.loads(body)
        data: Any = completion(asked)
        if status != 200:
            error = {"type": KINDS.get(status, "api_error"), "message": "stumbled"}
            data = {"type": "error", "error": error}
        elif sdk == "anthropic":
            data = {
                "id": "msg_1",
                "type": "message",
                "role": "assistant",
                "model": asked["model"],
                "content": [{"type": "text", "text": "hello"}],
                "stop_reason": "end_turn",
                "usage": {"input_tokens": 3, "output_tokens": 2},
            }
        headers = {"Content-Type": "application/json"}
        handler.reply(
            status,
            json.dumps(data).encode(),
            headers | ({"Retry-After": "1"} if status == 429 else {}),
        )


class Stand(NamedTuple):
    alone: Stumbling  # is asked by the clients themselves
    vendor: Stumbling
    service: Service


@pytest.fixture(scope="module")
def stand() -> Iterator[Stand]:
    with Stumbling() as alone, Stumbling() as vendor:
        env = {"INFERMUX_SERVER__WORKERS": "1"}
        for name in ("OPENAI", "ANTHROPIC"):
            env |= {f"{name}_API_KEY": "sk-test-vendor", f"{name}_BASE_URL": f"{vendor.url}/v1"}
        with Service(env=env) as service:
            yield Stand(alone, vendor, service)


def asks_openai(url: str, model: str) -> None:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any") as client:
        client.chat.completions.create(model=model, **ASK)


def asks_anthropic(url: str, model: str) -> None:
    with anthropic.Anthropic(base_url=url, api_key="any") as client:
        client.messages.create(model=model, **ASK)


SDKS = {"openai": asks_openai, "anthropic": asks_anthropic}
EITHER = pytest.mark.parametrize("sdk", SDKS)


def served(
    ask: Callable[[str, str], None], url: str, model: str, users: int, gap: float
) -> tuple[int, float]:
    """Return how many of the *users*, who come *gap* seconds apart, are served, and how long all of
    it took.
    """
    begun = time.monotonic()

    def user(number: int) -> bool:
        time.sleep(max(0.0, begun + number * gap - time.monotonic()))
        try:
            ask(url, model)
        except (openai.OpenAIError, anthropic.AnthropicError):
            return False
        return True

    with ThreadPoolExecutor(users) as pool:
        return sum(pool.map(user, range(users))), time.monotonic() - begun


def both_ways(
    stand: Stand, sdk: str, failures: Sequence[int], model: str, users: int, gap: float
) -> tuple[tuple[int, float], tuple[int, float]]:
    """Return what a vendor alone does, and what another does behind the service meanwhile."""
    for vendor in (stand.alone, stand.vendor):
        vendor.failures[sdk] = list(failures)
    urls = (stand.alone.url, f"http://127.0.0.1:{stand.service.port}")
    with ThreadPoolExecutor(2) as pool:
        alone, behind = pool.map(lambda url: served(SDKS[sdk], url, model, users, gap), urls)
    return alone, behind


def check(alone: tuple[int, float], behind: tuple[int, float], users: int) -> None:
    assert behind[0] == users >= alone[0]
    assert behind[1] <= 1.5 * alone[1] + BUSY


@pytest.mark.sampled(1)
@EITHER
@pytest.mark.parametrize("name", ["each", "429", pytest.param("503", marks=pytest.mark.slow)])
def test_twelve_users_are_all_served(stand: Stand, sdk: str, name: str) -> None:
    model = f"{'gpt' if sdk == 'openai' else 'claude'}-twelve-{name}"
    check(*both_ways(stand, sdk, STUMBLES[name], model, USERS, 0.1), USERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", STUMBLES)
def test_one_call_a_second_is_served(stand: Stand, name: str) -> None:
    """Of each provider: the users of one leave those of the other their retries."""

    def found(sdk: str) -> tuple[tuple[int, float], tuple[int, float]]:
        model = f"{'gpt' if sdk == 'openai' else 'claude'}-second-{name}"
        return both_ways(stand, sdk, STUMBLES[name], model, USERS, 1.0)

    with ThreadPoolExecutor(len(SDKS)) as pool:
        for alone, behind in pool.map(found, SDKS):
            check(alone, behind, USERS)


@pytest.mark.slow
@EITHER
def test_one_user_outlasts_three_that_are_overloaded(stand: Stand, sdk: str) -> None:
    """The service's attempts and the SDK's together: nothing tells the SDK not to repeat."""
    model = f"{'gpt' if sdk == 'openai' else 'claude'}-three"
    stand.vendor.failures[sdk] = [529] * 3
    url = f"http://127.0.0.1:{stand.service.port}"
    assert served(SDKS[sdk], url, model, 1, 0)[0] == 1


@pytest.mark.slow
@EITHER
def test_also_when_the_retries_are_spent(stand: Stand, sdk: str) -> None:
    """Calls that fail leave the provider no retry of ours; the SDKs have theirs."""
    model = f"{'gpt' if sdk == 'openai' else 'claude'}-spent"
    stand.vendor.failures[sdk] = [500] * 10_000
    path = "/v1/chat/completions" if sdk == "openai" else "/v1/messages"
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: stand.service.ask(path, ASK | {"model": model}), range(16))
        )
    assert {answer.status for answer in answers} == {502}
    assert all("x-should-retry" not in answer.headers for answer in answers)
    check(*both_ways(stand, sdk, STUMBLES["each"], model, USERS, 0.1), USERS)
