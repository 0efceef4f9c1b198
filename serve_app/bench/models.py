"""Models to measure, on their device: random weights made there, or a checkpoint's."""

import torch
from torch import Tensor, nn

from serve_app.bench.shapes import Shapes
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM
from serve_app.model.mimi import Mimi
from serve_app.model.quantised_linear import WeightsName, quantise_linears


def on_meta(shapes: Shapes, context: int | None = None) -> Duplex:
    """The model with shapes and without bytes."""
    with torch.device("meta"):
        return Duplex(Mimi(shapes.mimi_config()), LM(shapes.lm_config(context))).eval().requires_grad_(False)


def build(
    shapes: Shapes,
    device: torch.device,
    dtype: torch.dtype,
    context: int | None = None,
    seed: int = 0,
    *,
    weights: WeightsName | None = None,
    codec_dtype: torch.dtype = torch.float32,
) -> Duplex:
    """The model with weights; ``dtype`` and ``weights`` are the language model's, ``codec_dtype`` the codec's.

    Raises:
        CheckpointError: a folder that cannot be loaded.
    """
    if shapes.folder is not None:
        # Here, because a machine without safetensors measures the presets.
        from serve_app.checkpoint.duplex import load_duplex
        from serve_app.checkpoint.source import CheckpointSource, resolve

        folder = resolve(CheckpointSource(folder=shapes.folder))
        return load_duplex(folder, device, dtype, context, weights=weights, codec_dtype=codec_dtype).eval()
    duplex = on_meta(shapes, context)
    generator = torch.Generator(device).manual_seed(seed)
    _randomise(duplex.mimi, generator, torch.float32)
    _randomise(duplex.lm, generator, dtype)
    for quantizer in (duplex.mimi.quantizer.rvq_first, duplex.mimi.quantizer.rvq_rest):
        for codebook in quantizer.codebooks:
            codebook.refresh()
    duplex.to(device)  # constants that no checkpoint holds
    narrow(duplex, weights, codec_dtype)
    duplex.lm.lay_out()
    return duplex.eval().requires_grad_(False)


def narrow(duplex: Duplex, weights: WeightsName | None, codec_dtype: torch.dtype) -> None:
    """What loading does to a model of floats."""
    duplex.mimi.narrow(codec_dtype)
    if weights == "int8":
        quantise_linears(duplex.lm)


def parameters_of(module: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in module.parameters())


def bytes_of(module: nn.Module) -> int:
    """Memory of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def _randomise(module: nn.Module, generator: torch.Generator, dtype: torch.dtype) -> None:
    values = {
        name: _value(name, tuple(like.shape), generator).to(dtype if like.is_floating_point() else like.dtype)
        for name, like in module.state_dict().items()
    }
    module.load_state_dict(values, strict=True, assign=True)


def _value(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Signals of these neither fade nor grow, and what is said depends on what was heard."""
    leaf = name.rpartition(".")[2]
    if leaf in ("_initialized", "cluster_usage"):
        return torch.ones(shape, device=generator.device)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    if "layer_scale" in name:
        return 0.3 + 0.05 * noise
    if leaf == "alpha" or ("norm" in name and leaf == "weight"):
        return 1 + 0.1 * noise
    if leaf == "bias":
        return 0.02 * noise
    if leaf == "embedding_sum" or ("emb" in name and "low_rank" not in name):
        return 0.5 * noise
    return noise / (noise.numel() / shape[0]) ** 0.5 if len(shape) > 1 else noise
