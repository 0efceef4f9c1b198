"""What 8 bits cost: ``serve_app quality`` teaches both models the same tokens and compares what they would have said.

Teacher forced: at every step both hear the same and are given the same text and codes, so a difference is that of one
step over one history and does not grow by choosing otherwise.
"""

import argparse
import copy
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.source import CheckpointSource, resolve
from serve_app.errors import ChorusError
from serve_app.model.lm import LM, Given
from serve_app.model.pages import Storage
from serve_app.model.quantised_kv import KV_DTYPES
from serve_app.model.quantised_linear import quantise_linears
from serve_app.model.state import all_rows

MOST_KL: Final = 0.02
LEAST_AGREEMENT: Final = 0.95


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """How far one model is from another over the same tokens.

    Attributes:
        steps: predictions compared: text and every codebook, each row and step.
        kl_mean, kl_max: of the exact model's distribution from the other's, in nats.
        logit_max: largest difference of a logit.
        agreement: share of predictions whose likeliest token is the same.
    """

    steps: int
    kl_mean: float
    kl_max: float
    logit_max: float
    agreement: float

    def passes(self, most_kl: float, least_agreement: float) -> bool:
        """Whether it is near enough. What is not finite is not."""
        return self.kl_mean <= most_kl and self.agreement >= least_agreement


@torch.no_grad()
def compare(exact: LM, other: LM, storage: Storage, *, rows: int = 2, steps: int = 100, seed: int = 0) -> Divergence:
    """Feed both the same tokens and compare logits. The user says random codes, the model what the exact one says.

    Args:
        other: may be the exact model itself, with another ``storage``.
        storage: of the other's keys and values.
    """
    c, chance = exact.config, torch.Generator().manual_seed(seed)
    device, dtype = exact.text_linear.weight.device, exact.text_linear.weight.dtype
    ours, theirs = exact.init_state(rows, device, dtype), other.init_state(rows, device, dtype, storage)
    everyone = all_rows(rows, device)
    kls, gaps, same = list[Tensor](), list[Tensor](), list[Tensor]()
    for _ in range(steps):
        user = torch.randint(0, c.card, (rows, c.user_q), generator=chance).to(device)
        given = Given.nothing(rows, c.dep_q, device)
        thought = exact.think(user, ours, everyone, given.text)
        spoken = exact.speak(thought, ours, everyone, given.audio)
        heard = other.think(user, theirs, everyone, thought.text)
        said = other.speak(heard, theirs, everyone, spoken.codes)
        exact.advance(thought.text, spoken.codes, ours, everyone)
        other.advance(thought.text, spoken.codes, theirs, everyone)
        for right, near in ((thought.text_logits[:, None], heard.text_logits[:, None]), (spoken.logits, said.logits)):
            if right.shape[1]:
                log_right, log_near = right.log_softmax(-1), near.log_softmax(-1)
                kls.append((log_right.exp() * (log_right - log_near)).sum(-1).flatten())
                gaps.append((right - near).abs().amax(-1).flatten())
                same.append((right.argmax(-1) == near.argmax(-1)).flatten())
    kl, gap, agreed = torch.cat(kls), torch.cat(gaps), torch.cat(same)
    return Divergence(
        steps=len(kl),
        kl_mean=float(kl.mean()),
        kl_max=float(kl.max()),
        logit_max=float(gap.max()),
        agreement=float(agreed.float().mean()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve_app quality``. Returns 0 when it is near enough, 1 when it is not, 2 for an error that we know."""
    options = _parser().parse_args(arguments)
    try:
        folder = resolve(CheckpointSource(folder=options.folder))
        exact = load_duplex(folder, torch.device("cpu"), torch.float32).lm.eval()
    except ChorusError as error:
        print(f"serve_app quality: {error}", file=sys.stderr)  # noqa: T201
        return 2
    other = exact
    if options.weights:
        other = copy.deepcopy(exact)
        quantise_linears(other.transformer)
    found = compare(exact, other, Storage(kv=options.kv), rows=options.rows, steps=options.steps, seed=options.seed)
    near = found.passes(options.max_kl, options.min_agreement)
    asked = {"kv": options.kv, "weights": options.weights}
    print(json.dumps({**asked, **dataclasses.asdict(found), "passes": near}))  # noqa: T201
    return 0 if near else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app quality", description="Say what 8 bits cost; status 1: too much.")
    parser.add_argument("folder", type=Path, help="a checkpoint's folder")
    parser.add_argument("--kv", choices=sorted(KV_DTYPES), help="of keys and values")
    parser.add_argument("--weights", choices=["int8"], help="of the main transformer's matrices")
    parser.add_argument("--rows", type=int, default=2, help="conversations")
    parser.add_argument("--steps", type=int, default=100, help="of each")
    parser.add_argument("--seed", type=int, default=0, help="of what the users say")
    parser.add_argument("--max-kl", type=float, default=MOST_KL, help="nats, on average")
    parser.add_argument("--min-agreement", type=float, default=LEAST_AGREEMENT, help="share of equal likeliest tokens")
    return parser
