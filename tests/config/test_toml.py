"""Tests of infermux.toml: each key, where the file is found, precedence, and errors."""

from __future__ import annotations

import hashlib
import re
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from infermux import build
from infermux.config import Config, Missing, NotTOML, settings
from infermux.errors import ConfigError
from infermux.pricing import Price

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "tests" / "data" / "infermux.toml"
MANUAL = re.findall(
    r"^```toml\n(.*?)^```$",
    (ROOT / "infermux" / "help" / "configuration.md").read_text(encoding="utf-8"),
    re.M | re.S,
)
SECRET = "sk-live-zebra"
HASH, OTHER = (hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
OPENAI, LOCAL = (
    "[providers.openai]\n",
    '[providers.local]\ntype = "openai"\nbase_url = "http://h/v1"\nmodels = ["a", "b"]\n',
)
FULL = """
[providers.openai]                         # key from OPENAI_API_KEY unless api_key says otherwise
timeout = { connect = 3, first_byte = 20, idle = 30, total = 120 }      # seconds

[providers.anthropic]
api_key = "file:/run/secrets/anthropic"

[providers.local]
type     = "openai"                        # the dialect; default: the preset of the table's name
base_url = "http://127.0.0.1:11434/v1"
models   = ["llama3.2"]
prices   = { "llama3.2" = { input = "0", output = "0" } }   # free is stated, never assumed

[models]                                   # the names callers use: a target, a list that fails over in order, or a table
fast  = ["openai/gpt-5-mini", "anthropic/claude-haiku-4-5"]
smart = ["anthropic/claude-sonnet-4-5", "openai/gpt-5"]
embed = "openai/text-embedding-3-small"

[models.auto]
strategy = "cheapest"                      # priority | weighted | round_robin | least_latency | cheapest
targets  = ["local/llama3.2", "fast"]      # names may name names; a cycle is an error
fallback = "smart"                         # after every target has failed

[reliability]
attempts = 3                               # upstream requests per call, over all targets
deadline = 60                              # seconds, one clock over attempts, waits and backoff
circuit_breaker = { failures = 5, window = 60, open = 30 }

[server]
streams = 0.75                             # share of the worker's threads that may stream at once
max_body = 33554432                        # bytes of a request; a MIST message never more than 10 MiB
max_inflight_body = 268435456              # bytes of all requests that a worker holds at once; more are 503
admin_key = "env:INFERMUX_ADMIN_KEY"       # opens the ops pages; without it they are closed (health stays open)

[keys.web]                                 # no [keys] at all: the host app's own auth decides
hash   = "env:WEB_KEY_SHA256"
models = ["fast", "embed"]
rpm    = 600

[keys.nightly]
hash   = "env:NIGHTLY_KEY_SHA256"
budget = { usd = "200.00", per = "month", then = "fast" }    # then: a cheaper name, "reject" or "warn"

[ledger]
path = "infermux.db"                       # SQLite, shared by every worker of the host

[trace]
tokentrace = "http://127.0.0.1:8700"
content    = false
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty current directory: no infermux.toml of the developer's own is read."""
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "given.toml") -> str:
    Path(name).write_text(text, encoding="utf-8")
    return name


def load(text: str, **environ: str) -> Config:
    """Read *text* as a file, and see that a router can be built from it."""
    found = build.settings({"OPENAI_API_KEY": SECRET, **environ}, write(text))
    build.router(found).close()
    return found


def said(text: str, **environ: str) -> str:
    """Return what is said about a wrong file: one line, never the key."""
    with pytest.raises(ConfigError) as caught:
        load(text, **environ)
    assert not isinstance(caught.value, Missing | NotTOML)
    message = caught.value.message
    assert "\n" not in message and SECRET not in message
    return message


def provider(found: Config, name: str) -> settings.ProviderConfig:
    return next(each for each in found.providers if each.name == name)


# -- all of it reads as written --------------------------------------------------------------------


def dummies(text: str) -> tuple[str, dict[str, str]]:
    """Return a file with its references led to secrets that are there: a file for each path, a hash
    for each variable.
    """
    for number, path in enumerate(re.findall(r'"file:([^"]+)"', text)):
        text = text.replace(f'"file:{path}"', f'"file:{write("sk-dummy", f"secret{number}")}"')
    return text, {
        name: hashlib.sha256(name.encode()).hexdigest() for name in re.findall(r'"env:(\w+)"', text)
    }


@pytest.fixture
def full() -> Config:
    text, environ = dummies(FULL)
    return load(text, **environ)


def test_providers_read_as_written(full):
    assert [each.name for each in full.providers] == ["openai", "anthropic", "local"]
    openai, anthropic, local = full.providers
    assert [each.type for each in full.providers] == ["openai", "anthropic", "openai"]
    assert openai.timeout == settings.Timeouts(connect=3.0, first_byte=20.0, idle=30.0, total=120.0)
    assert anthropic.timeout == local.timeout == settings.Timeouts(5.0, 600.0, 30.0, 600.0)
    assert [each.api_key and each.api_key.reveal() for each in full.providers] == [
        SECRET,
        "sk-dummy",
        None,
    ]
    assert (local.base_url, local.models) == ("http://127.0.0.1:11434/v1", ("llama3.2",))
    assert local.prices == {"llama3.2": {"input": "0", "output": "0"}}


def test_names_read_as_written(full):
    fast, smart, embed, auto = full.models
    assert (fast.name, fast.targets) == (
        "fast",
        ("openai/gpt-5-mini", "anthropic/claude-haiku-4-5"),
    )
    assert (smart.name, smart.targets) == ("smart", ("anthropic/claude-sonnet-4-5", "openai/gpt-5"))
    assert (embed.name, embed.targets) == ("embed", ("openai/text-embedding-3-small",))
    assert (auto.name, auto.targets, auto.strategy, auto.fallback) == (
        "auto",
        ("local/llama3.2", "fast"),
        "cheapest",
        ("smart",),
    )
    assert {each.strategy for each in (fast, smart, embed)} == {"priority"}


def test_the_other_sections_read_as_written(full):
    assert full.reliability == settings.Reliability(
        3, 60.0, settings.Breaker(5, 60.0, 30.0), "error"
    )
    server = full.server
    assert (
        server.streams,
        server.max_body,
        server.workers,
        server.threads,
        server.graceful_timeout,
    ) == (
        0.75,
        33554432,
        2,
        1536,
        30,
    )
    assert server.admin_key.reveal() == hashlib.sha256(b"INFERMUX_ADMIN_KEY").hexdigest()
    assert full.ledger == settings.LedgerConfig("infermux.db")
    assert full.trace == settings.Trace("http://127.0.0.1:8700", False, 2, 1000)
    assert full.path == "given.toml"


def test_keys_read_as_written(full):
    web, nightly = full.keys
    assert (web.name, web.hash) == ("web", hashlib.sha256(b"WEB_KEY_SHA256").hexdigest())
    assert (web.models, web.rpm, web.tpm, web.budget, web.tags) == (
        ("fast", "embed"),
        600,
        0,
        None,
        False,
    )
    assert (nightly.name, nightly.models, nightly.rpm) == ("nightly", (), 0)
    assert nightly.budget == settings.BudgetConfig("200.00", "month", "fast")


