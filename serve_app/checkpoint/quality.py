"""What 8 bits cost: both models are taught the same tokens, and what they would have said is compared.

Teacher forced: at every step both hear the same and are given the same text and codes, so a difference is that of one
step over one history and does not grow by choosing otherwise.
"""

import dataclasses
from typing import Final

import torch
from torch import Tensor

from serve_app.model.lm import LM, Given
from serve_app.model.pages import Storage
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
    device = exact.device
    ours = exact.init_state(rows, device, exact.dtype)
    theirs = other.init_state(rows, device, other.dtype, storage)
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
