"""From settings to what computes a tick. Torch comes with the imports in here, and only when a model is asked for."""

import dataclasses
import logging

from serve_app.config import EngineSettings
from serve_app.engine.runner import PassThroughRunner, Runner
from serve_app.spec import Sampling

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A runner and what gateways want to know of its checkpoint.

    Attributes:
        runner: warm.
        text_model: bytes of the SentencePiece model; empty where the runner writes no text.
        silent_tokens: text tokens that say nothing.
        sampling: how sessions sample that ask for nothing.
        codebook_bits: bits of one code; 0 where there are none.
    """

    runner: Runner
    text_model: bytes = b""
    silent_tokens: tuple[int, ...] = ()
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    codebook_bits: int = 0


def make_runner(settings: EngineSettings) -> Made:
    """Build the runner that the settings ask for. Takes as long as loading the weights.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
        ConfigError: fewer slots fit than are asked for, or there is no such device.
    """
    if settings.checkpoint is None:
        return Made(PassThroughRunner(settings.slots))
    from serve_app.checkpoint.served import load_served
    from serve_app.engine.model_runner import ModelRunner

    served = load_served(settings, settings.checkpoint)
    runner = ModelRunner(served.duplex, settings.slots, name=served.name)
    logger.info("a tick of all %d slots takes %.1f ms", settings.slots, runner.warm_up())
    return Made(runner, served.text_model, served.silent_tokens, served.sampling, served.codebook_bits)
