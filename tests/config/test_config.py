"""Tests of the configuration from the environment: each variable, and error messages."""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

import pytest

from infermux import build, config
from infermux.build import settings
from infermux.config import Config, Secret
from infermux.errors import ConfigError


def load(**environ: str) -> Config:
    return settings(environ)


def one(**environ: str) -> config.ProviderConfig:
    [provider] = load(**environ).providers
    return provider


# -- providers -------------------------------------------------------------------------------------


def test_an_empty_environment_is_all_defaults() -> None:
    found = load()
    assert found == Config()
    assert (
        found.reliability.attempts,
        found.reliability.deadline,
        found.server.workers,
        found.server.threads,
    ) == (3, 0.0, 2, 1536)
    assert (found.trace.tokentrace, found.trace.threads, found.trace.queue) == ("", 2, 1000)


def test_a_key_makes_a_provider() -> None:
    provider = one(OPENAI_API_KEY="sk-1")
    assert (provider.name, provider.type, provider.base_url) == ("openai", "openai", "")
    assert provider.api_key is not None and provider.api_key.reveal() == "sk-1"


def test_providers_come_in_the_order_of_the_presets() -> None:
    found = load(
        VLLM_BASE_URL="http://h:1/v1", OLLAMA_HOST="h", XAI_API_KEY="x", OPENAI_API_KEY="o"
    )
    assert [provider.name for provider in found.providers] == ["openai", "xai", "ollama", "vllm"]


@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_a_blank_key_is_no_key(value: str) -> None:
    assert load(OPENAI_API_KEY=value).providers == ()


def test_a_key_from_a_file_may_end_in_a_line_break() -> None:
    assert one(OPENAI_API_KEY=" sk-1\n").api_key.reveal() == "sk-1"  # type: ignore[union-attr]


def test_the_first_variable_that_is_set_wins() -> None:
    for environ, key in (
        ({}, "b"),
        ({"PERPLEXITY_API_KEY": "a"}, "a"),
        ({"PERPLEXITY_API_KEY": " "}, "b"),
    ):
        assert one(PPLX_API_KEY="b", **environ).api_key.reveal() == key  # type: ignore[union-attr]


def test_an_address_can_be_given_beside_the_key() -> None:
    assert (
        one(OPENAI_API_KEY="k", OPENAI_BASE_URL="http://proxy:8080/v1/").base_url
        == "http://proxy:8080/v1"
    )


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("localhost", "http://localhost:11434"),
        ("localhost:9", "http://localhost:9"),
        ("0.0.0.0", "http://127.0.0.1:11434"),
        ("0.0.0.0:9", "http://127.0.0.1:9"),
        ("[::]:9", "http://127.0.0.1:9"),
        ("[::1]:9", "http://[::1]:9"),
        ("http://h:9", "http://h:9"),
        ("http://h:9/", "http://h:9"),
        ("http://h:9/v1/", "http://h:9/v1"),
        ("http://h", "http://h:80"),
        ("https://h", "https://h:443"),
        ("https://h/ollama/v1", "https://h:443/ollama/v1"),
        (" h:9 ", "http://h:9"),
        pytest.param(
            ":9",
            "http://127.0.0.1:9",
        ),
    ],
)
def test_an_ollama_host_is_written_as_ollama_writes_it(value: str, url: str) -> None:
    provider = one(OLLAMA_HOST=value)
    assert (provider.base_url, provider.api_key) == (url, None)


def test_another_local_server_does_not_get_ollamas_port() -> None:
    assert "11434" not in one(VLLM_BASE_URL="localhost").base_url


@pytest.mark.parametrize(
    "value",
    [
        "ftp://h",
        "file:///etc/passwd",
        "http://",
        "http://h:port",
        "http://h:99999",
        "http://[::1",
        "http://u:p@h/v1",
        "http://u@h/v1",
        "http://h/a b",
        "http://h/\x00",
        "http://h/\u202e",
    ],
)
def test_what_is_no_address_stops_the_start_and_names_the_variable(value: str) -> None:
    for environ in (
        {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": value},
        {"OPENAI_API_KEY": "k", "INFERMUX_PROVIDERS__OPENAI__BASE_URL": value},
        {"INFERMUX_TRACE__TOKENTRACE": value},
    ):
        with pytest.raises(ConfigError) as caught:
            load(**environ)
        assert list(environ)[-1] in caught.value.message
        assert "u:p" not in caught.value.message and "etc/passwd" not in caught.value.message


def test_echo_takes_as_long_as_the_configuration_says() -> None:
    quick, slow = (
        build.provider(config.ProviderConfig("e", "echo", options={"delay": delay}))
        for delay in (0, 2.5)
    )
    assert (quick.delay, slow.delay) == (0.0, 2.5)
    assert build.provider(config.ProviderConfig("e", "echo")).delay == 0.001


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dealy": 1}, "[providers.e].options has no 'dealy': echo has a delay, in seconds"),
        ({"delay": "1"}, "[providers.e].options.delay must be a number, not text in quotes"),
        ({"delay": True}, "[providers.e].options.delay must be a number, not true or false"),
        ({"delay": -1}, "[providers.e].options.delay must be seconds, from 0 to 3600"),
        ({"delay": float("nan")}, "[providers.e].options.delay must be seconds, from 0 to 3600"),
    ],
)
def test_a_wrong_option_of_echo_stops_the_start(options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build.provider(config.ProviderConfig("e", "echo", options=options))
    assert caught.value.message == said


# -- overrides -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "path", "expected"),
    [
        ("INFERMUX_RELIABILITY__ATTEMPTS", "5", "reliability.attempts", 5),
        ("INFERMUX_RELIABILITY__DEADLINE", "2.5", "reliability.deadline", 2.5),
        ("INFERMUX_RELIABILITY__DEADLINE", "30", "reliability.deadline", 30.0),
        ("INFERMUX_SERVER__WORKERS", " 4 ", "server.workers", 4),
        ("INFERMUX_SERVER__THREADS", "8", "server.threads", 8),
        ("INFERMUX_SERVER__MAX_BODY", "1024", "server.max_body", 1024),
        (
            "INFERMUX_TRACE__TOKENTRACE",
            "http://localhost:8700/",
            "trace.tokentrace",
            "http://localhost:8700",
        ),
        ("INFERMUX_TRACE__TOKENTRACE", "", "trace.tokentrace", ""),
        ("INFERMUX_TRACE__QUEUE", "10", "trace.queue", 10),
        ("INFERMUX_trace__Queue", "10", "trace.queue", 10),
    ],
)
def test_a_scalar_is_set_from_the_environment(
    variable: str, value: str, path: str, expected: Any
) -> None:
    section, name = path.split(".")
    found = getattr(getattr(load(**{variable: value}), section), name)
    assert (found, type(found)) == (expected, type(expected))


