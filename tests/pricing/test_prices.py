"""Tests of the price of a call: the shared test vectors to the last digit, and edge cases."""

from __future__ import annotations

import decimal
import json
import re
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from infermux import pricing as prices
from infermux.errors import ConfigError
from infermux.pricing import (
    PICO,
    Charge,
    Price,
    charge,
    cost,
    entries,
    find,
    table_date,
    usd,
    usd_float,
)
from infermux.pricing.tariff import Service
from infermux.types import Usage

SHARED = Path(__file__).parents[3] / "shared" / "prices"
OWN = Path(__file__).parents[1] / "data" / "prices"
NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)  # a Monday
MILLION = 10**6
ONE = Usage(input_tokens=1)


def lines(folder: Path, name: str) -> list[Any]:
    file = folder / name
    if not file.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"{file} is absent"))]
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def dollars(
    price: Price | None, *, at: datetime = NOON, tier: str | None = None, **tokens: Any
) -> str:
    """The cost of some tokens, spelled out."""
    return usd(cost(Usage(**tokens), price, at=at, service_tier=tier))


def price_of(provider: str, model: str) -> Price:
    price = find(provider, model)
    assert price is not None
    return price


def plain(**terms: Any) -> Price:
    return Price.of({"input": "1", "output": "10", **terms})


def charged(usage: Usage, **options: Any) -> Charge:
    return charge(usage, **{"provider": "openai", "requested": "gpt-4o", "at": NOON, **options})


# What a table of other people's arithmetic says


@pytest.mark.parametrize("line", [*lines(SHARED, "vectors.jsonl"), *lines(OWN, "vectors.jsonl")])
def test_a_vector_is_exact(line: Any) -> None:
    price = find(line["provider"], line["model"])
    pico = cost(
        Usage(**line["usage"]), price, at=moment(line["at"]), service_tier=line.get("service_tier")
    )
    assert pico == Decimal(line["expected_cost_usd"]) * PICO


@pytest.mark.parametrize("line", [*lines(SHARED, "lookup.jsonl"), *lines(OWN, "lookup.jsonl")])
def test_an_id_leads_to_its_entry_or_to_none(line: Any) -> None:
    price = find(line["provider"], line["model"])
    if "entry" in line:
        assert (price and price.id) == line["entry"]
    else:
        assert price is not None
        assert price.rates.input == Decimal(line.get("price_input", 0))


@pytest.mark.parametrize("line", lines(SHARED, "realbill.jsonl"))
def test_a_real_bill(line: Any) -> None:
    raw = line["raw_usage"]
    usage = Usage(
        input_tokens=raw["prompt_tokens"],
        cached_input_tokens=raw["prompt_tokens_details"]["cached_tokens"],
        output_tokens=raw["completion_tokens"]
        + raw["completion_tokens_details"]["reasoning_tokens"],  # xAI leaves it out
    )
    assert (
        usd(cost(usage, find(line["provider"], line["model"]), at=moment(line["at"])))
        == line["expected_cost_usd"]
    )


EXCHANGES = [
    json.loads(file.read_text("utf-8"))
    for file in sorted((SHARED.parent / "wire" / "exchanges").glob("*.json"))
]
BILLED = [each for each in EXCHANGES if (each["expected"] or {}).get("usage")]
VENDORS = {
    "gemini": "google",
    "gemini-openai": "google",
    "vertex": "google",
    "vertex-anthropic": "anthropic",
    "bedrock-mantle": "bedrock",
}


def listed(provider: str, *models: str | None) -> bool:
    """Whether the table itself has an entry for one of the ids, read apart from the code that is
    tested.
    """
    stored = json.loads(
        Path(prices.__file__).parents[1].joinpath("prices.json").read_text("utf-8")
    )["models"]
    known = {name for entry in stored.get(provider, []) + (stored["openai"] if provider == "azure" else [])
             for name in (entry["id"], *entry.get("aliases", []))}  # fmt: skip
    names = {(model or "").lower().removeprefix("models/") for model in models}
    dated = re.compile(
        r"-\d{4}-\d\d-\d\d$|-\d{8}$|@.*$" + (r"|-\d{3}$" if provider == "google" else "")
    )
    return bool(known & (names | {dated.sub("", name) for name in names}))


