"""Erlang's B formula: what a simulation without a queue must agree with.

Source: A. K. Erlang, "Solution of some problems in the theory of probabilities of significance in automatic telephone
exchanges" (1917); the recurrence is the usual one, stable for any size.
"""

from typing import Final

TOLERANCE: Final = 1e-9


def blocking(slots: int, erlangs: float) -> float:
    """Share of callers that find all slots taken, whatever the distribution of their lengths."""
    share = 1.0
    for count in range(1, slots + 1):
        share = erlangs * share / (count + erlangs * share)
    return share


def load_at(slots: int, share: float) -> float:
    """Erlangs at which this share of callers is blocked; 0 < share < 1."""
    low, high = 0.0, slots / (1.0 - share) + 1.0
    while high - low > TOLERANCE * high:
        middle = (low + high) / 2
        low, high = (middle, high) if blocking(slots, middle) < share else (low, middle)
    return low
