"""One shape of load against a server, and its verdict.

    python -m load_tests.run steady --url http://localhost:8998 --sessions 16 --seconds 30
    python -m load_tests.run overload --sessions 0 --workers 2 --tenants-keys keys.yaml

Starts Locust headless, with workers as processes of their own where asked. Exit status: 0 pass, 1 fail, 2 the generator
was too slow to tell, 3 it could not be run.
"""

import argparse
import datetime
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from load_tests import server
from load_tests.keyring import Keyring
from load_tests.options import SHAPES, add_options, course_of, keys_of
from serve_app.errors import ChorusError, ParameterRefused
from serve_app.serving.environment import free_port

LOCUSTFILE: Final = Path(__file__).with_name("locustfile.py")
NOT_RUN: Final = 3
STOP_S: Final = 8
"""A caller that Locust takes away may say so long what it has to say."""


class Parser(argparse.ArgumentParser):
    """A wrong word is not a slow generator: its status is another."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(NOT_RUN, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """What the command takes."""
    made = Parser(
        prog="python -m load_tests.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("shape", choices=SHAPES)
    made.add_argument("--url", default="http://localhost:8998")
    made.add_argument("--workers", type=int, default=0, help="Locust workers as processes; 0: one process for all")
    add_options(made)
    return made


def command(argv: Sequence[str]) -> list[str]:
    """Locust's command line. No key is in it: names of a file and a variable alone.

    Raises:
        ChorusError: the options make no shape, or the server does not tell what the shape has to know.
    """
    options, _ = parser().parse_known_args(argv)
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("shape")
    own.add_argument("--url")
    own.add_argument("--workers")
    passed = own.parse_known_args(argv)[1]
    operator = Keyring.of_variable(options.key_env).headers("")
    if options.shape == "overload" and options.sessions == 0:
        capacity = server.slots(options.url, operator)
        if capacity.used:
            raise ParameterRefused("--sessions", 0, f"{capacity.used} slots are used; stop those sessions first")
        options.sessions = capacity.total
        passed += ["--sessions", str(capacity.total)]
    if options.shape == "churn":
        server.slots(options.url, operator)  # asked again when all are gone
    course_of(options.shape, options)
    keys_of(options)
    if not options.out:
        options.out = f"out/load/{options.shape}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}"
        passed += ["--out", options.out]
    Path(options.out).mkdir(parents=True, exist_ok=True)
    return [
        *(sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"),
        *("--host", options.url, "--shape", options.shape, "--html", str(Path(options.out) / "locust.html")),
        *("--stop-timeout", str(STOP_S), "--exit-code-on-error", "0", "--loglevel", "WARNING"),
        *(("--processes", str(options.workers)) if options.workers else ()),
        *(("--master-bind-port", str(port), "--master-port", str(port)) if (port := _port(options.workers)) else ()),
        *passed,
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser().parse_args(words)
    try:
        line = command(words)
    except ChorusError as error:
        print(f"load_tests: {error}", file=sys.stderr)
        return NOT_RUN
    return _played(line)


def _played(line: Sequence[str]) -> int:
    """Run Locust to its end, which is ours: who stops us means its callers, too. Returns its exit status."""
    with subprocess.Popen(line) as locust:
        try:
            return locust.wait()
        finally:
            locust.terminate()


def _port(workers: int) -> int:
    return free_port("127.0.0.1", 0) if workers else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
