"""Laws of guidance: unguided rows keep every bit, twins rest with their rows, what breaks a twin is told of its row."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serve_app.errors import ParameterRefused
from serve_app.model.guidance import Guidance
from serve_app.model.lm import LM, Given, LMConfig, LMState
from serve_app.model.state import Rows, leaves
from tests.model.family import FAMILY, HIBIKI, Session, open_session
from tests.model.language import CONTEXT, CPU, RecordedLogits, lm_pair, small_lm
from tests.oracle import reference_generator

SLOTS = 4
GOOD, BAD = {"description": "very_good"}, {"description": "very_bad"}


def _rows(runs: tuple[bool, ...] = (True, True)) -> Rows:
    """Slot 0 unguided, slot 1 guided by slot 2."""
    rows = Rows.of(torch.tensor([0, 1]), torch.tensor(runs), SLOTS)
    return rows.guided(torch.tensor([1]), torch.tensor([2]), SLOTS)


def _opened(lm: LM, coef: float = 2.0) -> LMState:
    state = lm.init_state(SLOTS, CPU, torch.float32)
    nobody, choices = torch.empty(0, 8), GOOD if lm.condition_provider is not None else {}
    open_session(lm, state, 0, None, Session(user=nobody, choices={}))
    open_session(lm, state, 1, 2, Session(user=nobody, choices={}, coef=coef, masked_until=9))
    if "description" in {conditioner.name for conditioner in lm.config.conditioners}:
        lm.set_conditions(state, 1, choices, twin=2)
    return state


def _user(lm: LM, seed: int) -> Tensor:
    return torch.randint(0, lm.config.card, (2, lm.config.user_q), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", [False, True])
def test_a_row_without_a_twin_keeps_every_bit_of_its_logits(dtype: torch.dtype, text: bool) -> None:
    guidance = Guidance.empty(SLOTS, CPU)
    guidance.set(0, 7.3)  # a strength alone does nothing
    guidance.set(1, 2.0, no_text=True)
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)).to(dtype)
    steered = guidance.steer(logits, _rows(), text=text)
    assert torch.equal(steered[0], logits[0])
    assert torch.equal(steered[1], logits[1]) is text
    assert steered.dtype == dtype


@pytest.mark.parametrize("coef", [float("nan"), float("inf")])
def test_a_strength_that_is_not_finite_is_refused(coef: float) -> None:
    with pytest.raises(ParameterRefused, match="cfg_coef"):
        Guidance.empty(SLOTS, CPU).set(0, coef)
    with pytest.raises(ParameterRefused, match="cfg_is_masked_until"):
        Guidance.empty(SLOTS, CPU).set(0, 2.0, masked_until=-1)


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
@torch.no_grad()
def test_a_guided_row_that_does_not_run_keeps_every_bit_of_its_twin_too(config: dict[str, Any]) -> None:
    lm = small_lm(config)
    state = _opened(lm)
    for seed in range(3):
        lm.step(_user(lm, seed), state, _rows())
    before = [leaf.clone() for leaf in leaves(state)]
    lm.step(_user(lm, 9), state, _rows((True, False)))
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[1:4], new[1:4])
    lm.step(_user(lm, 9), state, _rows((False, True)))
    assert state.transformer.offset.tolist()[:4] == [4, 4, 4, 0]


@torch.no_grad()
def test_a_padding_twin_steers_nobody() -> None:
    lm = small_lm(HIBIKI)
    plain, padded = _opened(lm), _opened(lm)
    rows = Rows.of(torch.tensor([0, 3]), torch.tensor([True, True]), SLOTS)
    for seed in range(4):
        said = lm.step(_user(lm, seed), plain, rows)
        again = lm.step(_user(lm, seed), padded, rows.guided(torch.tensor([0, 0]), torch.tensor([SLOTS, SLOTS]), SLOTS))
        assert torch.equal(said.codes, again.codes)
    for one, other in zip(leaves(plain), leaves(padded), strict=True):
        torch.testing.assert_close(one[:SLOTS], other[:SLOTS], atol=1e-4, rtol=0)


@pytest.mark.parametrize("config", FAMILY.values(), ids=FAMILY)
def test_a_guided_step_asks_the_device_for_no_value(config: dict[str, Any]) -> None:
    with FakeTensorMode(), torch.no_grad():
        lm = LM(LMConfig.from_kyutai(config)).eval()
        state = lm.init_state(SLOTS, CPU, torch.float32)
        user = torch.zeros(2, lm.config.user_q, dtype=torch.int64)
        nothing = Given.nothing(2, lm.config.dep_q)
        rows = _rows()
        thought = lm.think(user, state, rows, nothing.text)
        spoken = lm.speak(thought, state, rows, nothing.audio)
        said = lm.advance(thought.text, spoken.codes, state, rows)
        assert lm.heads(thought, rows).shape == (2, lm.config.extra_heads_num_heads, 6 * bool(lm.extra_heads))
        assert said.codes.shape == (2, config["dep_q"])


@torch.no_grad()
def test_half_precision_guidance_equals_the_reference_given_its_tokens() -> None:
    reference, lm = lm_pair(HIBIKI)
    reference.to(torch.bfloat16)
    lm.to(torch.bfloat16)
    reference.condition_provider.float()
    assert lm.condition_provider is not None
    lm.condition_provider.float()
    reference.condition_provider.load_state_dict(lm.condition_provider.state_dict())
    attributes = importlib.import_module("moshi.conditioners").ConditionAttributes
    chosen = [attributes(text={"description": text}) for text in ["very_good"] * 2 + ["very_bad"] * 2]
    recorded, told = RecordedLogits(reference), list[Tensor]()
    generator = reference_generator(
        reference,
        support_out_of_sync=True,
        cfg_coef=3.0,
        condition_tensors=reference.condition_provider.prepare_and_provide(chosen),
        on_text_logits_hook=recorded.on_text,
        on_text_hook=told.append,
        on_audio_hook=told.append,
    )
    state = lm.init_state(4, CPU, torch.bfloat16)
    for slot, twin in ((0, 2), (1, 3)):
        open_session(lm, state, slot, twin, Session(user=torch.empty(0, 8), choices=GOOD, coef=3.0, against=BAD))
    rows = Rows.of(torch.tensor([0, 1]), torch.tensor([True, True]), 4)
    rows = rows.guided(torch.tensor([0, 1]), torch.tensor([2, 3]), 4)
    with generator.streaming(2):
        for seed in range(3 * CONTEXT):
            user = _user(lm, seed)
            generator.step(user[..., None])
            expected_text, raw = recorded.take()
            own, null = raw.chunk(2)
            text, audio = told[-2:]
            thought = lm.think(user, state, rows, text)
            spoken = lm.speak(thought, state, rows, audio)
            lm.advance(thought.text, spoken.codes, state, rows)
            # One bf16 step at the size of these logits, as guidance enlarges it.
            torch.testing.assert_close(thought.text_logits, expected_text.float(), atol=5 * 2**-3, rtol=0)
            torch.testing.assert_close(spoken.logits, (null + (own - null) * 3.0).float(), atol=5 * 2**-3, rtol=0)
