"""Sends a call for a slot to the engine that the authority or a token names; others to the less busy of two in time.

Ray Serve's routers are an interface in alpha, so that all of it is here. Requests must not be matched first come, first
served, as Serve's own router does: another's engine would be no use.
"""

import random
from typing import Any, Final

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from serve_app.serving.granted import Admitted
from serve_app.serving.resuming import Returning, Token

LATE: Final = "late"
"""Of an engine's routing stats: it misses its deadlines."""


class PlacedRouter(RequestRouter):
    """Runs in gateways. Where the named engine is gone, any other is asked: the engines' reports put that right.

    One that misses its deadlines is asked only where all do, and then says no by itself.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Ranks of replicas to try; within a rank the one with the shorter queue gets the call."""
        wanted = engine_wanted(pending_request.args if pending_request is not None else ())
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == wanted]
        in_time = [replica for replica in candidate_replicas if not replica.routing_stats.get(LATE)]
        among = in_time or candidate_replicas
        return [named or random.sample(among, min(2, len(among)))]


def engine_wanted(arguments: Any) -> str | None:
    """The engine that a call for a slot names among its arguments."""
    for argument in arguments:
        match argument:
            case Admitted(engine=engine) | Returning(token=Token(engine=engine)):
                return str(engine)
    return None