def test_a_provider_is_changed_from_the_environment() -> None:
    provider = one(
        OPENAI_API_KEY="k",
        INFERMUX_PROVIDERS__OPENAI__MODELS=" a, b ,,",
        INFERMUX_PROVIDERS__OPENAI__API_KEY="other",
        INFERMUX_PROVIDERS__OPENAI__BASE_URL="https://h/v1",
    )
    assert (provider.models, provider.base_url) == (("a", "b"), "https://h/v1")
    assert provider.api_key is not None and provider.api_key.reveal() == "other"


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("INFERMUX_RELIABILTY__ATTEMPTS", "did you mean 'reliability'?"),
        ("INFERMUX_RELIABILITY__DEADLIEN", "did you mean 'deadline'?"),
        ("INFERMUX_SERVER__ZZZ", "workers"),
        ("INFERMUX_PROVIDERS__OPENAI__BASEURL", "did you mean 'base_url'?"),
        ("INFERMUX_PROVIDERS__OPENIA__MODELS", "did you mean 'openai'?"),
        ("INFERMUX_PROVIDERS__XAI__MODELS", "not configured"),
        ("INFERMUX_PROVIDERS__OPENAI", "base_url"),
        ("INFERMUX___X", "no section"),
    ],
)
def test_an_unknown_name_is_an_error_that_says_what_is_known(variable: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(OPENAI_API_KEY="k", **{variable: "1"})
    assert variable in caught.value.message and said in caught.value.message


@pytest.mark.parametrize("name", ["INFERMUXX__A", "OTHER__THING", "PATH"])
def test_another_variable_is_none_of_our_business(name: str) -> None:
    assert load(**{name: "x"}) == Config()


@pytest.mark.parametrize(
    "value", ["", "x", "0", "-1", "nan", "inf", "1e400", "0x10", "1,5", "None", "9" * 20]
)
@pytest.mark.parametrize(
    "variable",
    [
        "INFERMUX_RELIABILITY__ATTEMPTS",
        "INFERMUX_RELIABILITY__DEADLINE",
        "INFERMUX_SERVER__THREADS",
    ],
)
def test_a_number_that_makes_no_sense_stops_the_start(variable: str, value: str) -> None:
    with pytest.raises(ConfigError, match=variable):
        load(**{variable: value})


def test_half_a_worker_is_no_worker() -> None:
    with pytest.raises(ConfigError, match="whole number"):
        load(INFERMUX_SERVER__WORKERS="1.5")


# -- secrets and values ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "show",
    [
        str,
        repr,
        "{}".format,
        lambda secret: f"{secret} {secret!r}",
        lambda secret: str({"k": secret}),
        lambda secret: repr(config.ProviderConfig("p", "t", api_key=secret)),
    ],
)
def test_a_secret_does_not_show_itself(show: Any) -> None:
    assert "sk-1234" not in show(Secret("sk-1234"))


def test_a_secret_is_shown_where_it_is_asked_for() -> None:
    assert Secret("sk-1234").reveal() == "sk-1234"
    assert not hasattr(Secret("x"), "__dict__")


@pytest.mark.parametrize("value", ["a\nb", "a\r\nX-Header: 1", "a\x00", "ключ", "a\u2028b", "\x7f"])
def test_a_secret_that_would_break_a_header_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(OPENAI_API_KEY=f"sk{value}end")
    assert "OPENAI_API_KEY" in caught.value.message and value not in caught.value.message


def test_a_config_is_a_value_that_nobody_changes() -> None:
    found = load(OPENAI_API_KEY="k")
    for each in (found, found.reliability, found.providers[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(each, dataclasses.fields(each)[0].name, 1)


def test_a_config_error_outlives_a_process_boundary() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("x")))
    assert error.message == "x"


def test_the_processes_own_environment_is_read_when_none_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INFERMUX_RELIABILITY__ATTEMPTS", "7")
    assert settings().reliability.attempts == 7
    assert settings({}).reliability.attempts == 3


def test_an_override_is_for_this_process_and_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERMUX_TRACE__QUEUE", "5")
    config.override("TRACE__QUEUE", "6")
    assert settings().trace.queue == 6
