"""What a tick does between two products, one operation for one kernel.

Each function has a PyTorch path, which is the oracle. On the CPU it is called directly; elsewhere the function is an
operation of the namespace ``chorus``, so that a kernel can take its place (``register_kernel``), a graph holds one
node, and the meta device counts one launch. Without such a kernel the PyTorch path runs there too: the same tokens,
more launches. Nothing here waits for the device, and no Python number but the Depformer's position is in it.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.operation import like, nothing, operation
from serve_app.model.quantised_kv import dequantise, quantise
from serve_app.model.sampling import TOP_K_WIDTH, Whole, draw, exponential_noise
from serve_app.model.sampling import noise_keys as keys_of_streams

ZERO_TOKEN: Final = -1
"""Embeds to exactly 0: nothing is said on this stream."""
UNGENERATED_TOKEN: Final = -2
"""Not known yet; as a given token: sample it."""


def direct(x: Tensor) -> bool:
    """Whether the PyTorch path is called as it is: on the CPU, and for gradients."""
    return x.device.type == "cpu" or torch.is_grad_enabled()


# --- norms ------------------------------------------------------------------------------------------------------------


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``x + update * scale`` and its norm, ``[R, T, D]`` each, in update's dtype.

    Args:
        weight: ``[D]``; with a bias a layer norm, else ``x * (weight * rsqrt(mean(x^2) + eps))``, computed in fp32.
        scale: ``[D]``, of the layer; None is 1.
    """
    return (_add_norm if direct(x) else _add_norm_op)(x, update, weight, eps, bias, scale)


def norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
    """The norm of `add_norm` alone."""
    return (_norm if direct(x) else _norm_op)(x, weight, eps, bias)


def _norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    y = x.float()
    variance = eps + torch.mean(y**2, dim=-1, keepdim=True)
    # In the reference's order; `torch.rms_norm` multiplies in another and moves logits by up to 1e-4.
    return (y * (weight.float() * torch.rsqrt(variance))).to(x.dtype)


def _add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    total = x.to(update.dtype) + (update if scale is None else scale * update)
    return total, _norm(total, weight, eps, bias)


_norm_op = operation("norm", _norm, like)
_add_norm_op = operation("add_norm", _add_norm, lambda x, update, *_: (like(update), like(update)))


# --- positions --------------------------------------------------------------------------------------------------------


