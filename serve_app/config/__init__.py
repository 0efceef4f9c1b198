"""What a deployment is made of, read once from YAML and frozen.

The file is Ray Serve's own format with our applications, so that ``serve run FILE`` and ``serve_app up FILE`` read the
same words. Ray checks its part loosely and knows nothing of ours; here every key is known or nothing starts.
Defaults are safe, local and small. This is also the one place that reads the environment.
"""

from serve_app.config.deployment import (
    ENGINE_APPLICATION,
    GATEWAY_APPLICATION,
    ApplicationSettings,
    Config,
    located_file,
    read_config,
)
from serve_app.config.engine import CheckpointSettings, EngineSettings, PromptSettings, ScalingSettings
from serve_app.config.environment import (
    HA_PROXY_VARIABLE,
    KEY_VARIABLE,
    LOGS_VARIABLE,
    OPERATOR_KEY_VARIABLE,
    access_key,
    log_format,
    operator_key,
    proxy_mode,
    require_key_beyond_loopback,
)
from serve_app.config.gateway import GatewaySettings, TenancySettings
from serve_app.config.hosts import LOOPBACK, is_loopback
from serve_app.config.settings import Settings, checked

__all__ = [
    "ENGINE_APPLICATION",
    "GATEWAY_APPLICATION",
    "HA_PROXY_VARIABLE",
    "KEY_VARIABLE",
    "LOGS_VARIABLE",
    "LOOPBACK",
    "OPERATOR_KEY_VARIABLE",
    "ApplicationSettings",
    "CheckpointSettings",
    "Config",
    "EngineSettings",
    "GatewaySettings",
    "PromptSettings",
    "ScalingSettings",
    "Settings",
    "TenancySettings",
    "access_key",
    "checked",
    "is_loopback",
    "located_file",
    "log_format",
    "operator_key",
    "proxy_mode",
    "read_config",
    "require_key_beyond_loopback",
]
