"""The delayed-streams token cache: what each stream says at which step.

A row at offset o reads column o of its cache: its own text and codes as generated for it, and the user's codes as heard
``delay`` steps ago. Where ``o <= delay`` a stream still reads its initial token, so the user's frame 0 is never seen.
A frame of audio is complete once the most delayed codebook is there: the first one comes out of step ``max_delay + 1``.

Source: Delayed streams (Défossez et al., 2024); offsets as in the reference's generator.
"""

import dataclasses

import torch
from torch import Tensor, nn

from serve_app.model import fused
from serve_app.model.embedding import UNGENERATED_TOKEN, ZERO_TOKEN
from serve_app.model.lm_config import LMConfig
from serve_app.model.operation import operation
from serve_app.model.state import Rows, commit


@dataclasses.dataclass(frozen=True, slots=True)
class TokenCache:
    """What was said lately, for all slots.

    Attributes:
        tokens: ``int64[slots + 1, n_q + 1, max_delay + 2]``: text, own codes, user's codes; a ring over steps.
        offset: ``int64[slots + 1]``, steps that the slot has made.
    """

    tokens: Tensor = dataclasses.field(metadata={"fresh": UNGENERATED_TOKEN})
    offset: Tensor


class Delays(nn.Module):
    """Reads and writes a `TokenCache`. Holds constants alone, none of which is part of a checkpoint."""

    lags: Tensor
    initial: Tensor
    shift: Tensor

    def __init__(self, config: LMConfig) -> None:
        super().__init__()
        self.own = config.dep_q + 1
        self.max_delay = config.max_delay
        self.width = config.max_delay + 2
        # Explicitly on the host: a model built on the meta device for loading must keep its constants.
        initial = [config.text_card] + [config.card] * config.n_q
        self.register_buffer("lags", torch.tensor(config.delays, device="cpu"), persistent=False)
        shift = [1] * self.own + list(config.delays[self.own :])  # steps from when a token comes to when it is read
        self.register_buffer("shift", torch.tensor(shift, device="cpu"), persistent=False)
        self.register_buffer("initial", torch.tensor(initial, device="cpu"), persistent=False)

    def init_state(self, slots: int, device: torch.device) -> TokenCache:
        """An empty cache for ``slots`` slots and a scratch row."""
        shape = (slots + 1, len(self.lags), self.width)
        return TokenCache(
            torch.full(shape, UNGENERATED_TOKEN, device=device, dtype=torch.int64),
            torch.zeros(slots + 1, device=device, dtype=torch.int64),
        )

    def hear(self, codes: Tensor, state: TokenCache, rows: Rows) -> Tensor:
        """Write the user's codes (``int64[R, user_q]``) and return this step's input, ``int64[R, n_q + 1]``."""
        args = (state.tokens, state.offset, codes, rows.slots, rows.write, self.lags, self.initial)
        return (_hear if fused.direct(codes) else _hear_op)(*args)

    def say(self, text: Tensor, codes: Tensor, state: TokenCache, rows: Rows) -> tuple[Tensor, Tensor]:
        """Write what was generated, advance, and read the newest complete frame.

        Args:
            text: ``int64[R]``.
            codes: ``int64[R, dep_q]``.

        Returns:
            Text token and codes of one moment, ``int64[R, dep_q + 1]``, and ``bool[R]``: whether there is such a
            frame. Without one the tokens are `UNGENERATED_TOKEN`.
        """
        args = (state.tokens, state.offset, text, codes, rows.slots, rows.write, rows.exec_mask, self.lags)
        return (_say if fused.direct(codes) else _say_op)(*args)

    def lay(self, frames: Tensor) -> Tensor:
        """Frames of a prompt as steps: ``int64[R, streams, T]`` in and out.

        Args:
            frames: text, own codes and the user's codes of T moments, each moment's side by side.

        Returns:
            What is said and heard at T steps; what a delayed codebook would say after the last is not said.
        """
        steps = frames.shape[2]
        laid = torch.full_like(frames, ZERO_TOKEN)
        for stream, lag in enumerate(self.lags.tolist()):
            own_lag = lag if stream < self.own else 0  # the user's codes are delayed when they are heard
            laid[:, stream, own_lag:] = frames[:, stream, : max(steps - own_lag, 0)]
        return laid

    def recite(self, tokens: Tensor, state: TokenCache, rows: Rows) -> Tensor:
        """The inputs of T steps whose every token is given, ``int64[R, streams, T]`` in and out; writes nothing."""
        step = torch.arange(tokens.shape[2], device=tokens.device)
        now = state.offset.index_select(0, rows.slots)[:, None, None] + step  # [R, 1, T]
        before = step - self.shift[:, None]  # [streams, T], the step whose token is read, counted from the first
        given = tokens.gather(2, before.clamp(min=0).expand(len(tokens), -1, -1))
        held = state.tokens.index_select(0, rows.slots).gather(2, (now % self.width).expand_as(tokens))
        return torch.where(now <= self.lags[:, None], self.initial[:, None], torch.where(before >= 0, given, held))

    def skip(self, tokens: Tensor, state: TokenCache, rows: Rows) -> None:
        """Store what was said and heard at T given steps, and count them."""
        steps = tokens.shape[2]
        offset = state.offset.index_select(0, rows.slots)
        last = min(steps, self.width)  # a position is written once, so that it matters not in which order
        now = offset[:, None, None] + torch.arange(steps - last, steps, device=tokens.device)
        target = (now + self.shift[:, None]) % self.width  # [R, streams, last]
        cache = state.tokens.index_select(0, rows.slots)
        commit(state.tokens, rows, cache.scatter(2, target, tokens[..., steps - last :]))
        commit(state.offset, rows, offset + steps)


