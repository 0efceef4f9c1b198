"""One engine as a Serve replica: its loop, its link, its lease desk, its heartbeat and its watchdog."""

import asyncio
import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import AsyncIterator
from typing import Any, Final

from serve_app.admission.deadlines import Deadlines
from serve_app.admission.scaling import EngineLoad
from serve_app.config import EngineSettings, require_key_beyond_loopback
from serve_app.engine.engine import Engine
from serve_app.engine.limits import Limits, Pace
from serve_app.engine.loop import EngineLoop
from serve_app.engine.sweeper import Sweeper
from serve_app.engine.watchdog import Watchdog
from serve_app.errors import EngineLost
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.departure import Departure
from serve_app.serving.directory import HEARTBEAT_S, EngineCard, TextModel
from serve_app.serving.granted import Admitted, Answer
from serve_app.serving.instruments import EngineInstruments
from serve_app.serving.lease_desk import LeaseDesk
from serve_app.serving.placed_router import LATE
from serve_app.serving.process import package_versions, resident_bytes
from serve_app.serving.ray_calls import DirectoryHandle, application_name, http_host, link_host, replica_name
from serve_app.serving.resuming import Keeping, Returning
from serve_app.serving.retirement import ray_timers, watch_retirement
from serve_app.serving.runners import Made, make_runner
from serve_app.serving.scaling import figures
from serve_app.serving.tick_trace import EngineTicks
from serve_app.serving.timers import engine_complaints
from serve_app.spec import SessionSpec

REPORT_S: Final = 3.0
"""Bound of one report to the directory."""
STOP_S: Final = 2.0
EXIT_STUCK: Final = 70
EXIT_DEAD: Final = 71
GOODBYE_S: Final = 1.0
"""How long the link has to tell everybody that a dead engine is gone."""
PACKAGES: Final = ("chorus-serve", "torch", "ray", "numpy")

logger = logging.getLogger(__name__)


