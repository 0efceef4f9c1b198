"""One visitor's way through a gateway: let in, given a slot, heard and answered, and let go."""

import asyncio
import dataclasses
import itertools
import logging
import math
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from fastapi import WebSocket

from serve_app.checkpoint.text import TextPieces
from serve_app.config import GatewaySettings
from serve_app.errors import EngineDraining, EngineFull, EngineLost, SessionMoved
from serve_app.link.channel import Channel
from serve_app.serving.caller import Caller, Host
from serve_app.serving.connection import Connection, Ending
from serve_app.serving.departure import Departure, mind_departure, soonest
from serve_app.serving.granted import Granted
from serve_app.serving.instruments import GatewayInstruments
from serve_app.serving.knock import Knock
from serve_app.serving.latency import Latency
from serve_app.serving.leaving import WatchedSocket
from serve_app.serving.meter import Meter
from serve_app.serving.ray_calls import LeaseHandles
from serve_app.serving.resuming import Keeping, Returning, WayBack
from serve_app.serving.roster import Roster, ServedModel
from serve_app.serving.session import EngineLinks, Session
from serve_app.serving.term import mind_term
from serve_app.serving.texts import Texts
from serve_app.serving.tracing import Opening
from serve_app.units import SessionId
from serve_app.wire.query import ChatQuery

CHANGEOVER_S: Final = 0.05
"""Between two questions for a slot whose last session is on its way out."""
TEXT_S: Final = 1.0
"""How long the directory may take to hand out a text model, while a leased slot waits."""

CUT_OFF: Final = frozenset({EngineLost.reason, EngineDraining.reason})
"""Ends that are this gateway's and need not be the session's: it lost the engine, or has to go."""

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class House:
    """What all conversations of one gateway share."""

    settings: GatewaySettings
    leases: LeaseHandles
    links: EngineLinks
    roster: Roster
    texts: Texts
    meter: Meter
    instruments: GatewayInstruments
    departure: Departure
    host: Host | None = None


