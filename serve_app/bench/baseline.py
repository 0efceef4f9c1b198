"""An earlier run to hold this one against: of the same device only, because times of two devices say nothing."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve_app.errors import ConfigError

SLOWER: Final = 1.10
"""Above this ratio a batch has become slower; shared machines move by less in the median."""
IDENTITY: Final = ("device", "threads")
KEYS: Final = ("rows", "lengths")


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One batch, now over then, by the medians."""

    rows: int
    lengths: str
    ratio: float

    @property
    def slower(self) -> bool:
        return self.ratio > SLOWER


def save(path: Path, result: Mapping[str, Any]) -> None:
    """Keep a run.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    except OSError as error:
        raise ConfigError("--save-baseline", f"{path}: {error.strerror}") from error


def read(path: Path, machine: Mapping[str, Any], model: str, dtype: str) -> Mapping[str, Any]:
    """An earlier run.

    Args:
        machine: of this run, as its result tells it.

    Raises:
        ConfigError: it cannot be read, or is of another device, number of threads, model or dtype; names both.
    """
    try:
        kept = json.loads(path.read_text("utf-8"))
        pairs = [(name, kept["machine"][name], machine[name]) for name in IDENTITY]
        pairs += [("model", kept["model"]["name"], model), ("dtype", kept["dtype"], dtype)]
        [(cell["rows"], cell["lengths"], cell["counted"]["p50_ms"]) for cell in kept["cells"] if "counted" in cell]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError("--baseline", f"{path}: no result of this benchmark: {error}") from error
    for name, then, now in pairs:
        if then != now:
            raise ConfigError("--baseline", f"{path}: its {name} is {then!r}, this is {now!r}: not to be compared")
    found: Mapping[str, Any] = kept
    return found


def compare(kept: Mapping[str, Any], cells: list[Mapping[str, Any]]) -> tuple[Change, ...]:
    """Batches that both runs measured."""
    then = {tuple(cell[key] for key in KEYS): cell for cell in kept["cells"] if "counted" in cell}
    changes = []
    for cell in cells:
        before = then.get(tuple(cell[key] for key in KEYS))
        if before is not None and "counted" in cell:
            ratio = cell["counted"]["p50_ms"] / before["counted"]["p50_ms"]
            changes.append(Change(cell["rows"], cell["lengths"], ratio))
    return tuple(changes)