def rope_table(offset: Tensor, steps: int, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine ``fp32[R, 1, T, D/2]`` of ``steps`` steps from ``offset`` (``int64[R]``); once a tick."""
    return (_rope_table if direct(offset) else _rope_table_op)(offset, steps, head_dim, max_period)


def _rope_table(offset: Tensor, steps: int, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    index = torch.arange(head_dim // 2, device=offset.device, dtype=torch.float32)
    frequency = torch.exp(index * (-math.log(max_period) * 2 / head_dim))  # [D/2]
    step = torch.arange(steps, device=offset.device, dtype=torch.float32)
    position = (offset.float()[:, None] + step)[:, None, :, None]  # [R, 1, T, 1]
    angle = frequency * position
    return torch.cos(angle), torch.sin(angle)


def _rope_shape(offset: Tensor, steps: int, head_dim: int, max_period: float) -> tuple[Tensor, Tensor]:
    shape = (offset.shape[0], 1, steps, head_dim // 2)
    return offset.new_empty(shape, dtype=torch.float32), offset.new_empty(shape, dtype=torch.float32)


_rope_table_op = operation("rope_table", _rope_table, _rope_shape)


def turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Rotate queries or keys ``[R, H, T, D]``; computed in fp32, returned in x's dtype."""
    if interleaved:
        real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    else:
        real, imaginary = x.float().chunk(2, dim=-1)
    turned = (real * cos - imaginary * sin, real * sin + imaginary * cos)
    if interleaved:
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
    return torch.cat(turned, dim=-1).to(x.dtype)


def rope_split(
    qkv: Tensor, cos: Tensor | None, sin: Tensor | None, heads: int, kv_heads: int, interleaved: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[R, Hq, T, D]``, keys and values ``[R, H, T, D]`` of a product ``[R, T, (Hq + 2 H) D]``, rotated.

    Args:
        cos, sin: of `rope_table`; None leaves them unturned.
    """
    by_head = qkv.reshape(*qkv.shape[:-1], heads + 2 * kv_heads, -1).transpose(1, 2)  # [R, Hq + 2 H, T, D]
    turning, values = torch.split(by_head, [heads + kv_heads, kv_heads], dim=1)
    if cos is not None:
        assert sin is not None
        turning = turn(turning, cos, sin, interleaved)
    query, keys = torch.split(turning, [heads, kv_heads], dim=1)
    return query, keys, values


def rope_append(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    heads: int,
    kv_heads: int,
    interleaved: bool,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """`rope_split`, with keys and values written into their store on the way.

    Args:
        keys, values: ``[P, page, H, D]``, written in place.
        write: ``int64[R, 1]`` or ``[R, T]``, page of each new step; index: ``int64[R, T]``, its place there.
        key_scale, value_scale: ``fp32[P, page, H]`` of a store in 8 bits, written too: see `quantised_kv`.

    Returns:
        Queries ``[R, Hq, T, D]``.
    """
    args = (qkv, cos, sin, keys, values, write, index, heads, kv_heads, interleaved, key_scale, value_scale)
    return (_rope_append if direct(qkv) else _rope_append_op)(*args)


def _rope_append(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    heads: int,
    kv_heads: int,
    interleaved: bool,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> Tensor:
    query, new_keys, new_values = rope_split(qkv, cos, sin, heads, kv_heads, interleaved)
    put(keys, key_scale, (write, index), new_keys.transpose(1, 2))
    put(values, value_scale, (write, index), new_values.transpose(1, 2))
    return query


def put(store: Tensor, scale: Tensor | None, where: tuple[Tensor, Tensor], new: Tensor) -> None:
    """Write steps ``[R, T, H, D]`` to places ``([R, 1] or [R, T], [R, T])`` of a store, in 8 bits if it has scales."""
    if scale is None:
        store[where] = new.to(store.dtype)
    else:
        store[where], scale[where] = quantise(new, store.dtype)


def _queries_shape(qkv: Tensor, *others: Any) -> Tensor:
    heads, kv_heads = others[-5:-3]
    return qkv.new_empty(qkv.shape[0], heads, qkv.shape[1], qkv.shape[2] // (heads + 2 * kv_heads))


_rope_append_op = operation("rope_append", _rope_append, _queries_shape, ("keys", "values", "key_scale", "value_scale"))


# --- attention --------------------------------------------------------------------------------------------------------


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """Attend from one new step of every row to all that its ring holds.

    Args:
        query: ``[R, Hq, D]``, rotated; heads of a group share keys.
        keys, values: ``[P, page, H, D]``.
        table: ``int64[R, blocks]``: position p of a row's ring lies in page ``table[r, p // page]`` at ``p % page``.
        length: ``int64[R]``, steps written, this one included; ``min(length, capacity)`` positions are seen.
        key_scale, value_scale: ``fp32[P, page, H]``, what keys and values are multiplied by; None is 1.

    Returns:
        ``[R, Hq, D]``.
    """
    args = (query, keys, values, table, length, capacity, key_scale, value_scale)
    return (_decode_attention if direct(query) else _decode_attention_op)(*args)


def _decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
) -> Tensor:
    def held(store: Tensor, scale: Tensor | None) -> Tensor:
        pages = store[table]  # [R, blocks, page, H, D]
        if scale is not None:
            pages = dequantise(pages, scale[table], torch.float32)
        return pages.flatten(1, 2)[:, :capacity].transpose(1, 2)  # [R, H, C, D]

    position = torch.arange(min(capacity, table.shape[1] * keys.shape[1]), device=length.device)
    visible = (position < length[:, None])[:, None, None]
    own, seen = held(keys, key_scale), held(values, value_scale)
    return attend_masked(query[:, :, None], own, seen, visible)[:, :, 0]


def attend_masked(query: Tensor, keys: Tensor, values: Tensor, visible: Tensor | None) -> Tensor:
    """Scaled dot-product attention ``[R, Hq, T, D]`` over ``[R, H, C, D]``; heads of a group share keys."""
    groups = query.shape[1] // keys.shape[1]
    if groups > 1:
        keys, values = keys.repeat_interleave(groups, dim=1), values.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(query, keys.to(query.dtype), values.to(query.dtype), attn_mask=visible)


_decode_attention_op = operation("decode_attention", _decode_attention, like)


def window(offset: Tensor, steps: int, capacity: int, span: int) -> tuple[Tensor, Tensor]:
    """Ring positions ``int64[R, T]`` of new steps, and ``bool[R, 1, T, span]``: what each sees of the first ones."""
    return (_window if direct(offset) else _window_op)(offset, steps, capacity, span)


def _window(offset: Tensor, steps: int, capacity: int, span: int) -> tuple[Tensor, Tensor]:
    query = offset[:, None] + torch.arange(steps, device=offset.device)  # [R, T]
    newest = query[:, -1:]  # [R, 1]
    ring = torch.arange(span, device=offset.device)
    key = newest - (newest - ring) % capacity  # [R, span], offset held at each ring position; negative when empty
    visible = (key[:, None, :] >= 0) & (key[:, None, :] <= query[:, :, None])  # [R, T, span]
    return query % capacity, visible[:, None]


def _window_shape(offset: Tensor, steps: int, capacity: int, span: int) -> tuple[Tensor, Tensor]:
    rows = offset.shape[0]
    return offset.new_empty(rows, steps), offset.new_empty(rows, 1, steps, span, dtype=torch.bool)


_window_op = operation("window", _window, _window_shape)


def ring_attention(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, visible: Tensor) -> Tensor:
    """Attend from T steps of every row, ``[R, Hq, T, D]``, to its slot of a small ring, ``[slots + 1, C, H, D]``.

    Args:
        slots: ``int64[R]``; visible: of `window`.
    """
    return (_ring_attention if direct(query) else _ring_attention_op)(query, keys, values, slots, visible)


def _ring_attention(query: Tensor, keys: Tensor, values: Tensor, slots: Tensor, visible: Tensor) -> Tensor:
    own, seen = (store.index_select(0, slots).transpose(1, 2) for store in (keys, values))
    return attend_masked(query, own, seen, visible)


_ring_attention_op = operation("ring_attention", _ring_attention, like)


def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    """One position of the Depformer: write its key and value, attend to the positions so far. No mask, no rotation.

    Args:
        qkv: ``[R, 1, (Hq + 2 H) D]``.
        keys, values: ``[R, H, dep_q, D]``, written at ``index``.

    Returns:
        ``[R, 1, Hq D]``.
    """
    return (_depth_attention if direct(qkv) else _depth_attention_op)(qkv, keys, values, index, heads)


def _depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    rows, kv_heads, _, head_dim = keys.shape
    by_head = qkv.reshape(rows, heads + 2 * kv_heads, 1, head_dim)
    query, key, value = torch.split(by_head, [heads, kv_heads, kv_heads], dim=1)
    return depth_attend(query, key, value, keys, values, index)


def depth_attend(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, index: int) -> Tensor:
    """The same for queries, keys and values that are rotated already: ``[R, Hq or H, 1, D]``."""
    keys.narrow(2, index, 1).copy_(key)
    values.narrow(2, index, 1).copy_(value)
    if index == 0 and query.shape[1] == key.shape[1]:  # the softmax of one is 1
        attended = value
    else:
        attended = attend_masked(query, keys.narrow(2, 0, index + 1), values.narrow(2, 0, index + 1), None)
    return attended.reshape(query.shape[0], 1, -1)


def _depth_shape(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], 1, heads * keys.shape[-1])


_depth_attention_op = operation("depth_attention", _depth_attention, _depth_shape, ("keys", "values"))


# --- feed-forward -----------------------------------------------------------------------------------------------------


def gate(x: Tensor, activation: str) -> Tensor:
    """``[..., 2 H]`` to ``[..., H]``: ``activation(a) * b`` where ``[a, b] = x``."""
    return (_gate if direct(x) else _gate_op)(x, activation)


_ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


def activate(x: Tensor, name: str) -> Tensor:
    """The activation that a checkpoint names; "none" and "identity" are the same."""
    return _ACTIVATIONS[name](x) if name in _ACTIVATIONS else x


def _gate(x: Tensor, activation: str) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return activate(first, activation) * second


_gate_op = operation("gate", _gate, lambda x, _: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))


# --- embeddings -------------------------------------------------------------------------------------------------------


def embed_sum(tokens: Tensor, table: Tensor, first: Tensor) -> Tensor:
    """Sum of the embeddings of all streams, ``int64[R, S, T]`` to ``[R, T, D]``.

    Args:
        table: ``[rows, D]``, the streams' tables one after the other; first: ``int64[S]``, where each begins.

    `ZERO_TOKEN` gives 0, other negative tokens a stream's first row. Added in the order of the streams: sums round.
    """
    return (_embed_sum if direct(tokens) else _embed_sum_op)(tokens, table, first)


def _embed_sum(tokens: Tensor, table: Tensor, first: Tensor) -> Tensor:
    found = F.embedding(tokens.clamp(min=0) + first[:, None], table)  # [R, S, T, D]
    found = torch.where((tokens == ZERO_TOKEN)[..., None], 0.0, found)
    total, *others = found.unbind(1)
    for other in others:
        total = total + other
    return total


_embed_sum_op = operation(
    "embed_sum",
    _embed_sum,
    lambda tokens, table, _: table.new_empty(tokens.shape[0], tokens.shape[2], table.shape[1]),
)


def add_embedding(x: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    """``x [R, 1, D]`` and the embedding of ``tokens int64[R]``; `ZERO_TOKEN` adds 0."""
    return (_add_embedding if direct(x) else _add_embedding_op)(x, tokens, table)


def _add_embedding(x: Tensor, tokens: Tensor, table: Tensor) -> Tensor:
    found = F.embedding(tokens.clamp(min=0), table)
    return x + torch.where((tokens == ZERO_TOKEN)[:, None], 0.0, found)[:, None]


_add_embedding_op = operation("add_embedding", _add_embedding, like)


def embed_norm(
    x: Tensor, tokens: Tensor, table: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`add_embedding` and its `norm`."""
    return (_embed_norm if direct(x) else _embed_norm_op)(x, tokens, table, weight, eps, bias)


def _embed_norm(
    x: Tensor, tokens: Tensor, table: Tensor, weight: Tensor, eps: float, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    total = _add_embedding(x, tokens, table)
    return total, _norm(total, weight, eps, bias)


_embed_norm_op = operation("embed_norm", _embed_norm, lambda x, *_: (like(x), like(x)))


# --- state ------------------------------------------------------------------------------------------------------------


def fill_rows(stores: Sequence[Tensor], rows: Tensor, values: Sequence[float]) -> None:
    """Fill the given rows (``int64[N]``) of every store with its value."""
    if not stores:
        return
    (_fill_rows if direct(stores[0]) else _fill_rows_op)(stores, rows, values)


def _fill_rows(stores: Sequence[Tensor], rows: Tensor, values: Sequence[float]) -> None:
    for store, value in zip(stores, values, strict=True):
        store.index_fill_(0, rows, value)


_fill_rows_op = operation("fill_rows", _fill_rows, nothing, ("stores",))


# --- verdict ----------------------------------------------------------------------------------------------------------


def all_finite(parts: Sequence[Tensor], executes: Tensor) -> Tensor:
    """``bool[R]``: whether every value of every part ``[R, n]`` is finite, or the row does not execute."""
    return (_all_finite if direct(executes) else _all_finite_op)(parts, executes)


def _all_finite(parts: Sequence[Tensor], executes: Tensor) -> Tensor:
    # 0 times what is not finite is NaN, everything else gives 0: one pass and no mask in memory.
    total = torch.stack([(part * 0).sum(dim=1).float() for part in parts]).sum(dim=0)
    return (total == 0) | ~executes


_all_finite_op = operation("all_finite", _all_finite, lambda parts, executes: like(executes))


# --- sampling ---------------------------------------------------------------------------------------------------------


def noise_keys(seed: Tensor, step: Tensor, slots: Tensor, first: int, count: int) -> Tensor:
    """Keys ``int64[R, count]`` of the noise streams from ``first``.

    Args:
        seed, step: of every slot, ``int64[slots + 1]``; slots: ``int64[R]``, whose the rows are.
    """
    return (_noise_keys if direct(seed) else _noise_keys_op)(seed, step, slots, first, count)


def _noise_keys(seed: Tensor, step: Tensor, slots: Tensor, first: int, count: int) -> Tensor:
    streams = torch.arange(first, first + count, device=seed.device)
    return keys_of_streams(seed.index_select(0, slots), step.index_select(0, slots), streams)


_noise_keys_op = operation(
    "noise_keys", _noise_keys, lambda seed, step, slots, first, count: seed.new_empty(slots.shape[0], count)
)


def noise_ahead(keys: Tensor, temperature: Tensor, vocabulary: int) -> Tensor | None:
    """Noise ``fp32[R, S, width]`` for `sample` under the keys of S streams, ``int64[R, S]``, made at once.

    That is cheaper on the CPU alone. None elsewhere, and where nobody draws.
    """
    if not direct(keys) or _nobody_draws(temperature):
        return None
    return exponential_noise(keys, min(TOP_K_WIDTH, vocabulary))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    given: Tensor,
    *,
    whole: Whole,
    raised: tuple[int, Tensor] | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """One token per row, or the given one: see `sampling.draw`.

    Args:
        logits: ``[R, V]``, drawn from in fp32.
        keys: ``int64[R]``, noise keys of this step and stream.
        given: ``int64[R]``; `UNGENERATED_TOKEN` means sample.
        noise: of `noise_ahead`, this stream's; None makes it here.
        whole: where it is not False, rows may look further than the sorted candidates, and it is more than one kernel.

    Returns:
        ``int64[R]``.
    """
    if direct(logits) or whole is not False:
        return _sample(logits, temperature, top_k, keys, given, whole, raised, noise)
    token, by = (-1, None) if raised is None else raised
    made: Tensor = _sample_op(logits, temperature, top_k, keys, given, token, by)
    return made


def _sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    given: Tensor,
    whole: Whole,
    raised: tuple[int, Tensor] | None,
    noise: Tensor | None = None,
) -> Tensor:
    if noise is None and _nobody_draws(temperature):
        token = logits.argmax(dim=-1)
    else:
        if noise is None:
            noise = exponential_noise(keys, min(TOP_K_WIDTH, logits.shape[-1]))
        token = draw(logits.float(), temperature, top_k, keys, noise, whole=whole, raised=raised)
    return torch.where(given == UNGENERATED_TOKEN, token, given)


def _nobody_draws(temperature: Tensor) -> bool:
    """Values are at hand on the CPU, unless a step is traced; elsewhere nobody waits for them."""
    at_hand = temperature.device.type == "cpu" and type(temperature) is Tensor
    return at_hand and not bool((temperature > 0).any())


def _sample_sorted(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    given: Tensor,
    raised_token: int,
    raised_by: Tensor | None,
) -> Tensor:
    """Where nobody looks further than the sorted candidates; no token is raised without ``raised_by``."""
    raised = None if raised_by is None else (raised_token, raised_by)
    return _sample(logits, temperature, top_k, keys, given, False, raised)


_sample_op = operation("sample", _sample_sorted, lambda *args: like(args[4]))
