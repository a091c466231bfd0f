"""Tests of the commands that read the ledger: costs and logs."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from books import DAY, HOSTILE, NOON, call, keep
from click.testing import CliRunner, Result
from support import HELLO, PATIENCE, Service, environment, eventually, run, script

from infermux.cli.main import main
from infermux.errors import BudgetExceeded, ProviderRateLimited, ProviderTimeout, printable
from infermux.planning.call import Attempt
from infermux.types import Target, Usage

NOW = time.time()


def infermux(*args: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, args, env=env)


def failed_in_one_line(result: Result, *words: str) -> None:
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"infermux: [^\n]+\n", result.stderr), result.stderr
    assert all(word in result.stderr for word in words), result.stderr


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A ledger with four calls of two models, one of them without a price, one refused."""
    spent = BudgetExceeded("spent")
    return str(
        keep(
            tmp_path / "l.db",
            call("a", at=NOON, cost=23_285_600_000, tags={"env": "prod"}),
            call(
                "b",
                at=NOON + 60,
                caller="night",
                target="local/llama",
                cost=None,
                usage=Usage(3, 3, estimated=True),
            ),
            call("c", at=NOON + DAY, cost=1, tags={"env": "dev"}),
            call("d", at=NOON + DAY, error=spent, attempts=[]),
        )
    )


# -- costs -----------------------------------------------------------------------------------------


def test_costs_are_a_table_with_a_total(path: str) -> None:
    result = infermux("costs", "--all", "--ledger", path)
    assert (result.exit_code, result.stderr) == (0, "")
    head, *rows = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert head == ["MODEL", "CALLS", "ATTEMPTS", "ERRORS", "INPUT", "OUTPUT", "COST USD"]
    assert rows == [
        ["gpt-5", "2", "2", "0", "20", "10", "0.023285600001"],
        ["(none)", "1", "0", "1", "0", "0", "0"],
        ["llama", "1", "1", "0", "3", "3", "unpriced", "1 unpriced, ~1 estimated"],
        ["TOTAL", "4", "3", "1", "23", "13", "0.023285600001", "1 unpriced, ~1 estimated"],
    ]
    assert "\u2588" not in result.stdout and "#" not in result.stdout  # bars are for terminals


@pytest.mark.parametrize("by", ["model", "provider", "served", "day", "caller", "model,day"])
def test_the_rows_of_costs_add_up_to_their_total(tmp_path: Path, by: str) -> None:
    """A call that another target rescued is no error; one that failed twice is one."""
    slow = ProviderTimeout("slow")
    tried = [Attempt(Target("a", "m"), 10.0, error=slow), Attempt(Target("b", "n"), 11.0)]
    failed = [*tried[:1], Attempt(Target("b", "n"), 11.0, error=slow)]
    path = keep(
        tmp_path / "l.db",
        call("rescued", attempts=tried),
        call("failed", attempts=failed, error=slow, caller="night"),
        call("refused", attempts=[], error=BudgetExceeded("spent")),
    )
    found = infermux("costs", "--all", "--ledger", str(path), "--by", by).stdout.splitlines()
    columns = [found[0].index(name) + len(name) for name in ("CALLS", "ATTEMPTS", "ERRORS")]
    rows = [[int(line[:end].split()[-1]) for end in columns] for line in found[1:]]
    assert rows[-1] == [3, 4, 2]
    assert [sum(column) for column in zip(*rows[:-1], strict=True)] == rows[-1]


def test_costs_without_a_time_are_those_of_the_last_30_days(tmp_path: Path) -> None:
    old, new = call("a", at=NOW - 31 * DAY, cost=5), call("b", at=NOW - 29 * DAY, cost=7)
    path = str(keep(tmp_path / "l.db", old, new))
    shown = infermux("costs", "--ledger", path, "--by", "caller")
    assert "these are the last 30 days" in shown.stderr
    assert "0.000000000007" in shown.stdout
    for words in (["--all"], ["--since", "40d"], ["--json"]):
        every = infermux("costs", "--ledger", path, *words)
        assert every.stderr == ""
        assert "0.000000000012" in every.stdout
    assert "give --all, or a time" in infermux("costs", "--all", "--since", "7d").stderr


