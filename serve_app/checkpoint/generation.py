"""How a model was published to be used: sampling, guidance and conditions of a session that asks for nothing.

Source: ``lm_gen_config`` of config.json; what the reference's command line does with a translation model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from serve_app.checkpoint.source import Layout
from serve_app.errors import CheckpointError
from serve_app.spec import MAX_GUIDANCE, Sampling

SAMPLING: Final[Mapping[str, str]] = {
    "temp": "audio_temperature",
    "temp_text": "text_temperature",
    "top_k": "audio_top_k",
    "top_k_text": "text_top_k",
}
"""Keys of `lm_gen_config`, and our names of them."""
GUIDANCE: Final = ("cfg_coef", "cfg_is_no_text", "cfg_is_masked_until")
NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "use_sampling": (True,),
    "support_out_of_sync": (False,),
    "check": (False,),
}
"""Features that are not built: any other value is refused by its key."""
CONDITIONS: Final[Mapping[str, tuple[tuple[str, str], tuple[str, str]]]] = {
    "hibiki": (("description", "very_good"), ("description", "very_bad")),
}
"""By kind of model: what to ask it for, and what guidance leads away from."""

Chosen = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Defaults of a model.

    Attributes:
        sampling: seeds mean nothing.
        guidance: strength; 1 is none.
        no_text: whether text is not guided.
        masked_until: steps that the null row hears nothing of; None for none.
        conditions: values of conditions that a session does not choose.
        against: conditions of the null row; None for nothing chosen.
    """

    sampling: Sampling
    guidance: float = 1.0
    no_text: bool = False
    masked_until: int | None = None
    conditions: Chosen = ()
    against: Chosen | None = None


def unbuilt(layout: Layout) -> list[str]:
    """Every key of `lm_gen_config` that asks for what is not built."""
    return [
        f"lm_gen_config.{key}: {str(value)[:60]} is not built"
        for key, value in layout.generation.items()
        if key not in SAMPLING and key not in GUIDANCE and value not in NEUTRAL.get(key, ())
    ]


def read_generation(layout: Layout) -> Generation:
    """What the checkpoint says, and ours where it says nothing.

    Raises:
        CheckpointError: a value of a wrong type or out of range, by its key.
        ParameterRefused: a sampling value out of range.
    """
    said = {key: value for key, value in layout.generation.items() if value is not None}
    problems = [
        f"lm_gen_config.{key}: {str(said[key])[:60]!r} is not a number" for key in SAMPLING if not _number(said, key)
    ]
    coef: Any = said.get("cfg_coef", 1.0)
    no_text: Any = said.get("cfg_is_no_text", False)
    masked: Any = said.get("cfg_is_masked_until")
    if not _number({"": coef}, "") or not 0 <= coef <= MAX_GUIDANCE:
        problems.append(f"lm_gen_config.cfg_coef: {str(coef)[:60]!r} is not between 0 and {MAX_GUIDANCE:g}")
    if not isinstance(no_text, bool):
        problems.append(f"lm_gen_config.cfg_is_no_text: {str(no_text)[:60]!r} is not true or false")
    if masked is not None and (type(masked) is not int or masked < 0):
        problems.append(f"lm_gen_config.cfg_is_masked_until: {str(masked)[:60]!r} is not a number of steps")
    if problems:
        raise CheckpointError(f"{layout.where}/{layout.config_name}", problems)
    conditions, against = _conditions(layout)
    return Generation(
        sampling=Sampling(**{ours: said[key] for key, ours in SAMPLING.items() if key in said}),
        guidance=float(coef),
        no_text=no_text,
        masked_until=masked,
        conditions=conditions,
        against=against,
    )


def _conditions(layout: Layout) -> tuple[Chosen, Chosen | None]:
    """What this kind of model is asked for, where it has that condition."""
    chosen = CONDITIONS.get(layout.model_type)
    if chosen is None or chosen[0][0] not in (layout.config.get("conditioners") or {}):
        return (), None
    return (chosen[0],), (chosen[1],)


def _number(said: Mapping[str, Any], key: str) -> bool:
    value = said.get(key, 0)
    return isinstance(value, int | float) and not isinstance(value, bool)
