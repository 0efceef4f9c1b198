"""What a session hears from its server."""

import dataclasses

import numpy as np
import numpy.typing as npt

PCM = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Audio:
    """Sound of the answer: ``pcm float32[n]`` at 24 kHz mono, whole frames of 1,920 samples."""

    pcm: PCM


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A piece of the transcript; whole characters, to be joined without a separator."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Metadata:
    """What the server says about the session: dropped frames, model, limits. Any JSON value."""

    value: object


@dataclasses.dataclass(frozen=True, slots=True)
class Error:
    """A sentence of the server's about something that went wrong; the session may go on."""

    message: str


Event = Audio | Text | Metadata | Error
