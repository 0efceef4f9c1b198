"""What the operator asks over HTTP. Nothing here shows what anybody said, nor who."""

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.requests import Request

from serve_app.errors import ChorusError, NotAllowed, ParameterRefused
from serve_app.serving.answers import refusal
from serve_app.serving.knock import key_in
from serve_app.serving.tick_trace import KEPT_TICKS, EngineTicks

SHOWN_TICKS: Final = 100
PRIVATE: Final = {"Cache-Control": "no-store"}


class OperatorPages:
    """One route so far; it wants the operator's key in a header. Keys in a query open nothing: URLs get logged.

    Args:
        key: of the operator; its digest alone is kept.
        ask: the engines' last ticks. Raises EngineLost.
    """

    def __init__(self, key: str, ask: Callable[[], Awaitable[Sequence[EngineTicks]]]) -> None:
        self._digest = _digest(key)
        self._ask = ask

    async def ticks(self, request: Request) -> Response:
        """``GET /debug/ticks?last=N``: the last ticks of every engine, oldest first."""
        try:
            self._admit(request.headers)
            last = _count(request.query_params.get("last", str(SHOWN_TICKS)))
            engines = await self._ask()
        except ChorusError as error:
            return refusal(error)
        return JSONResponse({"engines": [engine.shown(last) for engine in engines]}, headers=PRIVATE)

    def _admit(self, headers: Mapping[str, str]) -> None:
        # Digests have one length: how long the comparison takes says nothing about the key.
        if not hmac.compare_digest(self._digest, _digest(key_in(headers))):
            raise NotAllowed("missing or wrong key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 4 and 1 <= int(text) <= KEPT_TICKS):
        raise ParameterRefused("last", text, f"must be a whole number from 1 to {KEPT_TICKS}")
    return int(text)
