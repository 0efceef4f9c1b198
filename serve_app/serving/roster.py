"""What a gateway knows of its engines: polled in the background, read without waiting."""

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Protocol

from serve_app.config import ENGINE_APPLICATION
from serve_app.errors import EngineDraining, EngineFull, EngineLate, EngineLost, ModelUnknown
from serve_app.serving.directory import EXPIRY_S, HEARTBEAT_S, EngineCard
from serve_app.spec import Offer

STALE_S: Final = 6.0
"""Without news for longer than this the gateway knows nothing."""
LOST_S: Final = EXPIRY_S + HEARTBEAT_S
"""An engine whose connection broke is avoided for this long: by then the directory has forgotten one that died, and
one that it still knows lives and had only lost a connection."""
REMEMBERED_S: Final = 600.0
"""A model whose engines are all gone is one that comes back for so long, and unknown after."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that clients may ask for.

    Attributes:
        application: of Ray Serve, whose engines run it.
        offer: what sessions may ask of it.
    """

    name: str
    application: str
    offer: Offer


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
        warm: called once for each application, when its first engines are seen, before its model is called ready.
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
        self._warmed: set[str] = set()
        self._engines: Sequence[EngineCard] = ()
        self._models: dict[str, tuple[float, ServedModel]] = {}  # when last seen; the latest last
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

    def obstacle(
        self, rows: int = 1, model: str | None = None
    ) -> EngineLost | EngineDraining | EngineFull | EngineLate | None:
        """Why a conversation of so many rows cannot start now, of this model or of any; None when it can."""
        engines = [card for card in self.engines if model in (None, card.model) and card.application in self._warmed]
        if not any(card.healthy for card in engines):
            return EngineLost()
        if all(card.draining for card in engines):
            return EngineDraining()
        slots = sum(card.slots for card in engines)
        if not any(card.free for card in engines):
            late = any(card.late and card.room for card in engines if card.healthy and not card.draining)
            return EngineLate(slots) if late else EngineFull(slots)
        rows_free = max(card.rows - card.rows_used for card in engines if card.free)
        return EngineFull(slots, rows, rows_free) if rows_free < rows else None

    @property
    def models(self) -> list[ServedModel]:
        """All that clients may ask for: first the one that answers who names none."""
        latest_first = [model for _, model in reversed(self._models.values())]
        return sorted(latest_first, key=lambda model: model.application != ENGINE_APPLICATION)

    def served(self, name: str | None = None) -> ServedModel:
        """The model of that name, or the one that answers where none is named.

        Raises:
            ModelUnknown: there is none; says which there are.
            EngineLost: none is named, and the first is not there yet, or nobody knows.
        """
        models = self.models
        if name is None or not models:
            if not models or models[0].application != ENGINE_APPLICATION:
                raise EngineLost
            return models[0]
        found = next((model for model in models if model.name == name), None)
        if found is None:
            raise ModelUnknown(name, [model.name for model in models])
        return found

    def running(self, engine: str) -> ServedModel | None:
        """The model that an engine runs; None where nobody knows the engine."""
        applications = [card.application for card in self.engines if card.engine == engine]
        return next((model for model in self.models if model.application in applications), None)

    def leaves_in_s(self, address: str | None) -> float | None:
        """How long the engine at ``host:port`` still stays; None where it stays, or nobody said."""
        ends_s = self._ends_s.get(address) if address is not None else None
        return None if ends_s is None else max(0.0, ends_s - self._clock())

    async def refresh(self) -> None:
        """Ask once. Raises whatever the directory's client or the warming raises."""
        engines = await self._directory.engines()
        self._engines, self._told_s = tuple(engines), self._clock()
        self._remember()
        for card in engines:
            if card.leaves_in_s is not None:
                self._ends_s[card.address] = self._told_s + card.leaves_in_s
            else:
                self._ends_s.pop(card.address, None)  # an old one's port in new hands
        new = {card.application for card in engines} - self._warmed
        told = await asyncio.gather(*(self._prepare(application) for application in new), return_exceptions=True)
        for error in told:
            if error is not None:
                raise error

    async def _prepare(self, application: str) -> None:
        await self._warm([card for card in self._engines if card.application == application])
        self._warmed.add(application)

    def _remember(self) -> None:
        for card in sorted(self._engines, key=lambda card: not card.draining):  # what stays after what goes
            self._models.pop(card.model, None)
            self._models[card.model] = self._told_s, ServedModel(card.model, card.application, card.offer)
        for name in [name for name, (seen_s, _) in self._models.items() if self._told_s - seen_s > REMEMBERED_S]:
            del self._models[name]

    async def watch(self) -> None:
        """Ask for ever, once a heartbeat."""
        while True:
            try:
                async with asyncio.timeout(EXCHANGE_S):
                    await self.refresh()
            except Exception as error:  # noqa: BLE001 -- Ray raises many kinds while an application comes or goes
                logger.debug("the directory does not answer: %r", error)
            await asyncio.sleep(HEARTBEAT_S)


EXCHANGE_S: Final = 10.0
"""Bound of one question to the directory, the warming included."""
