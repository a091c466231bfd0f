"""Tests of the comparison of a vendor's bill with the ledger: formats, lines, and differences."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import re
from datetime import datetime, time
from fractions import Fraction
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from books import DAY, HOSTILE, NOON, call, keep
from click.testing import CliRunner, Result

from infermux.cli.main import main
from infermux.errors import ModelNotFound, RequestError
from infermux.ledger import reconcile as bills
from infermux.ledger.bills.models import spoken_of
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
GPT_54 = {("2026-11-23", "gpt-5.4"): Fraction(5, 2)}  # a million tokens of input
OPENAI_HEAD = (
    "start_time,end_time,start_time_iso,end_time_iso,project_id,project_name,num_model_requests,user_id,user_email,api_key_id,"
    "api_key_name,api_key_redacted,model,batch,service_tier,input_tokens,output_tokens,input_cached_tokens,input_audio_tokens,"
    "output_audio_tokens\n"
)
OPENAI_DAY = "1795392000,1795478400,2026-11-23T00:00:00+00:00,2026-11-24T00:00:00+00:00"
OPENAI_FULL_USAGE = (
    OPENAI_HEAD
    + "1795305600,1795392000,2026-11-22T00:00:00+00:00,2026-11-23T00:00:00+00:00,,,,,,,,,,,,,,,,\n"
    + f"{OPENAI_DAY},p,P,12.0,,,k,key,sk-..x,gpt-5.4-2026-03-05,False,default,124784.0,20000.0,24784.0,0.0,0.0\n"
    + f"{OPENAI_DAY},p,P,2,,,k,key,sk-..x,gpt-5.4-2026-03-05,True,,1000000,0,400000,0,0\n"
    + "1795478400,1795564800,2026-11-24T00:00:00+00:00,2026-11-25T00:00:00+00:00,,,0.0,,,,,,,,,0.0,0.0,0.0,0.0,0.0\n"
)
ANTHROPIC_FULL_USAGE = """\
usage_date_utc,model_version,api_key,workspace,usage_type,context_window,usage_input_tokens_no_cache,usage_input_tokens_cache_write_5m,\
usage_input_tokens_cache_write_1h,usage_input_tokens_cache_read,usage_output_tokens,web_search_count,inference_geo,speed
2026-11-23,claude-haiku-4-5-20251001,k,Default,standard,\u2264 200k,1000000,0,0,0,100000,5,us,
2026-11-23,claude-haiku-4-5-20251001,k,Default,batch,\u2264 200k,1000000,0,0,0,0,0,not_available,
2026-11-24,claude-haiku-4-5-20251001,k,Default,standard,\u2264 200k,1000000,0,0,0,0,0,mars,
"""
OPENROUTER_GENERATIONS = """\
generation_id,created_at,cost_total,cost_web_search,cost_cache,cost_file_processing,byok_usage_inference,tokens_prompt,tokens_completion,\
tokens_reasoning,tokens_cached,model_permaslug,provider_name,variant,cancelled,streamed,user,finish_reason_raw,finish_reason_normalized,\
generation_time_ms,time_to_first_token_ms,api_key_disabled,api_key_name,app_name
gen-1,2026-11-23 21:19:33.705,0.012,0.005,-0.001,0,0,65,116,0,0,anthropic/claude-4.5-haiku-20251001,Anthropic,standard,false,true,,stop,stop,9,5,false,k,a
gen-2,2026-11-23 23:59:59.999,0.001,0,0,0,0.02,65,116,0,0,openai/gpt-4.1-2025-04-14,OpenAI,standard,false,true,,stop,stop,9,5,false,k,a
gen-3,2026-11-24 00:00:00,0,0,0,0,0,65,116,0,0,google/gemini-2.0-flash-exp:free,Google,free,false,true,,stop,stop,9,5,false,k,a
"""
OPENROUTER_ACTIVITY = """\
Date,Slug,Usage,BYOK Usage,Requests,Prompt Tokens,Completion Tokens,Reasoning Tokens
"2026-11-23 00:00:00","anthropic/claude-haiku-4.5","0.012","0","4115","70965665","3009973","0"
"2026-11-23 00:00:00","openai/gpt-4.1","0.001","0.02","1","65","116","0"
"""
OPENROUTER_API = json.dumps({
    "data": [
        {"date": "2026-11-23", "model": "anthropic/claude-haiku-4.5", "model_permaslug": "anthropic/claude-4.5-haiku-20251001",
         "endpoint_id": "e", "provider_name": "Anthropic", "usage": 0.012, "byok_usage_inference": 0, "requests": 5, "prompt_tokens": 50,
         "completion_tokens": 125, "reasoning_tokens": 25},
        {"date": "2026-11-23", "model": "openai/gpt-4.1", "model_permaslug": "openai/gpt-4.1-2025-04-14", "endpoint_id": "e",
         "provider_name": "OpenAI", "usage": 0.001, "byok_usage_inference": 0.02, "requests": 5, "prompt_tokens": 50,
         "completion_tokens": 125, "reasoning_tokens": 25},
    ]
})  # fmt: skip
OPENROUTER_COSTS = {
    ("2026-11-23", "anthropic/claude-haiku-4-5"): Fraction("0.012"),
    ("2026-11-23", "openai/gpt-4.1"): Fraction("0.021"),
}
DEEPSEEK_COSTS = """\
user_id,utc_date,model,wallet_type,cost,currency
u,2026-11-23,deepseek-v4-pro,Paid,0.0049,USD
u,20261123,deepseek-v4-pro,Granted,0.0052,USD
"""
DEEPSEEK_USAGE = """\
user_id,utc_date,model,api_key_name,api_key,type,price,amount
u,2026-11-23,deepseek-v4-pro,"Team, Primary",sk-x,input_cache_hit_tokens,0.000001,1000
u,2026-11-23,deepseek-v4-pro,"Team, Primary",sk-x,input_cache_miss_tokens,0.000002,500.0
u,2026-11-23,deepseek-v4-pro,"Team, Primary",sk-x,output_tokens,4e-6,200
u,2026-11-23,deepseek-v4-pro,"Team, Primary",sk-x,request_count,,3
"""
DEEPSEEK_LOCAL = """\
user_id,start_time_iso,end_time_iso,model,wallet_type,cost,currency
u,2026-11-23T00:00:00+08:00,2026-11-24T00:00:00+08:00,deepseek-v4-pro,Paid,0.3,USD
u,2026-11-24T00:00:00+08:00,2026-11-25T00:00:00+08:00,deepseek-v4-pro,Paid,0.1,USD
"""
AWS_FOCUS = """\
AvailabilityZone,BilledCost,BillingAccountId,BillingAccountName,BillingCurrency,BillingPeriodEnd,BillingPeriodStart,ChargeCategory,ChargeClass,\
ChargeDescription,ChargeFrequency,ChargePeriodEnd,ChargePeriodStart,CommitmentDiscountCategory,CommitmentDiscountId,CommitmentDiscountName,\
CommitmentDiscountStatus,CommitmentDiscountType,ConsumedQuantity,ConsumedUnit,ContractedCost,ContractedUnitPrice,EffectiveCost,\
InvoiceIssuerName,ListCost,ListUnitPrice,PricingCategory,PricingQuantity,PricingUnit,ProviderName,PublisherName,RegionId,RegionName,ResourceId,\
ResourceName,ResourceType,ServiceCategory,ServiceName,SkuId,SkuPriceId,SubAccountId,SubAccountName,Tags,x_CostCategories,x_Discounts,\
x_Operation,x_ServiceCode,x_UsageType
,0.30,1,a,USD,2026-12-01T00:00:00.000Z,2026-11-01T00:00:00.000Z,Usage,,AWS Marketplace software usage|us-east-1|Million Input Tokens,Usage-Based,\
2026-11-23T13:00:00.000Z,2026-11-23T12:00:00.000Z,,,,,,0.3,Units,0.3,1,0.3,"Amazon Web Services, Inc.",0.3,1,Standard,0.3,Units,AWS,Anthropic,us-east-1,\
US East,,,,AI and Machine Learning,Claude Haiku 4.5 (Amazon Bedrock Edition),S1,P1,1,a,"{""team"": ""x""}",{},{},,,USE1-MP:USE1_InputTokenCount-Units
,0.05,1,a,USD,2026-12-01T00:00:00.000Z,2026-11-01T00:00:00.000Z,Usage,,$0.0008 per 1K input tokens for Nova Pro,Usage-Based,2026-11-24T00:00:00.000Z,\
2026-11-23T23:00:00.000Z,,,,,,0.1,K tokens,0.05,1,0.05,"Amazon Web Services, Inc.",0.05,1,Standard,0.1,K tokens,AWS,AWS,us-east-1,US East,,,,\
AI and Machine Learning,Amazon Bedrock,S2,P2,1,a,{},{},{},InvokeModelInference,AmazonBedrock,USE1-NovaPro-input-tokens
,12.5,1,a,USD,2026-12-01T00:00:00.000Z,2026-11-01T00:00:00.000Z,Usage,,$0.01 per hour,Usage-Based,2026-11-24T00:00:00.000Z,2026-11-23T23:00:00.000Z,,,,,,\
1,Hrs,12.5,1,12.5,"Amazon Web Services, Inc.",12.5,1,Standard,1,Hrs,AWS,AWS,us-east-1,US East,i-1,,,Compute,Amazon Elastic Compute Cloud,S3,P3,1,a,{},{},{},\
RunInstances,AmazonEC2,BoxUsage:o3.large
,2.4,1,a,USD,2026-12-01T00:00:00.000Z,2026-11-01T00:00:00.000Z,Tax,,Tax for product code AmazonBedrock,Recurring,2026-12-01T00:00:00.000Z,\
2026-11-01T00:00:00.000Z,,,,,,,,2.4,,2.4,"Amazon Web Services, Inc.",2.4,,,,,AWS,AWS,,,,,,AI and Machine Learning,Amazon Bedrock,,,1,a,{},{},{},,,
"""
AZURE_FOCUS = """\
BilledCost,BillingCurrency,ChargeCategory,ChargePeriodEnd,ChargePeriodStart,ProviderName,ServiceCategory,ServiceName,ResourceName,\
x_BilledCostInUsd,x_SkuMeterCategory,x_SkuMeterSubcategory,x_SkuMeterName
1.8,EUR,Usage,2026-11-24T00:00Z,2026-11-23T00:00Z,Microsoft,AI and Machine Learning,Azure OpenAI Service,my-gpt-5-test,2,Cognitive Services,Azure OpenAI,\
gpt 4o 1120 Inp glbl Tokens
0.9,EUR,Usage,2026-11-24T00:00Z,2026-11-23T00:00Z,Microsoft,AI and Machine Learning,Azure OpenAI Service,x,1,Cognitive Services,Azure OpenAI GPT5,\
5.4 opt Gl 1M Tokens
0.9,EUR,Usage,2026-11-24T00:00Z,2026-11-23T00:00Z,Microsoft,AI and Machine Learning,Azure AI Search,x,1,Azure AI Search,,Basic Unit
"""
GOOGLE_FOCUS = "\n".join(
    json.dumps({
        "BilledCost": cost, "BillingCurrency": "USD", "ChargeCategory": "Usage", "ChargePeriodStart": f"2026-11-23 {hour}:00:00 UTC",
        "ChargePeriodEnd": f"2026-11-23 {hour}:59:59 UTC", "ProviderName": "Google Cloud", "ServiceName": "Vertex AI", "SkuId": "A-1",
        "ServiceCategory": "AI and Machine Learning", "ChargeDescription": words, "Tags": [{"key": "a", "value": "b"}],
        "x_Credits": [], "SubAccountId": None,
    })
    for cost, hour, words in [
        ("0.25", "08", "Gemini 2.5 Flash GA Text Input - Predictions"), (0.5, "09", "Gemini 2.5 Flash GA Thinking Text Output - Predictions"),
        (0.125, "09", "Gemini 2.5 Flash Lite Text Input - Predictions"),
    ]
)  # fmt: skip
EVERY = {
    "openai costs": OPENAI_COSTS,
    "openai usage": OPENAI_FULL_USAGE,
    "anthropic costs": ANTHROPIC_COSTS,
    "anthropic usage": ANTHROPIC_FULL_USAGE,
    "openrouter generations": OPENROUTER_GENERATIONS,
    "openrouter activity": OPENROUTER_ACTIVITY,
    "openrouter api": OPENROUTER_API,
    "deepseek costs": DEEPSEEK_COSTS,
    "deepseek usage": DEEPSEEK_USAGE,
    "aws": AWS_FOCUS,
    "azure": AZURE_FOCUS,
    "google": GOOGLE_FOCUS,
}


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


def test_openais_usage_has_empty_days_float_counts_and_batches_at_half_price() -> None:
    bill = bills.read(OPENAI_FULL_USAGE.encode())
    assert bill.unread == [] and bill.notes == []
    assert bill.empty == {"2026-11-22", "2026-11-24"}
    usual = Fraction(100_000 * 25 + 24_784 * 2.5 + 20_000 * 150) / 10**7
    batch = Fraction(600_000 * 25 + 400_000 * 2.5) / 10**7 / 2
    key = ("2026-11-23", "gpt-5.4")
    assert bill.usd == {key: usual + batch}
    assert bill.kinds == {key: {"batches": batch}}


def test_usage_is_never_priced_by_what_has_another_price() -> None:
    audio = f"{OPENAI_DAY},p,P,2,,,k,key,sk-..x,gpt-audio,,,10,10,0,5,0\n"
    bill = bills.read((OPENAI_HEAD + audio).encode())
    assert bill.usd == {("2026-11-23", "gpt-audio"): None}
    assert bill.unknown == {("2026-11-23", "gpt-audio"): "audio tokens"}


def test_usage_that_is_not_told_by_model_is_refused() -> None:
    bill = bills.read(
        (OPENAI_HEAD + f"{OPENAI_DAY},p,P,2,,,k,key,sk-..x,,,,10,10,0,0,0\n").encode()
    )
    assert bill.unread == [
        "line 2: column 'model': it is empty, but the line has usage: group it by model"
    ]
    with pytest.raises(RequestError, match="export the costs"):
        bills.read(b"start_time,num_model_requests,images,size\n1795392000,1,2,1024x1024\n")


def test_anthropics_usage_has_its_place_batches_and_searches() -> None:
    bill = bills.read(ANTHROPIC_FULL_USAGE.encode())
    assert bill.unread == [] and bill.notes == []
    key = ("2026-11-23", "claude-haiku-4-5")
    assert bill.usd == {
        key: (1 + Fraction(1, 2)) * Fraction(11, 10) + Fraction(1, 2) + Fraction(5, 100),
        ("2026-11-24", "claude-haiku-4-5"): None,
    }
    assert bill.kinds[key] == {"batches": Fraction(1, 2), "web searches": Fraction(1, 20)}
    assert list(bill.unknown.values()) == ["inference_geo 'mars'"]


def test_reports_of_the_vendors_apis_are_read_too() -> None:
    costs = {
        "object": "page",
        "data": [
            {"object": "bucket", "start_time": 1795392000, "end_time": 1795478400, "results": [
                {"object": "organization.costs.result", "amount": {"value": 0.06, "currency": "usd"}, "line_item": "gpt-5, input"}]},
            {"object": "bucket", "start_time": 1795478400, "end_time": 1795564800, "results": []},
        ],
        "has_more": True, "next_page": "page_2",
    }  # fmt: skip
    bill = bills.read(json.dumps(costs).encode())
    assert (bill.usd, bill.empty) == ({("2026-11-23", "gpt-5"): Fraction("0.06")}, {"2026-11-24"})
    assert bill.notes == ["it says has_more: it is one page of several"]
    report = {"data": [{"starting_at": "2026-11-23T00:00:00Z", "ending_at": "2026-11-24T00:00:00Z", "results": [
        {"currency": "USD", "amount": "123.78", "cost_type": "tokens", "token_type": "output_tokens", "model": "claude-sonnet-4-20250514"},
        {"currency": "USD", "amount": "5", "cost_type": "web_search", "token_type": None, "model": None}]}]}  # fmt: skip
    assert read(json.dumps(report)) == {
        ("2026-11-23", "claude-sonnet-4"): Fraction("1.2378"),
        ("2026-11-23", "web_search"): Fraction("0.05"),
    }  # fmt: skip - in cents
    usage = {"data": [{"starting_at": "2026-11-23T00:00:00Z", "results": [
        {"uncached_input_tokens": 1000000, "cache_creation": {"ephemeral_1h_input_tokens": 0, "ephemeral_5m_input_tokens": 0},
         "cache_read_input_tokens": 0, "output_tokens": 0, "server_tool_use": {"web_search_requests": 10}, "service_tier": "batch",
         "context_window": "0-200k", "model": "claude-haiku-4-5-20251001"}]}]}  # fmt: skip
    assert read(json.dumps(usage)) == {("2026-11-23", "claude-haiku-4-5"): Fraction("0.6")}


@pytest.mark.parametrize("text", [OPENROUTER_GENERATIONS, OPENROUTER_ACTIVITY, OPENROUTER_API])
def test_openrouters_costs_are_its_own_and_those_of_own_keys(text: str) -> None:
    bill = bills.read(text.encode())
    assert (bill.vendor, bill.unread, bill.notes) == ("openrouter", [], [])
    assert {key: usd for key, usd in bill.usd.items() if usd} == OPENROUTER_COSTS
    assert bill.kinds[("2026-11-23", "openai/gpt-4.1")] == {
        "paid with own keys (BYOK)": Fraction("0.02")
    }


def test_a_single_generation_is_a_bill() -> None:
    found = {"data": {"id": "gen-1", "created_at": "2026-11-23T21:19:33.705Z", "model": "openai/gpt-4.1", "total_cost": 0.001,
                      "upstream_inference_cost": None, "is_byok": False, "tokens_prompt": 65}}  # fmt: skip
    assert read(json.dumps(found)) == {("2026-11-23", "openai/gpt-4.1"): Fraction("0.001")}


def test_deepseeks_costs_and_usage_are_read_by_its_utc_date() -> None:
    key = ("2026-11-23", "deepseek-v4-pro")
    assert read(DEEPSEEK_COSTS) == {key: Fraction("0.0101")}
    assert read(DEEPSEEK_USAGE) == {key: Fraction("0.0028")}
    assert bills.read(DEEPSEEK_USAGE.encode()).notes == [
        "it names no currency: its prices are taken as USD"
    ]
    yuan = bills.read(DEEPSEEK_COSTS.replace("USD", "CNY").encode())
    assert yuan.usd == {}
    assert yuan.unread[0] == "line 2: column 'currency': the currency must be usd, not 'cny'"
    bad = bills.read(DEEPSEEK_USAGE.replace("output_tokens", "wishes").encode())
    assert bad.unread == ["line 4: column 'type': must be such as output_tokens, not 'wishes'"]


def test_a_clouds_bill_is_compared_by_the_models_that_its_skus_speak_of() -> None:
    aws = bills.read(AWS_FOCUS.encode())
    assert (aws.vendor, aws.unread, aws.notes) == ("aws", [], [])
    assert aws.usd == {
        ("2026-11-23", "claude-haiku-4-5"): Fraction("0.3"),
        ("2026-11-23", "nova-pro"): Fraction("0.05"),
    }
    assert aws.outside == {
        "Amazon Elastic Compute Cloud": (1, Fraction("12.5")),
        "Tax": (1, Fraction("2.4")),
    }
    azure = bills.read(AZURE_FOCUS.encode())
    assert (azure.vendor, azure.unread) == ("azure", [])
    assert azure.usd == {  # in dollars, by meters, never by the name of a deployment
        ("2026-11-23", "gpt-4o"): 2, ("2026-11-23", "gpt-5.4"): 1, ("2026-11-23", "basic-unit"): 1,
    }  # fmt: skip
    google = bills.read(GOOGLE_FOCUS.encode())
    assert ("gemini" in google.vendors, google.unread, google.notes) == (True, [], [])
    assert google.usd == {
        ("2026-11-23", "gemini-2.5-flash"): Fraction("0.75"), ("2026-11-23", "gemini-2.5-flash-lite"): Fraction("0.125"),
    }  # fmt: skip


def test_a_bill_of_several_clouds_is_of_those_with_models() -> None:
    text = (
        "BilledCost,ChargePeriodStart,ProviderName,ServiceCategory,ServiceName\n1,2026-11-23,AWS,AI and Machine Learning,Claude Haiku 4.5\n"
        "2,2026-11-23,Microsoft,Compute,Virtual Machines\n3,2026-11-23,OpenAI,AI and Machine Learning,gpt-5\n"
    )
    bill = bills.read(text.encode())
    assert bill.vendors == ("aws", "bedrock", "openai")
    assert bill.outside == {"Virtual Machines": (1, 2)}


def test_a_focus_bill_by_month_is_refused_line_by_line() -> None:
    bill = bills.read(AZURE_FOCUS.replace("2026-11-24T00:00Z", "2026-12-01T00:00Z").encode())
    assert (
        bill.unread[0]
        == "line 2: column 'ChargePeriodEnd': the line is of 8 days: export the bill by day"
    )


@pytest.mark.parametrize(
    ("texts", "model"),
    [
        (["gpt 4.1 nano cached Inp glbl Tokens"], "gpt-4.1-nano"),
        (["o4-mini 0416 Inp glbl Tokens"], "o4-mini"),
        (["GPT 5 Inpt Glbl 1M Tokens"], "gpt-5"),
        (["USE1-Claude3.5Sonnet-input-tokens"], "claude-3-5-sonnet"),
        (["USE1-Claude4.5Haiku-input-tokens"], "claude-haiku-4-5"),
        (["USE1-Llama3.3-70B-input-tokens"], "llama3-3-70b-instruct"),
        (["V4 Pro Inp glbl Tokens", "Azure Deepseek Models"], "deepseek-v4-pro"),
        (["", "Claude Opus 4 (Amazon Bedrock Edition)"], "claude-opus-4"),
        (["gpt 4o audio Inp"], ""),  # another model than gpt-4o, which the table does not have
        (["GPT 5.9 inp"], ""),
        (["gemini 3 flash preview live audio"], ""),
        (["t3.micro Linux", "Amazon Simple Storage Service", "o3"], "o3"),
        (["TimedStorage-ByteHrs", "4o"], ""),
    ],
)
def test_a_model_is_found_in_the_words_of_a_sku(texts: list[str], model: str) -> None:
    assert spoken_of(texts) == model


@pytest.mark.parametrize(
    "names",
    [
        ["Claude Haiku 4.5", "claude-haiku-4-5-20251001", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "claude-haiku-4-5@20251001"],
        ["anthropic/claude-haiku-4.5", "anthropic/claude-4.5-haiku-20251001", "anthropic/claude-haiku-4.5:thinking"],
        ["Claude Opus 4", "claude-opus-4-20250514", "claude-opus-4-0"],
        ["models/gemini-2.5-pro", "gemini-2.5-pro", "publishers/google/models/gemini-2.5-pro"],
        ["openai.gpt-oss-120b-1:0", "gpt-oss-120b"],
    ],
)  # fmt: skip
def test_all_spellings_of_a_model_are_one(names: list[str]) -> None:
    assert len({bills.model_key(name) for name in names}) == 1


@pytest.mark.parametrize(
    "name", ["ft:gpt-4o-2024-08-06:org::id", "claude-3-5-sonnet", "gpt-5-mini"]
)
def test_other_models_are_left_apart(name: str) -> None:
    assert bills.model_key(name) == name


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


# -- what spreadsheets do to a table ---------------------------------------------------------------


def written(rows: list[list[str]], delimiter: str, end: str, quoting: int) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)  # type: ignore[call-overload]
    return out.getvalue()


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "gzip"],
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_whatever_a_spreadsheet_writes_is_read_alike(
    encoding: str, delimiter: str, end: str
) -> None:
    rows = list(csv.reader(io.StringIO(OPENAI_FULL_USAGE)))
    rows[2][5] = "Caf\u00e9, \u201cÉtoile\u201d;\tx|y"
    rows[3][15] = "1,000,000"  # with separators
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        text = written(rows, delimiter, end, quoting)
        for head in ("", f"sep={delimiter}{end}"):
            data = (
                gzip.compress((head + text).encode())
                if encoding == "gzip"
                else (head + text).encode(encoding)
            )
            bill = bills.read(data)
            assert bill.unread == []
            assert bill.usd == bills.read(OPENAI_FULL_USAGE.encode()).usd
            assert bill.notes == ["it is not UTF-8: read as Windows-1252"] * (encoding == "cp1252")


@pytest.mark.parametrize(
    ("amount", "delimiter", "found"),
    [
        ("1,234.50", ",", "1234.5"), ("1,234", ",", "1234"), ("1,234,567", ";", "1234567"), ("1,234.50", ";", "1234.5"),
        ("1 234.5", ";", "1234.5"), ("1\u00a0234.5", ";", "1234.5"), ("1\u202f234.5", ",", "1234.5"), ("1'234.5", ",", "1234.5"),
        ("-$1,234.50", ",", "-1234.5"), ("1.2E-05", ",", "0.000012"), ("2.5e+1", ",", "25"), ("0.1000000000000000000001", ",", "0.1000000000000000000001"),
        ("0,5", ";", "decimal comma"), ("1.234,50", ";", "decimal comma"), ("1,234", ";", "1234 or 1.234"), ("1,23,456.0", ",", "not a number"),
        ("1,2", ",", "decimal comma"), ("(5.00)", ",", "not a number"), ("5-", ",", "not a number"), ("\u0661", ",", "not a number"),
        ("1e99", ",", "too large"), ("9" * 16, ",", "not a number"), ("0x10", ",", "not a number"), ("#REF!", ",", "not a number"),
    ],
)  # fmt: skip
def test_a_number_is_read_for_certain_or_refused(amount: str, delimiter: str, found: str) -> None:
    rows = [["date", "model", "usd"], ["2026-11-23", "gpt-5", amount]]
    bill = bills.read(written(rows, delimiter, "\r\n", csv.QUOTE_ALL).encode())
    if bill.unread:
        assert bill.unread[0].startswith("line 2: column 'usd': the amount ")
        assert found in bill.unread[0]
    else:
        assert bill.usd == {("2026-11-23", "gpt-5"): Fraction(found)}


@pytest.mark.parametrize(
    ("count", "found"),
    [
        ("1000000", True), ("1000000.0", True), ("1000000.00", True), ("1,000,000", True), ("1 000 000", True), ("1000000.000000", True),
        ("1.000.000", False), ("1.000", False), ("1e6", False), ("1.00E+06", False), ("1000000.5", False), ("-1000000", False),
        ("nan", False), ("1,000000", False), ("true", False),
    ],
)  # fmt: skip
def test_a_count_is_whole_or_refused(count: str, found: bool) -> None:
    head = "start_time,num_model_requests,model,input_tokens,output_tokens"
    bill = bills.read(f'{head}\n1795392000,1,gpt-5.4,"{count}",0\n'.encode())
    assert bill.usd == (GPT_54 if found else {})
    assert [text.split("the ")[0] for text in bill.unread] == [
        "line 2: column 'input_tokens': "
    ] * (not found)


def test_a_line_that_does_not_fit_its_header_is_refused() -> None:
    bill = bills.read(
        b'date,model,usd\n2026-11-22,gpt-5,1,234.50\n2026-11-23,"gpt\n-5",x\n2026-11-24,gpt-5,1,,\n'
    )
    assert [text.partition(":")[0] for text in bill.unread] == [
        "line 2",
        "line 3",
    ]  # where it starts
    assert "4 cells, but the header has 3" in bill.unread[0]
    assert bill.usd == {("2026-11-24", "gpt-5"): 1}
    short = bills.read(f"{OPENAI_HEAD}{OPENAI_DAY},p,P,2,,,k,key,sk-..x,gpt-5.4,,,10\n".encode())
    assert short.unread == [
        "line 2: column 'output_tokens': the count is missing: the line ends before it"
    ]


def test_cells_below_no_name_and_headers_of_joined_files_are_no_lines() -> None:
    text = ",date,model,usd,,\n0,2026-11-23,gpt-5,1,,\n,date,model,usd,,\n1,2026-11-23,gpt-5,1,234.50,\n2,2026-11-23,gpt-5,2,,\n"
    bill = bills.read(text.encode())
    assert bill.unread == [
        "line 4: it has 6 cells, but the header has 4: numbers with separators must be in quotes"
    ]
    assert bill.usd == {("2026-11-23", "gpt-5"): 3}


@pytest.mark.parametrize(
    ("written", "day"),
    [
        ("2026-11-23", "23"), ("20261123", "23"), ("2026/11/23", "23"), ("2026-11-23 0:00", "23"), ("2026/11/23 9:05:00", "23"),
        ("2026-11-23T00:00Z", "23"), ("2026-11-23 23:30:00 UTC", "23"), ("2026-11-23T23:30:00-01:00", "24"), ("1795392000", "23"),
        ("1795392000.0", "23"), ("1795392000000", "23"), ("2026-11-23T21:19:33.705Z", "23"),
        ("11/23/2026", ""), ("23.11.2026", ""), ("11-12-26", ""), ("1.79539E+09", ""), ("46349", ""), ("2026-11", ""), ("Total", ""),
        ("2026-13-01", ""), ("2026-11-23T25:00", ""), ("0001-01-01T00:00:00+14:00", ""),
    ],
)  # fmt: skip
def test_a_date_is_read_for_certain_or_refused(written: str, day: str) -> None:
    bill = bills.read(f"date,model,usd\n{written},gpt-5,1\n".encode())
    assert bill.usd == ({(f"2026-11-{day}", "gpt-5"): 1} if day else {})
    assert [text.partition(" must")[0] for text in bill.unread] == [
        "line 2: column 'date': the date"
    ] * (not day)


def test_columns_that_are_not_known_are_told() -> None:
    many = ",".join(f"more{n}" for n in range(12))
    bill = bills.read(f"date,model,usd,amount,{many}\n2026-11-23,gpt-5,1,2{',' * 12}\n".encode())
    assert bill.notes == [
        f"columns that are not used: amount, {', '.join(many.split(',')[:9])} and 3 more"
    ]
    assert bill.usd == {("2026-11-23", "gpt-5"): 1}
    with pytest.raises(RequestError, match="'usd' is there twice"):
        bills.read(b"date,model,usd,usd\n2026-11-23,gpt-5,1,2\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"PAR1\x15\x04", "Parquet"),
        (b"PK\x03\x04\x14", "Excel"),
        (b"%PDF-1.7", "PDF"),
        (gzip.compress(b"date,model,usd\n")[:-3], "cut"),
        (b"\x1f\x8bnone", "damaged"),
        (b"date,mo\0del,usd\n", "NUL"),
        (b"\xff\xfed", "UTF-16"),
        (b'{"data": [', "JSON"),
        (b"[1]", "JSON"),
        (b"[" * 100_000, "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b'{"date": "2026-11-23", "model": "x", "usage": 1}\n{"date"', "JSON"),
    ],
)
def test_what_cannot_be_a_table_says_what_it_is(data: bytes, words: str) -> None:
    with pytest.raises(RequestError) as error:
        bills.read(data)
    assert words in error.value.message
    assert error.value.param == "reconcile"


PIECES = [b"", b"\0", b"\xff", b'"', b"\n", b"\r", b",", b";", b"-", b"e9", b"1e999", b"NaN", b"[", b"}", b"\xc2\xa0", b"9" * 30,
          b"null", b"\\ud800", HOSTILE.encode()]  # fmt: skip


def damaged(whole: bytes, chance: random.Random) -> bytes:
    data = bytearray(whole)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        data[at : at + chance.choice((0, 1, 1, 8, 200))] = chance.choice(PIECES)
    return bytes(data)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", EVERY)
def test_a_damaged_bill_is_a_clear_error(name: str) -> None:
    """Whatever becomes of bytes or cells, each line is summed, or named with its column."""
    chance, whole = random.Random(f"16{name}"), EVERY[name].encode()
    before = bills.read(whole)
    assert before.unread == [] and before.usd
    for _ in range(150):
        try:
            bill = bills.read(damaged(whole, chance))
        except RequestError as error:
            assert error.message.isprintable() and len(error.message) < 1000
            continue
        for problem in bill.unread:
            assert re.match(r"(line|record) \d+: (column '|column \"|it has \d+ cells)", problem)
            assert problem.isprintable()
        rows = bills.compare(bill, [], Tolerance())
        assert all(sentence.isprintable() for sentence in bills.words(rows, bill))
        exact = sum(usd for usd in bill.usd.values() if usd)
        assert abs(sum(row.theirs or 0 for row in rows) - exact * PICO) <= len(rows)


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


@pytest.mark.parametrize("head", ["Cost (€)", "Amount \u00a5", "Cost,Billing Currency"])
def test_the_name_of_a_column_may_tell_another_currency(head: str) -> None:
    line = "2026-11-23,gpt-5,1" + ",EUR" * head.count(",")
    data = f"\ufeffDate,Model,{head}\r\n{line}\r\n".encode()
    with pytest.raises(RequestError, match="the currency must be usd, not"):
        bill = bills.read(data)
        raise RequestError(*bill.unread)


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
        [
            "in the bill and not in the ledger: 1.2 USD (web-search-tool-calls 1 on 2026-11-24, gpt-audio 0.2 on 2026-11-23)"
        ],
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


def test_what_each_side_has_alone_is_summed_up_in_words(tmp_path: Path) -> None:
    ledger = keep(
        tmp_path / "l.db",
        call("a", served="gpt-5", cost=DIME),
        call("b", served="gpt-5", cost=DIME, at=NOON + DAY),
        call("c", served="gpt-4o", cost=3 * DIME, at=NOON - DAY),
        call("d", served="gpt-4o", cost=DIME, at=NOON + DAY),
        call("e", served="o3", cost=2 * DIME),
        call("f", served="gpt-nix", cost=None, usage=Usage(5, 5)),
    )
    bill = (
        "date,model,usd\n2026-11-22,,\n2026-11-23,gpt-5,0.1\n2026-11-24,gpt-5,0.05\n2026-11-23,o3-pro,2\n2026-11-24,o3-pro,1\n"
        "2026-11-23,o3,0.3\n2026-11-23,gpt-nix,0.5\n2026-11-24,free,0\n"
    )
    result = reconcile(str(ledger), bill)
    assert (result.exit_code, result.stderr) == (1, "")
    assert result.stdout.splitlines()[-5:] == [
        "8 days and models: 1 agree, 7 differ",
        "in the bill and not in the ledger: 3 USD (o3-pro 3 on 2 days from 2026-11-23 to 2026-11-24)",
        "in the ledger and not in the bill: 0.4 USD (gpt-4o 0.4 on 2 days from 2026-11-22 to 2026-11-24)",
        "in both, but different (ledger minus bill): -0.05 USD (o3 -0.1 on 2026-11-23, gpt-5 0.05 on 2026-11-24)",
        "without a price, so not compared: gpt-nix on 2026-11-23",
    ]
    said = json.loads(reconcile(str(ledger), bill, "--json").stdout)
    assert said["words"] == result.stdout.splitlines()[-4:]
    alike = reconcile(str(ledger), "date,model,usd\n2026-11-23,gpt-5,0.1\n2026-11-23,o3,0.2\n")
    assert "in the ledger and not in the bill" not in alike.stdout
    many = "".join(f"2026-11-23,m{n},{n + 1}\n" for n in range(9))
    assert (
        "m4 5 on 2026-11-23, and 4 more models)"
        in reconcile(str(ledger), f"date,model,usd\n{many}").stdout
    )


def test_a_bill_that_agrees_says_so_in_words(ledger: str) -> None:
    bill = "date,model,usd\n2026-11-23,gpt-5,0.2\n2026-11-23,claude-haiku-4-5,0.2\n"
    assert (
        reconcile(ledger, bill).stdout.splitlines()[-1]
        == "what is in the bill is in the ledger, and the reverse"
    )


def test_a_day_that_is_empty_in_the_bill_is_compared(ledger: str) -> None:
    """The vendor says that nothing was used; the ledger has a call."""
    empty = (
        OPENAI_HEAD
        + "1795564800,1795651200,2026-11-25T00:00:00+00:00,2026-11-26T00:00:00+00:00,,,,,,,,,,,,,,,,\n"
    )
    result = reconcile(ledger, empty)
    assert (result.exit_code, result.stderr) == (1, "")
    assert rows(result)[0] == ["2026-11-25", "gpt-5", "1", "1", "DIFFERS", "only ours"]
    assert "in the ledger and not in the bill: 1 USD (gpt-5 1 on 2026-11-25)" in result.stdout
    none = reconcile(
        ledger, empty.replace("1795564800", "1795737600").replace("2026-11-25", "2026-11-27")
    )
    assert none.exit_code == 0


def test_parts_of_a_bill_are_told_apart(ledger: str) -> None:
    result = reconcile(ledger, ANTHROPIC_FULL_USAGE)
    assert "0.5 for batches, 0.05 for web searches" in result.stdout
    assert "no price for inference_geo 'mars'" in result.stdout
    assert (
        "\npart of the bill: batches, 0.5 USD\npart of the bill: web searches, 0.05 USD\n"
        in result.stdout
    )


def test_a_clouds_bill_is_compared_with_its_own_providers(tmp_path: Path) -> None:
    calls = [
        call("a", target="bedrock-us/us.amazon.nova-pro-v1:0", cost=PICO // 20),
        call(
            "b",
            target="bedrock/x",
            served="us.anthropic.claude-haiku-4-5-20251001-v1:0",
            cost=3 * DIME,
        ),
        call("c", target="openai/gpt-5", cost=DIME),
    ]
    path = str(keep(tmp_path / "l.db", *calls))
    result = reconcile(path, AWS_FOCUS)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-2:] == [
        "what is in the bill is in the ledger, and the reverse",
        "in the bill, but no usage of models: Amazon Elastic Compute Cloud 12.5 USD in 1 line, Tax 2.4 USD in 1 line",
    ]
    earlier = AWS_FOCUS.partition("\n")[2].replace("2026-11-", "2026-10-")
    both = reconcile(path, AWS_FOCUS + earlier, "--since", "2026-11-01")
    assert both.stdout == result.stdout  # costs of other days are not told, either
    azure = reconcile(path, AZURE_FOCUS)
    assert (
        azure.stderr
        == "infermux: no provider is called azure: compared with all; --provider chooses\n"
    )


def test_days_of_another_zone_are_compared_as_such(tmp_path: Path) -> None:
    """The export's 23rd starts at 16:00 UTC of the 22nd."""
    calls = [
        call(str(n), target="deepseek/deepseek-v4-pro", cost=DIME, at=NOON - DAY / 2 + hours * 3600)
        for n, hours in enumerate([-8.5, -7.5, 0, 15.9, 16.1])
    ]
    result = reconcile(str(keep(tmp_path / "l.db", *calls)), DEEPSEEK_LOCAL)
    assert rows(result)[:2] == [
        ["2026-11-23", "deepseek-v4-pro", "0.3", "0.3", "0", "ok"],
        ["2026-11-24", "deepseek-v4-pro", "0.1", "0.1", "0", "ok"],
    ]
    assert result.exit_code == 0


