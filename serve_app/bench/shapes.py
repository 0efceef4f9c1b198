"""What may be measured: the published 7B, a 112 M model, the codec alone, the demo, or any checkpoint's folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import serve_app
from serve_app.checkpoint.codec import read_mimi_config
from serve_app.checkpoint.published import CONFIG_NAME, MIMI, MOSHI_7B
from serve_app.errors import ConfigError
from serve_app.model.lm_config import LMConfig
from serve_app.model.mimi import MimiConfig

DEMO: Final = Path(serve_app.__file__).parent / "demo" / "checkpoint"
CODEC_STAGES: Final = ("encode", "decode")
LM_STAGES: Final = ("lm", "depformer")
STAGES: Final = ("encode", "lm", "depformer", "decode")

_SMALL_DEPTH: Final[Mapping[str, Any]] = {"depformer_dim": 256, "depformer_num_heads": 4, "depformer_num_layers": 4}

LM_140M: Final[Mapping[str, Any]] = {
    **{key: value for key, value in MOSHI_7B.items() if key != "depformer_dim_feedforward"},
    "dim": 768,
    "num_heads": 12,
    "num_layers": 10,
    "hidden_scale": 4.125,
    "n_q": 16,
    "dep_q": 8,
    "card": 2048,
    "text_card": 4000,
    "context": 750,
    **_SMALL_DEPTH,
}
"""The 7B's kind at a size that two CPU cores carry: 139.7 M parameters, 32.9 M of them tables of embeddings."""

LM_112M: Final[Mapping[str, Any]] = {**LM_140M, "num_layers": 7}
"""The same with three layers fewer: 118.1 M parameters, embeddings included."""

_SILENT_LM: Final[Mapping[str, Any]] = {
    **{key: value for key, value in LM_140M.items() if not key.startswith("depformer_dim")},
    "dim": 16,
    "num_heads": 2,
    "num_layers": 1,
    "text_card": 32,
    "context": 750,
    "depformer_dim": 16,
    "depformer_num_heads": 2,
    "depformer_num_layers": 1,
}
"""Beside a codec that is measured alone: it costs next to nothing and knows the codec's entries."""


def _narrow(content: Mapping[str, Any], *, bins: int, n_q: int) -> Mapping[str, Any]:
    """A codec beside a language model that is measured alone: next to no cost, the codebooks that the model knows."""
    seanet = {**content["seanet"], "dimension": 16, "n_filters": 2}
    width = {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32, "context": 50}
    transformer = {**content["transformer"], **width, "input_dimension": 16, "output_dimensions": [16]}
    quantizer = {"dimension": 8, "n_q": n_q, "bins": bins, "input_dimension": 16, "output_dimension": 16}
    return {**content, "seanet": seanet, "transformer": transformer, "quantizer": quantizer}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """A model to measure.

    Attributes:
        name: as it was asked for; of a folder the last part of its path.
        lm, mimi: as Kyutai's configurations spell them.
        stages: those that count; the others are there because a tick needs them, and cost next to nothing.
        folder: where its weights are; None for random ones.
    """

    name: str
    lm: Mapping[str, Any]
    mimi: Mapping[str, Any]
    stages: tuple[str, ...] = STAGES
    folder: Path | None = None

    @property
    def whole(self) -> bool:
        """Whether the whole tick counts."""
        return self.stages == STAGES

    def lm_config(self, context: int | None = None) -> LMConfig:
        """The language model's shape.

        Raises:
            CheckpointError, NotBuilt: as `LMConfig.from_kyutai`.
        """
        config = LMConfig.from_kyutai(self.lm, f"{self.name}/{CONFIG_NAME}")
        return config if context is None else config.with_context(context)

    def mimi_config(self) -> MimiConfig:
        """The codec's shape."""
        return read_mimi_config(self.mimi, self.lm_config().mimi_codebooks, self.name)


PRESETS: Final[Mapping[str, Shapes]] = {
    "7b": Shapes(name="7b", lm=MOSHI_7B, mimi=MIMI),
    "112m": Shapes(name="112m", lm=LM_112M, mimi=_narrow(MIMI, bins=2048, n_q=8), stages=LM_STAGES),
    "140m": Shapes(name="140m", lm=LM_140M, mimi=_narrow(MIMI, bins=2048, n_q=8), stages=LM_STAGES),
    "mimi": Shapes(name="mimi", lm=_SILENT_LM, mimi=MIMI, stages=CODEC_STAGES),
    "tiny": Shapes(name="tiny", lm={**_SILENT_LM, "card": 64, "context": 40}, mimi=_narrow(MIMI, bins=64, n_q=8)),
}
"""With random weights; ``tiny`` shows in a second that the command works."""


def shapes_of(name: str) -> Shapes:
    """A preset, the demo, or a checkpoint's folder.

    Raises:
        ConfigError: there is no such thing.
        CheckpointError: the folder's configuration cannot be read.
    """
    if name in PRESETS:
        return PRESETS[name]
    folder = DEMO if name == "demo" else Path(name)
    if not folder.is_dir():
        raise ConfigError("--model", f"{name!r} is neither {', '.join(PRESETS)}, demo nor a folder")
    from serve_app.checkpoint.source import CheckpointSource, read_layout

    layout = read_layout(CheckpointSource(folder=folder))
    label = name if name == "demo" else folder.resolve().name
    return Shapes(name=label, lm=layout.config, mimi=layout.mimi_config, folder=folder)
