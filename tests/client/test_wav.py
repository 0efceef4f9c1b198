import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.failures import AudioFileError
from serve_app.client.wav import check_writable, read_wav, resample, write_wav
from serve_app.units import SAMPLE_RATE_HZ


def tone(hz: float, rate_hz: int, seconds: float = 1.0) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.asarray(0.5 * np.sin(2 * np.pi * hz * np.arange(round(rate_hz * seconds)) / rate_hz), dtype=np.float32)


def stored(path: Path, data: bytes, *, rate_hz: int = SAMPLE_RATE_HZ, channels: int = 1, width: int = 2) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate_hz)
        file.writeframes(data)
    return path


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    pcm = tone(440.0, SAMPLE_RATE_HZ)
    write_wav(tmp_path / "a.wav", pcm)
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), pcm, atol=1e-4)


def test_sound_over_full_scale_is_clipped(tmp_path: Path) -> None:
    write_wav(tmp_path / "a.wav", np.asarray([3.0, -3.0], dtype=np.float32))
    np.testing.assert_allclose(read_wav(tmp_path / "a.wav"), [1.0, -1.0], atol=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_samples_of_every_width_mean_the_same(tmp_path: Path, width: int) -> None:
    shift = 8 * (width - 1)
    integers = [-(64 << shift), 0, 64 << shift]
    data = b"".join(
        (value + 128).to_bytes(1, "little") if width == 1 else value.to_bytes(width, "little", signed=True)
        for value in integers
    )
    np.testing.assert_allclose(read_wav(stored(tmp_path / "a.wav", data, width=width)), [-0.5, 0.0, 0.5], atol=1e-6)


def test_channels_are_mixed(tmp_path: Path) -> None:
    data = np.asarray([[16384, 0], [0, 0]], dtype="<i2").tobytes()
    np.testing.assert_allclose(read_wav(stored(tmp_path / "a.wav", data, channels=2)), [0.25, 0.0], atol=1e-6)


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_keeps_its_pitch_and_level_at_24_khz(rate_hz: int) -> None:
    middle = slice(2_400, 21_600)
    np.testing.assert_allclose(
        resample(tone(1_000.0, rate_hz), rate_hz)[middle], tone(1_000.0, SAMPLE_RATE_HZ)[middle], atol=2e-3
    )


def test_what_24_khz_cannot_carry_is_gone_and_not_folded() -> None:
    resampled = resample(tone(15_000.0, 48_000), 48_000)
    assert np.abs(resampled[2_400:21_600]).max() < 5e-3


@given(st.integers(1, 5_000), st.integers(4_000, 96_000))
def test_resampling_keeps_the_duration(samples: int, rate_hz: int) -> None:
    assert resample(np.zeros(samples, np.float32), rate_hz).size == round(samples * SAMPLE_RATE_HZ / rate_hz)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match=r"none\.wav: No such file"):
        read_wav(tmp_path / "none.wav")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"OggS" * 30, b"RIFF\x24\x00\x00\x00WAVEfmt "])
def test_a_file_that_is_no_wav_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(content)
    with pytest.raises(AudioFileError, match=r"a\.wav: is not a WAV"):
        read_wav(tmp_path / "a.wav")


def test_a_file_without_sound_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="no sound"):
        read_wav(stored(tmp_path / "a.wav", b""))


def test_a_place_that_cannot_be_written_is_known_before_it_is_needed(tmp_path: Path) -> None:
    with pytest.raises(AudioFileError, match="folder does not exist"):
        check_writable(tmp_path / "none" / "a.wav")
    with pytest.raises(AudioFileError, match="is a folder"):
        check_writable(tmp_path)
