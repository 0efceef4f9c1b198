"""Ogg pages, both ways: a reader that finds its feet again after any bytes, and a writer.

Source: RFC 3533; the checksum is its appendix's CRC-32 (polynomial 0x04c11db7, not reflected, starts at 0).
"""

import dataclasses
import enum
import struct
import zlib
from collections.abc import Sequence
from typing import Final

from serve_app.audio.problems import AudioProblem, damaged, not_ogg

CAPTURE: Final = b"OggS"
MAX_BAD_PAGES: Final = 8
"""Per call: what is left of the buffer after that many is thrown away, so hostile bytes cost linear time."""
MAX_PACKET_BYTES: Final = 8 * 1024
"""The largest sane Opus packet: 120 ms at 510 kb/s is 7,650 bytes."""

_HEADER: Final = struct.Struct("<4sBBqIIIB")
_LONGEST_LACE: Final = 255
_REVERSED: Final = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


class Flag(enum.IntFlag):
    """Header type of a page."""

    CONTINUED = 1
    FIRST = 2
    LAST = 4


def checksum(page: bytes) -> int:
    """CRC of a whole page whose checksum field is zero.

    zlib's CRC has the same polynomial with bits reversed at every turn; reversing the bits of each byte in and of the
    word out makes it Ogg's, at C speed: 0.5 us for a voice page, where a table loop in Python takes 30.
    """
    reflected = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(reflected.to_bytes(4, "little").translate(_REVERSED), "big")


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """One page.

    Attributes:
        pieces: packets and parts of packets, in order.
        open_ended: the last piece goes on in the next page.
    """

    flags: Flag
    granule: int
    serial: int
    sequence: int
    pieces: tuple[bytes, ...]
    open_ended: bool


class _Verdict(enum.Enum):
    WHOLE = enum.auto()
    SHORT = enum.auto()
    BAD = enum.auto()


class OggPager:
    """Bytes to pages. Holds at most one incomplete page (65,307 bytes) and has no state it could get stuck in.

    A page counts only when it is whole and its checksum fits (zero stands for "not computed": other servers ignore the
    checksum, so a simple client may leave it out). After anything else it hunts for the next capture pattern. While a
    page is incomplete, a whole page inside its claimed length proves that the claim was a lie: without that a damaged
    length would swallow 65 KB, which is 20 s of voice.
    """

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Page | AudioProblem]:
        """Any split of the same bytes gives the same pages. Problems stand where the bad bytes stood."""
        buffer = self._buffer + data
        found: list[Page | AudioProblem] = []
        bad = 0
        at = 0
        while bad < MAX_BAD_PAGES:
            start = _hunt(buffer, at)
            if start > at:
                found.append(not_ogg(buffer[at : at + 64]))
                bad += 1
            at = start
            verdict, size = _judge(buffer, at)
            if verdict is _Verdict.WHOLE:
                found.append(_parse(buffer, at, size))
                at += size
                continue
            if verdict is _Verdict.SHORT:
                inner, tried = _inner(buffer, at, MAX_BAD_PAGES - bad)
                bad += tried
                if inner is None:
                    break
                found.append(damaged("cut short"))
                at = inner
                continue
            found.append(damaged("the checksum or header does not fit"))
            bad += 1
            at += len(CAPTURE)
            at = _hunt(buffer, at)
        self._buffer = buffer[at:] if bad < MAX_BAD_PAGES else b""
        return found


def _hunt(buffer: bytes, at: int) -> int:
    """Where the next page may start: a capture pattern, or the beginning of one at the very end."""
    start = buffer.find(CAPTURE, at)
    if start >= 0:
        return start
    for kept in range(min(len(CAPTURE) - 1, len(buffer) - at), 0, -1):
        if CAPTURE.startswith(buffer[len(buffer) - kept :]):
            return len(buffer) - kept
    return len(buffer)


