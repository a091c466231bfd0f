"""Chaos tests of a configuration: they show what a client gets when a vendor fails.

For each fault and model name, the first provider fails and all others are healthy; all of them are
`FaultyVendor`s on loopback. Some requests have parameters that not every format can express. Times
are scaled to a short deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import Any, NamedTuple

from .. import build
from ..components.providers import ECHO
from ..config import Config, ProviderConfig
from ..config.schema import Secret, suggestion
from ..config.settings import NameTimeouts, Reliability, Timeouts, Trace
from ..errors import ConfigError, InferMuxError, UnsupportedParameter
from ..planning.call import Call
from ..protocol import InferRequest
from ..providers import PRESETS
from ..routing.router import Router
from .faults import AFTER, BEFORE, FAULTS, HEALTHY, MEANINGS, PREFERENCES, Fault
from .vendor import FaultyVendor

DEADLINE = 5.0  # seconds that a call may take
NORMAL_DEADLINE = 60.0  # seconds: that of a configuration without one
GRACE = 1.0  # seconds beyond its deadline that a busy machine may need
MIN_TIMEOUT = 0.5  # seconds: no timeout is scaled to less
WORKERS = 8  # calls at a time; most of them only wait
ANSWER, CUT, WRONG = "answer", "cut, told", "SILENTLY WRONG"
_STAND_IN = "vllm"  # a type without models and prices; it replaces types that are not HTTP
_SAYS_ALL = ("openai", "azure")  # dialects that can express every fault's request
_MESSAGES = [{"role": "user", "content": "What does the quick brown fox do?"}]


class Row(NamedTuple):
    fault: str
    when: str  # BEFORE the first token of a stream, or AFTER it
    streamed: bool
    outcome: str  # ANSWER, "error CODE", CUT or WRONG
    attempts: int
    seconds: float
    failover: str  # see `_Result.failover`
    ok: bool
    model: str = ""  # the model names with these providers
    note: str = ""  # why it is not ok

    @property
    def silently_wrong(self) -> bool:
        return self.outcome == WRONG


class Case(NamedTuple):
    """Providers in order, and the model names that are routed to them in the same way."""

    names: tuple[str, ...]
    providers: tuple[str, ...]


class _Trial(NamedTuple):
    name: str
    when: str
    streamed: bool

    @property
    def fault(self) -> Fault:
        return FAULTS.get(self.name, HEALTHY)


class _Result(NamedTuple):
    case: Case
    trial: _Trial
    outcome: str
    error: Exception | None
    seconds: float
    call: Call
    sent: int  # requests that the faulty vendor received
    able: tuple[str, ...]  # the providers that can express the request

    @property
    def others(self) -> list[str]:
        """The providers that could answer instead of the first one."""
        return [name for name in self.able if name != self.case.providers[0]]

    @property
    def failover(self) -> str:
        if any(each.target.provider != self.case.providers[0] for each in self.call.attempts):
            return "fired"
        if self.outcome == ANSWER or not self.trial.fault.failover:
            return "not needed"
        if not self.others:
            return "none configured"
        return "too late" if self.trial.when == AFTER else "did not fire"

    def problem(self, limits: Reliability) -> str:
        """Return what is wrong with the call, or ""."""
        fault, when = self.trial.fault, self.trial.when
        most = self.call.most_attempts(limits.attempts)
        if self.outcome == WRONG:
            return "the client got a truncated answer without an error"
        if self.error is not None and not isinstance(self.error, InferMuxError):
            return "the exception is not an InferMux error"
        if fault is HEALTHY and self.outcome != ANSWER:
            return "no answer although every vendor is healthy"
        if max(self.sent, len(self.call.attempts)) > most:
            return f"more than {most} requests"
        if self.seconds > limits.deadline * (2 if when == AFTER else 1) + GRACE:
            return f"longer than the deadline of {limits.deadline:g} s"
        if when == BEFORE and fault.failover and self.others and self.outcome != ANSWER:
            return f"{self.others[0]} could have answered"
        may_refuse = len(self.case.providers) == 1 and fault.params is PREFERENCES
        if isinstance(self.error, UnsupportedParameter) and self.able and not may_refuse:
            return f"400 although {self.able[0]} can express the request"
        return ""


def run(
    config: Config,
    *,
    faults: Iterable[str] | None = None,
    deadline: float | None = None,
    report: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Make the calls; return a row for each, and pass it to *report* at once; raise ConfigError.

    No address or key of the configuration is used. *deadline* is in seconds per call, at most the
    configuration's; by default DEADLINE.
    """
    trials = _trials(FAULTS if faults is None else faults)
    if not config.providers:
        raise ConfigError("no provider is configured")
    own = config.reliability.deadline or NORMAL_DEADLINE
    alone, rows = _isolated(config, min(own, deadline or DEADLINE)), []
    with FaultyVendor() as healthy, ThreadPoolExecutor(WORKERS) as pool:
        for case in _cases(alone, _pointed(alone, healthy)):
            for row in pool.map(lambda trial, case=case: _row(alone, case, trial, healthy), trials):
                rows.append(row)
                if report is not None:
                    report(row)
    return rows


def verdict(rows: Sequence[Row]) -> int:
    """Return the exit code: 0 if there are rows and all are ok, else 1."""
    return int(not rows or not all(row.ok for row in rows))


