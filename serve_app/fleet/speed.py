"""How many questions one core answers: ``python -m serve_app.fleet.speed``. The last line is JSON."""

import json
import random
import time
from collections.abc import Callable
from typing import Final

from serve_app.admission.answers import AdmissionRequest, EngineName, Granted
from serve_app.admission.authority import Authority
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.views import EngineView
from serve_app.units import SessionId

MODEL: Final = "moshi"
ROUND: Final = 20_000


def main() -> None:
    """Measure and print."""
    report: dict[str, float] = {}
    for engines in (8, 1_000):
        for name, measure in (("grants", grants), ("refusals", refusals), ("queued", queued)):
            report[f"{name}_per_s_{engines}_engines"] = round(max(measure(engines) for _ in range(3)))
    print(json.dumps(report))  # noqa: T201


def grants(engines: int) -> float:
    """A session in and one out, at 95% load: admit, confirm, leave."""
    authority, sessions = _fleet(engines, 0.95)
    chance, number = random.Random(1), len(sessions)

    def turn() -> None:
        nonlocal number
        place = chance.randrange(len(sessions))
        authority.leave(sessions[place])
        number += 1
        sessions[place] = SessionId(str(number))
        granted = authority.admit(_request(number))
        assert isinstance(granted, Granted)
        authority.confirm(granted)

    return _rate(turn)


def refusals(engines: int) -> float:
    """Nothing is free and nobody may wait."""
    authority, sessions = _fleet(engines, 1.0)
    number = len(sessions)

    def turn() -> None:
        nonlocal number
        number += 1
        authority.admit(_request(number))

    return _rate(turn)


def queued(engines: int) -> float:
    """A hundred tenants wait, a thousand callers: one leaves the fleet, the next is let in, another joins the queue."""
    authority, sessions = _fleet(engines, 1.0, queue_limit=1_000)
    number = len(sessions)
    let_in = sessions
    for _ in range(1_000):
        number += 1
        authority.admit(_request(number))

    def turn() -> None:
        nonlocal number
        authority.leave(let_in.pop())
        number += 1
        authority.admit(_request(number))

    rounds = min(ROUND, len(let_in) - 1)
    return _rate(turn, rounds)


def _fleet(engines: int, full: float, queue_limit: int = 0) -> tuple[Authority, list[SessionId]]:
    tenants = Tenants(
        Tenant(name=f"t{number}", concurrent_sessions=10**9, sessions_per_minute=1e9, audio_s_per_day=1e18)
        for number in range(100)
    )
    rules = Rules(queue_limit=queue_limit)
    authority = Authority(tenants, models=[MODEL], rules=rules, clock=time.monotonic, wall=time.time)
    for number in range(engines):
        authority.report(EngineView(EngineName(f"engine-{number}"), MODEL, 64))
    sessions = []
    for number in range(int(engines * 64 * full)):
        granted = authority.admit(_request(number))
        assert isinstance(granted, Granted)
        authority.confirm(granted)
        sessions.append(granted.request.session)
    return authority, sessions


def _request(number: int) -> AdmissionRequest:
    return AdmissionRequest(SessionId(str(number)), f"t{number % 100}", MODEL)


def _rate(turn: Callable[[], None], rounds: int = ROUND) -> float:
    started_s = time.process_time()
    for _ in range(rounds):
        turn()
    return rounds / (time.process_time() - started_s)


if __name__ == "__main__":
    main()
