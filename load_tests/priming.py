"""What a prompt costs its neighbours and its successor: ``python -m load_tests.priming``. One process, no network.

A random model of a middling size converses with some neighbours as fast as it can, every one with a frame in every
turn, which is the worst case: no idle moment in which a prompt could be fed for nothing. A turn's time is all that a
neighbour can notice. Prints one line of JSON at the end.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.events import Event, Opened
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.prompts import PromptStyle, write_prompt_book
from serve_app.engine.slots import Lease
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, LMConfig
from serve_app.model.mimi import Mimi, MimiConfig, codec_transformer
from serve_app.model.seanet import SeanetConfig
from serve_app.spec import Prompt, SessionSpec
from serve_app.units import FRAME_SAMPLES

CARD: Final = 512
TEXT_CARD: Final = 1_000
CONTEXT: Final = 750
PAUSE_STEPS: Final = 6
WARM_TURNS: Final = 20
SHAPE: Final[dict[str, Any]] = {
    "dim": 256,
    "num_heads": 8,
    "num_layers": 6,
    "context": CONTEXT,
    "n_q": 16,
    "dep_q": 8,
    "card": CARD,
    "text_card": TEXT_CARD,
    "delays": [0, 0, *[1] * 7, 0, *[1] * 7],
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "gating": "silu",
    "depformer_dim": 128,
    "depformer_num_heads": 4,
    "depformer_num_layers": 4,
    "depformer_weights_per_step": True,
    "depformer_multi_linear": True,
}


class Bench:
    """An engine on this thread, with neighbours that always have a frame."""

    def __init__(self, neighbours: int) -> None:
        codec = MimiConfig(
            seanet=SeanetConfig(dimension=64, n_filters=8),
            transformer=codec_transformer(64, 4, 2, 128, context=250),
            card=CARD,
            codebook_dim=32,
            total_codebooks=8,
            num_codebooks=8,
        )
        torch.manual_seed(0)
        duplex = Duplex(Mimi(codec), LM(LMConfig.from_kyutai(SHAPE)))
        prompts = write_prompt_book(duplex, _letters, {}, PromptStyle(pause_steps=PAUSE_STEPS))
        runner = ModelRunner(duplex, neighbours + 1, prompts=prompts, prefix_bytes=1 << 30)
        runner.warm_up()
        self.engine = Engine(runner, clock=time.perf_counter)
        self._opened: set[Lease] = set()
        self._frame = np.random.default_rng(0).normal(0, 0.2, FRAME_SAMPLES).astype(np.float32)
        self._neighbours = [self.open(SessionSpec()) for _ in range(neighbours)]

    def open(self, spec: SessionSpec) -> Lease:
        """Post a session's opening."""
        lease = self.engine.acquire(spec)
        self.engine.open(lease, self._note)
        return lease

    def is_open(self, lease: Lease) -> bool:
        return lease in self._opened

    def close(self, lease: Lease) -> None:
        self.engine.close(lease)
        self.engine.tick()

    def turn(self, *, idle: bool = False) -> float:
        """One turn, all neighbours with a frame unless ``idle``. Returns its milliseconds."""
        if not idle:
            for lease in self._neighbours:
                self.engine.push(lease, 0, self._frame)
        began_s = time.perf_counter()
        self.engine.tick()
        return 1_000 * (time.perf_counter() - began_s)

    def _note(self, events: Sequence[Event]) -> None:
        self._opened.update(event.lease for event in events if isinstance(event, Opened))


def _letters(text: str) -> list[int]:
    return [4 + ord(letter) % 900 for letter in text]


def _prompt(steps: int, number: int) -> SessionSpec:
    """A prompt of so many steps, unlike any other number's."""
    return SessionSpec(prompt=Prompt(text=f"{number:08d}".ljust(steps - PAUSE_STEPS, "a")))


def neighbours_turns(bench: Bench, steps: int, turns: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Milliseconds of turns without and with a prompt being fed, taken in alternation so that both meet the same noise.

    A turn counts as one with a prompt when a part of one was fed in it.
    """
    without: list[float] = []
    primed: list[float] = []
    number = 0
    for _ in range(WARM_TURNS):
        bench.turn()
    while len(primed) < turns:
        lease = bench.open(_prompt(steps, number))
        number += 1
        bench.turn()  # opens it; the first part is fed at the least size
        while not bench.is_open(lease):
            primed.append(bench.turn())
        bench.close(lease)
        while len(without) < len(primed):
            without.append(bench.turn())
    return np.array(without), np.array(primed)


def handshakes(bench: Bench, steps: int, rounds: int) -> tuple[float, float]:
    """Median milliseconds from opening to the handshake of the first and the second session with the same prompt."""
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for times in took:
            began_s = time.perf_counter()
            lease = bench.open(_prompt(steps, 10_000 + number))
            while not bench.is_open(lease):
                bench.turn(idle=True)
            times.append(1_000 * (time.perf_counter() - began_s))
            bench.close(lease)
    return float(np.median(took[0])), float(np.median(took[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 when a number misses its bound."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.priming", description=__doc__)
    parser.add_argument("--neighbours", type=int, default=4)
    parser.add_argument("--prompt-steps", type=int, default=500, help="of the prompt that the neighbours live through")
    parser.add_argument("--turns", type=int, default=400, help="with a prompt, and as many without")
    parser.add_argument("--rounds", type=int, default=7, help="of the handshake")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    bench = Bench(options.neighbours)
    without, primed = neighbours_turns(bench, options.prompt_steps, options.turns)
    first_ms, second_ms = handshakes(bench, 200, options.rounds)
    p99 = float(np.percentile(without, 99)), float(np.percentile(primed, 99))
    found = {
        "neighbours": options.neighbours,
        "prompt_steps": options.prompt_steps,
        "turns": len(primed),
        "turn_p50_ms": [round(float(np.median(without)), 2), round(float(np.median(primed)), 2)],
        "turn_p99_ms": [round(p99[0], 2), round(p99[1], 2)],
        "turn_p99_ratio": round(p99[1] / p99[0], 3),
        "handshake_ms": [round(first_ms, 2), round(second_ms, 2)],
        "handshake_ratio": round(second_ms / first_ms, 4),
        "counters": dict(bench.engine.stats().runner),
    }
    print(json.dumps(found))
    return int(found["turn_p99_ratio"] > 1.3 or found["handshake_ratio"] > 0.1)


if __name__ == "__main__":
    sys.exit(main())
