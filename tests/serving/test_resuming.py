"""A slot is kept for a client that was cut off, and goes to whoever shows its token: engine, desk, link and session."""

from typing import Final

import pytest

from serve_app.errors import EngineFull, EngineLost, ParameterRefused, SessionGone, SessionMoved, StaleLease
from serve_app.link.channel import Channel
from serve_app.link.messages import Ended, Output
from serve_app.serving.engine_port import lease_of
from serve_app.serving.granted import Admitted, Granted
from serve_app.serving.placed_router import engine_wanted
from serve_app.serving.resuming import GRACE_LIMIT_S, Asked, Keeping, Returning, Token
from serve_app.serving.session import EngineLinks, Session
from serve_app.spec import SessionSpec
from serve_app.units import SessionId
from tests.link.fakes import frame, on_loop
from tests.serving.test_leases import WAIT_S, House, house

GRACE_S: Final = 60.0
ACME: Final = Admitted(SessionId("s"), "acme", "engine", 100.0)
ASKED: Final = (("text_seed", "7"), ("text_topk", "3"))


def session(home: House, comeback: Keeping | Returning | None, links: EngineLinks | None = None) -> Session:
    return Session(lambda spec, caller: home.desk.lease(spec, caller, comeback), links or home.links, SessionSpec())


class Visitor:
    """Somebody who comes, is cut off and comes back."""

    def __init__(self, home: House, grace_s: float = GRACE_S, caller: Admitted | None = None) -> None:
        self.home = home
        self.caller = caller
        self.session = session(home, Keeping(grace_s, ASKED))
        self.granted: Granted | None = None
        self.links = [home.links]

    async def comes(self) -> Channel:
        self.granted = await self.session.lease(WAIT_S, self.caller)
        return await self.session.attach(WAIT_S)

    async def comes_back(self, token: Token | None = None) -> Channel:
        """To another gateway."""
        self.links.append(EngineLinks())
        self.session = session(self.home, Returning(token or self.token), self.links[-1])
        return await self.comes()

    async def is_cut_off(self) -> None:
        await self.session.close(keep=True)

    async def leaves(self) -> None:
        await self.session.close()
        for links in self.links[1:]:
            await links.close()

    @property
    def token(self) -> Token:
        assert self.granted is not None
        assert self.granted.way_back is not None
        return self.granted.way_back.token


async def refused(home: House, returning: Returning) -> None:
    with pytest.raises(SessionGone):
        await session(home, returning).lease(WAIT_S)


async def steps(channel: Channel, count: int) -> list[int]:
    """Say so many frames, one after the other, and hear the number of each one's step."""
    heard = []
    for number in range(count):
        channel.send(number, frame(0.5))
        event = await anext(channel.events())
        assert isinstance(event, Output)
        heard.append(event.step)
    return heard


async def end_of(channel: Channel) -> Ended:
    return [event async for event in channel if isinstance(event, Ended)][-1]


@on_loop
async def test_a_client_that_comes_back_through_another_gateway_goes_on_where_it_was() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        assert await steps(await visitor.comes(), 3) == [0, 1, 2]
        await visitor.is_cut_off()
        assert await steps(await visitor.comes_back(), 3) == [3, 4, 5]
        await visitor.leaves()
        await home.until_free(1)
        assert home.desk.returns() == {"parked": 1, "resumed": 1, "lapsed": 0}


@on_loop
async def test_a_slot_that_is_kept_is_nobody_elses() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        await visitor.is_cut_off()
        with pytest.raises(EngineFull):
            await home.session().lease(WAIT_S)
        await visitor.comes_back()
        await visitor.leaves()


@on_loop
async def test_sessions_of_a_gateway_that_died_can_be_gone_on_with() -> None:
    async with house(2) as home:
        visitor, plain = Visitor(home), home.session()
        await steps(await visitor.comes(), 2)
        await plain.lease(WAIT_S)
        await plain.attach(WAIT_S)
        await home.links.close()
        await home.until_free(1)  # who cannot come back is not waited for
        assert await steps(await visitor.comes_back(), 1) == [2]
        await visitor.leaves()


@on_loop
async def test_a_slot_is_free_when_its_grace_is_over_and_the_token_is_late() -> None:
    async with house(1) as home:
        visitor = Visitor(home, grace_s=0.05)
        await visitor.comes()
        await visitor.is_cut_off()
        await home.until_free(1)
        await refused(home, Returning(visitor.token))
        assert home.desk.returns()["lapsed"] == 1


