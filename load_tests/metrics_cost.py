"""What the metrics cost: CPU of the instruments of one engine and one gateway with so many sessions.

    python -m load_tests.metrics_cost --sessions 64 --seconds 20
    python -m load_tests.metrics_cost --latency --json   # every session has asked for its latency, too

The real instruments run at the real pace on a Ray of their own, without engine and Opus, so that nothing else is in the
figure: ticks with all rows, heartbeats, the counting of each frame's bytes, sessions that come and go. Two figures: the
CPU of this process, Ray's exporting threads in it included, less that of the same loop with nothing to record; and each
record timed alone, times its rate, which knows nothing of those threads but is steadier. The exit status is 1 when
either is above the target.
"""

import argparse
import collections
import dataclasses
import heapq
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from serve_app.admission.views import PoolStatus
from serve_app.audio.opus import Traffic
from serve_app.engine.observer import SessionReport, TickReport
from serve_app.engine.slots import Lease
from serve_app.engine.stats import EngineStats, Tally
from serve_app.link.messages import Key, Output
from serve_app.serving.descendants import Descendants
from serve_app.serving.directory import HEARTBEAT_S
from serve_app.serving.instruments import AdmissionInstruments, EngineInstruments, GatewayInstruments
from serve_app.serving.latency import Latency
from serve_app.serving.meter import Meter
from serve_app.serving.process import resident_bytes
from serve_app.units import FRAME_RATE_HZ, FRAME_S, Generation, Slot

TARGET: Final = 0.02
"""Of one core."""
STAGES: Final = ("encode", "lm", "depth", "decode")
STAGE_MS: Final[Mapping[str, float]] = {**dict.fromkeys(STAGES, 10.0), "tick": 42.0, "wait": 4.0}
RETURNS: Final = {"parked": 3, "resumed": 2, "lapsed": 1}
TENANTS: Final = 10
SESSION_S: Final = 120.0
"""Mean length: how often somebody comes and goes."""
MESSAGE_BYTES: Final = 250
SETTLE_S: Final = 3.0
ALONE: Final = 2_000
"""Records of one kind in a row, to time one alone."""
CODES: Final = np.zeros(8, np.int16)

