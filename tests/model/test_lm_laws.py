"""Laws of the language model's state: rows are strangers, masked rows rest, fresh is fresh, tokens are the memory."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serve_app.errors import ShapeError
from serve_app.model.lm import LM, Given, LMConfig, LMState, Said
from serve_app.model.state import Rows, all_rows, leaves, reset
from serve_app.spec import GREEDY, Sampling
from tests.model.language import CONTEXT, CPU, LATE_16, MOSHIKO, SHAPES, SHARED_DEPTH, small_lm

HOT = Sampling(text_temperature=0.9, text_top_k=25, audio_temperature=0.9, audio_top_k=20, text_seed=3, audio_seed=4)
SLOTS = 4


def _state(lm: LM, slots: int = SLOTS, sampling: Sampling = GREEDY) -> LMState:
    state = lm.init_state(slots, CPU, torch.float32)
    for slot in range(slots):
        state.sampling.set(slot, sampling)
    return state


def _heard(lm: LM, steps: int, rows: int = SLOTS, seed: int = 0) -> Tensor:
    """The user's codes, ``[steps, rows, user_q]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, lm.config.card, (steps, rows, lm.config.user_q), generator=generator)


def _tokens(said: Said) -> Tensor:
    return torch.cat([said.text[:, None], said.codes], dim=1)


def _own_sampling(session: int) -> Sampling:
    """Everybody samples in a way of their own; every third is greedy."""
    if session % 3 == 2:
        return GREEDY
    return Sampling(
        text_temperature=0.5 + 0.3 * session,
        text_top_k=(25, 0, 7)[session % 3],
        audio_temperature=1.2 - 0.2 * session,
        audio_top_k=(0, 20, 500)[session % 3],
        text_seed=17 * session,
        audio_seed=99 - session,
    )


@pytest.mark.parametrize("config", [MOSHIKO, LATE_16], ids=["moshiko", "late-16"])
@pytest.mark.parametrize("sampled", [False, True], ids=["greedy", "sampled"])
@torch.no_grad()
def test_a_session_says_in_a_batch_what_it_says_alone(config: dict[str, Any], sampled: bool) -> None:
    lm = small_lm(config)
    steps, sessions = 4 * CONTEXT, 6
    heard = _heard(lm, steps, sessions)
    samplings = [_own_sampling(session) if sampled else GREEDY for session in range(sessions)]

    alone = []
    for session in range(sessions):
        state = _state(lm, 1, samplings[session])
        alone.append([_tokens(lm.step(heard[t, session][None], state, all_rows(1)))[0] for t in range(steps)])

    chance = random.Random(8)
    state = _state(lm)
    waiting, seated, done = list(range(sessions)), dict[int, int](), [0] * sessions
    while waiting or seated:
        for slot in range(SLOTS):
            if slot not in seated and waiting and chance.random() < 0.3:
                seated[slot] = waiting.pop(0)
                reset(state, torch.tensor([slot]))
                state.sampling.set(slot, samplings[seated[slot]])
        order = [slot for slot in seated if chance.random() < 0.8]
        chance.shuffle(order)
        if not order:
            continue
        user = torch.stack([heard[done[seated[slot]], seated[slot]] for slot in order])
        said = lm.step(user, state, Rows.of(torch.tensor(order), torch.ones(len(order), dtype=torch.bool), SLOTS))
        for row, slot in enumerate(order):
            session = seated[slot]
            assert torch.equal(_tokens(said)[row], alone[session][done[session]])
            done[session] += 1
            if done[session] == steps:
                del seated[slot]
    assert done == [steps] * sessions


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
@torch.no_grad()
def test_a_masked_row_keeps_every_state_bit(config: dict[str, Any]) -> None:
    lm = small_lm(config)
    state = _state(lm, sampling=HOT)
    for user in _heard(lm, 3):
        lm.step(user, state, all_rows(SLOTS))
    before = [leaf.clone() for leaf in leaves(state)]
    rows = Rows.of(torch.arange(SLOTS), torch.tensor([True, False, True, False]), SLOTS)
    said = lm.step(_heard(lm, 1, seed=9)[0], state, rows)
    assert not said.complete[1]
    assert bool((said.codes[1] == -2).all())
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[1, 3]], new[[1, 3]])
    assert not torch.equal(before[0][0], leaves(state)[0][0])


@pytest.mark.parametrize("wipe", [False, True])
@torch.no_grad()
def test_a_reset_slot_goes_on_as_a_fresh_one_to_the_bit(wipe: bool) -> None:
    lm = small_lm(SHARED_DEPTH)
    used, fresh = _state(lm, sampling=HOT), _state(lm, sampling=HOT)
    for user in _heard(lm, 3 * CONTEXT):
        lm.step(user, used, all_rows(SLOTS))
    reset(used, torch.arange(SLOTS), wipe=wipe)
    for slot in range(SLOTS):
        used.sampling.set(slot, HOT)
    for user in _heard(lm, 2 * CONTEXT, seed=5):
        nothing, outcomes = Given.nothing(SLOTS, 8), []
        for state in (used, fresh):
            thought = lm.think(user, state, all_rows(SLOTS), nothing.text)
            spoken = lm.speak(thought, state, all_rows(SLOTS), nothing.audio)
            lm.advance(thought.text, spoken.codes, state, all_rows(SLOTS))
            outcomes.append((thought.hidden, spoken.logits, spoken.codes))
        assert all(torch.equal(*both) for both in zip(*outcomes, strict=True))