@pytest.mark.parametrize("exchange", BILLED, ids=lambda each: each["id"])
def test_recorded_usage_is_priced_and_unpriced_exactly_where_there_is_no_entry(
    exchange: Any,
) -> None:
    told, at = exchange["expected"]["usage"], datetime(2026, 11, 23, 12, tzinfo=UTC)
    usage = Usage(
        told["all_input_tokens"],
        told["all_output_tokens"],
        told["cached_input_tokens"],
        told["cache_write_tokens"],
    )
    provider = VENDORS.get(exchange["provider"], exchange["provider"])
    served = exchange["expected"]["model"]
    found = charge(
        usage, provider=provider, requested=exchange["model"] or "", served=served, at=at
    )
    entry = listed(provider, served, exchange["model"])
    for name in (
        (served or "", exchange["model"]) if provider == "openrouter" else ()
    ):  # what it resells has its vendor's price
        vendor, _, model = name.lower().partition("/")
        model = model.replace(".", "-") if vendor == "anthropic" else model
        entry = entry or name.endswith(":free") or listed(vendor.replace("x-ai", "xai"), model)
    assert (found.pico is not None) is entry, (provider, exchange["model"], served, found)
    assert found.pico is None or found.pico >= 0


def test_the_recordings_that_are_priced_are_not_few() -> None:
    if EXCHANGES:
        assert len(BILLED) > 150


# What the formula does


def test_each_part_has_its_own_price() -> None:
    price = plain(cached_input="0.1", cache_write="2", cache_write_1h="3")
    usage: Any = {
        "input_tokens": 10 * MILLION,
        "cached_input_tokens": 5 * MILLION,
        "cache_write_tokens": 3 * MILLION,
        "cache_write_1h_tokens": MILLION,
        "output_tokens": MILLION,
        "reasoning_tokens": MILLION,
    }
    assert dollars(price, **usage) == "19.5"  # 2·1 + 5·0.1 + 2·2 + 1·3 + 1·10


@pytest.mark.parametrize(
    ("terms", "total"),
    [
        ({"input_audio": "4", "cached_input_audio": "2"}, "14.3"),  # 4·1 + 3·0.1 + 2·4 + 1·2
        ({"input_audio": "4"}, "16.3"),
        ({"as_text": ["audio"]}, "6.4"),
    ],
)
def test_cached_audio_has_a_price_of_its_own(terms: Any, total: str) -> None:
    price = plain(cached_input="0.1", **terms)
    usage = {"input_audio_tokens": 3 * MILLION, "cached_audio_tokens": MILLION}
    known: Any = {"input_tokens": 10 * MILLION, "cached_input_tokens": 4 * MILLION}
    assert dollars(price, **usage, **known) == total


def test_an_answer_that_searched_is_billed_once_where_its_price_is_of_answers() -> None:
    price = plain(fees={"grounded": "35"})
    assert dollars(price, input_tokens=0, fees=(("web_search", 3),)) == "0.035"


def test_each_of_several_requests_has_its_fee() -> None:
    assert usd(cost(ONE, plain(fees={"request": "5"}), at=NOON, requests=3)) == "0.015001"


def test_a_second_model_of_a_call_has_its_own_price() -> None:
    def both(name: str) -> int | None:
        return charged(Usage(MILLION, 0, others=((name, Usage(MILLION, 0)),))).pico

    one, other = (cost(Usage(MILLION, 0), price_of("openai", x)) for x in ("gpt-4o", "gpt-5.4"))
    assert one is not None and other is not None
    assert (both("gpt-5.4"), both("no-such-model")) == (one + other, None)


def test_a_missing_figure_falls_back_to_the_next_wider_one() -> None:
    assert (
        dollars(
            plain(),
            input_tokens=3 * MILLION,
            cached_input_tokens=MILLION,
            cache_write_tokens=MILLION,
        )
        == "3"
    )
    assert (
        dollars(
            plain(cache_write="2"),
            input_tokens=MILLION,
            cache_write_tokens=MILLION,
            cache_write_1h_tokens=MILLION,
        )
        == "2"
    )


