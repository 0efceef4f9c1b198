"""The whole tick: against the reference's server loop, one session at a time there and four at once here."""

import dataclasses
import random
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from serve_app.errors import CheckpointError
from serve_app.model.duplex import Duplex, DuplexState, TickOutput
from serve_app.model.lm import LM, Given, LMConfig
from serve_app.model.mimi import Mimi, codec_transformer
from serve_app.model.seanet import SeanetConfig
from serve_app.model.state import Rows, all_rows, leaves, reset
from serve_app.spec import GREEDY, Sampling
from serve_app.units import FRAME_SAMPLES
from tests.model.codec import PCM_TOLERANCE, SMALL, CodeComparison
from tests.model.codec import pair as mimi_pair
from tests.model.family import STT, TTS, TWO_B
from tests.model.language import CONTEXT, CPU, LATE_16, MOSHIKO, lm_pair
from tests.oracle import reference_generator

SLOTS: Final = 4
CODEC_CONTEXT: Final = 60  # 30 frames
FRAMES: Final = 140
CODEC: Final = dataclasses.replace(
    SMALL,
    seanet=SeanetConfig(dimension=32, n_filters=4),
    transformer=codec_transformer(32, 2, 1, 64, context=CODEC_CONTEXT),
    card=32,
    codebook_dim=16,
)
HOT: Final = Sampling(text_top_k=25, audio_top_k=20, audio_temperature=0.9, text_seed=5, audio_seed=6)


def _speech(sessions: int, frames: int = FRAMES, seed: int = 3) -> Tensor:
    """Noise with an envelope, ``[sessions, frames, 1920]``."""
    generator = torch.Generator().manual_seed(seed)
    loudness = 0.02 + 0.5 * torch.rand(sessions, frames, 1, generator=generator)
    return loudness * torch.randn(sessions, frames, FRAME_SAMPLES, generator=generator)


def _models(config: dict[str, Any] = MOSHIKO) -> tuple[Any, Any, Duplex]:
    codec = CODEC
    if config["dep_q"] > codec.total_codebooks:
        codec = dataclasses.replace(CODEC, total_codebooks=16, num_codebooks=16)
    reference_mimi, mimi = mimi_pair(codec)
    reference_lm, lm = lm_pair(config)
    return reference_mimi, reference_lm, Duplex(mimi, lm).eval()


def _duplex() -> Duplex:
    return _models()[2]


def _state(duplex: Duplex, slots: int = SLOTS, sampling: Sampling = GREEDY) -> DuplexState:
    state = duplex.init_state(slots, CPU, torch.float32)
    for slot in range(slots):
        state.lm.sampling.set(slot, sampling)
    return state


@dataclasses.dataclass
class Heard:
    """One session as the reference's server gives it, frame by frame; no tokens and no PCM before the delay passed."""

    codes: list[Tensor] = dataclasses.field(default_factory=list)
    latents: list[Tensor] = dataclasses.field(default_factory=list)
    tokens: list[Tensor | None] = dataclasses.field(default_factory=list)
    pcm: list[Tensor | None] = dataclasses.field(default_factory=list)


def _serve_alone(mimi: Any, lm: Any, frames: Tensor) -> Heard:
    """What the reference's server does with its client: encode, on the first frame reset the codec, step, decode."""
    heard = Heard()
    encode = mimi.quantizer.encode

    def recorded(latent: Tensor) -> Tensor:
        heard.latents.append(latent)
        return encode(latent)  # type: ignore[no-any-return]

    mimi.quantizer.encode = recorded
    generator = reference_generator(lm)
    with mimi.streaming(1), generator.streaming(1):
        for number, frame in enumerate(frames):
            codes = mimi.encode(frame[None, None])
            if number == 0:
                mimi.reset_streaming()
            tokens = generator.step(codes)
            heard.codes.append(codes)
            heard.tokens.append(None if tokens is None else tokens[0, :, 0])
            heard.pcm.append(None if tokens is None else mimi.decode(tokens[:, 1:])[0, 0])
    mimi.quantizer.encode = encode
    return heard


