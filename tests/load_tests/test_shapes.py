import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.options import SHAPES, add_options, course_of
from load_tests.run import Parser
from load_tests.shapes import LONGEST, SETTLE_S, SHORTEST, Churn, Overload, Ramp, Soak, Spike, Steady
from serve_app.errors import ParameterRefused

COUNTS = st.integers(1, 300)
SECONDS = st.floats(8.0, 600.0)
SHARES = st.floats(0.0, 0.999)


@given(COUNTS, SECONDS, SHARES, SHARES)
def test_a_ramp_never_falls_and_ends_with_everybody(sessions: int, seconds: float, one: float, other: float) -> None:
    ramp = Ramp(sessions=sessions, seconds=seconds)
    early, late = sorted((one * seconds, other * seconds))
    assert 1 <= ramp.users_at(early) <= ramp.users_at(late) <= sessions
    assert ramp.users_at(seconds) == sessions


@given(COUNTS, SECONDS)
def test_a_ramp_rises_in_steps_that_its_windows_name(sessions: int, seconds: float) -> None:
    ramp = Ramp(sessions=sessions, seconds=seconds)
    for window in ramp.windows():
        middle_s = (window.begin_s + window.end_s) / 2
        assert window.name == f"{ramp.users_at(middle_s)} callers"


@pytest.mark.parametrize(("time_s", "users"), [(0.0, 4), (9.9, 4), (10.0, 9), (19.9, 9), (20.0, 4), (30.0, 4)])
def test_a_spike_is_the_middle_third(time_s: float, users: int) -> None:
    assert Spike(sessions=4, peak=9, seconds=30.0).users_at(time_s) == users


@given(COUNTS, st.integers(1, 3_000))
def test_a_churn_makes_every_connect_once_and_aborts_a_quarter(sessions: int, connects: int) -> None:
    churn = Churn(sessions=sessions, connects=connects, session_s=2.0)
    turns = [turn for user in range(churn.users_at(0.0)) for turn in churn.turns(user)]
    assert len(turns) == connects
    assert sum(turn.abort for turn in turns) == connects // 4


@given(st.integers(0, 300), st.integers(1, 300))
def test_sessions_that_are_reopened_differ_in_length_about_their_mean(user: int, sessions: int) -> None:
    churn = Churn(sessions=sessions, connects=3_000, session_s=2.0)
    soak = Soak(sessions=sessions, seconds=60.0, session_s=2.0)
    turns = [*churn.turns(user), *itertools.islice(soak.turns(user), 50)]
    assert all(2.0 * SHORTEST <= turn.seconds <= 2.0 * LONGEST == soak.longest_s for turn in turns)


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 5), st.floats(0.0, 1.0))
def test_every_extra_caller_knocks_once_in_every_storm(sessions: int, extra: int, rounds: int, burst_s: float) -> None:
    course = Overload(sessions=sessions, extra=extra, seconds=SETTLE_S + 4 * rounds, rounds=rounds, burst_s=burst_s)
    storms = [window for window in course.windows() if window.name == "storm"]
    assert len(storms) == rounds
    for user in range(sessions, sessions + extra):
        knocks = list(course.turns(user))
        assert all(turn.knocks for turn in knocks)
        for turn, storm in zip(knocks, storms, strict=True):
            assert storm.begin_s <= turn.begin_s <= storm.begin_s + burst_s
            assert turn.begin_s + turn.seconds <= storm.end_s + 1e-9


def test_those_who_fill_an_overloaded_server_stay_all_the_time() -> None:
    course = Overload(sessions=3, extra=2, seconds=30.0)
    assert [turn.seconds for user in range(3) for turn in course.turns(user)] == [30.0] * 3
    assert course.gate == 3
    assert course.users_at(0.0) == 5


@given(st.sampled_from(SHAPES), st.integers(1, 50), st.floats(12.0, 100.0))
def test_windows_lie_one_after_the_other_within_the_run(shape: str, sessions: int, seconds: float) -> None:
    course = course_of(shape, parsed("--sessions", str(sessions), "--seconds", str(seconds)))
    ends = [0.0, *(end for window in course.windows() for end in (window.begin_s, window.end_s))]
    assert all(late >= early - 1e-9 for early, late in itertools.pairwise(ends))
    assert ends[-1] <= course.seconds + 1e-9


def test_everybody_of_a_steady_load_is_waited_for() -> None:
    steady = Steady(sessions=7, seconds=10.0)
    assert (steady.gate, steady.users_at(9.0), [turn.seconds for turn in steady.turns(6)]) == (7, 7, [10.0])


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ("steady", ("--sessions", "0")),
        ("steady", ("--seconds", "-1")),
        ("steady", ("--seconds", "nan")),
        ("soak", ("--minutes", "0")),
        ("churn", ("--connects", "0")),
        ("overload", ("--seconds", "5", "--rounds", "3")),
        ("wall", ()),
    ],
)
def test_numbers_that_make_no_shape_are_refused(shape: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ParameterRefused):
        course_of(shape, parsed(*words))


def parsed(*words: str) -> object:
    parser = Parser()
    add_options(parser)
    return parser.parse_args(words)
