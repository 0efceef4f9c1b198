"""Eight bits with a scale: near what was there, and never hiding what is not finite."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KV_DTYPES, KvName, dequantise, quantise
from serve_app.model.state import Rows, all_rows, leaves, reset, state_bytes_per_slot
from serve_app.model.transformer import Transformer, TransformerConfig

NEAR = {"int8": 1 / 254, "fp8": 1 / 16}
"""Half a step of 127, of the largest; half a step of three bits, of the number itself."""
CPU = torch.device("cpu")
CONFIG = TransformerConfig(dim=32, heads=2, layers=2, feedforward=128, context=10)


@pytest.mark.parametrize("kv", list(NEAR))
@given(exponent=st.integers(-20, 20), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_what_comes_back_is_near_whatever_the_size(kv: KvName, exponent: int, seed: int) -> None:
    x = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(seed)) * 2.0**exponent
    x[0, 0] = 0
    back = dequantise(*quantise(x, KV_DTYPES[kv]), torch.float32)
    assert bool(((back - x).abs() <= 1.01 * NEAR[kv] * x.abs().amax(dim=-1, keepdim=True)).all())
    assert not back[0, 0].any()


@pytest.mark.parametrize("kv", list(NEAR))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_seen_after_it_and_in_its_own_vector_alone(kv: KvName, value: float) -> None:
    x = torch.ones(2, 4)
    x[0, 2] = value
    back = dequantise(*quantise(x, KV_DTYPES[kv]), torch.float32)
    assert back[0].isnan().any()
    assert torch.equal(back[1], x[1])


@pytest.mark.parametrize("storage", [Storage(), Storage(pages=9, page_steps=4)], ids=["rings", "pages"])
@pytest.mark.parametrize(("kv", "near"), [("int8", 0.02), ("fp8", 0.1)])
@torch.no_grad()
def test_a_transformer_with_eight_bit_keys_stays_near_the_exact_one(storage: Storage, kv: KvName, near: float) -> None:
    torch.manual_seed(3)
    model = Transformer(CONFIG).eval()
    exact = model.init_state(2, CPU, torch.float32)
    short = model.init_state(2, CPU, torch.float32, Storage(storage.pages, storage.page_steps, kv))
    if short.pages is not None:
        short.pages.give(0, [1, 2, 3])
        short.pages.give(1, [4, 5, 6])
    for steps in (1, 3, 10, 1, 2, 9, 1, 1):
        x = torch.randn(2, steps, CONFIG.dim)
        expected = model.step(x, exact, all_rows(2), one_by_one=True)
        got = model.step(x, short, all_rows(2), one_by_one=True)
        worst = float((got - expected).abs().max())
        assert 0 < worst < near


@torch.no_grad()
def test_steps_at_once_see_each_other_as_they_will_be_read_later() -> None:
    torch.manual_seed(3)
    model = Transformer(CONFIG).eval()
    at_once, single = (model.init_state(1, CPU, torch.float32, Storage(kv="int8")) for _ in "ab")
    rows = Rows.of(torch.tensor([0]), torch.tensor([True]), 1)
    for _ in range(3):
        x = torch.randn(1, 7, CONFIG.dim)
        expected = torch.cat([model.step(part, single, rows) for part in torch.split(x, 1, dim=1)], dim=1)
        got = model.step(x, at_once, rows, one_by_one=True)
        torch.testing.assert_close(got, expected, atol=2e-3, rtol=0)  # a value may round the other way


@pytest.mark.parametrize("kv", list(NEAR))
def test_eight_bits_take_a_little_over_a_quarter_of_fp32(kv: KvName) -> None:
    model = Transformer(CONFIG)
    wide, short = (
        state_bytes_per_slot(model.init_state(1, CPU, torch.float32, Storage(kv=name)).rings) for name in (None, kv)
    )
    assert short == wide * (16 + 4) // (16 * 4)


@pytest.mark.parametrize("kv", list(NEAR))
@torch.no_grad()
def test_a_wiped_slot_holds_nothing(kv: KvName) -> None:
    model = Transformer(CONFIG).eval()
    state = model.init_state(2, CPU, torch.float32, Storage(kv=kv))
    model.step(torch.randn(2, 3, CONFIG.dim), state, all_rows(2))
    reset(state, torch.tensor([1]), wipe=True)
    assert not any(leaf[1].float().any() for leaf in leaves(state))
    assert all(leaf[0].float().any() for leaf in leaves(state))
