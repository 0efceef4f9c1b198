"""Processes are killed and stopped while people talk: who is told what, and who notices nothing."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.chaos.crowd import Talker, answered, crowd, until
from tests.serving.cluster import Cluster, changed, eventually, up

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1_800)]

ENGINES: Final = 2
GATEWAYS: Final = 2
SLOTS: Final = 6
CROWD: Final = 8
ENGINE_KILLS: Final = 20
GATEWAY_KILLS: Final = 20
TOLD_S: Final = 2.0
BACK_S: Final = 10.0
FREE_S: Final = 5.0
HEARTBEAT_S: Final = 1.0
"""What engines say of their slots may be so old."""
LAG_S: Final = 0.24
REPLACED_S: Final = 15.0
"""Health is asked for every 2 s, and no answer within 5 s ends it."""
START_AGAIN_S: Final = 60.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("chaos")
    with up(
        changed("passthrough.yaml", folder, {"slots": SLOTS, "engines": ENGINES}, {"replicas": GATEWAYS})
    ) as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """Whole, with every slot free."""
    eventually(lambda: whole(running) and len(running.replicas("Gateway")) == GATEWAYS, START_AGAIN_S)
    return running


def whole(cluster: Cluster) -> bool:
    """Whether all engines are there and nobody talks."""
    return cluster.ready() and cluster.info()["slots_free"] == ENGINES * SLOTS


def left(talkers: list[Talker]) -> list[Talker]:
    """Those who go on."""
    return [talker for talker in talkers if talker.ended_s is None]


def parted(talkers: list[Talker]) -> bool:
    """Whether some are cut, and whoever is not is answered: each gateway notices by itself."""
    now_s = time.monotonic()
    return len(left(talkers)) < CROWD and all(talker.waits_s(now_s) < LAG_S for talker in left(talkers))


def test_who_talks_to_a_killed_engine_is_told_and_the_others_lose_nothing(cluster: Cluster) -> None:
    for _ in range(ENGINE_KILLS):
        asyncio.run(_kill_an_engine(cluster))
        eventually(lambda: whole(cluster), BACK_S)


async def _kill_an_engine(cluster: Cluster) -> None:
    async with crowd(cluster.chat, CROWD) as talkers:
        killed_s = time.monotonic()
        os.kill(cluster.replicas("Engine")[0], signal.SIGKILL)
        await _settled(cluster, talkers)
        cut = [talker for talker in talkers if talker.ended_s is not None]
        assert all((talker.ended_s or 0.0) - killed_s < TOLD_S for talker in cut)
        assert {talker.visitor.close_code for talker in cut} <= {1011, 1012}
        await answered(left(talkers))


def test_a_killed_gateway_takes_its_own_conversations_and_keeps_no_slot(cluster: Cluster) -> None:
    for _ in range(GATEWAY_KILLS):
        asyncio.run(_kill_a_gateway(cluster))
        eventually(lambda: whole(cluster) and len(cluster.replicas("Gateway")) == GATEWAYS, START_AGAIN_S)


async def _kill_a_gateway(cluster: Cluster) -> None:
    async with crowd(cluster.chat, CROWD) as talkers:
        os.kill(cluster.replicas("Gateway")[0], signal.SIGKILL)
        await _settled(cluster, talkers)
        await answered(left(talkers))


async def _settled(cluster: Cluster, talkers: list[Talker]) -> None:
    """Somebody was cut, and the engines hold slots for those alone who were not."""

    def settled() -> bool:
        return len(left(talkers)) < CROWD and cluster.ready() and cluster.info()["slots_used"] == len(left(talkers))

    await until(settled, FREE_S + HEARTBEAT_S)


@pytest.mark.parametrize("pause_s", [0.5, 2.0])
def test_nobody_is_cut_by_an_engine_that_stands_still_for_a_moment(cluster: Cluster, pause_s: float) -> None:
    async def stop() -> None:
        async with crowd(cluster.chat, CROWD) as talkers:
            for engine in cluster.replicas("Engine"):
                os.kill(engine, signal.SIGSTOP)
            try:
                await asyncio.sleep(pause_s)  # it is what happens to them
            finally:
                for engine in cluster.replicas("Engine"):
                    os.kill(engine, signal.SIGCONT)
            await until(lambda: all(talker.waits_s(time.monotonic()) < LAG_S for talker in talkers), FREE_S)
            assert len(left(talkers)) == CROWD

    asyncio.run(stop())


def test_an_engine_that_hangs_is_replaced_and_the_other_goes_on(cluster: Cluster) -> None:
    async def stop() -> None:
        async with crowd(cluster.chat, CROWD) as talkers:
            os.kill(cluster.replicas("Engine")[0], signal.SIGSTOP)
            await until(lambda: parted(talkers), REPLACED_S)
            await answered(left(talkers))

    asyncio.run(stop())
    eventually(lambda: whole(cluster), START_AGAIN_S)
