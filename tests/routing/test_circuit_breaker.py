"""Tests of the circuit breaker: when it opens, which call is the probe, and its latency."""

from __future__ import annotations

import math
import random
import threading

import pytest

from infermux.routing.circuit_breaker import (
    GROWTH,
    MAX_COOL_DOWN,
    MIN_CALLS,
    SAMPLES,
    CircuitBreaker,
    Permit,
)


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(clock=clock)


def admitted(health: CircuitBreaker, *, force: bool = False) -> Permit:
    permit = health.admit(force=force)
    assert permit is not None
    return permit


def fail(health: CircuitBreaker, times: int = 5) -> None:
    for _ in range(times):
        admitted(health).failed()


def succeed(health: CircuitBreaker, times: int = 1) -> None:
    for _ in range(times):
        admitted(health).succeeded(0.1)


# When it opens


def test_five_failures_in_a_row_open_it(health: CircuitBreaker) -> None:
    fail(health, 4)
    assert health.refusal() is None
    fail(health, 1)
    assert health.admit() is None
    assert health.refusal() == "circuit open for 30 s"


def test_a_success_ends_the_row(health: CircuitBreaker) -> None:
    fail(health, 4)
    succeed(health)
    fail(health, 4)
    assert health.refusal() is None


def test_half_of_ten_failures_open_it_without_a_row(health: CircuitBreaker) -> None:
    for _ in range(4):
        succeed(health)
        fail(health, 1)
    succeed(health)
    assert health.snapshot().calls == MIN_CALLS - 1
    assert health.refusal() is None
    fail(health, 1)
    assert health.refusal() is not None


def test_less_than_half_does_not_open_it(health: CircuitBreaker) -> None:
    for _ in range(100):
        succeed(health, 3)
        fail(health, 2)
    assert health.refusal() is None


@pytest.mark.parametrize(("later", "opens"), [(59.9, True), (60.0, False)])
def test_only_the_window_counts(
    health: CircuitBreaker, clock: Clock, later: float, opens: bool
) -> None:
    fail(health, 4)
    succeed(health, 5)
    clock.now += later
    fail(health, 1)
    assert (health.refusal() is not None) is opens


def test_neutral_ends_neither_open_it_nor_dilute_failures(
    health: CircuitBreaker,
) -> None:
    for _ in range(50):
        admitted(health).neutral()
    assert health.refusal() is None
    fail(health, 2)
    admitted(health).neutral()
    fail(health, 3)
    assert health.refusal() is not None
    state = health.snapshot()
    assert (state.calls, state.failures, state.error_rate, state.per_minute) == (5, 5, 1.0, 56.0)


# What it takes to close it


