"""Prompts that are fed while the others converse."""

import pytest

from serve_app.engine.events import DropCause, Opened
from serve_app.engine.limits import Limits
from serve_app.errors import NotFinite, ParameterRefused, SessionFault
from serve_app.spec import Prompt, SessionSpec
from tests.engine.fakes import Bench, prompted

SLOW = Limits(prime_steps=(4, 4))


def test_session_is_opened_when_its_prompt_is_through() -> None:
    bench = Bench(limits=SLOW)
    lease = bench.open(spec=prompted(10))
    for _ in range(2):
        assert not bench.listener.opened(lease)
        assert bench.engine.stats().priming == 1
        bench.engine.tick()
    assert bench.listener.opened(lease)
    assert bench.engine.stats().primed_steps == 10
    bench.push(lease, 1.0)
    assert bench.engine.tick() == 1
    assert [step.step for step in bench.listener.steps(lease)] == [0]


def test_neighbours_are_stepped_and_answered_before_each_part_of_a_prompt() -> None:
    bench = Bench(limits=SLOW)
    neighbour = bench.open()
    bench.open(spec=prompted(12))
    heard: list[int] = []
    bench.runner.before_prime = lambda slot: heard.append(len(bench.listener.steps(neighbour)))
    for number in range(2):
        bench.push(neighbour, 1.0, number)
        assert bench.engine.tick() == 1
    assert heard == [1, 2]


def test_a_turn_feeds_a_bounded_share_of_the_neighbours_tick() -> None:
    bench = Bench(limits=Limits(prime_share=0.2, prime_steps=(1, 64)))
    neighbour = bench.open()
    bench.open(spec=prompted(50))
    parts: list[float] = []

    def run_takes_50_ms(*_: object) -> None:
        bench.clock.now_s += 0.050

    def a_step_takes_1_ms(slot: int) -> None:
        fed = bench.engine._pace.steps()
        bench.clock.now_s += 0.001 * fed
        parts.append(0.001 * fed)

    bench.runner.before_run, bench.runner.before_prime = run_takes_50_ms, a_step_takes_1_ms
    while bench.engine.stats().priming:
        bench.push(neighbour, 1.0)
        bench.engine.tick()
    assert max(parts) <= 0.2 * 0.050 + 1e-9
    assert len(parts) < 12  # and it does not crawl


def test_an_idle_engine_has_work_while_a_prompt_is_fed() -> None:
    bench = Bench(limits=SLOW)
    bench.open(spec=prompted(10))
    assert bench.engine.wait_for_work(0.0)
    while bench.engine.stats().priming:
        bench.engine.tick()
    assert not bench.engine.wait_for_work(0.0)


def test_frames_that_come_before_the_prompt_is_through_are_dropped_and_counted() -> None:
    bench = Bench(limits=SLOW)
    lease = bench.open(spec=prompted(8))
    bench.push(lease, 7.0)
    bench.push(lease, 7.0)
    while not bench.listener.opened(lease):
        bench.engine.tick()
    assert bench.engine.tick() == 0
    assert bench.listener.events[0] == Opened(lease)
    assert bench.listener.drops(lease) == [(2, DropCause.EARLY)]
    bench.push(lease, 1.0)
    bench.engine.tick()
    assert bench.listener.sums(lease) == [1.0]


def test_leaver_frees_its_slot_in_the_middle_of_its_prompt() -> None:
    bench = Bench(slots=1, limits=SLOW)
    lease = bench.open(spec=prompted(50))
    bench.engine.close(lease)
    bench.engine.tick()
    assert [end.error for end in bench.listener.ends(lease)] == [None]
    assert bench.engine.stats().free == 1
    assert bench.runner.calls.count("prime 0") == 1  # and no step was fed after it left
    bench.open()


def test_prompts_are_fed_in_the_order_in_which_they_came() -> None:
    bench = Bench(limits=SLOW)
    first, second = bench.open(spec=prompted(8)), bench.open(spec=prompted(8))
    while bench.engine.stats().priming:
        bench.engine.tick()
    opened = [event.lease for event in bench.listener.events if isinstance(event, Opened)]
    assert opened == [first, second]


def test_prompt_that_fails_ends_its_session_alone() -> None:
    bench = Bench(limits=SLOW)
    neighbour = bench.open()
    lease = bench.acquire(prompted(8))
    bench.engine.open(lease, bench.listener)
    bench.runner.prime_error = RuntimeError("no memory")
    bench.engine.tick()
    assert isinstance(bench.listener.ends(lease)[0].error, SessionFault)
    assert bench.runner.calls[-1] == "wipe 1"
    bench.push(neighbour, 1.0)
    assert bench.engine.tick() == 1
    assert bench.engine.healthy


def test_prompt_with_a_value_that_is_not_finite_ends_its_session() -> None:
    bench = Bench(limits=SLOW)
    bench.runner.prime_finite = False
    lease = bench.open(spec=prompted(8))
    assert isinstance(bench.listener.ends(lease)[0].error, NotFinite)
    assert bench.engine.stats().free == 4


@pytest.mark.parametrize(
    ("prompt", "why"),
    [
        (Prompt(text="a" * 51), "longer than the context"),
        (Prompt(voice="../../etc/passwd"), "must be one of anna"),
    ],
)
def test_prompt_that_cannot_be_fed_is_refused_before_a_slot_is_leased(prompt: Prompt, why: str) -> None:
    bench = Bench(slots=1)
    with pytest.raises(ParameterRefused, match=why):
        bench.acquire(SessionSpec(prompt=prompt))
    bench.open()


def test_everybody_is_told_when_the_engine_stops_in_the_middle_of_a_prompt() -> None:
    bench = Bench(limits=SLOW)
    lease = bench.open(spec=prompted(50))
    bench.engine.shut(SessionFault("over"))
    assert len(bench.listener.ends(lease)) == 1
    assert bench.engine.drained


def test_dear_prompt_is_fed_in_some_of_the_turns_that_step_somebody_and_in_all_others() -> None:
    bench = Bench(2, limits=Limits(prime_share=0.25, prime_steps=(1, 1)))

    def take_10_ms(of: object) -> None:
        bench.clock.now_s += 0.010

    talker = bench.open()
    bench.runner.before_run = bench.runner.before_prime = take_10_ms
    bench.open(spec=prompted(40))
    fed = bench.runner.calls.count("prime 1")
    for _ in range(12):
        bench.push(talker, 1.0)
        bench.engine.tick()
    crowded = bench.runner.calls.count("prime 1") - fed
    for _ in range(12):
        bench.engine.tick()
    assert crowded == 3
    assert bench.runner.calls.count("prime 1") - fed - crowded == 12
