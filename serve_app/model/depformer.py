"""The Depformer: a transformer along the codebooks of one step.

It starts afresh in every step and sees at most ``dep_q`` positions, so its keys and values live for one call and its
positions are known when the loop is unrolled: no ring, no mask, no state. Weights depend on the position.
"""

import torch
from torch import Tensor, nn

from serve_app.model.lm_config import LMConfig
from serve_app.model.norm import make_norm
from serve_app.model.ring import attend_masked
from serve_app.model.rope import Rotation, sinusoid
from serve_app.model.transformer import Attention, Gating, LayerScale


class DepformerLayer(nn.Module):
    """Pre-norm attention and gated block, each with one weight set per entry of the schedule."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        dim = config.depformer_dim
        self.self_attn = Attention(dim, config.depformer_num_heads, config.depformer_kv_repeat, config.weight_sets)
        self.norm1 = make_norm(config.norm, dim)
        self.norm2 = make_norm(config.norm, dim)
        self.gating = nn.ModuleList(
            Gating(dim, width, config.depformer_gating) for width in config.depformer_dim_feedforward
        )
        self.layer_scale_1 = LayerScale(dim) if config.depformer_layer_scale else nn.Identity()
        self.layer_scale_2 = LayerScale(dim) if config.depformer_layer_scale else nn.Identity()

    def step(self, x: Tensor, past: "DepthPast", index: int, weights: int, rotation: Rotation | None) -> Tensor:
        q, k, v = self.self_attn.project(self.norm1(x), weights)
        if rotation is not None:
            q, k = rotation.turn(q), rotation.turn(k)
        keys, values = past.append(k, v, index)
        update = self.layer_scale_1(self.self_attn.merge(attend_masked(q, keys, values, None), weights))
        x = x.to(update.dtype) + update
        update = self.layer_scale_2(self.gating[weights](self.norm2(x)))
        return x.to(update.dtype) + update  # type: ignore[no-any-return]


class DepthPast:
    """Keys and values of the codebooks said so far in this step, ``[R, H, dep_q, D]`` each; lives for one call."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def append(self, keys: Tensor, values: Tensor, index: int) -> tuple[Tensor, Tensor]:
        """Write one position, ``[R, H, 1, D]``, and return everything up to it."""
        self.keys[:, :, index : index + 1] = keys
        self.values[:, :, index : index + 1] = values
        return self.keys[:, :, : index + 1], self.values[:, :, : index + 1]


class Depformer(nn.Module):
    """The stack of layers; `LM` owns what leads in and out of it, as checkpoints name it."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DepformerLayer(config) for _ in range(config.depformer_num_layers))

    def begin(self, like: Tensor) -> list[DepthPast]:
        """An empty past per layer for as many rows as ``like`` (``[R, ...]``) has, on its device, in its dtype."""
        c = self.config
        heads = c.depformer_num_heads // c.depformer_kv_repeat
        shape = (2, len(self.layers), like.shape[0], heads, c.dep_q, c.depformer_dim // c.depformer_num_heads)
        store = torch.empty(shape, device=like.device, dtype=like.dtype)
        return [DepthPast(store[0, layer], store[1, layer]) for layer in range(len(self.layers))]

    def step(self, x: Tensor, past: list[DepthPast], index: int) -> Tensor:
        """Position ``index`` of this step's codebooks: ``[R, 1, dim]`` in and out."""
        c = self.config
        weights = c.depformer_weights_per_step_schedule[index]
        position = torch.full((1,), index, device=x.device, dtype=torch.int64)
        rotation: Rotation | None = None
        if c.depformer_pos_emb in ("rope", "sin_rope", "rope_concat"):
            head_dim = c.depformer_dim // c.depformer_num_heads
            interleaved = c.depformer_pos_emb != "rope_concat"
            rotation = Rotation.at(position, 1, head_dim, c.depformer_max_period, interleaved)
        y = x
        if c.depformer_pos_emb in ("sin", "sin_rope"):
            y = x + sinusoid(position, 1, c.depformer_dim, c.depformer_max_period, x.dtype)
        for layer, own in zip(self.layers, past, strict=True):
            assert isinstance(layer, DepformerLayer)
            y = layer.step(y, own, index, weights, rotation)
        return y.to(x.dtype)
