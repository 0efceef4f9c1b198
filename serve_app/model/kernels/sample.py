"""One token per row: temperature, top-k, noise and the race of `serve_app.model.sampling.draw`.

A logit becomes an integer that sorts as it does, with the token behind it in the low half, so that one sort of int64
orders tokens by probability, ties by the lower token. The race ``argmax(p / Exp(1))`` needs no sum: exp(x - greatest)
is p up to a factor. Noise is hashed where it is used.

Up to 4,096 tokens (audio: 2,048) one program sorts the whole row and `sample` is one launch. Beyond (text: 32,000 or
48,000) `candidates` sorts pieces of 2,048 side by side and keeps the best 512 of each, and `sample_merged` merges
them one after the other, a bitonic merge of 512 each: two launches. Rows that look further than 512 there are the
caller's to leave to PyTorch, which knows them (`Whole`).

Bytes: 4 V per row and, beyond one launch, V / 4 x 8 written and read: 16 rows of text 4.1 MB, 1.4 us at 3 TB/s; the
floor is the 66 compare-and-swap rounds of a sort of 2,048, not bytes.
"""

from typing import Final

import torch
import triton.language as tl
from torch import Tensor

from serve_app.model.fused import UNGENERATED_TOKEN
from serve_app.model.kernels.jit import jit
from serve_app.model.kernels.splits import in_one, power_of_two

PIECE: Final = 2048
KEPT: Final = 512
UNGENERATED = tl.constexpr(UNGENERATED_TOKEN)


