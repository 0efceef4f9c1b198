"""LoRA: fused weights are the reference's, and an adapter of something else is refused."""

import copy
import importlib
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import resolve
from serve_app.errors import CheckpointError
from serve_app.model.duplex import Duplex
from tests.checkpoint.folders import Draft, Weights, draft, stack_sets
from tests.checkpoint.parity import check_parity
from tests.model.language import CPU
from tests.oracle import reference_lm

RANK: Final = 3
SCALING: Final = 1.5
NAME: Final = "lora.safetensors"
LINEAR: Final = "transformer.layers.0.gating.linear_in"


def fine_tune(base: Draft) -> tuple[Any, Weights]:
    """The reference's model with random adapters, not fused, and the adapters alone."""
    module: Any = importlib.import_module("moshi.modules.lora")
    config = {key: value for key, value in base.config.items() if not key.startswith(("mimi_", "model_", "lora"))}
    reference = reference_lm(config)
    module.replace_all_linear_with_lora(reference, RANK, SCALING)
    generator = torch.Generator().manual_seed(5)
    adapter = {}
    for name, value in reference.state_dict().items():
        if "lora_" in name:
            value.copy_(0.15 * torch.randn(value.shape, generator=generator))
            adapter[name] = value.clone()
    return reference, adapter


@pytest.fixture(scope="module")
def tuned() -> tuple[Draft, Any, Weights]:
    base = draft()
    base.config |= {"lora": True, "lora_rank": RANK, "lora_scaling": SCALING, "lora_name": NAME}
    return (base, *fine_tune(base))


def load(base: Draft, adapter: Weights, root: Path, dtype: torch.dtype = torch.float32) -> Duplex:
    source = base.write(root)
    save_file({name: value.contiguous() for name, value in adapter.items()}, root / NAME)
    return load_duplex(resolve(source), CPU, dtype)


@torch.no_grad()
def test_fused_weights_are_the_references(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, reference, adapter = tuned
    fused = copy.deepcopy(reference)
    importlib.import_module("moshi.modules.lora").replace_lora_with_linear(fused)
    ours = load(base, adapter, tmp_path).lm.state_dict()
    changed = 0
    for name, value in fused.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=1e-6, atol=1e-6)
        changed += not torch.equal(ours[name], base.lm[name])
    assert changed == len(adapter) // 2


@torch.no_grad()
def test_a_fused_model_says_what_the_references_says_past_its_wrap(
    tuned: tuple[Draft, Any, Weights], tmp_path: Path
) -> None:
    base, reference, adapter = tuned
    fused = copy.deepcopy(reference)
    importlib.import_module("moshi.modules.lora").replace_lora_with_linear(fused)
    check_parity(fused, load(base, adapter, tmp_path).lm)


