"""One whole tick: what people say goes in, what the model says comes out.

    PCM -> encode -> codes -> think -> text token, hidden -> speak -> codes -> advance -> decode -> PCM

Each stage is a method, so that a runner can time it; `Duplex.tick` is all of them. Nothing in it waits for the device,
and no Python number counts anything, so that the whole can be captured.
"""

import dataclasses

import torch
from torch import Tensor, nn

from serve_app.errors import CheckpointError
from serve_app.model import fused
from serve_app.model.lm import LM, Given, LMState, Said, Spoken, Thought
from serve_app.model.mimi import Mimi, MimiState
from serve_app.model.pages import Storage
from serve_app.model.sampling import Whole
from serve_app.model.state import Rows, reset
from serve_app.units import FRAME_SAMPLES


@dataclasses.dataclass(frozen=True, slots=True)
class DuplexState:
    """Streaming state of codec and LM for all slots."""

    mimi: MimiState
    lm: LMState


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """What the codec heard: ``latent fp32[R, D, 1]`` and the user's ``codes int64[R, user_q]``."""

    latent: Tensor
    codes: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class TickOutput:
    """What a tick gave, row by row; rows that do not execute hold nothing of use.

    Attributes:
        step: ``int64[R]``, the row's step number, from 0.
        text: ``int64[R]``, -2 while the model's delay has not passed.
        codes: ``int64[R, dep_q]``, -2 while the model's delay has not passed.
        pcm: ``fp32[R, 1920]``, 0 while the model's delay has not passed.
        decoded: ``bool[R]``, whether there is PCM.
        finite: ``bool[R]``, whether everything that the row computed is finite; true for rows that do not execute.
        heads: ``fp32[R, heads, classes]``, what the extra heads say at this very step, text's delay not in it; None
            where nobody asked.
    """

    step: Tensor
    text: Tensor
    codes: Tensor
    pcm: Tensor
    decoded: Tensor
    finite: Tensor
    heads: Tensor | None = None


