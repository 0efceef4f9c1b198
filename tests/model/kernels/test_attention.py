"""Paged decode attention against PyTorch, under the interpreter. What a row does not hold is NaN throughout."""

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model import fused
from serve_app.model.kernels.plug import kernel
from serve_app.model.kernels.splits import MAX_SPLITS, split_count
from serve_app.model.quantised_kv import LARGEST, quantise
from serve_app.model.ring import KvRing, Window
from serve_app.model.state import all_rows

SPLITS = st.sampled_from([1, 2, 4])


def pool(
    lengths: list[int], capacity: int, page: int, kv_heads: int, head_dim: int, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, table and lengths of rows in shuffled pages; what no row holds is NaN."""
    generator = torch.Generator().manual_seed(seed)
    rows, blocks = len(lengths), -(-capacity // page)
    table = torch.randperm(rows * blocks, generator=generator).view(rows, blocks).int()
    stores = []
    for _ in range(2):
        store = torch.full((rows * blocks, page, kv_heads, head_dim), float("nan"))
        for row, length in enumerate(lengths):
            position = torch.arange(min(length, capacity))
            fresh = torch.randn(len(position), kv_heads, head_dim, generator=generator)
            store[table[row, position // page].long(), position % page] = fresh
        stores.append(store)
    return stores[0], stores[1], table, torch.tensor(lengths)


def attend(query: Tensor, keys: Tensor, values: Tensor, *others: Any, splits: int) -> Tensor:
    """The kernel, with so many programs a row."""
    scales = others[3:] or (None, None)
    made: Tensor = kernel("decode_attention")(query, keys, values, *others[:3], *scales, splits)
    return made


def expected(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, length: Tensor, *others: Any) -> Tensor:
    """The PyTorch path, which multiplies what a row does not hold by 0; rows without keys give zeros."""
    held = [store if store.dtype in LARGEST else store.nan_to_num() for store in (keys, values)]
    made = fused.decode_attention(query, held[0], held[1], table, length, *others)
    return torch.where((length == 0)[:, None, None], 0.0, made)


@settings(max_examples=12, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=3),
    capacity=st.integers(1, 100),
    page=st.integers(1, 70),
    kv_heads=st.integers(1, 2),
    group=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([4, 6, 16]),
    splits=SPLITS,
)
def test_rows_in_pages_see_their_last_steps_whatever_the_shapes(
    lengths: list[int], capacity: int, page: int, kv_heads: int, group: int, head_dim: int, splits: int
) -> None:
    keys, values, table, length = pool(lengths, capacity, page, kv_heads, head_dim)
    query = torch.randn(len(lengths), kv_heads * group, head_dim, generator=torch.Generator().manual_seed(1))
    ours = attend(query, keys, values, table, length, capacity, splits=splits)
    theirs = expected(query, keys, values, table, length, capacity)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_pages_that_do_not_divide_the_context_show_no_more_than_the_context() -> None:
    keys, values, table, length = pool([3005, 3000, 2990, 1], 3000, 64, 1, 8)
    query = torch.randn(4, 1, 8, generator=torch.Generator().manual_seed(1))
    ours = attend(query, keys, values, table, length, 3000, splits=4)
    theirs = expected(query, keys, values, table, length, 3000)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)


def test_a_ring_is_one_page_per_slot_and_gives_what_the_model_gives_past_the_wrap() -> None:
    slots, capacity, heads, head_dim = 2, 5, 2, 4
    generator = torch.Generator().manual_seed(0)
    ring = KvRing.empty(slots, capacity, heads, head_dim, torch.device("cpu"), torch.float32)
    rows, offset = all_rows(slots), torch.zeros(slots, dtype=torch.int64)
    for _ in range(2 * capacity + 1):
        q, k, v = (torch.randn(slots, heads, 1, head_dim, generator=generator) for _ in range(3))
        model = ring.step(q, k, v, rows, Window.at(offset, 1, capacity, rows))
        offset += 1
        stores = ring.keys.contiguous(), ring.values.contiguous()  # as they lie on a GPU
        ours = attend(q[:, :, 0], *stores, rows.slots[:, None], offset, capacity, splits=2)
        torch.testing.assert_close(ours, model[:, :, 0], atol=2e-6, rtol=1e-5)


def test_a_row_of_padding_reads_nothing_and_gives_zeros() -> None:
    keys, values, table, _ = pool([0, 7], 8, 4, 1, 4)
    table[0] = 1_000_000  # no such page
    query = torch.randn(2, 1, 4)
    for splits in (1, 2):
        out = attend(query, keys, values, table, torch.tensor([0, 0]), 8, splits=splits)
        assert torch.equal(out, torch.zeros(2, 1, 4))


def test_a_row_has_the_same_bits_beside_any_neighbour() -> None:
    keys, values, table, length = pool([90, 13], 100, 16, 1, 8)
    query = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))
    both = attend(query, keys, values, table, length, 100, splits=2)
    alone = attend(query[:1], keys, values, table[:1], length[:1], 100, splits=2)
    assert torch.equal(both[:1], alone)


def test_quantised_keys_and_values_count_with_their_own_scales() -> None:
    for store in (torch.int8, torch.float8_e4m3fn):
        for group in (1, 2):
            keys, values, table, length = pool([20, 5], 12, 5, 2, 8)
            k, key_scale = quantise(keys.nan_to_num() * torch.tensor([[100.0], [0.01]]), store)
            v, value_scale = quantise(values.nan_to_num() * torch.tensor([[0.01], [100.0]]), store)
            query = torch.randn(2, 2 * group, 8, generator=torch.Generator().manual_seed(1))
            where = (table, length, 12, key_scale, value_scale)
            ours = attend(query, k, v, *where, splits=2)
            torch.testing.assert_close(ours, expected(query, k, v, *where), atol=1e-5, rtol=1e-4)


def test_bf16_is_within_its_own_rounding_of_fp32() -> None:
    for group in (1, 2):
        keys, values, table, length = pool([90, 13], 100, 16, 1, 16)
        k, v = keys.bfloat16(), values.bfloat16()
        query = torch.randn(2, group, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
        ours = attend(query, k, v, table, length, 100, splits=2)
        exact = expected(query.float(), k.float(), v.float(), table, length, 100)
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), exact, atol=2**-7, rtol=2**-7)


@given(rows=st.integers(1, 128), heads=st.sampled_from([1, 4, 20, 32]), tokens=st.integers(1, 5000))
def test_splits_are_a_power_of_two_and_never_smaller_than_they_pay(rows: int, heads: int, tokens: int) -> None:
    splits = split_count(rows, heads, tokens)
    assert splits & (splits - 1) == 0
    assert 1 <= splits <= MAX_SPLITS
    assert splits == 1 or tokens / splits >= 127
    assert split_count(rows + 1, heads, tokens) <= splits <= split_count(rows, heads, tokens + 1)