def test_the_router_is_what_the_file_says(full):
    router = build.router(full)
    assert [str(target) for target in router.registry.resolve("auto")] == [
        "local/llama3.2",
        "openai/gpt-5-mini",
        "anthropic/claude-haiku-4-5",
        "anthropic/claude-sonnet-4-5",
        "openai/gpt-5",
    ]
    assert router.keyring.identify("one") is None
    assert router.deadline == 60.0
    router.close()


@pytest.mark.parametrize(
    ("line", "path", "expected"),
    [
        ("[server]\nworkers = 3", "server.workers", 3),
        ("[server]\nthreads = 12", "server.threads", 12),
        ("[server]\ngraceful_timeout = 5", "server.graceful_timeout", 5),
        ("[server]\nstreams = 1", "server.streams", 1.0),
        ("[server]\nearly_headers = 2", "server.early_headers", 2.0),
        ("[server]\nearly_headers = 0", "server.early_headers", 0.0),
        ("[reliability]\nattempts = 1", "reliability.attempts", 1),
        ("[reliability]\ndeadline = 0.5", "reliability.deadline", 0.5),
        (
            "[reliability]\ncircuit_breaker = { open = 7 }",
            "reliability.circuit_breaker",
            settings.Breaker(5, 60.0, 7.0),
        ),
        (
            "[reliability.circuit_breaker]\nfailures = 2\nwindow = 1.5",
            "reliability.circuit_breaker",
            settings.Breaker(2, 1.5, 30.0),
        ),
        ('[reliability]\non_unsupported = "drop"', "reliability.on_unsupported", "drop"),
        ('[ledger]\npath = "/var/lib/x.db"', "ledger.path", "/var/lib/x.db"),
        (
            "[trace]\ncapture_content = true\nthreads = 1\nqueue = 5",
            "trace",
            settings.Trace("", True, 1, 5),
        ),
        ('[trace]\ntokentrace = ""', "trace.tokentrace", ""),
        ("", "keys", None),
        ("", "ledger", None),
        (
            "[keys]",
            "keys",
            (),
        ),  # a section without a key closes the doors; none at all leaves them open
    ],
)
def test_a_line_changes_one_thing(line, path, expected):
    found: Any = load(line)
    for name in path.split("."):
        found = getattr(found, name)
    assert (found, type(found)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ('base_url = "HTTPS://h/v1/"', "base_url", "HTTPS://h/v1"),
        ('proxy = "http://h:3128"', "proxy", "http://h:3128"),
        ("concurrency = 7", "concurrency", 7),
        (
            'unsupported = { m = ["tools", "structured output"] }',
            "unsupported",
            {"m": ("tools", "structured output")},
        ),
        ("timeout = { idle = 1.5 }", "timeout", settings.Timeouts(idle=1.5)),
        ('options = { anything = { at = ["all"] } }', "options", {"anything": {"at": ["all"]}}),
        ("models = []", "models", ()),
    ],
)
def test_a_providers_line_changes_one_thing(line, field, expected):
    assert getattr(provider(load(OPENAI + line), "openai"), field) == expected


@pytest.mark.parametrize("written", [HASH, HASH.upper(), f"sha256:{HASH}", f"SHA256:{HASH}"])
def test_a_hash_is_read_in_each_of_its_forms(written):
    assert load(f'[keys.web]\nhash = "{written}"').keys[0].hash == HASH


@pytest.mark.parametrize("usd", ['"200.00"', '"0.5"', "200", '"0"'])
def test_dollars_keep_every_digit(usd):
    found = load(f'[keys.web]\nhash = "{HASH}"\nbudget = {{ usd = {usd} }}').keys[0].budget
    assert found == settings.BudgetConfig(usd.strip('"'), "month", "reject")


# -- the example -----------------------------------------------------------------------------------


def test_the_manual_has_one_annotated_example():
    assert len(MANUAL) == 1


@pytest.mark.parametrize(
    "text",
    [EXAMPLE.read_text(encoding="utf-8"), *MANUAL],
    ids=["example", *["manual"] * len(MANUAL)],
)
def test_an_annotated_example_is_valid(text):
    text, environ = dummies(text)
    assert load(text, **environ).providers


def test_the_example_shows_every_section_and_key():
    text = EXAMPLE.read_text(encoding="utf-8")
    kinds = (
        settings.ProviderConfig,
        settings.Timeouts,
        settings.ModelConfig,
        settings.Reliability,
        settings.Breaker,
        settings.Server,
        settings.KeyConfig,
        settings.BudgetConfig,
        settings.TeamConfig,
        settings.LedgerConfig,
        settings.PricesConfig,
        settings.Trace,
    )
    known = {item.name for kind in kinds for item in fields(kind) if "reader" in item.metadata}
    assert not {
        name for name in known if not re.search(rf"^(# )?\s*{name}\s*=|[{{,] {name} =", text, re.M)
    }
    assert set(tomllib.loads(text)) == {
        "providers",
        "models",
        "keys",
        "budgets",
        "reliability",
        "server",
        "prices",
        "ledger",
        "trace",
    }


def test_the_example_states_the_defaults_that_hold():
    text, environ = dummies(EXAMPLE.read_text(encoding="utf-8"))
    found = load(text, **environ)
    assert (found.reliability, found.ledger) == (settings.Reliability(), settings.LedgerConfig())
    assert {
        item.name
        for item in fields(settings.Server)
        if getattr(found.server, item.name) != getattr(settings.Server(), item.name)
    } == {"admin_key"}


