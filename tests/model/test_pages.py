"""Pages hold what rings hold: the same conversation, wherever its pages lie, for many turns of the window."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model.page_pool import PagePool
from serve_app.model.pages import Storage
from serve_app.model.snapshot import put, take
from serve_app.model.state import Rows, reset
from serve_app.model.transformer import Transformer, TransformerConfig, TransformerState
from tests.model.language import CPU, MOSHIKO, small_lm

SLOTS, CONTEXT, PAGES = 3, 10, 12
CONFIG = TransformerConfig(dim=16, heads=2, layers=2, feedforward=64, context=CONTEXT)


def _model() -> Transformer:
    torch.manual_seed(5)
    return Transformer(CONFIG).eval()


class Desk:
    """What a runner does: draws pages, and gives them to slots."""

    def __init__(self, state: TransformerState, page_steps: int, pages: int = PAGES) -> None:
        self.state, self.pool = state, PagePool(pages, page_steps, CONTEXT)

    def draw(self, slot: int, steps: int) -> None:
        assert self.state.pages is not None
        before = self.pool.held(slot)
        assert self.pool.draw([slot], [steps])
        self.state.pages.give(slot, self.pool.held(slot)[len(before) :], len(before))

    def reset(self, slot: int) -> None:
        reset(self.state, torch.tensor([slot]))
        self.pool.release([slot])


@given(page_steps=st.integers(1, 11), seed=st.integers(0, 1_000), longest=st.sampled_from([1, 2, CONTEXT]))
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_pages_give_what_rings_give_past_many_wraps_with_masks_and_resets(
    page_steps: int, seed: int, longest: int
) -> None:
    model, chance = _model(), random.Random(seed)
    ring = model.init_state(SLOTS, CPU, torch.float32)
    paged = model.init_state(SLOTS, CPU, torch.float32, Storage(pages=SLOTS * CONTEXT, page_steps=page_steps))
    desk, made, at_most = Desk(paged, page_steps, SLOTS * CONTEXT), [0] * SLOTS, 0
    while at_most < 6 * CONTEXT:
        if chance.random() < 0.03:
            gone = chance.randrange(SLOTS)
            desk.reset(gone)
            reset(ring, torch.tensor([gone]))
            made[gone] = 0
        slots = chance.sample(range(SLOTS), chance.randint(1, SLOTS))
        steps, mask = chance.randint(1, longest), torch.tensor([chance.random() < 0.8 for _ in slots])
        for slot, executes in zip(slots, mask.tolist(), strict=True):
            made[slot] += steps * executes
            desk.draw(slot, made[slot])
        rows = Rows.of(torch.tensor(slots), mask, SLOTS)
        x, beside = torch.randn(len(slots), steps, CONFIG.dim), chance.random() < 0.5
        expected = model.step(x, ring, rows, one_by_one=beside)
        got = model.step(x, paged, rows, one_by_one=beside)
        torch.testing.assert_close(got[mask], expected[mask], atol=1e-6, rtol=0)
        at_most = max(made)


@torch.no_grad()
def test_what_a_device_computes_over_the_whole_table_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_app.model.window import Window

    model = _model()
    valid, spanning = (model.init_state(SLOTS, CPU, torch.float32, Storage(pages=PAGES, page_steps=4)) for _ in "ab")
    desks = Desk(valid, 4), Desk(spanning, 4)
    rows = Rows.of(torch.tensor([0, 2]), torch.tensor([True, True]), SLOTS)
    original = Window.valid
    for step in range(3 * CONTEXT):
        for desk in desks:
            desk.draw(0, step + 1)
            desk.draw(2, step + 1)
        x = torch.randn(2, 1, CONFIG.dim)
        expected = model.step(x, valid, rows)
        monkeypatch.setattr(Window, "valid", classmethod(_unlooked))
        torch.testing.assert_close(model.step(x, spanning, rows), expected, atol=1e-6, rtol=0)
        monkeypatch.setattr(Window, "valid", original)


def _unlooked(cls: type, offset: Tensor, steps: int, capacity: int, rows: Rows, *, one_by_one: bool = False) -> object:
    from serve_app.model.window import Window

    return Window.at(offset, steps, capacity, rows)


@torch.no_grad()
def test_a_page_is_wiped_before_it_changes_hands() -> None:
    model = _model()
    state = model.init_state(SLOTS, CPU, torch.float32, Storage(pages=3, page_steps=4))
    desk = Desk(state, 4, 3)
    assert state.pages is not None
    desk.draw(0, CONTEXT)
    rows = Rows.of(torch.tensor([0]), torch.tensor([True]), SLOTS)
    model.step(torch.full((1, CONTEXT, CONFIG.dim), float("nan")), state, rows)
    mine = state.pages.whole[:, :, 1:4].isnan()
    assert bool(mine.any())
    desk.reset(0)
    desk.draw(1, 1)
    assert not state.pages.whole[:, :, list(desk.pool.held(1))].any()
    got = model.step(torch.randn(1, 1, CONFIG.dim), state, Rows.of(torch.tensor([1]), torch.tensor([True]), SLOTS))
    assert bool(got.isfinite().all())


@torch.no_grad()
def test_a_masked_row_writes_into_nobodys_page() -> None:
    model = _model()
    state = model.init_state(SLOTS, CPU, torch.float32, Storage(pages=PAGES, page_steps=4))
    desk = Desk(state, 4)
    assert state.pages is not None
    desk.draw(0, 2)
    before = state.pages.whole[:, :, :-1].clone()
    rows = Rows.of(torch.tensor([0, 1]), torch.tensor([False, False]), SLOTS)
    model.step(torch.full((2, 1, CONFIG.dim), float("nan")), state, rows)
    assert torch.equal(state.pages.whole[:, :, :-1], before)
    state.pages.wipe_scratch()
    assert not state.pages.whole[:, :, -1].any()


@pytest.mark.parametrize(
    "storage", [Storage(pages=PAGES, page_steps=4), Storage(kv="int8"), Storage(kv="fp8")], ids=str
)
@torch.no_grad()
def test_a_snapshot_carries_a_conversation_to_another_slot(storage: Storage) -> None:
    lm = small_lm(MOSHIKO | {"context": CONTEXT})
    state = lm.init_state(SLOTS, CPU, torch.float32, storage)
    desk = Desk(state.transformer, 4) if storage.pages is not None else None
    tokens = torch.randint(0, 30, (1, lm.config.streams, 7), generator=torch.Generator().manual_seed(1))
    if desk is not None:
        desk.draw(1, 5)  # so that the two do not hold the same pages
        desk.draw(0, 9)
        desk.draw(2, 9)
    lm.prime(tokens, state, Rows.of(torch.tensor([0]), torch.tensor([True]), SLOTS))
    put(take(state, 0, 7), state, 2)
    user = torch.zeros(1, lm.config.user_q, dtype=torch.int64)
    hidden = [
        lm.think(user, state, Rows.of(torch.tensor([slot]), torch.tensor([True]), SLOTS), torch.tensor([-2])).hidden
        for slot in (0, 2)
    ]
    assert torch.equal(hidden[0], hidden[1])
