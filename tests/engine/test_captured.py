"""Prepared ticks: padded, captured or not, they say what live rows alone would be told."""

import functools
import itertools
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.captured import SIZES, Capture, CudaCapture, EagerTwin, Kind, bucket_sizes
from serve_app.engine.model_runner import Habits, ModelRunner
from serve_app.engine.staging import Block, TickBuffers, TickShape
from serve_app.model import fused
from serve_app.model.duplex import Duplex
from serve_app.model.state import leaves
from serve_app.spec import GREEDY, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot
from tests.engine.fake_cuda import FakeCuda, Vigil
from tests.engine.test_model_runner import HOT, small_duplex

torch.set_num_threads(1)

SLOTS: Final = 6
VOICES: Final = np.random.default_rng(3).normal(0, 0.2, (SLOTS, FRAME_SAMPLES)).astype(np.float32)
SPECS: Final = (
    SessionSpec(sampling=GREEDY),
    SessionSpec(sampling=HOT),  # looks at the whole vocabulary
    SessionSpec(sampling=GREEDY, guidance=2.5),
    SessionSpec(sampling=HOT, guidance=0.5),
)
SHAPES: Final = st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple)


@functools.cache
def model() -> Duplex:
    return small_duplex()


def runner(capture: Capture | None = None) -> ModelRunner:
    made = ModelRunner(model(), SLOTS, habits=Habits(no_text=True), capture=capture)
    made.warm_up(1)
    return made


def batch(slots: list[int], steps: list[int], *, ended: bool = False, told: bool = False) -> TickBatch:
    """A frame of everybody's own voice; the first row may hear the end, the last may be told what to say."""
    frames = np.stack([VOICES[slot] * (1 + step % 3) for slot, step in zip(slots, steps, strict=True)])
    given = np.full((len(slots), 4), -2, np.int64)
    given[-1] = [5, -2, 7, 9]
    return TickBatch(
        np.array(slots, np.int64),
        np.array(steps, np.int64),
        frames,
        np.arange(len(slots)) == 0 if ended else None,
        given if told else None,
    )


def assert_same(ours: TickResult, theirs: TickResult) -> None:
    assert ours.text_token.tolist() == theirs.text_token.tolist()
    assert ours.codes.tolist() == theirs.codes.tolist()
    assert ours.audible.tolist() == theirs.audible.tolist()
    assert ours.finite.tolist() == theirs.finite.tolist()
    np.testing.assert_allclose(ours.pcm, theirs.pcm, atol=2e-5)


class Conversation:
    """The same sessions on two runners; slots 4 and 5 are the twins of 0 and 1 where those are guided."""

    def __init__(self, *runners: ModelRunner) -> None:
        self.runners = runners
        self.steps: dict[int, int] = {}

    def open(self, slot: int, spec: SessionSpec) -> None:
        twin = Slot(slot + 4) if spec.guided else None
        for each in self.runners:
            each.open(Slot(slot), spec, twin)
        self.steps[slot] = 0

    def leave(self, slot: int, *, wiped: bool) -> None:
        self.steps.pop(slot, None)
        if wiped:
            for each in self.runners:
                each.wipe(Slot(slot))

    def tick(self, slots: list[int], **options: bool) -> list[TickResult]:
        asked = batch(slots, [self.steps[slot] for slot in slots], **options)
        results = [each.run(asked) for each in self.runners]
        for slot in slots:
            self.steps[slot] += 1
        return results


@given(st.integers(1, 600))
def test_the_buckets_grow_and_the_last_holds_every_row(rows: int) -> None:
    sizes = bucket_sizes(rows)
    assert sizes[-1] == rows
    assert list(sizes) == sorted(set(sizes))
    assert all(size in SIZES or size % 64 == 0 for size in sizes[:-1])


@given(st.integers(1, 600), st.data())
def test_a_bucket_is_less_than_twice_its_rows_or_one_of_the_steps(rows: int, data: st.DataObject) -> None:
    ready = data.draw(st.integers(1, rows))
    size = next(size for size in bucket_sizes(rows) if size >= ready)
    assert size < 2 * ready