# -- a name that nobody knows ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[modles]", ["[modles]", "did you mean 'models'?"]),
        (
            "[zzz]",
            [
                "[zzz]",
                "there are providers, models, keys, budgets, reliability, server, ledger, prices, trace",
            ],
        ),
        ("attempts = 3", ["[attempts]", "reliability"]),
        (
            OPENAI + 'api_kye = "env:X"',
            ["[providers.openai]", "'api_kye'", "did you mean 'api_key'?"],
        ),
        (
            OPENAI + "timeout = { conect = 1 }",
            ["[providers.openai].timeout", "did you mean 'connect'?"],
        ),
        (OPENAI + "[models.x]\ntarget = 1", ["[models.x]", "did you mean 'targets'?"]),
        ("[reliability]\natempts = 1", ["[reliability]", "did you mean 'attempts'?"]),
        (
            "[reliability]\ncircuit_breaker = { opne = 1 }",
            ["[reliability].circuit_breaker", "did you mean 'open'?"],
        ),
        ("[server]\nworker = 1", ["[server]", "did you mean 'workers'?"]),
        (f'[keys.w]\nhsah = "{HASH}"', ["[keys.w]", "did you mean 'hash'?"]),
        (
            f'[keys.w]\nhash = "{HASH}"\nbudget = {{ used = "1" }}',
            ["[keys.w].budget", "did you mean 'usd'?"],
        ),
        ("[ledger]\npaht = 1", ["[ledger]", "did you mean 'path'?"]),
        ("[trace]\nurl = 1", ["[trace]", "did you mean 'otlp' or 'tokentrace'?"]),
        (
            OPENAI + 'prices = { m = { inptu = "0" } }',
            ["[providers.openai].prices.m", "'inptu'", "did you mean 'input'?"],
        ),
        ('[providers.x]\ntype = "opnai"', ["[providers.x]", "'opnai'", "did you mean 'openai'?"]),
        ("[providers.OpenAI]", ["'OpenAI'", "did you mean 'openai'?"]),
        ("[providers.google]", ["'google'", "did you mean 'gemini'"]),
        ("[providers.mine]\nbase_url = 'http://h/v1'", ["'mine'", 'type = "openai"']),
        ("[PROVIDERS.echo]", ["did you mean 'providers'?"]),
        ("threads = 8", ["no section [threads]", "it is a key of [server]"]),
        ("[server]\nport = 8600", ["'port'", "infermux serve --addr"]),
        ("[reliability]\nretries = 2", ["'retries'", "did you mean 'attempts'?"]),
        ("[reliability]\ntimeout = 2", ["'timeout'", "'deadline'", "[providers.NAME]"]),
        (OPENAI + "[models.x]\nretries = 2", ["'retries'", "did you mean 'attempts'?"]),
        ("[keys.w]\nkey = 'k'", ["'key'", "'hash'", "`infermux keys new NAME`"]),
        ("[ledger]\nenabled = false", ["'enabled'", 'path = ""']),
        # what it would be where its type is wrong
        ("[ledger]\nkeep = 30", ['not a whole number; write a number of days, such as "400d"']),
        (
            f'[keys.w]\nhash = "{HASH}"\nbudget = {{ usd = 20.5 }}',
            ["budget.usd must be text in quotes, not a decimal number", 'such as "200.00"'],
        ),
        ("[reliability]\nattempts = 3.0", ["a whole number, not a decimal number"]),
        (OPENAI + "key = 'env:K'", ["'key'", "did you mean 'api_key'"]),
        (OPENAI + "url = 'http://h/v1'", ["'url'", "did you mean 'base_url'"]),
        (OPENAI + "timeout = 30", ["must be a table of connect, first_byte, idle, total"]),
        (f'[keys.w]\nhash = "{HASH}"\nbudget = 200', ["must be a table of usd, per, then"]),
        (
            OPENAI + 'base_url = "http://h/v1/chat/completions"',
            ["[providers.openai].base_url must end before /chat/completions"],
        ),
        (OPENAI + f'ca = "{"x" * 5000}"', ["[providers.openai].ca: there is no file"]),
        ("[server]\nadmin_key = 'env:NO_KEY'", ["[server].admin_key: ", "NO_KEY"]),
        ("[ledger]\npath = 'no/folder/x.db'", ["[ledger].path", "no/folder/x.db"]),
        ("[ledger]\npath = '.'", ["[ledger].path"]),
        ("[providers.opnai]", ["'opnai'", "did you mean 'openai'?"]),
        (
            OPENAI + 'unsupported = { m = ["tool"] }',
            ["[providers.openai].unsupported.m", "did you mean 'tools'?"],
        ),
        *(
            (OPENAI + f"{key} = {{ 'gpt-*' = {value} }}", [f"[providers.openai].{key}", "'gpt-*'"])
            for key, value in (("unsupported", '["tools"]'), ("prices", '{ input = "1" }'))
        ),
        (
            OPENAI + '[models.x]\ntargets = "openai"\nstrategy = "wieghted"',
            ["[models.x].strategy", "did you mean 'weighted'?"],
        ),
        (
            OPENAI + '[models.x]\ntargets = "openai"\non_unsupported = "dorp"',
            ["[models.x].on_unsupported", "did you mean 'drop'?"],
        ),
        (
            f'[keys.w]\nhash = "{HASH}"\nbudget = {{ usd = "1", per = "moth" }}',
            ["[keys.w].budget.per", "did you mean 'month'?"],
        ),
        # what a name in the file leads to
        (
            LOCAL + '[models]\nfast = "a"\nsmart = ["fsat"]',
            ["[models] smart", "'fsat'", "did you mean 'fast'"],
        ),
        (LOCAL + '[models]\nfast = ["nobody/c"]', ["[models] fast", "'nobody/c'"]),
        (LOCAL + '[models.x]\ntargets = ["a"]\nfallback = "nope"', ["[models] x", "'nope'"]),
        (
            LOCAL + '[models.x]\ntargets = ["a"]\nstrategy = "weighted"\nweights = { aa = 1 }',
            ["[models.x].weights", "did you mean 'a'?"],
        ),
        (
            LOCAL + f'[models]\nfast = "a"\n[keys.w]\nhash = "{HASH}"\nmodels = ["fsat"]',
            ["[keys.w].models", "did you mean 'fast'"],
        ),
        (
            LOCAL
            + f'[models]\nfast = "a"\n[keys.w]\nhash = "{HASH}"\nbudget = {{ usd = "1", then = "fsat" }}',
            ["[keys.w].budget.then", "did you mean 'fast'"],
        ),
        pytest.param(
            OPENAI + '[models]\nfast = ["opnai/gpt-5"]',
            ["[models] fast", "'opnai/gpt-5'", "did you mean 'openai"],
        ),
    ],
)
def test_an_unknown_name_is_named_with_its_place_and_what_was_meant(text, words):
    message = said(text)
    assert all(word in message for word in words), message


NAME = LOCAL + '[models.x]\ntargets = "a"\n'
KEY = f'[keys.w]\nhash = "{HASH}"\n'


