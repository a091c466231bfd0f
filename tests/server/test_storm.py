"""Random faults on real sockets never exceed `attempts` or the deadline, or give a wrong answer.

By default this takes a few seconds, with CI=true longer; INFERMUX_LONG=1 makes 100,000 runs.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest
from support import how_many

from infermux import HTTPProvider, InferRequest, Registry, Router
from infermux.chaos.faults import FAULTS
from infermux.chaos.vendor import FaultyVendor
from infermux.errors import InferMuxError
from infermux.planning import STRATEGIES

RUNS = how_many(300, 2_000, 100_000)
PARALLEL = 16
SLACK = 0.1  # seconds by which a call may pass its deadline
WELL = 12  # healthy vendors among the faulty ones
HEAVY = {"gzip_bomb", "huge_body"}  # a hundred megabytes each: test_faults.py has them
DIALECTS = ("openai", "anthropic", "gemini")


class Sky(NamedTuple):
    """Every vendor there is, by the name of its providers."""

    vendors: dict[str, FaultyVendor]
    providers: list[HTTPProvider]

    def hits(self) -> Counter[str]:
        return Counter(
            seen.model for vendor in set(self.vendors.values()) for seen in vendor.requests
        )


@pytest.fixture(scope="module")
def sky() -> Iterator[Sky]:
    with contextlib.ExitStack() as stack:
        well = stack.enter_context(FaultyVendor())
        vendors = {
            fault: stack.enter_context(FaultyVendor(fault))
            for fault in FAULTS
            if fault not in HEAVY
        }
        vendors |= {f"well-{number}": well for number in range(WELL)}
        made = [
            HTTPProvider(
                f"{name}-{dialect}",
                base_url=vendor.url(dialect),
                dialect=dialect,
                api_key="sk-storm",
            )
            for name, vendor in vendors.items()
            for dialect in DIALECTS
        ]
        yield Sky(vendors, made)
        for provider in made:
            provider.close()


class Outcome(NamedTuple):
    seed: int
    over: float  # seconds beyond the deadline
    attempts: int  # the most that were allowed
    told: int  # attempts of the call's own record
    model: str  # which the vendors were asked for
    answered: bool


def run(sky: Sky, seed: int, again: str = "") -> Outcome:
    """One call through a router that a seed makes."""
    rng = random.Random(seed)
    providers = rng.sample(sky.providers, rng.randint(1, 4))
    registry, model = Registry(providers), f"run-{seed}{again}"
    registry.define(
        "name",
        [f"{provider.name}/{model}" for provider in providers],
        strategy=rng.choice(list(STRATEGIES)),
    )
    attempts, deadline, seen = rng.randint(1, 5), rng.uniform(0.05, 0.4), []
    router = Router(
        registry, attempts=attempts, deadline=deadline, seed=seed, observers=[seen.append]
    )
    streamed, answered = rng.random() < 0.4, True
    started = time.monotonic()
    try:
        took = (stream if streamed else infer)(sky, router, started)
    except InferMuxError as error:
        took, answered = time.monotonic() - started, False
        assert error.status in (400, 404, 413, 429, 502, 503, 504), (seed, error)
    [call] = seen
    assert len(call.attempts) <= attempts and (call.error is None) == answered, seed
    assert all(
        router.targets.breaker(target).in_flight == 0 for target in router.targets.breakers()
    ), seed
    return Outcome(seed, took - deadline, attempts, len(call.attempts), model, answered)


def infer(sky: Sky, router: Router, started: float) -> float:
    """Ask; the answer is whole and that of its vendor."""
    answer = router.infer(InferRequest("name", [{"role": "user", "content": "hello"}]))
    took = time.monotonic() - started
    assert answer.content == sky.vendors[answer.provider.rpartition("-")[0]].text
    return took


def stream(sky: Sky, router: Router, started: float) -> float:
    """Ask for a stream; of one that is well the text is whole. The deadline ends with the first
    content.
    """
    answer = router.stream(InferRequest("name", [{"role": "user", "content": "hello"}]))
    took = time.monotonic() - started
    vendor = sky.vendors[answer.call.provider.rpartition("-")[0]]
    if vendor.fault is None:
        assert "".join(chunk.text for chunk in answer) == vendor.text
    else:
        answer.close()
        answer.call.error = None
    return took


@pytest.mark.slow
def test_random_faults_on_sockets_stay_within_attempts_and_deadline(
    sky: Sky, caplog: pytest.LogCaptureFixture
) -> None:
    """A run that a busy machine held up may have another chance; one that is late again is late by
    our own doing.
    """
    caplog.set_level("CRITICAL", "infermux")
    with ThreadPoolExecutor(PARALLEL) as pool:
        found = list(pool.map(lambda seed: run(sky, seed), range(RUNS)))
    hits = sky.hits()
    assert [
        each for each in found if hits[each.model] > each.told or each.told > each.attempts
    ] == []
    answered = sum(each.answered for each in found)
    assert 0.03 * RUNS < answered < 0.95 * RUNS  # deadlines begin at 50 ms: few fit a busy machine
    late = [each.seed for each in found if each.over > SLACK]
    assert len(late) < RUNS / 3  # each has three more chances, one after the other
    assert [
        seed for seed in late if min(run(sky, seed, f"-{n}").over for n in range(3)) > SLACK
    ] == []
