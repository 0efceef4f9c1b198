"""A whole tick with every Triton kernel in place, in the interpreter, says what the PyTorch path says.

Greedy and sampled, guided, with rings and pages, in 8 bits, past the wrap of every window, rows coming and going. Held
to the token; a near tie would show as a difference, and there is none in these conversations.
"""

import dataclasses
import sys
from functools import partial
from typing import Final

import numpy as np
import pytest
import torch

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.model_runner import Habits, ModelRunner
from serve_app.model import fused
from serve_app.model.kernels import plug, windows
from serve_app.model.kernels.plug import plugged
from serve_app.model.operation import BODIES, KERNELS
from serve_app.model.pages import Storage
from serve_app.model.ring import KvRing
from serve_app.spec import GREEDY, Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot
from tests.engine import test_model_runner
from tests.engine.test_model_runner import HOT, small_duplex

torch.set_num_threads(1)

SLOTS: Final = 5
TICKS: Final = 9
"""The model looks back 6 steps, its codec 6 frames."""
VOICES: Final = np.random.default_rng(3).normal(0, 0.2, (TICKS, 3, FRAME_SAMPLES)).astype(np.float32)
SAMPLED: Final = Sampling(audio_top_k=50, text_top_k=5, text_seed=8, audio_seed=9)
SPECS: Final = (
    SessionSpec(sampling=GREEDY),
    SessionSpec(sampling=SAMPLED, guidance=2.5),
    SessionSpec(sampling=SAMPLED, repetition_penalty=1.5, repetition_penalty_context=8, pad_mult=0.5),
)
STORAGES: Final = {
    "rings": Storage(),
    "pages in int8": Storage(pages=20, page_steps=4, kv="int8"),
    "pages in fp8": Storage(pages=20, page_steps=4, kv="fp8"),
}


FIRST = next(iter(STORAGES))
"""Of `make test`; the others take the interpreter a minute and are `make live`'s."""


def as_on_a_gpu(patch: pytest.MonkeyPatch) -> None:
    """No value is looked at on the host, and rings lie there with their positions first.

    Blocks of PCM are long: the interpreter takes a millisecond a program, whatever its size.
    """
    empty = KvRing.empty

    def positions_first(*args: object, **kwargs: object) -> KvRing:
        made = empty(*args, **kwargs)  # type: ignore[arg-type]
        return KvRing(made.keys.contiguous(), made.values.contiguous(), made.key_scale, made.value_scale)

    patch.setattr(windows, "_STEPS", 2048)
    patch.setattr(fused, "direct", lambda x: False)
    patch.setattr(fused, "_nobody_draws", lambda temperature: False)
    patch.setattr(KvRing, "empty", positions_first)


def leave_writing_of_fp8_to_pytorch(patch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts to fp8 where a GPU rounds: other keys, other tokens. What reads them stays a kernel."""
    inner = plug._run
    patch.setattr(
        plug, "_run", lambda name, *args: (BODIES[name] if name == "rope_append" else partial(inner, name))(*args)
    )


def converse(storage: Storage, specs: tuple[SessionSpec, ...]) -> list[TickResult]:
    """Three sessions; the second is silent for a tick and the last comes late. Guided ones have a slot more."""
    duplex = small_duplex()
    duplex.lm.lay_out()
    assert duplex.lm.depformer is not None
    config = duplex.lm.depformer.config
    duplex.lm.depformer.config = dataclasses.replace(config, depformer_pos_emb="none")  # as published
    runner = ModelRunner(duplex, SLOTS, habits=Habits(no_text=True), storage=storage)
    steps, said = [0] * len(specs), []
    for tick in range(TICKS):
        live = [slot for slot in range(3) if (slot != 1 or tick != 4) and (slot != 2 or tick > 1)]
        for slot in live:
            if not steps[slot]:
                runner.open(Slot(slot), specs[slot], Slot(slot + 2) if specs[slot].guided else None)
        numbers = np.array([steps[slot] for slot in live], np.int64)
        said.append(runner.run(TickBatch(np.array(live, np.int64), numbers, VOICES[tick, live])))
        for slot in live:
            steps[slot] += 1
    return said


def assert_same(ours: list[TickResult], theirs: list[TickResult]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.text_token.tolist() == other.text_token.tolist()
        assert mine.codes.tolist() == other.codes.tolist()
        assert mine.finite.all()
        assert other.finite.all()
        np.testing.assert_allclose(mine.pcm, other.pcm, atol=2e-5)


@pytest.fixture
def few_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sort takes the interpreter seconds."""
    monkeypatch.setattr(test_model_runner, "CARD", 40)


@pytest.mark.usefixtures("few_codes")
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == FIRST else pytest.mark.slow) for name in STORAGES]
)
def test_every_kernel_in_place_says_what_the_pytorch_path_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = converse(STORAGES[name], SPECS)
    as_on_a_gpu(monkeypatch)
    if STORAGES[name].kv == "fp8":
        leave_writing_of_fp8_to_pytorch(monkeypatch)
    with plugged("cpu"):
        assert_same(converse(STORAGES[name], SPECS), theirs)


@pytest.mark.slow
def test_rows_that_look_at_the_whole_vocabulary_leave_sampling_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    specs = (SPECS[0], SessionSpec(sampling=HOT), SPECS[2])
    theirs = converse(Storage(), specs)
    as_on_a_gpu(monkeypatch)
    with plugged("cpu"):
        assert_same(converse(Storage(), specs), theirs)


@pytest.mark.usefixtures("few_codes")
def test_a_tick_calls_every_kernel_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "TICKS", 2)
    called = set()
    inner = plug._run

    def run(name: str, *arguments: object) -> object:
        called.add(name)
        return inner(name, *arguments)

    monkeypatch.setattr(plug, "_run", run)
    with plugged("cpu"):
        assert set(KERNELS["cpu"]) == set(plug.MODULES)
        converse(STORAGES["pages in int8"], SPECS)
    assert called == set(plug.MODULES) - {"add_embedding"}  # which is `embed_norm` where a norm follows
    assert "cpu" not in KERNELS
