"""The command line: ``serve_app up``, ``talk``, ``plan``. Each command imports what it needs when it runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serve_app.errors import ChorusError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; an error that we know is one line on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
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
    up.set_defaults(run=_up)
    return parser


def _up(options: argparse.Namespace) -> int:
    from serve_app.config import read_config
    from serve_app.serving.launcher import Launcher

    return Launcher(read_config(options.config), options.port, _say).run()


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