def test_a_figure_of_zero_is_not_a_missing_one() -> None:
    price = plain(cached_input="0", cache_write="0")
    assert (
        dollars(
            price, input_tokens=2 * MILLION, cached_input_tokens=MILLION, cache_write_tokens=MILLION
        )
        == "0"
    )


def test_unknown_is_not_free() -> None:
    assert cost(Usage(input_tokens=5, output_tokens=5), None) is None
    assert cost(Usage(), plain()) is None
    assert cost(Usage(cached_input_tokens=5), plain()) is None
    assert cost(Usage(input_tokens=0), plain()) == 0
    assert cost(Usage(output_tokens=5), plain()) == 50 * MILLION
    assert cost(Usage(input_tokens=5), plain()) == 5 * MILLION


def test_an_embedding_has_no_output_to_price() -> None:
    price = Price.of({"input": "0.1"})
    assert (
        cost(Usage(input_tokens=10), price)
        == cost(Usage(input_tokens=10, output_tokens=0), price)
        == MILLION
    )
    assert cost(Usage(input_tokens=10, output_tokens=1), price) is None


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            {"input_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 4},
            (6 * 1 + 4 * 20) * 100_000,
        ),
        (
            {"input_tokens": 10, "cached_input_tokens": 6, "cache_write_tokens": 5},
            (6 * 1 + 5 * 20) * 100_000,
        ),
        ({"input_tokens": 0, "cached_input_tokens": 8}, 8 * 100_000),
        (
            {"input_tokens": 9, "cache_write_tokens": 2, "cache_write_1h_tokens": 3},
            (6 * 10 + 3 * 20) * 100_000,
        ),
        ({"input_tokens": -7, "output_tokens": 0}, 0),
    ],
)
def test_parts_beyond_their_whole_make_the_whole_as_large_and_nothing_negative(
    tokens: Any, expected: int
) -> None:
    assert cost(Usage(**tokens), plain(cached_input="0.1", cache_write="2")) == expected


def test_a_clamped_whole_chooses_the_tier() -> None:
    price = plain(tiers=[{"over": 100, "input": "2", "output": "20"}])
    assert cost(Usage(input_tokens=1, cached_input_tokens=101), price) == 101 * 2 * MILLION


def test_an_ambient_decimal_context_changes_nothing() -> None:
    with decimal.localcontext(decimal.Context(prec=2)):
        assert dollars(plain(input="1.23456"), input_tokens=1234567) == "1.52414703552"
        assert charge(Usage(cost_usd=0.0232856), provider="x", requested="y").pico == 23285600000


def test_only_a_users_finer_figure_rounds_and_half_to_even() -> None:
    price = Price.of({"input": "0.0000005", "output": "0"})
    assert [cost(Usage(input_tokens=n), price) for n in (1, 2, 3, 4)] == [0, 1, 2, 2]


def test_every_shipped_rate_is_whole_pico_usd_per_token() -> None:
    for price in entries():
        for service in (Service(""), *price.service):
            for tokens in (0, *(tier.over + 1 for tier in price.tiers)):
                rates = price.rates_for(tokens, at=NOON, service=service)
                assert all(
                    (rate * service.factor * MILLION) % 1 == 0 for rate in rates if rate is not None
                ), price.id


def test_a_huge_count_is_still_exact() -> None:
    assert cost(Usage(input_tokens=10**60 + 1), plain(input="0.00001")) == (10**60 + 1) * 10


# What moves a price


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (199, "0.000199"),
        (200, "0.0002"),
        (201, "0.000402"),
        (400, "0.0008"),
        (401, "0.001203"),
    ],
)
def test_a_tier_begins_strictly_above_and_the_highest_wins(tokens: int, expected: str) -> None:
    price = plain(tiers=[{"over": 400, "input": "3"}, {"over": 200, "input": "2"}])
    assert dollars(price, input_tokens=tokens) == expected


def test_a_tier_rates_the_output_too_and_output_never_chooses_it() -> None:
    price = plain(tiers=[{"over": 200, "input": "2", "output": "20"}])
    assert cost(Usage(input_tokens=201, output_tokens=1), price) == (402 + 20) * MILLION
    assert cost(Usage(input_tokens=1, output_tokens=10**6), price) == (1 + 10**7) * MILLION


