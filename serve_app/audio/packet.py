"""What an Opus packet says of itself before anybody decodes it. Source: RFC 6716, section 3; RFC 7845, section 5."""

from typing import Final

OPUS_RATE_HZ: Final = 48_000
MAX_PACKET_SAMPLES: Final = 5_760  # 120 ms at 48 kHz, the format's own limit
HEAD: Final = b"OpusHead"
TAGS: Final = b"OpusTags"

_SILK: Final = (480, 960, 1_920, 2_880)
_HYBRID: Final = (480, 960)
_CELT: Final = (120, 240, 480, 960)
_FRAME_SAMPLES: Final = _SILK * 3 + _HYBRID * 2 + _CELT * 4
"""Samples of one Opus frame at 48 kHz, by the five configuration bits."""


def duration_samples(packet: bytes) -> int | None:
    """Samples at 48 kHz that the packet decodes to; None where it is empty or breaks the format's limits.

    An empty packet must not reach a decoder: sphn answers it with five seconds of invented audio. One byte alone is
    how an encoder says "silence" (discontinuous transmission), and decodes to its own duration.
    """
    if not packet:
        return None
    frame = _FRAME_SAMPLES[packet[0] >> 3]
    match packet[0] & 3:
        case 0:
            count = 1
        case 1:  # two frames of equal size behind one byte
            count = 2 if len(packet) % 2 else 0
        case 2:
            count = 2 if len(packet) > 1 else 0
        case _:
            count = packet[1] & 0x3F if len(packet) > 1 else 0
    samples = frame * count
    return samples if 0 < samples <= MAX_PACKET_SAMPLES else None


def head_streams(packet: bytes) -> int | None:
    """How many Opus streams an identification header announces; None where it is cut or contradicts itself.

    One stream is mono or stereo and plays as it is; more is surround, whose packets only look like Opus.
    """
    if len(packet) < 19 or packet[8] >> 4 != 0:
        return None
    channels, family = packet[9], packet[18]
    if family == 0:
        return 1 if channels in (1, 2) else None
    return packet[19] if len(packet) >= 21 + channels and packet[19] > 0 else None
