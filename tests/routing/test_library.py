"""The library as people first write it: from strings, lists and dollars, over real HTTP."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from support import Vendor

import infermux
from infermux import (
    Budget,
    Caller,
    EchoProvider,
    FaultyVendor,
    HTTPProvider,
    InferRequest,
    InferResponse,
    Registry,
    Router,
    errors,
    load,
)
from infermux.ledger.sqlite import SQLiteLedger
from infermux.routing.explain import explain, question

ECHO = "[providers.mine]\ntype = 'echo'\n"


def vendor(good: FaultyVendor, **more: Any) -> HTTPProvider:
    return HTTPProvider("vendor", base_url=good.url("openai"), models=["m"], **more)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "mine.toml"
    path.write_text(ECHO)
    return path


def names(router: Router) -> list[str]:
    return [each.name for each in router.registry]


def test_load_takes_a_path_and_an_environment(file: Path) -> None:
    assert names(load("mine.toml")) == names(load(file)) == ["mine"]
    assert names(load(path=file, environ={})) == ["mine"]
    assert names(load({})) == names(load(environ={})) == ["echo"]
    assert names(load({"INFERMUX_CONFIG": "mine.toml"})) == ["mine"]
    with pytest.raises(errors.ConfigError, match=r"there is no file none\.toml"):
        load("none.toml")
    for wrong in (5, ["mine.toml"], EchoProvider(), b"mine.toml"):
        with pytest.raises(TypeError, match=r'load\("infermux.toml"\)'):
            load(wrong)
    with pytest.raises(TypeError, match="environ must be a mapping"):
        load(environ=["A=1"])


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"attempts": 0}, "attempts is a whole number above 0, not 0"),
        ({"attempts": "3"}, "attempts is a whole number above 0, not '3'"),
        ({"deadline": -1}, "deadline is seconds above 0, or None, not -1"),
        ({"deadline": "60s"}, "deadline is seconds above 0, or None, not '60s'"),
        ({"on_unsupported": "ignore"}, "on_unsupported is 'error' or 'drop', not 'ignore'"),
    ],
)
def test_an_option_that_no_call_could_follow_is_refused(option: Any, told: str) -> None:
    with pytest.raises(ValueError, match=f"^{told}$"):
        Router([EchoProvider()], **option)


def test_what_load_finds_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    file.write_text(ECHO + "[server]\ngraceful = 5\n")
    load(file)
    assert "'graceful' is now called 'graceful_timeout'" in caplog.text


def test_a_router_takes_a_list_of_providers() -> None:
    echo = EchoProvider()
    for given in ([echo], (echo,), iter([echo]), Registry([echo])):
        assert Router(given).infer("Hello").content == "echo: Hello"
    assert names(Router([])) == []
    for wrong in (echo, "echo", {"echo": echo}, None, 5):
        with pytest.raises(TypeError, match=r"list of providers, \[provider\]"):
            Router(wrong)


def test_a_prompt_messages_and_a_request_are_the_same_question() -> None:
    with Vendor() as good:
        router = Router([HTTPProvider("vendor", base_url=f"{good.url}/v1", models=["m"])])
        messages = [{"role": "user", "content": "Hello"}]
        router.infer("Hello", model="m")
        router.infer(messages, model="m")
        router.infer(InferRequest("m", messages))
        router.infer("Hello", model="m", provider="vendor")
        router.infer("Hello")  # the first provider's first model
        sent = [request.body for request in good.seen]
        assert sent == [{"model": "m", "messages": messages}] * 5
        router.infer("Hello", model="m", params={"temperature": 0.5})
        assert good.seen[-1].body["temperature"] == 0.5


@pytest.mark.parametrize("way", ["infer", "stream"])
def test_what_is_no_question_is_told_how_to_ask(way: str) -> None:
    ask = getattr(Router([EchoProvider()]), way)
    for wrong in (5, None, {"model": "echo-v1"}, ["Hello"], b"Hello"):
        with pytest.raises(TypeError, match=r'infer\("Hello", model="auto"\)'):
            ask(wrong)
    with pytest.raises(TypeError, match="belong into the InferRequest"):
        ask(InferRequest("echo-v1", [{"role": "user", "content": "x"}]), model="echo-v1")


def test_with_ends_a_stream_and_records_it_once(tmp_path: Path) -> None:
    ledger = SQLiteLedger(str(tmp_path / "calls.db"))
    with FaultyVendor() as good:
        router = Router([vendor(good)], ledger=ledger)
        with router.stream("Hello", model="m") as stream:
            assert "".join(chunk.text for chunk in stream) == good.text
        with router.stream("Hello", model="m") as left:
            next(left)
        assert left.call.ended is not None
        with pytest.raises(ZeroDivisionError), router.stream("Hello", model="m") as broken:
            raise ZeroDivisionError
        assert broken.call.ended is not None
        assert len(ledger.rows()) == 3
        router.close()


def test_with_closes_a_router(tmp_path: Path) -> None:
    with load({"INFERMUX_LEDGER__PATH": str(tmp_path / "calls.db")}) as router:
        assert router.infer("Hi", model="echo").content == "echo: Hi"
    assert not (tmp_path / "calls.db-wal").exists()  # the last connection to the file removes it


def test_a_provider_may_have_attributes_of_its_own() -> None:
    class Own:
        name, models, price, credentials = "own", ["m"], 0.002, "sk-1"

        def infer(self, request: InferRequest) -> InferResponse:
            return InferResponse(request.model, self.name, "ok")

    registry = Registry([Own(), EchoProvider()])
    registry.define("x", ["own/m", "echo"], strategy="cheapest", fallback=["own/m"])
    with Router(registry) as router:
        assert router.infer("Hello", model="own").cost_usd is None
        assert router.infer("Hello", model="x").content == "echo: Hello"
        assert len(explain(router, question({"model": "x"})).targets) == 2


def test_an_interrupt_is_no_error_of_the_server(tmp_path: Path) -> None:
    class Slow(EchoProvider):
        def infer(self, *_: Any) -> Any:
            raise KeyboardInterrupt

    ledger = SQLiteLedger(tmp_path / "calls.db")
    with Router([Slow()], ledger=ledger) as router, pytest.raises(KeyboardInterrupt):
        router.infer("Hi", model="echo-v1")
    (row,) = ledger.rows()
    assert (row.call.status, row.call.error_code) == ("499", "client_closed")


def test_a_budget_is_dollars_and_belongs_to_its_caller(tmp_path: Path) -> None:
    own = Budget(usd="5.00", per="day")
    assert (own.limit_pico, own.period, own.then) == (5 * 10**12, "day", "reject")
    assert Budget("web", 7).limit_pico == 7
    assert Budget(usd=3).limit_pico == Budget(usd=Decimal("3")).limit_pico == 3 * 10**12
    assert Caller("alice", budget=own).budget == Budget("alice", usd="5.00", per="day")
    assert Caller("alice", budget=Budget("team", usd="1")).budget.caller == "team"
    with FaultyVendor() as good:
        ledger = SQLiteLedger(str(tmp_path / "calls.db"))
        path = tmp_path / "x.toml"
        path.write_text(
            f"[providers.vendor]\ntype = 'openai'\nbase_url = '{good.url('openai')}'\n"
            "models = ['m']\nprices = { m = { input = '1', output = '1' } }\n"
            f"[ledger]\npath = '{tmp_path}/calls.db'\n"
        )
        router = load(path, environ={})
        router.infer("Hello", caller=Caller("rich", budget=Budget(usd="1")))
        poor = Caller("poor", budget=Budget(usd="0.000000000001"))
        with pytest.raises(errors.BudgetExceeded):
            router.infer("Hello", caller=poor)
        router.infer("Hello", caller=Caller("other", budget=Budget(usd="1")))
        assert ledger.spent(Budget("rich", usd="1"), 1e9).spent == 0  # long ago
        router.close()


WRONG = {
    "create_app": lambda: infermux.create_app("infermux.toml"),  # type: ignore[arg-type]
    "function": lambda: infermux.blueprint(load),  # type: ignore[arg-type]
    "none": lambda: infermux.openai_blueprint(None),  # type: ignore[arg-type]
    "caller of an app": lambda: infermux.blueprint(Router([]), caller="web"),  # type: ignore[arg-type]
    "class": lambda: Router([EchoProvider]),
    "caller": lambda: Router([EchoProvider()]).infer("Hello", caller="web"),  # type: ignore[arg-type]
    "budget of a caller": lambda: Caller("web", budget="5.00"),
}
RIGHT = {"class": r"EchoProvider\(\)", "caller": r'Caller\("web"\)'}
RIGHT["budget of a caller"] = r'Budget\(usd="5.00"\)'


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_refused_at_once_and_told_what_to_write(name: str, file: Path) -> None:
    with pytest.raises(TypeError, match=RIGHT.get(name, r"infermux\.load\(\)")):
        WRONG[name]()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({}, TypeError),
        ({"per": "month"}, TypeError),
        ({"usd": 5.0}, TypeError),
        ({"usd": True}, TypeError),
        ({"usd": "5", "limit_pico": 5}, TypeError),
        ({"usd": "five"}, ValueError),
        ({"usd": "nan"}, ValueError),
        ({"usd": "-1"}, ValueError),
        ({"usd": "5", "per": "week"}, ValueError),
        ({"caller": "5", "limit_pico": "month"}, TypeError),
        ({"usd": "0.0000000000001"}, ValueError),
    ],
)
def test_what_is_no_budget_is_refused(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        Budget(**arguments)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:11434/v1", "localhost:8000", "api.openai.com/v1", "ftp://h/v1", "", "//h"],
)
def test_an_address_without_a_scheme_is_refused(address: str) -> None:
    with pytest.raises(errors.ConfigError, match=r"base_url of provider 'local'.*"):
        HTTPProvider("local", base_url=address, models=["m"])


def test_a_missing_key_is_told_in_the_library_and_not_in_the_message() -> None:
    with pytest.raises(errors.ModelNotFound) as caught:
        infermux.load({}).infer("Hello", model="gpt-4o")
    assert str(caught.value).endswith("gpt-4o is OpenAI's: set OPENAI_API_KEY")
    assert "OPENAI" not in caught.value.message
