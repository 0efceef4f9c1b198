"""What is not in a file: keys, the way of logging, the proxy. The one place that reads the environment."""

import os
from typing import Final, Literal

from serve_app.config.hosts import is_loopback
from serve_app.errors import ConfigError

KEY_VARIABLE: Final = "CHORUS_KEY"
OPERATOR_KEY_VARIABLE: Final = "CHORUS_OPERATOR_KEY"
LOGS_VARIABLE: Final = "CHORUS_LOGS"
HA_PROXY_VARIABLE: Final = "RAY_SERVE_ENABLE_HA_PROXY"
MIN_KEY_CHARACTERS: Final = 16

LogFormat = Literal["text", "json"]


def access_key() -> str | None:
    """The key that clients must present, from the environment; ``None`` when there is none.

    Raises:
        ConfigError: shorter than 16 characters.
    """
    return _key_in(KEY_VARIABLE)


def operator_key() -> str | None:
    """The key that opens what only the operator may see, from the environment; ``None``: there is nothing to see.

    Raises:
        ConfigError: shorter than 16 characters.
    """
    return _key_in(OPERATOR_KEY_VARIABLE)


def _key_in(variable: str) -> str | None:
    key = os.environ.get(variable) or None
    if key is not None and len(key) < MIN_KEY_CHARACTERS:
        raise ConfigError(variable, f"must have at least {MIN_KEY_CHARACTERS} characters")
    return key


def require_key_beyond_loopback(host: str) -> None:
    """Refuse to listen where others can reach us without a key. Asked before Ray starts, and by every replica.

    Raises:
        ConfigError: the host is not loopback and no key is set.
    """
    if not is_loopback(host) and access_key() is None:
        raise ConfigError("http_options.host", f"{host} is not loopback: set a key in {KEY_VARIABLE} first")


def log_format() -> LogFormat:
    """How this process logs, from the environment; text where it does not say.

    Raises:
        ConfigError: neither text nor json.
    """
    match os.environ.get(LOGS_VARIABLE) or "text":
        case "text":
            return "text"
        case "json":
            return "json"
        case other:
            raise ConfigError(LOGS_VARIABLE, f"must be text or json, not {other[:16]!r}")


def proxy_mode() -> Literal["haproxy", "python"]:
    """Which proxy Ray Serve was started with in this process."""
    return "haproxy" if os.environ.get(HA_PROXY_VARIABLE) == "1" else "python"
