"""Sessions over HTTP: each host sends a session to the same target; explain names it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from doors import Front, Turn, Vendor, says

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[Front]]:
    """Two services that share nothing, before the same vendor with a pool of four keys."""
    with (
        Vendor("openai", says("openai", Turn("Hi."), streamed=False)) as vendor,
        ExitStack() as stack,
    ):
        fronts = [Front(*[vendor.provider(f"key{n}") for n in range(4)]) for _ in range(2)]
        for front in fronts:
            targets = [f"key{n}/gpt-asked" for n in range(4)]
            front.router.registry.define("pool", targets, strategy="sticky")
            front.router.registry.define("cheap", targets, strategy="round_robin", sticky=True)
            stack.enter_context(front)
        yield fronts


def served(front: Front, path: str, body: dict[str, Any], **headers: str) -> str:
    answer = front.ask(path, {"model": "pool", "max_tokens": 5} | body, **headers)
    assert answer.status == 200, answer.data
    return answer.headers["X-Infermux-Provider"]


def talk(number: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"hello {number}"}]}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", ["pool", "cheap"])
def test_a_session_stays_at_its_target_at_every_host(hosts, name):
    one, other = hosts
    found = set()
    for number in range(12):
        ident = f"session {number}"
        at = served(one, CHAT, talk(number) | {"model": name}, X_Session_Id=ident)
        found.add(at)
        assert {
            served(h, path, talk(7) | {"model": name}, X_Session_Id=ident)
            for h in hosts
            for path in (CHAT, MESSAGES)
        } == {at}
    assert len(found) == 4
    assert len({served(other, CHAT, talk(n)) for n in range(12)}) == 4
    assert served(one, CHAT, talk(3)) == served(other, CHAT, talk(3))


def test_another_target_serves_the_session_while_its_own_is_down(hosts):
    one, other = hosts
    at = served(one, CHAT, talk(1), X_Session_Id="s")
    for front in hosts:
        for target in front.router.targets.breakers():
            if target.provider == at:
                front.router.targets.breaker(target).open()
    body = {"model": "pool", **talk(1)}
    moved = {front.router.plan(request(body)).targets[0].provider for front in hosts}
    assert len(moved) == 1 and moved != {at}
    assert served(other, CHAT, talk(1), X_Session_Id="s") == at  # `ask` closes the circuits


def request(body: dict[str, Any]) -> Any:
    from infermux.protocol import InferRequest

    return InferRequest(body["model"], body["messages"], session="s")


def test_explain_names_the_session(hosts):
    from infermux.routing import explain

    hosts[0].forget()
    router = hosts[0].router
    asked = explain.question({"model": "pool", "session": "s"})
    found = explain.explain(router, asked).to_dict()
    at = served(hosts[1], CHAT, talk(1), X_Session_Id="s")
    assert len(found["session"]) == 16 and found["targets"][0]["provider"] == at
    router.registry.define("plain", ["key0/gpt-asked"])
    assert (
        explain.explain(router, explain.question({"model": "plain"})).to_dict()["session"] is None
    )
