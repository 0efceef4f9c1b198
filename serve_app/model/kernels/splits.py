"""How work is cut into launches and programs, from shapes alone: fixed in a graph, and known without triton."""

from typing import Final

MAX_SPLITS: Final = 32
PROCESSORS: Final = 132
"""Where no GPU says otherwise: an H100's."""
_TOKENS_PER_SPLIT: Final = 128
"""Fewer do not pay for the combining launch."""
_PROGRAMS_PER_PROCESSOR: Final = 4

ONE_LAUNCH_TOKENS: Final = 4096
"""Vocabularies up to this size are sampled in one launch, larger ones in two."""


def split_count(rows: int, kv_heads: int, tokens: int, processors: int = PROCESSORS) -> int:
    """Programs that share a row's keys of one head: a power of two.

    Args:
        tokens: the most that a row may hold (blocks of the table x page, or the capacity).
        processors: of the GPU.
    """
    wanted = -(-_PROGRAMS_PER_PROCESSOR * processors // max(1, rows * kv_heads))
    return min(power_of_two(wanted), MAX_SPLITS, max(1, power_of_two(tokens // _TOKENS_PER_SPLIT + 1) // 2))


def in_one(vocabulary: int) -> bool:
    """Whether one launch samples it."""
    return vocabulary <= ONE_LAUNCH_TOKENS


def power_of_two(count: int) -> int:
    """The smallest power of two that holds ``count``: blocks have no other sizes."""
    return 1 << max(0, count - 1).bit_length()
