"""A whole file: Ray's part, and the args of every application in it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self

import pydantic
import yaml

from serve_app.config.engine import EngineSettings
from serve_app.config.environment import LogFormat
from serve_app.config.gateway import GatewaySettings
from serve_app.config.hosts import LOOPBACK, is_loopback
from serve_app.config.settings import Settings, checked
from serve_app.errors import ConfigError

ENGINE_APPLICATION: Final = "engine"
GATEWAY_APPLICATION: Final = "gateway"
APPLICATION_NAME: Final = r"^(gateway|engine(-[a-z0-9]+)*)$"

PACKAGE: Final = Path(__file__).parents[1]


class HttpSettings(Settings):
    """Ray's ``http_options``, with our defaults: loopback."""

    host: str = LOOPBACK
    port: int = pydantic.Field(8998, ge=0, le=65_535)
    root_path: str = ""
    request_timeout_s: None = None  # a conversation is one request: a limit here would cut it
    keep_alive_timeout_s: int = pydantic.Field(90, ge=1)

    @property
    def loopback(self) -> bool:
        return is_loopback(self.host)


class ApplicationSettings(Settings):
    """One entry of Ray's ``applications``."""

    name: str = pydantic.Field(pattern=APPLICATION_NAME)
    route_prefix: str | None = None
    import_path: str
    args: dict[str, Any] = pydantic.Field(default_factory=dict)
    runtime_env: dict[str, Any] = pydantic.Field(default_factory=dict)


class ServeSettings(Settings):
    """A whole file: Ray's keys that we use, and our applications: engines of each model, and gateways.

    Attributes:
        logs: how every process of ours logs. Read by ``serve_app up`` alone, since Ray ignores it; None leaves it to
            the environment.
    """

    logs: LogFormat | None = None
    proxy_location: Literal["HeadOnly", "EveryNode"] = "HeadOnly"
    http_options: HttpSettings = HttpSettings()
    logging_config: dict[str, Any] | None = None
    applications: tuple[ApplicationSettings, ...]

    @pydantic.model_validator(mode="after")
    def _all_applications(self) -> Self:
        names = sorted(application.name for application in self.applications)
        if {ENGINE_APPLICATION, GATEWAY_APPLICATION} - set(names) or len(set(names)) < len(names):
            raise ValueError(
                "needs the applications engine and gateway, once each, and may have others called engine-NAME; "
                f"has {', '.join(names) or 'none'}"
            )
        return self

    @property
    def engine_applications(self) -> list[str]:
        """Names of those that are engines, that of the first model first."""
        names = [application.name for application in self.applications if application.name != GATEWAY_APPLICATION]
        return sorted(names, key=lambda name: name != ENGINE_APPLICATION)

    def args(self, name: str) -> dict[str, Any]:
        """The args of one application as written."""
        return next(application.args for application in self.applications if application.name == name)


class Config(pydantic.BaseModel):
    """A checked file: Ray's part and every application's args.

    Attributes:
        engines: application to its args; the first is who answers where nobody names a model.
    """

    model_config = pydantic.ConfigDict(frozen=True)

    path: Path
    serve: ServeSettings
    engines: dict[str, EngineSettings]
    gateway: GatewaySettings

    @property
    def engine(self) -> EngineSettings:
        """Of the first model."""
        return self.engines[ENGINE_APPLICATION]

    def engine_of(self, model: str | None) -> EngineSettings:
        """Of the model of this name; None is the first one. Raises ConfigError: there is none of this name."""
        if model is None:
            return self.engine
        found = next((engine for engine in self.engines.values() if engine.name == model), None)
        if found is None:
            raise ConfigError(
                str(self.path), f"has no model {model}; it has {', '.join(self.models) or 'one, unnamed'}"
            )
        return found

    @property
    def models(self) -> tuple[str, ...]:
        """What the models are called, where there are several; none where there is one, which may go without."""
        return tuple(engine.name for engine in self.engines.values() if engine.name) if len(self.engines) > 1 else ()


def read_config(path: Path) -> Config:
    """Read and check a deployment file. A relative one that is not here is sought in the package, as the shipped are.

    Raises:
        ConfigError: cannot be read, no YAML, or a key is unknown, missing or out of range; names the file and the key.
    """
    try:
        content = yaml.safe_load(located_file(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(str(path), f"is not YAML: {error}") from error
    serve = checked(ServeSettings, content, str(path))
    where = f"{path}: applications.{{}}.args"
    engines = {
        name: checked(EngineSettings, serve.args(name), where.format(name)) for name in serve.engine_applications
    }
    _require_names(engines, where)
    return Config(
        path=path,
        serve=serve,
        engines=engines,
        gateway=checked(GatewaySettings, serve.args(GATEWAY_APPLICATION), where.format(GATEWAY_APPLICATION)),
    )


def located_file(path: Path) -> Path:
    """The path, or where the package has a file of this name when there is none here."""
    shipped = PACKAGE / path
    return shipped if not path.exists() and shipped.exists() else path


def _require_names(engines: Mapping[str, EngineSettings], where: str) -> None:
    """Clients choose a model by its name. Raises ConfigError."""
    owners: dict[str | None, str] = {}
    for application, engine in engines.items() if len(engines) > 1 else ():
        if engine.name is None:
            raise ConfigError(where.format(application), "name: missing; where there are several models each needs one")
        if engine.name in owners:
            raise ConfigError(where.format(application), f"name: {engine.name} is {owners[engine.name]}'s already")
        owners[engine.name] = application
