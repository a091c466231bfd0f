"""The measurements; each adds what it finds to `figures`, under the names that table.py knows."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from infermux import EchoProvider, InferRequest, Registry, Router
from infermux.call import Call, new_id
from infermux.ledger import Budget, record
from infermux.ledger.sqlite import SQLiteLedger

from ..support import ROOT
from . import gateway
from .gateway import BUDGET, KEY, KEYS, LEDGER, NO_LEDGER, SPANS, Gateway
from .load import Ask, Load, Tally, get, post
from .upstream import EVENTS

SAID = [{"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "Say something about foxes, liquor jugs and zebras in one short paragraph, please."}]
MORE = {"messages": SAID, "temperature": 0.7, "max_tokens": 128}
ECHO = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
# what is on in each subject; the baseline has nothing
SUBJECTS = {"naive": (), "routing": (NO_LEDGER,), "full": (KEYS, LEDGER), "budget": (KEYS + BUDGET, LEDGER), "spans": (KEYS, LEDGER, SPANS)}


class Scale(NamedTuple):
    """How long and how often."""

    rounds: int
    seconds: float
    crowd: int


class Bench:
    """Runs the parts that are *wanted*; `figures` holds every single value, `notes` what went wrong."""

    def __init__(self, scale: Scale, wanted: set[str], upstream: str, folder: str, say: Callable[[str], None]) -> None:
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.notes: list[str] = []
        self._scale = scale
        self._wanted = wanted
        self._upstream = upstream
        self._folder = folder
        self._say = say

    def run(self) -> None:
        for number in range(self._scale.rounds if self._wanted & {"cpu", "latency", "infer", "events", "start"} else 0):
            for subject in SUBJECTS:
                self._say(f"round {number + 1} of {self._scale.rounds}: {subject}")
                self._subject(subject)
        if "latency" in self._wanted:
            self._latency("upstream", int(self._upstream.rpartition(":")[2]), chat())
        for name, part in (("calls", self._calls), ("streams", self._streams), ("start", self._start), ("ledger", self._ledger)):
            if name in self._wanted:
                self._say(name)
                part()

    # -- one subject, in each round ------------------------------------------------------------------------------------

    def _subject(self, name: str) -> None:
        baseline = name == "naive"
        key = "" if name in ("naive", "routing") else KEY
        service = gateway.naive(self._upstream) if baseline else gateway.infermux(SUBJECTS[name], self._folder, self._upstream)
        with service:
            self.figures[f"start/{name}"].append(service.started)
            self.figures[f"pss/{name}"].append(service.pss(worker=True))
            self.figures[f"pss_all/{name}"].append(service.pss())
            if "cpu" in self._wanted:
                self._cpu(name, service, chat(key=key))
            if "latency" in self._wanted and name in ("naive", "routing", "full"):
                self._latency(name, service.port, chat(key=key))
            if "infer" in self._wanted and name in ("naive", "routing", "full"):
                self._infer(name, service, key)
            if "events" in self._wanted and name in ("naive", "routing"):
                self._events(name, service)

    def _cpu(self, name: str, service: Gateway, ask: Ask) -> None:
        self._drive(name, service, ask, 16, self._scale.seconds / 3)        # warm
        spans, before = self._settled(name), service.cpu
        tally = self._drive(name, service, ask, 16, self._scale.seconds)
        received = self._settled(name) - spans
        self._per(f"cpu/{name}", service.cpu - before, tally.answered)
        if tally.answered:
            self.figures[f"rps/{name}"].append(tally.answered / tally.seconds)
        if tally.answered and name == "spans":
            self.figures["received"].append(received / tally.answered)

    def _settled(self, name: str) -> int:
        """Return how many spans have come, once no more do: the work for them belongs to the calls before."""
        if name != "spans":
            return 0
        before, now = -1, self._spans()
        while now != before:
            time.sleep(0.1)
            before, now = now, self._spans()
        return now

    def _spans(self) -> int:
        with gateway.DIRECT.open(self._upstream, timeout=20) as answer:
            return int(answer.read())

    def _latency(self, name: str, port: int, ask: Ask) -> None:
        Load(port, ask, 1, self._scale.seconds / 10).run()
        tally = Load(port, ask, 1, self._scale.seconds / 2).run()
        if tally.answered:
            self.figures[f"p50/{name}"].append(_percentile(tally.latencies, 50))
            self.figures[f"p99/{name}"].append(_percentile(tally.latencies, 99))

    def _infer(self, name: str, service: Gateway, key: str) -> None:
        ask = post("/bare" if name == "naive" else "/infer", ECHO, "echo: hello", key=key)
        self._drive(name, service, ask, 16, self._scale.seconds / 6)
        before = service.cpu
        tally = self._drive(name, service, ask, 16, self._scale.seconds / 2)
        self._per(f"infer/{name}", service.cpu - before, tally.answered)

    def _events(self, name: str, service: Gateway) -> None:
        kinds = {"same": stream("bench-0-10")}
        if name != "naive":
            kinds["translated"] = stream_anthropic("bench-0-10")
        for kind, ask in kinds.items():
            self._drive(name, service, ask, 16, 0)
            before = service.cpu
            tally = self._drive(name, service, ask, 16, self._scale.seconds / 2)
            self._per(f"events/{name}/{kind}", service.cpu - before, tally.answered * EVENTS)

    def _drive(self, name: str, service: Gateway, ask: Ask, connections: int, seconds: float, **more: Any) -> Tally:
        tally = Load(service.port, ask, connections, seconds, **more).run()
        if tally.failed:
            self.notes.append(f"{name}: {tally.failed} of {tally.failed + tally.answered} answers were not whole: {tally.failure!r}")
        return tally

    def _per(self, figure: str, seconds: float, count: int) -> None:
        if count:
            self.figures[figure].append(seconds / count * 1e6)

    # -- a crowd -------------------------------------------------------------------------------------------------------

    def _calls(self) -> None:
        self._crowd("calls", chat("bench-2000-0", key=KEY))

    def _streams(self) -> None:
        self._crowd("streams", stream("bench-0-100", key=KEY))

    def _crowd(self, name: str, ask: Ask) -> None:
        """Everybody at once, to one worker with everything on that has threads for them all."""
        crowd = self._scale.crowd
        with gateway.infermux((KEYS, LEDGER), self._folder, self._upstream, threads=crowd * 7 // 5) as service:
            self._drive(name, service, chat(key=KEY), 16, self._scale.seconds / 3)
            rest, peak, before = service.pss(), [0.0], service.cpu
            health = get("/healthz" if service.status("/healthz") == 200 else "/providers")
            tally = self._drive(name, service, ask, crowd, 0, probe=health, look=(1.5, lambda: peak.append(service.pss())))
            for figure, value in {
                "whole": tally.answered / crowd, "killed": service.killed, "memory": (peak[-1] - rest) / crowd,
                "ttfb": _percentile(tally.firsts or [0.0], 99), "seconds": tally.seconds,
                "health50": _percentile(tally.probes or [0.0], 50), "health99": _percentile(tally.probes or [0.0], 99),
                "health_max": max(tally.probes or [0.0]),
            }.items():
                self.figures[f"{name}/{figure}"].append(value)
            self._per(f"{name}/cpu", service.cpu - before, tally.answered)

    # -- without a service ---------------------------------------------------------------------------------------------

    def _start(self) -> None:
        script = ("import sys, time; start = time.perf_counter(); import infermux; print(time.perf_counter() - start, "
                  "len({'flask', 'requests'} & set(sys.modules)))")
        for _ in range(2 * self._scale.rounds + 1):
            took, loaded = _output("-c", script).split()
            self.figures["import"].append(float(took))
            self.figures["loaded"].append(int(loaded))
            start = time.perf_counter()
            assert _output("-m", "infermux", "infer", "hello") == "echo: hello\n"
            self.figures["command"].append(time.perf_counter() - start)

    def _ledger(self) -> None:
        """Reserve, settle, and the rows of a call and its attempt; the median of single calls."""
        ended: list[Call] = []
        Router(Registry([EchoProvider()]), observers=[ended.append]).infer(InferRequest("echo-v1", [{"role": "user", "content": "hello"}]))
        ledger, budget = SQLiteLedger(Path(self._folder) / "alone.db"), Budget("web", 10**15)
        for _ in range(int(1000 * self._scale.seconds)):
            call = dataclasses.replace(ended[0], id=new_id(), start_ns=time.time_ns())
            start = time.process_time_ns()
            ledger.settle(record(call), ledger.reserve(budget, 10**6, call_id=call.id, at=time.time()))
            self.figures["ledger"].append((time.process_time_ns() - start) / 1000)
        ledger.close()


def chat(model: str = "bench-0-0", *, key: str = "") -> Ask:
    return post("/v1/chat/completions", {"model": model, **MORE}, "zebras jump.", key=key, end="fp_bench")


def stream(model: str, *, key: str = "") -> Ask:
    return post("/v1/chat/completions", {"model": model, **MORE, "stream": True}, '"content":"word ', key=key, times=EVENTS, end="[DONE]")


def stream_anthropic(model: str) -> Ask:
    body = {"model": model, "system": SAID[0]["content"], "messages": SAID[1:], "max_tokens": 128, "stream": True}
    return post("/v1/messages", body, '"word ', times=EVENTS, end="message_stop")


def _percentile(values: list[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1] if len(values) > 1 else values[0]


def _output(*arguments: str) -> str:
    """Return what a new interpreter prints, on the gateway's core."""
    with gateway.on_core(gateway.CORES[0]):
        command = [sys.executable, *arguments]
        return subprocess.run(command, cwd=ROOT, env=gateway.ENVIRONMENT, text=True, capture_output=True, check=True).stdout
