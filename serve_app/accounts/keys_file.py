"""The keys' file: hashes, dates and owners as JSON. Written whole or not at all, readable by its owner alone."""

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final, Literal

import pydantic

from serve_app.accounts.tenants_file import TenantName
from serve_app.admission.credentials import ID_BYTES, KeyRecord, KeyRing, NewKey, Randomness, mint_key
from serve_app.config import Settings, checked
from serve_app.errors import ConfigError

VERSION: Final = 1
MODE: Final = 0o600
FOREIGN_WRITERS: Final = stat.S_IWGRP | stat.S_IWOTH

Seconds = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]


class RecordSettings(Settings):
    """One key, as `admission.credentials.KeyRecord`."""

    key: Annotated[str, pydantic.StringConstraints(pattern=f"^[0-9a-f]{{{2 * ID_BYTES}}}$")]
    tenant: TenantName
    digest: Annotated[str, pydantic.StringConstraints(pattern="^[0-9a-f]{64}$")] = pydantic.Field(repr=False)
    created_s: Seconds
    expires_s: Seconds | None = None
    revoked_s: Seconds | None = None


class KeysSettings(Settings):
    """The whole file."""

    version: Literal[1]
    keys: tuple[RecordSettings, ...]

    @pydantic.field_validator("keys")
    @classmethod
    def _differ(cls, keys: tuple[RecordSettings, ...]) -> tuple[RecordSettings, ...]:
        if len({record.key for record in keys}) < len(keys):
            raise ValueError("an id stands there twice")
        return keys


class KeysFile:
    """Keys on disk. Several processes may change one file: each change holds a lock file beside it.

    Args:
        path: of the file; it need not exist, its folder must.
        wall: Unix seconds.
        random: as `secrets.token_bytes`.
    """

    def __init__(self, path: Path, wall: Callable[[], float], random: Randomness) -> None:
        self._path = path
        self._wall = wall
        self._random = random

    def ring(self) -> KeyRing:
        """Every key, for a gate.

        Raises:
            ConfigError: cannot be read, others may write it, or it is not what we wrote; never shows a digest.
        """
        return KeyRing(self.read(), self._wall)

    def read(self) -> list[KeyRecord]:
        """Every record, oldest first; none where there is no file yet. Raises ConfigError as `ring`."""
        try:
            with self._path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ConfigError(str(self._path), f"cannot be read: {error}") from error
        if mode & FOREIGN_WRITERS:
            raise ConfigError(str(self._path), f"others than its owner may write it; chmod {MODE:o}")
        try:
            tree = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ConfigError(str(self._path), "is not JSON") from error
        return [KeyRecord(**dict(record)) for record in checked(KeysSettings, tree, str(self._path)).keys]

    def create(self, tenant: str, life_s: float | None = None) -> NewKey:
        """Make a key and keep its hash. Raises ConfigError, as `ring`, or when the file cannot be written."""
        with self._locked():
            records, taken = self.read(), {record.key for record in self.read()}
            new = mint_key(tenant, self._random, self._wall(), life_s)
            while new.record.key in taken:
                new = mint_key(tenant, self._random, self._wall(), life_s)
            self._write([*records, new.record])
        return new

    def revoke(self, key: str) -> KeyRecord:
        """End a key now; ending it twice changes nothing.

        Raises:
            ConfigError: as `create`, or there is no key of that id.
        """
        with self._locked():
            records = {record.key: record for record in self.read()}
            if key not in records:
                raise ConfigError(str(self._path), f"has no key {key[:64]!r}")
            if records[key].revoked_s is None:
                fields = {name: getattr(records[key], name) for name in RecordSettings.model_fields}
                records[key] = KeyRecord(**(fields | {"revoked_s": self._wall()}))
                self._write(records.values())
        return records[key]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, MODE)
        except OSError as error:
            raise ConfigError(str(self._path), f"cannot be changed: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _write(self, records: Iterable[KeyRecord]) -> None:
        names = list(RecordSettings.model_fields)
        tree = {"version": VERSION, "keys": [{name: getattr(r, name) for name in names} for r in records]}
        try:
            # mkstemp makes it with mode 0600, so the content is never readable by others, not even for a moment.
            handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(tree, file, indent=1)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, self._path)
            except BaseException:
                os.unlink(name)
                raise
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise ConfigError(str(self._path), f"cannot be written: {error}") from error
