"""``serve_app fleet``: how many engines for how many callers, before they are bought. The last line is JSON."""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve_app.admission.placement import Policy
from serve_app.admission.scaling import ScalingRules
from serve_app.errors import ChorusError, ConfigError
from serve_app.fleet.elastic import Elasticity
from serve_app.fleet.erlang import blocking, load_at
from serve_app.fleet.fairness import callers, compare
from serve_app.fleet.plot import draw
from serve_app.fleet.simulation import Fleet, Outcome, Simulation


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve_app fleet``. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        report = _fairness(options) if options.fairness is not None else _run(options)
    except ChorusError as error:
        print(f"serve_app fleet: {error}", file=sys.stderr)  # noqa: T201
        return 2
    for name, value in report.items():
        print(f"{name:<24} {value}")  # noqa: T201
    print(json.dumps(report))  # noqa: T201
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    fleet = _fleet(options)
    started_s = time.perf_counter()
    outcome = Simulation(fleet).run()
    took_s = time.perf_counter() - started_s
    if options.plot is not None:
        draw(fleet, outcome, options.plot)
    return _report(fleet, outcome, options.price) | {"took_s": round(took_s, 1)}


def _report(fleet: Fleet, outcome: Outcome, price: float) -> dict[str, Any]:
    most = fleet.engines if fleet.elasticity is None else fleet.elasticity.rules.max_engines
    rows, everybody = most * fleet.rows, outcome.all
    erlangs = fleet.callers[0].erlangs
    flat = (
        fleet.elasticity is None
        and not fleet.callers[0].swing
        and not fleet.queue_limit
        and not fleet.callers[0].guided
    )
    session_hours = outcome.busy_row_s / 3_600
    return {
        "engines": fleet.engines,
        "rows": rows,
        "erlangs": erlangs,
        "arrivals_counted": everybody.arrivals,
        "simulated_days": round(outcome.simulated_s / 86_400, 2),
        "blocking": round(everybody.blocking, 5),
        "erlang_b": round(blocking(fleet.rows, erlangs / fleet.engines) if fleet.split else blocking(rows, erlangs), 5)
        if flat
        else None,
        "erlang_b_load_at_1_percent": round(load_at(rows, 0.01), 1),
        "erlang_b_load_at_1_percent_split": round(most * load_at(fleet.rows, 0.01), 1),
        "abandoned": round(everybody.abandoned / max(everybody.arrivals, 1), 5),
        "waited": round(sum(wait_s > 0 for wait_s in everybody.waits_s) / max(len(everybody.waits_s), 1), 5),
        "wait_mean_s": round(everybody.mean_wait_s, 2),
        "wait_p50_s": round(everybody.wait_s(0.5), 2),
        "wait_p95_s": round(everybody.wait_s(0.95), 2),
        "wait_p99_s": round(everybody.wait_s(0.99), 2),
        "eta_error": round(outcome.eta_error, 3),
        "utilisation": round(outcome.utilisation, 4),
        "engines_come": outcome.moves,
        "cost_per_row_hour": round(price * outcome.open_row_s / fleet.rows / 3_600 / session_hours, 4)
        if session_hours
        else None,
    }


def _fairness(options: argparse.Namespace) -> dict[str, Any]:
    found = compare(_fleet(options), options.fairness, options.greed)
    return {
        "load_of_share": options.fairness,
        "greed_of_share": options.greed,
        "alone_wait_s": round(found.alone.mean_wait_s, 1),
        "beside_wait_s": round(found.beside.mean_wait_s, 1),
        "ratio": round(found.ratio, 3),
        "alone_refused": round(found.alone.blocking, 4),
        "beside_refused": round(found.beside.blocking, 4),
        "greedy_wait_s": round(found.greedy.mean_wait_s, 1),
        "greedy_refused": round(found.greedy.blocking, 4),
        "callers": found.beside.arrivals,
    }


def _fleet(options: argparse.Namespace) -> Fleet:
    kind = callers(
        options.erlangs or 0.8 * options.engines * options.rows,
        options.mean_s,
        options.sigma,
        swing=options.swing,
        patience_s=options.patience_s,
        guided=options.guided,
    )
    return Fleet(
        engines=options.engines,
        rows=options.rows,
        callers=(kind,),
        arrivals=options.arrivals,
        queue_limit=options.queue,
        policy=Policy(options.policy),
        split=options.split,
        elasticity=_elasticity(options),
        seed=options.seed,
    )


def _elasticity(options: argparse.Namespace) -> Elasticity | None:
    if options.scale_to is None:
        return None
    if options.split or options.fairness is not None or options.scale_to < options.engines:
        raise ConfigError("--scale-to", "goes with neither --split nor --fairness, and is not below --engines")
    rules = ScalingRules(min_engines=options.engines, max_engines=options.scale_to, min_free=options.min_free)
    return Elasticity(rules=rules, start_s=options.start_s, downscale_delay_s=options.downscale_delay_s)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app fleet", description="Simulate a fleet: blocking, wait, use, cost.")
    parser.add_argument("--engines", type=_count(1_000), default=8)
    parser.add_argument("--rows", type=_count(1_024), default=64, help="of each engine; default: 64")
    parser.add_argument(
        "--erlangs", type=_number(1e-3, 1e7), help="sessions at a time if nobody is refused; default: 80%%"
    )
    parser.add_argument("--arrivals", type=_count(100_000_000), default=400_000, help="a tenth is warm-up")
    parser.add_argument("--mean-s", type=_number(1.0, 1e6), default=300.0, help="mean length of a session")
    parser.add_argument("--sigma", type=_number(0.0, 3.0), default=1.0, help="of its logarithm; 0: all alike")
    parser.add_argument(
        "--swing", type=_number(0.0, 1.0), default=0.0, help="of the day: 0.8 is 0.2 to 1.8 times the mean"
    )
    parser.add_argument("--guided", type=_number(0.0, 1.0), default=0.0, help="share of sessions that need two rows")
    parser.add_argument(
        "--queue", type=_count(1_000_000, 0), default=0, help="callers that may wait; 0 refuses at once"
    )
    parser.add_argument(
        "--patience-s", type=_number(0.0, math.inf), default=math.inf, help="a caller gives up after this"
    )
    parser.add_argument("--policy", choices=[policy.value for policy in Policy], default=Policy.TIGHTEST.value)
    parser.add_argument("--split", action="store_true", help="each caller to a random engine, as without an authority")
    parser.add_argument("--scale-to", type=_count(1_000), help="engines come and go with their use, up to so many")
    parser.add_argument("--min-free", type=_count(100_000, 0), default=8, help="rows to keep free; default: 8")
    parser.add_argument("--start-s", type=_number(0.0, 1e5), default=120.0, help="until an engine is up; default: 120")
    parser.add_argument("--downscale-delay-s", type=_number(0.0, 1e6), default=600.0, help="default: 600")
    parser.add_argument("--price", type=_number(0.0, 1e6), default=1.0, help="of an engine for an hour")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=Path, help="write a picture; needs matplotlib")
    told = "compare a tenant that offers LOAD of its share alone here, and on twice as many beside a greedy one"
    parser.add_argument("--fairness", type=_number(0.01, 10.0), metavar="LOAD", help=told)
    parser.add_argument("--greed", type=_number(0.01, 100.0), default=10.0, help="what that one offers of its share")
    return parser


def _count(most: int, least: int = 1) -> Any:
    def count(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least} and {most}")
        return value

    return count


def _number(least: float, most: float) -> Any:
    def number(text: str) -> float:
        value = float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be between {least:g} and {most:g}")
        return value

    return number
