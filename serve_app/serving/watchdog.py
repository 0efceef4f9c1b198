"""Notices a step that hangs. Serve's own health check is minutes too slow for a conversation."""

import logging
import threading
from collections.abc import Callable
from typing import Final

PERIOD_S: Final = 0.25

logger = logging.getLogger(__name__)


class Watchdog:
    """Alarms once a step takes too long, and leaves the process when it takes far too long: Serve replaces it.

    A kernel that hangs or a device that is lost cannot be repaired from inside, so the exit is the hard one.

    Args:
        busy_since: when the running step began, on the clock; None between steps.
        clock: monotonic seconds.
        alarm_s, exit_s: how long a step may take before each.
        leave: ends the process and does not return.
    """

    def __init__(
        self,
        busy_since: Callable[[], float | None],
        clock: Callable[[], float],
        *,
        alarm_s: float,
        exit_s: float,
        leave: Callable[[], object],
    ) -> None:
        self._busy_since = busy_since
        self._clock = clock
        self._alarm_s = alarm_s
        self._exit_s = exit_s
        self._leave = leave
        self._alarmed: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Look at the step a few times a second from a thread of its own."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def look(self) -> None:
        """One look."""
        since = self._busy_since()
        if since is None:
            return
        stuck_s = self._clock() - since
        if stuck_s >= self._exit_s:
            logger.critical("a step has not come back for %.1f s: this engine exits", stuck_s)
            self._leave()
        elif stuck_s >= self._alarm_s and self._alarmed != since:
            self._alarmed = since
            logger.error("a step has taken %.1f s so far", stuck_s)

    def _run(self) -> None:
        while not self._stopped.wait(PERIOD_S):
            self.look()
