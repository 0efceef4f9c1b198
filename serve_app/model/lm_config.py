"""Shape of the language model, under the names of Kyutai's config.json, with every inherited value worked out.

Source: behaviour of moshi 0.2.13 (`LMModel`): what a missing ``depformer_*`` key inherits, and what it cannot run.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Self

from serve_app.errors import CheckpointError, NotBuilt
from serve_app.model.condition_config import (
    NOTHING_FUSED,
    TENSOR_STEPS,
    ConditionerConfig,
    FuserConfig,
    read_conditioners,
    read_fuser,
)
from serve_app.model.config_reader import ConfigReader
from serve_app.model.norm import NORM_NAMES, NormName
from serve_app.model.transformer import (
    ACTIVATION_NAMES,
    POSITION_NAMES,
    ActivationName,
    PositionName,
    TransformerConfig,
)

FOLDER_KEYS: Final = frozenset(
    {
        *("moshi_name", "mimi_name", "tokenizer_name", "mimi_config_name", "model_type", "model_id"),
        *("lm_gen_config", "tts_config", "stt_config"),
        *("lora", "lora_name", "lora_rank", "lora_scaling", "quantize"),  # how weights are stored, not their shape
        *("gradient_checkpointing", "betas"),
        *("depformer_causal", "depformer_context", "depformer_betas"),  # the reference overrides or ignores these
    }
)
"""Keys of config.json that do not shape the LM."""

_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "depformer_cross_attention": (None, False),
    "causal": (True,),
    "skip_self_attn": (None, False),
    "positional_scale": (1, 1.0),
    "depformer_positional_scale": (1, 1.0),
    "depformer_weights_per_step": (True,),
}
"""Features that are not built: any other value is refused by its key."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LMConfig:
    """One language model: text and ``n_q`` audio streams in, text and ``dep_q`` audio streams out.

    Attributes:
        n_q: audio codebooks that the model hears: its own ``dep_q``, then the user's.
        dep_q: audio codebooks that the Depformer predicts; 0 for a model that only writes, and has no Depformer.
        card: entries of an audio codebook; embeddings have one row more, for the initial token.
        text_card, text_card_out: text tokens that may come in and go out.
        delays: lag in steps of text, then of every codebook.
        context: steps that the main attention looks back.
        depformer_dim_feedforward: one per weight set.
        depformer_weights_per_step_schedule: the weight set of each codebook; the identity where there is none.
        depformer_low_rank_embeddings: rank of the Depformer's embeddings, None for full rank.
        conditioners, fuser: what a session may choose about the model, and where it goes.
        cross_attention: whether every layer attends to the conditions that `fuser` names for it.
        demux_second_text_stream: whether a text token may hold two: ``(second + 1) * (text_card + 1) + first``.
        extra_heads_num_heads, extra_heads_dim: heads beside text, each a distribution over so many classes.
    """

    dim: int
    num_heads: int
    num_layers: int
    context: int
    delays: tuple[int, ...]
    n_q: int
    dep_q: int
    card: int
    text_card: int
    text_card_out: int
    depformer_dim: int
    depformer_num_heads: int
    depformer_num_layers: int
    depformer_dim_feedforward: tuple[int, ...]
    depformer_weights_per_step_schedule: tuple[int, ...]
    hidden_scale: float = 4.0
    norm: NormName = "layer_norm"
    norm_emb: bool = False
    bias_proj: bool = False
    positional_embedding: PositionName = "sin"
    max_period: float = 10_000.0
    gating: ActivationName = "none"
    kv_repeat: int = 1
    layer_scale: bool = False
    existing_text_padding_id: int = 3
    existing_text_end_padding_id: int = 0
    depformer_multi_linear: bool = False
    depformer_low_rank_embeddings: int | None = None
    depformer_norm: NormName | None = None
    depformer_pos_emb: PositionName = "sin"
    depformer_max_period: float = 10_000.0
    depformer_gating: ActivationName = "silu"
    depformer_kv_repeat: int = 1
    depformer_layer_scale: bool = False
    conditioners: tuple[ConditionerConfig, ...] = ()
    fuser: FuserConfig = NOTHING_FUSED
    cross_attention: bool = False
    demux_second_text_stream: bool = False
    extra_heads_num_heads: int = 0
    extra_heads_dim: int = 6

    @property
    def streams(self) -> int:
        """Text and every codebook."""
        return self.n_q + 1

    @property
    def user_q(self) -> int:
        """Codebooks of the user's voice."""
        return self.n_q - self.dep_q

    @property
    def mimi_codebooks(self) -> int:
        """Levels of the codec that this model needs."""
        return max(self.dep_q, self.user_q)

    @property
    def max_delay(self) -> int:
        return max(self.delays)

    @property
    def weight_sets(self) -> int:
        """Weight sets of the Depformer's attention and gating."""
        return max(self.depformer_weights_per_step_schedule, default=-1) + 1

    @property
    def cross_steps(self) -> int:
        """The most steps of cross-attention that a session's conditions take; 0 without cross-attention."""
        kinds = {conditioner.name: conditioner.kind for conditioner in self.conditioners}
        return sum(TENSOR_STEPS if kinds[name] == "tensor" else 1 for name in self.fuser.cross)

    @property
    def main(self) -> TransformerConfig:
        """Shape of the main transformer."""
        return TransformerConfig(
            dim=self.dim,
            heads=self.num_heads,
            layers=self.num_layers,
            feedforward=int(self.hidden_scale * self.dim),
            context=self.context,
            norm=self.norm,
            position=self.positional_embedding,
            max_period=self.max_period,
            gating=self.gating,
            kv_repeat=self.kv_repeat,
            layer_scale=self.layer_scale,
            cross_steps=self.cross_steps,
        )

    def with_context(self, context: int) -> Self:
        """The same model looking back at most ``context`` steps."""
        return dataclasses.replace(self, context=min(context, self.context))

    @classmethod
    def from_kyutai(cls, config: Mapping[str, Any], where: str = "config.json") -> Self:
        """Read the LM's part of a config.json.

        Args:
            config: the whole file's object; keys that only the folder needs are skipped.
            where: names the file in errors.

        Raises:
            NotBuilt: a feature that this project does not build yet; names every such key.
            CheckpointError: unknown or missing keys, values of a wrong type, sizes that do not fit each other.
        """
        _refuse_unbuilt(config, where)
        reader = ConfigReader(config, FOLDER_KEYS | set(_NEUTRAL))
        values = _read(reader)
        problems = reader.problems + reader.unknown()
        if not problems:
            problems = _misfits(values)
        if problems:
            raise CheckpointError(where, problems)
        return cls(**values)


