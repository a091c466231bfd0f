"""Tests of `infermux prices`: the shipped prices, and their comparison with two public tables."""

from __future__ import annotations

import json
import re
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from books import HOSTILE
from click.testing import CliRunner, Result
from commands import ageless
from support import Service

from infermux.cli.main import main
from infermux.errors import ConfigError
from infermux.pricing import compare as pricecheck
from infermux.pricing import entries, table_date
from infermux.pricing.public import GENAI_VENDORS

TODAY = date(2026, 11, 23)
COUNT = 1234  # prices that are shipped
# as litellm writes them: USD per token, vendors and sizes in the names
LITELLM: dict[str, Any] = {
    "sample_spec": {"litellm_provider": "one of many", "input_cost_per_token": 0.0, "max_input_tokens": "a sentence", "mode": "one of"},
    "gpt-5.4": {
        "litellm_provider": "openai", "mode": "chat", "input_cost_per_token": 2.5e-06, "output_cost_per_token": 1.5e-05,
        "cache_read_input_token_cost": 2.5e-07, "input_cost_per_token_above_272k_tokens": 5e-06, "max_input_tokens": 1050000,
        "output_cost_per_token_above_272k_tokens": 2.25e-05, "cache_read_input_token_cost_above_272k_tokens": 5e-07,
        "input_cost_per_token_flex": 1.25e-06, "input_cost_per_token_above_272k_tokens_flex": 9.0, "supports_vision": True,
    },
    "claude-sonnet-4-5": {
        "litellm_provider": "anthropic", "mode": "chat", "input_cost_per_token": 3e-06, "output_cost_per_token": 1.5e-05,
        "cache_creation_input_token_cost": 3.75e-06, "cache_creation_input_token_cost_above_1hr": 6e-06,
        "cache_read_input_token_cost": 3e-07,
    },
    "deepseek/deepseek-chat": {
        "litellm_provider": "deepseek", "input_cost_per_token": 2.8e-07, "output_cost_per_token": 4.2e-07,
        "cache_read_input_token_cost": 2.8e-08, "cache_creation_input_token_cost": 0.0,
    },
    "gemini/gemini-2.5-pro": {"litellm_provider": "gemini", "input_cost_per_token": 1.25e-06, "output_cost_per_token": 1e-05},
    "text-embedding-3-small": {
        "litellm_provider": "openai", "mode": "embedding", "input_cost_per_token": 2e-08, "output_cost_per_token": 0.0,
    },
    "xai/grok-4.20": {
        "litellm_provider": "xai", "mode": "chat", "input_cost_per_token": 1.25e-06, "output_cost_per_token": 2.5e-06,
        "input_cost_per_token_above_200k_tokens": 2.5e-06, "output_cost_per_token_above_200k_tokens": 5e-06,
    },
    "dall-e-3": {"litellm_provider": "openai", "mode": "image_generation", "input_cost_per_token": 9.0},
    "somewhere/gpt-5.4": {"litellm_provider": "somewhere", "mode": "chat", "input_cost_per_token": 9.0},
}  # fmt: skip
# as genai-prices writes them: USD per million tokens, sizes in the figures, dates in a list
GENAI: list[dict[str, Any]] = [
    {"id": "openai", "name": "OpenAI", "models": [
        {"id": "gpt-5.4", "match": {"equals": "gpt-5.4"}, "prices": {
            "input_mtok": {"base": 2.5, "tiers": [{"start": 272000, "price": 5}]},
            "cache_read_mtok": {"base": 0.25, "tiers": [{"start": 272000, "price": 0.5}]},
            "output_mtok": {"base": 15, "tiers": [{"start": 272000, "price": 22.5}]}}}]},
    {"id": "x-ai", "models": [{"id": "grok-4.20", "prices": {"input_mtok": {"base": 1.25, "tiers": [{"start": 199999, "price": 2.5}]}}}]},
    {"id": "google", "models": [
        {"id": "gemini-4-argon", "prices": [
            {"prices": {"input_mtok": 1, "output_mtok": 1}},
            {"constraint": {"start_date": "2026-01-01"}, "prices": {"input_mtok": 2, "output_mtok": 10, "cache_read_mtok": 0.1}},
            {"constraint": {"start_date": "2026-12-01"}, "prices": {"input_mtok": 4, "output_mtok": 20, "cache_read_mtok": 0.2}},
            {"constraint": {"start_time": "00:30:00Z", "end_time": "16:30:00Z"}, "prices": {"input_mtok": 9}}]}]},
    {"id": "avian", "models": [{"id": "gpt-5.4", "prices": {"input_mtok": 9}}]},
]  # fmt: skip


