"""Putting a batch into the middle of its conversations: offsets, tokens, and keys and values of random content.

The one file that knows where a state keeps what a conversation has lived through.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.transformer import TransformerState

INT8_MOST: Final = 127


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


def held(state: TransformerState, layer: int, slot: int, steps: int) -> Iterator[tuple[int, tuple[Tensor, ...]]]:
    """Views of what a layer keeps of a slot's first steps, no more than its window: where each block begins, and its
    keys and values, ``[T, H, D]`` each, with their scales behind them where they are kept in 8 bits.

    A ring is one block; pages are many.
    """
    store: Any = state.rings[layer]
    pages: Any = getattr(state, "pages", None)
    found = store.first(slot, steps) if pages is None else store.first(slot, steps, pages.table)
    begin = 0
    for block in (found,) if isinstance(found[0], Tensor) else found:
        yield begin, tuple(block)
        begin += block[0].shape[0]


def _live(state: TransformerState, slot: int, steps: int, capacity: int, generator: torch.Generator) -> None:
    state.offset[slot] = steps
    for layer in range(len(state.rings)):
        for _, block in held(state, layer, slot, min(steps, capacity)):
            for content in block[:2]:
                if content.dtype == torch.int8:
                    content.random_(-INT8_MOST, INT8_MOST + 1, generator=generator)
                else:
                    content.copy_(torch.randn(content.shape, generator=generator, device=content.device))
            for scale in block[2:]:
                scale.fill_(1 / INT8_MOST if block[0].dtype == torch.int8 else 1)
