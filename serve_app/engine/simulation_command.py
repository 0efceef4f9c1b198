"""``serve_app simulate``: latencies of the engine's schedule and of metronomes, without a model or a clock."""

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from typing import Final

from serve_app.engine.limits import Pace
from serve_app.engine.schedule import Crowd, Schedule
from serve_app.engine.simulation import Outcome, Scenario, VirtualEngine, simulate
from serve_app.units import FRAME_S

SESSIONS: Final = (16, 32, 64, 96, 128)
PHASES: Final = (1, 2, 4)


class Metronome:
    """What the schedule is compared with: a tick at fixed times, whoever is there, and a second one for who is behind.

    Args:
        period_s: from tick to tick.
    """

    def __init__(self, period_s: float) -> None:
        self._period_s = period_s
        self._next_s = 0.0
        self._owed = False

    def start_s(self, crowd: Crowd, now_s: float) -> float:
        """The next beat; at once for the frames that the last one left."""
        if self._owed and crowd.ready:
            return now_s
        self._owed = now_s >= self._next_s and crowd.behind
        return self._next_s

    def ticked(self, rows: int, started_s: float) -> None:
        """On to the first beat that is not over."""
        if started_s >= self._next_s:
            self._next_s = self._period_s * (math.floor(started_s / self._period_s + 1e-9) + 1)
        else:
            self._owed = False


def rolling(scenario: Scenario, pace: Pace) -> Outcome:
    """The engine's own schedule."""
    engine = VirtualEngine(scenario)
    return simulate(scenario, Schedule(pace, engine.step_times), engine)


def metronome(scenario: Scenario, phases: int) -> Outcome:
    """So many beats in 80 ms; a session's frame is taken by the next."""
    return simulate(scenario, Metronome(FRAME_S / phases), VirtualEngine(scenario, patient=True))


def main(argv: Sequence[str] | None = None, write: Callable[[str], object] = sys.stdout.write) -> int:
    """The command; the last line is JSON."""
    options = _parser().parse_args(argv)
    pace = Pace(fixed_share=options.fixed_share, interval_s=options.interval_ms / 1_000)
    outcomes: list[tuple[str, Outcome]] = []
    write(f"{'policy':<20}{'sessions':>9}{'mean':>8}{'p99':>8}{'max ms':>8}{'rows':>7}{'busy':>7}\n")
    for sessions in options.sessions:
        scenario = Scenario(
            sessions=sessions,
            seconds=options.seconds,
            jitter_s=options.jitter_ms / 1_000,
            drift_ppm=options.drift_ppm,
            mean_thousand_steps=options.steps / 1_000,
            spread_s=options.spread_ms / 1_000,
            prompts=options.prompts,
            seed=options.seed,
        )
        runs = [("rolling", rolling(scenario, pace))]
        if options.metronomes:
            runs += [(f"metronome, {phases} x", metronome(scenario, phases)) for phases in PHASES]
        for name, run in runs:
            write(
                f"{name:<20}{run.sessions:>9}{run.mean_ms:>8.1f}{run.p99_ms:>8.1f}{run.max_ms:>8.1f}"
                f"{run.rows_per_tick:>7.1f}{run.busy:>7.2f}\n"
            )
        outcomes += runs
    write(json.dumps([{"policy": name, **dataclasses.asdict(run)} for name, run in outcomes]) + "\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app simulate", description=__doc__)
    default = Scenario()
    parser.add_argument("--sessions", type=int, nargs="+", default=list(SESSIONS))
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--jitter-ms", type=float, default=1_000 * default.jitter_s, help="of frames' arrivals")
    parser.add_argument("--drift-ppm", type=float, default=default.drift_ppm, help="of clients' clocks, at most")
    parser.add_argument("--steps", type=float, default=1_000 * default.mean_thousand_steps, help="mean L")
    parser.add_argument("--spread-ms", type=float, default=1_000 * default.spread_s, help="0: all begin at once")
    parser.add_argument("--prompts", action="store_true", help="somebody's prompt is being fed all the time")
    parser.add_argument("--fixed-share", type=float, default=Pace().fixed_share, help="see `Pace`")
    parser.add_argument("--interval-ms", type=float, default=0.0, help="least time from tick to tick")
    parser.add_argument("--metronomes", action="store_true", help="what it is compared with, too")
    parser.add_argument("--seed", type=int, default=default.seed)
    return parser
