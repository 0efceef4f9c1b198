"""What callers, engines and operators see of the authority."""

import pytest

from serve_app.admission.answers import AdmissionRequest, Answer, Granted, Refused, Wait
from serve_app.admission.rules import Rules
from serve_app.admission.tenants import Tenant, Tenants
from serve_app.admission.views import EngineView, LiveSession
from serve_app.errors import (
    ChorusError,
    DaySpent,
    Forbidden,
    ModelUnknown,
    NotAllowed,
    ParameterRefused,
    QueueFull,
    TooManySessions,
    TooManyStarts,
)
from serve_app.units import SessionId
from tests.admission.world import MODEL, World


def refusal(answer: Answer) -> ChorusError:
    assert isinstance(answer, Refused), answer
    return answer.error


def tenants(**limits: float) -> Tenants:
    return Tenants([Tenant(name="a", **{"sessions_per_minute": 1e6} | limits), Tenant(name="b")])  # type: ignore[arg-type]


def test_a_free_row_is_granted_at_once() -> None:
    world = World(2)
    granted = world.start()
    assert granted.longest_s == 3_600.0
    assert world.used == 1


def test_a_repeated_question_gets_the_same_grant() -> None:
    world = World(2)
    request = world.request()
    first = world.authority.admit(request)
    assert world.authority.admit(request) == first
    assert world.used == 1


def test_another_tenant_cannot_ask_about_a_session() -> None:
    world = World(2)
    granted = world.start("a")
    answer = world.authority.admit(AdmissionRequest(granted.request.session, "b", MODEL))
    assert isinstance(refusal(answer), Forbidden)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (AdmissionRequest(SessionId("x"), "nobody", MODEL), NotAllowed),
        (AdmissionRequest(SessionId("x"), "../a", MODEL), NotAllowed),
        (AdmissionRequest(SessionId("x"), "a", "other"), ModelUnknown),
        (AdmissionRequest(SessionId("x"), "b", MODEL), Forbidden),
        (AdmissionRequest(SessionId("x"), "a", MODEL, rows=0), ParameterRefused),
        (AdmissionRequest(SessionId("x"), "a", MODEL, rows=3), ParameterRefused),
        (AdmissionRequest(SessionId("x"), "c", MODEL, parameters=frozenset({"voice"})), Forbidden),
    ],
)
def test_what_may_not_be_is_refused_and_takes_nothing(request_: AdmissionRequest, error: type[ChorusError]) -> None:
    some = Tenants([
        Tenant(name="a"), Tenant(name="b", models=frozenset({"other"})), Tenant(name="c", parameters=frozenset())
    ])  # fmt: skip
    world = World(2, tenants=some)
    assert isinstance(refusal(world.authority.admit(request_)), error)
    assert (world.used, world.waiting, world.authority.sessions_of(request_.tenant)) == (0, 0, 0)


def test_fifty_callers_at_a_quota_of_five_are_never_more_than_five() -> None:
    world = World(100, tenants=tenants(concurrent_sessions=5))
    answers = [world.ask("a") for _ in range(50)]
    assert sum(isinstance(answer, Granted) for answer in answers) == 5
    assert {type(refusal(answer)) for answer in answers[5:]} == {TooManySessions}


def test_callers_that_wait_count_in_the_quota() -> None:
    world = World(1, tenants=tenants(concurrent_sessions=2))
    world.start("a")
    assert isinstance(world.ask("a"), Wait)
    assert isinstance(refusal(world.ask("a")), TooManySessions)


def test_starts_too_fast_are_refused_with_a_time() -> None:
    world = World(9, tenants=tenants(concurrent_sessions=9, sessions_per_minute=1.0))
    world.start("a")
    error = refusal(world.ask("a"))
    assert isinstance(error, TooManyStarts)
    assert error.retry_after_s == pytest.approx(60.0)


def test_a_refusal_for_lack_of_room_costs_no_start() -> None:
    world = World(1, tenants=tenants(concurrent_sessions=9, sessions_per_minute=2.0), rules=Rules(queue_limit=0))
    granted = world.start("a")
    for _ in range(5):
        assert isinstance(refusal(world.ask("a")), QueueFull)
    world.end(granted.request.session)
    world.start("a")


