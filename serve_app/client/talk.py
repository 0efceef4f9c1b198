"""A conversation with a file: speaks a WAV file in real time, writes down what is answered."""

import argparse
import asyncio
import dataclasses
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.client.events import PCM, Audio, Error, Metadata, Text
from serve_app.client.failures import AudioFileError, ServerGone
from serve_app.client.latency import Latencies, asking_for_latency
from serve_app.client.progress import Progress
from serve_app.client.round_trip import percentile
from serve_app.client.session import Session
from serve_app.client.wav import check_writable, read_wav, write_wav
from serve_app.config import KEY_VARIABLE, access_key
from serve_app.errors import ChorusError
from serve_app.spec import Sampling
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

DEFAULT_URL: Final = "ws://localhost:8998"
TAIL_S: Final = 2.0
"""Silence spoken after the file, so that an answer to its end is heard."""
GRACE_S: Final = 2.0
"""How long the last answers may take after the last frame."""


@dataclasses.dataclass(slots=True)
class Conversation:
    """What was said on both sides.

    Attributes:
        spoken_frames: frames sent.
        heard: what came back, in order; ``float32[n * 1920]`` each.
        pieces: the transcript's pieces.
        delay_frames: steps before the first answer.
        round_trips_s: one per answered frame.
        latencies: where the time went, as the server says it; empty unless it was asked.
    """

    spoken_frames: int = 0
    heard: list[PCM] = dataclasses.field(default_factory=list)
    pieces: list[str] = dataclasses.field(default_factory=list)
    delay_frames: int = 0
    round_trips_s: list[float] = dataclasses.field(default_factory=list)
    latencies: Latencies = dataclasses.field(default_factory=Latencies)

    @property
    def transcript(self) -> str:
        """All text, in order."""
        return "".join(self.pieces)

    @property
    def heard_frames(self) -> int:
        """What came back, and what is known to be missing."""
        return sum(pcm.size for pcm in self.heard) // FRAME_SAMPLES

    def miss(self, delay_frames: int) -> None:
        """Everything said so far was answered while nobody could hear: silence stands for it."""
        missing = max(0, self.spoken_frames - delay_frames - self.heard_frames)
        self.heard.append(np.zeros(missing * FRAME_SAMPLES, dtype=np.float32))

    def answer(self) -> PCM:
        """The answer on the clock of what was spoken: ``float32[spoken_frames * 1920]``, silent where nothing came."""
        pcm = np.zeros(self.spoken_frames * FRAME_SAMPLES, dtype=np.float32)
        heard = np.concatenate(self.heard) if self.heard else pcm[:0]
        start = min(self.delay_frames * FRAME_SAMPLES, pcm.size)
        end = min(start + heard.size, pcm.size)
        pcm[start:end] = heard[: end - start]
        return pcm


