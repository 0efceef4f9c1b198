"""A token bucket: how much a peer may have, sustained and at once. Time is a parameter."""


class Budget:
    """Fills at ``rate`` a second up to ``burst``, and starts full.

    Time that goes backwards adds nothing.
    """

    def __init__(self, rate: float, burst: float) -> None:
        assert rate >= 0
        assert burst > 0
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._seen_s: float | None = None

    def available(self, now_s: float) -> float:
        """What may be taken now."""
        if self._seen_s is not None and now_s > self._seen_s:
            self._level = min(self._burst, self._level + (now_s - self._seen_s) * self._rate)
        self._seen_s = now_s if self._seen_s is None else max(now_s, self._seen_s)
        return self._level

    def take(self, amount: float, now_s: float) -> bool:
        """Take all of ``amount`` or nothing; says whether it was there."""
        if amount > self.available(now_s):
            return False
        self._level -= amount
        return True
