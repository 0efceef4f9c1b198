"""Folders in the published layout with small random weights, from the reference's own state dicts."""

import copy
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoint import published
from serve_app.checkpoint.source import CheckpointSource, Folder, resolve
from tests.checkpoint.spelling import write_tokenizer
from tests.oracle import reference_lm, reference_mimi, weights_of

SMALL_LM: Final[Mapping[str, Any]] = dict(published.MOSHI_7B) | {
    "dim": 32,
    "text_card": 60,
    "card": 24,
    "num_heads": 2,
    "num_layers": 2,
    "context": 12,
    "depformer_dim": 16,
    "depformer_dim_feedforward": 48,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
}

Weights = dict[str, Tensor]


def small_mimi() -> dict[str, Any]:
    config = copy.deepcopy(dict(published.MIMI))
    config["seanet"] |= {"dimension": 16, "n_filters": 4}
    config["transformer"] |= {"d_model": 16, "num_heads": 2, "num_layers": 1, "dim_feedforward": 32, "context": 8}
    config["transformer"] |= {"input_dimension": 16, "output_dimensions": [16]}
    config["quantizer"] |= {"dimension": 8, "n_q": 9, "bins": 24, "input_dimension": 16, "output_dimension": 16}
    return config


@dataclasses.dataclass
class Draft:
    """A checkpoint before it is written; tests spoil it as they like."""

    lm: Weights
    mimi: Weights
    config: dict[str, Any]
    mimi_config: dict[str, Any]

    def write(self, root: Path) -> CheckpointSource:
        root.mkdir(exist_ok=True)
        (root / "config.json").write_text(json.dumps(self.config))
        (root / "mimi.json").write_text(json.dumps(self.mimi_config))
        save_file({name: value.contiguous() for name, value in self.lm.items()}, root / published.LM_NAME)
        save_file({name: value.contiguous() for name, value in self.mimi.items()}, root / published.MIMI_NAME)
        write_tokenizer(root / published.TOKENIZER_NAME)
        return CheckpointSource(folder=root)

    def resolved(self, root: Path) -> Folder:
        return resolve(self.write(root))


def draft(**changes: Any) -> Draft:
    """A small random checkpoint; ``changes`` go into the LM's part of config.json."""
    lm_config = dict(SMALL_LM) | changes
    mimi_config = small_mimi()
    return Draft(
        lm=weights_of(reference_lm(lm_config)),
        mimi=weights_of(reference_mimi(mimi_config)),
        config=lm_config | {"mimi_config_name": "mimi.json", "model_type": "moshi"},
        mimi_config=mimi_config,
    )


def respell(weights: Weights, spell: Callable[[str], str]) -> Weights:
    """The same weights under other names."""
    return {spell(name): value for name, value in weights.items()}


def stack_sets(weights: Weights, projection: str, spelling: str) -> Weights:
    """Every ``{projection}s.{set}.weight`` of an attention as one tensor, one set after the other, as old files do."""
    stacked: dict[str, list[Tensor]] = {}
    rest: Weights = {}
    for name, value in weights.items():
        owner, found, _ = name.partition(f"{projection}s.")
        if found:
            stacked.setdefault(owner + spelling, []).append(value)
        else:
            rest[name] = value
    return rest | {name: torch.cat(values) for name, values in stacked.items()}
