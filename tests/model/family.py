"""The family beside Moshi 7B, small: shapes, sessions that choose something, what the reference says to each alone."""

import dataclasses
import importlib
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model.conditioning import Choices, Vectors, dropped
from serve_app.model.lm import LM, Given, LMState
from serve_app.model.state import reset
from tests.model.language import LATE_16, MOSHIKO
from tests.oracle import reference_generator

_conditioners: Any = importlib.import_module("moshi.conditioners")

QUALITIES: Final = ("very_bad", "bad", "neutral", "good", "very_good")


def lookup(n_bins: int, dim: int, values: tuple[str, ...] | None, **more: Any) -> dict[str, Any]:
    """A lookup conditioner as config.json spells it."""
    own = {"n_bins": n_bins, "dim": dim, "tokenizer": "noop", "possible_values": values and list(values)}
    return {"type": "lut", "lut": own | more}


TWO_B: Final = LATE_16 | {
    "conditioners": {"description": lookup(31, 16, QUALITIES)},
    "fuser": {"cross_attention_pos_emb": False, "cross_attention_pos_emb_scale": 1, "sum": ["description"]},
}
"""The published 2B: sixteen codebooks, delays of two, a quality that is added to every step."""

HIBIKI: Final = MOSHIKO | {
    "delays": [0, *[2] * 8, 0, *[2] * 7],
    "existing_text_padding_id": 3,
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 5, 5],
    "depformer_low_rank_embeddings": 8,
    "conditioners": {"description": lookup(31, 16, QUALITIES)},
    "fuser": {"sum": ["description"], "cross": [], "prepend": []},
}
"""Translation: a schedule of weight sets, low rank, delays of two, guided away from bad quality."""

TTS: Final = MOSHIKO | {
    "n_q": 8,
    "dep_q": 8,
    "delays": [0, 0, 2, 2, 2, 2, 2, 2, 2],
    "norm": "layer_norm",
    "layer_scale": 0.01,
    "positional_embedding": "sin_rope",
    "cross_attention": True,
    "demux_second_stream": True,
    "depformer_low_rank_embeddings": 8,
    "depformer_norm": "rms_norm_f32",
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4],
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 12}},
        "accent": lookup(7, 8, None, force_linear=False),
        "control": lookup(3, 64, ("ok", "also_ok"), force_linear=False, learn_padding=False),
        "pace": lookup(4, 5, ("slow", "fast")),
    },
    "fuser": {
        "sum": ["control", "pace"],
        "cross": ["speaker_wavs", "accent"],
        "cross_attention_pos_emb": True,
        "cross_attention_pos_emb_scale": 0.7,
    },
}
"""Speech from text: hears nobody, two texts in a token, attends to voices, a norm for every head."""

STT: Final = {key: value for key, value in MOSHIKO.items() if key not in ("depformer_context",)} | {
    "n_q": 8,
    "dep_q": 0,
    "delays": [0] * 9,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
    "conditioners": {},
    "fuser": None,
}
"""Text from speech: no Depformer, four heads beside the text."""

FAMILY: Final = {"two-b": TWO_B, "hibiki": HIBIKI, "tts": TTS, "stt": STT}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Session:
    """One session: what it chooses, what it hears, and what it is made to say.

    Attributes:
        choices: its conditions; under guidance against the same ones dropped, or against ``against``.
        user: ``int64[T, user_q]``.
        text: ``int64[T]`` to force, or None.
        mute: steps at whose start every code is -1.
    """

    user: Tensor
    choices: Choices = dataclasses.field(default_factory=dict)
    coef: float = 1.0
    against: Choices | None = None
    no_text: bool = False
    masked_until: int | None = None
    text: Tensor | None = None
    mute: int = 0

    @property
    def steps(self) -> int:
        return len(self.user)

    @property
    def guided(self) -> bool:
        return self.coef != 1.0

    @property
    def gain(self) -> float:
        """How much guidance enlarges an error of the logits it is made of: the sum of their weights."""
        return abs(self.coef) + abs(1 - self.coef)

    def given(self, step: int, dep_q: int) -> Given:
        """What it is made to say at this step, as one row."""
        given = Given.nothing(1, dep_q)
        if self.text is not None:
            given.text[0] = self.text[step]
        if step < self.mute:
            given.audio.fill_(-1)
        return given


