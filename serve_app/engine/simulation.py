"""The engine's schedule under a virtual clock: the same policy and the same turn, frames and step times made up.

Step times are those of a model on a GPU by its roofline: a fixed part that reads the weights, and a part for each row
that reads its keys and values. Deterministic by seed.
"""

import collections
import dataclasses
import random
from collections.abc import Iterator
from typing import Final

from serve_app.engine.limits import Limits
from serve_app.engine.pace import PrimingPace
from serve_app.engine.schedule import Crowd, StepTimes, Timetable, turn
from serve_app.units import FRAME_S

CLIP: Final = 3.0
"""Jitter beyond so many deviations does not occur."""
WARM_S: Final = 2.0
"""Frames before are not counted: the step times are still being learnt."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a tick takes: ``(weights + rows (keys L + codec)) / efficiency`` milliseconds, L in thousands of steps.

    The defaults are Moshi 7B in bf16 on an H100 at 70% of its roofline.
    """

    weights_ms: float = 4.97
    keys_ms: float = 0.175
    codec_ms: float = 0.009
    efficiency: float = 0.7

    @property
    def fixed_s(self) -> float:
        """Before the first row."""
        return self.weights_ms / self.efficiency / 1_000

    def row_s(self, thousand_steps: float) -> float:
        """For one row of a conversation of that length."""
        return (self.keys_ms * thousand_steps + self.codec_ms) / self.efficiency / 1_000


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Who talks, and how evenly.

    Attributes:
        sessions: at once, all the time.
        seconds: of frames.
        jitter_s: deviation of a frame's arrival from its client's clock, normal, clipped at three times this.
        drift_ppm: a client's clock is off by up to this.
        mean_thousand_steps: of the conversations' lengths, which are spread evenly from 0 to twice this.
        spread_s: clients begin evenly at random within this.
        cost: of a tick.
        prompts: whether somebody's prompt is being fed all the time.
        seed: of everything that is random.
    """

    sessions: int = 64
    seconds: float = 60.0
    jitter_s: float = 0.006
    drift_ppm: float = 100.0
    mean_thousand_steps: float = 1.5
    spread_s: float = FRAME_S
    cost: StepCost = dataclasses.field(default_factory=StepCost)
    prompts: bool = False
    seed: int = 1

    def arrivals(self) -> list[tuple[float, int]]:
        """When which session's next frame is complete, in order."""
        return sorted(
            arrival for session in range(self.sessions) for arrival in self._frames_of(session) if arrival[0] >= 0
        )

    def thousand_steps(self) -> list[float]:
        """Lengths of the conversations; their mean is exact."""
        if self.sessions == 1:
            return [self.mean_thousand_steps]
        return [2 * self.mean_thousand_steps * index / (self.sessions - 1) for index in range(self.sessions)]

    def _frames_of(self, session: int) -> Iterator[tuple[float, int]]:
        chance = random.Random(self.seed * 1_000_003 + session)
        begin_s = chance.uniform(0, self.spread_s)
        frame_s = FRAME_S * (1 + chance.uniform(-self.drift_ppm, self.drift_ppm) / 1e6)
        last_s = 0.0
        for number in range(int(self.seconds / FRAME_S)):
            late_s = max(-CLIP * self.jitter_s, min(CLIP * self.jitter_s, chance.gauss(0, self.jitter_s)))
            last_s = max(last_s, begin_s + number * frame_s + late_s)  # a later frame does not overtake
            yield last_s, session


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Milliseconds from a frame's arrival to its audio, and what it took.

    Attributes:
        frames: that were counted.
        rows_per_tick: mean.
        busy: share of the time in ticks.
        fixed_ms, per_row_ms: what the schedule's step times had learnt in the end.
        prompt_steps: fed in each second.
    """

    sessions: int
    frames: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    rows_per_tick: float
    busy: float
    fixed_ms: float
    per_row_ms: float
    prompt_steps: float


class VirtualEngine:
    """Steps rows by passing time. It is turned exactly as the engine is.

    Args:
        patient: waits for others until the time is over, whoever is there: for metronomes.
    """

    def __init__(self, scenario: Scenario, *, patient: bool = False) -> None:
        limits = Limits()
        self._patient = patient
        self.now_s = 0.0
        self.step_times = StepTimes()
        self.busy_s = 0.0
        self.prompt_steps = 0
        self.rows_of_ticks: list[int] = []
        self.waits: list[tuple[float, float]] = []  # arrival, and from there to audio
        self._scenario = scenario
        self._to_come = collections.deque(scenario.arrivals())
        self._row_s = [scenario.cost.row_s(length) for length in scenario.thousand_steps()]
        self._inboxes: list[collections.deque[float]] = [collections.deque() for _ in range(scenario.sessions)]
        self._ready: dict[int, None] = {}
        self._behind = 0
        self._priming = PrimingPace(limits.prime_share, limits.prime_alone_s, limits.prime_steps)

    def clock(self) -> float:
        """The virtual time."""
        return self.now_s

    @property
    def finished(self) -> bool:
        """Whether every frame was stepped."""
        return not self._to_come and not self._ready

    def crowd(self) -> Crowd:
        """Who is there now."""
        return Crowd(
            live=self._scenario.sessions,
            ready=len(self._ready),
            behind=self._behind > 0,
            chores=self._scenario.prompts,
        )

    def wait_for_work(self, timeout_s: float) -> bool:
        """Let time pass until a frame comes."""
        self._pass(self._next_s(self.now_s + timeout_s))
        return bool(self._ready)

    def wait_for_others(self, timeout_s: float) -> None:
        """Let time pass until everybody is there or somebody is behind."""
        until_s = self.now_s + timeout_s
        while self.now_s < until_s and (self._patient or not self.crowd().hurried):
            self._pass(self._next_s(until_s))

    def tick(self) -> int:
        """Step a frame of everybody who has one; time passes as a model would take it. Then some prompt."""
        rows = list(self._ready)
        taken = [self._take(session) for session in rows]
        if rows:
            spent_s = self._scenario.cost.fixed_s + sum(self._row_s[session] for session in rows)
            self._work(spent_s)
            self.waits += [(arrived_s, self.now_s - arrived_s) for arrived_s in taken]
            self.step_times.add(len(rows), spent_s)
            self._priming.ticked(spent_s)
            self.rows_of_ticks.append(len(rows))
        if self._scenario.prompts and (not rows or self._priming.due):
            self._prime()
        return len(rows)

    def _prime(self) -> None:
        steps = self._priming.steps()
        spent_s = self._scenario.cost.fixed_s + steps * self._scenario.cost.row_s(self._scenario.mean_thousand_steps)
        self._work(spent_s)
        self._priming.primed(steps, spent_s, alone=False)
        self.prompt_steps += steps

    def _take(self, session: int) -> float:
        inbox = self._inboxes[session]
        self._behind -= len(inbox) == 2
        if len(inbox) == 1:
            del self._ready[session]
        return inbox.popleft()

    def _work(self, spent_s: float) -> None:
        self.busy_s += spent_s
        self._pass(self.now_s + spent_s)

    def _next_s(self, limit_s: float) -> float:
        return min(limit_s, self._to_come[0][0]) if self._to_come else limit_s

    def _pass(self, until_s: float) -> None:
        """Time goes on; frames come meanwhile."""
        while self._to_come and self._to_come[0][0] <= until_s:
            arrived_s, session = self._to_come.popleft()
            self._inboxes[session].append(arrived_s)
            self._ready[session] = None
            self._behind += len(self._inboxes[session]) == 2
        self.now_s = until_s


def simulate(scenario: Scenario, schedule: Timetable, engine: VirtualEngine) -> Outcome:
    """Turn the engine until everything was said."""
    while not engine.finished:
        turn(engine, schedule)
    waits_s = sorted(wait_s for arrived_s, wait_s in engine.waits if arrived_s >= WARM_S)
    ticks = len(engine.rows_of_ticks)
    return Outcome(
        sessions=scenario.sessions,
        frames=len(waits_s),
        mean_ms=1_000 * sum(waits_s) / len(waits_s),
        p50_ms=1_000 * waits_s[len(waits_s) // 2],
        p99_ms=1_000 * waits_s[int(0.99 * len(waits_s))],
        max_ms=1_000 * waits_s[-1],
        rows_per_tick=sum(engine.rows_of_ticks) / ticks,
        busy=engine.busy_s / engine.now_s,
        fixed_ms=1_000 * engine.step_times.fixed_s,
        per_row_ms=1_000 * engine.step_times.per_row_s,
        prompt_steps=engine.prompt_steps / engine.now_s,
    )
