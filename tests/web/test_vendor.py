import hashlib
import re
from pathlib import Path

import pytest

VENDOR = Path(__file__).parents[2] / "web" / "vendor" / "opus-recorder"
SUMS = dict(re.findall(r"\| `([\w.]+)` \|.*\| `([0-9a-f]{64})` \|", (VENDOR / "VENDOR.md").read_text()))


def test_every_vendored_file_is_listed() -> None:
    assert {path.name for path in VENDOR.iterdir()} == {*SUMS, "VENDOR.md"}


@pytest.mark.parametrize("name", sorted(SUMS))
def test_a_vendored_file_is_as_published(name: str) -> None:
    assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == SUMS[name]