@pytest.mark.parametrize("month", ["03", "11"])
@pytest.mark.parametrize(
    "span", [(), ("--since", "2026-{}-01T10:00", "--until", "2026-{}-12T10:00")]
)
def test_each_day_of_a_bill_is_compared_as_a_whole_also_one_of_23_or_25_hours(
    month: str, span: tuple[str, ...], tmp_path: Path
) -> None:
    zone = ZoneInfo("America/Los_Angeles")
    first = datetime(2026, int(month), 1, tzinfo=zone).timestamp()
    starts = [first + n * 3600 + 1800 for n in range(-2, 12 * 24)]
    calls = [call(f"{n}", target="openai/gpt-5", cost=DIME, at=at) for n, at in enumerate(starts)]
    days = [datetime.fromtimestamp(at, zone).date() for at in starts]
    billed = {day: days.count(day) for day in days if 2 <= day.day <= 12 or not span}
    bill = "start_time_iso,end_time_iso,amount_value,line_item"
    for day, count in billed.items():
        bill += f"\n{datetime.combine(day, time(), zone).isoformat()},,{count / 10},gpt-5"
    given = [each.format(month) for each in span]
    result = reconcile(str(keep(tmp_path / "l.db", *calls)), bill, "--tolerance", "0", *given)
    assert result.exit_code == 0, result.stdout
    assert [row[0] for row in rows(result)[: len(billed)]] == [str(day) for day in billed]


