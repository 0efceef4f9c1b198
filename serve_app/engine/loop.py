"""The thread that turns the engine: it runs when frames are there, never by a metronome.

While a tick runs the next frames gather by themselves, so under load the batch grows to what the machine can carry.
"""

import logging
import threading
from typing import Final

from serve_app.engine.engine import Engine
from serve_app.errors import EngineDraining, EngineLost

HOUSEKEEPING_S: Final = 0.5  # how often an idle engine looks for leases that nobody opened

logger = logging.getLogger(__name__)


class EngineLoop:
    """Owns the engine thread.

    Args:
        engine: what to turn.
        gather_s: how long to wait for more rows once the first frame is there; 0 takes whoever is ready.
        interval_s: the least time from the start of one tick to the start of the next.

    Both waits end early when every live session has a frame, and when a session is behind: that tick is the one extra
    step that lets it catch up.
    """

    def __init__(self, engine: Engine, *, gather_s: float = 0.0, interval_s: float = 0.0) -> None:
        self._engine = engine
        self._gather_s = gather_s
        self._interval_s = interval_s
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
        clock = self._engine.clock
        last_start_s = float("-inf")
        try:
            while not self._stopping:
                if self._engine.wait_for_work(HOUSEKEEPING_S):
                    now_s = clock()
                    window_s = max(self._gather_s, last_start_s + self._interval_s - now_s)
                    if window_s > 0:
                        self._engine.wait_for_others(window_s)
                last_start_s = clock()
                self._engine.tick()
        except Exception:
            # A fault of ours that tick does not contain: nothing here can be trusted, so everybody is told to go.
            logger.exception("the engine thread died")
            self._engine.shut(EngineLost(), healthy=False)
        else:
            self._engine.shut(EngineDraining())
