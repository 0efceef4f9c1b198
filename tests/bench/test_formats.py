"""Formats of one model beside each other, and what the benchmark says of a narrower model."""

import json

import pytest
import torch

from serve_app.bench import formats
from serve_app.bench.command import main
from serve_app.bench.models import on_meta
from serve_app.bench.roofline import work_of
from serve_app.bench.shapes import PRESETS
from tests.bench.conftest import TINY


def test_every_format_is_told_beside_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert formats.main(["--model", "tiny", "--rows", "1,2", "--lengths", "0.5", "--repeat", "2"]) == 0
    cells = json.loads(capsys.readouterr().out.splitlines()[-1])["cells"]
    assert [cell["format"] for cell in cells] == 2 * list(formats.FORMATS)
    assert [cell["ratio"] for cell in cells if cell["format"] == "fp32"] == [1, 1]
    assert all(cell["p50_ms"] > 0 for cell in cells)


def test_a_codec_alone_has_no_8_bit_format() -> None:
    assert list(formats.formats_of(PRESETS["mimi"])) == ["fp32", "bf16"]
    assert list(formats.formats_of(PRESETS["112m"])) == list(formats.FORMATS)


def test_the_benchmark_measures_a_narrower_model(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "--lengths", "0.5", "--no-sparse", "--weights", "int8", "--codec-dtype", "bfloat16"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["dtype"] == "float32, int8 weights, bfloat16 codec"
    assert set(result["machine"]["product_flop_s"]) == {"float32", "bfloat16"}
    assert result["reference"] is None
    assert result["agreement"]["measured and plain"]["equal"] == result["agreement"]["measured and plain"]["compared"]


def test_8_bit_matrices_are_half_of_the_floor_of_bf16() -> None:
    shape = on_meta(PRESETS["7b"])
    whole, short = work_of(shape, torch.bfloat16), work_of(shape, torch.bfloat16, weights="int8")
    for stage in ("lm", "depformer"):
        assert short[stage].weight_bytes * 2 == whole[stage].weight_bytes
        assert short[stage].step_bytes == whole[stage].step_bytes
    codec = work_of(shape, torch.bfloat16, codec_dtype=torch.bfloat16)
    assert codec["decode"].weight_bytes * 2 == whole["decode"].weight_bytes
    assert codec["encode"].weight_bytes * 2 > whole["encode"].weight_bytes  # codebooks stay fp32
