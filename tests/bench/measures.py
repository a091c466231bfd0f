"""The measurements; each adds its results to `figures`, under the names in table.py."""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from infermux import EchoProvider, InferRequest, Registry, Router
from infermux.ledger import Budget
from infermux.ledger.sqlite import SQLiteLedger
from infermux.planning.call import Call
from infermux.routing.accounting import record

from ..support import ROOT
from . import agents, gateway, postgres, rows
from .gateway import BUDGET, KEY, KEYS, LEDGER, NO_LEDGER, OTHERS, SPANS, Gateway, Upstream
from .load import Ask, Load, Tally, get, post
from .upstream import EVENTS

SAID = [
    {"role": "system", "content": "You are a helpful assistant."},
    {
        "role": "user",
        "content": "Say something about foxes, liquor jugs and zebras in one short paragraph, please.",
    },
]
MORE = {"messages": SAID, "temperature": 0.7, "max_tokens": 128}
ECHO = {"model": "echo-v1", "messages": [{"role": "user", "content": "hello"}]}
TURNS = 3  # of a subject in a round, after one to warm up
# what is on in each subject; the baseline has nothing
SUBJECTS = {
    "naive": (),
    "routing": (NO_LEDGER,),
    "default": (LEDGER,),
    "full": (KEYS, LEDGER),
    "others": (KEYS, LEDGER, OTHERS),
    "budget": (KEYS + BUDGET, LEDGER),
    "spans": (KEYS, LEDGER, SPANS),
    "naive-tls": (),
    "routing-tls": (NO_LEDGER,),
}


def chat(model: str = "bench-0-0", *, key: str = "") -> Ask:
    return post(
        "/v1/chat/completions", {"model": model, **MORE}, "zebras jump.", key=key, end="fp_bench"
    )


def stream(model: str, *, key: str = "") -> Ask:
    return post(
        "/v1/chat/completions",
        {"model": model, **MORE, "stream": True},
        '"content":"word ',
        key=key,
        times=EVENTS,
        end="[DONE]",
    )


def stream_anthropic(model: str) -> Ask:
    body = {
        "model": model,
        "system": SAID[0]["content"],
        "messages": SAID[1:],
        "max_tokens": 128,
        "stream": True,
    }
    return post("/v1/messages", body, '"word ', times=EVENTS, end="message_stop")


class Scale(NamedTuple):
    """How long and how often."""

    rounds: int
    seconds: float
    crowd: int


class Course(NamedTuple):
    """One subject doing one thing; `answers` counts what it is measured by, such as the events of a
    stream.
    """

    subject: str
    figure: str
    ask: Ask
    answers: int = 1


def _courses() -> dict[str, tuple[int, float, list[Course]]]:
    """Return for each part how many connections, which share of the time, and who does what."""
    keys = {name: KEY if KEYS in "".join(features) else "" for name, features in SUBJECTS.items()}
    few, paths = ("naive", "routing", "full"), {"naive": "/bare"}
    loaded = [name for name in SUBJECTS if name != "default" and not name.endswith("-tls")]
    streamed = stream("bench-0-10")
    streams = {
        "naive/same": streamed,
        "routing/same": streamed,
        "routing/translated": stream_anthropic("bench-0-10"),
    }
    return {
        "cpu": (16, 1, [Course(name, f"cpu/{name}", chat(key=keys[name])) for name in loaded]),
        "wire": (
            16,
            1 / 2,
            [
                *[Course(name, f"wire/{name}/wide", chat("bench-wide")) for name in few[:2]],
                *[Course(f"{name}-tls", f"wire/{name}/tls", chat()) for name in few[:2]],
            ],
        ),
        "latency": (
            1,
            1 / 2,
            [
                Course(name, f"latency/{name}", chat(key=keys.get(name, "")))
                for name in ("upstream", *few)
            ],
        ),
        "infer": (
            16,
            1 / 2,
            [
                Course(
                    name,
                    f"infer/{name}",
                    post(paths.get(name, "/infer"), ECHO, "echo: hello", key=keys[name]),
                )
                for name in ("naive", "routing", "default", "full")
            ],
        ),
        "events": (
            16,
            1 / 2,
            [
                Course(name.partition("/")[0], f"events/{name}", ask, EVENTS)
                for name, ask in streams.items()
            ],
        ),
        "agents": (4, 1, _agents()),
    }


def _agents() -> list[Course]:
    """Return who sends what agents send: the same format at both ends, and translated."""
    shapes = agents.SHAPES.items()
    return [
        *[
            Course(subject, f"agents/{subject}/{name}", agents.chat(body))
            for name, body in shapes
            for subject in ("naive", "routing")
        ],
        *[
            Course("routing", f"agents/translated/{name}", agents.anthropic(body))
            for name, body in shapes
            if name != "images"
        ],
    ]