@pytest.mark.parametrize(
    ("at", "factor"),
    [
        ("2026-11-23T00:59:59Z", 1),
        ("2026-11-23T01:00:00Z", 2),
        ("2026-11-23T03:59:59.999999Z", 2),
        ("2026-11-23T04:00:00Z", 1),
        ("2026-11-23T05:59:59Z", 1),
        ("2026-11-23T06:00:00Z", 2),
        ("2026-11-23T09:59:59Z", 2),
        ("2026-11-23T10:00:00Z", 1),
        ("2026-11-27T02:00:00Z", 2),
        ("2026-11-28T02:00:00Z", 1),
        ("2026-11-29T02:00:00Z", 1),  # Friday and the weekend
        ("2026-11-23T09:30:00+08:00", 2),  # 01:30 UTC
        ("2026-11-30T09:30:00+14:00", 1),  # Monday there, Sunday in UTC
        ("2026-11-23T02:00:00", 2),  # naive is UTC
    ],
)
def test_peak_hours_are_utc_and_on_weekdays(at: str, factor: int) -> None:
    assert (
        cost(Usage(input_tokens=1), price_of("deepseek", "deepseek-flash"), at=moment(at))
        == factor * 150_000
    )


def test_a_naive_moment_is_utc_wherever_the_host_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert (
            cost(
                Usage(input_tokens=1),
                price_of("deepseek", "deepseek-flash"),
                at=moment("2026-11-23T02:00:00"),
            )
            == 300_000
        )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_hours_may_end_at_midnight() -> None:
    price = plain(peak={"utc": ["23:00-24:00"], "input": "5"})
    costs = [cost(Usage(input_tokens=1), price, at=NOON.replace(hour=hour)) for hour in (22, 23, 0)]
    assert costs == [MILLION, 5 * MILLION, MILLION]


def test_a_scheduled_price_begins_at_midnight_utc() -> None:
    price, midnight = price_of("google", "gemini-4-argon"), datetime(2026, 12, 1, tzinfo=UTC)
    assert dollars(price, input_tokens=MILLION, at=midnight - timedelta(microseconds=1)) == "2"
    assert dollars(price, input_tokens=MILLION, at=midnight) == "4"
    assert (
        dollars(price, input_tokens=MILLION, at=midnight.astimezone(timezone(timedelta(hours=-5))))
        == "4"
    )


def test_of_two_scheduled_prices_the_later_one_that_has_begun_holds() -> None:
    price = plain(next=[{"from": "2027-02-01", "input": "3"}, {"from": "2027-01-01", "input": "2"}])
    at = [datetime(2026, 12, 31), datetime(2027, 1, 31), datetime(2027, 2, 1)]
    assert [dollars(price, input_tokens=MILLION, at=day) for day in at] == ["1", "2", "3"]


def test_before_its_first_day_a_price_is_unknown() -> None:
    price = price_of("openai", "gpt-5.6-luna")
    assert price.since == date(2026, 7, 30)
    assert (
        dollars(price, input_tokens=MILLION, at=datetime(2026, 7, 29, 23, 59, 59, tzinfo=UTC))
        == "unpriced"
    )
    assert dollars(price, input_tokens=1000, at=datetime(2026, 7, 30, tzinfo=UTC)) == "0.0002"


def test_without_a_moment_it_is_now() -> None:
    assert cost(Usage(input_tokens=1), plain(since="2999-01-01")) is None
    assert (
        cost(
            Usage(input_tokens=1),
            plain(since="2020-01-01", next=[{"from": "2021-01-01", "input": "7"}]),
        )
        == 7 * MILLION
    )


@pytest.mark.parametrize(
    ("tier", "expected"),
    [
        (None, "1.75"),
        ("default", "1.75"),
        ("auto", "1.75"),
        ("standard", "1.75"),
        ("nosuch", "unpriced"),
        ("flex", "0.875"),
        ("priority", "3.5"),
        ("Priority", "3.5"),
    ],
)
def test_a_service_tier_scales_only_if_it_is_listed(tier: str | None, expected: str) -> None:
    assert dollars(price_of("openai", "gpt-5.2"), tier=tier, input_tokens=MILLION) == expected


