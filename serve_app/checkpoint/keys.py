"""How published files spell the names of our weights.

Our modules carry the reference's newest names; older files differ as the table says. A stacked spelling holds the
weight sets of all steps in one tensor, one after the other along dimension 0.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Final

SET: Final = "{set}"
"""Stands in a name for the number of the weight set."""

SPELLINGS: Final = tuple(
    (re.compile(rf"(?P<owner>.*\.)?{re.escape(old)}$"), new)
    for old, new in (
        ("in_proj_weight", f"in_projs.{SET}.weight"),
        ("in_proj.weight", f"in_projs.{SET}.weight"),
        ("out_proj_weight", f"out_projs.{SET}.weight"),
        ("out_proj.weight", f"out_projs.{SET}.weight"),
        ("_codebook.inited", "_codebook._initialized"),
        ("_codebook.cluster_size", "_codebook.cluster_usage"),
        ("_codebook.embed_avg", "_codebook.embedding_sum"),
        ("_codebook.embed_sum", "_codebook.embedding_sum"),
    )
)
"""End of a name in a file, end of ours. A name with `SET` is stacked."""

SCALE_SUFFIX: Final = "_scb"
"""Of the tensor with a quantised weight's scales, one per row."""

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Where one of our weights lies: rows ``start`` to ``stop`` of a file's tensor, or all of it when both are None."""

    key: str
    start: int | None = None
    stop: int | None = None


def match(held: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> tuple[dict[str, Piece], list[str]]:
    """Find each wanted weight in a file.

    Args:
        held: shapes of the file's tensors, by the file's names.
        wanted: shapes of the model's tensors, by ours.

    Returns:
        The piece for every weight that fits, and every problem: misshapen, unexpected, doubled and missing keys.
    """
    pieces: dict[str, Piece] = {}
    problems: list[str] = []
    for key, shape in held.items():
        names = targets(key, wanted)
        if not names:
            problems.append(f"{key}: unexpected, shape {list(shape)}; the model has no such weight")
            continue
        want = wanted[names[0]]
        if len(names) > 1:
            want = (len(names) * want[0], *want[1:])
        if shape != want:
            problems.append(f"{key}: shape {list(shape)} in the file, {list(want)} in the model")
        for target, piece in zip(names, cut(key, shape, len(names)), strict=True):
            if target in pieces:
                problems.append(f"{key}: holds {target}, which {pieces[target].key} holds too")
            pieces[target] = piece
    problems += [f"{name}: missing, shape {list(wanted[name])} in the model" for name in wanted if name not in pieces]
    return pieces, problems


def targets(key: str, wanted: Mapping[str, Shape]) -> Sequence[str]:
    """Our names of what a file's tensor holds, in their order along dimension 0; none when nothing fits."""
    if key in wanted:
        return (key,)
    for pattern, new in SPELLINGS:
        found = pattern.match(key)
        if found is None:
            continue
        ours = (found["owner"] or "") + new
        if SET not in ours:
            return (ours,) if ours in wanted else ()
        names: list[str] = []
        while (name := ours.replace(SET, str(len(names)))) in wanted:
            names.append(name)
        return names
    return ()


def cut(key: str, shape: Shape, sets: int) -> list[Piece]:
    """A tensor's rows, dealt out evenly to the weight sets that it holds."""
    if sets == 1:
        return [Piece(key)]
    rows = shape[0] // sets if shape else 0
    return [Piece(key, index * rows, (index + 1) * rows) for index in range(sets)]
