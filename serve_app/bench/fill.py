"""Putting a batch into the middle of its conversations: offsets, tokens, and keys and values of random content.

The one file that knows where a state keeps what a conversation has lived through.
"""

from collections.abc import Sequence

import torch

from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.transformer import TransformerState


@torch.inference_mode()
def place(duplex: Duplex, state: DuplexState, slots: Sequence[int], steps: Sequence[int], seed: int = 0) -> None:
    """Make each slot a conversation that has made so many steps. Host side, between ticks.

    Keys and values are normal noise: attention reads them all and its weights are neither flat nor one-hot. A sum of
    the codec's convolution states starts from silence, which costs the same.
    """
    codec, lm = duplex.mimi, duplex.lm
    generator = torch.Generator(state.lm.cache.offset.device).manual_seed(seed)
    for slot, made in zip(slots, steps, strict=True):
        codec_steps = made * codec.config.steps_per_frame
        for half in (state.mimi.encoder, state.mimi.decoder):
            _live(half.transformer, slot, codec_steps, codec.config.transformer.context, generator)
        _live(state.lm.transformer, slot, made, lm.config.context, generator)
        cache = state.lm.cache
        cache.offset[slot] = made
        text, audio = cache.tokens[slot, :1], cache.tokens[slot, 1:]
        text.copy_(torch.randint(lm.config.text_card, text.shape, generator=generator, device=text.device))
        audio.copy_(torch.randint(lm.config.card, audio.shape, generator=generator, device=audio.device))


def rewind(duplex: Duplex, state: DuplexState, slots: Sequence[int], steps: Sequence[int]) -> None:
    """Give each slot its number of steps again; what it holds stays. A long run keeps its lengths so."""
    device = state.lm.cache.offset.device
    index = torch.tensor(slots, device=device)
    made = torch.tensor(steps, device=device)
    with torch.inference_mode():
        for offset, rate in (
            (state.lm.cache.offset, 1),
            (state.lm.transformer.offset, 1),
            (state.mimi.encoder.transformer.offset, duplex.mimi.config.steps_per_frame),
            (state.mimi.decoder.transformer.offset, duplex.mimi.config.steps_per_frame),
        ):
            offset.index_copy_(0, index, made * rate)


def _live(state: TransformerState, slot: int, steps: int, capacity: int, generator: torch.Generator) -> None:
    state.offset[slot] = steps
    for ring in state.rings:
        for store in ring.first(slot, min(steps, capacity)):
            noise = torch.randn(store.shape, generator=generator, device=store.device)
            store.copy_(noise)
