"""Kernels that one tick launches, counted without a GPU by `kernels`, where that is built."""

import importlib
from collections.abc import Mapping
from typing import Any, Final

from serve_app.model.duplex import Duplex

COUNTER: Final = "serve_app.bench.kernels"
ROWS: Final = 4
"""The count is the same for every batch."""


def kernels_of(duplex: Duplex) -> Mapping[str, int] | None:
    """By stage; None where nothing counts them.

    Args:
        duplex: on the meta device, in the dtype that runs.
    """
    try:
        counter: Any = importlib.import_module(COUNTER)
    except ImportError:  # of the counter, or of what it needs besides torch
        return None
    if hasattr(counter, "count_kernels"):
        return dict(counter.count_kernels(duplex, ROWS))
    return dict(counter.count(duplex, ROWS).by_stage)
