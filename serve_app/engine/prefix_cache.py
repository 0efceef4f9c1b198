"""The states that prompts have left, so that a prompt that many sessions share is fed once."""

import collections
from collections.abc import Hashable, Mapping

from serve_app.model.snapshot import Snapshot

Rows = tuple[Snapshot, ...]
"""A session's slot, and its twin's under guidance."""


class PrefixCache:
    """Least recently used goes first. Engine thread; ``counters`` from any.

    Args:
        limit_bytes: of all states together; 0 keeps nothing. A state above it is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: collections.OrderedDict[Hashable, Rows] = collections.OrderedDict()
        self._size_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def find(self, prompt: Hashable, *, again: bool = False) -> Rows | None:
        """What the prompt left; ``again``: this session asked before, so that a miss is not counted twice."""
        found = self._kept.get(prompt)
        if found is None:
            self._misses += not again
            return None
        self._hits += 1
        self._misses -= again
        self._kept.move_to_end(prompt)
        return found

    def keep(self, prompt: Hashable, rows: Rows) -> None:
        """Keep what a prompt left."""
        size_bytes = _size(rows)
        if prompt in self._kept or size_bytes > self.limit_bytes:
            return
        while self._size_bytes + size_bytes > self.limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._size_bytes -= _size(oldest)
            self._evictions += 1
        self._kept[prompt] = rows
        self._size_bytes += size_bytes

    def counters(self) -> Mapping[str, int]:
        """For people."""
        return {
            "prefix_hits": self._hits,
            "prefix_misses": self._misses,
            "prefix_evictions": self._evictions,
            "prefix_entries": len(self._kept),
            "prefix_bytes": self._size_bytes,
        }


def _size(rows: Rows) -> int:
    return sum(row.size_bytes for row in rows)
