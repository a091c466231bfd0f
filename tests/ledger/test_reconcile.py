"""Tests of the comparison of a vendor's bill with the ledger: formats, lines, and differences."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import pytest
from books import DAY, HOSTILE, NOON, call, keep
from click.testing import CliRunner, Result

from infermux.cli.main import main
from infermux.errors import ModelNotFound, RequestError
from infermux.ledger import reconcile as bills
from infermux.ledger.reconcile import Tolerance
from infermux.pricing import PICO
from infermux.types import Usage

DIME = PICO // 10
OPENAI_COSTS = """\
start_time,end_time,start_time_iso,end_time_iso,amount_value,amount_currency,quantity,quantity_unit,line_item,user_id,project_id
1795305600,1795392000,2026-11-22T00:00:00+00:00,2026-11-23T00:00:00+00:00,,,,,,,
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,0.1000000000000000000000,usd,9,tokens,"gpt-5-2025-08-07, input",,p
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,0.05,usd,9,tokens,"gpt-5-2025-08-07, cached input",,p
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,0.05,usd,9,tokens,"flex | gpt-5-2025-08-07, output, long",,p
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,0.2,usd,9,tokens,"gpt-audio-2025-08-28 audio, input",,p
1795478400,1795564800,2026-11-24T00:00:00+00:00,2026-11-25T00:00:00+00:00,1,usd,9,tokens,"web search tool calls",,p
"""
OLD_OPENAI_COSTS = "timestamp,currency,name,cost,cost_in_major,date\n1795392000,usd,GPT-4o mini,20,0.2,2026-11-23\n"
OPENAI_USAGE = """\
start_time,end_time,start_time_iso,end_time_iso,project_id,num_model_requests,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,p,2,gpt-5.4,,,1000000,100000,400000
1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00,p,2,gpt-nix,,,5,5,0
"""
ANTHROPIC_COSTS = """\
usage_date_utc,model,workspace,api_key,usage_type,context_window,token_type,cost_usd,list_price_usd,cost_type
2026-11-23,Claude Haiku 4.5,Default,k,message,\u2264 200k,input_no_cache,0.19,0.19,token
2026-11-23,Claude Haiku 4.5,Default,k,message,\u2264 200k,output,0.03,0.03,token
2026-11-23,Claude 3.5 Sonnet 2024-10-22,Default,k,message,\u2264 200k,output,"1,234.50","1,234.50",token
"""
ANTHROPIC_USAGE = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,\
usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count
2026-11-23,claude-haiku-4-5-20251001,k,Default,standard,\u2264 200k,1000000,100000,100000,1000000,100000,0
2026-11-23,claude-haiku-5-5,k,Default,standard,\u2264 100k,1000000,0,0,0,0,0
2026-11-23,claude-haiku-5-5,k,Default,standard,> 100k,1000000,0,0,0,0,0
"""


def read(text: str) -> dict[tuple[str, str], Fraction | None]:
    bill = bills.read(text.encode())
    assert bill.unread == []
    return bill.usd


# -- what a bill says ------------------------------------------------------------------------------


def test_openais_costs_are_summed_over_what_a_line_item_tells_apart() -> None:
    assert bills.read(OPENAI_COSTS.encode()).vendor == "openai"
    assert read(OPENAI_COSTS) == {
        ("2026-11-23", "gpt-5"): Fraction("0.2"),
        ("2026-11-23", "gpt-audio"): Fraction("0.2"),
        ("2026-11-24", "web-search-tool-calls"): 1,
    }
    assert read(OLD_OPENAI_COSTS) == {
        ("2026-11-23", "gpt-4o-mini"): Fraction("0.2")
    }  # in dollars, not in cents


