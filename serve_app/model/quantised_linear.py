"""Matrices in 8 bits with a scale per output row: half of bf16 in memory, near it in value."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model.quantised_kv import quantise
from serve_app.model.transformer import Transformer


class Int8Linear(nn.Module):
    """A linear without bias whose weight is ``int8[out, in]`` and ``fp32[out]``.

    Plain: the weight is widened for every product, which a kernel of a device's own would not do.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        assert linear.bias is None
        weight, scale = quantise(linear.weight.data, torch.int8)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.weight: Tensor
        self.scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype)


def quantise_linears(transformer: Transformer) -> int:
    """Put the matrices of self-attention and feed-forward blocks into 8 bits, in place. Returns how many."""
    count = 0
    for layer in transformer.layers:
        for name, module in list(layer.named_modules()):
            if name.startswith("cross_attention"):  # it slices its weight
                continue
            for child_name, child in list(module.named_children()):
                if isinstance(child, nn.Linear) and child.bias is None:
                    setattr(module, child_name, Int8Linear(child))
                    count += 1
    return count
