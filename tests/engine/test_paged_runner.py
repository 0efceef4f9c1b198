"""A model whose sessions share pages says what it says with rings: guided, prompted, joining and leaving."""

import pytest
import torch

from serve_app.engine.engine import Engine
from serve_app.engine.model_runner import ModelRunner
from serve_app.errors import EngineFull
from serve_app.model.pages import Storage
from serve_app.spec import Prompt, SessionSpec
from serve_app.units import Slot
from tests.engine.fakes import FakeClock, Listener
from tests.engine.test_family_runner import FRAMES, SLOTS, SPECS, alone, book, converse, duplex, opened, speech

PAGE_STEPS = 5
PAGES = 24


def _paged(pages: int = PAGES, rows: int = 6) -> ModelRunner:
    model = duplex()
    storage = Storage(pages=pages, page_steps=PAGE_STEPS)
    return ModelRunner(model, rows, prompts=book(model), prefix_bytes=1 << 24, storage=storage)


def test_sessions_that_share_pages_say_what_they_say_with_rings_and_leave_nothing() -> None:
    runner = _paged()
    engine, listener = Engine(runner, slots=4, clock=FakeClock()), Listener()
    for _ in range(2):  # whoever comes second finds the pages of whoever came first, and the prompts kept
        leases = [engine.acquire(spec) for spec in SPECS]
        for lease in leases:
            engine.open(lease, listener)
        while not all(listener.opened(lease) for lease in leases):
            engine.tick()
        for number in range(FRAMES):
            for voice_of, lease in enumerate(leases):
                engine.push(lease, number, speech(voice_of)[number])
            assert engine.tick() == len(SPECS)
        for voice_of, (lease, spec) in enumerate(zip(leases, SPECS, strict=True)):
            said = [(step.text_token, step.codes.tolist()) for step in listener.steps(lease)]
            assert said == alone(spec, voice_of)
        for lease in leases:
            engine.close(lease)
        engine.tick()
        assert engine.stats().runner["pages_free"] == PAGES
    assert engine.stats().runner["prefix_hits"] > 0


def test_a_runner_alone_takes_the_pages_that_it_needs_and_wipes_those_that_it_takes_again() -> None:
    runner = _paged()
    for seed in range(2):
        opened(runner, 1, SPECS[0])
        assert converse(runner, {1: speech(seed)})[1] == alone(SPECS[0], seed)
    runner.wipe(Slot(1))
    opened(runner, 1, SPECS[0])
    assert converse(runner, {1: speech(3)})[1] == alone(SPECS[0], 3)


def test_a_prompt_that_no_pages_are_left_for_is_refused_at_the_door() -> None:
    engine = Engine(_paged(pages=3), slots=4, clock=FakeClock())
    engine.acquire(SessionSpec())
    with pytest.raises(EngineFull):
        engine.acquire(SessionSpec(prompt=Prompt(text="far too long")))
    engine.acquire(SessionSpec())


@pytest.mark.parametrize("kv", ["int8", "fp8"])
def test_sessions_with_eight_bit_keys_converse(kv: str) -> None:
    model = duplex()
    runner = ModelRunner(
        model, SLOTS, storage=Storage(pages=PAGES, page_steps=PAGE_STEPS, kv="int8" if kv == "int8" else "fp8")
    )
    opened(runner, 0, SessionSpec())
    assert len(converse(runner, {0: speech(1)})[0]) == FRAMES
    pages = runner._state.lm.transformer.pages
    assert pages is not None
    assert pages.whole.dtype == (torch.int8 if kv == "int8" else torch.float8_e4m3fn)
