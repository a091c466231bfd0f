"""Proof of a configuration: every fault that a vendor can have, against the router that it builds,
and what a client gets.

Of each model name the provider that is asked first fails, all others are well, and none of them is
a real one. Strategies are set to priority, so that it is no matter of luck which comes first; times
are scaled to a short deadline, so that their proportions stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

from .. import build
from ..config import Config, ProviderConfig
from ..config.schema import Secret, suggestion
from ..config.settings import Timeouts, Trace
from ..errors import ConfigError, InferMuxError
from ..planning.call import Call
from ..protocol import InferRequest
from ..providers import PRESETS
from ..routing.router import Router
from .faults import AFTER, BEFORE, FAULTS, HEALTHY, Fault
from .vendor import FaultyVendor

DEADLINE = 5.0  # seconds: the most that a call may take here
NORMAL_DEADLINE = 60.0  # seconds, of a configuration that names none
GRACE = 1.0  # seconds beyond its deadline that a busy machine may need
LEAST = 0.5  # seconds: no time-out is scaled to less
WORKERS = 8  # calls at a time: most of them only wait
WELL = "healthy"  # the row of a vendor without a fault
ANSWER, TOLD, WRONG = "answer", "cut, told", "SILENTLY WRONG"
_STAND_IN = (
    "vllm"  # a type without models and prices of its own, for a provider that is not behind HTTP
)
_MESSAGES = [{"role": "user", "content": "What does the quick brown fox do?"}]


class Row(NamedTuple):
    """What a client got from one call."""

    fault: str
    when: str  # "before" the first token of a stream, or "after" it
    streamed: bool
    outcome: str  # "answer", "error CODE", "cut, told" or "SILENTLY WRONG"
    attempts: int
    seconds: float
    failover: str  # "fired", "not needed", "none configured", "too late" or "did not fire"
    ok: bool
    model: str = ""  # the names whose calls go this way
    note: str = ""  # why it is not ok


class Case(NamedTuple):
    """A way through the providers, in their order, and the names that lead there."""

    names: tuple[str, ...]
    providers: tuple[str, ...]


class _Trial(NamedTuple):
    name: str
    when: str
    streamed: bool

    @property
    def fault(self) -> Fault:
        return FAULTS.get(self.name, HEALTHY)


class _Got(NamedTuple):
    text: str
    error: Exception | None
    begun: bool  # whether a stream had begun when it came to this
    seconds: float
    call: Call


def run(
    config: Config,
    *,
    faults: Iterable[str] | None = None,
    deadline: float | None = None,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Return a row for each call, in order, as *report* gets them while they come; raise
    ConfigError.

    No address and no key of the configuration is used. *deadline* is in seconds per call, and never
    more than the configuration's.
    """
    trials = _trials(FAULTS if faults is None else faults)
    if not config.providers:
        raise ConfigError("no provider is configured that could fail")
    alone = _isolated(config, min(config.reliability.deadline or DEADLINE, deadline or DEADLINE))
    rows = []
    with FaultyVendor() as healthy, ThreadPoolExecutor(WORKERS) as pool:
        for case in _cases(_pointed(alone, healthy)):
            for row in pool.map(lambda trial, case=case: _row(alone, case, trial, healthy), trials):
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


def verdict(rows: Sequence[Row]) -> int:
    """Return the exit code: 0 if there is a row, and every one is as it should be."""
    return 0 if rows and all(row.ok for row in rows) else 1


