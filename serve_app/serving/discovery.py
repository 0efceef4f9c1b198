"""Where Prometheus finds the metrics of this machine: the file that Ray's dashboard writes, for a Ray without one."""

import contextlib
import json
import os
from pathlib import Path
from typing import Final

from serve_app.config import LOOPBACK

FILE: Final = "prom_metrics_service_discovery.json"
"""In the folder of a Ray session, and above it a link to that of the newest: what `deploy/prometheus` reads."""


class Discovery:
    """The file of one session of Ray.

    Args:
        session: its folder.
        port: where its node shows the metrics.
    """

    def __init__(self, session: Path, port: int) -> None:
        self._file = session / FILE
        self._link = session.parent / FILE
        self._targets = [{"labels": {"job": "ray"}, "targets": [f"{LOOPBACK}:{port}"]}]

    def write(self) -> None:
        """Show the way. Raises OSError."""
        self._file.write_text(json.dumps(self._targets))
        made = self._link.with_name(f"{FILE}.{os.getpid()}")
        made.unlink(missing_ok=True)
        made.symlink_to(self._file)
        made.replace(self._link)  # at once: a Prometheus may be reading

    def remove(self) -> None:
        """Nobody is there any more. Another session's link is left alone."""
        with contextlib.suppress(OSError):
            if self._link.readlink() == self._file:
                self._link.unlink()
            self._file.unlink()
