import json
from pathlib import Path
from typing import Final

import pytest
import torch

from serve_app.checkpoint import published
from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.occupancy import holding
from serve_app.checkpoint.plan import GIB, Plan, main, plan
from serve_app.checkpoint.source import CheckpointSource, read_layout
from serve_app.errors import ConfigError
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KvName
from serve_app.model.state import leaves
from tests.checkpoint.folders import draft

CPU: Final = torch.device("cpu")
SIMPLE: Final = Plan(codec_weights=4, lm_weights=96, codec_state=1, lm_state=9, parameters=50, context=7)

DEPLOYMENT: Final = """
applications:
  - name: engine
    import_path: serve_app.serving.engine_app:build
    args:
      checkpoint: {{folder: {folder}}}
      device: cuda
      dtype: bfloat16
      context: 1500
      slots: 32
  - name: gateway
    import_path: serve_app.serving.gateway_app:build
"""
PASSTHROUGH: Final = DEPLOYMENT.replace("checkpoint: {{folder: {folder}}}", "runner: passthrough")


@pytest.fixture(scope="module")
def moshi_7b(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    empty = CheckpointSource(folder=tmp_path_factory.mktemp("empty"))
    return plan(read_layout(empty), torch.bfloat16)


def test_the_plan_is_what_a_loaded_model_takes(tmp_path: Path) -> None:
    folder = draft().resolved(tmp_path)
    told = plan(folder.layout, torch.bfloat16)
    duplex = load_duplex(folder, CPU, torch.bfloat16)
    weights = sum(t.numel() * t.element_size() for t in (*duplex.parameters(), *duplex.buffers()))
    assert told.weights == weights
    for slots in (1, 5):
        state = sum(t.numel() * t.element_size() for t in leaves(duplex.init_state(slots, CPU, torch.bfloat16)))
        assert told.needs(slots) == weights + state


def test_half_the_context_needs_half_the_keys_and_values(tmp_path: Path) -> None:
    layout = read_layout(draft().write(tmp_path))
    whole, half = plan(layout, torch.float32), plan(layout, torch.float32, context=6)
    rings = 2 * 2 * 32 * 4  # keys and values of two layers, 32 wide, fp32, for each step of the context
    assert whole.lm_state - half.lm_state == 6 * rings


def test_the_published_7b_in_bf16_needs_14_7_gib_and_1_5_gib_a_slot(moshi_7b: Plan) -> None:
    assert moshi_7b.lm_weights == pytest.approx(2 * 7_687_729_152, rel=1e-6)
    assert moshi_7b.weights / GIB == pytest.approx(14.7, abs=0.1)
    assert moshi_7b.state / GIB == pytest.approx(1.48, abs=0.02)


def test_32_slots_of_the_published_7b_fit_in_80_gib(moshi_7b: Plan) -> None:
    moshi_7b.require(32, 80 * GIB)
    assert moshi_7b.fits(80 * GIB) >= 32


@pytest.mark.parametrize(("memory", "slots"), [(0, 0), (100, 0), (133, 0), (134, 1), (144, 1), (145, 2), (1_000, 79)])
def test_slots_that_fit_leave_room_for_the_scratch_row_and_a_tenth(memory: int, slots: int) -> None:
    assert SIMPLE.fits(memory) == slots


def test_more_slots_than_fit_are_refused_with_the_number_that_fits() -> None:
    SIMPLE.require(2, 145)
    with pytest.raises(ConfigError, match="slots: 3 were asked for, 2 fit"):
        SIMPLE.require(3, 145)


def test_the_command_answers_for_a_folder_without_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path), "--dtype", "bfloat16", "--memory-gib", "80"]) == 0
    told = capsys.readouterr().out
    assert "7,767.0 M" in told
    assert "37 in 80.00 GiB" in told


def test_the_command_answers_for_a_deployment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "config.json").write_text(json.dumps(dict(published.MOSHI_7B)))
    deployment = tmp_path / "deployment.yaml"
    deployment.write_text(DEPLOYMENT.format(folder=tmp_path / "weights"))
    assert main([str(deployment), "--memory-gib", "80"]) == 0
    told = capsys.readouterr().out
    assert "context of 1500 steps" in told
    assert "32   slots need" in told
    assert "75 in 80.00 GiB" in told


@pytest.mark.parametrize("deployment", [PASSTHROUGH, "applications: []", "{"])
def test_a_deployment_that_cannot_be_planned_is_one_line_and_status_2(
    deployment: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "deployment.yaml"
    path.write_text(deployment)
    assert main([str(path)]) == 2
    assert "deployment.yaml" in capsys.readouterr().err


def test_a_plan_with_pages_counts_what_the_state_takes(tmp_path: Path) -> None:
    folder = draft().resolved(tmp_path)
    kinds: tuple[KvName | None, ...] = (None, "int8", "fp8")
    for kv in kinds:
        storage = Storage(pages=7, page_steps=5, kv=kv)
        told = plan(folder.layout, torch.bfloat16, storage=storage)
        state = load_duplex(folder, CPU, torch.bfloat16).init_state(3, CPU, torch.bfloat16, storage)
        pages = state.lm.transformer.pages
        assert pages is not None
        shared = [pages.whole] if pages.scale is None else [pages.whole, pages.scale]
        taken = sum(t.numel() * t.element_size() for t in [*leaves(state), *shared])
        assert told.needs(3, 7) == told.weights + taken
        assert told.fits(10 * told.needs(3, 7), 7) > 3


def test_the_command_says_how_many_conversations_share_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sessions = {}
    for kv in ([], ["--kv", "fp8"]):
        assert main([str(tmp_path), "--dtype", "bfloat16", "--memory-gib", "80", *kv]) == 0
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("sharing pages")]
        sessions[bool(kv)] = int(line.split()[2])
    assert 37 < sessions[False] < sessions[True] < 2.2 * sessions[False]


def test_a_conversation_of_three_minutes_on_average_holds_1528_steps() -> None:
    held = holding(3000)
    assert held.mean_steps == pytest.approx(1528, abs=1)
    assert holding(10).mean_steps == pytest.approx(10, rel=0.01)
    assert holding(10).deviation_steps < 0.5
