"""How a refusal looks over HTTP: the same for pages, programs and WebSockets that are not opened."""

import math
from typing import Any, Final

from fastapi.responses import JSONResponse

from serve_app.admission.tenants import Tenant
from serve_app.errors import ChorusError, Forbidden, ModelUnknown

RETRY_AFTER_S: Final = 5
NOT_FOUND: Final = {"reason": "not_found", "message": "nothing lives at this address"}


def wait_s(error: ChorusError) -> int:
    """In how many seconds to come again, where that helps."""
    return RETRY_AFTER_S if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))


def refusal(error: ChorusError, **more: Any) -> JSONResponse:
    """Status, reason slug and a sentence, and whatever else there is to say; when to come again if that helps."""
    headers = {"Retry-After": str(wait_s(error))} if error.retry else {}
    headers["Cache-Control"] = "no-store"
    return JSONResponse({"reason": error.reason, "message": error.public(), **more}, error.http_status, headers)


def discreet(error: ChorusError, found: Tenant | ChorusError, model: str | None) -> ChorusError:
    """What is said of a wrong question: nothing to whom we do not know, to a tenant nothing of others' models.

    Args:
        found: whose credential it is, or that it is nobody's.
        model: that was named.
    """
    if isinstance(found, ChorusError):
        return found
    if model is not None and not found.may_use(model):
        return Forbidden(f"model {model[:64]!r}")
    if isinstance(error, ModelUnknown):
        return ModelUnknown(error.model, [name for name in error.known if found.may_use(name)])
    return error