def test_a_spent_day_ends_sessions_and_refuses_new_ones() -> None:
    world = World(2, tenants=tenants(audio_s_per_day=100.0))
    granted = world.start("a")
    engine = world.engines[granted.engine]
    engine.audio_s[granted.request.session] = 99.0
    assert world.authority.report(engine.view()).spent == ()
    engine.audio_s[granted.request.session] = 100.0
    assert world.authority.report(engine.view()).spent == (granted.request.session,)
    assert isinstance(refusal(world.ask("a")), DaySpent)
    assert isinstance(world.ask("b"), Granted)


def test_what_was_spoken_is_charged_once_with_the_gateways_last_word() -> None:
    world = World(2)
    granted = world.start("a")
    engine = world.engines[granted.engine]
    engine.audio_s[granted.request.session] = 10.0
    world.report()
    world.report()
    world.vanish(granted.request.session)
    world.authority.leave(granted.request.session, audio_s=12.0)
    assert [(charge.tenant, charge.seconds) for charge in world.authority.take_charges()] == [("a", 12.0)]


def test_a_caller_waits_with_place_and_time_and_is_let_in_when_a_row_comes_back() -> None:
    world = World(2)
    first, _ = world.start("a"), world.start("a")
    one, two = world.request("b"), world.request("b")
    assert world.authority.admit(one) == Wait(1, 150.0, 1.0)
    assert world.authority.admit(two) == Wait(2, 300.0, 1.0)
    world.end(first.request.session)
    assert [granted.request for granted in world.told] == [one]
    assert isinstance(world.authority.admit(one), Granted)
    last = world.authority.admit(two)
    assert isinstance(last, Wait)
    assert last.place == 1


def test_a_caller_that_leaves_as_it_is_let_in_costs_no_row() -> None:
    world = World(1)
    first, (one, two) = world.start(), (world.request("b"), world.request("b"))
    world.authority.admit(one)
    world.authority.admit(two)
    world.end(first.request.session)
    world.authority.leave(one.session)
    assert isinstance(world.authority.admit(two), Granted)
    assert world.used == 1


def test_a_caller_that_vanished_in_the_queue_is_forgotten_even_if_it_was_let_in() -> None:
    world = World(1)
    first, gone = world.start(), world.request("b")
    world.authority.admit(gone)
    world.end(first.request.session)
    assert world.used == 1
    world.pass_time(6)
    assert (world.used, world.waiting) == (0, 0)


def test_a_late_confirmation_is_told_that_the_row_is_anothers() -> None:
    world = World(1)
    late = world.ask("a")
    assert isinstance(late, Granted)
    world.pass_time(6)
    world.start("b")
    assert not world.open(late)


def test_a_session_that_ends_without_a_word_frees_its_row_with_the_next_report() -> None:
    world = World(1)
    granted = world.start()
    world.report()
    world.vanish(granted.request.session)
    world.report()
    assert world.used == 0


def test_a_report_from_before_the_end_does_not_bring_a_session_back() -> None:
    world = World(1)
    granted = world.start()
    world.report()
    stale = world.engines[granted.engine].view()
    world.end(granted.request.session)
    world.authority.report(stale)
    assert world.used == 0


def test_a_report_from_before_the_end_brings_no_session_in_that_was_never_listed() -> None:
    world = World(1)
    granted = world.start("a")
    world.authority.leave(granted.request.session)
    live = LiveSession(granted.request.session, "a", 1, 1.0)
    world.authority.report(EngineView(granted.engine, MODEL, 1, (live,)))
    assert world.used == 0
    assert world.authority.sessions_of("a") == 0


@pytest.mark.parametrize("trouble", ["draining", "unhealthy", "late"])
def test_an_engine_in_trouble_gets_nobody_and_keeps_whom_it_has(trouble: str) -> None:
    world = World(4)
    granted = world.start()
    engine = world.engines[granted.engine]
    engine.draining, engine.healthy = trouble == "draining", trouble != "unhealthy"
    if trouble == "late":
        engine.ticks, engine.overruns = 12, 6
    world.report()
    assert isinstance(world.ask(), Wait)
    assert world.used == 1
    engine.draining, engine.healthy = False, True
    for _ in range(5):
        world.report()
    assert world.used == 2


