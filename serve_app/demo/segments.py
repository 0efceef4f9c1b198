"""Short pieces of training speech, made unlike each other: level, pitch and pace, tilt, noise, now and then tones."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import Tensor

from serve_app.demo.synthesis import LEVEL_RMS, Pcm, Talk
from serve_app.units import FRAME_SAMPLES, SAMPLE_RATE_HZ

GAIN_DB: Final = (-18.0, 6.0)
PLAIN_GAIN_DB: Final = (-12.0, 3.0)
NOISE_DB: Final = (-50.0, -25.0)  # below the speech
STRETCHES: Final = ((7, 8), (15, 16), (17, 16), (9, 8), (5, 4))
_TONES_SHARE: Final = 0.03
_NOISE_SHARE: Final = 0.25
_TILT_SHARE: Final = 0.4
_PLAIN: Final = 0.2  # how much of tones, noise, tilt and stretching is left in plain segments


class Segments:
    """Pieces of training talks, drawn by seed. Holds every talk twice: as it was said, and stretched."""

    def __init__(self, talks: Sequence[Talk]) -> None:
        self._pieces: list[Pcm] = []
        for number, talk in enumerate(talks):
            up, down = STRETCHES[number % len(STRETCHES)]
            for start, stop in talk.spans:
                # A quarter of a second of the silence around it belongs to a sentence: starts and stops are learnt too.
                padded = talk.pcm[max(0, start - SAMPLE_RATE_HZ // 4) : stop + SAMPLE_RATE_HZ // 4]
                self._pieces += [padded, np.asarray(resample_poly(padded, up, down), np.float32)]
        lengths = np.array([len(piece) for piece in self._pieces], np.float64)
        self._odds = lengths / lengths.sum()

    def draw(self, batch: int, frames: int, seed: int, *, plain: bool = False) -> Tensor:
        """``float32[batch, 1, frames * 1920]``, the same for the same seed; plain ones mostly as they were said."""
        chance = np.random.default_rng(seed)
        samples = frames * FRAME_SAMPLES
        left = _PLAIN if plain else 1.0
        rows = [
            self._tones(samples, chance)
            if chance.random() < _TONES_SHARE * left
            else self._speech(samples, chance, left, PLAIN_GAIN_DB if plain else GAIN_DB)
            for _ in range(batch)
        ]
        return torch.from_numpy(np.stack(rows)[:, None])

    def sweep(self, total: int, frames: int = 32, batch: int = 16) -> Iterator[Tensor]:
        """About ``total`` frames in batches ``[batch, 1, frames * 1920]``, the same every time."""
        for number in range(-(-total // (batch * frames))):
            yield self.draw(batch, frames, seed=10_000_000 + number)

    def _speech(self, samples: int, chance: np.random.Generator, left: float, gain_db: tuple[float, float]) -> Pcm:
        which = int(chance.choice(len(self._pieces), p=self._odds))
        if left < 1 and which % 2 and chance.random() > left:
            which -= 1  # the same sentence, not stretched
        piece = self._pieces[which]
        start = int(chance.integers(-samples // 3, max(1, len(piece) - samples // 2)))
        row = np.zeros(samples, np.float32)
        inside = piece[max(0, start) : start + samples]
        row[max(0, -start) : max(0, -start) + len(inside)] = inside[: samples - max(0, -start)]
        if chance.random() < _TILT_SHARE * left:
            tilt = chance.uniform(-0.6, 0.6)
            row[1:] = (row[1:] + tilt * row[:-1]) / (1 + abs(tilt))
        if chance.random() < _NOISE_SHARE * left:
            level = LEVEL_RMS * 10 ** (chance.uniform(*NOISE_DB) / 20)
            row += level * chance.standard_normal(samples, dtype=np.float32)
        gain = 10 ** (chance.uniform(*gain_db) / 20)
        return np.asarray(np.clip(row * gain, -0.99, 0.99), np.float32)

    def _tones(self, samples: int, chance: np.random.Generator) -> Pcm:
        clock = np.arange(samples) / SAMPLE_RATE_HZ
        row = np.zeros(samples)
        for _ in range(int(chance.integers(1, 4))):
            hz = 10 ** chance.uniform(2.0, 3.6)  # 100 Hz to 4 kHz
            row += chance.uniform(0.01, 0.2) * np.sin(2 * np.pi * (hz * clock + chance.random()))
        return np.clip(row, -0.99, 0.99).astype(np.float32)
