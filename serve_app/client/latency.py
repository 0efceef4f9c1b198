"""Where the time of a session's frames went, as its server tells a client that asked."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Final

PARTS: Final = ("receive", "link", "wait", "tick", "send", "total")
ASKING: Final = "latency=1"


@dataclasses.dataclass(slots=True)
class Latencies:
    """What came so far: one report a second. A server may say anything: what is no such report is passed over.

    Attributes:
        p50_ms, max_ms: by part, one value a report.
    """

    p50_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    max_ms: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def add(self, value: object) -> None:
        """Take a piece of metadata."""
        match value:
            case {"type": "latency", "ms": Mapping() as parts}:
                for part in PARTS:
                    self._add(part, parts.get(part))

    def words(self) -> Sequence[str]:
        """One line for people; none where there was no report."""
        told = [
            f"{part} {statistics.median(self.p50_ms[part]):.1f} / {max(self.max_ms[part]):.1f}"
            for part in PARTS
            if part in self.p50_ms
        ]
        return [f"at the server, ms in the middle / at most: {', '.join(told)}"] if told else []

    def _add(self, part: str, told: object) -> None:
        match told:
            case {"p50": float() | int() as middle, "max": float() | int() as most} if _finite(middle, most):
                self.p50_ms.setdefault(part, []).append(float(middle))
                self.max_ms.setdefault(part, []).append(float(most))


def asking_for_latency(url: str) -> str:
    """The address of a chat with the wish to be told."""
    return f"{url}{'&' if '?' in url else '?'}{ASKING}"


def _finite(*values: float) -> bool:
    try:
        return all(math.isfinite(value) for value in values)
    except OverflowError:  # JSON's whole numbers have no end
        return False
