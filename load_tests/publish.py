"""Writes the reports of a run into a folder: ``report.json``, ``report.html`` and ``latency.png``."""

import base64
import datetime
import html
import importlib
import json
import math
import os
import platform
import subprocess
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from load_tests.outcome import Outcome
from load_tests.sampler import cores
from load_tests.timeline import Moment
from serve_app.errors import ConfigError

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; margin: 1rem 0 }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left }}
.pass, .good {{ color: #17692c }} .fail, .bad {{ color: #a11 }} .generator {{ color: #a60 }} img {{ max-width: 100% }}
</style>
<h1>{title}: <span class="{mark}">{verdict}</span></h1>
{body}
</html>
"""


def facts(url: str) -> dict[str, Any]:
    """Machine, commit, date and whom it was asked of. Of the address the host and the port alone."""
    return {
        "server": urlsplit(url if "://" in url else f"http://{url}").netloc.rpartition("@")[2],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "machine": f"{cores()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load_average": [round(value, 2) for value in os.getloadavg()],
    }


def write(outcome: Outcome, folder: Path) -> Path:
    """All three; the picture only where matplotlib is.

    Returns:
        The folder.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "report.json").write_text(json.dumps(outcome.plain(), indent=1, allow_nan=False) + "\n")
        picture = folder / "latency.png"
        drawn = draw(outcome.moments, f"{outcome.played.shape}: {outcome.verdict}", picture)
        (folder / "report.html").write_text(page(outcome, picture.read_bytes() if drawn else b""))
    except OSError as error:
        raise ConfigError(str(folder), error.strerror or "cannot be written") from error
    return folder


def draw(moments: Sequence[Moment], title: str, path: Path) -> bool:
    """Latency, callers and refusals over time. Returns whether there was a matplotlib to draw with."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    figure = figures.Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    times_s = [moment.begin_s for moment in moments]
    for name, colour in (("p50_ms", "tab:blue"), ("p99_ms", "tab:orange"), ("max_ms", "tab:red")):
        values = [getattr(moment, name) for moment in moments]
        upper.plot(times_s, values, label=name.removesuffix("_ms"), color=colour, linewidth=1)
    late = [moment.late_max_ms for moment in moments]
    upper.plot(times_s, late, label="generator late, max", color="gray", linestyle=":", linewidth=1)
    upper.axhline(80, color="lightgray", linewidth=1)
    upper.set_yscale("symlog", linthresh=10)
    upper.set_ylabel("ms")
    upper.set_ylim(bottom=0)
    figure.suptitle(title)
    upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False)
    lower.plot(times_s, [moment.speaking for moment in moments], label="sessions that speak", color="tab:blue")
    refused = [(moment.begin_s, moment.refused) for moment in moments if moment.refused]
    lower.plot([at_s for at_s, _ in refused], [count for _, count in refused], "rx", label="refused")
    lower.set_xlabel("seconds since the shared start")
    lower.set_ylim(bottom=0)
    lower.legend(loc="lower left", ncols=2)
    figure.savefig(path, dpi=110)
    return True


def draw_wall(steps: Sequence[Mapping[str, Any]], title: str, path: Path) -> bool:
    """Latency and the processors' use over the number of sessions. Returns whether there was a matplotlib."""
    try:
        figures = importlib.import_module("matplotlib.figure")
    except ImportError:
        return False
    figure = figures.Figure(figsize=(9, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    sessions = [step["sessions"] for step in steps]
    for name, told in (("p50_ms", "p50"), ("p99_ms", "p99"), ("late_ms", "generator late, p99")):
        values = [math.nan if step[name] is None else step[name] for step in steps]
        upper.plot(sessions, values, marker=".", label=told)
    upper.axhline(200, color="lightgray", linewidth=1)
    upper.set_yscale("symlog", linthresh=10)
    upper.set_ylabel("ms")
    upper.set_ylim(bottom=0)
    upper.set_title("\n".join(textwrap.wrap(title, 90)), fontsize=10)
    upper.legend()
    roles = sorted({role for step in steps for role in step["uses"]})
    cores = [[step["uses"].get(role, {}).get("cores", 0.0) for step in steps] for role in roles]
    if roles:
        lower.stackplot(sessions, *cores, labels=roles)
        lower.legend(loc="upper left", ncols=3, fontsize=8)
    lower.set_ylabel("cores")
    lower.set_xlabel("sessions")
    figure.savefig(path, dpi=110)
    return True


def page(outcome: Outcome, picture: bytes) -> str:
    """A page that needs no other file."""
    checks = [
        (check.what, _number(check.value, check.unit), f"at most {check.limit:g}", "good" if check.good else "FAIL")
        for check in outcome.checks
    ]
    windows = [(name, *(f"{value:.1f}" for value in window.values())) for name, window in outcome.windows.items()]
    parts = [
        _table(("check", "value", "limit", ""), checks),
        f'<img alt="latency over time" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        if picture
        else "<p>No picture: matplotlib is not installed.</p>",
        _table(("part of the run", "frames", "p50 ms", "p99 ms"), windows),
        "<h2>Sessions</h2>" + _pairs(outcome.report.plain()),
        "<h2>Knocks</h2>" + _pairs(outcome.knocks.plain()) if outcome.knocks else "",
        "<h2>Tenants</h2>" + _pairs(outcome.tenants) if outcome.tenants else "",
        "<h2>Run</h2>" + _pairs({**outcome.plain()["course"], **outcome.played.facts}),
    ]
    return PAGE.format(
        title=html.escape(f"Load: {outcome.played.shape}"),
        mark=str(outcome.verdict).split()[0],
        verdict=outcome.verdict,
        body="\n".join(part for part in parts if part),
    )


def _pairs(values: Mapping[str, Any]) -> str:
    return _table((), [(name.replace("_", " "), _number(value)) for name, value in values.items()])


def _number(value: Any, unit: str = "") -> str:
    told = f"{value:.4g}" if isinstance(value, float) else "none" if value in ({}, None) else str(value)
    return f"{told} {unit}".strip()


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"] if head else []
    for row in rows:
        mark = f' class="{"good" if row[-1] == "good" else "bad"}"' if row[-1] in ("good", "FAIL") else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>")
    return "<table>\n" + "\n".join(lines) + "\n</table>"


def _commit() -> str:
    """Of this checkout; "" elsewhere."""
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
