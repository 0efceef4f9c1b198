"""From settings to what computes a tick. Torch is imported here and only when a model is asked for."""

import dataclasses

from serve_app.config import EngineSettings
from serve_app.engine.runner import PassThroughRunner, Runner


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """A runner and what gateways want to know of its checkpoint.

    Attributes:
        runner: ready to be opened.
        text_model: bytes of the SentencePiece model; empty where the runner writes no text.
        codebook_bits: bits of one code; 0 where there are none.
    """

    runner: Runner
    text_model: bytes = b""
    codebook_bits: int = 0


def make_runner(settings: EngineSettings) -> Made:
    """Build the runner that the settings ask for.

    Raises:
        CheckpointError: the checkpoint cannot be loaded.
    """
    if settings.runner == "passthrough":
        return Made(PassThroughRunner(settings.slots))
    raise NotImplementedError
