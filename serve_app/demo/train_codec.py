"""Trains the demo's codec: our own Mimi modules, small, on synthesised speech, in well under an hour on one CPU core.

Three phases, one learning-rate curve over all of them:

1. *free*: encoder and decoder without the quantiser;
2. *quantised*: codebooks from k-means over the whole training set, then moving averages, gradients straight through;
3. *frozen*: encoder and codebooks stand still (k-means once more), the decoder learns what these very codes mean.

Trained without phase 1 a batch of 128 vectors a step leaves four fifths of the codebook entries dead; k-means over
50,000 latents uses them all.
"""

import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from serve_app.demo.codebooks import Level, quantise
from serve_app.demo.envelope import EnvelopeLoss
from serve_app.demo.loss import MelLoss
from serve_app.demo.segments import Segments
from serve_app.model.mimi import Mimi, MimiConfig, codec_transformer
from serve_app.model.rvq import ResidualQuantizer
from serve_app.model.seanet import SeanetConfig

LOG = logging.getLogger(__name__)

CODEC: Final = MimiConfig(
    seanet=SeanetConfig(dimension=128, n_filters=16),
    transformer=codec_transformer(dim=128, heads=4, layers=2, feedforward=512, context=32),
    card=1024,
    codebook_dim=64,
    total_codebooks=16,
    num_codebooks=16,
)
_SAVE_EVERY_S: Final = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How long and how fast; the shipped codec is these defaults.

    Attributes:
        free, quantised, frozen: steps of the three phases.
        envelope: weight of the envelope loss, from step ``envelope_from`` on: envelopes of noise teach nothing.
        timing_from: step from which envelopes along time alone count as well.
        plain_from: step from which segments are mostly as they were said.
        commitment: weight of the pull of latents towards their codes.
        fewest: vectors use at random `fewest` to all codebooks, half of the time, so that a prefix of them is good too.
    """

    free: int = 1_500
    quantised: int = 3_200
    frozen: int = 300
    batch: int = 8
    frames: int = 16
    rate: float = 1e-3
    warmup: int = 100
    envelope: float = 1.0
    envelope_from: int = 200
    timing_from: int = 1_200
    plain_from: int = 1_900
    commitment: float = 0.1
    fewest: int = 6
    k_means_rounds: int = 6
    k_means_frames: int = 20_000
    seed: int = 20

    @property
    def steps(self) -> int:
        return self.free + self.quantised + self.frozen


class Trainer:
    """One training run. Everything random comes from the recipe's seed and the step, so a run can be resumed."""

    def __init__(self, recipe: Recipe, segments: Segments, config: MimiConfig = CODEC) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.segments = recipe, segments
        self.mimi = Mimi(config)
        _calm(self.mimi)
        self.spectral, self.envelope = MelLoss(), EnvelopeLoss()
        self.levels: list[Level] = []
        self.step = 0
        self.apart = 1.0
        self.optimizer = torch.optim.AdamW(
            self.mimi.parameters(), recipe.rate, betas=(0.8, 0.99), weight_decay=1e-3, fused=True
        )

    def run(self, checkpoint: Path) -> Mimi:
        """Train from wherever ``checkpoint`` left off, saving there now and then."""
        if checkpoint.exists():
            self.restore(checkpoint)
        saved_s = logged_s = time.monotonic()
        mean = 0.0
        while self.step < self.recipe.steps:
            mean += self.advance()
            if self.step % 50 == 0:
                now_s = time.monotonic()
                LOG.info(
                    "step %d: spectral loss %.4f, envelopes %.3f apart, %.0f ms a step",
                    *(self.step, mean / 50, self.apart, (now_s - logged_s) * 20),
                )
                mean, logged_s = 0.0, now_s
                if now_s - saved_s > _SAVE_EVERY_S:
                    self.save(checkpoint)
                    saved_s = now_s
        self.save(checkpoint)
        self.write_codebooks()
        return self.mimi

    def advance(self) -> float:
        """One step; gives the spectral loss."""
        recipe, step = self.recipe, self.step
        if step in (recipe.free, recipe.free + recipe.quantised):
            self.fit_codebooks()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        seed, plain = recipe.seed * 1_000_003 + step, step >= recipe.plain_from
        pcm = self.segments.draw(recipe.batch, recipe.frames, seed, plain=plain)  # [B, 1, N]
        generator = torch.Generator().manual_seed(recipe.seed * 7_919 + step)
        with torch.autocast("cpu", torch.bfloat16):
            if step < recipe.free:
                latent, extra = self._unquantised(pcm)
            elif step < recipe.free + recipe.quantised:
                latent, extra = self._straight_through(pcm, generator)
            else:
                latent, extra = self._from_codes(pcm, generator)
            made = self.mimi.decode_latent(latent)
        heard = made[:, 0].float()
        spectral = self.spectral(heard, pcm[:, 0])
        if step >= recipe.envelope_from:
            apart, late = self.envelope(heard, pcm[:, 0])
            self.apart = 0.98 * self.apart + 0.02 * float(apart.detach())
            extra = extra + recipe.envelope * (apart + late if step >= recipe.timing_from else apart)
        self.optimizer.zero_grad(set_to_none=True)
        (spectral + extra).backward()
        nn.utils.clip_grad_norm_(self.mimi.parameters(), 1.0)
        self.optimizer.step()
        # A fused optimizer writes weights without saying so, and what is derived from them has to know.
        torch.autograd.graph.increment_version(self.mimi.parameters())
        self.step += 1
        return float(spectral.detach())

    # --- the three ways from sound to latents -------------------------------------------------------------------------

    def _unquantised(self, pcm: Tensor) -> tuple[Tensor, Tensor]:
        latent = self.mimi.encode_latent(pcm)
        halves = (self.mimi.quantizer.rvq_first, self.mimi.quantizer.rvq_rest)
        total = sum((half.output_proj(half.input_proj(latent)) for half in halves), torch.zeros_like(latent))
        return total, pcm.new_zeros(())

    def _straight_through(self, pcm: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        latent = self.mimi.encode_latent(pcm)
        keep = self._levels_kept(pcm.shape[0] * self.recipe.frames, generator)
        total, extra = torch.zeros_like(latent, dtype=torch.float32), pcm.new_zeros(())
        for half, levels, kept in self._halves(keep):
            projected = half.input_proj(latent).float().transpose(1, 2)  # [B, T, D]
            flat = projected.reshape(-1, projected.shape[-1])
            with torch.no_grad():
                chosen, seen = quantise(flat, levels, kept)
                for level, (vectors, index) in zip(levels, seen, strict=True):
                    if len(index):
                        level.learn(vectors, index, generator)
            distance = (flat - chosen).square().mean() / flat.detach().var()
            extra = extra + self.recipe.commitment * distance
            passed = (flat + (chosen - flat).detach()).view_as(projected).transpose(1, 2)
            total = total + half.output_proj(passed)
        return total, extra

    def _from_codes(self, pcm: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        keep = self._levels_kept(pcm.shape[0] * self.recipe.frames, generator)
        with torch.no_grad():
            latent = self.mimi.encode_latent(pcm)
        total = torch.zeros_like(latent, dtype=torch.float32)
        for half, levels, kept in self._halves(keep):
            with torch.no_grad():
                projected = half.input_proj(latent).float().transpose(1, 2)
                chosen, _ = quantise(projected.reshape(-1, projected.shape[-1]), levels, kept)
            total = total + half.output_proj(chosen.view_as(projected).transpose(1, 2))
        return total, pcm.new_zeros(())

    def _halves(self, keep: Tensor) -> list[tuple[ResidualQuantizer, list[Level], Tensor]]:
        quantizer, semantic = self.mimi.quantizer, self.mimi.config.semantic_codebooks
        return [
            (quantizer.rvq_first, self.levels[:semantic], keep),
            (quantizer.rvq_rest, self.levels[semantic:], keep - semantic),
        ]

    def _levels_kept(self, vectors: int, generator: torch.Generator) -> Tensor:
        """How many codebooks each vector uses, ``int64[vectors]``; one number for each item of the batch."""
        total, batch = self.mimi.config.total_codebooks, self.recipe.batch
        fewer = torch.randint(self.recipe.fewest, total + 1, (batch,), generator=generator)
        kept = torch.where(torch.rand(batch, generator=generator) < 0.5, fewer, total)
        return kept.repeat_interleave(vectors // batch)

    # --- codebooks ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit_codebooks(self) -> None:
        """Fit every codebook by k-means to the latents of the training set."""
        started_s = time.monotonic()
        generator = torch.Generator().manual_seed(self.recipe.seed + self.step)
        latents = torch.cat(
            [self.mimi.encode_latent(pcm) for pcm in self.segments.sweep(self.recipe.k_means_frames)]
        )  # [S, D, T]
        self.levels = []
        config = self.mimi.config
        for half, levels in (
            (self.mimi.quantizer.rvq_first, config.semantic_codebooks),
            (self.mimi.quantizer.rvq_rest, config.total_codebooks - config.semantic_codebooks),
        ):
            residual = half.input_proj(latents).transpose(1, 2).reshape(-1, config.codebook_dim)
            for _ in range(levels):
                level = Level.fit(residual, config.card, self.recipe.k_means_rounds, generator)
                chosen, _ = quantise(residual, [level], torch.ones(len(residual), dtype=torch.int64))
                residual = residual - chosen
                self.levels.append(level)
        LOG.info("fitted %d codebooks in %.0f s", len(self.levels), time.monotonic() - started_s)

    @torch.no_grad()
    def write_codebooks(self) -> None:
        """Put what was learnt where the codec looks it up."""
        codebooks = [*self.mimi.quantizer.rvq_first.codebooks, *self.mimi.quantizer.rvq_rest.codebooks]
        for codebook, level in zip(codebooks, self.levels, strict=True):
            codebook.embedding_sum.copy_(level.book)
            codebook.cluster_usage.fill_(1.0)
            codebook.refresh()

    # --- bookkeeping --------------------------------------------------------------------------------------------------

    def _rate(self) -> float:
        done = self.step / self.recipe.steps
        rise = min(1.0, (self.step + 1) / self.recipe.warmup)
        return self.recipe.rate * rise * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))

    def save(self, path: Path) -> None:
        """Everything that `restore` needs, written whole or not at all."""
        state = {
            "step": self.step,
            "mimi": self.mimi.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "levels": [dataclasses.asdict(level) for level in self.levels],
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.replace(path)

    def restore(self, path: Path) -> None:
        """Go on where `save` stopped; the file is our own, of this command's work folder."""
        state = torch.load(path, weights_only=True)
        self.step = state["step"]
        self.mimi.load_state_dict(state["mimi"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.levels = [Level(**level) for level in state["levels"]]


def _calm(mimi: Mimi) -> None:
    """Start near silence: residual branches and the last convolution small, layer scales a tenth."""
    with torch.no_grad():
        for name, weight in mimi.named_parameters():
            if ".block.3." in name:
                weight.mul_(0.3)
            elif "layer_scale" in name:
                weight.fill_(0.1)
        last = list(mimi.decoder.parameters())[-2:]
        for weight in last:
            weight.mul_(0.03)
