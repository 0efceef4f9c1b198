"""Rows of the codec are strangers: what one of them does, the others neither see nor hear."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serve_app.errors import ShapeError
from serve_app.model.mimi import Mimi, MimiState
from serve_app.model.state import Rows, all_rows, leaves, reset
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import CPU, PCM_TOLERANCE, SMALL, TINY, random_codec

SLOTS = 3
CODEC = random_codec(TINY)
EVERY = torch.arange(SLOTS)
Frame = tuple[Tensor, Tensor]


def _fresh(slots: int = SLOTS) -> MimiState:
    return CODEC.init_state(slots, CPU, torch.float32)


def _pcm(rows: int, seed: int) -> Tensor:
    return 0.3 * torch.randn(rows, 1, FRAME_SAMPLES, generator=torch.Generator().manual_seed(seed))


def _tick(state: MimiState, pcm: Tensor, rows: Rows, codec: Mimi = CODEC) -> Frame:
    codes = codec.encode_step(pcm, state, rows)
    return codes, codec.decode_step(codes, state, rows)


def _rows(slots: list[int], exec_mask: list[bool], scratch: int = SLOTS) -> Rows:
    return Rows.of(torch.tensor(slots), torch.tensor(exec_mask), scratch)


_TICK = st.tuples(
    st.permutations(range(SLOTS)),
    st.lists(st.booleans(), min_size=SLOTS, max_size=SLOTS),
    st.sets(st.integers(0, SLOTS - 1), max_size=1),
)


@given(st.lists(_TICK, min_size=1, max_size=20))
@settings(deadline=None, max_examples=25)
def test_each_row_gets_in_a_batch_what_it_gets_alone(schedule: list[tuple[list[int], list[bool], set[int]]]) -> None:
    together, alone = _fresh(), [_fresh(1) for _ in range(SLOTS)]
    for tick, (slots, mask, leaving) in enumerate(schedule):
        for slot in leaving:
            reset(together, torch.tensor([slot]))
            alone[slot] = _fresh(1)
        pcm = _pcm(SLOTS, tick)
        codes, voice = _tick(together, pcm, _rows(slots, mask))
        for row, slot in enumerate(slots):
            if mask[row]:
                solo_codes, solo_voice = _tick(alone[slot], pcm[row : row + 1], all_rows(1))
                assert torch.equal(codes[row], solo_codes[0])
                assert float((voice[row] - solo_voice[0]).abs().max()) <= PCM_TOLERANCE


def test_a_row_is_equal_to_the_bit_whoever_shares_its_batch() -> None:
    first, second = _fresh(), _fresh()
    for tick in range(8):
        pcm, others = _pcm(SLOTS, tick), _pcm(SLOTS, 100 + tick)
        others[1] = pcm[1]
        codes, voice = _tick(first, pcm, all_rows(SLOTS))
        codes_among_others, voice_among_others = _tick(second, others, _rows([0, 1, 2], [tick % 2 == 0, True, False]))
        assert torch.equal(codes[1], codes_among_others[1])
        assert torch.equal(voice[1], voice_among_others[1])


def test_a_masked_row_keeps_every_bit_of_its_state() -> None:
    state, chance = _fresh(), random.Random(0)
    for tick in range(10):
        mask = [chance.random() < 0.5 for _ in range(SLOTS)]
        before = [leaf.clone() for leaf in leaves(state)]
        _tick(state, _pcm(SLOTS, tick), _rows([0, 1, 2], mask))
        for leaf, old in zip(leaves(state), before, strict=True):
            for slot in range(SLOTS):
                assert mask[slot] or torch.equal(leaf[slot], old[slot])


def test_every_part_of_the_state_is_written_by_a_row_that_executes() -> None:
    state = _fresh()
    before = [leaf.clone() for leaf in leaves(state)]
    _tick(state, _pcm(SLOTS, 0), all_rows(SLOTS))
    assert not any(torch.equal(leaf[0], old[0]) for leaf, old in zip(leaves(state), before, strict=True))


def test_a_reset_slot_equals_a_fresh_one() -> None:
    used, fresh = _fresh(), _fresh()
    for tick in range(15):  # past the wrap of a context of 12 steps
        _tick(used, _pcm(SLOTS, tick), all_rows(SLOTS))
    reset(used, torch.tensor([1]))
    for tick in range(15, 25):
        pcm = _pcm(SLOTS, tick)
        codes, voice = _tick(used, pcm, all_rows(SLOTS))
        fresh_codes, fresh_voice = _tick(fresh, pcm, all_rows(SLOTS))
        assert torch.equal(codes[1], fresh_codes[1])
        assert torch.equal(voice[1], fresh_voice[1])


def test_a_reset_of_the_encoder_leaves_the_decoder_alone() -> None:
    state = _fresh()
    _tick(state, _pcm(SLOTS, 0), all_rows(SLOTS))
    before = [leaf.clone() for leaf in leaves(state.decoder)]
    reset(state.encoder, EVERY, wipe=True)
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves(state.decoder), before, strict=True))
    pcm = _pcm(SLOTS, 1)
    codes = CODEC.encode_step(pcm, state, all_rows(SLOTS))
    assert torch.equal(codes, CODEC.encode_step(pcm, _fresh(), all_rows(SLOTS)))


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
def test_what_is_not_finite_stays_in_its_row_and_leaves_with_a_wipe(poison: float) -> None:
    poisoned, clean, fresh = _fresh(), _fresh(), _fresh()
    for tick in range(12):
        pcm = _pcm(SLOTS, tick)
        bad = pcm.clone()
        bad[1, 0, 5] = poison
        codes, voice = _tick(poisoned, bad if tick == 3 else pcm, all_rows(SLOTS))
        clean_codes, clean_voice = _tick(clean, pcm, all_rows(SLOTS))
        assert torch.equal(codes[::2], clean_codes[::2])
        assert torch.equal(voice[::2], clean_voice[::2])
    reset(poisoned, torch.tensor([1]), wipe=True)
    for tick in range(12, 20):
        pcm = _pcm(SLOTS, tick)
        codes, voice = _tick(poisoned, pcm, all_rows(SLOTS))
        fresh_codes, fresh_voice = _tick(fresh, pcm, all_rows(SLOTS))
        assert torch.equal(codes[1], fresh_codes[1])
        assert torch.equal(voice[1], fresh_voice[1])


def test_a_padding_row_on_scratch_disturbs_nobody() -> None:
    padded, plain = _fresh(), _fresh()
    for tick in range(6):
        pcm = _pcm(SLOTS, tick)
        pcm[2] = float("nan")
        codes, voice = _tick(padded, pcm, _rows([0, 1, SLOTS], [True, True, False]))
        expected, expected_voice = _tick(plain, _pcm(SLOTS, tick), _rows([0, 1, 2], [True, True, False]))
        assert torch.equal(codes[:2], expected[:2])
        assert torch.equal(voice[:2], expected_voice[:2])


def test_a_step_waits_for_no_device() -> None:
    with FakeTensorMode():
        codec = Mimi(SMALL)
        state = codec.init_state(SLOTS, CPU, torch.float32)
        rows = Rows.of(torch.arange(SLOTS), torch.ones(SLOTS, dtype=torch.bool), SLOTS)
        codes, voice = _tick(state, torch.zeros(SLOTS, 1, FRAME_SAMPLES), rows, codec)
        reset(state, torch.zeros(1, dtype=torch.int64))
    assert codes.shape == (SLOTS, 8, 1)
    assert voice.shape == (SLOTS, 1, FRAME_SAMPLES)


def test_state_tensors_keep_their_addresses() -> None:
    state = _fresh()
    addresses = [leaf.data_ptr() for leaf in leaves(state)]
    _tick(state, _pcm(SLOTS, 0), all_rows(SLOTS))
    reset(state, EVERY, wipe=True)
    assert [leaf.data_ptr() for leaf in leaves(state)] == addresses


@pytest.mark.parametrize("samples", [0, 1, FRAME_SAMPLES - 1, FRAME_SAMPLES + 1, 2 * FRAME_SAMPLES])
def test_anything_but_one_frame_is_refused_by_a_typed_error(samples: int) -> None:
    state = _fresh()
    before = [leaf.clone() for leaf in leaves(state)]
    with pytest.raises(ShapeError, match="1920"):
        CODEC.encode_step(torch.zeros(SLOTS, 1, samples), state, all_rows(SLOTS))
    with pytest.raises(ShapeError, match="codes"):
        CODEC.decode_step(torch.zeros(SLOTS, 4, 2, dtype=torch.int64), state, all_rows(SLOTS))
    assert all(torch.equal(leaf, old) for leaf, old in zip(leaves(state), before, strict=True))
