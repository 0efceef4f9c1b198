"""The runner over models with conditions, guidance, prompts and extra heads: small random ones."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
import torch

from serve_app.engine.batch import TickBatch, TickResult
from serve_app.engine.engine import Engine
from serve_app.engine.events import Stepped
from serve_app.engine.model_runner import Habits, ModelRunner
from serve_app.engine.prompts import PromptBook, PromptStyle, write_prompt_book
from serve_app.errors import CheckpointError, ParameterRefused
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, Given, LMConfig
from serve_app.model.mimi import Mimi, MimiConfig, codec_transformer
from serve_app.model.seanet import SeanetConfig
from serve_app.model.state import all_rows, leaves
from serve_app.spec import GREEDY, Prompt, SessionSpec
from serve_app.units import FRAME_SAMPLES, Slot
from tests.engine.fakes import FakeClock, Listener

torch.set_num_threads(1)

SLOTS: Final = 4
FRAMES: Final = 6
CARD: Final = 40
CONTEXT: Final = 48
TEXT_CARD: Final = 60
MOOD: Final[dict[str, Any]] = {"type": "lut", "lut": {"n_bins": 5, "dim": 4, "tokenizer": "noop"}}
MOOD["lut"]["possible_values"] = ["bad", "plain", "good"]
GOOD: Final = (("mood", "good"),)
BAD: Final = (("mood", "bad"),)


def duplex(**changes: Any) -> Duplex:
    """A codec and a model of random weights with a condition; ``changes`` go into its configuration."""
    codec = MimiConfig(
        seanet=SeanetConfig(dimension=16, n_filters=2),
        transformer=codec_transformer(16, 2, 1, 32, context=12),
        card=CARD,
        codebook_dim=8,
        total_codebooks=4,
        num_codebooks=4,
    )
    config: dict[str, Any] = {"dim": 32, "num_heads": 2, "num_layers": 2, "context": CONTEXT, "n_q": 6, "dep_q": 3}
    config |= {"card": CARD, "text_card": TEXT_CARD, "depformer_dim": 16, "depformer_num_heads": 2}
    config |= {"delays": [0, 0, 1, 1, 0, 1, 1], "norm": "rms_norm_f32", "positional_embedding": "rope"}
    config |= {"gating": "silu", "depformer_weights_per_step": True}
    config |= {"conditioners": {"mood": MOOD}, "fuser": {"sum": ["mood"]}}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Duplex(Mimi(codec), LM(LMConfig.from_kyutai(config | changes)))


def letters(text: str) -> list[int]:
    """A token for each letter."""
    return [4 + ord(letter) % 50 for letter in text]


def voice(seed: int, frames: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.2, frames * FRAME_SAMPLES - 7).astype(np.float32)


def book(model: Duplex) -> PromptBook:
    return write_prompt_book(model, letters, {"anna": voice(1, 5), "bert": voice(2, 4)}, PromptStyle(pause_steps=2))


def runner(prefix_bytes: int = 1 << 24, *, habits: Habits | None = None, **changes: Any) -> ModelRunner:
    model = duplex(**changes)
    return ModelRunner(model, SLOTS, habits=habits, prompts=book(model), prefix_bytes=prefix_bytes)


def opened(runner: ModelRunner, slot: int, spec: SessionSpec, twin: int | None = None, steps: int = 7) -> None:
    """Open a session and feed all of its prompt."""
    left = runner.open(Slot(slot), spec, Slot(twin) if twin is not None else None)
    while left:
        primed = runner.prime(Slot(slot), steps)
        assert primed.finite
        assert primed.left_steps == left - primed.steps
        left = primed.left_steps


def speech(seed: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.2, (FRAMES, FRAME_SAMPLES)).astype(np.float32)


def converse(runner: ModelRunner, voices: Mapping[int, npt.NDArray[np.float32]]) -> dict[int, list[tuple[Any, ...]]]:
    """Step these slots together; what each got."""
    heard: dict[int, list[tuple[Any, ...]]] = {slot: [] for slot in voices}
    for step in range(FRAMES):
        frames = np.stack([voices[slot][step] for slot in voices])
        batch = TickBatch(np.array(list(voices), np.int64), np.full(len(voices), step, np.int64), frames)
        result: TickResult = runner.run(batch)
        assert result.finite.all()
        for row, slot in enumerate(voices):
            heard[slot].append((int(result.text_token[row]), result.codes[row].tolist()))
    return heard


def alone(spec: SessionSpec, seed: int, **options: Any) -> list[tuple[Any, ...]]:
    solo = runner(**options)
    opened(solo, 0, spec, 3 if spec.guided else None)
    return converse(solo, {0: speech(seed)})[0]


SPECS: Final = (
    SessionSpec(sampling=GREEDY, conditions=GOOD),
    SessionSpec(sampling=GREEDY, conditions=GOOD, guidance=3.0),
    SessionSpec(sampling=GREEDY, conditions=GOOD, guidance=0.5, prompt=Prompt(text="be kind", voice="anna")),
    SessionSpec(sampling=GREEDY, conditions=BAD, prompt=Prompt(text="be kind", voice="anna")),
)


def test_it_offers_what_the_model_has() -> None:
    offer = runner(extra_heads_num_heads=2).offer
    assert dict(offer.conditions) == {"mood": ("bad", "plain", "good")}
    assert (offer.guided, offer.voices, offer.prompt_steps, offer.extra_heads) == (True, ("anna", "bert"), CONTEXT, 2)
    plain = ModelRunner(duplex(conditioners=None, fuser=None), 1).offer
    assert (plain.conditions, plain.guided, plain.prompt_steps) == ((), False, 0)


def test_everything_that_is_chosen_changes_what_is_said() -> None:
    said = [alone(spec, 1) for spec in SPECS]
    assert len({str(one) for one in said}) == len(SPECS)


def test_guided_prompted_and_plain_sessions_get_together_what_they_get_alone() -> None:
    model = duplex()
    shared = ModelRunner(model, 6, prompts=book(model), prefix_bytes=1 << 24)
    twins = (None, 4, 5, None)
    for slot, (spec, twin) in enumerate(zip(SPECS, twins, strict=True)):
        opened(shared, slot, spec, twin)
    together = converse(shared, {slot: speech(slot) for slot in (2, 0, 3, 1)})
    for slot, spec in enumerate(SPECS):
        assert together[slot] == alone(spec, slot)


@pytest.mark.parametrize("first", SPECS)
@pytest.mark.parametrize("then", [SPECS[0], SPECS[1]])
def test_nothing_leaks_to_the_next_holder_of_the_slots(first: SessionSpec, then: SessionSpec) -> None:
    used = runner()
    opened(used, 0, first, 3 if first.guided else None)
    converse(used, {0: speech(8)})
    opened(used, 0, then, 3 if then.guided else None)
    assert converse(used, {0: speech(2)})[0] == alone(then, 2)


def test_a_twins_slot_becomes_a_session_of_its_own() -> None:
    used = runner()
    opened(used, 0, SPECS[1], 3)
    converse(used, {0: speech(8)})
    opened(used, 3, SPECS[0])
    assert converse(used, {3: speech(2)})[3] == alone(SPECS[0], 2)


@pytest.mark.parametrize("spec", SPECS[2:])
@pytest.mark.parametrize("steps", [1, 3, 1_000])
def test_a_prompt_is_worth_the_same_however_many_steps_are_fed_at_once(spec: SessionSpec, steps: int) -> None:
    bit_by_bit = runner()
    opened(bit_by_bit, 0, spec, 3 if spec.guided else None, steps)
    assert converse(bit_by_bit, {0: speech(4)})[0] == alone(spec, 4)


def test_a_prompt_is_worth_as_much_as_single_steps_with_its_tokens_given() -> None:
    model = duplex(conditioners=None, fuser=None)
    prompts = book(model)
    spec = SessionSpec(sampling=GREEDY, prompt=Prompt(text="be kind", voice="anna"))
    assert spec.prompt is not None
    ours = ModelRunner(model, 1, prompts=prompts)
    opened(ours, 0, spec)
    state, rows = model.init_state(1, torch.device("cpu"), torch.float32), all_rows(1)
    tokens = model.lm.delays.lay(torch.from_numpy(prompts.frames(spec.prompt))[None])
    with torch.inference_mode():
        for step in tokens.unbind(2):
            given = Given(step[:, 0], step[:, 1 : 1 + model.lm.config.dep_q])
            model.lm.step(step[:, 1 + model.lm.config.dep_q :], state.lm, rows, given)
    for ring, theirs in zip(leaves(ours._state.lm.transformer), leaves(state.lm.transformer), strict=True):
        torch.testing.assert_close(ring[0], theirs[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(ours._state.lm.cache.tokens[0], state.lm.cache.tokens[0])


def test_the_voice_comes_before_the_text_and_a_pause_after_each() -> None:
    model = duplex()
    frames = book(model).frames(Prompt(text="abc", voice="anna"))
    pad = model.lm.config.existing_text_padding_id
    assert frames.shape == (1 + 3 + 3, 5 + 2 + 3 + 2)
    assert frames[0].tolist() == [pad] * 7 + letters("abc") + [pad] * 2
    own = frames[1:4].T
    assert (own[5:] == own[5]).all()
    assert not (own[:5] == own[5]).all()
    assert (frames[4:] == frames[4:, :1]).all()


def test_text_is_wrapped_once() -> None:
    style = PromptStyle(wrap="<system> {} <system>")
    assert style.wrapped("Be kind.") == "<system> Be kind. <system>"
    assert style.wrapped("<system> Be kind. <system>") == "<system> Be kind. <system>"
    assert PromptStyle().wrapped("Be kind.") == "Be kind."


def test_codes_of_a_style_that_do_not_fit_are_refused() -> None:
    with pytest.raises(CheckpointError, match="own_silence"):
        write_prompt_book(duplex(), letters, {}, PromptStyle(own_silence=(1, 2, CARD)))


@pytest.mark.parametrize("spec", SPECS[2:])
def test_the_second_session_with_a_prompt_starts_at_once_and_says_the_same(spec: SessionSpec) -> None:
    shared = runner()
    opened(shared, 0, spec, 3 if spec.guided else None)
    assert shared.open(Slot(1), spec, Slot(2) if spec.guided else None) == 0
    assert converse(shared, {1: speech(6)})[1] == alone(spec, 6)
    counters = shared.counters()
    assert (counters["prefix_hits"], counters["prefix_misses"], counters["prefix_entries"]) == (1, 1, 1)


def test_sessions_that_open_together_feed_their_prompt_once() -> None:
    shared, spec = runner(), SPECS[3]
    assert shared.open(Slot(0), spec) == shared.open(Slot(1), spec) > 0
    while shared.prime(Slot(0), 100).left_steps:
        pass
    primed = shared.prime(Slot(1), 100)
    assert (primed.steps, primed.left_steps) == (0, 0)
    assert converse(shared, {1: speech(6)})[1] == alone(spec, 6)
    assert (shared.counters()["prefix_hits"], shared.counters()["prefix_misses"]) == (1, 1)


def test_what_conditions_a_prompt_was_fed_under_is_not_mixed_up() -> None:
    shared = runner()
    opened(shared, 0, SPECS[3])
    other = SessionSpec(sampling=GREEDY, conditions=GOOD, prompt=SPECS[3].prompt)
    assert shared.open(Slot(1), other) > 0


def test_kept_states_stay_within_their_bound() -> None:
    model = duplex()
    size = runner()
    opened(size, 0, SPECS[3])
    one = size.counters()["prefix_bytes"]
    tight = ModelRunner(model, SLOTS, prompts=book(model), prefix_bytes=2 * one)
    for text in ("be kind", "be bold", "be wise"):
        opened(tight, 0, SessionSpec(prompt=Prompt(text=text, voice="anna")))
        assert tight.counters()["prefix_bytes"] <= 2 * one
    assert (tight.counters()["prefix_entries"], tight.counters()["prefix_evictions"]) == (2, 1)
    assert tight.open(Slot(1), SessionSpec(prompt=Prompt(text="be wise", voice="anna"))) == 0
    assert tight.open(Slot(2), SessionSpec(prompt=Prompt(text="be kind", voice="anna"))) > 0


def test_without_room_every_prompt_is_fed() -> None:
    shared = runner(prefix_bytes=0)
    opened(shared, 0, SPECS[3])
    assert shared.open(Slot(1), SPECS[3]) > 0


def test_prompt_longer_than_the_context_is_refused() -> None:
    model = runner()
    model.check(SessionSpec(prompt=Prompt(text="a" * (CONTEXT - 2))))
    with pytest.raises(ParameterRefused, match=f"longer than the context of {CONTEXT}"):
        model.check(SessionSpec(prompt=Prompt(text="a" * (CONTEXT - 1))))


def test_a_prompt_as_long_as_the_context_converses() -> None:
    model = runner()
    opened(model, 0, SessionSpec(sampling=GREEDY, prompt=Prompt(text="a" * (CONTEXT - 2))))
    converse(model, {0: speech(1)})


def test_defaults_of_the_checkpoint_stand_where_a_session_says_nothing() -> None:
    spec = SessionSpec(sampling=GREEDY, guidance=2.0)
    told = SessionSpec(sampling=GREEDY, guidance=2.0, conditions=GOOD)
    habits = Habits(conditions=GOOD, against=BAD)
    assert alone(spec, 3, habits=habits) == alone(told, 3, habits=habits)
    assert alone(spec, 3, habits=habits) != alone(spec, 3)


def test_extra_heads_reach_the_session_that_asked_as_probabilities() -> None:
    engine = Engine(runner(extra_heads_num_heads=2, extra_heads_dim=4), clock=FakeClock())
    listener = Listener()
    lease = engine.acquire(SessionSpec(extra_heads=True))
    engine.open(lease, listener)
    engine.push(lease, 0, speech(1)[0])
    engine.tick()
    (stepped,) = [event for event in listener.events if isinstance(event, Stepped)]
    assert stepped.heads is not None
    assert stepped.heads.shape == (2, 4)
    np.testing.assert_allclose(stepped.heads.sum(axis=1), 1.0, atol=1e-5)


def test_a_guided_session_gets_through_a_crowded_engine_what_it_gets_alone() -> None:
    model = duplex()
    engine = Engine(ModelRunner(model, 6, prompts=book(model)), slots=4, clock=FakeClock())
    listener = Listener()
    leases = [engine.acquire(spec) for spec in SPECS]
    for lease in leases:
        engine.open(lease, listener)
    while not all(listener.opened(lease) for lease in leases):
        engine.tick()
    for number in range(FRAMES):
        for voice_of, lease in enumerate(leases):
            engine.push(lease, number, speech(voice_of)[number])
        assert engine.tick() == 4
    for voice_of, (lease, spec) in enumerate(zip(leases, SPECS, strict=True)):
        said = [(step.text_token, step.codes.tolist()) for step in listener.steps(lease)]
        assert said == alone(spec, voice_of)
    for lease in leases:
        engine.close(lease)
    engine.tick()
    assert (engine.stats().free, engine.stats().rows_free) == (4, 6)