@pytest.mark.parametrize(
    ("text", "told"),
    [
        # other programs' words for ours
        (LOCAL + 'api_base = "h"', "[providers.local] has no 'api_base'; did you mean 'base_url'?"),
        (LOCAL + "rpm_limit = 5", "[providers.local] has no 'rpm_limit'; did you mean 'rpm'?"),
        (
            LOCAL + "max_retries = 5",
            "[providers.local] has no 'max_retries'; "
            "'attempts' is a key of [reliability] and [models.NAME]",
        ),
        (LOCAL + "ssl_verify = false", "[providers.local] has no 'ssl_verify'; did you mean 'ca'?"),
        (NAME + "drop-params = 1", "[models.x] has no 'drop-params'; did you mean 'on_unsupported'?"),
        (LOCAL + '[models.x]\nmodel = "a"', "[models.x] has no 'model'; did you mean 'targets'?"),
        (NAME + "fallbacks = ['b']", "[models.x] has no 'fallbacks'; did you mean 'fallback'?"),
        (
            NAME + 'strategy = "latency-based-routing"',
            "[models.x].strategy must be 'priority' or 'weighted' or 'round_robin' or 'least_latency' "
            "or 'cheapest' or 'sticky', not 'latency-based-routing'; did you mean 'least_latency'?",
        ),
        (
            "[reliability.circuit_breaker]\nconsecutive_5xx = 5",
            "[reliability].circuit_breaker has no 'consecutive_5xx'; did you mean 'failures'?",
        ),
        (
            '[server]\nclient_max_body_size = "1m"',
            "[server] has no 'client_max_body_size'; did you mean 'max_body'?",
        ),
        (
            f"{KEY}budget = {{ max_budget = 5 }}",
            "[keys.w].budget has no 'max_budget'; did you mean 'usd'?",
        ),
        ('[[model_list]]\nname = "x"', "there is no section [model_list]; did you mean 'models'?"),
        ("[providers.grok]", "[providers.grok]: there is no type 'grok'; did you mean 'xai'?"),
        (
            '[providers."azure-openai"]',
            "[providers.azure-openai]: there is no type 'azure-openai'; did you mean 'azure'?",
        ),
        # a key in the wrong table
        ("[server]\nqueue = 5", "[server] has no 'queue'; it is a key of [trace]"),
        (
            '[models]\nstrategy = "cheapest"',
            "[models] strategy: no provider for model 'cheapest'; "
            "settings of a name go into [models.NAME]",
        ),
        (
            "[providers]\nenviroment = true",
            "[providers.enviroment] must be a table, not true or false; did you mean 'environment'?",
        ),
        # a name that is not read is not missed where it is used
        (f'[provider.local]{LOCAL[17:]}[models]\nx = "local/a"', "there is no section [provider]; did you mean 'providers'?"),
        (
            '[[keys]]\nname = "w"\n[budgets.b]\nusd = "5"\nkeys = ["w"]',
            "[keys] must be a table, not a list; write [keys.NAME]",
        ),
        (
            f'providers = "openai"\n[models]\nx = "openai"\n{KEY}models = ["openai/y"]',
            "[providers] must be a table, not text in quotes; write [providers.NAME]",
        ),
        *(  # nor if another table with its name is read
            (
                LOCAL + f'rpm = -1\n[models]\nx = "local/a"\n{more}',
                "[providers.local].rpm must be a whole number above 0, not -1",
            )
            for more in ('local = "local/a"', f'[keys.local]\nhash = "{HASH}"')
        ),
        # a name with a dot
        (LOCAL + '[models]\ngpt-4.1 = "a"', '[models.gpt-4]: a name with a dot needs quotes: "gpt-4.1"'),
        (
            LOCAL + '[models.gpt-4.1]\ntargets = "a"',
            '[models.gpt-4]: a name with a dot needs quotes: "gpt-4.1"',
        ),
        (
            LOCAL + '[models.my.fast]\ntargets = "a"',
            '[models.my]: a name with a dot needs quotes: "my.fast"',
        ),
        (f'[keys.my.app]\nhash = "{HASH}"', '[keys.my]: a name with a dot needs quotes: "my.app"'),
        (
            LOCAL.replace("local", "llama.local"),
            '[providers.llama]: a name with a dot needs quotes: "llama.local"',
        ),
        (
            LOCAL + "[providers.local.timeuot]\nconnect = 1",
            "[providers.local] has no 'timeuot'; did you mean 'timeout'?",
        ),
        (
            LOCAL + 'unsupported = { gpt-4.1 = ["tools"] }',
            "[providers.local].unsupported.gpt-4 must be a list, not a table; a name with a dot needs quotes",
        ),
        (
            LOCAL + 'prices = { gpt-4.1 = { input = "1" } }',
            "[providers.local].prices.gpt-4 has an unknown key '1'; a name with a dot needs quotes",
        ),
        # what would be right
        (
            LOCAL + 'prices = { a = { prompt = "1" } }',
            "[providers.local].prices.a has an unknown key 'prompt'; "
            'write { input = "0.5", output = "2" }, in USD per million tokens',
        ),
        (NAME + "cache = true", "[models.x].cache must be '' or 'auto', not True"),
        (NAME + 'timeout = "30s"', "[models.x].timeout must be a number of seconds, not text in quotes"),
        ('[server]\nmax_body = "1m"', "[server].max_body must be a whole number of bytes, not text in quotes"),
        ("[server]\nworkers = 0", "[server].workers must be a whole number above 0, not 0"),
        (LOCAL + "[models]\nx = 5", "[models] x must be a list of targets, or one in quotes, not a whole number"),
        (KEY + "models = []", "[keys.w].models names no model: leave it out to admit all of them"),
        (LOCAL + "endpoints = []", '[providers.local].endpoints names no endpoint: write ["none"]'),
        *(
            (
                f'[ledger]\npath = "{path}"',
                "[ledger].path must be the path of a file (a PostgreSQL has a url; "
                f"a variable is INFERMUX_LEDGER__PATH), not '{path}'",
            )
            for path in ("env:LEDGER", "postgresql://h/d")
        ),
        *(
            (
                f'{LOCAL}headers = {{ X-Team = "{word}" }}',
                '[providers.local].headers.X-Team must be a reference, "env:NAME" or "file:PATH", '
                'never the secret itself; did you mean "env:TEAM"?',
            )
            for word in ("${TEAM}", "env: TEAM", "ENV:TEAM")
        ),
        (
            LOCAL + 'api_key = "file:nope"',
            "[providers.local].api_key: the file nope cannot be read: No such file or directory",
        ),
    ],
)  # fmt: skip
def test_one_mistake_is_one_error_that_says_what_would_be_right(text, told):
    with pytest.raises(ConfigError) as caught:
        build.router(build.settings({}, write(text), strict=False)).close()
    assert caught.value.errors == (f"given.toml: {told}",)


@pytest.mark.parametrize(
    "text",
    [
        "[modles]",
        "[server]\nworkers = 0",
        "[server]\nadmin_key = 'x'",
        "[providers.openai]\nbase_url = 'x'",
        "[models]\na = 'a'",
        "[models]\na = 'nope'",
        f"[keys.a]\nhash = '{HASH}'\n[keys.b]\nhash = '{HASH}'",
        # what is seen only when the router is built
        "[providers.x]\ntype = 'opnai'",
        "[providers.openai]\nprices = 5",
        "[providers.openai]\nprices = { m = {} }",
        "[providers.azure]\napi_key = 'env:OPENAI_API_KEY'",
    ],
)
def test_every_error_names_the_file(text):
    assert said(text).startswith("given.toml: ")


# -- a value of the wrong kind ---------------------------------------------------------------------