def told(table: Any, today: date = TODAY) -> list[str]:
    """What differs, in one word each."""
    return [
        f"{d.model} {d.figure} {d.ours} {d.theirs:f}"
        for d in pricecheck.check(json.dumps(table).encode(), today).differences
    ]


def prices(*args: str) -> Result:
    return CliRunner().invoke(main, ["prices", *args])


def changed(name: str, **figures: Any) -> dict[str, Any]:
    return LITELLM | {name: LITELLM[name] | figures}


# -- beside a public table -------------------------------------------------------------------------


def test_a_table_of_litellms_that_agrees() -> None:
    found = pricecheck.check(json.dumps(LITELLM).encode(), TODAY)
    assert (found.source, found.compared, found.unknown) == ("litellm", 6, [])
    assert told(LITELLM) == [
        "google/gemini-2.5-pro input over 200000 2.5 1.25", "google/gemini-2.5-pro output over 200000 15 10",
    ]  # fmt: skip  # it has forgotten the tier, and would charge less


def test_a_table_of_genai_prices_that_agrees() -> None:
    found = pricecheck.check(json.dumps(GENAI).encode(), TODAY)
    assert (found.source, found.compared, found.differences) == ("genai-prices", 3, [])
    assert pricecheck.check(json.dumps({"providers": GENAI}).encode(), TODAY).compared == 3
    assert told(GENAI, date(2026, 12, 1)) == []  # here and there the price of December begins


@pytest.mark.parametrize(
    ("name", "figures", "difference"),
    [
        ("gpt-5.4", {"input_cost_per_token": 2.6e-06}, "openai/gpt-5.4 input 2.5 2.6"),
        (
            "gpt-5.4",
            {"output_cost_per_token_above_272k_tokens": 2.3e-05},
            "openai/gpt-5.4 output over 272000 22.5 23",
        ),
        (
            "gpt-5.4",
            {"cache_creation_input_token_cost": 3e-06},
            "openai/gpt-5.4 cache_write None 3",
        ),
        (
            "claude-sonnet-4-5",
            {"cache_creation_input_token_cost_above_1hr": 7e-06},
            "anthropic/claude-sonnet-4-5 cache_write_1h 6 7",
        ),
        (
            "text-embedding-3-small",
            {"input_cost_per_token": 1.0000000000000001e-08},
            "openai/text-embedding-3-small input 0.02 0.01",
        ),
    ],
)
def test_a_figure_that_differs_is_told(
    name: str, figures: dict[str, float], difference: str
) -> None:
    assert difference in told(changed(name, **figures))


@pytest.mark.parametrize(
    "figures",
    [
        {"cache_read_input_token_cost": 2e-08},  # what is not listed here is the input
        {"cache_creation_input_token_cost": 0.0},
        {"cache_read_input_token_cost": None},
        {"input_cost_per_token_flex": 9.0},
    ],
)
def test_what_costs_the_same_is_no_difference(figures: dict[str, float]) -> None:
    assert told(changed("text-embedding-3-small", **figures)) == told(LITELLM)


def test_the_price_of_the_peak_hours_is_no_difference() -> None:
    """litellm has no hours: it lists the dear ones."""
    peak = {"input_cost_per_token": 3e-07, "output_cost_per_token": 1.2e-06}
    flash = {"litellm_provider": "deepseek", "mode": "chat"} | peak
    assert told(LITELLM | {"deepseek/deepseek-flash": flash}) == told(LITELLM)
    cheap = flash | {"input_cost_per_token": 1e-07}
    assert told({"deepseek/deepseek-flash": cheap}) == ["deepseek/deepseek-flash input 0.15 0.1"]


def test_a_tier_that_only_one_side_has_is_told() -> None:
    tier = {"input_cost_per_token_above_200k_tokens": 6e-06}
    assert "anthropic/claude-sonnet-4-5 input over 200000 3 6" in told(
        changed("claude-sonnet-4-5", **tier)
    )


def test_a_price_of_several_names_is_told_once_and_new_models_are_listed() -> None:
    dear = LITELLM["gpt-5.4"] | {"input_cost_per_token": 1.0}
    more = {
        "gpt-5.4": dear,
        "gpt-5-4": dear,
        "gpt-99": dear,
        "gemini/gemini-99": LITELLM["gemini/gemini-2.5-pro"],
    }
    found = pricecheck.check(json.dumps(LITELLM | more).encode(), TODAY)
    assert [each.model for each in found.differences if each.figure == "input"] == [
        "openai/gpt-5.4"
    ]
    assert found.unknown == ["google/gemini-99", "openai/gpt-99"]


