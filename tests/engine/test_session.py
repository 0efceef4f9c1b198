"""A session's inbox and its books."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.engine.events import DropCause
from serve_app.engine.limits import Limits
from serve_app.engine.session import Frame, Session, checked_pcm
from serve_app.engine.slots import Lease
from serve_app.errors import NotFinite, SessionFault
from serve_app.spec import SessionSpec
from serve_app.units import FRAME_SAMPLES, Generation, Slot
from tests.engine.fakes import frame

ACTIONS = st.lists(st.sampled_from(["push", "take", "landed", "crashed", "cut", "discard"]))


def a_session() -> Session:
    return Session(Lease(Slot(0), Generation(0)), SessionSpec(), (Slot(0),))


@given(ACTIONS, st.integers(1, 6))
def test_received_equals_stepped_plus_dropped_plus_pending(actions: list[str], limit_frames: int) -> None:
    session = a_session()
    for number, action in enumerate(actions):
        match action:
            case "push":
                session.push(Frame(number, None, 0.0), limit_frames)
            case "take" if session.inbox and not session.in_flight:
                session.take()
            case "landed" if session.in_flight:
                session.landed()
            case "crashed" if session.in_flight:
                session.crashed()
            case "cut":
                session.cut(above_frames=3, keep_frames=2)
            case "discard":
                session.discard()
        assert session.received == session.stepped + session.dropped.total() + session.pending
        assert len(session.inbox) <= limit_frames


def test_full_inbox_drops_its_oldest_frame() -> None:
    session = a_session()
    for number in range(5):
        session.push(Frame(number, None, 0.0), 3)
    assert [waiting.number for waiting in session.inbox] == [2, 3, 4]
    assert session.dropped == {DropCause.OVERFLOW: 2}


def test_lag_cut_keeps_the_newest_frames() -> None:
    session = a_session()
    for number in range(10):
        session.push(Frame(number, None, 0.0), 16)
    assert session.cut(above_frames=9, keep_frames=2) == 8
    assert [waiting.number for waiting in session.inbox] == [8, 9]


def test_no_cut_at_the_bound() -> None:
    session = a_session()
    for number in range(9):
        session.push(Frame(number, None, 0.0), 16)
    assert session.cut(above_frames=9, keep_frames=2) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_sample_that_is_not_finite_is_refused(value: float) -> None:
    pcm = frame(0.5)
    pcm[-1] = value
    with pytest.raises(NotFinite):
        checked_pcm(pcm)


@pytest.mark.parametrize(
    "pcm", [np.zeros(1_919), np.zeros((1, FRAME_SAMPLES)), np.float32(1), "silence", None, [[1], 2]]
)
def test_what_is_no_frame_is_refused(pcm: object) -> None:
    with pytest.raises(SessionFault):
        checked_pcm(pcm)


def test_frame_keeps_every_bit() -> None:
    pcm = np.random.default_rng(0).standard_normal(FRAME_SAMPLES).astype(np.float32)
    np.testing.assert_array_equal(checked_pcm(pcm), pcm)


@pytest.mark.parametrize("keep_frames", [0, 17])
def test_limits_that_contradict_each_other_are_refused(keep_frames: int) -> None:
    with pytest.raises(ValueError, match="keep_frames"):
        Limits(keep_frames=keep_frames)
