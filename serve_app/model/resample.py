"""Between the encoder's rate (25 Hz) and the frame rate (12.5 Hz): learnt, causal, kernel of twice the stride.

Only the downsampling replicates the first step of a row to its left; the upsampling is depthwise (a quirk of the
published model that the weights depend on).
"""

import torch
from torch import Tensor, nn

from serve_app.model.conv import CausalConv, CausalConvTranspose, ConvState
from serve_app.model.state import Rows


class Downsample(nn.Module):
    """``[R, D, T]`` to ``[R, D, T / stride]``."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = CausalConv(dim, dim, 2 * stride, stride=stride, bias=False, replicate=True)

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState | None:
        return self.conv.init_state(slots, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: ConvState | None, rows: Rows) -> Tensor:
        return self.conv.step(x, state, rows)


class Upsample(nn.Module):
    """``[R, D, T]`` to ``[R, D, T * stride]``."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.convtr = CausalConvTranspose(dim, dim, stride, bias=False, depthwise=True)

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState:
        return self.convtr.init_state(slots, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.convtr(x)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: ConvState, rows: Rows) -> Tensor:
        return self.convtr.step(x, state, rows)
