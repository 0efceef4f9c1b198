"""What a replica asks Ray before it starts: where visitors come in, and where gateways reach an engine."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from serve_app.config import KEY_VARIABLE
from serve_app.errors import ConfigError
from serve_app.serving import engine_replica, gateway_replica, ray_calls

REPLICAS = [(gateway_replica, gateway_replica.GatewayReplica), (engine_replica, engine_replica.EngineReplica)]


@pytest.mark.parametrize(("module", "replica"), REPLICAS, ids=["gateway", "engine"])
def test_a_replica_behind_a_proxy_that_others_reach_needs_a_key(
    module: Any, replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    monkeypatch.setattr(module, "http_host", lambda: "0.0.0.0")
    monkeypatch.setattr(module, "log_to_stderr", lambda: None)
    unborn: Any = object.__new__(type("Unborn", (replica,), {"__del__": lambda self: None}))  # Ray awaits a born one's
    with pytest.raises(ConfigError, match=KEY_VARIABLE):
        asyncio.run(replica.__init__(unborn, {"runner": "passthrough"}))


@pytest.mark.parametrize(
    ("setting", "nodes", "host"),
    [
        (None, ["here"], "127.0.0.1"),
        (None, ["here", "gone"], "127.0.0.1"),
        (None, ["here", "there"], "192.0.2.7"),
        ("node", ["here"], "192.0.2.7"),
        ("192.0.2.9", ["here", "there"], "192.0.2.9"),
    ],
)
def test_engines_listen_on_loopback_while_they_are_alone_and_on_their_node_otherwise(
    setting: str | None, nodes: list[str], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = [{"NodeID": name, "Alive": name != "gone"} for name in nodes]
    monkeypatch.setattr(ray, "nodes", lambda: told)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "here"))
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "192.0.2.7")
    assert ray_calls.link_host(setting) == host
