"""The files and the database of a deployment with tenants, opened together."""

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Self

from serve_app.accounts.keys_file import KeysFile
from serve_app.accounts.ledger import Ledger
from serve_app.accounts.tenants_file import TenantsFile
from serve_app.admission.credentials import KeyRing, Randomness
from serve_app.admission.tenants import Tenants
from serve_app.config import TenancySettings, located_file
from serve_app.errors import ConfigError

Look = tuple[tuple[int, ...] | None, ...]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(slots=True)
class Books:
    """Tenants and keys as of the last reading that succeeded, and the ledger. Every call blocks on the disk."""

    tenants_file: TenantsFile
    keys_file: KeysFile
    ledger: Ledger
    ring: KeyRing
    paths: tuple[Path, ...]
    look: Look

    @classmethod
    def open(cls, settings: TenancySettings, wall: Callable[[], float], random: Randomness) -> Self:
        """Open all three. Raises ConfigError: names the file and the key, and shows no address of a database."""
        paths = (located_file(Path(settings.file)), Path(settings.keys))
        look = _look(paths)
        keys = KeysFile(paths[1], wall, random)
        return cls(TenantsFile(paths[0]), keys, Ledger(settings.ledger), keys.ring(), paths, look)

    @property
    def tenants(self) -> Tenants:
        return self.tenants_file.tenants

    def reload(self) -> bool:
        """Read what changed on the disk; a file that is wrong changes nothing, loudly. Whether anything is new."""
        look = _look(self.paths)
        if look == self.look:
            return False
        self.look = look
        with contextlib.suppress(ConfigError):  # said by the file
            self.tenants_file.reload()
        try:
            if look[1] is None and any(self.ring):  # before the first key there is no file; after it that is a mistake
                raise ConfigError(str(self.paths[1]), "is gone")
            self.ring = self.keys_file.ring()
        except ConfigError as error:
            logger.error("the keys of before stay: %s", error)
        return True


def _look(paths: tuple[Path, ...]) -> Look:
    return tuple(_stamp(path) for path in paths)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What changes with a file; the time of its last change of any kind, so that a new mode is seen too."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size
