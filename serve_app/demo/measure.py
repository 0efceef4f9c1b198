"""What the demo can do, measured: intelligibility of the codec, codebook use, the parrot's memory, its text.

Needs pystoi for the first; everything else needs the model alone.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from serve_app.demo.parrot import CARD, LAG
from serve_app.demo.phrases import Phrases
from serve_app.demo.synthesis import Pcm, Talk
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LM, Given
from serve_app.model.mimi import Mimi
from serve_app.model.sampling import needs_whole
from serve_app.model.state import all_rows
from serve_app.spec import GREEDY, Sampling
from serve_app.units import FRAME_S, FRAME_SAMPLES, SAMPLE_RATE_HZ

PROMPT_S: Final = 0.4
"""How late an event may be written."""


@dataclasses.dataclass(frozen=True)
class Intelligibility:
    """Means over recordings; 1 is perfect. Noise with a voice's envelope has a STOI of .63 but an ESTOI of -.04."""

    stoi: float
    estoi: float


def intelligibility(pairs: Iterable[tuple[Pcm, Pcm]]) -> Intelligibility:
    """STOI and ESTOI of (original, coded) recordings of one length."""
    from pystoi import stoi

    found = [[stoi(clean, coded, SAMPLE_RATE_HZ, extended=e) for e in (False, True)] for clean, coded in pairs]
    means = np.mean(found, axis=0)
    return Intelligibility(float(means[0]), float(means[1]))


@torch.no_grad()
def through_codec(mimi: Mimi, pcm: Pcm, codebooks: int) -> Pcm:
    """A recording encoded and decoded with the first ``codebooks`` codebooks, offline."""
    codes = mimi.encode(torch.from_numpy(pcm)[None, None])[:, :codebooks]
    return mimi.decode(codes)[0, 0, : len(pcm)].numpy()


def codec_intelligibility(mimi: Mimi, talks: Sequence[Talk], codebooks: int) -> Intelligibility:
    """Mean over the talks, pauses included (the measure skips silent frames itself)."""
    return intelligibility((talk.pcm, through_codec(mimi, talk.pcm, codebooks)) for talk in talks)


def entries_used(codes: Tensor, card: int) -> list[int]:
    """How many entries of each codebook occur in ``int64[B, K, T]``."""
    return [len(torch.bincount(codes[:, k].flatten(), minlength=card).nonzero()) for k in range(codes.shape[1])]


@dataclasses.dataclass(frozen=True)
class Conversation:
    """What a batch of recordings heard and said, streamed through the whole tick.

    Attributes:
        heard: ``int64[T, B, K]``, the user's codes; said: the model's, -2 before the first.
        text: ``int64[T, B]``; pcm: ``float32[B, T * 1920]``, the model's voice.
    """

    heard: Tensor
    said: Tensor
    text: Tensor
    pcm: Tensor


