"""Loads the kernels, and with them triton, under its interpreter: what is decorated later is compiled."""

import importlib
import importlib.util
import sys
from typing import Final

import pytest

INTERPRET: Final = "TRITON_INTERPRET"
MODULES: Final = ("attention", "depth", "gate", "norm", "rope", "sample")

INSTALLED: Final = importlib.util.find_spec("triton") is not None
EARLY: Final = "triton" in sys.modules

if INSTALLED and not EARLY:
    with pytest.MonkeyPatch.context() as early:
        early.setenv(INTERPRET, "1")
        for name in MODULES:
            importlib.import_module(f"serve_app.model.kernels.{name}")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs kernels on the CPU, or says why not; other folders keep their environment."""
    if not INSTALLED:
        pytest.skip("triton is not installed, so no kernel is tested (pip install triton)")
    if EARLY:
        pytest.fail("triton was imported before this folder was collected: it cannot be interpreted any more")
    monkeypatch.setenv(INTERPRET, "1")
