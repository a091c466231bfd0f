"""Tests of planning as a pure function: the same input gives the same plan, with every target."""

from __future__ import annotations

import copy
import math
import random
from typing import Any

import pytest

from infermux.planning import STRATEGIES, Snapshot, State, plan
from infermux.types import Route, Target

A, B, C, D, E, F = (Target("p", name) for name in "abcdef")
COSTS = State(cost={A: 50, B: 5, C: 20, D: None, E: 1, F: 30})


def names(targets: Any) -> str:
    return "".join(target.model for target in targets)


def order(route: Route, state: State | None = None, seed: int = 1, **known: Any) -> str:
    return names(plan(route, Snapshot(state or State(), **known), seed).targets)


# -- pure ------------------------------------------------------------------------------------------


def random_route(rng: random.Random, depth: int = 2) -> Route:
    """Return a route of any shape, over two levels of names."""

    def entry() -> Target | Route:
        return (
            random_route(rng, depth - 1)
            if depth and rng.random() < 0.4
            else rng.choice((A, B, C, D, E, F))
        )

    entries = tuple(entry() for _ in range(rng.randint(1, 3)))
    then = tuple(entry() for _ in range(rng.randint(0, 2)))
    strategy = rng.choice(list(STRATEGIES))
    weights = tuple(rng.choice((1.0, 5.0)) for _ in entries) if strategy == "weighted" else ()
    return Route(f"name{rng.random()}", entries, strategy, then, weights)


def random_snapshot(rng: random.Random) -> Snapshot:
    every = (A, B, C, D, E, F)
    latency, cost = (
        {each: rng.choice((None, rng.randrange(100))) for each in every} for _ in range(2)
    )
    state = State({}, rng.randrange(9), latency, {each: rng.randrange(4) for each in every}, cost)
    return Snapshot(
        state,
        {each: "cannot" for each in every if rng.random() < 0.2},
        {each: ("open", rng.choice((1.0, 2.0, math.inf))) for each in every if rng.random() < 0.4},
    )


def within(route: Route) -> set[Target]:
    return {
        target
        for entry in (*route.entries, *route.then)
        for target in (within(entry) if isinstance(entry, Route) else {entry})
    }


@pytest.mark.parametrize("seed", range(200))
def test_the_same_inputs_give_the_same_plan(seed):
    rng = random.Random(seed)
    route, snapshot = random_route(rng), random_snapshot(rng)
    before = copy.deepcopy((route, snapshot))
    random.seed(seed)  # the global generator must play no part
    first = plan(route, snapshot, seed)
    random.seed(seed + 1)
    assert all(plan(copy.deepcopy(route), copy.deepcopy(snapshot), seed) == first for _ in range(3))
    assert (route, snapshot) == before
    assert first.seed == seed and (first.model, first.strategy) == (route.name, route.strategy)


def test_every_target_is_either_tried_or_dropped_with_a_reason():
    for seed in range(300):
        rng = random.Random(seed)
        route, snapshot = random_route(rng), random_snapshot(rng)
        found = plan(route, snapshot, seed)
        assert len(set(found.targets)) == len(found.targets)
        assert not set(found.targets) & set(found.dropped) and all(found.dropped.values())
        assert set(found.targets) | set(found.dropped) == within(route)


def test_another_seed_gives_another_draw():
    route = Route("x", (A, B, C, D), "weighted")
    assert len({order(route, seed=seed) for seed in range(200)}) == math.factorial(4)


# -- strategies at two levels ----------------------------------------------------------------------

PAIR = (Route("left", (A, B)), Route("right", (C, D)))


