"""Who comes when and stays how long: Poisson arrivals, flat or with the shape of a day; lognormal lengths."""

import dataclasses
import math
import random
from collections.abc import Iterator
from typing import Final

from serve_app.admission.tenants import Tenant

DAY_S: Final = 86_400.0
EVENING_S: Final = 20 * 3_600.0
"""When a day is at its height."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callers:
    """One tenant's callers.

    Attributes:
        erlangs: mean sessions at a time if nobody were refused: arrivals a second by mean length.
        mean_s: of a session; sigma: of its logarithm, 0 is a fixed length. Lognormal is how phone calls were measured.
        swing: of the day: 0 is flat, 0.8 swings between 0.2 and 1.8 times the mean.
        patience_s: a caller leaves the queue after this; infinite waits for ever.
        guided: share of sessions that need two rows.
    """

    tenant: Tenant
    erlangs: float
    mean_s: float = 300.0
    sigma: float = 1.0
    swing: float = 0.0
    patience_s: float = math.inf
    guided: float = 0.0

    def rate(self, now_s: float) -> float:
        """Arrivals a second."""
        shape = 1.0 + self.swing * math.cos(2 * math.pi * (now_s - EVENING_S) / DAY_S)
        return self.erlangs / self.mean_s * shape

    def times(self, chance: random.Random) -> Iterator[float]:
        """When they come, for ever. Thinning: drawn at the highest rate, kept at the rate of the moment."""
        now_s, highest = 0.0, self.erlangs / self.mean_s * (1.0 + self.swing)
        while True:
            now_s += chance.expovariate(highest)
            if not self.swing or chance.random() * highest < self.rate(now_s):
                yield now_s

    def length_s(self, chance: random.Random) -> float:
        """How long one stays once it is let in."""
        if not self.sigma:
            return self.mean_s
        return chance.lognormvariate(math.log(self.mean_s) - self.sigma**2 / 2, self.sigma)
