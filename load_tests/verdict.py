"""Pass, fail, or a generator that was too slow to tell: pure rules over what was counted.

Source of the rules: the strictest harness among the peers (vLLM-Omni's): every attempted session is in the denominator,
all start together, nothing is caught up in bursts, the answers may be only so many frames behind, seconds of underrun
count, and a client that is itself late by more than 80 ms at p99 has measured itself.
"""

import dataclasses
import enum
import math
from collections.abc import Sequence
from typing import Any

from load_tests.account import LATE_GENERATOR_S, STILL_WAITING, Report, without_nan


class Verdict(enum.IntEnum):
    """The exit status."""

    PASS = 0
    FAIL = 1
    GENERATOR_TOO_SLOW = 2

    def __str__(self) -> str:
        return self.name.lower().replace("_", " ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is still good.

    Attributes:
        p99_ms: latency over all frames of all sessions.
        deficit_frames: frames without an answer when the next went out. An engine keeps four waiting before it drops.
        underrun_s: of the session that heard the most silence.
        refusal_ms: p99 from connecting to the refusal, or to the first word about a place in the queue.
        rise: p99 of running sessions while others knock, over p99 without.
        free_s: until all slots are free after the last session.
        late_ms: of the generator at p99.
        more_descriptors: open files and sockets at the end of a soak over those after its first quarter.
        mib_per_hour: by which the server may grow in a soak; judged from ``slope_after_s`` on, before that it is noise.
    """

    p99_ms: float = 200.0
    deficit_frames: float = 4.0
    underrun_s: float = 0.4
    refusal_ms: float = 200.0
    rise: float = 1.1
    free_s: float = 15.0
    late_ms: float = 1_000 * LATE_GENERATOR_S
    more_descriptors: float = 16.0
    mib_per_hour: float = 1.0
    slope_after_s: float = 1_500.0


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One number that may be so large at most. NaN, which is nothing measured, is too large.

    Attributes:
        paced: a generator that is late can cause it; otherwise it is the server's, whatever the generator did.
    """

    what: str
    value: float
    limit: float
    unit: str = ""
    paced: bool = True

    @property
    def good(self) -> bool:
        return self.value <= self.limit

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "what": self.what,
            "value": without_nan(float(self.value)),
            "limit": self.limit,
            "unit": self.unit,
            "good": self.good,
        }

    def __str__(self) -> str:
        value = "nothing measured" if math.isnan(self.value) else f"{self.value:.4g} {self.unit}".strip()
        return f"{'ok  ' if self.good else 'FAIL'}  {self.what}: {value} (at most {self.limit:g})"


def conversation_checks(outcome: Report, limits: Limits) -> list[Check]:
    """What every shape demands of the sessions that were to succeed."""
    still_waiting = outcome.refusals.get(STILL_WAITING, 0)
    return [
        Check("sessions that were not let in", outcome.sessions - outcome.opened - still_waiting, 0),
        Check("sessions that ended early", sum(outcome.endings.values()), 0),
        Check("frames lost", outcome.frames_lost, 0),
        Check("latency p99", outcome.latency_p99_ms, limits.p99_ms, "ms"),
        Check("frames behind at worst", outcome.deficit_max_frames, limits.deficit_frames),
        Check("underrun of the worst session", outcome.underrun_worst_s, limits.underrun_s, "s"),
    ]


def verdict(checks: Sequence[Check], generator_late_ms: float, limits: Limits) -> Verdict:
    """A late generator never passes; it fails a server only for what no generator can cause.

    Args:
        generator_late_ms: at p99; NaN where nothing was sent, which is not late.
    """
    if any(not check.good and not check.paced for check in checks):
        return Verdict.FAIL
    if generator_late_ms > limits.late_ms:
        return Verdict.GENERATOR_TOO_SLOW
    return Verdict.PASS if checks and all(check.good for check in checks) else Verdict.FAIL
