"""Runs the tests in several processes, forked once the tests are collected.

pytest-xdist does more; it would be one more package that the tests need.

A process takes the next file when it has run one: what the tests of a file share is made once. The
first process runs no test. It reports the tests of a file when all of them have ended, so what is
shown is what one process shows. `--workers 1` runs everything in one process; so does an option
that stops at a failure, or that leaves the terminal to the tests.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import pytest
import support

MOST = 4  # processes, unless `--workers` says more
FEW = 500  # tests that are not worth another process
LONGEST = [  # files that would be waited for at the end if they began late
    f"tests/{name}.py"
    for name in (
        "clients/test_early_headers",
        "ledger/test_budgets",
        "ledger/test_postgres",
        "server/test_memory",
        "server/test_slow_clients",
        "server/test_postgres",
        "clients/test_stumbling",
        "server/test_hosts",
        "server/test_load",
    )
]
FORK = multiprocessing.get_context("fork")


class Event(NamedTuple):
    """A call of a hook of pytest by a process that runs tests."""

    hook: str
    test: str
    about: Any  # a serialized report, or the place of the test

    @property
    def file(self) -> str:
        return self.test.partition("::")[0]


def pytest_addoption(parser: pytest.Parser) -> None:
    text = f"run the tests in N processes (by default one for each core, {MOST} at most)"
    parser.addoption("--workers", type=int, metavar="N", help=text)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Let processes run the tests, and report what they tell; None leaves it to pytest."""
    found: dict[str, list[pytest.Item]] = {}
    for item in session.items:
        found.setdefault(item.nodeid.partition("::")[0], []).append(item)
    first = [name for name in LONGEST if name in found]
    files = [found[name] for name in dict.fromkeys([*first, *found])]
    count = min(_wanted(session), len(files))
    if count < 2 or session.testsfailed:
        return None
    session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]  # one for all
    numbers = FORK.SimpleQueue()
    for number in [*range(len(files)), *[None] * count]:
        numbers.put(number)
    with contextlib.ExitStack() as stack:
        started = [_worker(session, files, numbers) for _ in range(count)]
        _report(session, [stack.enter_context(each) for each in started])
    return True


def _wanted(session: pytest.Session) -> int:
    option = session.config.option
    if option.collectonly or option.maxfail or option.usepdb or option.capture == "no":
        return 1
    if hasattr(session.config, "workerinput"):  # this is a process of pytest-xdist
        return 1
    default = 1 if len(session.items) < FEW else min(os.cpu_count() or 1, MOST)
    return default if option.workers is None else int(option.workers)


# -- the first process -----------------------------------------------------------------------------


@contextlib.contextmanager
def _worker(
    session: pytest.Session, files: Sequence[Sequence[pytest.Item]], numbers: Any
) -> Iterator[Connection]:
    """Fork a process; yield what it tells. Wait for its end, or end it if this run was stopped."""
    mine, its = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_work, args=(session, files, numbers, its))
    process.start()
    its.close()
    try:
        yield mine
    except BaseException:
        process.terminate()
        raise
    finally:
        mine.close()
        process.join()


def _report(session: pytest.Session, pipes: Sequence[Connection]) -> None:
    """Report what the processes tell, a file at a time; stop if one died before it said its end."""
    told: dict[Any, list[Event]] = {pipe: [] for pipe in pipes}
    died = []
    while told:
        for pipe in wait(list(told)):
            try:
                event = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                event = None
                died += [told[pipe][-1].test if told[pipe] else "its start"]
            if told[pipe] and (event is None or event.file != told[pipe][0].file):
                for each in told[pipe]:
                    _replay(session.config, each)
                told[pipe].clear()
            if event is None:
                del told[pipe]
            else:
                told[pipe].append(event)
    if died:
        raise session.Interrupted(f"a process that ran tests died at {', '.join(died)}")


def _replay(config: pytest.Config, event: Event) -> None:
    if event.hook == "pytest_runtest_logreport":
        report = config.hook.pytest_report_from_serializable(config=config, data=event.about)
        config.hook.pytest_runtest_logreport(report=report)
    else:
        getattr(config.hook, event.hook)(nodeid=event.test, location=event.about)


# -- a process that runs tests ---------------------------------------------------------------------


class _Teller:
    """A plugin that sends to the first process what is to be reported."""

    def __init__(self, config: pytest.Config, pipe: Connection) -> None:
        self._config, self._pipe = config, pipe

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self._pipe.send(Event("pytest_runtest_logstart", nodeid, location))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        to_serializable = self._config.hook.pytest_report_to_serializable
        data = to_serializable(config=self._config, report=report)
        self._pipe.send(Event("pytest_runtest_logreport", report.nodeid, data))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self._pipe.send(Event("pytest_runtest_logfinish", nodeid, location))


def _work(
    session: pytest.Session, files: Sequence[Sequence[pytest.Item]], numbers: Any, pipe: Connection
) -> None:
    plugins = session.config.pluginmanager
    plugins.unregister(name="terminalreporter")
    plugins.register(_Teller(session.config, pipe))
    if capture := plugins.getplugin("capturemanager"):  # into files of this process alone
        capture.stop_global_capturing()
        capture.start_global_capturing()
    following = (item for number in iter(numbers.get, None) for item in files[number])
    item = next(following, None)
    while item is not None:
        # What tests share ends where the next does not need it, so the next file is taken before
        # the last test of this one runs.
        after = next(following, None)
        session.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        item = after
    support.at_end.close()
    pipe.send(None)
