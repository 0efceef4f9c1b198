"""What each operator computes, in the model's own PyTorch functions: the oracle of `check` and of the tests.

Plain, not fast: a row at a time where that is clearer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.ring import attend_masked
from serve_app.model.rope import Rotation
from serve_app.model.sampling import TOP_K_WIDTH, draw, exponential_noise


def add_norm(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`LayerScale`, the residual addition and `RmsNorm` in fp32, or layer norm."""
    total = x.to(update.dtype) + (update if scale is None else scale * update)
    return total, norm(total, weight, eps, bias)


def norm(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None) -> Tensor:
    """`rms_norm_f32`, or layer norm where there is a bias."""
    y = x.float()
    if bias is not None:
        return F.layer_norm(y, (x.shape[-1],), weight.float(), bias.float(), eps).to(x.dtype)
    return (y * (weight.float() * torch.rsqrt(eps + torch.mean(y**2, dim=-1, keepdim=True)))).to(x.dtype)


def quantise(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``[..., D]`` and its scales ``fp32[...]``: the greatest value becomes the format's greatest."""
    y = x.float()
    reach = y.abs().amax(dim=-1)
    greatest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    scale = reach / greatest
    y = y / torch.where(scale > 0, scale, 1.0)[..., None]
    return (torch.round(y) if dtype == torch.int8 else y).to(dtype), scale


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


def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    """``[R, 1, Hq D]``."""
    kv_heads, head_dim = keys.shape[1], keys.shape[3]
    q, k, v = torch.split(qkv.view(*qkv.shape[:2], -1, head_dim).transpose(1, 2), [heads, kv_heads, kv_heads], dim=1)
    keys[:, :, index : index + 1] = k
    values[:, :, index : index + 1] = v
    attended = attend_masked(q, keys[:, :, : index + 1], values[:, :, : index + 1], None)
    return attended.transpose(1, 2).flatten(-2)


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
