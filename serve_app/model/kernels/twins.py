"""What each operator computes, in the model's own PyTorch functions: the oracle of `check` and of the tests.

Plain, not fast: a row at a time where that is clearer.
"""

import torch
from torch import Tensor

from serve_app.model.fused import add_norm, attend_masked, depth_attention
from serve_app.model.quantised_kv import quantise
from serve_app.model.rope import Rotation
from serve_app.model.sampling import TOP_K_WIDTH, draw, exponential_noise

__all__ = ["add_norm", "decode_attention", "depth_attention", "quantise", "rope_append", "sample"]


def rope_append(
    qkv: Tensor,
    rotation: Rotation | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    heads: int,
    kv_heads: int,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """Queries ``[R, Hq, T, D]``; keys and values go to ``(write, index)`` of their stores."""
    head_dim = qkv.shape[-1] // (heads + 2 * kv_heads)
    q, k, v = torch.split(qkv.view(*qkv.shape[:2], -1, head_dim).transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
    if rotation is not None:
        q, k = rotation.turn(q), rotation.turn(k)
    to = write.reshape(len(qkv), -1), index
    for store, scales, new in ((keys, key_scale, k.transpose(1, 2)), (values, value_scale, v.transpose(1, 2))):
        if scales is None:
            store[to] = new.to(store.dtype)
        else:
            held, scale = quantise(new, store.dtype)
            store.view(torch.uint8)[to] = held.view(torch.uint8)
            scales[to] = scale.to(scales.dtype)
    return q


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
    """``[R, Hq, D]``; rows without keys give zeros."""
    page = keys.shape[1]
    out = torch.zeros_like(query)
    for row, steps in enumerate(length.tolist()):
        held = min(steps, capacity)
        if held == 0:
            continue
        pages = table[row, : -(-held // page)].long()
        k = _unpaged(keys, key_scale, pages, held, query.dtype)
        v = _unpaged(values, value_scale, pages, held, query.dtype)
        out[row] = attend_masked(query[row : row + 1, :, None], k, v, None)[0, :, 0]
    return out


def _unpaged(store: Tensor, scales: Tensor | None, pages: Tensor, held: int, dtype: torch.dtype) -> Tensor:
    """A row's keys or values, ``[1, H, held, D]``."""
    x = store[pages].flatten(0, 1)[:held]
    if scales is not None:
        x = x.float() * scales[pages].flatten(0, 1)[:held, :, None].float()
    return x.to(dtype).transpose(0, 1)[None]


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    raised: tuple[int, Tensor] | None = None,
    *,
    whole: bool,
) -> Tensor:
    """``int64[R]``; ``whole`` where rows may look further than `TOP_K_WIDTH`."""
    noise = exponential_noise(keys, min(logits.shape[1], TOP_K_WIDTH))
    return draw(logits.float(), temperature, top_k, keys, noise, whole=whole, raised=raised)
