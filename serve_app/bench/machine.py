"""What this device does in this very run: copy bandwidth and rate of products, and what it calls itself."""

import dataclasses
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch

COPY_BYTES: Final = {"cpu": 256 << 20, "cuda": 2 << 30}
PRODUCT_SIZE: Final = {"cpu": 1536, "cuda": 8192}
TRY_S: Final = 1.0
"""The best of all tries in this time counts: neighbours on a shared machine only ever slow one down."""
CPU_INFO: Final = Path("/proc/cpuinfo")
DRIVER_INFO: Final = Path("/proc/driver/nvidia/version")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A device as this run found it.

    Attributes:
        device: what it calls itself; baselines are held against the same only.
        driver: NVIDIA's, or "" on a CPU.
        attention: which kernels torch may take for attention.
        memory_bytes: what this process may have of it.
        copy_bytes_s: bytes read and written in a second by a copy much larger than any cache.
        product_flop_s: by dtype, of a large square product.
    """

    device: str
    kind: str
    driver: str
    torch: str
    threads: int
    attention: str
    memory_bytes: int
    copy_bytes_s: float
    product_flop_s: Mapping[str, float]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)


def measure(device: torch.device, dtypes: set[torch.dtype], memory_bytes: int) -> Machine:
    """Find out; takes some seconds."""
    found = Machine(
        device=name_of(device),
        kind=device.type,
        driver=_driver() if device.type == "cuda" else "",
        torch=torch.__version__,
        threads=torch.get_num_threads(),
        attention=_attention(device),
        memory_bytes=memory_bytes,
        copy_bytes_s=_copy_bytes_s(device),
        product_flop_s={str(dtype).removeprefix("torch."): _product_flop_s(device, dtype) for dtype in dtypes},
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what was copied from and to
    return found


def name_of(device: torch.device) -> str:
    """What the device calls itself; of a CPU the model and how many cores this process may use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if CPU_INFO.is_file():
        for line in CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return f"{model}, {len(os.sched_getaffinity(0))} cores"


def wait(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _best_s(run: Callable[[], object], device: torch.device) -> float:
    best, began_s = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - began_s < TRY_S:
        wait(device)
        started_s = time.perf_counter()
        run()
        wait(device)
        best = min(best, time.perf_counter() - started_s)
    return best


def _copy_bytes_s(device: torch.device) -> float:
    count = COPY_BYTES[device.type]
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / _best_s(lambda: target.copy_(source), device)


def _product_flop_s(device: torch.device, dtype: torch.dtype) -> float:
    size = PRODUCT_SIZE[device.type]
    left = torch.ones(size, size, device=device, dtype=dtype)
    right = torch.ones_like(left)
    out = torch.empty_like(left)
    return 2 * size**3 / _best_s(lambda: torch.mm(left, right, out=out), device)


def _attention(device: torch.device) -> str:
    if device.type != "cuda":
        return "torch's own for CPUs"
    backends: Any = torch.backends.cuda
    flags = {
        "flash": backends.flash_sdp_enabled(),
        "efficient": backends.mem_efficient_sdp_enabled(),
        "cudnn": backends.cudnn_sdp_enabled(),
        "math": backends.math_sdp_enabled(),
    }
    return ", ".join(name for name, enabled in flags.items() if enabled)


def _driver() -> str:
    try:
        first = DRIVER_INFO.read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    words = [word for word in first.split() if word[:1].isdigit() and "." in word]
    return words[0] if words else "unknown"
