"""An authority dies with grants in flight and callers in its queue; its successor lends no row twice."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.answers import AdmissionRequest, Granted, Refused, Wait
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.errors import QueueFull
from tests.admission.world import World

CONFIRM_S, SETTLE_S, QUOTA = 4, 6.0, 3
TENANTS = Tenants(Tenant(name=name, concurrent_sessions=QUOTA, sessions_per_minute=1e6) for name in "abc")
CALLERS = st.lists(st.sampled_from("abc"), max_size=6)


@given(live=CALLERS, late=st.lists(st.integers(0, CONFIRM_S - 1), max_size=6), new=CALLERS, confirm_first=st.booleans())
def test_no_row_is_lent_twice_when_the_authority_changes(
    live: list[str], late: list[int], new: list[str], confirm_first: bool
) -> None:
    rules = Rules(confirm_s=CONFIRM_S, queue_limit=20)
    world = World(3, 2, tenants=TENANTS, rules=rules)
    for tenant in live:
        match world.ask(tenant):
            case Granted() as granted:
                world.open(granted)
    in_flight: list[tuple[int, Granted]] = []
    waiting: list[AdmissionRequest] = []
    for number, opens_s in enumerate(late):
        request = world.request("abc"[number % 3])
        match world.authority.admit(request):
            case Granted() as granted:
                in_flight.append((opens_s, granted))
            case Wait():
                waiting.append(request)
    world.succeed(SETTLE_S)
    waiting += [world.request(tenant) for tenant in new]

    for second in range(15):
        for opens_s, granted in in_flight:
            if opens_s == second:
                if not confirm_first:
                    world.engines[granted.engine].sessions[granted.request.session] = granted.request
                    world.report()
                assert world.open(granted), "a grant that is opened in time is honoured, whoever gave it"
        for request in list(waiting):
            match world.authority.admit(request):
                case Granted() as granted:
                    waiting.remove(request)
                    assert world.open(granted)
                case Refused():
                    waiting.remove(request)
        world.pass_time(1)
        assert all(engine.used <= engine.rows for engine in world.engines.values())
        sessions = [one for engine in world.engines.values() for one in engine.sessions.values()]
        assert all(sum(one.tenant == name for one in sessions) <= QUOTA for name in "abc")
    assert not waiting or world.used == 5


def test_without_a_queue_who_comes_while_a_successor_settles_waits_and_is_let_in_or_told() -> None:
    rules = Rules(confirm_s=CONFIRM_S, queue_limit=0, settling_limit=10)
    world = World(2, tenants=TENANTS, rules=rules)
    world.start("a")
    world.succeed(SETTLE_S)
    requests = [world.request("b"), world.request("c")]
    world.report()
    assert all(isinstance(world.authority.admit(request), Wait) for request in requests)
    for _ in range(int(SETTLE_S)):
        world.pass_time(1)
        answers = [world.authority.admit(request) for request in requests]
    assert sorted(type(answer).__name__ for answer in answers) == ["Granted", "Refused"]
    refused = next(answer for answer in answers if isinstance(answer, Refused))
    assert isinstance(refused.error, QueueFull)
    assert isinstance(world.ask("a"), Refused), "settled, nobody waits where there is no queue"
    assert world.waiting == 0


@given(callers=st.lists(st.sampled_from("abc"), max_size=12), rows=st.integers(1, 4), limit=st.integers(0, 3))
def test_a_successor_that_has_settled_keeps_no_more_than_the_queue_holds(
    callers: list[str], rows: int, limit: int
) -> None:
    world = World(rows, tenants=TENANTS, rules=Rules(confirm_s=CONFIRM_S, queue_limit=limit, settling_limit=50))
    world.succeed(SETTLE_S)
    world.report()
    requests = [world.request(tenant) for tenant in callers]
    first = [world.authority.admit(request) for request in requests]
    kept = [request for request, answer in zip(requests, first, strict=True) if isinstance(answer, Wait)]
    for _ in range(int(SETTLE_S)):
        world.pass_time(1)
        answers = [world.authority.admit(request) for request in kept]
    if kept:
        told = [type(answer) for answer in answers]
        assert told.count(Granted) == min(rows, len(kept))
        assert told.count(Wait) == min(limit, len(kept) - told.count(Granted))
    assert world.waiting <= limit
