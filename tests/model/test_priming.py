"""Many given steps at once: the state is what the same steps one by one would leave, and nobody else notices."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import ShapeError
from serve_app.model.lm import LM, Given, LMState
from serve_app.model.state import Rows, all_rows, leaves
from tests.model.family import HIBIKI, STT, TTS, TWO_B, Session, open_session
from tests.model.language import CONTEXT, CPU, INHERITED, MOSHIKO, small_lm

SLOTS = 5
SHAPES = {"moshiko": MOSHIKO, "inherited": INHERITED, "two-b": TWO_B, "hibiki": HIBIKI, "tts": TTS, "stt": STT}


def _tokens(lm: LM, rows: int, steps: int, seed: int = 0) -> Tensor:
    """Text, own codes and the user's codes of every step, ``[rows, streams, steps]``, silence among them."""
    c, generator = lm.config, torch.Generator().manual_seed(seed)
    text = torch.randint(0, c.text_card_out, (rows, 1, steps), generator=generator)
    codes = torch.randint(0, c.card, (rows, c.n_q, steps), generator=generator)
    tokens = torch.cat([text, codes], dim=1)
    return torch.where(torch.rand(tokens.shape, generator=generator) < 0.1, -1, tokens)


def _sessions(lm: LM) -> list[Session]:
    """Slot 0 plain, slot 1 under guidance with slot 2 for its twin, slot 4 a neighbour."""
    nobody = torch.empty(0, lm.config.user_q)
    choices = {"description": "good"} if lm.config.fuser.sum == ("description",) else {}
    return [
        Session(user=nobody, choices=choices),
        Session(user=nobody, choices=choices, coef=2.0, no_text=True, masked_until=CONTEXT),
        Session(user=nobody),
    ]


def _opened(lm: LM) -> LMState:
    state = lm.init_state(SLOTS, CPU, torch.float32)
    for slot, twin, session in zip((0, 1, 4), (None, 2, None), _sessions(lm), strict=True):
        open_session(lm, state, slot, twin, session)
    return state


def _rows(*slots: int) -> Rows:
    rows = Rows.of(torch.tensor(slots), torch.ones(len(slots), dtype=torch.bool), SLOTS)
    if 1 not in slots:
        return rows
    return rows.guided(torch.tensor([slots.index(1)]), torch.tensor([2]), SLOTS)


def _single(lm: LM, tokens: Tensor, state: LMState, rows: Rows) -> None:
    """The same steps, one by one."""
    own = 1 + lm.config.dep_q
    for now in tokens.unbind(2):
        lm.step(now[:, own:], state, rows, Given(now[:, 0], now[:, 1:own]))


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_steps_given_at_once_leave_what_single_steps_leave(name: str) -> None:
    lm = small_lm(SHAPES[name])
    at_once, single, chance = _opened(lm), _opened(lm), random.Random(7)
    rows, steps = _rows(0, 1), 0
    while steps <= 3 * CONTEXT:
        count = chance.choice((1, 2, 3, CONTEXT - 1, CONTEXT))
        tokens = _tokens(lm, 2, count, seed=steps)
        assert bool(lm.prime(tokens, at_once, rows).all())
        _single(lm, tokens, single, rows)
        steps += count
        for ours, theirs in zip(leaves(at_once), leaves(single), strict=True):
            torch.testing.assert_close(ours[:SLOTS], theirs[:SLOTS], atol=2e-4, rtol=0)
            if not ours.is_floating_point():
                assert torch.equal(ours[:SLOTS], theirs[:SLOTS])
        _converse(lm, at_once, single, rows)
        steps += 2
    assert int(at_once.transformer.offset[0]) == int(at_once.transformer.offset[2]) == steps > 3 * CONTEXT


def _converse(lm: LM, at_once: LMState, single: LMState, rows: Rows) -> None:
    """Two free steps say the same after both."""
    for seed in range(2):
        user = torch.randint(0, lm.config.card, (2, lm.config.user_q), generator=torch.Generator().manual_seed(seed))
        ours, theirs = lm.step(user, at_once, rows), lm.step(user, single, rows)
        assert torch.equal(ours.text, theirs.text)
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.complete, theirs.complete)


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_priming_a_row_leaves_every_bit_of_its_neighbours(name: str) -> None:
    lm = small_lm(SHAPES[name])
    state = _opened(lm)
    lm.prime(_tokens(lm, 3, 4), state, _rows(0, 1, 4))
    before = [leaf.clone() for leaf in leaves(state)]
    finite = lm.prime(_tokens(lm, 2, CONTEXT, seed=1), state, _rows(1, 4).masked(torch.tensor([False, True]), SLOTS))
    assert bool(finite.all())
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[:4], new[:4])
    lm.prime(_tokens(lm, 1, CONTEXT, seed=2), state, _rows(1))
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[0, 3]], new[[0, 3]])


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_frames_laid_out_as_steps_come_back_as_the_same_frames(name: str) -> None:
    lm = small_lm(SHAPES[name])
    state, rows = lm.init_state(2, CPU, torch.float32), all_rows(2)
    frames, own = _tokens(lm, 2, 3 * CONTEXT), 1 + lm.config.dep_q
    said = []
    for now in lm.delays.lay(frames).unbind(2):
        frame = lm.step(now[:, own:], state, rows, Given(now[:, 0], now[:, 1:own]))
        said.append(torch.cat([frame.text[:, None], frame.codes], dim=1))
    late = lm.config.max_delay
    assert torch.equal(torch.stack(said[late:], dim=2), frames[:, :own, : len(said) - late])


@torch.no_grad()
def test_a_value_that_is_not_finite_is_told_of_the_row_that_has_it() -> None:
    lm = small_lm(TWO_B)
    state = _opened(lm)
    assert state.conditions is not None
    state.conditions.sum[2].fill_(float("nan"))  # the twin's
    assert lm.prime(_tokens(lm, 3, 3), state, _rows(0, 1, 4)).tolist() == [True, False, True]


@pytest.mark.parametrize("shape", [(2, 17), (2, 16, 3), (2, 17, 0), (2, 17, CONTEXT + 1)])
def test_steps_that_do_not_fit_are_refused_by_shape(shape: tuple[int, ...]) -> None:
    lm: Any = small_lm()
    with pytest.raises(ShapeError, match="primed tokens"):
        lm.prime(torch.zeros(shape, dtype=torch.int64), lm.init_state(2, CPU, torch.float32), all_rows(2))
