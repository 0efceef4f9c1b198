"""Whether an engine keeps its 80 ms: one that misses them takes no new sessions until it has recovered."""

import collections
import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineRules:
    """When an engine is closed and opened again; apart, so that it does not flap.

    Attributes:
        close_share: of the ticks of a report that overran; more closes the engine.
        open_share: at most this share of the ticks of ``good_reports`` together opens it again.
        good_reports: in a row, none of which would have closed it.
        min_overruns: fewer are an accident, in one report and in those that open it together: one conversation makes
            twelve ticks in a second, and one that the machine held up is a twelfth of them.
        min_ticks: of fewer in a report more than half must have overrun: the slower the ticks, the fewer there are.
    """

    close_share: float = 0.05
    open_share: float = 0.01
    good_reports: int = 5
    min_overruns: int = 2
    min_ticks: int = 5


RULES: Final = DeadlineRules()


class Deadlines:
    """One engine's record. Engines count ticks and overruns since they started."""

    __slots__ = ("_good", "_overruns", "_rules", "_ticks", "kept")

    def __init__(self, rules: DeadlineRules = RULES) -> None:
        self._rules = rules
        self._ticks = self._overruns = 0
        self._good: collections.deque[tuple[int, int]] = collections.deque(maxlen=rules.good_reports)
        self.kept = True
        """Whether it may take new sessions."""

    def report(self, ticks: int, overruns: int) -> None:
        """Take the counts of now. An engine without ticks keeps every deadline; counts that shrink begin anew."""
        new_ticks, new_overruns = ticks - self._ticks, overruns - self._overruns
        if new_ticks < 0 or new_overruns < 0:
            new_ticks, new_overruns = ticks, overruns
        self._ticks, self._overruns = ticks, overruns
        if self._bad(new_ticks, new_overruns):
            self.kept = False
            self._good.clear()
        else:
            self._good.append((new_ticks, new_overruns))
            self.kept = self.kept or self._recovered()

    def _bad(self, ticks: int, overruns: int) -> bool:
        if ticks < self._rules.min_ticks:
            return 2 * overruns > ticks
        return overruns >= self._rules.min_overruns and overruns > self._rules.close_share * ticks

    def _recovered(self) -> bool:
        ticks, overruns = (sum(counts) for counts in zip(*self._good, strict=True))
        few = overruns < self._rules.min_overruns or overruns <= self._rules.open_share * ticks
        return few and len(self._good) == self._rules.good_reports
