"""Codecs for the tests: small shapes, the reference beside ours with the same random weights, and the near-tie rule."""

import copy
import dataclasses
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model.mimi import Mimi, MimiConfig, codec_transformer
from serve_app.model.seanet import SeanetConfig
from tests.oracle import PUBLISHED_MIMI, reference_mimi, weights_of

torch.set_num_threads(1)  # at these sizes a second thread waits longer than it works

CPU: Final = torch.device("cpu")
PCM_TOLERANCE: Final = 2e-5
TIE_MARGIN: Final = 1e-6  # (d2 - d1) / d1 of the reference, below which a code may flip
MAX_EXCUSED: Final = 1e-4

SMALL: Final = MimiConfig(
    seanet=SeanetConfig(dimension=64, n_filters=8),
    transformer=codec_transformer(64, 2, 2, 128),
    card=256,
    codebook_dim=32,
    total_codebooks=8,
    num_codebooks=8,
)
DEEP: Final = dataclasses.replace(
    SMALL,
    seanet=SeanetConfig(dimension=64, n_filters=8, residual_layers=2, dilation_base=3, ratios=(8, 5, 4, 3), compress=1),
    transformer=codec_transformer(64, 4, 1, 256),
    semantic_codebooks=2,
    num_codebooks=3,
)
TINY: Final = MimiConfig(
    seanet=SeanetConfig(dimension=16, n_filters=2),
    transformer=codec_transformer(16, 2, 1, 32, context=12),
    card=64,
    codebook_dim=8,
    total_codebooks=4,
    num_codebooks=4,
)
FULL: Final = MimiConfig(num_codebooks=32)


def reference_config(config: MimiConfig) -> dict[str, Any]:
    """The same codec as the reference nests it."""
    nested: dict[str, Any] = copy.deepcopy(dict(PUBLISHED_MIMI))
    seanet, transformer = config.seanet, config.transformer
    nested["seanet"] |= {
        "dimension": seanet.dimension,
        "n_filters": seanet.n_filters,
        "n_residual_layers": seanet.residual_layers,
        "compress": seanet.compress,
        "dilation_base": seanet.dilation_base,
        "kernel_size": seanet.kernel,
        "residual_kernel_size": seanet.residual_kernel,
        "last_kernel_size": seanet.last_kernel,
        "ratios": list(seanet.ratios),
    }
    nested["transformer"] |= {
        "d_model": transformer.dim,
        "num_heads": transformer.heads,
        "num_layers": transformer.layers,
        "dim_feedforward": transformer.feedforward,
        "context": transformer.context,
        "input_dimension": transformer.dim,
        "output_dimensions": [transformer.dim],
    }
    nested["quantizer"] |= {
        "dimension": config.codebook_dim,
        "n_q": config.total_codebooks,
        "n_q_semantic": config.semantic_codebooks,
        "bins": config.card,
        "input_dimension": config.dimension,
        "output_dimension": config.dimension,
    }
    return nested


def pair(config: MimiConfig, seed: int = 0) -> tuple[Any, Mimi]:
    """The reference and ours, with the same random weights; every key loads under its published name."""
    reference = reference_mimi(reference_config(config), seed, num_codebooks=config.num_codebooks)
    ours = Mimi(config).eval()
    ours.load_state_dict(weights_of(reference), strict=True)
    return reference, ours


def random_codec(config: MimiConfig, seed: int = 0) -> Mimi:
    """Ours alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mimi(config).eval()


def recorded_latents(reference: Any) -> list[Tensor]:
    """A list that grows by what the reference quantises, call by call."""
    latents: list[Tensor] = []
    encode = reference.quantizer.encode

    def record(latent: Tensor) -> Tensor:
        latents.append(latent)
        codes: Tensor = encode(latent)
        return codes

    reference.quantizer.encode = record
    return latents


class CodeComparison:
    """Counts codes that differ from the reference's, excusing near ties.

    A differing code is excused iff the reference's own margin is below `TIE_MARGIN` at the first level, of its half of
    the quantiser, that differs.
    """

    def __init__(self, reference: Any) -> None:
        self._quantizer = reference.quantizer
        self.compared = self.wrong = self.excused = 0

    def add(self, expected: Tensor, got: Tensor, latent: Tensor) -> None:
        """Compare ``[R, K, T]`` codes of one batch; ``latent`` ``[R, D, T]`` is the reference's."""
        assert expected.shape == got.shape
        assert got.dtype == torch.int64
        self.compared += expected.numel()
        semantic = self._quantizer.n_q_semantic
        for rvq, part in (
            (self._quantizer.rvq_first, slice(0, semantic)),
            (self._quantizer.rvq_rest, slice(semantic, None)),
        ):
            for row, _, step in (expected[:, part] != got[:, part]).any(dim=1, keepdim=True).nonzero().tolist():
                self._judge(rvq, expected[row, part, step], got[row, part, step], latent[row, :, step])

    def check(self) -> None:
        """Fail unless every code is equal or excused, and few are excused."""
        print(f"codes: {self.compared} compared, {self.wrong} wrong, {self.excused} excused as near ties")
        assert self.wrong == 0
        assert self.excused <= MAX_EXCUSED * self.compared

    def _judge(self, rvq: Any, expected: Tensor, got: Tensor, latent: Tensor) -> None:
        differing = int((expected != got).sum())
        residual = rvq.input_proj(latent[None, :, None])[0, :, 0].double()
        for level, (code, ours) in enumerate(zip(expected.tolist(), got.tolist(), strict=True)):
            entries = rvq.vq.layers[level].embedding.double()
            if code != ours:
                nearest = (residual - entries).norm(dim=1).topk(2, largest=False).values
                if float((nearest[1] - nearest[0]) / nearest[0]) < TIE_MARGIN:
                    self.excused += differing
                else:
                    self.wrong += differing
                return
            residual = residual - entries[code]
