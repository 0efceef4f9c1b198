"""What can be wrong with somebody's audio, in words that help them."""

import dataclasses
import enum
from typing import Final


class ProblemKind(enum.StrEnum):
    """Kinds of trouble; each is told to the peer once."""

    NOT_OGG = "not_ogg"
    FOREIGN_CODEC = "foreign_codec"
    LAYOUT = "layout"
    DAMAGED = "damaged"
    BAD_PACKET = "bad_packet"


@dataclasses.dataclass(frozen=True, slots=True)
class AudioProblem:
    """One kind of trouble and the sentence for the peer."""

    kind: ProblemKind
    detail: str

    def __str__(self) -> str:
        return self.detail


_WANTED: Final = "this server takes Ogg/Opus, mono, as the opus-recorder library makes it"

_MAGICS: Final[tuple[tuple[int, bytes, str], ...]] = (
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska (a browser's MediaRecorder makes it)"),
    (0, b"\x1fC\xb6u", "WebM or Matroska (a browser's MediaRecorder makes it)"),
    (0, b"RIFF", "WAV"),
    (0, b"fLaC", "FLAC"),
    (0, b"ID3", "MP3"),
    (0, b"OpusHead", "bare Opus packets without Ogg pages"),
    (4, b"ftyp", "MP4"),
)

_CODECS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x01vorbis", "Vorbis"),
    (b"\x7fFLAC", "FLAC"),
    (b"Speex   ", "Speex"),
    (b"\x80theora", "Theora"),
    (b"fishead", "a skeleton track"),
)


def not_ogg(start: bytes) -> AudioProblem:
    """Name the container by the first bytes of what is not an Ogg page."""
    for offset, magic, name in _MAGICS:
        if start.startswith(magic, offset):
            return AudioProblem(ProblemKind.NOT_OGG, f"the audio is {name}; {_WANTED}")
    return AudioProblem(ProblemKind.NOT_OGG, f"the audio is not Ogg; {_WANTED}")


def codec_name(packet: bytes) -> str | None:
    """The codec that the first packet of an Ogg stream announces, where it is a known one that is not Opus."""
    return next((name for magic, name in _CODECS if packet.startswith(magic)), None)


def foreign_codec(name: str) -> AudioProblem:
    return AudioProblem(ProblemKind.FOREIGN_CODEC, f"the Ogg stream holds {name}, not Opus; {_WANTED}")


def layout(streams: int) -> AudioProblem:
    return AudioProblem(
        ProblemKind.LAYOUT, f"surround sound of {streams} Opus streams; {_WANTED} (stereo is mixed down)"
    )


def damaged(why: str) -> AudioProblem:
    return AudioProblem(ProblemKind.DAMAGED, f"damaged Ogg page: {why}")


def bad_packet(why: str) -> AudioProblem:
    return AudioProblem(ProblemKind.BAD_PACKET, f"bad Opus packet: {why}")
