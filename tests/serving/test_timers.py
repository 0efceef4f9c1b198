"""Ray's timers are held against ours, and whoever would be cut is named with the remedy."""

import dataclasses

import pytest

from serve_app.config import GatewaySettings
from serve_app.serving.environment import environment
from serve_app.serving.timers import ENGINE_GRACE_S, RayTimers, engine_complaints, gateway_complaints

DRAIN_S = 600.0
LONGEST_S = 3_600.0
FINE = RayTimers(haproxy=True, hard_stop_s=14_400.0, min_draining_s=DRAIN_S, graceful_shutdown_s=DRAIN_S + 5.0)
SLOW = RayTimers(haproxy=False, hard_stop_s=120.0, min_draining_s=30.0, graceful_shutdown_s=DRAIN_S)


def test_nothing_is_said_of_timers_that_suffice() -> None:
    assert gateway_complaints(FINE, DRAIN_S, LONGEST_S) == ()
    assert engine_complaints(RayTimers(haproxy=True, graceful_shutdown_s=DRAIN_S + ENGINE_GRACE_S), DRAIN_S) == ()


def test_nothing_is_said_of_timers_that_ray_does_not_show() -> None:
    assert gateway_complaints(RayTimers(haproxy=True), DRAIN_S, None) == ()
    assert engine_complaints(RayTimers(haproxy=True), DRAIN_S) == ()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"request_timeout_s": 60.0}, "request_timeout_s of 60 s"),
        ({"min_draining_s": 30.0}, "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S=600"),
        ({"hard_stop_s": 120.0}, "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"),
        ({"hard_stop_s": LONGEST_S - 1}, "gateway.longest_s"),
    ],
)
def test_a_timer_that_would_cut_a_conversation_is_named(wrong: dict[str, float], named: str) -> None:
    (complaint,) = gateway_complaints(dataclasses.replace(FINE, **wrong), DRAIN_S, LONGEST_S)  # type: ignore[arg-type]
    assert named in complaint


def test_conversations_without_a_limit_outlast_any_proxy() -> None:
    (complaint,) = gateway_complaints(FINE, DRAIN_S, None)
    assert "without a limit" in complaint


def test_the_fast_proxys_timers_do_not_matter_to_the_slow_one() -> None:
    assert gateway_complaints(SLOW, DRAIN_S, LONGEST_S) == ()
    (complaint,) = gateway_complaints(dataclasses.replace(SLOW, graceful_shutdown_s=2.0), DRAIN_S, LONGEST_S)
    assert "graceful_shutdown_timeout_s" in complaint


def test_an_engine_that_is_killed_before_its_sessions_are_over_is_named() -> None:
    (complaint,) = engine_complaints(RayTimers(haproxy=False, graceful_shutdown_s=20.0), DRAIN_S)
    assert "graceful_shutdown_timeout_s" in complaint
    assert "610" in complaint


@pytest.mark.parametrize("longest_s", [60.0, 10_800.0, 50_000.5, None])
@pytest.mark.parametrize("drain_s", [0.0, 20.0, 600.0, 20_000.0])
def test_the_launchers_environment_gives_no_reason_to_complain(drain_s: float, longest_s: float | None) -> None:
    values = environment(haproxy=True, drain_s=drain_s, ports=(0, 0, 0), longest_s=longest_s)
    timers = RayTimers(
        haproxy=True,
        hard_stop_s=float(values["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"]),
        min_draining_s=float(values["RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"]),
    )
    assert gateway_complaints(timers, drain_s, longest_s) == ()


def test_the_defaults_fit_rays_own_draining_period() -> None:
    defaults = RayTimers(haproxy=True, min_draining_s=30.0, hard_stop_s=14_400.0)
    settings = GatewaySettings()
    assert gateway_complaints(defaults, settings.drain_s, settings.longest_s) == ()
