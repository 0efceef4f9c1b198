"""One picture of a run: rows held and callers waiting over time. Needs matplotlib, which we do not depend on."""

import importlib
from pathlib import Path

from serve_app.errors import ConfigError
from serve_app.fleet.simulation import Fleet, Outcome


def draw(fleet: Fleet, outcome: Outcome, path: Path) -> None:
    """Write the picture.

    Raises:
        ConfigError: no matplotlib here, or the file cannot be written.
    """
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ConfigError("--plot", "needs matplotlib: pip install matplotlib") from error
    figure = figures.Figure(figsize=(9, 4), layout="constrained")
    axes = figure.subplots()
    hours, busy, waiting, rows = zip(*outcome.curve, strict=True)
    axes.plot(hours, busy, label="rows held", color="tab:blue", linewidth=1)
    axes.plot(hours, waiting, label="waiting", color="tab:red", linewidth=1)
    axes.step(hours, rows, label="rows", color="gray", linestyle="--", linewidth=1, where="post")
    axes.set_xlabel("hours")
    axes.set_title(
        f"{max(rows) // fleet.rows} engines of {fleet.rows} rows: blocking {outcome.all.blocking:.2%}, "
        f"utilisation {outcome.utilisation:.1%}, mean wait {outcome.all.mean_wait_s:.1f} s"
    )
    axes.legend(loc="center left")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError("--plot", f"{path} cannot be written: {error}") from error
