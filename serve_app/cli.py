"""The command line: ``serve_app up`` and the others below. Each command imports what it needs when it runs."""

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from serve_app.errors import ChorusError

ELSEWHERE: Final[Mapping[str, tuple[str, str]]] = {
    "talk": ("serve_app.client.talk", "speak a WAV file to a server and record the answer"),
    "run": ("serve_app.offline.command", "recordings through a model, many at once, without a server"),
    "simulate": ("serve_app.engine.simulation_command", "latencies of the engine's schedule, without a model"),
    "plan": ("serve_app.checkpoint.plan", "say how much memory a configuration needs, without loading it"),
    "keys": ("serve_app.accounts.keys_command", "create, revoke and list the keys of tenants"),
    "ledger": ("serve_app.accounts.ledger_command", "print what tenants spoke, by day, as CSV"),
    "fleet": ("serve_app.fleet.command", "simulate a fleet: how many engines for how many callers"),
    "quality": ("serve_app.bench.quality", "say what 8 bits and a bf16 codec cost"),
    "bench": ("serve_app.bench.command", "time a model's tick against the device's limit and the reference"),
}
"""Commands that read their own arguments: module with a ``main`` of them, and what they do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; an error that we know is one line on standard error."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words and words[0] in ELSEWHERE:
            return int(importlib.import_module(ELSEWHERE[words[0]][0]).main(words[1:]))
        return _up(_parser().parse_args(words))
    except ChorusError as error:
        print(f"serve_app: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app", description="Serves conversations with Moshi models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    up = commands.add_parser("up", help="start a deployment on this machine and keep it until Ctrl-C")
    up.add_argument("config", type=Path, help="such as configs/demo.yaml")
    up.add_argument("--port", type=int, help="in place of the file's; another is taken when it is not free")
    for name, (_, told) in ELSEWHERE.items():
        commands.add_parser(name, help=told)
    return parser


def _up(options: argparse.Namespace) -> int:
    from serve_app.config import read_config
    from serve_app.serving.launcher import Launcher

    return Launcher(read_config(options.config), options.port, _say).run()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
