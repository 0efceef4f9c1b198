"""Token embeddings of the LM's streams."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model.fused import UNGENERATED_TOKEN, ZERO_TOKEN
from serve_app.model.norm import make_norm

__all__ = ["UNGENERATED_TOKEN", "ZERO_TOKEN", "Embedding"]


class Embedding(nn.Embedding):
    """A table of ``rows`` tokens, optionally normalised, optionally of low rank behind a projection.

    `ZERO_TOKEN` gives 0 before the projection; `UNGENERATED_TOKEN` gives the first row, for rows that do not execute.

    With ``demux`` a token holds two of the same vocabulary, ``(second + 1) * rows + first``; each is looked up in the
    table and goes through a projection of its own. A plain token has no second one.
    """

    def __init__(
        self, rows: int, dim: int, *, norm: bool = False, rank: int | None = None, demux: bool = False
    ) -> None:
        super().__init__(rows, rank or dim)
        self.norm: nn.Module | None = make_norm("layer_norm", rank or dim) if norm else None
        # Checkpoints with two texts hold this projection too, but do not use it.
        self.low_rank: nn.Linear | None = nn.Linear(rank, dim, bias=False) if rank else None
        self.demux = demux
        if demux:
            self.out1 = nn.Linear(rank or dim, dim, bias=False)
            self.out2 = nn.Linear(rank or dim, dim, bias=False)

    @property
    def plain(self) -> bool:
        """Whether it is a table and nothing else."""
        return self.norm is None and self.low_rank is None and not self.demux

    def forward(self, tokens: Tensor) -> Tensor:
        """``int64[...]`` to ``[..., dim]``."""
        if self.demux:
            return self._two(tokens)
        y = F.embedding(tokens.clamp(min=0), self.weight)
        if self.norm is not None:
            y = self.norm(y)
        y = torch.where((tokens == ZERO_TOKEN)[..., None], 0.0, y)
        return y if self.low_rank is None else self.low_rank(y)

    def _two(self, tokens: Tensor) -> Tensor:
        known = tokens.clamp(min=0)
        first, second = known % self.num_embeddings, known // self.num_embeddings - 1
        y = self.out2(F.embedding(second.clamp(min=0), self.weight))
        y = self.out1(F.embedding(first, self.weight)) + torch.where((second < 0)[..., None], 0.0, y)
        return torch.where((tokens == ZERO_TOKEN)[..., None], 0.0, y)
