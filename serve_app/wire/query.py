"""The query of `/api/chat`: what Kyutai's web client and its kin ask for, as a `SessionSpec`.

Values that the web client sends (its `Conversation.tsx`): temperatures and top-k as JavaScript numbers, pad_mult 0,
repetition_penalty 1 with a context of 64, both seeds whole numbers below a million. PersonaPlex's page, which grew
from it, sends text_prompt, voice_prompt (a file's name) and one seed for everything, -1 for any; forms send an empty
string. Both mean that we choose. Our own: cfg_coef, condition.NAME, extra_heads, latency, resumable and resume. Names
that nobody here knows (worker_auth_id, email, max_steps, ...) are ignored, as every Kyutai server does.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from serve_app.errors import ParameterRefused
from serve_app.spec import (
    MAX_REPETITION_CONTEXT,
    MAX_SEED,
    MAX_TOP_K,
    Offer,
    Prompt,
    Sampling,
    SessionSpec,
    fresh_seed,
)

MODEL_PARAMETER: Final = "model"
MAX_VALUE_CHARS: Final = 64
MAX_CONDITIONS: Final = 32
CONDITION_PREFIX: Final = "condition."
VOICE_ENDINGS: Final = (".wav", ".pt")
"""Pages name voices by the files that they are kept in elsewhere; ours have none."""
ANY_SEED: Final = ("", "-1")

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_NOT_FINITE: Final = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)

PARAMETERS: Final = frozenset(
    "text_temperature text_topk audio_temperature audio_topk text_seed audio_seed seed cfg_coef text_prompt "
    "voice_prompt repetition_penalty repetition_penalty_context pad_mult extra_heads latency".split()
)
RESUMABLE_PARAMETER: Final = "resumable"
RESUME_PARAMETER: Final = "resume"
_SPELLING: Final = {"text_top_k": "text_topk", "audio_top_k": "audio_topk"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuery:
    """What one connection asks for.

    Attributes:
        latency: whether it wants to be told, once a second, where the time of its frames went.
        resumable: whether its client can come back to a session that it was cut off from.
        resume: what it comes back with; None for a new session.
    """

    spec: SessionSpec
    latency: bool = False
    resumable: bool = False
    resume: str | None = None

    @property
    def sampling(self) -> Sampling:
        """How it wants to be sampled."""
        return self.spec.sampling


def parameters_in(query: Mapping[str, str]) -> frozenset[str]:
    """The names of parameters of a session that a query sets, as clients spell them; others are nobody's business."""
    return frozenset(name for name in query if name in PARAMETERS or name.startswith(CONDITION_PREFIX))


def model_asked(query: Mapping[str, str], path: str = "") -> str | None:
    """Which model the client names, as parameter or at the end of the path; None where it leaves that to us.

    Args:
        path: what stands behind ``/api/chat/``.

    Raises:
        ParameterRefused: both, and they differ.
    """
    named = query.get(MODEL_PARAMETER, "")
    if path and named and path != named:
        raise ParameterRefused(MODEL_PARAMETER, named, f"the path names {path[:MAX_VALUE_CHARS]!r}")
    return path or named or None


def parse_chat_query(
    query: Mapping[str, str], offer: Offer | None = None, *, fresh_seed: Callable[[], int] = fresh_seed
) -> ChatQuery:
    """Read the query, filling in what it leaves out.

    Args:
        query: names to values, as decoded from the URL; where a name came twice, whichever the mapping holds.
        offer: what the deployment offers: fills gaps, and what is not in it is refused. None: defaults, no refusals.
        fresh_seed: called once for each seed that the client left to us.

    Raises:
        ParameterRefused: not a number, not finite, out of range, or not offered. Its name is the client's spelling.
    """
    default = offer if offer is not None else Offer()
    latency = bool(_integer(query, "latency", 0, 1))
    try:
        spec = SessionSpec(
            sampling=_sampling(query, default.sampling, fresh_seed),
            conditions=_conditions(query),
            guidance=_decimal(query, "cfg_coef", default.guidance),
            prompt=_prompt(query),
            repetition_penalty=_decimal(query, "repetition_penalty", 1.0),
            repetition_penalty_context=_integer(query, "repetition_penalty_context", 64, MAX_REPETITION_CONTEXT),
            pad_mult=_decimal(query, "pad_mult", 0.0),
            extra_heads=bool(_integer(query, "extra_heads", 0, 1)),
        )
    except ParameterRefused as error:
        raise ParameterRefused(_SPELLING.get(error.name, error.name), error.value, error.why) from error
    if offer is not None:
        offer.check(spec)
    return ChatQuery(
        spec=spec,
        latency=latency,
        resumable=bool(_integer(query, RESUMABLE_PARAMETER, 0, 1)),
        resume=query.get(RESUME_PARAMETER),
    )


def _sampling(query: Mapping[str, str], default: Sampling, fresh_seed: Callable[[], int]) -> Sampling:
    return Sampling(
        text_temperature=_decimal(query, "text_temperature", default.text_temperature),
        text_top_k=_integer(query, "text_topk", default.text_top_k, MAX_TOP_K),
        audio_temperature=_decimal(query, "audio_temperature", default.audio_temperature),
        audio_top_k=_integer(query, "audio_topk", default.audio_top_k, MAX_TOP_K),
        text_seed=_seed(query, "text_seed", fresh_seed),
        audio_seed=_seed(query, "audio_seed", fresh_seed),
    )


def _conditions(query: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Every ``condition.NAME=value``, in the order of their names; an empty value keeps the default."""
    named = sorted(name for name, value in query.items() if name.startswith(CONDITION_PREFIX) and value)
    if len(named) > MAX_CONDITIONS:
        raise ParameterRefused(named[MAX_CONDITIONS], query[named[MAX_CONDITIONS]], f"more than {MAX_CONDITIONS}")
    return tuple((name.removeprefix(CONDITION_PREFIX), query[name]) for name in named)


def _prompt(query: Mapping[str, str]) -> Prompt | None:
    text, voice = query.get("text_prompt", "").strip(), query.get("voice_prompt", "")
    for ending in VOICE_ENDINGS:
        voice = voice.removesuffix(ending)
    return Prompt(text=text, voice=voice) if text or voice else None


def _decimal(query: Mapping[str, str], name: str, default: float) -> float:
    text = query.get(name)
    if text is None:
        return default
    if _NOT_FINITE.fullmatch(text):
        raise ParameterRefused(name, text, "must be finite")
    if len(text) > MAX_VALUE_CHARS or not _DECIMAL.fullmatch(text):
        raise ParameterRefused(name, text, "not a number")
    value = float(text)
    if not math.isfinite(value):
        raise ParameterRefused(name, text, "must be finite")
    return value


def _integer(query: Mapping[str, str], name: str, default: int, limit: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        raise ParameterRefused(name, text, "not a whole number")
    value = int(text)
    if not 0 <= value <= limit:
        raise ParameterRefused(name, text, f"must be between 0 and {limit}")
    return value


def _seed(query: Mapping[str, str], name: str, fresh_seed: Callable[[], int]) -> int:
    """The stream's own seed, else the one for everything, else ours."""
    for spelling in (name, "seed"):
        if query.get(spelling, "") not in ANY_SEED:
            return _integer(query, spelling, 0, MAX_SEED)
    return fresh_seed()
