"""``serve_app quality``: what 8 bits and bf16 cost, and whether that is little enough."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

import serve_app
from serve_app.audio.wav import WavError, read_sound
from serve_app.bench.codec_quality import LEAST_SI_SNR_DB, MOST_ESTOI_LOSS, compare_codecs
from serve_app.bench.models import build
from serve_app.bench.shapes import PRESETS, Shapes, shapes_of
from serve_app.checkpoint.plan import DTYPES
from serve_app.checkpoint.quality import LEAST_AGREEMENT, MOST_KL, compare
from serve_app.errors import ChorusError, ConfigError
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KV_DTYPES

SPEECH: Final = Path(serve_app.__file__).parent / "demo" / "speech" / "held_out.wav"
MOST_AUDIO_S: Final = 600.0
CPU: Final = torch.device("cpu")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 when all is near enough, 1 when it is not, 2 for an error that we know."""
    options = _parser().parse_args(arguments)
    try:
        near = True
        for found in _compared(options):
            print(json.dumps(found), flush=True)  # noqa: T201
            near &= found["passes"]
        return 0 if near else 1
    except ChorusError as error:
        print(f"serve_app quality: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _compared(options: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
    shapes = shapes_of(options.model)
    if options.codec is None or options.kv or options.weights or options.dtype:
        yield _language(shapes, options)
    if options.codec is not None:
        yield _codec(shapes, options)


def _language(shapes: Shapes, options: argparse.Namespace) -> Mapping[str, Any]:
    exact = build(shapes, CPU, torch.float32).lm
    other = exact
    if options.weights or options.dtype:
        other = build(shapes, CPU, DTYPES[options.dtype or "float32"], weights=options.weights).lm
    found = compare(exact, other, Storage(kv=options.kv), rows=options.rows, steps=options.steps, seed=options.seed)
    asked = {"model": shapes.name, "kv": options.kv, "weights": options.weights, "dtype": options.dtype}
    near = found.passes(options.max_kl, options.min_agreement)
    return {**asked, **dataclasses.asdict(found), "passes": near}


def _codec(shapes: Shapes, options: argparse.Namespace) -> Mapping[str, Any]:
    exact = build(shapes, CPU, torch.float32).mimi
    other = build(shapes, CPU, torch.float32, codec_dtype=DTYPES[options.codec]).mimi
    try:
        pcm = torch.from_numpy(read_sound(options.audio, MOST_AUDIO_S))
    except WavError as error:
        raise ConfigError("--audio", f"{options.audio} {error}") from error
    found = compare_codecs(exact, other, pcm, speech=shapes.folder is not None)
    near = found.passes(options.min_si_snr, options.max_estoi_loss)
    return {"model": shapes.name, "codec": options.codec, **dataclasses.asdict(found), "passes": near}


def _parser() -> argparse.ArgumentParser:
    told = "Say what 8 bits and bf16 cost against float32; status 1: too much."
    parser = argparse.ArgumentParser(prog="serve_app quality", description=told)
    add = parser.add_argument
    add("model", help=f"a checkpoint's folder, demo, or random weights: {', '.join(PRESETS)}")
    add("--kv", choices=sorted(KV_DTYPES), help="of keys and values")
    add("--weights", choices=["int8"], help="of the language model's matrices")
    add("--dtype", choices=["bfloat16"], help="of the language model's rest, to know what that alone costs")
    add("--codec", choices=["bfloat16"], help="of the codec")
    add("--rows", type=int, default=2, help="conversations (%(default)s)")
    add("--steps", type=int, default=100, help="of each (%(default)s)")
    add("--seed", type=int, default=0, help="of what the users say (%(default)s)")
    add("--audio", type=Path, default=SPEECH, help="a WAV file for the codec; else the demo's held-out speech")
    add("--max-kl", type=float, default=MOST_KL, help="nats, on average (%(default)s)")
    add("--min-agreement", type=float, default=LEAST_AGREEMENT, help="share of equal likeliest tokens (%(default)s)")
    add("--min-si-snr", type=float, default=LEAST_SI_SNR_DB, help="dB, of the codec's decoder (%(default)s)")
    add("--max-estoi-loss", type=float, default=MOST_ESTOI_LOSS, help="of the codec, both ways (%(default)s)")
    return parser
