"""Whether an engine keeps its 80 ms: one that misses them takes no new sessions until it has recovered."""

import dataclasses
from typing import Final


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineRules:
    """When an engine is closed and opened again; apart, so that it does not flap.

    Attributes:
        close_share: of the ticks of a report that overran; more closes the engine.
        open_share: at most this share counts as a good report.
        good_reports: in a row that open it again.
        min_overruns: fewer in a report are an accident: one conversation makes twelve ticks in a second, and one that
            the machine held up is a twelfth of them.
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

    __slots__ = ("_good_reports", "_overruns", "_rules", "_ticks", "kept")

    def __init__(self, rules: DeadlineRules = RULES) -> None:
        self._rules = rules
        self._ticks = self._overruns = self._good_reports = 0
        self.kept = True
        """Whether it may take new sessions."""

    def report(self, ticks: int, overruns: int) -> None:
        """Take the counts of now. An engine without ticks keeps every deadline; counts that shrink begin anew."""
        new_ticks, new_overruns = ticks - self._ticks, overruns - self._overruns
        if new_ticks < 0 or new_overruns < 0:
            new_ticks, new_overruns = ticks, overruns
        self._ticks, self._overruns = ticks, overruns
        share = new_overruns / new_ticks if new_ticks else 0.0
        if self._bad(new_ticks, new_overruns, share):
            self.kept, self._good_reports = False, 0
        elif share > self._rules.open_share:
            self._good_reports = 0
        else:
            self._good_reports += 1
            self.kept = self.kept or self._good_reports >= self._rules.good_reports

    def _bad(self, ticks: int, overruns: int, share: float) -> bool:
        if ticks < self._rules.min_ticks:
            return 2 * overruns > ticks
        return share > self._rules.close_share and overruns >= self._rules.min_overruns
