"""How many steps each conversation of a batch already holds: L, which attention pays for."""

import dataclasses
from collections.abc import Sequence
from typing import Final

from serve_app.errors import ConfigError

MIXED: Final = "mixed"
HALF: Final = "half"
SHORT_SHARE: Final = 0.1
"""Of the context: what the short half of a half-and-half batch holds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lengths:
    """One column of the table.

    Attributes:
        label: as it was asked for: steps (``1528``), a share of the context (``0.1``), ``mixed`` or ``half``.
    """

    label: str

    def of(self, rows: int, context: int) -> tuple[int, ...]:
        """Steps of every row, each at least 1: a conversation that holds nothing is primed, not measured."""
        if self.label == MIXED:  # evenly spread over the context; the mean is its half
            steps = [round(context * (row + 0.5) / rows) for row in range(rows)]
        elif self.label == HALF:  # rows of both kinds in turn
            steps = [context if row % 2 else round(SHORT_SHARE * context) for row in range(rows)]
        else:
            steps = [round(float(self.label) * context) if "." in self.label else int(self.label)] * rows
        return tuple(max(step, 1) for step in steps)


def parse_lengths(text: str) -> tuple[Lengths, ...]:
    """Read ``0.1,1528,mixed``.

    Raises:
        ConfigError: names what cannot be read.
    """
    return tuple(_one(word.strip()) for word in text.split(","))


def parse_rows(text: str) -> tuple[int, ...]:
    """Read ``1,8,16``.

    Raises:
        ConfigError: names what cannot be read.
    """
    try:
        rows = tuple(int(word) for word in text.split(","))
    except ValueError:
        raise ConfigError("--rows", f"{text!r}: write numbers with commas between") from None
    if min(rows) < 1:
        raise ConfigError("--rows", f"{min(rows)}: at least 1")
    return rows


def mean(steps: Sequence[int]) -> float:
    """Mean number of steps."""
    return sum(steps) / len(steps)


def _one(word: str) -> Lengths:
    if word not in (MIXED, HALF):
        try:
            value = float(word)
        except ValueError:
            raise ConfigError("--lengths", f"{word!r}: write steps, a share such as 0.5, mixed or half") from None
        if not 0 < value < 1e6:
            raise ConfigError("--lengths", f"{word}: must be positive")
        if "." not in word and not word.isdigit():
            raise ConfigError("--lengths", f"{word!r}: write steps without an exponent")
    return Lengths(word)
