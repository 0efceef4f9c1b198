"""What a deployment is made of, read once from YAML and frozen.

The file is Ray Serve's own format with our applications, so that ``serve run FILE`` and ``serve_app up FILE`` read the
same words. Ray checks its part loosely and knows nothing of ours; here every key is known or nothing starts.
Defaults are safe, local and small. This is also the one place that reads the environment.
"""

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

import pydantic
import yaml

from serve_app.errors import ConfigError

KEY_VARIABLE: Final = "CHORUS_KEY"
OPERATOR_KEY_VARIABLE: Final = "CHORUS_OPERATOR_KEY"
LOGS_VARIABLE: Final = "CHORUS_LOGS"
HA_PROXY_VARIABLE: Final = "RAY_SERVE_ENABLE_HA_PROXY"
ENGINE_APPLICATION: Final = "engine"
GATEWAY_APPLICATION: Final = "gateway"
APPLICATION_NAME: Final = r"^(gateway|engine(-[a-z0-9]+)*)$"
MIN_KEY_CHARACTERS: Final = 16

PACKAGE: Final = Path(__file__).parent

LogFormat = Literal["text", "json"]

SettingsT = TypeVar("SettingsT", bound="Settings")


class Settings(pydantic.BaseModel):
    """A frozen group of keys; an unknown key is an error."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)


class CheckpointSettings(Settings):
    """Where the weights are: a local folder, a hub repository at a pinned revision, or a model that we know by name.

    Attributes:
        folder: in Kyutai's layout. A relative one is sought from the working directory, then beside the package.
        repository: ``owner/name`` on the hub.
        revision: the commit; required with a repository, because a branch moves. With a model it stands in for the
            card's own.
        model: name of a card in `configs/models`.
    """

    folder: str | None = None
    repository: str | None = None
    revision: str | None = None
    model: str | None = None

    @pydantic.model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum(source is not None for source in (self.folder, self.repository, self.model)) != 1:
            raise ValueError("give either folder, or repository and revision, or model")
        if self.model is None and (self.repository is None) != (self.revision is None):
            raise ValueError("repository and revision belong together")
        return self


class LinkSettings(Settings):
    """Where engines listen for gateways.

    Attributes:
        host: ``None`` is loopback while the cluster is this one node, else as ``node``: the address of the Ray node,
            for gateways on other nodes. Gateways connect to what stands here, so it cannot mean "every address".
        first_port, last_port: range to choose from; both 0 lets the kernel choose.
    """

    host: str | None = None
    first_port: int = pydantic.Field(0, ge=0, le=65_535)
    last_port: int = pydantic.Field(0, ge=0, le=65_535)

    @pydantic.field_validator("host")
    @classmethod
    def _one_address(cls, host: str | None) -> str | None:
        if host is not None and is_wildcard(host):
            raise ValueError(f"{host or 'an empty name'} means every address, and gateways need one to connect to")
        return host

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first_port > self.last_port:
            raise ValueError("first_port is above last_port")
        if self.first_port == 0 < self.last_port:
            raise ValueError("first_port 0 lets the kernel choose: last_port must be 0 too")
        return self


class LimitSettings(Settings):
    """Bounds of one engine; `engine.limits.Limits` says what each is, and has these defaults.

    Attributes:
        inbox_frames: frames of one session that may wait.
        lag_s: when more than this waits, the session is cut down to ``keep_frames``.
        keep_frames: what is left of a session that is cut.
        gap_s: frames further apart than this count as an underrun.
        overrun_s: a tick longer than this counts as an overrun.
        run_failures: consecutive failed ticks after which the engine is replaced.
    """

    inbox_frames: int = pydantic.Field(16, ge=1, le=1_024)
    lag_s: float = pydantic.Field(1.0, gt=0, le=60)
    keep_frames: int = pydantic.Field(2, ge=1, le=1_024)
    gap_s: float = pydantic.Field(0.16, gt=0, le=60)
    overrun_s: float = pydantic.Field(0.08, gt=0, le=60)
    run_failures: int = pydantic.Field(3, ge=1, le=1_000)

    @pydantic.model_validator(mode="after")
    def _room_to_keep(self) -> Self:
        if self.keep_frames > self.inbox_frames:
            raise ValueError("keep_frames is above inbox_frames")
        return self


class PaceSettings(Settings):
    """How eagerly an engine ticks; `engine.limits.Pace` says more.

    Attributes:
        gather_s: how long to wait for more rows once the first frame is there; 0 takes whoever is ready.
        interval_s: the least time from the start of one tick to the start of the next, whatever was measured.
        fixed_share: how much of the time the fixed part of ticks may take; the interval follows from what is measured.
        interval_limit_s: the longest interval that may follow.
    """

    gather_s: float = pydantic.Field(0.0, ge=0, le=0.08)
    interval_s: float = pydantic.Field(0.0, ge=0, le=0.08)
    fixed_share: float = pydantic.Field(0.8, gt=0, le=1)
    interval_limit_s: float = pydantic.Field(0.02, ge=0, le=0.08)


class PromptSettings(Settings):
    """What sessions may be told before they begin, and how the model was taught to read it.

    Attributes:
        voices: folder of WAV files, each a voice by its file's name. Read once at the start.
        wrap: what is put around a text, ``{}`` in its place.
        pause_steps: silence after the voice and after the text.
        own_silence, user_frame: codes of the model's own silence and of what the user's stream holds; ``None`` encodes
            silence with the checkpoint's codec.
        cache_mib: of memory for states that prompts have left, so that the same prompt costs the next session nothing.
    """

    voices: str | None = None
    wrap: str = "{}"
    pause_steps: int = pydantic.Field(6, ge=0, le=100)
    own_silence: tuple[int, ...] | None = None
    user_frame: tuple[int, ...] | None = None
    cache_mib: int = pydantic.Field(256, ge=0)

    @pydantic.field_validator("wrap")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        if value.count("{}") != 1:
            raise ValueError("needs {} once, where the text goes")
        return value

    @property
    def cache_bytes(self) -> int:
        return self.cache_mib << 20


class ScalingSettings(Settings):
    """How many engines of a model there are, by use; `admission.scaling.ScalingRules` has these defaults.

    Attributes:
        min_engines, max_engines: bounds.
        min_free: rows to keep free for those who come while another engine starts.
        tick_s: an engine is full where the measured curve predicts longer ticks.
        slack: an engine goes only if the others would do for so much more than is wanted.
        upscale_delay_s, downscale_delay_s: more, or fewer, must be wanted for so long without a break.
    """

    min_engines: int = pydantic.Field(1, ge=1, le=256)
    max_engines: int = pydantic.Field(ge=1, le=256)
    min_free: int = pydantic.Field(1, ge=0, le=1_024)
    tick_s: float = pydantic.Field(0.064, gt=0, le=0.08)
    slack: float = pydantic.Field(0.1, ge=0, le=10)
    upscale_delay_s: float = pydantic.Field(5.0, ge=0, le=3_600)
    downscale_delay_s: float = pydantic.Field(600.0, ge=0, le=86_400)

    @pydantic.model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_engines > self.max_engines:
            raise ValueError("min_engines is above max_engines")
        return self


class EngineSettings(Settings):
    """Args of the application ``engine``, and of every ``engine-NAME``.

    Attributes:
        name: what clients, ``/info`` and the page call the model; ``None`` is the last part of the checkpoint's source.
            Where there are several models each needs one of its own.
        slots: conversations per engine; the deployment's ``max_ongoing_requests`` follows from it.
        rows: rows of the batch; a guided conversation takes two. ``None``: as many as slots.
        engines: replicas, one per GPU; with ``scaling`` so many at the start.
        scaling: as many engines as conversations need; ``None`` keeps ``engines``.
        runner: ``model``, or ``passthrough``: each frame comes back as it went in, to test and measure the path.
        checkpoint: which weights; ``None`` with ``passthrough``.
        device: ``cpu`` or ``cuda``.
        dtype: of the language model's weights and state.
        weights: of the language model's matrices, 8 bits and a scale for every output; ``None`` keeps ``dtype``.
            ``serve_app quality`` says what that costs.
        codec_dtype: of the codec's weights and state; its quantiser stays float32.
        context: steps that attention sees; ``None`` is the checkpoint's own.
        pages: of keys and values that conversations share, each taking what it holds; ``None`` gives every row room for
            its whole context.
        page_steps: steps of one page.
        page_reserve: pages that stay free for those who are in when somebody wants to come in.
        kv_dtype: keys and values in 8 bits; ``None`` keeps ``dtype``. ``serve_app quality`` says what that costs.
        threads: of torch within one engine; ``None`` leaves torch its choice.
        graphs: ``auto`` captures the tick at start-up where there is a GPU; ``off`` computes it step by step, to find
            out what a graph hides.
        num_gpus, num_cpus: what Ray reserves for one engine.
        attach_s: a lease that no gateway attaches to is freed after this.
        drain_s: an engine that is replaced keeps its sessions for this long; they are told when it begins.
        surge: in percent of the engines: so many more are started before old ones go. Needs devices to spare.
        alarm_s, exit_s: a tick that takes longer is logged; much longer, and the process exits for Serve to replace.
        prompts: texts and voices that a session may begin with.
        conditions: values of conditions that a session does not choose, in place of the checkpoint's.
        guidance: of sessions that do not say, in place of the checkpoint's.
        link: where engines listen.
        limits, pace: bounds of the engine, and how eagerly it ticks.
    """

    name: str | None = pydantic.Field(None, min_length=1, max_length=100)
    slots: int = pydantic.Field(4, ge=1, le=1024)
    rows: int | None = pydantic.Field(None, ge=1, le=2048)
    engines: int = pydantic.Field(1, ge=1, le=256)
    scaling: ScalingSettings | None = None
    runner: Literal["model", "passthrough"] = "model"
    checkpoint: CheckpointSettings | None = None
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    weights: Literal["int8"] | None = None
    codec_dtype: Literal["float32", "bfloat16"] = "float32"
    context: int | None = pydantic.Field(None, ge=1)
    pages: int | None = pydantic.Field(None, ge=1)
    page_steps: int = pydantic.Field(64, ge=1, le=4096)
    page_reserve: int = pydantic.Field(0, ge=0)
    kv_dtype: Literal["int8", "fp8"] | None = None
    threads: int | None = pydantic.Field(None, ge=1, le=256)
    graphs: Literal["auto", "off"] = "auto"
    num_gpus: float = pydantic.Field(0, ge=0)
    num_cpus: float = pydantic.Field(0, ge=0)
    attach_s: float = pydantic.Field(2.0, gt=0, le=60)
    drain_s: float = pydantic.Field(20.0, ge=0)
    surge: int = pydantic.Field(0, ge=0, le=100)
    alarm_s: float = pydantic.Field(1.0, gt=0)
    exit_s: float = pydantic.Field(5.0, gt=0)
    prompts: PromptSettings = PromptSettings()
    conditions: dict[str, str] = {}
    guidance: float | None = pydantic.Field(None, ge=0, le=20)
    link: LinkSettings = LinkSettings()
    limits: LimitSettings = LimitSettings()
    pace: PaceSettings = PaceSettings()

    @property
    def state_rows(self) -> int:
        """Rows of the batch."""
        return self.rows if self.rows is not None else self.slots

    @property
    def first_engines(self) -> int:
        """Engines at the start."""
        return self.engines if self.scaling is None else max(self.engines, self.scaling.min_engines)

    @property
    def most_engines(self) -> int:
        """Engines that there may ever be."""
        return self.engines if self.scaling is None else self.scaling.max_engines

    @pydantic.model_validator(mode="after")
    def _engines_within_bounds(self) -> Self:
        if self.scaling is not None and self.engines > self.scaling.max_engines:
            raise ValueError("engines is above scaling.max_engines")
        return self

    @pydantic.model_validator(mode="after")
    def _rows_suffice(self) -> Self:
        if self.rows is not None and self.rows < self.slots:
            raise ValueError("rows is below slots, so that some slots could never be used")
        return self

    @pydantic.model_validator(mode="after")
    def _pages_leave_room(self) -> Self:
        if self.pages is not None and self.page_reserve >= self.pages:
            raise ValueError("page_reserve leaves no page for anybody")
        return self

    @pydantic.model_validator(mode="after")
    def _runner_has_its_weights(self) -> Self:
        if self.runner == "model" and self.checkpoint is None:
            raise ValueError("runner model needs a checkpoint")
        if self.runner == "passthrough" and self.checkpoint is not None:
            raise ValueError("runner passthrough takes no checkpoint")
        if self.runner == "passthrough" and (self.weights is not None or self.codec_dtype != "float32"):
            raise ValueError("runner passthrough has neither weights nor a codec")
        if self.exit_s < self.alarm_s:
            raise ValueError("exit_s is below alarm_s")
        return self


class TenancySettings(Settings):
    """Who may open conversations, where there are tenants: `docs/tenants.md` describes the files.

    Attributes:
        file: the tenants' file. One that is not here is sought in the package, where an example is.
        keys: the keys' file, as ``serve_app keys`` writes it.
        ledger: address of the database that keeps seconds of conversation; may hold a password.
        reload_s: how often both files are read again.
    """

    file: str = pydantic.Field(min_length=1)
    keys: str = pydantic.Field(min_length=1)
    ledger: str = pydantic.Field("sqlite:///ledger.sqlite", min_length=1, repr=False)
    reload_s: float = pydantic.Field(5.0, ge=0.1, le=3_600)


class GatewaySettings(Settings):
    """Args of the application ``gateway``.

    Attributes:
        replicas: gateway processes.
        origins: web origins besides the page's own host and loopback that may open a conversation, such as
            ``https://example.org``.
        grant_wait_s: how long an engine may take to answer before the visitor is told that the server is full. One that
            is full says so within milliseconds; this bounds a slow one.
        tenants: keys, quotas and the ledger; ``None`` leaves ``CHORUS_KEY`` the one key of all.
        queue: callers that may wait for a slot; 0 refuses them at once.
        silence_s: no audio for this long ends the session.
        opened_s: the engine must have primed the slot within this.
        resume_s: a client that asked for it and is cut off may come back within this; 0 lets nobody.
        drain_s: a gateway that is replaced keeps its conversations for this long; they are told when it begins. Behind
            the fast proxy Ray takes it from the environment, which ``serve_app up`` sets.
        longest_s: of any conversation, whatever its tenant may; told a minute before. ``None`` sets no limit.
        traces: address of a collector that takes OTLP over HTTP: how sessions start is sent there. May hold a password.
    """

    replicas: int = pydantic.Field(1, ge=1, le=256)
    origins: tuple[str, ...] = ()
    tenants: TenancySettings | None = None
    queue: int = pydantic.Field(0, ge=0, le=1_000_000)
    grant_wait_s: float = pydantic.Field(1.0, gt=0, le=5)
    silence_s: float = pydantic.Field(10.0, gt=0, le=600)
    opened_s: float = pydantic.Field(10.0, gt=0, le=600)
    resume_s: float = pydantic.Field(15.0, ge=0, le=600)
    drain_s: float = pydantic.Field(20.0, ge=0)
    longest_s: float | None = pydantic.Field(10_800.0, gt=0)
    traces: str | None = pydantic.Field(None, pattern=r"^https?://[^/]", repr=False)

    @property
    def admits(self) -> bool:
        """Whether an authority says who may start."""
        return self.tenants is not None or self.queue > 0


class HttpSettings(Settings):
    """Ray's ``http_options``, with our defaults: loopback."""

    host: str = "127.0.0.1"
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
    args: dict[str, Any] = {}
    runtime_env: dict[str, Any] = {}


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


def located_file(path: Path) -> Path:
    """The path, or where the package has a file of this name when there is none here."""
    shipped = PACKAGE / path
    return shipped if not path.exists() and shipped.exists() else path


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


def is_loopback(host: str) -> bool:
    """Whether a host name or address only reaches this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def is_wildcard(host: str) -> bool:
    """Whether a host means every address of a machine, so that nobody can connect to it by this name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_unspecified
    except ValueError:
        return host in ("", "*")


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


def _require_names(engines: Mapping[str, EngineSettings], where: str) -> None:
    """Clients choose a model by its name. Raises ConfigError."""
    owners: dict[str | None, str] = {}
    for application, engine in engines.items() if len(engines) > 1 else ():
        if engine.name is None:
            raise ConfigError(where.format(application), "name: missing; where there are several models each needs one")
        if engine.name in owners:
            raise ConfigError(where.format(application), f"name: {engine.name} is {owners[engine.name]}'s already")
        owners[engine.name] = application


def _key(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location) or "file"


def _why(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "missing":
        return "missing"
    return str(problem["msg"]).removeprefix("Value error, ")
