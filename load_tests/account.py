"""What one session of a load test went through, and what all of them did together.

Output *i* answers frame *i + delay*: see :mod:`serve_app.client.round_trip`. A server sends one audio message per step,
so messages are counted and nothing is decoded. A listener is played along: playback begins 10 ms after the first
answer, one answer every 80 ms from then on; an answer that comes after its turn is an underrun, and playback waits.
"""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Final

from serve_app.client.round_trip import RoundTrips, percentile
from serve_app.units import FRAME_S

PLAYBACK_SLACK_S: Final = 0.010
LATE_GENERATOR_S: Final = FRAME_S
"""Above this lateness at p99 the generator, not the server, is what was measured."""


@dataclasses.dataclass(slots=True)
class Account:
    """One session. Times are seconds of one monotonic clock."""

    trips: RoundTrips = dataclasses.field(default_factory=RoundTrips)
    late_s: list[float] = dataclasses.field(default_factory=list)
    open_s: float = math.nan
    refusal: str = ""
    ending: str = ""
    done: bool = False
    sent: int = 0
    received: int = 0
    received_bytes: int = 0
    text_messages: int = 0
    shifts: int = 0
    underruns: int = 0
    underrun_s: float = 0.0
    _due_s: float = math.nan

    def frame_sent(self, now_s: float, due_s: float) -> None:
        """The message that completes the next frame goes out, planned for ``due_s``."""
        self.sent += 1
        self.late_s.append(now_s - due_s)
        self.trips.frame_sent(now_s)

    def audio_received(self, now_s: float, size_bytes: int) -> float | None:
        """One audio message came in; returns its round trip as far as the delay is known by now."""
        self.received += 1
        self.received_bytes += size_bytes
        if math.isnan(self._due_s):
            self._due_s = now_s + PLAYBACK_SLACK_S
        elif now_s > self._due_s:
            self.underruns += 1
            self.underrun_s += now_s - self._due_s
            self._due_s = now_s
        self._due_s += FRAME_S
        return self.trips.frame_received(now_s)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All sessions of a run. Every session that was asked for is in it."""

    sessions: int
    opened: int
    refusals: dict[str, int]
    endings: dict[str, int]
    frames_sent: int
    frames_received: int
    frames_lost: int
    delay_frames: int
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    open_p50_ms: float
    open_max_ms: float
    underruns: int
    underrun_s: float
    text_messages: int
    received_kbps: float
    generator_late_p99_ms: float
    generator_late_max_ms: float
    generator_shifts: int
    seconds: float

    @property
    def generator_is_late(self) -> bool:
        """Whether the latencies say more about the generator than about the server."""
        return self.generator_late_p99_ms > 1_000 * LATE_GENERATOR_S or self.generator_shifts > 0

    @property
    def clean(self) -> bool:
        """Every session opened, none ended early, no frame lost."""
        return self.opened == self.sessions and not self.endings and not self.frames_lost

    def line(self) -> str:
        """The report as one line of JSON, which has no NaN: null stands for it."""
        fields = dataclasses.asdict(self).items()
        plain = {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in fields}
        return json.dumps(plain, allow_nan=False)

    def sentences(self) -> str:
        """The report for a person."""
        refused = ", ".join(f"{count} {why}" for why, count in sorted(self.refusals.items())) or "none"
        ended = ", ".join(f"{count} {why}" for why, count in sorted(self.endings.items())) or "none"
        lines = [
            f"sessions   {self.opened} of {self.sessions} opened; refused: {refused}; ended early: {ended}",
            f"frames     {self.frames_sent} sent, {self.frames_received} received, {self.frames_lost} lost"
            f" (delay {self.delay_frames})",
            f"latency    p50 {self.latency_p50_ms:.1f}  p95 {self.latency_p95_ms:.1f}  p99 {self.latency_p99_ms:.1f}"
            f"  max {self.latency_max_ms:.1f} ms",
            f"opening    p50 {self.open_p50_ms:.0f}  max {self.open_max_ms:.0f} ms",
            f"underruns  {self.underruns}, {self.underrun_s:.2f} s",
            f"generator  late p99 {self.generator_late_p99_ms:.1f}  max {self.generator_late_max_ms:.1f} ms,"
            f" {self.generator_shifts} shifts",
        ]
        if self.generator_is_late:
            lines.append("WARNING    the generator was late itself: fewer sessions, or another machine for it")
        return "\n".join(lines)


def report(accounts: Sequence[Account], seconds: float) -> Report:
    """Add up. The delay is one for all: the smallest that any session saw."""
    opened = [account for account in accounts if not account.refusal]
    delays = [account.trips.delay_frames for account in opened if account.trips.delay_frames is not None]
    delay = min(delays, default=0)
    trips_ms = [1_000 * trip for account in opened for trip in account.trips.all_s(delay)]
    late_ms = [1_000 * late for account in opened for late in account.late_s]
    open_ms = [1_000 * account.open_s for account in opened]
    received_bytes = sum(account.received_bytes for account in opened)
    return Report(
        sessions=len(accounts),
        opened=len(opened),
        refusals=dict(collections.Counter(account.refusal for account in accounts if account.refusal)),
        endings=dict(collections.Counter(account.ending for account in opened if account.ending)),
        frames_sent=sum(account.sent for account in opened),
        frames_received=sum(account.received for account in opened),
        frames_lost=sum(max(0, account.sent - delay - account.received) for account in opened),
        delay_frames=delay,
        latency_p50_ms=percentile(trips_ms, 0.5),
        latency_p95_ms=percentile(trips_ms, 0.95),
        latency_p99_ms=percentile(trips_ms, 0.99),
        latency_max_ms=max(trips_ms, default=math.nan),
        open_p50_ms=percentile(open_ms, 0.5),
        open_max_ms=max(open_ms, default=math.nan),
        underruns=sum(account.underruns for account in opened),
        underrun_s=sum(account.underrun_s for account in opened),
        text_messages=sum(account.text_messages for account in opened),
        received_kbps=8 * received_bytes / 1_000 / max(seconds, FRAME_S) / max(1, len(opened)),
        generator_late_p99_ms=percentile(late_ms, 0.99),
        generator_late_max_ms=max(late_ms, default=math.nan),
        generator_shifts=sum(account.shifts for account in opened),
        seconds=seconds,
    )
