"""Clean streams to feed and to spoil."""

import functools
import struct
from typing import Final

import numpy as np
import sphn

from serve_app.audio.frames import Pcm
from serve_app.audio.ogg import Flag, PageWriter
from serve_app.units import FRAME_SAMPLES, SAMPLE_RATE_HZ

TAGS: Final = b"OpusTags" + struct.pack("<I", 4) + b"test" + struct.pack("<I", 0)


class Clock:
    """Seconds; moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def head(channels: int = 1, family: int = 0, version: int = 1) -> bytes:
    table = bytes([channels - channels // 2, channels // 2]) + bytes(range(channels)) if family else b""
    return b"OpusHead" + struct.pack("<BBHIhB", version, channels, 312, 24_000, 0, family) + table


def headers(serial: int = 1, channels: int = 1, family: int = 0) -> bytes:
    pages = PageWriter(serial)
    return pages.page([head(channels, family)], granule=0, flags=Flag.FIRST) + pages.page([TAGS], granule=0)


def page(*packets: bytes, serial: int = 1) -> bytes:
    return PageWriter(serial).page(packets, granule=0)


def sound(frames: int, seed: int = 0) -> Pcm:
    """A tone with some noise, ``float32[frames * 1920]``."""
    count = frames * FRAME_SAMPLES
    noise = np.random.default_rng(seed).standard_normal(count)
    tone = np.sin(2 * np.pi * 330 * np.arange(count) / SAMPLE_RATE_HZ)
    return (0.3 * tone + 0.03 * noise).astype(np.float32)


@functools.cache
def sphn_messages(frames: int) -> tuple[bytes, ...]:
    """What Kyutai's Python client sends: one message a frame, header pages in the first."""
    writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)
    pcm = sound(frames)
    return tuple(
        bytes(writer.append_pcm(pcm[begin : begin + FRAME_SAMPLES])) for begin in range(0, len(pcm), FRAME_SAMPLES)
    )


def sphn_pcm(messages: tuple[bytes, ...]) -> Pcm:
    """What Kyutai's Python server would hear of them."""
    reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    return np.concatenate([np.asarray(reader.append_bytes(message), np.float32) for message in messages])
