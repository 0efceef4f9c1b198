"""The language model of Moshi: hears a frame of codes, writes a text token and says a frame of codes.

One step of one row: `think` (stream embeddings, main transformer, text token), `speak` (the Depformer, codebook by
codebook) and `advance` (the delayed-streams cache). Parameter names are those of Kyutai's checkpoints.

Seams: given tokens stand in for sampled ones per row and codebook; a session under guidance will own two rows.
"""

import dataclasses

import torch
from torch import Tensor, nn

from serve_app.errors import ShapeError
from serve_app.model.delays import Delays, TokenCache
from serve_app.model.depformer import Depformer
from serve_app.model.embedding import UNGENERATED_TOKEN, Embedding
from serve_app.model.lm_config import LMConfig
from serve_app.model.norm import make_norm
from serve_app.model.sampling import (
    TEXT_STREAM,
    TOP_K_WIDTH,
    SamplingParams,
    Whole,
    draw,
    exponential_noise,
    noise_keys,
)
from serve_app.model.state import Rows
from serve_app.model.text_bias import Silence, TextBias
from serve_app.model.transformer import Transformer, TransformerState

__all__ = ["LM", "Given", "LMConfig", "LMState", "Said", "Spoken", "Thought"]


@dataclasses.dataclass(frozen=True, slots=True)
class LMState:
    """Streaming state of the LM for all slots."""

    cache: TokenCache
    sampling: SamplingParams
    bias: TextBias
    transformer: TransformerState


@dataclasses.dataclass(frozen=True, slots=True)
class Given:
    """Tokens that stand in for sampled ones; `UNGENERATED_TOKEN` (-2) means sample.

    They are what the model would say at this very step, so the delays are in them already.

    Attributes:
        text: ``int64[R]``.
        audio: ``int64[R, dep_q]``; the Depformer goes on from given codes.
    """

    text: Tensor
    audio: Tensor

    @classmethod
    def nothing(cls, rows: int, dep_q: int, device: torch.device | str = "cpu") -> "Given":
        """Sample everything."""
        text = torch.full((rows,), UNGENERATED_TOKEN, device=device, dtype=torch.int64)
        return cls(text, text[:, None].repeat(1, dep_q))


@dataclasses.dataclass(frozen=True, slots=True)
class Thought:
    """What the main transformer made: ``hidden [R, dim]``, ``text_logits fp32[R, text_card_out]``, ``text [R]``."""

    hidden: Tensor
    text_logits: Tensor
    text: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Spoken:
    """Outcome of the Depformer: ``codes int64[R, dep_q]`` and ``logits fp32[R, dep_q, card]``."""

    codes: Tensor
    logits: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Said:
    """The newest complete frame of each row.

    Attributes:
        step: ``int64[R]``, the row's step number, from 0.
        text: ``int64[R]``, -2 where there is no complete frame.
        codes: ``int64[R, dep_q]``, -2 where there is no complete frame.
        complete: ``bool[R]``, whether there is one.
    """

    step: Tensor
    text: Tensor
    codes: Tensor
    complete: Tensor


