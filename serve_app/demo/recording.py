"""The piece of held-out speech that is committed: tests, load generator and newcomers need no synthesiser.

Half a minute, one sentence each of several voices that the codec never heard, silence between them.
"""

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.demo.synthesis import Talk, Voice
from serve_app.units import SAMPLE_RATE_HZ

FOLDER: Final = Path(__file__).parent / "speech"
NAME: Final = "held_out"
LENGTH_S: Final = 30.0
_FULL_SCALE: Final = 32_767


def cut_recording(talks: Sequence[Talk]) -> Talk:
    """The first sentence of each talk with the pause before it, as many as fit into `LENGTH_S`."""
    pieces, spans, at = [], [], 0
    tail = np.zeros(SAMPLE_RATE_HZ, np.float32)
    for talk in talks:
        start, stop = talk.spans[0]
        if at + stop + len(tail) > LENGTH_S * SAMPLE_RATE_HZ:
            continue
        pieces.append(talk.pcm[:stop])
        spans.append((at + start, at + stop))
        at += stop
    return Talk(Voice("several", 0, 0), np.concatenate([*pieces, tail]), tuple(spans))


def write_recording(talk: Talk, folder: Path = FOLDER) -> None:
    """Write 16-bit PCM, and where its sentences are."""
    folder.mkdir(parents=True, exist_ok=True)
    with wave.open(str(folder / f"{NAME}.wav"), "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(SAMPLE_RATE_HZ)
        writer.writeframes(np.round(talk.pcm * _FULL_SCALE).astype("<i2").tobytes())
    spans = [list(span) for span in talk.spans]
    (folder / f"{NAME}.json").write_text(json.dumps({"sentences_samples": spans}) + "\n", encoding="utf-8")


def read_recording(folder: Path = FOLDER) -> Talk:
    """The committed piece."""
    with wave.open(str(folder / f"{NAME}.wav")) as reader:
        samples = np.frombuffer(reader.readframes(reader.getnframes()), "<i2")
    spans = json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))["sentences_samples"]
    pcm = (samples / _FULL_SCALE).astype(np.float32)
    return Talk(Voice("several", 0, 0), pcm, tuple((start, stop) for start, stop in spans))
