"""The dashboard as a picture, without Grafana: every panel of its file, drawn from a Prometheus that runs.

    python -m load_tests.dashboard --prometheus http://localhost:9090 --minutes 5 --out docs/dashboard.png

Title, place, unit, expressions and legends are the panels' own; colours and lines are matplotlib's.
"""

import argparse
import dataclasses
import datetime
import importlib
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

BOARD: Final = Path(__file__).parents[1] / "deploy" / "grafana" / "chorus.json"
COLUMNS: Final = 24
"""Of Grafana's grid."""
COLUMN_INCH, ROW_INCH = 0.6, 0.32
POINTS: Final = 150
ASK_S: Final = 10.0
MARKS: Final = 4
"""On the axis of time, from its beginning to its end."""
LEGEND_CHARACTERS: Final = 28
"""Names of processes are longer, and here they stand beside each other."""
UNITS: Final[Mapping[str, tuple[float, str]]] = {
    "s": (1_000.0, "ms"),
    "bytes": (1.0 / (1 << 20), "MiB"),
    "short": (1.0, ""),
}
"""Grafana's unit: by what a value is multiplied here, and what that is then called. A panel of long times keeps s."""
LONG_S: Final = 2.0

_LABEL: Final = re.compile(r"\{\{\s*(\w+)\s*\}\}")


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One series of a panel: times in Unix seconds; a value that is none is a gap."""

    legend: str
    times_s: Sequence[float]
    values: Sequence[float]


Ask = Callable[[str], Sequence[tuple[Mapping[str, str], Sequence[tuple[float, float]]]]]
"""The series that an expression gives over the time of the picture: labels and (time, value)."""


def legend(template: str, labels: Mapping[str, str]) -> str:
    """What Grafana makes of a legend's format: a label that is not there is empty."""
    return _LABEL.sub(lambda found: labels.get(found[1], ""), template)


def lines(panel: Mapping[str, Any], ask: Ask) -> list[Line]:
    """Everything that a panel shows. The nameless zero of ``or vector(0)`` is left out beside others."""
    found = []
    for target in panel["targets"]:
        for labels, points in ask(target["expr"]):
            times, values = zip(*points, strict=True)
            found.append(Line(legend(target["legendFormat"], labels), times, values))
    named = [line for line in found if line.legend]
    return named or found


def draw(board: Mapping[str, Any], ask: Ask, began_s: float, ended_s: float) -> Any:
    """Every panel at its place. Returns matplotlib's figure."""
    figures: Any = importlib.import_module("matplotlib.figure")
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = figures.Figure(figsize=(COLUMNS * COLUMN_INCH, height * ROW_INCH))
    for panel in board["panels"]:
        place = panel["gridPos"]
        left, bottom = (place["x"] + 1.1) / COLUMNS, 1 - (place["y"] + place["h"] - 1.1) / height
        axes = figure.add_axes((left, bottom, (place["w"] - 1.5) / COLUMNS, (place["h"] - 2.3) / height))
        _draw_panel(axes, panel, lines(panel, ask), began_s, ended_s)
    return figure


def _draw_panel(axes: Any, panel: Mapping[str, Any], shown: Sequence[Line], began_s: float, ended_s: float) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    factor, unit = UNITS[defaults["unit"]]
    values = [value for line in shown for value in line.values if math.isfinite(value)]
    if defaults["unit"] == "s" and max(values, default=0.0) > LONG_S:
        factor, unit = 1.0, "s"
    for line in shown:
        moments = [datetime.datetime.fromtimestamp(moment, datetime.UTC) for moment in line.times_s]
        axes.plot(moments, [factor * value for value in line.values], linewidth=1.6, label=_short(line.legend) or "0")
    axes.set_title(panel["title"], loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel(unit, fontsize=8)
    span_s = ended_s - began_s
    marks = [
        datetime.datetime.fromtimestamp(began_s + span_s * mark / MARKS, datetime.UTC) for mark in range(MARKS + 1)
    ]
    axes.set_xlim(marks[0], marks[-1])
    axes.set_xticks(marks)
    axes.set_ylim(bottom=defaults.get("min"), top=None if any(values) else 1.0)
    dates: Any = importlib.import_module("matplotlib.dates")
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if shown:
        above = {"loc": "lower right", "bbox_to_anchor": (1.0, 0.98), "ncols": len(shown), "frameon": False}
        axes.legend(fontsize=7, columnspacing=1.0, handlelength=1.2, **above)
    else:
        axes.text(0.5, 0.5, "no data", transform=axes.transAxes, ha="center", color="gray")


def _short(text: str) -> str:
    return text if len(text) <= LEGEND_CHARACTERS else text[: LEGEND_CHARACTERS - 1] + "…"


def prometheus(address: str, began_s: float, ended_s: float) -> Ask:
    """Ask a Prometheus. The asking raises OSError where nobody answers, ValueError for what is no answer."""
    step_s = max(1.0, (ended_s - began_s) / POINTS)

    def ask(expression: str) -> Sequence[tuple[Mapping[str, str], Sequence[tuple[float, float]]]]:
        query = {"query": expression, "start": began_s, "end": ended_s, "step": step_s}
        url = f"{address}/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=ASK_S) as response:
            told = json.load(response)
        return [
            (series["metric"], [(float(at_s), float(value)) for at_s, value in series["values"]])
            for series in told["data"]["result"]
        ]

    return ask


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture. The exit status is 1 where Prometheus does not answer."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.dashboard", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--prometheus", default="http://localhost:9090", metavar="URL")
    parser.add_argument("--minutes", type=float, default=5.0, help="before now (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("dashboard.png"))
    options = parser.parse_args(arguments)
    ended_s = time.time()
    began_s = ended_s - 60 * options.minutes
    try:
        ask = prometheus(options.prometheus.rstrip("/"), began_s, ended_s)
        figure = draw(json.loads(BOARD.read_text(encoding="utf-8")), ask, began_s, ended_s)
    except (OSError, ValueError) as error:
        print(f"{options.prometheus}: {error}", file=sys.stderr)
        return 1
    figure.savefig(options.out, dpi=90)
    print(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
