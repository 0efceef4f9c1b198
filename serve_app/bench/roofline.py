"""The least time that a tick can take on a device: bytes that must be read, operations that must be done."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Final

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from serve_app.bench.machine import Machine
from serve_app.model.duplex import Duplex
from serve_app.model.mimi import Mimi
from serve_app.model.quantised_kv import KvName
from serve_app.model.quantised_linear import WeightsName
from serve_app.model.transformer import TransformerConfig
from serve_app.units import FRAME_SAMPLES

KEY_AND_VALUE: Final = 2
FP32_BYTES: Final = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one stage cannot avoid in a tick.

    Attributes:
        weight_bytes: read once whatever the batch.
        row_flop: of one row, attention left out.
        step_bytes, step_flop: of attention, for one row and one step that it holds.
        capacity: the most steps that attention sees.
        steps_per_frame: steps of attention in 80 ms.
        dtype: of the products.
    """

    weight_bytes: int
    row_flop: int
    step_bytes: int = 0
    step_flop: int = 0
    capacity: int = 0
    steps_per_frame: int = 1
    dtype: str

    def floor_ms(self, steps: Sequence[int], machine: Machine) -> float:
        """At this run's bandwidth and rate, whichever binds."""
        seen = sum(min(made * self.steps_per_frame, self.capacity) for made in steps)
        read_s = (self.weight_bytes + seen * self.step_bytes) / machine.copy_bytes_s
        flop = len(steps) * self.row_flop + seen * self.step_flop
        return 1_000 * max(read_s, flop / machine.product_flop_s[self.dtype])


def work_of(
    duplex: Duplex,
    dtype: torch.dtype,
    *,
    weights: WeightsName | None = None,
    codec_dtype: torch.dtype = torch.float32,
    kv: KvName | None = None,
) -> Mapping[str, Work]:
    """By stage; of a model on any device, ``meta`` included: shapes alone count.

    Args:
        duplex: in floats, whatever is measured.
        dtype: of the language model, keys and values included.
        weights: of its matrices; 8 bits are multiplied in bf16.
        codec_dtype: of the codec, its codebooks excepted.
        kv: of keys and values, scales counted, where they are kept in 8 bits.
    """
    lm, c = duplex.lm, duplex.lm.config
    size, codec_size = dtype.itemsize, codec_dtype.itemsize
    held, name = (1, "bfloat16") if weights == "int8" else (size, _name(dtype))
    products = _weights(lm.transformer, lm.text_linear)
    sets = max(c.weight_sets, 1)
    shared = _weights(*([lm.depformer] if lm.depformer is not None else []), lm.depformer_in)
    heads = _weights(lm.linears)
    codec, levels = duplex.mimi.config, (c.user_q, c.dep_q)
    encode_flop, decode_flop = _codec_flop(duplex.mimi, *levels)
    table_bytes = codec.card * codec.codebook_dim * FP32_BYTES
    mimi, ring = duplex.mimi, _attention(codec.transformer, codec_size)
    steps = {"capacity": codec.transformer.context, "steps_per_frame": codec.steps_per_frame}
    encoder = _weights(mimi.encoder, mimi.encoder_transformer, mimi.downsample)
    decoder = _weights(mimi.upsample, mimi.decoder_transformer, mimi.decoder)
    return {
        "encode": Work(
            weight_bytes=codec_size * encoder + levels[0] * table_bytes,
            row_flop=encode_flop,
            step_bytes=ring,
            step_flop=_attention_flop(codec.transformer) * codec.steps_per_frame,
            dtype=_name(codec_dtype),
            **steps,
        ),
        "lm": Work(
            weight_bytes=held * products,
            row_flop=2 * products,
            step_bytes=_attention(c.main, size) if kv is None else _attention(c.main, 1) + _scales(c.main),
            step_flop=_attention_flop(c.main),
            capacity=c.context,
            dtype=name,
        ),
        "depformer": Work(
            weight_bytes=held * (shared + heads),
            row_flop=2 * (shared * c.dep_q // sets + heads),
            dtype=name,
        ),
        "decode": Work(
            weight_bytes=codec_size * decoder,
            row_flop=decode_flop,
            step_bytes=ring,
            step_flop=_attention_flop(codec.transformer) * codec.steps_per_frame,
            dtype=_name(codec_dtype),
            **steps,
        ),
    }


def _weights(*modules: nn.Module) -> int:
    """Entries of everything that a product or a convolution reads."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim > 1)


def _attention(config: TransformerConfig, size: int) -> int:
    return KEY_AND_VALUE * config.layers * config.kv_heads * config.head_dim * size


def _scales(config: TransformerConfig) -> int:
    return KEY_AND_VALUE * config.layers * config.kv_heads * FP32_BYTES


def _attention_flop(config: TransformerConfig) -> int:
    return 2 * KEY_AND_VALUE * config.layers * config.heads * config.head_dim


def _codec_flop(mimi: Mimi, heard: int, said: int) -> tuple[int, int]:
    """Operations of one frame each way, counted on shapes alone."""
    with torch.device("meta"), torch.no_grad():
        shape = Mimi(mimi.config).eval()
        with FlopCounterMode(display=False) as encoding:
            latent = shape.encode_latent(torch.empty(1, 1, FRAME_SAMPLES))
            shape.quantizer.encode(latent, max(heard, 1))
        with FlopCounterMode(display=False) as decoding:
            shape.decode(torch.zeros(1, max(said, 1), 1, dtype=torch.int64))
    return int(encoding.get_total_flops()), int(decoding.get_total_flops())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
