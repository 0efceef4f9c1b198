"""Whose key a user presents: from a file or the environment, never from the command line or in an address.

The file is YAML, readable by its owner alone:

    acme: {key: "chorus_...", weight: 2}
    globex: {key: "chorus_..."}
"""

import dataclasses
import itertools
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, Self

import pydantic
import yaml

from serve_app.config import KEY_VARIABLE, Settings, checked
from serve_app.errors import ConfigError

READABLE_BY_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Holder(Settings):
    """One tenant of the file.

    Attributes:
        key: as ``serve_app keys create`` printed it.
        weight: share of the users, relative to the others'.
    """

    key: pydantic.SecretStr = pydantic.Field(min_length=1)
    weight: float = pydantic.Field(1.0, gt=0, allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Keyring:
    """Keys by tenant. Prints none.

    Attributes:
        holders: a tenant's name to its key and weight; empty where the server asks for no key.
    """

    holders: Mapping[str, Holder]

    @classmethod
    def read(cls, path: Path) -> Self:
        """A file of tenants.

        Raises:
            ConfigError: unreadable, wrong, or readable by others than its owner. Never shows a key.
        """
        try:
            if path.stat().st_mode & READABLE_BY_OTHERS:
                raise ConfigError(str(path), "others than its owner may read it: chmod 600")
            content = yaml.safe_load(path.read_text())
        except OSError as error:
            raise ConfigError(str(path), error.strerror or "cannot be read") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ConfigError(str(path), "is not YAML") from None  # its message may quote a key
        if not isinstance(content, Mapping) or not content:
            raise ConfigError(str(path), "must be a mapping of tenants to their key and weight")
        return cls({str(name): checked(Holder, entry, f"{path}: {name}") for name, entry in content.items()})

    @classmethod
    def of_variable(cls, variable: str = KEY_VARIABLE) -> Self:
        """The one key of the environment, or none where the variable is not set.

        Raises:
            ConfigError: another variable than the usual one was named, and it is empty.
        """
        key = os.environ.get(variable)
        if not key and variable != KEY_VARIABLE:
            raise ConfigError(variable, "is not set in the environment")
        return cls({"": Holder(key=pydantic.SecretStr(key))} if key else {})

    def holder(self, user: int) -> str:
        """Whose key a user presents, by its number: "" where there are no tenants."""
        names = in_turn({name: holder.weight for name, holder in self.holders.items()})
        return next(itertools.islice(names, user, None), "")

    def headers(self, tenant: str) -> dict[str, str]:
        """What a tenant's requests carry."""
        holder = self.holders.get(tenant)
        return {"Authorization": f"Bearer {holder.key.get_secret_value()}"} if holder else {}


def in_turn(weights: Mapping[str, float]) -> Iterator[str]:
    """Names for ever, each as often as its weight says: after n of them everybody has its share, rounded down."""
    served = dict.fromkeys(weights, 0)
    while served:
        # D'Hondt's rule: of all divisions by weight the one that rounds nobody's share below its floor.
        name = min(served, key=lambda name: ((served[name] + 1) / weights[name], name))
        served[name] += 1
        yield name
