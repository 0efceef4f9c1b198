"""Holds every kernel against PyTorch on this machine's GPU and times it: ``python -m serve_app.model.kernels.check``.

Shapes are the 7B's, 16 rows of mixed length. Prints a line per case and JSON last; ends with 1 where a case differs and
with 2 where nothing could be compared.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Final

import torch
from torch import Tensor

from serve_app.model.kernels import ops, twins
from serve_app.model.rope import Rotation
from serve_app.model.sampling import noise_keys

Outputs = tuple[Tensor, ...]

_PAGE: Final = 64
_REPEATS: Final = 20
_COPY_BYTES: Final = 1 << 30
_FLOAT8: Final = (8, 9)
"""Compute capability from which fp8 values are converted in hardware, and Triton compiles them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One kernel on one set of inputs.

    Attributes:
        kernel, twin: the two ways; each call computes the same again. Written stores are among the outputs.
        moved_bytes: what has to be read and written at least.
        tolerance: greatest difference, absolute and relative to the twin's value.
    """

    name: str
    kernel: Callable[[], Outputs]
    twin: Callable[[], Outputs]
    moved_bytes: int
    tolerance: float


def cases(device: torch.device, *, rows: int = 16, context: int = 3000, text_card: int = 32_000) -> Iterator[Case]:
    """Every kernel at the 7B's widths; smaller numbers where only compiling is asked."""
    bf16, fp32 = torch.bfloat16, torch.float32
    random = _Random(device)
    yield _norm_case(random, "add_norm", rows, 1, 4096, bf16, layer=False)
    yield _norm_case(random, "add_norm layer fp32", rows, 2, 512, fp32, layer=True)
    yield _gate_case(random, rows)
    formats = [bf16, torch.int8]
    if device.type != "cuda" or torch.cuda.get_device_capability(device) >= _FLOAT8:
        formats.append(torch.float8_e4m3fn)
    for store in formats:
        yield _rope_case(random, rows, store)
    for store in formats:
        yield _decode_case(random, f"decode {_name(store)}", rows, (32, 32, 128), context, _PAGE, store, bf16)
    yield _decode_case(random, "decode grouped bf16", rows, (32, 8, 128), context, _PAGE, bf16, bf16)
    yield _decode_case(random, "decode ring fp32", rows, (8, 8, 64), 250, 250, fp32, fp32)
    yield _depth_case(random, rows)
    yield _sample_case(random, "sample audio", rows, 2048, 250)
    yield _sample_case(random, "sample text", rows, text_card, 25)


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA: nothing was compared and nothing was timed")  # noqa: T201
        print(json.dumps({"cuda": False, "cases": []}))  # noqa: T201
        return 2
    if not ops.available():
        print("triton is not installed: nothing was compared and nothing was timed")  # noqa: T201
        print(json.dumps({"cuda": True, "triton": False, "cases": []}))  # noqa: T201
        return 2
    device = torch.device("cuda")
    bandwidth = _copy_bandwidth(device)
    results = []
    for case in cases(device):
        results.append(result := _run(case, bandwidth))
        print(  # noqa: T201
            f"{case.name:24} {'ok ' if result['agrees'] else 'BAD'} difference {result['difference']:.2e}"
            f"  {result['us']:8.1f} us  floor {result['floor_us']:7.1f}"
            f"  PyTorch {result['pytorch_us']:8.1f}  {result['error']}"
        )
    agrees = all(result["agrees"] for result in results)
    report = {
        "cuda": True,
        "gpu": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "copy_bytes_per_s": bandwidth,
        "agrees": agrees,
        "cases": results,
    }
    print(json.dumps(report))  # noqa: T201
    return 0 if agrees else 1


# --- measuring --------------------------------------------------------------------------------------------------------


def _run(case: Case, bandwidth: float) -> dict[str, str | float | bool]:
    blank = {"difference": float("nan"), "us": float("nan"), "pytorch_us": float("nan")}
    floor_us = case.moved_bytes / bandwidth * 1e6
    try:
        worst, agrees = difference(case.kernel(), case.twin(), case.tolerance)
        us, pytorch_us = _captured_us(case.kernel), _eager_us(case.twin)
    except Exception as error:  # noqa: BLE001 - a kernel that does not compile here is a result; the others still run
        words = f"{type(error).__name__}: {error}"[:200]
        return {"name": case.name, "agrees": False, "floor_us": floor_us, "error": words, **blank}
    return {
        "name": case.name,
        "agrees": agrees,
        "difference": worst,
        "us": us,
        "floor_us": floor_us,
        "pytorch_us": pytorch_us,
        "error": "",
    }


