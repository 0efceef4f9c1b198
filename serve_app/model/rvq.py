"""Split residual vector quantisation: one semantic level, and acoustic levels that encode the same latent.

A codebook is stored as the training left it, a sum of vectors and a usage count per entry; what is searched is
``embedding_sum / clamp(cluster_usage, 1e-5)``, computed once after loading (`Codebook.refresh`).
Source: Mimi (Défossez et al., 2024); buffer names are the published checkpoints'.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.model import fused, fused_codec
from serve_app.model.product import Filters, Product

_MIN_USAGE: Final = 1e-5  # usages of 0 occur in published codebooks
_SPREAD: Final = 0.2  # of random entries: as wide as the latents of a random encoder, so that its codes vary


class Codebook(nn.Module):
    """Entries of one level.

    Buffers:
        embedding_sum: ``[card, D]``; cluster_usage: ``[card]``: what checkpoints hold.
        embedding: ``[card, D]``, what codes mean; half_norm: ``[card]``, half of each entry's squared length.
    """

    embedding_sum: Tensor
    cluster_usage: Tensor
    embedding: Tensor
    half_norm: Tensor

    def __init__(self, card: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("_initialized", torch.ones(1))
        self.register_buffer("cluster_usage", torch.ones(card))
        self.register_buffer("embedding_sum", torch.randn(card, dim) * _SPREAD)
        self.register_buffer("embedding", torch.empty(card, dim), persistent=False)
        self.register_buffer("half_norm", torch.empty(card), persistent=False)
        self._distance = Product(_negated)
        self.refresh()
        self.register_load_state_dict_post_hook(_refresh_loaded)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def refresh(self) -> None:
        """Derive the entries from sums and usages. Call it after changing either; loading does."""
        self.embedding = self.embedding_sum / self.cluster_usage.clamp(min=_MIN_USAGE)[:, None]
        self.half_norm = self.embedding.square().sum(dim=1) / 2

    def nearest(self, x: Tensor) -> Tensor:
        """Index of the nearest entry of each vector: ``[N, D]`` to ``int64[N]``.

        ``|x - e|^2 / 2`` less the part that all entries share, so one product finds it.
        """
        return self._distance(x.detach(), self.embedding, self.half_norm).argmin(dim=1)

    def look_up(self, codes: Tensor) -> Tensor:
        """Entries of codes, ``[...]`` to ``[..., D]``; a code that is out of range (-2, card) means the nearest one."""
        return F.embedding(codes.clamp(0, self.embedding.shape[0] - 1), self.embedding)


def _refresh_loaded(module: nn.Module, _: object) -> None:
    assert isinstance(module, Codebook)
    module.refresh()


def _negated(entries: Tensor, half_norm: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return -entries, half_norm


class _Level(nn.Module):
    def __init__(self, card: int, dim: int) -> None:
        super().__init__()
        self._codebook = Codebook(card, dim)


class ResidualQuantizer(nn.Module):
    """Levels that each encode what the ones before left over, between two projections."""

    def __init__(self, dim: int, codebook_dim: int, levels: int, card: int) -> None:
        super().__init__()
        self.input_proj = nn.Conv1d(dim, codebook_dim, 1, bias=False)
        self.output_proj = nn.Conv1d(codebook_dim, dim, 1, bias=False)
        self._inward, self._outward = Filters(1), Filters(1)
        self.vq = nn.ModuleDict({"layers": nn.ModuleList(_Level(card, codebook_dim) for _ in range(levels))})

    @property
    def codebooks(self) -> list[Codebook]:
        return [level._codebook for level in self.vq["layers"]]  # type: ignore[attr-defined]

    def encode(self, latent: Tensor, levels: int) -> Tensor:
        """Codes ``int64[B, K, T]`` of the first ``levels`` levels of ``[B, dim, T]``."""
        projected = _project(latent, self.input_proj, self._inward).transpose(1, 2)
        batch, steps, dim = projected.shape
        codes = self._search(projected.reshape(-1, dim), self.codebooks[:levels])  # [B * T, K]
        return codes.view(batch, steps, -1).transpose(1, 2)

    def decode(self, codes: Tensor) -> Tensor:
        """``int64[B, K, T]`` to ``[B, dim, T]``."""
        if fused.direct(codes):
            quantized = self.codebooks[0].look_up(codes[:, 0])  # [B, T, D]
            for level, codebook in enumerate(self.codebooks[1 : codes.shape[1]], start=1):
                quantized = quantized + codebook.look_up(codes[:, level])
        else:
            quantized = fused_codec.residual_sum(codes, [codebook.embedding for codebook in self.codebooks])
        return _project(quantized.transpose(1, 2), self.output_proj, self._outward)

    def _search(self, residual: Tensor, books: list[Codebook]) -> Tensor:
        """``[N, D]`` to ``int64[N, K]``."""
        if not fused.direct(residual):
            return fused_codec.residual_search(
                residual, [book.embedding for book in books], [book.half_norm for book in books]
            )
        found = []
        for book in books:
            found.append(book.nearest(residual))
            residual = residual - F.embedding(found[-1], book.embedding)
        return torch.stack(found, dim=1)


def _project(x: Tensor, inner: nn.Conv1d, filters: Filters) -> Tensor:
    """``[B, D, T]`` to ``[B, D', T]``; by the filters where no gradient is asked for."""
    if torch.is_grad_enabled():
        return inner(x)  # type: ignore[no-any-return]
    return filters(x.transpose(1, 2), inner.weight, None).transpose(1, 2)


class SplitQuantizer(nn.Module):
    """The semantic levels, then the acoustic ones; both start from the latent itself."""

    def __init__(self, dim: int, codebook_dim: int, semantic: int, acoustic: int, card: int) -> None:
        super().__init__()
        self.semantic, self.acoustic = semantic, acoustic
        self.rvq_first = ResidualQuantizer(dim, codebook_dim, semantic, card)
        self.rvq_rest = ResidualQuantizer(dim, codebook_dim, acoustic, card)

    def encode(self, latent: Tensor, codebooks: int) -> Tensor:
        """``[B, dim, T]`` to ``int64[B, codebooks, T]``."""
        codes = self.rvq_first.encode(latent, codebooks)
        if codebooks > self.semantic:
            codes = torch.cat([codes, self.rvq_rest.encode(latent, codebooks - self.semantic)], dim=1)
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """``int64[B, K, T]``, any K from 1 to all, to ``[B, dim, T]``."""
        latent = self.rvq_first.decode(codes[:, : self.semantic])
        if codes.shape[1] > self.semantic:
            latent = latent + self.rvq_rest.decode(codes[:, self.semantic :])
        return latent