@torch.no_grad()
def converse(duplex: Duplex, recordings: Sequence[Pcm], sampling: Sampling = GREEDY) -> Conversation:
    """Stream recordings side by side, silence after the shorter ones; row r has the seeds of ``sampling`` plus r."""
    count, cpu = len(recordings), torch.device("cpu")
    frames = -(-max(len(pcm) for pcm in recordings) // FRAME_SAMPLES)
    pcm = torch.zeros(count, frames * FRAME_SAMPLES)
    for row, recording in enumerate(recordings):
        pcm[row, : len(recording)] = torch.from_numpy(recording)
    state = duplex.init_state(count, cpu, next(duplex.lm.parameters()).dtype)
    for row in range(count):
        seeds = {"text_seed": sampling.text_seed + row, "audio_seed": sampling.audio_seed + row}
        state.lm.sampling.set(row, dataclasses.replace(sampling, **seeds))
    rows, given = all_rows(count), Given.nothing(count, duplex.lm.config.dep_q)
    whole = needs_whole(sampling, duplex.lm.config.text_card, duplex.lm.config.card)
    steps = []
    for frame in torch.split(pcm, FRAME_SAMPLES, dim=1):
        heard = duplex.encode(frame[:, None], state, rows)
        thought = duplex.think(heard, state, rows, given.text, whole=whole)
        spoken = duplex.speak(thought, state, rows, given.audio, whole=whole)
        said = duplex.lm.advance(thought.text, spoken.codes, state.lm, rows)
        steps.append((heard.codes, said.codes, said.text, duplex.decode(said, state, rows)))
    heard_codes, codes, text, voice = (torch.stack(part) for part in zip(*steps, strict=True))
    return Conversation(heard_codes, codes, text, voice.transpose(0, 1).flatten(1))


def repeated(heard: Tensor, said: Tensor) -> float:
    """Share of codes said that were heard exactly `LAG` steps before, ``int64[T, B, K]`` both.

    Step 0 is never heard (see `model.delays`), so what is compared begins with what step 1 heard.
    """
    return float((said[LAG + 1 :] == heard[1 : len(heard) - LAG]).float().mean())


@torch.no_grad()
def parrot_accuracy(lm: LM, steps: int, rows: int, sampling: Sampling, seed: int) -> float:
    """Share of random codes that the language model alone says again at its lag."""
    generator = torch.Generator().manual_seed(seed)
    heard = torch.randint(CARD, (steps, rows, lm.config.user_q), generator=generator)
    state = lm.init_state(rows, torch.device("cpu"), next(lm.parameters()).dtype)
    for row in range(rows):
        seeds = {"text_seed": sampling.text_seed + row, "audio_seed": sampling.audio_seed + row}
        state.sampling.set(row, dataclasses.replace(sampling, **seeds))
    live, whole = all_rows(rows), needs_whole(sampling, lm.config.text_card, lm.config.card)
    said = torch.stack([lm.step(codes, state, live, whole=whole).codes for codes in heard])
    return repeated(heard, said)


@dataclasses.dataclass(frozen=True)
class Writing:
    """How well the text tells when speech starts and stops.

    Attributes:
        events: starts and stops there were; prompt: how many were written in time (`PROMPT_S`).
        false: written for nothing; minutes: how long it all took.
        delays_s: of the prompt ones.
    """

    events: int
    prompt: int
    false: int
    minutes: float
    delays_s: tuple[float, ...]

    @property
    def found(self) -> float:
        return self.prompt / self.events

    @property
    def false_per_minute(self) -> float:
        return self.false / self.minutes


def judge_writing(text: Tensor, talks: Sequence[Talk], phrases: Phrases, prompt_s: float = PROMPT_S) -> Writing:
    """Compare text tokens ``int64[T, B]``, one row a talk, with the talks' sentences.

    The text of step t can be read when frame t has been heard, (t + 1) * 80 ms after the beginning.
    """
    firsts = {phrase[0] for phrase in phrases.beginnings}
    events = false = 0
    delays: list[float] = []
    for row, talk in enumerate(talks):
        tokens = text[:, row].tolist()
        for marks, edges in (
            (firsts, [start for start, _ in talk.spans]),
            ({phrases.ending}, [stop for _, stop in talk.spans]),
        ):
            written = [(step + 1) * FRAME_S for step, token in enumerate(tokens) if token in marks]
            due = [edge / SAMPLE_RATE_HZ for edge in edges if edge / SAMPLE_RATE_HZ + prompt_s < talk.seconds]
            met = _match(written, due, prompt_s)
            events += len(due)
            delays += met
            false += sum(time < talk.seconds for time in written) - len(met)
    return Writing(events, len(delays), false, sum(talk.seconds for talk in talks) / 60, tuple(delays))


def _match(written: Sequence[float], due: Sequence[float], prompt_s: float) -> list[float]:
    """Delays of the events that were written in time, each with a text of its own."""
    left = sorted(written)
    delays = []
    for moment in sorted(due):
        found = next((time for time in left if -FRAME_S <= time - moment <= prompt_s), None)
        if found is not None:
            left.remove(found)
            delays.append(found - moment)
    return delays