class LM(nn.Module):
    """Main transformer and Depformer over the delayed streams of one model."""

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.config = c = config
        self.delays = Delays(c)
        self.silence = Silence(c.existing_text_padding_id, (c.existing_text_end_padding_id, c.text_card))
        self.emb = nn.ModuleList(Embedding(c.card + 1, c.dim, norm=c.norm_emb) for _ in range(c.n_q))
        self.text_emb = Embedding(c.text_card + 1, c.dim, norm=c.norm_emb)
        self.transformer = Transformer(c.main)
        self.out_norm = make_norm(c.norm, c.dim)
        self.text_linear = nn.Linear(c.dim, c.text_card_out, bias=c.bias_proj)
        inputs = c.weight_sets if c.depformer_multi_linear else 1
        self.depformer_in = nn.ModuleList(nn.Linear(c.dim, c.depformer_dim, bias=False) for _ in range(inputs))
        self.depformer_emb = nn.ModuleList(self._depth_embedding(c.card + 1) for _ in range(c.dep_q - 1))
        self.depformer_text_emb = self._depth_embedding(c.text_card + 1)
        self.depformer = Depformer(c)
        self.depformer_norms = nn.ModuleList(
            make_norm(c.depformer_norm, c.depformer_dim) if c.depformer_norm else nn.Identity() for _ in range(c.dep_q)
        )
        self.linears = nn.ModuleList(nn.Linear(c.depformer_dim, c.card, bias=c.bias_proj) for _ in range(c.dep_q))

    def init_state(self, slots: int, device: torch.device, dtype: torch.dtype) -> LMState:
        """Empty state for ``slots`` slots and a scratch row; keys and values in ``dtype``. Greedy until told."""
        return LMState(
            self.delays.init_state(slots, device),
            SamplingParams.empty(slots, device),
            TextBias.empty(slots, device),
            self.transformer.init_state(slots, device, dtype),
        )

    def step(
        self, user: Tensor, state: LMState, rows: Rows, given: Given | None = None, *, whole: Whole = True
    ) -> Said:
        """One step of every row: `think`, `speak`, `advance`.

        Args:
            user: ``int64[R, user_q]``, the user's codes of this frame; more codebooks than that are ignored.
            given: tokens in place of sampled ones; None samples all.
            whole: rows that may sample from more than the sorted candidates.

        Raises:
            ShapeError: fewer codebooks than the model hears.
        """
        if given is None:
            given = Given.nothing(user.shape[0], self.config.dep_q, user.device)
        thought = self.think(user, state, rows, given.text, whole=whole)
        spoken = self.speak(thought, state, rows, given.audio, whole=whole)
        return self.advance(thought.text, spoken.codes, state, rows)

    def think(self, user: Tensor, state: LMState, rows: Rows, given: Tensor, *, whole: Whole = True) -> Thought:
        """Hear the user's codes, run the main transformer and choose the text token."""
        if user.ndim != 2 or user.shape[1] < self.config.user_q:
            raise ShapeError("user codes", user.shape, f"[rows, {self.config.user_q}]")
        tokens = self.delays.hear(user[:, : self.config.user_q], state.cache, rows)
        hidden = self.out_norm(self.transformer.step(self._embed(tokens), state.transformer, rows))[:, 0]
        logits = self.text_linear(hidden).float()
        keys = self._keys(state.sampling.text_seed, state, rows, TEXT_STREAM, 1)[:, 0]
        bias = state.bias
        text = draw(
            bias.penalise(logits, rows, self.silence),
            state.sampling.text_temperature.index_select(0, rows.slots),
            state.sampling.text_top_k.index_select(0, rows.slots),
            keys,
            exponential_noise(keys, min(TOP_K_WIDTH, logits.shape[-1])),
            whole=whole,
            raised=(self.silence.padding, bias.pad_mult.index_select(0, rows.slots)),
        )
        text = torch.where(given == UNGENERATED_TOKEN, text, given)
        bias.remember(text, rows, self.silence, self.config.text_card_out)
        return Thought(hidden, logits, text)

    def speak(self, thought: Thought, state: LMState, rows: Rows, given: Tensor, *, whole: Whole = True) -> Spoken:
        """Say one code after another, each from the hidden state and the token before it."""
        c = self.config
        temperature = state.sampling.audio_temperature.index_select(0, rows.slots)
        top_k = state.sampling.audio_top_k.index_select(0, rows.slots)
        keys = self._keys(state.sampling.audio_seed, state, rows, TEXT_STREAM + 1, c.dep_q)  # [R, dep_q]
        noise = exponential_noise(keys, min(TOP_K_WIDTH, c.card))  # [R, dep_q, width]
        inputs = [linear(thought.hidden[:, None]) for linear in self.depformer_in]  # [R, 1, depformer_dim] each
        past = self.depformer.begin(thought.hidden)
        token, codes, all_logits = thought.text, [], []
        for index in range(c.dep_q):
            embedding = self.depformer_text_emb if index == 0 else self.depformer_emb[index - 1]
            source = inputs[c.depformer_weights_per_step_schedule[index] if c.depformer_multi_linear else 0]
            x = self.depformer.step(source + embedding(token[:, None]), past, index)
            logits = self.linears[index](self.depformer_norms[index](x))[:, 0].float()  # [R, card]
            code = draw(logits, temperature, top_k, keys[:, index], noise[:, index], whole=whole)
            token = torch.where(given[:, index] == UNGENERATED_TOKEN, code, given[:, index])
            codes.append(token)
            all_logits.append(logits)
        return Spoken(torch.stack(codes, dim=1), torch.stack(all_logits, dim=1))

    def advance(self, text: Tensor, codes: Tensor, state: LMState, rows: Rows) -> Said:
        """Store what was said, count the step and read the newest complete frame."""
        step = state.cache.offset.index_select(0, rows.slots)
        frame, complete = self.delays.say(text, codes, state.cache, rows)
        return Said(step, frame[:, 0], frame[:, 1:], complete)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Sum of the stream embeddings, ``[R, 1, dim]``. The order is the reference's: sums round."""
        x = self.emb[0](tokens[:, 1])
        for index in range(1, self.config.n_q):
            x = x + self.emb[index](tokens[:, index + 1])
        return (x + self.text_emb(tokens[:, 0]))[:, None]  # type: ignore[no-any-return]

    def _keys(self, seed: Tensor, state: LMState, rows: Rows, first: int, count: int) -> Tensor:
        """Noise keys ``int64[R, count]`` of this step for the streams from ``first``."""
        step = state.cache.offset.index_select(0, rows.slots)
        streams = torch.arange(first, first + count, device=step.device)
        return noise_keys(seed.index_select(0, rows.slots), step, streams)

    def _depth_embedding(self, rows: int) -> Embedding:
        c = self.config
        return Embedding(rows, c.depformer_dim, norm=c.norm_emb, rank=c.depformer_low_rank_embeddings)