@on_loop
async def test_a_proper_goodbye_keeps_nothing() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        await visitor.session.close()
        await home.until_free(1)
        await refused(home, Returning(visitor.token))


@on_loop
async def test_a_token_is_good_once_and_each_return_gives_another() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        first = visitor.token
        await visitor.is_cut_off()
        channel = await visitor.comes_back()
        assert visitor.token != first
        assert await steps(channel, 1) == [0]
        await refused(home, Returning(first))
        assert await steps(channel, 1) == [1]  # nobody was disturbed
        await visitor.is_cut_off()
        await refused(home, Returning(first))
        await visitor.comes_back()
        await visitor.leaves()


@on_loop
async def test_wrong_tokens_open_nothing_and_disturb_nobody() -> None:
    async with house(2) as home:
        visitor = Visitor(home)
        channel = await visitor.comes()
        good = visitor.token
        for secret in (b"", bytes(18), good.secret[:-1], good.secret + b"x", good.secret[::-1]):
            await refused(home, Returning(Token("engine", secret)))
        await refused(home, Returning(Token("another", good.secret)))
        assert await steps(channel, 1) == [0]
        await visitor.leaves()


@on_loop
async def test_a_token_moves_a_session_away_from_where_it_still_is() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        before = await visitor.comes()
        await steps(before, 2)
        stale = visitor.session
        after = await visitor.comes_back()
        assert isinstance((await end_of(before)).error, SessionMoved)
        await stale.close()
        assert await steps(after, 2) == [2, 3]
        await visitor.leaves()
        await home.until_free(1)


@on_loop
async def test_a_session_may_move_within_one_gateway() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        before = await visitor.comes()
        await steps(before, 2)
        stale = visitor.session
        visitor.session = session(home, Returning(visitor.token))
        after = await visitor.comes()
        assert isinstance((await end_of(before)).error, SessionMoved)
        await stale.close(keep=True)
        assert await steps(after, 2) == [2, 3]
        await visitor.leaves()
        await home.until_free(1)


@on_loop
async def test_of_two_who_show_one_token_before_either_has_attached_the_last_gets_the_session() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await steps(await visitor.comes(), 2)
        await visitor.is_cut_off()
        slow, quick = (session(home, Returning(visitor.token)) for _ in range(2))
        await slow.lease(WAIT_S)
        await quick.lease(WAIT_S)
        with pytest.raises(StaleLease):
            await slow.attach(WAIT_S)
        channel = await quick.attach(WAIT_S)
        await slow.close(keep=True)
        assert await steps(channel, 1) == [2]
        await refused(home, Returning(visitor.token))
        await quick.close()
        await home.until_free(1)


@on_loop
async def test_a_return_that_was_never_attached_leaves_the_token_good() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await steps(await visitor.comes(), 1)
        await visitor.is_cut_off()
        broken = session(home, Returning(visitor.token))
        await broken.lease(WAIT_S)
        await broken.close(keep=True)
        assert await steps(await visitor.comes_back(), 1) == [1]
        await visitor.leaves()


@on_loop
async def test_who_is_cut_off_before_the_next_token_came_may_show_the_last_one_again() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await steps(await visitor.comes(), 1)
        told = visitor.token
        for _ in range(3):
            await visitor.is_cut_off()
            await visitor.comes_back(told)
        unheard = visitor.token
        await visitor.is_cut_off()
        assert await steps(await visitor.comes_back(told), 1) == [1]
        await refused(home, Returning(told))
        await refused(home, Returning(unheard))
        await visitor.leaves()
        await home.until_free(1)


@on_loop
async def test_the_last_token_is_no_more_once_the_next_one_was_shown() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        first = visitor.token
        await visitor.is_cut_off()
        await visitor.comes_back()
        await visitor.is_cut_off()
        await visitor.comes_back()
        await refused(home, Returning(first))
        await visitor.leaves()


@on_loop
async def test_a_return_that_is_not_attached_in_time_is_kept_and_then_freed() -> None:
    async with house(1, attach_s=0.05) as home:
        visitor = Visitor(home, grace_s=0.3)
        await visitor.comes()
        await visitor.is_cut_off()
        await session(home, Returning(visitor.token)).lease(WAIT_S)
        await home.until_free(1)


@on_loop
async def test_a_grant_that_was_never_opened_is_not_kept() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        granted = await visitor.session.lease(WAIT_S)
        await visitor.session.close(keep=True)
        await home.until_free(1)
        assert granted.way_back is not None
        await refused(home, Returning(granted.way_back.token))


