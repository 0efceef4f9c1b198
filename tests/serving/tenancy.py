"""Tenants for a deployment under test: their file, keys that are made as it runs, and a ledger, all in one folder."""

import secrets
import time
from pathlib import Path
from typing import Any

from serve_app.accounts.keys_file import KeysFile


def tenancy(folder: Path, tenants: str) -> tuple[KeysFile, dict[str, Any]]:
    """The keys' file, and what the gateway's ``tenants`` says; both files are read again a few times a second."""
    (folder / "tenants.yaml").write_text(tenants)
    said = {
        "file": str(folder / "tenants.yaml"),
        "keys": str(folder / "keys.json"),
        "ledger": f"sqlite:///{folder / 'ledger.sqlite'}",
        "reload_s": 0.2,
    }
    return KeysFile(folder / "keys.json", time.time, secrets.token_bytes), said
