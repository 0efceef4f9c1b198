"""Loads the kernels, and with them triton, under its interpreter: what is decorated later is compiled."""

import importlib
import importlib.util
import os
from typing import Final

import pytest

from serve_app.model.kernels.plug import MODULES

INTERPRET: Final = "TRITON_INTERPRET"

INSTALLED: Final = importlib.util.find_spec("triton") is not None
INTERPRETED: Final = os.environ.get(INTERPRET) == "1"  # since the first line of tests/conftest.py

if INSTALLED and INTERPRETED:
    for name in sorted(set(MODULES.values())):
        importlib.import_module(f"serve_app.model.kernels.{name}")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs kernels on the CPU, or says why not; other folders keep their environment."""
    if not INSTALLED:
        pytest.skip("triton is not installed, so no kernel is tested (pip install triton)")
    assert INTERPRETED
    monkeypatch.setenv(INTERPRET, "1")
