"""Latency, callers and refusals over time, from the accounts of a run. Seconds are since the shared start."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from load_tests.account import Account, common_delay, without_nan
from load_tests.shapes import Window
from serve_app.client.round_trip import percentile

MOMENTS: Final = 120
"""A run is cut into about so many; none is shorter than a second."""


@dataclasses.dataclass(frozen=True, slots=True)
class Moment:
    """What happened from ``begin_s`` on; latencies are those of frames that were sent then."""

    begin_s: float
    speaking: int
    opened: int
    refused: int
    frames: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    late_max_ms: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {name: without_nan(value) for name, value in dataclasses.asdict(self).items()}


def moments(accounts: Sequence[Account], seconds: float) -> list[Moment]:
    """The run, cut into equal pieces."""
    length_s = max(1.0, math.ceil(seconds / MOMENTS))
    trips: dict[int, list[float]] = collections.defaultdict(list)
    late: dict[int, list[float]] = collections.defaultdict(list)
    speaking: collections.Counter[int] = collections.Counter()
    opened: collections.Counter[int] = collections.Counter()
    refused: collections.Counter[int] = collections.Counter()
    for account in accounts:
        if not math.isnan(account.tried_s):
            (refused if account.refusal else opened)[int(account.tried_s // length_s)] += 1
        for sent_s, late_s in zip(account.trips.sent_s, account.late_s, strict=False):
            late[int(sent_s // length_s)].append(1_000 * late_s)
        speaking.update({int(sent_s // length_s) for sent_s in account.trips.sent_s})
    for sent_s, trip_ms in answered(accounts):
        trips[int(sent_s // length_s)].append(trip_ms)
    return [
        Moment(
            begin_s=piece * length_s,
            speaking=speaking[piece],
            opened=opened[piece],
            refused=refused[piece],
            frames=len(late[piece]),
            p50_ms=percentile(trips[piece], 0.5),
            p99_ms=percentile(trips[piece], 0.99),
            max_ms=max(trips[piece], default=math.nan),
            late_max_ms=max(late[piece], default=math.nan),
        )
        for piece in sorted({*trips, *late, *opened, *refused})
    ]


def answered(accounts: Iterable[Account]) -> list[tuple[float, float]]:
    """Of every frame that was answered: when it was sent, and its latency in milliseconds."""
    opened = [account for account in accounts if not account.refusal]
    delay = common_delay(opened)
    return [
        (account.trips.sent_s[delay + index], 1_000 * trip_s)
        for account in opened
        for index, trip_s in enumerate(account.trips.all_s(delay))
    ]


def by_window(accounts: Iterable[Account], windows: Sequence[Window]) -> dict[str, list[float]]:
    """Latencies of frames by the name of the window in which they were sent; callers that knock are not among them."""
    found: dict[str, list[float]] = {window.name: [] for window in windows}
    for sent_s, trip_ms in answered(account for account in accounts if not account.knocked):
        for window in windows:
            if window.begin_s <= sent_s < window.end_s:
                found[window.name].append(trip_ms)
    return found
