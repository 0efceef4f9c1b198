"""``python -m serve_app.bench.opus``: what encoding speech costs a gateway, and who waits for it.

Our encoder beside sphn's writer, one after the other on the same recording: processor time for a frame, bit rate with
Ogg framing, ESTOI after decoding (aligned), and how far another thread of Python comes meanwhile. The last is 1 where
nobody holds the interpreter lock and a core is free.
"""

import dataclasses
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import sphn

import serve_app
from serve_app.audio.codec import BIT_RATE_BPS, PACKET_SAMPLES, Encoder
from serve_app.audio.frames import Pcm
from serve_app.audio.ogg import PageWriter
from serve_app.audio.wav import read_sound
from serve_app.demo.measure import intelligibility
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

SPEECH: Final = Path(serve_app.__file__).parent / "demo" / "speech" / "held_out.wav"
MOST_LAG_SAMPLES: Final = 480
ROUNDS: Final = 5
ROUND_S: Final = 0.5

Encode = Callable[[Pcm], bytes]
"""One frame to what of the stream is ready."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What one encoder does with the recording.

    Attributes:
        frame_us: processor time of the thread, median of 80 ms frames.
        kbps: framing included.
        lag_ms: by which what is decoded comes late.
        neighbour: how far a thread that counts comes beside it, of how far it comes alone.
    """

    name: str
    frame_us: float
    kbps: float
    estoi: float
    lag_ms: float
    neighbour: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it on a WAV file; the demo's held-out speech where none is given. The last line is JSON."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    pcm = read_sound(Path(words[0]) if words else SPEECH, most_s=600.0)
    kinds: tuple[tuple[str, Callable[[], Encode]], ...] = (
        ("sphn", _sphn),
        ("PyAV, voice mode", lambda: _ours(30_000, "voip")),
        ("PyAV, low delay", lambda: _ours(30_000)),
        ("PyAV, low delay (what is used)", lambda: _ours(BIT_RATE_BPS)),
    )
    found = [_measured(name, make, pcm) for name, make in kinds]
    _say(f"{'encoder':32s} {'us a frame':>10s} {'kb/s':>6s} {'ESTOI':>6s} {'late ms':>8s} {'neighbour':>10s}")
    for one in found:
        row = f"{one.frame_us:10.0f} {one.kbps:6.1f} {one.estoi:6.3f} {one.lag_ms:8.1f} {one.neighbour:10.2f}"
        _say(f"{one.name:32s} {row}")
    _say(json.dumps([dataclasses.asdict(one) for one in found]))
    return 0


def _measured(name: str, make: Callable[[], Encode], pcm: Pcm) -> Encoding:
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    encode, times_us, pages = make(), list[float](), list[bytes]()
    for frame in frames:
        began_s = time.thread_time()
        pages.append(encode(frame))
        times_us.append(1e6 * (time.thread_time() - began_s))
    reader = sphn.OpusStreamReader(SAMPLE_RATE_HZ)
    heard = np.concatenate([np.asarray(reader.append_bytes(page), np.float32) for page in pages if page])
    lag = _lag(frames.ravel(), heard)
    spoken, heard = _aligned(frames.ravel(), heard, lag)
    return Encoding(
        name=name,
        frame_us=statistics.median(times_us),
        kbps=sum(map(len, pages)) * 8 / 1_000 / (len(frames) * FRAME_S),
        estoi=intelligibility([(spoken, heard)]).estoi,
        lag_ms=1_000 * lag / SAMPLE_RATE_HZ,
        neighbour=_neighbour(make(), frames),
    )


def _sphn() -> Encode:
    writer = sphn.OpusStreamWriter(SAMPLE_RATE_HZ)

    def encode(frame: Pcm) -> bytes:
        return bytes(writer.append_pcm(frame))

    return encode


def _ours(bit_rate_bps: int, application: str = "lowdelay") -> Encode:
    encoder, pages, granule = Encoder(bit_rate_bps, application), PageWriter(1), 0

    def encode(frame: Pcm) -> bytes:
        nonlocal granule
        made = b""
        for begin in range(0, FRAME_SAMPLES, PACKET_SAMPLES):
            granule += 2 * PACKET_SAMPLES
            made += pages.page([encoder.encode(frame[begin : begin + PACKET_SAMPLES])], granule=granule)
        return made

    return encode


def _neighbour(encode: Encode, frames: np.ndarray[tuple[int, int], np.dtype[np.float32]]) -> float:
    """Median over rounds; a machine that others use moves it."""
    shares = []
    for _ in range(ROUNDS):
        alone = _counted(time.sleep, ROUND_S)
        shares.append(_counted(lambda span_s: _keep_on(encode, frames, span_s), ROUND_S) / alone)
    return statistics.median(shares)


def _keep_on(encode: Encode, frames: np.ndarray[tuple[int, int], np.dtype[np.float32]], span_s: float) -> None:
    ends_s, number = time.perf_counter() + span_s, 0
    while time.perf_counter() < ends_s:
        encode(frames[number % len(frames)])
        number += 1


def _counted(work: Callable[[float], object], span_s: float) -> float:
    """How often a thread counts in a second while this one works."""
    going, count = threading.Event(), [0]
    going.set()

    def keep_counting() -> None:
        while going.is_set():
            count[0] += 1

    thread = threading.Thread(target=keep_counting)
    thread.start()
    began_s = time.perf_counter()
    work(span_s)
    counted, took_s = count[0], time.perf_counter() - began_s
    going.clear()
    thread.join()
    return counted / took_s


def _lag(spoken: Pcm, heard: Pcm) -> int:
    """Samples by which ``heard`` is late, at most 20 ms either way."""
    count = min(len(spoken), len(heard), 10 * SAMPLE_RATE_HZ) - 2 * MOST_LAG_SAMPLES
    middle = spoken[MOST_LAG_SAMPLES : MOST_LAG_SAMPLES + count]
    return max(
        range(-MOST_LAG_SAMPLES, MOST_LAG_SAMPLES),
        key=lambda lag: float(middle @ heard[MOST_LAG_SAMPLES + lag : MOST_LAG_SAMPLES + lag + count]),
    )


def _aligned(spoken: Pcm, heard: Pcm, lag: int) -> tuple[Pcm, Pcm]:
    spoken, heard = spoken[max(-lag, 0) :], heard[max(lag, 0) :]
    count = min(len(spoken), len(heard))
    return spoken[:count], heard[:count]


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
