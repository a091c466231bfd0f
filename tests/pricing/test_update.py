"""Tests of a user's own prices: made of public tables, merged over the shipped ones, and used."""

from __future__ import annotations

import datetime
import json
import os
import random
import re
import signal
import stat
import sys
import textwrap
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from books import HOSTILE
from click.testing import CliRunner, Result
from support import Service, eventually, how_many

from infermux import build, create_app
from infermux.chaos.vendor import FaultyVendor
from infermux.cli.main import main
from infermux.errors import ConfigError
from infermux.pricing import find

HELLO = {"messages": [{"role": "user", "content": "Hello there"}]}
LITELLM: dict[str, Any] = {
    "gpt-5.4": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.6e-06, "output_cost_per_token": 1.5e-05},
    "gpt-99": {
        "litellm_provider": "openai", "mode": "chat", "max_input_tokens": 1000, "max_output_tokens": 100,
        "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06, "cache_read_input_token_cost": 1e-07,
        "input_cost_per_token_above_200k_tokens": 3e-06, "input_cost_per_token_flex": 5e-07, "output_cost_per_token_flex": 1e-06,
    },
    "moonshot/kimi-k3": {"litellm_provider": "moonshot", "mode": "chat", "input_cost_per_token": 4e-06, "output_cost_per_token": 1.5e-05},
    "dashscope/qwen-99": {
        "litellm_provider": "dashscope", "mode": "chat", "tiered_pricing": [
            {"range": [0, 32000], "input_cost_per_token": 1e-06, "output_cost_per_token": 5e-06},
            {"range": [32000, 128000], "input_cost_per_token": 2e-06, "output_cost_per_token": 9e-06}]},
    "dall-e-3": {"litellm_provider": "openai", "mode": "image_generation", "input_cost_per_token": 9.0},
    "somewhere/x": {"litellm_provider": "somewhere", "mode": "chat", "input_cost_per_token": 9.0},
    "gpt-free": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0},
    "gpt-4o": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 0.0, "output_cost_per_token": 1e-05},
    "gpt-wild": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5, "output_cost_per_token": 1e-05},
    "gpt-none": {"litellm_provider": "openai", "mode": "chat"},
    "gpt-text": {"litellm_provider": "openai", "mode": "chat", "input_cost_per_token": "cheap"},
}  # fmt: skip
OPENROUTER: dict[str, Any] = {"data": [
    {"id": "openai/gpt-5.4", "context_length": 1050000, "pricing": {"prompt": "0.0000025", "completion": "0.000016", "image": "0"}},
    {"id": "acme/Large", "context_length": 8000, "top_provider": {"max_completion_tokens": 4000},
     "pricing": {"prompt": "0.000001", "completion": "0.000004", "request": "0.005", "input_cache_read": "0.0000001"}},
    {"id": "openrouter/auto", "pricing": {"prompt": "-1", "completion": "-1"}},
    {"id": "acme/gift", "pricing": {"prompt": "0", "completion": "0"}},
]}  # fmt: skip
GENAI = [
    {"id": "moonshotai", "models": [{"id": "kimi-99", "context_window": 5000, "prices": [
        {"prices": {"input_mtok": 9, "output_mtok": 9}},
        {"constraint": {"start_date": "2026-01-01"}, "prices": {
            "input_mtok": {"base": 1, "tiers": [{"start": 1000, "price": 2}]}, "output_mtok": 3}},
        {"constraint": {"start_date": "2999-01-01"}, "prices": {"input_mtok": 4, "output_mtok": 5}}]}]},
    {"id": "deepseek", "models": [{"id": "deepseek-flash", "prices": [
        {"prices": {"input_mtok": 7, "output_mtok": 7}},
        {"constraint": {"start_time": "01:00:00Z", "end_time": "04:00:00Z"}, "prices": {"input_mtok": 9}}]}]},
]  # fmt: skip
MODULE = '''
import datetime
from decimal import Decimal
from .types import *

raise SystemExit("this module is read, not run")
providers: list[Provider] = [
    Provider(id="moonshotai", name="Moonshot", models=[
        ModelInfo(id="kimi-99", match=ClauseEquals(equals="kimi-99"), context_window=5000, prices=[
            ConditionalPrice(constraint=None, prices=ModelPrice(input_mtok=Decimal("9"), output_mtok=Decimal("9"))),
            ConditionalPrice(constraint=StartDateConstraint(start_date=datetime.date(2026, 1, 1)), prices=ModelPrice(
                input_mtok=TieredPrices(base=Decimal("1"), tiers=[Tier(start=1000, price=Decimal("2"))]), output_mtok=Decimal("3"))),
            ConditionalPrice(constraint=StartDateConstraint(start_date=datetime.date(2999, 1, 1)), prices=ModelPrice(
                input_mtok=Decimal("4"), output_mtok=Decimal("5")))])]),
    Provider(id="deepseek", name="DeepSeek", models=[
        ModelInfo(id="deepseek-flash", prices=[
            ConditionalPrice(constraint=None, prices=ModelPrice(input_mtok=Decimal("7"), output_mtok=Decimal("7"))),
            ConditionalPrice(constraint=TimeOfDateConstraint(
                start_time=datetime.time(1, 0, tzinfo=datetime.timezone.utc), end_time=datetime.time(4, 0)),
                prices=ModelPrice(input_mtok=Decimal("9")))])]),
]
'''  # fmt: skip


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the user a folder of their own, and work in another."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("K", "sk-x")
    return tmp_path / "home" / "infermux"


