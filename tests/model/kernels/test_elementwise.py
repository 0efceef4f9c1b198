"""Norm with its residual, gate, and a Depformer position, against the model's modules, under the interpreter."""

import typing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from serve_app.model import fused
from serve_app.model.fused import activate, attend_masked
from serve_app.model.kernels.plug import kernel
from serve_app.model.norm import RmsNorm, make_norm
from serve_app.model.transformer import ActivationName, LayerScale


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The kernel."""
    total, normed = kernel("add_norm")(x, update, weight, eps, bias, scale)
    return total, normed


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(1, 3), steps=st.integers(1, 2), dim=st.integers(1, 40))
def test_add_norm_is_the_residual_and_the_models_rms_norm(rows: int, steps: int, dim: int) -> None:
    module = make_norm("rms_norm_f32", dim)
    assert isinstance(module, RmsNorm)
    module.alpha.data = random(1, 1, dim, seed=2)
    x, update = random(rows, steps, dim), random(rows, steps, dim, seed=1)
    total, normed = add_norm(x, update, module.alpha.detach(), module.eps)
    assert torch.equal(total, x + update)
    torch.testing.assert_close(normed, module(x + update).detach(), atol=1e-6, rtol=1e-6)
    alone = kernel("norm")(x, module.alpha.detach(), module.eps, None)
    torch.testing.assert_close(alone, module(x).detach(), atol=1e-6, rtol=1e-6)


@settings(max_examples=8, deadline=None)
@given(dim=st.integers(2, 40))
def test_with_a_bias_and_a_scale_it_is_layer_norm_behind_a_layer_scale(dim: int) -> None:
    module, scale = nn.LayerNorm(dim), LayerScale(dim)
    module.weight.data, module.bias.data, scale.scale.data = (
        random(dim, seed=2),
        random(dim, seed=3),
        random(dim, seed=4),
    )
    x, update = random(2, 2, dim) + 3, random(2, 2, dim, seed=1)
    total, normed = add_norm(x, update, module.weight.detach(), module.eps, module.bias.detach(), scale.scale.detach())
    torch.testing.assert_close(total, (x + scale(update)).detach(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normed, module(x + scale(update)).detach(), atol=3e-6, rtol=1e-5)


def test_add_norm_in_bf16_is_within_one_rounding_of_the_model() -> None:
    x, update, weight = (random(2, 1, 33, seed=seed).bfloat16() for seed in range(3))
    weight = weight[0, 0]
    total, normed = add_norm(x, update, weight, 1e-8)
    expected = fused.add_norm(x, update, weight, 1e-8)
    # The interpreter rounds fp32 to bf16 toward zero, a GPU to the nearest: one step of bf16 either way.
    torch.testing.assert_close(total, expected[0], atol=1e-6, rtol=2**-7)
    torch.testing.assert_close(normed, expected[1], atol=1e-6, rtol=2**-6)


@pytest.mark.parametrize("activation", [name for name in typing.get_args(ActivationName) if name != "none"])
def test_gate_is_the_activated_first_half_times_the_second(activation: ActivationName) -> None:
    x = random(2, 1, 2 * 21) * 3
    a, b = x.chunk(2, dim=-1)
    torch.testing.assert_close(kernel("gate")(x, activation), activate(a, activation) * b, atol=1e-6, rtol=2e-6)


def test_gate_crosses_the_edge_of_a_block() -> None:
    x = random(1, 1, 2 * 1030)
    a, b = x.chunk(2, dim=-1)
    torch.testing.assert_close(kernel("gate")(x, "silu"), activate(a, "silu") * b, atol=1e-6, rtol=2e-6)


@settings(max_examples=6, deadline=None)
@given(
    rows=st.integers(1, 2),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    head_dim=st.sampled_from([2, 6, 8]),
    room=st.sampled_from([1, 3, 8, 16, 32]),
)
def test_a_depth_step_attends_to_every_position_so_far(
    rows: int, kv_heads: int, group: int, head_dim: int, room: int
) -> None:
    heads = kv_heads * group
    keys = torch.full((rows, kv_heads, room, head_dim), float("nan"))  # what was not said yet must not be seen
    values = keys.clone()
    said: list[tuple[Tensor, Tensor]] = []
    for index in range(min(room, 4)):
        qkv = random(rows, 1, (heads + 2 * kv_heads) * head_dim, seed=index)
        ours = kernel("depth_attention")(qkv, keys, values, index, heads)
        q, k, v = torch.split(qkv.view(rows, 1, -1, head_dim).transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
        said.append((k, v))
        past = [torch.cat(part, dim=2) for part in zip(*said, strict=True)]
        expected = attend_masked(q, past[0], past[1], None).transpose(1, 2).flatten(-2)
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)
        assert torch.equal(keys[:, :, : index + 1], past[0])
        assert torch.equal(values[:, :, : index + 1], past[1])
