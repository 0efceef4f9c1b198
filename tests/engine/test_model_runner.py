"""The runner that runs a model: the engine's seam over a small random one."""

import collections
import dataclasses
import random
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.model_runner import ModelRunner
from serve_app.engine.runner import Runner
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, LMConfig
from serve_app.model.mimi import Mimi, MimiConfig, codec_transformer
from serve_app.model.seanet import SeanetConfig
from serve_app.spec import GREEDY, Sampling, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot

torch.set_num_threads(1)

SLOTS: Final = 3
FRAMES: Final = 12
CARD: Final = 600  # more than every tick sorts
HOT: Final = Sampling(audio_top_k=0, text_top_k=5, text_seed=8, audio_seed=9)


def small_duplex() -> Duplex:
    """A codec and a model of random weights that fit each other."""
    codec = MimiConfig(
        seanet=SeanetConfig(dimension=16, n_filters=2),
        transformer=codec_transformer(16, 2, 1, 32, context=12),
        card=CARD,
        codebook_dim=8,
        total_codebooks=4,
        num_codebooks=4,
    )
    shape = f"dim=32 num_heads=2 num_layers=1 context=6 n_q=6 dep_q=3 card={CARD} text_card=20"
    depth = "depformer_dim=16 depformer_num_heads=2"
    config: dict[str, Any] = {key: int(value) for key, value in (p.split("=") for p in f"{shape} {depth}".split())}
    config |= {"delays": [0, 0, 1, 1, 0, 1, 1], "norm": "rms_norm_f32", "positional_embedding": "rope"}
    config |= {"gating": "silu", "depformer_weights_per_step": True}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        return Duplex(Mimi(codec), LM(LMConfig.from_kyutai(config)))


def _runner() -> ModelRunner:
    return ModelRunner(small_duplex(), SLOTS)


def _frames(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.2, (FRAMES, FRAME_SAMPLES)).astype(np.float32)


def _batch(slots: list[int], frames: list[npt.NDArray[np.float32]], steps: list[int]) -> TickBatch:
    return TickBatch(np.array(slots, np.int64), np.array(steps, np.int64), np.stack(frames))


def _alone(runner: ModelRunner, slot: int, frames: npt.NDArray[np.float32], sampling: Sampling) -> list[TickResult]:
    runner.open(Slot(slot), SessionSpec(sampling=sampling))
    return [_copy(runner.run(_batch([slot], [frame], [step]))) for step, frame in enumerate(frames)]


def _copy(result: TickResult) -> TickResult:
    arrays = ("pcm", "audible", "text_token", "codes", "finite")
    return dataclasses.replace(result, **{name: getattr(result, name).copy() for name in arrays})


def test_it_is_a_runner() -> None:
    runner: Runner = _runner()
    assert runner.slots == SLOTS
    info = runner.describe()
    assert (info.device, info.dtype, info.dep_q, info.delay_steps) == ("cpu", "float32", 3, 1)
    assert info.state_bytes_per_slot > 0
    assert info.weights_bytes > 0


def test_results_have_the_seams_shapes_and_types() -> None:
    runner = _runner()
    for slot in (2, 0):
        runner.open(Slot(slot), SessionSpec(sampling=GREEDY))
    frames = _frames(1)
    for step in range(2):
        result = runner.run(_batch([2, 0], [frames[step]] * 2, [step] * 2))
        assert result.pcm.shape == (2, FRAME_SAMPLES)
        assert result.codes.shape == (2, 3)
        arrays = (result.pcm, result.codes, result.text_token, result.audible, result.finite)
        assert [str(array.dtype) for array in arrays] == ["float32", "int16", "int64", "bool", "bool"]
        assert result.audible.tolist() == [step >= 1] * 2
        assert result.finite.all()
        assert list(result.stage_ms) == ["encode", "lm", "depformer", "decode"]
        assert all(elapsed >= 0 for elapsed in result.stage_ms.values())
    assert (result.text_token >= 0).all()


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_a_session_gets_from_a_shared_runner_what_it_gets_alone(sampling: Sampling) -> None:
    shared, solo = _runner(), _runner()
    speech = [_frames(seed) for seed in range(SLOTS)]
    expected = [_alone(solo, slot, speech[slot], sampling) for slot in range(SLOTS)]
    chance, done = random.Random(3), [0] * SLOTS
    for slot in range(SLOTS):
        shared.open(Slot(slot), SessionSpec(sampling=sampling))
    while min(done) < FRAMES:
        ready = [slot for slot in range(SLOTS) if done[slot] < FRAMES and chance.random() < 0.7]
        chance.shuffle(ready)
        if not ready:
            continue
        result = shared.run(_batch(ready, [speech[s][done[s]] for s in ready], [done[s] for s in ready]))
        for row, slot in enumerate(ready):
            theirs = expected[slot][done[slot]]
            assert result.text_token[row] == theirs.text_token[0]
            assert (result.codes[row] == theirs.codes[0]).all()
            np.testing.assert_allclose(result.pcm[row], theirs.pcm[0], atol=2e-5)
            done[slot] += 1


@pytest.mark.parametrize("wiped", [False, True])
def test_the_next_holder_of_a_slot_starts_afresh(wiped: bool) -> None:
    runner = _runner()
    expected = _alone(_runner(), 1, _frames(7), HOT)
    first = _frames(5)
    if wiped:
        first[FRAMES - 2, 100] = np.nan  # late: it must not leave the rings by itself
    finite = [bool(result.finite[0]) for result in _alone(runner, 1, first, GREEDY)]
    assert finite == [True] * (FRAMES - 2) + [not wiped] * 2
    if wiped:
        runner.wipe(Slot(1))
    for theirs, ours in zip(expected, _alone(runner, 1, _frames(7), HOT), strict=True):
        assert (ours.codes == theirs.codes).all()
        assert (ours.pcm == theirs.pcm).all()
        assert ours.finite.all()


def test_a_full_batch_calls_every_stage_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: collections.Counter[str] = collections.Counter()
    duplex = small_duplex()
    for name in ("encode", "think", "speak", "decode", "finite"):
        inner = getattr(duplex, name)

        def counted(*args: Any, _name: str = name, _inner: Any = inner, **kwargs: Any) -> Any:
            calls[_name] += 1
            return _inner(*args, **kwargs)

        monkeypatch.setattr(duplex, name, counted)
    runner = ModelRunner(duplex, SLOTS)
    for slot in range(SLOTS):
        runner.open(Slot(slot), SessionSpec(sampling=GREEDY))
    runner.run(_batch(list(range(SLOTS)), [_frames(1)[0]] * SLOTS, [0] * SLOTS))
    assert set(calls.values()) == {1}
    assert len(calls) == 5


def test_warming_up_advances_nobody() -> None:
    runner = _runner()
    expected = _alone(_runner(), 0, _frames(2), HOT)
    runner.open(Slot(0), SessionSpec(sampling=HOT))
    assert runner.warm_up() > 0
    for step, frame in enumerate(_frames(2)):
        result = runner.run(_batch([0], [frame], [step]))
        assert (result.codes == expected[step].codes).all()
        assert (result.pcm == expected[step].pcm).all()
