"""Engines that come and go with their use, by the decision that Ray asks."""

import json

import pytest

from serve_app import cli
from serve_app.admission.scaling import ScalingRules
from serve_app.fleet.elastic import Elasticity
from serve_app.fleet.fairness import callers
from serve_app.fleet.simulation import Fleet, Outcome, Simulation


def day(
    *,
    swing: float,
    erlangs: float = 30.0,
    elastic: bool = True,
    start_s: float = 60.0,
    delay_s: float = 600.0,
    engines: int = 1,
) -> Outcome:
    """Some thousand callers of engines of 8 rows."""
    rules = ScalingRules(min_engines=1, max_engines=10, min_free=8)
    kind = callers(erlangs, 300.0, 1.0, swing=swing)
    elasticity = Elasticity(rules=rules, start_s=start_s, downscale_delay_s=delay_s) if elastic else None
    fleet = Fleet(engines=engines, rows=8, callers=(kind,), arrivals=20_000, elasticity=elasticity)
    return Simulation(fleet).run()


def test_engines_follow_a_day_and_almost_nobody_is_refused() -> None:
    outcome, fixed = day(swing=0.9), day(swing=0.9, elastic=False, engines=10)
    assert outcome.all.blocking < 0.01
    assert outcome.open_row_s < 0.75 * fixed.open_row_s
    there = [rows for _, _, _, rows in outcome.curve]
    assert min(there) <= 24 < 64 <= max(there)


def test_a_longer_delay_moves_engines_less_and_refuses_no_more() -> None:
    brief, patient = (day(swing=0.0, erlangs=20.0, delay_s=delay_s) for delay_s in (60.0, 3_600.0))
    assert 0 < patient.moves < brief.moves / 3
    assert patient.all.blocking <= brief.all.blocking < 0.01


def test_an_engine_that_starts_slowly_is_paid_for_with_callers() -> None:
    assert day(swing=0.9, start_s=3_600.0).all.blocking > day(swing=0.9, start_s=30.0).all.blocking


def test_rows_that_are_there_are_never_fewer_than_rows_that_are_held() -> None:
    assert all(busy <= there for _, busy, _, there in day(swing=0.9).curve)


def test_the_command_scales(capsys: pytest.CaptureFixture[str]) -> None:
    words = "fleet --engines 1 --scale-to 4 --rows 8 --erlangs 16 --swing 0.5 --arrivals 3000 --min-free 4".split()
    assert cli.main(words) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["engines_come"] >= 2
    assert told["rows"] == 32


@pytest.mark.parametrize("more", ["--split", "--fairness 1", "--engines 5"])
def test_what_does_not_go_with_scaling_is_refused(more: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*"fleet --engines 1 --scale-to 4 --arrivals 100".split(), *more.split()]) == 2
    assert "--scale-to" in capsys.readouterr().err
