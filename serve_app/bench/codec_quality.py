"""What a narrower codec costs: the same recording through both, frame by frame as it is served."""

import dataclasses
import importlib.util
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve_app.model.mimi import Mimi
from serve_app.model.rvq import SplitQuantizer
from serve_app.model.state import all_rows
from serve_app.units import FRAME_SAMPLES

LEAST_SI_SNR_DB: Final = 20.0
MOST_ESTOI_LOSS: Final = 0.01


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CodecDivergence:
    """How far one codec is from another over the same recording.

    Attributes:
        frames: compared.
        code_agreement: by codebook, share of codes that both encoders give; what follows a code that differs encodes
            another rest, so later codebooks agree less.
        search_agreement: the same where both search the exact encoder's latents, the other one in its own dtype. The
            other codec does not (its quantiser is the exact one); this says why.
        decoder_si_snr_db: of the other decoder's sound against the exact one's, the same codes in both.
        path_si_snr_db: the same of encoder and decoder together.
        estoi, estoi_exact: intelligibility of both ways against the recording; None where pystoi is not installed, or
            the weights are random, so that there is nothing to understand.
    """

    frames: int
    code_agreement: tuple[float, ...]
    search_agreement: tuple[float, ...]
    decoder_si_snr_db: float
    path_si_snr_db: float
    estoi: float | None = None
    estoi_exact: float | None = None

    def passes(self, least_si_snr_db: float, most_estoi_loss: float) -> bool:
        """Whether it is near enough: the decoder in dB, the whole way in what is understood."""
        lost = 0.0 if self.estoi is None or self.estoi_exact is None else self.estoi_exact - self.estoi
        return self.decoder_si_snr_db >= least_si_snr_db and lost <= most_estoi_loss


@torch.no_grad()
def compare_codecs(exact: Mimi, other: Mimi, pcm: Tensor, *, speech: bool) -> CodecDivergence:
    """Compare two codecs of the same weights.

    Args:
        pcm: ``fp32[N]`` at 24 kHz; the last part of a frame is left out.
        speech: whether these weights make something that can be understood.
    """
    frames = pcm[: len(pcm) // FRAME_SAMPLES * FRAME_SAMPLES].view(-1, 1, 1, FRAME_SAMPLES)
    latents, codes = _encode(exact, frames)
    near_codes = _encode(other, frames)[1]
    narrow = _narrowed(exact, other.dtype)
    sound, near, path = _decode(exact, codes), _decode(other, codes), _decode(other, near_codes)
    heard = frames.flatten()
    understood = speech and importlib.util.find_spec("pystoi") is not None
    return CodecDivergence(
        frames=len(frames),
        code_agreement=_equal(codes, near_codes),
        search_agreement=_equal(codes, narrow.encode(latents.to(other.dtype), exact.config.num_codebooks)),
        decoder_si_snr_db=si_snr_db(sound, near),
        path_si_snr_db=si_snr_db(sound, path),
        estoi=_estoi(heard, path) if understood else None,
        estoi_exact=_estoi(heard, sound) if understood else None,
    )


def si_snr_db(expected: Tensor, got: Tensor) -> float:
    """Scale-invariant ratio of signal to what differs from it. Source: SI-SDR (Le Roux et al., 2019)."""
    expected, got = (x.double() - x.double().mean() for x in (expected, got))
    signal = (got @ expected) / (expected @ expected) * expected
    return float(10 * torch.log10(signal.square().sum() / (got - signal).square().sum()))


def _encode(mimi: Mimi, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Latents ``[T, D, 1]`` and codes ``int64[T, K, 1]``."""
    state, rows = mimi.init_state(1, frames.device, mimi.dtype), all_rows(1, frames.device)
    latents = torch.cat([mimi.latent_step(frame, state, rows) for frame in frames])
    return latents, mimi.quantiser.encode(latents, mimi.config.num_codebooks)


def _decode(mimi: Mimi, codes: Tensor) -> Tensor:
    """``int64[T, K, 1]`` to ``fp32[T * 1920]``."""
    state, rows = mimi.init_state(1, codes.device, mimi.dtype), all_rows(1, codes.device)
    return torch.cat([mimi.decode_step(step[None], state, rows).flatten() for step in codes])


def _narrowed(mimi: Mimi, dtype: torch.dtype) -> SplitQuantizer:
    """A quantiser of the same weights that searches in ``dtype``."""
    narrow = Mimi(mimi.config).quantiser.to(mimi.quantiser.rvq_first.codebooks[0].embedding.device)
    narrow.load_state_dict(mimi.quantiser.state_dict())
    return narrow.to(dtype)


def _equal(expected: Tensor, got: Tensor) -> tuple[float, ...]:
    shares: Sequence[float] = (expected == got).float().mean(dim=(0, 2)).tolist()
    return tuple(round(share, 4) for share in shares)


def _estoi(clean: Tensor, coded: Tensor) -> float:
    from serve_app.demo.measure import intelligibility

    return intelligibility([(np.asarray(clean, np.float32), np.asarray(coded, np.float32))]).estoi
