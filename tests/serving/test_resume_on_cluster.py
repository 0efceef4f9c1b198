"""Clients that are cut off and come back, on a real cluster: two gateways, HAProxy, tenants, real sockets."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake

from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.serving.conversation import HANDSHAKE, Visitor, loudest_hz, tone
from tests.serving.tenancy import tenancy
from tests.serving.test_tenants import Town, as_header, key, refused

SLOTS: Final = 4
GRACE_S: Final = 15.0
ATTEMPT_S: Final = 2.0
"""A proxy that has not noticed a death lets callers hang: then another attempt is better than patience."""
VISITS: Final = 12
TENANTS: Final = """
tenants:
  acme: {concurrent_sessions: 20, sessions_per_minute: 100000}
  beta: {concurrent_sessions: 20, sessions_per_minute: 100000}
  solo: {concurrent_sessions: 1, sessions_per_minute: 100000}
  brief: {longest_s: 5}
"""


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("resume")
    keys, tenants = tenancy(folder, TENANTS)
    gateway = {"tenants": tenants, "silence_s": 30.0, "replicas": 2, "resume_s": GRACE_S}
    with up(changed("passthrough.yaml", folder, {"slots": SLOTS}, gateway)) as cluster:
        eventually(lambda: cluster.ready() and len(cluster.replicas("Gateway")) == 2, 3 * WAIT_S)
        yield Town(cluster, keys)


@pytest.fixture(autouse=True)
def nobody_here(town: Town) -> None:
    """Every test begins with free slots, so every test also shows that the one before gave them back."""
    eventually(town.empty, WAIT_S)


class Client:
    """One conversation over all its connections."""

    def __init__(self, town: Town, key: str, query: str = "resumable=1") -> None:
        self.town = town
        self.key = key
        self.query = query
        self.token = ""
        self.visitor: Visitor | None = None

    async def opens(self, query: str) -> Visitor:
        """Connect, and take what comes up to the token."""
        async with asyncio.timeout(WAIT_S):
            while True:
                try:
                    address = f"{self.town.cluster.chat}?{query}"
                    socket = await connect(address, compression=None, open_timeout=ATTEMPT_S, **as_header(self.key))
                    break
                except (OSError, InvalidHandshake, EOFError) as error:
                    status = getattr(getattr(error, "response", None), "status_code", None)
                    if status not in (None, 429, 503):  # a proxy notices a death, a quota an end, a little later
                        raise
                    await asyncio.sleep(0.1)
            assert await socket.recv() == HANDSHAKE
            self.visitor = Visitor(socket)
            while not (told := [one["resume"] for one in self.visitor.metadata if "resume" in one]):
                self.visitor.take(await socket.recv())
        return self.keeps(self.visitor, told[0])

    def keeps(self, visitor: Visitor, told: dict[str, Any]) -> Visitor:
        assert told["grace_s"] == GRACE_S
        assert told["token"] != self.token
        self.token = told["token"]
        self.town.texts.append(self.token)
        return visitor

    async def comes(self) -> Visitor:
        return await self.opens(self.query)

    async def comes_back(self) -> Visitor:
        return await self.opens(f"resume={self.token}")

    def is_cut_off(self) -> None:
        assert self.visitor is not None
        self.visitor.socket.transport.abort()

    async def leaves(self) -> None:
        assert self.visitor is not None
        await self.visitor.socket.close()


async def echo(visitor: Visitor, frames: int) -> None:
    """Say a tone, frame by frame, and hear an answer to each."""
    for number in range(frames):
        await visitor.say(tone(440, frames)[number * 1_920 : (number + 1) * 1_920])
        before = visitor.messages
        await visitor.listen_for(before + 1)


def lines(cluster: Cluster, since: int, pattern: str) -> list[str]:
    return [line for line in list(cluster.lines)[since:] if re.search(pattern, line)]


def gateways(cluster: Cluster, since: int, count: int) -> list[str]:
    """Processes of the gateways where so many conversations started, as they were printed.

    Two processes' words may come in either order: who wants to know where one client is asks before the next comes.
    """

    def told() -> list[str]:
        started = lines(cluster, since, "conversation start")
        found = [found[1] for line in started if (found := re.search(r"pid=(\d+)", line))]
        return found if len(found) == count else []

    return eventually(told, WAIT_S)


def ends(cluster: Cluster, since: int, count: int) -> list[str]:
    """The engine's last words about so many sessions."""

    def told() -> list[str]:
        found = lines(cluster, since, "session end slot")
        return found if len(found) == count else []

    return eventually(told, WAIT_S)


