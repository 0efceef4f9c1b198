"""The tenants' file: YAML, every key known, read again while the server runs. A wrong one changes nothing, loudly."""

import logging
from collections.abc import Hashable
from pathlib import Path
from typing import Annotated, Any, Final

import pydantic
import yaml

from serve_app.admission.tenants import NAME, Tenant, Tenants
from serve_app.config import Settings, checked
from serve_app.errors import ConfigError

MAX_FILE_BYTES: Final = 4 << 20
DAY_S: Final = 86_400.0
ORIGIN: Final = r"https?://[a-z0-9.:\[\]-]+"

logger = logging.getLogger(__name__)

TenantName = Annotated[str, pydantic.StringConstraints(pattern=f"^{NAME.pattern}$")]
Origin = Annotated[str, pydantic.StringConstraints(pattern=f"^{ORIGIN}$")]
Word = Annotated[str, pydantic.StringConstraints(min_length=1, max_length=100)]


class TenantSettings(Settings):
    """What stands under one tenant's name; `admission.tenants.Tenant` says what each is, and has these defaults."""

    weight: float = pydantic.Field(1.0, ge=1e-3, le=1e3, allow_inf_nan=False)
    concurrent_sessions: int = pydantic.Field(4, ge=0, le=1_000_000)
    sessions_per_minute: float = pydantic.Field(30.0, gt=0, le=1e6, allow_inf_nan=False)
    audio_s_per_day: float = pydantic.Field(36_000.0, ge=0, allow_inf_nan=False)
    longest_s: float = pydantic.Field(3_600.0, gt=0, le=DAY_S, allow_inf_nan=False)
    models: frozenset[Word] | None = None
    parameters: frozenset[Word] | None = None
    origins: frozenset[Origin] = frozenset()


class TenantsSettings(Settings):
    """The whole file."""

    tenants: dict[TenantName, TenantSettings]

    @property
    def read(self) -> Tenants:
        return Tenants(Tenant(name=name, **dict(settings)) for name, settings in self.tenants.items())


class TenantsFile:
    """The tenants of now. Not thread-safe; the value is immutable and may go anywhere.

    Raises:
        ConfigError: at the first reading as at every other: names the file and the key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tenants = read_tenants(path)

    @property
    def tenants(self) -> Tenants:
        """As of the last reading that succeeded."""
        return self._tenants

    def reload(self) -> Tenants:
        """Read again. When that fails the old tenants stay.

        Raises:
            ConfigError: as logged; names the file and the key.
        """
        try:
            self._tenants = read_tenants(self._path)
        except ConfigError as error:
            logger.error("the tenants of before stay (%d): %s", len(self._tenants), error)
            raise
        logger.info("%d tenants read from %s", len(self._tenants), self._path)
        return self._tenants


def read_tenants(path: Path) -> Tenants:
    """Read and check a tenants' file.

    Raises:
        ConfigError: cannot be read, too large, no YAML, or a key is unknown, twice there, missing or out of range.
    """
    try:
        content = path.read_bytes()
        if len(content) > MAX_FILE_BYTES:
            raise ConfigError(str(path), f"has {len(content)} bytes, {MAX_FILE_BYTES} are allowed")
        tree = yaml.load(content.decode(), _NoDuplicates)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # ValueError: a date or number that is none
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    return checked(TenantsSettings, tree, str(path)).read


class _NoDuplicates(yaml.SafeLoader):
    """A name that stands there twice is an error: YAML would silently let the second win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[object] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
