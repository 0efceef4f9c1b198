"""How many conversations share a memory of pages, when some are short and some are long.

Each conversation's length is lognormal. At any moment one that runs has made as many steps as it is old, and holds no
more than the context. The sum over many is close to normal, so the memory that they need is exceeded with a chance that
can be stated beforehand.
"""

import dataclasses
import math
from typing import Final

from serve_app.units import FRAME_S

MEAN_S: Final = 180.0
SIGMA: Final = 0.8
"""Spread of the logarithm. With it a conversation holds 1,528 of 3,000 steps on average."""
OVERFLOW_DEVIATIONS: Final = 4.265
"""A normal variable is this far above its mean once in 100,000."""


@dataclasses.dataclass(frozen=True, slots=True)
class Holding:
    """Steps that a conversation holds at some moment: mean and standard deviation."""

    mean_steps: float
    deviation_steps: float


def holding(context: int, *, mean_s: float = MEAN_S, sigma: float = SIGMA) -> Holding:
    """What a conversation holds which is looked at while it runs.

    How old it is has the density S(a) / mean, where S(a) is the share of conversations longer than a.
    """
    mean_steps = mean_s / FRAME_S
    mu = math.log(mean_steps) - sigma * sigma / 2
    first = second = covered = 0.0
    stride = context / 3_000
    for index in range(3_000):
        age = (index + 0.5) * stride
        density = 0.5 * math.erfc((math.log(age) - mu) / (sigma * math.sqrt(2))) / mean_steps * stride
        first += density * age
        second += density * age * age
        covered += density
    first += (1 - covered) * context
    second += (1 - covered) * context * context
    return Holding(first, math.sqrt(max(second - first * first, 0.0)))


def most_sessions(room_bytes: int, slot_bytes: int, page_bytes: int, page_steps: int, context: int) -> tuple[int, int]:
    """Conversations that fit in ``room_bytes`` but once in 100,000 moments, and pages that are left for them.

    Args:
        slot_bytes: of one slot besides its keys and values.
    """
    held = holding(context)
    mean_pages = min(held.mean_steps + page_steps / 2, context) / page_steps
    most = 0
    while True:
        sessions = most + 1
        spread = OVERFLOW_DEVIATIONS * held.deviation_steps / page_steps * math.sqrt(sessions)
        pages = min(sessions * mean_pages + spread, sessions * math.ceil(context / page_steps))
        # The scratch row has no page of its own, but two pages belong to nobody.
        if (sessions + 1) * slot_bytes + (math.ceil(pages) + 2) * page_bytes > room_bytes:
            left = room_bytes - (most + 1) * slot_bytes
            return most, max(left // page_bytes - 2, 0)
        most = sessions
