"""WAV files to sound at our rate. What is wrong with one is a sentence; who asked names the file."""

import math
import wave
from pathlib import Path

import numpy as np

from serve_app.audio.frames import Pcm
from serve_app.units import SAMPLE_RATE_HZ


class WavError(Exception):
    """A file that is no sound; says why, without the file's name."""


def read_sound(path: Path, most_s: float) -> Pcm:
    """Read a WAV file of integer samples, any rate and channels, as ``float32[n]`` at 24 kHz mono.

    Raises:
        WavError: missing, unreadable, not a WAV file of integer samples, empty, or longer than ``most_s``.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate_hz, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if file.getnframes() > most_s * rate_hz:
                raise WavError(f"is longer than {most_s:g} s")
            data = file.readframes(file.getnframes())
    except OSError as failed:
        raise WavError(failed.strerror or str(failed)) from failed
    except (wave.Error, EOFError) as failed:
        raise WavError(f"is not a WAV file of integer samples ({failed or 'it ends early'})") from failed
    if width not in (1, 2, 3, 4) or channels < 1 or rate_hz < 1:
        raise WavError(f"has {channels} channels of {8 * width} bits at {rate_hz} Hz")
    samples = _to_float(data[: len(data) // (width * channels) * width * channels], width)
    if not samples.size:
        raise WavError("has no sound in it")
    return resample(samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate_hz)


def resample(pcm: Pcm, rate_hz: int) -> Pcm:
    """``float32[n]`` at ``rate_hz`` to 24 kHz: ``round(n * 24000 / rate_hz)`` samples.

    Cuts or pads the spectrum of the whole signal, with half a second of silence against the wrap of the transform:
    exact below the lower Nyquist rate, and an hour is the longest that comes here.
    """
    if rate_hz == SAMPLE_RATE_HZ:
        return pcm
    divisor = math.gcd(rate_hz, SAMPLE_RATE_HZ)
    up, down = SAMPLE_RATE_HZ // divisor, rate_hz // divisor
    blocks = -(-(pcm.size + rate_hz // 2) // down)
    padded = np.zeros(blocks * down, dtype=np.float32)
    padded[: pcm.size] = pcm
    spectrum = np.fft.rfft(padded)
    length = blocks * up
    cut = spectrum[: length // 2 + 1]
    resampled = np.fft.irfft(cut, length) * (up / down)  # irfft pads a short spectrum itself
    return np.ascontiguousarray(resampled[: round(pcm.size * SAMPLE_RATE_HZ / rate_hz)], dtype=np.float32)


def _to_float(data: bytes, width: int) -> Pcm:
    """Little-endian integers of ``width`` bytes to [-1, 1); 8-bit WAV is unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / float(1 << 31)).astype(np.float32)
    samples = np.frombuffer(data, "<i2" if width == 2 else "<i4")
    return (samples / float(1 << (8 * width - 1))).astype(np.float32)
