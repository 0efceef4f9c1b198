"""One recording on its way through a model: which frame comes next, when it is over, what was said when."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from serve_app.errors import CheckpointError
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

PCM = npt.NDArray[np.float32]

END_OF_TEXT: Final = 2
"""Kyutai's end of sequence: a translation is complete."""
STT_TAIL_S: Final = 1.0
"""Silence beyond the text's delay, as the reference gives its recognition models."""
MAX_WAIT_S: Final = 60.0
"""How long a translation may go on after its source ended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pacing:
    """How a kind of model wants to be fed.

    Attributes:
        prefix_s, tail_s: silence before and after the recording.
        text_delay_s: how long after a word was heard it is written; 0 where words belong to the voice that is said.
        ends_itself: the model is told when the input ends, and goes on until it says that it is done.
    """

    prefix_s: float = 0.0
    tail_s: float = 0.0
    text_delay_s: float = 0.0
    ends_itself: bool = False

    @classmethod
    def of(cls, model_type: str, config: Mapping[str, Any], max_delay: int) -> "Pacing":
        """From the kind of model and its config.json.

        Args:
            max_delay: steps until the first complete frame; as many silent ones bring the last one out.

        Raises:
            CheckpointError: ``stt_config`` holds no seconds.
        """
        if model_type == "hibiki":
            return cls(tail_s=MAX_WAIT_S, ends_itself=True)
        if model_type == "stt":
            told = config.get("stt_config") or {}
            delay, prefix = told.get("audio_delay_seconds", 0.0), told.get("audio_silence_prefix_seconds", 0.0)
            wrong = [seconds for seconds in (delay, prefix) if not _is_seconds(seconds)]
            if wrong:
                raise CheckpointError("config.json", [f"stt_config: {str(wrong[0])[:60]!r} is no number of seconds"])
            return cls(prefix_s=prefix, tail_s=delay + STT_TAIL_S, text_delay_s=delay)
        return cls(tail_s=max_delay * FRAME_S)


@dataclasses.dataclass(frozen=True, slots=True)
class Word:
    """A piece of text and when it is said, in seconds from the beginning: of the answer, or of what was transcribed."""

    text: str
    start_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Fed:
    """One frame for a model: ``pcm float32[1920]``, or the end of the input."""

    pcm: PCM
    ended: bool


class Job:
    """A recording and what a model made of it. The first frame is silent: no model hears its first frame."""

    def __init__(self, pcm: PCM, pacing: Pacing) -> None:
        self._pacing = pacing
        prefix, tail = (round(seconds * SAMPLE_RATE_HZ) for seconds in (pacing.prefix_s, pacing.tail_s))
        self._spoken = -(-(prefix + pcm.size) // FRAME_SAMPLES)
        frames = np.zeros((1 + self._spoken + -(-tail // FRAME_SAMPLES), FRAME_SAMPLES), np.float32)
        frames.reshape(-1)[FRAME_SAMPLES + prefix :][: pcm.size] = pcm
        self._frames = frames
        self._step = 0
        self._done = False
        self._voice: list[PCM] = []
        self._tokens: list[tuple[int, int]] = []
        self._heads: list[tuple[int, PCM]] = []

    @property
    def frames(self) -> int:
        """Most frames that it will take."""
        return len(self._frames)

    @property
    def steps(self) -> int:
        """Frames that it has taken."""
        return self._step

    @property
    def done(self) -> bool:
        """Whether there is nothing more to feed."""
        return self._done or self._step == len(self._frames)

    def next(self) -> Fed:
        """The frame that the model hears next; not when `done`."""
        ended = self._pacing.ends_itself and self._step == 1 + self._spoken
        return Fed(self._frames[self._step], ended)

    def take(self, token: int, voice: PCM | None, heads: PCM | None = None) -> None:
        """What came of that frame.

        Args:
            token: text token, negative while there is none.
            voice: ``float32[1920]``, None while there is no sound.
            heads: ``float32[H, C]``, what the extra heads say; None where nobody asked.
        """
        if voice is not None:
            self._voice.append(voice)
        if token >= 0:
            self._tokens.append((self._step, token))
        if heads is not None:
            self._heads.append((self._step, heads))
        if self._pacing.ends_itself and self._step > 1 + self._spoken and token == END_OF_TEXT:
            self._done = True
        self._step += 1

    @property
    def voice(self) -> PCM | None:
        """What was said, ``float32[n]``; None for a model that only writes."""
        return np.concatenate(self._voice) if self._voice else None

    def tokens(self) -> Sequence[tuple[float, int]]:
        """Every text token with its time in seconds."""
        if not self._tokens:
            return ()
        # Written words belong to what was heard: the first frame of the recording came at step 1. Spoken words belong
        # to the voice, which begins with the first complete frame.
        first, lag_s = (
            (self._tokens[0][0], 0.0) if self._voice else (1, self._pacing.text_delay_s + self._pacing.prefix_s)
        )
        return [(_seconds(step - first, lag_s), token) for step, token in self._tokens]

    def heads(self) -> Sequence[tuple[float, PCM]]:
        """What the extra heads said of every frame of the recording, with its time in seconds."""
        return [(_seconds(step - 1, self._pacing.prefix_s), heads) for step, heads in self._heads if step > 0]


def _seconds(steps: int, lag_s: float) -> float:
    return round(max(steps * FRAME_S - lag_s, 0.0), 3)


def _is_seconds(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_WAIT_S
