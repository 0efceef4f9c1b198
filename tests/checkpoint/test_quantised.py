"""Kyutai's q8 layout: what is loaded is what the file means, to the bit."""

from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor

from serve_app.checkpoint.duplex import load_duplex
from serve_app.errors import CheckpointError
from serve_app.model.duplex import Duplex
from serve_app.model.state import all_rows
from tests.checkpoint.folders import Draft, Weights, draft, stack_sets
from tests.checkpoint.parity import check_parity
from tests.model.language import CPU
from tests.oracle import reference_lm

LINEAR: Final = "text_linear.weight"


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Row by row: the greatest magnitude is 127. What bitsandbytes calls vector-wise."""
    scale = weight.abs().amax(dim=1).float()
    return (weight * (127 / scale[:, None])).round().to(torch.int8), scale


def eight_bit(full: Draft) -> Draft:
    """The same checkpoint with every linear of its LM in 8 bits; its meaning is in `meant`."""
    lm: Weights = {}
    for name, value in full.lm.items():
        if value.ndim == 2 and "emb" not in name:
            lm[name], lm[f"{name}_scb"] = quantise(value)
        else:
            lm[name] = value
    return Draft(lm, full.mimi, full.config | {"quantize": True}, full.mimi_config)


def meant(quantised: Draft) -> Weights:
    """What an 8-bit file's weights stand for."""
    return {
        name: value.float() * (quantised.lm[f"{name}_scb"] / 127)[:, None] if f"{name}_scb" in quantised.lm else value
        for name, value in quantised.lm.items()
        if not name.endswith("_scb")
    }


@pytest.fixture(scope="module")
def full() -> Draft:
    return draft()


def load(given: Draft, root: Path, dtype: torch.dtype = torch.float32) -> Duplex:
    return load_duplex(given.resolved(root), CPU, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_8_bit_checkpoint_loads_as_what_it_means(dtype: torch.dtype, full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    ours = load(given, tmp_path / "folder", dtype).lm.state_dict()
    for name, value in meant(given).items():
        assert torch.equal(ours[name], value.to(dtype)), name


def test_rounding_to_8_bits_loses_less_than_half_a_level(full: Draft, tmp_path: Path) -> None:
    ours = load(eight_bit(full), tmp_path / "folder").lm.state_dict()[LINEAR]
    level = full.lm[LINEAR].abs().amax(dim=1) / 127
    assert ((ours - full.lm[LINEAR]).abs() <= 0.501 * level[:, None]).all()


def test_an_8_bit_checkpoint_says_what_its_dequantised_twin_says(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    twin = Draft(meant(given), full.mimi, full.config, full.mimi_config)
    one, other = load(given, tmp_path / "one"), load(twin, tmp_path / "other")
    states = [duplex.init_state(2, CPU, torch.float32) for duplex in (one, other)]
    generator = torch.Generator().manual_seed(0)
    for _ in range(2 * one.lm.config.context):
        pcm = 0.3 * torch.randn(2, 1, 1920, generator=generator)
        first = one.tick(pcm, states[0], all_rows(2))
        second = other.tick(pcm, states[1], all_rows(2))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.text, second.text)
        assert torch.equal(first.pcm, second.pcm)


def test_an_8_bit_checkpoint_says_what_the_reference_says_past_its_wrap(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    reference = reference_lm(
        {key: value for key, value in full.config.items() if not key.startswith(("mimi_", "model_"))}
    )
    reference.load_state_dict(meant(given))
    check_parity(reference, load(given, tmp_path / "folder").lm)


def test_stacked_8_bit_projections_load_into_their_sets(full: Draft, tmp_path: Path) -> None:
    stacked = Draft(stack_sets(full.lm, "in_proj", "in_proj.weight"), full.mimi, full.config, full.mimi_config)
    one, other = load(eight_bit(stacked), tmp_path / "one"), load(eight_bit(full), tmp_path / "other")
    for name, value in one.lm.state_dict().items():
        assert torch.equal(other.lm.state_dict()[name], value), name


def test_scales_of_another_length_are_refused(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    given.lm[f"{LINEAR}_scb"] = given.lm[f"{LINEAR}_scb"][:-1]
    with pytest.raises(CheckpointError, match=rf"{LINEAR}_scb: shape \[59\] for a weight of shape \[60, 32\]"):
        load(given, tmp_path / "folder")


def test_an_8_bit_weight_without_scales_is_refused(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    del given.lm[f"{LINEAR}_scb"]
    with pytest.raises(CheckpointError, match=rf"{LINEAR}: I8, want floats or _scb beside it"):
        load(given, tmp_path / "folder")


def test_scales_beside_a_weight_of_floats_are_refused(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    given.lm[LINEAR] = full.lm[LINEAR]
    with pytest.raises(CheckpointError, match=rf"{LINEAR}: F32 with scales beside it, want I8"):
        load(given, tmp_path / "folder")


def test_scales_of_no_weight_are_refused(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    given.lm["nobody.weight_scb"] = torch.ones(3)
    with pytest.raises(CheckpointError, match=r"nobody\.weight_scb: unexpected"):
        load(given, tmp_path / "folder")


def test_scales_that_are_no_floats_are_refused(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    given.lm[f"{LINEAR}_scb"] = given.lm[f"{LINEAR}_scb"].to(torch.int32)
    with pytest.raises(CheckpointError, match=rf"{LINEAR}_scb: I32, want floats"):
        load(given, tmp_path / "folder")
