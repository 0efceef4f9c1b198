"""Shape of a model's conditions, as Kyutai's config.json spells them: conditioners, and how they are fused.

Source: behaviour of moshi 0.2.13 (`ConditionProvider`, `ConditionFuser`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

ConditionerKind = Literal["lut", "tensor"]
FUSED: Final = ("sum", "cross")
TENSOR_STEPS: Final = 640
"""Steps of cross-attention that a tensor condition may take: five voices of 125 frames, which Kyutai's TTS pads to."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ConditionerConfig:
    """One condition of a model.

    Attributes:
        kind: ``lut`` looks a text up in a table, ``tensor`` takes vectors as they are given.
        dim: of the table or of the given vectors; the model's own dimension comes out.
        n_bins: entries of the table; one more is for nothing chosen. 0 for tensors.
        possible_values: texts that may be chosen, in the order of the table; None takes any text by its hash.
        project: whether a linear leads to the model's dimension.
        learn_padding: whether what is masked is a learnt vector, else 0.
    """

    name: str
    kind: ConditionerKind
    dim: int
    n_bins: int = 0
    possible_values: tuple[str, ...] | None = None
    project: bool = True
    learn_padding: bool = True


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FuserConfig:
    """Where each condition goes.

    Attributes:
        sum: conditions that are added to the input of every step.
        cross: conditions that every step attends to, one after another in this order.
        cross_positions: factor on the sinusoidal positions of what is attended to; 0 for none.
    """

    sum: tuple[str, ...] = ()
    cross: tuple[str, ...] = ()
    cross_positions: float = 0.0


NOTHING_FUSED: Final = FuserConfig()


_KINDS: Final[Mapping[str, ConditionerKind]] = {"lut": "lut", "tensor": "tensor"}


def read_conditioners(value: Any, dim: int) -> tuple[tuple[ConditionerConfig, ...], list[str]]:
    """The key ``conditioners`` of a config.json, and every problem of it. ``dim`` is the model's."""
    if value is None:
        return (), []
    if not isinstance(value, Mapping):
        return (), [f"conditioners: got {_short(value)}, want an object"]
    read, problems = [], list[str]()
    for name, entry in value.items():
        kind = _KINDS.get(str(entry.get("type"))) if isinstance(entry, Mapping) else None
        own = entry.get(kind) if kind else None
        if kind is None or not isinstance(own, Mapping) or "." in name:
            problems.append(f"conditioners.{name}: {_short(entry)}, want a type 'lut' or 'tensor' and its values")
            continue
        wrong = _wrong(own, kind)
        problems += [f"conditioners.{name}.{why}" for why in wrong]
        if not wrong:
            values = own.get("possible_values")
            read.append(
                ConditionerConfig(
                    name=name,
                    kind=kind,
                    dim=own["dim"],
                    n_bins=own.get("n_bins", 0),
                    possible_values=None if values is None else tuple(values),
                    project=own.get("force_linear", True) or own["dim"] != dim,
                    learn_padding=own.get("learn_padding", True),
                )
            )
    return tuple(read), problems


def read_fuser(value: Any, conditioners: Sequence[ConditionerConfig]) -> tuple[FuserConfig, list[str]]:
    """The key ``fuser`` of a config.json, and every problem of it: a condition is fused once or not at all."""
    if value is None:
        return NOTHING_FUSED, []
    if not isinstance(value, Mapping):
        return NOTHING_FUSED, [f"fuser: got {_short(value)}, want an object"]
    scale = value.get("cross_attention_pos_emb_scale", 1.0)
    problems = [
        f"fuser.{key}: unknown key"
        for key in sorted(set(value) - {*FUSED, "prepend", "cross_attention_pos_emb", "cross_attention_pos_emb_scale"})
    ]
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        problems.append(f"fuser.cross_attention_pos_emb_scale: got {_short(scale)}, want a number")
        scale = 1.0
    known, fused = {conditioner.name for conditioner in conditioners}, list[str]()
    for method in FUSED:
        names = value.get(method) or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            problems.append(f"fuser.{method}: got {_short(names)}, want a list of names")
            return NOTHING_FUSED, problems
        problems += [f"fuser.{method}: no conditioner {name!r}" for name in names if name not in known]
        problems += [f"fuser.{method}: {name!r} is fused twice" for name in names if name in fused]
        fused += names
    return FuserConfig(
        sum=tuple(value.get("sum") or ()),
        cross=tuple(value.get("cross") or ()),
        cross_positions=float(scale) if value.get("cross_attention_pos_emb") else 0.0,
    ), problems


def _wrong(own: Mapping[str, Any], kind: str) -> list[str]:
    """What is wrong with one conditioner's values, each as ``key: why``."""
    flags = ("force_linear", "pad_empty", "learn_padding", "output_bias")
    lookup = ("n_bins", "tokenizer", "possible_values", "init_scale") if kind == "lut" else ()
    wrong = [f"{key}: unknown key" for key in sorted(set(own) - {"dim", *flags, *lookup})]
    wrong += [f"{key}: want true or false" for key in flags if not isinstance(own.get(key, False), bool)]
    wrong += [f"{key}: want a positive integer" for key in ("dim", *lookup[:1]) if not _positive(own.get(key))]
    if own.get("output_bias"):
        wrong.append("output_bias: a projection with a bias is not built")
    if kind == "lut":
        values = own.get("possible_values")
        if own.get("tokenizer") != "noop":
            wrong.append(f"tokenizer: {_short(own.get('tokenizer'))} is not built, only 'noop'")
        if values is not None and not (
            isinstance(values, list)
            and all(isinstance(item, str) for item in values)
            and _positive(own.get("n_bins"))
            and len(set(values)) == len(values) <= own["n_bins"]
        ):
            wrong.append("possible_values: want a list of different texts, no more than n_bins")
    return wrong


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _short(value: Any) -> str:
    return repr(value)[:60]
