"""What one session of a load test went through, and what all of them did together.

Output *i* answers frame *i + delay*: see :mod:`serve_app.client.round_trip`. A server sends one audio message per step,
so messages are counted and nothing is decoded. A listener is played along: playback begins 10 ms after the first
answer, one answer every 80 ms from then on; an answer that comes after its turn is an underrun, and playback waits.
"""

import bisect
import collections
import dataclasses
import json
import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Self

from serve_app.client.round_trip import RoundTrips, percentile
from serve_app.units import FRAME_S

PLAYBACK_SLACK_S: Final = 0.010
LATE_GENERATOR_S: Final = FRAME_S
"""Above this lateness at p99 the generator, not the server, is what was measured."""
LEFT_THE_QUEUE: Final = "left the queue"
STILL_WAITING: Final = "still waiting at the end"
"""Ends of those who got a place in the queue: their patience was over, or the run was, which is nobody's fault."""
TIMES: Final = ("sent_s", "received_s")


@dataclasses.dataclass(slots=True)
class Account:
    """One session. Times are seconds of one monotonic clock.

    Attributes:
        tenant: whose key it presented; "" where there are no tenants.
        tried_s: when it began to connect.
        open_s: from then to the handshake.
        answered_s: from then to the refusal, or to the first word about a place in the queue.
        queue_s: how long it waited in the queue, until it was let in or went away; NaN where it did not.
        told_when: the refusal said when to come again.
        refusal: by HTTP status or what failed; "" for a session that opened.
        ending: why it ended before its time; "" where it did not.
        knocked: it came when the server was full and was meant to be refused.
        aborted: it went without a close frame and did not wait for its last answers.
    """

    trips: RoundTrips = dataclasses.field(default_factory=RoundTrips)
    late_s: list[float] = dataclasses.field(default_factory=list)
    tenant: str = ""
    tried_s: float = math.nan
    open_s: float = math.nan
    answered_s: float = math.nan
    queue_s: float = math.nan
    refusal: str = ""
    told_when: bool = False
    ending: str = ""
    knocked: bool = False
    aborted: bool = False
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

    def frames_lost(self, delay: int) -> int:
        """Frames that were not answered though there was time for it."""
        return 0 if self.aborted else max(0, self.sent - delay - self.received)

    def frame_deficit(self, delay: int) -> int:
        """How far the answers were behind at worst: frames without one at the moment when the next frame went out.

        0 while every answer comes within 80 ms; an answer that takes 250 ms makes it 3.
        """
        behind = (
            frame - delay - bisect.bisect_right(self.trips.received_s, sent_s)
            for frame, sent_s in enumerate(self.trips.sent_s)
        )
        return max(0, max(behind, default=0))

    def record(self, origin_s: float = 0.0) -> dict[str, Any]:
        """Plain values for another process, times relative to ``origin_s``; 20 bytes a frame."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("trips", "late_s", "_due_s")
        }
        times = {name: [time_s - origin_s for time_s in getattr(self.trips, name)] for name in TIMES}
        return fields | {
            "tried_s": self.tried_s - origin_s,
            "delay_frames": self.trips.delay_frames,
            "late_s": array("f", self.late_s).tobytes(),
            **{name: array("d", values).tobytes() for name, values in times.items()},
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> Self:
        """The account that another process made a record of."""
        plain = {name: value for name, value in record.items() if name not in (*TIMES, "late_s", "delay_frames")}
        sent_s, received_s = (array("d", record[name]).tolist() for name in TIMES)
        trips = RoundTrips(sent_s, received_s, record["delay_frames"])
        return cls(trips=trips, late_s=array("f", record["late_s"]).tolist(), **plain)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All sessions of a run. Every session that was asked for is in it."""

    sessions: int
    opened: int
    refusals: dict[str, int]
    refused_p50_ms: float
    refused_p99_ms: float
    queued: int
    queue_p50_s: float
    queue_max_s: float
    endings: dict[str, int]
    aborted: int
    frames_sent: int
    frames_received: int
    frames_lost: int
    delay_frames: int
    latency_p50_ms: float
    latency_p95_ms: float
    latency_p99_ms: float
    latency_max_ms: float
    open_p50_ms: float
    open_p99_ms: float
    open_max_ms: float
    deficit_max_frames: int
    underruns: int
    underrun_s: float
    underrun_worst_s: float
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

    def plain(self) -> dict[str, Any]:
        """For JSON, which has no NaN: null stands for it."""
        return {name: without_nan(value) for name, value in dataclasses.asdict(self).items()}

    def line(self) -> str:
        """The report as one line of JSON."""
        return json.dumps(self.plain(), allow_nan=False)

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
            f"opening    p50 {self.open_p50_ms:.0f}  p99 {self.open_p99_ms:.0f}  max {self.open_max_ms:.0f} ms",
            f"underruns  {self.underruns}, {self.underrun_s:.2f} s, {self.underrun_worst_s:.2f} s in the worst session;"
            f" {self.deficit_max_frames} frames behind at worst",
            f"generator  late p99 {self.generator_late_p99_ms:.1f}  max {self.generator_late_max_ms:.1f} ms,"
            f" {self.generator_shifts} shifts",
        ]
        if self.refusals and not math.isnan(self.refused_p99_ms):
            lines.append(f"refusals   p50 {self.refused_p50_ms:.0f}  p99 {self.refused_p99_ms:.0f} ms after connecting")
        if self.queued:
            lines.append(f"queue      {self.queued} waited, p50 {self.queue_p50_s:.1f}  max {self.queue_max_s:.1f} s")
        if self.generator_is_late:
            lines.append("WARNING    the generator was late itself: fewer sessions, or another machine for it")
        return "\n".join(lines)


