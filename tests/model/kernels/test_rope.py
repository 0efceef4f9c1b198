"""Rotation with its write against the model's own rotation, under the interpreter."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model import fused
from serve_app.model.kernels.plug import kernel
from serve_app.model.rope import Rotation

PLACES = 5


def rope_append(
    qkv: Tensor,
    rotation: Rotation | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    *,
    heads: int,
    kv_heads: int,
    interleaved: bool,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """The kernel."""
    cos, sin = (None, None) if rotation is None else (rotation.cos, rotation.sin)
    shape = (heads, kv_heads, interleaved)
    made: Tensor = kernel("rope_append")(qkv, cos, sin, keys, values, write, index, *shape, key_scale, value_scale)
    return made


def expected(
    qkv: Tensor,
    rotation: Rotation | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    heads: int,
    kv_heads: int,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """The PyTorch path."""
    cos, sin, interleaved = (
        (None, None, True) if rotation is None else (rotation.cos, rotation.sin, rotation.interleaved)
    )
    where = (write.reshape(len(qkv), -1), index)
    return fused.rope_append(qkv, cos, sin, keys, values, *where, heads, kv_heads, interleaved, key_scale, value_scale)


@settings(max_examples=12, deadline=None)
@given(
    rows=st.integers(1, 2),
    steps=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 2),
    head_dim=st.sampled_from([2, 6, 8]),
    interleaved=st.booleans(),
    rotates=st.booleans(),
    offset=st.integers(0, 5000),
    a_page_a_step=st.booleans(),
)
def test_queries_turn_and_keys_and_values_land_where_they_belong(
    rows: int,
    steps: int,
    kv_heads: int,
    group: int,
    head_dim: int,
    interleaved: bool,
    rotates: bool,
    offset: int,
    a_page_a_step: bool,
) -> None:
    generator = torch.Generator().manual_seed(0)
    heads = kv_heads * group
    qkv = torch.randn(rows, steps, (heads + 2 * kv_heads) * head_dim, generator=generator)
    offsets = offset + 3 * torch.arange(rows)
    rotation = Rotation.at(offsets, steps, head_dim, 10_000, interleaved) if rotates else None
    write = torch.randperm(rows * steps if a_page_a_step else rows + 1, generator=generator)
    write = write.view(rows, steps) if a_page_a_step else write[:rows]
    index = (offsets[:, None] + torch.arange(steps)) % PLACES
    shape = (rows * steps + 1, PLACES, kv_heads, head_dim)
    ours, theirs = [torch.full(shape, 7.0) for _ in range(2)], [torch.full(shape, 7.0) for _ in range(2)]
    q = rope_append(
        qkv,
        rotation,
        ours[0],
        ours[1],
        write,
        index,
        heads=heads,
        kv_heads=kv_heads,
        interleaved=interleaved,
    )
    theirs_q = expected(qkv, rotation, theirs[0], theirs[1], write, index, heads, kv_heads)
    torch.testing.assert_close(q, theirs_q, atol=1e-6, rtol=1e-6)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("store", [torch.int8, torch.float8_e4m3fn])
def test_a_quantised_write_keeps_a_scale_per_token_and_head(store: torch.dtype) -> None:
    heads, head_dim = 2, 8
    qkv = torch.randn(2, 1, 3 * heads * head_dim, generator=torch.Generator().manual_seed(0))
    qkv[0, 0, -head_dim:] = 0.0  # a value of zeros only has a scale too
    rotation = Rotation.at(torch.tensor([4, 900]), 1, head_dim, 10_000, True)
    write, index = torch.tensor([1, 0]), torch.tensor([[3], [0]])
    ours, theirs = [torch.zeros(3, 4, heads, head_dim).to(store) for _ in range(2)], []
    scales = [torch.zeros(3, 4, heads) for _ in range(4)]
    rope_append(
        qkv,
        rotation,
        ours[0],
        ours[1],
        write,
        index,
        heads=heads,
        kv_heads=heads,
        interleaved=True,
        key_scale=scales[0],
        value_scale=scales[1],
    )
    theirs = [torch.zeros(3, 4, heads, head_dim).to(store) for _ in range(2)]
    expected(qkv, rotation, theirs[0], theirs[1], write, index, heads, heads, scales[2], scales[3])
    step = 1.01 / 127 if store == torch.int8 else 2**-3  # of the greatest value: one step of the format
    for mine, other, my_scale, its_scale in zip(ours, theirs, scales[:2], scales[2:], strict=True):
        torch.testing.assert_close(my_scale, its_scale, atol=0, rtol=1e-6)
        reach = its_scale[..., None] * (127 if store == torch.int8 else torch.finfo(store).max)
        gap = (mine.float() * my_scale[..., None] - other.float() * its_scale[..., None]).abs()
        assert bool((gap <= step * reach).all())
        if store == torch.int8:
            assert torch.equal(mine, other)


def test_a_store_in_bf16_takes_what_the_product_had_in_bf16() -> None:
    qkv = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(0)).bfloat16()
    keys, values = torch.zeros(1, 2, 1, 4).bfloat16(), torch.zeros(1, 2, 1, 4).bfloat16()
    one = torch.tensor([[1]])
    q = rope_append(qkv, None, keys, values, one[0] - 1, one, heads=1, kv_heads=1, interleaved=False)
    assert torch.equal(q.flatten(), qkv.flatten()[:4])
    assert torch.equal(keys[0, 1, 0], qkv.flatten()[4:8])
    assert torch.equal(values[0, 1, 0], qkv.flatten()[8:])
    assert not keys[0, 0].any()


def test_a_vector_that_is_not_finite_has_a_scale_that_shows_it() -> None:
    qkv = torch.ones(1, 1, 12)
    qkv[0, 0, 5] = float("nan")
    stores, scales = (
        [torch.zeros(1, 1, 1, 4).to(torch.int8) for _ in range(2)],
        [torch.zeros(1, 1, 1) for _ in range(2)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the interpreter casts NaN to an integer and says so
        rope_append(
            qkv,
            None,
            stores[0],
            stores[1],
            torch.zeros(1, dtype=torch.int64),
            torch.zeros(1, 1, dtype=torch.int64),
            heads=1,
            kv_heads=1,
            interleaved=False,
            key_scale=scales[0],
            value_scale=scales[1],
        )
    assert bool(scales[0].isnan())
    assert float(scales[1]) == pytest.approx(1 / 127)
