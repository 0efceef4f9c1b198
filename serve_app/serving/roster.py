"""What a gateway knows of its engines: polled in the background, read without waiting."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from serve_app.errors import EngineDraining, EngineFull, EngineLost
from serve_app.serving.directory import EXPIRY_S, HEARTBEAT_S, EngineCard
from serve_app.spec import Offer

STALE_S: Final = 6.0
"""Without news for longer than this the gateway knows nothing."""
LOST_S: Final = EXPIRY_S + HEARTBEAT_S
"""An engine whose connection broke is avoided for this long: by then the directory has forgotten one that died, and
one that it still knows lives and had only lost a connection."""

logger = logging.getLogger(__name__)


class DirectoryClient(Protocol):
    """How the gateway asks the directory; over Ray in the real thing."""

    def engines(self) -> Awaitable[list[EngineCard]]:
        """The cards of the engines that live."""
        ...

    def text_model(self, digest: str) -> Awaitable[bytes | None]:
        """The bytes of a text model."""
        ...


class Roster:
    """The engines as of a second ago.

    Args:
        directory: whom to ask.
        clock: monotonic seconds.
        warm: called once, when the first engine is seen, before the gateway calls itself ready.
        take_lost: addresses of engines whose connection broke since it was asked last: the directory learns it later.
    """

    def __init__(
        self,
        directory: DirectoryClient,
        clock: Callable[[], float],
        warm: Callable[[Sequence[EngineCard]], Awaitable[None]],
        take_lost: Callable[[], Collection[str]],
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._warm = warm
        self._take_lost = take_lost
        self._lost_s: dict[str, float] = {}
        self._warmed = False
        self._engines: Sequence[EngineCard] = ()
        self._told_s = float("-inf")
        self._ends_s: dict[str, float] = {}

    @property
    def engines(self) -> Sequence[EngineCard]:
        """Those that live; none when the news is stale."""
        now_s, gone = self._clock(), self._take_lost()
        self._lost_s = {engine: since_s for engine, since_s in self._lost_s.items() if now_s - since_s < LOST_S}
        self._lost_s |= {card.engine: now_s for card in self._engines if card.address in gone}
        if now_s - self._told_s > STALE_S:
            return ()
        return [card for card in self._engines if card.engine not in self._lost_s]

    def obstacle(self, rows: int = 1) -> EngineLost | EngineDraining | EngineFull | None:
        """Why a conversation of so many rows cannot start now; None when it can."""
        engines = self.engines
        if not engines or not self._warmed or not any(card.healthy for card in engines):
            return EngineLost()
        if all(card.draining for card in engines):
            return EngineDraining()
        slots = sum(card.slots for card in engines)
        if not any(card.free for card in engines):
            return EngineFull(slots)
        rows_free = max(card.rows - card.rows_used for card in engines if card.free)
        return EngineFull(slots, rows, rows_free) if rows_free < rows else None

    def model(self) -> str | None:
        """What runs here; None while nobody knows. All engines of a deployment run the same."""
        return next((card.model for card in self._engines), None)

    def offer(self) -> Offer | None:
        """What sessions may ask for here; None while nobody knows. All engines of a deployment offer the same."""
        return next((card.offer for card in self._engines), None)

    def leaves_in_s(self, address: str | None) -> float | None:
        """How long the engine at ``host:port`` still stays; None where it stays, or nobody said."""
        ends_s = self._ends_s.get(address) if address is not None else None
        return None if ends_s is None else max(0.0, ends_s - self._clock())

    async def refresh(self) -> None:
        """Ask once. Raises whatever the directory's client raises."""
        engines = await self._directory.engines()
        if engines and not self._warmed:
            await self._warm(engines)
            self._warmed = True
        # Those that stay first: what they offer is what a visitor will get.
        self._engines, self._told_s = tuple(sorted(engines, key=lambda card: card.draining)), self._clock()
        for card in engines:
            if card.leaves_in_s is not None:
                self._ends_s[card.address] = self._told_s + card.leaves_in_s
            else:
                self._ends_s.pop(card.address, None)  # an old one's port in new hands

    async def watch(self) -> None:
        """Ask for ever, once a heartbeat."""
        while True:
            try:
                await asyncio.wait_for(self.refresh(), EXCHANGE_S)
            except Exception as error:  # noqa: BLE001 -- Ray raises many kinds while an application comes or goes
                logger.debug("the directory does not answer: %r", error)
            await asyncio.sleep(HEARTBEAT_S)


EXCHANGE_S: Final = 10.0
"""Bound of one question to the directory, the warming included."""