@pytest.mark.parametrize(("config", "sessions"), [(MOSHIKO, 5), (LATE_16, 2)], ids=["moshiko", "late-16"])
@torch.no_grad()
def test_sessions_in_one_batch_equal_the_references_server_loop(config: dict[str, Any], sessions: int) -> None:
    mimi, lm, duplex = _models(config)
    speech = _speech(sessions)
    expected = [_serve_alone(mimi, lm, frames) for frames in speech]
    codes = CodeComparison(mimi)
    tokens_compared, worst = 0, 0.0
    state, chance = _state(duplex), random.Random(2)
    seated: dict[int, int] = {}
    waiting, done = list(range(sessions)), [0] * sessions
    while waiting or seated:
        for slot in range(SLOTS):
            if slot not in seated and waiting and chance.random() < 0.3:
                seated[slot] = waiting.pop(0)
                reset(state, torch.tensor([slot]))
        runs = torch.tensor([slot in seated and chance.random() < 0.9 for slot in range(SLOTS)])
        pcm = torch.zeros(SLOTS, 1, FRAME_SAMPLES)
        for slot, session in seated.items():
            pcm[slot, 0] = speech[session, done[session]]
        rows = Rows.of(torch.arange(SLOTS), runs, SLOTS)
        given = Given.nothing(SLOTS, config["dep_q"])
        heard = duplex.encode(pcm, state, rows)
        thought = duplex.think(heard, state, rows, given.text)
        said = duplex.lm.advance(thought.text, duplex.speak(thought, state, rows, given.audio).codes, state.lm, rows)
        voice = duplex.decode(said, state, rows)
        for slot in [slot for slot in seated if runs[slot]]:
            session = seated[slot]
            number, theirs = done[session], expected[session]
            assert int(said.step[slot]) == number
            codes.add(
                theirs.codes[number][:, : heard.codes.shape[1]],
                heard.codes[slot, None, :, None],
                theirs.latents[number],
            )
            tokens, sound = theirs.tokens[number], theirs.pcm[number]
            assert bool(said.complete[slot]) is (tokens is not None)
            if tokens is not None and sound is not None:
                assert torch.equal(torch.cat([said.text[slot, None], said.codes[slot]]), tokens)
                worst = max(worst, float((voice[slot] - sound).abs().max()))
                tokens_compared += tokens.numel()
            else:
                assert bool((said.codes[slot] == -2).all())
                assert bool((voice[slot] == 0).all())
            done[session] += 1
            if done[session] == FRAMES:
                del seated[slot]
    codes.check()
    print(f"tokens: {tokens_compared} compared, all equal; PCM within {worst:.1e}")
    assert worst <= PCM_TOLERANCE
    assert FRAMES * 2 > 4 * CODEC_CONTEXT
    assert FRAMES > 10 * CONTEXT
    assert tokens_compared >= sessions * (FRAMES - 2) * (config["dep_q"] + 1)


@torch.no_grad()
def test_the_first_frame_restarts_the_codec_of_its_own_row_alone() -> None:
    duplex = _duplex()
    alone, shared = _state(duplex), _state(duplex)
    speech = _speech(SLOTS, 8)
    stays = torch.tensor([True, True, False, False])
    for number in range(8):
        pcm = speech[:, number, None]
        rows = Rows.of(torch.arange(SLOTS), stays, SLOTS)
        before = duplex.tick(pcm, alone, rows)
        late = Rows.of(torch.arange(SLOTS), stays | torch.tensor([False, False, number >= 4, number >= 5]), SLOTS)
        after = duplex.tick(pcm, shared, late)
        assert torch.equal(before.pcm[:2], after.pcm[:2])
        assert torch.equal(before.codes[:2], after.codes[:2])


@torch.no_grad()
def test_frame_zero_is_never_heard_by_the_model() -> None:
    duplex = _duplex()
    one, other = _state(duplex), _state(duplex)
    speech = _speech(SLOTS, 6)
    for number in range(6):
        pcm = speech[:, number, None]
        changed = pcm if number else -0.5 * pcm.flip(-1)
        first, second = duplex.tick(pcm, one, all_rows(SLOTS)), duplex.tick(changed, other, all_rows(SLOTS))
        assert torch.equal(first.codes, second.codes)
        assert torch.equal(first.pcm, second.pcm)


