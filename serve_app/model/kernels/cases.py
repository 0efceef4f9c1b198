"""Every kernel on the inputs of a tick, and the operation's PyTorch path beside it: what `check` and the tests run.

Rows are of mixed length: half from an empty to a full context, the others past the wrap and at a few steps, in turn.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from serve_app.model.fused import UNGENERATED_TOKEN, rope_table
from serve_app.model.operation import BODIES, OPERATIONS, tensors_of
from serve_app.model.quantised_kv import LARGEST, dequantise, quantise, scale_like
from serve_app.model.sampling import noise_keys
from serve_app.model.text_bias import HISTORY_TOKENS

Outputs = tuple[Tensor, ...]

BF16: Final = torch.bfloat16
FP32: Final = torch.float32
EXACT: Final = 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of a tick; the published 7B's unless said otherwise."""

    rows: int = 16
    dim: int = 4096
    heads: int = 32
    head_dim: int = 128
    hidden: int = 11_264
    context: int = 3000
    page: int = 64
    card: int = 2048
    text_card: int = 32_000
    streams: int = 17
    dep_q: int = 8
    depth_heads: int = 16
    depth_head_dim: int = 64
    codec_dim: int = 512
    codec_heads: int = 8
    codec_context: int = 250
    channels: int = 64
    samples: int = 1920
    codebook_dim: int = 256
    dtype: torch.dtype = BF16


SMALL: Final = Sizes(
    rows=3,
    dim=96,
    heads=4,
    head_dim=32,
    hidden=70,
    context=70,
    page=16,
    card=40,
    text_card=60,
    depth_heads=2,
    depth_head_dim=16,
    codec_dim=24,
    codec_heads=2,
    codec_context=11,
    channels=5,
    samples=40,
    codebook_dim=12,
    dtype=FP32,
)
"""What Triton's interpreter can run; it cuts to bf16 where a GPU rounds."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One operation on one set of arguments.

    Attributes:
        arguments: of the operation; call it with `cloned` ones.
        moved_bytes: what has to be read and written at least.
        tolerance: greatest difference, absolute and relative to the PyTorch path's value.
        written: places of arguments that are written, with the place of their scales or None.
    """

    name: str
    operation: str
    arguments: tuple[Any, ...]
    moved_bytes: int
    tolerance: float
    written: tuple[tuple[int, int | None], ...] = ()

    def cloned(self) -> tuple[Any, ...]:
        """Arguments to call with, once or again and again."""
        return tuple(_clone(argument) for argument in self.arguments)

    def ours(self, arguments: tuple[Any, ...]) -> Outputs:
        """The operation as it is: with its kernel where one is plugged in."""
        return self._outputs(OPERATIONS[self.operation](*arguments), arguments)

    def theirs(self, arguments: tuple[Any, ...]) -> Outputs:
        """The PyTorch path."""
        return self._outputs(BODIES[self.operation](*arguments), arguments)

    def _outputs(self, made: Any, arguments: tuple[Any, ...]) -> Outputs:
        """What is returned and what is written; 8-bit numbers as what they stand for."""
        outputs = list(tensors_of((made,)))
        for place, scale in self.written:
            for store in tensors_of((arguments[place],)):
                outputs.append(store if scale is None else dequantise(store, arguments[scale], FP32))
        return tuple(outputs)


