"""Speech that the demo is built and judged on, synthesised by espeak-ng: many voices, seeded, nothing downloaded.

Held-out voices and sentences are strangers to the training ones. espeak-ng (Debian's package of that name) is needed to
rebuild the demo, never to run or test it: a short piece of held-out speech is committed.
"""

import concurrent.futures
import dataclasses
import io
import random
import subprocess
import wave
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from serve_app.demo.texts import HELD_OUT, TRAINING, Grammar
from serve_app.units import SAMPLE_RATE_HZ

Pcm = npt.NDArray[np.float32]

ESPEAK_RATE_HZ: Final = 22_050
LEVEL_RMS: Final = 0.08  # -22 dBFS while speaking: what a laptop's microphone with gain control gives
TRAINING_S: Final = 3_600.0
HELD_OUT_S: Final = 300.0
PAUSES_S: Final = (0.6, 1.6)
TRIM_LEVEL: Final = 0.004

_ACCENTS: Final = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
_VARIANTS: Final = (
    "f1 f2 f3 f5 m1 m2 m3 m4 m5 m7 Alex Alicia Andrea Andy Annie Denis Gene Henrique Hugo Lee Marco Mario Michael "
    "Mike Storm adam anika announcer antonio aunty benjamin boris caleb david ed gustave iven john kaukovalta linda "
    "marcelo max michel miguel norbert pablo paul pedro quincy rob sandro shelby steph2 travis zac grandpa klatt2"
).split()
_STRANGERS: Final = ("de+f2", "es+m3", "fr-fr+f1", "it+m2", "pt-br+f5", "nl+m7", "sv+f3", "pl+m1", "fi+f2", "id+m4")
_HELD_OUT_VOICES: Final = tuple(
    "en-us+f4 en-gb+m6 en-us+belinda en-gb-x-rp+victor en-us+steph en-gb-scotland+edward en-us+robert "
    "en-gb-x-gbclan+m8 en-us+grandma en-029+Jacky en-gb+Diogo en-gb-x-gbcwmd+klatt4".split()
)


@dataclasses.dataclass(frozen=True)
class Voice:
    """How espeak-ng speaks: its voice and variant, words a minute, pitch 0 to 99."""

    name: str
    words_per_minute: int
    pitch: int


@dataclasses.dataclass(frozen=True)
class Talk:
    """One voice saying sentences with silences between them.

    Attributes:
        pcm: float32 ``[samples]`` at 24 kHz, exactly zero between sentences.
        spans: first and last sample (exclusive) of each sentence, in order.
    """

    voice: Voice
    pcm: Pcm
    spans: tuple[tuple[int, int], ...]

    @property
    def seconds(self) -> float:
        return len(self.pcm) / SAMPLE_RATE_HZ


def voices(seed: int, *, held_out: bool) -> list[Voice]:
    """Every voice of one side of the split, with a pace and a pitch of its own."""
    chance = random.Random(f"voices {seed} {held_out}")
    if held_out:
        names: Sequence[str] = _HELD_OUT_VOICES
    else:
        names = [f"{chance.choice(_ACCENTS)}+{variant}" for variant in _VARIANTS] + list(_STRANGERS)
    return [Voice(name, chance.randint(130, 190), chance.randint(25, 75)) for name in names]


def talks(seed: int, *, held_out: bool, total_s: float | None = None) -> list[Talk]:
    """One talk for each voice, ``total_s`` seconds together; the same for the same seed and espeak-ng version."""
    cast = voices(seed, held_out=held_out)
    wanted_s = total_s if total_s is not None else (HELD_OUT_S if held_out else TRAINING_S)
    grammar = HELD_OUT if held_out else TRAINING
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda i: _talk(cast[i], grammar, f"{seed} {i}", wanted_s / len(cast)), range(len(cast))))


def say(text: str, voice: Voice) -> Pcm:
    """One sentence at 24 kHz, levelled, trimmed of the silence around it."""
    command = ["espeak-ng", "-v", voice.name, "-s", str(voice.words_per_minute), "-p", str(voice.pitch), "--stdout"]
    done = subprocess.run([*command, text], capture_output=True, check=True)
    return _trim(_level(_resample(_samples(done.stdout))))


def _talk(voice: Voice, grammar: Grammar, seed: str, wanted_s: float) -> Talk:
    chance = random.Random(seed)
    sentences = grammar.sentences(chance.randrange(1 << 30))
    pieces: list[Pcm] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in _with_pauses((say(text, voice) for text in sentences), chance):
        if at >= wanted_s * SAMPLE_RATE_HZ:
            break
        if piece.any():
            spans.append((at, at + len(piece)))
        pieces.append(piece)
        at += len(piece)
    return Talk(voice, np.concatenate(pieces), tuple(spans))


def _with_pauses(sentences: Iterator[Pcm], chance: random.Random) -> Iterator[Pcm]:
    for sentence in sentences:
        yield np.zeros(int(chance.uniform(*PAUSES_S) * SAMPLE_RATE_HZ), np.float32)
        yield sentence


def _samples(wav: bytes) -> Pcm:
    # espeak-ng cannot seek in a pipe, so the header's length is a placeholder: read what is there.
    with wave.open(io.BytesIO(wav)) as reader:
        assert (reader.getframerate(), reader.getsampwidth(), reader.getnchannels()) == (ESPEAK_RATE_HZ, 2, 1)
    return np.frombuffer(wav[44 : len(wav) // 2 * 2], "<i2").astype(np.float32) / np.float32(32_768)


def _resample(pcm: Pcm) -> Pcm:
    return np.asarray(resample_poly(pcm, 160, 147), np.float32)  # 22,050 * 160 / 147 = 24,000


def _level(pcm: Pcm) -> Pcm:
    loud = pcm[np.abs(pcm) > TRIM_LEVEL]
    gain = LEVEL_RMS / max(float(np.sqrt(np.mean(loud**2))) if len(loud) else 0.0, 1e-3)
    return np.asarray(np.clip(pcm * gain, -0.99, 0.99), np.float32)


def _trim(pcm: Pcm) -> Pcm:
    heard = np.flatnonzero(np.abs(pcm) > TRIM_LEVEL)
    return pcm[heard[0] : heard[-1] + 1] if len(heard) else pcm[:0]
