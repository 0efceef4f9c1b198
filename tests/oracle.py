"""The reference (the `moshi` package, 0.2.13) as a test oracle: built from config dicts, CPU, fp32, random weights.

The package is installed with ``--no-deps``; its own pins are ignored, and the two packages that it names but that a CPU
oracle never needs are stubbed here. Import this module before anything of ``moshi``; it compiles nothing.
"""

import copy
import importlib
import math
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn

Config = Mapping[str, Any]

for _name in ("bitsandbytes", "sounddevice"):
    sys.modules.setdefault(_name, types.ModuleType(_name))

_loaders: Any = importlib.import_module("moshi.models.loaders")
_lm: Any = importlib.import_module("moshi.models.lm")
_compile: Any = importlib.import_module("moshi.utils.compile")
_compile._compile_disabled = True  # torch.compile of the oracle costs minutes and buys a test nothing

PUBLISHED_LM: Final[Config] = _loaders._lm_kwargs
PUBLISHED_MIMI: Final[Config] = _loaders._mimi_config


def reference_lm(config: Config, seed: int = 0, device: str = "cpu", scale: float = 1.0) -> Any:
    """The reference's ``LMModel`` for ``config`` (the keys of config.json), fp32, eval mode.

    Args:
        config: arguments of the LM as config.json spells them.
        seed: of the random weights; every parameter is random, norms and layer scales included.
        device: ``cpu``, or ``meta`` for names and shapes alone.
        scale: factor on the weights of linears; above 1 the greedy choices depend more on the context.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _loaders.get_moshi_lm(None, lm_kwargs=copy.deepcopy(dict(config)), device=device, dtype=torch.float32)
        if device != "meta":
            _randomise(model, seed + 1, scale)
    return model


def reference_generator(lm: Any, **kwargs: Any) -> Any:
    """The reference's ``LMGen`` over ``lm``, greedy unless ``use_sampling=True``; enter its ``.streaming(batch)``."""
    return _lm.LMGen(lm, **({"use_sampling": False} | kwargs))


def reference_mimi(
    config: Config | None = None, seed: int = 0, num_codebooks: int | None = None, device: str = "cpu"
) -> Any:
    """The reference's ``MimiModel``, fp32, eval mode, with codebooks as wide as its own latents, some of them unused.

    Args:
        config: as the reference nests it (``seanet``, ``transformer``, ``quantizer``...); None is the published Mimi.
        seed: of the random weights.
        num_codebooks: in use; None means all of them.
        device: ``cpu``, or ``meta`` for names and shapes alone.
    """
    chosen = copy.deepcopy(dict(PUBLISHED_MIMI if config is None else config))
    count = chosen["quantizer"]["n_q"] if num_codebooks is None else num_codebooks
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        model = _loaders.get_mimi(None, chosen, device=device, num_codebooks=count)
        if device != "meta":
            _randomise(model, seed + 1, 1.0)
            _fill_codebooks(model, seed + 2)
    return model


def weights_of(model: Any) -> dict[str, Tensor]:
    """The state dict of a reference module, detached: what a checkpoint file of it would hold."""
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@contextmanager
def fed_noise(draw: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within: the reference's ``multinomial`` picks ``argmax(p / draw(p))``, p being its sorted top-k, ``[..., k]``."""
    module: Any = importlib.import_module("moshi.utils.sampling")
    original = module.multinomial

    def pick(p: Tensor, num_samples: int, replacement: bool = False, *, generator: object = None) -> Tensor:
        assert num_samples == 1
        return (p / draw(p)).argmax(dim=-1, keepdim=True)

    module.multinomial = pick
    try:
        yield
    finally:
        module.multinomial = original


@torch.no_grad()
def _randomise(model: nn.Module, seed: int, scale: float) -> None:
    """Make every parameter matter: constructors leave norms at 1, biases at 0 and layer scales at 0.01."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "layer_scale" in name:
            parameter.copy_(0.4 + 0.1 * noise)
        elif name.endswith("alpha") or ("norm" in name and name.endswith("weight")):
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            parameter.add_(0.02 * noise)
        elif parameter.ndim == 3 and not name.startswith(("downsample", "upsample")):
            parameter.mul_(1.7)  # constructors lose a factor of sqrt(3) a layer, and PCM would fade
        elif parameter.ndim == 2 and "emb" not in name:
            parameter.mul_(scale)


@torch.no_grad()
def _fill_codebooks(model: Any, seed: int) -> None:
    """Random entries as wide as the residual that reaches each level, every ninth entry unused (usage and sum 0)."""
    generator = torch.Generator().manual_seed(seed)
    pcm = 0.3 * torch.randn(1, 1, 1920 * 12, generator=generator)
    latent = model._encode_to_unquantized_latent(pcm)
    for split in (model.quantizer.rvq_first, model.quantizer.rvq_rest):
        residual = split.input_proj(latent).transpose(1, 2)[0]  # [T, D]
        for layer in split.vq.layers:
            codebook = layer._codebook
            size, dim = codebook.embedding_sum.shape
            width = min(1.0, math.sqrt(2 * math.log(size) / dim))  # wider ones would all lie further than the mean
            entries = residual.mean(0) + width * residual.std(0) * torch.randn(size, dim, generator=generator)
            usage = 0.5 + 9 * torch.rand(size, generator=generator)
            usage[::9], entries[::9] = 0.0, 0.0
            codebook.cluster_usage.copy_(usage)
            codebook.embedding_sum.copy_(entries * usage[:, None])
            codebook._initialized.fill_(1)
            codebook._embedding = None
            nearest = torch.cdist(residual, entries).argmin(dim=1)
            residual = residual - entries[nearest]
