"""How many engines: the laws of the decision, and a day of it under a clock."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.admission.scaling import EngineLoad, ScalingRules, engines_wanted

RULES = ScalingRules(min_engines=1, max_engines=10, min_free=2, slack=0.1)


@st.composite
def rules(draw: st.DrawFn) -> ScalingRules:
    least = draw(st.integers(1, 20))
    return ScalingRules(
        min_engines=least,
        max_engines=draw(st.integers(least, 40)),
        min_free=draw(st.integers(0, 100)),
        tick_s=draw(st.floats(0.001, 0.08)),
        slack=draw(st.floats(0, 2)),
    )


@st.composite
def loads(draw: st.DrawFn) -> EngineLoad:
    slots = draw(st.integers(1, 256))
    return EngineLoad(
        slots=slots,
        used=draw(st.integers(0, slots)),
        fixed_s=draw(st.floats(0, 0.1)),
        per_row_s=draw(st.one_of(st.just(0.0), st.floats(1e-6, 0.1))),
        late=draw(st.booleans()),
    )


many = st.lists(loads(), max_size=12)
counts = st.integers(1, 40)


def busy(*used: int, slots: int = 8, **more: float) -> list[EngineLoad]:
    return [EngineLoad(slots=slots, used=count, **more) for count in used]  # type: ignore[arg-type]  # no bool in it


@given(rules(), many, counts, st.integers(0, 5))
def test_it_is_always_within_bounds(rules: ScalingRules, loads: list[EngineLoad], engines: int, silent: int) -> None:
    assert rules.min_engines <= engines_wanted(rules, loads, engines, silent) <= rules.max_engines


@given(rules(), many.filter(bool), counts)
def test_what_is_wanted_carries_what_is_used_and_what_is_to_be_free(
    rules: ScalingRules, loads: list[EngineLoad], engines: int
) -> None:
    wanted = engines_wanted(rules, loads, engines)
    carried = sum(load.carries(rules.tick_s) for load in loads) / len(loads)
    used = sum(load.used for load in loads)
    assert wanted * carried >= used + rules.min_free - 1e-6 or wanted == rules.max_engines


@given(rules(), many, counts)
def test_under_a_load_that_stays_it_moves_once_and_never_again(
    rules: ScalingRules, loads: list[EngineLoad], engines: int
) -> None:
    first = engines_wanted(rules, loads, engines)
    assert engines_wanted(rules, loads, first) == first


@given(rules(), many.filter(bool), counts, st.integers(1, 5))
def test_no_engine_goes_while_one_has_not_said_how_it_is(
    rules: ScalingRules, loads: list[EngineLoad], engines: int, silent: int
) -> None:
    assert engines_wanted(rules, loads, engines, silent) >= min(engines, rules.max_engines)


@given(rules(), many.filter(bool), counts, st.data())
def test_one_session_more_never_asks_for_fewer_engines(
    rules: ScalingRules, loads: list[EngineLoad], engines: int, data: st.DataObject
) -> None:
    loads = [dataclasses.replace(load, late=False) for load in loads]  # a late one carries what it has, so one more
    grown = list(loads)
    index = data.draw(st.integers(0, len(loads) - 1))
    grown[index] = dataclasses.replace(grown[index], used=min(grown[index].used + 1, grown[index].slots))
    assert engines_wanted(rules, grown, engines) >= engines_wanted(rules, loads, engines)


@pytest.mark.parametrize(
    ("used", "engines", "wanted"),
    [
        ((0,), 1, 1),
        ((6,), 1, 1),  # two are free, as is wanted
        ((7,), 1, 2),
        ((8, 8, 8), 3, 4),
        ((8, 8, 8), 5, 4),  # 26 wanted and a tenth more: 28.6 of 32 seats
        ((8, 8, 6), 4, 4),  # three would do, and with a tenth more they would not
        ((8, 8, 3), 4, 3),
        ((0, 0, 0), 3, 1),
    ],
)
def test_seats_that_are_used_and_seats_to_be_free_say_how_many(
    used: tuple[int, ...], engines: int, wanted: int
) -> None:
    assert engines_wanted(RULES, busy(*used), engines) == wanted


def test_an_engine_is_full_where_its_curve_says_that_ticks_would_be_too_long() -> None:
    slow = EngineLoad(slots=32, used=0, fixed_s=0.024, per_row_s=0.0025)
    assert slow.carries(0.064) == 16
    assert slow.carries(1.0) == 32
    assert engines_wanted(RULES, [dataclasses.replace(slow, used=14)], 1) == 1
    assert engines_wanted(RULES, [dataclasses.replace(slow, used=15)], 1) == 2


def test_an_engine_that_is_late_carries_no_more_than_it_has() -> None:
    assert engines_wanted(RULES, busy(4), 1) == 1
    assert engines_wanted(RULES, [EngineLoad(slots=8, used=4, late=True)], 1) == 2


def test_a_curve_that_trembles_moves_no_engine() -> None:
    engines = 3
    for tremble in (0.98, 1.03, 1.0, 0.97, 1.02) * 20:
        one = EngineLoad(slots=32, used=14, fixed_s=0.024, per_row_s=0.0025 * tremble)
        engines = engines_wanted(RULES, [one] * 3, engines)
        assert engines == 3


def test_nobody_moves_while_nothing_is_known() -> None:
    assert engines_wanted(RULES, [], 4) == 4
