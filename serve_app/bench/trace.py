"""Where the time goes: a trace for a browser (chrome://tracing, Perfetto) and the operations that take the most."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import torch
from torch.profiler import ProfilerActivity, profile

from serve_app.bench.ours import Ours
from serve_app.errors import ConfigError

TICKS: Final = 5
SHOWN: Final = 15


def record(ours: Ours, path: Path, device: torch.device) -> Iterator[str]:
    """Profile a few ticks of the rows that are placed. Yields the table's lines.

    Raises:
        ConfigError: the trace cannot be written.
    """
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    ours.tick()
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(TICKS):
            ours.tick()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        profiler.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        raise ConfigError("--profile", f"{path}: {error}") from error
    on_gpu = device.type == "cuda"
    rows = []
    for event in profiler.key_averages():
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        rows.append((own_us / 1_000 / TICKS, event.count / TICKS, event.key))
    total_ms = sum(own_ms for own_ms, _, _ in rows) or 1.0
    yield f"{'ms a tick':>10s} {'share':>6s} {'calls':>7s}  operation ({path})"
    for own_ms, calls, name in sorted(rows, reverse=True)[:SHOWN]:
        yield f"{own_ms:10.3f} {100 * own_ms / total_ms:5.1f}% {calls:7.1f}  {name}"
