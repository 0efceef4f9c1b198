"""The causal transformer of Moshi's family: one implementation for the codec and the language model.

Two ways through the same weights: `forward` sees a whole sequence and holds no state (offline, training); `step` sees
the next T steps of R rows and a `TransformerState`. Both follow the reference's window, so they agree until the ring
wraps inside a call of more than one step (see `ring`).
"""

import dataclasses
from typing import Final, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model import fused
from serve_app.model.cross import CrossAttention, CrossLook, CrossMemory, CrossState
from serve_app.model.linear import Linear
from serve_app.model.norm import NormName, Residual, make_norm
from serve_app.model.pages import PageStore, Storage
from serve_app.model.ring import KvRing, KvStore, Window
from serve_app.model.rope import Rotation, sinusoid
from serve_app.model.state import Rows, commit

PositionName = Literal["sin", "rope", "sin_rope", "rope_concat", "none"]
POSITION_NAMES: Final = frozenset(get_args(PositionName))
ActivationName = Literal["none", "silu", "gelu", "relu", "sigmoid", "tanh", "identity"]
ACTIVATION_NAMES: Final = frozenset(get_args(ActivationName))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Shape of a transformer.

    Attributes:
        feedforward: hidden size as the checkpoint states it; see `gated_hidden`.
        context: steps that attention looks back, and the capacity of the ring.
        gating: activation of a gated feed-forward block, or "none" for two linears with erf GELU between.
        kv_repeat: query heads that share one key head.
        layer_scale: whether residuals are scaled by learnt vectors.
        cross_steps: steps that every layer may attend to besides; 0 for no cross-attention.
    """

    dim: int
    heads: int
    layers: int
    feedforward: int
    context: int
    norm: NormName = "rms_norm_f32"
    position: PositionName = "rope"
    max_period: float = 10_000.0
    gating: ActivationName = "silu"
    kv_repeat: int = 1
    layer_scale: bool = False
    cross_steps: int = 0

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def kv_heads(self) -> int:
        return self.heads // self.kv_repeat


@dataclasses.dataclass(frozen=True, slots=True)
class TransformerState:
    """Streaming state of one transformer for all slots.

    Attributes:
        offset: ``int64[slots + 1]``, steps that the slot has made.
        rings: keys and values of every layer.
        cross: what the slot attends to besides; None without cross-attention.
        pages: what the rings are made of where slots share pages; None where every slot has its own.
    """

    offset: Tensor
    rings: tuple[KvStore, ...]
    cross: CrossState | None = None
    pages: PageStore | None = None


def gated_hidden(dim: int, feedforward: int) -> int:
    """Hidden size of a gated block: 21/8 of the width for the usual 4x, else two thirds of what is asked."""
    return 21 * dim // 8 if feedforward == 4 * dim else 2 * feedforward // 3


class LayerScale(nn.Module):
    """A learnt scale per channel on a residual branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), 1e-2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Gating(nn.Module):
    """Gated feed-forward block: ``out(act(a) * b)`` where ``[a, b] = in(x)``."""

    def __init__(self, dim: int, feedforward: int, activation: ActivationName) -> None:
        super().__init__()
        hidden = gated_hidden(dim, feedforward)
        self.linear_in = Linear(dim, 2 * hidden, bias=False)
        self.linear_out = Linear(hidden, dim, bias=False)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_out(fused.gate(self.linear_in(x), self.activation))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention with grouped key heads. The projections are lists because the Depformer has one per step."""

    def __init__(self, dim: int, heads: int, kv_repeat: int, weight_sets: int = 1) -> None:
        super().__init__()
        self.dim, self.heads, self.kv_heads = dim, heads, heads // kv_repeat
        self.head_dim = dim // heads
        width = dim + 2 * self.kv_heads * self.head_dim
        self.in_projs = nn.ModuleList(Linear(dim, width, bias=False) for _ in range(weight_sets))
        self.out_projs = nn.ModuleList(Linear(dim, dim, bias=False) for _ in range(weight_sets))

    def project(self, x: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[R, Hq, T, D]``, keys and values ``[R, H, T, D]`` of ``x`` (``[R, T, dim]``)."""
        return self.split(self.in_projs[0](x), rotation)

    def split(self, qkv: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the product."""
        if rotation is None:
            return fused.rope_split(qkv, None, None, self.heads, self.kv_heads, interleaved=True)
        return rotation.split(qkv, self.heads, self.kv_heads)

    def merge(self, attended: Tensor, weight_set: int = 0) -> Tensor:
        """``[R, Hq, T, D]`` to ``[R, T, dim]``."""
        return self.out_projs[weight_set](attended.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, rotation: Rotation | None, visible: Tensor) -> Tensor:
        q, k, v = self.project(x, rotation)
        return self.merge(fused.attend_masked(q, k, v, visible))

    def step(self, x: Tensor, ring: KvStore, now: "Moment") -> Tensor:
        if now.length is not None:
            return self._decode(x, ring, now, now.length)
        q, k, v = self.project(x, now.rotation)
        return self.merge(ring.step(q, k, v, now.rows, now.window))

    def _decode(self, x: Tensor, ring: KvStore, now: "Moment", length: Tensor) -> Tensor:
        """A tick away from the CPU: keys and values are written as they are rotated, one kernel attends."""
        rotation, window = now.rotation, now.window
        cos, sin, interleaved = (
            (None, None, True) if rotation is None else (rotation.cos, rotation.sin, rotation.interleaved)
        )
        query = fused.rope_append(
            self.in_projs[0](x),
            cos,
            sin,
            ring.keys,
            ring.values,
            window.write,
            window.index,
            self.heads,
            self.kv_heads,
            interleaved,
            ring.key_scale,
            ring.value_scale,
        )
        if x.shape[1] > 1:  # the codec's two
            assert window.pages is None, "codecs keep rings"
            assert ring.key_scale is None, "and all their bits"
            return self.merge(fused.ring_attention(query, ring.keys, ring.values, now.rows.slots, window.visible))
        # A ring is one page that is as long as the context.
        table = now.rows.slots[:, None] if window.pages is None else window.pages
        where = (table, length, window.span, ring.key_scale, ring.value_scale)
        attended = fused.decode_attention(query[:, :, 0], ring.keys, ring.values, *where)
        return self.merge(attended[:, :, None])


class TransformerLayer(nn.Module):
    """Pre-norm attention and feed-forward block, with cross-attention between them where the model has it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config.dim, config.heads, config.kv_repeat)
        self.norm1 = make_norm(config.norm, config.dim)
        self.norm2 = make_norm(config.norm, config.dim)
        self.gating: Gating | None = None
        if config.gating != "none":
            self.gating = Gating(config.dim, config.feedforward, config.gating)
        else:
            self.linear1 = Linear(config.dim, config.feedforward, bias=False)
            self.linear2 = Linear(config.feedforward, config.dim, bias=False)
        self.layer_scale_1 = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.layer_scale_2 = LayerScale(config.dim) if config.layer_scale else nn.Identity()
        self.cross_attention: CrossAttention | None = None
        if config.cross_steps:
            self.cross_attention = CrossAttention(config.dim, config.heads)
            self.norm_cross = nn.LayerNorm(config.dim, eps=1e-5)  # whatever norm the other blocks have
            self.layer_scale_cross = LayerScale(config.dim) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, rotation: Rotation | None, visible: Tensor) -> Tensor:
        assert self.cross_attention is None, "cross-attention has its memory in the state of a slot"
        x = self._add(x, self.layer_scale_1(self.self_attn(self.norm1(x), rotation, visible)))
        return self._add(x, self.layer_scale_2(self._feed_forward(self.norm2(x))))

    def step(self, residual: Residual, ring: KvStore, memory: CrossMemory | None, now: "Moment") -> Residual:
        residual, normed = residual.normed(self.norm1)
        residual = residual.add(self.self_attn.step(normed, ring, now), scale_of(self.layer_scale_1))
        if self.cross_attention is not None:
            assert memory is not None
            assert now.look is not None
            residual, normed = residual.normed(self.norm_cross)
            crossed = self.cross_attention.step(normed, memory, now.rows, now.look)
            residual = residual.add(crossed, scale_of(self.layer_scale_cross))
        residual, normed = residual.normed(self.norm2)
        return residual.add(self._feed_forward(normed), scale_of(self.layer_scale_2))

    def _feed_forward(self, x: Tensor) -> Tensor:
        if self.gating is not None:
            return self.gating(x)  # type: ignore[no-any-return]
        return self.linear2(F.gelu(self.linear1(x)))  # type: ignore[no-any-return]

    @staticmethod
    def _add(x: Tensor, update: Tensor) -> Tensor:
        return x.to(update.dtype) + update


