"""How far two sounds are apart for an ear: L1 between log-mel spectra at four resolutions.

Phase is free, so a small decoder spends its weights on what is heard. The longest window resolves the harmonics of a
voice, the shortest one its plosives.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from serve_app.units import SAMPLE_RATE_HZ

SCALES: Final = ((256, 128, 24), (512, 192, 48), (1024, 256, 72), (2048, 512, 112))  # window, hop in samples; mel bands
FLOOR: Final = 2e-4  # about 52 dB below speech at its usual level


class MelLoss(nn.Module):
    """Mean over the scales of the mean absolute difference of natural-log mel magnitudes."""

    def __init__(self) -> None:
        super().__init__()
        for window, _, bands in SCALES:
            self.register_buffer(f"bank_{window}", mel_bank(window, bands), persistent=False)
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)

    def forward(self, made: Tensor, wanted: Tensor) -> Tensor:
        """A scalar; both sounds are float32 ``[B, samples]``."""
        total = made.new_zeros(())
        for window, hop, _ in SCALES:
            total = total + (self._log_mel(made, window, hop) - self._log_mel(wanted, window, hop)).abs().mean()
        return total / len(SCALES)

    def _log_mel(self, pcm: Tensor, window: int, hop: int) -> Tensor:
        shape: Tensor = getattr(self, f"window_{window}")
        bank: Tensor = getattr(self, f"bank_{window}")
        spectrum = torch.stft(pcm, window, hop, window=shape, return_complex=True, pad_mode="constant")
        power = spectrum.real.square() + spectrum.imag.square()  # [B, bins, T]
        mel = torch.einsum("mf,bft->bmt", bank, power) / shape.square().sum()
        return 0.5 * torch.log(mel + FLOOR**2)


def mel_bank(window: int, bands: int) -> Tensor:
    """Triangular filters ``[bands, window // 2 + 1]`` evenly spaced in mel, each summing to one."""
    top = 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700)
    edges = 700 * (10 ** (torch.linspace(0, top, bands + 2) / 2595) - 1)
    bins = torch.linspace(0, SAMPLE_RATE_HZ / 2, window // 2 + 1)
    spacing = float(bins[1])
    low, mid, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    # Bands narrower than a bin are widened to one, so that no filter is empty.
    rise = (bins - low) / (mid - low).clamp(min=spacing)
    fall = (high - bins) / (high - mid).clamp(min=spacing)
    bank = torch.minimum(rise, fall).clamp(min=0)
    nearest = (bins - mid).abs() <= spacing / 2
    bank = torch.where(bank.sum(1, keepdim=True) > 0, bank, nearest.float())
    return bank / bank.sum(1, keepdim=True)
