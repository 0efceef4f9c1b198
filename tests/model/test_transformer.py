"""The transformer against the reference: offline, and streaming past the wrap under random masks and resets."""

import dataclasses
import importlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serve_app.model.ring import Window
from serve_app.model.state import Rows, all_rows, leaves, reset
from serve_app.model.transformer import Transformer, TransformerConfig
from tests import oracle  # stubs what the reference's package names but an oracle never needs

assert oracle.PUBLISHED_LM

CONTEXT = 10
BATCH = 4
BASE = TransformerConfig(dim=64, heads=4, layers=2, feedforward=256, context=CONTEXT)
SHAPES = [
    BASE,
    dataclasses.replace(BASE, norm="layer_norm", gating="none", layer_scale=True),
    dataclasses.replace(BASE, position="rope_concat", kv_repeat=2, feedforward=192),
    dataclasses.replace(BASE, norm="layer_norm_f32", position="sin_rope"),
    dataclasses.replace(BASE, norm="rms_norm", position="sin", max_period=100_000.0),
    dataclasses.replace(BASE, position="none", gating="gelu"),
]


def _pair(config: TransformerConfig) -> tuple[Any, Transformer]:
    torch.manual_seed(7)
    reference = (
        importlib.import_module("moshi.modules.transformer")
        .StreamingTransformer(
            config.dim,
            config.heads,
            config.layers,
            dim_feedforward=config.feedforward,
            causal=True,
            context=config.context,
            norm=config.norm,
            positional_embedding=config.position,
            max_period=config.max_period,
            gating=config.gating,
            kv_repeat=config.kv_repeat,
            layer_scale=0.01 if config.layer_scale else None,
        )
        .eval()
    )
    for parameter in reference.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1
    ours = Transformer(config).eval()
    ours.load_state_dict(reference.state_dict())
    return reference, ours


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.norm}-{c.position}-{c.gating}-kv{c.kv_repeat}")
@torch.no_grad()
def test_offline_equals_the_reference(config: TransformerConfig) -> None:
    reference, ours = _pair(config)
    x = torch.randn(3, 2 * CONTEXT, config.dim)
    torch.testing.assert_close(ours(x), reference(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize("config", SHAPES, ids=lambda c: f"{c.norm}-{c.position}-{c.gating}-kv{c.kv_repeat}")
@pytest.mark.parametrize("steps", [1, 2])
@torch.no_grad()
def test_streaming_equals_the_reference_past_the_wrap_with_masks_and_resets(
    config: TransformerConfig, steps: int
) -> None:
    reference, ours = _pair(config)
    state = ours.init_state(BATCH, torch.device("cpu"), torch.float32)
    longest = 0
    with reference.streaming(BATCH):
        for tick in range(60):
            if tick == 25:
                reference.reset_streaming(torch.tensor([False, True, False, False]))
                reset(state, torch.tensor([1]))
            mask = torch.rand(BATCH) > 0.3
            x = torch.randn(BATCH, steps, config.dim)
            reference.set_exec_mask(mask)
            expected = reference(x)
            got = ours.step(x, state, Rows.of(torch.arange(BATCH), mask, BATCH))
            torch.testing.assert_close(got[mask], expected[mask], atol=1e-5, rtol=0)
            longest = max(longest, int(state.offset[:BATCH].max()))
    assert longest > 2 * CONTEXT, "the ring did not wrap"


@torch.no_grad()
def test_masked_row_keeps_every_state_bit() -> None:
    ours = Transformer(BASE).eval()
    state = ours.init_state(BATCH, torch.device("cpu"), torch.float32)
    ours.step(torch.randn(BATCH, 1, BASE.dim), state, all_rows(BATCH))
    before = [t[2].clone() for t in leaves(state)]
    mask = torch.tensor([True, True, False, True])
    ours.step(torch.randn(BATCH, 1, BASE.dim), state, Rows.of(torch.arange(BATCH), mask, BATCH))
    assert all(torch.equal(t[2], b) for t, b in zip(leaves(state), before, strict=True))


@torch.no_grad()
def test_a_nan_reaches_no_other_row_and_no_later_holder_after_a_wipe() -> None:
    ours = Transformer(BASE).eval()
    state = ours.init_state(BATCH, torch.device("cpu"), torch.float32)
    clean = ours.init_state(BATCH, torch.device("cpu"), torch.float32)
    for _ in range(CONTEXT):
        x = torch.randn(BATCH, 1, BASE.dim)
        poisoned = x.clone()
        poisoned[1] = float("nan")
        got = ours.step(poisoned, state, all_rows(BATCH))
        expected = ours.step(x, clean, all_rows(BATCH))
        assert torch.equal(got[[0, 2, 3]], expected[[0, 2, 3]])
        assert got[1].isnan().all()
    for part in (state, clean):
        reset(part, torch.tensor([1]), wipe=True)
    x = torch.randn(BATCH, 1, BASE.dim)
    assert torch.equal(ours.step(x, state, all_rows(BATCH)), ours.step(x, clean, all_rows(BATCH)))


@given(offset=st.integers(0, 40), steps=st.integers(1, 4), capacity=st.integers(4, 9))
def test_a_key_is_visible_iff_it_is_in_the_ring_and_not_in_the_future(offset: int, steps: int, capacity: int) -> None:
    rows = all_rows(1)
    window = Window.at(torch.tensor([offset]), steps, capacity, rows)
    written = offset + steps - 1
    held = {p % capacity: p for p in range(written + 1)}
    for step in range(steps):
        query = offset + step
        seen = {held[i] for i in range(capacity) if window.visible[0, 0, step, i]}
        assert seen == {p for p in range(query + 1) if p > written - capacity}


@torch.no_grad()
def test_prefill_equals_single_steps_while_the_ring_does_not_wrap() -> None:
    ours = Transformer(BASE).eval()
    x = torch.randn(2, CONTEXT, BASE.dim)
    at_once = ours.init_state(2, torch.device("cpu"), torch.float32)
    one_by_one = ours.init_state(2, torch.device("cpu"), torch.float32)
    together = ours.step(x, at_once, all_rows(2))
    single = torch.cat([ours.step(x[:, t : t + 1], one_by_one, all_rows(2)) for t in range(CONTEXT)], dim=1)
    torch.testing.assert_close(together, single, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(x), single, atol=1e-5, rtol=0)
