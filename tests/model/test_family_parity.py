"""Every shape of the family against the reference: all kinds of sessions in one batch, each as the reference alone."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.model.conditioning import Vectors
from serve_app.model.lm import LM, Given
from serve_app.model.state import Rows
from tests.model.family import FAMILY, HIBIKI, STT, TTS, TWO_B, ReferenceRun, Session, Step, open_session
from tests.model.language import CONTEXT, CPU, TokenComparison, lm_pair

SLOTS = 6
STEPS = 3 * CONTEXT + 4


def _user(config: dict[str, Any], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, config["card"], (STEPS, config["n_q"] - config["dep_q"]), generator=generator)


def _two_b() -> list[Session]:
    user = [_user(TWO_B, 0), _user(TWO_B, 1)]
    return [
        Session(user=user[0], choices={"description": "very_good"}),
        Session(user=user[0], choices={"description": "very_bad"}),
        Session(user=user[0]),
        Session(user=user[1], choices={"description": "good"}, coef=2.5),
        Session(user=user[1], choices={"description": "good"}),
        Session(user=user[0], choices={"description": "neutral"}, coef=0.5),
    ]


def _hibiki() -> list[Session]:
    worst, best = {"description": "very_bad"}, {"description": "very_good"}
    user = [_user(HIBIKI, seed) for seed in range(2)]
    for codes in user:
        codes[STEPS // 2] = HIBIKI["card"]  # the end of input, as the helper below makes it
    return [
        Session(user=user[0], choices=best, coef=3.0, against=worst),
        Session(user=user[0], choices=best),
        Session(user=user[0], choices=best, coef=1.5, against=worst),
        Session(user=user[1], choices=best, coef=3.0),
        Session(user=user[1]),
        Session(user=user[1], choices=best, coef=2.0, against=worst, masked_until=7),
        Session(user=user[0], choices=worst, coef=-1.0, against=best),
        Session(user=user[1], choices={"description": "neutral"}),
    ]


def _tts() -> list[Session]:
    generator = torch.Generator().manual_seed(5)

    def voice(length: int, kept: int) -> Vectors:
        return Vectors(torch.randn(length, 12, generator=generator), torch.arange(length) < kept)

    def text() -> Tensor:
        """Plain tokens, tokens with a second one, and silence."""
        first = torch.randint(0, 48, (STEPS,), generator=generator)
        second = torch.randint(-1, 48, (STEPS,), generator=generator)
        token = (second + 1) * 49 + first
        token[::7] = -1
        return token

    user = _user(TTS, 0)
    both, low = voice(9, 9), voice(5, 3)
    script = text()
    return [
        Session(user=user, choices={"speaker_wavs": both, "control": "ok"}, text=script, mute=3),
        Session(
            user=user, choices={"speaker_wavs": both, "control": "ok"}, coef=2.0, no_text=True, text=script, mute=3
        ),
        Session(user=user, choices={"speaker_wavs": low, "control": "also_ok", "accent": "fr"}, text=script, mute=3),
        Session(
            user=user,
            choices={"speaker_wavs": low, "pace": "fast", "accent": "en"},
            coef=3.0,
            no_text=True,
            masked_until=11,
            text=text(),
            mute=2,
        ),
        Session(user=user, choices={"speaker_wavs": voice(16, 16)}, coef=1.7, masked_until=4, text=text()),
        Session(user=user),
        Session(user=user, choices={"control": "ok", "pace": "slow"}, coef=2.0, no_text=True),
    ]


def _stt() -> list[Session]:
    return [Session(user=_user(STT, seed)) for seed in range(7)] + [
        Session(user=_user(STT, 0), coef=2.0, masked_until=5),
        Session(user=_user(STT, 1), coef=3.0, masked_until=2),
    ]


SESSIONS = {"two-b": _two_b, "hibiki": _hibiki, "tts": _tts, "stt": _stt}


class _Batch:
    """Ours, seat by seat: who sits where, how far they are, and what has been in every slot."""

    def __init__(self, lm: LM, sessions: list[Session]) -> None:
        self.lm, self.sessions = lm, sessions
        self.state = lm.init_state(SLOTS, CPU, torch.float32)
        self.free, self.waiting = list(range(SLOTS)), list(range(len(sessions)))
        self.seated = dict[int, tuple[int, int | None]]()  # session: its slot, its twin's
        self.done = [0] * len(sessions)
        self.history: list[list[str]] = [[] for _ in range(SLOTS)]

    def admit(self, chance: random.Random) -> None:
        while self.waiting and len(self.free) >= 1 + self.sessions[self.waiting[0]].guided and chance.random() < 0.7:
            session = self.waiting.pop(0)
            guided = self.sessions[session].guided
            chance.shuffle(self.free)
            slot, twin = self.free.pop(), self.free.pop() if guided else None
            self.history[slot].append("guided" if guided else "alone")
            if twin is not None:
                self.history[twin].append("twin")
            open_session(self.lm, self.state, slot, twin, self.sessions[session])
            self.seated[session] = slot, twin

    def leave(self, session: int) -> None:
        slot, twin = self.seated.pop(session)
        self.free += [slot] if twin is None else [slot, twin]

    def rows(self, order: list[int], runs: list[bool], pad: bool) -> Rows:
        slots = torch.tensor([self.seated[session][0] for session in order])
        rows = Rows.of(slots, torch.tensor(runs), SLOTS)
        twins = [(row, twin) for row, session in enumerate(order) if (twin := self.seated[session][1]) is not None]
        twins += [(0, SLOTS)] * pad
        if not twins:
            return rows
        return rows.guided(torch.tensor([row for row, _ in twins]), torch.tensor([slot for _, slot in twins]), SLOTS)


def _given(batch: _Batch, order: list[int]) -> Given:
    dep_q = batch.lm.config.dep_q
    rows = [batch.sessions[session].given(batch.done[session], dep_q) for session in order]
    return Given(torch.cat([row.text for row in rows]), torch.cat([row.audio for row in rows]))


@pytest.mark.parametrize("name", list(FAMILY))
@torch.no_grad()
def test_sessions_of_all_kinds_in_one_batch_equal_the_reference_each_alone(name: str) -> None:
    config, sessions = FAMILY[name], SESSIONS[name]()
    reference, lm = lm_pair(config)
    alone = ReferenceRun(reference, config)
    expected = [alone.run(session) for session in sessions]
    _require_that_choices_matter(sessions, expected)

    batch, chance, comparison = _Batch(lm, sessions), random.Random(3), TokenComparison(len(sessions))
    while batch.waiting or batch.seated:
        batch.admit(chance)
        order = [session for session in batch.seated if chance.random() < 0.9]
        chance.shuffle(order)
        if not order:
            continue
        runs = [chance.random() < 0.9 for _ in order]
        rows = batch.rows(order, runs, pad=chance.random() < 0.3)
        user = torch.stack([sessions[session].user[batch.done[session]] for session in order])
        given = _given(batch, order)
        thought = lm.think(user, batch.state, rows, given.text)
        spoken = lm.speak(thought, batch.state, rows, given.audio)
        heads = lm.heads(thought, rows)
        said = lm.advance(thought.text, spoken.codes, batch.state, rows)
        for row, session in enumerate(order):
            if not runs[row]:
                continue
            step = expected[session][batch.done[session]]
            muted = batch.done[session] < sessions[session].mute
            ours = [thought.text_logits[row], *([] if muted else spoken.logits[row])]
            comparison.add(session, [step.text_logits, *step.audio_logits], ours, sessions[session].gain)
            assert torch.equal(torch.cat([said.text[row, None], said.codes[row]]), step.said)
            torch.testing.assert_close(heads[row].flatten(), step.heads.flatten(), atol=1e-5, rtol=0)
            batch.done[session] += 1
            if batch.done[session] == STEPS:
                batch.leave(session)
    comparison.check()
    assert STEPS > 3 * CONTEXT
    assert batch.done == [STEPS] * len(sessions)
    assert any(len(set(kinds)) > 1 for kinds in batch.history), "no slot had holders of two kinds"


def _require_that_choices_matter(sessions: list[Session], expected: list[list[Step]]) -> None:
    """Sessions that hear the same and choose differently must differ, else nothing would be shown."""
    for one in range(len(sessions)):
        for other in range(one):
            if torch.equal(sessions[one].user, sessions[other].user):
                late = [torch.cat([step.text_logits for step in expected[index]]) for index in (one, other)]
                assert float((late[0] - late[1]).abs().max()) > 1e-2, (one, other)


@pytest.mark.parametrize("config", [TWO_B, HIBIKI, TTS, STT], ids=list(FAMILY))
def test_the_end_of_input_is_the_token_past_every_codebook(config: dict[str, Any]) -> None:
    _, lm = lm_pair(config)
    frame = lm.end_of_input(3)
    assert frame.shape == (3, config["n_q"] - config["dep_q"])
    assert bool((frame == config["card"]).all())
