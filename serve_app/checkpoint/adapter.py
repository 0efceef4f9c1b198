"""LoRA: what a fine-tune adds to the linears of its base, added once, when the base is read.

An adapter holds ``{linear}.lora_A.weight [rank, in]`` and ``{linear}.lora_B.weight [out, rank]`` for every linear of
the model, and maybe whole weights that stand in for the base's. What is served is ``W + scaling * B @ A``: afterwards
the model is as fast as its base.

Source: LoRA (Hu et al., 2021); names and defaults as moshi 0.2.13 has them, which also wants every linear covered.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from serve_app.checkpoint.keys import Piece, Shape, cut, targets
from serve_app.checkpoint.source import Layout
from serve_app.errors import CheckpointError

DEFAULT_RANK: Final = 128
DEFAULT_SCALING: Final = 2.0
DOWN: Final = ".lora_A.weight"
UP: Final = ".lora_B.weight"
FROZEN: Final = ".frozen_W.weight"

Views = Mapping[str, Any]
"""safetensors slices by the file's names: shapes are known, nothing is read."""


@dataclasses.dataclass(frozen=True, slots=True)
class LoraSettings:
    """What config.json says about the adapter. The scaling is the factor itself, not an alpha over the rank."""

    rank: int = DEFAULT_RANK
    scaling: float = DEFAULT_SCALING

    @classmethod
    def read(cls, layout: Layout) -> "LoraSettings":
        """``lora_rank`` and ``lora_scaling``.

        Raises:
            CheckpointError: no positive integer, or no number.
        """
        rank = layout.config.get("lora_rank", DEFAULT_RANK)
        scaling = layout.config.get("lora_scaling", DEFAULT_SCALING)
        problems = []
        if type(rank) is not int or rank < 1:
            problems.append(f"lora_rank: got {str(rank)[:60]!r}, want a positive integer")
        if isinstance(scaling, bool) or not isinstance(scaling, int | float):
            problems.append(f"lora_scaling: got {str(scaling)[:60]!r}, want a number")
        if problems:
            raise CheckpointError(f"{layout.where}/{layout.config_name}", problems)
        return cls(rank, float(scaling))


@dataclasses.dataclass(frozen=True, slots=True)
class Adapter:
    """Which piece of the file goes to which weight, by our names.

    Attributes:
        down, up: A and B of a linear's weight.
        whole: weights that stand in for the base's.
    """

    views: Views
    scaling: float
    down: Mapping[str, Piece]
    up: Mapping[str, Piece]
    whole: Mapping[str, Piece]

    def apply(self, name: str, base: Tensor) -> Tensor:
        """A base weight, fp32, with what the adapter adds to it or puts in its place."""
        if name in self.whole:
            base = self._read(self.whole[name], base)
        if name not in self.down:
            return base
        return base + self.scaling * (self._read(self.up[name], base) @ self._read(self.down[name], base))

    def _read(self, piece: Piece, like: Tensor) -> Tensor:
        return self.views[piece.key][piece.start : piece.stop].to(like.device, like.dtype)  # type: ignore[no-any-return]


def match_adapter(
    views: Views, wanted: Mapping[str, Shape], linears: frozenset[str], settings: LoraSettings
) -> tuple[Adapter, list[str]]:
    """Hold an adapter's names and shapes against the model's.

    Args:
        views: of the adapter's file.
        wanted: shapes of the model's weights, by our names.
        linears: those of them that are the weights of linears.
        settings: from config.json.

    Returns:
        The adapter, and every problem: keys of another model, another rank, other widths, linears left out.
    """
    down: dict[str, Piece] = {}
    up: dict[str, Piece] = {}
    whole: dict[str, Piece] = {}
    problems: list[str] = []
    for key, view in views.items():
        shape = tuple(view.get_shape())
        store, ending = next(
            ((store, ending) for store, ending in ((down, DOWN), (up, UP), (whole, FROZEN)) if key.endswith(ending)),
            (whole, ""),
        )
        base = key.removesuffix(ending) + ".weight" if ending else key
        names = targets(base, wanted)
        if not names or (ending in (DOWN, UP) and not linears.issuperset(names)):
            problems.append(f"{key}: unexpected, shape {list(shape)}; the model has no such linear or weight")
            continue
        want = _expected(wanted[names[0]], ending, len(names), settings.rank)
        if shape != want:
            why = f", lora_rank is {settings.rank}" if ending in (DOWN, UP) else ""
            problems.append(f"{key}: shape {list(shape)} in the adapter, {list(want)} fits the model{why}")
            continue
        store |= dict(zip(names, cut(key, shape, len(names)), strict=True))
    if not problems:
        problems += [f"{name}: no lora_A in the adapter" for name in sorted(linears - down.keys())]
        problems += [f"{name}: no lora_B in the adapter" for name in sorted(linears - up.keys())]
    return Adapter(views, settings.scaling, down, up, whole), problems


def _expected(weight: Shape, ending: str, sets: int, rank: int) -> Shape:
    """Shape of a key that serves ``sets`` weights of this shape, one after the other along dimension 0."""
    first, *rest = weight
    if ending == DOWN:
        return (sets * rank, *rest)
    if ending == UP:
        return (sets * first, rank)
    return (sets * first, *rest)