ACTIONS: Final = st.one_of(
    st.tuples(st.just("open"), st.integers(0, 1), st.sampled_from(SPECS)),
    st.tuples(st.just("open"), st.integers(2, 3), st.sampled_from(SPECS[:2])),
    st.tuples(st.just("leave"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("tick"), st.lists(st.integers(0, 3), unique=True, min_size=1), st.integers(0, 3)),
    st.tuples(st.just("tick"), st.permutations(range(4)), st.integers(0, 3)),
)


def follow(talk: Conversation, script: list[tuple[str, Any, Any]]) -> None:
    for action, where, how in script:
        if action == "open":
            talk.open(where, how)
        elif action == "leave":
            talk.leave(where, wiped=how)
        elif present := [slot for slot in where if slot in talk.steps]:
            assert_same(*talk.tick(present, ended=how == 1, told=how == 2))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(ACTIONS, min_size=4, max_size=24))
def test_any_order_of_joins_and_leaves_gives_padded_rows_what_live_rows_get(script: list[tuple[str, Any, Any]]) -> None:
    talk = Conversation(twin(), live())
    for slot in range(4):
        talk.open(slot, SPECS[(2, 3, 0, 1)[slot]])
    follow(talk, script)


@functools.cache
def twin() -> ModelRunner:
    return runner(EagerTwin())


