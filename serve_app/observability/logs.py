"""One line per session start and end, and whatever went wrong: to standard error, where Ray collects it.

A line with fields names them: ``logger.info("session end cause=%(cause)s frames=%(frames)d", {...})``. As text it is
that line; as JSON the words are the event and the mapping its fields, so that nothing is read back out of a text.
"""

import datetime
import json
import logging
import math
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

from serve_app.config import log_format

ROOT: Final = "serve_app"
FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"
DIGITS: Final = 3

_FIELD: Final = re.compile(r"\s*\w+=%\(\w+\)\S*")


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this package's log there, as the deployment wants it. Idempotent; others' loggers stay as they are.

    Raises:
        ConfigError: the environment asks for a format that there is none of.
    """
    formatter = JsonLines() if log_format() == "json" else logging.Formatter(FORMAT)
    logger = logging.getLogger(ROOT)
    logger.setLevel(level)
    logger.propagate = False
    if not logger.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(formatter)
        logger.addHandler(handler)


class JsonLines(logging.Formatter):
    """Each record as one JSON object on one line: ts, level, logger, event, then the fields of the line.

    ``ts`` is UTC. An exception adds ``error``, its type, and ``trace``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line without its end."""
        event, fields = _parts(record)
        line: dict[str, object] = {
            "ts": _utc(record.created),
            "level": record.levelname,
            "logger": record.name,
            "event": event,
        }
        line |= {name: _plain(value) for name, value in fields.items() if name not in line}
        if record.exc_info is not None and record.exc_info[0] is not None:
            line |= {"error": record.exc_info[0].__name__, "trace": self.formatException(record.exc_info)}
        return json.dumps(line)


def as_json(text: str, logger: str, created_s: float) -> str:
    """A line of somebody else's as one of ours; one that is a JSON object already stays as it is."""
    if text.startswith("{"):
        try:
            json.loads(text)
        except ValueError:
            pass
        else:
            return text
    return json.dumps({"ts": _utc(created_s), "level": "INFO", "logger": logger, "event": text})


def _parts(record: logging.LogRecord) -> tuple[str, Mapping[str, Any]]:
    """The words and the fields of a line."""
    if isinstance(record.args, Mapping):
        return _FIELD.sub("", str(record.msg)).strip(), record.args
    return record.getMessage(), {}


def _plain(value: object) -> object:
    if isinstance(value, float):
        return round(value, DIGITS) if math.isfinite(value) else str(value)
    return value if isinstance(value, bool | int | str) or value is None else str(value)


def _utc(created_s: float) -> str:
    moment = datetime.datetime.fromtimestamp(created_s, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
