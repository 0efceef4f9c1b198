"""8-bit matrices and a bf16 codec, from settings to what is loaded."""

from pathlib import Path

import pytest
import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.plan import main, plan
from serve_app.checkpoint.served import load_served
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.model.quantised_linear import Int8Linear, quantise_linears
from serve_app.model.state import all_rows, leaves
from tests.checkpoint.folders import Draft, draft
from tests.checkpoint.test_quantised import eight_bit
from tests.model.language import CPU


@pytest.fixture(scope="module")
def full() -> Draft:
    return draft()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrices_are_quantised_from_what_the_file_holds(dtype: torch.dtype, full: Draft, tmp_path: Path) -> None:
    folder = full.resolved(tmp_path)
    expected = load_duplex(folder, CPU, torch.float32).lm
    quantise_linears(expected)
    got = load_duplex(folder, CPU, dtype, weights="int8").lm
    short = dict(got.named_modules())
    for name, part in expected.named_modules():
        if isinstance(part, Int8Linear):
            twin = short[name]
            assert isinstance(twin, Int8Linear)
            assert torch.equal(twin.weight, part.weight)
            assert torch.equal(twin.scale, part.scale)
    assert got.dtype == dtype


def test_a_published_8_bit_file_keeps_its_8_bits(full: Draft, tmp_path: Path) -> None:
    given = eight_bit(full)
    loaded = load_duplex(given.resolved(tmp_path), CPU, torch.float32, weights="int8").lm.state_dict()
    for name, value in given.lm.items():
        if value.dtype == torch.int8:
            assert torch.equal(loaded[name], value), name


@pytest.mark.parametrize("codec_dtype", [torch.float32, torch.bfloat16])
def test_the_plan_is_what_is_loaded(codec_dtype: torch.dtype, full: Draft, tmp_path: Path) -> None:
    folder = full.resolved(tmp_path)
    told = plan(folder.layout, torch.bfloat16, weights="int8", codec_dtype=codec_dtype)
    duplex = load_duplex(folder, CPU, torch.bfloat16, weights="int8", codec_dtype=codec_dtype)
    weights = sum(t.nbytes for t in (*duplex.parameters(), *duplex.buffers()))
    state = sum(t.nbytes for t in leaves(duplex.init_state(3, CPU, torch.bfloat16)))
    assert told.needs(3) == weights + state
    assert told.parameters == plan(folder.layout, torch.bfloat16).parameters


def test_the_published_7b_in_8_bits_is_half_as_large(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(tmp_path), "--dtype", "bfloat16", "--memory-gib", "80"]
    assert main([*words, "--weights", "int8", "--codec-dtype", "bfloat16"]) == 0
    told = capsys.readouterr().out
    assert "in bfloat16, matrices in int8" in told
    assert "7,767.0 M" in told
    assert "42 in 80.00 GiB" in told  # 37 without


def test_a_codec_in_bf16_searches_in_fp32(full: Draft, tmp_path: Path) -> None:
    mimi = load_duplex(full.resolved(tmp_path), CPU, torch.float32, codec_dtype=torch.bfloat16).mimi
    kinds = {name.split(".")[0]: value.dtype for name, value in mimi.state_dict().items()}
    assert kinds.pop("quantizer") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


def test_a_deployment_gets_what_it_asks_for_and_ticks(full: Draft, tmp_path: Path) -> None:
    full.resolved(tmp_path)
    checkpoint = CheckpointSettings(folder=str(tmp_path))
    settings = EngineSettings(checkpoint=checkpoint, slots=2, weights="int8", codec_dtype="bfloat16")
    duplex = load_served(settings, checkpoint).duplex
    assert any(isinstance(part, Int8Linear) for part in duplex.lm.modules())
    state = duplex.init_state(2, CPU, duplex.lm.dtype)
    assert {leaf.dtype for leaf in leaves(state.mimi) if leaf.is_floating_point()} == {torch.bfloat16}
    for _ in range(4):
        out = duplex.tick(torch.full((2, 1, 1920), 0.1), state, all_rows(2))
    assert out.decoded.all()
    assert out.finite.all()
    assert out.pcm.dtype == torch.float32
