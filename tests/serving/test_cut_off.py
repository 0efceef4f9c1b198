"""What becomes of a session when its connection ends: gateway's conversation, desk and engine, without Ray."""

import asyncio
import json
import time
from typing import Any, Final, cast

import pytest
from fastapi import WebSocket

from serve_app.checkpoint.text import TextPieces
from serve_app.config import GatewaySettings
from serve_app.errors import SessionGone
from serve_app.serving.caller import Caller
from serve_app.serving.conversation import Conversation
from serve_app.serving.conversation import House as Gateway
from serve_app.serving.departure import Departure
from serve_app.serving.directory import TextModel
from serve_app.serving.instruments import GatewayInstruments
from serve_app.serving.knock import Knock
from serve_app.serving.meter import Meter
from serve_app.serving.ray_calls import LeaseHandles
from serve_app.serving.resuming import Keeping, Returning, Token
from serve_app.serving.roster import Roster, ServedModel
from serve_app.serving.session import EngineLinks
from serve_app.serving.texts import Texts
from serve_app.serving.tracing import Opening
from serve_app.spec import Offer, SessionSpec
from serve_app.wire.query import ChatQuery
from tests.link.fakes import on_loop
from tests.serving.test_caller import GRANT, Host
from tests.serving.test_connection import Socket
from tests.serving.test_leases import House, house

KNOCK: Final = Knock("key", None, None)
BROKE: Final = -1005
HANDSHAKE: Final = 0
METADATA: Final = 4
MODEL: Final = ServedModel("m", "engine", Offer())


class NoInstruments:
    """Shows nothing to nobody."""

    def granted(self, waited_s: float) -> None:
        pass

    def shook_hands(self, waited_s: float) -> None:
        pass


class NoTexts:
    """An engine that writes nothing."""

    async def pieces(self, model: TextModel | None) -> TextPieces | None:
        return None


class Stays:
    """An engine that nobody replaces."""

    def leaves_in_s(self, address: str | None) -> float | None:
        return None


class OneHouse:
    """Every application's engine is the same."""

    def __init__(self, home: House) -> None:
        self.call = home.desk.lease

    def of(self, application: str) -> "OneHouse":
        return self


class Visit:
    """One connection of a visitor, through a gateway of its own."""

    def __init__(self, home: House, host: Host, comeback: Keeping | Returning, silence_s: float = 60.0) -> None:
        self.links = EngineLinks()
        self.host = host
        self.gateway = Gateway(
            settings=GatewaySettings(silence_s=silence_s),
            leases=cast(LeaseHandles, OneHouse(home)),
            links=self.links,
            roster=cast(Roster, Stays()),
            texts=cast(Texts, NoTexts()),
            meter=Meter(),
            instruments=cast(GatewayInstruments, NoInstruments()),
            departure=Departure(0.0, time.monotonic),
            host=host,
        )
        returns = isinstance(comeback, Returning)
        caller = None if returns else Caller(host, "m", 1, frozenset(), time.monotonic)
        asked = ChatQuery(spec=SessionSpec())
        self.conversation = Conversation(self.gateway, MODEL, asked, caller, Opening(), comeback)
        self.socket = Socket()
        self.handler: asyncio.Task[None] | None = None

    async def begins(self) -> dict[str, Any]:
        """To the word about coming back."""
        await self.conversation.begin(KNOCK)
        self.handler = asyncio.create_task(self._handle())
        await self.socket.until_sent(2)
        assert self.socket.kinds[:2] == [HANDSHAKE, METADATA]
        return dict(json.loads(self.socket.sent[1][1:])["resume"])

    async def _handle(self) -> None:
        """As the replica does."""
        try:
            await self.conversation.run(cast(WebSocket, self.socket))
        finally:
            await asyncio.shield(asyncio.ensure_future(self.conversation.close()))

    def leaves(self, code: int) -> None:
        """As uvicorn says it; 1005 and no reason is a connection that broke."""
        reason = {} if code == BROKE else {"reason": ""}
        self.socket.incoming.put_nowait({"type": "websocket.disconnect", "code": abs(code)} | reason)

    async def over(self) -> None:
        assert self.handler is not None
        await asyncio.wait({self.handler})


async def left(visit: Visit, code: int) -> None:
    visit.leaves(code)
    await visit.over()