def _hear(
    cache: Tensor, steps: Tensor, codes: Tensor, slots: Tensor, write: Tensor, lags: Tensor, initial: Tensor
) -> Tensor:
    own, width = cache.shape[1] - codes.shape[1], cache.shape[2]
    offset = steps.index_select(0, slots)[:, None]  # [R, 1]
    tokens = cache.index_select(0, slots)  # [R, K, W], a copy
    target = (offset + lags[own:]) % width
    tokens[:, own:] = tokens[:, own:].scatter(2, target[..., None], codes[..., None])
    cache.index_copy_(0, write, tokens)
    here = (offset % width)[..., None].expand(-1, tokens.shape[1], -1)
    return torch.where(offset <= lags, initial, tokens.gather(2, here)[..., 0])


_hear_op = operation(
    "hear", _hear, lambda cache, steps, codes, slots, *_: cache.new_empty(slots.shape[0], cache.shape[1]), ("cache",)
)


def _say(
    cache: Tensor,
    steps: Tensor,
    text: Tensor,
    codes: Tensor,
    slots: Tensor,
    write: Tensor,
    executes: Tensor,
    lags: Tensor,
) -> tuple[Tensor, Tensor]:
    own, width = codes.shape[1] + 1, cache.shape[2]
    max_delay = width - 2
    offset = steps.index_select(0, slots)[:, None] + 1  # [R, 1]
    tokens = cache.index_select(0, slots)
    said = torch.cat([text[:, None], codes], dim=1)[..., None]  # [R, dep_q + 1, 1]
    here = (offset % width)[..., None].expand(-1, own, -1)
    tokens[:, :own] = tokens[:, :own].scatter(2, here, said)
    cache.index_copy_(0, write, tokens)
    steps.index_copy_(0, write, offset[:, 0])
    aligned = (offset - max_delay + lags[:own]) % width
    frame = tokens[:, :own].gather(2, aligned[..., None])[..., 0]
    complete = (offset[:, 0] > max_delay) & executes
    return torch.where(complete[:, None], frame, UNGENERATED_TOKEN), complete


def _say_shape(cache: Tensor, steps: Tensor, text: Tensor, codes: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    rows, dep_q = codes.shape
    return codes.new_empty(rows, dep_q + 1), codes.new_empty(rows, dtype=torch.bool)


_say_op = operation("say", _say, _say_shape, ("cache", "steps"))