def test_costs_in_json_are_exact_and_null_where_unpriced(path: str) -> None:
    found = json.loads(
        infermux(
            "costs", "--ledger", path, "--by", "provider", "--by", "day,caller", "--json"
        ).stdout
    )
    assert found["by"] == ["provider", "day", "caller"]
    told = {
        (row["provider"], row["day"], row["caller"]): (
            row["cost_usd"],
            row["cost_pico"],
            row["unpriced"],
        )
        for row in found["rows"]
    }
    assert told == {
        ("openai", "2026-11-23", "web"): ("0.0232856", 23_285_600_000, 0),
        ("openai", "2026-11-24", "web"): ("0.000000000001", 1, 0),
        ("local", "2026-11-23", "night"): (None, None, 1),
        ("", "2026-11-24", "web"): ("0", 0, 0),
    }
    assert (found["total"]["cost_usd"], found["total"]["unpriced"], found["more"]) == (
        "0.023285600001",
        1,
        0,
    )


def test_costs_are_of_the_time_and_the_caller_that_is_meant(path: str) -> None:
    def total(*args: str) -> int:
        found: int = json.loads(infermux("costs", "--ledger", path, "--json", *args).stdout)[
            "total"
        ]["calls"]
        return found

    assert total("--since", "2026-11-24") == 2
    assert total("--until", "2026-11-24") == 2
    assert total("--since", "2026-11-23T12:01", "--until", "2026-11-24") == 1
    assert total("--month", "2026-11") == 4
    assert total("--month", "2026-10") == 0
    assert total("--caller", "night") == 1
    assert total("--caller", "%") == 0


def test_costs_by_tag_count_a_call_once_in_the_total(path: str) -> None:
    rows = list(
        csv.DictReader(
            io.StringIO(
                infermux("costs", "--all", "--ledger", path, "--by", "tag:env", "--csv").stdout
            )
        )
    )
    assert {(row["tag:env"], row["cost_usd"], row["calls"]) for row in rows} == {
        ("prod", "0.0232856", "1"), ("dev", "0.000000000001", "1"), ("", "unpriced", "2"),
    }  # fmt: skip


def test_one_of_a_thing_is_singular(path: str, tmp_path: Path) -> None:
    assert infermux("costs", "--all", "--ledger", path, "--limit", "2").stdout.endswith(
        "\n1 more row: see --limit\n"
    )
    assert (
        "\n2 more rows: see" in infermux("costs", "--all", "--ledger", path, "--limit", "1").stdout
    )
    (tmp_path / "bill.csv").write_text("date,model,cost\n2026-11-23,gpt-5,0.0232856\n")
    compared = infermux("costs", "--ledger", path, "--reconcile", str(tmp_path / "bill.csv"))
    assert re.search(r"^[0-9]+ days? and models?: ", compared.stdout, re.M), compared.output
    assert not re.search(r"^1 (days|\w+ and models)", compared.stdout, re.M)
    (tmp_path / "questions.jsonl").write_text('{"messages": [{"role": "user", "content": "a"}]}\n')
    files = [str(tmp_path / "questions.jsonl"), "-o", str(tmp_path / "answers.jsonl")]
    assert "1 line: 1 ok, 0 failed" in infermux("batch", *files, "-m", "echo-v1").stderr