BROKEN = [
    b"",
    b"[]",
    b"{}",
    b"null",
    b"[1]",
    b'{"a": 1}',
    b"[" * 100_000,
    b"\xff",
    b'{"a": {"litellm_provider": NaN}}',
    b'[{"id": "x"}]',
]


@pytest.mark.parametrize("data", BROKEN)
def test_what_is_no_price_table_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(ConfigError):
        pricecheck.check(data, TODAY)


@pytest.mark.parametrize("figure", ["x", None, True, [], {"base": 1}, -0.0, 1e400])
def test_a_figure_that_is_none_breaks_nothing(figure: Any) -> None:
    genai = [{"id": "openai", "models": [{"id": "gpt-5.4", "prices": {"input_mtok": figure}}]}]
    for table in (changed("gpt-5.4", output_cost_per_token=figure), genai):
        try:
            pricecheck.check(json.dumps(table).encode(), TODAY)
        except ConfigError:
            continue


def test_every_shipped_price_agrees_with_itself() -> None:
    """The whole table, written as genai-prices would: no price is compared with a wrong one, and no
    tier is lost.
    """
    names = {
        "input_mtok": "input",
        "output_mtok": "output",
        "cache_read_mtok": "cached_input",
        "cache_write_mtok": "cache_write",
    }
    there = {vendor: theirs for theirs, vendor in GENAI_VENDORS.items()}
    models: dict[str, list[Any]] = {}
    for price in entries():
        told = {name: {"base": str(getattr(price.rates, ours)),
                       "tiers": [{"start": tier.over, "price": str(getattr(price.rates.under(tier.rates), ours))} for tier in price.tiers]}
                for name, ours in names.items() if getattr(price.rates, ours) is not None}  # fmt: skip
        name, _, behind = price.id.partition(":")
        vendor = (
            f"huggingface_{behind}" if price.provider == "huggingface" else there[price.provider]
        )
        id = name if price.provider == "huggingface" else price.id
        models.setdefault(vendor, []).append({"id": id, "prices": told})
    found = pricecheck.check(
        json.dumps([{"id": id, "models": listed} for id, listed in models.items()]).encode(), TODAY
    )
    assert (found.compared, found.differences, found.unknown) == (COUNT, [], [])


def test_check_tells_each_file_and_fails_where_one_differs(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps(GENAI))
    bad.write_text(json.dumps(changed("gpt-5.4", input_cost_per_token=2.6e-06)))
    assert prices("--check", str(good)).exit_code == 0
    result = prices("--check", str(good), str(bad))
    assert result.exit_code == 1
    assert re.search(r"^openai/gpt-5\.4 +input +2\.5 +2\.6$", result.stdout, re.MULTILINE)
    assert re.search(
        r"^\S*bad\.json \(litellm\): 6 models compared with the table of 2026-11-23, 3 fig",
        result.stdout,
        re.MULTILINE,
    )
    found = json.loads(prices("--check", str(bad), "--json").stdout)
    assert {"model": "openai/gpt-5.4", "figure": "input", "ours": "2.5", "theirs": "2.6"} in found[
        "differences"
    ]