def infermux(*args: str, input: bytes | None = None) -> Result:
    return CliRunner().invoke(main, args, input=input)


def update(table: Any, *args: str) -> Result:
    """Update from standard input."""
    data = table if isinstance(table, bytes) else json.dumps(table).encode()
    return infermux("prices", "update", "-", *args, input=data)


def use(file: object, more: str = "") -> None:
    Path("infermux.toml").write_text(f'{more}\n[prices]\nfile = "{file}"\n')


def shown(name: str) -> dict[str, Any]:
    """The price of a model, as `infermux prices` has it."""
    result = infermux("prices", name, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)["prices"][0]


# -- what is read ----------------------------------------------------------------------------------


def test_litellms_table_becomes_ones_own_beside_the_configuration(home: Path) -> None:
    result = update(LITELLM)
    assert result.exit_code == 0, result.stderr
    words = ["11 models read", "2 new models, 2 changed ones, 0 are as known: wrote",
             "skipped, of a vendor without a preset: 1 (somewhere/x)", "skipped, not a model for text: 1 (dall-e-3)",
             "skipped, without a price of input tokens: 1 (gpt-none)", "skipped, a figure is not a price: 1 (gpt-text)",
             "skipped, the price is 0, which may mean that it is not known: 1 (openai/gpt-free)",
             "skipped, a price is 0 where the present one is not: 1 (openai/gpt-4o)",
             "skipped, a price is too high to be one per token: 1 (openai/gpt-wild)",
             "kept, prices of long requests, which the table does not list: 1 (openai/gpt-5.4)"]  # fmt: skip
    assert [word for word in words if word not in result.stdout] == []
    assert ["openai/gpt-5.4", "input", "2.5", "2.6"] in [
        x.split() for x in result.stdout.splitlines()
    ]
    assert str(home / "prices.json") in result.stderr  # it says how to use it
    models = json.loads((home / "prices.json").read_text())["models"]
    (changed, new), (kimi,) = models["openai"], models["moonshot"]
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    assert changed == {"id": "gpt-5.4", "input": "2.6", "src": "l", "as_of": day}  # nothing else
    assert kimi["input"] == "4" and "output" not in kimi
    assert new == {
        "id": "gpt-99", "input": "1", "output": "2", "cached_input": "0.1", "tiers": [{"over": 200000, "input": "3"}],
        "service": {"flex": "0.5"}, "max_input": 1000, "max_output": 100, "src": "l", "as_of": day,
    }  # fmt: skip
    assert models["dashscope"][0]["tiers"] == [{"over": 32000, "input": "2", "output": "9"}]


@pytest.mark.parametrize("form", ["json", "providers", "module", "folder", "installed"])
def test_genai_prices_as_json_or_as_its_module_that_is_not_run(
    form: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = Path("site/genai_prices")
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "data.py").write_text(MODULE)
    Path("data.json").write_text(json.dumps({"providers": GENAI} if form == "providers" else GENAI))
    named = {
        "module": str(package / "data.py"),
        "folder": str(package),
        "installed": "genai_prices",
    }
    if form == "installed":
        assert "is not installed" in infermux("prices", "update", "genai_prices").stderr
        monkeypatch.syspath_prepend(str(package.parent))
    result = infermux("prices", "update", named.get(form, "data.json"))
    assert result.exit_code == 0, (result.stderr, result.exception)
    assert "genai_prices" not in sys.modules
    assert "skipped, has prices of certain hours, which are not read: 1" in result.stdout
    (kimi,) = json.loads((home / "prices.json").read_text())["models"]["moonshot"]
    assert {key: kimi[key] for key in kimi if key not in ("src", "as_of")} == {
        "id": "kimi-99", "input": "1", "output": "3", "tiers": [{"over": 1000, "input": "2"}],
        "next": [{"from": "2999-01-01", "input": "4", "output": "5"}], "max_input": 5000,
    }  # fmt: skip