def scale_of(scale: nn.Module) -> Tensor | None:
    """The vector of a `LayerScale`; None for one that does nothing."""
    return scale.scale if isinstance(scale, LayerScale) else None


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """What all layers share in one call: whose steps these are, what they see, where they are.

    Attributes:
        length: ``int64[R]``, steps that the rows hold with the new ones; None on the CPU, and for steps that are seen
            beside the ring: then keys and values are not written on the way.
    """

    rows: Rows
    window: Window
    rotation: Rotation | None
    look: CrossLook | None
    length: Tensor | None = None


class Transformer(nn.Module):
    """Causal transformer over ``[R, T, dim]``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def init_state(
        self, slots: int, device: torch.device, dtype: torch.dtype, storage: Storage | None = None
    ) -> TransformerState:
        """Empty state for ``slots`` slots and a scratch row; rings unless ``storage`` says otherwise."""
        c, kept = self.config, storage if storage is not None else Storage()
        pages, rings = None, list[KvStore]()
        if kept.pages is not None:
            pages = PageStore.empty(kept, slots, c.context, c.layers, c.kv_heads, c.head_dim, device, dtype)
            rings.extend(pages.layers())
        else:
            shape = (slots, c.context, c.kv_heads, c.head_dim, device, dtype)
            rings.extend(KvRing.empty(*shape, kept.kv) for _ in self.layers)
        cross = None
        if c.cross_steps:
            cross = CrossState.empty(slots, c.layers, c.cross_steps, c.heads, c.head_dim, device, dtype)
        return TransformerState(torch.zeros(slots + 1, device=device, dtype=torch.int64), tuple(rings), cross, pages)

    def remember(self, source: Tensor, state: TransformerState, slot: int) -> None:
        """Make ``source [L, dim]`` what the slot attends to, in place of what it had. Host side, between ticks."""
        assert state.cross is not None
        assert len(source) <= self.config.cross_steps
        for layer, memory in zip(self.layers, state.cross.layers, strict=True):
            assert isinstance(layer, TransformerLayer)
            assert layer.cross_attention is not None
            keys, values = layer.cross_attention.remember(source)
            memory.keys[slot, : len(source)] = keys.to(memory.keys.dtype)
            memory.values[slot, : len(source)] = values.to(memory.values.dtype)
        state.cross.length[slot] = len(source)

    def forward(self, x: Tensor) -> Tensor:
        """The whole sequence at once, each step seeing itself and ``context - 1`` steps before it."""
        steps = torch.arange(x.shape[1], device=x.device)
        age = steps[:, None] - steps[None, :]
        visible = (age >= 0) & (age < self.config.context)  # [T, T]
        start = torch.zeros(1, device=x.device, dtype=torch.int64)
        y = self._embed_position(x, start)
        rotation = self._rotation(start, x.shape[1])
        for layer in self.layers:
            y = layer(y, rotation, visible)
        return y.to(x.dtype)

    def step(self, x: Tensor, state: TransformerState, rows: Rows, *, one_by_one: bool = False) -> Tensor:
        """The next T steps of each row.

        Args:
            x: ``[R, T, dim]``; T may not exceed the context.
            one_by_one: whether each step sees what it would see in a call of its own; else the reference's window of
                one call, which is the same until the ring wraps within it.

        Returns:
            ``[R, T, dim]``.
        """
        return self.stream(x, state, rows, one_by_one=one_by_one).total().to(x.dtype)

    def stream(self, x: Tensor, state: TransformerState, rows: Rows, *, one_by_one: bool = False) -> Residual:
        """`step`, its last addition not made yet: a norm may follow."""
        steps = x.shape[1]
        offset = rows.read(state.offset)  # [R]
        window = Window.valid(offset, steps, self.config.context, rows, one_by_one=one_by_one)
        if state.pages is not None:
            window = state.pages.locate(window, rows)
        look = None if state.cross is None else state.cross.look(rows)
        after = offset + steps
        written = None if fused.direct(x) or window.beside else after
        now = Moment(rows, window, self._rotation(offset, steps), look, written)
        memories = [None] * len(self.layers) if state.cross is None else state.cross.layers
        y = Residual(self._embed_position(x, offset))
        for layer, ring, memory in zip(self.layers, state.rings, memories, strict=True):
            assert isinstance(layer, TransformerLayer)
            y = layer.step(y, ring, memory, now)
        commit(state.offset, rows, after)
        return y

    def _rotation(self, offset: Tensor, steps: int) -> Rotation | None:
        c = self.config
        if c.position in ("none", "sin"):
            return None
        return Rotation.at(offset, steps, c.head_dim, c.max_period, interleaved=c.position != "rope_concat")

    def _embed_position(self, x: Tensor, offset: Tensor) -> Tensor:
        if self.config.position not in ("sin", "sin_rope"):
            return x
        return x + sinusoid(offset, x.shape[1], self.config.dim, self.config.max_period, x.dtype)