class EngineReplica:
    """The deployment ``Engine``. Its only public call is ``lease``: each one that is open is one slot in use."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        require_key_beyond_loopback(http_host())
        self._settings = EngineSettings.model_validate(settings)
        self._name, self._application = replica_name(), application_name()
        self._made = made = await asyncio.to_thread(make_runner, self._settings)
        self._text_model = _text_model(made)
        self._about = made.runner.describe()
        self._model = self._settings.name or self._about.model
        limits = Limits(**self._settings.limits.model_dump(), unopened_s=2 * self._settings.attach_s)
        self._instruments = EngineInstruments(self._model)
        self._engine = Engine(
            made.runner,
            limits=limits,
            slots=self._settings.slots,
            clock=time.monotonic,
            observer=self._instruments,
        )
        self._sweeper = Sweeper()
        self._loop = EngineLoop(
            self._engine,
            pace=Pace(**self._settings.pace.model_dump()),
            on_dead=_leave_process_soon,
            sweeper=self._sweeper,
        )
        self._watchdog = Watchdog(
            lambda: self._engine.busy_since,
            time.monotonic,
            alarm_s=self._settings.alarm_s,
            exit_s=self._settings.exit_s,
            on_alarm=lambda stuck_s: logger.error("a tick has taken %.1f s so far", stuck_s),
            on_exit=_leave_process,
        )
        self._deadlines = Deadlines()
        self._desk = LeaseDesk(
            self._engine,
            attach_s=self._settings.attach_s,
            text_model=self._text_model,
            late=lambda: not self._deadlines.kept,
            name=self._name,
        )
        self._server = await self._desk.listen(link_host(self._settings.link.host), self._ports())
        self._directory = DirectoryHandle()
        self._loop.start()
        self._watchdog.start()
        self._complaints = engine_complaints(ray_timers(), self._settings.drain_s)
        for complaint in self._complaints:
            logger.error("%s", complaint)
        self._gone = False
        self._departure = Departure(self._settings.drain_s, time.monotonic)
        self._retirement = watch_retirement(self._departure.begin)
        self._heartbeat = asyncio.create_task(self._beat())
        self._going = asyncio.create_task(self._go())

    async def lease(
        self, spec: SessionSpec, caller: Admitted | None = None, comeback: Keeping | Returning | None = None
    ) -> AsyncIterator[Answer]:
        """Hold a slot while the caller listens; the first answer is the grant or the refusal."""
        async with contextlib.aclosing(self._desk.lease(spec, caller, comeback)) as answers:
            async for answer in answers:
                yield answer

    def check_health(self) -> None:
        """Serve asks; raises when the loop is dead or a step hangs."""
        busy_since = self._engine.busy_since
        stuck = busy_since is not None and time.monotonic() - busy_since > self._settings.exit_s
        if stuck or not self._loop.alive or not self._engine.healthy:
            raise EngineLost

    async def record_routing_stats(self) -> dict[str, bool]:
        """Serve asks once a second, and tells the routers in the gateways."""
        return {LATE: not self._deadlines.kept}

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve asks every few seconds where the number of engines follows from their use."""
        stats, times = self._engine.stats(), self._engine.step_times
        return figures(
            EngineLoad(
                slots=stats.slots,
                used=stats.slots - min(stats.free, stats.rows_free),
                fixed_s=times.fixed_s,  # written by the engine thread: at worst one tick apart from the next number
                per_row_s=times.per_row_s,
                late=not self._deadlines.kept,
            )
        )

    async def __del__(self) -> None:
        """Serve calls it when the replica goes: everybody is told 1012 by the link before it closes."""
        self._heartbeat.cancel()
        self._going.cancel()
        self._watchdog.stop()
        await asyncio.to_thread(self._loop.stop, STOP_S)
        await self._server.close()

    async def _beat(self) -> None:
        while True:
            # First a pause: gateways shall not hear of this engine before Ray has told them where it is.
            await asyncio.sleep(HEARTBEAT_S)
            self._judge()
            self._show()
            await self._report()

    async def _report(self) -> None:
        try:
            async with asyncio.timeout(REPORT_S):
                orders = await self._directory.report(self.card(), self._desk.sessions())
                if orders.offer_text_model and self._text_model is not None:
                    await self._directory.offer_text_model(self._text_model.digest, self._made.text_model)
                if orders.offer_ticks:
                    ticks = self._instruments.trace.last()
                    await self._directory.offer_ticks(EngineTicks(self._name, time.monotonic(), ticks))
                if orders.drain and not self._gone:
                    await self._leave()
                    await self._directory.report(self.card(), self._desk.sessions())
        except Exception as error:  # noqa: BLE001 -- Ray raises many kinds while the directory starts or goes
            logger.debug("the directory does not answer: %r", error)

    def _judge(self) -> None:
        """An engine that misses its deadlines takes no new sessions until it has kept them for a while."""
        stats, kept = self._engine.stats(), self._deadlines.kept
        self._deadlines.report(stats.ticks, stats.overruns)
        if self._deadlines.kept != kept:
            logger.warning(
                "ticks are %(now)s overruns=%(overruns)d ticks=%(ticks)d",
                {"now": "late" if kept else "in time again", "overruns": stats.overruns, "ticks": stats.ticks},
            )

    def _show(self) -> None:
        stats = self._engine.stats()
        healthy = stats.healthy and self._loop.alive
        late = not self._deadlines.kept
        self._instruments.show(stats, self._desk.returns(), healthy=healthy, late=late, resident_bytes=resident_bytes())

    async def _go(self) -> None:
        """Once this engine is replaced: nobody new, and those that are there until its time is up."""
        await self._departure.begun()
        self._engine.drain()
        stats = self._engine.stats()
        logger.info(
            "engine replaced sessions=%(sessions)d drain_s=%(drain_s)g",
            {"sessions": stats.slots - stats.free, "drain_s": self._settings.drain_s},
        )
        await self._report()
        await asyncio.sleep(self._departure.left_s or 0.0)
        await self._leave()

    async def _leave(self) -> None:
        """No new sessions, and those that are there are told that it is over."""
        self._gone = True
        self._engine.drain()
        await asyncio.to_thread(self._loop.stop, STOP_S)

    def card(self) -> EngineCard:
        """What the directory is told."""
        stats = self._engine.stats()
        return EngineCard(
            engine=self._name,
            address=f"{self._server.address.host}:{self._server.address.port}",
            slots=stats.slots,
            used=stats.slots - stats.free,
            rows=stats.rows,
            rows_used=stats.rows - stats.rows_free,
            offer=self._engine.runner.offer,
            draining=stats.draining,
            healthy=stats.healthy and self._loop.alive,
            model=self._model,
            device=self._about.device,
            dtype=self._about.dtype,
            state_bytes_per_slot=self._about.state_bytes_per_slot,
            process_bytes=resident_bytes(),
            dep_q=self._about.dep_q,
            codebook_bits=self._made.codebook_bits,
            stage_ms={stage: (spent.p50_ms, spent.p99_ms) for stage, spent in stats.stage_ms.items()},
            frame_ms={
                stage: spent.mean_ms / (stats.rows_per_tick or 1.0)
                for stage, spent in stats.stage_ms.items()
                if stage != "wait"  # one frame's, not the tick's
            },
            rows_per_tick=stats.rows_per_tick,
            versions=package_versions(PACKAGES),
            text_model=self._text_model,
            late=not self._deadlines.kept,
            application=self._application,
            counters={
                "ticks": stats.ticks,
                "steps": stats.steps,
                "overruns": stats.overruns,
                "underruns": stats.underruns,
                "stale_frames": stats.stale_frames,
                "expired_leases": stats.expired,
                "primed_steps": stats.primed_steps,
                **stats.runner,
                **self._sweeper.counters(),
                **self._desk.returns(),
                **{f"dropped_{cause}": count for cause, count in stats.dropped_frames.items()},
                **{f"ended_{reason}": count for reason, count in stats.ended.items()},
            },
            leaves_in_s=self._departure.left_s,
            complaints=self._complaints,
        )

    def _ports(self) -> range:
        return range(self._settings.link.first_port, self._settings.link.last_port + 1)


def _text_model(made: Made) -> TextModel | None:
    if not made.text_model:
        return None
    return TextModel(hashlib.sha256(made.text_model).hexdigest(), made.silent_tokens)


def _leave_process_soon() -> None:
    """A device that fails cannot be repaired from inside either; first the link may say goodbye to everybody."""
    logger.critical("the engine is dead: this process exits")
    threading.Timer(GOODBYE_S, os._exit, (EXIT_DEAD,)).start()


def _leave_process(stuck_s: float) -> None:
    """A device that hangs cannot be repaired from inside: Serve replaces the process, clients are told 1012."""
    logger.critical("a tick has not come back for %.1f s: this engine exits", stuck_s)
    os._exit(EXIT_STUCK)
