"""What Ray's processes print, as the launcher shows it where logs are JSON: a line of theirs is a line of ours.

Ray puts the name and the number of a process before each line, and then it is no JSON object any more. There is no
public way to have it otherwise: this replaces the function that Ray registered for it under its own name. Where a
later Ray has no such register, lines keep their prefix.
"""

import importlib
import sys
import time
from collections.abc import Mapping
from typing import Any, Final

from serve_app.observability.logs import as_json

HANDLER: Final = "ray_print_logs"
RAY: Final = "ray"


def show_as_json() -> bool:
    """Show what Ray's processes print as JSON lines on standard error. After `ray.init`; whether it could be done."""
    try:
        lines = importlib.import_module("ray._private.ray_logging").global_worker_stdstream_dispatcher
        lines.remove_handler(HANDLER)
        lines.add_handler(HANDLER, _show)
    except (ImportError, AttributeError):
        return False
    return True


def shown(told: Mapping[str, Any], now_s: float) -> str:
    """One message of Ray's as lines: who printed it names the logger of what was no JSON."""
    logger = str(told.get("actor_name") or told.get("task_name") or RAY)
    return "".join(as_json(line, logger, now_s) + "\n" for line in told.get("lines", ()))


def _show(told: Mapping[str, Any]) -> None:
    sys.stderr.write(shown(told, time.time()))
    sys.stderr.flush()