def test_a_lost_engine_takes_its_sessions_along_and_the_queue_waits_for_another() -> None:
    world = World(1)
    world.start()
    waiting = world.request("b")
    world.authority.admit(waiting)
    world.lose(next(iter(world.engines.values())))
    for _ in range(12):
        world.pass_time(1)
        assert isinstance(world.authority.admit(waiting), Wait)
    assert world.used == 0
    world.add_engine(1)
    assert isinstance(world.authority.admit(waiting), Granted)


def test_models_have_engines_and_queues_of_their_own() -> None:
    world = World(1)
    other = world.add_engine(1, "other")
    world.start()
    assert isinstance(world.ask(), Wait)
    granted = world.ask(model="other")
    assert isinstance(granted, Granted)
    assert granted.engine == other.name


def test_two_rows_hold_up_those_behind_until_they_fit_on_one_engine() -> None:
    world = World(2, 2)
    sessions = [world.start() for _ in range(4)]
    guided, plain = world.request("b", rows=2), world.request("c")
    world.authority.admit(guided)
    world.pass_time(1)
    world.authority.admit(AdmissionRequest(plain.session, "b", MODEL))
    here = [granted for granted in sessions if granted.engine == sessions[0].engine]
    world.end(here[0].request.session)
    assert isinstance(world.authority.admit(guided), Wait)
    world.end(here[1].request.session)
    assert isinstance(world.authority.admit(guided), Granted)


def test_a_successor_takes_over_without_touching_a_session() -> None:
    world = World(2, 2)
    live = [world.start() for _ in range(3)]
    in_flight = world.ask("b")
    waiting = world.request("b")
    world.authority.admit(waiting)
    assert isinstance(in_flight, Granted)

    world.succeed(settle_s=7.0)
    assert isinstance(world.authority.admit(waiting), Wait)
    world.report()
    assert world.used == 3
    assert world.open(in_flight)
    world.pass_time(4)
    assert isinstance(world.authority.admit(waiting), Wait)
    world.pass_time(4)
    assert isinstance(world.authority.admit(waiting), Wait)
    assert world.used == 4
    assert sum(engine.used for engine in world.engines.values()) == 4
    world.end(live[0].request.session)
    assert isinstance(world.authority.admit(waiting), Granted)


def test_a_successor_counts_adopted_sessions_in_the_quota_of_who_waits() -> None:
    world = World(4, tenants=tenants(concurrent_sessions=2))
    for _ in range(2):
        world.start("a")
    world.succeed(settle_s=7.0)
    hopeful = world.request("a")
    assert isinstance(world.authority.admit(hopeful), Wait)
    world.pass_time(4)
    world.authority.admit(hopeful)
    world.pass_time(4)
    assert isinstance(refusal(world.authority.admit(hopeful)), TooManySessions)
    assert world.used == 2


def test_a_queue_that_is_full_tells_the_one_that_was_pushed_out() -> None:
    world = World(1, rules=Rules(queue_limit=2))
    world.start("a")
    requests = [world.request("a") for _ in range(2)]
    for request in requests:
        world.authority.admit(request)
    assert isinstance(world.ask("b"), Wait)
    error = refusal(world.authority.admit(requests[1]))
    assert isinstance(error, QueueFull)
    assert error.retry_after_s is not None
    assert world.waiting == 2


def test_reloaded_tenants_judge_who_waits_and_leave_who_lives() -> None:
    world = World(1)
    granted, waiting = world.start("a"), world.request("a")
    world.authority.admit(waiting)
    world.authority.replace(Tenants([Tenant(name="b")]))
    assert isinstance(refusal(world.authority.admit(waiting)), NotAllowed)
    assert world.used == 1
    world.end(granted.request.session)
    world.pass_time(10)
    assert (world.used, world.waiting) == (0, 0)


def test_a_session_that_moved_counts_where_it_is() -> None:
    world = World(2, 2)
    granted = world.start()
    world.report()
    session = LiveSession(granted.request.session, "a")
    home, other = (world.engines[name] for name in sorted(world.engines, key=lambda name: name != granted.engine))
    home.sessions.clear()
    world.authority.report(EngineView(other.name, MODEL, 2, (session,)))
    world.report(home)
    assert world.used == 1
    assert world.authority.sessions_of("a") == 1


def test_clocks_that_jump_break_no_account() -> None:
    world = World(2)
    granted = world.start()
    for jump_s in (1e7, -2e7, 1e7):
        world.wall.now_s += jump_s
        world.pass_time(1)
    assert world.used == 1
    world.end(granted.request.session)
    assert world.used == 0
