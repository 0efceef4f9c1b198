"""Sampling per row: every row has its own temperature, top-k and seed, and its noise is nobody else's.

Noise is a hash of (seed, step, stream, rank), so there is no generator to share, to advance or to save: a session's
tokens do not depend on its neighbours and can be replayed. The draw is the reference's, ``argmax(p / Exp(1))`` over the
sorted top-k probabilities, the noise indexed by rank.

A tick always sorts `TOP_K_WIDTH` candidates, so the cost and the graph are the same whatever the rows ask for. A row
with top-k 0 (the whole vocabulary, noise indexed by token) or above that width costs more, and has to be among the
`Whole` rows, which the host knows from the parameters that it set. They change no other row's tokens.

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

Whole = bool | Tensor
"""Rows of a tick that may look further than `TOP_K_WIDTH`: every one, none, or those indices (``int64[N]``)."""

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


def draw(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    keys: Tensor,
    noise: Tensor,
    *,
    whole: Whole,
    raised: tuple[int, Tensor] | None = None,
) -> Tensor:
    """One token per row.

    Args:
        logits: ``fp32[R, V]``.
        temperature: ``fp32[R]``; 0 or less takes the greatest logit.
        top_k: ``int64[R]``; 0 is the whole vocabulary.
        keys: ``int64[R]``, of this step and stream.
        noise: ``fp32[R, min(V, TOP_K_WIDTH)]`` under those keys; made for all streams of a step at once.
        whole: the rows that may look further than `TOP_K_WIDTH`; others are cut there.
        raised: a token and by how much its logit is raised after the temperature, ``fp32[R]``; greedy rows ignore it.

    Returns:
        ``int64[R]``.
    """
    hot = temperature > 0
    scaled = logits / torch.where(hot, temperature, 1.0)[:, None]
    if raised is not None:
        token, by = raised
        scaled[:, token] += by
    probabilities = F.softmax(scaled, dim=-1)
    vocabulary, width = logits.shape[-1], noise.shape[-1]
    cut = torch.where(top_k == 0, width, top_k)
    drawn = _draw_by_rank(*probabilities.topk(width, dim=-1), cut, noise)
    if vocabulary <= width:
        drawn = torch.where(top_k == 0, (probabilities / noise).argmax(dim=-1), drawn)
    elif whole is True:
        drawn = _draw_beyond(drawn, probabilities, top_k, keys, width)
    elif isinstance(whole, Tensor):
        far = _draw_beyond(drawn[whole], probabilities[whole], top_k[whole], keys[whole], width)
        drawn = drawn.index_copy(0, whole, far)
    return torch.where(hot, drawn, logits.argmax(dim=-1))


def _draw_by_rank(candidates: Tensor, tokens: Tensor, top_k: Tensor, noise: Tensor) -> Tensor:
    """The race among the first ``top_k`` of the sorted candidates (``[R, W]``, with their tokens)."""
    rank = torch.arange(candidates.shape[-1], device=candidates.device)
    score = torch.where(rank < top_k[:, None], candidates / noise, -1.0)
    return tokens.gather(1, score.argmax(dim=-1, keepdim=True))[:, 0]


def _draw_beyond(token: Tensor, probabilities: Tensor, top_k: Tensor, keys: Tensor, width: int) -> Tensor:
    """Draw again for rows that look further than ``width``: all tokens in their own order, or a longer sorted list."""
    noise = exponential_noise(keys, probabilities.shape[-1])
    by_token = (probabilities / noise).argmax(dim=-1)
    by_rank = _draw_by_rank(*probabilities.sort(dim=-1, descending=True), top_k, noise)
    return torch.where(top_k == 0, by_token, torch.where(top_k > width, by_rank, token))


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser; integer products wrap."""
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