@pytest.mark.parametrize(
    ("outer", "left", "right", "expected"),
    [
        ("priority", "priority", "priority", "abcd"),
        ("priority", "cheapest", "priority", "bacd"),  # the strategy inside orders its own
        ("priority", "cheapest", "cheapest", "bacd"),  # unpriced last
        ("cheapest", "priority", "priority", "cdab"),  # a group counts as what it would try first
        ("cheapest", "cheapest", "priority", "bacd"),
    ],
)
def test_each_level_orders_by_its_own_strategy(outer, left, right, expected):
    route = Route("x", (Route("left", (A, B), left), Route("right", (C, D), right)), outer)
    assert order(route, COSTS) == expected


def test_a_group_stays_together():
    route = Route("x", (*PAIR, E), "weighted")
    seen = {order(route, seed=seed) for seed in range(300)}
    assert seen == {"abcde", "abecd", "cdabe", "cdeab", "eabcd", "ecdab"}


@pytest.mark.parametrize("cursor", range(7))
def test_round_robin_over_groups_turns_by_group(cursor):
    assert (
        order(Route("x", (*PAIR, E), "round_robin"), State(cursor=cursor))
        == ("abcde", "cdeab", "eabcd")[cursor % 3]
    )


@pytest.mark.parametrize("weights", [(9.0, 1.0), (1.0, 3.0)])
def test_the_weight_of_a_group_is_its_share(weights):
    route = Route("x", PAIR, "weighted", weights=weights)
    share = sum(order(route, seed=seed).startswith("ab") for seed in range(4000)) / 4000
    assert abs(share - weights[0] / sum(weights)) < 0.03


def test_weights_of_the_outer_name_do_not_reach_inside():
    inner = Route("inner", (A, B), "weighted", weights=(1.0, 99.0))
    route = Route("x", (inner, C), "weighted", weights=(99.0, 1.0))
    firsts = [order(route, seed=seed)[0] for seed in range(2000)]
    assert firsts.count("b") > 1800
    fallback = Route("inner", (Route("group", (A, E)), C), "weighted")
    route = Route("x", (A, B), "weighted", (fallback,), weights=(99.0, 1.0))
    lasts = [order(route, seed=seed)[-1] for seed in range(2000)]
    assert 900 < lasts.count("e") < 1100


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_that_begin_with_the_same_target_keep_their_others(strategy):
    """Whichever comes first: what only the second group has is tried too."""
    route = Route("x", (Route("left", (A, B)), Route("right", (A, C))), strategy)
    for seed in range(20):
        assert sorted(order(route, seed=seed)) == ["a", "b", "c"]


def test_groups_may_share_what_is_not_their_first():
    assert order(Route("x", (Route("left", (A, B)), Route("right", (C, B))))) == "abc"


def test_three_levels():
    deep = Route(
        "deep", (Route("mid", (Route("low", (D, E), "cheapest"), A), "cheapest"), B), "priority"
    )
    assert order(deep, COSTS) == "edab"


def test_least_latency_compares_groups_by_what_they_would_try_first():
    state = State(latency={A: 9.0, B: 0.1, C: 1.0, D: 9.0})
    assert all(
        order(Route("x", PAIR, "least_latency"), state, seed=seed) == "cdab" for seed in range(20)
    )
    inside = Route(
        "x", (Route("left", (A, B), "least_latency"), Route("right", (C, D))), "least_latency"
    )
    assert all(order(inside, state, seed=seed) == "bacd" for seed in range(20))


# -- then ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_then_comes_after_all(strategy):
    route = Route("x", (A, B), strategy, then=(E, Route("last", (F, C), "cheapest")))
    for seed in range(20):
        found = order(route, COSTS, seed)
        assert sorted(found[:2]) == ["a", "b"] and found[2:] == "ecf"


def test_then_of_a_group_belongs_to_the_group():
    assert order(Route("x", (Route("left", (A,), then=(B,)), C), then=(D,))) == "abcd"


def test_then_repeats_nothing():
    assert order(Route("x", (A, B), then=(B, C, A))) == "abc"


def test_then_is_tried_when_all_before_it_are_shut():
    found = plan(
        Route("x", (A, B), then=(C,)), Snapshot(refused={A: ("open", 1), B: ("open", 2)}), 1
    )
    assert (names(found.targets), found.forced, set(found.dropped)) == ("c", False, {A, B})


