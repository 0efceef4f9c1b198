"""Language models for the tests: small shapes as Kyutai spells them, the reference beside ours, the near-tie rule."""

from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model.lm import LM, LMConfig
from tests.oracle import reference_lm, weights_of

torch.set_num_threads(1)

CPU: Final = torch.device("cpu")
CONTEXT: Final = 10
LOGIT_TOLERANCE: Final = 1e-4
TIE_MARGIN: Final = 1e-6
MAX_EXCUSED: Final = 1e-4

MOSHIKO: Final[dict[str, Any]] = {
    "dim": 64,
    "text_card": 48,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": 32,
    "num_heads": 4,
    "num_layers": 2,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": CONTEXT,
    "max_period": 10_000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_causal": True,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10_000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1],
}
"""The published 7B, small."""

LATE_16: Final = MOSHIKO | {
    "n_q": 32,
    "dep_q": 16,
    "delays": [0, 0, *[2] * 15, 0, *[2] * 15],
    "max_period": 100_000,
    "depformer_context": 16,
}
"""The published 2B without its conditions: sixteen codebooks, delays of two."""

SHARED_DEPTH: Final = MOSHIKO | {
    "norm": "layer_norm",
    "layer_scale": 0.01,
    "kv_repeat": 2,
    "positional_embedding": "rope_concat",
    "depformer_layer_scale": 0.01,
    "depformer_weights_per_step_schedule": [0, 1, 2, 2, 3, 3, 3, 3],
    "depformer_dim_feedforward": [128, 96, 96, 64],
    "depformer_low_rank_embeddings": 8,
    "depformer_norm": "rms_norm_f32",
    "depformer_pos_emb": "rope",
    "depformer_kv_repeat": 1,
}
"""A depth schedule, low rank, grouped heads, layer scales, unequal widths, a norm for every head."""

INHERITED: Final = {
    key: value
    for key, value in MOSHIKO.items()
    if not key.startswith("depformer_") or key in ("depformer_dim", "depformer_num_heads", "depformer_weights_per_step")
} | {
    "n_q": 6,
    "dep_q": 3,
    "delays": [1, 0, 2, 2, 0, 2, 1],
    "norm": "rms_norm",
    "norm_emb": True,
    "bias_proj": True,
    "layer_scale": 0.01,
    "kv_repeat": 2,
    "text_card_out": 40,
    "gating": "gelu",
    "hidden_scale": 4,
    "positional_embedding": "sin_rope",
}
"""Hardly a key of its own for the Depformer, whose positions are then sinusoidal; delays of every kind."""

SHAPES: Final = {"moshiko": MOSHIKO, "late-16": LATE_16, "shared-depth": SHARED_DEPTH, "inherited": INHERITED}


def lm_pair(config: dict[str, Any], seed: int = 0) -> tuple[Any, LM]:
    """The reference and ours with the same random weights; every key loads under its published name."""
    reference = reference_lm(config, seed, scale=2.0)
    ours = LM(LMConfig.from_kyutai(config)).eval()
    ours.load_state_dict(weights_of(reference), strict=True)
    return reference, ours


def small_lm(config: dict[str, Any] = MOSHIKO, seed: int = 0) -> LM:
    """Ours alone, with the same weights that `lm_pair` gives it."""
    return lm_pair(config, seed)[1]


class RecordedLogits:
    """The logits of the reference's latest step: ``text [B, V]`` by a hook, ``audio [B, dep_q, card]`` by a wrapper."""

    def __init__(self, reference: Any) -> None:
        self._text: list[Tensor] = []
        self._audio: list[Tensor] = []
        inner = reference.forward_depformer

        def forward(index: int, tokens: Tensor, hidden: Tensor) -> Tensor:
            logits: Tensor = inner(index, tokens, hidden)
            self._audio.append(logits[:, 0, 0])
            return logits

        reference.forward_depformer = forward

    def on_text(self, logits: Tensor) -> None:
        """For the generator's ``on_text_logits_hook``."""
        self._text.append(logits[:, 0, 0])

    def take(self) -> tuple[Tensor, Tensor]:
        """Text and audio logits since the last call."""
        text, audio = self._text.pop(), torch.stack(self._audio, dim=1)
        self._text.clear()
        self._audio.clear()
        return text, audio


class TokenComparison:
    """Counts greedy tokens that differ, excusing near ties; a session that had one is out until its row restarts."""

    def __init__(self, rows: int) -> None:
        self.compared = self.wrong = self.excused = 0
        self.worst_logit = 0.0
        self._out = [False] * rows

    def restart(self, row: int) -> None:
        """A new session in this row."""
        self._out[row] = False

    def add(self, row: int, expected: list[Tensor], got: list[Tensor], gain: float = 1.0) -> None:
        """Compare one row's logits of one step, codebook after codebook; the choice is the greatest one.

        ``gain`` is how much what made these logits enlarges rounding errors; their differences are divided by it.
        """
        for theirs, ours in zip(expected, got, strict=True):
            if self._out[row]:
                return
            assert torch.isfinite(theirs).all()
            self.compared += 1
            self.worst_logit = max(self.worst_logit, float((theirs - ours).abs().max()) / gain)
            if int(theirs.argmax()) != int(ours.argmax()):
                best = theirs.topk(2).values
                near = float(best[0] - best[1]) < TIE_MARGIN
                self.excused, self.wrong = self.excused + near, self.wrong + (not near)
                self._out[row] = True

    def check(self) -> None:
        """Fail unless every token is equal or excused, few are excused, and logits agree."""
        counts = f"{self.compared} compared, {self.wrong} wrong, {self.excused} excused as near ties"
        print(f"tokens: {counts}; logits within {self.worst_logit:.1e}")
        assert self.wrong == 0
        assert self.excused <= MAX_EXCUSED * self.compared
        assert self.worst_logit <= LOGIT_TOLERANCE
