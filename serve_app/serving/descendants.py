"""The processes below ours, so that none is left when we go. Linux tells by ``/proc``; elsewhere nothing is seen."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")


class Descendants:
    """Everything that a process has started, directly or not.

    Ray's own shutdown ends what Ray started, but the proxy is the grandchild of a worker that may be killed first.

    Args:
        root: the process above them all; itself it is never touched.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._seen: dict[int, str] = {}

    def look(self) -> None:
        """Remember who is there now: orphans lose their parent."""
        parents = dict(_parents())
        family = {self._root}
        grown = True
        while grown:
            young = {process for process, (parent, _) in parents.items() if parent in family} - family
            family |= young
            grown = bool(young)
        self._seen.update({process: parents[process][1] for process in family - {self._root} if process in parents})

    def left(self) -> list[int]:
        """Those seen that still live; a process number that was given to somebody else is not among them."""
        alive = {process: began for process, (_, began) in _parents()}
        return [process for process, began in self._seen.items() if alive.get(process) == began]

    def kill(self) -> None:
        """End those that are left, without asking."""
        for process in self.left():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)


def _parents() -> Iterator[tuple[int, tuple[int, str]]]:
    """Every process with its parent and when it began; zombies are gone for us."""
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                yield int(folder.name), (int(fields[1]), fields[19])
