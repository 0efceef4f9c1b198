"""The list of voices: made once, of files that are sound."""

import wave
from pathlib import Path

import numpy as np
import pytest

from serve_app.errors import ConfigError
from serve_app.serving.voices import read_voices


def write(path: Path, seconds: float = 0.2, rate_hz: int = 24_000) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.zeros(int(seconds * rate_hz), "<i2").tobytes())


def test_every_wav_file_is_a_voice_by_its_name_at_our_rate(tmp_path: Path) -> None:
    write(tmp_path / "bert.WAV", rate_hz=48_000)
    write(tmp_path / "anna.wav")
    (tmp_path / "notes.txt").write_text("not a voice")
    voices = read_voices(str(tmp_path))
    assert list(voices) == ["anna", "bert"]
    assert {len(pcm) for pcm in voices.values()} == {4_800}


def test_no_folder_is_no_voice() -> None:
    assert read_voices(None) == {}


def test_a_file_that_is_not_audio_is_named(tmp_path: Path) -> None:
    write(tmp_path / "anna.wav")
    (tmp_path / "carl.wav").write_bytes(b"OggS is not RIFF")
    with pytest.raises(ConfigError, match=r"carl\.wav: is not a WAV file"):
        read_voices(str(tmp_path))


@pytest.mark.parametrize(("seconds", "why"), [(0.0, "has no sound"), (61.0, "longer than 60 s")])
def test_a_voice_is_from_some_sound_to_a_minute(tmp_path: Path, seconds: float, why: str) -> None:
    write(tmp_path / "anna.wav", seconds)
    with pytest.raises(ConfigError, match=why):
        read_voices(str(tmp_path))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        read_voices(str(tmp_path / "nowhere"))
