"""A loaded model beside the reference, greedy, three times around the ring."""

from typing import Any

import torch

from serve_app.model.lm import LM, Given
from serve_app.model.state import all_rows
from tests.model.language import CPU, RecordedLogits, TokenComparison
from tests.oracle import reference_generator

ROWS = 2


@torch.no_grad()
def check_parity(reference: Any, lm: LM) -> None:
    """Fail unless logits and greedy tokens of both are equal, near ties apart."""
    recorded, comparison = RecordedLogits(reference), TokenComparison(ROWS)
    generator = torch.Generator().manual_seed(1)
    state, rows, nothing = lm.init_state(ROWS, CPU, torch.float32), all_rows(ROWS), Given.nothing(ROWS, lm.config.dep_q)
    theirs = reference_generator(reference, on_text_logits_hook=recorded.on_text)
    with theirs.streaming(ROWS):
        for _ in range(3 * lm.config.context):
            user = torch.randint(0, lm.config.card, (ROWS, lm.config.user_q), generator=generator)
            theirs.step(user[..., None])
            text, audio = recorded.take()
            thought = lm.think(user, state, rows, nothing.text)
            spoken = lm.speak(thought, state, rows, nothing.audio)
            lm.advance(thought.text, spoken.codes, state, rows)
            for row in range(ROWS):
                comparison.add(row, [text[row], *audio[row]], [thought.text_logits[row], *spoken.logits[row]])
    comparison.check()
