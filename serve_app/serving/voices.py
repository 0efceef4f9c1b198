"""The voices of a deployment: a list made once at the start, so that nobody ever opens a path that a client named."""

from pathlib import Path
from typing import Final

from serve_app.audio.frames import Pcm
from serve_app.audio.wav import WavError, read_sound
from serve_app.errors import ConfigError

MAX_VOICE_S: Final = 60.0
MAX_VOICES: Final = 1_000


def read_voices(folder: str | None) -> dict[str, Pcm]:
    """Every ``NAME.wav`` of the folder by its name, ``float32[n]`` at 24 kHz, in the order of the names.

    Raises:
        ConfigError: no such folder, too many files, or one that is not a sound of up to a minute: names it.
    """
    if folder is None:
        return {}
    root = Path(folder)
    if not root.is_dir():
        raise ConfigError("prompts.voices", f"{folder} is not a folder")
    files = sorted(path for path in root.iterdir() if path.suffix.lower() == ".wav")
    if len(files) > MAX_VOICES:
        raise ConfigError("prompts.voices", f"{folder} has {len(files)} voices, more than {MAX_VOICES}")
    voices: dict[str, Pcm] = {}
    for path in files:
        if path.stem in voices:
            raise ConfigError("prompts.voices", f"{path}: there is another voice of this name")
        try:
            voices[path.stem] = read_sound(path, MAX_VOICE_S)
        except WavError as error:
            raise ConfigError("prompts.voices", f"{path}: {error}") from error
    return voices
