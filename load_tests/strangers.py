"""Does anybody hear anybody else? Every session sings its own tone, every frame that comes back is checked against all.

    python -m load_tests.strangers --url http://localhost:8998 --sessions 16 --seconds 300

A session's voice is a tone of its own frequency and, above it, a second tone that tells the second it was sung in: both
survive Opus at 32 kb/s. A frame is *foreign* when any other session's tone in it is within 15 dB of its own, *unheard*
when its own is missing, *misplaced* when it tells another second than it should. For engines that give back what they
hear: the pass-through.
"""

import argparse
import asyncio
import collections
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.client import Audio, Session
from serve_app.client.events import PCM
from serve_app.errors import ChorusError
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

MAX_SESSIONS: Final = 64
FIRST_VOICE_HZ: Final = 600.0
VOICE_STEP_HZ: Final = 50.0
FIRST_CLOCK_HZ: Final = 4_500.0
CLOCK_STEP_HZ: Final = 200.0
CLOCK_TONES: Final = 10
FRAMES_PER_TONE: Final = 12
"""A clock tone lasts 0.96 s."""
AMPLITUDE: Final = 0.2
HEARD: Final = 0.02
FOREIGN_RATIO: Final = 10 ** (-15 / 20)
WARM_UP_FRAMES: Final = 3
"""Not judged: a codec needs a moment to find its feet."""
GRACE_S: Final = 2.0


class Verdict(collections.Counter[str]):
    """Frames by what they were: ``own``, ``foreign``, ``unheard``, ``misplaced``, ``lost``; sessions that ``ended``."""

    @property
    def clean(self) -> bool:
        """Nothing but own frames."""
        return 0 < self["own"] == self.total()


def voice_hz(singer: int) -> float:
    """Frequency of a session's own tone."""
    return FIRST_VOICE_HZ + VOICE_STEP_HZ * singer


def clock_hz(frame: int) -> float:
    """Frequency of the tone that tells when a frame was sung."""
    return FIRST_CLOCK_HZ + CLOCK_STEP_HZ * (frame // FRAMES_PER_TONE % CLOCK_TONES)


def sung(singer: int, frame: int) -> PCM:
    """What a session says in a frame: ``float32[1920]``; whole cycles, so frames join smoothly."""
    time_s = np.arange(FRAME_SAMPLES) / SAMPLE_RATE_HZ
    tones = np.sin(2 * np.pi * voice_hz(singer) * time_s) + np.sin(2 * np.pi * clock_hz(frame) * time_s)
    return np.asarray(AMPLITUDE * tones, dtype=np.float32)


def judged(pcm: PCM, singer: int, frame: int) -> str:
    """What a frame that came back is. Args: pcm ``float32[1920]``; frame: the number of the one it answers."""
    spectrum = np.abs(np.fft.rfft(pcm * np.hanning(FRAME_SAMPLES))) * 4 / FRAME_SAMPLES
    voices = np.asarray([_at(spectrum, voice_hz(other)) for other in range(MAX_SESSIONS)])
    own = voices[singer]
    if own < HEARD:
        return "unheard"
    if np.delete(voices, singer).max() > FOREIGN_RATIO * own:
        return "foreign"
    told = int(np.argmax([_at(spectrum, FIRST_CLOCK_HZ + CLOCK_STEP_HZ * tone) for tone in range(CLOCK_TONES)]))
    # The codec's delay moves a frame's first milliseconds into it from the one before.
    expected = {(frame - early) // FRAMES_PER_TONE % CLOCK_TONES for early in (0, 1)}
    return "own" if told in expected else "misplaced"


def _at(spectrum: np.typing.NDArray[np.floating], hz: float) -> float:
    middle = round(hz * FRAME_S)
    return float(spectrum[middle - 1 : middle + 2].max())


async def sing(url: str, singer: int, frames: int, begin_s: float, verdict: Verdict, key: str | None = None) -> None:
    """One session: sing in real time, judge what comes back."""
    heard = 0

    async def listen(session: Session) -> None:
        nonlocal heard
        async for event in session:
            if not isinstance(event, Audio):
                continue
            for pcm in event.pcm.reshape(-1, FRAME_SAMPLES):
                frame = heard + (session.round_trips.delay_frames or 0)
                heard += 1
                if frame >= WARM_UP_FRAMES:
                    verdict[judged(pcm, singer, frame)] += 1

    try:
        async with Session.open(url, key=key) as session:
            listening = asyncio.create_task(listen(session))
            for frame in range(frames):
                await asyncio.sleep(max(0.0, begin_s + frame * FRAME_S - time.monotonic()))
                await session.send(sung(singer, frame))
            await asyncio.wait({listening}, timeout=GRACE_S)
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
            verdict["lost"] += max(0, frames - (session.round_trips.delay_frames or 0) - heard)
    except ChorusError as error:
        verdict[f"ended: {error}"] += 1


async def run(url: str, sessions: int, seconds: float, key: str | None = None) -> Verdict:
    """All of them, spread over a frame."""
    assert 0 < sessions <= MAX_SESSIONS
    verdict = Verdict()
    frames, begin_s = round(seconds / FRAME_S), time.monotonic() + 1.0
    voices = (
        sing(url, singer, frames, begin_s + singer * FRAME_S / sessions, verdict, key) for singer in range(sessions)
    )
    await asyncio.gather(*voices)
    return verdict


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 1 unless every frame came back to its owner."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.strangers", description=__doc__)
    parser.add_argument("--url", default="http://localhost:8998")
    parser.add_argument("--sessions", type=int, default=16, choices=range(1, MAX_SESSIONS + 1), metavar="N")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--key-file", type=Path)
    options = parser.parse_args(argv)
    key = options.key_file.read_text().strip() if options.key_file else None
    verdict = asyncio.run(run(options.url, options.sessions, options.seconds, key))
    for what in sorted({"own", "foreign", "unheard", "misplaced", "lost", *verdict}):
        print(f"{verdict[what]:8} {what}")
    return 0 if verdict.clean else 1


if __name__ == "__main__":
    sys.exit(main())