COURSES = _courses()


class Run:
    """What a course has taken so far, over all of its turns in a round."""

    def __init__(self) -> None:
        self.cpu = self.seconds = 0.0
        self.spans = 0
        self.latencies: list[float] = []


class Bench:
    """Runs the parts that are *wanted*; `figures` holds every single value, `notes` what went
    wrong.
    """

    def __init__(
        self,
        scale: Scale,
        wanted: set[str],
        upstream: Upstream,
        folder: str,
        say: Callable[[str], None],
    ) -> None:
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.notes: list[str] = []
        self._scale = scale
        self._wanted = wanted
        self._upstream = upstream
        self._folder = folder
        self._say = say

    def run(self) -> None:
        needed = {
            course.subject for part in self._wanted & set(COURSES) for course in self._courses(part)
        }
        needed |= {"naive", "full"} if "start" in self._wanted else set()
        for number in range(self._scale.rounds if needed else 0):
            self._say(f"round {number + 1} of {self._scale.rounds}")
            with ExitStack() as stack:
                self._round(
                    {
                        name: stack.enter_context(self._service(name))
                        for name in SUBJECTS
                        if name in needed
                    }
                )
        for name, part in (
            ("calls", self._calls),
            ("streams", self._streams),
            ("start", self._start),
            ("ledger", self._ledger),
            ("rows", self._rows),
            ("postgres", self._postgres),
        ):
            if name in self._wanted:
                self._say(name)
                part()

    # -- a round: all subjects are up, and take short turns, so that whatever else the machine does hits them alike

    def _courses(self, part: str) -> list[Course]:
        """Return who does what; nobody speaks TLS without a certificate."""
        return [
            course
            for course in COURSES[part][2]
            if self._upstream.ca or not course.subject.endswith("-tls")
        ]

    def _service(self, name: str) -> Gateway:
        upstream = (
            self._upstream._replace(scheme="https")
            if name.endswith("-tls")
            else self._upstream._replace(ca="")
        )
        return (
            gateway.infermux(name, SUBJECTS[name], self._folder, upstream)
            if SUBJECTS[name]
            else gateway.naive(upstream)
        )

    def _round(self, services: dict[str, Gateway]) -> None:
        for name, service in services.items():
            self.figures[f"start/{name}"].append(service.started)
            self.figures[f"pss/{name}"].append(service.pss(worker=True))
            self.figures[f"pss_all/{name}"].append(service.pss())
        for part, (connections, share, _) in COURSES.items():
            if part in self._wanted:
                courses = self._courses(part)
                runs = {course.figure: Run() for course in courses}
                for turn in range(TURNS + 1):
                    for course in courses:
                        run = Run() if turn == 0 else runs[course.figure]  # the first turn warms up
                        self._turn(
                            services.get(course.subject),
                            course,
                            connections,
                            self._scale.seconds * share / TURNS,
                            run,
                        )
                for course in courses:
                    self._note(part, course, runs[course.figure])

    def _turn(
        self, service: Gateway | None, course: Course, connections: int, seconds: float, run: Run
    ) -> None:
        spans = self._settled(course.subject)
        before = service.cpu if service else 0.0
        tally = self._drive(
            course.figure,
            service.port if service else self._upstream.port,
            course.ask,
            connections,
            seconds,
        )
        run.spans += self._settled(course.subject) - spans
        run.cpu += service.cpu - before if service else 0.0
        run.seconds += tally.seconds
        run.latencies += tally.latencies

    def _note(self, part: str, course: Course, run: Run) -> None:
        answered = len(run.latencies)
        if not answered:
            return
        if part == "latency":
            self.figures[f"p50/{course.subject}"].append(_percentile(run.latencies, 50))
            self.figures[f"p99/{course.subject}"].append(_percentile(run.latencies, 99))
            return
        self.figures[course.figure].append(run.cpu / (answered * course.answers) * 1e6)
        if part == "cpu":
            self.figures[f"rps/{course.subject}"].append(answered / run.seconds)
            if course.subject == "spans":
                self.figures["received"].append(run.spans / answered)

    def _settled(self, subject: str) -> int:
        """Return how many spans have come, once no more do: the work for them belongs to the calls
        before.
        """
        if subject != "spans":
            return 0
        before, now = -1, self._spans()
        while now != before:
            time.sleep(0.05)
            before, now = now, self._spans()
        return now

    def _spans(self) -> int:
        with gateway.DIRECT.open(self._upstream.url, timeout=20) as answer:
            return int(answer.read())

    def _drive(
        self, name: str, port: int, ask: Ask, connections: int, seconds: float, **more: Any
    ) -> Tally:
        tally = Load(port, ask, connections, seconds, **more).run()
        if tally.failed:
            self.notes.append(
                f"{name}: {tally.failed} of {tally.failed + tally.answered} answers were not whole: {tally.failure!r}"
            )
        return tally

    # -- a crowd -----------------------------------------------------------------------------------

    def _calls(self) -> None:
        self._crowd("calls", chat("bench-2000-0", key=KEY))

    def _streams(self) -> None:
        self._crowd("streams", stream("bench-0-100", key=KEY))

    def _crowd(self, name: str, ask: Ask) -> None:
        """Everybody at once, to one worker with everything on that has threads for them all."""
        crowd = self._scale.crowd
        with gateway.infermux(
            name,
            (KEYS, LEDGER),
            self._folder,
            self._upstream._replace(ca=""),
            threads=crowd * 7 // 5,
        ) as service:
            self._drive(name, service.port, chat(key=KEY), 16, self._scale.seconds / 3)
            rest, peak, before = service.pss(), [0.0], service.cpu
            health = get("/healthz" if service.status("/healthz") == 200 else "/providers")
            tally = self._drive(
                name,
                service.port,
                ask,
                crowd,
                0,
                probe=health,
                look=(1.5, lambda: peak.append(service.pss())),
            )
            for figure, value in {
                "whole": tally.answered / crowd,
                "killed": service.killed,
                "cpu": (service.cpu - before) / crowd * 1e6,
                "memory": (peak[-1] - rest) / crowd,
                "ttfb": _percentile(tally.firsts or [0.0], 99),
                "seconds": tally.seconds,
                "health50": _percentile(tally.probes or [0.0], 50),
                "health99": _percentile(tally.probes or [0.0], 99),
                "health_max": max(tally.probes or [0.0]),
            }.items():
                self.figures[f"{name}/{figure}"].append(value)

    # -- without a service -------------------------------------------------------------------------

    def _start(self) -> None:
        script = (
            "import sys, time; start = time.perf_counter(); import infermux; print(time.perf_counter() - start, "
            "len({'flask', 'requests'} & set(sys.modules)))"
        )
        for _ in range(2 * self._scale.rounds + 1):
            took, loaded = _output("-c", script).split()
            self.figures["import"].append(float(took))
            self.figures["loaded"].append(int(loaded))
            start = time.perf_counter()
            assert _output("-m", "infermux", "infer", "hello") == "echo: hello\n"
            self.figures["command"].append(time.perf_counter() - start)

    def _rows(self) -> None:
        count = rows.ROWS if self._scale.seconds >= 1 else rows.ROWS // 50
        for name, value in rows.measure(self._folder, count):
            self.figures[f"rows/{name}"].append(value)

    def _postgres(self) -> None:
        upstream = self._upstream._replace(ca="")
        compared = postgres.Compared(self._folder, upstream, lambda key: chat(key=key), self.notes)
        for number in range(self._scale.rounds):
            self._say(f"postgres, round {number + 1} of {self._scale.rounds}")
            for name, value in compared.round(self._scale.seconds):
                self.figures[f"postgres/{name}"].append(value)

    def _ledger(self) -> None:
        """Reserve, settle, and the rows of a call and its attempt; the median of single calls."""
        ended: list[Call] = []
        Router(Registry([EchoProvider()]), observers=[ended.append]).infer(
            InferRequest("echo-v1", [{"role": "user", "content": "hello"}])
        )
        ledger, budget = SQLiteLedger(Path(self._folder) / "alone.db"), Budget("web", 10**15)
        for _ in range(int(1000 * self._scale.seconds)):
            call = dataclasses.replace(ended[0], id=uuid.uuid4().hex, start_ns=time.time_ns())
            start = time.process_time_ns()
            ledger.settle(
                record(call), ledger.reserve(budget, 10**6, call_id=call.id, at=time.time())
            )
            self.figures["ledger"].append((time.process_time_ns() - start) / 1000)
        ledger.close()


def _percentile(values: list[float], percent: int) -> float:
    return (
        statistics.quantiles(values, n=100, method="inclusive")[percent - 1]
        if len(values) > 1
        else values[0]
    )


def _output(*arguments: str) -> str:
    """Return what a new interpreter prints, on the gateway's core."""
    with gateway.on_core(gateway.CORES[0]):
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=gateway.ENVIRONMENT, text=True, capture_output=True, check=True
        ).stdout
