"""How much faster files go together than one after another: ``python -m load_tests.offline``. One process, no network.

Cuts the demo's recording into pieces and runs them through ``serve_app run`` in alternation, in one batch and one by
one, so that both meet the same noise. Prints one line of JSON at the end.
"""

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch

from serve_app.client.wav import read_wav, write_wav
from serve_app.demo.recording import FOLDER, NAME
from serve_app.offline import command
from serve_app.units import SAMPLE_RATE_HZ

CHECKPOINT: Final = FOLDER.parent / "checkpoint"
BOUND: Final = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 when the ratio misses its bound."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.offline", description=__doc__)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=6.0, help="of each file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        files = _pieces(Path(folder), options.files, options.seconds)
        together, single = [], []
        for _ in range(options.rounds):
            together.append(_took_s(files, Path(folder) / "out", options.files))
            single.append(_took_s(files, Path(folder) / "out", 1))
    ratios = [alone_s / one_s for alone_s, one_s in zip(single, together, strict=True)]
    found = {
        "files": options.files,
        "together_s": [round(value, 2) for value in together],
        "one_by_one_s": [round(value, 2) for value in single],
        "ratio": round(statistics.median(ratios), 2),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(found))
    return int(statistics.median(ratios) < BOUND)


def _pieces(folder: Path, count: int, seconds: float) -> list[Path]:
    """Files of ``seconds`` each, cut from the recording at places spread over it."""
    pcm = read_wav(FOLDER / f"{NAME}.wav")
    length = int(seconds * SAMPLE_RATE_HZ)
    starts = np.linspace(0, max(0, len(pcm) - length), count).astype(int)
    paths = [folder / f"piece{number}.wav" for number in range(count)]
    for path, start in zip(paths, starts, strict=True):
        write_wav(path, np.resize(pcm[start:], length))
    return paths


def _took_s(files: Sequence[Path], out: Path, batch: int) -> float:
    began_s = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        failed = command.main(
            [str(CHECKPOINT), *map(str, files), "--out", str(out), "--batch", str(batch), "--threads", "1"]
        )
    if failed:
        raise SystemExit(f"serve_app run ended with {failed}")
    return time.perf_counter() - began_s


if __name__ == "__main__":
    sys.exit(main())
