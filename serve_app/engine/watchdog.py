"""Notices a tick that does not come back, long before the cluster's health check would.

A device fault cannot be recovered in the process, and a tick that hangs holds every session of the engine: the only
cure is a fresh process. So: an alarm first, and then the exit, both injected.
"""

import logging
import threading
from collections.abc import Callable
from typing import Final

ALARM_S: Final = 1.0
EXIT_S: Final = 5.0
CHECK_S: Final = 0.25

logger = logging.getLogger(__name__)


class Watchdog:
    """Watches one engine from a thread of its own; ``check`` is the whole rule and needs no thread.

    Args:
        busy_since: when the running tick began, on ``clock``; None between ticks. ``Engine.busy_since``.
        on_alarm: called once for a tick that has run for ``alarm_s``, with its seconds so far.
        on_exit: called once for a tick that has run for ``exit_s``. Serving ends the process with ``os._exit``: a stuck
            thread would block every gentler way.

    It cannot see a tick that holds the interpreter lock; torch releases it, and the cluster's check covers the rest.
    """

    def __init__(
        self,
        busy_since: Callable[[], float | None],
        clock: Callable[[], float],
        *,
        on_alarm: Callable[[float], None],
        on_exit: Callable[[float], None],
        alarm_s: float = ALARM_S,
        exit_s: float = EXIT_S,
    ) -> None:
        self._busy_since = busy_since
        self._clock = clock
        self._on_alarm, self._on_exit = on_alarm, on_exit
        self._alarm_s, self._exit_s = alarm_s, exit_s
        self._alarmed_tick: float | None = None
        self._left_tick: float | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def check(self) -> None:
        """Look once."""
        began_s = self._busy_since()
        if began_s is None:
            return
        stuck_s = self._clock() - began_s
        if stuck_s >= self._alarm_s and self._alarmed_tick != began_s:
            self._alarmed_tick = began_s
            self._on_alarm(stuck_s)
        if stuck_s >= self._exit_s and self._left_tick != began_s:
            self._left_tick = began_s
            self._on_exit(stuck_s)

    def start(self) -> None:
        """Look every quarter of a second; once."""
        self._thread.start()

    def stop(self) -> None:
        """Stop looking and join the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(CHECK_S):
            try:
                self.check()
            except Exception:
                logger.exception("the watchdog's callback raised")
