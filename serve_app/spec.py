"""What a session asks for: pure values, validated once, shared by gateway and engine."""

import dataclasses
import math
import secrets
from typing import Final

from serve_app.errors import ParameterRefused

MAX_TEMPERATURE: Final = 10.0
MIN_TEMPERATURE: Final = 1e-3
"""The least above greedy: below it logits divided by temperature leave fp32."""
MAX_TOP_K: Final = 1 << 16
MAX_SEED: Final = (1 << 63) - 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How one session samples. Defaults are the reference's generation defaults.

    Attributes:
        text_temperature, audio_temperature: 0 means greedy.
        text_top_k, audio_top_k: 0 means the whole vocabulary.
        text_seed, audio_seed: the noise of a step is a function of (seed, step, stream) alone.

    Raises:
        ParameterRefused: out of range or not finite; names the field as clients spell it.
    """

    text_temperature: float = 0.7
    text_top_k: int = 25
    audio_temperature: float = 0.8
    audio_top_k: int = 250
    text_seed: int = 0
    audio_seed: int = 0

    def __post_init__(self) -> None:
        for name in ("text_temperature", "audio_temperature"):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value == 0.0 or MIN_TEMPERATURE <= value <= MAX_TEMPERATURE)):
                why = f"must be 0 (greedy) or between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}"
                raise ParameterRefused(name, value, why)
        for name, limit in (
            ("text_top_k", MAX_TOP_K),
            ("audio_top_k", MAX_TOP_K),
            ("text_seed", MAX_SEED),
            ("audio_seed", MAX_SEED),
        ):
            value = getattr(self, name)
            if not 0 <= value <= limit:
                raise ParameterRefused(name, value, f"must be between 0 and {limit}")


GREEDY: Final = Sampling(text_temperature=0.0, audio_temperature=0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """One question opens a session; this is the question.

    Attributes:
        tenant: who pays; "local" until tenants come.
        sampling: how this session samples.
        rows: rows of the batch that the session owns; 2 under guidance.
    """

    tenant: str = "local"
    sampling: Sampling = Sampling()
    rows: int = 1


def fresh_seed() -> int:
    """A seed for a session that named none."""
    return secrets.randbelow(MAX_SEED)