def test_a_fast_call_costs_what_a_priority_one_does() -> None:
    price = plain(service={"priority": "2"})
    assert dollars(price, tier="fast", input_tokens=MILLION) == "2"


def test_a_service_tier_may_have_its_own_figures() -> None:
    price = price_of("openai", "gpt-4o-mini")
    tokens: Any = {
        "input_tokens": 2 * MILLION,
        "cached_input_tokens": MILLION,
        "output_tokens": MILLION,
    }
    assert dollars(price, tier="priority", **tokens) == "1.375"
    assert dollars(price, **tokens) == "0.825"


def test_a_factor_applies_to_a_tier_but_own_figures_give_way_to_it() -> None:
    price = price_of("openai", "gpt-5.4")
    assert dollars(price, tier="priority", input_tokens=400_000) == "4"
    assert dollars(price, tier="flex", input_tokens=400_000) == "2"
    assert dollars(price, tier="flex", input_tokens=200_000) == "0.25"


def test_the_tier_that_was_billed_wins_over_the_one_asked_for() -> None:
    price = price_of("openai", "gpt-5.2")
    assert dollars(price, tier="priority", input_tokens=MILLION, service_tier="default") == "1.75"
    assert dollars(price, tier="flex", input_tokens=MILLION, service_tier="priority") == "3.5"


# Which price


@pytest.mark.parametrize("model", ["gpt-4o" * 40, "x" * 10**6, "gpt-4o-2024-08-06" + " " * 200])
def test_a_long_id_is_unpriced_and_not_remembered(model: str) -> None:
    before = prices.shipped()._find.cache_info().currsize
    assert (
        find("openai", model)
        is find("openrouter", model + ":free")
        is find(model, "gpt-4o")
        is None
    )
    assert charged(ONE, requested=model, overrides={model: plain()}) == Charge(None, "unpriced")
    assert prices.shipped()._find.cache_info().currsize == before


def test_the_memory_of_ids_is_bounded() -> None:
    for number in range(5000):
        find("openai", f"junk-{number}")
    assert prices.shipped()._find.cache_info().currsize <= 4096
    prices.shipped()._find.cache_clear()


def test_a_free_variant_costs_nothing_rather_than_being_unknown() -> None:
    free = price_of("openrouter", "meta-llama/llama-3.3-70b-instruct:free")
    assert cost(Usage(input_tokens=9, cached_input_tokens=3, output_tokens=9), free) == 0


def test_the_vendors_own_figure_wins_to_the_last_digit() -> None:
    assert charged(Usage(input_tokens=1, cost_usd=0.1), overrides={"gpt-4o": plain()}) == (
        10**11,
        "vendor",
    )
    assert charged(Usage(cost_usd=123456.7)) == (123456_700_000_000_000, "vendor")
    assert charged(Usage(cost_usd=1e-7)) == (100_000, "vendor")
    assert charged(Usage(input_tokens=1, cost_usd=0.0)) == (0, "vendor")


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), -0.5])
def test_a_vendors_figure_that_is_no_money_is_ignored(figure: float) -> None:
    assert charged(Usage(input_tokens=1, cost_usd=figure)) == (2_500_000, "requested")


def test_the_served_model_wins_over_the_requested_one() -> None:
    assert charged(ONE, served="gpt-4o-mini-2024-07-18") == (150_000, "served")
    assert (
        charged(ONE, served="something-else")
        == charged(ONE)
        == charged(ONE, served="")
        == (2_500_000, "requested")
    )
    assert charged(ONE, requested="a", served="b") == (None, "unpriced")
    assert charged(Usage(), served="gpt-4o") == (None, "unpriced")


def test_a_users_price_goes_before_the_shipped_one_of_the_same_id() -> None:
    own = {"gpt-4o": plain(), "llama3.2": Price.of({"input": "0", "output": "0"})}
    assert charged(ONE, overrides=own) == (MILLION, "override")
    assert charged(ONE, provider="ollama", requested="llama3.2", overrides=own) == (0, "override")
    assert charged(ONE, served="gpt-4o-2024-08-06", overrides=own) == (
        MILLION,
        "override",
    )  # a dated gpt-4o
    assert charged(ONE, served="gpt-4o-2024-05-13", overrides=own) == (
        5 * MILLION,
        "served",
    )  # which the table tells apart
    assert charged(ONE, served="gpt-4o-mini", overrides=own) == (150_000, "served")
    assert charged(ONE, served="Mine", overrides={"Mine": plain()}) == (MILLION, "override")


