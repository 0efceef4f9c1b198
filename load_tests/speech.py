"""What every session of a load test says: speech that is encoded once, before the clock starts."""

from pathlib import Path
from typing import Final

import numpy as np

from serve_app.audio.opus import OpusSender
from serve_app.client.events import PCM
from serve_app.client.wav import read_wav
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ
from serve_app.wire.events import Kind

_SYLLABLE_HZ: Final = 4.0
_PITCHES_HZ: Final = (120.0, 143.0, 180.0, 160.0)
_AUDIO: Final = bytes([Kind.AUDIO])


def voice(seconds: float) -> PCM:
    """A voice-like sound, ``float32[n]``: harmonics under a syllable's envelope. For when no WAV file is given."""
    time_s = np.arange(round(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch_hz = np.asarray(_PITCHES_HZ)[(time_s * _SYLLABLE_HZ).astype(int) % len(_PITCHES_HZ)]
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE_HZ
    sound = sum(np.sin(order * phase) / order for order in range(1, 12))
    envelope = np.sin(np.pi * ((time_s * _SYLLABLE_HZ) % 1.0)) ** 2
    return np.asarray(0.2 * sound * envelope, dtype=np.float32)


def encoded(path: Path | None, seconds: float) -> list[bytes]:
    """Audio messages, one per frame of 80 ms, for ``seconds`` of speech; a shorter file starts over.

    One Opus stream, so every session may send the same bytes. 0.9 ms a frame, once.

    Raises:
        AudioFileError: the file cannot be read.
    """
    count = max(1, round(seconds / FRAME_S))
    pcm = voice(min(seconds, 8.0) + FRAME_S) if path is None else read_wav(path)
    spoken = np.resize(pcm, count * FRAME_SAMPLES).reshape(count, FRAME_SAMPLES)
    sender = OpusSender()
    return [_AUDIO + sender.encode(frame) for frame in spoken]
