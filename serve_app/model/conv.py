"""Causal convolutions over ``[R, C, T]``: offline without state, or the next samples of each row with a state.

A convolution sees ``effective kernel - stride`` samples before its first one: zeros, or (``replicate``) copies of the
row's first sample. A transposed convolution sees one step before its first, of zeros. Module names nest as the
published checkpoints do, so that their keys load as they are.

Streaming, channels lie side by side, so that what a filter sees is one run of memory (see `product`): what `step` takes
and gives is ``[R, C, T]`` by shape, ``[R, T, C]`` in memory.
Source: the streaming convolutions of moshi 0.2.13, whose behaviour this is.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model import fused, fused_codec
from serve_app.model.product import Filters
from serve_app.model.state import Rows, commit


@dataclasses.dataclass(frozen=True, slots=True)
class ConvState:
    """What a convolution remembers of every slot.

    Attributes:
        previous: ``[slots + 1, P, C]``, the last P input samples.
        first: ``bool[slots + 1]``, whether the slot has seen no sample yet; only where padding replicates.
    """

    previous: Tensor
    first: Tensor | None = dataclasses.field(default=None, metadata={"fresh": 1})


class CausalConv(nn.Module):
    """Convolution that pads on the left alone."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
        replicate: bool = False,
    ) -> None:
        super().__init__()
        inner = nn.Conv1d(in_channels, out_channels, kernel, stride=stride, dilation=dilation, bias=bias)
        _initialise(inner, in_channels * kernel)
        self.conv = nn.ModuleDict({"conv": inner})
        self.in_channels, self.stride, self.dilation, self.replicate = in_channels, stride, dilation, replicate
        self.padding = (kernel - 1) * dilation + 1 - stride
        self._filters = Filters(kernel, stride, dilation)

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState | None:
        """Fresh state for ``slots`` slots and a scratch row; None where nothing is remembered."""
        if self.padding == 0:
            return None
        first = torch.ones(slots + 1, device=device, dtype=torch.bool) if self.replicate else None
        previous = torch.zeros(slots + 1, self.padding, self.in_channels, device=device, dtype=dtype)
        return ConvState(previous, first)

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence, ``[B, C, T]`` with T a multiple of the stride."""
        if self.padding:
            x = F.pad(x, (self.padding, 0), mode="replicate" if self.replicate else "constant")
        return F.conv1d(x, self._inner.weight, self._inner.bias, stride=self.stride, dilation=self.dilation)

    def step(
        self, x: Tensor, state: ConvState | None, rows: Rows, *, elu: bool = False, plus: Tensor | None = None
    ) -> Tensor:
        """The next T samples of each row, ``[R, C, T]``, T a multiple of the stride; gives T / stride.

        Args:
            elu: convolve ELU of ``x``: it is written to where the windows are read from.
            plus: added to the result, of its shape.
        """
        y = _convolved(self._filters, x.transpose(1, 2), state, rows, elu, self._inner).transpose(1, 2)
        return y if plus is None else y.add_(plus)

    def widen(self, x: Tensor, plus: Tensor, rows: Rows) -> Tensor:
        """``plus`` and this convolution, of kernel 1, of ELU of ``x``, which is overwritten: ``[R, C, T]`` each."""
        assert self.padding == 0, "nothing is remembered"
        if fused.direct(x):
            return self.step(F.elu(x, inplace=True), None, rows, plus=plus)
        inner = self._inner
        y = fused_codec.elu_product(x.transpose(1, 2), inner.weight[..., 0], inner.bias, plus.transpose(1, 2))
        return y.transpose(1, 2)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weight."""
        return self._inner.weight.dtype

    @property
    def _inner(self) -> nn.Conv1d:
        inner = self.conv["conv"]
        assert isinstance(inner, nn.Conv1d)
        return inner


