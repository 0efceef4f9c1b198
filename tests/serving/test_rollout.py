"""A new version comes while people talk: they are told, nobody is cut without a word, and newcomers get in."""

import asyncio
import contextlib
import dataclasses
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.serving.cluster import Cluster, eventually, up
from tests.serving.cluster import changed as written
from tests.serving.conversation import Visitor, tone, visit

pytestmark = pytest.mark.slow

SESSIONS: Final = 4
DRAIN_S: Final = 6.0
GRACE_S: Final = 4.0
"""A replica hears of its end within a second or two on a busy machine, and a goodbye takes one more."""
START_S: Final = 60.0
ROUND_S: Final = 100.0
AT_ONCE_S: Final = 5.0


@dataclasses.dataclass
class Deployment:
    """A running cluster and the file that it was started from."""

    cluster: Cluster
    config: Path

    def change(self, application: str, args: Mapping[str, Any]) -> None:
        """Edit the file and have it rolled out, as an operator would."""
        content = yaml.safe_load(self.config.read_text())
        next(entry for entry in content["applications"] if entry["name"] == application)["args"] |= args
        self.config.write_text(yaml.safe_dump(content))
        self.cluster.process.send_signal(signal.SIGUSR1)

    async def rolled_out(self, application: str) -> None:
        line = f"rolled out {application}"
        await asyncio.to_thread(eventually, lambda: line in self.cluster.lines, START_S)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two pass-through engines with room for everybody twice, and a gateway."""
    engine = {"engines": 2, "slots": 2 * SESSIONS, "drain_s": DRAIN_S}
    config = written("passthrough.yaml", tmp_path_factory.mktemp("rollout"), engine, {"drain_s": DRAIN_S + 2})
    with up(config) as cluster:
        yield Deployment(cluster, config)


async def talk(visitor: Visitor) -> None:
    """Speak in real time until the other side ends it."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            await visitor.say_in_real_time(tone(440, 12))


@contextlib.asynccontextmanager
async def conversations(cluster: Cluster) -> AsyncIterator[tuple[list[Visitor], asyncio.Future[Any]]]:
    """So many who talk until they are sent away; the future is done when all of them were."""
    async with contextlib.AsyncExitStack() as stack:
        visitors = [await stack.enter_async_context(visit(cluster.chat)) for _ in range(SESSIONS)]
        lives = [asyncio.create_task(live) for visitor in visitors for live in (talk(visitor), visitor.listen())]
        everybody = asyncio.gather(*lives)
        try:
            yield visitors, everybody
        finally:
            everybody.cancel()
            await asyncio.gather(*lives, return_exceptions=True)


async def longest_wait_s(cluster: Cluster, until: asyncio.Future[Any]) -> float:
    """Come and go until then: the longest time that a newcomer needed, coming again while refused."""
    loop, longest_s = asyncio.get_running_loop(), 0.0
    while not until.done():
        began_s = loop.time()
        while True:
            try:
                async with visit(cluster.chat) as newcomer:
                    listening = asyncio.create_task(newcomer.listen_for(3))
                    await newcomer.say_in_real_time(tone(440, 4))
                    await listening
                break
            except (InvalidStatus, ConnectionClosed, OSError):
                await asyncio.sleep(0.2)
        longest_s = max(longest_s, loop.time() - began_s)
    return longest_s


def assert_told(visitors: list[Visitor], drain_s: float) -> None:
    for visitor in visitors:
        first = next(value["going_away"] for value in visitor.metadata if "going_away" in value)
        assert first["why"] == "rollout"
        assert 0 < first["s"] <= drain_s
        assert {"error": {"reason": "draining", "retry_after_s": 5}} in visitor.metadata
        assert visitor.errors == ["the server is restarting; try again"]
        assert (visitor.close_code, visitor.close_reason) == (1012, "draining")


def test_a_new_engine_version_tells_every_session_and_newcomers_get_in(deployment: Deployment) -> None:
    async def roll() -> float:
        async with asyncio.timeout(ROUND_S), conversations(deployment.cluster) as (visitors, everybody):
            deployment.change("engine", {"name": "second"})
            longest_s = await longest_wait_s(deployment.cluster, everybody)
            await deployment.rolled_out("engine")
        assert_told(visitors, DRAIN_S)
        return longest_s

    before = {engine["engine"] for engine in deployment.cluster.info()["engines"]}
    longest_s = asyncio.run(roll())
    assert longest_s < AT_ONCE_S
    after = eventually(
        lambda: [engine for engine in deployment.cluster.info()["engines"] if engine["model"] == "second"], START_S
    )
    assert not before & {engine["engine"] for engine in after}


def test_a_new_gateway_version_tells_every_session_and_newcomers_get_in(deployment: Deployment) -> None:
    async def roll() -> float:
        async with asyncio.timeout(ROUND_S), conversations(deployment.cluster) as (visitors, everybody):
            deployment.change("gateway", {"silence_s": 30.0})
            longest_s = await longest_wait_s(deployment.cluster, everybody)
            await deployment.rolled_out("gateway")
        assert_told(visitors, DRAIN_S)
        return longest_s

    before = deployment.cluster.info()["gateway"]["name"]
    assert asyncio.run(roll()) < AT_ONCE_S
    assert deployment.cluster.info()["gateway"]["name"] != before


def test_an_idle_gateway_that_was_replaced_goes_before_its_time(deployment: Deployment) -> None:
    old = set(deployment.cluster.replicas("Gateway"))
    deployment.change("gateway", {"silence_s": 31.0, "drain_s": DRAIN_S + 2})
    eventually(lambda: not old & set(deployment.cluster.replicas("Gateway")), START_S)
    assert deployment.cluster.ready()


def test_nothing_is_replaced_by_a_file_that_is_wrong_or_the_same(deployment: Deployment) -> None:
    engines = {engine["engine"] for engine in deployment.cluster.info()["engines"]}
    deployment.change("engine", {})
    eventually(lambda: "nothing changed" in deployment.cluster.lines, START_S)
    deployment.change("engine", {"slots": -1})
    eventually(lambda: any(line.startswith("nothing changed: ") for line in deployment.cluster.lines), START_S)
    assert {engine["engine"] for engine in deployment.cluster.info()["engines"]} == engines
