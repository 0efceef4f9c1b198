"""Against a plain walk through the history, token by token, as the Rust backend does it."""

import math
from collections.abc import Sequence

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from serve_app.model.lm import Given
from serve_app.model.sampling import draw, exponential_noise
from serve_app.model.state import Rows, all_rows, reset
from serve_app.model.text_bias import HISTORY_TOKENS, Silence, TextBias
from serve_app.spec import Sampling, SessionSpec
from tests.model.language import CPU, small_lm

CARD = 12
SILENCE = Silence(padding=3, others=(0, CARD))


def bias_of(*specs: SessionSpec) -> TextBias:
    bias = TextBias.empty(len(specs), CPU)
    for slot, spec in enumerate(specs):
        bias.set(slot, spec)
    return bias


def remember(bias: TextBias, *tokens: int) -> None:
    bias.remember(torch.tensor(tokens), all_rows(len(tokens)), SILENCE, CARD)


def penalised(logits: list[float], history: Sequence[int], penalty: float, context: int) -> list[float]:
    """The rule, written as a loop."""
    result, seen, counted = list(logits), set(), 0
    for token in reversed(history):
        if token == SILENCE.padding or token in SILENCE.others:
            continue
        if counted >= context:
            break
        counted += 1
        if token not in seen and 0 <= token < len(result):
            seen.add(token)
            result[token] = result[token] / penalty if result[token] >= 0 else result[token] * penalty
    return result


@settings(deadline=None)
@given(
    history=st.lists(st.integers(0, CARD), max_size=40),
    logits=st.lists(st.floats(-20, 20, width=32), min_size=CARD, max_size=CARD),
    penalty=st.floats(0.5, 3, width=32),
    context=st.integers(0, 20),
)
def test_the_penalty_is_the_rust_backends(
    history: list[int], logits: list[float], penalty: float, context: int
) -> None:
    bias = bias_of(SessionSpec(repetition_penalty=penalty, repetition_penalty_context=context))
    for token in history:
        remember(bias, token)
    got = bias.penalise(torch.tensor([logits]), all_rows(1), SILENCE)
    want = penalised(logits, history, penalty, context)
    torch.testing.assert_close(got[0], torch.tensor(want), rtol=1e-6, atol=0)


def test_the_penalty_forgets_what_is_older_than_its_history() -> None:
    bias = bias_of(SessionSpec(repetition_penalty=2.0, repetition_penalty_context=HISTORY_TOKENS))
    for token in [5] + [7] * HISTORY_TOKENS:
        remember(bias, token)
    got = bias.penalise(torch.ones(1, CARD), all_rows(1), SILENCE)[0]
    assert (float(got[5]), float(got[7])) == (1.0, 0.5)


def test_a_neutral_penalty_changes_no_bit() -> None:
    bias = bias_of(SessionSpec())
    for token in range(CARD):
        remember(bias, token)
    logits = torch.randn(1, CARD)
    logits[0, 5] = -0.0
    got = bias.penalise(logits, all_rows(1), SILENCE)
    assert torch.equal(got.view(torch.int32), logits.view(torch.int32))


def test_each_row_is_bent_by_its_own_session() -> None:
    bias = bias_of(SessionSpec(repetition_penalty=2.0), SessionSpec(repetition_penalty=4.0), SessionSpec())
    remember(bias, 5, 6, 7)
    got = bias.penalise(torch.ones(3, CARD), all_rows(3), SILENCE)
    assert [float(got[row, 5 + row]) for row in range(3)] == [0.5, 0.25, 1.0]
    assert int((got != 1).sum()) == 2


def test_a_row_that_does_not_execute_remembers_nothing() -> None:
    bias = bias_of(SessionSpec(repetition_penalty=2.0), SessionSpec(repetition_penalty=2.0))
    rows = Rows.of(torch.arange(2), torch.tensor([True, False]), 2)
    bias.remember(torch.tensor([5, 5]), rows, SILENCE, CARD)
    assert bias.count[:2].tolist() == [1, 0]


