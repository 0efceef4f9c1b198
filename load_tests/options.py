"""The options of the shapes, for the command and for Locust's own parser, and what they make."""

import argparse
from pathlib import Path
from typing import Any, Final

from load_tests.keyring import Keyring
from load_tests.shapes import Churn, Course, Overload, Ramp, Soak, Spike, Steady
from load_tests.verdict import Limits
from serve_app.config import KEY_VARIABLE
from serve_app.errors import ParameterRefused

SHAPES: Final = ("steady", "ramp", "spike", "churn", "overload", "soak")


def add_options(parser: argparse.ArgumentParser) -> None:
    """All but the shape itself and the address, which Locust calls its host."""
    add = parser.add_argument
    add("--sessions", type=int, default=16, help="callers at a time; overload: the server's capacity, 0 asks /info")
    add("--seconds", type=float, default=30.0, help="of the whole shape; soak counts in minutes")
    add("--minutes", type=float, default=30.0, help="soak: how long")
    add("--peak", type=int, default=0, help="spike: callers in the middle; twice as many by default")
    add("--connects", type=int, default=2_000, help="churn: sessions in all")
    add("--session-s", type=float, default=0.0, help="mean length of a session: churn 2, soak 60")
    add("--extra", type=int, default=50, help="overload: connects above capacity in each storm")
    add("--rounds", type=int, default=3, help="overload: quiet and storm so many times")
    add("--burst-s", type=float, default=1.0, help="overload: a storm's connects come within this; 0: at once")
    add("--patience", type=float, default=30.0, help="seconds that a caller waits in the queue")
    add("--speech", default="", help="WAV file to say; a synthetic voice without it")
    add("--aligned", action="store_true", help="all sessions send at the same instant, not spread over 80 ms")
    add("--tenants-keys", default="", metavar="FILE", help="YAML: a tenant's name to {key: ..., weight: 1}; mode 0600")
    add("--key-env", default=KEY_VARIABLE, metavar="NAME", help="variable with the key, and the operator's for /info")
    add("--ticket", action="store_true", help="trade the key for a ticket at /api/ticket first, as a page does")
    add("--p99-ms", type=float, default=Limits.p99_ms, help="latency that may be exceeded by one frame in 100")
    add("--deficit-frames", type=float, default=Limits.deficit_frames, help="frames that answers may be behind")
    add("--underrun-s", type=float, default=Limits.underrun_s, help="silence that a session may hear")
    add("--out", default="", metavar="FOLDER", help="report.json, report.html, latency.png, locust.html; out/load/...")
    add("--pids", default="", help="soak: processes to watch, with commas; a local server is found by its port")
    add("--sample-s", type=float, default=30.0, help="soak: seconds between looks at the server's processes")
    add("--report-json", action="store_true", help="the report as one line of JSON too, the last on stdout")


def course_of(shape: str, options: Any) -> Course:
    """The shape with its numbers.

    Raises:
        ParameterRefused: numbers that make none.
    """
    for name in ("sessions", "seconds", "minutes", "connects", "extra", "rounds"):
        if not getattr(options, name) > 0:
            raise ParameterRefused(f"--{name}", getattr(options, name), "must be above 0")
    sessions, seconds = options.sessions, options.seconds
    match shape:
        case "steady":
            return Steady(sessions=sessions, seconds=seconds)
        case "ramp":
            return Ramp(sessions=sessions, seconds=seconds)
        case "spike":
            return Spike(sessions=sessions, peak=options.peak or 2 * sessions, seconds=seconds)
        case "churn":
            return Churn(sessions=sessions, connects=options.connects, session_s=options.session_s or 2.0)
        case "overload":
            course = Overload(
                sessions=sessions, extra=options.extra, seconds=seconds, rounds=options.rounds, burst_s=options.burst_s
            )
            if course.window_s <= course.burst_s:
                raise ParameterRefused("--seconds", seconds, "leaves no time for a storm in each round")
            return course
        case "soak":
            return Soak(sessions=sessions, seconds=60 * options.minutes, session_s=options.session_s or 60.0)
        case _:
            raise ParameterRefused("shape", shape, f"must be one of {', '.join(SHAPES)}")


def limits_of(options: Any) -> Limits:
    """What is still good."""
    return Limits(p99_ms=options.p99_ms, deficit_frames=options.deficit_frames, underrun_s=options.underrun_s)


def keys_of(options: Any) -> Keyring:
    """Whose keys the callers present.

    Raises:
        ConfigError: no such variable, or a wrong file.
    """
    if options.tenants_keys:
        return Keyring.read(Path(options.tenants_keys))
    return Keyring.of_variable(options.key_env)