def test_openais_usage_is_priced_by_the_table_and_never_by_the_tier_of_a_sum() -> None:
    bill = bills.read(OPENAI_USAGE.encode())
    assert (bill.vendor, bill.priced) == ("openai", False)
    assert bill.usd == {
        ("2026-11-23", "gpt-5.4"): Fraction("3.1"),
        ("2026-11-23", "gpt-nix"): None,
    }  # 0.6 of 2.5, 0.4 of 0.25, 0.1 of 15


def test_anthropics_costs_are_told_by_the_names_of_its_console() -> None:
    assert bills.read(ANTHROPIC_COSTS.encode()).vendor == "anthropic"
    assert read(ANTHROPIC_COSTS) == {
        ("2026-11-23", "claude-haiku-4-5"): Fraction("0.22"), ("2026-11-23", "claude-3-5-sonnet"): Fraction("1234.5"),
    }  # fmt: skip


def test_anthropics_usage_is_priced_part_by_part_and_tells_its_tier() -> None:
    assert read(ANTHROPIC_USAGE) == {
        ("2026-11-23", "claude-haiku-4-5"): Fraction("1")
        + Fraction("0.125")
        + Fraction("0.2")
        + Fraction("0.1")
        + Fraction("0.5"),
        ("2026-11-23", "claude-haiku-5-5"): Fraction("0.1") + Fraction("0.5"),
    }


@pytest.mark.parametrize(
    "text",
    [
        "date,model,usd\n2026-11-23,gpt-5,0.5\n",
        "\ufeffDate,Model,Cost (USD)\r\n2026-11-23,gpt-5,$0.50\r\n",
        "usd;date;model\n0.5;2026-11-23 23:59:59;gpt-5-2025-08-07\n",
        "date\tmodel\tcost\n2026-11-24T01:00:00+02:00\tGPT-5\t0.5\n",
        "timestamp,model,amount,currency\n1795435200,gpt-5,5e-1,USD\n\n,,,\n",
    ],
)
def test_any_table_of_date_model_and_dollars_is_one(text: str) -> None:
    assert read(text) == {("2026-11-23", "gpt-5"): Fraction("0.5")}
    assert bills.read(text.encode("utf-16")).usd == read(text)


def test_a_bill_without_models_is_one_of_days() -> None:
    bill = bills.read(
        b"start_time,amount_value,line_item\n1795392000,0.5,\n1795478400,0.25,\n1795564800,,\n"
    )
    assert bill.usd == {("2026-11-23", ""): Fraction("0.5"), ("2026-11-24", ""): Fraction("0.25")}
    assert not bill.has_models


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("soon,gpt-5,1", "date"),
        ("11/23/2026,gpt-5,1", "date"),
        ("99999999999,gpt-5,1", "date"),
        ("9999-12-31,gpt-5,1", "date"),
        ("2026-11-23,gpt-5,much", "amount"),
        ("2026-11-23,gpt-5,NaN", "amount"),
        ("2026-11-23,gpt-5,1e999999", "amount"),
        ("2026-11-23,gpt-5,", "missing"),
        ("2026-11-23,gpt-5", "missing"),
        ('2026-11-23,gpt-5,"1,2"', "amount"),
        ("2026-11-23,gpt-5,1,eur", "currency"),
        (f"2026-11-23,gpt-5,{HOSTILE.splitlines()[0]}", "amount"),
    ],
)
def test_a_line_that_cannot_be_read_is_named_by_its_number(line: str, words: str) -> None:
    bill = bills.read(
        f"date,model,usd,currency\n2026-11-22,gpt-5,1\n{line}\n2026-11-24,gpt-5,1\n".encode()
    )
    assert [text.partition(":")[0] for text in bill.unread] == ["line 3"]
    assert words in bill.unread[0] and "\x1b" not in bill.unread[0]
    assert len(bill.usd) == 2


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"a,b\n1,2\n",
        b"date,model\n2026-11-23,x\n",
        b"model,usd\nx,1\n",
        b"\x00\xff\xfe",
        b'date,usd\n"' + b"x" * 200_000,
    ],
)
def test_what_is_no_bill_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(RequestError):
        bills.read(data)


