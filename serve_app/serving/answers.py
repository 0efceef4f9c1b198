"""How a refusal looks over HTTP: the same for pages, programs and WebSockets that are not opened."""

import math
from typing import Final

from fastapi.responses import JSONResponse

from serve_app.errors import ChorusError

RETRY_AFTER_S: Final = 5
NOT_FOUND: Final = {"reason": "not_found", "message": "nothing lives at this address"}


def wait_s(error: ChorusError) -> int:
    """In how many seconds to come again, where that helps."""
    return RETRY_AFTER_S if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))


def refusal(error: ChorusError) -> JSONResponse:
    """Status, reason slug and a sentence; when to come again if that helps."""
    headers = {"Retry-After": str(wait_s(error))} if error.retry else {}
    headers["Cache-Control"] = "no-store"
    return JSONResponse({"reason": error.reason, "message": error.public()}, error.http_status, headers)
