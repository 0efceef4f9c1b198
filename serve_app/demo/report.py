"""Measures the checkpoint that ships, on five minutes of held-out speech: ``python -m serve_app.demo.report``.

Needs espeak-ng and pystoi. The last line is JSON.
"""

import argparse
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import CheckpointSource, resolve
from serve_app.demo.measure import (
    codec_intelligibility,
    converse,
    entries_used,
    judge_writing,
    parrot_accuracy,
    repeated,
)
from serve_app.demo.phrases import read_phrases
from serve_app.demo.synthesis import talks
from serve_app.model.duplex import Duplex
from serve_app.model.state import all_rows
from serve_app.spec import GREEDY, Sampling
from serve_app.units import FRAME_SAMPLES

LOG = logging.getLogger(__name__)

BATCHES: Final = (1, 16, 32)
_TICKS: Final = 60


def report(folder: Path, seed: int, *, parrot_steps: int = 10_000) -> dict[str, Any]:
    """Everything that is claimed about the demo, by name."""
    found = resolve(CheckpointSource(folder=folder))
    duplex = load_duplex(found, torch.device("cpu"), torch.float32)
    phrases = read_phrases(found.tokenizer.read_bytes())
    held_out, carried = talks(seed, held_out=True), duplex.lm.config.dep_q
    quality = codec_intelligibility(duplex.mimi, held_out, carried)
    conversation = converse(duplex, [talk.pcm for talk in held_out], Sampling())
    writing = judge_writing(conversation.text, held_out, phrases)
    return {
        "minutes": writing.minutes,
        "codebooks": carried,
        "stoi": quality.stoi,
        "estoi": quality.estoi,
        "entries_used": entries_used(conversation.heard.permute(1, 2, 0), duplex.lm.config.card),
        "parrot_greedy": parrot_accuracy(duplex.lm, parrot_steps, 1, GREEDY, seed),
        "parrot_sampled": parrot_accuracy(duplex.lm, parrot_steps // 10, 8, Sampling(), seed),
        "repeated_in_conversation": repeated(conversation.heard, conversation.said),
        "text_found": writing.found,
        "text_false_per_minute": writing.false_per_minute,
        "text_delay_s": float(np.median(writing.delays_s)),
        "tick_ms": {rows: tick_ms(duplex, rows) for rows in BATCHES},
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


@torch.no_grad()
def tick_ms(duplex: Duplex, count: int) -> dict[str, float]:
    """Median milliseconds of a tick of ``count`` rows: codec alone, and all of it."""
    state, rows = duplex.init_state(count, torch.device("cpu"), torch.float32), all_rows(count)
    pcm = torch.randn(count, 1, FRAME_SAMPLES, generator=torch.Generator().manual_seed(1)) * 0.05
    codec_s, whole_s = [], []
    for _ in range(_TICKS):
        started_s = time.thread_time()
        duplex.tick(pcm, state, rows, whole=False)
        whole_s.append(time.thread_time() - started_s)
        started_s = time.thread_time()
        codes = duplex.mimi.encode_step(pcm, state.mimi, rows)
        duplex.mimi.decode_step(codes, state.mimi, rows)
        codec_s.append(time.thread_time() - started_s)
    return {"codec": 1e3 * float(np.median(codec_s)), "whole": 1e3 * float(np.median(whole_s))}


def main() -> None:
    """Command line."""
    from serve_app.demo.build import CHECKPOINT, SEED

    parser = argparse.ArgumentParser(description=__doc__, prog="python -m serve_app.demo.report")
    parser.add_argument("--folder", type=Path, default=CHECKPOINT)
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    LOG.info("%s", json.dumps(report(args.folder, args.seed)))


if __name__ == "__main__":
    main()