def cases(device: torch.device, sizes: Sizes | None = None, *, fp8: bool = True) -> Iterator[Case]:
    """Every kernel; ``fp8`` where the device has instructions for it."""
    s = sizes if sizes is not None else Sizes()
    random = _Random(device)
    stores = [s.dtype, torch.int8] + ([torch.float8_e4m3fn] if fp8 else [])
    yield from _norms(random, s)
    yield _gate(random, s)
    yield from _positions(random, s)
    for store in stores:
        yield _rope_append(random, s, store)
    for store in stores:
        yield _decode(random, s, f"decode {name_of(store)}", (s.heads, s.heads, s.head_dim), s.page, store, s.dtype)
    yield _decode(random, s, "decode grouped", (s.heads, s.heads // 4, s.head_dim), s.page, s.dtype, s.dtype)
    yield _decode(random, s, "decode ring fp32", (s.heads, s.heads, s.head_dim), s.context, FP32, FP32)
    yield _ring(random, s)
    yield _depth(random, s)
    yield from _embeddings(random, s)
    yield from _tokens(random, s)
    yield from _text(random, s)
    yield _sample(random, s, "sample audio", s.card, min(250, s.card // 2), None)
    yield _sample(random, s, "sample text", s.text_card, 25, 3)
    yield from _codec(random, s)
    yield from _rows(random, s)


def difference(ours: Outputs, theirs: Outputs, tolerance: float) -> tuple[float, bool]:
    """The greatest absolute difference, and whether all are within the tolerance."""
    worst, agrees = 0.0, len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=False):
        gap = (one.double() - other.double()).abs()
        allowed = tolerance * (1 + other.double().abs())
        worst = max(worst, float(gap.max()))
        agrees &= one.shape == other.shape and one.dtype == other.dtype
        agrees &= bool((gap <= allowed).all())  # a NaN is within nothing
    return worst, agrees


def name_of(dtype: torch.dtype) -> str:
    """Without its namespace."""
    return str(dtype).removeprefix("torch.")


# --- inputs -----------------------------------------------------------------------------------------------------------


class _Random:
    """Inputs from one seed, made on the host so that every device sees the same."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = FP32) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.device, dtype)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator).to(self.device)

    def below(self, most: int, *shape: int, least: int = 0) -> Tensor:
        return torch.randint(least, most, shape, generator=self._generator).to(self.device)

    def count(self, number: int) -> Tensor:
        return torch.arange(number, device=self.device)

    def lengths(self, rows: int, context: int) -> Tensor:
        spread = torch.linspace(1, context, rows, device=self.device).long()
        row = self.count(rows)
        return torch.where(row % 4 == 1, context + context // 4, torch.where(row % 4 == 3, row + 1, spread))

    def seats(self, rows: int) -> tuple[Tensor, Tensor]:
        """Slots of rows in any order, and where they write; the last does not execute."""
        slots = self.order(rows)
        write = slots.clone()
        write[-1] = rows
        return slots, write


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return [_clone(part) for part in value] if isinstance(value, list) else value


def _bytes(*values: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(values))


def _tolerance(dtype: torch.dtype) -> float:
    """Two roundings of the output's type, or what fp32 sums of thousands differ by."""
    return 2 * torch.finfo(dtype).eps if dtype != FP32 else 2e-5


# --- cases ------------------------------------------------------------------------------------------------------------


def _norms(random: _Random, s: Sizes) -> Iterator[Case]:
    x, update = (random.normal(s.rows, 1, s.dim, dtype=s.dtype) for _ in range(2))
    weight = random.normal(s.dim, dtype=s.dtype)
    moved, allowed = 2 * _bytes(x, update, weight), _tolerance(s.dtype)
    yield Case("add_norm", "add_norm", (x, update, weight, 1e-8, None, None), moved, allowed)
    yield Case("norm", "norm", (x, weight, 1e-8, None), moved // 2, allowed)
    x, update = (random.normal(s.rows, 2, s.codec_dim) for _ in range(2))
    weight, bias, scale = (random.normal(s.codec_dim) for _ in range(3))
    moved = 2 * _bytes(x, update) + _bytes(weight, bias, scale)
    yield Case("add_norm layer fp32", "add_norm", (x, update, weight, 1e-5, bias, scale), moved, 2e-5)
    yield Case("norm layer fp32", "norm", (x, weight, 1e-5, bias), moved // 2, 2e-5)


def _gate(random: _Random, s: Sizes) -> Case:
    x = random.normal(s.rows, 1, 2 * s.hidden, dtype=s.dtype)
    return Case("gate", "gate", (x, "silu"), _bytes(x) * 3 // 2, _tolerance(s.dtype))


def _positions(random: _Random, s: Sizes) -> Iterator[Case]:
    offset = random.lengths(s.rows, s.context)
    size = s.rows * 2 * s.head_dim * 4
    # An angle is as exact as fp32 makes its product; both are within a rounding of the frequency.
    yield Case("rope_table", "rope_table", (offset, 2, s.head_dim, 10_000.0), size, 1e-3)
    yield Case("window", "window", (offset, 1, s.context, s.context), s.rows * s.context, EXACT)
    blocks = -(-s.context // s.page)
    slots, write = random.seats(s.rows)
    table, index = random.below(99, s.rows + 1, blocks), random.below(s.context, s.rows, 2)
    arguments = (table, write[:, None], index, slots, write < s.rows, s.page, 7, blocks)
    yield Case("locate", "locate", arguments, _bytes(table), EXACT)
    pair = (random.lengths(s.rows, s.codec_context), 2, s.codec_context, s.codec_context)
    yield Case("window of two", "window", pair, 2 * s.rows * s.codec_context, EXACT)


def _rope_append(random: _Random, s: Sizes, store: torch.dtype) -> Case:
    heads, shape = s.heads, (s.rows + 1, 8, s.heads, s.head_dim)
    qkv = random.normal(s.rows, 1, 3 * heads * s.head_dim, dtype=s.dtype)
    cos, sin = rope_table(random.count(s.rows) * 100, 1, s.head_dim, 10_000.0)
    keys, values = (torch.zeros(shape, dtype=store, device=random.device) for _ in range(2))
    scales = scale_like(keys), scale_like(values)
    write, index = random.order(s.rows)[:, None], random.count(s.rows)[:, None] % 8
    # One step of the format, of the greatest value in a head; the two paths round before and after they scale.
    step = {torch.int8: 5 / 127, torch.float8_e4m3fn: 2 * 0.125}.get(store, _tolerance(s.dtype))
    written = ((3, None), (4, None)) if scales[0] is None else ((3, 10), (4, 11), (10, None), (11, None))
    arguments = (qkv, cos, sin, keys, values, write, index, heads, heads, True, *scales)
    return Case(f"rope_append {name_of(store)}", "rope_append", arguments, 2 * _bytes(qkv), step, written)


def _decode(
    random: _Random,
    s: Sizes,
    name: str,
    shape: tuple[int, int, int],
    page: int,
    store: torch.dtype,
    dtype: torch.dtype,
) -> Case:
    heads, kv_heads, head_dim = shape
    blocks = -(-s.context // page)
    table = random.order(s.rows * blocks).view(s.rows, blocks)
    length = random.lengths(s.rows, s.context)
    query = random.normal(s.rows, heads, head_dim, dtype=dtype)
    pool = (s.rows * blocks, page, kv_heads, head_dim)
    keys, values = random.normal(*pool, dtype=dtype), random.normal(*pool, dtype=dtype)
    scales: tuple[Tensor | None, Tensor | None] = (None, None)
    if store in LARGEST:
        (keys, key_scale), (values, value_scale) = quantise(keys, store), quantise(values, store)
        scales = key_scale, value_scale
    per_token = head_dim * keys.element_size() + (4 if store in LARGEST else 0)
    moved = 2 * int(length.clamp(max=s.context).sum()) * kv_heads * per_token + 2 * _bytes(query)
    # The PyTorch path rounds dequantised values to bf16, the kernel does not; outputs are averages, well below 1.
    return Case(
        name, "decode_attention", (query, keys, values, table, length, s.context, *scales), moved, _tolerance(dtype)
    )


def _ring(random: _Random, s: Sizes) -> Case:
    head_dim = s.codec_dim // s.codec_heads
    query = random.normal(s.rows, s.codec_heads, 2, head_dim)
    keys, values = (random.normal(s.rows + 1, s.codec_context, s.codec_heads, head_dim) for _ in range(2))
    _, visible = BODIES["window"](random.lengths(s.rows, s.codec_context), 2, s.codec_context, s.codec_context)
    moved = _bytes(keys, values) + 2 * _bytes(query)
    return Case("ring_attention", "ring_attention", (query, keys, values, random.order(s.rows), visible), moved, 2e-5)


def _depth(random: _Random, s: Sizes) -> Case:
    shape = (s.rows, s.depth_heads, s.dep_q, s.depth_head_dim)
    qkv = random.normal(s.rows, 1, 3 * s.depth_heads * s.depth_head_dim, dtype=s.dtype)
    keys, values = (random.normal(*shape, dtype=s.dtype) for _ in range(2))
    arguments = (qkv, keys, values, s.dep_q - 1, s.depth_heads)
    moved = _bytes(keys, values) + 2 * _bytes(qkv)
    return Case("depth_attention", "depth_attention", arguments, moved, _tolerance(s.dtype), ((1, None), (2, None)))


def _embeddings(random: _Random, s: Sizes) -> Iterator[Case]:
    tokens = random.below(s.card + 1, s.rows, s.streams, 1, least=UNGENERATED_TOKEN)
    table = random.normal(s.streams * (s.card + 1), s.dim, dtype=s.dtype)
    first = random.count(s.streams) * (s.card + 1)
    moved = s.rows * (s.streams + 1) * s.dim * s.dtype.itemsize
    yield Case("embed_sum", "embed_sum", (tokens, table, first), moved, _tolerance(s.dtype))
    dim = s.depth_heads * s.depth_head_dim
    x = random.normal(s.rows, 1, s.dep_q * dim, dtype=s.dtype)[..., dim : 2 * dim]  # one of the inputs made together
    table = random.normal(s.card + 1, dim, dtype=s.dtype)
    said = random.below(s.card, s.rows, least=-1)
    yield Case("add_embedding", "add_embedding", (x, said, table), 3 * _bytes(x), _tolerance(s.dtype))
    weight = random.normal(dim, dtype=s.dtype)
    arguments = (x, said, table, weight, 1e-8, None)
    yield Case("embed_norm", "embed_norm", arguments, 4 * _bytes(x), _tolerance(s.dtype))
    entries = [random.normal(s.card, s.codebook_dim) for _ in range(7)]
    codes = random.below(s.card + 1, s.rows, s.dep_q, 1, least=UNGENERATED_TOKEN)[:, 1:]
    moved = 8 * s.rows * s.codebook_dim * 4
    yield Case("residual_sum", "residual_sum", (codes, entries), moved, 2e-6)


def _tokens(random: _Random, s: Sizes) -> Iterator[Case]:
    most = 1 << 40
    slots, write = random.seats(s.rows)
    seed, step = random.below(most, s.rows + 1), random.below(most, s.rows + 1)
    yield Case("noise_keys", "noise_keys", (seed, step, slots, 1, s.dep_q), _bytes(seed) * s.dep_q, EXACT)
    cache = random.below(s.card, s.rows + 1, s.streams, 4)
    steps = random.below(9, s.rows + 1)
    lags, initial = random.count(s.streams) % 3, torch.full((s.streams,), s.card, device=random.device)
    heard = random.below(s.card, s.rows, s.streams - 1 - s.dep_q)
    moved = 2 * _bytes(cache)
    yield Case("hear", "hear", (cache, steps, heard, slots, write, lags, initial), moved, EXACT, ((0, None), (1, None)))
    text, codes, executes = random.below(s.card, s.rows), random.below(s.card, s.rows, s.dep_q), write < s.rows
    arguments = (cache, steps, text, codes, slots, write, executes, lags)
    yield Case("say", "say", arguments, moved, EXACT, ((0, None), (1, None)))


def _text(random: _Random, s: Sizes) -> Iterator[Case]:
    slots, write = random.seats(s.rows)
    logits, said = random.normal(s.rows, s.text_card), random.below(s.text_card, s.rows + 1, HISTORY_TOKENS, least=4)
    penalty, count = 1 + random.normal(s.rows + 1).abs(), random.below(2 * HISTORY_TOKENS, s.rows + 1)
    context = random.below(HISTORY_TOKENS + 1, s.rows + 1)
    arguments = (logits, penalty, context, said, count, slots, 3)
    yield Case("penalise", "penalise", arguments, 2 * _bytes(logits), 1e-6)
    text = random.below(s.text_card + 1, s.rows, least=-1)
    kept = (said, count, text, slots, write, [3, 0, s.text_card], s.text_card)
    yield Case("remember", "remember", kept, 2 * _bytes(said), EXACT, ((0, None), (1, None)))


def _sample(random: _Random, s: Sizes, name: str, vocabulary: int, top_k: int, raised: int | None) -> Case:
    logits, row = random.normal(s.rows, vocabulary) * 3, random.count(s.rows)
    temperature = torch.where(row % 4 == 0, 0.0, 0.8)
    keys = noise_keys(row, row * 7, torch.zeros(1, dtype=torch.int64, device=random.device))[:, 0]
    given = torch.where(row == 2, 5, UNGENERATED_TOKEN)
    by = None if raised is None else random.normal(s.rows)
    arguments = (logits, temperature, torch.full_like(row, top_k), keys, given, -1 if raised is None else raised, by)
    return Case(name, "sample", arguments, _bytes(logits), EXACT)


def _codec(random: _Random, s: Sizes) -> Iterator[Case]:
    slots, write = random.seats(s.rows)
    shapes: Sequence[tuple[str, int, int, int, int, int, bool, bool]] = (
        ("windows k7 of PCM", 1, s.samples, 7, 1, 1, False, False),
        ("windows k3", s.channels, s.samples // 2, 3, 1, 1, True, False),
        ("windows k8 s4", s.channels, s.samples // 2, 8, 4, 1, True, False),
        ("windows k7 of two steps", s.codec_dim, 2, 7, 1, 1, False, False),
        ("windows, dilated", s.channels, 10, 3, 1, 2, True, False),
        ("windows, a past of copies", s.codec_dim, 2, 4, 2, 1, False, True),
        ("joined", s.codec_dim, 2, 1, 1, 1, False, False),
    )
    for name, channels, steps, kernel, stride, dilation, elu, replicates in shapes:
        past = max((kernel - 1) * dilation + 1 - stride, 1)
        x = random.normal(s.rows, channels, steps).transpose(1, 2)
        previous = random.normal(s.rows + 1, past, channels)
        first = random.below(2, s.rows + 1).bool() if replicates else None
        arguments = (x, previous, first, slots, write, kernel, stride, dilation, elu)
        written = ((1, None), (2, None)) if replicates else ((1, None),)
        yield Case(name, "windows", arguments, _bytes(x) * (1 + kernel // stride), 1e-6, written)
    for name, channels, steps in (("elu_product", s.channels, s.samples), ("elu_product, wide", s.codec_dim, 5)):
        x, plus = random.normal(s.rows, steps, channels // 2), random.normal(s.rows, steps, channels)
        weight, bias = random.normal(channels, channels // 2), random.normal(channels)
        yield Case(name, "elu_product", (x, weight, bias, plus), _bytes(x, weight) + 2 * _bytes(plus), 2e-5)
    levels = [random.normal(s.card, s.codebook_dim) for _ in range(3)]
    half = [level.square().sum(dim=1) / 2 for level in levels]
    x = random.normal(s.rows, s.codebook_dim)
    yield Case("residual_search", "residual_search", (x, levels, half), _bytes(levels), EXACT)


def _rows(random: _Random, s: Sizes) -> Iterator[Case]:
    _, write = random.seats(s.rows)
    stores = [random.normal(s.rows + 1, 2, s.dim), random.below(2, s.rows + 1).bool(), random.below(9, s.rows + 1, 3)]
    moved = s.rows * (_bytes(stores) // (s.rows + 1))
    yield Case("fill_rows", "fill_rows", (stores, write, [0.0, 1.0, -2.0]), moved, EXACT, ((0, None),))
    parts = [random.normal(s.rows, s.samples), random.normal(s.rows, s.dim, dtype=s.dtype), random.normal(s.rows, 7, 2)]
    parts[2] = parts[2][..., 0]
    if s.rows > 2:
        parts[0][1, -1], parts[1][2, 3] = float("nan"), float("-inf")
    executes = write < s.rows
    yield Case("all_finite", "all_finite", (parts, executes), _bytes(parts), EXACT)