class Conversation:
    """From the question to the last word. Belongs to one event loop; ``close`` it whatever happened.

    Args:
        house: the gateway's.
        model: which was asked for.
        asked: the question.
        caller: asks the authority; None where there is none.
        opening: the trace of its start.
        comeback: of a visitor that can come back, or does.
    """

    def __init__(
        self,
        house: House,
        model: ServedModel,
        asked: ChatQuery,
        caller: Caller | None,
        opening: Opening,
        comeback: Keeping | Returning | None = None,
    ) -> None:
        self.caller = caller
        self._house = house
        self._model = model
        self._asked = asked
        self._opening = opening
        call = house.leases.of(model.application).call
        self._session = Session(lambda spec, caller: call(spec, caller, comeback), house.links, asked.spec)
        self._pieces: TextPieces | None = None
        self._way_back: WayBack | None = None
        self._returns = isinstance(comeback, Returning)
        self._lives_on = self._returns  # until it is ours, a session that exists is not ours to end
        self._lived_s = 0.0
        self._lives = asyncio.Event()

    async def begin(self, knock: Knock) -> None:
        """Before the upgrade: who is told to wait is let in without a slot. Raises the refusal."""
        if self._returns:
            self._pieces = await self._lease()
            return
        if self.caller is not None:
            with self._opening.part("admission"):
                await self.caller.open(knock)
            self._opening.note(tenant=self.caller.tenant)
        if self.caller is None or not self.caller.waits:
            self._pieces = await self._lease()

    async def run(self, socket: WebSocket) -> None:
        """Live on an accepted socket until one side ends it."""
        watched = WatchedSocket(socket)
        connection = Connection(
            watched,
            lambda: self._attach(connection),
            self._pieces.stream(goes_on=self._returns) if self._pieces is not None else None,
            time.monotonic,
            silence_s=self._house.settings.silence_s,
            minders=self._minders(lambda: connection),
            latency=Latency(time.monotonic) if self._asked.latency else None,
            spoke=self._opening.spoke,
        )
        ending = connection.ending
        name = SessionId(secrets.token_hex(4))
        logger.info("conversation start session=%(session)s", {"session": name})
        with self._house.meter.conversation(connection.receiver.traffic, connection.sender.traffic):
            try:
                ending = await connection.run()
                broke = ending.cause == "client" and await watched.broke()
                self._lives_on = self._outlives(ending.cause, broke=broke)
            except asyncio.CancelledError:
                ending = connection.ending
                self._lives_on = self._outlives(ending.cause, broke=await watched.broke())
                if await watched.left_properly():
                    ending = dataclasses.replace(ending, cause="client")
                raise
            finally:
                self._opening.end(ending.cause)
                self._house.meter.ended(ending.cause)
                _log(name, ending)

    async def close(self) -> None:
        """First the slot, then the claim to it, so that whoever comes next finds it free. Idempotent.

        A session that goes on without this connection keeps both: its engine says when they are over.
        """
        await self._session.close(keep=self._lives_on)
        if self.caller is not None and not self._lives_on:
            await self.caller.leave()

    def _outlives(self, cause: str, *, broke: bool) -> bool:
        """Whether the session goes on: it has another connection, or its visitor was cut off and may come back."""
        if cause == SessionMoved.reason or (self._returns and not self._session.attached):
            return True
        return self._session.kept and (broke or cause in CUT_OFF)

    @property
    def longest_s(self) -> float:
        """How long it may last."""
        own_s = self._house.settings.longest_s
        return min(math.inf if own_s is None else own_s, math.inf if self.caller is None else self.caller.longest_s)

    @property
    def left_s(self) -> float:
        """How long it may last yet, counted from when its slot is open here."""
        return max(0.0, self.longest_s - self._lived_s)

    async def live(self) -> None:
        """Wait until its slot is open."""
        await self._lives.wait()

    def _minders(self, connection: Callable[[], Connection]) -> list[Callable[[], Coroutine[Any, Any, None]]]:
        minders: list[Callable[[], Coroutine[Any, Any, None]]] = [
            lambda: mind_term(self, connection().tell, asyncio.sleep),
            lambda: self._mind_departure(connection()),
        ]
        return minders if self.caller is None else [*minders, self.caller.mind_orders]

    async def _mind_departure(self, connection: Connection) -> None:
        if self.caller is None or not self.caller.waits:
            await self.live()  # only who waits in a queue expects words before the handshake

        async def tell(word: Mapping[str, Any]) -> None:
            self._house.meter.tells_to_go()
            await connection.tell(word)

        await mind_departure(self._left_s, tell, time.monotonic, asyncio.sleep)

    def _left_s(self) -> float | None:
        """How long its gateway and its engine still stay."""
        return soonest(self._house.departure.left_s, self._house.roster.leaves_in_s(self._session.address))

    async def _attach(self, connection: Connection) -> Channel:
        """The slot, opened, and the visitor's way back to it."""
        channel = await self._let_in(connection)
        self._lives.set()  # the handshake follows at once: who minds the session speaks after it
        if self._way_back is not None:
            connection.greets_with(self._way_back.told())
        return channel

    async def _let_in(self, connection: Connection) -> Channel:
        """The slot, opened: who waits is let in first."""
        caller = self.caller
        if caller is None:
            return await self._open()
        if caller.waits:
            with self._opening.part("queue"):
                await caller.queue(connection.tell)
            found = await self._lease()
            connection.writes(found.stream() if found is not None else None)
        # Side by side: a round trip less before the visitor may speak, and a long prompt lets no grant expire.
        channel, _ = await asyncio.gather(self._open(), caller.confirm())
        caller.goes_live()
        return channel

    async def _open(self) -> Channel:
        began_s = time.monotonic()
        with self._opening.part("attach"):
            channel = await self._session.attach(self._house.settings.opened_s)
        self._opening.live()
        self._house.instruments.shook_hands(time.monotonic() - began_s)
        return channel

    # --- the slot -----------------------------------------------------------------------------------------------------

    async def _lease(self) -> TextPieces | None:
        """Ask for a slot even when the news is bad: it is a second old, and the engine's own answer is the truth.

        Returns what the text tokens of the engine that granted it mean.
        """
        began_s = time.monotonic()
        with self._opening.part("lease"):
            granted = await self._granted()
        self._opening.note(engine=f"{granted.grant.address.host}:{granted.grant.address.port}")
        self._house.instruments.granted(time.monotonic() - began_s)
        self._way_back = granted.way_back
        if granted.past is not None:
            self._lived_s = granted.past.lived_s
        if granted.past is not None and granted.past.caller is not None and self._house.host is not None:
            self.caller = Caller.back(self._house.host, granted.past, time.monotonic)
        try:
            async with asyncio.timeout(TEXT_S):
                return await self._house.texts.pieces(granted.text_model)
        except (LookupError, TimeoutError):
            raise EngineLost from None  # it comes up: its text model is on the way

    async def _granted(self) -> Granted:
        if self._returns:
            return await self._session.lease(self._house.settings.grant_wait_s)
        return await (self._ask() if self.caller is None else self._claim(self.caller))

    async def _ask(self) -> Granted:
        """Ask until somebody grants: the router may choose a full engine while another has room, but not for ever."""
        roster = self._house.roster
        patience_s = time.monotonic() + self._house.settings.grant_wait_s
        for asked in itertools.count(1):
            try:
                return await self._session.lease(self._house.settings.grant_wait_s)
            except EngineFull as full:
                obstacle = roster.obstacle(self._asked.spec.rows, self._model.name)
                engines = sum(card.model == self._model.name for card in roster.engines)
                if obstacle is not None or not full.slots or asked >= 2 * engines:
                    raise obstacle or full from None
            except EngineDraining:  # replaced a moment ago: the next question goes to another
                if time.monotonic() > patience_s:
                    raise
                await asyncio.sleep(CHANGEOVER_S)
        raise AssertionError("counting does not end")

    async def _claim(self, caller: Caller) -> Granted:
        """Fetch the slot that is set aside. Who had it before may still be on the way out, a tick or two."""
        patience_s = time.monotonic() + self._house.settings.grant_wait_s
        while True:
            try:
                return await self._session.lease(self._house.settings.grant_wait_s, caller.admitted)
            except (EngineFull, EngineDraining):
                if time.monotonic() > patience_s:
                    raise
                await asyncio.sleep(CHANGEOVER_S)


def _log(name: SessionId, ending: Ending) -> None:
    logger.info(
        "conversation end cause=%(cause)s session=%(session)s duration_s=%(duration_s).2f "
        "frames_in=%(frames_in)d frames_out=%(frames_out)d dropped=%(dropped)d discarded=%(discarded)d",
        {"session": name, **dataclasses.asdict(ending)},
    )