@torch.no_grad()
def test_a_masked_row_keeps_every_bit_of_codec_and_model() -> None:
    duplex = _duplex()
    state = _state(duplex, sampling=HOT)
    speech = _speech(SLOTS, 5)
    for number in range(4):
        duplex.tick(speech[:, number, None], state, all_rows(SLOTS))
    before = [leaf.clone() for leaf in leaves(state)]
    output = duplex.tick(
        speech[:, 4, None], state, Rows.of(torch.arange(SLOTS), torch.tensor([True, False, True, False]), SLOTS)
    )
    for old, new in zip(before, leaves(state), strict=True):
        assert torch.equal(old[[1, 3]], new[[1, 3]])
    assert output.decoded.tolist() == [True, False, True, False]


def _equal(one: TickOutput, other: TickOutput, rows: list[int]) -> bool:
    return all(
        torch.equal(getattr(one, field.name)[rows], getattr(other, field.name)[rows])
        for field in dataclasses.fields(TickOutput)
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), 1e38])
@torch.no_grad()
def test_what_is_not_finite_is_told_stays_in_its_row_and_ends_with_a_wipe(poison: float) -> None:
    duplex = _duplex()
    state, clean = _state(duplex, sampling=HOT), _state(duplex, sampling=HOT)
    speech = _speech(SLOTS, 30)
    for number in range(12):
        pcm = speech[:, number, None]
        bad = pcm.clone()
        if number >= 6:
            bad[1, 0, 1000] = poison
        output, expected = duplex.tick(bad, state, all_rows(SLOTS)), duplex.tick(pcm, clean, all_rows(SLOTS))
        assert output.finite.tolist() == [True, number < 6, True, True]
        assert bool(expected.finite.all())
        assert _equal(output, expected, [0, 2, 3])
    reset(state, torch.tensor([1, SLOTS]), wipe=True)
    reset(clean, torch.tensor([1]))
    for number in range(12, 30):
        pcm = speech[:, number, None]
        output, expected = duplex.tick(pcm, state, all_rows(SLOTS)), duplex.tick(pcm, clean, all_rows(SLOTS))
        assert _equal(output, expected, [0, 1, 2, 3])
        assert bool(output.finite.all())


@torch.no_grad()
def test_a_row_that_does_not_run_is_never_blamed() -> None:
    duplex = _duplex()
    state = _state(duplex)
    pcm = torch.full((SLOTS, 1, FRAME_SAMPLES), float("nan"))
    rows = Rows.of(torch.arange(SLOTS), torch.zeros(SLOTS, dtype=torch.bool), SLOTS)
    assert bool(duplex.tick(pcm, state, rows).finite.all())


