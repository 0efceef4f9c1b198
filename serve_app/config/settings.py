"""A group of keys: frozen, every one of them known; what is wrong with one is said with its name."""

from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic

from serve_app.errors import ConfigError

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(pydantic.BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


def checked(kind: type[SettingsT], content: object, where: str) -> SettingsT:
    """Validate what YAML gave.

    Raises:
        ConfigError: every problem, each with its key.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(where, "must be a mapping of keys to values")
    try:
        return kind.model_validate(dict(content))
    except pydantic.ValidationError as error:
        problems = [f"{_key(problem['loc'])}: {_why(problem)}" for problem in error.errors(include_url=False)]
        raise ConfigError(where, "; ".join(problems)) from None


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"


def _why(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "missing":
        return "missing"
    return str(problem["msg"]).removeprefix("Value error, ")