class CausalConvTranspose(nn.Module):
    """Transposed convolution, its kernel twice its stride, that trims on the right alone.

    So each step of output strides comes from two steps of input: a convolution of kernel 2 that gives a stride's
    samples side by side. The reference keeps the tail of its output for the next call; the step before is smaller.
    ``depthwise`` has one filter per channel.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, *, bias: bool = True, depthwise: bool = False
    ) -> None:
        super().__init__()
        kernel = 2 * stride
        self.groups = in_channels if depthwise else 1
        inner = nn.ConvTranspose1d(in_channels, out_channels, kernel, stride=stride, groups=self.groups, bias=bias)
        _initialise(inner, 2 * in_channels // self.groups)
        self.convtr = nn.ModuleDict({"convtr": inner})
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self._filters = Filters(2, arrange=_over_pairs)

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState:
        """Fresh state for ``slots`` slots and a scratch row."""
        return ConvState(torch.zeros(slots + 1, 1, self.in_channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence, ``[B, C, T]`` to ``[B, C', T * stride]``."""
        y = F.conv_transpose1d(x, self._inner.weight, self._inner.bias, stride=self.stride, groups=self.groups)
        return y[..., : -self.stride]

    def step(self, x: Tensor, state: ConvState, rows: Rows, *, elu: bool = False) -> Tensor:
        """The next T steps of each row, ``[R, C, T]`` to ``[R, C', T * stride]``; ``elu`` as `CausalConv.step`."""
        x = x.transpose(1, 2)
        if self.groups > 1:
            y = self._scale(_joined(x, state, rows, elu))
        else:
            y = _convolved(self._filters, x, state, rows, elu, self._inner)  # [R, T, S * C']
        return y.reshape(y.shape[0], -1, self.out_channels).transpose(1, 2)

    def _scale(self, held: Tensor) -> Tensor:
        """One filter per channel is no product but two scalings: ``[R, 1 + T, C]`` to ``[R, T, S, C]``."""
        own, later = self._inner.weight[:, 0].T.chunk(2)  # [S, C] each
        y = torch.addcmul(held[:, 1:, None] * own, held[:, :-1, None], later)
        return y if self._inner.bias is None else y + self._inner.bias

    @property
    def _inner(self) -> nn.ConvTranspose1d:
        inner = self.convtr["convtr"]
        assert isinstance(inner, nn.ConvTranspose1d)
        return inner


def _convolved(
    filters: Filters, x: Tensor, state: ConvState | None, rows: Rows, elu: bool, inner: nn.Conv1d | nn.ConvTranspose1d
) -> Tensor:
    """``[R, T, C]``, behind what its rows remember, filtered."""
    if state is None or fused.direct(x):
        return filters(_joined(x, state, rows, elu), inner.weight, inner.bias)
    return filters.over(_windows(x, state, rows, filters, elu), inner.weight, inner.bias)


def _joined(x: Tensor, state: ConvState | None, rows: Rows, elu: bool) -> Tensor:
    """``[R, T, C]`` behind what its rows remember, ``[R, P + T, C]``, of which they remember the end."""
    if state is None:
        return F.elu(x) if elu else x
    if not fused.direct(x):
        return _windows(x, state, rows, Filters(1), elu)
    first = None if state.first is None else rows.read(state.first)
    held, last = fused_codec.join(x, rows.read(state.previous), first, elu)
    if state.first is not None:
        commit(state.first, rows, torch.zeros_like(rows.write, dtype=torch.bool))
    commit(state.previous, rows, last)
    return held


def _windows(x: Tensor, state: ConvState, rows: Rows, seen: Filters, elu: bool) -> Tensor:
    shape = (seen.kernel, seen.stride, seen.dilation)
    return fused_codec.windows(x, state.previous, state.first, rows.slots, rows.write, *shape, elu)


def _over_pairs(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """``[C, C', 2 * S]`` to filters over a step and the one before it, ``[S * C', C, 2]``."""
    own, later = weight.permute(2, 1, 0).chunk(2)  # [S, C', C] each
    filters = torch.stack([later, own], dim=-1).flatten(0, 1)
    return filters, None if bias is None else bias.repeat(own.shape[0])


def _initialise(inner: nn.Conv1d | nn.ConvTranspose1d, inputs: int) -> None:
    """Keep the scale of a signal: torch's default loses a factor of sqrt(3) a layer, and codes would not vary."""
    nn.init.normal_(inner.weight, std=inputs**-0.5)
    if inner.bias is not None:
        nn.init.zeros_(inner.bias)
