"""``python -m serve_app.bench.compiled``: whether torch.compile would pay on this CPU, part by part.

Two parts that are long chains of small operations: all steps of the Depformer, and the codec's encoder transformer.
Each as it is and compiled (Inductor, weights frozen so that it packs them itself), in turn, with what compiling took.
The last line is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch

from serve_app.bench.lengths import parse_rows
from serve_app.bench.models import build
from serve_app.bench.shapes import PRESETS
from serve_app.model.duplex import Duplex
from serve_app.model.state import all_rows

Call = Callable[[], object]
CPU: Final = torch.device("cpu")
PARTS: Final = ("depformer", "codec")
OPTIONS: Final[dict[str, Any]] = {"freezing": True}
"""Weights are constants, so that Inductor packs them for oneDNN as we do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it: a line for every part and batch."""
    parser = argparse.ArgumentParser(prog="serve_app.bench.compiled", description=__doc__)
    parser.add_argument("--rows", default="1,8", help="(%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="(%(default)s)")
    parser.add_argument("--repeat", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--part", choices=PARTS, action="append", help="both, unless said otherwise")
    parser.add_argument("--lm", default="112m", choices=sorted(PRESETS), help="whose Depformer (%(default)s)")
    parser.add_argument("--codec", default="mimi", choices=sorted(PRESETS), help="whose transformer (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    parts: Mapping[str, Callable[[int], Callable[[bool], Call]]] = {
        PARTS[0]: lambda rows: _depformer(build(PRESETS[options.lm], CPU, torch.float32), rows),
        PARTS[1]: lambda rows: _transformer(build(PRESETS[options.codec], CPU, torch.float32), rows),
    }
    _say(f"{'part':18s} {'B':>3s} {'as it is':>9s} {'compiled':>9s} {'ratio':>6s} {'compiling':>10s}")
    found = []
    for name in options.part or PARTS:
        for rows in parse_rows(options.rows):
            plain_ms, compiled_ms, took_s = _measured(parts[name](rows), options.repeat)
            ratio = compiled_ms / plain_ms
            _say(f"{name:18s} {rows:3d} {plain_ms:6.2f} ms {compiled_ms:6.2f} ms {ratio:6.2f} {took_s:8.0f} s")
            found.append(
                {"part": name, "rows": rows, "plain_ms": plain_ms, "compiled_ms": compiled_ms, "took_s": took_s}
            )
    _say(json.dumps(found))
    return 0


def _depformer(duplex: Duplex, rows: int) -> Callable[[bool], Call]:
    """Every step of a tick's Depformer, without sampling: what is compiled is one unrolled graph."""
    depformer, dep_q = duplex.lm.depformer, duplex.lm.config.dep_q
    assert depformer is not None
    x = torch.randn(rows, 1, duplex.lm.config.depformer_dim)

    def steps(x: torch.Tensor) -> torch.Tensor:
        past = depformer.begin(x)
        for index in range(dep_q):
            x = depformer.step(x, past, index)
        return x

    return lambda compiled: _bound(torch.compile(steps, dynamic=False, options=OPTIONS) if compiled else steps, x)


def _transformer(duplex: Duplex, rows: int) -> Callable[[bool], Call]:
    """Two steps of the codec's encoder transformer over a full ring."""
    inner = duplex.mimi.encoder_transformer.transformer
    state, every = inner.init_state(rows, CPU, torch.float32), all_rows(rows)
    start = 10 * inner.config.context
    x = torch.randn(rows, duplex.mimi.config.steps_per_frame, inner.config.dim)

    def step(x: torch.Tensor) -> torch.Tensor:
        state.offset.fill_(start)  # the host reads offsets, so that a new one would be compiled anew
        return inner.step(x, state, every)

    return lambda compiled: _bound(torch.compile(step, dynamic=False, options=OPTIONS) if compiled else step, x)


def _bound(call: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Call:
    return lambda: call(x)


@torch.no_grad()
def _measured(made: Callable[[bool], Call], repeat: int) -> tuple[float, float, float]:
    """Median milliseconds of both ways, and the seconds that compiling took."""
    torch.compiler.reset()
    plain, compiled = made(False), made(True)
    began_s = time.perf_counter()
    compiled()
    took_s = time.perf_counter() - began_s
    spans: dict[int, list[float]] = {0: [], 1: []}
    for number in range(repeat + 3):
        for way, call in enumerate((plain, compiled)):
            began_s = time.perf_counter()
            call()
            if number >= 3:
                spans[way].append(1_000 * (time.perf_counter() - began_s))
    return float(np.median(spans[0])), float(np.median(spans[1])), took_s


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
