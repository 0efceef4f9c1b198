"""WAV files to the sound that a session speaks, and back."""

import os
import wave
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.audio.wav import WavError, read_sound, resample
from serve_app.client.events import PCM
from serve_app.client.failures import AudioFileError
from serve_app.units import SAMPLE_RATE_HZ

MAX_FILE_S: Final = 3_600.0
__all__ = ["check_writable", "read_wav", "resample", "write_wav"]
_FULL_SCALE: Final = 32_767.0


def read_wav(path: Path) -> PCM:
    """Read a WAV file of integer samples, any rate and channels, as ``float32[n]`` at 24 kHz mono.

    Raises:
        AudioFileError: missing, unreadable, not a WAV file of integer samples, empty, or over an hour.
    """
    try:
        return read_sound(path, MAX_FILE_S)
    except WavError as error:
        raise AudioFileError(path, str(error)) from error


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
