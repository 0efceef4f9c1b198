"""Args of the gateway's application."""

import pydantic

from serve_app.config.settings import Settings


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
