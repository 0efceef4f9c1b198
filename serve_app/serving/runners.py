"""From settings to what computes a tick. Torch comes with the imports in here, and only when a model is asked for."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from serve_app.audio.frames import Pcm
from serve_app.config import EngineSettings, PromptSettings
from serve_app.engine.runner import PassThroughRunner, Runner
from serve_app.serving.voices import read_voices

if TYPE_CHECKING:
    from serve_app.checkpoint.served import Served
    from serve_app.engine.model_runner import Habits
    from serve_app.engine.prompts import PromptBook

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A runner and what gateways want to know of its checkpoint.

    Attributes:
        runner: warm.
        text_model: bytes of the SentencePiece model; empty where the runner writes no text.
        silent_tokens: text tokens that say nothing.
        codebook_bits: bits of one code; 0 where there are none.
    """

    runner: Runner
    text_model: bytes = b""
    silent_tokens: tuple[int, ...] = ()
    codebook_bits: int = 0


def make_runner(settings: EngineSettings) -> Made:
    """Build the runner that the settings ask for. Takes as long as loading the weights.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: fewer rows fit than are asked for, there is no such device, or a voice is no sound.
    """
    if settings.checkpoint is None:
        return Made(PassThroughRunner(settings.state_rows))
    from serve_app.checkpoint.plan import storage_of
    from serve_app.checkpoint.served import load_served
    from serve_app.engine.captured import capture_on
    from serve_app.engine.model_runner import ModelRunner

    voices = read_voices(settings.prompts.voices)  # before the weights: what is wrong with one shows in a second
    served = load_served(settings, settings.checkpoint)
    runner = ModelRunner(
        served.duplex,
        settings.state_rows,
        name=served.name,
        habits=_habits(settings, served),
        prompts=_prompts(settings.prompts, served, voices),
        prefix_bytes=settings.prompts.cache_bytes,
        capture=capture_on(settings.device, graphs=settings.graphs == "auto"),
        storage=storage_of(settings),
        page_reserve=settings.page_reserve,
    )
    logger.info("a tick of all %d rows takes %.1f ms", settings.state_rows, runner.warm_up())
    return Made(runner, served.text_model, served.silent_tokens, served.codebook_bits)


def _habits(settings: EngineSettings, served: "Served") -> "Habits":
    from serve_app.engine.model_runner import Habits

    said = served.generation
    return Habits(
        sampling=said.sampling,
        guidance=said.guidance if settings.guidance is None else settings.guidance,
        no_text=said.no_text,
        masked_until=said.masked_until,
        conditions=tuple({**dict(said.conditions), **settings.conditions}.items()),
        against=said.against,
    )


def _prompts(settings: PromptSettings, served: "Served", voices: Mapping[str, Pcm]) -> "PromptBook | None":
    """How this model reads prompts; None for one that does not both listen and speak."""
    from serve_app.checkpoint.text import tokeniser
    from serve_app.engine.prompts import PromptStyle, write_prompt_book

    config = served.duplex.lm.config
    if not config.dep_q or not config.user_q:
        return None
    style = PromptStyle(
        wrap=settings.wrap,
        pause_steps=settings.pause_steps,
        own_silence=settings.own_silence,
        user_frame=settings.user_frame,
    )
    return write_prompt_book(served.duplex, tokeniser(served.text_model, served.name), voices, style)
