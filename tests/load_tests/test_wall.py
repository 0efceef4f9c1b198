import asyncio
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from load_tests.account import Account, report
from load_tests.publish import draw_wall
from load_tests.verdict import Limits, Verdict
from load_tests.wall import GENERATOR, OTHERS, Step, Use, configured, play, strangers, uses_between, verdict, what_binds
from serve_app.config import read_config
from tests.client.echo import EchoServer
from tests.client.loop import in_loop
from tests.load_tests.test_account import spoken

LIMITS = Limits()


def step(sessions: int = 50, **known: Any) -> Step:
    good: dict[str, Any] = {"opened": sessions, "lost": 0, "ended": 0, "p50_ms": 2.0, "p99_ms": 20.0, "max_ms": 30.0}
    return Step(**{"sessions": sessions, "late_ms": 2.0, "uses": {}, **good, **known})


def used(**cores: float) -> Mapping[str, Use]:
    return {role.replace("_", " "): Use(value, value, 1) for role, value in cores.items()}


@pytest.mark.parametrize(
    ("known", "good"),
    [
        ({}, True),
        ({"opened": 49}, False),
        ({"lost": 1}, False),
        ({"ended": 1}, False),
        ({"p99_ms": 200.0}, True),
        ({"p99_ms": 200.1}, False),
        ({"p99_ms": math.nan}, False),
        ({"late_ms": 81.0}, False),
    ],
)
def test_a_step_is_good_when_everybody_was_served_in_time(known: dict[str, Any], good: bool) -> None:
    assert step(**known).good(LIMITS) is good


def test_full_cores_bind_and_the_hungriest_role_is_named() -> None:
    told = what_binds(step(uses=used(gateway=1.2, engine=0.3, generator=0.45)), 2, LIMITS)
    assert told.startswith("the machine: 1.95 of 2 cores in use, most of it by gateway")


def test_one_full_process_binds_where_cores_are_left() -> None:
    uses = {"gateway": Use(1.9, 0.97, 2), "engine": Use(0.4, 0.4, 1)}
    assert what_binds(step(uses=uses), 8, LIMITS).startswith("one process of gateway: 0.97 of a core")


def test_a_late_generator_with_cores_to_spare_binds_itself() -> None:
    assert what_binds(step(late_ms=120.0, uses=used(gateway=0.5)), 8, LIMITS).startswith(
        "the generator: late by 120 ms"
    )


def test_cores_to_spare_and_a_generator_in_time_mean_that_something_waits() -> None:
    assert "something waits" in what_binds(step(uses=used(gateway=0.5)), 8, LIMITS)


def test_strangers_on_the_machine_are_not_blamed_as_one_process() -> None:
    uses = {OTHERS: Use(3.0, 3.0, 1), "gateway": Use(0.2, 0.2, 1)}
    assert "something waits" in what_binds(step(uses=uses), 8, LIMITS)


def test_others_on_the_machine_are_told_when_they_mattered() -> None:
    assert "0.67 cores" in strangers(step(uses={OTHERS: Use(0.67, 0.67, 1)}))
    assert strangers(step(uses={OTHERS: Use(0.05, 0.05, 1)})) == strangers(step()) == ""


@given(st.lists(st.booleans(), max_size=6), st.integers(1, 300))
def test_a_pass_is_enough_sessions_held_well(goods: list[bool], at_least: int) -> None:
    steps = [step(50 * (n + 1), lost=0 if good else 5) for n, good in enumerate(goods)]
    held = max((one.sessions for one in steps if not one.lost), default=0)
    assert verdict(steps, at_least, LIMITS) is (Verdict.PASS if held >= at_least else Verdict.FAIL)


def test_a_late_generator_fails_nobody() -> None:
    assert verdict([step(50), step(100, late_ms=90.0)], 100, LIMITS) is Verdict.GENERATOR_TOO_SLOW


def test_times_of_processes_become_cores_by_role() -> None:
    roles = {1: "gateway", 2: "gateway", 3: "engine", 4: "engine"}
    uses = uses_between({1: 10.0, 2: 0.0, 3: 5.0}, {1: 14.0, 2: 8.0, 4: 1.0}, roles, 10.0)
    assert uses == {"gateway": Use(1.2, 0.8, 2), "engine": Use(0.1, 0.1, 1)}  # 3 is gone, 4 is new


def test_the_worst_of_the_generators_processes_counts() -> None:
    quick, slow = report([spoken(20)], 1.6), report([spoken(20, latency_s=0.05, lost=1), Account(refusal="x")], 1.6)
    merged = Step.of(3, [quick.plain(), slow.plain()], {})
    assert (merged.opened, merged.lost, round(merged.p99_ms, 6)) == (2, 1, 50.0)
    nothing = report([Account(refusal="x")], 1.6)
    assert math.isnan(Step.of(2, [quick.plain(), nothing.plain()], {}).p99_ms)


def test_the_configuration_has_the_gateways_and_slots_that_were_asked_for(tmp_path: Path) -> None:
    config = read_config(configured(3, 700, tmp_path))
    assert (config.gateway.replicas, config.engine.slots, config.engine.runner) == (3, 700, "passthrough")


def test_the_picture_takes_steps_without_numbers(tmp_path: Path) -> None:
    plain = step(p50_ms=math.nan, p99_ms=math.nan, uses=used(gateway=0.5)).plain()
    assert draw_wall([plain], "one step", tmp_path / "wall.png")
    assert (tmp_path / "wall.png").read_bytes().startswith(b"\x89PNG")


@in_loop
async def test_a_step_says_what_everybody_used() -> None:
    async with EchoServer().running() as server:
        done = await asyncio.to_thread(play, server.url, os.getpid(), 2, 3.0)
    assert (done.opened, done.lost, done.ended) == (2, 0, 0)
    assert done.uses[GENERATOR].processes == 1
    assert 0 < done.uses[GENERATOR].cores < 2
