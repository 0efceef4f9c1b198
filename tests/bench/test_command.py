"""``serve_app bench`` from its arguments to its last line."""

import json
from pathlib import Path
from typing import Any

import pytest

from serve_app import cli
from serve_app.bench import plot
from serve_app.bench.command import main
from serve_app.bench.models import on_meta, parameters_of
from serve_app.bench.shapes import PRESETS
from tests.bench.conftest import TINY

SHORT = (*TINY, "--lengths", "0.5", "--no-reference", "--no-sparse")


def test_every_batch_has_its_row_with_all_that_was_asked_for(result: dict[str, Any]) -> None:
    assert [(cell["rows"], cell["lengths"]) for cell in result["cells"]] == [
        (1, "0.5"),
        (2, "0.5"),
        (1, "half"),
        (2, "half"),
    ]
    for cell in result["cells"]:
        assert cell["fits"]
        for times in (cell["counted"], cell["wall"], cell["reference"]):
            assert 0 < times["p50_ms"] <= times["p99_ms"] <= times["max_ms"]
        assert set(cell["stages_ms"]) == set(cell["floors_ms"]) == {"encode", "lm", "depformer", "decode"}
        assert cell["ratio"] == pytest.approx(cell["counted"]["p50_ms"] / cell["reference"]["p50_ms"])
        assert cell["floor_share"] == pytest.approx(cell["floor_ms"] / cell["counted"]["p50_ms"])
    assert [cell["mean_steps"] for cell in result["cells"]] == [20, 20, 4, 22]


def test_the_result_tells_machine_and_model(result: dict[str, Any]) -> None:
    assert result["machine"]["kind"] == "cpu"
    assert result["machine"]["threads"] == 1
    assert result["machine"]["copy_bytes_s"] > 0
    assert set(result["machine"]["product_flop_s"]) == {"float32"}
    assert result["model"]["name"] == "tiny"
    assert result["model"]["context"] == 40
    assert result["reference"].startswith("moshi ")


def test_tokens_of_the_measured_way_equal_those_of_the_plain_way_and_of_the_reference(result: dict[str, Any]) -> None:
    assert len(result["agreement"]) == 3
    for found in result["agreement"].values():
        assert found["compared"] > 50
        assert found["equal"] == found["compared"]
        assert found["worst"] < 1e-4


def test_long_runs_few_rows_among_many_and_capacity_are_in_the_result(result: dict[str, Any]) -> None:
    assert [(run["rows"], run["lengths"], run["ticks"]) for run in result["sustained"]] == [
        (2, "0.5", 3),
        (2, "half", 3),
    ]
    assert result["sparse"] > 0
    assert [found["lengths"] for found in result["capacity"]] == ["0.5", "half"]
    assert all(1_000 < found["by_memory"] < found["by_length"] for found in result["capacity"])


def test_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", *SHORT]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1])["cells"][1]["reference"] is None
    assert any(line.startswith("device") for line in lines)


@pytest.mark.parametrize("kv", [(), ("--kv", "int8")], ids=["as they are", "int8"])
def test_slots_that_share_pages_are_measured_and_say_what_the_plain_way_says(
    kv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    paged = ("--pages", "--page-steps", "7", "--lengths", "10,half,1.0", "--ticks", "3", "--no-reference")
    small = ("--memory-gib", "0.01")  # of conversations as tiny as these a machine holds a million
    assert main([*TINY, *paged, *small, *kv]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert all(cell["fits"] for cell in told["cells"])
    found = told["agreement"]["measured and plain"]
    assert found["equal"] == found["compared"] > 50
    assert told["model"]["page_bytes"] > 0
    assert told["storage"] == {"page_steps": 7, "kv": kv[1] if kv else None}
    assert len(told["sustained"]) == 3
    assert told["sparse"] > 0
    assert sum(told["kernels"].values()) > 100


def test_a_batch_that_does_not_fit_says_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SHORT, "--memory-gib", "0.00046"]) == 0
    out = capsys.readouterr().out
    assert "does not fit: needs" in out
    cells = json.loads(out.splitlines()[-1])["cells"]
    assert [cell["fits"] for cell in cells] == [False, False]
    assert cells[0]["needs_bytes"] < cells[1]["needs_bytes"]


def test_weights_that_do_not_fit_are_refused_before_they_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--model", "7b", "--device", "cpu", "--memory-gib", "8"]) == 2
    assert "29.06 GiB" in capsys.readouterr().err


def test_a_trace_is_written_with_a_table_of_where_the_time_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.json"
    assert main([*SHORT, "--profile", str(path)]) == 0
    assert json.loads(path.read_text())["traceEvents"]
    assert "aten::" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_drawn(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"ticks.{suffix}"
    assert main([*SHORT, "--plot", str(path)]) == 0
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--model", "nowhere"], "nowhere"),
        (["--rows", "two"], "--rows"),
        (["--rows", "0"], "--rows"),
        (["--lengths", "long"], "--lengths"),
        (["--lengths", "-3"], "--lengths"),
        (["--device", "meta"], "--device"),
        (["--plot", "ticks.bmp"], "--plot"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_the_middle_preset_has_between_100_and_120_million_parameters() -> None:
    assert 100e6 < parameters_of(on_meta(PRESETS["112m"]).lm) < 120e6
    assert parameters_of(on_meta(PRESETS["140m"]).lm) == 139_747_840


def test_a_kept_result_is_drawn_again_with_its_profile(tmp_path: Path) -> None:
    kept, trace = tmp_path / "kept.json", tmp_path / "trace.json"
    assert main([*SHORT, "--profile", str(trace), "--save-baseline", str(kept)]) == 0
    profile = json.loads(kept.read_text())["profile"]
    assert list(profile) == ["encode", "lm", "depformer", "decode", "around"]
    assert all(profile[stage]["products"] > 0 for stage in ("encode", "lm", "depformer", "decode"))
    assert profile["depformer"]["sampling"] > 0
    pictures = [tmp_path / "ticks.png", tmp_path / "ticks.svg", tmp_path / "shares.svg"]
    assert plot.main([str(kept), *map(str, pictures[:2])]) == 0
    assert plot.main(["--profile", str(kept), str(kept), str(pictures[2])]) == 0
    assert all(picture.stat().st_size > 1_000 for picture in pictures)


def test_a_result_without_a_profile_has_none_to_draw(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plot.main(["--profile", str(kept), str(tmp_path / "shares.svg")]) == 2
    assert "has none" in capsys.readouterr().err
