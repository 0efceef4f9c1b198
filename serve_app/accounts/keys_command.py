"""``serve_app keys create|revoke|list``: the operator's way to a tenant's keys."""

import argparse
import datetime
import secrets
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from serve_app.accounts.keys_file import KeysFile
from serve_app.admission.credentials import KeyRecord
from serve_app.admission.tenants import NAME
from serve_app.errors import ChorusError

DAY_S: Final = 86_400.0


def main(arguments: Sequence[str] | None = None, wall: Callable[[], float] = time.time) -> int:
    """Run ``serve_app keys``. Returns the exit status. A new key goes to standard output, once."""
    options = _parser().parse_args(arguments)
    file = KeysFile(options.file, wall, secrets.token_bytes)
    try:
        match options.verb:
            case "create":
                new = file.create(options.tenant, None if options.days is None else options.days * DAY_S)
                print(new.text)  # noqa: T201
                _tell(f"key {new.record.key} of {new.record.tenant}: shown this once, only its hash is kept")
            case "revoke":
                _tell(f"revoked: {_line(file.revoke(options.key), wall())}")
            case _:
                for record in file.read():
                    if options.tenant in (None, record.tenant):
                        print(_line(record, wall()))  # noqa: T201
    except ChorusError as error:
        _tell(f"serve_app keys: {error}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="serve_app keys", description="Keys of tenants; the file holds hashes only.")
    parser.add_argument("--file", type=Path, default=Path("keys.json"), help="default: keys.json")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    create = verbs.add_parser("create", help="make a key and print it")
    create.add_argument("tenant", type=_tenant)
    create.add_argument("--days", type=_days, help="how long it is good for; else until it is revoked")
    revoke = verbs.add_parser("revoke", help="end a key")
    revoke.add_argument("key", help="the id that list shows")
    listing = verbs.add_parser("list", help="every key's id, tenant, dates and state")
    listing.add_argument("tenant", nargs="?", type=_tenant)
    return parser


def _tenant(text: str) -> str:
    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError("a tenant's name has small letters, digits, - and _")
    return text


def _days(text: str) -> float:
    days = float(text)
    if not 0 < days <= 36_500:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 36500")
    return days


def _line(record: KeyRecord, now_s: float) -> str:
    if record.revoked_s is not None:
        state = f"revoked {_date(record.revoked_s)}"
    elif not record.valid(now_s):
        state = f"expired {_date(record.expires_s)}"
    else:
        state = "valid" if record.expires_s is None else f"valid until {_date(record.expires_s)}"
    return f"{record.key}  {record.tenant:<20}  created {_date(record.created_s)}  {state}"


def _date(unix_s: float | None) -> str:
    return (
        "never" if unix_s is None else datetime.datetime.fromtimestamp(unix_s, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr)  # noqa: T201
