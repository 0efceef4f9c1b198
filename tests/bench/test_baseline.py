"""A run is held against an earlier one of the same device, and of no other."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from serve_app.bench.baseline import compare, read
from serve_app.bench.command import main
from serve_app.errors import ConfigError
from tests.bench.conftest import TINY


@pytest.mark.parametrize(("key", "value"), [("device", "NVIDIA H100"), ("threads", 64)])
def test_a_baseline_of_another_device_is_refused_by_both_names(
    tmp_path: Path, result: dict[str, Any], key: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    other = copy.deepcopy(result)
    other["machine"][key] = value
    path = tmp_path / "other.json"
    path.write_text(json.dumps(other))
    assert main([*TINY, "--lengths", "0.5", "--baseline", str(path)]) == 2
    said = capsys.readouterr()
    assert repr(value) in said.err
    assert repr(result["machine"][key]) in said.err
    assert said.out == ""  # nothing was measured first


def test_another_model_is_refused(kept: Path, result: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="7b"):
        read(kept, result["machine"], "7b", "float32")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"machine": 3}'])
def test_what_is_no_result_is_refused(tmp_path: Path, content: str, result: dict[str, Any]) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match="broken"):
        read(path, result["machine"], "tiny", "float32")


def test_a_slower_batch_is_told_by_the_exit_status(
    tmp_path: Path, result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    def against(factor: float) -> int:
        before = copy.deepcopy(result)
        for cell in before["cells"]:
            cell["counted"]["p50_ms"] *= factor
        path = tmp_path / "before.json"
        path.write_text(json.dumps(before))
        arguments = ["--lengths", "0.5", "--no-reference", "--no-sparse", "--baseline", str(path)]
        return main([*TINY, *arguments])

    assert against(1e-6) == 1
    assert "slower" in capsys.readouterr().out
    assert against(1e6) == 0


def test_only_batches_that_both_measured_are_compared(result: dict[str, Any]) -> None:
    cells = copy.deepcopy(result["cells"])
    cells[0]["rows"] = 3
    cells[1]["counted"]["p50_ms"] *= 2
    changes = compare(result, cells)
    assert [(change.rows, change.lengths) for change in changes] == [(2, "0.5"), (1, "half"), (2, "half")]
    assert [change.ratio for change in changes] == pytest.approx([2, 1, 1])
    assert [change.slower for change in changes] == [True, False, False]