def without_nan(value: Any) -> Any:
    """The value; None for a float that JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def common_delay(accounts: Sequence[Account]) -> int:
    """Steps that give no audio: one number for all, the smallest that any session saw."""
    delays = [account.trips.delay_frames for account in accounts if account.trips.delay_frames is not None]
    return min(delays, default=0)


def report(accounts: Sequence[Account], seconds: float) -> Report:
    """Add up."""
    opened = [account for account in accounts if not account.refusal]
    delay = common_delay(opened)
    trips_ms = [1_000 * trip for account in opened for trip in account.trips.all_s(delay)]
    late_ms = [1_000 * late for account in opened for late in account.late_s]
    open_ms = [1_000 * account.open_s for account in opened]
    refused_ms = known(1_000 * account.answered_s for account in accounts if account.refusal)
    queued_s = known(account.queue_s for account in accounts)
    received_bytes = sum(account.received_bytes for account in opened)
    return Report(
        sessions=len(accounts),
        opened=len(opened),
        refusals=dict(collections.Counter(account.refusal for account in accounts if account.refusal)),
        refused_p50_ms=percentile(refused_ms, 0.5),
        refused_p99_ms=percentile(refused_ms, 0.99),
        queued=len(queued_s),
        queue_p50_s=percentile(queued_s, 0.5),
        queue_max_s=max(queued_s, default=math.nan),
        endings=dict(collections.Counter(account.ending for account in opened if account.ending)),
        aborted=sum(account.aborted for account in opened),
        frames_sent=sum(account.sent for account in opened),
        frames_received=sum(account.received for account in opened),
        frames_lost=sum(account.frames_lost(delay) for account in opened),
        delay_frames=delay,
        latency_p50_ms=percentile(trips_ms, 0.5),
        latency_p95_ms=percentile(trips_ms, 0.95),
        latency_p99_ms=percentile(trips_ms, 0.99),
        latency_max_ms=max(trips_ms, default=math.nan),
        open_p50_ms=percentile(open_ms, 0.5),
        open_p99_ms=percentile(open_ms, 0.99),
        open_max_ms=max(open_ms, default=math.nan),
        deficit_max_frames=max((account.frame_deficit(delay) for account in opened), default=0),
        underruns=sum(account.underruns for account in opened),
        underrun_s=sum(account.underrun_s for account in opened),
        underrun_worst_s=max((account.underrun_s for account in opened), default=0.0),
        text_messages=sum(account.text_messages for account in opened),
        received_kbps=8 * received_bytes / 1_000 / max(seconds, FRAME_S) / max(1, len(opened)),
        generator_late_p99_ms=percentile(late_ms, 0.99),
        generator_late_max_ms=max(late_ms, default=math.nan),
        generator_shifts=sum(account.shifts for account in opened),
        seconds=seconds,
    )


def known(values: Iterable[float]) -> list[float]:
    """Those that are numbers."""
    return [value for value in values if not math.isnan(value)]
