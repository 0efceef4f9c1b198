"""The engine over a real, small model: sixteen conversations, one of which goes wrong."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest

from serve_app.engine.engine import Engine
from serve_app.engine.events import Ended, Event, Stepped
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.slots import Lease
from serve_app.errors import NotFinite
from serve_app.spec import Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES
from tests.engine.fakes import FakeClock
from tests.engine.test_model_runner import small_duplex

SESSIONS: Final = 16
FRAMES: Final = 8


@dataclasses.dataclass
class Diary:
    """What every session was told."""

    steps: dict[Lease, list[Stepped]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))
    ends: dict[Lease, Ended] = dataclasses.field(default_factory=dict)

    def note(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Stepped):
                self.steps[event.lease].append(event)
            elif isinstance(event, Ended):
                self.ends[event.lease] = event


def _spec(session: int) -> SessionSpec:
    return SessionSpec(sampling=Sampling(audio_top_k=20 * session, text_seed=session, audio_seed=session))


def _voice(session: int, number: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng([session, number]).normal(0, 0.2, FRAME_SAMPLES).astype(np.float32)


def _converse(sessions: Sequence[int], poisoned: int | None = None) -> tuple[Engine, dict[int, Lease], Diary]:
    """These sessions, each with its own voice and its own sampling, all in one engine."""
    engine, diary = Engine(ModelRunner(small_duplex(), SESSIONS), clock=FakeClock()), Diary()
    leases = {session: engine.acquire(_spec(session)) for session in sessions}
    for lease in leases.values():
        engine.open(lease, diary.note)
    for number in range(FRAMES):
        for session, lease in leases.items():
            pcm = _voice(session, number)
            if session == poisoned and number == 5:
                pcm[7] = 1e38  # finite, and nothing after it is
            engine.push(lease, number, pcm)
        engine.tick()
    return engine, leases, diary


def test_a_tick_of_sixteen_sessions_calls_each_model_stage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: collections.Counter[str] = collections.Counter()
    for name in ("encode", "think", "speak", "decode"):
        inner = getattr(small_duplex().__class__, name)

        def counted(*args: Any, _name: str = name, _inner: Any = inner, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _inner(*args, **kwargs)

        monkeypatch.setattr(small_duplex().__class__, name, counted)
    _, _, diary = _converse(range(SESSIONS))
    assert calls == dict.fromkeys(("encode", "think", "speak", "decode"), FRAMES)
    assert sum(len(steps) for steps in diary.steps.values()) == SESSIONS * FRAMES


def test_a_session_that_overflows_ends_alone_and_the_others_hear_no_difference() -> None:
    _, leases, expected = _converse(range(SESSIONS))
    engine, again, diary = _converse(range(SESSIONS), poisoned=3)
    assert isinstance(diary.ends[again[3]].error, NotFinite)
    assert len(diary.ends) == 1
    for session in set(leases) - {3}:
        ours, theirs = diary.steps[again[session]], expected.steps[leases[session]]
        assert len(ours) == FRAMES
        for one, other in zip(ours, theirs, strict=True):
            assert one.text_token == other.text_token
            assert (one.codes == other.codes).all()
    assert engine.healthy


def test_a_session_is_told_among_sixteen_what_it_is_told_alone() -> None:
    _, leases, crowd = _converse(range(SESSIONS))
    for session in (0, 5, 15):
        _, alone, diary = _converse([session])
        _same(crowd.steps[leases[session]], diary.steps[alone[session]])


def test_a_session_that_changed_hands_says_what_it_would_have_said_and_its_slots_next_holder_begins_afresh() -> None:
    _, alone, expected = _converse([3])
    _, stranger, fresh = _converse([5])
    engine, diary = Engine(ModelRunner(small_duplex(), 2), slots=2, clock=FakeClock()), Diary()
    other, lease = engine.acquire(_spec(7)), engine.acquire(_spec(3))
    before = lease
    for one in (other, lease):
        engine.open(one, diary.note)
    for number in range(FRAMES):
        if number == 4:
            assert engine.park(lease, diary.note)
            for _ in range(3):
                engine.push(other, 0, _voice(7, 0))
                engine.tick()
            lease = engine.retake(lease)
            engine.open(lease, diary.note)
        for one, session in ((other, 7), (lease, 3)):
            engine.push(one, number, _voice(session, number))
        engine.tick()
    _same([*diary.steps[before], *diary.steps[lease]], expected.steps[alone[3]])

    assert engine.park(lease, diary.note)
    engine.close(lease)
    engine.tick()
    newcomer = engine.acquire(_spec(5))
    assert newcomer.slot == lease.slot
    engine.open(newcomer, diary.note)
    for number in range(FRAMES):
        engine.push(newcomer, number, _voice(5, number))
        engine.tick()
    _same(diary.steps[newcomer], fresh.steps[stranger[5]])


def _same(said: Sequence[Stepped], expected: Sequence[Stepped]) -> None:
    for one, other in zip(said, expected, strict=True):
        assert (one.number, one.step, one.text_token) == (other.number, other.step, other.text_token)
        assert (one.codes == other.codes).all()
        assert (one.pcm is None) == (other.pcm is None)
        if one.pcm is not None and other.pcm is not None:
            np.testing.assert_allclose(one.pcm, other.pcm, atol=2e-5)
