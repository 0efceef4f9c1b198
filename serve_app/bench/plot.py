"""Pictures of a result: tick time over rows, one panel a length, against floor, reference and 80 ms; and a profile.

``python -m serve_app.bench.plot RESULT.json OUT.png ...`` draws what ``--save-baseline`` kept; with ``--profile`` its
shares.
"""

import argparse
import importlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from serve_app.bench.trace import KINDS, SMALL
from serve_app.errors import ConfigError
from serve_app.units import FRAME_MS

SUFFIXES: Final = (".png", ".svg")
OURS, THEIRS, FLOOR = "#2563eb", "#9ca3af", "#16a34a"
COLOURS: Final = ("#2563eb", "#0ea5e9", "#f59e0b", "#16a34a", "#a855f7", "#9ca3af")


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
    pyplot = _pyplot(path)
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
        panel.set(title=f"L = {label}", xlabel="conversations", xticks=rows)
    panels[0][0].set(ylabel="ms a tick", ylim=(0, 1.15 * max(FRAME_MS, *_medians(result))))  # panels share it
    panels[0][-1].legend(fontsize=8, framealpha=0.9)
    _save(path, figure, pyplot, result)


def draw_profiles(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Draw where the time of a tick goes: a bar a stage, cut by kinds of work, one panel a result.

    Raises:
        ConfigError: as `draw`; a result was kept without ``--profile``.
    """
    pyplot = _pyplot(path)
    figure, panels = pyplot.subplots(1, len(results), figsize=(5.5 * len(results), 3), squeeze=False)
    for panel, result in zip(panels[0], results, strict=True):
        stages: Mapping[str, Mapping[str, float]] = result.get("profile") or {}
        if not stages:
            raise ConfigError("--profile", f"{result['model']['name']}: this result has none")
        starts = [0.0] * len(stages)
        for kind, colour in zip((*KINDS, SMALL), COLOURS, strict=True):
            widths = [spent.get(kind, 0.0) for spent in stages.values()]
            panel.barh(list(stages), widths, left=starts, color=colour, label=kind)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        panel.invert_yaxis()
        panel.set(title=f"{result['model']['name']}, B = {result['cells'][-1]['rows']}", xlabel="ms a tick")
    panels[0][0].legend(fontsize=8, framealpha=0.9, loc="lower right")
    _save(path, figure, pyplot, results[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw kept results. Returns 0, or 2 for an error that we know."""
    parser = argparse.ArgumentParser(prog="serve_app.bench.plot", description="Draws what a benchmark kept.")
    parser.add_argument("results", type=Path, nargs="+", help="as --save-baseline wrote them; pictures stand last")
    parser.add_argument("--profile", action="store_true", help="of all of them, side by side")
    given = parser.parse_args(arguments)
    kept = [path for path in given.results if path.suffix not in SUFFIXES]
    try:
        results = [json.loads(path.read_text("utf-8")) for path in kept]
        for path in given.results:
            if path.suffix in SUFFIXES:
                draw_profiles(path, results) if given.profile else draw(path, results[0])
    except (OSError, ValueError, KeyError, IndexError, ConfigError) as error:
        print(f"serve_app.bench.plot: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _pyplot(path: Path) -> Any:
    check(path)
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "chorus"  # the same picture is the same file
    return importlib.import_module("matplotlib.pyplot")


def _save(path: Path, figure: Any, pyplot: Any, result: Mapping[str, Any]) -> None:
    title = f"{result['model']['name']} {result['dtype']}, {result['machine']['device']}"
    figure.suptitle(f"{title}, {result['machine']['threads']} threads, {result['commit']}", fontsize=10)
    figure.tight_layout()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    try:
        figure.savefig(path, dpi=150, metadata=metadata)
    except OSError as error:
        raise ConfigError("--plot", f"{path}: {error.strerror}") from error
    finally:
        pyplot.close(figure)


def _medians(result: Mapping[str, Any]) -> list[float]:
    """A percentile may leave the picture, since one hiccup of the machine is enough; a median may not."""
    spreads = (spread for cell in result["cells"] for spread in (cell.get("counted"), cell.get("reference")))
    return [spread["p50_ms"] for spread in spreads if spread is not None] or [FRAME_MS]


if __name__ == "__main__":
    sys.exit(main())
