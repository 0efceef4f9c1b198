"""What the table is worked out from: lengths, floors, how many a device holds, underruns, what fills a batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.bench import capacity
from serve_app.bench.fill import held, place
from serve_app.bench.lengths import Lengths, mean, parse_lengths
from serve_app.bench.machine import Machine
from serve_app.bench.models import build, on_meta
from serve_app.bench.ours import Ours
from serve_app.bench.roofline import work_of
from serve_app.bench.shapes import PRESETS
from serve_app.bench.stage_graphs import StageGraphs
from serve_app.bench.timing import underruns
from serve_app.model.state import leaves

CPU = torch.device("cpu")
H100 = Machine(
    device="H100",
    kind="cuda",
    driver="",
    torch="",
    threads=1,
    attention="",
    memory_bytes=80 << 30,
    copy_bytes_s=3.0e12,
    product_flop_s={"float32": 50e12, "bfloat16": 700e12},
)


@given(
    rows=st.integers(1, 200), context=st.integers(1, 3_000), label=st.sampled_from(["0.1", "1.0", "7", "mixed", "half"])
)
def test_every_row_holds_at_least_one_step(rows: int, context: int, label: str) -> None:
    steps = Lengths(label).of(rows, context)
    assert len(steps) == rows
    assert min(steps) >= 1


def test_mixed_lengths_spread_evenly_over_the_context() -> None:
    steps = Lengths("mixed").of(100, 3_000)
    assert mean(steps) == pytest.approx(1_500, rel=0.01)
    assert steps[0] == 15
    assert steps[-1] == 2_985


def test_a_share_and_a_number_are_told_apart_by_the_point() -> None:
    one, many = parse_lengths("1.0,1")
    assert one.of(1, 750) == (750,)
    assert many.of(1, 750) == (1,)


@pytest.mark.parametrize(("rows", "steps", "expected_ms"), [(1, 750, 5.1), (16, 750, 7.2), (64, 1_500, 22.3)])
def test_the_floor_of_the_7b_on_an_h100_is_the_published_estimate(rows: int, steps: int, expected_ms: float) -> None:
    work = work_of(on_meta(PRESETS["7b"]), torch.bfloat16)
    floor_ms = sum(stage.floor_ms([steps] * rows, H100) for stage in work.values())
    assert floor_ms == pytest.approx(expected_ms, rel=0.05)


def test_the_floor_stops_growing_where_the_window_ends() -> None:
    work = work_of(on_meta(PRESETS["7b"]), torch.bfloat16)["lm"]
    full, longer, shorter = (work.floor_ms([steps] * 16, H100) for steps in (3_000, 9_000, 2_000))
    assert full == longer
    assert shorter < full


def test_the_codec_takes_the_operations_that_were_counted_for_it() -> None:
    work = work_of(on_meta(PRESETS["mimi"]), torch.float32)
    assert work["encode"].row_flop + work["decode"].row_flop == pytest.approx(0.88e9, rel=0.1)


@given(memory=st.integers(1 << 30, 1 << 37), weights=st.integers(0, 1 << 35), slot=st.integers(1 << 20, 1 << 31))
def test_what_fits_fits_and_one_more_does_not(memory: int, weights: int, slot: int) -> None:
    fitting = capacity.fitting(memory, weights, slot)
    if fitting:
        assert capacity.needed(weights, slot, fitting) <= memory + 1
    assert capacity.needed(weights, slot, fitting + 1) > memory - 2


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(1, 10.0), (8, 24.7)], (34, False)),
        ([(1, 10.0), (8, 60.0), (16, 100.0)], (12, True)),
        ([(4, 90.0), (8, 120.0)], (0, True)),
        ([(1, 90.0), (8, 60.0), (16, 100.0)], (12, True)),
        ([(4, 10.0)], (None, False)),
        ([(1, 10.0), (8, 10.0)], (None, False)),
    ],
)
def test_sessions_by_time_are_read_off_the_measured_line(
    points: list[tuple[int, float]], expected: tuple[int | None, bool]
) -> None:
    assert capacity.in_time(points) == expected


def test_the_scarcer_of_memory_and_time_binds() -> None:
    assert capacity.Capacity("1.0", by_memory=41, by_length=58, by_time=60, measured=True).binds == "memory"
    assert capacity.Capacity("1.0", by_memory=121, by_length=130, by_time=60, measured=True).binds == "time"
    assert capacity.Capacity("1.0", by_memory=41, by_length=58, by_time=None, measured=False).sessions is None


def test_a_late_tick_makes_the_next_ones_late_until_they_have_caught_up() -> None:
    assert underruns([80.0, 20.0, 80.0]) == 0
    assert underruns([130.0, 60.0, 60.0, 60.0]) == 3
    assert underruns([81.0] * 10) == 10


@settings(max_examples=20)
@given(st.lists(st.floats(0, 200), max_size=30))
def test_ticks_that_take_longer_than_a_frame_are_underruns(times_ms: list[float]) -> None:
    assert underruns(times_ms) >= sum(time_ms > 80.0 for time_ms in times_ms)


def test_placed_rows_hold_their_steps_and_other_slots_stay_empty() -> None:
    duplex = build(PRESETS["tiny"], CPU, torch.float32)
    state = duplex.init_state(3, CPU, torch.float32)
    before = [tensor[1].clone() for tensor in leaves(state)]
    place(duplex, state, [0, 2], [7, 400])
    assert state.lm.cache.offset.tolist() == [7, 0, 400, 0]
    assert state.lm.transformer.offset.tolist() == [7, 0, 400, 0]
    for now, then in zip(leaves(state), before, strict=True):
        assert torch.equal(now[1], then)
    ((begin, (keys, values)),) = held(state.lm.transformer, 0, 2, 40)
    assert begin == 0
    assert 0.8 < float(keys.std()) < 1.2
    assert not torch.equal(keys, values)


def test_a_run_may_go_back_to_its_lengths() -> None:
    ours = Ours(build(PRESETS["tiny"], CPU, torch.float32), 2)
    ours.place([5, 30])
    for _ in range(3):
        ours.tick()
    assert ours.runner.state.lm.cache.offset.tolist()[:2] == [8, 33]
    ours.rewind()
    state = ours.runner.state
    assert state.lm.cache.offset.tolist()[:2] == state.lm.transformer.offset.tolist()[:2] == [5, 30]
    assert state.mimi.encoder.transformer.offset.tolist()[:2] == [10, 60]


def test_equal_seeds_make_equal_weights() -> None:
    first, again = (build(PRESETS["tiny"], CPU, torch.float32, seed=3).state_dict() for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_stages_one_by_one_advance_the_rows_as_a_tick_does() -> None:
    duplex = build(PRESETS["tiny"], CPU, torch.float32)
    state = duplex.init_state(2, CPU, torch.float32)
    place(duplex, state, [0, 1], [5, 9])
    stages = StageGraphs(duplex, state, 2)
    taken = stages.medians_ms(3)
    assert list(taken) == ["encode", "lm", "depformer", "decode"]
    assert min(taken.values()) > 0
    assert state.lm.cache.offset.tolist() == [9, 13, 0]
