"""WAV files to the sound that a session speaks, and back."""

import math
import os
import wave
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.client.events import PCM
from serve_app.client.failures import AudioFileError
from serve_app.units import SAMPLE_RATE_HZ

MAX_FILE_S: Final = 3_600.0
_FULL_SCALE: Final = 32_767.0


def read_wav(path: Path) -> PCM:
    """Read a WAV file of integer samples, any rate and channels, as ``float32[n]`` at 24 kHz mono.

    Raises:
        AudioFileError: missing, unreadable, not a WAV file of integer samples, empty, or over an hour.
    """
    try:
        with wave.open(str(path), "rb") as file:
            rate_hz, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            if file.getnframes() > MAX_FILE_S * rate_hz:
                raise AudioFileError(path, f"is longer than {MAX_FILE_S:g} s")
            data = file.readframes(file.getnframes())
    except OSError as failed:
        raise AudioFileError(path, failed.strerror or str(failed)) from failed
    except (wave.Error, EOFError) as failed:
        raise AudioFileError(path, f"is not a WAV file of integer samples ({failed or 'it ends early'})") from failed
    if width not in (1, 2, 3, 4) or channels < 1 or rate_hz < 1:
        raise AudioFileError(path, f"has {channels} channels of {8 * width} bits at {rate_hz} Hz")
    samples = _to_float(data[: len(data) // (width * channels) * width * channels], width)
    if not samples.size:
        raise AudioFileError(path, "has no sound in it")
    return resample(samples.reshape(-1, channels).mean(axis=1, dtype=np.float32), rate_hz)


def write_wav(path: Path, pcm: PCM) -> None:
    """Write ``float32[n]`` at 24 kHz as 16-bit mono; what is over full scale is clipped.

    Raises:
        AudioFileError: the file cannot be written.
    """
    samples = np.round(np.clip(pcm, -1.0, 1.0) * _FULL_SCALE).astype("<i2")
    try:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE_HZ)
            file.writeframes(samples.tobytes())
    except OSError as failed:
        raise AudioFileError(path, failed.strerror or str(failed)) from failed


def check_writable(path: Path) -> None:
    """Raise now what :func:`write_wav` would raise after a long conversation.

    Raises:
        AudioFileError: the folder is missing or read-only, or the path is a folder.
    """
    if path.is_dir():
        raise AudioFileError(path, "is a folder")
    if not path.parent.is_dir():
        raise AudioFileError(path, "its folder does not exist")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise AudioFileError(path, "cannot be written")


def resample(pcm: PCM, rate_hz: int) -> PCM:
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


def _to_float(data: bytes, width: int) -> PCM:
    """Little-endian integers of ``width`` bytes to [-1, 1); 8-bit WAV is unsigned."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128.0) / 128.0
    if width == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return (wide.view("<i4")[:, 0] / float(1 << 31)).astype(np.float32)
    samples = np.frombuffer(data, "<i2" if width == 2 else "<i4")
    return (samples / float(1 << (8 * width - 1))).astype(np.float32)
