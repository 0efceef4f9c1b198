"""How many steps of a prompt may be fed in one turn, so that those who converse hardly notice."""

from typing import Final

MEMORY: Final = 0.2
"""Weight of the newest tick in the mean of their times."""


class PrimingPace:
    """Keeps the time that prompts take within a share of the tick's. Engine thread.

    A few steps cost almost as much as one, because the weights are read once, so that the number follows what the last
    ones took instead of a price per step; it at most doubles or halves at once. Where even the fewest take more than
    the share, as on a GPU, where they cost the reading of all weights, they are fed in some turns only: what was taken
    too much is paid back by the ticks that follow.

    Args:
        share: of the mean tick, while somebody converses.
        alone_s: while nobody does.
        steps: the fewest and the most at once.
    """

    def __init__(self, share: float, alone_s: float, steps: tuple[int, int]) -> None:
        self._share, self._alone_s = share, alone_s
        self._least, self._most = steps
        self._steps = self._least
        self._tick_s: float | None = None
        self._credit_s = 0.0  # of prompts; at most one tick's share, and at least what the last steps took

    def ticked(self, spent_s: float) -> None:
        """A tick of rows took so long."""
        before_s = self._tick_s if self._tick_s is not None else spent_s
        self._tick_s = before_s + MEMORY * (spent_s - before_s)
        granted_s = self._share * spent_s
        self._credit_s = min(self._credit_s + granted_s, granted_s)

    @property
    def due(self) -> bool:
        """Whether prompts may be fed in a turn that has stepped somebody; in others they always may."""
        return self._credit_s >= 0

    def steps(self) -> int:
        """How many to feed now."""
        return self._steps

    def primed(self, steps: int, spent_s: float, *, alone: bool) -> None:
        """So many steps took so long; ``alone``: nobody converses."""
        budget_s = self._alone_s if alone or self._tick_s is None else self._share * self._tick_s
        self._credit_s = 0.0 if alone else max(self._credit_s - spent_s, -spent_s)
        fitting = int(steps * budget_s / max(spent_s, 1e-9))
        bounded = min(max(fitting, self._steps // 2), 2 * self._steps)
        self._steps = min(max(bounded, self._least), self._most)
