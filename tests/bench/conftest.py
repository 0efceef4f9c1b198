"""Tiny products: a second thread only waits. One run of the command serves many tests."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_app.bench.command import main

TINY = ("--model", "tiny", "--device", "cpu", "--threads", "1", "--rows", "1,2", "--repeat", "2")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``--save-baseline`` writes, for two batches and two lengths, the reference beside them."""
    path = tmp_path_factory.mktemp("bench") / "kept.json"
    assert main([*TINY, "--lengths", "0.5,half", "--ticks", "3", "--save-baseline", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def result(kept: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kept.read_text())
    return found
