"""A line that says how far a batch is, rewritten in place on a terminal and not written anywhere else."""

import sys
import time
from collections.abc import Callable
from typing import Final, TextIO

from serve_app.units import FRAME_S

EVERY_S: Final = 0.2
BAR: Final = 24


class Progress:
    """Counts files and frames.

    Args:
        files: in all.
        out: where to; nothing is written unless it is a terminal.
        clock: seconds, monotonic.
    """

    def __init__(self, files: int, out: TextIO = sys.stderr, clock: Callable[[], float] = time.perf_counter) -> None:
        self._files, self._out, self._clock = files, out, clock
        self._shown = out.isatty()
        self._begun_s = clock()
        self._written_s = float("-inf")
        self.done = 0
        self.frames = 0

    @property
    def times_real_time(self) -> float:
        """Seconds of sound that went through per second, all recordings together."""
        return self.frames * FRAME_S / max(self._clock() - self._begun_s, 1e-9)

    def on_tick(self, rows: int) -> None:
        """A tick had so many rows."""
        self.frames += rows
        self._show()

    def on_file(self) -> None:
        """A file is done."""
        self.done += 1
        self._show(force=self.done == self._files)

    def close(self) -> None:
        """Leave the line."""
        if self._shown:
            self._out.write("\n")

    def _show(self, *, force: bool = False) -> None:
        now_s = self._clock()
        if not self._shown or (now_s - self._written_s < EVERY_S and not force):
            return
        self._written_s = now_s
        filled = BAR * self.done // max(self._files, 1)
        bar = "#" * filled + "-" * (BAR - filled)
        self._out.write(f"\r[{bar}] {self.done}/{self._files} files, {self.times_real_time:.1f}x real time ")
        self._out.flush()