def _trials(faults: Iterable[str]) -> list[_Trial]:
    trials = [_Trial("healthy", BEFORE, streamed) for streamed in (False, True)]
    for name in faults:
        if name not in FAULTS:
            raise ConfigError(f"there is no fault {name!r}{suggestion(name, FAULTS)}")
        fault = FAULTS[name]
        trials += [_Trial(name, BEFORE, False)] * fault.plain
        trials += [_Trial(name, when, True) for when in fault.stream]
    return trials


# -- the configuration, isolated --


def _isolated(config: Config, limit: float) -> Config:
    """Return the configuration without secrets and services, all HTTP, with scaled times."""
    quiet = replace(config, keys=None, ledger=None, trace=Trace(), environment=False)
    named = {each.name for each in config.providers}
    if config.environment and config.models and ECHO not in named:
        echo = ProviderConfig(ECHO, ECHO)
        quiet = replace(quiet, providers=(*config.providers, echo))
    served = _served(quiet)
    factor = limit / (config.reliability.deadline or NORMAL_DEADLINE)

    def isolated(each: ProviderConfig) -> ProviderConfig:
        preset = each.type in PRESETS and (each.name == each.type or each.base_url)
        if not preset:  # its models would change with its address
            kind = each.type if each.type in PRESETS else _STAND_IN
            each = replace(each, type=kind, models=served[each.name])
        return replace(
            each,
            api_key=Secret("chaos") if each.api_key else None,
            timeout=_scaled(each.timeout, factor, limit),
            api="chat",  # FaultyVendor knows no other
            proxy="",
            ca="",
            base_url="",
            headers={},
            rpm=0,
            tpm=0,
        )

    # the first target is known, and asked first
    plain: Any = {"strategy": "priority", "sticky": False, "weights": {}, "mirror": None}
    return replace(
        quiet,
        providers=tuple(map(isolated, quiet.providers)),
        models=tuple(
            replace(each, deadline=0.0, timeout=NameTimeouts(), **plain) for each in config.models
        ),
        reliability=replace(config.reliability, deadline=limit),
    )


def _served(config: Config) -> dict[str, tuple[str, ...]]:
    with closing(build.router(config)) as router:
        found = {each.name: dict.fromkeys(each.models) for each in router.registry}
        for name in router.registry.names:
            for target in router.registry.resolve(name):
                found[target.provider][target.model] = None
        return {name: tuple(models) for name, models in found.items()}


def _scaled(given: Timeouts, factor: float, limit: float) -> Timeouts:

    def scaled(seconds: float) -> float:
        return max(min(MIN_TIMEOUT, seconds), seconds * factor)

    total = min(scaled(given.total), limit)
    return Timeouts(min(given.connect, limit), scaled(given.first_byte), scaled(given.idle), total)


def _pointed(
    config: Config, healthy: FaultyVendor, faulty: Mapping[str, FaultyVendor] = {}
) -> Router:
    """Return a router whose providers call *healthy*, or their own vendor in *faulty*."""

    def pointed(each: ProviderConfig) -> ProviderConfig:
        vendor = faulty.get(each.name, healthy)
        return replace(each, base_url=vendor.url(PRESETS[each.type].dialect))

    return build.router(replace(config, providers=tuple(map(pointed, config.providers))))


def _cases(config: Config, router: Router) -> list[Case]:
    own = {each.name: (each.attempts, each.on_unsupported) for each in config.models}
    with closing(router):
        registry = router.registry
        [first, *_] = registry
        default = first.models[0] if first.models else f"{first.name}/chaos"
        cases: dict[Any, list[str]] = {}
        for name in registry.names or (default,):
            providers = dict.fromkeys(target.provider for target in registry.resolve(name))
            cases.setdefault((tuple(providers), own.get(name)), []).append(name)
    return [Case(tuple(names), providers) for (providers, _), names in cases.items()]


# -- one call --


def _row(config: Config, case: Case, trial: _Trial, healthy: FaultyVendor) -> Row:
    fault = None if trial.fault is HEALTHY else trial.name
    with FaultyVendor(fault, when=trial.when) as vendor:
        got = _called(config, case, trial, healthy, vendor)
    note, attempts = got.problem(config.reliability), len(got.call.attempts)
    what = *trial, got.outcome, attempts, got.seconds, got.failover
    return Row(*what, not note, ", ".join(case.names), note)


def _called(
    config: Config, case: Case, trial: _Trial, healthy: FaultyVendor, faulty: FaultyVendor
) -> _Result:
    """Make a call as a client would; the result holds its exception, if any."""
    first = case.providers[0]
    request = InferRequest(case.names[0], _MESSAGES, params=trial.fault.params)
    calls: list[Call] = []
    text, error, begun = "", None, False
    with closing(_pointed(config, healthy, {first: faulty})) as router:
        router.observers.append(calls.append)
        started = time.monotonic()
        try:
            if trial.streamed:
                with closing(router.stream(request)) as stream:
                    begun = True
                    for chunk in stream:
                        text += chunk.text
            else:
                text = router.infer(request).content
        except Exception as raised:  # others than ours are findings
            error = raised
        seconds = time.monotonic() - started
    call = calls[-1] if calls else Call(request)
    if error is None:
        right = (faulty if call.provider == first else healthy).text
        outcome = ANSWER if text == right else WRONG
    elif begun:
        outcome = CUT
    else:
        outcome = f"error {getattr(error, 'code', type(error).__name__)}"
    able = case.providers
    if trial.fault.params is MEANINGS:
        dialects = {each.name: PRESETS[each.type].dialect for each in config.providers}
        able = tuple(name for name in able if dialects[name] in _SAYS_ALL)
    return _Result(case, trial, outcome, error, seconds, call, len(faulty.requests), able)
