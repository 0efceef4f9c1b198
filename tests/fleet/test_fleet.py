"""The simulation agrees with Erlang, is the same twice, and its command says what it found."""

import json
import math
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app import cli
from serve_app.fleet.arrivals import DAY_S, Callers
from serve_app.fleet.erlang import blocking, load_at
from serve_app.fleet.fairness import callers, compare, unlimited
from serve_app.fleet.simulation import Fleet, Outcome, Simulation


def run(
    engines: int = 2,
    rows: int = 8,
    erlangs: float = 12.0,
    arrivals: int = 30_000,
    sigma: float = 1.0,
    split: bool = False,
) -> Outcome:
    kind = callers(erlangs, 300.0, sigma)
    return Simulation(Fleet(engines=engines, rows=rows, callers=(kind,), arrivals=arrivals, split=split)).run()


def test_erlangs_own_values() -> None:
    assert blocking(1, 1.0) == pytest.approx(1 / 2)
    assert blocking(2, 1.0) == pytest.approx(1 / 5)  # 1/2 over 1 + 1 + 1/2
    assert blocking(512, 485.9) == pytest.approx(0.01, abs=1e-4)


@given(slots=st.integers(1, 600), share=st.floats(0.001, 0.9))
def test_the_load_at_a_share_is_blocked_by_that_share(slots: int, share: float) -> None:
    assert blocking(slots, load_at(slots, share)) == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 1.5])
def test_blocking_is_erlangs_whatever_the_lengths(sigma: float) -> None:
    outcome = run(sigma=sigma)
    assert outcome.all.blocking == pytest.approx(blocking(16, 12.0), abs=0.01)
    assert outcome.utilisation == pytest.approx(12.0 * (1 - blocking(16, 12.0)) / 16, abs=0.02)


def test_a_split_fleet_is_as_good_as_its_engines_alone() -> None:
    assert run(split=True).all.blocking == pytest.approx(blocking(8, 6.0), abs=0.015)


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(arrivals=2_000) == run(arrivals=2_000)


def test_with_a_queue_everybody_is_let_in_or_there_at_the_end() -> None:
    fleet = Fleet(
        engines=2, rows=8, callers=(callers(14.0, 300.0, 1.0),), arrivals=20_000, queue_limit=10_000, warm_up=0.0
    )
    tally = Simulation(fleet).run().all
    assert tally.refused == 0
    assert tally.arrivals == 20_000
    assert 20_000 - 1_000 < len(tally.waits_s) <= 20_000
    assert tally.mean_wait_s > 0
    assert tally.wait_s(0.5) <= tally.wait_s(0.99)


def test_callers_without_patience_leave_the_queue() -> None:
    kind = callers(30.0, 300.0, 1.0, patience_s=60.0)
    tally = Simulation(Fleet(engines=2, rows=8, callers=(kind,), arrivals=10_000, queue_limit=10_000)).run().all
    assert tally.abandoned > 0.3 * tally.arrivals
    assert max(tally.waits_s) <= 60.0


def test_guided_sessions_fill_an_engine_with_half_as_many() -> None:
    kind = callers(6.0, 300.0, 0.0, guided=1.0)
    outcome = Simulation(Fleet(engines=2, rows=8, callers=(kind,), arrivals=20_000)).run()
    assert outcome.all.blocking == pytest.approx(blocking(8, 6.0), abs=0.015)


def test_a_day_has_the_mean_of_its_rate_and_its_swing() -> None:
    kind = Callers(tenant=unlimited("a"), erlangs=3.0, swing=0.8)
    times, came = kind.times(random.Random(1)), []
    while (now_s := next(times)) < 20 * DAY_S:
        came.append(now_s % DAY_S)
    assert len(came) == pytest.approx(20 * DAY_S * 3.0 / 300.0, rel=0.03)
    evening = sum(19 * 3_600 < at_s < 21 * 3_600 for at_s in came)
    morning = sum(7 * 3_600 < at_s < 9 * 3_600 for at_s in came)
    assert evening / morning == pytest.approx(9.0, rel=0.3)


def test_lengths_have_their_mean() -> None:
    chance = random.Random(1)
    drawn = [callers(1.0, 300.0, 1.0).length_s(chance) for _ in range(50_000)]
    assert math.fsum(drawn) / len(drawn) == pytest.approx(300.0, rel=0.03)


def test_a_modest_tenant_hardly_notices_a_greedy_one() -> None:
    fleet = Fleet(engines=1, rows=32, callers=(callers(1.0, 300.0, 1.0),), arrivals=20_000, queue_limit=100)
    found = compare(fleet, load=0.9)
    assert found.ratio < 1.3
    assert found.beside.blocking <= found.alone.blocking + 0.01
    assert found.greedy.blocking > 0.8


def test_the_command_ends_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = "fleet --engines 2 --rows 8 --erlangs 12 --arrivals 5000 --price 2".split()
    assert cli.main(words) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["rows"] == 16
    assert report["erlang_b"] == pytest.approx(blocking(16, 12.0), abs=1e-5)
    assert report["cost_per_row_hour"] == pytest.approx(2 / 8 / report["utilisation"], rel=1e-3)


def test_the_command_compares_two_tenants(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main("fleet --engines 1 --rows 8 --arrivals 500 --queue 20 --fairness 1".split()) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ratio"] > 0


@pytest.mark.parametrize(
    "words", ["--engines 0", "--engines 1001", "--erlangs nan", "--sigma -1", "--guided 2", "--rows x"]
)
def test_a_wrong_argument_is_refused(words: str) -> None:
    with pytest.raises(SystemExit):
        cli.main(["fleet", *words.split()])


def test_a_picture_without_matplotlib_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert cli.main(["fleet", "--arrivals", "100", "--plot", str(tmp_path / "a.png")]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
