"""Time and chance that tests hold in their hands."""

import itertools
from collections.abc import Callable


class Clock:
    """Seconds that pass when a test says so; backwards too."""

    def __init__(self, now_s: float = 1_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def counted_bytes() -> Callable[[int], bytes]:
    """Bytes that never repeat and are the same in every run."""
    numbers = itertools.count(1)
    return lambda count: next(numbers).to_bytes(count, "big")
