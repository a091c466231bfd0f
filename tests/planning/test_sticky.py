"""The strategy "sticky": a session stays at its target, in every process, without shared state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from infermux.dialects.anthropic import downstream as messages
from infermux.dialects.openai import downstream as chat
from infermux.planning import Snapshot, State, kept, plan, replayed
from infermux.planning.session import session_of
from infermux.protocol import InferRequest, strict_json
from infermux.types import Caller, Route, Target

TARGETS = tuple(Target(f"p{number}", "m") for number in range(5))
STICKY = Route("name", TARGETS, "sticky")
SESSIONS = [f"session-{number}" for number in range(2000)]


def order(session: str, route: Route = STICKY, seed: int = 0, **known: Any) -> tuple[Target, ...]:
    return plan(route, Snapshot(State(session=session), **known), seed).targets


def down(*targets: Target) -> dict[str, Any]:
    return {"refused": dict.fromkeys(targets, ("circuit open", 5.0))}


def test_a_session_has_one_order_and_sessions_have_all_targets():
    for session in SESSIONS[:50]:
        found = {order(session, seed=seed) for seed in range(5)}
        assert len(found) == 1 and set(*found) == set(TARGETS)
    first = Counter(order(session)[0] for session in SESSIONS)
    assert all(300 < first[target] < 500 for target in TARGETS)


def test_weights_are_shares_of_the_sessions():
    route = STICKY._replace(weights=(1.0, 2.0, 3.0, 4.0, 10.0))
    first = Counter(order(session, route)[0] for session in SESSIONS)
    for target, weight in zip(TARGETS, route.weights, strict=True):
        assert abs(first[target] / len(SESSIONS) - weight / 20) < 0.03


def test_a_target_that_is_down_has_one_successor_and_nobody_else_moves():
    for session in SESSIONS[:300]:
        usual = order(session)
        for target in TARGETS:
            now = order(session, **down(target))
            assert now == tuple(each for each in usual if each != target)
    successors = Counter(order(s)[1] for s in SESSIONS if order(s)[0] == TARGETS[0])
    assert len(successors) == 4  # its sessions are spread over all others


def test_a_new_target_takes_its_share_and_moves_nothing_else():
    route = STICKY._replace(entries=TARGETS[:4])
    moved = [s for s in SESSIONS if order(s, route)[0] != order(s)[0]]
    assert 300 < len(moved) < 500
    assert {order(session)[0] for session in moved} == {TARGETS[4]}


def test_a_name_inside_keeps_its_sessions_when_its_first_target_is_down():
    inner = [Route(f"n{n}", (Target(f"a{n}", "m"), Target(f"b{n}", "m"))) for n in range(4)]
    route = Route("outer", tuple(inner), "sticky")
    for session in SESSIONS[:200]:
        usual = order(session, route)
        now = order(session, route, **down(usual[0]))
        assert now == usual[1:]


@pytest.mark.parametrize(
    "strategy", ["priority", "weighted", "round_robin", "least_latency", "cheapest"]
)
def test_a_sticky_name_tries_the_sessions_target_first_while_it_is_healthy(strategy):
    route = STICKY._replace(strategy=strategy, sticky=True)
    for number, session in enumerate(SESSIONS[:100]):
        known = State(cursor=number, session=session, cost={TARGETS[3]: 1})
        found = plan(route, Snapshot(known), number)
        assert found.targets[0] == order(session)[0]
        bare = plan(route._replace(sticky=False), Snapshot(known), number)
        rest = [each for each in bare.targets if each != found.targets[0]]
        assert list(found.targets[1:]) == rest
        now = plan(route, Snapshot(known, **down(found.targets[0])), number)
        assert now.targets[0] == order(session)[1]


@pytest.mark.parametrize(
    "route", [STICKY, STICKY._replace(strategy="priority", sticky=True, cache="auto")]
)
def test_a_plan_is_kept_with_its_session_and_derived_again(route):
    for session in SESSIONS[:20]:
        made = plan(route, Snapshot(State(session=session), **down(TARGETS[1])), 0)
        text = kept(made)
        again = replayed(text)
        assert json.loads(text.partition("\n")[2])["snapshot"]["state"]["session"] == session
        assert again.plan == made and not again.differences and again.plan.route == route
        assert again.plan.snapshot.state.session == session


def test_every_process_agrees():
    code = (
        "import sys; from infermux.planning import *; from infermux.planning.session import *\n"
        "from infermux.types import *; from infermux.protocol import InferRequest\n"
        "t = tuple(Target(f'p{n}', 'm') for n in range(5))\n"
        "s = session_of(InferRequest('m', [{'role': 'user', 'content': sys.argv[1]}]), Caller('é'))\n"
        "print(s, *plan(Route('name', t, 'sticky'), Snapshot(State(session=s)), 1).targets)"
    )
    for seed in ("0", "1"):
        said = subprocess.run(
            [sys.executable, "-c", code, "hello"], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout.split()  # fmt: skip
        session = session_of(InferRequest("m", [{"role": "user", "content": "hello"}]), Caller("é"))
        assert said == [session, *map(str, order(session))]


# -- what a session is -----------------------------------------------------------------------------

HELLO = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
MORE = [*HELLO, {"role": "assistant", "content": "a"}, {"role": "user", "content": "and?"}]


def of(body: dict[str, Any], header: str = "", caller: str = "") -> str:
    decode = messages if "max_tokens" in body else chat
    request, _ = decode.decode_request(strict_json.document(json.dumps({"model": "m"} | body)))
    return session_of(replace(request, session=header), Caller(caller))


def test_a_session_is_named_by_the_first_name_that_there_is():
    names = {
        "prompt_cache_key": "key",
        "metadata": {"user_id": "user"},
        "previous_response_id": "r",
    }
    found = [of({"messages": HELLO} | names, "head")]
    for name in ["", *names][:4]:
        names.pop(name, None)
        found.append(of({"messages": HELLO} | names))
    assert len(set(found)) == 5
    assert of({"messages": MORE}, "head") == found[0]  # whatever else the request holds
    assert of({"messages": MORE, "prompt_cache_key": "key"}, caller="other") == found[1]
    claude = {"max_tokens": 5, "messages": HELLO[1:], "metadata": {"user_id": "user"}}
    assert of(claude) == found[2]


def test_else_it_is_how_the_conversation_of_a_caller_begins():
    assert of({"messages": HELLO}) == of({"messages": MORE})
    assert of({"messages": HELLO}) != of({"messages": HELLO}, caller="other")
    for number in (0, 1):
        other = [*HELLO]
        other[number] = other[number] | {"content": "other"}
        assert of({"messages": other}) != of({"messages": HELLO})
    marked = [HELLO[0], {"role": "user", "content": [
        {"type": "text", "text": "u", "cache_control": {"type": "ephemeral"}}]}]  # fmt: skip
    assert of({"messages": marked}) == of({"messages": HELLO})
    assert len(of({"messages": HELLO})) == 16