# -- what is not tried -----------------------------------------------------------------------------


def test_what_is_not_tried_is_kept_with_its_reason():
    snapshot = Snapshot(
        unfit={A: "cannot do tools"}, refused={A: ("open", 3), B: ("cooling down", 2)}
    )
    found = plan(Route("x", (A, B, C)), snapshot, 1)
    assert (names(found.targets), found.forced) == ("c", False)
    assert found.dropped == {
        A: "cannot do tools",
        B: "cooling down",
    }  # what cannot be comes before what cannot be now


def test_targets_of_others_are_none_of_this_plans_business():
    found = plan(Route("x", (A,)), Snapshot(unfit={E: "no"}, refused={F: ("open", 1)}), 1)
    assert (found.targets, found.dropped, found.retry_in) == ((A,), {}, None)


@pytest.mark.parametrize(
    ("waits", "tried"),
    [
        ({A: 3.0, B: 1.0, C: 2.0}, "bca"),
        ({A: 1.0, B: 1.0, C: 1.0}, "abc"),  # equals in their order
        ({A: math.inf, B: math.inf, C: 5.0}, "cab"),
        ({A: math.inf, B: math.inf, C: math.inf}, "abc"),
    ],
)
def test_where_all_are_refused_all_are_tried_the_least_bad_first(waits, tried):
    refused = {target: ("open", wait) for target, wait in waits.items()}
    found = plan(Route("x", (A, B, C)), Snapshot(refused=refused), 1)
    assert (names(found.targets), found.forced, found.dropped) == (tried, True, {})


def test_a_lone_target_is_never_refused():
    found = plan(Route("x", (A,)), Snapshot(refused={A: ("open", 4.0)}), 1)
    assert (found.targets, found.forced, found.dropped, found.retry_in) == ((A,), True, {}, 4.0)


def test_a_lone_target_among_unfit_ones_is_never_refused():
    snapshot = Snapshot(unfit={B: "no images"}, refused={A: ("open", 4.0)})
    found = plan(Route("x", (A, B)), snapshot, 1)
    assert (found.targets, found.forced, found.dropped) == ((A,), True, {B: "no images"})


def test_what_is_unfit_is_never_forced():
    snapshot = Snapshot(
        unfit={A: "no"}, refused={A: ("open", 0.1), B: ("open", 5.0), C: ("open", 6.0)}
    )
    found = plan(Route("x", (A, B, C)), snapshot, 1)
    assert (names(found.targets), found.forced) == ("bc", True)
    unfit = plan(Route("x", (A, B)), Snapshot(unfit={A: "no", B: "nor this"}), 1)
    assert (unfit.targets, unfit.forced, unfit.dropped, unfit.retry_in) == (
        (),
        False,
        {A: "no", B: "nor this"},
        None,
    )


@pytest.mark.parametrize(
    ("shut", "retry_in"),
    [
        ({}, None),
        ({A: 3.0}, 3.0),
        ({A: 3.0, B: 2.0}, 2.0),
        ({A: math.inf}, None),
        ({A: math.inf, B: 7.0}, 7.0),
    ],
)
def test_retry_in_is_the_soonest_that_a_shut_target_opens(shut, retry_in):
    found = plan(
        Route("x", (A, B)),
        Snapshot(refused={target: ("open", wait) for target, wait in shut.items()}),
        1,
    )
    assert found.retry_in == retry_in


def test_a_group_whose_first_target_is_shut_goes_on_inside():
    assert order(Route("x", PAIR), refused={A: ("open", 1.0)}) == "bcd"


def test_a_route_without_entries_plans_nothing():
    found = plan(Route("x", ()), Snapshot(), 1)
    assert (found.targets, found.dropped, found.forced, found.retry_in) == ((), {}, False, None)
