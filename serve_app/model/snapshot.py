"""What a slot has lived through, taken out and put into another one: how a prompt is fed once for many sessions.

Only the steps count: tokens, keys and values. What a session chose (sampling, conditions, guidance) is set when it
opens, and the codec has not heard anything yet.
"""

import dataclasses
from collections.abc import Iterator

from torch import Tensor

from serve_app.model.lm import LMState


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A slot of an LM after ``steps`` steps, no more than its context. Owns its tensors."""

    steps: int
    tensors: tuple[Tensor, ...]

    @property
    def size_bytes(self) -> int:
        """Memory that it takes."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors)


def take(state: LMState, slot: int, steps: int) -> Snapshot:
    """Copy out a slot that has made so many steps. Host side, between ticks."""
    return Snapshot(steps, tuple(part.clone() for part in _parts(state, slot, steps)))


def put(snapshot: Snapshot, state: LMState, slot: int) -> None:
    """Make a slot what the other one was; before that it must have been reset. Host side, between ticks."""
    for part, tensor in zip(_parts(state, slot, snapshot.steps), snapshot.tensors, strict=True):
        part.copy_(tensor)


def _parts(state: LMState, slot: int, steps: int) -> Iterator[Tensor]:
    """Views of everything that steps have written in a slot."""
    yield from (state.cache.tokens[slot], state.cache.offset[slot], state.bias.said[slot], state.bias.count[slot])
    yield state.transformer.offset[slot]
    pages = state.transformer.pages
    for ring in state.transformer.rings:
        for part in ring.first(slot, steps, None if pages is None else pages.table):
            yield from part
