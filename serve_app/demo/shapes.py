"""Small shapes of the whole family, as Kyutai spells them in config.json: each has what its published model has.

They are for trying, testing and comparing, on a CPU in seconds. Weights are random, so what they say means nothing.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, Literal

TEXT_CARD: Final = 512
CARD: Final = 64
CONTEXT: Final = 40

Storage = Literal["plain", "lora", "q8"]


@dataclasses.dataclass(frozen=True, slots=True)
class Shape:
    """One kind of checkpoint.

    Attributes:
        told: what it is like, in a line.
        config: of the language model, with ``lm_gen_config`` and the like.
        storage: how its weights lie in the folder.
    """

    told: str
    config: Mapping[str, Any]
    storage: Storage = "plain"


def _delays(dep_q: int, acoustic: int) -> list[int]:
    voice = [0] + [acoustic] * (dep_q - 1)
    return [0, *voice, *voice]


_MOSHI: Final[Mapping[str, Any]] = {
    "model_type": "moshi",
    "dim": 64,
    "text_card": TEXT_CARD,
    "existing_text_padding_id": 3,
    "n_q": 16,
    "dep_q": 8,
    "card": CARD,
    "num_heads": 4,
    "num_layers": 2,
    "hidden_scale": 4.125,
    "causal": True,
    "layer_scale": None,
    "context": CONTEXT,
    "max_period": 10_000,
    "gating": "silu",
    "norm": "rms_norm_f32",
    "positional_embedding": "rope",
    "depformer_dim": 32,
    "depformer_dim_feedforward": 132,
    "depformer_num_heads": 2,
    "depformer_num_layers": 2,
    "depformer_layer_scale": None,
    "depformer_multi_linear": True,
    "depformer_context": 8,
    "depformer_max_period": 10_000,
    "depformer_gating": "silu",
    "depformer_pos_emb": "none",
    "depformer_weights_per_step": True,
    "delays": _delays(8, 1),
}

_DESCRIPTION: Final[Mapping[str, Any]] = {
    "description": {
        "type": "lut",
        "lut": {
            "n_bins": 31,
            "dim": 16,
            "tokenizer": "noop",
            "possible_values": ["very_bad", "bad", "neutral", "good", "very_good"],
        },
    }
}

_TWO_B: Final[Mapping[str, Any]] = {
    **_MOSHI,
    "n_q": 32,
    "dep_q": 16,
    "max_period": 100_000,
    "depformer_context": 16,
    "delays": _delays(16, 2),
    "conditioners": _DESCRIPTION,
    "fuser": {"sum": ["description"]},
}

_SCHEDULE: Final[Mapping[str, Any]] = {
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8, 8, 8, 8, 8],
    "depformer_low_rank_embeddings": 16,
}

_STT: Final[Mapping[str, Any]] = {
    **{key: value for key, value in _MOSHI.items() if not key.startswith("depformer_")},
    "model_type": "stt",
    "n_q": 8,
    "dep_q": 0,
    "delays": [0] * 9,
    "extra_heads_num_heads": 4,
    "extra_heads_dim": 6,
    "conditioners": {},
    "fuser": None,
    "lm_gen_config": {"temp": 0.0, "temp_text": 0.0, "top_k": 250, "top_k_text": 50},
    "stt_config": {"audio_delay_seconds": 0.5, "audio_silence_prefix_seconds": 0.0},
}

_TTS: Final[Mapping[str, Any]] = {
    **_MOSHI,
    "delays": _delays(8, 2),
    "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4],
    "depformer_low_rank_embeddings": 16,
    "demux_second_stream": True,
    "cross_attention": True,
    "conditioners": {
        "speaker_wavs": {"type": "tensor", "tensor": {"dim": 24}},
        "cfg": {
            "type": "lut",
            "lut": {"n_bins": 7, "dim": 16, "tokenizer": "noop", "possible_values": ["1.0", "2.0", "3.0"]},
        },
        "control": {
            "type": "lut",
            "lut": {"n_bins": 3, "dim": 16, "tokenizer": "noop", "possible_values": ["also_ok", "ok"]},
        },
    },
    "fuser": {
        "sum": ["control", "cfg"],
        "cross": ["speaker_wavs"],
        "cross_attention_pos_emb": True,
        "cross_attention_pos_emb_scale": 1.0,
    },
}

SHAPES: Final[Mapping[str, Shape]] = {
    "moshi": Shape("the 7B: two voices of eight codebooks, a delay of one", _MOSHI),
    "moshi-2b": Shape("the 2B: sixteen codebooks, a delay of two, a condition added to every step", _TWO_B),
    "hibiki": Shape(
        "translation: as the 2B, depth weights shared by schedule, low rank, guidance",
        {**_TWO_B, **_SCHEDULE, "model_type": "hibiki", "lm_gen_config": {"temp": 0.8, "temp_text": 0.8}},
    ),
    "tts": Shape("speech synthesis: cross-attention to a voice, two texts in one stream", _TTS),
    "stt": Shape("recognition: no Depformer, text alone, heads that say whether somebody speaks", _STT),
    "low-rank": Shape("the 7B with depth weights shared by schedule and embeddings of low rank", {
        **_MOSHI,
        "depformer_weights_per_step_schedule": [0, 1, 2, 3, 4, 4, 4, 4],
        "depformer_low_rank_embeddings": 16,
    }),
    "lora": Shape("the 7B with a LoRA adapter, fused when it is loaded", {
        **_MOSHI, "lora": True, "lora_rank": 4, "lora_scaling": 2.0, "lora_name": "lora.safetensors",
    }, "lora"),
    "q8": Shape("the 7B, every linear in 8 bits, dequantised when it is loaded", {**_MOSHI, "quantize": True}, "q8"),
}  # fmt: skip
"""By the names that `random_checkpoint` takes."""

CODEC: Final[Mapping[str, Any]] = {
    "sample_rate": 24_000,
    "channels": 1,
    "frame_rate": 12.5,
    "seanet": {
        "channels": 1,
        "dimension": 32,
        "causal": True,
        "n_filters": 4,
        "n_residual_layers": 1,
        "activation": "ELU",
        "compress": 2,
        "dilation_base": 2,
        "disable_norm_outer_blocks": 0,
        "kernel_size": 7,
        "residual_kernel_size": 3,
        "last_kernel_size": 3,
        "norm": "none",
        "pad_mode": "constant",
        "ratios": [8, 6, 5, 4],
        "true_skip": True,
    },
    "transformer": {
        "d_model": 32,
        "num_heads": 2,
        "num_layers": 1,
        "causal": True,
        "layer_scale": 0.1,
        "context": 50,
        "conv_layout": True,
        "max_period": 10_000,
        "gating": "none",
        "norm": "layer_norm",
        "positional_embedding": "rope",
        "dim_feedforward": 64,
        "input_dimension": 32,
        "output_dimensions": [32],
    },
    "quantizer": {"dimension": 16, "n_q": 16, "bins": CARD, "input_dimension": 32, "output_dimension": 32},
}
"""The codec of them all: Mimi, narrow."""
