"""The policy as Ray calls it."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from serve_app.admission.scaling import EngineLoad, ScalingRules
from serve_app.config import EngineSettings, ScalingSettings, checked
from serve_app.serving.scaling import EnginePolicy, autoscaling, figures, latest_loads

LOAD = EngineLoad(slots=4, used=3, fixed_s=0.01, per_row_s=0.002, late=True)


def metrics(*engines: EngineLoad) -> dict[str, dict[int, list[Any]]]:
    """As Ray keeps them: two looks at each engine, of which the first found it empty."""
    told: dict[str, dict[int, list[Any]]] = {}
    for number, load in enumerate(engines):
        for look in (EngineLoad(slots=1, used=0), load):
            for name, value in figures(look).items():
                told.setdefault(name, {}).setdefault(number, []).append(SimpleNamespace(timestamp=0.0, value=value))
    return told


def context(target: int, *engines: EngineLoad, running: int | None = None) -> Any:
    raw = {"running_requests": {"someone": [SimpleNamespace(timestamp=0.0, value=1.0)]}, **metrics(*engines)}
    running = len(engines) if running is None else running
    return SimpleNamespace(raw_metrics=raw, current_num_replicas=running, target_num_replicas=target)


def test_the_last_word_of_every_engine_counts_and_rays_own_numbers_do_not() -> None:
    assert latest_loads(context(1, LOAD, LOAD).raw_metrics) == [LOAD, LOAD]
    assert latest_loads({}) == []


def test_the_policy_asks_for_an_engine_when_too_few_seats_are_free() -> None:
    policy = EnginePolicy(min_engines=1, max_engines=3, min_free=1)
    assert policy(context(1, EngineLoad(slots=4, used=3))) == (1, {})
    assert policy(context(1, EngineLoad(slots=4, used=4))) == (2, {})


def test_no_engine_goes_while_ray_has_not_heard_of_all_that_run() -> None:
    policy = EnginePolicy(min_engines=1, max_engines=3, min_free=1)
    assert policy(context(2, EngineLoad(slots=4, used=0), running=2)) == (2, {})
    assert policy(context(2, EngineLoad(slots=4, used=0), EngineLoad(slots=4, used=0))) == (1, {})


def test_the_defaults_of_the_configuration_are_the_rules_own() -> None:
    settings = ScalingSettings(max_engines=1)
    rules = {name: getattr(settings, name) for name in (field.name for field in dataclasses.fields(ScalingRules))}
    assert ScalingRules(**rules) == ScalingRules()


@pytest.mark.filterwarnings("error")
def test_ray_is_told_the_bounds_the_delays_and_the_policy() -> None:
    scaling = {"min_engines": 2, "max_engines": 5, "upscale_delay_s": 3, "downscale_delay_s": 60, "min_free": 7}
    settings = checked(EngineSettings, {"runner": "passthrough", "scaling": scaling}, "here")
    assert settings.scaling is not None
    told = autoscaling(settings.scaling, settings.first_engines)
    assert (told.min_replicas, told.initial_replicas, told.max_replicas) == (2, 2, 5)
    assert (told.upscale_delay_s, told.downscale_delay_s) == (3, 60)
    policy = told.policy.get_policy()(**told.policy.policy_kwargs)
    assert policy(context(2, EngineLoad(slots=4, used=4), EngineLoad(slots=4, used=4))) == (4, {})