@on_loop
async def test_who_did_not_ask_gets_no_token_and_no_grace() -> None:
    async with house(1) as home:
        plain = home.session()
        assert (await plain.lease(WAIT_S)).way_back is None
        await plain.attach(WAIT_S)
        await plain.close(keep=True)
        await home.until_free(1)


@on_loop
async def test_the_engine_bounds_the_grace() -> None:
    async with house(1) as home:
        visitor = Visitor(home, grace_s=1e9)
        await visitor.comes()
        assert visitor.granted is not None
        assert visitor.granted.way_back is not None
        assert visitor.granted.way_back.grace_s == GRACE_LIMIT_S
        await visitor.leaves()


@on_loop
async def test_a_session_is_its_tenants_and_counts_while_it_is_kept() -> None:
    async with house(1) as home:
        visitor = Visitor(home, caller=ACME)
        await visitor.comes()
        await visitor.is_cut_off()
        (kept,) = home.desk.sessions()
        assert (kept.session, kept.tenant) == ("s", "acme")
        await refused(home, Returning(visitor.token, tenant="beta"))
        returning = session(home, Returning(visitor.token, tenant="acme"))
        granted = await returning.lease(WAIT_S)
        assert granted.past is not None
        assert granted.past.caller == ACME
        (here,) = home.desk.sessions()
        assert here.audio_s >= granted.past.lived_s >= kept.audio_s
        await returning.attach(WAIT_S)
        await returning.close()
        assert home.desk.sessions() == ()


@on_loop
async def test_a_session_of_no_tenant_is_no_tenants() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        await refused(home, Returning(visitor.token, tenant="acme"))
        await visitor.leaves()


@pytest.mark.parametrize(
    "asked", [(("text_seed", "8"),), (("text_seed", "7"), ("audio_seed", "7")), (("text_topk", "03"),)]
)
@on_loop
async def test_who_comes_back_and_asks_for_something_else_is_told_and_may_try_again(asked: Asked) -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await steps(await visitor.comes(), 1)
        await visitor.is_cut_off()
        with pytest.raises(ParameterRefused):
            await session(home, Returning(visitor.token, asked=asked)).lease(WAIT_S)
        again = session(home, Returning(visitor.token, asked=ASKED))
        await again.lease(WAIT_S)
        assert await steps(await again.attach(WAIT_S), 1) == [1]
        await again.close()


@on_loop
async def test_a_call_that_ray_ends_under_a_live_session_cuts_it_off_and_no_more() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        channel = await visitor.comes()
        holder = visitor.session._holder
        assert holder is not None
        holder.cancel()
        assert isinstance((await end_of(channel)).error, EngineLost)
        assert await steps(await visitor.comes_back(), 1) == [0]
        await visitor.leaves()


@on_loop
async def test_a_session_that_fails_while_it_is_kept_is_gone() -> None:
    async with house(1) as home:
        visitor = Visitor(home)
        await visitor.comes()
        await visitor.is_cut_off()
        assert visitor.granted is not None
        home.engine.close(lease_of(visitor.granted.grant.key))
        await home.until_free(1)
        await refused(home, Returning(visitor.token))


def test_calls_that_show_a_token_go_to_the_engine_that_it_names() -> None:
    assert engine_wanted((SessionSpec(), None, Returning(Token.fresh("abc")))) == "abc"
    assert engine_wanted((SessionSpec(), ACME, Keeping(1.0))) == "engine"
    assert engine_wanted((SessionSpec(), None, Keeping(1.0))) is None


def test_a_token_is_read_as_it_was_written() -> None:
    token = Token.fresh("k3b9x_-Z")
    assert Token.read(token.text()) == token


@pytest.mark.parametrize(
    "text", ["", ".", "engine", "engine.", "engine.short", f"a/b.{'A' * 24}", f"e.{'A' * 25}", f"e.{'=' * 24}", "ü.é"]
)
def test_what_is_no_token_is_answered_as_one_that_opens_nothing(text: str) -> None:
    with pytest.raises(SessionGone):
        Token.read(text)


def test_nothing_prints_a_secret() -> None:
    token = Token.fresh("engine")
    secret = token.text().partition(".")[2]
    assert len(token.secret) >= 16
    for shown in (repr(token), repr(Returning(token)), str(SessionGone())):
        assert secret not in shown
        assert repr(token.secret) not in shown
