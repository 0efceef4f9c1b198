"""The schedule under a virtual clock: what its latencies are, by the roofline of one GPU. No timing is measured."""

import json
from collections import Counter

import pytest

from serve_app.engine.limits import Pace
from serve_app.engine.schedule import Schedule
from serve_app.engine.simulation import Scenario, StepCost, VirtualEngine, simulate
from serve_app.engine.simulation_command import main, metronome, rolling

SECONDS = 20.0


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_64_conversations_are_answered_in_18_ms_and_99_of_100_in_26(seed: int) -> None:
    outcome = rolling(Scenario(sessions=64, seconds=SECONDS, seed=seed), Pace())
    assert outcome.mean_ms <= 18
    assert outcome.p99_ms <= 26


@pytest.mark.parametrize(("phases", "mean_ms", "p99_ms"), [(2, 37.7, 59.6), (4, 23.7, 34.7)])
def test_metronomes_take_what_they_were_known_to_take(phases: int, mean_ms: float, p99_ms: float) -> None:
    outcome = metronome(Scenario(sessions=64, seconds=SECONDS), phases)
    assert outcome.mean_ms == pytest.approx(mean_ms, rel=0.06)
    assert outcome.p99_ms == pytest.approx(p99_ms, rel=0.03)


def test_one_metronome_on_even_frames_takes_half_a_period_and_a_tick() -> None:
    scenario = Scenario(sessions=64, seconds=SECONDS, jitter_s=0.0, drift_ppm=0.0)
    tick_ms = (4.97 + 64 * (0.175 * 1.5 + 0.009)) / 0.7
    outcome = metronome(scenario, 1)
    assert outcome.mean_ms == pytest.approx(40 + tick_ms, rel=0.1)
    assert outcome.p99_ms == pytest.approx(80 + tick_ms, rel=0.02)


def test_rolling_is_the_best_of_them_at_every_load_that_fits() -> None:
    for sessions in (16, 64, 128):
        scenario = Scenario(sessions=sessions, seconds=SECONDS)
        assert rolling(scenario, Pace()).mean_ms < min(metronome(scenario, phases).mean_ms for phases in (1, 2, 4))


def test_one_conversation_waits_for_nothing_but_its_step() -> None:
    outcome = rolling(Scenario(sessions=1, seconds=SECONDS), Pace())
    step_ms = (4.97 + 0.175 * 1.5 + 0.009) / 0.7
    assert outcome.max_ms == pytest.approx(step_ms)


def test_smaller_share_makes_larger_batches_and_leaves_more_time() -> None:
    scenario = Scenario(sessions=32, seconds=SECONDS)
    eager, sparing = rolling(scenario, Pace(fixed_share=1.0)), rolling(scenario, Pace(fixed_share=0.4))
    assert sparing.rows_per_tick > 1.5 * eager.rows_per_tick
    assert sparing.busy < 0.7 * eager.busy


def test_everybody_who_begins_at_once_is_still_answered_in_time() -> None:
    outcome = rolling(Scenario(sessions=64, seconds=SECONDS, spread_s=0.0), Pace())
    assert outcome.max_ms < 80


def test_prompt_costs_its_neighbours_a_share_of_the_time() -> None:
    quiet = rolling(Scenario(sessions=64, seconds=SECONDS), Pace())
    primed = rolling(Scenario(sessions=64, seconds=SECONDS, prompts=True), Pace())
    assert primed.prompt_steps > 50
    assert primed.mean_ms < 1.4 * quiet.mean_ms


def test_step_times_are_learnt_from_the_ticks_alone() -> None:
    scenario = Scenario(sessions=16, seconds=SECONDS)
    outcome = rolling(scenario, Pace())
    assert outcome.fixed_ms == pytest.approx(1_000 * scenario.cost.fixed_s, rel=0.1)


def test_every_frame_is_stepped_once_though_clients_drift_and_jitter() -> None:
    scenario = Scenario(sessions=8, seconds=SECONDS, jitter_s=0.05, drift_ppm=500)
    engine = VirtualEngine(scenario)
    simulate(scenario, Schedule(Pace(), engine.step_times), engine)
    assert Counter(arrived_s for arrived_s, _ in engine.waits) == Counter(at_s for at_s, _ in scenario.arrivals())


def test_frames_of_a_session_come_in_order_and_of_its_clock() -> None:
    scenario = Scenario(sessions=1, seconds=800.0, jitter_s=0.006, drift_ppm=100, seed=4)
    times_s = [at_s for at_s, _ in scenario.arrivals()]
    assert times_s == sorted(times_s)
    assert abs((times_s[-1] - times_s[0]) / (len(times_s) - 1) / 0.08 - 1) <= 1.5e-4


def test_too_many_conversations_fall_behind_in_the_simulation_too() -> None:
    slow = StepCost(efficiency=0.1)
    assert rolling(Scenario(sessions=64, seconds=5.0, cost=slow), Pace()).p99_ms > 500


def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    first, second, third = (rolling(Scenario(sessions=8, seconds=5.0, seed=seed), Pace()) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_command_ends_with_a_line_of_json() -> None:
    written: list[str] = []
    assert main(["--sessions", "4", "--seconds", "4", "--metronomes"], written.append) == 0
    outcomes = json.loads("".join(written).splitlines()[-1])
    assert [outcome["policy"] for outcome in outcomes] == ["rolling", *(f"metronome, {n} x" for n in (1, 2, 4))]
    assert {outcome["sessions"] for outcome in outcomes} == {4}
