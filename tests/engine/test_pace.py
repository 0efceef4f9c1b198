"""How much of a prompt is fed at once."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.pace import PrimingPace


def test_steps_settle_at_the_share_of_a_tick() -> None:
    pace = PrimingPace(0.2, 0.04, (1, 256))
    for _ in range(50):
        pace.ticked(0.050)
        pace.primed(pace.steps(), 0.0005 * pace.steps(), alone=False)
    assert pace.steps() == 20  # 10 ms of 50 ms, at half a millisecond a step


def test_nobody_to_disturb_lets_more_through() -> None:
    crowded, alone = PrimingPace(0.2, 0.04, (1, 256)), PrimingPace(0.2, 0.04, (1, 256))
    for _ in range(50):
        for pace in (crowded, alone):
            pace.ticked(0.050)
            pace.primed(pace.steps(), 0.0005 * pace.steps(), alone=pace is alone)
    assert alone.steps() == 4 * crowded.steps()


def test_steps_that_cost_too_much_at_any_number_go_on_at_the_fewest() -> None:
    pace = PrimingPace(0.2, 0.04, (4, 256))
    for _ in range(10):
        pace.ticked(0.010)
        pace.primed(pace.steps(), 0.5, alone=False)
    assert pace.steps() == 4


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.booleans())))
def test_whatever_it_is_told_it_stays_within_its_bounds(told: list[tuple[float, float, bool]]) -> None:
    pace = PrimingPace(0.2, 0.04, (4, 64))
    for tick_s, spent_s, alone in told:
        before = pace.steps()
        pace.ticked(tick_s)
        pace.primed(before, spent_s, alone=alone)
        assert 4 <= pace.steps() <= min(64, 2 * before)


def test_steps_that_take_four_shares_are_fed_every_fourth_turn() -> None:
    pace = PrimingPace(0.25, 0.04, (4, 256))
    fed = []
    for turn in range(12):
        pace.ticked(0.010)
        if pace.due:
            fed.append(turn)
            pace.primed(pace.steps(), 0.010, alone=False)
    assert fed == [0, 3, 7, 11]  # three after the first: its own tick had paid a quarter


def test_steps_that_fit_into_the_share_are_fed_every_turn() -> None:
    pace = PrimingPace(0.25, 0.04, (4, 256))
    for _ in range(12):
        pace.ticked(0.012)
        assert pace.due
        pace.primed(pace.steps(), 0.003, alone=False)


def test_long_prompt_that_was_fed_while_nobody_spoke_is_not_held_against_the_next() -> None:
    pace = PrimingPace(0.25, 0.04, (4, 256))
    pace.ticked(0.010)
    pace.primed(pace.steps(), 5.0, alone=True)
    assert pace.due


@given(st.lists(st.tuples(st.floats(0.001, 0.1), st.floats(0.001, 0.1)), max_size=60))
def test_in_turns_that_step_somebody_prompts_never_take_more_than_their_share_and_one_feeding(
    told: list[tuple[float, float]],
) -> None:
    pace = PrimingPace(0.2, 0.04, (4, 64))
    ticks_s = prompts_s = longest_s = 0.0
    for tick_s, spent_s in told:
        pace.ticked(tick_s)
        ticks_s += tick_s
        if pace.due:
            pace.primed(pace.steps(), spent_s, alone=False)
            prompts_s += spent_s
            longest_s = max(longest_s, spent_s)
        assert prompts_s <= 0.2 * ticks_s + longest_s + 1e-9