def test_it_stays_open_for_its_time_and_then_lets_one_call_probe(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    clock.now += 29.9
    assert health.admit() is None
    assert health.snapshot().state == "open"
    assert health.snapshot().retry_in == pytest.approx(0.1)
    clock.now += 0.1
    assert health.snapshot().state == "half_open"
    assert health.refusal() is None
    probe = admitted(health)
    assert health.admit() is None
    assert health.refusal() == "circuit half open, its probe is under way"
    assert health.snapshot().retry_in is None
    probe.succeeded(0.1)
    assert health.snapshot().state == "closed"
    assert health.admit() is not None


def test_of_many_threads_one_probes(health: CircuitBreaker, clock: Clock) -> None:
    for _ in range(50):
        health.reset()
        fail(health)
        clock.now += 30
        gate, permits = threading.Barrier(8), []

        def ask(gate: threading.Barrier = gate, permits: list[Permit | None] = permits) -> None:
            gate.wait()
            permits.append(health.admit())

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(permit is not None for permit in permits) == 1


def test_a_probe_that_says_nothing_lets_the_next_call_probe(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    clock.now += 30
    for _ in range(3):
        admitted(health).neutral()
        assert health.snapshot().state == "half_open"
    succeed(health)
    assert health.snapshot().state == "closed"


def test_each_failed_probe_doubles_the_time_up_to_a_limit(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    times = []
    for _ in range(8):
        wait = health.snapshot().retry_in
        assert wait is not None
        times.append(wait)
        clock.now += wait
        fail(health, 1)
    assert times == [30, 60, 120, 240, 300, 300, 300, 300]
    assert max(times) == 30 * GROWTH


def test_a_success_makes_the_time_short_again_and_the_old_failures_are_forgotten(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health, 5)
    clock.now += 30
    fail(health, 1)
    clock.now += 60
    succeed(health)
    fail(health, 4)
    assert health.refusal() is None
    fail(health, 1)
    assert health.refusal() == "circuit open for 30 s"


def test_failures_from_before_the_opening_do_not_open_it_again_after_the_probe(
    health: CircuitBreaker, clock: Clock
) -> None:
    for _ in range(5):
        succeed(health)
        fail(health, 1)
    assert health.refusal() is not None
    clock.now += 30
    succeed(health)
    fail(health, 1)
    assert health.refusal() is None


def test_stragglers_change_nothing(health: CircuitBreaker, clock: Clock) -> None:
    early = [admitted(health) for _ in range(30)]
    fail(health)
    early.pop().succeeded(0.1)
    assert health.refusal() == "circuit open for 30 s"
    for _ in range(9):
        early.pop().failed()
    assert health.refusal() == "circuit open for 30 s"
    clock.now += 30
    probe = admitted(health)
    early.pop().failed()
    assert health.snapshot().state == "half_open"
    probe.succeeded(0.1)
    for permit in early:
        permit.failed()
    assert health.refusal() is None
    assert health.snapshot().failures == 0


def test_a_stream_that_probes_closes_the_circuit_with_its_first_content(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    clock.now += 30
    probe = admitted(health)
    probe.started(0.4)
    assert health.snapshot().state == "closed"
    assert health.latency == 0.4
    assert health.in_flight == 1
    probe.succeeded(99.0)
    assert health.latency == 0.4
    assert health.in_flight == 0


def test_streams_that_begin_and_break_open_the_circuit_for_longer_and_longer(
    health: CircuitBreaker, clock: Clock
) -> None:
    for expected in (30, 60, 120):
        for _ in range(5):
            permit = admitted(health)
            permit.started(0.1)
            permit.failed()
        assert health.snapshot().retry_in == expected
        clock.now += expected


# A forced call


def test_a_forced_call_passes_an_open_circuit_and_its_success_closes_it(
    health: CircuitBreaker,
) -> None:
    fail(health)
    forced = admitted(health, force=True)
    assert health.admit() is None
    forced.succeeded(0.1)
    assert health.snapshot().state == "closed"


def test_a_forced_call_that_fails_changes_nothing(health: CircuitBreaker, clock: Clock) -> None:
    fail(health)
    clock.now += 10
    for _ in range(20):
        admitted(health, force=True).failed()
    assert health.refusal() == "circuit open for 20 s"
    clock.now += 20
    fail(health, 1)
    assert health.refusal() == "circuit open for 60 s"


def test_a_forced_call_is_the_probe_where_one_is_due(health: CircuitBreaker, clock: Clock) -> None:
    fail(health)
    clock.now += 30
    probe = admitted(health, force=True)
    assert health.admit() is None
    second = admitted(health, force=True)
    second.failed()
    assert health.refusal() == "circuit half open, its probe is under way"
    probe.neutral()
    assert health.refusal() is None


# Cooling down


def test_cooling_down_is_not_a_trip(health: CircuitBreaker, clock: Clock) -> None:
    health.cool_down(2.5)
    assert health.refusal() == "cooling down for 3 s"
    assert health.admit() is None
    assert (health.snapshot().state, health.snapshot().retry_in) == ("closed", 2.5)
    assert health.admit(force=True) is not None
    clock.now += 2.5
    assert health.refusal() is None
    assert health.admit() is not None
    assert health.admit() is not None


def test_the_longest_cool_down_counts_and_none_is_longer_than_an_hour(
    health: CircuitBreaker,
) -> None:
    health.cool_down(50)
    health.cool_down(5)
    assert health.snapshot().retry_in == 50
    for odd in (0.0, -3.0, math.nan):
        health.cool_down(odd)
    assert health.snapshot().retry_in == 50
    health.cool_down(math.inf)
    assert health.snapshot().retry_in == MAX_COOL_DOWN


def test_a_throttled_probe_waits_and_then_another_probes(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    clock.now += 30
    probe = admitted(health)
    health.cool_down(7)
    probe.neutral()
    assert health.refusal() == "cooling down for 7 s"
    clock.now += 7
    assert admitted(health)
    assert health.admit() is None


# A permit


@pytest.mark.parametrize("first", ["succeeded", "failed", "neutral"])
def test_a_permit_ends_once(health: CircuitBreaker, first: str) -> None:
    permit = admitted(health)
    getattr(permit, first)()
    before = health.snapshot()
    for _ in range(10):
        permit.failed()
        permit.neutral()
        permit.succeeded(9.0)
        permit.started(9.0)
    assert health.snapshot() == before
    assert before.in_flight == 0


def test_calls_in_flight_are_counted_exactly_under_threads() -> None:
    health = CircuitBreaker(failures=10**9)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(2000):
            permit = health.admit(force=True)
            assert permit is not None
            rng.choice([permit.failed, permit.neutral, permit.succeeded])()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert health.in_flight == 0
    assert health.snapshot().per_minute == 8000


# By hand


def test_what_is_shut_by_hand_stays_shut(health: CircuitBreaker, clock: Clock) -> None:
    straggler = admitted(health)
    health.open()
    straggler.succeeded(0.1)
    clock.now += 10**6
    assert health.admit() is None
    assert health.admit(force=True) is None
    assert health.refusal() == "circuit forced open"
    assert (health.snapshot().state, health.snapshot().retry_in) == ("open", None)
    health.close()
    assert health.refusal() is None


def test_closing_by_hand_ends_everything_that_shuts(health: CircuitBreaker) -> None:
    fail(health)
    health.cool_down(100)
    health.close()
    fail(health, 4)
    assert health.refusal() is None


def test_a_probe_from_before_it_was_closed_by_hand_is_a_straggler(
    health: CircuitBreaker, clock: Clock
) -> None:
    fail(health)
    clock.now += 30
    probe = admitted(health)
    health.close()
    probe.failed()
    assert health.snapshot().state == "closed"


def test_a_reset_forgets_everything_but_the_calls_in_flight(
    health: CircuitBreaker, clock: Clock
) -> None:
    running = admitted(health)
    succeed(health)
    fail(health)
    clock.now += 30
    fail(health, 1)
    health.reset()
    fresh = CircuitBreaker(clock=clock).snapshot()
    assert health.snapshot() == fresh._replace(in_flight=1)
    running.neutral()
    fail(health)
    assert health.refusal() == "circuit open for 30 s"


# Latency and load


def test_latency_jumps_up_and_fades(health: CircuitBreaker, clock: Clock) -> None:
    assert health.latency is None
    admitted(health).succeeded(0.2)
    assert health.latency == 0.2
    admitted(health).succeeded(3.0)
    assert health.latency == 3.0
    clock.now += 10
    assert health.latency == pytest.approx(3.0 / math.e)
    admitted(health).succeeded(0.2)
    assert health.latency == pytest.approx(3.0 / math.e + 0.2 * (1 - 1 / math.e))


def test_latency_is_unknown_again_when_nothing_came_for_a_window(
    health: CircuitBreaker, clock: Clock
) -> None:
    admitted(health).succeeded(2.0)
    clock.now += 60
    assert health.latency is not None
    clock.now += 0.1
    assert health.latency is None


def test_only_answers_have_a_latency(health: CircuitBreaker) -> None:
    admitted(health).failed()
    admitted(health).neutral()
    admitted(health).succeeded()
    assert health.latency is None
    assert health.snapshot().p50 is None


def test_percentiles_are_of_the_recent_answers(health: CircuitBreaker) -> None:
    for _ in range(SAMPLES):
        admitted(health).succeeded(1000.0)
    values = list(range(1, SAMPLES + 1))
    random.Random(1).shuffle(values)
    for value in values:
        admitted(health).succeeded(float(value))
    assert (health.snapshot().p50, health.snapshot().p95) == (32.0, 61.0)


@pytest.mark.slow
def test_the_window_agrees_with_a_list_of_everything(clock: Clock) -> None:
    """Against a model that keeps every call: whole seconds, the current one and the 59 before it."""
    rng, health = random.Random(7), CircuitBreaker(failures=10**9, clock=clock)
    ended: list[tuple[int, str]] = []
    for _ in range(3000):
        clock.now += rng.choice([0, 0, 0.01, 0.3, 1, 4, 61])
        end = rng.choices(["succeeded", "failed", "neutral"], [8, 1, 1])[0]
        getattr(admitted(health), end)()
        ended.append((int(clock.now), end))
        window = [end for second, end in ended if second > int(clock.now) - 60]
        state, failures = health.snapshot(), window.count("failed")
        assert (state.calls, state.failures) == (failures + window.count("succeeded"), failures)
        assert state.per_minute == len(window)
