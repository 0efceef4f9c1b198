"""Args of an engine's application."""

from typing import Literal, Self

import pydantic

from serve_app.config.hosts import is_wildcard
from serve_app.config.settings import Settings


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
    conditions: dict[str, str] = pydantic.Field(default_factory=dict)
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
