"""The admission host as a Serve replica: one in a cluster, beside the gateways."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final

from serve_app.admission.answers import AdmissionRequest, Answer, Granted
from serve_app.admission.day_book import Day, Usage
from serve_app.admission.tenants import Tenant
from serve_app.admission.tickets import Ticket
from serve_app.config import GatewaySettings
from serve_app.errors import ChorusError
from serve_app.observability.logs import log_to_stderr
from serve_app.serving.admission_host import AdmissionHost
from serve_app.serving.books import Books
from serve_app.serving.directory import HEARTBEAT_S
from serve_app.serving.instruments import AdmissionInstruments
from serve_app.serving.knock import Knock, Opened
from serve_app.serving.ray_calls import DirectoryHandle
from serve_app.units import SessionId

HEAR_S: Final = 10.0
"""Bound of one turn."""

logger = logging.getLogger(__name__)


class AdmissionReplica:
    """The deployment ``Admission``. Methods are coroutines, because Serve would run others in threads."""

    async def __init__(self, settings: dict[str, Any]) -> None:  # type: ignore[misc]  # Ray awaits it
        log_to_stderr()
        read = GatewaySettings.model_validate(settings)
        self._reload_s = read.tenants.reload_s if read.tenants is not None else None
        books = Books.open(read.tenants, time.time, secrets.token_bytes) if read.tenants is not None else None
        self._host = AdmissionHost(
            DirectoryHandle(),
            books,
            queue=read.queue,
            clock=time.monotonic,
            wall=time.time,
            random=secrets.token_bytes,
        )
        self._instruments = AdmissionInstruments()
        self._tasks = [asyncio.create_task(self._turn()), asyncio.create_task(self._reload())]

    async def identify(self, knock: Knock) -> Tenant | ChorusError:
        """As the host's."""
        return self._host.identify(knock)

    async def ticket(self, knock: Knock) -> Ticket | ChorusError:
        """As the host's."""
        return self._host.ticket(knock)

    async def open(self, knock: Knock, request: AdmissionRequest) -> Opened | ChorusError:
        """As the host's."""
        return await self._host.open(knock, request)

    async def again(self, request: AdmissionRequest, hold_s: float) -> Answer:
        """As the host's."""
        return await self._host.again(request, hold_s)

    async def confirm(self, granted: Granted) -> bool:
        """As the host's."""
        return self._host.confirm(granted)

    async def leave(self, session: SessionId, audio_s: float | None) -> None:
        """As the host's."""
        self._host.leave(session, audio_s)

    async def spent(self) -> Mapping[SessionId, ChorusError]:
        """As the host's."""
        return self._host.spent()

    async def usage(self, knock: Knock, first: Day, last: Day) -> Usage | ChorusError:
        """As the host's."""
        return await self._host.usage(knock, first, last)

    async def __del__(self) -> None:
        """Serve calls it when the replica goes."""
        for task in self._tasks:
            task.cancel()
        await self._host.close()

    async def _turn(self) -> None:
        while True:
            try:
                async with asyncio.timeout(HEAR_S):
                    await self._host.turn()
            except Exception as error:  # noqa: BLE001 -- Ray raises many kinds while the directory starts or goes
                logger.warning("admission could not take its turn: %s", type(error).__name__)
            self._instruments.show(self._host.status(), self._host.spoken_s())
            await asyncio.sleep(HEARTBEAT_S)

    async def _reload(self) -> None:
        while self._reload_s is not None:
            await asyncio.sleep(self._reload_s)
            await self._host.reload()