@pytest.mark.slow
def test_openrouters_answer_goes_over_what_follows_a_vendor(home: Path) -> None:
    assert update(OPENROUTER).exit_code == 0
    use(home / "prices.json")
    follower = shown("openrouter/openai/gpt-5.4")
    assert (follower["provider"], follower["output"], follower["cached_input"]) == (
        "openrouter",
        "16",
        "0.25",
    )
    assert "OpenRouter" in follower["layers"]["output"] and "shipped" in follower["layers"]["input"]
    assert shown("openai/gpt-5.4")["output"] == "15"  # the vendor's own is as it was
    large = shown("openrouter/acme/large")
    assert (large["input"], large["cached_input"], large["max_input"], large["max_output"]) == (
        "1",
        "0.1",
        8000,
        4000,
    )
    assert shown("openrouter/acme/gift")["input"] == "0"  # the vendor itself says so
    assert "below 0: 1 (openrouter/auto)" in update(OPENROUTER, "--dry-run").stdout


LONG = {"prompt": "0.000002", "completion": "0.000004"}
PRIORITY = {"litellm_provider": "openai", "input_cost_per_token": 1e-06, "output_cost_per_token": 2e-06,
            "input_cost_per_token_priority": 3e-06, "output_cost_per_token_priority": 4e-06}  # fmt: skip


@pytest.mark.parametrize(
    ("table", "model", "expected"),
    [
        # a later override holds for what it lists, and an earlier one for the rest
        ({"data": [{"id": "acme/long", "pricing": {
            "prompt": "0.000001", "completion": "0.000003", "audio_output": "0.00001", "input_cache_write_1h": "0.000002",
            "overrides": [{"min_prompt_tokens": 200_000, **LONG}, {"min_prompt_tokens": 256_000, "prompt": "0.000005"}]}}]},
         "openrouter/acme/long", {"input": "1", "output": "3", "output_audio": "10", "cache_write_1h": "2", "tiers": [
             {"over": 199_999, "input": "2", "output": "4"}, {"over": 255_999, "input": "5", "output": "4"}]}),
        ([{"id": "perplexity", "models": [{"id": "sonar-99", "prices": {
            "input_mtok": {"base": 1, "tiers": [{"start": 9000, "price": 2}, {"start": 1000, "price": 3}]},
            "output_mtok": {"base": 5, "tiers": [{"start": 1000, "price": 6}]}, "requests_kcount": 12}}]}],
         "perplexity/sonar-99", {"input": "1", "request_per_1k_max": "12", "tiers": [
             {"over": 1000, "input": "3", "output": "6"}, {"over": 9000, "input": "2", "output": "6"}]}),
        ({"gpt-98": PRIORITY | {"input_cost_per_request": 0.004}},
         "openai/gpt-98", {"service": {"priority": {"input": "3", "output": "4"}}, "request_per_1k_max": "4"}),
        # of figures that differ by size, too, a call at this tier is unpriced
        ({"gpt-98": PRIORITY | {"input_cost_per_token_above_200k_tokens": 2e-06}},
         "openai/gpt-98", {"tiers": [{"over": 200_000, "input": "2"}], "service": None}),
    ],
)  # fmt: skip
def test_sizes_fees_and_tiers_of_a_public_table_make_no_call_cheap(
    table: Any, model: str, expected: dict[str, Any], home: Path
) -> None:
    assert update(table).exit_code == 0
    vendor, _, id = model.partition("/")
    (entry,) = json.loads((home / "prices.json").read_text())["models"][vendor]
    assert entry["id"] == id and {key: entry.get(key) for key in expected} == expected
    use(home / "prices.json")
    assert shown(model)["input"] == entry["input"]


def test_a_fee_per_request_that_is_not_known_is_added_and_prices_by_the_hour_are_not(
    home: Path,
) -> None:
    flat = {"prompt": "0.0000025", "completion": "0.000015"}
    hours = flat | {"overrides": [{"utc_start": "08:00", "utc_end": "16:00", **LONG}]}
    listed = [("openai/gpt-5.4", flat | {"request": "0.01"}), ("acme/day", hours)]
    result = update({"data": [{"id": id, "pricing": pricing} for id, pricing in listed]})
    assert "skipped, has prices of certain hours, which are not read: 1 (acme/day)" in result.stdout
    (entry,) = json.loads((home / "prices.json").read_text())["models"]["openrouter"]
    assert entry["request_per_1k_max"] == "10" and "input" not in entry


@pytest.mark.parametrize("more", [{}, {"request": "0.001"}])
def test_what_only_its_name_says_to_be_free_gets_a_whole_entry(more: Any, home: Path) -> None:
    prices = {"prompt": "0", "completion": "0"} | more
    listed = {"id": "acme/large:free", "context_length": 8000, "pricing": prices}
    assert update({"data": [listed]}).exit_code == 0
    use(home / "prices.json")
    found = shown("openrouter/acme/large:free")
    assert (found["input"], found["output"], found["max_input"]) == ("0", "0", 8000)


