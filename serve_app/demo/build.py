"""Rebuilds the checkpoint that ships, from nothing: ``python -m serve_app.demo.build``.

Speech from espeak-ng, a codec trained on it, a language model whose weights are written down, a tokenizer; all from one
seed. The codec takes most of an hour on one CPU core and resumes where it stopped. Last, the written files
are measured (see `report`).
"""

import argparse
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.demo import parrot
from serve_app.demo.ear import fit_ear, silence_codes
from serve_app.demo.phrases import read_phrases, train_tokenizer
from serve_app.demo.recording import cut_recording, write_recording
from serve_app.demo.report import report
from serve_app.demo.segments import Segments
from serve_app.demo.synthesis import talks
from serve_app.demo.train_codec import Recipe, Trainer
from serve_app.model.mimi import Mimi, MimiConfig

LOG = logging.getLogger(__name__)

HERE: Final = Path(__file__).parent
CHECKPOINT: Final = HERE / "checkpoint"
SEED: Final = 7
CARRIED: Final = 10
"""Codebooks of each voice that the language model carries."""


def build(work: Path, out: Path, *, seed: int = SEED, recipe: Recipe | None = None) -> None:
    """Make every file of ``out``; ``work`` keeps what is half done.

    Raises:
        FileNotFoundError: espeak-ng is not installed.
    """
    work.mkdir(parents=True, exist_ok=True)
    heard = talks(seed, held_out=False)
    LOG.info("%d voices, %.0f min of speech", len(heard), sum(talk.seconds for talk in heard) / 60)
    trainer = Trainer(recipe or Recipe(), Segments(heard))
    mimi = as_stored(trainer.run(work / "codec.pt")).eval()
    tokenizer = train_tokenizer(seed)
    phrases = read_phrases(tokenizer)
    silence = silence_codes(mimi, CARRIED)
    ear = fit_ear(mimi, heard, CARRIED, seed)
    write_recording(cut_recording(talks(seed, held_out=True)))
    write(out, mimi, parrot.config(CARRIED, phrases), parrot.weights(CARRIED, phrases, ear, silence), tokenizer)


def write(out: Path, mimi: Mimi, lm_config: dict[str, Any], lm: dict[str, Tensor], tokenizer: bytes) -> None:
    """A folder in Kyutai's layout; weights are stored as bf16."""
    out.mkdir(parents=True, exist_ok=True)
    names = {
        "moshi_name": "model.safetensors",
        "mimi_name": "mimi.safetensors",
        "mimi_config_name": "mimi.json",
        "tokenizer_name": "tokenizer.model",
        "model_type": "moshi",
        "model_id": {"sig": "demo", "epoch": 0},
    }
    _write_json(out / "config.json", lm_config | names)
    _write_json(out / "mimi.json", mimi_json(mimi.config))
    (out / "tokenizer.model").write_bytes(tokenizer)
    save_file({key: value.to(torch.bfloat16).contiguous() for key, value in lm.items()}, out / "model.safetensors")
    save_file(mimi_tensors(mimi), out / "mimi.safetensors")
    for path in out.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone


def as_stored(mimi: Mimi) -> Mimi:
    """The codec with its weights rounded as the file rounds them: codes of silence and of speech must be the file's."""
    rounded = {key: value.to(torch.bfloat16).float() for key, value in mimi.state_dict().items()}
    mimi.load_state_dict(rounded)
    return mimi


def mimi_json(config: MimiConfig) -> dict[str, Any]:
    """The codec's shape as Kyutai's tools nest it."""
    seanet, transformer = config.seanet, config.transformer
    return {
        "sample_rate": 24_000,
        "channels": 1,
        "frame_rate": 12.5,
        "seanet": {
            "channels": 1,
            "dimension": seanet.dimension,
            "causal": True,
            "n_filters": seanet.n_filters,
            "n_residual_layers": seanet.residual_layers,
            "activation": "ELU",
            "compress": seanet.compress,
            "dilation_base": seanet.dilation_base,
            "disable_norm_outer_blocks": 0,
            "kernel_size": seanet.kernel,
            "residual_kernel_size": seanet.residual_kernel,
            "last_kernel_size": seanet.last_kernel,
            "norm": "none",
            "pad_mode": "constant",
            "ratios": list(seanet.ratios),
            "true_skip": True,
        },
        "transformer": {
            "d_model": transformer.dim,
            "num_heads": transformer.heads,
            "num_layers": transformer.layers,
            "causal": True,
            "layer_scale": 0.1,
            "context": transformer.context,
            "conv_layout": True,
            "max_period": int(transformer.max_period),
            "gating": "none",
            "norm": "layer_norm",
            "positional_embedding": "rope",
            "dim_feedforward": transformer.feedforward,
            "input_dimension": config.dimension,
            "output_dimensions": [config.dimension],
        },
        "quantizer": {
            "dimension": config.codebook_dim,
            "n_q": config.total_codebooks,
            "bins": config.card,
            "input_dimension": config.dimension,
            "output_dimension": config.dimension,
        },
    }


def mimi_tensors(mimi: Mimi) -> dict[str, Tensor]:
    """The codec's weights as bf16 under the names of the published files."""
    tensors: dict[str, Tensor] = {}
    for key, value in mimi.state_dict().items():
        key = key.replace("in_projs.0.weight", "in_proj_weight").replace("out_projs.0.weight", "out_proj.weight")
        tensors[key] = value.to(torch.bfloat16).contiguous()
    return tensors


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m serve_app.demo.build")
    parser.add_argument("--work", type=Path, default=Path("out/demo"), help="folder for what is half done")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--steps-divided-by", type=int, default=1, help="train that much less, for a try-out")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    full, less = Recipe(), args.steps_divided_by
    recipe = dataclasses.replace(
        full, free=full.free // less, quantised=full.quantised // less, frozen=full.frozen // less
    )
    build(args.work, args.out, seed=args.seed, recipe=recipe)
    LOG.info("%s", json.dumps(report(args.out, args.seed)))


if __name__ == "__main__":
    main()
