"""The reference beside ours: the `moshi` package with the same weights, shapes and rows, where it can be imported.

Behaviour alone is used: its models are built from their configurations, given our weights, and stepped as its server
steps them. Nothing of it is needed to measure ours.
"""

import contextlib
import copy
import importlib
import importlib.metadata
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.bench.fill import held
from serve_app.bench.ours import FRAMES, noise
from serve_app.bench.shapes import CODEC_STAGES, LM_STAGES, Shapes
from serve_app.model.duplex import Duplex, DuplexState
from serve_app.model.transformer import TransformerState

UNNEEDED: Final = ("bitsandbytes", "sounddevice")
"""Packages that the reference names when it is imported and that a tick never uses."""

LM_KEYS: Final = frozenset(
    "dim text_card text_card_out existing_text_padding_id existing_text_end_padding_id n_q dep_q card num_heads "
    "num_layers hidden_scale causal layer_scale max_period gating norm norm_emb bias_proj positional_embedding "
    "kv_repeat delays conditioners fuser cross_attention demux_second_stream extra_heads_num_heads "
    "extra_heads_dim".split()
)
"""What of a config.json shapes its language model; the rest names files and habits."""


def available() -> str | None:
    """The reference's version, or None where it cannot be imported."""
    for name in UNNEEDED:
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            sys.modules[name] = types.ModuleType(name)
    try:
        importlib.import_module("moshi.models.loaders")
        return importlib.metadata.version("moshi")
    except ImportError:
        return None


class Reference:
    """The reference's codec and generator with our weights; on a GPU they share the memory.

    Args:
        compiled: whether it may use torch.compile, as its server does; that takes minutes and pays on a GPU.
    """

    def __init__(self, shapes: Shapes, duplex: Duplex, *, compiled: bool, seed: int = 0) -> None:
        loaders: Any = importlib.import_module("moshi.models.loaders")
        self._models: Any = importlib.import_module("moshi.models.lm")
        self._compile: Any = importlib.import_module("moshi.utils.compile")
        vars(self._compile)["_compile_disabled"] = not compiled
        self.device, self.compiled = duplex.lm.device, compiled
        self.shapes, self._seed = shapes, seed
        own_keys = {key: value for key, value in shapes.lm.items() if key in LM_KEYS or key.startswith("depformer_")}
        self.mimi = loaders.get_mimi(
            None, copy.deepcopy(dict(shapes.mimi)), device=self.device, num_codebooks=duplex.lm.config.mimi_codebooks
        )
        self.lm = loaders.get_moshi_lm(
            None, lm_kwargs={**own_keys, "context": duplex.lm.config.context}, device="meta", dtype=duplex.lm.dtype
        )
        _adopt(self.mimi, duplex.mimi)
        _adopt(self.lm, duplex.lm)
        self.lm.to(self.device)  # constants
        self._codes: Tensor | None = None
        self._generator: Any = None
        self._ticks = 0
        self._heard = noise(1, seed)

    @contextlib.contextmanager
    def rows(self, steps: Sequence[int], ours: Duplex, state: DuplexState, **hooks: Any) -> Iterator["Reference"]:
        """Within: a batch in the middle of the same conversations that the first slots of ours hold."""
        count = len(steps)
        self._generator = self._models.LMGen(self.lm, use_sampling=False, **hooks)
        self._heard, self._ticks = noise(count, self._seed), 0
        with torch.no_grad(), self.mimi.streaming(count), self._generator.streaming(count):
            self._copy(steps, ours, state)
            codes = torch.randint(ours.lm.config.card, (count, max(ours.lm.config.dep_q, 1), 1))
            self._codes = codes.to(self.device)
            yield self
        self._generator = None

    def tick(self) -> None:
        """One tick of what counts, from numpy to numpy."""
        stages = self.shapes.stages
        codes: Tensor | None = None
        with torch.no_grad():
            if set(stages) & set(CODEC_STAGES):
                pcm = torch.from_numpy(self._heard[self._ticks % FRAMES][:, None]).to(self.device)
                codes = self.mimi.encode(pcm)
            said: Tensor | None = None
            if set(stages) & set(LM_STAGES):
                user = self._codes if codes is None else codes
                said = self.step(user)
            if codes is not None:
                spoken = self._codes if said is None else said[:, 1:].clamp(0)
                self.mimi.decode(spoken).cpu().numpy()
            if said is not None:
                said.cpu().numpy()
            elif codes is not None:
                codes.cpu().numpy()
        self._ticks += 1

    def step(self, user: Tensor | None) -> Tensor:
        """One step of the language model, ``int64[R, dep_q + 1, 1]``."""
        assert user is not None
        assert self._generator is not None
        said: Tensor = self._generator.step(user)
        return said

    @contextlib.contextmanager
    def ungraphed(self) -> Iterator[None]:
        """Within: no CUDA graphs and nothing compiled, so that its logits can be looked at."""
        with self._compile.no_cuda_graph(), self._compile.no_compile():
            yield

    def _copy(self, steps: Sequence[int], ours: Duplex, state: DuplexState) -> None:
        """Make its rows what our slots are."""
        generator = self._generator._streaming_state
        count = len(steps)
        generator.offsets[:] = state.lm.cache.offset[:count]
        generator.offset_cpu = max(steps) + ours.lm.config.max_delay
        generator.cache[:] = state.lm.cache.tokens[:count]
        lm_context, codec = ours.lm.config.context, ours.mimi.config
        _copy_rings(self.lm.transformer, state.lm.transformer, steps, lm_context)
        codec_steps = [made * codec.steps_per_frame for made in steps]
        for theirs, half in (
            (self.mimi.encoder_transformer.transformer, state.mimi.encoder),
            (self.mimi.decoder_transformer.transformer, state.mimi.decoder),
        ):
            _copy_rings(theirs, half.transformer, codec_steps, codec.transformer.context)


def _adopt(theirs: Any, ours: torch.nn.Module) -> None:
    """Give it our weights without a copy; parameter names are the published ones on both sides."""
    weights = ours.state_dict()
    theirs.load_state_dict({name: weights[name] for name in theirs.state_dict()}, strict=True, assign=True)
    theirs.eval()


def _copy_rings(theirs: Any, ours: TransformerState, steps: Sequence[int], capacity: int) -> None:
    with torch.inference_mode():
        theirs._streaming_state.offsets[:] = torch.tensor(steps)
        for index, layer in enumerate(theirs.layers):
            attention = layer.self_attn._streaming_state
            attention.offset[:] = torch.tensor(steps)
            attention.kv_cache.end_offset[:] = torch.tensor(steps)
            for row, made in enumerate(steps):
                for begin, block in held(ours, index, row, min(made, capacity)):
                    for half, content in enumerate(block[:2]):  # [T, H, D]
                        if len(block) > 2:
                            content = content.float() * block[half + 2].float().reshape(*content.shape[:2], -1)
                        end = begin + len(content)
                        attention.kv_cache.cache[half, row, :, begin:end] = content.transpose(0, 1)