def test_the_next_holder_of_a_slot_inherits_no_words() -> None:
    bias = bias_of(SessionSpec(repetition_penalty=2.0, pad_mult=1.5))
    remember(bias, 5)
    reset(bias, torch.tensor([0]))
    fresh = TextBias.empty(1, CPU)
    assert float(bias.penalty[0]) == float(fresh.penalty[0]) == 1.0
    assert (float(bias.pad_mult[0]), int(bias.count[0]), int(bias.said[0].sum())) == (0.0, 0, 0)


def drawn(logits: Tensor, temperature: float, top_k: int, pad_mult: float | None) -> list[int]:
    rows = logits.shape[0]
    keys = torch.arange(rows) * 7919
    raised = None if pad_mult is None else (3, torch.full((rows,), pad_mult))
    one = torch.ones(rows)
    noise = exponential_noise(keys, logits.shape[-1])
    whole_k = (one * top_k).long()
    return draw(logits, one * temperature, whole_k, keys, noise, whole=False, raised=raised).tolist()


def test_pad_mult_multiplies_the_probability_of_padding() -> None:
    logits = torch.zeros(4_000, CARD)
    share = drawn(logits, 1.0, 0, math.log(4.0)).count(3) / 4_000
    assert abs(share - 4 / (4 + CARD - 1)) < 0.03


def test_pad_mult_acts_before_the_top_k_is_cut() -> None:
    logits = torch.zeros(50, CARD)
    logits[:, 3] = -2.0
    assert set(drawn(logits, 1.0, 1, 1.0)) != {3}
    assert set(drawn(logits, 1.0, 1, 3.0)) == {3}


def test_pad_mult_acts_after_the_temperature() -> None:
    logits = torch.zeros(1, CARD)
    logits[:, 3] = -2.0  # -8 at a temperature of a quarter
    assert drawn(logits, 0.25, 1, 7.0) != [3]
    assert drawn(logits, 0.25, 1, 9.0) == [3]


def test_a_great_pad_mult_stays_finite() -> None:
    assert drawn(torch.randn(1, CARD), 0.7, 0, 100.0) == [3]
    assert drawn(torch.randn(1, CARD), 0.7, 0, -100.0) != [3]


def test_greedy_rows_ignore_pad_mult() -> None:
    logits = torch.randn(20, CARD)
    assert drawn(logits, 0.0, 0, 50.0) == logits.argmax(dim=-1).tolist()


def test_a_neutral_pad_mult_draws_the_same_tokens() -> None:
    logits = torch.randn(500, CARD)
    assert drawn(logits, 0.8, 5, 0.0) == drawn(logits, 0.8, 5, None)


@torch.no_grad()
def test_a_model_follows_penalty_and_pad_mult_row_by_row() -> None:
    lm = small_lm()
    specs = (SessionSpec(), SessionSpec(repetition_penalty=3.0), SessionSpec(pad_mult=60.0), SessionSpec())
    state = lm.init_state(len(specs), CPU, torch.float32)
    for slot, spec in enumerate(specs):
        state.sampling.set(slot, Sampling(text_seed=1, audio_seed=1))
        state.bias.set(slot, spec)
    heard = torch.randint(0, 32, (1, 8), generator=torch.Generator().manual_seed(0))
    told: list[list[int]] = []
    for _ in range(30):
        given = Given.nothing(len(specs), lm.config.dep_q)
        thought = lm.think(heard.repeat(len(specs), 1), state, all_rows(len(specs)), given.text)
        spoken = lm.speak(thought, state, all_rows(len(specs)), given.audio)
        lm.advance(thought.text, spoken.codes, state, all_rows(len(specs)))
        told.append(thought.text.tolist())
    plain, penalty, padding, twin = zip(*told, strict=True)
    assert plain == twin
    assert set(padding) == {3}
    assert penalty != plain
    assert len(set(penalty)) > len(set(plain))


@torch.no_grad()
def test_given_words_count_as_said() -> None:
    lm = small_lm()
    state = lm.init_state(1, CPU, torch.float32)
    lm.think(torch.zeros(1, 8, dtype=torch.int64), state, all_rows(1), torch.tensor([9]))
    assert (int(state.bias.count[0]), int(state.bias.said[0, 0])) == (1, 9)
