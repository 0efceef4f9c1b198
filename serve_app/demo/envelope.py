"""How far two sounds are apart for understanding: short-time envelopes that rise and fall together.

A differentiable cousin of ESTOI (Jensen and Taal, 2016): third-octave envelopes over 0.38 s, normalised along time and
then across bands, correlated. Segments without speech do not count. The metric itself is measured elsewhere, by pystoi.
"""

from typing import Final

import torch
from torch import Tensor, nn

from serve_app.units import SAMPLE_RATE_HZ

BANDS: Final = 15
LOWEST_HZ: Final = 150.0
WINDOW: Final = 614  # samples, 25.6 ms
HOP: Final = 307
FRAMES: Final = 30  # of one segment
STRIDE: Final = 6  # frames between segments
RANGE_DB: Final = 40.0  # a segment this far below the batch item's loudest holds no speech
_FFT: Final = 1_024
_EPS: Final = 1e-8


class EnvelopeLoss(nn.Module):
    """One minus the mean correlation: 0 for the same sound, about 1 for an unrelated one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("bank", third_octaves(), persistent=False)

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """A scalar; both sounds are float32 ``[B, samples]``, at least 0.4 s long."""
        a, b = self._segments(made), self._segments(wanted)  # [B, S, bands, FRAMES]
        energy = b.square().mean((2, 3))  # [B, S]
        speech = energy > energy.amax(1, keepdim=True) * 10 ** (-RANGE_DB / 10) + _EPS
        correlation = (_normalise(a) * _normalise(b)).sum((2, 3)) / FRAMES
        return ((1 - correlation) * speech).sum() / speech.sum().clamp(min=1)

    def _segments(self, pcm: Tensor) -> Tensor:
        window: Tensor = self.window  # type: ignore[assignment]
        spectrum = torch.stft(pcm, _FFT, HOP, WINDOW, window, return_complex=True, pad_mode="constant")
        power = torch.einsum("kf,bft->bkt", self.bank, spectrum.real.square() + spectrum.imag.square())
        return torch.sqrt(power + _EPS).unfold(2, FRAMES, STRIDE).transpose(1, 2)


def third_octaves() -> Tensor:
    """Which bins each band sums, ``[BANDS, _FFT // 2 + 1]``."""
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, _FFT // 2 + 1)
    middle = LOWEST_HZ * 2 ** (torch.arange(BANDS) / 3)[:, None]
    half = 2 ** (1 / 6)
    return ((bins >= middle / half) & (bins < middle * half)).float()


def _normalise(x: Tensor) -> Tensor:
    """Zero mean and unit length along time, then across bands."""
    for dim in (3, 2):
        x = x - x.mean(dim, keepdim=True)
        x = x / torch.sqrt(x.square().sum(dim, keepdim=True) + _EPS)
    return x
