"""Tests of strategies: their orders, the frequency of each, and that decisions can be replayed."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

import pytest

from infermux.planning import (
    STRATEGIES,
    Snapshot,
    State,
    cheapest,
    kept,
    least_latency,
    plan,
    priority,
    replayed,
    round_robin,
    weighted,
)
from infermux.types import Route, Target

A, B, C, D = (
    Target("openai", "gpt-5"),
    Target("openrouter", "meta/llama:free"),
    Target("local", "llama3.2"),
    Target("x", "y"),
)
ALL = (A, B, C, D)
DRAWS = 20_000
STATE = State(
    weights={A: 5, B: 1.5, C: 0},
    cursor=7,
    latency={A: 0.1 + 0.2, B: None, C: 3.0},
    in_flight={A: 2, C: 1},
    cost={A: 10**15, B: None, C: 0},
)


def shares(
    strategy: str, targets: tuple[Target, ...], state: State
) -> dict[tuple[Target, ...], float]:
    """How often each order comes, of many draws."""
    rng = random.Random(4)
    counts = Counter(tuple(STRATEGIES[strategy](targets, state, rng)) for _ in range(DRAWS))
    return {order: count / DRAWS for order, count in counts.items()}


def firsts(strategy: str, targets: tuple[Target, ...], state: State) -> dict[Target, float]:
    first: Counter[Target] = Counter()
    for order, share in shares(strategy, targets, state).items():
        first[order[0]] += share  # type: ignore[assignment]
    return dict(first)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("size", range(5))
@pytest.mark.parametrize("state", [State(), STATE], ids=["nothing known", "something known"])
def test_every_target_comes_exactly_once(name: str, size: int, state: State) -> None:
    given = ALL[:size]
    for seed in range(50):
        order = STRATEGIES[name](given, state, random.Random(seed))
        assert isinstance(order, list)
        assert sorted(order) == sorted(given)
    assert given == ALL[:size]


def written(name: str, seed: int = 0) -> str:
    return kept(plan(Route("x", ALL, name), Snapshot(STATE), seed))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_decision_can_be_replayed_from_what_was_written_down(name: str) -> None:
    for seed in range(100):
        read = replayed(written(name, seed))
        assert read.plan.snapshot is not None
        order = STRATEGIES[name](ALL, read.plan.snapshot.state, random.Random(seed))
        assert order == STRATEGIES[name](ALL, STATE, random.Random(seed))
        assert list(read.plan.targets) == order and read.differences == {}


def test_what_is_written_down_names_targets_as_callers_do() -> None:
    def state(name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(written(name).split("\n")[1])["snapshot"]["state"]
        return found

    assert state("weighted")["weights"] == {
        "openai/gpt-5": 5,
        "openrouter/meta/llama:free": 1.5,
        "local/llama3.2": 0,
    }
    assert state("least_latency")["latency"]["openrouter/meta/llama:free"] is None


def test_priority_is_as_declared() -> None:
    assert priority((C, A, B), STATE, random.Random(0)) == [C, A, B]


# weighted


def test_weights_are_the_shares_of_the_first_place() -> None:
    found = firsts("weighted", (A, B, C), State(weights={A: 6, B: 3, C: 1}))
    assert found == pytest.approx({A: 0.6, B: 0.3, C: 0.1}, abs=0.015)


def test_the_places_after_the_first_are_drawn_likewise() -> None:
    weights = {A: 6.0, B: 3.0, C: 1.0}
    expected = {
        order: weights[order[0]] / 10 * weights[order[1]] / (10 - weights[order[0]])
        for order in itertools.permutations((A, B, C))
    }
    assert shares("weighted", (A, B, C), State(weights=weights)) == pytest.approx(
        expected, abs=0.015
    )


def test_without_weights_all_orders_are_alike() -> None:
    assert shares("weighted", (A, B, C), State()) == pytest.approx(
        dict.fromkeys(itertools.permutations((A, B, C)), 1 / 6), abs=0.015
    )


def test_weight_zero_is_only_for_when_nothing_else_is_left() -> None:
    for seed in range(200):
        order = weighted(
            (A, B, C, D), State(weights={A: 0, B: 1, C: 0, D: 1e-9}), random.Random(seed)
        )
        assert order[2:] == [A, C]


# round_robin


def test_round_robin_begins_one_further_each_time() -> None:
    orders = [round_robin((A, B, C), State(cursor=cursor), random.Random(0)) for cursor in range(4)]
    assert orders == [[A, B, C], [B, C, A], [C, A, B], [A, B, C]]


def test_round_robin_is_even_over_a_long_time() -> None:
    first = Counter(
        round_robin((A, B, C), State(cursor=cursor), random.Random(0))[0]
        for cursor in range(2**31, 2**31 + 300)
    )
    assert set(first.values()) == {100}


# least_latency


def test_the_better_of_two_random_targets_is_first() -> None:
    """Of four, the best wins 3 of the 6 pairs, the next 2, the next 1, and the worst none."""
    state = State(latency={A: 0.4, B: 0.1, C: 0.3, D: 0.2})
    assert firsts("least_latency", ALL, state) == pytest.approx(
        {B: 3 / 6, D: 2 / 6, C: 1 / 6}, abs=0.015
    )


def test_of_two_targets_the_faster_is_always_first_and_the_rest_follow_by_score() -> None:
    state = State(latency={A: 0.4, B: 0.1, C: 0.3, D: 0.2})
    for seed in range(100):
        assert least_latency((A, B), state, random.Random(seed)) == [B, A]
        first, *rest = least_latency(ALL, state, random.Random(seed))
        assert rest == [target for target in (B, D, C, A) if target != first]


def test_calls_in_flight_make_a_target_slower() -> None:
    state = State(latency={A: 0.1, B: 0.3}, in_flight={A: 3})
    assert least_latency((A, B), state, random.Random(0)) == [B, A]
    assert least_latency(
        (A, B), State(latency=state.latency, in_flight={A: 1}), random.Random(0)
    ) == [A, B]


@pytest.mark.sampled(1)
@pytest.mark.parametrize(
    ("known", "order"),
    [
        ({B: 0.1, C: 0.9}, [B, A, C]),  # the median of two is their mean
        ({B: 0.1, C: 0.2, D: 0.9}, [B, A, C, D]),  # equal to C, and declared before it
        ({B: 0.1}, [A, B]),
    ],
)
def test_a_target_without_samples_counts_as_the_median(
    known: dict[Target, float], order: list[Target]
) -> None:
    targets = tuple(sorted({A, *known}, key=ALL.index))
    state = State(latency={A: None, **known})
    for seed in range(50):
        first, *rest = least_latency(targets, state, random.Random(seed))
        assert rest == [target for target in order if target != first]
    assert firsts("least_latency", targets, state).get(A, 0) > 0.2


def test_where_nothing_is_known_all_are_first_alike() -> None:
    assert firsts("least_latency", ALL, State()) == pytest.approx(
        dict.fromkeys(ALL, 0.25), abs=0.015
    )


def test_an_idle_target_beats_a_busy_one_where_no_latency_is_known() -> None:
    for seed in range(50):
        assert least_latency((A, B), State(in_flight={A: 1}), random.Random(seed)) == [B, A]


# cheapest


@pytest.mark.parametrize(
    ("cost", "order"),
    [
        ({A: 30, B: 20, C: 10}, [C, B, A]),
        ({A: 30, B: None, C: 0}, [C, A, B]),  # free is cheaper than anything; unknown is not free
        ({C: 10**20}, [C, A, B]),  # what has no price keeps its order
        ({A: 5, B: 5, C: 5}, [A, B, C]),
        (
            {A: 10**17 + 1, B: 10**17, C: None},
            [B, A, C],
        ),  # whole numbers: a float would take them for equal
        ({}, [A, B, C]),
    ],
)
def test_cheapest_first_and_unpriced_last(
    cost: dict[Target, int | None], order: list[Target]
) -> None:
    assert cheapest((A, B, C), State(cost=cost), random.Random(0)) == order
