"""SEANet: the convolutional encoder and decoder of the codec.

Strided (encoder) or transposed (decoder) convolutions, each with its residual block, ELU between. Indices of ``model``
count the activations too, as the published checkpoints do.
Source: SEANet (Tagliasacchi et al., 2020) in the shape of EnCodec and Mimi.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model.conv import CausalConv, CausalConvTranspose, ConvState
from serve_app.model.state import Rows

LayerState = ConvState | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SeanetConfig:
    """Shape of encoder and decoder; defaults are the published Mimi.

    Attributes:
        ratios: strides in the decoder's order; the encoder uses them reversed.
        residual_layers: residual blocks per ratio, block j dilated by ``dilation_base ** j``.
        compress: by how much a residual block narrows inside.
    """

    dimension: int = 512
    n_filters: int = 64
    ratios: tuple[int, ...] = (8, 6, 5, 4)
    residual_layers: int = 1
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    dilation_base: int = 2
    compress: int = 2

    @property
    def hop_samples(self) -> int:
        return math.prod(self.ratios)


@dataclasses.dataclass(frozen=True, slots=True)
class SeanetState:
    """One entry per layer of ``model``; None where the layer remembers nothing."""

    layers: tuple[LayerState, ...]


class ResidualBlock(nn.Module):
    """``x + conv1(elu(conv3(elu(x))))``, narrower inside. Only the first convolution remembers anything."""

    def __init__(self, dim: int, config: SeanetConfig, dilation: int) -> None:
        super().__init__()
        hidden = dim // config.compress
        widen = CausalConv(hidden, dim, 1)
        narrow = CausalConv(dim, hidden, config.residual_kernel, dilation=dilation)
        self.block = nn.ModuleList([nn.ELU(), narrow, nn.ELU(), widen])
        self.narrow, self.widen = (narrow,), (widen,)  # tuples: the weights are registered once, under ``block``

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> ConvState | None:
        return self.narrow[0].init_state(slots, device, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.widen[0](F.elu(self.narrow[0](F.elu(x))))  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: ConvState | None, rows: Rows) -> Tensor:
        y = self.narrow[0].step(x, state, rows, elu=True)
        return self.widen[0].widen(y, x, rows)


class Seanet(nn.Module):
    """A chain of layers, some of which remember."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.model = nn.ModuleList(layers)

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> SeanetState:
        """Fresh state for ``slots`` slots and a scratch row."""
        return SeanetState(tuple(_layer_state(layer, slots, device, dtype) for layer in self.model))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, T]`` offline; T is a multiple of the hop in the encoder."""
        for layer in self.model:
            x = layer(x)
        return x

    def step(self, x: Tensor, state: SeanetState, rows: Rows) -> Tensor:
        """The next samples (encoder) or steps (decoder) of each row, ``[R, C, T]``."""
        elu = False
        for layer, layer_state in zip(self.model, state.layers, strict=True):
            match layer:
                case ResidualBlock():
                    x = layer.step(x, layer_state, rows)
                case CausalConv():
                    x = layer.step(x, layer_state, rows, elu=elu)
                case CausalConvTranspose():
                    assert layer_state is not None
                    x = layer.step(x, layer_state, rows, elu=elu)
            elu = isinstance(layer, nn.ELU)  # the next layer computes it, where it needs it
        return x


def make_encoder(config: SeanetConfig) -> Seanet:
    """PCM ``[R, 1, T]`` to latents ``[R, dimension, T / hop]``."""
    width = config.n_filters
    layers: list[nn.Module] = [CausalConv(1, width, config.kernel)]
    for ratio in reversed(config.ratios):
        layers += _residuals(width, config)
        layers += [nn.ELU(), CausalConv(width, 2 * width, 2 * ratio, stride=ratio)]
        width *= 2
    layers += [nn.ELU(), CausalConv(width, config.dimension, config.last_kernel)]
    return Seanet(layers)


def make_decoder(config: SeanetConfig) -> Seanet:
    """Latents ``[R, dimension, T]`` to PCM ``[R, 1, T * hop]``."""
    width = config.n_filters * 2 ** len(config.ratios)
    layers: list[nn.Module] = [CausalConv(config.dimension, width, config.kernel)]
    for ratio in config.ratios:
        layers += [nn.ELU(), CausalConvTranspose(width, width // 2, ratio)]
        width //= 2
        layers += _residuals(width, config)
    layers += [nn.ELU(), CausalConv(width, 1, config.last_kernel)]
    return Seanet(layers)


def _residuals(width: int, config: SeanetConfig) -> list[nn.Module]:
    return [ResidualBlock(width, config, config.dilation_base**index) for index in range(config.residual_layers)]


def _layer_state(layer: nn.Module, slots: int, device: torch.device, dtype: torch.dtype) -> LayerState:
    if isinstance(layer, CausalConv | CausalConvTranspose | ResidualBlock):
        return layer.init_state(slots, device, dtype)
    return None
