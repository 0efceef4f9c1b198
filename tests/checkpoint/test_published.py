"""The published models, by names and shapes: nothing of their size is ever allocated."""

import itertools
from collections.abc import Iterator
from typing import Final

import pytest

from serve_app.checkpoint import keys, published
from serve_app.checkpoint.codec import read_mimi_config
from serve_app.checkpoint.duplex import build_on_meta
from serve_app.checkpoint.weights import shapes_of
from serve_app.model.duplex import Duplex
from serve_app.model.lm import LMConfig
from tests.oracle import PUBLISHED_LM, PUBLISHED_MIMI, reference_lm, reference_mimi

Shapes = dict[str, keys.Shape]

DIM: Final = 4096
DEPTH: Final = 1024


def moshi_7b_file() -> Shapes:
    """Every key of the published 7B file with its shape."""
    shapes: Shapes = {
        "text_emb.weight": (32001, DIM),
        "text_linear.weight": (32000, DIM),
        "out_norm.alpha": (1, 1, DIM),
        "depformer_text_emb.weight": (32001, DEPTH),
    }
    shapes |= {f"emb.{stream}.weight": (2049, DIM) for stream in range(16)}
    shapes |= {f"depformer_in.{step}.weight": (DEPTH, DIM) for step in range(8)}
    shapes |= {f"depformer_emb.{step}.weight": (2049, DEPTH) for step in range(7)}
    shapes |= {f"linears.{step}.weight": (2048, DEPTH) for step in range(8)}
    for layer in range(32):
        shapes |= attention(f"transformer.layers.{layer}", DIM, 1)
        shapes |= gating(f"transformer.layers.{layer}.gating", DIM, 11264)
    for layer in range(6):
        shapes |= attention(f"depformer.layers.{layer}", DEPTH, 8)
        for step in range(8):
            shapes |= gating(f"depformer.layers.{layer}.gating.{step}", DEPTH, 2816)
    return shapes


def attention(layer: str, dim: int, sets: int) -> Shapes:
    return {
        f"{layer}.self_attn.in_proj_weight": (sets * 3 * dim, dim),
        f"{layer}.self_attn.out_proj.weight": (sets * dim, dim),
        f"{layer}.norm1.alpha": (1, 1, dim),
        f"{layer}.norm2.alpha": (1, 1, dim),
    }


def gating(block: str, dim: int, hidden: int) -> Shapes:
    return {f"{block}.linear_in.weight": (2 * hidden, dim), f"{block}.linear_out.weight": (dim, hidden)}


def mimi_file() -> Shapes:
    """Every key of the published Mimi file with its shape."""
    shapes: Shapes = {
        "downsample.conv.conv.conv.weight": (512, 512, 4),
        "upsample.convtr.convtr.convtr.weight": (512, 1, 4),
    }
    shapes |= dict(itertools.chain(encoder(), decoder()))
    for side, layer in itertools.product(("encoder", "decoder"), range(8)):
        shapes |= codec_layer(f"{side}_transformer.transformer.layers.{layer}")
    for split, levels in (("rvq_first", 1), ("rvq_rest", 31)):
        owner = f"quantizer.{split}"
        shapes |= {f"{owner}.input_proj.weight": (256, 512, 1), f"{owner}.output_proj.weight": (512, 256, 1)}
        for level in range(levels):
            codebook = f"{owner}.vq.layers.{level}._codebook"
            shapes[f"{codebook}._initialized"] = (1,)
            shapes[f"{codebook}.cluster_usage"] = (2048,)
            shapes[f"{codebook}.embedding_sum"] = (2048, 256)
    return shapes


def conv(name: str, out: int, into: int, kernel: int) -> Iterator[tuple[str, keys.Shape]]:
    yield f"{name}.conv.conv.weight", (out, into, kernel)
    yield f"{name}.conv.conv.bias", (out,)


def residual(name: str, width: int) -> Iterator[tuple[str, keys.Shape]]:
    yield from conv(f"{name}.block.1", width // 2, width, 3)
    yield from conv(f"{name}.block.3", width, width // 2, 1)


def encoder() -> Iterator[tuple[str, keys.Shape]]:
    yield from conv("encoder.model.0", 64, 1, 7)
    for index, (width, kernel) in enumerate(((64, 8), (128, 10), (256, 12), (512, 16))):
        yield from residual(f"encoder.model.{1 + 3 * index}", width)
        yield from conv(f"encoder.model.{3 + 3 * index}", 2 * width, width, kernel)
    yield from conv("encoder.model.14", 512, 1024, 3)


def decoder() -> Iterator[tuple[str, keys.Shape]]:
    yield from conv("decoder.model.0", 1024, 512, 7)
    for index, (width, kernel) in enumerate(((512, 16), (256, 12), (128, 10), (64, 8))):
        name = f"decoder.model.{2 + 3 * index}.convtr.convtr"
        yield f"{name}.weight", (2 * width, width, kernel)
        yield f"{name}.bias", (width,)
        yield from residual(f"decoder.model.{3 + 3 * index}", width)
    yield from conv("decoder.model.14", 1, 64, 3)


def codec_layer(layer: str) -> Shapes:
    shapes: Shapes = {
        f"{layer}.self_attn.in_proj_weight": (1536, 512),
        f"{layer}.self_attn.out_proj.weight": (512, 512),
        f"{layer}.linear1.weight": (2048, 512),
        f"{layer}.linear2.weight": (512, 2048),
    }
    vectors = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "layer_scale_1.scale", "layer_scale_2.scale")
    return shapes | {f"{layer}.{vector}": (512,) for vector in vectors}


@pytest.fixture(scope="module")
def duplex() -> Duplex:
    lm = LMConfig.from_kyutai(published.MOSHI_7B)
    return build_on_meta(read_mimi_config(published.MIMI, lm.mimi_codebooks, "mimi"), lm)


def test_the_published_configurations_are_the_references() -> None:
    assert dict(published.MOSHI_7B) == dict(PUBLISHED_LM)
    assert dict(published.MIMI) == dict(PUBLISHED_MIMI)


def test_every_key_of_the_published_7b_has_its_place(duplex: Duplex) -> None:
    pieces, problems = keys.match(moshi_7b_file(), shapes_of(duplex.lm))
    assert problems == []
    assert pieces.keys() == shapes_of(duplex.lm).keys()


def test_every_key_of_the_published_mimi_has_its_place(duplex: Duplex) -> None:
    pieces, problems = keys.match(mimi_file(), shapes_of(duplex.mimi))
    assert problems == []
    assert pieces.keys() == shapes_of(duplex.mimi).keys()


def test_one_missing_key_of_the_published_files_is_told(duplex: Duplex) -> None:
    for held, wanted in ((moshi_7b_file(), shapes_of(duplex.lm)), (mimi_file(), shapes_of(duplex.mimi))):
        for key in held:
            _, problems = keys.match({name: shape for name, shape in held.items() if name != key}, wanted)
            assert problems, key
            assert all("missing" in problem for problem in problems)


def test_our_names_and_shapes_are_those_of_the_reference(duplex: Duplex) -> None:
    assert shapes_of(duplex.lm) == shapes_of(reference_lm(published.MOSHI_7B, device="meta"))
    assert shapes_of(duplex.mimi) == shapes_of(reference_mimi(published.MIMI, device="meta"))


def test_the_published_7b_has_7687_7_million_parameters(duplex: Duplex) -> None:
    assert sum(parameter.numel() for parameter in duplex.lm.parameters()) == 7_687_729_152
