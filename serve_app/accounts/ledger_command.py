"""``serve_app ledger``: what tenants spoke, by day, as CSV."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from typing import Final

from serve_app.accounts.ledger import Ledger
from serve_app.errors import ChorusError

DEFAULT_URL: Final = "sqlite:///ledger.sqlite"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``serve_app ledger``. Returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        ledger = Ledger(options.url)
        try:
            ledger.write_csv(sys.stdout, options.tenant, options.first, options.last)
        finally:
            ledger.close()
    except ChorusError as error:
        print(f"serve_app ledger: {error}", file=sys.stderr)  # noqa: T201
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app ledger", description="Seconds of conversation by tenant and day.")
    parser.add_argument("--url", default=DEFAULT_URL, help=f"of the database; default: {DEFAULT_URL}")
    parser.add_argument("--tenant", help="only this one")
    parser.add_argument("--first", type=_day, default="0001-01-01", help="day, such as 2026-11-01")
    parser.add_argument("--last", type=_day, default="9999-12-31", help="day, included")
    return parser


def _day(text: str) -> str:
    return datetime.date.fromisoformat(text).isoformat()