@torch.no_grad()
def test_what_is_not_finite_stays_in_its_row_and_ends_with_a_wipe() -> None:
    lm = small_lm()
    state, clean = _state(lm, sampling=HOT), _state(lm, sampling=HOT)
    heard = _heard(lm, 3 * CONTEXT)
    for user in heard[:5]:
        lm.step(user, state, all_rows(SLOTS))
        lm.step(user, clean, all_rows(SLOTS))
    state.transformer.rings[0].values[1].fill_(float("nan"))
    for user in heard[5:CONTEXT]:
        said, expected = lm.step(user, state, all_rows(SLOTS)), lm.step(user, clean, all_rows(SLOTS))
        others = [0, 2, 3]
        assert torch.equal(_tokens(said)[others], _tokens(expected)[others])
    assert not torch.isfinite(state.transformer.rings[1].keys[1]).all()

    reset(state, torch.tensor([1, SLOTS]), wipe=True)
    assert all(bool(torch.isfinite(leaf).all()) for leaf in leaves(state))
    reset(clean, torch.tensor([1]))
    state.sampling.set(1, HOT)
    clean.sampling.set(1, HOT)
    for user in heard[CONTEXT:]:
        assert torch.equal(
            _tokens(lm.step(user, state, all_rows(SLOTS))), _tokens(lm.step(user, clean, all_rows(SLOTS)))
        )


@pytest.mark.parametrize("config", [MOSHIKO, LATE_16], ids=["moshiko", "late-16"])
@torch.no_grad()
def test_given_tokens_reproduce_the_free_run_that_said_them(config: dict[str, Any]) -> None:
    lm = small_lm(config)
    free, forced, rows = _state(lm, sampling=HOT), _state(lm, sampling=GREEDY), all_rows(SLOTS)
    for user in _heard(lm, 3 * CONTEXT):
        nothing = Given.nothing(SLOTS, lm.config.dep_q)
        thought = lm.think(user, free, rows, nothing.text)
        spoken = lm.speak(thought, free, rows, nothing.audio)
        said = lm.advance(thought.text, spoken.codes, free, rows)

        again = lm.think(user, forced, rows, thought.text)
        spoken_again = lm.speak(again, forced, rows, spoken.codes)
        said_again = lm.advance(again.text, spoken_again.codes, forced, rows)
        assert torch.equal(thought.text_logits, again.text_logits)
        assert torch.equal(spoken.logits, spoken_again.logits)
        assert torch.equal(_tokens(said), _tokens(said_again))


@torch.no_grad()
def test_one_given_code_replaces_that_code_and_steers_only_what_follows() -> None:
    lm, rows = small_lm(), all_rows(SLOTS)
    plain, steered = _state(lm, sampling=HOT), _state(lm, sampling=HOT)
    user = _heard(lm, 1)[0]
    given = Given.nothing(SLOTS, 8)
    thought = lm.think(user, plain, rows, given.text)
    free = lm.speak(thought, plain, rows, given.audio)
    given.audio[2, 3] = (free.codes[2, 3] + 1) % 32
    said = lm.speak(lm.think(user, steered, rows, given.text), steered, rows, given.audio)
    assert said.codes[2, 3] == given.audio[2, 3]
    assert torch.equal(said.logits[2, :4], free.logits[2, :4])
    assert not torch.equal(said.logits[2, 4:], free.logits[2, 4:])
    assert torch.equal(said.logits[[0, 1, 3]], free.logits[[0, 1, 3]])


@torch.no_grad()
def test_the_zero_token_embeds_to_exactly_nothing_before_the_projection() -> None:
    lm = small_lm(SHARED_DEPTH)
    embedding = lm.depformer_emb[0]
    assert bool((embedding(torch.tensor([-1])) == 0).all())
    assert bool((embedding(torch.tensor([0])) != 0).any())
    normed = small_lm(SHAPES["inherited"]).text_emb
    assert bool((normed(torch.tensor([-1])) == 0).all())


@torch.no_grad()
def test_half_precision_weights_keep_logits_and_choices_in_single_precision() -> None:
    lm = small_lm().to(torch.bfloat16)
    state = lm.init_state(SLOTS, CPU, torch.bfloat16)
    rows = all_rows(SLOTS)
    for user in _heard(lm, 2 * CONTEXT):
        nothing = Given.nothing(SLOTS, 8)
        thought = lm.think(user, state, rows, nothing.text)
        spoken = lm.speak(thought, state, rows, nothing.audio)
        lm.advance(thought.text, spoken.codes, state, rows)
        assert thought.hidden.dtype == torch.bfloat16
        assert (thought.text_logits.dtype, spoken.logits.dtype) == (torch.float32, torch.float32)
        assert bool(torch.isfinite(spoken.logits).all())


def test_too_few_codebooks_of_the_user_are_refused_by_shape() -> None:
    lm = small_lm()
    with pytest.raises(ShapeError, match=r"user codes.*\[2, 7\]"):
        lm.step(torch.zeros(2, 7, dtype=torch.int64), _state(lm, 2), all_rows(2))


@pytest.mark.parametrize("config", SHAPES.values(), ids=SHAPES)
def test_a_step_asks_the_device_for_no_value(config: dict[str, Any]) -> None:
    with FakeTensorMode(), torch.no_grad():
        lm = LM(LMConfig.from_kyutai(config)).eval()
        state = lm.init_state(SLOTS, CPU, torch.float32)
        user = torch.zeros(3, lm.config.user_q, dtype=torch.int64)
        rows = Rows.of(torch.arange(3), torch.ones(3, dtype=torch.bool), SLOTS)
        said = lm.step(user, state, rows)
        assert said.codes.shape == (3, config["dep_q"])
