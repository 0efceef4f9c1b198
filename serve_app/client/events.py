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


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where this session stands in the server's queue, before it is live.

    Attributes:
        place: how many are let in until it is, itself included.
        eta_s: when that may be; None while nobody knows.
    """

    place: int
    eta_s: float | None

    def __str__(self) -> str:
        when = "" if self.eta_s is None else f", about {self.eta_s:.0f} s"
        return f"every slot is taken; place {self.place} in the queue{when}"


def place_in(value: object) -> Place | None:
    """The place that a message of metadata tells; None where it tells something else."""
    told = value.get("queue") if isinstance(value, dict) else None
    if not isinstance(told, dict):
        return None
    place, eta_s = told.get("place"), told.get("eta_s")
    if not isinstance(place, int) or not isinstance(eta_s, int | float | None):
        return None
    return Place(place, None if eta_s is None else float(eta_s))


Event = Audio | Text | Metadata | Error
