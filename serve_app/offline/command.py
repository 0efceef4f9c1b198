"""``serve_app run``: recordings through any model.

For each input ``NAME.wav`` the folder gets ``NAME.wav`` (what was said, where the model has a voice) and ``NAME.json``
(what was written and when, with the seed that repeats it).
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from serve_app.checkpoint.generation import Generation, read_generation
from serve_app.checkpoint.named import source_of
from serve_app.checkpoint.plan import CONFIG_SUFFIXES, DTYPES
from serve_app.checkpoint.source import read_layout
from serve_app.checkpoint.text import TextPieces
from serve_app.client.failures import AudioFileError
from serve_app.client.wav import read_wav, write_wav
from serve_app.config import EngineSettings, PromptSettings, checked, read_config
from serve_app.errors import ChorusError, ConfigError, ParameterRefused
from serve_app.offline.batch import Order, Outcome, run_batch
from serve_app.offline.job import Job, Pacing
from serve_app.offline.progress import Progress
from serve_app.offline.transcript import words_of
from serve_app.registry import known_models
from serve_app.serving.runners import make_runner
from serve_app.spec import Prompt, Sampling, SessionSpec

MOST_AT_ONCE: Final = 16


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """Input of one file, what to write of it, and what to ask the model for."""

    number: int
    path: Path
    voice: Path
    told: Path
    spec: SessionSpec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve_app run``. Returns the exit status: 1 when a file failed, 2 when nothing could begin."""
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except ChorusError as error:
        print(f"serve_app run: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _run(options: argparse.Namespace) -> int:
    base = _base(options)
    assert base.checkpoint is not None
    layout = read_layout(source_of(base.checkpoint))
    plans = _plans(options, read_generation(layout))
    rows = max(plan.spec.rows for plan in plans)
    seats = min(options.batch, len(plans))
    made = make_runner(base.model_copy(update={"slots": seats, "rows": rows * seats}))
    pieces = TextPieces.of(made.text_model, str(base.checkpoint))
    info = made.runner.describe()
    pacing = Pacing.of(layout.model_type, layout.config, info.delay_steps)
    orders = (Order(plan.number, plan.spec, functools.partial(_job, plan.path, pacing)) for plan in plans)
    progress = Progress(len(plans))
    failed = 0
    for outcome in run_batch(made.runner, orders, seats, progress.on_tick):
        plan = plans[outcome.number]
        error = _write(plan, outcome, pieces, info.model)
        progress.on_file()
        if error is not None:
            failed += 1
            print(f"\r{plan.path}: {error}", file=sys.stderr)  # noqa: T201
    progress.close()
    done = len(plans) - failed
    print(f"{done} of {len(plans)} files, {progress.times_real_time:.1f}x real time, in {options.out}")  # noqa: T201
    return 1 if failed else 0


def _job(path: Path, pacing: Pacing) -> Job:
    return Job(read_wav(path), pacing)


def _write(plan: Plan, outcome: Outcome, pieces: TextPieces, model: str) -> Exception | None:
    """Write what came of a file; returns why there is nothing to write."""
    if outcome.job is None:
        return outcome.error
    job = outcome.job
    voice, words = job.voice, words_of(job.tokens(), pieces)
    content: dict[str, Any] = {
        "input": str(plan.path),
        "model": model,
        "text": " ".join(word.text for word in words),
        "words": [dataclasses.asdict(word) for word in words],
        "audio": None if voice is None else plan.voice.name,
        "steps": job.steps,
        "session": {key: value for key, value in dataclasses.asdict(plan.spec).items() if key != "tenant"},
    }
    if plan.spec.extra_heads:
        content["heads"] = [{"at_s": at_s, "heads": heads.round(4).tolist()} for at_s, heads in job.heads()]
    try:
        if voice is not None:
            write_wav(plan.voice, voice)
        plan.told.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    except (AudioFileError, OSError) as error:
        return error
    return None


def _plans(options: argparse.Namespace, generation: Generation) -> list[Plan]:
    """One plan per input, checked before a model is loaded.

    Raises:
        ConfigError: an input is missing, two would be written to one place, or the folder is an input's own.
        ParameterRefused: a value out of range.
    """
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError("--out", f"{options.out}: {error.strerror}") from error
    missing = [str(path) for path in options.files if not path.is_file()]
    if missing:
        raise ConfigError("FILE", f"no such file: {', '.join(missing)}")
    stems = [path.stem for path in options.files]
    doubled = sorted({stem for stem in stems if stems.count(stem) > 1})
    if doubled:
        raise ConfigError("FILE", f"more than one input is called {', '.join(doubled)}: they would share an output")
    spec = _spec(options, generation)
    plans = [
        Plan(
            number,
            path,
            options.out / f"{path.stem}.wav",
            options.out / f"{path.stem}.json",
            dataclasses.replace(spec, sampling=_seeded(spec.sampling, options.seed + number)),
        )
        for number, path in enumerate(options.files)
    ]
    if any(plan.voice.resolve() == plan.path.resolve() for plan in plans):
        raise ConfigError("--out", f"{options.out} holds an input: its answer would overwrite it")
    return plans


def _seeded(sampling: Sampling, seed: int) -> Sampling:
    return dataclasses.replace(sampling, text_seed=seed, audio_seed=seed)


def _spec(options: argparse.Namespace, generation: Generation) -> SessionSpec:
    chosen = {
        name: value
        for name in ("text_temperature", "text_top_k", "audio_temperature", "audio_top_k")
        if (value := getattr(options, name)) is not None
    }
    if options.greedy:
        chosen |= {"text_temperature": 0.0, "audio_temperature": 0.0}
    return SessionSpec(
        sampling=dataclasses.replace(generation.sampling, **chosen),
        conditions=tuple(_condition(text) for text in options.condition),
        guidance=generation.guidance if options.cfg_coef is None else options.cfg_coef,
        prompt=_prompt(options),
        repetition_penalty=options.repetition_penalty,
        repetition_penalty_context=options.repetition_penalty_context,
        pad_mult=options.pad_mult,
        extra_heads=options.extra_heads,
    )


def _prompt(options: argparse.Namespace) -> Prompt | None:
    if not (options.text_prompt or options.voice_prompt):
        return None
    return Prompt(text=options.text_prompt, voice=options.voice_prompt)


def _condition(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ParameterRefused("condition", text, "write NAME=VALUE")
    return name, value


def _base(options: argparse.Namespace) -> EngineSettings:
    """What to load and how; the slots are not known yet.

    Raises:
        ConfigError: a deployment without a checkpoint, one that cannot be read, or neither a folder nor a known model.
    """
    own = {
        key: value for key in ("device", "dtype", "context", "threads") if (value := getattr(options, key)) is not None
    }
    prompts = {} if options.voices is None else {"prompts": PromptSettings(voices=options.voices)}
    target: Path = options.model
    if target.suffix in CONFIG_SUFFIXES:
        base = read_config(target).engine
        if base.checkpoint is None:
            raise ConfigError(str(target), "has no checkpoint, so there is nothing to run")
        return base.model_copy(update=own | prompts)
    named = target.name in known_models() and not target.is_dir()
    if not named and not target.is_dir():
        raise ConfigError("MODEL", f"{target} is no folder, and no model: there are {', '.join(known_models())}")
    checkpoint = {"model": target.name} if named else {"folder": str(target)}
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "float32" if device == "cpu" else "bfloat16"
    return checked(
        EngineSettings, {"device": device, "dtype": dtype, "checkpoint": checkpoint, **own, **prompts}, "serve_app run"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app run", description="Recordings through a model, many at once.")
    add = parser.add_argument
    add("model", type=Path, help="a checkpoint's folder, a model's name (see configs/models) or a deployment's file")
    add("files", type=Path, nargs="+", metavar="FILE", help="WAV files")
    add("--out", type=Path, required=True, help="folder for what comes out")
    add("--batch", type=_count, default=MOST_AT_ONCE, help="recordings at once (%(default)s)")
    add("--seed", type=int, default=0, help="of the first file; the next one's is one more")
    add("--greedy", action="store_true", help="no sampling")
    add("--text-temperature", type=float)
    add("--text-topk", type=int, dest="text_top_k")
    add("--audio-temperature", type=float)
    add("--audio-topk", type=int, dest="audio_top_k")
    add("--pad-mult", type=float, default=0.0)
    add("--repetition-penalty", type=float, default=1.0)
    add("--repetition-penalty-context", type=int, default=64)
    add("--condition", action="append", default=[], metavar="NAME=VALUE", help="may come more than once")
    add("--cfg-coef", type=float, help="strength of guidance; 1 is none")
    add("--text-prompt", default="", help="told before the recording")
    add("--voice-prompt", default="", metavar="NAME", help="spoken before the recording: a file of --voices")
    add("--voices", metavar="FOLDER", help="WAV files, each a voice")
    add("--extra-heads", action="store_true", help="write what the extra heads say, frame by frame")
    add("--device", help="cuda where there is one, else cpu")
    add("--dtype", choices=sorted(DTYPES), help="of the language model; float32 on a CPU, else bfloat16")
    add("--context", type=int, help="steps that attention sees, at most the checkpoint's")
    add("--threads", type=int, help="of torch")
    return parser


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 512:
        raise argparse.ArgumentTypeError(f"{value}: from 1 to 512")
    return value