@pytest.mark.parametrize(
    ("args", "code"), [(["--check"], 2), (["--check", "no.json"], 1), (["--check", __file__], 1)]
)
def test_a_file_that_cannot_be_compared_is_one_line(args: list[str], code: int) -> None:
    result = prices(*args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert code == 2 or "is not JSON" in result.stderr or "no.json cannot be read" in result.stderr


# -- what is shown ---------------------------------------------------------------------------------


def test_the_whole_table_or_one_vendors() -> None:
    whole = prices().stdout.splitlines()
    assert whole[0].split() == ["PROVIDER", "MODEL", "INPUT", "OUTPUT", "CACHED", "CACHE", "WRITE"]
    assert len(whole) == COUNT + 2 and whole[-1].endswith("as of 2026-11-23")
    for listed in (("--provider", "gemini"), ("gemini-2.5-pro", "--provider", "gemini")):
        assert "google" in prices(*listed).stdout  # its vendor's
    other = prices("gpt-5.4", "--provider", "gemini").stderr
    assert "no price is known for 'gpt-5.4'" in other and "mean 'gpt" not in other
    groq = prices("--provider", "groq").stdout.splitlines()
    assert {line.split()[0] for line in groq[1:-1]} == {"groq"}
    assert groq[2].split() == ["groq", "llama-3.1-8b-instant", "0.05", "0.08"]


def test_an_entry_is_shown_with_all_that_changes_it() -> None:
    assert prices("gpt-5.4", "--provider", "openai").stdout.splitlines() == [
        "openai/gpt-5.4  (gpt-5-4)",
        "  USD per million tokens: input 2.5, output 15, cached input 0.25",
        "  over 272000 input tokens: input 5, output 22.5, cached input 0.5",
        "  service tier batch: times 0.5",
        "  service tier flex: input 1.25, output 7.5, cached input 0.13",
        "  service tier priority: times 2",
        "  USD per 1,000: web search 10, file search 2.5, code interpreter 30",
        "  at most 1050000 tokens in, 128000 out",
        "  source: genai-prices, litellm, llm-prices, OpenRouter's listing; table of 2026-11-23",
    ]
    assert (
        "  01:00-04:00, 06:00-10:00 UTC, Monday to Friday: input 0.3, output 1.2, cached input 0.006"
        in prices("deepseek-flash").stdout
    )
    assert (
        "  from 2026-12-01: input 4, output 20, cached input 0.2"
        in prices("google/gemini-4-argon").stdout
    )
    assert "  not known to hold before 2026-07-30" in prices("gpt-5.6-luna").stdout


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpt-4o-2024-11-20", ["openai/gpt-4o"]),
        ("openai/gpt-4o", ["openai/gpt-4o"]),
        (
            "minimaxai/minimax-m3",
            [f"{vendor}/minimaxai/minimax-m3" for vendor in ("deepinfra", "nebius", "together")],
        ),
        ("together/minimaxai/minimax-m3", ["together/minimaxai/minimax-m3"]),
        ("openrouter/openai/gpt-5.4", ["openai/gpt-5.4"]),
    ],
)
def test_a_name_leads_where_a_call_would(name: str, found: list[str]) -> None:
    listed = json.loads(prices(name, "--json").stdout)["prices"]
    assert [f"{price['provider']}/{price['id']}" for price in listed] == found


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["gpt-4p"], ["'gpt-4p'", "did you mean", "gpt-4o"]),
        (["openai/claude-haiku-4-5"], ["openai/claude-haiku-4-5"]),
        (["--provider", "opnai"], ["did you mean", "openai"]),
        (["--provider", "zzz"], ["there are", "anthropic"]),
        (["gpt-4o", "--provider", "anthropic"], ["gpt-4o"]),
        (["x" * 10_000], ["xxx"]),
        ([HOSTILE], ["no price"]),
        (["-c", "no.toml"], ["no.toml"]),
    ],
)
def test_an_unknown_name_is_one_line_and_exit_code_1(args: list[str], words: list[str]) -> None:
    result = prices(*args)
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"infermux: [^\n\x1b]+\n", ageless(result.stderr))
    assert all(word in result.stderr for word in words)


def test_own_prices_are_shown_as_the_configurations(tmp_path: Path) -> None:
    file = tmp_path / "infermux.toml"
    file.write_text(
        '[providers.echo]\nmodels = ["llama3.2"]\nprices = { "llama3.2" = { input = "0.1", output = "0" } }\n'
    )
    assert prices("echo/llama3.2", "-c", str(file)).stdout.splitlines() == [
        "echo/llama3.2", "  USD per million tokens: input 0.1, output 0", "  source: the configuration",
    ]  # fmt: skip
    assert prices("llama3.2", "-c", str(file), "--json").exit_code == 0


# -- how old it is ---------------------------------------------------------------------------------


def at(days: int) -> float:
    return datetime.combine(table_date() + timedelta(days), datetime.min.time(), UTC).timestamp()


@pytest.mark.parametrize(
    ("days", "old"), [(-5, False), (0, False), (90, False), (91, True), (4000, True)]
)
def test_prices_are_told_to_be_old_after_90_days(
    monkeypatch: pytest.MonkeyPatch, days: int, old: bool
) -> None:
    monkeypatch.setattr(time, "time", lambda: at(days))
    for args in (["prices", "gpt-4o"], ["validate"]):
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0
        assert ("2026-11-23" in result.stderr) is old
    assert old is (pricecheck.stale(at(days)) is not None)


@pytest.mark.slow
def test_a_service_tells_it_once_at_its_start(tmp_path: Path) -> None:
    (tmp_path / "later.py").write_text(
        f"import time\nreal, at = time.time, time.time()\ntime.time = lambda: {at(91)} + real() - at\n"
    )
    (tmp_path / "gunicorn.conf.py").write_text(
        "import later\nfrom infermux.server import load\n\nglobals().update(load())\n"
    )
    with Service(
        "-c",
        str(tmp_path / "gunicorn.conf.py"),
        "--workers",
        "2",
        env={"PYTHONPATH": str(tmp_path)},
    ) as service:
        assert service.ask("/providers").status == 200
        service.stop()
        assert service.log.count("91 days ago") == 1
