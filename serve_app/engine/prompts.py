"""Prompts as frames: what the model has said and heard, in place of what it would have.

Order and fill are PersonaPlex's (NVIDIA, 2026): the voice, a pause, the text, a pause. While it hears its own voice the
text is padding, while it reads the text its own voice is silent, and all the time the user's stream holds one frame.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from serve_app.errors import CheckpointError, ParameterRefused
from serve_app.model.duplex import Duplex
from serve_app.model.state import all_rows
from serve_app.spec import Prompt
from serve_app.units import FRAME_SAMPLES

Codes = npt.NDArray[np.int64]
Tokenise = Callable[[str], Sequence[int]]
"""Text to tokens of the model's vocabulary. Any thread."""

SETTLING_FRAMES: Final = 8
"""A codec that has heard nothing says silence differently at first."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptStyle:
    """How a model was taught to read prompts.

    Attributes:
        wrap: what is put around the text, ``{}`` in its place.
        pause_steps: silence after the voice and after the text.
        own_silence, user_frame: codes of the model's own silence and of what the user's stream holds; None encodes
            silence.
    """

    wrap: str = "{}"
    pause_steps: int = 6
    own_silence: tuple[int, ...] | None = None
    user_frame: tuple[int, ...] | None = None

    def wrapped(self, text: str) -> str:
        """The text with what belongs around it, unless the client has put it there."""
        before, _, after = self.wrap.partition("{}")
        whole = text.startswith(before.strip()) and text.endswith(after.strip()) and before + after
        return text if whole else before + text + after


class PromptBook:
    """Turns prompts into frames. Immutable; any thread.

    Args:
        tokenise: of the model's vocabulary.
        cards: tokens of the model's text.
        padding: the text token of nothing said.
        voices: codes of each voice by name, ``int64[T, own]``.
        silence, user: codes of one frame, ``int64[own]`` and ``int64[user]``.
    """

    def __init__(
        self,
        tokenise: Tokenise,
        *,
        cards: int,
        padding: int,
        voices: Mapping[str, Codes],
        silence: Codes,
        user: Codes,
        style: PromptStyle,
    ) -> None:
        self._tokenise = tokenise
        self._cards, self._padding = cards, padding
        self._voices = dict(voices)
        self._silence, self._user = silence, user
        self._style = style

    @property
    def voices(self) -> tuple[str, ...]:
        """Names that a prompt may have."""
        return tuple(self._voices)

    def frames(self, prompt: Prompt) -> Codes:
        """``int64[1 + own + user, T]``: text, own codes, the user's codes.

        Raises:
            ParameterRefused: no such voice.
        """
        pause, none = np.repeat(self._silence[None], self._style.pause_steps, axis=0), len(self._silence)
        own, text = [np.zeros((0, none), np.int64)], list[int]()
        if prompt.voice:
            if prompt.voice not in self._voices:
                raise ParameterRefused("voice_prompt", prompt.voice, f"must be one of {', '.join(self._voices)}")
            voice = self._voices[prompt.voice]
            own += [voice, pause]
            text += [self._padding] * (len(voice) + len(pause))
        if prompt.text:
            tokens = self._tokens(prompt.text)
            own += [np.repeat(self._silence[None], len(tokens), axis=0), pause]
            text += tokens + [self._padding] * len(pause)
        spoken = np.concatenate(own)  # [T, own]
        user = np.repeat(self._user[None], len(spoken), axis=0)  # [T, user]
        return np.concatenate([np.array(text, np.int64)[:, None], spoken, user], axis=1).T.copy()

    def _tokens(self, text: str) -> list[int]:
        tokens = list(self._tokenise(self._style.wrapped(text)))
        if any(not 0 <= token < self._cards for token in tokens):
            raise ParameterRefused("text_prompt", text, "has tokens that the model does not know")
        return tokens


def write_prompt_book(
    duplex: Duplex, tokenise: Tokenise, voices: Mapping[str, npt.NDArray[np.float32]], style: PromptStyle
) -> PromptBook:
    """Encode the voices (``float32[n]`` at 24 kHz) and silence with the model's own codec.

    Raises:
        CheckpointError: codes of the style that do not fit the model.
    """
    config = duplex.lm.config
    return PromptBook(
        tokenise,
        cards=config.text_card,
        padding=config.existing_text_padding_id,
        voices={name: _encode(duplex, pcm, config.dep_q) for name, pcm in voices.items()},
        silence=_frame_of(duplex, style.own_silence, config.dep_q, "own_silence"),
        user=_frame_of(duplex, style.user_frame, config.user_q, "user_frame"),
        style=style,
    )


def _frame_of(duplex: Duplex, given: tuple[int, ...] | None, count: int, name: str) -> Codes:
    """One frame ``int64[count]``: the given one, or silence."""
    if given is None:
        settled: Codes = _encode(duplex, np.zeros(SETTLING_FRAMES * FRAME_SAMPLES, np.float32), count)[-1]
        return settled
    if len(given) != count or not all(0 <= code < duplex.lm.config.card for code in given):
        raise CheckpointError(name, [f"{list(given)}: want {count} codes from 0 to {duplex.lm.config.card - 1}"])
    return np.array(given, np.int64)


@torch.inference_mode()
def _encode(duplex: Duplex, pcm: npt.NDArray[np.float32], count: int) -> Codes:
    """Codes ``int64[T, count]`` of whole frames, the last one filled up with silence; frame by frame, as live."""
    if not count:
        return np.zeros((-(-len(pcm) // FRAME_SAMPLES), 0), np.int64)
    device = duplex.lm.device
    state, rows = duplex.mimi.init_state(1, device, duplex.mimi.dtype), all_rows(1, device)
    padded = np.pad(pcm, (0, -len(pcm) % FRAME_SAMPLES))
    codes = []
    for frame in torch.from_numpy(padded).to(device).view(-1, 1, 1, FRAME_SAMPLES):
        latent = duplex.mimi.latent_step(frame, state, rows)
        codes.append(duplex.mimi.quantiser.encode(latent, count)[0, :, 0].cpu().numpy())
    return np.stack(codes).astype(np.int64)
