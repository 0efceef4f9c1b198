"""From a checkpoint to the two models of a conversation, ready to step."""

from collections.abc import Mapping
from typing import Any, Final

import torch

from serve_app.checkpoint.adapter import LoraSettings
from serve_app.checkpoint.codec import read_mimi_config
from serve_app.checkpoint.source import Folder, Layout
from serve_app.checkpoint.weights import load_into, on_meta
from serve_app.errors import CheckpointError, NotBuilt
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, LMConfig
from serve_app.model.mimi import Mimi, MimiConfig
from serve_app.spec import Sampling

MODEL_TYPES: Final = ("moshi",)
GENERATION: Final[Mapping[str, str]] = {
    "temp": "audio_temperature",
    "temp_text": "text_temperature",
    "top_k": "audio_top_k",
    "top_k_text": "text_top_k",
}
"""Keys of `lm_gen_config`, and our names of them."""
NEUTRAL_GENERATION: Final[Mapping[str, tuple[object, ...]]] = {
    "use_sampling": (True,),
    "cfg_coef": (1.0, None),
    "cfg_is_masked_until": (None,),
    "cfg_is_no_text": (False, None),
    "support_out_of_sync": (False,),
    "check": (False,),
}


def read_shapes(layout: Layout, context: int | None = None) -> tuple[MimiConfig, LMConfig]:
    """Shapes of codec and language model.

    Args:
        context: steps that the LM's attention sees, at most the checkpoint's; None is the checkpoint's.

    Raises:
        NotBuilt: every configured feature that is not built, with its key.
        CheckpointError: a configuration that cannot be read, or a context beyond the checkpoint's.
    """
    _refuse_unbuilt(layout)
    where = f"{layout.where}/{layout.config_name}"
    lm = LMConfig.from_kyutai(layout.config, where)
    if context is not None:
        if not 1 <= context <= lm.context:
            raise CheckpointError(where, [f"context: {context} was asked for, the model has 1 to {lm.context}"])
        lm = lm.with_context(context)
    codec = read_mimi_config(layout.mimi_config, lm.mimi_codebooks, f"{layout.where}/{layout.mimi_config_name}")
    return codec, lm


def default_sampling(layout: Layout) -> Sampling:
    """The sampling that the model was published with; ours where it says nothing.

    Raises:
        CheckpointError: a value that is not a number.
        ParameterRefused: a number out of range.
    """
    said = {ours: layout.generation[key] for key, ours in GENERATION.items() if layout.generation.get(key) is not None}
    wrong = [name for name, value in said.items() if isinstance(value, bool) or not isinstance(value, int | float)]
    if wrong:
        raise CheckpointError(layout.where, [f"lm_gen_config: {name} is not a number" for name in wrong])
    return Sampling(**said)


def build_on_meta(codec: MimiConfig, lm: LMConfig) -> Duplex:
    """Both models with shapes and without bytes."""
    return on_meta(lambda: Duplex(Mimi(codec), LM(lm)))


def load_duplex(folder: Folder, device: torch.device, dtype: torch.dtype, context: int | None = None) -> Duplex:
    """Load codec and language model.

    Args:
        folder: from `source.resolve`.
        dtype: of the language model's weights; the codec is fp32 always.
        context: as `read_shapes`.

    Raises:
        NotBuilt, CheckpointError: as `read_shapes` and `weights.load_into`.
    """
    duplex = build_on_meta(*read_shapes(folder.layout, context))
    load_into(duplex.mimi, folder.mimi_weights, device, torch.float32)
    for quantizer in (duplex.mimi.quantizer.rvq_first, duplex.mimi.quantizer.rvq_rest):
        for codebook in quantizer.codebooks:
            codebook.refresh()
    load_into(duplex.lm, folder.lm_weights, device, dtype, folder.adapter, LoraSettings.read(folder.layout))
    duplex.to(device)  # constants that no checkpoint holds
    assert not any(tensor.is_meta for tensor in (*duplex.parameters(), *duplex.buffers()))
    return duplex


def _refuse_unbuilt(layout: Layout) -> None:
    problems = []
    if layout.model_type not in MODEL_TYPES:
        problems.append(f"model_type: {layout.model_type!r} is not built, only {', '.join(MODEL_TYPES)}")
    problems += [f"{key}: not built" for key in ("tts_config", "stt_config") if layout.config.get(key)]
    for key, value in layout.generation.items():
        if key not in GENERATION and value not in NEUTRAL_GENERATION.get(key, ()):
            problems.append(f"lm_gen_config.{key}: {_short(value)} is not built")
    if problems:
        raise NotBuilt(f"{layout.where}/{layout.config_name}", problems)


def _short(value: Any) -> str:
    return str(value)[:60]
