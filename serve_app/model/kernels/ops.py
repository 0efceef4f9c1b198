"""The kernels as operators of torch, in namespace ``chorus``: one operator is one launch, on meta too.

Importing this costs nothing and needs neither triton nor a GPU: operators are defined at the first call, kernels are
imported when one runs. On meta and fake tensors they give shapes alone. On CPU tensors they run under Triton's
interpreter only: the model's own PyTorch path is what a CPU should take, and a GPU without triton (`available`).

All are graph-safe: grids and splits come from shapes, lengths and parameters are read on the GPU. Nothing here is
differentiable.
"""

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Final, cast

import torch
from torch import Tensor

ONE_LAUNCH_TOKENS: Final = 4096
"""Vocabularies up to this size are sampled in one launch, larger ones in two."""
MAX_DEPTH: Final = 32
"""Positions that `depth_attention` holds."""
_PREFIX: Final = "triton_"
"""Of the operators' names: the model's own fused operators share the namespace."""
_PIECE: Final = 2048
_KEPT: Final = 512


def available() -> bool:
    """Whether triton is installed. Whether its kernels fit the GPU is what `check` says."""
    return importlib.util.find_spec("triton") is not None


def add_norm(
    x: Tensor,
    update: Tensor | None,
    weight: Tensor,
    eps: float,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The residual stream and its norm; computed in fp32, rounded where PyTorch rounds. One launch.

    Args:
        x: ``[R, T, D]``.
        update: ``[R, T, D]``, what a branch adds; None before the first.
        weight: ``[D]`` in any shape.
        bias: ``[D]`` makes it a layer norm; without it it is ``x * (weight * rsqrt(eps + mean(x^2)))``.
        scale: ``[D]``, a layer scale on the update.

    Returns:
        ``x + update * scale`` (x itself without an update) and its norm, ``[R, T, D]`` each, in update's dtype.
    """
    if update is None:
        return x, cast(Tensor, _operators().norm(x, weight, eps, bias))
    return cast(tuple[Tensor, Tensor], _operators().add_norm(x, update, weight, eps, bias, scale))


def gate(x: Tensor, activation: str) -> Tensor:
    """``activation(a) * b`` of ``x = [a, b]``: ``[R, T, 2H]`` to ``[R, T, H]``. One launch."""
    return cast(Tensor, _operators().gate(x, activation))


def rope_append(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    *,
    heads: int,
    kv_heads: int,
    interleaved: bool,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
) -> Tensor:
    """Split a layer's product, rotate queries and keys, write keys and values to the store. One launch.

    Args:
        qkv: ``[R, T, (Hq + 2H) D]``.
        cos, sin: ``fp32[R, 1, T, D/2]`` of `Rotation`; None for a model without rotation.
        keys, values: ``[P, page, H, D]``, contiguous, written in place: slots of a ring, or pages of a pool.
        write: the slot or page of each row, ``int64[R]`` or ``[R, 1]``, or of each step, ``[R, T]``.
        index: ``int64[R, T]``, position inside it. Two rows may share a place only if nobody reads it (scratch).
        key_scale, value_scale: ``[P, page, H]`` for a store of int8 or fp8: a token's greatest value in a head becomes
            127 or the format's greatest, the rest is divided by the same scale.

    Returns:
        Queries ``[R, Hq, T, D]``, rotated.
    """
    assert keys.is_contiguous(), "a store is addressed as one block"
    assert values.is_contiguous(), "a store is addressed as one block"
    return cast(
        Tensor,
        _operators().rope_append(
            qkv, cos, sin, keys, values, write, index, key_scale, value_scale, heads, kv_heads, interleaved
        ),
    )


def decode_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None = None,
    value_scale: Tensor | None = None,
    splits: int | None = None,
) -> Tensor:
    """Attend from one new step of every row to what the row holds. Two launches, or one when a row is not split.

    Args:
        query: ``[R, Hq, D]``, rotated; Hq is a multiple of H.
        keys, values: ``[P, page, H, D]``, contiguous. A ring is ``page = capacity``, ``table = slots[:, None]``.
        table: ``int32`` or ``int64 [R, blocks]``: position p lies in page ``table[r, p // page]`` at ``p % page``.
            Blocks past a row's length may hold anything: they are not read.
        length: ``int64[R]``, steps written, the new one included; 0 gives zeros.
        capacity: the context; the last that many steps are seen, whether or not the page divides it.
        key_scale, value_scale: ``[P, page, H]`` of a quantised store.
        splits: programs that share a row; None takes what fills this GPU.

    Returns:
        ``[R, Hq, D]`` in query's dtype; accumulated in fp32.
    """
    assert keys.is_contiguous(), "a store is addressed as one block"
    assert values.is_contiguous(), "a store is addressed as one block"
    assert table.stride(1) == 1 or table.shape[1] == 1, "a row of the table is one block"
    if splits is None:
        splits = _split_count(query, keys, min(capacity, table.shape[1] * keys.shape[1]))
    chorus = _operators()
    part, weight = chorus.decode_partial(query, keys, values, table, length, capacity, key_scale, value_scale, splits)
    if splits == 1:
        return cast(Tensor, part.squeeze(2))
    return cast(Tensor, chorus.decode_combine(part, weight, query.dtype))


def depth_attention(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    """One position of the Depformer: write its key and value, attend to all so far. One launch.

    Args:
        qkv: ``[R, 1, (Hq + 2H) D]``.
        keys, values: ``[R, H, N, D]``, contiguous, N <= `MAX_DEPTH`; position ``index`` is written.

    Returns:
        ``[R, 1, Hq D]``, ready for the output product.
    """
    assert keys.shape[2] <= MAX_DEPTH, "one tile holds the past"
    assert keys.is_contiguous(), "a past is addressed as one block"
    assert values.is_contiguous(), "a past is addressed as one block"
    return cast(Tensor, _operators().depth_attention(qkv, keys, values, index, heads))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    raised: tuple[int, Tensor] | None = None,
) -> Tensor:
    """One token per row, as `sampling.draw` gives it. One launch up to `ONE_LAUNCH_TOKENS`, else two.

    Args:
        logits: ``[R, V]``, computed with in fp32.
        temperature: ``fp32[R]``; 0 or less takes the greatest logit, the first of equals.
        top_k: ``int64[R]``; 0 is the whole vocabulary. Beyond `ONE_LAUNCH_TOKENS` rows are cut at 512 candidates: those
            that want more (`sampling.Whole`) belong to the PyTorch path.
        keys: ``int64[R]`` of `sampling.noise_keys`; the noise is made here.
        raised: a token and by how much its logit is raised after the temperature, ``fp32[R]``.

    Returns:
        ``int64[R]``.
    """
    token, by = raised if raised is not None else (-1, None)
    chorus = _operators()
    if logits.shape[1] <= ONE_LAUNCH_TOKENS:
        return cast(Tensor, chorus.sample(logits, temperature, top_k, keys, token, by))
    pieces = chorus.sample_candidates(logits, temperature, token, by, _PIECE, _KEPT)
    return cast(Tensor, chorus.sample_merged(pieces, temperature, top_k, keys, logits.shape[1]))


def _split_count(query: Tensor, keys: Tensor, tokens: int) -> int:
    if query.device.type == "meta":
        return 2  # as many launches as a small batch needs; a full one needs one
    from serve_app.model.kernels import attention

    return attention.split_count(query.shape[0], keys.shape[2], tokens, attention.processors_of(query.device))


# --- definitions ------------------------------------------------------------------------------------------------------

_SCHEMAS: Final = (
    "add_norm(Tensor x, Tensor update, Tensor weight, float eps, Tensor? bias, Tensor? scale) -> (Tensor, Tensor)",
    "norm(Tensor x, Tensor weight, float eps, Tensor? bias) -> Tensor",
    "gate(Tensor x, str activation) -> Tensor",
    "rope_append(Tensor qkv, Tensor? cos, Tensor? sin, Tensor(a!) keys, Tensor(b!) values, Tensor write, Tensor index, "
    "Tensor(c!)? key_scale, Tensor(d!)? value_scale, int heads, int kv_heads, bool interleaved) -> Tensor",
    "decode_partial(Tensor query, Tensor keys, Tensor values, Tensor table, Tensor length, int capacity, "
    "Tensor? key_scale, Tensor? value_scale, int splits) -> (Tensor, Tensor)",
    "decode_combine(Tensor part, Tensor weight, ScalarType dtype) -> Tensor",
    "depth_attention(Tensor qkv, Tensor(a!) keys, Tensor(b!) values, int index, int heads) -> Tensor",
    "sample(Tensor logits, Tensor temperature, Tensor top_k, Tensor keys, int raised_token, Tensor? raised_by) "
    "-> Tensor",
    "sample_candidates(Tensor logits, Tensor temperature, int raised_token, Tensor? raised_by, int piece, int kept) "
    "-> Tensor",
    "sample_merged(Tensor pieces, Tensor temperature, Tensor top_k, Tensor keys, int vocabulary) -> Tensor",
)

_KERNELS: Final = {
    "add_norm": ("norm", "add_norm"),
    "norm": ("norm", "norm"),
    "gate": ("gate", "gate"),
    "rope_append": ("rope", "rope_append"),
    "decode_partial": ("attention", "partial"),
    "decode_combine": ("attention", "combine"),
    "depth_attention": ("depth", "depth_attention"),
    "sample": ("sample", "sample"),
    "sample_candidates": ("sample", "candidates"),
    "sample_merged": ("sample", "sample_merged"),
}
"""Operator to module and function. Arguments are passed on in order."""


class _Operators:
    """The namespace, and the registration that must live as long as it is used."""

    def __init__(self) -> None:
        self._library = torch.library.Library("chorus", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            self._library.define(_PREFIX + schema)  # type: ignore[no-untyped-call]
            name = schema.partition("(")[0]
            run = functools.partial(_run, *_KERNELS[name])
            for key in ("CUDA", "CPU"):
                self._library.impl(_PREFIX + name, run, key)  # type: ignore[no-untyped-call]
            torch.library.register_fake(f"chorus::{_PREFIX}{name}", _SHAPES[name], lib=self._library)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.ops.chorus, _PREFIX + name).default


@functools.cache
def _operators() -> _Operators:
    return _Operators()


def _run(module: str, function: str, *arguments: object) -> object:
    return getattr(importlib.import_module(f"serve_app.model.kernels.{module}"), function)(*arguments)


def _add_norm_shape(
    x: Tensor, update: Tensor, weight: Tensor, eps: float, bias: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    return update.new_empty(update.shape), update.new_empty(update.shape)


def _norm_shape(x: Tensor, weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


def _gate_shape(x: Tensor, activation: str) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _rope_append_shape(
    qkv: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    keys: Tensor,
    values: Tensor,
    write: Tensor,
    index: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    heads: int,
    kv_heads: int,
    interleaved: bool,
) -> Tensor:
    return qkv.new_empty(qkv.shape[0], heads, qkv.shape[1], qkv.shape[2] // (heads + 2 * kv_heads))


def _decode_partial_shape(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    table: Tensor,
    length: Tensor,
    capacity: int,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    splits: int,
) -> tuple[Tensor, Tensor]:
    rows, heads, head_dim = query.shape
    dtype = query.dtype if splits == 1 else torch.float32
    part = query.new_empty(rows, heads, splits, head_dim, dtype=dtype)
    return part, query.new_empty(rows, heads, splits, dtype=torch.float32)


def _decode_combine_shape(part: Tensor, weight: Tensor, dtype: torch.dtype) -> Tensor:
    return part.new_empty(part.shape[0], part.shape[1], part.shape[3], dtype=dtype)


def _depth_attention_shape(qkv: Tensor, keys: Tensor, values: Tensor, index: int, heads: int) -> Tensor:
    return qkv.new_empty(qkv.shape[0], 1, heads * keys.shape[3])


def _sample_shape(
    logits: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, raised_token: int, raised_by: Tensor | None
) -> Tensor:
    return logits.new_empty(logits.shape[0], dtype=torch.int64)


def _sample_candidates_shape(
    logits: Tensor, temperature: Tensor, raised_token: int, raised_by: Tensor | None, piece: int, kept: int
) -> Tensor:
    return logits.new_empty(logits.shape[0], -(-logits.shape[1] // piece), kept, dtype=torch.int64)


def _sample_merged_shape(pieces: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, vocabulary: int) -> Tensor:
    return pieces.new_empty(pieces.shape[0])


_SHAPES: Final[dict[str, Callable[..., Any]]] = {
    "add_norm": _add_norm_shape,
    "norm": _norm_shape,
    "gate": _gate_shape,
    "rope_append": _rope_append_shape,
    "decode_partial": _decode_partial_shape,
    "decode_combine": _decode_combine_shape,
    "depth_attention": _depth_attention_shape,
    "sample": _sample_shape,
    "sample_candidates": _sample_candidates_shape,
    "sample_merged": _sample_merged_shape,
}
