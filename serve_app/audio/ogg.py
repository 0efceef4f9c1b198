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
MAX_CLAIMS: Final = 8
"""Incomplete pages that overlap; all but one are lies, and more than a few are no accident."""
MAX_PACKET_BYTES: Final = 8 * 1024
"""The largest sane Opus packet: 120 ms at 510 kb/s is 7,650 bytes."""

_HEADER: Final = struct.Struct("<4sBBqIIIB")
PAGE_HEADER_BYTES: Final = _HEADER.size
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


@dataclasses.dataclass(slots=True)
class _Claim:
    """Where a page seems to begin, and how long the buffer must be before more can be said of it."""

    start: int
    need: int = 0


class OggPager:
    """Bytes to pages. Holds at most one incomplete page (65,307 bytes) and has no state it could get stuck in.

    A page counts only when it is whole and its checksum fits (zero stands for "not computed": other servers ignore the
    checksum, so a simple client may leave it out). After anything else it hunts for the next capture pattern. While a
    page is incomplete, a whole page inside its claimed length proves that the claim was a lie: without that a damaged
    length would swallow 65 KB, which is 20 s of voice.

    The work is linear in the bytes fed, however they are split: what was searched is not searched again, a claim is
    looked at again only when the bytes that it lacked are there, and at most eight claims wait.

    Attributes:
        checks: how often a claim was looked at; at most the bytes fed.
        summed_bytes: put through the checksum; at most twenty times the bytes fed.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._claims: list[_Claim] = []
        self._searched = 0
        self.checks = 0
        self.summed_bytes = 0

    @property
    def pending_bytes(self) -> int:
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Page | AudioProblem]:
        """Any split of the same bytes gives the same pages. Problems stand where the bad bytes stood."""
        self._buffer += data
        found: list[Page | AudioProblem] = []
        bad = 0
        at = 0
        told = False  # whether a problem has been reported for what begins there
        while bad < MAX_BAD_PAGES and (claim := self._ready_claim() or self._next_claim()) is not None:
            if claim is self._claims[0]:
                if claim.start > at and not told:
                    found.append(self._not_ogg(at))
                    bad += 1
                at, told = claim.start, False
            verdict, size = self._judge(claim.start)
            if verdict is _Verdict.WHOLE:
                if claim is not self._claims[0]:
                    found.append(damaged("cut short"))
                found.append(_parse(bytes(self._buffer[claim.start : claim.start + size])))
                at, told = claim.start + size, False
                self._claims.clear()
                self._searched = at
            elif verdict is _Verdict.BAD:
                if claim is self._claims[0]:
                    found.append(damaged("the checksum or header does not fit"))
                    told = True
                self._claims.remove(claim)
                bad += 1
            else:
                claim.need = claim.start + size
                if len(self._claims) > MAX_CLAIMS:
                    del self._claims[0]
                    found.append(damaged("cut short"))
                    told = True
                    bad += 1
        if bad >= MAX_BAD_PAGES:
            if self._claims:
                found.append(damaged("too much of it looks like pages"))
            self._forget(len(self._buffer))
        elif self._claims:
            self._forget(self._claims[0].start)
        else:
            rest = _rest(self._buffer, at)
            if rest > at and not told:
                found.append(self._not_ogg(at))
            self._forget(rest)
        return found

    def _ready_claim(self) -> _Claim | None:
        """The first claim that lacked bytes which are there now."""
        return next((claim for claim in self._claims if claim.need <= len(self._buffer)), None)

    def _next_claim(self) -> _Claim | None:
        """Search on for a capture pattern."""
        start = self._buffer.find(CAPTURE, self._searched)
        if start < 0:
            self._searched = max(self._searched, len(self._buffer) - len(CAPTURE) + 1)
            return None
        self._searched = start + len(CAPTURE)
        self._claims.append(_Claim(start))
        return self._claims[-1]

    def _judge(self, at: int) -> tuple[_Verdict, int]:
        """Look at a claim. The second value is the size of a whole page, or what must be there to look again."""
        self.checks += 1
        buffer = self._buffer
        if len(buffer) - at < _HEADER.size:
            return _Verdict.SHORT, _HEADER.size
        _, version, flags, _, _, _, crc, segments = _HEADER.unpack_from(buffer, at)
        if version != 0 or flags > Flag.CONTINUED | Flag.FIRST | Flag.LAST:
            return _Verdict.BAD, 0
        body = at + _HEADER.size + segments
        if len(buffer) < body:
            return _Verdict.SHORT, _HEADER.size + segments
        size = _HEADER.size + segments + sum(buffer[body - segments : body])
        if len(buffer) - at < size:
            return _Verdict.SHORT, size
        if crc == 0:
            return _Verdict.WHOLE, size
        self.summed_bytes += size
        fits = crc == checksum(bytes(buffer[at : at + 22]) + bytes(4) + bytes(buffer[at + 26 : at + size]))
        return (_Verdict.WHOLE if fits else _Verdict.BAD), size

    def _not_ogg(self, at: int) -> AudioProblem:
        return not_ogg(bytes(self._buffer[at : at + 64]))

    def _forget(self, count: int) -> None:
        """Let go of the first bytes and of the claims among them."""
        del self._buffer[:count]
        self._searched = max(0, self._searched - count)
        self._claims = [
            _Claim(claim.start - count, claim.need - count) for claim in self._claims if claim.start >= count
        ]


def _rest(buffer: bytearray, at: int) -> int:
    """Where a capture pattern may have begun at the very end."""
    for kept in range(min(len(CAPTURE) - 1, len(buffer) - at), 0, -1):
        if CAPTURE.startswith(bytes(buffer[len(buffer) - kept :])):
            return len(buffer) - kept
    return len(buffer)


def _parse(page: bytes) -> Page:
    _, _, flags, granule, serial, sequence, _, segments = _HEADER.unpack_from(page)
    body = _HEADER.size + segments
    laces = page[_HEADER.size : body]
    pieces: list[bytes] = []
    begin = body
    for lace in laces:
        body += lace
        if lace < _LONGEST_LACE:
            pieces.append(page[begin:body])
            begin = body
    open_ended = bool(laces) and laces[-1] == _LONGEST_LACE
    if open_ended:
        pieces.append(page[begin:])
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


def laced_bytes(packet: bytes) -> int:
    """What a packet takes in a page: its bytes and the laces that say how many."""
    return len(packet) + len(packet) // _LONGEST_LACE + 1


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