@jit
def _mix(x: tl.tensor) -> tl.tensor:
    """SplitMix64's finaliser on uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@jit
def _noise(key: tl.tensor, index: tl.tensor) -> tl.tensor:
    """Exp(1) under a key: what `exponential_noise` holds at this index."""
    bits = _mix(key.to(tl.uint64) + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15) >> 41
    return -tl.log((bits.to(tl.float32) + 0.5) * 1.1920928955078125e-07)  # 2**-23


@jit
def _packed(
    logits_ptr: tl.tensor,
    token: tl.tensor,
    vocabulary: tl.tensor,
    heat: tl.tensor,
    raised_token: tl.tensor,
    raise_by: tl.tensor,
) -> tl.tensor:
    """Sortable int64 of each token; tokens past the end sort last."""
    inside = token < vocabulary
    logit = tl.load(logits_ptr + token, inside, 0.0).to(tl.float32)
    logit = logit / tl.where(heat > 0.0, heat, 1.0)
    logit = tl.where(token == raised_token, logit + tl.where(heat > 0.0, raise_by, 0.0), logit)
    bits = (logit + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0 and 0 tie
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.int64)
    packed = (ordered << 32) | (0x7FFFFFFF - token).to(tl.int64)
    return tl.where(inside, packed, -0x7FFFFFFFFFFFFFFF)


@jit
def _race(
    packed: tl.tensor,
    rank: tl.tensor,
    count: tl.tensor,
    heat: tl.tensor,
    top_k: tl.tensor,
    key: tl.tensor,
    by_token: tl.constexpr,
) -> tl.tensor:
    """The winning token among the first ``count`` of sorted candidates.

    Where ``by_token`` holds, top-k 0 is the whole vocabulary with its noise indexed by token; else it is ``count``.
    """
    token = 0x7FFFFFFF - (packed & 0x7FFFFFFF)
    ordered = (packed >> 32).to(tl.int32)
    logit = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    first = tl.max(tl.where(rank == 0, logit, -float("inf")), 0)
    cut = tl.where(top_k == 0, count, tl.minimum(top_k, count))
    cut = tl.where(heat > 0.0, cut, 1)  # greedy: the first
    index = rank.to(tl.int64)
    if by_token:
        index = tl.where(top_k == 0, token, index)
    noise = _noise(key, index)
    score = tl.where(rank < cut, tl.exp(logit - first) / noise, -1.0)
    winner = tl.argmax(score, 0)
    return tl.sum(tl.where(rank == winner, token, 0), 0)


@jit
def _tell(out: tl.tensor, given: tl.tensor, chosen: tl.tensor) -> None:
    """The given token, or the chosen one; a row that is not finite still names a token."""
    tl.store(out, tl.where(given == UNGENERATED, chosen, given))


@jit
def _sample(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    given_ptr: tl.tensor,
    raised_ptr: tl.tensor,
    out_ptr: tl.tensor,
    vocabulary: tl.tensor,
    logits_row: tl.tensor,
    key_row: tl.tensor,
    given_row: tl.tensor,
    raised_token: tl.tensor,
    raises: tl.constexpr,
    block: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature_ptr + row)
    raise_by = 0.0
    if raises:
        raise_by = tl.load(raised_ptr + row)
    rank = tl.arange(0, block)
    packed = _packed(logits_ptr + row * logits_row, rank, vocabulary, heat, raised_token, raise_by)
    packed = tl.sort(packed, descending=True)
    top_k = tl.load(top_k_ptr + row)
    chosen = _race(packed, rank, vocabulary, heat, top_k, tl.load(keys_ptr + row * key_row), True)
    _tell(out_ptr + row, tl.load(given_ptr + row * given_row), tl.minimum(chosen, vocabulary - 1))


@jit
def _candidates(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    raised_ptr: tl.tensor,
    out_ptr: tl.tensor,
    vocabulary: tl.tensor,
    logits_row: tl.tensor,
    raised_token: tl.tensor,
    raises: tl.constexpr,
    piece: tl.constexpr,
    kept: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    heat = tl.load(temperature_ptr + row)
    raise_by = 0.0
    if raises:
        raise_by = tl.load(raised_ptr + row)
    rank = tl.arange(0, piece)
    token = part * piece + rank
    packed = _packed(logits_ptr + row * logits_row, token, vocabulary, heat, raised_token, raise_by)
    packed = tl.sort(packed, descending=True)
    tl.store(out_ptr + (row * tl.num_programs(1) + part) * kept + rank, packed, rank < kept)


@jit
def _sample_merged(
    candidates_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    top_k_ptr: tl.tensor,
    keys_ptr: tl.tensor,
    given_ptr: tl.tensor,
    out_ptr: tl.tensor,
    parts: tl.tensor,
    vocabulary: tl.tensor,
    key_row: tl.tensor,
    given_row: tl.tensor,
    kept: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    rank = tl.arange(0, kept)
    source = candidates_ptr + row * parts * kept
    best = tl.load(source + rank)
    for part in tl.range(1, parts):
        # The greater of one list and the other backwards are the first of both, in bitonic order.
        best = tl.maximum(best, tl.load(source + part * kept + (kept - 1 - rank)))
        best = tl.bitonic_merge(best, descending=True)
    heat = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    chosen = _race(best, rank, kept, heat, top_k, tl.load(keys_ptr + row * key_row), False)
    _tell(out_ptr + row, tl.load(given_ptr + row * given_row), tl.minimum(chosen, vocabulary - 1))


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    given: Tensor,
    raised_token: int,
    raised_by: Tensor | None,
) -> Tensor:
    """`fused.sample` where nobody looks further than the sorted candidates: one launch, or two for text."""
    if in_one(logits.shape[1]):
        return _whole_row(logits, temperature, top_k, keys, given, raised_token, raised_by)
    pieces = candidates(logits, temperature, raised_token, raised_by)
    return sample_merged(pieces, temperature, top_k, keys, given, logits.shape[1])


def _whole_row(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    given: Tensor,
    raised_token: int,
    raised_by: Tensor | None,
) -> Tensor:
    """What one launch holds: 4,096 tokens are 32 KiB of registers."""
    rows, vocabulary = logits.shape
    block = max(2, power_of_two(vocabulary))
    out = torch.empty(rows, device=logits.device, dtype=torch.int64)
    _sample[(rows,)](
        logits,
        temperature,
        top_k,
        keys,
        given,
        logits if raised_by is None else raised_by,
        out,
        vocabulary,
        logits.stride(0),
        keys.stride(0),
        given.stride(0),
        raised_token,
        raises=raised_by is not None,
        block=block,
        num_warps=min(8, max(1, block // 256)),  # 8 a lane: most rounds of the sort stay inside a warp
    )
    return out


def candidates(
    logits: Tensor,
    temperature: Tensor,
    raised_token: int,
    raised_by: Tensor | None,
    piece: int = PIECE,
    kept: int = KEPT,
) -> Tensor:
    """The best of every piece of the vocabulary, sorted: ``int64[R, pieces, kept]``."""
    rows, vocabulary = logits.shape
    parts = -(-vocabulary // piece)
    out = torch.empty(rows, parts, kept, device=logits.device, dtype=torch.int64)
    _candidates[(rows, parts)](
        logits,
        temperature,
        logits if raised_by is None else raised_by,
        out,
        vocabulary,
        logits.stride(0),
        raised_token,
        raises=raised_by is not None,
        piece=piece,
        kept=kept,
        num_warps=min(8, max(1, piece // 256)),
    )
    return out


def sample_merged(
    sorted_pieces: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, given: Tensor, vocabulary: int
) -> Tensor:
    """The draw among candidates: ``int64[R]``."""
    rows, parts, kept = sorted_pieces.shape
    out = torch.empty(rows, device=sorted_pieces.device, dtype=torch.int64)
    _sample_merged[(rows,)](
        sorted_pieces,
        temperature,
        top_k,
        keys,
        given,
        out,
        parts,
        vocabulary,
        keys.stride(0),
        given.stride(0),
        kept=kept,
        num_warps=min(4, max(1, kept // 128)),
    )
    return out
