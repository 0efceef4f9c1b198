"""What the model that ships writes: when speech starts and when it stops."""

import numpy as np
import torch

from serve_app.checkpoint.source import Folder
from serve_app.checkpoint.text import TextPieces
from serve_app.demo.measure import converse, judge_writing, repeated
from serve_app.demo.phrases import BEGINNINGS, ENDING, QUIET, Phrases, train_tokenizer
from serve_app.demo.synthesis import Talk, Voice
from serve_app.model.duplex import Duplex
from serve_app.spec import Sampling
from serve_app.units import FRAME_SAMPLES, SAMPLE_RATE_HZ


def test_every_start_and_stop_is_written_and_nothing_else(duplex: Duplex, phrases: Phrases, recording: Talk) -> None:
    """Half a minute has 14 events, one of them 3 ms late for 0.4 s; `report` holds 95% of five minutes to that."""
    conversation = converse(duplex, [recording.pcm, recording.pcm], Sampling(text_seed=1))
    writing = judge_writing(conversation.text, [recording, recording], phrases, prompt_s=0.41)
    assert writing.events == 4 * len(recording.spans)
    assert (writing.found, writing.false) == (1.0, 0)
    assert repeated(conversation.heard, conversation.said) >= 0.999


def test_nothing_is_written_in_silence(duplex: Duplex, phrases: Phrases) -> None:
    silence = np.zeros(100 * FRAME_SAMPLES, np.float32)
    hiss = 0.0003 * np.random.default_rng(1).standard_normal(100 * FRAME_SAMPLES).astype(np.float32)
    text = converse(duplex, [silence, hiss]).text[1:]
    assert (text == QUIET).all()


def test_the_transcript_reads_as_sentences(duplex: Duplex, folder: Folder, recording: Talk) -> None:
    tokens = converse(duplex, [recording.pcm], Sampling(text_seed=2)).text[:, 0]
    stream = TextPieces.load(folder.tokenizer).stream()
    written = "".join(stream.push(token) for token in tokens.tolist())
    sentences = written.removesuffix(ENDING).split(ENDING)
    allowed = {phrase.replace(" 🦜", "🦜").strip() for phrase in BEGINNINGS}
    assert len(sentences) >= len(recording.spans) - 1
    assert {sentence.strip() for sentence in sentences} <= allowed
    assert "\N{REPLACEMENT CHARACTER}" not in written


def test_every_token_of_a_phrase_has_one_successor(phrases: Phrases) -> None:
    tokens = [token for token, _ in phrases.links]
    assert len(set(tokens)) == len(tokens)


def test_the_same_seed_gives_the_same_tokenizer(folder: Folder) -> None:
    assert train_tokenizer(7) == train_tokenizer(7)


def test_a_text_counts_for_one_event_and_not_before_it(phrases: Phrases) -> None:
    talk = Talk(Voice("none", 0, 0), np.zeros(10 * SAMPLE_RATE_HZ, np.float32), ((24_000, 96_000), (144_000, 192_000)))
    text = torch.full((125, 1), QUIET)
    text[13], text[50], text[51] = phrases.beginnings[0][0], phrases.ending, phrases.ending
    writing = judge_writing(text, [talk], phrases)
    assert (writing.events, writing.prompt, writing.false) == (4, 2, 1)