@functools.cache
def live() -> ModelRunner:
    return runner()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As away from the CPU, where fused operations are taken and no value is looked at."""
    monkeypatch.setattr(fused, "direct", lambda x: False)
    monkeypatch.setattr(fused, "_nobody_draws", lambda temperature: False)


@pytest.mark.usefixtures("elsewhere")
def test_a_replayed_tape_says_what_live_rows_are_told_as_sessions_come_and_go() -> None:
    cuda = FakeCuda()
    talk = Conversation(runner(CudaCapture(torch.device("cpu"), cuda)), live())
    for slot, spec in enumerate((SPECS[0], SPECS[3], SPECS[1], SPECS[0])):
        talk.open(slot, spec)
    for number, slots in enumerate(([0], [1, 0], [2, 1, 0], [3], [0, 3], [3, 2, 1, 0], [1], [2, 3], [0, 1, 2, 3])):
        if number == 5:
            talk.leave(0, wiped=True)
            talk.open(0, SPECS[2])
        assert_same(*talk.tick(slots, ended=number == 6, told=number == 7))
    assert sum(graph.replays for graph in cuda.graphs) == 1 + 9  # one to warm up


@pytest.mark.usefixtures("elsewhere")
def test_a_tick_replays_one_graph_and_runs_no_python_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, calls = FakeCuda(), []
    captured = runner(CudaCapture(torch.device("cpu"), cuda))
    monkeypatch.setattr(model(), "think", lambda *_, **__: calls.append("think"))
    captured.open(Slot(2), SessionSpec(sampling=GREEDY))
    before = [graph.replays for graph in cuda.graphs]
    captured.run(batch([2], [0]))
    after = [graph.replays for graph in cuda.graphs]
    assert sum(after) - sum(before) == 1
    assert calls == []


@pytest.mark.parametrize("slots", [[1], [0, 1, 2, 3]])
def test_a_tick_copies_once_each_way_whatever_it_holds(slots: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    talk, copies = Conversation(twin()), []
    for slot in range(4):
        talk.open(slot, SPECS[(2, 3, 0, 1)[slot]])
    monkeypatch.setattr(Block, "copy_", lambda *_: copies.append(1))
    talk.tick(slots, ended=True, told=True)
    assert len(copies) == 2


@pytest.mark.usefixtures("elsewhere")
def test_every_graph_is_captured_at_the_start_largest_first_into_one_pool() -> None:
    cuda = FakeCuda()
    made = runner(CudaCapture(torch.device("cpu"), cuda))
    sizes = made.describe().buckets
    assert sizes == (1, 2, 4, 6)
    assert len(cuda.graphs) == len(sizes) * len(Kind)
    assert {options["pool"] for options in cuda.captures} == {(0, 7)}
    assert {options["capture_error_mode"] for options in cuda.captures} == {"thread_local"}
    voices = [
        [out for *_, outs in graph.tape.calls for out in outs if out.shape[1:] == (1920,)] for graph in cuda.graphs
    ]
    widths = [max(len(voice) for voice in each) for each in voices]
    assert widths == sorted(widths, reverse=True)


def test_a_graph_is_warmed_on_the_stream_that_captures_it_before_it_is_captured() -> None:
    cuda, ran = FakeCuda(), []
    CudaCapture(torch.device("cpu"), cuda)(lambda: ran.append(len(cuda.captures)))
    assert cuda.notes == ["side waits for main", "warm on side", "main waits for side", "capture"]
    assert ran == [0, 0, 1]
    assert cuda.captures[0]["stream"].name == "side"


@given(st.lists(st.tuples(st.sampled_from([torch.float32, torch.int64, torch.int16, torch.bool]), SHAPES), max_size=6))
def test_parts_of_a_block_do_not_overlap_and_move_together(shapes: list[tuple[torch.dtype, tuple[int, ...]]]) -> None:
    ours, theirs = (Block(tuple(shapes), torch.device("cpu")) for _ in range(2))
    for number, part in enumerate(ours.parts):
        part.fill_(number % 2)
    theirs.copy_(ours)
    for number, (part, (dtype, shape)) in enumerate(zip(theirs.parts, shapes, strict=True)):
        assert (part.dtype, tuple(part.shape)) == (dtype, shape)
        assert bool((part == number % 2).all())


def test_buffers_stay_where_they_are() -> None:
    buffers = TickBuffers(TickShape(4, 3), SLOTS, torch.device("cpu"))
    before = [part.data_ptr() for part in buffers.tensors()]
    for slots in ([0, 1, 2], [5], [3, 2, 1, 0]):
        buffers.fill(batch(slots, [0] * len(slots), ended=True, told=True), {5: 4})
        buffers.send()
        buffers.fetch()
        buffers.result(len(slots), {})
    assert [part.data_ptr() for part in buffers.tensors()] == before


def test_nothing_of_the_last_tick_is_left_in_a_buffer() -> None:
    used, fresh = (TickBuffers(TickShape(4, 3), SLOTS, torch.device("cpu")) for _ in range(2))
    used.fill(batch([0, 1, 2, 3], [0] * 4, ended=True, told=True), {0: 4, 1: 5})
    for buffers in (used, fresh):
        buffers.fill(batch([2], [1]), {})
        buffers.send()
    for one, other in zip(used.tensors(), fresh.tensors(), strict=True):
        assert torch.equal(one, other)


def test_a_result_outlives_the_ticks_after_it() -> None:
    talk = Conversation(twin())
    for slot in (0, 1):
        talk.open(slot, SPECS[0])
    kept = [talk.tick([0, 1])[0] for _ in range(3)]
    said = [(result.pcm.copy(), result.codes.copy()) for result in kept]
    talk.tick([1, 0])
    for result, (pcm, codes) in zip(kept, said, strict=True):
        assert (result.pcm == pcm).all()
        assert (result.codes == codes).all()


@pytest.mark.parametrize("slots", [[1], [3, 0, 1]])
@pytest.mark.parametrize("spec", [SPECS[0], SPECS[1]])
def test_padding_touches_no_bit_of_who_is_not_in_the_tick(slots: list[int], spec: SessionSpec) -> None:
    made = runner(EagerTwin())
    talk = Conversation(made)
    for slot in range(4):
        talk.open(slot, spec)
    for _ in range(3):
        talk.tick([0, 1, 2, 3])
    idle = [slot for slot in range(SLOTS) if slot not in slots]
    before = [tensor[idle].clone() for tensor in leaves(made._state)]
    talk.tick(slots)
    for old, tensor in zip(before, leaves(made._state), strict=True):
        assert torch.equal(old, tensor[idle])


def test_a_padded_row_keeps_every_bit_whoever_sits_beside_it() -> None:
    results = []
    for others in ([1, 2], [3, 2], [3, 2, 1]):  # the same bucket
        talk = Conversation(twin())
        for slot in range(4):
            talk.open(slot, SPECS[0])
        results.append([talk.tick([0, *others])[0] for _ in range(4)])
    for one, other in itertools.chain(*(zip(results[0], result, strict=True) for result in results[1:])):
        assert (one.pcm[0] == other.pcm[0]).all()
        assert one.codes[0].tolist() == other.codes[0].tolist()


def test_poison_in_scratch_reaches_nobody() -> None:
    talk = Conversation(runner(EagerTwin()), live())
    for slot in range(3):
        talk.open(slot, SPECS[0])
    with torch.inference_mode():
        for tensor in leaves(talk.runners[0]._state):
            if tensor.is_floating_point():
                tensor[SLOTS:] = float("nan")
    for _ in range(3):
        assert_same(*talk.tick([0, 1, 2]))


def test_padding_looks_at_one_step_however_long_others_have_talked() -> None:
    made = runner(EagerTwin())
    talk = Conversation(made)
    talk.open(0, SPECS[0])
    talk.open(1, SPECS[0])
    talk.open(2, SPECS[0])
    for _ in range(5):
        talk.tick([0, 1, 2])
    assert int(made._state.lm.transformer.offset[SLOTS]) <= 1
    assert int(made._state.lm.cache.offset[SLOTS]) <= 1


def test_the_smallest_bucket_and_the_least_kind_are_taken_and_counted() -> None:
    made = runner(EagerTwin())
    talk = Conversation(made)
    for slot, spec in enumerate((SPECS[2], SPECS[1], SPECS[0], SPECS[0])):
        talk.open(slot, spec)
    for slots in ([2], [2, 3], [0, 2, 3], [0, 1, 2, 3], [3, 2]):
        talk.tick(slots)
    counted = made.counters()
    assert [counted[f"ticks_of_{size}"] for size in (1, 2, 4, 6)] == [1, 2, 2, 0]
    assert [counted[f"ticks_{kind.value}"] for kind in (Kind.PLAIN, Kind.GUIDED, Kind.WIDE)] == [3, 1, 1]
    assert counted["padding_rows"] == 1


@pytest.mark.usefixtures("elsewhere")
def test_a_model_that_cannot_be_guided_prepares_no_twins() -> None:
    cuda = FakeCuda()
    made = ModelRunner(model(), 3, capture=CudaCapture(torch.device("cpu"), cuda))
    made.warm_up(1)
    assert made.describe().buckets == (1, 2, 3)
    assert len(cuda.graphs) == 3 * 2


@pytest.mark.parametrize("kind", list(Kind))
def test_what_is_captured_waits_for_nothing_and_copies_nothing_between_devices(kind: Kind) -> None:
    made = ModelRunner(small_duplex().to("meta"), SLOTS, habits=Habits(no_text=True))
    buffers = TickBuffers(TickShape(4, 3), SLOTS, torch.device("meta"))
    with torch.inference_mode(), Vigil() as vigil:
        made._step(buffers.inputs, buffers.outputs, kind)
    assert vigil.operators > 100


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.to("meta"),
        lambda x: bool(x.any()),
    ],
    ids=["item", "nonzero", "mask", "copy", "bool"],
)
def test_the_vigil_sees_what_it_looks_for(wait: Any) -> None:
    with pytest.raises(AssertionError), torch.inference_mode(), Vigil():
        wait(torch.ones(3))


def test_rows_of_one_engine_may_be_asked_for_in_any_order() -> None:
    talk = Conversation(runner(EagerTwin()), live())
    for slot in range(3):
        talk.open(slot, SPECS[0])
    for slots in itertools.permutations(range(3)):
        assert_same(*talk.tick(list(slots)))