def _refuse_unbuilt(config: Mapping[str, Any], where: str) -> None:
    no_depth = config.get("dep_q") == 0
    problems = [
        f"{key}: {str(config[key])[:60]!r} needs a feature that is not built"
        for key, neutral in _NEUTRAL.items()
        if key in config and config[key] not in neutral and not (no_depth and key == "depformer_weights_per_step")
    ]
    if isinstance(config.get("fuser"), Mapping) and config["fuser"].get("prepend"):
        problems.append("fuser.prepend: conditions before the first step are not built")
    if not no_depth and "depformer_weights_per_step" not in config:
        problems.append("depformer_weights_per_step: a Depformer without weights per step is not built")
    if problems:
        raise NotBuilt(where, problems)


def _read(reader: ConfigReader) -> dict[str, Any]:
    """Every field of `LMConfig`; defaults are the reference's."""
    main = _read_main(reader)
    return main | _read_depformer(reader, main) | _read_conditions(reader, main["dim"])


def _read_conditions(reader: ConfigReader, dim: int) -> dict[str, Any]:
    reader.known |= {"conditioners", "fuser"}
    conditioners, problems = read_conditioners(reader.config.get("conditioners"), dim)
    reader.problems += problems
    fuser, problems = read_fuser(reader.config.get("fuser"), conditioners)
    reader.problems += problems
    # The reference's older name of the key wins where both are there.
    demux = ("demux_second_stream", "demux_second_text_stream")
    return {
        "conditioners": conditioners,
        "fuser": fuser,
        "cross_attention": reader.flag("cross_attention"),
        "demux_second_text_stream": reader.flag(demux[0]) if reader.has(demux[0]) else reader.flag(demux[1]),
        "extra_heads_num_heads": reader.integer("extra_heads_num_heads", 0),
        "extra_heads_dim": reader.integer("extra_heads_dim", 6),
    }


def _read_main(reader: ConfigReader) -> dict[str, Any]:
    n_q, text_card = reader.integer("n_q", 8), reader.integer("text_card", 32_000)
    return {
        "dim": reader.integer("dim", 128),
        "num_heads": reader.integer("num_heads", 8),
        "num_layers": reader.integer("num_layers"),
        "context": reader.integer("context"),
        "delays": reader.integers("delays", (0,)),
        "n_q": n_q,
        "dep_q": reader.integer("dep_q", 8),
        "card": reader.integer("card", 1_024),
        "text_card": text_card,
        "text_card_out": reader.integer("text_card_out", text_card),
        "hidden_scale": reader.number("hidden_scale", 4.0),
        "norm": reader.name("norm", NORM_NAMES, "layer_norm"),
        "norm_emb": reader.flag("norm_emb"),
        "bias_proj": reader.flag("bias_proj"),
        "positional_embedding": reader.name("positional_embedding", POSITION_NAMES, "sin"),
        "max_period": reader.number("max_period", 10_000.0),
        "gating": reader.name("gating", ACTIVATION_NAMES, "none"),
        "kv_repeat": reader.integer("kv_repeat", 1),
        "layer_scale": reader.has("layer_scale"),
        "existing_text_padding_id": reader.integer("existing_text_padding_id", 3),
        "existing_text_end_padding_id": reader.integer("existing_text_end_padding_id", 0),
    }