def table(rows: Sequence[Row]) -> str:
    """Return the rows as aligned text, by model, and a line that sums them up."""
    head = ("FAULT", "WHEN", "ASKED", "CLIENT GOT", "ATTEMPTS", "SECONDS", "FAILOVER", "")
    cells = [
        (
            row.fault,
            row.when,
            "stream" if row.streamed else "answer",
            row.outcome,
            str(row.attempts),
            f"{row.seconds:.2f}",
            row.failover,
            "ok" if row.ok else f"NOT OK: {row.note}",
        )
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [_line(head, widths)]
    for number, (row, each) in enumerate(zip(rows, cells, strict=True)):
        if row.model and (number == 0 or row.model != rows[number - 1].model):
            lines.append(f"-- {row.model}")
        lines.append(_line(each, widths))
    bad, wrong = sum(not row.ok for row in rows), sum(row.outcome == WRONG for row in rows)
    return "\n".join(
        [
            *lines,
            f"{len(rows)} calls: {len(rows) - bad} as they should be, {bad} not, {wrong} of them silently wrong",
        ]
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(
        cell.rjust(width) if number in (4, 5) else cell.ljust(width)
        for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _trials(faults: Iterable[str]) -> list[_Trial]:
    """Return what is tried: first that a healthy vendor is understood, then each fault in every way
    that it has.
    """
    trials = [_Trial(WELL, BEFORE, streamed) for streamed in (False, True)]
    for name in faults:
        if name not in FAULTS:
            raise ConfigError(f"there is no fault {name!r}{suggestion(name, FAULTS)}")
        fault = FAULTS[name]
        trials += [_Trial(name, BEFORE, False)] * fault.plain + [
            _Trial(name, when, True) for when in fault.stream
        ]
    return trials


# -- the configuration, away from the world --------------------------------------------------------


def _isolated(config: Config, limit: float) -> Config:
    """Return the configuration without keys, proxies, ledger and traces, its times scaled, its
    providers behind HTTP.
    """
    quiet = replace(
        config, keys=None, ledger=None, trace=Trace(), path=config.path or "the environment"
    )  # with a path: no plug-ins
    served = _served(quiet)
    factor = limit / (config.reliability.deadline or NORMAL_DEADLINE)
    providers = tuple(
        replace(
            each
            if _is_preset(each)
            else replace(
                each,
                type=each.type if each.type in PRESETS else _STAND_IN,
                models=served[each.name],
            ),
            api_key=Secret("chaos") if each.api_key else None,
            timeout=_scaled(each.timeout, factor, limit),
            proxy="",
            ca="",
            base_url="",
        )
        for each in config.providers
    )
    return replace(
        quiet,
        providers=providers,
        models=tuple(replace(each, strategy="priority", weights={}) for each in config.models),
        reliability=replace(config.reliability, deadline=limit),
    )


def _is_preset(provider: ProviderConfig) -> bool:
    """Whether another address leaves a provider its models."""
    return provider.type in PRESETS and (provider.name == provider.type or bool(provider.base_url))


def _served(config: Config) -> dict[str, tuple[str, ...]]:
    """Return the models that each provider lists, and those that a name leads to there."""
    with closing(build.router(config)) as router:
        found = {each.name: dict.fromkeys(each.models) for each in router.registry}
        for name in router.registry.names:
            for target in router.registry.resolve(name):
                found[target.provider][target.model] = None
        return {name: tuple(models) for name, models in found.items()}


def _scaled(wait: Timeouts, factor: float, limit: float) -> Timeouts:
    """Return the time-outs in the proportion to a deadline that they had; a stream's total ends
    with it.
    """
    first, idle, total = (
        max(min(LEAST, each), each * factor) for each in (wait.first_byte, wait.idle, wait.total)
    )
    return Timeouts(min(wait.connect, limit), first, idle, min(total, limit))


def _pointed(
    config: Config, healthy: FaultyVendor, first: str = "", faulty: FaultyVendor | None = None
) -> Router:
    """Return a fresh router whose provider *first* is at the faulty vendor, and every other at the
    healthy one.
    """
    providers = []
    for each in config.providers:
        vendor = faulty if faulty is not None and each.name == first else healthy
        providers.append(replace(each, base_url=vendor.url(PRESETS[each.type].dialect)))
    return build.router(replace(config, providers=tuple(providers)))


def _cases(router: Router) -> list[Case]:
    """Return the ways through the providers that the names lead; without names, that of the first
    provider's first model.
    """
    with closing(router):
        [first, *_] = router.registry
        names = router.registry.names or (
            first.models[0] if first.models else f"{first.name}/chaos",
        )
        ways: dict[tuple[str, ...], list[str]] = {}
        for name in names:
            ways.setdefault(
                tuple(dict.fromkeys(target.provider for target in router.registry.resolve(name))),
                [],
            ).append(name)
    return [Case(tuple(names), way) for way, names in ways.items()]


# -- one call --------------------------------------------------------------------------------------


def _row(config: Config, case: Case, trial: _Trial, healthy: FaultyVendor) -> Row:
    first = case.providers[0]
    with FaultyVendor(None if trial.name == WELL else trial.name, when=trial.when) as vendor:
        with closing(_pointed(config, healthy, first, vendor)) as router:
            got = _asked(router, InferRequest(case.names[0], _MESSAGES), streamed=trial.streamed)
        right, sent = (
            vendor.text if got.call.provider == first else healthy.text,
            len(vendor.requests),
        )
    outcome = _outcome(got, right)
    failover = _failover(case, trial, got, outcome)
    note = _complaint(config, case, trial, got, outcome, sent)
    return Row(
        trial.name,
        trial.when,
        trial.streamed,
        outcome,
        len(got.call.attempts),
        got.seconds,
        failover,
        not note,
        ", ".join(case.names),
        note,
    )


def _asked(router: Router, request: InferRequest, *, streamed: bool) -> _Got:
    """Ask as a client would; whatever is raised is an outcome."""
    calls: list[Call] = []
    router.observers.append(calls.append)
    text, error, begun, started = "", None, False, time.monotonic()
    try:
        if streamed:
            stream = router.stream(request)
            begun = True
            with closing(stream):
                for chunk in stream:
                    text += chunk.text
        else:
            text = router.infer(request).content
    except Exception as raised:  # what is no error of ours is a finding, not an end
        error = raised
    return _Got(
        text, error, begun, time.monotonic() - started, calls[-1] if calls else Call(request)
    )


def _outcome(got: _Got, right: str) -> str:
    if got.error is None:
        return ANSWER if got.text == right else WRONG
    if got.begun:
        return TOLD
    return f"error {got.error.code if isinstance(got.error, InferMuxError) else type(got.error).__name__}"


def _failover(case: Case, trial: _Trial, got: _Got, outcome: str) -> str:
    if any(attempt.target.provider != case.providers[0] for attempt in got.call.attempts):
        return "fired"
    if outcome == ANSWER or not trial.fault.failover:
        return "not needed"
    if len(case.providers) == 1:
        return "none configured"
    return "too late" if trial.when == AFTER else "did not fire"


def _complaint(
    config: Config, case: Case, trial: _Trial, got: _Got, outcome: str, sent: int
) -> str:
    """Return what is wrong with a call, or nothing."""
    most, limit = config.reliability.attempts, config.reliability.deadline or DEADLINE
    if outcome == WRONG:
        return "what the client has is not the whole answer, and nobody told it"
    if got.error is not None and not isinstance(got.error, InferMuxError):
        return "this is no error of InferMux's own"
    if trial.name == WELL and outcome != ANSWER:
        return "it does not answer even while every vendor is well"
    if sent > most or len(got.call.attempts) > most:
        return f"more than {most} requests"
    if got.seconds > limit * (2 if trial.when == AFTER else 1) + GRACE:
        return f"longer than the deadline of {limit:g} s"
    if (
        trial.when == BEFORE
        and trial.fault.failover
        and len(case.providers) > 1
        and outcome != ANSWER
    ):
        return f"{case.providers[1]} could have answered"
    return ""