@torch.no_grad()
def test_half_precision_rounds_the_fused_weight_once(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    ours = load(base, adapter, tmp_path, torch.bfloat16).lm.state_dict()[f"{LINEAR}.weight"]
    delta = adapter[f"{LINEAR}.lora_B.weight"] @ adapter[f"{LINEAR}.lora_A.weight"]
    exact = base.lm[f"{LINEAR}.weight"] + SCALING * delta
    assert torch.equal(ours, exact.to(torch.bfloat16))


@pytest.mark.parametrize("projection", ["in_proj", "out_proj"])
def test_stacked_adapters_load_into_their_sets(
    projection: str, tuned: tuple[Draft, Any, Weights], tmp_path: Path
) -> None:
    base, _, adapter = tuned
    stacked = adapter
    for half in ("lora_A", "lora_B"):
        stacked = stack_adapter(stacked, projection, half)
    assert stacked.keys() != adapter.keys()
    one, other = load(base, adapter, tmp_path / "one"), load(base, stacked, tmp_path / "other")
    for name, value in one.lm.state_dict().items():
        assert torch.equal(other.lm.state_dict()[name], value), name


def stack_adapter(weights: Weights, projection: str, half: str) -> Weights:
    """Spell ``{projection}s.{set}.{half}.weight`` as one ``{projection}.{half}.weight``."""
    ending = f".{half}.weight"
    chosen = {name.removesuffix(ending): value for name, value in weights.items() if name.endswith(ending)}
    rest = {name: value for name, value in weights.items() if not name.endswith(ending)}
    joined = stack_sets({f"{name}.weight": value for name, value in chosen.items()}, projection, f"{projection}.weight")
    return rest | {name.removesuffix(".weight") + ending: value for name, value in joined.items()}


def test_whole_weights_of_an_adapter_stand_in_for_the_bases(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    own = torch.randn_like(base.lm["out_norm.alpha"])
    ours = load(base, adapter | {"out_norm.alpha": own}, tmp_path)
    assert torch.equal(ours.lm.state_dict()["out_norm.alpha"], own)


def test_an_adapter_of_another_rank_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = copy.deepcopy(tuned)
    base.config["lora_rank"] = RANK + 1
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.lora_A\.weight: shape \[3, 32\].*lora_rank is 4"):
        load(base, adapter, tmp_path)


def test_an_adapter_of_a_wider_base_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.lora_A\.weight: shape \[3, 40\].*\[3, 32\] fits"):
        load(base, adapter | {f"{LINEAR}.lora_A.weight": torch.zeros(RANK, 40)}, tmp_path)


def test_an_adapter_of_a_deeper_base_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    deeper = {name.replace("layers.0", "layers.7"): value.clone() for name, value in adapter.items()}
    with pytest.raises(CheckpointError, match=r"layers\.7.*unexpected") as caught:
        load(base, adapter | deeper, tmp_path)
    assert caught.value.where.endswith(NAME)


@pytest.mark.parametrize("half", ["lora_A", "lora_B"])
def test_an_adapter_that_leaves_a_linear_out_is_refused(
    half: str, tuned: tuple[Draft, Any, Weights], tmp_path: Path
) -> None:
    base, _, adapter = tuned
    less: dict[str, Tensor] = {name: value for name, value in adapter.items() if name != f"{LINEAR}.{half}.weight"}
    with pytest.raises(CheckpointError, match=rf"{LINEAR}\.weight: no {half}"):
        load(base, less, tmp_path)


def test_an_adapter_on_what_is_no_linear_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    rows, dim = base.lm["text_emb.weight"].shape
    odd = {"text_emb.lora_A.weight": torch.zeros(RANK, dim), "text_emb.lora_B.weight": torch.zeros(rows, RANK)}
    with pytest.raises(CheckpointError, match=r"text_emb\.lora_A\.weight: unexpected"):
        load(base, adapter | odd, tmp_path)


def test_an_adapter_of_integers_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = tuned
    key = f"{LINEAR}.lora_A.weight"
    with pytest.raises(CheckpointError, match="I8, want floats"):
        load(base, adapter | {key: adapter[key].to(torch.int8)}, tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"lora": False}, {"lora_name": None}, {"lora_rank": 0}, {"lora_scaling": "2"}, {"lora_name": "gone.sft"}],
)
def test_an_adapter_that_is_half_configured_is_refused(
    changes: dict[str, object], tuned: tuple[Draft, Any, Weights], tmp_path: Path
) -> None:
    base, _, adapter = copy.deepcopy(tuned)
    base.config |= changes
    with pytest.raises(CheckpointError, match=next(iter(changes)) if changes.get("lora_name") is None else "gone"):
        load(base, adapter, tmp_path)


def test_an_adapter_in_a_pickle_is_refused(tuned: tuple[Draft, Any, Weights], tmp_path: Path) -> None:
    base, _, adapter = copy.deepcopy(tuned)
    base.config["lora_name"] = "lora.pt"
    with pytest.raises(CheckpointError, match=r"lora\.pt: only safetensors"):
        load(base, adapter, tmp_path)
