"""Products of 8-bit matrices: near the exact ones, alike for every number of rows, and laws of rows hold over them."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serve_app.bench.kernels import META, KernelCounter
from serve_app.model.linear import Linear
from serve_app.model.lm import LM, LMState
from serve_app.model.quantised_linear import Int8Linear, quantise_linears
from serve_app.model.state import Rows, all_rows, leaves
from serve_app.spec import GREEDY, Sampling
from tests.model.language import CPU, MOSHIKO, SHARED_DEPTH, small_lm

WIDE = MOSHIKO | {"depformer_dim": 64, "hidden_scale": 6, "depformer_dim_feedforward": 192}
"""Widths that the kernel takes; those of MOSHIKO's feed-forward blocks it does not."""
HOT = Sampling(text_temperature=0.9, text_top_k=25, audio_temperature=0.9, audio_top_k=20, text_seed=3, audio_seed=4)
SLOTS = 4


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def short_lm(config: dict[str, object] = WIDE) -> LM:
    lm = copy.deepcopy(small_lm(config))
    quantise_linears(lm)
    lm.lay_out()
    return lm


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 8, 64, 65])
@pytest.mark.parametrize("width", [64, 96, 40, 7])
@torch.no_grad()
def test_a_product_is_that_of_the_widened_matrix_but_for_bf16(width: int, rows: int, bias: bool) -> None:
    linear = Linear(width, 50, bias=bias)
    short, x = Int8Linear.of(linear), random(rows, 2, width)
    exact = (x.double() @ (short.weight.double() * short.scale.double()[:, None]).T).float()
    exact = exact if linear.bias is None else exact + linear.bias
    torch.testing.assert_close(short(x), exact, rtol=2**-7, atol=2**-7 * float(exact.abs().max()))
    assert short(x).dtype == torch.float32
    assert short(x.bfloat16()).dtype == torch.bfloat16


@given(rows=st.integers(1, 64), inputs=st.sampled_from([32, 64, 160]), outputs=st.integers(1, 70), seed=st.integers(0))
@settings(max_examples=60, deadline=None)
@torch.no_grad()
def test_a_row_gets_to_the_bit_what_it_gets_alone(rows: int, inputs: int, outputs: int, seed: int) -> None:
    torch.manual_seed(seed % 2**32)
    short, x = Int8Linear.of(Linear(inputs, outputs, bias=False)), torch.randn(rows, inputs)
    together = short(x)
    for row in {0, rows // 2, rows - 1}:
        assert torch.equal(short(x[row : row + 1])[0], together[row])


@torch.no_grad()
def test_what_is_not_finite_stays_in_its_row() -> None:
    short, x = Int8Linear.of(Linear(64, 30, bias=False)), random(5, 64)
    clean = short(x)
    x[3, 7] = float("nan")
    assert short(x)[3].isnan().all()
    assert torch.equal(short(x)[[0, 1, 2, 4]], clean[[0, 1, 2, 4]])


@torch.no_grad()
def test_what_was_in_8_bits_already_stays_as_it_is() -> None:
    short = Int8Linear.of(Linear(64, 30, bias=False))
    again = Int8Linear(64, 30, bias=False)
    again.hold(short.weight.float() * short.scale[:, None])
    assert torch.equal(again.weight, short.weight)


def test_every_linear_of_a_tick_is_in_8_bits_under_its_own_name_and_nothing_else_is() -> None:
    exact, short = small_lm(SHARED_DEPTH), short_lm(SHARED_DEPTH)
    names = {f"{name}.weight" for name, part in exact.named_modules() if type(part) is Linear}
    assert {name for name, value in short.state_dict().items() if value.dtype == torch.int8} == names
    assert list(short.state_dict()) == list(exact.state_dict())
    assert not any(type(part) is Linear for part in short.modules())
    assert any(type(part) is nn.Linear for part in short.modules())  # embeddings of low rank


@torch.no_grad()
def test_inputs_of_the_depformer_laid_together_are_what_they_are_apart() -> None:
    lm = short_lm()
    hidden = random(3, 1, 64)
    first, second = lm.depformer_in[:2]
    assert isinstance(first, Int8Linear)
    assert isinstance(second, Int8Linear)
    together = torch.cat(list(lm._depth_in(hidden)), dim=-1)
    assert torch.equal(together, torch.cat([part(hidden) for part in lm.depformer_in], dim=-1))
    assert first.weight.data_ptr() + 64 * 64 == second.weight.data_ptr()


def test_a_product_counts_as_what_its_pytorch_path_launches_away_from_the_cpu() -> None:
    short = Int8Linear(64, 30, bias=True, device=META)
    with torch.no_grad(), KernelCounter() as counter:
        assert short(torch.empty(3, 1, 64, device=META, dtype=torch.bfloat16)).shape == (3, 1, 30)
    assert counter.kernels == {"int8_linear": 4}


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
@torch.no_grad()
def test_a_session_says_in_a_batch_what_it_says_alone_and_says_it_again(sampling: Sampling) -> None:
    lm, heard = short_lm(), _heard(40)
    alone = [_say(lm, heard[:, row : row + 1], _state(lm, 1, sampling)) for row in range(SLOTS)]
    for _ in range(2):
        assert torch.equal(_say(lm, heard, _state(lm, SLOTS, sampling)), torch.cat(alone, dim=1))


@torch.no_grad()
def test_a_masked_row_keeps_every_state_bit() -> None:
    lm = short_lm()
    state = _state(lm, SLOTS, HOT)
    _say(lm, _heard(3), state)
    before = [leaf.clone() for leaf in leaves(state)]
    rows = Rows.of(torch.arange(SLOTS), torch.tensor([True, False, True, False]), SLOTS)
    lm.step(_heard(1)[0], state, rows)
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[1, 3]], new[[1, 3]])


def _heard(steps: int) -> Tensor:
    return torch.randint(0, 32, (steps, SLOTS, 8), generator=torch.Generator().manual_seed(1))


def _state(lm: LM, slots: int, sampling: Sampling) -> LMState:
    state = lm.init_state(slots, CPU, torch.float32)
    for slot in range(slots):
        state.sampling.set(slot, sampling)
    return state


def _say(lm: LM, heard: Tensor, state: LMState) -> Tensor:
    said = [lm.step(user, state, all_rows(user.shape[0])).codes for user in heard]
    return torch.stack(said)  # [steps, R, dep_q]
