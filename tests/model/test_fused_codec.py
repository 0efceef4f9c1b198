"""The codec's fused operations against what they stand for, and a codec that uses them against one that does not."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model import fused, fused_codec
from serve_app.model.conv import CausalConv
from serve_app.model.state import Rows, leaves, reset
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import CPU, DEEP, PCM_TOLERANCE, SMALL, random_codec

SLOTS = 3


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _arguments() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    rows = (torch.tensor([2, 0]), torch.tensor([2, SLOTS]))
    past, first = _random(SLOTS + 1, 4, 3, seed=1), torch.tensor([True, False, True, False])
    x, levels = _random(2, 6, 3), [_random(8, 4, seed=seed) for seed in range(3)]
    half = [level.square().sum(dim=1) / 2 for level in levels]
    return {
        "windows": (fused_codec._windows_op, (x, past, None, *rows, 3, 1, 2, True)),
        "strided windows of a fresh row": (fused_codec._windows_op, (x, past, first, *rows, 6, 2, 1, False)),
        "joined": (fused_codec._windows_op, (x, past, None, *rows, 1, 1, 1, False)),
        "search": (fused_codec._residual_search_op, (_random(5, 4), levels, half)),
        "sum": (fused_codec._residual_sum_op, (torch.tensor([[[1], [-1], [9]]]), levels)),
        "fill": (fused._fill_rows_op, ([past, first], torch.tensor([1, 3]), [0.0, 1.0])),
    }


@pytest.mark.parametrize("name", list(_arguments()))
@torch.no_grad()
def test_an_operation_keeps_its_schema_and_tells_its_shape(name: str) -> None:
    operation, arguments = _arguments()[name]
    torch.library.opcheck(operation, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("elu", [False, True])
@pytest.mark.parametrize("shape", [(3, 1, 2), (6, 2, 1), (1, 1, 1)], ids=str)
@torch.no_grad()
def test_windows_are_what_a_convolution_sees_of_past_and_new_samples(shape: tuple[int, int, int], elu: bool) -> None:
    kernel, stride, dilation = shape
    padding = 4
    x, store, weight = _random(2, 6, 3), _random(SLOTS + 1, padding, 3, seed=1), _random(5, 3, kernel, seed=2)
    slots, write = torch.tensor([2, 0]), torch.tensor([2, SLOTS])
    joined = torch.cat([store[slots], F.elu(x) if elu else x], dim=1)
    after = store.clone()
    after[write] = joined[:, -padding:]
    want = F.conv1d(joined.transpose(1, 2), weight, stride=stride, dilation=dilation).transpose(1, 2)
    seen = fused_codec.windows(x, store, None, slots, write, kernel, stride, dilation, elu)
    torch.testing.assert_close(seen @ weight.transpose(1, 2).flatten(1).T, want)
    torch.testing.assert_close(store, after)
    assert torch.equal(store[:2], after[:2])  # the second row wrote to scratch


@torch.no_grad()
def test_a_fresh_row_sees_copies_of_its_first_sample_once() -> None:
    x, store, first = _random(2, 2, 3), _random(SLOTS + 1, 2, 3, seed=1), torch.ones(SLOTS + 1, dtype=torch.bool)
    first[1] = False
    old = store[1].clone()
    slots = torch.tensor([0, 1])
    seen = fused_codec.windows(x, store, first, slots, slots, 1, 1, 1, False)
    assert torch.equal(seen[0], torch.cat([x[0, :1], x[0, :1], x[0]]))
    assert torch.equal(seen[1], torch.cat([old, x[1]]))
    assert first.tolist() == [False, False, True, True]


@torch.no_grad()
def test_a_search_names_the_nearest_entry_of_what_is_left() -> None:
    levels = [_random(8, 4, seed=seed) for seed in range(3)]
    half = [level.square().sum(dim=1) / 2 for level in levels]
    x = _random(5, 4, seed=7)
    codes = fused_codec.residual_search(x, levels, half)
    left = x
    for index, level in enumerate(levels):
        assert torch.equal(codes[:, index], torch.cdist(left, level).argmin(dim=1))
        left = left - level[codes[:, index]]
    meant = fused_codec.residual_sum(codes[:, :, None], levels)
    torch.testing.assert_close(meant[:, 0], x - left)


def test_codes_out_of_range_mean_the_nearest_entry() -> None:
    levels = [_random(8, 4, seed=seed) for seed in range(2)]
    got = fused_codec.residual_sum(torch.tensor([[[-2], [99]]]), levels)
    assert torch.equal(got[0, 0], levels[0][0] + levels[1][7])


def test_a_fill_touches_the_given_rows_alone() -> None:
    stores = [_random(4, 2), torch.zeros(4, dtype=torch.bool)]
    before = copy.deepcopy(stores)
    fused.fill_rows(stores, torch.tensor([1, 3]), [0.0, 1.0])
    assert torch.equal(stores[0][::2], before[0][::2])
    assert stores[0][1::2].abs().sum() == 0
    assert stores[1].tolist() == [False, True, False, True]


@pytest.mark.parametrize("config", [SMALL, DEEP], ids=["small", "deep"])
@torch.no_grad()
def test_operations_say_what_the_cpus_own_way_says(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = random_codec(config)
    own, other = (codec.init_state(SLOTS, CPU, torch.float32) for _ in range(2))
    scratch = SLOTS
    for tick in range(6):
        pcm = 0.3 * _random(2, 1, FRAME_SAMPLES, seed=tick)
        rows = Rows.of(torch.tensor([2, 0]), torch.tensor([True, tick % 3 != 1]), scratch)
        made = []
        for state, direct in ((own, True), (other, False)):
            with monkeypatch.context() as patch:
                if not direct:
                    patch.setattr(fused, "direct", lambda _: False)
                if tick == 4:
                    reset(state.encoder, torch.tensor([2]))
                codes = codec.encode_step(pcm, state, rows)
                made.append((codes, codec.decode_step(codes, state, rows)))
        assert torch.equal(made[0][0], made[1][0])
        assert float((made[0][1] - made[1][1]).abs().max()) <= PCM_TOLERANCE
    for left, right in zip(leaves(own), leaves(other), strict=True):
        assert left.dtype != torch.bool or torch.equal(left[:scratch], right[:scratch])
        torch.testing.assert_close(left[:scratch].float(), right[:scratch].float(), rtol=1e-4, atol=1e-4)


def test_with_gradients_a_convolution_makes_no_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_codec, "_windows_op", None)
    conv = CausalConv(2, 3, 3)
    state = conv.init_state(1, CPU, torch.float32)
    row = torch.zeros(1, dtype=torch.int64)
    assert conv.step(_random(1, 2, 4), state, Rows(row, torch.ones(1, dtype=torch.bool), row)).shape == (1, 3, 4)
