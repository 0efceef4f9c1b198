"""Shape of a codec from the JSON that Kyutai's tools nest it in.

Everything that shapes the codec must be given: the reference's own defaults are not the published Mimi, and a codec
that is read wrongly still makes sound.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from serve_app.errors import CheckpointError, ConfigError, NotBuilt
from serve_app.model.mimi import MimiConfig
from serve_app.model.seanet import SeanetConfig
from serve_app.model.transformer import TransformerConfig
from serve_app.units import FRAME_RATE_HZ, SAMPLE_RATE_HZ

BUILT: Final[Mapping[str, Sequence[object]]] = {
    "sample_rate": (SAMPLE_RATE_HZ,),
    "channels": (1,),
    "frame_rate": (FRAME_RATE_HZ,),
    "resample_method": ("conv",),
    "seanet.channels": (1,),
    "seanet.causal": (True,),
    "seanet.activation": ("ELU",),
    "seanet.activation_params": (None, {"alpha": 1.0}),
    "seanet.norm": ("none",),
    "seanet.pad_mode": ("constant",),
    "seanet.true_skip": (True,),
    "seanet.final_activation": (None,),
    "seanet.trim_right_ratio": (1.0,),
    "transformer.causal": (True,),
    "transformer.gating": ("none",),
    "transformer.norm": ("layer_norm",),
    "transformer.positional_embedding": ("rope",),
    "transformer.conv_layout": (True,),
    "transformer.cross_attention": (None, False),
    "transformer.kv_repeat": (1,),
    "quantizer.n_q_semantic": (1,),
    "quantizer.force_projection": (True,),
}
"""The values that are built, where there is a choice; any other is refused by its key."""

REQUIRED: Final = (
    "sample_rate channels frame_rate seanet.causal seanet.pad_mode transformer.causal transformer.norm "
    "transformer.positional_embedding transformer.conv_layout transformer.gating transformer.layer_scale"
).split()

SIZES: Final = (
    "seanet.dimension seanet.n_filters seanet.n_residual_layers seanet.kernel_size seanet.last_kernel_size "
    "seanet.residual_kernel_size seanet.dilation_base seanet.compress transformer.d_model transformer.num_heads "
    "transformer.num_layers transformer.context transformer.max_period transformer.dim_feedforward "
    "quantizer.dimension quantizer.n_q quantizer.bins"
).split()
"""Positive integers, all required."""

DERIVED: Final = (
    "transformer.input_dimension transformer.output_dimensions quantizer.input_dimension quantizer.output_dimension"
).split()
"""Must equal the encoder's dimension where given."""

IGNORED: Final = frozenset(
    (
        "seanet.disable_norm_outer_blocks seanet.norm_params seanet.final_activation_params "
        "transformer.layer_scale quantizer.q_dropout quantizer.no_quantization_rate "
        "quantizer.decay quantizer.threshold_usage_ratio quantizer.replaced_usage_ratio quantizer.generator_seed"
    ).split()
)
"""Training, or without effect where there is no norm."""


def read_mimi_config(content: Mapping[str, Any], num_codebooks: int, where: str) -> MimiConfig:
    """The codec's shape.

    Args:
        content: ``seanet``, ``transformer`` and ``quantizer`` as nested objects, and three numbers beside them.
        num_codebooks: levels to encode with: what the language model hears and says.
        where: names the file in errors.

    Raises:
        NotBuilt: values that name a feature which is not built.
        CheckpointError: missing, unknown and ill-typed keys, sizes that do not fit each other.
    """
    flat = _flatten(content)
    unbuilt = [
        f"{key}: {flat[key]!r} is not built, only {' or '.join(map(repr, good))}"
        for key, good in BUILT.items()
        if key in flat and flat[key] not in good
    ]
    if unbuilt:
        raise NotBuilt(where, unbuilt)
    problems = _problems(flat)
    if problems:
        raise CheckpointError(where, problems)
    try:
        return _config(flat, num_codebooks)
    except ConfigError as error:
        raise CheckpointError(where, [error.why]) from error


def _flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if key in ("seanet", "transformer", "quantizer") and isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": deep for inner, deep in value.items()}
        else:
            flat[key] = value
    return flat


def _problems(flat: Mapping[str, Any]) -> list[str]:
    known = {*BUILT, *SIZES, *DERIVED, *IGNORED, "seanet.ratios"}
    problems = [f"{key}: unknown key" for key in flat if key not in known]
    problems += [f"{key}: missing" for key in (*REQUIRED, *SIZES, "seanet.ratios") if key not in flat]
    problems += [
        f"{key}: got {flat[key]!r}, want a positive integer" for key in SIZES if key in flat and not _is_size(flat[key])
    ]
    ratios = flat.get("seanet.ratios", [1])
    if not (isinstance(ratios, list) and ratios and all(_is_size(ratio) for ratio in ratios)):
        problems.append(f"seanet.ratios: got {ratios!r}, want a list of positive integers")
    if flat.get("transformer.layer_scale", 1.0) is None:
        problems.append("transformer.layer_scale: null is not built")
    dimension = flat.get("seanet.dimension")
    problems += [
        f"{key}: {flat[key]} where the encoder's dimension is {dimension}"
        for key in DERIVED
        if key in flat and flat[key] not in (dimension, [dimension])
    ]
    return problems


def _config(flat: Mapping[str, Any], num_codebooks: int) -> MimiConfig:
    return MimiConfig(
        seanet=SeanetConfig(
            dimension=flat["seanet.dimension"],
            n_filters=flat["seanet.n_filters"],
            ratios=tuple(flat["seanet.ratios"]),
            residual_layers=flat["seanet.n_residual_layers"],
            kernel=flat["seanet.kernel_size"],
            last_kernel=flat["seanet.last_kernel_size"],
            residual_kernel=flat["seanet.residual_kernel_size"],
            dilation_base=flat["seanet.dilation_base"],
            compress=flat["seanet.compress"],
        ),
        transformer=TransformerConfig(
            dim=flat["transformer.d_model"],
            heads=flat["transformer.num_heads"],
            layers=flat["transformer.num_layers"],
            feedforward=flat["transformer.dim_feedforward"],
            context=flat["transformer.context"],
            max_period=flat["transformer.max_period"],
            norm="layer_norm",
            position="rope",
            gating="none",
            layer_scale=True,
        ),
        card=flat["quantizer.bins"],
        codebook_dim=flat["quantizer.dimension"],
        total_codebooks=flat["quantizer.n_q"],
        num_codebooks=num_codebooks,
    )


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
