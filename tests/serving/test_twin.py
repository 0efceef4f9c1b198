"""The fleet's CPU twin as it ships, with a second model beside it: tenants, two gateways, two engines of the demo."""

import asyncio
import json
import secrets
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import yaml
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from serve_app.accounts.keys_file import KeysFile
from tests.serving.cluster import ROOT, WAIT_S, Cluster, eventually, up
from tests.serving.conversation import tone, visit

pytestmark = pytest.mark.slow

PARROT, ECHO = "parrot", "echo"


class Twin:
    """The deployment, and a key of each tenant of the example."""

    def __init__(self, cluster: Cluster, keys: KeysFile) -> None:
        self.cluster = cluster
        self._keys = {tenant: keys.create(tenant, None).text for tenant in ("acme", "trial")}

    def asking(self, tenant: str) -> dict[str, Any]:
        return {"additional_headers": {"Authorization": f"Bearer {self._keys[tenant]}"}}

    def used(self) -> dict[str, int]:
        return {name: model["slots_used"] for name, model in self.cluster.info()["models"].items()}


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    folder = tmp_path_factory.mktemp("twin")
    content = yaml.safe_load((ROOT / "configs" / "fleet.yaml").read_text())
    engine = next(application for application in content["applications"] if application["name"] == "engine")
    gateway = next(application for application in content["applications"] if application["name"] == "gateway")
    echo = {"name": ECHO, "runner": "passthrough", "slots": 2}
    content["applications"].append({**engine, "name": "engine-echo", "args": echo})
    gateway["args"]["tenants"] |= {"keys": str(folder / "keys.json"), "ledger": f"sqlite:///{folder}/ledger.sqlite"}
    gateway["args"]["drain_s"] = 0
    path = folder / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    made = KeysFile(folder / "keys.json", time.time, secrets.token_bytes)
    made.create("beta", None)  # a file of before the start
    with up(path) as cluster:
        twin = Twin(cluster, made)
        eventually(lambda: cluster.info()["models"][PARROT]["engines"] == 2, WAIT_S)
        eventually(lambda: asyncio.run(status(cluster.chat, **twin.asking("trial"))) != 401, WAIT_S)
        yield twin


async def status(address: str, **options: Any) -> int:
    """Of the answer to a knock; 101 where it is let in."""
    try:
        async with connect(address, compression=None, **options):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


async def refused(address: str, **options: Any) -> tuple[int, dict[str, Any]]:
    """Status and body of a refusal before the upgrade."""
    with pytest.raises(InvalidStatus) as caught:
        await connect(address, compression=None, **options)
    return caught.value.response.status_code, json.loads(caught.value.response.body or b"")


def test_a_tenant_talks_to_either_model_through_the_same_gateways(twin: Twin) -> None:
    async def talk() -> None:
        for address, model in (("", PARROT), (f"/{ECHO}", ECHO)):
            async with visit(twin.cluster.chat + address, **twin.asking("acme")) as visitor:
                listening = asyncio.create_task(visitor.listen_for(4))
                await visitor.say_in_real_time(tone(440, 12))
                await listening
                assert np.isfinite(visitor.pcm).all()
                await asyncio.to_thread(eventually, lambda model=model: twin.used()[model] == 1, WAIT_S)

    asyncio.run(talk())


def test_a_model_that_is_not_the_tenants_is_forbidden(twin: Twin) -> None:
    status, body = asyncio.run(refused(f"{twin.cluster.chat}/{ECHO}", **twin.asking("trial")))
    assert (status, body["reason"]) == (403, "forbidden")


def test_an_unknown_model_is_told_to_tenants_alone_and_names_what_they_may_use(twin: Twin) -> None:
    address = f"{twin.cluster.chat}?model=big"
    assert asyncio.run(refused(address))[0] == 401
    assert asyncio.run(refused(address, **twin.asking("trial")))[0] == 403
    status, body = asyncio.run(refused(address, **twin.asking("acme")))
    assert (status, body["reason"]) == (404, "unknown_model")
    assert body["message"].endswith(f"{PARROT}, {ECHO}")


def test_both_gateways_and_all_engines_are_there(twin: Twin) -> None:
    names = {twin.cluster.get("/ready")[1]["gateway"] for _ in range(20)}
    assert len(names) == 2
    assert {name: model["engines"] for name, model in twin.cluster.info()["models"].items()} == {PARROT: 2, ECHO: 1}