HASHED = f"[keys.w]\nhash = '{HASH}'\n"
FORMS = {  # where each field stands; VALUE is put into it
    f"{OPENAI}NAME = VALUE": (
        "type",
        "base_url",
        "models",
        "timeout",
        "proxy",
        "ca",
        "unsupported",
        "concurrency",
        "options",
        "prices",
    ),
    f"{OPENAI}timeout = {{ NAME = VALUE }}": ("connect", "first_byte", "idle", "total"),
    f"{OPENAI}[models.x]\nNAME = VALUE": ("targets",),
    f"{OPENAI}[models.x]\ntargets = 'openai'\nNAME = VALUE": (
        "strategy",
        "fallback",
        "weights",
        "on_unsupported",
    ),
    "[keys.w]\nNAME = VALUE": ("hash",),
    f"{HASHED}NAME = VALUE": ("models", "rpm", "tpm", "budget", "tags"),
    f"{HASHED}budget = {{ NAME = VALUE }}": ("usd",),
    f"{HASHED}budget = {{ usd = 1, NAME = VALUE }}": ("per", "then"),
    "[reliability]\nNAME = VALUE": ("attempts", "deadline", "circuit_breaker", "on_unsupported"),
    "[reliability.circuit_breaker]\nNAME = VALUE": ("failures", "window", "open"),
    "[server]\nNAME = VALUE": (
        "workers",
        "threads",
        "streams",
        "graceful_timeout",
        "max_body",
        "early_headers",
        "admin_key",
    ),
    "[ledger]\nNAME = VALUE": ("path",),
    "[trace]\nNAME = VALUE": ("tokentrace", "capture_content", "threads", "queue"),
}
WHOLE = (
    "attempts",
    "workers",
    "threads",
    "graceful_timeout",
    "max_body",
    "queue",
    "failures",
    "rpm",
    "tpm",
    "concurrency",
)
NUMBER = (
    "deadline",
    "streams",
    "early_headers",
    "window",
    "open",
    "connect",
    "first_byte",
    "idle",
    "total",
)
WORD = (
    "type",
    "base_url",
    "proxy",
    "ca",
    "strategy",
    "on_unsupported",
    "hash",
    "per",
    "path",
    "tokentrace",
    "admin_key",
)
TABLE = ("timeout", "unsupported", "options", "prices", "weights", "budget", "circuit_breaker")
FLAG = ("capture_content", "tags")
LISTS = ("models", "targets")
MONEY = (
    "1.5",
    "true",
    "'x'",
    "'1,5'",
    "'-1'",
    "' 1'",
    "'1e3'",
    "'nan'",
    "''",
    "'٣'",
    "-1",
    "[1]",
    f"'{'9' * 20}'",
)
WRONG = {
    **dict.fromkeys(
        WHOLE,
        ("'5'", "1.5", "true", "[1]", "{ a = 1 }", "0", "-1", "nan", "inf", "1979-05-27", "9" * 30),
    ),
    **dict.fromkeys(
        NUMBER,
        ("'5'", "true", "[1.0]", "{ a = 1 }", "0", "-0.5", "nan", "inf", "07:32:00", "9" * 30),
    ),
    **dict.fromkeys(
        WORD,
        ("5", "true", "[1]", "{ a = 1 }", "1.5", '"\\u0000"', '"a\\u0007b"', "2020-01-01", "' '"),
    ),
    **dict.fromkeys(TABLE, ("5", "'x'", "true", "[]", "[{}]")),
    **dict.fromkeys(FLAG, ("1", "0", "'true'", "'yes'", "[]", "{}")),
    **dict.fromkeys(
        LISTS, ("5", "true", "[1]", "[['a']]", "['']", "['a', 'a']", "[{ a = 1 }]", '["a\\nb"]')
    ),
}
WRONG["early_headers"] = [value for value in WRONG["early_headers"] if value != "0"]  # never
WRONG["usd"] = MONEY
WRONG |= dict.fromkeys(("then", "fallback"), ("5", "true", "1.5", "[1]", "{ a = 1 }", "' '"))


def wrong_values() -> list[Any]:
    return [
        pytest.param(
            form.replace("NAME", name).replace("VALUE", value),
            name,
            id=f"{form.split(']')[0]}].{name} {value[:12]}",
        )
        for form, names in FORMS.items()
        for name in names
        for value in WRONG[name]
    ]


@pytest.mark.parametrize(("text", "name"), wrong_values())
def test_a_value_of_the_wrong_kind_names_its_place(text, name):
    message = said(text)
    assert re.search(rf"[\].]{name}\b", message), message


@pytest.mark.parametrize(
    "section", ["providers", "models", "keys", "reliability", "server", "ledger", "trace"]
)
@pytest.mark.parametrize("value", ["5", "'x'", "[]", "[{}]", "true"])
def test_a_section_must_be_a_table(section, value):
    assert f"[{section}] must be a table" in said(f"{section} = {value}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (OPENAI + "[models]\nx = 5", ["[models] x", "list"]),
        (OPENAI + "[models]\nx = []", ["[models] x", "no target"]),
        (OPENAI + "[models]\nx = ['openai', 'openai']", ["[models] x", "'openai' twice"]),
        (OPENAI + "[models.x]\nfallback = 'openai'", ["[models.x]", "'targets'"]),
        (
            OPENAI + "[models.x]\ntargets = ['openai']\nfallback = ['openai', 'openai']",
            ["[models.x].fallback", "'openai' twice"],
        ),
        (
            OPENAI + "[models.x]\ntargets = ['openai']\nweights = { openai = 2 }",
            ["[models.x].weights", 'strategy = "weighted"'],
        ),
        ("[keys.w]\nrpm = 5", ["[keys.w]", "needs 'hash'"]),
        (
            f"[keys.w]\nhash = '{HASH}'\nbudget = {{ per = 'day' }}",
            ["[keys.w].budget", "needs 'usd'"],
        ),
        (f"[keys.w]\nhash = '{HASH}'\nmodels = ['a', 'a']", ["[keys.w].models", "'a' twice"]),
        ("[server]\nstreams = 1.01", ["[server].streams", "at most 1"]),
        ("[server]\nearly_headers = -1", ["[server].early_headers", "more than 0"]),
        ("[server]\nearly_headers = false", ["[server].early_headers", "a number"]),
        ("[reliability]\ndeadline = 86401", ["[reliability].deadline", "86400"]),
    ],
)
def test_what_is_missing_doubled_or_out_of_range_is_named(text, words):
    message = said(text)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "weight", ["0", "-1", "-0.5", "nan", "inf", "9" * 400, "'2'", "true", "[1]"]
)
def test_a_weight_is_a_number_above_0(weight):
    message = said(
        f"{LOCAL}[models.x]\ntargets = ['a', 'b']\nstrategy = 'weighted'\nweights = {{ a = {weight} }}"
    )
    assert "[models.x].weights.a" in message


@pytest.mark.parametrize("name", ["", "a\\u0007b", "a/b", "a\\nb"])
def test_a_providers_name_can_stand_in_a_target(name):
    assert "[providers" in said(f'[providers."{name}"]\ntype = "openai"\nbase_url = "http://h"')


@pytest.mark.parametrize("section", ["models", "keys"])
@pytest.mark.parametrize("name", ["", "a\\u0007b", "a\\nb", "\\u202e"])
def test_a_name_that_nobody_can_write_is_refused(section, name):
    value = '"a"' if section == "models" else f'{{ hash = "{HASH}" }}'
    assert f"[{section}" in said(f'{LOCAL}[{section}]\n"{name}" = {value}')


@pytest.mark.parametrize(
    "number", ["1" + "0" * 400, "1" + "0" * 5000], ids=["400 digits", "5000 digits"]
)
def test_a_number_beyond_all_measure_is_an_error_like_others(number):
    with pytest.raises(ConfigError, match=r"given\.toml"):
        load(f"[reliability]\ndeadline = {number}")


# -- names that lead back to themselves ------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "way"),
    [
        ('a1 = "a1"', "a1 -> a1"),
        ('a1 = ["a", "a1"]', "a1 -> a1"),
        ('a1 = "b1"\nb1 = "a1"', "a1 -> b1 -> a1"),
        ('a1 = "b1"\nb1 = ["a", "c1"]\nc1 = "a1"', "a1 -> b1 -> c1 -> a1"),
        ('x = "b1"\nb1 = "c1"\nc1 = "b1"', "b1 -> c1 -> b1"),
        ('a1 = { targets = ["a"], fallback = "a1" }', "a1 -> a1"),
        ('a1 = { targets = ["a"], fallback = ["b", "b1"] }\nb1 = "a1"', "a1 -> b1 -> a1"),
    ],
)
def test_a_cycle_is_shown_whole(models, way):
    message = said(f"{LOCAL}[models]\n{models}")
    assert way in message and "[models]" in message


def test_names_may_share_what_they_lead_to():
    found = load(
        f'{LOCAL}[models]\ntop = ["left", "right"]\nleft = "end"\nright = ["end", "b"]\nend = "a"'
    )
    assert [str(target) for target in build.router(found).registry.resolve("top")] == [
        "local/a",
        "local/b",
    ]