@pytest.mark.parametrize("code", [1000, 1001, 1005])
@on_loop
async def test_who_says_goodbye_gives_slot_and_claim_back(code: int) -> None:
    async with house(1) as home:
        host = Host([GRANT])
        visit = Visit(home, host, Keeping(60.0))
        await visit.begins()
        await left(visit, code)
        await home.until_free(1)
        assert len(host.left) == 1


@pytest.mark.parametrize("code", [BROKE, 1006, 1011, 1002])
@on_loop
async def test_who_is_cut_off_keeps_both_and_comes_back_through_another_gateway(code: int) -> None:
    async with house(1) as home:
        host = Host([GRANT])
        first = Visit(home, host, Keeping(60.0))
        told = await first.begins()
        assert told["grace_s"] == 60.0
        await left(first, code)
        assert home.engine.stats().parked == 1
        assert host.left == []

        second = Visit(home, host, Returning(Token.read(told["token"])))
        again = await second.begins()
        assert again["token"] != told["token"]
        assert second.conversation.caller is not None
        assert first.conversation.caller is not None
        assert second.conversation.caller.session == first.conversation.caller.session
        await left(second, 1000)
        await home.until_free(1)
        ((session, audio_s),) = host.left
        assert session == first.conversation.caller.session
        assert audio_s is not None
        assert audio_s > 0


@on_loop
async def test_a_handler_that_ray_cancels_keeps_the_slot_unless_its_visitor_had_closed() -> None:
    for code, kept in ((None, True), (BROKE, True), (1006, True), (1000, False), (1005, False)):
        async with house(1) as home:
            host = Host([GRANT])
            visit = Visit(home, host, Keeping(60.0))
            await visit.begins()
            assert visit.handler is not None
            visit.handler.cancel()
            if code is not None:
                visit.leaves(code)
            await visit.over()
            if kept:
                assert home.engine.stats().parked == 1
            else:
                await home.until_free(1)
            assert len(host.left) == (0 if kept else 1)


@on_loop
async def test_a_gateway_that_loses_its_engines_connection_says_so_and_the_session_can_be_gone_on_with() -> None:
    async with house(1) as home:
        host = Host([GRANT])
        visit = Visit(home, host, Keeping(60.0))
        told = await visit.begins()
        await visit.links.close()
        await visit.over()
        assert visit.socket.closed == (1012, "engine_lost")
        assert host.left == []
        again = Visit(home, host, Returning(Token.read(told["token"])))
        await again.begins()
        await left(again, 1000)
        await home.until_free(1)


@on_loop
async def test_silence_ends_a_session_that_could_be_resumed() -> None:
    async with house(1) as home:
        host = Host([GRANT])
        visit = Visit(home, host, Keeping(60.0), silence_s=0.05)
        await visit.begins()
        await visit.over()
        assert visit.socket.closed == (1008, "no_audio")
        await home.until_free(1)
        assert len(host.left) == 1


@on_loop
async def test_a_connection_whose_session_moved_is_told_and_gives_nothing_back() -> None:
    async with house(1) as home:
        host = Host([GRANT])
        first = Visit(home, host, Keeping(60.0))
        told = await first.begins()
        second = Visit(home, host, Returning(Token.read(told["token"])))
        await second.begins()
        await first.over()
        assert first.socket.closed == (4001, "moved")
        assert host.left == []
        assert home.engine.stats().live == 1
        await left(second, 1000)
        await home.until_free(1)


@on_loop
async def test_a_return_that_ends_before_it_is_live_gives_nothing_back_and_the_token_stays_good() -> None:
    async with house(1) as home:
        host = Host([GRANT])
        first = Visit(home, host, Keeping(60.0))
        told = await first.begins()
        await left(first, 1006)
        token = Token.read(told["token"])
        vanished = Visit(home, host, Returning(token))
        await vanished.conversation.begin(KNOCK)
        await vanished.conversation.close()
        assert host.left == []
        back = Visit(home, host, Returning(token))
        await back.begins()
        await left(back, 1000)
        await home.until_free(1)


@on_loop
async def test_a_token_that_opens_nothing_is_refused_before_the_upgrade_and_costs_nobody_anything() -> None:
    async with house(1) as home:
        host = Host([])
        visit = Visit(home, host, Returning(Token.fresh("engine")))
        with pytest.raises(SessionGone):
            await visit.conversation.begin(KNOCK)
        await visit.conversation.close()
        assert (host.asked, host.left) == ([], [])
        assert home.engine.stats().free == 1