def test_a_client_that_is_cut_off_goes_on_at_the_other_gateway(town: Town) -> None:
    since = len(town.cluster.lines)
    client = Client(town, key(town, "acme"))
    said = 0

    async def talk() -> None:
        nonlocal said
        await echo(await client.comes(), 5)
        said += 5
        for visit in range(VISITS):
            client.is_cut_off()
            visitor = await client.comes_back()
            await echo(visitor, 12)
            said += 12
            assert loudest_hz(visitor.pcm) == pytest.approx(440, abs=20)
            where = gateways(town.cluster, since, visit + 2)
            if len(set(where)) > 1:
                break
        assert len(set(where)) == 2
        await client.leaves()

    asyncio.run(talk())
    (end,) = ends(town.cluster, since, 1)
    assert re.search(rf"frames={said} stepped={said} dropped=0", end), end
    assert len(lines(town.cluster, since, "session start slot")) == 1


def until_both_take_callers(town: Town) -> None:
    """A proxy learns of a gateway a little after it is ready."""
    since, seen = len(town.cluster.lines), list[str]()

    async def call() -> None:
        client = Client(town, key(town, "acme"))
        await client.comes()
        seen.append(gateways(town.cluster, since, len(seen) + 1)[-1])
        await client.leaves()

    while len(set(seen)) < 2:
        asyncio.run(call())
    ends(town.cluster, since, len(seen))


@pytest.mark.slow
def test_clients_of_a_gateway_that_is_killed_go_on_at_the_other(town: Town) -> None:
    until_both_take_callers(town)
    since = len(town.cluster.lines)
    acme = key(town, "acme")
    clients = [Client(town, acme) for _ in range(3)]

    async def talk() -> None:
        where: list[str] = []
        for client in clients:
            await echo(await client.comes(), 3)
            where.append(gateways(town.cluster, since, len(where) + 1)[-1])
        os.kill(int(where[0]), signal.SIGKILL)
        hit = [client for client, at in zip(clients, where, strict=True) if at == where[0]]
        for client in hit:
            assert client.visitor is not None
            await client.visitor.listen()
        await asyncio.gather(*(client.comes_back() for client in hit))
        for client in clients:
            assert client.visitor is not None
            await echo(client.visitor, 3)
            await client.leaves()

    asyncio.run(talk())
    told = ends(town.cluster, since, len(clients))
    assert all(re.search(r"frames=6 stepped=6 dropped=0", end) for end in told), told


def test_tokens_that_are_wrong_or_used_or_anothers_are_answered_alike_and_disturb_nobody(town: Town) -> None:
    acme, beta = key(town, "acme"), key(town, "beta")
    client = Client(town, acme)
    chat = town.cluster.chat

    async def talk() -> None:
        await client.comes()
        used = client.token
        client.is_cut_off()
        visitor = await client.comes_back()
        await echo(visitor, 1)
        good = client.token
        engine = good.partition(".")[0]
        wrong = [
            "",
            "x",
            ".",
            f"{engine}.",
            f"{engine}.{'A' * 24}",
            f"nowhere.{good.partition('.')[2]}",
            good[:-1],
            used,
        ]
        answers = [await refused(f"{chat}?resume={token}", **as_header(acme)) for token in wrong]
        answers.append(await refused(f"{chat}?resume={good}", **as_header(beta)))
        assert {(status, json.dumps(body)) for status, _, body in answers} == {(410, json.dumps(answers[0][2]))}
        assert answers[0][2]["reason"] == "session_gone"
        status, _, body = await refused(f"{chat}?resume={good}", **as_header("wrong"))
        assert (status, body["reason"]) == (401, "not_allowed")
        status, _, body = await refused(f"{chat}?resume={good}&text_seed=5", **as_header(acme))
        assert (status, body["reason"]) == (400, "bad_parameter")
        await echo(visitor, 3)
        await client.leaves()

    asyncio.run(talk())