async def talk(
    spoken: Path,
    answered: Path,
    *,
    url: str = DEFAULT_URL,
    sampling: Sampling | None = None,
    key: str | None = None,
    resumable: bool = False,
    tail_s: float = TAIL_S,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Conversation:
    """Speak the file at ``spoken`` and write the answer to ``answered``, as long as the conversation.

    What was heard is written also when the server ends it early or the caller cancels.

    Raises:
        AudioFileError: before anything is sent, or when the answer cannot be written.
        ChorusError: whatever :meth:`Session.open` and the session raise.
    """
    pcm = read_wav(spoken)
    check_writable(answered)
    conversation = Conversation()
    async with Session.open(
        url, sampling=sampling, key=key, resumable=resumable, waiting=progress.waiting, clock=clock
    ) as session:
        try:
            await _converse(session, _frames(pcm, tail_s), conversation, progress, clock, sleep)
        finally:
            conversation.delay_frames = session.round_trips.delay_frames or 0
            conversation.round_trips_s = session.round_trips.all_s()
            write_wav(answered, conversation.answer())
            progress.finish()
    return conversation


async def _converse(
    session: Session,
    frames: Sequence[PCM],
    conversation: Conversation,
    progress: Progress,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Speak and listen at once until everything is spoken and answered, or the server ends it."""
    complete = asyncio.Event()

    async def speak() -> None:
        start_s = clock()
        for number, frame in enumerate(frames):
            await sleep(max(0.0, start_s + (number + 1) * FRAME_S - clock()))  # a frame exists when it has been heard
            await session.send(frame)
            conversation.spoken_frames += 1
            heard = _level(conversation.heard[-1]) if conversation.heard else 0.0
            trip = session.round_trips.latest_s
            progress.frame((number + 1) * FRAME_S, len(frames) * FRAME_S, _level(frame), heard, trip)

    async def listen() -> None:
        async for event in session:
            match event:
                case Audio(pcm=pcm):
                    conversation.heard.append(pcm)
                    delay = session.round_trips.delay_frames or 0
                    if conversation.heard_frames + delay >= len(frames):
                        complete.set()
                case Text(text=text):
                    conversation.pieces.append(text)
                    progress.text(text)
                case Error(message=message):
                    progress.note(message)
                case Metadata({"resumed": {"away_s": float(away_s)}}):
                    conversation.miss(session.round_trips.delay_frames or 0)
                    progress.note(f"cut off and back after {away_s:.1f} s")
                case Metadata({"going_away": {"s": int(left_s)}}):
                    progress.note(f"the server is being replaced: this conversation has {left_s} s")
                case Metadata({"session": {"ends_in_s": int(left_s)}}):
                    progress.note(f"this conversation has lasted almost as long as it may: {left_s} s are left")
                case Metadata(value=value):
                    conversation.latencies.add(value)

    async def hear_the_end() -> None:
        await speak()
        try:
            async with asyncio.timeout(GRACE_S):
                await complete.wait()
        except TimeoutError:
            pass  # frames that were lost on the way; the file is silent there

    speaking, listening = asyncio.create_task(hear_the_end()), asyncio.create_task(listen())
    try:
        await asyncio.wait((speaking, listening), return_when=asyncio.FIRST_COMPLETED)
        if not speaking.done():
            listening.result()  # raises what ended it
            raise ServerGone(1000, "before everything was said")
        speaking.result()
    finally:
        for task in (speaking, listening):
            task.cancel()
        await asyncio.gather(speaking, listening, return_exceptions=True)


def main(argv: Sequence[str] | None = None) -> int:
    """``serve_app talk IN.wav OUT.wav``; returns the exit status, errors go to stderr as one line."""
    options = _parser().parse_args(argv)
    progress = Progress(sys.stdout, redraw=sys.stdout.isatty())
    try:
        conversation = asyncio.run(
            talk(
                options.spoken,
                options.answered,
                url=asking_for_latency(options.url) if options.latency else options.url,
                sampling=_sampling(options),
                key=_key(options.key_file),
                resumable=options.resumable,
                tail_s=options.tail,
                progress=progress,
            )
        )
    except ChorusError as error:
        print(f"serve_app talk: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print(f"\nstopped; what was heard is in {options.answered}", file=sys.stderr)  # noqa: T201
        return 130
    print(_summary(options.answered, conversation), file=sys.stderr)  # noqa: T201
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_app talk",
        description="Speak a WAV file; record what is answered.",
        allow_abbrev=False,  # --key is no --key-file
    )
    parser.add_argument("spoken", type=Path, metavar="IN.wav", help="what to say: integer samples, any rate")
    parser.add_argument("answered", type=Path, metavar="OUT.wav", help="where the answer goes: 24 kHz mono")
    parser.add_argument("--url", default=DEFAULT_URL, help="address of the server (default: %(default)s)")
    parser.add_argument(
        "--key-file", type=Path, help=f"file that holds the key, for servers that ask for one (default: {KEY_VARIABLE})"
    )
    parser.add_argument("--latency", action="store_true", help="ask the server where the time goes")
    parser.add_argument(
        "--tail", type=float, default=TAIL_S, metavar="S", help="silence after the file (%(default)s s)"
    )
    parser.add_argument("--resumable", action="store_true", help="come back when the connection breaks")
    parser.add_argument("--seed", type=int, help="for text and audio; the same seed and file give the same answer")
    parser.add_argument("--text-temperature", type=float, help="0 is greedy")
    parser.add_argument("--audio-temperature", type=float, help="0 is greedy")
    parser.add_argument("--text-top-k", type=int)
    parser.add_argument("--audio-top-k", type=int)
    return parser


def _sampling(options: argparse.Namespace) -> Sampling | None:
    """None, the server's defaults, unless an option asks for something.

    Raises:
        ParameterRefused: out of range.
    """
    names = ("text_temperature", "audio_temperature", "text_top_k", "audio_top_k")
    asked = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.seed is not None:
        asked |= {"text_seed": options.seed, "audio_seed": options.seed}
    return Sampling(**asked) if asked else None


def _key(path: Path | None) -> str | None:
    """From a file, else from the environment: never an argument, which every user of the machine may read."""
    if path is None:
        return access_key()
    try:
        return path.read_text().strip()
    except OSError as failed:
        raise AudioFileError(path, failed.strerror or str(failed)) from failed


def _frames(pcm: PCM, tail_s: float) -> list[PCM]:
    """Whole frames, the last one padded with silence, and the tail."""
    tail = round(max(0.0, tail_s) * SAMPLE_RATE_HZ)
    count = -(-(pcm.size + tail) // FRAME_SAMPLES)
    padded = np.zeros(count * FRAME_SAMPLES, dtype=np.float32)
    padded[: pcm.size] = pcm
    return list(padded.reshape(count, FRAME_SAMPLES))


def _level(pcm: PCM) -> float:
    return float(np.sqrt(np.mean(np.square(pcm)))) if pcm.size else 0.0


def _summary(path: Path, conversation: Conversation) -> str:
    seconds = conversation.spoken_frames * FRAME_S
    trips = conversation.round_trips_s
    if not trips:
        return f"{seconds:.1f} s spoken, nothing came back; {path} is silent"
    p50_ms, p99_ms = (1_000 * percentile(trips, share) for share in (0.5, 0.99))
    lost = conversation.spoken_frames - conversation.delay_frames - len(trips)
    late = f", {lost} frames missing" if lost > 0 else ""
    at_server = "".join(f"\n{line}" for line in conversation.latencies.words())
    return f"{path}: {seconds:.1f} s, round trip p50 {p50_ms:.0f} ms, p99 {p99_ms:.0f} ms{late}{at_server}"