def _judge(buffer: bytes, at: int) -> tuple[_Verdict, int]:
    """Look at what starts with (part of) a capture pattern. The second value is the size of a whole page."""
    if len(buffer) - at < _HEADER.size:
        return _Verdict.SHORT, 0
    _, version, flags, _, _, _, crc, segments = _HEADER.unpack_from(buffer, at)
    if version != 0 or flags > Flag.CONTINUED | Flag.FIRST | Flag.LAST:
        return _Verdict.BAD, 0
    body = at + _HEADER.size + segments
    if len(buffer) < body:
        return _Verdict.SHORT, 0
    size = _HEADER.size + segments + sum(buffer[body - segments : body])
    if len(buffer) - at < size:
        return _Verdict.SHORT, 0
    if crc != 0 and crc != checksum(buffer[at : at + 22] + bytes(4) + buffer[at + 26 : at + size]):
        return _Verdict.BAD, 0
    return _Verdict.WHOLE, size


def _inner(buffer: bytes, at: int, patience: int) -> tuple[int | None, int]:
    """A whole page behind an incomplete one, and how many bad ones were tried on the way."""
    tried = 0
    while tried < patience and (at := buffer.find(CAPTURE, at + 1)) >= 0:
        verdict, _ = _judge(buffer, at)
        if verdict is _Verdict.WHOLE:
            return at, tried
        tried += verdict is _Verdict.BAD
    return None, tried


def _parse(buffer: bytes, at: int, size: int) -> Page:
    _, _, flags, granule, serial, sequence, _, segments = _HEADER.unpack_from(buffer, at)
    laces = buffer[at + _HEADER.size : at + _HEADER.size + segments]
    body = at + _HEADER.size + segments
    pieces: list[bytes] = []
    begin = body
    for lace in laces:
        body += lace
        if lace < _LONGEST_LACE:
            pieces.append(buffer[begin:body])
            begin = body
    open_ended = bool(laces) and laces[-1] == _LONGEST_LACE
    if open_ended:
        pieces.append(buffer[begin : at + size])
    return Page(Flag(flags), granule, serial, sequence, tuple(pieces), open_ended)


class PacketJoiner:
    """Pages to packets, across page borders.

    A packet whose beginning or end was lost is dropped; one that grows beyond 8 KiB is dropped as it grows.
    """

    def __init__(self) -> None:
        self._part: bytes | None = None
        self._serial = 0

    @property
    def pending_bytes(self) -> int:
        return len(self._part or b"")

    def push(self, page: Page) -> list[bytes]:
        pieces = list(page.pieces)
        packets: list[bytes] = []
        if page.flags & Flag.CONTINUED and pieces:
            piece = pieces.pop(0)
            if self._part is not None and page.serial == self._serial:
                whole = self._part + piece
                if page.open_ended and not pieces:
                    self._part = whole if len(whole) <= MAX_PACKET_BYTES else None
                    return []
                packets.append(whole)
            elif page.open_ended and not pieces:
                return []
        self._part = pieces.pop() if page.open_ended and pieces else None
        self._serial = page.serial
        packets.extend(pieces)
        return packets


class PageWriter:
    """Packets to pages of one stream, one page for each call."""

    def __init__(self, serial: int) -> None:
        self._serial = serial
        self._sequence = 0

    def page(self, packets: Sequence[bytes], *, granule: int, flags: Flag | None = None) -> bytes:
        """Args: whole packets, at most 255 laces together; granule: samples at 48 kHz up to the page's end."""
        laces = b"".join(
            bytes([_LONGEST_LACE]) * (len(packet) // _LONGEST_LACE) + bytes([len(packet) % _LONGEST_LACE])
            for packet in packets
        )
        assert len(laces) <= 255, len(laces)
        tail = bytes([len(laces)]) + laces + b"".join(packets)
        head = struct.pack("<4sBBqII", CAPTURE, 0, flags or 0, granule, self._serial, self._sequence)
        self._sequence += 1
        return head + checksum(head + bytes(4) + tail).to_bytes(4, "little") + tail
