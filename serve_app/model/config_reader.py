"""Reading a config.json key by key, so that all its problems can be told at once."""

from collections.abc import Iterable, Mapping
from typing import Any


class ConfigReader:
    """Typed reading of a JSON object; remembers what was asked for and every problem.

    Attributes:
        known: keys that may be there; every key that is asked for becomes one.
        problems: what was wrong so far, each as ``key: why``; reading goes on with a value that fits.
    """

    def __init__(self, config: Mapping[str, Any], known: Iterable[str]) -> None:
        self.config = config
        self.known = set(known)
        self.problems: list[str] = []

    def has(self, key: str) -> bool:
        self.known.add(key)
        return self.config.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            return int(self._wrong(key, value, "a non-negative integer", 0))
        return value

    def number(self, key: str, default: float) -> float:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return float(self._wrong(key, value, "a positive number", 1.0))
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self._get(key, default)
        return value if isinstance(value, bool) else bool(self._wrong(key, value, "true or false", False))

    def name(self, key: str, names: frozenset[str], default: str) -> Any:
        value = self._get(key, default)
        if value not in names:
            return self._wrong(key, value, f"one of {', '.join(sorted(names))}", default)
        return value

    def integers(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        value = self._get(key, list(default))
        if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
            self._wrong(key, value, "a list of non-negative integers", None)
            return default
        return tuple(value)

    def unknown(self) -> list[str]:
        return [f"{key}: unknown key" for key in sorted(set(self.config) - self.known)]

    def _get(self, key: str, default: Any) -> Any:
        self.known.add(key)
        value = self.config.get(key)
        return default if value is None else value

    def _wrong(self, key: str, value: Any, want: str, instead: Any) -> Any:
        said = "missing" if value is None else f"got {str(value)[:60]!r}"
        self.problems.append(f"{key}: {said}, want {want}")
        return instead