@pytest.mark.parametrize(
    ("texts", "ours", "theirs", "equal"),
    [
        ([], 101, 100, True),
        ([], PICO + PICO // 50, PICO, False),  # 2 %
        ([], PICO // 100, 0, True),  # a cent
        ([], PICO // 100 + 1, 0, False),
        (["0"], 1, 0, False),
        (["0%"], 5, 5, True),
        (["5%"], 105, 100, True),
        (["5%"], 106, 100, False),
        (["0.5"], PICO // 2, 0, True),
        (["5%", "0.5"], PICO // 2 + 1, 0, False),
    ],
)
def test_a_tolerance_is_in_percent_or_dollars(
    texts: list[str], ours: int, theirs: int, equal: bool
) -> None:
    assert Tolerance.of(texts).covers(ours, theirs) is equal


@pytest.mark.parametrize("text", ["", "%", "-1%", "a lot", "1e3", "nan"])
def test_a_tolerance_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RequestError):
        Tolerance.of([text])


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> str:
    """20 cents of gpt-5 at OpenAI on the 23rd, in two calls, and as much at Anthropic; 1 dollar at
    OpenAI the day after the bill.
    """
    return str(
        keep(
            tmp_path / "l.db",
            call("a", served="gpt-5-2025-08-07", cost=DIME),
            call("b", served="gpt-5-2025-08-07", cost=DIME, at=NOON + 3600),
            call(
                "c",
                target="anthropic/claude-haiku-4-5",
                served="claude-haiku-4-5-20251001",
                cost=2 * DIME,
            ),
            call("d", cost=PICO, at=NOON + 2 * DAY),
        )
    )


def reconcile(ledger: str, text: str, *args: str) -> Result:
    bill = Path(ledger).with_name("bill.csv")
    bill.write_text(text, encoding="utf-8")
    return CliRunner().invoke(main, ["costs", "--ledger", ledger, "--reconcile", str(bill), *args])


def rows(result: Result) -> list[list[str]]:
    return [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()[1:]]


def test_a_bill_that_agrees_is_exit_code_0(ledger: str) -> None:
    bill = "date,model,usd\n2026-11-23,gpt-5,0.2\n2026-11-23,claude-haiku-4-5,0.2001\n"
    result = reconcile(ledger, bill)
    assert (result.exit_code, result.stderr) == (0, "")
    assert rows(result)[:3] == [
        ["2026-11-23", "claude-haiku-4-5", "0.2", "0.2001", "-0.0001", "ok"],
        ["2026-11-23", "gpt-5", "0.2", "0.2", "0", "ok"],
        ["TOTAL", "0.4", "0.4001", "-0.0001", "ok"],
    ]
    assert reconcile(ledger, bill, "--tolerance", "0").exit_code == 1


def test_a_call_that_reached_no_provider_does_not_hide_the_others(tmp_path: Path) -> None:
    """A bill without a vendor's columns is compared with every provider."""
    refused = call("b", cost=None, attempts=[], error=ModelNotFound("no provider for model 'x'"))
    ledger = keep(tmp_path / "l.db", call("a", served="gpt-5", cost=DIME), refused)
    bill = "date,model,usd\n2026-11-23,gpt-5,0.1\n"
    assert reconcile(str(ledger), bill).stdout.count(" ok") == 2


def test_what_only_one_side_has_is_shown(ledger: str) -> None:
    result = reconcile(ledger, OPENAI_COSTS)
    assert result.exit_code == 1
    assert rows(result) == [
        ["2026-11-23", "gpt-5", "0.2", "0.2", "0", "ok"],
        ["2026-11-23", "gpt-audio", "0.2", "-0.2", "DIFFERS", "only theirs"],
        ["2026-11-24", "web-search-tool-calls", "1", "-1", "DIFFERS", "only theirs"],
        ["TOTAL", "0.2", "1.4", "-1.2", "DIFFERS"],
        ["3 days and models: 1 agree, 2 differ"],
    ]  # an OpenAI export is compared with the calls to OpenAI, of its own days


def test_the_calls_that_are_meant_can_be_named(ledger: str) -> None:
    bill = "date,model,usd\n2026-11-23,gpt-5,0.2\n"
    assert "only ours" in reconcile(ledger, bill).stdout
    assert reconcile(ledger, bill, "--provider", "openai").exit_code == 0
    assert "no calls to" in reconcile(ledger, bill, "--provider", "azure").stderr
    wide = reconcile(ledger, bill, "--provider", "openai", "--month", "2026-11")
    assert (wide.exit_code, rows(wide)[1]) == (
        1,
        ["2026-11-25", "gpt-5", "1", "1", "DIFFERS", "only ours"],
    )
    assert (
        reconcile(ledger, bill, "--since", "2026-11-24").exit_code == 1
    )  # nothing of it is asked for


def test_a_bill_of_days_is_compared_by_day(ledger: str) -> None:
    result = reconcile(ledger, "start_time,amount_value,line_item\n1795392000,0.2,\n")
    assert (result.exit_code, rows(result)[0]) == (0, ["2026-11-23", "0.2", "0.2", "0", "ok"])


def test_lines_that_cannot_be_read_are_told_and_fail(ledger: str) -> None:
    result = reconcile(
        ledger,
        "date,model,usd\n2026-11-23,gpt-5,0.2\n2026-11-23,claude-haiku-4-5,0.2\nsoon,gpt-5,1\n",
    )
    assert result.exit_code == 1
    assert re.fullmatch(r"infermux: \S*bill\.csv: line 4: [^\n]+\n", result.stderr)
    assert "0 differ" in result.stdout


def test_what_has_no_price_never_agrees(tmp_path: Path) -> None:
    unknown = call("a", served="gpt-nix", cost=None, usage=Usage(5, 5))
    path = keep(tmp_path / "l.db", unknown, call("b", target="openai/gpt-5.4", cost=1))
    result = reconcile(str(path), OPENAI_USAGE, "--tolerance", "100%", "--tolerance", "100")
    assert result.exit_code == 1
    assert rows(result)[1] == [
        "2026-11-23",
        "gpt-nix",
        "0",
        "0",
        "DIFFERS",
        "1 unpriced, no price for the vendor's tokens",
    ]
    assert "holds tokens" in result.stdout


def test_a_comparison_can_be_read_by_programs(ledger: str) -> None:
    found = json.loads(reconcile(ledger, OPENAI_COSTS, "--json").stdout)
    assert (found["vendor"], found["total"]["difference_usd"], found["total"]["agrees"]) == (
        "openai",
        "-1.2",
        False,
    )
    assert found["rows"][0] == {"day": "2026-11-23", "model": "gpt-5", "ours_usd": "0.2", "theirs_usd": "0.2", "difference_usd": "0",
                                "agrees": True, "note": ""}  # fmt: skip
    lines = reconcile(
        ledger, f'date,model,usd\n2026-11-23,"{HOSTILE.replace(chr(34), chr(34) * 2)}",1\n', "--csv"
    ).stdout.splitlines()
    assert lines[0] == "day,model,ours_usd,theirs_usd,difference_usd,verdict,note"
    assert len(lines) == 4
    assert any(",'=cmd" in line or ",\"'=cmd" in line for line in lines)


@pytest.mark.parametrize(
    ("args", "code"), [(["--tolerance", "much"], 2), (["--provider", "x"], 1), ([], 1)]
)
def test_what_cannot_be_compared_is_one_line(ledger: str, args: list[str], code: int) -> None:
    result = CliRunner().invoke(main, ["costs", "--ledger", ledger, "--reconcile", "no.csv", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    empty = reconcile(ledger, "date,model,usd\n")
    assert (empty.exit_code, empty.stdout) == (1, "")
