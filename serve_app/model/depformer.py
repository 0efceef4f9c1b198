"""The Depformer: a transformer along the codebooks of one step.

It starts afresh in every step and sees at most ``dep_q`` positions, so its keys and values live for one call and its
positions are known when the loop is unrolled: no ring, no mask, no state. Weights depend on the position.
"""

import dataclasses

import torch
from torch import Tensor, nn

from serve_app.model import fused
from serve_app.model.lm_config import LMConfig
from serve_app.model.norm import Residual, make_norm
from serve_app.model.rope import Rotation, sinusoid
from serve_app.model.transformer import Attention, Gating, LayerScale, scale_of


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

    def step(
        self, residual: Residual, keys: Tensor, values: Tensor, index: int, weights: int, rotation: Rotation | None
    ) -> Residual:
        """One position; keys and values of this layer are ``[R, H, dep_q, D]``."""
        attention = self.self_attn
        residual, normed = residual.normed(self.norm1)
        qkv = attention.in_projs[weights](normed)
        if rotation is None:
            attended = fused.depth_attention(qkv, keys, values, index, attention.heads)
        else:
            attended = fused.depth_attend(*attention.split(qkv, rotation), keys, values, index)
        residual = residual.add(attention.out_projs[weights](attended), scale_of(self.layer_scale_1))
        residual, normed = residual.normed(self.norm2)
        return residual.add(self.gating[weights](normed), scale_of(self.layer_scale_2))


@dataclasses.dataclass(frozen=True, slots=True)
class DepthPast:
    """What the codebooks of one step share; lives for one call.

    Attributes:
        keys, values: of what has been said so far, a ``[R, H, dep_q, D]`` for each layer.
        rotations: of every position; None where the model has none.
        embeddings: sinusoids ``[1, dep_q, dim]``; None where the model has none.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    rotations: tuple[Rotation, ...] | None
    embeddings: Tensor | None


class Depformer(nn.Module):
    """The stack of layers; `LM` owns what leads in and out of it, as checkpoints name it."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(DepformerLayer(config) for _ in range(config.depformer_num_layers))

    def begin(self, like: Tensor) -> DepthPast:
        """An empty past for as many rows as ``like`` (``[R, ...]``) has, on its device, in its dtype."""
        c = self.config
        heads = c.depformer_num_heads // c.depformer_kv_repeat
        head_dim = c.depformer_dim // c.depformer_num_heads
        shape = (2, len(self.layers), like.shape[0], heads, c.dep_q, head_dim)
        keys, values = torch.empty(shape, device=like.device, dtype=like.dtype).unbind()
        rotations, embeddings = None, None
        start = torch.zeros(1, device=like.device, dtype=torch.int64) if c.depformer_pos_emb != "none" else None
        if start is not None and c.depformer_pos_emb != "sin":
            whole = Rotation.at(start, c.dep_q, head_dim, c.depformer_max_period, c.depformer_pos_emb != "rope_concat")
            rotations = tuple(whole.position(index) for index in range(c.dep_q))
        if start is not None and c.depformer_pos_emb in ("sin", "sin_rope"):
            embeddings = sinusoid(start, c.dep_q, c.depformer_dim, c.depformer_max_period, like.dtype)
        return DepthPast(keys.unbind(), values.unbind(), rotations, embeddings)

    def step(self, x: Tensor, past: DepthPast, index: int) -> Tensor:
        """Position ``index`` of this step's codebooks: ``[R, 1, dim]`` in and out."""
        return self.stream(Residual(x), past, index).total().to(x.dtype)

    def stream(self, x: Residual, past: DepthPast, index: int) -> Residual:
        """The same, its last addition not made yet: a norm may follow."""
        weights = self.config.depformer_weights_per_step_schedule[index]
        rotation = None if past.rotations is None else past.rotations[index]
        y = x if past.embeddings is None else Residual(x.total() + past.embeddings[:, index : index + 1])
        for layer, keys, values in zip(self.layers, past.keys, past.values, strict=True):
            assert isinstance(layer, DepformerLayer)
            y = layer.step(y, keys, values, index, weights, rotation)
        return y
