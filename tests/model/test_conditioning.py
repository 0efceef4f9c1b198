"""Conditions: against the reference's, what is refused, and that a slot's next holder knows nothing of them."""

from typing import Any

import pytest
import torch
from torch import Tensor

from serve_app.errors import ParameterRefused
from serve_app.model.condition_config import TENSOR_STEPS
from serve_app.model.conditioning import Choices, Conditioning, Vectors, dropped
from serve_app.model.lm import LM, Given, LMConfig, LMState
from serve_app.model.state import Rows, leaves, reset
from tests.model.family import FAMILY, STT, TTS, TWO_B, ReferenceRun, Session, open_session
from tests.model.language import CONTEXT, CPU, lm_pair, small_lm
from tests.oracle import reference_lm

SLOTS = 3
VOICE = Vectors(torch.randn(9, 12, generator=torch.Generator().manual_seed(1)), torch.arange(9) < 7)
SPOKEN: Choices = {"speaker_wavs": VOICE, "accent": "fr", "control": "ok", "pace": "fast"}


def _conditioning(lm: LM) -> Conditioning:
    assert lm.condition_provider is not None
    return lm.condition_provider


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
def test_every_parameter_of_the_family_has_the_references_name_and_shape(config: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = LM(LMConfig.from_kyutai(config))
    expected = {name: value.shape for name, value in reference_lm(config, device="meta").state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize(
    ("config", "choices"),
    [
        (TWO_B, {"description": "very_good"}),
        (TWO_B, {}),
        (TTS, SPOKEN),
        (TTS, {"accent": "a word nobody listed"}),
        (TTS, dropped(SPOKEN)),
        (TTS, {}),
    ],
)
@torch.no_grad()
def test_what_is_fused_is_what_the_reference_fuses(config: dict[str, Any], choices: Choices) -> None:
    reference, lm = lm_pair(config)
    theirs = ReferenceRun(reference, config)._conditions(Session(user=torch.empty(0, 1), choices=choices))
    fused = _conditioning(lm).fuse(choices)
    for ours, expected in (
        (fused.sum, reference.fuser.get_sum(theirs)),
        (fused.cross, reference.fuser.get_cross(theirs)),
    ):
        assert (ours is None) == (expected is None)
        if ours is not None:
            torch.testing.assert_close(ours, expected[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_conditions_are_computed_in_single_precision_whatever_the_models_dtype() -> None:
    lm = small_lm(TTS)
    whole = _conditioning(lm).fuse(SPOKEN)
    kept = {name: value.clone() for name, value in _conditioning(lm).state_dict().items()}
    lm.to(torch.bfloat16)
    _conditioning(lm).float().load_state_dict(kept)
    again = _conditioning(lm).fuse(SPOKEN)
    for one, other in ((whole.sum, again.sum), (whole.cross, again.cross)):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
    state = lm.init_state(SLOTS, CPU, torch.bfloat16)
    lm.set_conditions(state, 0, SPOKEN)
    said = lm.step(torch.empty(1, 0, dtype=torch.int64), state, _rows(0))
    assert bool(torch.isfinite(lm.think(torch.empty(1, 0, dtype=torch.int64), state, _rows(0), said.text).hidden).all())


def _rows(*slots: int) -> Rows:
    return Rows.of(torch.tensor(slots), torch.ones(len(slots), dtype=torch.bool), SLOTS)


def _trace(lm: LM, state: LMState, rows: Rows, steps: int) -> list[Tensor]:
    """Everything that a step computes, for every row."""
    generator, out = torch.Generator().manual_seed(4), []
    for _ in range(steps):
        user = torch.randint(0, lm.config.card, (1, lm.config.user_q), generator=generator).expand(len(rows.slots), -1)
        nothing = Given.nothing(len(rows.slots), lm.config.dep_q)
        thought = lm.think(user, state, rows, nothing.text)
        spoken = lm.speak(thought, state, rows, nothing.audio)
        lm.advance(thought.text, spoken.codes, state, rows)
        out.append(torch.cat([thought.hidden.flatten(), thought.text_logits.flatten(), spoken.logits.flatten()]))
    return out


@pytest.mark.parametrize("config", [TWO_B, TTS, STT], ids=["two-b", "tts", "stt"])
@pytest.mark.parametrize("wipe", [False, True], ids=["reset", "wiped"])
@torch.no_grad()
def test_nothing_of_a_session_reaches_the_next_holder_of_its_slots(config: dict[str, Any], wipe: bool) -> None:
    lm = small_lm(config)
    used, fresh = (lm.init_state(SLOTS, CPU, torch.float32) for _ in range(2))
    choices: Choices = {"tts": SPOKEN, "two-b": {"description": "bad"}}.get(
        "tts" if config is TTS else "two-b" if config is TWO_B else "", {}
    )
    nobody = torch.empty(0, lm.config.user_q)
    before = Session(user=nobody, choices=choices, coef=3.0, no_text=True, masked_until=5)
    open_session(lm, used, 0, 1, before)
    _trace(lm, used, _rows(0).guided(torch.tensor([0]), torch.tensor([1]), SLOTS), 2 * CONTEXT)
    reset(used, torch.arange(SLOTS), wipe=wipe)
    after = Session(user=nobody)
    for state in (used, fresh):
        open_session(lm, state, 0, None, after)
        open_session(lm, state, 1, 2, Session(user=nobody, coef=2.0, masked_until=CONTEXT))
    rows = _rows(0, 1).guided(torch.tensor([1]), torch.tensor([2]), SLOTS)
    traces = [_trace(lm, state, rows, 2 * CONTEXT) for state in (used, fresh)]
    assert all(torch.equal(*both) for both in zip(*traces, strict=True))


@torch.no_grad()
def test_a_slot_that_was_told_no_conditions_gets_nothing_and_stays_finite() -> None:
    lm = small_lm(TTS)
    state = lm.init_state(SLOTS, CPU, torch.float32)
    lm.set_conditions(state, 0, SPOKEN)
    reset(state, torch.tensor([0]))
    used, fresh = _trace(lm, state, _rows(0), 4), _trace(lm, lm.init_state(SLOTS, CPU, torch.float32), _rows(0), 4)
    assert all(torch.equal(*both) for both in zip(used, fresh, strict=True))
    assert bool(torch.isfinite(torch.stack(used)).all())


@torch.no_grad()
def test_conditions_of_one_slot_leave_every_bit_of_the_others() -> None:
    lm = small_lm(TTS)
    state = lm.init_state(SLOTS, CPU, torch.float32)
    lm.set_conditions(state, 0, SPOKEN)
    before = [leaf.clone() for leaf in leaves(state)]
    lm.set_conditions(state, 1, {"control": "also_ok"}, twin=2)
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[0, 3]], new[[0, 3]])


@pytest.mark.parametrize(
    ("choices", "name"),
    [
        ({"colour": "red"}, "colour"),
        ({"control": "OK"}, "must be one of ok, also_ok"),
        ({"pace": "../fast"}, "must be one of slow, fast"),
        ({"control": VOICE}, "chosen by a text"),
        ({"speaker_wavs": "alice"}, "not by a text"),
        ({"speaker_wavs": Vectors.of(torch.zeros(3, 11))}, "12 values"),
        ({"speaker_wavs": Vectors.of(torch.zeros(0, 12))}, "12 values"),
        ({"speaker_wavs": Vectors(torch.zeros(3, 12), torch.ones(2, dtype=torch.bool))}, "12 values"),
        ({"speaker_wavs": Vectors.of(torch.full((3, 12), float("nan")))}, "finite"),
        ({"speaker_wavs": Vectors.of(torch.zeros(TENSOR_STEPS + 1, 12))}, "more than"),
    ],
)
@torch.no_grad()
def test_what_does_not_fit_is_refused_by_name_and_writes_nothing(choices: Choices, name: str) -> None:
    lm = small_lm(TTS)
    state = lm.init_state(SLOTS, CPU, torch.float32)
    lm.set_conditions(state, 0, SPOKEN)
    before = [leaf.clone() for leaf in leaves(state)]
    with pytest.raises(ParameterRefused, match=name):
        lm.set_conditions(state, 0, {}, twin=1, against=choices)
    assert all(torch.equal(*both) for both in zip(before, leaves(state), strict=True))


def test_a_model_without_conditions_refuses_every_name() -> None:
    lm = small_lm(STT)
    with pytest.raises(ParameterRefused, match="no conditions"):
        lm.set_conditions(lm.init_state(SLOTS, CPU, torch.float32), 0, {"description": "good"})


def test_the_possible_values_are_told_by_name() -> None:
    values = _conditioning(small_lm(TTS)).possible_values()
    assert values == {"control": ("ok", "also_ok"), "pace": ("slow", "fast"), "accent": None}
