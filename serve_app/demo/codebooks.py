"""Learning the codebooks: k-means to begin with, moving averages after, dead entries given a new life.

The codec's own quantiser only looks entries up; what moves them is here. Gradients pass the quantiser straight through.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

DECAY = 0.99
DEAD_SHARE = 0.05  # of the average use: below it an entry is dead and restarts on a vector that was heard
RECENT = 4_096  # vectors that a restart draws from


def nearest(x: Tensor, book: Tensor) -> Tensor:
    """Index of the entry of ``book`` (``[N, D]``) closest to each row of ``x`` (``[M, D]``)."""
    return (book.square().sum(1) - 2 * x @ book.T).argmin(1)


def k_means(x: Tensor, entries: int, rounds: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centroids ``[entries, D]`` of ``x`` (``[M, D]``) and how many vectors each holds; empty ones are redrawn."""
    pick = torch.randperm(len(x), generator=generator)
    book = x[pick[torch.arange(entries) % len(x)]].clone()
    counts = torch.ones(entries)
    for _ in range(rounds):
        index = nearest(x, book)
        counts = torch.bincount(index, minlength=entries).float()
        sums = torch.zeros_like(book).index_add_(0, index, x)
        fresh = x[torch.randint(len(x), (entries,), generator=generator)]
        book = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], fresh)
    return book, counts.clamp(min=1)


@dataclasses.dataclass
class Level:
    """One codebook while it learns: moving averages of how often an entry is used and of what it stood for."""

    usage: Tensor  # [N]
    total: Tensor  # [N, D]
    recent: Tensor  # [RECENT, D]

    @classmethod
    def fit(cls, x: Tensor, entries: int, rounds: int, generator: torch.Generator) -> "Level":
        book, counts = k_means(x, entries, rounds, generator)
        usage = counts / counts.sum() * entries  # 1 on average, whatever the batch
        pick = torch.randint(len(x), (RECENT,), generator=generator)
        return cls(usage, book * usage[:, None], x[pick].clone())

    @property
    def book(self) -> Tensor:
        return self.total / self.usage.clamp(min=1e-5)[:, None]

    def learn(self, x: Tensor, index: Tensor, generator: torch.Generator) -> None:
        """Move the entries towards the vectors ``x`` (``[M, D]``) that chose them."""
        weight = len(self.usage) / len(x)
        counts = torch.bincount(index, minlength=len(self.usage)).float() * weight
        self.usage.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.total.mul_(DECAY).index_add_(0, index, x, alpha=(1 - DECAY) * weight)
        self.recent = torch.cat([self.recent[len(x) :], x])[-RECENT:]
        dead = torch.nonzero(self.usage < DEAD_SHARE).flatten()
        if len(dead):
            fresh = self.recent[torch.randint(len(self.recent), (len(dead),), generator=generator)]
            self.usage[dead] = 0.5
            self.total[dead] = fresh * 0.5


def quantise(x: Tensor, levels: Sequence[Level], keep: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Sum of the chosen entries for ``x`` (``[M, D]``), and for each level what it saw and what it chose.

    Args:
        keep: ``int64[M]``, how many levels each vector uses (quantiser dropout).
    """
    residual, total = x, torch.zeros_like(x)
    seen: list[tuple[Tensor, Tensor]] = []
    for number, level in enumerate(levels):
        book = level.book
        index = nearest(residual, book)
        used = (keep > number)[:, None]
        seen.append((residual[used[:, 0]], index[used[:, 0]]))
        chosen = F.embedding(index, book) * used
        residual, total = residual - chosen, total + chosen
    return total, seen