def test_names_over_names_over_names_are_read():
    levels = "".join(
        f'l{n} = ["l{n + 1}", "r{n + 1}"]\nr{n} = ["r{n + 1}", "l{n + 1}"]\n' for n in range(6)
    )
    found = load(f'{LOCAL}[models]\n{levels}l6 = "a"\nr6 = "b"')
    assert [str(target) for target in build.router(found).registry.resolve("r0")] == [
        "local/b",
        "local/a",
    ]


# -- secrets ---------------------------------------------------------------------------------------

PLACES = {
    "[providers.openai].api_key": OPENAI + "api_key = {}",
    "[server].admin_key": "[server]\nadmin_key = {}",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "value",
    [
        SECRET,
        f"${{{SECRET}}}",
        f"$ENV:{SECRET}",
        "env:",
        "file:",
        f"ENV:{SECRET}",
        f" env:{SECRET}",
    ],
)
def test_a_literal_secret_is_refused_without_showing_it(place, value):
    for quoted in (f"'{value}'", f"['{value}']", f"{{ value = '{value}' }}"):
        message = said(PLACES[place].format(quoted))
        assert place in message and '"env:NAME" or "file:PATH"' in message


@pytest.mark.parametrize(
    "text",
    [
        f"[providers]\nopenai = '{SECRET}'",
        f"[keys]\nweb = '{SECRET}'",
        f"[keys.web]\nhash = ['{SECRET}']",
        f"[server]\nadmin_key = {{ x = '{SECRET}' }}",
        f"[keys.w]\nhash = '{SECRET}'",
        f"{OPENAI}base_url = '{SECRET}'",
        f"{OPENAI}base_url = 'http://u:{SECRET}@h'",
        f"{OPENAI}proxy = 'http://u:{SECRET}@h'",
        f"[trace]\ntokentrace = 'http://{SECRET}@h'",
        f"{OPENAI}apikey = '{SECRET}'",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(text):
    said(text)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", ["$MY_KEY_2", "${MY_KEY_2}", "os.environ/MY_KEY_2"])
def test_a_variable_in_anothers_notation_is_told_in_ours(place, value):
    message = said(PLACES[place].format(f"'{value}'"), MY_KEY_2=SECRET)
    assert place in message and 'did you mean "env:MY_KEY_2"?' in message


@pytest.mark.parametrize(
    ("value", "told"),
    [
        # an env file of docker has them, and what a cloud's tool prints as JSON
        (f'"{SECRET}"', "has quotes around it: remove them"),
        (f"'{SECRET}'\n", "has quotes around it: remove them"),
        ("file:/run/secrets/key", "is a reference, and must be the secret itself"),
        ("env:OTHER", "is a reference, and must be the secret itself"),
    ],
)
def test_a_secret_in_quotes_or_behind_a_reference_is_refused_with_its_place(value, told):
    Path("secret").write_text(value)
    reference = OPENAI + "api_key = '{}'"
    for place, text, environ in (
        ("OPENAI_API_KEY", "", {"OPENAI_API_KEY": value}),
        ("INFERMUX_ADMIN_KEY", "", {"INFERMUX_ADMIN_KEY": value}),
        ("[providers.openai].api_key", reference.format("env:K"), {"K": value}),
        ("[providers.openai].api_key", reference.format("file:secret"), {}),
    ):
        assert f"{place}: the value {told}" in said(text, **environ)


def test_a_variable_of_a_key_that_is_a_secret_may_be_a_reference():
    Path("secret").write_text("from-a-file\n")
    for value in ("env:OTHER", "file:secret"):
        variables = {"INFERMUX_SERVER__ADMIN_KEY": value, "OTHER": "from-a-file"}
        key = build.settings(variables).server.admin_key
        assert key is not None and key.reveal() == "from-a-file"
    told = said("", INFERMUX_SERVER__ADMIN_KEY="env:NO_KEY")
    assert "INFERMUX_SERVER__ADMIN_KEY: the variable NO_KEY is not set" in told


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("environ", [{}, {"NAME": ""}, {"NAME": " \t\n"}])
def test_a_variable_that_is_not_set_stops_the_start(place, environ):
    message = said(PLACES[place].format("'env:NAME'"), **environ)
    assert place.replace("[", "").replace("]", "") in message.replace("[", "").replace("]", "")
    assert "NAME is not set" in message


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "content", [None, b"", b" \n", b"\xff\xfe", b"sk\nsecond line", b"sk\x00"], ids=str
)
def test_a_file_without_a_secret_stops_the_start(place, content):
    if content is not None:
        Path("secret").write_bytes(content)
    message = said(PLACES[place].format("'file:secret'"))
    assert place.split(".")[-1] in message and "secret" in message


@pytest.mark.parametrize("path", ["no/folder/x.db", "."])
def test_the_check_before_a_reload_says_the_same_of_a_ledger(path):
    text = f'[ledger]\npath = "{path}"'
    assert said(text) == f"given.toml: [ledger].path: no file can be made at {path}"
    with pytest.raises(ConfigError, match=rf"^\[ledger\].path: no file can be made at {path}$"):
        build.check(build.settings({}, write(text)))


@pytest.mark.parametrize("place", ["providers.echo]", f"keys.a]\nhash = '{'0' * 64}'"])
def test_limits_that_cannot_be_counted_stop_the_start(place):
    Path("l.rates").mkdir()
    text = f"[ledger]\npath = 'l.db'\n[{place}\nrpm = 5"
    with pytest.raises(ConfigError, match=r"file l\.rates cannot be used"):
        build.check(build.settings({}, write(text)))


def test_a_directory_is_no_secret():
    Path("secret").mkdir()
    assert "secret" in said("[server]\nadmin_key = 'file:secret'")


def test_the_end_of_line_of_a_secret_file_is_not_part_of_it():
    Path("secret").write_text("sk-file\n")
    assert (
        provider(load(OPENAI + "api_key = 'file:secret'"), "openai").api_key.reveal() == "sk-file"
    )


def test_a_config_never_shows_a_secret():
    text = (
        OPENAI
        + f"options = {{ api_key = 'env:THIRD' }}\n[server]\nadmin_key = 'env:SECOND'\n[keys.w]\nhash = '{HASH}'"
    )
    found = load(text, SECOND=SECRET, THIRD=SECRET)
    assert found.server.admin_key.reveal() == provider(found, "openai").api_key.reveal() == SECRET
    for shown in (
        repr(found),
        str(found),
        f"{found}",
        repr(found.providers),
        str(found.server),
        repr(vars(build.router(found))),
    ):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        HASH[:-1],
        HASH + "0",
        "g" * 64,
        "sha512:" + HASH,
        f" {HASH}",
        "sha256:",
        "imx-" + "a" * 60,
    ],
)
def test_a_hash_is_a_sha256(value):
    for text, environ in ((value, {}), ("env:WEB_HASH", {"WEB_HASH": value})):
        if text == value or value.strip() != HASH:
            message = said(f"[keys.w]\nhash = '{text}'", **environ)
            assert (
                "[keys.w].hash" in message
                and "infermux keys new" in message
                and value not in message
            )


def test_two_callers_cannot_have_one_key():
    message = said(
        f"[keys.web]\nhash = '{HASH}'\n[keys.app]\nhash = 'env:H'\n[keys.other]\nhash = '{OTHER}'",
        H=f"sha256:{HASH.upper()}",
    )
    assert "[keys.app]" in message and "[keys.web]" in message and HASH not in message


