"""Holds every kernel against PyTorch on this machine's GPU and times it: ``python -m serve_app.model.kernels.check``.

Shapes are the 7B's, 16 rows of mixed length. Prints a line per case and JSON last; ends with 1 where a case differs and
with 2 where nothing could be compared. ``--interpret`` compares small shapes on the CPU instead, in Triton's
interpreter, and times nothing; ``--list`` says what a GPU would be asked.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import torch

from serve_app.model.kernels import plug
from serve_app.model.kernels.cases import SMALL, Case, Sizes, cases, difference

AGREES, DIFFERS, NOTHING = 0, 1, 2
INTERPRET: Final = "TRITON_INTERPRET=1"

_REPEATS: Final = 20
_COPY_BYTES: Final = 1 << 30
_FLOOR_BYTES_S: Final = 3.0e12
"""An H100's, where no GPU says otherwise."""

Result = dict[str, str | float | bool | int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _parser().parse_args(arguments)
    if options.list:
        return _list()
    if not plug.available():
        return _nothing("triton is not installed", cuda=torch.cuda.is_available())
    if options.interpret:
        return _interpret()
    if not torch.cuda.is_available():
        return _nothing("no CUDA", cuda=False)
    device = torch.device("cuda")
    bandwidth = _copy_bandwidth(device)
    fp8 = torch.cuda.get_device_capability(device) >= plug.FLOAT8
    with plug.plugged("cuda"):
        results = _told(_on_gpu(case, bandwidth) for case in cases(device, fp8=fp8))
    about = {"gpu": torch.cuda.get_device_name(device), "copy_bytes_per_s": bandwidth}
    return _report(results, cuda=True, **about)


# --- ways to run ------------------------------------------------------------------------------------------------------


def _interpret() -> int:
    if not plug.interpreted():
        return _again_interpreted()
    with plug.plugged("cpu"):
        results = _told(_compared(case, case.ours) for case in cases(torch.device("cpu"), SMALL))
    return _report(results, cuda=False, interpreted=True)


def _again_interpreted() -> int:
    """The same command in a process that was told from its beginning to interpret."""
    import subprocess

    command = ["env", INTERPRET, sys.executable, "-m", "serve_app.model.kernels.check", "--interpret"]
    return subprocess.run(command, check=False).returncode


def _list() -> int:
    """Every case with its floor, worked out on small inputs nowhere near a GPU."""
    floors = []
    for case in cases(torch.device("cpu"), Sizes(context=300)):
        launched = plug.launches(case.operation, case.arguments)
        floors.append({"name": case.name, "launches": launched, "floor_us": case.moved_bytes / _FLOOR_BYTES_S * 1e6})
        print(f"{case.name:26} {launched} launched, {case.moved_bytes / 1e6:9.2f} MB at least")  # noqa: T201
    print(json.dumps({"cuda": torch.cuda.is_available(), "triton": plug.available(), "would": floors}))  # noqa: T201
    return AGREES


def _nothing(why: str, *, cuda: bool) -> int:
    print(f"{why}: nothing was compared and nothing was timed (--interpret compares on the CPU)")  # noqa: T201
    print(json.dumps({"cuda": cuda, "triton": plug.available(), "cases": []}))  # noqa: T201
    return NOTHING


def _told(results: Iterable[Result]) -> list[Result]:
    """Results, each said as it comes."""
    kept = []
    for result in results:
        kept.append(result)
        verdict = "ok " if result["agrees"] else "BAD"
        told = f"{result['name']:26} {verdict} difference {result['difference']:.2e}"
        if "us" in result:
            told += f"  {result['us']:8.1f} us  floor {result['floor_us']:7.1f}  PyTorch {result['pytorch_us']:8.1f}"
        print(f"{told}  {result['error']}")  # noqa: T201
    return kept


def _report(results: list[Result], **about: Any) -> int:
    agrees = all(result["agrees"] for result in results)
    report = {**about, "torch": torch.__version__, "agrees": agrees, "cases": results}
    print(json.dumps(report))  # noqa: T201
    return AGREES if agrees else DIFFERS


# --- measuring --------------------------------------------------------------------------------------------------------


def _compared(case: Case, ours: Callable[[tuple[Any, ...]], tuple[torch.Tensor, ...]]) -> Result:
    try:
        worst, agrees = difference(ours(case.cloned()), case.theirs(case.cloned()), case.tolerance)
    except Exception as error:  # noqa: BLE001 - a kernel that does not compile here is a result; the others still run
        words = f"{type(error).__name__}: {error}"[:200]
        return {"name": case.name, "agrees": False, "difference": float("nan"), "error": words}
    return {"name": case.name, "agrees": agrees, "difference": worst, "error": ""}


def _on_gpu(case: Case, bandwidth: float) -> Result:
    result = _compared(case, case.ours)
    blank: Result = {"us": float("nan"), "floor_us": case.moved_bytes / bandwidth * 1e6, "pytorch_us": float("nan")}
    if result["error"]:
        return {**result, **blank}
    arguments = case.cloned()
    times = {
        "us": _captured_us(lambda: case.ours(arguments)),
        "pytorch_us": _captured_us(lambda: case.theirs(arguments)),
    }
    return {**result, **blank, **times}


def _captured_us(run: Callable[[], object]) -> float:
    """Microseconds of one call inside a captured graph, as a tick has it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_REPEATS):
            run()
    return _timed_us(graph.replay) / _REPEATS


def _timed_us(run: Callable[[], object]) -> float:
    """The median of 7, after 2 to warm."""
    taken: list[float] = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1000)
    return sorted(taken[2:])[3]


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / (_timed_us(lambda: target.copy_(source)) / 1e6)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m serve_app.model.kernels.check",
        description="Hold every Triton kernel against PyTorch and time it; the last line is JSON.",
    )
    parser.add_argument("--interpret", action="store_true", help="compare on the CPU, in Triton's interpreter")
    parser.add_argument("--list", action="store_true", help="say what would be compared, run nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
