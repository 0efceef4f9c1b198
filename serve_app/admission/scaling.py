"""How many engines a model needs: for the seats that are taken, and for those who come while another engine starts.

A decision and no loop: whoever asks again and again brings the delays. Its laws: within bounds, never fewer seats than
are taken, and under a load that stays the same it answers the same from the second time on.
"""

import dataclasses
import math
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScalingRules:
    """Whoever reads them from outside checks the ranges first.

    Attributes:
        min_engines, max_engines: bounds.
        min_free: seats to keep free.
        tick_s: an engine is full where the curve of its ticks predicts more.
        slack: one engine fewer only if the others would do for so much more than is wanted, as a share: measured curves
            tremble, and a session more or less must not move engines.
    """

    min_engines: int = 1
    max_engines: int = 1
    min_free: int = 1
    tick_s: float = 0.064
    slack: float = 0.1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """One engine, as measured.

    Attributes:
        slots, used: seats, and those that nobody can get, because they are taken or their rows are.
        fixed_s, per_row_s: a straight line through its ticks, seconds over rows.
        late: it misses its deadlines with what it has, whatever the line says.
    """

    slots: int
    used: int
    fixed_s: float = 0.0
    per_row_s: float = 0.0
    late: bool = False

    def carries(self, tick_s: float) -> int:
        """Seats that it can fill while ticks stay within a time; at least one, else no number of engines would do."""
        seats = self.slots
        if self.fixed_s + self.per_row_s * seats > tick_s:
            seats = int((tick_s - self.fixed_s) / self.per_row_s) if self.per_row_s > 0 else 0
        if self.late:
            seats = min(seats, self.used)
        return max(seats, 1)


def engines_wanted(rules: ScalingRules, loads: Sequence[EngineLoad], engines: int, silent: int = 0) -> int:
    """How many engines there should be.

    Args:
        loads: of the engines that run and have said how they are.
        engines: how many there are to be now, those that start included.
        silent: engines that run and have not said how they are: until they have, none goes.
    """
    wanted = engines
    if loads:
        carried = sum(load.carries(rules.tick_s) for load in loads) / len(loads)
        needed = sum(load.used for load in loads) + rules.min_free
        fewest, comfortable = math.ceil(needed / carried), math.ceil(needed * (1 + rules.slack) / carried)
        if fewest > engines:
            wanted = fewest
        elif comfortable < engines and not silent:
            wanted = comfortable
    return min(max(wanted, rules.min_engines), rules.max_engines)