def test_notes_and_problems_are_told_on_the_side(ledger: str) -> None:
    bad = "".join("soon,gpt-5,1,\n" for _ in range(30))
    result = reconcile(
        ledger,
        f"date,model,usd,colour\n2026-11-23,gpt-5,0.2,\n2026-11-23,claude-haiku-4-5,0.2,\n{bad}",
        "--json",
    )
    told = [line.partition("bill.csv: ")[2] for line in result.stderr.splitlines()]
    assert told[0] == "line 4: column 'date': the date must be such as 2026-11-01, not 'soon'"
    assert told[20:] == ["10 more lines could not be read", "columns that are not used: colour"]
    found = json.loads(result.stdout)
    assert (result.exit_code, len(found["unread"]), found["notes"]) == (
        1,
        30,
        ["columns that are not used: colour"],
    )


@pytest.mark.sampled(1)
@pytest.mark.parametrize("form", ["--json", "--csv", ""])
def test_the_command_tells_of_a_damaged_bill_without_a_traceback(ledger: str, form: str) -> None:
    chance, path = random.Random(f"cli{form}"), Path(ledger).with_name("bill.csv")
    lone = OPENROUTER_API.replace("anthropic/claude", "\\ud800\\u001b[2J")
    for data in [
        lone.encode(),
        *[damaged(text.encode(), chance) for text in EVERY.values() for _ in range(5)],
    ]:
        path.write_bytes(data)
        args = ["costs", "--ledger", ledger, "--reconcile", str(path), *[form] * bool(form)]
        result = CliRunner().invoke(main, args)
        assert isinstance(result.exception, SystemExit | None), data
        assert result.exit_code in (0, 1, 2)
        (result.stdout + result.stderr).encode()
        assert "\x1b" not in result.stdout + result.stderr


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