class Duplex(nn.Module):
    """A codec and a language model that fit each other. Each has a dtype of its own.

    Raises:
        CheckpointError: the codec has fewer levels than the LM needs, or more entries than it knows.
    """

    def __init__(self, mimi: Mimi, lm: LM) -> None:
        super().__init__()
        problems = []
        if mimi.config.num_codebooks < lm.config.mimi_codebooks:
            problems.append(f"codec gives {mimi.config.num_codebooks} codebooks, LM needs {lm.config.mimi_codebooks}")
        if mimi.config.card != lm.config.card:
            problems.append(f"codec has {mimi.config.card} entries a codebook, LM knows {lm.config.card}")
        if problems:
            raise CheckpointError("codec and LM", problems)
        self.mimi, self.lm = mimi, lm

    def init_state(
        self, slots: int, device: torch.device, dtype: torch.dtype, storage: Storage | None = None
    ) -> DuplexState:
        """Empty state for ``slots`` slots and a scratch row.

        ``dtype`` and ``storage`` are the LM's; the codec's state is of its weights' dtype, in rings.
        """
        return DuplexState(
            self.mimi.init_state(slots, device, self.mimi.dtype),
            self.lm.init_state(slots, device, dtype, storage),
        )

    @torch.no_grad()
    def tick(
        self,
        pcm: Tensor,
        state: DuplexState,
        rows: Rows,
        given: Given | None = None,
        *,
        whole: Whole = True,
        ended: Tensor | None = None,
    ) -> TickOutput:
        """One frame of every row, in and out.

        Args:
            pcm: ``fp32[R, 1, 1920]``.
            given: tokens in place of sampled ones; None samples all.
            whole: rows that may sample from more than the sorted candidates.
            ended: ``bool[R]``, rows that hear the end of input in this frame instead of their PCM; None is nobody.

        Raises:
            ShapeError: anything but one frame a row.
        """
        if given is None:
            given = Given.nothing(pcm.shape[0], self.lm.config.dep_q, pcm.device)
        heard = self.encode(pcm, state, rows, ended)
        thought = self.think(heard, state, rows, given.text, whole=whole)
        spoken = self.speak(thought, state, rows, given.audio, whole=whole)
        said = self.lm.advance(thought.text, spoken.codes, state.lm, rows)
        voice = self.decode(said, state, rows)
        finite = self.finite(pcm, heard, thought, spoken, voice, rows)
        heads = self.lm.heads(thought, rows)
        return TickOutput(said.step, said.text, said.codes, voice, self.audible(said), finite, heads)

    @torch.no_grad()
    def prime(self, tokens: Tensor, state: DuplexState, rows: Rows) -> Tensor:
        """Make many given steps at once before a conversation: see `LM.prime`. The codec hears and says nothing."""
        return self.lm.prime(tokens, state.lm, rows)

    def encode(self, pcm: Tensor, state: DuplexState, rows: Rows, ended: Tensor | None = None) -> Heard:
        """PCM to the user's codes; the encoder of a row that made its first frame starts again.

        To the model the first frame is in the past: the LM reads initial tokens whatever was said in it. Starting again
        puts the left padding before the second frame, as the reference server does and the model was trained. (The
        reference resets the decoder too, which has not spoken yet.)
        """
        scratch = state.lm.cache.offset.shape[0] - 1
        hears = rows if ended is None else rows.masked(~ended, scratch)
        latent = self.mimi.latent_step(pcm, state.mimi, hears)
        first = state.lm.cache.offset.index_select(0, rows.slots) == 0
        reset(state.mimi.encoder, rows.masked(first, scratch).write)
        user_q = self.lm.config.user_q
        if user_q == 0:  # a model that only speaks
            return Heard(latent, latent.new_zeros((len(latent), 0), dtype=torch.int64))
        codes = self.mimi.quantiser.encode(latent, user_q)[..., 0]
        if ended is not None:
            codes = torch.where(ended[:, None], self.lm.end_of_input(len(codes), codes.device), codes)
        return Heard(latent, codes)

    def think(self, heard: Heard, state: DuplexState, rows: Rows, given: Tensor, *, whole: Whole = True) -> Thought:
        """Run the main transformer on the user's codes and choose the text token."""
        return self.lm.think(heard.codes, state.lm, rows, given, whole=whole)

    def speak(self, thought: Thought, state: DuplexState, rows: Rows, given: Tensor, *, whole: Whole = True) -> Spoken:
        """Run the Depformer."""
        return self.lm.speak(thought, state.lm, rows, given, whole=whole)

    def decode(self, said: Said, state: DuplexState, rows: Rows) -> Tensor:
        """Codes to PCM ``fp32[R, 1920]``; a row without a complete frame is silent, its decoder stays as it is."""
        if self.lm.config.dep_q == 0:  # a model that only writes
            return torch.zeros(len(said.codes), FRAME_SAMPLES, device=said.codes.device)
        scratch = state.lm.cache.offset.shape[0] - 1
        pcm = self.mimi.decode_step(said.codes[..., None], state.mimi, rows.masked(said.complete, scratch))[:, 0]
        return torch.where(said.complete[:, None], pcm, 0.0)

    def audible(self, said: Said) -> Tensor:
        """``bool[R]``: whether there is PCM."""
        return said.complete if self.lm.config.dep_q else torch.zeros_like(said.complete)

    def finite(self, pcm: Tensor, heard: Heard, thought: Thought, spoken: Spoken, voice: Tensor, rows: Rows) -> Tensor:
        """``bool[R]``: whether every value at a seam of the row is finite.

        Latents and logits are looked at because a codec hides what is not finite: the nearest code of NaN is a code.
        """
        latent, own = heard.latent[..., 0], thought.hidden[: len(pcm)]
        parts = [pcm[:, 0], latent, own, thought.text_logits, spoken.logits.flatten(1), voice]
        if rows.twins is not None:  # a row with a twin answers for both
            parts.append(thought.hidden.index_select(0, rows.twins.null))
        return fused.all_finite(parts, rows.exec_mask)
