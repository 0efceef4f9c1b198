"""The language model of Moshi: hears a frame of codes, writes a text token and says a frame of codes.

One step of one row: `think` (stream embeddings, main transformer, text token), `speak` (the Depformer, codebook by
codebook) and `advance` (the delayed-streams cache). Parameter names are those of Kyutai's checkpoints.

Seams: given tokens stand in for sampled ones per row and codebook; a session under guidance owns two rows of state, and
the second one, its twin, runs behind the rows of the tick (see `guidance`); `prime` makes many given steps at once.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from serve_app.errors import ParameterRefused, ShapeError
from serve_app.model import fused
from serve_app.model.conditioning import Choices, Conditioning, Conditions, Fused, dropped
from serve_app.model.delays import Delays, TokenCache
from serve_app.model.depformer import Depformer
from serve_app.model.embedding import UNGENERATED_TOKEN, Embedding
from serve_app.model.guidance import Guidance
from serve_app.model.linear import Linear, Together
from serve_app.model.lm_config import LMConfig
from serve_app.model.norm import Residual, make_norm
from serve_app.model.pages import Storage
from serve_app.model.quantised_linear import Int8Linear, Int8Together
from serve_app.model.sampling import TEXT_STREAM, SamplingParams, Whole
from serve_app.model.state import Rows, Twins
from serve_app.model.text_bias import Silence, TextBias
from serve_app.model.transformer import Transformer, TransformerState

__all__ = ["LM", "Given", "LMConfig", "LMState", "Said", "Spoken", "Thought"]


@dataclasses.dataclass(frozen=True, slots=True)
class LMState:
    """Streaming state of the LM for all slots; ``conditions`` is None where the model adds none to its input."""

    cache: TokenCache
    sampling: SamplingParams
    bias: TextBias
    guidance: Guidance
    conditions: Conditions | None
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
        every = torch.full((rows, 1 + dep_q), UNGENERATED_TOKEN, device=device, dtype=torch.int64)
        return cls(every[:, 0], every[:, 1:])


@dataclasses.dataclass(frozen=True, slots=True)
class Thought:
    """What the main transformer made.

    Attributes:
        hidden: ``[R + N, dim]``, of the R rows and of the N twins behind them.
        text_logits: ``fp32[R, text_card_out]``, guidance in them.
        text: ``int64[R]``.
    """

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
        self.text_emb = Embedding(c.text_card + 1, c.dim, norm=c.norm_emb, demux=c.demux_second_text_stream)
        self.transformer = Transformer(c.main)
        self.out_norm = make_norm(c.norm, c.dim)
        self.text_linear = Linear(c.dim, c.text_card_out, bias=c.bias_proj)
        inputs = c.weight_sets if c.depformer_multi_linear else 1
        self.depformer_in = nn.ModuleList(Linear(c.dim, c.depformer_dim, bias=False) for _ in range(inputs))
        self.depformer: Depformer | None = None
        if c.dep_q:
            self.depformer_emb = nn.ModuleList(self._depth_embedding(c.card + 1) for _ in range(c.dep_q - 1))
            self.depformer_text_emb = self._depth_embedding(c.text_card + 1, demux=c.demux_second_text_stream)
            self.depformer = Depformer(c)
            self.depformer_norms = nn.ModuleList(
                make_norm(c.depformer_norm, c.depformer_dim) if c.depformer_norm else nn.Identity()
                for _ in range(c.dep_q)
            )
        self.linears = nn.ModuleList(Linear(c.depformer_dim, c.card, bias=c.bias_proj) for _ in range(c.dep_q))
        self.extra_heads = nn.ModuleList(
            Linear(c.dim, c.extra_heads_dim, bias=False) for _ in range(c.extra_heads_num_heads)
        )
        self.condition_provider = Conditioning(c.conditioners, c.fuser, c.dim) if c.conditioners else None
        self._embeddings: Together | None = None
        self._depth_inputs: Together | Int8Together | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of what lies between products, and of keys and values where nothing else is asked for."""
        return self.text_emb.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.text_emb.weight.device

    @torch.no_grad()
    def lay_out(self) -> None:
        """Lay the weights as a tick reads them, once they are final: tables of all streams and all inputs of the
        Depformer one after the other, and on the CPU products in blocks (see `linear`). Changes the last bits only.
        Without it everything works, slower. Host side, not under inference mode.
        """
        if all(embedding.plain for embedding in self._stream_embeddings()):
            self._embeddings = Together(self._stream_embeddings())
        inputs = list(self.depformer_in)
        if len(inputs) > 1:
            short = [linear for linear in inputs if isinstance(linear, Int8Linear)]
            self._depth_inputs = Int8Together(short) if short else Together(inputs)

    def _stream_embeddings(self) -> list[Embedding]:
        """In the order in which they are added: every codebook, then text."""
        return [*self.emb, self.text_emb]

    def init_state(
        self, slots: int, device: torch.device, dtype: torch.dtype, storage: Storage | None = None
    ) -> LMState:
        """Empty state for ``slots`` slots and a scratch row. Greedy until told.

        Args:
            dtype: of keys and values, unless ``storage`` has another.
            storage: how keys and values are kept; None is a ring for every slot.
        """
        return LMState(
            self.delays.init_state(slots, device),
            SamplingParams.empty(slots, device),
            TextBias.empty(slots, device),
            Guidance.empty(slots, device),
            Conditions.empty(slots, self.config.dim, device, dtype) if self.config.fuser.sum else None,
            self.transformer.init_state(slots, device, dtype, storage),
        )

    @torch.no_grad()
    def set_conditions(
        self, state: LMState, slot: int, choices: Choices, *, twin: int | None = None, against: Choices | None = None
    ) -> None:
        """Make a session's conditions those of its slot, whatever the slot had. Host side, between ticks.

        A model with conditions needs this for every session that opens, with nothing chosen too: to the model that is
        a condition as well.

        Args:
            choices: by name; what is not named is not chosen.
            twin: the slot of the session's twin, under guidance.
            against: what the twin is conditioned on; None is the same with nothing chosen.

        Raises:
            ParameterRefused: an unknown name or value, or vectors that do not fit. Nothing is written then.
        """
        pairs = [(slot, choices)]
        if twin is not None:
            pairs.append((twin, dropped(choices) if against is None else against))
        for target, made in [(target, self._fuse(chosen)) for target, chosen in pairs]:
            if state.conditions is not None and made.sum is not None:
                state.conditions.sum[target] = made.sum.to(state.conditions.sum.dtype)
            if made.cross is not None:
                self.transformer.remember(made.cross.to(self.dtype), state.transformer, target)

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
        hidden = self._run(tokens[..., None], state, rows)[:, 0]
        logits = state.guidance.steer(self.text_linear(hidden), rows, text=True).float()
        bias = state.bias
        text = fused.sample(
            bias.penalise(logits, rows, self.silence),
            state.sampling.text_temperature.index_select(0, rows.slots),
            state.sampling.text_top_k.index_select(0, rows.slots),
            self._keys(state.sampling.text_seed, state, rows, TEXT_STREAM, 1)[:, 0],
            given,
            whole=whole,
            raised=(self.silence.padding, bias.pad_mult.index_select(0, rows.slots)),
        )
        bias.remember(text, rows, self.silence, self.config.text_card_out)
        return Thought(hidden, logits, text)

    def speak(self, thought: Thought, state: LMState, rows: Rows, given: Tensor, *, whole: Whole = True) -> Spoken:
        """Say one code after another, each from the hidden state and the token before it."""
        c = self.config
        if self.depformer is None:
            return Spoken(given, thought.text_logits.new_zeros(*given.shape, c.card))
        temperature = state.sampling.audio_temperature.index_select(0, rows.slots)
        top_k = state.sampling.audio_top_k.index_select(0, rows.slots)
        keys = self._keys(state.sampling.audio_seed, state, rows, TEXT_STREAM + 1, c.dep_q)  # [R, dep_q]
        noise = fused.noise_ahead(keys, temperature, c.card)
        inputs = self._depth_in(thought.hidden[:, None])
        past = self.depformer.begin(thought.hidden)
        token, codes, all_logits = thought.text, [], []
        for index in range(c.dep_q):
            embedding = self.depformer_text_emb if index == 0 else self.depformer_emb[index - 1]
            source = inputs[c.depformer_weights_per_step_schedule[index] if c.depformer_multi_linear else 0]
            heard = _with_twins(token, rows.twins)
            assert isinstance(embedding, Embedding)
            if embedding.plain:
                x = Residual(source, spoken=(heard, embedding.weight))
            else:
                x = Residual(source + embedding(heard[:, None]))
            _, normed = self.depformer.stream(x, past, index).normed(self.depformer_norms[index])
            logits = self.linears[index](normed)[:, 0]
            logits = state.guidance.steer(logits, rows, text=False)  # [R, card]
            here = None if noise is None else noise[:, index]
            token = fused.sample(logits, temperature, top_k, keys[:, index], given[:, index], whole=whole, noise=here)
            codes.append(token)
            all_logits.append(logits)
        return Spoken(torch.stack(codes, dim=1), torch.stack(all_logits, dim=1).float())

    def _depth_in(self, hidden: Tensor) -> Sequence[Tensor]:
        """What each weight set of the Depformer gets of ``[R + N, 1, dim]``: ``[R + N, 1, depformer_dim]`` each."""
        together = self._depth_inputs
        if together is None or not together.current:
            return [linear(hidden) for linear in self.depformer_in]
        return together.product(hidden).split(self.config.depformer_dim, dim=-1)  # type: ignore[no-untyped-call,no-any-return]

    def advance(self, text: Tensor, codes: Tensor, state: LMState, rows: Rows) -> Said:
        """Store what was said, count the step and read the newest complete frame."""
        step = state.cache.offset.index_select(0, rows.slots)
        frame, complete = self.delays.say(text, codes, state.cache, rows)
        return Said(step, frame[:, 0], frame[:, 1:], complete)

    def prime(self, tokens: Tensor, state: LMState, rows: Rows) -> Tensor:
        """Make T steps at once whose every token is given: the state is what T steps with `Given` would leave.

        Args:
            tokens: ``int64[R, streams, T]``: text and own codes as said at each step, delays in them already (see
                `Delays.lay`), then the user's codes as heard. T may not exceed the context.

        Returns:
            ``bool[R]``, whether everything that was computed for the row is finite; true where it does not execute.

        Raises:
            ShapeError: other streams, or more steps than the context.
        """
        c = self.config
        if tokens.ndim != 3 or tokens.shape[1] != c.streams or not 0 < tokens.shape[2] <= c.context:
            raise ShapeError("primed tokens", tokens.shape, f"[rows, {c.streams}, 1 to {c.context}]")
        hidden = self._run(self.delays.recite(tokens, state.cache, rows), state, rows, one_by_one=True)
        for text in tokens[:, 0].unbind(1):
            state.bias.remember(text, rows, self.silence, c.text_card_out)
        self.delays.skip(tokens, state.cache, rows)
        finite = (hidden * 0).sum(dim=(1, 2)) == 0  # [R + N]
        both = finite if rows.twins is None else finite[: len(tokens)] & finite.index_select(0, rows.twins.null)
        return both | ~rows.exec_mask

    def heads(self, thought: Thought, rows: Rows) -> Tensor:
        """What the extra heads say at this very step, no delay in it: ``fp32[R, heads, classes]``, sums of 1."""
        hidden = thought.hidden[: rows.slots.shape[0]]
        said = [F.softmax(head(hidden), dim=-1).float() for head in self.extra_heads]
        return torch.stack(said, dim=1) if said else hidden.new_zeros((len(hidden), 0, 0), dtype=torch.float32)

    def end_of_input(self, rows: int, device: torch.device | str = "cpu") -> Tensor:
        """The user's codes that tell a translating model that nobody speaks any more, ``int64[R, user_q]``; heard once.

        Source: Hibiki's inference in moshi 0.2.13: one frame whose every code is the one past the codebook.
        """
        return torch.full((rows, self.config.user_q), self.config.card, device=device, dtype=torch.int64)

    def _run(self, tokens: Tensor, state: LMState, rows: Rows, *, one_by_one: bool = False) -> Tensor:
        """The main transformer over ``int64[R, streams, T]``, twins behind the rows: ``[R + N, T, dim]``."""
        if rows.twins is not None:
            offset = state.cache.offset.index_select(0, rows.slots)
            tokens = torch.cat([tokens, state.guidance.twin_tokens(tokens, offset, self.delays.lags, rows)])
        every = rows.with_twins()
        x = self._embed(tokens)
        if state.conditions is not None:
            x = x + state.conditions.sum.index_select(0, every.slots).to(x.dtype)
        stream = self.transformer.stream(x, state.transformer, every, one_by_one=one_by_one)
        return stream.normed(self.out_norm)[1].to(x.dtype)

    def _embed(self, tokens: Tensor) -> Tensor:
        """Sum of the stream embeddings, ``[R, streams, T]`` to ``[R, T, dim]``. The reference's order: sums round."""
        together = self._embeddings
        if together is not None and together.current:
            return fused.embed_sum(tokens.roll(-1, dims=1), together.weight, together.first)
        x = self.emb[0](tokens[:, 1])
        for index in range(1, self.config.n_q):
            x = x + self.emb[index](tokens[:, index + 1])
        return x + self.text_emb(tokens[:, 0])  # type: ignore[no-any-return]

    def _fuse(self, choices: Choices) -> Fused:
        if self.condition_provider is None:
            if choices:
                raise ParameterRefused(f"condition.{next(iter(choices))}", "", "this model has no conditions")
            return Fused(None, None)
        made = self.condition_provider.fuse(choices)
        if made.cross is not None and len(made.cross) > self.config.cross_steps:
            name = f"condition.{self.config.fuser.cross[0]}"
            raise ParameterRefused(name, f"{len(made.cross)} vectors", f"more than {self.config.cross_steps}")
        return made

    def _keys(self, seed: Tensor, state: LMState, rows: Rows, first: int, count: int) -> Tensor:
        """Noise keys ``int64[R, count]`` of this step for the streams from ``first``."""
        return fused.noise_keys(seed, state.cache.offset, rows.slots, first, count)

    def _depth_embedding(self, rows: int, *, demux: bool = False) -> Embedding:
        c = self.config
        return Embedding(rows, c.depformer_dim, norm=c.norm_emb, rank=c.depformer_low_rank_embeddings, demux=demux)


def _with_twins(tokens: Tensor, twins: Twins | None) -> Tensor:
    """``int64[R]`` to ``int64[R + N]``: twins say what their rows say."""
    return tokens if twins is None else torch.cat([tokens, tokens.index_select(0, twins.of)])