Work = Callable[[], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Chore:
    """Something that is done so many times a second."""

    name: str
    rate_hz: float
    work: Work


class Rig:
    """The instruments of one engine, one gateway and the authority, and what they are shown.

    Args:
        sessions: at a time; all of them are in every tick.
    """

    def __init__(self, sessions: int) -> None:
        self._sessions = sessions
        self._engine, self._gateway = EngineInstruments("model"), GatewayInstruments()
        self._admission = AdmissionInstruments()
        self._tally, self._meter = Tally(), Meter()
        self._traffic = (Traffic(), Traffic())
        self._latencies = [Latency(time.monotonic) for _ in range(sessions)]
        self._frame = 0
        self._spoken_s: collections.defaultdict[str, float] = collections.defaultdict(float)

    def chores(self, ticks_hz: float, latency: bool) -> list[Chore]:
        """Everything that is done for metrics, and how often."""
        chores = [
            Chore("tick", ticks_hz, self._tick),
            Chore("frame of each session", FRAME_RATE_HZ, self._count_frames),
            Chore("start and end", self._sessions / SESSION_S, self._come_and_go),
            Chore("heartbeat", 1 / HEARTBEAT_S, self._beat),
        ]
        return [*chores, Chore("latency of each session", FRAME_RATE_HZ, self._measure_frames)] if latency else chores

    def _tick(self) -> None:
        stage_ms = dict(STAGE_MS)
        self._tally.tick(self._sessions, stage_ms, overrun=False)
        self._engine.tick_finished(TickReport(time.monotonic(), self._sessions, stage_ms, overrun=False))

    def _count_frames(self) -> None:
        for _ in range(self._sessions):
            for traffic in self._traffic:
                traffic.add(MESSAGE_BYTES, FRAME_S)

    def _come_and_go(self) -> None:
        self._gateway.granted(0.01)
        self._gateway.shook_hands(0.02)
        self._meter.ended("client")
        self._tally.ended["closed"] += 1
        lease = Lease(Slot(0), Generation(0))
        self._engine.session_ended(SessionReport(lease, SESSION_S, 1_500, 1_500, {}, 0, None))

    def _beat(self) -> None:
        self._engine.show(self._stats(), RETURNS, healthy=True, late=False, resident_bytes=resident_bytes())
        self._gateway.show(self._meter)
        for number in range(TENANTS):
            self._spoken_s[f"tenant-{number}"] += self._sessions * HEARTBEAT_S / TENANTS
        pool = PoolStatus("moshi", 1, 1, self._sessions, self._sessions, 0, SESSION_S)
        self._admission.show([pool], self._spoken_s)

    def _measure_frames(self) -> None:
        self._frame += 1
        for latency in self._latencies:
            latency.heard()
            latency.sent(self._frame)
            latency.answered(Output(Key(0, 0), self._frame, self._frame, 0, 0.0, 0.01, 0.05, CODES, None))()
            latency.report()

    def _stats(self) -> EngineStats:
        recent, tally, many = self._tally.recent(), self._tally, self._sessions
        return EngineStats(
            slots=many,
            free=0,
            leased=0,
            live=many,
            priming=0,
            parked=0,
            rows=many,
            rows_free=0,
            draining=False,
            healthy=True,
            pending_frames=0,
            ticks=tally.ticks,
            steps=tally.steps,
            overruns=0,
            underruns=0,
            stale_frames=0,
            dropped_frames={},
            ended=dict(tally.ended),
            expired=0,
            stage_ms=recent.percentiles(),
            rows_per_tick=recent.rows_per_tick(),
            primed_steps=0,
            runner={},
        )


def pace(chores: Sequence[Chore], seconds: float) -> None:
    """Do each chore at its rate, on time, for so long."""
    began_s = time.monotonic()
    due = [(began_s + 1 / chore.rate_hz, number) for number, chore in enumerate(chores)]
    heapq.heapify(due)
    while due[0][0] < began_s + seconds:
        at_s, number = due[0]
        time.sleep(max(0.0, at_s - time.monotonic()))
        chores[number].work()
        heapq.heapreplace(due, (at_s + 1 / chores[number].rate_hz, number))


def timed(chores: Sequence[Chore], seconds: float, ray: Descendants) -> tuple[float, float]:
    """CPU of the chores at their pace, in seconds a second: of this process, and of Ray's."""
    ray.look()
    own_s, others_s, began_s = time.process_time(), _cpu_s(ray.left()), time.monotonic()
    pace(chores, seconds)
    spent_s = time.monotonic() - began_s
    return (time.process_time() - own_s) / spent_s, (_cpu_s(ray.left()) - others_s) / spent_s


def alone_us(work: Work) -> float:
    """CPU of this thread for one record, in microseconds, without a pause between them."""
    began_s = time.thread_time()
    for _ in range(ALONE):
        work()
    return 1e6 * (time.thread_time() - began_s) / ALONE


def _cpu_s(processes: Sequence[int]) -> float:
    """User and system time of processes; of those that are gone, none."""
    ticks = 0
    for process in processes:
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _nothing() -> None:
    pass


def measure(sessions: int, seconds: float, ticks_hz: float, latency: bool) -> dict[str, object]:
    """The whole measurement, on a Ray that runs."""
    chores = Rig(sessions).chores(ticks_hz, latency)
    ray = Descendants(os.getpid())
    for chore in chores:
        chore.work()  # Ray makes its instruments at their first use
    time.sleep(SETTLE_S)
    idle, ray_idle = timed([dataclasses.replace(chore, work=_nothing) for chore in chores], seconds, ray)
    busy, ray_busy = timed(chores, seconds, ray)
    alone = {chore.name: alone_us(chore.work) for chore in chores}
    return {
        "sessions": sessions,
        "ticks_a_second": ticks_hz,
        "seconds": seconds,
        "latency_asked_by_all": latency,
        "core_share": round(busy - idle, 5),
        "core_share_reckoned": round(sum(chore.rate_hz * alone[chore.name] / 1e6 for chore in chores), 5),
        "target": TARGET,
        "core_share_of_the_empty_loop": round(idle, 5),
        "core_share_of_rays_processes_before": round(ray_idle, 5),
        "core_share_of_rays_processes_during": round(ray_busy, 5),
        "one_alone_us": {name: round(spent_us, 2) for name, spent_us in alone.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.metrics_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each of the two runs")
    parser.add_argument("--ticks", type=float, default=FRAME_RATE_HZ, help="of the engine, a second (%(default)s)")
    parser.add_argument("--latency", action="store_true", help="every session has asked for its latency")
    parser.add_argument("--json", action="store_true", help="one object, for programs")
    options = parser.parse_args(arguments)

    import ray

    ray.init(address="local", include_dashboard=False, num_cpus=1, logging_level=logging.ERROR)
    try:
        found = measure(options.sessions, options.seconds, options.ticks, options.latency)
    finally:
        ray.shutdown()
    print(json.dumps(found) if options.json else "\n".join(f"{name:38} {value}" for name, value in found.items()))
    return 0 if within_target(found) else 1


def within_target(found: Mapping[str, object]) -> bool:
    """Whether both shares are within the target."""
    shares = [found[name] for name in ("core_share", "core_share_reckoned")]
    return all(isinstance(share, float) and share <= TARGET for share in shares)


if __name__ == "__main__":
    raise SystemExit(main())