def test_no_cell_of_a_spreadsheet_can_be_a_formula(tmp_path: Path) -> None:
    names = [HOSTILE, "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "-", "plain", "-5"]
    path = keep(
        tmp_path / "l.db", *[call(str(n), target=f"p/{name}") for n, name in enumerate(names)]
    )
    rows = list(
        csv.reader(
            io.StringIO(
                infermux("costs", "--all", "--ledger", str(path), "--csv", "--by", "model").stdout
            )
        )
    )
    cells = [cell for row in rows for cell in row]
    assert [cell for cell in cells if cell.startswith(("=", "+", "@", "\t", "\r"))] == []
    assert [cell for cell in cells if cell.startswith("-")] == ["-5"]  # a number is one
    assert {row[0].removeprefix("'") for row in rows[1:]} == {printable(name) for name in names}


def test_a_hostile_name_moves_no_cursor(tmp_path: Path) -> None:
    path = str(
        keep(
            tmp_path / "l.db",
            call(target=f"p/{HOSTILE}", served=HOSTILE, requested=HOSTILE, caller=HOSTILE),
        )
    )
    for args in (
        ["costs", "--all"],
        ["costs", "--all", "--by", "caller"],
        ["costs", "--json"],
        ["logs"],
        ["logs", "--json"],
    ):
        output = infermux(*args, "--ledger", path).stdout
        assert output and all(letter.isprintable() for letter in output.replace("\n", "")), args
    assert len(infermux("logs", "--ledger", path).stdout.splitlines()) == 2  # with the header
    assert json.loads(infermux("logs", "--json", "--ledger", path).stdout)["requested"] == HOSTILE


@pytest.mark.slow
def test_a_terminal_has_bars(path: str) -> None:
    mine, theirs = pty.openpty()
    try:
        command = [*script("infermux"), "costs", "--all", "--ledger", path]
        env = environment(PYTHONIOENCODING="utf-8", TERM="dumb")
        assert (
            subprocess.run(
                command, stdout=theirs, stdin=theirs, env=env, timeout=PATIENCE, check=False
            ).returncode
            == 0
        )
        text = os.read(mine, 65536).decode()
    finally:
        os.close(mine)
        os.close(theirs)
    bars = [line.count("\u2588") for line in text.splitlines()]
    assert bars == [0, 24, 0, 0, 0]


def test_an_empty_ledger_costs_nothing(tmp_path: Path) -> None:
    result = infermux("costs", "--all", "--ledger", str(keep(tmp_path / "l.db")))
    assert result.stdout.splitlines()[-1].split() == ["TOTAL", *"000000"]
    for form, told in (([], "no such calls"), (["--json"], ""), (["-n", "0"], "")):
        result = infermux("logs", *form, "--ledger", str(tmp_path / "l.db"))
        assert (result.exit_code, result.stdout) == (0, "")
        assert result.stderr == (f"infermux: the ledger has {told}\n" if told else "")


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["costs", "--by", "colour"], "--by"),
        (["costs", "--since", "soon"], "--since"),
        (["costs", "--month", "13"], "--month"),
        (["costs", "--month", "this", "--since", "7d"], "--month"),
        (["costs", "--limit", "0"], "--limit"),
        (["costs", "--tolerance", "1%"], "--reconcile"),
        (["logs", "--since", "soon"], "--since"),
        (["logs", "-n", "-1"], "-n"),
        (["logs", "--status", "failed"], "--status"),
        (["logs", "--status", "99"], "--status"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_option(
    path: str, args: list[str], word: str
) -> None:
    result = infermux(*args, "--ledger", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert word in result.stderr


def test_an_error_names_what_is_wrong_and_not_the_ledger(path: str, tmp_path: Path) -> None:
    since = ("--since", "2026-11-01", "--ledger", path)
    unknown = infermux("costs", "--compare", "gpt-5", "nobody", *since)
    failed_in_one_line(unknown, "no calls of 'nobody'")
    nowhere = infermux("ledger", "backup", str(tmp_path / "no" / "x.db"), "--ledger", path)
    failed_in_one_line(nowhere, "there is no folder")


@pytest.mark.sampled(1)
@pytest.mark.parametrize("to", ["> /dev/full", ">&-"])
def test_an_export_that_cannot_be_written_fails(path: str, to: str) -> None:
    (own,) = script("infermux")
    answer = run(["bash", "-c", f"{own} ledger export --ledger {path} {to}"])
    assert answer.returncode == 1
    assert answer.stderr.startswith("infermux: the output cannot be written")


# -- which ledger ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["costs", "logs"])
def test_where_no_ledger_is_none_is_made(tmp_path: Path, command: str) -> None:
    failed_in_one_line(infermux(command, "--ledger", str(tmp_path / "no.db")), "no.db", "--ledger")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not to be moved aside")
    failed_in_one_line(infermux("costs", "--ledger", str(file)), "is not a ledger")
    failed_in_one_line(infermux("costs", "--ledger", str(tmp_path)), "cannot be read")
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_months_keep_what_removed_calls_have_cost(tmp_path: Path) -> None:
    """Of removed calls only sums of days of UTC are left: each of them is in one month."""
    calls = [call(f"c{n}", at=NOW - n * DAY / 4, cost=n) for n in range(220)]
    ledger, file = keep(tmp_path / "l.db", *calls), tmp_path / "infermux.toml"
    file.write_text(f'[ledger]\npath = "{ledger}"\ntimezone = "Asia/Kolkata"\n')
    months = sorted({time.strftime("%Y-%m", time.gmtime(NOW - n * DAY)) for n in range(-1, 57)})

    def costs(*args: str) -> Any:
        result = infermux("costs", "-c", str(file), "--json", *args)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)["total"]

    for removed in (False, True):
        if removed:
            result = infermux("ledger", "prune", "--keep", "20d", "-c", str(file))
            assert result.stdout.startswith("removed 1"), result.output
        parts = [costs("--month", month) for month in months]
        for name in ("calls", "cost_pico"):
            assert sum(part[name] for part in parts) == costs()[name]
    result = infermux("costs", "-c", str(file), "--all", "--by", "user")
    assert re.search(r"the rows lack 1\d\d calls of days that were pruned", result.stderr)


def test_a_command_leaves_a_damaged_file_to_the_service(path: str) -> None:
    with open(path, "r+b") as file:
        file.seek(8192)
        file.write(b"\xa5" * 4096)
    for command in (["ledger", "check"], ["costs", "--all"], ["ledger", "prune", "--keep", "1d"]):
        failed_in_one_line(infermux(*command, "--ledger", path))
    assert not [name for name in os.listdir(os.path.dirname(path)) if "corrupt" in name]


def test_wrong_arguments_of_ledger_commands_are_named(path: str, tmp_path: Path) -> None:
    for keep_days in ("400", "0d", "1y", "99999999999d"):
        result = infermux("ledger", "prune", "--keep", keep_days, "--ledger", path)
        assert result.exit_code == 2
        assert (
            f"--keep must be a number of days, such as \"400d\", not '{keep_days}'" in result.stderr
        )
    for to in ((), ("--to", str(tmp_path / "months"))):
        result = infermux("ledger", "export", "--month", "2020-01", "--ledger", path, *to)
        assert (result.exit_code, result.stdout) == (0, "")
        assert "no calls of that time" in result.stderr
    missing = str(tmp_path / "none" / "b.db")
    result = infermux("ledger", "backup", missing, "--ledger", path)
    failed_in_one_line(result, "there is no folder", "none")


def test_the_ledger_is_the_configurations(tmp_path: Path, path: str) -> None:
    file = tmp_path / "infermux.toml"
    file.write_text(f'[ledger]\npath = "{path}"\n')
    assert "gpt-5" in infermux("costs", "--all", "-c", str(file)).stdout
    assert "gpt-5" in infermux("logs", env={"INFERMUX_CONFIG": str(file)}).stdout
    file.write_text('[ledger]\npath = ""\n')
    failed_in_one_line(infermux("costs", "-c", str(file)), "[ledger].path")
    failed_in_one_line(infermux("costs", "-c", str(tmp_path / "no.toml")), "no.toml")


# -- logs ------------------------------------------------------------------------------------------


def test_logs_are_the_last_calls_the_newest_at_the_end(path: str) -> None:
    head, *lines = infermux("logs", "--ledger", path).stdout.splitlines()
    rows = [re.split(r"\s{2,}", line.strip()) for line in (head, *lines)]
    assert rows[0] == [
        *("TIME UTC", "STATUS", "CALLER", "MODEL", "TARGET", "INPUT", "OUTPUT", "COST USD"),
        *("MS", "ATTEMPTS", "ID", "ERROR"),
    ]
    assert rows[1] == [
        *("2026-11-23 12:00:00", "ok", "web", "fast", "openai/gpt-5", "10", "5", "0.0232856"),
        *("2,500", "1", "a"),
    ]
    assert rows[2][4:8] == ["local/llama", "3", "3", "~unpriced"]
    assert rows[4][1:7] == ["402", "web", "fast", "-", "-", "-"]
    assert rows[4][-2:] == ["d", "budget_exceeded"]
    assert [row[10] for row in rows[1:]] == ["a", "b", "c", "d"]
    for number, name in enumerate(rows[0]):  # each value begins or ends where its name does
        at, end = head.index(name), head.index(name) + len(name)
        for line in lines:
            cell = line[at:] if not 5 <= number < 10 else line[:end]
            assert not line[end:] or not cell or cell.strip() == cell or name == "ERROR", line
    last = infermux("logs", "--ledger", path, "-n", "1").stdout.splitlines()
    assert [line.split() for line in last] == [head.split(), lines[-1].split()]
    assert infermux("logs", "--ledger", path, "-n", "0").stdout == ""


@pytest.mark.slow
def test_the_columns_of_logs_stay_where_they_are_while_more_calls_come(tmp_path: Path) -> None:
    path = keep(tmp_path / "l.db", call("old", at=NOW - 3000, caller="a-caller"))
    with following(str(path)) as (process, lines):
        eventually(lambda: len(lines) >= 2 or process.poll(), "the header and the first call")
        for n in range(100):  # until one was written after it began to look
            keep(path, call(f"new{n}", at=time.time() - 1, seconds=1, target="p/m", caller="b"))
            if len(lines) > 2:
                break
            time.sleep(0.1)
        eventually(lambda: len(lines) > 2, "another call")
    assert {line.index("fast") for line in lines[1:]} == {lines[0].index("MODEL")}
    assert sum(line.startswith("TIME") for line in lines) == 1


def test_logs_are_filtered(tmp_path: Path) -> None:
    slow, full = ProviderTimeout("slow"), ProviderRateLimited("full")
    over = [
        Attempt(Target("a", "m"), 10.0, error=slow),
        Attempt(Target("b", "n"), 11.0, usage=Usage(1, 1)),
    ]
    path = keep(
        tmp_path / "l.db",
        call("fine", caller="night"),
        call("slow", error=slow, at=NOON + 1),
        call("full", error=full, at=NOON + 2),
        call("over", at=NOON + 3, attempts=over),
    )

    def ids(*args: str) -> list[str]:
        lines = infermux("logs", "--ledger", str(path), "--json", *args).stdout.splitlines()
        return [json.loads(line)["id"] for line in lines]

    assert ids("--status", "ok") == ["fine", "over"]
    assert ids("--status", "error") == ["slow", "full"]
    assert ids("--status", "429") == ids("--status", "4xx") == ["full"]
    assert ids("--status", "5xx") == ["slow"]
    assert ids("--status", "' OR 1=1") == []
    assert ids("--caller", "night") == ["fine"]
    assert ids("--model", "gpt-5") == ["fine", "slow", "full"]
    assert ids("--model", "fast") == ["fine", "slow", "full", "over"]
    assert ids("--since", "2026-11-23T12:00:02") == ["full", "over"]


@contextmanager
def following(path: str, *args: str) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """`infermux logs -f`, and the lines that it has printed so far."""
    command = [*script("infermux"), "logs", "--ledger", path, "-f", *args]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    try:
        yield process, lines
    finally:
        process.kill()
        process.wait(PATIENCE)
        reader.join(PATIENCE)
        process.stdout.close()
        assert process.stderr is not None
        process.stderr.close()


@pytest.mark.slow
def test_logs_follow_each_call_that_ends_and_end_at_ctrl_c(tmp_path: Path) -> None:
    path = keep(tmp_path / "l.db", call("old", at=NOW - 3000, seconds=1))
    with following(str(path), "--json") as (process, lines):
        eventually(lambda: lines, "the first line")
        keep(path, call("quick", at=time.time() - 1, seconds=1))
        eventually(lambda: len(lines) == 2, "a second line")
        keep(
            path, call("long", at=time.time() - 900, seconds=900)
        )  # it began long before the last one that was seen
        eventually(lambda: len(lines) == 3, "a third line")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 0
        assert process.stderr is not None and process.stderr.read() == ""
    assert [json.loads(line)["id"] for line in lines] == ["old", "quick", "long"]


@pytest.mark.slow
def test_logs_follow_only_what_is_asked_for(tmp_path: Path) -> None:
    path = keep(tmp_path / "l.db", call("old", at=NOW - 1, seconds=1))
    with following(str(path), "-n", "0", "--caller", "night", "--json") as (_, lines):
        for n in range(200):  # until one was written after it began to look
            keep(
                path,
                call(f"web{n}", at=time.time() - 1, seconds=1),
                call(f"night{n}", caller="night", at=time.time() - 1, seconds=1),
            )
            if lines:
                break
            time.sleep(0.1)
        eventually(lambda: lines, "a line")
    assert {json.loads(line)["caller"] for line in lines} == {"night"}
    assert len({json.loads(line)["id"] for line in lines}) == len(lines)


# -- with a service --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_services_calls_are_told_while_it_runs(tmp_path: Path) -> None:
    ledger = str(tmp_path / "calls.db")
    with Service("--workers", "1", env={"INFERMUX_LEDGER__PATH": ledger}) as service:
        assert service.ask("/infer", HELLO).status == 200
        assert service.ask("/infer", HELLO | {"model": "nix"}).status == 404
        told: Any = [
            json.loads(line)
            for line in run(
                [*script("infermux"), "logs", "--json", "--ledger", ledger]
            ).stdout.splitlines()
        ]
        table = run(
            [*script("infermux"), "costs", "--by", "provider"],
            env={"INFERMUX_LEDGER__PATH": ledger},
        ).stdout
    assert [(line["status"], line["provider"], line["requested"]) for line in told] == [
        ("ok", "echo", "echo-v1"),
        ("404", "", "nix"),
    ]
    assert "hello" not in json.dumps(told)
    assert re.search(r"^echo +1 ", table, re.MULTILINE) and re.search(
        r"^TOTAL +2 +1 ", table, re.MULTILINE
    )