@dataclasses.dataclass(frozen=True)
class Step:
    """What the reference computed in one step of one session: its logits, the aligned tokens, its extra heads."""

    text_logits: Tensor
    audio_logits: Tensor
    said: Tensor
    heads: Tensor


def open_session(lm: LM, state: LMState, slot: int, twin: int | None, session: Session) -> None:
    """What an engine does when a session gets its slots."""
    reset(state, torch.tensor([slot] if twin is None else [slot, twin]))
    state.guidance.set(slot, session.coef, no_text=session.no_text, masked_until=session.masked_until)
    lm.set_conditions(state, slot, session.choices, twin=twin, against=session.against)


class ReferenceRun:
    """Runs the reference for one session alone."""

    def __init__(self, reference: Any, config: dict[str, Any]) -> None:
        self._reference, self._config = reference, config
        self._audio: list[Tensor] = []
        self._coef = 1.0
        inner = reference.forward_depformer

        def forward(index: int, tokens: Tensor, hidden: Tensor) -> Tensor:
            logits: Tensor = inner(index, tokens, hidden)
            row, *null = logits[:, 0, 0]
            self._audio.append(null[0] + (row - null[0]) * self._coef if null else row)
            return logits

        reference.forward_depformer = forward

    @torch.no_grad()
    def run(self, session: Session) -> list[Step]:
        """Every step of the session, in a generator of its own."""
        self._coef = session.coef
        texts, steps = list[Tensor](), list[Step]()

        def force(token: Tensor) -> None:
            if session.text is not None:
                token[0] = session.text[len(steps)]

        generator = reference_generator(
            self._reference,
            support_out_of_sync=True,
            cfg_coef=session.coef,
            cfg_is_no_text=session.no_text,
            cfg_is_masked_until=None if session.masked_until is None else [session.masked_until],
            condition_tensors=self._conditions(session),
            on_text_logits_hook=lambda logits: texts.append(logits[0, 0, 0]),
            on_text_hook=force,
        )
        dep_q = self._config["dep_q"]
        with generator.streaming(1):
            for step in range(session.steps):
                user = session.user[step][None, :, None]
                replaced = torch.full((1, dep_q, 1), -1) if step < session.mute else None
                said, heads = generator.step_with_extra_heads(user, replaced)
                audio = torch.stack(self._audio) if self._audio else torch.empty(0)
                heads = torch.stack([head[0, 0] for head in heads]) if heads else torch.empty(0)
                self._audio.clear()
                steps.append(Step(texts.pop(), audio, said[0, :, 0], heads))
        return steps

    def _conditions(self, session: Session) -> Any:
        if self._config.get("fuser") is None:
            return None
        rows = [session.choices]
        if session.guided:
            rows.append(dropped(session.choices) if session.against is None else session.against)
        return self._reference.condition_provider.prepare_and_provide([self._attributes(row) for row in rows])

    def _attributes(self, choices: Choices) -> Any:
        text, tensor = {}, {}
        for name, config in self._config["conditioners"].items():
            chosen = choices.get(name)
            if config["type"] == "lut":
                text[name] = chosen
            else:
                vectors = chosen or Vectors(torch.zeros(1, 12), torch.zeros(1, dtype=torch.bool))
                assert isinstance(vectors, Vectors)
                tensor[name] = _conditioners.TensorCondition(vectors.values[None], vectors.mask[None])
        return _conditioners.ConditionAttributes(text=text, tensor=tensor)
