"""The query of `/api/chat`: what Kyutai's web client asks for, as a `Sampling`.

Values that the web client sends (its `Conversation.tsx`): temperatures and top-k as JavaScript numbers, pad_mult 0,
repetition_penalty 1 with a context of 64, both seeds whole numbers below a million. PersonaPlex's page, which grew
from it, uses -1 for "any seed"; forms send an empty string. Both mean that we choose. Names that nobody here knows
(worker_auth_id, email, max_steps, text_prompt, ...) are ignored, as every Kyutai server does.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from serve_app.errors import ParameterRefused
from serve_app.spec import MAX_SEED, MAX_TOP_K, Sampling, fresh_seed

MAX_VALUE_CHARS: Final = 64
MAX_PENALTY_CONTEXT: Final = 1 << 16
OURS: Final = Sampling()
ANY_SEED: Final = ("", "-1")

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,20}")
_DECIMAL: Final = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
_NOT_FINITE: Final = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)

_SPELLING: Final = {"text_top_k": "text_topk", "audio_top_k": "audio_topk"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChatQuery:
    """What one connection asks for."""

    sampling: Sampling


def parse_chat_query(
    query: Mapping[str, str], default: Sampling = OURS, *, fresh_seed: Callable[[], int] = fresh_seed
) -> ChatQuery:
    """Read the query, filling in what it leaves out.

    Args:
        query: names to values, as decoded from the URL; where a name came twice, whichever the mapping holds.
        default: of what the query does not name, but for the seeds: what the model was published with.
        fresh_seed: called once for each seed that the client left to us.

    Raises:
        ParameterRefused: not a number, not finite, out of range, or asks for something that is not built. Its name is
            the client's spelling.
    """
    _refuse_unbuilt(query)
    try:
        sampling = Sampling(
            text_temperature=_decimal(query, "text_temperature", default.text_temperature),
            text_top_k=_integer(query, "text_topk", default.text_top_k, MAX_TOP_K),
            audio_temperature=_decimal(query, "audio_temperature", default.audio_temperature),
            audio_top_k=_integer(query, "audio_topk", default.audio_top_k, MAX_TOP_K),
            text_seed=_seed(query, "text_seed", fresh_seed),
            audio_seed=_seed(query, "audio_seed", fresh_seed),
        )
    except ParameterRefused as error:
        raise ParameterRefused(_SPELLING.get(error.name, error.name), error.value, error.why) from error
    return ChatQuery(sampling=sampling)


def _refuse_unbuilt(query: Mapping[str, str]) -> None:
    for name, neutral in (("pad_mult", 0.0), ("repetition_penalty", 1.0)):
        if _decimal(query, name, neutral) != neutral:
            raise ParameterRefused(name, query[name], f"not built yet; leave it out or send {neutral:g}")
    _integer(query, "repetition_penalty_context", 0, MAX_PENALTY_CONTEXT)


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
    return fresh_seed() if query.get(name, "") in ANY_SEED else _integer(query, name, 0, MAX_SEED)