def difference(ours: Outputs, theirs: Outputs, tolerance: float) -> tuple[float, bool]:
    """The greatest absolute difference, and whether all are within the tolerance."""
    worst, agrees = 0.0, len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=False):
        gap = (one.double() - other.double()).abs()
        allowed = tolerance * (1 + other.double().abs())
        worst = max(worst, float(gap.max()))
        agrees &= bool((gap <= allowed).all())  # a NaN is within nothing
    return worst, agrees


def _captured_us(run: Callable[[], object]) -> float:
    """Microseconds of one call inside a captured graph, as a tick has it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_REPEATS):
            run()
    return _timed_us(graph.replay) / _REPEATS


def _eager_us(run: Callable[[], object]) -> float:
    def repeat() -> None:
        for _ in range(_REPEATS):
            run()

    return _timed_us(repeat) / _REPEATS


def _timed_us(run: Callable[[], object]) -> float:
    """The median of 7, after 2 to warm."""
    taken: list[float] = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) * 1000)
    return sorted(taken[2:])[3]


def _copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written per second by a copy."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / (_timed_us(lambda: target.copy_(source)) / 1e6)


# --- cases ------------------------------------------------------------------------------------------------------------


class _Random:
    """Inputs from one seed, made on the host so that every device sees the same."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._generator = torch.Generator().manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.device, dtype)

    def order(self, count: int) -> Tensor:
        return torch.randperm(count, generator=self._generator).to(self.device)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _tolerance(dtype: torch.dtype) -> float:
    """Two roundings of the output's type, or what fp32 sums of thousands differ by."""
    return 2 * torch.finfo(dtype).eps if dtype != torch.float32 else 2e-5


def _bytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _norm_case(random: _Random, name: str, rows: int, steps: int, dim: int, dtype: torch.dtype, *, layer: bool) -> Case:
    x, update = random.normal(rows, steps, dim, dtype=dtype), random.normal(rows, steps, dim, dtype=dtype)
    weight = random.normal(dim, dtype=dtype)
    bias, scale = (random.normal(dim, dtype=dtype), random.normal(dim, dtype=dtype)) if layer else (None, None)
    return Case(
        name,
        lambda: ops.add_norm(x, update, weight, 1e-5, bias, scale),
        lambda: twins.add_norm(x, update, weight, 1e-5, bias, scale),
        2 * _bytes(x, update) + _bytes(weight),
        _tolerance(dtype),
    )


