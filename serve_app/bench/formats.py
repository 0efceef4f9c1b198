"""``python -m serve_app.bench.formats``: the same model in fp32, bf16 and 8 bits, ticked in turn in one process.

So that what else the machine does meets all of them: ratios are sound where times are not. The last line is JSON.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch

from serve_app.bench.command import DTYPES
from serve_app.bench.lengths import parse_lengths, parse_rows
from serve_app.bench.models import build, bytes_of
from serve_app.bench.ours import Ours
from serve_app.bench.shapes import PRESETS, Shapes, shapes_of
from serve_app.bench.timing import WARM_TICKS, timed
from serve_app.model.quantised_linear import WeightsName

Format = tuple[str, WeightsName | None, str]
"""Of the language model, of its matrices, of the codec."""

FORMATS: Final[Mapping[str, Format]] = {
    "fp32": ("float32", None, "float32"),
    "bf16": ("bfloat16", None, "bfloat16"),
    "fp32, int8 matrices": ("float32", "int8", "float32"),
    "bf16, int8 matrices": ("bfloat16", "int8", "bfloat16"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it: a line for every batch and format, its ratio to the first one's."""
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    shapes = shapes_of(options.model)
    rows = parse_rows(options.rows)
    models = {name: _ours(shapes, kind, max(rows)) for name, kind in formats_of(shapes).items()}
    found = []
    _say(f"{'format':24s} {'weights':>9s} {'B':>3s} {'L':>6s} {'p50 ms':>8s} {'ratio':>6s}")
    for lengths in parse_lengths(options.lengths):
        for count in rows:
            steps = lengths.of(count, shapes.lm_config().context)
            times = _alternate(models, steps, shapes.stages, options.repeat)
            for name, span_ms in times.items():
                ratio = span_ms / times["fp32"]
                size = bytes_of(models[name].duplex) / (1 << 20)
                _say(f"{name:24s} {size:6.0f}MiB {count:3d} {lengths.label:>6s} {span_ms:8.2f} {ratio:6.3f}")
                found.append(
                    {"format": name, "rows": count, "lengths": lengths.label, "p50_ms": span_ms, "ratio": ratio}
                )
    _say(json.dumps({"model": shapes.name, "threads": options.threads, "cells": found}))
    return 0


def formats_of(shapes: Shapes) -> Mapping[str, Format]:
    """Those that change something in what counts: a codec has nothing in 8 bits."""
    return {name: kind for name, kind in FORMATS.items() if "lm" in shapes.stages or kind[1] is None}


def _ours(shapes: Shapes, kind: Format, slots: int) -> Ours:
    dtype, weights, codec = kind
    duplex = build(shapes, torch.device("cpu"), DTYPES[dtype], weights=weights, codec_dtype=DTYPES[codec])
    return Ours(duplex, slots)


def _alternate(
    models: Mapping[str, Ours], steps: Sequence[int], stages: Sequence[str], repeat: int
) -> Mapping[str, float]:
    """Median milliseconds of the stages that count."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for ours in models.values():
        ours.place(steps)
    for number in range(WARM_TICKS + repeat):
        for name, ours in models.items():
            by_stage = timed(ours)[1]
            if number >= WARM_TICKS:
                times[name].append(sum(by_stage[stage] for stage in stages))
    return {name: float(np.median(spans)) for name, spans in times.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app.bench.formats", description=__doc__)
    add = parser.add_argument
    add("--model", default="112m", help=f"{', '.join(PRESETS)}, demo, or a checkpoint's folder (%(default)s)")
    add("--rows", default="1,8", help="(%(default)s)")
    add("--lengths", default="0.1", help="as `serve_app bench` (%(default)s)")
    add("--threads", type=int, default=1, help="(%(default)s)")
    add("--repeat", type=int, default=30, help="(%(default)s)")
    return parser


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
