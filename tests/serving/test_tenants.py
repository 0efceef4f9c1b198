"""Tenants on a real cluster: keys, tickets, quotas and the queue, as their clients see them."""

import asyncio
import contextlib
import json
import os
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from serve_app.accounts.keys_file import KeysFile
from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.serving.conversation import HANDSHAKE, tone, visit
from tests.serving.tenancy import tenancy

ENGINES: Final = 2
SLOTS: Final = 4
QUOTA: Final = 5
PAGE: Final = "https://acme.example"
TENANTS: Final = f"""
tenants:
  acme: {{concurrent_sessions: {QUOTA}, sessions_per_minute: 100000, origins: ["{PAGE}"]}}
  beta: {{concurrent_sessions: 20, sessions_per_minute: 100000}}
  slow: {{sessions_per_minute: 1}}
  brief: {{longest_s: 2}}
"""


class Town:
    """A deployment with tenants, and what an operator has of it."""

    def __init__(self, cluster: Cluster, keys: KeysFile) -> None:
        self.cluster = cluster
        self.keys = keys
        self.ids: dict[str, str] = {}
        self.texts: list[str] = []

    def key(self, tenant: str, life_s: float | None = None) -> str:
        made = self.keys.create(tenant, life_s)
        self.texts.append(made.text)
        self.ids[made.text] = made.record.key
        return made.text

    def ask(self, path: str, key: str = "", method: str = "GET", origin: str | None = None) -> tuple[int, Any, Any]:
        """Status, headers and body; the body parsed where it is JSON."""
        headers = {"Authorization": f"Bearer {key}"} | ({"Origin": origin} if origin else {})
        request = urllib.request.Request(f"{self.cluster.http}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                status, told, content = response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            status, told, content = error.code, error.headers, error.read()
        return status, told, json.loads(content) if "json" in told["content-type"] else content.decode()

    def ticket(self, key: str, origin: str | None = None) -> str:
        status, _, body = self.ask("/api/ticket", key, "POST", origin)
        assert status == 201, body
        self.texts.append(body["ticket"])
        return str(body["ticket"])

    def used(self) -> int:
        return int(self.cluster.info()["slots_used"])

    def empty(self) -> bool:
        info = self.cluster.info()
        return bool(info["slots_used"] == 0 < info["slots"])  # a gateway that has heard of no engine knows nothing


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    keys, tenants = tenancy(folder, TENANTS)
    gateway = {"tenants": tenants, "queue": 10, "silence_s": 30.0}
    with up(changed("passthrough.yaml", folder, {"slots": SLOTS, "engines": ENGINES}, gateway)) as cluster:
        eventually(lambda: cluster.ready() and cluster.info()["slots"] == ENGINES * SLOTS, WAIT_S)
        made = Town(cluster, keys)
        yield made


def accepted(town: Town, key: str) -> bool:
    """Whether a key is known by now: the file is read again a few times a second."""
    return town.ask("/api/usage", key)[0] == 200


def key(town: Town, tenant: str) -> str:
    made = town.key(tenant)
    eventually(lambda: accepted(town, made), WAIT_S)
    return made


def as_header(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Bearer {key}"}}


async def refused(address: str, **options: Any) -> tuple[int, Any, Any]:
    """Status, headers and JSON reason of a conversation that must not open."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None, **options)
    response = caught.value.response
    return response.status_code, response.headers, json.loads(response.body or b"{}")


@contextlib.asynccontextmanager
async def talking(town: Town, key: str, count: int) -> AsyncIterator[None]:
    """So many conversations at a time."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            await stack.enter_async_context(visit(town.cluster.chat, **as_header(key)))
        yield


async def silence(socket: ClientConnection) -> None:
    """Take everything until the other side closes; raises ConnectionClosed."""
    while True:
        await socket.recv()


async def metadata(socket: ClientConnection) -> Any:
    """The next message, which must be of kind 4."""
    message = await socket.recv()
    assert isinstance(message, bytes)
    assert message[0] == 4, message[:80]
    return json.loads(message[1:])


def test_a_missing_a_wrong_and_a_revoked_key_open_nothing(town: Town) -> None:
    good = key(town, "acme")
    dead = key(town, "acme")
    town.keys.revoke(town.ids[dead])
    eventually(lambda: not accepted(town, dead), WAIT_S)

    async def knock() -> None:
        for presented in ("", "wrong", good[:-1], good + "x", dead):
            status, _, body = await refused(town.cluster.chat, **as_header(presented))
            assert (status, body["reason"]) == (401, "not_allowed")
        async with visit(town.cluster.chat, **as_header(good)) as visitor:
            await visitor.say(tone(440, 4))
            await visitor.listen_for(2)

    asyncio.run(knock())


def test_a_key_in_a_url_opens_nothing(town: Town) -> None:
    good = key(town, "acme")
    for name in ("auth_id", "worker_auth_id", "ticket", "key"):
        status, _, _ = asyncio.run(refused(f"{town.cluster.chat}?{name}={good}"))
        assert status == 401


def test_a_ticket_opens_one_session_and_no_second(town: Town) -> None:
    ticket = town.ticket(key(town, "acme"), PAGE)
    address = f"{town.cluster.chat}?ticket={ticket}"

    async def twice() -> None:
        async with visit(address, origin=PAGE):
            pass
        status, _, body = await refused(address, origin=PAGE)
        assert (status, body["reason"]) == (401, "not_allowed")

    asyncio.run(twice())


def test_a_ticket_of_one_page_opens_nothing_from_another(town: Town) -> None:
    ticket = town.ticket(key(town, "acme"), PAGE)
    status, _, _ = asyncio.run(refused(f"{town.cluster.chat}?ticket={ticket}", origin="https://evil.example"))
    assert status == 401


def test_a_page_that_is_not_the_tenants_gets_no_ticket(town: Town) -> None:
    status, _, body = town.ask("/api/ticket", key(town, "acme"), "POST", "https://evil.example")
    assert (status, body["reason"]) == (403, "forbidden")


def test_a_tenant_over_its_starts_is_told_when_to_come_again(town: Town) -> None:
    slow = key(town, "slow")

    async def twice() -> None:
        async with visit(town.cluster.chat, **as_header(slow)):
            pass
        status, headers, body = await refused(town.cluster.chat, **as_header(slow))
        assert (status, body["reason"]) == (429, "too_many_starts")
        assert 1 <= int(headers["Retry-After"]) <= 60

    asyncio.run(twice())


def test_of_fifty_who_come_at_once_a_quota_of_five_lets_in_five(town: Town) -> None:
    acme = key(town, "acme")

    async def one(stay: asyncio.Event) -> str:
        try:
            socket = await connect(town.cluster.chat, compression=None, open_timeout=WAIT_S, **as_header(acme))
        except InvalidStatus as no:
            told = json.loads(no.response.body or b"{}")
            return f"{told['reason']} {no.response.headers['Retry-After']}"
        async with socket:
            await socket.recv()
            await stay.wait()
        return "in"

    async def rush() -> list[str]:
        stay = asyncio.Event()
        comers = [asyncio.create_task(one(stay)) for _ in range(50)]
        while sum(comer.done() for comer in comers) < 50 - QUOTA:
            await asyncio.wait([comer for comer in comers if not comer.done()], return_when=asyncio.FIRST_COMPLETED)
        stay.set()
        return await asyncio.gather(*comers)

    eventually(town.empty, WAIT_S)
    for _ in range(3):
        told = asyncio.run(rush())
        assert told.count("in") == QUOTA
        assert sum(reason.startswith("too_many_sessions ") for reason in told) == 50 - QUOTA
        eventually(town.empty, WAIT_S)


def test_who_waits_hears_its_place_and_comes_in_when_somebody_leaves(town: Town) -> None:
    beta = key(town, "beta")

    async def wait() -> None:
        async with talking(town, beta, ENGINES * SLOTS - 1):
            async with visit(town.cluster.chat, **as_header(beta)):
                first = await connect(town.cluster.chat, compression=None, **as_header(beta))
                told = await metadata(first)
                assert told["queue"]["place"] == 1
                assert told["queue"]["eta_s"] > 0
                second = await connect(town.cluster.chat, compression=None, **as_header(beta))
                assert (await metadata(second))["queue"]["place"] == 2
                await first.close()
                async with asyncio.timeout(WAIT_S):
                    while (await metadata(second))["queue"]["place"] != 1:
                        pass
            async with asyncio.timeout(WAIT_S):
                while (message := await second.recv())[0] == 4:
                    pass
            assert message[:1] == b"\x00"
            await second.close()

    eventually(town.empty, WAIT_S)
    asyncio.run(wait())
    eventually(town.empty, WAIT_S)


def test_sessions_are_where_the_authority_put_them_one_engine_full_before_the_next(town: Town) -> None:
    beta = key(town, "beta")

    def by_engine() -> list[int]:
        return sorted(engine["slots_used"] for engine in town.cluster.info()["engines"])

    async def fill() -> None:
        async with talking(town, beta, SLOTS):
            await asyncio.to_thread(eventually, lambda: by_engine() == [0, SLOTS], WAIT_S)

    eventually(town.empty, WAIT_S)
    asyncio.run(fill())
    eventually(town.empty, WAIT_S)


def test_a_session_is_ended_when_it_has_lasted_as_long_as_it_may(town: Town) -> None:
    brief = key(town, "brief")

    async def stay() -> None:
        async with asyncio.timeout(WAIT_S), connect(town.cluster.chat, compression=None, **as_header(brief)) as socket:
            assert await socket.recv() == HANDSHAKE
            assert await metadata(socket) == {"session": {"ends_in_s": 2}}
            with pytest.raises(ConnectionClosed) as closed:
                await silence(socket)
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1000, "session_limit")

    asyncio.run(stay())


def test_who_waits_and_vanishes_without_a_word_frees_its_place(town: Town) -> None:
    beta = key(town, "beta")

    async def vanish() -> None:
        async with talking(town, beta, ENGINES * SLOTS):
            first = await connect(town.cluster.chat, compression=None, **as_header(beta))
            assert (await metadata(first))["queue"]["place"] == 1
            second = await connect(town.cluster.chat, compression=None, **as_header(beta))
            first.transport.abort()
            async with asyncio.timeout(WAIT_S):
                while (await metadata(second))["queue"]["place"] != 1:
                    pass
            second.transport.abort()

    eventually(town.empty, WAIT_S)
    asyncio.run(vanish())
    eventually(town.empty, WAIT_S)


def test_a_tenant_reads_its_own_usage_and_no_other(town: Town) -> None:
    brief, slow = key(town, "brief"), key(town, "slow")

    def spoken() -> float:
        status, _, body = town.ask("/api/usage", brief)
        assert status == 200
        return float(sum(day["audio_s"] for day in body["days"]))

    assert eventually(lambda: (said := spoken()) >= 1.9 and said, WAIT_S) < 4.0
    status, headers, text = town.ask("/api/usage?format=csv", brief)
    assert (status, headers["content-type"].split(";")[0]) == (200, "text/csv")
    lines = text.splitlines()
    assert lines[0] == "day,tenant,sessions,audio_s"
    assert {line.split(",")[1] for line in lines[1:]} == {"brief"}
    assert all(",slow," in line for line in town.ask("/api/usage?format=csv", slow)[2].splitlines()[1:])
    assert town.ask("/api/usage", "")[0] == 401
    assert town.ask("/api/usage?first=yesterday", brief)[0] == 400


def test_when_the_authority_dies_nobody_who_speaks_or_waits_notices(town: Town) -> None:
    beta = key(town, "beta")

    async def outlive() -> None:
        async with talking(town, beta, ENGINES * SLOTS - 1), visit(town.cluster.chat, **as_header(beta)) as visitor:
            waiting = await connect(town.cluster.chat, compression=None, **as_header(beta))
            assert (await metadata(waiting))["queue"]["place"] == 1
            await asyncio.to_thread(eventually, lambda: town.used() == ENGINES * SLOTS, WAIT_S)
            for process in town.cluster.replicas("Admission"):
                os.kill(process, signal.SIGKILL)
            for _ in range(3):  # a word to each: the first is that of before, the last is the successor's
                assert (await metadata(waiting))["queue"]["place"] == 1
            await visitor.say(tone(440, 4))
            await visitor.listen_for(2)
        async with asyncio.timeout(WAIT_S):
            while (message := await waiting.recv())[0] == 4:
                pass
        assert message[:1] == b"\x00"
        await waiting.close()

    eventually(town.empty, WAIT_S)
    asyncio.run(outlive())
    eventually(town.empty, WAIT_S)


def test_whatever_was_presented_nothing_prints_a_key_or_a_ticket(town: Town) -> None:
    good = key(town, "acme")
    ticket = town.ticket(good)
    for bad in (f"?ticket={good}", f"?ticket={ticket}x", f"?auth_id={good}&text_topk=no", f"?ticket={ticket}&x=%00"):
        asyncio.run(refused_or_open(town.cluster.chat + bad))
    town.ask(f"/api/usage?format={good}", good)
    town.ask(f"/api/nowhere?key={good}", good)
    printed = town.cluster.output
    assert "tenants read from" in printed
    for text in town.texts:
        assert text not in printed
        assert text.split("_", 2)[-1] not in printed  # the secret part of a key, too


async def refused_or_open(address: str) -> None:
    with contextlib.suppress(InvalidStatus):
        async with connect(address, compression=None):
            pass