@pytest.mark.parametrize(
    ("table", "model"),
    [
        (LITELLM | {"a": 5, "b": {"litellm_provider": []}}, "gpt-text"),
        ({"data": [*OPENROUTER["data"], 7, {"id": 1, "pricing": "x"}]}, "openrouter/auto"),
        ([{"id": "openai", "models": [
            {"id": "new", "prices": {"input_mtok": 1}}, {"id": "odd", "prices": []}, 5]}, 6], "openai/odd"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_of_a_table_is_left_out_alone(
    table: Any, model: str, home: Path
) -> None:
    result = update(table)
    assert result.exit_code == 0, result.stderr
    skipped = [line for line in result.stdout.splitlines() if "not a price" in line]
    assert len(skipped) == 1 and any(word in skipped[0] for word in (model, " 2 "))
    assert "wrote" in result.stdout


BROKEN = [b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, b'{"data": [{"pricing": 1}]}', b"x = 1", b"providers = f()",
          b"providers: list = [g(id=1/0)]", b'{"a": {"litellm_provider": []}}', b'[{"id": [], "models": 5}]', HOSTILE.encode()]  # fmt: skip


@pytest.mark.parametrize("data", BROKEN)
def test_what_is_no_table_is_one_line_and_writes_nothing(data: bytes, home: Path) -> None:
    result = update(data)
    assert (result.exit_code, result.stdout) == (1, ""), result.exception
    assert result.stderr.startswith("infermux: -: ") and result.stderr.count("\n") == 1
    assert not home.exists()


@pytest.mark.slow
def test_odd_figures_and_names_never_break_an_update(home: Path) -> None:
    """Whatever a table says, the one that is written can be read, and no price falls to 0."""
    rng = random.Random(16)
    odd = [0, -1, -0.0, 1e-30, 1e300, "x", "", None, True, [], {}, "NaN", "1e-6", 10**40, 0.1]
    keys = [*LITELLM["gpt-99"], "tiered_pricing", "id", "output_cost_per_reasoning_token"]
    for _ in range(how_many(8, 40, 400)):
        table = {
            name: entry | {rng.choice(keys): rng.choice(odd) for _ in range(rng.randrange(4))}
            for name, entry in LITELLM.items()
        } | {rng.choice(["", "x" * 300, "gpt\u2028", "a/b/c"]): LITELLM["gpt-99"]}
        result = update(table)
        assert result.exit_code in (0, 1), (table, result.exception)
        if (home / "prices.json").exists():
            use(home / "prices.json")
            assert infermux("validate").exit_code == 0
            assert Decimal(shown("openai/gpt-5.4")["input"]) > 0
            assert shown("openai/gpt-4o")["input"] == "2.5"


# -- what is written -------------------------------------------------------------------------------


def test_a_second_update_changes_nothing_and_another_table_adds(home: Path) -> None:
    update(LITELLM)
    first = (home / "prices.json").read_bytes()
    again = update(LITELLM)
    assert (
        "0 new models, 0 changed ones, 4 are as known" in again.stdout
        and "stays as it is" in again.stdout
    )
    assert (home / "prices.json").read_bytes() == first
    update(GENAI)
    dearer = {
        "id": "moonshotai",
        "models": [{"id": "kimi-k3", "prices": {"input_mtok": 5, "output_mtok": 15}}],
    }
    update([dearer])
    use(home / "prices.json")
    assert shown("openai/gpt-99")["input"] == shown("moonshot/kimi-99")["input"] == "1"
    assert shown("moonshot/kimi-k3")["input"] == "5"
    stored = json.loads((home / "prices.json").read_text())["models"]["moonshot"]
    assert [entry["id"] for entry in stored].count("kimi-k3") == 1
    assert "genai-prices" in shown("moonshot/kimi-k3")["layers"]["input"]
    update({"moonshot/kimi-k3": LITELLM["moonshot/kimi-k3"]})
    assert shown("moonshot/kimi-k3")["input"] == "4"  # the last one holds


def test_a_newer_figure_holds_although_a_scheduled_price_has_begun(home: Path) -> None:
    later = {"from": "2999-01-01", "input": "9"}
    began = {"from": "2026-01-01", "input": "2", "output": "10"}
    listed = {"openai": [{"id": "gpt-5.4", "next": [began, later]}]}
    home.mkdir(parents=True)
    (home / "prices.json").write_text(json.dumps({"models": listed}))
    table = {"gpt-5.4": LITELLM["gpt-5.4"] | {"input_cost_per_token": 3e-06}}
    assert "1 changed" in update(table).stdout
    assert "0 changed" in update(table).stdout
    (entry,) = json.loads((home / "prices.json").read_text())["models"]["openai"]
    assert (entry["input"], entry["output"], entry["next"]) == ("3", "15", [later])


@pytest.mark.parametrize("seed", range(25))
def test_after_an_update_the_same_table_changes_nothing(seed: int, home: Path) -> None:
    """Whatever the prices were: with sizes, hours, tiers, days and figures that others follow."""
    rng = random.Random(seed)
    kinds = ("input", "output", "cached_input", "cache_write", "reasoning")

    def rates(*needed: str) -> dict[str, str]:
        named = [kind for kind in kinds if kind in needed or rng.random() < 0.3]
        return {kind: rng.choice(("0.5", "1", "2", "4")) for kind in named}

    def some(name: str, value: Any) -> dict[str, Any]:
        return {name: value} if rng.random() < 0.4 else {}

    listed, table = [], {}
    for number in range(20):
        entry = {"id": f"zz-{number}", **rates("input", "output")}
        entry |= some("tiers", [{"over": over, **rates()} for over in (100_000, 200_000)])
        days = ("2026-01-01", "2026-06-01", "2999-01-01")
        entry |= some("next", [{"from": day, **rates()} for day in days])
        entry |= some("peak", {"utc": ["01:00-02:00"], **rates()})
        listed.append(entry | some("service", {"flex": rng.choice(["0.5", rates("input")])}))
        costs = {"input_cost_per_token": 1, "output_cost_per_token": 2}
        costs |= some("cache_read_input_token_cost", 0.5)
        costs |= some("input_cost_per_token_above_200k_tokens", 2)
        costs |= some("output_cost_per_reasoning_token", 4)
        costs |= {"input_cost_per_token_flex": 0.5} | some("output_cost_per_token_flex", 2)
        known = {name: f"{cost}e-6" for name, cost in costs.items()}
        table[f"zz-{number}"] = {"litellm_provider": "openai", "mode": "chat", **known}
    home.mkdir(parents=True)
    (home / "prices.json").write_text(json.dumps({"models": {"openai": listed}}))
    assert "CHANGED" in update(table).stdout
    assert "0 changed ones, 20 are as known" in update(table).stdout


def test_the_tiers_and_parts_of_a_price_are_updated_each_on_its_own(home: Path) -> None:
    listed = LITELLM["gpt-5.4"] | {
        f"{name}_{tier}": cost
        for tier, costs in {"flex": (1e-06, 7e-06), "priority": (9e-06, 3e-05)}.items()
        for name, cost in zip(("input_cost_per_token", "output_cost_per_token"), costs, strict=True)
    }
    listed |= {"output_cost_per_reasoning_token": 2e-05}
    told = update({"gpt-5.4": listed, "openai/gpt-5.4": listed}).stdout
    for words in ("flex", "times 2", "input 9 output 30", "reasoning", "named twice"):
        assert words in told
    update({"gpt-5.4": listed | {"input_cost_per_token_flex": 2e-06}})
    entries = json.loads((home / "prices.json").read_text())["models"]["openai"]
    service = {name: each for entry in entries for name, each in entry.get("service", {}).items()}
    assert service["flex"] == {"input": "2", "output": "7"}
    assert service["priority"] == {"input": "9", "output": "30"}
    assert [entry["reasoning"] for entry in entries if "reasoning" in entry] == ["20"]
    scheduled = {"constraint": {"start_date": "2999-01-01"}, "prices": {"input_mtok": 4}}
    prices = [{"prices": {"input_mtok": 2.6, "output_mtok": 15}}, scheduled]
    told = update([{"id": "openai", "models": [{"id": "gpt-5.4", "prices": prices}]}]).stdout
    assert "from 2999-01-01" in told


def test_a_dry_run_writes_nothing_and_json_names_everything(home: Path) -> None:
    result = update(LITELLM, "--dry-run")
    assert result.exit_code == 0 and "nothing was written" in result.stdout and not home.exists()
    found = json.loads(update(LITELLM, "--dry-run", "--json").stdout)
    assert found["new"] == ["openai/gpt-99", "dashscope/qwen-99"] and found["wrote"] is False
    assert {"model": "openai/gpt-5.4", "term": "input", "was": "2.5", "now": "2.6"} in found[
        "changed"
    ]
    assert found["skipped"]["not a model for text"] == ["dall-e-3"] and found["read"] == 11


def test_the_table_is_replaced_as_a_whole_or_not_at_all(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(LITELLM)
    file = home / "prices.json"
    file.chmod(0o640)
    before = file.read_bytes()
    full = os.fsync

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)  # the disk is full
    result = update(GENAI)
    assert result.exit_code == 1 and "cannot be written: No space left" in result.stderr
    assert file.read_bytes() == before and [*home.iterdir()] == [file]
    monkeypatch.setattr(os, "fsync", full)
    link = home / "link.json"
    link.symlink_to(file)
    assert update(GENAI, "-o", str(link)).exit_code == 0
    assert link.is_symlink() and b"kimi-99" in file.read_bytes()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize(
    ("kept", "words"),
    [("{", "is not JSON"), ("[]", "is no price table"), ('{"models": {"openai": [{"id": 5}]}}', "models.openai[0].id"),
     ('{"models": {"openai": [{"id": "x", "input": "-1"}]}}', "openai/x.input")],
)  # fmt: skip
def test_an_own_table_that_is_broken_is_left_alone(kept: str, words: str, home: Path) -> None:
    home.mkdir(parents=True)
    (home / "prices.json").write_text(kept)
    result = update(LITELLM)
    assert result.exit_code == 1 and words in result.stderr and result.stderr.count("\n") == 1
    assert (home / "prices.json").read_text() == kept


def test_without_a_home_the_table_needs_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "")
    assert "--output" in update(LITELLM).stderr
    assert update(LITELLM, "-o", "mine.json").exit_code == 0 and Path("mine.json").is_file()


# -- differences that are accepted -----------------------------------------------------------------


def test_accepted_differences_make_a_check_green_until_a_figure_moves(home: Path) -> None:
    Path("table.json").write_text(json.dumps(LITELLM))
    check = ("prices", "--check", "table.json")
    assert infermux(*check).exit_code == 1
    assert infermux(*check, "--accepted", "ok.json", "--accept").exit_code == 0
    green = infermux(*check, "--accepted", "ok.json")
    assert green.exit_code == 0 and "more accepted" in green.stdout
    dearer = LITELLM | {"gpt-5.4": LITELLM["gpt-5.4"] | {"input_cost_per_token": 2.7e-06}}
    Path("table.json").write_text(json.dumps(dearer))
    red = infermux(*check, "--accepted", "ok.json")
    assert red.exit_code == 1
    assert [x.split() for x in red.stdout.splitlines()][1] == [
        "openai/gpt-5.4",
        "input",
        "2.5",
        "2.7",
    ]
    assert "2 accepted differences are no more" in red.stderr
    update(LITELLM, "--accepted", "ok.json")
    models = json.loads((home / "prices.json").read_text())["models"]
    assert [entry["id"] for entry in models["openai"]] == ["gpt-99"] and "moonshot" not in models


def test_a_check_after_an_update_is_green_but_for_what_was_skipped(home: Path) -> None:
    update(LITELLM)
    use(home / "prices.json")
    Path("table.json").write_text(json.dumps(LITELLM))
    found = json.loads(infermux("prices", "--check", "table.json", "--json").stdout)
    assert {(each["model"], each["figure"]) for each in found["differences"]} == {
        ("openai/gpt-4o", "input"),
        ("openai/gpt-5.4", "input over 272000"),
        ("openai/gpt-5.4", "output over 272000"),
    }


@pytest.mark.parametrize("args", [["--accept"], ["--accepted", "x"], ["--check", "--accept", "x"]])
def test_options_that_need_others_say_so(args: list[str]) -> None:
    assert infermux("prices", *args).exit_code == 2


# -- what is used ----------------------------------------------------------------------------------


def table_of(vendor: str, *entries: dict[str, Any], file: str = "mine.json") -> None:
    Path(file).write_text(json.dumps({"as_of": "2026-11-28", "models": {vendor: list(entries)}}))


@pytest.fixture
def vendor() -> Iterator[FaultyVendor]:
    with FaultyVendor() as running:
        yield running


def openai_at(vendor: FaultyVendor) -> str:
    """A provider whose answers have usage, and whose prices are those of OpenAI."""
    return f"""
[providers.openai]
base_url = "{vendor.url("openai")}"
api_key = "env:K"
models = ["gpt-4o"]
"""


ECHO = '[providers.echo]\nmodels = ["small"]\n'


def test_a_call_costs_what_the_file_says(vendor: FaultyVendor) -> None:
    def cost() -> Decimal:
        client = create_app(build.router(build.settings(path="infermux.toml"))).test_client()
        answer = client.post("/v1/chat/completions", json=HELLO | {"model": "gpt-4o"})
        return Decimal(answer.headers["X-Infermux-Cost"])

    Path("infermux.toml").write_text(openai_at(vendor))
    shipped = cost()
    assert shipped > 0
    table_of("openai", {"id": "gpt-4o", "input": "5", "output": "20"})
    use("mine.json", openai_at(vendor))
    assert cost() == 2 * shipped
    use(
        "mine.json",
        openai_at(vendor) + '[providers.openai.prices]\ngpt-4o = { input = "10", output = "40" }\n',
    )
    assert cost() == 4 * shipped


def test_a_file_with_no_other_table_keeps_the_environments_providers() -> None:
    table_of("openai", {"id": "gpt-4o", "output": "11"})
    use("mine.json")
    router = build.router(build.settings({"OPENAI_API_KEY": "sk-x"}, "infermux.toml"))
    target = next(each for each in router.registry.targets() if each.provider == "openai")
    price = router.targets.price(target._replace(model="gpt-4o"))
    assert price is not None
    assert (price.rates.input, price.rates.output) == (Decimal("2.5"), Decimal(11))


def test_figures_are_merged_one_by_one_and_shown_with_their_layers() -> None:
    table_of(
        "openai", {"id": "GPT-4o", "output": "11", "service": {"flex": "0.5"}, "cached_input": None}
    )
    use(
        "mine.json",
        '[providers.openai]\napi_key = "env:K"\nprices = { gpt-4o = { input = "3", tiers = [] } }\n',
    )
    own, table = json.loads(infermux("prices", "openai/gpt-4o", "--json").stdout)["prices"]
    text = infermux("prices", "openai/gpt-4o").stdout
    assert (own["input"], own["output"], own.get("cached_input")) == ("3", "11", None)
    assert (
        own["service"] == {"priority": "1.7", "flex": "0.5", "batch": "0.5"}
        and own["max_input"] == 128000
    )
    assert own["layers"]["input"] == "the configuration"
    assert own["layers"]["output"] == "mine.json (2026-11-28)"
    assert own["layers"]["max_input"].startswith("the shipped table (genai-prices")
    assert table["input"] == "2.5" and table["layers"]["output"] == "mine.json (2026-11-28)"
    assert "  from the configuration: input" in text
    assert find("openai", "gpt-4o").rates.output == 10  # the shipped table itself is untouched


def test_an_own_price_states_only_what_differs() -> None:
    Path("infermux.toml").write_text(
        textwrap.dedent("""
        [providers.openai]
        api_key = "env:K"
        [providers.openai.prices]
        "gpt-5.4" = { output = "9", tiers = [], service = {} }
        "gpt-4o-2024-11-20" = { input = "2" }
        [providers.local]
        type = "openai"
        base_url = "http://127.0.0.1:9/v1"
        [providers.local.prices]
        "gpt-4o" = { input = "0", output = "0" }
    """)
    )
    targets = build.router(build.settings(path="infermux.toml")).targets
    new, dated = (targets.overrides["openai"][name] for name in ("gpt-5.4", "gpt-4o-2024-11-20"))
    assert (new.rates.input, new.rates.output, new.tiers, new.service) == (
        Decimal("2.5"),
        9,
        (),
        (),
    )
    assert (dated.rates.input, dated.rates.output, dated.max_output) == (2, 10, 16384)
    local = targets.overrides["local"]["gpt-4o"]  # another server: nothing is known of it
    assert (local.rates.input, local.rates.cached_input, local.max_output) == (0, None, None)


def test_the_list_of_models_has_the_limits_of_the_file(vendor: FaultyVendor) -> None:
    table_of("openai", {"id": "gpt-4o", "max_input": 777})
    use("mine.json", openai_at(vendor))
    client = create_app(build.router(build.settings(path="infermux.toml"))).test_client()
    assert "777" in client.get("/v1/models/openai/gpt-4o").text + client.get("/v1/models").text


@pytest.mark.slow
def test_an_alias_gets_its_own_price_and_leaves_the_others() -> None:
    table_of(
        "openai",
        {"id": "gpt-5-codex", "input": "2"},
        {"id": "gpt-5", "output": "12", "aliases": ["gpt-five"]},
    )
    use("mine.json")
    table_of("gemini", {"id": "gemini-3.8-flash", "output": "4"}, file="gemini.json")
    use("gemini.json")
    assert (
        shown("gemini/gemini-3.8-flash")["output"]
        == shown("google/gemini-3.8-flash")["output"]
        == "4"
    )
    use("mine.json")
    codex, five, chat = (
        shown(f"openai/{name}") for name in ("gpt-5-codex", "gpt-five", "gpt-5-chat")
    )
    assert (codex["id"], codex["input"], codex["output"]) == ("gpt-5-codex", "2", "10")
    assert five == chat and (five["id"], five["input"], five["output"]) == ("gpt-5", "1.25", "12")
    assert "gpt-5-codex" not in five["aliases"]
    table_of("openai", {"id": "gpt-5-codex", "input": "2"})
    assert "gpt-5-codex" not in shown("openai/gpt-5")["aliases"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        ("{", "is not JSON: line 1, column 2"),
        ("[]", "is no price table"),
        ("[" * 100_000, "JSON"),
        ('{"models": {}, "modles": {}}', "did you mean 'models'"),
        ('{"models": {"openai": {}}}', "models.openai must be a list"),
        ('{"models": {"openai": [5]}}', "models.openai[0] must be a table"),
        ('{"models": {"openai": [{"id": "x", "inptu": "1"}]}}', "did you mean 'input'"),
        ('{"models": {"openai": [{"id": "x", "output": "1"}]}}', 'openai/x has no "input"'),
        ('{"models": {"openai": [{"id": "gpt-4o", "output": "free"}]}}', "openai/gpt-4o.output must be a decimal"),
        ('{"models": {"openai": [{"id": "gpt-4o", "tiers": 5}]}}', "openai/gpt-4o.tiers must be a list"),
        ('{"models": {"openai": [{"id": "gpt-4o", "aliases": [5]}]}}', "aliases must be a list of names"),
        ('{"models": {"openai": [{"id": "gpt-4o", "src": 5}]}}', "src must be the letters of sources"),
        ('{"as_of": "soon", "models": {}}', "as_of must be a date"),
        ('{"sources": 5, "models": {}}', "sources must be"),
    ],
)  # fmt: skip
def test_a_bad_file_stops_the_start_with_its_place(content: str | None, words: str) -> None:
    if content is not None:
        Path("mine.json").write_text(content)
    use("mine.json")
    with pytest.raises(ConfigError) as error:
        build.router(build.settings({}, "infermux.toml"))
    assert "mine.json" in str(error.value) and words in str(error.value)
    result = infermux("validate")
    assert result.exit_code == 3 and words in result.stderr and result.stderr.count("\n") == 1


def test_a_relative_path_is_relative_to_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("conf").mkdir()
    table_of("echo", {"id": "small", "input": "7", "output": "0"}, file="conf/mine.json")
    Path("conf/infermux.toml").write_text(ECHO + '[prices]\nfile = "mine.json"\n')
    listed = infermux("prices", "echo/small", "-c", "conf/infermux.toml", "--json")
    assert json.loads(listed.stdout)["prices"][0]["input"] == "7"
    said = infermux("validate", "-c", "conf/infermux.toml").stdout
    assert f"prices         {Path('conf/mine.json').absolute()}, over the shipped ones" in said
    monkeypatch.setenv("INFERMUX_PRICES__FILE", str(Path("conf/mine.json").absolute()))
    assert shown("echo/small")["input"] == "7"
    monkeypatch.setenv("INFERMUX_PRICES__FILE", "")
    assert infermux("prices", "echo/small").exit_code == 1


def test_a_bill_of_tokens_alone_is_priced_by_the_own_table() -> None:
    table_of("openai", {"id": "gpt-4o", "input": "1000"})
    use("mine.json", '[ledger]\npath = "calls.db"\n')
    assert infermux("infer", "hello", "-m", "echo-v1").exit_code == 0  # it makes the ledger
    Path("usage.csv").write_text(
        "start_time_iso,model,input_tokens,output_tokens,input_cached_tokens,num_model_requests\n"
        "2026-11-20,gpt-4o,1000000,0,0,1\n"
    )
    result = infermux("costs", "--reconcile", "usage.csv")
    assert re.search(r"gpt-4o +1,?000 ", result.stdout), result.stdout + result.stderr


def test_a_newer_own_table_ends_the_warning_that_prices_are_old(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("time.time", lambda: 1.83e9)  # 2027-12
    assert (
        "old" in infermux("prices", "gpt-4o").stderr
        or "days ago" in infermux("prices", "gpt-4o").stderr
    )
    Path("mine.json").write_text('{"as_of": "2027-12-01", "models": {}}')
    use("mine.json")
    assert infermux("prices", "gpt-4o").stderr == ""


@pytest.mark.slow
def test_a_reload_reads_the_file_again_and_a_bad_one_changes_nothing(
    tmp_path: Path, vendor: FaultyVendor
) -> None:
    file, mine = tmp_path / "service.toml", tmp_path / "mine.json"
    file.write_text(openai_at(vendor) + '[server]\nworkers = 1\n[prices]\nfile = "mine.json"\n')

    def price(factor: int) -> None:
        entry = {"id": "gpt-4o", "input": str(factor), "output": str(4 * factor)}
        table_of("openai", entry, file=str(mine))

    def cost() -> Decimal:
        answer = service.ask("/v1/chat/completions", HELLO | {"model": "gpt-4o"})
        return Decimal(answer.headers["X-Infermux-Cost"])

    price(1)
    with Service(env={"INFERMUX_CONFIG": str(file), "K": "sk-x"}) as service:
        first = cost()
        price(2)
        assert cost() == first  # until the reload
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: cost() == 2 * first)
        mine.write_text("{")
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: "the old one stays" in service.log and "is not JSON" in service.log)
        assert cost() == 2 * first
