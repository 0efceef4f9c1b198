"""PCM of any length in, whole 80 ms frames out."""

import numpy as np
import numpy.typing as npt

from serve_app.units import FRAME_SAMPLES

Pcm = npt.NDArray[np.float32]
"""Mono, 24 kHz, ``[samples]``, nominally within -1 and 1."""


class FrameBuffer:
    """Cuts PCM into frames. Every sample is copied once, whatever the chunks: the work is linear in the input.

    Not thread-safe.
    """

    def __init__(self) -> None:
        self._open: Pcm = np.empty(FRAME_SAMPLES, np.float32)
        self._filled = 0

    @property
    def pending_samples(self) -> int:
        """Samples that wait for the rest of their frame; below 1,920."""
        return self._filled

    def push(self, pcm: Pcm) -> list[Pcm]:
        """Args: ``float32[n]``, n >= 0. Returns the frames that it completed, each ``float32[1920]`` of its own."""
        assert pcm.ndim == 1, pcm.shape
        assert pcm.dtype == np.float32, pcm.dtype
        frames: list[Pcm] = []
        taken = 0
        while taken < len(pcm):
            count = min(FRAME_SAMPLES - self._filled, len(pcm) - taken)
            self._open[self._filled : self._filled + count] = pcm[taken : taken + count]
            self._filled += count
            taken += count
            if self._filled == FRAME_SAMPLES:
                frames.append(self._open)
                self._open = np.empty(FRAME_SAMPLES, np.float32)
                self._filled = 0
        return frames