def test_a_day_without_results_is_an_empty_day(ledger: str) -> None:
    """An answer of OpenAI's API has a bucket for each day, and members that others lack."""
    used = {"input_tokens": 80_000, "output_tokens": 10_000, "num_model_requests": 2}
    result = {"object": "organization.usage.completions.result", "model": "gpt-5", **used}
    buckets = [
        {"object": "bucket", "start_time": 1795392000 + n * 86_400, "results": results}
        for n, results in enumerate([[], [result, result | {"input_audio_tokens": 0}], []], -1)
    ]
    answer = {"object": "page", "data": buckets, "has_more": False, "next_page": None}
    found = reconcile(ledger, json.dumps(answer), "--tolerance", "50%")
    assert (found.exit_code, found.stderr) == (0, "")
    assert rows(found)[0][:3] == ["2026-11-23", "gpt-5", "0.2"]


def test_columns_that_only_some_lines_need_are_known() -> None:
    report = {"starting_at": "2026-11-23T00:00:00Z", "amount": "100", "currency": "USD"}
    more = {"model": "claude-haiku-4-5", "description": "Usage", "cost_type": "tokens"}
    bill = bills.read(json.dumps({"data": [report | more]}).encode())
    assert (bill.usd, bill.notes) == ({("2026-11-23", "claude-haiku-4-5"): 1}, [])
    assert bills.read(OPENAI_HEAD.encode()).notes == []  # no line says what is used
    assert bills.read(b"date,model,usd\nsoon,gpt-5,1\n").notes == []


@pytest.mark.parametrize(
    ("text", "args", "words"),
    [
        ("\n", (), "the bill is empty"),
        ("[]", (), "the bill is empty"),
        ('{"object": "page", "data": [], "has_more": false}', (), "the bill is empty"),
        (OPENAI_HEAD, (), "none of its lines can be compared"),
        (OPENAI_COSTS, ("--month", "2025-01"), "none of its days is in that time"),
        ('date,model,usd\n2026-11-23,gpt-5,"0,012"\n', (), "has a decimal comma"),  # not 12
    ],
)
def test_nothing_to_compare_says_why(
    ledger: str, text: str, args: tuple[str, ...], words: str
) -> None:
    result = reconcile(ledger, text, *args)
    assert result.exit_code and words in result.stderr


@pytest.mark.parametrize(
    ("args", "code"), [(["--tolerance", "much"], 2), (["--provider", "x"], 1), ([], 1)]
)
def test_what_cannot_be_compared_is_one_line(ledger: str, args: list[str], code: int) -> None:
    result = CliRunner().invoke(main, ["costs", "--ledger", ledger, "--reconcile", "no.csv", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    empty = reconcile(ledger, "date,model,usd\n")
    assert (empty.exit_code, empty.stdout) == (1, "")
