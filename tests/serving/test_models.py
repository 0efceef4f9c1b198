"""Several models behind one gateway: chosen by name, each with engines, an offer and a fate of its own."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tests.serving.cluster import WAIT_S, Cluster, changed, eventually, up
from tests.serving.conversation import tone, visit

ECHO, TINY, SLOW = "echo", "tiny", "slow"


def with_models(config: Path, **engines: dict[str, Any]) -> Path:
    """The same deployment with further pass-through engines, each the application ``engine-NAME``."""
    content = yaml.safe_load(config.read_text())
    first = next(application for application in content["applications"] if application["name"] == "engine")
    for name, args in engines.items():
        args = {"runner": "passthrough", "name": name, **args}
        content["applications"].append({**first, "name": f"engine-{name}", "args": args})
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three models and no authority. The first has one or two engines; of the last every tick counts as too long."""
    scaling = {"max_engines": 2, "min_free": 1, "upscale_delay_s": 0, "downscale_delay_s": 3}
    first = {"name": ECHO, "slots": 2, "scaling": scaling}
    config = changed("passthrough.yaml", tmp_path_factory.mktemp("models"), first)
    with up(with_models(config, tiny={"slots": 1}, slow={"slots": 4, "limits": {"overrun_s": 1e-9}})) as cluster:
        yield cluster


def used(cluster: Cluster) -> dict[str, int]:
    """Slots in use by model."""
    return {name: model["slots_used"] for name, model in cluster.info()["models"].items()}


@pytest.fixture(autouse=True)
def all_free(cluster: Cluster) -> None:
    eventually(lambda: not any(used(cluster).values()), WAIT_S)


async def refused(address: str) -> tuple[int, dict[str, Any]]:
    """Status and body of a refusal before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None)
    return caught.value.response.status_code, json.loads(caught.value.response.body or b"")


def test_a_model_is_chosen_by_path_or_parameter_and_the_first_answers_who_names_none(cluster: Cluster) -> None:
    async def talk() -> None:
        for address, model in (("", ECHO), (f"/{TINY}", TINY), (f"?model={TINY}", TINY), (f"?model={ECHO}", ECHO)):
            async with visit(cluster.chat + address) as visitor:
                await visitor.say(tone(440, 4))
                await visitor.listen_for(2)
                wanted = {name: int(name == model) for name in (ECHO, TINY, SLOW)}
                await asyncio.to_thread(eventually, lambda wanted=wanted: used(cluster) == wanted, WAIT_S)
            await asyncio.to_thread(eventually, lambda: not any(used(cluster).values()), WAIT_S)

    asyncio.run(talk())


def test_a_full_model_refuses_beside_one_that_has_room(cluster: Cluster) -> None:
    async def fill() -> None:
        async with visit(f"{cluster.chat}/{TINY}"):
            status, body = await refused(f"{cluster.chat}/{TINY}")
            assert (status, body["reason"]) == (503, "full")
            await asyncio.to_thread(eventually, lambda: cluster.get("/ready")[1]["models"][TINY] == "full", WAIT_S)
            assert cluster.get("/ready")[0] == 200
            async with visit(cluster.chat):
                pass

    asyncio.run(fill())


def test_an_unknown_model_is_not_found_and_two_at_once_are_a_bad_request(cluster: Cluster) -> None:
    for address in ("/big", "?model=big"):
        status, body = asyncio.run(refused(cluster.chat + address))
        assert (status, body["reason"]) == (404, "unknown_model")
        assert all(name in body["message"] for name in (ECHO, TINY, SLOW))
    status, body = asyncio.run(refused(f"{cluster.chat}/{ECHO}?model={TINY}"))
    assert (status, body["reason"]) == (400, "bad_parameter")


def test_what_a_person_asks_shows_every_model(cluster: Cluster) -> None:
    info = cluster.info()
    assert next(iter(info["models"])) == info["model"] == ECHO
    assert {name: model["slots"] for name, model in info["models"].items()} == {ECHO: 2, TINY: 1, SLOW: 4}
    assert cluster.get("/ready")[1]["models"] == dict.fromkeys((ECHO, TINY, SLOW), "ready")


def test_an_engine_that_misses_its_deadlines_takes_nobody_until_it_has_recovered(cluster: Cluster) -> None:
    def late() -> bool:
        return any(engine["late"] for engine in cluster.info()["engines"] if engine["model"] == SLOW)

    async def crowd() -> None:
        async with visit(f"{cluster.chat}/{SLOW}") as visitor:
            speaking = asyncio.create_task(visitor.say_in_real_time(tone(440, 100)))
            await asyncio.to_thread(eventually, late, WAIT_S)
            status, body = await refused(f"{cluster.chat}/{SLOW}")
            assert (status, body["reason"]) == (503, "late")
            assert not speaking.done()
            speaking.cancel()

    asyncio.run(crowd())
    eventually(lambda: not late(), WAIT_S)
    asyncio.run(enter(f"{cluster.chat}/{SLOW}"))


@pytest.mark.slow
def test_engines_come_when_seats_are_short_and_go_when_they_are_not_needed(cluster: Cluster) -> None:
    def engines() -> int:
        return int(cluster.info()["models"][ECHO]["engines"])

    async def crowd() -> None:
        async with visit(cluster.chat), visit(cluster.chat):
            await asyncio.to_thread(eventually, lambda: engines() == 2, WAIT_S)
            await enter(cluster.chat)

    assert engines() == 1
    asyncio.run(crowd())
    eventually(lambda: engines() == 1, WAIT_S)
    asyncio.run(enter(cluster.chat))


async def enter(address: str) -> None:
    """Be let in, and leave."""
    async with visit(address):
        pass
