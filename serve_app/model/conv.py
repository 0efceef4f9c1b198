"""Causal convolutions over ``[R, C, T]``: offline without state, or the next samples of each row with a state.

A convolution sees ``effective kernel - stride`` samples before its first one: zeros, or (``replicate``) copies of the
row's first sample. A transposed convolution keeps the tail of its output, without the bias, for the next call. Module
names nest as the published checkpoints do, so that their keys load as they are.
Source: the streaming convolutions of moshi 0.2.13, whose behaviour this is.
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model.state import Rows, commit

_FEW_STEPS: Final = 4
"""Up to here a product beats the library's convolution, which is built for long inputs.

Measured at full size on one core, one row and 16 rows: the encoder's k16 s8 7.8 -> 2.4 and 26 -> 12 ms, its transposed
twin 31 -> 2.7 and 22 -> 8 ms. At 16 steps and more the product loses.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class ConvState:
    """What a convolution remembers of every slot.

    Attributes:
        previous: ``[slots + 1, C, P]``, the last P input samples.
        first: ``bool[slots + 1]``, whether the slot has seen no sample yet; only where padding replicates.
    """

    previous: Tensor
    first: Tensor | None = dataclasses.field(default=None, metadata={"fresh": 1})


@dataclasses.dataclass(frozen=True, slots=True)
class TailState:
    """What a transposed convolution still has to add to its next output: ``[slots + 1, C, stride]``."""

    tail: Tensor


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

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState | None:
        """Fresh state for ``slots`` slots and a scratch row; None where nothing is remembered."""
        if self.padding == 0:
            return None
        first = torch.ones(slots + 1, device=device, dtype=torch.bool) if self.replicate else None
        previous = torch.zeros(slots + 1, self.in_channels, self.padding, device=device, dtype=dtype)
        return ConvState(previous, first)

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence, ``[B, C, T]`` with T a multiple of the stride."""
        if self.padding:
            x = F.pad(x, (self.padding, 0), mode="replicate" if self.replicate else "constant")
        return self._convolve(x)

    def step(self, x: Tensor, state: ConvState | None, rows: Rows) -> Tensor:
        """The next T samples of each row, ``[R, C, T]``, T a multiple of the stride; gives T / stride."""
        if state is None:
            return self._convolve_few(x)
        previous = rows.read(state.previous)  # [R, C, P]
        if state.first is not None:
            first = rows.read(state.first)
            previous = torch.where(first[:, None, None], x[..., :1], previous)
            commit(state.first, rows, torch.zeros_like(first))
        x = torch.cat([previous, x], dim=-1)  # [R, C, P + T]
        commit(state.previous, rows, x[..., -self.padding :])
        return self._convolve_few(x)

    @property
    def _inner(self) -> nn.Conv1d:
        inner = self.conv["conv"]
        assert isinstance(inner, nn.Conv1d)
        return inner

    def _convolve(self, x: Tensor) -> Tensor:
        return F.conv1d(x, self._inner.weight, self._inner.bias, stride=self.stride, dilation=self.dilation)

    def _convolve_few(self, x: Tensor) -> Tensor:
        """The same; where few steps come out, as one product over unfolded windows, each weight read once."""
        kernel = self._inner.kernel_size[0]
        if self.dilation > 1 or (x.shape[-1] - kernel) // self.stride >= _FEW_STEPS:
            return self._convolve(x)
        windows = x.unfold(-1, kernel, self.stride).transpose(1, 2).flatten(2)  # [R, T, C * K]
        return F.linear(windows, self._inner.weight.flatten(1), self._inner.bias).transpose(1, 2)


class CausalConvTranspose(nn.Module):
    """Transposed convolution, its kernel twice its stride, that trims on the right alone.

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
        self.out_channels, self.stride = out_channels, stride

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> TailState:
        """Fresh state for ``slots`` slots and a scratch row."""
        return TailState(torch.zeros(slots + 1, self.out_channels, self.stride, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """A whole sequence, ``[B, C, T]`` to ``[B, C', T * stride]``."""
        y = self._spread(x)
        return self._add_bias(y[..., : -self.stride])

    def step(self, x: Tensor, state: TailState, rows: Rows) -> Tensor:
        """The next T steps of each row, ``[R, C, T]`` to ``[R, C', T * stride]``."""
        tail = rows.read(state.tail)  # [R, C', S]
        if x.shape[-1] <= _FEW_STEPS:
            return self._add_bias(self._step_few(x, tail, state, rows))
        y = self._spread(x)
        y[..., : self.stride] += tail
        commit(state.tail, rows, y[..., -self.stride :])
        return self._add_bias(y[..., : -self.stride])

    def _step_few(self, x: Tensor, tail: Tensor, state: TailState, rows: Rows) -> Tensor:
        """The same for few steps, as one product: what each step adds to its own stride of output and to the next."""
        weight = self._inner.weight  # [C, C', 2 * S], or [C, 1, 2 * S] with one filter per channel
        if self.groups > 1:
            spread = x.transpose(1, 2)[..., None] * weight[:, 0]  # [R, T, C', 2 * S]
        else:
            spread = (x.transpose(1, 2) @ weight.flatten(1)).view(*x.shape[::2], *weight.shape[1:])
        own, later = spread.chunk(2, dim=-1)  # [R, T, C', S] each
        y: Tensor = own + torch.cat([tail[:, None], later[:, :-1]], dim=1)
        commit(state.tail, rows, later[:, -1])
        return y.transpose(1, 2).flatten(2)  # [R, C', T * S]

    @property
    def _inner(self) -> nn.ConvTranspose1d:
        inner = self.convtr["convtr"]
        assert isinstance(inner, nn.ConvTranspose1d)
        return inner

    def _spread(self, x: Tensor) -> Tensor:
        """The transposed convolution alone: ``[R, C', (T + 1) * stride]``, untrimmed, no bias."""
        return F.conv_transpose1d(x, self._inner.weight, None, stride=self.stride, groups=self.groups)

    def _add_bias(self, y: Tensor) -> Tensor:
        bias = self._inner.bias
        return y if bias is None else y + bias[:, None]


def _initialise(inner: nn.Conv1d | nn.ConvTranspose1d, inputs: int) -> None:
    """Keep the scale of a signal: torch's default loses a factor of sqrt(3) a layer, and codes would not vary."""
    nn.init.normal_(inner.weight, std=inputs**-0.5)
    if inner.bias is not None:
        nn.init.zeros_(inner.bias)
