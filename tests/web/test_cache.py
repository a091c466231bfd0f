"""cache = "auto": vendors are asked to cache what pays; what the client set itself wins."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from doors import Front
from strict_vendor import KEY, StrictVendor

from infermux import HTTPProvider
from infermux.cli.main import main
from infermux.ledger.sqlite import SQLiteLedger
from infermux.providers import PRESETS

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
LONG = "This text is long enough to be cached. " * 500
MARK = {"type": "ephemeral"}
TOOL = {"name": "f", "description": LONG, "input_schema": {"type": "object", "properties": {}}}
TALK = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
    {
        "role": "user",
        "content": [{"type": "text", "text": "five"}, {"type": "text", "text": "six"}],
    },
]


@pytest.fixture(scope="module")
def vendor() -> Iterator[StrictVendor]:
    with StrictVendor() as running:
        yield running


@pytest.fixture(scope="module")
def ledger(tmp_path_factory) -> SQLiteLedger:
    return SQLiteLedger(str(tmp_path_factory.mktemp("cache") / "l.db"))


@pytest.fixture(scope="module")
def front(vendor, ledger) -> Iterator[Front]:
    def provider(name: str, dialect: str, **options: Any) -> HTTPProvider:
        url = vendor.base_url(dialect)
        return HTTPProvider(name, base_url=url, dialect=dialect, api_key=KEY, **options)

    with Front(
        provider("anthropic", "anthropic"),
        provider("openai", "openai", responses=PRESETS["openai"].responses),
        provider("local", "openai"),
        ledger=ledger,
    ) as running:
        for name, target in [
            ("claude", "anthropic/claude-sonnet-5-5"),
            ("gpt", "openai/gpt-5.2"),
            ("new", "openai/gpt-6-luna"),
            ("other", "local/llama-4"),
        ]:
            running.router.registry.define(name, [target], cache="auto")
            running.router.registry.define(f"plain-{name}", [target])
        yield running


def sent(
    front: Front, vendor: StrictVendor, path: str, body: dict[str, Any], **headers: str
) -> Any:
    vendor.seen.clear()
    answer = front.ask(path, body, **headers)
    assert answer.status == 200, answer.data
    return vendor.seen[0].body


def claude(**more: Any) -> dict[str, Any]:
    return {"model": "claude", "max_tokens": 50, "messages": TALK} | more


def marks(body: Any) -> list[str]:
    """Return where the breakpoints are."""
    found = [
        f"tools.{n}" for n, tool in enumerate(body.get("tools", ())) if "cache_control" in tool
    ]
    holders = [("system", body.get("system"))]
    holders += [(f"messages.{n}", turn["content"]) for n, turn in enumerate(body["messages"])]
    for name, content in holders:
        blocks = content if isinstance(content, list) else []
        found += [f"{name}.{n}" for n, block in enumerate(blocks) if "cache_control" in block]
    return found


@pytest.mark.slow
def test_what_every_turn_repeats_is_marked(front, vendor):
    body = claude(tools=[TOOL | {"name": "g"}, TOOL], system=LONG)
    assert marks(sent(front, vendor, MESSAGES, body)) == [
        "tools.1",
        "system.0",
        "messages.2.0",
        "messages.4.1",
    ]
    functions = [{"type": "function", "function": {"name": "f", "description": LONG}}]
    chat = {
        "model": "claude",
        "messages": [{"role": "system", "content": LONG}, *TALK],
        "tools": functions,
    }
    assert marks(sent(front, vendor, CHAT, chat)) == [
        "tools.0",
        "system.0",
        "messages.2.0",
        "messages.4.1",
    ]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (claude(), []),  # too short to be cached
        (claude(system="Be brief.", tools=[TOOL]), ["tools.0", "system.0", "messages.2.0", "messages.4.1"]),
        (claude(system=LONG, messages=TALK[:1]), ["system.0"]),  # one question: nothing reads it again
        (claude(messages=[{"role": "user", "content": LONG}]), []),
        (claude(system=LONG, tools=[TOOL], model="plain-claude"), []),
        (claude(system=LONG, messages=[*TALK[:4], {"role": "user", "content": [
            {"type": "text", "text": "x", "cache_control": MARK}]}]), ["messages.4.0"]),  # the client's own
        (claude(system=[{"type": "text", "text": LONG, "cache_control": MARK}]), ["system.0"]),
        (claude(tools=[TOOL | {"cache_control": MARK}, TOOL | {"name": "g"}]), ["tools.0"]),
    ],
)  # fmt: skip
def test_a_breakpoint_is_set_where_it_pays_and_the_clients_own_win(front, vendor, body, found):
    assert marks(sent(front, vendor, MESSAGES, body)) == found


def test_models_have_their_own_least_size(front, vendor):
    front.router.registry.define("opus", ["anthropic/claude-opus-5-5"], cache="auto")
    middle = "x" * 4500  # enough for Sonnet, not for Opus
    assert marks(sent(front, vendor, MESSAGES, claude(system=middle))) != []
    assert marks(sent(front, vendor, MESSAGES, claude(system=middle, model="opus"))) == []


def test_nothing_else_of_a_native_body_changes(front, vendor):
    body = claude(system=LONG, own_order=1)
    body.pop("own_order")
    text = json.dumps(body, indent=2)
    vendor.seen.clear()
    answer = front.ask(MESSAGES, text.replace('"claude"', '"plain-claude"').encode())
    assert answer.status == 200
    seen = dict(vendor.seen[0].body)
    assert seen == body | {"model": "claude-sonnet-5-5"}
    marked = sent(front, vendor, MESSAGES, body)
    assert marked.keys() == seen.keys() and marked["max_tokens"] == 50


@pytest.mark.parametrize(("name", "path"), [("gpt", CHAT), ("new", RESPONSES), ("new", CHAT)])
def test_openai_gets_a_key_for_the_session(front, vendor, name, path):
    content = {"messages": TALK[:1]} if path == CHAT else {"input": "one"}
    functions = (
        {"tools": [{"type": "function", "function": {"name": "f"}}]}
        if (name, path) == ("new", CHAT)
        else {}
    )
    keys = [
        sent(
            front, vendor, path, {"model": name, **content, **functions} | more, X_Session_Id=ident
        ).get("prompt_cache_key")
        for ident, more in [("a", {}), ("a", {}), ("b", {}), ("b", {"prompt_cache_key": "own"})]
    ]
    assert keys[0] == keys[1] != keys[2] and len(keys[0]) == 16 and keys[3] == "own"
    plain = sent(front, vendor, path, {"model": f"plain-{name}", **content, **functions})
    assert "prompt_cache_key" not in plain


def test_other_vendors_get_no_key(front, vendor):
    body = {"model": "other", "messages": TALK[:1]}
    assert "prompt_cache_key" not in sent(front, vendor, CHAT, body)


def test_costs_show_what_the_cache_saved(front, vendor, ledger, tmp_path):
    from click.testing import CliRunner

    front.router.registry.define("saver", ["anthropic/claude-haiku-4-5"], cache="auto")
    sent(front, vendor, MESSAGES, claude(model="saver", system=LONG))
    call = ledger.rows(limit=1)[0].call
    assert (
        call.cached_input_tokens and call.cache_saved == call.cached_input_tokens * 900_000
    )  # $0.90 per million
    result = CliRunner().invoke(main, ["costs", "--by", "model", "--ledger", ledger.path])
    assert result.exit_code == 0 and "CACHE SAVED USD" in result.output
    rows = json.loads(
        CliRunner().invoke(main, ["costs", "--json", "--ledger", ledger.path]).output
    )["rows"]
    [row] = [row for row in rows if row["model"] == "claude-haiku-4-5"]
    assert float(row["cache_saved_usd"]) == pytest.approx(call.cache_saved / 1e12)
