"""The application ``engine``, and every ``engine-NAME``: the engines of one model, with a tiny directory above them.

The directory is the root because an application's root cannot have a router of its own in HAProxy mode, and because
it answers questions about engines without taking their slots. All engines of a cluster report to that of ``engine``;
in other applications it is a root and no more. Each model is an application of its own, so that a new version of one
leaves the others' engines alone.
"""

import asyncio
import contextlib
import time
from typing import Any, Final, cast

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from serve_app.admission.views import EngineView, LiveSession
from serve_app.config import EngineSettings, checked
from serve_app.serving.directory import HEARTBEAT_S, Directory, EngineCard, Orders
from serve_app.serving.engine_replica import EngineReplica
from serve_app.serving.placed_router import PlacedRouter
from serve_app.serving.ray_calls import DIRECTORY_DEPLOYMENT, ENGINE_DEPLOYMENT
from serve_app.serving.scaling import autoscaling
from serve_app.serving.tick_trace import EngineTicks
from serve_app.serving.timers import ENGINE_GRACE_S

UNBOUNDED_REQUESTS: Final = 10_000
"""Far above what is ever asked: over its limit Ray lets callers hang, and we refuse by ourselves."""
REFUSALS_AT_ONCE: Final = 8
"""Calls above the slots, so that a full engine says so itself and at once: a router that queues cannot be told from a
slow one, and sixteen visitors of one moment were refused beside free slots after 100 ms."""
SHUTDOWN_S: Final = 5.0
TICKS_S: Final = 2.5 * HEARTBEAT_S
"""For engines to hear that their ticks are wanted, and to leave them."""
SETTLE_S: Final = 2.0
"""A directory that is asked sooner than every engine has reported would say that there are none."""
HEALTH_PERIOD_S: Final = 2.0
HEALTH_TIMEOUT_S: Final = 5.0


class EngineDirectory:
    """The directory as a replica."""

    def __init__(self, engines: object) -> None:
        self._directory = Directory(time.monotonic)
        self._ticks_came = asyncio.Event()
        self._began_s = time.monotonic()

    async def report(self, card: EngineCard, sessions: tuple[LiveSession, ...] = ()) -> Orders:
        """An engine leaves its card, and who holds its slots."""
        return self._directory.report(card, sessions)

    async def views(self) -> list[EngineView]:
        """The authority asks for the same, with sessions."""
        await self._settle()
        return self._directory.views()

    async def succeed(self) -> bool:
        """An authority begins, and asks whether it is the first."""
        return self._directory.succeed()

    async def engines(self) -> list[EngineCard]:
        """The cards of those that live."""
        await self._settle()
        return self._directory.engines()

    async def offer_text_model(self, digest: str, content: bytes) -> None:
        """An engine leaves its text model."""
        self._directory.offer_text_model(digest, content)

    async def text_model(self, digest: str) -> bytes | None:
        """A gateway asks for a text model."""
        return self._directory.text_model(digest)

    async def offer_ticks(self, ticks: EngineTicks) -> None:
        """An engine leaves its last ticks."""
        self._directory.offer_ticks(ticks)
        self._ticks_came.set()

    async def ticks(self) -> list[EngineTicks]:
        """The operator asks for the last ticks; engines that do not answer in time are left out."""
        question = self._directory.ask_for_ticks()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICKS_S):
                while not self._directory.ticks(question)[1]:
                    self._ticks_came.clear()
                    await self._ticks_came.wait()
        return self._directory.ticks(question)[0]

    async def close(self) -> None:
        """Everything goes down: tell the engines to end their sessions."""
        self._directory.close()

    async def _settle(self) -> None:
        await asyncio.sleep(max(0.0, self._began_s + SETTLE_S - time.monotonic()))


def build(args: dict[str, Any]) -> Application:
    """Build the application from its args (`EngineSettings`). Raises ConfigError."""
    settings = checked(EngineSettings, args, "application engine: args")
    engine = serve.deployment(
        name=ENGINE_DEPLOYMENT,
        num_replicas=settings.engines if settings.scaling is None else None,
        autoscaling_config=autoscaling(settings.scaling, settings.first_engines) if settings.scaling else None,
        max_ongoing_requests=settings.slots + REFUSALS_AT_ONCE,
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        request_router_config=cast(Any, RequestRouterConfig)(
            request_router_class=PlacedRouter, request_routing_stats_period_s=HEARTBEAT_S
        ),
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        # Ray waits so long for its ongoing requests, which leases are; then it kills.
        graceful_shutdown_timeout_s=settings.drain_s + ENGINE_GRACE_S,
        max_surge_percent=settings.surge,
    )(EngineReplica)
    directory = serve.deployment(
        name=DIRECTORY_DEPLOYMENT,
        num_replicas=1,
        max_ongoing_requests=UNBOUNDED_REQUESTS,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=SHUTDOWN_S,
        max_surge_percent=100,  # gateways and engines ask it every second
    )(EngineDirectory)
    return directory.bind(engine.bind(settings.model_dump()))
