"""What in the codes tells speech from silence: one number per code, fitted to talks whose sentences are known.

Evidence is linear in the codes, so it fits into an embedding; it is smoothed over the latest steps by the attention
head that the parrot has for it, with the same weights here.
"""

import logging
import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.demo.parrot import CARD, CONTEXT, Ear
from serve_app.demo.synthesis import LEVEL_RMS, Talk
from serve_app.model.mimi import Mimi
from serve_app.units import FRAME_RATE_HZ, FRAME_SAMPLES

LOG = logging.getLogger(__name__)

SMOOTHING: Final = 1.2
BEGIN: Final = 0.1
END: Final = -0.15
GAIN_DB: Final = (-15.0, 6.0)
FLOOR_DB: Final = (-80.0, -40.0)  # noise of a room, below speech at its usual level
_STEPS: Final = 200
_RATE: Final = 0.05
_DECAY: Final = 5e-5
LOGITS_OF_ONE: Final = 6.0


@torch.no_grad()
def silence_codes(mimi: Mimi, codebooks: int) -> Tensor:
    """``int64[codebooks]``: what the codec hears in a long silence."""
    return mimi.encode(torch.zeros(1, 1, 25 * FRAME_SAMPLES))[0, :codebooks, -1]


def fit_ear(mimi: Mimi, talks: Sequence[Talk], codebooks: int, seed: int) -> Ear:
    """Logistic regression from smoothed codes to whether the newest whole frame holds speech."""
    met = [positions(mimi, talk, codebooks, np.random.default_rng([seed, n])) for n, talk in enumerate(talks)]
    rows = torch.cat([codes for codes, _ in met], dim=1)  # [codebooks, T]
    truth = torch.cat([spoken for _, spoken in met])  # [T]
    weights = torch.zeros(codebooks, CARD, requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([weights, bias], _RATE)
    for _ in range(_STEPS):
        logits = smooth(weights, rows, SMOOTHING) + bias
        loss = F.binary_cross_entropy_with_logits(logits, truth) + _DECAY * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    LOG.info("the ear's loss is %.4f over %.0f min", float(loss.detach()), len(truth) / FRAME_RATE_HZ / 60)
    fitted = (weights.detach() + bias.detach() / codebooks) / LOGITS_OF_ONE
    return Ear(fitted, SMOOTHING, BEGIN, END)


def smooth(weights: Tensor, rows: Tensor, smoothing: float) -> Tensor:
    """Evidence ``[T]`` of codes ``int64[codebooks, T]``, averaged by age as the parrot's attention does."""
    index = rows + torch.arange(rows.shape[0])[:, None] * CARD
    evidence = weights.flatten()[index].sum(0)
    kernel = torch.softmax(-smoothing * torch.arange(CONTEXT).float(), dim=0)
    return F.conv1d(F.pad(evidence[None, None], (CONTEXT - 1, 0)), kernel.flip(0)[None, None])[0, 0]


@torch.no_grad()
def positions(mimi: Mimi, talk: Talk, codebooks: int, chance: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Codes as the model meets them, ``int64[codebooks, T]`` (acoustic ones a step late), and ``float[T]`` truth."""
    gain = 10 ** (chance.uniform(*GAIN_DB) / 20)
    floor = LEVEL_RMS * 10 ** (chance.uniform(*FLOOR_DB) / 20)
    pcm = talk.pcm * gain + floor * chance.standard_normal(len(talk.pcm), dtype=np.float32)
    codes = mimi.encode(torch.from_numpy(pcm.astype(np.float32))[None, None])[0, :codebooks]
    codes[1:, 1:] = codes[1:, :-1].clone()
    truth = torch.zeros(codes.shape[1])
    for start, stop in talk.spans:
        truth[math.ceil(start / FRAME_SAMPLES) : stop // FRAME_SAMPLES] = 1.0
    return codes, truth
