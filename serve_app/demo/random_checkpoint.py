"""A small random checkpoint of any shape of the family: ``python -m serve_app.demo.random_checkpoint SHAPE FOLDER``.

The folder is in Kyutai's layout and loads wherever a published one does. It says nothing that means anything.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from serve_app.checkpoint.codec import read_mimi_config
from serve_app.checkpoint.keys import SCALE_SUFFIX
from serve_app.checkpoint.weights import FP32_PARTS, QUANTISED_MAX, linears_of, on_meta
from serve_app.demo.phrases import train_tokenizer
from serve_app.demo.shapes import CODEC, SHAPES, Shape
from serve_app.errors import ChorusError
from serve_app.model.lm import LM, LMConfig
from serve_app.model.mimi import Mimi

LM_NAME: Final = "model.safetensors"
MIMI_NAME: Final = "mimi.safetensors"
MIMI_CONFIG_NAME: Final = "mimi.json"
TOKENIZER_NAME: Final = "tokenizer.model"

Weights = dict[str, Tensor]


def write_checkpoint(shape: Shape, folder: Path, seed: int = 0) -> None:
    """Write every file of a checkpoint; the same seed gives the same bytes.

    Raises:
        OSError: the folder cannot be written.
    """
    config = LMConfig.from_kyutai(shape.config)
    lm = on_meta(lambda: LM(config))
    mimi = on_meta(lambda: Mimi(read_mimi_config(CODEC, config.mimi_codebooks, MIMI_CONFIG_NAME)))
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = _halved(random_weights(lm, generator))
    if shape.storage == "q8":
        weights = quantised(weights, linears_of(lm))
    _write(folder / LM_NAME, weights)
    _write(folder / MIMI_NAME, random_weights(mimi, generator))
    if shape.storage == "lora":
        adapter = random_adapter(lm, int(shape.config["lora_rank"]), generator)
        _write(folder / str(shape.config["lora_name"]), _halved(adapter))
    (folder / TOKENIZER_NAME).write_bytes(train_tokenizer(seed))
    (folder / MIMI_CONFIG_NAME).write_text(json.dumps(CODEC, indent=2) + "\n", encoding="utf-8")
    names = {
        "moshi_name": LM_NAME,
        "mimi_name": MIMI_NAME,
        "mimi_config_name": MIMI_CONFIG_NAME,
        "tokenizer_name": TOKENIZER_NAME,
        "model_id": {"sig": "random", "epoch": 0},
    }
    content = json.dumps({**shape.config, **names}, indent=2)
    (folder / "config.json").write_text(content + "\n", encoding="utf-8")


def random_weights(module: nn.Module, generator: torch.Generator) -> Weights:
    """fp32 values for everything that a checkpoint of this module holds, such that signals neither fade nor grow."""
    return {name: _random(name, tuple(like.shape), generator) for name, like in module.state_dict().items()}


def random_adapter(module: nn.Module, rank: int, generator: torch.Generator) -> Weights:
    """LoRA weights for every linear of a module."""
    adapter: Weights = {}
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name in sorted(linears_of(module)):
        out, into = shapes[name]
        owner = name.removesuffix(".weight")
        adapter[f"{owner}.lora_A.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
        adapter[f"{owner}.lora_B.weight"] = 0.2 * torch.randn(out, rank, generator=generator)
    return adapter


def quantised(weights: Weights, linears: frozenset[str]) -> Weights:
    """The same weights with those of linears as ``int8``, each row's scale beside it."""
    result: Weights = {}
    for name, value in weights.items():
        if name not in linears or name.startswith(FP32_PARTS):
            result[name] = value
            continue
        scale = value.float().abs().amax(dim=1)
        result[name] = (value.float() * (QUANTISED_MAX / scale)[:, None]).round().to(torch.int8)
        result[name + SCALE_SUFFIX] = scale
    return result


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    leaf = name.rpartition(".")[2]
    if leaf in ("_initialized", "cluster_usage"):
        return torch.ones(shape)
    if "layer_scale" in name:
        return 0.4 + 0.1 * noise
    if leaf == "alpha" or ("norm" in name and leaf == "weight"):
        return 1 + 0.1 * noise
    if leaf == "bias":
        return 0.02 * noise
    if leaf == "embedding_sum" or "learnt_padding" in name:
        return 0.5 * noise
    if "emb" in name and leaf == "weight" and "low_rank" not in name:
        return 0.3 * noise
    return noise / (noise.numel() / shape[0]) ** 0.5 if len(shape) > 1 else noise


def _halved(weights: Mapping[str, Tensor]) -> Weights:
    """As published files hold them: bf16, but for what stays fp32."""
    return {name: value if name.startswith(FP32_PARTS) else value.to(torch.bfloat16) for name, value in weights.items()}


def _write(path: Path, weights: Weights) -> None:
    save_file({name: value.contiguous() for name, value in weights.items()}, path)
    path.chmod(0o644)  # safetensors writes for its owner alone


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    shapes = "\n".join(f"  {name:10s} {shape.told}" for name, shape in SHAPES.items())
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.demo.random_checkpoint",
        description=f"Write a small random checkpoint in Kyutai's layout. Shapes:\n{shapes}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shape", choices=sorted(SHAPES), metavar="SHAPE", help="one of those above")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="made where it is missing")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        write_checkpoint(SHAPES[options.shape], options.folder, options.seed)
    except (ChorusError, OSError) as error:
        print(f"random_checkpoint: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(f"{options.folder}: {SHAPES[options.shape].told}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