def test_the_hash_of_nothing_is_no_key():
    """As `printf "$UNSET" | sha256sum` makes it: whoever brings no key at all would be let in."""
    assert "[keys.w].hash" in said(f"[keys.w]\nhash = '{hashlib.sha256(b'').hexdigest()}'")


# -- addresses, prices, files ----------------------------------------------------------------------


@pytest.mark.parametrize("field", ["base_url", "proxy", "tokentrace"])
@pytest.mark.parametrize(
    ("value", "remedy"),
    [
        ("ftp://h", "http:// or https://"),
        ("file:///x", "http:// or https://"),
        ("h:80/v1", "http:// or https://"),
        ("//h", "http:// or https://"),
        ("http://", "http:// or https://"),
        ("http://h h/", "http:// or https://"),
        ("http://u:p@h", "credentials"),
        ("http://u@h", "credentials"),
        ("https://:p@h", "credentials"),
        ("https://@h", "credentials"),
        ("http://h:port", "not a URL"),
        ("http://h:99999", "not a URL"),
        ("http://h:-1", "not a URL"),
        ("http://[::1", "not a URL"),
        pytest.param("http://h:0", ""),
    ],
)
def test_an_address_is_http_without_credentials(field, value, remedy):
    message = said(
        f"{'[trace]' if field == 'tokentrace' else '[providers.openai]'}\n{field} = '{value}'"
    )
    assert f"].{field} " in message and remedy in message and "u:p" not in message
    assert ("set api_key" in message) is (field == "base_url" and remedy == "credentials")


@pytest.mark.parametrize(
    "price",
    [
        "'x'",
        "''",
        "'1,5'",
        "'-1'",
        "'nan'",
        "'inf'",
        "nan",
        "inf",
        "-0.1",
        "true",
        "[1]",
        "{ a = 1 }",
        "' '",
    ],
)
@pytest.mark.parametrize("kind", ["input", "output"])
def test_a_price_is_a_decimal(kind, price):
    other = "output" if kind == "input" else "input"
    message = said(f"{LOCAL}prices = {{ a = {{ {kind} = {price}, {other} = '0' }} }}")
    assert f"[providers.local].prices.a.{kind}" in message


@pytest.mark.parametrize("entry", ["5", "'0'", "[]", "{}", "{ output = '1' }"])
def test_a_price_is_a_table_with_what_is_needed(entry):
    assert "[providers.local].prices.a" in said(f"{LOCAL}prices = {{ a = {entry} }}")


def test_a_certificate_bundle_that_is_not_there_stops_the_start():
    assert "[providers.openai].ca" in said(OPENAI + "ca = '/nowhere/bundle.pem'")


@pytest.mark.parametrize(
    "data",
    [
        b"[server",
        b"a = ",
        b"a = 1\na = 2",
        b"[a]\n[a]",
        b"\xff\xfe[\0s",
        b"x = [" + b"[" * 5000,
        b"= 1",
    ],
)
def test_what_is_not_toml_is_told_apart(data):
    Path("given.toml").write_bytes(data)
    with pytest.raises(NotTOML, match=r"given\.toml"):
        build.settings({}, "given.toml")


@pytest.mark.parametrize("name", ["missing.toml", "folder", "missing/infermux.toml"])
def test_a_file_that_is_not_there_is_told_apart(name):
    Path("folder").mkdir()
    for environ, path in (({}, name), ({"INFERMUX_CONFIG": name}, None)):
        with pytest.raises(Missing, match=re.escape(name)):
            build.settings(environ, path)


# -- whose key, models and prices ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["openai", "gemini", "azure"])
def test_a_vendor_without_its_key_stops_the_start(name):
    message = said(f"[providers.{name}]", OPENAI_API_KEY="")
    assert (
        f"[providers.{name}]" in message
        and f"set {'AZURE_OPENAI' if name == 'azure' else name.upper()}_API_KEY" in message
    )


def test_a_second_account_needs_its_own_key():
    """It goes to the vendor itself, where nothing is answered without a key."""
    assert "[providers.work]" in said('[providers.work]\ntype = "openai"')
    found = load('[providers.work]\ntype = "openai"\napi_key = "env:WORK"', WORK="sk-work")
    assert provider(found, "work").api_key.reveal() == "sk-work"


def test_a_vendors_name_on_another_type_does_not_take_its_key():
    text = '[providers.gemini]\ntype = "openai"\nbase_url = "http://elsewhere/v1"'
    assert provider(load(text, GEMINI_API_KEY="g"), "gemini").api_key is None


@pytest.mark.parametrize("name", ["ollama", "vllm"])
def test_a_local_server_needs_no_key(name):
    assert provider(load(f"[providers.{name}]"), name).api_key is None


def test_the_vendors_own_name_takes_its_key_to_another_address():
    found = provider(load(OPENAI + 'base_url = "http://proxy/v1"'), "openai")
    assert (found.base_url, found.api_key.reveal()) == ("http://proxy/v1", SECRET)


def test_the_address_beside_the_key_counts_unless_the_file_has_one():
    environ = {"OPENAI_BASE_URL": "http://environment/v1"}
    assert provider(load(OPENAI, **environ), "openai").base_url == "http://environment/v1"
    assert (
        provider(load(OPENAI + 'base_url = "http://file/v1"', **environ), "openai").base_url
        == "http://file/v1"
    )


@pytest.mark.parametrize(
    ("name", "variable", "address"),
    [("openai", "OPENAI_BASE_URL", "http://h/v1"), ("azure", "AZURE_OPENAI_ENDPOINT", "https://h")],
)
def test_the_address_of_the_environment_counts_with_a_key_of_the_file_too(name, variable, address):
    found = load(f'[providers.{name}]\napi_key = "env:MINE"', **{"MINE": "k", variable: address})
    assert provider(found, name).base_url == address


def test_a_borrowed_type_brings_the_format_and_nothing_else():
    router = build.router(load('[providers.mine]\ntype = "openai"\nbase_url = "http://h/v1"'))
    mine = router.registry.get("mine")
    assert mine.models == () and not mine.serves("gpt-5")
    assert mine.vendor == "mine"
    router.close()


def test_a_borrowed_type_never_sends_the_vendors_key(vendor):
    from infermux import InferRequest

    text = f'{OPENAI}[providers.mine]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["gpt-5"]'
    router = build.router(load(text))
    answer = router.infer(InferRequest("mine/gpt-5", [{"role": "user", "content": "hello"}]))
    assert (
        answer.provider == "mine" and answer.cost_usd is None
    )  # the vendor's price is not this server's
    assert SECRET not in str(vendor.seen[0].headers) and "authorization" not in {
        name.lower() for name in vendor.seen[0].headers
    }
    router.close()


def test_a_price_of_the_file_is_what_is_billed(vendor):
    from infermux import InferRequest

    price = 'prices = { m = { input = "1000000", output = "0" } }'
    text = (
        f'[providers.mine]\ntype = "openai"\nbase_url = "{vendor.url}/v1"\nmodels = ["m"]\n{price}'
    )
    router = build.router(load(text))
    answer = router.infer(InferRequest("m", [{"role": "user", "content": "hello"}]))
    assert answer.cost_usd == float(answer.tokens_in) > 0
    assert Price.of({"input": "1000000", "output": "0"}).rates.input == 1000000
    router.close()


