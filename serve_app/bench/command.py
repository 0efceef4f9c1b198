"""``serve_app bench``: what this device makes of a model, against what it could and what the reference makes of it."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from serve_app.bench import baseline, plot, trace
from serve_app.bench.lengths import Lengths, parse_lengths, parse_rows
from serve_app.bench.machine import measure
from serve_app.bench.run import Asked, Run
from serve_app.bench.shapes import PRESETS, shapes_of
from serve_app.checkpoint.memory import device_memory
from serve_app.errors import ChorusError, ConfigError
from serve_app.model.quantised_kv import KV_DTYPES

DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}
GIB: Final = 1 << 30
SLOWER, REFUSED = 1, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0; 1 where a batch is slower than the baseline; 2 where an error that we know, a baseline of another device
        among them, is one line on standard error.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except ChorusError as error:
        print(f"serve_app bench: {error}", file=sys.stderr)  # noqa: T201
        return REFUSED


def _run(options: argparse.Namespace) -> int:
    asked = _asked(options)
    for path in options.plot:
        plot.check(path)
    dtypes = {torch.float32, asked.dtype, asked.codec_dtype} | ({torch.bfloat16} if asked.weights else set())
    machine = measure(asked.device, dtypes, _memory(options, asked.device))
    kept = None
    if options.baseline is not None:  # before minutes go by
        kept = baseline.read(options.baseline, machine.as_json(), asked.shapes.name, asked.format)
    run = Run(asked, machine, _say)
    result = dict(run.all())
    status = 0
    if kept is not None:
        changes = baseline.compare(kept, result["cells"])
        for change in changes:
            verdict = "slower" if change.slower else "no slower"
            _say(f"B={change.rows} L={change.lengths}: {change.ratio:.3f} of the baseline, {verdict}")
        result["baseline"] = [[change.rows, change.lengths, change.ratio] for change in changes]
        status = SLOWER if any(change.slower for change in changes) else 0
    if options.profile is not None and run.ours is not None:
        profile = trace.record(run.ours, options.profile, asked.device)
        for line in profile.lines():
            _say(line)
        result["profile"] = profile.stages
    for path in options.plot:
        plot.draw(path, result)
    if options.save_baseline is not None:
        baseline.save(options.save_baseline, result)
    _say(json.dumps(result))
    return status


def _asked(options: argparse.Namespace) -> Asked:
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = _device(options.device)
    on_gpu = device.type == "cuda"
    lengths: tuple[Lengths, ...] = parse_lengths(options.lengths)
    return Asked(
        shapes=shapes_of(options.model),
        device=device,
        dtype=DTYPES[options.dtype or ("bfloat16" if on_gpu else "float32")],
        rows=parse_rows(options.rows),
        lengths=lengths,
        context=options.context,
        repeat=options.repeat,
        ticks=options.ticks,
        reference=options.reference and options.weights is None and options.codec_dtype is None,
        compiled=on_gpu if options.reference_compiled is None else options.reference_compiled,
        sparse=options.sparse,
        seed=options.seed,
        weights=options.weights,
        codec_dtype=DTYPES[options.codec_dtype or "float32"],
        pages=options.pages,
        page_steps=options.page_steps,
        kv=options.kv,
    )


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("--device", f"{name!r} is not a device") from error
    if device.type not in ("cpu", "cuda"):
        raise ConfigError("--device", f"{name!r}: cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device", f"torch sees no {name} here")
    return device


def _memory(options: argparse.Namespace, device: torch.device) -> int:
    if options.memory_gib is not None:
        return int(options.memory_gib * GIB)
    found = device_memory(str(device))
    assert found is not None, "the device was checked"
    return found


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="serve_app bench", description="Times a model's tick on this device; the last line is JSON."
    )
    add = parser.add_argument
    add("--model", default="demo", help=f"{', '.join(PRESETS)}, demo, or a checkpoint's folder (%(default)s)")
    add("--rows", default="1,8", help="conversations in a batch, with commas between (%(default)s)")
    add(
        "--lengths",
        default="0.1,1.0,mixed,half",
        help="steps that they hold: a number, a share of the context, mixed (evenly spread), half (a tenth of the "
        "context and all of it, in turn) (%(default)s)",
    )
    add("--device", help="cpu or cuda; cuda where there is one")
    add("--dtype", choices=sorted(DTYPES), help="of the language model; float32 on a CPU, else bfloat16")
    add("--weights", choices=["int8"], help="of its matrices; the reference has no such thing and is left out")
    add("--codec-dtype", choices=["bfloat16"], help="of the codec; the reference is left out")
    add("--threads", type=_count, help="of torch")
    add("--context", type=_count, help="steps that attention sees, at most the model's")
    add("--repeat", type=_count, default=40, help="ticks of every batch that are timed (%(default)s)")
    add("--ticks", type=int, default=0, help="of a long run of the largest batch, for every length (7500 is 10 min)")
    add("--seed", type=int, default=0, help="of weights and frames (%(default)s)")
    add("--memory-gib", type=float, help="of the device; else what this process may have of it")
    add("--no-reference", dest="reference", action="store_false", help="ours alone, though moshi is installed")
    add("--reference-compiled", action=argparse.BooleanOptionalAction, help="let it use torch.compile; on a GPU it may")
    add("--no-sparse", dest="sparse", action="store_false", help="leave out 4 rows among 64 slots")
    add("--pages", action="store_true", help="slots share as many pages of keys and values as a batch needs")
    add("--page-steps", type=_count, default=64, help="of one page (%(default)s)")
    add("--kv", choices=sorted(KV_DTYPES), help="keep keys and values in 8 bits")
    add("--baseline", type=Path, metavar="FILE", help="hold the medians against an earlier run on the same device")
    add("--save-baseline", type=Path, metavar="FILE", help="keep this run's JSON")
    drawn = "draw tick time against floor and reference; may be given twice"
    add("--plot", type=Path, action="append", default=[], metavar="OUT.{png,svg}", help=drawn)
    add("--profile", type=Path, metavar="TRACE.json", help="write a trace of a few ticks of the last batch")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: at least 1")
    return value
