"""How a replica learns from Ray that it is being replaced, and what Ray will do to it then.

Ray gives a replica no public sign: it takes it off its deployment's list, waits for its requests, and at the end calls
``__del__`` or kills it. Every router watches that list by Ray's long poll, which is private; so does this file, and
only this file (docs/adr/0009-retirement.md). Without it a replica is told at its end alone, and says so at its start.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

import ray
from ray import serve
from ray.serve._private import constants
from ray.serve.context import _get_global_client

from serve_app.config import proxy_mode
from serve_app.serving.timers import RayTimers

logger = logging.getLogger(__name__)


class Roll:
    """Watches for one name on a list: called out once, when it stood there and stands there no more.

    A replica that is being started is not on the list yet, so absence alone means nothing.

    Args:
        name: whose.
        struck: called once.
    """

    def __init__(self, name: str, struck: Callable[[], None]) -> None:
        self._name = name
        self._struck = struck
        self._stood = False
        self._over = False

    def read(self, names: Collection[str]) -> None:
        """The list as it is now."""
        if self._name in names:
            self._stood = True
        elif self._stood and not self._over:
            self._over = True
            self._struck()


def watch_retirement(retired: Callable[[], None]) -> object | None:
    """Call ``retired`` on this event loop, once, when Ray takes this replica off the list, 0.2 s after it did.

    Returns what must be kept for as long as the watch shall last; None where this Ray cannot tell.
    """
    try:
        return _poll(retired)
    except Exception as error:  # noqa: BLE001 -- private: a newer Ray may have anything in its place
        logger.warning("no word when this replica is replaced, its sessions are told at the end alone: %r", error)
        return None


def _poll(retired: Callable[[], None]) -> object:
    from ray.serve._private.long_poll import LongPollClient, LongPollNamespace

    replica = serve.get_replica_context().replica_id
    roll = Roll(str(replica.unique_id), retired)

    def read(target: Any) -> None:
        roll.read({str(running.replica_id.unique_id) for running in target.running_replicas})

    client: Any = _get_global_client()
    return LongPollClient(
        client._controller,
        {(LongPollNamespace.DEPLOYMENT_TARGETS, replica.deployment_id): read},  # type: ignore[dict-item]
        call_in_event_loop=asyncio.get_running_loop(),
        client_id=f"retirement:{replica.unique_id}",
    )


def ray_timers() -> RayTimers:
    """Ray's timers as they stand for this replica, whoever set them; None for a name that this Ray does not have."""
    client: Any = _get_global_client()
    config: Any = getattr(serve.get_replica_context(), "_deployment_config", None)
    return RayTimers(
        haproxy=proxy_mode() == "haproxy",
        request_timeout_s=getattr(client.http_config, "request_timeout_s", None),
        hard_stop_s=getattr(constants, "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S", None),
        min_draining_s=getattr(constants, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S", None),
        graceful_shutdown_s=getattr(config, "graceful_shutdown_timeout_s", None),
    )


def leave_now() -> None:
    """End this process as the controller would: for one that was replaced and that Ray keeps though nobody is left."""
    ray.kill(ray.get_runtime_context().current_actor)