def _gate_case(random: _Random, rows: int) -> Case:
    x = random.normal(rows, 1, 2 * 11264, dtype=torch.bfloat16)

    def twin() -> Outputs:
        a, b = x.chunk(2, dim=-1)
        return (torch.nn.functional.silu(a) * b,)

    return Case("gate", lambda: (ops.gate(x, "silu"),), twin, _bytes(x) * 3 // 2, _tolerance(x.dtype))


def _stores(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
    scales = torch.zeros(shape[:-1], device=device) if dtype in (torch.int8, torch.float8_e4m3fn) else None
    return torch.zeros(shape, dtype=dtype, device=device), scales


def _held(store: Tensor, scales: Tensor | None) -> Tensor:
    """What a store stands for, so that a value rounded the other way counts as the half step it is."""
    return store.float() if scales is None else store.float() * scales[..., None]


def _rope_case(random: _Random, rows: int, store: torch.dtype) -> Case:
    heads, head_dim, device = 32, 128, random.device
    qkv = random.normal(rows, 1, 3 * heads * head_dim, dtype=torch.bfloat16)
    rotation = Rotation.at(torch.arange(rows, device=device) * 100, 1, head_dim, 10_000, interleaved=True)
    shape = (rows + 1, 8, heads, head_dim)
    write, index = random.order(rows), torch.arange(rows, device=device)[:, None] % 8
    ours = [_stores(shape, store, device) for _ in range(2)]
    theirs = [_stores(shape, store, device) for _ in range(2)]

    def kernel() -> Outputs:
        (keys, key_scale), (values, value_scale) = ours
        q = ops.rope_append(
            qkv,
            rotation.cos,
            rotation.sin,
            keys,
            values,
            write,
            index,
            heads=heads,
            kv_heads=heads,
            interleaved=True,
            key_scale=key_scale,
            value_scale=value_scale,
        )
        return q, _held(keys, key_scale), _held(values, value_scale)

    def twin() -> Outputs:
        (keys, key_scale), (values, value_scale) = theirs
        q = twins.rope_append(qkv, rotation, keys, values, write, index, heads, heads, key_scale, value_scale)
        return q, _held(keys, key_scale), _held(values, value_scale)

    step = {torch.int8: 5 / 127, torch.float8_e4m3fn: 2 * 0.125}.get(store, _tolerance(torch.bfloat16))
    return Case(f"rope_append {_name(store)}", kernel, twin, 2 * _bytes(qkv), step)


def _decode_case(
    random: _Random,
    name: str,
    rows: int,
    shape: tuple[int, int, int],
    context: int,
    page: int,
    store: torch.dtype,
    dtype: torch.dtype,
) -> Case:
    """Half the rows from an empty to a full context, the other half past its wrap and at a few steps, in turn."""
    heads, kv_heads, head_dim = shape
    device = random.device
    blocks = -(-context // page)
    table = random.order(rows * blocks).view(rows, blocks).int()
    spread = torch.linspace(1, context, rows, device=device).long()
    odd = torch.arange(rows, device=device)
    length = torch.where(odd % 4 == 1, context + 777, torch.where(odd % 4 == 3, odd + 1, spread))
    query = random.normal(rows, heads, head_dim, dtype=dtype)
    pool = (rows * blocks, page, kv_heads, head_dim)
    keys, values = random.normal(*pool, dtype=dtype), random.normal(*pool, dtype=dtype)
    key_scale = value_scale = None
    if store != dtype:
        keys, key_scale = twins.quantise(keys, store)
        values, value_scale = twins.quantise(values, store)
    read = int(length.clamp(max=context).sum()) * kv_heads
    per_token = head_dim * keys.element_size() + (0 if key_scale is None else key_scale.element_size())
    return Case(
        name,
        lambda: (ops.decode_attention(query, keys, values, table, length, context, key_scale, value_scale),),
        lambda: (twins.decode_attention(query, keys, values, table, length, context, key_scale, value_scale),),
        2 * read * per_token + 2 * _bytes(query),
        # The twin rounds dequantised values to bf16, the kernel does not; outputs are averages, well below 1.
        _tolerance(dtype),
    )


def _depth_case(random: _Random, rows: int) -> Case:
    heads, head_dim, index = 16, 64, 7
    qkv = random.normal(rows, 1, 3 * heads * head_dim, dtype=torch.bfloat16)
    past = [random.normal(rows, heads, 8, head_dim, dtype=torch.bfloat16) for _ in range(2)]
    ours, theirs = [store.clone() for store in past], [store.clone() for store in past]
    return Case(
        "depth_attention",
        lambda: (ops.depth_attention(qkv, ours[0], ours[1], index, heads), *ours),
        lambda: (twins.depth_attention(qkv, theirs[0], theirs[1], index, heads), *theirs),
        _bytes(*past) + 2 * _bytes(qkv),
        _tolerance(qkv.dtype),
    )


def _sample_case(random: _Random, name: str, rows: int, vocabulary: int, top_k: int) -> Case:
    device = random.device
    logits = random.normal(rows, vocabulary) * 3
    index = torch.arange(rows, device=device)
    temperature = torch.where(index % 4 == 0, 0.0, 0.8)
    keys = noise_keys(index, index * 7, torch.zeros(1, dtype=torch.int64, device=device))[:, 0]
    cut = torch.full((rows,), top_k, device=device)
    return Case(
        name,
        lambda: (ops.sample(logits, temperature, cut, keys),),
        lambda: (twins.sample(logits, temperature, cut, keys, whole=False),),
        _bytes(logits),
        0.0,
    )


if __name__ == "__main__":
    sys.exit(main())
