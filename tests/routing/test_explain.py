"""An explanation agrees with the call that follows, and has no side effects."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from doors import Front
from flask import Flask
from support import Peer, nobody, run, script

from infermux import (
    Caller,
    Deadline,
    InferRequest,
    InferResponse,
    Registry,
    Router,
    blueprint,
    ops_blueprint,
)
from infermux.admission.keys import Keyring
from infermux.cli.main import main
from infermux.errors import InferMuxError, ModelNotAllowed, ProviderUnavailable, RequestError
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning import STRATEGIES
from infermux.pricing import PICO, Price
from infermux.providers.echo import EchoProvider
from infermux.routing.circuit_breaker import CircuitBreaker
from infermux.routing.explain import Explanation, explain, question
from infermux.routing.targets import TargetPool
from infermux.types import Target

SAY: list[dict[str, Any]] = [{"role": "user", "content": "Hello there"}]


class Named(EchoProvider):
    """Echoes, unless it is down; some of its models lack something."""

    def __init__(
        self,
        name: str,
        *,
        down: bool = False,
        unsupported: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(name, ("m",))
        self.vendor, self.down, self.unsupported = name, down, unsupported or {}

    def infer(self, request: InferRequest, deadline: Deadline | None = None) -> InferResponse:
        if self.down:
            raise ProviderUnavailable("down")
        return super().infer(request, deadline)


def priced(provider: str, usd: str) -> dict[str, dict[str, Price]]:
    return {
        provider: {
            "m": Price.of({"input": usd, "output": usd}, provider=provider, id="m", place="test")
        }
    }


PRICES = {
    **priced("a", "3"),
    **priced("b", "1"),
    **priced("c", "2"),
}  # dollars for a million tokens; d has no price


def of_four(strategy: str = "priority", **options: Any) -> Router:
    providers = [
        Named("a", unsupported={"m": ("tools",)}),
        Named("b", down=True),
        Named("c", unsupported={"m": ("images",)}),
        Named("d"),
    ]
    registry = Registry(providers)
    registry.define("x", ["a/m", "b/m", "c/m", "d/m"], strategy=strategy)
    pool = TargetPool(
        registry, breaker=lambda: CircuitBreaker(clock=lambda: 1000.0), overrides=PRICES
    )  # what is known must not change by itself
    return Router(
        registry, targets=pool, prices=PRICES, sleep=lambda seconds: None, **{"seed": 5} | options
    )


def said(router: Router, **body: Any) -> Explanation:
    return explain(router, question({"model": "x", **body}))


def order(found: Explanation) -> str:
    return "".join(target["provider"] for target in found.targets)


def why(found: Explanation) -> dict[str, str]:
    return {target["provider"]: target["dropped"] for target in found.dropped}


# -- what is said is what is done ------------------------------------------------------------------


@pytest.mark.sampled(2)
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("tools", [False, True])
def test_the_plan_that_is_explained_is_the_one_that_is_executed(strategy: str, tools: bool) -> None:
    router = of_four(strategy)
    firsts = set()
    for turn in range(40):
        before = [said(router, messages=SAY, tools=tools) for _ in range(3)]
        assert before[0] == before[1] == before[2]  # it moves nothing on
        call = router.begin(InferRequest("x", SAY, params={"tools": [{}]} if tools else {}))
        with suppress(InferMuxError):
            router.answer(call)
        assert call.plan is not None
        assert (call.plan, call.plan.seed) == (before[0].plan, before[0].plan.seed), turn
        assert order(before[0]) == "".join(target.provider for target in call.plan.targets)
        firsts.add(call.plan.targets[0])
    assert (len(firsts) > 1) >= (strategy in ("weighted", "round_robin", "least_latency"))


def test_nothing_is_taken_and_nobody_is_asked(tmp_path: Path) -> None:
    ledger = SQLiteLedger(tmp_path / "l.db")
    with closing(of_four("round_robin", ledger=ledger)) as router:
        for _ in range(5):
            said(router)
        assert router.targets.breakers() == {} and ledger.rows() == []


# -- what is known of a target ---------------------------------------------------------------------


def test_each_target_comes_with_what_is_known_of_it() -> None:
    router = of_four("cheapest")
    router.targets.breaker(Target("b", "m")).open()
    permit = router.targets.breaker(Target("c", "m")).admit()
    assert permit is not None
    permit.succeeded(0.25)
    found = said(router, tokens=1000, params={"max_tokens": 1000}).to_dict()
    assert [(each["provider"], each["cost_usd"], each["priced"]) for each in found["targets"]] == [
        ("c", 0.004, True), ("a", 0.006, True), ("d", None, False)]  # fmt: skip
    assert {each["state"] for each in found["targets"]} == {"closed"}
    assert [each["latency"] for each in found["targets"]] == [0.25, None, None]
    [shut] = found["dropped"]
    assert (shut["provider"], shut["state"], shut["cost_usd"]) == (
        "b",
        "open",
        0.002,
    ) and "open" in shut["dropped"]
    assert (found["model"], found["strategy"], found["refused"]) == ("x", "cheapest", None)
    assert found["tokens"] == {"input": 1000, "output": 1000}


def test_a_size_needs_no_text() -> None:
    """The estimate of a text and the same number given lead to the same plan."""
    text = [{"role": "user", "content": "word " * 30_000}]
    whole = said(of_four("cheapest"), messages=text)
    size = whole.about["tokens"]["input"]
    given = said(of_four("cheapest"), tokens=size)
    assert size > 20_000 and given.plan == whole.plan and given.targets == whole.targets


def test_a_model_that_is_too_small_is_dropped() -> None:
    router = of_four()
    small = Price.of(
        {"input": "1", "output": "1", "max_input": 5000}, provider="a", id="m", place="test"
    )
    router.targets.overrides = {**PRICES, "a": {"m": small}}
    assert why(said(router, tokens=5000)) == {}
    assert why(said(router, tokens=5001)) == {
        "a": "takes 5000 tokens, and the request has about 5001"
    }


@pytest.mark.parametrize(
    ("body", "dropped"),
    [
        ({"tools": True}, {"a": "cannot do tools"}),
        ({"tools": [{"type": "function"}], "messages": SAY}, {"a": "cannot do tools"}),
        ({"params": {"tools": [{}]}, "messages": SAY}, {"a": "cannot do tools"}),
        ({"image": True}, {"c": "cannot do images"}),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
                ]
            },
            {"c": "cannot do images"},
        ),
        ({"tools": False, "image": False, "structured": True}, {}),
    ],
)
def test_what_a_request_needs_is_read_from_any_form_of_it(
    body: dict[str, Any], dropped: dict[str, str]
) -> None:
    assert why(said(of_four(), **body)) == dropped


def test_one_provider_may_be_asked_for() -> None:
    assert order(said(of_four(), provider="c", tokens=3)) == "c"


ODD = [{"tokens": -1}, {"tokens": 1.5}, {"tokens": True}, {"tokens": "5"}, {"tokens": 10**30}, {"caller": 5}, {"image": 1},
       {"structured": []}, {"messages": "x"}, {"messages": [1]}, {"model": 5},
       {"messages": {"a": 1}}, {"params": []}, {"meta": {"a": 1}}]  # fmt: skip


@pytest.mark.parametrize("body", ODD, ids=str)
def test_an_odd_question_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        explain(of_four(), question({"model": "x", **body}))


# -- callers ---------------------------------------------------------------------------------------


def with_keys(
    path: Path, budget: Budget | None = None, models: Sequence[str] | None = None
) -> Router:
    return of_four(
        keyring=Keyring([("00" * 32, Caller("web", models, budget=budget))]),
        ledger=SQLiteLedger(path),
    )


def test_a_callers_models_count(tmp_path: Path) -> None:
    with closing(with_keys(tmp_path / "l.db", models=("x",))) as router:
        assert order(said(router, caller="web")) == "abcd"
        with pytest.raises(ModelNotAllowed):
            said(router, model="a/m", caller="web")
        assert order(said(router, model="a/m")) == "a"


def test_an_unknown_caller_is_told_who_there_is(tmp_path: Path) -> None:
    with (
        closing(with_keys(tmp_path / "l.db")) as router,
        pytest.raises(RequestError, match="did you mean 'web'"),
    ):
        said(router, caller="wep")
    assert (
        said(of_four(), caller="anyone").about["caller"] == "anyone"
    )  # the mounting app knows who that is


LIMIT = {"max_tokens": 4096}


@pytest.mark.parametrize("then", ["reject", "d/m", "c/m", "warn"])
def test_a_callers_budget_counts_as_it_would(tmp_path: Path, then: str) -> None:
    """With 4,096 tokens of output at most, a call costs 12 thousandths of a dollar at a, 4 at b and
    8 at c.
    """
    budget = Budget("web", 9 * PICO // 1000, then=then)
    caller = Caller("web", ("x",), budget=budget)  # the cheaper name needs no leave of its own
    with closing(with_keys(tmp_path / "l.db", budget, caller.models)) as router:
        found = said(router, messages=SAY, caller="web", params=LIMIT)
        if then == "warn":
            assert (order(found), why(found), found.about["budget_left_usd"]) == ("abcd", {}, None)
            return
        assert (order(found), found.about["budget_left_usd"]) == (
            "abc",
            0.009,
        ) and "unpriced" in why(found)["d"]
        assert [target["over_budget"] for target in found.targets] == [True, False, False]
        call = router.begin(InferRequest("x", SAY, params=LIMIT), caller=caller)
        router.answer(call)
        assert call.plan == found.plan and call.provider == "c"  # a is too dear, b is down
        router.ledger.reserve(budget, 8 * PICO // 1000, call_id="other", at=call.start_ns / 1e9)  # type: ignore[union-attr]
        found = said(router, messages=SAY, caller="web", params=LIMIT)
        again = router.begin(InferRequest("x", SAY, params=LIMIT), caller=caller)
        with suppress(InferMuxError):
            router.answer(again)
        assert again.plan == found.plan and again.override == (found.about["override"] or "")
        assert (
            found.about["refused"]
            == {"reject": "budget_exceeded", "d/m": "no_healthy_providers", "c/m": None}[then]
        )
        assert (again.error is None) == (found.about["refused"] is None)


# -- at a shell ------------------------------------------------------------------------------------

ADMIN = "adm-in-key"
FILE = """
[providers.good]
type = "echo"
[providers.small]
type = "openai"
base_url = "http://127.0.0.1:9/v1"
api_key = "env:VENDOR"
models = ["tiny"]
unsupported = { tiny = ["tools"] }
prices = { tiny = { input = "0.1", output = "0.2" } }
[models.fast]
strategy = "cheapest"
targets = ["good/echo-v1", "small/tiny"]
[keys.web]
hash = "%s"
models = ["fast"]
""" % ("ab" * 32)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VENDOR", "sk-vendor-key")
    (tmp_path / "infermux.toml").write_text(FILE)
    yield tmp_path


def run_explain(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["explain", *args], env=env)


def test_explain_is_a_table(file: Path) -> None:
    result = run_explain(
        "fast", "--tokens", "10000", "--max-tokens", "1000", "--tools", "--caller", "web"
    )
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0] == "fast: cheapest, for 10,000 tokens in and 1,000 out, by web"
    assert lines[2].split()[:4] == ["1", "good/echo-v1", "closed", "-"]
    assert lines[3].split(maxsplit=5) == [
        "-",
        "small/tiny",
        "closed",
        "-",
        "0.001200",
        "dropped: cannot do tools",
    ]
    assert len(lines) == 4
    assert [each.name for each in file.iterdir()] == ["infermux.toml"]  # it makes no ledger


def test_explain_as_json_is_what_the_service_answers(file: Path) -> None:
    found = json.loads(run_explain("fast", "--tokens", "10", "--json").stdout)
    assert [target["provider"] for target in found["targets"]] == ["small", "good"] and found[
        "tokens"
    ]["input"] == 10


@pytest.mark.parametrize(
    ("args", "word"),
    [(("fsat",), "did you mean 'fast'"), (("fast", "--caller", "wep"), "did you mean 'web'"),
     (("good", "--caller", "web"), "may not use"), (("fast", "-c", "none.toml"), "none.toml"),
     (("fast", "--provider", "godo"), "did you mean 'good'")],
)  # fmt: skip
def test_what_cannot_be_explained_is_one_line(file: Path, args: tuple[str, ...], word: str) -> None:
    result = run_explain(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (
        1,
        "",
        1,
    ) and word in result.stderr


def test_nothing_to_try_is_exit_code_1(file: Path) -> None:
    result = run_explain("small", "--tools")
    assert result.exit_code == 1 and "no target can be tried" in result.stdout


def mounted(router: Router) -> Flask:
    app = Flask("host")
    app.register_blueprint(blueprint(router))
    app.register_blueprint(ops_blueprint(router, ADMIN))
    return app


def test_explain_asks_a_running_service(file: Path) -> None:
    """Which knows what a fresh configuration cannot: there, a circuit is open."""
    with Front(Named("one"), Named("two"), app=mounted) as front:
        front.router.registry.define("fast", ["one/m", "two/m"])
        front.router.targets.breaker(Target("one", "m")).open()
        url = f"http://127.0.0.1:{front.port}"
        for args, env in ((("--key", ADMIN), {}), ((), {"INFERMUX_ADMIN_KEY": ADMIN})):
            result = run_explain("fast", "--server", url, *args, env=env)
            assert result.exit_code == 0, result.output
            assert [line.split()[:3] for line in result.stdout.splitlines()[2:]] == [
                ["1", "two/m", "closed"],
                ["-", "one/m", "open"],
            ]
        (file / "infermux.toml").write_text(FILE + '[server]\nadmin_key = "env:ADMIN"\n')
        assert (
            run_explain(
                "fast", "--server", f"127.0.0.1:{front.port}/", env={"ADMIN": ADMIN}
            ).exit_code
            == 0
        )
        refused = run_explain("fast", "--server", url, "--key", "wrong")
        assert (
            refused.exit_code == 1 and "401" in refused.stderr and refused.stderr.count("\n") == 1
        )


class Elsewhere(Peer):
    """Sends every request on to *target*."""

    def __init__(self, target: str) -> None:
        self.target, self.seen = target, 0

    def answer(self, handler: Any, body: bytes) -> None:
        self.seen += 1
        handler.reply(302, b"", {"Location": self.target})


def test_the_key_goes_where_it_was_sent_and_no_further(file: Path) -> None:
    with Elsewhere("") as other, Elsewhere(other.url) as service:
        command = [*script("infermux"), "explain", "fast", "--server", service.url]
        result = run(
            command,
            env={"INFERMUX_ADMIN_KEY": ADMIN, "http_proxy": other.url, "HTTP_PROXY": other.url},
        )
    assert (result.returncode, service.seen, other.seen) == (1, 1, 0) and "302" in result.stderr


@pytest.mark.parametrize(
    "server",
    ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://[", "http://127.0.0.1:99999", "http://a b"],
)
def test_an_address_that_is_none_is_one_line(file: Path, server: str) -> None:
    result = run_explain("fast", "--server", server)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)


def test_no_service_is_one_line(file: Path) -> None:
    with nobody() as url:
        result = run_explain("fast", "--server", url)
    assert (
        result.exit_code == 1
        and "no service answers" in result.stderr
        and result.stderr.count("\n") == 1
    )
