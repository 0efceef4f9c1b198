"""Sends a call for a slot to the engine that the authority or a token names; any other to the less busy of two.

Ray Serve's routers are an interface in alpha, so that all of it is here. Requests must not be matched first come, first
served, as Serve's own router does: another's engine would be no use.
"""

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.serving.granted import Admitted
from serve_app.serving.resuming import Returning, Token


class PlacedRouter(RequestRouter):
    """Runs in gateways. Where the named engine is gone, any other is asked: the engines' reports put that right."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas to try; within a rank the one with the shorter queue gets the call."""
        wanted = engine_wanted(pending_request.args if pending_request is not None else ())
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        return [named or random.sample(candidate_replicas, min(2, len(candidate_replicas)))]


def engine_wanted(arguments: Any) -> str | None:
    """The engine that a call for a slot names among its arguments."""
    for argument in arguments:
        match argument:
            case Admitted(engine=engine) | Returning(token=Token(engine=engine)):
                return str(engine)
    return None