# The table and a user's own


def test_the_table_is_sorted_and_dated() -> None:
    listed = [(price.provider, price.id) for price in entries()]
    assert listed == sorted(set(listed)) and len(listed) == 1234
    assert table_date() == date(2026, 11, 23)


@pytest.mark.parametrize(
    "vendor",
    [
        *("moonshot", "zai", "dashscope", "minimax", "cerebras", "vercel", "huggingface"),
        *("sambanova", "deepinfra", "novita", "hyperbolic", "nebius", "baseten"),
    ],
)
def test_a_vendor_has_public_prices_each_with_source_and_date(vendor: str) -> None:
    listed = [price for price in entries() if price.provider == vendor]
    assert len(listed) >= 8
    for price in listed:
        assert price.sources and set(price.sources) <= {"genai-prices", "litellm 1.110.2"}
        assert price.as_of == ("2026-11-29" if "n" in price.src else "")  # else of the table's day
        assert price.rates.input or price.note.startswith("free")


@pytest.mark.parametrize(
    ("gateway", "model", "follows"),
    [
        ("openrouter", "moonshotai/kimi-k2-thinking", "moonshot/kimi-k2-thinking"),
        ("openrouter", "z-ai/glm-4.6", "zai/glm-4.6"),
        ("openrouter", "anthropic/claude-opus-5.5", "anthropic/claude-opus-5-5"),
        ("openrouter", "qwen/qwen3.8-max", "dashscope/qwen3.8-max"),
        ("openrouter", "mistralai/mistral-medium-latest", "mistral/mistral-medium-latest"),
        ("vercel", "openai/gpt-5.5", "openai/gpt-5.5"),
    ],
)
def test_a_gateway_follows_the_vendor_and_is_marked(gateway: str, model: str, follows: str) -> None:
    price = price_of(gateway, model)
    assert (f"{price.provider}/{price.id}", price.follower) == (follows, f"{gateway}/{model}")
    assert price_of(*follows.split("/")).follower == ""


@pytest.mark.parametrize(
    ("model", "output"), [("deepseek/deepseek-v4-pro", "2.832"), ("minimax/minimax-m2", "1.02")]
)
def test_a_gateway_that_asks_another_price_has_its_own(model: str, output: str) -> None:
    price = price_of("openrouter", model)
    assert (price.follower, price.rates.output) == ("", Decimal(output))


def test_no_id_leads_to_two_entries() -> None:
    seen = [(price.provider, name) for price in entries() for name in (price.id, *price.aliases)]
    assert len(seen) == len(set(seen))
    assert all(name == name.lower() for _, name in seen)


def test_import_reads_no_table() -> None:
    code = "import infermux.pricing as p, sys; sys.exit(p.shipped.cache_info().currsize + ('importlib.resources' in sys.modules))"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], check=False, cwd=Path(prices.__file__).parents[2]
        ).returncode
        == 0
    )


@pytest.mark.skipif(not SHARED.exists(), reason="no shared table")
def test_the_shipped_table_has_every_price_of_the_shared_one() -> None:
    stored = Path(prices.__file__).parents[1].joinpath("prices.json").read_text("utf-8")
    ours, theirs = json.loads(stored), json.loads((SHARED / "prices.json").read_text("utf-8"))
    for vendor, listed in theirs["models"].items():
        assert [entry for entry in listed if entry not in ours["models"][vendor]] == []
    assert ours["as_of"] == theirs["as_of"]


def test_an_entry_keeps_its_facts() -> None:
    price = price_of("openai", "gpt-5.4")
    assert (price.max_input, price.max_output, price.src, price.aliases) == (
        1050000,
        128000,
        "glso",
        ("gpt-5-4",),
    )
    assert price.tiers[0].rates.output == Decimal("22.5")
    assert dict(price_of("perplexity", "sonar").fees)["request"] == 12


