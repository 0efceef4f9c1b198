"""Does a tenant within its share wait longer because another offers ten times its own?"""

import dataclasses

from serve_app.admission.tenants import Tenant
from serve_app.fleet.arrivals import Callers
from serve_app.fleet.simulation import Fleet, Simulation, Tally


@dataclasses.dataclass(frozen=True, slots=True)
class Fairness:
    """A modest tenant alone on half of the engines, and beside a greedy one on all of them, with the same callers."""

    alone: Tally
    beside: Tally
    greedy: Tally

    @property
    def ratio(self) -> float:
        """Of the modest tenant's mean waits: beside over alone."""
        return self.beside.mean_wait_s / self.alone.mean_wait_s


def unlimited(name: str, weight: float = 1.0) -> Tenant:
    """A tenant whom no quota stops."""
    return Tenant(
        name=name,
        weight=weight,
        concurrent_sessions=10**9,
        sessions_per_minute=1e9,
        audio_s_per_day=1e15,
        longest_s=1e9,
    )


def compare(fleet: Fleet, load: float, greed: float = 10.0) -> Fairness:
    """Run both.

    Args:
        fleet: of the modest tenant alone; its callers say how long sessions are, its arrivals how many are its own.
        load: what the modest tenant offers, as a share of its half.
        greed: what the greedy one offers, likewise.
    """
    kind, rows = fleet.callers[0], fleet.engines * fleet.rows
    modest = dataclasses.replace(kind, tenant=unlimited("modest"), erlangs=load * rows)
    greedy = dataclasses.replace(kind, tenant=unlimited("greedy"), erlangs=greed * rows)
    alone = Simulation(dataclasses.replace(fleet, callers=(modest,))).run()
    both = dataclasses.replace(
        fleet,
        engines=2 * fleet.engines,
        callers=(modest, greedy),
        arrivals=int(fleet.arrivals * (1 + greed / load)),
        queue_limit=2 * fleet.queue_limit,
    )
    beside = Simulation(both).run().tallies
    return Fairness(alone.tallies["modest"], beside["modest"], beside["greedy"])


def callers(erlangs: float, mean_s: float, sigma: float, **more: float) -> Callers:
    """One tenant's callers, without quotas."""
    return Callers(tenant=unlimited("all"), erlangs=erlangs, mean_s=mean_s, sigma=sigma, **more)
