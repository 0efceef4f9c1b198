"""What a session asks for: pure values, validated once, shared by gateway and engine."""

import dataclasses
import math
import secrets
import unicodedata
from typing import Final

from serve_app.errors import ParameterRefused

MAX_TEMPERATURE: Final = 10.0
MIN_TEMPERATURE: Final = 1e-3
"""The least above greedy: below it logits divided by temperature leave fp32."""
MAX_TOP_K: Final = 1 << 16
MAX_SEED: Final = (1 << 63) - 1
MAX_GUIDANCE: Final = 20.0
MIN_REPETITION_PENALTY: Final = 0.01
MAX_REPETITION_PENALTY: Final = 10.0
MAX_REPETITION_CONTEXT: Final = 256
"""The web client's slider ends at 200; the model keeps so many text tokens of every session."""
MAX_PAD_MULT: Final = 100.0
MAX_PROMPT_CHARS: Final = 4_000
MAX_NAME_CHARS: Final = 1_000
"""Of a condition's name or value and of a voice's name; a text condition is a value."""


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
class Prompt:
    """What the model is told before the conversation begins; at least one of both.

    Attributes:
        text: in words, or "" for none.
        voice: name of a voice of the deployment's list, or "" for none. Never a path.

    Raises:
        ParameterRefused: empty, too long, or with control characters.
    """

    text: str = ""
    voice: str = ""

    def __post_init__(self) -> None:
        _require_words("text_prompt", self.text, MAX_PROMPT_CHARS)
        _require_words("voice_prompt", self.voice, MAX_NAME_CHARS)
        if not (self.text or self.voice):
            raise ParameterRefused("text_prompt", "", "a prompt is a text, a voice or both")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """One question opens a session; this is the question.

    Attributes:
        tenant: who pays; "local" until tenants come.
        sampling: how this session samples.
        conditions: names of conditions and the values chosen for them, each name once; the others keep their defaults.
        guidance: strength of classifier-free guidance; 1 is none. The reference's ``cfg_coef``.
        prompt: what to tell the model before the conversation; None for nothing.
        repetition_penalty: text tokens said lately have their logits divided (or multiplied) by it; 1 is none.
        repetition_penalty_context: how many of the last text tokens it looks at.
        pad_mult: added to the logit of text padding: more makes the model write less; 0 is none.
        extra_heads: whether the client wants what the extra heads say.

    Raises:
        ParameterRefused: out of range or not finite; names the field as clients spell it.
    """

    tenant: str = "local"
    sampling: Sampling = Sampling()
    conditions: tuple[tuple[str, str], ...] = ()
    guidance: float = 1.0
    prompt: Prompt | None = None
    repetition_penalty: float = 1.0
    repetition_penalty_context: int = 64
    pad_mult: float = 0.0
    extra_heads: bool = False

    def __post_init__(self) -> None:
        for name, value, least, most in (
            ("cfg_coef", self.guidance, 0.0, MAX_GUIDANCE),
            ("repetition_penalty", self.repetition_penalty, MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
            ("repetition_penalty_context", self.repetition_penalty_context, 0, MAX_REPETITION_CONTEXT),
            ("pad_mult", self.pad_mult, -MAX_PAD_MULT, MAX_PAD_MULT),
        ):
            if not (math.isfinite(value) and least <= value <= most):
                raise ParameterRefused(name, value, f"must be between {least:g} and {most:g}")
        names = [name for name, _ in self.conditions]
        for name, chosen in self.conditions:
            _require_words("condition", name, MAX_NAME_CHARS)
            _require_words(f"condition.{name}", chosen, MAX_NAME_CHARS)
            if names.count(name) > 1:
                raise ParameterRefused(f"condition.{name}", chosen, "named twice")

    @property
    def guided(self) -> bool:
        """Whether the session needs a second row, which knows no conditions."""
        return self.guidance != 1.0

    @property
    def rows(self) -> int:
        """Rows of the batch that the session owns."""
        return 2 if self.guided else 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a deployment lets its sessions ask for, and what they get when they ask for nothing.

    Plain values: it crosses processes and is shown to people.

    Attributes:
        conditions: names that may be chosen, each with the values it takes; no values: any text.
        guided: whether sessions may ask for guidance.
        guidance: what a session gets that does not say.
        prompt_steps: the longest prompt, in steps; 0 where the model takes none.
        voices: names of the deployment's voices.
        extra_heads: how many there are.
        sampling: what a session gets that does not say; its seeds mean nothing.
    """

    conditions: tuple[tuple[str, tuple[str, ...]], ...] = ()
    guided: bool = False
    guidance: float = 1.0
    prompt_steps: int = 0
    voices: tuple[str, ...] = ()
    extra_heads: int = 0
    sampling: Sampling = Sampling()

    def check(self, spec: SessionSpec) -> None:
        """Refuse what is not offered.

        Raises:
            ParameterRefused: names the parameter and what is allowed.
        """
        self._check_conditions(spec)
        if spec.guided and not self.guided:
            raise ParameterRefused("cfg_coef", spec.guidance, "this model takes no guidance; leave it out")
        if spec.extra_heads and not self.extra_heads:
            raise ParameterRefused("extra_heads", 1, "this model has none; leave it out")
        if spec.prompt is None:
            return
        if not self.prompt_steps:
            name = "text_prompt" if spec.prompt.text else "voice_prompt"
            raise ParameterRefused(name, spec.prompt.text or spec.prompt.voice, "this model takes no prompts")
        if spec.prompt.voice and spec.prompt.voice not in self.voices:
            raise ParameterRefused("voice_prompt", spec.prompt.voice, _allowed(self.voices))

    def _check_conditions(self, spec: SessionSpec) -> None:
        offered = dict(self.conditions)
        for name, value in spec.conditions:
            if name not in offered:
                raise ParameterRefused(f"condition.{name}", value, _allowed(tuple(offered)))
            if offered[name] and value not in offered[name]:
                raise ParameterRefused(f"condition.{name}", value, _allowed(offered[name]))


def _allowed(names: tuple[str, ...]) -> str:
    return f"must be one of {', '.join(names)}" if names else "there are none here; leave it out"


def _require_words(parameter: str, value: str, most: int) -> None:
    if len(value) > most:
        raise ParameterRefused(parameter, value, f"longer than {most} characters")
    if any(unicodedata.category(character) in ("Cc", "Cs") and character not in "\n\t" for character in value):
        raise ParameterRefused(parameter, value, "holds control characters")


def fresh_seed() -> int:
    """A seed for a session that named none."""
    return secrets.randbelow(MAX_SEED)
