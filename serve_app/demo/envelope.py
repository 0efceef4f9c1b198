"""How far two sounds are apart for understanding: short-time envelopes that rise and fall together.

Differentiable cousins of STOI (Taal et al., 2011) and ESTOI (Jensen and Taal, 2016): third-octave envelopes over
0.38 s, normalised along time (and then across bands), correlated. Segments without speech do not count. The metrics
themselves are measured elsewhere, by pystoi.
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
    """One minus mean correlations: 0 for the same sound, about 1 for an unrelated one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("window", torch.hann_window(WINDOW), persistent=False)
        self.register_buffer("bank", third_octaves(), persistent=False)

    def forward(self, made: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """How far apart across time and bands, and along time alone: two scalars.

        Args:
            made, wanted: float32 ``[B, samples]``, at least 0.4 s long.
        """
        a, b = self._segments(made), self._segments(wanted)  # [B, S, bands, FRAMES]
        energy = b.square().mean((2, 3))  # [B, S]
        speech = energy > energy.amax(1, keepdim=True) * 10 ** (-RANGE_DB / 10) + _EPS
        a, b = _normalise(a, 3), _normalise(b, 3)
        along_time = (a * b).sum((2, 3)) / BANDS
        both = (_normalise(a, 2) * _normalise(b, 2)).sum((2, 3)) / FRAMES
        count = speech.sum().clamp(min=1)
        return ((1 - both) * speech).sum() / count, ((1 - along_time) * speech).sum() / count

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


def _normalise(x: Tensor, dim: int) -> Tensor:
    """Zero mean and unit length along ``dim``."""
    x = x - x.mean(dim, keepdim=True)
    return x / torch.sqrt(x.square().sum(dim, keepdim=True) + _EPS)
