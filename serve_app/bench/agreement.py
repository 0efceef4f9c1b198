"""Whether what was timed is right: greedy tokens and logits beside the reference's, the measured way beside the plain.

A row is out of the comparison after its first different token: from there on both go their own way.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from serve_app.bench.fill import place
from serve_app.bench.ours import Ours
from serve_app.bench.reference import Reference
from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.lm import Given
from serve_app.model.state import all_rows


@dataclasses.dataclass(slots=True)
class Agreement:
    """Tokens (or codes) compared and equal; the greatest difference of logits (or of PCM) until then."""

    compared: int = 0
    equal: int = 0
    worst: float = 0.0

    def add(self, theirs: Sequence[int], ours: Sequence[int]) -> bool:
        """Compare one row's tokens in the order in which they depend on each other; false once they part."""
        for expected, got in zip(theirs, ours, strict=True):
            self.compared += 1
            if expected != got:
                return False
            self.equal += 1
        return True

    def differ(self, theirs: Tensor, ours: Tensor) -> None:
        """Note the difference of two tensors."""
        self.worst = max(self.worst, float((theirs.float() - ours.float()).abs().max()))


@torch.inference_mode()
def of_codec(duplex: Duplex, reference: Reference, rows: int, frames: int) -> Agreement:
    """Codes of frames of noise, and the PCM of the reference's codes."""
    found = Agreement()
    mimi, device = duplex.mimi, reference.device
    state = duplex.init_state(rows, device, torch.float32)
    place(duplex, state, range(rows), [mimi.config.transformer.context] * rows)
    every = all_rows(rows, device)
    generator = torch.Generator().manual_seed(1)
    with reference.rows([mimi.config.transformer.context] * rows, duplex, state), reference.ungraphed():
        for _ in range(frames):
            pcm = (0.3 * torch.randn(rows, 1, 1920, generator=generator)).to(device)
            theirs = reference.mimi.encode(pcm)
            ours = mimi.encode_step(pcm, state.mimi, every)
            for row in range(rows):
                found.add(theirs[row, :, 0].tolist(), ours[row, :, 0].tolist())
            found.differ(reference.mimi.decode(theirs), mimi.decode_step(theirs, state.mimi, every))
    return found


@torch.inference_mode()
def of_lm(duplex: Duplex, reference: Reference, steps: Sequence[int], ticks: int) -> Agreement:
    """Greedy text and codes of rows in the middle of conversations, and the logits behind them."""
    found, rows = Agreement(), len(steps)
    lm, device = duplex.lm, reference.device
    state = duplex.init_state(rows, device, lm.dtype)
    place(duplex, state, range(rows), steps)
    every, live = all_rows(rows, device), [True] * rows
    text_logits: list[Tensor] = []
    generator = torch.Generator().manual_seed(2)
    with (
        reference.rows(steps, duplex, state, on_text_logits_hook=text_logits.append),
        reference.ungraphed(),
        _spied(reference) as audio_logits,
    ):
        for _ in range(ticks):
            user = torch.randint(lm.config.card, (rows, lm.config.user_q), generator=generator).to(device)
            given = Given.nothing(rows, lm.config.dep_q, device)
            thought = lm.think(user, state.lm, every, given.text, whole=False)
            spoken = lm.speak(thought, state.lm, every, given.audio, whole=False)
            lm.advance(thought.text, spoken.codes, state.lm, every)
            text_logits.clear()
            audio_logits.clear()
            reference.step(user[..., None])
            theirs = [text_logits[0][:, 0, 0], *(logits[:, 0, 0] for logits in audio_logits)]
            ours = [thought.text_logits, *spoken.logits.unbind(1)]
            chosen = torch.cat([thought.text[:, None], spoken.codes], dim=1)
            for row in range(rows):
                for stream, (expected, got) in enumerate(zip(theirs, ours, strict=True)):
                    if not live[row]:
                        break
                    found.differ(expected[row], got[row])
                    live[row] = found.add([int(expected[row].argmax())], [int(chosen[row, stream])])
    return found


def of_measured(ours: Ours, steps: Sequence[int], ticks: int) -> Agreement:
    """What the runner says (captured where it captures) beside the plain tick, to the token, from the same start."""
    found, rows, duplex = Agreement(), len(steps), ours.duplex
    lm = duplex.lm
    ours.place(steps)
    with torch.inference_mode():
        state = duplex.init_state(rows, lm.device, lm.dtype, ours.storage)
        _give_pages(state, steps, ticks)
        place(duplex, state, range(rows), steps)
        every, live = all_rows(rows, lm.device), [True] * rows
        for _ in range(ticks):
            pcm = torch.from_numpy(ours.frame()[:, None].copy()).to(lm.device)
            ours.tick()
            assert ours.last is not None
            plain = duplex.tick(pcm, state, every, whole=False)
            said = np.concatenate([ours.last.text_token[:, None], ours.last.codes], axis=1)
            expected = torch.cat([plain.text[:, None], plain.codes], dim=1)
            for row in range(rows):
                live[row] = live[row] and found.add(expected[row].tolist(), said[row].tolist())
            if all(live):
                found.differ(plain.pcm.cpu(), torch.from_numpy(ours.last.pcm))
    return found


def _give_pages(state: DuplexState, steps: Sequence[int], ticks: int) -> None:
    """Where slots share pages, those that every row needs for so many ticks."""
    store, given = state.lm.transformer.pages, 1
    if store is None:
        return
    for slot, made in enumerate(steps):
        blocks = min(-(-(made + ticks) // store.page_steps), store.table.shape[1])
        store.give(slot, range(given, given + blocks))
        given += blocks


class _spied:  # noqa: N801
    """Within: the logits of every codebook that the reference says, in order."""

    def __init__(self, reference: Reference) -> None:
        self._lm = reference.lm
        self._inner = self._lm.forward_depformer

    def __enter__(self) -> list[Tensor]:
        kept: list[Tensor] = []

        def forward(index: int, tokens: Tensor, hidden: Tensor) -> Tensor:
            logits: Tensor = self._inner(index, tokens, hidden)
            kept.append(logits)
            return logits

        self._lm.forward_depformer = forward
        return kept

    def __exit__(self, *error: object) -> None:
        del self._lm.forward_depformer