@torch.no_grad()
def test_a_tick_is_the_composition_of_its_stages() -> None:
    duplex = _duplex()
    whole, staged = _state(duplex, sampling=HOT), _state(duplex, sampling=HOT)
    speech, rows = _speech(SLOTS, 6), all_rows(SLOTS)
    for number in range(6):
        pcm = speech[:, number, None]
        output = duplex.tick(pcm, whole, rows)
        given = Given.nothing(SLOTS, 8)
        thought = duplex.think(duplex.encode(pcm, staged, rows), staged, rows, given.text)
        spoken = duplex.speak(thought, staged, rows, given.audio)
        said = duplex.lm.advance(thought.text, spoken.codes, staged.lm, rows)
        assert torch.equal(output.pcm, duplex.decode(said, staged, rows))
        assert torch.equal(output.codes, said.codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tick_asks_the_device_for_no_value(dtype: torch.dtype) -> None:
    duplex = Duplex(Mimi(CODEC), LM(LMConfig.from_kyutai(MOSHIKO)).to(dtype)).eval()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        state = duplex.init_state(SLOTS, CPU, dtype)
        rows = Rows.of(torch.arange(3), torch.ones(3, dtype=torch.bool), SLOTS)
        output = duplex.tick(torch.zeros(3, 1, FRAME_SAMPLES), state, rows)
        assert output.pcm.shape == (3, FRAME_SAMPLES)
        assert output.pcm.dtype == torch.float32


@torch.no_grad()
def test_a_half_precision_model_speaks_through_a_single_precision_codec() -> None:
    duplex = _duplex()
    duplex.lm.to(torch.bfloat16)
    state = duplex.init_state(SLOTS, CPU, torch.bfloat16)
    for number in range(4):
        output = duplex.tick(_speech(SLOTS, 4)[:, number, None], state, all_rows(SLOTS))
        assert bool(output.finite.all())
    assert output.pcm.dtype == torch.float32
    assert float(output.pcm.abs().max()) > 0


def test_a_codec_and_a_model_that_do_not_fit_are_refused() -> None:
    lm = LM(LMConfig.from_kyutai(MOSHIKO))
    codec = dataclasses.replace(CODEC, card=64, num_codebooks=3)
    with pytest.raises(CheckpointError, match=r"3 codebooks(.|\n)*64 entries"):
        Duplex(Mimi(codec), lm)


@torch.no_grad()
def test_a_model_that_only_writes_says_no_sound_and_what_its_heads_say() -> None:
    duplex = _models(STT)[2]
    state, speech = _state(duplex), _speech(SLOTS, 4)
    for number in range(4):
        output = duplex.tick(speech[:, number, None], state, all_rows(SLOTS))
        assert not output.decoded.any()
        assert bool((output.pcm == 0).all())
        assert bool((output.text >= 0).all())
        assert output.heads is not None
        assert output.heads.shape == (SLOTS, 4, 6)
        torch.testing.assert_close(output.heads.sum(dim=2), torch.ones(SLOTS, 4))


@torch.no_grad()
def test_a_model_that_only_speaks_hears_nobody() -> None:
    duplex = _models(TTS)[2]
    one, other, speech = _state(duplex), _state(duplex), _speech(SLOTS, 5)
    for number in range(5):
        said = duplex.tick(speech[:, number, None], one, all_rows(SLOTS))
        again = duplex.tick(torch.zeros(SLOTS, 1, FRAME_SAMPLES), other, all_rows(SLOTS))
        assert torch.equal(said.codes, again.codes)
        assert bool(said.decoded.all()) is (number >= 2)


@torch.no_grad()
def test_the_end_of_input_is_heard_in_place_of_sound_and_its_row_alone_hears_it() -> None:
    duplex = _models(TWO_B)[2]
    state, plain, speech = _state(duplex), _state(duplex), _speech(SLOTS, 5)
    ended = torch.tensor([False, True, False, False])
    for number in range(4):
        duplex.tick(speech[:, number, None], state, all_rows(SLOTS))
        duplex.tick(speech[:, number, None], plain, all_rows(SLOTS))
    codec = [leaf.clone() for leaf in leaves(state.mimi.encoder)]
    heard = duplex.encode(speech[:, 4, None], state, all_rows(SLOTS), ended)
    expected = duplex.encode(speech[:, 4, None], plain, all_rows(SLOTS))
    assert bool((heard.codes[1] == duplex.lm.config.card).all())
    others = [0, 2, 3]
    assert torch.equal(heard.codes[others], expected.codes[others])
    for old, new, ours in zip(codec, leaves(state.mimi.encoder), leaves(plain.mimi.encoder), strict=True):
        assert torch.equal(old[1], new[1])
        assert torch.equal(new[others], ours[others])


@torch.no_grad()
def test_a_twin_that_is_not_finite_is_told_of_its_row() -> None:
    duplex = _models(TWO_B)[2]
    state = _state(duplex)
    assert state.lm.conditions is not None
    state.lm.conditions.sum[3].fill_(float("nan"))
    rows = Rows.of(torch.arange(3), torch.ones(3, dtype=torch.bool), SLOTS)
    rows = rows.guided(torch.tensor([1]), torch.tensor([3]), SLOTS)
    assert duplex.tick(_speech(3, 1)[:, 0, None], state, rows).finite.tolist() == [True, False, True]