# -- the environment over the file -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        (
            "RELIABILITY__CIRCUIT_BREAKER__OPEN",
            "1.5",
            "reliability.circuit_breaker",
            settings.Breaker(7, 60.0, 1.5),
        ),
        (
            "RELIABILITY__CIRCUIT_BREAKER__FAILURES",
            "2",
            "reliability.circuit_breaker",
            settings.Breaker(2, 60.0, 30.0),
        ),
        ("RELIABILITY__DEADLINE", "30", "reliability.deadline", 30.0),
        ("RELIABILITY__ON_UNSUPPORTED", "drop", "reliability.on_unsupported", "drop"),
        ("SERVER__STREAMS", "0.5", "server.streams", 0.5),
        ("SERVER__GRACEFUL_TIMEOUT", "3", "server.graceful_timeout", 3),
        ("TRACE__CAPTURE_CONTENT", "TRUE", "trace.capture_content", True),
        ("TRACE__CAPTURE_CONTENT", "false", "trace.capture_content", False),
        ("LEDGER__PATH", "/x.db", "ledger.path", "/x.db"),
    ],
)
def test_a_scalar_of_the_environment_wins(variable, value, path, expected):
    text = "[reliability]\ndeadline = 10\ncircuit_breaker = { failures = 7 }\n[server]\nstreams = 0.1\n[trace]\ncapture_content = true"
    found: Any = load(text, **{f"INFERMUX_{variable}": value})
    assert found.reliability.circuit_breaker.failures == (
        2 if "FAILURES" in variable else 7
    )  # the rest stays as the file has it
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("key", "value", "field", "expected"),
    [
        ("BASE_URL", "http://other/v1", "base_url", "http://other/v1"),
        ("MODELS", "x, y", "models", ("x", "y")),
        ("TIMEOUT__IDLE", "3", "timeout", settings.Timeouts(idle=3.0)),
        ("CONCURRENCY", "9", "concurrency", 9),
        ("PROXY", " http://p:1\r\n", "proxy", "http://p:1"),
    ],
)
def test_a_provider_of_the_file_is_changed(key, value, field, expected):
    assert (
        getattr(
            provider(load(LOCAL, **{f"INFERMUX_PROVIDERS__LOCAL__{key}": value}), "local"), field
        )
        == expected
    )


def test_a_provider_whose_name_has_a_dash_is_changed_too():
    name = "INFERMUX_PROVIDERS__MY_LOCAL__CONCURRENCY"
    text = LOCAL.replace("[providers.local]", "[providers.my-local]")
    assert provider(load(text, **{name: "9"}), "my-local").concurrency == 9
    with pytest.raises(ConfigError, match=f"did you mean '{name}'"):
        load(text, INFERMUX_CONCURRENCY="9")


def test_an_overridden_secret_is_the_secret():
    found = load(
        OPENAI, INFERMUX_SERVER__ADMIN_KEY="adm", INFERMUX_PROVIDERS__OPENAI__API_KEY="other"
    )
    assert (found.server.admin_key.reveal(), provider(found, "openai").api_key.reveal()) == (
        "adm",
        "other",
    )


def test_a_key_from_an_override_is_enough():
    found = load("[providers.gemini]", INFERMUX_PROVIDERS__GEMINI__API_KEY="g")
    assert provider(found, "gemini").api_key.reveal() == "g"


@pytest.mark.parametrize(
    "variable", ["INFERMUX_SERVER__ADMIN_KEY", "INFERMUX_PROVIDERS__OPENAI__API_KEY"]
)
@pytest.mark.parametrize("value", ["", " ", f"{SECRET}\nX: y", f"{SECRET}é"])
def test_an_overridden_secret_must_be_one(variable, value):
    with pytest.raises(ConfigError) as caught:
        load(OPENAI, **{variable: value})
    assert variable in caught.value.message and SECRET not in caught.value.message


@pytest.mark.parametrize(
    ("variable", "words"),
    [
        ("INFERMUX_RELIABILITY__CIRCUIT_BREAKER__OPNE", ["did you mean 'open'?"]),
        ("INFERMUX_RELIABILITY__DEADLINE__X", ["is not a table"]),
        ("INFERMUX_RELIABILITY__CIRCUIT_BREAKER", ["must be a table"]),
        ("INFERMUX_KEYS__WEB__RPM", ["no section 'keys'"]),
        ("INFERMUX_MODELS__FAST", ["no section 'models'", "infermux.toml"]),
        ("INFERMUX_TRACE__CAPTURE_CONTENT", ["true or false, not '1'"]),
        ("INFERMUX_PROVIDERS__LOCLA__MODELS", ["did you mean 'local'?"]),
        ("INFERMUX_PROVIDERS__XAI__MODELS", ["'xai' is not configured"]),
        ("INFERMUX_PROVIDERS__LOCAL__TIMEOUT__IDEL", ["did you mean 'idle'?"]),
        ("INFERMUX_SERVER__PORT", ["[server] has no 'port'", "`infermux serve --addr`"]),
        ("INFERMUX_PROVIDERS__LOCAL__API_BASE", ["did you mean 'base_url'?"]),
    ],
)
def test_an_override_of_nothing_is_an_error(variable, words):
    with pytest.raises(ConfigError) as caught:
        load(LOCAL, **{variable: "1"})
    assert variable in caught.value.message and all(
        word in caught.value.message for word in words
    ), caught.value.message


# -- where the file is -----------------------------------------------------------------------------


def attempts(environ: dict[str, str], path: str | None = None) -> int:
    return build.settings(environ, path).reliability.attempts


def test_the_file_is_the_given_one_then_the_variables_then_the_one_here():
    assert attempts({}) == 3
    write("[reliability]\nattempts = 4", "infermux.toml")
    write("[reliability]\nattempts = 5", "five.toml")
    write("[reliability]\nattempts = 6", "six.toml")
    assert attempts({}) == attempts({"INFERMUX_CONFIG": " "}) == 4
    assert attempts({"INFERMUX_CONFIG": "five.toml"}) == 5
    assert attempts({"INFERMUX_CONFIG": "five.toml"}, "six.toml") == 6
    assert attempts({"INFERMUX_CONFIG": "five.toml", "INFERMUX_RELIABILITY__ATTEMPTS": "7"}) == 7


def test_with_a_file_the_keys_of_the_environment_configure_nothing_by_themselves():
    write("[providers.ollama]", "infermux.toml")
    environ = {"OPENAI_API_KEY": "k", "GROQ_API_KEY": "k"}
    found = build.settings(environ)
    assert ([each.name for each in found.providers], found.path) == (["ollama"], "infermux.toml")
    assert [each.name for each in build.router(found).registry] == [
        "ollama"
    ]  # nor is there echo, which answers everything
    Path("infermux.toml").unlink()
    assert [each.name for each in build.settings(environ).providers] == ["openai", "groq"]


def test_a_broken_file_here_is_not_passed_over():
    write("[reliabilty]", "infermux.toml")
    with pytest.raises(ConfigError, match=r"infermux\.toml.*did you mean 'reliability'"):
        build.settings({"OPENAI_API_KEY": "k"})


def test_a_provider_keeps_its_place_in_the_file():
    found = load(f"{LOCAL}[providers.ollama]\n[providers.openai]")
    assert [each.name for each in build.router(found).registry] == ["local", "ollama", "openai"]
