"""From a deployment's settings to a model in memory: everything that is checked before the first weight is read."""

import dataclasses
import logging
from typing import Final

import torch

from serve_app.checkpoint.duplex import load_duplex
from serve_app.checkpoint.generation import Generation, read_generation
from serve_app.checkpoint.memory import device_memory
from serve_app.checkpoint.named import source_of
from serve_app.checkpoint.plan import DTYPES, beside_of, plan, storage_of
from serve_app.checkpoint.source import resolve
from serve_app.config import CheckpointSettings, EngineSettings
from serve_app.errors import ConfigError
from serve_app.model.duplex import Duplex

CPU: Final = "cpu"

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Served:
    """A loaded checkpoint.

    Attributes:
        duplex: on its device.
        name: the last part of where it came from: a path is nobody's business.
        text_model: bytes of the SentencePiece model, for gateways.
        silent_tokens: text tokens that say nothing: end of padding and padding.
        codebook_bits: bits of one code.
        generation: what sessions get that ask for nothing.
    """

    duplex: Duplex
    name: str
    text_model: bytes
    silent_tokens: tuple[int, ...]
    codebook_bits: int
    generation: Generation


def load_served(settings: EngineSettings, checkpoint: CheckpointSettings) -> Served:
    """Load what the settings name, after checking that the slots fit. Sets torch's threads for the process.

    Raises:
        ConfigError: fewer slots fit than are asked for, or there is no such device.
        CheckpointError: the checkpoint cannot be loaded.
        ParameterRefused: it was published with a sampling that is out of range.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = _device(settings.device)
    source = source_of(checkpoint)
    folder = resolve(source)
    generation = read_generation(folder.layout)
    dtype = DTYPES[settings.dtype]
    weights, codec_dtype = settings.weights, DTYPES[settings.codec_dtype]
    memory_bytes = device_memory(settings.device)
    if memory_bytes is not None:
        beside = beside_of(
            folder.layout,
            dtype,
            settings.device,
            settings.state_rows,
            settings.context,
            weights=weights,
            codec_dtype=codec_dtype,
        )
        storage = storage_of(settings)
        made = plan(folder.layout, dtype, settings.context, storage, weights=weights, codec_dtype=codec_dtype)
        made = dataclasses.replace(made, beside=beside)
        made.require(settings.state_rows, memory_bytes - settings.prompts.cache_bytes, settings.pages or 0)
    duplex = load_duplex(folder, device, dtype, settings.context, weights=weights, codec_dtype=codec_dtype)
    logger.info("loaded %s", source)
    config = duplex.lm.config
    return Served(
        duplex=duplex,
        name=source.name,
        text_model=folder.tokenizer.read_bytes(),
        silent_tokens=(config.existing_text_end_padding_id, config.existing_text_padding_id),
        codebook_bits=(config.card - 1).bit_length(),
        generation=generation,
    )


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError("device", f"{name!r} is not a device") from error
    if device.type != CPU and not torch.cuda.is_available():
        raise ConfigError("device", f"this process sees no {name}: set num_gpus, or device {CPU}")
    return device
