"""Sampling per row: every row has its own temperature, top-k and seed, and its noise is nobody else's.

Noise is a hash of (seed, step, stream, rank), so there is no generator to share, to advance or to save: a session's
tokens do not depend on its neighbours and can be replayed. The draw is the reference's, ``argmax(p / Exp(1))`` over the
sorted top-k probabilities, the noise indexed by rank.

A tick always sorts `TOP_K_WIDTH` candidates, so the cost and the graph are the same whatever the rows ask for. A row
with top-k 0 (the whole vocabulary, noise indexed by token) or above that width needs `whole`, which the host decides
from the parameters it set; it adds work and changes no other row's tokens.

Source: SplitMix64 (Steele et al., 2014); the exponential race for the draw.
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.spec import Sampling

TOP_K_WIDTH: Final = 512
"""Candidates that every tick sorts; the web client's slider ends at 500."""
TEXT_STREAM: Final = 0
"""Noise stream of text; codebook k's is k + 1."""

# SplitMix64's increment and multipliers, as signed 64-bit integers.
_GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2: Final = 0x94D049BB133111EB - (1 << 64)
_UNIFORM_BITS: Final = 23  # with the half step added, every value is exact in fp32 and neither 0 nor 1


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingParams:
    """How each slot samples: ``[slots + 1]`` each, fp32 temperatures (0 is greedy), int64 otherwise."""

    text_temperature: Tensor
    text_top_k: Tensor
    audio_temperature: Tensor
    audio_top_k: Tensor
    text_seed: Tensor
    audio_seed: Tensor

    @classmethod
    def empty(cls, slots: int, device: torch.device) -> "SamplingParams":
        """Greedy everywhere."""

        def zeros(dtype: torch.dtype) -> Tensor:
            return torch.zeros(slots + 1, device=device, dtype=dtype)

        real, whole = torch.float32, torch.int64
        return cls(zeros(real), zeros(whole), zeros(real), zeros(whole), zeros(whole), zeros(whole))

    def set(self, slot: int, sampling: Sampling) -> None:
        """Take over what a session asked for. Host side, between ticks."""
        for field in dataclasses.fields(self):
            getattr(self, field.name)[slot] = getattr(sampling, field.name)


def needs_whole(sampling: Sampling, text_card: int, card: int) -> bool:
    """Whether this session looks further than `TOP_K_WIDTH` candidates. Host side."""
    return any(
        temperature > 0 and vocabulary > TOP_K_WIDTH and not 0 < top_k <= TOP_K_WIDTH
        for temperature, top_k, vocabulary in (
            (sampling.text_temperature, sampling.text_top_k, text_card),
            (sampling.audio_temperature, sampling.audio_top_k, card),
        )
    )


def noise_keys(seed: Tensor, step: Tensor, streams: Tensor) -> Tensor:
    """One key per row and stream: ``int64[R]``, ``int64[R]``, ``int64[S]`` to ``int64[R, S]``."""
    session = _mix(seed + _GOLDEN)
    moment = _mix(session + step * _GOLDEN)
    return _mix(moment[:, None] + streams * _MIX_1 + _MIX_2)


def exponential_noise(keys: Tensor, count: int) -> Tensor:
    """Exp(1) noise ``fp32[..., count]`` under every key, positive and finite."""
    rank = torch.arange(1, count + 1, device=keys.device)
    bits = _shift(_mix(keys[..., None] + rank * _GOLDEN), 64 - _UNIFORM_BITS)
    return -torch.log((bits.float() + 0.5) * 2.0**-_UNIFORM_BITS)


def draw(logits: Tensor, temperature: Tensor, top_k: Tensor, keys: Tensor, noise: Tensor, *, whole: bool) -> Tensor:
    """One token per row.

    Args:
        logits: ``fp32[R, V]``.
        temperature: ``fp32[R]``; 0 or less takes the greatest logit.
        top_k: ``int64[R]``; 0 is the whole vocabulary.
        keys: ``int64[R]``, of this step and stream.
        noise: ``fp32[R, min(V, TOP_K_WIDTH)]`` under those keys; made for all streams of a step at once.
        whole: whether rows may look further than `TOP_K_WIDTH`; without it they are cut there.

    Returns:
        ``int64[R]``.
    """
    hot = temperature > 0
    probabilities = F.softmax(logits / torch.where(hot, temperature, 1.0)[:, None], dim=-1)
    vocabulary, width = logits.shape[-1], noise.shape[-1]
    narrow_k = top_k.clamp(max=width)
    if vocabulary <= width:
        # Nothing is cut: top-k 0 is drawn by token, as the reference does, everything else by rank.
        everything: Tensor | None = (probabilities / noise).argmax(dim=-1)
    else:
        everything = _draw_beyond(probabilities, top_k, keys, width) if whole else None
        narrow_k = torch.where(top_k == 0, width, narrow_k)
    candidates, tokens = probabilities.topk(width, dim=-1)
    rank = torch.arange(width, device=logits.device)
    score = torch.where(rank < narrow_k[:, None], candidates / noise, -1.0)
    token = tokens.gather(1, score.argmax(dim=-1, keepdim=True))[:, 0]
    if everything is not None:
        far = (top_k == 0) if vocabulary <= width else (top_k == 0) | (top_k > width)
        token = torch.where(far, everything, token)
    return torch.where(hot, token, logits.argmax(dim=-1))


def _draw_beyond(probabilities: Tensor, top_k: Tensor, keys: Tensor, width: int) -> Tensor:
    """The draw of rows that look further than ``width``: all tokens in their own order, or a longer sorted list."""
    vocabulary = probabilities.shape[-1]
    noise = exponential_noise(keys, vocabulary)
    by_token = (probabilities / noise).argmax(dim=-1)
    candidates, tokens = probabilities.sort(dim=-1, descending=True)
    rank = torch.arange(vocabulary, device=probabilities.device)
    score = torch.where(rank < top_k[:, None], candidates / noise, -1.0)
    by_rank = tokens.gather(1, score.argmax(dim=-1, keepdim=True))[:, 0]
    return torch.where(top_k == 0, by_token, by_rank)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; integer products wrap."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
