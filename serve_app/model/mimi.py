"""Mimi: 80 ms of 24 kHz PCM to K codes and back, for a batch of strangers or a whole recording.

Streaming is one frame a call and sees 250 steps of 25 Hz back; offline differs from it after 10 s, because a call of
two steps writes both before it attends (see `ring`). Weights load from the published checkpoints without renaming.
Source: Mimi (Défossez et al., 2024), behaviour of moshi 0.2.13.
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.errors import ConfigError, ShapeError
from serve_app.model.conv import ConvState
from serve_app.model.resample import Downsample, Upsample
from serve_app.model.rvq import SplitQuantizer
from serve_app.model.seanet import SeanetConfig, SeanetState, make_decoder, make_encoder
from serve_app.model.state import Rows
from serve_app.model.transformer import Transformer, TransformerConfig, TransformerState
from serve_app.units import FRAME_SAMPLES

_CONTEXT_STEPS: Final = 250  # 10 s at 25 Hz


def codec_transformer(
    dim: int = 512, heads: int = 8, layers: int = 8, feedforward: int = 2048, context: int = _CONTEXT_STEPS
) -> TransformerConfig:
    """The codec's kind of transformer: layer norm, erf GELU, layer scale, interleaved rotary positions."""
    return TransformerConfig(
        dim=dim,
        heads=heads,
        layers=layers,
        feedforward=feedforward,
        context=context,
        norm="layer_norm",
        position="rope",
        gating="none",
        layer_scale=True,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MimiConfig:
    """Shape of a codec; defaults are the published Mimi.

    Attributes:
        transformer: of the encoder and of the decoder.
        card: entries of a codebook, ``codebook_dim`` wide.
        total_codebooks: levels that the weights hold, the first ``semantic_codebooks`` of them semantic.
        num_codebooks: levels that encoding gives.
    """

    seanet: SeanetConfig = dataclasses.field(default_factory=SeanetConfig)
    transformer: TransformerConfig = dataclasses.field(default_factory=codec_transformer)
    card: int = 2048
    codebook_dim: int = 256
    total_codebooks: int = 32
    semantic_codebooks: int = 1
    num_codebooks: int = 8

    def __post_init__(self) -> None:
        if FRAME_SAMPLES % self.seanet.hop_samples:
            raise ConfigError("mimi config", f"ratios {list(self.seanet.ratios)} do not divide {FRAME_SAMPLES} samples")
        if self.transformer.dim != self.seanet.dimension:
            dims = f"{self.transformer.dim} and {self.seanet.dimension}"
            raise ConfigError("mimi config", f"transformer and seanet differ in dimension: {dims}")
        if not 1 <= self.semantic_codebooks < self.total_codebooks:
            raise ConfigError("mimi config", f"{self.semantic_codebooks} semantic of {self.total_codebooks} codebooks")
        if not 1 <= self.num_codebooks <= self.total_codebooks:
            raise ConfigError("mimi config", f"{self.num_codebooks} of {self.total_codebooks} codebooks in use")

    @property
    def dimension(self) -> int:
        return self.seanet.dimension

    @property
    def steps_per_frame(self) -> int:
        """Steps of the encoder's rate in one frame: 2 in the published Mimi."""
        return FRAME_SAMPLES // self.seanet.hop_samples


@dataclasses.dataclass(frozen=True, slots=True)
class EncoderState:
    """Streaming state of the way from PCM to codes."""

    seanet: SeanetState
    transformer: TransformerState
    downsample: ConvState | None


@dataclasses.dataclass(frozen=True, slots=True)
class DecoderState:
    """Streaming state of the way from codes to PCM."""

    upsample: ConvState
    transformer: TransformerState
    seanet: SeanetState


@dataclasses.dataclass(frozen=True, slots=True)
class MimiState:
    """Both ways; `state.reset` takes either half alone, as the first-frame rule of the server needs."""

    encoder: EncoderState
    decoder: DecoderState


class _Projected(nn.Module):
    """A transformer over ``[R, D, T]``; nested once more because published keys are."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer(x.transpose(1, 2)).transpose(1, 2)  # type: ignore[no-any-return]

    def step(self, x: Tensor, state: TransformerState, rows: Rows) -> Tensor:
        return self.transformer.step(x.transpose(1, 2), state, rows).transpose(1, 2)


class Mimi(nn.Module):
    """The codec. Offline methods are differentiable but for the choice of codes."""

    def __init__(self, config: MimiConfig) -> None:
        super().__init__()
        self.config = config
        acoustic = config.total_codebooks - config.semantic_codebooks
        self.encoder = make_encoder(config.seanet)
        self.encoder_transformer = _Projected(config.transformer)
        self.downsample = Downsample(config.dimension, config.steps_per_frame)
        self.quantizer = SplitQuantizer(
            config.dimension, config.codebook_dim, config.semantic_codebooks, acoustic, config.card
        )
        self.upsample = Upsample(config.dimension, config.steps_per_frame)
        self.decoder_transformer = _Projected(config.transformer)
        self.decoder = make_decoder(config.seanet)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and state; PCM and latents are fp32 outside, and the quantiser is."""
        return self.downsample.conv.dtype

    def narrow(self, dtype: torch.dtype) -> None:
        """Put the weights into ``dtype``, all but the quantiser's: rounded distances choose other entries."""
        for name, part in self.named_children():
            if name != "quantizer":
                part.to(dtype)

    @property
    def quantiser(self) -> SplitQuantizer:
        """The quantiser; the attribute is spelled as the published keys are."""
        return self.quantizer

    # --- offline ------------------------------------------------------------------------------------------------------

    def encode_latent(self, pcm: Tensor) -> Tensor:
        """``[B, 1, N]`` to latents before quantisation, ``[B, D, T]``; the last frame is padded with zeros.

        Raises:
            ShapeError: pcm is not ``[B, 1, N]`` with N >= 1.
        """
        if pcm.ndim != 3 or pcm.shape[1] != 1 or pcm.shape[2] == 0:
            raise ShapeError("pcm", pcm.shape, "[B, 1, N], N >= 1")
        pcm = F.pad(pcm, (0, -pcm.shape[-1] % FRAME_SAMPLES)).to(self.dtype)
        return self.downsample(self.encoder_transformer(self.encoder(pcm))).float()  # type: ignore[no-any-return]

    def decode_latent(self, latent: Tensor) -> Tensor:
        """Latents ``[B, D, T]``, quantised or not, to PCM ``[B, 1, T * 1920]``."""
        if latent.ndim != 3 or latent.shape[1] != self.config.dimension:
            raise ShapeError("latent", latent.shape, f"[B, {self.config.dimension}, T]")
        latent = latent.to(self.dtype)
        return self.decoder(self.decoder_transformer(self.upsample(latent))).float()  # type: ignore[no-any-return]

    def encode(self, pcm: Tensor) -> Tensor:
        """``[B, 1, N]`` to codes ``int64[B, K, T]``, T = ceil(N / 1920)."""
        return self.quantizer.encode(self.encode_latent(pcm), self.config.num_codebooks)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes ``int64[B, K, T]`` to PCM ``[B, 1, T * 1920]``; codes out of range are clamped."""
        self._check_codes(codes)
        return self.decode_latent(self.quantizer.decode(codes))

    # --- streaming ----------------------------------------------------------------------------------------------------

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> MimiState:
        """Fresh state for ``slots`` slots and a scratch row."""
        args = (slots, device, dtype)
        encoder = EncoderState(
            self.encoder.init_state(*args),
            self.encoder_transformer.transformer.init_state(*args),
            self.downsample.init_state(*args),
        )
        decoder = DecoderState(
            self.upsample.init_state(*args),
            self.decoder_transformer.transformer.init_state(*args),
            self.decoder.init_state(*args),
        )
        return MimiState(encoder, decoder)

    @torch.no_grad()
    def encode_step(self, pcm: Tensor, state: MimiState, rows: Rows) -> Tensor:
        """The next frame of each row: ``[R, 1, 1920]`` to codes ``int64[R, K, 1]``. Waits for no device.

        Raises:
            ShapeError: anything but exactly one frame.
        """
        return self.quantizer.encode(self.latent_step(pcm, state, rows), self.config.num_codebooks)

    @torch.no_grad()
    def latent_step(self, pcm: Tensor, state: MimiState, rows: Rows) -> Tensor:
        """`encode_step` before quantisation: latents ``[R, D, 1]``, which show what is not finite; codes hide it."""
        if pcm.ndim != 3 or tuple(pcm.shape[1:]) != (1, FRAME_SAMPLES):
            raise ShapeError("pcm", pcm.shape, f"[R, 1, {FRAME_SAMPLES}]")
        part = state.encoder
        latent = self.encoder.step(pcm.to(self.dtype), part.seanet, rows)  # [R, D, 2]
        latent = self.encoder_transformer.step(latent, part.transformer, rows)
        return self.downsample.step(latent, part.downsample, rows).float()  # [R, D, 1]

    @torch.no_grad()
    def decode_step(self, codes: Tensor, state: MimiState, rows: Rows) -> Tensor:
        """The next codes of each row, ``int64[R, K, 1]``, to one frame ``[R, 1, 1920]``; out of range is clamped.

        Raises:
            ShapeError: anything but one step of 1 to all codebooks.
        """
        self._check_codes(codes)
        if codes.shape[-1] != 1:
            raise ShapeError("codes", codes.shape, "[R, K, 1]")
        part = state.decoder
        latent = self.quantizer.decode(codes).to(self.dtype)
        latent = self.upsample.step(latent, part.upsample, rows)  # [R, D, 2]
        latent = self.decoder_transformer.step(latent, part.transformer, rows)
        return self.decoder.step(latent, part.seanet, rows).float()

    def _check_codes(self, codes: Tensor) -> None:
        if codes.ndim != 3 or not 1 <= codes.shape[1] <= self.config.total_codebooks:
            raise ShapeError("codes", codes.shape, f"[B, 1 to {self.config.total_codebooks}, T]")
