import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.account import Account, report
from serve_app.units import FRAME_S


def spoken(frames: int, *, delay: int = 1, latency_s: float = 0.01, late_s: float = 0.0, lost: int = 0) -> Account:
    """A session in which everything takes the same time; the last ``lost`` answers stay away."""
    account = Account(open_s=0.02)
    for frame in range(frames):
        due_s = frame * FRAME_S
        account.frame_sent(due_s + late_s, due_s)
        if delay <= frame < frames - lost:
            account.audio_received(due_s + late_s + latency_s, 100)
    return account


@given(st.integers(4, 60), st.integers(0, 3), st.floats(0.001, 0.07))
def test_a_perfect_session_loses_nothing_and_keeps_its_latency(frames: int, delay: int, latency_s: float) -> None:
    outcome = report([spoken(frames, delay=delay, latency_s=latency_s)], frames * FRAME_S)
    assert (outcome.frames_lost, outcome.delay_frames, outcome.clean) == (0, delay, True)
    assert outcome.latency_p99_ms == pytest.approx(1_000 * latency_s)
    assert outcome.underruns == 0


def test_answers_that_never_come_are_lost() -> None:
    outcome = report([spoken(20, lost=3), spoken(20)], 1.6)
    assert outcome.frames_lost == 3
    assert not outcome.clean


def test_more_answers_here_do_not_hide_losses_there() -> None:
    generous = spoken(20)
    generous.received += 5
    assert report([generous, spoken(20, lost=2)], 1.6).frames_lost == 2


def test_one_delay_holds_for_all_sessions() -> None:
    slow = spoken(20, delay=2, latency_s=0.01)  # its first answer took a frame longer, and one got lost
    outcome = report([slow, spoken(20, delay=1)], 1.6)
    assert outcome.delay_frames == 1
    assert outcome.frames_lost == 1


def test_refused_sessions_stay_in_the_count() -> None:
    outcome = report([spoken(5), Account(refusal="HTTP 503"), Account(refusal="HTTP 503")], 0.4)
    assert (outcome.sessions, outcome.opened, outcome.refusals) == (3, 1, {"HTTP 503": 2})
    assert not outcome.clean


def test_an_answer_after_its_turn_is_an_underrun_and_playback_waits_for_it() -> None:
    account = Account()
    for due_s in (0.0, 0.08, 0.26, 0.34, 0.42):  # the third comes 100 ms late, and the rest in its step
        account.audio_received(due_s, 1)
    assert account.underruns == 1
    assert account.underrun_s == pytest.approx(0.09)  # 10 ms were slack


def test_a_late_generator_accuses_itself() -> None:
    outcome = report([spoken(20, late_s=0.09)], 1.6)
    assert outcome.generator_is_late
    assert "WARNING" in outcome.sentences()
    assert "WARNING" not in report([spoken(20, late_s=0.01)], 1.6).sentences()


def test_the_line_is_json_even_when_nothing_was_measured() -> None:
    told = json.loads(report([Account(refusal="HTTP 503")], 1.0).line())
    assert told["latency_p99_ms"] is None
    assert told["refusals"] == {"HTTP 503": 1}


@pytest.mark.parametrize(("latency_s", "behind"), [(0.01, 0), (0.079, 0), (0.09, 1), (0.25, 3)])
def test_answers_are_behind_by_the_frames_that_went_out_before_them(latency_s: float, behind: int) -> None:
    assert spoken(30, latency_s=latency_s).frame_deficit(delay=1) == behind


def test_frames_that_are_never_answered_put_the_rest_behind() -> None:
    assert spoken(30, lost=10).frame_deficit(delay=1) == 9


def test_an_aborted_session_lost_nothing() -> None:
    account = spoken(20, lost=2)
    account.aborted = True
    assert report([account], 1.6).frames_lost == 0


def test_waiting_in_the_queue_and_being_refused_are_told() -> None:
    waited = spoken(5)
    waited.queue_s = 3.5
    outcome = report([waited, Account(refusal="HTTP 503", answered_s=0.02)], 0.4)
    assert (outcome.queued, outcome.queue_max_s, outcome.refused_p99_ms) == (1, 3.5, 20.0)
    assert "1 waited" in outcome.sentences()
    assert "20 ms after connecting" in outcome.sentences()
