"""The thread that turns the engine: it runs when frames are there, never by a metronome; `schedule` says when."""

import logging
import threading
from collections.abc import Callable

from serve_app.engine.engine import Engine
from serve_app.engine.limits import Pace
from serve_app.engine.schedule import Schedule, turn
from serve_app.engine.sweeper import NoSweeping, Sweeping
from serve_app.errors import EngineDraining, EngineLost

logger = logging.getLogger(__name__)


class EngineLoop:
    """Owns the engine thread.

    Args:
        engine: what to turn.
        pace: how eagerly it ticks.
        on_dead: called once, on the engine thread, when the engine has become unhealthy or the loop has died, after
            every session was told EngineLost: their sinks have it, their peers may not yet. Not called by ``stop``.
        sweeper: collects garbage between turns; None leaves that to Python.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        pace: Pace | None = None,
        on_dead: Callable[[], None] | None = None,
        sweeper: Sweeping | None = None,
    ) -> None:
        self._engine = engine
        self._schedule = Schedule(pace if pace is not None else Pace(), engine.step_times)
        self._on_dead = on_dead
        self._sweeper = sweeper if sweeper is not None else NoSweeping()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread; once."""
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End every session with EngineDraining and join the thread. Returns whether it ended in time."""
        self._stopping = True
        self._engine.wake()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        self._sweeper.start()
        try:
            self._turn()
        except Exception:
            # A fault of ours that tick does not contain: nothing here can be trusted, so everybody is told to go.
            logger.exception("the engine thread died")
            self._die()
        else:
            if self._engine.healthy:
                self._engine.shut(EngineDraining())
            else:
                logger.critical("the engine is unhealthy: its sessions end")
                self._die()
        finally:
            self._sweeper.stop()

    def _turn(self) -> None:
        """Tick until told to stop, or until the engine is past help."""
        while not self._stopping and self._engine.healthy:
            turn(self._engine, self._schedule, self._sweeper)

    def _die(self) -> None:
        try:
            self._engine.shut(EngineLost(), healthy=False)
        except Exception:
            logger.exception("the engine's sessions could not be told")
        if self._on_dead is not None:
            self._on_dead()
