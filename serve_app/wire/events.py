"""What a message means, once parsed: a tagged union of frozen values.

Source: Kyutai's protocol note and clients (moshi 0.2.13, the web client, the Rust backend); behaviour only.
"""

import dataclasses
import enum


class Kind(enum.IntEnum):
    """First byte of every binary message."""

    HANDSHAKE = 0
    AUDIO = 1
    TEXT = 2
    CONTROL = 3
    METADATA = 4
    ERROR = 5
    PING = 6
    COLOURED_TEXT = 7


class Action(enum.IntEnum):
    """Payload of a control message."""

    START = 0
    END_TURN = 1
    PAUSE = 2
    RESTART = 3


class DiscardCause(enum.StrEnum):
    """Why a message meant nothing to us."""

    EMPTY = "empty"
    TEXT_FRAME = "text_frame"
    UNKNOWN_KIND = "unknown_kind"
    UNEXPECTED_KIND = "unexpected_kind"
    MALFORMED = "malformed"


@dataclasses.dataclass(frozen=True, slots=True)
class Handshake:
    """The server is ready; zeros from every server known so far."""

    version: int = 0
    model: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Audio:
    """Ogg/Opus bytes: whole pages in practice, any split in principle. May be empty."""

    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class EarlyAudio:
    """Audio that came before our handshake: to be dropped undecoded, though it may hold the header pages."""

    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Text:
    """A piece of text; ``colour`` is set on coloured text."""

    text: str
    colour: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
    """What the user asked the conversation to do."""

    action: Action


@dataclasses.dataclass(frozen=True, slots=True)
class Metadata:
    """Any JSON value."""

    value: object


@dataclasses.dataclass(frozen=True, slots=True)
class UnreadMetadata:
    """Metadata as a server gets it: nobody reads it there, so it is not parsed and may be anything."""

    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ErrorText:
    """A sentence for the person on the other side."""

    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Ping:
    """Keep-alive."""


@dataclasses.dataclass(frozen=True, slots=True)
class Discarded:
    """A message that was dropped and counted."""

    cause: DiscardCause


ServerEvent = Audio | EarlyAudio | Control | UnreadMetadata | Ping | Discarded
"""What a server hears."""
ClientEvent = Handshake | Audio | Text | Control | Metadata | ErrorText | Ping | Discarded
"""What a client hears."""