def lapsed(town: Town) -> int:
    """Sessions that nobody came back to, as the engine counts them."""
    (engine,) = town.cluster.info()["engines"]
    return int(engine["counters"]["lapsed"])


def test_a_token_that_is_late_is_gone_and_so_is_its_slot(town: Town) -> None:
    client = Client(town, key(town, "solo"))
    chat, headers = town.cluster.chat, as_header(client.key)
    before = lapsed(town)

    async def talk() -> None:
        await client.comes()
        await asyncio.to_thread(eventually, lambda: town.used() == 1, WAIT_S)
        client.is_cut_off()
        status, _, body = await refused(chat, **headers)
        assert (status, body["reason"]) == (429, "too_many_sessions")  # the slot is kept, and counts
        await asyncio.to_thread(eventually, lambda: lapsed(town) == before + 1, GRACE_S + WAIT_S)
        status, _, body = await refused(f"{chat}?resume={client.token}", **headers)
        assert (status, body["reason"]) == (410, "session_gone")
        await opened(chat, headers)

    began_s = time.monotonic()
    asyncio.run(talk())
    assert time.monotonic() - began_s >= GRACE_S


async def opened(address: str, headers: dict[str, Any]) -> None:
    """A quota is free again a report after its slot."""
    async with asyncio.timeout(WAIT_S):
        while True:
            try:
                async with connect(address, compression=None, **headers):
                    return
            except InvalidHandshake:
                await asyncio.sleep(0.2)


def test_a_proper_goodbye_gives_slot_and_quota_back_at_once(town: Town) -> None:
    client = Client(town, key(town, "solo"))

    async def talk() -> None:
        for _ in range(3):
            began_s = time.monotonic()
            await client.comes()
            await client.leaves()
            await opened(town.cluster.chat, as_header(client.key))
            assert time.monotonic() - began_s < GRACE_S

    asyncio.run(talk())


def test_a_token_takes_the_session_from_a_connection_that_still_hangs(town: Town) -> None:
    client = Client(town, key(town, "acme"))

    async def talk() -> None:
        before = await client.comes()
        after = await client.comes_back()
        await before.listen()
        assert (before.close_code, before.close_reason) == (4001, "moved")
        await echo(after, 3)
        await client.leaves()

    asyncio.run(talk())


def test_a_session_lasts_no_longer_for_being_cut_off(town: Town) -> None:
    client = Client(town, key(town, "brief"))

    async def talk() -> None:
        began_s = time.monotonic()
        await client.comes()
        await asyncio.sleep(1.0)  # audio time is what is tested here
        client.is_cut_off()
        visitor = await client.comes_back()
        await visitor.listen()
        assert (visitor.close_code, visitor.close_reason) == (1000, "session_limit")
        assert 4.5 <= time.monotonic() - began_s <= 9.0

    asyncio.run(talk())

    def spoken() -> float:
        status, _, body = town.ask("/api/usage", client.key)
        assert status == 200
        return float(sum(day["audio_s"] for day in body["days"]))

    assert 4.5 <= eventually(lambda: (said := spoken()) >= 4.5 and said, WAIT_S) <= 9.0


def test_who_did_not_ask_for_it_is_not_waited_for(town: Town) -> None:
    acme = key(town, "acme")

    async def talk() -> None:
        socket: ClientConnection = await connect(town.cluster.chat, compression=None, **as_header(acme))
        assert await socket.recv() == HANDSHAKE
        await asyncio.to_thread(eventually, lambda: town.used() == 1, WAIT_S)
        began_s = time.monotonic()
        socket.transport.abort()
        await asyncio.to_thread(eventually, town.empty, WAIT_S)
        assert time.monotonic() - began_s < GRACE_S

    asyncio.run(talk())


def test_nothing_has_printed_a_token(town: Town) -> None:
    printed = town.cluster.output
    assert "session back slot" in printed
    for text in town.texts:
        assert text.rpartition(".")[2] not in printed
