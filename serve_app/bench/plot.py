"""A picture of the table: tick time over rows, one panel a length, against floor, reference and 80 ms."""

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from serve_app.errors import ConfigError
from serve_app.units import FRAME_MS

SUFFIXES: Final = (".png", ".svg")
OURS, THEIRS, FLOOR = "#2563eb", "#9ca3af", "#16a34a"


def check(path: Path) -> None:
    """Refuse what could not be drawn, before anything is measured.

    Raises:
        ConfigError: another suffix, or matplotlib is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError("--plot", f"{path}: write {' or '.join(SUFFIXES)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError("--plot", "needs matplotlib: pip install 'chorus-serve[bench]'")


def draw(path: Path, result: Mapping[str, Any]) -> None:
    """Draw a result.

    Raises:
        ConfigError: as `check`; the file cannot be written.
    """
    check(path)
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    labels = list(dict.fromkeys(cell["lengths"] for cell in result["cells"]))
    figure, panels = pyplot.subplots(1, len(labels), figsize=(4 * len(labels), 4), sharey=True, squeeze=False)
    for panel, label in zip(panels[0], labels, strict=True):
        cells = [cell for cell in result["cells"] if cell["lengths"] == label and "counted" in cell]
        rows = [cell["rows"] for cell in cells]
        panel.fill_between(rows, [cell["floor_ms"] for cell in cells], color=FLOOR, alpha=0.15)
        panel.plot(rows, [cell["floor_ms"] for cell in cells], color=FLOOR, label="floor of this device")
        panel.plot(rows, [cell["counted"]["p50_ms"] for cell in cells], "o-", color=OURS, label="Chorus, median")
        panel.plot(rows, [cell["counted"]["p99_ms"] for cell in cells], ":", color=OURS, label="Chorus, p99")
        known = [cell for cell in cells if cell["reference"] is not None]
        if known:
            times = [cell["reference"]["p50_ms"] for cell in known]
            panel.plot([cell["rows"] for cell in known], times, "s-", color=THEIRS, label="reference, median")
        panel.axhline(FRAME_MS, color="black", linewidth=0.8, linestyle="--")
        panel.set(title=f"L = {label}", xlabel="conversations")
    panels[0][0].set(ylabel="ms a tick", ylim=(0, 1.15 * max(FRAME_MS, *_medians(result))))  # panels share it
    panels[0][-1].legend(fontsize=8, framealpha=0.9)
    figure.suptitle(f"{result['model']['name']} {result['dtype']}, {result['machine']['device']}", fontsize=10)
    figure.tight_layout()
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError("--plot", f"{path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _medians(result: Mapping[str, Any]) -> list[float]:
    """A percentile may leave the picture, since one hiccup of the machine is enough; a median may not."""
    spreads = (spread for cell in result["cells"] for spread in (cell.get("counted"), cell.get("reference")))
    return [spread["p50_ms"] for spread in spreads if spread is not None] or [FRAME_MS]
