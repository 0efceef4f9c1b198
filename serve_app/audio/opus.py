"""Audio messages to frames, frames to audio messages: the guard around the codec.

Every byte here comes from a stranger. Whatever it is, the receiver raises nothing but `AudioRefused`, spends linear
time, holds less than 100 KB, and hears again as soon as sound pages come.
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Final

import numpy as np

from serve_app.audio import problems
from serve_app.audio.budget import error_budget
from serve_app.audio.codec import PACKET_SAMPLES, Decoder, Encoder, PacketError
from serve_app.audio.frames import FrameBuffer, Pcm
from serve_app.audio.ogg import PAGE_HEADER_BYTES, Flag, OggPager, PacketJoiner, Page, PageWriter, laced_bytes
from serve_app.audio.packet import HEAD, OPUS_RATE_HZ, TAGS, duration_samples, head_streams
from serve_app.audio.problems import AudioProblem, ProblemKind
from serve_app.budget import Budget
from serve_app.errors import AudioRefused
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

MAX_MESSAGE_AUDIO_S: Final = 1.0
MAX_BAD_PACKETS: Final = 8
"""Per message; the rest of the message is dropped."""
TRAFFIC_WINDOW_S: Final = 10.0

_FRAME_AT_OPUS_RATE: Final = round(FRAME_S * OPUS_RATE_HZ)
_SCALE: Final = OPUS_RATE_HZ // SAMPLE_RATE_HZ


@dataclasses.dataclass(slots=True)
class Traffic:
    """What passed in one direction lately: the newest 5 to 10 seconds of sound and the bytes that carried it.

    Sound packets count, with their share of the page around them, once they were decoded or encoded. What was refused,
    early, dropped as too fast, or only a header, does not: the rate is that of the sound heard.
    """

    payload_bytes: int = 0
    audio_s: float = 0.0
    _older_bytes: int = 0
    _older_s: float = 0.0

    def add(self, payload_bytes: int, audio_s: float) -> None:
        """Count some sound; every 5 seconds of it the 5 before are forgotten."""
        self.payload_bytes += payload_bytes
        self.audio_s += audio_s
        if self.audio_s - self._older_s >= TRAFFIC_WINDOW_S / 2:
            self.payload_bytes -= self._older_bytes
            self.audio_s -= self._older_s
            self._older_bytes, self._older_s = self.payload_bytes, self.audio_s

    @property
    def kbps(self) -> float:
        """Kilobits for each second of audio; 0 before there was any."""
        return self.payload_bytes * 8 / 1_000 / self.audio_s if self.audio_s else 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """What one message gave.

    Attributes:
        frames: each ``float32[1920]``.
        problems: kinds of trouble seen for the first time: to be told to the peer.
        dropped_frames: frames' worth of audio that was too much, dropped undecoded, oldest first.
        audio_s: how much was decoded, whole frames or not.
    """

    frames: list[Pcm]
    problems: list[AudioProblem]
    dropped_frames: int
    audio_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Packet:
    """A sound packet: its bytes, samples at 48 kHz, and the bytes of payload that it took."""

    content: bytes
    samples: int
    cost_bytes: int


class OpusReceiver:
    """One session's microphone.

    Args:
        budget: seconds of audio that may come; see `audio_budget`.
        clock: seconds, monotonic.
        errors: messages with something wrong that may come.

    Attributes:
        traffic: of the sound decoded.
        counts: pages and packets that were wrong, by kind.
    """

    def __init__(self, budget: Budget, clock: Callable[[], float], errors: Budget | None = None) -> None:
        self._budget = budget
        self._clock = clock
        self._errors = error_budget() if errors is None else errors
        self._pager = OggPager()
        self._joiner = PacketJoiner()
        self._decoder = Decoder()
        self._frames = FrameBuffer()
        self._foreign: tuple[int, AudioProblem] | None = None
        self._dropped_samples = 0
        self.traffic = Traffic()
        self.counts: collections.Counter[ProblemKind] = collections.Counter()

    def feed(self, payload: bytes) -> Received:
        """Decode what one audio message holds.

        At most one second of audio a message and what the budget allows: the oldest packets beyond are dropped.

        Raises:
            AudioRefused: the error budget is spent; says what the trouble is. So does every later call.
        """
        packets, troubles = self._open(payload)
        dropped_frames = self._trim(packets)
        frames: list[Pcm] = []
        audio_s = 0.0
        bad = 0
        for packet in packets:
            try:
                pcm = self._decoder.decode(packet.content)
                if len(pcm) * _SCALE != packet.samples:
                    raise PacketError("wrong duration")
            except PacketError:
                self._decoder = Decoder()
                troubles.append(problems.bad_packet("the decoder refuses it"))
                bad += 1
                if bad == MAX_BAD_PACKETS:
                    break
                continue
            audio_s += len(pcm) / SAMPLE_RATE_HZ
            self.traffic.add(packet.cost_bytes, len(pcm) / SAMPLE_RATE_HZ)
            frames.extend(self._frames.push(pcm))
        return Received(frames, self._note(troubles), dropped_frames, audio_s)

    def skip(self, payload: bytes) -> Received:
        """Take an audio message that came before the handshake: header pages are noticed, nothing is decoded.

        Raises:
            AudioRefused: as `feed`.
        """
        _, troubles = self._open(payload)
        return Received([], self._note(troubles), 0)

    def _open(self, payload: bytes) -> tuple[collections.deque[_Packet], list[AudioProblem]]:
        """The sound packets of a message, and what was wrong."""
        packets: collections.deque[_Packet] = collections.deque()
        troubles: list[AudioProblem] = []
        for found in self._pager.feed(payload):
            if isinstance(found, AudioProblem):
                troubles.append(found)
                continue
            frame_bytes = PAGE_HEADER_BYTES  # of the page, borne by its first packet
            for packet in self._packets(found, troubles):
                samples = duration_samples(packet)
                if samples is None:
                    troubles.append(problems.bad_packet("its first bytes make no sense"))
                    continue
                packets.append(_Packet(packet, samples, laced_bytes(packet) + frame_bytes))
                frame_bytes = 0
        return packets, troubles

    def _packets(self, page: Page, troubles: list[AudioProblem]) -> list[bytes]:
        """The sound packets of a page; header packets end here."""
        packets = self._joiner.push(page)
        if page.flags & Flag.FIRST and packets:
            self._begin(page.serial, packets[0], troubles)
            packets = packets[1:]
        elif not page.pieces and not page.flags & Flag.LAST:
            troubles.append(problems.damaged("nothing in it"))
        if self._foreign is not None and page.serial == self._foreign[0]:
            troubles.append(self._foreign[1])
            return []
        return [packet for packet in packets if not packet.startswith((HEAD, TAGS))]

    def _begin(self, serial: int, head: bytes, troubles: list[AudioProblem]) -> None:
        """A new logical stream: a fresh decoder, unless it clearly is what we cannot play.

        A header that makes no sense deafens nobody: what follows is judged packet by packet.
        """
        self._decoder = Decoder()
        self._foreign = None
        codec, streams = problems.codec_name(head), head_streams(head)
        if codec is not None:
            self._foreign = serial, problems.foreign_codec(codec)
        elif not head.startswith(HEAD) or streams is None:
            troubles.append(problems.damaged("the Opus header makes no sense"))
        elif streams != 1:
            self._foreign = serial, problems.layout(streams)

    def _trim(self, packets: collections.deque[_Packet]) -> int:
        """Drop the oldest until the rest may pass; the whole frames that it amounts to, the remainder carried over."""
        now_s = self._clock()
        allowed_s = min(MAX_MESSAGE_AUDIO_S, self._budget.available(now_s))
        total = sum(packet.samples for packet in packets)
        while total > allowed_s * OPUS_RATE_HZ:
            samples = packets.popleft().samples
            total -= samples
            self._dropped_samples += samples
        self._budget.take(total / OPUS_RATE_HZ, now_s)
        frames, self._dropped_samples = divmod(self._dropped_samples, _FRAME_AT_OPUS_RATE)
        return frames

    def _note(self, troubles: list[AudioProblem]) -> list[AudioProblem]:
        """Count, pay for the message, and keep the first of each kind that the peer has not been told of."""
        if troubles and not self._errors.take(1.0, self._clock()):
            raise AudioRefused(str(troubles[0]))
        news: list[AudioProblem] = []
        for trouble in troubles:
            if trouble.kind not in self.counts:
                news.append(trouble)
            self.counts[trouble.kind] += 1
        return news


class OpusSender:
    """One session's loudspeaker: 80 ms of PCM to one message payload, nothing held back.

    The form is that of Kyutai's own servers: two pages of one 40 ms packet each, header pages in the first message.

    Attributes:
        traffic: of the sound encoded.
    """

    def __init__(self, serial: int = 1) -> None:
        self._encoder = Encoder()
        self._pages = PageWriter(serial)
        self._granule = 0
        self.traffic = Traffic()

    def encode(self, pcm: Pcm) -> bytes:
        """Args: ``float32[1920]``, finite."""
        assert pcm.shape == (FRAME_SAMPLES,), pcm.shape
        headers = b"" if self._granule else self._headers()
        pages: list[bytes] = []
        for begin in range(0, FRAME_SAMPLES, PACKET_SAMPLES):
            packet = self._encoder.encode(np.ascontiguousarray(pcm[begin : begin + PACKET_SAMPLES], np.float32))
            self._granule += PACKET_SAMPLES * _SCALE
            pages.append(self._pages.page([packet], granule=self._granule))
        payload = b"".join(pages)
        self.traffic.add(len(payload), FRAME_S)
        return headers + payload

    def _headers(self) -> bytes:
        vendor = b"chorus"
        tags = TAGS + len(vendor).to_bytes(4, "little") + vendor + bytes(4)
        head = self._pages.page([self._encoder.head], granule=0, flags=Flag.FIRST)
        return head + self._pages.page([tags], granule=0)
