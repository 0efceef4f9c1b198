"""Causal convolutions: streaming equals offline for any shape, and states keep to their rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.model.conv import CausalConv, CausalConvTranspose
from serve_app.model.state import Rows, all_rows, leaves, reset

CPU = torch.device("cpu")
SLOTS = 3


def _conv(kernel: int, stride: int, dilation: int, *, replicate: bool = False) -> CausalConv:
    conv = CausalConv(4, 6, kernel, stride=stride, dilation=dilation, replicate=replicate)
    assert conv.conv["conv"].bias is not None
    torch.nn.init.normal_(conv.conv["conv"].bias)  # type: ignore[arg-type]
    return conv


@given(
    kernel=st.sampled_from([1, 3, 4, 7, 8]),
    stride=st.integers(1, 4),
    dilation=st.integers(1, 3),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
)
@settings(deadline=None)
@torch.no_grad()
def test_a_convolution_gives_the_same_in_any_chunks(kernel: int, stride: int, dilation: int, chunks: list[int]) -> None:
    kernel = max(kernel, stride)
    conv = _conv(kernel, stride, dilation)
    x = torch.randn(SLOTS, 4, sum(chunks) * stride)
    state = conv.init_state(SLOTS, CPU, torch.float32)
    pieces = torch.split(x, [size * stride for size in chunks], dim=-1)
    streamed = torch.cat([conv.step(piece, state, all_rows(SLOTS)) for piece in pieces], dim=-1)
    assert streamed.shape == (SLOTS, 6, sum(chunks))
    torch.testing.assert_close(streamed, conv(x), atol=1e-5, rtol=1e-5)


@given(
    stride=st.integers(1, 5),
    chunks=st.lists(st.integers(1, 5), min_size=1, max_size=6),
    depthwise=st.booleans(),
)
@settings(deadline=None)
@torch.no_grad()
def test_a_transposed_convolution_gives_the_same_in_any_chunks(stride: int, chunks: list[int], depthwise: bool) -> None:
    conv = CausalConvTranspose(4, 4, stride, depthwise=depthwise)
    inner = conv.convtr["convtr"]
    assert isinstance(inner, torch.nn.ConvTranspose1d)
    assert inner.bias is not None
    torch.nn.init.normal_(inner.bias)
    x = torch.randn(SLOTS, 4, sum(chunks))
    state = conv.init_state(SLOTS, CPU, torch.float32)
    streamed = torch.cat([conv.step(piece, state, all_rows(SLOTS)) for piece in torch.split(x, chunks, dim=-1)], dim=-1)
    torch.testing.assert_close(streamed, conv(x), atol=1e-5, rtol=1e-5)
    whole = inner(x)[..., : sum(chunks) * stride]
    torch.testing.assert_close(streamed, whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_zeros_stand_left_of_the_first_sample() -> None:
    conv = _conv(3, 1, 1)
    x = torch.randn(1, 4, 2)
    padded = torch.cat([torch.zeros(1, 4, 2), x], dim=-1)
    torch.testing.assert_close(conv(x), conv.conv["conv"](padded))


@torch.no_grad()
def test_replication_repeats_the_first_sample_and_a_reset_arms_it_again() -> None:
    conv = _conv(4, 2, 1, replicate=True)
    state = conv.init_state(SLOTS, CPU, torch.float32)
    first, second = torch.randn(SLOTS, 4, 2), torch.randn(SLOTS, 4, 2)
    expected = conv.conv["conv"](torch.cat([first[..., :1].expand(-1, -1, 2), first], dim=-1))
    torch.testing.assert_close(conv.step(first, state, all_rows(SLOTS)), expected)
    torch.testing.assert_close(conv(torch.cat([first, second], dim=-1))[..., :1], expected)
    reset(state, torch.tensor([1]))
    again = conv.step(second, state, all_rows(SLOTS))
    torch.testing.assert_close(again[1:2], conv(second[1:2]))
    torch.testing.assert_close(again[::2], conv(torch.cat([first, second], dim=-1))[::2, :, 1:])


@torch.no_grad()
def test_a_row_that_does_not_execute_does_not_use_up_its_first_sample() -> None:
    conv = _conv(4, 2, 1, replicate=True)
    state = conv.init_state(SLOTS, CPU, torch.float32)
    before = [leaf[:SLOTS].clone() for leaf in leaves(state)]
    asleep = Rows.of(torch.arange(SLOTS), torch.zeros(SLOTS, dtype=torch.bool), SLOTS)
    conv.step(torch.randn(SLOTS, 4, 2), state, asleep)
    assert all(torch.equal(leaf[:SLOTS], old) for leaf, old in zip(leaves(state), before, strict=True))


def test_a_convolution_that_needs_no_past_has_no_state() -> None:
    assert CausalConv(4, 4, 1).init_state(SLOTS, CPU, torch.float32) is None
