"""One line per session start and end, and whatever went wrong: to standard error, where Ray collects it."""

import logging
import sys
from typing import Final

ROOT: Final = "serve_app"
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this package's log there. Idempotent; other packages' loggers stay as they are."""
    logger = logging.getLogger(ROOT)
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(logging.Formatter(FORMAT))
        logger.addHandler(handler)
