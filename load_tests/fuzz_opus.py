"""Wounds Ogg/Opus streams by the thousand and listens whether the receiver hears on. No server, no torch.

Each case spoils a few messages of clean speech (bits, bytes, cuts, insertions, repetitions; with and without checksums
that fit; whole or in fragments down to single bytes) and then speaks cleanly: all but two of the frames must be heard,
and nothing but a peer's error may be raised. A case is named by its number, so a failure can be run again alone.
"""

import argparse
import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from typing import Final

import numpy as np

from load_tests.speech import encoded
from serve_app.audio.budget import audio_budget
from serve_app.audio.ogg import CAPTURE, checksum
from serve_app.audio.opus import OpusReceiver
from serve_app.budget import Budget
from serve_app.errors import PeerError
from serve_app.units import FRAME_S

SPOILED_MESSAGES: Final = 4
CLEAN_FRAMES: Final = 12
MAY_MISS_FRAMES: Final = 2
"""What is left of the wound may cost the page that it swallows and a frame that was half full."""
SLOW_S: Final = 0.1
REPORT_EVERY: Final = 10_000


def wound(data: bytes, rng: np.random.Generator) -> bytes:
    """One wound of a random kind; ``data`` is not empty."""
    spoiled = bytearray(data)
    at = int(rng.integers(len(spoiled)))
    match int(rng.integers(7)):
        case 0:
            spoiled[at] ^= 1 << int(rng.integers(8))
        case 1:
            spoiled[at] = int(rng.integers(256))
        case 2:
            del spoiled[at : at + int(rng.integers(1, 200))]
        case 3:
            spoiled[at:at] = rng.bytes(int(rng.integers(1, 200)))
        case 4:
            spoiled[at:at] = spoiled[: int(rng.integers(1, len(spoiled) + 1))]
        case 5:
            del spoiled[at:]
        case _:
            end = at + int(rng.integers(1, 60))
            spoiled[at:end] = rng.bytes(len(spoiled[at:end]))
    return bytes(spoiled)


def sealed(page: bytes) -> bytes:
    """A page with the checksum that fits it."""
    return page[:22] + checksum(page[:22] + bytes(4) + page[26:]).to_bytes(4, "little") + page[26:]


def reseal(data: bytes) -> bytes:
    """Give every page that can be found a checksum that fits: damage which no checksum shows."""
    first, *pages = data.split(CAPTURE)
    return first + b"".join(sealed(CAPTURE + page) if len(page) >= 23 else CAPTURE + page for page in pages)


@functools.cache
def speech() -> tuple[bytes, ...]:
    """Payloads of clean messages, header pages in the first."""
    return tuple(message[1:] for message in encoded(None, (SPOILED_MESSAGES + CLEAN_FRAMES) * FRAME_S))


def spoiled_messages(rng: np.random.Generator) -> list[bytes]:
    """The beginning of a stream with one to three wounds."""
    messages = list(speech()[:SPOILED_MESSAGES])
    forged = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 4))):
        victim = int(rng.integers(len(messages)))
        if messages[victim]:
            messages[victim] = wound(messages[victim], rng)
            if forged:
                messages[victim] = reseal(messages[victim])
    return messages if rng.random() < 0.5 else fragments(b"".join(messages), rng)


def fragments(data: bytes, rng: np.random.Generator) -> list[bytes]:
    """The same bytes in messages of another size, some of them of single bytes."""
    longest = int(rng.choice([1, 30, 500]))
    if longest == 1:
        data, rest = data[:200], data[200:]
        return [data[at : at + 1] for at in range(len(data))] + [rest]
    cuts = np.cumsum(rng.integers(1, longest + 1, size=2 * len(data) // longest + 1))
    return [bytes(part) for part in np.split(np.frombuffer(data, np.uint8), cuts[cuts < len(data)])]


@dataclasses.dataclass
class Tally:
    """What the cases came to.

    Attributes:
        deaf: cases after which too few clean frames were heard.
        untyped: cases that raised something else than a peer's error, and what.
        slow: cases with a call of more than 100 ms of processor time.
        worst_s: the longest call.
    """

    cases: int = 0
    deaf: list[int] = dataclasses.field(default_factory=list)
    untyped: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    slow: list[int] = dataclasses.field(default_factory=list)
    worst_s: float = 0.0

    def add(self, case: int, seed: int) -> None:
        """Run one case."""
        self.cases += 1
        ear = _Ear()
        try:
            for message in spoiled_messages(np.random.default_rng([seed, case])):
                ear.hear(message)
            ear.now_s += 10.0
            heard = sum(ear.hear(message) for message in speech()[SPOILED_MESSAGES:])
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
            self.untyped.append((case, repr(error)))
            return
        if heard < CLEAN_FRAMES - MAY_MISS_FRAMES:
            self.deaf.append(case)
        if ear.worst_s > SLOW_S:
            self.slow.append(case)
        self.worst_s = max(self.worst_s, ear.worst_s)

    def __str__(self) -> str:
        return (
            f"{self.cases} cases: {len(self.deaf)} deaf {self.deaf[:5]}, {len(self.untyped)} untyped errors"
            f" {self.untyped[:5]}, {len(self.slow)} with a call over 100 ms {self.slow[:5]};"
            f" longest call {1_000 * self.worst_s:.1f} ms"
        )


class _Ear:
    """A receiver with much patience, and a clock of its own."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.worst_s = 0.0
        self._receiver = OpusReceiver(audio_budget(), lambda: self.now_s, errors=Budget(0.0, 1_000.0))

    def hear(self, payload: bytes) -> int:
        """Frames that one message gave."""
        began_s = time.thread_time()
        try:
            return len(self._receiver.feed(payload).frames)
        except PeerError:
            return 0
        finally:
            self.worst_s = max(self.worst_s, time.thread_time() - began_s)
            self.now_s += FRAME_S


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit status 1 when a case was deaf or raised what it may not."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.fuzz_opus", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=20)
    options = parser.parse_args(argv)
    tally = Tally()
    for case in range(options.first, options.first + options.cases):
        tally.add(case, options.seed)
        if tally.cases % REPORT_EVERY == 0:
            print(tally, file=sys.stderr, flush=True)
    print(tally)
    return 1 if tally.deaf or tally.untyped else 0


if __name__ == "__main__":
    sys.exit(main())