@pytest.mark.parametrize(
    ("figure", "exact"), [("0.15", "0.15"), (0.15, "0.15"), (3, "3"), ("1e-3", "0.001")]
)
def test_a_users_number_means_what_it_says(figure: Any, exact: str) -> None:
    assert Price.of({"input": figure}).rates.input == Decimal(exact)


BAD_TERMS: list[tuple[Any, str]] = [
    ([], "must be a table"),
    ({}, 'no "input"'),
    ({"output": "1"}, 'no "input"'),
    ({"input": "1", "ouput": "1"}, "did you mean 'output'"),
    ({"input": "1", "id": "x"}, "unknown key"),
]
BAD_FIGURES: list[tuple[Any, str]] = [
    ("-1", "0 or more"),
    ("-0", "0 or more"),
    ("nan", "finite"),
    (float("inf"), "finite"),
    ("sNaN", "finite"),
    ("$3", "decimal string"),
    ("", "decimal string"),
    (True, "decimal string"),
    (None, "decimal string"),
    ("1e999999", "digits"),
    ("1e-999999", "digits"),
    ("9" * 40, "digits"),
]
BAD_CHANGES: list[tuple[Any, str]] = [
    ({"max_input": "5"}, r"price\.max_input must be a whole"),
    ({"max_output": True}, "whole"),
    ({"max_output": -1}, "whole"),
    ({"since": "soon"}, r"price\.since must be a date"),
    ({"since": 5}, "must be a date"),
    ({"tiers": {}}, "must be a list"),
    ({"tiers": [5]}, r"tiers\[0\] must be a table"),
    ({"tiers": [{"input": "1"}]}, r"tiers\[0\]\.over must be a whole"),
    ({"tiers": [{"over": 1, "inptu": "1"}]}, "did you mean 'input'"),
    ({"tiers": [{"over": 1, "input": "x"}]}, r"tiers\[0\]\.input must be a decimal"),
    ({"next": [{"input": "1"}]}, r"from must be a date"),
    ({"peak": {"input": "1"}}, r"peak\.utc must be a list"),
    ({"peak": {"utc": ["04:00-01:00"]}}, "hours of one UTC day"),
    ({"peak": {"utc": ["1-4"]}}, "hours of one"),
    ({"peak": {"utc": ["00:00-24:01"]}}, "hours of one"),
    ({"peak": {"utc": [], "days": "fri-mon"}}, "must be one of mon-fri"),
    ({"service": "2"}, "table of service tiers"),
    ({"service": {"flex": "x"}}, r"service\.flex must be a decimal"),
    ({"service": {"flex": {"inputs": "1"}}}, "did you mean 'input'"),
]


@pytest.mark.parametrize(
    ("terms", "words"),
    [
        *BAD_TERMS,
        *[({"input": figure}, words) for figure, words in BAD_FIGURES],
        *[({"input": "1"} | change, words) for change, words in BAD_CHANGES],
    ],
)
def test_a_bad_price_names_its_fault(terms: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Price.of(terms)


def test_a_fault_names_the_place() -> None:
    with pytest.raises(
        ConfigError, match=r'^providers\.ollama\.prices\."llama3\.2"\.input must be'
    ):
        Price.of({"input": "free"}, place='providers.ollama.prices."llama3.2"')


@pytest.mark.parametrize(
    ("pico", "text"),
    [
        (None, "unpriced"),
        (0, "0"),
        (1, "0.000000000001"),
        (PICO, "1"),
        (10 * PICO, "10"),
        (1_500_000_000_000, "1.5"),
        (-250 * 10**9, "-0.25"),
    ],
)
def test_dollars_are_exact(pico: int | None, text: str) -> None:
    assert usd(pico) == text


@pytest.mark.parametrize(
    ("pico", "dollars"),
    [
        (None, None),
        (0, 0.0),
        (10**11, 0.1),
        (60_000_000, 0.00006),
        (1, 1e-12),
        (1_234_560_000_000_000, 1234.56),
        (123_456_789 * 10**9, 123456.789),
    ],
)
def test_pico_usd_as_a_float_is_the_nearest_one(pico: int | None, dollars: float | None) -> None:
    assert usd_float(pico) == dollars
