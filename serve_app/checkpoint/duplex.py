"""From a checkpoint to the two models of a conversation, ready to step."""

from typing import Final

import torch

from serve_app.checkpoint.adapter import LoraSettings
from serve_app.checkpoint.codec import read_mimi_config
from serve_app.checkpoint.generation import unbuilt
from serve_app.checkpoint.source import Folder, Layout
from serve_app.checkpoint.weights import load_into, on_meta
from serve_app.errors import CheckpointError, NotBuilt
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, LMConfig
from serve_app.model.mimi import Mimi, MimiConfig
from serve_app.model.quantised_linear import WeightsName, quantise_linears

MODEL_TYPES: Final = ("moshi", "hibiki", "stt")
END_OF_TEXT: Final = 2
PADDING: Final = 3


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


def build_on_meta(
    codec: MimiConfig, lm: LMConfig, weights: WeightsName | None = None, codec_dtype: torch.dtype = torch.float32
) -> Duplex:
    """Both models with shapes and without bytes; ``weights`` and ``codec_dtype`` as `load_duplex`."""
    duplex = on_meta(lambda: Duplex(Mimi(codec), LM(lm)))
    duplex.mimi.narrow(codec_dtype)
    if weights == "int8":
        quantise_linears(duplex.lm)
    return duplex


def load_duplex(
    folder: Folder,
    device: torch.device,
    dtype: torch.dtype,
    context: int | None = None,
    *,
    weights: WeightsName | None = None,
    codec_dtype: torch.dtype = torch.float32,
) -> Duplex:
    """Load codec and language model.

    Args:
        folder: from `source.resolve`.
        dtype: of the language model's weights, and of what it computes with.
        context: as `read_shapes`.
        weights: of the language model's matrices; None is ``dtype``. One after the other: there is never a second copy.
        codec_dtype: of the codec's weights, all but the quantiser's, and of its state.

    Raises:
        NotBuilt, CheckpointError: as `read_shapes` and `weights.load_into`.
    """
    duplex = build_on_meta(*read_shapes(folder.layout, context), weights)
    load_into(duplex.mimi, folder.mimi_weights, device, torch.float32)
    duplex.mimi.narrow(codec_dtype)
    for quantizer in (duplex.mimi.quantizer.rvq_first, duplex.mimi.quantizer.rvq_rest):
        for codebook in quantizer.codebooks:
            codebook.refresh()
    load_into(duplex.lm, folder.lm_weights, device, dtype, folder.adapter, LoraSettings.read(folder.layout))
    if folder.layout.model_type == "hibiki":
        deafen_to_early_end(duplex.lm)
    duplex.to(device)  # constants that no checkpoint holds
    duplex.lm.lay_out()
    assert not any(tensor.is_meta for tensor in (*duplex.parameters(), *duplex.buffers()))
    return duplex


def deafen_to_early_end(lm: LM) -> None:
    """Let a translation that said its end too early go on as if it had said padding; the Depformer hears it as it is.

    Source: moshi 0.2.13, which does this to the main transformer's text embedding when it loads Hibiki.
    """
    lm.text_emb.weight.data[END_OF_TEXT] = lm.text_emb.weight.data[PADDING]


def _refuse_unbuilt(layout: Layout) -> None:
    problems = unbuilt(layout)
    if layout.model_type not in MODEL_TYPES:
        problems.append(f"model_type: {layout.model_type!r} is not built, only {', '.join(MODEL_TYPES)}")
    if layout.config.get("tts_config"):
        problems.append("tts_config: feeding a script word by word is not built")
    if problems:
        raise NotBuilt(f"{layout.where}/{layout.config_name}", problems)