def _read_depformer(reader: ConfigReader, main: Mapping[str, Any]) -> dict[str, Any]:
    dim = reader.integer("depformer_dim", 256)
    schedule = reader.integers("depformer_weights_per_step_schedule", tuple(range(main["dep_q"])))
    sets = max(schedule, default=-1) + 1
    feedforward = reader.config.get("depformer_dim_feedforward")
    if isinstance(feedforward, list):
        widths = reader.integers("depformer_dim_feedforward", ())
    else:
        widths = (reader.integer("depformer_dim_feedforward", int(main["hidden_scale"] * dim)),) * sets
    # An explicit null overrides the main transformer's layer scale, a missing key inherits it.
    own_scale = "depformer_layer_scale" in reader.config
    return {
        "depformer_dim": dim,
        "depformer_num_heads": reader.integer("depformer_num_heads", 1 if main["dep_q"] == 0 else None),
        "depformer_num_layers": reader.integer("depformer_num_layers", main["num_layers"]),
        "depformer_dim_feedforward": widths,
        "depformer_weights_per_step_schedule": schedule,
        "depformer_multi_linear": reader.flag("depformer_multi_linear"),
        "depformer_low_rank_embeddings": (
            reader.integer("depformer_low_rank_embeddings") if reader.has("depformer_low_rank_embeddings") else None
        ),
        "depformer_norm": (
            reader.name("depformer_norm", NORM_NAMES, "layer_norm") if reader.has("depformer_norm") else None
        ),
        "depformer_pos_emb": reader.name("depformer_pos_emb", POSITION_NAMES, "sin"),
        "depformer_max_period": reader.number("depformer_max_period", main["max_period"]),
        "depformer_gating": reader.name("depformer_gating", ACTIVATION_NAMES, main["gating"]),
        "depformer_kv_repeat": reader.integer("depformer_kv_repeat", main["kv_repeat"]),
        "depformer_layer_scale": reader.has("depformer_layer_scale") if own_scale else main["layer_scale"],
    }


def _misfits(values: Mapping[str, Any]) -> list[str]:
    """Sizes that do not fit each other, each as one problem."""
    v = values
    streams, sets = v["n_q"] + 1, max(v["depformer_weights_per_step_schedule"], default=-1) + 1
    heard = (v["text_card"] + 1) ** (2 if v["demux_second_text_stream"] else 1)
    checks = [
        (len(v["delays"]) == streams, "delays", f"{len(v['delays'])} delays for {streams} streams"),
        (v["n_q"] > 0, "n_q", "must be positive"),
        (v["dep_q"] <= v["n_q"], "dep_q", f"{v['dep_q']} of n_q {v['n_q']}: the model hears all that it says"),
        (v["context"] > 0, "context", "must be positive"),
        (v["card"] > 0, "card", "must be positive"),
        (v["existing_text_padding_id"] < v["text_card_out"], "existing_text_padding_id", "padding could not be said"),
        (v["text_card_out"] <= heard, "text_card_out", "a text token could not be heard back"),
        (
            v["dep_q"] == 0 or v["depformer_gating"] != "none",
            "depformer_gating",
            "weights per step need a gated block",
        ),
        (not (v["demux_second_text_stream"] and v["norm_emb"]), "norm_emb", "two texts in a token have no norm"),
        (
            v["cross_attention"] == bool(v["fuser"].cross),
            "cross_attention",
            f"{v['cross_attention']}, but the fuser has {len(v['fuser'].cross)} conditions for it",
        ),
        (
            not v["cross_attention"] or v["kv_repeat"] == 1,
            "kv_repeat",
            "grouped heads and cross-attention do not go together",
        ),
        (
            len(v["depformer_weights_per_step_schedule"]) == v["dep_q"],
            "depformer_weights_per_step_schedule",
            f"{len(v['depformer_weights_per_step_schedule'])} steps for dep_q {v['dep_q']}",
        ),
        (
            v["dep_q"] == 0 or len(v["depformer_dim_feedforward"]) == sets,
            "depformer_dim_feedforward",
            f"{len(v['depformer_dim_feedforward'])} widths for {sets} weight sets",
        ),
    ]
    for prefix in ("", "depformer_") if v["dep_q"] else ("",):
        dim, heads, repeat = v[f"{prefix}dim"], v[f"{prefix}num_heads"], v[f"{prefix}kv_repeat"]
        checks += [
            (heads > 0 and dim > 0 and dim % max(heads, 1) == 0, f"{prefix}num_heads", f"{heads} heads for dim {dim}"),
            (repeat > 0 and heads % max(repeat, 1) == 0, f"{prefix}kv_repeat", f"{repeat} does not divide {heads}"),
            (v[f"{prefix}num_layers"] > 0, f"{prefix}num_layers", "must be positive"),
        ]
    return [f"{key}: {why}" for good, key, why in checks if not good]
